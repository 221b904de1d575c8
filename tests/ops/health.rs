//! Health and issues as operators see them, with real receivers that fail: what is published, what follows from it, and what stays
//! of it when another worker takes over.

use serde_json::Value;

use crate::{
    merchants::Reply,
    support::until,
    verbs::{herald, text},
    world::{Event, STREAM, World},
};

fn json(world: &World, words: &[&str]) -> Value {
    let output = herald(&world.redis, &[words, &["-o", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {}", text(&output)))
}

fn health(world: &World, endpoint: &str) -> Value {
    json(world, &["endpoint", "show", endpoint])["health"].take()
}

fn issues(world: &World, more: &[&str]) -> Vec<Value> {
    let found = json(world, &[&["issue", "list"], more].concat());
    found.as_array().unwrap().clone()
}

fn events(account: &str, from: usize, count: usize) -> Vec<Event> {
    (from..from + count).map(|number| Event::new(number, account, &format!("pi_{number}"), "Captured")).collect()
}

/// `ep_0` takes everything and `ep_1` nothing.
async fn half_failing() -> World {
    let world = World::new().await;
    world.register_many(2).await;
    world.merchants.rule("ep_1", |_| Reply::status(500));
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_can_tell_how_an_endpoint_does_and_the_next_owner_goes_on_from_there() {
    let world = half_failing().await;
    let worker = world.setup().start();
    world.publish(&events("acc_0", 0, 20)).await;
    world.publish(&events("acc_1", 20, 10)).await;
    until("ep_1 is known to fail", async || health(&world, "ep_1")["verdict"] == "failing").await;
    until("all that ep_0 took is told", async || health(&world, "ep_0")["last_day"]["delivered"] == 20).await;

    let well = health(&world, "ep_0");
    assert_eq!(
        (&well["verdict"], &well["last_15_minutes"]["success_percent"]),
        (&"well".into(), &100.into()),
        "{well}"
    );
    assert!(well["last_success_at"].is_string() && well["has_owner"] == true && well["unfinished"] == 0, "{well}");
    until("its breaker is open, and what waits is parked", async || {
        let failing = health(&world, "ep_1");
        failing["breaker"]["state"] != "closed" && failing["unfinished"] == 10
    })
    .await;
    let failing = health(&world, "ep_1");
    assert_eq!(failing["last_failure"]["cause"], "server_failed:500", "{failing}");
    assert!(failing["last_failure"]["says"].as_str().unwrap().contains("(500)"), "{failing}");
    assert!(failing["failing_since"].is_string() && failing["oldest"].is_string(), "{failing}");

    let listed = String::from_utf8(herald(&world.redis, &["endpoint", "list"]).stdout).unwrap();
    assert!(listed.lines().all(|line| line.chars().count() <= 80), "{listed}");
    let row = listed.lines().find(|line| line.starts_with("ep_1")).unwrap();
    assert!(row.contains("failing") && row.contains("10"), "{listed}");
    let shown = text(&herald(&world.redis, &["endpoint", "show", "ep_1"]));
    assert!(shown.contains("failing since") && shown.contains("none succeeded"), "{shown}");

    worker.kill9();
    until("the lease is over", async || health(&world, "ep_0")["has_owner"] == false).await;
    let shown = text(&herald(&world.redis, &["endpoint", "show", "ep_0"]));
    assert!(shown.contains("no worker owns the stream, so it is out of date"), "{shown}");

    let _next = world.setup().start();
    world.publish(&events("acc_0", 30, 5)).await;
    until("the next owner adds to what it found", async || health(&world, "ep_0")["last_day"]["delivered"] == 25).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issue_says_whom_it_hits_and_what_to_do_and_opens_anew_when_it_comes_back() {
    let world = half_failing().await;
    // Nothing becomes a letter while this test looks.
    let slow = world.setup().env("HERALD_RETRY_MAX_ATTEMPTS", "50").env("HERALD_RETRY_MAX_INTERVAL", "5s");
    let _worker = slow.start();
    world.publish(&events("acc_0", 0, 5)).await;
    world.publish(&events("acc_1", 20, 3)).await;
    until("there is an issue", async || issues(&world, &[]).len() == 1).await;
    let issue = &issues(&world, &[])[0];
    assert_eq!((&issue["id"], &issue["account"]), (&"ep_1:server_failed:500".into(), &"acc_1".into()), "{issue}");
    assert_eq!((&issue["state"], &issue["is_failing"]), (&"open".into(), &true.into()), "{issue}");
    assert!(issue["attempts"].as_u64().unwrap() >= 5 && issue["sample"].is_string(), "{issue}");
    assert_eq!(issue["diagnosis"]["who"], "merchant", "{issue}");
    assert!(issue["to_merchant"].as_str().unwrap().contains(&world.merchants.url("ep_1")), "{issue}");
    assert_eq!(issues(&world, &["--account", "acc_0"]), Vec::<Value>::new());

    // A quarter of all endpoints and more: not "no problem".
    world.merchants.rule("ep_0", |_| Reply::status(500));
    world.publish(&events("acc_0", 40, 2)).await;
    until("both fail", async || issues(&world, &[]).len() == 2).await;
    let doctor = herald(&world.redis, &["doctor"]);
    let said = String::from_utf8(doctor.stdout).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert!(!doctor.status.success() && lines[0].contains("2 of 2 endpoints"), "{said}");
    assert!(lines[2].starts_with("FAIL  issues") && lines[4].starts_with("warn  issues"), "{said}");

    let id = "ep_1:server_failed:500";
    let acked = herald(&world.redis, &["issue", "ack", id, "--reason", "told them"]);
    assert!(acked.status.success(), "{}", text(&acked));
    let known = json(&world, &["issue", "show", id]);
    assert_eq!((&known["state"], &known["said"]["by"]), (&"acknowledged".into(), &"ops".into()), "{known}");
    let resolved = herald(&world.redis, &["issue", "resolve", id, "--reason", "they say so"]);
    assert!(text(&resolved).contains("still fails"), "{}", text(&resolved));
    until("it has opened anew", async || json(&world, &["issue", "show", id])["state"] == "open").await;
    let again = text(&herald(&world.redis, &["issue", "show", id]));
    assert!(again.contains("open again; it was resolved by ops") && again.contains("To the merchant:"), "{again}");

    world.merchants.heal("ep_1");
    until("it takes events again", async || health(&world, "ep_1")["failing_since"].is_null()).await;
    let gone = herald(&world.redis, &["issue", "ack", "ep_1:dns_failed", "--reason", "never was"]);
    assert_eq!(gone.status.code(), Some(3), "{}", text(&gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_nobody_is_told_of_are_seen_by_account() {
    let world = World::new().await;
    world.register_many(1).await;
    let _worker = world.setup().start();
    let disable = ["endpoint", "disable", "ep_0", "--yes", "--reason", "a test"];
    world.publish(&events("acc_nobody", 0, 3)).await;
    let strange = Event::new(10, "acc_strange", "pi_10", "Captured").body.replace("payment_intent.", "payout.");
    let _: String = world.redis.command(&["XADD", STREAM, "*", "event", &strange]).await;
    assert!(herald(&world.redis, &disable).status.success());
    world.publish(&events("acc_0", 20, 4)).await;
    let says = || -> Vec<String> {
        let found = json(&world, &["doctor"]);
        let of =
            |finding: &Value| (finding["subject"] == "unserved").then(|| finding["says"].as_str().unwrap().to_owned());
        found["findings"].as_array().unwrap().iter().filter_map(of).collect()
    };
    until("the doctor names all of them", async || {
        let says = says();
        let names = |what: &str| says.iter().any(|says| says.contains(what));
        names("acc_nobody has no endpoint for 3 events")
            && names("acc_strange has 1 event of a type that this Herald does not know, last \"payout.")
            && names("acc_0 has missed 4 events")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_for_too_long_is_disabled_and_operators_are_told() {
    let world = half_failing().await;
    world.register(world.endpoint("ep_ops", "herald")).await;
    let _worker = world.setup().env("HERALD_LIMITS_DISABLE_AFTER", "2s").start();
    world.publish(&events("acc_1", 20, 5)).await;
    let state = |endpoint: &str| json(&world, &["endpoint", "show", endpoint])["state"].as_str().unwrap().to_owned();
    until("it is disabled", async || state("ep_1") == "disabled").await;
    let shown = text(&herald(&world.redis, &["endpoint", "show", "ep_1"]));
    assert!(shown.contains("disabled by herald: nothing has succeeded for"), "{shown}");
    assert!(shown.contains("(server_failed:500); limits.disable_after is 2s"), "{shown}");
    let acts = json(&world, &["audit", "list", "--act", "endpoint disable"]);
    assert_eq!((&acts[0]["by"], &acts[0]["ended"]["result"]), (&"herald".into(), &"done".into()), "{acts}");

    world.merchants.until("operators are told", |log| log.delivered_to("ep_ops") > 0).await;
    let entries: Vec<(String, Vec<String>)> = world.redis.command(&["XRANGE", STREAM, "-", "+"]).await;
    let own: Vec<&String> =
        entries.iter().map(|(_, fields)| &fields[1]).filter(|body| body.contains("\"herald\"")).collect();
    assert_eq!(own.len(), 1, "{own:?}");
    assert!(own[0].contains("endpoint.disabled") && own[0].contains("\"endpointId\":\"ep_1\""), "{own:?}");
    assert!(own[0].contains("\"accountId\":\"acc_1\"") && own[0].contains("\"by\":\"herald\""), "{own:?}");
    world.merchants.assert_sound();

    // What was owed is kept, and an issue still says why.
    until("its deliveries are letters", async || issues(&world, &[]).iter().any(|issue| issue["letters"] == 5)).await;
    assert_eq!(issues(&world, &[])[0]["endpoint_state"], "disabled");
    let refused = herald(&world.redis, &["intents", "key", "create", "--account", "herald", "--reason", "a test"]);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
}

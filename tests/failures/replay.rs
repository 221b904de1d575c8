//! Replays: what the history kept goes to one endpoint again, once and in its order, whoever dies meanwhile.

use herald::{
    facts::{endpoint::EndpointState, id::EntryId},
    store::keys::PartitionKeys,
};
use serde_json::{Value, json};

use crate::{
    history::{Place, setup},
    merchants::Reply,
    process::Herald,
    support::{TestRedis, until},
    world::{Event, STREAM, World, lives, mark},
};

pub fn keys() -> PartitionKeys {
    PartitionKeys::new(STREAM).unwrap()
}

/// A verb of somebody who is told where the history is.
pub fn verb(world: &World, place: &Place, words: &[&str]) -> (Option<i32>, String) {
    let output = crate::history::verb(world, &place.url(), words);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    (output.status.code(), text)
}

pub fn answer(world: &World, place: &Place, words: &[&str]) -> Value {
    let output = crate::history::verb(world, &place.url(), &[words, &["-o", "json"]].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn plan(world: &World, place: &Place, words: &[&str]) -> Value {
    let planned = answer(world, place, &[&["operation", "plan", "replay"], words, &["--reason", "lost"]].concat());
    assert_eq!((&planned["state"], &planned["kind"]), (&json!("planned"), &json!("replay")));
    planned
}

pub fn id_of(operation: &Value) -> &str {
    operation["id"].as_str().unwrap()
}

fn start(world: &World, place: &Place, operation: &Value) {
    answer(world, place, &["operation", "start", id_of(operation)]);
}

/// `done`, `dead_again`, `refused`, `overtaken`, `left`, `open`, once it has ended.
async fn totals(world: &World, place: &Place, operation: &Value) -> [u64; 6] {
    let mut shown = Value::Null;
    until("the replay to end", async || {
        // Redis may be away.
        let output = crate::history::verb(world, &place.url(), &["operation", "show", id_of(operation), "-o", "json"]);
        shown = serde_json::from_slice(&output.stdout).unwrap_or_default();
        shown["state"] == "done"
    })
    .await;
    ["done", "dead_again", "refused", "overtaken", "left", "open"].map(|name| shown[name].as_u64().unwrap())
}

async fn until_done(world: &World, operation: &Value, least: u64) {
    let key = keys().operation(&id_of(operation).parse().unwrap());
    until(&format!("{least} to be done"), async || {
        world.redis.command::<Option<u64>>(&["HGET", &key, "done"]).await.unwrap_or(0) >= least
    })
    .await;
}

/// What a merchant was told of each event that it accepted: (event, sequence), in the order of arrival.
fn told(world: &World, endpoint: &str, after: usize) -> Vec<(String, EntryId)> {
    let log = world.merchants.log();
    let accepted = log.arrivals.iter().skip(after).filter(|arrival| arrival.endpoint == endpoint);
    accepted
        .filter(|arrival| arrival.answered == Some(200))
        .map(|arrival| (arrival.event.clone(), arrival.sequence))
        .collect()
}

/// By intent, in the order of arrival.
fn by_intent(world: &World, endpoint: &str, after: usize) -> std::collections::BTreeMap<String, Vec<String>> {
    let mut intents = std::collections::BTreeMap::<String, Vec<String>>::new();
    for arrival in world.merchants.log().arrivals.iter().skip(after).filter(|arrival| arrival.endpoint == endpoint) {
        let events = intents.entry(arrival.intent.clone()).or_default();
        if !events.contains(&arrival.event) {
            events.push(arrival.event.clone());
        }
    }
    intents
}

/// Two accounts; one of them has two endpoints. All was delivered, and has left the stream.
async fn delivered(redis: TestRedis, place: &Place, count: usize) -> (World, Herald, usize) {
    let world = World::on(redis).await;
    for (endpoint, account) in [("ep_a", "acc_a"), ("ep_twin", "acc_a"), ("ep_b", "acc_b")] {
        world.register(world.endpoint(endpoint, account)).await;
    }
    let herald = setup(&world, place).start();
    herald.until_owner().await;
    let events = lives(1, &["acc_a".to_owned(), "acc_b".to_owned()], count);
    world.publish(&events).await;
    place.until_kept(events.len()).await;
    world.until_finished().await;
    let of_a = events.iter().filter(|event| event.account == "acc_a").count();
    assert_eq!(world.merchants.delivered(), events.len() + of_a);
    (world, herald, of_a)
}

/// What the history has not read would be missing from it, and nobody would know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_waits_for_a_history_that_lags() {
    let (world, place) = (World::on(TestRedis::start().await).await, Place::sqlite());
    world.register(world.endpoint("ep_a", "acc_a")).await;
    let herald = setup(&world, &place).start();
    herald.until_owner().await;
    let a_minute_ago = herald::clock::wall_ms() - 60_000;
    let add = async |n: u64| {
        let (id, event) = (format!("{}-0", a_minute_ago + n), Event::new(n as usize, "acc_a", "pi_a", "Created"));
        let _: String = world.redis.command(&["XADD", STREAM, &id, "event", &event.body]).await;
    };
    add(1).await;
    place.until_kept(1).await;
    world.until_finished().await;
    assert!(herald.stop().await.success());
    add(2).await;
    let words = ["operation", "plan", "replay", "--endpoint", "ep_a", "--reason", "lost"];
    let (code, said) = verb(&world, &place, &words);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("the history has not read all of the stream"), "{said}");
    let herald = setup(&world, &place).start();
    place.until_kept(2).await;
    assert_eq!(plan(&world, &place, &["--endpoint", "ep_a"])["count"], 2);
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merchant_who_lost_everything_is_told_all_of_it_again_in_its_order_and_nobody_else_is() {
    let place = Place::sqlite();
    let (world, _herald, of_a) = delivered(TestRedis::start().await, &place, 60).await;
    let before = world.merchants.log().arrivals.len();
    let (first, others) = (told(&world, "ep_a", 0), told(&world, "ep_twin", 0).len() + told(&world, "ep_b", 0).len());
    let operation = plan(&world, &place, &["--endpoint", "ep_a"]);
    assert_eq!(operation["count"], of_a);
    // What comes later does not belong to it.
    world.publish(&[Event::new(9_001, "acc_a", "pi_later", "Created")]).await;
    place.until_kept(place.count().await + 1).await;
    world.until_finished().await;
    start(&world, &place, &operation);
    assert_eq!(totals(&world, &place, &operation).await, [of_a as u64, 0, 0, 0, 0, 0]);
    let again: Vec<(String, EntryId)> =
        told(&world, "ep_a", before).into_iter().filter(|(event, _)| event != "evt_0009001").collect();
    // Each event once, with the sequence that it had, and of each intent in the same order.
    let sorted = |told: &[(String, EntryId)]| {
        let mut told = told.to_vec();
        told.sort_unstable();
        told
    };
    assert_eq!(sorted(&again), sorted(&first));
    let mut intents = by_intent(&world, "ep_a", before);
    intents.remove("pi_later");
    let mut first = by_intent(&world, "ep_a", 0);
    first.remove("pi_later");
    assert_eq!(intents, first);
    assert_eq!(told(&world, "ep_twin", 0).len() + told(&world, "ep_b", 0).len(), others + 1, "only pi_later");
    assert_eq!(world.merchants.log().faults, Vec::<String>::new());
    // The history does not keep them twice.
    let kept = place.count().await;
    assert_eq!(
        kept,
        answer(&world, &place, &["operation", "plan", "replay", "--endpoint", "ep_b", "--reason", "x"])["count"]
            .as_u64()
            .unwrap() as usize
            + of_a
            + 1
    );
    let left: u64 = world.redis.command(&["EXISTS", &keys().operation_claims()]).await;
    assert_eq!(left, 0);
    // One intent, and one event of it.
    let intent = intents.iter().find(|(_, events)| events.len() > 1).unwrap();
    let some = plan(&world, &place, &["--endpoint", "ep_twin", "--intent", intent.0]);
    assert_eq!(some["count"], intent.1.len());
    let one = plan(&world, &place, &["--endpoint", "ep_twin", "--event", &intent.1[0]]);
    assert_eq!(one["count"], 1);
    start(&world, &place, &one);
    assert_eq!(totals(&world, &place, &one).await, [1, 0, 0, 0, 0, 0]);
}

async fn through_kills(place: Place) {
    let (mut world, mut herald, of_a) = delivered(TestRedis::start_with_aof().await, &place, 500).await;
    let before = world.merchants.log().arrivals.len();
    let first = by_intent(&world, "ep_a", 0);
    let operation = plan(&world, &place, &["--endpoint", "ep_a", "--rate", "2000"]);
    start(&world, &place, &operation);
    for kill in 1..=3 {
        until_done(&world, &operation, kill * of_a as u64 / 5).await;
        herald.kill9();
        if kill == 2 {
            world.redis.kill9().await;
            world.redis.start_again().await;
        }
        herald = setup(&world, &place).start();
    }
    assert_eq!(totals(&world, &place, &operation).await, [of_a as u64, 0, 0, 0, 0, 0]);
    assert_eq!(by_intent(&world, "ep_a", before), first, "all of it, in its order");
    // What was in flight at a kill may come again; nothing else does.
    let arrived = world.merchants.log().of("ep_a").count();
    assert!(arrived <= 2 * of_a + 3 * 16 + first.len(), "{arrived} for {of_a}");
    drop(herald);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_goes_on_through_kills_of_the_owner_and_of_redis_with_sqlite() {
    through_kills(Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_goes_on_through_kills_of_the_owner_and_of_redis_with_postgres() {
    through_kills(Place::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_skipped_is_sent_after_all_and_what_fails_again_is_told() {
    let (world, place) = (World::new().await, Place::sqlite());
    let mut off = world.endpoint("ep_a", "acc_a");
    off.disable(mark(), "0-0".parse().unwrap());
    world.register(off).await;
    let mut picky = world.endpoint("ep_picky", "acc_a");
    picky.event_types = vec!["payment_intent.created".parse().unwrap()];
    world.register(picky).await;
    let herald = setup(&world, &place).env("HERALD_RETRY_MAX_ATTEMPTS", "1").start();
    herald.until_owner().await;
    let events: Vec<Event> = (0..20).map(|n| Event::new(n, "acc_a", &format!("pi_{n}"), "Captured")).collect();
    world.publish(&events).await;
    place.until_kept(events.len()).await;
    let wrong = ["operation", "plan", "replay", "--endpoint", "ep_a", "--reason", "x"];
    let (code, said) = verb(&world, &place, &wrong);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("ep_a is disabled by") && said.contains("enable it first"), "{said}");
    world.change("ep_a", |endpoint| endpoint.status = EndpointState::Enabled).await;
    world.merchants.rule("ep_a", |arrival| match arrival.intent.as_str() {
        "pi_3" => Reply::status(500),
        _ => Reply::OK,
    });
    let operation = plan(&world, &place, &["--endpoint", "ep_a"]);
    start(&world, &place, &operation);
    assert_eq!(totals(&world, &place, &operation).await, [19, 1, 0, 0, 0, 0]);
    let results = answer(&world, &place, &["operation", "results", id_of(&operation)]);
    assert_eq!(
        (&results[0]["result"], &results[0]["why"]),
        (&json!("dead_again"), &json!("exhausted server_failed:500"))
    );
    assert_eq!(world.merchants.log().delivered_to("ep_a"), 19);
    // The letter is one like any other.
    let letter = results[0]["id"].as_str().unwrap();
    world.merchants.heal("ep_a");
    let (code, said) = verb(&world, &place, &["dead-letter", "redeliver", letter, "--yes", "--reason", "mended"]);
    assert_eq!(code, Some(0), "{said}");
    world.merchants.until("the last", |log| log.delivered_to("ep_a") == 20).await;
    // Whoever wants none of these is sent none.
    let (code, said) =
        verb(&world, &place, &["operation", "plan", "replay", "--endpoint", "ep_picky", "--reason", "x"]);
    assert_eq!(code, Some(3), "{said}");
    assert_eq!(world.merchants.log().delivered_to("ep_picky"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_can_be_sent_any_more_a_replay_says_so_of_each() {
    let place = Place::sqlite();
    let (world, herald, of_a) = delivered(TestRedis::start().await, &place, 60).await;
    let before = world.merchants.log().arrivals.len();
    world.pause("ep_a").await;
    let operation = plan(&world, &place, &["--endpoint", "ep_a"]);
    start(&world, &place, &operation);
    until("it to wait", async || {
        let shown = answer(&world, &place, &["operation", "show", id_of(&operation)]);
        shown["waits"][0].as_str().is_some_and(|waits| waits.starts_with("ep_a: paused by"))
    })
    .await;
    world.change("ep_a", |endpoint| endpoint.disable(mark(), EntryId::MAX)).await;
    assert_eq!(totals(&world, &place, &operation).await, [0, 0, of_a as u64, 0, 0, 0]);
    let results = answer(&world, &place, &["operation", "results", id_of(&operation)]);
    assert_eq!(results.as_array().unwrap().len(), of_a);
    assert!(results[0]["why"].as_str().unwrap().starts_with("its endpoint is disabled by"), "{}", results[0]);
    assert_eq!(world.merchants.log().arrivals.len(), before);
    drop(herald);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_cannot_be_is_refused_with_a_reason() {
    let place = Place::sqlite();
    let (world, _herald, of_a) = delivered(TestRedis::start().await, &place, 30).await;
    let refused = |words: &[&str], expected: i32, what: &str| {
        let (code, said) = verb(&world, &place, &[&["operation", "plan", "replay", "--reason", "x"], words].concat());
        assert_eq!(code, Some(expected), "{words:?}: {said}");
        assert!(said.contains(what), "{words:?}: {said}");
    };
    refused(&["--account", "acc_a"], 2, "a replay is to one endpoint: give --endpoint");
    refused(&["--endpoint", "ep_none"], 3, "there is no endpoint ep_none");
    refused(
        &["--endpoint", "ep_a", "--account", "acc_b"],
        4,
        "ep_a is of the account acc_a, and gets no events of acc_b",
    );
    refused(&["--endpoint", "ep_a", "--cause", "gone"], 2, "leave --dead-reason and --cause out");
    refused(&["--endpoint", "ep_a", "--since", "30d"], 4, "the history keeps events since 20");
    refused(&["--endpoint", "ep_a", "--intent", "pi_none"], 3, "nothing matches");
    let limited = plan(&world, &place, &["--endpoint", "ep_a", "--limit", "3"]);
    assert_eq!(limited["count"], 3);
    assert!(of_a > 3);
    start(&world, &place, &limited);
    assert_eq!(totals(&world, &place, &limited).await, [3, 0, 0, 0, 0, 0]);
    let without = Place::None;
    let (code, said) = verb(&world, &without, &["operation", "plan", "replay", "--endpoint", "ep_a", "--reason", "x"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("history.url is empty"), "{said}");
}

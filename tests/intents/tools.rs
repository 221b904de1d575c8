//! The verbs around payment intents, on the real program: what an operator sees and does.

use std::{
    process::{Command, Output},
    time::{Duration, UNIX_EPOCH},
};

use herald::{
    facts::{
        endpoint::{Endpoint, Mark},
        id::{AccountId, EndpointId},
    },
    signing::{SecretText, verify_standard},
    store::{
        acl::{self, Role},
        keys::PartitionKeys,
        registry::RegistryStore,
    },
};
use serde_json::{Value, json};

use super::{
    house::{HERALD, House, created, manual},
    process::Setup,
    receiver::Receiver,
    support::{TestRedis, until},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// The program with nothing of the environment of whoever runs the tests; it answers in JSON, unless something else is asked for.
pub fn herald(redis: &TestRedis, args: &[&str]) -> Output {
    let mut command = Command::new(HERALD);
    command.args(if args.contains(&"-o") { &[][..] } else { &["-o", "json"] });
    command.args(args).env_clear().env("HERALD_REDIS_URL", redis.url()).env("HERALD_SANDBOX", "true");
    command.env("HERALD_ALLOW_HTTP", "true").env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8").output().unwrap()
}

/// Without the sandbox.
fn in_earnest(redis: &TestRedis, args: &[&str]) -> Output {
    let mut command = Command::new(HERALD);
    command.args(["-o", "json"]).args(args).env_clear().env("HERALD_REDIS_URL", redis.url()).output().unwrap()
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn command<'v>(explained: &'v Value, name: &str) -> &'v Value {
    explained["commands"].as_array().unwrap().iter().find(|command| command["command"] == name).unwrap()
}

#[tokio::test]
async fn explain_says_what_is_possible_and_why_the_rest_is_not() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let id = merchant.create(&manual(1_000)).await["id"].as_str().unwrap().to_owned();
    let explain = |id: &str| json_of(&herald(&house.redis, &["intents", "explain", id]));
    let new = explain(&id);
    assert_eq!((&new["status"], &new["next"]["deadline"]), (&json!("Created"), &json!("expiry")), "{new}");
    assert_eq!(command(&new, "pay")["leadsTo"], "Authorized");
    let refund = command(&new, "refund");
    assert_eq!((&refund["isPossible"], &refund["whyNot"]["name"]), (&json!(false), &json!("intent-is-created")));
    assert_eq!(command(&new, "set-amount")["whyNot"]["code"], 405, "the permission is missing");

    merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    merchant.post(&format!("/payment-intents/{id}/captures"), &json!({ "amount": 400 })).await;
    let captured = explain(&id);
    let money = |value: i64| json!({ "value": value, "currencyCode": "GBP" });
    let amounts = ["held", "captured", "refunded", "rest"].map(|name| captured[name].clone());
    assert_eq!(amounts, [1_000, 400, 0, 600].map(money));
    assert_eq!(captured["next"]["deadline"], "end of the hold");
    assert_eq!(command(&captured, "capture")["atMost"], money(600));
    assert_eq!(command(&captured, "refund")["atMost"], money(400));
    // What it says is what the service does.
    let (code, problem) = merchant.post(&format!("/payment-intents/{id}/reversal"), &json!({})).await;
    let why = &command(&captured, "reverse")["whyNot"];
    assert_eq!((json!(code), &problem["detail"]), (why["code"].clone(), &why["says"]));
    assert!(problem["type"].as_str().unwrap().ends_with(why["name"].as_str().unwrap()), "{problem}");

    // As the user that operators have, who can change none of it.
    let keys = PartitionKeys::new("payment-intents").unwrap();
    let rule = acl::rule(&keys, Role::Operator).replace("PASSWORD", "secret");
    house.redis.command::<()>(&rule.split(' ').collect::<Vec<_>>()).await;
    let url = house.redis.url().replace("redis://", "redis://herald-operator:secret@");
    let operator =
        Command::new(HERALD).args(["-o", "json", "intents", "explain", &id, "--redis-url", &url]).env_clear().output();
    assert_eq!(json_of(&operator.unwrap())["commands"], captured["commands"]);

    let text = herald(&house.redis, &["-o", "table", "intents", "explain", &id]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("at most 6.00 GBP") && text.contains("409 intent-is-captured"), "{text}");
    assert_eq!(herald(&house.redis, &["intents", "explain", "pi_nobody"]).status.code(), Some(3));
    house.end().await;
}

#[tokio::test]
async fn trigger_makes_an_intent_live_up_to_each_status_and_tells_it() {
    let redis = TestRedis::start().await;
    let trigger = |more: &[&str]| herald(&redis, &[&["trigger", "--account", "acc_a"], more].concat());
    let statuses = |triggered: &Value| -> Vec<String> {
        let events = triggered["events"].as_array().unwrap().iter();
        events.map(|event| event["status"].as_str().unwrap().to_owned()).collect()
    };
    for (args, told) in [
        (&["--status", "Created"][..], &["Created"][..]),
        (&["--status", "captured"], &["Created", "Captured"]),
        (&["--manual"], &["Created", "Authorized", "Captured"]),
        (&["--status", "Authorized"], &["Created", "Authorized"]),
        (&["--status", "Reversed"], &["Created", "Captured", "Reversed"]),
        (&["--status", "Reversed", "--manual"], &["Created", "Authorized", "Reversed"]),
        (&["--status", "Refunded", "--manual"], &["Created", "Authorized", "Captured", "Refunded"]),
        (&["--status", "Canceled", "--amount", "250", "--currency", "EUR"], &["Created", "Canceled"]),
    ] {
        let triggered = json_of(&trigger(args));
        assert_eq!(statuses(&triggered), told, "{args:?}");
        assert_eq!(triggered["intent"]["status"], *told.last().unwrap());
        for event in triggered["events"].as_array().unwrap() {
            let entry = event["entry"].as_str().unwrap();
            let found: Vec<(String, Vec<String>)> = redis.command(&["XRANGE", "payment-intents", entry, entry]).await;
            assert_eq!(serde_json::from_str::<Value>(&found[0].1[1]).unwrap(), event["body"]);
        }
    }
    let before: u64 = redis.command(&["XLEN", "payment-intents"]).await;
    let bare = json_of(&trigger(&["--bare", "--status", "Refunded"]));
    assert_eq!(bare["body"]["data"]["paymentStatus"], "Refunded");
    assert_eq!(redis.command::<u64>(&["XLEN", "payment-intents"]).await, before + 1);
    assert_eq!(trigger(&["--amount", "0"]).status.code(), Some(2));
    assert_eq!(trigger(&["--currency", "USD"]).status.code(), Some(2));
    let earnest = in_earnest(&redis, &["trigger", "--account", "acc_a"]);
    assert!(earnest.status.code() == Some(4) && said(&earnest).contains("HERALD_SANDBOX"), "{}", said(&earnest));
}

#[tokio::test]
async fn the_clock_is_shown_moved_and_stopped_from_the_command_line() {
    let redis = TestRedis::start().await;
    let held = json_of(&herald(&redis, &["trigger", "--account", "acc_a", "--status", "Authorized"]));
    let clock = |args: &[&str]| herald(&redis, &[&["sandbox", "clock"], args].concat());
    let before = json_of(&clock(&[]));
    assert_eq!(json_of(&clock(&["advance", "7d"]))["speed"], before["speed"]);
    let id = held["intent"]["id"].as_str().unwrap();
    let explained = json_of(&herald(&redis, &["intents", "explain", id]));
    assert_eq!((&explained["status"], &explained["next"]), (&json!("Reversed"), &Value::Null));
    assert_eq!(json_of(&clock(&["speed", "0"]))["speed"], 0.0);
    let back = clock(&["advance", "--to", "2020-01-01T00:00:00Z"]);
    assert!(back.status.code() == Some(4) && said(&back).contains("never goes back"), "{}", said(&back));
    assert_eq!(in_earnest(&redis, &["sandbox", "clock", "advance", "7d"]).status.code(), Some(4));
}

async fn register(redis: &TestRedis, id: &str, account: &str, url: &str, secret: &SecretText) {
    let (id, account) = (EndpointId::new(id).unwrap(), AccountId::new(account).unwrap());
    let mark = Mark { by: "tester".into(), why: "the test".into(), at_ms: 1 };
    let mut registry = RegistryStore::connect(&redis.redis()).await.unwrap();
    registry.create(Endpoint::new(id, account, url.to_owned(), secret.clone(), 1), &mark).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_is_replayed_as_it_left_although_the_stream_has_forgotten_it() {
    let house = House::start().await;
    let (app, secret) = (Receiver::answering(OK).await, SecretText::from_random([7; 32]));
    register(&house.redis, "ep_a", "acc_a", &app.url(), &secret).await;
    register(&house.redis, "ep_b", "acc_b", &app.url(), &secret).await;
    let worker = Setup::new(&house.redis.url()).start();
    let merchant = house.merchant("acc_a");
    let id = merchant.create(&manual(1_000)).await["id"].as_str().unwrap().to_owned();
    merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    // A change that nobody is told of stands between two that are.
    merchant.post(&format!("/payment-intents/{id}/captures"), &json!({ "amount": 400 })).await;
    merchant.post_as("k", &format!("/payment-intents/{id}/refunds"), &json!({ "amount": 100 })).await;
    until("all callbacks", async || app.log.seen().len() == 4).await;
    assert!(worker.stop().await.success());
    house.redis.command::<()>(&["XTRIM", "payment-intents", "MAXLEN", "0"]).await;

    let replay = |more: &[&str]| herald(&house.redis, &[&["intents", "replay", &id, "--endpoint"], more].concat());
    let shown = json_of(&replay(&["ep_a", "--dry-run"]));
    assert_eq!((app.log.seen().len(), shown.as_array().unwrap().len()), (4, 4));
    let replayed = json_of(&replay(&["ep_a"]));
    let seen = app.log.seen();
    assert_eq!(seen.len(), 8, "{replayed}");
    for (first, again) in seen[..4].iter().zip(&seen[4..]) {
        assert_eq!(first.body, again.body);
        for name in ["webhook-id", "herald-sequence", "herald-account-sequence", "dojo-signature"] {
            assert!(first.header(name).is_some() && first.header(name) == again.header(name), "{name}");
        }
        let timestamp: u64 = again.header("webhook-timestamp").unwrap().parse().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(timestamp);
        let headers = again.headers();
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let verified = verify_standard(&secret, headers, &again.body, now, Duration::from_secs(1));
        assert!(verified.is_ok(), "{verified:?}");
    }
    assert_eq!(house.redis.command::<u64>(&["XLEN", "payment-intents"]).await, 0, "dispatch was disturbed");

    let last = replayed[3]["event"].as_str().unwrap();
    let rest = json_of(&replay(&["ep_a", "--from", last]));
    assert_eq!((rest.as_array().unwrap().len(), app.log.seen().len()), (1, 9));
    let foreign = replay(&["ep_b"]);
    assert!(foreign.status.code() == Some(4) && said(&foreign).contains("is of acc_b"), "{}", said(&foreign));
    assert_eq!(replay(&["ep_nobody"]).status.code(), Some(3));
    assert_eq!(replay(&["ep_a", "--from", "evt_nobody"]).status.code(), Some(3));
    let pause = ["pause", "--all", "--reason", "test", "--by", "tester"];
    assert!(herald(&house.redis, &pause).status.success());
    let paused = replay(&["ep_a"]);
    assert!(paused.status.code() == Some(4) && said(&paused).contains("paused by tester"), "{}", said(&paused));
    assert_eq!(app.log.seen().len(), 9);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_stops_at_what_is_not_taken_and_before_what_herald_still_owes() {
    let house = House::start().await;
    let (app, secret) = (
        Receiver::answering("HTTP/1.1 500 no\r\ncontent-length: 4\r\n\r\nlost").await,
        SecretText::from_random([7; 32]),
    );
    register(&house.redis, "ep_a", "acc_a", &app.url(), &secret).await;
    let merchant = house.merchant("acc_a");
    let id = merchant.create(&created()).await["id"].as_str().unwrap().to_owned();
    let replay = || herald(&house.redis, &["intents", "replay", &id, "--endpoint", "ep_a"]);
    let owed = replay();
    assert!(owed.status.code() == Some(1) && said(&owed).contains("still to be delivered"), "{}", said(&owed));
    assert!(app.log.seen().is_empty());

    // Nobody will deliver it any more.
    house.redis.command::<()>(&["XGROUP", "CREATE", "payment-intents", "herald", "$"]).await;
    merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    let refused = replay();
    let text = said(&refused);
    assert!(refused.status.code() == Some(1) && text.contains("server_failed (500); lost"), "{text}");
    let rows: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!((&rows[0]["result"], &rows[1]["result"]), (&json!("server_failed"), &json!("not sent")));
    assert!(text.contains(&format!("--from {}", rows[0]["event"].as_str().unwrap())), "{text}");
    assert_eq!(app.log.seen().len(), 1);
    house.end().await;
}

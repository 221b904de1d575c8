//! Webhook subscriptions over HTTP, and callbacks to what was subscribed.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, UNIX_EPOCH},
};

use futures_util::future::join_all;
use herald::{
    facts::{
        endpoint::{EndpointState, Mark},
        sealing::key_line,
        signing::{SecretText, verify_dojo, verify_standard},
    },
    store::registry::RegistryStore,
};
use serde_json::{Value, json};

use super::{
    house::{House, Merchant, created},
    process,
    receiver::{Receiver, Seen},
    support::until,
};

const CREATED: &str = "payment_intent.created";
const UPDATED: &str = "payment_intent.status_updated";

/// Loopback addresses stand for merchants.
const LOOPBACK: &[(&str, &str)] = &[("HERALD_ALLOW_HTTP", "true"), ("HERALD_ALLOW_NETWORKS", "127.0.0.0/8")];

fn wanted(events: &[&str]) -> Value {
    json!({ "events": events, "url": "https://127.0.0.1/callbacks" })
}

async fn subscribe(merchant: &Merchant, events: &[&str]) -> Value {
    let (code, subscription) = merchant.post("/webhooks", &wanted(events)).await;
    assert_eq!(code, 200, "{subscription}");
    subscription
}

fn of(subscription: &Value) -> String {
    format!("/webhooks/{}", subscription["id"].as_str().unwrap())
}

fn kind(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["type"].as_str().unwrap_or_default())
}

#[tokio::test]
async fn a_subscription_whose_secret_cannot_be_read_is_listed_as_locked_and_can_be_ended() {
    let folder = tempfile::tempdir().unwrap();
    let file: &'static str = folder.path().join("keys").to_str().unwrap().to_owned().leak();
    let has = |key: u8| fs::write(file, &*key_line(&[key; 32])).unwrap();
    has(1);
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    let house = House::start_with([LOOPBACK, &[("HERALD_MASTER_KEY_FILE", file)]].concat().leak()).await;
    let merchant = house.merchant("acc_a");
    let made = subscribe(&merchant, &[CREATED]).await;
    has(2);
    until("it is locked", async || merchant.get("/webhooks").await.1[0]["state"] == "locked").await;
    let (_, listed) = merchant.get("/webhooks").await;
    let is_same = |name: &str| listed[0][name] == made[name];
    assert!(["id", "url", "events", "createdAt"].into_iter().all(is_same), "{listed}");
    assert_eq!(listed[0]["secrets"], json!([]));
    assert_eq!(house.merchant("acc_b").get("/webhooks").await, (200, json!([])));
    assert_eq!(merchant.post("/webhooks", &wanted(&[CREATED])).await.0, 503, "the event may be taken");
    assert_eq!(merchant.delete(&of(&made)).await.0, 204);
    assert_eq!(merchant.get("/webhooks").await, (200, json!([])));
    // Who has another key tells of it within a second; until then nothing is sealed with it, and nothing is changed.
    let made = async || {
        let (code, made) = merchant.post("/webhooks", &wanted(&[CREATED])).await;
        assert!(code == 200 || code == 503 && made["type"] == "/problems/unavailable", "{code} {made}");
        code == 200
    };
    until("the other key is known", made).await;
    assert_eq!(merchant.get("/webhooks").await.1[0]["state"], Value::Null);
    house.end().await;
}

#[tokio::test]
async fn a_subscription_is_made_seen_changed_and_ended() {
    let house = House::start_with(LOOPBACK).await;
    let merchant = house.merchant("acc_a");
    let (_, events) = merchant.get("/webhooks/events").await;
    assert_eq!(events[0]["events"], json!([CREATED, UPDATED, "payment_intent.send-receipt"]));
    assert_eq!(merchant.get("/webhooks").await, (200, json!([])), "there is no registry yet");

    let made = subscribe(&merchant, &[CREATED, UPDATED]).await;
    let secret = &made["secrets"][0];
    assert!(secret["value"].as_str().unwrap().starts_with("whsec_") && secret["isActive"] == true, "{made}");
    assert_eq!((&made["accountId"], &made["url"]), (&json!("acc_a"), &json!("https://127.0.0.1/callbacks")));
    let mut hidden = made.clone();
    hidden["secrets"][0].as_object_mut().unwrap().remove("value");
    assert_eq!(merchant.get("/webhooks").await, (200, json!([hidden])));

    let path = of(&made);
    let (code, changed) =
        merchant.patch(&path, &json!({ "events": [UPDATED], "url": null, "description": "till 7" })).await;
    assert_eq!((code, &changed["events"], &changed["url"]), (200, &json!([UPDATED]), &made["url"]));
    assert_eq!((&changed["description"], &changed["secrets"]), (&json!("till 7"), &hidden["secrets"]));
    assert_eq!(merchant.patch(&path, &json!({})).await, (200, changed.clone()), "nothing was changed");
    assert_eq!(merchant.get("/webhooks").await, (200, json!([changed])));

    assert_eq!(merchant.ask("DELETE", &path).await.0, 204);
    assert_eq!(merchant.get("/webhooks").await, (200, json!([])));
    for (method, path) in [("DELETE", path.clone()), ("GET", format!("{path}/secrets"))] {
        assert_eq!(kind(&merchant.ask(method, &path).await), (404, "/problems/not-found"));
    }
    let kept = house.redis.command::<u64>(&["HLEN", "herald:{herald}:registry"]).await;
    assert_eq!(kept, 0, "nothing was owed to it");
    house.end().await;
}

#[tokio::test]
async fn each_event_of_an_account_has_one_subscription_also_when_they_come_at_once() {
    let house = House::start_with(LOOPBACK).await;
    let merchant = house.merchant("acc_a");
    let wishes = [&[CREATED, UPDATED][..], &[UPDATED, "payment_intent.send-receipt"], &[UPDATED]];
    let bodies: Vec<Value> = (0..12).map(|n| wanted(wishes[n % 3])).collect();
    let answers = join_all(bodies.iter().map(|body| merchant.post("/webhooks", body))).await;
    let taken = answers.iter().filter(|answer| kind(answer) == (409, "/problems/event-has-a-subscription")).count();
    assert_eq!((answers.iter().filter(|answer| answer.0 == 200).count(), taken), (1, 11), "{answers:?}");
    let (_, list) = merchant.get("/webhooks").await;
    assert_eq!(list.as_array().unwrap().len(), 1);
    // Another account has its own.
    subscribe(&house.merchant("acc_b"), &[UPDATED]).await;
    merchant.ask("DELETE", &of(&list[0])).await;
    let first = subscribe(&merchant, &[UPDATED]).await;
    let second = subscribe(&merchant, &[CREATED]).await;
    let moved = merchant.patch(&of(&second), &json!({ "events": [CREATED, UPDATED] })).await;
    assert_eq!(kind(&moved), (409, "/problems/event-has-a-subscription"), "{}", moved.1);
    assert!(moved.1["detail"].as_str().unwrap().contains(first["id"].as_str().unwrap()), "{}", moved.1);
    house.end().await;
}

#[tokio::test]
async fn a_secret_signs_only_once_it_is_active_and_the_active_one_is_not_deleted() {
    let house = House::start_with(LOOPBACK).await;
    let merchant = house.merchant("acc_a");
    let made = subscribe(&merchant, &[UPDATED]).await;
    let path = format!("{}/secrets", of(&made));
    let first = made["secrets"][0]["id"].as_str().unwrap();
    let (code, added) = merchant.ask("POST", &path).await;
    assert_eq!((code, &added["id"]), (200, &made["id"]), "{added}");
    assert!(added["secrets"][0]["value"].is_null() && added["secrets"][1]["value"].is_string(), "{added}");
    let second = added["secrets"][1]["id"].as_str().unwrap();
    let active = async || {
        let (_, now) = merchant.get(&path).await;
        let secrets = now["secrets"].as_array().unwrap().clone();
        assert!(secrets.iter().all(|secret| secret["value"].is_null()), "a value is shown again: {now}");
        let active = secrets.iter().filter(|secret| secret["isActive"] == true);
        active.map(|secret| secret["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(active().await, [first]);
    let refused = merchant.ask("DELETE", &format!("{path}/{first}")).await;
    assert_eq!(kind(&refused), (409, "/problems/secret-is-active"));
    assert_eq!(merchant.ask("PUT", &format!("{path}/{second}/activate")).await.0, 204);
    assert_eq!(merchant.ask("PUT", &format!("{path}/{second}/activate")).await.0, 204, "it is active already");
    assert_eq!(active().await, [second]);
    // Back, while the first one still signs.
    assert_eq!(merchant.ask("PUT", &format!("{path}/{first}/activate")).await.0, 204);
    assert_eq!(active().await, [first]);
    assert_eq!(merchant.ask("DELETE", &format!("{path}/{second}")).await.0, 204);
    for (method, tail) in [("DELETE", ""), ("PUT", "/activate")] {
        assert_eq!(merchant.ask(method, &format!("{path}/{second}{tail}")).await.0, 404, "{method}");
    }
    // As many as there may be, however they come.
    let answers = join_all((0..8).map(|_| merchant.ask("POST", &path))).await;
    let names: BTreeSet<_> = answers.iter().map(kind).collect();
    assert_eq!(names, [(200, ""), (409, "/problems/too-many-secrets")].into());
    assert_eq!(answers.iter().filter(|answer| answer.0 == 200).count(), 4);
    house.end().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_subscription_is_said_by_member() {
    // Nothing is allowed but https to the world.
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    for (body, member, says) in [
        (json!({ "events": [], "url": "https://a.example/" }), "events", "fewer than 1"),
        (json!({ "events": [UPDATED, UPDATED], "url": "https://a.example/" }), "events", "twice"),
        (json!({ "events": ["order.created"], "url": "https://a.example/" }), "events[0]", "not one of"),
        (json!({ "events": [UPDATED] }), "url", "missing"),
        (json!({ "events": [UPDATED], "url": "http://a.example/" }), "url", "https"),
        (json!({ "events": [UPDATED], "url": "https://10.0.0.1/" }), "url", "no callbacks"),
        (json!({ "events": [UPDATED], "url": "https://169.254.169.254/" }), "url", "no callbacks"),
        (json!({ "events": [UPDATED], "url": "https://u:p@a.example/" }), "url", "user name"),
        (json!({ "events": [UPDATED], "url": "https://a.example:6379/" }), "url", "port 6379"),
        (json!({ "events": [UPDATED], "url": "nowhere" }), "url", "not"),
        (json!({ "events": [UPDATED], "url": "https://8.8.8.8/", "description": "a\nb" }), "description", "one line"),
        (json!({ "events": [UPDATED], "url": "https://8.8.8.8/", "secret": "x" }), "secret", "not known"),
    ] {
        let (code, problem) = merchant.post("/webhooks", &body).await;
        let why = problem["errors"][member][0].as_str().unwrap_or_default();
        assert!(code == 400 && why.contains(says), "{body}: {problem}");
    }
    // Neither what it leads to nor how this side is set up is told.
    let (_, problem) = merchant.post("/webhooks", &json!({ "events": [UPDATED], "url": "https://127.1/" })).await;
    assert!(!problem.to_string().contains("127.0.0.1") && !problem.to_string().contains("HERALD_"), "{problem}");
    assert_eq!(merchant.get("/webhooks").await.1, json!([]));
    let (code, _) = merchant.patch("/webhooks/events", &json!({})).await;
    assert_eq!(code, 405, "events is no id");
    house.end().await;
}

#[tokio::test]
async fn a_subscription_is_of_no_use_to_another_account_and_a_reader_only_looks() {
    let house = House::start_with(LOOPBACK).await;
    let (ours, theirs, reader) = (house.merchant("acc_a"), house.merchant("acc_b"), house.reader("acc_a"));
    let made = subscribe(&ours, &[UPDATED]).await;
    let (path, secret) = (of(&made), made["secrets"][0]["id"].as_str().unwrap());
    let calls = [
        ("DELETE", path.clone()),
        ("POST", format!("{path}/secrets")),
        ("PUT", format!("{path}/secrets/{secret}/activate")),
        ("DELETE", format!("{path}/secrets/{secret}")),
    ];
    for (method, path) in &calls {
        assert_eq!(theirs.ask(method, path).await.0, 404, "{method} {path}");
        assert_eq!(reader.ask(method, path).await.0, 403, "{method} {path}");
    }
    assert_eq!(theirs.patch(&path, &json!({ "description": "mine" })).await.0, 404);
    assert_eq!(theirs.get(&format!("{path}/secrets")).await.0, 404);
    assert_eq!(theirs.get("/webhooks").await.1, json!([]));
    assert_eq!(reader.post("/webhooks", &wanted(&[CREATED])).await.0, 403);
    assert_eq!(reader.get("/webhooks").await.1[0]["id"], made["id"]);
    // An operator's endpoint is none of a merchant's, and in the way of none.
    let operators = ["endpoint", "create", "--account", "acc_a", "--url", "https://127.0.0.1/", "--id", "ep_ops"];
    house.verb(&operators);
    for path in ["/webhooks/ws_ops", "/sandbox/endpoints/ep_ops"] {
        assert_eq!(ours.ask("DELETE", path).await.0, 404, "{path}");
    }
    assert_eq!(ours.get("/webhooks").await.1.as_array().unwrap().len(), 1);
    house.end().await;
}

#[tokio::test]
async fn endpoints_of_the_sandbox_are_beside_all_subscriptions_and_bounded() {
    let house = House::start_with(LOOPBACK).await;
    let merchant = house.merchant("acc_a");
    subscribe(&merchant, &[UPDATED]).await;
    let body = json!({ "url": "http://127.0.0.1:9000/", "scheme": "dojo", "events": [UPDATED] });
    let answers = join_all((0..22).map(|_| merchant.post("/sandbox/endpoints", &body))).await;
    let made: Vec<_> = answers.iter().filter(|answer| answer.0 == 200).map(|answer| &answer.1).collect();
    assert_eq!(made.len(), 20, "{answers:?}");
    assert!(
        answers
            .iter()
            .filter(|answer| answer.0 != 200)
            .all(|answer| kind(answer) == (409, "/problems/too-many-endpoints"))
    );
    let id = made[0]["id"].as_str().unwrap();
    assert!(id.starts_with("ep_") && made[0]["secret"].as_str().unwrap().starts_with("whsec_"), "{}", made[0]);
    let shown = house.verb(&["endpoint", "show", id, "-o", "json"]);
    assert_eq!((&shown["schemes"], &shown["event_types"]), (&json!(["dojo"]), &json!([UPDATED])), "{shown}");
    assert_eq!(merchant.get("/webhooks").await.1.as_array().unwrap().len(), 1, "they are no subscriptions");
    assert_eq!(house.merchant("acc_b").ask("DELETE", &format!("/sandbox/endpoints/{id}")).await.0, 404);
    assert_eq!(merchant.ask("DELETE", &format!("/sandbox/endpoints/{id}")).await.0, 204);
    assert_eq!(merchant.ask("DELETE", &format!("/sandbox/endpoints/{id}")).await.0, 404);
    assert_eq!(merchant.post("/sandbox/endpoints", &json!({ "url": "http://127.0.0.1:9000/" })).await.0, 200);
    house.end().await;
}

#[tokio::test]
async fn what_whoever_runs_herald_has_stopped_is_not_deleted_and_made_anew() {
    let house = House::start_with(LOOPBACK).await;
    let merchant = house.merchant("acc_a");
    let made = subscribe(&merchant, &[CREATED]).await;
    let id = made["id"].as_str().unwrap().replacen("ws_", "ep_", 1);
    let mut registry = RegistryStore::connect(&house.redis.redis()).await.unwrap();
    let mut endpoint = registry.get(&id.parse().unwrap()).await.unwrap().unwrap();
    let mark = Mark { by: "ann".to_owned(), why: "it floods us".to_owned(), at_ms: 1 };
    endpoint.status = EndpointState::Paused(mark.clone());
    registry.update(endpoint, &mark).await.unwrap();
    assert_eq!(kind(&merchant.ask("DELETE", &of(&made)).await), (409, "/problems/stopped-by-operator"));
    let again = merchant.post("/webhooks", &wanted(&[CREATED])).await;
    assert_eq!(kind(&again), (409, "/problems/event-has-a-subscription"));
    house.end().await;
}

/// Nobody delivers, so what was deleted stays until somebody does: that must not be without end.
#[tokio::test]
async fn whoever_makes_and_deletes_without_end_waits_for_the_worker() {
    let house = House::start_with(LOOPBACK).await;
    let merchant = house.merchant("acc_a");
    merchant.create(&created()).await;
    let mut last = 0;
    for _ in 0..51 {
        let (code, made) = merchant.post("/sandbox/endpoints", &json!({ "url": "http://127.0.0.1:9000/" })).await;
        last = code;
        if code == 200 {
            let path = format!("/sandbox/endpoints/{}", made["id"].as_str().unwrap());
            assert_eq!(merchant.ask("DELETE", &path).await.0, 204);
        }
    }
    assert_eq!(last, 503);
    assert_eq!(house.redis.command::<u64>(&["HLEN", "herald:{herald}:registry"]).await, 50);
    // The owner has passed that event.
    let cursor = "18446744073709551615-0";
    house.redis.command::<()>(&["SET", "herald:{payment-intents}:cursor", cursor]).await;
    assert_eq!(merchant.post("/sandbox/endpoints", &json!({ "url": "http://127.0.0.1:9000/" })).await.0, 200);
    assert_eq!(house.redis.command::<u64>(&["HLEN", "herald:{herald}:registry"]).await, 1);
    house.end().await;
}

/// With the verifier that merchants are given, and the secrets that they were shown.
#[tokio::test]
async fn callbacks_come_to_a_subscription_signed_as_its_secrets_say() {
    let house = House::start_with(LOOPBACK).await;
    let worker = process::Setup::new(&house.redis.url()).start();
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let merchant = house.merchant("acc_a");
    let (code, made) = merchant.post("/webhooks", &json!({ "events": [CREATED], "url": receiver.url() })).await;
    assert_eq!(code, 200, "{made}");
    let path = format!("{}/secrets", of(&made));
    let shown = |secret: &Value| SecretText::new(secret["value"].as_str().unwrap().to_owned()).unwrap();
    let first = shown(&made["secrets"][0]);
    let (_, added) = merchant.ask("POST", &path).await;
    let second = shown(&added["secrets"][1]);
    let callback = async |number: usize| {
        merchant.create(&created()).await;
        until("a callback", async || receiver.log.seen().len() == number).await;
        receiver.log.seen().pop().unwrap()
    };
    let before = callback(1).await;
    assert_eq!([signs(&before, &first), signs(&before, &second)], [(true, true), (false, false)]);
    let spare = added["secrets"][1]["id"].as_str().unwrap();
    assert_eq!(merchant.ask("PUT", &format!("{path}/{spare}/activate")).await.0, 204);
    let after = callback(2).await;
    assert_eq!([signs(&after, &first), signs(&after, &second)], [(true, false), (true, true)]);
    let old = made["secrets"][0]["id"].as_str().unwrap();
    assert_eq!(merchant.ask("DELETE", &format!("{path}/{old}")).await.0, 204);
    let last = callback(3).await;
    assert_eq!([signs(&last, &first), signs(&last, &second)], [(false, false), (true, true)]);

    assert_eq!(merchant.ask("DELETE", &of(&made)).await.0, 204);
    merchant.create(&created()).await;
    let other = merchant.post("/webhooks", &json!({ "events": [CREATED], "url": receiver.url() })).await;
    assert_eq!(other.0, 200, "{}", other.1);
    let (_, intent) = merchant.post("/payment-intents", &created()).await;
    until("the next callback", async || receiver.log.seen().len() >= 4).await;
    let told: Value = serde_json::from_slice(&receiver.log.seen()[3].body).unwrap();
    assert_eq!(told["data"]["paymentIntentId"], intent["id"], "the one that was created in between was sent");
    assert!(worker.stop().await.success());
    house.end().await;
}

/// Whether `webhook-signature` and `dojo-signature` are this secret's.
fn signs(seen: &Seen, secret: &SecretText) -> (bool, bool) {
    let headers = seen.headers();
    let now = UNIX_EPOCH + Duration::from_millis(herald::clock::wall_ms());
    let tolerance = Duration::from_secs(300);
    let standard = verify_standard(secret, &headers, &seen.body, now, tolerance).is_ok();
    (standard, verify_dojo(secret, &headers, &seen.body).is_ok())
}

/// There is no replica, so none confirms anything.
#[tokio::test]
async fn what_replicas_have_not_confirmed_is_answered_with_202() {
    let careful = [("HERALD_REDIS_WAIT", "1"), ("HERALD_REDIS_WAIT_TIMEOUT", "20ms")];
    let house = House::start_with([LOOPBACK, &careful].concat().leak()).await;
    let merchant = house.merchant("acc_a");
    let unconfirmed = json!({ "confirmed": 0 });
    let (code, made) = merchant.post("/webhooks", &wanted(&[UPDATED])).await;
    assert_eq!((code, &made["durability"]), (202, &unconfirmed), "{made}");
    assert!(made["secrets"][0]["value"].as_str().unwrap().starts_with("whsec_"), "{made}");
    let path = of(&made);
    let (code, changed) = merchant.patch(&path, &json!({ "description": "till" })).await;
    assert_eq!((code, &changed["durability"], &changed["description"]), (202, &unconfirmed, &json!("till")));
    let (code, same) = merchant.patch(&path, &json!({ "description": "till" })).await;
    assert_eq!((code, &same["durability"]), (200, &Value::Null), "nothing was changed");
    let (code, added) = merchant.ask("POST", &format!("{path}/secrets")).await;
    assert_eq!((code, &added["durability"]), (202, &unconfirmed), "{added}");
    let second = added["secrets"][1]["id"].as_str().unwrap();
    let activated = merchant.ask("PUT", &format!("{path}/secrets/{second}/activate")).await;
    assert_eq!(activated, (202, json!({ "durability": unconfirmed })));
    assert_eq!(merchant.ask("DELETE", &path).await, (202, json!({ "durability": unconfirmed })));
    assert_eq!(merchant.get("/webhooks").await, (200, json!([])));
    house.end().await;
}

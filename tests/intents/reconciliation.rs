//! What a merchant was told, fetched and proved: the numbers of their events, the feed, the reconciliation.

use std::{collections::BTreeSet, process::Command};

use futures_util::future::join_all;
use herald::facts::{
    endpoint::Endpoint,
    id::{AccountId, EndpointId},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    house::{HERALD, House, Merchant, created, manual},
    merchants::{Merchants, Reply},
    process::Setup,
    support::until,
    world::{mark, secret},
};

async fn register(house: &House, merchants: &Merchants, name: &str, account: &str) {
    let mut registry = herald::store::registry::RegistryStore::connect(&house.redis.redis()).await.unwrap();
    let (id, account) = (EndpointId::new(name).unwrap(), AccountId::new(account).unwrap());
    registry.create(Endpoint::new(id, account, merchants.url(name), secret(), 1), &mark()).await.unwrap();
}

/// Pays it; two events.
async fn purchase(merchant: &Merchant) -> String {
    let intent = merchant.create(&created()).await;
    let id = intent["id"].as_str().unwrap().to_owned();
    let paid = merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    assert_eq!(paid.0, 200, "{}", paid.1);
    id
}

/// The whole feed, by pages of this size.
async fn fed(merchant: &Merchant, page: usize) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let (code, found) = merchant.get(&format!("/events?after={after}&limit={page}")).await;
        assert_eq!(code, 200, "{found}");
        let data = found["data"].as_array().unwrap();
        assert!(data.len() <= page);
        all.extend(data.iter().cloned());
        after = found["after"].as_u64().unwrap();
        if after == found["latest"].as_u64().unwrap() {
            return all;
        }
    }
}

fn digest_of(events: &[(u64, String)]) -> String {
    let lines: String = events.iter().map(|(number, id)| format!("{number} {id}\n")).collect();
    hex::encode(Sha256::digest(lines))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merchant_proves_that_nothing_was_missed() {
    let desk = tempfile::tempdir().unwrap();
    let history = format!("sqlite:{}", desk.path().join("history.db").display());
    let house = House::with_history(&history).await;
    let merchants = Merchants::start(secret().reveal()).await;
    for (endpoint, account) in [("ep_good", "acc_a"), ("ep_bad", "acc_a"), ("ep_other", "acc_b")] {
        register(&house, &merchants, endpoint, account).await;
    }
    merchants.rule("ep_bad", |_| Reply::status(500));
    let (merchant, other) = (house.merchant("acc_a"), house.merchant("acc_b"));
    let herald = Setup::new(&house.redis.url()).env("HERALD_RETRY_MAX_ATTEMPTS", "2");
    let herald = herald.env("HERALD_HISTORY_URL", &history).start();
    join_all((0..20).map(|n| purchase(if n % 4 == 3 { &other } else { &merchant }))).await;

    merchants.until_delivered(40).await;
    // Each account's numbers, from 1 and without a gap, at its endpoints and in its feed alike.
    let mut seen: Vec<(u64, String)> = Vec::new();
    for (endpoint, count) in [("ep_good", 30), ("ep_other", 10)] {
        let log = merchants.log();
        seen = log.of(endpoint).map(|arrival| (arrival.account_sequence.unwrap(), arrival.event.clone())).collect();
        seen.sort();
        let numbers: Vec<u64> = seen.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (1..=count).collect::<Vec<u64>>(), "{endpoint}");
    }
    let of_other: Vec<(u64, String)> = fed(&other, 3)
        .await
        .iter()
        .map(|event| (event["accountSequence"].as_u64().unwrap(), event["event"]["id"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(of_other, seen);

    // The merchant's own log has the same digest as the service.
    let (code, digest) = other.get("/reconciliation/digest").await;
    assert_eq!((code, digest["count"].as_u64(), digest["through"].as_u64()), (200, Some(10), Some(10)));
    assert_eq!(digest["sha256"], digest_of(&seen));
    let (_, part) = other.get("/reconciliation/digest?after=2&through=7").await;
    assert_eq!(part["sha256"], digest_of(&seen[2..7]));

    until("dead letters", async || {
        let (_, page) = merchant.get("/reconciliation?limit=100").await;
        page["totals"] == json!({ "delivered": 30, "owed": 0, "deadLetter": 30, "discarded": 0, "settled": 0 })
    })
    .await;
    let (_, page) = merchant.get("/reconciliation?limit=100").await;
    assert_eq!(page["events"].as_array().unwrap().len(), 30);
    let first = &page["events"][0];
    assert_eq!(
        (&first["accountSequence"], &first["paymentStatus"], &first["statusNow"]),
        (&json!(1), &json!("Created"), &json!("Captured"))
    );
    let states: BTreeSet<(&str, &str)> = first["deliveries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["endpointId"].as_str().unwrap(), one["state"].as_str().unwrap()))
        .collect();
    assert_eq!(states, BTreeSet::from([("ep_bad", "deadLetter"), ("ep_good", "delivered")]));
    let id = first["paymentIntentId"].as_str().unwrap();
    let (_, of_one) = merchant.get(&format!("/reconciliation?paymentIntentId={id}")).await;
    assert_eq!(of_one["events"].as_array().unwrap().len(), 2);
    assert_eq!(other.get(&format!("/reconciliation?paymentIntentId={id}")).await.0, 404);

    // What becomes of the letters: two are sent again, four are thrown away.
    merchants.rule("ep_bad", |_| Reply::status(200));
    house.verb(&["dead-letter", "redeliver", "--intent", id, "--reason", "mended", "--yes"]);
    let ids: BTreeSet<&str> =
        page["events"].as_array().unwrap().iter().map(|event| event["paymentIntentId"].as_str().unwrap()).collect();
    for id in ids.iter().filter(|other| **other != id).take(2) {
        house.verb(&["dead-letter", "discard", "--intent", id, "--reason", "old", "--yes"]);
    }
    until("what became of the letters", async || {
        let (_, page) = merchant.get("/reconciliation?limit=100").await;
        page["totals"] == json!({ "delivered": 32, "owed": 0, "deadLetter": 24, "discarded": 4, "settled": 0 })
    })
    .await;
    // Where nobody has a history, nobody can tell.
    let mut house = house;
    house.forget_history().await;
    let merchant = house.again(&merchant);
    until("the endpoints", async || {
        let (_, page) = merchant.get("/reconciliation?limit=100").await;
        page["totals"] == json!({ "delivered": 0, "owed": 0, "deadLetter": 24, "discarded": 0, "settled": 36 })
    })
    .await;
    assert!(herald.stop().await.success());
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_delivers_is_owed_with_the_time_of_its_next_attempt() {
    let house = House::start().await;
    let merchants = Merchants::start(secret().reveal()).await;
    register(&house, &merchants, "ep_bad", "acc_a").await;
    merchants.rule("ep_bad", |_| Reply::status(503));
    let merchant = house.merchant("acc_a");
    purchase(&merchant).await;
    // Nobody has read them yet; the service hears of an endpoint within a second.
    until("the endpoint", async || merchant.get("/reconciliation").await.1["totals"]["owed"] == 2).await;
    let slow = Setup::new(&house.redis.url()).env("HERALD_RETRY_INITIAL", "10m").env("HERALD_RETRY_MAX_INTERVAL", "1h");
    let herald = slow.start();
    until("a next attempt", async || {
        let (_, page) = merchant.get("/reconciliation").await;
        assert_eq!(page["totals"]["owed"], 2, "{page}");
        page["events"][0]["deliveries"][0]["nextAttemptAt"].is_string()
    })
    .await;
    assert!(herald.stop().await.success());
    house.end().await;
}

#[tokio::test]
async fn the_feed_has_each_event_byte_for_byte_also_when_the_stream_is_trimmed() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let (_, empty) = merchant.get("/events").await;
    assert_eq!(empty, json!({ "latest": 0, "after": 0, "data": [], "forgotten": [] }));
    let intent = merchant.create(&manual(900)).await;
    let id = intent["id"].as_str().unwrap();
    let at = format!("/payment-intents/{id}");
    for (path, body) in [
        (format!("/sandbox{at}/pay"), json!({})),
        (format!("{at}/captures"), json!({ "amount": 400 })),
        (format!("{at}/captures"), json!({ "amount": 100 })),
        (format!("{at}/receipt"), json!({ "emails": ["a@example.com"] })),
    ] {
        let (code, answer) = merchant.post(&path, &body).await;
        assert!(code == 200 || code == 204, "{path}: {answer}");
    }
    let refund = json!({ "amount": 50, "refundReason": "cold" });
    assert_eq!(merchant.post_as("key", &format!("{at}/refunds"), &refund).await.0, 200);
    let entries: Vec<(String, Vec<String>)> = house.redis.command(&["XRANGE", "payment-intents", "-", "+"]).await;
    let left: Vec<(String, String)> = entries
        .iter()
        .map(|(_, fields)| {
            assert_eq!(fields.iter().step_by(2).collect::<Vec<_>>(), ["event", "account-sequence"]);
            (fields[3].clone(), fields[1].clone())
        })
        .collect();
    house.redis.command::<u64>(&["XTRIM", "payment-intents", "MAXLEN", "0"]).await;
    let raw = merchant.text("/events?limit=100").await;
    for (number, event) in &left {
        let written = format!(r#"{{"accountSequence":{number},"event":{event}}}"#);
        assert!(raw.contains(&written), "{written} is not in {raw}");
    }
    assert_eq!(fed(&merchant, 1).await.len(), 6);
    assert_eq!(house.reader("acc_a").get("/events").await.0, 200);
    assert_eq!(house.merchant("acc_b").get("/events").await.1["latest"], 0);
    for (query, member) in [
        ("after=-1", "query"),
        ("after=x", "query"),
        ("after=9007199254740991", "after"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("since=1", "query"),
    ] {
        let (code, problem) = merchant.get(&format!("/events?{query}")).await;
        assert_eq!(code, 400, "{query}");
        assert!(problem["errors"].get(member).is_some(), "{query}: {problem}");
    }
    house.end().await;
}

/// What is forgotten leaves a gap that is named, and the numbers go on.
#[tokio::test]
async fn events_of_forgotten_intents_are_named_as_such() {
    let house = House::start_with(&[("HERALD_INTENTS_RETAIN", "1d")]).await;
    let merchant = house.merchant("acc_a");
    let kept = merchant.create(&created()).await;
    purchase(&merchant).await;
    let advanced = merchant.post("/sandbox/clock/advance", &json!({ "by": "2.00:00:00" })).await;
    assert_eq!(advanced.0, 200, "{}", advanced.1);
    let canceled = merchant.delete(&format!("/payment-intents/{}", kept["id"].as_str().unwrap())).await;
    assert_eq!(canceled.0, 200);
    let (_, feed) = merchant.get("/events").await;
    assert_eq!(feed["forgotten"], json!([{ "from": 2, "to": 3 }]), "{feed}");
    let numbers: Vec<u64> =
        feed["data"].as_array().unwrap().iter().map(|event| event["accountSequence"].as_u64().unwrap()).collect();
    assert_eq!((numbers, feed["latest"].as_u64()), (vec![1, 4], Some(4)));
    let (_, digest) = merchant.get("/reconciliation/digest").await;
    assert_eq!(digest["count"], 2);
    house.end().await;
}

/// Neither a record that nobody can read nor what a stranger wrote into the feed keeps a merchant from the rest.
#[tokio::test]
async fn what_cannot_be_read_in_the_feed_holds_nothing_up() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let broken = purchase(&merchant).await;
    purchase(&merchant).await;
    house.redis.command::<()>(&["SET", &format!("herald:{{payment-intents}}:pi:{broken}"), "no record"]).await;
    let feed = "herald:{payment-intents}:pi-feed:acc_a";
    for number in 5..8 {
        house.redis.command::<String>(&["XADD", feed, &format!("{number}-0"), "intent", "no id at all"]).await;
    }
    house.redis.command::<u64>(&["HSET", "herald:{payment-intents}:pi-count", "events:acc_a", "7"]).await;
    let numbers: Vec<u64> =
        fed(&merchant, 1).await.iter().map(|event| event["accountSequence"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [3, 4]);
    assert_eq!(merchant.get("/reconciliation/digest").await.1["count"], 2);

    // A feed takes nothing below its last id. Then it stays as it is, the merchant is told all the same, and the doctor says so.
    house.redis.command::<String>(&["XADD", feed, "100-0", "intent", "no id at all"]).await;
    purchase(&merchant).await;
    assert_eq!(house.events().await.len(), 6);
    let doctor =
        Command::new(HERALD).args(["doctor", "-o", "table"]).env("HERALD_REDIS_URL", house.redis.url()).output();
    let said = String::from_utf8(doctor.unwrap().stdout).unwrap();
    assert!(said.contains("2 events are missing in GET /events"), "{said}");
    house.end().await;
}

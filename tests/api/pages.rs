//! Lists that are long, or that grow while somebody reads them.

use std::collections::BTreeSet;

use herald::facts::signing::SecretText;
use serde_json::{Value, json};

use crate::{
    house::{ADMIN, House, NOWHERE},
    merchants::Merchants,
    stage::{endpoint, mark},
    support::until,
    visitor::Visitor,
};

async fn register(house: &House, made: herald::facts::endpoint::Endpoint) {
    let mut registry = herald::store::registry::RegistryStore::connect(&house.redis.redis()).await.unwrap();
    registry.create(made, &mark()).await.unwrap();
}

/// So many events of an account, each of an intent of its own.
async fn publish(house: &House, account: &str, numbers: std::ops::Range<usize>) {
    let event = |n: usize| {
        json!({
            "id": format!("evt_{account}_{n}"), "event": "payment_intent.status_updated", "accountId": account,
            "createdAt": "2026-11-27T19:00:00.0000000Z",
            "data": {"paymentIntentId": format!("pi_{account}_{n}"), "paymentStatus": "Captured", "captureMode": "Auto"},
        })
    };
    let published = house.post("/v1/events/batch", ADMIN, numbers.map(event).collect()).await;
    assert_eq!(published.status, 200, "{}", published.body);
}

fn ids(page: &Value) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

/// Follows `next` or `prev` to its end; `between` happens after each page.
async fn follow(
    house: &House,
    path: &str,
    to: &str,
    first: Value,
    between: impl AsyncFn(usize),
) -> (Vec<String>, Value) {
    let (mut found, mut page, mut pages) = (ids(&first), first, 1);
    while let Some(cursor) = page[to].as_str() {
        between(pages).await;
        page = house.get(&format!("{path}&cursor={cursor}"), ADMIN).await;
        let part = ids(&page);
        match to {
            "next" => found.extend(part),
            _ => drop(found.splice(0..0, part)),
        }
        pages += 1;
    }
    assert!(pages > 5, "{path}: {pages} pages");
    (found, page)
}

#[tokio::test]
async fn attempts_are_read_whole_forth_and_back_while_others_are_made() {
    const OLD: usize = 60;
    let folder = tempfile::tempdir().unwrap();
    let house = House::patient(&format!("sqlite:{}", folder.path().join("h.db").display())).await;
    let merchants = Merchants::start(SecretText::from_random([7; 32]).reveal()).await;
    register(&house, endpoint("ep_good", "acc_good", &merchants.url("ep_good"))).await;
    publish(&house, "acc_good", 0..OLD).await;
    let all = "/v1/attempts?account=acc_good&limit=500";
    until("all are logged", async || ids(&house.get(all, ADMIN).await).len() == OLD).await;
    let old = ids(&house.get(all, ADMIN).await);

    let path = "/v1/attempts?account=acc_good&limit=7";
    let first = house.get(path, ADMIN).await;
    assert_eq!(first["prev"], Value::Null);
    let more = async |page: usize| publish(&house, "acc_good", OLD + page * 3..OLD + page * 3 + 3).await;
    let (forth, last) = follow(&house, path, "next", first, more).await;
    assert_eq!(forth, old, "what is new meanwhile moves nothing, and nothing is missing");

    let added = async || ids(&house.get(all, ADMIN).await).len();
    until("the new ones are logged", async || added().await == OLD + 8 * 3).await;
    let (back, first) = follow(&house, path, "prev", last, async |_| {}).await;
    assert_eq!(back, ids(&house.get(all, ADMIN).await), "back to the newest, with those that came meanwhile");
    assert_eq!((&first["prev"], first["has_more"].as_bool()), (&Value::Null, Some(true)));

    for wrong in ["Pg", "PjE", "x", "PDAwMDAwMDAwMDAwMDAwMDAwMDAx_"] {
        let refused = house.ask("GET", &format!("{path}&cursor={wrong}"), Some(ADMIN), None).await;
        assert_eq!(refused.status, 400, "{wrong}: {}", refused.body);
    }
}

#[tokio::test]
async fn without_a_history_attempts_have_no_cursors_and_say_that_there_are_more() {
    let house = House::patient("").await;
    register(&house, endpoint("ep_dead", "acc_dead", NOWHERE)).await;
    publish(&house, "acc_dead", 0..20).await;
    let path = "/v1/attempts?account=acc_dead&limit=3";
    until("some are logged", async || house.get(path, ADMIN).await["has_more"] == true).await;
    let page = house.get(path, ADMIN).await;
    assert_eq!((&page["next"], &page["prev"], ids(&page).len()), (&Value::Null, &Value::Null, 3), "{page}");
    let refused = house.ask("GET", &format!("{path}&cursor=PjE"), Some(ADMIN), None).await;
    assert!(refused.status == 400 && refused.body["errors"]["cursor"].is_array(), "{}", refused.body);
}

#[tokio::test]
async fn chains_are_read_whole_forth_and_back_while_others_begin() {
    const OLD: usize = 40;
    let house = House::patient("").await;
    register(&house, endpoint("ep_dead", "acc_dead", NOWHERE)).await;
    publish(&house, "acc_dead", 0..OLD).await;
    let all = "/v1/chains?endpoint=ep_dead&limit=500";
    let total = async || ids(&house.get(all, ADMIN).await).len();
    until("all wait", async || total().await == OLD).await;
    let old = ids(&house.get(all, ADMIN).await);
    let path = "/v1/chains?endpoint=ep_dead&limit=6";
    let first = house.get(path, ADMIN).await;
    let one_more = async |page: usize| {
        publish(&house, "acc_dead", OLD + page..OLD + page + 1).await;
        until("it waits", async || total().await == OLD + page).await;
    };
    let (forth, last) = follow(&house, path, "next", first, one_more).await;
    assert_eq!(forth[..OLD], old, "the oldest first, each once");
    assert_eq!(forth.len(), forth.iter().collect::<BTreeSet<_>>().len());
    assert_eq!(forth, ids(&house.get(all, ADMIN).await), "those that began meanwhile come at the end");
    let (back, first) = follow(&house, path, "prev", last, async |_| {}).await;
    assert_eq!((back, &first["prev"]), (forth, &Value::Null));
}

#[tokio::test]
async fn five_thousand_endpoints_cost_a_page_no_more_than_fifty() {
    const MANY: usize = 5_000;
    let house = House::start().await;
    let mut registry = herald::store::registry::RegistryStore::connect(&house.redis.redis()).await.unwrap();
    for n in 0..MANY {
        let url = format!("{NOWHERE}{}", "a-long-path/".repeat(30));
        registry
            .create(endpoint(&format!("ep_many_{n:04}"), &format!("acc_{}", n % 900), &url), &mark())
            .await
            .unwrap();
    }
    let sent = async || {
        let info = house.redis.command::<String>(&["INFO", "stats"]).await;
        let (_, after) = info.split_once("total_net_output_bytes:").unwrap();
        after.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let last = format!("/v1/endpoints?account=acc_{}", (MANY - 1) % 900);
    let found = ids(&house.get(&last, ADMIN).await);
    assert_eq!(found.last().map(String::as_str), Some("ep_many_4999"), "the newest is there at once");
    let whole = sent().await;
    house.redis.command::<Vec<String>>(&["HVALS", "herald:{herald}:registry"]).await;
    let (before, at) = (sent().await, "/v1/endpoints?limit=50");
    let whole = before - whole;
    assert!(whole > 2_000_000, "the registry is large: {whole}");
    for _ in 0..5 {
        assert_eq!(ids(&house.get(at, ADMIN).await).len(), 50);
    }
    let read = sent().await - before;
    assert!(read < whole / 4, "five pages read {read} bytes of {whole}");

    let mut visitor = Visitor::signed_in(&house, ADMIN).await;
    for path in ["/console", "/console/endpoints", "/console/endpoints?limit=500", "/console/issues?limit=500"] {
        let page = visitor.get(path).await;
        assert!(page.status == 200 && page.html.len() < 1_000_000, "{path}: {} bytes", page.html.len());
    }
}

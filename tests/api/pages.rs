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

async fn count(house: &House, path: &str, state: &str) -> usize {
    let page = house.get(path, ADMIN).await;
    page["items"].as_array().unwrap().iter().filter(|line| line["state"] == state).count()
}

async fn release(house: &House, numbers: impl Iterator<Item = usize>) {
    for n in numbers {
        let path = format!("/v1/chains/ep_dead/pi_acc_mix_{n}/release");
        let released = house.post(&path, ADMIN, json!({"reason": "a test"})).await;
        assert_eq!(released.body["done"], 1, "{}", released.body);
    }
}

/// Half of an account's deliveries are done, a quarter waits, a quarter is dead; and between pages come new ones, letters are sent
/// again or thrown away, and what waited is given up.
async fn deliveries_are_read_whole(history: &str) {
    const OLD: usize = 24;
    let house = House::patient(history).await;
    let merchants = Merchants::start(SecretText::from_random([7; 32]).reveal()).await;
    register(&house, endpoint("ep_good", "acc_mix", &merchants.url("ep_good"))).await;
    register(&house, endpoint("ep_dead", "acc_mix", NOWHERE)).await;
    publish(&house, "acc_mix", 0..OLD).await;
    let all = "/v1/deliveries?account=acc_mix&limit=500";
    until("half are delivered", async || count(&house, all, "delivered").await == OLD).await;
    until("half wait", async || count(&house, all, "due").await == OLD).await;
    release(&house, (0..OLD).step_by(2)).await;
    let page = house.get(all, ADMIN).await;
    assert_eq!((count(&house, all, "due").await, count(&house, all, "dead").await), (OLD / 2, OLD / 2), "{page}");
    let old = ids(&page);
    assert_eq!(old.len(), 2 * OLD);
    assert_eq!((&page["next"], &page["is_complete"], &page["has_more"]), (&Value::Null, &true.into(), &false.into()));

    let path = "/v1/deliveries?account=acc_mix&limit=5";
    let first = house.get(path, ADMIN).await;
    assert_eq!(first["prev"], Value::Null);
    let meanwhile = async |page: usize| {
        publish(&house, "acc_mix", OLD + 2 * page..OLD + 2 * page + 2).await;
        // At first those of the last page move, then those of pages that were shown.
        release(&house, std::iter::once(2 * page - 1)).await;
        let letters = house.get("/v1/dead-letters?account=acc_mix&limit=2", ADMIN).await;
        for (letter, act) in ids(&letters).iter().zip(["redeliver", "discard"]) {
            let path = format!("/v1/dead-letters/{act}");
            let done = house.post(&path, ADMIN, json!({"ids": [letter], "reason": "a test"})).await;
            assert_eq!(done.body["done"], 1, "{}", done.body);
        }
    };
    let (forth, last) = follow(&house, path, "next", first, meanwhile).await;
    assert_eq!(forth, old, "each once, in one order, wherever it stands by then");

    let new = 2 * 9;
    until("the new ones are done", async || count(&house, all, "delivered").await == OLD + new).await;
    until("or wait", async || ids(&house.get(all, ADMIN).await).len() == 2 * (OLD + new)).await;
    let (back, first) = follow(&house, path, "prev", last, async |_| {}).await;
    assert_eq!((back, &first["prev"]), (ids(&house.get(all, ADMIN).await), &Value::Null), "back to the newest");

    // Whatever is asked for comes in the same order.
    for (path, expected) in [("endpoint=ep_good", OLD + new), ("endpoint=ep_dead", OLD + new)] {
        let path = format!("/v1/deliveries?{path}");
        let of_one: Vec<String> = ids(&house.get(all, ADMIN).await);
        let of_one: Vec<String> = of_one.into_iter().filter(|id| id.ends_with(&path[path.len() - 7..])).collect();
        assert_eq!(of_one.len(), expected);
        let first = house.get(&format!("{path}&limit=4"), ADMIN).await;
        let (forth, _) = follow(&house, &format!("{path}&limit=4"), "next", first, async |_| {}).await;
        assert_eq!(forth, of_one);
    }
    for one in ["intent=pi_acc_mix_3", "event=evt_acc_mix_4"] {
        let path = format!("/v1/deliveries?{one}&limit=1");
        let first = house.get(&path, ADMIN).await;
        let second = house.get(&format!("{path}&cursor={}", first["next"].as_str().unwrap()), ADMIN).await;
        assert_eq!(
            [ids(&first), ids(&second)].concat(),
            ids(&house.get(&format!("/v1/deliveries?{one}"), ADMIN).await)
        );
        assert_eq!((ids(&first).len(), ids(&second).len(), &second["next"]), (1, 1, &Value::Null));
    }

    let stranger = house.get("/v1/chains?endpoint=ep_dead&limit=1", ADMIN).await;
    let stranger = stranger["next"].as_str().unwrap();
    for wrong in [stranger, "Pg", "PjE", "x", "PmQgMCAxLTAgZXBfYSB4"] {
        let refused = house.ask("GET", &format!("{path}&cursor={wrong}"), Some(ADMIN), None).await;
        assert!(refused.status == 400 && refused.body["errors"]["cursor"].is_array(), "{wrong}: {}", refused.body);
    }
    // A merchant's pages are of their own.
    let other = house.token_of("acc_2").await;
    let refused = house.ask("GET", path, Some(&other), None).await;
    assert!(refused.status >= 400, "{}", refused.body);
    assert_eq!(ids(&house.get("/v1/deliveries?intent=pi_acc_mix_3&limit=1", &other).await), Vec::<String>::new());

    let mut visitor = Visitor::signed_in(&house, ADMIN).await;
    let page = visitor.get("/console/deliveries?account=acc_mix&limit=5").await;
    assert!(page.html.contains("rel=\"next\"") && !page.html.contains("rel=\"prev\""), "{}", page.html);
    let second = house.get(path, ADMIN).await["next"].as_str().unwrap().to_owned();
    let page = visitor.get(&format!("/console/deliveries?account=acc_mix&limit=5&cursor={second}")).await;
    assert!(page.html.contains("rel=\"next\"") && page.html.contains("rel=\"prev\""), "{}", page.html);
}

#[tokio::test]
async fn deliveries_are_read_whole_forth_and_back_while_they_move_on() {
    let folder = tempfile::tempdir().unwrap();
    deliveries_are_read_whole(&format!("sqlite:{}", folder.path().join("h.db").display())).await;
}

#[tokio::test]
async fn deliveries_are_read_whole_without_a_history_too() {
    deliveries_are_read_whole("").await;
}

#[tokio::test]
async fn of_more_attempts_than_a_look_reads_the_pages_have_the_newest_and_say_so() {
    const OLD: usize = 11_000;
    let house = House::patient("").await;
    // Nothing else is logged.
    let paused = house.post("/v1/pause", ADMIN, json!({"reason": "a test"})).await;
    assert_eq!(paused.status, 200, "{}", paused.body);
    let stats = "herald:{payment-intents}:stats";
    let log = async |numbers: std::ops::Range<usize>| {
        let line = |n: usize| {
            let (at_ms, id) = (1_795_000_000_000 + n, format!("{}-0:ep_a", 1_794_000_000_000 + n));
            format!(r#"["{id}","evt_{n}","pi_{n}","acc_1",1,{at_ms},12000,{{"kind":"delivered","status":200}},""]"#)
        };
        let (many, lines) = (numbers.len(), numbers.map(line).collect::<Vec<_>>().join("\n"));
        let last = house.redis.command::<u64>(&["HINCRBY", stats, "log-lines", &many.to_string()]).await;
        let (key, id) = ("herald:{payment-intents}:attempts", format!("{last}-0"));
        house.redis.command::<String>(&["XADD", key, &id, "lines", &lines]).await;
    };
    log(0..OLD).await;
    let expected: Vec<String> = (OLD - 9_999..OLD).rev().map(|n| format!("{}-0:ep_a", 1_794_000_000_000 + n)).collect();
    let path = "/v1/deliveries?endpoint=ep_a&limit=500";
    let first = house.get(path, ADMIN).await;
    let more = async |page: usize| log(OLD + page * 7..OLD + page * 7 + 7).await;
    let (forth, last) = follow(&house, path, "next", first, more).await;
    let (told, staged) = forth.split_at(9_999);
    assert!(told == expected, "{} of the newest, and no other: {:?}", told.len(), told.last());
    assert_eq!(
        (staged.len(), &staged[0]),
        (9, &"91-0:ep_a".to_owned()),
        "what waits and is dead is there all the same"
    );
    assert_eq!((&last["is_complete"], &last["has_more"], &last["next"]), (&false.into(), &true.into(), &Value::Null));
    let (missing, until) = (last["missing"][0].as_str().unwrap(), "2026-11-18T11:06:41.001Z");
    assert!(missing.contains(until), "{missing}");
    let before = house.get(&format!("{path}&until={until}"), ADMIN).await;
    let (id, whole) = (format!("{}-0:ep_a", 1_794_000_000_000 + OLD - 10_000), &before["is_complete"]);
    assert_eq!((&ids(&before)[0], whole), (&id, &true.into()), "and it goes on from there");
}

#[tokio::test]
async fn more_chains_than_a_look_finds_are_read_whole_part_by_part() {
    const MANY: usize = 5_600;
    let house = House::patient("").await;
    register(&house, endpoint("ep_dead", "acc_dead", NOWHERE)).await;
    for from in (0..MANY).step_by(700) {
        publish(&house, "acc_dead", from..from + 700).await;
    }
    let path = "/v1/chains?endpoint=ep_dead&limit=500";
    until("all wait", async || house.get(path, ADMIN).await["total"] == MANY).await;
    let first = house.get(path, ADMIN).await;
    assert_eq!(first["is_complete"], false);
    let (forth, last) = follow(&house, path, "next", first, async |_| {}).await;
    let all: BTreeSet<&String> = forth.iter().collect();
    assert_eq!((forth.len(), all.len()), (MANY, MANY), "none twice and none lost");
    let (back, first) = follow(&house, path, "prev", last, async |_| {}).await;
    assert!(back == forth && first["prev"] == Value::Null, "the same way back");
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

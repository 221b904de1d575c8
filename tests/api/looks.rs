//! What only looks: pages that fit together, and that need neither an owner nor a Redis that takes writes.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use herald::store::registry::RegistryStore;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    house::{ADMIN, House, NOWHERE},
    stage::{endpoint, mark},
    support::{TestRedis, until},
};

/// One of each call that only looks.
pub const LOOKS: &[&str] = &[
    "/v1/me",
    "/v1/stats",
    "/v1/overview",
    "/v1/accounts",
    "/v1/accounts/acc_1/events",
    "/v1/endpoints",
    "/v1/endpoints/ep_a",
    "/v1/deliveries?intent=pi_1",
    "/v1/deliveries?event=evt_1",
    "/v1/deliveries?endpoint=ep_a",
    "/v1/deliveries/1-0:ep_a",
    "/v1/deliveries/50-0:ep_a",
    "/v1/deliveries/90-0:ep_a",
    "/v1/deliveries?account=acc_1&since=1d&until=1h",
    "/v1/attempts?endpoint=ep_a",
    "/v1/attempts?account=acc_1",
    "/v1/issues",
    "/v1/issues/ep_a:rejected:401",
    "/v1/dead-letters",
    "/v1/dead-letters?account=acc_1&endpoint=ep_a&dead_reason=exhausted&cause=rejected&since=2020-01-01T00:00:00Z",
    "/v1/dead-letters/groups?by=endpoint,account,reason,cause",
    "/v1/dead-letters/1-0:ep_a",
    "/v1/operations",
    "/v1/chains?endpoint=ep_a",
    "/v1/chains/ep_a/pi_90",
    "/v1/quarantine",
    "/v1/quarantine/30-0",
    "/v1/audit",
    "/v1/tokens",
];

/// All items of a list, following `next`, and then the same following `prev` from its end.
async fn walk(house: &House, path: &str) -> (Vec<Value>, Vec<Value>) {
    let page = async |cursor: &Value| {
        let cursor = cursor.as_str().map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        house.get(&format!("{path}{cursor}"), ADMIN).await
    };
    let (mut forth, mut at) = (Vec::new(), page(&Value::Null).await);
    assert_eq!(at["prev"], Value::Null);
    loop {
        forth.extend(at["items"].as_array().unwrap().clone());
        if at["next"].is_null() {
            break;
        }
        at = page(&at["next"]).await;
    }
    let mut back = Vec::new();
    loop {
        back.splice(0..0, at["items"].as_array().unwrap().clone());
        if at["prev"].is_null() {
            break;
        }
        at = page(&at["prev"]).await;
    }
    (forth, back)
}

#[tokio::test]
async fn pages_show_each_once_forth_and_back() {
    let house = House::start().await;
    for (path, count) in [
        ("/v1/dead-letters?limit=3", 7),
        ("/v1/endpoints?limit=1", 2),
        ("/v1/quarantine?limit=2", 3),
        ("/v1/accounts?limit=1", 2),
    ] {
        let (forth, back) = walk(&house, path).await;
        assert_eq!(forth.len(), count, "{path}");
        // From a last page that is empty nothing leads back.
        assert!(back.is_empty() || forth == back, "{path}: {forth:?} and {back:?}");
        let mut ids: Vec<String> = forth.iter().map(|one| one.get("id").unwrap_or(&one["entry"]).to_string()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count, "{path}");
    }
    let (acts, _) = walk(&house, "/v1/audit?limit=1").await;
    assert!(acts.is_empty(), "{acts:?}");
}

#[tokio::test]
async fn what_is_asked_wrongly_is_told_by_its_name() {
    let house = House::start().await;
    for (path, member) in [
        ("/v1/endpoints?state=open", "state"),
        ("/v1/endpoints?limit=0", "limit"),
        ("/v1/endpoints?cursor=x", "cursor"),
        ("/v1/endpoints?colour=red", "query"),
        ("/v1/dead-letters?since=yesterday", "since"),
        ("/v1/dead-letters?dead_reason=tired", "dead_reason"),
        ("/v1/dead-letters?cause=404", "cause"),
        ("/v1/dead-letters?endpoint=x", "endpoint"),
        ("/v1/dead-letters/groups?by=colour", "by"),
        ("/v1/deliveries", "query"),
        ("/v1/deliveries?intent=a&event=b", "query"),
        ("/v1/deliveries?account=acc_1&since=then", "since"),
        ("/v1/attempts", "query"),
        ("/v1/attempts?account=acc_1&until=then", "until"),
        ("/v1/issues?endpoint=x", "endpoint"),
        ("/v1/audit?act=dance", "act"),
        ("/v1/chains?endpoint=x", "endpoint"),
    ] {
        let answer = house.ask("GET", path, Some(ADMIN), None).await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
        assert!(answer.body["errors"].get(member).is_some(), "{path}: {}", answer.body);
    }
    for path in [
        "/v1/endpoints/x",
        "/v1/endpoints/ep_none",
        "/v1/deliveries/5",
        "/v1/dead-letters/9-9:ep_a",
        "/v1/nothing",
        "/v1/quarantine/1-1",
        "/v1/issues/ep_a",
        "/v1/issues/ep_a:dns_failed",
    ] {
        assert_eq!(house.ask("GET", path, Some(ADMIN), None).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_list_says_where_everything_stands() {
    let house = House::start().await;
    let stats = house.get("/v1/stats", ADMIN).await;
    assert_eq!(
        (&stats["dead_letters"], &stats["unfinished"], &stats["quarantined"]),
        (&7.into(), &2.into(), &3.into()),
        "{stats}"
    );
    assert!(stats["owner"]["name"].is_string());
    let states = async |path: &str| {
        let found = house.get(path, ADMIN).await;
        let items = found["items"].as_array().unwrap().iter();
        items.map(|item| item["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(states("/v1/deliveries?intent=pi_1").await, ["dead"]);
    assert_eq!(states("/v1/deliveries?intent=pi_50").await, ["delivered"]);
    assert_eq!(states("/v1/deliveries?intent=pi_90").await, ["held", "due"], "the newest first");
    let chain = house.get("/v1/chains/ep_a/pi_90", ADMIN).await;
    assert_eq!((&chain[0]["id"], &chain[1]["state"]), (&"90-0:ep_a".into(), &"held".into()));
    let letter = house.get("/v1/dead-letters/1-0:ep_a", ADMIN).await;
    assert_eq!((&letter["delivery"]["account"], &letter["reason"]), (&"acc_1".into(), &"exhausted".into()));
}

#[tokio::test]
async fn the_printed_rules_are_enough_for_the_api() {
    let house = House::with_rights_as_printed().await;
    for path in LOOKS {
        house.get(path, ADMIN).await;
    }
    let sent = house.post("/v1/dead-letters/redeliver", ADMIN, json!({"ids": ["1-0:ep_a"], "reason": "r"})).await;
    assert_eq!(sent.body["done"], 1, "{}", sent.body);
    assert_eq!(house.post("/v1/pause", ADMIN, json!({"reason": "r"})).await.status, 200);
    let event: Value = serde_json::from_slice(crate::stage::event("evt_a", "acc_2", "pi_1").body()).unwrap();
    let published = house.post("/v1/events", ADMIN, event).await;
    assert_eq!(published.status, 201, "{}", published.body);
    // It may not ask how the file is written.
    assert_eq!(published.body["durability"], json!({"level": "file", "fsync": null, "replicas": 0, "confirmed": 0}));
    house.token("viewer").await;
}

#[tokio::test]
async fn looks_need_no_owner() {
    let house = House::start().await;
    // Held by a process that is not there.
    house.redis.command::<()>(&["SET", "herald:{payment-intents}:lease", "x nobody/1", "PX", "600000"]).await;
    for path in LOOKS {
        house.get(path, ADMIN).await;
    }
    house.herald.until_metric("herald_partition_owner", |value| value == 0.0).await;
    for path in LOOKS {
        house.get(path, ADMIN).await;
    }
}

#[tokio::test]
async fn looks_work_on_a_replica() {
    let house = House::start().await;
    let replica = TestRedis::start().await;
    let port = house.redis.address().port().to_string();
    replica.command::<()>(&["REPLICAOF", "127.0.0.1", &port]).await;
    until("the replica has everything", async || {
        replica.command::<bool>(&["EXISTS", "herald:{payment-intents}:dead"]).await
    })
    .await;
    let herald = crate::herald_process::Setup::new(&replica.url()).env("HERALD_ADMIN_TOKEN", ADMIN).start();
    let client = reqwest::Client::new();
    until("it serves", async || herald.get("/healthz").is_some()).await;
    for path in LOOKS {
        let url = format!("http://{}{path}", herald.address());
        let answer = client.get(&url).bearer_auth(ADMIN).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}: {}", answer.text().await.unwrap());
    }
    let body = json!({"reason": "a test"}).to_string();
    let change = client.post(format!("http://{}/v1/endpoints/ep_a/pause", herald.address())).bearer_auth(ADMIN);
    let change = change.header("content-type", "application/json").body(body).send().await.unwrap();
    assert_eq!(change.status().as_u16(), 503, "{}", change.text().await.unwrap());
    herald.signal(Signal::SIGTERM);
}

#[tokio::test]
async fn refusals_are_described_as_they_are_sent_and_name_the_member() {
    let house = House::start().await;
    let description = house.ask("GET", "/openapi.json", None, None).await.body;
    let mut refusals = 0;
    for (path, item) in description["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values().filter(|operation| operation["responses"].is_object()) {
            let responses = operation["responses"].as_object().unwrap();
            for (code, response) in responses.iter().filter(|(code, _)| code.starts_with(['4', '5'])) {
                let kinds: Vec<&String> = response["content"].as_object().unwrap().keys().collect();
                assert_eq!(kinds, ["application/problem+json"], "{path} {code}");
                refusals += 1;
            }
        }
    }
    assert!(refusals > 100, "{refusals}");
    let no_text = house.ask("GET", "/v1/endpoints/%ff", Some(ADMIN), None).await;
    assert_eq!((no_text.status, &no_text.body["errors"]["path"][0]), (400, &"is not UTF-8 once it is decoded".into()));
    let endpoint = |member: &str, value: Value| {
        let mut body = json!({"account": "acc_1", "url": NOWHERE});
        body[member] = value;
        ("/v1/endpoints", member.to_owned(), body)
    };
    let token = |member: &str, value: Value| {
        let mut body = json!({"role": "merchant", "account": "acc_1", "name": "till", "reason": "r"});
        body[member] = value;
        ("/v1/tokens", member.to_owned(), body)
    };
    let wrong = [
        endpoint("max_in_flight", 0.into()),
        endpoint("timeout_ms", 1.into()),
        endpoint("rate_limit", 0.into()),
        endpoint("retry", json!({"jitter": 2})),
        endpoint("headers", json!({"host": "x"})),
        endpoint("schemes", json!([])),
        endpoint("event_types", json!(["a.b", "a.b"])),
        endpoint("description", "x".repeat(501).into()),
        endpoint("secret", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".into()),
        token("expires_in", "1s".into()),
        token("name", " x\ny".into()),
        token("account", Value::Null),
    ];
    for (path, member, body) in wrong {
        let refused = house.post(path, ADMIN, body).await;
        assert_eq!(refused.status, 400, "{member}: {}", refused.body);
        assert!(refused.body["errors"][&member].is_array(), "{member}: {}", refused.body);
    }
}

#[tokio::test]
async fn a_cursor_that_no_page_gave_is_refused_and_one_whose_page_is_empty_leads_back() {
    let house = House::start().await;
    let cursor = |text: &str| URL_SAFE_NO_PAD.encode(text);
    for text in [">18446744073709551615-18446744073709551615", "<0-0"] {
        let refused = house.ask("GET", &format!("/v1/quarantine?cursor={}", cursor(text)), Some(ADMIN), None).await;
        assert_eq!((refused.status, refused.body["errors"]["cursor"].is_array()), (400, true), "{}", refused.body);
    }
    let refused = house.ask("GET", &format!("/v1/issues?cursor={}", cursor(">x")), Some(ADMIN), None).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    // Redis was set back since the page that gave it.
    let ahead = format!("/v1/accounts/acc_1/events?cursor={}", cursor(">5"));
    let refused = house.ask("GET", &ahead, Some(ADMIN), None).await;
    assert_eq!(
        (refused.status, &refused.body["type"]),
        (409, &"/problems/feed-was-set-back".into()),
        "{}",
        refused.body
    );
    // The letters of the second page go while somebody looks at the first.
    let first = house.get("/v1/dead-letters?limit=5", ADMIN).await;
    let second = format!("/v1/dead-letters?limit=5&cursor={}", first["next"].as_str().unwrap());
    let ids: Vec<Value> = house.get(&second, ADMIN).await["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|letter| letter["id"].clone())
        .collect();
    let gone = house.post("/v1/dead-letters/discard", ADMIN, json!({"ids": ids, "reason": "r"})).await;
    assert_eq!(gone.body["done"], 2, "{}", gone.body);
    let empty = house.get(&second, ADMIN).await;
    assert_eq!((&empty["items"], &empty["next"]), (&json!([]), &Value::Null));
    let back = format!("/v1/dead-letters?limit=5&cursor={}", empty["prev"].as_str().unwrap());
    assert!(!house.get(&back, ADMIN).await["items"].as_array().unwrap().is_empty());
}

/// What it says, and what is sent to a merchant, must not show whoever has the id now.
#[tokio::test]
async fn an_issue_of_an_id_that_was_given_out_again_names_nothing_of_its_new_account() {
    const THEIRS: &str = "http://127.0.0.1:9/of-acc-2";
    let house = House::start().await;
    let issue = async || house.get("/v1/issues/ep_a:rejected:401", ADMIN).await;
    let before = issue().await;
    assert!(before["to_merchant"].as_str().unwrap().contains(NOWHERE), "{before}");
    let mut registry = RegistryStore::connect(&house.redis.redis()).await.unwrap();
    registry.remove(&"ep_a".parse().unwrap(), None, &mark()).await.unwrap();
    until("what was under way to end as letters of the same cause", async || issue().await["letters"] == 9).await;
    registry.create(endpoint("ep_a", "acc_2", THEIRS), &mark()).await.unwrap();
    until("the issue to know", async || {
        issue().await["diagnosis"]["next"].as_str().is_some_and(|next| next.contains("another account's now"))
    })
    .await;
    let after = issue().await;
    assert_eq!((&after["account"], &after["letters"]), (&"acc_1".into(), &9.into()), "{after}");
    assert!(!after.to_string().contains("of-acc-2") && after["to_merchant"].is_null(), "{after}");
    let said = house.cli(&["issue", "show", "ep_a:rejected:401"]);
    assert_eq!(said["diagnosis"], after["diagnosis"]);
}

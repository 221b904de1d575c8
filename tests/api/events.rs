//! The way in for events.

use herald::{
    facts::{id::AccountId, partition::Split},
    store::registry::RegistryStore,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    herald_process::Setup,
    house::{ADMIN, House, NOWHERE},
    stage::{STREAM, endpoint, event, mark},
    support::TestRedis,
};

fn body(id: &str) -> Vec<u8> {
    event(id, "acc_2", "pi_1").body().to_vec()
}

async fn bodies(redis: &TestRedis) -> Vec<String> {
    let entries: Vec<(String, Vec<String>)> = redis.command(&["XRANGE", STREAM, "-", "+"]).await;
    entries.into_iter().map(|(_, fields)| fields[1].clone()).collect()
}

/// Paused, so that nothing is trimmed meanwhile.
async fn house() -> House {
    let house = House::start().await;
    assert_eq!(house.post("/v1/endpoints/ep_b/pause", ADMIN, json!({"reason": "a test"})).await.status, 200);
    house
}

#[tokio::test]
async fn an_event_is_published_byte_for_byte_and_once() {
    let house = house().await;
    let wide = String::from_utf8(body("evt_x")).unwrap().replace(',', ",\n  ");
    let publish = async |body: &str| {
        house.send("POST", "/v1/events", Some(ADMIN), Some(("application/json", body.as_bytes().to_vec()))).await
    };
    let first = publish(&wide).await;
    assert_eq!((first.status, &first.body["result"]), (201, &"added".into()), "{}", first.body);
    // The Redis of this test writes to its file before it answers, and may be asked about it.
    assert_eq!(first.body["durability"], json!({"level": "disk", "fsync": "always", "replicas": 0, "confirmed": 0}));
    let again = publish(&wide).await;
    assert_eq!(
        (again.status, &again.body["result"], &again.body["entry"]),
        (200, &"known".into(), &first.body["entry"])
    );
    let other = publish(&wide.replace("Captured", "Refunded")).await;
    assert_eq!((other.status, &other.body["type"]), (409, &"/problems/event-differs".into()), "{}", other.body);
    let added: u64 = house.redis.command(&["XLEN", STREAM]).await;
    let found = house.ask("GET", "/v1/events/evt_x", Some(ADMIN), None).await;
    // The worker may have settled and trimmed it: then it is not there twice either.
    if found.status == 200 {
        assert_eq!((found.body.as_array().unwrap().len(), &found.body[0]["body"]), (1, &wide.into()));
    }
    assert!(added <= 1, "{added}");
}

#[tokio::test]
async fn a_batch_is_published_in_its_order_or_not_at_all() {
    let house = house().await;
    let batch = |ids: &[&str]| {
        let events: Vec<Value> = ids.iter().map(|id| serde_json::from_slice(&body(id)).unwrap()).collect();
        Value::Array(events)
    };
    let answer = house.post("/v1/events/batch", ADMIN, batch(&["evt_1", "evt_2", "evt_1"])).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!((&answer.body["added"], &answer.body["known"]), (&2.into(), &1.into()));
    let entries: Vec<&str> =
        answer.body["items"].as_array().unwrap().iter().map(|one| one["entry"].as_str().unwrap()).collect();
    assert!(entries[0] < entries[1] && entries[0] == entries[2], "{entries:?}");

    let mut wrong = batch(&["evt_3", "evt_4"]);
    wrong[1]["createdAt"] = "yesterday".into();
    let refused = house.post("/v1/events/batch", ADMIN, wrong).await;
    assert_eq!(refused.status, 400);
    assert!(refused.body["errors"]["[1]"][0].as_str().unwrap().contains("createdAt"), "{}", refused.body);
    assert!(!bodies(&house.redis).await.iter().any(|body| body.contains("evt_3")), "one of them was published");
}

#[tokio::test]
async fn what_is_too_much_or_no_event_is_refused() {
    let house = house().await;
    let send = async |path: &str, body: Vec<u8>| {
        house.send("POST", path, Some(ADMIN), Some(("application/json", body))).await.status
    };
    assert_eq!(send("/v1/events", vec![b'x'; 64 * 1024 + 1]).await, 413);
    assert_eq!(send("/v1/events/batch", vec![b' '; 1024 * 1024 + 1]).await, 413);
    for bad in [&b""[..], b"{}", b"[]", b"\xff", b"{\"id\":1}"] {
        assert_eq!(send("/v1/events", bad.to_vec()).await, 400, "{bad:?}");
        assert_eq!(send("/v1/events/batch", bad.to_vec()).await, 400, "{bad:?}");
    }
    let many: Vec<Value> = (0..1_001).map(|n| json!(n)).collect();
    assert_eq!(send("/v1/events/batch", Value::Array(many).to_string().into_bytes()).await, 400);
    assert_eq!(house.redis.command::<u64>(&["XLEN", STREAM]).await, 0);
}

#[tokio::test]
async fn a_full_redis_takes_no_event_and_shows_everything() {
    let house = house().await;
    house.redis.set_maxmemory(1).await;
    let refused = house.send("POST", "/v1/events", Some(ADMIN), Some(("application/json", body("evt_9")))).await;
    assert_eq!((refused.status, &refused.headers["retry-after"]), (503, &"5".parse().unwrap()), "{}", refused.body);
    for path in crate::looks::LOOKS {
        house.get(path, ADMIN).await;
    }
    house.redis.set_maxmemory(0).await;
    let taken = house.send("POST", "/v1/events", Some(ADMIN), Some(("application/json", body("evt_9")))).await;
    assert_eq!(taken.status, 201, "{}", taken.body);
}

#[tokio::test]
async fn an_accounts_events_are_pulled_whoever_published_them() {
    let folder = tempfile::tempdir().unwrap();
    let place = format!("sqlite:{}", folder.path().join("h.db").display());
    let house = House::patient(&place).await;
    let publish = async |numbers: std::ops::Range<usize>| {
        let event = |n: usize| {
            let (account, kind) =
                (["acc_1", "acc_2"][n % 2], ["payment_intent.status_updated", "payout.paid"][n / 2 % 2]);
            json!({"id": format!("evt_{n}"), "event": kind, "accountId": account, "createdAt": "2026-11-27T19:00:00Z",
                "data": {"paymentIntentId": format!("pi_{n}"), "paymentStatus": "Captured", "captureMode": "Auto", "n": n}})
        };
        let published = house.post("/v1/events/batch", ADMIN, numbers.map(event).collect()).await;
        assert_eq!(published.status, 200, "{}", published.body);
    };
    let id = |item: &Value| item["id"].as_str().unwrap().to_owned();
    let ids = |page: &Value| page["items"].as_array().unwrap().iter().map(id).collect::<Vec<_>>();
    let named = |numbers: &mut dyn Iterator<Item = usize>| numbers.map(|n| format!("evt_{n}")).collect::<Vec<_>>();
    let (own, other) = (house.token("merchant").await, house.token_of("acc_2").await);
    // Each pulls what is its own, and goes on where it stopped; until all are there.
    let pull = async |path: &str, token: &str, from: Option<String>, most: usize| {
        let (mut found, mut next) = (Vec::new(), from);
        while found.len() < most {
            let cursor = next.as_ref().map(|next| format!("&cursor={next}")).unwrap_or_default();
            let page = house.get(&format!("{path}{cursor}"), token).await;
            assert_eq!(page["gaps"], json!([]), "{page}");
            found.extend(ids(&page));
            next = Some(page["next"].as_str().unwrap().to_owned());
        }
        (found, next)
    };
    publish(0..20).await;
    let (first, next) = pull("/v1/events?limit=3", &own, None, 10).await;
    assert_eq!(first, named(&mut (0..20).step_by(2)), "in their order");
    publish(20..40).await;
    let (second, _) = pull("/v1/events?limit=3", &own, next, 10).await;
    assert_eq!(second, named(&mut (20..40).step_by(2)), "none twice and none lost");
    let (all, _) = pull("/v1/events?limit=3", &other, None, 20).await;
    assert_eq!(all, named(&mut (1..40).step_by(2)));
    let (paid, next) = pull("/v1/events?account=acc_1&event_type=payout.paid&limit=2", ADMIN, None, 10).await;
    assert_eq!(paid, named(&mut (2..40).step_by(4)));
    let both = "/v1/events?account=acc_1&event_type=payout.paid,payment_intent.status_updated";
    assert_eq!(pull(both, ADMIN, None, 20).await.0, named(&mut (0..40).step_by(2)));
    let one = house.get("/v1/events?account=acc_1&intent=pi_6", ADMIN).await;
    let item = &one["items"][0];
    assert_eq!(
        (&item["event"]["data"]["n"], &item["number"], &item["account"]),
        (&6.into(), &Value::Null, &"acc_1".into())
    );
    assert!(one["back_to"].is_string(), "{one}");
    // At the end there is nothing, and a cursor all the same; what does not fit is not looked at again.
    let end = house.get(&format!("/v1/events?account=acc_1&cursor={}", next.unwrap()), ADMIN).await;
    assert_eq!(ids(&end), Vec::<String>::new(), "{end}");
    let described = crate::schemas::Described::new(house.ask("GET", "/openapi.json", None, None).await.body);
    described.check(&described.named("KeptEvents"), &one, "kept events");

    let beyond = "PmUgOTk5OTkgMS0w";
    let far = house.ask("GET", &format!("/v1/events?account=acc_1&cursor={beyond}"), Some(ADMIN), None).await;
    assert_eq!((far.status, &far.body["type"]), (409, &"/problems/feed-was-set-back".into()), "{}", far.body);
    for (wrong, member) in
        [("cursor=PjE", "cursor"), ("cursor=x", "cursor"), ("event_type=%20", "event_type"), ("since=x", "since")]
    {
        let refused = house.ask("GET", &format!("/v1/events?account=acc_1&{wrong}"), Some(ADMIN), None).await;
        assert!(refused.status == 400 && refused.body["errors"][member].is_array(), "{wrong}: {}", refused.body);
    }
    assert_eq!(house.ask("GET", "/v1/events", Some(ADMIN), None).await.status, 400, "staff name the account");
    assert_eq!(house.ask("GET", "/v1/events?account=acc_2", Some(&own), None).await.status, 404);
}

#[tokio::test]
async fn where_no_events_are_kept_that_is_said() {
    let house = House::start().await;
    let (own, path) = (house.token("merchant").await, "/v1/events?account=acc_1");
    let told = house.ask("GET", path, Some(ADMIN), None).await;
    assert!(told.status == 409 && told.body["detail"].as_str().unwrap().contains("history.bodies"), "{}", told.body);
    let told = house.ask("GET", path, Some(&own), None).await;
    assert!(told.status == 409 && !told.body.to_string().contains("history"), "{}", told.body);
}

/// Four parts, and endpoints of two accounts.
async fn split(redis: TestRedis) -> House {
    register(&redis).await;
    let setup = Setup::new(&redis.url()).env("HERALD_PARTITIONS", "4");
    let house = House::of(redis, setup).await;
    house.herald.until_metric("herald_partition_owned", |owned| owned == 5.0).await;
    house
}

async fn register(redis: &TestRedis) {
    let mut registry = RegistryStore::connect(&redis.redis()).await.unwrap();
    for account in ["acc_1", "acc_2"] {
        registry.create(endpoint(&account.replace("acc", "ep"), account, NOWHERE), &mark()).await.unwrap();
    }
}

fn part_of(account: &str) -> String {
    Split::new(STREAM, &[4]).unwrap().stream_of(&AccountId::new(account).unwrap())
}

#[tokio::test]
async fn where_the_stream_is_split_an_event_goes_to_the_part_of_its_account_once() {
    let redis = TestRedis::start().await;
    // It was published before the stream was split, and whoever did so got no answer.
    let event = |id: &str| serde_json::from_slice::<Value>(&body(id)).unwrap();
    let old = format!("17-1 {}", hex::encode(&Sha256::digest(event("evt_old").to_string())[..12]));
    let key = format!("herald:{{{STREAM}}}:published:evt_old");
    let _: String = redis.command(&["SET", &key, &old, "PX", "600000"]).await;
    let house = split(redis).await;
    let known = house.post("/v1/events", ADMIN, event("evt_old")).await;
    assert_eq!((known.status, &known.body["entry"]), (200, &"17-1".into()), "{}", known.body);
    let batch = ["evt_old", "evt_1", "evt_2"].map(event);
    let answer = house.post("/v1/events/batch", ADMIN, Value::Array(batch.into())).await;
    assert_eq!((answer.status, &answer.body["added"], &answer.body["known"]), (200, &2.into(), &1.into()));
    let again = house.post("/v1/events", ADMIN, event("evt_2")).await;
    assert_eq!((again.status, &again.body["entry"]), (200, &answer.body["items"][2]["entry"]), "{}", again.body);
    let published: Vec<String> = house.redis.command(&["KEYS", "herald:*:published:evt_?"]).await;
    let part = part_of("acc_2");
    assert_eq!(published.len(), 2);
    assert!(published.iter().all(|key| key.starts_with(&format!("herald:{{{part}}}:"))), "{published:?}");
    let front: u64 = house.redis.command(&["XLEN", STREAM]).await;
    assert_eq!(front, 0, "nothing went the longer way");
}

#[tokio::test]
async fn an_event_that_no_replica_confirms_is_not_said_to_be_there() {
    let redis = TestRedis::start().await;
    register(&redis).await;
    let setup = Setup::new(&redis.url()).env("HERALD_REDIS_WAIT", "1").env("HERALD_REDIS_WAIT_TIMEOUT", "50ms");
    let house = House::of(redis, setup).await;
    let event: Value = serde_json::from_slice(&body("evt_1")).unwrap();
    for _ in 0..2 {
        let answer = house.post("/v1/events", ADMIN, event.clone()).await;
        assert_eq!((answer.status, &answer.body["type"]), (503, &"/problems/not-replicated".into()), "{}", answer.body);
        assert!(answer.headers.contains_key("retry-after"));
    }
}

//! What is changed, by whom, and what the audit log says of it.

use std::net::TcpListener;

use herald::{facts::endpoint::Mark, store::registry::RegistryStore};
use serde_json::{Value, json};

use crate::{
    house::{ADMIN, Answer, House, NOWHERE},
    support::until,
    visitor::Visitor,
};

#[tokio::test]
async fn an_endpoint_lives_from_its_making_to_its_end() {
    let house = House::start().await;
    let operator = house.token("operator").await;
    let made =
        house.post("/v1/endpoints", &operator, json!({"account": "acc_9", "url": NOWHERE, "rate_limit": 5})).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let id = made.body["id"].as_str().unwrap().to_owned();
    assert!(made.body["secret"].as_str().unwrap().starts_with("whsec_"));
    let at = format!("/v1/endpoints/{id}");
    assert!(house.get(&at, &operator).await.get("secret").is_none());
    let patch = async |body: Value| house.ask("PATCH", &at, Some(&operator), Some(&body)).await;
    let changed =
        patch(json!({"description": "till 7", "rate_limit": null, "headers": {"x-till": "7"}, "reason": "more"})).await;
    assert_eq!(
        (&changed.body["description"], &changed.body["rate_limit"]),
        (&"till 7".into(), &Value::Null),
        "{}",
        changed.body
    );
    assert_eq!(changed.body["headers"], json!([["x-till", "(hidden)"]]));
    let stale = patch(json!({"max_in_flight": 3, "revision": 1, "reason": "late"})).await;
    assert_eq!((stale.status, &stale.body["type"]), (409, &"/problems/changed-meanwhile".into()), "{}", stale.body);
    let refused = patch(json!({"max_in_flight": 0, "reason": "none"})).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    for (verb, state) in [("pause", "paused"), ("resume", "enabled"), ("disable", "disabled"), ("enable", "enabled")] {
        let answer = house.post(&format!("{at}/{verb}"), &operator, json!({"reason": "a test"})).await;
        assert_eq!((answer.status, &answer.body["state"]), (200, &state.into()), "{verb}: {}", answer.body);
    }
    let rotated = house.post(&format!("{at}/rotate-secret"), &operator, json!({"reason": "yearly"})).await;
    assert_eq!((rotated.body["secrets"].as_array().unwrap().len(), rotated.body["secret"].is_string()), (2, true));
    let tested = house.post(&format!("{at}/test"), &operator, json!({})).await;
    assert_eq!((tested.status, &tested.body["attempt"]["outcome"]), (200, &"connect_failed".into()), "{}", tested.body);
    let gone = house.ask("DELETE", &at, Some(&operator), Some(&json!({"reason": "left"}))).await;
    assert_eq!((gone.status, &gone.body["leaves"]), (202, &true.into()), "{}", gone.body);

    let acts = house.get(&format!("/v1/audit?endpoint={id}"), &operator).await;
    let acts: Vec<&str> = acts["items"].as_array().unwrap().iter().map(|act| act["act"].as_str().unwrap()).collect();
    let expected =
        ["delete", "test", "rotate-secret", "enable", "disable", "resume", "pause", "update", "update", "create"];
    assert_eq!(acts, expected.map(|verb| format!("endpoint {verb}")));
}

#[tokio::test]
async fn letters_chains_and_the_quarantine_change_through_the_owner() {
    let house = House::start().await;
    let operator = house.token("operator").await;
    let ids = json!({"ids": ["2-0:ep_a", "1-0:ep_a", "99-0:ep_a"], "reason": "mended"});
    let sent = house.post("/v1/dead-letters/redeliver", &operator, ids).await;
    assert_eq!((&sent.body["done"], &sent.body["refused"]), (&2.into(), &1.into()), "{}", sent.body);
    assert_eq!(sent.body["items"][0]["id"], "1-0:ep_a", "in the order of the stream");
    assert!(sent.body["items"][2]["why"].is_string());
    let dropped =
        house.post("/v1/dead-letters/discard", &operator, json!({"ids": ["3-0:ep_a"], "reason": "old"})).await;
    assert_eq!(dropped.body["done"], 1, "{}", dropped.body);
    let released = house.post("/v1/chains/ep_a/pi_90/release", &operator, json!({"reason": "blocked"})).await;
    assert_eq!(released.body["done"], 1, "{}", released.body);
    let requeued = house.post("/v1/quarantine/requeue", &operator, json!({"entries": ["30-0"], "reason": "r"})).await;
    assert_eq!(requeued.body["done"], 1, "{}", requeued.body);
    let dropped =
        house.post("/v1/quarantine/discard", &operator, json!({"entries": ["31-0", "1-7"], "reason": "r"})).await;
    assert_eq!((&dropped.body["done"], &dropped.body["refused"]), (&1.into(), &1.into()), "{}", dropped.body);
    let many: Vec<String> = (0..101).map(|n| format!("{n}-0:ep_a")).collect();
    let refused = house.post("/v1/dead-letters/discard", &operator, json!({"ids": many, "reason": "r"})).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    let paused = house.post("/v1/pause", &operator, json!({"reason": "incident"})).await;
    assert!(paused.body["paused"]["by"].as_str().unwrap().starts_with("token "), "{}", paused.body);
    assert_eq!(house.post("/v1/resume", &operator, json!({"reason": "over"})).await.body["paused"], Value::Null);
}

#[tokio::test]
async fn a_merchant_keeps_their_own_endpoints_and_lifts_nothing_of_an_operators() {
    let house = House::start().await;
    let merchant = house.token("merchant").await;
    let made = house.post("/v1/endpoints", &merchant, json!({"url": NOWHERE})).await;
    assert_eq!((made.status, &made.body["account"]), (201, &"acc_1".into()), "{}", made.body);
    let other = house.post("/v1/endpoints", &merchant, json!({"account": "acc_2", "url": NOWHERE})).await;
    assert_eq!(other.status, 404, "{}", other.body);
    let switch = async |verb: &str, token: &str| {
        house.post(&format!("/v1/endpoints/ep_a/{verb}"), token, json!({"reason": "a test"})).await
    };
    assert_eq!(switch("pause", &merchant).await.status, 200);
    assert_eq!(switch("resume", &merchant).await.status, 200);
    assert_eq!(switch("pause", ADMIN).await.status, 200);
    let refused = switch("resume", &merchant).await;
    assert_eq!(refused.status, 409, "{}", refused.body);
    let shown = house.get("/v1/endpoints/ep_a", &merchant).await;
    assert!(shown.get("by").is_none() && shown.get("why").is_none() && shown["state"] == "paused", "{shown}");
    let sent =
        house.post("/v1/dead-letters/redeliver", &merchant, json!({"ids": ["1-0:ep_a"], "reason": "mended"})).await;
    assert_eq!(sent.body["done"], 1, "{}", sent.body);
}

#[tokio::test]
async fn a_merchant_cannot_scan_with_it() {
    let house = House::start().await;
    let merchant = house.token("merchant").await;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let open = format!("http://127.0.0.1:{}/", silent.local_addr().unwrap().port());
    drop(silent);
    // It takes connections and says nothing.
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let hung = format!("http://127.0.0.1:{}/", hangs.local_addr().unwrap().port());
    let mut answers = Vec::new();
    for url in [NOWHERE, open.as_str(), hung.as_str()] {
        let made = house.post("/v1/endpoints", &merchant, json!({"url": url, "timeout_ms": 500})).await;
        let at = format!("/v1/endpoints/{}/test", made.body["id"].as_str().unwrap());
        let began = herald::clock::now();
        let mut tested = house.post(&at, &merchant, json!({})).await.body;
        assert!(herald::clock::now() - began >= std::time::Duration::from_millis(500), "{url} is told before its time");
        for varies in ["endpoint", "event", "url", "body", "headers"] {
            tested.as_object_mut().unwrap().remove(varies);
        }
        tested["attempt"]["at"] = Value::Null;
        answers.push(tested);
    }
    assert_eq!((&answers[0], &answers[0]), (&answers[1], &answers[2]));
    assert_eq!(
        (&answers[0]["attempt"]["outcome"], &answers[0]["attempt"]["took_us"]),
        (&"unreachable".into(), &0.into())
    );
    assert!(answers[0]["attempt"].get("detail").is_none() && answers[0]["advice"].is_null(), "{}", answers[0]);
    let refused = house.post("/v1/endpoints", &merchant, json!({"url": "http://169.254.169.254/"})).await;
    assert_eq!(refused.status, 400);
    assert!(!refused.body.to_string().contains("169.254"), "{}", refused.body);
    assert_eq!(house.ask("GET", "/v1/dead-letters?cause=connect_failed", Some(&merchant), None).await.status, 400);
    // A delivery that fails is told no better.
    let again = house.post("/v1/dead-letters/redeliver", &merchant, json!({"ids": ["1-0:ep_a"], "reason": "r"})).await;
    assert_eq!(again.body["done"], 1);
    until("it was tried", async || {
        let told = house.get("/v1/attempts?delivery=1-0:ep_a", &merchant).await;
        told["items"].as_array().unwrap().iter().any(|line| line["outcome"] == "unreachable")
    })
    .await;
}

#[tokio::test]
async fn what_an_operator_has_stopped_stays_so_whatever_its_merchant_does() {
    let house = House::start().await;
    let merchant = house.token("merchant").await;
    let why = json!({"reason": "a test"});
    let call = async |method: &str, verb: &str, token: &str| {
        house.ask(method, &format!("/v1/endpoints/ep_a{verb}"), Some(token), Some(&why)).await
    };
    for (stop, state, lift) in [("/pause", "paused", "/resume"), ("/disable", "disabled", "/enable")] {
        assert_eq!(call("POST", stop, ADMIN).await.status, 200);
        for (method, verb) in [("POST", "/resume"), ("POST", "/enable"), ("POST", "/disable"), ("DELETE", "")] {
            let refused = call(method, verb, &merchant).await;
            assert_eq!(refused.status, 409, "{state}, {method} {verb}: {}", refused.body);
        }
        let tested = house.post("/v1/endpoints/ep_a/test", &merchant, json!({})).await;
        assert_eq!(tested.status, 409, "{state}: {}", tested.body);
        let shown = house.get("/v1/endpoints/ep_a", ADMIN).await;
        assert_eq!((&shown["state"], &shown["leaves"]), (&state.into(), &false.into()), "{shown}");
        assert!(shown["by"].as_str().unwrap().starts_with("token "), "{shown}");
        // An operator's test is how one looks whether it is mended.
        assert_eq!(house.post("/v1/endpoints/ep_a/test", ADMIN, json!({})).await.status, 200);
        assert_eq!(call("POST", lift, ADMIN).await.status, 200);
    }
    assert_eq!(house.post("/v1/pause", ADMIN, why.clone()).await.status, 200);
    until("the pause is known", async || {
        house.post("/v1/endpoints/ep_a/test", &merchant, json!({})).await.status == 409
    })
    .await;
}

#[tokio::test]
async fn a_merchant_lifts_what_is_their_own_and_what_followed_from_their_receivers_answers() {
    let house = House::start().await;
    let merchant = house.token("merchant").await;
    let mut registry = RegistryStore::connect(&house.redis.redis()).await.unwrap();
    for by in ["herald", "acc_1"] {
        let mut endpoint = registry.get(&"ep_a".parse().unwrap()).await.unwrap().unwrap();
        let mark = Mark { by: by.to_owned(), why: "it answers 410".to_owned(), at_ms: 1 };
        endpoint.disable(mark.clone(), "1-0".parse().unwrap());
        registry.update(endpoint, &mark).await.unwrap();
        let enabled = house.post("/v1/endpoints/ep_a/enable", &merchant, json!({"reason": "mended"})).await;
        assert_eq!((enabled.status, &enabled.body["state"]), (200, &"enabled".into()), "{by}: {}", enabled.body);
    }
}

#[tokio::test]
async fn null_is_the_default_of_every_setting() {
    let house = House::start().await;
    let set = json!({
        "account": "acc_9", "url": NOWHERE, "description": "till", "event_types": ["payment_intent.created"],
        "schemes": ["dojo"], "ordering": "none", "max_in_flight": 3, "rate_limit": 4, "timeout_ms": 5_000,
        "retry": {"max_attempts": 2}, "headers": {"x-till": "7"}, "traceparent": true, "http1": true,
    });
    let made = house.post("/v1/endpoints", ADMIN, set.clone()).await.body;
    let plain = house.post("/v1/endpoints", ADMIN, json!({"account": "acc_9", "url": NOWHERE})).await.body;
    let mut nulls = json!({"reason": "as usual"});
    let names: Vec<&String> =
        set.as_object().unwrap().keys().filter(|name| !["account", "url"].contains(&name.as_str())).collect();
    for name in &names {
        assert_ne!(made[name.as_str()], plain[name.as_str()], "{name}");
        nulls[name.as_str()] = Value::Null;
    }
    let path = format!("/v1/endpoints/{}", made["id"].as_str().unwrap());
    let changed = house.ask("PATCH", &path, Some(ADMIN), Some(&nulls)).await;
    assert_eq!(changed.status, 200, "{}", changed.body);
    for name in names {
        assert_eq!(changed.body[name.as_str()], plain[name.as_str()], "{name}");
    }
}

#[tokio::test]
async fn a_change_without_a_revision_waits_its_turn_and_no_revision_is_too_large_to_be_stale() {
    let house = House::start().await;
    let patch = async |body: Value| house.ask("PATCH", "/v1/endpoints/ep_a", Some(ADMIN), Some(&body)).await;
    let all = (0..10).map(|n| patch(json!({"description": format!("d{n}"), "reason": "r"})));
    for changed in futures_util::future::join_all(all).await {
        assert_eq!(changed.status, 200, "{}", changed.body);
    }
    assert_eq!(house.get("/v1/endpoints/ep_a", ADMIN).await["revision"], 11);
    for revision in [0, 1, 12, 1 << 53, u64::MAX] {
        let stale = patch(json!({"max_in_flight": 3, "revision": revision, "reason": "late"})).await;
        assert_eq!((stale.status, &stale.body["type"]), (409, &"/problems/changed-meanwhile".into()), "{}", stale.body);
    }
}

#[tokio::test]
async fn an_account_has_no_more_endpoints_than_it_may_however_many_are_made_at_once() {
    let house = House::start().await;
    let merchant = house.token_of("acc_7").await;
    let make = async || house.post("/v1/endpoints", &merchant, json!({"url": NOWHERE})).await.status;
    let mut made: Vec<u16> = Vec::new();
    for _ in 0..3 {
        made.extend(futures_util::future::join_all((0..20).map(|_| make())).await);
    }
    // Names are looked up for few of an account at a time.
    while made.iter().filter(|status| **status == 201).count() < 50 && made.len() < 500 {
        made.extend(futures_util::future::join_all((0..4).map(|_| make())).await);
    }
    assert_eq!(made.iter().filter(|status| **status == 201).count(), 50, "{made:?}");
    assert_eq!(make().await, 409);
    assert_eq!(house.get("/v1/endpoints?limit=500", &merchant).await["items"].as_array().unwrap().len(), 50);
}

#[tokio::test]
async fn of_several_letters_each_has_its_result_also_for_a_merchant() {
    let house = House::start().await;
    let merchant = house.token("merchant").await;
    let ids = json!({"ids": ["2-0:ep_a", "1-0:ep_b", "1-0:ep_a", "99-0:ep_a"], "reason": "mended"});
    let sent = house.post("/v1/dead-letters/redeliver", &merchant, ids).await;
    assert_eq!((&sent.body["done"], &sent.body["refused"]), (&2.into(), &2.into()), "{}", sent.body);
    let refused: Vec<&Value> =
        sent.body["items"].as_array().unwrap().iter().filter(|item| item["result"] == "refused").collect();
    assert_eq!(refused.len(), 2);
    assert_eq!(refused[0]["why"], refused[1]["why"], "what is another account's is not there");
}

/// There is no replica, so none confirms anything.
#[tokio::test]
async fn what_replicas_have_not_confirmed_is_stored_and_said_to_be_no_more() {
    let house = House::careful().await;
    let wanted = json!({"account": "acc_9", "url": NOWHERE});
    let unconfirmed = |answer: &Answer| {
        let durability = &answer.body["durability"];
        assert_eq!((answer.status, &durability["confirmed"]), (202, &json!(0)), "{}", answer.body);
        assert_eq!((&durability["level"], &durability["replicas"]), (&json!("disk"), &json!(0)));
    };
    let made = house.post("/v1/endpoints", ADMIN, wanted.clone()).await;
    unconfirmed(&made);
    assert!(made.body["secret"].as_str().unwrap().starts_with("whsec_"), "{}", made.body);
    let path = format!("/v1/endpoints/{}", made.body["id"].as_str().unwrap());
    assert_eq!(house.get(&path, ADMIN).await["durability"], Value::Null);
    let merchant = house.token_of("acc_9").await;
    unconfirmed(&house.post("/v1/endpoints", &merchant, json!({"url": NOWHERE})).await);
    let change = json!({"description": "till", "reason": "named"});
    let patch = async || house.ask("PATCH", &path, Some(ADMIN), Some(&change)).await;
    unconfirmed(&patch().await);
    let again = patch().await;
    assert_eq!((again.status, &again.body["durability"]), (200, &Value::Null), "nothing was changed");
    let why = json!({"reason": "a test"});
    for verb in ["pause", "resume", "rotate-secret", "disable", "enable"] {
        unconfirmed(&house.post(&format!("{path}/{verb}"), ADMIN, why.clone()).await);
    }
    unconfirmed(&house.post("/v1/pause", ADMIN, why.clone()).await);
    unconfirmed(&house.post("/v1/resume", ADMIN, why.clone()).await);
    assert_eq!(house.post("/v1/resume", ADMIN, why.clone()).await.status, 200, "nothing was paused");
    let deleted = house.ask("DELETE", &path, Some(ADMIN), Some(&why)).await;
    unconfirmed(&deleted);
    // Each is done as far as the audit log goes, and waited for once.
    let acts = house.get("/v1/audit?limit=20", ADMIN).await;
    let ends: Vec<&Value> = acts["items"].as_array().unwrap().iter().map(|act| &act["ended"]["result"]).collect();
    assert!(ends.len() > 8 && ends.iter().all(|end| **end == "done"), "{acts}");
    let stats: String = house.redis.command(&["INFO", "commandstats"]).await;
    let waits = stats.lines().find(|line| line.starts_with("cmdstat_wait:")).unwrap();
    assert!(waits.contains("calls=11,"), "{waits}");

    let mut visitor = Visitor::signed_in(&house, ADMIN).await;
    let back = visitor.post("/console/endpoints/ep_b/pause", &[("reason", "a test")]).await;
    assert_eq!(back.status, 303, "{}", back.html);
    let shown = visitor.get(back.place()).await.html;
    assert!(shown.contains(r#"class="notice bad""#) && shown.contains("It is paused: its deliveries wait."), "{shown}");
    assert!(shown.contains("no replica of Redis has confirmed it"), "{shown}");
}

#[tokio::test]
async fn without_replicas_to_wait_for_an_answer_says_nothing_of_them() {
    let house = House::start().await;
    let made = house.post("/v1/endpoints", ADMIN, json!({"account": "acc_9", "url": NOWHERE})).await;
    assert_eq!((made.status, &made.body["durability"]), (201, &Value::Null));
    let stats: String = house.redis.command(&["INFO", "commandstats"]).await;
    assert!(!stats.contains("cmdstat_wait:"), "{stats}");
    let mut visitor = Visitor::signed_in(&house, ADMIN).await;
    let back = visitor.post("/console/endpoints/ep_b/pause", &[("reason", "a test")]).await;
    let shown = visitor.get(back.place()).await.html;
    assert!(shown.contains(r#"class="notice good""#) && !shown.contains("replica"), "{shown}");
}

//! What is changed, by whom, and what the audit log says of it.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::{
    house::{ADMIN, House, NOWHERE},
    support::until,
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
    let mut answers = Vec::new();
    for url in [NOWHERE, open.as_str()] {
        let made = house.post("/v1/endpoints", &merchant, json!({"url": url})).await;
        let at = format!("/v1/endpoints/{}/test", made.body["id"].as_str().unwrap());
        let mut tested = house.post(&at, &merchant, json!({})).await.body;
        for varies in ["endpoint", "event", "url", "body", "headers"] {
            tested.as_object_mut().unwrap().remove(varies);
        }
        tested["attempt"]["at"] = Value::Null;
        answers.push(tested);
    }
    assert_eq!(answers[0], answers[1]);
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

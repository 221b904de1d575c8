//! Operations over HTTP: planned, started once by their id, and told with what became of each.

use serde_json::{Value, json};

use crate::{
    house::{ADMIN, House},
    schemas::Described,
    support::until,
};

async fn planned(house: &House, token: &str, body: Value) -> String {
    let planned = house.post("/v1/operations", token, body).await;
    assert_eq!((planned.status, &planned.body["state"]), (201, &"planned".into()), "{}", planned.body);
    planned.body["id"].as_str().unwrap().to_owned()
}

async fn until_done(house: &House, id: &str) -> Value {
    let at = format!("/v1/operations/{id}");
    until("the end of an operation", async || house.get(&at, ADMIN).await["state"] == "done").await;
    house.get(&at, ADMIN).await
}

#[tokio::test]
async fn a_plan_is_started_once_and_its_exceptions_are_told() {
    let house = House::start().await;
    let operator = house.token("operator").await;
    let wanted = json!({"kind": "discard", "endpoint": "ep_a", "limit": 3, "reason": "old"});
    let id = planned(&house, &operator, wanted).await;
    let at = format!("/v1/operations/{id}");
    let shown = house.get(&at, &operator).await;
    assert_eq!((&shown["filter"], &shown["count"]), (&"--endpoint ep_a --limit 3".into(), &3.into()));
    let rate = house.post(&format!("{at}/rate"), &operator, json!({"rate": 500})).await;
    assert_eq!((rate.status, &rate.body["rate"]), (200, &500.into()), "{}", rate.body);
    assert_eq!(house.post(&format!("{at}/pause"), &operator, json!({})).await.status, 409, "it does not run");
    let started = house.ask("POST", &format!("{at}/start"), Some(&operator), None).await;
    assert_eq!((started.status, started.body["started"]["by"].is_string()), (200, true), "{}", started.body);
    let again = house.post(&format!("{at}/start"), &operator, json!({})).await;
    assert_eq!(again.status, 409, "{}", again.body);
    assert!(again.body["detail"].as_str().unwrap().contains("already"), "{}", again.body);
    let done = until_done(&house, &id).await;
    assert_eq!((&done["done"], &done["overtaken"], &done["left"]), (&3.into(), &0.into(), &0.into()), "{done}");
    assert_eq!(house.get("/v1/dead-letters", ADMIN).await["total"], 4);
    let acts = house.get("/v1/audit?act=operation%20start", ADMIN).await;
    assert_eq!((&acts["items"][0]["target"], &acts["items"][0]["count"]), (&id.as_str().into(), &3.into()), "{acts}");

    // What the worker refuses is told one by one.
    let disabled = house.post("/v1/endpoints/ep_a/disable", &operator, json!({"reason": "gone"})).await;
    assert_eq!(disabled.status, 200, "{}", disabled.body);
    until("the head and what it held to be letters", async || house.get("/v1/dead-letters", ADMIN).await["total"] == 6)
        .await;
    let id = planned(&house, &operator, json!({"kind": "redeliver", "all": true, "reason": "tried"})).await;
    let at = format!("/v1/operations/{id}");
    assert_eq!(house.post(&format!("{at}/start"), &operator, json!({"reason": "now"})).await.status, 200);
    let done = until_done(&house, &id).await;
    assert_eq!((&done["refused"], &done["done"]), (&6.into(), &0.into()), "{done}");
    let first = house.get(&format!("{at}/results?limit=4"), ADMIN).await;
    let next = first["next"].as_str().unwrap();
    let rest = house.get(&format!("{at}/results?limit=4&cursor={next}"), ADMIN).await;
    let count = |page: &Value| page["items"].as_array().unwrap().len();
    assert_eq!((count(&first), count(&rest), &rest["next"]), (4, 2, &Value::Null));
    assert!(first["items"][0]["why"].as_str().unwrap().contains("ep_a is disabled"), "{first}");
    let described = Described::new(house.ask("GET", "/openapi.json", None, None).await.body);
    described.check(&described.named("ResultView"), &first["items"][0], "a result");
    described.check(&described.named("OperationView"), &done, "an operation");
    assert_eq!(house.cli(&["operation", "show", &id]), done);
    assert_eq!(house.cli(&["operation", "results", &id])[0], first["items"][0]);

    let list = house.get("/v1/operations?limit=1", ADMIN).await;
    assert_eq!((&list["items"][0]["id"], list["next"].is_string()), (&id.as_str().into(), true));
    let next = list["next"].as_str().unwrap();
    let older = house.get(&format!("/v1/operations?limit=1&cursor={next}"), ADMIN).await;
    assert_eq!((&older["items"][0]["kind"], &older["next"]), (&"discard".into(), &Value::Null), "{older}");
}

#[tokio::test]
async fn operations_are_read_whole_a_page_at_a_time_though_old_ones_end_late() {
    let house = House::start().await;
    let plan = async |what: Value| {
        let planned = house.post("/v1/operations", ADMIN, what).await;
        planned.body["id"].as_str().unwrap_or_else(|| panic!("{}", planned.body)).to_owned()
    };
    let mut all = Vec::new();
    for _ in 0..40 {
        all.insert(0, plan(json!({"kind": "discard", "all": true, "reason": "x"})).await);
    }
    // Some are open, and some have ended, of which the oldest last.
    for id in [&all[3], &all[20], &all[38]] {
        let started = house.post(&format!("/v1/operations/{id}/start"), ADMIN, json!({})).await;
        assert_eq!(started.status, 200, "{}", started.body);
    }
    for id in [&all[5], &all[6], &all[7], &all[21], &all[22], &all[39]] {
        let over = house.post(&format!("/v1/operations/{id}/cancel"), ADMIN, json!({})).await;
        assert_eq!(over.body["state"], "cancelled", "{}", over.body);
    }
    let ids = |page: &Value| {
        let items = page["items"].as_array().unwrap().iter();
        items.map(|item| item["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&house.get("/v1/operations?limit=500", ADMIN).await), all);
    let mut page = house.get("/v1/operations?limit=3", ADMIN).await;
    assert_eq!(page["prev"], Value::Null);
    let (mut forth, mut newer) = (ids(&page), Vec::new());
    while let Some(cursor) = page["next"].as_str() {
        // By now those that were started may have left no letter.
        newer.insert(0, plan(json!({"kind": "send-now", "endpoint": "ep_a", "reason": "x"})).await);
        page = house.get(&format!("/v1/operations?limit=3&cursor={cursor}"), ADMIN).await;
        forth.extend(ids(&page));
    }
    assert_eq!(forth, all, "what is planned meanwhile moves nothing");
    let mut back = ids(&page);
    while let Some(cursor) = page["prev"].as_str() {
        page = house.get(&format!("/v1/operations?limit=3&cursor={cursor}"), ADMIN).await;
        back.splice(0..0, ids(&page));
    }
    assert_eq!(back, [newer, all].concat());

    for wrong in ["Pg", "Pm9wX25vbmU", "PjE"] {
        let refused = house.ask("GET", &format!("/v1/operations?cursor={wrong}"), Some(ADMIN), None).await;
        assert!(refused.status == 400 && refused.body["errors"]["cursor"].is_array(), "{wrong}: {}", refused.body);
    }
}

#[tokio::test]
async fn what_makes_no_plan_is_refused_and_says_why() {
    let house = House::start().await;
    let operator = house.token("operator").await;
    for (body, status, says) in [
        (json!({"kind": "resend", "all": true, "reason": "x"}), 400, "redeliver, discard, send-now, replay, erase"),
        (json!({"kind": "replay", "all": true, "reason": "x"}), 400, "a replay is to one endpoint"),
        (json!({"kind": "replay", "endpoint": "ep_none", "reason": "x"}), 400, "there is no endpoint ep_none"),
        (
            json!({"kind": "replay", "endpoint": "ep_a", "cause": "gone", "reason": "x"}),
            400,
            "leave dead_reason and cause out",
        ),
        (
            json!({"kind": "replay", "endpoint": "ep_a", "account": "acc_none", "reason": "x"}),
            409,
            "gets no events of acc_none",
        ),
        (
            json!({"kind": "erase", "account": "acc_1", "until": "7d", "reason": "x"}),
            400,
            "an erasure is of one account",
        ),
        (json!({"kind": "erase", "all": true, "reason": "x"}), 400, "an erasure is of one account"),
        (
            json!({"kind": "erase", "account": "acc_1", "intent": "pi_1", "reason": "x"}),
            400,
            "an erasure is of one account",
        ),
        (
            json!({"kind": "erase", "account": "acc_1", "reason": "x"}),
            409,
            "disable or delete the account's endpoints first",
        ),
        (json!({"kind": "discard", "reason": "x"}), 400, "is needed where there is no other condition"),
        (json!({"kind": "discard", "intent": "pi_none", "reason": "x"}), 409, "Nothing matches"),
        (json!({"kind": "discard", "all": true, "reason": "x", "count": 9}), 400, "count"),
        (json!({"kind": "discard", "all": true, "rate": 0, "reason": "x"}), 400, "rate"),
        (json!({"kind": "send-now", "all": true, "reason": "x"}), 400, "for one endpoint"),
        (json!({"kind": "discard", "all": true, "reason": " "}), 400, "reason"),
    ] {
        let answer = house.post("/v1/operations", &operator, body.clone()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        assert!(answer.body.to_string().contains(says), "{body}: {}", answer.body);
    }
    assert_eq!(house.get("/v1/operations", ADMIN).await["items"], json!([]));
    // A merchant neither starts nor sees any.
    let merchant = house.token("merchant").await;
    for path in ["/v1/operations", "/v1/operations/op_none"] {
        assert_eq!(house.ask("GET", path, Some(&merchant), None).await.status, 403, "{path}");
    }
}

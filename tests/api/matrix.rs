//! Who may call what: each role and each call that the description names, from one table.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::house::{self, House};

/// The roles that may, from those that all may to those that admins alone may.
const ANYONE: &[&str] = &["merchant", "viewer", "operator", "admin"];
const STAFF: &[&str] = &["viewer", "operator", "admin"];
const KEEPER: &[&str] = &["merchant", "operator", "admin"];
const OPERATOR: &[&str] = &["operator", "admin"];
const ADMIN: &[&str] = &["admin"];

const CALLS: &[(&str, &str, &[&str])] = &[
    ("get", "/v1/me", ANYONE),
    ("get", "/v1/stats", STAFF),
    ("get", "/v1/overview", STAFF),
    ("get", "/v1/partitions", STAFF),
    ("get", "/v1/partitions/of/{account}", STAFF),
    ("get", "/v1/workers", STAFF),
    ("post", "/v1/pause", OPERATOR),
    ("post", "/v1/resume", OPERATOR),
    ("get", "/v1/accounts", STAFF),
    ("get", "/v1/accounts/{account}/events", ANYONE),
    ("post", "/v1/accounts/{account}/portal-link", OPERATOR),
    ("get", "/v1/intents/{intent}", ANYONE),
    ("get", "/v1/events", ANYONE),
    ("post", "/v1/events", OPERATOR),
    ("post", "/v1/events/batch", OPERATOR),
    ("get", "/v1/events/{event}", STAFF),
    ("get", "/v1/endpoints", ANYONE),
    ("post", "/v1/endpoints", KEEPER),
    ("get", "/v1/endpoints/{endpoint}", ANYONE),
    ("patch", "/v1/endpoints/{endpoint}", KEEPER),
    ("delete", "/v1/endpoints/{endpoint}", KEEPER),
    ("post", "/v1/endpoints/{endpoint}/pause", KEEPER),
    ("post", "/v1/endpoints/{endpoint}/resume", KEEPER),
    ("post", "/v1/endpoints/{endpoint}/enable", KEEPER),
    ("post", "/v1/endpoints/{endpoint}/disable", KEEPER),
    ("post", "/v1/endpoints/{endpoint}/rotate-secret", KEEPER),
    ("post", "/v1/endpoints/{endpoint}/test", KEEPER),
    ("get", "/v1/deliveries", ANYONE),
    ("get", "/v1/deliveries/{delivery}", ANYONE),
    ("get", "/v1/attempts", ANYONE),
    ("get", "/v1/issues", STAFF),
    ("get", "/v1/issues/{issue}", STAFF),
    ("post", "/v1/issues/{issue}/ack", OPERATOR),
    ("post", "/v1/issues/{issue}/resolve", OPERATOR),
    ("get", "/v1/dead-letters", ANYONE),
    ("get", "/v1/dead-letters/groups", ANYONE),
    ("get", "/v1/dead-letters/{delivery}", ANYONE),
    ("post", "/v1/dead-letters/redeliver", KEEPER),
    ("post", "/v1/dead-letters/discard", OPERATOR),
    ("get", "/v1/operations", STAFF),
    ("post", "/v1/operations", OPERATOR),
    ("get", "/v1/operations/{operation}", STAFF),
    ("get", "/v1/operations/{operation}/results", STAFF),
    ("post", "/v1/operations/{operation}/start", OPERATOR),
    ("post", "/v1/operations/{operation}/pause", OPERATOR),
    ("post", "/v1/operations/{operation}/resume", OPERATOR),
    ("post", "/v1/operations/{operation}/cancel", OPERATOR),
    ("post", "/v1/operations/{operation}/rate", OPERATOR),
    ("get", "/v1/chains", ANYONE),
    ("get", "/v1/chains/{endpoint}/{intent}", ANYONE),
    ("post", "/v1/chains/{endpoint}/{intent}/release", KEEPER),
    ("get", "/v1/quarantine", STAFF),
    ("get", "/v1/quarantine/{entry}", STAFF),
    ("post", "/v1/quarantine/requeue", OPERATOR),
    ("post", "/v1/quarantine/discard", OPERATOR),
    ("get", "/v1/audit", STAFF),
    ("get", "/v1/audit/{act}", STAFF),
    ("get", "/v1/tokens", ADMIN),
    ("post", "/v1/tokens", ADMIN),
    ("delete", "/v1/tokens/{hash}", ADMIN),
];

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Names of what the first account has.
fn filled(path: &str) -> String {
    let names = [
        ("{account}", "acc_1"),
        ("{event}", "evt_1"),
        ("{endpoint}", "ep_a"),
        ("{delivery}", "1-0:ep_a"),
        ("{intent}", "pi_90"),
        ("{issue}", "ep_a:rejected:401"),
        ("{entry}", "30-0"),
        ("{act}", "1-0"),
        ("{operation}", "op_none"),
        ("{hash}", "0000"),
    ];
    let path = names.iter().fold(path.to_owned(), |path, (name, value)| path.replace(name, value));
    assert!(!path.contains('{'), "{path}");
    path
}

#[tokio::test]
async fn each_role_may_call_what_the_table_says_and_nothing_else() {
    let house = House::start().await;
    let description = house.ask("GET", "/openapi.json", None, None).await.body;
    let paths = description["paths"].as_object().unwrap();
    let described: BTreeSet<(&str, &str)> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = METHODS.into_iter().filter(|method| item.get(*method).is_some());
            methods.map(|method| (method, path.as_str()))
        })
        .collect();
    let in_table: BTreeSet<(&str, &str)> = CALLS.iter().map(|(method, path, _)| (*method, *path)).collect();
    assert_eq!(described, in_table, "the table and the description name the same calls");

    // Nothing is sent meanwhile, so what changes is changed by a call.
    let paused = house.post("/v1/endpoints/ep_a/pause", house::ADMIN, json!({"reason": "a test"})).await;
    assert_eq!(paused.status, 200, "{}", paused.body);
    let mut tokens = Vec::new();
    for role in ANYONE {
        tokens.push((*role, house.token(role).await));
    }
    for (method, template, may) in CALLS {
        let (method, path) = (method.to_uppercase(), filled(template));
        let none = house.ask(&method, &path, None, None).await;
        assert_eq!(none.status, 401, "{method} {path} without a token: {}", none.body);
        assert!(none.headers.contains_key("www-authenticate"));
        for (role, token) in &tokens {
            let answer = house.ask(&method, &path, Some(token), None).await;
            let is_refused = answer.status == 403;
            assert_eq!(is_refused, !may.contains(role), "{method} {path} as {role}: {} {}", answer.status, answer.body);
            assert!(answer.status != 401 && answer.status < 500, "{method} {path} as {role}: {}", answer.body);
            if answer.status >= 400 {
                assert_eq!(answer.headers["content-type"], "application/problem+json", "{method} {path}");
                assert!(answer.body["detail"].is_string() && answer.body["traceId"].is_string(), "{}", answer.body);
            }
        }
        for other in METHODS.iter().filter(|other| !described.contains(&(**other, *template))) {
            let answer = house.ask(&other.to_uppercase(), &path, Some(&tokens[3].1), None).await;
            assert_eq!((answer.status, &answer.body["status"]), (405, &405.into()), "{other} {path}");
        }
    }
    // Nothing was changed by what had no body.
    assert_eq!(house.get("/v1/dead-letters", &tokens[1].1).await["total"], 7);
}

#[tokio::test]
async fn a_merchant_sees_nothing_of_another_account() {
    let house = House::start().await;
    let token = house.token_of("acc_2").await;
    let token = token.as_str();
    let calls = CALLS.iter().filter(|(method, path, may)| {
        may.contains(&"merchant") && path.contains('{') && ["get", "post", "patch", "delete"].contains(method)
    });
    let body = json!({"reason": "x"});
    for (method, path, _) in calls {
        let body = Some(&body).filter(|_| *method != "get");
        let answer = house.ask(&method.to_uppercase(), &filled(path), Some(token), body).await;
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.body);
    }
    for path in
        ["/v1/deliveries?intent=pi_1", "/v1/deliveries?event=evt_1", "/v1/attempts?intent=pi_50", "/v1/dead-letters"]
    {
        let answer = house.get(path, token).await;
        assert_eq!(answer["items"], json!([]), "{path}");
    }
    for path in [
        "/v1/deliveries?endpoint=ep_a",
        "/v1/attempts?endpoint=ep_a",
        "/v1/attempts?account=acc_1",
        "/v1/deliveries?account=acc_1",
        "/v1/chains?endpoint=ep_a",
        "/v1/endpoints?account=acc_1",
        "/v1/dead-letters?account=acc_1",
    ] {
        assert_eq!(house.ask("GET", path, Some(token), None).await.status, 404, "{path}");
    }
    let groups = house.get("/v1/dead-letters/groups?by=account,reason", token).await;
    assert_eq!(groups, Value::Array(Vec::new()));
    let own = house.get("/v1/endpoints", token).await;
    assert_eq!((own["items"].as_array().unwrap().len(), &own["items"][0]["id"]), (1, &"ep_b".into()));
    let redelivered = house.post("/v1/dead-letters/redeliver", token, json!({"ids": ["1-0:ep_a"], "reason": "x"}));
    assert_eq!(redelivered.await.status, 404);
}

//! What became of deliveries, from the history and beyond it; and issues, which follow from what failed.

use std::fs;

use serde_json::{Value, json};

use crate::house::{ADMIN, House};

/// The one attempt that the house has logged was then.
const ITS_DAY: &str = "since=2023-11-14T00:00:00Z&until=2023-11-15T00:00:00Z";

fn ids(answer: &Value) -> Vec<&str> {
    answer["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_history_tells_what_the_log_has_forgotten_and_each_merchant_of_their_own_alone() {
    let folder = tempfile::tempdir().unwrap();
    let house = House::with_history(&format!("sqlite:{}", folder.path().join("history.db").display())).await;
    // Nothing more is logged, so that nothing is missing from what was read.
    let paused = house.post("/v1/pause", ADMIN, json!({"reason": "a look back"})).await;
    assert_eq!(paused.status, 200, "{}", paused.body);
    let lines = async || house.redis.command::<f64>(&["HGET", "herald:{payment-intents}:stats", "log-lines"]).await;
    loop {
        let all = lines().await;
        house.herald.until_metric("herald_history_rows_written_total", |rows| rows >= all).await;
        if lines().await == all {
            break;
        }
    }
    house.redis.command::<u64>(&["DEL", "herald:{payment-intents}:attempts"]).await;

    let found = house.get("/v1/deliveries?intent=pi_50", ADMIN).await;
    assert_eq!((ids(&found), &found["items"][0]["state"]), (vec!["50-0:ep_a"], &"delivered".into()), "{found}");
    let history = &found["history"];
    assert_eq!((&history["from_history"], &history["is_whole"]), (&true.into(), &true.into()), "{history}");
    assert!(history["back_to"].is_string() && history["gaps"] == json!([]), "{history}");
    assert!(history["says"][0].as_str().unwrap().starts_with("history: back to "), "{history}");
    let told = house.get("/v1/deliveries/50-0:ep_a", ADMIN).await;
    assert_eq!((&told["state"], &told["past"][0]["kind"]), (&"delivered".into(), &"delivered".into()), "{told}");

    let (own, other) = (house.token("merchant").await, house.token_of("acc_2").await);
    for token in [ADMIN, &own] {
        for path in ["/v1/deliveries?account=acc_1", "/v1/attempts?account=acc_1", "/v1/attempts?intent=pi_50"] {
            let within = house.get(&format!("{path}&{ITS_DAY}"), token).await;
            assert!(ids(&within).contains(&"50-0:ep_a"), "{path}: {within}");
            let since = house.get(&format!("{path}&since=1d"), token).await;
            assert!(!ids(&since).contains(&"50-0:ep_a"), "{path}: {since}");
        }
    }
    for path in ["/v1/deliveries?intent=pi_50", "/v1/attempts?intent=pi_50", "/v1/attempts?account=acc_2"] {
        assert_eq!(ids(&house.get(path, &other).await), Vec::<&str>::new(), "{path}");
    }
    // Neither where the history is, nor how much there is of others.
    let short = house.get("/v1/attempts?intent=pi_50", &own).await.to_string();
    assert!(
        short.contains("\"from_history\":true") && !short.contains("history:") && !short.contains("line"),
        "{short}"
    );
}

#[tokio::test]
async fn a_history_that_is_away_only_shortens_the_answer() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "this is no database, and longer than the head of one ".repeat(40)).unwrap();
    let house = House::with_history(&format!("sqlite:{}", file.path().display())).await;
    let own = house.token("merchant").await;
    for _ in 0..2 {
        let found = house.get("/v1/deliveries?intent=pi_50", ADMIN).await;
        assert_eq!((ids(&found), &found["history"]["from_history"]), (vec!["50-0:ep_a"], &false.into()), "{found}");
        let says = found["history"]["says"][0].as_str().unwrap();
        assert!(
            says.starts_with("history: ") && says.contains("not a database") && says.contains("attempt log: "),
            "{found}"
        );
        let short = house.get("/v1/deliveries?intent=pi_50", &own).await;
        assert_eq!(ids(&short), ["50-0:ep_a"]);
        assert!(!short.to_string().contains("history: ") && !short.to_string().contains("sqlite"), "{short}");
    }
}

#[tokio::test]
async fn what_is_said_of_an_issue_stays_and_is_in_the_audit_log() {
    let house = House::start().await;
    let listed = house.get("/v1/issues", ADMIN).await;
    let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!((&listed["total"], &listed["items"][0]["state"]), (&1.into(), &"open".into()), "{listed}");
    assert_eq!((&listed["items"][0]["letters"], &listed["items"][0]["account"]), (&7.into(), &"acc_1".into()));

    let token = house.token("operator").await;
    let reason = json!({"reason": "told them"});
    let acked = house.post(&format!("/v1/issues/{id}/ack"), &token, reason.clone()).await;
    assert_eq!((acked.status, &acked.body["state"]), (200, &"acknowledged".into()), "{}", acked.body);
    assert_eq!(house.cli(&["issue", "show", &id])["said"], acked.body["said"]);
    let resolved = house.post(&format!("/v1/issues/{id}/resolve"), &token, reason.clone()).await;
    assert_eq!(resolved.body["state"], "resolved", "{}", resolved.body);
    assert_eq!(house.get("/v1/issues", ADMIN).await["items"], json!([]));
    assert_eq!(ids(&house.get("/v1/issues?all=true", ADMIN).await), [id.as_str()]);
    assert_eq!(ids(&house.get("/v1/issues?all=true&account=acc_2", ADMIN).await), Vec::<&str>::new());

    let acts = house.get("/v1/audit?act=issue%20resolve", ADMIN).await;
    let act = &acts["items"][0];
    assert_eq!((&act["target"], &act["ended"]["result"]), (&id.as_str().into(), &"done".into()), "{acts}");
    assert!(act["by"].as_str().unwrap().starts_with("token "), "{acts}");
    assert_eq!(house.post("/v1/issues/ep_a:dns_failed/ack", &token, reason).await.status, 404);
}

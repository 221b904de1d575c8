//! What a process that serves payment intents tells of itself.

use std::net::TcpListener;

use serde_json::json;

use super::{
    house::{House, created},
    support::until,
};

#[tokio::test]
async fn the_service_alone_shows_its_health_and_metrics_where_it_is_told_to() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let settings = [("HERALD_INTENTS_METRICS_LISTEN", &*free.clone().leak())];
    let house = House::start_with(Vec::from(settings).leak()).await;
    let merchant = house.merchant("acc_a").at(&format!("http://{free}"));
    until("its readiness", async || merchant.ask("GET", "/readyz").await.0 == 200).await;

    let shop = house.merchant("acc_a");
    let created = json!({ "expireAt": "2190-01-01T00:00:00Z", "amount": created()["amount"], "reference": "a" });
    let (_, first) = shop.post_as("key", "/payment-intents", &created).await;
    let (_, again) = shop.post_as("key", "/payment-intents", &created).await;
    assert_eq!(first["id"], again["id"]);
    shop.post(&format!("/payment-intents/{}/captures", first["id"].as_str().unwrap()), &json!({ "amount": 1 })).await;
    shop.create(&json!({ "amount": created["amount"], "reference": "b" })).await;
    shop.post("/sandbox/clock/advance", &json!({ "by": "30.00:00:01" })).await;

    let page = merchant.text("/metrics").await;
    for line in [
        "herald_intents_changes_total{result=\"done\"} 2",
        "herald_intents_changes_total{result=\"repeated\"} 1",
        "herald_intents_changes_total{result=\"refused\"} 1",
        "herald_intents_changes_total{result=\"unavailable\"} 0",
        "herald_intents_deadlines_fired_total 1",
        "herald_intents_oldest_due_deadline_age_seconds 0",
        "herald_intents_request_duration_seconds_count{status=\"4xx\"} 1",
        "herald_log_lines_dropped_total 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("herald_partition_owner"), "there is no worker here:\n{page}");
    assert_eq!(shop.get("/metrics").await.0, 404, "merchants' callers see none of it");
    house.end().await;
}

//! The whole program once, on a good day: events go in at Redis, signed requests come out at the merchants.

use crate::world::{World, lives};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_events_reach_ten_endpoints_signed_and_in_order_and_leave_nothing_behind() {
    let world = World::new().await;
    let accounts = world.register_many(10).await;
    let herald = world.setup().start();
    let events = lives(1, &accounts, 200);
    world.publish(&events).await;
    world.merchants.until_delivered(200).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    assert_eq!(world.merchants.log().duplicates(), 0);
    assert_eq!(world.merchants.log().overlaps, Vec::<String>::new());
    assert_eq!(herald.metric("herald_entries_read_total"), 200.0);
    assert_eq!(herald.metric("herald_attempts_total{outcome=\"delivered\"}"), 200.0);
    assert_eq!(world.number(&["HGET", "herald:{payment-intents}:stats", "log-lines"]).await, 200);
    assert_eq!(herald.get("/readyz").map(|(status, _)| status), Some(200));
    assert!(herald.stop().await.success());
}

/// With these, a waiting connection costs twice the memory.
#[tokio::test]
async fn a_worker_asks_for_no_huge_pages() {
    let world = World::new().await;
    world.register_many(1).await;
    let herald = world.setup().start();
    herald.until_owner().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", herald.pid())).unwrap();
    assert!(status.lines().any(|line| line == "THP_enabled:\t0"), "{status}");
}

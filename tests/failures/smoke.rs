//! The whole program once, on a good day: events go in at Redis, signed requests come out at the merchants.

use crate::{
    merchants::Reply,
    world::{World, lives},
};

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

/// Whoever is woken by the log wants to know which receiver it is, not each of its events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_has_a_line_for_each_endpoint_that_fails_and_one_when_it_is_well_again() {
    let world = World::new().await;
    let accounts = world.register_many(2).await;
    world.change("ep_1", |endpoint| endpoint.retry.max_attempts = Some(1)).await;
    world.merchants.rule("ep_0", |arrival| if arrival.attempt == 1 { Reply::status(500) } else { Reply::OK });
    world.merchants.rule("ep_1", |_| Reply::status(500));
    let herald = world.setup().env("HERALD_LOG", "info").start();
    let events = lives(3, &accounts, 60);
    world.publish(&events).await;
    world.merchants.until_delivered(events.iter().filter(|event| event.account == accounts[0]).count()).await;
    world.until_finished().await;
    let log = herald.log();
    let lines = |what: &str, endpoint: &str| {
        log.lines().filter(|line| line.contains(what) && line.contains(&format!("endpoint={endpoint}"))).count()
    };
    assert_eq!(["ep_0", "ep_1"].map(|endpoint| lines("attempts failed", endpoint)), [1, 0], "{log}");
    assert_eq!(["ep_0", "ep_1"].map(|endpoint| lines("takes events again", endpoint)), [1, 0], "{log}");
    assert_eq!(["ep_0", "ep_1"].map(|endpoint| lines("dead letters", endpoint)), [0, 1], "{log}");
    assert!(herald.metric("herald_dead_letters_added_total{reason=\"exhausted\"}") > 10.0);
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

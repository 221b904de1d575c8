//! What Herald shows of itself: its log stops nothing, and `/readyz` sees what does stop.

use std::{io, time::Duration};

use crate::{
    merchants::Reply,
    support::until,
    world::{STREAM, World, lives},
};

/// Longer than any test: the merchant is healed before that.
const NEVER: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_stops_nothing() {
    let world = World::new().await;
    let accounts = world.register_many(4).await;
    let (unread, stderr) = io::pipe().unwrap();
    // Everything that Herald and its libraries log, a few hundred bytes for each event: more than the pipe and the
    // buffer hold.
    let herald = world.setup().env("HERALD_LOG", "trace").start_logging_to(stderr);
    herald.until_owner().await;
    let events = lives(30, &accounts, 20_000);
    let mut published = 0;
    for part in events.chunks(300) {
        world.publish(part).await;
        published += part.len();
        world.merchants.until_delivered(published).await;
        if herald.metric("herald_log_lines_dropped_total") > 0.0 {
            break;
        }
    }
    assert!(herald.metric("herald_log_lines_dropped_total") > 0.0, "{published} events filled no buffer");
    world.until_finished().await;
    assert_eq!(herald.get("/readyz").map(|(status, _)| status), Some(200));
    assert_eq!(herald.metric("herald_lease_terms_total"), 1.0, "its lease did not lapse");
    world.merchants.assert_sound();
    assert!(herald.stop().await.success(), "nor does the log keep it from ending");
    drop(unread);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_takes_no_writes_is_not_ready_whatever_it_answers() {
    let world = World::new().await;
    let accounts = world.register_many(1).await;
    let herald = world.setup().start();
    herald.until_owner().await;
    until("ready", async || herald.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    world.merchants.rule("ep_0", |_| Reply::OK.after(NEVER));
    let events = lives(31, &accounts, 400);
    world.publish(&events).await;
    herald.until_metric("herald_entries_read_total", |read| read > 0.0).await;
    // It still answers every question, and remembers everything.
    world.redis.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    until("not ready", async || {
        herald.get("/readyz").is_some_and(|(status, why)| status == 503 && why.contains("does not carry out"))
    })
    .await;
    assert_eq!(herald.get("/healthz").map(|(status, _)| status), Some(200));
    world.redis.command::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    world.merchants.heal("ep_0");
    until("ready again", async || herald.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    world.until_finished().await;
    world.merchants.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_may_settle_nothing_any_more_is_not_ready() {
    let world = World::new().await;
    let accounts = world.register_many(1).await;
    world.redis.command::<()>(&["ACL", "SETUSER", "worker", "on", ">secret", "allkeys", "+@all"]).await;
    let url = world.redis.url().replace("redis://", "redis://worker:secret@");
    let herald = world.setup().env("HERALD_REDIS_URL", &url).start();
    herald.until_owner().await;
    until("ready", async || herald.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    world.redis.command::<()>(&["ACL", "SETUSER", "worker", "-xack"]).await;
    world.publish(&lives(32, &accounts, 40)).await;
    // It reads the same entries again and again, and sends nothing twice.
    until("not ready", async || {
        herald.get("/readyz").is_some_and(|(status, why)| status == 503 && why.contains("does not carry out"))
    })
    .await;
    world.redis.command::<()>(&["ACL", "SETUSER", "worker", "+@all"]).await;
    until("ready again", async || herald.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    world.merchants.until_delivered(40).await;
    world.until_finished().await;
    assert_eq!(world.number(&["XLEN", STREAM]).await, 0);
}

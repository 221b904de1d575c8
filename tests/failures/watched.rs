//! What Herald shows of itself: its log stops nothing, and `/readyz` sees what does stop.

use std::{io, net::SocketAddr, process::Command, time::Duration};

use nix::sys::signal::Signal;

use crate::{
    merchants::Reply,
    process::{free_address, get},
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

/// As a container's own probe asks, which has nothing but this program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_has_a_listener_of_its_own_and_a_verb_that_asks_it() {
    let world = World::new().await;
    let of_health = free_address();
    let herald = world.setup().env("HERALD_METRICS_LISTEN", &of_health.to_string()).start();
    let listen = herald.address();
    let check = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command
            .env_clear()
            .env("HERALD_METRICS_LISTEN", of_health.to_string())
            .env("HERALD_LISTEN", listen.to_string());
        // Nobody is there: it must not matter.
        command.env("HERALD_REDIS_URL", "redis://127.0.0.1:1").arg("healthcheck").args(more).output().unwrap()
    };
    until("ready", async || check(&["--ready"]).status.code() == Some(0)).await;
    assert_eq!(check(&[]).status.code(), Some(0));

    // Either listener has its own, and nothing of the other's.
    let get = |address: SocketAddr, path: &str| get(address, path).map(|(status, _)| status);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!((get(of_health, path), get(listen, path)), (Some(200), Some(404)), "{path}");
    }
    assert_eq!((get(of_health, "/v1/endpoints"), get(listen, "/v1/endpoints")), (Some(404), Some(401)));
    assert_eq!((get(of_health, "/openapi.json"), get(listen, "/openapi.json")), (Some(404), Some(200)));

    herald.signal(Signal::SIGSTOP);
    let silent = check(&[]);
    let said = String::from_utf8_lossy(&silent.stderr);
    assert!(silent.status.code() == Some(1) && said.contains("did not answer"), "{said}");
    herald.signal(Signal::SIGCONT);
    assert!(herald.stop().await.success());
    let gone = check(&[]);
    let said = String::from_utf8_lossy(&gone.stderr);
    assert!(gone.status.code() == Some(1) && said.contains("cannot ask"), "{said}");
}

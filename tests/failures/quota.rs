//! Receivers that take nothing while their events come in: how much of Redis they may use, and what is left for the
//! others.

use herald::facts::{endpoint::EndpointState, id::EndpointId};

use crate::{
    merchants::Reply,
    support::until,
    world::{Event, PREFIX, World, lives, publish},
};

/// The least that a quota can be; and enough attempts that no delivery dies of failing.
const SMALL: &str = r#"
[shutdown]
grace = "3s"
[retry]
max_attempts = 50
[limits]
attempt_log_entries = 1000
[limits.breaker]
cooldown = "300ms"
max_cooldown = "1s"
[quota]
endpoint_bytes = 1048576
"#;

const OF_ENDPOINT: &str = "herald_quota_refusals_total{quota=\"endpoint_bytes\"}";

/// Events for the endpoint `ep_dead`; about 900 of them are more than it may have.
fn owed_to_the_dead(from: usize, count: usize) -> Vec<Event> {
    (from..from + count).map(|n| Event::new(700_000 + n, "acc_dead", &format!("pi_dead_{n}"), "Created")).collect()
}

async fn status(world: &World) -> EndpointState {
    let found = world.registry().await.get(&EndpointId::new("ep_dead").unwrap()).await.unwrap();
    found.expect("it is there").status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_receiver_is_paused_at_its_quota_and_loses_nothing_and_the_others_are_served() {
    let world = World::new().await;
    let accounts = world.register_many(5).await;
    world.register(world.endpoint("ep_dead", "acc_dead")).await;
    world.merchants.rule("ep_dead", |_| Reply::status(500));
    let herald = world.setup().toml(SMALL).start();
    herald.until_owner().await;
    let (healthy, dead) = (lives(51, &accounts, 550), owed_to_the_dead(0, 1_500));
    let mut connection = world.redis.connection().await;
    for (healthy, dead) in healthy[..500].chunks(50).zip(dead.chunks(150)) {
        publish(&mut connection, dead).await;
        publish(&mut connection, healthy).await;
    }
    world.merchants.until_delivered(500).await;
    until("the pause", async || matches!(status(&world).await, EndpointState::Paused(_))).await;
    let EndpointState::Paused(mark) = status(&world).await else { panic!("it goes on by itself") };
    assert_eq!(mark.by, "herald");
    for part in ["quota.endpoint_bytes is 1.0 MiB", "herald endpoint resume ep_dead --reason"] {
        assert!(mark.why.contains(part), "{}", mark.why);
    }
    herald.until_metric(OF_ENDPOINT, |count| count == 1.0).await;
    herald.until_log("paused the endpoint").await;
    // What comes after that is kept like everything before.
    publish(&mut connection, &owed_to_the_dead(1_500, 100)).await;
    publish(&mut connection, &healthy[500..]).await;
    world.until_key("records", &["HGET", &format!("{PREFIX}unfinished"), "ep_dead"], |count| count == 1_600).await;

    // Resumed before it is mended: it may keep what it has, and is not paused again at once.
    world.resume("ep_dead").await;
    let tried = world.merchants.log().of("ep_dead").count();
    world.merchants.until("more attempts", |log| log.of("ep_dead").count() > tried + 10).await;
    assert_eq!(herald.metric(OF_ENDPOINT), 1.0);
    world.merchants.heal("ep_dead");
    world.merchants.until("everything", |log| log.delivered_to("ep_dead") == 1_600).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    herald.until_metric("herald_deliveries_record_bytes", |bytes| bytes == 0.0).await;
    assert_eq!(herald.metric(OF_ENDPOINT), 1.0);
    let bytes: Vec<String> = world.redis.command(&["HGETALL", &format!("{PREFIX}bytes")]).await;
    assert!(bytes.is_empty(), "{bytes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_attempt_log_is_kept_short_while_redis_has_little_memory_left() {
    let world = World::new().await;
    let accounts = world.register_many(3).await;
    world.redis.command::<()>(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    let herald = world.setup().toml(SMALL).start();
    herald.until_owner().await;
    world.publish(&lives(53, &accounts, 1_500)).await;
    world.merchants.until_delivered(1_500).await;
    let lines = async || {
        let log: Vec<(String, Vec<String>)> =
            world.redis.command(&["XRANGE", &format!("{PREFIX}attempts"), "-", "+"]).await;
        log.iter().flat_map(|(_, words)| words.last()).map(|lines| lines.split('\n').count()).sum::<usize>()
    };
    until("the log", async || lines().await >= 1_000).await;
    // After a burst, what Redis uses falls again, so the limit follows it until the worker has seen it come near.
    until("the pressure", async || {
        let memory: String = world.redis.command(&["INFO", "memory"]).await;
        let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim();
        world.redis.set_maxmemory(used.parse::<u64>().unwrap() * 108 / 100).await;
        herald.metric("herald_redis_memory_pressure") == 1.0
    })
    .await;
    // The log holds no more than a tenth, plus what is left of a batch.
    let (mut number, mut connection) = (0, world.redis.connection().await);
    until("a short log", async || {
        number += 1;
        publish(&mut connection, &[Event::new(900_000 + number, &accounts[0], &format!("pi_{number}"), "Created")])
            .await;
        lines().await < 100 + 250
    })
    .await;
    herald.until_log("the attempt log is kept short").await;
    world.redis.set_maxmemory(0).await;
    world.until_finished().await;
    world.merchants.assert_sound();
}

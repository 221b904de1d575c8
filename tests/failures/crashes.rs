//! Herald killed, stopped, paused and doubled: nothing is lost, the order is kept, and one owner at a time works.

use std::time::Duration;

use nix::sys::signal::Signal;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    merchants::Reply,
    process::Herald,
    support::{TestRedis, soon, until},
    world::{Event, PREFIX, STREAM, World, lives},
};

/// Deliveries that may have been in flight: what is pending in the group, times the endpoints it may be owed to, and
/// what was claimed or stood in a backlog in front of a lane.
async fn in_flight_at_most(world: &World, endpoints_per_account: u64) -> u64 {
    let (pending,): (u64,) = {
        let mut command = redis::cmd("XPENDING");
        command.arg(STREAM).arg("herald");
        let answer: redis::Value = command.query_async(&mut world.redis.connection().await).await.unwrap();
        match answer {
            redis::Value::Array(parts) => (redis::from_redis_value(parts[0].clone()).unwrap(),),
            other => panic!("{other:?}"),
        }
    };
    let claimed = world.number(&["ZCARD", &format!("{PREFIX}claimed")]).await;
    let mut parked = 0;
    for key in world.keys("*:backlog:*").await {
        // A backlog is read without being taken: at most what a lane has room for is in memory.
        parked += world.number(&["ZCARD", &key]).await.min(2 * u64::from(herald::facts::endpoint::DEFAULT_MAX_IN_FLIGHT));
    }
    pending * endpoints_per_account + claimed + parked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_kills_in_ten_thousand_events_lose_nothing_and_keep_the_order() {
    const EVENTS: usize = 10_000;
    let world = World::new().await;
    // 90 accounts; ten of them have two endpoints.
    let accounts = world.register_many(90).await;
    for n in 0..10 {
        world.register(world.endpoint(&format!("ep_second_{n}"), &format!("acc_{n}"))).await;
    }
    for n in 0..90 {
        // One in seven deliveries is slow for a moment, one in thirty fails at first: records and retries are part of it.
        world.merchants.rule(&format!("ep_{n}"), |arrival| {
            let number: u32 = arrival.event[4..].parse().unwrap();
            match (number % 30, number % 7) {
                (0, _) if arrival.attempt == 1 => Reply::status(500),
                (_, 0) => Reply::OK.after(Duration::from_millis(15)),
                _ => Reply::OK,
            }
        });
    }
    let events = lives(2, &accounts, EVENTS);
    let owed: usize = events.iter().map(|event| 1 + usize::from(world_has_second(&event.account))).sum();
    let mut redis = world.redis.connection().await;
    let publishing = events.clone();
    let publisher = tokio::spawn(async move {
        for chunk in publishing.chunks(100) {
            crate::world::publish(&mut redis, chunk).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut rng = StdRng::seed_from_u64(3);
    let setup = world.setup().env("HERALD_LOG", "info");
    let mut herald = setup.start();
    let (mut bound, mut kills) = (0, Vec::new());
    for kill in 1..=10 {
        // Each kill falls at a random moment behind its share of the run.
        let mark = owed * kill / 11;
        world.merchants.until("the moment of a kill", |log| log.delivered.len() >= mark).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..40))).await;
        herald.kill9();
        let at_most = in_flight_at_most(&world, 2).await;
        bound += at_most;
        kills.push((world.merchants.delivered(), at_most));
        herald = setup.start();
    }
    publisher.await.unwrap();
    world.merchants.until_delivered(owed).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    let log = world.merchants.log();
    assert_eq!(log.delivered.len(), owed);
    // What failed at first arrives again by right.
    let again = log.arrivals.iter().filter(|arrival| arrival.earlier > 0 && arrival.attempt == 1).count()
        + log.arrivals.iter().filter(|arrival| arrival.attempt > 1 && repeats(&log, arrival)).count();
    println!("10 kills: {again} duplicates, at most {bound} were in flight; (delivered, in flight) {kills:?}");
    assert!(again as u64 <= bound, "{again} duplicates for {bound} in flight");
    drop(log);
    assert!(herald.stop().await.success());
}

fn world_has_second(account: &str) -> bool {
    account["acc_".len()..].parse::<u32>().unwrap() < 10
}

/// The same attempt of the same delivery had arrived before.
fn repeats(log: &crate::merchants::Log, arrival: &crate::merchants::Arrival) -> bool {
    let same = |other: &&crate::merchants::Arrival| {
        other.endpoint == arrival.endpoint && other.event == arrival.event && other.attempt == arrival.attempt
    };
    log.arrivals.iter().find(same).is_some_and(|first| first.earlier != arrival.earlier)
}

/// Two workers; answers the owner and the standby.
async fn two(world: &World) -> (Herald, Herald) {
    let setup = world.setup();
    let owner = setup.start();
    owner.until_owner().await;
    let standby = setup.start();
    until("the standby", async || standby.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    assert_eq!(standby.metric("herald_owner"), 0.0);
    (owner, standby)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_workers_one_works_and_the_other_takes_over_at_once_when_it_stops() {
    let world = World::new().await;
    let accounts = world.register_many(5).await;
    let (owner, standby) = two(&world).await;
    let events = lives(4, &accounts, 2_000);
    world.publish(&events[..1_000]).await;
    world.merchants.until_delivered(500).await;
    assert_eq!(standby.metric("herald_entries_read_total"), 0.0);
    assert!(owner.stop().await.success());
    let stopped = std::time::Instant::now();
    standby.until_owner().await;
    println!("the standby owned the partition {:?} after a clean stop", stopped.elapsed());
    world.publish(&events[1_000..]).await;
    world.merchants.until_delivered(2_000).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    // A clean stop finishes what is in flight: nothing comes twice.
    assert_eq!(world.merchants.log().duplicates(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_paused_beyond_its_lease_changes_nothing_when_it_wakes() {
    let world = World::new().await;
    let accounts = world.register_many(10).await;
    for n in 0..10 {
        world.merchants.rule(&format!("ep_{n}"), |arrival| match arrival.attempt {
            1 => Reply::status(503).after(Duration::from_millis(20)),
            _ => Reply::OK.after(Duration::from_millis(5)),
        });
    }
    let (old, new) = two(&world).await;
    let events = lives(5, &accounts, 1_000);
    world.publish(&events).await;
    world.merchants.until_delivered(100).await;
    old.signal(Signal::SIGSTOP);
    new.until_owner().await;
    // The new owner is stopped too, so whatever changes now is the old one's doing. Its lease must not run out meanwhile.
    world.merchants.until_delivered(150).await;
    new.signal(Signal::SIGSTOP);
    let lease = format!("{PREFIX}lease");
    world.redis.command::<()>(&["PERSIST", &lease]).await;
    let before = fingerprint(&world).await;
    old.signal(Signal::SIGCONT);
    old.until_metric("herald_owner", |value| value == 0.0).await;
    // Its next question for the lease has been answered: every call of its old term was before that.
    let asked = old.metric("herald_lease_terms_total");
    world.until_key("the old owner's question", &["EXISTS", &lease], |exists| exists == 1).await;
    old.until_log("the term has ended").await;
    assert_eq!(old.metric("herald_lease_terms_total"), asked);
    assert_eq!(fingerprint(&world).await, before);
    world.redis.command::<()>(&["PEXPIRE", &lease, "1000"]).await;
    new.signal(Signal::SIGCONT);
    world.merchants.until_delivered(1_000).await;
    world.until_finished().await;
    world.merchants.assert_sound();
}

/// Every key of the partition with its content.
async fn fingerprint(world: &World) -> Vec<(String, String)> {
    let mut keys = world.keys("herald:*").await;
    keys.push(STREAM.to_owned());
    keys.sort();
    let mut connection = world.redis.connection().await;
    let mut prints = Vec::new();
    for key in keys {
        let digest: Vec<String> =
            redis::cmd("DEBUG").arg("DIGEST-VALUE").arg(&key).query_async(&mut connection).await.unwrap();
        prints.push((key, digest.concat()));
    }
    prints
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_finishes_what_is_in_flight_and_ends_with_success() {
    let world = World::new().await;
    world.register_many(1).await;
    world.merchants.rule("ep_0", |_| Reply::OK.after(Duration::from_millis(500)));
    let herald = world.setup().start();
    let events: Vec<Event> = (0..40).map(|n| Event::new(n, "acc_0", &format!("pi_{n}"), "Created")).collect();
    world.publish(&events).await;
    world.merchants.until("attempts in flight", |log| log.open.get("ep_0").is_some_and(|open| open.0 >= 4)).await;
    let mut herald = herald;
    herald.signal(Signal::SIGTERM);
    until("draining", async || {
        herald.get("/readyz").is_some_and(|(status, why)| status == 503 && why.contains("draining"))
    })
    .await;
    assert!(herald.ended().await.success());
    assert_eq!(world.number(&["EXISTS", &format!("{PREFIX}lease")]).await, 0);
    let arrived = world.merchants.log().arrivals.len();
    assert_eq!(world.merchants.delivered(), arrived, "an attempt in flight was cut off");
    let _next = world.setup().start();
    world.merchants.until_delivered(40).await;
    world.until_finished().await;
    assert_eq!(world.merchants.log().duplicates(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_end_in_its_grace_gets_records_and_a_second_signal_ends_at_once() {
    let world = World::new().await;
    world.register_many(1).await;
    world.merchants.rule("ep_0", |_| Reply::OK.after(Duration::from_secs(60)));
    let setup = world.setup().env("HERALD_ATTEMPT_TIMEOUT", "60s").toml("[shutdown]\ngrace = \"1s\"\n");
    let events: Vec<Event> = (0..8).map(|n| Event::new(n, "acc_0", &format!("pi_{n}"), "Created")).collect();
    let mut herald = setup.start();
    world.publish(&events).await;
    world.merchants.until("attempts in flight", |log| log.open.get("ep_0").is_some_and(|open| open.0 >= 4)).await;
    herald.signal(Signal::SIGTERM);
    assert!(herald.ended().await.success());
    // What was in flight has its record, so nothing of it pins the stream.
    let records = world.keys("*delivery:*").await.len();
    assert!(records >= 4, "{records} records");

    let patient = setup.toml("[shutdown]\ngrace = \"10m\"\n");
    let mut herald = patient.start();
    world.merchants.until("attempts in flight", |log| log.arrivals.len() >= 8).await;
    herald.signal(Signal::SIGTERM);
    herald.until_log("once more ends it at once").await;
    herald.signal(Signal::SIGTERM);
    let status = soon("the end after the second signal", herald.ended()).await;
    assert_eq!(status.code(), Some(1));
    world.merchants.heal("ep_0");
    let _next = world.setup().start();
    world.merchants.until_delivered(8).await;
    world.until_finished().await;
    world.merchants.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_killed_and_started_again_loses_nothing_that_it_had_accepted() {
    let mut world = World::on(TestRedis::start_with_aof()).await;
    let accounts = world.register_many(20).await;
    world.merchants.rule("ep_0", |arrival| match arrival.attempt {
        1 | 2 => Reply::status(500),
        _ => Reply::OK.after(Duration::from_millis(2)),
    });
    let herald = world.setup().start();
    let events = lives(6, &accounts, 3_000);
    let mut back = Vec::new();
    for (round, part) in events.chunks(1_000).enumerate() {
        // Everything is accepted before the kill, so everything must arrive.
        world.publish(part).await;
        world.merchants.until_delivered(round * 1_000 + 300).await;
        world.redis.kill9();
        herald.until_log("the term has ended").await;
        world.redis.start_again();
        let (returned, delivered) = (std::time::Instant::now(), world.merchants.delivered());
        world.merchants.until_delivered((delivered + 1).min((round + 1) * 1_000)).await;
        back.push(returned.elapsed());
    }
    println!("Redis killed three times: the next delivery came {back:?} after its return");
    assert!(back.iter().all(|pause| *pause < Duration::from_secs(20)), "{back:?}");
    world.merchants.until_delivered(3_000).await;
    world.until_finished().await;
    world.merchants.assert_sound();
}

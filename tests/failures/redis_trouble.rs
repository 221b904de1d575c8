//! Redis wiped, flushed, robbed, cut off and full: Herald goes on by itself and loses nothing that Redis still had.

use std::time::{Duration, Instant};

use crate::{
    merchants::Reply,
    process::Herald,
    support::until,
    world::{Event, PREFIX, STREAM, World, lives, mark, publish},
};

/// Runs events through Herald, does `harm` in the middle, and expects everything everywhere.
async fn survives(seed: u64, harm: impl AsyncFn(&World, usize)) -> (World, Herald) {
    const EVENTS: usize = 2_000;
    let world = World::new().await;
    let accounts = world.register_many(10).await;
    for n in 0..3 {
        world.merchants.rule(&format!("ep_{n}"), |arrival| {
            let is_unlucky = arrival.event.ends_with('7') && arrival.attempt == 1;
            if is_unlucky { Reply::status(500) } else { Reply::OK.after(Duration::from_millis(3)) }
        });
    }
    let herald = world.setup().start();
    let events = lives(seed, &accounts, EVENTS);
    for (round, part) in events.chunks(EVENTS / 4).enumerate() {
        world.publish(part).await;
        world.merchants.until_delivered(round * EVENTS / 4 + 100).await;
        harm(&world, round).await;
    }
    world.merchants.until_delivered(EVENTS).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    println!(
        "{} repeated arrivals, {} terms",
        world.merchants.log().duplicates(),
        herald.metric("herald_lease_terms_total")
    );
    (world, herald)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroyed_group_is_made_again() {
    let (_world, herald) = survives(11, async |world, _| {
        world.redis.command::<()>(&["XGROUP", "DESTROY", STREAM, "herald"]).await;
    })
    .await;
    assert!(herald.log().contains("made the consumer group"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_lease_is_taken_again() {
    let (_world, herald) = survives(12, async |world, _| {
        world.redis.command::<()>(&["DEL", &format!("{PREFIX}lease")]).await;
    })
    .await;
    assert!(herald.metric("herald_lease_terms_total") >= 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_scripts_are_loaded_again_without_a_new_term() {
    let (_world, herald) = survives(13, async |world, _| world.redis.command(&["SCRIPT", "FLUSH"]).await).await;
    assert_eq!(herald.metric("herald_lease_terms_total"), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_are_made_again() {
    survives(14, async |world, _| {
        for kind in ["normal", "pubsub"] {
            world.redis.command::<i64>(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_a_foreign_consumer_took_are_taken_over() {
    let (_world, herald) = survives(15, async |world, round| {
        // Herald looks for such entries every ten seconds.
        if round != 1 {
            return;
        }
        // It competes with Herald for new entries, so it is only certain to get some of those added during a pause.
        let robbed = Event::new(9_000_000 + round, "acc_9", &format!("pi_robbed_{round}"), "Created");
        let mut both = redis::pipe();
        both.atomic().cmd("XADD").arg(STREAM).arg("*").arg("event").arg(&robbed.body).ignore();
        both.cmd("XREADGROUP").arg("GROUP").arg("herald").arg("thief").arg("COUNT").arg(1_000);
        both.arg("STREAMS").arg(STREAM).arg(">").ignore();
        both.query_async::<()>(&mut world.redis.connection().await).await.unwrap();
        world
            .merchants
            .until("what was taken", |log| log.delivered.contains(&("ep_9".to_owned(), robbed.id.clone())))
            .await;
    })
    .await;
    assert!(herald.metric("herald_entries_claimed_total") >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_redis_is_worked_on_again_once_its_endpoints_are_imported() {
    let world = World::new().await;
    let accounts = world.register_many(10).await;
    let export = world.registry().await.export(1).await.unwrap();
    let herald = world.setup().start();
    let events = lives(16, &accounts, 2_000);
    world.publish(&events[..1_000]).await;
    world.merchants.until_delivered(300).await;
    world.redis.command::<()>(&["FLUSHALL"]).await;
    // Having no endpoints does not mean that events are owed to nobody: they wait.
    world.publish(&events[1_000..]).await;
    let length = world.number(&["XLEN", STREAM]).await;
    assert_eq!(length, 1_000);
    herald.until_log("vanished").await;
    assert_eq!(world.number(&["XLEN", STREAM]).await, 1_000);
    let registry = Some(export.registry_id.clone());
    world.registry().await.import(export.endpoints, registry, &mark()).await.unwrap();
    world
        .merchants
        .until("everything that Redis still had", |log| {
            events[1_000..].iter().all(|event| {
                let endpoint = event.account.replace("acc", "ep");
                log.delivered.contains(&(endpoint, event.id.clone()))
            })
        })
        .await;
    world.until_finished().await;
    world.merchants.assert_sound();
    assert_eq!(herald.metric("herald_entries_settled_total{result=\"no_endpoint\"}"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_loses_nothing_and_keeps_nobody_busy() {
    let world = World::new().await;
    let accounts = world.register_many(10).await;
    world.redis.command::<()>(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    for n in 0..3 {
        world.merchants.rule(&format!("ep_{n}"), |arrival| match arrival.attempt {
            1 => Reply::status(500),
            _ => Reply::OK,
        });
    }
    let herald = world.setup().start();
    let events = lives(17, &accounts, 2_000);
    world.publish(&events[..1_000]).await;
    world.merchants.until_delivered(100).await;
    // Full at once: Herald goes on with the little that it reads at a time, because what is delivered makes room.
    world.redis.set_maxmemory(1).await;
    let refused = world.redis.connection().await;
    let add = redis::cmd("XADD").arg(STREAM).arg("*").arg("event").arg("{}").to_owned();
    assert!(add.query_async::<String>(&mut refused.clone()).await.is_err(), "Redis is not full");
    until("the end of what was read", async || {
        let pending: Vec<redis::Value> = world.redis.command(&["XPENDING", STREAM, "herald", "-", "+", "1"]).await;
        pending.is_empty() && world.keys("*delivery:*").await.is_empty()
    })
    .await;
    world.merchants.until_delivered(1_000).await;
    // Whether it was a second or the machine made it three: so many each.
    let (began, calls, cpu) = (Instant::now(), world.calls("evalsha").await, herald.cpu());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (calls, cpu) = (world.calls("evalsha").await - calls, herald.cpu() - cpu);
    let seconds = began.elapsed().as_secs_f64();
    println!("a full Redis: {calls} scripts and {cpu:.2} s of processor time in {seconds:.2} s");
    assert!((calls as f64) < 50.0 * seconds, "{calls} scripts in {seconds:.2} s");
    world.redis.set_maxmemory(0).await;
    world.publish(&events[1_000..]).await;
    world.merchants.until_delivered(2_000).await;
    world.until_finished().await;
    world.merchants.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_stands_still_longer_than_the_lease_is_waited_for() {
    let mut world = World::new().await;
    let accounts = world.register_many(10).await;
    let herald = world.setup().start();
    let events = lives(18, &accounts, 1_000);
    world.publish(&events).await;
    world.merchants.until_delivered(200).await;
    world.redis.pause();
    herald.until_log("the term has ended").await;
    world.redis.resume();
    world.merchants.until_delivered(1_000).await;
    world.until_finished().await;
    world.merchants.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_was_trimmed_while_pending_is_counted_and_let_go() {
    let world = World::new().await;
    world.register_many(1).await;
    let events: Vec<Event> = (0..20).map(|n| Event::new(n, "acc_0", &format!("pi_{n}"), "Created")).collect();
    // A group as a dead owner leaves it: everything read, nothing acknowledged; and then somebody trims.
    world.redis.command::<()>(&["XGROUP", "CREATE", STREAM, "herald", "0", "MKSTREAM"]).await;
    world.publish(&events).await;
    let read = ["XREADGROUP", "GROUP", "herald", "herald", "COUNT", "20", "STREAMS", STREAM, ">"];
    world.redis.command::<redis::Value>(&read).await;
    world.redis.command::<()>(&["XTRIM", STREAM, "MAXLEN", "15"]).await;
    let herald = world.setup().start();
    world.merchants.until_delivered(15).await;
    herald.until_metric("herald_entries_settled_total{result=\"trimmed\"}", |count| count == 5.0).await;
    world.until_finished().await;
    world.merchants.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_installation_leaves_events_in_the_stream_until_it_has_an_endpoint() {
    let world = World::new().await;
    let herald = world.setup().start();
    let events = lives(19, &["acc_0".to_owned()], 50);
    world.publish(&events).await;
    until("a worker that is up", async || herald.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    assert_eq!(herald.metric("herald_partition_owner"), 0.0);
    assert_eq!(world.number(&["XLEN", STREAM]).await, 50);
    world.register_many(1).await;
    world.merchants.until_delivered(50).await;
    world.until_finished().await;
    world.merchants.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_event_is_quarantined_and_an_account_without_endpoint_is_counted_while_the_stream_moves_on() {
    let world = World::new().await;
    let accounts = world.register_many(2).await;
    let herald = world.setup().start();
    let events = lives(20, &accounts, 40);
    let large = format!("{{\"id\":\"{}\"}}", "x".repeat(100_000));
    let bad: [(&str, &[u8]); 6] = [
        ("other", b"{}"),
        ("event", b"no JSON"),
        ("event", b"[]"),
        ("event", b"{\"id\":7}"),
        ("event", b"{\"\xff\":1}"),
        ("event", large.as_bytes()),
    ];
    let mut connection = world.redis.connection().await;
    for (part, (field, value)) in events.chunks(7).zip(bad) {
        let mut add = redis::cmd("XADD");
        add.arg(STREAM).arg("*").arg(field).arg(value);
        add.query_async::<()>(&mut connection).await.unwrap();
        publish(&mut connection, part).await;
        let stranger = Event::new(1_000_000, "acc_stranger", "pi_stranger", "Created");
        publish(&mut connection, &[stranger]).await;
    }
    world.merchants.until_delivered(40).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    assert_eq!(world.number(&["XLEN", &format!("{PREFIX}quarantine")]).await, 6);
    assert_eq!(herald.metric("herald_entries_settled_total{result=\"quarantined\"}"), 6.0);
    assert_eq!(herald.metric("herald_entries_settled_total{result=\"no_endpoint\"}"), 6.0);
    let log = herald.log();
    assert_eq!(log.matches("no valid event were quarantined: 1;").count(), 1, "one line a minute: {log}");
    assert!(log.contains("the entry has no field"), "it names what is wrong: {log}");
}

/// A producer's accident of 64 MB: it goes to the quarantine, cut. Herald never holds it, and the others do not wait
/// for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_64_mb_costs_herald_no_memory() {
    let world = World::new().await;
    let accounts = world.register_many(2).await;
    // Redis itself copies it more than once, and serves nobody meanwhile: the default lease is long enough for that.
    let herald = world.setup().env("HERALD_LEASE", "5s").start();
    herald.until_owner().await;
    let events = lives(23, &accounts, 40);
    world.publish(&events[..20]).await;
    world.merchants.until_delivered(20).await;
    let before = herald.resident();
    let mut connection = world.redis.connection().await;
    let mut add = redis::cmd("XADD");
    add.arg(STREAM).arg("*").arg("event").arg(vec![b'x'; 64 << 20]);
    add.query_async::<()>(&mut connection).await.unwrap();
    publish(&mut connection, &events[20..]).await;
    world.merchants.until_delivered(40).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    let grown = herald.peak_resident().saturating_sub(before) / 1024;
    assert!(grown < 30 * 1024, "at its peak Herald held {grown} KiB more");
    assert_eq!(world.number(&["XLEN", &format!("{PREFIX}quarantine")]).await, 1);
    assert!(herald.log().contains("the event is 67108864 bytes long"), "{}", herald.log());
}

/// What a payment system will add some day is delivered; `events.strict` holds it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_tomorrow_are_delivered_counted_and_told_of_once() {
    let world = World::new().await;
    let accounts = world.register_many(1).await;
    let herald = world.setup().start();
    let new = |number: usize, from: &str, to: &str| {
        let event = Event::new(number, &accounts[0], "pi_1", "Captured");
        Event { body: event.body.replace(from, to), ..event }
    };
    let events = [
        new(1, "Captured", "PartiallyCaptured"),
        new(2, "Captured", "PartiallyCaptured"),
        new(3, "payment_intent.status_updated", "refund.created"),
        new(4, ",\"captureMode\":\"Auto\"", ""),
        new(5, "Auto", "Later"),
        new(6, "Captured", "Refunded"),
    ];
    world.publish(&events).await;
    world.merchants.until_delivered(6).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    for (kind, count) in [("payment_status", 2.0), ("event_type", 1.0), ("capture_mode", 2.0)] {
        assert_eq!(herald.metric(&format!("herald_novel_events_total{{kind=\"{kind}\"}}")), count, "{kind}");
    }
    assert_eq!(herald.metric("herald_entries_settled_total{result=\"quarantined\"}"), 0.0);
    let said = herald.log().matches("PartiallyCaptured").count();
    assert_eq!(said, 1, "{}", herald.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_and_metrics_tell_the_truth_while_redis_is_away() {
    let mut world = World::new().await;
    let accounts = world.register_many(1).await;
    let export = world.registry().await.export(1).await.unwrap();
    let herald = world.setup().start();
    herald.until_owner().await;
    until("ready", async || herald.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    world.redis.kill9().await;
    until("not ready", async || {
        herald.get("/readyz").is_some_and(|(status, why)| status == 503 && why.contains("Redis does not answer"))
    })
    .await;
    herald.until_metric("herald_partition_owner", |value| value == 0.0).await;
    assert_eq!(herald.get("/healthz").map(|(status, _)| status), Some(200));
    assert!(herald.metric("herald_redis_errors_total{kind=\"unavailable\"}") > 0.0);
    // It kept nothing: its endpoints come back as they would from a backup, under the id that they had.
    world.redis.start_again().await;
    until("ready again", async || herald.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    let registry = Some(export.registry_id.clone());
    world.registry().await.import(export.endpoints, registry, &mark()).await.unwrap();
    let events = lives(21, &accounts, 10);
    world.publish(&events).await;
    world.merchants.until_delivered(10).await;
    world.merchants.assert_sound();
}

/// What is passed on needs room, and what is delivered makes some: so each part is given a little at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_with_a_stream_that_is_split_empties_itself() {
    let world = World::new().await;
    let accounts = world.register_many(8).await;
    let setup = || world.setup().env("HERALD_PARTITIONS", "4");
    let herald = setup().start();
    herald.until_metric("herald_partition_owned", |owned| owned == 5.0).await;
    assert!(herald.stop().await.success());
    let events = lives(61, &accounts, 800);
    world.publish(&events).await;
    world.redis.command::<()>(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    world.redis.set_maxmemory(1).await;
    let herald = setup().start();
    world.merchants.until_delivered(events.len()).await;
    world.merchants.assert_sound();
    assert_eq!(world.merchants.log().duplicates(), 0);
    assert!(herald.stop().await.success());
}

//! Several processes that share the parts of one stream: who comes, goes, dies or freezes costs the others no event and no order.

use std::{collections::BTreeMap, time::Duration};

use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use crate::{
    merchants::Reply,
    process::{Herald, Setup},
    support::until,
    world::{Event, World, lives, publish},
};

/// Parts, and the stream above them, which needs an owner that passes its entries on.
const PARTS: usize = 12;
const STREAMS: usize = PARTS + 1;

fn worker(world: &World, name: &str) -> Setup {
    let parts = PARTS.to_string();
    world.setup().env("HERALD_PARTITIONS", &parts).env("HERALD_WORKER", name)
}

/// Adds the events in their order to the stream above all parts, some hundreds a second, while other things happen.
async fn publish_beside(world: &World, events: Vec<Event>) -> JoinHandle<()> {
    let mut connection = world.redis.connection().await;
    tokio::spawn(async move {
        for chunk in events.chunks(40) {
            publish(&mut connection, chunk).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

/// How many streams each worker has, by the leases in Redis.
async fn loads(world: &World) -> BTreeMap<String, usize> {
    let mut connection = world.redis.connection().await;
    let mut loads = BTreeMap::new();
    for lease in world.keys("herald:*:lease").await {
        let value: Option<String> = redis::cmd("GET").arg(&lease).query_async(&mut connection).await.unwrap();
        if let Some(owner) = value.as_deref().and_then(|value| value.split(' ').nth(1)) {
            *loads.entry(owner.to_owned()).or_insert(0) += 1;
        }
    }
    loads
}

/// All of it is owned, by these and nobody else, none of whom has more than one stream more than another.
async fn until_even_among(world: &World, workers: &[&str]) {
    until(&format!("an even load among {workers:?}"), async || {
        let loads = loads(world).await;
        let of = |worker: &&str| loads.get(*worker).copied().unwrap_or(0);
        let (least, most) = (workers.iter().map(of).min(), workers.iter().map(of).max());
        loads.values().sum::<usize>() == STREAMS
            && workers.iter().map(of).sum::<usize>() == STREAMS
            && most.unwrap_or(0) - least.unwrap_or(0) <= 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_come_and_go_in_peace_repeat_and_reorder_nothing() {
    let world = World::new().await;
    let accounts = world.register_many(40).await;
    for n in 0..40 {
        world.merchants.rule(&format!("ep_{n}"), |arrival| {
            let number: u32 = arrival.event[4..].parse().unwrap();
            match (number % 40, number % 7) {
                (0, _) if arrival.attempt == 1 => Reply::status(500),
                (_, 0) => Reply::OK.after(Duration::from_millis(15)),
                _ => Reply::OK,
            }
        });
    }
    let one = worker(&world, "one").start();
    until_even_among(&world, &["one"]).await;
    let events = lives(21, &accounts, 24_000);
    let publishing = publish_beside(&world, events.clone()).await;
    let two = worker(&world, "two").start();
    let three = worker(&world, "three").start();
    until_even_among(&world, &["one", "two", "three"]).await;
    let four = worker(&world, "four").start();
    until_even_among(&world, &["one", "two", "three", "four"]).await;
    two.until_metric("herald_workers", |workers| workers == 4.0).await;
    // Whoever leaves gives away what it has, and ends.
    assert!(one.stop().await.success());
    until_even_among(&world, &["two", "three", "four"]).await;
    assert!(three.stop().await.success());
    until_even_among(&world, &["two", "four"]).await;
    assert!(!publishing.is_finished(), "there was something to deliver all the time");
    publishing.await.unwrap();
    world.merchants.until_delivered(events.len()).await;
    world.merchants.assert_sound();
    let ends: Vec<String> = [&two, &four].iter().flat_map(|herald| ends_of_terms(&herald.log())).collect();
    let duplicates = world.merchants.log().duplicates();
    assert_eq!(duplicates, attempts_refused(&events), "only what was refused comes again: {ends:#?}");
    // Of those that are left each had everything from others, who all gave it in peace.
    four.until_metric("herald_workers", |workers| workers == 2.0).await;
    let handed = |herald: &Herald, reason| herald.metric(&format!("herald_handovers_total{{reason=\"{reason}\"}}"));
    for herald in [&two, &four] {
        let owned = herald.metric("herald_partition_owned");
        herald.until_metric("herald_handovers_total{reason=\"given\"}", |given| given >= owned).await;
        assert_eq!(["taken_over", "lost"].map(|reason| handed(herald, reason)), [0.0, 0.0]);
    }
    for herald in [two, four] {
        assert!(herald.stop().await.success());
    }
    assert!(loads(&world).await.is_empty(), "no lease is left");
}

fn ends_of_terms(log: &str) -> Vec<String> {
    log.lines().filter(|line| line.contains("the term has ended")).map(str::to_owned).collect()
}

/// Arrivals beyond the first: one for each that is answered 500 at first.
fn attempts_refused(events: &[Event]) -> usize {
    events.iter().filter(|event| event.id[4..].parse::<u32>().is_ok_and(|number| number % 40 == 0)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_die_or_freeze_lose_nothing_and_their_parts_are_taken_over() {
    let world = World::new().await;
    let accounts = world.register_many(40).await;
    let start = |name: &str| -> Herald { worker(&world, name).start() };
    let (one, two, three) = (start("one"), start("two"), start("three"));
    until_even_among(&world, &["one", "two", "three"]).await;
    let events = lives(22, &accounts, 24_000);
    let publishing = publish_beside(&world, events.clone()).await;
    one.kill9();
    until_even_among(&world, &["two", "three"]).await;
    two.signal(Signal::SIGSTOP);
    until_even_among(&world, &["three"]).await;
    let four = start("four");
    until_even_among(&world, &["three", "four"]).await;
    // It finds out that nothing is its own any more, and gets its share again.
    two.signal(Signal::SIGCONT);
    until_even_among(&world, &["two", "three", "four"]).await;
    assert!(!publishing.is_finished(), "there was something to deliver all the time");
    publishing.await.unwrap();
    world.merchants.until_delivered(events.len()).await;
    world.merchants.assert_sound();
    let handed = |herald: &Herald, reason| herald.metric(&format!("herald_handovers_total{{reason=\"{reason}\"}}"));
    assert!(handed(&three, "taken_over") > 0.0, "what the dead one had, and the frozen one");
    assert!(handed(&two, "lost") > 0.0, "it was frozen for longer than its leases");
    // It came to what another one had.
    four.until_metric("herald_handovers_total{reason=\"given\"}", |given| given > 0.0).await;
    for herald in [two, three, four] {
        assert!(herald.stop().await.success());
    }
}

//! A stream that is split into parts, each with a process of its own, and routers that die.

use super::{
    Duration, Event, Herald, MASTERS, STREAM, Setup, Town, busy_merchants, fail_over, slot, until,
    world::{World, lives},
};

const PARTS: u32 = 4;

/// One that routes, as soon as it owns the stream.
fn router(setup: &Setup) -> Herald {
    setup.clone().env("HERALD_PARTITIONS", &PARTS.to_string()).env("HERALD_ROUTE_RETAIN", "1s").start()
}

fn workers(setup: &Setup) -> Vec<Herald> {
    (0..PARTS).map(|part| setup.clone().env("HERALD_STREAM", &format!("{STREAM}:{part}")).start()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_goes_once_through_routers_that_die() {
    let world = World::new().await;
    let accounts = world.register_many(12).await;
    let events = lives(7, &accounts, 2_000);
    // What is there before anybody has come is routed too.
    let quarter = events.len() / 4;
    world.publish(&events[..quarter]).await;
    let mut first = router(&world.setup());
    first.until_log("routes the stream into 4 parts").await;
    let parts = workers(&world.setup());
    for part in &events[quarter..].chunks(quarter).collect::<Vec<&[Event]>>() {
        world.publish(part).await;
        // Another one is there before the first has ended.
        let second = router(&world.setup());
        std::mem::replace(&mut first, second).kill9();
        first.until_owner().await;
    }
    world.merchants.until_delivered(events.len()).await;
    world.merchants.assert_sound();
    let terms: f64 = parts.iter().map(|part| part.metric("herald_lease_terms_total")).sum();
    let duplicates = world.merchants.log().duplicates();
    // A part whose owner had no time to renew its lease sends again what was in flight then.
    assert!(duplicates == 0 || terms > f64::from(PARTS), "{duplicates}: each event is in one part, once");
    assert_eq!(first.metric("herald_route_gap_total"), 0.0);
    // Nothing is left behind, but for the last entry.
    until("the stream to be trimmed", async || world.number(&["XLEN", STREAM]).await <= 1).await;
    let delivered: Vec<u64> = {
        let mut all = Vec::new();
        for part in 0..PARTS {
            let added: Vec<redis::Value> = world.redis.command(&["XINFO", "STREAM", &format!("{STREAM}:{part}")]).await;
            let at =
                added.iter().position(|value| *value == redis::Value::BulkString(b"entries-added".to_vec())).unwrap();
            let redis::Value::Int(count) = added[at + 1] else { panic!("{added:?}") };
            all.push(count as u64);
        }
        all
    };
    assert_eq!(delivered.iter().sum::<u64>(), events.len() as u64, "{delivered:?}");
    assert!(delivered.iter().all(|count| *count > 0), "{delivered:?}");
    for herald in parts.into_iter().chain([first]) {
        assert!(herald.stop().await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_worked_stays_whole_and_one_that_is_split_stays_split() {
    let world = World::new().await;
    let accounts = world.register_many(3).await;
    let events = lives(8, &accounts, 300);
    let whole = world.setup().start();
    whole.until_owner().await;
    world.publish(&events[..100]).await;
    world.merchants.until_delivered(100).await;
    assert!(whole.stop().await.success());
    let split = router(&world.setup());
    split.until_log("stream.partitions is 4, and Redis holds the stream in one piece").await;
    world.publish(&events[100..]).await;
    world.merchants.until_delivered(events.len()).await;
    world.merchants.assert_sound();
    assert_eq!(world.redis.command::<u64>(&["EXISTS", "herald:{payment-intents}:mode"]).await, 0);
    assert!(split.stop().await.success());

    // And a name of a part may be a stream of somebody else's.
    let other = world.setup().env("HERALD_STREAM", "others:2").start();
    until("it to be owned", async || world.redis.command::<u64>(&["EXISTS", "herald:{others:2}:lease"]).await == 1)
        .await;
    let refused = world.setup().env("HERALD_STREAM", "others").env("HERALD_PARTITIONS", "4").start();
    refused.until_log("somebody works on others:2 as on a stream of its own").await;
    assert_eq!(world.redis.command::<u64>(&["EXISTS", "herald:{others}:mode", "herald:{others:0}:gate"]).await, 0);
    for herald in [other, refused] {
        assert!(herald.stop().await.success());
    }

    let split = world.setup().env("HERALD_STREAM", "new").env("HERALD_PARTITIONS", "3").start();
    split.until_log("routes the stream into 3 parts").await;
    assert!(split.stop().await.success());
    let again = world.setup().env("HERALD_STREAM", "new").env("HERALD_PARTITIONS", "5").start();
    again.until_log("stream.partitions is 5, and Redis holds the stream in 3 parts").await;
    let hint: String = world.redis.command(&["HGET", "herald:{herald}:partitions", "new"]).await;
    assert_eq!(hint, "3");
    assert!(again.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster_routers_and_masters_may_die() {
    let mut town = Town::new().await;
    let events = busy_merchants(&town).await;
    let setup = town.setup().await;
    let mut first = router(&setup);
    first.until_log("routes the stream into 4 parts").await;
    let parts = workers(&setup);
    let third = events.len() / 3;
    town.publish(&events[..third], 1).await;
    let second = router(&setup);
    std::mem::replace(&mut first, second).kill9();
    town.publish(&events[third..2 * third], 1).await;
    town.merchants.until_delivered(2 * third).await;
    // What replicas had was not lost with a master; the parts that it had go on at another one.
    let dies = town.cluster.master_of(slot()).await.unwrap();
    fail_over(&mut town).await;
    town.publish(&events[2 * third..], 0).await;
    town.merchants.until_delivered(events.len()).await;
    super::come_back(&mut town, dies).await;
    town.merchants.assert_sound();
    println!("{} repeated arrivals", town.merchants.log().duplicates());
    assert_eq!(first.metric("herald_route_gap_total"), 0.0);
    // With replicas that confirm, everything but the last entry goes.
    until("the stream to be trimmed", async || town.ask_home::<u64>(&["XLEN", STREAM]).await <= 1).await;
    tokio::time::timeout(Duration::from_secs(60), async {
        for herald in parts.into_iter().chain([first]) {
            assert!(herald.stop().await.success());
        }
    })
    .await
    .expect("they end");
}

/// Parts are on other nodes than the stream: what is handed over waits for their replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster_a_stream_that_was_worked_is_split_while_owners_die() {
    let town = Town::new().await;
    let events = busy_merchants(&town).await;
    let setup = town.setup().await;
    let mut owner = setup.start();
    owner.until_owner().await;
    for n in 0..2 {
        town.done(&["endpoint", "pause", &format!("ep_{n}"), "--reason", "deploys"]);
    }
    let (before, after) = events.split_at(1_000);
    town.publish(before, 1).await;
    let paused = |event: &&Event| event.account == "acc_0" || event.account == "acc_1";
    let parked = before.iter().filter(paused).count();
    town.merchants.until_delivered(before.len() - parked).await;
    let words = ["repartition", "--into", &PARTS.to_string(), "--yes", "--no-wait", "--reason", "more workers"];
    town.done(&words);
    town.publish(after, 1).await;
    let mode = async || town.ask_home::<Option<String>>(&["GET", "herald:{payment-intents}:mode"]).await;
    until("the split to begin", async || mode().await.is_some()).await;
    owner.kill9();
    owner = setup.start();
    until("the stream to be split", async || mode().await.is_some_and(|mode| mode.starts_with("routed 4 "))).await;
    owner.until_metric("herald_partition_owned", |owned| owned > f64::from(PARTS)).await;
    for n in 0..2 {
        town.done(&["endpoint", "resume", &format!("ep_{n}"), "--reason", "deployed"]);
    }
    town.merchants.until_delivered(events.len()).await;
    town.merchants.assert_sound();
    let parts = (0..PARTS).map(|part| format!("{STREAM}:{part}"));
    let slots = parts.map(|part| herald::facts::partition::Slot::of_key(part.as_bytes()).number());
    let mut nodes = std::collections::BTreeSet::new();
    for slot in slots {
        nodes.insert(town.cluster.master_of(slot).await.unwrap());
    }
    assert!(nodes.len() > 1, "the parts are on {nodes:?}");
    until("nothing to be left", async || {
        let mut left = Vec::new();
        for node in 0..MASTERS {
            left.extend(town.ask::<Vec<String>>(node, &["KEYS", "herald:[{]payment-intents*[}]:delivery:*"]).await);
        }
        left.is_empty()
    })
    .await;
    assert!(owner.stop().await.success());
}

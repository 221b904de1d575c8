//! One process with many partitions: eight children of a stream, with events in them directly.

use std::{collections::BTreeMap, time::Duration};

use herald::facts::{
    endpoint::EndpointState,
    id::{AccountId, EndpointId},
    partition::Split,
};

use crate::{
    merchants::Reply,
    process::Herald,
    support::until,
    world::{Event, World, lives},
};

const PARTS: u32 = 8;

/// With the one above them, which needs an owner that passes its entries on.
const STREAMS: u32 = PARTS + 1;

/// Has the stream count as routed, as its hint and its mode say.
async fn split(world: &World) {
    let parts = PARTS.to_string();
    let mode = format!("routed {PARTS} t0ken 0-0");
    let _: String = world.redis.command(&["SET", "herald:{payment-intents}:mode", &mode]).await;
    let _: u64 = world.redis.command(&["HSET", "herald:{herald}:partitions", "payment-intents", &parts]).await;
}

/// Which part an account's events are in.
fn stream_of(account: &str) -> String {
    Split::new("payment-intents", &[PARTS]).unwrap().stream_of(&AccountId::new(account).unwrap())
}

async fn publish(world: &World, events: &[Event]) {
    let mut connection = world.redis.connection().await;
    for chunk in events.chunks(500) {
        let mut pipeline = redis::pipe();
        for event in chunk {
            pipeline.cmd("XADD").arg(stream_of(&event.account)).arg("*").arg("event").arg(&event.body).ignore();
        }
        pipeline.query_async::<()>(&mut connection).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_gone_is_owed_what_its_whole_path_had_accepted_by_then() {
    let world = World::new().await;
    let accounts = world.register_many(8).await;
    split(&world).await;
    let herald = world.setup().start();
    // The stream above them has an owner, too.
    herald.until_metric("herald_partition_owned", |owned| owned > f64::from(PARTS)).await;
    let other = accounts.iter().find(|account| stream_of(account) != stream_of(&accounts[0])).unwrap();
    let gone = format!("ep_{}", &accounts[0][4..]);
    world.merchants.rule(&gone, |_| Reply::status(410));
    // A later entry, of somebody else, in the stream that both come through.
    let last = format!("{}-0", herald::clock::wall_ms() + 60_000);
    let event = Event::new(2, other, "pi_2", "Created");
    world.redis.command::<String>(&["XADD", "payment-intents", &last, "event", &event.body]).await;
    publish(&world, &[Event::new(1, &accounts[0], "pi_1", "Created")]).await;
    let id = EndpointId::new(&gone).unwrap();
    until("the endpoint to be disabled", async || {
        let endpoint = world.registry().await.get(&id).await.unwrap().unwrap();
        matches!(endpoint.status, EndpointState::Disabled(_))
    })
    .await;
    let endpoint = world.registry().await.get(&id).await.unwrap().unwrap();
    assert_eq!(endpoint.owed_until, Some(last.parse().unwrap()));
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_in_a_partition_of_others_is_delivered_and_told_of_or_refused_where_that_is_wanted() {
    let world = World::new().await;
    let accounts = world.register_many(8).await;
    split(&world).await;
    let setup = world.setup();
    let herald = setup.start();
    until_all_are_owned(&herald).await;
    let elsewhere =
        accounts.iter().map(|account| stream_of(account)).find(|it| *it != stream_of(&accounts[0])).unwrap();
    let misplace = async |number: usize| {
        let event = Event::new(number, &accounts[0], &format!("pi_{number}"), "Created");
        world.redis.command::<String>(&["XADD", &elsewhere, "*", "event", &event.body]).await
    };
    publish(&world, &accounts.iter().enumerate().map(|(n, it)| Event::new(n, it, "pi", "Created")).collect::<Vec<_>>())
        .await;
    misplace(100).await;
    misplace(101).await;
    world.merchants.until_delivered(accounts.len() + 2).await;
    herald.until_metric("herald_novel_events_total{kind=\"partition\"}", |events| events == 2.0).await;
    until("the doctor to name whose events are in the wrong place", async || {
        let said = run(&world, &["doctor"]);
        said.contains(&format!("{} has 2 events in a partition that it does not belong to", accounts[0]))
            && said.contains(&format!("herald partition of {}", accounts[0]))
    })
    .await;
    assert!(herald.stop().await.success());
    let herald = setup.env("HERALD_EVENTS_STRICT", "true").start();
    until_all_are_owned(&herald).await;
    let entry = misplace(102).await;
    let quarantine = format!("herald:{{{elsewhere}}}:quarantine");
    until("the entry to be quarantined", async || world.number(&["XLEN", &quarantine]).await == 1).await;
    let shown = run(&world, &["quarantine", "show", &entry]);
    assert!(shown.contains("belongs to another partition"), "{shown}");
    assert_eq!(world.merchants.delivered(), accounts.len() + 2);
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_which_nothing_is_passed_on_is_not_ready() {
    let world = World::new().await;
    let accounts = world.register_many(1).await;
    split(&world).await;
    let herald = world.setup().start();
    until_all_are_owned(&herald).await;
    let ready = || herald.get("/readyz").unwrap();
    until("it is ready", async || ready().0 == 200).await;
    let gate = format!("herald:{{{}}}:gate", stream_of(&accounts[0]));
    world.redis.command::<String>(&["SET", &gate, "another-split"]).await;
    let event = Event::new(1, &accounts[0], "pi_1", "Created");
    world.redis.command::<String>(&["XADD", "payment-intents", "*", "event", &event.body]).await;
    until("it is not ready", async || ready().0 == 503).await;
    let (_, why) = ready();
    assert!(why.contains("there is a backlog and nothing moves: payment-intents"), "{why}");
    world.redis.command::<u64>(&["DEL", &gate]).await;
    world.merchants.until_delivered(1).await;
    until("it is ready again", async || ready().0 == 200).await;
    assert!(herald.stop().await.success());
}

/// What a verb prints, however it ends.
fn run(world: &World, words: &[&str]) -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_herald"));
    command.args(words).env_clear().env("PATH", "/usr/bin:/bin").env("HERALD_REDIS_URL", world.redis.url());
    command.env("HERALD_HISTORY_URL", "");
    let output = tokio::task::block_in_place(|| command.output().expect("herald runs"));
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn leases(world: &World) -> Vec<String> {
    let mut leases = world.keys("herald:*:lease").await;
    leases.sort();
    leases
}

async fn until_all_are_owned(herald: &Herald) {
    herald.until_metric("herald_partition_owned", |owned| owned == f64::from(STREAMS)).await;
}

/// Deliveries of each account, to count them where they should be.
fn by_account(events: &[Event]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    events.iter().for_each(|event| *counts.entry(event.account.as_str()).or_default() += 1);
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_partitions_of_one_process_lose_nothing_when_it_is_killed_and_leave_no_lease_when_it_stops() {
    let world = World::new().await;
    split(&world).await;
    let accounts = world.register_many(24).await;
    let streams: std::collections::BTreeSet<_> = accounts.iter().map(|account| stream_of(account)).collect();
    assert_eq!(streams.len(), PARTS as usize, "there is something for each of them");
    let setup = world.setup();
    let herald = setup.start();
    until_all_are_owned(&herald).await;
    let events = lives(5, &accounts, 3_000);
    publish(&world, &events).await;
    world.merchants.until_delivered(500).await;
    herald.kill9();
    let herald = setup.start();
    world.merchants.until_delivered(events.len()).await;
    world.merchants.assert_sound();
    for (account, count) in by_account(&events) {
        let endpoint = account.replace("acc_", "ep_");
        assert_eq!(world.merchants.log().delivered_to(&endpoint), count, "{endpoint}");
    }
    until("an empty stream in each of them", async || {
        let mut left = 0;
        for stream in &streams {
            left += world.number(&["XLEN", stream]).await;
        }
        left == 0
    })
    .await;
    assert_eq!(herald.get("/readyz").map(|(status, _)| status), Some(200));
    assert_eq!(leases(&world).await.len(), STREAMS as usize, "one of each part, and of the stream that is routed");
    assert!(herald.stop().await.success());
    assert_eq!(leases(&world).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_stuck_costs_the_others_nothing_and_is_named() {
    let world = World::new().await;
    split(&world).await;
    let accounts = world.register_many(16).await;
    let stuck = stream_of(&accounts[0]);
    let _: String = world.redis.command(&["SET", &stuck, "no stream"]).await;
    let herald = world.setup().env("HERALD_LOG_FORMAT", "json").start();
    herald.until_metric("herald_partition_owned", |owned| owned >= f64::from(STREAMS) - 1.0).await;
    let all = lives(6, &accounts, 800);
    let (its, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|event| stream_of(&event.account) == stuck);
    publish(&world, &others).await;
    world.merchants.until_delivered(others.len()).await;
    let named = format!(": {stuck}");
    until("readiness to name it, and it alone", async || {
        herald.get("/readyz").is_some_and(|(status, body)| {
            status == 503
                && body.contains(&named)
                && body.matches("payment-intents:").count() == body.matches(&named).count()
        })
    })
    .await;
    let log = herald.log();
    let lines: Vec<serde_json::Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let told = lines.iter().filter(|line| line.to_string().contains("wrong type"));
    let of: Vec<_> = told.map(|line| line["partition"].as_str().unwrap_or_default()).collect();
    let is_concerned = |partition: &&str| *partition == stuck || *partition == "payment-intents";
    assert!(of.contains(&stuck.as_str()) && of.iter().all(is_concerned), "it, or who passes on to it: {of:?}");
    // Somebody takes it away.
    let _: u64 = world.redis.command(&["DEL", &stuck]).await;
    until_all_are_owned(&herald).await;
    publish(&world, &its).await;
    world.merchants.until_delivered(its.len() + others.len()).await;
    until("readiness", async || herald.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    world.merchants.assert_sound();
    assert!(herald.stop().await.success());
}

/// They share a few connections, so one that fails is felt by all of them, and made again once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_share_connections_and_all_of_them_go_on_once_these_were_cut() {
    let world = World::new().await;
    split(&world).await;
    let accounts = world.register_many(16).await;
    let herald = world.setup().start();
    until_all_are_owned(&herald).await;
    let events = lives(8, &accounts, 600);
    let (before, after) = events.split_at(300);
    publish(&world, before).await;
    world.merchants.until_delivered(before.len()).await;
    let clients: String = world.redis.command(&["CLIENT", "LIST", "TYPE", "normal"]).await;
    let of_partitions = clients.lines().filter(|line| {
        ["evalsha", "hget", "client|tracking"].iter().any(|command| line.contains(&format!(" cmd={command} ")))
    });
    assert!(of_partitions.count() < PARTS as usize, "{clients}");
    let _: u64 = world.redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    publish(&world, after).await;
    world.merchants.until_delivered(events.len()).await;
    until_all_are_owned(&herald).await;
    world.merchants.assert_sound();
    let (_, page) = herald.get("/metrics").unwrap();
    let terms = page.lines().filter(|line| line.starts_with("herald_lease_terms_total{") && line.ends_with(" 2"));
    assert!(terms.count() >= PARTS as usize, "what is known by a connection ends with it: {page}");
    assert!(herald.stop().await.success());
}

/// What Redis is asked by partitions in which nothing happens: hundreds of them have to be cheap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_partition_asks_redis_at_most_twice_a_second() {
    const QUIET: Duration = Duration::from_secs(16);
    const WATCHED: Duration = Duration::from_secs(10);
    let world = World::new().await;
    split(&world).await;
    let accounts = world.register_many(16).await;
    let herald = world.setup().env("HERALD_LEASE", "5s").start();
    until_all_are_owned(&herald).await;
    let events = lives(9, &accounts, 250);
    let (early, late) = events.split_at(200);
    publish(&world, early).await;
    world.merchants.until_delivered(early.len()).await;
    tokio::time::sleep(QUIET).await;
    let _: String = world.redis.command(&["CONFIG", "RESETSTAT"]).await;
    let began = std::time::Instant::now();
    tokio::time::sleep(WATCHED).await;
    let stats: String = world.redis.command(&["INFO", "commandstats"]).await;
    // Each script is asked for alone; the numbers are one question with an INFO in it. The registry, which has an HLEN in its
    // own, is followed once by the process.
    let mut asked = 0;
    for command in ["evalsha", "evalsha_ro", "info"] {
        asked += world.calls(command).await;
    }
    asked -= world.calls("hlen").await;
    // Whoever passes entries on looks for them four times a second, whatever wakes it, and trims once.
    let router = 5.0;
    let each = (asked as f64 / began.elapsed().as_secs_f64() - router) / f64::from(STREAMS);
    assert!(each <= 2.0, "{each:.2} questions a second and partition: {stats}");
    // And it hears of everything as soon as ever.
    publish(&world, late).await;
    world.merchants.until_delivered(events.len()).await;
    assert!(herald.stop().await.success());
}

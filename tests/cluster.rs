//! Herald on a real Redis Cluster: what it does on one server, it does there; a master that dies and a slot that moves cost it a
//! pause and nothing else.

// A test waits for other processes.
#![allow(clippy::disallowed_methods)]

#[path = "cluster/doctor.rs"]
mod doctor;
#[path = "cluster/failovers.rs"]
mod failovers;
#[path = "support/merchants.rs"]
mod merchants;
#[path = "cluster/partitions.rs"]
mod partitions;
#[path = "support/herald.rs"]
mod process;
#[path = "cluster/registry.rs"]
mod registry;
#[path = "cluster/routing.rs"]
mod routing;
#[path = "cluster/sentinels.rs"]
mod sentinels;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "ops/stage.rs"]
mod stage;
#[path = "support/mod.rs"]
mod support;
#[path = "cluster/workers.rs"]
mod workers;
#[path = "support/world.rs"]
mod world;

use std::{
    process::{Command, Output},
    time::Duration,
};

use bytes::Bytes;
use herald::{
    facts::{
        endpoint::Endpoint,
        id::{AccountId, EndpointId, EntryId},
        partition::Slot,
        signing::SecretText,
    },
    owned::{MASTERS, OwnCluster},
    store::{
        acl::{Role, rule},
        connection::{Purpose, Redis},
        entries::Entries,
        error::StoreError,
        keys::{PartitionKeys, RegistryKeys},
        queries::Queries,
        registry::RegistryStore,
    },
};
use redis::{FromRedisValue, RedisResult, aio::MultiplexedConnection};
use serde_json::Value;

use crate::{
    merchants::{Merchants, Reply},
    process::{Herald, Setup, free_address},
    support::{soon, until},
    world::{Event, PREFIX, STREAM, lives, mark},
};

/// A Cluster and merchants. Herald is started by the test.
struct Town {
    cluster: OwnCluster,
    merchants: Merchants,
}

/// One that a person could have given.
fn secret() -> SecretText {
    SecretText::from_random(std::array::from_fn(|n| n as u8))
}

fn slot() -> u16 {
    Slot::of_key(STREAM.as_bytes()).number()
}

impl Town {
    async fn new() -> Self {
        let cluster = OwnCluster::start().await.expect("a Redis Cluster starts");
        Self { cluster, merchants: Merchants::start(secret().reveal()).await }
    }

    /// As the user that is printed for it, on each node.
    async fn setup(&self) -> Setup {
        for node in 0..self.cluster.nodes().len() {
            self.let_in(node).await;
        }
        Setup::new(&self.cluster.url_of_all().replace("://", "://herald:secret@"))
    }

    async fn let_in(&self, node: usize) {
        let rule = rule(&PartitionKeys::new(STREAM).unwrap(), Role::Worker).replace(">PASSWORD", ">secret");
        self.ask::<()>(node, &rule.split(' ').collect::<Vec<_>>()).await;
    }

    async fn register_many(&self, count: usize) -> Vec<String> {
        let redis = Redis::new(&self.cluster.url_of_all()).unwrap();
        let mut registry = RegistryStore::connect(&redis).await.unwrap();
        let mut accounts = Vec::new();
        for n in 0..count {
            let (name, account) = (format!("ep_{n}"), format!("acc_{n}"));
            let (id, of) = (EndpointId::new(&name).unwrap(), AccountId::new(&account).unwrap());
            let endpoint = Endpoint::new(id, of, self.merchants.url(&name), secret(), 1);
            registry.create(endpoint, &mark()).await.unwrap();
            accounts.push(account);
        }
        self.until_replicated(RegistryKeys::slot().number(), "herald:{herald}:waited-for").await;
        accounts
    }

    /// A replica of the node that serves this slot has all that was written there.
    async fn until_replicated(&self, slot: u16, key: &str) {
        let node = self.cluster.master_of(slot).await.unwrap();
        let mut connection = self.connection(node).await.unwrap();
        redis::pipe().set(key, 1).del(key).exec_async(&mut connection).await.unwrap();
        until("a replica to have it", async || {
            let wait = redis::cmd("WAIT").arg(1).arg(1_000).to_owned();
            wait.query_async::<u64>(&mut connection.clone()).await.unwrap() > 0
        })
        .await;
    }

    /// To one node of the Cluster. It is no client of a Cluster.
    async fn connection(&self, node: usize) -> RedisResult<MultiplexedConnection> {
        let config = redis::AsyncConnectionConfig::new()
            .set_response_timeout(Some(Duration::from_secs(5)))
            .set_connection_timeout(Some(Duration::from_secs(1)));
        let client = redis::Client::open(self.cluster.nodes()[node].url())?;
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    async fn ask<T: FromRedisValue>(&self, node: usize, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let mut connection = self.connection(node).await.unwrap();
        command.query_async(&mut connection).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Of the node that has the stream.
    async fn ask_home<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let home = self.cluster.master_of(slot()).await.expect("the stream's slot is served");
        self.ask(home, words).await
    }

    /// As a careful producer does: to the node that has the stream, and again until so many replicas have it too.
    async fn publish(&self, events: &[Event], replicas: u64) {
        for part in events.chunks(50) {
            soon("events to be kept", async {
                while self.publish_once(part, replicas).await.is_none() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
            .await;
        }
    }

    async fn publish_once(&self, events: &[Event], replicas: u64) -> Option<()> {
        let mut connection = self.connection(self.cluster.master_of(slot()).await?).await.ok()?;
        let mut pipeline = redis::pipe();
        for event in events {
            pipeline.cmd("XADD").arg(STREAM).arg("*").arg("event").arg(&event.body).ignore();
        }
        pipeline.cmd("WAIT").arg(replicas).arg(1000);
        let (have,): (u64,) = pipeline.query_async(&mut connection).await.ok()?;
        (have >= replicas).then_some(())
    }

    /// Nothing is unfinished: the stream read, acknowledged and trimmed, and no record left.
    async fn until_finished(&self) {
        until("everything to be finished", async || {
            let left: u64 = self.ask_home(&["XLEN", STREAM]).await;
            let pattern = format!("{}*", PREFIX.replace('{', "[{]").replace('}', "[}]"));
            let keys: Vec<String> = self.ask_home(&["KEYS", &pattern]).await;
            let parts = ["delivery:", "due", "claimed", "singles:", "heads:", "held:", "backlog:", "unfinished"];
            let is_left = |key: &String| parts.iter().any(|part| key[PREFIX.len()..].starts_with(part));
            left == 0 && !keys.iter().any(is_left)
        })
        .await;
    }

    fn verb(&self, url: &str, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.env_clear().env("USER", "ops").args(["--redis-url", url, "--set", "history.url="]);
        command.env("HERALD_ALLOW_HTTP", "true").env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8");
        command.env("HERALD_SANDBOX", "true").args(words).output().unwrap()
    }

    /// What a verb says, by way of one node.
    fn done(&self, words: &[&str]) -> String {
        let output = self.verb(&self.cluster.url(), words);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }
}

fn json(said: &str) -> Value {
    serde_json::from_str(said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster_everything_is_done_as_on_one_server() {
    let town = Town::new().await;
    let registry = town.cluster.master_of(RegistryKeys::slot().number()).await;
    assert_ne!(registry, town.cluster.master_of(slot()).await, "the test needs the two on different nodes");
    let intents = free_address().to_string();
    // Any node leads to all.
    let setup = Setup::new(&town.cluster.url()).env("HERALD_RETRY_MAX_ATTEMPTS", "2");
    let herald = setup.env("HERALD_INTENTS_LISTEN", &intents).env("HERALD_SANDBOX", "true").start();
    let key = herald.folder().join("key");
    std::fs::write(&key, secret().reveal()).unwrap();
    for n in 0..2 {
        let (id, account, url) = (format!("ep_{n}"), format!("acc_{n}"), town.merchants.url(&format!("ep_{n}")));
        let words = ["endpoint", "create", "--id", &id, "--account", &account, "--url", &url, "--secret-file"];
        town.done(&[&words[..], &[key.to_str().unwrap()]].concat());
    }
    herald.until_owner().await;

    // One is delivered at once, one at the second attempt, two never.
    town.merchants.rule("ep_0", |arrival| match (arrival.intent.as_str(), arrival.attempt) {
        ("pi_late", 1) | ("pi_never" | "pi_never_again", _) => Reply::status(500),
        _ => Reply::OK,
    });
    let event = |(number, intent): (usize, &str)| Event::new(number, "acc_0", intent, "Captured");
    let events: Vec<Event> =
        ["pi_good", "pi_late", "pi_never", "pi_never_again"].into_iter().enumerate().map(event).collect();
    town.publish(&events, 1).await;
    town.merchants.until_delivered(2).await;
    let letters = || json(&town.done(&["dead-letter", "list", "-o", "json"]));
    until("two dead letters", async || {
        let said = letters().to_string();
        said.contains("\"pi_never\"") && said.contains("\"pi_never_again\"")
    })
    .await;
    town.merchants.heal("ep_0");
    town.merchants.rule("ep_0", |_| Reply::OK);
    let why = ["--intent", "pi_never_again", "--reason", "mended", "-o", "json"];
    let planned = json(&town.done(&[&["operation", "plan", "redeliver"][..], &why].concat()));
    town.done(&["operation", "start", planned["id"].as_str().unwrap(), "--watch"]);
    town.merchants.until_delivered(3).await;
    town.done(&["dead-letter", "redeliver", "--endpoint", "ep_0", "--yes", "--reason", "mended"]);
    town.merchants.until_delivered(4).await;

    // A merchant's intent is kept beside the stream, and its event leaves with it.
    let made = json(&town.done(&["trigger", "--account", "acc_1", "-o", "json"]));
    town.merchants.until("the event of an intent", |log| log.delivered_to("ep_1") >= 1).await;
    let key = json(&town.done(&["intents", "key", "create", "--account", "acc_1", "-o", "json"]));
    let intent = made["intent"]["id"].as_str().unwrap_or_else(|| panic!("{made}"));
    herald::tls::install_crypto_provider();
    let ask = reqwest::Client::new().get(format!("http://{intents}/payment-intents/{intent}"));
    let ask = ask.header("authorization", format!("Basic {}", key["key"].as_str().unwrap()));
    let answer = ask.header("version", "2025-09-10").send().await.unwrap();
    assert_eq!(answer.status(), 200, "{answer:?}");

    let list = json(&town.done(&["delivery", "list", "--event", &events[1].id, "-o", "json"]));
    let delivery = list[0]["id"].as_str().unwrap_or_else(|| panic!("{list}")).to_owned();
    for words in [
        &["endpoint", "list"][..],
        &["endpoint", "show", "ep_0"],
        &["endpoint", "pause", "ep_1", "--reason", "deploys"],
        &["endpoint", "resume", "ep_1", "--reason", "deployed"],
        &["endpoint", "rotate-secret", "ep_1", "--reason", "yearly"],
        &["endpoint", "update", "ep_1", "--max-in-flight", "2", "--reason", "small"],
        &["pause", "--all", "--reason", "incident"],
        &["resume", "--all", "--reason", "over"],
        &["event", "publish", "--sample", "--account", "acc_0"],
        &["delivery", "show", &delivery],
        &["chain", "list", "--endpoint", "ep_0"],
        &["dead-letter", "list", "--group-by", "endpoint,cause"],
        &["quarantine", "list"],
        &["operation", "list"],
        &["issue", "list", "--all"],
        &["token", "create", "--role", "viewer", "--name", "grafana"],
        &["token", "list"],
        &["intents", "key", "list", "--account", "acc_1"],
        &["sandbox", "clock", "show"],
        &["key", "status"],
        &["endpoint", "export"],
        &["audit", "list"],
        &["endpoint", "disable", "ep_1", "--yes", "--reason", "closed"],
        &["endpoint", "delete", "ep_1", "--yes", "--reason", "left"],
    ] {
        town.done(words);
    }
    // The ids of the intents' events say nothing of their order.
    assert_eq!(town.merchants.log().faults, Vec::<String>::new());
    let doctor = town.verb(&town.cluster.url(), &["doctor", "-o", "table"]);
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert!(said.starts_with("No problem"), "{said}{}", String::from_utf8_lossy(&doctor.stderr));
    town.until_finished().await;
    assert_eq!(herald.metric("herald_lease_terms_total"), 1.0, "nothing has failed");
    assert!(herald.stop().await.success());
}

/// What a worker does for what is published, with merchants of whom some fail at first.
async fn busy(town: &Town) -> (Herald, Vec<Event>) {
    let events = busy_merchants(town).await;
    let herald = town.setup().await.start();
    herald.until_owner().await;
    (herald, events)
}

async fn busy_merchants(town: &Town) -> Vec<Event> {
    let accounts = town.register_many(8).await;
    for n in 0..3 {
        town.merchants.rule(&format!("ep_{n}"), |arrival| {
            let is_unlucky = arrival.event.ends_with(['3', '7']) && arrival.attempt == 1;
            if is_unlucky { Reply::status(500) } else { Reply::OK.after(Duration::from_millis(3)) }
        });
    }
    lives(31, &accounts, 1_500)
}

/// Kills the master of the stream, until another one has its place.
async fn fail_over(town: &mut Town) {
    let dies = town.cluster.master_of(slot()).await.expect("the stream's slot is served");
    town.cluster.node(dies).kill().await.unwrap();
    until("another to serve the stream", async || town.cluster.master_of(slot()).await.is_some_and(|at| at != dies))
        .await;
}

async fn come_back(town: &mut Town, node: usize) {
    town.cluster.node(node).start_again().await.unwrap();
    // It has forgotten its users.
    town.let_in(node).await;
    until("a replica again", async || {
        let said: String = town.ask(node, &["INFO", "replication"]).await;
        said.contains("role:slave") && said.contains("master_link_status:up")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_dies_costs_a_pause_and_no_event() {
    let mut town = Town::new().await;
    let (herald, events) = busy(&town).await;
    let parts: Vec<&[Event]> = events.chunks(events.len() / MASTERS).collect();
    for (number, part) in parts.into_iter().enumerate() {
        let (before, after) = part.split_at(part.len() / 2);
        town.publish(before, 1).await;
        town.cluster.node(number).kill().await.unwrap();
        let any_slot = number as u16 * 2731;
        until("another to serve its slots", async || town.cluster.master_of(any_slot).await == Some(number + MASTERS))
            .await;
        // The new master has no replica until the old one is back.
        town.publish(after, 0).await;
        let published = part.as_ptr() as usize - events.as_ptr() as usize;
        let published = published / size_of::<Event>() + part.len();
        town.merchants.until_delivered(published).await;
        come_back(&mut town, number).await;
    }
    town.until_finished().await;
    town.merchants.assert_sound();
    println!(
        "{} repeated arrivals, {} terms",
        town.merchants.log().duplicates(),
        herald.metric("herald_lease_terms_total")
    );
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_s_master_and_its_owner_may_die_together() {
    let mut town = Town::new().await;
    let events = busy_merchants(&town).await;
    let setup = town.setup().await;
    let mut workers = vec![setup.start(), setup.start()];
    let owner = async |workers: &[Herald]| {
        let owned = |worker: &Herald| worker.metric("herald_partition_owner") == 1.0;
        soon("an owner", async {
            loop {
                match workers.iter().position(owned) {
                    Some(number) => return number,
                    None => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await
    };
    owner(&workers).await;

    // One owns the stream and one waits for it, and none of them ends.
    let (first, second) = events.split_at(events.len() / 2);
    let (before, after) = first.split_at(first.len() / 2);
    let home = town.cluster.master_of(slot()).await.unwrap();
    town.publish(before, 1).await;
    fail_over(&mut town).await;
    town.publish(after, 0).await;
    town.merchants.until_delivered(first.len()).await;
    come_back(&mut town, home).await;

    // Whoever takes the stream knows nothing of what the owner before it has sent.
    let (before, after) = second.split_at(second.len() / 2);
    town.publish(before, 1).await;
    let owner = workers.swap_remove(owner(&workers).await);
    let dies = town.cluster.master_of(slot()).await.unwrap();
    owner.signal(nix::sys::signal::Signal::SIGKILL);
    fail_over(&mut town).await;
    town.publish(after, 0).await;
    town.merchants.until_delivered(events.len()).await;
    come_back(&mut town, dies).await;
    town.until_finished().await;
    town.merchants.assert_sound();
    assert_eq!(workers[0].metric("herald_partition_owner"), 1.0);
    assert!(workers.remove(0).stop().await.success());
}

/// The guard knows what the URL names, and what was found by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_endpoint_leads_to_a_node_that_the_url_does_not_name() {
    let town = Town::new().await;
    let mut registry = RegistryStore::connect(&Redis::new(&town.cluster.url()).unwrap()).await.unwrap();
    let mut events = Vec::new();
    for (n, node) in town.cluster.nodes().iter().enumerate() {
        let (id, of) = (EndpointId::new(&format!("ep_{n}")).unwrap(), AccountId::new(&format!("acc_{n}")).unwrap());
        let endpoint = Endpoint::new(id, of, format!("http://{}/hook", node.address()), secret(), 1);
        registry.create(endpoint, &mark()).await.unwrap();
        events.push(Event::new(n, &format!("acc_{n}"), "pi_1", "Captured"));
    }
    // A replica is told of once it has something of its master's.
    until("all nodes to be told of", async || {
        let told = format!("{:?}", town.ask::<redis::Value>(0, &["CLUSTER", "SLOTS"]).await);
        town.cluster.nodes().iter().all(|node| told.contains(&format!("int({})", node.address().port())))
    })
    .await;
    let herald = Setup::new(&town.cluster.url()).env("HERALD_RETRY_MAX_ATTEMPTS", "1").start();
    herald.until_owner().await;
    town.publish(&events, 1).await;
    let letters = || json(&town.done(&["dead-letter", "list", "-o", "json"]));
    until("what is for a node to be given up", async || {
        letters().as_array().is_some_and(|all| all.len() == events.len())
    })
    .await;
    let letters = letters();
    assert!(letters.as_array().unwrap().iter().all(|letter| letter["cause"] == "address_refused"), "{letters}");
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_under_load_costs_a_pause_and_nothing_is_sent_twice() {
    let town = Town::new().await;
    let (herald, events) = busy(&town).await;
    let home = town.cluster.master_of(slot()).await.unwrap();
    let elsewhere = (home + 1) % MASTERS;
    // What waits for it is there to be moved.
    town.merchants.rule("ep_7", |_| Reply::status(500));
    let publishing = async {
        for part in events.chunks(100) {
            publish_following(&town, part).await;
        }
    };
    let moving = async {
        town.merchants.until_delivered(200).await;
        assert!(move_slot(&town, home, elsewhere).await > 20, "there was nothing to move");
        town.merchants.until_delivered(700).await;
        move_slot(&town, elsewhere, home).await;
        town.merchants.heal("ep_7");
    };
    tokio::join!(publishing, moving);
    town.merchants.until_delivered(events.len()).await;
    town.until_finished().await;
    town.merchants.assert_sound();
    assert!(herald.metric("herald_lease_terms_total") > 1.0, "the slot's move was not seen");
    assert!(!herald.log().contains("non local key"), "a script has run on a part of its keys");
    let attempts: usize = town.merchants.log().arrivals.iter().filter(|arrival| arrival.earlier > 0).count();
    let retries = town.merchants.log().arrivals.iter().filter(|arrival| arrival.attempt > 1).count();
    assert_eq!(attempts, retries, "something was sent twice that was not retried");
    assert!(herald.stop().await.success());
}

/// What a connection's user knows of its partition was true of its node: another one may lack the last moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_does_not_follow_its_home_to_another_node() {
    let town = Town::new().await;
    let (redis, keys) = (Redis::new(&town.cluster.url_of_all()).unwrap(), PartitionKeys::new(STREAM).unwrap());
    let connect = async |slot: Slot| {
        let connection = redis.at_home_in(slot).connect(Purpose::Other).await.unwrap();
        Queries::new(connection, keys.clone())
    };
    let (mut own, mut guest) = (connect(keys.slot()).await, connect(RegistryKeys::slot()).await);
    let home = town.cluster.master_of(slot()).await.unwrap();
    town.ask::<()>(home, &["SET", &keys.lease(), "term owner"]).await;
    for queries in [&mut own, &mut guest] {
        assert_eq!(queries.lease().await.unwrap().unwrap().owner, "owner");
    }
    move_slot(&town, home, (home + 1) % MASTERS).await;
    // Whoever is a guest in the slot is told that it has moved, and then asks where it is.
    assert!(matches!(guest.lease().await, Err(StoreError::Unavailable { .. })));
    until("the slot to be found", async || guest.lease().await.is_ok()).await;
    for _ in 0..2 {
        assert!(matches!(own.lease().await, Err(StoreError::Unavailable { .. })));
    }
    assert!(connect(keys.slot()).await.lease().await.unwrap().is_some());
}

/// A producer that adds a batch in one step hears so, and does not ask the same node for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_refused_because_its_slot_has_moved_finds_its_new_node() {
    let town = Town::new().await;
    let (redis, keys) = (Redis::new(&town.cluster.url_of_all()).unwrap(), PartitionKeys::new(STREAM).unwrap());
    let redis = redis.at_home_in(keys.slot());
    let connect = async || Entries::new(redis.connect(Purpose::Produce).await.unwrap(), keys.clone());
    let bodies = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
    let mut entries = connect().await;
    assert_eq!(entries.add_all(&bodies).await.unwrap().len(), 2);
    assert!(entries.are_on(1, Duration::from_secs(30)).await.unwrap());
    let home = town.cluster.master_of(slot()).await.unwrap();
    town.cluster.move_slot(slot(), home, (home + 1) % MASTERS).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(entries.add_all(&bodies).await, Err(StoreError::Unavailable { .. })));
    }
    // What Herald knows of the nodes is looked up anew because of the refusal alone.
    until("the batch to be taken", async || connect().await.add_all(&bodies).await.is_ok()).await;
    assert_eq!(connect().await.after(EntryId::ZERO, 10).await.unwrap().len(), 4);
    // A master without a replica confirms nothing.
    let mut town = town;
    let (master, replica) = ((home + 1) % MASTERS, (home + 1) % MASTERS + MASTERS);
    town.cluster.node(replica).kill().await.unwrap();
    until("the replica to be missed", async || {
        let mut entries = connect().await;
        entries.add_all(&bodies).await.is_ok() && !entries.are_on(1, Duration::from_millis(50)).await.unwrap()
    })
    .await;
    assert_eq!(town.cluster.master_of(slot()).await, Some(master));
}

/// As a client of a Cluster does: what was refused because its slot is elsewhere was not done, and is asked for there.
async fn publish_following(town: &Town, events: &[Event]) {
    for event in events {
        soon("an event to be taken", async {
            let mut at = town.cluster.master_of(slot()).await.expect("somebody serves the stream");
            let mut is_asking = false;
            loop {
                let mut pipeline = redis::pipe();
                if is_asking {
                    pipeline.cmd("ASKING").ignore();
                }
                pipeline.cmd("XADD").arg(STREAM).arg("*").arg("event").arg(&event.body).ignore();
                let done = pipeline.query_async::<()>(&mut town.connection(at).await.unwrap()).await;
                let Err(error) = done else { return };
                let code = error.code().map(str::to_owned).unwrap_or_default();
                let said = error.to_string();
                let node = |node: &herald::owned::OwnRedis| said.contains(&node.address().to_string());
                match town.cluster.nodes().iter().position(node) {
                    Some(node) => (at, is_asking) = (node, code == "ASK" || said.contains("ASK ")),
                    None => assert!(said.to_uppercase().contains("TRYAGAIN"), "{error:?}"),
                }
            }
        })
        .await;
    }
}

/// As `redis-cli --cluster reshard` does, key by key.
async fn move_slot(town: &Town, from: usize, to: usize) -> usize {
    let number = slot().to_string();
    let id = async |node: usize| town.ask::<String>(node, &["CLUSTER", "MYID"]).await;
    let (source, target) = (id(from).await, id(to).await);
    town.ask::<()>(to, &["CLUSTER", "SETSLOT", &number, "IMPORTING", &source]).await;
    town.ask::<()>(from, &["CLUSTER", "SETSLOT", &number, "MIGRATING", &target]).await;
    let port = town.cluster.nodes()[to].address().port().to_string();
    let mut moved = 0;
    loop {
        let keys: Vec<String> = town.ask(from, &["CLUSTER", "GETKEYSINSLOT", &number, "1"]).await;
        if keys.is_empty() {
            break;
        }
        moved += keys.len();
        let words = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        town.ask::<String>(from, &[&words[..], &keys].concat()).await;
    }
    for node in [to, from].into_iter().chain((0..MASTERS).filter(|node| *node != to && *node != from)) {
        town.ask::<()>(node, &["CLUSTER", "SETSLOT", &number, "NODE", &target]).await;
    }
    moved
}

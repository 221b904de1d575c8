//! Masters that die without their last moment, or freeze and are replaced.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use herald::{
    owned::MASTERS,
    store::{
        connection::{Purpose, Redis},
        error::StoreError,
        keys::PartitionKeys,
        queries::Queries,
    },
};

use crate::{
    Reply, Town, lives, slot,
    support::{soon, until},
    world::{Event, STREAM},
};

const ELSEWHERE: &str = "another node serves it by now";

impl Town {
    /// The replica of this master is as it is now, whatever the master does from now on.
    async fn hold_back(&self, master: usize) {
        let replica = master + MASTERS;
        self.ask::<()>(replica, &["CONFIG", "SET", "masteruser", "nobody", "masterauth", "wrong"]).await;
        self.ask::<u64>(master, &["CLIENT", "KILL", "TYPE", "replica"]).await;
        until("the replica to be alone", async || {
            self.ask::<String>(replica, &["INFO", "replication"]).await.contains("master_link_status:down")
        })
        .await;
    }

    async fn letters(&self) -> usize {
        self.ask_home(&["ZCARD", &PartitionKeys::new(STREAM).unwrap().dead()]).await
    }

    async fn until_master(&self, node: usize) {
        until("the replica to be the master", async || {
            self.ask::<String>(node, &["INFO", "replication"]).await.contains("role:master")
        })
        .await;
    }

    /// What each merchant was asked to take, and how often.
    fn arrivals(&self) -> HashMap<(String, String, u32), usize> {
        let mut counts = HashMap::new();
        for arrival in &self.merchants.log().arrivals {
            let attempt = (arrival.endpoint.clone(), arrival.event.clone(), arrival.attempt);
            *counts.entry(attempt).or_default() += 1;
        }
        counts
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_settled_in_a_lost_moment_is_not_sent_twice_by_the_same_owner() {
    let mut town = Town::new().await;
    let accounts = town.register_many(4).await;
    let is_refused = |event: &str| event.ends_with('5');
    // Some are delivered at once, some by their second attempt, and some never.
    town.merchants.rule("ep_1", |arrival| if arrival.attempt == 1 { Reply::status(500) } else { Reply::OK });
    town.merchants.rule("ep_2", move |arrival| if is_refused(&arrival.event) { Reply::status(500) } else { Reply::OK });
    let setup = town.setup().await.env("HERALD_RETRY_MAX_ATTEMPTS", "2").env("HERALD_RETRY_INITIAL", "100ms");
    let herald = setup.start();
    herald.until_owner().await;
    let home = town.cluster.master_of(slot()).await.unwrap();
    let events = lives(71, &accounts, 160);
    let never = events.iter().filter(|event| event.account == "acc_2" && is_refused(&event.id)).count();
    assert!(never > 0 && never < events.len());
    town.done(&["pause", "--all", "--reason", "incident"]);
    town.publish(&events, 1).await;

    town.hold_back(home).await;
    town.done(&["resume", "--all", "--reason", "over"]);
    town.merchants.until_delivered(events.len() - never).await;
    until("letters", async || town.letters().await == never).await;
    town.until_finished().await;
    let before = town.arrivals();
    town.cluster.node(home).kill().await.unwrap();
    until("the replica to have its place", async || town.cluster.master_of(slot()).await == Some(home + MASTERS)).await;

    // The slot has gone back as a whole: none of it was delivered, and there is no letter. All of it comes again, and is known.
    town.until_finished().await;
    until("the letters to be there again", async || town.letters().await == never).await;
    assert_eq!(town.arrivals(), before, "what was settled is sent again");
    assert!(before.values().all(|count| *count == 1), "{before:?}");

    // A redelivery is sent, and so is what is new.
    town.merchants.heal("ep_2");
    town.merchants.rule("ep_2", |_| Reply::OK);
    town.done(&["dead-letter", "redeliver", "--endpoint", "ep_2", "--yes", "--reason", "mended"]);
    let more: Vec<Event> =
        accounts.iter().enumerate().map(|(n, account)| Event::new(9_000 + n, account, "pi_new", "Captured")).collect();
    town.publish(&more, 0).await;
    town.merchants.until_delivered(events.len() + more.len()).await;
    until("no letter", async || town.letters().await == 0).await;
    assert!(herald.stop().await.success());
}

/// Nobody answers for ten minutes: whatever ends the wait is what the Cluster says.
const FOR_EVER: Purpose = Purpose::Lease(Duration::from_secs(600));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_frozen_master_that_was_replaced_and_everybody_for_a_slow_one() {
    let mut town = Town::new().await;
    let (redis, keys) = (Redis::new(&town.cluster.url_of_all()).unwrap(), PartitionKeys::new(STREAM).unwrap());
    let redis = redis.at_home_in(keys.slot());
    let connect = async || Queries::new(redis.connect(FOR_EVER).await.unwrap(), keys.clone());
    let home = town.cluster.master_of(slot()).await.unwrap();
    let mut queries = connect().await;
    assert!(queries.lease().await.unwrap().is_none());

    // The others do not replace it: it is only slow.
    let patience = async |town: &Town, ms: &str| {
        for node in 0..town.cluster.nodes().len() {
            town.ask::<()>(node, &["CONFIG", "SET", "cluster-node-timeout", ms]).await;
        }
    };
    patience(&town, "600000").await;
    town.cluster.node(home).pause().unwrap();
    let mut slow = tokio::spawn(async move {
        let said = queries.lease().await;
        (queries, said)
    });
    let is_early = tokio::time::timeout(Duration::from_secs(4), &mut slow).await;
    assert!(is_early.is_err(), "{:?}", is_early.unwrap().unwrap().1);
    town.cluster.node(home).resume().unwrap();
    let (mut queries, said) = soon("the slow one to answer", slow).await.unwrap();
    assert!(said.unwrap().is_none());
    patience(&town, "1000").await;

    // And now they do.
    town.cluster.node(home).pause().unwrap();
    let replica = home + MASTERS;
    let error = soon("the wait to end", queries.lease()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }) && error.to_string().contains(ELSEWHERE), "{error}");
    assert!(town.ask::<String>(replica, &["INFO", "replication"]).await.contains("role:master"));
    assert!(soon("another connection", async { connect().await.lease().await }).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_go_on_as_soon_as_a_frozen_master_is_replaced() {
    /// What a worker waits for its Redis by itself, and a moment for it to be told of.
    const BY_ITSELF: Duration = Duration::from_millis(4_500);
    let mut town = Town::new().await;
    let accounts = town.register_many(4).await;
    // Its lease is not over before that.
    let herald = town.setup().await.env("HERALD_LEASE", "60s").start();
    herald.until_owner().await;
    let events = lives(73, &accounts, 80);
    let (before, after) = events.split_at(40);
    town.publish(before, 1).await;
    town.merchants.until_delivered(before.len()).await;
    let home = town.cluster.master_of(slot()).await.unwrap();
    let frozen = Instant::now();
    town.cluster.node(home).pause().unwrap();
    let replica = home + MASTERS;
    town.until_master(replica).await;
    let replaced = frozen.elapsed();
    for event in after {
        town.ask::<String>(replica, &["XADD", STREAM, "*", "event", &event.body]).await;
    }
    town.merchants.until_delivered(events.len()).await;
    town.merchants.assert_sound();
    println!("replaced after {replaced:?}, delivered after {:?}", frozen.elapsed());
    // Where the Cluster itself took longer, the worker may have given up before.
    if replaced < BY_ITSELF {
        assert!(herald.log().contains(ELSEWHERE), "its worker waited for the frozen one: {}", herald.log());
    }
    town.cluster.node(home).resume().unwrap();
    assert!(herald.stop().await.success());
}

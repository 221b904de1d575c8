//! Workers that share the parts of a stream whose nodes change, or are gone.

use std::collections::BTreeMap;

use herald::{
    facts::partition::part_of,
    owned::MASTERS,
    store::keys::{PartitionKeys, RegistryKeys},
};

use crate::{
    Town,
    process::Setup,
    slot,
    support::until,
    world::{STREAM, lives},
};

const PARTS: u32 = 16;

async fn worker(town: &Town, name: &str) -> Setup {
    town.setup().await.env("HERALD_PARTITIONS", &PARTS.to_string()).env("HERALD_WORKER", name)
}

fn keys(part: u32) -> PartitionKeys {
    PartitionKeys::new(&part_of(STREAM, part)).unwrap()
}

/// The term and its owner, of each of these parts that has one: they must be served.
async fn leases(town: &Town, parts: &[u32]) -> BTreeMap<u32, (String, String)> {
    let mut leases = BTreeMap::new();
    for part in parts {
        let keys = keys(*part);
        let Some(node) = town.cluster.master_of(keys.slot().number()).await else { continue };
        let value: Option<String> = town.ask(node, &["GET", &keys.lease()]).await;
        let value = value.as_deref().and_then(|value| value.split_once(' '));
        if let Some((term, owner)) = value {
            let owner = owner.split(' ').next().unwrap_or_default();
            leases.insert(*part, (term.to_owned(), owner.to_owned()));
        }
    }
    leases
}

async fn until_owned_by(town: &Town, parts: &[u32], owners: &[&str]) {
    until(&format!("{owners:?} to have {parts:?}"), async || {
        let leases = leases(town, parts).await;
        let has_some = |owner: &&str| leases.values().any(|(_, by)| by == owner);
        leases.len() == parts.len()
            && leases.values().all(|(_, by)| owners.contains(&by.as_str()))
            && owners.iter().all(has_some)
    })
    .await;
}

/// The parts by the nodes that serve them.
async fn parts_of_nodes(town: &Town) -> BTreeMap<usize, Vec<u32>> {
    let mut nodes = BTreeMap::<usize, Vec<u32>>::new();
    for part in 0..PARTS {
        nodes.entry(town.cluster.master_of(keys(part).slot().number()).await.unwrap()).or_default().push(part);
    }
    nodes
}

/// They share a connection to it, and each of them must hear that what they relied on is another server now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_of_a_worker_begins_a_new_term_where_its_node_is_replaced() {
    let town = Town::new().await;
    let accounts = town.register_many(12).await;
    let all: Vec<u32> = (0..PARTS).collect();
    let herald = worker(&town, "one").await.start();
    until_owned_by(&town, &all, &["one"]).await;
    let events = lives(51, &accounts, 1_200);
    let (before, after) = events.split_at(events.len() / 2);
    town.publish(before, 1).await;
    let nodes = parts_of_nodes(&town).await;
    let (home, registry) =
        (town.cluster.master_of(slot()).await, town.cluster.master_of(RegistryKeys::slot().number()).await);
    let is_apart = |node: &usize| Some(*node) != home && Some(*node) != registry;
    let (node, parts) =
        nodes.into_iter().filter(|(node, _)| is_apart(node)).max_by_key(|(_, parts)| parts.len()).unwrap();
    assert!(parts.len() > 1, "this proves nothing: {parts:?}");
    let terms = leases(&town, &parts).await;
    town.merchants.until_delivered(before.len()).await;
    // No connection breaks, and nobody waits for it: the node only serves these slots no more.
    town.ask::<String>(node + MASTERS, &["CLUSTER", "FAILOVER", "TAKEOVER"]).await;
    until("its replica to have its place", async || {
        town.cluster.master_of(keys(parts[0]).slot().number()).await == Some(node + MASTERS)
    })
    .await;
    until("new terms", async || {
        let now = leases(&town, &parts).await;
        parts.iter().all(|part| now.get(part).is_some_and(|(term, _)| *term != terms[part].0))
    })
    .await;
    town.publish(after, 0).await;
    town.merchants.until_delivered(events.len()).await;
    town.merchants.assert_sound();
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_registry_s_node_what_a_dead_worker_had_is_taken_by_others() {
    let mut town = Town::new().await;
    town.register_many(12).await;
    let all: Vec<u32> = (0..PARTS).collect();
    let one = worker(&town, "one").await.start();
    let two = worker(&town, "two").await.start();
    until("an even load", async || {
        let leases = leases(&town, &all).await;
        let of_one = leases.values().filter(|(_, by)| by == "one").count();
        // The stream above them is one of them, too.
        leases.len() == all.len() && of_one.abs_diff(all.len() - of_one) <= 2
    })
    .await;
    let registry = town.cluster.master_of(RegistryKeys::slot().number()).await.unwrap();
    let nodes = parts_of_nodes(&town).await;
    let left: Vec<u32> = nodes.into_iter().filter(|(node, _)| *node != registry).flat_map(|(_, parts)| parts).collect();
    assert!(leases(&town, &left).await.values().any(|(_, by)| by == "one"), "this proves nothing");
    // Its replica first, so that nobody takes its place.
    town.cluster.node(registry + MASTERS).kill().await.unwrap();
    town.cluster.node(registry).kill().await.unwrap();
    one.kill9();
    until_owned_by(&town, &left, &["two"]).await;
    two.kill9();
}

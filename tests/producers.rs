//! What docs/producers.md tells those who write events, done by a real Redis and Herald.

// A test waits for other processes.
#![allow(clippy::disallowed_methods)]

#[path = "support/merchants.rs"]
mod merchants;
#[path = "support/herald.rs"]
mod process;
#[path = "support/mod.rs"]
mod support;
#[path = "support/world.rs"]
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
};

use herald::store::{
    acl::{Role, rule},
    keys::PartitionKeys,
};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    merchants::Arrival,
    world::{STREAM, World},
};

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/producers.md")).unwrap()
}

/// The only example in a language below a heading.
fn example(heading: &str, language: &str) -> String {
    let page = page();
    let (_, page) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let page = page.split("\n## ").next().unwrap();
    let opening = format!("```{language}\n");
    let mut found = page.split(&opening).skip(1).map(|rest| rest.split("```").next().unwrap());
    let example = found.next().unwrap_or_else(|| panic!("the page has no example in {language}"));
    assert_eq!(found.next(), None, "there are several in {language}");
    example.to_owned()
}

/// What the examples need, which must be there.
fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    assert!(path.exists(), "{} is missing; run `make setup`", path.display());
    path
}

/// With the user that the page describes, and nothing else open.
async fn world_with_a_producer() -> (World, String) {
    let world = World::new().await;
    let rule = rule(&PartitionKeys::new(STREAM).unwrap(), Role::Producer);
    assert!(page().contains(&format!("\n{rule}\n")), "the page has not the rule {rule}");
    world.redis.command::<()>(&rule.split(' ').collect::<Vec<_>>()).await;
    let url = format!("redis://herald-producer:PASSWORD@{}", world.redis.address());
    (world, url)
}

async fn said(mut command: Command, url: &str) -> String {
    let output = command.env("REDIS_URL", url).output().await.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = format!("{output:?}");
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_of_the_page_publish_what_herald_delivers() {
    let (world, url) = world_with_a_producer().await;
    world.register(world.endpoint("ep_0", "acc_test")).await;
    let mut shell = Command::new("sh");
    shell.args(["-c", &example("Write it", "sh")]);
    let mut python = Command::new(installed("target/verifiers/python/bin/python"));
    python.args(["-c", &example("Write it", "python")]);
    let mut node = Command::new("node");
    node.args(["-e", &example("Write it", "js")]).env("NODE_PATH", installed("target/verifiers/node/node_modules"));
    for command in [shell, python, node] {
        let entry = said(command, &url).await;
        assert_eq!(world.number(&["XLEN", STREAM]).await, 1 + entries_before(&world, &entry).await, "{entry}");
    }
    let herald = world.setup().start();
    let arrivals = until_arrivals(&world, 3).await;
    let events: Vec<&str> = arrivals.iter().map(|arrival| arrival.event.as_str()).collect();
    assert_eq!(events, ["evt_from_shell", "evt_from_python", "evt_from_node"]);
    assert_eq!(herald.metric("herald_entries_settled_total{result=\"quarantined\"}"), 0.0);
    assert!(herald.stop().await.success());
}

/// In every language of the page that needs nothing but itself.
#[tokio::test]
async fn the_page_finds_the_partition_that_is_published() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/vectors/partition.json")).unwrap();
    let published: Value = serde_json::from_str(&text).unwrap();
    let (mut calls, mut expected) = (Vec::new(), Vec::new());
    for vector in published["vectors"].as_array().unwrap() {
        let text = |name: &str| vector[name].as_str().unwrap().to_owned();
        let levels: Vec<String> = vector["levels"].as_array().unwrap().iter().map(Value::to_string).collect();
        calls.push([vec![text("account"), text("stream")], levels].concat());
        expected.push(vector["streams"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned());
    }
    assert!(calls.len() >= 24);
    let of = |language: &str| example("Which partition an account belongs to", language);
    // Accounts and streams need no quotes in a shell.
    let bash: String = calls.iter().map(|words| format!("partition {}\n", words.join(" "))).collect();
    let quoted = |words: &[String]| format!("'{}', '{}', {}", words[0], words[1], words[2..].join(", "));
    let python: String = calls.iter().map(|words| format!("print(partition({}))\n", quoted(words))).collect();
    let node: String = calls.iter().map(|words| format!("console.log(partition({}));\n", quoted(words))).collect();
    for (program, flag, script) in [
        ("bash", "-c", of("bash") + &bash),
        ("python3", "-c", of("python") + &python),
        ("node", "-e", of("js") + &node),
    ] {
        let mut command = Command::new(program);
        command.args([flag, &script]);
        let found = said(command, "").await;
        assert_eq!(found.lines().collect::<Vec<_>>(), expected, "{program}");
    }
}

async fn until_arrivals(world: &World, count: usize) -> Vec<Arrival> {
    world.merchants.until("the callbacks", |log| log.arrivals.len() == count).await;
    world.merchants.log().arrivals.clone()
}

/// It also shows that the entry's id is what the example printed.
async fn entries_before(world: &World, entry: &str) -> u64 {
    let before: Vec<(String, Vec<String>)> = world.redis.command(&["XRANGE", STREAM, "-", &format!("({entry}")]).await;
    before.len() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_can_neither_trim_nor_read() {
    let (_world, url) = world_with_a_producer().await;
    for forbidden in
        ["XTRIM payment-intents MAXLEN 0", "XRANGE payment-intents - +", "DEL payment-intents", "XADD s * a b"]
    {
        let mut client = Command::new("redis-cli");
        client.args(["--no-auth-warning", "-u", &url]).args(forbidden.split(' '));
        let said = said(client, &url).await;
        assert!(said.starts_with("NOPERM"), "{forbidden}: {said}");
    }
}

/// Without each key that the page calls required, and with each that it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_page_requires_is_required_and_nothing_else() {
    let world = World::new().await;
    world.register(world.endpoint("ep_0", "acc_test")).await;
    let example = example("Write it", "sh");
    let sound: Value = serde_json::from_str(example.split('\'').nth(3).unwrap()).unwrap();
    let page = page();
    let rows = page.split("| key | required |").nth(1).unwrap().lines().skip(2).take_while(|row| row.starts_with('|'));
    let (mut required, mut others) = (Vec::new(), Vec::new());
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let pointer = format!("/{}", cells[1].trim_matches('`').replace('.', "/"));
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let mut event = sound.clone();
        let parent = event.pointer_mut(parent).and_then(Value::as_object_mut).unwrap();
        parent.remove(key).unwrap_or_else(|| panic!("the example has no {pointer}"));
        match cells[2] {
            "yes" => required.push((key.to_owned(), event)),
            "no" => others.push(event),
            other => panic!("{other}: {row}"),
        }
    }
    assert_eq!((required.len(), others.len()), (7, 1), "the table has changed");
    for event in required.iter().map(|(_, event)| event).chain(&others) {
        world.redis.command::<String>(&["XADD", STREAM, "*", "event", &event.to_string()]).await;
    }
    let herald = world.setup().start();
    herald
        .until_metric("herald_entries_settled_total{result=\"quarantined\"}", |count| count == required.len() as f64)
        .await;
    until_arrivals(&world, others.len()).await;

    let mut list = Command::new(env!("CARGO_BIN_EXE_herald"));
    list.args(["quarantine", "list", "-o", "json"]).env("HERALD_REDIS_URL", world.redis.url());
    let listed: Value = serde_json::from_str(&said(list, "").await).unwrap();
    for ((key, _), entry) in required.iter().zip(listed.as_array().unwrap()) {
        assert_eq!(entry["error"], format!("{key}: is missing"), "{entry}");
    }
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_event_twice_is_delivered_twice_under_one_id_and_the_second_as_the_newer() {
    let world = World::new().await;
    world.register(world.endpoint("ep_0", "acc_0")).await;
    let event = world::Event::new(1, "acc_0", "pi_0", "Captured");
    world.publish(&[event.clone(), event.clone()]).await;
    let herald = world.setup().start();
    let arrivals = until_arrivals(&world, 2).await;
    assert!(arrivals.iter().all(|arrival| arrival.event == event.id));
    assert!(arrivals[0].sequence < arrivals[1].sequence);
    assert!(herald.stop().await.success());
}

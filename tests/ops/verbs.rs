//! The binary itself: what it prints, what it changes through a real worker, and its exit codes.

use std::process::{Child, Command, Output, Stdio};

use herald::{
    facts::{endpoint::EndpointState, retry::DeadReason},
    store::{
        connection::Purpose,
        protocol::{Item, Place},
        queries::{DeadRange, Queries},
        registry::RegistryStore,
    },
};
use serde_json::Value;

use crate::{
    stage::{Owner, bury, delivery, endpoint, keep, keys, log_line, mark},
    support::{TestRedis, until},
};

/// Nothing listens there: what is sent to it is retried.
pub const NOWHERE: &str = "http://127.0.0.1:2/";

pub fn herald(redis: &TestRedis, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.env_clear().env("USER", "ops").args(["--redis-url", &redis.url()]).args(words).stdin(Stdio::null());
    command.output().unwrap()
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout))
}

pub fn done(redis: &TestRedis, words: &[&str]) -> String {
    let output = herald(redis, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    text(&output)
}

pub struct Worker(Child);

impl Worker {
    pub async fn start(redis: &TestRedis) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.env_clear().env("HERALD_ALLOW_HTTP", "true").env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8");
        command.env("HERALD_LISTEN", "127.0.0.1:0").args([
            "--redis-url",
            &redis.url(),
            "--set",
            "history.url=",
            "serve",
        ]);
        let worker = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let mut queries = queries(redis).await;
        until("a worker owns the partition", async || queries.lease().await.unwrap().is_some()).await;
        worker
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub async fn queries(redis: &TestRedis) -> Queries {
    Queries::new(redis.redis().connect(Purpose::Other).await.unwrap(), keys())
}

/// An endpoint that fails, and an unowned partition with these items in it.
pub async fn stage(items: Vec<Item>, log: Vec<bytes::Bytes>) -> TestRedis {
    let redis = TestRedis::start_with_aof().await;
    let mut registry = RegistryStore::connect(&redis.redis()).await.unwrap();
    registry.create(endpoint("ep_a", "acc_1", NOWHERE), &mark()).await.unwrap();
    let owner = Owner::start(&redis.redis()).await;
    let bind = Item::Bind { registry: registry.position().await.unwrap().unwrap().0.id.to_string() };
    owner.settle(vec![bind], Vec::new()).await;
    owner.settle(items, log).await;
    owner.release().await;
    redis
}

fn letters(number: u64) -> Vec<Item> {
    (1..=number)
        .map(|n| bury(&delivery(&format!("{n}-0"), "ep_a", &format!("pi_{n}"), true), DeadReason::Exhausted))
        .collect()
}

#[tokio::test]
async fn what_is_sent_again_keeps_its_history_and_says_who_asked_for_it() {
    let redis = stage(letters(250), Vec::new()).await;
    let dry = done(&redis, &["dead-letter", "redeliver", "--endpoint", "ep_a", "--dry-run"]);
    assert!(dry.contains("dry run: this would send again 250 dead letters"), "{dry}");
    let refused = herald(&redis, &["dead-letter", "redeliver", "--endpoint", "ep_a", "--reason", "mended"]);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
    let alone = herald(&redis, &["dead-letter", "redeliver", "--all", "--yes", "--reason", "mended"]);
    assert_eq!(alone.status.code(), Some(5), "{}", text(&alone));
    assert!(text(&alone).contains("no worker owns payment-intents"));

    let _worker = Worker::start(&redis).await;
    let words =
        ["dead-letter", "redeliver", "--account", "acc_1", "--dead-reason", "exhausted", "--yes", "--reason", "mended"];
    // Nobody answers there, so it would not end.
    let said = done(&redis, &[&words[..], &["--no-wait"]].concat());
    assert!(said.contains("is under way; it goes on whether or not anybody follows it"), "{said}");
    let record = keys().delivery(&"1-0:ep_a".parse().unwrap());
    until("it to go out again", async || redis.command::<u64>(&["EXISTS", &record]).await == 1).await;
    let shown = done(&redis, &["delivery", "show", "1-0:ep_a", "-o", "table"]);
    assert!(shown.contains("redelivered") && shown.contains("by ops: mended"), "{shown}");
    assert!(shown.contains("rejected (401)"), "the history is gone: {shown}");
}

#[tokio::test]
async fn a_released_chain_lets_the_next_one_go() {
    let first = delivery("10-0", "ep_a", "pi_1", true);
    let items = vec![keep(&first, Place::DueIn(600_000)), keep(&delivery("20-0", "ep_a", "pi_1", true), Place::Held)];
    let redis = stage(items, Vec::new()).await;
    let which = ["--endpoint", "ep_a", "--intent", "pi_1"];
    let chain = done(&redis, &[&["chain", "show", "-o", "table"], &which[..]].concat());
    assert!(
        chain.starts_with("1 delivery waits for 10-0:ep_a\nlast outcome rejected (401): the receiver refuses us"),
        "{chain}"
    );
    // Whether the receiver is well is asked before anything is given up.
    let shown = done(&redis, &["delivery", "show", "10-0:ep_a"]);
    let [test, release] = ["endpoint test ep_a", "chain release --endpoint ep_a --intent pi_1 --dry-run"];
    assert!(shown.find(test).unwrap() < shown.find(release).unwrap(), "{shown}");
    let _worker = Worker::start(&redis).await;
    let released = done(&redis, &[&["chain", "release", "--yes", "--reason", "blocked"], &which[..]].concat());
    assert!(released.contains("10-0:ep_a is a dead letter; 20-0:ep_a goes next"), "{released}");
    let letter = done(&redis, &["dead-letter", "show", "10-0:ep_a", "-o", "json"]);
    assert!(letter.contains("released by ops: blocked"), "{letter}");
    let missing = herald(&redis, &["chain", "show", "--endpoint", "ep_a", "--intent", "pi_none"]);
    assert_eq!(missing.status.code(), Some(3));
}

#[tokio::test]
async fn a_list_tells_of_the_unfinished_the_dead_and_the_delivered() {
    let delivered = delivery("5-0", "ep_a", "pi_1", true);
    let due = delivery("10-0", "ep_a", "pi_1", true);
    let dead = delivery("7-0", "ep_a", "pi_1", true);
    let log = vec![
        log_line(&delivered, r#""kind":"delivered","status":200"#),
        log_line(&dead, r#""kind":"rejected","status":401"#),
    ];
    let redis = stage(vec![keep(&due, Place::DueIn(600_000)), bury(&dead, DeadReason::Exhausted)], log).await;
    let list = done(&redis, &["delivery", "list", "--intent", "pi_1", "-o", "jsonl"]);
    assert!(list.starts_with("history: there is no history yet in herald-history.db"), "{list}");
    assert!(list.contains("\n1 waiting for a retry, 1 dead, 1 delivered\n"), "{list}");
    assert!(list.contains(r#""last_outcome":"rejected (401)""#), "{list}");
    assert!(list.contains("attempt log: 2 lines, all there ever were"), "{list}");
    // Lines that another version logged are not passed over in silence.
    redis.command::<String>(&["XADD", &keys().attempts(), "*", "lines", "{}\n{}"]).await;
    let list = done(&redis, &["delivery", "list", "--intent", "pi_1", "-o", "jsonl"]);
    assert!(
        list.contains("attempt log: 4 lines, all there ever were; 2 of them were written by another version"),
        "{list}"
    );
    let output = herald(&redis, &["delivery", "list", "--event", "evt_10", "-o", "json"]);
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((rows[0]["id"].as_str(), rows[0]["state"].as_str()), (Some("10-0:ep_a"), Some("due")));
    let shown = done(&redis, &["delivery", "show", "5-0:ep_a", "-o", "table"]);
    assert!(shown.contains("delivered 2023-11-14"), "{shown}");
    assert_eq!(herald(&redis, &["delivery", "show", "6-0:ep_a"]).status.code(), Some(3));
}

#[tokio::test]
async fn an_export_is_one_line_of_json_for_each_letter() {
    let redis = stage(letters(3), Vec::new()).await;
    let output = herald(&redis, &["dead-letter", "export", "--older-than", "0s"]);
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), lines[0]["id"].as_str()), (3, Some("1-0:ep_a")));
    assert!(lines[0]["delivery"]["body"].as_str().unwrap().contains("\"paymentIntentId\":\"pi_1\""));
    let nobody = done(&redis, &["dead-letter", "export", "--older-than", "1h"]);
    assert!(nobody.contains("0 dead letters written"), "{nobody}");
}

#[tokio::test]
async fn a_quarantined_entry_is_shown_with_its_error_and_dropped() {
    let bad = Item::Quarantine {
        entry: "3-0".parse().unwrap(),
        body: "{}".into(),
        cut: false,
        error: "id: is missing".into(),
        envelope: Default::default(),
        keep_bytes: Some(1 << 20),
    };
    let redis = stage(vec![bad], Vec::new()).await;
    let list = done(&redis, &["quarantine", "list", "-o", "table"]);
    assert!(list.starts_with("1 entry is not a valid event") && list.contains("id: is missing"), "{list}");
    let _worker = Worker::start(&redis).await;
    done(&redis, &["quarantine", "discard", "3-0", "--yes", "--reason", "told the producer"]);
    assert_eq!(herald(&redis, &["quarantine", "show", "3-0"]).status.code(), Some(3));
}

#[tokio::test]
async fn who_puts_an_entry_back_is_told_that_later_ones_of_its_intent_may_have_gone_before() {
    let item = |entry: &str, body: &'static str| Item::Quarantine {
        entry: entry.parse().unwrap(),
        body: body.into(),
        cut: false,
        error: "id: is missing".into(),
        envelope: Default::default(),
        keep_bytes: Some(1 << 20),
    };
    let items = vec![item("3-0", r#"{"data":{"paymentIntentId":"pi_7"}}"#), item("4-0", "nonsense")];
    let redis = stage(items, Vec::new()).await;
    let looked = herald(&redis, &["quarantine", "requeue", "3-0", "--dry-run"]);
    assert!(text(&looked).contains("later events of pi_7 may have been delivered meanwhile"), "{}", text(&looked));
    let unknown = herald(&redis, &["quarantine", "requeue", "4-0", "--dry-run"]);
    assert!(text(&unknown).contains("put back") && !text(&unknown).contains("pi_"), "{}", text(&unknown));
    let all = herald(&redis, &["quarantine", "requeue", "--all", "--dry-run"]);
    assert!(text(&all).contains("later events of the same intents may have been delivered"), "{}", text(&all));
}

#[tokio::test]
async fn an_entry_without_event_is_not_said_to_be_cut() {
    let bad = Item::Quarantine {
        entry: "3-0".parse().unwrap(),
        body: "other: 1".into(),
        cut: true,
        error: "the entry has no field \"event\"".into(),
        envelope: Default::default(),
        keep_bytes: Some(1 << 20),
    };
    let redis = stage(vec![bad], Vec::new()).await;
    let shown = done(&redis, &["quarantine", "show", "3-0", "-o", "table"]);
    assert!(shown.contains("there is no event in it") && !shown.contains("only the first"), "{shown}");
    let refused = herald(&redis, &["quarantine", "requeue", "3-0", "--yes", "--reason", "again"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(&refused).contains("has no field \"event\""), "{}", text(&refused));
}

#[tokio::test]
async fn a_list_names_an_endpoint_that_is_not_there_and_a_pause_of_everything() {
    let redis = stage(vec![keep(&delivery("10-0", "ep_a", "pi_1", true), Place::DueIn(0))], Vec::new()).await;
    for verb in ["delivery", "chain"] {
        let none = herald(&redis, &[verb, "list", "--endpoint", "ep_none"]);
        assert_eq!(none.status.code(), Some(3), "{}", text(&none));
        assert!(text(&none).contains("there is no endpoint ep_none"), "{}", text(&none));
        assert!(done(&redis, &[verb, "list", "--endpoint", "ep_a", "-o", "json"]).contains("a worker takes it next"));
    }
    done(&redis, &["pause", "--all", "--reason", "incident"]);
    for words in [["delivery", "list", "--endpoint", "ep_a"], ["delivery", "list", "--intent", "pi_1"]] {
        let list = done(&redis, &[&words[..], &["-o", "json"]].concat());
        assert!(list.contains("\nall sending is paused by ops: incident"), "{list}");
        assert!(list.contains("waits while all sending is paused") && !list.contains("takes it next"), "{list}");
    }
}

#[tokio::test]
async fn the_doctor_names_a_registry_that_was_never_made_first() {
    let redis = TestRedis::start_with_aof().await;
    done(&redis, &["event", "publish", "--sample", "--account", "acc_1"]);
    let output = herald(&redis, &["doctor", "-o", "table"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains(": no endpoint was ever created: events wait\n"), "{}", text(&output));
}

#[tokio::test]
async fn the_doctor_names_what_is_wrong_and_fails() {
    let redis = stage(vec![keep(&delivery("10-0", "ep_a", "pi_1", true), Place::DueIn(600_000))], Vec::new()).await;
    redis.command::<()>(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    let output = herald(&redis, &["doctor", "-o", "table"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("throws events and retries away"), "{said}");
    assert!(said.contains("Redis serves anyone who can reach it") && said.contains("doctor --print-acl"), "{said}");
    assert!(said.contains("one value may be as long as 512.0 MiB"), "{said}");
    assert!(said.contains("no worker owns payment-intents") && said.contains("start a worker: herald serve"), "{said}");

    redis.command::<()>(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    let _worker = Worker::start(&redis).await;
    let output = herald(&redis, &["doctor", "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), report["healthy"].as_bool()), (Some(0), Some(true)), "{report:#}");
}

#[tokio::test]
async fn the_doctor_warns_where_payment_intents_could_be_lost_or_live_by_a_clock_that_was_moved() {
    let redis = TestRedis::start_with_aof().await;
    redis.command::<()>(&["CONFIG", "SET", "appendfsync", "everysec"]).await;
    let said = || text(&herald(&redis, &["doctor", "-o", "table"]));
    assert!(!said().contains(" intents "), "{}", said());
    redis.command::<()>(&["HSET", "herald:{payment-intents}:pi-count", "events:acc_1", "1"]).await;
    assert!(said().contains("can lose the last changes of payment intents"), "{}", said());
    assert!(said().contains("CONFIG SET appendfsync always"), "{}", said());
    let ahead = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() + 7 * 86_400_000_000;
    let (clock, ahead) = ("herald:{payment-intents}:pi-clock", ahead.to_string());
    redis.command::<()>(&["HSET", clock, "virtual", &ahead, "real", "0", "speed", "0"]).await;
    redis.command::<()>(&["CONFIG", "SET", "appendfsync", "always"]).await;
    assert!(said().contains("is on the disk before its answer"), "{}", said());
    assert!(said().contains("the clock of payment intents was moved"), "{}", said());
}

#[tokio::test]
async fn another_registry_stops_the_reading_until_it_is_accepted() {
    let redis = stage(vec![Item::Bind { registry: "reg_other".into() }], Vec::new()).await;
    let _worker = Worker::start(&redis).await;
    let output = herald(&redis, &["doctor", "-o", "table"]);
    assert!(text(&output).contains("belongs to reg_other: reading has stopped"), "{}", text(&output));
    done(&redis, &["endpoint", "accept-registry", "--yes", "--reason", "moved here"]);
    let output = herald(&redis, &["doctor", "-o", "table"]);
    assert!(output.status.success(), "{}", text(&output));
}

#[tokio::test]
async fn the_doctor_says_so_when_redis_is_away() {
    let mut redis = TestRedis::start().await;
    redis.stop().await;
    let output = herald(&redis, &["doctor", "-o", "table"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("start Redis, or set HERALD_REDIS_URL"), "{}", text(&output));
    redis.start_again().await;
}

/// Adds an event under an id that the producer chose.
async fn publish(redis: &TestRedis, entry: &str) {
    let body = delivery(entry, "ep_a", "pi_1", true).body;
    redis.command::<String>(&["XADD", keys().stream(), entry, "event", std::str::from_utf8(&body).unwrap()]).await;
}

/// Works by whatever clock the endpoint is disabled, and whatever the producer's ids are.
#[tokio::test]
async fn what_was_accepted_before_a_disable_becomes_dead_letters_and_what_came_later_is_not_owed() {
    // Those of a counter, and those of a clock that is a day ahead.
    let ahead = 86_400_000 + std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    for first in [5, ahead] {
        let redis = stage(Vec::new(), Vec::new()).await;
        publish(&redis, &format!("{first}-1")).await;
        done(&redis, &["endpoint", "disable", "ep_a", "--yes", "--reason", "moved"]);
        publish(&redis, &format!("{first}-2")).await;
        let _worker = Worker::start(&redis).await;
        let everything = DeadRange { endpoint: None, from_ms: 0, until_ms: u64::MAX };
        let mut queries = queries(&redis).await;
        until("the end of both", async || {
            redis.command::<Option<String>>(&["GET", &keys().cursor()]).await == Some(format!("{first}-2"))
        })
        .await;
        until("the letter", async || queries.count_dead(&everything).await.unwrap() > 0).await;
        let letter = done(&redis, &["dead-letter", "show", &format!("{first}-1:ep_a"), "-o", "json"]);
        assert!(letter.contains("disabled"), "{letter}");
        assert_eq!(queries.count_dead(&everything).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_deletion_waits_until_what_was_accepted_before_is_a_dead_letter() {
    let redis = stage(Vec::new(), Vec::new()).await;
    publish(&redis, "5-1").await;
    let words = ["--redis-url", &redis.url(), "endpoint", "delete", "ep_a", "--yes", "--reason", "closed"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    let mut deleting = command.env_clear().env("USER", "ops").args(words).spawn().unwrap();
    let mut registry = RegistryStore::connect(&redis.redis()).await.unwrap();
    until("it takes nothing more", async || {
        let found = registry.get(&"ep_a".parse().unwrap()).await.unwrap();
        found.is_none_or(|endpoint| matches!(endpoint.status, EndpointState::Disabled(_)))
    })
    .await;
    let _worker = Worker::start(&redis).await;
    assert!(deleting.wait().unwrap().success());
    assert_eq!(herald(&redis, &["endpoint", "show", "ep_a"]).status.code(), Some(3));
    let everything = DeadRange { endpoint: None, from_ms: 0, until_ms: u64::MAX };
    let mut queries = queries(&redis).await;
    until("the letter", async || queries.count_dead(&everything).await.unwrap() == 1).await;
}

/// There is no replica, so none confirms anything.
#[tokio::test]
async fn a_change_that_no_replica_has_confirmed_is_stored_and_ends_with_a_code_of_its_own() {
    let redis = stage(Vec::new(), Vec::new()).await;
    let careful = |words: &[&str]| {
        let wait = ["--set", "redis.wait=1", "--set", "redis.wait_timeout=20ms"];
        let output = herald(&redis, &[words, &wait[..]].concat());
        let said = text(&output);
        assert_eq!(output.status.code(), Some(6), "{words:?}: {said}");
        assert!(said.contains("warning: it is stored, but no replica is known to have it (0 of 1"), "{said}");
        said
    };
    let why = ["--reason", "a test"];
    for verb in ["pause", "resume", "rotate-secret"] {
        let said = careful(&[&["endpoint", verb, "ep_a"][..], &why].concat());
        assert!(said.contains("ep_a"), "{said}");
        assert_eq!(said.contains("whsec_"), verb == "rotate-secret", "{said}");
    }
    careful(&[&["endpoint", "update", "ep_a", "--max-in-flight", "3"][..], &why].concat());
    careful(&[&["pause", "--all"][..], &why].concat());
    careful(&[&["resume", "--all"][..], &why].concat());
    let file = redis.folder().join("endpoints.json");
    done(&redis, &["endpoint", "export", "--file", file.to_str().unwrap()]);
    careful(&[&["endpoint", "import", file.to_str().unwrap(), "--yes"][..], &why].concat());
    careful(&[&["endpoint", "disable", "ep_a", "--yes"][..], &why].concat());
    let mut registry = RegistryStore::connect(&redis.redis()).await.unwrap();
    let stored = registry.get(&"ep_a".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((stored.max_in_flight, stored.secrets.len()), (3, 2));
    // The act is done, whatever its replicas say.
    let acts = done(&redis, &["audit", "list", "-o", "json"]);
    assert!(
        acts.contains("endpoint import") && !acts.contains(r#""failed""#) && !acts.contains(r#""refused""#),
        "{acts}"
    );
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let waits = stats.lines().find(|line| line.starts_with("cmdstat_wait:")).unwrap();
    assert!(waits.contains("calls=8,"), "{waits}");
    // What changes nothing is known already.
    let again =
        herald(&redis, &["--set", "redis.wait=1", "endpoint", "disable", "ep_a", "--yes", "--reason", "a test"]);
    assert!(again.status.success(), "{}", text(&again));
}

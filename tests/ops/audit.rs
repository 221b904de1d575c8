//! The audit log: every verb that changes something leaves its entry, and so do merchants and Herald itself.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpListener,
    process::{Command, Output, Stdio},
    thread,
};

use herald::{
    facts::{
        audit::{Act, Origin, Surface, Tally, Verdict},
        id::EntryId,
        retry::DeadReason,
    },
    store::{
        audit::{Audit, Found, Retention, Wanted},
        connection::Redis,
        protocol::{Item, Place},
        registry::{RegistryError, RegistryStore},
    },
};
use serde_json::Value;

use crate::{
    stage::{bury, delivery, endpoint, keep, mark},
    support::{TestRedis, until},
    verbs::{NOWHERE, Worker, stage, text},
};

const LOG: &str = "herald:{herald}:audit";

/// Verbs that leave no entry, and why that is right.
const LEAVE_NONE: &[(&[&str], &str)] = &[
    (
        &[
            "audit list",
            "audit show",
            "chain list",
            "chain show",
            "completions",
            "config check",
            "config show",
            "dead-letter list",
            "dead-letter show",
            "dead-letter export",
            "delivery list",
            "delivery show",
            "doctor",
            "endpoint list",
            "endpoint show",
            "event show",
            "healthcheck",
            "intents explain",
            "intents key list",
            "issue list",
            "issue show",
            "key status",
            "man",
            "operation list",
            "operation results",
            "operation show",
            "operation watch",
            "partition list",
            "partition of",
            "partition show",
            "quarantine list",
            "quarantine show",
            "plan",
            "retry-schedule",
            "sandbox clock",
            "sandbox clock show",
            "story",
            "token list",
            "verify",
            "version",
            "worker list",
        ],
        "it only looks",
    ),
    (
        &["event publish", "trigger"],
        "it adds events as a producer does, whose user may write nothing else; they stay to be seen",
    ),
    (&["serve", "intents serve"], "what it does by itself, and what merchants ask it for, have entries of their own"),
    (&["listen", "sandbox run"], "it is a merchant over HTTP: the service writes what it asks for"),
    (&["key generate"], "it makes a file, and asks Redis for nothing"),
    (&["demo", "loadtest", "loadtest prove"], "it has a Redis of its own"),
];

fn herald(redis: &TestRedis, words: &[&str]) -> Output {
    herald_at(&redis.url(), words)
}

fn herald_at(url: &str, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.env_clear().env("USER", "ops").env("HERALD_ALLOW_HTTP", "true").env("HERALD_SANDBOX", "true");
    command.env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8").args(["--redis-url", url]).args(words);
    command.stdin(Stdio::null()).output().unwrap()
}

fn done(redis: &TestRedis, words: &[&str]) -> Output {
    let output = herald(redis, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    output
}

fn list(redis: &TestRedis, more: &[&str]) -> Vec<Value> {
    let output = done(redis, &[&["audit", "list", "-o", "json", "--limit", "1000"], more].concat());
    serde_json::from_slice(&output.stdout).unwrap()
}

pub fn audit(redis: Redis, surface: Surface) -> Audit {
    let origin = Origin { surface, host: "stage".into(), process: 7, user: None };
    Audit::new(redis, Retention { max_count: 100_000, max_age_ms: 400 * 86_400_000 }, origin)
}

pub async fn everything(audit: &Audit) -> Found {
    audit.search(&Wanted { from_ms: 0, until_ms: u64::MAX, before: None, limit: 1_000 }, |_| true).await.unwrap()
}

/// The verbs as they are called, without those that only hold others.
fn verbs() -> BTreeSet<String> {
    fn walk(command: &clap::Command, before: &str, found: &mut BTreeSet<String>) {
        for verb in command.get_subcommands() {
            let name = format!("{before}{}", verb.get_name());
            walk(verb, &format!("{name} "), found);
            // Some that hold others can be called alone, too.
            if !verb.is_subcommand_required_set() {
                found.insert(name);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&herald::cli::command(), "", &mut found);
    found
}

fn quarantined(entry: &str) -> Item {
    Item::Quarantine {
        entry: entry.parse().unwrap(),
        body: "{}".into(),
        cut: false,
        error: "id: is missing".into(),
        envelope: Default::default(),
        keep_bytes: Some(1 << 20),
    }
}

/// What each verb is called with, in an order in which each has something to do.
async fn everything_done(redis: &TestRedis) -> Vec<&'static str> {
    let file = std::env::temp_dir().join(format!("herald-audit-{}.json", std::process::id()));
    let file = file.to_str().unwrap();
    let triggered: Value =
        serde_json::from_slice(&done(redis, &["trigger", "--account", "acc_1", "-o", "json"]).stdout).unwrap();
    let intent = triggered["intent"]["id"].as_str().unwrap().to_owned();
    let why = ["--reason", "a test"];
    let sure = ["--reason", "a test", "--yes"];
    let mut ran = Vec::new();
    let mut run = |verb: &'static str, words: &[&str], more: &[&str]| {
        let words = [&verb.split(' ').collect::<Vec<_>>()[..], words, more].concat();
        ran.push(verb);
        herald(redis, &words)
    };
    let mut must = |verb: &'static str, words: &[&str], more: &[&str]| {
        let output = run(verb, words, more);
        assert!(output.status.success(), "{verb}: {}", text(&output));
        output
    };
    must("issue ack", &["ep_a:rejected:401"], &why);
    must("issue resolve", &["ep_a:rejected:401"], &why);
    must("endpoint create", &["--account", "acc_1", "--url", NOWHERE, "--id", "ep_b"], &why);
    must("endpoint update", &["ep_b", "--description", "till 7"], &why);
    must("endpoint pause", &["ep_b"], &why);
    must("endpoint resume", &["ep_b"], &why);
    must("endpoint rotate-secret", &["ep_b"], &sure);
    must("endpoint disable", &["ep_b"], &sure);
    must("endpoint enable", &["ep_b"], &why);
    must("endpoint export", &["--file", file, "--force"], &why);
    must("endpoint import", &[file], &sure);
    must("endpoint delete", &["ep_b"], &sure);
    must("pause", &["--all"], &why);
    must("resume", &["--all"], &why);
    must("dead-letter redeliver", &["1-0:ep_a"], &sure);
    must("dead-letter discard", &["--endpoint", "ep_a", "--limit", "2"], &sure);
    let planned = |output: Output| -> String {
        let planned: Value = serde_json::from_slice(&output.stdout).unwrap();
        planned["id"].as_str().unwrap().to_owned()
    };
    let first = planned(must("operation plan", &["discard", "--intent", "pi_4", "-o", "json"], &why));
    must("operation start", &[&first, "--watch"], &why);
    // Nobody answers there, so it goes on until it is cancelled.
    let second = planned(must("operation plan", &["redeliver", "--intent", "pi_5", "-o", "json"], &why));
    must("operation start", &[&second], &why);
    must("operation rate", &[&second, "5"], &why);
    must("operation pause", &[&second], &why);
    must("operation resume", &[&second], &why);
    must("operation cancel", &[&second], &why);
    must("chain release", &["--endpoint", "ep_a", "--intent", "pi_90"], &sure);
    must("quarantine requeue", &["30-0"], &sure);
    must("quarantine discard", &["31-0"], &sure);
    let key = must("intents key create", &["--account", "acc_1", "-o", "json"], &why);
    let key: Value = serde_json::from_slice(&key.stdout).unwrap();
    must("intents key revoke", &[key["hash"].as_str().unwrap()], &why);
    let token = must("token create", &["--role", "viewer", "--name", "wall", "-o", "json"], &why);
    let token: Value = serde_json::from_slice(&token.stdout).unwrap();
    must("token revoke", &[token["hash"].as_str().unwrap()], &why);
    must("portal link", &["--account", "acc_1"], &why);
    must("sandbox clock advance", &["1h"], &why);
    must("sandbox clock speed", &["2"], &why);
    // Nobody answers there, and it is said that somebody tried.
    assert_eq!(run("endpoint test", &["ep_a"], &why).status.code(), Some(1));
    assert_eq!(run("intents replay", &[&intent, "--endpoint", "ep_a"], &why).status.code(), Some(1));
    std::fs::remove_file(file).unwrap();
    ran
}

/// The verbs of keys, while no worker lives that would have to know them.
fn keys_done(redis: &TestRedis) -> Vec<&'static str> {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys").to_str().unwrap().to_owned();
    done(redis, &["key", "generate", "--file", &keys]);
    let again = herald(redis, &["key", "generate", "--file", &keys]);
    assert_eq!(again.status.code(), Some(4), "no key is written over: {}", text(&again));
    let with_keys = format!("master_key_file={keys}");
    let (keys, why) = (["--set", &with_keys], ["--reason", "a test"]);
    done(redis, &[&["key", "reseal"][..], &keys, &why].concat());
    done(redis, &[&["key", "rotate", "--file", &with_keys["master_key_file=".len()..]][..], &keys, &why].concat());
    done(redis, &[&["key", "unseal", "--yes"][..], &keys, &why].concat());
    vec!["key reseal", "key rotate", "key unseal"]
}

/// The act that a verb's entry has, and how its target ends: its own name, but a link is a token.
fn entry_of(verb: &str) -> (&str, &str) {
    if verb == "portal link" { ("token create", "portal link") } else { (verb, "") }
}

#[tokio::test]
async fn every_verb_that_changes_something_leaves_its_beginning_and_its_end() {
    let mut items: Vec<Item> = (1..=5)
        .map(|n| bury(&delivery(&format!("{n}-0"), "ep_a", &format!("pi_{n}"), true), DeadReason::Exhausted))
        .collect();
    items.push(keep(&delivery("90-0", "ep_a", "pi_90", true), Place::DueIn(600_000)));
    items.extend([quarantined("30-0"), quarantined("31-0")]);
    let redis = stage(items, Vec::new()).await;
    let of_keys = keys_done(&redis);
    let worker = Worker::start(&redis).await;
    let all = everything_done(&redis).await.into_iter().chain(of_keys);
    let mut ran: BTreeSet<String> = all.map(str::to_owned).collect();
    drop(worker);
    let acts = list(&redis, &[]);
    for verb in &ran {
        let (name, target) = entry_of(verb);
        let is_its = |act: &&Value| {
            act["act"] == name && act["by"] == "ops" && act["target"].as_str().unwrap_or_default().ends_with(target)
        };
        let act = acts.iter().find(is_its);
        let act = act.unwrap_or_else(|| panic!("`herald {verb}` leaves no entry"));
        let tried = ["endpoint test", "intents replay"].contains(&verb.as_str());
        assert_eq!(act["ended"]["result"], if tried { "failed" } else { "done" }, "{act}");
        assert_eq!((&act["why"], &act["surface"]), (&Value::from("a test"), &Value::from("cli")), "{act}");
        assert!(act["process"].is_u64() && act["host"].is_string() && act["user"].is_string(), "{act}");
    }
    let of = |verb: &str| acts.iter().find(|act| act["act"] == verb).unwrap();
    let discard = of("dead-letter discard");
    assert_eq!((&discard["filter"], &discard["count"]), (&"--endpoint ep_a --limit 2".into(), &2.into()), "{discard}");
    assert_eq!((&discard["ended"]["done"], &discard["ended"]["skipped"]), (&2.into(), &0.into()), "{discard}");
    assert_eq!(of("dead-letter redeliver")["intent"], "pi_1");
    assert_eq!(of("endpoint update")["target"], "description");
    assert_eq!(of("chain release")["target"], "90-0:ep_a");

    // Another registry makes reading stop, so this one has a Redis of its own.
    let redis = stage(vec![Item::Bind { registry: "reg_other".into() }], Vec::new()).await;
    let _worker = Worker::start(&redis).await;
    done(&redis, &["endpoint", "accept-registry", "--yes", "--reason", "moved here"]);
    assert_eq!(list(&redis, &["--act", "endpoint accept-registry"]).len(), 1);
    ran.insert("endpoint accept-registry".to_owned());

    // A stream that is split answers few requests any more.
    let redis = stage(Vec::new(), Vec::new()).await;
    let _worker = Worker::start(&redis).await;
    done(&redis, &["repartition", "--cancel", "--yes", "--reason", "nobody has asked for it"]);
    done(&redis, &["repartition", "--into", "2", "--yes", "--reason", "more workers"]);
    let acts = list(&redis, &["--act", "repartition"]);
    let targets: Vec<&str> = acts.iter().map(|act| act["target"].as_str().unwrap()).collect();
    assert_eq!(targets, ["payment-intents --cancel", "payment-intents into 2"]);
    ran.insert("repartition".to_owned());

    let none: BTreeSet<String> =
        LEAVE_NONE.iter().flat_map(|(verbs, _)| verbs.iter()).map(|verb| (*verb).to_owned()).collect();
    assert_eq!(ran.intersection(&none).count(), 0);
    let known: BTreeSet<String> = ran.union(&none).cloned().collect();
    assert_eq!(known, verbs(), "a verb is missing here: it leaves an entry, or there is a reason why not");
    let unknown: Vec<_> = ran.iter().filter(|verb| entry_of(verb).0.parse::<Act>().is_err()).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[tokio::test]
async fn what_is_secret_does_not_get_into_the_log() {
    let redis = stage(Vec::new(), Vec::new()).await;
    let (secret, why) =
        ("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "see https://ann:pw@wiki.example/x?token=tk");
    let url = "http://127.0.0.1:2/in?token=url-token";
    let words = ["endpoint", "create", "--account", "acc_1", "--id", "ep_b", "--url", url, "--secret", secret];
    done(&redis, &[&words[..], &["--header", "authorization: Bearer hdr", "--reason", why]].concat());
    done(&redis, &["endpoint", "update", "ep_b", "--header", "x-other: hdr2", "--url", NOWHERE, "--reason", secret]);
    done(&redis, &["intents", "key", "create", "--account", "acc_1"]);
    let raw = format!("{:?}", redis.command::<redis::Value>(&["XRANGE", LOG, "-", "+"]).await);
    assert!(raw.contains("headers, url") && raw.contains("https://wiki.example/x?…"), "{raw}");
    for hidden in ["MDEyMzQ1", "hdr", "pw@", "tk", "url-token", "sk_sandbox_"] {
        assert!(!raw.contains(hidden), "{hidden} is in {raw}");
    }
}

#[tokio::test]
async fn on_a_full_redis_what_makes_room_is_done_and_written_and_nothing_else_begins() {
    let redis = stage(Vec::new(), Vec::new()).await;
    redis.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = herald(&redis, &["endpoint", "create", "--account", "acc_1", "--url", NOWHERE, "--id", "ep_b"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused);
    assert!(said.contains("nothing was done, because it cannot be written to the audit log"), "{said}");
    assert!(said.contains("raise maxmemory or free memory"), "{said}");
    done(&redis, &["pause", "--all", "--reason", "full"]);
    done(&redis, &["endpoint", "disable", "ep_a", "--yes", "--reason", "full"]);
    let acts = list(&redis, &[]);
    let told: Vec<_> = acts.iter().map(|act| (act["act"].as_str().unwrap(), act["ended"]["result"].as_str())).collect();
    assert_eq!(told, [("pause", Some("done")), ("endpoint disable", Some("done"))]);
}

#[tokio::test]
async fn who_may_not_write_to_the_log_may_not_act() {
    let redis = stage(Vec::new(), Vec::new()).await;
    let before =
        "ACL SETUSER before on >secret ~* +@all resetkeys ~herald:{herald}:registry* ~herald:{payment-intents}:*";
    redis.command::<()>(&before.split(' ').collect::<Vec<_>>()).await;
    let url = format!("redis://before:secret@{}/0", redis.address());
    let refused = herald_at(&url, &["pause", "--all", "--reason", "incident"]);
    let said = text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("nothing was done") && said.contains("herald doctor --print-acl"), "{said}");
    let (_, pause) = RegistryStore::connect(&redis.redis()).await.unwrap().position().await.unwrap().unwrap();
    assert_eq!(pause, None);
    // What Herald does by itself protects others.
    let own = audit(Redis::new(&url).unwrap(), Surface::Worker);
    assert_eq!(own.begin(&own.act(Act::EndpointPause, "herald", "quota")).await, Ok(None));
}

#[tokio::test]
async fn an_act_that_lost_its_process_is_said_to_have_no_end() {
    let redis = TestRedis::start().await;
    assert!(text(&done(&redis, &["audit", "list"])).contains("the audit log is empty"));
    let log = audit(redis.redis(), Surface::Cli);
    let act = log.act(Act::DeadLetterDiscard, "ann", "old").endpoint(&"ep_a".parse().unwrap()).filter("--all").count(9);
    let id = log.begin(&act).await.unwrap().unwrap().to_string();
    let shown = text(&done(&redis, &["audit", "show", &id, "-o", "table"]));
    assert!(shown.contains("no end is written: it is still under way, or its process ended"), "{shown}");
    let rows = text(&done(&redis, &["audit", "list", "-o", "table"]));
    assert!(rows.contains("dead-letter discard --all") && rows.contains("no end"), "{rows}");
    assert_eq!(list(&redis, &[])[0]["ended"], Value::Null);
    assert_eq!(herald(&redis, &["audit", "show", "17"]).status.code(), Some(3));
}

#[tokio::test]
async fn the_list_has_the_newest_last_in_pages_and_as_it_is_asked_for() {
    let redis = TestRedis::start().await;
    let log = audit(redis.redis(), Surface::Cli);
    for (by, act, endpoint) in [
        ("ann", Act::EndpointPause, "ep_a"),
        ("bob", Act::EndpointPause, "ep_b"),
        ("ann", Act::EndpointResume, "ep_a"),
        ("ann", Act::EndpointDelete, "ep_c"),
    ] {
        let begun = log.act(act, by, "").endpoint(&endpoint.parse().unwrap()).account(&"acc_1".parse().unwrap());
        log.audited(begun, async |tally: &mut Tally| {
            tally.set(1, 0);
            Ok::<_, RegistryError>(())
        })
        .await
        .unwrap();
    }
    let acts = |more: &[&str]| -> Vec<String> {
        list(&redis, more)
            .iter()
            .map(|act| format!("{} {}", act["by"].as_str().unwrap(), act["act"].as_str().unwrap()))
            .collect()
    };
    assert_eq!(acts(&["--by", "ann"]), ["ann endpoint pause", "ann endpoint resume", "ann endpoint delete"]);
    assert_eq!(acts(&["--act", "endpoint pause", "--endpoint", "ep_b"]), ["bob endpoint pause"]);
    assert_eq!(acts(&["--account", "acc_2"]), [""; 0]);
    assert_eq!(acts(&["--intent", "pi_1"]), [""; 0]);
    assert_eq!((acts(&["--since", "1h"]).len(), acts(&["--until", "1h"]).len()), (4, 0));
    let newest = done(&redis, &["audit", "list", "-o", "jsonl", "--limit", "1"]);
    let said = text(&newest);
    let before = said.split("--before ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    assert!(said.contains("endpoint delete"), "{said}");
    let older = text(&done(&redis, &["audit", "list", "-o", "jsonl", "--limit", "1", "--before", &before]));
    assert!(older.contains("endpoint resume"), "{older}");
    let rows = text(&done(&redis, &["audit", "list", "-o", "table"]));
    assert!(rows.lines().all(|line| line.chars().count() <= 80) && rows.contains("the audit log begins"), "{rows}");
    assert_eq!(herald(&redis, &["audit", "list", "--act", "endpoint crate"]).status.code(), Some(2));
}

#[tokio::test]
async fn the_log_keeps_about_so_many_entries_for_about_so_long() {
    let redis = TestRedis::start().await;
    let retention = Retention { max_count: 1_000, max_age_ms: 86_400_000 };
    let origin = Origin { surface: Surface::Cli, host: "stage".into(), process: 7, user: None };
    let log = Audit::new(redis.redis(), retention, origin);
    for n in 1..=300 {
        redis.command::<String>(&["XADD", LOG, &format!("{n}-0"), "began", "{}"]).await;
    }
    let entry = log.begin(&log.act(Act::Pause, "ann", "")).await.unwrap();
    log.end(entry, Ok::<(), &RegistryError>(()), Tally::default()).await.unwrap();
    let oldest: Vec<(String, Vec<String>)> = redis.command(&["XRANGE", LOG, "-", "+", "COUNT", "1"]).await;
    let kept: u64 = redis.command(&["XLEN", LOG]).await;
    assert!(kept <= 102, "{kept} are left, the oldest is {}", oldest[0].0);
    for _ in 0..2_000 {
        log.begin(&log.act(Act::Resume, "ann", "")).await.unwrap();
    }
    let kept: u64 = redis.command(&["XLEN", LOG]).await;
    assert!((1_000..=1_100).contains(&kept), "{kept} are left");
}

#[tokio::test]
async fn an_endpoint_that_answered_410_was_disabled_by_herald() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", gone.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in gone.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    let redis = stage(Vec::new(), Vec::new()).await;
    let mut registry = RegistryStore::connect(&redis.redis()).await.unwrap();
    registry.create(endpoint("ep_gone", "acc_9", &url), &mark()).await.unwrap();
    let _worker = Worker::start(&redis).await;
    done(&redis, &["event", "publish", "--sample", "--account", "acc_9"]);
    let log = audit(redis.redis(), Surface::Cli);
    until("the entry has its end", async || everything(&log).await.acts.iter().any(|act| act.ended.is_some())).await;
    let acts = everything(&log).await.acts;
    let [act] = &acts[..] else { panic!("{acts:?}") };
    assert_eq!((act.begun.act.as_str(), act.begun.by.as_str()), ("endpoint disable", "herald"));
    assert_eq!((act.begun.origin.surface, act.ended.as_ref().unwrap().1.result), (Surface::Worker, Verdict::Done));
    assert_eq!(act.begun.endpoint.as_ref().unwrap().as_str(), "ep_gone");
    assert!(act.id > EntryId::ZERO);
}

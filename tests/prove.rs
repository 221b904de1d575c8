//! The proof in its short form, and checks that the load test notices what it must: a Herald that lies, a machine
//! without Redis, a harness that dies. The real program, real Redis, real sockets.
#![allow(clippy::disallowed_methods)]

mod support;

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use herald::owned::free_port;
use support::{SAFETY, TestRedis};
use tokio::runtime::Runtime;

const HERALD: &str = env!("CARGO_BIN_EXE_herald");

fn loadtest(words: &str) -> Command {
    let mut command = Command::new(HERALD);
    command.arg("loadtest").args(words.split_whitespace()).stdin(Stdio::null());
    command
}

fn run(words: &str) -> Output {
    loadtest(words).output().expect("the binary runs")
}

fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn no_promise_breaks_in_the_short_proof() {
    let keep = tempfile::tempdir().unwrap();
    let proof = run(&format!("prove --short --keep {}", keep.path().display()));
    let text = said(&proof);
    let kept = (!proof.status.success()).then(|| keep.keep());
    assert!(proof.status.success(), "{text}\nkept in {kept:?}");
    // A long promise goes on in the next lines, wherever its column ends; its numbers stand in the first.
    for what in ["Every confirmed", "The events of an", "Both signatures"] {
        let line = text.lines().find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("no {what} in:\n{text}"));
        let mut cells = line.rsplit("  ").map(str::trim).filter(|cell| !cell.is_empty());
        let (broken, tried) = (cells.next(), cells.next());
        assert_eq!(broken, Some("0"), "{line}");
        assert!(tried.is_some_and(|tried| tried.starts_with(|first| ('1'..='9').contains(&first))), "{line}");
    }
    println!("{text}");
}

#[test]
fn a_record_that_vanishes_is_a_lost_event_and_exit_code_99() {
    // Every first attempt is told to come again a second later; there are so many intents that none has a second event.
    let line = "steady --rate 50 --for 4s --profile throttling --intents 5000 --without-thresholds --plain --seed 7";
    // A run that breaks a promise keeps its workers' logs there.
    let scratch = tempfile::tempdir().unwrap();
    let mut command = loadtest(line);
    command.env("TMPDIR", scratch.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let port = redis_of(&mut child);
    let mut redis = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap().get_connection().unwrap();
    let deadline = Instant::now() + SAFETY;
    // Of the first record that waits for its retry everything is removed, as if Redis had never had it.
    let stolen: String = loop {
        let due: Vec<String> =
            redis::cmd("ZRANGE").arg("herald:{payment-intents}:due").arg(0).arg(0).query(&mut redis).unwrap();
        if let Some(id) = due.into_iter().next() {
            break id;
        }
        assert!(Instant::now() < deadline, "no retry was ever due");
        sleep(Duration::from_millis(10));
    };
    let endpoint = stolen.split(':').nth(1).unwrap().to_owned();
    let script = "redis.call('DEL', 'herald:{payment-intents}:delivery:' .. ARGV[1])
        redis.call('ZREM', 'herald:{payment-intents}:due', ARGV[1])
        redis.call('HINCRBY', 'herald:{payment-intents}:unfinished', ARGV[2], -1)";
    let _: () = redis::cmd("EVAL").arg(script).arg(0).arg(&stolen).arg(&endpoint).query(&mut redis).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(99), "{text}");
    let lost = text.lines().find(|line| line.starts_with("lost")).unwrap();
    assert!(lost.contains("BROKEN") && text.contains(&endpoint), "{text}");
}

/// A Redis and a worker that belong to the test alone.
struct Service {
    redis: TestRedis,
    serve: Child,
    _runtime: Runtime,
}

impl Service {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let redis = runtime.block_on(TestRedis::start());
        let listen = format!("listen=127.0.0.1:{}", free_port().unwrap());
        let serve = Command::new(HERALD)
            .args(["serve", "--redis-url", &redis.url(), "--set", &listen, "--set", "history.url="])
            .args(["--set", "guard.allow_http=true", "--set", "guard.allow_networks=127.0.0.0/8"])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { redis, serve, _runtime: runtime }
    }

    /// As JSON.
    fn endpoints(&self) -> String {
        let list = Command::new(HERALD)
            .args(["endpoint", "list", "-o", "json", "--redis-url", &self.redis.url()])
            .output()
            .unwrap();
        String::from_utf8_lossy(&list.stdout).trim().to_owned()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.serve.kill();
        let _ = self.serve.wait();
    }
}

#[test]
fn a_service_that_runs_already_is_loaded_and_left_as_it_was() {
    let service = Service::start();
    let words = "steady --rate 50 --for 2s --profile flaky=0.3 --without-thresholds";
    let text = said(&run(&format!("{words} --redis {}", service.redis.url())));
    // A machine that has other work sends late; nothing else may break.
    let broken: Vec<&str> = text.lines().filter(|line| line.contains("  BROKEN: ")).collect();
    assert!(broken.iter().all(|line| line.starts_with("generator")), "{text}");
    assert!(text.contains("Every confirmed event") && text.contains("processes are not measured"), "{text}");
    assert_eq!(service.endpoints(), "[]");
}

#[test]
fn a_second_signal_still_removes_the_endpoints_from_a_service() {
    let service = Service::start();
    // Receivers that never answer: without the second signal the run would wait for them.
    let words = "steady --rate 20 --for 60s --profile hanging --without-thresholds --plain";
    let mut child = with_talk(&format!("{words} --redis {}", service.redis.url()));
    let mut talk = BufReader::new(child.stderr.take().unwrap());
    until_said(&mut talk, |line| line.contains(" load ") && line.contains("sent 2"));
    assert_ne!(service.endpoints(), "[]");
    interrupt(&child);
    until_said(&mut talk, |line| line.contains("waiting for what is unfinished"));
    interrupt(&child);
    let mut rest = String::new();
    talk.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("removing the endpoints") && rest.contains("nothing was judged"), "{rest}");
    assert_eq!(service.endpoints(), "[]");
}

fn with_talk(words: &str) -> Child {
    loadtest(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn until_said(talk: &mut impl BufRead, is_it: impl Fn(&str) -> bool) {
    let mut line = String::new();
    while !is_it(&line) {
        line.clear();
        assert!(talk.read_line(&mut line).unwrap() > 0, "it ended before it said so");
    }
}

fn interrupt(child: &Child) {
    signal(child.id(), nix::sys::signal::Signal::SIGINT);
}

fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

#[test]
fn a_redis_that_ends_by_itself_ends_the_run() {
    let scratch = tempfile::tempdir().unwrap();
    let mut command = loadtest("steady --rate 50 --for 600s --plain");
    command.env("TMPDIR", scratch.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (redis, _) = redis_process_of(&mut child);
    let mut talk = BufReader::new(child.stderr.take().unwrap());
    until_said(&mut talk, |line| line.contains(" load ") && line.contains("acknowledged") && !line.contains("sent 0"));
    signal(redis, nix::sys::signal::Signal::SIGKILL);
    let mut rest = String::new();
    talk.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("the scratch Redis ended by itself"), "{rest}");
}

#[test]
fn a_fault_that_was_named_and_did_not_come_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("run.json");
    let line = "drain --drain 500 --fault kill-worker@60s --fault destroy-group@60s --without-thresholds --json";
    let output = run(&format!("{line} {}", json.display()));
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("2 faults planned, 0 happened"), "{text}");
    let result: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!((result["faults"].as_array().unwrap().len(), result["missed"].as_array().unwrap().len()), (0, 2));
    assert_eq!(
        (&result["missed"][0]["fault"], &result["missed"][0]["why"]),
        (&"kill-worker".into(), &"load-over".into())
    );
}

#[test]
fn on_a_cluster_masters_and_workers_come_and_go_and_no_promise_breaks() {
    let faults = ["migrate-slot@1s", "failover@3s:2s", "leave-worker@8s", "join-worker@10s"];
    let faults: String = faults.iter().map(|fault| format!(" --fault {fault}")).collect();
    let line = format!("steady --cluster --partitions 6 --workers 2 --rate 60 --for 12s --seed 5 --plain{faults}");
    let run = run(&format!("{line} --without-thresholds"));
    let text = said(&run);
    assert!(run.status.success(), "{text}");
    for happened in ["migrate-slot at 1", "failover at 3", "leave-worker at 8", "join-worker at 1"] {
        assert!(text.contains(happened), "{happened} is not in:\n{text}");
    }
}

#[test]
fn a_pause_within_the_lease_of_a_dead_owner_waits_for_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("run.json");
    let line = "steady --rate 50 --for 4s --workers 2 --set lease.ttl=1s --without-thresholds \
        --fault kill-worker@1s --fault pause-worker@1100ms:1500ms --json";
    let text = said(&run(&format!("{line} {}", json.display())));
    let result: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).expect(&text);
    let faults = result["faults"].as_array().unwrap();
    let at = |name: &str| faults.iter().find(|mark| mark["fault"] == name).unwrap()["at"].as_f64().unwrap();
    // The lease is renewed three times within its length.
    assert!(at("pause-worker") > at("kill-worker") + 0.4, "{text}");
    assert_eq!(result["missed"], serde_json::json!([]), "{text}");
}

#[test]
fn a_proof_that_is_asked_to_end_leaves_no_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let keep = tempfile::tempdir().unwrap();
    let mut command = loadtest(&format!("prove --short --keep {}", keep.path().display()));
    command.env("TMPDIR", scratch.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + SAFETY;
    // Redis and two workers.
    while children_of(child.id()).len() < 3 {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "nothing was started");
        sleep(Duration::from_millis(10));
    }
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("asked to end: 4 runs are not made") && text.contains("1 of 5 runs"), "{text}");
    let left: Vec<_> = fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The port of the Redis that this process has started.
fn redis_of(child: &mut Child) -> u16 {
    redis_process_of(child).1
}

/// The Redis that this process has started, and its port.
fn redis_process_of(child: &mut Child) -> (u32, u16) {
    let deadline = Instant::now() + SAFETY;
    loop {
        for pid in children_of(child.id()) {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            let title = words.split("redis-server 127.0.0.1:").nth(1);
            if let Some(port) = title.and_then(|rest| rest.trim().parse().ok()) {
                return (pid, port);
            }
        }
        assert!(Instant::now() < deadline, "the load test starts no Redis");
        assert!(child.try_wait().unwrap().is_none(), "the load test has ended");
        sleep(Duration::from_millis(5));
    }
}

fn children_of(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    children.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect()
}

#[test]
fn a_harness_that_is_killed_leaves_nothing_behind() {
    // When it is killed, it cannot remove its scratch folders.
    let scratch = tempfile::tempdir().unwrap();
    let mut command = loadtest("steady --rate 50 --for 60s --plain");
    let mut child = command.env("TMPDIR", scratch.path()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + SAFETY;
    let mut owned = HashSet::new();
    // Redis and two workers.
    while owned.len() < 3 {
        owned.extend(children_of(child.id()));
        assert!(Instant::now() < deadline, "only {owned:?} were started");
        sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let is_gone = |pid: &u32| {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = state.rsplit_once(") ").map(|(_, rest)| rest.chars().next().unwrap_or('X'));
        matches!(state, None | Some('Z' | 'X'))
    };
    while !owned.iter().all(is_gone) {
        assert!(Instant::now() < deadline, "something of {owned:?} outlives the harness");
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_end_by_signal_still_waits_judges_and_reports() {
    let mut child = with_talk("steady --rate 50 --for 60s --plain --without-thresholds");
    let mut talk = BufReader::new(child.stderr.take().unwrap());
    until_said(&mut talk, |line| line.contains("load") && line.contains("acknowledged") && !line.contains("sent 0"));
    interrupt(&child);
    let mut rest = String::new();
    talk.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = said(&output);
    assert!(text.contains("Promises") && text.contains("lost"), "{rest}\n{text}");
}

#[test]
fn a_verdict_counts_even_if_nobody_reads_it_and_the_result_can_not_be_written() {
    let scratch = tempfile::tempdir().unwrap();
    let results = scratch.path().join("results");
    fs::create_dir(&results).unwrap();
    let words = format!("steady --rate 20 --for 1s --threshold rate>99999 --json {}/a.json", results.display());
    let mut command = loadtest(&words);
    command.env("TMPDIR", scratch.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let mut talk = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    talk.read_line(&mut said).unwrap();
    fs::remove_dir(&results).unwrap();
    talk.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(99), "{said}");
    assert!(said.contains("thresholds not kept") && said.contains("a.json"), "{said}");
}

#[test]
fn without_a_redis_server_it_says_what_to_install() {
    let output = loadtest("steady --for 1s").env("PATH", "/nowhere").output().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("apt-get install redis-server"), "{text}");
}

#[test]
fn what_is_wrong_on_the_line_is_said_before_anything_is_started() {
    for (words, code, reason) in [
        ("stedy", 2, "there is no scenario"),
        ("steady --threshold p98<5ms", 2, "p98"),
        ("steady --set lease.tll=2s", 2, "lease.tll"),
        ("steady --for 5s --fault kill-worker@9s", 2, "only lasts 5s"),
        ("steady --profile evil", 2, "evil"),
        ("steady --fault failover@2s", 2, "failover needs a Cluster"),
        ("steady --cluster --fault restart-redis@2s", 2, "restart-redis is for one Redis"),
        ("intents --cluster --without-faults", 2, "on one Redis"),
        ("steady --set stream.partitions=4", 2, "stream.partitions"),
        ("steady --partitions 4 --redis redis://127.0.0.1:1", 4, "leave --redis out"),
        ("steady --set guard.allow_networks=10.0.0.0/8", 2, "guard.allow_networks"),
        ("steady --json /nowhere/x.json", 2, "no folder"),
        ("steady --html /", 2, "it is a folder"),
        ("steady --redis-url redis://127.0.0.1:1", 2, "--redis URL"),
        ("crash-storm --redis redis://127.0.0.1:1", 4, "leave --redis out"),
        ("steady --redis redis://192.0.2.1:6379", 4, "--i-own-this-target 192.0.2.1"),
        ("steady --redis redis://127.0.0.1:1", 1, "cannot connect"),
    ] {
        let output = run(words);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{words}: {text}");
        assert!(text.contains(reason), "{words}: {text}");
    }
}

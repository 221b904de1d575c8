//! Live callbacks of the real program, verified by what merchants use: the published `standardwebhooks` libraries of
//! crates.io, PyPI and npm, each receiving in its own language; and `dojo-signature` with only the standard libraries
//! of Python and Node. Sealed values, by libsodium. And its metrics, judged by Prometheus' own tool. `make setup` installs them; if one is missing,
//! the tests here fail.

// A test waits for other processes.
#![allow(clippy::disallowed_methods)]

#[path = "support/merchants.rs"]
mod merchants;
#[path = "support/herald.rs"]
mod process;
#[path = "receiver/mod.rs"]
mod receiver;
#[path = "support/mod.rs"]
mod support;
#[path = "support/world.rs"]
mod world;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use herald::facts::{
    sealing::{Field, NONCE_BYTES, Place, Ring, key_line},
    signing::{Secret, SecretText},
};
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use receiver::{Receiver, Seen};
use support::soon;
use world::{Event, World};

/// Signed with the first secret alone, and with both, as during the overlap of a rotation.
const ENDPOINTS: [&str; 2] = ["ep_plain", "ep_rotating"];

fn secret(name: &str) -> SecretText {
    let byte = match name {
        "first" => 1,
        "second" => 2,
        "wrong" => 3,
        other => panic!("there is no secret {other}"),
    };
    SecretText::from_random([byte; 32])
}

fn all_secrets() -> Value {
    let one = |name: &str| (name.to_owned(), Value::from(secret(name).reveal()));
    Value::Object(["first", "second", "wrong"].map(one).into_iter().collect())
}

/// What a verifier must make of a callback, given which secrets it should accept by each scheme.
fn expected(standard: &[&str], dojo: &[&str]) -> Value {
    let verdicts = |accepted: &[&str]| {
        let one = |name: &str| (name.to_owned(), json!({"whole": accepted.contains(&name), "altered": false}));
        Value::Object(["first", "second", "wrong"].map(one).into_iter().collect())
    };
    json!({"standard": verdicts(standard), "dojo": verdicts(dojo)})
}

fn check(path: &str, verdicts: &Value) {
    let wanted = match path {
        "/ep_plain" => expected(&["first"], &["first"]),
        // Dojo's verifiers take one signature: that of the newest secret.
        "/ep_rotating" => expected(&["first", "second"], &["second"]),
        other => panic!("a callback came to {other}"),
    };
    assert_eq!(*verdicts, wanted, "{path}");
}

/// A receiver in another language.
struct Foreign {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
}

impl Foreign {
    async fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; run `make setup`"));
        let mut secrets = all_secrets().to_string();
        secrets.push('\n');
        child.stdin.take().unwrap().write_all(secrets.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = soon("the receiver's port", lines.next_line()).await.unwrap();
        let port = port.unwrap_or_else(|| panic!("{command:?} ended at once; run `make setup`"));
        Self { _child: child, lines, port: port.parse().unwrap() }
    }

    /// The next callback's path and what was made of it.
    async fn next(&mut self) -> (String, Value) {
        let line = soon("a callback", self.lines.next_line()).await.unwrap().expect("the receiver goes on");
        let said: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(said["error"], Value::Null, "{line}");
        assert_eq!(said["newer"], Value::Bool(true), "{line} is no newer than what came before");
        let path = said["path"].as_str().unwrap().to_owned();
        (path, json!({"standard": said["standard"], "dojo": said["dojo"]}))
    }
}

/// A path of the project, which must be there.
fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    assert!(path.exists(), "{} is missing; run `make setup`", path.display());
    path
}

/// Herald with two endpoints at this port, and an event for each of them.
async fn send_to(port: u16) -> (World, process::Herald) {
    let world = World::new().await;
    for (at, name) in ENDPOINTS.into_iter().enumerate() {
        let account = format!("acc_{at}");
        let mut endpoint = world.endpoint(name, &account);
        endpoint.url = format!("http://127.0.0.1:{port}/{name}");
        let names: &[&str] = if name == "ep_plain" { &["first"] } else { &["first", "second"] };
        endpoint.secrets =
            names.iter().map(|name| Secret { value: secret(name), created_at_ms: 1, expires_at_ms: None }).collect();
        world.register(endpoint).await;
    }
    let herald = world.setup().start();
    let event = |at| Event::new(at, &format!("acc_{at}"), &format!("pi_{at}"), "Captured");
    world.publish(&[event(0), event(1)]).await;
    (world, herald)
}

async fn verify_in(command: Command) {
    let mut foreign = Foreign::start(command).await;
    let (world, herald) = send_to(foreign.port).await;
    let mut seen = Vec::new();
    for _ in ENDPOINTS {
        let (path, verdicts) = foreign.next().await;
        check(&path, &verdicts);
        seen.push(path);
    }
    seen.sort();
    assert_eq!(seen, ["/ep_plain", "/ep_rotating"]);
    // When the last of them arrives, the language's own text comparison has to have seen each as newer than the one
    // before.
    for (at, entry) in odd_entries().into_iter().enumerate() {
        world.publish_as(&entry, &Event::new(at + 2, "acc_0", "pi_0", "Captured")).await;
        let (path, verdicts) = foreign.next().await;
        check(&path, &verdicts);
    }
    assert!(herald.stop().await.success());
}

/// Rising ids that a number of 53 or of 64 bits cannot tell apart: many within a millisecond, and those of a clock that
/// runs ahead, in microseconds and in nanoseconds.
fn odd_entries() -> Vec<String> {
    let day = 86_400_000;
    let tomorrow = herald::clock::wall_ms() + day;
    [
        (tomorrow, 9),
        (tomorrow, 10),
        (tomorrow, 999_999),
        (tomorrow, 1_000_000),
        (tomorrow, 1 << 53),
        (tomorrow, (1 << 53) + 1),
    ]
    .into_iter()
    .chain([1_000, 1_000_000].map(|unit| (tomorrow * unit, u64::MAX - 1)))
    .chain([(u64::MAX, 0), (u64::MAX, u64::MAX)])
    .map(|(ms, seq)| format!("{ms}-{seq}"))
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_of_pypi_and_the_standard_library_of_python_accept_what_is_sent_and_nothing_else() {
    let mut command = Command::new(installed("target/verifiers/python/bin/python"));
    command.arg(installed("tests/verifiers/receiver.py"));
    verify_in(command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_of_npm_and_the_standard_library_of_node_accept_what_is_sent_and_nothing_else() {
    installed("target/verifiers/node/node_modules/standardwebhooks");
    let mut command = Command::new("node");
    command.arg(installed("tests/verifiers/receiver.cjs"));
    command.env("NODE_PATH", installed("target/verifiers/node/node_modules"));
    verify_in(command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_of_crates_io_accepts_what_is_sent_and_nothing_else() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (_world, herald) = send_to(receiver.address.port()).await;
    support::until("both callbacks", async || receiver.log.seen().len() == ENDPOINTS.len()).await;
    for seen in receiver.log.seen() {
        let accepted = if seen.head.contains("/ep_plain ") { vec!["first"] } else { vec!["first", "second"] };
        for name in ["first", "second", "wrong"] {
            assert_eq!(is_verified(&seen, name, &seen.body), accepted.contains(&name), "{name}: {}", seen.head);
            let altered = String::from_utf8(seen.body.clone()).unwrap().replace("Captured", "Refunded");
            assert_ne!(altered.as_bytes(), seen.body);
            assert!(!is_verified(&seen, name, altered.as_bytes()), "{name} verifies an altered body");
        }
    }
    assert!(herald.stop().await.success());
}

#[test]
fn libsodium_opens_what_is_sealed_and_what_it_seals_is_opened() {
    let (endpoint, account) = ("ep_a".parse().unwrap(), "acc_test".parse().unwrap());
    let fields = [
        (Field::Secret { created_at_ms: 1_700_000_000_000 }, "secret", "1700000000000"),
        (Field::Header { name: "X-Key" }, "header", "x-key"),
        (Field::ClientKey, "client-key", ""),
    ];
    let (mut asked, mut expected) = (String::new(), Vec::new());
    let mut ask = |question: Value, answer: Value| {
        asked.push_str(&format!("{question}\n"));
        expected.push(answer);
    };
    for byte in [0, 7, 255] {
        let (key, nonce) = ([byte; 32], [byte ^ 9; NONCE_BYTES]);
        let ring = Ring::parse(&key_line(&key)).unwrap();
        for (field, name, qualifier) in fields {
            for text in ["whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "", "Bearer ü"] {
                let place = Place { endpoint: &endpoint, account: &account, field };
                let sealed = ring.seal(&place, text, nonce).unwrap();
                assert_eq!(*ring.open(&place, &sealed).unwrap(), text);
                let (key, at) = (hex::encode(key), ["ep_a", "acc_test", name, qualifier]);
                ask(json!({"do": "open", "key": key, "place": at, "value": sealed}), json!(text));
                ask(
                    json!({"do": "seal", "key": key, "place": at, "text": text, "nonce": hex::encode(nonce)}),
                    json!(sealed),
                );
                let elsewhere = ["ep_b", "acc_test", name, qualifier];
                ask(json!({"do": "open", "key": key, "place": elsewhere, "value": sealed}), Value::Null);
            }
        }
    }
    let mut command = std::process::Command::new(installed("target/verifiers/sealing/bin/python"));
    command.arg(installed("tests/verifiers/sealing.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = command.spawn().unwrap();
    std::io::Write::write_all(&mut python.stdin.take().unwrap(), asked.as_bytes()).unwrap();
    let answered = String::from_utf8(python.wait_with_output().unwrap().stdout).unwrap();
    let answers: Vec<Value> = answered.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_finds_nothing_to_mend_in_the_metrics_of_a_worker() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (_world, herald) = send_to(receiver.address.port()).await;
    herald.until_metric("herald_attempts_total{outcome=\"delivered\"}", |count| count == 2.0).await;
    let (_, page) = herald.get("/metrics").unwrap();
    assert_eq!(complaints(&page).await, "");
    let misnamed = page.replace("herald_entries_read_total", "herald_entries_read");
    let said = complaints(&misnamed).await;
    assert!(said.contains("herald_entries_read counter metrics should have \"_total\" suffix"), "{said}");
    assert!(herald.stop().await.success());
}

/// What `promtool check metrics` has to say of a page.
async fn complaints(page: &str) -> String {
    let mut command = Command::new(installed("target/verifiers/promtool"));
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.kill_on_drop(true).spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).await.unwrap();
    let output = soon("its judgement", promtool.wait_with_output()).await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(output.status.success(), said.is_empty(), "{}", output.status);
    String::from_utf8(said).unwrap()
}

fn is_verified(seen: &Seen, name: &str, body: &[u8]) -> bool {
    let mut headers = http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, seen.header(name).expect("it was sent").parse().unwrap());
    }
    Webhook::new(secret(name).reveal()).expect("it is a secret").verify(body, &headers).is_ok()
}

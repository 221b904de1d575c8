//! Signatures by a key pair: what a receiver gets, who can verify it, and that nobody gets to see the private half.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use herald::signing::{PublicKey, SecretText, verify};
use serde_json::Value;

use crate::{
    Files, herald,
    receiver::{Receiver, Seen},
    support::until,
    told,
    world::{Event, World},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

struct Stage {
    world: World,
    receiver: Receiver,
    /// All that anybody was told.
    said: std::sync::Mutex<String>,
}

impl Stage {
    async fn start() -> Self {
        Self { world: World::new().await, receiver: Receiver::answering(OK).await, said: Default::default() }
    }

    fn run(&self, words: &[&str]) -> (Option<i32>, Value, String) {
        let url = self.world.redis.url();
        let env = [
            ("HERALD_REDIS_URL", url.as_str()),
            ("HERALD_ALLOW_HTTP", "true"),
            ("HERALD_ALLOW_NETWORKS", "127.0.0.0/8"),
            ("USER", "ops"),
        ];
        let output = herald(words, &env).output().unwrap();
        self.said.lock().unwrap().push_str(&told(&output));
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), told(&output))
    }

    fn done(&self, words: &[&str]) -> Value {
        let (code, answer, said) = self.run(words);
        assert_eq!(code, Some(0), "{words:?}: {said}");
        answer
    }

    async fn delivered(&self, number: usize) -> Seen {
        self.world.publish(&[Event::new(number, "acc_0", &format!("pi_{number}"), "Created")]).await;
        let is_it = |seen: &Seen| seen.header("webhook-id") == Some(&format!("evt_{number:07}"));
        until("the callback", async || self.receiver.log.seen().iter().any(is_it)).await;
        self.receiver.log.seen().into_iter().rfind(is_it).unwrap()
    }
}

fn is_valid(seen: &Seen, secret: &str) -> bool {
    let secret = SecretText::new(secret.to_owned()).unwrap();
    let sent_s = seen.header("webhook-timestamp").unwrap().parse().unwrap();
    let lines = seen.head.lines().skip(1).filter_map(|line| line.split_once(": "));
    verify(&secret, lines, &seen.body, UNIX_EPOCH + Duration::from_secs(sent_s), Duration::from_secs(300)).is_ok()
}

fn entries(seen: &Seen) -> Vec<&str> {
    seen.header("webhook-signature").unwrap().split(' ').map(|entry| entry.split_once(',').unwrap().0).collect()
}

fn public(endpoint: &Value) -> Vec<String> {
    let values = endpoint["secrets"].as_array().unwrap().iter().map(|secret| secret["value"].as_str().unwrap());
    values.filter(|value| value.starts_with("whpk_")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_verifies_with_the_public_half_and_sees_no_other() {
    let stage = Stage::start().await;
    let worker = stage.world.setup().env("HERALD_LOG", "trace").env("HERALD_ADMIN_TOKEN", "0123456789abcdef").start();
    let url = stage.receiver.url();
    let create = ["endpoint", "create", "--id", "ep_0", "--account", "acc_0", "--url", &url, "-o", "json"];
    let made = stage.done(&[&create[..], &["--scheme", "standard", "--scheme", "ed25519"]].concat());
    let shared = made["secret"].as_str().unwrap().to_owned();
    let first = public(&made).remove(0);
    worker.until_owner().await;

    let seen = stage.delivered(1).await;
    assert_eq!(entries(&seen), ["v1", "v1a"]);
    assert!(is_valid(&seen, &shared) && is_valid(&seen, &first));
    assert!(!is_valid(&seen, &SecretText::key_from_random([9; 32]).public_key().unwrap()));

    // A new key, while the old one still signs; the shared secret goes on.
    let rotate = ["endpoint", "rotate-secret", "ep_0", "--reason", "a test", "-o", "json"];
    let rotated = stage.done(&[&rotate[..], &["--scheme", "ed25519"]].concat());
    assert_eq!((rotated["secret"].is_null(), public(&rotated).len()), (true, 2));
    let second = public(&rotated).remove(1);
    until("both keys sign", async || {
        let number = stage.receiver.log.seen().len() + 100;
        entries(&stage.delivered(number).await) == ["v1", "v1a", "v1a"]
    })
    .await;
    let seen = stage.receiver.log.seen().pop().unwrap();
    assert!([&shared, &first, &second].into_iter().all(|secret| is_valid(&seen, secret)));

    // By a key pair alone.
    stage.done(&["endpoint", "update", "ep_0", "--scheme", "ed25519", "--reason", "a test"]);
    until("only the keys sign", async || {
        let number = stage.receiver.log.seen().len() + 200;
        entries(&stage.delivered(number).await) == ["v1a", "v1a"]
    })
    .await;
    let seen = stage.receiver.log.seen().pop().unwrap();
    assert!(seen.header("dojo-signature").is_none() && is_valid(&seen, &second) && !is_valid(&seen, &shared));

    verified_by_the_verb(&stage, &seen, &first);
    verified_by_libsodium(&seen, &first);

    // Whoever looks anywhere sees no private half, nor the seed in it.
    for words in [&["endpoint", "show", "ep_0"][..], &["endpoint", "list"], &["audit", "list"], &["doctor"]] {
        stage.run(words);
        stage.run(&[words, &["-o", "json"]].concat());
    }
    let stored: String = stage.world.redis.command(&["HGET", "herald:{herald}:registry", "ep_0"]).await;
    let private: Vec<&str> = stored.split('"').filter(|text| text.starts_with("whsk_")).collect();
    assert_eq!(private.len(), 2, "{stored}");
    let mut said = stage.said.lock().unwrap().clone() + &worker.log();
    for path in ["/v1/endpoints/ep_0", "/v1/endpoints", "/metrics"] {
        said += &asked(&worker, path);
    }
    assert!(said.contains(&second));
    for key in private {
        let seed = STANDARD.decode(key.trim_start_matches("whsk_")).unwrap();
        let text = key.trim_start_matches("whsk_");
        assert!(!said.contains("whsk_") && !said.contains(text) && !said.contains(&hex::encode(&seed)));
    }
    assert!(worker.stop().await.success());
}

fn asked(worker: &crate::process::Herald, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(worker.address()).unwrap();
    let head = "host: h\r\nauthorization: Bearer 0123456789abcdef\r\nconnection: close";
    write!(stream, "GET {path} HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
    let answer = std::io::read_to_string(stream).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

fn verified_by_the_verb(stage: &Stage, seen: &Seen, public: &str) {
    let files = Files::new();
    let headers = files.write("headers", &seen.head);
    let [right, wrong] = [("body", "{}"), ("wrong", "x")].map(|(name, _)| files.path(name));
    std::fs::write(&right, &seen.body).unwrap();
    std::fs::write(&wrong, [&seen.body[..], b" "].concat()).unwrap();
    let [headers, right, wrong] = [&headers, &right, &wrong].map(|path| path.to_str().unwrap());
    let by = |body: &str, secret: &str| {
        stage.run(&["verify", body, "--headers-file", headers, "--secret", secret, "-o", "json"])
    };
    let (code, answer, said) = by(right, public);
    assert!(code == Some(0) && answer["standard"]["verdict"] == "valid", "{said}");
    let (code, answer, said) = by(wrong, public);
    assert!(code == Some(4) && answer["standard"]["verdict"] == "invalid", "{said}");
    let other = SecretText::key_from_random([9; 32]).public_key().unwrap();
    assert_eq!(by(right, &other).0, Some(4));
}

/// A second implementation, where it is installed: what docs/receivers shows.
fn verified_by_libsodium(seen: &Seen, public: &str) {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/verifiers/python/bin/python");
    let named = std::env::var("HERALD_TEST_PYTHON").map(PathBuf::from).unwrap_or(here);
    let has_it = Command::new(&named).args(["-c", "import nacl"]).stderr(Stdio::null()).status();
    if !has_it.is_ok_and(|status| status.success()) {
        eprintln!("skipped: PyNaCl is not installed (pip install pynacl), so libsodium has verified nothing");
        return;
    }
    let verifies = |body: &[u8], key: &str| {
        let mut command = Command::new(&named);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/receivers/verify_ed25519.py"));
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            command.arg(seen.header(name).unwrap());
        }
        command.env("HERALD_PUBLIC_KEYS", key).env("TOLERANCE_S", "100000").stdin(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(body).unwrap();
        child.wait().unwrap().success()
    };
    assert!(verifies(&seen.body, public));
    assert!(!verifies(&[&seen.body[..], b" "].concat(), public));
    assert!(!verifies(&seen.body, &SecretText::key_from_random([9; 32]).public_key().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_cannot_sign_and_schemes_without_a_key_are_refused_with_what_to_do() {
    let stage = Stage::start().await;
    let create = ["endpoint", "create", "--account", "acc_0", "--url", "https://1.1.1.1/", "-o", "json"];
    let public = SecretText::key_from_random(std::array::from_fn(|n| n as u8)).public_key().unwrap();
    let (code, _, said) = stage.run(&[&create[..], &["--scheme", "ed25519", "--secret", &public]].concat());
    assert!(code != Some(0) && said.contains("give the private half, whsk_"), "{said}");
    let (code, _, said) = stage.run(&[&create[..], &["--scheme", "ed25519", "--secret", "whsk_AAAA"]].concat());
    assert!(code != Some(0) && said.contains("whsk_ must go on with the base64 of 32 bytes"), "{said}");
    let plain = stage.done(&create);
    let id = plain["id"].as_str().unwrap();
    let (code, _, said) = stage.run(&["endpoint", "update", id, "--scheme", "ed25519", "--reason", "a test"]);
    assert!(code != Some(0) && said.contains("first rotate-secret with this scheme"), "{said}");
    stage.done(&["endpoint", "rotate-secret", id, "--scheme", "ed25519", "--reason", "a test", "-o", "json"]);
    let both = ["--scheme", "dojo", "--scheme", "ed25519", "--reason", "a test"];
    stage.done(&[&["endpoint", "update", id][..], &both].concat());
}

/// What docs/merchants.md shows was made by libsodium.
#[test]
fn the_vector_of_the_page_is_right() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/merchants.md")).unwrap();
    let (_, block) = page.split_once("```text\nprivate ").unwrap();
    let block = format!("private {}", block.split_once("```").unwrap().0);
    let value = |name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {block}")).trim()
    };
    let (id, timestamp, signature) = (value("webhook-id"), value("webhook-timestamp"), value("webhook-signature"));
    let at_s: u64 = timestamp.parse().unwrap();
    for private in [value("private"), value("or")] {
        let key = herald::signing::PrivateKey::parse(private).unwrap();
        assert_eq!(key.public().to_string(), value("public"));
        let signed = herald::signing::ed25519_signature([&key].into_iter(), id, at_s, value("body").as_bytes());
        assert_eq!(signed, signature);
    }
    let headers = [("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)];
    let public = SecretText::new(value("public").to_owned()).unwrap();
    assert!(PublicKey::of(&public).is_some());
    let at = UNIX_EPOCH + Duration::from_secs(at_s);
    verify(&public, headers, value("body").as_bytes(), at, Duration::from_secs(300)).unwrap();
}

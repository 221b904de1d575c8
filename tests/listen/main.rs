//! `herald listen` and `herald verify` as a merchant meets them: the real program, callbacks of a real worker, and an application
//! that is forwarded to.

// A test waits for other processes.
#![allow(clippy::disallowed_methods)]

#[path = "../support/merchants.rs"]
mod merchants;
#[path = "../support/herald.rs"]
mod process;
#[path = "../receiver/mod.rs"]
mod receiver;
#[path = "../support/mod.rs"]
mod support;
mod verify;
#[path = "../support/world.rs"]
mod world;

use std::process::Stdio;

use herald::{
    clock,
    signing::{SecretText, dojo_signature, standard_signature},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStderr, ChildStdout, Command},
};

use receiver::Receiver;
use support::{soon, until};
use world::{Event, World};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

fn secret() -> SecretText {
    world::secret()
}

/// `herald listen`, with nothing of the environment of whoever runs the tests.
struct Listener {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
    address: String,
}

impl Listener {
    /// With the secret of the tests, and a line of JSON for each callback.
    async fn start(args: &[&str]) -> Self {
        let secret = secret();
        Self::with(&[&["--format", "json"], args].concat(), &[("HERALD_LISTEN_SECRET", secret.reveal())]).await
    }

    async fn with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.arg("listen").args(args).env_clear().envs(env.iter().copied()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = soon("its address", stderr.next_line()).await.unwrap().expect("it says where it listens");
        let address = said.strip_prefix("listening on http://").unwrap_or_else(|| panic!("{said}"));
        let address = address.split('/').next().unwrap().to_owned();
        Self { child, stdout, stderr, address }
    }

    async fn line(&mut self) -> String {
        soon("a callback", self.stdout.next_line()).await.unwrap().expect("it goes on")
    }

    async fn callback(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    async fn post(&self, callback: &Signed) -> (u16, String) {
        self.ask(&callback.request()).await
    }

    /// Status and everything that was answered; 0 for a connection that was closed.
    async fn ask(&self, request: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        let _ = soon("an answer", stream.read_to_string(&mut answer)).await;
        (answer.get(9..12).map_or(0, |status| status.parse().unwrap()), answer)
    }

    /// Its code, and what it said at the end.
    async fn ended(mut self) -> (i32, String) {
        let status = soon("its end", self.child.wait()).await.unwrap();
        let mut said = String::new();
        while let Ok(Some(line)) = self.stderr.next_line().await {
            said = format!("{said}{line}\n");
        }
        (status.code().expect("no signal ended it"), said)
    }

    async fn stop(self) -> (i32, String) {
        kill(Pid::from_raw(self.child.id().unwrap().try_into().unwrap()), Signal::SIGTERM).unwrap();
        self.ended().await
    }
}

/// A callback as Herald signs it, for what is posted by hand.
#[derive(Clone)]
struct Signed {
    id: String,
    seq: u64,
    body: String,
    secret: SecretText,
}

impl Signed {
    fn new(id: &str, intent: &str, seq: u64) -> Self {
        let body = format!(
            r#"{{"id":"{id}","event":"payment_intent.status_updated","accountId":"acc_1","createdAt":"2099-02-01T13:07:41Z","data":{{"paymentIntentId":"{intent}","paymentStatus":"Captured","captureMode":"Auto"}}}}"#
        );
        Self { id: id.to_owned(), seq, body, secret: secret() }
    }

    fn body(mut self, body: &str) -> Self {
        self.body = body.to_owned();
        self
    }

    fn head(&self) -> String {
        let now_s = clock::wall_ms() / 1000;
        let standard = standard_signature([&self.secret].into_iter(), &self.id, now_s, self.body.as_bytes());
        let dojo = dojo_signature(&self.secret, self.body.as_bytes());
        format!(
            "webhook-id: {}\r\nwebhook-timestamp: {now_s}\r\nwebhook-signature: {standard}\r\ndojo-signature: {dojo}\r\n\
             herald-attempt: 1\r\nherald-sequence: s{:020}-{:020}\r\n",
            self.id, 1, self.seq
        )
    }

    fn request(&self) -> Vec<u8> {
        let (head, length) = (self.head(), self.body.len());
        let own =
            format!("POST /own HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n{head}\r\n");
        [own.as_bytes(), self.body.as_bytes()].concat()
    }
}

/// A worker whose endpoint `ep_a` leads to the listener, and one event for it.
async fn send_to(world: &World, listener: &Listener) -> process::Herald {
    let url = format!("http://{}/hook", listener.address);
    world.change("ep_a", |endpoint| endpoint.url = url).await;
    let herald = world.setup().start();
    world.publish(&[Event::new(1, "acc_a", "pi_a", "Captured")]).await;
    herald
}

async fn world() -> World {
    let world = World::new().await;
    world.register(world.endpoint("ep_a", "acc_a")).await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_worker_sends_is_checked_shown_and_forwarded_to_the_byte() {
    let world = world().await;
    let app = Receiver::answering("HTTP/1.1 202 Accepted\r\nx-app: yes\r\ncontent-length: 2\r\n\r\nok").await;
    let args = ["--endpoint", "ep_a", "--redis-url", &world.redis.url(), "--forward-to", &app.url()];
    let mut listener = Listener::with(&[&["-o", "json"], &args[..]].concat(), &[]).await;
    let herald = send_to(&world, &listener).await;
    let seen = listener.callback().await;
    for scheme in ["standard", "dojo"] {
        assert_eq!(seen[scheme], serde_json::json!({"verdict": "valid", "faults": []}), "{seen}");
    }
    let text = |name: &str| seen[name].as_str().unwrap_or_default();
    assert_eq!((text("id"), text("event")), ("evt_0000001", "payment_intent.status_updated"));
    assert_eq!((text("intent"), text("status"), text("path")), ("pi_a", "Captured", "/hook"));
    assert_eq!((&seen["valid"], &seen["attempt"], &seen["times"]), (&true.into(), &1.into(), &1.into()));
    assert_eq!((&seen["answered"], &seen["forwarded"][0]["status"]), (&202.into(), &202.into()));
    // The event itself says that it happened years ago.
    assert!((0..60_000).contains(&seen["delay_ms"].as_i64().unwrap()), "{seen}");
    let [forwarded] = &app.log.seen()[..] else { panic!("it was forwarded once") };
    assert_eq!(forwarded.body, seen["body"].as_str().unwrap().as_bytes());
    let headers = seen["headers"].as_array().unwrap();
    let came = headers.iter().map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
    for (name, value) in came.filter(|(name, _)| !["host", "content-length"].contains(name)) {
        assert_eq!(forwarded.header(name), Some(value), "{name}");
    }
    assert_eq!(forwarded.head.lines().count() - 2, headers.len(), "{}", forwarded.head);
    world.until_finished().await;
    assert!(herald.stop().await.success());
    let (code, said) = listener.stop().await;
    assert_eq!(code, 0);
    assert!(said.contains("1 callback, 0 of them not valid"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_that_is_rehearsed_comes_again_and_the_application_sees_nothing() {
    let world = world().await;
    let app = Receiver::answering(OK).await;
    let mut listener = Listener::start(&["--forward-to", &app.url(), "--fail", "500"]).await;
    let herald = send_to(&world, &listener).await;
    for time in 1..=2 {
        let seen = listener.callback().await;
        assert_eq!((&seen["attempt"], &seen["times"]), (&time.into(), &time.into()), "{seen}");
        assert_eq!((&seen["answered"], &seen["rehearsed"][0]), (&500.into(), &"fail 500".into()));
        assert_eq!((&seen["taken_before"], &seen["valid"]), (&false.into(), &true.into()));
    }
    assert!(app.log.seen().is_empty());
    drop(herald);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_dropped_brings_a_duplicate_of_what_was_taken() {
    let world = world().await;
    let app = Receiver::answering(OK).await;
    let mut listener = Listener::start(&["--forward-to", &app.url(), "--drop-answer"]).await;
    let herald = send_to(&world, &listener).await;
    let first = listener.callback().await;
    assert_eq!((&first["answered"], &first["forwarded"][0]["status"]), (&Value::Null, &200.into()), "{first}");
    let again = listener.callback().await;
    assert_eq!((&again["times"], &again["taken_before"], &again["id"]), (&2.into(), &true.into(), &first["id"]));
    drop(herald);
}

#[tokio::test]
async fn a_duplicate_is_forwarded_twice_and_answered_once() {
    let app = Receiver::answering(OK).await;
    let mut listener = Listener::start(&["--forward-to", &app.url(), "--duplicate=100%", "--slow", "50ms"]).await;
    assert_eq!(listener.post(&Signed::new("evt_1", "pi_1", 1)).await.0, 200);
    let seen = listener.callback().await;
    assert_eq!(seen["forwarded"].as_array().unwrap().len(), 2, "{seen}");
    assert_eq!(seen["rehearsed"], serde_json::json!(["slow 50ms", "duplicate"]));
    assert_eq!(app.log.seen().len(), 2);
    assert_eq!(app.log.seen()[0].body, app.log.seen()[1].body);
}

#[tokio::test]
async fn one_that_is_held_back_is_forwarded_after_the_next_of_its_intent() {
    let app = Receiver::answering(OK).await;
    let mut listener = Listener::start(&["--forward-to", &app.url(), "--reorder"]).await;
    let callbacks = [("evt_1", "pi_1", 1), ("evt_2", "pi_1", 2)].map(|(id, intent, seq)| Signed::new(id, intent, seq));
    for callback in &callbacks {
        assert_eq!(listener.post(callback).await.0, 200);
    }
    let (second, first) = (listener.callback().await, listener.callback().await);
    assert_eq!((&second["id"], &first["id"]), (&"evt_2".into(), &"evt_1".into()));
    assert_eq!(first["rehearsed"], serde_json::json!(["reorder"]));
    let forwarded: Vec<String> =
        app.log.seen().iter().map(|seen| seen.header("webhook-id").unwrap().to_owned()).collect();
    assert_eq!(forwarded, ["evt_2", "evt_1"]);
    // What is still held at the end is forwarded all the same: it was answered 200.
    assert_eq!(listener.post(&Signed::new("evt_3", "pi_2", 3)).await.0, 200);
    assert_eq!(listener.stop().await.0, 0);
    assert_eq!(app.log.seen().len(), 3);
}

#[tokio::test]
async fn what_comes_late_or_again_is_said() {
    let mut listener = Listener::with(&["--format", "text"], &[("HERALD_LISTEN_SECRET", secret().reveal())]).await;
    for (id, seq) in [("evt_2", 2), ("evt_1", 1), ("evt_2", 2)] {
        assert_eq!(listener.post(&Signed::new(id, "pi_1", seq)).await.0, 200);
    }
    let mut lines = Vec::new();
    for _ in 0..14 {
        lines.push(listener.line().await);
    }
    let text = lines.join("\n");
    assert_eq!(
        (text.matches("webhook-signature: valid").count(), text.matches("dojo-signature: valid").count()),
        (3, 3)
    );
    assert!(lines[4].contains("pi_1  Captured  evt_1  attempt 1") && lines[7].contains("LATE: s0"), "{text}");
    assert!(text.contains("AGAIN: time 2 of this webhook-id; it was answered 2xx before"), "{text}");
}

#[tokio::test]
async fn an_application_that_cannot_be_reached_is_a_clear_502() {
    let gone = Receiver::answering(OK).await.url();
    let mut listener = Listener::start(&["--forward-to", &gone]).await;
    let (status, answer) = listener.post(&Signed::new("evt_1", "pi_1", 1)).await;
    assert!(status == 502 && answer.contains("application/problem+json"), "{answer}");
    assert!(answer.contains("is the application running there? (Connection refused"), "{answer}");
    let seen = listener.callback().await;
    assert_eq!((&seen["answered"], &seen["forwarded"][0]["status"]), (&502.into(), &Value::Null));
    assert!(seen["forwarded"][0]["problem"].as_str().unwrap().contains(&gone), "{seen}");
}

#[tokio::test]
async fn a_redirect_of_the_application_goes_back_and_is_not_followed() {
    let app = Receiver::answering("HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n").await;
    let listener = Listener::start(&["--forward-to", &app.url()]).await;
    let (status, answer) = listener.post(&Signed::new("evt_1", "pi_1", 1)).await;
    assert!(status == 302 && answer.contains("location: /other"), "{answer}");
    assert_eq!(app.log.seen().len(), 1);
}

#[tokio::test]
async fn the_first_bad_one_can_end_it_and_what_is_wrong_is_told() {
    let mut listener = Listener::start(&["--exit-on-first-bad", "--events", "payment_intent.created"]).await;
    // It is valid and not wanted, so it is not printed.
    assert_eq!(listener.post(&Signed::new("evt_1", "pi_1", 1)).await.0, 200);
    let signed = Signed::new("evt_2", "pi_1", 2);
    let rewritten = signed.body.replace(',', ", ");
    let request = String::from_utf8(signed.request()).unwrap();
    let (head, _) = request.split_once("\r\n\r\n").unwrap();
    let length = |body: &str| format!("content-length: {}", body.len());
    let head = head.replace(&length(&signed.body), &length(&rewritten));
    let (status, answer) = listener.ask(format!("{head}\r\n\r\n{rewritten}").as_bytes()).await;
    assert!(status == 401 && !answer.contains("white space"), "only its owner learns why: {answer}");
    let seen = listener.callback().await;
    assert_eq!((&seen["id"], &seen["valid"]), (&"evt_2".into(), &false.into()));
    assert_eq!(seen["standard"]["faults"][0]["fault"], "body_white_space");
    let (code, said) = listener.ended().await;
    assert!(code == 4 && said.contains("2 callbacks, 1 of them not valid"), "{code} {said}");
}

#[tokio::test]
async fn a_strangers_callback_makes_no_true_one_late_and_steers_no_terminal() {
    let mut listener = Listener::with(&["--format", "text"], &[("HERALD_LISTEN_SECRET", secret().reveal())]).await;
    let mut forged = Signed::new("evt_9", "pi_1", 9).body("{\"event\":\"\u{1b}]0;x\u{7}\u{202e}\",\"data\":{}}");
    forged.secret = SecretText::from_random([1; 32]);
    assert_eq!(listener.post(&forged).await.0, 401);
    assert_eq!(listener.post(&Signed::new("evt_1", "pi_1", 1)).await.0, 200);
    let mut text = String::new();
    for _ in 0..8 {
        text = format!("{text}{}\n", listener.line().await);
    }
    assert!(!text.contains(['\u{1b}', '\u{7}', '\u{202e}']) && !text.contains("LATE"), "{text:?}");
    assert!(text.contains("INVALID: signed with another secret"), "{text}");
}

#[tokio::test]
async fn what_is_too_large_or_no_callback_is_refused() {
    let listener = Listener::start(&[]).await;
    let large = Signed::new("evt_1", "pi_1", 1).body(&"x".repeat(64 * 1024 + 1));
    // The answer may come before all of it is sent.
    let (status, answer) = listener.ask(&large.request()).await;
    assert!(status == 413 || status == 0, "{answer}");
    let (status, answer) = listener.ask(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(status == 405 && answer.contains("allow: POST"), "{answer}");
    let (status, answer) =
        listener.ask(b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    assert!(status == 401, "{answer}");
}

#[tokio::test]
async fn many_at_once_are_all_shown() {
    let mut listener = Listener::start(&["--slow", "20ms"]).await;
    let posts = (0..40_u64).map(|n| Signed::new(&format!("evt_{n}"), &format!("pi_{n}"), n));
    let posts: Vec<Signed> = posts.collect();
    let answers = futures_util::future::join_all(posts.iter().map(|callback| listener.post(callback))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200));
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..40 {
        ids.insert(listener.callback().await["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 40);
}

#[tokio::test]
async fn what_it_cannot_do_is_said_with_what_to_do() {
    let taken = Listener::start(&[]).await;
    let secret = secret();
    for (args, code, says) in [
        (vec!["--listen", &taken.address], 1, "cannot listen on"),
        (vec!["--exit-on-first-bad"], 2, "needs a secret"),
        (vec!["--duplicate"], 2, "--forward-to"),
        (vec!["--fail", "200"], 2, "no status of a failure"),
        (vec!["--slow", "1h"], 2, "at most 5m"),
        (vec!["--events", "a b"], 2, "event type"),
        (vec!["--forward-to", "http://10.0.0.1/"], 4, "HERALD_ALLOW_HTTP"),
        (vec!["--secret", "whsec_geheim"], 4, "base64 of 24 to 64 bytes"),
        (vec!["--secret-file", "/nowhere/at/all"], 3, "/nowhere/at/all"),
        (vec!["--secret", secret.reveal(), "--endpoint", "ep_a"], 2, "--endpoint"),
        (vec!["--endpoint", "ep_a", "--redis-url", "redis://127.0.0.1:1"], 1, "Redis is unavailable"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_herald")).arg("listen").args(&args).env_clear().output();
        let output = soon("its end", output).await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && said.contains(says), "{args:?}: {:?} {said}", output.status);
        assert!(!said.contains("geheim"), "{said}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_it_without_an_error() {
    let Listener { mut child, stdout, stderr, address } = Listener::start(&[]).await;
    drop(stdout);
    let callback = Signed::new("evt_1", "pi_1", 1);
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(&callback.request()).await.unwrap();
    let status = soon("its end", child.wait()).await.unwrap();
    drop(stderr);
    assert!(status.success(), "{status}");
    until("the port is free", async || TcpStream::connect(&address).await.is_err()).await;
}

//! Each role's work with the program itself, as the user that `herald doctor --print-acl --role` makes, and what it is refused.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    process::{Child, Output, Stdio},
};

use serde_json::Value;

use crate::{
    herald,
    process::{Setup, free_address, get},
    support::{TestRedis, until},
    told,
    world::{Event, World, lives},
};

const ROLES: [&str; 5] = ["worker", "operator", "viewer", "producer", "intents"];

/// A Redis in which each role has its user.
struct Roles {
    world: World,
}

impl Roles {
    async fn start() -> Self {
        let roles = Self { world: World::on(TestRedis::start().await).await };
        for role in ROLES {
            let printed = herald(&["doctor", "--print-acl", "--role", role], &[]).output().unwrap();
            let rule = String::from_utf8(printed.stdout).unwrap();
            assert_eq!(rule.lines().count(), 1, "{rule}");
            let rule = rule.trim().replace(">PASSWORD", ">secret");
            roles.world.redis.command::<()>(&rule.split(' ').collect::<Vec<_>>()).await;
        }
        roles
    }

    fn url(&self, role: &str) -> String {
        let user = if role == "worker" { "herald".to_owned() } else { format!("herald-{role}") };
        format!("redis://{user}:secret@{}", self.world.redis.address())
    }

    fn run(&self, role: &str, words: &[&str]) -> Output {
        self.command(role, words).output().unwrap()
    }

    fn command(&self, role: &str, words: &[&str]) -> std::process::Command {
        let env = [
            ("HERALD_REDIS_URL", self.url(role)),
            ("HERALD_ALLOW_HTTP", "true".to_owned()),
            ("HERALD_ALLOW_NETWORKS", "127.0.0.0/8".to_owned()),
            ("HERALD_SANDBOX", "true".to_owned()),
            ("USER", "ops".to_owned()),
        ];
        herald(words, &env.each_ref().map(|(name, value)| (*name, value.as_str())))
    }

    fn done(&self, role: &str, words: &[&str]) -> Value {
        let output = self.run(role, words);
        assert!(output.status.success(), "{role} {words:?}: {}", told(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn publish(&self, events: &[Event]) {
        let mut child = self
            .command("producer", &["event", "publish", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = child.stdin.take().unwrap();
        events.iter().for_each(|event| writeln!(lines, "{}", event.body).unwrap());
        drop(lines);
        assert!(child.wait().unwrap().success());
    }
}

/// It ends with the test.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn post(address: SocketAddr, path: &str, key: &str, body: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nhost: h\r\nauthorization: Basic {key}\r\nversion: 2025-09-10");
    let length = body.len();
    write!(
        stream,
        "{head}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let answer = std::io::read_to_string(stream).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_does_all_of_its_work_as_its_own_user() {
    let roles = Roles::start().await;
    let (world, merchants) = (&roles.world, &roles.world.merchants);
    // The merchants have one secret, which is too weak for the verb.
    world.register_many(2).await;
    merchants.rule("ep_1", |_| crate::merchants::Reply::status(500));
    let setup = Setup::new(&roles.url("worker")).env("HERALD_RETRY_MAX_ATTEMPTS", "1");
    let worker = setup.start();
    let accounts = ["acc_0".to_owned(), "acc_1".to_owned()];
    roles.publish(&lives(1, &accounts, 20));
    let dead = async || world.redis.command::<u64>(&["ZCARD", "herald:{payment-intents}:dead"]).await;
    until("what cannot be delivered is given up", async || dead().await > 0).await;
    until("the rest is delivered", async || merchants.log().delivered_to("ep_0") > 0).await;

    // The service of payment intents.
    let listen = free_address();
    let key = roles.done("operator", &["intents", "key", "create", "--account", "acc_0", "-o", "json"]);
    let mut service = roles.command("intents", &["intents", "serve"]);
    let service = service.env("HERALD_INTENTS_LISTEN", listen.to_string()).stderr(Stdio::null()).spawn().unwrap();
    let service = Service(service);
    until("the service answers", async || get(listen, "/healthz").is_some_and(|(status, _)| status == 200)).await;
    let before = merchants.log().delivered_to("ep_0");
    let body = r#"{"amount":{"value":1000,"currencyCode":"GBP"},"reference":"Order 236"}"#;
    post(listen, "/payment-intents", key["key"].as_str().unwrap(), body);
    until("its event is delivered", async || merchants.log().delivered_to("ep_0") > before).await;
    drop(service);
    let triggered = roles.done("intents", &["trigger", "--account", "acc_0", "-o", "json"]);
    let intent = triggered["intent"]["id"].as_str().unwrap().to_owned();

    // Whoever looks.
    let letters = roles.done("viewer", &["dead-letter", "list", "-o", "json"]);
    let letter = letters[0]["delivery"].as_str().or(letters[0]["id"].as_str()).unwrap().to_owned();
    let found = ["pi_000000".to_owned(), "evt_0000000".to_owned()];
    let operation = roles
        .done("operator", &["operation", "plan", "discard", "--account", "acc_1", "-o", "json", "--reason", "a test"]);
    let operation = operation["id"].as_str().unwrap().to_owned();
    for words in [
        &["doctor"][..],
        &["endpoint", "list"],
        &["endpoint", "show", "ep_0"],
        &["delivery", "list", "--account", "acc_1"],
        &["delivery", "show", &letter],
        &["dead-letter", "list", "--group-by", "endpoint,cause"],
        &["dead-letter", "show", &letter],
        &["dead-letter", "export", "--endpoint", "ep_1"],
        &["chain", "list", "--endpoint", "ep_1"],
        &["event", "show", &found[1]],
        &["story", &found[0]],
        &["story", &intent],
        &["issue", "list"],
        &["issue", "show", "ep_1:server_failed:500"],
        &["operation", "list"],
        &["operation", "show", &operation],
        &["operation", "results", &operation],
        &["quarantine", "list"],
        &["intents", "explain", &intent],
        &["intents", "key", "list"],
        &["token", "list"],
        &["audit", "list"],
        &["sandbox", "clock", "show"],
        &["config", "check"],
    ] {
        let output = roles.run("viewer", words);
        let said = told(&output);
        assert!(!said.contains("denies") && !said.contains("NOPERM"), "{words:?}: {said}");
        // An issue needs its time to open, and the doctor has something to say of a Redis without a file.
        let may_fail = ["doctor", "issue", "event"].contains(&words[0]);
        assert!(output.status.success() || may_fail, "{words:?}: {said}");
    }

    // Whoever acts.
    let sure = ["--reason", "a test", "--yes"];
    for words in [
        &["endpoint", "create", "--id", "ep_2", "--account", "acc_2", "--url", "https://1.1.1.1/"][..],
        &["operation", "start", &operation, "--watch", "--reason", "a test"],
        &["endpoint", "pause", "ep_0", "--reason", "a test"],
        &["endpoint", "resume", "ep_0", "--reason", "a test"],
        &[&["endpoint", "rotate-secret", "ep_0"][..], &sure].concat(),
        &[&["endpoint", "delete", "ep_1"][..], &sure].concat(),
        &["token", "create", "--role", "viewer", "--name", "wall", "--reason", "a test"],
        &["pause", "--all", "--reason", "a test"],
        &["resume", "--all", "--reason", "a test"],
    ] {
        roles.done("operator", words);
    }
    assert!(worker.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_role_may_not_do_is_refused_with_what_to_do() {
    let roles = Roles::start().await;
    roles.world.register_many(1).await;
    let sure = ["--reason", "a test", "--yes"];
    let event = lives(1, &["acc_0".to_owned()], 1).remove(0);
    let file = std::env::temp_dir().join(format!("herald-role-event-{}.json", std::process::id()));
    std::fs::write(&file, event.body).unwrap();
    let publish = ["event", "publish", file.to_str().unwrap()];
    let snapshot = async || {
        let keys: Vec<String> = roles.world.redis.command(&["KEYS", "*"]).await;
        let mut dumps = Vec::new();
        for key in keys {
            let dump: Vec<u8> = roles.world.redis.command(&["DUMP", &key]).await;
            dumps.push((key, dump));
        }
        dumps.sort();
        dumps
    };
    let before = snapshot().await;
    for (role, words) in [
        ("viewer", &["endpoint", "pause", "ep_0", "--reason", "a test"][..]),
        ("viewer", &[&["endpoint", "delete", "ep_0"][..], &sure].concat()),
        ("viewer", &["endpoint", "create", "--account", "acc_0", "--url", "https://1.1.1.1/"]),
        ("viewer", &["pause", "--all", "--reason", "a test"]),
        ("viewer", &["token", "create", "--role", "admin", "--name", "me", "--reason", "a test"]),
        ("viewer", &["intents", "key", "create", "--account", "acc_0", "--reason", "a test"]),
        ("viewer", &["operation", "plan", "discard", "--account", "acc_0", "--reason", "a test"]),
        ("viewer", &["sandbox", "clock", "advance", "1h", "--reason", "a test"]),
        ("viewer", &["trigger", "--account", "acc_0"]),
        ("viewer", &publish),
        ("operator", &publish),
        ("operator", &["trigger", "--account", "acc_0"]),
        ("producer", &["endpoint", "list"]),
        ("producer", &["endpoint", "pause", "ep_0", "--reason", "a test"]),
        ("producer", &["audit", "list"]),
        ("intents", &["dead-letter", "list"]),
        ("intents", &["quarantine", "list"]),
    ] {
        let output = roles.run(role, words);
        let said = told(&output);
        assert_eq!(output.status.code(), Some(1), "{role} {words:?}: {said}");
        assert!(
            said.contains("Redis denies it") && said.contains("herald doctor --print-acl"),
            "{role} {words:?}: {said}"
        );
    }
    std::fs::remove_file(file).unwrap();
    assert_eq!(snapshot().await, before);
}

//! Scenario files, and `herald listen` with a key: the real program against a real service and a real worker, as a merchant runs
//! them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
};

use super::{
    house::{HERALD, House, created},
    process::{Herald, Setup},
    receiver::Receiver,
    support::{soon, until},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// A service whose callbacks may come to this machine, and a worker that delivers them.
async fn house() -> (House, Herald) {
    let house = House::start_with(&[("HERALD_ALLOW_HTTP", "true"), ("HERALD_ALLOW_NETWORKS", "127.0.0.0/8")]).await;
    let worker = Setup::new(&house.redis.url()).start();
    (house, worker)
}

fn command(house: &House, args: &[&str]) -> Command {
    let mut command = Command::new(HERALD);
    command
        .args(["-o", "json"])
        .args(args)
        .args(["--url", house.url()])
        .env_clear()
        .env("HERALD_REDIS_URL", house.redis.url());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// `herald sandbox run`, with the key of an account of its own.
async fn run(house: &House, account: &str, file: &Path, more: &[&str]) -> Output {
    let mut command = command(house, &[&["sandbox", "run", file.to_str().unwrap()], more].concat());
    command.env("HERALD_API_KEY", house.merchant(account).key());
    soon("the scenario", command.output()).await.unwrap()
}

fn report(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// A scenario in a scratch folder.
fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scenario.yaml");
    fs::write(&file, text).unwrap();
    (folder, file)
}

/// Those that take events. One that was deleted stays disabled until what it was owed is settled.
async fn endpoints(house: &House) -> usize {
    let all: Vec<String> = house.redis.command(&["HVALS", "herald:{herald}:registry"]).await;
    let all = all.iter().map(|json| serde_json::from_str::<Value>(json).unwrap());
    all.filter(|endpoint| endpoint["status"]["state"] == "enabled").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_of_the_documentation_goes_as_it_says() {
    let (house, worker) = house().await;
    let app = Receiver::answering(OK).await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/scenarios");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    assert!(files.len() >= 3);
    for (n, file) in files.iter().enumerate() {
        let account = format!("acc_{n}");
        let plain = run(&house, &account, file, &["--seed", "7"]).await;
        assert!(plain.status.success(), "{}", String::from_utf8_lossy(&plain.stderr));
        let plain = report(&plain);
        assert!(plain["callbacks"].as_array().unwrap().iter().all(|one| one["answered"] == 200), "{plain}");
        // The same again, with the merchant's application behind it.
        let before = app.log.seen().len();
        let forwarded = run(&house, &account, file, &["--seed", "7", "--forward-to", &app.url()]).await;
        assert!(forwarded.status.success(), "{}", String::from_utf8_lossy(&forwarded.stderr));
        let callbacks = report(&forwarded)["callbacks"].as_array().unwrap().len();
        assert_eq!(app.log.seen().len(), before + callbacks);
    }
    assert_eq!(endpoints(&house).await, 0, "an endpoint was left behind");
    assert!(worker.stop().await.success());
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_sends_nothing_to_this_machine_is_named_with_what_to_set() {
    let house = House::start().await;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/scenarios/purchase-and-refund.yaml");
    let ran = run(&house, "acc_a", &file, &[]).await;
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.contains("HERALD_ALLOW_HTTP=true") && said.contains("HERALD_ALLOW_NETWORKS=127.0.0.0/8"), "{said}");
    assert_eq!(endpoints(&house).await, 0);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deviation_is_said_with_its_line_and_ends_the_run() {
    let (house, _worker) = house().await;
    let (_folder, file) = written(
        "steps:\n  - create: { amount: { value: 1000, currencyCode: GBP }, reference: a }\n    as: order\n  - pay: order\n    \
         expect: { code: 200, body: { status: Authorized } }\n  - cancel: order\n",
    );
    let ran = run(&house, "acc_a", &file, &["--seed", "9"]).await;
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(1), "{said}");
    let found = report(&ran);
    let step = |n: usize| (&found["steps"][n]["verdict"], &found["steps"][n]["line"]);
    assert_eq!(step(1), (&json!("deviates"), &json!(4)), "{found}");
    assert_eq!(step(2), (&json!("notRun"), &json!(6)));
    let says = "status: expected \"Authorized\", came \"Captured\"";
    assert_eq!(found["steps"][1]["deviations"], json!([says]));
    assert!(said.contains(says) && said.contains("--seed 9"), "{said}");

    let junit = run(&house, "acc_a", &file, &["--format", "junit"]).await;
    let junit = String::from_utf8(junit.stdout).unwrap();
    assert!(junit.contains("tests=\"3\" failures=\"1\" skipped=\"1\""), "{junit}");
    let text = run(&house, "acc_a", &file, &["--format", "text"]).await;
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("FAIL  line 4    pay order  200") && text.ends_with("FAILED\n"), "{text}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callbacks_that_are_not_as_expected_are_each_named() {
    let (house, worker) = house().await;
    let app = Receiver::answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let (_folder, file) = written(
        "steps:\n  - create: { amount: { value: 1000, currencyCode: GBP }, reference: a }\n    as: order\n  - pay: order\n\
         callbacks:\n  order: [{ event: created, answer: 200 }, Authorized, Refunded]\n",
    );
    let ran = run(&house, "acc_a", &file, &["--forward-to", &app.url()]).await;
    assert_eq!(ran.status.code(), Some(1));
    let found = report(&ran);
    let deviations: Vec<_> = found["callbacks"].as_array().unwrap().iter().map(|one| &one["deviations"][0]).collect();
    let expected = [
        "the application was to answer 200, and answered 204",
        "expected Authorized, told payment_intent.status_updated Captured",
        "Refunded was never told",
    ];
    assert_eq!(deviations, expected, "{found}");
    assert_eq!(endpoints(&house).await, 0);

    // Told, and nobody delivers it.
    assert!(worker.stop().await.success());
    let ran = run(&house, "acc_a", &file, &["--wait", "50ms"]).await;
    let found = report(&ran);
    let missing = found["callbacks"][0]["deviations"][0].as_str().unwrap();
    assert!(missing.contains("did not arrive: does a worker"), "{found}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_a_fault_is_refused_before_anything_is_asked() {
    let house = House::start().await;
    for (text, says) in [
        ("steps:\n  - pay: order\n", "line 2: pay order: no step before it is called order"),
        ("steps:\n  - create: {}\n    ass: a\n", "unknown field `ass`"),
        ("steps: [\n", "line"),
    ] {
        let (_folder, file) = written(text);
        let ran = run(&house, "acc_a", &file, &[]).await;
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.code() == Some(2) && said.contains("scenario.yaml") && said.contains(says), "{said}");
    }
    let gone = run(&house, "acc_a", Path::new("/nowhere/a.yaml"), &[]).await;
    assert_eq!(gone.status.code(), Some(2));
    assert!(house.events().await.is_empty());
    house.end().await;
}

/// A program that runs until it is stopped.
struct Running {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, stdout, stderr }
    }

    async fn until_it_says(&mut self, text: &str) -> String {
        loop {
            let line = soon(text, self.stderr.next_line()).await.unwrap().unwrap_or_else(|| panic!("it ended: {text}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    async fn end_by(mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.child.id().unwrap().try_into().unwrap()), signal).unwrap();
        soon("its end", self.child.wait()).await.unwrap().code()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listen_with_a_key_makes_an_endpoint_and_takes_it_away_again() {
    let (house, worker) = house().await;
    let merchant = house.merchant("acc_a");
    let events = ["--events", "payment_intent.created"];
    for (signal, more) in [(Signal::SIGTERM, &[][..]), (Signal::SIGINT, &events[..])] {
        let args = ["listen", "--format", "json", "--key", merchant.key()];
        let mut listener = Running::start(command(&house, &[&args[..], more].concat()));
        listener.until_it_says("leads here until this ends").await;
        listener.until_it_says("listening on").await;
        assert_eq!(endpoints(&house).await, 1);
        merchant.create(&created()).await;
        let line = soon("a callback", listener.stdout.next_line()).await.unwrap().unwrap();
        let seen: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&seen["valid"], &seen["event"]), (&json!(true), &json!("payment_intent.created")), "{seen}");
        for scheme in ["standard", "dojo"] {
            assert_eq!(seen[scheme]["verdict"], "valid", "{seen}");
        }
        assert_eq!(listener.end_by(signal).await, Some(0));
        assert_eq!(endpoints(&house).await, 0, "its endpoint is still there");
    }
    // Before it has listened at all.
    let mut busy = command(&house, &["listen", "--key", merchant.key(), "--secret", "whsec_x"]);
    assert_eq!(soon("its end", busy.output()).await.unwrap().status.code(), Some(2));
    let unknown = command(&house, &["listen", "--key", "sk_sandbox_nobody"]).output().await.unwrap();
    assert!(unknown.status.code() == Some(1), "{}", String::from_utf8_lossy(&unknown.stderr));
    assert!(worker.stop().await.success());
    house.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scenario_that_is_interrupted_leaves_no_endpoint_behind() {
    // Nobody delivers, so it waits.
    let house = House::start_with(&[("HERALD_ALLOW_HTTP", "true"), ("HERALD_ALLOW_NETWORKS", "127.0.0.0/8")]).await;
    let (_folder, file) = written(
        "steps:\n  - create: { amount: { value: 1000, currencyCode: GBP }, reference: a }\n    as: order\n  - delivered: order\n",
    );
    let args = ["sandbox", "run", file.to_str().unwrap(), "--wait", "1h"];
    let mut command = command(&house, &args);
    command.env("HERALD_API_KEY", house.merchant("acc_a").key());
    let running = Running::start(command);
    until("its intent", async || !house.events().await.is_empty()).await;
    assert_eq!(endpoints(&house).await, 1);
    assert_eq!(running.end_by(Signal::SIGTERM).await, Some(1));
    assert_eq!(endpoints(&house).await, 0);
    house.end().await;
}

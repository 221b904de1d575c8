//! The command line as its users meet it: the real binary against a real Redis.

mod receiver;
mod support;

use std::{
    io::Write,
    net::TcpListener,
    process::{Command, Stdio},
};

use receiver::{Receiver, Seen};
use serde_json::Value;
use support::TestRedis;
use tokio::runtime::Runtime;

const WHO: [&str; 4] = ["--reason", "a test", "--by", "tester"];

const EVENT: &str = r#"{"id":"evt_1","event":"payment_intent.status_updated","accountId":"acc_1","createdAt":"2022-02-01T13:07:41Z","data":{"paymentIntentId":"pi_1","paymentStatus":"Captured","captureMode":"Auto"}}"#;

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Done {
    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// Checks the code, and that the message begins as every message does and contains this.
    #[track_caller]
    fn failed(&self, code: i32, says: &str) {
        assert_eq!(self.code, code, "{}", self.stderr);
        assert!(self.stderr.contains("error: ") && self.stderr.contains(says), "{says:?} is not in {}", self.stderr);
    }
}

/// Nothing of the tester's own environment; and JSON, unless a test wants something else.
fn command(args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.args(if args.contains(&"-o") { &[][..] } else { &["-o", "json"] });
    command.args(args).env_clear().envs(env.iter().copied()).stdin(Stdio::null());
    command
}

fn finish(mut command: Command) -> Done {
    let output = command.output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("the output is UTF-8");
    Done { code: output.status.code().expect("no signal"), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Without any Redis.
fn alone(args: &[&str]) -> Done {
    finish(command(args, &[]))
}

/// The tests here wait for processes, not for tasks: only Redis needs a runtime.
struct Cli {
    redis: TestRedis,
    runtime: Runtime,
}

impl Cli {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        Self { redis: runtime.block_on(TestRedis::start()), runtime }
    }

    /// One command of the test's own.
    fn redis<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.runtime.block_on(self.redis.command(words))
    }

    fn command(&self, args: &[&str]) -> Command {
        command(args, &[("HERALD_REDIS_URL", &self.redis.url())])
    }

    fn run(&self, args: &[&str]) -> Done {
        finish(self.command(args))
    }

    /// For receivers on the loopback.
    fn run_private(&self, args: &[&str]) -> Done {
        let mut command = self.command(args);
        command.env("HERALD_ALLOW_HTTP", "true").env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8");
        finish(command)
    }

    fn fed(&self, args: &[&str], input: &str) -> Done {
        let mut file = tempfile::tempfile().expect("a scratch file can be made");
        file.write_all(input.as_bytes()).expect("a scratch file can be written");
        std::io::Seek::rewind(&mut file).expect("a file can be rewound");
        let mut command = self.command(args);
        command.stdin(file);
        finish(command)
    }

    /// An endpoint at an address that needs no name server. Returns its id and its secret.
    fn create(&self, more: &[&str]) -> (String, String) {
        let args = ["endpoint", "create", "--account", "acc_1", "--url", "https://1.1.1.1/hook"];
        let created = self.run(&[&args, &WHO[..], more].concat()).ok().json();
        let text = |name: &str| created[name].as_str().expect("it is a text").to_owned();
        (text("id"), text("secret"))
    }
}

#[test]
fn a_secret_is_shown_once_and_masked_ever_after() {
    let cli = Cli::start();
    let (id, secret) = cli.create(&["--header", "x-key: geheim", "--event", "payment_intent.created"]);
    assert!(secret.starts_with("whsec_") && secret.len() == "whsec_".len() + 44, "32 bytes as base64");
    for args in [vec!["endpoint", "list"], vec!["endpoint", "show", &id]] {
        for format in ["table", "json", "jsonl"] {
            let shown = cli.run(&[&args[..], &["-o", format]].concat()).ok();
            assert!(
                shown.stdout.contains(&id)
                    && shown.stdout.contains("x-key") == (args[1] == "show" || format != "table")
            );
            assert!(!shown.stdout.contains(&secret) && !shown.stdout.contains("geheim"), "{}", shown.stdout);
        }
    }
    let shown = cli.run(&["endpoint", "show", &id]).ok().json();
    assert_eq!((&shown["state"], &shown["schemes"][1]), (&"enabled".into(), &"dojo".into()));
    assert_eq!(shown["secrets"][0]["value"], "(hidden)");
}

#[test]
fn a_rotation_signs_at_once_and_ends_the_older_secret_after_the_overlap() {
    let cli = Cli::start();
    let (id, secret) = cli.create(&[]);
    let rotated = cli.run(&[&["endpoint", "rotate-secret", &id, "--overlap", "1h"], &WHO[..]].concat()).ok();
    assert!(rotated.stderr.contains("dojo-signature carries one signature only"), "{}", rotated.stderr);
    let rotated = rotated.json();
    assert_ne!(rotated["secret"], secret.as_str());
    let secrets = rotated["secrets"].as_array().unwrap();
    let at = |time: &Value| time.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond();
    assert_eq!(at(&secrets[0]["expires_at"]), at(&secrets[1]["created_at"]) + 3_600_000);
    assert_eq!((secrets.len(), &secrets[1]["expires_at"]), (2, &Value::Null));
    // Ending the older ones at once takes something away, so it asks.
    cli.run(&[&["endpoint", "rotate-secret", &id, "--overlap", "0s"], &WHO[..]].concat()).failed(4, "add --yes");
    let last = cli.run(&[&["endpoint", "rotate-secret", &id, "--overlap", "0s", "--yes"], &WHO[..]].concat()).ok();
    assert_eq!(last.json()["secrets"].as_array().unwrap().len(), 1);
}

#[test]
fn an_endpoint_is_updated_paused_disabled_and_deleted_with_who_and_why() {
    let cli = Cli::start();
    let (id, _) = cli.create(&["--rate-limit", "5"]);
    let change = |args: &[&str]| cli.run(&[args, &[&id], &WHO[..]].concat());
    let updated = change(&["endpoint", "update", "--max-in-flight", "3", "--no-rate-limit", "--retry-jitter", "0"]);
    let updated = updated.ok().json();
    assert_eq!((&updated["max_in_flight"], &updated["rate_limit"]), (&3.into(), &Value::Null));
    assert_eq!((&updated["retry"]["jitter"], &updated["revision"]), (&0.0.into(), &2.into()));
    assert!(change(&["endpoint", "update", "--max-in-flight", "3"]).ok().stderr.contains("nothing was changed"));
    change(&["endpoint", "update", "--max-in-flight", "0"]).failed(4, "between 1 and 1000");
    let paused = change(&["endpoint", "pause"]).ok().json();
    assert_eq!(
        (&paused["state"], &paused["by"], &paused["why"]),
        (&"paused".into(), &"tester".into(), &"a test".into())
    );
    change(&["endpoint", "enable"]).failed(4, "resume it instead");
    assert_eq!(change(&["endpoint", "resume"]).ok().json()["state"], "enabled");
    assert_eq!(change(&["endpoint", "disable", "--yes"]).ok().json()["state"], "disabled");
    assert_eq!(cli.run(&["endpoint", "list", "--state", "enabled"]).ok().json(), serde_json::json!([]));
    change(&["endpoint", "delete", "--yes"]).ok();
    cli.run(&["endpoint", "show", &id]).failed(3, "there is no endpoint");
}

#[test]
fn a_change_needs_a_reason_and_a_destructive_one_a_yes() {
    let cli = Cli::start();
    let (id, _) = cli.create(&[]);
    cli.run(&["endpoint", "delete", &id, "--yes", "--by", "me"]).failed(2, "--reason");
    // Where nothing says who it is, as in a container, it is an operator.
    let nameless = cli.run(&["endpoint", "pause", &id, "--reason", "r"]).ok().json();
    assert_eq!(nameless["by"], "operator");
    cli.run(&["endpoint", "resume", &id, "--reason", "r"]).ok();
    cli.run(&["endpoint", "delete", &id, "--yes", "--reason", " ", "--by", "me"]).failed(2, "--reason");
    cli.run(&[&["endpoint", "delete", &id], &WHO[..]].concat()).failed(4, "nobody to ask: add --yes");
    let dry = cli.run(&[&["endpoint", "delete", &id, "--dry-run"], &WHO[..]].concat()).ok();
    assert!(dry.stderr.contains("dry run: this would delete endpoint"), "{}", dry.stderr);
    cli.run(&["endpoint", "show", &id]).ok();
    // The name comes from the environment.
    let mut command = cli.command(&["endpoint", "pause", &id, "--reason", "r"]);
    command.env("USER", "anna");
    assert_eq!(finish(command).ok().json()["by"], "anna");
}

#[test]
fn a_new_endpoint_needs_no_reason() {
    let cli = Cli::start();
    let create = ["endpoint", "create", "--account", "acc_1", "--url", "https://1.1.1.1/", "-o", "json"];
    assert!(cli.run(&create).ok().json()["secret"].as_str().unwrap().starts_with("whsec_"));
    let feed: Vec<(String, Vec<String>)> = cli.redis(&["XRANGE", "herald:{herald}:registry:changes", "-", "+"]);
    assert!(feed[0].1.iter().any(|text| text == "created"), "{feed:?}");
    cli.run(&[&create[..], &["--reason", " "]].concat()).failed(2, "--reason");
}

#[test]
fn a_url_is_judged_when_it_is_new_and_not_again() {
    let cli = Cli::start();
    let create = ["endpoint", "create", "--account", "acc_1", "--url", "http://127.0.0.1:2/"];
    cli.run(&create).failed(4, "the configuration of this shell");
    let created = cli.run_private(&create).ok().json();
    let id = created["id"].as_str().unwrap();
    let update = |args: &[&str]| cli.run(&[&["endpoint", "update", id], args, &WHO[..]].concat());
    update(&["--max-in-flight", "3"]).ok();
    update(&["--url", "http://127.0.0.1:3/"]).failed(4, "HERALD_ALLOW_HTTP");
    cli.run(&[&["endpoint", "rotate-secret", id], &WHO[..]].concat()).ok();
    let export = cli.run(&["endpoint", "export"]).ok().stdout;
    let import = [&["endpoint", "import", "-", "--yes"], &WHO[..]].concat();
    let said = cli.fed(&import, &export).ok().stderr;
    assert!(said.contains("imported 1 endpoint: "), "{said}");
    cli.fed(&import, &export.replace(":2/", ":3/")).failed(4, "HERALD_ALLOW_HTTP");
    cli.fed(&import, &export.replace(id, "ep_other")).failed(4, "ep_other");
}

#[test]
fn an_export_comes_back_whole_after_everything_is_gone() {
    let cli = Cli::start();
    let (kept, secret) = cli.create(&["--header", "x-key: geheim"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endpoints.json");
    let file = path.to_str().unwrap();
    let export = cli.run(&["endpoint", "export", "--file", file]).ok();
    assert_eq!(export.stdout, "");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    cli.run(&["endpoint", "export", "--file", file]).failed(4, "--force replaces it");
    assert!(cli.run(&["endpoint", "export", "--file", "-"]).ok().stdout.contains(&secret));

    let (added, _) = cli.create(&[]);
    cli.run(&[&["endpoint", "update", &kept, "--timeout", "3s"], &WHO[..]].concat()).ok();
    let dry = cli.run(&[&["endpoint", "import", file, "--dry-run"], &WHO[..]].concat()).ok();
    let mut differences: Vec<(String, String)> = dry
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|d| (d["id"].as_str().unwrap().to_owned(), format!("{} {}", d["action"].as_str().unwrap(), d["fields"])))
        .collect();
    differences.sort();
    let mut expected =
        vec![(kept.clone(), "changed [\"timeout_ms\"]".to_owned()), (added.clone(), "removed []".to_owned())];
    expected.sort();
    assert_eq!(differences, expected);
    assert!(dry.stderr.contains("0 added, 1 changed, 1 removed") && !dry.stdout.contains("geheim"), "{}", dry.stderr);
    cli.run(&["endpoint", "show", &added]).ok();

    let import = [&["endpoint", "import", file, "--yes"], &WHO[..]].concat();
    cli.run(&import).ok();
    cli.run(&["endpoint", "show", &added]).failed(3, &added);
    assert_eq!(cli.run(&["endpoint", "show", &kept]).ok().json()["timeout_ms"], Value::Null);
    cli.redis::<()>(&["FLUSHALL"]);
    cli.run(&["endpoint", "export"]).failed(3, "there is no registry");
    cli.run(&import).ok();
    assert!(cli.run(&["endpoint", "export"]).ok().stdout.contains(&secret));
    let wrong = std::fs::read_to_string(&path).unwrap().replace("https://1.1.1.1", "https://10.0.0.1");
    cli.fed(&[&["endpoint", "import", "-", "--yes"], &WHO[..]].concat(), &wrong).failed(4, "a private network");
    cli.fed(&[&["endpoint", "import", "-", "--yes"], &WHO[..]].concat(), "{}").failed(4, "not an export of endpoints");
}

#[test]
fn an_import_refuses_the_secrets_that_create_refuses() {
    let cli = Cli::start();
    let (_, secret) = cli.create(&[]);
    let export = cli.run(&["endpoint", "export"]).ok().stdout;
    let import = [&["endpoint", "import", "-", "--yes"], &WHO[..]].concat();
    let create = ["endpoint", "create", "--account", "a", "--url", "https://1.1.1.1/"];
    for weak in ["short", "aaaaaaaaaaaaaaaaaaaaaaaa"] {
        cli.run(&[&create[..], &["--secret", weak], &WHO[..]].concat()).failed(4, "signatures can be forged");
        cli.fed(&import, &export.replace(&secret, weak)).failed(4, "signatures can be forged");
    }
    cli.fed(&import, &export.replace(&secret, "a-secret-of-its-own")).ok();
}

#[test]
fn an_expired_secret_leaves_with_the_next_export_and_import() {
    let cli = Cli::start();
    let (id, old) = cli.create(&[]);
    let rotate = ["endpoint", "rotate-secret", &id, "--overlap", "24h"];
    let new = cli.run(&[&rotate[..], &WHO[..]].concat()).ok().json()["secret"].as_str().unwrap().to_owned();
    let mut export: Value = cli.run(&["endpoint", "export"]).ok().json();
    assert!(export.to_string().contains(&old));
    export["endpoints"][0]["secrets"][0]["expires_at_ms"] = 1.into();
    cli.fed(&[&["endpoint", "import", "-", "--yes"], &WHO[..]].concat(), &export.to_string()).ok();
    let export = cli.run(&["endpoint", "export"]).ok().stdout;
    assert!(export.contains(&new) && !export.contains(&old));
}

#[test]
fn no_endpoint_gets_the_header_of_a_metadata_service() {
    let cli = Cli::start();
    let create = ["endpoint", "create", "--account", "a", "--url", "https://1.1.1.1/"];
    for header in ["Metadata-Flavor: Google", "x-aws-ec2-metadata-token: geheim", "Authorization: Bearer Oracle"] {
        let refused = cli.run(&[&create[..], &["--header", header], &WHO[..]].concat());
        refused.failed(4, "opens metadata services");
        assert!(!refused.stderr.contains("geheim"), "{}", refused.stderr);
    }
    let twice = ["--header", "x-shop: 1", "--header", "X-Shop: 2"];
    cli.run(&[&create[..], &twice, &WHO[..]].concat()).failed(4, "stands twice");
}

#[test]
fn what_strangers_wrote_steers_no_terminal_in_any_form() {
    let cli = Cli::start();
    let reason = "a\u{202e}b\u{9b}31m\u{7f}";
    let (id, _) = cli.create(&[]);
    let mut export = cli.run(&["endpoint", "export"]).ok().json();
    export["endpoints"][0]["status"] = serde_json::json!({"state": "paused", "by": "b", "why": reason, "at_ms": 1});
    cli.fed(&[&["endpoint", "import", "-", "--yes"], &WHO[..]].concat(), &export.to_string()).ok();
    for format in ["table", "json", "jsonl"] {
        let shown = cli.run(&["endpoint", "show", &id, "-o", format]).ok();
        let all = format!("{}{}", shown.stdout, shown.stderr);
        assert!(!all.contains(['\u{202e}', '\u{9b}', '\u{7f}']), "{all:?}");
    }
    let shown = cli.run(&["endpoint", "show", &id]).ok().json();
    assert!(shown.to_string().contains(reason), "a program still reads what was written: {shown}");
}

#[test]
fn a_url_that_leads_inside_is_refused_with_its_remedy() {
    let cli = Cli::start();
    for (url, says) in [
        ("https://127.1/", "HERALD_ALLOW_NETWORKS"),
        ("https://169.254.169.254/latest", "link-local"),
        ("https://[::ffff:10.0.0.1]/", "not global unicast"),
        ("https://localhost/", "loopback"),
        ("http://1.1.1.1/", "HERALD_ALLOW_HTTP"),
        ("https://user:geheim@1.1.1.1/", "user name or password"),
        // Which of the two depends on whether this machine has a name server.
        ("https://nowhere.invalid/", "nowhere.invalid "),
    ] {
        let refused = cli.run(&[&["endpoint", "create", "--account", "a", "--url", url], &WHO[..]].concat());
        refused.failed(4, says);
        assert!(!refused.stderr.contains("geheim"), "{}", refused.stderr);
    }
    assert_eq!(cli.run(&["endpoint", "list"]).ok().json(), serde_json::json!([]));
}

#[test]
fn no_error_repeats_a_secret() {
    let cli = Cli::start();
    let create = ["endpoint", "create", "--account", "a", "--url", "https://1.1.1.1/"];
    for wrong in [
        ["--secret", "whsec_geheim"],
        ["--secret", "whsec_geheim-geheim"],
        ["--secret", "geheim-geheim"],
        ["--secret", "geheim geheim geheim"],
        ["--header", "geheim"],
        ["--header", "Host: geheim"],
        ["--set", "geheim"],
        ["--set", "admin_token=geheim"],
        ["--redis-url", "redis://:geheim@127.0.0.1:1/x"],
    ] {
        let refused = cli.run(&[&create, &WHO[..], &wrong].concat());
        assert!(refused.code == 2 || refused.code == 4, "{wrong:?}: {} {}", refused.code, refused.stderr);
        assert!(!refused.stderr.contains("geheim"), "{}", refused.stderr);
    }
    let given = cli.fed(&[&create, &WHO[..], &["--secret", "-"]].concat(), "geheim-geheim-geheim\n").ok();
    assert!(!given.stdout.contains("geheim") && given.json()["secret"].is_null(), "{}", given.stdout);
    let id = given.json()["id"].as_str().unwrap().to_owned();
    let again = [&["endpoint", "rotate-secret", &id, "--secret", "geheim"], &WHO[..]].concat();
    cli.run(&again).failed(4, "at least 16 characters");
}

#[test]
fn each_kind_of_failure_has_its_code() {
    alone(&["endpoint", "show"]).failed(2, "<ID>");
    alone(&["endpoint", "show", "acc_1"]).failed(2, "ep_");
    alone(&["config", "show", "--set", "lease.ttl=1h"]).failed(2, "lease.ttl");
    alone(&["endpoint", "list", "--redis-url", "redis://127.0.0.1:1"]).failed(1, "Redis is unavailable");
    alone(&["event", "publish", "/nowhere/at/all"]).failed(3, "/nowhere/at/all");
    let help = alone(&["--help"]).ok();
    assert!(help.stdout.contains("Exit codes:"), "{}", help.stdout);
    assert!(alone(&["completions", "bash"]).ok().stdout.contains("_herald"));
}

#[test]
fn the_configuration_is_shown_with_origins_and_without_secrets() {
    let env = [("HERALD_ADMIN_TOKEN", "geheim-geheim-geheim"), ("HERALD_REDIS_URL", "redis://u:geheim@h:1")];
    let shown = finish(command(&["config", "show", "--set", "retry.jitter=0.5", "--stream", "s"], &env)).ok();
    assert!(!shown.stdout.contains("geheim"), "{}", shown.stdout);
    let rows = shown.json();
    let row = |key: &str| rows.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap().clone();
    assert_eq!(
        (&row("admin_token")["value"], &row("admin_token")["origin"]),
        (&"(hidden)".into(), &"HERALD_ADMIN_TOKEN".into())
    );
    assert_eq!((&row("stream.name")["value"], &row("stream.name")["origin"]), (&"s".into(), &"flag".into()));
    assert_eq!(row("retry.jitter")["value"], "0.5");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("herald.toml");
    std::fs::write(&file, "[lease]\nttl = \"9s\"\ntll = 1\n[retry]\njitter = 7\n").unwrap();
    let wrong = alone(&["config", "check", "--config", file.to_str().unwrap()]);
    wrong.failed(2, "lease.tll; the nearest is lease.ttl");
    wrong.failed(2, "retry.jitter");
    assert!(alone(&["config", "check"]).ok().stderr.contains("is right"));
}

#[test]
fn the_schedule_is_the_policys_own() {
    let schedule = alone(&["retry-schedule"]).ok().json();
    assert_eq!((&schedule["ends_by"], &schedule["span_max_ms"]), (&"attempts".into(), &240_126_000.into()));
    let table = alone(&["retry-schedule", "-o", "table"]).ok().stdout;
    assert!(table.contains("4s to 6s") && table.contains("after attempt 12 (exhausted)"), "{table}");
    let short = alone(&["retry-schedule", "-o", "table", "--retry-max-age", "1m", "--retry-jitter", "0"]).ok().stdout;
    assert!(short.contains("when it is 1m old (expired); attempt 4 is never made"), "{short}");
    alone(&["retry-schedule", "--retry-max-attempts", "0"]).failed(4, "attempts");
    let cli = Cli::start();
    let (id, _) = cli.create(&["--retry-max-attempts", "2"]);
    let overridden = cli.run(&["retry-schedule", "--endpoint", &id]).ok().json();
    assert_eq!(overridden["steps"].as_array().unwrap().len(), 2);
}

#[test]
fn events_are_checked_before_the_first_one_is_added() {
    let cli = Cli::start();
    let two = format!("{EVENT}\n{}", EVENT.replace("evt_1", "evt_2"));
    cli.fed(&["event", "publish", "-"], &format!("{two}\n{{}}")).failed(4, "event 3");
    cli.run(&["event", "show", "evt_1"]).failed(3, "was not found");
    let published = cli.fed(&["event", "publish", "-"], &two).ok().json();
    let entry = published[1]["entry"].as_str().unwrap();
    let shown = cli.run(&["event", "show", entry]).ok().json();
    assert_eq!((&shown["event"], &shown["problem"]), (&"evt_2".into(), &Value::Null));
    let found = cli.run(&["event", "show", "evt_1"]).ok();
    assert_eq!(found.json()["body"], EVENT);
    assert!(found.stderr.contains("looked at the newest 2 entries of payment-intents, all of it"), "{}", found.stderr);
    let bounded = cli.run(&["event", "show", "evt_1", "--look", "1"]);
    bounded.failed(3, "herald delivery list --event");
    assert!(bounded.stderr.contains("--look looks further"), "{}", bounded.stderr);
    let sample = cli.run(&["event", "publish", "--sample", "--account", "acc_9", "--status", "refunded"]).ok().json();
    let shown = cli.run(&["event", "show", sample[0]["entry"].as_str().unwrap()]).ok().json();
    assert!(shown["body"].as_str().unwrap().contains("\"paymentStatus\":\"Refunded\""), "{shown}");
    cli.run(&["event", "publish"]).failed(2, "--sample");
}

#[test]
fn a_test_event_is_signed_sent_and_told_of_also_when_paused() {
    let cli = Cli::start();
    let receiver = Answering::with("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let url = receiver.url();
    let create = ["endpoint", "create", "--account", "acc_1", "--url", &url, "--header", "x-key: geheim"];
    let created = cli.run_private(&[&create, &WHO[..]].concat()).ok().json();
    let id = created["id"].as_str().unwrap();
    cli.run_private(&[&["endpoint", "pause", id], &WHO[..]].concat()).ok();
    let tested = cli.run_private(&["endpoint", "test", id]).ok();
    assert!(!tested.stdout.contains("geheim"), "{}", tested.stdout);
    let tested = tested.json();
    let event = tested["event"].as_str().unwrap();
    assert!(event.starts_with("evt_test_") && tested["delivered"] == true, "{tested}");
    let (head, body) = (receiver.request().headers(), receiver.request().body);
    let webhook = standardwebhooks::Webhook::new(created["secret"].as_str().unwrap()).unwrap();
    webhook.verify(&body, &head).unwrap();
    assert_eq!(head["webhook-id"], event);
    assert_eq!(head["x-key"], "geheim");
    // It is not in the stream.
    cli.run(&["event", "show", event]).failed(3, "was not found");
    // Without the exemption the guard stands before test events as well.
    cli.run(&["endpoint", "test", id]).failed(4, "address_refused");
}

#[test]
fn a_test_event_that_fails_says_what_to_do() {
    let cli = Cli::start();
    let receiver = Answering::with("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n");
    let url = receiver.url();
    let create = ["endpoint", "create", "--account", "acc_1", "--url", &url];
    let created = cli.run_private(&[&create, &WHO[..]].concat()).ok().json();
    let tested = cli.run_private(&["endpoint", "test", created["id"].as_str().unwrap()]);
    tested.failed(1, "rejected (401): the receiver refuses us");
    assert_eq!(tested.json()["attempt"]["outcome"], "rejected (401)");
    receiver.request();
}

#[test]
fn a_test_event_disables_nothing_and_does_not_say_so() {
    let cli = Cli::start();
    let receiver = Answering::with("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n");
    let url = receiver.url();
    let created = cli.run_private(&["endpoint", "create", "--account", "acc_1", "--url", &url]).ok().json();
    let id = created["id"].as_str().unwrap();
    cli.run_private(&["endpoint", "test", id]).failed(1, "a real delivery would disable the endpoint");
    assert_eq!(cli.run(&["endpoint", "show", id]).ok().json()["state"], "enabled");
    receiver.request();
}

#[test]
fn all_sending_is_paused_and_resumed_by_one_switch() {
    let cli = Cli::start();
    cli.create(&[]);
    cli.run(&[&["pause"], &WHO[..]].concat()).failed(2, "--all");
    let paused = cli.run(&[&["pause", "--all"], &WHO[..]].concat()).ok();
    assert!(paused.stderr.contains("workers follow within a second"), "{}", paused.stderr);
    let again = cli.run(&["pause", "--all", "--reason", "another", "--by", "else"]).ok();
    assert!(again.stderr.contains("paused by tester: a test already"), "{}", again.stderr);
    let mark: String = cli.redis(&["HGET", "herald:{herald}:registry:meta", "pause"]);
    assert!(mark.contains("tester") && mark.contains("a test"), "{mark}");
    assert!(cli.run(&[&["resume", "--all"], &WHO[..]].concat()).ok().stderr.contains("sending goes on"));
    assert!(cli.run(&[&["resume", "--all"], &WHO[..]].concat()).ok().stderr.contains("nothing was paused"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = command(&["config", "show"], &[]);
    let output = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn events_are_all_added_although_nobody_reads_their_entries() {
    let cli = Cli::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    std::fs::write(&path, format!("{EVENT}\n").repeat(3)).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = cli.command(&["event", "publish", path.to_str().unwrap(), "-o", "jsonl"]);
    assert_eq!(command.stdout(writer).status().unwrap().code(), Some(0));
    assert_eq!(cli.redis::<u64>(&["XLEN", "payment-intents"]), 3);
}

/// A verb of each kind. Those that have no better place for a warning write it to stderr, and leave the data on stdout
/// as it is.
#[test]
fn an_unknown_variable_is_said_once_by_whatever_loads_the_configuration() {
    let env = [("HERALD_LEASSE", "geheim"), ("HERALD_PORT", "tcp://10.0.0.1:8080"), ("HERALD_LEASE", "4s")];
    let warning = "HERALD_LEASSE in the environment is not a setting and has no effect; the nearest is HERALD_LEASE\n";
    let run = |args: &[&str]| finish(command(args, &env));
    let shown = run(&["config", "show"]).ok();
    assert_eq!(shown.stderr, format!("warning: {warning}"));
    assert!(shown.json().as_array().unwrap().iter().any(|row| row["origin"] == "HERALD_LEASE"), "{}", shown.stdout);
    let checked = run(&["config", "check"]).ok().stderr;
    assert!(checked.starts_with(&format!("warning: {warning}")) && checked.contains("is right"), "{checked}");
    let acl = run(&["doctor", "--print-acl"]).ok().stderr;
    assert!(acl.starts_with(&format!("warning: {warning}")), "{acl}");
    run(&["config", "show", "--set", "lease.ttl=1h"]).failed(2, &format!("\nwarning: {warning}"));

    let doctor = run(&["doctor", "--redis-url", "redis://127.0.0.1:1"]);
    let findings = doctor.json()["findings"].as_array().unwrap().clone();
    let found = findings.iter().find(|finding| finding["subject"] == "environment").unwrap();
    assert_eq!((&found["level"], &found["says"]), (&"warn".into(), &warning.trim_end().into()));
    assert!(!doctor.stderr.contains("HERALD_LEASSE"), "{}", doctor.stderr);

    // It ends at once, because somebody else listens there.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("listen={}", taken.local_addr().unwrap());
    let served = run(&["serve", "--set", &address]);
    served.failed(1, "cannot listen");
    let lines: Vec<&str> = served.stderr.lines().filter(|line| line.contains("LEASSE")).collect();
    let [line] = lines[..] else { panic!("{}", served.stderr) };
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["level"], "WARN", "{line}");
    let message = line["message"].as_str().unwrap();
    assert!(message.contains("HERALD_LEASSE") && message.ends_with("the nearest is HERALD_LEASE"), "{line}");
    assert!(!served.stderr.contains("geheim"), "{}", served.stderr);
}

#[test]
fn a_secret_from_a_file_is_shown_by_where_it_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    std::fs::write(&path, "redis://u:geheim@h:1\n").unwrap();
    let path = path.to_str().unwrap();
    let shown = finish(command(&["config", "show"], &[("HERALD_REDIS_URL_FILE", path)])).ok();
    assert_eq!(shown.stderr, "");
    let rows = shown.json();
    let row = rows.as_array().unwrap().iter().find(|row| row["key"] == "redis.url").unwrap();
    assert_eq!(row["value"], "redis://u:***@h:1");
    assert_eq!(row["origin"], format!("HERALD_REDIS_URL_FILE ({path})"));
    let both = [("HERALD_REDIS_URL_FILE", path), ("HERALD_REDIS_URL", "redis://u:geheim@h:1")];
    let refused = finish(command(&["config", "check"], &both));
    refused.failed(2, "HERALD_REDIS_URL and HERALD_REDIS_URL_FILE are both set");
    assert!(!refused.stderr.contains("geheim"), "{}", refused.stderr);
}

/// A receiver on a runtime of its own: the tests here wait for processes, not for tasks.
struct Answering {
    receiver: Receiver,
    _runtime: Runtime,
}

impl Answering {
    fn with(response: &'static str) -> Self {
        let runtime = Runtime::new().unwrap();
        Self { receiver: runtime.block_on(Receiver::answering(response)), _runtime: runtime }
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.receiver.address)
    }

    /// The only request that arrived.
    fn request(&self) -> Seen {
        let seen = self.receiver.log.seen();
        let [request] = &seen[..] else { panic!("{seen:?}") };
        request.clone()
    }
}

#[test]
fn a_pipe_gets_the_table_that_a_terminal_gets() {
    let cli = Cli::start();
    let (id, _) = cli.create(&[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.args(["endpoint", "list"]).env_clear().env("HERALD_REDIS_URL", cli.redis.url());
    let listed = finish(command).ok();
    assert!(listed.stdout.starts_with("ID ") && listed.stdout.contains(&id), "{}", listed.stdout);
    assert_eq!(cli.run(&["endpoint", "list", "-o", "json"]).ok().json()[0]["id"], id);
}

#[test]
fn a_dry_run_needs_no_reason_and_what_changes_something_does() {
    let cli = Cli::start();
    let (id, _) = cli.create(&[]);
    for verb in ["disable", "delete"] {
        let dry = cli.run(&["endpoint", verb, &id, "--dry-run"]).ok();
        assert!(dry.stderr.contains(&format!("dry run: this would {verb}")), "{}", dry.stderr);
        cli.run(&["endpoint", verb, &id, "--yes"]).failed(2, "--reason");
    }
    assert_eq!(cli.run(&["endpoint", "show", &id]).ok().json()["state"], "enabled");
}

#[test]
fn secrets_and_headers_come_from_files_and_from_stdin() {
    const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let cli = Cli::start();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (secret, headers) = (file("secret", &format!("{SECRET}\n")), file("headers", "x-one: geheim\n\nx-two: y\n"));
    let create = ["endpoint", "create", "--account", "acc_1", "--url", "https://1.1.1.1/hook"];
    let more = ["--id", "ep_a", "--secret-file", &secret, "--headers-file", &headers, "--header", "x-three: z"];
    let created = cli.run(&[&create[..], &more].concat()).ok().json();
    let names: Vec<_> =
        created["headers"].as_array().unwrap().iter().map(|header| header[0].as_str().unwrap()).collect();
    assert_eq!((names, &created["secret"]), (vec!["x-three", "x-one", "x-two"], &Value::Null), "it is known already");
    let exported = cli.run(&["endpoint", "export"]).ok().json();
    assert_eq!(exported["endpoints"][0]["secrets"][0]["value"], SECRET);
    let update = [&["endpoint", "update", "ep_a", "--headers-file", "-"], &WHO[..]].concat();
    let updated = cli.fed(&update, "x-four: geheim\n").ok();
    assert!(updated.json()["headers"][0][0] == "x-four" && !updated.stdout.contains("geheim"), "{}", updated.stdout);
    let wrong = cli.fed(&update, "geheim\n");
    wrong.failed(2, "write it as 'NAME: VALUE'");
    assert!(!wrong.stderr.contains("geheim"), "{}", wrong.stderr);
    // Both from stdin: the first line is the secret.
    let both = [&create[..], &["--id", "ep_b", "--secret-file", "-", "--headers-file", "-"]].concat();
    assert_eq!(cli.fed(&both, &format!("{SECRET}\nx-five: y\n")).ok().json()["headers"][0][0], "x-five");
    cli.run(&[&create[..], &["--secret-file", &secret, "--secret", "-"]].concat()).failed(2, "cannot be used with");
}

#[test]
fn an_event_flag_names_an_id_and_the_type_has_a_flag_of_its_own() {
    let cli = Cli::start();
    for flag in ["--event-type", "--event"] {
        let sample = ["event", "publish", "--sample", "--account", "acc_1", flag, "payment_intent.created"];
        let entry = cli.run(&sample).ok().json()[0]["entry"].as_str().unwrap().to_owned();
        let shown = cli.run(&["event", "show", &entry]).ok().stdout;
        assert!(shown.contains("payment_intent.created"), "{shown}");
        let (id, _) = cli.create(&[flag, "payment_intent.created"]);
        assert_eq!(cli.run(&["endpoint", "show", &id]).ok().json()["event_types"][0], "payment_intent.created");
    }
    let help = alone(&["endpoint", "create", "--help"]).stdout;
    assert!(help.contains("--event-type <TYPE>") && !help.contains("--event "), "{help}");
}

#[test]
fn quiet_leaves_out_the_talk_and_not_what_must_be_heard() {
    let cli = Cli::start();
    let (id, _) = cli.create(&[]);
    let pause = cli.run(&[&["endpoint", "pause", &id, "--quiet"], &WHO[..]].concat()).ok();
    assert_eq!((pause.stderr.as_str(), &pause.json()["state"]), ("", &"paused".into()));
    let dry = cli.run(&["-q", "endpoint", "delete", &id, "--dry-run"]).ok();
    assert!(dry.stderr.starts_with("dry run: this would delete"), "{}", dry.stderr);
    cli.run(&["-q", "endpoint", "show", "ep_none"]).failed(3, "ep_none");
    let odd = finish({
        let mut command = cli.command(&["-q", "endpoint", "list"]);
        command.env("HERALD_LEASSE", "1s");
        command
    });
    assert!(odd.ok().stderr.starts_with("warning: HERALD_LEASSE"));
}

/// With a terminal it would ask: `script` gives it one, whose user says yes.
#[test]
fn without_input_nothing_is_asked() {
    let cli = Cli::start();
    let (id, _) = cli.create(&[]);
    let delete = |more: &str| {
        let herald = env!("CARGO_BIN_EXE_herald");
        let line = format!("echo y | script -qec \"{herald} endpoint disable {id} --reason over {more}\" /dev/null");
        let mut command = Command::new("sh");
        command.args(["-c", &line]).env_clear().env("PATH", "/usr/bin:/bin").env("HERALD_REDIS_URL", cli.redis.url());
        command.env("SHELL", "/bin/sh").env("NO_COLOR", "1");
        finish(command).stdout
    };
    let said = delete("--no-input");
    assert!(said.contains("error: this would disable") && !said.contains("Go ahead?"), "{said}");
    assert_eq!(cli.run(&["endpoint", "show", &id]).ok().json()["state"], "enabled");
    let said = delete("");
    assert!(said.contains("Go ahead? [y/N]"), "{said}");
    assert_eq!(cli.run(&["endpoint", "show", &id]).ok().json()["state"], "disabled");
}

#[test]
fn another_systems_word_leads_to_the_verb() {
    let said = alone(&["dlq", "list"]);
    said.failed(2, "unrecognized subcommand 'dlq'");
    assert!(said.stderr.contains("'dead-letter'"), "{}", said.stderr);
}

#[test]
fn each_verb_has_a_man_page_with_its_examples() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("man1");
    let said = alone(&["man", into.to_str().unwrap()]).ok();
    let mut pages: Vec<String> =
        std::fs::read_dir(&into).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    assert!(said.stderr.starts_with(&format!("{} pages in ", pages.len())), "{}", said.stderr);
    for page in ["herald.1", "herald-dead-letter.1", "herald-dead-letter-redeliver.1", "herald-man.1"] {
        assert!(pages.iter().any(|there| there == page), "{page} is not among {pages:?}");
    }
    let page = std::fs::read_to_string(into.join("herald-endpoint-test.1")).unwrap();
    // Lines that a reader may copy.
    assert!(
        page.contains(".SH EXAMPLES\n.nf\nherald endpoint test ep_1\nherald endpoint test ep_1 \\-\\-event"),
        "{page}"
    );
    let alone = alone(&["man"]).ok().stdout;
    assert!(alone.contains(".TH herald 1") && alone.contains("Exit codes"), "{alone}");
}

#[test]
fn a_list_fits_eighty_columns_and_keeps_its_ids_whole() {
    let cli = Cli::start();
    let (id, _) = cli.create(&["--description", "x", "--event-type", "payment_intent.status_updated"]);
    cli.create(&[]);
    let listed = cli.run(&["endpoint", "list", "-o", "table"]).ok().stdout;
    assert!(listed.contains(&id), "{listed}");
    assert!(listed.lines().all(|line| line.chars().count() <= 80 && !line.contains('\x1b')), "{listed}");
}

/// Any wrong configuration has the code that no restart helps against, whichever way it is wrong.
#[test]
fn a_configuration_that_names_a_file_that_is_not_there_is_wrong_and_nothing_else() {
    for (setting, is) in [("attempt.ca_file", "/no/such.pem"), ("redis.ca_file", "/no/such.pem"), ("lease.ttl", "x")] {
        for verb in [&["config", "check"][..], &["serve"]] {
            let checked = alone(&[verb, &["--set", &format!("{setting}={is}")]].concat());
            checked.failed(2, "the configuration is wrong");
            assert!(checked.stderr.contains(setting), "{}", checked.stderr);
        }
    }
}

#[test]
fn the_build_tells_which_schemas_it_reads_and_writes() {
    let told = alone(&["version"]).ok().json();
    assert_eq!(told["version"], env!("CARGO_PKG_VERSION"));
    let schemas = told["schemas"].as_object().unwrap();
    assert_eq!(schemas.keys().collect::<Vec<_>>(), ["endpoint", "health", "history", "operation", "record"]);
    assert_eq!(schemas["endpoint"]["writes"], serde_json::json!([1, herald::facts::endpoint::SEALED_SCHEMA]));
    for (name, schema) in schemas {
        let last = |of: &str| schema[of].as_array().unwrap().last().cloned();
        assert_eq!(last("reads"), last("writes"), "{name}");
    }
    assert!(alone(&["version", "-o", "table"]).ok().stdout.contains("endpoint   schema "));
}

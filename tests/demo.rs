//! The demo as a user starts it: it ends by itself, says that nothing was lost, and leaves no process behind.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

#[test]
fn the_demo_ends_by_itself_and_keeps_its_promises() {
    let ran = Command::new(env!("CARGO_BIN_EXE_herald"))
        .args(["demo", "--for", "5s", "--rate", "20", "--seed", "7"])
        .output()
        .expect("the binary runs");
    let (said, complained) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{said}\n{complained}");
    let value = |name: &str| {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in:\n{said}"));
        line.split_whitespace().last().expect("a line has a value").to_owned()
    };
    assert!(value("events").parse::<u64>().unwrap() > 50, "{said}");
    assert!(value("delivered").parse::<u64>().unwrap() > 20, "{said}");
    assert!(said.contains("lost            0"), "{said}");
    assert!(said.contains("out of order    0"), "{said}");
    // Without a terminal there are only plain lines.
    assert!(!said.contains('\u{1b}'), "{said}");
    let url = said.lines().find_map(|line| line.trim().strip_prefix("export HERALD_REDIS_URL=redis://")).unwrap();
    assert!(std::net::TcpStream::connect(url).is_err(), "its Redis still runs at {url}");
}

/// The incident, as a newcomer starts it, and the questions of the night.
struct Incident {
    demo: Child,
    said: Vec<String>,
    facts: Value,
}

impl Incident {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        let mut demo = command.args(["demo", "--incident", "--events", "1200"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        for line in lines {
            said.push(line.unwrap());
            if said.last().unwrap().starts_with("Ctrl-C ends it") {
                break;
            }
        }
        let facts = word_after(&said, "What is true stands in ");
        let facts = serde_json::from_slice(&std::fs::read(facts).unwrap()).unwrap();
        Self { demo, said, facts }
    }

    fn herald(&self, words: &[&str]) -> String {
        let exports = self.said.iter().find_map(|line| line.trim().strip_prefix("export ")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.env_clear().args(words).envs(exports.split(' ').map(|export| export.split_once('=').unwrap()));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.herald(&[words, &["-o", "json"]].concat())).unwrap()
    }

    async fn api(&self, path: &str) -> Value {
        let line = self.said.iter().find(|line| line.starts_with("The API: ")).unwrap();
        let token = line.split_once("Bearer ").unwrap().1.split_once('\'').unwrap().0;
        let base = line.split_once(" http://").unwrap().1.split_once("/v1").unwrap().0;
        herald::tls::install_crypto_provider();
        let asked = reqwest::Client::new().get(format!("http://{base}{path}")).bearer_auth(token);
        serde_json::from_slice(&asked.send().await.unwrap().bytes().await.unwrap()).unwrap()
    }

    fn parts(&self) -> &[Value] {
        self.facts["endpoints"].as_array().unwrap()
    }
}

impl Drop for Incident {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.demo.id().cast_signed()), Signal::SIGINT);
        let _ = self.demo.wait();
    }
}

fn word_after(said: &[String], start: &str) -> String {
    said.iter()
        .find_map(|line| line.strip_prefix(start))
        .unwrap_or_else(|| panic!("no {start:?} in {said:?}"))
        .to_owned()
}

/// How what is wrong with an endpoint is called where it is shown.
fn cause(fault: &str) -> &str {
    match fault {
        "connection_refused" => "connect_failed",
        "server_error" => "server_failed:500",
        "unauthorized" => "rejected:401",
        "not_found" => "rejected:404",
        "times_out" => "response_timed_out",
        "too_many_requests" => "throttled:429",
        "redirects" => "redirected:301",
        "speaks_no_tls" => "tls_failed:handshake",
        "unknown_host" => "dns_failed",
        "paused" => "never_tried:paused",
        other => other,
    }
}

#[tokio::test]
async fn each_question_of_the_night_has_a_true_answer() {
    let incident = Incident::start();
    let (is_wrong, number) = (|part: &&Value| part["fault"] != "none", |value: &Value| value.as_u64().unwrap());

    // Which merchants, why, since when: one issue for each endpoint that fails, and none for any other.
    let issues = incident.json(&["issue", "list", "--limit", "100"]);
    let mut expected: Vec<(String, String)> = incident
        .parts()
        .iter()
        .filter(is_wrong)
        .map(|part| {
            let (endpoint, fault) = (part["endpoint"].as_str().unwrap(), part["fault"].as_str().unwrap());
            (format!("{endpoint}:{}", cause(fault)), part["account"].as_str().unwrap().to_owned())
        })
        .collect();
    let issues = issues.as_array().unwrap();
    let text = |issue: &Value, field: &str| issue[field].as_str().unwrap().to_owned();
    let mut found: Vec<_> = issues.iter().map(|issue| (text(issue, "id"), text(issue, "account"))).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let broke_at: jiff::Timestamp =
        jiff::Timestamp::from_millisecond(incident.facts["broke_at_ms"].as_i64().unwrap()).unwrap();
    for issue in issues {
        assert!(text(issue, "first_at").parse::<jiff::Timestamp>().unwrap() >= broke_at, "{issue}");
    }

    // How many: what its receiver did not take is dead, but for what a disabled endpoint is not owed.
    let mut dead = 0;
    for part in incident.parts() {
        let endpoint = part["endpoint"].as_str().unwrap();
        let shown = incident.json(&["endpoint", "show", endpoint]);
        let letters = number(&shown["health"]["letters"]);
        let missing = number(&part["owed"]) - number(&part["delivered"]);
        dead += letters;
        match part["fault"].as_str().unwrap() {
            "none" => assert_eq!((letters, missing), (0, 0), "{shown}"),
            "gone" => assert!(letters > 0 && letters <= missing, "{shown}"),
            _ => {
                assert_eq!(letters, missing, "{shown}");
                let issue = issues.iter().find(|issue| text(issue, "id").starts_with(&format!("{endpoint}:"))).unwrap();
                assert_eq!(number(&issue["letters"]), missing, "{issue}");
            }
        }
    }
    let said = incident.herald(&["doctor"]);
    assert!(said.contains("14 of 60 endpoints"), "{said}");
    assert!(said.contains("acc_popup has no endpoint for 12 events"), "{said}");
    let stats = incident.api("/v1/stats").await;
    assert_eq!(number(&stats["dead_letters"]), dead, "{stats}");

    // Everything of one account: one endpoint has it all, the other gave it up; and the life of one payment says so.
    let part = incident.parts().iter().find(|part| part["fault"] == "not_found").unwrap();
    let (endpoint, account) = (part["endpoint"].as_str().unwrap(), part["account"].as_str().unwrap());
    let deliveries = incident.json(&["delivery", "list", "--account", account, "--limit", "500"]);
    let of = |endpoint: &str, state: &str| {
        let ends = |line: &&Value| text(line, "id").ends_with(&format!(":{endpoint}")) && line["state"] == state;
        deliveries.as_array().unwrap().iter().filter(ends).count() as u64
    };
    let books = format!("{endpoint}_books");
    assert_eq!(of(endpoint, "dead"), number(&part["owed"]) - number(&part["delivered"]), "{deliveries}");
    assert_eq!(
        (of(endpoint, "delivered"), of(&books, "delivered")),
        (number(&part["delivered"]), number(&part["owed"]))
    );
    let dead = deliveries.as_array().unwrap().iter().find(|line| line["state"] == "dead").unwrap();
    let story = incident.json(&["story", &text(dead, "intent")]);
    let told = |what: &str| story.as_array().unwrap().iter().filter(|line| line["what"] == what).count();
    assert_eq!((told("event"), told("delivered"), told("dead")), (3, 3, 3), "{story}");

    // Who did what, and what a run left that broke off.
    let acts = incident.json(&["audit", "list", "--limit", "100"]);
    let by = |who: &str| acts.as_array().unwrap().iter().filter(|act| act["by"] == who).collect::<Vec<_>>();
    let moved = incident.parts().iter();
    let moved = moved.filter(|part| ["connection_refused", "speaks_no_tls"].contains(&part["fault"].as_str().unwrap()));
    assert_eq!(by("nina").len(), moved.count() + 1, "{acts}: and a pause of the operation");
    let omar: Vec<&str> = by("omar").iter().map(|act| act["act"].as_str().unwrap()).collect();
    assert!(omar.contains(&"endpoint pause") && omar.contains(&"dead-letter redeliver"), "{acts}");

    // His terminal was closed, the operation went on, and was paused: what it took is dead again, and the rest is as it was.
    let operations = incident.json(&["operation", "list"]);
    let operation = &operations[0];
    let bowling = incident.parts().iter().find(|part| part["endpoint"] == "ep_bowling").unwrap();
    let missing = number(&bowling["owed"]) - number(&bowling["delivered"]);
    assert_eq!((&operation["by"], &operation["state"]), (&"omar".into(), &"paused".into()), "{operations}");
    let [count, dead_again, left] = ["count", "dead_again", "left"].map(|field| number(&operation[field]));
    assert_eq!((count, dead_again + left), (missing, missing), "{operations}");
    assert!(dead_again > 0 && number(&operation["open"]) == 0, "{operations}");

    // The same over HTTP.
    let same = incident.api("/v1/issues?limit=100").await;
    assert_eq!(same["items"], Value::Array(issues.to_vec()));
    assert_eq!(incident.herald(&["quarantine", "list", "-o", "jsonl"]).lines().count(), 3);
}

//! What docs/merchants.md and docs/payment-intents.md tell their readers to type, typed into a shell: the blocks with curl of a
//! page, in their order. A line `# → TEXT` in a block says what its answer has.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::{
    house::{HERALD, House},
    support::TestRedis,
};

const MARK: &str = "the next block";

fn project(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    assert!(path.exists(), "{} is missing; run `make setup`", path.display());
    path
}

fn parsed(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(project(path)).unwrap()).unwrap()
}

fn blocks(page: &str) -> Vec<String> {
    let page = std::fs::read_to_string(project(page)).unwrap();
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.filter(|block| block.contains("curl ")).collect()
}

/// Types the blocks into one shell, with ports that are free, and holds what they say against what the page says.
async fn type_in(blocks: &[String], redis: Option<&TestRedis>, desk: &TempDir) {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let begin = "set -euo pipefail; trap 'kill $(jobs -p); wait' EXIT\n";
    let typed: String = blocks.iter().map(|block| format!("echo '{MARK}'\n{block}\n")).collect();
    let script = desk.path().join("typed.sh");
    std::fs::write(&script, begin.to_owned() + &typed.replace("6390", &free()).replace("8090", &free())).unwrap();
    let programs = Path::new(HERALD).parent().unwrap().display();
    let mut shell = Command::new("timeout");
    shell.args(["120", "bash"]).arg(&script).current_dir(desk.path()).env_clear().stdin(Stdio::null());
    shell.env("PATH", format!("{programs}:/usr/bin:/bin")).env("HERALD_LISTEN", "127.0.0.1:0");
    if let Some(redis) = redis {
        shell.env("HERALD_REDIS_URL", redis.url());
    }
    let done = shell.output().await.unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    for (block, said) in blocks.iter().zip(said.split(MARK).skip(1)) {
        let expected = block.lines().filter_map(|line| line.trim().strip_prefix("# → "));
        let mut rest = said;
        for expected in expected {
            let found = rest.split_once(expected);
            rest = found.unwrap_or_else(|| panic!("{expected:?} is not in {said:?}, of {block}")).1;
        }
    }
}

#[tokio::test]
async fn a_merchant_who_types_what_the_page_says_gets_what_it_says() {
    let (blocks, desk) = (blocks("docs/merchants.md"), tempfile::tempdir().unwrap());
    assert!(blocks.len() >= 5, "the page has fewer blocks: {blocks:?}");
    type_in(&blocks, None, &desk).await;

    // The callbacks are as they are described.
    let described = parsed("docs/asyncapi.json");
    let headers = jsonschema::validator_for(&described["components"]["schemas"]["CallbackHeaders"]).unwrap();
    let body = jsonschema::validator_for(&parsed("docs/callback.schema.json")).unwrap();
    let seen = std::fs::read_to_string(desk.path().join("seen.jsonl")).unwrap();
    let seen: Vec<Value> = seen.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let statuses: Vec<_> = seen.iter().map(|callback| callback["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["Created", "Captured", "Refunded"]);
    for callback in &seen {
        assert_eq!(callback["valid"], true, "{callback}");
        let sent: Value = serde_json::from_str(callback["body"].as_str().unwrap()).unwrap();
        assert!(body.is_valid(&sent), "{sent}");
        let named = callback["headers"].as_array().unwrap().iter().map(|header| {
            let (name, text) = (header[0].as_str().unwrap(), header[1].as_str().unwrap());
            (name.to_owned(), text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number)))
        });
        let named = Value::Object(named.collect());
        let faults: Vec<_> = headers.iter_errors(&named).map(|fault| fault.to_string()).collect();
        assert!(faults.is_empty(), "{faults:?}");
        for optional in ["webhook-signature", "dojo-signature", "herald-account-sequence"] {
            assert!(named[optional] != Value::Null, "{optional} is not in {named}");
        }
    }
}

#[tokio::test]
async fn who_starts_the_service_as_its_page_says_has_a_payment_intent() {
    let (blocks, desk, redis) =
        (blocks("docs/payment-intents.md"), tempfile::tempdir().unwrap(), TestRedis::start().await);
    assert!(!blocks.is_empty());
    type_in(&blocks, Some(&redis), &desk).await;
}

/// By the parser that AsyncAPI publishes.
#[tokio::test]
async fn the_description_of_the_callbacks_is_valid_and_is_what_the_service_publishes() {
    let house = House::start().await;
    let published = parsed("docs/asyncapi.json");
    assert_eq!(house.merchant("acc_a").get("/asyncapi.json").await, (200, published.clone()));
    let check = async |description: &Value| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), description.to_string()).unwrap();
        let mut node = Command::new("node");
        node.arg(project("tests/verifiers/asyncapi.cjs")).arg(file.path()).stdin(Stdio::null());
        let done = node.env("NODE_PATH", project("target/verifiers/node/node_modules")).output().await.unwrap();
        (done.status.success(), String::from_utf8([done.stdout, done.stderr].concat()).unwrap())
    };
    assert_eq!(check(&published).await, (true, "3.0.0, 3 messages\n".to_owned()));
    let wrong = [
        ("/operations/callBack/action", json!("shout")),
        ("/components/messages/PaymentIntentCreated/payload/$ref", json!("#/components/schemas/Nothing")),
    ];
    for (pointer, value) in wrong {
        let mut description = published.clone();
        *description.pointer_mut(pointer).unwrap() = value;
        let (is_valid, said) = check(&description).await;
        assert!(!is_valid, "{pointer}: {said}");
    }
    house.end().await;
}

//! The service held against descriptions of it by Schemathesis: Dojo's as facts, corrected where it contradicts itself, and the
//! service's own. See tests/contract; `make setup` installs what it needs. HERALD_CONTRACT_EXAMPLES asks for more than a gate
//! needs, and for other ones each time.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::process::Command;

use super::house::{House, Merchant};

/// Of each operation, in a gate.
const EXAMPLES: &str = "10";

/// https to this machine: names cost time, and others are not asked for a test.
const LOOPBACK: &[(&str, &str)] = &[("HERALD_ALLOW_NETWORKS", "127.0.0.0/8")];

/// A path of the project, which must be there.
fn project(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    assert!(path.exists(), "{} is missing; run `make setup`", path.display());
    path
}

/// Where the programs may leave what they like.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What a program said, and whether it was content.
    async fn run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(project("target/verifiers/contract/bin").join(program));
        command.args(arguments).current_dir(self.0.path()).env_clear().env("PATH", "/usr/bin:/bin");
        command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null()).kill_on_drop(true);
        let done = command.output().await.unwrap();
        let said = [done.stdout, done.stderr].concat();
        (done.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// The description of Dojo's API with the corrections.
    async fn corrected(&self) -> PathBuf {
        let (script, folder) = (project("tests/contract/description.py"), project("tests/contract"));
        let target = self.path("openapi.json");
        let words = [&script, &folder, &target].map(|path| path.to_str().unwrap());
        let (is_right, said) = self.run("python", &words).await;
        assert!(is_right, "{said}");
        target
    }

    /// Holds the service against a description.
    async fn hold(&self, merchant: &Merchant, description: &Path, more: &[&str]) -> (bool, String) {
        let config = project("tests/contract/schemathesis.toml");
        let key = format!("Authorization: Basic {}", merchant.key());
        let (config, description) = (config.to_str().unwrap(), description.to_str().unwrap());
        let mut words = vec!["--no-color", "--config-file", config, "run", description, "--url", merchant.url()];
        words.extend(["--header", &key, "--continue-on-failure"]);
        words.extend(more);
        self.run("schemathesis", &words).await
    }
}

/// How many examples of each operation, and where they begin.
fn size() -> Vec<String> {
    let asked = std::env::var("HERALD_CONTRACT_EXAMPLES");
    let words = match &asked {
        Ok(examples) => vec!["--max-examples", examples],
        Err(_) => vec!["--max-examples", EXAMPLES, "--seed", "1", "--no-shrink"],
    };
    words.into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn the_service_keeps_the_corrected_description_of_the_api() {
    let house = House::start_with(LOOPBACK).await;
    let desk = Desk::new();
    let description = desk.corrected().await;
    let size = size();
    let size: Vec<_> = size.iter().map(String::as_str).collect();
    let (is_kept, said) = desk.hold(&house.merchant("acc_a"), &description, &size).await;
    assert!(is_kept, "{said}");
    for phase in ["Examples", "Coverage", "Fuzzing", "Stateful"] {
        assert!(said.contains(&format!("✅ {phase}")), "{phase} was not run: {said}");
    }
    println!("{}", summary(&said));
    house.end().await;
}

/// The clock is everybody's, and a reset takes away what another example asks for; they have tests of their own.
#[tokio::test]
async fn the_service_keeps_its_own_description_which_is_valid() {
    let house = House::start_with(LOOPBACK).await;
    let (desk, merchant) = (Desk::new(), house.merchant("acc_a"));
    let (code, published) = merchant.get("/openapi.json").await;
    assert_eq!(code, 200);
    let description = desk.path("published.json");
    std::fs::write(&description, published.to_string()).unwrap();
    let script = project("tests/contract/description.py");
    let (is_valid, said) =
        desk.run("python", &[script.to_str().unwrap(), "check", description.to_str().unwrap()]).await;
    assert!(is_valid, "{said}");
    let size = size();
    let mut more: Vec<_> = size.iter().map(String::as_str).collect();
    more.extend(["--exclude-path-regex", "^/sandbox/(clock|reset)"]);
    let (is_kept, said) = desk.hold(&merchant, &description, &more).await;
    assert!(is_kept, "{said}");
    println!("{}", summary(&said));
    house.end().await;
}

/// A check that cannot fail shows nothing: each of these descriptions promises what the service does not do.
#[tokio::test]
async fn a_promise_that_the_service_does_not_keep_is_found() {
    let house = House::start_with(LOOPBACK).await;
    let (desk, merchant) = (Desk::new(), house.merchant("acc_a"));
    let description = desk.corrected().await;
    let right = std::fs::read_to_string(&description).unwrap();
    let only = ["--phases", "examples,coverage", "--max-examples", "1", "--seed", "1", "--no-shrink"];
    let captures = "/payment-intents/{paymentIntentId}/captures";
    let cases = [
        (
            "/paths/~1webhooks~1events/get/responses/200/content/application~1json/schema/maxItems",
            "0",
            "/webhooks/events",
        ),
        ("/components/schemas/PaymentIntent/required", r#"["nothing"]"#, "/payment-intents"),
        ("/components/schemas/CreateCaptureRequest/properties/amount/maximum", "1e18", captures),
    ];
    for (pointer, promise, path) in cases {
        let mut wrong: serde_json::Value = serde_json::from_str(&right).unwrap();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        wrong.pointer_mut(parent).unwrap()[name] = serde_json::from_str(promise).unwrap();
        std::fs::write(&description, wrong.to_string()).unwrap();
        let (is_kept, said) =
            desk.hold(&merchant, &description, &[&only[..], &["--include-path", path]].concat()).await;
        assert!(!is_kept && said.contains("= FAILURES ="), "{pointer} was not found: {said}");
    }
    house.end().await;
}

/// The last lines: what was tried.
fn summary(said: &str) -> &str {
    said.rfind("= SUMMARY =").map_or(said, |at| &said[at..])
}

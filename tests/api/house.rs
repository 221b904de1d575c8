//! A Herald with its API, a Redis with something in every place, and tokens for whoever asks.

use std::process::{Command, Stdio};

use herald::{
    facts::{delivery::Delivery, retry::DeadReason},
    store::{
        acl,
        protocol::{Item, Place},
        registry::RegistryStore,
    },
};
use serde_json::{Value, json};

use crate::{
    herald_process::{Herald, Setup},
    stage::{Owner, bury, delivery, endpoint, keep, keys, log_line, mark},
    support::TestRedis,
};

pub const ADMIN: &str = "the-first-token-with-every-right";

/// Nobody listens there.
pub const NOWHERE: &str = "http://127.0.0.1:2/";

pub struct House {
    pub redis: TestRedis,
    pub herald: Herald,
    client: reqwest::Client,
}

pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl House {
    /// Two accounts with an endpoint each; of the first, letters, a delivery that waits, one that was delivered, and entries in
    /// quarantine.
    pub async fn start() -> Self {
        let redis = staged().await;
        let url = redis.url();
        Self::on(redis, &url).await
    }

    /// Its Herald may do to Redis what the printed rules say, and nothing else.
    pub async fn with_rights_as_printed() -> Self {
        let redis = staged().await;
        for rule in acl::rules(&keys()).replace(">PASSWORD", ">secret").lines() {
            if !rule.ends_with("default off") {
                redis.command::<()>(&rule.split(' ').collect::<Vec<_>>()).await;
            }
        }
        let url = format!("redis://{}:secret@{}/0", acl::Role::Worker.user(), redis.address());
        Self::on(redis, &url).await
    }

    /// It keeps the history of its deliveries there.
    pub async fn with_history(history: &str) -> Self {
        Self::with(|setup| setup.env("HERALD_HISTORY_URL", history)).await
    }

    /// What fails is tried again in ten minutes, so that it waits.
    pub async fn patient(history: &str) -> Self {
        let setup = |setup: Setup| setup.env("HERALD_RETRY_INITIAL", "10m").env("HERALD_RETRY_MAX_INTERVAL", "10m");
        Self::with(|given| setup(given).env("HERALD_HISTORY_URL", history)).await
    }

    /// It waits for a replica that is not there.
    pub async fn careful() -> Self {
        Self::with(|setup| setup.env("HERALD_REDIS_WAIT", "1").env("HERALD_REDIS_WAIT_TIMEOUT", "20ms")).await
    }

    /// A stream in so many parts, with two endpoints.
    pub async fn split(parts: u32) -> Self {
        let redis = TestRedis::start().await;
        let mut registry = RegistryStore::connect(&redis.redis()).await.unwrap();
        for (endpoint_id, account) in [("ep_a", "acc_1"), ("ep_b", "acc_2")] {
            registry.create(endpoint(endpoint_id, account, NOWHERE), &mark()).await.unwrap();
        }
        let setup = Setup::new(&redis.url()).env("HERALD_PARTITIONS", &parts.to_string());
        let house = Self::of(redis, setup.env("HERALD_WORKER", "night-shift")).await;
        house.herald.until_metric("herald_partition_owned", |owned| owned == f64::from(parts + 1)).await;
        house
    }

    async fn with(adapt: impl FnOnce(Setup) -> Setup) -> Self {
        let redis = staged().await;
        let setup = adapt(Setup::new(&redis.url()));
        Self::of(redis, setup).await
    }

    async fn on(redis: TestRedis, url: &str) -> Self {
        // What is due in ten minutes waits, for this policy can have meant that.
        Self::of(redis, Setup::new(url).env("HERALD_RETRY_MAX_INTERVAL", "1h")).await
    }

    pub async fn of(redis: TestRedis, setup: Setup) -> Self {
        let herald = setup.env("HERALD_ADMIN_TOKEN", ADMIN).start();
        herald.until_owner().await;
        herald::tls::install_crypto_provider();
        Self { redis, herald, client: reqwest::Client::new() }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.herald.address())
    }

    pub async fn ask(&self, method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> Answer {
        let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
        self.send(method, path, token, body).await
    }

    pub async fn send(&self, method: &str, path: &str, token: Option<&str>, body: Option<(&str, Vec<u8>)>) -> Answer {
        let mut request = self.client.request(method.parse().unwrap(), self.url(path));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some((kind, body)) = body {
            request = request.header("content-type", kind).body(body);
        }
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await.unwrap();
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Answer { status, headers, body }
    }

    pub async fn get(&self, path: &str, token: &str) -> Value {
        let Answer { status, body, .. } = self.ask("GET", path, Some(token), None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.ask("POST", path, Some(token), Some(&body)).await
    }

    /// A token of this role; a merchant's is for the first account.
    pub async fn token(&self, role: &str) -> String {
        let account = if role == "merchant" { json!("acc_1") } else { Value::Null };
        self.made(json!({"role": role, "account": account, "name": "test", "reason": "a test"})).await
    }

    /// A merchant's, for this account.
    pub async fn token_of(&self, account: &str) -> String {
        self.made(json!({"role": "merchant", "account": account, "name": "other", "reason": "a test"})).await
    }

    async fn made(&self, wanted: Value) -> String {
        let made = self.post("/v1/tokens", ADMIN, wanted).await;
        assert_eq!(made.status, 201, "{}", made.body);
        made.body["token"].as_str().unwrap().to_owned()
    }

    /// A verb of the command line on the same Redis.
    pub fn cli(&self, words: &[&str]) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.env_clear().env("USER", "ops").env("HERALD_ALLOW_HTTP", "true");
        command.env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8").args(["--redis-url", &self.redis.url()]).args(words);
        let done = command.args(["-o", "json"]).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {said}"))
    }
}

async fn staged() -> TestRedis {
    let redis = TestRedis::start_with_aof().await;
    let mut registry = RegistryStore::connect(&redis.redis()).await.unwrap();
    registry.create(endpoint("ep_a", "acc_1", NOWHERE), &mark()).await.unwrap();
    registry.create(endpoint("ep_b", "acc_2", NOWHERE), &mark()).await.unwrap();
    let owner = Owner::start(&redis.redis()).await;
    let bind = Item::Bind { registry: registry.position().await.unwrap().unwrap().0.id.to_string() };
    owner.settle(vec![bind], Vec::new()).await;
    let letter = |n: u64| bury(&delivery(&format!("{n}-0"), "ep_a", &format!("pi_{n}"), true), DeadReason::Exhausted);
    let mut items: Vec<Item> = (1..=7).map(letter).collect();
    let young = |entry: &str| Delivery { since_ms: herald::clock::wall_ms(), ..delivery(entry, "ep_a", "pi_90", true) };
    items.push(keep(&young("90-0"), Place::DueIn(600_000)));
    items.push(keep(&young("91-0"), Place::Held));
    items.extend(["30-0", "31-0", "32-0"].map(quarantined));
    let delivered = delivery("50-0", "ep_a", "pi_50", true);
    owner.settle(items, vec![log_line(&delivered, r#""kind":"delivered","status":200"#)]).await;
    owner.release().await;
    redis
}

fn quarantined(entry: &str) -> Item {
    Item::Quarantine {
        entry: entry.parse().unwrap(),
        body: "{}".into(),
        cut: false,
        error: "id: is missing".into(),
        envelope: Default::default(),
        keep_bytes: Some(1 << 20),
    }
}

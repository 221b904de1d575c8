//! A Redis, the service, and merchants with keys.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use super::support::{TestRedis, until};

const HERALD: &str = env!("CARGO_BIN_EXE_herald");

pub struct House {
    pub redis: TestRedis,
    child: Child,
    url: String,
}

impl House {
    pub async fn start() -> Self {
        Self::of(true).await
    }

    pub async fn without_sandbox() -> Self {
        Self::of(false).await
    }

    async fn of(is_sandbox: bool) -> Self {
        let redis = TestRedis::start().await;
        let (child, url) = serve(&redis, is_sandbox);
        let house = Self { redis, child, url };
        house.until_it_answers().await;
        house
    }

    async fn until_it_answers(&self) {
        let client = client();
        until("the service", async || {
            client.get(format!("{}/healthz", self.url)).send().await.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }

    /// Where the service is, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn kill_service(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn stop_service(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        until("its end", async || self.child.try_wait().unwrap().is_some()).await;
        assert!(self.child.wait().unwrap().success());
    }

    pub async fn start_service(&mut self) {
        (self.child, self.url) = serve(&self.redis, true);
        self.until_it_answers().await;
    }

    pub async fn end(mut self) {
        self.stop_service().await;
    }

    pub fn merchant(&self, account: &str) -> Merchant {
        self.with_key(&self.key(&["--account", account]))
    }

    pub fn reader(&self, account: &str) -> Merchant {
        self.with_key(&self.key(&["--account", account, "--read-only"]))
    }

    fn key(&self, more: &[&str]) -> String {
        let mut command = Command::new(HERALD);
        command.args(["intents", "key", "create", "-o", "json"]).args(more);
        let made = command.env_clear().env("HERALD_REDIS_URL", self.redis.url()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let made: Value = serde_json::from_slice(&made.stdout).unwrap();
        made["key"].as_str().unwrap().to_owned()
    }

    pub fn with_key(&self, key: &str) -> Merchant {
        Merchant { client: client(), url: self.url.clone(), key: key.to_owned() }
    }

    /// The same merchant, where the service is now.
    pub fn again(&self, merchant: &Merchant) -> Merchant {
        self.with_key(&merchant.key)
    }

    /// Everything of payment intents, each key as Redis dumps it.
    pub async fn stored(&self) -> BTreeMap<String, Vec<u8>> {
        let mut stored = BTreeMap::new();
        for key in self.redis.command::<Vec<String>>(&["KEYS", "*pi*"]).await {
            let dump = self.redis.command::<Vec<u8>>(&["DUMP", &key]).await;
            stored.insert(key, dump);
        }
        stored
    }

    /// All of the stream, in its order.
    pub async fn events(&self) -> Vec<Value> {
        let entries: Vec<(String, Vec<String>)> = self.redis.command(&["XRANGE", "payment-intents", "-", "+"]).await;
        entries.into_iter().map(|(_, fields)| serde_json::from_str(&fields[1]).unwrap()).collect()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client() -> reqwest::Client {
    herald::tls::install_crypto_provider();
    reqwest::Client::new()
}

fn serve(redis: &TestRedis, is_sandbox: bool) -> (Child, String) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut command = Command::new(HERALD);
    command.args(["intents", "serve"]).env_clear().env("HERALD_REDIS_URL", redis.url());
    command.env("HERALD_INTENTS_LISTEN", &address).env("HERALD_LOG", "warn");
    command.env("HERALD_SANDBOX", is_sandbox.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    (command.spawn().unwrap(), format!("http://{address}"))
}

pub fn created() -> Value {
    json!({ "amount": { "value": 1000, "currencyCode": "GBP" }, "reference": "Order 236" })
}

pub fn manual(amount: i64) -> Value {
    json!({ "captureMode": "Manual", "amount": { "value": amount, "currencyCode": "GBP" }, "reference": "Order 236" })
}

#[derive(Clone)]
pub struct Merchant {
    client: reqwest::Client,
    url: String,
    key: String,
}

impl Merchant {
    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.asking(reqwest::Method::GET, path)).await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.raw(path, &body.to_string()).await
    }

    /// None where the service went away meanwhile.
    pub async fn try_post(&self, path: &str, body: &Value) -> Option<(u16, Value)> {
        answer(self.posting(path, &body.to_string())).await
    }

    pub async fn post_as(&self, key: &str, path: &str, body: &Value) -> (u16, Value) {
        self.raw_as(key, path, &body.to_string()).await
    }

    pub async fn raw(&self, path: &str, body: &str) -> (u16, Value) {
        answer(self.posting(path, body)).await.unwrap()
    }

    pub async fn raw_as(&self, key: &str, path: &str, body: &str) -> (u16, Value) {
        answer(self.posting(path, body).header("idempotencyKey", key)).await.unwrap()
    }

    pub async fn create(&self, body: &Value) -> Value {
        let (code, intent) = self.post("/payment-intents", body).await;
        assert_eq!(code, 200, "{intent}");
        intent
    }

    pub async fn status(&self, id: &str) -> String {
        let (code, intent) = self.get(&format!("/payment-intents/{id}?returnCanceled=true")).await;
        assert_eq!(code, 200, "{intent}");
        intent["status"].as_str().unwrap().to_owned()
    }

    fn posting(&self, path: &str, body: &str) -> reqwest::RequestBuilder {
        let request = self.asking(reqwest::Method::POST, path).header("content-type", "application/json");
        request.body(body.to_owned())
    }

    fn asking(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url)).timeout(Duration::from_secs(30));
        request.header("authorization", format!("Basic {}", self.key)).header("version", "2025-09-10")
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
    let answer = request.send().await.ok()?;
    let code = answer.status().as_u16();
    let text = answer.text().await.ok()?;
    Some((code, serde_json::from_str(&text).unwrap_or(Value::Null)))
}

//! A Redis, the service, and merchants with keys.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use super::support::{TestRedis, until};

pub const HERALD: &str = env!("CARGO_BIN_EXE_herald");

pub struct House {
    pub redis: TestRedis,
    child: Child,
    url: String,
    settings: Settings,
    /// Further processes over the same Redis.
    others: Vec<Child>,
}

/// Of the service, beside what each has.
type Settings = &'static [(&'static str, &'static str)];

impl House {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn without_sandbox() -> Self {
        Self::start_with(&[("HERALD_SANDBOX", "false")]).await
    }

    /// With the history at this place, which whoever delivers writes.
    pub async fn with_history(url: &str) -> Self {
        let url: &'static str = url.to_owned().leak();
        Self::start_with(vec![("HERALD_HISTORY_URL", url)].leak()).await
    }

    pub async fn start_with(settings: Settings) -> Self {
        let redis = TestRedis::start().await;
        let (child, url) = serve(&redis, settings);
        let house = Self { redis, child, url, settings, others: Vec::new() };
        until_it_answers(&house.url).await;
        house
    }

    /// One process more; says where.
    pub async fn start_another(&mut self) -> String {
        let (child, url) = serve(&self.redis, self.settings);
        self.others.push(child);
        until_it_answers(&url).await;
        url
    }

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

    pub async fn forget_history(&mut self) {
        self.kill_service();
        self.settings = &[];
        self.start_service().await;
    }

    pub async fn start_service(&mut self) {
        (self.child, self.url) = serve(&self.redis, self.settings);
        until_it_answers(&self.url).await;
    }

    /// A process at the address of the one that was killed.
    pub async fn start_service_again(&mut self) {
        self.child = serve_at(&self.redis, self.url.trim_start_matches("http://"), self.settings);
        until_it_answers(&self.url).await;
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
        let made = self.verb(&[&["intents", "key", "create", "-o", "json"], more].concat());
        made["key"].as_str().unwrap().to_owned()
    }

    /// What a verb of an operator says, where that is JSON.
    pub fn verb(&self, words: &[&str]) -> Value {
        let mut command = Command::new(HERALD);
        command.args(if words.contains(&"-o") { &[][..] } else { &["-o", "json"] });
        command.args(words).env_clear().env("HERALD_REDIS_URL", self.redis.url()).envs(self.settings.iter().copied());
        let done = command.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap_or_default()
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
        for child in self.others.iter_mut().chain([&mut self.child]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn until_it_answers(url: &str) {
    let client = client();
    until("the service", async || {
        client.get(format!("{url}/healthz")).send().await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
}

fn client() -> reqwest::Client {
    herald::tls::install_crypto_provider();
    reqwest::Client::new()
}

fn serve(redis: &TestRedis, settings: Settings) -> (Child, String) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    (serve_at(redis, &address, settings), format!("http://{address}"))
}

fn serve_at(redis: &TestRedis, address: &str, settings: Settings) -> Child {
    let mut command = Command::new(HERALD);
    command.args(["intents", "serve"]).env_clear().env("HERALD_REDIS_URL", redis.url());
    command.env("HERALD_INTENTS_LISTEN", address).env("HERALD_SANDBOX", "true").env("HERALD_LOG", "warn");
    command.env("HERALD_HISTORY_URL", "").envs(settings.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().unwrap()
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
    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same merchant at another process.
    pub fn at(&self, url: &str) -> Self {
        Self { url: url.to_owned(), ..self.clone() }
    }

    /// An error where the service went away meanwhile, or was not there.
    pub async fn try_ask(
        &self,
        method: reqwest::Method,
        path: &str,
        key: Option<&str>,
        body: &Value,
    ) -> reqwest::Result<(u16, Value)> {
        let mut request = self.asking(method, path);
        if !body.is_null() {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        if let Some(key) = key {
            request = request.header("idempotencyKey", key);
        }
        let answer = request.send().await?;
        let code = answer.status().as_u16();
        Ok((code, serde_json::from_str(&answer.text().await?).unwrap_or(Value::Null)))
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.asking(reqwest::Method::GET, path)).await.unwrap()
    }

    /// What was there at an earlier instant.
    pub async fn get_as_of(&self, at: &str, path: &str) -> (u16, Value) {
        answer(self.asking(reqwest::Method::GET, path).header("herald-as-of", at)).await.unwrap()
    }

    pub async fn text(&self, path: &str) -> String {
        self.asking(reqwest::Method::GET, path).send().await.unwrap().text().await.unwrap()
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        answer(self.asking(reqwest::Method::DELETE, path)).await.unwrap()
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

    /// Any other method, without a body.
    pub async fn ask(&self, method: &str, path: &str) -> (u16, Value) {
        answer(self.asking(method.parse().unwrap(), path)).await.unwrap()
    }

    pub async fn patch(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.asking(reqwest::Method::PATCH, path).header("content-type", "application/json");
        answer(request.body(body.to_string())).await.unwrap()
    }

    pub async fn post_of_type(&self, kind: Option<&str>, path: &str, body: &Value) -> (u16, Value) {
        let mut request = self.asking(reqwest::Method::POST, path);
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        answer(request.body(body.to_string())).await.unwrap()
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

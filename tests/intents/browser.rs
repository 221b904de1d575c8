//! A real Chromium without a window, driven over WebDriver: what a customer sees and does. `make setup` installs it.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Stdio,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::support::{soon, until};

/// The driver chooses its port with one address and then takes it with another, where a server of another test may have it: then it ends.
const STARTS: u32 = 5;

/// How the driver names an element in what it answers; the standard's own constant.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

pub struct Browser {
    driver: Child,
    client: reqwest::Client,
    session: String,
    /// What it keeps is gone with it.
    _folder: TempDir,
}

/// None if it ends before it listens.
async fn start_driver(folder: &Path) -> Option<(Child, u16)> {
    let mut command = Command::new("chromedriver");
    command.arg("--port=0").env("TMPDIR", folder).env("HOME", folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut driver = command.spawn().unwrap_or_else(|error| panic!("chromedriver: {error}; run `make setup`"));
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    while let Some(line) = soon("the driver's port", lines.next_line()).await.unwrap() {
        if let Some((_, port)) = line.trim_end_matches('.').split_once("successfully on port ") {
            return Some((driver, port.parse().unwrap()));
        }
    }
    driver.wait().await.unwrap();
    None
}

impl Browser {
    /// One that runs no script of a page.
    pub async fn without_scripts() -> Self {
        Self::start(&json!({ "profile.managed_default_content_settings.javascript": 2 })).await
    }

    pub async fn with_scripts() -> Self {
        Self::start(&json!({})).await
    }

    async fn start(preferences: &Value) -> Self {
        herald::tls::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let mut started = None;
        for _ in 0..STARTS {
            started = start_driver(folder.path()).await;
            if started.is_some() {
                break;
            }
        }
        let (driver, port) = started.expect("the driver goes on");
        // It may be root's in a container, whose kernel has no room for a sandbox; it only sees this test's pages.
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"];
        let options = json!({ "args": arguments, "prefs": preferences });
        let wanted =
            json!({ "capabilities": { "alwaysMatch": { "browserName": "chrome", "goog:chromeOptions": options } } });
        let mut browser = Self {
            driver,
            client: reqwest::Client::new(),
            session: format!("http://127.0.0.1:{port}/session"),
            _folder: folder,
        };
        let made = browser.ask("", &wanted).await;
        browser.session = format!("{}/{}", browser.session, made["sessionId"].as_str().unwrap());
        browser
    }

    async fn ask(&self, path: &str, body: &Value) -> Value {
        let request = self.client.post(format!("{}{path}", self.session)).header("content-type", "application/json");
        answer(path, request.body(body.to_string())).await
    }

    async fn look(&self, path: &str) -> Value {
        self.try_look(path).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn try_look(&self, path: &str) -> Result<Value, Value> {
        try_answer(path, self.client.get(format!("{}{path}", self.session))).await
    }

    pub async fn open(&self, url: &str) {
        self.ask("/url", &json!({ "url": url })).await;
    }

    pub async fn url(&self) -> String {
        self.look("/url").await.as_str().unwrap().to_owned()
    }

    pub async fn title(&self) -> String {
        self.look("/title").await.as_str().unwrap().to_owned()
    }

    /// All that is seen of the page.
    pub async fn text(&self) -> String {
        let body = self.find("body").await;
        self.look(&format!("/element/{body}/text")).await.as_str().unwrap().to_owned()
    }

    /// A form that was sent is answered in its own time.
    pub async fn until_it_says(&self, text: &str) {
        let body = json!({ "using": "css selector", "value": "body" });
        until(text, async || {
            // The page that was looked at may be gone a moment later.
            let request =
                self.client.post(format!("{}/element", self.session)).header("content-type", "application/json");
            let Ok(found) = try_answer("body", request.body(body.to_string())).await else { return false };
            let shown = self.try_look(&format!("/element/{}/text", found[ELEMENT].as_str().unwrap())).await;
            shown.is_ok_and(|shown| shown.as_str().unwrap().contains(text))
        })
        .await;
    }

    pub async fn until_titled(&self, title: &str) {
        until(title, async || self.title().await == title).await;
    }

    pub async fn until_at(&self, url: &str) {
        until(url, async || self.url().await == url).await;
    }

    /// What is looked for from here on is in this frame.
    pub async fn enter(&self, selector: &str) {
        let frame = self.find(selector).await;
        self.ask("/frame", &json!({ "id": { ELEMENT: frame } })).await;
    }

    /// Back to the page.
    pub async fn leave(&self) {
        self.ask("/frame", &json!({ "id": null })).await;
    }

    async fn find(&self, selector: &str) -> String {
        let found = self.ask("/element", &json!({ "using": "css selector", "value": selector })).await;
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    pub async fn click(&self, selector: &str) {
        let element = self.find(selector).await;
        self.ask(&format!("/element/{element}/click"), &json!({})).await;
    }

    /// Types it, in the place of what stands there.
    pub async fn fill(&self, selector: &str, text: &str) {
        let element = self.find(selector).await;
        self.ask(&format!("/element/{element}/clear"), &json!({})).await;
        self.type_into(selector, text).await;
    }

    /// As keys, which also choose an option by its name.
    pub async fn type_into(&self, selector: &str, text: &str) {
        let element = self.find(selector).await;
        self.ask(&format!("/element/{element}/value"), &json!({ "text": text })).await;
    }

    pub async fn value(&self, selector: &str) -> String {
        let element = self.find(selector).await;
        self.look(&format!("/element/{element}/property/value")).await.as_str().unwrap().to_owned()
    }

    pub async fn is_shown(&self, selector: &str) -> bool {
        let element = self.find(selector).await;
        self.look(&format!("/element/{element}/displayed")).await == json!(true)
    }

    /// Runs a script of the test's own in the page.
    pub async fn run(&self, script: &str) -> Value {
        self.ask("/execute/sync", &json!({ "script": script, "args": [] })).await
    }

    pub async fn run_async(&self, script: &str) -> Value {
        self.ask("/execute/async", &json!({ "script": script, "args": [] })).await
    }

    /// A command of Chromium's own.
    pub async fn command(&self, name: &str, parameters: &Value) -> Value {
        self.ask("/goog/cdp/execute", &json!({ "cmd": name, "params": parameters })).await
    }
}

/// Also where a test fails. A driver that ends leaves its browser behind, so it has to end the session first.
impl Drop for Browser {
    fn drop(&mut self) {
        let session = url::Url::parse(&self.session).expect("it is a URL");
        let goodbye = format!("DELETE {} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n", session.path());
        let _ = TcpStream::connect(("127.0.0.1", session.port().unwrap_or_default())).and_then(|mut driver| {
            driver.write_all(goodbye.as_bytes())?;
            // It answers once the browser has ended, and keeps the connection.
            driver.read(&mut [0; 512])
        });
        let Some(id) = self.driver.id().and_then(|id| i32::try_from(id).ok()) else { return };
        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        let _ = waitpid(Pid::from_raw(id), None);
    }
}

async fn answer(what: &str, request: reqwest::RequestBuilder) -> Value {
    try_answer(what, request).await.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// What the driver refuses is what there is not, or not any more.
async fn try_answer(what: &str, request: reqwest::RequestBuilder) -> Result<Value, Value> {
    let answer = soon("the browser", request.send()).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let is_good = answer.status().is_success();
    let value: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    if is_good { Ok(value["value"].clone()) } else { Err(value) }
}

//! A real Prometheus and its promtool, taken from Debian's package by deploy/setup-operate.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{process::Herald, support::until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

pub fn rules() -> String {
    fs::read_to_string(PathBuf::from(ROOT).join("deploy/prometheus/herald.rules.yml")).unwrap()
}

fn installed(name: &str) -> PathBuf {
    let program = PathBuf::from(ROOT).join("target/verifiers").join(name);
    assert!(program.exists(), "{} is missing: run deploy/setup-operate", program.display());
    program
}

/// What promtool says of it: Err if it finds something.
pub fn promtool(arguments: &[&str], input: &[u8]) -> Result<String, String> {
    let mut command = Command::new(installed("promtool"));
    command.args(arguments).current_dir(ROOT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(input).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// One that scrapes every second, with a copy of the rules whose alerts wait for no longer than that.
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Also of workers that are not there yet, or no more.
    pub async fn start(targets: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap();
        let is_wait = |line: &&str| line.trim_start().starts_with("for: ");
        let shortened: Vec<_> =
            rules().lines().map(|line| if is_wait(&line) { "        for: 1s" } else { line }.to_owned()).collect();
        fs::write(folder.path().join("rules.yml"), shortened.join("\n")).unwrap();
        let targets: Vec<String> = targets.iter().map(|target| format!("{:?}", target.to_string())).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\nrule_files: [rules.yml]\n\
             scrape_configs:\n  - job_name: herald\n    static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(installed("prometheus"));
        command.arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}")).arg("--enable-feature=exemplar-storage");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let prometheus = Self { child: command.spawn().unwrap(), address, _folder: folder };
        until("Prometheus is ready", async || prometheus.get("/-/ready").is_some()).await;
        prometheus
    }

    pub async fn of(heralds: &[&Herald]) -> Self {
        Self::start(&heralds.iter().map(|herald| herald.address()).collect::<Vec<_>>()).await
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: prometheus\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        (head.contains(" 200 ")).then(|| body.to_owned())
    }

    fn json(&self, path: &str) -> Value {
        self.get(path).and_then(|body| serde_json::from_str(&body).ok()).unwrap_or_default()
    }

    pub fn is_firing(&self, alert: &str) -> bool {
        let answer = self.json("/api/v1/alerts");
        let alerts = answer["data"]["alerts"].as_array().into_iter().flatten();
        alerts.into_iter().any(|one| one["labels"]["alertname"] == alert && one["state"] == "firing")
    }

    pub async fn until_firing(&self, alert: &str) {
        until(&format!("{alert} fires"), async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.is_firing(alert)
        })
        .await;
    }

    pub async fn until_silent(&self, alert: &str) {
        until(&format!("{alert} is silent"), async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            !self.is_firing(alert)
        })
        .await;
    }

    /// How many samples an expression has now; None if Prometheus refuses it.
    pub fn samples(&self, expression: &str) -> Option<usize> {
        let encoded: String = url::form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let answer = self.json(&format!("/api/v1/query?query={encoded}"));
        answer["data"]["result"].as_array().map(Vec::len)
    }

    pub async fn until_samples(&self, expression: &str) {
        until(&format!("{expression} has a sample"), async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.samples(expression).is_some_and(|samples| samples > 0)
        })
        .await;
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

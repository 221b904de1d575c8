//! The real program as its own process, and what a test does to it.
#![allow(dead_code, reason = "each test binary uses a part of this")]
// A test waits for another process: it polls, and a safety time-out ends it.
#![allow(clippy::disallowed_methods)]

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{SAFETY, until};

/// How the tests change the defaults: everything is quick.
const QUICK: &str = r#"
[shutdown]
grace = "3s"
[limits.breaker]
cooldown = "300ms"
max_cooldown = "1s"
"#;

pub struct Herald {
    child: Child,
    listen: SocketAddr,
    folder: tempfile::TempDir,
}

/// How to start one.
#[derive(Clone)]
pub struct Setup {
    redis: String,
    toml: String,
    env: Vec<(String, String)>,
    dumps_core: bool,
    /// What it serves: everything, or `intents` alone.
    serves: &'static [&'static str],
}

impl Setup {
    pub fn new(redis: &str) -> Self {
        let (redis, toml) = (redis.to_owned(), QUICK.to_owned());
        let setup = Self { redis, toml, env: Vec::new(), dumps_core: false, serves: &["serve"] };
        setup
            .env("HERALD_ALLOW_HTTP", "true")
            .env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8")
            .env("HERALD_LEASE", "1s")
            .env("HERALD_LOG", "herald=debug")
            .env("HERALD_LOG_FORMAT", "text")
            .env("HERALD_ATTEMPT_TIMEOUT", "5s")
            .env("HERALD_RETRY_INITIAL", "100ms")
            .env("HERALD_RETRY_MULTIPLIER", "2")
            .env("HERALD_RETRY_MAX_INTERVAL", "500ms")
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A crash of it leaves its memory in its folder, if the machine does so.
    pub fn dumping_core(mut self) -> Self {
        self.dumps_core = true;
        self
    }

    /// Payment intents alone. Its address is that of its health.
    pub fn intents_alone(self) -> Self {
        let setup = Self { serves: &["intents", "serve"], ..self };
        setup.env("HERALD_INTENTS_LISTEN", &free_address().to_string())
    }

    /// It believes that it is this much later, or earlier, than it is: `+2h`, `-30s`.
    pub fn elsewhen(self, by: &str) -> Self {
        let libraries = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
        let found = libraries.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists());
        let library = found.expect("deploy/setup-verifiers installs libfaketime");
        // Spans are not measured with that clock.
        self.env("LD_PRELOAD", library.to_str().unwrap()).env("FAKETIME", by).env("DONT_FAKE_MONOTONIC", "1")
    }

    /// Replaces the file of settings.
    pub fn toml(mut self, toml: &str) -> Self {
        self.toml = toml.to_owned();
        self
    }

    pub fn start(&self) -> Herald {
        self.start_with(None)
    }

    /// Its log goes there and not into a file.
    pub fn start_logging_to(&self, stderr: impl Into<Stdio>) -> Herald {
        self.start_with(Some(stderr.into()))
    }

    fn start_with(&self, stderr: Option<Stdio>) -> Herald {
        let folder = tempfile::tempdir().expect("a scratch folder can be made");
        let file = folder.path().join("herald.toml");
        fs::write(&file, &self.toml).expect("the scratch folder can be written to");
        let log = File::create(folder.path().join("log")).expect("the scratch folder can be written to");
        let listen = free_address();
        let mut command = match self.dumps_core {
            false => Command::new(env!("CARGO_BIN_EXE_herald")),
            true => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", "ulimit -c unlimited; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_herald")]);
                command.current_dir(folder.path());
                command
            }
        };
        command.args(self.serves).env_clear().env("PATH", "/usr/bin:/bin").env("HERALD_HISTORY_URL", "");
        command.env("HERALD_REDIS_URL", &self.redis).env("HERALD_LISTEN", listen.to_string());
        command.env("HERALD_INTENTS_METRICS_LISTEN", listen.to_string());
        command.env("HERALD_CONFIG", &file).env("RUST_BACKTRACE", "1");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let output = log.try_clone().expect("a file can be cloned");
        command.stdin(Stdio::null()).stdout(output).stderr(stderr.unwrap_or_else(|| log.into()));
        Herald { child: command.spawn().expect("herald starts"), listen, folder }
    }
}

/// Nobody listens there at the moment.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port")
}

/// Status and body; none while nobody answers there.
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: herald\r\nconnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.get(9..12)?.parse().ok()?, body.to_owned()))
}

impl Herald {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it was started, with its log.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id fits"));
        kill(pid, signal).expect("the test's Herald runs");
    }

    pub fn kill9(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("a child can be waited for");
    }

    /// Sends SIGTERM and waits for its end.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the end of herald", async || {
            status = self.child.try_wait().expect("a child can be asked");
            status.is_some()
        })
        .await;
        status.expect("it has ended")
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_some()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Status and body; none while it does not answer.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.listen, path)
    }

    /// One line of `/metrics`, with its labels, except for the partition's: a test has one partition.
    pub fn metric(&self, series: &str) -> f64 {
        let (_, page) = self.get("/metrics").unwrap_or_default();
        let page = page.replace("{partition=\"payment-intents\"}", "").replace("partition=\"payment-intents\",", "");
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
    }

    pub async fn until_metric(&self, series: &str, holds: impl Fn(f64) -> bool) {
        let deadline = Instant::now() + SAFETY;
        loop {
            let value = self.metric(series);
            if holds(value) {
                return;
            }
            assert!(Instant::now() < deadline, "waited in vain for {series}, which is {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn until_owner(&self) {
        self.until_metric("herald_partition_owner", |value| value == 1.0).await;
    }

    pub async fn until_log(&self, text: &str) {
        until(&format!("{text:?} in the log"), async || self.log().contains(text)).await;
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most memory that it ever had resident, in bytes.
    pub fn peak_resident(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// Processor time used so far, in seconds.
    pub fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / 100.0
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("---- the last lines of herald {} ----", self.child.id());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

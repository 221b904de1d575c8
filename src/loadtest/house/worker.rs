//! One `herald serve` or `herald intents serve` of the harness's own: its settings, its log, its starts and ends. Started again after a `kill
//! -9`, it is the same worker with another process.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{sleep, timeout},
};

use super::log_gate::LogGate;
use crate::{
    config::{Config, ConfigFile, Sources},
    owned::{Owned, Usage, free_port},
    surface::words,
};

/// A worker is ready a tenth of a second after its start; a machine that is full takes longer.
const READY: Duration = Duration::from_secs(30);

/// Ports to try: another program may take one between its choice and its use.
const TRIES: usize = 5;

/// How much of the log of a failed worker is shown.
const LAST_WORDS_BYTES: u64 = 4 * 1024;

/// What its process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Dispatcher,
    /// The payment-intents service, with its sandbox. Keeps its address from process to process, as callers know it.
    Intents,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Dispatcher => "worker",
            Self::Intents => "service",
        }
    }

    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Dispatcher => &["serve"],
            Self::Intents => &["intents", "serve"],
        }
    }

    fn probe(self) -> &'static str {
        match self {
            Self::Dispatcher => "/readyz",
            Self::Intents => "/healthz",
        }
    }

    /// Its own settings at this port. One public URL for all services, or the links that they answer would differ.
    fn settings(self, port: u16) -> Vec<(String, String)> {
        let address = format!("{}:{port}", Ipv4Addr::LOCALHOST);
        let text = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        match self {
            Self::Dispatcher => [("listen", address.as_str()), ("history.url", "")].map(text).into(),
            Self::Intents => [
                ("intents.listen", address.as_str()),
                ("intents.sandbox", "true"),
                ("intents.public_url", "https://intents.test"),
            ]
            .map(text)
            .into(),
        }
    }
}

pub struct Worker {
    role: Role,
    program: PathBuf,
    file: PathBuf,
    log: PathBuf,
    settings: BTreeMap<String, String>,
    gate: Option<LogGate>,
    key: Option<MasterKey>,
    process: Option<Owned>,
    /// The process was stopped and has not been continued yet.
    is_frozen: bool,
    /// It was asked to end.
    is_leaving: bool,
    port: u16,
    /// The use of the processes that have ended.
    ended: Usage,
}

impl Worker {
    /// Does not start it. `number` counts from 1.
    pub fn new(role: Role, number: u32, program: PathBuf, folder: &Path, settings: BTreeMap<String, String>) -> Self {
        let file = folder.join(format!("{}-{number}.toml", role.name()));
        let log = folder.join(format!("{}-{number}.log", role.name()));
        let (gate, key, process, ended) = (None, None, None, Usage::default());
        Self {
            role,
            program,
            file,
            log,
            settings,
            gate,
            key,
            process,
            is_frozen: false,
            is_leaving: false,
            port: 0,
            ended,
        }
    }

    /// Its output goes through this.
    pub fn with_gate(self, gate: Option<LogGate>) -> Self {
        Self { gate, ..self }
    }

    /// It has this key in a file of its own, from its start on.
    pub fn with_key(self, key: Option<MasterKey>) -> Self {
        Self { key, ..self }
    }

    /// What it has instead of its own key, until that is restored. It sees that within some seconds.
    pub fn change_key(&self, other: MasterKey) -> Result<()> {
        ensure!(self.key.is_some(), "the worker has no key that could be changed");
        other.write(&self.key_file()).map(|_| ())
    }

    pub fn restore_key(&self) -> Result<()> {
        self.key.as_ref().map_or(Ok(()), |key| key.write(&self.key_file()).map(|_| ()))
    }

    fn key_file(&self) -> PathBuf {
        self.file.with_extension("key")
    }

    /// A look now.
    pub async fn is_ready(&self) -> bool {
        is_ready(self.port, self.role.probe()).await
    }

    /// Starts a process for it and waits until that is ready.
    pub async fn start(&mut self) -> Result<()> {
        for tried in 1..=TRIES {
            self.launch().await?;
            match timeout(READY, self.ready()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if tried == TRIES || !self.lost_its_port() => return Err(error),
                Ok(Err(_)) => self.port = 0,
                Err(_) => bail!(
                    "a worker was not ready within {}; {}",
                    words::span(READY.as_millis() as u64),
                    self.last_words()
                ),
            }
        }
        Ok(())
    }

    /// Starts a process for it, ready or not.
    pub async fn launch(&mut self) -> Result<()> {
        if self.role == Role::Dispatcher || self.port == 0 {
            self.port = free_port()?;
        }
        let mut settings = self.settings.clone();
        if let Some(key) = &self.key {
            let path = self.key_file();
            // One that was changed stays so: a crash gives nobody his key back.
            if !path.exists() {
                key.write(&path)?;
            }
            settings.insert("master_key_file".to_owned(), path.display().to_string());
        }
        fs::write(&self.file, toml(&settings, self.role, self.port))
            .with_context(|| format!("cannot write {}", self.file.display()))?;
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = Command::new(&self.program);
        // Nothing of the user's environment: it may name another Redis.
        command.args(self.role.words()).arg("--config").arg(&self.file).env_clear().env("RUST_BACKTRACE", "1");
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        let (out, error) = match &self.gate {
            Some(gate) => (gate.pipe(log.try_clone()?)?, gate.pipe(log)?),
            None => (log.try_clone()?.into(), log.into()),
        };
        command.stdin(Stdio::null()).stdout(out).stderr(error);
        self.is_leaving = false;
        let process = Owned::spawn(&mut command);
        self.process = Some(process.with_context(|| format!("cannot start {} serve", self.program.display()))?);
        Ok(())
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// `kill -9`.
    pub async fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        self.is_frozen = false;
        self.add_usage(process.usage());
        process.kill().await.context("cannot kill a worker")
    }

    /// SIGTERM: from now on it may end.
    pub fn leave(&mut self) -> Result<()> {
        self.is_leaving = true;
        self.signal(Signal::SIGTERM)
    }

    /// Whether it was asked to end, and has; one that failed at it has failed.
    pub fn has_left(&mut self) -> Result<bool> {
        let Some(process) = self.process.as_mut() else { return Ok(true) };
        // Of a process that has ended nobody can say what it used.
        let used = process.usage();
        match process.ended()? {
            None => Ok(false),
            Some(status) if self.is_leaving && status.success() => {
                self.process = None;
                self.add_usage(used);
                Ok(true)
            }
            Some(status) => bail!("a worker that was to end did so with {status}; {}", self.last_words()),
        }
    }

    fn add_usage(&mut self, used: Usage) {
        self.ended.cpu += used.cpu;
        self.ended.peak_rss_bytes = self.ended.peak_rss_bytes.max(used.peak_rss_bytes);
    }

    /// Its process; none while that is frozen, when it does nothing though a lease may still bear its name, or is about to end.
    pub fn awake(&self) -> Option<Pid> {
        self.process.as_ref().filter(|_| !self.is_frozen && !self.is_leaving).map(Owned::pid)
    }

    /// SIGSTOP. Returns the process that it was sent to.
    pub fn freeze(&mut self) -> Result<Option<Pid>> {
        self.signal(Signal::SIGSTOP)?;
        self.is_frozen = true;
        Ok(self.process.as_ref().map(Owned::pid))
    }

    /// SIGCONT, unless it has another process by now because it was killed meanwhile.
    pub fn thaw(&mut self, frozen: Option<Pid>) -> Result<()> {
        if self.process.as_ref().map(Owned::pid) != frozen {
            return Ok(());
        }
        self.is_frozen = false;
        self.signal(Signal::SIGCONT)
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let signalled = self.process.as_mut().map_or(Ok(()), |process| process.signal(signal));
        signalled.with_context(|| format!("cannot send {signal} to a worker"))
    }

    /// A worker that ended although nobody killed it has failed.
    pub fn check(&mut self) -> Result<()> {
        if self.is_leaving {
            return self.has_left().map(|_| ());
        }
        match self.process.as_mut().map(Owned::ended).transpose()?.flatten() {
            Some(status) => bail!("a worker ended by itself with {status}; {}", self.last_words()),
            None => Ok(()),
        }
    }

    /// Over all its processes: the sum of the processor time, the highest memory.
    pub fn usage(&self) -> Usage {
        let now = self.process.as_ref().map(Owned::usage).unwrap_or_default();
        Usage { cpu: self.ended.cpu + now.cpu, peak_rss_bytes: self.ended.peak_rss_bytes.max(now.peak_rss_bytes) }
    }

    async fn ready(&mut self) -> Result<()> {
        while !self.is_ready().await {
            self.check()?;
            sleep(Duration::from_millis(10)).await;
        }
        self.check()
    }

    fn lost_its_port(&self) -> bool {
        self.tail().contains("cannot listen on")
    }

    fn last_words(&self) -> String {
        let tail = self.tail();
        let lines: Vec<&str> = tail.lines().rev().take(5).collect();
        match lines.is_empty() {
            true => format!("it said nothing in {}", self.log.display()),
            false => format!(
                "its last words in {}:\n  {}",
                self.log.display(),
                lines.into_iter().rev().collect::<Vec<_>>().join("\n  ")
            ),
        }
    }

    fn tail(&self) -> String {
        let read = || {
            let mut file = fs::File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
            std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }
}

/// A key as its file has it. Exists only for this run.
#[derive(Clone)]
pub struct MasterKey(String);

impl MasterKey {
    pub fn random() -> Self {
        Self(format!("hk1:{}\n", BASE64_STANDARD.encode(rand::random::<[u8; 32]>())))
    }

    /// In one step, so that nobody reads half of it. Returns the path.
    pub fn write(&self, path: &Path) -> Result<PathBuf> {
        let written = path.with_extension("new");
        let write = || {
            let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&written)?;
            file.write_all(self.0.as_bytes())?;
            fs::rename(&written, path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.to_owned())
    }
}

/// What a worker would say of these settings, before anything is started.
pub fn check_settings(settings: &BTreeMap<String, String>) -> Result<()> {
    let file = ConfigFile { path: "the settings of the workers".to_owned(), text: toml(settings, Role::Dispatcher, 1) };
    Config::load(Sources { file: Some(file), ..Sources::default() })?;
    Ok(())
}

/// Every value is written as text: the configuration reads it by its key.
fn toml(settings: &BTreeMap<String, String>, role: Role, port: u16) -> String {
    let lines = settings.iter().map(|(key, value)| (key.clone(), value.clone())).chain(role.settings(port));
    lines.map(|(key, value)| format!("{key} = {}\n", toml::Value::String(value))).collect()
}

async fn is_ready(port: u16, probe: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(format!("GET {probe} HTTP/1.1\r\nhost: herald\r\n\r\n").as_bytes()).await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        std::io::Result::Ok(status)
    };
    matches!(timeout(Duration::from_secs(1), ask).await, Ok(Ok(status)) if status == *b"HTTP/1.1 200")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn settings_are_read_as_a_worker_reads_them() {
        check_settings(&settings(&[
            ("lease.ttl", "2s"),
            ("guard.allow_networks", "127.0.0.0/8"),
            ("retry.jitter", "0.1"),
            ("limits.body_bytes", "8388608"),
            ("guard.allow_http", "true"),
        ]))
        .unwrap();
        let error = check_settings(&settings(&[("lease.tll", "2s"), ("retry.initial", "soon")])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("lease.tll") && text.contains("retry.initial"), "{text}");
        assert!(check_settings(&settings(&[("a = 1\nlisten", "x")])).is_err());
    }
}

//! A Redis of one's own: in a scratch folder, on a free port of this machine. It ends with its owner and leaves no file.
//! The demo, the load test, the tests and the benches start theirs here and nowhere else.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{sleep, timeout},
};

use super::{Owned, POLL, Usage, free_port};

/// A server on a slow machine is up within a second, and one that reads a file of a million events within ten; anything
/// slower has failed.
const START: Duration = Duration::from_secs(60);

/// Names the program that is started instead of `redis-server`: another Redis, or Valkey.
const SERVER: &str = "HERALD_TEST_SERVER";

/// Ports to try: another program may take one between its choice and its use.
const TRIES: usize = 5;

/// In its folder, the settings of one that is a sentinel, which keeps there what it finds out.
const SENTINEL: &str = "sentinel.conf";

/// A directive of `redis.conf` and its value, such as `("maxmemory", "100mb")`.
pub type Directive = (&'static str, &'static str);

/// As a production Redis for Herald: what is written is in a file within a second, and nothing is evicted. Without
/// snapshots, which would be a second file of the same.
const DIRECTIVES: [Directive; 4] =
    [("save", ""), ("appendonly", "yes"), ("appendfsync", "everysec"), ("maxmemory-policy", "noeviction")];

pub struct OwnRedis {
    /// Before the folder, so that it ends before its files go.
    process: Owned,
    folder: TempDir,
    port: u16,
    /// What its owner asked for beyond [`DIRECTIVES`].
    directives: Vec<(String, String)>,
    environment: Vec<(String, String)>,
}

impl OwnRedis {
    /// With an append-only file.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// These directives come last, so they hold.
    pub async fn start_with(directives: &[Directive]) -> Result<Self> {
        Self::start_as(directives.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()).await
    }

    pub(super) async fn start_as(directives: Vec<(String, String)>) -> Result<Self> {
        Self::start_in(scratch()?, directives).await
    }

    /// With these lines as its settings.
    pub(super) async fn start_sentinel(settings: &str) -> Result<Self> {
        let folder = scratch()?;
        fs::write(folder.path().join(SENTINEL), settings).context("cannot write the settings of a sentinel")?;
        Self::start_in(folder, Vec::new()).await
    }

    async fn start_in(folder: TempDir, directives: Vec<(String, String)>) -> Result<Self> {
        let mut failed = anyhow!("no port was tried");
        for _ in 0..TRIES {
            let port = free_port()?;
            match launch(folder.path(), port, &directives, &[]).await? {
                Ok(process) => return Ok(Self { process, folder, port, directives, environment: Vec::new() }),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn usage(&self) -> Usage {
        self.process.usage()
    }

    /// SIGTERM, and its end: what it had accepted is in its file, if it has one.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.stop().await.context("cannot stop the scratch Redis")
    }

    /// `kill -9`. What it had accepted is in its file, if it has one.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await.context("cannot kill the scratch Redis")
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`], with the same port and files. Returns when it has read them.
    pub async fn start_again(&mut self) -> Result<()> {
        let launched = launch(self.folder.path(), self.port, &self.directives, &self.environment).await?;
        self.process = launched.with_context(|| format!("the scratch Redis does not get port {} back", self.port))?;
        Ok(())
    }

    /// From its next start on.
    pub fn set_environment(&mut self, variables: &[(&str, &str)]) {
        self.environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    }

    /// It keeps its connections and answers nothing.
    pub fn pause(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP).context("cannot pause the scratch Redis")
    }

    pub fn resume(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGCONT).context("cannot let the scratch Redis go on")
    }

    pub(super) async fn until_says(&self, question: &str, lines: &[&str]) -> Result<()> {
        loop {
            let said = match self.say(question).await {
                // A sentinel has a server hang up on everybody when it makes that another's replica.
                Err(error) if error.downcast_ref().map(io::Error::kind) == Some(io::ErrorKind::ConnectionReset) => {
                    String::new()
                }
                said => said?,
            };
            if lines.iter().all(|line| said.lines().any(|said| said == *line)) {
                return Ok(());
            }
            sleep(POLL).await;
        }
    }

    pub(super) async fn order(&self, words: &str) -> Result<()> {
        let said = self.say(words).await?;
        ensure!(said.starts_with("+OK"), "{words}: {said}");
        Ok(())
    }

    /// Its answer to one command, as it stands on the wire.
    pub(super) async fn say(&self, words: &str) -> Result<String> {
        /// A stopped one says nothing.
        const PATIENCE: Duration = Duration::from_secs(5);
        let talk = async {
            let mut stream = TcpStream::connect(self.address()).await?;
            stream.write_all(format!("{words}\r\n").as_bytes()).await?;
            // A sentinel knows no QUIT. Whoever hears that nothing more comes answers first, and then hangs up.
            stream.shutdown().await?;
            let mut said = String::new();
            stream.read_to_string(&mut said).await?;
            anyhow::Ok(said)
        };
        timeout(PATIENCE, talk).await.with_context(|| format!("a scratch Redis does not answer {words}"))?
    }

    /// One that nobody killed has failed.
    pub fn check(&mut self) -> Result<()> {
        match self.process.ended()? {
            Some(status) => {
                bail!("the scratch Redis ended by itself with {status}; its last words: {}", last_words(self.folder()))
            }
            None => Ok(()),
        }
    }
}

fn scratch() -> Result<TempDir> {
    TempDir::with_prefix("herald-redis-").context("cannot make a scratch folder")
}

/// The inner error may pass on another port: the server ended by itself, as it does when its port is taken.
async fn launch(
    folder: &Path,
    port: u16,
    directives: &[(String, String)],
    environment: &[(String, String)],
) -> Result<Result<Owned>> {
    let server = std::env::var_os(SERVER).unwrap_or_else(|| "redis-server".into());
    let mut command = Command::new(&server);
    let sentinel = folder.join(SENTINEL);
    if sentinel.exists() {
        command.arg(sentinel).arg("--sentinel");
    }
    command
        .envs(environment.iter().cloned())
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--daemonize", "no"])
        .args(["--logfile", "redis.log", "--dir"])
        .arg(folder)
        .args(DIRECTIVES.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]))
        .args(directives.iter().flat_map(|(name, value)| [format!("--{name}"), value.clone()]))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut process = match Owned::spawn(&mut command) {
        Ok(process) => process,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!(
                "there is no {} on this machine; install it (Debian, Ubuntu: apt-get install redis-server) or use `make demo`",
                server.display()
            )
        }
        Err(error) => return Err(error).context("cannot start redis-server"),
    };
    let up = async {
        while !answers(port, &process).await {
            if let Some(status) = process.ended()? {
                bail!("redis-server ended with {status}; its last words: {}", last_words(folder));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    match timeout(START, up).await {
        Ok(Ok(())) => Ok(Ok(process)),
        Ok(Err(error)) => Ok(Err(error)),
        Err(_) => bail!("redis-server did not start within {} s", START.as_secs()),
    }
}

/// Whether it has read its file and is ours: another program's server may have taken the port.
async fn answers(port: u16, process: &Owned) -> bool {
    /// `INFO` is 6 KiB.
    const MOST: u64 = 64 * 1024;
    let ask = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"INFO\r\n").await?;
        stream.shutdown().await?;
        let mut info = String::new();
        stream.take(MOST).read_to_string(&mut info).await?;
        io::Result::Ok(info)
    };
    match timeout(Duration::from_secs(1), ask).await {
        Ok(Ok(info)) => {
            let says = |line: &str| info.lines().any(|found| found == line);
            !says("loading:1") && says(&format!("process_id:{}", process.pid()))
        }
        _ => false,
    }
}

fn last_words(folder: &Path) -> String {
    let log = std::fs::read_to_string(folder.join("redis.log")).unwrap_or_default();
    log.lines().last().unwrap_or("none").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_it_accepted_outlives_its_killing() {
        let mut redis = OwnRedis::start().await.unwrap();
        let set = ask(&redis, "SET a b\r\nQUIT\r\n").await;
        assert!(set.starts_with("+OK"), "{set}");
        redis.kill().await.unwrap();
        assert!(TcpStream::connect(redis.address()).await.is_err());
        redis.start_again().await.unwrap();
        let got = ask(&redis, "GET a\r\nQUIT\r\n").await;
        assert!(got.contains("\r\nb\r\n"), "{got}");
    }

    #[tokio::test]
    async fn its_owners_directives_hold() {
        let mut redis = OwnRedis::start_with(&[("appendonly", "no"), ("maxmemory", "100mb")]).await.unwrap();
        for _ in 0..2 {
            let got = ask(&redis, "CONFIG GET appendonly\r\nCONFIG GET maxmemory\r\nQUIT\r\n").await;
            assert!(got.contains("\r\nno\r\n") && got.contains("\r\n104857600\r\n"), "{got}");
            redis.stop().await.unwrap();
            redis.start_again().await.unwrap();
        }
    }

    #[tokio::test]
    async fn one_that_is_dropped_is_gone_with_its_files() {
        let redis = OwnRedis::start().await.unwrap();
        let (folder, address) = (redis.folder().to_owned(), redis.address());
        assert!(folder.join("redis.log").exists());
        drop(redis);
        assert!(!folder.exists());
        assert!(TcpStream::connect(address).await.is_err());
    }

    async fn ask(redis: &OwnRedis, words: &str) -> String {
        let mut stream = TcpStream::connect(redis.address()).await.unwrap();
        stream.write_all(words.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

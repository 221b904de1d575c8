//! A Redis of one's own: with AOF, in a scratch folder, on a free port of this machine. It ends with its owner.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{sleep, timeout},
};

use super::{Owned, Usage, free_port};

/// A server on a slow machine is up within a second, and one that reads a file of a million events within ten; anything
/// slower has failed.
const START: Duration = Duration::from_secs(60);

/// Ports to try: another program may take one between its choice and its use.
const TRIES: usize = 5;

pub struct OwnRedis {
    process: Owned,
    folder: TempDir,
    port: u16,
}

impl OwnRedis {
    pub async fn start() -> Result<Self> {
        let folder = TempDir::with_prefix("herald-redis-").context("cannot make a scratch folder")?;
        let mut failed = anyhow!("no port was tried");
        for _ in 0..TRIES {
            let port = free_port()?;
            match launch(folder.path(), port).await? {
                Ok(process) => return Ok(Self { process, folder, port }),
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

    /// `kill -9`. What it had accepted is in its file.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await.context("cannot kill the scratch Redis")
    }

    /// Starts it again after [`Self::kill`], with the same port and data. Returns when it has read its file.
    pub async fn start_again(&mut self) -> Result<()> {
        let launched = launch(self.folder.path(), self.port).await?;
        self.process = launched.with_context(|| format!("the scratch Redis did not get port {} back", self.port))?;
        Ok(())
    }

    /// A server that nobody killed has failed if it is gone.
    pub fn check(&mut self) -> Result<()> {
        match self.process.ended()? {
            Some(status) => {
                bail!("the scratch Redis ended by itself with {status}; its last words: {}", last_words(self.folder()))
            }
            None => Ok(()),
        }
    }

    pub async fn stop(mut self) {
        // It is a scratch server: nothing of it is kept.
        let _ = self.process.kill().await;
    }
}

/// The inner error may go away with another port: the server ended by itself, as it does when its port is taken.
async fn launch(folder: &Path, port: u16) -> Result<Result<Owned>> {
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
        .args(["--appendfsync", "everysec", "--maxmemory-policy", "noeviction", "--daemonize", "no"])
        .args(["--logfile", "redis.log", "--dir"])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut process = match Owned::spawn(&mut command) {
        Ok(process) => process,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!(
                "there is no redis-server on this machine; install it (Debian, Ubuntu: apt-get install redis-server) or use `make demo`"
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
        stream.write_all(b"INFO\r\nQUIT\r\n").await?;
        let mut info = String::new();
        stream.take(MOST).read_to_string(&mut info).await?;
        io::Result::Ok(info)
    };
    match timeout(Duration::from_secs(1), ask).await {
        Ok(Ok(info)) => {
            let says = |line: &str| info.lines().any(|found| found == line);
            says("loading:0") && says(&format!("process_id:{}", process.pid()))
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

    async fn ask(redis: &OwnRedis, words: &str) -> String {
        let mut stream = TcpStream::connect(redis.address()).await.unwrap();
        stream.write_all(words.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

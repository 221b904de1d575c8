//! A Redis of the demo's own: with AOF, in a scratch folder, on a free port of this machine. It ends with its owner.

use std::{io, net::Ipv4Addr, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::{sleep, timeout},
};

/// A server on a slow machine is up within a second; what takes longer has failed.
const START: Duration = Duration::from_secs(10);

pub struct OwnRedis {
    child: Child,
    folder: TempDir,
    port: u16,
}

impl OwnRedis {
    pub async fn start() -> Result<Self> {
        let folder = TempDir::with_prefix("herald-demo-").context("cannot make a scratch folder")?;
        let port = free_port().await?;
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", "everysec", "--maxmemory-policy", "noeviction"])
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal goes to the whole group; Redis must outlive the worker's last settle.
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!(
                    "there is no redis-server on this machine; install it (Debian, Ubuntu: apt-get install redis-server) or use `make demo`"
                )
            }
            Err(error) => return Err(error).context("cannot start redis-server"),
        };
        let mut server = Self { child, folder, port };
        timeout(START, server.answers()).await.context("redis-server did not start within 10 s")??;
        Ok(server)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub async fn stop(mut self) {
        // It is a scratch server: nothing of it is kept.
        let _ = self.child.kill().await;
    }

    async fn answers(&mut self) -> Result<()> {
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("redis-server ended with {status}");
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// A port that nobody listens on now. Somebody may take it before it is used: then the start fails and says so.
pub async fn free_port() -> Result<u16> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port of this machine is free")?;
    Ok(socket.local_addr()?.port())
}

//! What several integration tests need: a Redis of their own. Waits for conditions, never for time to pass.
#![allow(dead_code, reason = "each test binary uses a part of this")]
// A test waits for another process: it polls, and a safety time-out ends it.
#![allow(clippy::disallowed_methods)]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Far longer than anything here takes: it only keeps a broken test from hanging for ever.
pub const SAFETY: Duration = Duration::from_secs(60);

/// The pause between two looks at a condition that nobody announces.
const POLL: Duration = Duration::from_millis(5);

/// A private Redis server in a folder of its own; it ends when this value is dropped, even if the test panics.
pub struct TestRedis {
    folder: tempfile::TempDir,
    address: SocketAddr,
    options: Vec<String>,
    child: Child,
}

impl TestRedis {
    /// In memory only: a restart comes back empty.
    pub fn start() -> Self {
        Self::start_with(&["--appendonly", "no"])
    }

    /// Keeps its data over a restart and over `kill -9`, up to the last answered command.
    pub fn start_with_aof() -> Self {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    pub fn start_with(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder can be made");
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        // Between finding a free port and listening on it, another process can take it: then the next port is tried.
        for _ in 0..20 {
            let address = free_address();
            if let Some(child) = launch(&folder, address, &options) {
                return Self { folder, address, options, child };
            }
        }
        panic!("redis-server did not start on any of 20 free ports");
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For the code under test.
    pub fn redis(&self) -> herald::store::connection::Redis {
        herald::store::connection::Redis::new(&self.url()).expect("the test's own URL is valid")
    }

    /// For the test's own commands.
    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(SAFETY));
        let client = redis::Client::open(self.url()).expect("the test's own URL is valid");
        client.get_multiplexed_async_connection_with_config(&config).await.expect("the test's Redis answers")
    }

    /// One command of the test's own, written as in `redis-cli`.
    pub async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.connection().await).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub async fn set_maxmemory(&self, bytes: u64) {
        self.command::<()>(&["CONFIG", "SET", "maxmemory", &bytes.to_string()]).await;
    }

    /// Stops it in an orderly way.
    pub fn stop(&mut self) {
        self.end(Signal::SIGTERM);
    }

    pub fn kill9(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill9`], with the same address and data.
    pub fn start_again(&mut self) {
        let deadline = Instant::now() + SAFETY;
        loop {
            if let Some(child) = launch(&self.folder, self.address, &self.options) {
                self.child = child;
                return;
            }
            assert!(Instant::now() < deadline, "redis-server does not get its port {} back", self.address);
            std::thread::sleep(POLL);
        }
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// It keeps its connections but answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id fits"));
        kill(pid, signal).expect("the test's Redis runs");
    }

    fn end(&mut self, signal: Signal) {
        self.signal(signal);
        self.child.wait().expect("the test's Redis can be waited for");
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
    listener.local_addr().expect("a listener has an address")
}

/// None if the server ended by itself, as it does when the port is taken.
fn launch(folder: &tempfile::TempDir, address: SocketAddr, options: &[String]) -> Option<Child> {
    let mut child = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""])
        .args(["--dir", &folder.path().display().to_string(), "--daemonize", "no"])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    let deadline = Instant::now() + SAFETY;
    while child.try_wait().expect("the test's Redis can be asked for").is_none() {
        // Compares the process id instead of only asking for PONG: another test's server may have taken the port.
        if ask(address, "PING").is_some_and(|answer| answer.starts_with("+PONG")) {
            let is_ours = format!("process_id:{}\r\n", child.id());
            if ask(address, "INFO server").is_some_and(|answer| answer.contains(&is_ours)) {
                return Some(child);
            }
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(POLL);
    }
    None
}

fn ask(address: SocketAddr, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Waits for a future that a correct Herald completes soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SAFETY, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

/// Looks again and again until the condition holds; for conditions that nobody announces.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !condition().await {
            tokio::time::sleep(POLL).await;
        }
    })
    .await;
}

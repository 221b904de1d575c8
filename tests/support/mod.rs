//! What several integration tests need: a Redis of their own. Waits for conditions, never for time to pass.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::{net::SocketAddr, time::Duration};

use herald::owned::{Directive, OwnRedis};

/// Far longer than anything here takes: it only keeps a broken test from hanging for ever.
pub const SAFETY: Duration = Duration::from_secs(60);

/// The pause between two looks at a condition that nobody announces.
const POLL: Duration = Duration::from_millis(5);

/// A private Redis server, the one of `herald::owned`, and what tests say to it. It ends with this value, also when the test
/// panics.
pub struct TestRedis {
    server: OwnRedis,
}

impl TestRedis {
    /// In memory only: a restart comes back empty.
    pub async fn start() -> Self {
        Self::start_with(&[("appendonly", "no")]).await
    }

    /// Keeps its data over a restart and over `kill -9`, to the last answered command.
    pub async fn start_with_aof() -> Self {
        Self::start_with(&[("appendfsync", "always")]).await
    }

    pub async fn start_with(directives: &[Directive]) -> Self {
        Self { server: OwnRedis::start_with(directives).await.expect("redis-server starts") }
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where its files are.
    pub fn folder(&self) -> &std::path::Path {
        self.server.folder()
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
    pub async fn stop(&mut self) {
        self.server.stop().await.expect("the test's Redis runs");
    }

    pub async fn kill9(&mut self) {
        self.server.kill().await.expect("the test's Redis runs");
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill9`], with the same address and data.
    pub async fn start_again(&mut self) {
        self.server.start_again().await.expect("redis-server gets its port back");
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    /// It keeps its connections and answers nothing.
    pub fn pause(&mut self) {
        self.server.pause().expect("the test's Redis runs");
    }

    pub fn resume(&mut self) {
        self.server.resume().expect("the test's Redis runs");
    }
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

//! Where attempts run: on threads and timers of their own, so that no receiver, whatever it sends, keeps the partition
//! from renewing its lease, settling or starting the next attempt.

use std::io;

use tokio::{
    runtime::{Builder, Runtime},
    task::{JoinError, JoinSet},
};

use super::core::Token;
use crate::facts::outcome::Attempted;

pub struct Attempts {
    /// None only while it is dropped: a runtime must not be waited for within another.
    runtime: Option<Runtime>,
    running: JoinSet<(Token, Attempted)>,
}

impl Attempts {
    pub fn new() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().thread_name("attempts").enable_all().build()?;
        Ok(Self { runtime: Some(runtime), running: JoinSet::new() })
    }

    pub fn start(&mut self, attempt: impl Future<Output = (Token, Attempted)> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            self.running.spawn_on(attempt, runtime.handle());
        }
    }

    /// The next that ended, or never while none runs. An error is one that was aborted.
    pub async fn next(&mut self) -> Result<(Token, Attempted), JoinError> {
        match self.running.join_next().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// One that has ended already.
    pub fn try_next(&mut self) -> Option<Result<(Token, Attempted), JoinError>> {
        self.running.try_join_next()
    }

    pub fn abort_all(&mut self) {
        self.running.abort_all();
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        self.running.abort_all();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

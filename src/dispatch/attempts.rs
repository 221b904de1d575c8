//! Where attempts run: on threads, timers and connections of their own, so that no receiver, whatever it sends, keeps the
//! partition from renewing its lease, settling or starting the next attempt. Receivers that have not shown that they
//! answer have one thread for themselves: a flood that keeps it busy takes none from the proven ones.

use std::{io, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use tokio::{
    runtime::{Builder, Runtime},
    task::{JoinError, JoinSet},
};

use super::{
    core::{Send, Token},
    lane::Trust,
};
use crate::{
    clock,
    facts::outcome::{AttemptReport, Attempted, BodyEnd, Outcome, Timing},
    sender::Sender,
};

pub struct Attempts {
    proven: Ward,
    unproven: Ward,
    running: JoinSet<(Token, Attempted)>,
}

struct Ward {
    /// None only while it is dropped: a runtime must not be waited for within another.
    runtime: Option<Runtime>,
    sender: Arc<Sender>,
}

impl Attempts {
    /// Each sender has connections of its own, which live where its attempts do.
    pub fn new(proven: Arc<Sender>, unproven: Arc<Sender>) -> io::Result<Self> {
        let several = Builder::new_multi_thread().thread_name("attempts").enable_all().build()?;
        let one = Builder::new_multi_thread().worker_threads(1).thread_name("unproven").enable_all().build()?;
        let ward = |runtime, sender| Ward { runtime: Some(runtime), sender };
        Ok(Self { proven: ward(several, proven), unproven: ward(one, unproven), running: JoinSet::new() })
    }

    pub fn start(&mut self, send: Send) {
        let Send { token, trust, delivery, endpoint } = send;
        let ward = match trust {
            Trust::Proven => &self.proven,
            Trust::Unproven => &self.unproven,
        };
        let Some(runtime) = &ward.runtime else { return };
        let sender = ward.sender.clone();
        let attempt = async move {
            let attempt = sender.attempt(&delivery, &endpoint, clock::wall_ms());
            let attempted = AssertUnwindSafe(attempt).catch_unwind().await;
            // A lane's place must come back whatever happens.
            (token, attempted.unwrap_or_else(|_| panicked(delivery.next_attempt())))
        };
        self.running.spawn_on(attempt, runtime.handle());
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
        for runtime in [self.proven.runtime.take(), self.unproven.runtime.take()].into_iter().flatten() {
            runtime.shutdown_background();
        }
    }
}

fn panicked(number: u32) -> Attempted {
    let report = AttemptReport {
        number,
        at_ms: clock::wall_ms(),
        outcome: Outcome::Unsendable,
        timing: Timing::default(),
        body_end: BodyEnd::Complete,
        snippet: String::new(),
        detail: "the attempt failed inside Herald; its log has the place".to_owned(),
    };
    Attempted { report, request: None }
}

//! How far an attempt has come: resolving, connecting, or connected. The HTTP library opens connections out of our sight;
//! a task-local carries the attempt's notes to the resolver and to the connector that it calls.
//! Never decides what a stage means for the outcome.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

tokio::task_local! {
    static CURRENT: Arc<Stages>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    /// On a connection, or waiting for one that is kept alive.
    Talking = 0,
    Resolving = 1,
    Connecting = 2,
}

/// One attempt's notes. They are only notes, so no memory order is asked for.
#[derive(Debug, Default)]
pub(super) struct Stages {
    stage: AtomicU8,
    /// Microseconds + 1; 0 means that it did not happen.
    dns_us: AtomicU64,
    connect_us: AtomicU64,
}

impl Stages {
    /// Runs an attempt's request so that what it causes is noted here.
    pub(super) async fn watch<F: Future>(self: Arc<Self>, request: F) -> F::Output {
        CURRENT.scope(self, request).await
    }

    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(Relaxed) {
            1 => Stage::Resolving,
            2 => Stage::Connecting,
            _ => Stage::Talking,
        }
    }

    pub(super) fn dns_us(&self) -> Option<u64> {
        self.dns_us.load(Relaxed).checked_sub(1)
    }

    /// TCP and TLS together, without the resolving before them.
    pub(super) fn connect_us(&self) -> Option<u64> {
        let whole = self.connect_us.load(Relaxed).checked_sub(1)?;
        Some(whole.saturating_sub(self.dns_us().unwrap_or(0)))
    }

    fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Relaxed);
    }

    /// Whether the code that runs now still runs for this attempt. The library starts a connection while it also waits
    /// for a kept-alive one; if that comes first, the rest of the connecting goes on in a task of its own.
    fn is_current(self: &Arc<Self>) -> bool {
        CURRENT.try_with(|current| Arc::ptr_eq(current, self)).unwrap_or(false)
    }
}

fn current() -> Option<Arc<Stages>> {
    CURRENT.try_with(Arc::clone).ok()
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Notes that the attempt is resolving until the future ends.
pub(super) async fn while_resolving<F: Future>(resolving: F) -> F::Output {
    let Some(stages) = current() else { return resolving.await };
    let start = crate::clock::now();
    stages.enter(Stage::Resolving);
    let answer = resolving.await;
    stages.dns_us.store(micros(start.elapsed()) + 1, Relaxed);
    stages.enter(Stage::Connecting);
    answer
}

/// Wraps the library's connector; see [`Stages`]. Owns the time that a connection may take, because a limit of the
/// library's own would put another layer around this one.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoteStages {
    pub(super) connect_timeout: Duration,
}

/// The library clones its connector several times for each request and uses hardly any of the clones, so a clone of
/// this one is only a count.
pub(super) struct Noted<S> {
    connector: Arc<S>,
    connect_timeout: Duration,
}

impl<S> Clone for Noted<S> {
    fn clone(&self) -> Self {
        Self { connector: Arc::clone(&self.connector), connect_timeout: self.connect_timeout }
    }
}

impl<S> tower_layer::Layer<S> for NoteStages {
    type Service = Noted<S>;

    fn layer(&self, connector: S) -> Noted<S> {
        Noted { connector: Arc::new(connector), connect_timeout: self.connect_timeout }
    }
}

impl<S, R> tower_service::Service<R> for Noted<S>
where
    S: tower_service::Service<R> + Clone + Send + Sync + 'static,
    S::Response: 'static,
    S::Error: From<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: Send + 'static,
    R: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: R) -> Self::Future {
        let (mut connector, timeout) = (S::clone(&self.connector), self.connect_timeout);
        let connecting = async move {
            poll_fn(|cx| connector.poll_ready(cx)).await?;
            let connecting = tokio::time::timeout(timeout, connector.call(target)).await;
            // What the library takes for a time-out of its own.
            connecting.unwrap_or_else(|_| Err(S::Error::from(Box::new(io::Error::from(io::ErrorKind::TimedOut)))))
        };
        match current() {
            Some(stages) => Box::pin(while_connecting(stages, connecting)),
            None => Box::pin(connecting),
        }
    }
}

async fn while_connecting<F: Future<Output = Result<C, E>>, C, E>(stages: Arc<Stages>, connecting: F) -> Result<C, E> {
    let start = crate::clock::now();
    stages.enter(Stage::Connecting);
    let mut connecting = pin!(connecting);
    let mut handed_over = false;
    let connection = poll_fn(|cx| {
        if !handed_over && !stages.is_current() {
            handed_over = true;
            stages.enter(Stage::Talking);
        }
        connecting.as_mut().poll(cx)
    })
    .await;
    // A failed connection leaves the attempt where it failed.
    if !handed_over && connection.is_ok() {
        stages.connect_us.store(micros(start.elapsed()) + 1, Relaxed);
        stages.enter(Stage::Talking);
    }
    connection
}

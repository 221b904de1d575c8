//! How far an attempt has come: resolving, connecting, or connected. The HTTP library opens connections out of our sight;
//! a task-local carries the attempt's notes to the resolver and to the connector that it calls.
//! Never decides what a stage means for the outcome.

use std::{
    future::{Future, poll_fn},
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

/// Wraps the library's connector; see [`Stages`].
#[derive(Debug, Clone, Copy)]
pub(super) struct NoteStages;

#[derive(Debug, Clone)]
pub(super) struct Noted<S>(S);

impl<S> tower_layer::Layer<S> for NoteStages {
    type Service = Noted<S>;

    fn layer(&self, connector: S) -> Noted<S> {
        Noted(connector)
    }
}

impl<S, R> tower_service::Service<R> for Noted<S>
where
    S: tower_service::Service<R>,
    S::Response: 'static,
    S::Error: 'static,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, target: R) -> Self::Future {
        let connecting = self.0.call(target);
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

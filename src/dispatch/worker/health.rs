//! Publishes the health of the endpoints beside the work, on a connection of its own: a slow or full Redis delays it and nothing
//! else. What is to be published when is decided by [`Book`]; here are the calls and their retries.

use std::{collections::HashMap, time::Duration};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::errands::{Done, change_endpoint};
use crate::{
    config::compact,
    dispatch::{
        core::{CoreErrand, Noted},
        health::{Book, Overdue, Stand, Surroundings},
        partition::{Directory, Happening},
    },
    facts::{
        endpoint::EndpointState,
        event::NoveltyKind,
        id::{AccountId, EndpointId, EntryId},
        own_event::{OPERATORS, OwnEvent},
        unserved::{OddSeen, Oddity},
    },
    registry::Registry,
    store::{
        audit::Audit,
        connection::{Purpose, Redis},
        error::StoreError,
        health::HealthStore,
        keys::PartitionKeys,
        protocol::Term,
    },
    telemetry::log_line::of_the_same,
};

/// How often the worker tells what it has seen, and of how many endpoints at most.
pub const EVERY_MS: u64 = 1_000;
pub const MAX_NOTED: usize = 2_000;

/// Accounts of which odd events are counted between two looks.
const MAX_ODD: usize = 1_000;

/// After a failure.
const PAUSE: Duration = Duration::from_secs(5);

/// How often all endpoints are looked at, by Redis' clock: for those that are no more, for what is to be told without an attempt, and
/// for those that are to be disabled. So many of these at once: who they are is written each time.
const REVIEW_EVERY_MS: u64 = 10_000;
const MAX_DISABLED: usize = 10;

/// Batches in a row.
const MAX_BATCHES: usize = 10;

/// What an owner has seen since the last time.
pub struct News {
    pub term: Term,
    /// Redis' time.
    pub at_ms: u64,
    pub noted: Vec<Noted>,
    pub odd: Vec<(AccountId, OddSeen)>,
    /// The worker is stopping: whatever is not published yet is.
    pub is_last: bool,
}

/// The way to the task that publishes.
pub struct Publisher {
    news: mpsc::Sender<News>,
    task: JoinHandle<()>,
    cancel: CancellationToken,
}

impl Publisher {
    pub fn start(
        redis: Redis,
        keys: PartitionKeys,
        root: PartitionKeys,
        registry: Registry,
        audit: Audit,
        disable_after: Option<Duration>,
    ) -> Self {
        let (news, received) = mpsc::channel(1);
        let cancel = CancellationToken::new();
        let task = Task {
            redis,
            keys,
            root,
            registry,
            audit,
            disable_after,
            disabling: JoinSet::new(),
            store: None,
            book: Book::default(),
            term: None,
            reviewed_ms: 0,
        };
        let task = tokio::spawn(of_the_same(task.run(received, cancel.clone())));
        Self { news, task, cancel }
    }

    /// A place for news, unless what was told before is still being dealt with.
    pub fn place(&self) -> Option<mpsc::Permit<'_, News>> {
        self.news.try_reserve().ok()
    }

    /// What was told is published, if that takes no longer than this.
    pub async fn stop(self, within: Duration) {
        let Self { news, mut task, cancel } = self;
        drop(news);
        if tokio::time::timeout(within, &mut task).await.is_err() {
            cancel.cancel();
            // It ends at once; a panic there was logged by its own task.
            let _ = task.await;
        }
    }
}

struct Task {
    redis: Redis,
    keys: PartitionKeys,
    root: PartitionKeys,
    registry: Registry,
    audit: Audit,
    disable_after: Option<Duration>,
    /// Endpoints that are being disabled.
    disabling: JoinSet<Done>,
    store: Option<HealthStore>,
    book: Book,
    /// The term whose beginning the book has gone on from. None after a failure: nobody knows what was written.
    term: Option<Term>,
    reviewed_ms: u64,
}

impl Task {
    async fn run(mut self, mut received: mpsc::Receiver<News>, cancel: CancellationToken) {
        let mut is_told = false;
        while let Some(news) = received.recv().await {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.deal_with(news, &mut is_told) => {}
            }
        }
    }

    /// What was seen must not be lost, so the book has to be up to date first.
    async fn deal_with(&mut self, news: News, is_told: &mut bool) {
        let News { term, at_ms, noted, odd, is_last } = news;
        while self.term.as_ref() != Some(&term) {
            match self.load().await {
                Ok(()) => self.term = Some(term.clone()),
                Err(error) => self.failed(&error, is_told).await,
            }
        }
        self.book.see(at_ms, noted, odd);
        self.review(at_ms);
        match self.publish(&term, at_ms, is_last).await {
            Ok(()) => *is_told = false,
            Err(error) => self.failed(&error, is_told).await,
        }
    }

    async fn failed(&mut self, error: &StoreError, is_told: &mut bool) {
        if !std::mem::replace(is_told, true) {
            warn!(%error, "the health of endpoints is not published for now; said once until it is");
        }
        (self.store, self.term) = (None, None);
        sleep(PAUSE).await;
    }

    async fn load(&mut self) -> Result<(), StoreError> {
        let store = self.store().await?;
        let (health, unserved, growth) =
            (store.load().await?, store.load_unserved().await?, store.load_growth().await?);
        self.book.load(health, unserved, growth);
        debug!("went on from the published health of {} endpoints", self.book.len());
        Ok(())
    }

    async fn publish(&mut self, term: &Term, at_ms: u64, all: bool) -> Result<(), StoreError> {
        for _ in 0..MAX_BATCHES {
            let Some(batch) = self.book.due(at_ms, all, &self.registry) else { break };
            match self.store().await?.publish(term, &batch).await {
                Ok(true) => {}
                // Somebody else goes on; what we have seen since is of use only if we get it back.
                Ok(false) => {
                    self.book.was_not_published(batch);
                    self.term = None;
                    break;
                }
                Err(error) => {
                    self.book.was_not_published(batch);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// An endpoint that is merely not known at the moment stays, and what is not certain disables nobody.
    fn review(&mut self, at_ms: u64) {
        if at_ms.abs_diff(self.reviewed_ms) < REVIEW_EVERY_MS || !self.registry.view().is_certain {
            return;
        }
        self.reviewed_ms = at_ms;
        let registry = &self.registry;
        self.book.keep(|endpoint| registry.get(endpoint).is_some() || registry.is_unreadable(endpoint));
        let after_ms = self.disable_after.map(|after| after.as_millis() as u64);
        let overdue = self.book.review(at_ms, after_ms, registry);
        while self.disabling.try_join_next().is_some() {}
        if self.disabling.is_empty() {
            overdue.into_iter().take(MAX_DISABLED).for_each(|overdue| self.disable(overdue));
        }
    }

    fn disable(&mut self, overdue: Overdue) {
        let Overdue { endpoint, revision, failing_for_ms, cause } = overdue;
        let after = compact(self.disable_after.unwrap_or_default());
        let failed_for = compact(Duration::from_secs(failing_for_ms / 1_000));
        let why = format!("nothing has succeeded for {failed_for} ({cause}); limits.disable_after is {after}");
        let errand = CoreErrand::Disable { endpoint, revision, why };
        let (redis, root, audit) = (self.redis.clone(), self.root.clone(), self.audit.clone());
        self.disabling.spawn(of_the_same(change_endpoint(redis, root, audit, errand)));
    }

    async fn store(&mut self) -> Result<&mut HealthStore, StoreError> {
        if self.store.is_none() {
            let connection = self.redis.connect(Purpose::Other).await?;
            self.store = Some(HealthStore::new(connection, self.keys.clone()));
        }
        Ok(self.store.as_mut().expect("it was just made"))
    }
}

impl Surroundings for Registry {
    fn stand(&self, endpoint: &EndpointId) -> Stand {
        let Some(endpoint) = self.get(endpoint) else { return Stand::Other };
        match &endpoint.status {
            EndpointState::Enabled => {
                Stand::Serving { revision: endpoint.revision, updated_at_ms: endpoint.updated_at_ms }
            }
            EndpointState::Disabled(mark) => Stand::Disabled(mark.clone()),
            EndpointState::Paused(_) => Stand::Other,
        }
    }

    fn is_wanted(&self, event: OwnEvent) -> bool {
        let (Ok(operators), Ok(wanted)) = (AccountId::new(OPERATORS), event.name().parse()) else { return false };
        let endpoints = self.endpoints_for(&operators);
        endpoints.iter().any(|endpoint| matches!(endpoint.status, EndpointState::Enabled) && endpoint.wants(&wanted))
    }
}

/// Events that nobody is told of or that are of an unknown type, by account, until they are told.
#[derive(Debug, Default)]
pub struct Odd(HashMap<(AccountId, Oddity), OddSeen>);

impl Odd {
    pub fn happened(&mut self, happening: &Happening) {
        match happening {
            Happening::NoEndpoint { entry, account, .. } => self.add(account, Oddity::NoEndpoint, *entry, ""),
            Happening::Novelty { entry, account, novelty, .. } => match novelty.kind {
                NoveltyKind::EventType => self.add(account, Oddity::UnknownType, *entry, &novelty.text),
                NoveltyKind::Partition => self.add(account, Oddity::Misplaced, *entry, ""),
                NoveltyKind::PaymentStatus | NoveltyKind::CaptureMode => {}
            },
            _ => {}
        }
    }

    fn add(&mut self, account: &AccountId, oddity: Oddity, entry: EntryId, event_type: &str) {
        if let Some(seen) = self.0.get_mut(&(account.clone(), oddity)) {
            seen.count += 1;
            seen.entry = entry;
        } else if self.0.len() < MAX_ODD {
            let seen = OddSeen { oddity, count: 1, entry, event_type: event_type.to_owned() };
            self.0.insert((account.clone(), oddity), seen);
        }
    }

    pub fn take(&mut self) -> Vec<(AccountId, OddSeen)> {
        self.0.drain().map(|((account, _), seen)| (account, seen)).collect()
    }
}

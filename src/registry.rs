//! The endpoints in memory: a snapshot of the registry that follows Redis within a second. Never takes a registry that has
//! vanished for an empty one: the last snapshot stays, and [`RegistryState`] says so. Never changes the registry; only
//! [`sweep`] does, to take out what has expired.
//!
//! [`Registry`] is the handle that everyone reads from; [`Registry::run`] is the one task that keeps it up to date.
//! Single changes are applied in place. Only a gap in the feed, an import or another registry loads everything again.

mod follower;
pub mod rules;
mod shown;
mod snapshot;
pub mod sweep;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use self::snapshot::Snapshot;
use crate::{
    facts::{
        endpoint::{Endpoint, Mark},
        id::{AccountId, EndpointId, RegistryId},
        sealing::KeyId,
        stamped::Stamped,
    },
    store::{
        connection::Redis,
        registry::{feed::Position, stored::LockCause},
    },
};

/// How many changes a listener may be behind before it is told [`Change::Reset`] instead.
const CHANGES_BUFFERED: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryState {
    /// Not read yet since the start.
    Loading,
    /// Redis has no registry, and this process never saw one: a new installation, or the wrong database.
    NeverMade,
    /// Read, and without any endpoint.
    Empty,
    Loaded,
    /// There was a registry; now it is gone or damaged. The snapshot holds what was last known.
    Vanished,
}

/// What a listener should look at again. The snapshot has the change before the listener hears of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Endpoint(Arc<Endpoint>),
    /// Removed, or not readable.
    Removed(EndpointId),
    Pause(Option<Mark>),
    /// Anything may be different: after a load, another state, or changes that this listener was too slow for.
    Reset,
}

/// All that the owner of an event needs to know, as of one moment.
#[derive(Debug, Clone)]
pub struct Lookup {
    pub state: RegistryState,
    pub id: Option<RegistryId>,
    pub last: Stamped,
    pub endpoints: Arc<[Arc<Endpoint>]>,
    /// The account has, or may have, an endpoint that this Herald cannot read: its events must wait.
    pub is_uncertain: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefreshError {
    #[error("the registry of endpoints has vanished from Redis, or was never made: import a backup")]
    Vanished,
    #[error("the registry is followed no more: Herald is stopping")]
    Stopped,
}

/// The endpoints as this process knows them. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    snapshot: RwLock<Snapshot>,
    changes: broadcast::Sender<Change>,
    /// Counts the requests for a fresh look. `looked` tells which of them a finished look has answered.
    asked: AtomicU64,
    ask: Notify,
    looked: watch::Sender<Looked>,
    /// Up to which change of the keys everything was read.
    keys: AtomicU64,
    /// How often Redis has lost changes that were known here.
    taken_back: AtomicU64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Looked {
    answered: u64,
    is_loaded: bool,
    is_stopped: bool,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// Without any endpoint, in state [`RegistryState::Loading`] until [`Registry::run`] has read the first ones.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                snapshot: RwLock::default(),
                changes: broadcast::Sender::new(CHANGES_BUFFERED),
                asked: AtomicU64::new(0),
                ask: Notify::new(),
                looked: watch::Sender::default(),
                keys: AtomicU64::new(0),
                taken_back: AtomicU64::new(0),
            }),
        }
    }

    /// Follows the registry until cancelled. Every failure of Redis is retried, without end.
    pub async fn run(self, redis: Redis, cancel: CancellationToken) {
        follower::run(&self.shared, redis, cancel).await;
    }

    /// Everything about one account as of one moment.
    pub fn lookup(&self, account: &AccountId) -> Lookup {
        let snapshot = self.snapshot();
        Lookup {
            state: snapshot.state(),
            id: snapshot.id().cloned(),
            last: snapshot.last(),
            endpoints: snapshot.endpoints_for(account),
            is_uncertain: snapshot.is_uncertain(account),
        }
    }

    pub fn endpoints_for(&self, account: &AccountId) -> Arc<[Arc<Endpoint>]> {
        self.snapshot().endpoints_for(account)
    }

    pub fn get(&self, id: &EndpointId) -> Option<Arc<Endpoint>> {
        self.snapshot().get(id)
    }

    /// All endpoints, in no particular order. Copies a list of pointers: for a start or a reset, not for every event.
    pub fn all(&self) -> Vec<Arc<Endpoint>> {
        self.snapshot().all()
    }

    pub fn id(&self) -> Option<RegistryId> {
        self.snapshot().id().cloned()
    }

    pub fn version(&self) -> u64 {
        self.last().version
    }

    /// The last change that it has.
    pub fn last(&self) -> Stamped {
        self.snapshot().last()
    }

    /// The mark of the operator who stopped all sending.
    pub fn paused_all(&self) -> Option<Mark> {
        self.snapshot().pause().cloned()
    }

    pub fn state(&self) -> RegistryState {
        self.snapshot().state()
    }

    /// Whether the account has, or may have, an endpoint that this Herald cannot read.
    pub fn is_account_uncertain(&self, account: &AccountId) -> bool {
        self.snapshot().is_uncertain(account)
    }

    /// Endpoints that are kept out of the snapshot because this Herald cannot read them.
    pub fn unreadable(&self) -> usize {
        self.snapshot().unreadable()
    }

    /// The account's endpoints that exist but that this Herald cannot read.
    pub fn unreadable_of(&self, account: &AccountId) -> Vec<EndpointId> {
        self.snapshot().unreadable_of(account)
    }

    pub fn is_unreadable(&self, id: &EndpointId) -> bool {
        self.snapshot().knows_unreadable(id.as_str())
    }

    /// Whether there is an endpoint of which not even the account is known.
    pub fn has_strays(&self) -> bool {
        self.snapshot().has_strays()
    }

    /// The keys that would open what is locked because this process does not have them.
    pub fn missing_keys(&self) -> BTreeSet<KeyId> {
        self.snapshot().missing_keys()
    }

    /// Those that are locked, in no particular order: what can be shown of each, and why it is.
    pub fn locked(&self) -> Vec<(Arc<Endpoint>, LockCause)> {
        self.snapshot().locked()
    }

    fn counts(&self) -> shown::Counts {
        self.snapshot().counts()
    }

    pub fn len(&self) -> usize {
        self.snapshot().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What changes from now on.
    pub fn changes(&self) -> Changes {
        Changes { receiver: self.shared.changes.subscribe() }
    }

    /// Waits until the registry has been read for the first time, if only to find that there is none.
    pub async fn first_load(&self) -> Result<(), RefreshError> {
        self.looked(|looked| looked.is_loaded).await
    }

    /// Waits until the snapshot is as new as this position, which was read in Redis: at once if it is at that position, else for a look
    /// that begins after this call. A larger version says nothing, because Redis may have lost that change since.
    pub async fn refresh_to(&self, position: &Position) -> Result<(), RefreshError> {
        let is_there = {
            let snapshot = self.snapshot();
            snapshot.is_present() && snapshot.position() == Some(position)
        };
        if is_there { Ok(()) } else { self.refresh().await }
    }

    /// Waits for a look at Redis that begins after this call. Goes on while Redis is unavailable; bound it or cancel it from outside.
    pub async fn refresh(&self) -> Result<(), RefreshError> {
        let number = self.shared.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.shared.ask.notify_one();
        self.looked(|looked| looked.answered >= number).await?;
        if self.snapshot().is_present() { Ok(()) } else { Err(RefreshError::Vanished) }
    }

    async fn looked(&self, is_enough: impl Fn(&Looked) -> bool) -> Result<(), RefreshError> {
        let mut looked = self.shared.looked.subscribe();
        let now = looked.wait_for(|looked| looked.is_stopped || is_enough(looked)).await;
        match now.is_ok_and(|looked| is_enough(&looked)) {
            true => Ok(()),
            false => Err(RefreshError::Stopped),
        }
    }

    fn snapshot(&self) -> RwLockReadGuard<'_, Snapshot> {
        self.shared.read()
    }
}

impl Shared {
    /// No code that holds the lock can panic half-way through a change, so a poisoned lock is as good as new.
    fn read(&self) -> RwLockReadGuard<'_, Snapshot> {
        self.snapshot.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A listener's queue of changes.
pub struct Changes {
    receiver: broadcast::Receiver<Change>,
}

impl Changes {
    /// The next change; None once every [`Registry`] is gone. Safe to drop while it waits.
    pub async fn next(&mut self) -> Option<Change> {
        match self.receiver.recv().await {
            Ok(change) => Some(change),
            Err(broadcast::error::RecvError::Lagged(_)) => {
                // What is still queued is older than the look that the listener takes now.
                self.receiver = self.receiver.resubscribe();
                Some(Change::Reset)
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Pauses between attempts to reach Redis: doubled from the first to the last, each spread over its upper half so that many
/// workers do not come back in step.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

fn retry_pause(failures: u32, chance: f64) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LAST_PAUSE);
    full.mul_f64(0.5 + 0.5 * chance)
}

//! What the service asks of the store, each call by itself: Redis where it ships, a model of the scripts in the simulator.

use futures_util::FutureExt;

use super::capacity::Capacity;
use crate::facts::id::{AccountId, IntentId};
use crate::store::{
    batches::Batches,
    connection::{Purpose, Redis, SharedConnection},
    error::StoreError,
    intents::{
        Change, ClockChange, ClockState, Commit, Committed, DueIntents, Found, IntentStore, Loaded, Look, Order,
        TOGETHER,
    },
    keys::PartitionKeys,
};
use crate::telemetry::traces::{self, Publishing};

type Answer<T> = Result<T, StoreError>;

/// Each as [`IntentStore`] says. A call that fails with [`StoreError::Unavailable`] may have been carried out, or may be later.
pub trait Records: Clone + Send + Sync + 'static {
    /// Whether there is room for another intent.
    fn has_room(&self) -> impl Future<Output = Answer<bool>> + Send;
    fn load(&self, id: &IntentId, key: Option<&str>) -> impl Future<Output = Answer<Loaded>> + Send;
    fn commit(&self, commit: &Commit<'_>) -> impl Future<Output = Answer<Committed>> + Send;
    fn due(&self, place: f64) -> impl Future<Output = Answer<DueIntents>> + Send;
    fn forget(
        &self,
        id: &IntentId,
        account: &AccountId,
        status: &str,
        revision: u64,
        numbers: &[u64],
    ) -> impl Future<Output = Answer<bool>> + Send;
    fn put_off(&self, id: &IntentId, to: i64) -> impl Future<Output = Answer<()>> + Send;
    fn search(
        &self,
        account: &AccountId,
        statuses: &[&str],
        range: (i64, i64),
        order: Order,
        most: usize,
    ) -> impl Future<Output = Answer<(Vec<Found>, bool)>> + Send;
    fn clock(&self, change: ClockChange) -> impl Future<Output = Answer<ClockState>> + Send;
}

/// Through one connection, which is made anew after it failed. What many look at or change at the same time goes together.
#[derive(Clone)]
pub struct RedisRecords {
    reach: Reach,
    capacity: Capacity,
    looks: Batches<Look, Loaded>,
    changes: Batches<Change, Committed>,
}

/// What a call needs.
#[derive(Clone)]
struct Reach {
    connection: SharedConnection,
    keys: PartitionKeys,
}

impl Reach {
    async fn with<T>(&self, what: impl AsyncFnOnce(&mut IntentStore) -> Answer<T>) -> Answer<T> {
        let keys = self.keys.clone();
        self.connection.with(async |connection| what(&mut IntentStore::on(connection, keys)).await).await
    }
}

impl RedisRecords {
    pub fn new(redis: Redis, keys: PartitionKeys) -> Self {
        let reach = Reach { connection: SharedConnection::new(redis, Purpose::Work), keys };
        let of = reach.clone();
        let looks = Batches::new(TOGETHER, move |looks: Vec<Look>| {
            let reach = of.clone();
            async move { reach.with(async |store| store.load(&looks).await).await }.boxed()
        });
        let of = reach.clone();
        let changes = Batches::new(TOGETHER, move |changes: Vec<Change>| {
            let reach = of.clone();
            async move { reach.with(async |store| store.commit(&changes).await).await }.boxed()
        });
        Self { reach, capacity: Capacity::default(), looks, changes }
    }

    pub(super) fn connection(&self) -> &SharedConnection {
        &self.reach.connection
    }

    pub(super) fn keys(&self) -> &PartitionKeys {
        &self.reach.keys
    }

    pub(super) async fn with<T>(&self, what: impl AsyncFnOnce(&mut IntentStore) -> Answer<T>) -> Answer<T> {
        self.reach.with(what).await
    }
}

impl Records for RedisRecords {
    async fn has_room(&self) -> Answer<bool> {
        self.capacity.has_room(self.connection()).await
    }

    async fn load(&self, id: &IntentId, key: Option<&str>) -> Answer<Loaded> {
        self.looks.ask(Look { id: id.clone(), key: key.map(str::to_owned) }, 0).await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Answer<Committed> {
        let given = commit.event_id.and_then(|_| traces::of_request());
        let publishing = commit.event_id.and_then(|event| Publishing::begin(event, given.as_ref()));
        let own = publishing.as_ref().and_then(Publishing::traceparent);
        let change = Change::new(self.keys(), commit).traced(own.as_ref().or(given.as_ref()));
        let bytes = change.bytes();
        let committed = self.changes.ask(change, bytes).await?;
        // What was not committed has told nobody.
        if let (Some(publishing), Committed::Done { entry: Some(entry), .. }) = (publishing, &committed)
            && let Ok(entry) = entry.parse()
        {
            publishing.ended(self.keys().stream(), entry);
        }
        Ok(committed)
    }

    async fn due(&self, place: f64) -> Answer<DueIntents> {
        self.with(async |store| store.due(place).await).await
    }

    async fn forget(
        &self,
        id: &IntentId,
        account: &AccountId,
        status: &str,
        revision: u64,
        numbers: &[u64],
    ) -> Answer<bool> {
        self.with(async |store| store.forget(id, account, status, revision, numbers).await).await
    }

    async fn put_off(&self, id: &IntentId, to: i64) -> Answer<()> {
        self.with(async |store| store.put_off(id, to).await).await
    }

    async fn search(
        &self,
        account: &AccountId,
        statuses: &[&str],
        range: (i64, i64),
        order: Order,
        most: usize,
    ) -> Answer<(Vec<Found>, bool)> {
        self.with(async |store| store.search(account, statuses, range, order, most).await).await
    }

    async fn clock(&self, change: ClockChange) -> Answer<ClockState> {
        self.with(async |store| store.clock(change).await).await
    }
}

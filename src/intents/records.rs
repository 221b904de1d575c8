//! What the service asks of the store, each call by itself: Redis where it ships, a model of the scripts in the simulator.

use super::capacity::Capacity;
use crate::facts::id::{AccountId, IntentId};
use crate::store::{
    connection::{Purpose, Redis, SharedConnection},
    error::StoreError,
    intents::{ClockChange, ClockState, Commit, Committed, DueIntents, Found, IntentStore, Loaded, Order},
    keys::PartitionKeys,
};

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

/// Through one connection, which is made anew after it failed.
#[derive(Clone)]
pub struct RedisRecords {
    pub(super) connection: SharedConnection,
    pub(super) keys: PartitionKeys,
    capacity: Capacity,
}

impl RedisRecords {
    pub fn new(redis: Redis, keys: PartitionKeys) -> Self {
        Self { connection: SharedConnection::new(redis, Purpose::Work), keys, capacity: Capacity::default() }
    }

    pub(super) async fn with<T>(&self, what: impl AsyncFnOnce(&mut IntentStore) -> Answer<T>) -> Answer<T> {
        let keys = self.keys.clone();
        self.connection.with(async |connection| what(&mut IntentStore::on(connection, keys)).await).await
    }
}

impl Records for RedisRecords {
    async fn has_room(&self) -> Answer<bool> {
        self.capacity.has_room(&self.connection).await
    }

    async fn load(&self, id: &IntentId, key: Option<&str>) -> Answer<Loaded> {
        self.with(async |store| store.load(id, key).await).await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Answer<Committed> {
        self.with(async |store| store.commit(commit).await).await
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

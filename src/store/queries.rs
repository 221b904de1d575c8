//! Looks at a partition for people: dead letters, unfinished deliveries, chains, the attempt log, the quarantine, the
//! group. Read-only and without a term, so every answer may be out of date when it is read. Never walks the keyspace,
//! never changes anything, and never asks Redis for more than a page at a time.
//!
//! What has no index (an event's id among unfinished deliveries and in the log) is found by looking at a bounded number of records or
//! lines; the answer then says how far it looked.

mod all;
mod dead;
mod dead_index;
mod deliveries;
mod events;
mod health;
mod intents;
mod log;
mod outcomes;
mod standing;

use bytes::Bytes;

pub use self::{
    all::{Backlog, FoundQuarantined, PartitionLook, Partitions, QuarantinePlace, QuarantineSide, Seen},
    dead::{DeadCursor, DeadOrder, DeadPage, DeadRange, Letter},
    dead_index::{DeadFilter, DeadGroup, DeadKey, DeadTotals, FoundDead, FoundPage},
    deliveries::{ChainHead, Totals, Unfinished, Walk, WhereUnfinished, Whereabouts},
    events::{EventsPage, EventsRead, RawEvent},
    health::{IssuesLook, MAX_FAILING, Survey},
    intents::{IntentsLook, SetClock},
    log::{HistoryRead, LogEntry, LogFilter, LogPage},
    outcomes::Outcome,
    standing::{
        ConsumerLook, EntryStanding, GroupLook, LeaseLook, Oldest, Pending, Quarantined, RedisSettings, StreamLook,
    },
};
use super::{connection::Connection, error::StoreError, keys::PartitionKeys};

/// The most that one call returns.
pub const MAX_PAGE: usize = 500;

/// Records fetched in one command. A record has at most 64 KiB of body and about 40 KiB of history, so an answer stays
/// below 6 MiB, and below 100 KiB with usual events.
const CHUNK: usize = 50;

/// How many ids or fields one command of a walk looks at.
const STRIDE: usize = 500;

/// One partition, as seen from outside. Clones share the connection.
#[derive(Clone)]
pub struct Queries {
    connection: Connection,
    keys: PartitionKeys,
}

impl Queries {
    /// For who does more there than ask.
    pub(in crate::store) fn way(&self) -> (Connection, PartitionKeys) {
        (self.connection.clone(), self.keys.clone())
    }

    pub fn new(connection: Connection, keys: PartitionKeys) -> Self {
        Self { connection, keys }
    }

    pub fn keys(&self) -> &PartitionKeys {
        &self.keys
    }

    /// Redis' clock, ms since 1970: ages are counted by it.
    pub async fn now_ms(&mut self) -> Result<u64, StoreError> {
        let (seconds, micros): (u64, u64) = self.connection.query("ask for Redis' time", &redis::cmd("TIME")).await?;
        Ok(seconds * 1000 + micros / 1000)
    }

    /// The values of these keys; `None` for those that do not exist.
    async fn values(&mut self, subject: &str, keys: &[String]) -> Result<Vec<Option<Bytes>>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("MGET");
        command.arg(keys);
        let values: Vec<Option<Vec<u8>>> = self.connection.query(subject, &command).await?;
        Ok(values.into_iter().map(|value| value.map(Bytes::from)).collect())
    }
}

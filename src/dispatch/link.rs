//! One connection to a partition's state, made anew after it failed. A call that failed is never repeated here: the caller
//! decides what its missing answer means.

use std::time::Duration;

use tracing::warn;

use crate::clock;
use crate::facts::id::EntryId;
use crate::store::{
    connection::{Purpose, Redis},
    error::StoreError,
    keys::PartitionKeys,
    partition::PartitionStore,
    protocol::{Answer, Call, Failure},
    wakeup::{New, Wakeup},
};
use crate::telemetry::calls::{self as telemetry, CallKind};

pub struct Link {
    redis: Redis,
    keys: PartitionKeys,
    purpose: Purpose,
    attempt_log_len: u64,
    store: Option<PartitionStore>,
}

impl Link {
    pub fn new(redis: Redis, keys: PartitionKeys, purpose: Purpose, attempt_log_len: u64) -> Self {
        // To the node that serves the partition: what this term knows is true of that one.
        Self { redis: redis.at_home_in(keys.slot()), keys, purpose, attempt_log_len, store: None }
    }

    /// From now on the log of attempts keeps about this many lines.
    pub fn keep_log(&mut self, lines: u64) {
        self.attempt_log_len = lines;
        if let Some(store) = &mut self.store {
            store.keep_log(lines);
        }
    }

    /// Takes itself and gives itself back, so that the call can be awaited beside other things.
    pub async fn call(mut self, call: Call) -> (Self, Call, Result<Answer, Failure>) {
        let began = clock::now();
        // Others share the connection. What this partition knows by it has ended with it.
        if self.store.take_if(|store| store.is_over()).is_some() {
            let why = "the connection to Redis has failed for another call".to_owned();
            return (self, call, Err(Failure::Unknown(why)));
        }
        let answer = match self.store().await {
            Ok(store) => store.call(&call).await,
            Err(error) => Err(Failure::Unknown(error.to_string())),
        };
        telemetry::ended(kind_of(&call), clock::now().saturating_duration_since(began));
        if matches!(answer, Err(Failure::Unknown(_))) {
            self.store = None;
        }
        (self, call, answer)
    }

    async fn store(&mut self) -> Result<&PartitionStore, StoreError> {
        if self.store.is_none() {
            let connection = self.redis.connect(self.purpose).await?;
            // Renewals have a link of their own, so both of this store's ways are the one connection.
            let store = PartitionStore::new(connection.clone(), connection, self.keys.clone(), self.attempt_log_len);
            self.store = Some(store);
        }
        Ok(self.store.as_ref().expect("it was just made"))
    }
}

/// What the metrics call it.
fn kind_of(call: &Call) -> CallKind {
    match call {
        Call::Read { .. } => CallKind::Read,
        Call::Settle { .. } => CallKind::Settle,
        Call::Ask { .. } => CallKind::Ask,
        Call::Claim { .. } | Call::TakeHeads { .. } => CallKind::Claim,
        Call::Backlog { .. } => CallKind::Backlog,
        Call::Acquire { .. } | Call::Renew { .. } | Call::Release { .. } => CallKind::Renew,
        Call::Trim { .. } => CallKind::Trim,
        Call::Inbox { .. } => CallKind::Inbox,
        Call::Recover { .. }
        | Call::Open { .. }
        | Call::Counts { .. }
        | Call::PullIn { .. }
        | Call::ClaimForeign { .. }
        | Call::ExpireDead { .. }
        | Call::Unindexed { .. }
        | Call::SweepDead { .. }
        | Call::NoteUnreadable { .. } => CallKind::Other,
    }
}

/// How long one wait for something new lasts. After it the owner looks for itself.
const WAIT: Duration = Duration::from_secs(5);

/// How long after a failed wait the next one begins: until then the owner looks for itself.
const PAUSE: Duration = Duration::from_millis(200);

/// The connection that only waits.
pub struct Waiter {
    redis: Redis,
    keys: PartitionKeys,
    wakeup: Option<Wakeup>,
    is_warned: bool,
}

impl Waiter {
    pub fn new(redis: Redis, keys: PartitionKeys) -> Self {
        Self { redis, keys, wakeup: None, is_warned: false }
    }

    /// Returns when there is something new, when it has waited long enough, or a little after it failed.
    /// None when the wait failed: then nothing is known.
    pub async fn wait(mut self, last_read: EntryId, inbox_after: EntryId) -> (Self, Option<New>) {
        let waited = match self.wakeup().await {
            Ok(wakeup) => wakeup.wait(last_read, inbox_after, WAIT).await,
            Err(error) => Err(error),
        };
        if waited.is_err() {
            self.wakeup = None;
            tokio::time::sleep(PAUSE).await;
        }
        (self, waited.ok())
    }

    async fn wakeup(&mut self) -> Result<&mut Wakeup, StoreError> {
        if self.wakeup.is_none() {
            let wakeup = Wakeup::connect(&self.redis, self.keys.clone()).await?;
            if !wakeup.is_told() && !std::mem::replace(&mut self.is_warned, true) {
                warn!(
                    "Redis does not say when the stream changes, so it is asked all the time: grant +client|tracking"
                );
            }
            self.wakeup = Some(wakeup);
        }
        Ok(self.wakeup.as_mut().expect("it was just made"))
    }
}

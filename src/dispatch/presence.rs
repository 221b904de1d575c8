//! Tells the other processes that this one lives, and what it can read: by that they know what they may write. In turn a worker learns
//! whether another worker has keys that this one lacks, or the right time where this one has not, so that it can give way.

use std::{collections::BTreeSet, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    clock,
    facts::sealing::{KeyId, MAX_KEYS},
    registry::Registry,
    store::{
        connection::{Connection, Purpose, Redis, SharedConnection},
        error::StoreError,
        keys::PartitionKeys,
        queries::Queries,
        workers::{Told, tell},
    },
    view::schemas::SCHEMAS,
};

/// Six times as often as it must be.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How often it looks whether its keys have changed, which it tells at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A clock that has moved by this much is told of at once.
const CLOCK_TOLD_MS: u64 = 2_000;

/// For the last words: whoever seals next need not wait for a worker that has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How many looks in a row find a lease that nobody has, until it is not left to those who do not take it.
const FREE_LOOKS: u32 = 3;

pub struct Presence {
    connection: SharedConnection,
    registry: Registry,
    redis: Redis,
    /// What it may own the lease on; none for a process that only serves.
    leases: Option<PartitionKeys>,
    /// Tells it from every other process, also of its own name.
    token: String,
    name: String,
    gives_way: watch::Sender<bool>,
}

impl Presence {
    /// The second tells whether the worker should leave the lease to one that has the keys, or the right time, which it lacks.
    pub fn new(redis: Redis, registry: Registry, keys: PartitionKeys, name: String) -> (Self, watch::Receiver<bool>) {
        let presence = Self { leases: Some(keys), ..Self::without_lease(redis, registry, name) };
        let told = presence.gives_way.subscribe();
        (presence, told)
    }

    /// Of a process that seals and opens, and never asks for a lease.
    pub fn without_lease(redis: Redis, registry: Registry, name: String) -> Self {
        let token = hex::encode(rand::random::<[u8; 8]>());
        let connection = SharedConnection::new(redis.clone(), Purpose::Other);
        Self { connection, registry, redis, leases: None, token, name, gives_way: watch::Sender::new(false) }
    }

    /// Until cancelled. What fails is tried again at the next turn.
    pub async fn run(self, cancel: CancellationToken) {
        let (mut failed, mut clock_ahead_ms) = (false, 0);
        // Those that have told nothing since then were given a chance, and did not take the lease: they may be dead.
        let mut passed_over_ms = 0;
        while !cancel.is_cancelled() {
            let (keys, missing) = self.seen();
            let told = self.told(&missing, clock_ahead_ms);
            let before_ms = clock::wall_ms();
            let others = self.tell(Some(&told)).await;
            if let Err(error) = &others
                && !failed
            {
                warn!(%error, "cannot tell the others that this process lives; trying again");
            }
            failed = others.is_err();
            let (mut left, mut newest_ms) = (TELL_EVERY, 0);
            if let Ok((redis_ms, others)) = others {
                clock_ahead_ms = clock::ahead_ms(before_ms, redis_ms, clock::wall_ms());
                let own = Told { clock_ahead_ms, ..told.clone() };
                newest_ms = others.iter().map(|(at_ms, _)| *at_ms).max().unwrap_or_default();
                let others = others.into_iter().filter(|(at_ms, _)| *at_ms > passed_over_ms).map(|(_, other)| other);
                self.give_way(gives_way(&own, &others.collect::<Vec<_>>()));
            }
            // Who reads it should not have to wait for the next turn.
            if clock_ahead_ms.abs_diff(told.clock_ahead_ms) >= CLOCK_TOLD_MS {
                left = LOOK_EVERY;
            }
            let mut free_looks = 0;
            while !left.is_zero() && self.seen() == (keys, missing.clone()) && !cancel.is_cancelled() {
                tokio::select! {
                    () = sleep(LOOK_EVERY) => left -= LOOK_EVERY,
                    () = cancel.cancelled() => {}
                }
                if *self.gives_way.borrow() {
                    free_looks = if self.is_lease_free().await { free_looks + 1 } else { 0 };
                    if free_looks >= FREE_LOOKS {
                        passed_over_ms = newest_ms;
                        self.give_way(false);
                    }
                }
            }
        }
        // Without it the others forget this worker a minute later.
        let _ = tokio::time::timeout(LAST_WORDS, self.tell(None)).await;
    }

    fn give_way(&self, gives_way: bool) {
        self.gives_way.send_if_modified(|known| std::mem::replace(known, gives_way) != gives_way);
    }

    async fn is_lease_free(&self) -> bool {
        let Some(keys) = &self.leases else { return false };
        let look = async |connection: Connection| Queries::new(connection, keys.clone()).lease().await;
        self.connection.with(look).await.is_ok_and(|lease| lease.is_none())
    }

    /// What is worth telling at once when it changes.
    fn seen(&self) -> (u64, BTreeSet<KeyId>) {
        (self.redis.keyring().changes(), self.registry.missing_keys())
    }

    fn told(&self, missing: &BTreeSet<KeyId>, clock_ahead_ms: i64) -> Told {
        Told {
            name: self.name.clone(),
            stream: self.leases.as_ref().map_or_else(String::new, |keys| keys.stream().to_owned()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schemas: SCHEMAS.iter().map(|schema| (schema.name.to_owned(), schema.newest)).collect(),
            keys: self.redis.keyring().ring().ids().map(|key| key.to_string()).collect(),
            seal_only: self.redis.keyring().is_only(),
            missing: missing.iter().take(MAX_KEYS).map(KeyId::to_string).collect(),
            clock_ahead_ms,
        }
    }

    async fn tell(&self, told: Option<&Told>) -> Result<(u64, Vec<(u64, Told)>), StoreError> {
        self.connection.with(async |mut connection| tell(&mut connection, &self.token, told).await).await
    }
}

/// Whether another worker of the stream should have the lease: one that lacks no key where this one does, or tells the time where this
/// one does not. Where each lacks something all go on with what they can; where all clocks are off it is Redis' that is.
fn gives_way(own: &Told, others: &[Told]) -> bool {
    let is_whole = |other: &&Told| own.is_worker() && other.stream == own.stream && other.missing.is_empty();
    let mut whole = others.iter().filter(is_whole);
    let lacks_keys = !own.missing.is_empty();
    let lacks_time = !own.tells_time();
    let has_keys = |other: &Told| own.missing.iter().all(|key| other.keys.contains(key));
    whole.any(|other| (lacks_keys && has_keys(other)) || (lacks_time && other.tells_time()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAY: &str = "payment-intents";

    fn worker(keys: &[&str], missing: &[&str], clock_ahead_ms: i64) -> Told {
        let [keys, missing] = [keys, missing].map(|keys| keys.iter().map(|key| (*key).to_owned()).collect());
        Told { stream: PAY.to_owned(), keys, missing, clock_ahead_ms, ..Told::default() }
    }

    #[test]
    fn the_lease_is_for_whoever_has_the_keys_and_the_time() {
        let (one, two) = ("0123456789ab", "ba9876543210");
        let whole = worker(&[one, two], &[], 900);
        let without = worker(&[one], &[two], 0);
        assert!(gives_way(&without, std::slice::from_ref(&whole)));
        assert!(!gives_way(&whole, std::slice::from_ref(&without)));
        assert!(!gives_way(&without, &[]));
        assert!(!gives_way(&without, &[worker(&[two], &[one], 0)]), "each lacks one: nobody would work");
        let elsewhere = Told { stream: "orders".to_owned(), ..whole.clone() };
        assert!(!gives_way(&without, &[elsewhere]), "it would never take the lease");
        let serves = |told: &Told| Told { stream: String::new(), ..told.clone() };
        assert!(!gives_way(&without, &[serves(&whole)]), "nor would a process that only serves");
        assert!(!gives_way(&serves(&without), &[serves(&whole)]), "and that has none to give");
        // It locks nothing, as it has not read the endpoints yet.
        assert!(!gives_way(&without, &[worker(&[one], &[], 0)]));
        let (ahead, behind) = (worker(&[], &[], 7_200_000), worker(&[], &[], -61_000));
        assert!(gives_way(&ahead, &[behind.clone(), whole]));
        assert!(!gives_way(&ahead, &[behind]), "all clocks are off: so it is Redis'");
        assert!(!gives_way(&ahead, &[without]), "what it cannot open would wait");
    }
}

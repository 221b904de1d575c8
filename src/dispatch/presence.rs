//! Tells the other processes that this worker lives, and what it can read: by that they know what they may write. In turn it learns
//! whether another worker has keys that this one lacks, or the right time where this one has not, so that it can give way.

use std::{collections::BTreeSet, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    clock,
    facts::sealing::KeyId,
    registry::Registry,
    store::{
        connection::{Purpose, Redis, SharedConnection},
        error::StoreError,
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

pub struct Presence {
    connection: SharedConnection,
    registry: Registry,
    redis: Redis,
    /// Tells it from every other worker, also of its own name.
    token: String,
    name: String,
    gives_way: watch::Sender<bool>,
}

impl Presence {
    /// The second tells whether the worker should leave the lease to one that has the keys which it lacks.
    pub fn new(redis: Redis, registry: Registry, name: String) -> (Self, watch::Receiver<bool>) {
        let (gives_way, told) = watch::channel(false);
        let token = hex::encode(rand::random::<[u8; 8]>());
        let connection = SharedConnection::new(redis.clone(), Purpose::Other);
        (Self { connection, registry, redis, token, name, gives_way }, told)
    }

    /// Until cancelled. What fails is tried again at the next turn.
    pub async fn run(self, cancel: CancellationToken) {
        let (mut failed, mut clock_ahead_ms) = (false, 0);
        while !cancel.is_cancelled() {
            let (keys, missing) = self.seen();
            let told = self.told(clock_ahead_ms);
            let before_ms = clock::wall_ms();
            let others = self.tell(Some(&told)).await;
            if let Err(error) = &others
                && !failed
            {
                warn!(%error, "cannot tell the others that this worker lives; trying again");
            }
            failed = others.is_err();
            let mut left = TELL_EVERY;
            if let Ok((redis_ms, others)) = others {
                clock_ahead_ms = clock::ahead_ms(before_ms, redis_ms, clock::wall_ms());
                let own = Told { clock_ahead_ms, ..told.clone() };
                let gives_way = gives_way(&own, &missing, &others);
                self.gives_way.send_if_modified(|known| std::mem::replace(known, gives_way) != gives_way);
            }
            // Who reads it should not have to wait for the next turn.
            if clock_ahead_ms.abs_diff(told.clock_ahead_ms) >= CLOCK_TOLD_MS {
                left = LOOK_EVERY;
            }
            while !left.is_zero() && self.seen() == (keys, missing.clone()) && !cancel.is_cancelled() {
                tokio::select! {
                    () = sleep(LOOK_EVERY) => left -= LOOK_EVERY,
                    () = cancel.cancelled() => {}
                }
            }
        }
        // Without it the others forget this worker a minute later.
        let _ = tokio::time::timeout(LAST_WORDS, self.tell(None)).await;
    }

    /// What is worth telling at once when it changes.
    fn seen(&self) -> (u64, BTreeSet<KeyId>) {
        (self.redis.keyring().changes(), self.registry.missing_keys())
    }

    fn told(&self, clock_ahead_ms: i64) -> Told {
        Told {
            clock_ahead_ms,
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schemas: SCHEMAS.iter().map(|schema| (schema.name.to_owned(), schema.newest)).collect(),
            keys: self.redis.keyring().ring().ids().map(|key| key.to_string()).collect(),
            seal_only: self.redis.keyring().is_only(),
        }
    }

    async fn tell(&self, told: Option<&Told>) -> Result<(u64, Vec<Told>), StoreError> {
        self.connection.with(async |mut connection| tell(&mut connection, &self.token, told).await).await
    }
}

/// Whether another worker should have the lease: one that can do what this one cannot, and all else as well. Where all clocks are off
/// it is Redis' that is, and nobody gives way for that.
fn gives_way(own: &Told, missing: &BTreeSet<KeyId>, others: &[Told]) -> bool {
    let has_keys = |other: &Told| missing.iter().all(|key| other.knows(*key));
    let lacks_keys = !missing.is_empty() && others.iter().any(has_keys);
    let lacks_time = !own.tells_time() && others.iter().any(|other| other.tells_time() && has_keys(other));
    lacks_keys || lacks_time
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(keys: &[KeyId], clock_ahead_ms: i64) -> Told {
        Told { keys: keys.iter().map(KeyId::to_string).collect(), clock_ahead_ms, ..Told::default() }
    }

    #[test]
    fn the_lease_is_for_whoever_has_the_keys_and_the_time() {
        let [key, other]: [KeyId; 2] = ["0123456789ab", "ba9876543210"].map(|key| key.parse().unwrap());
        let missing = BTreeSet::from([key]);
        let (right, ahead, behind) = (worker(&[key, other], 900), worker(&[key], 7_200_000), worker(&[other], -61_000));
        assert!(!gives_way(&right, &BTreeSet::new(), &[ahead.clone(), behind.clone()]));
        assert!(gives_way(&ahead, &BTreeSet::new(), &[behind.clone(), right.clone()]));
        assert!(
            !gives_way(&ahead, &BTreeSet::new(), std::slice::from_ref(&behind)),
            "all clocks are off: so it is Redis'"
        );
        // Without the keys nothing is sent at all; a wrong time is refused by some.
        assert!(gives_way(&behind, &missing, std::slice::from_ref(&ahead)));
        assert!(!gives_way(&ahead, &BTreeSet::new(), &[]));
        let without = worker(&[other], 0);
        assert!(gives_way(&without, &missing, &[right]));
        assert!(!gives_way(&ahead, &missing, &[without]));
    }
}

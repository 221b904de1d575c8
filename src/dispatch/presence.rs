//! Tells the other processes that this worker lives, and what it can read: by that they know what they may write. In turn it learns
//! whether another worker has keys that this one lacks, so that it can give way.

use std::{collections::BTreeSet, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
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
        let mut failed = false;
        while !cancel.is_cancelled() {
            let (keys, missing) = self.seen();
            let others = self.tell(Some(&self.told())).await;
            if let Err(error) = &others
                && !failed
            {
                warn!(%error, "cannot tell the others that this worker lives; trying again");
            }
            failed = others.is_err();
            if let Ok(others) = others {
                let knows_all = |other: &Told| missing.iter().all(|key| other.knows(*key));
                let gives_way = !missing.is_empty() && others.iter().any(knows_all);
                self.gives_way.send_if_modified(|known| std::mem::replace(known, gives_way) != gives_way);
            }
            let mut left = TELL_EVERY;
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

    fn told(&self) -> Told {
        Told {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schemas: SCHEMAS.iter().map(|schema| (schema.name.to_owned(), schema.newest)).collect(),
            keys: self.redis.keyring().ring().ids().map(|key| key.to_string()).collect(),
            seal_only: self.redis.keyring().is_only(),
        }
    }

    async fn tell(&self, told: Option<&Told>) -> Result<Vec<Told>, StoreError> {
        self.connection.with(async |mut connection| tell(&mut connection, &self.token, told).await).await
    }
}

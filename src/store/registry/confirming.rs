//! Changes of the registry for somebody who is answered: replicas are to have each before that, since a failover takes back what they do
//! not have. Never fails because they are late: what is stored is stored, and [`Confirmation`] says that it is no more than that.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{RegistryError, RegistryKeys, RegistryStore};
use crate::store::{
    connection::{Connection, Purpose, Redis, SharedConnection},
    error::StoreError,
    routing::{Replicas, wait, wanted},
};

/// Replicas that did not confirm in time are waited for no longer than this, until they do: others need not wait for them each time.
const SHORT_WAIT_MS: u64 = 5;

/// What came of waiting behind a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confirmation {
    /// Replicas that have it, of those that are waited for.
    pub confirmed: u64,
    pub wanted: u8,
    /// Why not even that is known.
    why: Option<String>,
}

impl Confirmation {
    /// Of what has changed nothing.
    pub fn of_nothing() -> Self {
        Self::default()
    }

    pub fn is_enough(&self) -> bool {
        self.confirmed >= u64::from(self.wanted)
    }
}

impl fmt::Display for Confirmation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Some(why) => write!(f, "{why}"),
            None => write!(f, "{} of {} replicas have confirmed it in time", self.confirmed, self.wanted),
        }
    }
}

/// The registry for those who change it and are answered. Clones are one.
#[derive(Clone)]
pub struct Confirming {
    redis: Redis,
    /// Apart from the others': whoever waits for replicas holds up all who share it.
    connection: SharedConnection,
    replicas: Replicas,
    are_behind: Arc<AtomicBool>,
}

impl Confirming {
    pub fn new(redis: &Redis, replicas: Replicas) -> Self {
        let redis = redis.apart().at_home_in(RegistryKeys::slot());
        let connection = SharedConnection::new(redis.clone(), Purpose::Other);
        Self { redis, connection, replicas, are_behind: Arc::default() }
    }

    /// Makes changes, and if there were any waits once for the replicas of the node that has taken them.
    pub async fn change<T>(
        &self,
        what: impl AsyncFnOnce(&mut RegistryStore) -> Result<T, RegistryError>,
    ) -> Result<(T, Confirmation), RegistryError> {
        let change = async |connection: Connection| {
            let mut store = RegistryStore::on(connection);
            match what(&mut store).await {
                Ok(done) => Ok(Ok((done, self.confirmed(&mut store).await))),
                // A connection that failed is told from a registry that refuses.
                Err(RegistryError::Store(error @ StoreError::Unavailable { .. })) => Err(error),
                Err(error) => Ok(Err(error)),
            }
        };
        self.connection.with(change).await?
    }

    /// On the connection that has made the change: on another one Redis would know of nothing to wait for.
    async fn confirmed(&self, store: &mut RegistryStore) -> Confirmation {
        let wanted = wanted(&self.redis, self.replicas);
        if wanted == 0 || !store.has_changed {
            return Confirmation::default();
        }
        let timeout_ms = match self.are_behind.load(Ordering::Relaxed) {
            true => SHORT_WAIT_MS,
            false => self.replicas.timeout.as_millis() as u64,
        };
        let waited = store.connection.query("wait for the replicas of the registry", &wait(wanted, timeout_ms)).await;
        let confirmation = match waited {
            Ok(confirmed) => Confirmation { confirmed, wanted, why: None },
            Err(error) => Confirmation { confirmed: 0, wanted, why: Some(error.to_string()) },
        };
        self.are_behind.store(!confirmation.is_enough(), Ordering::Relaxed);
        confirmation
    }
}

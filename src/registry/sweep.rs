//! Takes out of the registry what nobody else comes back for: secrets that have expired, and endpoints that their merchant has
//! deleted, once nothing is owed to them. Gives way to anyone who changes an endpoint at the same time.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Registry;
use crate::{
    clock,
    facts::{
        audit::{Act, HERALD},
        endpoint::{Endpoint, Mark},
        id::EndpointId,
    },
    store::{
        audit::Audit,
        connection::{Connection, Purpose, Redis},
        keys::PartitionKeys,
        queries::{Partitions, Queries},
        registry::{RegistryError, RegistryStore},
    },
};

/// A secret leaves an hour and some minutes after its end: that is soon enough, and a look at memory costs nothing.
const EVERY: Duration = Duration::from_secs(600);

/// How often, and after which pause, it is looked again whether the parts of a split stream have what came through it.
const LOOKS: u32 = 20;
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Runs until cancelled. What fails is looked at again at the next turn.
pub async fn run(registry: Registry, redis: Redis, keys: PartitionKeys, audit: Audit, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        if registry.first_load().await.is_ok()
            && let Err(error) = sweep(&registry, &redis, &keys, &audit).await
        {
            warn!(%error, "cannot tidy the registry yet; trying again");
        }
    }
}

async fn sweep(registry: &Registry, redis: &Redis, keys: &PartitionKeys, audit: &Audit) -> Result<(), RegistryError> {
    let all = registry.all();
    let now_ms = clock::wall_ms();
    let (mut expired, mut leaving) = (Vec::new(), Vec::new());
    for endpoint in &all {
        if endpoint.leaves {
            leaving.push(endpoint);
        } else if has_expired(endpoint, now_ms) {
            expired.push(endpoint);
        }
    }
    if expired.is_empty() && leaving.is_empty() {
        return Ok(());
    }
    let connection = redis.connect(Purpose::Other).await?;
    // A machine whose clock is ahead must not take a secret from those that still sign with it.
    let now_ms = now_ms.min(Queries::new(connection.clone(), keys.clone()).now_ms().await?);
    let expired: Vec<&EndpointId> =
        expired.into_iter().filter(|endpoint| has_expired(endpoint, now_ms)).map(|endpoint| &endpoint.id).collect();
    drop_expired(&mut RegistryStore::on(connection.clone()), audit, &expired, now_ms).await?;
    if leaving.is_empty() {
        return Ok(());
    }
    let mut partitions = Partitions::find(connection.clone(), keys).await?;
    for _ in 0..LOOKS {
        let mut left = Vec::new();
        for endpoint in leaving {
            match is_drained(&mut partitions, endpoint).await? {
                true => remove(&connection, audit, endpoint).await.map(drop)?,
                false => left.push(endpoint),
            }
        }
        if left.is_empty() || !partitions.are_many() {
            break;
        }
        leaving = left;
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Ok(())
}

fn has_expired(endpoint: &Endpoint, now_ms: u64) -> bool {
    endpoint.secrets.iter().any(|secret| !secret.is_live(now_ms)) && endpoint.clone().drop_expired_secrets(now_ms)
}

async fn drop_expired(
    store: &mut RegistryStore,
    audit: &Audit,
    ids: &[&EndpointId],
    now_ms: u64,
) -> Result<(), RegistryError> {
    for id in ids {
        let Some(endpoint) = store.get(id).await? else { continue };
        let mark = Mark { by: HERALD.to_owned(), why: "a secret has expired".to_owned(), at_ms: now_ms };
        let begun = audit.act(Act::EndpointDropSecret, &mark.by, &mark.why).account(&endpoint.account).endpoint(id);
        match audit.audited(begun, async |_| store.update(endpoint, &mark).await).await {
            Ok(_) => info!(endpoint = %id, "took expired secrets out of the registry"),
            // Somebody was quicker, and has taken them out as well.
            Err(RegistryError::Stale { .. } | RegistryError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes an endpoint that leaves, if everything that it was owed is delivered or a dead letter. Whether it did.
pub async fn remove_if_drained(
    connection: &Connection,
    keys: &PartitionKeys,
    audit: &Audit,
    endpoint: &Endpoint,
) -> Result<bool, RegistryError> {
    let mut partitions = Partitions::find(connection.clone(), keys).await?;
    Ok(is_drained(&mut partitions, endpoint).await? && remove(connection, audit, endpoint).await?)
}

/// Nothing is owed to it that waits in any stream of its account's path.
async fn is_drained(partitions: &mut Partitions, endpoint: &Endpoint) -> Result<bool, RegistryError> {
    match endpoint.owed_until {
        Some(last) => Ok(partitions.is_passed(&endpoint.account, last).await?),
        None => Ok(true),
    }
}

async fn remove(connection: &Connection, audit: &Audit, endpoint: &Endpoint) -> Result<bool, RegistryError> {
    let (id, seen) = (&endpoint.id, Some(endpoint.revision));
    let mark = Mark {
        by: HERALD.to_owned(),
        why: "it was deleted, and nothing is owed to it any more".to_owned(),
        at_ms: clock::wall_ms(),
    };
    let begun = audit.act(Act::EndpointRemove, &mark.by, &mark.why).account(&endpoint.account).endpoint(id);
    let mut store = RegistryStore::on(connection.clone());
    match audit.audited(begun, async |_| store.remove(id, seen, &mark).await).await {
        Ok(()) => {
            info!(endpoint = %endpoint.id, "removed an endpoint that its merchant has deleted");
            Ok(true)
        }
        Err(RegistryError::Stale { .. } | RegistryError::Missing(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

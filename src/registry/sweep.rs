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
        queries::Queries,
        registry::{RegistryError, RegistryStore},
        watch::is_passed,
    },
};

/// A secret leaves an hour and some minutes after its end: that is soon enough, and a look at memory costs nothing.
const EVERY: Duration = Duration::from_secs(600);

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
    for endpoint in leaving {
        remove_if_drained(&connection, keys, audit, endpoint).await?;
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
    if let Some(last) = endpoint.owed_until
        && !is_passed(&mut connection.clone(), keys, last).await?
    {
        return Ok(false);
    }
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

//! Takes secrets that have expired out of the registry, because nobody changes an endpoint only because a date has passed.
//! Changes nothing else, and gives way to anyone who changes an endpoint at the same time.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Registry;
use crate::{
    clock,
    facts::{endpoint::Mark, id::EndpointId},
    store::{
        connection::Redis,
        registry::{RegistryError, RegistryStore},
    },
};

/// A secret leaves an hour and some minutes after its end: that is soon enough, and a look at memory costs nothing.
const EVERY: Duration = Duration::from_secs(600);

/// Runs until cancelled. What fails is looked at again at the next turn.
pub async fn run(registry: Registry, redis: Redis, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        if registry.first_load().await.is_ok()
            && let Err(error) = sweep(&registry, &redis, clock::wall_ms()).await
        {
            warn!(%error, "cannot take expired secrets out of the registry yet; trying again");
        }
    }
}

async fn sweep(registry: &Registry, redis: &Redis, now_ms: u64) -> Result<(), RegistryError> {
    let all = registry.all();
    let has_expired = |endpoint: &crate::facts::endpoint::Endpoint| {
        endpoint.secrets.iter().any(|secret| !secret.is_live(now_ms)) && endpoint.clone().drop_expired_secrets(now_ms)
    };
    let ids: Vec<&EndpointId> =
        all.iter().filter(|endpoint| has_expired(endpoint)).map(|endpoint| &endpoint.id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let mut store = RegistryStore::connect(redis).await?;
    for id in ids {
        let Some(endpoint) = store.get(id).await? else { continue };
        let mark = Mark { by: "herald".to_owned(), why: "a secret has expired".to_owned(), at_ms: now_ms };
        match store.update(endpoint, &mark).await {
            Ok(_) => info!(endpoint = %id, "took expired secrets out of the registry"),
            // Somebody was quicker, and has taken them out as well.
            Err(RegistryError::Stale { .. } | RegistryError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

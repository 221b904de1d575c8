//! What the partition wants done beside its calls: following the registry up to now, disabling or pausing an endpoint. Each
//! errand is tried until it is done or somebody else's change takes precedence.

use std::time::Duration;

use tracing::{info, warn};

use crate::{
    clock,
    dispatch::core::CoreErrand,
    facts::{
        audit::{Act, HERALD, Tally},
        endpoint::{EndpointState, Mark},
    },
    registry::{RefreshError, Registry},
    store::{
        audit::Audit,
        connection::{Purpose, Redis},
        keys::PartitionKeys,
        queries::Partitions,
        registry::{RegistryError, RegistryStore},
    },
};

/// Pause before an errand that failed is tried again.
const ERRAND_PAUSE: Duration = Duration::from_millis(500);

/// An errand that was run.
pub enum Done {
    RegistryConfirmed,
    Nothing,
}

/// Follows the registry up to a look that begins now.
pub async fn confirm(registry: Registry) -> Done {
    loop {
        match registry.refresh().await {
            Ok(()) => return Done::RegistryConfirmed,
            Err(RefreshError::Stopped) => return Done::Nothing,
            // Nothing is final while it is gone.
            Err(RefreshError::Vanished) => tokio::time::sleep(ERRAND_PAUSE).await,
        }
    }
}

/// Disables an endpoint that answered 410, or pauses one that is over its quota, unless somebody has changed it since. `root` is the stream
/// that the events of all accounts come through.
pub async fn change_endpoint(redis: Redis, root: PartitionKeys, audit: Audit, errand: CoreErrand) -> Done {
    let act = match &errand {
        CoreErrand::Disable { .. } => Act::EndpointDisable,
        CoreErrand::Pause { .. } => Act::EndpointPause,
    };
    let (CoreErrand::Disable { endpoint, why, .. } | CoreErrand::Pause { endpoint, why, .. }) = &errand;
    let begun = audit.act(act, HERALD, why).endpoint(endpoint);
    let entry = loop {
        match audit.begin(&begun).await {
            Ok(entry) => break entry,
            Err(error) => {
                warn!(%endpoint, %error, "cannot disable or pause the endpoint yet; trying again");
                tokio::time::sleep(ERRAND_PAUSE).await;
            }
        }
    };
    let done = change_until_done(&redis, &root, &errand).await;
    if let Err(error) = audit.end(entry, done.as_ref().copied(), Tally::default()).await {
        warn!(%endpoint, %error, "the end of an act is not in the audit log");
    }
    Done::Nothing
}

/// Fails only if somebody else's change takes precedence.
async fn change_until_done(redis: &Redis, root: &PartitionKeys, errand: &CoreErrand) -> Result<(), RegistryError> {
    let (CoreErrand::Disable { endpoint, why, .. } | CoreErrand::Pause { endpoint, why, .. }) = errand;
    loop {
        match try_change(redis, root, errand).await {
            Ok(()) => {
                match errand {
                    CoreErrand::Disable { .. } => warn!(%endpoint, reason = why, "disabled the endpoint"),
                    CoreErrand::Pause { .. } => warn!(%endpoint, reason = why, "paused the endpoint"),
                }
                return Ok(());
            }
            // Deleted or changed by somebody: their change takes precedence.
            Err(error @ (RegistryError::Missing(_) | RegistryError::Stale { .. } | RegistryError::NeverMade)) => {
                info!(%endpoint, %error, "the endpoint was left as it is");
                return Err(error);
            }
            // Refused for a reason that somebody will fix. Until then the owner sends nothing to an endpoint that is gone.
            Err(error) => {
                warn!(%endpoint, %error, "cannot disable or pause the endpoint yet; trying again");
                tokio::time::sleep(ERRAND_PAUSE).await;
            }
        }
    }
}

async fn try_change(redis: &Redis, root: &PartitionKeys, errand: &CoreErrand) -> Result<(), RegistryError> {
    let (CoreErrand::Disable { endpoint: id, revision, why } | CoreErrand::Pause { endpoint: id, revision, why }) =
        errand;
    let connection = redis.connect(Purpose::Other).await?;
    let mut store = RegistryStore::on(connection.clone());
    let Some(mut endpoint) = store.get(id).await? else { return Err(RegistryError::Missing(id.clone())) };
    // What is accepted after that is not owed to it. Of several streams, each must answer: what waits in one that is away is owed, too.
    let last = Partitions::find(connection, root).await?.last_entry_of(&endpoint.account).await?;
    // The store refuses a change that was based on another revision than the current one.
    endpoint.revision = *revision;
    let mark = Mark { by: HERALD.to_owned(), why: why.clone(), at_ms: clock::wall_ms() };
    match errand {
        CoreErrand::Disable { .. } => endpoint.disable(mark.clone(), last),
        CoreErrand::Pause { .. } => endpoint.status = EndpointState::Paused(mark.clone()),
    }
    endpoint.updated_at_ms = mark.at_ms;
    store.update(endpoint, &mark).await.map(drop)
}

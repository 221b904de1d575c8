//! The task that keeps the snapshot up to date: looks at the feed whenever it may have something, at least twice a second.
//! Never gives up: a failure ends both connections, and the next try makes new ones.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Change, Looked, Shared, retry_pause, snapshot::Snapshot};
use crate::{
    clock,
    facts::{
        endpoint::{Endpoint, Mark},
        id::EndpointId,
        stamped::Stamped,
    },
    keyring::Keyring,
    store::{
        connection::Redis,
        registry::{
            RegistryError, RegistryStore, Unreadable,
            feed::{ChangeWait, FeedChange, News, Position},
        },
    },
    telemetry::{
        calls::{self as telemetry, CallKind},
        certificates::{self, Use},
    },
};

/// A change ends a wait at once. Only what the feed cannot tell (that Redis was wiped) takes this long to be seen.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) async fn run(shared: &Shared, redis: Redis, cancel: CancellationToken) {
    let mut failures = 0;
    loop {
        let failed = tokio::select! {
            () = cancel.cancelled() => break,
            failed = follow(shared, &redis, &mut failures) => failed,
        };
        warn!(error = %failed, "cannot follow the registry of endpoints; trying again, after {failures} failures before");
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(retry_pause(failures, rand::random())) => {}
        }
        failures = failures.saturating_add(1);
    }
    shared.looked.send_modify(|looked| looked.is_stopped = true);
}

/// Follows until something fails.
async fn follow(shared: &Shared, redis: &Redis, failures: &mut u32) -> RegistryError {
    let tried: Result<std::convert::Infallible, RegistryError> = async {
        let mut store = RegistryStore::connect(redis).await?;
        let mut wait = ChangeWait::connect(redis).await?;
        loop {
            look(shared, &mut store, redis.keyring()).await?;
            *failures = 0;
            match followed_version(shared) {
                Some(version) => {
                    // One blocking read at a time: a dropped one would keep the connection busy for the rest of its time.
                    let mut change = pin!(wait.wait(version, LOOK_EVERY));
                    loop {
                        tokio::select! {
                            waited = &mut change => break waited?,
                            () = shared.ask.notified() => look(shared, &mut store, redis.keyring()).await?,
                        }
                    }
                }
                // There is nothing to wait for, and the feed of a damaged registry would end every wait at once.
                None => tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = shared.ask.notified() => {}
                },
            }
        }
    }
    .await;
    match tried {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// Where to wait for the next change, if the registry is there.
fn followed_version(shared: &Shared) -> Option<u64> {
    let snapshot = shared.read();
    let position = snapshot.position().filter(|_| !snapshot.is_absent());
    position.map(|position| position.last.version)
}

/// Brings the snapshot up to date, then answers everyone who asked before this look began.
async fn look(shared: &Shared, store: &mut RegistryStore, keyring: &Keyring) -> Result<(), RegistryError> {
    let asked = shared.asked.load(Ordering::SeqCst);
    loop {
        // Noted before anything is read: keys that change meanwhile are seen at the next look.
        let keys = keyring.changes();
        if shared.keys.swap(keys, Ordering::SeqCst) != keys && !shared.read().is_absent() {
            reload(shared, store, false).await?;
        }
        let known = shared.read().position().cloned();
        match store.news(known.as_ref()).await? {
            News::NoRegistry => lose(shared, "Redis has no registry"),
            News::Damaged(why) => lose(shared, &why),
            News::Gap { is_back, .. } => reload(shared, store, is_back).await?,
            News::Changes { changes, .. } if changes.contains(&FeedChange::Reset) => {
                reload(shared, store, false).await?;
            }
            News::Changes { position, pause, changes } => {
                let has_moved = known.as_ref() != Some(&position);
                shared.apply(position, pause, changes);
                if has_moved {
                    continue;
                }
            }
        }
        break;
    }
    shared.looked.send_modify(|looked: &mut Looked| {
        looked.answered = looked.answered.max(asked);
        looked.is_loaded = true;
    });
    Ok(())
}

fn lose(shared: &Shared, why: &str) {
    let is_new = shared.write(Snapshot::lose);
    if !is_new {
        return;
    }
    match shared.read().position() {
        Some(Position { id, last: Stamped { version, .. } }) => error!(
            reason = why,
            "the registry {id} of endpoints, at version {version}, has vanished: the last known endpoints stay, nothing new is read; import a backup"
        ),
        None => info!(reason = why, "there is no registry of endpoints yet: events wait in the stream"),
    }
    shared.tell(Change::Reset);
}

/// `is_back`: what was known has been taken back.
async fn reload(shared: &Shared, store: &mut RegistryStore, is_back: bool) -> Result<(), RegistryError> {
    let began = clock::now();
    let loaded = store.load().await;
    telemetry::ended(CallKind::Registry, clock::now().saturating_duration_since(began));
    let loaded = match loaded {
        Err(RegistryError::NeverMade) => {
            lose(shared, "Redis has no registry");
            return Ok(());
        }
        Err(RegistryError::Damaged(why)) => {
            lose(shared, &why);
            return Ok(());
        }
        loaded => loaded?,
    };
    loaded.unreadable.values().filter(|found| !shared.read().knows_unreadable(&found.id)).for_each(report);
    let unreadable = loaded.unreadable.len();
    // Everything slow, including dropping the old maps, happens outside the lock.
    let fresh = Snapshot::new(loaded, &shared.read());
    let (id, version) = (fresh.id().cloned(), fresh.last().version);
    let endpoints = match unreadable {
        0 => format!("{} endpoints", fresh.len()),
        n => format!("{} endpoints, and {n} that cannot be read", fresh.len()),
    };
    let old = shared.write(|snapshot| std::mem::replace(snapshot, fresh));
    let registry = id.as_ref().map(ToString::to_string).unwrap_or_default();
    match old.id() {
        Some(before) if Some(before) != id.as_ref() => {
            warn!("Redis has another registry than {before}; loaded {registry}, at version {version} with {endpoints}")
        }
        Some(_) if is_back => {
            let had = old.last().version;
            shared.taken_back.fetch_add(1, Ordering::Relaxed);
            warn!(
                "Redis has lost changes of the registry {registry}, version {had} among them, as a failover does it; loaded version {version} with {endpoints}: look whether what was changed last is there"
            )
        }
        _ => info!("loaded the registry {registry} at version {version} with {endpoints}"),
    }
    drop(old);
    shared.show_certificates();
    shared.tell(Change::Reset);
    Ok(())
}

fn report(found: &Unreadable) {
    error!(
        endpoint = %found.id, account = found.account.as_ref().map(tracing::field::display), reason = %found.why,
        "cannot read an endpoint: what is owed to it waits in its backlog; without its account known, everything waits"
    );
}

/// Also reported for an endpoint that was unreadable before: an account that was uncertain may no longer be.
fn removed(id: &str) -> Change {
    EndpointId::new(id).map_or(Change::Reset, Change::Removed)
}

impl Shared {
    fn apply(&self, position: Position, pause: Option<Mark>, changes: Vec<FeedChange>) {
        for change in changes {
            self.tell(match change {
                FeedChange::Put(endpoint) => {
                    let endpoint: Arc<Endpoint> = Arc::from(endpoint);
                    self.write(|snapshot| snapshot.put(endpoint.clone()));
                    Change::Endpoint(endpoint)
                }
                FeedChange::Unreadable(found) => {
                    report(&found);
                    let told = removed(&found.id);
                    self.write(|snapshot| snapshot.set_aside(found));
                    told
                }
                FeedChange::Removed(id) => {
                    self.write(|snapshot| snapshot.remove(&id));
                    removed(&id)
                }
                FeedChange::Reset => continue,
            });
        }
        self.show_certificates();
        let was_absent = self.read().is_absent();
        if self.write(|snapshot| snapshot.advance(position, pause.clone())) {
            self.tell(Change::Pause(pause));
        }
        if was_absent {
            info!("the registry of endpoints is back as it was");
            self.tell(Change::Reset);
        }
    }

    fn write<T>(&self, change: impl FnOnce(&mut Snapshot) -> T) -> T {
        change(&mut self.snapshot.write().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn show_certificates(&self) {
        certificates::shown(Use::Endpoint, self.read().first_certificate_end_s());
    }

    /// It is no failure if nobody listens.
    fn tell(&self, change: Change) {
        let _ = self.changes.send(change);
    }
}

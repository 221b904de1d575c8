//! Tells the other processes that this one lives, and what it can read: by that they know what they may write. In turn a worker learns
//! who else works, by which it shares partitions with them (`sharing`); and whether another worker has keys that this one lacks, or the
//! right time where this one has not, so that it can give way.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rand::RngExt;
use tokio::{
    sync::watch,
    time::{sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    clock,
    facts::{
        partition::Layout,
        sealing::{KeyId, MAX_KEYS},
    },
    registry::Registry,
    store::{
        connection::{Connection, Purpose, Redis, SharedConnection},
        error::StoreError,
        keys::PartitionKeys,
        partitions,
        queries::Queries,
        workers::{Heard, Told, tell},
    },
    view::schemas::SCHEMAS,
};

/// Six times as often as it must be, where nothing is shared.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How often it looks whether its keys have changed, which it tells at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A clock that has moved by this much is told of at once.
const CLOCK_TOLD_MS: u64 = 2_000;

/// For the last words: whoever seals next need not wait for a worker that has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How many looks in a row find a lease that nobody has, until it is not left to those who do not take it.
const FREE_LOOKS: u32 = 3;

/// What a worker tells of its share of partitions, and how often. Those of a process that serves only are nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnShare {
    pub weight: u32,
    pub is_draining: bool,
    pub owned: BTreeSet<String>,
    pub holds_ms: u64,
    pub every: Duration,
    /// The stream is split, so who lacks something is left out of the sharing, and gives no lease away besides.
    pub is_shared: bool,
}

impl Default for OwnShare {
    fn default() -> Self {
        let every = TELL_EVERY;
        Self { weight: 0, is_draining: false, owned: BTreeSet::new(), holds_ms: 0, every, is_shared: false }
    }
}

/// Who was heard of, and which partitions there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Company {
    /// This worker lacks no key and tells the time.
    pub is_whole: bool,
    /// Those that live, and share partitions of the stream.
    pub others: Vec<Heard>,
    pub layout: Layout,
}

pub struct Presence {
    connection: SharedConnection,
    registry: Registry,
    redis: Redis,
    /// What it may own the lease on; none for a process that only serves.
    leases: Option<PartitionKeys>,
    name: String,
    /// Tells it from every other process, also of its own name.
    process: String,
    since_ms: u64,
    gives_way: watch::Sender<bool>,
    own: watch::Receiver<OwnShare>,
    company: watch::Sender<Option<Company>>,
    /// What was ever heard of it: a failover may take the hint back, and no part may be without a worker meanwhile.
    layout: Layout,
}

impl Presence {
    /// Of a worker with this share. The second tells whether it should leave the lease to one that has the keys, or the right time, which
    /// it lacks; the third, who else shares the partitions.
    pub fn new(
        redis: Redis,
        registry: Registry,
        keys: PartitionKeys,
        name: String,
        own: watch::Receiver<OwnShare>,
    ) -> (Self, watch::Receiver<bool>, watch::Receiver<Option<Company>>) {
        let presence = Self { leases: Some(keys), own, ..Self::without_lease(redis, registry, name) };
        let (gives_way, company) = (presence.gives_way.subscribe(), presence.company.subscribe());
        (presence, gives_way, company)
    }

    /// Of a process that seals and opens, and never asks for a lease.
    pub fn without_lease(redis: Redis, registry: Registry, name: String) -> Self {
        Self {
            connection: SharedConnection::new(redis.clone(), Purpose::Other),
            registry,
            redis,
            leases: None,
            name,
            process: hex::encode(rand::random::<[u8; 8]>()),
            since_ms: clock::wall_ms(),
            gives_way: watch::Sender::new(false),
            own: watch::channel(OwnShare::default()).1,
            company: watch::Sender::new(None),
            layout: Layout::default(),
        }
    }

    /// Until cancelled. What fails is tried again at the next turn.
    pub async fn run(mut self, cancel: CancellationToken) {
        let (mut failed, mut clock_ahead_ms, mut namesake_ms) = (false, 0, None);
        // Those that have told nothing since then were given a chance, and did not take the lease: they may be dead.
        let (mut passed_over_ms, mut free_looks) = (0, 0);
        // Where leases are short it tells more often than it looks.
        let mut look_at = clock::now() + LOOK_EVERY;
        while !cancel.is_cancelled() {
            let own = self.own.borrow_and_update().clone();
            let (keys, missing) = self.seen();
            let told = self.told(&own, &missing, clock_ahead_ms);
            let before_ms = clock::wall_ms();
            let heard = self.tell(Some(&told)).await;
            if let Err(error) = &heard
                && !failed
            {
                warn!(%error, "cannot tell the others that this process lives; trying again");
            }
            failed = heard.is_err();
            let (mut tell_at, mut newest_ms) = (clock::now() + scattered(own.every), 0);
            if let Ok((redis_ms, others)) = heard {
                clock_ahead_ms = clock::ahead_ms(before_ms, redis_ms, clock::wall_ms());
                let told = Told { clock_ahead_ms, ..told.clone() };
                newest_ms = others.iter().map(|other| other.at_ms).max().unwrap_or_default();
                // Unless it is what is left of the one before this, it tells again.
                let namesakes = others.iter().filter(|other| other.told.name == self.name).map(|other| other.at_ms);
                if let Some(at_ms) = namesakes.max() {
                    let before_ms = *namesake_ms.get_or_insert(at_ms);
                    if before_ms < at_ms && namesake_ms.replace(u64::MAX) != Some(u64::MAX) {
                        warn!(
                            "another live worker is called {}, too: give each its own name (HERALD_WORKER)",
                            self.name
                        );
                    }
                }
                if self.leases.is_some() {
                    let lasts = self.share(redis_ms, &told, &others).await;
                    // Whoever stops telling is missed as soon as what it told does not hold any more.
                    tell_at = tell_at.min(lasts.map_or(tell_at, |lasts| clock::now() + lasts));
                }
                let whole: Vec<Told> =
                    others.into_iter().filter(|other| other.at_ms > passed_over_ms).map(|other| other.told).collect();
                self.give_way(!own.is_shared && gives_way(&told, &whole));
            }
            // Who reads it should not have to wait for the next turn.
            if clock_ahead_ms.abs_diff(told.clock_ahead_ms) >= CLOCK_TOLD_MS {
                tell_at = tell_at.min(clock::now() + LOOK_EVERY);
            }
            while clock::now() < tell_at && self.seen() == (keys, missing.clone()) && !cancel.is_cancelled() {
                tokio::select! {
                    () = sleep_until(tell_at.min(look_at).into()) => {}
                    Ok(()) = self.own.changed() => tell_at = tell_at.min(self.tells_changed(&own)),
                    () = cancel.cancelled() => {}
                }
                if clock::now() < look_at {
                    continue;
                }
                look_at = clock::now() + LOOK_EVERY;
                if *self.gives_way.borrow() {
                    free_looks = if self.is_lease_free().await { free_looks + 1 } else { 0 };
                    if free_looks >= FREE_LOOKS {
                        (passed_over_ms, free_looks) = (newest_ms, 0);
                        self.give_way(false);
                    }
                } else {
                    free_looks = 0;
                }
            }
            // The others, and Redis, are asked no more often than this whatever happens.
            sleep(Duration::from_millis(20)).await;
        }
        // Without it the others forget this worker a minute later.
        let _ = tokio::time::timeout(LAST_WORDS, self.tell(None)).await;
    }

    /// When to tell of what has changed since that was told: at once that it leaves, and what it owns at the usual time.
    fn tells_changed(&mut self, told: &OwnShare) -> Instant {
        let own = self.own.borrow_and_update();
        let is_urgent = own.is_draining != told.is_draining;
        clock::now() + if is_urgent { Duration::ZERO } else { scattered(own.every) }
    }

    /// Passes on who shares the partitions, and says how long the first of them can still be silent.
    async fn share(&mut self, redis_ms: u64, own: &Told, others: &[Heard]) -> Option<Duration> {
        let root = &own.stream;
        let layout = self.connection.with(async |mut connection| partitions::hinted(&mut connection, root).await).await;
        let left_ms = |other: &Heard| {
            other.at_ms.saturating_add(other.told.holds_ms).checked_sub(redis_ms).filter(|left| *left > 0)
        };
        let shares = |other: &&Heard| other.told.stream == *root && other.told.name != self.name;
        let alive: Vec<&Heard> = others.iter().filter(shares).filter(|other| left_ms(other).is_some()).collect();
        // One who may not ask works on what was never split.
        let layout = match layout {
            Err(StoreError::Denied { .. }) => Ok(Layout::of_one(root)),
            layout => layout,
        };
        if let Ok(layout) = layout {
            self.layout = layout.with(&self.layout);
            let is_whole = own.missing.is_empty() && own.tells_time();
            let others = alive.iter().map(|other| (*other).clone()).collect();
            let company = Company { is_whole, others, layout: self.layout.clone() };
            self.company.send_replace(Some(company));
        }
        alive.iter().filter_map(|other| left_ms(other)).min().map(|left| Duration::from_millis(left.saturating_add(10)))
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

    fn told(&self, own: &OwnShare, missing: &BTreeSet<KeyId>, clock_ahead_ms: i64) -> Told {
        Told {
            name: self.name.clone(),
            stream: self.leases.as_ref().map_or_else(String::new, |keys| keys.stream().to_owned()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schemas: SCHEMAS.iter().map(|schema| (schema.name.to_owned(), schema.newest)).collect(),
            keys: self.redis.keyring().ring().ids().map(|key| key.to_string()).collect(),
            seal_only: self.redis.keyring().is_only(),
            missing: missing.iter().take(MAX_KEYS).map(KeyId::to_string).collect(),
            clock_ahead_ms,
            weight: own.weight,
            draining: own.is_draining,
            owned: own.owned.clone(),
            holds_ms: own.holds_ms,
            since_ms: self.since_ms,
        }
    }

    async fn tell(&self, told: Option<&Told>) -> Result<(u64, Vec<Heard>), StoreError> {
        self.connection.with(async |mut connection| tell(&mut connection, &self.process, told).await).await
    }
}

/// Around this time: those that began together should not all come together.
fn scattered(every: Duration) -> Duration {
    every.mul_f64(rand::rng().random_range(0.8..1.2))
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

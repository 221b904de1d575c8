//! The numbers of each partition that this worker has, with its name, and the sums of those that only the process shows. A partition
//! is on the page as long as this worker has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::{
    metrics::{Metrics, SETTLED, Settled},
    owner::{self, Look, with_end},
    readiness::Readiness,
};

/// Counts what is of one partition, and what is of its process as that does. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct PartitionMetrics {
    process: Metrics,
    own: Arc<Own>,
}

#[derive(Debug, Default)]
pub(super) struct Own {
    entries_read: AtomicU64,
    entries_read_again: AtomicU64,
    /// In the order of [`Settled`]'s variants.
    entries_settled: [AtomicU64; SETTLED.len()],
    entries_claimed: AtomicU64,
    quarantine_dropped: AtomicU64,
    is_owner: AtomicBool,
    lease_terms: AtomicU64,
    items_set_aside: AtomicU64,
    attempts_in_flight: AtomicU64,
    slow_attempts_in_flight: AtomicU64,
    is_under_pressure: AtomicBool,
    history_lag: AtomicU64,
    /// Of a routed stream, in ms.
    route_lag_ms: AtomicU64,
    route_gaps: AtomicU64,
    /// Empty while this worker is not the owner.
    look: Mutex<Option<Look>>,
    redis: Mutex<Option<RedisState>>,
}

/// What a look at Redis tells of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RedisState {
    /// Writes go to an append-only file, and the last one did.
    pub is_durable: bool,
    /// Nothing is ever evicted.
    pub is_noeviction: bool,
    pub memory_used_bytes: u64,
    /// 0 means no limit.
    pub memory_limit_bytes: u64,
    /// This machine's clock, less Redis' clock.
    pub clock_offset_ms: i64,
    pub evicted_keys: u64,
}

impl PartitionMetrics {
    pub(super) fn new(process: Metrics, own: Arc<Own>) -> Self {
        Self { process, own }
    }

    pub fn entries_read(&self, count: u64) {
        self.own.entries_read.fetch_add(count, Relaxed);
    }

    pub fn entries_read_again(&self, count: u64) {
        self.own.entries_read_again.fetch_add(count, Relaxed);
    }

    pub fn entries_settled(&self, how: Settled, count: u64) {
        self.own.entries_settled[how as usize].fetch_add(count, Relaxed);
    }

    pub fn entries_claimed(&self, count: u64) {
        self.own.entries_claimed.fetch_add(count, Relaxed);
    }

    /// The limit of the quarantine has dropped this many more.
    pub fn quarantine_dropped(&self, count: u64) {
        self.own.quarantine_dropped.fetch_add(count, Relaxed);
    }

    /// This many attempts are under way, and this many of them are slow ones.
    pub fn set_in_flight(&self, attempts: u64, slow: u64) {
        self.own.attempts_in_flight.store(attempts, Relaxed);
        self.own.slow_attempts_in_flight.store(slow, Relaxed);
    }

    /// This worker became the owner.
    pub fn term_began(&self) {
        self.own.lease_terms.fetch_add(1, Relaxed);
        self.own.is_owner.store(true, Relaxed);
    }

    /// As the owner. A look that comes after the end of its term must not be told.
    pub fn owner_sees(&self, look: Look) {
        *lock(&self.own.look) = Some(look);
    }

    /// This worker is no longer the owner, whether it lost the lease or gave it back.
    pub fn term_ended(&self) {
        self.own.is_owner.store(false, Relaxed);
        *lock(&self.own.look) = None;
    }

    pub fn item_set_aside(&self) {
        self.own.items_set_aside.fetch_add(1, Relaxed);
    }

    pub fn set_memory_pressure(&self, is_under_pressure: bool) {
        self.own.is_under_pressure.store(is_under_pressure, Relaxed);
    }

    pub fn set_history_lag(&self, lines: u64) {
        self.own.history_lag.store(lines, Relaxed);
    }

    /// How long the oldest entry waits that was not passed on to all parts.
    pub fn set_route_lag(&self, lag: Duration) {
        self.own.route_lag_ms.store(u64::try_from(lag.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// What a part had not taken yet was gone from the stream above it.
    pub fn route_gap(&self) {
        self.own.route_gaps.fetch_add(1, Relaxed);
    }

    /// What the partition's Redis says of itself; None while it does not answer.
    pub fn redis_says(&self, state: Option<RedisState>) {
        let evicted_keys = &self.process.partitions().evicted_keys;
        evicted_keys.fetch_max(state.map_or(0, |state| state.evicted_keys), Relaxed);
        *lock(&self.own.redis) = state;
    }
}

impl Deref for PartitionMetrics {
    type Target = Metrics;

    fn deref(&self) -> &Metrics {
        &self.process
    }
}

/// Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(super) struct Partitions {
    all: Arc<Mutex<BTreeMap<String, Weak<Own>>>>,
    /// Those that nobody has.
    orphans: Arc<Mutex<BTreeSet<String>>>,
    readiness: Readiness,
    /// The most that a server has said, as a server that is away says nothing.
    evicted_keys: Arc<AtomicU64>,
}

impl Partitions {
    pub fn new(readiness: Readiness) -> Self {
        Self { all: Arc::default(), orphans: Arc::default(), readiness, evicted_keys: Arc::default() }
    }

    /// That of this name: the same as long as somebody holds it.
    pub fn of(&self, partition: &str) -> Arc<Own> {
        let mut all = lock(&self.all);
        let known = all.get(partition).and_then(Weak::upgrade);
        let own = known.unwrap_or_default();
        all.insert(partition.to_owned(), Arc::downgrade(&own));
        own
    }

    /// Cheap while there are none.
    pub fn set_orphans<'a>(&self, orphans: impl Iterator<Item = &'a str>) {
        *lock(&self.orphans) = orphans.map(str::to_owned).collect();
    }

    fn held(&self) -> Vec<(String, Arc<Own>)> {
        let mut all = lock(&self.all);
        all.retain(|_, own| own.strong_count() > 0);
        all.iter().filter_map(|(name, own)| Some((name.clone(), own.upgrade()?))).collect()
    }
}

impl Collector for Partitions {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.held();
        let looks: Vec<(String, Look)> =
            all.iter().filter_map(|(name, own)| Some((name.clone(), lock(&own.look).clone()?))).collect();
        let orphans = lock(&self.orphans).clone();
        let mut page = Page { encoder, all };
        page.of_each()?;
        page.owners(&orphans)?;
        page.of_all(&looks)?;
        page.of_redis(self.readiness.redis_answers(), self.evicted_keys.load(Relaxed))?;
        owner::encode(page.encoder, &looks)
    }
}

struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
    all: Vec<(String, Arc<Own>)>,
}

impl Page<'_> {
    fn of_each(&mut self) -> fmt::Result {
        if self.all.is_empty() {
            return Ok(());
        }
        let help = "Entries read from the stream, after a take-over once more";
        self.counter("entries_read", help, |own| &own.entries_read)?;
        let help = "Entries read once more because their accounts could not take them before";
        self.counter("entries_read_again", help, |own| &own.entries_read_again)?;
        let help = with_end("Entries that were dealt with, by what became of them");
        let mut metric = self.encoder.encode_descriptor("entries_settled", &help, None, MetricType::Counter)?;
        for (name, own) in &self.all {
            for (result, count) in SETTLED.into_iter().zip(&own.entries_settled) {
                let labels = [("partition", name.as_str()), ("result", result)];
                ConstCounter::new(count.load(Relaxed)).encode(metric.encode_family(&labels)?)?;
            }
        }
        let help = "Entries taken over from other consumers of the group";
        self.counter("entries_claimed", help, |own| &own.entries_claimed)?;
        let help = "Entries that the quarantine's limit dropped from it";
        self.counter("quarantine_entries_dropped", help, |own| &own.quarantine_dropped)?;
        let help = "Terms that this worker began as the partition's owner";
        self.counter("lease_terms", help, |own| &own.lease_terms)?;
        let help = "Changes that Redis refused, records that cannot be read and jobs that failed: they are tried again";
        self.counter("items_set_aside", help, |own| &own.items_set_aside)?;
        let help = "Times that a routed stream had no more what one of its parts had not taken yet";
        self.counter("route_gap", help, |own| &own.route_gaps)?;
        let help = with_end("How long the oldest entry waits that a routed stream has not passed on to all its parts");
        let unit = Some(&Unit::Seconds);
        let mut metric = self.encoder.encode_descriptor("route_lag", &help, unit, MetricType::Gauge)?;
        self.all.iter().try_for_each(|(name, own)| {
            let lag = own.route_lag_ms.load(Relaxed) as f64 / 1_000.0;
            ConstGauge::new(lag).encode(metric.encode_family(&[("partition", name.as_str())])?)
        })
    }

    /// Of those that nobody has, too: else a partition without an owner would be on no page.
    fn owners(&mut self, orphans: &BTreeSet<String>) -> fmt::Result {
        let mut owned: BTreeMap<&str, u64> = orphans.iter().map(|name| (name.as_str(), 0)).collect();
        let held = self.all.iter().map(|(name, own)| (name.as_str(), u64::from(own.is_owner.load(Relaxed))));
        owned.extend(held);
        if owned.is_empty() {
            return Ok(());
        }
        let help = with_end("1 while this worker owns the partition, else 0");
        let mut metric = self.encoder.encode_descriptor("partition_owner", &help, None, MetricType::Gauge)?;
        owned.into_iter().try_for_each(|(name, is_owner)| {
            ConstGauge::new(is_owner).encode(metric.encode_family(&[("partition", name)])?)
        })
    }

    fn counter(&mut self, name: &str, help: &str, count: impl Fn(&Own) -> &AtomicU64) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, &with_end(help), None, MetricType::Counter)?;
        self.all.iter().try_for_each(|(partition, own)| {
            ConstCounter::new(count(own).load(Relaxed))
                .encode(metric.encode_family(&[("partition", partition.as_str())])?)
        })
    }

    /// What has no name of a partition.
    fn of_all(&mut self, looks: &owner::Looks) -> fmt::Result {
        let sum = |count: fn(&Own) -> &AtomicU64| self.all.iter().map(|(_, own)| count(own).load(Relaxed)).sum();
        let (attempts, slow) = (sum(|own| &own.attempts_in_flight), sum(|own| &own.slow_attempts_in_flight));
        let history_lag = sum(|own| &own.history_lag);
        let owned = self.all.iter().filter(|(_, own)| own.is_owner.load(Relaxed)).count() as u64;
        let is_under_pressure = self.all.iter().any(|(_, own)| own.is_under_pressure.load(Relaxed));
        let behind = looks.iter().map(|(_, look)| look.unread + look.deferred).sum();
        self.number("partition_owned", "Partitions that this worker owns", owned)?;
        let help =
            "Entries that the partitions of this worker have not taken up yet: what decides how many workers it takes";
        self.number("partition_behind", help, behind)?;
        self.number("attempts_in_flight", "Attempts under way", attempts)?;
        let help = "Attempts under way to receivers that never answered, or keep Herald waiting";
        self.number("slow_attempts_in_flight", help, slow)?;
        let help = "1 while Redis has little memory left, else 0";
        self.number("redis_memory_pressure", help, u64::from(is_under_pressure))?;
        let help = "Lines of the log of attempts that the history has not read yet";
        self.number("history_lag_lines", help, history_lag)
    }

    fn number(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.encoder.encode_descriptor(name, &with_end(help), None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    /// Of several servers that of which there is most to fear.
    fn of_redis(&mut self, is_up: bool, evicted_keys: u64) -> fmt::Result {
        let help = with_end("Keys that Redis evicted since it started; one of them may have been an event");
        let evicted = self.encoder.encode_descriptor("redis_evicted_keys", &help, None, MetricType::Counter)?;
        ConstCounter::new(evicted_keys).encode(evicted)?;
        let states: Vec<RedisState> = self.all.iter().filter_map(|(_, own)| *lock(&own.redis)).collect();
        let mut gauge = |name, unit: Option<&Unit>, help, value: f64| {
            let metric = self.encoder.encode_descriptor(name, &with_end(help), unit, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)
        };
        let is = |holds: bool| f64::from(u8::from(holds));
        gauge("redis_up", None, "1 while Redis answers, else 0", is(is_up))?;
        // What is not known is not told: a server that is away has no state.
        let fullness = |state: &RedisState| match state.memory_limit_bytes {
            0 => (0, state.memory_used_bytes),
            limit => (state.memory_used_bytes.saturating_mul(1_000) / limit, state.memory_used_bytes),
        };
        let Some(fullest) = states.iter().max_by_key(|state| fullness(state)) else { return Ok(()) };
        let help = "1 while Redis' append-only file is on and its last write went well, else 0";
        gauge("redis_durable", None, help, is(states.iter().all(|state| state.is_durable)))?;
        let help = "1 while Redis evicts nothing, because of its policy or because it has no limit of memory, else 0";
        gauge("redis_noeviction", None, help, is(states.iter().all(|state| state.is_noeviction)))?;
        let used = fullest.memory_used_bytes as f64;
        gauge("redis_memory_used", Some(&Unit::Bytes), "Memory that Redis uses", used)?;
        let limit = fullest.memory_limit_bytes as f64;
        gauge("redis_memory_limit", Some(&Unit::Bytes), "Redis' maxmemory, 0 without one", limit)?;
        let help = "How far this machine's clock is ahead of Redis' clock";
        let offsets = states.iter().map(|state| state.clock_offset_ms);
        let furthest = offsets.max_by_key(|offset| offset.unsigned_abs()).unwrap_or_default();
        gauge("redis_clock_offset", Some(&Unit::Seconds), help, furthest as f64 / 1_000.0)
    }
}

/// No code panics with such a lock held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

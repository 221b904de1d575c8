//! The metrics of one worker, named by Prometheus' conventions: `herald_` first; then what is counted, as a noun; base
//! units last; counters end in `_total`, and a name never repeats what a label says. `docs/metrics.md` lists all of them.
//! Every counter exists from the start at 0, so that an alert on its rate sees the first event. Labels are resolved
//! once, when they are registered: counting is an atomic addition.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        exemplar::HistogramWithExemplars,
        family::Family,
        gauge::{ConstGauge, Gauge},
        info::Info,
    },
    registry::{Registry, Unit},
};

use super::{
    calls, certificates,
    exposition::{Format, Page},
    logging,
    owner::{Look, Owner, with_end},
    process,
    readiness::Readiness,
    requests, traces,
};
use crate::{
    clock,
    facts::{
        event::NoveltyKind,
        outcome::{LocalCause, Outcome},
        quota::Quota,
        retry::DeadReason,
        trace::TraceId,
    },
};

/// Seconds, from a receiver next door to the longest attempt that can be configured.
const ATTEMPT_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 120.0];

/// Seconds, fine around the goals (p50 1.5 ms, p99 8 ms), coarse where there is a backlog.
const FIRST_ATTEMPT_BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0015, 0.002, 0.004, 0.008, 0.015, 0.03, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0, 86_400.0];

/// Seconds, from a receiver that takes all at once to one that was down for days.
const DELIVERY_BUCKETS: [f64; 17] = [
    0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 21_600.0, 86_400.0,
    259_200.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TraceLabel {
    trace_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QuotaLabel {
    quota: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// What became of an entry of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Each of its deliveries is made, or has a record of its own.
    Dispatched,
    NoEndpoint,
    Quarantined,
    /// Its body was trimmed while it was pending.
    Trimmed,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    Delivered,
    DeadLetter,
    SkippedDisabled,
}

/// Why a dead letter went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    Redelivered,
    Discarded,
    Expired,
}

/// Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Arc<Registry>,
    owner: Owner,
    server: RedisGauges,
    entries_read: Counter,
    /// In the order of [`Settled`]'s variants.
    entries_settled: [Counter; SETTLED.len()],
    entries_claimed: Counter,
    quarantine_dropped: Counter,
    /// In the order of [`NoveltyKind::ALL`], which is that of its variants.
    novel_events: [Counter; NoveltyKind::ALL.len()],
    first_attempt_delay: Durations,
    delivery_duration: Durations,
    /// Of those that delivered, and of the others.
    attempt_duration: [Durations; 2],
    /// By [`outcome_slot`].
    attempts: [Counter; OUTCOMES.len()],
    attempts_in_flight: Number,
    slow_attempts_in_flight: Number,
    requests_resent: Counter,
    /// In the order of [`Finished`]'s variants.
    deliveries_finished: [Counter; FINISHED.len()],
    /// In the order of [`DeadReason::ALL`], which is that of its variants.
    dead_letters_added: [Counter; DeadReason::ALL.len()],
    /// In the order of [`Removed`]'s variants.
    dead_letters_removed: [Counter; REMOVED.len()],
    /// In the order of [`Quota::ALL`], which is that of its variants.
    quota_refusals: [Counter; Quota::ALL.len()],
    partition_owner: Number,
    route_lag: Gauge<f64, AtomicU64>,
    route_gaps: Counter,
    lease_terms: Counter,
    items_set_aside: Counter,
    memory_pressure: Number,
    history_up: Number,
    history_lag: Number,
    history_rows: Counter,
    history_missed: Counter,
    history_failures: Counter,
}

/// Seconds, some of them with the sampled trace that they are of. Only OpenMetrics shows which.
type Durations = HistogramWithExemplars<TraceLabel>;

/// A whole number that goes up and down.
type Number = Gauge<u64, AtomicU64>;

const SETTLED: [&str; 4] = ["dispatched", "no_endpoint", "quarantined", "trimmed"];
const FINISHED: [&str; 3] = ["delivered", "dead_letter", "skipped_disabled"];
const REMOVED: [&str; 3] = ["redelivered", "discarded", "expired"];

impl Metrics {
    /// Of a worker on the partition of this name.
    pub fn new(partition: &str, readiness: Readiness) -> Self {
        let mut registry = Registry::with_prefix("herald");
        let (owner, server) = (Owner::default(), RedisGauges::default());
        let r = &mut registry;
        let p = of_partition(r, partition);
        owner.register(p);
        let entries_read = counter(p, "entries_read", "Entries read from the stream, after a take-over once more");
        let entries_settled = by_label(
            p,
            "entries_settled",
            "Entries that were dealt with, by what became of them",
            SETTLED.map(|result| ResultLabel { result }),
        );
        let entries_claimed = counter(p, "entries_claimed", "Entries taken over from other consumers of the group");
        let quarantine_dropped =
            counter(p, "quarantine_entries_dropped", "Entries that the quarantine's limit dropped from it");
        let partition_owner = number(p, "partition_owner", "1 while this worker owns the partition, else 0");
        let route_lag = Gauge::<f64, AtomicU64>::default();
        p.register_with_unit(
            "route_lag",
            "How long the oldest entry waits that a routed stream has not passed on to all its parts",
            Unit::Seconds,
            route_lag.clone(),
        );
        let route_gaps =
            counter(p, "route_gap", "Times that a routed stream had no more what one of its parts had not taken yet");
        let lease_terms = counter(p, "lease_terms", "Terms that this worker began as the partition's owner");
        let items_set_aside = counter(
            p,
            "items_set_aside",
            "Changes that Redis refused, records that cannot be read and jobs that failed: they are tried again",
        );
        let novel_events = by_label(
            r,
            "novel_events",
            "Events in which something was new to this Herald, by what",
            NoveltyKind::ALL.map(|kind| KindLabel { kind: kind.name() }),
        );
        let first_attempt_delay = seconds(
            r,
            "first_attempt_delay",
            "From an entry's XADD to the start of a delivery's first attempt",
            FIRST_ATTEMPT_BUCKETS,
        );
        let delivery_duration = seconds(
            r,
            "delivery_duration",
            "From an entry's XADD to the receiver's yes, all retries included",
            DELIVERY_BUCKETS,
        );
        let attempt_duration = by_result(r);
        let attempts = by_label(
            r,
            "attempts",
            "Attempts that ended, by their outcome",
            OUTCOMES.map(|outcome| OutcomeLabel { outcome }),
        );
        let attempts_in_flight = number(r, "attempts_in_flight", "Attempts under way");
        let slow_attempts_in_flight = number(
            r,
            "slow_attempts_in_flight",
            "Attempts under way to receivers that never answered, or keep Herald waiting",
        );
        let requests_resent = counter(
            r,
            "requests_resent",
            "Requests sent a second time within their attempt: the receiver had certainly not processed the first",
        );
        let deliveries_finished = by_label(
            r,
            "deliveries_finished",
            "Deliveries that came to their end, by how",
            FINISHED.map(|result| ResultLabel { result }),
        );
        let dead_letters_added = by_label(
            r,
            "dead_letters_added",
            "Deliveries given up, by the reason",
            DeadReason::ALL.map(|reason| ReasonLabel { reason: reason.name() }),
        );
        let dead_letters_removed = by_label(
            r,
            "dead_letters_removed",
            "Dead letters that went, by the cause",
            REMOVED.map(|cause| CauseLabel { cause }),
        );
        let quota_refusals = by_label(
            r,
            "quota_refusals",
            "Times that a quota refused more: an endpoint is paused because it, or its account, has too much in Redis",
            Quota::ALL.map(|quota| QuotaLabel { quota: quota.name() }),
        );
        let memory_pressure = number(r, "redis_memory_pressure", "1 while Redis has little memory left, else 0");
        let history_up = number(r, "history_up", "1 while the history of deliveries is written or looked on, else 0");
        let history_lag =
            number(r, "history_lag_lines", "Lines of the log of attempts that the history has not read yet");
        let history_rows =
            counter(r, "history_rows_written", "Attempts and ends that this process wrote to the history");
        let history_missed = counter(
            r,
            "history_lines_missed",
            "Lines that the history misses, because they were dropped before it read them or cannot be read",
        );
        let history_failures =
            counter(r, "history_failures", "Failures of the history's database, or of reading for it");
        r.register_collector(Box::new(server.clone()));
        r.register_collector(Box::new(Ready(readiness)));
        Self(Arc::new(Inner {
            registry: Arc::new(registry),
            owner,
            server,
            entries_read,
            entries_settled,
            entries_claimed,
            quarantine_dropped,
            novel_events,
            first_attempt_delay,
            delivery_duration,
            attempt_duration,
            attempts,
            attempts_in_flight,
            slow_attempts_in_flight,
            requests_resent,
            deliveries_finished,
            dead_letters_added,
            dead_letters_removed,
            quota_refusals,
            partition_owner,
            route_lag,
            route_gaps,
            lease_terms,
            items_set_aside,
            memory_pressure,
            history_up,
            history_lag,
            history_rows,
            history_missed,
            history_failures,
        }))
    }

    pub fn set_history_up(&self, is_up: bool) {
        self.0.history_up.set(u64::from(is_up));
    }

    pub fn set_history_lag(&self, lines: u64) {
        self.0.history_lag.set(lines);
    }

    pub fn history_written(&self, rows: u64) {
        self.0.history_rows.inc_by(rows);
    }

    pub fn history_missed(&self, lines: u64) {
        self.0.history_missed.inc_by(lines);
    }

    pub fn history_failed(&self) {
        self.0.history_failures.inc();
    }

    /// All metrics, as a scraper wants them.
    pub fn encode(&self, format: Format) -> String {
        self.page().encode(format)
    }

    pub fn page(&self) -> Page {
        Page::of(Arc::clone(&self.0.registry)).and(page_of_process())
    }

    pub fn entries_read(&self, count: u64) {
        self.0.entries_read.inc_by(count);
    }

    pub fn entries_settled(&self, how: Settled, count: u64) {
        self.0.entries_settled[how as usize].inc_by(count);
    }

    pub fn entries_claimed(&self, count: u64) {
        self.0.entries_claimed.inc_by(count);
    }

    /// The limit of the quarantine has dropped this many more.
    pub fn quarantine_dropped(&self, count: u64) {
        self.0.quarantine_dropped.inc_by(count);
    }

    pub fn novel_event(&self, kind: NoveltyKind) {
        self.0.novel_events[kind as usize].inc();
    }

    /// A delivery's first attempt started `after` its entry was added.
    pub fn first_attempt_started(&self, after: Duration, trace: Option<TraceId>) {
        observe(&self.0.first_attempt_delay, after, trace);
    }

    /// A receiver has said yes `after` the entry was added.
    pub fn delivered(&self, after: Duration, trace: Option<TraceId>) {
        observe(&self.0.delivery_duration, after, trace);
    }

    /// An attempt has ended. `took` is from its start to its end.
    pub fn attempt_ended(&self, outcome: &Outcome, took: Duration, trace: Option<TraceId>) {
        self.0.attempts[outcome_slot(outcome)].inc();
        observe(&self.0.attempt_duration[usize::from(!outcome.is_delivered())], took, trace);
    }

    /// This many attempts are under way, and this many of them are slow ones.
    pub fn set_in_flight(&self, attempts: u64, slow: u64) {
        self.0.attempts_in_flight.set(attempts);
        self.0.slow_attempts_in_flight.set(slow);
    }

    /// A request was sent a second time within its attempt.
    pub fn request_resent(&self) {
        self.0.requests_resent.inc();
    }

    pub fn deliveries_finished(&self, how: Finished, count: u64) {
        self.0.deliveries_finished[how as usize].inc_by(count);
    }

    pub fn dead_letter_added(&self, reason: DeadReason) {
        self.0.dead_letters_added[reason as usize].inc();
    }

    pub fn dead_letters_removed(&self, why: Removed, count: u64) {
        self.0.dead_letters_removed[why as usize].inc_by(count);
    }

    /// An endpoint is to be paused because of what it, or its account, has in Redis.
    pub fn quota_refusal(&self, quota: Quota) {
        self.0.quota_refusals[quota as usize].inc();
    }

    pub fn set_route_lag(&self, lag: Duration) {
        self.0.route_lag.set(lag.as_secs_f64());
    }

    pub fn route_gap(&self) {
        self.0.route_gaps.inc();
    }

    /// This worker became the owner.
    pub fn term_began(&self) {
        self.0.lease_terms.inc();
        self.0.partition_owner.set(1);
    }

    /// As the owner. A look that comes after the end of its term must not be told.
    pub fn owner_sees(&self, look: Look) {
        self.0.owner.sees(look);
    }

    /// This worker is no longer the owner, whether it lost the lease or gave it back.
    pub fn term_ended(&self) {
        self.0.partition_owner.set(0);
        self.0.owner.ends();
    }

    pub fn item_set_aside(&self) {
        self.0.items_set_aside.inc();
    }

    pub fn set_memory_pressure(&self, is_under_pressure: bool) {
        self.0.memory_pressure.set(u64::from(is_under_pressure));
    }

    /// What Redis says of itself; None while it does not answer.
    pub fn redis_says(&self, state: Option<RedisState>) {
        self.0.server.set(state);
    }
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

#[derive(Debug, Clone, Default)]
struct RedisGauges(Arc<RedisSeen>);

#[derive(Debug, Default)]
struct RedisSeen {
    is_up: AtomicBool,
    evicted_keys: AtomicU64,
    state: Mutex<Option<RedisState>>,
}

impl RedisGauges {
    fn set(&self, state: Option<RedisState>) {
        self.0.is_up.store(state.is_some(), Ordering::Relaxed);
        if let Some(state) = state {
            self.0.evicted_keys.store(state.evicted_keys, Ordering::Relaxed);
        }
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl Collector for RedisGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = *self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let help = with_end("Keys that Redis evicted since it started; one of them may have been an event");
        let evicted = encoder.encode_descriptor("redis_evicted_keys", &help, None, MetricType::Counter)?;
        ConstCounter::new(self.0.evicted_keys.load(Ordering::Relaxed)).encode(evicted)?;
        let mut gauge = |name, unit: Option<&Unit>, help, value: f64| {
            let metric = encoder.encode_descriptor(name, &with_end(help), unit, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)
        };
        let is = |holds: bool| f64::from(u8::from(holds));
        let is_up = self.0.is_up.load(Ordering::Relaxed);
        gauge("redis_up", None, "1 while Redis answers, else 0", is(is_up))?;
        // What is not known is not told: a server that is away has no state.
        let Some(state) = state else { return Ok(()) };
        let help = "1 while Redis' append-only file is on and its last write went well, else 0";
        gauge("redis_durable", None, help, is(state.is_durable))?;
        let help = "1 while Redis evicts nothing, because of its policy or because it has no limit of memory, else 0";
        gauge("redis_noeviction", None, help, is(state.is_noeviction))?;
        let used = state.memory_used_bytes as f64;
        gauge("redis_memory_used", Some(&Unit::Bytes), "Memory that Redis uses", used)?;
        let limit = state.memory_limit_bytes as f64;
        gauge("redis_memory_limit", Some(&Unit::Bytes), "Redis' maxmemory, 0 without one", limit)?;
        let help = "How far this machine's clock is ahead of Redis' clock";
        gauge("redis_clock_offset", Some(&Unit::Seconds), help, state.clock_offset_ms as f64 / 1_000.0)
    }
}

/// What `/readyz` says.
#[derive(Debug)]
struct Ready(Readiness);

impl Collector for Ready {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = with_end("1 while /readyz says so, else 0");
        let metric = encoder.encode_descriptor("ready", &help, None, MetricType::Gauge)?;
        ConstGauge::new(u64::from(self.0.verdict(clock::now()).is_ok())).encode(metric)
    }
}

/// What every process tells of itself, with no worker in it.
pub fn page_of_process() -> Page {
    let mut registry = Registry::with_prefix("herald");
    registry.register("build", "1, with what is known of how this program was built", Info::new(build()));
    logging::register(&mut registry);
    traces::register(&mut registry);
    calls::register(&mut registry);
    certificates::register(&mut registry);
    requests::register(&mut registry);
    Page::of(Arc::new(registry)).and(Page::of(Arc::new(process::registry())))
}

/// What is known about how this program was built; `build.rs` finds it out. What is not known has no label.
fn build() -> Vec<(&'static str, &'static str)> {
    let known = [
        ("version", Some(env!("CARGO_PKG_VERSION"))),
        ("revision", option_env!("BUILD_REVISION")),
        ("rustc", option_env!("BUILD_RUSTC")),
    ];
    known.into_iter().filter_map(|(label, value)| Some((label, value?))).collect()
}

/// For what is of one partition: every metric in it has the label.
fn of_partition<'a>(registry: &'a mut Registry, partition: &str) -> &'a mut Registry {
    registry.sub_registry_with_label(("partition".into(), partition.to_owned().into()))
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn number(registry: &mut Registry, name: &str, help: &str) -> Number {
    let number = Number::default();
    registry.register(name, help, number.clone());
    number
}

/// With its trace, where that is sampled.
fn observe(durations: &Durations, duration: Duration, trace: Option<TraceId>) {
    durations.observe(duration.as_secs_f64(), trace.map(|trace| TraceLabel { trace_id: trace.to_string() }), None);
}

fn seconds<const N: usize>(registry: &mut Registry, name: &str, help: &str, buckets: [f64; N]) -> Durations {
    let histogram = Durations::new(buckets.into_iter());
    registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    histogram
}

/// Attempts that delivered, and the others.
fn by_result(registry: &mut Registry) -> [Durations; 2] {
    let buckets = || Durations::new(ATTEMPT_BUCKETS.into_iter());
    let family = Family::<ResultLabel, Durations>::new_with_constructor(buckets);
    registry.register_with_unit("attempt_duration", "Whole attempts, start to end", Unit::Seconds, family.clone());
    ["delivered", "failed"].map(|result| family.get_or_create_owned(&ResultLabel { result }))
}

fn by_label<L, const N: usize>(registry: &mut Registry, name: &str, help: &str, labels: [L; N]) -> [Counter; N]
where
    L: EncodeLabelSet + Clone + fmt::Debug + std::hash::Hash + Eq + Send + Sync + 'static,
{
    let family = Family::<L, Counter>::default();
    registry.register(name, help, family.clone());
    labels.map(|label| family.get_or_create_owned(&label))
}

/// The names of all outcomes, by [`outcome_slot`].
const OUTCOMES: [&str; 19] = [
    "delivered",
    "redirected",
    "gone",
    "throttled",
    "rejected",
    "server_failed",
    "dns_failed",
    "connect_failed",
    "connect_timed_out",
    "tls_failed",
    "response_timed_out",
    "reset",
    "garbled",
    "address_refused",
    "unsendable",
    "local_descriptors",
    "local_lookups",
    "local_lag",
    "proxy_failed",
];

fn outcome_slot(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Delivered { .. } => 0,
        Outcome::Redirected { .. } => 1,
        Outcome::Gone => 2,
        Outcome::Throttled { .. } => 3,
        Outcome::Rejected { .. } => 4,
        Outcome::ServerFailed { .. } => 5,
        Outcome::DnsFailed => 6,
        Outcome::ConnectFailed => 7,
        Outcome::ConnectTimedOut => 8,
        Outcome::Tls { .. } => 9,
        Outcome::ResponseTimedOut => 10,
        Outcome::Reset => 11,
        Outcome::Garbled => 12,
        Outcome::AddressRefused => 13,
        Outcome::Unsendable => 14,
        Outcome::Local { cause: LocalCause::Descriptors } => 15,
        Outcome::Local { cause: LocalCause::Lookups } => 16,
        Outcome::Local { cause: LocalCause::Lag } => 17,
        Outcome::ProxyFailed => 18,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::{id::EntryId, outcome::TlsFailure},
        telemetry::owner::{Breakers, Stopped},
    };

    fn metrics() -> Metrics {
        Metrics::new("payment-intents", Readiness::new())
    }

    fn has(page: &str, line: &str) {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }

    fn lacks(page: &str, name: &str) {
        assert!(!page.contains(name), "{name} is in\n{page}");
    }

    #[test]
    fn every_outcome_and_every_reason_is_counted_under_its_own_name() {
        let all = [
            Outcome::Delivered { status: 200 },
            Outcome::Redirected { status: 301 },
            Outcome::Gone,
            Outcome::Throttled { status: 429, retry_after: None },
            Outcome::Rejected { status: 400 },
            Outcome::ServerFailed { status: 500 },
            Outcome::DnsFailed,
            Outcome::ConnectFailed,
            Outcome::ConnectTimedOut,
            Outcome::Tls { failure: TlsFailure::Expired },
            Outcome::ResponseTimedOut,
            Outcome::Reset,
            Outcome::Garbled,
            Outcome::AddressRefused,
            Outcome::Unsendable,
            Outcome::Local { cause: LocalCause::Descriptors },
            Outcome::Local { cause: LocalCause::Lookups },
            Outcome::Local { cause: LocalCause::Lag },
            Outcome::ProxyFailed,
        ];
        let slots: Vec<_> = all.iter().map(|outcome| (outcome_slot(outcome), outcome.name())).collect();
        let expected: Vec<_> = OUTCOMES.into_iter().enumerate().collect();
        assert_eq!(slots, expected);
        let reasons: Vec<_> = DeadReason::ALL.iter().map(|reason| *reason as usize).collect();
        assert_eq!(reasons, Vec::from_iter(0..DeadReason::ALL.len()));
        let kinds: Vec<_> = NoveltyKind::ALL.iter().map(|kind| *kind as usize).collect();
        assert_eq!(kinds, Vec::from_iter(0..NoveltyKind::ALL.len()));
    }

    #[test]
    fn every_counter_is_there_from_the_start() {
        let page = metrics().encode(Format::Text);
        for line in [
            "herald_entries_read_total{partition=\"payment-intents\"} 0",
            "herald_entries_settled_total{partition=\"payment-intents\",result=\"dispatched\"} 0",
            "herald_entries_settled_total{partition=\"payment-intents\",result=\"trimmed\"} 0",
            "herald_entries_claimed_total{partition=\"payment-intents\"} 0",
            "herald_quarantine_entries_dropped_total{partition=\"payment-intents\"} 0",
            "herald_novel_events_total{kind=\"payment_status\"} 0",
            "herald_first_attempt_delay_seconds_bucket{le=\"0.0015\"} 0",
            "herald_delivery_duration_seconds_bucket{le=\"259200.0\"} 0",
            "herald_attempt_duration_seconds_count{result=\"failed\"} 0",
            "herald_attempts_total{outcome=\"unsendable\"} 0",
            "herald_attempts_in_flight 0",
            "herald_deliveries_finished_total{result=\"skipped_disabled\"} 0",
            "herald_dead_letters_added_total{reason=\"exhausted\"} 0",
            "herald_dead_letters_removed_total{cause=\"expired\"} 0",
            "herald_quota_refusals_total{quota=\"endpoint_bytes\"} 0",
            "herald_partition_owner{partition=\"payment-intents\"} 0",
            "herald_lease_terms_total{partition=\"payment-intents\"} 0",
            "herald_items_set_aside_total{partition=\"payment-intents\"} 0",
            "herald_redis_up 0.0",
            "herald_redis_evicted_keys_total 0",
            "herald_ready 0",
            "herald_history_failures_total 0",
        ] {
            has(&page, line);
        }
        for name in ["herald_redis_errors_total{kind=\"moved\"} ", "herald_log_lines_total{level=\"warn\"} "] {
            assert!(page.lines().any(|line| line.starts_with(name)), "{name} is not in\n{page}");
        }
        assert!(page.contains("herald_redis_call_duration_seconds_count{call=\"settle\"} "));
        assert!(page.contains("\nprocess_open_fds ") && page.contains("\nprocess_cpu_seconds_total "), "{page}");
    }

    #[test]
    fn what_a_server_says_that_is_away_is_not_told() {
        let metrics = metrics();
        let state = RedisState { memory_used_bytes: 7, evicted_keys: 3, clock_offset_ms: -1_500, ..Default::default() };
        metrics.redis_says(Some(state));
        let page = metrics.encode(Format::Text);
        for line in [
            "herald_redis_up 1.0",
            "herald_redis_durable 0.0",
            "herald_redis_memory_used_bytes 7.0",
            "herald_redis_memory_limit_bytes 0.0",
            "herald_redis_clock_offset_seconds -1.5",
            "herald_redis_evicted_keys_total 3",
        ] {
            has(&page, line);
        }
        metrics.redis_says(None);
        let page = metrics.encode(Format::Text);
        has(&page, "herald_redis_up 0.0");
        has(&page, "herald_redis_evicted_keys_total 3");
        for name in ["redis_durable", "redis_noeviction", "redis_memory_used", "redis_memory_limit", "redis_clock"] {
            lacks(&page, name);
        }
    }

    fn look() -> Look {
        Look {
            at: clock::now(),
            redis_ms: 1_700_000_100_000,
            stream_entries: 9,
            unread: 5,
            oldest_unread: Some(EntryId { ms: 1_700_000_040_000, seq: 0 }),
            pending: 1,
            trimmed_unread: 0,
            deferred: 0,
            foreign_lag_ms: 0,
            due: 2,
            held: 3,
            parked: 4,
            first_due_ms: Some(1_700_000_130_000),
            oldest_unfinished: Some(EntryId { ms: 7, seq: 0 }),
            record_bytes: 0,
            dead: 6,
            dead_limit: 100,
            oldest_dead_ms: None,
            quarantined: 0,
            breakers: Breakers { closed: 1, half_open: 0, open: 2 },
            endpoints_over_quota: 0,
            stopped: Stopped { paused: true, ..Stopped::default() },
        }
    }

    fn value(page: &str, series: &str) -> f64 {
        page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok()).unwrap()
    }

    #[test]
    fn what_the_owner_sees_goes_with_its_term_and_ages_grow_without_it() {
        let metrics = metrics();
        let of = |name: &str| format!("herald_{name}{{partition=\"payment-intents\"}}");
        for name in ["stream_lag", "deliveries_waiting", "breakers", "reading_stopped"] {
            lacks(&metrics.encode(Format::Text), name);
        }
        metrics.term_began();
        metrics.owner_sees(look());
        let page = metrics.encode(Format::Text);
        assert!((60.0..90.0).contains(&value(&page, &of("stream_lag_seconds"))));
        assert_eq!(value(&page, &of("deliveries_overdue_seconds")), 0.0, "it is due in half a minute");
        assert_eq!(value(&page, &of("deliveries_oldest_age_seconds")), 0.0, "such an id is no time");
        assert_eq!(value(&page, &of("stream_lag_entries")), 5.0);
        has(&page, "herald_deliveries_waiting{partition=\"payment-intents\",state=\"held\"} 3");
        has(&page, "herald_breakers{partition=\"payment-intents\",state=\"open\"} 2");
        has(&page, "herald_reading_stopped{partition=\"payment-intents\",cause=\"paused\"} 1");
        has(&page, "herald_reading_stopped{partition=\"payment-intents\",cause=\"redis_full\"} 0");
        // The worker hangs: nobody looks for a minute and a half.
        let past = clock::now().checked_sub(Duration::from_secs(90)).unwrap();
        metrics.owner_sees(Look { at: past, ..look() });
        let page = metrics.encode(Format::Text);
        assert!(value(&page, &of("stream_lag_seconds")) >= 150.0);
        assert!(value(&page, &of("deliveries_overdue_seconds")) >= 60.0);
        metrics.term_ended();
        let page = metrics.encode(Format::Text);
        for name in ["stream_lag", "deliveries_waiting", "breakers", "reading_stopped"] {
            lacks(&page, name);
        }
        assert_eq!(value(&page, &of("partition_owner")), 0.0);
    }

    #[test]
    fn both_formats_hold_the_same_values() {
        let metrics = metrics();
        metrics.term_began();
        metrics.owner_sees(Look { oldest_unread: None, first_due_ms: None, ..look() });
        metrics.redis_says(Some(RedisState::default()));
        metrics.attempt_ended(&Outcome::Gone, Duration::from_millis(3), None);
        let values = |format| {
            let page = metrics.encode(format);
            let is_steady = |line: &&str| !line.starts_with(['#']) && !line.starts_with("process_");
            page.lines().filter(is_steady).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(values(Format::Text), values(Format::OpenMetrics));
        assert!(metrics.encode(Format::OpenMetrics).contains("# UNIT herald_stream_lag_seconds seconds\n"));
        assert!(metrics.encode(Format::Text).contains("# TYPE process_cpu_seconds_total counter\n"));
    }

    #[test]
    fn a_build_says_its_version_and_whatever_else_is_known_of_it() {
        let page = metrics().encode(Format::Text);
        let line = page.lines().find(|line| line.starts_with("herald_build_info{")).unwrap();
        assert!(line.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{line}");
        assert!(line.ends_with("} 1") && !line.contains("\"\""), "{line}");
    }

    #[test]
    fn a_sampled_trace_is_named_where_the_format_has_a_place_for_it() {
        let (metrics, trace) = (metrics(), Some(TraceId([0xab; 16])));
        metrics.attempt_ended(&Outcome::Gone, Duration::from_millis(3), trace);
        metrics.first_attempt_started(Duration::from_millis(1), trace);
        metrics.delivered(Duration::from_secs(1_000_000), trace);
        metrics.delivered(Duration::from_secs(2), None);
        let named = format!(" # {{trace_id=\"{}\"}} ", "ab".repeat(16));
        let page = metrics.encode(Format::OpenMetrics);
        let lines: Vec<&str> = page.lines().filter(|line| line.contains(&named)).collect();
        let [first, delivered, failed] = &lines[..] else { panic!("{lines:#?}") };
        assert!(first.starts_with("herald_first_attempt_delay_seconds_bucket{le=\"0.001\"} 1 # "), "{first}");
        assert!(delivered.starts_with("herald_delivery_duration_seconds_bucket{le=\"+Inf\"} 2 # "), "{delivered}");
        assert!(failed.starts_with("herald_attempt_duration_seconds_bucket{le=\"0.005\",result=\"failed\"} 1 # "));
        let values = |page: &str| -> Vec<String> {
            let is_steady = |line: &&str| !line.starts_with('#') && !line.starts_with("process_");
            page.lines()
                .filter(is_steady)
                .map(|line| line.replace(&named, "\n").lines().next().unwrap().to_owned())
                .collect()
        };
        let text = metrics.encode(Format::Text);
        assert!(!text.contains("trace_id"), "the older text has no place for it");
        assert_eq!(values(&page), values(&text));
    }

    #[test]
    fn clones_count_together() {
        let metrics = metrics();
        let clone = metrics.clone();
        clone.attempt_ended(&Outcome::Gone, Duration::from_millis(3), None);
        clone.attempt_ended(&Outcome::Delivered { status: 200 }, Duration::from_millis(9), None);
        clone.first_attempt_started(Duration::from_millis(1), None);
        clone.delivered(Duration::from_secs(100_000), None);
        clone.dead_letter_added(DeadReason::Gone);
        clone.dead_letters_removed(Removed::Discarded, 2);
        clone.entries_settled(Settled::NoEndpoint, 4);
        clone.deliveries_finished(Finished::DeadLetter, 1);
        clone.term_began();
        let page = metrics.encode(Format::OpenMetrics);
        for line in [
            "herald_attempts_total{outcome=\"gone\"} 1",
            "herald_attempt_duration_seconds_sum{result=\"failed\"} 0.003",
            "herald_attempt_duration_seconds_bucket{le=\"0.005\",result=\"failed\"} 1",
            "herald_attempt_duration_seconds_count{result=\"delivered\"} 1",
            "herald_first_attempt_delay_seconds_count 1",
            "herald_delivery_duration_seconds_bucket{le=\"86400.0\"} 0",
            "herald_delivery_duration_seconds_bucket{le=\"259200.0\"} 1",
            "herald_dead_letters_added_total{reason=\"gone\"} 1",
            "herald_dead_letters_removed_total{cause=\"discarded\"} 2",
            "herald_entries_settled_total{partition=\"payment-intents\",result=\"no_endpoint\"} 4",
            "herald_deliveries_finished_total{result=\"dead_letter\"} 1",
            "herald_partition_owner{partition=\"payment-intents\"} 1",
        ] {
            has(&page, line);
        }
    }
}

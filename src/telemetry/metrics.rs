//! The metrics of one worker, named by Prometheus' conventions: `herald_` first; then what is counted, as a noun; base
//! units last; counters end in `_total`, and a name never repeats what a label says. `docs/metrics.md` lists all of them.
//! Every counter exists from the start at 0, so that an alert on its rate sees the first event. Labels are resolved
//! once, when they are registered: counting is an atomic addition.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::Counter,
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
    owner::with_end,
    partitions::{PartitionMetrics, Partitions},
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

/// How a partition of a split stream changed hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandedOver {
    /// Its owner gave it to this worker.
    Given,
    /// Nobody had it, and this worker took it.
    TakenOver,
    /// This worker did not keep its lease.
    Lost,
}

/// Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Arc<Registry>,
    partitions: Partitions,
    /// In the order of [`NoveltyKind::ALL`], which is that of its variants.
    novel_events: [Counter; NoveltyKind::ALL.len()],
    first_attempt_delay: Durations,
    delivery_duration: Durations,
    /// Of those that delivered, and of the others.
    attempt_duration: [Durations; 2],
    /// By [`outcome_slot`].
    attempts: [Counter; OUTCOMES.len()],
    requests_resent: Counter,
    /// In the order of [`Finished`]'s variants.
    deliveries_finished: [Counter; FINISHED.len()],
    /// In the order of [`DeadReason::ALL`], which is that of its variants.
    dead_letters_added: [Counter; DeadReason::ALL.len()],
    /// In the order of [`Removed`]'s variants.
    dead_letters_removed: [Counter; REMOVED.len()],
    /// In the order of [`Quota::ALL`], which is that of its variants.
    quota_refusals: [Counter; Quota::ALL.len()],
    /// In the order of [`HandedOver`]'s variants.
    handovers: [Counter; HANDED_OVER.len()],
    workers: Number,
    history_up: Number,
    history_rows: Counter,
    history_missed: Counter,
    history_failures: Counter,
}

/// Seconds, some of them with the sampled trace that they are of. Only OpenMetrics shows which.
type Durations = HistogramWithExemplars<TraceLabel>;

/// A whole number that goes up and down.
type Number = Gauge<u64, AtomicU64>;

pub(super) const SETTLED: [&str; 4] = ["dispatched", "no_endpoint", "quarantined", "trimmed"];
const FINISHED: [&str; 3] = ["delivered", "dead_letter", "skipped_disabled"];
const REMOVED: [&str; 3] = ["redelivered", "discarded", "expired"];
const HANDED_OVER: [&str; 3] = ["given", "taken_over", "lost"];

impl Metrics {
    /// Of a worker with any number of partitions.
    pub fn new(readiness: Readiness) -> Self {
        let mut registry = Registry::with_prefix("herald");
        let partitions = Partitions::new(readiness.clone());
        let r = &mut registry;
        let novel_events = by_label(
            r,
            "novel_events",
            "Events in which something was not what this Herald expects, by what",
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
        let handovers = by_label(
            r,
            "handovers",
            "Partitions that this worker got from others or lost, by how",
            HANDED_OVER.map(|reason| ReasonLabel { reason }),
        );
        let help = "Live workers that share the stream, this one among them, as it last heard; 0 until it has heard";
        let workers = number(r, "workers", help);
        let history_up = number(r, "history_up", "1 while the history of deliveries is written or looked on, else 0");
        let history_rows =
            counter(r, "history_rows_written", "Attempts and ends that this process wrote to the history");
        let history_missed = counter(
            r,
            "history_lines_missed",
            "Lines that the history misses, because they were dropped before it read them or cannot be read",
        );
        let history_failures =
            counter(r, "history_failures", "Failures of the history's database, or of reading for it");
        r.register_collector(Box::new(partitions.clone()));
        r.register_collector(Box::new(Ready(readiness)));
        Self(Arc::new(Inner {
            registry: Arc::new(registry),
            partitions,
            novel_events,
            first_attempt_delay,
            delivery_duration,
            attempt_duration,
            attempts,
            requests_resent,
            deliveries_finished,
            dead_letters_added,
            dead_letters_removed,
            quota_refusals,
            handovers,
            workers,
            history_up,
            history_rows,
            history_missed,
            history_failures,
        }))
    }

    pub fn set_history_up(&self, is_up: bool) {
        self.0.history_up.set(u64::from(is_up));
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

    /// For what is of this partition, which is on the page as long as somebody holds what is returned.
    pub fn partition(&self, name: &str) -> PartitionMetrics {
        PartitionMetrics::new(self.clone(), self.0.partitions.of(name))
    }

    pub(super) fn partitions(&self) -> &Partitions {
        &self.0.partitions
    }

    pub fn handed_over(&self, how: HandedOver) {
        self.0.handovers[how as usize].inc();
    }

    /// So many live workers share the stream.
    pub fn set_workers(&self, count: u64) {
        self.0.workers.set(count);
    }

    /// Partitions that, as this worker hears, nobody works on or waits for.
    pub fn set_orphans<'a>(&self, orphans: impl Iterator<Item = &'a str>) {
        self.0.partitions.set_orphans(orphans);
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
        telemetry::{
            owner::{Breakers, Look, Stopped},
            partitions::RedisState,
        },
    };

    fn metrics() -> PartitionMetrics {
        Metrics::new(Readiness::new()).partition("payment-intents")
    }

    #[test]
    fn partitions_are_told_apart_and_what_has_no_name_is_their_sum() {
        let process = Metrics::new(Readiness::new());
        let [one, two] = ["pay:0", "pay:1"].map(|name| process.partition(name));
        one.entries_read(3);
        two.entries_read(4);
        one.set_in_flight(5, 1);
        two.set_in_flight(6, 0);
        for of in [&one, &two] {
            of.term_began();
            of.owner_sees(Look { deferred: 2, ..look() });
        }
        let used = |bytes| Some(RedisState { memory_used_bytes: bytes, memory_limit_bytes: 100, ..Default::default() });
        one.redis_says(used(90));
        two.redis_says(used(70));
        let page = process.encode(Format::Text);
        for line in [
            "herald_entries_read_total{partition=\"pay:0\"} 3",
            "herald_entries_read_total{partition=\"pay:1\"} 4",
            "herald_stream_lag_entries{partition=\"pay:1\"} 5.0",
            "herald_attempts_in_flight 11",
            "herald_slow_attempts_in_flight 1",
            "herald_partition_owned 2",
            "herald_partition_behind 14",
            "herald_redis_memory_used_bytes 90.0",
        ] {
            has(&page, line);
        }
        let described = page.lines().filter(|line| line.starts_with("# TYPE herald_entries_read_total ")).count();
        assert_eq!(described, 1, "however many partitions there are");
        two.term_ended();
        drop(one);
        let page = process.encode(Format::Text);
        lacks(&page, "pay:0");
        lacks(&page, "stream_lag");
        has(&page, "herald_partition_owned 0");
        has(&page, "herald_entries_read_total{partition=\"pay:1\"} 4");
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
            "herald_handovers_total{reason=\"given\"} 0",
            "herald_handovers_total{reason=\"lost\"} 0",
            "herald_workers 0",
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
        for name in [
            "herald_redis_errors_total{kind=\"try_again\"} ",
            "herald_replication_unconfirmed_total{kind=\"routed\"} ",
            "herald_log_lines_total{level=\"warn\"} ",
        ] {
            assert!(page.lines().any(|line| line.starts_with(name)), "{name} is not in\n{page}");
        }
        assert!(page.contains("herald_redis_call_duration_seconds_count{call=\"settle\"} "));
        assert!(page.contains("\nprocess_open_fds ") && page.contains("\nprocess_cpu_seconds_total "), "{page}");
    }

    #[test]
    fn what_a_server_says_that_is_away_is_not_told() {
        let readiness = Readiness::new();
        let metrics = Metrics::new(readiness.clone()).partition("payment-intents");
        let state = RedisState { memory_used_bytes: 7, evicted_keys: 3, clock_offset_ms: -1_500, ..Default::default() };
        readiness.set_redis(true);
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
        readiness.set_redis(false);
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
    fn a_partition_that_nobody_has_is_on_the_page_of_whoever_hears_so() {
        let metrics = Metrics::new(Readiness::new());
        lacks(&metrics.encode(Format::Text), "partition_owner");
        metrics.set_orphans(["pay:0", "pay:1"].into_iter());
        let own = metrics.partition("pay:0");
        own.term_began();
        let page = metrics.encode(Format::Text);
        has(&page, "herald_partition_owner{partition=\"pay:0\"} 1");
        has(&page, "herald_partition_owner{partition=\"pay:1\"} 0");
        has(&page, "herald_partition_owned 1");
        metrics.set_orphans([].into_iter());
        lacks(&metrics.encode(Format::Text), "pay:1");
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

//! The metrics of one worker, named by Prometheus' conventions: `herald_` first; then what is counted, as a noun; base
//! units last; counters end in `_total`, and a name never repeats what a label says. `docs/design.md` has the table of
//! all of them.
//! Every series exists from the start at 0, so that an alert on its rate sees the first event. Labels are resolved
//! once, when they are registered: counting is an atomic addition.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use super::{
    exposition::{Format, Page},
    logging,
};
use crate::facts::{
    event::NoveltyKind,
    outcome::{LocalCause, Outcome},
    quota::Quota,
    retry::DeadReason,
};

/// Seconds, from a receiver next door to the longest attempt that can be configured.
const ATTEMPT_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 120.0];

/// Seconds, fine around the goals (p50 1.5 ms, p99 8 ms), coarse where there is a backlog.
const FIRST_ATTEMPT_BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0015, 0.002, 0.004, 0.008, 0.015, 0.03, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0, 86_400.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QuotaLabel {
    quota: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Arc<Registry>,
    entries_read: Counter,
    entries_without_endpoint: Counter,
    entries_quarantined: Counter,
    quarantine_entries_dropped: Counter,
    foreign_entries_claimed: Counter,
    pending_entries_trimmed: Counter,
    trimmed_unread_entries: Number,
    stream_unread_entries: Number,
    deferred_entries: Number,
    foreign_group_lag: Number,
    /// In the order of [`NoveltyKind::ALL`], which is that of its variants.
    novel_events: [Counter; NoveltyKind::ALL.len()],
    xadd_to_first_attempt: Histogram,
    attempt_duration: Histogram,
    /// By [`outcome_slot`].
    attempts: [Counter; OUTCOMES.len()],
    attempts_in_flight: Number,
    slow_attempts_in_flight: Number,
    requests_resent: Counter,
    due_deliveries: Number,
    oldest_due_delivery_age: Number,
    held_deliveries: Number,
    parked_deliveries: Number,
    deliveries_skipped: Counter,
    /// In the order of [`DeadReason::ALL`], which is that of its variants.
    dead_letters: [Counter; DeadReason::ALL.len()],
    dead_letters_expired: Counter,
    dead_letters_kept: Number,
    endpoints_with_open_breaker: Number,
    endpoints_over_quota: Number,
    /// In the order of [`Quota::ALL`], which is that of its variants.
    quota_pauses: [Counter; Quota::ALL.len()],
    partition_owned: Number,
    lease_terms: Counter,
    items_set_aside: Counter,
    record_bytes: Number,
    redis_memory_pressure: Number,
    redis_errors: Counter,
    history_up: Number,
    history_lag: Number,
    history_rows: Counter,
    history_missed: Counter,
    history_failures: Counter,
}

/// A whole number that goes up and down.
type Number = Gauge<u64, AtomicU64>;

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = of_process();
        let r = &mut registry;
        let inner = Inner {
            entries_read: counter(r, "entries_read", "Entries taken from the stream"),
            entries_without_endpoint: counter(r, "entries_without_endpoint", "Entries whose account has no endpoint"),
            entries_quarantined: counter(
                r,
                "entries_quarantined",
                "Entries that were no valid event, or whose id another event has",
            ),
            quarantine_entries_dropped: counter(
                r,
                "quarantine_entries_dropped",
                "Entries that the quarantine's limit dropped from it",
            ),
            foreign_entries_claimed: counter(
                r,
                "foreign_entries_claimed",
                "Entries claimed from other consumers of the group",
            ),
            pending_entries_trimmed: counter(
                r,
                "pending_entries_trimmed",
                "Entries whose body was trimmed while they were pending",
            ),
            trimmed_unread_entries: number(
                r,
                "trimmed_unread_entries",
                "Entries trimmed before the group read them, as far as it can be told",
            ),
            stream_unread_entries: number(
                r,
                "stream_unread_entries",
                "Entries of the stream that the group has not read yet",
            ),
            deferred_entries: number(
                r,
                "deferred_entries",
                "Entries that wait in the stream until their account can take more",
            ),
            foreign_group_lag: number_in(
                r,
                Unit::Seconds,
                "foreign_group_lag",
                "How far the slowest other consumer group, which trimming waits for, is behind",
            ),
            novel_events: by_novelty(r),
            xadd_to_first_attempt: seconds(
                r,
                "xadd_to_first_attempt",
                "From an entry's XADD to the start of a delivery's first attempt",
                FIRST_ATTEMPT_BUCKETS,
            ),
            attempt_duration: seconds(r, "attempt_duration", "Whole attempts, start to end", ATTEMPT_BUCKETS),
            attempts: by_outcome(r),
            attempts_in_flight: number(r, "attempts_in_flight", "Attempts under way"),
            slow_attempts_in_flight: number(
                r,
                "slow_attempts_in_flight",
                "Attempts under way to receivers that never answered, or keep Herald waiting",
            ),
            requests_resent: counter(
                r,
                "requests_resent",
                "Requests sent a second time within their attempt: the receiver had certainly not processed the first",
            ),
            due_deliveries: number(r, "due_deliveries", "Deliveries that wait for the time of their next attempt"),
            oldest_due_delivery_age: number_in(
                r,
                Unit::Seconds,
                "oldest_due_delivery_age",
                "For how long the time of the next attempt of the most overdue delivery has passed, else 0",
            ),
            held_deliveries: number(r, "held_deliveries", "Deliveries behind the head of their chain"),
            parked_deliveries: number(r, "parked_deliveries", "Deliveries that wait in an endpoint's backlog"),
            deliveries_skipped: counter(
                r,
                "deliveries_skipped",
                "Deliveries not made because the endpoint is disabled",
            ),
            dead_letters: by_reason(r),
            dead_letters_expired: counter(r, "dead_letters_expired", "Dead letters removed by the retention limit"),
            dead_letters_kept: number(r, "dead_letters_kept", "Dead letters that are there now"),
            endpoints_with_open_breaker: number(
                r,
                "endpoints_with_open_breaker",
                "Endpoints in trouble: nothing goes to them now, or probes only",
            ),
            endpoints_over_quota: number(r, "endpoints_over_quota", "Endpoints with more in Redis than their quota"),
            quota_pauses: by_quota(r),
            partition_owned: number(r, "partition_owned", "1 while this worker owns its partition, else 0"),
            lease_terms: counter(r, "lease_terms", "Terms that this worker began"),
            items_set_aside: counter(
                r,
                "items_set_aside",
                "Changes that Redis refused, records that cannot be read and jobs that failed: they are tried again",
            ),
            record_bytes: number_in(r, Unit::Bytes, "record", "What unfinished deliveries take in Redis, about"),
            redis_memory_pressure: number(r, "redis_memory_pressure", "1 while Redis has little memory left, else 0"),
            redis_errors: counter(r, "redis_errors", "Calls to Redis that failed or whose answer was lost"),
            history_up: number(r, "history_up", "1 while the history of deliveries is written or looked on, else 0"),
            history_lag: number(
                r,
                "history_lag_lines",
                "Lines of the log of attempts that the history has not read yet",
            ),
            history_rows: counter(
                r,
                "history_rows_written",
                "Attempts and ends that this process wrote to the history",
            ),
            history_missed: counter(
                r,
                "history_lines_missed",
                "Lines that the history misses, because they were dropped before it read them or cannot be read",
            ),
            history_failures: counter(
                r,
                "history_failures",
                "Failures of the history's database, or of reading for it",
            ),
            registry: Arc::new(registry),
        };
        Self(Arc::new(inner))
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
        Page::of(Arc::clone(&self.0.registry))
    }

    pub fn entries_read(&self, count: u64) {
        self.0.entries_read.inc_by(count);
    }

    pub fn entry_without_endpoint(&self) {
        self.0.entries_without_endpoint.inc();
    }

    pub fn entry_quarantined(&self) {
        self.0.entries_quarantined.inc();
    }

    /// The limit of the quarantine has dropped this many more.
    pub fn quarantine_dropped(&self, count: u64) {
        self.0.quarantine_entries_dropped.inc_by(count);
    }

    pub fn foreign_entries_claimed(&self, count: u64) {
        self.0.foreign_entries_claimed.inc_by(count);
    }

    pub fn pending_entry_trimmed(&self) {
        self.0.pending_entries_trimmed.inc();
    }

    pub fn set_trimmed_unread(&self, entries: u64) {
        self.0.trimmed_unread_entries.set(entries);
    }

    pub fn set_unread(&self, entries: u64) {
        self.0.stream_unread_entries.set(entries);
    }

    pub fn set_deferred(&self, entries: u64) {
        self.0.deferred_entries.set(entries);
    }

    pub fn set_foreign_group_lag(&self, seconds: u64) {
        self.0.foreign_group_lag.set(seconds);
    }

    pub fn novel_event(&self, kind: NoveltyKind) {
        self.0.novel_events[kind as usize].inc();
    }

    /// A delivery's first attempt started `after` its entry was added.
    pub fn first_attempt_started(&self, after: Duration) {
        self.0.xadd_to_first_attempt.observe(after.as_secs_f64());
    }

    /// An attempt has ended. `took` is from its start to its end.
    pub fn attempt_ended(&self, outcome: &Outcome, took: Duration) {
        self.0.attempts[outcome_slot(outcome)].inc();
        self.0.attempt_duration.observe(took.as_secs_f64());
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

    /// `oldest_age` is how late the most overdue one is, in seconds.
    pub fn set_due(&self, deliveries: u64, oldest_age: u64) {
        self.0.due_deliveries.set(deliveries);
        self.0.oldest_due_delivery_age.set(oldest_age);
    }

    pub fn set_held(&self, deliveries: u64) {
        self.0.held_deliveries.set(deliveries);
    }

    pub fn set_parked(&self, deliveries: u64) {
        self.0.parked_deliveries.set(deliveries);
    }

    pub fn deliveries_skipped(&self, count: u64) {
        self.0.deliveries_skipped.inc_by(count);
    }

    pub fn dead_letters(&self, reason: DeadReason, count: u64) {
        self.0.dead_letters[reason as usize].inc_by(count);
    }

    pub fn dead_letters_expired(&self, count: u64) {
        self.0.dead_letters_expired.inc_by(count);
    }

    pub fn set_dead_letters_kept(&self, letters: u64) {
        self.0.dead_letters_kept.set(letters);
    }

    pub fn set_open_breakers(&self, endpoints: u64) {
        self.0.endpoints_with_open_breaker.set(endpoints);
    }

    /// An endpoint is to be paused because of what it, or its account, has in Redis.
    pub fn quota_pause(&self, quota: Quota) {
        self.0.quota_pauses[quota as usize].inc();
    }

    /// This worker became the owner.
    pub fn term_began(&self) {
        self.0.lease_terms.inc();
        self.0.partition_owned.set(1);
    }

    /// This worker is no longer the owner, whether it lost the lease or gave it back.
    pub fn term_ended(&self) {
        self.0.partition_owned.set(0);
    }

    pub fn item_set_aside(&self) {
        self.0.items_set_aside.inc();
    }

    pub fn set_memory(&self, is_under_pressure: bool, record_bytes: u64, endpoints_over_quota: u64) {
        self.0.redis_memory_pressure.set(u64::from(is_under_pressure));
        self.0.record_bytes.set(record_bytes);
        self.0.endpoints_over_quota.set(endpoints_over_quota);
    }

    pub fn redis_error(&self) {
        self.0.redis_errors.inc();
    }
}

/// What every process tells of itself, with no worker in it.
pub fn page_of_process() -> Page {
    Page::of(Arc::new(of_process()))
}

fn of_process() -> Registry {
    let mut registry = Registry::with_prefix("herald");
    registry.register("build", "1, with what is known of how this program was built", Info::new(build()));
    registry.register("log_lines_dropped", "Lines of the log that were not read in time", logging::dropped_lines());
    registry
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

/// The unit is the last part of its name.
fn number_in(registry: &mut Registry, unit: Unit, name: &str, help: &str) -> Number {
    let number = Number::default();
    registry.register_with_unit(name, help, unit, number.clone());
    number
}

fn seconds(registry: &mut Registry, name: &str, help: &str, buckets: [f64; 16]) -> Histogram {
    let histogram = Histogram::new(buckets);
    registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    histogram
}

fn by_outcome(registry: &mut Registry) -> [Counter; OUTCOMES.len()] {
    let family = Family::<OutcomeLabel, Counter>::default();
    registry.register("attempts", "Attempts that ended, by their outcome", family.clone());
    OUTCOMES.map(|outcome| family.get_or_create_owned(&OutcomeLabel { outcome }))
}

fn by_novelty(registry: &mut Registry) -> [Counter; NoveltyKind::ALL.len()] {
    let family = Family::<KindLabel, Counter>::default();
    registry.register("novel_events", "Events in which something was new to this Herald, by what", family.clone());
    NoveltyKind::ALL.map(|kind| family.get_or_create_owned(&KindLabel { kind: kind.name() }))
}

fn by_quota(registry: &mut Registry) -> [Counter; Quota::ALL.len()] {
    let family = Family::<QuotaLabel, Counter>::default();
    let help = "Endpoints paused because they, or their account, had more in Redis than a quota and took nothing";
    registry.register("quota_pauses", help, family.clone());
    Quota::ALL.map(|quota| family.get_or_create_owned(&QuotaLabel { quota: quota.name() }))
}

fn by_reason(registry: &mut Registry) -> [Counter; DeadReason::ALL.len()] {
    let family = Family::<ReasonLabel, Counter>::default();
    registry.register("dead_letters", "Deliveries given up, by the reason", family.clone());
    DeadReason::ALL.map(|reason| family.get_or_create_owned(&ReasonLabel { reason: reason.name() }))
}

/// The names of all outcomes, by [`outcome_slot`].
const OUTCOMES: [&str; 18] = [
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::outcome::TlsFailure;

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
    fn every_series_is_there_from_the_start() {
        let page = Metrics::new().encode(Format::Text);
        for line in [
            "herald_log_lines_dropped_total 0",
            "herald_entries_read_total 0",
            "herald_entries_without_endpoint_total 0",
            "herald_entries_quarantined_total 0",
            "herald_quarantine_entries_dropped_total 0",
            "herald_foreign_entries_claimed_total 0",
            "herald_pending_entries_trimmed_total 0",
            "herald_trimmed_unread_entries 0",
            "herald_stream_unread_entries 0",
            "herald_deferred_entries 0",
            "herald_foreign_group_lag_seconds 0",
            "herald_novel_events_total{kind=\"payment_status\"} 0",
            "herald_xadd_to_first_attempt_seconds_bucket{le=\"0.0015\"} 0",
            "herald_attempt_duration_seconds_count 0",
            "herald_attempts_total{outcome=\"delivered\"} 0",
            "herald_attempts_total{outcome=\"unsendable\"} 0",
            "herald_attempts_in_flight 0",
            "herald_slow_attempts_in_flight 0",
            "herald_requests_resent_total 0",
            "herald_due_deliveries 0",
            "herald_oldest_due_delivery_age_seconds 0",
            "herald_held_deliveries 0",
            "herald_parked_deliveries 0",
            "herald_deliveries_skipped_total 0",
            "herald_dead_letters_total{reason=\"exhausted\"} 0",
            "herald_dead_letters_expired_total 0",
            "herald_dead_letters_kept 0",
            "herald_endpoints_with_open_breaker 0",
            "herald_endpoints_over_quota 0",
            "herald_quota_pauses_total{quota=\"endpoint_bytes\"} 0",
            "herald_partition_owned 0",
            "herald_lease_terms_total 0",
            "herald_items_set_aside_total 0",
            "herald_record_bytes 0",
            "herald_redis_memory_pressure 0",
            "herald_redis_errors_total 0",
            "herald_history_up 0",
            "herald_history_lag_lines 0",
            "herald_history_rows_written_total 0",
            "herald_history_lines_missed_total 0",
            "herald_history_failures_total 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn a_build_says_its_version_and_whatever_else_is_known_of_it() {
        let page = Metrics::new().encode(Format::Text);
        let line = page.lines().find(|line| line.starts_with("herald_build_info{")).unwrap();
        assert!(line.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{line}");
        assert!(line.ends_with("} 1") && !line.contains("\"\""), "{line}");
    }

    #[test]
    fn clones_count_together() {
        let metrics = Metrics::new();
        let clone = metrics.clone();
        clone.attempt_ended(&Outcome::Gone, Duration::from_millis(3));
        clone.first_attempt_started(Duration::from_millis(1));
        clone.dead_letters(DeadReason::Gone, 2);
        clone.term_began();
        clone.set_parked(7);
        let page = metrics.encode(Format::OpenMetrics);
        for line in [
            "herald_attempts_total{outcome=\"gone\"} 1",
            "herald_attempt_duration_seconds_sum 0.003",
            "herald_attempt_duration_seconds_bucket{le=\"0.005\"} 1",
            "herald_xadd_to_first_attempt_seconds_count 1",
            "herald_dead_letters_total{reason=\"gone\"} 2",
            "herald_partition_owned 1",
            "herald_parked_deliveries 7",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        metrics.term_ended();
        assert!(metrics.encode(Format::OpenMetrics).contains("herald_partition_owned 0"));
    }
}

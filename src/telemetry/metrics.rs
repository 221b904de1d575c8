//! The metrics of one worker, in Prometheus' conventions: `herald_` first, base units, counters end in `_total`.
//! Every series exists from the start at 0, so that an alert on its rate sees the first event. Labels are resolved once,
//! when they are registered: counting is an atomic addition.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::logging;
use crate::facts::{
    event::NoveltyKind,
    outcome::{LocalCause, Outcome},
    quota::Quota,
    retry::DeadReason,
};

/// What `/metrics` answers with: OpenMetrics text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds. From a receiver next door to the longest attempt that can be configured.
const ATTEMPT_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 120.0];

/// Seconds. Fine where the goals lie (p50 1.5 ms, p99 8 ms), coarse where there is a backlog.
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
    registry: Registry,
    entries_read: Counter,
    /// By [`outcome_slot`].
    deliveries: [Counter; OUTCOMES.len()],
    resent: Counter,
    attempt_duration: Histogram,
    xadd_to_first_attempt: Histogram,
    in_flight: Gauge<u64, AtomicU64>,
    held: Gauge<u64, AtomicU64>,
    parked: Gauge<u64, AtomicU64>,
    deferred: Gauge<u64, AtomicU64>,
    slow: Gauge<u64, AtomicU64>,
    due: Gauge<u64, AtomicU64>,
    /// In the order of [`DeadReason::ALL`], which is that of its variants.
    dead_letters: [Counter; DeadReason::ALL.len()],
    dead_letters_expired: Counter,
    behind: Gauge<u64, AtomicU64>,
    lease_terms: Counter,
    owner: Gauge<u64, AtomicU64>,
    quarantined: Counter,
    quarantine_dropped: Counter,
    /// In the order of [`NoveltyKind::ALL`], which is that of its variants.
    novel_events: [Counter; NoveltyKind::ALL.len()],
    trimmed_pending: Counter,
    trimmed_unread: Gauge<u64, AtomicU64>,
    foreign_group_behind_seconds: Gauge<u64, AtomicU64>,
    no_endpoint: Counter,
    skipped_disabled: Counter,
    redis_errors: Counter,
    bad_items: Counter,
    foreign_entries_claimed: Counter,
    /// In the order of [`Quota::ALL`], which is that of its variants.
    quota_refusals: [Counter; Quota::ALL.len()],
    record_bytes: Gauge<u64, AtomicU64>,
    endpoints_over_quota: Gauge<u64, AtomicU64>,
    memory_pressure: Gauge<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("herald");
        let r = &mut registry;
        r.register("log_lines_dropped", "Lines of the log that nobody read in time", logging::dropped_lines());
        let inner = Inner {
            entries_read: counter(r, "entries_read", "Entries taken from the stream"),
            deliveries: by_outcome(r),
            resent: counter(
                r,
                "resent",
                "Requests sent a second time within their attempt: the receiver had certainly not processed the first",
            ),
            attempt_duration: seconds(r, "attempt_duration", "Whole attempts, start to end", ATTEMPT_BUCKETS),
            xadd_to_first_attempt: seconds(
                r,
                "xadd_to_first_attempt",
                "From an entry's XADD to the start of a delivery's first attempt",
                FIRST_ATTEMPT_BUCKETS,
            ),
            in_flight: gauge(r, "in_flight", "Attempts under way"),
            held: gauge(r, "held", "Deliveries behind the head of their chain"),
            parked: gauge(r, "parked", "Deliveries that wait in an endpoint's backlog"),
            deferred: gauge(r, "deferred", "Entries that wait in the stream until their account can take more"),
            slow: gauge(
                r,
                "slow_in_flight",
                "Attempts under way to receivers that never answered, or keep Herald waiting",
            ),
            due: gauge(r, "due", "Deliveries that wait for the time of their next attempt"),
            dead_letters: by_reason(r),
            dead_letters_expired: counter(r, "dead_letters_expired", "Dead letters removed by the retention limit"),
            behind: gauge(r, "behind", "Entries of the stream that the group has not read yet"),
            lease_terms: counter(r, "lease_terms", "Terms that this worker began"),
            owner: gauge(r, "owner", "1 while this worker owns its partition, else 0"),
            quarantined: counter(r, "quarantined", "Entries that were no valid event"),
            quarantine_dropped: counter(r, "quarantine_dropped", "Entries that the quarantine's limit dropped from it"),
            novel_events: by_novelty(r),
            trimmed_pending: counter(r, "trimmed_pending", "Entries whose body was trimmed while they were pending"),
            trimmed_unread: gauge(r, "trimmed_unread", "Entries trimmed before the group read them"),
            foreign_group_behind_seconds: gauge(
                r,
                "foreign_group_behind_seconds",
                "How far the slowest other consumer group, which trimming waits for, is behind",
            ),
            no_endpoint: counter(r, "no_endpoint", "Entries whose account has no endpoint"),
            skipped_disabled: counter(r, "skipped_disabled", "Deliveries not made because the endpoint is disabled"),
            redis_errors: counter(r, "redis_errors", "Calls to Redis that failed or whose answer was lost"),
            bad_items: counter(r, "bad_items", "Items set aside because a script refused them"),
            foreign_entries_claimed: counter(
                r,
                "foreign_entries_claimed",
                "Entries claimed from other consumers of the group",
            ),
            quota_refusals: by_quota(r),
            record_bytes: gauge(r, "record_bytes", "What unfinished deliveries take in Redis, about"),
            endpoints_over_quota: gauge(r, "endpoints_over_quota", "Endpoints whose part of it is over their quota"),
            memory_pressure: gauge(r, "memory_pressure", "1 while Redis has little memory left, else 0"),
            registry,
        };
        Self(Arc::new(inner))
    }

    /// All metrics as OpenMetrics text, see [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut page = String::new();
        text::encode(&mut page, &self.0.registry).expect("a String takes every write");
        page
    }

    pub fn entries_read(&self, count: u64) {
        self.0.entries_read.inc_by(count);
    }

    /// An attempt ended. `took` is from its start to its end.
    pub fn attempt_ended(&self, outcome: &Outcome, took: Duration) {
        self.0.deliveries[outcome_slot(outcome)].inc();
        self.0.attempt_duration.observe(took.as_secs_f64());
    }

    /// A delivery's first attempt started `after` its entry was added.
    pub fn resent(&self) {
        self.0.resent.inc();
    }

    pub fn first_attempt_started(&self, after: Duration) {
        self.0.xadd_to_first_attempt.observe(after.as_secs_f64());
    }

    pub fn set_in_flight(&self, count: u64) {
        self.0.in_flight.set(count);
    }

    pub fn set_held(&self, count: u64) {
        self.0.held.set(count);
    }

    pub fn set_deferred(&self, count: u64) {
        self.0.deferred.set(count);
    }

    pub fn set_slow(&self, count: u64) {
        self.0.slow.set(count);
    }

    pub fn set_parked(&self, count: u64) {
        self.0.parked.set(count);
    }

    pub fn set_due(&self, count: u64) {
        self.0.due.set(count);
    }

    pub fn dead_letters(&self, reason: DeadReason, count: u64) {
        self.0.dead_letters[reason as usize].inc_by(count);
    }

    pub fn dead_letters_expired(&self, count: u64) {
        self.0.dead_letters_expired.inc_by(count);
    }

    pub fn set_behind(&self, entries: u64) {
        self.0.behind.set(entries);
    }

    /// This worker became the owner.
    pub fn term_began(&self) {
        self.0.lease_terms.inc();
        self.0.owner.set(1);
    }

    /// This worker is the owner no more, by loss or by its own will.
    pub fn term_ended(&self) {
        self.0.owner.set(0);
    }

    pub fn quarantined(&self, count: u64) {
        self.0.quarantined.inc_by(count);
    }

    /// The limit of the quarantine has dropped so many more.
    pub fn quarantine_dropped(&self, count: u64) {
        self.0.quarantine_dropped.inc_by(count);
    }

    pub fn novel_event(&self, kind: NoveltyKind) {
        self.0.novel_events[kind as usize].inc();
    }

    pub fn trimmed_pending(&self, count: u64) {
        self.0.trimmed_pending.inc_by(count);
    }

    pub fn set_trimmed_unread(&self, entries: u64) {
        self.0.trimmed_unread.set(entries);
    }

    pub fn set_foreign_group_behind(&self, seconds: u64) {
        self.0.foreign_group_behind_seconds.set(seconds);
    }

    pub fn no_endpoint(&self, count: u64) {
        self.0.no_endpoint.inc_by(count);
    }

    pub fn skipped_disabled(&self, count: u64) {
        self.0.skipped_disabled.inc_by(count);
    }

    pub fn redis_error(&self) {
        self.0.redis_errors.inc();
    }

    pub fn bad_items(&self, count: u64) {
        self.0.bad_items.inc_by(count);
    }

    /// An endpoint is to be paused for what it, or its account, has in Redis.
    pub fn quota_refused(&self, quota: Quota) {
        self.0.quota_refusals[quota as usize].inc();
    }

    pub fn set_memory(&self, is_under_pressure: bool, record_bytes: u64, endpoints_over_quota: u64) {
        self.0.memory_pressure.set(u64::from(is_under_pressure));
        self.0.record_bytes.set(record_bytes);
        self.0.endpoints_over_quota.set(endpoints_over_quota);
    }

    pub fn foreign_entries_claimed(&self, count: u64) {
        self.0.foreign_entries_claimed.inc_by(count);
    }
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge<u64, AtomicU64> {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn seconds(registry: &mut Registry, name: &str, help: &str, buckets: [f64; 16]) -> Histogram {
    let histogram = Histogram::new(buckets);
    registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    histogram
}

fn by_outcome(registry: &mut Registry) -> [Counter; OUTCOMES.len()] {
    let family = Family::<OutcomeLabel, Counter>::default();
    registry.register("deliveries", "Attempts of deliveries that ended, by their outcome", family.clone());
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
    registry.register("quota_refusals", help, family.clone());
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
        let page = Metrics::new().encode();
        for line in [
            "herald_entries_read_total 0",
            "herald_deliveries_total{outcome=\"delivered\"} 0",
            "herald_deliveries_total{outcome=\"unsendable\"} 0",
            "herald_resent_total 0",
            "herald_attempt_duration_seconds_count 0",
            "herald_xadd_to_first_attempt_seconds_bucket{le=\"0.0015\"} 0",
            "herald_in_flight 0",
            "herald_held 0",
            "herald_parked 0",
            "herald_deferred 0",
            "herald_slow_in_flight 0",
            "herald_due 0",
            "herald_dead_letters_total{reason=\"exhausted\"} 0",
            "herald_dead_letters_expired_total 0",
            "herald_behind 0",
            "herald_lease_terms_total 0",
            "herald_owner 0",
            "herald_quarantined_total 0",
            "herald_quarantine_dropped_total 0",
            "herald_novel_events_total{kind=\"payment_status\"} 0",
            "herald_trimmed_pending_total 0",
            "herald_trimmed_unread 0",
            "herald_foreign_group_behind_seconds 0",
            "herald_no_endpoint_total 0",
            "herald_skipped_disabled_total 0",
            "herald_redis_errors_total 0",
            "herald_bad_items_total 0",
            "herald_foreign_entries_claimed_total 0",
            "herald_log_lines_dropped_total 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
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
        let page = metrics.encode();
        for line in [
            "herald_deliveries_total{outcome=\"gone\"} 1",
            "herald_attempt_duration_seconds_sum 0.003",
            "herald_attempt_duration_seconds_bucket{le=\"0.005\"} 1",
            "herald_xadd_to_first_attempt_seconds_count 1",
            "herald_dead_letters_total{reason=\"gone\"} 2",
            "herald_owner 1",
            "herald_parked 7",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        metrics.term_ended();
        assert!(metrics.encode().contains("herald_owner 0"));
    }
}

//! What the owner of a partition sees of it, as gauges. They are on the page of the owner alone and go with its term, so the
//! largest of all workers is always right. Ages are worked out when the page is asked for: that of a worker that hangs grows.

use std::{borrow::Cow, fmt, time::Instant};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};

use crate::{clock, facts::id::EntryId};

/// One look at the partition.
#[derive(Debug, Clone)]
pub struct Look {
    /// When it was made, by this machine's clock and by Redis'.
    pub at: Instant,
    pub redis_ms: u64,
    pub stream_entries: u64,
    pub unread: u64,
    pub oldest_unread: Option<EntryId>,
    pub pending: u64,
    pub trimmed_unread: u64,
    pub deferred: u64,
    pub foreign_lag_ms: u64,
    pub due: u64,
    pub held: u64,
    pub parked: u64,
    /// When the first of the due deliveries is due.
    pub first_due_ms: Option<u64>,
    pub oldest_unfinished: Option<EntryId>,
    pub record_bytes: u64,
    pub dead: u64,
    pub dead_limit: u64,
    /// When the oldest dead letter was given up.
    pub oldest_dead_ms: Option<u64>,
    pub quarantined: u64,
    pub breakers: Breakers,
    pub endpoints_over_quota: u64,
    pub stopped: Stopped,
}

/// How many endpoints that were tried have a breaker in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Breakers {
    pub closed: u64,
    pub half_open: u64,
    pub open: u64,
}

/// Why nothing is read from the stream; several may hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Redis is at its limit, so that nothing can be added, or has so little memory left that nothing is read beside what is
    /// in memory.
    pub redis_full: bool,
    /// The registry of endpoints is gone, another one, or not known to be up to date.
    pub registry: bool,
    /// What is in memory has no room for more.
    pub bytes: bool,
    /// As many entries as may wait in the stream for their accounts.
    pub backlogs: bool,
    /// An operator stopped all sending.
    pub paused: bool,
}

/// The looks of the partitions that this worker owns, each with its name, as they are when the page is asked for.
pub(super) type Looks = [(String, Look)];

pub(super) fn encode(encoder: DescriptorEncoder<'_>, looks: &Looks) -> fmt::Result {
    if looks.is_empty() { Ok(()) } else { Page(encoder, looks, clock::now()).encode() }
}

struct Page<'a, 'b>(DescriptorEncoder<'a>, &'b Looks, Instant);

impl Page<'_, '_> {
    fn encode(&mut self) -> fmt::Result {
        let now = self.2;
        let redis_ms = |look: &Look| look.redis_ms + now.saturating_duration_since(look.at).as_millis() as u64;
        let since = |look: &Look, at_ms: Option<u64>| at_ms.map_or(0, |at_ms| redis_ms(look).saturating_sub(at_ms));
        // An id that is not a time does not tell an age.
        let age =
            |look: &Look, entry: Option<EntryId>| entry.and_then(|entry| entry.age_ms(redis_ms(look))).unwrap_or(0);
        self.number("stream_entries", "Entries in the stream", |look| look.stream_entries)?;
        self.number("stream_lag_entries", "Entries of the stream that are not read yet", |look| look.unread)?;
        let help = "Age of the oldest entry that is not read yet, 0 without one";
        self.seconds("stream_lag", help, |look| age(look, look.oldest_unread))?;
        self.number("stream_pending_entries", "Entries that are read and not settled", |look| look.pending)?;
        let help = "Entries that were trimmed before they were read, as far as it can be told";
        self.number("stream_trimmed_unread_entries", help, |look| look.trimmed_unread)?;
        let help = "Entries that wait in the stream until their account can take more";
        self.number("stream_deferred_entries", help, |look| look.deferred)?;
        let help = "How far the slowest other consumer group, which trimming waits for, is behind";
        self.seconds("foreign_group_lag", help, |look| look.foreign_lag_ms)?;
        let help =
            "Deliveries that wait: for the time of their next attempt, behind another of their chain, or in a backlog";
        self.states("deliveries_waiting", help, "state", |look| {
            [("due", look.due), ("held", look.held), ("parked", look.parked)]
        })?;
        let help = "How far the first due delivery is past its time, else 0";
        self.seconds("deliveries_overdue", help, |look| since(look, look.first_due_ms))?;
        let help = "Age of the event of the oldest unfinished delivery with a record, 0 without one";
        self.seconds("deliveries_oldest_age", help, |look| age(look, look.oldest_unfinished))?;
        let help = "What unfinished deliveries take in Redis, about";
        self.gauge("deliveries_record", Some(&Unit::Bytes), help, |look| look.record_bytes as f64)?;
        self.number("dead_letters", "Dead letters that are there now", |look| look.dead)?;
        self.number("dead_letters_limit", "The most dead letters that are kept", |look| look.dead_limit)?;
        let help = "For how long the oldest dead letter has been there, 0 without one";
        self.seconds("dead_letters_oldest_age", help, |look| since(look, look.oldest_dead_ms))?;
        self.number("quarantine_entries", "Entries in the quarantine now", |look| look.quarantined)?;
        let help = "Endpoints that were tried, by the state of their breaker";
        self.states("breakers", help, "state", |look| {
            let Breakers { closed, half_open, open } = look.breakers;
            [("closed", closed), ("half_open", half_open), ("open", open)]
        })?;
        let help = "Endpoints with more in Redis than their quota";
        self.number("endpoints_over_quota", help, |look| look.endpoints_over_quota)?;
        let help = "1 while nothing is read from the stream for this cause, else 0";
        self.states("reading_stopped", help, "cause", |look| {
            let Stopped { redis_full, registry, bytes, backlogs, paused } = look.stopped;
            let causes = [redis_full, registry, bytes, backlogs, paused].map(u64::from);
            let [redis_full, registry, bytes, backlogs, paused] = causes;
            [
                ("redis_full", redis_full),
                ("registry", registry),
                ("bytes", bytes),
                ("backlogs", backlogs),
                ("paused", paused),
            ]
        })
    }

    fn number(&mut self, name: &str, help: &str, value: impl Fn(&Look) -> u64) -> fmt::Result {
        self.gauge(name, None, help, |look| value(look) as f64)
    }

    fn seconds(&mut self, name: &str, help: &str, ms: impl Fn(&Look) -> u64) -> fmt::Result {
        self.gauge(name, Some(&Unit::Seconds), help, |look| ms(look) as f64 / 1_000.0)
    }

    fn gauge(&mut self, name: &str, unit: Option<&Unit>, help: &str, value: impl Fn(&Look) -> f64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, &with_end(help), unit, MetricType::Gauge)?;
        self.1.iter().try_for_each(|(partition, look)| {
            ConstGauge::new(value(look)).encode(metric.encode_family(&[("partition", partition.as_str())])?)
        })
    }

    fn states<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl Fn(&Look) -> [(&'static str, u64); N],
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, &with_end(help), None, MetricType::Gauge)?;
        let of_all = self.1.iter().flat_map(|(partition, look)| values(look).map(|one| (partition, one)));
        of_all.into_iter().try_for_each(|(partition, (state, value))| {
            let labels = [("partition", partition.as_str()), (label, state)];
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)
        })
    }
}

/// As the registry ends the help of its metrics.
pub(super) fn with_end(help: &str) -> Cow<'static, str> {
    format!("{help}.").into()
}

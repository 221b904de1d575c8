//! What the numbers of the partition mean for it, for readiness and for the metrics.

use std::time::Duration;

use tracing::{info, warn};

use super::{Worker, gauges::Seen};
use crate::{
    clock,
    dispatch::breaker::BreakerView,
    facts::id::EntryId,
    store::watch::Gauges,
    telemetry::{
        owner::{Breakers, Look},
        partitions::RedisState,
    },
};

/// From this part of `maxmemory` on, in percent, little is read at a time.
const PRESSURE_PERCENT: u64 = 90;

/// The part of the attempt log that is kept while Redis has little memory left: enough to see what happens now.
const LOG_PART_UNDER_PRESSURE: u64 = 10;

/// Another group this far behind, by the stream's time, is worth mentioning: ten minutes are no hiccup.
const FOREIGN_FAR_MS: u64 = 600_000;

/// For how long the stream is kept for a history that was not heard of yet.
const HISTORY_AWAITED: Duration = Duration::from_secs(600);

/// Until a history has told.
const USUAL_EVENT_BYTES: u64 = 600;

impl Worker {
    pub(super) fn numbers(&mut self, seen: Option<Seen>) {
        self.readiness.set_redis(seen.is_some());
        self.metrics.redis_says(seen.as_ref().map(redis_state));
        let now = self.now();
        let Some(Seen { at, gauges: numbers, oldest_unfinished, .. }) = seen else { return };
        self.look_at_memory(&numbers);
        self.look_at_history(numbers.history_unread);
        self.partition.set_trim_up_to(now, self.kept_for_history(&numbers));
        // One walk for all three: there may be a hundred thousand.
        let (mut parked, mut breakers, mut longest_attempt) = (0, Breakers::default(), Duration::ZERO);
        for (_, lane) in self.partition.core().lanes() {
            parked += lane.parked;
            match lane.breaker_of_served(now) {
                Some(BreakerView::Closed) => breakers.closed += 1,
                Some(BreakerView::HalfOpen { .. }) => breakers.half_open += 1,
                Some(BreakerView::Open { .. }) => breakers.open += 1,
                None => {}
            }
            if lane.in_flight > 0 {
                longest_attempt = longest_attempt.max(self.sender.timeout_of(lane.timeout_ms()));
            }
        }
        // Only an operator's own pause excuses an owner: a lost registry or a term that keeps failing does not.
        let is_routed = self.partition.routes().is_some();
        let is_ours = !self.partition.is_standby() && self.registry.paused_all().is_none();
        let has_backlog = numbers.has_backlog(self.partition.tally().in_flight as u64);
        // Of what it passes on its router tells.
        if !is_routed {
            self.readiness.backlog(is_ours && has_backlog, longest_attempt, clock::now());
        }
        let foreign_lag_ms = self.look_at_foreign(numbers.slowest_foreign);
        self.look_at_quarantine(numbers.quarantine_dropped);
        // What a former owner knows of receivers is out of date.
        if !self.partition.is_owner() || is_routed {
            return;
        }
        let mut stopped = self.partition.stopped();
        // At its limit it refuses what producers add.
        stopped.redis_full |= numbers.maxmemory_bytes > 0 && numbers.used_memory_bytes >= numbers.maxmemory_bytes;
        let (record_bytes, over) = self.partition.core().record_bytes();
        self.metrics.owner_sees(Look {
            at,
            redis_ms: numbers.now_ms,
            stream_entries: numbers.length,
            unread: numbers.behind,
            oldest_unread: numbers.oldest_unread,
            pending: numbers.pending,
            trimmed_unread: numbers.trimmed_unread,
            deferred: self.partition.deferred() as u64,
            foreign_lag_ms,
            due: numbers.due,
            held: numbers.unfinished.saturating_sub(numbers.due + numbers.claimed + parked),
            parked,
            first_due_ms: numbers.oldest_due_ms,
            oldest_unfinished,
            record_bytes,
            dead: numbers.dead,
            dead_limit: self.partition.most_dead(),
            oldest_dead_ms: numbers.oldest_dead_ms,
            quarantined: numbers.quarantined,
            breakers,
            endpoints_over_quota: over as u64,
            stopped,
        });
    }

    /// What Redis has left, and what the records in it take.
    fn look_at_memory(&mut self, numbers: &Gauges) {
        let limit = numbers.maxmemory_bytes;
        let is_under_pressure = limit > 0 && numbers.used_memory_bytes / PRESSURE_PERCENT >= limit / 100;
        if is_under_pressure != std::mem::replace(&mut self.is_under_pressure, is_under_pressure) {
            match is_under_pressure {
                true => warn!(
                    "Redis has little memory left, {} of {limit} bytes used: little is read at a time, and the attempt log is kept \
                     short",
                    numbers.used_memory_bytes
                ),
                false => info!("Redis has memory again"),
            }
        }
        self.partition.set_pressure(is_under_pressure);
        self.partition.set_quotas(self.quotas.with(limit));
        self.metrics.set_memory_pressure(is_under_pressure);
    }

    /// How many lines the log of attempts keeps: as many as are configured, and what the history has not read, up to its bound.
    /// The log is a convenience and delivering is not: where Redis has little memory left, the log must not eat up the room
    /// that delivering frees.
    pub(super) fn log_len(&self) -> u64 {
        match self.is_under_pressure {
            true => self.attempt_log_len / LOG_PART_UNDER_PRESSURE,
            false => self.attempt_log_len.max(self.history_unread),
        }
    }

    /// What was logged since the last look has not been read either, so a little more is kept.
    fn look_at_history(&mut self, (unread, line_bytes): (u64, u64)) {
        self.metrics.set_history_lag(unread);
        let most = self.history_log_bytes / line_bytes.max(1);
        self.history_unread = if unread == 0 { 0 } else { (unread + self.attempt_log_len / 2).min(most) };
    }

    /// The stream is kept for a history that keeps the events themselves, as long as all of it takes no more than the log may.
    fn kept_for_history(&self, numbers: &Gauges) -> Option<EntryId> {
        // One that is to be begun, or went on, by this process has a while to say so.
        let is_awaited = self.keeps_events && clock::now() < self.began + HISTORY_AWAITED;
        let awaited = is_awaited.then_some((EntryId::ZERO, USUAL_EVENT_BYTES));
        let (entry, bytes) = numbers.history_events.or(awaited)?;
        let is_small = numbers.length.saturating_mul(bytes) <= self.history_log_bytes;
        (is_small && !self.is_under_pressure).then_some(entry)
    }

    /// A group that is far behind keeps the stream from being trimmed: reported once, until it has caught up. Returns how far
    /// the slowest is behind.
    fn look_at_foreign(&mut self, slowest: Option<(String, u64)>) -> u64 {
        let ignores = &self.trim_ignores;
        let slowest = slowest.filter(|(group, _)| !ignores.contains(group));
        let behind_ms = slowest.as_ref().map_or(0, |(_, behind_ms)| *behind_ms);
        let is_far = behind_ms > FOREIGN_FAR_MS;
        if let (true, false, Some((group, _))) = (is_far, self.is_foreign_far, &slowest) {
            warn!(
                "the stream is kept for the group {group}, which is {behind_ms} ms behind; name it in stream.trim_ignores if nobody \
                 reads it"
            );
        }
        self.is_foreign_far = is_far;
        behind_ms
    }

    /// What was dropped before this worker's first look has been reported by somebody else.
    fn look_at_quarantine(&mut self, dropped: u64) {
        let known = self.quarantine_dropped.replace(dropped).unwrap_or(dropped);
        if let more @ 1.. = dropped.saturating_sub(known) {
            self.metrics.quarantine_dropped(more);
        }
    }
}

fn redis_state(seen: &Seen) -> RedisState {
    let gauges = &seen.gauges;
    RedisState {
        is_durable: gauges.is_durable,
        is_noeviction: gauges.is_noeviction,
        memory_used_bytes: gauges.used_memory_bytes,
        memory_limit_bytes: gauges.maxmemory_bytes,
        clock_offset_ms: seen.clock_offset_ms,
        evicted_keys: gauges.evicted_keys,
    }
}

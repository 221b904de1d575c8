//! Reports what happened: counts it, logs it, and passes it on to a listener.

use tokio::sync::mpsc;
use tracing::{
    Level, debug, error,
    field::{DisplayValue, display},
    info, warn,
};

use super::{
    failing::{Case, Failing, Kind, Line, Recovery},
    health::Odd,
    told::Told,
    tracer::Tracer,
};
use crate::{
    clock,
    dispatch::{
        core::{About, CoreHappening, Step, Tally, Telling},
        partition::Happening,
    },
    facts::{
        id::AccountId,
        trace::{SpanId, TraceId},
        unserved::OddSeen,
    },
    telemetry::{
        log_line::rfc3339,
        metrics::{Finished, HandedOver, Removed, Settled},
        partitions::PartitionMetrics,
    },
};

pub struct Reporter {
    metrics: PartitionMetrics,
    /// What does not fit is left out.
    listener: Option<mpsc::Sender<Happening>>,
    tracer: Option<Tracer>,
    told: Told,
    failing: Failing,
    /// What was counted of it so far.
    tally: Tally,
    odd: Odd,
}

impl Reporter {
    pub fn new(metrics: PartitionMetrics, listener: Option<mpsc::Sender<Happening>>, tracer: Option<Tracer>) -> Self {
        Self {
            metrics,
            listener,
            tracer,
            told: Told::default(),
            failing: Failing::default(),
            tally: Tally::default(),
            odd: Odd::default(),
        }
    }

    /// What of single deliveries is worth telling.
    pub fn wants(&self) -> Telling {
        let settled = self.tracer.is_some();
        Telling { steps: settled || tracing::enabled!(Level::DEBUG), settled }
    }

    pub fn tracer(&mut self) -> Option<&mut Tracer> {
        self.tracer.as_mut()
    }

    /// `redis_ms` is the time by Redis' clock.
    pub fn happened(&mut self, now: u64, redis_ms: u64, happening: Happening) {
        if let Some(tracer) = &mut self.tracer {
            tracer.happened(redis_ms, &happening);
        }
        self.count(&happening);
        self.odd.happened(&happening);
        if self.is_worth_a_line(now, &happening) {
            log(&happening, self.tracer.as_ref());
        }
        if let Some(listener) = &self.listener {
            // A listener that is too slow misses something; the log has it.
            let _ = listener.try_send(happening);
        }
    }

    pub fn tally(&mut self, tally: Tally) {
        let before = std::mem::replace(&mut self.tally, tally);
        if tally == before {
            return;
        }
        let metrics = &self.metrics;
        metrics.set_in_flight(tally.in_flight as u64, tally.slow as u64);
        metrics.entries_settled(Settled::Dispatched, tally.dispatched - before.dispatched);
        metrics.deliveries_finished(Finished::Delivered, tally.delivered - before.delivered);
        metrics.deliveries_finished(Finished::DeadLetter, tally.dead - before.dead);
        metrics.deliveries_finished(Finished::SkippedDisabled, tally.skipped_disabled - before.skipped_disabled);
        metrics.dead_letters_removed(Removed::Redelivered, tally.redelivered - before.redelivered);
        metrics.dead_letters_removed(Removed::Discarded, tally.discarded - before.discarded);
    }

    /// Odd events since the last time, by account.
    pub fn take_odd(&mut self) -> Vec<(AccountId, OddSeen)> {
        self.odd.take()
    }

    /// Says what waited for its turn in the log. Call it often.
    pub fn tick(&mut self, now: u64) {
        self.failing.due(now).into_iter().for_each(log_failing);
    }

    /// Anyone who writes to the stream, and every receiver that fails, can cause these without end: they are counted, and logged
    /// only now and then.
    fn is_worth_a_line(&mut self, now: u64, happening: &Happening) -> bool {
        match happening {
            Happening::Quarantined { entry, error } => {
                if let Some(entries) = self.told.quarantined(now) {
                    warn!(%entry, error, "entries that are no valid event were quarantined: {entries}; said once a minute at most");
                }
                true
            }
            Happening::Novelty { novelty, .. } => self.told.is_first(novelty),
            Happening::Core(core) => {
                self.note_failing(now, core);
                true
            }
            _ => true,
        }
    }

    fn note_failing(&mut self, now: u64, happening: &CoreHappening) {
        let case = |about: &About, why: String| Case {
            delivery: about.id.clone(),
            event: about.event.clone(),
            intent: about.intent.clone(),
            why,
        };
        let line = match happening {
            CoreHappening::Failed { about, outcome, .. } => {
                self.failing.happened(now, Kind::Failed, case(about, outcome.to_string()))
            }
            CoreHappening::Dead { about, reason, .. } => {
                self.failing.happened(now, Kind::Dead, case(about, reason.name().to_owned()))
            }
            CoreHappening::Recovered { endpoint } => {
                if let Some(Recovery { after_ms, failed }) = self.failing.recovered(now, endpoint) {
                    info!(%endpoint, "the endpoint takes events again, after {failed} attempts that failed in {after_ms} ms");
                }
                None
            }
            _ => None,
        };
        line.into_iter().for_each(log_failing);
    }

    fn count(&self, happening: &Happening) {
        match happening {
            Happening::Core(CoreHappening::Dead { reason, .. }) => self.metrics.dead_letter_added(*reason),
            Happening::Core(CoreHappening::SetAside { .. } | CoreHappening::Unreadable { .. })
            | Happening::JobFailed { .. } => self.metrics.item_set_aside(),
            Happening::Core(CoreHappening::Displaced { .. }) | Happening::Quarantined { .. } => {
                self.metrics.entries_settled(Settled::Quarantined, 1);
            }
            Happening::Core(CoreHappening::OverQuota { quota, .. }) => self.metrics.quota_refusal(*quota),
            Happening::TermBegan { .. } => self.metrics.term_began(),
            Happening::TermEnded { .. } => self.metrics.term_ended(),
            Happening::LeaseLost => self.metrics.handed_over(HandedOver::Lost),
            Happening::Read { entries, is_again: false } => self.metrics.entries_read(*entries as u64),
            Happening::Read { entries, is_again: true } => self.metrics.entries_read_again(*entries as u64),
            Happening::Novelty { novelty, .. } => self.metrics.novel_event(novelty.kind),
            Happening::TrimmedWhilePending { .. } => self.metrics.entries_settled(Settled::Trimmed, 1),
            Happening::NoEndpoint { .. } => self.metrics.entries_settled(Settled::NoEndpoint, 1),
            Happening::ForeignClaimed { count } => self.metrics.entries_claimed(*count as u64),
            Happening::DeadExpired { count } => self.metrics.dead_letters_removed(Removed::Expired, *count),
            Happening::Core(
                CoreHappening::Failed { .. }
                | CoreHappening::Recovered { .. }
                | CoreHappening::BreakerOpened { .. }
                | CoreHappening::OursFailed { .. }
                | CoreHappening::Stepped { .. }
                | CoreHappening::AttemptSettled(_)
                | CoreHappening::EntrySettled { .. },
            )
            | Happening::Arrived { .. }
            | Happening::GroupMade { .. }
            | Happening::Trimmed { .. }
            | Happening::DeadIndexed { .. }
            | Happening::ClockStepped { .. }
            | Happening::OtherRegistry { .. }
            | Happening::Requested { .. } => {}
        }
    }
}

fn log_failing(line: Line) {
    let Line { kind, number, last: Case { delivery, event, intent, why } } = line;
    let (endpoint, event) = (&delivery.endpoint, event.as_ref().map(display));
    match kind {
        Kind::Failed => info!(
            %endpoint, %delivery, event, %intent, outcome = why,
            "attempts failed and will be made again: {number}; said once a minute at most"
        ),
        Kind::Dead => warn!(
            %endpoint, %delivery, event, %intent, reason = why,
            "dead letters: {number}; said once a minute at most"
        ),
    }
}

/// Of `info`; but a place has few such lines a minute, and whoever has each step told at `debug` misses none of these either.
macro_rules! each {
    ($($line:tt)*) => {
        match tracing::enabled!(Level::DEBUG) {
            true => debug!($($line)*),
            false => info!($($line)*),
        }
    };
}

/// What happens to single deliveries is there for whoever asks for it: `HERALD_LOG=herald=debug`.
fn log(happening: &Happening, tracer: Option<&Tracer>) {
    match happening {
        Happening::Core(happening) => log_of_core(happening, tracer),
        Happening::TermBegan { term } => info!(term = term.id(), "owns the partition"),
        Happening::TermEnded { term, why } => warn!(term = term.id(), reason = why, "the term has ended"),
        // The term's end says it.
        Happening::LeaseLost => {}
        Happening::GroupMade { after } => warn!("made the consumer group, after {after}"),
        Happening::Read { entries, is_again: false } => debug!("read {entries} entries"),
        Happening::Read { entries, is_again: true } => debug!("read {entries} entries again"),
        Happening::Arrived { entry, event, intent, account, traceparent, .. } => {
            let trace = tracer.and_then(|tracer| tracer.trace(traceparent.as_ref(), *entry));
            let (trace_id, span_id) =
                (trace.map(|t| display(t.id)), trace.map(|t| display(SpanId::process(t.id, *entry))));
            debug!(%entry, %event, %intent, %account, trace_id, span_id, "read")
        }
        Happening::Quarantined { entry, error } => each!(%entry, error, "quarantined"),
        Happening::Novelty { entry, event, account, novelty } => {
            let kind = novelty.kind.name();
            warn!(%entry, %event, %account, "not what this Herald expects, and delivered: {kind} {novelty}; said once")
        }
        Happening::TrimmedWhilePending { entry } => {
            error!(%entry, "the entry was trimmed while it was pending; its event is gone")
        }
        Happening::NoEndpoint { entry, event, account } => {
            debug!(%entry, %event, %account, "the account has no endpoint for it")
        }
        Happening::ForeignClaimed { count } => {
            warn!("took over {count} entries that another consumer of the group had taken")
        }
        Happening::Trimmed { count } => debug!("trimmed {count} finished entries"),
        Happening::DeadExpired { count } => warn!("dropped {count} dead letters beyond the limit of retention"),
        Happening::DeadIndexed { count } => {
            info!("indexed {count} dead letters that an older Herald wrote or removed")
        }
        Happening::ClockStepped { by_ms } => error!(
            "Redis' clock has stepped by {by_ms} ms: retries are put right, and nothing expires until it has been steady"
        ),
        Happening::OtherRegistry { bound, found } => error!(
            "this partition belongs to another registry of endpoints, {bound} and not {found}; nothing is sent until an \
             operator says so"
        ),
        Happening::JobFailed { why } => error!(reason = why, "a job of the partition failed; it comes again"),
        Happening::Requested { request, answer } => info!("the request {request} was dealt with: {answer}"),
    }
}

fn log_of_core(happening: &CoreHappening, tracer: Option<&Tracer>) {
    match happening {
        CoreHappening::Failed { about, attempt, outcome, retry_in_ms } => {
            let About { id, intent, event, account, .. } = about;
            let (event, account) = (event.as_ref().map(display), account.as_ref().map(display));
            let due = rfc3339(clock::wall_ms().saturating_add(*retry_in_ms).saturating_mul(1_000));
            let (trace_id, span_id) = ids(about, Some(*attempt), tracer);
            debug!(
                delivery = %id, endpoint = %id.endpoint, event, %intent, account, attempt, %outcome, due, trace_id, span_id,
                "retry"
            )
        }
        CoreHappening::Dead { about, reason, attempts } => {
            let About { id, intent, event, account, .. } = about;
            let (event, account) = (event.as_ref().map(display), account.as_ref().map(display));
            let (reason, endpoint) = (reason.name(), &id.endpoint);
            let (trace_id, span_id) = ids(about, None, tracer);
            each!(
                delivery = %id, %endpoint, event, %intent, account, attempt = attempts, reason, trace_id, span_id,
                "dead letter"
            )
        }
        CoreHappening::Stepped { about, step } => log_step(about, step, tracer),
        // They have a span.
        CoreHappening::AttemptSettled(_) | CoreHappening::EntrySettled { .. } => {}
        // Said where it is known how long it failed.
        CoreHappening::Recovered { .. } => {}
        CoreHappening::BreakerOpened { endpoint } => {
            warn!(%endpoint, "the receiver is in trouble: its deliveries wait in the backlog")
        }
        // The pause itself says it, with the reason.
        CoreHappening::OverQuota { endpoint, quota, bytes } => {
            debug!(%endpoint, reason = quota.name(), "over its quota with {bytes} bytes: it is to be paused")
        }
        CoreHappening::OursFailed { cause, count } => {
            error!(reason = ?cause, "{count} attempts failed here and not at their receivers: they go again")
        }
        CoreHappening::Unreadable { id, why } => {
            error!(delivery = %id, reason = why, "a record cannot be read; it stays as it is")
        }
        CoreHappening::Displaced { id, event } => {
            error!(delivery = %id, %event, "another event has this id: the entry is quarantined, put it back from there")
        }
        CoreHappening::SetAside { item, why } => {
            error!(reason = why, "Redis cannot take this change ({item}); it is set aside until the next term")
        }
    }
}

type Shown<T> = Option<DisplayValue<T>>;

/// Of a sampled trace: its id, and that of this attempt's span, or without one of the span of the entry.
fn ids(about: &About, attempt: Option<u32>, tracer: Option<&Tracer>) -> (Shown<TraceId>, Shown<SpanId>) {
    let trace = tracer.and_then(|tracer| tracer.trace(about.traceparent.as_ref(), about.id.entry));
    let span = trace.map(|trace| match attempt {
        Some(attempt) => SpanId::attempt(trace.id, &about.id, attempt),
        None => SpanId::process(trace.id, about.id.entry),
    });
    (trace.map(|trace| display(trace.id)), span.map(display))
}

fn log_step(about: &About, step: &Step, tracer: Option<&Tracer>) {
    let About { id, intent, event, account, .. } = about;
    let (endpoint, event, account) = (&id.endpoint, event.as_ref().map(display), account.as_ref().map(display));
    let attempt = match step {
        Step::Attempted { attempt, .. } => Some(*attempt),
        Step::Held | Step::Parked | Step::Delivered => None,
    };
    let (trace_id, span_id) = if tracing::enabled!(Level::DEBUG) { ids(about, attempt, tracer) } else { (None, None) };
    match step {
        Step::Held => debug!(delivery = %id, %endpoint, event, %intent, account, trace_id, span_id, "held"),
        Step::Parked => debug!(delivery = %id, %endpoint, event, %intent, account, trace_id, span_id, "parked"),
        Step::Attempted { attempt, outcome, took_us } => debug!(
            delivery = %id, %endpoint, event, %intent, account, attempt, outcome = outcome.name(),
            status = outcome.status(), took_ms = took_us / 1_000, trace_id, span_id, "attempt"
        ),
        Step::Delivered => debug!(delivery = %id, %endpoint, event, %intent, account, trace_id, span_id, "delivered"),
    }
}

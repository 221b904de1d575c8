//! Reports what happened: counts it, logs it, and passes it on to a listener.

use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::{
    failing::{Case, Failing, Kind, Line, Recovery},
    health::Odd,
    told::Told,
};
use crate::{
    dispatch::{
        core::{CoreHappening, Tally},
        partition::Happening,
    },
    facts::{
        id::{AccountId, DeliveryId, IntentId},
        unserved::OddSeen,
    },
    telemetry::metrics::{Finished, Metrics, Removed, Settled},
};

pub struct Reporter {
    metrics: Metrics,
    /// What does not fit is left out.
    listener: Option<mpsc::Sender<Happening>>,
    told: Told,
    failing: Failing,
    /// What was counted of it so far.
    tally: Tally,
    odd: Odd,
}

impl Reporter {
    pub fn new(metrics: Metrics, listener: Option<mpsc::Sender<Happening>>) -> Self {
        Self {
            metrics,
            listener,
            told: Told::default(),
            failing: Failing::default(),
            tally: Tally::default(),
            odd: Odd::default(),
        }
    }

    pub fn happened(&mut self, now: u64, happening: Happening) {
        self.count(&happening);
        self.odd.happened(&happening);
        if self.is_worth_a_line(now, &happening) {
            log(&happening);
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
                    warn!(entries, last = %entry, error, "no valid event: quarantined; said once a minute at most");
                }
                false
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
        let case = |id: &DeliveryId, intent: &IntentId, why: String| Case {
            delivery: id.clone(),
            intent: intent.clone(),
            why,
        };
        let line = match happening {
            CoreHappening::Failed { id, intent, outcome, .. } => {
                self.failing.happened(now, Kind::Failed, case(id, intent, outcome.to_string()))
            }
            CoreHappening::Dead { id, intent, reason, .. } => {
                self.failing.happened(now, Kind::Dead, case(id, intent, reason.name().to_owned()))
            }
            CoreHappening::Recovered { endpoint } => {
                if let Some(Recovery { after_ms, failed }) = self.failing.recovered(now, endpoint) {
                    info!(%endpoint, after_ms, failed, "the endpoint takes events again");
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
            Happening::TermBegan => self.metrics.term_began(),
            Happening::TermEnded { .. } => self.metrics.term_ended(),
            Happening::Read { entries } => self.metrics.entries_read(*entries as u64),
            Happening::Novelty { novelty, .. } => self.metrics.novel_event(novelty.kind),
            Happening::TrimmedWhilePending { .. } => self.metrics.entries_settled(Settled::Trimmed, 1),
            Happening::NoEndpoint { .. } => self.metrics.entries_settled(Settled::NoEndpoint, 1),
            Happening::ForeignClaimed { count } => self.metrics.entries_claimed(*count as u64),
            Happening::DeadExpired { count } => self.metrics.dead_letters_removed(Removed::Expired, *count),
            Happening::Core(
                CoreHappening::Failed { .. }
                | CoreHappening::Recovered { .. }
                | CoreHappening::BreakerOpened { .. }
                | CoreHappening::OursFailed { .. },
            )
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
    let Line { kind, number, last: Case { delivery, intent, why } } = line;
    let endpoint = &delivery.endpoint;
    match kind {
        Kind::Failed => info!(
            %endpoint, attempts = number, last = %delivery, %intent, outcome = why,
            "attempts failed and will be made again; said once a minute at most"
        ),
        Kind::Dead => warn!(
            %endpoint, letters = number, last = %delivery, %intent, reason = why,
            "dead letters; said once a minute at most"
        ),
    }
}

/// What happens to single deliveries is there for whoever asks for it: `HERALD_LOG=herald=debug`.
fn log(happening: &Happening) {
    match happening {
        Happening::Core(CoreHappening::Failed { id, intent, attempt, outcome, retry_in_ms }) => {
            debug!(delivery = %id, %intent, attempt, %outcome, retry_in_ms, "attempt failed")
        }
        Happening::Core(CoreHappening::Dead { id, intent, reason, attempts }) => {
            debug!(delivery = %id, %intent, reason = reason.name(), attempts, "dead letter")
        }
        // Said where it is known how long it failed.
        Happening::Core(CoreHappening::Recovered { .. }) => {}
        Happening::Core(CoreHappening::BreakerOpened { endpoint }) => {
            warn!(%endpoint, "the receiver is in trouble: its deliveries wait in the backlog")
        }
        // The pause itself says it, with the reason.
        Happening::Core(CoreHappening::OverQuota { endpoint, quota, bytes }) => {
            debug!(%endpoint, quota = quota.name(), bytes, "over its quota: it is to be paused")
        }
        Happening::Core(CoreHappening::OursFailed { cause, count }) => {
            error!(?cause, count, "attempts failed here and not at their receivers: they go again")
        }
        Happening::Core(CoreHappening::Unreadable { id, why }) => {
            error!(delivery = %id, why, "a record cannot be read; it stays as it is")
        }
        Happening::Core(CoreHappening::Displaced { id, event }) => {
            error!(delivery = %id, %event, "another event has this id: the entry is quarantined, put it back from there")
        }
        Happening::Core(CoreHappening::SetAside { item, why }) => {
            error!(item, why, "Redis cannot take this change; it is set aside until the next term")
        }
        Happening::TermBegan => info!("owns the partition"),
        Happening::TermEnded { why } => warn!(why, "the term has ended"),
        Happening::GroupMade { after } => warn!(%after, "made the consumer group"),
        Happening::Read { entries } => debug!(entries, "read"),
        // Logged once a minute.
        Happening::Quarantined { .. } => {}
        Happening::Novelty { entry, novelty, .. } => {
            warn!(%entry, kind = novelty.kind.name(), what = %novelty, "new to this Herald, and delivered; said once")
        }
        Happening::TrimmedWhilePending { entry } => {
            error!(%entry, "the entry was trimmed while it was pending; its event is gone")
        }
        Happening::NoEndpoint { entry, account } => debug!(%entry, %account, "the account has no endpoint for it"),
        Happening::ForeignClaimed { count } => {
            warn!(count, "took over entries that another consumer of the group had taken")
        }
        Happening::Trimmed { count } => debug!(count, "trimmed finished entries"),
        Happening::DeadExpired { count } => warn!(count, "dropped dead letters beyond the limit of retention"),
        Happening::DeadIndexed { count } => info!(count, "indexed dead letters that an older Herald wrote or removed"),
        Happening::ClockStepped { by_ms } => error!(
            by_ms,
            "Redis' clock has stepped: retries are put right, and nothing expires until it has been steady"
        ),
        Happening::OtherRegistry { bound, found } => error!(
            bound,
            found, "this partition belongs to another registry of endpoints; nothing is sent until an operator says so"
        ),
        Happening::JobFailed { why } => error!(why, "a job of the partition failed; it comes again"),
        Happening::Requested { request, answer } => info!(%request, answer, "a request was dealt with"),
    }
}

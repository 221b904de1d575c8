//! What was seen of each endpoint since somebody last asked, for its published health. Costs an attempt no more than a few
//! additions; decides nothing, and no other part of the core reads it.

use super::{AccountId, Core, DeliveryId, EndpointId, LaneAt, Outcome};
use crate::{
    dispatch::lane::Lane,
    facts::{
        health::{BreakerState, Seen},
        letter::Cause,
        outcome::AttemptReport,
    },
};

/// One endpoint as it stands, and what happened to it since the last time.
#[derive(Debug)]
pub struct Noted {
    pub endpoint: EndpointId,
    pub breaker: BreakerState,
    pub window: u32,
    pub in_flight: u32,
    pub seen: Seen,
}

impl Core {
    pub(super) fn note_attempt(&mut self, redis_ms: u64, at: LaneAt, delivery: &DeliveryId, report: &AttemptReport) {
        match &report.outcome {
            // It says nothing of the receiver.
            Outcome::Local { .. } => {}
            Outcome::Delivered { .. } => self.seen(at).delivered(redis_ms, report.timing.total_us),
            outcome => {
                let detail = if report.detail.is_empty() { &report.snippet } else { &report.detail };
                self.seen(at).failed(redis_ms, Cause::of(outcome), delivery, detail);
            }
        }
    }

    pub(super) fn note_letter(&mut self, endpoint: &EndpointId) {
        if let Some(at) = self.lanes.at(endpoint) {
            let seen = self.seen(at);
            seen.dead = seen.dead.saturating_add(1);
        }
    }

    pub(super) fn note_skipped(&mut self, at: LaneAt, account: &AccountId) {
        let seen = self.seen(at);
        seen.skipped = seen.skipped.saturating_add(1);
        seen.account.get_or_insert_with(|| account.clone());
    }

    fn seen(&mut self, at: LaneAt) -> &mut Seen {
        if self.lanes[at].seen.is_none() {
            self.noted.push_back(self.lanes.endpoint(at).clone());
        }
        self.lanes[at].seen.get_or_insert_default()
    }

    /// Those of which something was seen, the first noted first; at most `max`, and the others later. `redis_ms` is Redis' time.
    pub fn take_noted(&mut self, now: u64, redis_ms: u64, max: usize) -> Vec<Noted> {
        let count = self.noted.len().min(max);
        let endpoints: Vec<EndpointId> = self.noted.drain(..count).collect();
        let noted = endpoints.into_iter().filter_map(|endpoint| {
            let lane = self.lanes.get_mut(&endpoint)?;
            let mut seen = *lane.seen.take()?;
            let account = lane.holder.as_ref().map(|holder| holder.account.clone());
            seen.account = account.or(seen.account);
            let (breaker, window) = (breaker_of(lane, now, redis_ms), lane.window(now));
            Some(Noted { endpoint, breaker, window, in_flight: lane.in_flight, seen })
        });
        noted.collect()
    }
}

fn breaker_of(lane: &Lane, now: u64, redis_ms: u64) -> BreakerState {
    use crate::dispatch::breaker::BreakerView;
    match lane.breaker(now) {
        BreakerView::Closed => BreakerState::Closed,
        BreakerView::Open { until } => BreakerState::Open { next_probe_ms: redis_ms + until.saturating_sub(now) },
        BreakerView::HalfOpen { probes } => BreakerState::HalfOpen { probes },
    }
}

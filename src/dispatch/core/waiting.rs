//! What a delivery that was never tried waited for, from what its owner knows when it gives it up: for its letter.
//! Nothing is decided by it.

use std::collections::VecDeque;

use super::{Chain, Core, Delivery, DeliveryId, EndpointId, EntryId, HashMap, LaneAt, Origin};
use crate::facts::{
    id::IntentId,
    letter::{WaitedFor, Waiting},
};

/// Chains of which it is remembered which head ended last. What was held behind one is claimed within a moment of its end,
/// so these are minutes' worth; and each costs a few hundred bytes.
const MAX_ENDED: usize = 4_096;

/// Heads with a record that have ended: what is released by that was held behind them.
#[derive(Debug, Default)]
pub(super) struct EndedHeads {
    last: HashMap<(EndpointId, IntentId), EntryId>,
    order: VecDeque<(EndpointId, IntentId)>,
}

impl EndedHeads {
    pub fn ended(&mut self, id: &DeliveryId, intent: &IntentId) {
        let key = (id.endpoint.clone(), intent.clone());
        if self.last.insert(key.clone(), id.entry).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > MAX_ENDED
            && let Some(oldest) = self.order.pop_front()
        {
            self.last.remove(&oldest);
        }
    }

    fn before(&self, delivery: &Delivery) -> Option<EntryId> {
        let key = (delivery.id.endpoint.clone(), delivery.intent.clone());
        self.last.get(&key).copied().filter(|head| *head < delivery.id.entry)
    }
}

/// The last time at which all sending was paused, by Redis' clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct AllPaused {
    since_ms: u64,
    until_ms: u64,
}

impl Core {
    /// All sending is paused at this moment.
    pub fn all_is_paused(&mut self, redis_ms: u64) {
        let paused = self.all_paused.get_or_insert(AllPaused { since_ms: redis_ms, until_ms: redis_ms });
        if !std::mem::replace(&mut self.is_all_paused, true) {
            paused.since_ms = redis_ms;
        }
        paused.until_ms = redis_ms;
    }

    pub fn all_goes_on(&mut self) {
        self.is_all_paused = false;
    }

    /// Its head has ended; what waits behind it in Redis is released.
    pub(super) fn head_ended(&mut self, id: &DeliveryId, chain: &Chain) {
        if let Chain::Intent(intent) = chain {
            self.term.ended_heads.ended(id, intent);
        }
    }

    /// None for a delivery that was tried.
    pub(super) fn waited_for(
        &self,
        now: u64,
        redis_ms: u64,
        at: LaneAt,
        delivery: &Delivery,
        origin: Origin,
    ) -> Option<WaitedFor> {
        if delivery.attempts > 0 {
            return None;
        }
        let lane = &self.lanes[at];
        let ago = |then: u64| redis_ms.saturating_sub(now.saturating_sub(then));
        let all_paused = self.all_paused.filter(|paused| paused.until_ms >= delivery.since_ms);
        let mut waited = match (lane.paused(), lane.blocked_by(now), all_paused) {
            (Some(mark), ..) => WaitedFor::new(Waiting::Paused).paused(&mark.by, &mark.why, mark.at_ms),
            _ if delivery.is_unsure => WaitedFor::new(Waiting::EndpointUnreadable),
            (None, Some((why, since)), _) => WaitedFor { since_ms: since.map(ago), ..WaitedFor::new(why) },
            (None, None, Some(paused)) => {
                WaitedFor { since_ms: Some(paused.since_ms), ..WaitedFor::new(Waiting::AllPaused) }
            }
            (None, None, None) => WaitedFor::new(Waiting::Unknown),
        };
        if let Some((then, cause)) = lane.last_failure() {
            (waited.last_failure, waited.last_failure_at_ms) = (Some(cause.clone()), Some(ago(*then)));
        }
        // What was parked was a head for as long as it was there.
        if origin == Origin::Claimed
            && delivery.ordered
            && let Some(head) = self.term.ended_heads.before(delivery)
        {
            (waited.why, waited.head) = (Waiting::Held, Some(head));
        }
        Some(waited)
    }
}

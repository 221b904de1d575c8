//! What a worker still knows when a term has ended: attempts in flight, results that Redis has not confirmed, and those that it
//! has confirmed lately. Each is remembered until its delivery is read again. Knows nothing of lanes and seats.

use std::{hash::BuildHasher, sync::Arc};

use super::{
    Attempted, Delivery, DeliveryId, HashMap, Token,
    settled::{Settled, Which, WhichAttempt},
};

/// Results that may wait for their deliveries to be read again. Beyond it the receivers get duplicates instead.
const MAX_RESULTS: usize = 8_192;

/// Tells an event apart from another one that got its entry's id, after a failover to a Redis that had not heard of the
/// first: a hash of the event's bytes.
pub(super) type Fingerprint = u64;

/// Which attempt, across terms.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct AttemptId {
    pub delivery: DeliveryId,
    pub attempt: u32,
    pub event: Fingerprint,
    /// The operator's mark, if it was redelivered: an attempt that died of no attempt has its number again.
    pub redelivery: Fingerprint,
}

/// What is known of an attempt that has ended.
#[derive(Debug, Clone)]
pub(super) struct PastAttempt {
    pub attempted: Arc<Attempted>,
    /// By our own clock that never steps: a retry's pause counts from then, whatever term it is in.
    pub at: u64,
    /// The endpoint's that it was made with.
    pub revision: u64,
}

#[derive(Debug)]
pub(super) enum Carried {
    /// With the endpoint's revision that it was made with.
    Flying(Token, u64),
    Ended(PastAttempt),
}

#[derive(Debug, Default)]
pub(super) struct CarriedOver {
    attempts: HashMap<AttemptId, Carried>,
    /// What was delivered by a later attempt than its first, or from its record, for when its entry is read again.
    delivered: HashMap<(DeliveryId, Fingerprint), PastAttempt>,
    settled: Settled,
    hasher: foldhash::fast::RandomState,
}

impl CarriedOver {
    /// Costs least while the event has just been read.
    pub fn fingerprint(&self, event: &[u8]) -> Fingerprint {
        self.hasher.hash_one(event)
    }

    /// The next attempt of a delivery.
    pub fn id_of(&self, delivery: &Delivery, event: Fingerprint) -> AttemptId {
        let count = delivery.redelivered.len();
        let redelivery = delivery.redelivered.last().map_or(0, |mark| self.hasher.hash_one((count, mark)));
        AttemptId { delivery: delivery.id.clone(), attempt: delivery.next_attempt(), event, redelivery }
    }

    fn which(&self, id: &AttemptId) -> WhichAttempt {
        let hash = self.hasher.hash_one((&id.delivery.endpoint, id.event));
        let of = Which { entry: id.delivery.entry, hash };
        WhichAttempt { of, redelivery: id.redelivery, number: id.attempt }
    }

    /// Redis has confirmed what came of it. `is_last`: a dead letter.
    pub fn confirm(&mut self, now: u64, id: &AttemptId, ended: PastAttempt, is_last: bool) {
        let which = self.which(id);
        self.settled.confirm(now, which, ended, is_last);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: u64) {
        self.settled.tick(now);
    }

    /// It is in flight.
    pub fn fly(&mut self, id: AttemptId, token: Token, revision: u64) {
        self.attempts.insert(id, Carried::Flying(token, revision));
    }

    /// It has ended. Its record may be claimed first, and its entry read again only after that.
    pub fn end(&mut self, id: AttemptId, ended: PastAttempt) {
        if id.attempt > 1 && ended.attempted.report.outcome.is_delivered() {
            self.remember_delivered(&id, ended.clone());
        }
        self.attempts.insert(id, Carried::Ended(ended));
    }

    /// Until its entry is acknowledged, what was delivered from its record is read again as if nothing of it had been sent,
    /// and may get a record again before its turn comes.
    pub fn remember_delivered(&mut self, id: &AttemptId, ended: PastAttempt) {
        if self.delivered.len() < MAX_RESULTS {
            self.delivered.insert((id.delivery.clone(), id.event), ended);
        }
    }

    /// Its entry is acknowledged. Who reads it after that wants to have it again.
    pub fn forget_delivered(&mut self, id: &AttemptId) {
        if !self.delivered.is_empty() {
            self.delivered.remove(&(id.delivery.clone(), id.event));
        }
    }

    /// What is known of the next attempt of a delivery, once.
    pub fn take(&mut self, delivery: &Delivery, event: Fingerprint) -> Option<Carried> {
        let may_be_settled = self.settled.may_know(delivery.id.entry);
        if self.attempts.is_empty() && self.delivered.is_empty() && !may_be_settled {
            return None;
        }
        let id = self.id_of(delivery, event);
        let settled = may_be_settled.then(|| self.which(&id));
        let unconfirmed = self.attempts.remove(&id).or_else(|| {
            let of_event = (id.delivery, id.event);
            let ended = self.delivered.get(&of_event)?;
            // What another owner or an operator has taken further since then is still owed.
            let is_done = id.attempt <= ended.attempted.report.number && delivery.redelivered.is_empty();
            is_done.then(|| self.delivered.remove(&of_event)).flatten().map(Carried::Ended)
        });
        unconfirmed.or_else(|| self.settled.recalls(settled?).map(Carried::Ended))
    }

    /// The attempt of an earlier term that is in flight under this token, once, with its revision.
    pub fn take_flight(&mut self, token: Token) -> Option<(AttemptId, u64)> {
        let found = self.attempts.iter().find_map(|(id, carried)| match carried {
            Carried::Flying(flying, revision) if *flying == token => Some((id.clone(), *revision)),
            Carried::Flying(..) | Carried::Ended(..) => None,
        });
        let (id, revision) = found?;
        self.attempts.remove(&id);
        Some((id, revision))
    }

    pub fn flights(&self) -> impl Iterator<Item = (Token, &DeliveryId)> {
        self.attempts.iter().filter_map(|(id, carried)| match carried {
            Carried::Flying(token, _) => Some((*token, &id.delivery)),
            Carried::Ended(..) => None,
        })
    }

    pub fn forget_flights(&mut self) {
        self.attempts.retain(|_, carried| matches!(carried, Carried::Ended(..)));
    }

    pub fn forget_results(&mut self) {
        self.settled.forget_recalled();
        self.delivered.clear();
        self.attempts.retain(|_, carried| matches!(carried, Carried::Flying(..)));
    }

    /// Somebody wants to have again what was settled.
    pub fn forget_settled(&mut self) {
        self.settled.forget();
    }

    /// What is known of this term is for those that follow. Drops the results if they are too many.
    pub fn end_term(&mut self) {
        self.settled.recall();
        if self.attempts.len() > MAX_RESULTS {
            self.attempts.retain(|_, carried| matches!(carried, Carried::Flying(..)));
        }
    }
}

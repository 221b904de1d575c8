//! Attempts on their way to a receiver, what it does with them, and what it must never see.

use super::*;

impl World {
    pub(super) fn start(&mut self, worker: usize, send: NextAttempt) {
        let entry = send.delivery.id.entry;
        let endpoint = index_of(send.endpoint.id.as_str());
        let intent = index_of(send.delivery.intent.as_str());
        let event = index_of(send.delivery.event.as_str()) as u64;
        let number = send.delivery.next_attempt();
        let (life, token) = (self.workers[worker].life, send.token);
        self.tally.count("attempts");
        self.tell(|| format!("       worker {worker} starts attempt {number} of {}", send.delivery.id));
        self.tally.checked(Promise::ToItsOwn);
        let (owner, receiver) = (self.plan.intents[intent], index_of(send.endpoint.account.as_str()));
        if owner != receiver {
            self.wrong(Promise::ToItsOwn, || {
                format!("{} is acc_{owner}'s, and goes to acc_{receiver}", send.delivery.id)
            });
        }
        let flights = &self.workers[worker].flights;
        let same_lane = flights.values().filter(|flight| flight.endpoint == endpoint).count();
        let of_chain = flights.values().filter(|flight| flight.endpoint == endpoint && flight.intent == intent);
        let of_chain: Vec<(EntryId, u64)> = of_chain.map(|flight| (flight.entry, flight.event)).collect();
        let is_ordered = !self.was_unordered[endpoint];
        self.tally.checked(Promise::Bounded);
        if same_lane >= usize::from(self.plan.endpoints[endpoint].max_in_flight) {
            self.wrong(Promise::Bounded, || format!("ep_{endpoint} has {same_lane} in flight, and one more starts"));
        }
        if is_ordered {
            self.tally.checked(Promise::InOrder);
        }
        let same_chain = of_chain.iter().any(|(flying, of)| {
            let is_lost = self.ledger.of_event(endpoint, *of).is_some_and(|owed| owed.was_trimmed);
            *flying == entry || !is_lost
        });
        if is_ordered && same_chain && !self.is_loosened {
            self.wrong(Promise::InOrder, || format!("two attempts of one chain are in flight: {}", send.delivery.id));
        }
        let is_forgotten = self.ledger.of_event(endpoint, event).is_some_and(|owed| owed.is_forgotten);
        if is_ordered
            && !is_forgotten
            && let Some(earlier) = self.ledger.overtaken(endpoint, intent, entry, &self.model)
        {
            let earlier = earlier.id.clone();
            self.wrong(Promise::InOrder, || format!("{} goes before {earlier} has ended", send.delivery.id));
        }
        let is_owner = self.legit.is_some() && self.legit == self.workers[worker].term && self.model.lease.is_some();
        let has_ended = self.has_ended_in_redis(&send.delivery.id);
        let (loosened, has_faults) = (self.is_loosened, self.has_faults);
        if let Some(owed) = self.ledger.of_event(endpoint, event) {
            // A duplicate that fails is retried like any other: that is still one duplicate.
            self.tally.checked(Promise::FewDuplicates);
            let was_answered = std::mem::take(&mut owed.answered);
            self.duplicates += usize::from(was_answered && !loosened);
            let again = owed.delivered && has_ended && is_owner && !loosened;
            if again || (was_answered && !has_faults) {
                self.wrong(Promise::FewDuplicates, || format!("{} has ended and goes again", send.delivery.id));
            }
        }
        self.is_not_settled(worker, &send.delivery, event);
        if self.duplicates > self.allowance {
            self.wrong(Promise::FewDuplicates, || {
                "there are more duplicates than deliveries were in flight at the ends of terms".to_owned()
            });
        }
        // A receiver that has not shown that it answers gets no more than its share of the flights.
        let is_slow = send.trust.class().is_some();
        let of_lane = self.workers[worker].flights.values().filter(|flight| flight.endpoint == endpoint);
        let slow = of_lane.filter(|flight| flight.is_slow).count();
        if is_slow && slow >= self.plan.budgets.slow_of_endpoint().count {
            self.wrong(Promise::Bounded, || format!("ep_{endpoint} has {slow} slow flights, and one more starts"));
        }
        let flight = Flight { endpoint, intent, entry, event, number, is_slow };
        self.workers[worker].flights.insert(token, flight.clone());
        self.wire.insert((worker, life, token), flight);
        let there = self.chance.below(3);
        self.after(there, Event::Arrive { worker, life, token });
    }

    /// Nothing in Redis would let it be sent again.
    pub(super) fn has_ended_in_redis(&self, id: &DeliveryId) -> bool {
        let group = self.model.stream.groups.get(GROUP);
        !self.model.records.contains_key(id)
            && group.is_some_and(|group| id.entry <= group.last_delivered && !group.pending.contains_key(&id.entry))
    }

    pub(super) fn arrive(&mut self, worker: usize, life: u32, token: Token) {
        let Some(flight) = self.wire.get(&(worker, life, token)).cloned() else { return };
        // To one in three of them so quickly that the next attempts are handed over before there are places for them.
        let quick = self.chance.within(1, if flight.endpoint.is_multiple_of(3) { 2 } else { 40 });
        let (mut manner, coin) = (self.manners[flight.endpoint], self.chance.one_in(2));
        if manner == Manner::Flaky {
            manner = if coin { Manner::Fails } else { Manner::Healthy };
        }
        let retry_after = coin.then(|| Duration::from_millis(100 + quick * 10));
        let (outcome, takes) = match manner {
            Manner::Healthy => (Outcome::Delivered { status: 200 }, quick),
            Manner::Fails | Manner::Flaky => (Outcome::ServerFailed { status: 500 }, quick),
            Manner::Hangs => (Outcome::ResponseTimedOut, ATTEMPT_TIMEOUT_MS),
            Manner::Gone => (Outcome::Gone, quick),
            Manner::Throttles => (Outcome::Throttled { status: 429, retry_after }, quick),
        };
        if manner == Manner::Gone {
            self.takes_nothing(flight.endpoint);
        }
        // A receiver that is too slow to say so may have taken it all the same.
        if (manner == Manner::Healthy || (manner == Manner::Hangs && coin))
            && let Some(owed) = self.ledger.of_event(flight.endpoint, flight.event)
        {
            owed.delivered = true;
        }
        self.after(takes, Event::Ended { worker, life, token, outcome, took_ms: takes });
    }

    pub(super) fn ended(&mut self, worker: usize, life: u32, token: Token, outcome: Outcome, took_ms: u64) {
        let Some(flight) = self.wire.remove(&(worker, life, token)) else { return };
        if self.workers[worker].life != life || self.workers[worker].flights.remove(&token).is_none() {
            return;
        }
        if outcome.is_delivered() {
            self.taken_at.insert((worker, flight.endpoint), self.now);
        }
        if outcome.is_delivered()
            && let Some(owed) = self.ledger.of_event(flight.endpoint, flight.event)
        {
            owed.answered = true;
        }
        let report = AttemptReport {
            number: flight.number,
            // Its own machine's clock, which is nobody else's.
            at_ms: EPOCH_MS + self.now + (worker as u64 + 1) * 3_600_000,
            outcome,
            timing: Timing { total_us: took_ms * 1_000, ..Timing::default() },
            body_end: BodyEnd::Complete,
            snippet: String::new(),
            detail: String::new(),
        };
        let now = self.local(worker);
        let (mut back, is_delivered) = (Vec::new(), report.outcome.is_delivered());
        let endpoint = endpoint_id(flight.endpoint);
        self.workers[worker].turns.ended(&endpoint, is_delivered, &mut back);
        back.iter().for_each(|_| self.tally.count("places_lost_with_a_failure"));
        if let Some(partition) = &mut self.workers[worker].partition {
            partition.not_begun(now, back.into_iter());
            partition.attempted(
                now,
                token,
                Attempted { report, request: None, flooded: false, resent: false, met: None },
            );
        }
        self.pump(worker);
    }
}

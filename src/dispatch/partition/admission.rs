//! The way of entries that were read into the core, a slice at a time: between two slices the worker looks at its lease,
//! its calls and its attempts. What an account can not take now waits in the stream: see `deferral`.

use super::*;

/// Deliveries that are admitted at once, about a millisecond's work; no more than one question about chains asks for.
pub const SLICE: usize = 256;

impl<D: Directory> Partition<D> {
    /// Admits the next slice of what is staged, if nothing has to be asked before.
    pub(super) fn admit_if_known(&mut self, now: u64) {
        let is_confirmed = self.staged.as_ref().is_some_and(|staged| !staged.unconfirmed && staged.asking.is_none());
        if is_confirmed && self.core.has_room() && self.questions().is_empty() {
            self.admit_slice(now, Vec::new(), Vec::new());
        }
    }

    /// The deliveries of the next slice that Redis must be asked about, in the order of their arrival. Good only until the
    /// next settlement is confirmed.
    pub(super) fn questions(&self) -> Vec<Question> {
        let Some(staged) = &self.staged else { return Vec::new() };
        let (mut questions, mut left) = (Vec::new(), SLICE);
        for arrival in &staged.arrivals {
            if !arrival.is_open && self.deferral.holds(&arrival.event.account, staged.of_pass) {
                continue;
            }
            for endpoint in arrival.owed_to().skip(arrival.next).take(left) {
                left -= 1;
                if arrival.suspect || self.core.must_ask(endpoint) {
                    let id = DeliveryId { entry: arrival.entry, endpoint: endpoint.clone() };
                    questions.push((id, arrival.event.intent.clone(), arrival.event.id.clone()));
                }
            }
            if left == 0 {
                break;
            }
        }
        questions
    }

    pub(super) fn asked(&mut self, now: u64, answers: &[Known]) {
        let Some(questions) = self.staged.as_mut().and_then(|staged| staged.asking.take()) else { return };
        self.admit_slice(now, questions, answers.to_vec());
    }

    /// In the same breath as the questions were answered: no settlement was confirmed between.
    fn admit_slice(&mut self, now: u64, questions: Vec<Question>, known: Vec<Known>) {
        let Some(mut staged) = self.staged.take() else { return };
        let mut known: HashMap<DeliveryId, Known> = questions.into_iter().map(|(id, ..)| id).zip(known).collect();
        let mut left = SLICE;
        // Accounts that were deferred within this slice.
        let mut stuck = HashSet::default();
        while left > 0
            && self.core.has_room()
            && let Some(mut arrival) = staged.arrivals.pop_front()
        {
            // What was to be asked about and stays behind is of this slice too: what comes after it was not asked about.
            // Who was held before it was passed over then.
            let was_held = self.deferral.holds(&arrival.event.account, staged.of_pass);
            if self.defers(now, &arrival, staged.of_pass) {
                if stuck.contains(&arrival.event.account) || !was_held {
                    left = left.saturating_sub(arrival.left());
                    stuck.insert(arrival.event.account.clone());
                }
                staged.deferred += 1;
                continue;
            }
            self.open(now, &mut arrival, staged.of_pass);
            while left > 0 && arrival.left() > 0 && self.core.has_share(&arrival.event.account) {
                left -= 1;
                staged.count += 1;
                staged.deferred += usize::from(self.admit_one(now, &arrival, &mut known));
                arrival.next += 1;
            }
            let account = arrival.event.account.clone();
            if arrival.left() == 0 {
                if arrival.is_rest {
                    self.deferral.relieve([account]);
                }
            } else if self.core.has_share(&account) {
                staged.arrivals.push_front(arrival);
            } else {
                left = left.saturating_sub(arrival.left());
                arrival.is_rest = true;
                stuck.insert(account.clone());
                self.core.wakes_with_room(&account);
                self.deferral.rest(now, arrival);
            }
        }
        match staged.arrivals.is_empty() {
            true if staged.count + staged.deferred > 0 => {
                self.feeds_backlogs = answers::would_feed_backlogs(staged.deferred, staged.count.max(staged.deferred));
            }
            true => {}
            false => self.staged = Some(staged),
        }
    }

    /// Whether an entry stays in the stream for now.
    fn defers(&mut self, now: u64, arrival: &Arrival, of_pass: bool) -> bool {
        // Of what was begun the rest does not wait for a second time at its beginning.
        if arrival.is_open || arrival.left() == 0 && !self.deferral.holds(&arrival.event.account, of_pass) {
            return false;
        }
        let account = &arrival.event.account;
        let is_held = self.deferral.holds(account, of_pass);
        if !is_held {
            arrival.endpoints.iter().take(SLICE).for_each(|endpoint| self.stand_as(now, endpoint));
            // Beyond what may wait there it goes into records, whatever they cost: also what has waited long, under
            // pressure too. Behind an entry that waits nothing of the stream is trimmed, of whatever account, and so the
            // pressure would never end.
            let overflows = of_pass && (self.deferral.is_full() || self.deferral.has_waited_long(now, account));
            if overflows || self.core.takes(now, account, arrival.owed_to(), self.is_under_pressure) {
                return false;
            }
            self.core.wakes_with_room(account);
        }
        self.deferral.defer(now, account, arrival.entry, arrival.left(), of_pass);
        true
    }

    fn open(&mut self, now: u64, arrival: &mut Arrival, of_pass: bool) {
        if std::mem::replace(&mut arrival.is_open, true) {
            return;
        }
        if arrival.left() == 0 {
            let account = arrival.event.account.clone();
            self.happenings.push(Happening::NoEndpoint { entry: arrival.entry, account });
        }
        // Here and not where it is read: what is deferred is read again.
        let new = |novelty| Happening::Novelty { entry: arrival.entry, novelty };
        self.happenings.extend(arrival.event.novelties.iter().cloned().map(new));
        if of_pass {
            self.deferral.admitted(&arrival.event.account);
        }
        self.core.open_entry(now, arrival.entry, arrival.left() as u32);
    }

    /// Tells whether it joins a backlog that is being drained.
    fn admit_one(&mut self, now: u64, arrival: &Arrival, known: &mut HashMap<DeliveryId, Known>) -> bool {
        self.admitted_at = now;
        let (redis_ms, since_ms) = (self.redis_now(now), self.clock.birth(now));
        let id = match arrival.endpoints.get(arrival.next) {
            Some(endpoint) => {
                self.stand_as(now, endpoint);
                endpoint.id.clone()
            }
            None => {
                let id = arrival.unknown[arrival.next - arrival.endpoints.len()].clone();
                self.stand_unknown(now, &id);
                id
            }
        };
        let drains = self.core.drains_backlog(now, &id);
        let mut delivery = Delivery::new(arrival.entry, id, &arrival.event, true, since_ms);
        delivery.is_unsure = arrival.next >= arrival.endpoints.len();
        delivery.traceparent = arrival.traceparent.clone();
        delivery.place = arrival.place;
        let known = known.remove(&delivery.id).unwrap_or_default();
        self.core.admit_fresh(now, redis_ms, delivery, known);
        drains
    }
}

//! The end of a term and what survives it: attempts in flight, and verdicts that were not confirmed.

use std::hash::BuildHasher;

use super::*;

impl Core {
    /// The term has ended. Nothing in memory is known to stand in Redis; what was sent, and what came of it, is
    /// remembered until the deliveries are read again.
    pub fn end_term(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        for op in sent.into_iter().chain(std::mem::take(&mut self.outbox)) {
            if let Op::Log { verdict, .. } = op {
                self.carry(verdict);
            }
        }
        for verdict in std::mem::take(&mut self.delivered).into_values().flatten() {
            self.carry(verdict);
        }
        for (token, job) in std::mem::take(&mut self.flights) {
            let Job { delivery, revision, .. } = &self.jobs[&job];
            self.carried.insert(self.carried_id(delivery), Carried::Flying(token, *revision));
        }
        self.rereads = true;
        self.jobs.clear();
        self.chains.clear();
        self.singles.clear();
        self.changing.clear();
        self.entries.clear();
        self.begun.clear();
        self.ready.clear();
        self.hungry.clear();
        self.ending.clear();
        self.alarms.clear();
        self.ageing.clear();
        self.again.clear();
        self.outbox_since = None;
        self.memory = Memory::default();
        self.weights = Weights::default();
        self.outbox_bytes = 0;
        self.shares.forget_waiters();
        self.aside.clear();
        self.blocked.clear();
        self.refusals.clear();
        self.lanes.values_mut().for_each(Lane::reset);
        if self.carried.len() > MAX_CARRIED {
            self.carried.retain(|_, carried| matches!(carried, Carried::Flying(..)));
        }
    }

    /// Of entries of which something was delivered or has a record what still waits gets its records: whoever reads them again
    /// would deliver all of each, what is delivered from its record before that too.
    pub fn record_what_is_begun(&mut self, now: u64) {
        let waits = |job: &Job| job.origin == Origin::Fresh && self.begun.contains(&job.delivery.id.entry);
        let mut waiting: Vec<(EntryId, JobId)> =
            self.jobs.iter().filter(|(_, job)| waits(job)).map(|(id, job)| (job.delivery.id.entry, *id)).collect();
        waiting.sort_unstable();
        waiting.into_iter().for_each(|(_, job)| self.give_record(now, job));
    }

    /// Nobody waits for what is in flight any more: it gets its records.
    pub fn abandon_flights(&mut self, now: u64) {
        let mut flights: Vec<(Token, JobId)> = self.flights.drain().collect();
        flights.sort_unstable();
        for (token, job) in flights {
            self.give_record(now, job);
            self.count_out(job);
            self.leaves_seat(token);
            self.count_in(job);
            let at = self.jobs[&job].lane;
            self.lanes[at].forget_attempt(token);
        }
        self.forget_flights();
    }

    /// Somebody else may own the partition now: what was in flight is aborted and means nothing any more.
    pub fn forget_flights(&mut self) {
        let mut flying = Vec::new();
        for ((id, ..), carried) in &self.carried {
            if let Carried::Flying(token, _) = carried {
                flying.push(*token);
                if let Some(lane) = self.lanes.get_mut(&id.endpoint) {
                    lane.forget_attempt(*token);
                }
            }
        }
        flying.sort_unstable();
        flying.into_iter().for_each(|token| self.leaves_seat(token));
        self.carried.retain(|_, carried| matches!(carried, Carried::Ended(..)));
    }

    /// Whether an item was refused in this term.
    pub fn has_refused(&self) -> bool {
        !self.aside.is_empty()
    }

    /// Everything that could be read again was: what is remembered of the last term means nothing any more.
    pub fn forget_verdicts(&mut self) {
        self.rereads = false;
        self.delivered_before.clear();
        self.carried.retain(|_, carried| matches!(carried, Carried::Flying(..)));
    }

    /// Somebody else owned the partition: what we remember is theirs to find out.
    pub fn forget_carried(&mut self) {
        self.forget_flights();
        self.delivered_before.clear();
        self.carried.clear();
    }

    pub(super) fn carried_for(&mut self, job: JobId) -> Option<Carried> {
        if self.carried.is_empty() && self.delivered_before.is_empty() {
            return None;
        }
        let delivery = &self.jobs[&job].delivery;
        let id = self.carried_id(delivery);
        let (next, is_redelivered) = (delivery.next_attempt(), !delivery.redelivered.is_empty());
        self.carried.remove(&id).or_else(|| {
            let of_event = (id.0, id.2);
            let (ended, _) = self.delivered_before.get(&of_event)?;
            // What another owner or an operator has taken further since is owed all the same.
            let is_done = next <= ended.report.number && !is_redelivered;
            let (ended, revision) = is_done.then(|| self.delivered_before.remove(&of_event)).flatten()?;
            Some(Carried::Ended(ended, revision))
        })
    }

    fn carry(&mut self, verdict: Verdict) {
        self.carry_ended((verdict.id, verdict.attempt, verdict.event), verdict.attempted, verdict.revision);
    }

    /// Its record may be claimed first, and its entry read again only after that.
    pub(super) fn carry_ended(&mut self, id: CarriedId, attempted: Arc<Attempted>, revision: u64) {
        if id.1 > 1 && attempted.report.outcome.is_delivered() {
            self.remember(id.0.clone(), id.2, Arc::clone(&attempted), revision);
        }
        self.carried.insert(id, Carried::Ended(attempted, revision));
    }

    /// Its record, which an owner before left, was claimed before its entry was read again.
    pub(super) fn remember_for_its_entry(&mut self, verdict: Verdict) {
        if self.rereads {
            self.remember(verdict.id, verdict.event, verdict.attempted, verdict.revision);
        }
    }

    /// While an entry is not acknowledged, what was delivered from its record is read again as if nothing of it had been sent,
    /// and may get a record again before its turn comes.
    fn remember(&mut self, id: DeliveryId, event: Fingerprint, attempted: Arc<Attempted>, revision: u64) {
        if self.delivered_before.len() < MAX_CARRIED {
            self.delivered_before.insert((id, event), (attempted, revision));
        }
    }

    fn carried_id(&self, delivery: &Delivery) -> CarriedId {
        (delivery.id.clone(), delivery.next_attempt(), self.fingerprint(delivery))
    }

    /// Of its event's bytes.
    pub(super) fn fingerprint(&self, delivery: &Delivery) -> Fingerprint {
        self.fingerprints.hash_one(&delivery.body[..])
    }

    /// A head that was in flight, or had ended, when the last term did. Only a head: after Redis forgot something, the
    /// one before it goes again first.
    pub(super) fn resume(&mut self, job: JobId, carried: Carried) {
        match carried {
            Carried::Flying(token, revision) => {
                self.count_out(job);
                self.flights.insert(token, job);
                let found = self.jobs.get_mut(&job).expect("it was just admitted");
                (found.flight, found.revision) = (Some(token), revision);
                self.count_in(job);
            }
            Carried::Ended(attempted, revision) => {
                self.jobs.get_mut(&job).expect("it was just admitted").revision = revision;
                self.landed.push_back((job, attempted));
            }
        }
    }

    /// Concludes what was resumed with its result known. One may promote the next, so this is a loop and no recursion.
    pub(super) fn land(&mut self, now: u64, redis_ms: u64) {
        while let Some((job, attempted)) = self.landed.pop_front() {
            self.conclude(now, redis_ms, job, attempted, 0.5);
        }
    }
}

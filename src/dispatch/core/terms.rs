//! The end of a term and what survives it: attempts in flight, results that were not confirmed, and those of late that were.

use super::{
    AttemptResult, Carried, Core, CoreTerm, EntryId, Job, JobId, Lane, LineOf, Op, Origin, PastAttempt, Token,
};

impl Core {
    /// The term has ended. Nothing in memory is known to be in Redis; what was sent, and what came of it, is remembered
    /// until the deliveries are read again.
    pub fn end_term(&mut self) {
        let CoreTerm { outbox, delivered, flights, jobs, .. } = std::mem::take(&mut self.term);
        let unconfirmed = outbox.into_ops().filter_map(|op| match op {
            Op::Log { of: LineOf::Attempt(result), .. } => Some(result),
            Op::Log { of: LineOf::End(_), .. } | Op::Item { .. } | Op::Ack(_) => None,
        });
        for result in unconfirmed.chain(delivered.into_values().flatten()) {
            let past = result.past();
            self.carried.end(result.of, past);
        }
        for (token, job) in flights {
            let Job { delivery, event, revision, .. } = &jobs[&job];
            self.carried.fly(self.carried.id_of(delivery, *event), token, *revision);
        }
        self.carried.end_term();
        self.shares.forget_waiters();
        self.lanes.values_mut().for_each(Lane::reset);
    }

    /// Where something of an entry was delivered or has a record, the rest of it that still waits gets records. Otherwise
    /// the next reader of the entry would deliver all of it again, including what is delivered from its record before that.
    pub fn record_what_is_begun(&mut self, now: u64) {
        let waits = |job: &Job| job.origin == Origin::Fresh && self.term.begun.contains(&job.delivery.id.entry);
        let mut waiting: Vec<(EntryId, JobId)> =
            self.term.jobs.iter().filter(|(_, job)| waits(job)).map(|(id, job)| (job.delivery.id.entry, *id)).collect();
        waiting.sort_unstable();
        waiting.into_iter().for_each(|(_, job)| self.give_record(now, job));
    }

    /// Nobody waits for what is in flight any more: it gets its records.
    pub fn abandon_flights(&mut self, now: u64) {
        let mut flights: Vec<(Token, JobId)> = self.term.flights.drain().collect();
        flights.sort_unstable();
        for (token, job) in flights {
            self.give_record(now, job);
            self.count_out(job);
            self.leaves_seat(token);
            self.count_in(job);
            let at = self.term.jobs[&job].lane;
            self.lanes[at].forget_attempt(token.0);
        }
        self.forget_flights();
    }

    /// Somebody else may own the partition now: what was in flight is aborted and means nothing any more.
    pub fn forget_flights(&mut self) {
        let mut flying = Vec::new();
        for (token, delivery) in self.carried.flights() {
            flying.push(token);
            if let Some(lane) = self.lanes.get_mut(&delivery.endpoint) {
                lane.forget_attempt(token.0);
            }
        }
        flying.sort_unstable();
        flying.into_iter().for_each(|token| self.leaves_seat(token));
        self.carried.forget_flights();
    }

    /// Whether an item was refused in this term.
    pub fn has_refused(&self) -> bool {
        !self.term.aside.is_empty()
    }

    /// Everything that could be read again has been: what is remembered of the last term means nothing any more.
    pub fn forget_results(&mut self) {
        self.term.has_reread_all = true;
        self.carried.forget_results();
    }

    /// Somebody else owned the partition: what we remember is for them to find out.
    pub fn forget_carried(&mut self) {
        self.forget_flights();
        self.carried.forget_results();
        self.carried.forget_settled();
    }

    /// An operator has set the reading back: what was settled is to be sent again.
    pub fn forget_settled(&mut self) {
        self.carried.forget_settled();
    }

    /// Its record, left by an earlier owner, was claimed before its entry was read again; or the entry is open, and this delivery of it
    /// has not had its turn.
    pub(super) fn remember_for_its_entry(&mut self, result: &AttemptResult) {
        if !self.term.has_reread_all {
            self.carried.remember_delivered(&result.of, result.past());
        }
    }

    /// A head that was in flight, or had ended, when the last term did. Only a head: if Redis forgot something, the
    /// delivery before it goes again first.
    pub(super) fn resume(&mut self, job: JobId, carried: Carried) {
        match carried {
            Carried::Flying(token, revision) => {
                self.count_out(job);
                self.term.flights.insert(token, job);
                let found = self.term.jobs.get_mut(&job).expect("it was just admitted");
                (found.flight, found.revision) = (Some(token), revision);
                self.count_in(job);
            }
            Carried::Ended(PastAttempt { attempted, at, revision }) => {
                self.term.jobs.get_mut(&job).expect("it was just admitted").revision = revision;
                self.term.carried_ends.push_back((job, attempted, at));
            }
        }
    }

    /// Concludes what was resumed with a known result. One may promote the next, so this is a loop and not a recursion.
    pub(super) fn conclude_carried(&mut self, now: u64, redis_ms: u64) {
        while let Some((job, attempted, ended_at)) = self.term.carried_ends.pop_front() {
            self.conclude(now, redis_ms, job, attempted, ended_at, 0.5);
        }
    }
}

//! What becomes of a delivery whose attempt has ended: delivered, tried again, or a dead letter.

use std::time::Duration;

use super::{
    About, Arc, AttemptResult, Attempted, Chain, Core, CoreErrand, CoreHappening, DeadLetter, DeadReason, Delivery,
    EndLine, Fate, Item, JobId, LetterFacts, LineOf, LogLine, Op, Origin, Outcome, Place, RECORD_SCHEMA, SentRequest,
    Step, WaitedFor,
};

/// Why a delivery is given up.
pub(super) struct Burial {
    pub reason: DeadReason,
    pub detail: String,
    pub request: Option<SentRequest>,
    /// The line of the attempt that was the last one.
    pub line: Option<Op>,
}

impl Burial {
    pub fn of(reason: DeadReason) -> Self {
        Self { reason, detail: String::new(), request: None, line: None }
    }
}

impl Core {
    /// An attempt's result becomes a fate.
    pub(super) fn conclude(
        &mut self,
        now: u64,
        redis_ms: u64,
        job: JobId,
        attempted: Arc<Attempted>,
        ended_at: u64,
        chance: f64,
    ) {
        let of_job = &self.term.jobs[&job];
        let of = self.carried.id_of(&of_job.delivery, of_job.event);
        let age = self.age(&self.lanes[of_job.lane], &of_job.delivery, redis_ms);
        let found = self.term.jobs.get_mut(&job).expect("an attempt has a job");
        found.flight = None;
        let lane = &mut self.lanes[found.lane];
        let outcome = attempted.report.outcome.clone();
        let mut fate = lane.policy.decide(found.delivery.attempts.saturating_add(1), &outcome, age, chance);
        // From when it ended, which was in an earlier term if it was carried over.
        if let Fate::RetryAfter(pause) = &mut fate {
            *pause = pause.saturating_sub(Duration::from_millis(now.saturating_sub(ended_at)));
        }
        let line = LogLine::write(&found.delivery, &attempted.report);
        let revision = found.revision;
        let is_recorded = found.origin != Origin::Fresh;
        let told = self
            .telling
            .settled
            .then(|| Arc::new(Self::settled_attempt(&found.delivery, lane.endpoint(), &attempted, &fate)));
        let (is_last, attempted_of) = (matches!(fate, Fate::Dead(_)), attempted.clone());
        let result = AttemptResult { of, attempted: attempted_of, at: ended_at, revision, is_recorded, is_last, told };
        if outcome == Outcome::Gone
            && let Some(endpoint) = lane.endpoint()
            && endpoint.revision == revision
        {
            let endpoint = endpoint.id.clone();
            lane.gone_at = Some(revision);
            self.errands.push(CoreErrand::Disable {
                endpoint,
                revision,
                why: "the receiver answered 410 Gone".to_owned(),
            });
        }
        let failed_before = std::mem::replace(&mut lane.failed_last, fate != Fate::Delivered);
        if failed_before && fate == Fate::Delivered {
            let endpoint = self.lanes.endpoint(found.lane).clone();
            self.happenings.push(CoreHappening::Recovered { endpoint });
        }
        if self.telling.steps {
            let (outcome, took_us) = (outcome.clone(), attempted.report.timing.total_us);
            let step = Step::Attempted { attempt: attempted.report.number, outcome, took_us };
            self.happenings.push(CoreHappening::Stepped { about: About::of(&found.delivery), step });
        }
        if fate != Fate::Delivered {
            Arc::make_mut(&mut found.delivery).remember(attempted.report.clone());
        }
        // Right after its item: they become durable together, so no crash leaves one without the other.
        let line = Op::Log { line, of: LineOf::Attempt(result) };
        match fate {
            Fate::Delivered => self.deliver(now, job, line),
            Fate::RetryAfter(pause) => self.retry(now, job, pause.as_millis() as u64, &outcome, line),
            Fate::Dead(reason) => {
                let request = attempted.request.clone();
                self.bury(now, redis_ms, job, Burial { request, line: Some(line), ..Burial::of(reason) });
            }
        }
    }

    fn deliver(&mut self, now: u64, job: JobId, line: Op) {
        self.tally.delivered += 1;
        let done = self.remove(job);
        self.tell_step(&done.delivery, Step::Delivered);
        let chain_id = (done.lane, done.chain);
        match done.origin {
            // It has no record: that its entry is acknowledged is all that becomes durable.
            Origin::Fresh => self.close_one(now, done.delivery.id.entry),
            Origin::Claimed | Origin::Backlog => {
                self.head_ended(&done.delivery.id, &chain_id.1);
                let item = Item::Finish { id: done.delivery.id.clone(), chain: chain_id.1.clone() };
                self.push_for(now, chain_id.clone(), item);
            }
        }
        self.push(now, line);
        self.promote(now, chain_id);
    }

    fn retry(&mut self, now: u64, job: JobId, pause_ms: u64, outcome: &Outcome, line: Op) {
        self.tally.retried += 1;
        let chain_id = self.chain_id(job);
        let delivery = self.term.jobs[&job].delivery.clone();
        self.happenings.push(CoreHappening::Failed {
            about: About::of(&delivery),
            attempt: delivery.next_attempt() - 1,
            outcome: outcome.clone(),
            retry_in_ms: pause_ms,
        });
        let place = Place::DueIn(pause_ms);
        match self.term.jobs[&job].origin {
            Origin::Fresh => {
                let entry = self.write_record(now, job, place);
                self.push(now, line);
                self.close_one(now, entry);
            }
            Origin::Claimed | Origin::Backlog => {
                let done = self.remove(job);
                let record = delivery.to_record();
                let item = Item::Keep { id: delivery.id.clone(), chain: done.chain, place, record };
                self.push_for(now, chain_id.clone(), item);
                self.push(now, line);
            }
        }
        if let Some(links) = self.term.chains.get_mut(&chain_id) {
            links.tail_in_redis = true;
        }
        self.hold_followers(now, &chain_id);
    }

    pub(super) fn bury(&mut self, now: u64, redis_ms: u64, job: JobId, burial_of: Burial) {
        let Burial { reason, detail, request, line } = burial_of;
        let chain_id = self.chain_id(job);
        let done = self.remove(job);
        let waited_for = self.waited_for(now, redis_ms, done.lane, &done.delivery, done.origin);
        self.head_ended(&done.delivery.id, &done.chain);
        let letter = dead_letter((*done.delivery).clone(), reason, redis_ms, detail, request, waited_for);
        self.note_dead(&letter);
        let item = burial(done.chain, &letter);
        self.push_for(now, chain_id.clone(), item);
        if let Some(line) = line {
            self.push(now, line);
        }
        self.log_end(now, &EndLine::dead(&letter));
        if done.origin == Origin::Fresh {
            self.close_one(now, done.delivery.id.entry);
        }
        self.promote(now, chain_id);
    }

    /// A line about an end goes right behind the item that brings it about.
    pub(super) fn log_end(&mut self, now: u64, line: &EndLine) {
        self.push(now, Op::Log { line: line.write(), of: LineOf::End(line.delivery()) });
    }

    pub(super) fn note_dead(&mut self, letter: &DeadLetter) {
        self.tally.dead += 1;
        let attempts = letter.delivery.attempts_in_all();
        self.note_letter(&letter.delivery.id.endpoint);
        self.happenings.push(CoreHappening::Dead {
            about: About::of(&letter.delivery),
            reason: letter.reason,
            attempts,
        });
    }
}

pub(super) fn dead_letter(
    delivery: Delivery,
    reason: DeadReason,
    died_at_ms: u64,
    detail: String,
    request: Option<SentRequest>,
    waited_for: Option<WaitedFor>,
) -> DeadLetter {
    let SentRequest { url, headers } = request.unwrap_or(SentRequest { url: String::new(), headers: Vec::new() });
    DeadLetter { schema: RECORD_SCHEMA, reason, died_at_ms, detail, waited_for, url, headers, delivery }
}

pub(super) fn burial(chain: Chain, letter: &DeadLetter) -> Item {
    let facts = Box::new(LetterFacts::of(letter));
    Item::Bury { id: letter.delivery.id.clone(), chain, facts, letter: letter.to_record() }
}

//! Attempts in flight: which starts next, which of them have become slow, and whose turn it is among those that wait for a
//! seat. A flight is quick if its receiver ended its last one quickly and it is itself younger than a second; every other
//! flight is slow and has a seat.

use super::{
    Arc, CROWDED_MS, Core, CoreHappening, DeadReason, Endpoint, Gate, JobId, LOCAL_FAILURES_EVERY_MS, LOCAL_PAUSE_MS,
    LOOK_EVERY_MS, LaneAt, LocalCause, NextAttempt, Seat, Token, Trust, fates::Burial,
};

impl Core {
    /// The next attempt to start; endpoints take turns.
    pub fn next_attempt(&mut self, now: u64, redis_ms: u64) -> Option<NextAttempt> {
        loop {
            let Some(at) = self.term.ready.pop_front() else {
                if self.gives_turn(now) {
                    continue;
                }
                return None;
            };
            let lane = &mut self.lanes[at];
            lane.is_ready = false;
            if lane.gate(now) != Gate::Open {
                self.schedule_lane(now, at);
                continue;
            }
            let (Some(job), Some(facts)) = (lane.queue.front().copied(), lane.endpoint().cloned()) else { continue };
            let delivery = &self.term.jobs[&job].delivery;
            if delivery.account != facts.account {
                // Its endpoint was deleted, and the id given out again: nobody else is told what this one was owed.
                let detail = format!("its endpoint's id is {}'s now", facts.account);
                lane.queue.pop_front();
                self.bury(now, redis_ms, job, Burial { detail, ..Burial::of(DeadReason::Deleted) });
                self.schedule_lane(now, at);
                continue;
            }
            let bytes = delivery.body.len();
            let seat = match (lane.trust.class(), &lane.holder) {
                (Some(class), Some(holder)) => match self.shares.take(holder, class, bytes) {
                    Some(seat) => Some(seat),
                    None => {
                        self.waits(now, at);
                        continue;
                    }
                },
                (None, _) | (_, None) => None,
            };
            return Some(self.start(now, at, job, facts, seat));
        }
    }

    fn start(&mut self, now: u64, at: LaneAt, id: JobId, facts: Arc<Endpoint>, seat: Option<Seat>) -> NextAttempt {
        let token = Token(self.next());
        let lane = &mut self.lanes[at];
        lane.queue.pop_front();
        lane.started(now, token.0);
        let (trust, places) = (lane.trust, lane.most());
        self.count_out(id);
        if trust == Trust::New {
            self.unanswered.push_back((now + self.budgets.new_for_ms, token));
        }
        if let Some(seat) = seat {
            self.sits(at, token, seat);
        }
        self.term.flights.insert(token, id);
        self.young.push_back((now + self.budgets.slow_after_ms, token));
        let job = self.term.jobs.get_mut(&id).expect("a queued job is there");
        (job.flight, job.revision) = (Some(token), facts.revision);
        let delivery = job.delivery.clone();
        self.count_in(id);
        self.schedule_lane(now, at);
        NextAttempt { token, trust, places, delivery, endpoint: facts, trace: None }
    }

    /// Time has passed: what is old gets its record, flights become slow, and lanes whose time has come are looked at.
    pub fn tick(&mut self, now: u64) {
        while let Some((at, token)) = self.young.front().copied()
            && at <= now
        {
            self.young.pop_front();
            self.becomes_slow(now, token);
        }
        while let Some((at, token)) = self.unanswered.front().copied()
            && at <= now
        {
            self.unanswered.pop_front();
            self.leaves_place(token);
        }
        while let Some((at, job)) = self.term.ageing.front().copied()
            && at <= now
        {
            self.term.ageing.pop_front();
            self.give_record(now, job);
        }
        while let Some((at, job)) = self.term.again.first().copied()
            && at <= now
        {
            self.term.again.pop_first();
            self.queues_again(now, job);
        }
        self.carried.tick(now);
        self.tell_of_ours(now);
        self.let_lanes_leave(now);
        while let Some(std::cmp::Reverse((alarm_at, at))) = self.term.alarms.peek().copied()
            && alarm_at <= now
        {
            self.term.alarms.pop();
            let lane = &mut self.lanes[at];
            if lane.alarm_at == Some(alarm_at) {
                lane.alarm_at = None;
                self.schedule_lane(now, at);
            }
        }
        if self.shares.has_waiters() && now >= self.waiters_at {
            self.waiters_at = now + LOOK_EVERY_MS;
            self.shares.look_again();
        }
    }

    pub fn next_alarm(&self) -> Option<u64> {
        let alarm = self.term.alarms.peek().map(|std::cmp::Reverse((at, _))| *at);
        let ageing = self.term.ageing.front().map(|(at, _)| *at);
        let young = self.young.front().map(|(at, _)| *at);
        let unanswered = self.unanswered.front().map(|(at, _)| *at);
        let waiters = self.shares.has_waiters().then_some(self.waiters_at);
        let again = self.term.again.first().map(|(at, _)| *at);
        [alarm, ageing, young, unanswered, waiters, again].into_iter().flatten().min()
    }

    /// Its receiver is not judged yet, but another new one may take its place. None if it has ended.
    fn leaves_place(&mut self, token: Token) {
        if let Some(seat) = self.seats.get_mut(&token) {
            self.shares.doubt(seat);
        }
    }

    /// Its receiver keeps us waiting, whatever it answers in the end.
    fn becomes_slow(&mut self, now: u64, token: Token) {
        let Some(id) = self.term.flights.get(&token).copied() else {
            // It belongs to an earlier term, or has ended.
            self.leaves_place(token);
            return;
        };
        self.count_out(id);
        let job = &self.term.jobs[&id];
        let at = job.lane;
        let lane = &mut self.lanes[at];
        let was = std::mem::replace(&mut lane.trust, Trust::Doubted);
        match self.seats.get_mut(&token) {
            Some(seat) => self.shares.doubt(seat),
            None => {
                if let (Some(class), Some(holder)) = (lane.trust.class(), &lane.holder) {
                    let seat = self.shares.seat(holder, class, job.delivery.body.len());
                    self.sits(at, token, seat);
                }
            }
        }
        self.count_in(id);
        if was != Trust::Doubted {
            self.counts_as_worse(now, at);
        }
    }

    /// It failed here and not at its receiver, so no attempt was made. It stays the head of its chain and goes again soon.
    pub(super) fn goes_again(&mut self, now: u64, token: Token, job: JobId, cause: LocalCause, chance: f64) {
        let pause = LOCAL_PAUSE_MS + (chance * LOCAL_PAUSE_MS as f64) as u64;
        let found = self.term.jobs.get_mut(&job).expect("an attempt has a job");
        found.flight = None;
        let at = found.lane;
        self.term.again.insert((now + pause, job));
        match self.ours.iter_mut().find(|(of, _)| *of == cause) {
            Some((_, count)) => *count += 1,
            None => self.ours.push((cause, 1)),
        }
        self.tell_of_ours(now);
        self.lanes[at].forget_attempt(token.0);
        self.schedule_lane(now, at);
    }

    fn queues_again(&mut self, now: u64, job: JobId) {
        let Some(at) = self.term.jobs.get(&job).map(|found| found.lane) else { return };
        // It was in flight, so it goes before what is merely next.
        self.lanes[at].queue.push_front(job);
        self.gate_changed(now, at);
    }

    fn tell_of_ours(&mut self, now: u64) {
        if self.ours.is_empty() || self.ours_noted_at.is_some_and(|at| now < at + LOCAL_FAILURES_EVERY_MS) {
            return;
        }
        self.ours_noted_at = Some(now);
        self.happenings.extend(self.ours.drain(..).map(|(cause, count)| CoreHappening::OursFailed { cause, count }));
    }

    /// It was started and never begun: the place that it was to have did not come free in time. It goes before what is
    /// merely next, as if it had never been started.
    pub fn not_begun(&mut self, now: u64, token: Token) {
        let Some(job) = self.term.flights.remove(&token) else { return self.was_never_made(now, token) };
        self.count_out(job);
        self.leaves_seat(token);
        let found = self.term.jobs.get_mut(&job).expect("an attempt has a job");
        found.flight = None;
        let at = found.lane;
        self.count_in(job);
        self.lanes[at].forget_attempt(token.0);
        self.queues_again(now, job);
    }

    /// An attempt of an earlier term that came to nothing.
    fn was_never_made(&mut self, now: u64, token: Token) {
        self.leaves_seat(token);
        let Some((id, _)) = self.carried.take_flight(token) else { return };
        if let Some(at) = self.lanes.at(&id.delivery.endpoint) {
            self.lanes[at].forget_attempt(token.0);
            self.schedule_lane(now, at);
        }
    }

    fn sits(&mut self, at: LaneAt, token: Token, seat: Seat) {
        self.lanes[at].seats += 1;
        self.seats.insert(token, seat);
    }

    /// The attempt is over, or nobody waits for it any more.
    pub(super) fn leaves_seat(&mut self, token: Token) {
        if let Some(seat) = self.seats.remove(&token) {
            self.shares.leave(&seat);
            self.lanes[seat.lane()].seats -= 1;
        }
    }

    /// A lane that needs a seat waits for its turn; one that needs none waits for room.
    pub(super) fn waits(&mut self, now: u64, at: LaneAt) {
        let lane = &mut self.lanes[at];
        match (lane.trust.class(), &lane.holder) {
            (Some(class), Some(holder)) => {
                if !std::mem::replace(&mut lane.is_waiting, true) {
                    self.shares.wait(holder, class);
                }
            }
            (None, _) | (_, None) => {
                lane.look_again_at = now + CROWDED_MS;
                self.schedule_lane(now, at);
            }
        }
    }

    /// Whether a lane that waited for a seat is looked at again.
    fn gives_turn(&mut self, now: u64) -> bool {
        let Some(turn) = self.shares.next_turn() else { return false };
        let at = turn.lane;
        let waited = std::mem::take(&mut self.lanes[at].is_waiting);
        self.schedule_lane(now, at);
        let lane = &self.lanes[at];
        if !waited || !(lane.is_ready || lane.is_hungry) {
            self.shares.pass_on(turn);
        }
        true
    }
}

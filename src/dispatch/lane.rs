//! One endpoint's lane in the partition's owner: the heads that may go, how many may be in flight, and when. Bounded: what
//! does not fit is for the caller to park. How many may go and when is up to the limiter, the breaker, the rest that the
//! receiver asked for, and the endpoint's rate limit. Never touches Redis, chains or another lane.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    breaker::{Breaker, BreakerSettings, BreakerView, Turn},
    evidence::Evidence,
    limiter::Limiter,
    shares::{Class, Holder},
};
use crate::facts::{
    endpoint::{Endpoint, EndpointState, Mark},
    health::Seen,
    id::EntryId,
    letter::{Cause, Waiting},
    outcome::{Attempted, Health, Outcome},
    retry::{DeadReason, RetryPolicy},
};
use crate::store::protocol::Unfinished;

/// A lane may queue as much as it gets rid of in this time: enough to stay busy, too little for others to feel it.
const QUEUE_MS: u64 = 250;

/// A slow lane may still queue this many, so that a burst does not travel through Redis.
const MIN_QUOTA: usize = 32;

/// How long a lane is watched before its rate counts.
const RATE_WINDOW_MS: u64 = 100;

/// A receiver is quick if its round trips take no longer than this on average. The weight is that of one attempt in the
/// average.
const QUICK_US: f64 = 5_000.0;
const ROUND_TRIP_WEIGHT: f64 = 1.0 / 8.0;

/// For a quick receiver, attempts may be started before there are places for them: as many as it takes in this time, but at
/// least as many as it has places, and at most `MOST_AHEAD`, because what comes back when it fails goes through the lane
/// again.
const AHEAD_MS: u64 = 5;
const MOST_AHEAD: u32 = 128;

/// A backlog that is not longer is gone in a moment where a receiver takes all that comes, if nothing is added to it.
const SMALL_BACKLOG: u64 = 256;

/// What comes waits in the stream for so long, at most, until such a backlog is gone.
const CLEARING_MS: u64 = 2_000;

/// What must wait longer than this is better off in the backlog.
const PATIENCE_MS: u64 = 1_000;

/// How long a lane rests at least after a 429, even one that does not say how long: what a receiver's rate limit has given
/// out comes back with time, not with fewer attempts at once. Short, because many such limits give something back all the
/// time.
const MIN_REST_MS: u64 = 50;

/// Such a rest grows up to here while only 429s come; beyond it the breaker opens.
const LONG_REST_MS: u64 = 2_500;

/// How long a receiver may make us rest: after this the next delivery asks again.
const MAX_REST_MS: u64 = 300_000;

/// A receiver that only fails for this long takes nothing, whatever rests it asks for: three of the longest.
const LONG_IN_VAIN_MS: u64 = 3 * MAX_REST_MS;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// What the registry says of the endpoint.
#[derive(Debug, Clone)]
pub enum Standing {
    Serving(Arc<Endpoint>),
    Paused(Arc<Endpoint>),
    /// Takes nothing any more. What was owed to it becomes dead letters; what came later is not owed.
    Ended {
        reason: DeadReason,
        owed: Owed,
    },
    /// What the registry says cannot be known for certain: nothing is sent and nothing is given up.
    Unknown,
}

/// What was owed to an endpoint that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// Whatever still finds its way to it.
    All,
    /// Entries up to this one: the stream's own order.
    Until(EntryId),
    /// Entries up to this time, for a mark that names no entry. An id need not be a time, nor need two clocks agree.
    UntilMs(u64),
}

impl Standing {
    pub fn of(endpoint: Arc<Endpoint>) -> Self {
        match endpoint.status {
            EndpointState::Enabled => Self::Serving(endpoint),
            EndpointState::Paused(_) => Self::Paused(endpoint),
            EndpointState::Disabled(ref mark) => {
                let owed = endpoint.owed_until.map_or(Owed::UntilMs(mark.at_ms), Owed::Until);
                Self::Ended { reason: DeadReason::Disabled, owed }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// The next outcome opens it.
    Busy,
    /// Opens at this time.
    Later(u64),
    /// Opens when the registry says so.
    Shut,
}

/// What attempts at a receiver may cost, the cheapest first. What a receiver sends instead of an answer may cost more than
/// its attempt, so only the proven are kept to themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// It has taken something, and has kept nobody waiting since.
    Proven,
    /// It has never taken anything, and never failed.
    New,
    /// It last refused, broke off or sent something that is not an answer, but quickly: others wait no longer for it than
    /// for the proven.
    Failing,
    /// It last kept us waiting or flooded us, and has ended nothing quickly since.
    Doubted,
}

impl Trust {
    /// Which seats its attempts need; none for those that are expected to end quickly.
    pub fn class(self) -> Option<Class> {
        match self {
            Self::Proven | Self::Failing => None,
            Self::New => Some(Class::New),
            Self::Doubted => Some(Class::Doubted),
        }
    }

    /// It never failed, or has taken something since.
    pub fn is_well(self) -> bool {
        self < Self::Failing
    }
}

/// An attempt that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    /// Its number, as [`Lane::started`] was told it.
    pub attempt: u64,
    pub outcome: &'a Outcome,
    /// The rest that the receiver asked for, as far as the policy allows it.
    pub granted: Option<Duration>,
}

#[derive(Debug)]
pub struct Lane {
    pub standing: Standing,
    pub policy: RetryPolicy,
    /// When it was last known that its endpoint cannot be read, by Redis' clock: what waits for it is no older than that.
    pub unreadable_ms: u64,
    pub queue: VecDeque<JobId>,
    pub in_flight: u32,
    /// How many of those are slow.
    pub seats: u32,
    /// Records in Redis, as the last answer said, and how many of them are in its backlog.
    pub unfinished: u64,
    pub parked: u64,
    /// Since when its backlog has not been empty.
    behind_since: Option<u64>,
    /// How many bytes that takes in Redis, and how many it took at the first count after a delivery last succeeded, or
    /// after somebody let it go on.
    weight: u64,
    tolerated: Option<u64>,
    /// Whose weight it counts towards, and how much of it is counted there.
    pub weighed: Option<(Arc<Holder>, u64)>,
    /// This revision is to be paused for its weight, and the registry does not know it yet.
    pub pause_asked_at: Option<u64>,
    /// Nothing has been delivered since this failure.
    in_vain_since: Option<u64>,
    /// The backlog was looked at up to here …
    pub drained_to: EntryId,
    /// … and there was no more.
    drained: bool,
    /// A look at the backlog failed, or there was no room for what it would bring: no other look before this time.
    pub look_again_at: u64,
    /// The lowest entry that was parked since the current look began: the look's answer does not cover it.
    parked_meanwhile: Option<EntryId>,
    /// How its latest attempt ended, so that its next success is known for a recovery.
    pub failed_last: bool,
    /// The receiver answered 410 to this revision, and the registry does not know it yet.
    pub gone_at: Option<u64>,
    /// Which of the core's lists of lanes it is in.
    pub is_ready: bool,
    pub is_hungry: bool,
    /// It waits for a seat, to start or to take from its backlog.
    pub is_waiting: bool,
    pub alarm_at: Option<u64>,
    pub trust: Trust,
    /// As whom it asks for seats; none while the registry has never named it.
    pub holder: Option<Arc<Holder>>,
    evidence: Evidence,
    limiter: Limiter,
    breaker: Breaker,
    /// The receiver asked for a rest until then.
    rests_until: u64,
    tokens: f64,
    tokens_at: u64,
    /// Deliveries a second while it had work; infinite until that is known.
    rate: f64,
    watched_since: u64,
    done_since: u32,
    /// How long it took to take something, on average; infinite until it has taken something.
    round_trip_us: f64,
    /// For letters: who paused it, though it may have ended since; since when its breaker has not been closed; how the
    /// last attempt that failed ended, and when.
    paused: Option<Mark>,
    in_trouble_since: Option<u64>,
    last_failure: Option<(u64, Cause)>,
    /// What happened since somebody last asked, for its health; none if nothing did.
    pub seen: Option<Box<Seen>>,
}

impl Lane {
    pub fn new(standing: Standing, policy: RetryPolicy, now: u64) -> Self {
        let mut lane = Self {
            standing: Standing::Unknown,
            policy,
            unreadable_ms: 0,
            queue: VecDeque::new(),
            in_flight: 0,
            seats: 0,
            unfinished: 0,
            parked: 0,
            behind_since: None,
            weight: 0,
            tolerated: None,
            weighed: None,
            pause_asked_at: None,
            in_vain_since: None,
            drained_to: EntryId::ZERO,
            drained: false,
            look_again_at: 0,
            parked_meanwhile: None,
            failed_last: false,
            gone_at: None,
            is_ready: false,
            is_hungry: false,
            is_waiting: false,
            alarm_at: None,
            trust: Trust::New,
            holder: None,
            evidence: Evidence::default(),
            limiter: Limiter::default(),
            breaker: Breaker::default(),
            rests_until: 0,
            tokens: 1.0,
            tokens_at: now,
            rate: f64::INFINITY,
            watched_since: now,
            done_since: 0,
            round_trip_us: f64::INFINITY,
            paused: None,
            in_trouble_since: None,
            last_failure: None,
            seen: None,
        };
        lane.stands(standing);
        lane
    }

    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        match &self.standing {
            Standing::Serving(endpoint) | Standing::Paused(endpoint) => Some(endpoint),
            Standing::Ended { .. } | Standing::Unknown => None,
        }
    }

    /// Nobody knows where to send, or with which secret.
    pub fn is_unreadable(&self) -> bool {
        matches!(self.standing, Standing::Unknown)
    }

    /// The age that counts for its policy: while it cannot be read nothing ages, and what waited for it begins anew then.
    pub fn age_ms(&self, since_ms: u64, redis_ms: u64) -> u64 {
        match self.is_unreadable() {
            true => 0,
            false => redis_ms.saturating_sub(since_ms.max(self.unreadable_ms)),
        }
    }

    /// What the registry says of it now. Letting it go on, or changing it, excuses what it has until that has grown again.
    pub fn stands(&mut self, standing: Standing) {
        let serving = |standing: &Standing| match standing {
            Standing::Serving(endpoint) => Some(endpoint.revision),
            Standing::Paused(_) | Standing::Ended { .. } | Standing::Unknown => None,
        };
        if serving(&standing).is_some() && serving(&standing) != serving(&self.standing) {
            self.takes();
        }
        // What was asked for had come, and is gone: a failover has taken it back with the revision that it made.
        if serving(&standing).is_some() && matches!(self.standing, Standing::Ended { .. } | Standing::Paused(_)) {
            for asked in [&mut self.gone_at, &mut self.pause_asked_at] {
                asked.take_if(|revision| Some(*revision) == serving(&standing));
            }
        }
        self.paused = match &standing {
            Standing::Paused(endpoint) => match &endpoint.status {
                EndpointState::Paused(mark) => Some(mark.clone()),
                EndpointState::Enabled | EndpointState::Disabled(_) => None,
            },
            Standing::Serving(_) => None,
            Standing::Ended { .. } | Standing::Unknown => self.paused.take(),
        };
        self.standing = standing;
    }

    /// Its receiver took something, or is expected to: what it has now is no reason to pause it.
    pub fn takes(&mut self) {
        (self.in_vain_since, self.tolerated) = (None, None);
    }

    /// What Redis holds of it, as an answer said.
    pub fn counted(&mut self, now: u64, unfinished: Unfinished) {
        (self.unfinished, self.parked, self.weight) = (unfinished.records, unfinished.parked, unfinished.weight());
        self.behind_since = (self.parked > 0).then(|| self.behind_since.unwrap_or(now));
        self.tolerated.get_or_insert(self.weight);
    }

    /// Roughly how many bytes its records take in Redis.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Whether what it has in Redis grows while its receiver takes nothing: it only fails, for a cooldown at least and not
    /// because of a rest that it asked for, and has a tenth more than when it last took something, or when somebody let it
    /// go on. So this never means a lane that drains its backlog, however slowly, and one that was resumed is not paused
    /// again at once.
    pub fn grows_in_vain(&self, now: u64, cooldown_ms: u64) -> bool {
        let Standing::Serving(endpoint) = &self.standing else { return false };
        let Some(since) = self.in_vain_since else { return false };
        let is_resting = now < self.rests_until.saturating_add(cooldown_ms) && now < since + LONG_IN_VAIN_MS;
        let tolerated = self.tolerated.unwrap_or(self.weight);
        self.ended().is_none()
            && self.pause_asked_at != Some(endpoint.revision)
            && now >= since + cooldown_ms
            && !is_resting
            && self.weight > tolerated + tolerated / 10
    }

    /// The reason for which everything unfinished ends.
    pub fn ended(&self) -> Option<DeadReason> {
        match &self.standing {
            Standing::Ended { reason, .. } => Some(*reason),
            Standing::Serving(endpoint) | Standing::Paused(endpoint) if self.gone_at == Some(endpoint.revision) => {
                Some(DeadReason::Gone)
            }
            _ => None,
        }
    }

    /// Whether an entry that arrives only now was owed to an endpoint that has ended.
    pub fn was_owed(&self, entry: EntryId) -> bool {
        match &self.standing {
            Standing::Ended { owed: Owed::All, .. } => true,
            Standing::Ended { owed: Owed::Until(last), .. } => entry <= *last,
            Standing::Ended { owed: Owed::UntilMs(at_ms), .. } => entry.ms <= *at_ms,
            // The receiver said 410 a moment ago, and the registry does not yet say when.
            Standing::Serving(_) | Standing::Paused(_) | Standing::Unknown => true,
        }
    }

    pub fn gate(&self, now: u64) -> Gate {
        let Standing::Serving(endpoint) = &self.standing else { return Gate::Shut };
        if self.ended().is_some() {
            return Gate::Shut;
        }
        let most = u32::from(endpoint.max_in_flight).max(1);
        let (limit, opens_at) = match self.breaker.view(now) {
            BreakerView::Open { until } => return Gate::Later(until),
            BreakerView::HalfOpen { probes } => (probes.min(most), self.rests_until),
            BreakerView::Closed => {
                let limit = self.limiter.limit(most, &self.evidence);
                let ahead = if limit == most && self.may_be_ahead(endpoint) { self.ahead(now, most) } else { 0 };
                (limit + ahead, self.rests_until.max(self.limiter.held_until()))
            }
        };
        if now < opens_at {
            return Gate::Later(opens_at);
        }
        if self.in_flight >= limit {
            return Gate::Busy;
        }
        match endpoint.rate_limit {
            Some(rate) if self.tokens_by(now, rate) < 1.0 => {
                let missing = 1.0 - self.tokens_by(now, rate);
                Gate::Later(now + (missing * 1_000.0 / f64::from(rate.max(1))).ceil().max(1.0) as u64)
            }
            _ => Gate::Open,
        }
    }

    /// Whether attempts may be started ahead, to wait for the places of those that are out: the receiver takes everything,
    /// and so quickly that handing attempts over and back would cost as much time as the receiver itself.
    fn may_be_ahead(&self, endpoint: &Endpoint) -> bool {
        let is_well = self.trust == Trust::Proven && self.seats == 0 && self.evidence.failures() == 0;
        is_well && self.round_trip_us <= QUICK_US && endpoint.rate_limit.is_none()
    }

    /// How many it takes in [`AHEAD_MS`]: while the worker makes a call, it does not hear earlier of those that have ended.
    fn ahead(&self, now: u64, most: u32) -> u32 {
        let takes = match self.quota(now) {
            // Not known yet.
            usize::MAX => 0,
            quota => quota as u64 * AHEAD_MS / QUEUE_MS,
        };
        takes.min(MOST_AHEAD.into()).max(most.into()) as u32
    }

    /// Whether a new head is better parked than queued. `share` is this lane's part of what all lanes may queue.
    pub fn should_park(&self, now: u64, share: usize) -> bool {
        let shut = match self.gate(now) {
            Gate::Open | Gate::Busy => false,
            Gate::Later(at) => at > now + PATIENCE_MS,
            Gate::Shut => true,
        };
        let room = match self.breaker.view(now) {
            BreakerView::HalfOpen { probes } => probes.saturating_sub(self.in_flight) as usize,
            BreakerView::Open { .. } | BreakerView::Closed => self.quota(now).min(share).max(1),
        };
        shut || self.queue.len() >= room
    }

    /// It takes as fast as it can, and has enough for now. A small backlog, such as it gets while it is not known yet how much
    /// it takes, comes to its end only if nothing is added to it, and each delivery behind one costs Redis a record.
    pub fn is_merely_full(&self, now: u64, share: usize) -> bool {
        let is_well = self.trust.is_well() && self.is_breaker_closed(now);
        let is_clearing = || self.behind_since.is_some_and(|since| now < since + CLEARING_MS);
        let has_enough = match self.parked {
            0 => self.should_park(now, share),
            parked => parked <= SMALL_BACKLOG && is_clearing(),
        };
        is_well && matches!(self.gate(now), Gate::Open | Gate::Busy) && has_enough
    }

    /// It takes what comes, and has a small backlog at most.
    pub fn nearly_keeps_up(&self, now: u64) -> bool {
        let is_open = matches!(self.gate(now), Gate::Open | Gate::Busy) && self.is_breaker_closed(now);
        self.trust == Trust::Proven && self.parked <= SMALL_BACKLOG && is_open
    }

    /// The time that its endpoint allows an attempt, if it sets one.
    pub fn timeout_ms(&self) -> Option<u64> {
        match &self.standing {
            Standing::Serving(endpoint) | Standing::Paused(endpoint) => endpoint.timeout_ms,
            Standing::Ended { .. } | Standing::Unknown => None,
        }
    }

    /// How many more from the backlog it can take now.
    pub fn appetite(&self, now: u64) -> usize {
        if self.parked == 0 || self.drained || now < self.look_again_at {
            return 0;
        }
        let room = match (self.gate(now), self.breaker.view(now)) {
            (Gate::Shut, _) | (_, BreakerView::Open { .. }) => 0,
            (Gate::Later(at), _) if at > now + PATIENCE_MS => 0,
            (_, BreakerView::HalfOpen { probes }) => probes.saturating_sub(self.in_flight) as usize,
            (_, BreakerView::Closed) => 2 * self.limiter.limit(self.most(), &self.evidence) as usize,
        };
        room.saturating_sub(self.queue.len())
    }

    /// Attempts are numbered in the order in which they start.
    pub fn started(&mut self, now: u64, attempt: u64) {
        self.evidence.started(attempt);
        if self.in_flight == 0 {
            (self.watched_since, self.done_since) = (now, 0);
        }
        self.in_flight += 1;
        if let Standing::Serving(endpoint) = &self.standing
            && let Some(rate) = endpoint.rate_limit
        {
            self.tokens = self.tokens_by(now, rate) - 1.0;
            self.tokens_at = now;
        }
    }

    /// Returns whether the outcome opened the breaker.
    pub fn ended_attempt(&mut self, now: u64, ended: &Ended<'_>, settings: &BreakerSettings, chance: f64) -> bool {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Ended { attempt, outcome, granted } = *ended;
        if outcome.is_delivered() {
            self.takes();
        } else {
            self.in_vain_since.get_or_insert(now);
            self.last_failure = Some((now, Cause::of(outcome)));
        }
        let turn = match outcome.health() {
            Health::Unknown => {
                self.evidence.lost(attempt);
                Turn::Stays
            }
            Health::Well => self.was_well(now, attempt),
            health @ (Health::Congested | Health::Failing) => {
                let ends = self.evidence.ended(now, attempt, self.in_flight, false);
                // What was out when the rest began says nothing new.
                let is_congestion = health == Health::Congested && now >= self.rests_until;
                self.limiter.failed(now, self.in_flight, is_congestion, &self.evidence);
                if ends {
                    self.limiter.round_trip_ended();
                }
                let rest = rest_ms(outcome, granted, self.evidence.silence_ms(now));
                if rest > 0 {
                    self.rests_until = self.rests_until.max(now + rest);
                    self.limiter.rests();
                }
                self.breaker.failed(now, attempt, &self.evidence, settings, chance)
            }
        };
        match turn {
            Turn::Stays => {}
            Turn::Opens => drop(self.in_trouble_since.get_or_insert(now)),
            Turn::Closes => self.in_trouble_since = None,
        }
        self.watch(now);
        turn == Turn::Opens
    }

    fn was_well(&mut self, now: u64, attempt: u64) -> Turn {
        if self.evidence.ended(now, attempt, self.in_flight, true) {
            self.limiter.round_trip_ended();
        }
        self.limiter.accepted(self.most());
        let turn = self.breaker.succeeded();
        if turn == Turn::Closes {
            self.limiter.begin_again();
            self.evidence.forget();
        }
        turn
    }

    /// Follows the rate at which it gets rid of what it has. A time in which it was held back says nothing of that.
    fn watch(&mut self, now: u64) {
        self.done_since += 1;
        let watched = now.saturating_sub(self.watched_since);
        if now < self.limiter.held_until().max(self.rests_until) {
            (self.watched_since, self.done_since) = (now, 0);
        } else if watched >= RATE_WINDOW_MS {
            self.rate = f64::from(self.done_since) * 1_000.0 / watched as f64;
            (self.watched_since, self.done_since) = (now, 0);
        }
    }

    /// What an attempt says of the receiver. A receiver that keeps us waiting for its answer, or sends far more than an
    /// answer, proves nothing by it.
    pub fn judge(&mut self, attempted: &Attempted, slow_after_ms: u64) {
        let took_us = attempted.report.timing.total_us;
        let is_slow = took_us >= 1_000 * slow_after_ms;
        if attempted.report.outcome.is_delivered() {
            let (took_us, known) = (took_us as f64, self.round_trip_us.is_finite());
            let known_us = if known { self.round_trip_us } else { took_us };
            self.round_trip_us = known_us + (took_us - known_us) * ROUND_TRIP_WEIGHT;
        }
        match &attempted.report.outcome {
            _ if attempted.flooded => self.trust = Trust::Doubted,
            // Neither says anything of the receiver.
            Outcome::Local { .. } | Outcome::ProxyFailed => {}
            // A timeout may be shorter than the time after which a flight is slow.
            Outcome::ConnectTimedOut | Outcome::ResponseTimedOut => self.trust = Trust::Doubted,
            _ if is_slow => self.trust = Trust::Doubted,
            Outcome::Delivered { .. } => self.trust = Trust::Proven,
            Outcome::Garbled | Outcome::Reset => self.trust = Trust::Failing,
            // A receiver that has taken something may refuse something else.
            _ if self.trust != Trust::Proven => self.trust = Trust::Failing,
            _ => {}
        }
    }

    /// An attempt that was in flight is not waited for any more.
    pub fn forget_attempt(&mut self, attempt: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.evidence.lost(attempt);
    }

    /// The backlog is about to be looked at; [`Lane::looked`] follows.
    pub fn looks(&mut self) {
        self.parked_meanwhile = None;
    }

    /// The backlog was looked at up to this entry; with `None`, to its end.
    pub fn looked(&mut self, last: Option<EntryId>) {
        match last {
            Some(last) => self.drained_to = self.drained_to.max(last),
            None => self.drained = true,
        }
        if let Some(entry) = self.parked_meanwhile.take() {
            self.was_parked(entry);
        }
    }

    /// Something was parked at `entry`: the backlog must be looked at from there.
    pub fn was_parked(&mut self, entry: EntryId) {
        self.parked_meanwhile = Some(self.parked_meanwhile.map_or(entry, |lowest| lowest.min(entry)));
        self.drained = false;
        if entry <= self.drained_to {
            self.drained_to = entry.before();
        }
    }

    /// Starts over with a new term: what was in memory is read again. What was learnt of the receiver stays, and so do the
    /// attempts in flight.
    pub fn reset(&mut self) {
        self.queue.clear();
        (self.unfinished, self.parked, self.weight, self.weighed) = (0, 0, 0, None);
        (self.drained_to, self.drained, self.parked_meanwhile) = (EntryId::ZERO, false, None);
        self.look_again_at = 0;
        (self.is_ready, self.is_hungry, self.is_waiting, self.alarm_at) = (false, false, false, None);
    }

    pub fn is_breaker_closed(&self, now: u64) -> bool {
        self.breaker.view(now) == BreakerView::Closed
    }

    pub fn breaker(&self, now: u64) -> BreakerView {
        self.breaker.view(now)
    }

    /// How many attempts may be under way, as its receiver and its breaker have it.
    pub fn window(&self, now: u64) -> u32 {
        match self.breaker.view(now) {
            BreakerView::Open { .. } => 0,
            BreakerView::HalfOpen { probes } => probes.min(self.most()),
            BreakerView::Closed => self.limiter.limit(self.most(), &self.evidence),
        }
    }

    /// Who paused it, if it is, or was when it ended.
    pub fn paused(&self) -> Option<&Mark> {
        self.paused.as_ref()
    }

    /// How the last attempt that failed ended, and when.
    pub fn last_failure(&self) -> Option<&(u64, Cause)> {
        self.last_failure.as_ref()
    }

    /// What keeps it from sending more now, as far as it is not a pause, and since when that is so.
    pub fn blocked_by(&self, now: u64) -> Option<(Waiting, Option<u64>)> {
        if !self.is_breaker_closed(now) {
            return Some((Waiting::BreakerOpen, self.in_trouble_since));
        }
        if self.is_unreadable() {
            return Some((Waiting::EndpointUnreadable, None));
        }
        if now < self.rests_until {
            return Some((Waiting::Resting, None));
        }
        let rate = self.endpoint().and_then(|endpoint| endpoint.rate_limit);
        if rate.is_some_and(|rate| self.tokens_by(now, rate) < 1.0) {
            return Some((Waiting::RateLimited, None));
        }
        (self.parked > 0 && self.ended().is_none()).then_some((Waiting::Busy, None))
    }

    /// Its breaker, if its endpoint may be sent to.
    pub fn breaker_of_served(&self, now: u64) -> Option<BreakerView> {
        let is_served = matches!(self.standing, Standing::Serving(_)) && self.ended().is_none();
        is_served.then(|| self.breaker.view(now))
    }

    /// How many may be in flight, as the endpoint sets it.
    pub fn most(&self) -> u32 {
        self.endpoint().map_or(1, |endpoint| u32::from(endpoint.max_in_flight)).max(1)
    }

    /// What it can get rid of in [`QUEUE_MS`], as far as that is known.
    fn quota(&self, now: u64) -> usize {
        let watched = now.saturating_sub(self.watched_since);
        let rate = match self.in_flight > 0 && watched >= RATE_WINDOW_MS {
            true => f64::from(self.done_since) * 1_000.0 / watched as f64,
            false => self.rate,
        };
        let quota = rate * QUEUE_MS as f64 / 1_000.0;
        if quota >= usize::MAX as f64 { usize::MAX } else { (quota as usize).max(MIN_QUOTA) }
    }

    /// A full second's worth may be saved up.
    fn tokens_by(&self, now: u64, rate: u32) -> f64 {
        let rate = f64::from(rate.max(1));
        (self.tokens + now.saturating_sub(self.tokens_at) as f64 * rate / 1_000.0).min(rate)
    }
}

/// How long the receiver is left alone: as long as it asks, and after a 429 at least a moment, which grows while nothing
/// succeeds.
fn rest_ms(outcome: &Outcome, granted: Option<Duration>, silence_ms: u64) -> u64 {
    let granted = granted.map_or(0, |granted| granted.as_millis().min(MAX_REST_MS.into()) as u64);
    match outcome {
        Outcome::Throttled { status: 429, .. } => granted.max((silence_ms / 2).clamp(MIN_REST_MS, LONG_REST_MS)),
        _ => granted,
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;

//! How fast an operation goes: so many a second, a few at a time for each endpoint, and hardly any for one that fails again. Pure.

use std::time::{Duration, Instant};

use crate::{
    facts::operation::{Kind, Rate},
    store::operations::work::Became,
};

/// Redeliveries to one endpoint that go out at a time, and those with what is being retried there.
const WINDOW: usize = 16;
const MAX_SLOW: usize = 100;

/// Letters of one endpoint that are dropped at a time: no receiver hears of it.
const DISCARD_WINDOW: usize = 100;

/// So many that fail one after the other are no accident: from then on one goes at a time, each after twice as long.
const FAILING: u32 = 4;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What may be taken now, so many a second. What is not used within a quarter of a second is not saved up.
#[derive(Debug)]
pub struct Bucket {
    /// None until it is known at which rate.
    tokens: Option<f64>,
    phase: f64,
    at: Instant,
}

impl Bucket {
    /// At less than one a second this part of the first is saved up: parts of one operation that begin together must not all take
    /// their first one together.
    pub fn new(now: Instant, phase: f64) -> Self {
        Self { tokens: None, phase, at: now }
    }

    pub fn room(&mut self, now: Instant, rate: Rate) -> usize {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let rate = rate.per_second();
        let saved = self.tokens.unwrap_or(if rate < 1.0 { self.phase } else { 1.0 });
        let tokens = (saved + passed * rate).min((rate / 4.0).max(1.0));
        self.tokens = Some(tokens);
        tokens.max(0.0) as usize
    }

    pub fn took(&mut self, count: usize) {
        self.tokens = self.tokens.map(|tokens| tokens - count as f64);
    }
}

/// What an operation has under way at one endpoint.
#[derive(Debug, Default)]
pub struct Lane {
    going: usize,
    slow: usize,
    /// Signs, one after the other, that its receiver takes nothing.
    failures: u32,
    resumes_at: Option<Instant>,
}

impl Lane {
    /// One more is under way.
    pub fn took(&mut self, as_it_was: Became) {
        *self.count(as_it_was) += 1;
    }

    pub fn going(&self) -> usize {
        self.going
    }

    pub fn is_idle(&self) -> bool {
        self.going == 0 && self.slow == 0 && self.failures == 0
    }

    /// One that was under way stands otherwise now, or has ended.
    pub fn became(&mut self, now: Instant, before: Became, after: Became) {
        if before == after {
            return;
        }
        let count = self.count(before);
        *count = count.saturating_sub(1);
        if !after.has_ended() {
            *self.count(after) += 1;
        }
        match after {
            Became::Done => (self.failures, self.resumes_at) = (0, None),
            Became::DeadAgain | Became::Retrying | Became::Parked => {
                self.failures = self.failures.saturating_add(1);
                let doublings = self.failures.saturating_sub(FAILING).min(6);
                self.resumes_at = Some(now + Duration::from_secs(1 << doublings).min(LONGEST_PAUSE));
            }
            Became::Asked | Became::Open | Became::Held | Became::Refused | Became::Overtaken | Became::Stranger => {}
        }
    }

    /// How many more may be taken.
    pub fn room(&self, now: Instant, kind: Kind) -> usize {
        if kind == Kind::Discard {
            return DISCARD_WINDOW.saturating_sub(self.going + self.slow);
        }
        let room = WINDOW.saturating_sub(self.going).min(MAX_SLOW.saturating_sub(self.going + self.slow));
        if !self.is_failing() {
            return room;
        }
        let may_try = self.going == 0 && self.resumes_at.is_none_or(|at| now >= at);
        room.min(usize::from(may_try))
    }

    /// Why nothing, or nearly nothing, is taken.
    pub fn waits(&self) -> Option<String> {
        self.is_failing().then(|| format!("it fails again, {} in a row", self.failures))
    }

    fn is_failing(&self) -> bool {
        self.failures >= FAILING
    }

    fn count(&mut self, became: Became) -> &mut usize {
        if became.is_slow() { &mut self.slow } else { &mut self.going }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn no_more_than_the_rate_is_taken_and_little_is_saved_up() {
        let now = clock::now();
        let (mut bucket, rate) = (Bucket::new(now, 0.5), Rate::of(200));
        let mut taken = 0;
        for step in 0..=100 {
            let room = bucket.room(now + Duration::from_millis(step * 100), rate);
            bucket.took(room);
            taken += room;
        }
        assert!((1_999..=2_001).contains(&taken), "{taken} in ten seconds");
        assert_eq!(bucket.room(now + Duration::from_secs(3_600), rate), 50);
        assert_eq!(Bucket::new(now, 0.5).room(now, Rate::of(1)), 1);
        // A clock that stands still, or goes back, gives nothing.
        bucket.took(50);
        assert_eq!(bucket.room(now, rate), 0);
    }

    #[test]
    fn what_parts_have_of_one_a_second_is_one_a_second() {
        let now = clock::now();
        let shares = Rate::of(1).divided(&[1; 64]);
        let mut buckets: Vec<(Bucket, Rate)> =
            shares.into_iter().enumerate().map(|(at, rate)| (Bucket::new(now, at as f64 / 64.0), rate)).collect();
        let (mut taken, mut at_once) = (0, 0);
        for step in 0..=1_280 {
            let now = now + Duration::from_millis(step * 100);
            let before = taken;
            for (bucket, rate) in &mut buckets {
                let room = bucket.room(now, *rate);
                bucket.took(room);
                taken += room;
            }
            at_once = at_once.max(taken - before);
        }
        assert!((127..=129).contains(&taken) && at_once == 1, "{taken} in 128 seconds, {at_once} at once");
    }

    #[test]
    fn an_endpoint_that_fails_again_gets_one_at_a_time_until_it_takes_one() {
        let (now, mut lane) = (clock::now(), Lane::default());
        for _ in 0..WINDOW {
            assert!(lane.room(now, Kind::Redeliver) > 0);
            lane.took(Became::Asked);
        }
        assert_eq!(lane.room(now, Kind::Redeliver), 0);
        for _ in 0..WINDOW {
            lane.became(now, Became::Asked, Became::Retrying);
        }
        assert_eq!((lane.room(now, Kind::Redeliver), lane.going()), (0, 0));
        assert!(lane.waits().unwrap().contains("16 in a row"));
        let later = now + LONGEST_PAUSE;
        assert_eq!(lane.room(later, Kind::Redeliver), 1);
        lane.took(Became::Asked);
        assert_eq!(lane.room(later, Kind::Redeliver), 0, "one at a time");
        lane.became(later, Became::Asked, Became::Done);
        assert_eq!((lane.room(later, Kind::Redeliver), lane.waits()), (WINDOW, None));
    }

    #[test]
    fn a_few_that_never_go_out_do_not_stop_the_others_and_many_do() {
        let (now, mut lane) = (clock::now(), Lane::default());
        for n in 0..MAX_SLOW {
            lane.took(Became::Asked);
            lane.became(now, Became::Asked, Became::Retrying);
            lane.took(Became::Asked);
            lane.became(now, Became::Asked, Became::Done);
            assert_eq!(lane.room(now, Kind::Redeliver), WINDOW.min(MAX_SLOW - n - 1));
        }
        assert!(!lane.is_idle());
    }

    #[test]
    fn pauses_grow_and_end() {
        let (now, mut lane) = (clock::now(), Lane::default());
        for _ in 0..40 {
            lane.took(Became::Asked);
            lane.became(now, Became::Asked, Became::DeadAgain);
        }
        assert_eq!(lane.room(now + LONGEST_PAUSE - Duration::from_millis(1), Kind::Redeliver), 0);
        assert_eq!(lane.room(now + LONGEST_PAUSE, Kind::Redeliver), 1);
        assert_eq!(lane.room(now, Kind::Discard), DISCARD_WINDOW);
    }
}

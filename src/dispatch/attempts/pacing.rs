//! How many attempts of one thread may be out and unanswered at a time. Few cost much less each than many, and a new one
//! has to wait until all of them are done; but slow receivers must not keep the thread from beginning others.
//!
//! An attempt that was begun within a period and is not answered at its end waits for its receiver and counts no more. When
//! as many as allowed were out in a period while the thread rested, the next period is a trial with twice as many: that
//! helps where answers take their time on the way, and does nothing where the thread only waits for a processor.
//! Pure: times are passed in.

use std::time::{Duration, Instant};

/// How many one thread may have out, and whether it leaves the processor to the others.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// More would only wait in the buffers of receivers that answer at once, and each request costs more the more are out,
    /// because its data has left the processor's cache.
    pub least: usize,
    /// On a thread that rests beside slow receivers.
    pub most: usize,
    pub stands_back: bool,
}

/// At most a period's worth at a hundred thousand a second.
pub const PROVEN: Pace = Pace { least: 64, most: 2_048, stands_back: false };

/// Two thousand a second beside those that answer at once. What begins together times out together. Hundreds that do, or
/// that connect together, would be felt by the proven, which share processors and Redis with them.
pub const UNPROVEN: Pace = Pace { least: 32, most: 32, stands_back: true };

/// An attempt unanswered for longer than this waits for its receiver, and others may begin. Longer than a receiver on the
/// same machine waits for a processor.
const PERIOD: Duration = Duration::from_millis(16);

/// Periods between a trial that brought nothing and the next one.
const PERIODS_BETWEEN_TRIALS: u64 = 4;

#[derive(Debug)]
pub struct Pacing {
    pace: Pace,
    /// How many may be out.
    limit: usize,
    /// The current period: attempts belong to the one in which they were begun.
    period: u64,
    since: Instant,
    /// How long the thread had worked by `since`.
    busy: Duration,
    /// Begun within the period.
    begun: usize,
    /// Of those, how many have not ended.
    out: usize,
    /// The most that were out together.
    peak: usize,
    trial: Option<Trial>,
    /// No other trial is made before this period.
    no_trial_before: u64,
}

/// A period in which twice as many may be out.
#[derive(Debug)]
struct Trial {
    /// The limit before, and how many were begun within a period under it.
    limit: usize,
    begun: usize,
}

impl Pacing {
    pub fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            limit: pace.least,
            period: 0,
            since: now,
            busy: Duration::ZERO,
            begun: 0,
            out: 0,
            peak: 0,
            trial: None,
            no_trial_before: 0,
        }
    }

    /// Whatever is out now counts no more. `busy` is what the thread has worked so far.
    pub fn next_period(&mut self, now: Instant, busy: Duration) {
        let is_busy = 4 * busy.saturating_sub(self.busy) >= 3 * now.saturating_duration_since(self.since);
        (self.limit, self.trial) = self.judged(is_busy);
        (self.period, self.since, self.busy) = (self.period + 1, now, busy);
        (self.begun, self.out, self.peak) = (0, 0, 0);
    }

    /// The limit of the next period, and whether it is on trial.
    fn judged(&mut self, is_busy: bool) -> (usize, Option<Trial>) {
        let fewer = |limit: usize| (limit - limit / 8).max(self.pace.least);
        if let Some(Trial { limit, begun }) = self.trial.take()
            && (is_busy || 4 * self.begun <= 5 * begun)
        {
            self.no_trial_before = self.period + PERIODS_BETWEEN_TRIALS;
            return (fewer(limit), None);
        }
        if is_busy {
            return (fewer(self.limit), None);
        }
        let more = (2 * self.limit).min(self.pace.most);
        if self.peak == self.limit && more > self.limit && self.period >= self.no_trial_before {
            return (more, Some(Trial { limit: self.limit, begun: self.begun }));
        }
        // A quarter more than were needed, so that slow receivers need not wait for a trial whenever a few more come.
        let is_needed = self.peak + self.peak / 4 > fewer(self.limit);
        (if is_needed { self.limit } else { fewer(self.limit) }, None)
    }

    /// How many more may begin.
    pub fn room(&mut self, now: Instant, busy: impl FnOnce() -> Duration) -> usize {
        if now >= self.until() {
            self.next_period(now, busy());
        }
        self.limit - self.out
    }

    /// Adds these to the current period.
    pub fn begun(&mut self, few: usize) -> u64 {
        self.begun += few;
        self.out += few;
        self.peak = self.peak.max(self.out);
        self.period
    }

    /// One has ended that was begun within this period.
    pub fn ended(&mut self, period: u64) {
        if period == self.period {
            self.out -= 1;
        }
    }

    /// Until when nothing may begin, unless something ends before.
    pub fn full_until(&self) -> Option<Instant> {
        (self.out == self.limit).then(|| self.until())
    }

    fn until(&self) -> Instant {
        self.since + PERIOD
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    const RESTING: Duration = Duration::from_millis(3);
    const WORKING: Duration = Duration::from_millis(15);

    /// The limit in each of `periods` periods. In each the thread works for `busy` and has `a_period` attempts to begin.
    /// Attempts to slow receivers are not answered within the period, all others at once.
    fn limits(pacing: &mut Pacing, periods: u32, busy: Duration, a_period: usize, is_slow: bool) -> Vec<usize> {
        let since = pacing.since;
        let mut limits = Vec::new();
        for period in 0..periods {
            let (now, mut left) = (since + period * PERIOD, a_period);
            loop {
                let room = pacing.room(now, || busy * period).min(left);
                if room == 0 {
                    break;
                }
                let of = pacing.begun(room);
                left -= room;
                if !is_slow {
                    (0..room).for_each(|_| pacing.ended(of));
                }
            }
            limits.push(pacing.limit);
        }
        limits
    }

    fn begun_with(limit: usize) -> Pacing {
        Pacing { limit, ..Pacing::new(PROVEN, clock::now()) }
    }

    #[test]
    fn slow_receivers_limit_nothing() {
        let mut pacing = begun_with(PROVEN.least);
        assert_eq!(limits(&mut pacing, 7, RESTING, 100_000, true), [64, 128, 256, 512, 1_024, 2_048, 2_048]);
        // As long as they are needed, and no longer.
        let mut pacing = begun_with(PROVEN.most);
        assert_eq!(limits(&mut pacing, 3, RESTING, 1_500, true), [2_048, 2_048, 2_048]);
        assert_eq!(limits(&mut pacing, 40, RESTING, 10, true).last(), Some(&PROVEN.least));
    }

    #[test]
    fn a_thread_that_has_enough_to_do_has_few_out() {
        let mut pacing = begun_with(PROVEN.least);
        assert_eq!(limits(&mut pacing, 3, WORKING, 100_000, true), [64, 64, 64]);
        let mut pacing = begun_with(512);
        assert_eq!(limits(&mut pacing, 3, WORKING, 100_000, true), [512, 448, 392]);
    }

    /// The thread rests because it waits for a processor, the worker or the receivers' processor: having more out makes
    /// nothing faster.
    #[test]
    fn more_that_bring_nothing_are_taken_back() {
        let mut pacing = begun_with(PROVEN.least);
        let few = limits(&mut pacing, 100, RESTING, 600, false);
        assert!(few.iter().all(|limit| *limit <= 2 * PROVEN.least), "{few:?}");
        let trials = few.iter().filter(|limit| **limit > PROVEN.least).count();
        assert!((10..=25).contains(&trials), "{few:?}");
        // And a limit that has grown shrinks again, even if it is never used up.
        for (ready, most) in [(600, 2 * PROVEN.least), (300, 400)] {
            let mut pacing = begun_with(512);
            let all = limits(&mut pacing, 100, RESTING, ready, false);
            assert!(*all.last().unwrap() <= most, "{all:?}");
        }
    }

    /// A preempted thread counts as busy, the more so when others need the processors.
    #[test]
    fn a_thread_that_works_and_rests_in_turns_gets_no_more() {
        let mut pacing = begun_with(PROVEN.least);
        let mut all = Vec::new();
        for turn in 0..100 {
            pacing.busy = Duration::ZERO;
            all.extend(limits(&mut pacing, 2, if turn % 2 == 0 { RESTING } else { WORKING }, 600, false));
        }
        assert!(all.iter().all(|limit| *limit <= 2 * PROVEN.least), "{all:?}");
    }

    #[test]
    fn those_that_are_not_proven_begin_at_an_even_pace_however_many_hang() {
        let mut pacing = Pacing::new(UNPROVEN, clock::now());
        assert_eq!(limits(&mut pacing, 10, Duration::ZERO, 1_000, true), [UNPROVEN.most; 10]);
    }

    #[test]
    fn what_is_not_answered_within_a_period_makes_room() {
        let start = clock::now();
        let idle = || Duration::ZERO;
        let mut pacing = Pacing::new(PROVEN, start);
        assert_eq!(pacing.room(start, idle), PROVEN.least);
        let first = pacing.begun(PROVEN.least);
        assert_eq!((pacing.room(start, idle), pacing.full_until()), (0, Some(start + PERIOD)));
        // One is answered at once: another may begin.
        pacing.ended(first);
        assert_eq!((pacing.room(start, idle), pacing.full_until()), (1, None));
        pacing.begun(1);
        // The others are not: they make room for twice as many, and make none again when they end.
        assert_eq!(pacing.room(start + PERIOD, idle), 2 * PROVEN.least);
        pacing.ended(first);
        assert_eq!(pacing.room(start + PERIOD, idle), 2 * PROVEN.least);
    }

    proptest! {
        /// Whatever begins and ends, and whenever: the limit stays within its bounds, and no place is lost or given out
        /// twice.
        #[test]
        fn places_are_neither_lost_nor_given_twice(steps in prop::collection::vec((0_u64..6, 0_usize..300, 0_u32..300, 0_u64..7), 1..200)) {
            let mut now = clock::now();
            let (mut pacing, mut busy) = (Pacing::new(PROVEN, now), Duration::ZERO);
            let mut out = Vec::new();
            for (ms, begin, end, busy_ms) in steps {
                now += Duration::from_millis(ms);
                busy += Duration::from_millis(busy_ms.min(ms));
                let room = pacing.room(now, || busy);
                prop_assert!((PROVEN.least..=PROVEN.most).contains(&pacing.limit));
                let counted = out.iter().filter(|period| **period == pacing.period).count();
                prop_assert_eq!(room, pacing.limit - counted);
                let period = pacing.begun(begin.min(room));
                out.extend((0..begin.min(room)).map(|_| period));
                for _ in 0..(end as usize).min(out.len()) {
                    pacing.ended(out.swap_remove(0));
                }
            }
        }
    }
}

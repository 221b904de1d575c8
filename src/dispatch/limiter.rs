//! How many attempts of one lane may be in flight, and whether the next one waits a moment.
//! Pure: times are passed in. Never looks at what waits, and never gives a receiver up: the breaker does that.
//!
//! Three kinds of limiter are in common use. TCP halves its window once per round trip: a receiver that fails one request
//! in ten, whatever it is sent, would be left with a few places. Netflix' gradient limiter compares latencies, but a
//! refusal is quick. Google's adaptive throttling bounds requests by a multiple of accepts, so a receiver keeps everything
//! as long as it accepts enough. We use the last, as small changes of a window: each accepted attempt adds a third of a
//! place, and each one refused for congestion removes half a place, at most half the window in one round trip. So the
//! window grows as long as three fifths are accepted (requests ≤ 1.67 × accepts; Google's multiple is 2, but for us a
//! refusal costs a retry), and otherwise shrinks to what is accepted. From TCP come the doubling of a new window up to the
//! first cut, and what happens when nothing comes back at all: one attempt at a time, each after half the time for which
//! nothing has succeeded. A receiver that is back is found before its outage has become half as long again, and an outage
//! of a second costs a dozen attempts, however much was waiting.

use super::evidence::Evidence;

/// How many a new lane may have in flight: enough for a receiver that nobody knows yet.
const FIRST_WINDOW: f64 = 4.0;

/// Places that an accepted attempt adds once congestion has shown itself.
const GAIN: f64 = 1.0 / 3.0;

/// Places that an attempt refused for congestion removes.
const LOSS: f64 = 1.0 / 2.0;

/// This many failures in a row, together with the failure of all that was out at the first one, are no longer an accident:
/// if one in three fails independently, it happens once in 6 561 times.
const FAILURES_OF_SILENCE: u32 = 8;

/// Longest pause before the next attempt while nothing succeeds; beyond it the breaker opens.
const MAX_HOLD_MS: u64 = 2_500;

#[derive(Debug, Clone)]
pub struct Limiter {
    window: f64,
    /// The window doubles with each round trip up to here.
    goal: f64,
    /// This round trip's cuts stop here.
    floor: f64,
    held_until: u64,
}

impl Default for Limiter {
    fn default() -> Self {
        Self { window: FIRST_WINDOW, goal: f64::INFINITY, floor: FIRST_WINDOW / 2.0, held_until: 0 }
    }
}

impl Limiter {
    /// How many may be in flight, for an endpoint that allows `most`.
    pub fn limit(&self, most: u32, evidence: &Evidence) -> u32 {
        let most = match evidence.failures() < FAILURES_OF_SILENCE {
            true => most,
            // What was already out at the first failure is waited for; meanwhile one attempt at a time keeps asking.
            false => most.min(evidence.witnesses() + 1),
        };
        (self.window as u32).min(most).max(1)
    }

    /// Nothing goes before this time.
    pub fn held_until(&self) -> u64 {
        self.held_until
    }

    pub fn accepted(&mut self, most: u32) {
        let gain = match self.window < self.goal {
            true => 1.0,
            // A window of one or two places grows by one in a round trip.
            false => GAIN.max(1.0 / self.window),
        };
        self.window = (self.window + gain).clamp(1.0, f64::from(most.max(1)));
        self.held_until = 0;
    }

    /// An attempt has failed and `in_flight` are still out; `is_congestion` if it failed because there were too many.
    pub fn failed(&mut self, now: u64, in_flight: u32, is_congestion: bool, evidence: &Evidence) {
        if evidence.failures() >= FAILURES_OF_SILENCE && evidence.witnesses() == 0 {
            self.window = 1.0;
            self.held_until = self.held_until.max(now + (evidence.silence_ms(now) / 2).min(MAX_HOLD_MS));
        } else if is_congestion {
            // What is still out may well be accepted: a refusal is quicker than a yes.
            let least = self.floor.max(f64::from(in_flight)).max(1.0);
            self.window = (self.window - LOSS).max(least.min(self.window));
            self.goal = self.window;
        }
    }

    /// The receiver is left alone for a while: what waits meanwhile must not hit it all at once.
    pub fn rests(&mut self) {
        self.window = self.window.min(FIRST_WINDOW);
    }

    pub fn round_trip_ended(&mut self) {
        self.floor = self.window / 2.0;
    }

    /// Begins small, and without a pause: the receiver is back.
    pub fn begin_again(&mut self) {
        *self = Self { window: 1.0, floor: 1.0, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers come one after another, while this many others are out.
    fn answers(limiter: &mut Limiter, evidence: &mut Evidence, at: std::ops::Range<u64>, is_well: bool) {
        for now in at {
            evidence.started(now);
            if evidence.ended(now, now, 0, is_well) {
                limiter.round_trip_ended();
            }
            match is_well {
                true => limiter.accepted(100),
                false => limiter.failed(now, 0, true, evidence),
            }
        }
    }

    #[test]
    fn a_new_window_doubles_and_one_that_was_cut_grows_by_a_third() {
        let (mut limiter, mut evidence) = (Limiter::default(), Evidence::default());
        answers(&mut limiter, &mut evidence, 1..5, true);
        assert_eq!(limiter.limit(100, &evidence), 8);
        answers(&mut limiter, &mut evidence, 5..6, false);
        answers(&mut limiter, &mut evidence, 6..9, true);
        assert_eq!((limiter.window * 2.0).round(), 17.0);
    }

    #[test]
    fn one_round_trip_takes_half_the_window_at_most_and_never_what_is_still_out() {
        let mut evidence = Evidence::default();
        (1..=100).for_each(|attempt| evidence.started(attempt));
        let cut = |out: u32| {
            let mut limiter = Limiter { window: 100.0, floor: 50.0, ..Limiter::default() };
            // Too few in a row to be silence.
            (0..100).for_each(|_| limiter.failed(0, out, true, &evidence));
            limiter.limit(100, &evidence)
        };
        assert_eq!([0, 70].map(cut), [50, 70]);
    }

    #[test]
    fn while_nothing_comes_back_one_at_a_time_asks_after_half_the_silence() {
        let (mut limiter, mut evidence) = (Limiter::default(), Evidence::default());
        answers(&mut limiter, &mut evidence, 1_000..1_008, false);
        assert_eq!((limiter.limit(100, &evidence), limiter.held_until()), (1, 1_007 + 3));
        answers(&mut limiter, &mut evidence, 1_100..1_101, false);
        assert_eq!(limiter.held_until(), 1_150);
        answers(&mut limiter, &mut evidence, 60_000..60_001, false);
        assert_eq!(limiter.held_until(), 60_000 + MAX_HOLD_MS);
        answers(&mut limiter, &mut evidence, 60_001..60_002, true);
        assert_eq!((limiter.limit(100, &evidence), limiter.held_until()), (2, 0));
    }

    #[test]
    fn what_was_out_when_failures_began_is_waited_for() {
        let mut evidence = Evidence::default();
        let mut limiter = Limiter { window: 100.0, floor: 50.0, ..Limiter::default() };
        (1..=100).for_each(|attempt| evidence.started(attempt));
        for attempt in 1..=8 {
            evidence.ended(10, attempt, 100 - attempt as u32, false);
            limiter.failed(10, 100 - attempt as u32, false, &evidence);
        }
        assert_eq!((limiter.limit(100, &evidence), limiter.held_until()), (93, 0), "92 are out, and one may ask");
        evidence.ended(11, 9, 91, true);
        assert_eq!(limiter.limit(100, &evidence), 100);
    }
}

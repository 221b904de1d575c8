//! The breaker of one lane: closed, it admits; open, it refuses until a time; then half-open, it lets a few probes out.
//! Pure: times and chance are passed in. Never decides what happens to what it refuses.
//!
//! As in Finagle's failure accrual, two things open it: silence (nothing has succeeded for a cooldown, over several round
//! trips, however few attempts those were), or a share of failures that stays too high for a cooldown. A count of failures
//! in a row does neither: ten that were out together are one piece of evidence, and a hiccup of a tenth of a second is many
//! in a row. As in Envoy's outlier detection, the pauses lengthen while nothing succeeds. Each is half as long as the
//! silence so far, so a receiver that is back is found before its outage is half as long again, or within the longest
//! cooldown. It closes by degrees: one probe at a time, then two, then three, and then the lane's window begins at one.

use super::evidence::Evidence;

/// Round trips without a success before it opens: one that failed is an accident, and so may be the few after it.
const ROUNDS: u32 = 5;

/// Good probes needed to close it.
const GOOD_PROBES: u32 = 3;

/// It opens again when bad probes outnumber good ones by this many: a single one may be the one in five that fails anyway.
const BAD_PROBES: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerSettings {
    /// The share of failing attempts at which it opens although some succeed.
    pub failure_share: f64,
    /// How long nothing, or too little, must succeed before it opens; also the first pause.
    pub cooldown_ms: u64,
    /// The pauses grow up to here while nothing succeeds.
    pub max_cooldown_ms: u64,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self { failure_share: 0.9, cooldown_ms: 5_000, max_cooldown_ms: 300_000 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Too many attempts have failed since this time.
    Closed { failing_since: Option<u64> },
    /// Refuses until `until`. From then on it is half-open and counts the results of its probes: the attempts after `last`.
    Open { until: u64, last: u64, good: u32, bad: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerView {
    Closed,
    Open {
        until: u64,
    },
    /// This many probes may be out.
    HalfOpen {
        probes: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Stays,
    Opens,
    Closes,
}

#[derive(Debug, Clone)]
pub struct Breaker {
    state: State,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed { failing_since: None } }
    }
}

impl Breaker {
    pub fn view(&self, now: u64) -> BreakerView {
        match self.state {
            State::Closed { .. } => BreakerView::Closed,
            // A success meanwhile brings the probes forward.
            State::Open { until, good: 0, .. } if now < until => BreakerView::Open { until },
            State::Open { good, .. } => BreakerView::HalfOpen { probes: 1 + good },
        }
    }

    pub fn succeeded(&mut self) -> Turn {
        let State::Open { good, .. } = &mut self.state else { return Turn::Stays };
        *good += 1;
        if *good < GOOD_PROBES {
            return Turn::Stays;
        }
        *self = Self::default();
        Turn::Closes
    }

    /// An attempt has failed; `evidence` has counted it already. `chance` in [0, 1) shortens a pause by up to a quarter, so
    /// that endpoints that failed together are not probed together.
    pub fn failed(
        &mut self,
        now: u64,
        attempt: u64,
        evidence: &Evidence,
        settings: &BreakerSettings,
        chance: f64,
    ) -> Turn {
        let is_too_much = match &mut self.state {
            State::Closed { failing_since } => {
                let silent = evidence.failed_rounds() >= ROUNDS && evidence.silence_ms(now) >= settings.cooldown_ms;
                if evidence.failing() < settings.failure_share {
                    *failing_since = None;
                    silent
                } else {
                    let since = *failing_since.get_or_insert(now);
                    silent || now.saturating_sub(since) >= settings.cooldown_ms
                }
            }
            // A straggler that was sent before it opened says nothing new.
            State::Open { last, .. } if attempt <= *last => false,
            State::Open { good, bad, .. } => {
                *bad += 1;
                *bad >= *good + BAD_PROBES
            }
        };
        if !is_too_much {
            return Turn::Stays;
        }
        let longest = settings.max_cooldown_ms.max(settings.cooldown_ms);
        let pause = (evidence.silence_ms(now) / 2).clamp(settings.cooldown_ms, longest);
        let until = now + (pause as f64 * (1.0 - 0.25 * chance)) as u64;
        self.state = State::Open { until, last: evidence.latest(), good: 0, bad: 0 };
        Turn::Opens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: BreakerSettings =
        BreakerSettings { failure_share: 0.9, cooldown_ms: 1_000, max_cooldown_ms: 20_000 };

    /// One attempt after the other.
    #[derive(Default)]
    struct Receiver {
        breaker: Breaker,
        evidence: Evidence,
        attempts: u64,
    }

    impl Receiver {
        fn answers(&mut self, now: u64, is_well: bool) -> Turn {
            self.attempts += 1;
            self.evidence.started(self.attempts);
            self.evidence.ended(now, self.attempts, 0, is_well);
            match is_well {
                true => self.breaker.succeeded(),
                false => self.breaker.failed(now, self.attempts, &self.evidence, &SETTINGS, 0.0),
            }
        }

        fn opened() -> Self {
            let mut receiver = Self::default();
            let turns: Vec<Turn> = (0..5).map(|at| receiver.answers(at * 250, false)).collect();
            assert_eq!(turns[..4], [Turn::Stays; 4]);
            assert_eq!(turns[4], Turn::Opens, "after five round trips and a cooldown");
            receiver
        }
    }

    #[test]
    fn silence_opens_it_however_few_attempts_there_were() {
        assert_eq!(Receiver::opened().breaker.view(1_000), BreakerView::Open { until: 2_000 });
        let mut sparse = Receiver::default();
        let turns: Vec<Turn> = (0..5).map(|minute| sparse.answers(minute * 60_000, false)).collect();
        assert_eq!(turns, [Turn::Stays, Turn::Stays, Turn::Stays, Turn::Stays, Turn::Opens]);
    }

    #[test]
    fn many_failures_within_a_moment_do_not_open_it() {
        let mut receiver = Receiver::default();
        for second in 0..20 {
            // A hundred in a row within a tenth of a second, and then nine hundred good ones.
            assert!((0..100).all(|ms| receiver.answers(second * 1_000 + ms, false) == Turn::Stays));
            assert!((100..1_000).all(|ms| receiver.answers(second * 1_000 + ms, true) == Turn::Stays));
        }
    }

    #[test]
    fn a_share_of_failures_that_stays_too_high_opens_it_although_some_succeed() {
        let opens_after = |one_in: u64| {
            let mut receiver = Receiver::default();
            (1..10_000).find(|at| receiver.answers(at * 10, at % one_in == 0) == Turn::Opens)
        };
        assert!(opens_after(30).is_some_and(|attempts| (100..300).contains(&attempts)), "{:?}", opens_after(30));
        assert_eq!(opens_after(5), None);
    }

    #[test]
    fn its_pauses_grow_only_while_nothing_succeeds() {
        let mut receiver = Receiver::opened();
        let (mut now, mut pauses) = (2_000, Vec::new());
        for _ in 0..10 {
            assert_eq!(receiver.breaker.view(now), BreakerView::HalfOpen { probes: 1 });
            assert_eq!(receiver.answers(now, false), Turn::Stays, "one bad probe may be an accident");
            assert_eq!(receiver.answers(now, false), Turn::Opens);
            let BreakerView::Open { until } = receiver.breaker.view(now) else { panic!("it is not open") };
            pauses.push(until - now);
            now = until;
        }
        assert_eq!(pauses[..4], [1_000, 1_500, 2_250, 3_375]);
        assert_eq!(pauses.last(), Some(&20_000));
        receiver.answers(now, true);
        let turns = [(); 3].map(|()| receiver.answers(now, false));
        assert_eq!(turns, [Turn::Stays, Turn::Stays, Turn::Opens]);
        assert_eq!(receiver.breaker.view(now), BreakerView::Open { until: now + 1_000 });
    }

    #[test]
    fn it_closes_by_degrees() {
        let mut receiver = Receiver::opened();
        for probes in 1..GOOD_PROBES {
            assert_eq!(receiver.breaker.view(2_000), BreakerView::HalfOpen { probes });
            assert_eq!(receiver.answers(2_000, true), Turn::Stays);
        }
        assert_eq!(receiver.answers(2_000, true), Turn::Closes);
        assert_eq!(receiver.breaker.view(2_000), BreakerView::Closed);
    }

    #[test]
    fn a_straggler_that_failed_says_nothing_new_and_one_that_succeeded_brings_the_probes_forward() {
        let mut receiver = Receiver::opened();
        let straggler = receiver.attempts;
        for now in [1_100, 2_100] {
            let turn = receiver.breaker.failed(now, straggler, &receiver.evidence, &SETTINGS, 0.0);
            assert_eq!(turn, Turn::Stays);
        }
        assert_eq!(receiver.breaker.view(1_100), BreakerView::Open { until: 2_000 });
        receiver.breaker.succeeded();
        assert_eq!(receiver.breaker.view(1_100), BreakerView::HalfOpen { probes: 2 });
    }
}

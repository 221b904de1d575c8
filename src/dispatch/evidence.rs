//! What the outcomes of one receiver say of it: how long nothing has succeeded, and what share of its attempts fails.
//! Requests that were out together and fail together are one piece of evidence, so shares are counted per round trip.
//! Pure; decides nothing: the limiter and the breaker do.

/// How much one round trip weighs in the share of failures: it takes 26 round trips of nothing but failures to bring it to
/// four fifths.
const ROUND_WEIGHT: f64 = 1.0 / 16.0;

#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence {
    /// The latest attempt that was started. Attempts are numbered in the order in which they start.
    started: u64,
    /// The round trip ends with the outcome of an attempt that was started after this one.
    mark: u64,
    /// Counts of the round trip that is under way.
    well: u32,
    failed: u32,
    failures: u32,
    failed_rounds: u32,
    silent_since: Option<u64>,
    /// The silence began while attempts up to `witness` were out. `witnesses` of them have not ended yet and may still
    /// succeed.
    witness: u64,
    witnesses: u32,
    failing: f64,
}

impl Evidence {
    pub fn started(&mut self, attempt: u64) {
        self.started = attempt;
    }

    /// An attempt has ended and `in_flight` are still out. Returns whether a round trip has ended with it.
    pub fn ended(&mut self, now: u64, attempt: u64, in_flight: u32, is_well: bool) -> bool {
        match is_well {
            true => {
                self.well = self.well.saturating_add(1);
                (self.failures, self.failed_rounds, self.silent_since) = (0, 0, None);
            }
            false => {
                self.failed = self.failed.saturating_add(1);
                self.failures = self.failures.saturating_add(1);
                if self.silent_since.is_none() {
                    (self.silent_since, self.witness, self.witnesses) = (Some(now), self.started, in_flight);
                } else {
                    self.lost(attempt);
                }
            }
        }
        let ends = attempt > self.mark;
        if ends {
            self.failed_rounds = if self.well == 0 { self.failed_rounds.saturating_add(1) } else { 0 };
            let share = f64::from(self.failed) / (f64::from(self.well) + f64::from(self.failed));
            self.failing += (share - self.failing) * ROUND_WEIGHT;
            (self.mark, self.well, self.failed) = (self.started, 0, 0);
        }
        ends
    }

    /// Nothing of the past counts any more except the order of attempts.
    pub fn forget(&mut self) {
        *self = Self { started: self.started, mark: self.started, ..Self::default() };
    }

    /// An attempt that was out can tell nothing any more.
    pub fn lost(&mut self, attempt: u64) {
        if attempt <= self.witness {
            self.witnesses = self.witnesses.saturating_sub(1);
        }
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How many of those that were out at the first of these failures may still succeed.
    pub fn witnesses(&self) -> u32 {
        self.witnesses
    }

    /// Round trips since the last success, in each of which every attempt failed.
    pub fn failed_rounds(&self) -> u32 {
        self.failed_rounds
    }

    /// How long ago the first failure after the last success was.
    pub fn silence_ms(&self, now: u64) -> u64 {
        self.silent_since.map_or(0, |since| now.saturating_sub(since))
    }

    /// The share of attempts that fail, over the last few dozen round trips.
    pub fn failing(&self) -> f64 {
        self.failing
    }

    /// The latest attempt that was started.
    pub fn latest(&self) -> u64 {
        self.started
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_out_together_and_fails_together_counts_once() {
        let mut evidence = Evidence::default();
        (1..=1_000).for_each(|attempt| evidence.started(attempt));
        assert!(evidence.ended(10, 1, 999, false), "the very first outcome ends a round trip");
        let ends = (2..=1_000).filter(|attempt| evidence.ended(10, *attempt, 1_000 - *attempt as u32, false)).count();
        assert_eq!((ends, evidence.failed_rounds(), evidence.failures(), evidence.witnesses()), (0, 1, 1_000, 0));
        assert!(evidence.failing() <= ROUND_WEIGHT);
        evidence.started(1_001);
        assert!(evidence.ended(20, 1_001, 0, false));
        assert_eq!((evidence.failed_rounds(), evidence.silence_ms(25)), (2, 15));
    }

    #[test]
    fn a_success_ends_a_silence_but_not_the_share_of_failures() {
        let mut evidence = Evidence::default();
        for attempt in 1..=100 {
            evidence.started(attempt);
            evidence.ended(attempt * 10, attempt, 0, attempt % 5 == 0);
        }
        assert_eq!((evidence.failures(), evidence.failed_rounds(), evidence.silence_ms(2_000)), (0, 0, 0));
        assert!((0.7..0.9).contains(&evidence.failing()), "{}", evidence.failing());
        evidence.forget();
        assert_eq!(evidence.failing(), 0.0);
    }
}

//! How long Herald may have had reason to send an endpoint nothing, judging by its receiver's answers. Errs on the side
//! of too long: a retry that waited while its lane may have been shut is not late. Pure: times are passed in.

use std::time::Duration;

use super::times::{NEVER, micros};

/// A lane may rest this long after a 429 that asks for less.
const LEAST_REST: Duration = Duration::from_secs(1);

/// The time in which one endpoint's lane may have been shut. Times are microseconds since the load began.
#[derive(Debug, Clone, Copy, Default)]
pub struct LaneBook {
    /// The latest span: its end is [`NEVER`] while the breaker may be open.
    from_us: u64,
    until_us: u64,
    /// The sum of all spans before it.
    before_us: u64,
    /// How many failures may be in a row as Herald sees them.
    failures: u32,
    failed_us: u64,
    /// When the breaker may have opened; none while it is surely closed.
    opened_us: Option<u64>,
    rests_until_us: u64,
}

impl LaneBook {
    /// An attempt was accepted that had arrived at `arrived_us`.
    pub fn succeeded(&mut self, arrived_us: u64, at_us: u64) {
        // Answers that cross each other may be read in the other order: only an attempt that began after the last
        // failure ends a row.
        if arrived_us > self.failed_us {
            self.failures = 0;
        }
        if let Some(opened_us) = self.opened_us.filter(|opened_us| arrived_us > *opened_us) {
            self.opened_us = None;
            // The backlog that has gathered meanwhile may take as long again.
            self.until_us = at_us.saturating_add(at_us.saturating_sub(opened_us)).max(self.rests_until_us);
        }
    }

    pub fn failed(&mut self, threshold: u32, at_us: u64) {
        self.failures = self.failures.saturating_add(1);
        self.failed_us = at_us;
        if self.failures >= threshold && self.opened_us.is_none() {
            self.opened_us = Some(at_us);
            self.shut(at_us, NEVER);
        }
    }

    /// The receiver asked for a rest this long; the backlog that gathers meanwhile may take as long again.
    pub fn rests(&mut self, asked: Duration, at_us: u64) {
        self.rests_until_us = self.rests_until_us.max(at_us.saturating_add(2 * micros(asked.max(LEAST_REST))));
        self.shut(at_us, self.rests_until_us);
    }

    /// How long it may have been shut in total, up to this time.
    pub fn shut_us(&self, at_us: u64) -> u64 {
        self.before_us + at_us.min(self.until_us).saturating_sub(self.from_us)
    }

    fn shut(&mut self, from_us: u64, until_us: u64) {
        if from_us <= self.until_us && self.until_us > 0 {
            self.until_us = self.until_us.max(until_us);
            return;
        }
        (self.before_us, self.from_us, self.until_us) = (self.shut_us(from_us), from_us, until_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn opened() -> LaneBook {
        let mut lane = LaneBook::default();
        (1..=3).for_each(|at| lane.failed(3, at * SECOND));
        lane
    }

    #[test]
    fn a_lane_is_shut_from_the_failure_that_may_open_its_breaker_until_its_backlog_may_be_gone() {
        let mut lane = opened();
        assert_eq!([2, 3, 7].map(|at| lane.shut_us(at * SECOND)), [0, 0, 4 * SECOND]);
        // Sent before the breaker opened: it proves nothing.
        lane.succeeded(2 * SECOND, 4 * SECOND);
        assert_eq!(lane.shut_us(7 * SECOND), 4 * SECOND);
        lane.succeeded(7 * SECOND, 8 * SECOND);
        assert_eq!([8, 13, 99].map(|at| lane.shut_us(at * SECOND)), [5, 10, 10].map(|us| us * SECOND));
        (20..=22).for_each(|at| lane.failed(3, at * SECOND));
        assert_eq!([20, 25].map(|at| lane.shut_us(at * SECOND)), [10, 13].map(|us| us * SECOND));
    }

    #[test]
    fn a_success_between_failures_ends_their_row_unless_it_was_under_way_with_them() {
        let shut_us = |arrived_us| {
            let mut lane = LaneBook::default();
            (1..=2).for_each(|at| lane.failed(3, at * SECOND));
            lane.succeeded(arrived_us, 3 * SECOND);
            lane.failed(3, 4 * SECOND);
            lane.shut_us(9 * SECOND)
        };
        assert_eq!((shut_us(2 * SECOND + 1), shut_us(SECOND)), (0, 5 * SECOND));
    }

    #[test]
    fn a_lane_rests_as_long_as_it_was_asked_and_as_long_again() {
        let mut lane = LaneBook::default();
        lane.rests(Duration::from_secs(2), SECOND);
        assert_eq!([1, 4, 9].map(|at| lane.shut_us(at * SECOND)), [0, 3, 4].map(|us| us * SECOND));
        lane.rests(Duration::ZERO, 10 * SECOND);
        lane.rests(Duration::ZERO, 11 * SECOND);
        assert_eq!(lane.shut_us(20 * SECOND), 7 * SECOND);
    }
}

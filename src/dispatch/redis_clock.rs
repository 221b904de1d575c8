//! Redis' clock, as its answers tell it, against our monotonic one: how far it is ahead, when it stepped, and whether
//! it may be believed where something would end for good. Pure. Three clocks meet here: `now`, `sent` and `received`
//! are our monotonic clock, `redis_ms` is Redis' and `wall_ms` our machine's; all are in milliseconds.

/// Two clocks that differ by no more than this count as equal.
const STEP_MS: i64 = 60_000;

/// A clock that has stepped is believed again after this long without another step.
const STABLE_MS: u64 = 600_000;

#[derive(Debug, Default)]
pub struct RedisClock {
    /// Redis' time minus ours: the most that answers have shown for certain, so that it does not fall back with each answer that
    /// comes late.
    ahead_ms: i64,
    /// The least and the most that it can be.
    bounds: Option<(i64, i64)>,
    /// By our monotonic clock.
    stepped_at: Option<u64>,
    /// Whether our machine's own clock disagrees; None until it was asked. It is the only witness of a step before the
    /// first answer.
    differs: Option<bool>,
    /// Our machine's clock minus our monotonic one.
    wall_ahead_ms: i64,
}

impl RedisClock {
    /// An answer to a call that was sent and received at these times of ours. Returns a step of the clock.
    pub fn hear(&mut self, sent: u64, received: u64, redis_ms: u64) -> Option<i64> {
        let ahead = (redis_ms as i64 - received as i64, redis_ms as i64 - sent as i64);
        let before = self.bounds.replace(ahead);
        if before.is_none() || !(ahead.0..=ahead.1).contains(&self.ahead_ms) {
            self.ahead_ms = ahead.0;
        }
        let (least, most) = before?;
        // Counts only what no delay of either answer can explain.
        let step = if ahead.0 > most { ahead.0 - most } else { (ahead.1 - least).min(0) };
        if step.abs() <= STEP_MS {
            return None;
        }
        self.stepped_at = Some(received);
        Some(step)
    }

    /// No answer has been heard yet.
    pub fn is_new(&self) -> bool {
        self.bounds.is_none()
    }

    /// Whether this is more than two clocks may differ by.
    pub fn is_step(&self, by_ms: u64) -> bool {
        by_ms > STEP_MS as u64
    }

    /// What our machine's clock says at this time.
    pub fn compare(&mut self, now: u64, wall_ms: u64) {
        self.wall_ahead_ms = wall_ms as i64 - now as i64;
        if self.bounds.is_some() {
            self.differs = Some(self.at(now).abs_diff(wall_ms) > STEP_MS as u64);
        }
    }

    /// Redis' time.
    pub fn at(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.ahead_ms)
    }

    /// The time from which an age that begins now is counted. Where two clocks disagree the later one counts, so that
    /// nothing ends early because it was written down by a clock that was set back.
    pub fn birth(&self, now: u64) -> u64 {
        match self.is_trusted(now) {
            true => self.at(now),
            false => self.at(now).max(now.saturating_add_signed(self.wall_ahead_ms)),
        }
    }

    /// Our time at this time of Redis'.
    pub fn when(&self, redis_ms: u64) -> u64 {
        redis_ms.saturating_add_signed(-self.ahead_ms)
    }

    /// Whether what is old by it is really old.
    pub fn is_trusted(&self, now: u64) -> bool {
        self.differs == Some(false) && self.stepped_at.is_none_or(|at| now >= at + STABLE_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn a_step_is_told_apart_from_an_answer_that_came_late() {
        let mut clock = RedisClock::default();
        assert_eq!(clock.hear(0, 1, 10 * HOUR), None);
        // Answered at once but heard two minutes later; and asked long before it was answered.
        assert_eq!(clock.hear(1_000, 121_000, 10 * HOUR + 1_000), None);
        assert_eq!(clock.hear(122_000, 322_000, 10 * HOUR + 321_000), None);
        assert_eq!(clock.hear(400_000, 400_001, 9 * HOUR + 400_000), Some(-(HOUR as i64) + 1_000));
        assert_eq!(clock.hear(400_002, 400_003, 50 * HOUR), Some(41 * HOUR as i64 - 400_003));
    }

    #[test]
    fn a_late_answer_does_not_set_the_time_back() {
        let mut clock = RedisClock::default();
        clock.hear(0, 1, HOUR);
        assert_eq!(clock.at(1), HOUR);
        clock.hear(2, 500, HOUR + 100);
        assert_eq!(clock.at(500), HOUR + 499);
        clock.hear(600, 610, HOUR + 609);
        assert_eq!(clock.at(610), HOUR + 609, "what an answer shows for certain counts");
        clock.hear(700, 710, HOUR + 500);
        assert_eq!(clock.at(710), HOUR + 500, "it went back");
    }

    #[test]
    fn nothing_is_old_by_a_clock_that_stepped_until_it_has_been_steady() {
        let mut clock = RedisClock::default();
        clock.hear(0, 0, 10 * HOUR);
        assert!(!clock.is_trusted(0), "it may have stepped before");
        clock.compare(0, 10 * HOUR + 1_000);
        assert!(clock.is_trusted(0));
        clock.hear(1, 1, 1_000 * HOUR);
        assert!(!clock.is_trusted(1));
        clock.hear(45_000, 45_000, 10 * HOUR + 45_000);
        clock.hear(45_001, 45_001, 45_001);
        assert_eq!(clock.birth(45_001), 10 * HOUR + 1_000 + 45_001);
        clock.hear(45_002, 45_002, 10 * HOUR + 45_002);
        assert!(!clock.is_trusted(STABLE_MS + 1) && clock.is_trusted(STABLE_MS + 45_002));
        clock.compare(HOUR, 11 * HOUR + STEP_MS as u64 + 1);
        assert!(!clock.is_trusted(HOUR));
        clock.compare(HOUR, 11 * HOUR);
        assert!(clock.is_trusted(HOUR));
    }
}

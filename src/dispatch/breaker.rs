//! The breaker of one lane: closed, it admits; open, it refuses until a time; then half-open, it lets one probe out.
//! Pure: times and chance are passed in. Never decides what happens to what it refuses.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures in a row that open it.
    pub threshold: u32,
    pub cooldown_ms: u64,
    /// The cooldown doubles with each failed probe up to here.
    pub max_cooldown_ms: u64,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self { threshold: 5, cooldown_ms: 5_000, max_cooldown_ms: 300_000 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Closed,
    /// Refuses until `until`; from then on it is half-open.
    Open { until: u64, cooldown_ms: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerView {
    Closed,
    Open { until: u64 },
    HalfOpen,
}

#[derive(Debug, Clone, Default)]
pub struct Breaker {
    state: State,
    failures: u32,
}

impl Breaker {
    pub fn view(&self, now: u64) -> BreakerView {
        match self.state {
            State::Closed => BreakerView::Closed,
            State::Open { until, .. } if now < until => BreakerView::Open { until },
            State::Open { .. } => BreakerView::HalfOpen,
        }
    }

    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Tells whether this failure opened it (again). `chance` in [0, 1) shortens the cooldown by up to a quarter, so
    /// that endpoints that failed together are not probed together.
    pub fn failed(&mut self, now: u64, settings: &BreakerSettings, chance: f64) -> bool {
        self.failures = self.failures.saturating_add(1);
        let cooldown_ms = match (self.view(now), self.state) {
            (BreakerView::Closed, _) if self.failures >= settings.threshold => settings.cooldown_ms,
            (BreakerView::HalfOpen, State::Open { cooldown_ms, .. }) => {
                cooldown_ms.saturating_mul(2).min(settings.max_cooldown_ms)
            }
            // A straggler that was sent before it opened changes nothing.
            _ => return false,
        };
        let until = now + (cooldown_ms as f64 * (1.0 - 0.25 * chance)) as u64;
        self.state = State::Open { until, cooldown_ms };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: BreakerSettings = BreakerSettings { threshold: 3, cooldown_ms: 1_000, max_cooldown_ms: 3_000 };

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        assert_eq!([1, 2, 3].map(|now| breaker.failed(now, &SETTINGS, 0.0)), [false, false, true]);
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let mut breaker = Breaker::default();
        for now in 0..20 {
            assert!(!breaker.failed(now, &SETTINGS, 0.0));
            breaker.succeeded();
        }
        assert_eq!(opened().view(4), BreakerView::Open { until: 1_003 });
    }

    #[test]
    fn a_failed_probe_doubles_the_cooldown_up_to_its_limit() {
        let mut breaker = opened();
        let mut now = 1_003;
        for cooldown in [2_000, 3_000, 3_000] {
            assert_eq!(breaker.view(now), BreakerView::HalfOpen);
            assert!(breaker.failed(now, &SETTINGS, 0.0));
            assert_eq!(breaker.view(now), BreakerView::Open { until: now + cooldown });
            now += cooldown;
        }
    }

    #[test]
    fn a_good_probe_closes_it_and_a_straggler_changes_nothing() {
        let mut breaker = opened();
        assert!(!breaker.failed(500, &SETTINGS, 0.0));
        assert_eq!(breaker.view(500), BreakerView::Open { until: 1_003 });
        breaker.succeeded();
        assert_eq!(breaker.view(500), BreakerView::Closed);
    }
}

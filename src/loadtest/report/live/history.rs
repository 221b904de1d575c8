//! What the live view remembers of a run: enough for its charts, and no more.

use std::collections::VecDeque;

use crate::loadtest::report::progress::{Progress, Recent};

/// Ten minutes at two a second: more than any terminal has columns for.
const KEPT: usize = 1_200;

/// The step from one snapshot to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Seconds since the load began.
    pub at: f64,
    /// Each second.
    pub intended: f64,
    pub acknowledged: f64,
    pub failed: f64,
    pub recent: Option<Recent>,
}

#[derive(Debug, Default)]
pub struct History {
    steps: VecDeque<Step>,
    last: Option<Progress>,
}

impl History {
    pub fn add(&mut self, progress: &Progress) {
        let before = self.last.replace(progress.clone());
        let Some(before) = before else { return };
        let seconds = progress.elapsed.saturating_sub(before.elapsed).as_secs_f64();
        // The clock of the load has not begun, or stands still.
        if seconds <= 0.0 {
            return;
        }
        let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        if self.steps.len() == KEPT {
            self.steps.pop_front();
        }
        self.steps.push_back(Step {
            at: progress.elapsed.as_secs_f64(),
            intended: each(progress.intended, before.intended),
            acknowledged: each(progress.acknowledged, before.acknowledged),
            failed: each(progress.failed_attempts, before.failed_attempts),
            recent: progress.recent,
        });
    }

    /// The newest snapshot.
    pub fn last(&self) -> Option<&Progress> {
        self.last.as_ref()
    }

    /// At most this many, the newest.
    pub fn newest(&self, many: usize) -> impl Iterator<Item = &Step> + Clone {
        self.steps.iter().skip(self.steps.len().saturating_sub(many))
    }

    /// The mean of the steps of the last two seconds, which is what an eye can follow.
    pub fn acknowledged_rate(&self) -> f64 {
        let steps: Vec<_> = self.newest(4).map(|step| step.acknowledged).collect();
        match steps.len() {
            0 => 0.0,
            many => steps.iter().sum::<f64>() / many as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64, acknowledged: u64) -> Progress {
        Progress { elapsed: Duration::from_millis(ms), acknowledged, ..Progress::default() }
    }

    #[test]
    fn rates_are_between_snapshots_and_memory_is_bounded() {
        let mut history = History::default();
        for tick in 0..3_000 {
            history.add(&at(tick * 500, tick * 250));
            history.add(&at(tick * 500, tick * 250));
        }
        assert_eq!(history.newest(usize::MAX).count(), KEPT);
        assert!(history.newest(10).all(|step| step.acknowledged == 500.0));
        assert_eq!(history.acknowledged_rate(), 500.0);
    }

    #[test]
    fn sums_that_fall_are_no_rate() {
        let mut history = History::default();
        history.add(&at(0, 100));
        history.add(&at(500, 0));
        assert_eq!(history.newest(1).next().unwrap().acknowledged, 0.0);
    }
}

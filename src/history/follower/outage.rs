//! What is said of a history that fails, and how long it is left alone. A full disk lets one line through and fails the next: of
//! that, too, a minute has one word.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

/// Pauses after failures: twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long after one outage was told the next is.
const TOLD_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Outage {
    failures: u32,
    is_told: bool,
    told_at: Option<Instant>,
}

impl Outage {
    /// Tells it if it is news, and returns how long to wait.
    pub fn fails(&mut self, error: &dyn std::error::Error, now: Instant) -> Duration {
        let is_news = !self.is_told && self.told_at.is_none_or(|told| now >= told + TOLD_EVERY);
        if is_news {
            (self.is_told, self.told_at) = (true, Some(now));
            warn!(%error, "the history of deliveries is not written; deliveries go on, and it is tried again");
        } else {
            debug!(%error, "the history of deliveries is still not written");
        }
        let pause = FIRST_PAUSE * 2_u32.pow(self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        pause.min(LONGEST_PAUSE)
    }

    /// Everything that was there to write, or a batch of it, is written.
    pub fn is_over(&mut self, place: &str) {
        self.failures = 0;
        if std::mem::take(&mut self.is_told) {
            info!("the history at {place} works again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_that_comes_and_goes_is_told_once_a_minute_and_tried_again_later_each_time() {
        let (mut outage, begun) = (Outage::default(), crate::clock::now());
        let error = std::io::Error::other("the disk is full");
        let pauses: Vec<u64> = (0..8).map(|_| outage.fails(&error, begun).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(outage.is_told);
        outage.is_over("here");
        assert_eq!(outage.fails(&error, begun + Duration::from_secs(59)).as_secs(), 1);
        assert!(!outage.is_told, "it was told a moment ago");
        outage.is_over("here");
        outage.fails(&error, begun + TOLD_EVERY);
        assert!(outage.is_told);
    }
}

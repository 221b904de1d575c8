//! What was said already, so that a log never grows with what a producer does: for entries that are not events one line a
//! minute, for each kind of novelty one line ever. Pure: the time is passed in. Counts are the metrics' job.

use crate::dispatch::HashSet;
use crate::facts::event::Novelty;

/// A broken producer breaks every event: the first line names one, and the next ones how many.
const EVERY_MS: u64 = 60_000;

/// Kinds of novelties that are reported. A producer that makes up a new one each time is not followed further.
const MAX_KINDS: usize = 64;

#[derive(Debug, Default)]
pub struct Told {
    quarantined_at: Option<u64>,
    /// How many since then got no line.
    quarantined: u64,
    novelties: HashSet<Novelty>,
}

impl Told {
    /// An entry was quarantined. If it is time for a line, returns how many were since the last one, this entry included.
    pub fn quarantined(&mut self, now: u64) -> Option<u64> {
        self.quarantined += 1;
        if self.quarantined_at.is_some_and(|at| now < at + EVERY_MS) {
            return None;
        }
        self.quarantined_at = Some(now);
        Some(std::mem::take(&mut self.quarantined))
    }

    /// Whether this is the first of its kind.
    pub fn is_first(&mut self, novelty: &Novelty) -> bool {
        if self.novelties.contains(novelty) || self.novelties.len() == MAX_KINDS {
            return false;
        }
        self.novelties.insert(novelty.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::event::NoveltyKind;

    #[test]
    fn of_what_is_quarantined_there_is_one_line_a_minute_with_their_number() {
        let mut told = Told::default();
        assert_eq!(told.quarantined(5), Some(1));
        for now in 6..60_005 {
            assert_eq!(told.quarantined(now), None);
        }
        assert_eq!(told.quarantined(60_005), Some(60_000));
        assert_eq!(told.quarantined(60_006), None);
    }

    #[test]
    fn each_novelty_is_told_once_and_not_without_end() {
        let mut told = Told::default();
        let new = |text: &str| Novelty { kind: NoveltyKind::PaymentStatus, text: text.to_owned() };
        assert!(told.is_first(&new("Settled")) && !told.is_first(&new("Settled")));
        let lines = (0..10_000).filter(|number| told.is_first(&new(&number.to_string()))).count();
        assert_eq!(lines, MAX_KINDS - 1);
    }
}

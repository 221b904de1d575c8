//! What Redis has confirmed lately. A failover may take a partition back by its last moment, and then what was settled in it
//! is there again as if it had not been: by this it is settled again, and not sent. Keeps little of each: ten seconds are
//! hundreds of thousands.

use std::{collections::VecDeque, sync::Arc};

use super::{Attempted, EntryId, Outcome, PastAttempt};
use crate::facts::outcome::{AttemptReport, BodyEnd, Timing};

/// No more than this is forgotten by a Redis that has its replicas behind it as `min-replicas-max-lag` wants, or writes its
/// file every second.
const LATELY_MS: u64 = 10_000;

/// The end of a term is noticed within this time after the last settle that can have been lost: by then an answer is
/// overdue, or the lease is over.
const NOTICED_MS: u64 = 20_000;

/// Of each partition, more than it can deliver in that time.
const MAX_TAKEN: usize = 250_000;

/// Bytes of what failed, of each partition: some five thousand.
const MAX_FAILED_BYTES: usize = 4 << 20;

/// Which delivery of which event. The entry is exact, and of one entry there are few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Which {
    pub entry: EntryId,
    /// A hash of its endpoint and of the event's bytes.
    pub hash: u64,
}

/// Which attempt of it. An operator's redelivery is another one, whatever its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WhichAttempt {
    pub of: Which,
    /// A hash of the last redelivery; 0 if there was none.
    pub redelivery: u64,
    pub number: u32,
}

/// It was delivered. What the log says of it can be said again.
#[derive(Debug, Clone, Copy)]
struct Taken {
    of: Which,
    redelivery: u64,
    at_ms: u64,
    took_us: u32,
    number: u16,
    status: u16,
}

impl Taken {
    fn attempted(&self) -> Attempted {
        let report = AttemptReport {
            number: u32::from(self.number),
            at_ms: self.at_ms,
            outcome: Outcome::Delivered { status: self.status },
            timing: Timing { total_us: u64::from(self.took_us), ..Timing::default() },
            body_end: BodyEnd::Complete,
            snippet: String::new(),
            detail: String::new(),
        };
        Attempted { report, request: None, flooded: false, resent: false, met: None }
    }
}

/// It failed, and was tried again or became a dead letter.
#[derive(Debug, Clone)]
struct Failed {
    which: WhichAttempt,
    ended: PastAttempt,
}

impl Failed {
    fn bytes(&self) -> usize {
        let Attempted { report, request, .. } = &*self.ended.attempted;
        let sent = request.iter().map(|request| {
            request.url.len() + request.headers.iter().map(|(name, value)| name.len() + value.len() + 48).sum::<usize>()
        });
        size_of::<Self>() + size_of::<Attempted>() + report.snippet.len() + report.detail.len() + sent.sum::<usize>()
    }
}

/// What was confirmed within one second.
#[derive(Debug, Default)]
struct Second {
    number: u64,
    taken: Vec<Taken>,
    failed: Vec<Failed>,
    failed_bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Of this term, the oldest first.
    seconds: VecDeque<Second>,
    /// Of all of them.
    taken: usize,
    failed_bytes: usize,
    /// Of the terms before, for what is read again; ordered.
    recalled: Vec<Taken>,
    recalled_failed: Vec<Failed>,
}

impl Settled {
    /// The store has confirmed this attempt and what came of it. `is_last`: it brought a dead letter, which tells what was sent.
    pub fn confirm(&mut self, now: u64, which: WhichAttempt, ended: PastAttempt, is_last: bool) {
        let number = now / 1_000;
        if self.seconds.back().is_none_or(|second| second.number < number) {
            self.seconds.push_back(Second { number, ..Second::default() });
            while self.seconds.front().is_some_and(|oldest| oldest.number + LATELY_MS / 1_000 < number) {
                self.forget_oldest();
            }
        }
        match ended.attempted.report.outcome {
            Outcome::Delivered { status } => {
                if self.taken >= MAX_TAKEN {
                    self.forget_oldest();
                }
                let WhichAttempt { of, redelivery, number } = which;
                let report = &ended.attempted.report;
                let took_us = u32::try_from(report.timing.total_us).unwrap_or(u32::MAX);
                let number = u16::try_from(number).unwrap_or(u16::MAX);
                let Some(second) = self.seconds.back_mut() else { return };
                second.taken.push(Taken { of, redelivery, at_ms: report.at_ms, took_us, number, status });
                self.taken += 1;
            }
            _ => {
                let attempted = match is_last {
                    true => ended.attempted,
                    false => Arc::new(Attempted { request: None, ..Attempted::clone(&ended.attempted) }),
                };
                let failed = Failed { which, ended: PastAttempt { attempted, ..ended } };
                let bytes = failed.bytes();
                if self.failed_bytes + bytes > MAX_FAILED_BYTES {
                    self.forget_oldest();
                }
                let Some(second) = self.seconds.back_mut() else { return };
                second.failed.push(failed);
                second.failed_bytes += bytes;
                self.failed_bytes += bytes;
            }
        }
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.seconds.pop_front() else { return };
        self.taken -= oldest.taken.len();
        self.failed_bytes -= oldest.failed_bytes;
    }

    /// Time has passed: what was the last thing to be settled for long is no longer at risk.
    pub fn tick(&mut self, now: u64) {
        let is_over = |newest: &Second| (newest.number + 1) * 1_000 + NOTICED_MS < now;
        if self.seconds.back().is_some_and(is_over) {
            self.seconds.clear();
            (self.taken, self.failed_bytes) = (0, 0);
        }
    }

    /// The term has ended.
    pub fn recall(&mut self) {
        (self.taken, self.failed_bytes) = (0, 0);
        if self.seconds.is_empty() {
            return;
        }
        for second in std::mem::take(&mut self.seconds) {
            self.recalled.extend(second.taken);
            self.recalled_failed.extend(second.failed);
        }
        // Terms may follow each other quickly.
        let excess = self.recalled.len().saturating_sub(2 * MAX_TAKEN);
        self.recalled.drain(..excess);
        self.recalled.sort_unstable_by_key(|taken| (taken.of, taken.number));
        self.recalled_failed.sort_by_key(|failed| failed.which);
        let mut bytes: usize = self.recalled_failed.iter().map(Failed::bytes).sum();
        let is_excess = |failed: &&Failed| {
            let is_excess = bytes > 2 * MAX_FAILED_BYTES;
            bytes -= failed.bytes();
            is_excess
        };
        let excess = self.recalled_failed.iter().take_while(is_excess).count();
        self.recalled_failed.drain(..excess);
    }

    /// Whether something may be known of a delivery of this entry: whoever reads on is told at once that nothing is.
    pub fn may_know(&self, entry: EntryId) -> bool {
        self.recalled.last().is_some_and(|last| entry <= last.of.entry)
            || self.recalled_failed.last().is_some_and(|last| entry <= last.which.of.entry)
    }

    /// What became of the next attempt of a delivery that is read again, with the endpoint's revision. What was delivered by a
    /// later one is not owed any more; an earlier one says nothing, because it was taken further since.
    pub fn recalls(&self, next: WhichAttempt) -> Option<PastAttempt> {
        let failed = self.recalled_failed.binary_search_by_key(&next, |failed| failed.which).ok();
        if let Some(at) = failed {
            return Some(self.recalled_failed[at].ended.clone());
        }
        let from = self.recalled.partition_point(|taken| (taken.of, u32::from(taken.number)) < (next.of, next.number));
        let later = self.recalled[from..].iter().take_while(|taken| taken.of == next.of);
        // Read from its entry, it was not redelivered yet.
        let is_done = |taken: &&Taken| next.redelivery == 0 || taken.redelivery == next.redelivery;
        // Nothing is to be done any more about its endpoint, nor at any time.
        let ended = |taken: &Taken| PastAttempt { attempted: Arc::new(taken.attempted()), at: 0, revision: 0 };
        later.into_iter().find(is_done).map(ended)
    }

    pub fn forget_recalled(&mut self) {
        (self.recalled, self.recalled_failed) = (Vec::new(), Vec::new());
    }

    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Outcome = Outcome::Delivered { status: 204 };
    const FAILED: Outcome = Outcome::ServerFailed { status: 500 };

    fn which(entry: u64, redelivery: u64, number: u32) -> WhichAttempt {
        WhichAttempt { of: Which { entry: EntryId { ms: entry, seq: 0 }, hash: 7 }, redelivery, number }
    }

    fn ended(outcome: Outcome, detail: usize) -> PastAttempt {
        let taken = Taken { of: which(1, 0, 1).of, redelivery: 0, at_ms: 5, took_us: 6, number: 1, status: 200 };
        let mut attempted = taken.attempted();
        (attempted.report.outcome, attempted.report.detail) = (outcome, "x".repeat(detail));
        PastAttempt { attempted: Arc::new(attempted), at: 3, revision: 4 }
    }

    fn knows(settled: &Settled, next: WhichAttempt) -> Option<Outcome> {
        settled.recalls(next).map(|ended| ended.attempted.report.outcome.clone())
    }

    #[test]
    fn each_attempt_is_known_by_its_number_and_its_redelivery() {
        let mut settled = Settled::default();
        for (which, outcome) in [(which(1, 0, 1), FAILED), (which(1, 0, 2), OK), (which(2, 9, 3), OK)] {
            settled.confirm(0, which, ended(outcome, 0), false);
        }
        assert_eq!(knows(&settled, which(1, 0, 1)), None, "nothing has happened to it in this term");
        settled.recall();
        for (next, known) in [
            (which(1, 0, 1), Some(FAILED)),
            (which(1, 0, 2), Some(OK)),
            (which(1, 0, 3), None),
            (which(1, 9, 2), None),
            (which(2, 0, 1), Some(OK)),
            (which(2, 9, 3), Some(OK)),
            (which(2, 8, 3), None),
            (which(2, 9, 4), None),
            (which(3, 0, 1), None),
        ] {
            assert_eq!(knows(&settled, next), known, "{next:?}");
        }
        assert_eq!(settled.recalls(which(1, 0, 1)).map(|ended| (ended.at, ended.revision)), Some((3, 4)));
        let other = Which { hash: 8, ..which(1, 0, 1).of };
        assert_eq!(knows(&settled, WhichAttempt { of: other, ..which(1, 0, 1) }), None);
        assert!(settled.may_know(which(2, 0, 1).of.entry) && !settled.may_know(which(3, 0, 1).of.entry));
    }

    #[test]
    fn what_was_delivered_is_told_again_as_it_was() {
        let mut settled = Settled::default();
        settled.confirm(0, which(1, 0, 3), ended(OK, 0), false);
        settled.recall();
        let again = settled.recalls(which(1, 0, 1)).unwrap();
        let AttemptReport { number, at_ms, outcome, timing, .. } = &again.attempted.report;
        assert_eq!((*number, *at_ms, outcome.clone(), timing.total_us), (3, 5, OK, 6));
    }

    #[test]
    fn ten_seconds_are_kept_and_what_came_last_until_the_term_has_ended_or_could_have() {
        let settled_at = |times: &[u64], ticks: u64| {
            let mut settled = Settled::default();
            for (n, at) in times.iter().enumerate() {
                settled.confirm(*at, which(n as u64, 0, 1), ended(OK, 0), false);
            }
            settled.tick(ticks);
            settled.recall();
            (0..times.len() as u64).filter(|n| knows(&settled, which(*n, 0, 1)).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(settled_at(&[0, 5_000, 10_900], 10_900), [0, 1, 2]);
        assert_eq!(settled_at(&[0, 5_000, 11_000], 11_000), [1, 2]);
        assert_eq!(settled_at(&[0, 5_000], 15_000), [0, 1]);
        assert_eq!(settled_at(&[0, 5_000], 60_000), [0; 0]);
    }

    /// So much is what the documents say of it.
    #[test]
    fn it_takes_no_more_than_is_said() {
        assert_eq!(size_of::<Taken>(), 48);
        let mut settled = Settled::default();
        for n in 0..600_000 {
            settled.confirm(n / 40, which(n, 0, 1), ended(OK, 0), false);
        }
        assert!(settled.taken <= MAX_TAKEN && settled.taken > MAX_TAKEN / 2, "{}", settled.taken);
        let failed = ended(FAILED, 300);
        for n in 0..100_000 {
            settled.confirm(15_000 + n / 10, which(n, 0, 1), failed.clone(), false);
        }
        let (bytes, taken) = (settled.failed_bytes, settled.taken);
        let sums = |of: fn(&Second) -> usize| settled.seconds.iter().map(of).sum::<usize>();
        assert_eq!((sums(|second| second.failed_bytes), sums(|second| second.taken.len())), (bytes, taken));
        assert!(bytes <= MAX_FAILED_BYTES && bytes > MAX_FAILED_BYTES / 4, "{bytes}");
        for _ in 0..4 {
            for n in 0..MAX_TAKEN as u64 {
                settled.confirm(30_000, which(n, 0, 1), ended(OK, 0), false);
            }
            for n in 0..4_000 {
                settled.confirm(30_000, which(n, 0, 1), failed.clone(), false);
            }
            settled.recall();
        }
        assert_eq!(settled.recalled.len(), 2 * MAX_TAKEN);
        let bytes: usize = settled.recalled_failed.iter().map(Failed::bytes).sum();
        assert!(bytes <= 2 * MAX_FAILED_BYTES && bytes > MAX_FAILED_BYTES, "{bytes}");
    }
}

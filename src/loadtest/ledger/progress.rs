//! How the run stands, cheap enough to ask several times a second.

use hdrhistogram::Histogram;

use super::Ledger;
use crate::loadtest::latency::histogram;

/// Sums that are kept as the run goes.
#[derive(Debug)]
pub struct Live {
    pub intended: u64,
    pub sent: u64,
    pub late: u64,
    pub sent_again: u64,
    pub confirmed: u64,
    pub attempts: u64,
    pub failed: u64,
    pub duplicates: u64,
    /// Confirmed deliveries, to endpoints that say yes in the end and to those that never do.
    pub owed: [u64; 2],
    pub acknowledged: [u64; 2],
    /// Acknowledged for the first time, confirmed or not.
    pub firsts: u64,
    pub last_intended_us: u64,
    /// Answers that are being written.
    pub affirming: u64,
    /// First arrivals at endpoints that are alive, since somebody last asked.
    pub recent: Histogram<u64>,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            intended: 0,
            sent: 0,
            late: 0,
            sent_again: 0,
            confirmed: 0,
            attempts: 0,
            failed: 0,
            duplicates: 0,
            owed: [0; 2],
            acknowledged: [0; 2],
            firsts: 0,
            last_intended_us: 0,
            affirming: 0,
            recent: histogram(),
        }
    }
}

impl Live {
    pub fn published(&mut self, intended_us: u64) {
        self.intended += 1;
        self.last_intended_us = self.last_intended_us.max(intended_us);
    }

    pub fn sent(&mut self, is_late: bool) {
        self.sent += 1;
        self.late += u64::from(is_late);
    }

    pub fn owe(&mut self, is_alive: bool, is_acknowledged: bool) {
        self.owed[usize::from(!is_alive)] += 1;
        self.acknowledged[usize::from(!is_alive)] += u64::from(is_acknowledged);
    }

    pub fn acknowledge(&mut self, is_alive: bool, is_confirmed: bool) {
        self.firsts += 1;
        self.acknowledged[usize::from(!is_alive)] += u64::from(is_confirmed);
    }
}

/// A glance at the books.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// Events that the schedule has asked for so far.
    pub intended: u64,
    pub sent: u64,
    pub confirmed: u64,
    pub sent_again: u64,
    pub late: u64,
    /// Deliveries that were acknowledged for the first time.
    pub acknowledged: u64,
    pub duplicates: u64,
    /// Requests that arrived, and those of them that were answered otherwise than 2xx or not at all.
    pub attempts: u64,
    pub failed: u64,
    pub outstanding: Outstanding,
    /// Things that look wrong; the judge may yet explain them by a fault.
    pub suspicions: u64,
    /// First arrivals at endpoints that are alive since the last glance: how many, and their latency in microseconds.
    pub recent: u64,
    pub recent_p50_us: u64,
    pub recent_p99_us: u64,
}

/// Deliveries of confirmed events that are not acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Owed to endpoints that say yes in the end. A few of those that fail at random become dead letters instead.
    pub alive: u64,
    /// Owed to endpoints that never do, or not any more: these become dead letters.
    pub hopeless: u64,
}

impl Ledger {
    /// Sums so far. The recent latencies are those since the last call: one caller per run.
    pub fn progress(&self) -> Progress {
        let mut state = self.lock();
        let left_out: u64 = state.books.left_out.iter().sum();
        let suspicions = state.books.incidents.len() as u64 + left_out;
        let live = &mut state.live;
        let quantile = |at| if live.recent.is_empty() { 0 } else { live.recent.value_at_quantile(at) };
        let progress = Progress {
            intended: live.intended,
            sent: live.sent,
            confirmed: live.confirmed,
            sent_again: live.sent_again,
            late: live.late,
            acknowledged: live.firsts,
            duplicates: live.duplicates,
            attempts: live.attempts,
            failed: live.failed,
            outstanding: outstanding(live),
            suspicions,
            recent: live.recent.len(),
            recent_p50_us: quantile(0.5),
            recent_p99_us: quantile(0.99),
        };
        live.recent.reset();
        progress
    }

    pub fn outstanding(&self) -> Outstanding {
        outstanding(&self.lock().live)
    }

    /// No receiver is writing a 2xx. Herald can have settled an answer that whoever wrote it has not noted yet, so the judge
    /// is called when Herald is idle and this holds.
    pub fn is_quiet(&self) -> bool {
        self.lock().live.affirming == 0
    }

    /// Every delivery of a confirmed event is acknowledged or one of the dead letters that Herald has, by their number. With
    /// events still to come it means little.
    pub fn is_complete(&self, dead_letters: u64) -> bool {
        let Outstanding { alive, hopeless } = self.outstanding();
        alive + hopeless <= dead_letters
    }
}

fn outstanding(live: &Live) -> Outstanding {
    let left = |class: usize| live.owed[class].saturating_sub(live.acknowledged[class]);
    Outstanding { alive: left(0), hopeless: left(1) }
}

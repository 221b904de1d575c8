//! How the run stands, cheap enough to ask several times a second.

use hdrhistogram::Histogram;

use super::Ledger;
use crate::loadtest::latency::histogram;

/// Sums that are kept up to date during the run.
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
    /// First arrivals at endpoints that are alive, since the last glance.
    pub recent: Histogram<u64>,
    /// By profile.
    pub profiles: Vec<LiveProfile>,
}

/// The part of one profile.
#[derive(Debug)]
pub struct LiveProfile {
    pub owed: u64,
    /// Of what is owed.
    pub acknowledged: u64,
    pub failed: u64,
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
            profiles: Vec::new(),
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

    pub fn with_profiles(count: usize) -> Self {
        let profile = || LiveProfile { owed: 0, acknowledged: 0, failed: 0, recent: histogram() };
        Self { profiles: (0..count).map(|_| profile()).collect(), ..Self::default() }
    }

    pub fn owe(&mut self, profile: usize, is_alive: bool, is_acknowledged: bool) {
        self.owed[usize::from(!is_alive)] += 1;
        self.acknowledged[usize::from(!is_alive)] += u64::from(is_acknowledged);
        self.profiles[profile].owed += 1;
        self.profiles[profile].acknowledged += u64::from(is_acknowledged);
    }

    pub fn acknowledge(&mut self, profile: usize, is_alive: bool, is_confirmed: bool) {
        self.firsts += 1;
        self.acknowledged[usize::from(!is_alive)] += u64::from(is_confirmed);
        self.profiles[profile].acknowledged += u64::from(is_confirmed);
    }

    pub fn fail(&mut self, profile: usize) {
        self.failed += 1;
        self.profiles[profile].failed += 1;
    }

    pub fn arrive(&mut self, profile: usize, is_alive: bool, latency_us: u64) {
        self.profiles[profile].recent.saturating_record(latency_us.max(1));
        if is_alive {
            self.recent.saturating_record(latency_us.max(1));
        }
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
    /// Of the first arrivals at endpoints that are alive, since the last glance; none without one.
    pub recent: Option<Recent>,
    /// In the order of [`Population::profiles`](crate::loadtest::population::Population::profiles).
    pub profiles: Vec<ProfileProgress>,
}

/// Latencies in microseconds, from the intended time to the first arrival.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recent {
    pub count: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProfileProgress {
    pub acknowledged: u64,
    /// Owed by confirmed events, and not acknowledged.
    pub outstanding: u64,
    pub failed: u64,
    pub recent: Option<Recent>,
}

impl Recent {
    /// Takes what has gathered; it begins anew.
    fn take(histogram: &mut Histogram<u64>) -> Option<Self> {
        let recent = (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        });
        histogram.reset();
        recent
    }
}

/// Deliveries of confirmed events that are not acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Owed to endpoints that say yes in the end. A few of those at endpoints that fail at random become dead letters
    /// instead.
    pub alive: u64,
    /// Owed to endpoints that never say yes, or no longer do: these become dead letters.
    pub hopeless: u64,
}

impl Ledger {
    /// Sums so far. The recent latencies are those since the last call: one caller per run.
    pub fn progress(&self) -> Progress {
        let mut state = self.lock();
        let left_out: u64 = state.books.left_out.iter().sum();
        let suspicions = state.books.incidents.len() as u64 + left_out;
        let live = &mut state.live;
        let profiles = live.profiles.iter_mut().map(|profile| ProfileProgress {
            acknowledged: profile.acknowledged,
            outstanding: profile.owed.saturating_sub(profile.acknowledged),
            failed: profile.failed,
            recent: Recent::take(&mut profile.recent),
        });
        let profiles = profiles.collect();
        Progress {
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
            recent: Recent::take(&mut live.recent),
            profiles,
        }
    }

    pub fn outstanding(&self) -> Outstanding {
        outstanding(&self.lock().live)
    }

    /// Whether no receiver is writing a 2xx. Herald may have settled an answer that its writer has not noted yet, so
    /// the judge is called when Herald is idle and this holds.
    pub fn is_quiet(&self) -> bool {
        self.lock().live.affirming == 0
    }

    /// Whether every delivery of a confirmed event is acknowledged or among the dead letters that Herald has, by their
    /// number. While events are still to come it means little.
    pub fn is_complete(&self, dead_letters: u64) -> bool {
        let Outstanding { alive, hopeless } = self.outstanding();
        alive + hopeless <= dead_letters
    }
}

fn outstanding(live: &Live) -> Outstanding {
    let left = |class: usize| live.owed[class].saturating_sub(live.acknowledged[class]);
    Outstanding { alive: left(0), hopeless: left(1) }
}

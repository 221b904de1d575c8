//! How a run stands, as plain numbers: what the live view and the plain lines show. The code that runs the load fills
//! it twice a second; it is cheap to make and to copy, and nothing here measures.

use std::time::Duration;

/// What does not change during a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heading {
    pub scenario: String,
    /// What it shows, in a sentence.
    pub description: String,
    pub seed: u64,
    /// What is under load: `2 workers and Redis of its own`, or the URL of a service that was found.
    pub target: String,
}

/// Sums since the load began.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Progress {
    /// What is being done: `starting Redis`, `load`, `waiting for what is unfinished`, `judging`.
    pub phase: String,
    /// Since the load began.
    pub elapsed: Duration,
    /// How long the load takes; none for a drain, which takes as long as it takes.
    pub planned: Option<Duration>,
    /// Events whose time has come.
    pub intended: u64,
    /// Events written to Redis.
    pub sent: u64,
    /// Events that Redis has confirmed.
    pub confirmed: u64,
    /// Deliveries that a receiver has answered with 2xx.
    pub acknowledged: u64,
    /// Requests that were answered otherwise, or not at all.
    pub failed_attempts: u64,
    pub dead: u64,
    /// Owed, and neither acknowledged nor dead.
    pub unfinished: u64,
    /// What looks like a broken promise so far; a fault may yet explain it, and the judge has the last word.
    pub suspicions: u64,
    /// Latencies of the first arrivals within the last second or two; none without one.
    pub recent: Option<Recent>,
    pub profiles: Vec<ProfileProgress>,
    /// The faults that hold now: `pause-worker`.
    pub faults: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recent {
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProfileProgress {
    pub name: String,
    pub endpoints: u64,
    pub acknowledged: u64,
    pub failed_attempts: u64,
    pub unfinished: u64,
    pub recent: Option<Recent>,
}

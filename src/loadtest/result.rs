//! What a run found, in its published form: `--json` writes it, the reports read it.
//! Its JSON Schema is `docs/loadtest-result.schema.json`, which is made from this file.
//!
//! Times are in microseconds where the name says `_us`, else seconds since the load began.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    faults::{Fault, Wanted},
    scenario::Scenario,
};

/// A larger version was written by a newer Herald and is refused instead of guessed at.
pub const RESULT_SCHEMA: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunResult {
    pub schema: u32,
    pub herald_version: String,
    pub scenario: Scenario,
    /// Repeats everything random in this run.
    pub seed: u64,
    /// What was typed after `herald`, without passwords; a seed that was drawn is not among the words.
    #[serde(default)]
    pub words: Vec<String>,
    /// RFC 3339.
    pub started_at: String,
    /// From the first intended time to the last delivery, or to the end of the wait for it.
    pub seconds: f64,
    pub environment: Environment,
    pub generator: Generator,
    pub deliveries: Deliveries,
    /// From an event's intended time to its first arrival at a receiver, over all endpoints that were alive. None without
    /// an arrival.
    pub latency: Option<Latency>,
    /// From a request's intended time to its answer; none where the load is no requests.
    #[serde(default)]
    pub answers: Option<Latency>,
    /// From the settled time of a retry by the policy's earliest moment to its arrival.
    pub retry_lateness: Option<Latency>,
    pub profiles: Vec<ProfileResult>,
    /// What merchants asked the payment-intents service for; empty where the scenario has none.
    #[serde(default)]
    pub requests: Vec<Requests>,
    /// What imperfect receivers took; empty if there is none, or if no rate can be compared.
    #[serde(default)]
    pub goodput: Vec<Goodput>,
    /// What was felt of the faults, by their kinds; empty without a fault.
    #[serde(default)]
    pub near_faults: Vec<NearFault>,
    /// One for each second of the run.
    pub series: Vec<Second>,
    /// What happened.
    pub faults: Vec<FaultMark>,
    /// What was planned but did not happen.
    #[serde(default)]
    pub missed: Vec<MissedFault>,
    pub promises: Vec<Promise>,
    pub thresholds: Vec<ThresholdResult>,
    pub processes: Vec<ProcessUse>,
}

impl RunResult {
    /// Every promise and every threshold was kept.
    pub fn is_kept(&self) -> bool {
        self.promises.iter().all(|promise| promise.broken == 0)
            && self.thresholds.iter().all(|threshold| threshold.is_kept)
    }

    /// Faults that were asked for at a certain time and did not come, although nobody ended the run first.
    pub fn owed_faults(&self) -> impl Iterator<Item = &MissedFault> {
        self.missed.iter().filter(|missed| missed.wanted == Wanted::Named && missed.why != Missed::Interrupted)
    }

    pub fn promise(&self, name: &str) -> Option<&Promise> {
        self.promises.iter().find(|promise| promise.name == name)
    }
}

/// The machine and the versions, without which no figure means anything.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    pub cpu: String,
    pub cores: u32,
    pub memory_bytes: u64,
    pub os: String,
    pub kernel: String,
    pub redis_version: String,
    pub redis_appendfsync: String,
    /// `release` or `debug`.
    pub build: String,
    /// Whether the harness started Redis and the workers; otherwise it only loaded a service that it found.
    pub is_own: bool,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Generator {
    /// Events that the schedule asked for.
    pub intended: u64,
    /// Events that were handed to Redis, whether or not it confirmed them.
    pub sent: u64,
    /// Events whose confirmation was lost and that were sent again: they may be in the stream twice.
    pub sent_again: u64,
    /// Sent more than [`LATE`](super::producer) after their time while no fault stood in the way.
    pub late: u64,
    /// How late they were sent, in microseconds. None when nothing was.
    pub lateness: Option<Latency>,
}

/// Each delivery that is owed is in exactly one of acknowledged, dead and unfinished.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Deliveries {
    pub owed: u64,
    /// The receiver has answered 2xx.
    pub acknowledged: u64,
    pub dead: u64,
    /// Neither of the two when the run ended; a run waits for them before it judges.
    pub unfinished: u64,
    /// Requests that arrived.
    pub attempts: u64,
    /// Acknowledged again after a first time.
    pub duplicates: u64,
    /// Acknowledged deliveries a second: over the whole run, and for a drain from the first to the last.
    pub rate: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    pub count: u64,
    pub min_us: u64,
    pub mean_us: f64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub p9999_us: u64,
    pub max_us: u64,
    /// The whole HDR histogram (V2, base64): results of several runs can be added without losing a percentile.
    pub hdr: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProfileResult {
    pub name: String,
    pub endpoints: u64,
    pub deliveries: Deliveries,
    pub latency: Option<Latency>,
}

/// What an imperfect receiver took while the load lasted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Goodput {
    /// How it is imperfect.
    pub receiver: String,
    pub endpoints: u64,
    pub owed: u64,
    /// Acknowledged before the load ended.
    pub taken: u64,
    /// As a share of what the same receiver without failures took.
    pub share: f64,
    /// The least that the share should be.
    pub least: f64,
}

/// What was felt of the faults of one kind: of all that was sent while one held, or while Herald recovered from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NearFault {
    pub fault: Fault,
    /// How often it happened.
    pub times: u64,
    /// From the first try to send an event to its first arrival at a healthy receiver. The longest is how long somebody waited for
    /// whoever took over.
    pub latency: Latency,
}

/// Requests of one kind to the payment-intents service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Requests {
    /// `create`, `pay`, `capture` and so on.
    pub name: String,
    pub asked: u64,
    /// Answered with 2xx.
    pub done: u64,
    /// Answered with 4xx.
    pub refused: u64,
    /// Answered with 503, certain that nothing was changed.
    pub unavailable: u64,
    /// Not answered, or with 503 in doubt.
    pub unknown: u64,
    /// From the intended time to the answer.
    pub latency: Option<Latency>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Second {
    /// Seconds since the load began.
    pub at: u32,
    pub intended: u64,
    pub sent: u64,
    pub acknowledged: u64,
    /// Requests that were answered otherwise, or not at all.
    pub failed: u64,
    /// Latencies of the first arrivals within this second; none without one.
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
    pub max_us: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FaultMark {
    pub fault: Fault,
    pub at: f64,
    pub until: f64,
}

/// A fault that was planned and did not happen: the run says nothing about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MissedFault {
    pub fault: Fault,
    /// When it was to come.
    pub at: f64,
    pub wanted: Wanted,
    pub why: Missed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Missed {
    /// The drain was over first.
    LoadOver,
    /// Nobody owned the partition, there was no group, no service or no master, although the harness waited for it, or no worker
    /// that could come or go.
    NothingToBreak,
    /// The run was asked to end first.
    Interrupted,
}

/// A promise, what it was tried on, and how often it broke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Promise {
    /// Short, and a name for thresholds: `lost`, `out_of_order`.
    pub name: String,
    /// As a sentence.
    pub text: String,
    /// How many times it could have broken. 0 means that this run says nothing about it.
    pub tried: u64,
    pub broken: u64,
    /// At most five of the cases that broke, with ids.
    pub examples: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThresholdResult {
    pub threshold: String,
    /// None if the run has no such figure; then the threshold is not kept.
    pub value: Option<f64>,
    pub is_kept: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessUse {
    /// `herald`, `redis` or `harness`; processes that followed each other are added up.
    pub who: String,
    pub cpu_seconds: f64,
    /// None without a delivery.
    pub cpu_us_per_delivery: Option<f64>,
    pub peak_rss_bytes: u64,
}

//! What the pages read of the API's answers: of each only what is shown.

use std::fmt;

use serde::Deserialize;

/// A time as an answer has it; shown in UTC, to the second.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
pub struct At(pub String);

impl At {
    /// For machines.
    pub fn rfc3339(&self) -> &str {
        &self.0
    }

    /// To the millisecond.
    pub fn exact(&self) -> String {
        self.0.trim_end_matches('Z').replacen('T', " ", 1)
    }

    pub fn clock(&self) -> &str {
        self.0.get(11..16).unwrap_or_default()
    }

    pub fn ms(&self) -> u64 {
        let known = self.0.parse::<jiff::Timestamp>().ok();
        known.and_then(|at| u64::try_from(at.as_millisecond()).ok()).unwrap_or_default()
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.get(..19).unwrap_or(&self.0).replacen('T', " ", 1))
    }
}

/// A page of a list, and how many there are in all where the API counts them.
#[derive(Debug, Deserialize)]
pub struct List<T> {
    pub items: Vec<T>,
    #[serde(default)]
    pub next: Option<String>,
    #[serde(default)]
    pub prev: Option<String>,
    #[serde(default)]
    pub total: u64,
    #[serde(default)]
    pub has_more: bool,
    #[serde(default)]
    pub missing: Vec<String>,
    #[serde(default)]
    pub history: Reach,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Reach {
    pub is_whole: bool,
    pub says: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Mark {
    pub by: String,
    pub why: String,
    pub at: At,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Stats {
    pub now: At,
    pub stream: StreamStats,
    pub owner: Option<Owner>,
    pub paused: Option<Mark>,
    pub endpoints: u64,
    pub unfinished: u64,
    pub quarantined: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct StreamStats {
    pub name: String,
    pub length: u64,
    pub added: u64,
    pub pending: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Owner {
    pub name: String,
    pub lease_left_ms: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Overview {
    pub now: At,
    pub endpoints: Verdicts,
    pub minutes: Vec<Slot>,
    pub hours: Vec<Slot>,
    pub latest: Latency,
    pub unread: Option<u64>,
    pub lag_ms: Option<u64>,
    pub waiting: Waits,
    pub dead_letters: u64,
    pub dead_by_hour: Vec<u64>,
    pub workers: Vec<Reading>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Verdicts {
    pub failing: u64,
    pub unsteady: u64,
    pub well: u64,
    pub idle: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Slot {
    pub at: At,
    pub delivered: u64,
    pub failed: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Latency {
    pub attempts: u64,
    pub p50_us: Option<u64>,
    pub p95_us: Option<u64>,
    pub p99_us: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Waits {
    pub due: u64,
    pub claimed: u64,
    pub held: u64,
    pub parked: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Reading {
    pub name: String,
    pub pending: u64,
    pub idle_ms: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Issue {
    pub id: String,
    pub account: Option<String>,
    pub state: String,
    pub said: Option<Said>,
    pub is_failing: bool,
    pub first_at: At,
    pub last_at: At,
    pub attempts: u64,
    pub hours: Vec<Hour>,
    pub letters: u64,
    pub sample: Option<String>,
    pub detail: String,
    pub diagnosis: Diagnosis,
    pub url: Option<String>,
    pub endpoint_state: Option<String>,
    pub to_merchant: Option<String>,
}

impl Issue {
    pub fn endpoint(&self) -> &str {
        self.id.split_once(':').map_or(&self.id, |(endpoint, _)| endpoint)
    }

    pub fn cause(&self) -> &str {
        self.id.split_once(':').map_or("", |(_, cause)| cause)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Operation {
    pub id: String,
    pub kind: String,
    pub state: String,
    pub filter: String,
    pub cutoff: At,
    pub count: u64,
    pub by: String,
    pub why: String,
    pub planned_at: At,
    pub started: Option<Mark>,
    pub changed: Option<Mark>,
    pub ended_at: Option<At>,
    pub rate: u32,
    pub left: u64,
    pub open: u64,
    pub done: u64,
    pub dead_again: u64,
    pub refused: u64,
    pub overtaken: u64,
    pub waits: Vec<String>,
}

impl Operation {
    pub fn is_for_good(&self) -> bool {
        matches!(self.kind.as_str(), "discard" | "erase")
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "done" | "cancelled")
    }

    /// What was not simply done.
    pub fn exceptions(&self) -> u64 {
        self.dead_again + self.refused + self.overtaken
    }

    pub fn ended(&self) -> u64 {
        self.done + self.exceptions()
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct OperationResult {
    pub id: String,
    pub result: String,
    pub why: String,
    pub at: At,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Said {
    pub state: String,
    pub by: String,
    pub why: String,
    pub at: At,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Hour {
    pub at: At,
    pub failed: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Diagnosis {
    pub what: String,
    pub who: String,
    pub next: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    pub id: String,
    pub account: String,
    pub url: String,
    pub description: String,
    pub state: String,
    pub by: Option<String>,
    pub why: Option<String>,
    pub at: Option<At>,
    pub event_types: Vec<String>,
    pub schemes: Vec<String>,
    /// A new one, in the answer to what made it.
    pub secret: Option<String>,
    pub secrets: Vec<Secret>,
    pub ordering: String,
    pub max_in_flight: u64,
    pub rate_limit: Option<u64>,
    pub timeout_ms: Option<u64>,
    pub headers: Vec<(String, String)>,
    pub tls: Option<Tls>,
    pub keeper: String,
    pub leaves: bool,
    pub created_at: At,
    pub updated_at: At,
    pub revision: u64,
    pub health: Option<Health>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Tls {
    pub ca: Vec<Certificate>,
    pub client_certificate: Option<Certificate>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    pub not_after: At,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Secret {
    pub value: String,
    pub created_at: At,
    pub expires_at: Option<At>,
    pub is_live: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Health {
    pub verdict: Option<String>,
    pub as_of: Option<At>,
    pub has_owner: bool,
    pub breaker: Option<Breaker>,
    pub window: Option<u64>,
    pub in_flight: Option<u64>,
    pub last_15_minutes: Totals,
    pub last_day: Totals,
    pub last_success_at: Option<At>,
    pub failing_since: Option<At>,
    pub failed_since: u64,
    pub last_failure: Option<Failure>,
    pub unfinished: u64,
    pub parked: u64,
    pub letters: u64,
    pub oldest: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Breaker {
    pub state: String,
    pub next_probe_at: Option<At>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Totals {
    pub delivered: u64,
    pub failed: u64,
    pub success_percent: Option<u64>,
    pub mean_ms: Option<u64>,
    pub slowest_ms: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Failure {
    pub cause: String,
    pub at: At,
    pub delivery: String,
    pub says: Option<String>,
    pub detail: String,
}

/// A line of a list of deliveries.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Line {
    pub id: String,
    pub account: String,
    pub event: String,
    pub intent: String,
    pub state: String,
    pub standing: String,
    pub attempts: u64,
    pub last_outcome: Option<String>,
    pub last_at: Option<At>,
}

impl Line {
    pub fn endpoint(&self) -> &str {
        self.id.split_once(':').map_or("", |(_, endpoint)| endpoint)
    }

    pub fn is_unfinished(&self) -> bool {
        matches!(self.state.as_str(), "due" | "claimed" | "parked" | "held" | "nowhere")
    }
}

/// One attempt or end, as the history tells it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Told {
    pub at: At,
    pub kind: String,
    pub id: String,
    pub event: Option<String>,
    pub intent: Option<String>,
    pub account: Option<String>,
    pub attempt: u64,
    pub outcome: Option<String>,
    pub took_us: Option<u64>,
    pub detail: String,
}

impl Told {
    pub fn endpoint(&self) -> &str {
        self.id.split_once(':').map_or("", |(_, endpoint)| endpoint)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Delivery {
    pub id: String,
    pub state: String,
    pub standing: String,
    pub record: Option<Record>,
    pub letter: Option<Letter>,
    pub past: Vec<Told>,
    pub history: Reach,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Record {
    pub event: String,
    pub event_type: String,
    pub account: String,
    pub intent: String,
    pub ordered: bool,
    pub since: At,
    pub attempts: u64,
    pub history: Vec<Attempt>,
    pub redelivered: Vec<Mark>,
    pub body: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Attempt {
    pub number: u64,
    pub at: At,
    pub outcome: String,
    pub took_us: u64,
    pub dns_us: Option<u64>,
    pub connect_us: Option<u64>,
    pub head_us: Option<u64>,
    pub response: String,
    pub detail: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Letter {
    pub at: At,
    pub reason: Option<String>,
    pub cause: Option<String>,
    pub detail: Option<String>,
    pub waited_for: Option<WaitedFor>,
    pub url: Option<String>,
    pub headers: Vec<(String, String)>,
    pub delivery: Option<Record>,
    pub unreadable: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct WaitedFor {
    pub why: String,
    pub since: Option<At>,
    pub paused_by: Option<String>,
    pub paused_why: Option<String>,
    pub head: Option<String>,
    pub last_failure: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct LetterLine {
    pub id: String,
    pub at: At,
    pub account: Option<String>,
    pub reason: Option<String>,
    pub cause: String,
    pub attempts: u64,
    pub event: Option<String>,
    pub intent: Option<String>,
}

impl LetterLine {
    pub fn endpoint(&self) -> &str {
        self.id.split_once(':').map_or("", |(_, endpoint)| endpoint)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Group {
    pub endpoint: Option<String>,
    pub account: Option<String>,
    pub reason: Option<String>,
    pub cause: Option<String>,
    pub count: u64,
    pub first_at: At,
    pub last_at: At,
}

/// A delivery of a chain.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Link {
    pub id: String,
    pub intent: Option<String>,
    pub event: Option<String>,
    pub state: String,
    pub standing: String,
    pub attempts: Option<u64>,
    pub last_outcome: Option<String>,
    pub held_behind_it: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Entry {
    pub entry: String,
    pub at: At,
    pub error: String,
    pub cut: bool,
    pub intent: Option<String>,
    pub body: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Act {
    pub id: String,
    pub at: At,
    pub act: String,
    pub by: String,
    pub surface: String,
    pub host: String,
    pub process: u64,
    pub user: Option<String>,
    pub address: Option<String>,
    pub why: String,
    pub account: Option<String>,
    pub endpoint: Option<String>,
    pub intent: Option<String>,
    pub target: Option<String>,
    pub filter: Option<String>,
    pub count: Option<u64>,
    pub ended: Option<End>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct End {
    pub at: At,
    pub result: String,
    pub why: String,
    pub done: Option<u64>,
    pub skipped: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Test {
    pub endpoint: String,
    pub event: String,
    pub url: String,
    pub delivered: bool,
    pub advice: Option<String>,
    pub attempt: Attempt,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// What became of what was asked of the partition's owner.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Results {
    pub done: u64,
    pub refused: u64,
    pub unanswered: u64,
    pub items: Vec<Outcome>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Outcome {
    pub id: String,
    pub why: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PortalLink {
    pub path: String,
    pub expires_at: At,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Token {
    /// Only of one that was made just now.
    pub token: Option<String>,
    pub hash: String,
    pub role: String,
    pub account: Option<String>,
    pub name: String,
    pub created_by: String,
    pub created_at: At,
    pub expires_at: Option<At>,
    pub is_live: bool,
    pub used_at: Option<At>,
}

/// An intent, as far as Herald keeps it or has its events.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Intent {
    pub account: String,
    pub status: Option<String>,
    pub created_at: Option<At>,
    pub events: Vec<Event>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Event {
    pub id: String,
    pub at: At,
    pub status: Option<String>,
}

/// The stream, or a part of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Partition {
    pub stream: String,
    pub mode: String,
    pub parts: Option<u32>,
    pub owner: Option<String>,
    pub behind: Option<u64>,
    pub has_more_behind: bool,
    pub behind_ms: Option<u64>,
    pub due: u64,
    pub unfinished: u64,
    pub dead_letters: u64,
}

impl Partition {
    /// Its entries go to its parts.
    pub fn is_routed(&self) -> bool {
        self.mode == "routed"
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Worker {
    pub name: String,
    pub version: String,
    pub stream: String,
    pub weight: u32,
    pub is_draining: bool,
    pub owned: Vec<String>,
    pub since: Option<At>,
    pub clock_ahead_ms: i64,
}

impl Worker {
    pub fn clock(&self) -> String {
        format!("{:+} ms", self.clock_ahead_ms)
    }
}

//! What a run does, as a TOML file describes it. Pure values; `deploy/scenarios/` has those that come with Herald.
//!
//! Durations are text with units (`250ms`, `5s`); shares are parts of 1; sizes are bytes.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::faults::FaultSpec;
use crate::config::compact;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub name: String,
    /// What it shows, in a sentence.
    pub description: String,
    pub load: Load,
    #[serde(default)]
    pub traffic: Traffic,
    #[serde(default)]
    pub endpoints: Population,
    #[serde(default)]
    pub herald: Workers,
    /// With it, what comes at the load's rate are merchants' commands to the payment-intents service, which tells of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intents: Option<Intents>,
    /// `kill-worker@10s` and the like.
    #[serde(default)]
    pub faults: Vec<FaultSpec>,
    /// `p99<5ms`, `lost==0`, `rate>20000`. Broken promises fail a run without being named here.
    #[serde(default)]
    pub thresholds: Vec<String>,
}

/// The length of a drain is not known beforehand: for random faults this many events a second are assumed. A fault
/// after the end of the drain does not happen, so this is what a good machine does.
const DRAIN_RATE: f64 = 30_000.0;

/// At least this long, however few events there are: the workers have to find them.
const SHORTEST_DRAIN: Duration = Duration::from_millis(200);

impl Scenario {
    /// How long the load takes; for a drain a guess.
    pub fn length(&self) -> Duration {
        match &self.load {
            Load::Open { stages, .. } => stages.iter().map(|stage| stage.length).sum(),
            Load::Drain { events } => Duration::from_secs_f64(*events as f64 / DRAIN_RATE).max(SHORTEST_DRAIN),
        }
    }

    /// The same scenario in another time: stages, the times of faults and of healing are stretched by this factor. How
    /// long one fault lasts stays as it is, and so do the rates. A fault that lasts and repeats until the end is not
    /// repeated before twice its length has passed: otherwise overlapping ones would become a single one.
    pub fn stretch(&mut self, factor: f64) {
        match &mut self.load {
            Load::Open { stages, .. } => stages.iter_mut().for_each(|stage| stage.length = by(stage.length, factor)),
            Load::Drain { events } => *events = ((*events as f64 * factor) as u64).max(1),
        }
        for fault in &mut self.faults {
            fault.at = fault.at.map(|at| by(at, factor));
            let apart = fault.length.or(fault.fault.usual_length()).unwrap_or_default() * 2;
            let least = |every: Duration| if fault.times.is_none() { every.min(apart) } else { Duration::ZERO };
            fault.every = fault.every.map(|every| by(every, factor).max(least(every)));
        }
        for share in &mut self.endpoints.profiles {
            if let Profile::Healing { at, .. } = &mut share.profile {
                *at = by(*at, factor);
            }
        }
    }
}

/// Rounded to the millisecond, in which they are written, but never to zero.
fn by(span: Duration, factor: f64) -> Duration {
    Duration::from_millis((span.as_secs_f64() * factor * 1e3).round().max(1.0) as u64)
}

/// When events are sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Load {
    /// An open model: every event has an intended time, whatever became of those before it. Stages follow each other.
    Open {
        stages: Vec<Stage>,
        #[serde(default)]
        arrivals: Arrivals,
    },
    /// The events lie in the stream before the workers start; then the drain is measured.
    Drain { events: u64 },
}

/// The payment-intents service under load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Intents {
    /// `herald intents serve` processes over one Redis.
    pub services: u32,
    /// Share of the requests with an idempotency key that are sent once more although they were answered.
    pub repeats: f64,
}

impl Default for Intents {
    fn default() -> Self {
        Self { services: 2, repeats: 0.1 }
    }
}

/// A stretch of time with a rate, or with a rate that changes steadily.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    #[serde(rename = "for", with = "span")]
    #[schemars(with = "String")]
    pub length: Duration,
    /// Events a second, at the stage's beginning.
    pub rate: f64,
    /// Events a second at its end; the same when left out.
    #[serde(default)]
    pub to: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// Evenly spaced.
    #[default]
    Even,
    /// Independent of each other: exponential gaps, as real customers make them.
    Poisson,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Traffic {
    pub accounts: u32,
    /// Intents of one account that are alive at once; each lives through one to four statuses.
    pub intents: u32,
    /// Size of an event's JSON; further `data` makes up what the payload lacks.
    pub body_bytes: u32,
    /// Share of all events that belong to the first account: one hot merchant. The others share the rest evenly.
    pub hot_share: f64,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { accounts: 20, intents: 20, body_bytes: 600, hot_share: 0.0 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Population {
    /// Endpoints of each account: every event is owed to each of them.
    pub fan_out: u32,
    /// Registered in addition, for accounts that no event is for.
    pub idle: u32,
    /// Share of the endpoints that are https.
    pub tls_share: f64,
    /// Attempts that an endpoint may have in flight; none means Herald's default.
    pub max_in_flight: Option<u16>,
    /// Loopback addresses over which the receivers without TLS are spread: one host may only have a share of Herald.
    pub hosts: u32,
    /// How long an attempt may take; none means the worker's setting.
    #[serde(with = "span::option")]
    #[schemars(with = "Option<String>")]
    pub timeout: Option<Duration>,
    pub retry: Retry,
    /// Shares are relative to their sum. Empty means that all are healthy.
    pub profiles: Vec<ProfileShare>,
}

impl Default for Population {
    fn default() -> Self {
        Self {
            fan_out: 1,
            idle: 0,
            tls_share: 0.0,
            max_in_flight: None,
            hosts: 1,
            timeout: None,
            retry: Retry::default(),
            profiles: vec![],
        }
    }
}

/// The endpoints' own retry policy: a run of seconds must show what otherwise takes days.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    #[serde(with = "span")]
    #[schemars(with = "String")]
    pub initial: Duration,
    pub multiplier: f64,
    #[serde(with = "span")]
    #[schemars(with = "String")]
    pub max_interval: Duration,
    pub jitter: f64,
    pub max_attempts: u32,
    #[serde(with = "span")]
    #[schemars(with = "String")]
    pub max_age: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(250),
            multiplier: 2.0,
            max_interval: Duration::from_secs(2),
            jitter: 0.2,
            max_attempts: 6,
            max_age: Duration::from_secs(3600),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProfileShare {
    #[serde(default = "one")]
    pub share: f64,
    /// How many events an account with such an endpoint gets, as a multiple of what the others get.
    #[serde(default = "one")]
    pub weight: f64,
    /// Instead of the population's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u16>,
    #[serde(flatten)]
    pub profile: Profile,
}

impl ProfileShare {
    pub fn of(share: f64, profile: Profile) -> Self {
        Self { share, weight: 1.0, max_in_flight: None, profile }
    }
}

fn one() -> f64 {
    1.0
}

/// How the receiver of an endpoint behaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "profile", rename_all = "kebab-case")]
pub enum Profile {
    /// 200 after a time drawn from a log-normal distribution with this median and p99; both 0 means at once.
    Healthy {
        #[serde(default, with = "span")]
        #[schemars(with = "String")]
        median: Duration,
        #[serde(default, with = "span")]
        #[schemars(with = "String")]
        p99: Duration,
    },
    /// 200 after this long, always.
    Slow {
        #[serde(with = "span")]
        #[schemars(with = "String")]
        after: Duration,
    },
    /// Takes the request and never answers.
    Hanging,
    /// 500 with this probability, drawn for each attempt from the seed.
    Flaky { p: f64 },
    /// Like `slow`, but it fails now and then. What it takes is compared with its twin, the `slow` one with the same
    /// `after` (the promise `goodput`): it must be at least this share of that.
    Imperfect {
        #[serde(with = "span")]
        #[schemars(with = "String")]
        after: Duration,
        failure: Failure,
        often: Often,
        goodput: f64,
    },
    /// Like `slow`, but its connections do not last, and it is some distance away. Whatever is lost because of that was
    /// certainly not processed, and is not a failure (the promise `needless_retry`).
    Fleeting {
        #[serde(with = "span")]
        #[schemars(with = "String")]
        after: Duration,
        /// The round trip.
        #[serde(default, with = "span")]
        #[schemars(with = "String")]
        rtt: Duration,
        /// HTTP/2 over TLS; else plain HTTP/1.1.
        #[serde(default)]
        http2: bool,
        /// Closes after this many answers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        requests: Option<u32>,
        /// Closes a connection that is idle for this long.
        #[serde(default, with = "span::option", skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>")]
        idle: Option<Duration>,
        /// How often all connections end, each as soon as what was asked is answered, as when nginx is reloaded; new
        /// ones are accepted all the time.
        #[serde(default, with = "span::option", skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>")]
        reload: Option<Duration>,
    },
    /// 503 until this long after the load began, then healthy. Its backlog is gone soon after (the promise `recovered`).
    Healing {
        #[serde(with = "span")]
        #[schemars(with = "String")]
        at: Duration,
        /// What it takes over a 200.
        #[serde(default, with = "span")]
        #[schemars(with = "String")]
        after: Duration,
    },
    /// 500 always: every delivery becomes a dead letter.
    Failing,
    /// 429 with this `Retry-After` for the first attempt of each delivery, then 200.
    Throttling {
        #[serde(with = "span")]
        #[schemars(with = "String")]
        retry_after: Duration,
    },
    /// 200 for this many deliveries, then 410: the endpoint is disabled.
    Gone { after: u64 },
    /// 302 to a place that must never be visited.
    Redirecting,
    /// Resets the connection instead of answering.
    Resetting,
    /// Closes the connection in the middle of the answer's head.
    Truncating,
    /// 200 with a body that never ends.
    HugeBody,
    /// Interim answers (103) without an end, and never another.
    Flooding,
    /// Shows a certificate that is not for its name.
    BrokenTls,
}

impl Profile {
    /// As in the scenario's file and in the result.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Healthy { .. } => "healthy",
            Self::Slow { .. } => "slow",
            Self::Hanging => "hanging",
            Self::Flaky { .. } => "flaky",
            Self::Imperfect { .. } => "imperfect",
            Self::Fleeting { .. } => "fleeting",
            Self::Healing { .. } => "healing",
            Self::Failing => "failing",
            Self::Throttling { .. } => "throttling",
            Self::Gone { .. } => "gone",
            Self::Redirecting => "redirecting",
            Self::Resetting => "resetting",
            Self::Truncating => "truncating",
            Self::HugeBody => "huge-body",
            Self::Flooding => "flooding",
            Self::BrokenTls => "broken-tls",
        }
    }

    /// What tells it from others with its name.
    pub fn label(&self) -> String {
        match self {
            Self::Imperfect { failure, often: Often::Random { p }, .. } => {
                format!("{} for {:.0} % of all", failure.name(), p * 100.0)
            }
            Self::Imperfect { failure, often: Often::Spells { length, every }, .. } => {
                format!("{} for {} of every {}", failure.name(), compact(*length), compact(*every))
            }
            other => other.name().to_owned(),
        }
    }
}

/// How an imperfect receiver fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Failure {
    #[serde(rename = "500")]
    Status500,
    /// Without a `Retry-After`.
    #[serde(rename = "503")]
    Status503,
    /// Resets the connection instead of answering.
    #[serde(rename = "reset")]
    Reset,
}

impl Failure {
    pub fn name(self) -> &'static str {
        match self {
            Self::Status500 => "500",
            Self::Status503 => "503",
            Self::Reset => "reset",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields)]
pub enum Often {
    /// With this probability, drawn for each attempt from the seed.
    Random { p: f64 },
    /// For this long at the end of every such period: whatever comes meanwhile fails.
    Spells {
        #[serde(rename = "for", with = "span")]
        #[schemars(with = "String")]
        length: Duration,
        #[serde(with = "span")]
        #[schemars(with = "String")]
        every: Duration,
    },
}

/// The workers that the harness starts. Not used against a service that it did not start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    /// `herald serve` processes, which share the partitions; with only one partition, one owns it and the others stand by.
    pub workers: u32,
    /// How many partitions the stream has; they are made before the load begins.
    pub partitions: u32,
    /// Redis is a Cluster, of three masters with a replica each. What no replica has confirmed is not confirmed.
    pub cluster: bool,
    /// Further settings for them, by their names in Herald's own configuration: `"lease.ttl" = "2s"`.
    pub settings: BTreeMap<String, String>,
}

impl Default for Workers {
    fn default() -> Self {
        Self { workers: 1, partitions: 1, cluster: false, settings: BTreeMap::new() }
    }
}

/// Durations as Herald's configuration writes them.
pub(super) mod span {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::config::{compact, parse_duration};

    pub fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&compact(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        read(&String::deserialize(from)?)
    }

    fn read<E: Error>(text: &str) -> Result<Duration, E> {
        parse_duration(text).map_err(|error| E::custom(format!("{text:?} {error}")))
    }

    pub mod option {
        use super::{Deserialize, Deserializer, Duration, Serializer, read};

        pub fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => super::serialize(value, to),
                None => to.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
            // JSON writes absent values as null.
            let text = Option::<String>::deserialize(from)?;
            text.map(|text| read(&text)).transpose()
        }
    }
}

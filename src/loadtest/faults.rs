//! What is broken on purpose, and when. Pure: the grammar and the plan. `house` does what the plan says.
//!
//! `NAME@AT[:FOR][/EVERY][*TIMES]`, for example `kill-worker@10s`, `pause-worker@5s:8s` (at 5 s, for 8 s),
//! `kill-worker@5s/4s*3` (at 5, 9 and 13 s), `restart-redis@random*2` (twice, at times from the seed).

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{compact, parse_duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// `kill -9` of the worker that owns the partition; it is started again at once.
    KillWorker,
    /// SIGSTOP of the owner, SIGCONT after a time.
    PauseWorker,
    /// `kill -9` of Redis; started again after a time on the same files.
    RestartRedis,
    /// The workers reach Redis no more: nothing is refused, nothing arrives. Producers still do.
    PartitionRedis,
    /// Redis has no memory left: `maxmemory` is what it uses.
    FillRedis,
    /// `XGROUP DESTROY` of Herald's group.
    DestroyGroup,
}

/// One `--fault`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct FaultSpec {
    pub fault: Fault,
    /// None means at a random time.
    pub at: Option<Duration>,
    /// For those that last; none means the fault's own default.
    pub length: Option<Duration>,
    pub every: Option<Duration>,
    /// None means once, or with `every` until the load ends.
    pub times: Option<u32>,
}

/// A fault at its time after the load's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    pub fault: Fault,
    pub at: Duration,
    /// Zero for those that do not last.
    pub length: Duration,
}

impl Fault {
    pub const ALL: [Self; 6] = [
        Self::KillWorker,
        Self::PauseWorker,
        Self::RestartRedis,
        Self::PartitionRedis,
        Self::FillRedis,
        Self::DestroyGroup,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::KillWorker => "kill-worker",
            Self::PauseWorker => "pause-worker",
            Self::RestartRedis => "restart-redis",
            Self::PartitionRedis => "partition-redis",
            Self::FillRedis => "fill-redis",
            Self::DestroyGroup => "destroy-group",
        }
    }

    /// How long it lasts unless a scenario says otherwise; none for those that are over at once.
    pub fn usual_length(self) -> Option<Duration> {
        match self {
            Self::KillWorker | Self::DestroyGroup => None,
            Self::RestartRedis => Some(Duration::from_millis(500)),
            Self::PauseWorker | Self::PartitionRedis | Self::FillRedis => Some(Duration::from_secs(3)),
        }
    }
}

impl fmt::Display for FaultSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.fault.name())?;
        match self.at {
            Some(at) => f.write_str(&compact(at))?,
            None => f.write_str("random")?,
        }
        if let Some(length) = self.length {
            write!(f, ":{}", compact(length))?;
        }
        if let Some(every) = self.every {
            write!(f, "/{}", compact(every))?;
        }
        self.times.map_or(Ok(()), |times| write!(f, "*{times}"))
    }
}

impl FromStr for FaultSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("the fault {text:?} {what}; write it like {EXAMPLES}");
        let (name, rest) = text.split_once('@').ok_or_else(|| wrong("does not say when"))?;
        let fault = Fault::ALL.into_iter().find(|fault| fault.name() == name).ok_or_else(|| {
            let known = Fault::ALL.map(Fault::name).join(", ");
            format!("the fault {name:?} is not known; there are {known}")
        })?;
        let (rest, times) = cut(rest, '*');
        let (rest, every) = cut(rest, '/');
        let (at, length) = cut(rest, ':');
        let span = |text: &str| parse_duration(text).map_err(|error| wrong(&format!("has {text:?}, which {error}")));
        let times = times.map(str::parse::<u32>).transpose().map_err(|_| wrong("has no number after the *"))?;
        let at = if at == "random" { None } else { Some(span(at)?) };
        let spec =
            Self { fault, at, length: length.map(span).transpose()?, every: every.map(span).transpose()?, times };
        spec.check().map_err(wrong)?;
        Ok(spec)
    }
}

/// Shown with every error.
const EXAMPLES: &str = "kill-worker@10s, pause-worker@5s:8s, kill-worker@5s/4s*3 or restart-redis@random*2";

/// Runs last minutes: more than this is a mistake in the text.
const MAX_TIMES: u32 = 1_000;

impl FaultSpec {
    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self { times: Some(0), .. } => Err("happens no times"),
            Self { times: Some(times), .. } if *times > MAX_TIMES => Err("happens more than 1000 times"),
            Self { at: None, every: Some(_), .. } => Err("is both random and regular"),
            Self { every: Some(Duration::ZERO), .. } => Err("repeats without a pause"),
            Self { at: Some(_), every: None, times: Some(times), .. } if *times > 1 => {
                Err("repeats, but does not say how often: add /EVERY")
            }
            Self { length: Some(_), fault, .. } if fault.usual_length().is_none() => Err("does not last"),
            _ => Ok(()),
        }
    }
}

fn cut(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(left, right)| (left, Some(right)))
}

impl TryFrom<String> for FaultSpec {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<FaultSpec> for String {
    fn from(spec: FaultSpec) -> Self {
        spec.to_string()
    }
}

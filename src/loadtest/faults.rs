//! What is broken on purpose, and when. Pure: the grammar and the plan. `house` does what the plan says.
//!
//! `NAME@AT[:FOR][/EVERY][*TIMES]`, for example `kill-worker@10s`, `pause-worker@5s:8s` (at 5 s, for 8 s),
//! `kill-worker@5s/4s*3` (at 5, 9 and 13 s), `restart-redis@random*2` (twice, at times from the seed).

use std::{fmt, str::FromStr, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
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
    /// The workers no longer reach Redis: nothing is refused, nothing arrives. Producers still reach it.
    PartitionRedis,
    /// Redis has no memory left: `maxmemory` is what it uses.
    FillRedis,
    /// `XGROUP DESTROY` of Herald's group.
    DestroyGroup,
    /// Endpoints get another URL. Breaks nothing: what is accepted after the change was answered goes there.
    ChangeUrls,
    /// Nobody reads what the workers log. Breaks nothing: they go on.
    BlockLogs,
    /// The owner's master key file has another key instead of the one that its endpoints' secrets are sealed with.
    LoseKey,
    /// `kill -9` of a process of the payment-intents service, one after the other; it is started again at once.
    KillService,
    /// SIGSTOP of such a process, SIGCONT after a time.
    PauseService,
    /// A worker starts, beside the others or in the place of one that has left.
    JoinWorker,
    /// SIGTERM of a worker, one after the other: it gives away what it has, and ends.
    LeaveWorker,
    /// `kill -9` of a Cluster's master that has a partition; after a time it comes back, as a replica of its replica.
    Failover,
    /// SIGSTOP of such a master, SIGCONT after a time: it finds another in its place.
    PartitionNode,
    /// The slot of a partition goes to another master, key by key.
    MigrateSlot,
}

/// What must be there for a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// A Redis that is one server.
    OneServer,
    Cluster,
    /// The payment-intents service.
    Services,
}

/// One `--fault`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct FaultSpec {
    pub fault: Fault,
    /// None means at a random time.
    pub at: Option<Duration>,
    /// For faults that last; none means the fault's own default.
    pub length: Option<Duration>,
    pub every: Option<Duration>,
    /// None means once, or with `every` until the load ends.
    pub times: Option<u32>,
}

/// A fault at its time after the load's beginning. [`plan`] makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    pub fault: Fault,
    pub at: Duration,
    /// Zero for faults that do not last.
    pub length: Duration,
    pub wanted: Wanted,
}

/// How firmly a fault was asked for: if one that was named does not come, the run has not done what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// At a time that somebody wrote.
    Named,
    /// At a time from the seed.
    Random,
    /// A repetition for as long as the load lasts, which nobody knows beforehand.
    Onward,
}

impl Fault {
    pub const ALL: [Self; 16] = [
        Self::KillWorker,
        Self::PauseWorker,
        Self::RestartRedis,
        Self::PartitionRedis,
        Self::FillRedis,
        Self::DestroyGroup,
        Self::ChangeUrls,
        Self::BlockLogs,
        Self::LoseKey,
        Self::KillService,
        Self::PauseService,
        Self::JoinWorker,
        Self::LeaveWorker,
        Self::Failover,
        Self::PartitionNode,
        Self::MigrateSlot,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::KillWorker => "kill-worker",
            Self::PauseWorker => "pause-worker",
            Self::RestartRedis => "restart-redis",
            Self::PartitionRedis => "partition-redis",
            Self::FillRedis => "fill-redis",
            Self::DestroyGroup => "destroy-group",
            Self::ChangeUrls => "change-urls",
            Self::BlockLogs => "block-logs",
            Self::LoseKey => "lose-key",
            Self::KillService => "kill-service",
            Self::PauseService => "pause-service",
            Self::JoinWorker => "join-worker",
            Self::LeaveWorker => "leave-worker",
            Self::Failover => "failover",
            Self::PartitionNode => "partition-node",
            Self::MigrateSlot => "migrate-slot",
        }
    }

    /// How long it lasts unless a scenario says otherwise; none for faults that are over at once.
    pub fn usual_length(self) -> Option<Duration> {
        match self {
            Self::KillWorker
            | Self::KillService
            | Self::DestroyGroup
            | Self::ChangeUrls
            | Self::JoinWorker
            | Self::LeaveWorker
            | Self::MigrateSlot => None,
            Self::RestartRedis => Some(Duration::from_millis(500)),
            Self::PauseWorker | Self::PauseService | Self::PartitionRedis | Self::FillRedis => {
                Some(Duration::from_secs(3))
            }
            // A Cluster of the load test's own replaces a master after one to three seconds.
            Self::Failover | Self::PartitionNode => Some(Duration::from_secs(4)),
            Self::BlockLogs | Self::LoseKey => Some(Duration::from_secs(10)),
        }
    }

    /// Events that come late or twice near it may do so because of it. The other faults should go unnoticed.
    pub fn is_felt(self) -> bool {
        match self {
            Self::KillWorker
            | Self::PauseWorker
            | Self::RestartRedis
            | Self::PartitionRedis
            | Self::FillRedis
            | Self::DestroyGroup
            | Self::LoseKey
            | Self::KillService
            | Self::PauseService
            | Self::JoinWorker
            | Self::LeaveWorker
            | Self::Failover
            | Self::PartitionNode
            | Self::MigrateSlot => true,
            Self::ChangeUrls | Self::BlockLogs => false,
        }
    }

    /// Whether what was acknowledged may come again near it. Workers that come and go hand over only what is settled; what is
    /// still on its way may be given up and begun anew.
    pub fn may_duplicate(self) -> bool {
        self.is_felt() && !matches!(self, Self::JoinWorker | Self::LeaveWorker)
    }

    pub fn needs(self) -> Needs {
        match self {
            Self::RestartRedis | Self::PartitionRedis | Self::FillRedis => Needs::OneServer,
            Self::Failover | Self::PartitionNode | Self::MigrateSlot => Needs::Cluster,
            Self::KillService | Self::PauseService => Needs::Services,
            Self::KillWorker
            | Self::PauseWorker
            | Self::DestroyGroup
            | Self::ChangeUrls
            | Self::BlockLogs
            | Self::LoseKey
            | Self::JoinWorker
            | Self::LeaveWorker => Needs::Nothing,
        }
    }

    /// Whether what is already accepted goes on being delivered while it lasts.
    pub fn lets_work_go_on(self) -> bool {
        match self {
            Self::FillRedis | Self::BlockLogs | Self::KillService | Self::PauseService => true,
            Self::KillWorker
            | Self::PauseWorker
            | Self::RestartRedis
            | Self::PartitionRedis
            | Self::DestroyGroup
            | Self::LoseKey
            | Self::ChangeUrls
            | Self::JoinWorker
            | Self::LeaveWorker
            | Self::Failover
            | Self::PartitionNode
            | Self::MigrateSlot => false,
        }
    }
}

/// How long the load takes, as far as that is known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadLength {
    Exactly(Duration),
    /// A drain takes as long as it takes; faults after its end do not happen.
    About(Duration),
}

/// Random faults come within this part of the load, where there is something to disturb and something to show the
/// recovery.
const RANDOM_WITHIN: std::ops::Range<f64> = 0.05..0.85;

/// A drain with slow receivers, or of a test build, takes this many times as long as guessed.
const SLOW_DRAIN: u32 = 6;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("the fault {spec} would come {} after the load's beginning, which only lasts {}", compact(*.at), compact(*.length))]
    AfterTheLoad { spec: String, at: Duration, length: Duration },
    #[error("the fault {spec} would come more than {MAX_TIMES} times: give it a longer pause, or a number of times")]
    TooOften { spec: String },
}

/// Everything that is going to happen, in order. Two faults of one kind that would overlap become one that lasts as
/// long as both: what is paused cannot be paused again.
pub fn plan(specs: &[FaultSpec], length: LoadLength, seed: u64) -> Result<Vec<Planned>, PlanError> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut planned = Vec::new();
    for spec in specs {
        let length_of_one = spec.length.or(spec.fault.usual_length()).unwrap_or_default();
        let times = spec.moments(length, &mut rng)?;
        planned.extend(times.into_iter().enumerate().map(|(n, at)| {
            let wanted = spec.wanted(n, length);
            Planned { fault: spec.fault, at, length: length_of_one, wanted }
        }));
    }
    planned.sort_by_key(|one| (one.fault, one.at));
    let mut merged: Vec<Planned> = Vec::with_capacity(planned.len());
    for one in planned {
        match merged.last_mut() {
            Some(last) if last.fault == one.fault && one.at <= last.at + last.length => {
                last.length = last.length.max(one.at + one.length - last.at);
                last.wanted = last.wanted.min(one.wanted);
            }
            _ => merged.push(one),
        }
    }
    merged.sort_by_key(|one| (one.at, one.fault));
    Ok(merged)
}

impl FaultSpec {
    /// When it happens for the `n`th time, counted from 0.
    fn wanted(&self, n: usize, length: LoadLength) -> Wanted {
        match (self.at, self.times, length) {
            (None, _, _) => Wanted::Random,
            (Some(_), None, LoadLength::About(_)) if n > 0 => Wanted::Onward,
            (Some(_), _, _) => Wanted::Named,
        }
    }

    /// When it happens, unsorted.
    fn moments(&self, length: LoadLength, rng: &mut StdRng) -> Result<Vec<Duration>, PlanError> {
        let (known, about) = match length {
            LoadLength::Exactly(length) => (Some(length), length),
            LoadLength::About(length) => (None, length),
        };
        let Some(first) = self.at else {
            let random = |_| about.mul_f64(rng.random_range(RANDOM_WITHIN));
            return Ok((0..self.times.unwrap_or(1)).map(random).collect());
        };
        let times = match (self.every, self.times) {
            (None, _) => 1,
            (Some(_), Some(times)) => times,
            // At the very end of the load nothing is left to disturb.
            (Some(every), None) => {
                // What comes after the end of a drain does not happen: rather too many than too few.
                let until = if known.is_some() { about } else { about * SLOW_DRAIN };
                let left = until.saturating_sub(first + Duration::from_millis(1));
                1 + u32::try_from(left.as_millis() / every.as_millis().max(1)).unwrap_or(u32::MAX)
            }
        };
        if times > MAX_TIMES {
            return Err(PlanError::TooOften { spec: self.to_string() });
        }
        let last = first + self.every.unwrap_or_default() * (times - 1);
        match known {
            Some(length) if last >= length => Err(PlanError::AfterTheLoad { spec: self.to_string(), at: last, length }),
            _ => Ok((0..times).map(|n| first + self.every.unwrap_or_default() * n).collect()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(texts: &[&str]) -> Vec<FaultSpec> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    fn planned(texts: &[&str], length_s: u64) -> Vec<(Fault, u64, u64)> {
        let length = LoadLength::Exactly(Duration::from_secs(length_s));
        let planned = plan(&specs(texts), length, 1).unwrap();
        let ms = |one: &Planned| (one.fault, one.at.as_millis() as u64, one.length.as_millis() as u64);
        planned.iter().map(ms).collect()
    }

    #[test]
    fn every_fault_is_written_as_it_is_read() {
        for text in [
            "kill-worker@10s",
            "pause-worker@5s:8s",
            "kill-worker@5s/4s*3",
            "restart-redis@random*2",
            "fill-redis@1s:2s/10s",
            "destroy-group@250ms",
            "partition-redis@random:1s",
            "change-urls@1s/500ms*3",
            "block-logs@1s:5s",
            "lose-key@1s:5s",
            "join-worker@1s/2s*2",
            "leave-worker@random",
            "failover@3s:6s",
            "partition-node@random*2",
            "migrate-slot@1s/2s",
        ] {
            assert_eq!(text.parse::<FaultSpec>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        for (text, reason) in [
            ("kill-worker", "does not say when"),
            ("kill-workers@1s", "not known"),
            ("kill-worker@soon", "soon"),
            ("kill-worker@1s:2s", "does not last"),
            ("migrate-slot@1s:2s", "does not last"),
            ("kill-worker@random/2s", "both random and regular"),
            ("kill-worker@1s*3", "add /EVERY"),
            ("kill-worker@1s/0s", "without a pause"),
            ("kill-worker@1s/1s*0", "no times"),
            ("kill-worker@1s/1s*many", "no number"),
        ] {
            let error = text.parse::<FaultSpec>().expect_err(text);
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_plan_has_every_repetition_in_its_order() {
        use Fault::{KillWorker, PauseWorker, RestartRedis};
        assert_eq!(
            planned(&["kill-worker@5s/4s*3", "pause-worker@6s:1s", "restart-redis@2s"], 20),
            [
                (RestartRedis, 2_000, 500),
                (KillWorker, 5_000, 0),
                (PauseWorker, 6_000, 1_000),
                (KillWorker, 9_000, 0),
                (KillWorker, 13_000, 0),
            ]
        );
        // Without a number of times it goes on until the load ends.
        let ats: Vec<u64> = planned(&["kill-worker@2s/4s"], 10).iter().map(|one| one.1).collect();
        assert_eq!(ats, [2_000, 6_000]);
    }

    #[test]
    fn two_of_one_kind_that_overlap_become_one() {
        use Fault::{KillWorker, PauseWorker};
        let merged =
            planned(&["pause-worker@4s:3s", "pause-worker@6s:5s", "pause-worker@11s:1s", "kill-worker@5s"], 20);
        assert_eq!(merged, [(PauseWorker, 4_000, 8_000), (KillWorker, 5_000, 0)]);
        assert_eq!(planned(&["kill-worker@5s", "kill-worker@5s"], 20).len(), 1);
    }

    #[test]
    fn random_times_lie_within_the_load_and_repeat_with_the_seed() {
        let length = LoadLength::Exactly(Duration::from_secs(100));
        let draw = |seed| plan(&specs(&["kill-worker@random*50"]), length, seed).unwrap();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_eq!(draw(7).len(), 50);
        let within = Duration::from_secs(5)..Duration::from_secs(85);
        assert!(draw(7).iter().all(|one| within.contains(&one.at)));
    }

    #[test]
    fn a_fault_that_would_never_come_is_refused() {
        let length = Duration::from_secs(10);
        let refused = |text: &str| plan(&specs(&[text]), LoadLength::Exactly(length), 1).unwrap_err().to_string();
        assert!(refused("kill-worker@5s/4s*3").contains("13s"), "{}", refused("kill-worker@5s/4s*3"));
        assert!(refused("kill-worker@10s").contains("lasts 10s"));
        assert!(refused("kill-worker@0s/1ms").contains("more than 1000"));
        assert_eq!(plan(&specs(&["kill-worker@20s"]), LoadLength::About(length), 1).unwrap().len(), 1);
    }

    #[test]
    fn only_what_was_named_must_come() {
        let wanted = |text: &str, length| {
            let planned = plan(&specs(&[text]), length, 1).unwrap();
            planned.iter().map(|one| one.wanted).collect::<Vec<_>>()
        };
        let (drain, open) = (LoadLength::About(Duration::from_secs(1)), LoadLength::Exactly(Duration::from_secs(9)));
        assert_eq!(wanted("kill-worker@20s/1s*2", drain), [Wanted::Named; 2]);
        assert_eq!(wanted("kill-worker@2s/5s", open), [Wanted::Named; 2]);
        assert_eq!(wanted("kill-worker@random", open), [Wanted::Random]);
        // Until the drain ends, which may be before the second.
        assert_eq!(wanted("kill-worker@2s/3s", drain), [Wanted::Named, Wanted::Onward]);
    }
}

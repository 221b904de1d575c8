//! The figures of a run by name: what a threshold can ask for.

use std::fmt;

use crate::{
    loadtest::{
        faults::Fault,
        result::{Deliveries, Latency, RunResult},
    },
    surface::words,
};

/// The unit of a figure's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds.
    Time,
    Seconds,
    Bytes,
    Count,
    /// Each second.
    Rate,
}

impl Unit {
    /// With its unit, for people.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Time => words::time(value),
            Self::Seconds => words::seconds(value),
            Self::Bytes => words::bytes(value as u64),
            Self::Count => words::decimal(value),
            Self::Rate => words::rate(value),
        }
    }
}

/// A percentile or the like of a latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    P50,
    P90,
    P99,
    P999,
    P9999,
    Max,
    Mean,
}

impl Point {
    pub const ALL: [Self; 7] = [Self::P50, Self::P90, Self::P99, Self::P999, Self::P9999, Self::Max, Self::Mean];

    pub fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::P9999 => "p99.99",
            Self::Max => "max",
            Self::Mean => "mean",
        }
    }

    pub fn of(self, latency: &Latency) -> f64 {
        match self {
            Self::P50 => latency.p50_us as f64,
            Self::P90 => latency.p90_us as f64,
            Self::P99 => latency.p99_us as f64,
            Self::P999 => latency.p999_us as f64,
            Self::P9999 => latency.p9999_us as f64,
            Self::Max => latency.max_us as f64,
            Self::Mean => latency.mean_us,
        }
    }
}

/// Whose latency it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timed {
    Delivery,
    Answer,
    RetryLateness,
    SendLateness,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    Owed,
    Acknowledged,
    Dead,
    Unfinished,
    Attempts,
    Duplicates,
    Rate,
}

impl Sum {
    pub const ALL: [Self; 7] =
        [Self::Rate, Self::Owed, Self::Acknowledged, Self::Dead, Self::Unfinished, Self::Attempts, Self::Duplicates];

    pub fn name(self) -> &'static str {
        match self {
            Self::Owed => "owed",
            Self::Acknowledged => "acknowledged",
            Self::Dead => "dead",
            Self::Unfinished => "unfinished",
            Self::Attempts => "attempts",
            Self::Duplicates => "duplicates",
            Self::Rate => "rate",
        }
    }

    fn of(self, deliveries: &Deliveries) -> f64 {
        match self {
            Self::Owed => deliveries.owed as f64,
            Self::Acknowledged => deliveries.acknowledged as f64,
            Self::Dead => deliveries.dead as f64,
            Self::Unfinished => deliveries.unfinished as f64,
            Self::Attempts => deliveries.attempts as f64,
            Self::Duplicates => deliveries.duplicates as f64,
            Self::Rate => deliveries.rate,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    Intended,
    Sent,
    SentAgain,
    Late,
}

impl Sending {
    pub const ALL: [Self; 4] = [Self::Intended, Self::Sent, Self::SentAgain, Self::Late];

    pub fn name(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Sent => "sent",
            Self::SentAgain => "sent_again",
            Self::Late => "late",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    CpuUs,
    CpuSeconds,
    Rss,
}

impl Used {
    pub const ALL: [Self; 3] = [Self::CpuUs, Self::CpuSeconds, Self::Rss];

    pub fn name(self) -> &'static str {
        match self {
            Self::CpuUs => "cpu_us",
            Self::CpuSeconds => "cpu_seconds",
            Self::Rss => "rss",
        }
    }
}

/// The processes whose use of the machine is measured.
pub const PROCESSES: [&str; 3] = ["herald", "redis", "harness"];

/// One figure of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Figure {
    Latency(Timed, Point),
    ProfileLatency(String, Point),
    /// Of what was sent near faults of this kind.
    NearFault(Fault, Point),
    Deliveries(Sum),
    ProfileDeliveries(String, Sum),
    Sending(Sending),
    /// How long the run took.
    Seconds,
    Process(String, Used),
    /// How often it was broken.
    Promise(String),
}

impl Figure {
    /// Every figure that can be asked for, given the names of what a run judges and of its profiles.
    pub fn all(promises: &[String], profiles: &[String]) -> Vec<Self> {
        let mut all: Vec<Self> = Point::ALL.map(|point| Self::Latency(Timed::Delivery, point)).into();
        all.extend(Sum::ALL.map(Self::Deliveries));
        all.extend(Sending::ALL.map(Self::Sending));
        all.push(Self::Seconds);
        all.extend(Point::ALL.map(|point| Self::Latency(Timed::Answer, point)));
        all.extend(Point::ALL.map(|point| Self::Latency(Timed::RetryLateness, point)));
        all.extend(Point::ALL.map(|point| Self::Latency(Timed::SendLateness, point)));
        for who in PROCESSES {
            all.extend(Used::ALL.map(|used| Self::Process(who.to_owned(), used)));
        }
        for profile in profiles {
            all.extend(Point::ALL.map(|point| Self::ProfileLatency(profile.clone(), point)));
            all.extend(Sum::ALL.map(|sum| Self::ProfileDeliveries(profile.clone(), sum)));
        }
        let felt = Fault::ALL.into_iter().filter(|fault| fault.is_felt());
        all.extend(felt.flat_map(|fault| Point::ALL.map(|point| Self::NearFault(fault, point))));
        all.extend(promises.iter().cloned().map(Self::Promise));
        all
    }

    pub fn unit(&self) -> Unit {
        match self {
            Self::Latency(..) | Self::ProfileLatency(..) | Self::NearFault(..) | Self::Process(_, Used::CpuUs) => {
                Unit::Time
            }
            Self::Seconds | Self::Process(_, Used::CpuSeconds) => Unit::Seconds,
            Self::Process(_, Used::Rss) => Unit::Bytes,
            Self::Deliveries(Sum::Rate) | Self::ProfileDeliveries(_, Sum::Rate) => Unit::Rate,
            Self::Deliveries(_) | Self::ProfileDeliveries(..) | Self::Sending(_) | Self::Promise(_) => Unit::Count,
        }
    }

    /// The name already says the unit, so a bare number is clear.
    pub fn says_its_unit(&self) -> bool {
        matches!(self, Self::Process(_, Used::CpuUs | Used::CpuSeconds) | Self::Seconds)
    }

    /// None if the run has none: no arrival, no such process, a promise that was never tried.
    pub fn value(&self, result: &RunResult) -> Option<f64> {
        let profile = |name: &str| result.profiles.iter().find(|profile| profile.name == name);
        match self {
            Self::Latency(..) | Self::ProfileLatency(..) | Self::NearFault(..) => {
                let (latency, point) = self.latency(result)?;
                Some(point.of(latency))
            }
            Self::Deliveries(sum) => Some(sum.of(&result.deliveries)),
            Self::ProfileDeliveries(name, sum) => Some(sum.of(&profile(name)?.deliveries)),
            Self::Sending(Sending::Intended) => Some(result.generator.intended as f64),
            Self::Sending(Sending::Sent) => Some(result.generator.sent as f64),
            Self::Sending(Sending::SentAgain) => Some(result.generator.sent_again as f64),
            Self::Sending(Sending::Late) => Some(result.generator.late as f64),
            Self::Seconds => Some(result.seconds),
            Self::Process(who, used) => {
                let process = result.processes.iter().find(|process| process.who == *who)?;
                match used {
                    Used::CpuUs => process.cpu_us_per_delivery,
                    Used::CpuSeconds => Some(process.cpu_seconds),
                    Used::Rss => Some(process.peak_rss_bytes as f64),
                }
            }
            Self::Promise(name) => {
                let promise = result.promise(name)?;
                // What broke counts even if nothing was counted as tried.
                (promise.tried > 0 || promise.broken > 0).then_some(promise.broken as f64)
            }
        }
    }

    /// The latency that it is a point of; none if it is something else, or if nothing arrived.
    fn latency<'a>(&self, result: &'a RunResult) -> Option<(&'a Latency, Point)> {
        let (latency, point) = match self {
            Self::Latency(Timed::Delivery, point) => (&result.latency, point),
            Self::Latency(Timed::Answer, point) => (&result.answers, point),
            Self::Latency(Timed::RetryLateness, point) => (&result.retry_lateness, point),
            Self::Latency(Timed::SendLateness, point) => (&result.generator.lateness, point),
            Self::ProfileLatency(name, point) => {
                (&result.profiles.iter().find(|profile| profile.name == *name)?.latency, point)
            }
            Self::NearFault(fault, point) => {
                let near = result.near_faults.iter().find(|near| near.fault == *fault)?;
                return Some((&near.latency, *point));
            }
            _ => return None,
        };
        Some((latency.as_ref()?, *point))
    }
}

/// As it is written in a threshold.
impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latency(Timed::Delivery, point) => f.write_str(point.name()),
            Self::Latency(Timed::Answer, point) => write!(f, "answers.{}", point.name()),
            Self::Latency(Timed::RetryLateness, point) => write!(f, "retry_lateness.{}", point.name()),
            Self::Latency(Timed::SendLateness, point) => write!(f, "send_lateness.{}", point.name()),
            Self::NearFault(fault, point) => write!(f, "{}.{}", fault.name(), point.name()),
            Self::ProfileLatency(profile, point) => write!(f, "{profile}.{}", point.name()),
            Self::Deliveries(sum) => f.write_str(sum.name()),
            Self::ProfileDeliveries(profile, sum) => write!(f, "{profile}.{}", sum.name()),
            Self::Sending(sending) => f.write_str(sending.name()),
            Self::Seconds => f.write_str("seconds"),
            Self::Process(who, used) => write!(f, "{who}.{}", used.name()),
            Self::Promise(name) => f.write_str(name),
        }
    }
}

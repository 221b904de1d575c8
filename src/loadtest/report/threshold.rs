//! What a run is asked to keep: `METRIC OP VALUE[UNIT]`, for example `p99<5ms`, `lost==0`, `rate>20000`,
//! `healthy.p99<=8ms`, `herald.rss<150MB`. Pure: reads a threshold before the run, so that a typing error does not cost
//! a run, and compares the result with it.

use std::fmt;

use thiserror::Error;

use super::figure::{Figure, PROCESSES, Point, Sending, Sum, Unit, Used};
use crate::loadtest::{
    result::{RunResult, ThresholdResult},
    scenario::Scenario,
};

/// Shown with every error about the grammar.
const EXAMPLES: &str = "p99<5ms, lost==0, rate>20000, healthy.p99<=8ms or herald.rss<150MB";

/// The names that depend on what a run does and judges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    pub promises: Vec<String>,
    pub profiles: Vec<String>,
}

impl Names {
    /// `promises` are the names of those that the judge judges.
    pub fn of<'a>(scenario: &Scenario, promises: impl IntoIterator<Item = &'a str>) -> Self {
        let mut profiles: Vec<_> =
            scenario.endpoints.profiles.iter().map(|share| share.profile.name().to_owned()).collect();
        if profiles.is_empty() {
            profiles.push("healthy".to_owned());
        }
        profiles.sort();
        profiles.dedup();
        Self { promises: promises.into_iter().map(str::to_owned).collect(), profiles }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ThresholdError {
    #[error("the threshold {0:?} compares nothing; write it like {EXAMPLES}")]
    NoComparison(String),
    #[error(
        "the threshold {threshold:?} names {metric:?}, which is not a figure of this run{guess}; there are {known}"
    )]
    Unknown { threshold: String, metric: String, guess: String, known: String },
    #[error("the threshold {threshold:?} compares with {value:?}, which is {wrong}")]
    Value { threshold: String, value: String, wrong: &'static str },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
    Equal,
}

impl Op {
    /// Longer signs come before those that they begin with.
    const ALL: [(&'static str, Self); 5] = [
        ("<=", Self::LessOrEqual),
        (">=", Self::MoreOrEqual),
        ("==", Self::Equal),
        ("<", Self::Less),
        (">", Self::More),
    ];

    fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Less => value < bound,
            Self::LessOrEqual => value <= bound,
            Self::More => value > bound,
            Self::MoreOrEqual => value >= bound,
            // Only counts are compared this way, and they are whole numbers.
            Self::Equal => value == bound,
        }
    }
}

/// One `--threshold`, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    text: String,
    figure: Figure,
    op: Op,
    /// In the figure's own unit.
    bound: f64,
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Threshold {
    pub fn parse(text: &str, names: &Names) -> Result<Self, ThresholdError> {
        let text = text.trim();
        let split = || {
            let at = text.find(['<', '>', '='])?;
            let (sign, op) = Op::ALL.into_iter().find(|(sign, _)| text[at..].starts_with(sign))?;
            Some((text[..at].trim(), op, text[at + sign.len()..].trim()))
        };
        let (metric, op, value) = split().ok_or_else(|| ThresholdError::NoComparison(text.to_owned()))?;
        let all = Figure::all(&names.promises, &names.profiles);
        let figure = all.iter().find(|figure| figure.to_string() == metric).cloned();
        let figure = figure.ok_or_else(|| unknown(text, metric, &all, names))?;
        let wrong = |wrong| ThresholdError::Value { threshold: text.to_owned(), value: value.to_owned(), wrong };
        if op == Op::Equal && figure.unit() != Unit::Count {
            return Err(wrong("never met exactly by a measurement: use < or >"));
        }
        let bound = bound(value, &figure).map_err(wrong)?;
        Ok(Self { text: text.to_owned(), figure, op, bound })
    }

    /// All of them, or the first error.
    pub fn parse_all<'a>(
        texts: impl IntoIterator<Item = &'a String>,
        names: &Names,
    ) -> Result<Vec<Self>, ThresholdError> {
        texts.into_iter().map(|text| Self::parse(text, names)).collect()
    }

    /// A threshold on a figure that the run does not have is not kept.
    pub fn evaluate(&self, result: &RunResult) -> ThresholdResult {
        let value = self.figure.value(result).filter(|value| value.is_finite());
        let is_kept = value.is_some_and(|value| self.op.holds(value, self.bound));
        ThresholdResult { threshold: self.text.clone(), value, is_kept }
    }
}

/// In the order in which they were given.
pub fn evaluate(thresholds: &[Threshold], result: &RunResult) -> Vec<ThresholdResult> {
    thresholds.iter().map(|threshold| threshold.evaluate(result)).collect()
}

/// The value with the unit of its figure, for people: `4.2 ms`; `none in this run` if there is none.
pub fn shown(kept: &ThresholdResult) -> String {
    let Some(value) = kept.value else { return "none in this run".to_owned() };
    let metric = kept.threshold.split(['<', '>', '=']).next().unwrap_or_default().trim();
    // A result from a file may name a figure that this build does not know: then it is a bare number.
    unit_of(metric).show(value)
}

/// By the last part of the name, which alone tells the kind of the figure.
fn unit_of(metric: &str) -> Unit {
    let names = match metric.split_once('.') {
        Some((owner, _)) if !PROCESSES.contains(&owner) && Point::ALL.iter().all(|point| point.name() != metric) => {
            Names { profiles: vec![owner.to_owned()], ..Names::default() }
        }
        _ => Names::default(),
    };
    let all = Figure::all(&names.promises, &names.profiles);
    all.iter().find(|figure| figure.to_string() == metric).map_or(Unit::Count, Figure::unit)
}

fn unknown(text: &str, metric: &str, all: &[Figure], names: &Names) -> ThresholdError {
    let near = all.iter().map(ToString::to_string).map(|name| (strsim::damerau_levenshtein(&name, metric), name)).min();
    let guess = near.filter(|(far, _)| *far <= 2).map_or_else(String::new, |(_, name)| format!(" (is it {name}?)"));
    let (threshold, metric) = (text.to_owned(), metric.to_owned());
    ThresholdError::Unknown { threshold, metric, guess, known: names.known() }
}

impl Names {
    /// All names, shortened where they are built from parts.
    fn known(&self) -> String {
        let points = Point::ALL.map(Point::name).join(" ");
        let sums = Sum::ALL.map(Sum::name).join(" ");
        let sending = Sending::ALL.map(Sending::name).join(" ");
        let used = Used::ALL.map(Used::name).join("|");
        let mut known = vec![format!("{points} {sums} {sending} seconds")];
        known.push("answers.p50 (of the payment-intents service, and so on)".to_owned());
        known.push("retry_lateness.p50 (and the other percentiles)".to_owned());
        known.push("send_lateness.p50 (and so on)".to_owned());
        known.push(format!("{}.{used}", PROCESSES.join("|")));
        known.push("kill-worker.p50 (near this or another fault, and so on)".to_owned());
        if !self.profiles.is_empty() {
            known.push(format!("{}.p50 (any percentile or count)", self.profiles.join("|")));
        }
        if !self.promises.is_empty() {
            known.push(format!("the promises {}", self.promises.join(" ")));
        }
        known.join(", ")
    }
}

/// In the figure's own unit.
fn bound(text: &str, figure: &Figure) -> Result<f64, &'static str> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let (digits, unit) = (text[..end].replace('_', ""), text[end..].trim());
    let number: f64 = digits.parse().map_err(|_| "no number")?;
    let factor = match (figure.unit(), unit) {
        (Unit::Time, "us" | "µs") => 1.0,
        (Unit::Time, "ms") => 1e3,
        (Unit::Time, "s") => 1e6,
        (Unit::Time | Unit::Seconds, "") if figure.says_its_unit() => 1.0,
        (Unit::Time, "") => return Err("a time without a unit: write us, ms or s behind it"),
        (Unit::Time, _) => return Err("not a time: write us, ms or s behind the number"),
        (Unit::Seconds, "s") => 1.0,
        (Unit::Seconds, "ms") => 1e-3,
        (Unit::Seconds, "min") => 60.0,
        (Unit::Seconds, _) => return Err("not a length of time: write s or min behind the number"),
        (Unit::Bytes, "B") => 1.0,
        (Unit::Bytes, "kB") => 1e3,
        (Unit::Bytes, "MB") => 1e6,
        (Unit::Bytes, "GB") => 1e9,
        (Unit::Bytes, "KiB") => 1024.0,
        (Unit::Bytes, "MiB") => 1024.0 * 1024.0,
        (Unit::Bytes, "GiB") => 1024.0 * 1024.0 * 1024.0,
        (Unit::Bytes, _) => return Err("not a size: write kB, MB, GB, KiB, MiB or GiB behind the number"),
        (Unit::Rate, "" | "/s") => 1.0,
        (Unit::Rate, _) => return Err("not a rate: write a number, with /s or without"),
        (Unit::Count, "") => 1.0,
        (Unit::Count, _) => return Err("not a count: a count has no unit"),
    };
    Ok(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::report::fixture;

    fn names() -> Names {
        let result = fixture::outage();
        Names::of(&result.scenario, result.promises.iter().map(|promise| promise.name.as_str()))
    }

    fn check(text: &str) -> ThresholdResult {
        Threshold::parse(text, &names()).unwrap().evaluate(&fixture::outage())
    }

    #[test]
    fn a_threshold_is_held_against_the_run() {
        let run = fixture::outage();
        let p99 = run.latency.as_ref().unwrap().p99_us;
        assert!(check(&format!("p99<={p99}us")).is_kept);
        assert!(!check(&format!("p99<{p99}us")).is_kept);
        assert!(check(&format!(" p99 > {}ms ", p99 / 1000 - 1)).is_kept);
        assert!(check("p99<60s").is_kept && !check("p99.99<=1us").is_kept);
        assert!(check("lost==0").is_kept && !check("out_of_order==0").is_kept);
        assert!(check("rate>100/s").is_kept && !check("rate>20_000").is_kept);
        assert!(check("healthy.p99<60s").is_kept && check("flaky.dead<10").is_kept);
        assert!(check("retry_lateness.p99<100ms").is_kept && check("late<=3").is_kept);
        assert!(check("herald.cpu_us<60").is_kept && check("redis.cpu_us<12us").is_kept);
        assert!(check("herald.rss<150MB").is_kept && !check("herald.rss<=1MiB").is_kept);
        assert_eq!(check("late==3").value, Some(3.0));
        let near = &run.near_faults[0];
        let (fault, max) = (near.fault.name(), near.latency.max_us);
        assert!(check(&format!("{fault}.max<={max}us")).is_kept && !check(&format!("{fault}.max<{max}us")).is_kept);
        assert_eq!(check("failover.max<3s").value, None);
    }

    #[test]
    fn a_figure_that_the_run_does_not_have_is_not_kept_and_says_so() {
        let mut run = fixture::nothing();
        let of = |run: &RunResult, text: &str| Threshold::parse(text, &names()).unwrap().evaluate(run);
        for text in ["p99<5ms", "healthy.p99<5ms", "retry_lateness.max<1s", "herald.cpu_us<60", "lost==0"] {
            let kept = of(&run, text);
            assert_eq!((kept.value, kept.is_kept), (None, false), "{text}");
            assert_eq!(shown(&kept), "none in this run");
        }
        run.deliveries.rate = f64::NAN;
        assert!(!of(&run, "rate>0").is_kept && of(&run, "rate>0").value.is_none());
    }

    #[test]
    fn what_is_wrong_is_said_before_the_run() {
        let error = |text: &str| Threshold::parse(text, &names()).unwrap_err().to_string();
        for text in ["", "p99", "p99=5ms", "lost"] {
            assert!(error(text).contains("compares nothing"), "{}", error(text));
        }
        assert!(error("p98<5ms").contains("is it p90?") || error("p98<5ms").contains("is it p99?"));
        let unknown = error("lots==0");
        for known in
            ["is it lost?", "p99.99", "rate", "out_of_order", "herald|redis|harness.cpu_us", "flaky|hanging|healthy"]
        {
            assert!(unknown.contains(known), "{known} is not in: {unknown}");
        }
        assert!(error("gone.p99<5ms").contains("not a figure of this run"), "a profile that this scenario has not");
        assert!(error("p99<5").contains("without a unit") && error("p99<5MB").contains("us, ms or s"));
        assert!(error("herald.rss<150").contains("not a size") && error("lost<1s").contains("has no unit"));
        assert!(error("p99<fast").contains("no number") && error("p99<1.2.3s").contains("no number"));
        assert!(error("p99==5ms").contains("never met exactly"));
        assert!(error("p99<-5ms").contains("no number"));
    }

    #[test]
    fn every_figure_that_is_listed_can_be_asked_for() {
        let names = names();
        let figures = Figure::all(&names.promises, &names.profiles);
        assert!(figures.len() > 50);
        for figure in figures {
            let unit = match figure.unit() {
                Unit::Time => "ms",
                Unit::Seconds => "s",
                Unit::Bytes => "MB",
                Unit::Count => "",
                Unit::Rate => "/s",
            };
            let threshold = Threshold::parse(&format!("{figure}<1{unit}"), &names).unwrap();
            assert_eq!(threshold.figure, figure, "two figures have one name");
        }
    }

    #[test]
    fn a_value_is_shown_in_the_unit_of_its_figure() {
        let shown = |threshold: &str, value| {
            super::shown(&ThresholdResult { threshold: threshold.into(), value: Some(value), is_kept: true })
        };
        assert_eq!(shown("p99.9<5ms", 4_200.0), "4.2ms");
        assert_eq!(shown("healthy.p99.9 < 5ms", 4_200.0), "4.2ms");
        assert_eq!(shown("retry_lateness.p99<5ms", 900.0), "900us");
        assert_eq!(shown("herald.rss<150MB", 148e6), "141.1 MiB");
        assert_eq!(shown("rate>20000", 26_000.0), "26 000/s");
        assert_eq!(shown("<script>", 3.0), "3");
    }
}

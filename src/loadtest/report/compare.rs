//! An earlier result against this one. Marks what became worse or better beyond noise; where the two runs did not do the
//! same on the same machine it says what differs and marks nothing.
//!
//! *Noise* of a percentile is what its own samples say: the ranks between which the true percentile lies with 99 % are
//! read off both histograms, and ranges that overlap are no change. On top of that a change must exceed what two runs on
//! one machine differ by anyway.

use std::fmt;

use hdrhistogram::Histogram;

use super::{
    figure::{Figure, Point, Sum, Timed, Unit, Used, Worse},
    text::{self, Colour},
};
use crate::{
    loadtest::{
        latency::LatencyError,
        result::{Latency, RunResult},
    },
    surface::{cell, words},
};

/// Two runs of the same on one machine differ by this much, in parts of 1: neighbours, temperature, placement.
const USUAL: f64 = 0.05;
/// Tails and single values scatter more than sums.
const USUAL_TAIL: f64 = 0.10;
/// Differences below are the timers of the kernel, not Herald.
const LEAST_US: f64 = 50.0;
/// A 99 % range, in standard deviations.
const WIDTH: f64 = 2.576;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Within noise, or nothing says which way is better.
    Same,
    Better,
    Worse,
    /// The runs cannot be compared.
    Unknown,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub figure: String,
    pub before: Option<f64>,
    pub now: Option<f64>,
    /// In parts of 1; none from nothing or from zero.
    pub relative: Option<f64>,
    pub change: Change,
    unit: Unit,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Because of these the figures cannot be held against each other: `redis_version: "7.0.15" before, "8.0" now`.
    pub differences: Vec<String>,
    /// These are shown, and do not matter: another build of Herald is what one compares.
    pub notes: Vec<String>,
    pub rows: Vec<Row>,
}

impl Comparison {
    pub fn regressions(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.change == Change::Worse)
    }
}

/// Results that were read by [`json::read`](super::json::read) have no latency that cannot be read.
pub fn compare(before: &RunResult, now: &RunResult) -> Result<Comparison, LatencyError> {
    let differences = differences(before, now);
    let mut rows = Vec::new();
    for figure in figures(before, now) {
        let (old, new) = (figure.value(before), figure.value(now));
        if old.is_none() && new.is_none() {
            continue;
        }
        let relative = old.zip(new).filter(|(old, _)| *old != 0.0).map(|(old, new)| new / old - 1.0);
        let change = match differences.is_empty() {
            true => change(&figure, before, now)?,
            false => Change::Unknown,
        };
        rows.push(Row { figure: figure.to_string(), before: old, now: new, relative, change, unit: figure.unit() });
    }
    Ok(Comparison { differences, notes: notes(before, now), rows })
}

/// What is worth a row: not each of a hundred names.
fn figures(before: &RunResult, now: &RunResult) -> Vec<Figure> {
    let points = [Point::P50, Point::P90, Point::P99, Point::P999, Point::P9999, Point::Max];
    let mut figures: Vec<_> = points.map(|point| Figure::Latency(Timed::Delivery, point)).into();
    figures.push(Figure::Latency(Timed::RetryLateness, Point::P99));
    figures.extend([Sum::Rate, Sum::Acknowledged, Sum::Dead, Sum::Unfinished, Sum::Duplicates].map(Figure::Deliveries));
    for who in super::figure::PROCESSES {
        figures.extend([Used::CpuUs, Used::Rss].map(|used| Figure::Process(who.to_owned(), used)));
    }
    for profile in &now.profiles {
        figures.extend([Point::P50, Point::P99].map(|point| Figure::ProfileLatency(profile.name.clone(), point)));
    }
    let mut promises: Vec<_> =
        now.promises.iter().chain(&before.promises).map(|promise| promise.name.clone()).collect();
    let mut seen = std::collections::HashSet::new();
    promises.retain(|name| seen.insert(name.clone()));
    figures.extend(promises.into_iter().map(Figure::Promise));
    figures
}

fn change(figure: &Figure, before: &RunResult, now: &RunResult) -> Result<Change, LatencyError> {
    let worse = figure.worse();
    let (Some(old), Some(new)) = (figure.value(before), figure.value(now)) else { return Ok(Change::Same) };
    if worse == Worse::Neither || !is_beyond_noise(figure, old, new) {
        return Ok(Change::Same);
    }
    if let (Some((old, point)), Some((new, _))) = (figure.latency(before), figure.latency(now))
        && overlap(old, new, point)?
    {
        return Ok(Change::Same);
    }
    Ok(if (new > old) == (worse == Worse::More) { Change::Worse } else { Change::Better })
}

fn is_beyond_noise(figure: &Figure, old: f64, new: f64) -> bool {
    let apart = (new - old).abs();
    match (figure, figure.unit()) {
        // A promise is not broken within noise.
        (Figure::Promise(_), _) => apart > 0.0,
        (Figure::Process(..), _) | (_, Unit::Rate) => apart > old.abs() * USUAL,
        (_, Unit::Time) => apart > old.abs() * USUAL_TAIL && apart > LEAST_US,
        _ => apart > old.abs() * USUAL_TAIL,
    }
}

/// Whether both may well be samples of the same percentile.
fn overlap(old: &Latency, new: &Latency, point: Point) -> Result<bool, LatencyError> {
    let (old, new) = (old.histogram()?, new.histogram()?);
    let ranges = range(&old, point).zip(range(&new, point));
    // One value tells nothing about how much a maximum scatters.
    Ok(ranges.is_none_or(|(old, new)| old.0 <= new.1 && new.0 <= old.1))
}

/// Between which values the true percentile lies, by the binomial spread of its rank; none for what is no percentile, or
/// when there are too few samples above it to say where it ends.
fn range(histogram: &Histogram<u64>, point: Point) -> Option<(u64, u64)> {
    if point == Point::Mean {
        let half = WIDTH * histogram.stdev() / (histogram.len() as f64).sqrt();
        return Some(((histogram.mean() - half).max(0.0) as u64, (histogram.mean() + half) as u64));
    }
    let (quantile, many) = (point.quantile()?, histogram.len() as f64);
    let half = WIDTH * (many * quantile * (1.0 - quantile)).sqrt();
    let (low, high) = ((many * quantile - half) / many, (many * quantile + half) / many);
    (high < 1.0 && low > 0.0).then(|| (histogram.value_at_quantile(low), histogram.value_at_quantile(high)))
}

/// What must be the same for the figures to mean the same.
fn differences(before: &RunResult, now: &RunResult) -> Vec<String> {
    let mut found = Vec::new();
    fn differ<T: PartialEq + fmt::Debug>(found: &mut Vec<String>, name: &str, before: &T, now: &T) {
        if before != now {
            found.push(format!("{name}: {before:?} before, {now:?} now"));
        }
    }
    let (old, new) = (&before.environment, &now.environment);
    differ(&mut found, "cpu", &old.cpu, &new.cpu);
    differ(&mut found, "cores", &old.cores, &new.cores);
    // The kernel keeps a little more or less for itself at each start.
    if old.memory_bytes.abs_diff(new.memory_bytes) > old.memory_bytes / 50 {
        differ(&mut found, "memory", &old.memory_bytes, &new.memory_bytes);
    }
    differ(&mut found, "os", &old.os, &new.os);
    differ(&mut found, "kernel", &old.kernel, &new.kernel);
    differ(&mut found, "redis_version", &old.redis_version, &new.redis_version);
    differ(&mut found, "redis_appendfsync", &old.redis_appendfsync, &new.redis_appendfsync);
    differ(&mut found, "build", &old.build, &new.build);
    differ(&mut found, "is_own", &old.is_own, &new.is_own);
    let (old, new) = (&before.scenario, &now.scenario);
    differ(&mut found, "scenario", &old.name, &new.name);
    differ(&mut found, "load", &old.load, &new.load);
    differ(&mut found, "traffic", &old.traffic, &new.traffic);
    differ(&mut found, "endpoints", &old.endpoints, &new.endpoints);
    differ(&mut found, "herald", &old.herald, &new.herald);
    let faults = |result: &RunResult| result.scenario.faults.iter().map(ToString::to_string).collect::<Vec<_>>();
    differ(&mut found, "faults", &faults(before), &faults(now));
    if before.seed != now.seed && now.scenario.faults.iter().any(|fault| fault.at.is_none()) {
        found.push(format!("seed, which the faults' times come from: {} before, {} now", before.seed, now.seed));
    }
    found
}

fn notes(before: &RunResult, now: &RunResult) -> Vec<String> {
    let mut notes = vec![format!("before: Herald {}, {}", before.herald_version, before.started_at)];
    notes.push(format!("now:    Herald {}, {}", now.herald_version, now.started_at));
    if before.seed != now.seed {
        notes.push(format!(
            "the seeds differ ({} before, {} now): the order of what is random does too",
            before.seed, now.seed
        ));
    }
    for (when, result) in [("the earlier run", before), ("this run", now)] {
        if result.generator.late > 0 {
            let late = words::count(result.generator.late, "event", "events");
            notes.push(format!("{when} sent {late} late, which is in its latencies"));
        }
    }
    notes
}

/// For stdout; ends without a line feed.
pub fn text(comparison: &Comparison, colour: Colour) -> String {
    let mut lines = vec![colour.title("Compared with an earlier run")];
    lines.extend(comparison.notes.iter().map(|note| cell(note)));
    if !comparison.differences.is_empty() {
        lines.push(String::new());
        lines.push(
            colour.bad("These runs did not do the same on the same machine, so nothing is called better or worse:"),
        );
        lines.extend(comparison.differences.iter().map(|difference| format!("  {}", cell(difference))));
    }
    lines.push(String::new());
    let mut table = text::headed(&["figure", "before", "now", "change", ""], &[1, 2, 3]);
    for row in &comparison.rows {
        let value = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| row.unit.show(value));
        table.add_row([cell(&row.figure), value(row.before), value(row.now), row.percent(), row.word().to_owned()]);
    }
    lines.extend(text::shown(&table).lines().map(|line| match line {
        worse if worse.ends_with("WORSE") => colour.bad(worse),
        better if better.ends_with("better") => colour.good(better),
        line => line.to_owned(),
    }));
    if comparison.differences.is_empty() {
        lines.push(String::new());
        lines.push(match comparison.regressions().count() as u64 {
            0 => "Nothing became worse beyond noise.".to_owned(),
            many => colour.bad(&format!("{} became worse beyond noise.", words::count(many, "figure", "figures"))),
        });
    }
    lines.join("\n")
}

impl Row {
    /// `+12.4 %`.
    pub fn percent(&self) -> String {
        self.relative.map_or_else(String::new, |relative| format!("{:+.1} %", relative * 100.0))
    }

    pub fn word(&self) -> &'static str {
        match self.change {
            Change::Same | Change::Unknown => "",
            Change::Better => "better",
            Change::Worse => "WORSE",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::loadtest::{latency, report::fixture};

    fn change_of(comparison: &Comparison, figure: &str) -> Change {
        comparison.rows.iter().find(|row| row.figure == figure).unwrap().change
    }

    fn latencies(values_us: impl IntoIterator<Item = u64>) -> Option<Latency> {
        let mut all = latency::histogram();
        values_us.into_iter().for_each(|us| latency::record(&mut all, Duration::from_micros(us)));
        Latency::of(&all)
    }

    #[test]
    fn a_run_is_no_worse_than_itself() {
        let run = fixture::outage();
        let comparison = compare(&run, &run).unwrap();
        assert!(comparison.differences.is_empty() && comparison.rows.len() > 25);
        assert!(comparison.rows.iter().all(|row| row.change == Change::Same));
        assert!(text(&comparison, Colour::Never).contains("Nothing became worse beyond noise."));
    }

    #[test]
    fn another_sample_of_the_same_is_within_noise() {
        let run = |seed| fixture::run(&fixture::Shape { seconds: 30, rate: 400.0, faults: vec![], seed });
        for seed in 0..20 {
            let comparison = compare(&run(seed), &run(seed + 1000)).unwrap();
            let tails = ["p50", "p90", "p99", "p99.9", "p99.99", "max"].map(|figure| change_of(&comparison, figure));
            assert_eq!(tails, [Change::Same; 6], "seed {seed}: {}", text(&comparison, Colour::Never));
        }
    }

    #[test]
    fn what_became_worse_or_better_is_marked() {
        let before = fixture::outage();
        let mut now = before.clone();
        let old = before.latency.as_ref().unwrap().histogram().unwrap();
        now.latency = latencies(old.iter_recorded().flat_map(|step| {
            let us = step.value_iterated_to() * 3 / 2;
            (0..step.count_at_value()).map(move |_| us)
        }));
        now.deliveries.rate *= 0.9;
        now.processes[0].cpu_us_per_delivery = Some(20.0);
        now.promises[0].broken = 1;
        let comparison = compare(&before, &now).unwrap();
        for (figure, expected) in [
            ("p50", Change::Worse),
            ("p99", Change::Worse),
            ("max", Change::Same),
            ("rate", Change::Worse),
            ("herald.cpu_us", Change::Better),
            ("redis.cpu_us", Change::Same),
            ("lost", Change::Worse),
            ("out_of_order", Change::Same),
        ] {
            assert_eq!(change_of(&comparison, figure), expected, "{figure}");
        }
        let text = text(&comparison, Colour::Never);
        assert!(text.contains("WORSE") && text.contains("+50.") && text.contains("-10.0 %"), "{text}");
    }

    #[test]
    fn a_tail_of_few_samples_proves_nothing() {
        let (mut before, mut now) = (fixture::short(), fixture::short());
        before.latency = latencies((0..100).map(|at| if at < 98 { 1_000 } else { 5_000 }));
        now.latency = latencies((0..100).map(|at| if at < 98 { 1_000 } else { 50_000 }));
        assert_eq!(change_of(&compare(&before, &now).unwrap(), "p99"), Change::Same);
        before.latency = latencies((0..100_000).map(|at| if at % 100 < 98 { 1_000 } else { 5_000 }));
        now.latency = latencies((0..100_000).map(|at| if at % 100 < 98 { 1_000 } else { 50_000 }));
        assert_eq!(change_of(&compare(&before, &now).unwrap(), "p99"), Change::Worse);
    }

    #[test]
    fn runs_that_did_not_do_the_same_are_not_held_against_each_other() {
        let (before, mut now) = (fixture::outage(), fixture::outage());
        now.environment.redis_version = "8.0".to_owned();
        now.scenario.traffic.body_bytes = 60_000;
        now.deliveries.rate = 1.0;
        let comparison = compare(&before, &now).unwrap();
        assert_eq!(comparison.differences.len(), 2, "{:?}", comparison.differences);
        assert!(comparison.rows.iter().all(|row| row.change == Change::Unknown));
        let text = text(&comparison, Colour::Never);
        assert!(text.contains(r#"redis_version: "7.0.15" before, "8.0" now"#), "{text}");
        assert!(!text.contains("WORSE") && !text.contains("Nothing became worse"));
    }

    #[test]
    fn what_only_one_run_has_is_shown_and_not_judged() {
        let mut before = fixture::outage();
        before.latency = None;
        let comparison = compare(&before, &fixture::outage()).unwrap();
        assert_eq!(change_of(&comparison, "p99"), Change::Same);
        assert!(comparison.rows[0].before.is_none() && comparison.rows[0].now.is_some());
        assert!(
            compare(&fixture::nothing(), &fixture::nothing()).unwrap().rows.iter().all(|row| row.relative.is_none())
        );
    }
}

//! What happened over time: rates, latencies and failures, with the faults as bands behind them.

use super::plot::{Plot, Scale, WIDTH, clock_ticks};
use crate::{
    loadtest::result::{FaultMark, RunResult, Second},
    surface::words,
};

/// More points than this are more than a screen has pixels for; so the page of an hour stays small.
const MOST_POINTS: usize = 300;

/// A letter of a fault's name is at most this wide, as a part of [`WIDTH`]; the frame is a little narrower than that.
const FLAG_LETTER: f64 = 6.4;

/// Several seconds as one point.
#[derive(Debug, Clone, PartialEq)]
struct Bucket {
    from: f64,
    to: f64,
    /// Each second.
    intended: f64,
    sent: f64,
    acknowledged: f64,
    failed: f64,
    /// The median of the seconds' medians; the worst of the other percentiles.
    p50_us: Option<u64>,
    p99_us: Option<u64>,
    max_us: Option<u64>,
}

impl Bucket {
    fn of(seconds: &[Second]) -> Self {
        let (from, many) = (f64::from(seconds[0].at), seconds.len() as f64);
        let mean = |of: fn(&Second) -> u64| seconds.iter().map(of).map(|value| value as f64).sum::<f64>() / many;
        let mut medians: Vec<_> = seconds.iter().filter_map(|second| second.p50_us).collect();
        medians.sort_unstable();
        Self {
            from,
            to: seconds.last().map_or(from, |last| f64::from(last.at)) + 1.0,
            intended: mean(|second| second.intended),
            sent: mean(|second| second.sent),
            acknowledged: mean(|second| second.acknowledged),
            failed: mean(|second| second.failed),
            p50_us: medians.get(medians.len() / 2).copied(),
            p99_us: seconds.iter().filter_map(|second| second.p99_us).max(),
            max_us: seconds.iter().filter_map(|second| second.max_us).max(),
        }
    }

    fn middle(&self) -> f64 {
        (self.from + self.to) / 2.0
    }

    fn says(&self) -> String {
        let time = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), words::time_us);
        format!(
            "{}: intended {}, sent {}, acknowledged {}, failed {}; p50 {}, p99 {}, max {}",
            words::seconds(self.from),
            words::rate(self.intended),
            words::rate(self.sent),
            words::rate(self.acknowledged),
            words::rate(self.failed),
            time(self.p50_us),
            time(self.p99_us),
            time(self.max_us)
        )
    }
}

pub(super) struct Series<'a> {
    buckets: Vec<Bucket>,
    faults: &'a [FaultMark],
    until: f64,
}

impl<'a> Series<'a> {
    pub(super) fn of(result: &'a RunResult) -> Self {
        let each = result.series.len().div_ceil(MOST_POINTS).max(1);
        let buckets: Vec<_> = result.series.chunks(each).map(Bucket::of).collect();
        let until = buckets.last().map_or(1.0, |last| last.to);
        Self { buckets, faults: &result.faults, until }
    }

    fn points(&self, of: impl Fn(&Bucket) -> Option<f64>) -> Vec<(f64, Option<f64>)> {
        self.buckets.iter().map(|bucket| (bucket.middle(), of(bucket))).collect()
    }

    fn frame(&self, name: &str, height: f64, y: Scale, label: impl Fn(f64) -> String) -> Plot {
        let x = Scale::Linear { from: 0.0, to: self.until };
        let ticks = clock_ticks(self.until);
        let plot = Plot::new(name, height, x, y).y_axis(label).x_axis(&ticks, clock);
        self.with_faults(plot)
    }

    fn with_faults(&self, mut plot: Plot) -> Plot {
        let mut free = f64::NEG_INFINITY;
        for mark in self.faults {
            let (from, to, name) = (words::seconds(mark.at), words::seconds(mark.until), mark.fault.name());
            plot = plot.band("fault", mark.at, mark.until, &format!("{name} from {from} to {to}"));
            // Names that would run into each other are left out: the table of faults has them all.
            if mark.at >= free {
                plot = plot.flag("flag", mark.at, name);
                let room = (name.len() as f64 + 1.0) * FLAG_LETTER;
                free = mark.at + room / WIDTH * self.until;
            }
        }
        plot
    }

    fn finish(&self, mut plot: Plot) -> String {
        if self.buckets.is_empty() {
            return plot.empty("no second of this run was recorded").finish();
        }
        for bucket in &self.buckets {
            plot = plot.hover(bucket.from, bucket.to, &bucket.says());
        }
        plot.finish()
    }

    pub(super) fn rates(&self) -> String {
        let values = self.buckets.iter();
        let most = values.map(|bucket| bucket.intended.max(bucket.sent).max(bucket.acknowledged).max(bucket.failed));
        let y = Scale::up_to(most.fold(0.0, f64::max));
        let plot = self.frame("Rate over time", 300.0, y, words::decimal);
        let acknowledged = self.points(|bucket| Some(bucket.acknowledged));
        let plot = plot
            .area("acknowledged", &acknowledged)
            .line("acknowledged", &acknowledged)
            .line("sent", &self.points(|bucket| Some(bucket.sent)))
            .line("intended", &self.points(|bucket| Some(bucket.intended)))
            .line("failed", &self.points(|bucket| Some(bucket.failed)));
        self.finish(plot)
    }

    pub(super) fn latencies(&self) -> String {
        let all = |bucket: &Bucket| [bucket.p50_us, bucket.p99_us, bucket.max_us];
        let y = Scale::powers(self.buckets.iter().flat_map(all).flatten().map(|us| us as f64));
        let points = |of: fn(&Bucket) -> Option<u64>| self.points(|bucket| of(bucket).map(|us| us as f64));
        let plot = self.frame("Latency over time", 300.0, y, words::time);
        let plot = plot
            .line("max", &points(|bucket| bucket.max_us))
            .line("p99", &points(|bucket| bucket.p99_us))
            .line("p50", &points(|bucket| bucket.p50_us));
        self.finish(plot)
    }

    pub(super) fn failures(&self) -> String {
        let y = Scale::up_to(self.buckets.iter().map(|bucket| bucket.failed).fold(0.0, f64::max));
        let mut plot = self.frame("Failed requests over time", 170.0, y, words::decimal);
        for bucket in &self.buckets {
            plot = plot.column("failed", bucket.from, bucket.to, bucket.failed);
        }
        let is_quiet = self.buckets.iter().all(|bucket| bucket.failed == 0.0);
        self.finish(if is_quiet && !self.buckets.is_empty() { plot.empty("no request failed") } else { plot })
    }
}

/// `45s`, `1:30`, `1:02:00`.
fn clock(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => words::seconds(seconds),
        60..3600 => format!("{}:{:02}", whole / 60, whole % 60),
        _ => format!("{}:{:02}:{:02}", whole / 3600, whole % 3600 / 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::report::fixture;

    #[test]
    fn a_long_run_is_drawn_in_fewer_points_that_hide_no_peak() {
        let mut run = fixture::long();
        run.series[333].max_us = Some(77_000_000);
        let series = Series::of(&run);
        assert_eq!(series.buckets.len(), 300);
        assert_eq!((series.buckets[0].to, series.until), (2.0, 600.0));
        assert!(series.buckets.iter().any(|bucket| bucket.max_us == Some(77_000_000)));
        let sum: f64 = series.buckets.iter().map(|bucket| bucket.intended * 2.0).sum();
        assert!((sum - run.generator.intended as f64).abs() < 1.0);
    }

    #[test]
    fn a_run_without_a_second_has_plots_that_say_so() {
        let run = fixture::nothing();
        let series = Series::of(&run);
        for plot in [series.rates(), series.latencies(), series.failures()] {
            assert!(plot.contains("no second of this run was recorded"));
        }
    }

    #[test]
    fn times_on_the_axis_are_those_of_a_clock() {
        assert_eq!([0.5, 45.0, 90.0, 3_720.0].map(clock), ["500ms", "45s", "1:30", "1:02:00"]);
    }
}

//! How latencies are distributed: the percentile spectrum of the whole run and of each profile, and the profiles
//! compared.

use hdrhistogram::Histogram;

use super::plot::{Plot, Scale};
use crate::{
    loadtest::{
        latency::LatencyError,
        result::{Latency, RunResult},
    },
    surface::words,
};

/// Colours of the page; further profiles use them again, dashed.
pub(super) const COLOURS: usize = 8;
/// The rightmost percentile is 99.99 %: one of ten thousand.
const TAIL: f64 = 10_000.0;
const STEPS_PER_POWER: u32 = 40;

/// Each with its name and class, the whole run first.
pub(super) fn lines(result: &RunResult) -> Vec<(String, String, Option<&Latency>)> {
    let profiles = result.profiles.iter().enumerate();
    let profiles = profiles.map(|(place, profile)| (profile.name.clone(), class(place), profile.latency.as_ref()));
    std::iter::once(("all".to_owned(), "all".to_owned(), result.latency.as_ref())).chain(profiles).collect()
}

pub(super) fn class(place: usize) -> String {
    let dashed = if place >= COLOURS { " dashed" } else { "" };
    format!("c{}{dashed}", place % COLOURS)
}

/// The classic plot of HDR histograms: each step to the right is a rarer event.
pub(super) fn spectrum(result: &RunResult) -> Result<String, LatencyError> {
    let mut curves = Vec::new();
    for (_, class, latency) in lines(result) {
        if let Some(latency) = latency {
            curves.push((class, curve(&latency.histogram()?)));
        }
    }
    let values = curves.iter().flat_map(|(_, points)| points.iter().filter_map(|(_, us)| *us));
    let y = Scale::powers(values);
    let x = Scale::Log { from: 1.0, to: TAIL };
    let ticks = [1.0, 2.0, 4.0, 10.0, 20.0, 100.0, 200.0, 1_000.0, TAIL];
    let mut plot = Plot::new("Percentile spectrum", 340.0, x, y).y_axis(words::time).x_axis(&ticks, percent);
    if curves.is_empty() {
        plot = plot.empty("nothing arrived");
    }
    // The whole run is drawn last, over the others.
    for (class, points) in curves.iter().rev() {
        plot = plot.line(class, points);
    }
    Ok(plot.finish())
}

/// To the right as far as there are samples: the percentile of one in a thousand needs a thousand.
fn curve(histogram: &Histogram<u64>) -> Vec<(f64, Option<f64>)> {
    let until = (histogram.len() as f64).clamp(1.0, TAIL);
    let steps = (until.log10() * f64::from(STEPS_PER_POWER)).floor() as u32;
    let rarities = (0..=steps).map(|step| 10_f64.powf(f64::from(step) / f64::from(STEPS_PER_POWER)));
    rarities.map(|rarity| (rarity, Some(histogram.value_at_quantile(1.0 - 1.0 / rarity) as f64))).collect()
}

/// `99.9 %` from 1 in 1 000.
fn percent(rarity: f64) -> String {
    let text = format!("{:.2}", 100.0 - 100.0 / rarity);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A row for each profile: from the median over the 99th percentile to the slowest.
pub(super) fn beside_each_other(result: &RunResult) -> String {
    const ROW: f64 = 38.0;
    let lines = lines(result);
    let known: Vec<_> = lines.iter().filter_map(|(name, class, latency)| Some((name, class, (*latency)?))).collect();
    let values = known.iter().flat_map(|(_, _, latency)| [latency.p50_us, latency.max_us]).map(|us| us as f64);
    let x = Scale::powers(values);
    let rows = known.len().max(2) as f64;
    let y = Scale::Linear { from: 0.0, to: rows };
    let mut plot =
        Plot::new("Latency of each profile", rows * ROW + 44.0, x, y).wide_left().x_axis(&x.ticks(), words::time);
    if known.is_empty() {
        return plot.empty("nothing arrived").finish();
    }
    for (place, (name, class, latency)) in known.iter().enumerate() {
        let middle = rows - place as f64 - 0.5;
        plot = plot.row_name(middle, name);
        let us = [latency.p50_us, latency.p99_us, latency.max_us].map(|us| us as f64);
        plot = plot.line(&format!("{class} thin"), &[(us[0], Some(middle)), (us[2], Some(middle))]);
        plot = plot.line(&format!("{class} thick"), &[(us[0], Some(middle)), (us[1], Some(middle))]);
        for (name, us, radius) in [("max", us[2], 3.0), ("p99", us[1], 4.5), ("p50", us[0], 6.0)] {
            plot = plot.dot(class, us, middle, radius, Some(&format!("{name} {}", words::time(us))));
        }
    }
    plot.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::report::fixture;

    #[test]
    fn percentiles_are_named_by_how_rare_they_leave_the_rest() {
        let names = [1.0, 2.0, 4.0, 10.0, 1_000.0, TAIL].map(percent);
        assert_eq!(names, ["0 %", "50 %", "75 %", "90 %", "99.9 %", "99.99 %"]);
    }

    #[test]
    fn a_curve_goes_no_further_than_its_samples() {
        let curve_of = |run: &RunResult| curve(&run.latency.as_ref().unwrap().histogram().unwrap());
        let long = curve_of(&fixture::outage());
        assert!((long.last().unwrap().0 - TAIL).abs() < 1.0);
        assert!(long.windows(2).all(|pair| pair[0].1 <= pair[1].1), "a percentile falls");
        assert_eq!(curve_of(&fixture::single()).len(), 1);
    }
}

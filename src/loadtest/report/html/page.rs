//! The page as a whole: where everything stands. How it looks is decided by `page.html`, `section.html`, `table.html`
//! and `page.css`.

use askama::Template;

use super::{
    PageError,
    series::Series,
    spectrum::{self, beside_each_other, lines},
    tables::{self, Table},
};
use crate::{
    loadtest::{
        report::text::{Verdict, verdict},
        result::RunResult,
    },
    surface::words,
};

#[derive(Template)]
#[template(path = "loadtest/report/html/page.html")]
struct Page<'a> {
    name: &'a str,
    description: &'a str,
    verdict: String,
    verdict_class: &'static str,
    tiles: Vec<(&'static str, String)>,
    sections: Vec<Section>,
    costs: Vec<Section>,
    origin: Section,
}

#[derive(Template, Default)]
#[template(path = "loadtest/report/html/section.html")]
struct Section {
    title: &'static str,
    says: &'static str,
    figure: Option<Figure>,
    table: Option<Table>,
    /// The lines of the file.
    scenario: Vec<String>,
}

#[derive(Default)]
struct Figure {
    /// Classes and names.
    legend: Vec<(String, String)>,
    svg: String,
}

impl Figure {
    fn new(legend: &[(&str, &str)], svg: String) -> Self {
        let legend = legend.iter().map(|(class, name)| {
            let dashed = if *class == "intended" || class.contains("dashed") { " dashed" } else { "" };
            (format!("{class}{dashed}"), (*name).to_owned())
        });
        Self { legend: legend.collect(), svg }
    }
}

impl Section {
    fn of_table(title: &'static str, table: Table) -> Self {
        Self { title, table: Some(table), ..Self::default() }
    }

    fn of_figure(title: &'static str, says: &'static str, figure: Figure) -> Self {
        Self { title, says, figure: Some(figure), ..Self::default() }
    }
}

pub(super) fn page(result: &RunResult) -> Result<String, PageError> {
    let mut sections = proof(result);
    sections.extend(over_time(result));
    sections.extend(distribution(result)?);
    let page = Page {
        name: &result.scenario.name,
        description: &result.scenario.description,
        verdict: verdict(result),
        verdict_class: match Verdict::of(result) {
            Verdict::Kept => "good",
            Verdict::NothingProven => "quiet",
            Verdict::NotKept => "bad",
        },
        tiles: tiles(result),
        sections,
        costs: costs(result),
        origin: origin(result),
    };
    Ok(page.render()?)
}

fn tiles(result: &RunResult) -> Vec<(&'static str, String)> {
    let mut tiles = vec![
        ("Acknowledged", words::number(result.deliveries.acknowledged)),
        ("Rate", words::rate(result.deliveries.rate)),
    ];
    if let Some(latency) = &result.latency {
        let points = [("p50", latency.p50_us), ("p99", latency.p99_us), ("p99.99", latency.p9999_us)];
        tiles.extend(points.map(|(name, us)| (name, words::time_us(us))));
    }
    let process = |who: &str| result.processes.iter().find(|process| process.who == who);
    if let Some(herald) = process("herald") {
        tiles.extend(herald.cpu_us_per_delivery.map(|us| ("Herald CPU/delivery", words::time(us))));
        tiles.push(("Herald memory", words::bytes(herald.peak_rss_bytes)));
    }
    tiles
}

fn proof(result: &RunResult) -> Vec<Section> {
    let mut sections = vec![Section::of_table("Promises", tables::promises(result))];
    if !result.thresholds.is_empty() {
        sections.push(Section::of_table("Thresholds", tables::thresholds(result)));
    }
    sections
}

fn over_time(result: &RunResult) -> Vec<Section> {
    let series = Series::of(result);
    let fault: &[_] = if result.faults.is_empty() { &[] } else { &[("band", "fault")] };
    let with_faults = |entries: &[(&'static str, &'static str)]| [entries, fault].concat();
    let rates = with_faults(&[
        ("intended", "events intended"),
        ("sent", "events sent"),
        ("acknowledged", "deliveries acknowledged"),
        ("failed", "requests failed"),
    ]);
    let latencies = with_faults(&[("p50", "p50"), ("p99", "p99"), ("max", "slowest")]);
    let failures = with_faults(&[("failed", "failed")]);
    let mut sections = vec![
        Section::of_figure(
            "Rate",
            "Each second. One event is a delivery for each endpoint of its account.",
            Figure::new(&rates, series.rates()),
        ),
        Section::of_figure(
            "Latency over time",
            "From an event's intended time to its first arrival; the axis is logarithmic.",
            Figure::new(&latencies, series.latencies()),
        ),
        Section::of_figure(
            "Failed requests",
            "Each second: answered with anything but 2xx, or not at all.",
            Figure::new(&failures, series.failures()),
        ),
    ];
    if !result.faults.is_empty() {
        let says = "What was broken on purpose, in seconds since the load began.";
        sections.push(Section { says, ..Section::of_table("Faults", tables::faults(result)) });
    }
    if !result.near_faults.is_empty() {
        let says = "From the first try to send an event to its arrival at a healthy receiver: of all that was sent while such a fault held, or while Herald recovered from it.";
        sections.push(Section { says, ..Section::of_table("Near faults", tables::near_faults(result)) });
    }
    sections
}

fn distribution(result: &RunResult) -> Result<Vec<Section>, PageError> {
    let lines = lines(result);
    let known = lines.iter().filter(|(_, _, latency)| latency.is_some());
    let legend: Vec<_> = known.map(|(name, class, _)| (class.as_str(), name.as_str())).collect();
    let says =
        "Each line to the right is rarer: at 99.9 % one delivery of a thousand is slower. Both axes are logarithmic.";
    let table = (!legend.is_empty()).then(|| tables::percentiles(result));
    let figure = Figure::new(&legend, spectrum::spectrum(result)?);
    let mut sections = vec![Section { table, ..Section::of_figure("Percentiles", says, figure) }];
    if !result.profiles.is_empty() {
        let says = "By how the receivers behave: the bar reaches from the median to the 99th percentile, the line to the slowest.";
        let figure = Figure::new(&[], beside_each_other(result));
        let table = Some(tables::profiles(result));
        sections.push(Section { table, ..Section::of_figure("Receivers", says, figure) });
    }
    if !result.requests.is_empty() {
        let says = "What merchants asked for, and how the service answered. In doubt is what nobody answered.";
        sections.push(Section { says, ..Section::of_table("Requests", tables::requests(result)) });
    }
    Ok(sections)
}

fn costs(result: &RunResult) -> Vec<Section> {
    let mut sections = vec![Section::of_table("Sums", tables::sums(result))];
    if !result.processes.is_empty() {
        sections.push(Section::of_table("Processes", tables::processes(result)));
    }
    sections
}

fn origin(result: &RunResult) -> Section {
    let scenario = toml::to_string_pretty(&result.scenario).unwrap_or_else(|error| format!("not shown: {error}"));
    // Line by line, because characters that steer a display become blanks, and so would a line feed.
    let scenario = scenario.lines().map(str::to_owned).collect();
    Section { scenario, ..Section::of_table("This run", tables::environment(result)) }
}

#[cfg(test)]
mod tests {
    use crate::loadtest::{report::fixture, scenario::Scenario};

    #[test]
    fn the_scenario_on_the_page_can_be_run_again() {
        let scenario = fixture::outage().scenario;
        let text = toml::to_string_pretty(&scenario).unwrap();
        assert_eq!(toml::from_str::<Scenario>(&text).unwrap(), scenario);
    }
}

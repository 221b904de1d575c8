//! The page as a whole: what stands where.

use super::{
    escaped,
    series::Series,
    spectrum::{self, beside_each_other, lines},
    tables,
};
use crate::{
    loadtest::{
        latency::LatencyError,
        report::text::{Verdict, verdict},
        result::RunResult,
    },
    surface::words,
};

const STYLE: &str = include_str!("page.css");

pub(super) fn page(result: &RunResult) -> Result<String, LatencyError> {
    let title = format!("{} – herald loadtest", escaped(&result.scenario.name));
    let mut body = head(result);
    body.push_str(&proof(result));
    body.push_str(&over_time(result));
    body.push_str(&distribution(result)?);
    body.push_str(&costs(result));
    body.push_str(&origin(result));
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    ))
}

fn section(title: &str, says: &str, content: &str) -> String {
    let says = if says.is_empty() { String::new() } else { format!("<p>{}</p>", escaped(says)) };
    format!("<section><h2>{}</h2>{says}{content}</section>\n", escaped(title))
}

fn head(result: &RunResult) -> String {
    let (name, description) = (escaped(&result.scenario.name), escaped(&result.scenario.description));
    let class = match Verdict::of(result) {
        Verdict::Kept => "good",
        Verdict::NothingProven => "quiet",
        Verdict::NotKept => "bad",
    };
    let verdict = escaped(&verdict(result));
    format!(
        "<header><h1>{name}</h1><p>{description}</p><div class=\"verdict {class}\">{verdict}</div></header>\n{}",
        tiles(result)
    )
}

fn tiles(result: &RunResult) -> String {
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
    let tiles = tiles.iter().map(|(name, text)| {
        format!(r#"<div class="tile"><span>{}</span><b>{}</b></div>"#, escaped(name), escaped(text))
    });
    format!("<div class=\"tiles\">{}</div>\n", tiles.collect::<String>())
}

fn proof(result: &RunResult) -> String {
    let mut html = section("Promises", "", &tables::promises(result));
    if !result.thresholds.is_empty() {
        html.push_str(&section("Thresholds", "", &tables::thresholds(result)));
    }
    html
}

fn legend(entries: &[(&str, &str)]) -> String {
    let entries = entries.iter().map(|(class, name)| {
        let dashed = if *class == "intended" || class.contains("dashed") { "dashed" } else { "" };
        format!(r#"<li><i class="{class} {dashed}"></i>{}</li>"#, escaped(name))
    });
    format!(r#"<ul class="legend">{}</ul>"#, entries.collect::<String>())
}

fn figure(entries: &[(&str, &str)], svg: &str) -> String {
    format!("<figure>{}{svg}</figure>", legend(entries))
}

fn over_time(result: &RunResult) -> String {
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
    let mut html = section(
        "Rate",
        "Each second. One event is a delivery for each endpoint of its account.",
        &figure(&rates, &series.rates()),
    );
    let says = "From an event's intended time to its first arrival; the axis is logarithmic.";
    html.push_str(&section("Latency over time", says, &figure(&latencies, &series.latencies())));
    let says = "Each second: answered with anything but 2xx, or not at all.";
    html.push_str(&section(
        "Failed requests",
        says,
        &figure(&with_faults(&[("failed", "failed")]), &series.failures()),
    ));
    if !result.faults.is_empty() {
        html.push_str(&section(
            "Faults",
            "What was broken on purpose, in seconds since the load began.",
            &tables::faults(result),
        ));
    }
    html
}

fn distribution(result: &RunResult) -> Result<String, LatencyError> {
    let lines = lines(result);
    let known = lines.iter().filter(|(_, _, latency)| latency.is_some());
    let entries: Vec<_> = known.map(|(name, class, _)| (class.as_str(), name.as_str())).collect();
    let says =
        "Each line to the right is rarer: at 99.9 % one delivery of a thousand is slower. Both axes are logarithmic.";
    let table = if entries.is_empty() { String::new() } else { tables::percentiles(result) };
    let content = format!("{}{table}", figure(&entries, &spectrum::spectrum(result)?));
    let mut html = section("Percentiles", says, &content);
    if !result.profiles.is_empty() {
        let says = "By how the receivers behave: the bar reaches from the median to the 99th percentile, the line to the slowest.";
        let content = format!("<figure>{}</figure>{}", beside_each_other(result), tables::profiles(result));
        html.push_str(&section("Receivers", says, &content));
    }
    Ok(html)
}

fn costs(result: &RunResult) -> String {
    let sums = section("Sums", "", &tables::sums(result));
    let processes = match result.processes.is_empty() {
        true => String::new(),
        false => section("Processes", "", &tables::processes(result)),
    };
    format!("<div class=\"pair\">{sums}{processes}</div>\n")
}

fn origin(result: &RunResult) -> String {
    let scenario = toml::to_string_pretty(&result.scenario).unwrap_or_else(|error| format!("not shown: {error}"));
    // Line by line: what steers a display becomes a blank, and a line feed would.
    let scenario: Vec<_> = scenario.lines().map(escaped).collect();
    let content = format!(
        "{}<details><summary>Scenario</summary><pre>{}</pre></details>",
        tables::environment(result),
        scenario.join("\n")
    );
    section("This run", "", &content)
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

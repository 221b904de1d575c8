//! The tables of the page. `table.html` says how they look, and escapes what is in them.

use askama::Template;

use crate::{
    loadtest::{
        report::{
            figure::Point,
            text::{again, machine},
            threshold,
        },
        result::{Latency, RunResult},
    },
    surface::words,
};

#[derive(Template)]
#[template(path = "loadtest/report/html/table.html")]
pub(super) struct Table {
    width: &'static str,
    /// Classes and names.
    columns: Vec<(&'static str, String)>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Default)]
struct Cell {
    class: &'static str,
    text: String,
    is_mark: bool,
    examples: Vec<String>,
}

fn text_cell(text: &str) -> Cell {
    Cell { text: text.to_owned(), ..Cell::default() }
}

fn number_cell(text: String) -> Cell {
    Cell { class: "num", text, ..Cell::default() }
}

fn code(text: &str) -> Cell {
    Cell { class: "code", ..text_cell(text) }
}

fn mark(class: &'static str, text: &str) -> Cell {
    Cell { class, is_mark: true, ..text_cell(text) }
}

/// `columns` with a leading `>` hold numbers.
fn table(columns: &[&str], rows: impl Iterator<Item = Vec<Cell>>) -> Table {
    // A narrow table is not stretched over the whole width.
    let width = if columns.len() <= 3 { "few" } else { "many" };
    let class_of = |column: &&str| match column.strip_prefix('>') {
        Some(name) => ("num", name.to_owned()),
        None => ("", (*column).to_owned()),
    };
    Table { width, columns: columns.iter().map(class_of).collect(), rows: rows.collect() }
}

pub(super) fn promises(result: &RunResult) -> Table {
    table(
        &["", "Promise", ">Tried", ">Broken", "Name"],
        result.promises.iter().map(|promise| {
            let verdict = match (promise.tried, promise.broken) {
                (0, 0) => mark("quiet", "not tried"),
                (_, 0) => mark("good", "kept"),
                _ => mark("bad", "broken"),
            };
            let said = Cell { examples: promise.examples.clone(), ..text_cell(&promise.text) };
            let [tried, broken] = [promise.tried, promise.broken].map(|many| number_cell(words::number(many)));
            vec![verdict, said, tried, broken, code(&promise.name)]
        }),
    )
}

pub(super) fn thresholds(result: &RunResult) -> Table {
    table(
        &["", "Threshold", ">Was"],
        result.thresholds.iter().map(|kept| {
            let verdict = if kept.is_kept { mark("good", "kept") } else { mark("bad", "not kept") };
            vec![verdict, code(&kept.threshold), number_cell(threshold::shown(kept))]
        }),
    )
}

pub(super) fn percentiles(result: &RunResult) -> Table {
    let mut columns = vec!["", ">Count"];
    let names = Point::ALL.map(|point| format!(">{}", point.name()));
    columns.extend(names.iter().map(String::as_str));
    let rows = [
        ("Intended time to first arrival", &result.latency),
        ("Intended time to answer", &result.answers),
        ("Retries, after their time", &result.retry_lateness),
        ("Sending, after its time", &result.generator.lateness),
    ];
    let known = rows.into_iter().filter_map(|(name, latency)| Some((name, latency.as_ref()?)));
    table(
        &columns,
        known.map(|(name, latency): (&str, &Latency)| {
            let mut cells = vec![text_cell(name), number_cell(words::number(latency.count))];
            cells.extend(Point::ALL.map(|point| number_cell(words::time(point.of(latency)))));
            cells
        }),
    )
}

pub(super) fn profiles(result: &RunResult) -> Table {
    table(
        &[
            "Profile",
            ">Endpoints",
            ">Owed",
            ">Acknowledged",
            ">Dead",
            ">Unfinished",
            ">Requests",
            ">p50",
            ">p99",
            ">p99.99",
            ">max",
        ],
        result.profiles.iter().map(|profile| {
            let sums = &profile.deliveries;
            let counts = [profile.endpoints, sums.owed, sums.acknowledged, sums.dead, sums.unfinished, sums.attempts];
            let mut cells = vec![text_cell(&profile.name)];
            cells.extend(counts.map(|many| number_cell(words::number(many))));
            cells.extend([Point::P50, Point::P99, Point::P9999, Point::Max].map(|point| {
                number_cell(
                    profile.latency.as_ref().map_or_else(|| "–".to_owned(), |latency| words::time(point.of(latency))),
                )
            }));
            cells
        }),
    )
}

pub(super) fn requests(result: &RunResult) -> Table {
    table(
        &["Request", ">Asked", ">Done", ">Refused", ">Unavailable", ">Unknown", ">p50", ">p99", ">max"],
        result.requests.iter().map(|one| {
            let counts = [one.asked, one.done, one.refused, one.unavailable, one.unknown];
            let mut cells = vec![text_cell(&one.name)];
            cells.extend(counts.map(|many| number_cell(words::number(many))));
            cells.extend([Point::P50, Point::P99, Point::Max].map(|point| {
                number_cell(
                    one.latency.as_ref().map_or_else(|| "–".to_owned(), |latency| words::time(point.of(latency))),
                )
            }));
            cells
        }),
    )
}

pub(super) fn processes(result: &RunResult) -> Table {
    table(
        &["Process", ">CPU time", ">CPU per delivery", ">Peak memory"],
        result.processes.iter().map(|process| {
            let each = process.cpu_us_per_delivery.map_or_else(|| "–".to_owned(), words::time);
            let memory = words::bytes(process.peak_rss_bytes);
            vec![
                text_cell(&process.who),
                number_cell(words::seconds(process.cpu_seconds)),
                number_cell(each),
                number_cell(memory),
            ]
        }),
    )
}

pub(super) fn faults(result: &RunResult) -> Table {
    table(
        &["Fault", ">From", ">To"],
        result.faults.iter().map(|fault| {
            let [at, until] = [fault.at, fault.until].map(|seconds| number_cell(words::seconds(seconds)));
            vec![text_cell(fault.fault.name()), at, until]
        }),
    )
}

pub(super) fn near_faults(result: &RunResult) -> Table {
    table(
        &["Fault", ">Times", ">Arrivals", ">p50", ">p99", ">max"],
        result.near_faults.iter().map(|near| {
            let mut cells = vec![text_cell(near.fault.name())];
            cells.extend([near.times, near.latency.count].map(|many| number_cell(words::number(many))));
            let points = [Point::P50, Point::P99, Point::Max];
            cells.extend(points.map(|point| number_cell(words::time(point.of(&near.latency)))));
            cells
        }),
    )
}

pub(super) fn sums(result: &RunResult) -> Table {
    let (sums, sending) = (&result.deliveries, &result.generator);
    let rows = [
        ("Events intended", sending.intended),
        ("Events sent", sending.sent),
        ("Events sent again after a lost confirmation", sending.sent_again),
        ("Events sent late by the generator", sending.late),
        ("Deliveries owed", sums.owed),
        ("Deliveries acknowledged", sums.acknowledged),
        ("Dead letters", sums.dead),
        ("Deliveries unfinished", sums.unfinished),
        ("Requests", sums.attempts),
        ("Acknowledged again", sums.duplicates),
    ];
    table(&["", ">"], rows.into_iter().map(|(name, many)| vec![text_cell(name), number_cell(words::number(many))]))
}

pub(super) fn environment(result: &RunResult) -> Table {
    let rows = [
        ("Machine", text_cell(&machine(result))),
        ("Began", text_cell(&result.started_at)),
        ("Took", text_cell(&words::seconds(result.seconds))),
        ("Seed", text_cell(&result.seed.to_string())),
        ("Again", code(&again(result))),
    ];
    table(&["", ""], rows.into_iter().map(|(name, said)| vec![text_cell(name), said]))
}

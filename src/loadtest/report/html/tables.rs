//! The tables of the page.

use std::fmt::Write as _;

use super::escaped;
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

/// A cell, escaped when it is made.
struct Cell {
    class: &'static str,
    text: String,
}

fn text_cell(text: &str) -> Cell {
    Cell { class: "", text: escaped(text) }
}

fn number_cell(text: String) -> Cell {
    Cell { class: "num", text: escaped(&text) }
}

fn mark(class: &'static str, text: &str) -> Cell {
    Cell { class, text: format!(r#"<b class="mark">{}</b>"#, escaped(text)) }
}

/// `columns` with a leading `>` are of numbers.
fn table(columns: &[&str], rows: impl Iterator<Item = Vec<Cell>>) -> String {
    // A narrow table is not torn over the whole width.
    let width = if columns.len() <= 3 { "few" } else { "many" };
    let mut html = format!(r#"<div class="scroll"><table class="{width}"><thead><tr>"#);
    for column in columns {
        let (class, name) = column.strip_prefix('>').map_or(("", *column), |name| ("num", name));
        write!(html, r#"<th class="{class}">{}</th>"#, escaped(name)).expect("a string takes everything");
    }
    html.push_str("</tr></thead><tbody>");
    for row in rows {
        html.push_str("<tr>");
        for Cell { class, text } in row {
            write!(html, r#"<td class="{class}">{text}</td>"#).expect("a string takes everything");
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
    html
}

pub(super) fn promises(result: &RunResult) -> String {
    table(
        &["", "Promise", ">Tried", ">Broken", "Name"],
        result.promises.iter().map(|promise| {
            let verdict = match (promise.tried, promise.broken) {
                (0, 0) => mark("quiet", "not tried"),
                (_, 0) => mark("good", "kept"),
                _ => mark("bad", "broken"),
            };
            let mut said = text_cell(&promise.text);
            for example in &promise.examples {
                write!(said.text, r#"<div class="example">{}</div>"#, escaped(example))
                    .expect("a string takes everything");
            }
            let [tried, broken] = [promise.tried, promise.broken].map(|many| number_cell(words::number(many)));
            vec![verdict, said, tried, broken, Cell { class: "code", text: escaped(&promise.name) }]
        }),
    )
}

pub(super) fn thresholds(result: &RunResult) -> String {
    table(
        &["", "Threshold", ">Was"],
        result.thresholds.iter().map(|kept| {
            let verdict = if kept.is_kept { mark("good", "kept") } else { mark("bad", "not kept") };
            let threshold = Cell { class: "code", text: escaped(&kept.threshold) };
            vec![verdict, threshold, number_cell(threshold::shown(kept))]
        }),
    )
}

pub(super) fn percentiles(result: &RunResult) -> String {
    let mut columns = vec!["", ">Count"];
    let names = Point::ALL.map(|point| format!(">{}", point.name()));
    columns.extend(names.iter().map(String::as_str));
    let rows = [
        ("Intended time to first arrival", &result.latency),
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

pub(super) fn profiles(result: &RunResult) -> String {
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

pub(super) fn processes(result: &RunResult) -> String {
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

pub(super) fn faults(result: &RunResult) -> String {
    table(
        &["Fault", ">From", ">To"],
        result.faults.iter().map(|fault| {
            let [at, until] = [fault.at, fault.until].map(|seconds| number_cell(words::seconds(seconds)));
            vec![text_cell(fault.fault.name()), at, until]
        }),
    )
}

pub(super) fn sums(result: &RunResult) -> String {
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

pub(super) fn environment(result: &RunResult) -> String {
    let rows = [
        ("Machine", text_cell(&machine(result))),
        ("Began", text_cell(&result.started_at)),
        ("Took", text_cell(&words::seconds(result.seconds))),
        ("Seed", text_cell(&result.seed.to_string())),
        ("Again", Cell { class: "code", text: escaped(&again(result)) }),
    ];
    table(&["", ""], rows.into_iter().map(|(name, said)| vec![text_cell(name), said]))
}

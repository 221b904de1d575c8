//! The summary on stdout. Pure text; colours are added only if the caller says that a terminal shows them.

use std::io::{self, IsTerminal};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{figure::Point, threshold};
use crate::{
    loadtest::{
        result::{Deliveries, Latency, Missed, MissedFault, RunResult},
        scenario::Load,
    },
    surface::{cell, words},
};

/// Whether words are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Never,
    Always,
}

impl Colour {
    /// On a terminal, unless `NO_COLOR` says otherwise.
    pub fn of_stdout() -> Self {
        let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        match io::stdout().is_terminal() && !is_refused {
            true => Self::Always,
            false => Self::Never,
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Always => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Never => text.to_owned(),
        }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn title(self, text: &str) -> String {
        self.paint("1", text)
    }
}

/// Everything, in sections with an empty line between; ends without a line feed.
pub fn summary(result: &RunResult, colour: Colour) -> String {
    let mut parts = vec![head(result, colour), promises(result, colour)];
    parts.extend(examples(result, colour));
    parts.push(section("Deliveries", colour, &deliveries(result)));
    parts.push(latencies(result, colour));
    parts.extend(near_faults(result, colour));
    parts.extend(profiles(result, colour));
    parts.extend(requests(result, colour));
    parts.extend(goodput(result, colour));
    parts.extend(processes(result, colour));
    parts.extend(thresholds(result, colour));
    parts.push(tail(result, colour));
    parts.join("\n\n")
}

/// The verdict on a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Kept,
    /// Nothing was broken, because nothing was tried.
    NothingProven,
    NotKept,
}

impl Verdict {
    pub fn of(result: &RunResult) -> Self {
        match (result.is_kept(), result.promises.iter().any(|promise| promise.tried > 0)) {
            (false, _) => Self::NotKept,
            (true, false) => Self::NothingProven,
            (true, true) => Self::Kept,
        }
    }
}

/// One line: what was kept and what was not.
pub fn verdict(result: &RunResult) -> String {
    let broken: Vec<_> = result.promises.iter().filter(|promise| promise.broken > 0).collect();
    let missed = result.thresholds.iter().filter(|threshold| !threshold.is_kept).count() as u64;
    let tried = result.promises.iter().filter(|promise| promise.tried > 0).count() as u64;
    let mut said = match broken.len() as u64 {
        0 if tried == 0 => "NOTHING PROVEN: no promise was tried".to_owned(),
        0 if missed == 0 => format!("KEPT: {} tried, none broken", words::count(tried, "promise", "promises")),
        0 => format!("MISSED: {} tried, none broken", words::count(tried, "promise", "promises")),
        many => format!("BROKEN: {} of {tried}", words::count(many, "promise", "promises")),
    };
    if !result.thresholds.is_empty() {
        let all = words::count(result.thresholds.len() as u64, "threshold", "thresholds");
        match missed {
            0 => said.push_str(&format!("; {all} kept")),
            _ => said.push_str(&format!("; {} of {all} not kept", words::number(missed))),
        }
    }
    if !result.missed.is_empty() {
        said.push_str(&format!("; {}", came(result)));
    }
    said
}

/// How many of the planned faults came.
fn came(result: &RunResult) -> String {
    let planned = (result.faults.len() + result.missed.len()) as u64;
    format!(
        "{} planned, {} happened",
        words::count(planned, "fault", "faults"),
        words::number(result.faults.len() as u64)
    )
}

/// Faults that were asked for at a certain time and did not come: what was asked for was not done, whatever was kept.
pub fn owed_faults(result: &RunResult) -> Option<String> {
    let owed: Vec<&MissedFault> = result.owed_faults().collect();
    (!owed.is_empty()).then(|| format!("not every fault came ({}): {}", came(result), absent(owed)))
}

pub fn absent<'a>(missed: impl IntoIterator<Item = &'a MissedFault>) -> String {
    let one = |missed: &MissedFault| {
        let why = match missed.why {
            Missed::LoadOver => "the load was over before",
            Missed::NothingToBreak => "found nothing to break",
            Missed::Interrupted => "the run was asked to end before",
        };
        format!("{} at {}, {why}", missed.fault.name(), words::seconds(missed.at))
    };
    abridged(&missed.into_iter().map(one).collect::<Vec<_>>(), "; ")
}

fn head(result: &RunResult, colour: Colour) -> String {
    let scenario = &result.scenario;
    let title = colour.title(&cell(&scenario.name));
    let verdict = verdict(result);
    let verdict = match Verdict::of(result) {
        Verdict::Kept => colour.good(&verdict),
        Verdict::NothingProven => colour.title(&verdict),
        Verdict::NotKept => colour.bad(&verdict),
    };
    format!("{title}  {}\n{verdict}", colour.dim(&cell(&scenario.description)))
}

fn section(title: &str, colour: Colour, rows: &[(&str, String)]) -> String {
    let mut table = plain();
    for (name, text) in rows {
        table.add_row([(*name).to_owned(), text.clone()]);
    }
    format!("{}\n{}", colour.title(title), shown(&table))
}

fn promises(result: &RunResult, colour: Colour) -> String {
    let mut table = headed(&["promise", "tried", "broken", ""], &[1, 2]);
    for promise in &result.promises {
        let verdict = match (promise.tried, promise.broken) {
            (0, 0) => "not tried",
            (_, 0) => "kept",
            _ => "BROKEN",
        };
        table.add_row([
            cell(&promise.name),
            words::number(promise.tried),
            words::number(promise.broken),
            format!("{verdict}: {}", cell(&promise.text)),
        ]);
    }
    let text = shown(&table);
    let lines = text.lines().map(|line| match line {
        broken if broken.contains("BROKEN: ") => colour.bad(broken),
        quiet if quiet.contains("not tried: ") => colour.dim(quiet),
        line => line.to_owned(),
    });
    format!("{}\n{}", colour.title("Promises"), lines.collect::<Vec<_>>().join("\n"))
}

fn examples(result: &RunResult, colour: Colour) -> Option<String> {
    let lines: Vec<_> = result
        .promises
        .iter()
        .flat_map(|promise| promise.examples.iter().map(|text| format!("{}: {}", cell(&promise.name), cell(text))))
        .collect();
    (!lines.is_empty()).then(|| format!("{}\n{}", colour.title("Broken, for example"), lines.join("\n")))
}

fn deliveries(result: &RunResult) -> Vec<(&'static str, String)> {
    let (sums, generator) = (&result.deliveries, &result.generator);
    let events = format!("{} of {} intended", words::number(generator.sent), words::number(generator.intended));
    let again = match generator.sent_again {
        0 => String::new(),
        again => format!(", {} sent again after a lost confirmation", words::number(again)),
    };
    let late = match (generator.late, &generator.lateness) {
        (0, Some(lateness)) => format!("none (p99 {} after their time)", words::time_us(lateness.p99_us)),
        (0, None) => "none".to_owned(),
        (late, _) => {
            format!(
                "{}: the generator did not keep up, and latencies count from the intended time",
                words::number(late)
            )
        }
    };
    let mut rows = vec![
        ("events sent", format!("{events}{again}")),
        ("sent late", late),
        ("owed", words::number(sums.owed)),
        ("acknowledged", words::number(sums.acknowledged)),
        ("dead letters", words::number(sums.dead)),
        ("unfinished", words::number(sums.unfinished)),
        (
            "requests",
            format!("{}, {} acknowledged twice", words::number(sums.attempts), words::number(sums.duplicates)),
        ),
        ("rate", format!("{} over {}", words::rate(sums.rate), words::seconds(result.seconds))),
    ];
    if let Load::Drain { events } = result.scenario.load {
        rows.insert(0, ("drain", format!("{} events lay in the stream", words::number(events))));
    }
    if !result.faults.is_empty() {
        let faults: Vec<_> =
            result.faults.iter().map(|mark| format!("{} at {}", mark.fault.name(), words::seconds(mark.at))).collect();
        rows.push(("faults", abridged(&faults, ", ")));
    }
    if !result.missed.is_empty() {
        rows.push(("missed faults", format!("{}: {}", came(result), absent(&result.missed))));
    }
    rows
}

/// A long list of faults says no more than its beginning does.
const FAULTS_SHOWN: usize = 6;

fn abridged(all: &[String], between: &str) -> String {
    let begin = all.iter().take(FAULTS_SHOWN).cloned().collect::<Vec<_>>().join(between);
    match all.len().saturating_sub(FAULTS_SHOWN) {
        0 => begin,
        more => format!("{begin} and {more} more"),
    }
}

fn latencies(result: &RunResult, colour: Colour) -> String {
    let mut columns = vec!["", "count"];
    columns.extend(Point::ALL.map(Point::name));
    let all: Vec<usize> = (1..columns.len()).collect();
    let mut table = headed(&columns, &all);
    let mut row = |name: &str, latency: &Option<Latency>| {
        if let Some(latency) = latency {
            let mut cells = vec![name.to_owned(), words::number(latency.count)];
            cells.extend(Point::ALL.map(|point| words::time(point.of(latency))));
            table.add_row(cells);
        }
    };
    row("intended time to arrival", &result.latency);
    row("intended time to answer", &result.answers);
    row("retries after their time", &result.retry_lateness);
    row("sending after its time", &result.generator.lateness);
    match table.is_empty() {
        true => format!("{}\nnothing arrived", colour.title("Latency")),
        false => format!("{}\n{}", colour.title("Latency"), shown(&table)),
    }
}

fn near_faults(result: &RunResult, colour: Colour) -> Option<String> {
    let mut table = headed(&["sent near", "times", "arrivals", "p50", "p99", "max"], &[1, 2, 3, 4, 5]);
    for near in &result.near_faults {
        let counts = [near.times, near.latency.count].map(words::number);
        let points = [Point::P50, Point::P99, Point::Max].map(|point| words::time(point.of(&near.latency)));
        table.add_row([vec![near.fault.name().to_owned()], counts.to_vec(), points.to_vec()].concat());
    }
    (!result.near_faults.is_empty()).then(|| format!("{}\n{}", colour.title("Faults"), shown(&table)))
}

fn profiles(result: &RunResult, colour: Colour) -> Option<String> {
    let columns = ["receivers", "endpoints", "owed", "acknowledged", "dead", "unfinished", "p50", "p99", "max"];
    let mut table = headed(&columns, &[1, 2, 3, 4, 5, 6, 7, 8]);
    for profile in &result.profiles {
        let Deliveries { owed, acknowledged, dead, unfinished, .. } = profile.deliveries;
        let mut cells = vec![cell(&profile.name)];
        cells.extend([profile.endpoints, owed, acknowledged, dead, unfinished].map(words::number));
        cells.extend([Point::P50, Point::P99, Point::Max].map(|point| match &profile.latency {
            Some(latency) => words::time(point.of(latency)),
            None => "-".to_owned(),
        }));
        table.add_row(cells);
    }
    (!result.profiles.is_empty()).then(|| format!("{}\n{}", colour.title("Receivers"), shown(&table)))
}

fn requests(result: &RunResult, colour: Colour) -> Option<String> {
    let columns = ["requests", "asked", "done", "refused", "unavailable", "unknown", "p50", "p99", "max"];
    let mut table = headed(&columns, &[1, 2, 3, 4, 5, 6, 7, 8]);
    for one in &result.requests {
        let counts = [one.asked, one.done, one.refused, one.unavailable, one.unknown].map(words::number);
        let points = [Point::P50, Point::P99, Point::Max].map(|point| match &one.latency {
            Some(latency) => words::time(point.of(latency)),
            None => "-".to_owned(),
        });
        table.add_row([vec![cell(&one.name)], counts.to_vec(), points.to_vec()].concat());
    }
    (!result.requests.is_empty()).then(|| format!("{}\n{}", colour.title("Requests"), shown(&table)))
}

fn goodput(result: &RunResult, colour: Colour) -> Option<String> {
    let columns = ["goodput", "owed", "taken while the load lasted", "of its twin's", "at least"];
    let mut table = headed(&columns, &[1, 2, 3, 4]);
    for one in &result.goodput {
        let counts = [one.owed, one.taken].map(words::number);
        let shares = [one.share, one.least].map(|share| format!("{share:.2}"));
        table.add_row([vec![cell(&one.receiver)], counts.to_vec(), shares.to_vec()].concat());
    }
    (!result.goodput.is_empty()).then(|| format!("{}\n{}", colour.title("Goodput"), shown(&table)))
}

fn processes(result: &RunResult, colour: Colour) -> Option<String> {
    let mut table = headed(&["process", "CPU", "CPU per delivery", "peak memory"], &[1, 2, 3]);
    for process in &result.processes {
        let each = process.cpu_us_per_delivery.map_or_else(|| "-".to_owned(), words::time);
        let cpu = words::seconds(process.cpu_seconds);
        table.add_row([cell(&process.who), cpu, each, words::bytes(process.peak_rss_bytes)]);
    }
    (!result.processes.is_empty()).then(|| format!("{}\n{}", colour.title("Processes"), shown(&table)))
}

fn thresholds(result: &RunResult, colour: Colour) -> Option<String> {
    let mut table = headed(&["threshold", "was", ""], &[1]);
    for kept in &result.thresholds {
        let verdict = if kept.is_kept { "kept" } else { "NOT KEPT" };
        table.add_row([cell(&kept.threshold), threshold::shown(kept), verdict.to_owned()]);
    }
    let text = shown(&table);
    let lines = text.lines().map(|line| match line.ends_with("NOT KEPT") {
        true => colour.bad(line),
        false => line.to_owned(),
    });
    let lines = lines.collect::<Vec<_>>().join("\n");
    (!result.thresholds.is_empty()).then(|| format!("{}\n{lines}", colour.title("Thresholds")))
}

fn tail(result: &RunResult, colour: Colour) -> String {
    let rows = [("seed", result.seed.to_string()), ("again", again(result)), ("on", machine(result))];
    section("This run", colour, &rows)
}

/// The command that repeats everything random of the run, for a shell.
pub(super) fn again(result: &RunResult) -> String {
    let is_plain = |text: &str| {
        let is_harmless = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c);
        !text.is_empty() && text.chars().all(is_harmless)
    };
    let word = |word: &String| match cell(word) {
        word if is_plain(&word) => word,
        word => format!("'{}'", word.replace('\'', r"'\''")),
    };
    let mut words: Vec<String> = result.words.iter().map(word).collect();
    if words.is_empty() {
        let name = cell(&result.scenario.name);
        words = vec!["loadtest".to_owned(), if is_plain(&name) { name } else { "SCENARIO".to_owned() }];
    }
    if !result.words.iter().any(|word| word == "--seed" || word.starts_with("--seed=")) {
        words.extend(["--seed".to_owned(), result.seed.to_string()]);
    }
    format!("herald {}", words.join(" "))
}

pub(super) fn machine(result: &RunResult) -> String {
    let on = &result.environment;
    let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { cell(text) };
    let mut parts = vec![
        format!("{} x {}", on.cores, known(&on.cpu)),
        words::bytes(on.memory_bytes),
        format!("{}, {}", known(&on.os), known(&on.kernel)),
        format!("Redis {} (appendfsync {})", known(&on.redis_version), known(&on.redis_appendfsync)),
        format!("Herald {} ({})", cell(&result.herald_version), known(&on.build)),
    ];
    if !on.is_own {
        parts.push("a service that was found running".to_owned());
    }
    parts.join("; ")
}

pub(super) fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// `right` names the columns with numbers.
pub(super) fn headed(columns: &[&str], right: &[usize]) -> Table {
    let mut table = plain();
    table.set_header(columns.iter().copied());
    for &column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Without the blanks at the beginning and the end of every line of a table.
pub(super) fn shown(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<_> = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::{
        faults::{Fault, Wanted},
        report::fixture,
    };

    #[test]
    fn the_summary_says_what_was_proven_and_how_to_repeat_it() {
        let text = summary(&fixture::outage(), Colour::Never);
        for said in [
            "BROKEN: 1 promise of 5; 2 of 4 thresholds not kept",
            "evt_hnnHxIKR_Uy6bhZCusCltw",
            "not tried: Dead letters",
            "3: the generator did not keep up",
            "p99.99",
            "throttling",
            "41.3us",
            "91.9 MiB",
            "none in this run",
            "herald loadtest outage-and-recovery --seed 42",
            "appendfsync everysec",
        ] {
            assert!(text.contains(said), "{said} is not in:\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn a_run_without_anything_says_that_nothing_is_proven() {
        let text = summary(&fixture::nothing(), Colour::Never);
        assert!(text.contains("NOTHING PROVEN") && text.contains("nothing arrived"), "{text}");
        let text = summary(&fixture::short(), Colour::Never);
        assert!(text.contains("KEPT: 5 promises tried, none broken"), "{text}");
    }

    #[test]
    fn a_fault_that_did_not_come_is_said_and_owed_if_it_was_named() {
        let missed = |wanted, why| MissedFault { fault: Fault::KillWorker, at: 10.0, wanted, why };
        let mut result = fixture::outage();
        let happened = result.faults.len();
        result.missed = vec![missed(Wanted::Random, Missed::LoadOver), missed(Wanted::Named, Missed::Interrupted)];
        assert_eq!(owed_faults(&result), None);
        result.missed.push(missed(Wanted::Named, Missed::LoadOver));
        let said = format!("{} faults planned, {happened} happened", happened + 3);
        let owed = owed_faults(&result).unwrap();
        assert!(owed.contains(&said) && owed.ends_with("kill-worker at 10s, the load was over before"), "{owed}");
        assert!(verdict(&result).contains(&said) && summary(&result, Colour::Never).contains("missed faults"));
    }

    #[test]
    fn colours_are_the_only_difference_on_a_terminal() {
        let (plain, coloured) =
            (summary(&fixture::outage(), Colour::Never), summary(&fixture::outage(), Colour::Always));
        let mut stripped = coloured.clone();
        for code in ["\x1b[32m", "\x1b[1;31m", "\x1b[2m", "\x1b[1m", "\x1b[0m"] {
            stripped = stripped.replace(code, "");
        }
        assert!(coloured != plain && stripped == plain);
    }

    #[test]
    fn the_whole_command_line_is_what_repeats_a_run() {
        let words = ["loadtest", "a b.toml", "--fault", "kill-worker@2s/3s*2", "--threshold", "p99<5ms", "it's"];
        let words = words.map(str::to_owned).to_vec();
        let result = RunResult { words, ..fixture::single() };
        let line = "herald loadtest 'a b.toml' --fault 'kill-worker@2s/3s*2' --threshold 'p99<5ms' 'it'\\''s' --seed 1";
        assert_eq!(again(&result), line);
        let words = ["loadtest", "tls", "--seed", "9"].map(str::to_owned).to_vec();
        assert_eq!(again(&RunResult { words, ..fixture::single() }), "herald loadtest tls --seed 9");
    }

    #[test]
    fn what_a_scenario_says_does_not_steer_the_terminal() {
        let text = summary(&fixture::hostile(), Colour::Never);
        assert!(!text.contains('\x1b') && !text.contains('\u{202e}'));
        assert!(text.contains("herald loadtest SCENARIO --seed 42"), "{text}");
    }

    #[test]
    #[ignore = "for eyes"]
    fn a_summary_for_eyes() {
        println!("{}", summary(&fixture::outage(), Colour::Always));
    }
}

//! How results look: tables for people, JSON for programs that ask for it. Data goes to stdout, messages to stderr.
//! A list fits the terminal, or 80 columns where there is none. A reader that goes away ends a verb without an error.

use std::{
    fmt::Display,
    io::{self, Write},
    sync::OnceLock,
};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;

use super::{
    colour::{Colours, Tone},
    error::OutputClosed,
};
use crate::{
    facts::text::{escaped_json, steers},
    telemetry::logging,
};

/// Rows that a table collects before it is printed: columns get their widths from these, and memory stays bounded.
const TABLE_ROWS: usize = 1000;

/// Where the width of a terminal is not known.
const USUAL_COLUMNS: u16 = 80;

/// How the program talks: the same for all that it does, as its log is.
static MANNERS: OnceLock<Manners> = OnceLock::new();

#[derive(Debug, Clone, Copy, Default)]
pub struct Manners {
    pub is_quiet: bool,
    pub never_asks: bool,
}

/// Call it once, before anything is said.
pub fn behave(manners: Manners) {
    let _ = MANNERS.set(manners);
}

/// Whether a question would be answered by nobody.
pub fn never_asks() -> bool {
    manners().never_asks
}

fn manners() -> Manners {
    MANNERS.get().copied().unwrap_or_default()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON document: an object, or an array of them.
    Json,
    /// One JSON object a line.
    Jsonl,
}

#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
}

impl Output {
    /// What was asked for; otherwise a table, on a pipe too: what a verb prints must not depend on who reads it.
    pub fn new(asked: Option<Format>) -> Self {
        Self { format: asked.unwrap_or(Format::Table) }
    }

    pub fn format(self) -> Format {
        self.format
    }

    /// One thing: its JSON, or its fields as a table of names and values.
    pub fn one(self, value: &impl Serialize, fields: &[(&str, String)]) -> anyhow::Result<()> {
        match self.format {
            Format::Json => self.text(&escaped_json(&serde_json::to_string_pretty(value)?)),
            Format::Jsonl => self.text(&json_line(value)?),
            Format::Table => {
                let mut table = plain_table();
                for (name, text) in fields {
                    table.add_row([(*name).to_owned(), cell(text)]);
                }
                self.text(&trimmed(&table))
            }
        }
    }

    /// Many things, one after the other: a page is written when it is full, so there may be any number of them. Call
    /// [`List::finish`] at the end.
    pub fn list(self, columns: &[&str]) -> List {
        List { output: self, columns: columns.iter().map(|column| (*column).to_owned()).collect(), state: State::Empty }
    }

    /// Text as it is, with a line feed. In one piece: several tasks may print at once.
    pub fn text(self, text: &str) -> anyhow::Result<()> {
        self.raw([text.as_bytes(), b"\n"].concat().as_slice())
    }

    /// Bytes as they are.
    pub fn raw(self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
            Err(error) => Err(anyhow::Error::new(error).context("cannot write to stdout")),
        }
    }
}

/// For verbs that change something while they print: a reader that goes away must not leave the change half done.
pub fn even_unread(printed: anyhow::Result<()>) -> anyhow::Result<()> {
    match printed {
        Err(error) if error.is::<OutputClosed>() => Ok(()),
        printed => printed,
    }
}

/// Says something to whoever reads stderr, unless `--quiet` forbids it.
pub fn note(text: impl Display) {
    if !manners().is_quiet {
        tell(text);
    }
}

/// Says what must be heard: an error, a warning, what a dry run would do. If nobody reads it, that is no failure.
pub fn tell(text: impl Display) {
    // It may quote strangers, so only its line feeds are our own.
    let text = text.to_string().split('\n').map(cell).collect::<Vec<_>>().join("\n");
    if !logging::say(&text) {
        let _ = writeln!(io::stderr(), "{}", toned(&text));
    }
}

/// Its first word says how bad it is.
fn toned(text: &str) -> String {
    let tone = |word: &str, tone: Tone| {
        let rest = text.strip_prefix(word)?;
        Some(format!("{}{rest}", Colours::of_stderr().paint(tone, word)))
    };
    tone("error:", Tone::Bad).or_else(|| tone("warning:", Tone::Odd)).unwrap_or_else(|| text.to_owned())
}

/// One line of JSON. A terminal may show it too, so it contains nothing that steers one.
pub fn json_line(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(escaped_json(&serde_json::to_string(value)?).into_owned())
}

enum State {
    Empty,
    Rows(Vec<Vec<String>>),
    /// JSON, or a full table, was already printed.
    Begun,
}

/// A list that is being written.
pub struct List {
    output: Output,
    columns: Vec<String>,
    state: State,
}

impl List {
    /// `cells` is only called for a table.
    pub fn push(&mut self, value: &impl Serialize, cells: impl FnOnce() -> Vec<String>) -> anyhow::Result<()> {
        match self.output.format {
            Format::Jsonl => self.output.text(&json_line(value)?)?,
            Format::Json => {
                let before = if matches!(self.state, State::Empty) { "[\n" } else { ",\n" };
                self.output.raw(format!("{before}{}", json_line(value)?).as_bytes())?;
                self.state = State::Begun;
            }
            Format::Table => {
                let mut rows = match std::mem::replace(&mut self.state, State::Begun) {
                    State::Rows(rows) => rows,
                    State::Empty | State::Begun => Vec::new(),
                };
                rows.push(cells().iter().map(|text| cell(text)).collect());
                match rows.len() < TABLE_ROWS {
                    true => self.state = State::Rows(rows),
                    false => self.print(rows)?,
                }
            }
        }
        Ok(())
    }

    pub fn finish(mut self) -> anyhow::Result<()> {
        match (self.output.format, std::mem::replace(&mut self.state, State::Begun)) {
            (Format::Json, State::Empty) => self.output.text("[]"),
            (Format::Json, _) => self.output.text("\n]"),
            (Format::Table, State::Rows(rows)) => self.print(rows),
            (Format::Table, State::Empty) => self.print(Vec::new()),
            (Format::Table | Format::Jsonl, _) => Ok(()),
        }
    }

    fn print(&self, rows: Vec<Vec<String>>) -> anyhow::Result<()> {
        let text = fitting(&self.columns, rows, columns_of_stdout());
        let (head, rest) = text.split_at(text.find('\n').unwrap_or(text.len()));
        self.output.text(&format!("{}{rest}", Colours::of_stdout().paint(Tone::Bold, head)))
    }
}

fn columns_of_stdout() -> u16 {
    terminal_size::terminal_size_of(io::stdout()).map_or(USUAL_COLUMNS, |(columns, _)| columns.0)
}

/// A table of at most so many columns. What has blanks is wrapped at them; an id is never cut, because somebody wants to copy
/// it. Where that is not enough, each row becomes a paragraph with a line for each of its cells.
fn fitting(columns: &[String], rows: Vec<Vec<String>>, width: u16) -> String {
    let longest = |text: &str| text.split_whitespace().map(|word| word.chars().count()).max().unwrap_or(0);
    let least: Vec<usize> = (0..columns.len())
        .map(|at| {
            let cells = rows.iter().filter_map(|row| row.get(at));
            cells.chain([&columns[at]]).map(|text| longest(text)).max().unwrap_or(0)
        })
        .collect();
    // Each cell has a blank on either side, and the first of a line is taken away.
    if least.iter().map(|least| least + 2).sum::<usize>() > usize::from(width) + 1 {
        return paragraphs(columns, &rows);
    }
    let mut table = plain_table();
    table.set_header(columns).add_rows(rows);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width + 1);
    for (column, least) in table.column_iter_mut().zip(least) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(u16::try_from(least + 2).unwrap_or(width))));
    }
    trimmed(&table)
}

fn paragraphs(columns: &[String], rows: &[Vec<String>]) -> String {
    let rows = rows.iter().map(|row| {
        let mut table = plain_table();
        for (column, text) in columns.iter().zip(row).filter(|(_, text)| !text.is_empty()) {
            table.add_row([column, text]);
        }
        trimmed(&table)
    });
    rows.collect::<Vec<_>>().join("\n\n")
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Without the blanks at the end of every line of a table, and without the one at its beginning.
fn trimmed(table: &Table) -> String {
    let lines: Vec<String> = table.to_string().lines().map(|line| unindented(line).to_owned()).collect();
    lines.join("\n")
}

fn unindented(line: &str) -> &str {
    line.strip_prefix(' ').unwrap_or(line).trim_end()
}

/// A stranger's text must not move a terminal's cursor, turn its writing direction or break a row.
pub fn cell(text: &str) -> String {
    text.chars().map(|c| if steers(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(width: u16) -> String {
        let columns = ["ID", "STANDING", "ATTEMPTS"].map(str::to_owned);
        let row = |id: &str, standing: &str| vec![id.to_owned(), standing.to_owned(), "3".to_owned()];
        let id = "1795336091993-0:ep_0123456789abcdef";
        fitting(
            &columns,
            vec![row(id, "due since 20s: waits while all sending is paused"), row("1-0:ep_b", "parked")],
            width,
        )
    }

    #[test]
    fn a_table_fits_its_columns_and_cuts_no_id() {
        for width in [200, 100, 80, 70, 60] {
            let text = table(width);
            assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)), "{width}:\n{text}");
            assert!(text.starts_with("ID ") && text.contains("1795336091993-0:ep_0123456789abcdef "), "{text}");
        }
        assert_eq!(table(200).lines().count(), 3, "{}", table(200));
        assert!(table(80).contains("due since 20s"), "{}", table(80));
    }

    #[test]
    fn what_does_not_fit_at_all_is_a_paragraph_for_each_row() {
        let text = table(40);
        let expected = "ID        1795336091993-0:ep_0123456789abcdef\nSTANDING  due since 20s";
        assert!(text.starts_with(expected) && text.contains("\n\nID        1-0:ep_b\n"), "{text}");
    }

    #[test]
    fn a_strangers_text_stays_in_its_cell() {
        assert_eq!(cell("a\x1b[2Jb\nc\u{202e}d"), "a [2Jb c d");
    }
}

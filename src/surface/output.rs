//! How results look: tables for people, JSON for programs. Data goes to stdout, messages to stderr.
//! Never colours anything, so `NO_COLOR` and pipes need no care. A reader that goes away ends a verb without an error.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::error::OutputClosed;
use crate::{
    facts::text::{escaped_json, steers},
    telemetry::logging,
};

/// Rows that a table collects before it is printed: columns get their widths from these, and memory stays bounded.
const TABLE_ROWS: usize = 1000;

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
    /// What was asked for; otherwise a table on a terminal and JSON for anything else.
    pub fn new(asked: Option<Format>) -> Self {
        let default = || if io::stdout().is_terminal() { Format::Table } else { Format::Json };
        Self { format: asked.unwrap_or_else(default) }
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

/// Says something to whoever reads stderr. If nobody does, that is no failure.
pub fn note(text: impl Display) {
    // It may quote strangers, so only its line feeds are our own.
    let text = text.to_string().split('\n').map(cell).collect::<Vec<_>>().join("\n");
    if !logging::say(&text) {
        let _ = writeln!(io::stderr(), "{text}");
    }
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
        let mut table = plain_table();
        table.set_header(&self.columns);
        table.add_rows(rows);
        self.output.text(&trimmed(&table))
    }
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

    #[test]
    fn a_strangers_text_stays_in_its_cell() {
        assert_eq!(cell("a\x1b[2Jb\nc\u{202e}d"), "a [2Jb c d");
    }
}

//! A line a second where there is no terminal: logs of a build server, files, pipes.

use std::{io::Write, sync::mpsc::Receiver, time::Duration};

use super::{Told, history::History};
use crate::{
    loadtest::report::progress::{Heading, Progress},
    surface::{cell, words},
};

/// Nobody reads faster.
const EVERY: Duration = Duration::from_secs(1);

pub struct Lines<W> {
    to: W,
    history: History,
    /// When, and in which phase, the last line was written.
    last: Option<(Duration, String)>,
}

impl<W: Write> Lines<W> {
    pub fn new(to: W) -> Self {
        Self { to, history: History::default(), last: None }
    }

    fn heading(&mut self, heading: &Heading) {
        self.line(&format!("{}: {}", heading.scenario, heading.description));
        self.line(&format!("seed {}, against {}", heading.seed, heading.target));
    }

    pub fn progress(&mut self, progress: &Progress) {
        let is_due = match &self.last {
            Some((at, phase)) => *phase != progress.phase || progress.elapsed >= *at + EVERY,
            None => true,
        };
        self.history.add(progress);
        if is_due {
            self.last = Some((progress.elapsed, progress.phase.clone()));
            let line = self.text(progress);
            self.line(&line);
        }
    }

    fn text(&self, progress: &Progress) -> String {
        let mut parts = vec![format!("{} {}", stamp(progress.elapsed), progress.phase)];
        if progress.intended + progress.sent + progress.acknowledged > 0 {
            parts.push(format!("sent {}", words::number(progress.confirmed)));
            let rate = words::rate(self.history.acknowledged_rate());
            parts.push(format!("acknowledged {} ({rate})", words::number(progress.acknowledged)));
            parts.push(format!("unfinished {}", words::number(progress.unfinished)));
        }
        let rare = [("failed", progress.failed_attempts), ("dead", progress.dead), ("suspicious", progress.suspicions)];
        parts.extend(
            rare.iter().filter(|(_, many)| *many > 0).map(|(name, many)| format!("{name} {}", words::number(*many))),
        );
        if let Some(recent) = progress.recent {
            parts.push(format!("p50 {} p99 {}", words::time_us(recent.p50_us), words::time_us(recent.p99_us)));
        }
        if !progress.faults.is_empty() {
            parts.push(format!("[{}]", progress.faults.join(", ")));
        }
        parts.join("  ")
    }

    pub fn said(&mut self, at: Duration, text: &str) {
        self.line(&format!("{} {text}", stamp(at)));
    }

    fn line(&mut self, text: &str) {
        // If nobody reads it, that is no failure of the run.
        let _ = writeln!(self.to, "{}", cell(text));
    }
}

/// `  12.5s`: columns stay under each other for the first hours.
fn stamp(at: Duration) -> String {
    format!("{:>7.1}s", at.as_secs_f64())
}

pub(super) fn show<W: Write>(mut lines: Lines<W>, heading: &Heading, told: &Receiver<Told>) {
    lines.heading(heading);
    while let Ok(told) = told.recv() {
        match told {
            Told::Progress(progress) => lines.progress(&progress),
            Told::Said { at, text } => lines.said(at, &text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::report::live::screen::tests::a_run;

    #[test]
    fn there_is_a_line_a_second_and_one_for_each_phase() {
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out);
        lines.heading(&Heading { scenario: "steady".into(), seed: 42, ..Heading::default() });
        for tick in 0..=20 {
            lines.progress(&Progress { phase: "load".into(), ..a_run(Duration::from_millis(tick * 500)) });
        }
        lines.said(Duration::from_secs(10), "kill-worker\x1b[2J");
        lines.progress(&Progress { phase: "judging".into(), ..a_run(Duration::from_secs(10)) });
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2 + 11 + 1 + 1, "{text}");
        assert!(lines[1].contains("seed 42") && lines[13].contains("10.0s kill-worker [2J"), "{text}");
        assert!(lines[12].contains("acknowledged 9 800 (980/s)") && lines[12].contains("p99 6.4ms"), "{text}");
        assert!(lines[14].contains("judging") && !text.contains('\x1b'));
    }
}

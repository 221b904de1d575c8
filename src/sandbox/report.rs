//! What came of a scenario, for people, for programs, and for whoever collects the results of tests (JUnit's XML).

use std::{fmt::Write as _, path::Path};

use serde::Serialize;

use crate::facts::text::{escaped, steers};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    Passed,
    Deviates,
    /// A step before it deviated.
    NotRun,
}

/// Keys may be added.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub scenario: String,
    pub file: String,
    pub seed: u64,
    pub passed: bool,
    pub steps: Vec<StepReport>,
    pub callbacks: Vec<CallbackReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    pub line: u64,
    pub step: String,
    /// What was answered; none where nothing was asked, or nobody answered.
    pub code: Option<u16>,
    pub took_ms: u64,
    pub verdict: Verdict,
    pub deviations: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CallbackReport {
    pub intent: String,
    /// None for one that nobody expected.
    pub expected: Option<String>,
    /// Type and status; none for one that was never told.
    pub told: Option<String>,
    pub id: Option<String>,
    /// What the application answered, if it was asked.
    pub application: Option<u16>,
    /// What Herald got.
    pub answered: Option<u16>,
    pub verdict: Verdict,
    pub deviations: Vec<String>,
}

impl StepReport {
    pub fn not_run(line: u64, step: String) -> Self {
        Self { line, step, code: None, took_ms: 0, verdict: Verdict::NotRun, deviations: Vec::new() }
    }

    fn came(&self) -> String {
        self.code.map(|code| format!("  {code}")).unwrap_or_default()
    }
}

impl CallbackReport {
    /// It cannot be known what was told of this intent.
    pub fn unknown(intent: &str, why: String) -> Self {
        Self {
            intent: intent.to_owned(),
            expected: None,
            told: None,
            id: None,
            application: None,
            answered: None,
            verdict: Verdict::Deviates,
            deviations: vec![why],
        }
    }

    fn title(&self) -> String {
        let what = self.told.as_ref().or(self.expected.as_ref()).cloned().unwrap_or_default();
        format!("{}  {what}", self.intent)
    }

    fn came(&self) -> String {
        let answered = self.answered.map(|code| format!("  answered {code}")).unwrap_or_default();
        self.id.as_ref().map(|id| format!("  {id}{answered}")).unwrap_or_default()
    }
}

fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "ok",
        Verdict::Deviates => "FAIL",
        Verdict::NotRun => "-",
    }
}

impl Report {
    pub fn new(
        scenario: String,
        file: &Path,
        seed: u64,
        steps: Vec<StepReport>,
        callbacks: Vec<CallbackReport>,
    ) -> Self {
        let verdicts = steps.iter().map(|step| step.verdict);
        let passed = verdicts.chain(callbacks.iter().map(|one| one.verdict)).all(|one| one == Verdict::Passed);
        Self { scenario, file: file.display().to_string(), seed, passed, steps, callbacks }
    }

    /// One line for each step and callback, and one for each deviation below it.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("{}  (seed {})", self.title(), self.seed)];
        let mut add = |verdict: Verdict, what: String, deviations: &[String]| {
            lines.push(format!("{:<4}  {what}", mark(verdict)));
            lines.extend(deviations.iter().map(|deviation| format!("        {deviation}")));
        };
        for step in &self.steps {
            add(step.verdict, format!("line {:<4} {}{}", step.line, step.step, step.came()), &step.deviations);
        }
        for callback in &self.callbacks {
            add(callback.verdict, format!("callback  {}{}", callback.title(), callback.came()), &callback.deviations);
        }
        lines.push(if self.passed { "passed".to_owned() } else { "FAILED".to_owned() });
        // Much of it is a stranger's.
        lines.iter().map(|line| escaped(line, |_| false)).collect::<Vec<_>>().join("\n")
    }

    fn title(&self) -> &str {
        if self.scenario.is_empty() { &self.file } else { &self.scenario }
    }

    /// Each step and each callback is a test case.
    pub fn junit(&self) -> String {
        let steps = self.steps.iter().map(|step| {
            let name = format!("line {}: {}", step.line, step.step);
            (name, step.took_ms, step.verdict, &step.deviations)
        });
        let callbacks = self
            .callbacks
            .iter()
            .map(|callback| (format!("callback {}", callback.title()), 0, callback.verdict, &callback.deviations));
        let cases: Vec<_> = steps.chain(callbacks).collect();
        let count = |verdict| cases.iter().filter(|case| case.2 == verdict).count();
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let (failed, skipped) = (count(Verdict::Deviates), count(Verdict::NotRun));
        let _ = writeln!(
            xml,
            "<testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\" skipped=\"{skipped}\">",
            in_xml(self.title()),
            cases.len()
        );
        for (name, took_ms, verdict, deviations) in cases {
            let (name, file) = (in_xml(&name), in_xml(&self.file));
            let _ = write!(
                xml,
                "  <testcase classname=\"{file}\" name=\"{name}\" time=\"{}.{:03}\">",
                took_ms / 1000,
                took_ms % 1000
            );
            match verdict {
                Verdict::Passed => {}
                Verdict::Deviates => {
                    let _ = write!(xml, "<failure>{}</failure>", in_xml(&deviations.join("\n")));
                }
                Verdict::NotRun => xml.push_str("<skipped/>"),
            }
            xml.push_str("</testcase>\n");
        }
        xml.push_str("</testsuite>\n");
        xml
    }
}

/// XML cannot hold what steers a terminal, not even escaped.
fn in_xml(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\n' => safe.push_str("&#10;"),
            c if steers(c) || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let step = |step: &str, verdict, deviations: &[&str]| StepReport {
            line: 3,
            step: step.to_owned(),
            code: Some(200),
            took_ms: 1_005,
            verdict,
            deviations: deviations.iter().map(|text| (*text).to_owned()).collect(),
        };
        Report {
            scenario: "A <purchase>".to_owned(),
            file: "a.yaml".to_owned(),
            seed: 7,
            passed: false,
            steps: vec![
                step("create order", Verdict::Passed, &[]),
                step("pay order", Verdict::Deviates, &["status: expected \"a\", came \"\u{1b}[2J\""]),
                StepReport::not_run(9, "refund order".to_owned()),
            ],
            callbacks: Vec::new(),
        }
    }

    #[test]
    fn people_see_each_step_and_what_deviated() {
        let text = report().text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..3],
            ["A <purchase>  (seed 7)", "ok    line 3    create order  200", "FAIL  line 3    pay order  200"]
        );
        assert!(lines[3].starts_with("        status: expected") && !text.contains('\u{1b}'), "{text:?}");
        assert_eq!(lines[4..], ["-     line 9    refund order", "FAILED"]);
    }

    #[test]
    fn the_xml_is_whole_whatever_stands_in_it() {
        let xml = report().junit();
        assert!(xml.contains("name=\"A &lt;purchase&gt;\" tests=\"3\" failures=\"1\" skipped=\"1\""), "{xml}");
        assert!(
            xml.contains("time=\"1.005\"><failure>status: expected &quot;a&quot;") && !xml.contains('\u{1b}'),
            "{xml}"
        );
    }
}

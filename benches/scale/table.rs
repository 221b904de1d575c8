//! The rows as `docs/performance.md` shows them, each with what it should reach, and the machine that they were
//! measured on.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use herald::surface::words;

#[derive(Default)]
pub struct Table {
    rows: Vec<[String; 5]>,
}

impl Table {
    /// A figure with few and with many, and the greatest ratio allowed.
    pub fn compare(&mut self, what: &str, unit: Unit, few: f64, many: f64, most: Option<f64>) {
        let reach = most.map_or("–".to_owned(), |most| format!("≤ {most} ×"));
        let ratio = mark(many / few, most, format!("{:.2} ×", many / few));
        self.rows.push([what.to_owned(), unit.show(few), unit.show(many), ratio, reach]);
    }

    /// The same, but this much more is always allowed: a fraction of a small figure is less than clocks can tell.
    pub fn compare_from(&mut self, what: &str, unit: Unit, few: f64, many: f64, (most, slack): (f64, f64)) {
        let allowed = few * most + slack;
        let shown = mark(many, Some(allowed), format!("{:.2} ×", many / few));
        let reach = format!("≤ {most} × + {}", unit.show(slack));
        self.rows.push([what.to_owned(), unit.show(few), unit.show(many), shown, reach]);
    }

    /// A figure with a limit of its own.
    pub fn limit(&mut self, what: &str, unit: Unit, few: Option<f64>, many: f64, most: f64) {
        let few = few.map_or("–".to_owned(), |few| unit.show(few));
        let many = mark(many, Some(most), unit.show(many));
        self.rows.push([what.to_owned(), few, many, "–".to_owned(), format!("≤ {}", unit.show(most))]);
    }

    /// A figure that was foretold, and how it is.
    pub fn near(&mut self, what: &str, unit: Unit, foretold: f64, is: f64, most_off: f64) {
        let ratio = is / foretold;
        let shown = mark((ratio - 1.0).abs(), Some(most_off), format!("{ratio:.2} ×"));
        let reach = format!("{:.2} – {:.2} ×", 1.0 - most_off, 1.0 + most_off);
        self.rows.push([what.to_owned(), unit.show(foretold), unit.show(is), shown, reach]);
    }

    pub fn text(&self, few: &str, many: &str, origin: &str) -> String {
        let mut lines =
            vec![format!("| | {few} | {many} | ratio | reach |"), "| --- | ---: | ---: | ---: | ---: |".into()];
        lines.extend(self.rows.iter().map(|row| format!("| {} |", row.join(" | "))));
        lines.extend([String::new(), origin.to_owned()]);
        lines.join("\n")
    }
}

/// What a figure is of.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    Micros,
    Bytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Micros => words::time(value),
            Self::Bytes => words::bytes(value as u64),
        }
    }
}

/// Bold if it is kept; if not, it says so.
fn mark(value: f64, most: Option<f64>, text: String) -> String {
    match most {
        Some(most) if value > most => format!("{text} (missed)"),
        Some(_) => format!("**{text}**"),
        None => text,
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Machine and versions.
pub fn machine() -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processor = model.map_or("unknown processor", |(_, model)| model);
    let redis = output("redis-server")?;
    let redis = redis.split(' ').find_map(|word| word.strip_prefix("v=")).unwrap_or("unknown");
    let (rustc, kernel) = (output("rustc")?, fs::read_to_string("/proc/sys/kernel/osrelease")?);
    let (rustc, kernel) = (rustc.trim(), kernel.trim());
    Ok(format!(
        "all share {cores} cores ({processor}). Herald {}, Redis {redis}, {rustc}, Linux {kernel}.",
        env!("CARGO_PKG_VERSION")
    ))
}

fn output(program: &str) -> Result<String> {
    let output = Command::new(program).arg("--version").output().with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

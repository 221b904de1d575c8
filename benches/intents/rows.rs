//! The rows as `docs/performance.md` shows them: a figure, what it is compared with, and what it should be.

/// A figure's limit, in the figure's unit.
#[derive(Debug, Clone, Copy)]
pub enum Reach {
    AtMost(f64),
    AtLeast(f64),
    None,
}

#[derive(Default)]
pub struct Rows(Vec<[String; 4]>);

impl Rows {
    /// `beside` is the same of what it is compared with.
    pub fn add(&mut self, what: &str, value: f64, beside: Option<f64>, reach: Reach, show: impl Fn(f64) -> String) {
        let (is_met, reach) = match reach {
            Reach::AtMost(most) => (Some(value <= most), format!("≤ {}", show(most))),
            Reach::AtLeast(least) => (Some(value >= least), format!("≥ {}", show(least))),
            Reach::None => (None, "–".to_owned()),
        };
        let figure = match is_met {
            Some(true) => format!("**{}**", show(value)),
            Some(false) => format!("{} (missed)", show(value)),
            None => show(value),
        };
        let beside = beside.map_or("–".to_owned(), show);
        eprintln!("{what}: {figure}, beside {beside}");
        self.0.push([what.to_owned(), figure, beside, reach]);
    }

    pub fn text(&self, origin: &str) -> String {
        let mut lines =
            vec!["| | measured | beside it | reach |".to_owned(), "| --- | ---: | ---: | ---: |".to_owned()];
        lines.extend(self.0.iter().map(|row| format!("| {} |", row.join(" | "))));
        lines.extend([String::new(), origin.to_owned()]);
        lines.join("\n")
    }
}

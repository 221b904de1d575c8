//! A plot as SVG: a frame with axes, and what is drawn into it. Colours are classes, so that the page's style decides
//! them for light and for dark displays. Knows nothing of a run.

use std::fmt::Write as _;

use crate::http::html::escaped;

/// In units of the picture; the page scales it to its width.
pub const WIDTH: f64 = 960.0;
/// Room for the labels of the y axis.
const LEFT: f64 = 68.0;
/// Room for names instead.
const WIDE_LEFT: f64 = 110.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 30.0;
/// A label of an axis needs this much room beside it.
const LABEL_WIDTH: f64 = 62.0;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    Linear {
        from: f64,
        to: f64,
    },
    /// For positive values.
    Log {
        from: f64,
        to: f64,
    },
}

impl Scale {
    /// Where a value lies, from 0 to 1; values outside lie on the edge.
    fn place(self, value: f64) -> f64 {
        let place = match self {
            Self::Linear { from, to } => (value - from) / (to - from),
            Self::Log { from, to } => (value / from).log10() / (to / from).log10(),
        };
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// From 0 to a round number above all values.
    pub fn up_to(most: f64) -> Self {
        let step = round_step(most / 4.0);
        Self::Linear { from: 0.0, to: (most / step).ceil().max(1.0) * step }
    }

    /// Whole powers of ten around all values, at least two of them. Without a value, from 100 to 100 000.
    pub fn powers(values: impl Iterator<Item = f64> + Clone) -> Self {
        let positive = values.filter(|value| *value > 0.0);
        let least = positive.clone().fold(f64::INFINITY, f64::min);
        if !least.is_finite() {
            return Self::Log { from: 1e2, to: 1e5 };
        }
        let from = least.log10().floor();
        let to = positive.fold(0.0, f64::max).log10().ceil().max(from + 2.0);
        Self::Log { from: 10_f64.powf(from), to: 10_f64.powf(to) }
    }

    /// Values for labels: about four round ones.
    pub fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear { from, to } => {
                let step = round_step((to - from) / 5.0);
                let many = ((to - from) / step + 1e-9).floor() as u32;
                (0..=many).map(|tick| from + f64::from(tick) * step).collect()
            }
            Self::Log { from, to } => {
                let many = (to / from).log10().round() as u32;
                (0..=many).map(|power| from * 10_f64.powi(power as i32)).collect()
            }
        }
    }

    /// Lines between the powers, without labels.
    fn minor_ticks(self) -> Vec<f64> {
        match self {
            Self::Linear { .. } => Vec::new(),
            Self::Log { to, .. } => {
                let powers = self.ticks().into_iter().filter(|power| *power < to);
                powers.flat_map(|power| (2..10).map(move |factor| power * f64::from(factor))).collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least the given value.
fn round_step(least: f64) -> f64 {
    if !(least.is_finite() && least > 0.0) {
        return 1.0;
    }
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= least * 0.999).unwrap_or(least)
}

/// Steps of a clock: the seconds, minutes and hours in which people count.
pub fn clock_ticks(until: f64) -> Vec<f64> {
    const STEPS: [f64; 15] =
        [0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1_800.0, 3_600.0, 7_200.0];
    let step = STEPS.into_iter().find(|step| until / step <= 10.0).unwrap_or_else(|| round_step(until / 10.0));
    let many = (until / step + 1e-9).floor() as u32;
    (0..=many).map(|tick| f64::from(tick) * step).collect()
}

pub struct Plot {
    svg: String,
    height: f64,
    left: f64,
    x: Scale,
    y: Scale,
}

impl Plot {
    /// `name` tells those who cannot see the plot what it shows.
    pub fn new(name: &str, height: f64, x: Scale, y: Scale) -> Self {
        let name = escaped(name);
        let svg = format!(r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}">"#);
        Self { svg, height, left: LEFT, x, y }
    }

    /// Leaves room for names on the left; call it before anything is drawn.
    pub fn wide_left(self) -> Self {
        Self { left: WIDE_LEFT, ..self }
    }

    fn x_of(&self, value: f64) -> f64 {
        self.left + self.x.place(value) * (WIDTH - self.left - RIGHT)
    }

    fn y_of(&self, value: f64) -> f64 {
        self.height - BOTTOM - self.y.place(value) * (self.height - TOP - BOTTOM)
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.svg.write_fmt(text).expect("a string takes everything");
    }

    /// Lines across and their labels.
    pub fn y_axis(mut self, label: impl Fn(f64) -> String) -> Self {
        let (left, right) = (self.left, WIDTH - RIGHT);
        for value in self.y.minor_ticks() {
            let y = self.y_of(value);
            self.push(format_args!(r#"<path class="minor" d="M{left} {y:.1}H{right}"/>"#));
        }
        for value in self.y.ticks() {
            let (y, text) = (self.y_of(value), escaped(&label(value)));
            self.push(format_args!(r#"<path class="grid" d="M{left} {y:.1}H{right}"/>"#));
            let (x, y) = (left - 8.0, y + 4.0);
            self.push(format_args!(r#"<text class="tick end" x="{x}" y="{y:.1}">{text}</text>"#));
        }
        self
    }

    /// A name where the y axis has its labels.
    pub fn row_name(mut self, at: f64, name: &str) -> Self {
        let (x, y, name) = (self.left - 12.0, self.y_of(at) + 4.0, escaped(name));
        self.push(format_args!(r#"<text class="name end" x="{x}" y="{y:.1}">{name}</text>"#));
        self
    }

    /// Marks below the axis and their labels; a label that would run into the one before is left out.
    pub fn x_axis(mut self, ticks: &[f64], label: impl Fn(f64) -> String) -> Self {
        let bottom = self.height - BOTTOM;
        let mut last = f64::NEG_INFINITY;
        for &value in ticks {
            let x = self.x_of(value);
            self.push(format_args!(r#"<path class="grid" d="M{x:.1} {TOP}V{bottom}"/>"#));
            if x - last >= LABEL_WIDTH {
                // A label at the edge stays within the picture.
                let (at, anchor) = if x > WIDTH - RIGHT - 24.0 { (WIDTH - 2.0, "end") } else { (x, "middle") };
                let (y, text) = (bottom + 18.0, escaped(&label(value)));
                self.push(format_args!(r#"<text class="tick {anchor}" x="{at:.1}" y="{y}">{text}</text>"#));
                last = x;
            }
        }
        self
    }

    /// From one x to another over the whole height; at least wide enough to be seen.
    pub fn band(mut self, class: &str, from: f64, to: f64, says: &str) -> Self {
        let (left, right) = (self.x_of(from), self.x_of(to));
        let (width, height, says) = ((right - left).max(2.0), self.height - TOP - BOTTOM, escaped(says));
        self.push(format_args!(
            r#"<rect class="{class}" x="{left:.1}" y="{TOP}" width="{width:.1}" height="{height}"><title>{says}</title></rect>"#
        ));
        self
    }

    /// A small text at the upper edge.
    pub fn flag(mut self, class: &str, at: f64, text: &str) -> Self {
        let (x, y, text) = (self.x_of(at), TOP - 4.0, escaped(text));
        let anchor = if x > WIDTH - 120.0 { "end" } else { "start" };
        self.push(format_args!(r#"<text class="{class} {anchor}" x="{x:.1}" y="{y}">{text}</text>"#));
        self
    }

    /// A line through the points that exist, with a gap where one is missing. A point between two gaps is a dot.
    pub fn line(mut self, class: &str, points: &[(f64, Option<f64>)]) -> Self {
        for run in runs(points) {
            if let [(x, y)] = run[..] {
                self = self.dot(class, x, y, 2.5, None);
                continue;
            }
            let path = self.path(&run);
            self.push(format_args!(r#"<path class="line {class}" d="{path}"/>"#));
        }
        self
    }

    /// Like a line, filled down to the axis.
    pub fn area(mut self, class: &str, points: &[(f64, Option<f64>)]) -> Self {
        let bottom = self.height - BOTTOM;
        for run in runs(points) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let (left, right, path) = (self.x_of(first.0), self.x_of(last.0), self.path(&run));
            self.push(format_args!(
                r#"<path class="area {class}" d="{path}L{right:.1} {bottom}L{left:.1} {bottom}Z"/>"#
            ));
        }
        self
    }

    fn path(&self, run: &[(f64, f64)]) -> String {
        let mut path = String::new();
        for (place, &(x, y)) in run.iter().enumerate() {
            let verb = if place == 0 { 'M' } else { 'L' };
            let (x, y) = (self.x_of(x), self.y_of(y));
            write!(path, "{verb}{x:.1} {y:.1}").expect("a string takes everything");
        }
        path
    }

    /// A column from the axis up, in the middle of its stretch.
    pub fn column(mut self, class: &str, from: f64, to: f64, value: f64) -> Self {
        let (left, right) = (self.x_of(from), self.x_of(to));
        // A hair of space between two columns, unless they are hairs themselves; and no walls in a run of three
        // seconds.
        let width = (right - left - if right - left > 4.0 { 1.0 } else { 0.0 }).clamp(0.8, 36.0);
        let left = (left + right - width) / 2.0;
        let height = (self.height - BOTTOM - self.y_of(value)).max(if value > 0.0 { 1.0 } else { 0.0 });
        let top = self.height - BOTTOM - height;
        self.push(format_args!(
            r#"<rect class="{class}" x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}"/>"#
        ));
        self
    }

    pub fn dot(mut self, class: &str, x: f64, y: f64, radius: f64, says: Option<&str>) -> Self {
        let (x, y) = (self.x_of(x), self.y_of(y));
        let title = says.map_or_else(String::new, |says| format!("<title>{}</title>", escaped(says)));
        self.push(format_args!(r#"<circle class="dot {class}" cx="{x:.1}" cy="{y:.1}" r="{radius}">{title}</circle>"#));
        self
    }

    /// An invisible column that shows a text under the pointer.
    pub fn hover(mut self, from: f64, to: f64, says: &str) -> Self {
        let (left, right) = (self.x_of(from), self.x_of(to));
        let (width, height, says) = ((right - left).max(1.0), self.height - TOP - BOTTOM, escaped(says));
        self.push(format_args!(
            r#"<rect class="hover" x="{left:.1}" y="{TOP}" width="{width:.1}" height="{height}"><title>{says}</title></rect>"#
        ));
        self
    }

    /// In the middle of a plot that has nothing to show.
    pub fn empty(mut self, text: &str) -> Self {
        let (x, y, text) = ((self.left + WIDTH - RIGHT) / 2.0, self.height / 2.0, escaped(text));
        self.push(format_args!(r#"<text class="none middle" x="{x}" y="{y}">{text}</text>"#));
        self
    }

    pub fn finish(mut self) -> String {
        self.svg.push_str("</svg>");
        self.svg
    }
}

/// Unbroken stretches of points.
fn runs(points: &[(f64, Option<f64>)]) -> Vec<Vec<(f64, f64)>> {
    let mut runs: Vec<Vec<_>> = vec![Vec::new()];
    for &(x, y) in points {
        match (y, runs.last_mut()) {
            (Some(y), Some(run)) => run.push((x, y)),
            _ => runs.push(Vec::new()),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!(Scale::up_to(1_041.0), Scale::Linear { from: 0.0, to: 1_500.0 });
        assert_eq!(Scale::up_to(0.0).ticks(), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        let powers = |values: &[f64]| Scale::powers(values.iter().copied()).ticks();
        assert_eq!(powers(&[1_900.0, 3_000_000.0]).len(), 5);
        assert_eq!(powers(&[5.0]), [1.0, 10.0, 100.0]);
        assert_eq!(powers(&[0.0, f64::NAN]).len(), 4);
        assert_eq!(clock_ticks(60.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        assert_eq!(clock_ticks(3.0).len(), 7);
        assert!(clock_ticks(1e6).len() <= 11);
    }

    #[test]
    fn no_value_leaves_the_frame() {
        let scale = Scale::Log { from: 1.0, to: 1_000.0 };
        let places = [0.0, -1.0, f64::NAN, f64::INFINITY, 1.0, 1e9].map(|value| scale.place(value));
        assert_eq!(places, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(Scale::Linear { from: 0.0, to: 0.0 }.place(0.0), 0.0);
    }

    #[test]
    fn a_line_has_gaps_where_nothing_was_measured() {
        let points = [(0.0, Some(1.0)), (1.0, Some(2.0)), (2.0, None), (3.0, Some(1.0)), (4.0, None)];
        assert_eq!(runs(&points), [vec![(0.0, 1.0), (1.0, 2.0)], vec![(3.0, 1.0)]]);
        let scale = Scale::Linear { from: 0.0, to: 4.0 };
        let svg = Plot::new("x", 100.0, scale, scale).line("a", &points).finish();
        assert_eq!((svg.matches("<path").count(), svg.matches("<circle").count()), (1, 1));
    }
}

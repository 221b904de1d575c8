//! Small plots as SVG within the page: no script draws them, and each bar says in words what it stands for.

use std::fmt::Write;

use super::answers::{At, Slot, Told};
use crate::{http::html::visible, view::words};

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 72.0;

/// One bar: how much of it is good, how much is bad, and what it stands for.
struct Bar {
    good: u64,
    bad: u64,
    says: String,
}

/// Attempts by minute or by hour: delivered, and failed above them.
pub fn attempts(name: &str, slots: &[Slot]) -> String {
    let says = |slot: &Slot| {
        let (delivered, failed) = (words::number(slot.delivered), words::number(slot.failed));
        format!("{}: {delivered} delivered, {failed} failed", slot.at.clock())
    };
    let bars: Vec<Bar> =
        slots.iter().map(|slot| Bar { good: slot.delivered, bad: slot.failed, says: says(slot) }).collect();
    bars_of(name, &bars)
}

/// Something bad by hour, up to the hour of `now`.
pub fn by_hour(name: &str, counts: &[u64], now: &At, of: [&str; 2]) -> String {
    let says = |(at, count): (usize, &u64)| {
        let back = (counts.len() - 1 - at) as u64 * 3_600_000;
        let hour = words::instant(now.ms().saturating_sub(back));
        let hour = hour.get(11..13).unwrap_or_default();
        Bar { good: 0, bad: *count, says: format!("{hour}:00: {}", words::count(*count, of[0], of[1])) }
    };
    bars_of(name, &counts.iter().enumerate().map(says).collect::<Vec<_>>())
}

fn bars_of(name: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.good + bar.bad).max().unwrap_or_default();
    let (scale, step) = (HEIGHT / most.max(1) as f64, WIDTH / bars.len().max(1) as f64);
    let (name, most) = (visible(name), words::number(most));
    let mut svg = format!(
        r#"<figure><figcaption>{name} <span>at most {most}</span></figcaption><svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{name}, at most {most}">"#
    );
    for (at, bar) in bars.iter().enumerate() {
        let (x, width) = (at as f64 * step, (step - 2.0).max(1.0));
        let title = visible(&bar.says);
        let _ = write!(
            svg,
            r#"<g><title>{title}</title><rect class="room" x="{x:.1}" y="0" width="{width:.1}" height="{HEIGHT}"/>"#
        );
        // What is there is seen, however little it is.
        let height = |count: u64| if count == 0 { 0.0 } else { (count as f64 * scale).max(1.5) };
        let (good, bad) = (height(bar.good), height(bar.bad));
        for (class, y, height) in [("good", HEIGHT - good, good), ("bad", (HEIGHT - good - bad).max(0.0), bad)] {
            if height > 0.0 {
                let _ = write!(
                    svg,
                    r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#
                );
            }
        }
        svg.push_str("</g>");
    }
    svg + "</svg></figure>"
}

/// Something on the axis of an intent: when, in which row, how it looks, and what it is.
pub struct Point {
    pub at_ms: u64,
    pub row: usize,
    pub class: &'static str,
    pub says: String,
}

/// One axis of time with a row for each name. Times are told apart by their order where they are too close to each other.
pub fn axis(rows: &[String], points: &[Point]) -> String {
    const NAMES: f64 = 230.0;
    const ROW: f64 = 24.0;
    const WIDE: f64 = 1_100.0;
    let (Some(first), Some(last)) =
        (points.iter().map(|point| point.at_ms).min(), points.iter().map(|point| point.at_ms).max())
    else {
        return String::new();
    };
    let span = last.saturating_sub(first).max(1) as f64;
    let (height, told) = (ROW * rows.len() as f64 + 22.0, words::span(last - first));
    let mut svg = format!(
        r#"<svg class="axis" viewBox="0 0 {WIDE} {height}" role="img" aria-label="What happened over {told}; the table below says the same">"#
    );
    for (at, row) in rows.iter().enumerate() {
        let y = ROW * at as f64 + 12.0;
        let (row, text) = (visible(row), y + 4.0);
        let _ = write!(svg, r#"<text x="0" y="{text}">{row}</text><line x1="{NAMES}" y1="{y}" x2="{WIDE}" y2="{y}"/>"#);
    }
    for point in points {
        let x = NAMES + 6.0 + (point.at_ms - first) as f64 / span * (WIDE - NAMES - 12.0);
        let y = ROW * point.row as f64 + 12.0;
        let (class, says) = (point.class, visible(&point.says));
        let _ = write!(svg, r#"<g class="{class}"><title>{says}</title><circle cx="{x:.1}" cy="{y}" r="5"/></g>"#);
    }
    let y = height - 4.0;
    let [from, until] = [first, last].map(|ms| words::instant(ms).trim_end_matches('Z').replacen('T', " ", 1));
    let _ = write!(
        svg,
        r#"<text x="{NAMES}" y="{y}">{from}</text><text class="end" x="{WIDE}" y="{y}">{until}</text></svg>"#
    );
    svg
}

/// How what the history tells looks on an axis.
pub fn class_of(told: &Told) -> &'static str {
    match told.kind.as_str() {
        "delivered" => "good",
        "failed" | "dead" => "bad",
        _ => "calm",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_that_is_not_empty_is_seen_and_says_what_it_is() {
        let slot = |delivered, failed| Slot { at: At("2026-11-27T19:35:00.000Z".to_owned()), delivered, failed };
        let svg = attempts("Attempts <b>", &[slot(100_000, 1), slot(0, 0)]);
        assert!(svg.contains("19:35: 100 000 delivered, 1 failed") && svg.contains("at most 100 001"), "{svg}");
        assert!(
            svg.contains("Attempts &lt;b&gt;")
                && svg.contains(r#"class="bad" x="0.0" y="0.0" width="178.0" height="1.5""#),
            "{svg}"
        );
        assert_eq!(svg.matches("class=\"good\"").count(), 1);
    }

    #[test]
    fn what_happened_at_one_moment_is_drawn_once_each_and_nothing_is_no_axis() {
        assert_eq!(axis(&["events".to_owned()], &[]), "");
        let point = |says: &str| Point { at_ms: 5, row: 0, class: "good", says: says.to_owned() };
        let svg = axis(&["events".to_owned()], &[point("one"), point("two")]);
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}

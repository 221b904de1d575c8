//! Numbers as people read them, and texts as they may be shown. Never more digits than a measurement has.

use crate::facts::text::steers;

/// Three significant digits with the unit that suits: `840 us`, `1.24 ms`, `12.5 s`.
pub fn time(us: f64) -> String {
    match us.abs() {
        under if under < 1_000.0 => format!("{} us", digits(us)),
        under if under < 1_000_000.0 => format!("{} ms", digits(us / 1_000.0)),
        _ => format!("{} s", digits(us / 1_000_000.0)),
    }
}

pub fn time_us(us: u64) -> String {
    time(us as f64)
}

/// `148 MB`: powers of ten, as memory limits are written.
pub fn bytes(bytes: f64) -> String {
    match bytes.abs() {
        under if under < 1e3 => format!("{} B", digits(bytes)),
        under if under < 1e6 => format!("{} kB", digits(bytes / 1e3)),
        under if under < 1e9 => format!("{} MB", digits(bytes / 1e6)),
        _ => format!("{} GB", digits(bytes / 1e9)),
    }
}

/// `1 234 567`, as the documents write it.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// `26 400/s`; with a decimal below ten.
pub fn rate(rate: f64) -> String {
    format!("{}/s", number(rate))
}

/// Whole and grouped from ten on, with three digits below.
pub fn number(value: f64) -> String {
    match value {
        value if !value.is_finite() => "?".to_owned(),
        value if value.abs() < 10.0 && value.fract() != 0.0 => digits(value),
        value if value < 0.0 => format!("-{}", count((-value).round() as u64)),
        value => count(value.round() as u64),
    }
}

/// A length of time in seconds: `4.2 s`, `1 min 05 s`, `1 h 02 min`.
pub fn seconds(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{} s", digits(seconds)),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Three significant digits, no idle zeros behind the point.
fn digits(value: f64) -> String {
    let places = match value.abs() {
        from if from >= 99.95 => 0,
        from if from >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.places$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Bare plural: `1 worker`, `3 workers`.
pub fn of(many: u64, one: &str) -> String {
    format!("{} {one}{}", count(many), if many == 1 { "" } else { "s" })
}

/// What somebody wrote must not move the cursor of a terminal, turn its writing or break a row.
pub fn cell(text: &str) -> String {
    text.chars().map(|c| if steers(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_unit_that_suits_them_and_three_digits() {
        let times = [0.0, 1.0, 999.0, 1_240.0, 12_460.0, 124_600.0, 1_246_000.0].map(time);
        assert_eq!(times, ["0 us", "1 us", "999 us", "1.24 ms", "12.5 ms", "125 ms", "1.25 s"]);
        assert_eq!([850.0, 148_300_000.0, 2.5e9].map(bytes), ["850 B", "148 MB", "2.5 GB"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1 000", "1 234 567"]);
        assert_eq!([0.0, 0.534, 9.0, 26_400.4].map(rate), ["0/s", "0.53/s", "9/s", "26 400/s"]);
        assert_eq!([3.0, 4.25, 65.0, 3_720.0].map(seconds), ["3 s", "4.25 s", "1 min 05 s", "1 h 02 min"]);
        assert_eq!(number(f64::NAN), "?");
    }
}

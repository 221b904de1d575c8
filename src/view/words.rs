//! Numbers, times, sizes and reasons in words, for people who were asleep a minute ago. The one place that knows how
//! they look: `1 234`, `1.4 GiB`, and times as the configuration takes them, so that what is shown can be typed:
//! `250ms`, `3m 20s`. Never shows more digits than a measurement has.

pub use crate::facts::text::bytes;
use crate::facts::{
    outcome::{LocalCause, Outcome},
    retry::DeadReason,
};

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Two units are enough to judge an age by: `45s`, `3m 20s`, `2h 5m`, `3d 4h`.
pub fn span(ms: u64) -> String {
    let two = |large: u64, small: u64, names: [&str; 2]| match ms % large / small {
        0 => format!("{}{}", ms / large, names[0]),
        rest => format!("{}{} {rest}{}", ms / large, names[0], names[1]),
    };
    match ms {
        0..SECOND_MS => format!("{ms}ms"),
        SECOND_MS..MINUTE_MS => format!("{}s", ms / SECOND_MS),
        MINUTE_MS..HOUR_MS => two(MINUTE_MS, SECOND_MS, ["m", "s"]),
        HOUR_MS..DAY_MS => two(HOUR_MS, MINUTE_MS, ["h", "m"]),
        _ => two(DAY_MS, HOUR_MS, ["d", "h"]),
    }
}

/// `3m 20s ago`, or `in 3m 20s`.
pub fn ago(ms: u64, now_ms: u64) -> String {
    match ms > now_ms {
        true => format!("in {}", span(ms - now_ms)),
        false => format!("{} ago", span(now_ms - ms)),
    }
}

/// The instant and its distance, for stories, where both matter: `2026-01-01T00:00:00Z (3m ago)`.
pub fn when(ms: u64, now_ms: u64) -> String {
    format!("{} ({})", instant(ms), ago(ms, now_ms))
}

/// RFC 3339 in UTC, to the second.
pub fn instant(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).ok();
    let known = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    known.map_or_else(|| format!("{ms} ms"), |instant| instant.to_string())
}

/// A measured time, in microseconds: three significant digits, and from a minute on two units as in [`span`]: `840us`,
/// `1.24ms`, `12.5s`, `1m 5s`.
pub fn time(us: f64) -> String {
    match us {
        0.0 => "0s".to_owned(),
        us if us < 1e3 => format!("{}us", digits(us)),
        us if us < 1e6 => format!("{}ms", digits(us / 1e3)),
        us if us < 60e6 => format!("{}s", digits(us / 1e6)),
        us => span((us / 1e3).round() as u64),
    }
}

pub fn time_us(us: u64) -> String {
    time(us as f64)
}

/// Like [`time`].
pub fn seconds(seconds: f64) -> String {
    time(seconds * 1e6)
}

/// `1 204 000`.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A count for a narrow column: `999`, `1.2k`, `34k`, `1.2M`.
pub fn short(n: u64) -> String {
    let of = |unit: u64, name: &str| match n / unit {
        0..10 => format!("{}.{}{name}", n / unit, n % unit / (unit / 10)),
        many => format!("{many}{name}"),
    };
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => of(1_000, "k"),
        1_000_000..1_000_000_000 => of(1_000_000, "M"),
        _ => of(1_000_000_000, "G"),
    }
}

/// From ten on whole and grouped, below that with three significant digits.
pub fn decimal(value: f64) -> String {
    match value {
        value if !value.is_finite() => "?".to_owned(),
        value if value.abs() < 10.0 && value.fract() != 0.0 => digits(value),
        value if value < 0.0 => format!("-{}", number((-value).round() as u64)),
        value => number(value.round() as u64),
    }
}

/// `26 400/s`; like [`decimal`].
pub fn rate(rate: f64) -> String {
    format!("{}/s", decimal(rate))
}

/// Three significant digits, without trailing zeros after the point.
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

/// `1 dead letter`, `2 000 dead letters`.
pub fn count(n: u64, one: &str, many: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        _ => format!("{} {many}", number(n)),
    }
}

/// Why a delivery was given up.
pub fn dead_reason(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::Exhausted => "every attempt that the retry policy allows was made",
        DeadReason::Expired => "it grew older than the retry policy's maximum age",
        DeadReason::Gone => "the receiver answered 410: this URL is gone, and the endpoint was disabled",
        DeadReason::Disabled => "its endpoint is disabled",
        DeadReason::Deleted => "its endpoint was deleted",
        DeadReason::Released => "an operator released its chain",
    }
}

/// What an attempt's outcome means, and what a person can do where nothing mends itself.
pub fn outcome(outcome: &Outcome) -> &'static str {
    if let Some(advice) = outcome.needs_a_person() {
        return advice;
    }
    match outcome {
        Outcome::Delivered { .. } => "the receiver took it",
        Outcome::Throttled { .. } => "the receiver, or what stands before it, asks for less; Herald slows down",
        Outcome::Rejected { .. } => "the receiver refuses this request: ask its owner why",
        Outcome::ServerFailed { .. } => "the receiver failed on its own side",
        Outcome::DnsFailed => "the host's name cannot be resolved: is it right, and is its DNS up?",
        Outcome::ConnectFailed => "nothing listens there, or there is no route to it",
        Outcome::ConnectTimedOut => "no connection within the time for it: a firewall, or the host is down",
        Outcome::ProxyFailed => "the egress proxy refuses, is silent or is away; the receiver was not asked",
        Outcome::ResponseTimedOut => "connected, but no answer within the attempt's time",
        Outcome::Reset => "the receiver closed the connection before it answered",
        Outcome::Garbled => "what came back is not HTTP",
        Outcome::Local { cause: LocalCause::Descriptors } => {
            "Herald ran out of descriptors, ports or memory: raise its limits; the receiver is not to blame"
        }
        Outcome::Local { cause: LocalCause::Lookups } => {
            "Herald is looking up as many names as it may: are its name servers up? The receiver is not to blame"
        }
        Outcome::Local { cause: LocalCause::Lag } => "Herald was too busy to tell; the receiver is not to blame",
        Outcome::Redirected { .. }
        | Outcome::Gone
        | Outcome::Tls { .. }
        | Outcome::AddressRefused
        | Outcome::Unsendable => "a retry alone does not mend this",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_at_most_two_units() {
        let ages = [(0, "0ms"), (999, "999ms"), (45_000, "45s"), (200_000, "3m 20s"), (7_200_000, "2h")];
        for (ms, text) in ages {
            assert_eq!(span(ms), text);
        }
        assert_eq!(span(3 * DAY_MS + 4 * HOUR_MS + 59 * MINUTE_MS), "3d 4h");
        assert_eq!((ago(1_000, 61_000), ago(61_000, 1_000)), ("1m ago".to_owned(), "in 1m".to_owned()));
    }

    #[test]
    fn what_was_measured_has_the_unit_that_suits_it_and_three_digits() {
        let times = [0.0, 1.0, 999.0, 1_240.0, 12_460.0, 124_600.0, 1_246_000.0].map(time);
        assert_eq!(times, ["0s", "1us", "999us", "1.24ms", "12.5ms", "125ms", "1.25s"]);
        assert_eq!([3.0, 4.25, 65.0, 3_720.0].map(seconds), ["3s", "4.25s", "1m 5s", "1h 2m"]);
        assert_eq!([0.0, 0.534, 9.0, 26_400.4].map(rate), ["0/s", "0.53/s", "9/s", "26 400/s"]);
        assert_eq!(decimal(f64::NAN), "?");
    }

    #[test]
    fn a_time_has_its_distance_beside_it() {
        assert_eq!(when(1_700_000_000_000, 1_700_000_090_000), "2023-11-14T22:13:20Z (1m 30s ago)");
        assert_eq!(when(1_700_000_060_000, 1_700_000_000_000), "2023-11-14T22:14:20Z (in 1m)");
        assert_eq!(when(5_000, 5_999), "1970-01-01T00:00:05Z (999ms ago)");
        assert_eq!(instant(u64::MAX), "18446744073709551615 ms");
    }

    #[test]
    fn a_count_in_a_narrow_column_has_four_characters() {
        let counts = [0, 999, 1_000, 1_299, 34_567, 999_999, 1_250_000, 2_000_000_000].map(short);
        assert_eq!(counts, ["0", "999", "1.0k", "1.2k", "34k", "999k", "1.2M", "2.0G"]);
    }

    #[test]
    fn a_large_number_can_be_read() {
        assert_eq!((number(999), number(1_204_000)), ("999".to_owned(), "1 204 000".to_owned()));
        assert_eq!(
            (count(1, "entry", "entries"), count(0, "entry", "entries")),
            ("1 entry".into(), "0 entries".into())
        );
        assert_eq!((bytes(512), bytes(1_500_000_000)), ("512 bytes".to_owned(), "1.4 GiB".to_owned()));
    }
}

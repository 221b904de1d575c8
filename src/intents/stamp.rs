//! Points in time and spans, as the intents' world counts them: microseconds by the clock that Redis keeps for it, which in
//! a sandbox can be moved. Written with seven digits of a second, as Dojo writes them.

use std::{fmt, ops::Add};

use jiff::{Timestamp, civil::Date, fmt::strtime, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

pub const SECOND: i64 = 1_000_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const DAY: i64 = 24 * 60 * MINUTE;

/// The last instant whose year has four digits.
const MAX_MICROS: i64 = 253_402_300_799_999_999;

/// Microseconds since 1970.
///
/// In a record that a change writes, [`Stamp::THIS`] stands for the instant of that very change: the script that commits it
/// is the first to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp(pub i64);

/// In records: the number of microseconds.
pub mod micros {
    use super::{Deserialize, Deserializer, Serializer, Stamp};

    pub fn serialize<S: Serializer>(stamp: &Stamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(stamp.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Stamp, D::Error> {
        i64::deserialize(deserializer).map(Stamp)
    }
}

/// In requests and answers: as RFC 3339 writes it.
impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom("is not an instant from 1970 to 9999 as RFC 3339 writes it, such as 2025-09-10T12:00:00Z")
        })
    }
}

impl Stamp {
    pub const THIS: Self = Self(0);

    /// The end of the year 9999.
    pub const MAX: Self = Self(MAX_MICROS);

    /// The instant itself, given that of the change that wrote it.
    pub fn or(self, this: Self) -> Self {
        if self == Self::THIS { this } else { self }
    }

    pub fn is_this(&self) -> bool {
        *self == Self::THIS
    }

    /// RFC 3339, of the years 1970 to 9999. Digits beyond microseconds are dropped.
    pub fn parse(text: &str) -> Option<Self> {
        let text = crate::facts::rfc3339::is_date_time(text).then_some(text)?;
        let at: Timestamp = text.parse().ok()?;
        let micros = at.as_microsecond();
        (1..=MAX_MICROS).contains(&micros).then_some(Self(micros))
    }

    /// The calendar day that it belongs to in a time zone.
    pub fn day(self, zone: &TimeZone) -> Date {
        self.timestamp().to_zoned(zone.clone()).date()
    }

    fn timestamp(self) -> Timestamp {
        Timestamp::from_microsecond(self.0.clamp(0, MAX_MICROS)).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// Microseconds later. Nothing goes past the year 9999.
impl Add<i64> for Stamp {
    type Output = Self;

    fn add(self, micros: i64) -> Self {
        Self(self.0.saturating_add(micros).min(MAX_MICROS))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.timestamp().to_zoned(TimeZone::UTC);
        let date = strtime::format("%Y-%m-%dT%H:%M:%S", &at).map_err(|_| fmt::Error)?;
        write!(f, "{date}.{:06}0Z", at.subsec_nanosecond() / 1_000)
    }
}

/// A span as .NET writes it, `[d.]hh:mm:ss`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(i64);

impl TimeSpan {
    pub fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds of it. None where it is longer than can be written.
    pub fn of_micros(micros: u128) -> Option<Self> {
        let micros = i64::try_from(micros).ok().filter(|micros| *micros / DAY < 10_000_000)?;
        Some(Self(micros / SECOND * SECOND))
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (days, time) = text.split_once('.').unwrap_or(("0", text));
        let mut parts = time.split(':').map(|part| (part.len() == 2).then(|| digits(part)).flatten());
        let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
        let is_whole = parts.next().is_none() && hours < 24 && minutes < 60 && seconds < 60;
        let days = (days.len() <= 7).then(|| digits(days)).flatten()?;
        is_whole.then_some(Self(days * DAY + ((hours * 60 + minutes) * 60 + seconds) * SECOND))
    }
}

impl Serialize for TimeSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| D::Error::custom("is not a span written as [d.]hh:mm:ss, such as 00:30:00 or 6.12:00:00"))
    }
}

fn digits(text: &str) -> Option<i64> {
    let are_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    are_digits.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / SECOND;
        let (days, seconds) = (seconds / 86_400, seconds % 86_400);
        if days > 0 {
            write!(f, "{days}.")?;
        }
        write!(f, "{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_has_seven_digits_and_comes_back() {
        let at = Stamp::parse("2022-02-01T13:07:41.8667859Z").unwrap();
        assert_eq!(at.to_string(), "2022-02-01T13:07:41.8667850Z");
        assert_eq!(Stamp::parse(&at.to_string()), Some(at));
        assert_eq!(Stamp::parse("2022-02-01T14:07:41+01:00").unwrap().to_string(), "2022-02-01T13:07:41.0000000Z");
    }

    #[test]
    fn what_is_no_instant_of_four_digits_is_refused() {
        for text in
            ["", "2022-02-01", "tomorrow", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "10000-01-01T00:00:00Z"]
        {
            assert_eq!(Stamp::parse(text), None, "{text}");
        }
        assert_eq!(Stamp::MAX + DAY, Stamp::MAX);
    }

    #[test]
    fn a_span_is_read_and_written_as_dot_net_does() {
        for (text, written) in [("00:00:55", "00:00:55"), ("0.23:59:59", "23:59:59"), ("06.00:00:01", "6.00:00:01")] {
            assert_eq!(TimeSpan::parse(text).unwrap().to_string(), written);
        }
        for text in [
            "",
            "55",
            "24:00:00",
            "00:60:00",
            "00:00:60",
            "1:00:00",
            "-00:00:55",
            "1.00:00",
            "00:00:00:00",
            "x.00:00:01",
        ] {
            assert_eq!(TimeSpan::parse(text), None, "{text}");
        }
    }
}

//! Moments: as they are shown, in RFC 3339, and as people type them.

use std::time::Duration;

use serde::{Serialize, Serializer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, Type},
};

use crate::{config::parse_duration, facts::rfc3339};

/// Milliseconds since 1970, shown in UTC to the millisecond: `2026-05-01T09:00:00.123Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    pub fn text(self) -> String {
        let known = i64::try_from(self.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        format!("{:.3}", known.unwrap_or(jiff::Timestamp::MAX))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl PartialSchema for Time {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
    }
}

impl ToSchema for Time {}

/// A moment as it is typed: `2026-05-01T09:00:00Z`, or an age, `6h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Ago(Duration),
    /// Milliseconds since 1970.
    At(u64),
}

impl Moment {
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(age) = parse_duration(text) {
            return Ok(Self::Ago(age));
        }
        let is_time = rfc3339::is_date_time(text);
        match is_time.then(|| text.parse::<jiff::Timestamp>().ok()).flatten() {
            Some(instant) => Ok(Self::At(u64::try_from(instant.as_millisecond()).unwrap_or(0))),
            None if is_time => Err("it is later than any time that can be told, 9999-12-30T22:00:00Z".to_owned()),
            None if is_one_number_with_a_unit(text) => {
                Err("it is a longer age than can be told, as 7000000d can".to_owned())
            }
            None => Err("it is neither a time, as 2026-05-01T09:00:00Z, nor an age, as 6h".to_owned()),
        }
    }

    pub fn ms(self, now_ms: u64) -> u64 {
        match self {
            Self::Ago(age) => now_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            Self::At(ms) => ms,
        }
    }
}

fn is_one_number_with_a_unit(text: &str) -> bool {
    let number = text.trim_end_matches(['s', 'm', 'h', 'd', 'w']);
    number.len() + 1 == text.len() && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_to_the_millisecond_and_always_the_same_way() {
        assert_eq!(Time(1_777_626_000_123).text(), "2026-05-01T09:00:00.123Z");
        assert_eq!(
            (Time(0).text(), Time(u64::MAX).text()),
            ("1970-01-01T00:00:00.000Z".into(), "9999-12-30T22:00:00.999Z".into())
        );
        assert!(rfc3339::is_date_time(&Time(7).text()));
    }

    #[test]
    fn a_moment_is_an_age_or_an_instant() {
        assert_eq!(Moment::parse("2h").unwrap().ms(7_200_001), 1);
        assert_eq!(Moment::parse("2026-01-31T09:00:00Z").unwrap().ms(0), 1_769_850_000_000);
        assert!(Moment::parse("yesterday").is_err() && Moment::parse("-2h").is_err());
        for (text, says) in [
            ("9999-12-31T23:59:59Z", "later"),
            ("999999999999d", "longer"),
            ("d", "neither"),
            ("6 hours ago or so", "neither"),
        ] {
            assert!(Moment::parse(text).unwrap_err().contains(says), "{text}");
        }
        assert!(Moment::parse("7000000d").is_ok());
    }
}

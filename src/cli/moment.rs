//! A time as an operator writes it: an age, or an instant.

use std::time::Duration;

use crate::config::parse_duration;

/// A time as an operator writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Ago(Duration),
    At(u64),
}

impl Moment {
    pub fn ms(self, now_ms: u64) -> u64 {
        match self {
            Self::Ago(age) => now_ms.saturating_sub(age.as_millis() as u64),
            Self::At(ms) => ms,
        }
    }
}

pub fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(age) = parse_duration(text) {
        return Ok(Moment::Ago(age));
    }
    let at = text.parse::<jiff::Timestamp>().ok().and_then(|at| u64::try_from(at.as_millisecond()).ok());
    at.map(Moment::At).ok_or_else(|| "write an age such as 2h or 7d, or an instant such as 2026-01-31T09:00:00Z".into())
}

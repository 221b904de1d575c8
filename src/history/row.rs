//! A line of the log as a row of the history.

use sha2::{Digest, Sha256};

use super::day_of;
use crate::facts::{
    id::{AccountId, EndpointId, EventId, IntentId},
    letter::Cause,
    log::Logged,
};

/// How far ahead a time may be before it is not believed: clocks of one system differ by less.
const AHEAD_DAYS: u64 = 1;

/// One row. Absent texts are empty: an index needs no third value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// The table that it goes to.
    pub day: u64,
    pub at_ms: u64,
    /// With the time, its identity: the same line again is the same row.
    pub key: i64,
    pub kind: &'static str,
    pub entry: String,
    pub endpoint: String,
    pub account: String,
    pub intent: String,
    pub event: String,
    pub event_type: String,
    pub attempt: u32,
    pub took_us: u64,
    pub outcome: String,
    pub detail: String,
}

impl Row {
    /// A time that cannot be right is kept as it is, but filed under today: such rows leave like all others.
    pub fn of(line: &Logged, keep_days: u64, now_ms: u64) -> Self {
        let (at_ms, today) = (line.at_ms(), day_of(now_ms));
        let day = day_of(at_ms);
        let day = if (today.saturating_sub(keep_days)..=today + AHEAD_DAYS).contains(&day) { day } else { today };
        let mut row = Self {
            day,
            at_ms,
            key: 0,
            kind: "",
            entry: String::new(),
            endpoint: line.endpoint().map_or("", EndpointId::as_str).to_owned(),
            account: line.account().map_or("", AccountId::as_str).to_owned(),
            intent: line.intent().map_or("", IntentId::as_str).to_owned(),
            event: line.event().map_or("", EventId::as_str).to_owned(),
            event_type: String::new(),
            attempt: 0,
            took_us: 0,
            outcome: String::new(),
            detail: String::new(),
        };
        match line {
            Logged::Attempt(line) => {
                row.kind = if line.outcome.is_delivered() { "delivered" } else { "failed" };
                row.entry = line.delivery.entry.to_string();
                row.attempt = line.attempt;
                row.took_us = line.took_us;
                row.outcome = Cause::of(&line.outcome).to_string();
                row.detail.clone_from(&line.detail);
            }
            Logged::End(line) => {
                row.kind = line.end.name();
                row.entry = line.entry.to_string();
                row.event_type = line.event_type.as_ref().map_or("", |name| name.as_str()).to_owned();
                row.attempt = line.attempts;
                row.detail.clone_from(&line.why);
            }
        }
        row.key = key(&[&row.entry, &row.endpoint, row.kind, &row.event, &row.attempt.to_string()]);
        row
    }
}

/// Eight bytes of a hash: with the millisecond beside it, that no two rows have the same is certain enough.
fn key(parts: &[&str]) -> i64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    head(&hash.finalize())
}

/// What tells two texts apart, in a column of a number.
pub(super) fn seal(text: &[u8]) -> i64 {
    head(&Sha256::digest(text))
}

fn head(hash: &[u8]) -> i64 {
    i64::from_be_bytes(hash.first_chunk().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::log::LogLine;

    const NOW_MS: u64 = 20_000 * 86_400_000 + 5;

    fn line(at_ms: u64, attempt: u32) -> Logged {
        let text = format!(
            r#"["17-1:ep_a","evt_1","pi_1","acc_1",{attempt},{at_ms},5,{{"kind":"server_failed","status":500}},""]"#
        );
        Logged::Attempt(LogLine::read(text.as_bytes()).unwrap())
    }

    #[test]
    fn the_same_line_is_the_same_row_and_another_attempt_is_another() {
        let row = |at_ms, attempt| Row::of(&line(at_ms, attempt), 30, NOW_MS);
        assert_eq!(row(NOW_MS, 1), row(NOW_MS, 1));
        assert_ne!(row(NOW_MS, 1).key, row(NOW_MS, 2).key);
        assert_eq!((row(NOW_MS, 1).kind, row(NOW_MS, 1).outcome.as_str()), ("failed", "server_failed:500"));
    }

    #[test]
    fn a_row_with_a_wild_time_is_filed_under_today_and_leaves_with_it() {
        for (at_ms, day) in [(NOW_MS, 20_000), (NOW_MS - 86_400_000, 19_999), (7, 20_000), (u64::MAX, 20_000)] {
            let row = Row::of(&line(at_ms, 1), 30, NOW_MS);
            assert_eq!((row.day, row.at_ms), (day, at_ms));
        }
    }
}

//! Reads the stream itself, from where the history stands onwards.

use std::sync::LazyLock;

use bytes::Bytes;
use redis::{FromRedisValue, Value};

use super::Queries;
use crate::{
    facts::id::EntryId,
    store::{
        connection::{Script, Subject},
        error::StoreError,
    },
};

static EVENTS: LazyLock<Script> = LazyLock::new(|| Script::new("events", include_str!("../scripts/events.lua")));

/// Behind a history's id, in the name under which it tells how far it has read the events.
const OF_EVENTS: &str = ":events";

/// An entry of the stream, with what an event has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEvent {
    pub entry: EntryId,
    /// Empty where there is none, or none that short.
    pub body: Bytes,
    /// Of the event among its account's.
    pub number: Option<u64>,
    pub traceparent: String,
}

/// A page of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventsPage {
    /// How many entries there are in all, how many were ever added, and the last id that was given out.
    pub length: u64,
    pub added: u64,
    pub last: EntryId,
    /// Redis' time, ms since 1970.
    pub now_ms: u64,
    /// The oldest entry that is there; of an empty stream, the last id.
    pub first: EntryId,
    pub events: Vec<RawEvent>,
}

/// How far a history has read the events themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventsRead {
    pub entry: EntryId,
    /// When that was so: Redis' time, ms since 1970.
    pub at_ms: u64,
    /// Bytes of an entry, on average.
    pub entry_bytes: u64,
}

impl EventsRead {
    fn to_text(self) -> String {
        format!("{} {} {}", self.entry, self.at_ms, self.entry_bytes)
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (entry, rest) = text.split_once(' ')?;
        let (at_ms, entry_bytes) = rest.split_once(' ')?;
        // A number alone is a line of the log.
        let entry = entry.contains('-').then(|| entry.parse().ok())??;
        Some(Self { entry, at_ms: at_ms.parse().ok()?, entry_bytes: entry_bytes.parse().ok()? })
    }
}

impl Queries {
    /// The oldest entries after this one, of a stream that may not be there. An event longer than `max_bytes` is left out.
    pub async fn events_after(
        &mut self,
        after: EntryId,
        max: usize,
        max_bytes: usize,
    ) -> Result<Option<EventsPage>, StoreError> {
        let subject = Subject("follow", self.keys.stream());
        let call = EVENTS.keys_to_read(&[self.keys.stream()]).arg(after.to_string()).arg(max).arg(max_bytes);
        let seen: Vec<Value> = self.connection.run(subject, &call).await?;
        let mut seen = seen.into_iter();
        let malformed = |error| StoreError::unexpected(subject, error);
        let mut next = || seen.next().unwrap_or(Value::Nil);
        let head = (next(), next(), next(), next(), next());
        if head.0 == Value::Nil {
            return Ok(None);
        }
        let [length, added, now_ms] = [head.0, head.1, head.3].map(u64::from_redis_value);
        let (length, added, now_ms) =
            (length.map_err(malformed)?, added.map_err(malformed)?, now_ms.map_err(malformed)?);
        let last = String::from_redis_value(head.2).map_err(malformed)?.parse().unwrap_or_default();
        let first = String::from_redis_value(head.4).map_err(malformed)?.parse().unwrap_or(last);
        let mut page = EventsPage { length, added, last, now_ms, first, events: Vec::new() };
        for event in seen {
            let (entry, body, number, traceparent): (String, Vec<u8>, String, Vec<u8>) =
                FromRedisValue::from_redis_value(event).map_err(malformed)?;
            let entry = entry.parse().map_err(|error| StoreError::unexpected(subject, error))?;
            let traceparent = String::from_utf8(traceparent).unwrap_or_default();
            page.events.push(RawEvent { entry, body: body.into(), number: number.parse().ok(), traceparent });
        }
        Ok(Some(page))
    }

    /// Tells the partition's owner how far a history has read the events, so that the stream is kept for it.
    pub async fn tell_history_of_events(&mut self, history: &str, read: EventsRead) -> Result<(), StoreError> {
        let mut command = redis::cmd("HSET");
        command.arg(self.keys.history()).arg(history.to_owned() + OF_EVENTS).arg(read.to_text());
        self.connection.query("tell how far the history is with the events", &command).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is_with_the_events_is_not_taken_for_how_far_it_is_with_the_log() {
        let read = EventsRead { entry: EntryId { ms: 7, seq: 1 }, at_ms: 9, entry_bytes: 300 };
        assert_eq!(EventsRead::parse(&read.to_text()), Some(read));
        for bad in ["", "7 9 300", "7-1 9", "7-1 9 x", "x-1 9 300"] {
            assert_eq!(EventsRead::parse(bad), None, "{bad:?}");
        }
        assert_eq!(super::super::HistoryRead::parse(&read.to_text()), None);
    }
}

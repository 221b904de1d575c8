//! A delivery: one event owed to one endpoint, and the record that keeps it in Redis while it is unfinished.
//!
//! The record is one string: a line of JSON (the header), a line feed, then the exact bytes of the body. So the body is
//! never escaped, and a script can keep a record without understanding it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    endpoint::Mark,
    envelope::Envelope,
    event::{Event, EventType},
    id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
    letter::{Cause, WaitedFor},
    outcome::AttemptReport,
    retry::DeadReason,
    sequence::Sequence,
};

/// Version of the stored form. A larger one was written by a newer Herald and is refused instead of guessed at.
pub const RECORD_SCHEMA: u32 = 1;

/// Attempts whose reports a record keeps; beyond that the oldest are dropped. More than any policy's attempts, so only
/// repeated redeliveries reach it.
pub const MAX_HISTORY: usize = 60;

/// The unfinished deliveries that must go out one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Chain {
    /// All of one payment intent.
    Intent(IntentId),
    /// A delivery to an endpoint without order is a chain of its own; it is still counted under its intent, so that a
    /// switch of the order can wait for it.
    Single(IntentId, EntryId),
}

impl Chain {
    /// What scripts are told about it. For a delivery without order it is also the field of `singles:EP` that counts
    /// it.
    pub fn name(&self) -> String {
        match self {
            Self::Intent(intent) => intent.to_string(),
            Self::Single(intent, _) => format!("~{intent}"),
        }
    }

    /// The field of `heads:EP` that holds its head.
    pub fn head_field(&self) -> String {
        match self {
            Self::Intent(intent) => intent.to_string(),
            Self::Single(_, entry) => format!("~{entry}"),
        }
    }

    pub fn intent(&self) -> &IntentId {
        match self {
            Self::Intent(intent) | Self::Single(intent, _) => intent,
        }
    }
}

/// A delivery with what has happened to it so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    pub schema: u32,
    pub id: DeliveryId,
    pub event: EventId,
    pub event_type: EventType,
    pub account: AccountId,
    pub intent: IntentId,
    /// Whether it belongs to its intent's chain or is one of its own. Fixed when it is first admitted.
    pub ordered: bool,
    /// When Herald first read it, or when it was last redelivered: its age counts from here. Redis' time, ms since
    /// 1970.
    pub since_ms: u64,
    /// Attempts made since then.
    pub attempts: u32,
    /// Attempts made before it was last redelivered.
    #[serde(default)]
    pub earlier_attempts: u32,
    /// Its endpoint could not be read when the event was read: whether it wants such events is decided when it can be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_unsure: bool,
    /// Its event was sent again for this endpoint: whoever asked for that hears how it ended, so it is not just skipped.
    #[serde(skip)]
    pub is_asked_for: bool,
    #[serde(flatten)]
    pub envelope: Envelope,
    /// The entry whose place in the order this one has, if it came back from the quarantine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<EntryId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<AttemptReport>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redelivered: Vec<Mark>,
    #[serde(skip)]
    pub body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the record has no line feed between its header and its body")]
    NoBody,
    #[error("the record's header cannot be read: {0}")]
    Header(#[from] serde_json::Error),
    #[error("the record has schema {found}; this Herald knows up to {RECORD_SCHEMA}: run a newer one")]
    Newer { found: u32 },
}

impl Delivery {
    pub fn new(entry: EntryId, endpoint: EndpointId, event: &Event, ordered: bool, now_ms: u64) -> Self {
        Self {
            schema: RECORD_SCHEMA,
            id: DeliveryId { entry, endpoint },
            event: event.id.clone(),
            event_type: event.event_type.clone(),
            account: event.account.clone(),
            intent: event.intent.clone(),
            ordered,
            since_ms: now_ms,
            attempts: 0,
            earlier_attempts: 0,
            is_unsure: false,
            is_asked_for: false,
            envelope: Envelope::default(),
            place: None,
            history: Vec::new(),
            redelivered: Vec::new(),
            body: event.body().clone(),
        }
    }

    pub fn chain(&self) -> Chain {
        match self.ordered {
            true => Chain::Intent(self.intent.clone()),
            false => Chain::Single(self.intent.clone(), self.id.entry),
        }
    }

    /// Where its event stands in the order of its intent.
    pub fn sequence(&self) -> Sequence {
        Sequence(self.place.unwrap_or(self.id.entry))
    }

    /// Attempts made since the delivery was new. A record that somebody wrote by hand may hold any number.
    pub fn attempts_in_all(&self) -> u32 {
        self.earlier_attempts.saturating_add(self.attempts)
    }

    /// The number of the next attempt as the receiver sees it: it only grows, even across redeliveries.
    pub fn next_attempt(&self) -> u32 {
        self.attempts_in_all().saturating_add(1)
    }

    pub fn remember(&mut self, report: AttemptReport) {
        self.attempts = self.attempts.saturating_add(1);
        if self.history.len() == MAX_HISTORY {
            self.history.remove(0);
        }
        self.history.push(report);
    }

    /// A dead letter that becomes a delivery again: its history stays, its age and its attempts start anew.
    pub fn redeliver(&mut self, mark: Mark, now_ms: u64) {
        self.earlier_attempts = self.earlier_attempts.saturating_add(std::mem::take(&mut self.attempts));
        self.since_ms = now_ms;
        if self.redelivered.len() == MAX_HISTORY {
            self.redelivered.remove(0);
        }
        self.redelivered.push(mark);
    }

    pub fn to_record(&self) -> Bytes {
        encode(self, &self.body)
    }

    pub fn from_record(record: &Bytes) -> Result<Self, RecordError> {
        let (header, body) = split(record)?;
        let mut delivery: Self = serde_json::from_slice(&header)?;
        delivery.body = body;
        Ok(delivery)
    }
}

/// A delivery that was given up, with everything known about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    pub schema: u32,
    /// Near the beginning of what is stored: there a script finds which event it belongs to.
    pub delivery: Delivery,
    pub reason: DeadReason,
    /// When it was given up: Redis' time, ms since 1970.
    pub died_at_ms: u64,
    /// Names who or what ended it, if the reason alone does not say so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What it waited for, if no attempt was made since it was new or last redelivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_for: Option<WaitedFor>,
    /// The URL and the headers of the last attempt, without signatures and secret headers.
    #[serde(default)]
    pub url: String,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

impl DeadLetter {
    /// What the last attempt brought; or that there was none since it was new or last redelivered.
    pub fn cause(&self) -> Cause {
        match self.delivery.history.last().filter(|_| self.delivery.attempts > 0) {
            Some(last) => Cause::of(&last.outcome),
            None => Cause::never_tried(self.waited_for.as_ref()),
        }
    }

    pub fn to_record(&self) -> Bytes {
        encode(self, &self.delivery.body)
    }

    pub fn from_record(record: &Bytes) -> Result<Self, RecordError> {
        let (header, body) = split(record)?;
        let mut letter: Self = serde_json::from_slice(&header)?;
        letter.delivery.body = body;
        Ok(letter)
    }
}

fn encode(header: &impl Serialize, body: &Bytes) -> Bytes {
    let mut record = serde_json::to_vec(header).expect("a header of strings and numbers is always JSON");
    record.push(b'\n');
    record.extend_from_slice(body);
    record.into()
}

/// JSON never holds a raw line feed, so the first one ends the header.
fn split(record: &Bytes) -> Result<(Bytes, Bytes), RecordError> {
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let at = record.iter().position(|b| *b == b'\n').ok_or(RecordError::NoBody)?;
    let header = record.slice(..at);
    let Version { schema } = serde_json::from_slice(&header)?;
    if schema > RECORD_SCHEMA {
        return Err(RecordError::Newer { found: schema });
    }
    Ok((header, record.slice(at + 1..)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::outcome::{BodyEnd, Outcome, Timing};

    fn delivery(body: &'static str) -> Delivery {
        Delivery {
            schema: RECORD_SCHEMA,
            id: "17-1:ep_a".parse().unwrap(),
            event: EventId::new("evt_1").unwrap(),
            event_type: "payment_intent.created".parse().unwrap(),
            account: AccountId::new("acc_1").unwrap(),
            intent: IntentId::new("pi_1").unwrap(),
            ordered: true,
            since_ms: 17,
            attempts: 0,
            earlier_attempts: 0,
            is_unsure: false,
            is_asked_for: false,
            envelope: Envelope::default(),
            place: None,
            history: Vec::new(),
            redelivered: Vec::new(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    fn report(number: u32) -> AttemptReport {
        AttemptReport {
            number,
            at_ms: 18,
            outcome: Outcome::Throttled { status: 429, retry_after: Some(std::time::Duration::from_secs(2)) },
            timing: Timing { total_us: 5, ..Timing::default() },
            body_end: BodyEnd::Cut,
            snippet: "line\nfeed".to_owned(),
            detail: String::new(),
        }
    }

    #[test]
    fn a_record_keeps_the_body_byte_for_byte() {
        let mut kept = delivery("{\n\"a\": 1\n}\n");
        kept.remember(report(1));
        let record = kept.to_record();
        assert!(record.ends_with(b"{\n\"a\": 1\n}\n"));
        assert_eq!(Delivery::from_record(&record).unwrap(), kept);
    }

    #[test]
    fn the_event_is_named_near_the_beginning_of_a_record_and_of_a_letter() {
        let mut longest = delivery("{}");
        longest.id = format!("{0}-{0}:ep_{1}", u64::MAX, "x".repeat(125)).parse().unwrap();
        longest.event = EventId::new(&"e".repeat(128)).unwrap();
        let letter = DeadLetter {
            schema: RECORD_SCHEMA,
            delivery: longest.clone(),
            reason: DeadReason::Exhausted,
            died_at_ms: 1,
            detail: "\"event\":\"evt_2\"".repeat(100),
            waited_for: None,
            url: "u".repeat(5_000),
            headers: Vec::new(),
        };
        let named = format!("\"event\":\"{}\"", longest.event);
        for record in [longest.to_record(), letter.to_record()] {
            assert!(String::from_utf8_lossy(&record[..record.len().min(1024)]).contains(&named));
        }
    }

    #[test]
    fn what_came_back_from_the_quarantine_keeps_its_place() {
        let mut back = delivery("{}");
        assert_eq!(back.sequence(), Sequence("17-1".parse().unwrap()));
        back.place = Some("9-3".parse().unwrap());
        back.envelope.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok();
        let read = Delivery::from_record(&back.to_record()).unwrap();
        assert_eq!((&read, read.sequence()), (&back, Sequence("9-3".parse().unwrap())));
    }

    #[test]
    fn a_traceparent_that_is_none_spoils_no_record() {
        let mut kept = delivery("{}");
        kept.envelope.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok();
        let record = String::from_utf8(kept.to_record().to_vec()).unwrap().replace("b7ad6b7169203331", "what?");
        kept.envelope.traceparent = None;
        assert_eq!(Delivery::from_record(&record.into()).unwrap(), kept);
    }

    #[test]
    fn a_record_of_a_newer_herald_is_refused() {
        let mut newer = delivery("{}");
        newer.schema = RECORD_SCHEMA + 1;
        assert!(matches!(Delivery::from_record(&newer.to_record()), Err(RecordError::Newer { .. })));
        assert!(matches!(Delivery::from_record(&Bytes::from_static(b"{}")), Err(RecordError::NoBody)));
    }

    #[test]
    fn a_redelivery_keeps_the_history_and_starts_its_age_anew() {
        let mut again = delivery("{}");
        again.remember(report(1));
        again.redeliver(Mark { by: "ops".into(), why: "mended".into(), at_ms: 99 }, 99);
        assert_eq!((again.attempts, again.next_attempt(), again.since_ms, again.history.len()), (0, 2, 99, 1));
    }

    #[test]
    fn a_history_never_grows_without_end() {
        let mut long = delivery("{}");
        (1..=100).for_each(|number| long.remember(report(number)));
        assert_eq!((long.history.len(), long.attempts), (MAX_HISTORY, 100));
    }
}

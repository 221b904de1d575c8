//! One line of the attempt log: what was tried for a delivery, when, and what came of it; or what became of it without an
//! attempt. Format: a JSON array without line feeds, with the fields of [`LogLine`] or [`EndLine`] in their order: field names
//! would be a third of it.

use super::{
    delivery::{DeadLetter, Delivery},
    event::{Event, EventType},
    id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
    letter::LetterFacts,
    outcome::{AttemptReport, Outcome},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// How much a line keeps of an error's text.
const MAX_DETAIL_BYTES: usize = 120;

/// Room for a usual line, so that it is written without growing.
const USUAL_BYTES: usize = 208;

#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    pub delivery: DeliveryId,
    pub event: EventId,
    pub intent: IntentId,
    pub account: AccountId,
    pub attempt: u32,
    /// When the attempt began, ms since 1970.
    pub at_ms: u64,
    pub took_us: u64,
    pub outcome: Outcome,
    pub detail: String,
}

impl LogLine {
    /// The line of an attempt that has ended.
    pub fn write(delivery: &Delivery, report: &AttemptReport) -> Bytes {
        let mut line = Vec::with_capacity(USUAL_BYTES);
        let parts = (
            &delivery.id,
            &delivery.event,
            &delivery.intent,
            &delivery.account,
            report.number,
            report.at_ms,
            report.timing.total_us,
            &report.outcome,
            shortened(&report.detail),
        );
        serde_json::to_writer(&mut line, &parts).expect("a line of strings and numbers is always JSON");
        line.into()
    }

    pub fn read(line: &[u8]) -> Result<Self, serde_json::Error> {
        let (delivery, event, intent, account, attempt, at_ms, took_us, outcome, detail) =
            serde_json::from_slice(line)?;
        Ok(Self { delivery, event, intent, account, attempt, at_ms, took_us, outcome, detail })
    }
}

/// How a delivery stands from now on, where no attempt tells it. An attempt that delivered tells it by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It is a dead letter.
    Dead,
    /// It was accepted when its endpoint was disabled already, so it is owed to nobody.
    Skipped,
    /// No endpoint of its account wants such an event, or the account has none.
    NoEndpoint,
    /// An operator has made a delivery of the dead letter again.
    Redelivered,
    /// An operator has thrown the dead letter away.
    Discarded,
}

impl End {
    pub const ALL: [Self; 5] = [Self::Dead, Self::Skipped, Self::NoEndpoint, Self::Redelivered, Self::Discarded];

    pub fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Skipped => "skipped",
            Self::NoEndpoint => "no_endpoint",
            Self::Redelivered => "redelivered",
            Self::Discarded => "discarded",
        }
    }
}

/// A line about an end. What cannot be known of a letter that cannot be read is left out.
#[derive(Debug, Clone, PartialEq)]
pub struct EndLine {
    pub end: End,
    pub entry: EntryId,
    /// None: it was owed to no endpoint.
    pub endpoint: Option<EndpointId>,
    pub event: Option<EventId>,
    pub intent: Option<IntentId>,
    pub account: Option<AccountId>,
    pub event_type: Option<EventType>,
    /// Made until then.
    pub attempts: u32,
    /// Ms since 1970. For what was owed to nobody, the time of its entry: read again, it is the same line again.
    pub at_ms: u64,
    /// The reason, and whoever gave it.
    pub why: String,
}

impl EndLine {
    /// What became of a delivery.
    pub fn of(end: End, delivery: &Delivery, at_ms: u64, why: String) -> Self {
        Self {
            end,
            entry: delivery.id.entry,
            endpoint: Some(delivery.id.endpoint.clone()),
            event: Some(delivery.event.clone()),
            intent: Some(delivery.intent.clone()),
            account: Some(delivery.account.clone()),
            event_type: Some(delivery.event_type.clone()),
            attempts: delivery.attempts_in_all(),
            at_ms,
            why,
        }
    }

    pub fn dead(letter: &DeadLetter) -> Self {
        let why = match letter.detail.as_str() {
            "" => letter.reason.name().to_owned(),
            detail => format!("{}: {detail}", letter.reason.name()),
        };
        Self::of(End::Dead, &letter.delivery, letter.died_at_ms, why)
    }

    /// Of a delivery of which no more than its indexes is known.
    pub fn of_facts(end: End, id: &DeliveryId, facts: &LetterFacts, at_ms: u64, why: String) -> Self {
        Self {
            end,
            entry: id.entry,
            endpoint: Some(id.endpoint.clone()),
            event: facts.event.clone(),
            intent: facts.intent.clone(),
            account: facts.account.clone(),
            event_type: None,
            attempts: facts.attempts,
            at_ms,
            why,
        }
    }

    /// An event that is owed to nobody.
    pub fn no_endpoint(entry: EntryId, event: &Event, why: &str) -> Self {
        Self {
            end: End::NoEndpoint,
            entry,
            endpoint: None,
            event: Some(event.id.clone()),
            intent: Some(event.intent.clone()),
            account: Some(event.account.clone()),
            event_type: Some(event.event_type.clone()),
            attempts: 0,
            at_ms: entry.ms,
            why: why.to_owned(),
        }
    }

    pub fn delivery(&self) -> Option<DeliveryId> {
        Some(DeliveryId { entry: self.entry, endpoint: self.endpoint.clone()? })
    }

    pub fn write(&self) -> Bytes {
        let mut line = Vec::with_capacity(USUAL_BYTES);
        let parts = (
            self.end,
            self.entry,
            &self.endpoint,
            &self.event,
            &self.intent,
            &self.account,
            &self.event_type,
            self.attempts,
            self.at_ms,
            shortened(&self.why),
        );
        serde_json::to_writer(&mut line, &parts).expect("a line of strings and numbers is always JSON");
        line.into()
    }
}

/// A line of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Logged {
    Attempt(LogLine),
    End(EndLine),
}

impl Logged {
    pub fn read(line: &[u8]) -> Result<Self, serde_json::Error> {
        // The first field of an attempt is its delivery's id, which begins with a digit.
        if line.get(2).is_some_and(u8::is_ascii_digit) {
            return LogLine::read(line).map(Self::Attempt);
        }
        let (end, entry, endpoint, event, intent, account, event_type, attempts, at_ms, why) =
            serde_json::from_slice(line)?;
        Ok(Self::End(EndLine { end, entry, endpoint, event, intent, account, event_type, attempts, at_ms, why }))
    }

    pub fn at_ms(&self) -> u64 {
        match self {
            Self::Attempt(line) => line.at_ms,
            Self::End(line) => line.at_ms,
        }
    }

    pub fn delivery(&self) -> Option<DeliveryId> {
        match self {
            Self::Attempt(line) => Some(line.delivery.clone()),
            Self::End(line) => line.delivery(),
        }
    }

    pub fn event(&self) -> Option<&EventId> {
        match self {
            Self::Attempt(line) => Some(&line.event),
            Self::End(line) => line.event.as_ref(),
        }
    }

    pub fn intent(&self) -> Option<&IntentId> {
        match self {
            Self::Attempt(line) => Some(&line.intent),
            Self::End(line) => line.intent.as_ref(),
        }
    }

    pub fn account(&self) -> Option<&AccountId> {
        match self {
            Self::Attempt(line) => Some(&line.account),
            Self::End(line) => line.account.as_ref(),
        }
    }

    pub fn endpoint(&self) -> Option<&EndpointId> {
        match self {
            Self::Attempt(line) => Some(&line.delivery.endpoint),
            Self::End(line) => line.endpoint.as_ref(),
        }
    }
}

/// At most [`MAX_DETAIL_BYTES`], and no half of a character.
fn shortened(text: &str) -> &str {
    let most = MAX_DETAIL_BYTES.min(text.len());
    let cut = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..cut]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{outcome::Timing, retry::DeadReason};

    fn delivery() -> Delivery {
        let event = br#"{"id":"evt_1","event":"payment_intent.created","accountId":"acc_1","createdAt":"2022-02-01T13:07:41Z","data":{"paymentIntentId":"pi_1","paymentStatus":"Created","captureMode":"Auto"}}"#;
        let event = Event::parse(Bytes::from_static(event)).unwrap();
        Delivery::new("17-1".parse().unwrap(), EndpointId::new("ep_a").unwrap(), &event, true, 1_700_000_000_000)
    }

    #[test]
    fn a_line_about_an_end_reads_as_it_was_written() {
        let of_dead = EndLine::dead(&DeadLetter {
            schema: 1,
            delivery: delivery(),
            reason: DeadReason::Released,
            died_at_ms: 18,
            detail: "released by ops:\n it hangs".to_owned(),
            waited_for: None,
            url: String::new(),
            headers: Vec::new(),
        });
        assert_eq!((of_dead.why.as_str(), of_dead.at_ms), ("released: released by ops:\n it hangs", 18));
        let id: DeliveryId = "17-1:ep_a".parse().unwrap();
        let unknown = EndLine::of_facts(End::Discarded, &id, &LetterFacts::unreadable(), 19, "ops: x".to_owned());
        let event = Event::parse(delivery().body).unwrap();
        let nobody = EndLine::no_endpoint("17-1".parse().unwrap(), &event, "none of its endpoints wants it");
        assert_eq!((nobody.delivery(), nobody.at_ms), (None, 17));
        for end in [of_dead, unknown, nobody] {
            let line = end.write();
            assert!(!line.contains(&b'\n'), "{line:?}");
            assert_eq!(Logged::read(&line).unwrap(), Logged::End(end));
        }
        for end in End::ALL {
            assert_eq!(serde_json::to_value(end).unwrap(), end.name());
        }
    }

    #[test]
    fn a_line_reads_as_it_was_written() {
        let delivery = delivery();
        let report = AttemptReport {
            number: 3,
            at_ms: 1_700_000_000_001,
            outcome: Outcome::ServerFailed { status: 500 },
            timing: Timing { total_us: 1_234, ..Timing::default() },
            body_end: Default::default(),
            snippet: "not kept".to_owned(),
            // Cutting by bytes alone would cut in the middle of a character; and a line feed must not end the line.
            detail: format!("\n{}", "ä".repeat(MAX_DETAIL_BYTES)),
        };
        let line = LogLine::write(&delivery, &report);
        assert!(!line.contains(&b'\n'), "{line:?}");
        let read = LogLine::read(&line).unwrap();
        assert_eq!((read.delivery, read.event, read.intent), (delivery.id, delivery.event, delivery.intent));
        assert_eq!((read.account.as_str(), read.attempt, read.took_us), ("acc_1", 3, 1_234));
        assert_eq!((read.at_ms, read.outcome), (report.at_ms, report.outcome));
        assert_eq!(read.detail, format!("\n{}", "ä".repeat((MAX_DETAIL_BYTES - 1) / 2)));
    }

    #[test]
    fn what_no_herald_wrote_is_an_error() {
        for bad in ["", "{}", "[]", r#"["1-0:ep_a"]"#, r#"["1-0:ep_a","e","p","a",1,2,3,{"kind":"gone"},"",4]"#] {
            assert!(LogLine::read(bad.as_bytes()).is_err() && Logged::read(bad.as_bytes()).is_err(), "{bad} was read");
        }
    }
}

//! One line of the attempt log: what was tried for a delivery, when, and what came of it.
//! Format: a JSON array without line feeds, with the fields of [`LogLine`] in their order: field names would be a third
//! of it.

use super::{
    delivery::Delivery,
    id::{AccountId, DeliveryId, EventId, IntentId},
    outcome::{AttemptReport, Outcome},
};
use bytes::Bytes;

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
        let most = MAX_DETAIL_BYTES.min(report.detail.len());
        let cut = (0..=most).rev().find(|at| report.detail.is_char_boundary(*at)).unwrap_or(0);
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
            &report.detail[..cut],
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{event::Event, id::EndpointId, outcome::Timing};

    #[test]
    fn a_line_reads_as_it_was_written() {
        let event = br#"{"id":"evt_1","event":"payment_intent.created","accountId":"acc_1","createdAt":"2022-02-01T13:07:41Z","data":{"paymentIntentId":"pi_1","paymentStatus":"Created","captureMode":"Auto"}}"#;
        let event = Event::parse(Bytes::from_static(event)).unwrap();
        let delivery =
            Delivery::new("17-1".parse().unwrap(), EndpointId::new("ep_a").unwrap(), &event, true, 1_700_000_000_000);
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
            assert!(LogLine::read(bad.as_bytes()).is_err(), "{bad} was read");
        }
    }
}

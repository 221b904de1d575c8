//! One line of the attempt log: what was tried for a delivery, when, and what came of it.
//! Format: one JSON object without line feeds.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    delivery::Delivery,
    id::{AccountId, DeliveryId, EventId, IntentId},
    outcome::{AttemptReport, Outcome},
};

/// What a line keeps of an error's text.
const MAX_DETAIL_BYTES: usize = 120;

/// Room for a usual line, so that it is written in one go.
const USUAL_BYTES: usize = 320;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl LogLine {
    pub fn new(delivery: &Delivery, report: &AttemptReport) -> Self {
        let most = MAX_DETAIL_BYTES.min(report.detail.len());
        let cut = (0..=most).rev().find(|at| report.detail.is_char_boundary(*at)).unwrap_or(0);
        Self {
            delivery: delivery.id.clone(),
            event: delivery.event.clone(),
            intent: delivery.intent.clone(),
            account: delivery.account.clone(),
            attempt: report.number,
            at_ms: report.at_ms,
            took_us: report.timing.total_us,
            outcome: report.outcome.clone(),
            detail: report.detail[..cut].to_owned(),
        }
    }

    pub fn to_json(&self) -> Bytes {
        let mut line = Vec::with_capacity(USUAL_BYTES);
        serde_json::to_writer(&mut line, self).expect("a line of strings and numbers is always JSON");
        line.into()
    }
}

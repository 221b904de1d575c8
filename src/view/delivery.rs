//! A delivery's record and its attempts as they are shown.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Viewer, time::Time};
use crate::facts::{delivery::Delivery, endpoint::Mark, outcome::AttemptReport};

/// One attempt, as a record remembers it.
#[derive(Serialize, ToSchema)]
pub struct AttemptView {
    /// 1 for the first attempt of the delivery.
    number: u32,
    at: Time,
    /// In a word, with the status of the answer if there was one: `server_failed (500)`.
    outcome: String,
    took_us: u64,
    /// For names. This and the next two are for operators, and absent where the stage did not happen.
    #[serde(skip_serializing_if = "Option::is_none")]
    dns_us: Option<u64>,
    /// TCP and TLS together.
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_us: Option<u64>,
    /// From the start to the head of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    head_us: Option<u64>,
    /// The first bytes of the answer's body, as text.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    response: String,
    /// The cause behind the outcome: an address, an error. For operators.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    detail: String,
}

impl AttemptView {
    pub fn of(report: &AttemptReport, viewer: Viewer) -> Self {
        let stages = Some(&report.timing).filter(|_| viewer.is_operator());
        let for_operators = |text: &str| if viewer.is_operator() { text.to_owned() } else { String::new() };
        Self {
            number: report.number,
            at: Time(report.at_ms),
            outcome: viewer.outcome(&report.outcome),
            // How long a failure took tells how it came about.
            took_us: if viewer.is_operator() || has_answer(report) { report.timing.total_us } else { 0 },
            dns_us: stages.and_then(|timing| timing.dns_us),
            connect_us: stages.and_then(|timing| timing.connect_us),
            head_us: stages.and_then(|timing| timing.head_us),
            response: if viewer.is_operator() || has_answer(report) { report.snippet.clone() } else { String::new() },
            detail: for_operators(&report.detail),
        }
    }
}

fn has_answer(report: &AttemptReport) -> bool {
    Viewer::Merchant.outcome(&report.outcome) == Viewer::Operator.outcome(&report.outcome)
}

/// Who changed something, when and why.
#[derive(Serialize, ToSchema)]
pub struct MarkView {
    by: String,
    why: String,
    at: Time,
}

impl MarkView {
    pub fn of(mark: &Mark) -> Self {
        Self { by: mark.by.clone(), why: mark.why.clone(), at: Time(mark.at_ms) }
    }
}

/// What is recorded of a delivery.
#[derive(Serialize, ToSchema)]
pub struct RecordView {
    event: String,
    event_type: String,
    account: String,
    intent: String,
    /// Whether it goes out in the order of its intent.
    ordered: bool,
    /// The entry whose place in the order it has, if it came back from the quarantine.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    /// Its age counts from here.
    since: Time,
    attempts: u32,
    history: Vec<AttemptView>,
    redelivered: Vec<MarkView>,
    body: String,
}

impl RecordView {
    pub fn of(delivery: &Delivery, viewer: Viewer) -> Self {
        let redelivered = delivery.redelivered.iter().filter(|_| viewer.is_operator());
        Self {
            event: delivery.event.to_string(),
            event_type: delivery.event_type.to_string(),
            account: delivery.account.to_string(),
            intent: delivery.intent.to_string(),
            ordered: delivery.ordered,
            place: delivery.place.map(|place| place.to_string()),
            since: Time(delivery.since_ms),
            attempts: delivery.attempts_in_all(),
            history: delivery.history.iter().map(|report| AttemptView::of(report, viewer)).collect(),
            redelivered: redelivered.map(MarkView::of).collect(),
            body: String::from_utf8_lossy(&delivery.body).into_owned(),
        }
    }
}

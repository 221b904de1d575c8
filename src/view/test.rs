//! What came of a test event.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Viewer, delivery::AttemptView};
use crate::facts::{
    endpoint::Endpoint,
    event::Event,
    outcome::{AttemptReport, Outcome},
};

#[derive(Serialize, ToSchema)]
pub struct TestView {
    endpoint: String,
    event: String,
    url: String,
    delivered: bool,
    /// What a person can do.
    advice: Option<&'static str>,
    attempt: AttemptView,
    /// As they were sent, with signatures and the endpoint's own values hidden.
    #[schema(value_type = Vec<Vec<String>>)]
    headers: Vec<(String, String)>,
    body: String,
}

impl TestView {
    pub fn of(
        endpoint: &Endpoint,
        event: &Event,
        report: &AttemptReport,
        headers: Vec<(String, String)>,
        viewer: Viewer,
    ) -> Self {
        Self {
            endpoint: endpoint.id.to_string(),
            event: event.id.to_string(),
            url: endpoint.url.clone(),
            delivered: report.outcome.is_delivered(),
            advice: advice(&report.outcome).filter(|_| viewer.is_told(&report.outcome)),
            attempt: AttemptView::of(report, viewer),
            headers,
            body: String::from_utf8_lossy(event.body()).into_owned(),
        }
    }
}

/// A test changes nothing, so an answer that would change something must not be told as if it had.
pub fn advice(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Gone => Some("the receiver says that this URL is gone: a real delivery would disable the endpoint"),
        other => other.needs_a_person(),
    }
}

//! Dead letters as they are shown: a line of a list, a whole letter, a group of them.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Viewer, delivery::RecordView, time::Time};
use crate::{
    facts::letter::{LetterFacts, WaitedFor},
    store::queries::{DeadGroup, DeadTotals, FoundDead, Letter},
};

/// What its index knows.
#[derive(Serialize, ToSchema)]
pub struct LetterLine {
    id: String,
    /// When it was given up.
    at: Time,
    account: Option<String>,
    reason: Option<&'static str>,
    /// What the last attempt brought, or that there was none.
    cause: String,
    attempts: u32,
    event: Option<String>,
    intent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_for: Option<WaitedForView>,
}

impl LetterLine {
    pub fn of(letter: &FoundDead, viewer: Viewer) -> Self {
        let unknown = LetterFacts::unreadable();
        let facts = letter.facts.as_ref().unwrap_or(&unknown);
        Self {
            id: letter.id.to_string(),
            at: Time(letter.at_ms),
            account: facts.account.as_ref().map(ToString::to_string),
            reason: facts.reason.map(|reason| reason.name()),
            cause: viewer.cause(facts.cause.as_str()),
            attempts: facts.attempts,
            event: facts.event.as_ref().map(ToString::to_string),
            intent: facts.intent.as_ref().map(ToString::to_string),
            waited_for: facts.waited_for.as_ref().map(|waited| WaitedForView::of(waited, viewer)),
        }
    }
}

/// What a delivery that was never tried waited for.
#[derive(Serialize, ToSchema)]
pub struct WaitedForView {
    why: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure_at: Option<Time>,
}

impl WaitedForView {
    fn of(waited: &WaitedFor, viewer: Viewer) -> Self {
        Self {
            why: waited.why.name(),
            since: waited.since_ms.map(Time),
            paused_by: waited.paused_by.clone().filter(|_| viewer.is_operator()),
            paused_why: waited.paused_why.clone().filter(|_| viewer.is_operator()),
            head: waited.head.as_ref().map(ToString::to_string),
            last_failure: waited.last_failure.as_ref().map(|cause| viewer.cause(cause.as_str())),
            last_failure_at: waited.last_failure_at_ms.map(Time),
        }
    }
}

/// A dead letter whole. An event's body is always UTF-8.
#[derive(Serialize, ToSchema)]
pub struct LetterView {
    id: String,
    /// When it was given up.
    at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    /// Names who or what ended it, if the reason alone does not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_for: Option<WaitedForView>,
    /// Of the last attempt, without signatures and secret headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[schema(value_type = Vec<Vec<String>>)]
    headers: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<RecordView>,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
}

impl LetterView {
    pub fn of(letter: &Letter, viewer: Viewer) -> Self {
        let dead = letter.letter.as_ref().ok();
        let told = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        Self {
            id: letter.id.to_string(),
            at: Time(letter.at_ms),
            reason: dead.map(|dead| dead.reason.name()),
            cause: dead.map(|dead| viewer.cause(dead.cause().as_str())),
            detail: dead.filter(|_| viewer.is_operator()).and_then(|dead| told(&dead.detail)),
            waited_for: dead.and_then(|dead| dead.waited_for.as_ref()).map(|waited| WaitedForView::of(waited, viewer)),
            url: dead.and_then(|dead| told(&dead.url)),
            headers: dead.map(|dead| dead.headers.clone()).unwrap_or_default(),
            delivery: dead.map(|dead| RecordView::of(&dead.delivery, viewer)),
            unreadable: letter.letter.as_ref().err().cloned(),
        }
    }
}

/// How many have these in common.
#[derive(Serialize, ToSchema)]
pub struct LetterGroup {
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    count: u64,
    first_at: Time,
    last_at: Time,
}

impl LetterGroup {
    pub fn of(group: &DeadGroup, totals: &DeadTotals) -> Self {
        let DeadGroup { endpoint, account, reason, cause } = group.clone();
        let (first_at, last_at) = (Time(totals.first_ms), Time(totals.last_ms));
        Self { endpoint, account, reason, cause, count: totals.count, first_at, last_at }
    }
}

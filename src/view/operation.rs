//! An operation on many deliveries as it is shown, and what of it was not simply done.

use serde::Serialize;
use utoipa::ToSchema;

use super::time::Time;
use crate::facts::operation::{Change, Exception, Operation};

#[derive(Serialize, ToSchema)]
pub struct OperationView {
    id: String,
    /// redeliver, discard, send-now, replay or erase.
    kind: &'static str,
    /// planned, running, paused, cancelling, cancelled or done.
    state: &'static str,
    /// What it is about, as flags.
    filter: String,
    /// What was given up later than this does not belong to it.
    cutoff: Time,
    /// How many there were when it was planned: it takes no more.
    count: u64,
    by: String,
    why: String,
    planned_at: Time,
    started: Option<ChangeView>,
    /// The last time that it was paused, resumed or cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<ChangeView>,
    ended_at: Option<Time>,
    /// How many it takes a second at most; rounded up for what one part has of it.
    rate: u32,
    /// Not taken yet.
    left: u64,
    /// Taken, and not ended.
    open: u64,
    /// Delivered, discarded or sent.
    done: u64,
    /// Given up again.
    dead_again: u64,
    refused: u64,
    /// No longer there when their turn came: another operation, an operator or retention was first.
    overtaken: u64,
    /// Why it does not go on, or goes slowly: for endpoints, or for all of it.
    waits: Vec<String>,
}

/// Who changed it.
#[derive(Serialize, ToSchema)]
pub struct ChangeView {
    at: Time,
    by: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    why: String,
}

/// What was not simply done.
#[derive(Serialize, ToSchema)]
pub struct ResultView {
    /// The delivery.
    id: String,
    /// refused, dead_again or overtaken.
    result: String,
    why: String,
    at: Time,
}

impl ChangeView {
    fn of(change: &Change) -> Self {
        Self { at: Time(change.at_ms), by: change.by.clone(), why: change.why.clone() }
    }
}

impl OperationView {
    pub fn of(operation: &Operation) -> Self {
        let Operation { id, plan, state, rate, counts, .. } = operation;
        Self {
            id: id.to_string(),
            kind: plan.kind.name(),
            state: state.name(),
            filter: plan.filter.clone(),
            cutoff: Time(plan.selection.until_ms),
            count: plan.count,
            by: plan.by.clone(),
            why: plan.why.clone(),
            planned_at: Time(plan.at_ms),
            started: operation.started.as_ref().map(ChangeView::of),
            changed: operation.changed.as_ref().map(ChangeView::of),
            ended_at: operation.ended_ms.map(Time),
            rate: rate.rounded_up(),
            left: operation.left(),
            open: counts.open,
            done: counts.done,
            dead_again: counts.dead_again,
            refused: counts.refused,
            overtaken: counts.overtaken,
            waits: operation.waits.clone(),
        }
    }
}

impl ResultView {
    pub fn of(exception: &Exception) -> Self {
        let Exception { delivery, result, why, at_ms } = exception.clone();
        Self { id: delivery, result, why, at: Time(at_ms) }
    }
}

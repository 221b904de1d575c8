//! Deliveries of chains as they are shown.

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Viewer,
    standing::{standing, state},
};
use crate::{facts::delivery::Delivery, store::queries::Unfinished};

/// One delivery of a chain; in a list of chains it is the head.
#[derive(Serialize, ToSchema)]
pub struct ChainView {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// due, claimed, parked, held or nowhere.
    pub state: &'static str,
    /// The same in words.
    pub standing: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_behind_it: Option<u64>,
}

impl ChainView {
    pub fn of(one: &Unfinished, held: Option<u64>, viewer: Viewer, now_ms: u64, is_paused: bool) -> Self {
        let delivery = one.delivery.as_ref().ok();
        let last = delivery.and_then(|delivery| delivery.history.last());
        Self {
            id: one.id.to_string(),
            intent: delivery.map(|delivery| delivery.intent.to_string()),
            event: delivery.map(|delivery| delivery.event.to_string()),
            state: state(&one.place),
            standing: standing(one, now_ms, is_paused),
            attempts: delivery.map(Delivery::attempts_in_all),
            last_outcome: last.map(|last| viewer.outcome(&last.outcome)),
            held_behind_it: held,
        }
    }
}

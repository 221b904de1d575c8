//! Payment intents that Herald keeps itself: their status, and the events that came of them.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    access::Anyone,
    request::{Refusals, named},
};
use crate::{facts::id::IntentId, http::problem::Problem, intents::told::Told, view::time::Time};

#[derive(Serialize, ToSchema)]
pub struct IntentView {
    id: String,
    account: String,
    status: String,
    created_at: Time,
    /// What its merchant was told, the oldest first.
    events: Vec<IntentEvent>,
}

#[derive(Serialize, ToSchema)]
pub struct IntentEvent {
    id: String,
    at: Time,
    status: String,
}

/// Show an intent that Herald keeps, with its events. Of other producers' intents only deliveries are known.
#[utoipa::path(
    get, path = "/v1/intents/{intent}", tag = "Deliveries", params(("intent" = String, Path)),
    responses((status = 200, body = IntentView), Refusals)
)]
pub async fn show(
    State(api): State<Api>,
    Anyone(caller): Anyone,
    Path(intent): Path<String>,
) -> Result<Json<IntentView>, Problem> {
    let id: IntentId = named(&intent)?;
    let (intent, _) = api.0.intents.inspect(&id).await?;
    caller.sees(Some(&intent.account))?;
    let event = |told: &Told| IntentEvent {
        id: told.id.to_string(),
        at: Time(told.entry.map_or_else(|| u64::try_from(told.at.0 / 1_000).unwrap_or_default(), |entry| entry.ms)),
        status: format!("{:?}", told.status),
    };
    Ok(Json(IntentView {
        id: id.to_string(),
        account: intent.account.to_string(),
        status: format!("{:?}", intent.status),
        created_at: Time(u64::try_from(intent.created_at.0 / 1_000).unwrap_or_default()),
        events: intent.history.iter().map(event).collect(),
    }))
}

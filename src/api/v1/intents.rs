//! Payment intents and the events that came of them: of one that Herald keeps itself with its status, of others as far as the history
//! has their events.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::Anyone,
    request::{Params, Refusals, moment, named},
};
use crate::{
    facts::{
        event::Event,
        id::{AccountId, IntentId},
    },
    history::{EventsWanted, KeptEvent},
    http::problem::Problem,
    intents::{intent::Intent, service::ServiceError, told::Told},
    view::time::Time,
};

/// Far more than an intent has; of one that has more, the newest.
const MAX_EVENTS: usize = 500;

#[derive(Serialize, ToSchema)]
pub struct IntentView {
    id: String,
    account: String,
    /// Of one that Herald keeps itself. This and the next.
    status: Option<String>,
    created_at: Option<Time>,
    /// What its merchant was told, the oldest first; the newest 500.
    events: Vec<IntentEvent>,
    /// There are older events than these: ask for those until the first of them.
    has_more: bool,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct IntentQuery {
    /// Of the history, only events until then: `2026-05-01T09:00:00Z`, or an age, `6h`.
    until: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct IntentEvent {
    id: String,
    at: Time,
    /// Null where the event has none that is known.
    status: Option<String>,
}

/// Show an intent with its events: one that Herald keeps, or one of which the history has events.
#[utoipa::path(
    get, path = "/v1/intents/{intent}", tag = "Deliveries", params(("intent" = String, Path), IntentQuery),
    responses((status = 200, body = IntentView), Refusals)
)]
pub async fn show(
    State(api): State<Api>,
    Anyone(caller): Anyone,
    Path(intent): Path<String>,
    Params(query): Params<IntentQuery>,
) -> Result<Json<IntentView>, Problem> {
    let id: IntentId = named(&intent)?;
    let until_ms = match &query.until {
        Some(_) => {
            let now_ms = api.queries(async |queries| queries.now_ms().await).await?;
            moment("until", query.until.as_ref(), now_ms)?
        }
        None => None,
    };
    let view = match api.0.intents.inspect(&id).await {
        Ok((intent, _)) => {
            caller.sees(Some(&intent.account))?;
            IntentView::of(&intent)
        }
        Err(ServiceError::NotFound) => {
            api.of_history(id, caller.account.clone(), until_ms).await.ok_or_else(Problem::not_found)?
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Json(view))
}

impl Api {
    /// What the history has of it; nothing where there is no history, or none that answers.
    async fn of_history(&self, id: IntentId, account: Option<AccountId>, until_ms: Option<u64>) -> Option<IntentView> {
        let wanted = EventsWanted { intent: Some(id.clone()), account, ..EventsWanted::default() };
        let before_ms = until_ms.unwrap_or(u64::MAX);
        let (kept, has_more) = self.0.history.latest_events(&wanted, before_ms, MAX_EVENTS).await.ok()?;
        let account = kept.first()?.account.to_string();
        let events = kept.iter().map(IntentEvent::kept).collect();
        Some(IntentView { id: id.to_string(), account, status: None, created_at: None, events, has_more })
    }
}

impl IntentView {
    fn of(intent: &Intent) -> Self {
        Self {
            id: intent.id.to_string(),
            account: intent.account.to_string(),
            status: Some(format!("{:?}", intent.status)),
            created_at: Some(Time(u64::try_from(intent.created_at.0 / 1_000).unwrap_or_default())),
            events: intent.history.iter().map(IntentEvent::told).collect(),
            has_more: false,
        }
    }
}

impl IntentEvent {
    fn told(told: &Told) -> Self {
        let at_ms = told.entry.map_or_else(|| u64::try_from(told.at.0 / 1_000).unwrap_or_default(), |entry| entry.ms);
        Self { id: told.id.to_string(), at: Time(at_ms), status: Some(format!("{:?}", told.status)) }
    }

    fn kept(kept: &KeptEvent) -> Self {
        let status = Event::parse(kept.body.clone().into()).ok().and_then(|event| event.status);
        Self {
            id: kept.event.to_string(),
            // An id is an order; only where it can be a time it is one.
            at: Time(kept.entry.age_ms(kept.read_ms).map_or(kept.read_ms, |_| kept.entry.ms)),
            status: status.map(|status| format!("{status:?}")),
        }
    }
}

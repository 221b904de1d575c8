//! Deliveries wherever they stand, and what was tried.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::{Anyone, Caller},
    request::{Params, Refusals, limit, named, parsed},
};
use crate::{
    facts::id::{DeliveryId, EndpointId, EventId, IntentId},
    http::problem::Problem,
    store::queries::{LogFilter, LogPage},
    view::{
        deliveries::{self, DeliveryLine, DeliveryView, Found, MAX_LOG_LOOK, Unread, Whose},
        delivery::LoggedAttempt,
        time::Time,
    },
};

type Answer<T> = Result<Json<T>, Problem>;

/// One of the first three is needed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// All deliveries of one payment intent.
    intent: Option<String>,
    /// All deliveries of one event.
    event: Option<String>,
    /// What is unfinished at one endpoint, the oldest first, and its latest attempts.
    endpoint: Option<String>,
    /// At most so many, 1 to 500.
    limit: Option<String>,
}

/// How far the log of attempts was looked at, so that silence is not taken for "never happened".
#[derive(Serialize, ToSchema)]
pub struct LogLook {
    /// When the oldest attempt began that was looked at.
    back_to: Option<Time>,
    /// Nothing older was ever there.
    is_whole: bool,
}

impl LogLook {
    fn of(log: &LogPage) -> Self {
        Self { back_to: log.back_to_ms.map(Time), is_whole: log.reached_end && !log.was_cut }
    }
}

#[derive(Serialize, ToSchema)]
pub struct Deliveries {
    items: Vec<DeliveryLine>,
    /// There are more than were asked for.
    has_more: bool,
    /// Whether all unfinished deliveries were looked at.
    is_complete: bool,
    log: LogLook,
}

/// Show the deliveries of an intent, an event or an endpoint: unfinished, dead, and delivered as far as the log goes.
#[utoipa::path(
    get, path = "/v1/deliveries", tag = "Deliveries", params(ListQuery),
    responses((status = 200, body = Deliveries), Refusals)
)]
pub async fn list(
    State(api): State<Api>,
    Anyone(caller): Anyone,
    Params(query): Params<ListQuery>,
) -> Answer<Deliveries> {
    let limit = limit(query.limit.as_ref())?;
    let whose = match (&query.intent, &query.event, &query.endpoint) {
        (Some(intent), None, None) => Whose::Intent(parsed::<IntentId>("intent", intent)?),
        (None, Some(event), None) => Whose::Event(parsed::<EventId>("event", event)?),
        (None, None, Some(endpoint)) => Whose::Endpoint(parsed::<EndpointId>("endpoint", endpoint)?),
        _ => return Err(Problem::fault("query", "names not exactly one of intent, event and endpoint")),
    };
    if let Whose::Endpoint(endpoint) = &whose {
        check_endpoint(&api, &caller, endpoint).await?;
    }
    let (is_paused, of, viewer) = (api.0.registry.paused_all().is_some(), caller.account.as_ref(), caller.viewer());
    let look = async |queries: &mut _| deliveries::find(queries, &whose, of, limit, viewer, is_paused).await;
    let Found { mut lines, log, unread } = api.heavy_queries(look).await?;
    let has_more = lines.len() > limit;
    lines.truncate(limit);
    let is_complete = !matches!(unread, Unread::Beyond(_));
    Ok(Json(Deliveries { items: lines, has_more, is_complete, log: LogLook::of(&log) }))
}

/// A merchant may ask about their own endpoints; everybody may ask about one that was deleted.
async fn check_endpoint(api: &Api, caller: &Caller, endpoint: &EndpointId) -> Result<(), Problem> {
    if caller.account.is_some() { api.endpoint(caller, endpoint).await.map(drop) } else { Ok(()) }
}

/// Tell one delivery's story, wherever it stands.
#[utoipa::path(
    get, path = "/v1/deliveries/{delivery}", tag = "Deliveries", params(("delivery" = String, Path)),
    responses((status = 200, body = DeliveryView), Refusals)
)]
pub async fn show(State(api): State<Api>, Anyone(caller): Anyone, Path(id): Path<String>) -> Answer<DeliveryView> {
    let id: DeliveryId = named(&id)?;
    check_endpoint(&api, &caller, &id.endpoint).await?;
    let is_paused = api.0.registry.paused_all().is_some();
    let told = api.heavy_queries(async |queries| deliveries::tell(queries, &id, is_paused).await).await?;
    if told.state == "unknown" {
        return Err(Problem::not_found());
    }
    caller.sees(told.account())?;
    Ok(Json(told.view(&id, caller.viewer())))
}

/// One of the first four is needed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AttemptsQuery {
    intent: Option<String>,
    event: Option<String>,
    endpoint: Option<String>,
    delivery: Option<String>,
    /// At most so many, 1 to 500.
    limit: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct Attempts {
    items: Vec<LoggedAttempt>,
    log: LogLook,
}

/// What was tried, the newest first, as far as the log goes.
#[utoipa::path(
    get, path = "/v1/attempts", tag = "Deliveries", params(AttemptsQuery),
    responses((status = 200, body = Attempts), Refusals)
)]
pub async fn attempts(
    State(api): State<Api>,
    Anyone(caller): Anyone,
    Params(query): Params<AttemptsQuery>,
) -> Answer<Attempts> {
    let limit = limit(query.limit.as_ref())?;
    let filter = LogFilter {
        intent: super::request::optional("intent", query.intent.as_ref())?,
        event: super::request::optional("event", query.event.as_ref())?,
        endpoint: super::request::optional("endpoint", query.endpoint.as_ref())?,
        delivery: super::request::optional("delivery", query.delivery.as_ref())?,
    };
    if filter == LogFilter::default() {
        return Err(Problem::fault("query", "names none of intent, event, endpoint and delivery"));
    }
    for endpoint in filter.endpoint.iter().chain(filter.delivery.as_ref().map(|delivery| &delivery.endpoint)) {
        check_endpoint(&api, &caller, endpoint).await?;
    }
    let log = api.heavy_queries(async |queries| queries.attempts(&filter, limit, MAX_LOG_LOOK).await).await?;
    let seen = log.lines.iter().filter(|line| caller.sees(Some(&line.account)).is_ok());
    let items = seen.map(|line| LoggedAttempt::of(line, caller.viewer())).collect();
    Ok(Json(Attempts { items, log: LogLook::of(&log) }))
}

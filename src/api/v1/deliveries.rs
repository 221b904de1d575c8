//! Deliveries wherever they stand, and what was tried: from records, the history and the log of attempts.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::{Anyone, Caller},
    request::{Cursor, Page, Params, Refusals, limit, moment, named, optional, parsed, wrong_cursor},
};
use crate::{
    facts::id::{AccountId, DeliveryId, EndpointId, EventId, IntentId},
    history::{Told, Wanted},
    http::problem::Problem,
    store::queries::Partitions,
    view::{
        deliveries::{self, Asked, At, DeliveryLine, DeliveryView, Found, Side, Whose},
        past::{self, From, ReachView, ToldView},
    },
};

type Answer<T> = Result<Json<T>, Problem>;

/// One of the first four is needed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// All deliveries of one payment intent.
    intent: Option<String>,
    /// All deliveries of one event.
    event: Option<String>,
    /// All deliveries to one endpoint.
    endpoint: Option<String>,
    /// All deliveries of one account, with what was owed to no endpoint of it.
    account: Option<String>,
    /// Of what was tried and has ended, only since then: `2026-05-01T09:00:00Z`, or an age, `6h`.
    since: Option<String>,
    /// Of what was tried and has ended, only before then.
    until: Option<String>,
    /// At most so many, 1 to 500.
    limit: Option<String>,
    /// `next` or `prev` of another page of this list.
    cursor: Option<String>,
}

impl ListQuery {
    fn whose(&self, caller: &Caller) -> Result<Whose, Problem> {
        match (&self.intent, &self.event, &self.endpoint, &self.account) {
            (Some(intent), None, None, None) => Ok(Whose::Intent(parsed::<IntentId>("intent", intent)?)),
            (None, Some(event), None, None) => Ok(Whose::Event(parsed::<EventId>("event", event)?)),
            (None, None, Some(endpoint), None) => Ok(Whose::Endpoint(parsed::<EndpointId>("endpoint", endpoint)?)),
            (None, None, None, Some(account)) => {
                let account = parsed::<AccountId>("account", account)?;
                caller.sees(Some(&account))?;
                Ok(Whose::Account(account))
            }
            _ => Err(Problem::fault("query", "names not exactly one of intent, event, endpoint and account")),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct Deliveries {
    #[serde(flatten)]
    page: Page<DeliveryLine>,
    /// There are older ones, here or beyond what was looked at.
    has_more: bool,
    /// Whether all was looked at that the history knows and Redis has.
    is_complete: bool,
    /// What was not, in words: a page looks at 5 000 unfinished records, 5 000 dead letters and 10 000 attempts.
    missing: Vec<String>,
    history: ReachView,
}

/// Show the deliveries of an intent, an event, an endpoint or an account: unfinished, dead, and ended as far back as the history goes.
/// The newest event comes first, wherever its deliveries stand.
#[utoipa::path(
    get, path = "/v1/deliveries", tag = "Deliveries", params(ListQuery),
    responses((status = 200, body = Deliveries), Refusals)
)]
pub async fn list(
    State(api): State<Api>,
    Anyone(caller): Anyone,
    Params(query): Params<ListQuery>,
) -> Answer<Deliveries> {
    let (limit, whose) = (limit(query.limit.as_ref())?, query.whose(&caller)?);
    if let Whose::Endpoint(endpoint) = &whose {
        check_endpoint(&api, &caller, endpoint).await?;
    }
    let now_ms = api.queries(async |queries| queries.now_ms().await).await?;
    let from_ms = moment("since", query.since.as_ref(), now_ms)?;
    let until_ms = moment("until", query.until.as_ref(), now_ms)?;
    past::check_span(from_ms, until_ms).map_err(|why| Problem::fault("since", why))?;
    let cursor = Cursor::read(query.cursor.as_ref())?;
    let at = |key: &str| key.parse::<At>().map_err(|()| wrong_cursor());
    let side = match &cursor {
        None => Side::Newest,
        Some(Cursor::After(key)) => Side::OlderThan(at(key)?),
        Some(Cursor::Before(key)) => Side::NewerThan(at(key)?),
    };
    let asked = Asked { whose, of: caller.account.clone(), from_ms, until_ms, side, limit };
    let (is_paused, viewer) = (api.0.registry.paused_all().is_some(), caller.viewer());
    let look = async |queries: &mut Partitions| {
        let found = deliveries::find(queries, &api.0.history, &asked, viewer, is_paused).await?;
        Ok((found, queries.unavailable()))
    };
    let (found, unavailable) = api.heavy_queries(&caller, look).await?;
    let Found { lines: items, newer, older, past, looked, .. } = found;
    if cursor.is_some() && api.0.history.is_on() && !past.reach.is_from_history() {
        return Err(away());
    }
    let next = older.map(|at| Cursor::After(at.to_string()).text());
    let prev = newer.map(|at| Cursor::Before(at.to_string()).text());
    let (next, prev) = match cursor.filter(|_| items.is_empty()) {
        Some(cursor) => cursor.turned(),
        None => (next, prev),
    };
    let has_more = next.is_some() || looked.since_ms.is_some();
    let (is_complete, missing) = (looked.is_complete(), looked.words());
    let page = Page { items, next, prev, unavailable };
    Ok(Json(Deliveries { page, has_more, is_complete, missing, history: past.reach.view(viewer) }))
}

/// Pages that the history was asked for fit together only while it is.
fn away() -> Problem {
    Problem::unavailable("The history of deliveries does not answer, and pages come from it.", 5)
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
    let (is_paused, of, viewer) = (api.0.registry.paused_all().is_some(), caller.account.as_ref(), caller.viewer());
    let look =
        async |queries: &mut Partitions| deliveries::tell(queries, &api.0.history, &id, of, viewer, is_paused).await;
    let told = api.heavy_queries(&caller, look).await?;
    if told.state == "unknown" {
        return Err(Problem::not_found());
    }
    caller.sees(told.account())?;
    Ok(Json(told.view(&id, viewer)))
}

/// One of the first five is needed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AttemptsQuery {
    intent: Option<String>,
    event: Option<String>,
    endpoint: Option<String>,
    delivery: Option<String>,
    account: Option<String>,
    /// Only since then: `2026-05-01T09:00:00Z`, or an age, `6h`.
    since: Option<String>,
    /// Only before then.
    until: Option<String>,
    /// At most so many, 1 to 500.
    limit: Option<String>,
    /// `next` or `prev` of another page of this list.
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct Attempts {
    #[serde(flatten)]
    page: Page<ToldView>,
    /// There are older ones.
    has_more: bool,
    history: ReachView,
}

/// What was tried and how it ended, the newest first, as far back as the history goes.
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
    let mut wanted = Wanted {
        intent: optional("intent", query.intent.as_ref())?,
        event: optional("event", query.event.as_ref())?,
        endpoint: optional("endpoint", query.endpoint.as_ref())?,
        delivery: optional("delivery", query.delivery.as_ref())?,
        account: optional("account", query.account.as_ref())?,
        ..Wanted::default()
    };
    if wanted == Wanted::default() {
        return Err(Problem::fault("query", "names none of intent, event, endpoint, delivery and account"));
    }
    for endpoint in wanted.endpoint.iter().chain(wanted.delivery.as_ref().map(|delivery| &delivery.endpoint)) {
        check_endpoint(&api, &caller, endpoint).await?;
    }
    wanted.account = caller.narrowed(wanted.account)?;
    let now_ms = api.queries(async |queries| queries.now_ms().await).await?;
    wanted.from_ms = moment("since", query.since.as_ref(), now_ms)?;
    wanted.until_ms = moment("until", query.until.as_ref(), now_ms)?;
    past::check_span(wanted.from_ms, wanted.until_ms).map_err(|why| Problem::fault("since", why))?;
    let cursor = Cursor::read(query.cursor.as_ref())?;
    let from = match &cursor {
        None => From::Newest,
        Some(Cursor::After(key)) => From::OlderThan(key.clone()),
        Some(Cursor::Before(key)) => From::NewerThan(key.clone()),
    };
    let viewer = caller.viewer();
    if !api.0.history.is_on() {
        if cursor.is_some() {
            return Err(Problem::fault("cursor", "is none: without a history of deliveries this list has none"));
        }
        let look = async |queries: &mut Partitions| {
            Ok((past::look(&api.0.history, queries, &wanted, limit).await?, queries.unavailable()))
        };
        let (past, unavailable) = api.heavy_queries(&caller, look).await?;
        let items = past.told.iter().map(|told| ToldView::of(told, viewer)).collect();
        let page = Page { items, next: None, prev: None, unavailable };
        return Ok(Json(Attempts { page, has_more: past.has_more, history: past.reach.view(viewer) }));
    }
    let look = async |queries: &mut Partitions| {
        Ok((past::page(&api.0.history, queries, &wanted, &from, limit).await?, queries.unavailable()))
    };
    let (past, unavailable) = api.heavy_queries(&caller, look).await?;
    let past = past.ok_or_else(wrong_or_far)?;
    if cursor.is_some() && !past.reach.is_from_history() {
        return Err(away());
    }
    let at = |told: Option<&Told>, is_there: bool| told.filter(|_| is_there).map(Told::key);
    let next = at(past.told.last(), past.has_older).map(|key| Cursor::After(key).text());
    let prev = at(past.told.first(), past.has_newer).map(|key| Cursor::Before(key).text());
    let (next, prev) = match cursor.filter(|_| past.told.is_empty()) {
        Some(cursor) => cursor.turned(),
        None => (next, prev),
    };
    let has_more = past.has_older;
    let items = past.told.iter().map(|told| ToldView::of(told, viewer)).collect();
    Ok(Json(Attempts { page: Page { items, next, prev, unavailable }, has_more, history: past.reach.view(viewer) }))
}

fn wrong_or_far() -> Problem {
    let why = "is none that a page of this list has given, or more than 10 000 lie between it and where its page begins: give `since` and `until`";
    Problem::fault("cursor", why)
}

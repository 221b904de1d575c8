//! The audit log: who did what, and how it ended.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::Staff,
    request::{Cursor, Page, Params, Refusals, limit, moment, named, of_store, optional, wrong_cursor},
};
use crate::{
    facts::{
        audit::Act,
        id::{AccountId, EndpointId, EntryId, IntentId},
    },
    http::problem::Problem,
    store::audit::Wanted,
    view::audit::ActView,
};

type Answer<T> = Result<Json<T>, Problem>;

/// As the flags of `herald audit list`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Begun since then: `2026-05-01T09:00:00Z`, or an age, `6h`.
    since: Option<String>,
    /// Begun before then.
    until: Option<String>,
    by: Option<String>,
    /// As its verb is called: `endpoint disable`.
    act: Option<String>,
    endpoint: Option<String>,
    account: Option<String>,
    intent: Option<String>,
    /// At most so many, 1 to 500.
    limit: Option<String>,
    /// `next` of the page before. The log is only read backwards, so there is no `prev`.
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct ActPage {
    /// Entries that another version of Herald wrote, on this page.
    unreadable: u64,
    #[serde(flatten)]
    page: Page<ActView>,
}

/// List what operators, merchants and Herald itself did, the newest first.
#[utoipa::path(
    get, path = "/v1/audit", tag = "Audit", params(ListQuery), responses((status = 200, body = ActPage), Refusals)
)]
pub async fn list(State(api): State<Api>, Staff(_): Staff, Params(query): Params<ListQuery>) -> Answer<ActPage> {
    let now_ms = api.queries(async |queries| queries.now_ms().await).await?;
    let before = match Cursor::read(query.cursor.as_ref())? {
        None => None,
        Some(Cursor::After(key)) => Some(key.parse::<EntryId>().map_err(|_| wrong_cursor())?),
        Some(Cursor::Before(_)) => return Err(wrong_cursor()),
    };
    let wanted = Wanted {
        from_ms: moment("since", query.since.as_ref(), now_ms)?.unwrap_or(0),
        until_ms: moment("until", query.until.as_ref(), now_ms)?.unwrap_or(u64::MAX),
        before,
        limit: limit(query.limit.as_ref())?,
    };
    let act = optional::<Act>("act", query.act.as_ref())?;
    let endpoint = optional::<EndpointId>("endpoint", query.endpoint.as_ref())?;
    let account = optional::<AccountId>("account", query.account.as_ref())?;
    let intent = optional::<IntentId>("intent", query.intent.as_ref())?;
    let _place = api.0.heavy.take_for_staff().await?;
    let found = api.0.audit.search(&wanted, |begun| {
        query.by.as_ref().is_none_or(|by| *by == begun.by)
            && act.is_none_or(|act| act.name() == begun.act)
            && (endpoint.is_none() || endpoint == begun.endpoint)
            && (account.is_none() || account == begun.account)
            && (intent.is_none() || intent == begun.intent)
    });
    let found = found.await.map_err(|error| of_store(&error))?;
    let next = found.acts.first().filter(|_| found.has_more).map(|oldest| Cursor::After(oldest.id.to_string()).text());
    let items = found.acts.iter().rev().map(ActView::of).collect();
    Ok(Json(ActPage { unreadable: found.unreadable, page: Page { items, next, prev: None, unavailable: Vec::new() } }))
}

/// Show one act with its reason and how it ended.
#[utoipa::path(
    get, path = "/v1/audit/{act}", tag = "Audit", params(("act" = String, Path)),
    responses((status = 200, body = ActView), Refusals)
)]
pub async fn show(State(api): State<Api>, Staff(_): Staff, Path(id): Path<String>) -> Answer<ActView> {
    let found = api.0.audit.find(named(&id)?).await.map_err(|error| of_store(&error))?;
    Ok(Json(ActView::of(&found.ok_or_else(Problem::not_found)?)))
}

//! The quarantine: entries of the stream that are not valid events. They belong to no account that is known for sure, so
//! merchants do not see them.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::{Caller, Operator, Staff},
    asking::{MOST, Results},
    request::{Body, ChangeRefusals, Cursor, Page, Params, Refusals, limit, named, parsed, reason, wrong_cursor},
};
use crate::{
    facts::{audit::Act, id::EntryId},
    http::problem::Problem,
    store::{
        protocol::Asked,
        queries::{FoundQuarantined, Partitions, QuarantinePlace, QuarantineSide},
    },
    view::quarantine::QuarantineView,
};

type Answer<T> = Result<Json<T>, Problem>;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// At most so many, 1 to 500; a page has at most 50.
    limit: Option<String>,
    /// `next` or `prev` of another page of this list.
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct QuarantinePage {
    /// All that are there.
    total: u64,
    #[serde(flatten)]
    page: Page<QuarantineView>,
}

/// Show the entries in quarantine, the oldest first.
#[utoipa::path(
    get, path = "/v1/quarantine", tag = "Quarantine", params(ListQuery),
    responses((status = 200, body = QuarantinePage), Refusals)
)]
pub async fn list(State(api): State<Api>, Staff(_): Staff, Params(query): Params<ListQuery>) -> Answer<QuarantinePage> {
    let (cursor, limit) = (Cursor::read(query.cursor.as_ref())?, limit(query.limit.as_ref())?);
    let place = |key: &str| QuarantinePlace::parse(key).ok_or_else(wrong_cursor);
    // Nothing stands behind the last id or before the first: no page leads there, and Redis refuses to look.
    let (first, last) = (EntryId { ms: 0, seq: 0 }, EntryId { ms: u64::MAX, seq: u64::MAX });
    match &cursor {
        Some(Cursor::After(key)) if key.parse() == Ok(last) => return Err(wrong_cursor()),
        Some(Cursor::Before(key)) if key.parse() == Ok(first) => return Err(wrong_cursor()),
        _ => {}
    }
    let beside = match &cursor {
        Some(Cursor::Before(key) | Cursor::After(key)) => Some(place(key)?),
        None => None,
    };
    let (side, is_back) = match (&cursor, &beside) {
        (Some(Cursor::Before(_)), Some(place)) => (QuarantineSide::Before(place), true),
        (_, place) => (QuarantineSide::After(place.as_ref()), false),
    };
    let look = async |queries: &mut Partitions| {
        let total = queries.count_quarantined().await?;
        let (entries, has_more) = queries.quarantine(side, limit).await?;
        Ok((total, entries, has_more, queries.are_many(), queries.unavailable()))
    };
    let (total, entries, has_more, are_many, unavailable) = api.queries(look).await?;
    let key = |found: &FoundQuarantined| found.place.to_string();
    let (first, last) = (entries.first().map(key), entries.last().map(key));
    let next = last.filter(|_| has_more || is_back).map(|key| Cursor::After(key).text());
    let prev = first.filter(|_| if is_back { has_more } else { cursor.is_some() });
    let prev = prev.map(|key| Cursor::Before(key).text());
    let view = |found: &FoundQuarantined| QuarantineView::of(&found.one, are_many.then_some(found.stream.as_str()));
    let items = entries.iter().map(view).collect();
    Ok(Json(QuarantinePage { total, page: Page { items, next, prev, unavailable } }))
}

/// Show one with its body.
#[utoipa::path(
    get, path = "/v1/quarantine/{entry}", tag = "Quarantine", params(("entry" = String, Path)),
    responses((status = 200, body = QuarantineView), Refusals)
)]
pub async fn show(State(api): State<Api>, Staff(_): Staff, Path(entry): Path<String>) -> Answer<QuarantineView> {
    let entry: EntryId = named(&entry)?;
    let look = async |queries: &mut Partitions| Ok((queries.quarantined(entry).await?, queries.are_many()));
    let (found, are_many) = api.queries(look).await?;
    // Several streams may have given out the same id: the first is shown, and names its own.
    let (keys, one) = found.first().ok_or_else(Problem::not_found)?;
    Ok(Json(QuarantineView::of(one, are_many.then(|| keys.stream()))))
}

/// Which entries.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EntryIds {
    /// Their ids in the stream.
    #[schema(min_items = 1, max_items = 100)]
    entries: Vec<String>,
    #[schema(min_length = 1, max_length = 1024)]
    reason: String,
}

/// Put these back at the stream's end: for when Herald refused them wrongly.
#[utoipa::path(
    post, path = "/v1/quarantine/requeue", tag = "Quarantine", request_body = EntryIds,
    responses((status = 200, body = Results), Refusals, ChangeRefusals)
)]
pub async fn requeue(State(api): State<Api>, Operator(caller): Operator, body: Body) -> Answer<Results> {
    job(&api, &caller, &body, Act::QuarantineRequeue, Asked::Requeue).await
}

/// Drop these for good.
#[utoipa::path(
    post, path = "/v1/quarantine/discard", tag = "Quarantine", request_body = EntryIds,
    responses((status = 200, body = Results), Refusals, ChangeRefusals)
)]
pub async fn discard(State(api): State<Api>, Operator(caller): Operator, body: Body) -> Answer<Results> {
    job(&api, &caller, &body, Act::QuarantineDiscard, Asked::DiscardQuarantined).await
}

async fn job(api: &Api, caller: &Caller, body: &Body, act: Act, asked: impl Fn(EntryId) -> Asked) -> Answer<Results> {
    let request = body.read(&api.0.schemas.entries)?;
    let why = reason(&request.reason)?;
    let entries = request.entries.iter().take(MOST).map(|entry| parsed::<EntryId>("entries", entry));
    let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
    entries.sort_unstable();
    entries.dedup();
    let look = async |queries: &mut Partitions| {
        let mut found = Vec::with_capacity(entries.len());
        for entry in &entries {
            let there = if queries.are_many() { queries.quarantined(*entry).await? } else { Vec::new() };
            let there = there.into_iter().next().map(|(keys, _)| keys);
            found.push(there.unwrap_or_else(|| queries.root().keys().clone()));
        }
        Ok(found)
    };
    let keys = api.queries(look).await?;
    api.must_be_owned(&keys).await?;
    let begun = caller.begun(api, act, &why).count(entries.len() as u64);
    let begun = match &entries[..] {
        [one] => begun.target(one),
        many => begun.target(format_args!("{} and {} more", many[0], many.len() - 1)),
    };
    let asked = entries.into_iter().zip(keys).map(|(entry, keys)| (entry.to_string(), keys, asked(entry))).collect();
    let ask = async |tally: &mut _| api.ask(asked, &caller.mark(&why), tally).await;
    Ok(Json(api.0.audit.audited(begun, ask).await?))
}

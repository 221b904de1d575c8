//! Dead letters: lists, single ones, and having them sent again or dropped.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::{Anyone, Caller, Keeper, Operator},
    asking::{MOST, Results},
    request::{
        Body, ChangeRefusals, Cursor, Page, Params, Refusals, limit, moment, named, optional, parsed, reason,
        wrong_cursor,
    },
};
use crate::{
    facts::{
        audit::Act,
        id::{AccountId, DeliveryId, EndpointId, EventId, IntentId},
        letter::Cause,
        retry::DeadReason,
    },
    http::problem::Problem,
    store::{
        protocol::Asked,
        queries::{DeadCursor, DeadFilter, DeadKey, DeadOrder},
    },
    view::letter::{LetterGroup, LetterLine, LetterView},
};

type Answer<T> = Result<Json<T>, Problem>;

/// As the flags of `herald dead-letter list`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    account: Option<String>,
    endpoint: Option<String>,
    /// exhausted, expired, gone, disabled, deleted or released.
    dead_reason: Option<String>,
    /// What the last attempt brought: `rejected:404`, or a class alone. Not for merchants.
    cause: Option<String>,
    intent: Option<String>,
    event: Option<String>,
    /// Given up at this time or later: `2026-05-01T09:00:00Z`, or an age, `6h`.
    since: Option<String>,
    /// Given up at this time or earlier.
    until: Option<String>,
    /// At most so many, 1 to 500.
    limit: Option<String>,
    /// `next` or `prev` of another page of this list.
    cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct GroupsQuery {
    /// Of these, with commas between them: endpoint, account, reason, cause.
    by: String,
    account: Option<String>,
    endpoint: Option<String>,
    dead_reason: Option<String>,
    since: Option<String>,
    until: Option<String>,
}

impl ListQuery {
    fn filter(&self, caller: &Caller, now_ms: u64) -> Result<DeadFilter, Problem> {
        if self.cause.is_some() && !caller.viewer().is_operator() {
            return Err(Problem::fault("cause", "is not for merchants: it would tell what is in somebody's network"));
        }
        Ok(DeadFilter {
            // What dies later is on no page: so the pages fit together.
            from_ms: moment("since", self.since.as_ref(), now_ms)?.unwrap_or(0),
            until_ms: moment("until", self.until.as_ref(), now_ms)?.unwrap_or(DeadFilter::END_MS),
            endpoint: optional::<EndpointId>("endpoint", self.endpoint.as_ref())?,
            account: caller.narrowed(optional::<AccountId>("account", self.account.as_ref())?)?,
            reason: self.dead_reason.as_deref().map(reason_named).transpose()?,
            cause: optional::<Cause>("cause", self.cause.as_ref())?,
            intent: optional::<IntentId>("intent", self.intent.as_ref())?,
            event: optional::<EventId>("event", self.event.as_ref())?,
        })
    }
}

pub(super) fn reason_named(text: &str) -> Result<DeadReason, Problem> {
    let known = DeadReason::ALL.into_iter().find(|reason| reason.name() == text);
    known.ok_or_else(|| {
        let names = DeadReason::ALL.map(DeadReason::name).join(", ");
        Problem::fault("dead_reason", format!("is none of {names}"))
    })
}

/// A page, with how many there are in all.
#[derive(serde::Serialize, ToSchema)]
pub struct LetterPage {
    /// Of the whole list, exactly.
    total: u64,
    /// Letters of an older Herald that only `endpoint` and times are sure to find.
    unindexed: u64,
    #[serde(flatten)]
    page: Page<LetterLine>,
}

/// List dead letters, the newest first.
#[utoipa::path(
    get, path = "/v1/dead-letters", tag = "Dead letters", params(ListQuery),
    responses((status = 200, body = LetterPage), Refusals)
)]
pub async fn list(
    State(api): State<Api>,
    Anyone(caller): Anyone,
    Params(query): Params<ListQuery>,
) -> Answer<LetterPage> {
    let (cursor, limit) = (Cursor::read(query.cursor.as_ref())?, limit(query.limit.as_ref())?);
    let now_ms = api.queries(async |queries| queries.now_ms().await).await?;
    let filter = query.filter(&caller, now_ms)?;
    let (order, after) = match &cursor {
        None => (DeadOrder::NewestFirst, None),
        Some(Cursor::After(key)) => (DeadOrder::NewestFirst, Some(dead_cursor(key)?)),
        Some(Cursor::Before(key)) => (DeadOrder::OldestFirst, Some(dead_cursor(key)?)),
    };
    let look = async |queries: &mut crate::store::queries::Partitions| {
        let total = queries.count_dead_where(&filter).await?;
        let unindexed = queries.unindexed_dead().await?;
        let found = queries.find_dead(&filter, order, after.as_ref(), limit).await?;
        let letters = queries.with_known_facts(found.letters).await?;
        Ok((total, unindexed, letters, found.next.is_some(), queries.unavailable()))
    };
    let (total, unindexed, mut letters, has_more, unavailable) = api.queries(look).await?;
    let is_back = matches!(cursor, Some(Cursor::Before(_)));
    if is_back {
        letters.reverse();
    }
    let key = |letter: &crate::store::queries::FoundDead| format!("{} {}", letter.at_ms, letter.id);
    let (first, last) = (letters.first().map(key), letters.last().map(key));
    let next = last.filter(|_| has_more || is_back).map(|key| Cursor::After(key).text());
    let prev = first.filter(|_| if is_back { has_more } else { cursor.is_some() });
    let prev = prev.map(|key| Cursor::Before(key).text());
    // Where a page's letters have gone meanwhile, it still leads to those that are left.
    let (next, prev) = match cursor {
        Some(cursor) if letters.is_empty() && total > 0 => cursor.turned(),
        _ => (next, prev),
    };
    let items = letters.iter().map(|letter| LetterLine::of(letter, caller.viewer())).collect();
    Ok(Json(LetterPage { total, unindexed, page: Page { items, next, prev, unavailable } }))
}

fn dead_cursor(key: &str) -> Result<DeadCursor, Problem> {
    let read = key.split_once(' ').and_then(|(at, id)| Some((at.parse().ok()?, id.parse::<DeliveryId>().ok()?)));
    let (at_ms, id) = read.ok_or_else(wrong_cursor)?;
    Ok(DeadCursor::new(at_ms, &id))
}

/// Most groups that one answer has.
const MAX_GROUPS: usize = 1_000;

/// Count dead letters by what they have in common, the largest groups first, at most 1 000 of them.
#[utoipa::path(
    get, path = "/v1/dead-letters/groups", tag = "Dead letters", params(GroupsQuery),
    responses((status = 200, body = Vec<LetterGroup>), Refusals)
)]
pub async fn groups(
    State(api): State<Api>,
    Anyone(caller): Anyone,
    Params(query): Params<GroupsQuery>,
) -> Answer<Vec<LetterGroup>> {
    let keys = query.by.split(',').map(|name| key_named(name, &caller)).collect::<Result<Vec<_>, _>>()?;
    let GroupsQuery { account, endpoint, dead_reason, since, until, .. } = query;
    let query = ListQuery { account, endpoint, dead_reason, since, until, ..ListQuery::default() };
    let now_ms = api.queries(async |queries| queries.now_ms().await).await?;
    let filter = query.filter(&caller, now_ms)?;
    let found = api.queries(async |queries| queries.group_dead(&filter, &keys).await).await?;
    let mut groups: Vec<_> = found.into_iter().collect();
    groups.sort_by_key(|(_, totals)| std::cmp::Reverse((totals.count, totals.last_ms)));
    Ok(Json(groups.iter().take(MAX_GROUPS).map(|(group, totals)| LetterGroup::of(group, totals)).collect()))
}

fn key_named(name: &str, caller: &Caller) -> Result<DeadKey, Problem> {
    match name {
        "endpoint" => Ok(DeadKey::Endpoint),
        "account" => Ok(DeadKey::Account),
        "reason" => Ok(DeadKey::Reason),
        "cause" if caller.viewer().is_operator() => Ok(DeadKey::Cause),
        "cause" => Err(Problem::fault("by", "cause is not for merchants")),
        _ => Err(Problem::fault("by", "is not of endpoint, account, reason and cause, with commas between them")),
    }
}

/// Show one with its whole history.
#[utoipa::path(
    get, path = "/v1/dead-letters/{delivery}", tag = "Dead letters", params(("delivery" = String, Path)),
    responses((status = 200, body = LetterView), Refusals)
)]
pub async fn show(State(api): State<Api>, Anyone(caller): Anyone, Path(id): Path<String>) -> Answer<LetterView> {
    let id: DeliveryId = named(&id)?;
    let letter = api.queries(async |queries| queries.dead_letter(&id).await).await?.ok_or_else(Problem::not_found)?;
    caller.sees(letter.letter.as_ref().ok().map(|dead| &dead.delivery.account))?;
    Ok(Json(LetterView::of(&letter, caller.viewer())))
}

/// Which dead letters.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LetterIds {
    /// `ENTRY:ENDPOINT` of each.
    #[schema(min_items = 1, max_items = 100)]
    ids: Vec<String>,
    #[schema(min_length = 1, max_length = 1024)]
    reason: String,
}

/// Send these again, in the order of the stream, with the same `webhook-id` and their history.
#[utoipa::path(
    post, path = "/v1/dead-letters/redeliver", tag = "Dead letters", request_body = LetterIds,
    responses((status = 200, body = Results), Refusals, ChangeRefusals)
)]
pub async fn redeliver(State(api): State<Api>, Keeper(caller): Keeper, body: Body) -> Answer<Results> {
    job(&api, &caller, &body, Act::DeadLetterRedeliver, Asked::Redeliver).await
}

/// Drop these for good.
#[utoipa::path(
    post, path = "/v1/dead-letters/discard", tag = "Dead letters", request_body = LetterIds,
    responses((status = 200, body = Results), Refusals, ChangeRefusals)
)]
pub async fn discard(State(api): State<Api>, Operator(caller): Operator, body: Body) -> Answer<Results> {
    job(&api, &caller, &body, Act::DeadLetterDiscard, Asked::Discard).await
}

async fn job(
    api: &Api,
    caller: &Caller,
    body: &Body,
    act: Act,
    asked: impl Fn(DeliveryId) -> Asked,
) -> Answer<Results> {
    let request = body.read(&api.0.schemas.letters)?;
    let why = reason(&request.reason)?;
    let ids = request.ids.iter().take(MOST).map(|id| parsed::<DeliveryId>("ids", id));
    let mut ids = ids.collect::<Result<Vec<_>, _>>()?;
    // As they lie in the stream: an intent's events go out again in their order.
    ids.sort_unstable();
    ids.dedup();
    let _place = match caller.account {
        Some(_) => Some(api.0.redeliveries.take_for(caller).await?),
        None => None,
    };
    let missing = if caller.account.is_some() { take_missing(api, caller, &mut ids).await? } else { Vec::new() };
    let (Some(first), more) = (ids.first(), ids.len().saturating_sub(1)) else { return Err(Problem::not_found()) };
    let keys = api.queries(async |queries| queries.keys_of(&ids).await).await?;
    api.must_be_owned(&keys).await?;
    let begun = caller.begun(api, act, &why).count(ids.len() as u64);
    let begun = match more {
        0 => begun.endpoint(&first.endpoint).target(first),
        more => begun.target(format_args!("{first} and {more} more")),
    };
    let asked = ids.into_iter().zip(keys).map(|(id, keys)| (id.to_string(), keys, asked(id))).collect();
    let ask = async |tally: &mut _| api.ask(asked, &caller.mark(&why), tally).await;
    let mut results = api.0.audit.audited(begun, ask).await?;
    results.refuse(missing.iter().map(ToString::to_string), "there is no dead letter of this id");
    Ok(Json(results))
}

/// Takes out those that are not there, or are another account's, which is the same.
async fn take_missing(api: &Api, caller: &Caller, ids: &mut Vec<DeliveryId>) -> Result<Vec<DeliveryId>, Problem> {
    let wanted = ids.iter().map(|id| (id.clone(), 0)).collect();
    let letters = api.queries(async |queries| queries.letters(wanted).await).await?;
    let is_theirs = |letter: &crate::store::queries::Letter| {
        caller.sees(letter.letter.as_ref().ok().map(|dead| &dead.delivery.account)).is_ok()
    };
    let (theirs, missing): (Vec<_>, Vec<_>) = letters.into_iter().partition(is_theirs);
    *ids = theirs.into_iter().map(|letter| letter.id).collect();
    Ok(missing.into_iter().map(|letter| letter.id).collect())
}

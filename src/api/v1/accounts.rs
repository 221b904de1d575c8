//! Accounts: who has endpoints, and what an account was told.

use std::{collections::BTreeMap, ops::RangeInclusive};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::{Anyone, Staff},
    request::{Cursor, Page, Params, Refusals, limit, named, wrong_cursor},
};
use crate::{
    facts::{endpoint::EndpointState, id::AccountId},
    http::problem::{Problem, ProblemDetails},
    intents::feed::FedEvent,
    store::queries::{DeadFilter, DeadKey},
};

type Answer<T> = Result<Json<T>, Problem>;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// At most so many, 1 to 500.
    limit: Option<String>,
    /// `next` or `prev` of another page of this list.
    cursor: Option<String>,
}

#[derive(Default, Serialize, ToSchema)]
pub struct Account {
    id: String,
    endpoints: u64,
    paused: u64,
    disabled: u64,
    dead_letters: u64,
}

/// List the accounts that have endpoints or dead letters.
#[utoipa::path(
    get, path = "/v1/accounts", tag = "Accounts", params(PageQuery),
    responses((status = 200, body = Page<Account>), Refusals)
)]
pub async fn list(State(api): State<Api>, Staff(_): Staff, Params(query): Params<PageQuery>) -> Answer<Page<Account>> {
    let (cursor, limit) = (Cursor::read(query.cursor.as_ref())?, limit(query.limit.as_ref())?);
    let mut accounts = BTreeMap::<String, Account>::new();
    for endpoint in api.known_endpoints().await? {
        let account = accounts.entry(endpoint.account.to_string()).or_default();
        account.endpoints += 1;
        match endpoint.status {
            EndpointState::Enabled => {}
            EndpointState::Paused(_) => account.paused += 1,
            EndpointState::Disabled(_) => account.disabled += 1,
        }
    }
    let everything = DeadFilter::everything();
    let dead = api.queries(async |queries| queries.group_dead(&everything, &[DeadKey::Account]).await).await?;
    for (group, totals) in dead {
        let Some(id) = group.account.filter(|id| !id.is_empty()) else { continue };
        accounts.entry(id).or_default().dead_letters += totals.count;
    }
    let named = accounts.into_iter().map(|(id, account)| (id.clone(), Account { id, ..account })).collect();
    Ok(Json(Page::of(named, cursor.as_ref(), limit)))
}

/// What an account was told about its payment intents, the oldest first.
#[derive(Serialize, ToSchema)]
pub struct Feed {
    items: Vec<FeedEvent>,
    /// Numbers whose events are not kept any more, as their intents are not: first and last of each gap.
    #[schema(value_type = Vec<Vec<u64>>)]
    forgotten: Vec<(u64, u64)>,
    /// As `cursor` it leads to what comes next, also when there is nothing yet.
    next: String,
    /// The number of the account's last event.
    latest: u64,
}

#[derive(Serialize, ToSchema)]
pub struct FeedEvent {
    /// One, two, three, … of the account.
    number: u64,
    id: String,
    /// As it is sent to its endpoints, byte for byte.
    #[schema(value_type = Object)]
    event: Box<RawValue>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FeedQuery {
    /// At most so many, 1 to 500; a page has at most 100.
    limit: Option<String>,
    /// `next` of the page before: the feed is pulled by following it.
    cursor: Option<String>,
}

/// Pull what an account was told about its payment intents. Events of other producers are not in it.
#[utoipa::path(
    get, path = "/v1/accounts/{account}/events", tag = "Accounts", params(("account" = String, Path), FeedQuery),
    responses((status = 200, body = Feed), Refusals, (status = 409, body = ProblemDetails))
)]
pub async fn events(
    State(api): State<Api>,
    Anyone(caller): Anyone,
    Path(account): Path<String>,
    Params(query): Params<FeedQuery>,
) -> Answer<Feed> {
    let account: AccountId = named(&account)?;
    caller.sees(Some(&account))?;
    let limit = limit(query.limit.as_ref())?;
    let after = match Cursor::read(query.cursor.as_ref())? {
        None => 0,
        Some(Cursor::After(key)) => {
            // A number beyond what JSON tells apart is none that a page has given.
            key.parse().ok().filter(|after| *after < 1 << 53).ok_or_else(wrong_cursor)?
        }
        Some(Cursor::Before(_)) => return Err(wrong_cursor()),
    };
    let feed = api.0.intents.feed(&account, after, limit).await?;
    if after > feed.latest {
        return Err(ends_before(after, feed.latest));
    }
    let item = |event: &FedEvent| {
        let body = RawValue::from_string(event.body()).map_err(|error| Problem::internal(&error))?;
        Ok::<_, Problem>(FeedEvent { number: event.told.number, id: event.told.id.to_string(), event: body })
    };
    Ok(Json(Feed {
        items: feed.events.iter().map(item).collect::<Result<_, _>>()?,
        forgotten: feed.forgotten.into_iter().map(RangeInclusive::into_inner).collect(),
        next: Cursor::After(feed.through.to_string()).text(),
        latest: feed.latest,
    }))
}

/// Redis was set back, so what is told from now on has numbers that whoever pulls has seen with other events.
fn ends_before(after: u64, latest: u64) -> Problem {
    let detail = format!(
        "The cursor stands behind number {after}, but the account's last event has number {latest}: an older state was restored. \
         Begin without a cursor, and compare what you have by its id."
    );
    Problem::new(StatusCode::CONFLICT, "feed-was-set-back", detail)
}

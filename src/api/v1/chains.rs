//! Chains: what waits behind what, and how to let the next one go.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::{Anyone, Caller, Keeper},
    asking::Results,
    request::{
        Body, ChangeRefusals, Cursor, Page, Params, Reason, Refusals, limit, named, parsed, reason, wrong_cursor,
    },
};
use crate::{
    facts::{
        audit::Act,
        id::{EndpointId, IntentId},
    },
    http::problem::Problem,
    store::{
        protocol::Asked,
        queries::{ChainHead, Unfinished},
    },
    view::chain::ChainView,
};

type Answer<T> = Result<Json<T>, Problem>;

/// How many chains a list looks at to find the oldest. Of more, it shows part after part of about so many, each the oldest first.
const MAX_CHAINS: usize = 5_000;

/// The part of an endpoint's chains that a page is of, by where Redis' walk through them stood when each part until then began.
struct Part(Vec<u64>);

impl Part {
    /// From a cursor's key, `c 0,17 PADDEDENTRY`.
    fn of(cursor: Option<&Cursor>) -> Option<Self> {
        let Some(Cursor::After(key) | Cursor::Before(key)) = cursor else { return Some(Self(vec![0])) };
        let (places, _) = key.strip_prefix("c ")?.split_once(' ')?;
        let places: Vec<u64> = places.split(',').map(|place| place.parse().ok()).collect::<Option<_>>()?;
        places.starts_with(&[0]).then_some(Self(places))
    }

    fn place(&self) -> u64 {
        self.0.last().copied().unwrap_or(0)
    }

    fn key(&self, entry: &str) -> String {
        let places: Vec<String> = self.0.iter().map(u64::to_string).collect();
        format!("c {} {entry}", places.join(","))
    }

    /// To the beginning of the part behind this one.
    fn next(&self, place: u64) -> String {
        Cursor::After(Self([&self.0[..], &[place]].concat()).key("")).text()
    }

    /// To the end of the part before this one: no entry is written with a letter.
    fn prev(&self) -> Option<String> {
        let (_, before) = self.0.split_last().filter(|(_, before)| !before.is_empty())?;
        Some(Cursor::Before(Self(before.to_vec()).key("z")).text())
    }
}

/// How many deliveries of one chain are shown.
const MAX_OF_CHAIN: usize = 500;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Whose chains.
    endpoint: String,
    /// At most so many, 1 to 500.
    limit: Option<String>,
    /// `next` or `prev` of another page of this list.
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct Chains {
    /// The chains of the endpoint in all.
    total: u64,
    /// Deliveries behind their heads in all.
    held: u64,
    #[serde(flatten)]
    page: Page<ChainView>,
    /// Whether all chains were looked at to find the oldest; of more than 5 000, each part of about so many begins with its oldest.
    is_complete: bool,
}

/// Show an endpoint's unfinished chains, the oldest head first.
#[utoipa::path(
    get, path = "/v1/chains", tag = "Chains", params(ListQuery), responses((status = 200, body = Chains), Refusals)
)]
pub async fn list(State(api): State<Api>, Anyone(caller): Anyone, Params(query): Params<ListQuery>) -> Answer<Chains> {
    let (endpoint, limit) = (parsed::<EndpointId>("endpoint", &query.endpoint)?, limit(query.limit.as_ref())?);
    let cursor = Cursor::read(query.cursor.as_ref())?;
    let part = Part::of(cursor.as_ref()).ok_or_else(wrong_cursor)?;
    api.endpoint(&caller, &endpoint).await?;
    let is_paused = api.0.registry.paused_all().is_some();
    let look = async |queries: &mut crate::store::queries::Partitions| {
        let (now_ms, totals) = (queries.now_ms().await?, queries.totals(&endpoint).await?);
        let (chains, behind) = queries.chains_from(&endpoint, part.place(), MAX_CHAINS).await?;
        Ok((now_ms, totals, chains, behind, queries.unavailable()))
    };
    let (now_ms, totals, chains, behind, unavailable) = api.heavy_queries(&caller, look).await?;
    let viewer = caller.viewer();
    let seen = chains.iter().filter(|chain| is_seen(&chain.head, &caller));
    let keyed = seen.map(|chain| (part.key(&chain.head.id.entry.padded()), chain)).collect();
    let Page { items, next, prev, .. } = Page::of(keyed, cursor.as_ref(), limit);
    let next = match &cursor {
        // Nothing is left before it: the part is read from its beginning.
        Some(Cursor::Before(_)) if items.is_empty() => Some(Cursor::After(part.key("")).text()),
        _ => next.or_else(|| (behind > 0).then(|| part.next(behind))),
    };
    let (prev, is_complete) = (prev.or_else(|| part.prev()), part.place() == 0 && behind == 0);
    let view = |chain: &ChainHead| ChainView::of(&chain.head, Some(chain.held), viewer, now_ms, is_paused);
    let page = Page { items: items.into_iter().map(view).collect(), next, prev, unavailable };
    Ok(Json(Chains { total: totals.chains, held: totals.held, page, is_complete }))
}

/// Show one chain: its head, and up to 500 that wait behind it.
#[utoipa::path(
    get, path = "/v1/chains/{endpoint}/{intent}", tag = "Chains",
    params(("endpoint" = String, Path), ("intent" = String, Path)),
    responses((status = 200, body = Vec<ChainView>), Refusals)
)]
pub async fn show(
    State(api): State<Api>,
    Anyone(caller): Anyone,
    Path((endpoint, intent)): Path<(String, String)>,
) -> Answer<Vec<ChainView>> {
    let (endpoint, intent): (EndpointId, IntentId) = (named(&endpoint)?, named(&intent)?);
    api.endpoint(&caller, &endpoint).await?;
    let is_paused = api.0.registry.paused_all().is_some();
    let look = async |queries: &mut crate::store::queries::Partitions| {
        Ok((queries.now_ms().await?, queries.chain(&endpoint, &intent, MAX_OF_CHAIN).await?))
    };
    let (now_ms, mut chain) = api.queries(look).await?;
    chain.retain(|one| is_seen(one, &caller));
    if chain.is_empty() {
        return Err(Problem::not_found());
    }
    let view = |one| ChainView::of(one, None, caller.viewer(), now_ms, is_paused);
    Ok(Json(chain.iter().map(view).collect()))
}

/// An endpoint's id may have been another account's before, of which something is left.
fn is_seen(one: &Unfinished, caller: &Caller) -> bool {
    one.delivery.as_ref().map_or(true, |delivery| caller.sees(Some(&delivery.account)).is_ok())
}

/// Give up the head of a chain as a dead letter, so that the next one goes.
#[utoipa::path(
    post, path = "/v1/chains/{endpoint}/{intent}/release", tag = "Chains",
    params(("endpoint" = String, Path), ("intent" = String, Path)), request_body = Reason,
    responses((status = 200, body = Results), Refusals, ChangeRefusals)
)]
pub async fn release(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path((endpoint, intent)): Path<(String, String)>,
    body: Body,
) -> Answer<Results> {
    let why = reason(&body.read(&api.0.schemas.reason)?.reason)?;
    let (endpoint, intent): (EndpointId, IntentId) = (named(&endpoint)?, named(&intent)?);
    api.endpoint(&caller, &endpoint).await?;
    let chain = api.queries(async |queries| queries.chain(&endpoint, &intent, 1).await).await?;
    let head = chain.first().filter(|head| is_seen(head, &caller)).ok_or_else(Problem::not_found)?.id.clone();
    let keys = api.queries(async |queries| queries.keys_of(std::slice::from_ref(&head)).await).await?;
    api.must_be_owned(&keys).await?;
    let begun = caller.begun(&api, Act::ChainRelease, &why).endpoint(&endpoint).intent(&intent).target(&head);
    let release = Asked::Release(endpoint, intent, Some(head.entry));
    let asked = keys.into_iter().map(|keys| (head.to_string(), keys, release.clone())).collect();
    let ask = async |tally: &mut _| api.ask(asked, &caller.mark(&why), tally).await;
    Ok(Json(api.0.audit.audited(begun, ask).await?))
}

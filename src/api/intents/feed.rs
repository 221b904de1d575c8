//! What an account was told: to fetch what was missed, and to prove that nothing was.

use std::{
    collections::{BTreeSet, HashMap},
    ops::RangeInclusive,
    sync::Arc,
};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    operations::{Answer, Refusals, Version},
    request::{Reader, intent_id},
};
use crate::{
    facts::{
        endpoint::{Endpoint, EndpointState},
        event::{EventType, PaymentStatus},
        id::{AccountId, DeliveryId, EntryId},
    },
    http::problem::{Problem, ProblemDetails},
    intents::{
        feed::{DigestOf, FedEvent},
        intent::Intent,
        requests::Status,
        stamp::Stamp,
    },
    registry::RegistryState,
    store::queries::Outcome,
};

const MAX_PAGE: usize = 100;

/// Deliveries of one page: events times the endpoints of their account.
const MAX_DELIVERIES: usize = 2_000;

/// Ends of them that the history is asked for: few were given up more than once.
const MAX_ENDS: usize = 10 * MAX_DELIVERIES;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// The number after which the page begins: 0, or `after` of the page before.
    #[serde(default)]
    #[param(required = false, minimum = 0, maximum = 9_007_199_254_740_990_u64)]
    after: u64,
    /// At most so many events.
    #[serde(default = "whole_page")]
    #[param(required = false, minimum = 1, maximum = 100)]
    limit: usize,
}

fn whole_page() -> usize {
    MAX_PAGE
}

const MAX_NUMBER: u64 = (1 << 53) - 2;

fn bounded<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|rejection| Problem::fault("query", rejection.body_text()))
}

impl PageQuery {
    fn check(&self) -> Result<(), Problem> {
        if self.after > MAX_NUMBER {
            return Err(Problem::fault("after", format!("is more than {MAX_NUMBER}")));
        }
        if !(1..=MAX_PAGE).contains(&self.limit) {
            return Err(Problem::fault("limit", format!("is not 1 to {MAX_PAGE}")));
        }
        Ok(())
    }
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Events {
    /// The number of the account's last event.
    latest: u64,
    /// What to ask for next.
    after: u64,
    data: Vec<NumberedEvent>,
    /// Numbers in between whose events are not kept any more.
    forgotten: Vec<Numbers>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NumberedEvent {
    /// As the header `herald-account-sequence` has it.
    account_sequence: u64,
    /// Byte for byte as it was sent.
    #[schema(value_type = Object)]
    event: Box<RawValue>,
}

#[derive(Serialize, ToSchema)]
pub struct Numbers {
    from: u64,
    to: u64,
}

impl Numbers {
    fn of(ranges: &[RangeInclusive<u64>]) -> Vec<Self> {
        ranges.iter().map(|range| Self { from: *range.start(), to: *range.end() }).collect()
    }
}

/// What the account was told, in order: for those who would rather ask than be called.
#[utoipa::path(
    get, path = "/events", tag = "Reconciliation", params(PageQuery, Version),
    responses((status = 200, body = Events), Refusals)
)]
pub async fn list_events(
    State(api): State<Api>,
    Reader(caller): Reader,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Answer<Events> {
    let query = bounded(query)?;
    query.check()?;
    let feed = api.service.feed(&caller.account, query.after, query.limit).await?;
    let data = feed.events.iter().map(|event| {
        let raw = RawValue::from_string(event.body()).map_err(|error| Problem::internal(&error))?;
        Ok(NumberedEvent { account_sequence: event.told.number, event: raw })
    });
    let data = data.collect::<Result<_, Problem>>()?;
    Ok(Json(Events { latest: feed.latest, after: feed.through, data, forgotten: Numbers::of(&feed.forgotten) }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReconciliationQuery {
    /// The number after which the page begins: 0, or `after` of the page before.
    #[serde(default)]
    #[param(required = false, minimum = 0, maximum = 9_007_199_254_740_990_u64)]
    after: u64,
    /// At most so many events.
    #[serde(default = "whole_page")]
    #[param(required = false, minimum = 1, maximum = 100)]
    limit: usize,
    /// Only what was told of this one, all of it.
    #[serde(default)]
    payment_intent_id: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reconciliation {
    account_id: String,
    /// The number of the account's last event.
    #[serde(skip_serializing_if = "Option::is_none")]
    latest: Option<u64>,
    /// What to ask for next.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<u64>,
    digest: Digest,
    totals: Totals,
    events: Vec<Reconciled>,
    /// Numbers in between whose events are not kept any more.
    forgotten: Vec<Numbers>,
}

/// SHA-256 over a line for each event: its number, a blank, its id, a line feed.
#[derive(Serialize, ToSchema)]
pub struct Digest {
    count: u64,
    sha256: String,
}

/// Deliveries of this page by where they stand.
#[derive(Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    delivered: u64,
    owed: u64,
    dead_letter: u64,
    discarded: u64,
    settled: u64,
}

/// An event, and where it stands at each endpoint that it is for.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reconciled {
    pub account_sequence: u64,
    id: String,
    pub event: &'static str,
    payment_intent_id: String,
    /// What the event told.
    #[schema(value_type = Status)]
    pub payment_status: PaymentStatus,
    /// What the payment intent is now.
    #[schema(value_type = Status)]
    status_now: PaymentStatus,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Stamp,
    pub deliveries: Vec<StandingDelivery>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StandingDelivery {
    pub endpoint_id: String,
    pub state: DeliveryState,
    /// Where it is owed and waits for its next attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_attempt_at: Option<Stamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum DeliveryState {
    /// The endpoint's receiver has acknowledged it.
    Delivered,
    /// It is to be delivered, now or later.
    Owed,
    /// It was given up, and may be redelivered.
    DeadLetter,
    /// It was given up for good: its dead letter was discarded by an operator, or kept for long enough.
    Discarded,
    /// It was delivered or discarded, and which of them the history does not say: not yet, not any more, or there is none.
    Settled,
}

/// What was told and where it stands: what is delivered, owed or dead, with a digest to compare with one's own log.
#[utoipa::path(
    get, path = "/reconciliation", tag = "Reconciliation", params(ReconciliationQuery, Version),
    responses((status = 200, body = Reconciliation), Refusals, (status = 404, body = ProblemDetails))
)]
pub async fn reconciliation(
    State(api): State<Api>,
    Reader(caller): Reader,
    query: Result<Query<ReconciliationQuery>, QueryRejection>,
) -> Answer<Reconciliation> {
    let ReconciliationQuery { after, limit, payment_intent_id } = bounded(query)?;
    PageQuery { after, limit }.check()?;
    let endpoints = endpoints_of(&api, &caller.account)?;
    let account_id = caller.account.to_string();
    let (latest, after, events, forgotten) = match payment_intent_id {
        Some(id) => {
            let (_, events) = api.service.feed_of(&caller.account, &intent_id(&id)?).await?;
            (None, None, events, Vec::new())
        }
        None => {
            let feed = api.service.feed(&caller.account, after, most_events(limit, &endpoints)).await?;
            (Some(feed.latest), Some(feed.through), feed.events, feed.forgotten)
        }
    };
    let mut digest = DigestOf::default();
    events.iter().for_each(|event| digest.add(&event.told));
    let (count, sha256) = digest.finish();
    let (events, totals) = reconciled(&api, &caller.account, &endpoints, events).await?;
    let forgotten = Numbers::of(&forgotten);
    let digest = Digest { count, sha256 };
    Ok(Json(Reconciliation { account_id, latest, after, digest, totals, events, forgotten }))
}

fn endpoints_of(api: &Api, account: &AccountId) -> Result<Arc<[Arc<Endpoint>]>, Problem> {
    let known = api.registry.lookup(account);
    if known.is_uncertain || matches!(known.state, RegistryState::Loading | RegistryState::Vanished) {
        return Err(Problem::unavailable("It is not known now which endpoints the account has.", 2));
    }
    Ok(known.endpoints)
}

/// As many as are asked for, and no more than one answer can have deliveries of.
fn most_events(asked: usize, endpoints: &[Arc<Endpoint>]) -> usize {
    asked.min(MAX_DELIVERIES / endpoints.len().max(1)).max(1)
}

/// The last events of one intent, as many as `most`, and where each stands at each endpoint that it is for.
pub async fn standing(api: &Api, intent: &Intent, most: usize) -> Result<Vec<Reconciled>, Problem> {
    let endpoints = endpoints_of(api, &intent.account)?;
    let (_, mut events) = api.service.feed_of(&intent.account, &intent.id).await?;
    let events = events.split_off(events.len().saturating_sub(most_events(most, &endpoints)));
    Ok(reconciled(api, &intent.account, &endpoints, events).await?.0)
}

async fn reconciled(
    api: &Api,
    account: &AccountId,
    endpoints: &[Arc<Endpoint>],
    events: Vec<FedEvent>,
) -> Result<(Vec<Reconciled>, Totals), Problem> {
    let wanted = |event: &FedEvent| {
        let kind = event.told.kind.name().parse::<EventType>().ok();
        let wants = move |endpoint: &&Arc<Endpoint>| kind.as_ref().is_some_and(|kind| endpoint.wants(kind));
        endpoints.iter().filter(wants).cloned().collect::<Vec<_>>()
    };
    let pairs = events.iter().map(|event| {
        event
            .told
            .entry
            .map_or_else(Vec::new, |entry| wanted(event).into_iter().map(|endpoint| (entry, endpoint)).collect())
    });
    let pairs: Vec<Vec<(EntryId, Arc<Endpoint>)>> = pairs.collect();
    let ids: Vec<DeliveryId> = pairs
        .iter()
        .flatten()
        .map(|(entry, endpoint)| DeliveryId { entry: *entry, endpoint: endpoint.id.clone() })
        .collect();
    let outcomes = api.service.outcomes(account, &ids).await?;
    let ends = ends(api, ids.iter().zip(&outcomes)).await;
    let mut outcomes = outcomes.into_iter();
    let mut totals = Totals::default();
    let mut all = Vec::with_capacity(events.len());
    for (event, pairs) in events.into_iter().zip(pairs) {
        let outcomes = outcomes.by_ref().take(pairs.len());
        let deliveries = pairs.into_iter().zip(outcomes).filter_map(|((entry, endpoint), outcome)| {
            let end = ends.get(&DeliveryId { entry, endpoint: endpoint.id.clone() }).copied();
            let standing = StandingDelivery::of(entry, &endpoint, outcome, end)?;
            totals.count(standing.state);
            Some(standing)
        });
        let deliveries = deliveries.collect();
        all.push(Reconciled {
            account_sequence: event.told.number,
            id: event.told.id.to_string(),
            event: event.told.kind.name(),
            payment_intent_id: event.intent.id.to_string(),
            payment_status: event.told.status,
            status_now: event.intent.status,
            created_at: event.told.at,
            deliveries,
        });
    }
    Ok((all, totals))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Delivered,
    Discarded,
    Skipped,
}

/// How those ended that Redis knows nothing of any more, as far as the history can tell.
async fn ends<'a>(
    api: &Api,
    standing: impl Iterator<Item = (&'a DeliveryId, &'a Outcome)>,
) -> HashMap<DeliveryId, End> {
    let settled = standing.filter(|(_, outcome)| matches!(outcome, Outcome::Settled));
    let entries: Vec<EntryId> = settled.map(|(id, _)| id.entry).collect::<BTreeSet<_>>().into_iter().collect();
    if entries.is_empty() || !api.history.is_on() {
        return HashMap::new();
    }
    // Where either does not answer, or the user may not ask, it is not known how they ended.
    let Ok(Some(log)) = api.service.log_id().await else { return HashMap::new() };
    let told = api.history.ask(async |reader| {
        reader.check_log(&log).await?;
        reader.ends(&entries, MAX_ENDS).await
    });
    let told = told.await.unwrap_or_default();
    let mut ends = HashMap::new();
    // From the oldest: a letter that was redelivered ended again.
    for told in told.iter().rev() {
        let Some(id) = told.delivery() else { continue };
        match told.kind.as_str() {
            "delivered" => ends.insert(id, End::Delivered),
            // Its letter is gone, whoever removed it.
            "dead" | "discarded" => match ends.get(&id) {
                Some(End::Delivered) => None,
                _ => ends.insert(id, End::Discarded),
            },
            "skipped" => ends.insert(id, End::Skipped),
            // What came of it then may not be told yet.
            _ => ends.remove(&id),
        };
    }
    ends
}

impl StandingDelivery {
    /// None where it was never owed: the endpoint was made later, or was disabled.
    fn of(entry: EntryId, endpoint: &Endpoint, outcome: Outcome, end: Option<End>) -> Option<Self> {
        let was_disabled = matches!(endpoint.status, EndpointState::Disabled(_))
            && endpoint.owed_until.is_some_and(|until| entry > until);
        let (state, next_ms) = match outcome {
            Outcome::Settled if end == Some(End::Delivered) => (DeliveryState::Delivered, None),
            Outcome::Settled if end == Some(End::Discarded) => (DeliveryState::Discarded, None),
            Outcome::Settled if end == Some(End::Skipped) || was_disabled => return None,
            Outcome::Settled if entry.ms < endpoint.created_at_ms => return None,
            Outcome::Settled => (DeliveryState::Settled, None),
            Outcome::Dead => (DeliveryState::DeadLetter, None),
            Outcome::Owed { next_ms } => (DeliveryState::Owed, next_ms),
        };
        let next_attempt_at = next_ms.and_then(|ms| i64::try_from(ms).ok()).map(|ms| Stamp(ms.saturating_mul(1000)));
        Some(Self { endpoint_id: endpoint.id.to_string(), state, next_attempt_at })
    }
}

impl Totals {
    fn count(&mut self, state: DeliveryState) {
        match state {
            DeliveryState::Delivered => self.delivered += 1,
            DeliveryState::Owed => self.owed += 1,
            DeliveryState::DeadLetter => self.dead_letter += 1,
            DeliveryState::Discarded => self.discarded += 1,
            DeliveryState::Settled => self.settled += 1,
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DigestQuery {
    /// The number after which it begins.
    #[serde(default)]
    #[param(required = false, minimum = 0, maximum = 9_007_199_254_740_990_u64)]
    after: u64,
    /// The last number that it is over; without it, the account's last. At most 10 000 are taken at once: then `through` of the
    /// answer is less, and the next digest begins there.
    #[serde(default)]
    #[param(required = false, minimum = 1, maximum = 9_007_199_254_740_990_u64)]
    through: Option<u64>,
}

#[derive(Serialize, ToSchema)]
pub struct RangeDigest {
    /// The number of the account's last event.
    latest: u64,
    after: u64,
    /// The last number that it is over.
    through: u64,
    count: u64,
    sha256: String,
}

/// A digest over the numbers and ids of events, for merchants to compare with their own log: SHA-256 over a line for each,
/// its number, a blank, its id, a line feed.
#[utoipa::path(
    get, path = "/reconciliation/digest", tag = "Reconciliation", params(DigestQuery, Version),
    responses((status = 200, body = RangeDigest), Refusals)
)]
pub async fn reconciliation_digest(
    State(api): State<Api>,
    Reader(caller): Reader,
    query: Result<Query<DigestQuery>, QueryRejection>,
) -> Answer<RangeDigest> {
    let DigestQuery { after, through } = bounded(query)?;
    PageQuery { after, limit: MAX_PAGE }.check()?;
    if through.is_some_and(|through| !(1..=MAX_NUMBER).contains(&through)) {
        return Err(Problem::fault("through", format!("is not 1 to {MAX_NUMBER}")));
    }
    let digest = api.service.feed_digest(&caller.account, after, through).await?;
    let crate::intents::feed::FeedDigest { latest, through, count, sha256 } = digest;
    Ok(Json(RangeDigest { latest, after, through, count, sha256 }))
}

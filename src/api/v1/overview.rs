//! How everything does at a glance: what was sent within the last minutes and hours, how fast, what waits and for what, dead letters
//! as they came, and who works. One look for all who ask within two seconds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Json, extract::State};
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::{Api, access::Staff, request::Refusals};
use crate::{
    clock,
    facts::{
        health::{HOUR_MS, HOURS, MINUTE_MS, MINUTES},
        id::EndpointId,
        log::Logged,
    },
    http::problem::Problem,
    store::{
        error::StoreError,
        queries::{Backlog, ConsumerLook, DeadRange, LogFilter, Partitions, Survey},
    },
    view::time::Time,
};

/// For how long one look is shown to everybody.
const LOOKED_EVERY: Duration = Duration::from_secs(2);

/// Attempts of which the times are told, the newest ones.
const MAX_ATTEMPTS: usize = 2_000;

/// Endpoints whose backlogs are counted, those with the most deliveries first.
const MAX_BUSY: usize = 10_000;

#[derive(Clone, Serialize, ToSchema)]
pub struct Overview {
    /// By Redis' clock.
    now: Time,
    /// When a worker last wrote how endpoints do.
    as_of: Option<Time>,
    endpoints: Verdicts,
    /// The last 15 minutes and the last 24 hours, the oldest first, and the one that is not over at the end.
    minutes: Vec<Slot>,
    hours: Vec<Slot>,
    latest: Latency,
    /// Backlog of the stream that nobody has read yet; null where Redis does not know.
    unread: Option<u64>,
    /// The age of the oldest of them, by its id.
    lag_ms: Option<u64>,
    waiting: Waits,
    dead_letters: u64,
    /// Those that are kept, by the hour in which they were given up, of the last 24 hours.
    dead_by_hour: Vec<u64>,
    /// Who reads the stream.
    workers: Vec<Reading>,
    /// The streams that did not answer, where the events are spread over several: what is of theirs is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    unavailable: Vec<String>,
}

/// How many endpoints do how, of those that something was sent to.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub struct Verdicts {
    failing: u64,
    unsteady: u64,
    well: u64,
    idle: u64,
}

/// Attempts of one minute or hour.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub struct Slot {
    /// When it began.
    at: Time,
    delivered: u64,
    failed: u64,
}

/// How long the latest attempts took that delivered.
#[derive(Clone, Copy, Default, Serialize, ToSchema)]
pub struct Latency {
    /// At most 2 000.
    attempts: u64,
    p50_us: Option<u64>,
    p95_us: Option<u64>,
    p99_us: Option<u64>,
}

/// Deliveries with a record, by what they wait for.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub struct Waits {
    /// To be tried again.
    due: u64,
    /// With the worker.
    claimed: u64,
    /// Behind an earlier one of their intent.
    held: u64,
    /// Until their endpoint takes more.
    parked: u64,
}

#[derive(Clone, Serialize, ToSchema)]
pub struct Reading {
    name: String,
    /// Backlog that it has read and not settled.
    pending: u64,
    idle_ms: u64,
}

/// The last look, and when it was.
#[derive(Default)]
pub struct Latest(Mutex<Option<(Arc<Overview>, Instant)>>);

/// Show how everything does: rates, times, what waits, dead letters, workers.
#[utoipa::path(get, path = "/v1/overview", tag = "Stats", responses((status = 200, body = Overview), Refusals))]
pub async fn overview(State(api): State<Api>, Staff(caller): Staff) -> Result<Json<Overview>, Problem> {
    // Who comes while somebody looks waits for that look.
    let mut latest = api.0.overview.0.lock().await;
    if let Some((known, since)) = &*latest
        && clock::now() < *since + LOOKED_EVERY
    {
        return Ok(Json((**known).clone()));
    }
    let found = api.heavy_queries(&caller, look).await?;
    *latest = Some((Arc::new(found.clone()), clock::now()));
    Ok(Json(found))
}

async fn look(queries: &mut Partitions) -> Result<Overview, StoreError> {
    let now_ms = queries.now_ms().await?;
    let survey = queries.survey(now_ms).await?;
    let Backlog { behind, oldest_behind, consumers, .. } = queries.entries().await?;
    let workers = consumers.into_iter().map(|one| {
        let ConsumerLook { name, pending, idle_ms } = one;
        Reading { name, pending, idle_ms }
    });
    let everything = DeadRange { endpoint: None, from_ms: 0, until_ms: u64::MAX >> 11 };
    Ok(Overview {
        now: Time(now_ms),
        as_of: survey.as_of_ms.map(Time),
        endpoints: Verdicts::of(&survey),
        minutes: slots(&survey.minutes, now_ms, MINUTE_MS, MINUTES),
        hours: slots(&survey.hours, now_ms, HOUR_MS, HOURS),
        latest: latency(queries).await?,
        unread: behind,
        lag_ms: oldest_behind.and_then(|entry| entry.age_ms(now_ms)),
        waiting: waits(queries).await?,
        dead_letters: queries.count_dead(&everything).await?,
        dead_by_hour: dead_by_hour(queries, now_ms).await?,
        workers: workers.collect(),
        unavailable: queries.unavailable(),
    })
}

impl Verdicts {
    fn of(survey: &Survey) -> Self {
        let Survey { failing, unsteady, well, idle, .. } = *survey;
        Self { failing, unsteady, well, idle }
    }
}

type Sums = std::collections::BTreeMap<u64, (u64, u64)>;

/// The last `count` of them, each of `length_ms`.
fn slots(sums: &Sums, now_ms: u64, length_ms: u64, count: u64) -> Vec<Slot> {
    let last = now_ms / length_ms;
    let slot = |number: u64| {
        let (delivered, failed) = sums.get(&number).copied().unwrap_or_default();
        Slot { at: Time(number * length_ms), delivered, failed }
    };
    (last.saturating_sub(count - 1)..=last).map(slot).collect()
}

async fn latency(queries: &mut Partitions) -> Result<Latency, StoreError> {
    let log = queries.attempts(&LogFilter::default(), MAX_ATTEMPTS, MAX_ATTEMPTS).await?;
    let took = |line: &Logged| match line {
        Logged::Attempt(line) if line.outcome.is_delivered() => Some(line.took_us),
        _ => None,
    };
    let mut took: Vec<u64> = log.lines.iter().filter_map(took).collect();
    took.sort_unstable();
    // The nearest rank.
    let percentile = |part: usize| took.get((took.len() * part).div_ceil(100).saturating_sub(1)).copied();
    let [p50_us, p95_us, p99_us] = [50, 95, 99].map(percentile);
    Ok(Latency { attempts: took.len() as u64, p50_us, p95_us, p99_us })
}

async fn waits(queries: &mut Partitions) -> Result<Waits, StoreError> {
    let busy = queries.busy_endpoints(MAX_BUSY).await?;
    let unfinished: u64 = busy.iter().map(|(_, count)| count).sum();
    let ids: Vec<EndpointId> = busy.into_iter().map(|(id, _)| id).collect();
    let parked = queries.waiting_of(&ids).await?.iter().map(|waiting| waiting.parked).sum();
    let (due, claimed) = queries.due_and_claimed().await?;
    // Each unfinished one is in one of these places.
    Ok(Waits { due, claimed, held: unfinished.saturating_sub(parked + due + claimed), parked })
}

async fn dead_by_hour(queries: &mut Partitions, now_ms: u64) -> Result<Vec<u64>, StoreError> {
    let last = now_ms / HOUR_MS;
    let mut counts = Vec::with_capacity(usize::try_from(HOURS).unwrap_or_default());
    for hour in last.saturating_sub(HOURS - 1)..=last {
        let range = DeadRange { endpoint: None, from_ms: hour * HOUR_MS, until_ms: (hour + 1) * HOUR_MS - 1 };
        counts.push(queries.count_dead(&range).await?);
    }
    Ok(counts)
}

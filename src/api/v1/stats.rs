//! Where the installation as a whole stands, and the switch that stops all sending.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    access::{Operator, Staff},
    events::Changed,
    request::{Body, ChangeRefusals, Reason, Refusals, reason},
};
use crate::{
    facts::{audit::Act, endpoint::Mark},
    http::problem::Problem,
    store::{queries::Partitions, registry::confirming::Confirmation},
    view::{delivery::MarkView, time::Time},
};

type Answer<T> = Result<Json<T>, Problem>;

/// Endpoints whose unfinished deliveries are counted.
const MAX_ENDPOINTS: usize = 100_000;

#[derive(Serialize, ToSchema)]
pub struct Stats {
    /// By Redis' clock.
    now: Time,
    stream: StreamStats,
    /// Of the stream itself; none while no worker owns it.
    owner: Option<Owner>,
    /// None while sending goes on.
    paused: Option<MarkView>,
    endpoints: u64,
    /// Deliveries with a record: to be tried again, parked or held.
    unfinished: u64,
    dead_letters: u64,
    quarantined: u64,
    /// The streams that did not answer, where the events are spread over several: what is of theirs is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    unavailable: Vec<String>,
}

#[derive(Serialize, ToSchema)]
pub struct StreamStats {
    name: String,
    /// Entries that are in it now, and in its parts.
    length: u64,
    /// Entries that were ever added.
    added: u64,
    /// Entries that were read and are not settled.
    pending: u64,
}

#[derive(Serialize, ToSchema)]
pub struct Owner {
    name: String,
    lease_left_ms: Option<u64>,
}

/// Say where everything stands.
#[utoipa::path(get, path = "/v1/stats", tag = "Stats", responses((status = 200, body = Stats), Refusals))]
pub async fn stats(State(api): State<Api>, Staff(_): Staff) -> Answer<Stats> {
    let endpoints = api.with_registry(async |store| Ok(store.count().await?)).await?;
    let paused = api.paused().await?;
    let look = async |queries: &mut Partitions| {
        let lease = queries.root().lease().await?;
        let entries = queries.entries().await?;
        let busy = queries.busy_endpoints(MAX_ENDPOINTS).await?;
        Ok(Stats {
            now: Time(queries.now_ms().await?),
            stream: StreamStats {
                name: queries.layout().root().to_owned(),
                length: entries.length,
                added: entries.added,
                pending: entries.pending,
            },
            owner: lease.map(|lease| Owner { name: lease.owner, lease_left_ms: lease.left_ms }),
            paused: paused.as_ref().map(MarkView::of),
            endpoints,
            unfinished: busy.iter().map(|(_, count)| count).sum(),
            dead_letters: queries.count_dead_where(&crate::store::queries::DeadFilter::everything()).await?,
            quarantined: queries.count_quarantined().await?,
            unavailable: queries.unavailable(),
        })
    };
    Ok(Json(api.queries(look).await?))
}

/// Whether all sending is paused.
#[derive(Serialize, ToSchema)]
pub struct Pause {
    /// None while sending goes on.
    paused: Option<MarkView>,
}

/// Stop all sending at once; events wait in Redis.
#[utoipa::path(
    post, path = "/v1/pause", tag = "Stats", request_body = Reason,
    responses((status = 200, body = Pause),
        (status = 202, description = "It is stored, and replicas have not confirmed it: a failover may take it back", body = Changed<Pause>),
        Refusals, ChangeRefusals)
)]
pub async fn pause(State(api): State<Api>, Operator(caller): Operator, body: Body) -> Result<Response, Problem> {
    let why = reason(&body.read(&api.0.schemas.reason)?.reason)?;
    let mark = caller.mark(&why);
    let mut confirmation = Confirmation::of_nothing();
    if api.paused().await?.is_none() {
        let pause = async |_: &mut _| api.change_registry(async |store| store.pause_all(&mark).await).await;
        ((), confirmation) = api.0.audit.audited(caller.begun(&api, Act::Pause, &why), pause).await?;
    }
    let paused = Pause { paused: api.paused().await?.as_ref().map(MarkView::of) };
    api.changed(StatusCode::OK, paused, &confirmation).await
}

/// Let sending go on. Endpoints that are paused one by one stay so.
#[utoipa::path(
    post, path = "/v1/resume", tag = "Stats", request_body = Reason,
    responses((status = 200, body = Pause),
        (status = 202, description = "It is stored, and replicas have not confirmed it: a failover may take it back", body = Changed<Pause>),
        Refusals, ChangeRefusals)
)]
pub async fn resume(State(api): State<Api>, Operator(caller): Operator, body: Body) -> Result<Response, Problem> {
    let why = reason(&body.read(&api.0.schemas.reason)?.reason)?;
    let mark = caller.mark(&why);
    let resume = async |_: &mut _| api.change_registry(async |store| store.resume_all(&mark).await).await;
    let (_, confirmation) = api.0.audit.audited(caller.begun(&api, Act::Resume, &why), resume).await?;
    let paused = Pause { paused: api.paused().await?.as_ref().map(MarkView::of) };
    api.changed(StatusCode::OK, paused, &confirmation).await
}

impl Api {
    /// As Redis has it.
    async fn paused(&self) -> Result<Option<Mark>, Problem> {
        let position = async |store: &mut crate::store::registry::RegistryStore| store.position().await;
        Ok(self.with_registry(position).await?.and_then(|(_, pause)| pause))
    }
}

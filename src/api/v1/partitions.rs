//! The stream and its parts, and who works on them.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    access::Staff,
    request::{Refusals, named, of_store},
};
use crate::{
    facts::id::AccountId,
    http::problem::Problem,
    store::{queries::Partitions as Store, workers::live_workers},
    view::partition::{PartitionView, PlaceView, WorkerView},
};

type Answer<T> = Result<Json<T>, Problem>;

/// The stream and all its parts, each before its own.
#[derive(Serialize, ToSchema)]
pub struct Partitions {
    items: Vec<PartitionView>,
    /// The streams that did not answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    unavailable: Vec<String>,
}

/// Show the stream and all its parts: who works on each, and what waits there.
#[utoipa::path(
    get, path = "/v1/partitions", tag = "Partitions", responses((status = 200, body = Partitions), Refusals)
)]
pub async fn list(State(api): State<Api>, Staff(caller): Staff) -> Answer<Partitions> {
    let look = async |partitions: &mut Store| {
        Ok((partitions.now_ms().await?, partitions.look().await?, partitions.unavailable()))
    };
    let (now_ms, looks, unavailable) = api.heavy_queries(&caller, look).await?;
    let mut items = Vec::with_capacity(looks.len());
    for look in &looks {
        items.push(PartitionView::of(look, api.0.redis.at_home_in(look.slot).home_address().await, now_ms));
    }
    Ok(Json(Partitions { items, unavailable }))
}

/// Say in which stream an account's deliveries are.
#[utoipa::path(
    get, path = "/v1/partitions/of/{account}", tag = "Partitions", params(("account" = String, Path)),
    responses((status = 200, body = PlaceView), Refusals)
)]
pub async fn of(State(api): State<Api>, Staff(_): Staff, Path(account): Path<String>) -> Answer<PlaceView> {
    let account: AccountId = named(&account)?;
    Ok(Json(api.queries(async |partitions| Ok(PlaceView::of(&account, partitions.layout()))).await?))
}

/// List the live workers, by their names.
#[utoipa::path(
    get, path = "/v1/workers", tag = "Partitions", responses((status = 200, body = Vec<WorkerView>), Refusals)
)]
pub async fn workers(State(api): State<Api>, Staff(_): Staff) -> Answer<Vec<WorkerView>> {
    let live = async |mut connection| live_workers(&mut connection).await;
    let live = api.0.connection.with(live).await.map_err(|error| of_store(&error))?;
    Ok(Json(live.iter().map(WorkerView::of).collect()))
}

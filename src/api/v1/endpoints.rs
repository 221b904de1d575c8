//! Endpoints: what there is.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Deserialize;
use tokio::time::timeout;
use utoipa::IntoParams;

use super::{
    Api,
    access::{Anyone, Caller},
    request::{Cursor, Page, Params, Refusals, limit, named, of_registry, optional},
};
use crate::{
    clock,
    facts::{
        endpoint::{Endpoint, EndpointState},
        id::{AccountId, EndpointId},
    },
    http::problem::Problem,
    store::{
        connection::Connection,
        error::StoreError,
        registry::{RegistryError, RegistryStore},
    },
    view::{
        endpoint::EndpointView,
        health::{of_many, of_one},
    },
};

/// How long a list waits for what is known in memory to be as new as Redis. Then it is read from Redis.
const FRESH_WITHIN: Duration = Duration::from_secs(2);

type Answer<T> = Result<Json<T>, Problem>;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only of this account.
    account: Option<String>,
    /// Only those in this state: enabled, paused or disabled.
    state: Option<String>,
    /// At most so many, 1 to 500.
    limit: Option<String>,
    /// `next` or `prev` of another page of this list.
    cursor: Option<String>,
}

/// List endpoints, by their ids, each with how its receiver does.
#[utoipa::path(
    get, path = "/v1/endpoints", tag = "Endpoints", params(ListQuery),
    responses((status = 200, body = Page<EndpointView>), Refusals)
)]
pub async fn list(
    State(api): State<Api>,
    Anyone(caller): Anyone,
    Params(query): Params<ListQuery>,
) -> Answer<Page<EndpointView>> {
    let account = caller.narrowed(optional::<AccountId>("account", query.account.as_ref())?)?;
    let state = query.state.as_deref().map(state_named).transpose()?;
    let (cursor, limit) = (Cursor::read(query.cursor.as_ref())?, limit(query.limit.as_ref())?);
    let fits = |endpoint: &Endpoint| {
        account.as_ref().is_none_or(|account| *account == endpoint.account)
            && state.is_none_or(|state| state == state_of(&endpoint.status))
    };
    let mut found = api.known_endpoints().await?;
    found.retain(|endpoint| fits(endpoint));
    found.sort_by(|one, other| one.id.cmp(&other.id));
    let keyed = found.into_iter().map(|endpoint| (endpoint.id.to_string(), endpoint)).collect();
    let Page { items, next, prev } = Page::of(keyed, cursor.as_ref(), limit);
    let (now_ms, viewer) = (clock::wall_ms(), caller.viewer());
    let ids: Vec<EndpointId> = items.iter().map(|endpoint| endpoint.id.clone()).collect();
    let health = api.queries(async |queries| of_many(queries, &ids, viewer).await).await?;
    let view =
        |(endpoint, health): (&Arc<Endpoint>, _)| EndpointView::of(endpoint, None, viewer, now_ms).with_health(health);
    let items = items.iter().zip(health).map(view).collect();
    Ok(Json(Page { items, next, prev }))
}

fn state_of(status: &EndpointState) -> &'static str {
    match status {
        EndpointState::Enabled => "enabled",
        EndpointState::Paused(_) => "paused",
        EndpointState::Disabled(_) => "disabled",
    }
}

fn state_named(text: &str) -> Result<&'static str, Problem> {
    let known = ["enabled", "paused", "disabled"].into_iter().find(|name| *name == text);
    known.ok_or_else(|| Problem::fault("state", "is none of enabled, paused and disabled"))
}

/// Show one endpoint, with how its receiver does.
#[utoipa::path(
    get, path = "/v1/endpoints/{endpoint}", tag = "Endpoints", params(("endpoint" = String, Path)),
    responses((status = 200, body = EndpointView), Refusals)
)]
pub async fn show(State(api): State<Api>, Anyone(caller): Anyone, Path(id): Path<String>) -> Answer<EndpointView> {
    let endpoint = api.endpoint(&caller, &named(&id)?).await?;
    let viewer = caller.viewer();
    let health = api.queries(async |queries| of_one(queries, &endpoint.id, viewer).await).await?;
    Ok(Json(EndpointView::of(&endpoint, None, viewer, clock::wall_ms()).with_health(health)))
}

impl Api {
    /// One that must exist, and belong to whoever asks.
    pub(super) async fn endpoint(&self, caller: &Caller, id: &EndpointId) -> Result<Endpoint, Problem> {
        let found = self.with_registry(async |store| store.get(id).await).await?;
        let endpoint = found.ok_or_else(Problem::not_found)?;
        caller.sees(Some(&endpoint.account))?;
        Ok(endpoint)
    }

    /// As they are in memory, once that is as new as Redis was when this was asked, so that whoever made one sees it. In no order;
    /// those that cannot be read are left out.
    pub(super) async fn known_endpoints(&self) -> Result<Vec<Arc<Endpoint>>, Problem> {
        let Some((position, _)) = self.with_registry(async |store| store.position().await).await? else {
            return Ok(Vec::new());
        };
        let fresh = timeout(FRESH_WITHIN, self.0.registry.refresh_to(position.version)).await;
        match fresh.is_ok_and(|fresh| fresh.is_ok()) && self.0.registry.id().as_ref() == Some(&position.id) {
            true => Ok(self.0.registry.all()),
            false => Ok(self.all_endpoints().await?.into_iter().map(Arc::new).collect()),
        }
    }

    /// As Redis has them, in no order. Those that cannot be read are left out.
    pub(super) async fn all_endpoints(&self) -> Result<Vec<Endpoint>, Problem> {
        self.with_registry(async |store| Ok(store.all().await?)).await
    }

    pub(super) async fn with_registry<T>(
        &self,
        what: impl AsyncFnOnce(&mut RegistryStore) -> Result<T, RegistryError>,
    ) -> Result<T, Problem> {
        // A connection that failed is told from a registry that refuses.
        let told = async |connection: Connection| match what(&mut RegistryStore::on(connection)).await {
            Err(RegistryError::Store(error @ StoreError::Unavailable { .. })) => Err(error),
            other => Ok(other),
        };
        let done = self.0.connection.with(told).await.map_err(RegistryError::Store);
        done.and_then(|done| done).map_err(|error| of_registry(&error))
    }
}

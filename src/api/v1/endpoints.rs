//! Endpoints: what there is.

use std::{collections::HashSet, sync::Arc, time::Duration};

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
        endpoint::Endpoint,
        id::{AccountId, EndpointId},
    },
    http::problem::Problem,
    store::{
        connection::Connection,
        error::StoreError,
        queries::Partitions,
        registry::{
            RegistryError, RegistryStore, Unreadable,
            confirming::Confirmation,
            stored::{Lock, LockCause},
        },
    },
    view::{
        Viewer,
        endpoint::{EndpointView, state_name},
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
    /// Only those in this state: enabled, paused, disabled or locked.
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
    let fits = |seen: &Seen| {
        account.as_ref().is_none_or(|account| *account == seen.endpoint.account)
            && state.is_none_or(|state| state == seen.state())
    };
    let mut found = api.seen_endpoints().await?;
    found.retain(fits);
    found.sort_by(|one, other| one.endpoint.id.cmp(&other.endpoint.id));
    let keyed = found.into_iter().map(|seen| (seen.endpoint.id.to_string(), seen)).collect();
    let Page { items, next, prev, .. } = Page::of(keyed, cursor.as_ref(), limit);
    let (now_ms, viewer) = (clock::wall_ms(), caller.viewer());
    let ids: Vec<EndpointId> = items.iter().map(|seen| seen.endpoint.id.clone()).collect();
    let look = async |queries: &mut Partitions| {
        queries.know(items.iter().map(|seen| (&seen.endpoint.id, &seen.endpoint.account)));
        Ok((of_many(queries, &ids, viewer).await?, queries.unavailable()))
    };
    let (health, unavailable) = api.queries(look).await?;
    let view = |(seen, health): (&Seen, _)| seen.view(viewer, now_ms).with_health(health);
    let items = items.iter().zip(health).map(view).collect();
    Ok(Json(Page { items, next, prev, unavailable }))
}

fn state_named(text: &str) -> Result<&'static str, Problem> {
    let known = ["enabled", "paused", "disabled", "locked"].into_iter().find(|name| *name == text);
    known.ok_or_else(|| Problem::fault("state", "is none of enabled, paused, disabled and locked"))
}

/// An endpoint, or as much of one that is locked as can be shown.
pub(super) struct Seen {
    pub endpoint: Arc<Endpoint>,
    pub lock: Option<LockCause>,
}

impl Seen {
    fn open(endpoint: Arc<Endpoint>) -> Self {
        Self { endpoint, lock: None }
    }

    fn locked((endpoint, cause): (Arc<Endpoint>, LockCause)) -> Self {
        Self { endpoint, lock: Some(cause) }
    }

    fn state(&self) -> &'static str {
        if self.lock.is_some() { "locked" } else { state_name(&self.endpoint.status) }
    }

    pub fn view(&self, viewer: Viewer, now_ms: u64) -> EndpointView {
        let view = EndpointView::of(&self.endpoint, None, viewer, now_ms);
        match &self.lock {
            Some(cause) => view.locked(cause, viewer),
            None => view,
        }
    }
}

/// Show one endpoint, with how its receiver does.
#[utoipa::path(
    get, path = "/v1/endpoints/{endpoint}", tag = "Endpoints", params(("endpoint" = String, Path)),
    responses((status = 200, body = EndpointView), Refusals)
)]
pub async fn show(State(api): State<Api>, Anyone(caller): Anyone, Path(id): Path<String>) -> Answer<EndpointView> {
    let seen = api.seen(&caller, &named(&id)?).await?;
    let viewer = caller.viewer();
    let look = async |queries: &mut Partitions| {
        queries.know([(&seen.endpoint.id, &seen.endpoint.account)]);
        of_one(queries, &seen.endpoint.id, viewer).await
    };
    let health = api.queries(look).await?;
    Ok(Json(seen.view(viewer, clock::wall_ms()).with_health(health)))
}

impl Api {
    /// One that must exist, and belong to whoever asks.
    pub(super) async fn endpoint(&self, caller: &Caller, id: &EndpointId) -> Result<Endpoint, Problem> {
        let found = self.with_registry(async |store| store.get(id).await).await?;
        let endpoint = found.ok_or_else(Problem::not_found)?;
        caller.sees(Some(&endpoint.account))?;
        Ok(endpoint)
    }

    /// The same, even if it is locked.
    pub(super) async fn seen(&self, caller: &Caller, id: &EndpointId) -> Result<Seen, Problem> {
        let found = self.with_registry(async |store| Ok(store.get_many(&[id]).await?)).await?;
        let seen = match found.into_iter().next() {
            Some(Ok(Some(endpoint))) => Seen::open(Arc::new(endpoint)),
            Some(Err(Unreadable { lock: Some(Lock { shown: Some(endpoint), cause, .. }), .. })) => {
                Seen::locked((endpoint, cause))
            }
            Some(Err(_)) => return Err(of_registry(&RegistryError::Unreadable(id.clone()))),
            Some(Ok(None)) | None => return Err(Problem::not_found()),
        };
        caller.sees(Some(&seen.endpoint.account))?;
        Ok(seen)
    }

    /// All that can be shown, in no order.
    async fn seen_endpoints(&self) -> Result<Vec<Seen>, Problem> {
        let mut seen: Vec<Seen> = self.known_endpoints().await?.into_iter().map(Seen::open).collect();
        // A new key may have opened some in between.
        let open: HashSet<EndpointId> = seen.iter().map(|seen| seen.endpoint.id.clone()).collect();
        let locked = self.0.registry.locked().into_iter().filter(|(endpoint, _)| !open.contains(&endpoint.id));
        seen.extend(locked.map(Seen::locked));
        Ok(seen)
    }

    /// As they are in memory, once that is as new as Redis was when this was asked, so that whoever made one sees it. In no order;
    /// those that cannot be read are left out.
    pub(super) async fn known_endpoints(&self) -> Result<Vec<Arc<Endpoint>>, Problem> {
        let Some((position, _)) = self.with_registry(async |store| store.position().await).await? else {
            return Ok(Vec::new());
        };
        let fresh = timeout(FRESH_WITHIN, self.0.registry.refresh_to(&position)).await;
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

    /// For a change of it, with what its replicas say.
    pub(super) async fn change_registry<T>(
        &self,
        what: impl AsyncFnOnce(&mut RegistryStore) -> Result<T, RegistryError>,
    ) -> Result<(T, Confirmation), Problem> {
        self.0.confirming.change(what).await.map_err(|error| of_registry(&error))
    }
}

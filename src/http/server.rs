//! Serves a router within bounds: how many connections there are, how long a head and a request may last, how large a body is.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, MatchedPath},
    http::{HeaderValue, Method, Request, Uri},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use hyper::{body::Incoming, service::service_fn};
use tokio::{net::TcpListener, sync::OwnedSemaphorePermit, time::timeout};
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::warn;

use super::{
    connections::{self, Bounds, OneMore},
    entrance::Entrance,
    problem::{Problem, finish},
};
use crate::{
    clock,
    telemetry::{
        requests,
        traces::{self, Serving},
    },
};

const TRACEPARENT: &str = "traceparent";

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once. One more waits until another ends.
    pub connections: usize,
    /// Until the head of a request is here; this long an idle connection is kept.
    pub head: Duration,
    /// From the head of a request to its answer, its body and all.
    pub request: Duration,
    /// After this long a connection ends with the request that is under way.
    pub connection: Duration,
    pub body_bytes: usize,
}

pub const LIMITS: Limits = Limits {
    connections: 1_024,
    head: Duration::from_secs(20),
    request: Duration::from_secs(60),
    connection: Duration::from_secs(600),
    body_bytes: 64 * 1024,
};

/// A body takes no longer than this, or a slow one would keep another's place.
pub const BODY_WITHIN: Duration = Duration::from_secs(10);

/// One of the places of requests that are answered at once. A request that carries it and may change something keeps it to its end,
/// whoever still listens, so that what was begun is told of as it ended.
#[derive(Clone)]
pub struct Place(#[allow(dead_code, reason = "held")] Arc<OwnedSemaphorePermit>);

impl Place {
    pub fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(permit))
    }
}

/// What open connections get after `shutdown`, for the requests that are on their way.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Serves until `shutdown`, and then ends what is under way. `answered` is told of each answer, and how long it took.
pub async fn serve(
    listener: TcpListener,
    entrance: Entrance,
    router: Router,
    limits: Limits,
    answered: impl Fn(u16, Duration) + Clone + Send + Sync + 'static,
    shutdown: CancellationToken,
) {
    let router =
        bounded(router, limits).layer(middleware::from_fn(move |request, next| timed(answered.clone(), request, next)));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let mut router = router.clone();
        drop_last_slash(request.uri_mut());
        async move { Ok::<_, Infallible>(router.call(request.map(Body::new)).await.unwrap_or_else(|never| match never {})) }
    });
    let bounds = Bounds {
        connections: limits.connections,
        one_more: OneMore::Waits,
        head: limits.head,
        whole: limits.connection,
        last_request: limits.request,
        drain: DRAIN_TIME,
    };
    let cannot_accept = |error: &std::io::Error| warn!(%error, "cannot accept a connection; trying again");
    let left = connections::serve(listener, entrance, bounds, service, shutdown, cannot_accept).await;
    if left > 0 {
        warn!("closed {left} connections whose requests had not ended");
    }
}

/// The router within the limits of each request, with every refusal written out, also of what it does not have.
pub fn bounded(router: Router, limits: Limits) -> Router {
    bounded_routes(router.fallback(|| async { Problem::not_found() }), limits)
}

/// The same of its routes alone.
pub fn bounded_routes(router: Router, limits: Limits) -> Router {
    router
        .layer(DefaultBodyLimit::max(limits.body_bytes))
        .layer(middleware::from_fn(move |request, next| in_time(limits.request, request, next)))
        .layer(middleware::from_fn(finish))
        .layer(middleware::from_fn(counted))
}

/// For the metrics, and for the trace that it belongs to. A layer of the routes themselves: only these know the template that has matched.
pub async fn counted(mut request: axum::extract::Request, next: Next) -> Response {
    let (began, method) = (clock::now(), request.method().clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let given = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok()?.parse().ok());
    // Our own listener says so, or a proxy before it.
    let is_encrypted = request.headers().get("x-forwarded-proto").is_some_and(|proto| proto == "https");
    // Probes and scrapes come every few seconds, for as long as it runs: nobody looks for them.
    let is_probe = matches!(route.as_ref().map(MatchedPath::as_str), Some("/metrics" | "/healthz" | "/readyz"));
    let serving = if is_probe { None } else { Serving::begin(given.as_ref()) };
    let own = serving.as_ref().and_then(Serving::traceparent);
    if let Some(own) = &own
        && let Ok(own) = HeaderValue::from_str(own.as_str())
    {
        // So everything behind this has the request itself as its parent.
        request.headers_mut().insert(TRACEPARENT, own);
    }
    let response = traces::within(own.or(given), next.run(request)).await;
    let took = clock::now().saturating_duration_since(began);
    let (route, status) = (route.as_ref().map(MatchedPath::as_str), response.status().as_u16());
    requests::answered(route, method.as_str(), status, took);
    if let Some(serving) = serving {
        serving.ended(
            requests::known(method.as_str()).unwrap_or("_OTHER"),
            if is_encrypted { "https" } else { "http" },
            route,
            status,
        );
    }
    response
}

async fn timed(answered: impl Fn(u16, Duration), request: axum::extract::Request, next: Next) -> Response {
    let began = clock::now();
    let response = next.run(request).await;
    answered(response.status().as_u16(), clock::now() - began);
    response
}

/// What takes longer is broken off where it waits: a change is one step of Redis, so nothing is left half done. What has a place and
/// may change something goes on.
async fn in_time(limit: Duration, request: axum::extract::Request, next: Next) -> Response {
    let may_change = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let place = request.extensions().get::<Place>().filter(|_| may_change).cloned();
    let answered = match place {
        None => timeout(limit, next.run(request)).await,
        Some(place) => {
            let work = tokio::spawn(traces::within(traces::of_request(), async move {
                let response = next.run(request).await;
                drop(place);
                response
            }));
            timeout(limit, work)
                .await
                .map(|done| done.unwrap_or_else(|error| Problem::internal(&error).into_response()))
        }
    };
    answered.unwrap_or_else(|_| {
        let detail =
            "The request took too long, so it is not known what has happened: look, or repeat it with the same key.";
        Problem::unavailable(detail, 1).into_response()
    })
}

/// `/payment-intents/` is `/payment-intents`: one slash at the end says nothing.
pub fn drop_last_slash(uri: &mut Uri) {
    let path = uri.path();
    let Some(shorter) = path.strip_suffix('/').filter(|shorter| !shorter.is_empty()) else { return };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = format!("{shorter}{query}").parse().ok();
    if let Ok(without) = Uri::from_parts(parts) {
        *uri = without;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slash_at_the_end_of_a_path_is_dropped() {
        for (given, meant) in
            [("/a/", "/a"), ("/a", "/a"), ("/a//", "/a/"), ("/", "/"), ("/a/?b=/", "/a?b=/"), ("*", "*")]
        {
            let mut uri: Uri = given.parse().unwrap();
            drop_last_slash(&mut uri);
            assert_eq!(uri.to_string(), meant);
        }
    }
}

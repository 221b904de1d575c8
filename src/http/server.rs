//! Takes connections for a router and bounds what each can take: how many there are, how long a head and a request may last,
//! how large a body is.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::DefaultBodyLimit,
    http::{Request, Uri},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::{debug, warn};

use super::problem::{Problem, finish};
use crate::clock;

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

/// What open connections get after `shutdown`, for the requests that are on their way.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// After an accept that failed, mostly because there is no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, and then ends what is under way. `answered` is told of each answer, and how long it took.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    answered: impl Fn(u16, Duration) + Clone + Send + Sync + 'static,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = router
        .fallback(|| async { Problem::not_found() })
        .layer(DefaultBodyLimit::max(limits.body_bytes))
        .layer(middleware::from_fn(move |request, next| in_time(limits.request, request, next)))
        .layer(middleware::from_fn(finish))
        .layer(middleware::from_fn(move |request, next| timed(answered.clone(), request, next)));
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        while connections.try_join_next().is_some() {}
        let Ok((stream, place)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (router, shutdown) = (router.clone(), shutdown.clone());
        connections.spawn(async move {
            let _place = place;
            serve_connection(stream, router, limits, shutdown).await;
        });
    }
    drop(listener);
    if timeout(DRAIN_TIME, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        warn!(connections = connections.len(), "closed connections whose requests had not ended");
    }
    Ok(())
}

async fn timed(answered: impl Fn(u16, Duration), request: axum::extract::Request, next: Next) -> Response {
    let began = clock::now();
    let response = next.run(request).await;
    answered(response.status().as_u16(), clock::now() - began);
    response
}

/// What takes longer is broken off where it waits: a change is one step of Redis, so nothing is left half done.
async fn in_time(limit: Duration, request: axum::extract::Request, next: Next) -> Response {
    match timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = "The request took too long, so it is not known what has happened: look, or repeat it with the same key.";
            Problem::unavailable(detail, 1).into_response()
        }
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, place))
}

async fn serve_connection(stream: tokio::net::TcpStream, router: Router, limits: Limits, shutdown: CancellationToken) {
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let mut router = router.clone();
        drop_last_slash(request.uri_mut());
        async move { Ok::<_, Infallible>(router.call(request.map(Body::new)).await.unwrap_or_else(|never| match never {})) }
    });
    // HTTP/2 has no limit to how long its streams may be silent.
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Ok(ended),
        () = async { tokio::select! { () = shutdown.cancelled() => {}, () = sleep(limits.connection) => {} } } => {
            connection.as_mut().graceful_shutdown();
            timeout(limits.request, connection).await
        }
    };
    if let Ok(Err(error)) = ended {
        debug!(%error, "a connection ended badly");
    }
}

/// `/payment-intents/` is `/payment-intents`: one slash at the end says nothing.
fn drop_last_slash(uri: &mut Uri) {
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

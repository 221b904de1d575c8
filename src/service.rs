//! The small HTTP service beside the dispatcher: `/healthz`, `/readyz` and `/metrics`, for probes and scrapers.
//! Shows no payload and no secret, changes nothing, asks for no token.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    telemetry::{
        metrics::{self, Metrics},
        readiness::Readiness,
    },
};

/// Connections at once. A few probes and scrapers need a handful; the rest waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;

/// A connection's whole life. Each carries one request that is answered from memory, so only a peer that crawls gets here,
/// and none can keep a place for longer.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// What open connections get after `shutdown`, for an answer that is on its way.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// After an accept that failed (out of file descriptors, mostly): long enough not to spin, short for a probe.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone)]
struct Shared {
    readiness: Readiness,
    metrics: Metrics,
}

/// Serves until `shutdown`. Cancel it last: while the worker drains, `/readyz` has to say so.
pub async fn serve(listener: TcpListener, readiness: Readiness, metrics: Metrics, shutdown: CancellationToken) {
    let router = router(Shared { readiness, metrics });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(stream, router.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "the service cannot accept a connection; it tries again");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    // What is not done by then is dropped with the set.
    let _ = timeout(DRAIN_TIME, async { while connections.join_next().await.is_some() {} }).await;
}

/// One request, one answer. A peer that breaks off is its own affair.
async fn connection(stream: TcpStream, router: Router) {
    let served = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(CONNECTION_TIME, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the service broke off"),
        Err(_) => tracing::debug!("a connection to the service took too long"),
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(shared)
}

/// The process is alive and its tasks get their turn; what it depends on is `/readyz`' business.
async fn healthz() -> Response {
    Json(json!({"status": "alive"})).into_response()
}

async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.readiness.verdict(clock::now()) {
        Ok(()) => Json(json!({"status": "ready"})).into_response(),
        Err(reasons) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, "Not ready", &reasons.join("; "), json!({"reasons": reasons}))
        }
    }
}

async fn metrics_page(State(shared): State<Shared>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], shared.metrics.encode()).into_response()
}

async fn not_found(uri: Uri) -> Response {
    problem(StatusCode::NOT_FOUND, "Not Found", &format!("there is nothing at {}", uri.path()), json!({}))
}

async fn method_not_allowed() -> Response {
    problem(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed", "use GET", json!({}))
}

/// RFC 9457. `extra` is an object with further members.
fn problem(status: StatusCode, title: &str, detail: &str, extra: serde_json::Value) -> Response {
    let mut body = json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail});
    if let (Some(body), serde_json::Value::Object(extra)) = (body.as_object_mut(), extra) {
        body.extend(extra);
    }
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Served {
        address: std::net::SocketAddr,
        readiness: Readiness,
        metrics: Metrics,
        shutdown: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    async fn served() -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (readiness, metrics, shutdown) = (Readiness::new(), Metrics::new(), CancellationToken::new());
        let task = tokio::spawn(serve(listener, readiness.clone(), metrics.clone(), shutdown.clone()));
        Served { address, readiness, metrics, shutdown, task }
    }

    impl Served {
        /// The status line, the content type and the body.
        async fn ask(&self, method: &str, path: &str) -> (u16, String, String) {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let request = format!("{method} {path} HTTP/1.1\r\nhost: herald\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
            (head[9..12].parse().unwrap(), kind.to_owned(), body.to_owned())
        }
    }

    #[tokio::test]
    async fn health_needs_nothing_but_the_process() {
        let (status, _, body) = served().await.ask("GET", "/healthz").await;
        assert_eq!((status, body.as_str()), (200, "{\"status\":\"alive\"}"));
    }

    #[tokio::test]
    async fn readiness_says_why_not_and_then_that_all_is_well() {
        let served = served().await;
        let (status, kind, body) = served.ask("GET", "/readyz").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, kind.as_str()), (503, "application/problem+json"));
        assert_eq!((&body["status"], &body["reasons"]), (&503.into(), &json!(["Redis does not answer"])));
        served.readiness.set_redis(true);
        assert_eq!(served.ask("GET", "/readyz").await.0, 200);
        served.readiness.set_draining();
        let (status, _, body) = served.ask("GET", "/readyz").await;
        assert!(status == 503 && body.contains("draining"), "{status} {body}");
    }

    #[tokio::test]
    async fn metrics_come_as_openmetrics() {
        let served = served().await;
        served.metrics.entries_read(3);
        let (status, kind, body) = served.ask("GET", "/metrics").await;
        assert_eq!((status, kind.as_str()), (200, metrics::CONTENT_TYPE));
        assert!(body.contains("herald_entries_read_total 3\n") && body.ends_with("# EOF\n"), "{body}");
    }

    #[tokio::test]
    async fn everything_else_is_a_problem() {
        let served = served().await;
        for (method, path, expected) in
            [("GET", "/", 404), ("GET", "/v1/endpoints", 404), ("POST", "/healthz", 405), ("GET", "/readyz/", 404)]
        {
            let (status, kind, body) = served.ask(method, path).await;
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!((status, kind.as_str()), (expected, "application/problem+json"), "{method} {path}");
            assert_eq!(body["status"], expected);
        }
    }

    #[tokio::test]
    async fn silent_connections_do_not_keep_it_from_ending() {
        let served = served().await;
        let mut silent = TcpStream::connect(served.address).await.unwrap();
        silent.write_all(b"GET /hea").await.unwrap();
        assert_eq!(served.ask("GET", "/healthz").await.0, 200);
        served.shutdown.cancel();
        served.task.await.unwrap();
        assert!(TcpStream::connect(served.address).await.is_err());
    }
}

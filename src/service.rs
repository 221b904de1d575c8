//! What `listen` serves: `/healthz`, `/readyz` and `/metrics` for probes and scrapers, and the operations API beside them, or
//! either alone, where `metrics_listen` parts them. Health shows no payload and no secret, changes nothing, asks for no token.
//! The connections of a listener are served on a thread of its own, where health is answered at once; what else is asked is answered on the runtime of this process. So neither a worker
//! that hangs nor a flood of requests keeps a probe waiting: requests beyond a number are refused, counted from when they have
//! arrived whole, and a connection that asks for nothing makes room for a new one.

use std::{convert::Infallible, future::ready, io, pin::Pin, sync::Arc, task, thread, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::{
    body::{Body as _, Incoming},
    service::service_fn,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle},
    sync::{Semaphore, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::{
    clock,
    http::{
        connections::{self, Bounds, OneMore},
        entrance::Entrance,
        problem::{PROBLEM_JSON, untyped},
        server::{BODY_WITHIN, LIMITS, Place, counted, drop_last_slash},
    },
    telemetry::{
        exposition::{Format, Page},
        readiness::Readiness,
    },
};

/// A few probes and scrapers need a handful of connections, and whoever asks is answered from memory at once. Each connection
/// carries one request, so only a peer that crawls lasts.
const BOUNDS: Bounds = Bounds {
    connections: 64,
    one_more: OneMore::EndsTheOldest,
    head: Duration::from_secs(2),
    whole: Duration::from_secs(10),
    last_request: Duration::from_secs(1),
    drain: Duration::from_secs(1),
};

/// With the API beside them: its callers keep their connections.
const BOUNDS_WITH_API: Bounds = Bounds {
    connections: API_CONNECTIONS,
    one_more: OneMore::EndsTheOldestIdle,
    head: Duration::from_secs(10),
    whole: Duration::from_secs(600),
    last_request: Duration::from_secs(30),
    drain: Duration::from_secs(5),
};

/// Connections at once, where the API is served.
pub const API_CONNECTIONS: usize = 512;

/// Requests of the API that are answered at once, fewer than connections: there is always one to end for a probe.
const MAX_REQUESTS: usize = 256;

/// What probes and scrapers ask for.
#[derive(Clone)]
pub struct Health {
    pub readiness: Readiness,
    pub metrics: Page,
}

/// What a listener is for.
pub enum Serves {
    Health(Health),
    Operations(Operations),
    Both(Health, Operations),
}

/// The operations API, and where its requests are answered.
pub struct Operations {
    pub router: Router,
    pub runtime: Handle,
    /// Where larger bodies come, of which the router reads few at once.
    pub large_bodies: &'static str,
}

/// What answers whatever is not health.
#[derive(Clone)]
struct Answering {
    router: Router,
    runtime: Handle,
    large_bodies: &'static str,
    places: Arc<Semaphore>,
}

/// Serves on a thread of its own until `shutdown`; the answer tells of its end. Cancel it last: while the worker drains,
/// `/readyz` has to say so.
pub fn start(
    listener: std::net::TcpListener,
    entrance: Entrance,
    serves: Serves,
    shutdown: CancellationToken,
) -> io::Result<oneshot::Receiver<()>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let (name, bounds) = match serves {
        Serves::Health(_) => ("health", BOUNDS),
        Serves::Operations(_) | Serves::Both(..) => ("service", BOUNDS_WITH_API),
    };
    let (ends, ended) = oneshot::channel();
    let run = move || {
        runtime.block_on(serve(listener, entrance, bounds, serves, shutdown));
        // Who waits for it may be gone.
        let _ = ends.send(());
    };
    thread::Builder::new().name(name.to_owned()).spawn(run)?;
    Ok(ended)
}

async fn serve(listener: TcpListener, entrance: Entrance, bounds: Bounds, serves: Serves, shutdown: CancellationToken) {
    let (health, operations) = match serves {
        Serves::Health(health) => (Some(health), None),
        Serves::Operations(operations) => (None, Some(operations)),
        Serves::Both(health, operations) => (Some(health), Some(operations)),
    };
    let has_health = health.is_some();
    let health = health.map(router).unwrap_or_default();
    let places = Arc::new(Semaphore::new(MAX_REQUESTS));
    let operations = operations.map(|Operations { router, runtime, large_bodies }| Answering {
        router,
        runtime,
        large_bodies,
        places,
    });
    let service = service_fn(move |request: Request<Incoming>| {
        let (mut health, operations) = (health.clone(), operations.clone());
        async move {
            Ok::<_, Infallible>(match operations {
                Some(operations) if !(has_health && is_health(request.uri())) => operations.answer(request).await,
                _ => health.call(request.map(Body::new)).await.unwrap_or_else(|never| match never {}),
            })
        }
    });
    let cannot_accept = |error: &io::Error| {
        tracing::warn!(%error, "the service cannot accept a connection; it tries again");
    };
    connections::serve(listener, entrance, bounds, service, shutdown, cannot_accept).await;
}

fn is_health(uri: &Uri) -> bool {
    matches!(uri.path(), "/healthz" | "/readyz" | "/metrics")
}

impl Answering {
    /// On the other runtime. A caller that goes away ends their request there, unless it may change something.
    async fn answer(self, mut request: Request<Incoming>) -> Response {
        drop_last_slash(request.uri_mut());
        // First: who sends slowly keeps nobody else from being answered.
        let mut request = self.arrived(request).await;
        let Ok(place) = self.places.try_acquire_owned() else { return too_many() };
        let place = Place::new(place);
        request.extensions_mut().insert(place.clone());
        let mut router = self.router;
        let answer = self.runtime.spawn(async move {
            let response = router.call(request).await.unwrap_or_else(|never| match never {});
            drop(place);
            response
        });
        let answer = AbortOnDrop(answer);
        answer.await.unwrap_or_else(|_| {
            problem(StatusCode::INTERNAL_SERVER_ERROR, "the request broke off: the log says why", json!({}))
        })
    }

    /// The request with its whole body, or with as much of it as is too much; who answers it refuses that. One that did not arrive
    /// in time breaks off there.
    async fn arrived(&self, request: Request<Incoming>) -> Request<Body> {
        let (parts, mut body) = request.into_parts();
        if body.is_end_stream() || parts.uri.path() == self.large_bodies {
            return Request::from_parts(parts, Body::new(body));
        }
        let read = async {
            let mut bytes = Vec::new();
            while let Some(frame) = body.frame().await {
                bytes.extend_from_slice(frame?.data_ref().map_or(&[], |data| data));
                if bytes.len() > LIMITS.body_bytes {
                    bytes.truncate(LIMITS.body_bytes + 1);
                    break;
                }
            }
            Ok::<_, hyper::Error>(bytes)
        };
        let body = match timeout(BODY_WITHIN, read).await {
            Ok(Ok(bytes)) => Body::from(bytes),
            Ok(Err(_)) | Err(_) => {
                Body::from_stream(stream::once(ready(Err::<Bytes, _>(io::Error::from(io::ErrorKind::TimedOut)))))
            }
        };
        Request::from_parts(parts, body)
    }
}

/// A task that nobody waits for any more ends.
struct AbortOnDrop(tokio::task::JoinHandle<Response>);

impl Future for AbortOnDrop {
    type Output = Result<Response, tokio::task::JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> task::Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn too_many() -> Response {
    let detail = "too many requests are being answered at the moment: nothing was done, ask again in a second";
    let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, detail, json!({}));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn router(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(health)
        .layer(middleware::map_response(last_of_its_connection))
        .layer(middleware::from_fn(counted))
}

/// One request, one answer.
async fn last_of_its_connection(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The process is alive and its tasks get their turn; what it depends on is `/readyz`' business.
async fn healthz() -> Response {
    Json(json!({"status": "alive"})).into_response()
}

async fn readyz(State(health): State<Health>) -> Response {
    match health.readiness.verdict(clock::now()) {
        Ok(()) => Json(json!({"status": "ready"})).into_response(),
        Err(reasons) => problem(StatusCode::SERVICE_UNAVAILABLE, &reasons.join("; "), json!({"reasons": reasons})),
    }
}

async fn metrics_page(State(health): State<Health>, headers: HeaderMap) -> Response {
    // Several are as good as one with commas.
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::accepted_by(&accept.collect::<Vec<_>>().join(","));
    ([(header::CONTENT_TYPE, format.content_type())], health.metrics.encode(format)).into_response()
}

async fn not_found(uri: Uri) -> Response {
    problem(StatusCode::NOT_FOUND, &format!("there is nothing at {}", uri.path()), json!({}))
}

async fn method_not_allowed() -> Response {
    problem(StatusCode::METHOD_NOT_ALLOWED, "use GET", json!({}))
}

fn problem(status: StatusCode, detail: &str, more: Value) -> Response {
    (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], untyped(status, detail, more)).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::telemetry::{metrics::Metrics, partitions::PartitionMetrics};

    struct Served {
        address: std::net::SocketAddr,
        readiness: Readiness,
        metrics: PartitionMetrics,
        shutdown: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    async fn served() -> Served {
        served_within(BOUNDS).await
    }

    async fn served_within(bounds: Bounds) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (readiness, shutdown) = (Readiness::new(), CancellationToken::new());
        let metrics = Metrics::new(readiness.clone()).partition("intents");
        let health = Health { readiness: readiness.clone(), metrics: metrics.page() };
        let task = tokio::spawn(serve(listener, Entrance::default(), bounds, Serves::Health(health), shutdown.clone()));
        Served { address, readiness, metrics, shutdown, task }
    }

    impl Served {
        /// The status line, the content type and the body.
        async fn ask(&self, method: &str, path: &str) -> (u16, String, String) {
            self.ask_with(method, path, "").await
        }

        /// With further lines of the head.
        async fn ask_with(&self, method: &str, path: &str, lines: &str) -> (u16, String, String) {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let request = format!("{method} {path} HTTP/1.1\r\nhost: herald\r\n{lines}\r\n");
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

    /// The thread of this test is the worker that hangs: it waits for the answer and does nothing else.
    #[test]
    fn a_worker_that_hangs_is_told_of_by_another_thread() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (readiness, shutdown) = (Readiness::new(), CancellationToken::new());
        readiness.set_redis(true);
        let health = Health { readiness: readiness.clone(), metrics: Metrics::new(readiness.clone()).page() };
        let ended = start(listener, Entrance::default(), Serves::Health(health), shutdown.clone()).unwrap();
        let ask = || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            io::Write::write_all(&mut stream, b"GET /readyz HTTP/1.1\r\nhost: herald\r\n\r\n").unwrap();
            io::read_to_string(stream).unwrap()
        };
        readiness.beat(clock::now());
        assert!(ask().starts_with("HTTP/1.1 200"));
        readiness.beat(clock::now() - crate::telemetry::readiness::SILENT_AFTER);
        assert!(ask().contains("the worker's thread hangs"));
        shutdown.cancel();
        ended.blocking_recv().unwrap();
    }

    #[tokio::test]
    async fn metrics_come_in_the_text_that_was_asked_for() {
        let served = served().await;
        served.metrics.entries_read(3);
        let (status, kind, body) = served.ask("GET", "/metrics").await;
        assert_eq!((status, kind.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
        assert!(
            body.contains(
                "# TYPE herald_entries_read_total counter\nherald_entries_read_total{partition=\"intents\"} 3\n"
            ),
            "{body}"
        );
        assert!(!body.contains("# EOF"), "{body}");

        let accept = "accept: text/plain;q=0.5\r\naccept: application/openmetrics-text;version=1.0.0\r\n";
        let (status, kind, body) = served.ask_with("GET", "/metrics", accept).await;
        assert_eq!((status, kind.as_str()), (200, "application/openmetrics-text; version=1.0.0; charset=utf-8"));
        assert!(
            body.contains("# TYPE herald_entries_read counter\nherald_entries_read_total{partition=\"intents\"} 3\n"),
            "{body}"
        );
        assert!(body.ends_with("# EOF\n"), "{body}");
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
    async fn three_hundred_idle_connections_do_not_keep_a_probe_waiting() {
        const HOUR: Duration = Duration::from_secs(3600);
        let served = served_within(Bounds { head: HOUR, whole: HOUR, ..BOUNDS }).await;
        let mut idle = Vec::new();
        for n in 0..300 {
            let mut stream = TcpStream::connect(served.address).await.unwrap();
            if n % 2 == 0 {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nx-never: ").await.unwrap();
            }
            idle.push(stream);
        }
        assert_eq!(served.ask("GET", "/healthz").await.0, 200);
        // The oldest made room for it.
        assert_eq!(idle[1].read(&mut [0]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_ends_its_connection() {
        let served = served_within(Bounds { head: Duration::from_millis(1), ..BOUNDS }).await;
        let mut silent = TcpStream::connect(served.address).await.unwrap();
        let mut answer = Vec::new();
        let _ = silent.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
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

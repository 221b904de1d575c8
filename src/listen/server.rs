//! Takes callbacks in by HTTP/1.1, within bounds: connections, heads, bodies and the time for each. Judges nothing.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, service::service_fn};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    callback::Callback,
    desk::{Desk, Reply, problem},
    forward::Answer,
};
use crate::{
    clock,
    facts::event::MAX_EVENT_BYTES,
    http::{
        connections::{self, Bounds, OneMore},
        entrance::Entrance,
    },
    surface::{note, words},
};

/// At once; further ones wait until one ends. Herald opens as many as an endpoint has attempts in flight, by default 10.
pub const MOST_CONNECTIONS: usize = 256;

/// What open connections, and then callbacks that are not shown yet, get at the end.
const DRAIN_TIME: Duration = Duration::from_secs(2);

const BOUNDS: Bounds = Bounds {
    connections: MOST_CONNECTIONS,
    one_more: OneMore::Waits,
    head: Duration::from_secs(10),
    // A sender may keep its connection for as long as it uses it.
    whole: Duration::MAX,
    last_request: DRAIN_TIME,
    drain: DRAIN_TIME,
};

/// Until a body is here, which is at most 64 KiB.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Until `ending`; then what is under way gets a moment.
pub async fn serve(listener: TcpListener, desk: Arc<Desk>, ending: CancellationToken) {
    let of_requests = desk.clone();
    let service = service_fn(move |request| answered(of_requests.clone(), request));
    let cannot_accept =
        |error: &io::Error| note(format_args!("a connection cannot be accepted ({error}); trying again"));
    connections::serve(listener, Entrance::default(), BOUNDS, service, ending, cannot_accept).await;
    desk.tasks.close();
    let _ = timeout(DRAIN_TIME, desk.tasks.wait()).await;
}

/// An error closes the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer, as a rehearsal")]
struct NoAnswer;

async fn answered(desk: Arc<Desk>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, NoAnswer> {
    let at_ms = clock::wall_ms();
    if request.method() != Method::POST {
        let mut refused = problem(StatusCode::METHOD_NOT_ALLOWED, "callbacks come by POST");
        refused.headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Ok(response(refused));
    }
    let (head, body) = request.into_parts();
    let body = match read(body).await {
        Ok(body) => body,
        Err(refused) => {
            note(format_args!("a callback was refused: {}", String::from_utf8_lossy(&refused.body)));
            return Ok(response(refused));
        }
    };
    let callback = Callback { at_ms, path: head.uri.path().to_owned(), headers: head.headers, body };
    // A task of its own: it is shown to its end also when the caller does not wait for it.
    match desk.tasks.spawn(desk.clone().handle(callback)).await {
        Ok(Reply::Answer(answer)) => Ok(response(answer)),
        Ok(Reply::Nothing) => Err(NoAnswer),
        Err(_) => Ok(response(problem(StatusCode::INTERNAL_SERVER_ERROR, "herald listen failed"))),
    }
}

async fn read(body: Incoming) -> Result<Bytes, Answer> {
    match timeout(BODY_TIMEOUT, Limited::new(body, MAX_EVENT_BYTES).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let most = words::bytes(MAX_EVENT_BYTES as u64);
            Err(problem(StatusCode::PAYLOAD_TOO_LARGE, &format!("a callback has at most {most}")))
        }
        Ok(Err(_)) => Err(problem(StatusCode::BAD_REQUEST, "the body broke off")),
        Err(_) => Err(problem(StatusCode::REQUEST_TIMEOUT, "the body did not come within 10 s")),
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

//! One HTTP/2 connection of a receiver whose connections do not last. After its number of requests it says so in time
//! and takes what is on its way, as RFC 9113 (section 6.8) would have it. When idle, or when its receiver is reloaded,
//! it ends the way nginx ends one: once what was asked is answered, with a GOAWAY that names the last stream, whatever
//! is on its way by then. A request that comes too late is refused before anything of it is looked at. Both tell the
//! client that nothing was done (section 8.7).

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::poll_fn, stream::FuturesUnordered};
use h2::{
    Reason, RecvStream,
    server::{Connection, SendResponse},
};
use http::{Response, request::Parts};
use tokio::time::{sleep, sleep_until, timeout};

use super::{
    behaviour::Reaction,
    connection::{Hall, Manners, Wire},
    http::Request,
    verify::Signed,
};
use crate::{
    clock,
    loadtest::ledger::{Answer, books::NONE},
};

/// The largest event is 64 KiB.
const MAX_BODY_BYTES: usize = 128 * 1024;

/// Streams of one connection at once, as in nginx.
const MAX_STREAMS: u32 = 128;

/// After this long without a stream a connection that is to end does end; its last answers have left by then.
const QUIET: Duration = Duration::from_millis(5);

/// A connection that is never quiet refuses new streams this long after its end was due.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a peer may take for its part of a beginning, a body or an end.
const SLOWEST: Duration = Duration::from_secs(10);

pub async fn serve(hall: &Hall, wire: impl Wire, manners: Manners) {
    let handshake = h2::server::Builder::new().max_concurrent_streams(MAX_STREAMS).handshake(wire);
    let Ok(Ok(mut connection)) = timeout(SLOWEST, handshake).await else { return };
    if answer_all(hall, &mut connection, manners).await.is_some() {
        connection.abrupt_shutdown(Reason::NO_ERROR);
        let _ = timeout(SLOWEST, poll_fn(|context| connection.poll_closed(context))).await;
    }
}

/// Runs until the connection is to end; none if the peer ended it.
async fn answer_all<W: Wire>(hall: &Hall, connection: &mut Connection<W, Bytes>, manners: Manners) -> Option<()> {
    let mut streams = FuturesUnordered::new();
    let (mut taken, mut quiet_since) = (0u32, clock::now());
    loop {
        let is_ending = manners.until.is_some_and(|until| clock::now() >= until);
        let ends_at = if is_ending { Some(quiet_since + QUIET) } else { ends_idle(&manners, quiet_since) };
        tokio::select! {
            accepted = connection.accept() => {
                let (request, mut answer) = accepted?.ok()?;
                if is_ending && overstays(&manners) {
                    answer.send_reset(Reason::REFUSED_STREAM);
                    continue;
                }
                taken += 1;
                if manners.requests == Some(taken) {
                    connection.graceful_shutdown();
                }
                streams.push(answer_one(hall, request.into_parts(), answer));
            }
            Some(()) = streams.next(), if !streams.is_empty() => quiet_since = clock::now(),
            () = at(ends_at), if streams.is_empty() => return Some(()),
        }
    }
}

fn ends_idle(manners: &Manners, quiet_since: Instant) -> Option<Instant> {
    let idle = manners.idle.map(|idle| quiet_since + idle);
    [idle, manners.until].into_iter().flatten().min()
}

fn overstays(manners: &Manners) -> bool {
    manners.until.is_some_and(|until| clock::now() > until + PATIENCE)
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

async fn answer_one(hall: &Hall, (head, mut body): (Parts, RecvStream), mut answer: SendResponse<Bytes>) {
    let Some(body) = timeout(SLOWEST, whole(&mut body)).map(|read| read.ok().flatten()).await else {
        return hall.ledger.nonsense(NONE, hall.now_us(), "an invalid body over HTTP/2");
    };
    let verdict = hall.receive(&request(&head, &body), false);
    let status = |status| Response::builder().status(status).body(()).expect("a status alone makes a response");
    match (verdict.ticket, verdict.reaction) {
        (Some(ticket), Reaction::Accept { after }) => {
            sleep(after).await;
            hall.ledger.answer(&ticket, Answer::Yes, hall.now_us());
            let is_sent = answer.send_response(status(200), true).is_ok();
            hall.ledger.written(&ticket, is_sent, hall.now_us());
        }
        // No profile with HTTP/2 does anything else.
        (Some(ticket), _) => {
            hall.ledger.answer(&ticket, Answer::Refused, hall.now_us());
            let _ = answer.send_response(status(500), true);
        }
        (None, _) => drop(answer.send_response(status(404), true)),
    }
}

/// None if it breaks off, or is too large.
async fn whole(body: &mut RecvStream) -> Option<Vec<u8>> {
    let mut read = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.ok()?;
        body.flow_control().release_capacity(part.len()).ok()?;
        read.extend_from_slice(&part);
        if read.len() > MAX_BODY_BYTES {
            return None;
        }
    }
    Some(read)
}

fn request<'a>(head: &'a Parts, body: &'a [u8]) -> Request<'a> {
    let value = |name: &str| head.headers.get(name).map(http::HeaderValue::as_bytes).unwrap_or_default();
    Request {
        method: head.method.as_str(),
        path: head.uri.path_and_query().map_or("/", |path| path.as_str()),
        signed: Signed {
            id: value("webhook-id"),
            timestamp: value("webhook-timestamp"),
            standard: value("webhook-signature"),
            dojo: value("dojo-signature"),
        },
        attempt: value("herald-attempt"),
        sequence: value("herald-sequence"),
        content_type: value("content-type"),
        body,
    }
}

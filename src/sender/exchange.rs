//! One request and the head of its answer, on a kept connection or a new one. Sends a second time, once, what the receiver
//! certainly did not process; that is not a retry, as nothing was tried. Never judges an answer, and never reads a body for
//! its content.
//!
//! Works below `reqwest`, whose client hides its connections: this needs to know whether one was used before, whether
//! anything came back on it, how much may come, and how old it is. An HTTP/1.1 connection is driven by the attempt that
//! uses it, so a delivery wakes no second task.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{
    body::{Frame, Incoming, SizeHint},
    client::conn::{TrySendError, http1, http1::Parts, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use reqwest::Body;
use tokio::time::Instant as Deadline;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    connect::{ConnectError, Connector, Origin},
    pool::{Opening, Place, Pool, Taken},
    stages::Stages,
    wire::{STREAMS_UNASKED, Watch, Wire},
};
use crate::{clock, facts::outcome::Met};

/// A whole response head. Common servers and proxies allow 8 to 32 KiB. An unfinished head can hold this much of our
/// memory. The library's buffer for HTTP/1.1 cannot be smaller than 8 KiB.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Lines of an HTTP/1.1 head. More than any server sends, and they must fit into [`MAX_HEAD_BYTES`] anyway.
const MAX_HEAD_LINES: usize = 256;

/// What a receiver may send on one HTTP/2 stream before we read it: we never read more than 16 KiB anyway.
const H2_STREAM_WINDOW: u32 = 64 * 1024;

/// The same for a whole connection: sixteen streams' worth, so that one stream that is not read does not stop the others.
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;

/// An HTTP/2 connection that carries requests and does not answer a ping within this time is dead. Otherwise all its
/// attempts, and those after them, would wait for their deadlines.
const H2_PING: Duration = Duration::from_secs(5);

/// Requests that share an HTTP/2 connection at a time: the fewest streams that a receiver should allow (RFC 9113, section
/// 6.5.2), or fewer if it allows fewer. One more would wait for another to end, and that would look like the receiver's
/// silence.
pub(super) const MAX_SHARING: usize = 100;

/// An HTTP/1.1 connection, used by one request at a time.
struct Http1 {
    send: http1::SendRequest<Body>,
    /// None once it has ended.
    connection: Option<http1::Connection<TokioIo<Wire>, Body>>,
    watch: Arc<Watch>,
    is_reused: bool,
    /// The last answer's status rules out a body. Some servers send one all the same, a little later.
    had_no_body: bool,
    retire_at: Instant,
    idle_since: Instant,
    place: Place,
}

/// An HTTP/1.1 connection on which nothing is under way, without what the library needs to speak on it: two buffers of 8
/// KiB and 9 KiB for handing it a request. An event for thousands of endpoints would leave a hundred megabytes of that
/// behind. Making it anew for each request costs no more than keeping it: the memory is still in the processor's cache from
/// the request before.
pub(super) struct Idle {
    wire: Wire,
    had_no_body: bool,
    pub(super) retire_at: Instant,
    pub(super) idle_since: Instant,
    place: Place,
}

/// An HTTP/2 connection, shared by all requests to its host. A task of its own drives it.
#[derive(Clone)]
pub(super) struct Http2 {
    send: http2::SendRequest<Body>,
    watch: Arc<Watch>,
    users: Arc<AtomicUsize>,
    /// When somebody began to open it.
    pub(super) opened_at: Instant,
    retire_at: Instant,
    pub(super) idle_since: Instant,
    /// When the last clone is dropped, everything ends that the connection consists of.
    _ends: Arc<DropGuard>,
}

/// Runs what an HTTP/2 connection consists of: its socket, and each body that waits for the receiver's permission to be
/// sent. The library ends these when the receiver does, which may be never. Here they end with the last user of the
/// connection, and only then is its place free.
#[derive(Clone)]
struct OneConnection {
    ended: CancellationToken,
    place: Arc<Place>,
}

impl<F> hyper::rt::Executor<F> for OneConnection
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let Self { ended, place } = self.clone();
        tokio::spawn(async move {
            ended.run_until_cancelled(future).await;
            drop(place);
        });
    }
}

/// A request's body. When it is dropped, the library is known to have done with it.
struct Watched {
    body: Body,
    _waits: Arc<()>,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    Connect(ConnectError),
    Exchange {
        error: hyper::Error,
        is_flood: bool,
        /// It ended TLS because of the client certificate.
        is_certificate: bool,
    },
    /// The deadline is over, and the request is out.
    Silent,
    /// What came was not an answer to the request: the connection was being closed because it had been idle.
    Unasked,
}

/// An answer's head, and the connection that its body comes on.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: http::HeaderMap,
    pub(super) body: AnswerBody,
}

pub(super) struct AnswerBody {
    incoming: Incoming,
    connection: Connection,
}

enum Connection {
    Http1(Box<Http1>),
    Http2(Http2, User),
}

/// One request's use of a shared connection.
struct User {
    users: Arc<AtomicUsize>,
    /// The request's body, until the library has done with it.
    body: Weak<()>,
}

impl Drop for User {
    fn drop(&mut self) {
        self.users.fetch_sub(1, Relaxed);
    }
}

/// Sends requests over the connections of a pool.
pub(super) struct Exchanges {
    connector: Connector,
    pool: Arc<Pool>,
    http1: http1::Builder,
}

impl Exchanges {
    pub(super) fn new(connector: Connector, pool: Arc<Pool>) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEAD_LINES)
            // What curl and browsers accept.
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .ignore_invalid_headers_in_responses(true);
        Self { connector, pool, http1 }
    }

    /// Sends what `request` makes and waits for the head of the answer, until the deadline.
    pub(super) async fn exchange(
        &self,
        origin: &Arc<Origin>,
        mut request: impl FnMut(IsHttp2) -> Request<Body>,
        deadline: Deadline,
        stages: &mut Stages<'_>,
    ) -> Result<Answer, Failure> {
        let began_at = clock::now();
        let first = self.once(origin, &mut request, None, deadline, stages).await;
        tracing::trace!(
            status = first.as_ref().ok().map(|answer| answer.status.as_u16()),
            "a request to {origin} came back"
        );
        match first {
            Err(Once { failure, is_certain: true }) => {
                tracing::debug!(reason = ?failure, "a request that was not processed is sent again");
                stages.resent = true;
                let second = self.once(origin, &mut request, Some(began_at), deadline, stages).await;
                second.map_err(|once| once.failure)
            }
            other => other.map_err(|once| once.failure),
        }
    }

    async fn once(
        &self,
        origin: &Arc<Origin>,
        request: &mut impl FnMut(IsHttp2) -> Request<Body>,
        newer_than: Option<Instant>,
        deadline: Deadline,
        stages: &mut Stages<'_>,
    ) -> Result<Answer, Once> {
        match self.connection(origin, newer_than, deadline, stages).await? {
            Connection::Http1(connection) => {
                tracing::trace!("a request to {origin} goes out over HTTP/1.1");
                connection.send(request(IsHttp2::No), deadline).await
            }
            Connection::Http2(connection, user) => {
                tracing::trace!("a request to {origin} goes out over HTTP/2");
                let shared = connection.clone();
                let answered = connection.send(user, request(IsHttp2::Yes), deadline).await;
                match &answered {
                    Err(Once { failure, is_certain: true }) => {
                        self.pool.retire(origin, &shared);
                        if failure.asks_for_http1() {
                            self.pool.keep_to_http1(origin);
                        }
                    }
                    // It may take no more streams: then whatever begins on it next would get no answer either.
                    Err(Once { failure: Failure::Silent, .. }) => self.pool.retire(origin, &shared),
                    Err(_) | Ok(_) => {}
                }
                answered
            }
        }
    }

    /// A connection that is still open, as far as can be seen.
    async fn connection(
        &self,
        origin: &Arc<Origin>,
        newer_than: Option<Instant>,
        deadline: Deadline,
        stages: &mut Stages<'_>,
    ) -> Result<Connection, ConnectError> {
        let mut has_waited = false;
        loop {
            match self.pool.take(origin, newer_than, has_waited) {
                Taken::Http1(kept) => {
                    let mut kept = kept.begin(&self.http1, true).await?;
                    if kept.stands() {
                        return Ok(Connection::Http1(kept));
                    }
                }
                Taken::Http2(shared) => return Ok(shared.used()),
                Taken::Wait(gate) => {
                    has_waited = true;
                    // It never has a permit: the wait ends when it is closed.
                    let waited = tokio::time::timeout_at(deadline, gate.acquire()).await;
                    waited.map(drop).map_err(|_| ConnectError::Silent { tried: "another attempt's".to_owned() })?;
                }
                // Boxed: an attempt waits much longer for its answer, and would keep the room for this all that time.
                Taken::Open(opening) => return Box::pin(self.open(origin, opening, deadline, stages)).await,
            }
        }
    }

    async fn open(
        &self,
        origin: &Arc<Origin>,
        opening: Opening,
        deadline: Deadline,
        stages: &mut Stages<'_>,
    ) -> Result<Connection, ConnectError> {
        let place = self.pool.place().ok_or(ConnectError::Full { most: self.pool.most })?;
        let opened_at = clock::now();
        let only_http1 = self.pool.is_only_http1(origin);
        let spare = || self.pool.spare();
        let (wire, is_http2) = self.connector.connect(origin, only_http1, spare, deadline, stages).await?;
        let (watch, now) = (wire.watch(), clock::now());
        let retire_at = self.pool.retire_at();
        if !is_http2 {
            let idle = Idle { wire, had_no_body: false, retire_at, idle_since: now, place };
            return Ok(Connection::Http1(idle.begin(&self.http1, false).await?));
        }
        let tasks = OneConnection { ended: CancellationToken::new(), place: Arc::new(place) };
        let ends = Arc::new(tasks.ended.clone().drop_guard());
        let (send, connection) =
            http2_builder(tasks.clone()).handshake(TokioIo::new(wire)).await.map_err(ConnectError::Protocol)?;
        hyper::rt::Executor::execute(&tasks, drive(connection, Arc::clone(&watch), opening));
        let shared = Http2 { send, watch, users: Arc::default(), opened_at, retire_at, idle_since: now, _ends: ends };
        self.pool.share(origin, shared.clone());
        Ok(shared.used())
    }

    /// Reads the body with `read`, and keeps the connection if it can be used again.
    pub(super) async fn read_body<T>(
        &self,
        origin: &Arc<Origin>,
        mut body: AnswerBody,
        read: impl AsyncFnOnce(&mut AnswerBody) -> T,
    ) -> T {
        let read = read(&mut body).await;
        let AnswerBody { incoming, connection } = body;
        drop(incoming);
        match connection {
            Connection::Http1(mut http1) => {
                if http1.stands()
                    && http1.send.is_ready()
                    && let Some(idle) = http1.idle()
                {
                    self.pool.keep(origin, idle);
                }
            }
            // It answered before it took the whole request: the rest of that stays in the connection until it ends.
            Connection::Http2(shared, user) if user.body.strong_count() > 0 => self.pool.retire(origin, &shared),
            Connection::Http2(..) => {}
        }
        read
    }
}

/// Others that ask for a connection wait until the receiver has said how many streams it allows. The first one's request is
/// already on its way.
async fn drive(connection: http2::Connection<TokioIo<Wire>, Body, OneConnection>, watch: Arc<Watch>, opening: Opening) {
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = watch.has_settings() => {
            drop(opening);
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP/2 connection ended");
    }
}

fn http2_builder(tasks: OneConnection) -> http2::Builder<OneConnection> {
    let mut http2 = http2::Builder::new(tasks);
    http2
        .timer(TokioTimer::new())
        .initial_max_send_streams(STREAMS_UNASKED)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PING);
    http2
}

/// What the request is made for: the two differ in how they name the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IsHttp2 {
    Yes,
    No,
}

/// What came of sending once.
struct Once {
    failure: Failure,
    /// The receiver has certainly not processed the request.
    is_certain: bool,
}

impl From<ConnectError> for Once {
    fn from(error: ConnectError) -> Self {
        Self { failure: Failure::Connect(error), is_certain: false }
    }
}

impl Once {
    const SILENT: Self = Self { failure: Failure::Silent, is_certain: false };
}

impl Http1 {
    /// Drives the connection until the future is ready.
    async fn drive<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            self.poll(cx);
            future.as_mut().poll(cx)
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && Pin::new(connection).poll(cx).is_ready()
        {
            // Whatever still waits for it learns of its end this way.
            self.connection = None;
        }
    }

    /// Checks once whether the connection has ended or says something unasked.
    fn stands(&mut self) -> bool {
        // Its socket keeps the waker that it was last polled with, and an attempt's waker would keep the attempt's memory.
        self.poll(&mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && !self.send.is_closed()
    }

    /// What is kept of a connection on which nothing is under way. None if it has ended or says something unasked.
    fn idle(self) -> Option<Box<Idle>> {
        let Self { connection, had_no_body, retire_at, idle_since, place, .. } = self;
        let Parts { io, read_buf, .. } = connection?.into_parts();
        let wire = io.into_inner();
        read_buf.is_empty().then(|| Box::new(Idle { wire, had_no_body, retire_at, idle_since, place }))
    }

    async fn send(mut self: Box<Self>, request: Request<Body>, deadline: Deadline) -> Result<Answer, Once> {
        self.watch.begin();
        let sending = self.send.try_send_request(request);
        let answered = tokio::time::timeout_at(deadline, self.drive(sending)).await;
        let Ok(answered) = answered else { return Err(Once::SILENT) };
        let response = answered.map_err(|error| self.failed(error))?;
        if self.is_reused && is_idle_timeout(&response) {
            return Err(Once { failure: Failure::Unasked, is_certain: true });
        }
        self.had_no_body = has_no_body(response.status());
        // It says that a body follows where none is allowed: nobody knows where the next answer begins.
        if self.had_no_body && announces_body(&response) {
            self.retire_at = self.idle_since;
        }
        Ok(Answer::of(response, Connection::Http1(self)))
    }

    fn failed(&self, mut error: TrySendError<Request<Body>>) -> Once {
        let was_sent = error.take_message().is_none();
        let error = error.into_error();
        let is_flood = self.watch.is_flooded() || error.is_parse_too_large();
        // What came is a late body of the answer before, which must not have one.
        let is_leftover = self.had_no_body && error.is_parse() && !is_flood;
        let is_certain = self.is_reused && (!was_sent || !self.watch.is_answered() || is_leftover);
        let is_certificate = self.watch.refuses_certificate();
        Once { failure: Failure::Exchange { error, is_flood, is_certificate }, is_certain }
    }
}

impl Idle {
    async fn begin(self, http1: &http1::Builder, is_reused: bool) -> Result<Box<Http1>, ConnectError> {
        let Self { wire, had_no_body, retire_at, idle_since, place } = self;
        let watch = wire.watch();
        let (send, connection) = http1.handshake(TokioIo::new(wire)).await.map_err(ConnectError::Protocol)?;
        let connection = Some(connection);
        Ok(Box::new(Http1 { send, connection, watch, is_reused, had_no_body, retire_at, idle_since, place }))
    }
}

/// A server that closes an idle connection may say so, and that may cross with a request: RFC 9110, section 15.5.9.
fn is_idle_timeout(response: &Response<Incoming>) -> bool {
    let options = response.headers().get_all(header::CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    let mut options = options.flat_map(|value| value.split(',').map(str::trim));
    response.status() == StatusCode::REQUEST_TIMEOUT && options.any(|option| option.eq_ignore_ascii_case("close"))
}

/// RFC 9110, section 6.4.1.
fn has_no_body(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

fn announces_body(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    length || headers.contains_key(header::TRANSFER_ENCODING)
}

impl Http2 {
    pub(super) fn may_be_used(&self, now: Instant) -> bool {
        now < self.retire_at && !self.send.is_closed()
    }

    pub(super) fn has_room(&self) -> bool {
        // A receiver that allows none now may soon allow some: a request waits on it as on a silent one.
        self.users.load(Relaxed) < self.watch.streams().clamp(1, MAX_SHARING)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.users.load(Relaxed) > 0
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.users, &other.users)
    }

    fn used(self) -> Connection {
        self.users.fetch_add(1, Relaxed);
        let user = User { users: Arc::clone(&self.users), body: Weak::new() };
        Connection::Http2(self, user)
    }

    async fn send(mut self, mut user: User, request: Request<Body>, deadline: Deadline) -> Result<Answer, Once> {
        self.watch.begin();
        let waits = Arc::new(());
        user.body = Arc::downgrade(&waits);
        let request = request.map(|body| Body::wrap(Watched { body, _waits: waits }));
        let sending = self.send.try_send_request(request);
        let answered = tokio::time::timeout_at(deadline, sending).await;
        let Ok(answered) = answered else { return Err(Once::SILENT) };
        let response = answered.map_err(|error| self.failed(error))?;
        Ok(Answer::of(response, Connection::Http2(self, user)))
    }

    fn failed(&self, mut error: TrySendError<Request<Body>>) -> Once {
        let was_sent = error.take_message().is_none();
        let error = error.into_error();
        let is_certain = !was_sent || was_not_processed(&error);
        let (is_flood, is_certificate) = (self.watch.is_flooded(), self.watch.refuses_certificate());
        Once { failure: Failure::Exchange { error, is_flood, is_certificate }, is_certain }
    }
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

/// RFC 9113, section 8.7: a stream above the last one of a GOAWAY, and one that was refused. The library reports a GOAWAY
/// for a stream only if the stream is above the last one.
fn was_not_processed(error: &hyper::Error) -> bool {
    let Some(error) = h2_error(error).filter(|error| error.is_remote()) else { return false };
    let reason = error.reason();
    error.is_go_away() || matches!(reason, Some(h2::Reason::REFUSED_STREAM | h2::Reason::HTTP_1_1_REQUIRED))
}

impl Failure {
    fn asks_for_http1(&self) -> bool {
        match self {
            Self::Exchange { error, .. } => {
                h2_error(error).and_then(h2::Error::reason) == Some(h2::Reason::HTTP_1_1_REQUIRED)
            }
            Self::Connect(_) | Self::Silent | Self::Unasked => false,
        }
    }
}

impl Answer {
    fn of(response: Response<Incoming>, connection: Connection) -> Self {
        let (parts, incoming) = response.into_parts();
        Self { status: parts.status, headers: parts.headers, body: AnswerBody { incoming, connection } }
    }
}

impl AnswerBody {
    pub(super) fn met(&self) -> Option<Met> {
        let (watch, is_http2) = match &self.connection {
            Connection::Http1(http1) => (&http1.watch, false),
            Connection::Http2(http2, _) => (&http2.watch, true),
        };
        watch.peer().map(|address| Met { address, is_http2 })
    }

    /// The next part of it; none at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        loop {
            let frame = match &mut self.connection {
                Connection::Http1(http1) => http1.drive(self.incoming.frame()).await,
                Connection::Http2(..) => self.incoming.frame().await,
            };
            match frame.transpose()?.map(hyper::body::Frame::into_data) {
                Some(Ok(data)) => return Ok(Some(data)),
                // Trailers change nothing.
                Some(Err(_)) => {}
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thousands are kept for an account with as many endpoints.
    #[test]
    fn an_idle_connection_is_little_more_than_its_socket() {
        assert!(size_of::<Idle>() <= 256, "{}", size_of::<Idle>());
    }
}

//! Takes connections and hands their requests to a service, HTTP/1.1 only: HTTP/2 has no limit to how long its streams may be
//! silent. Bounds how many there are and how long each may last, and ends them all at the end. Knows nothing of what is asked.

use std::{
    collections::VecDeque,
    error::Error,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::HeaderValue;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    server::conn::http1,
    service::Service,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::entrance::Entrance;

/// What all connections together and each of them can take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    pub one_more: OneMore,
    /// Until the head of a request is here; this long an idle connection is kept.
    pub head: Duration,
    /// After this long a connection ends with the request that is under way.
    pub whole: Duration,
    /// What that request then gets.
    pub last_request: Duration,
    /// What open connections get after the end, for the requests that are on their way.
    pub drain: Duration,
}

/// A connection when there are as many as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OneMore {
    /// Waits until another ends.
    Waits,
    /// Ends the oldest: for those whose answers take no time, so that the oldest has asked for nothing or does not read.
    EndsTheOldest,
    /// Ends the oldest of those that ask for nothing at the moment, or the oldest of all.
    EndsTheOldestIdle,
}

/// Whom a request came from, as far as proxies that are trusted tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// An open connection, as it is chosen when one has to end.
struct Open {
    task: AbortHandle,
    /// Requests that are being answered.
    requests: Arc<AtomicUsize>,
}

/// After an accept that failed, mostly because there is no descriptor left: long enough not to spin, short for a probe.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Cause = Box<dyn Error + Send + Sync>;

/// A browser and a probe need a fraction of a second; whoever needs longer than this keeps a place from others.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Until `shutdown`, and then until what is under way has ended or `drain` has passed; says how many connections were left then.
/// `cannot_accept` tells whoever runs it of an accept that failed.
pub async fn serve<S, B>(
    listener: TcpListener,
    entrance: Entrance,
    bounds: Bounds,
    service: S,
    shutdown: CancellationToken,
    cannot_accept: impl Fn(&io::Error),
) -> usize
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<Cause>, Future: Send> + Clone + Send + 'static,
    B: Body<Data: Send, Error: Into<Cause>> + Send + 'static,
{
    let mut open = JoinSet::new();
    let mut oldest_first: VecDeque<Open> = VecDeque::new();
    loop {
        let has_place = open.len() < bounds.connections || bounds.one_more != OneMore::Waits;
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept(), if has_place => accepted,
        };
        let (stream, peer): (TcpStream, IpAddr) = match accepted {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                cannot_accept(&error);
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are small, and somebody waits for them.
        let _ = stream.set_nodelay(true);
        oldest_first.retain(|one| !one.task.is_finished());
        if oldest_first.len() >= bounds.connections {
            make_room(&mut oldest_first, bounds.one_more);
        }
        let requests = Arc::new(AtomicUsize::new(0));
        let counted =
            Counted { service: service.clone(), peer, entrance: entrance.clone(), requests: requests.clone() };
        let shutdown = shutdown.clone();
        let task = match entrance.tls() {
            None => open.spawn(connection(stream, bounds, counted, shutdown)),
            // Until it is over the connection asks for nothing, so it is the first to make room for others.
            Some(tls) => open.spawn(async move {
                match timeout(HANDSHAKE.min(bounds.head), TlsAcceptor::from(tls).accept(stream)).await {
                    Ok(Ok(stream)) => connection(stream, bounds, counted, shutdown).await,
                    Ok(Err(error)) => debug!(%error, "a handshake failed"),
                    Err(_) => debug!("a handshake took too long"),
                }
            }),
        };
        oldest_first.push_back(Open { task, requests });
    }
    drop(listener);
    // What is not done by then is dropped with the set.
    let _ = timeout(bounds.drain, async { while open.join_next().await.is_some() {} }).await;
    open.len()
}

fn make_room(oldest_first: &mut VecDeque<Open>, one_more: OneMore) {
    let is_idle = |one: &Open| one.requests.load(Ordering::Relaxed) == 0;
    let chosen = match one_more {
        OneMore::EndsTheOldestIdle => oldest_first.iter().position(is_idle).unwrap_or(0),
        OneMore::Waits | OneMore::EndsTheOldest => 0,
    };
    if let Some(one) = oldest_first.remove(chosen) {
        one.task.abort();
    }
}

/// Tells a service whose request it is, and counts those that are being answered.
struct Counted<S> {
    service: S,
    peer: IpAddr,
    entrance: Entrance,
    requests: Arc<AtomicUsize>,
}

struct Answering(Arc<AtomicUsize>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S, B> Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Future: Send> + Clone + Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answering = Answering(self.requests.clone());
        let peer = Peer(self.entrance.caller(self.peer, request.headers()));
        request.extensions_mut().insert(peer);
        if self.entrance.tls().is_some() {
            // As a proxy with TLS would say it, whatever the caller says.
            request.headers_mut().insert("x-forwarded-proto", HeaderValue::from_static("https"));
        }
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(answering);
            answer
        })
    }
}

/// A peer that breaks off is its own affair.
async fn connection<S, B, T>(stream: T, bounds: Bounds, service: S, shutdown: CancellationToken)
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<Cause>>,
    B: Body<Error: Into<Cause>> + 'static,
{
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(bounds.head);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = served.as_mut() => Ok(ended),
        () = async { tokio::select! { () = shutdown.cancelled() => {}, () = sleep(bounds.whole) => {} } } => {
            served.as_mut().graceful_shutdown();
            timeout(bounds.last_request, served).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection broke off"),
        Err(_) => debug!("a connection took too long"),
    }
}

//! One connection: reads its requests one after the other, has each verified and noted, and answers as the endpoint's
//! profile says. Waiting for a late answer holds up only this connection, and ends when the peer goes away.
//!
//! With a profile whose connections do not last, a connection ends between two requests, without warning: a request
//! that crosses its end was not processed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;

use super::{
    behaviour::{Moment, Reaction, react},
    http::{MAX_BUFFER, Read, Request, read},
    verify::{Keys, id_in, number, sequence, timestamp_ms},
};
use crate::{
    clock,
    loadtest::{
        ledger::{Answer, Arrival, Ledger, Ticket, body_hash, books::NONE},
        population::Population,
    },
};

/// The time between two parts of one request. Herald writes a request at once; a paused Herald may keep us waiting.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// How long and how large an endless body is. Herald reads 16 KiB and hangs up.
const FLOOD_TIMEOUT: Duration = Duration::from_secs(30);
const FLOOD_BYTES: usize = 64 * 1024 * 1024;

/// A receiver that hangs does so for longer than Herald can wait.
const HANG: Duration = Duration::from_secs(600);

/// How many bytes of interim answers a flood sends at once, and how long it rests in between: a megabyte or so a
/// second, because the harness shares the machine with what it measures.
const HINTS: usize = 512;
const HINT_PAUSE: Duration = Duration::from_millis(20);

/// How long a request is in flight before a flood ends its attempt: a sender of two at a time is noticed.
const BEFORE_HINTS: Duration = Duration::from_millis(20);

/// Where a redirect leads, before the endpoint's number. No endpoint has this path.
const AWAY: &str = "/away";

/// What all connections share.
pub struct Hall {
    pub population: Arc<Population>,
    pub ledger: Arc<Ledger>,
    /// By endpoint.
    pub keys: Vec<Keys>,
}

/// A TCP connection, with or without TLS around it, here or some distance away.
pub trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// Makes it end with a reset, as far as this end can decide that.
    fn break_off(&self);
}

impl Wire for TcpStream {
    fn break_off(&self) {
        // Closing with a linger of zero sends RST instead of FIN. If that cannot be set, FIN breaks off as well.
        let _ = self.set_zero_linger();
    }
}

impl Wire for DuplexStream {
    fn break_off(&self) {}
}

impl<W: Wire> Wire for TlsStream<W> {
    fn break_off(&self) {
        self.get_ref().0.break_off();
    }
}

/// When a connection ends by itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manners {
    /// The certificate that was shown is not for this address.
    pub is_misnamed: bool,
    /// After this many answers.
    pub requests: Option<u32>,
    /// After this long without a request.
    pub idle: Option<Duration>,
    /// At this time, once what was asked by then has been answered.
    pub until: Option<Instant>,
}

impl Manners {
    /// How long to wait for a request; none means for ever.
    fn patience(&self) -> Option<Duration> {
        let left = self.until.map(|until| until.saturating_duration_since(clock::now()));
        [self.idle, left].into_iter().flatten().min()
    }
}

/// What follows from a request.
pub(super) struct Verdict {
    pub(super) endpoint: u32,
    /// None for a request that belongs to no delivery: it is answered 404.
    pub(super) ticket: Option<Ticket>,
    pub(super) reaction: Reaction,
}

/// Whether the connection goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Close,
}

pub async fn serve(hall: &Hall, wire: impl Wire, manners: Manners) {
    let mut line = Line { hall, wire, manners, buffer: BytesMut::with_capacity(4 * 1024) };
    let mut answered = 0;
    while let Some(verdict) = line.next().await {
        if line.act(&verdict).await == Next::Close {
            return;
        }
        answered += 1;
        if manners.requests.is_some_and(|most| answered >= most) {
            return;
        }
    }
}

struct Line<'a, W> {
    hall: &'a Hall,
    wire: W,
    manners: Manners,
    buffer: BytesMut,
}

impl<W: Wire> Line<'_, W> {
    /// The next request, judged and noted; none if the connection is over.
    async fn next(&mut self) -> Option<Verdict> {
        loop {
            let judged = match read(&self.buffer) {
                Read::Whole(length, request) => Some((length, self.hall.receive(&request, self.manners.is_misnamed))),
                Read::Partial => None,
                Read::Bad(why) => {
                    self.hall.ledger.nonsense(NONE, self.hall.now_us(), why);
                    return None;
                }
            };
            if let Some((length, verdict)) = judged {
                self.buffer.advance(length);
                return Some(verdict);
            }
            // Between requests a kept connection may be quiet for as long as its owner likes.
            let patience = match self.buffer.is_empty() {
                true => self.manners.patience(),
                false => Some(REQUEST_TIMEOUT),
            };
            let more = match patience {
                None => self.wire.read_buf(&mut self.buffer).await,
                Some(patience) => timeout(patience, self.wire.read_buf(&mut self.buffer)).await.ok()?,
            };
            if !more.is_ok_and(|read| read > 0) {
                return None;
            }
        }
    }

    async fn act(&mut self, verdict: &Verdict) -> Next {
        let Some(ticket) = verdict.ticket else {
            return self.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
        };
        match verdict.reaction {
            Reaction::Accept { after } => {
                if !after.is_zero() && !self.stays_for(after).await {
                    return self.give_up(&ticket);
                }
                self.affirm(&ticket, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await
            }
            Reaction::Refuse { status, retry_after_s } => {
                let answer = if status == 429 { Answer::Throttled } else { Answer::Refused };
                self.note(&ticket, answer);
                let retry_after =
                    retry_after_s.map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
                let head = format!("HTTP/1.1 {status} Refused\r\n{retry_after}content-length: 0\r\n\r\n");
                self.write(head.as_bytes()).await
            }
            Reaction::Gone => {
                self.note(&ticket, Answer::Gone);
                self.write(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n").await
            }
            Reaction::Redirect => {
                self.note(&ticket, Answer::Redirected);
                let head =
                    format!("HTTP/1.1 302 Found\r\nlocation: {AWAY}/{}\r\ncontent-length: 0\r\n\r\n", verdict.endpoint);
                self.write(head.as_bytes()).await
            }
            Reaction::Hang => {
                self.stays_for(HANG).await;
                self.give_up(&ticket)
            }
            Reaction::Reset => {
                self.note(&ticket, Answer::Broken);
                self.wire.break_off();
                Next::Close
            }
            Reaction::Truncate => {
                self.note(&ticket, Answer::Broken);
                self.write(b"HTTP/1.1 200 OK\r\ncontent-le").await;
                let _ = self.wire.shutdown().await;
                Next::Close
            }
            Reaction::Hint => {
                if !self.stays_for(BEFORE_HINTS).await {
                    return self.give_up(&ticket);
                }
                // More than anyone takes comes at once, so the attempt may be over before we see that.
                self.note(&ticket, Answer::Abandoned);
                self.hint().await;
                Next::Close
            }
            Reaction::Flood => {
                let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n";
                if self.affirm(&ticket, head).await == Next::Go {
                    // However it ends, the head has said yes.
                    let _ = timeout(FLOOD_TIMEOUT, self.flood()).await;
                }
                Next::Close
            }
        }
    }

    async fn affirm(&mut self, ticket: &Ticket, head: &[u8]) -> Next {
        self.note(ticket, Answer::Yes);
        let next = self.write(head).await;
        self.hall.ledger.written(ticket, next == Next::Go, self.hall.now_us());
        next
    }

    fn note(&self, ticket: &Ticket, answer: Answer) {
        self.hall.ledger.answer(ticket, answer, self.hall.now_us());
    }

    fn give_up(&self, ticket: &Ticket) -> Next {
        self.note(ticket, Answer::Abandoned);
        Next::Close
    }

    async fn write(&mut self, bytes: &[u8]) -> Next {
        let written = async {
            self.wire.write_all(bytes).await?;
            self.wire.flush().await
        };
        match timeout(REQUEST_TIMEOUT, written).await {
            Ok(Ok(())) => Next::Go,
            _ => Next::Close,
        }
    }

    /// Until the peer hangs up.
    async fn hint(&mut self) {
        let hints = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(HINTS);
        loop {
            if self.write(&hints).await == Next::Close || !self.stays_for(HINT_PAUSE).await {
                return;
            }
        }
    }

    async fn flood(&mut self) {
        let part = [b'.'; 16 * 1024];
        for _ in 0..FLOOD_BYTES / part.len() {
            if self.wire.write_all(&part).await.is_err() {
                return;
            }
        }
    }

    /// Waits, and returns whether the peer is still there. What it sends meanwhile belongs to its next request.
    async fn stays_for(&mut self, time: Duration) -> bool {
        let over = sleep(time);
        tokio::pin!(over);
        loop {
            let has_room = self.buffer.len() < MAX_BUFFER;
            tokio::select! {
                () = &mut over => return true,
                read = self.wire.read_buf(&mut self.buffer), if has_room => {
                    if !read.is_ok_and(|read| read > 0) {
                        return false;
                    }
                }
            }
        }
    }
}

impl Hall {
    /// Verifies a request, notes it, and says how its endpoint reacts.
    pub(super) fn receive(&self, request: &Request<'_>, is_misnamed: bool) -> Verdict {
        let endpoint = self.endpoint(request);
        if is_misnamed {
            self.ledger.bad_certificate_accepted(endpoint.unwrap_or_default(), self.now_us());
        }
        let Some(endpoint) = endpoint else {
            return Verdict { endpoint: 0, ticket: None, reaction: Reaction::Gone };
        };
        let wall_ms = clock::wall_ms();
        let timestamp = timestamp_ms(request.signed.timestamp, wall_ms);
        let id = id_in(request.body);
        let arrival = Arrival {
            endpoint,
            generation: generation(request),
            event: id.and_then(|id| self.ledger.event_number(id)),
            body_hash: body_hash(request.body),
            attempt: number(request.attempt).and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(0),
            sequence: sequence(request.sequence).unwrap_or(0),
            timestamp_ms: timestamp.ok().map(|at_ms| at_ms - self.ledger.began_wall_ms() as i64),
            bad_signature: self.keys[endpoint as usize].check(&request.signed, request.body).err(),
            bad_header: timestamp.err().or_else(|| odd_header(request, id)),
        };
        let at_us = self.now_us();
        let arrived = self.ledger.arrive(&arrival, at_us);
        let moment = Moment {
            seed: self.population.seed(),
            event: arrival.event.unwrap_or_default(),
            endpoint,
            attempt: arrival.attempt,
            arrival: arrived.arrival,
            acknowledged: arrived.acknowledged,
            at: Duration::from_micros(at_us),
        };
        Verdict { endpoint, ticket: arrived.ticket, reaction: react(self.population.profile(endpoint), &moment) }
    }

    /// By its path. A client that asks for anything else was not told to by us, or follows a redirect.
    fn endpoint(&self, request: &Request<'_>) -> Option<u32> {
        let known = |path: &str| {
            let number = path.strip_prefix('/').and_then(|text| number(text.as_bytes()))?;
            u32::try_from(number).ok().filter(|number| *number < self.population.active())
        };
        let path = request.path.split_once('?').map_or(request.path, |(path, _)| path);
        let found = known(path);
        if found.is_none() {
            match path.strip_prefix(AWAY).and_then(known) {
                Some(endpoint) => self.ledger.redirect_followed(endpoint, self.now_us()),
                None => self.ledger.nonsense(NONE, self.now_us(), "a path of no endpoint"),
            }
        }
        found
    }
}

/// At which of its URLs an endpoint was asked.
fn generation(request: &Request<'_>) -> u32 {
    let query = request.path.split_once('?').and_then(|(_, query)| number(query.as_bytes()));
    query.and_then(|generation| u32::try_from(generation).ok()).unwrap_or(0)
}

fn odd_header(request: &Request<'_>, id: Option<&[u8]>) -> Option<&'static str> {
    match request {
        Request { method, .. } if *method != "POST" => Some("the method is not POST"),
        Request { signed, .. } if Some(signed.id) != id => Some("webhook-id is not the id in the body"),
        Request { content_type, .. } if *content_type != b"application/json" => {
            Some("content-type is not application/json")
        }
        _ => None,
    }
}

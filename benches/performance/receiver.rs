//! A receiver that costs as little as possible: it reads HTTP/1.1 from kept connections, answers 200 and counts. It
//! verifies nothing, because the sender is what is measured. One thread, so that it never takes more than one core.
//!
//! `POST` is a delivery. An event whose id is `evt_t` + microseconds since 1970 + `_` + anything also says how long it
//! took to get here; where the events' own times are to be read, each does that has `createdAt`. `GET /count` and `GET /latency` report; the latter starts the next collection.

use std::{
    cell::{Cell, RefCell},
    io::{BufRead, Write},
    rc::Rc,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use herald::intents::stamp::Stamp;
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};
use tokio_rustls::TlsAcceptor;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// How much a connection may send ahead of our reading: far more than one request of 600 bytes with its head.
const MAX_BUFFER: usize = 256 * 1024;

/// Latencies above a minute count as a minute.
const MAX_LATENCY_US: u64 = 60_000_000;

struct Seen {
    count: Cell<u64>,
    latency: RefCell<Histogram<u64>>,
    /// An event's `createdAt` is when it was added.
    reads_times: bool,
}

/// Serves on two free ports, which it prints with the path of its certificate authority, until its input ends.
pub fn run(reads_times: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(reads_times))
}

async fn serve(reads_times: bool) -> Result<()> {
    let seen = Rc::new(Seen { count: Cell::new(0), latency: RefCell::new(new_histogram()), reads_times });
    let (plain, secure) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    let (acceptor, certificate) = tls()?;
    let mut out = std::io::stdout();
    writeln!(out, "{} {}", plain.local_addr()?.port(), secure.local_addr()?.port())?;
    write!(out, "{certificate}")?;
    writeln!(out, ".")?;
    out.flush()?;
    // The bench holds our input open for as long as it lives.
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new()));
    tokio::select! {
        ended = ended => ended?.map(drop).context("the input failed"),
        accepted = accept(plain, None, seen.clone()) => accepted,
        accepted = accept(secure, Some(acceptor), seen) => accepted,
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, seen: Rc<Seen>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (tls, seen) = (tls.clone(), seen.clone());
        tokio::task::spawn_local(async move {
            // A client that breaks off is noticed by what is missing.
            let _ = connection(stream, tls, &seen).await;
        });
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, seen: &Seen) -> Result<()> {
    match tls {
        Some(tls) => talk(tls.accept(stream).await?, seen).await,
        None => talk(stream, seen).await,
    }
}

async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, seen: &Seen) -> Result<()> {
    let (mut buffer, mut filled, mut answer) = (vec![0; 16 * 1024], 0, Vec::with_capacity(1024));
    loop {
        if filled == buffer.len() {
            anyhow::ensure!(filled < MAX_BUFFER, "a request is too large");
            buffer.resize(2 * filled, 0);
        }
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let mut used = 0;
        while let Some(length) = take_request(&buffer[used..filled], seen, &mut answer)? {
            used += length;
        }
        buffer.copy_within(used..filled, 0);
        filled -= used;
        if !answer.is_empty() {
            stream.write_all(&answer).await?;
            stream.flush().await?;
            answer.clear();
        }
    }
}

/// The length of the first complete request, whose answer has been added; none if more has to arrive.
fn take_request(bytes: &[u8], seen: &Seen, answer: &mut Vec<u8>) -> Result<Option<usize>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(bytes)? else { return Ok(None) };
    if request.method == Some("GET") {
        let body = match request.path {
            Some("/latency") => seen.take_latency(),
            _ => seen.count.get().to_string(),
        };
        write!(answer, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
        return Ok(Some(head));
    }
    let header = |name: &str| request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value);
    let length: usize = std::str::from_utf8(header("content-length").context("a request has no length")?)?.parse()?;
    if bytes.len() < head + length {
        return Ok(None);
    }
    seen.count.set(seen.count.get() + 1);
    let of_event = || seen.reads_times.then(|| created_at_us(&bytes[head..head + length])).flatten();
    if let Some(sent_us) = header("webhook-id").and_then(sent_at_us).or_else(of_event) {
        seen.latency.borrow_mut().saturating_record(now_us().saturating_sub(sent_us));
    }
    answer.extend_from_slice(OK);
    Ok(Some(head + length))
}

impl Seen {
    /// Count, p50, p99 and the longest, in microseconds.
    fn take_latency(&self) -> String {
        let seen = self.latency.replace(new_histogram());
        let at = |quantile| seen.value_at_quantile(quantile);
        format!("{} {} {} {}", seen.len(), at(0.5), at(0.99), seen.max())
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).expect("the bounds are in order")
}

fn sent_at_us(id: &[u8]) -> Option<u64> {
    let (us, _) = std::str::from_utf8(id).ok()?.strip_prefix("evt_t")?.split_once('_')?;
    us.parse().ok()
}

fn created_at_us(body: &[u8]) -> Option<u64> {
    let (_, rest) = std::str::from_utf8(body).ok()?.split_once("\"createdAt\":\"")?;
    Stamp::parse(rest.split('"').next()?)?.0.try_into().ok()
}

/// The wall clock, because sender and receiver are two processes of one machine.
#[expect(clippy::disallowed_methods, reason = "the library's clock counts milliseconds; here microseconds matter")]
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// A certificate for 127.0.0.1 that is its own authority, and its PEM.
fn tls() -> Result<(TlsAcceptor, String)> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(herald::tls::provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok((TlsAcceptor::from(Arc::new(config)), made.cert.pem()))
}

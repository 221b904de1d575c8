//! Many merchants in one process: an HTTP server on one port whose paths are the endpoints' ids. It records every
//! arrival, checks both signatures with code that is not Herald's, and answers as the test's rules say.
#![allow(dead_code, reason = "each test binary uses a part of this")]
// A test measures what another process does.
#![allow(clippy::disallowed_methods)]

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use herald::facts::id::EntryId;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use sha2::Sha256;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::support::SAFETY;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub endpoint: String,
    pub event: String,
    pub intent: String,
    pub sequence: EntryId,
    pub account_sequence: Option<u64>,
    pub traceparent: String,
    pub attempt: u32,
    /// How often this event had already arrived at this endpoint.
    pub earlier: u32,
    pub at: Instant,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub answered: Option<u16>,
}

/// What a merchant does with a request.
#[derive(Debug, Clone, Copy)]
pub struct Reply {
    pub status: u16,
    pub after: Duration,
    /// It answers only when its endpoint is healed.
    pub hangs: bool,
    pub retry_after_s: Option<u32>,
}

impl Reply {
    pub const OK: Self = Self::status(200);

    /// Takes the request, and answers 200 once its endpoint is healed.
    pub const HANGS: Self = Self { hangs: true, ..Self::OK };

    pub const fn status(status: u16) -> Self {
        Self { status, after: Duration::ZERO, hangs: false, retry_after_s: None }
    }

    pub const fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }
}

/// Decides by the arrival alone, so that a run does not depend on which arrival came first.
type Rule = Arc<dyn Fn(&Arrival) -> Reply + Send + Sync>;

#[derive(Default)]
pub struct Log {
    pub arrivals: Vec<Arrival>,
    /// (endpoint, event) that were answered 2xx, and how often they arrived in all.
    pub delivered: HashSet<(String, String)>,
    pub seen: HashMap<(String, String), u32>,
    /// What no correct Herald sends.
    pub faults: Vec<String>,
    /// Attempts that are being answered now, and the most there ever were, by endpoint.
    pub open: HashMap<String, (u32, u32)>,
    /// Attempts that are being answered now, by chain: more than one breaks the order.
    open_chains: HashMap<(String, String), u32>,
    pub overlaps: Vec<String>,
}

impl Log {
    /// Arrivals beyond the first of each (endpoint, event).
    pub fn duplicates(&self) -> usize {
        self.arrivals.len() - self.seen.len()
    }

    pub fn of<'a>(&'a self, endpoint: &'a str) -> impl Iterator<Item = &'a Arrival> {
        self.arrivals.iter().filter(move |arrival| arrival.endpoint == endpoint)
    }

    pub fn delivered_to(&self, endpoint: &str) -> usize {
        self.delivered.iter().filter(|(to, _)| to == endpoint).count()
    }

    /// Arrivals, and how many of them have been neither answered nor given up.
    pub fn asked_and_open(&self) -> (usize, usize) {
        (self.arrivals.len(), self.open.values().map(|(open, _)| *open as usize).sum())
    }

    /// First arrivals that came after a later event of their intent. Events' ids sort in the order of the stream.
    pub fn out_of_order(&self) -> Vec<String> {
        let mut newest: HashMap<(&str, &str), &Arrival> = HashMap::new();
        let mut wrong = Vec::new();
        for arrival in self.arrivals.iter().filter(|arrival| arrival.earlier == 0) {
            let chain = (arrival.endpoint.as_str(), arrival.intent.as_str());
            match newest.get(&chain) {
                Some(newer) if newer.event > arrival.event || newer.sequence >= arrival.sequence => {
                    wrong.push(format!(
                        "{} (sequence {}) arrived at {} after {} (sequence {})",
                        arrival.event, arrival.sequence, arrival.endpoint, newer.event, newer.sequence
                    ))
                }
                _ => drop(newest.insert(chain, arrival)),
            }
        }
        wrong
    }
}

struct Shared {
    log: Mutex<Log>,
    rules: Mutex<HashMap<String, Rule>>,
    secret: String,
    changed: watch::Sender<u64>,
    /// Counts the healings: those that hang check whether they are meant.
    healed: watch::Sender<u64>,
}

/// The merchants; they end when this value is dropped.
pub struct Merchants {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Drop for Merchants {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Merchants {
    /// All of them share one secret.
    pub async fn start(secret: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            log: Mutex::default(),
            rules: Mutex::default(),
            secret: secret.to_owned(),
            changed: watch::channel(0).0,
            healed: watch::channel(0).0,
        });
        let serving = shared.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let shared = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(shared.clone(), request));
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, shared, accepting }
    }

    pub fn url(&self, endpoint: &str) -> String {
        format!("http://{}/{endpoint}", self.address)
    }

    /// Without a rule a merchant answers 200 at once.
    pub fn rule(&self, endpoint: &str, rule: impl Fn(&Arrival) -> Reply + Send + Sync + 'static) {
        self.shared.rules.lock().unwrap().insert(endpoint.to_owned(), Arc::new(rule));
    }

    pub fn heal(&self, endpoint: &str) {
        self.shared.rules.lock().unwrap().remove(endpoint);
        self.shared.healed.send_modify(|count| *count += 1);
    }

    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.log.lock().unwrap()
    }

    pub fn delivered(&self) -> usize {
        self.log().delivered.len()
    }

    /// Waits until the log is as it should be.
    pub async fn until(&self, what: &str, holds: impl Fn(&Log) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let waiting = async {
            loop {
                changed.mark_unchanged();
                if holds(&self.log()) {
                    return;
                }
                changed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(SAFETY, waiting).await.is_err() {
            let log = self.log();
            panic!(
                "waited in vain for {what}: {} delivered, {} arrived, {} different",
                log.delivered.len(),
                log.arrivals.len(),
                log.seen.len()
            );
        }
    }

    pub async fn until_delivered(&self, count: usize) {
        self.until(&format!("{count} deliveries"), |log| log.delivered.len() >= count).await;
    }

    /// Checks that everything that arrived was signed and complete, and that first arrivals came in order.
    pub fn assert_sound(&self) {
        let log = self.log();
        assert_eq!(log.faults, Vec::<String>::new());
        assert_eq!(log.out_of_order(), Vec::<String>::new());
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let endpoint = request.uri().path().trim_start_matches('/').to_owned();
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let reply_of = shared.rules.lock().unwrap().get(&endpoint).cloned();
    let (at, chain, reply) = {
        let mut log = shared.log.lock().unwrap();
        let arrival = arrival(&mut log, &shared.secret, endpoint.clone(), &head.headers, &body);
        let reply = reply_of.map_or(Reply::OK, |rule| rule(&arrival));
        let chain = (endpoint.clone(), arrival.intent.clone());
        let open = log.open.entry(endpoint.clone()).or_default();
        open.0 += 1;
        open.1 = open.1.max(open.0);
        let of_chain = log.open_chains.entry(chain.clone()).or_default();
        *of_chain += 1;
        if *of_chain > 1 {
            log.overlaps.push(format!("{} at {endpoint} while another of {} is open", arrival.event, arrival.intent));
        }
        log.arrivals.push(arrival);
        (log.arrivals.len() - 1, chain, reply)
    };
    shared.changed.send_modify(|count| *count += 1);
    let closing = Closing { shared: &shared, endpoint: &endpoint, chain: &chain };
    if reply.after > Duration::ZERO {
        tokio::time::sleep(reply.after).await;
    }
    if reply.hangs {
        let mut healed = shared.healed.subscribe();
        let is_healed = |_: &u64| !shared.rules.lock().unwrap().contains_key(&endpoint);
        // The merchants live as long as their requests.
        let _ = healed.wait_for(is_healed).await;
    }
    {
        let mut log = shared.log.lock().unwrap();
        log.arrivals[at].answered = Some(reply.status);
        if (200..300).contains(&reply.status) {
            let event = log.arrivals[at].event.clone();
            log.delivered.insert((endpoint.clone(), event));
        }
    }
    drop(closing);
    shared.changed.send_modify(|count| *count += 1);
    let mut response = Response::builder().status(reply.status);
    if let Some(seconds) = reply.retry_after_s {
        response = response.header("retry-after", seconds);
    }
    Ok(response.body(Full::new(Bytes::new())).unwrap())
}

/// Takes an attempt off the open ones, even if the sender gave up.
struct Closing<'a> {
    shared: &'a Shared,
    endpoint: &'a str,
    chain: &'a (String, String),
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut log = self.shared.log.lock().unwrap();
        if let Some(open) = log.open.get_mut(self.endpoint) {
            open.0 -= 1;
        }
        if let Some(open) = log.open_chains.get_mut(self.chain) {
            *open -= 1;
        }
    }
}

fn arrival(log: &mut Log, secret: &str, endpoint: String, headers: &http::HeaderMap, body: &[u8]) -> Arrival {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let event = json["id"].as_str().unwrap_or_default().to_owned();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut fault = |what: &str| log.faults.push(format!("{event} at {endpoint}: {what}"));
    if text("webhook-id") != event || event.is_empty() {
        fault("the webhook-id is not the event's");
    }
    let webhook = standardwebhooks::Webhook::new(secret).expect("the test's secret is one");
    if let Err(error) = webhook.verify(body, headers) {
        fault(&format!("the standard signature is wrong: {error}"));
    }
    if text("dojo-signature") != dojo(secret, body) {
        fault("the dojo signature is wrong");
    }
    let sequence = entry_in(text("herald-sequence")).unwrap_or_else(|| {
        fault("the sequence is none");
        EntryId::ZERO
    });
    let attempt = text("herald-attempt").parse().unwrap_or_else(|_| {
        fault("the attempt is not a number");
        0
    });
    let times = log.seen.entry((endpoint.clone(), event.clone())).or_default();
    let earlier = *times;
    *times += 1;
    Arrival {
        intent: json["data"]["paymentIntentId"].as_str().unwrap_or_default().to_owned(),
        endpoint,
        event,
        sequence,
        account_sequence: text("herald-account-sequence").parse().ok(),
        traceparent: text("traceparent").to_owned(),
        attempt,
        earlier,
        at: Instant::now(),
        at_ms: SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64,
        answered: None,
    }
}

/// Written from `docs/merchants.md`, not with Herald's parser.
fn entry_in(sequence: &str) -> Option<EntryId> {
    let (ms, seq) = sequence.strip_prefix('s').filter(|rest| rest.len() == 41)?.split_at(20);
    Some(EntryId { ms: ms.parse().ok()?, seq: seq.strip_prefix('-')?.parse().ok()? })
}

/// Written from Dojo's documentation, not from Herald's code.
fn dojo(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body);
    let bytes: Vec<String> = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02X}")).collect();
    format!("sha256={}", bytes.join("-"))
}

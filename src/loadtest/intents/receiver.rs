//! Takes the callbacks of all endpoints, verifies them with code of its own, and notes them. Some endpoints fail now and then.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::random_bool;
use serde::Deserialize;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

use super::ledger::{Arrival, Ledger};
use crate::loadtest::{
    population::Population,
    receiver::verify::{Keys, Signed},
    scenario::Profile,
};

/// An event has a few hundred bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;

const MAX_CONNECTIONS: usize = 1_024;

/// After an accept that failed: long enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How long a connection may take over a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

struct Desk {
    population: Arc<Population>,
    keys: Vec<Keys>,
    ledger: Arc<Ledger>,
}

/// Ends with its owner.
pub struct Receiver {
    pub address: SocketAddr,
    _connections: JoinSet<()>,
}

impl Receiver {
    pub async fn start(population: Arc<Population>, ledger: Arc<Ledger>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port is free for the receiver")?;
        let address = listener.local_addr()?;
        let keys = (0..population.active()).map(|endpoint| Keys::new(population.secret(endpoint).reveal())).collect();
        let desk = Arc::new(Desk { population, keys, ledger });
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, desk));
        Ok(Self { address, _connections: connections })
    }
}

async fn accept(listener: TcpListener, desk: Arc<Desk>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let desk = Arc::clone(&desk);
                    let answer = service_fn(move |request| {
                        let desk = Arc::clone(&desk);
                        async move { Ok::<_, Infallible>(desk.take(request).await) }
                    });
                    let mut server = http1::Builder::new();
                    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
                    connections.spawn(async move {
                        // What came whole is noted; a connection that breaks tells nothing more.
                        let _ = server.serve_connection(TokioIo::new(stream), answer).await;
                    });
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    id: String,
    event: String,
    account_id: String,
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    payment_intent_id: String,
    payment_status: String,
}

impl Desk {
    async fn take(&self, request: Request<Incoming>) -> Response<Empty<Bytes>> {
        let (head, body) = request.into_parts();
        let at_us = self.ledger.now_us();
        let number = head.uri.path().trim_start_matches('/').parse::<u32>().ok();
        let known = number.filter(|number| (*number as usize) < self.keys.len());
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
        let (Some(endpoint), Ok(body)) = (known, body) else { return answer(StatusCode::NOT_FOUND) };
        let body = body.to_bytes();
        let fails = match self.population.profile(endpoint) {
            Profile::Flaky { p } => random_bool(p.clamp(0.0, 1.0)),
            _ => false,
        };
        let event: Option<Event> = serde_json::from_slice(&body).ok();
        let fault = match (&event, self.keys[endpoint as usize].check(&signed(&head.headers), &body)) {
            (None, _) => Some("a body that is no event".to_owned()),
            (_, Err(why)) => Some(why.to_owned()),
            _ => None,
        };
        let event = event.unwrap_or_else(|| Event {
            id: String::new(),
            event: String::new(),
            account_id: String::new(),
            data: Data { payment_intent_id: String::new(), payment_status: String::new() },
        });
        self.ledger.arrived(Arrival {
            endpoint,
            at_us,
            event: event.id,
            kind: event.event,
            account: event.account_id,
            intent: event.data.payment_intent_id,
            status: event.data.payment_status,
            sequence: String::from_utf8_lossy(header(&head.headers, "herald-sequence")).into_owned(),
            fault,
            is_acknowledged: !fails,
        });
        answer(if fails { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK })
    }
}

fn answer(status: StatusCode) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    response
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a [u8] {
    headers.get(name).map_or(b"", |value| value.as_bytes())
}

fn signed(headers: &HeaderMap) -> Signed<'_> {
    Signed {
        id: header(headers, "webhook-id"),
        timestamp: header(headers, "webhook-timestamp"),
        standard: header(headers, "webhook-signature"),
        dojo: header(headers, "dojo-signature"),
    }
}

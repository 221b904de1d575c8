//! The five merchants at work, in one process. They verify what they receive as a merchant should, over the raw bytes,
//! and keep the ledger.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use jiff::Timestamp;
use serde_json::Value;
use tokio::{net::TcpListener, sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    ledger::{Arrival, Callback, Ledger},
    merchant::Merchant,
};
use crate::{
    clock,
    facts::signing::{SecretText, dojo_signature, standard_signature},
};

/// How long the slow merchant thinks.
const SLOW: Duration = Duration::from_millis(400);

/// When the flaky merchant fails, counted from its start.
const FLAKY: std::ops::Range<Duration> = Duration::from_secs(3)..Duration::from_secs(8);

/// Events that the merchant takes before it is gone.
const BEFORE_GONE: u64 = 4;

/// What a merchant reports about one request.
#[derive(Debug, Clone)]
pub struct Said {
    pub merchant: Merchant,
    pub status: u16,
    pub event: String,
    pub attempt: String,
    pub arrival: Option<Arrival>,
}

pub struct Merchants {
    pub ledger: Ledger,
    pub secrets: HashMap<Merchant, SecretText>,
    began: Instant,
    taken_by_gone: AtomicU64,
    says: mpsc::Sender<Said>,
}

impl Merchants {
    pub fn new(secrets: HashMap<Merchant, SecretText>, says: mpsc::Sender<Said>) -> Arc<Self> {
        let (ledger, began, taken_by_gone) = (Ledger::new(), clock::now(), AtomicU64::new(0));
        Arc::new(Self { ledger, secrets, began, taken_by_gone, says })
    }

    pub async fn serve(self: Arc<Self>, socket: TcpListener, cancel: CancellationToken) {
        let router = Router::new().route("/{merchant}", post(receive)).with_state(self);
        // Dropped on cancellation: the worker has ended by then, so nobody waits for an answer any more.
        tokio::select! {
            () = cancel.cancelled() => {}
            served = async { axum::serve(socket, router).await } => drop(served),
        }
    }

    async fn answer(&self, merchant: Merchant) -> StatusCode {
        match merchant {
            Merchant::Slow => {
                sleep(SLOW).await;
                StatusCode::OK
            }
            Merchant::Flaky if FLAKY.contains(&(clock::now() - self.began)) => StatusCode::INTERNAL_SERVER_ERROR,
            Merchant::Gone if self.taken_by_gone.fetch_add(1, Ordering::Relaxed) >= BEFORE_GONE => StatusCode::GONE,
            Merchant::Healthy | Merchant::Flaky | Merchant::Gone | Merchant::Dead => StatusCode::OK,
        }
    }

    fn is_signed(&self, merchant: Merchant, headers: &HeaderMap, body: &[u8]) -> bool {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let Some(secret) = self.secrets.get(&merchant) else { return false };
        let Ok(timestamp) = header("webhook-timestamp").parse() else { return false };
        let standard = standard_signature(std::iter::once(secret), header("webhook-id"), timestamp, body);
        header("webhook-signature") == standard && header("dojo-signature") == dojo_signature(secret, body)
    }
}

async fn receive(
    State(merchants): State<Arc<Merchants>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let Some(merchant) = Merchant::ALL.into_iter().find(|merchant| merchant.name() == name) else {
        return StatusCode::NOT_FOUND;
    };
    if !merchants.is_signed(merchant, &headers, &body) {
        merchants.ledger.bad_signature();
        return StatusCode::UNAUTHORIZED;
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let event = header("webhook-id");
    let status = merchants.answer(merchant).await;
    let arrival = status.is_success().then(|| {
        let number = header("herald-account-sequence").parse().unwrap_or_default();
        let (intent, after) = told_by(&body).unwrap_or_default();
        merchants.ledger.accept(merchant, &Callback { event: event.clone(), intent, number }, after)
    });
    let said = Said { merchant, status: status.as_u16(), event, attempt: header("herald-attempt"), arrival };
    // The display may be slow; the ledger is what counts.
    let _ = merchants.says.try_send(said);
    status
}

/// The intent, and how long ago it changed.
fn told_by(body: &[u8]) -> Option<(String, Duration)> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let created_at: Timestamp = body["createdAt"].as_str()?.parse().ok()?;
    let created_at_us = u64::try_from(created_at.as_microsecond()).ok()?;
    let after = Duration::from_micros(clock::wall_us().saturating_sub(created_at_us));
    Some((body["data"]["paymentIntentId"].as_str()?.to_owned(), after))
}

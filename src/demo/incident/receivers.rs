//! The merchants' receivers: all of them in one server, each at a path of its own, and well until the incident begins.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::cast::Fault;

pub struct Receivers {
    faults: BTreeMap<String, Fault>,
    is_broken: AtomicBool,
    /// What each has taken.
    taken: Mutex<BTreeMap<String, u64>>,
}

impl Receivers {
    pub fn new(faults: BTreeMap<String, Fault>) -> Arc<Self> {
        Arc::new(Self { faults, is_broken: AtomicBool::new(false), taken: Mutex::default() })
    }

    pub fn break_now(&self) {
        self.is_broken.store(true, Ordering::Relaxed);
    }

    pub fn taken(&self) -> BTreeMap<String, u64> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub async fn serve(self: Arc<Self>, socket: TcpListener, cancel: CancellationToken) {
        let router = Router::new().route("/{endpoint}", post(receive)).with_state(self);
        tokio::select! {
            () = cancel.cancelled() => {}
            served = async { axum::serve(socket, router).await } => drop(served),
        }
    }
}

async fn receive(State(receivers): State<Arc<Receivers>>, Path(endpoint): Path<String>) -> Response {
    let fault = receivers.faults.get(&endpoint).copied();
    let fault = fault.filter(|fault| fault.is_an_answer() && receivers.is_broken.load(Ordering::Relaxed));
    match fault {
        None => {
            let mut taken = receivers.taken.lock().unwrap_or_else(PoisonError::into_inner);
            *taken.entry(endpoint).or_default() += 1;
            StatusCode::OK.into_response()
        }
        Some(Fault::TimesOut) => std::future::pending().await,
        Some(Fault::Unauthorized) => (StatusCode::UNAUTHORIZED, "{\"error\":\"unknown API key\"}").into_response(),
        Some(Fault::NotFound) => (StatusCode::NOT_FOUND, "no such route: /webhooks/dojo").into_response(),
        Some(Fault::Gone) => StatusCode::GONE.into_response(),
        Some(Fault::TooManyRequests) => {
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "30")], "slow down").into_response()
        }
        Some(Fault::Redirects) => (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, "/moved")], "").into_response(),
        Some(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "upstream connect error: connection pool is full").into_response()
        }
    }
}

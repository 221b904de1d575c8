//! Receives Herald's callbacks with axum. In an empty project (`cargo new receiver`), this is `src/main.rs`, and
//! `Cargo.toml` has:
//!
//! ```toml
//! [dependencies]
//! axum = "0.8"
//! # A checkout of Herald. Without its default features it is its signatures alone, and brings no more than they need.
//! herald-dispatch = { path = "../herald", default-features = false }
//! serde_json = "1"
//! tokio = { version = "1", features = ["macros", "net", "rt-multi-thread"] }
//! ```
//!
//! Start it with `HERALD_SECRETS=whsec_… PORT=9000 cargo run`.

use std::{
    collections::{HashMap, HashSet},
    env,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode},
};
use herald::signing::{MIN_SECRET_CHARS, SecretText, verify_dojo, verify_standard};
use serde_json::Value;

/// The largest event there is. More is answered with 413.
const MAX_BODY_BYTES: usize = 65_536;
const TOLERANCE: Duration = Duration::from_secs(300);

struct Receiver {
    /// Several while one is being replaced.
    secrets: Vec<SecretText>,
    /// Only if your endpoint has no `webhook-signature`.
    is_dojo: bool,
    store: Mutex<Store>,
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

impl Receiver {
    /// The scheme is a setting: whoever forges a request would leave the stronger signature out.
    #[allow(clippy::disallowed_methods)] // Herald's own code reads its clocks in one place.
    fn is_verified(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let now = SystemTime::now();
        self.secrets.iter().any(|secret| match self.is_dojo {
            true => verify_dojo(secret, headers, body).is_ok(),
            false => verify_standard(secret, headers, body, now, TOLERANCE).is_ok(),
        })
    }
}

/// IN MEMORY ONLY, so that this file needs no database: a restart forgets it. Use two tables of yours, and change them in
/// one transaction: seen(id primary key, at), kept for 36 days, and intents(id primary key, status, sequence).
#[derive(Default)]
struct Store {
    seen: HashSet<String>,
    /// Status and sequence.
    intents: HashMap<String, (String, String)>,
}

impl Store {
    /// Takes an event once, and keeps the newest status of its intent.
    fn take(&mut self, id: &str, intent: &str, status: &str, sequence: &str) -> &'static str {
        if !self.seen.insert(id.to_owned()) {
            return "duplicate";
        }
        // Compared as text: it is no number.
        if self.intents.get(intent).is_some_and(|(_, known)| sequence <= known.as_str()) {
            return "older";
        }
        self.intents.insert(intent.to_owned(), (status.to_owned(), sequence.to_owned()));
        "applied"
    }
}

/// `Bytes` are the body as it came. `Json<…>` would take it away, and what is made of that again has other bytes.
async fn receive(State(receiver): State<Arc<Receiver>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let (id, sequence) = (header(&headers, "webhook-id"), header(&headers, "herald-sequence"));
    if !receiver.is_verified(&headers, &body) || id.is_empty() || sequence.is_empty() {
        return StatusCode::BAD_REQUEST;
    }
    let Ok(event) = serde_json::from_slice::<Value>(&body) else { return StatusCode::BAD_REQUEST };
    // Dojo's scheme signs no header: an old body with a new id would pass as new.
    if event["id"] != id {
        return StatusCode::BAD_REQUEST;
    }
    let (intent, status) = (&event["data"]["paymentIntentId"], &event["data"]["paymentStatus"]);
    let (Some(intent), Some(status)) = (intent.as_str(), status.as_str()) else { return StatusCode::BAD_REQUEST };
    let result = receiver.store.lock().expect("no thread panicked").take(id, intent, status, sequence);
    println!("{id} {intent} {status} {result}");
    StatusCode::NO_CONTENT // It is stored. Whatever takes long belongs into a task or a queue.
}

#[tokio::main]
async fn main() {
    let texts = env::var("HERALD_SECRETS").expect("HERALD_SECRETS is set");
    let texts = texts.split([',', ' ']).filter(|text| !text.is_empty());
    let secrets: Vec<_> = texts.map(|text| SecretText::new(text.to_owned()).expect("HERALD_SECRETS")).collect();
    let are_whole = !secrets.is_empty() && secrets.iter().all(|secret| secret.reveal().len() >= MIN_SECRET_CHARS);
    assert!(are_whole, "HERALD_SECRETS: it has no secret, or one that is not whole");
    let is_dojo = env::var("HERALD_SCHEME").is_ok_and(|scheme| scheme == "dojo");
    let receiver = Receiver { secrets, is_dojo, store: Mutex::default() };
    let app = Router::new()
        .fallback(receive) // Whatever the path: put here .route("/the-one-that-you-registered", post(receive)).
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::new(receiver));
    let port = env::var("PORT").map_or(9000, |port| port.parse().expect("PORT is a number"));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
    axum::serve(listener, app).await.expect("it serves for ever");
}

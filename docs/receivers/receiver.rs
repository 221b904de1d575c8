//! Receives Herald's callbacks with axum. In an empty project (`cargo new receiver`), this is `src/main.rs`, and
//! `Cargo.toml` has:
//!
//! ```toml
//! [dependencies]
//! axum = "0.8"
//! base64 = "0.23"
//! hmac = "0.13"
//! serde_json = "1"
//! sha2 = "0.11"
//! tokio = { version = "1", features = ["macros", "net", "rt-multi-thread"] }
//! ```
//!
//! Start it with `HERALD_SECRETS=whsec_… PORT=9000 cargo run`.

use std::{
    collections::{HashMap, HashSet},
    env,
    sync::{Arc, Mutex},
    time::UNIX_EPOCH,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

/// The largest event there is. More is answered with 413.
const MAX_BODY_BYTES: usize = 65_536;
const TOLERANCE_S: u64 = 300;

struct Receiver {
    /// Several while one is being replaced: each one's text, and its key for `webhook-signature`.
    secrets: Vec<(String, Vec<u8>)>,
    /// Only if your endpoint has no `webhook-signature`.
    is_dojo: bool,
    store: Mutex<Store>,
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// In constant time, unlike `==`.
fn is_mac(key: &[u8], parts: &[&[u8]], given: &[u8]) -> bool {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.verify_slice(given).is_ok()
}

impl Receiver {
    /// `webhook-signature`: base64 of HMAC-SHA256 over id.timestamp.body; one for each secret, with spaces between.
    fn has_standard_signature(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let (id, timestamp) = (header(headers, "webhook-id"), header(headers, "webhook-timestamp"));
        let now = UNIX_EPOCH.elapsed().expect("it is after 1970").as_secs();
        if !timestamp.parse().is_ok_and(|then: u64| now.abs_diff(then) <= TOLERANCE_S) {
            return false;
        }
        let signed = format!("{id}.{timestamp}.");
        header(headers, "webhook-signature")
            .split(' ')
            .filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok())
            .any(|given| self.secrets.iter().any(|(_, key)| is_mac(key, &[signed.as_bytes(), body], &given)))
    }

    /// `dojo-signature`: HMAC-SHA256 over the body alone, keyed with the secret's text, in upper case: sha256=0A-1B-…
    fn has_dojo_signature(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let digits = header(headers, "dojo-signature").strip_prefix("sha256=").unwrap_or_default();
        let given: Option<Vec<u8>> = digits.split('-').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        given.is_some_and(|given| self.secrets.iter().any(|(text, _)| is_mac(text.as_bytes(), &[body], &given)))
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
    let is_verified = match receiver.is_dojo {
        true => receiver.has_dojo_signature(&headers, &body),
        false => receiver.has_standard_signature(&headers, &body),
    };
    let (id, sequence) = (header(&headers, "webhook-id"), header(&headers, "herald-sequence"));
    if !is_verified || id.is_empty() || sequence.is_empty() {
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
    let key = |text: &str| match text.strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).expect("base64 stands behind whsec_"),
        None => text.as_bytes().to_vec(),
    };
    let texts = env::var("HERALD_SECRETS").expect("HERALD_SECRETS is set");
    let texts = texts.split([',', ' ']).filter(|text| !text.is_empty());
    let secrets: Vec<_> = texts.map(|text| (text.to_owned(), key(text))).collect();
    // Anybody can sign with an empty key.
    let are_whole = !secrets.is_empty() && secrets.iter().all(|(_, key)| key.len() >= 16);
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

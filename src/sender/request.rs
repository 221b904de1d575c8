//! The request of an attempt: its URL, headers and signatures, as section 6 of `docs/design.md` lists them.
//! What does not change between attempts is worked out once per endpoint and kept. Never sends.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use foldhash::HashMap;
use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{self, InvalidHeaderValue},
    uri::InvalidUri,
};
use url::Position;

use super::{
    connect::Origin,
    guard::{AddressGuard, GuardError},
    headers::{HeaderError, parse_headers},
    trust::Own,
};
use crate::facts::{
    delivery::Delivery,
    endpoint::{Endpoint, Scheme},
    endpoint_tls::EndpointTls,
    id::EndpointId,
    signing::{
        DojoKey, Kind, PrivateKey, Secret, SecretText, StandardKey, dojo_signature_with, ed25519_signature,
        standard_signature_with,
    },
};

static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
static WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
static DOJO_SIGNATURE: HeaderName = HeaderName::from_static("dojo-signature");
static HERALD_ATTEMPT: HeaderName = HeaderName::from_static("herald-attempt");
static HERALD_SEQUENCE: HeaderName = HeaderName::from_static("herald-sequence");
static HERALD_ACCOUNT_SEQUENCE: HeaderName = HeaderName::from_static("herald-account-sequence");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

const USER_AGENT: &str = concat!("herald/", env!("CARGO_PKG_VERSION"));

/// What is shown instead of a value that must not be shown.
const HIDDEN: &str = "(hidden)";

/// Headers that Herald writes itself; with the endpoint's own they size the map.
const OWN_HEADERS: usize = 12;

/// Room for the usual values of a request together.
const USUAL_VALUE_BYTES: usize = 256;

/// Endpoints whose prepared form is kept. At about 1 KiB each this is 8 MiB, and more endpoints than one worker sends to at
/// a time; any others are prepared again, which costs microseconds.
const MAX_PREPARED: usize = 8192;

/// Why no request could be built from an endpoint's settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    #[error(transparent)]
    Guard(#[from] GuardError),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("the endpoint has no signature scheme, and Herald sends nothing unsigned: give it one")]
    NoScheme,
    #[error("none of the endpoint's secrets is live, and Herald sends nothing unsigned: rotate its secret")]
    NoLiveSecret,
}

/// An endpoint, with everything that its requests need parsed and checked.
pub(super) struct Prepared {
    pub(super) origin: Arc<Origin>,
    /// The whole URI, for HTTP/2.
    pub(super) uri: Uri,
    /// What HTTP/1.1 asks for, and which host it asks.
    pub(super) path: Uri,
    pub(super) host: HeaderValue,
    extra: Vec<(HeaderName, HeaderValue)>,
    /// Oldest first, as in the endpoint.
    keys: Vec<Keys>,
    /// What this was made from. The revision alone is not enough: an import can bring another endpoint with the same
    /// number.
    made_from: MadeFrom,
}

type MadeFrom = (String, bool, Option<Arc<EndpointTls>>, Vec<(String, String)>, Vec<Secret>);

struct Keys {
    secret: Secret,
    ready: Ready,
}

/// A secret made ready to sign.
#[expect(clippy::large_enum_variant, reason = "nearly all are shared, and each would cost a box")]
enum Ready {
    Shared {
        standard: StandardKey,
        dojo: DojoKey,
    },
    Private(PrivateKey),
    /// It cannot sign.
    Public,
}

/// Whether the headers are to be sent or to be shown.
#[derive(Clone, Copy)]
enum Use {
    Send,
    Show,
}

impl Prepared {
    fn try_new(endpoint: &Endpoint, guard: &AddressGuard) -> Result<Self, RequestError> {
        let ready = |text: &SecretText| match text.kind() {
            Kind::Shared => Ready::Shared { standard: StandardKey::new(text), dojo: DojoKey::new(text) },
            Kind::Private => PrivateKey::parse(text.reveal()).map_or(Ready::Public, Ready::Private),
            Kind::Public => Ready::Public,
        };
        let keys = |secret: &Secret| Keys { secret: secret.clone(), ready: ready(&secret.value) };
        let url = guard.check_url(&endpoint.url)?;
        let not_a_url = |why: String| RequestError::Guard(GuardError::NotAUrl(why));
        let origin = Origin::of(&url, endpoint.http1, Own::of(endpoint))
            .ok_or_else(|| not_a_url("it names no host".to_owned()))?;
        let path = &url[Position::BeforePath..Position::AfterQuery];
        Ok(Self {
            origin: Arc::new(origin),
            // The fragment is for readers of pages and is never sent.
            uri: url[..Position::AfterQuery].parse().map_err(|e: InvalidUri| not_a_url(e.to_string()))?,
            path: path.parse().map_err(|e: InvalidUri| not_a_url(e.to_string()))?,
            host: url[Position::BeforeHost..Position::AfterPort]
                .parse()
                .map_err(|e: InvalidHeaderValue| not_a_url(e.to_string()))?,
            extra: parse_headers(&endpoint.headers)?,
            keys: endpoint.secrets.iter().map(keys).collect(),
            made_from: (
                endpoint.url.clone(),
                endpoint.http1,
                endpoint.tls.clone(),
                endpoint.headers.clone(),
                endpoint.secrets.clone(),
            ),
        })
    }

    fn is_made_from(&self, endpoint: &Endpoint) -> bool {
        let (url, http1, tls, headers, secrets) = &self.made_from;
        *url == endpoint.url
            && *http1 == endpoint.http1
            && *tls == endpoint.tls
            && *headers == endpoint.headers
            && *secrets == endpoint.secrets
    }

    /// The headers of one attempt, signed over the bytes that will be sent.
    pub(super) fn headers(
        &self,
        delivery: &Delivery,
        endpoint: &Endpoint,
        now_ms: u64,
    ) -> Result<HeaderMap, RequestError> {
        self.write_headers(delivery, endpoint, now_ms, Use::Send)
    }

    /// The same headers for people: signatures and the endpoint's own values hidden, as those often are credentials.
    pub(super) fn headers_to_show(
        &self,
        delivery: &Delivery,
        endpoint: &Endpoint,
        now_ms: u64,
    ) -> Vec<(String, String)> {
        let headers = self.write_headers(delivery, endpoint, now_ms, Use::Show).unwrap_or_default();
        let shown = |value: &HeaderValue| match value.is_sensitive() {
            true => HIDDEN.to_owned(),
            false => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        };
        headers.iter().map(|(name, value)| (name.to_string(), shown(value))).collect()
    }

    fn write_headers(
        &self,
        delivery: &Delivery,
        endpoint: &Endpoint,
        now_ms: u64,
        usage: Use,
    ) -> Result<HeaderMap, RequestError> {
        let mut values = Values::with_room();
        values.add(&WEBHOOK_ID, delivery.event.as_str());
        values.add(&WEBHOOK_TIMESTAMP, &(now_ms / 1000).to_string());
        self.sign(&mut values, delivery, &endpoint.schemes, now_ms, usage)?;
        values.add(&HERALD_ATTEMPT, &delivery.next_attempt().to_string());
        values.add(&HERALD_SEQUENCE, &delivery.sequence().to_string());
        if let Some(number) = delivery.envelope.account_sequence {
            values.add(&HERALD_ACCOUNT_SEQUENCE, &number.to_string());
        }
        if let Some(traceparent) = delivery.envelope.traceparent.as_ref().filter(|_| endpoint.traceparent) {
            values.add(&TRACEPARENT, traceparent.as_str());
        }
        let mut headers = HeaderMap::with_capacity(OWN_HEADERS + self.extra.len());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        // Some firewalls in front of receivers refuse a request without it.
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        values.insert_into(&mut headers);
        for (name, value) in &self.extra {
            headers.insert(name, value.clone());
        }
        Ok(headers)
    }

    fn sign(
        &self,
        values: &mut Values,
        delivery: &Delivery,
        schemes: &[Scheme],
        now_ms: u64,
        usage: Use,
    ) -> Result<(), RequestError> {
        let live = self.keys.iter().filter(|keys| keys.secret.is_live(now_ms)).map(|keys| &keys.ready);
        let shared = live.clone().filter_map(|ready| match ready {
            Ready::Shared { standard, dojo } => Some((standard, dojo)),
            Ready::Private(_) | Ready::Public => None,
        });
        let private = live.filter_map(|ready| match ready {
            Ready::Private(key) => Some(key),
            Ready::Shared { .. } | Ready::Public => None,
        });
        if schemes.is_empty() {
            return Err(RequestError::NoScheme);
        }
        let (id, at_s, body) = (delivery.event.as_str(), now_ms / 1000, &delivery.body);
        let (mut by_secret, mut by_key) = (String::new(), String::new());
        for scheme in schemes {
            let has_one = match scheme.signs_with() {
                Kind::Shared => shared.clone().next().is_some(),
                Kind::Private | Kind::Public => private.clone().next().is_some(),
            };
            match (scheme, usage) {
                _ if !has_one => return Err(RequestError::NoLiveSecret),
                (Scheme::Standard | Scheme::Ed25519, Use::Show) => {}
                (Scheme::Standard, Use::Send) => {
                    by_secret = standard_signature_with(shared.clone().map(|(standard, _)| standard), id, at_s, body);
                }
                (Scheme::Ed25519, Use::Send) => by_key = ed25519_signature(private.clone(), id, at_s, body),
                (Scheme::Dojo, Use::Show) => values.add_secret(&DOJO_SIGNATURE, ""),
                (Scheme::Dojo, Use::Send) => {
                    let newest = shared.clone().next_back().map(|(_, dojo)| dojo_signature_with(dojo, body));
                    values.add_secret(&DOJO_SIGNATURE, &newest.unwrap_or_default());
                }
            }
        }
        if schemes.iter().any(|scheme| matches!(scheme, Scheme::Standard | Scheme::Ed25519)) {
            // One header has both: the shared secrets' first, for those who look at the first alone.
            let between = if by_secret.is_empty() || by_key.is_empty() { "" } else { " " };
            values.add_secret(&WEBHOOK_SIGNATURE, &format!("{by_secret}{between}{by_key}"));
        }
        Ok(())
    }
}

/// The values of one request, written one after the other: the library copies a request's headers more than once, and
/// copying a part of a shared buffer only increments a count.
struct Values {
    text: String,
    /// The name of each value, where it ends, and whether it is hidden.
    parts: Vec<(&'static HeaderName, usize, bool)>,
}

impl Values {
    fn with_room() -> Self {
        Self { text: String::with_capacity(USUAL_VALUE_BYTES), parts: Vec::with_capacity(OWN_HEADERS) }
    }

    fn add(&mut self, name: &'static HeaderName, value: &str) {
        self.text.push_str(value);
        self.parts.push((name, self.text.len(), false));
    }

    /// Kept out of every `Debug` and out of HTTP/2's table of repeated headers.
    fn add_secret(&mut self, name: &'static HeaderName, value: &str) {
        self.text.push_str(value);
        self.parts.push((name, self.text.len(), true));
    }

    fn insert_into(self, headers: &mut HeaderMap) {
        let text = Bytes::from(self.text);
        let mut start = 0;
        for (name, end, is_secret) in self.parts {
            // Ids and `traceparent` are checked when they are made; signatures are base64 or hex, the rest digits.
            let value = HeaderValue::from_maybe_shared(text.slice(start..end));
            let mut value = value.expect("no value has a character that a header could not carry");
            value.set_sensitive(is_secret);
            headers.insert(name, value);
            start = end;
        }
    }
}

/// The prepared form of the endpoints that were sent to lately.
#[derive(Default)]
pub(super) struct PreparedEndpoints(Mutex<HashMap<EndpointId, Arc<Prepared>>>);

impl PreparedEndpoints {
    pub(super) fn get(&self, endpoint: &Endpoint, guard: &AddressGuard) -> Result<Arc<Prepared>, RequestError> {
        if let Some(kept) = self.lock().get(&endpoint.id)
            && kept.is_made_from(endpoint)
        {
            return Ok(Arc::clone(kept));
        }
        let fresh = Arc::new(Prepared::try_new(endpoint, guard)?);
        let mut kept = self.lock();
        if kept.len() >= MAX_PREPARED && !kept.contains_key(&endpoint.id) {
            // Any one will do: if it is needed again, it is prepared again.
            if let Some(some) = kept.keys().next().cloned() {
                kept.remove(&some);
            }
        }
        kept.insert(endpoint.id.clone(), Arc::clone(&fresh));
        Ok(fresh)
    }

    /// The map is whole at every step, so a panic elsewhere while it was locked has left nothing half done.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<EndpointId, Arc<Prepared>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;

//! An endpoint: a URL that an account registered, with its secrets, event types, limits and state.
//! This is the registry's record and the form of `endpoint export`. Secrets never show in `Debug`.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    audit::{HERALD, MERCHANT},
    endpoint_tls::EndpointTls,
    event::EventType,
    id::{AccountId, EndpointId, EntryId},
    retry::RetryOverrides,
    signing::{Kind, Secret, SecretText},
};

/// Version of the stored form in which everything is readable, and of every endpoint in memory.
pub const ENDPOINT_SCHEMA: u32 = 1;

/// Version of the stored form whose values may be sealed, and which may have TLS settings. A larger one was written by a newer Herald and is refused instead of
/// guessed at.
pub const SEALED_SCHEMA: u32 = 2;

/// Attempts that one endpoint may have in flight by default: enough for 100 a second to a receiver that takes 100 ms.
pub const DEFAULT_MAX_IN_FLIGHT: u16 = 10;

/// What an endpoint's events are signed by where nobody says otherwise.
pub const DEFAULT_SCHEMES: [Scheme; 2] = [Scheme::Standard, Scheme::Dojo];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// `webhook-signature`, Standard Webhooks 1.0.
    Standard,
    /// `dojo-signature`.
    Dojo,
    /// `webhook-signature` by a key pair of which the receiver has only the public half.
    Ed25519,
}

impl Scheme {
    pub const ALL: [Self; 3] = [Self::Standard, Self::Dojo, Self::Ed25519];

    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Dojo => "dojo",
            Self::Ed25519 => "ed25519",
        }
    }

    /// What it signs with.
    pub fn signs_with(self) -> Kind {
        match self {
            Self::Standard | Self::Dojo => Kind::Shared,
            Self::Ed25519 => Kind::Private,
        }
    }
}

impl FromStr for Scheme {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "standard" => Ok(Self::Standard),
            "dojo" => Ok(Self::Dojo),
            "ed25519" => Ok(Self::Ed25519),
            _ => Err(format!("{text:?} is not a signature scheme; use standard, dojo or ed25519")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// One at a time per payment intent, in stream order.
    #[default]
    Intent,
    /// As they come.
    None,
}

impl FromStr for Ordering {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "intent" => Ok(Self::Intent),
            "none" => Ok(Self::None),
            _ => Err(format!("{text:?} is not an ordering; use intent or none")),
        }
    }
}

/// Who changed a state, when and why. Every verb that changes something leaves such a mark.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark {
    pub by: String,
    pub why: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum EndpointState {
    #[default]
    Enabled,
    /// Owed deliveries wait in the backlog.
    Paused(Mark),
    /// Takes nothing; what is unfinished becomes dead letters.
    Disabled(Mark),
}

/// How long a secret is kept after it has ended, so that a clock that is wrong by less removes none that still signs.
const EXPIRED_KEPT_MS: u64 = 3_600_000;

/// Who keeps an endpoint, and so by which way it is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeper {
    /// By the verbs.
    #[default]
    Operator,
    /// By its merchant, as a webhook subscription.
    Merchant,
    /// By its merchant, for a while, in a sandbox.
    Sandbox,
}

impl Keeper {
    fn is_operator(&self) -> bool {
        *self == Self::Operator
    }
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    pub schema: u32,
    pub id: EndpointId,
    pub account: AccountId,
    /// Checked against the address guard when it is registered and again at every attempt.
    pub url: String,
    #[serde(default)]
    pub description: String,
    /// Empty means all.
    #[serde(default)]
    pub event_types: Vec<EventType>,
    pub schemes: Vec<Scheme>,
    /// Oldest first.
    pub secrets: Vec<Secret>,
    /// Made, handed out, and not used yet: none of them signs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spare_secrets: Vec<Secret>,
    #[serde(default)]
    pub ordering: Ordering,
    pub max_in_flight: u16,
    /// Attempts a second; none means no limit.
    #[serde(default)]
    pub rate_limit: Option<u32>,
    /// The whole attempt; none means the configured default.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    #[serde(default)]
    pub retry: RetryOverrides,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Pass the entry's `traceparent` on.
    #[serde(default)]
    pub traceparent: bool,
    /// Speak HTTP/1.1 only, also where the receiver offers HTTP/2.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub http1: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Arc<EndpointTls>>,
    #[serde(default, skip_serializing_if = "Keeper::is_operator")]
    pub keeper: Keeper,
    pub status: EndpointState,
    /// Only while it is disabled: it is removed as soon as nothing is owed to it any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaves: bool,
    /// Only while it is disabled: the stream's last entry when that was asked for. Everything up to it was owed.
    /// Without it the mark's time must do, though an entry's id need not be a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed_until: Option<EntryId>,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
    /// Grows with every change of this endpoint; a change based on an older one is refused.
    pub revision: u64,
    /// How many of its secrets, values of headers and client keys Redis holds in clear.
    #[serde(skip)]
    pub unsealed_values: usize,
}

impl Endpoint {
    /// What is made anew where nobody says what.
    pub fn usual_kind(&self) -> Kind {
        self.schemes.first().map_or(Kind::Shared, |_| {
            let is_shared = self.schemes.iter().any(|scheme| scheme.signs_with() == Kind::Shared);
            if is_shared { Kind::Shared } else { Kind::Private }
        })
    }

    /// The first of its schemes that it has no secret for.
    pub fn scheme_without_secret(&self) -> Option<Scheme> {
        let has = |kind| self.secrets.iter().any(|secret| secret.value.kind() == kind);
        self.schemes.iter().copied().find(|scheme| !has(scheme.signs_with()))
    }

    /// An endpoint with the defaults: enabled, for every event type, signed by both schemes with one secret, in order
    /// per intent, everything else as configured. It is not stored anywhere yet.
    pub fn new(id: EndpointId, account: AccountId, url: String, secret: SecretText, now_ms: u64) -> Self {
        Self {
            schema: ENDPOINT_SCHEMA,
            id,
            account,
            url,
            description: String::new(),
            event_types: Vec::new(),
            schemes: DEFAULT_SCHEMES.to_vec(),
            secrets: vec![Secret { value: secret, created_at_ms: now_ms, expires_at_ms: None }],
            spare_secrets: Vec::new(),
            ordering: Ordering::Intent,
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            rate_limit: None,
            timeout_ms: None,
            retry: RetryOverrides::default(),
            headers: Vec::new(),
            traceparent: false,
            http1: false,
            tls: None,
            keeper: Keeper::Operator,
            status: EndpointState::Enabled,
            leaves: false,
            owed_until: None,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
            revision: 0,
            unsealed_values: 0,
        }
    }

    /// How many values it has that are sealed wherever there is a key.
    pub fn secret_values(&self) -> usize {
        self.all_secrets().count() + self.headers.len() + usize::from(self.has_client_key())
    }

    pub fn has_client_key(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.client_key.is_some())
    }

    /// The PEM of what its receiver may be shown. A disabled endpoint shows nobody anything.
    pub fn shown_certificate(&self) -> Option<&str> {
        let tls = self.tls.as_ref().filter(|_| !matches!(self.status, EndpointState::Disabled(_)))?;
        tls.client_certificate.as_deref()
    }

    /// Removes the secrets that ended long enough ago, and returns whether there were any. The newest stays if none
    /// would be left: without a secret a backup could not be imported.
    pub fn drop_expired_secrets(&mut self, now_ms: u64) -> bool {
        let before = self.secrets.len();
        let newest = self.secrets.last().cloned();
        let is_over =
            |secret: &Secret| secret.expires_at_ms.is_some_and(|end| end.saturating_add(EXPIRED_KEPT_MS) <= now_ms);
        self.secrets.retain(|secret| !is_over(secret));
        if self.secrets.is_empty() {
            self.secrets.extend(newest);
        }
        self.secrets.len() < before
    }

    /// Those that sign or have signed, the oldest first, and then those that are spare.
    pub fn all_secrets(&self) -> impl Iterator<Item = &Secret> {
        self.secrets.iter().chain(&self.spare_secrets)
    }

    /// It takes nothing any more. `last` is the stream's last entry, read beforehand: what comes later is not owed.
    pub fn disable(&mut self, mark: Mark, last: EntryId) {
        self.status = EndpointState::Disabled(mark);
        self.owed_until = Some(last);
    }

    /// Who stopped it and why, if that was whoever runs Herald: then its merchant may not lift it. A merchant's own stop is theirs,
    /// by a token or by a key of their account; so is it when Herald disabled it after what their receiver answered. But what
    /// Herald paused took too much room, which is not the merchant's.
    pub fn stopped_by_operator(&self) -> Option<&Mark> {
        let (mark, is_of_answers) = match &self.status {
            EndpointState::Enabled => return None,
            EndpointState::Paused(mark) => (mark, false),
            EndpointState::Disabled(mark) => (mark, mark.by == HERALD),
        };
        let is_merchants = mark.by.starts_with(MERCHANT) || mark.by == self.account.as_str();
        (!is_merchants && !is_of_answers).then_some(mark)
    }

    /// Everybody may use it again: what was said of its end does not hold any more.
    pub fn settle_state(&mut self) {
        if !matches!(self.status, EndpointState::Disabled(_)) {
            (self.owed_until, self.leaves) = (None, false);
        }
    }

    /// The names of the members in which another differs, without those that each change changes.
    pub fn fields_that_differ(&self, other: &Self) -> Vec<String> {
        let fields = |endpoint: &Self| match serde_json::to_value(endpoint) {
            Ok(Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (one, other) = (fields(self), fields(other));
        let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
        let differs = |name: &&&String| {
            !["revision", "updated_at_ms"].contains(&name.as_str()) && one.get(**name) != other.get(**name)
        };
        names.iter().filter(differs).map(|name| (*name).clone()).collect()
    }

    pub fn wants(&self, event_type: &EventType) -> bool {
        self.event_types.is_empty() || self.event_types.contains(event_type)
    }
}

/// Without the signing keys, and without the values of its headers, which often are credentials.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Endpoint")
            .field("schema", &self.schema)
            .field("id", &self.id)
            .field("account", &self.account)
            .field("url", &self.url)
            .field("event_types", &self.event_types)
            .field("schemes", &self.schemes)
            .field("secrets", &self.secrets)
            .field("spare_secrets", &self.spare_secrets)
            .field("ordering", &self.ordering)
            .field("max_in_flight", &self.max_in_flight)
            .field("rate_limit", &self.rate_limit)
            .field("timeout_ms", &self.timeout_ms)
            .field("retry", &self.retry)
            .field("headers", &headers)
            .field("status", &self.status)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enabled => f.write_str("enabled"),
            Self::Paused(mark) => write!(f, "paused by {}: {}", mark.by, mark.why),
            Self::Disabled(mark) => write!(f, "disabled by {}: {}", mark.by, mark.why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(secrets: &[Option<u64>]) -> Endpoint {
        let made = SecretText::new("a-secret-of-the-test".to_owned()).unwrap();
        let url = "https://example.com/".to_owned();
        let mut endpoint = Endpoint::new("ep_a".parse().unwrap(), "acc_a".parse().unwrap(), url, made, 1);
        let secret = |end: &Option<u64>| Secret { expires_at_ms: *end, ..endpoint.secrets[0].clone() };
        endpoint.secrets = secrets.iter().map(secret).collect();
        endpoint
    }

    #[test]
    fn no_debug_shows_a_secret_or_the_value_of_a_header() {
        let mut endpoint = endpoint(&[None]);
        endpoint.headers = vec![("x-key".to_owned(), "geheim".to_owned())];
        let state = EndpointState::Paused(Mark { by: "ann".to_owned(), why: "test".to_owned(), at_ms: 1 });
        endpoint.status = state;
        for shown in [format!("{endpoint:?}"), format!("{endpoint:#?}"), format!("{:?}", Some(vec![&endpoint]))] {
            assert!(shown.contains("x-key") && shown.contains("ep_a"), "{shown}");
            assert!(!shown.contains("geheim") && !shown.contains("a-secret"), "{shown}");
        }
    }

    #[test]
    fn only_the_stop_of_whoever_runs_herald_is_not_its_merchants_to_lift() {
        let mut endpoint = endpoint(&[None]);
        for (by, is_operators) in [
            ("merchant ab12 shop", false),
            ("acc_a", false),
            ("acc_b", true),
            ("token ab12 merchant", true),
            ("ann", true),
        ] {
            let mark = Mark { by: by.to_owned(), why: "test".to_owned(), at_ms: 1 };
            for status in [EndpointState::Paused(mark.clone()), EndpointState::Disabled(mark)] {
                endpoint.status = status;
                assert_eq!(endpoint.stopped_by_operator().is_some(), is_operators, "{by}");
            }
        }
        let of_herald = Mark { by: HERALD.to_owned(), why: "test".to_owned(), at_ms: 1 };
        for (status, is_operators) in [
            (EndpointState::Enabled, false),
            (EndpointState::Disabled(of_herald.clone()), false),
            (EndpointState::Paused(of_herald), true),
        ] {
            endpoint.status = status;
            assert_eq!(endpoint.stopped_by_operator().is_some(), is_operators, "{}", endpoint.status);
        }
    }

    #[test]
    fn an_expired_secret_leaves_after_an_hour_and_never_the_last_one() {
        let ends = |before: &[Option<u64>], now_ms| {
            let mut endpoint = endpoint(before);
            let has_changed = endpoint.drop_expired_secrets(now_ms);
            assert_eq!(has_changed, endpoint.secrets.len() < before.len());
            endpoint.secrets.iter().map(|secret| secret.expires_at_ms).collect::<Vec<_>>()
        };
        let hour = 3_600_000;
        assert_eq!(ends(&[Some(10), Some(20), None], 10 + hour), [Some(20), None]);
        assert_eq!(ends(&[Some(10), None], 9 + hour), [Some(10), None]);
        assert_eq!(ends(&[Some(10), Some(20)], 100 + hour), [Some(20)]);
        assert_eq!(ends(&[Some(u64::MAX)], u64::MAX), [Some(u64::MAX)]);
    }
}

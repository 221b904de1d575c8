//! An endpoint: a URL that an account registered, with its secrets, event types, limits and state.
//! This is the registry's record and the form of `endpoint export`. Secrets never show in `Debug`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    event::EventType,
    id::{AccountId, EndpointId},
    retry::RetryOverrides,
    signing::{Secret, SecretText},
};

/// Version of the stored form. A larger one was written by a newer Herald and is refused, not guessed at.
pub const ENDPOINT_SCHEMA: u32 = 1;

/// Attempts that one endpoint may have in flight by default: enough for a receiver that takes 100 ms to get 100 a second.
pub const DEFAULT_MAX_IN_FLIGHT: u16 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// `webhook-signature`, Standard Webhooks 1.0.
    Standard,
    /// `dojo-signature`.
    Dojo,
}

impl FromStr for Scheme {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "standard" => Ok(Self::Standard),
            "dojo" => Ok(Self::Dojo),
            _ => Err(format!("{text:?} is no signature scheme; use standard or dojo")),
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
            _ => Err(format!("{text:?} is no ordering; use intent or none")),
        }
    }
}

/// Who changed a state, when and why. Every verb that changes something leaves one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    pub status: EndpointState,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
    /// Grows with every change of this endpoint; a change that saw an older one is refused.
    pub revision: u64,
}

impl Endpoint {
    /// An endpoint as it is before anyone asks for more: enabled, for every event type, signed by both schemes with one
    /// secret, in order per intent, everything else as configured. It is stored nowhere yet.
    pub fn new(id: EndpointId, account: AccountId, url: String, secret: SecretText, now_ms: u64) -> Self {
        Self {
            schema: ENDPOINT_SCHEMA,
            id,
            account,
            url,
            description: String::new(),
            event_types: Vec::new(),
            schemes: vec![Scheme::Standard, Scheme::Dojo],
            secrets: vec![Secret { value: secret, created_at_ms: now_ms, expires_at_ms: None }],
            ordering: Ordering::Intent,
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            rate_limit: None,
            timeout_ms: None,
            retry: RetryOverrides::default(),
            headers: Vec::new(),
            traceparent: false,
            status: EndpointState::Enabled,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
            revision: 0,
        }
    }

    pub fn wants(&self, event_type: &EventType) -> bool {
        self.event_types.is_empty() || self.event_types.contains(event_type)
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

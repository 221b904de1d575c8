//! An endpoint as it is shown: everything but its secrets, its client key and the values of its headers, which often are credentials.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Viewer, health::HealthView, time::Time};
use crate::store::registry::stored::LockCause;
use crate::{
    facts::{
        certificate::Certificate,
        endpoint::{Endpoint, EndpointState, Mark},
        endpoint_tls::EndpointTls,
        retry::RetryOverrides,
        signing::{Secret, SecretText},
    },
    tls::certificates,
};

const HIDDEN: &str = "(hidden)";

#[derive(Serialize, ToSchema)]
pub struct EndpointView {
    id: String,
    account: String,
    url: String,
    description: String,
    /// enabled, paused, disabled, or locked: what is owed to it waits until its secrets can be read again.
    state: &'static str,
    /// Who paused or disabled it.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// When it was paused or disabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Time>,
    /// None means all.
    event_types: Vec<String>,
    schemes: Vec<String>,
    /// Only in the answer to what made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    secrets: Vec<SecretView>,
    spare_secrets: usize,
    ordering: String,
    max_in_flight: u16,
    /// Attempts a second.
    rate_limit: Option<u32>,
    timeout_ms: Option<u64>,
    retry: RetryView,
    /// Names, each with what stands for its value.
    #[schema(value_type = Vec<Vec<String>>)]
    headers: Vec<(String, &'static str)>,
    traceparent: bool,
    http1: bool,
    /// What it has of its own in TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsView>,
    /// By whom it is kept: operator, merchant or sandbox.
    keeper: String,
    /// It is removed as soon as nothing is owed to it any more.
    leaves: bool,
    created_at: Time,
    updated_at: Time,
    revision: u64,
    /// How its receiver does. Not in the answer to a change.
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<HealthView>,
}

#[derive(Serialize, ToSchema)]
pub struct SecretView {
    /// Hidden; of a key pair, the public half, with which receivers verify.
    value: String,
    created_at: Time,
    expires_at: Option<Time>,
    is_live: bool,
}

/// Certificates as they are read; the key is never shown.
#[derive(Serialize, ToSchema)]
pub struct TlsView {
    /// Authorities that are trusted for it besides those that are trusted for all.
    pub ca: Vec<CertificateView>,
    /// What its receiver is shown, where it asks.
    pub client_certificate: Option<CertificateView>,
}

#[derive(Serialize, ToSchema)]
pub struct CertificateView {
    pub subject: String,
    pub issuer: String,
    /// When it ends.
    pub not_after: Time,
}

impl TlsView {
    pub fn of(tls: &EndpointTls) -> Self {
        let shown = |pem: &Option<String>| {
            let found = certificates(pem.as_deref().unwrap_or_default().as_bytes()).unwrap_or_default();
            found.iter().filter_map(|der| Certificate::read(der)).map(CertificateView::of).collect::<Vec<_>>()
        };
        Self { ca: shown(&tls.ca), client_certificate: shown(&tls.client_certificate).into_iter().next() }
    }
}

impl CertificateView {
    fn of(certificate: Certificate) -> Self {
        let Certificate { subject, issuer, not_after_s } = certificate;
        Self { subject, issuer, not_after: Time(u64::try_from(not_after_s).unwrap_or(0).saturating_mul(1000)) }
    }
}

/// How it differs from the configured policy.
#[derive(Serialize, ToSchema)]
pub struct RetryView {
    #[serde(skip_serializing_if = "Option::is_none")]
    initial_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    multiplier: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_interval_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jitter: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_age_ms: Option<u64>,
}

impl EndpointView {
    /// `new` is a secret that was made just now: the only one that is ever shown.
    pub fn of(endpoint: &Endpoint, new: Option<&SecretText>, viewer: Viewer, now_ms: u64) -> Self {
        let secret = |secret: &Secret| SecretView {
            value: shown(secret),
            created_at: Time(secret.created_at_ms),
            expires_at: secret.expires_at_ms.map(Time),
            is_live: secret.is_live(now_ms),
        };
        let (state, mark) = state(&endpoint.status);
        let told = mark.filter(|_| viewer.is_operator());
        Self {
            id: endpoint.id.to_string(),
            account: endpoint.account.to_string(),
            url: endpoint.url.clone(),
            description: endpoint.description.clone(),
            state,
            by: told.map(|mark| mark.by.clone()),
            why: told.map(|mark| mark.why.clone()),
            at: mark.map(|mark| Time(mark.at_ms)),
            event_types: endpoint.event_types.iter().map(ToString::to_string).collect(),
            schemes: endpoint.schemes.iter().map(lower).collect(),
            secret: new.map(|secret| secret.reveal().to_owned()),
            secrets: endpoint.secrets.iter().map(secret).collect(),
            spare_secrets: endpoint.spare_secrets.len(),
            ordering: lower(endpoint.ordering),
            max_in_flight: endpoint.max_in_flight,
            rate_limit: endpoint.rate_limit,
            timeout_ms: endpoint.timeout_ms,
            retry: RetryView::of(&endpoint.retry),
            headers: endpoint.headers.iter().map(|(name, _)| (name.clone(), HIDDEN)).collect(),
            traceparent: endpoint.traceparent,
            http1: endpoint.http1,
            tls: endpoint.tls.as_deref().map(TlsView::of),
            keeper: lower(endpoint.keeper),
            leaves: endpoint.leaves,
            created_at: Time(endpoint.created_at_ms),
            updated_at: Time(endpoint.updated_at_ms),
            revision: endpoint.revision,
            health: None,
        }
    }

    /// Of one whose secrets cannot be read. Merchants do not learn of keys.
    pub fn locked(self, cause: &LockCause, viewer: Viewer) -> Self {
        let why = viewer.is_operator().then(|| cause.to_string());
        Self { state: "locked", by: None, why, at: None, ..self }
    }

    pub fn with_health(self, health: HealthView) -> Self {
        Self { health: Some(health), ..self }
    }
}

/// What of a secret everybody may see who sees its endpoint.
pub fn shown(secret: &Secret) -> String {
    secret.value.public_key().unwrap_or_else(|| HIDDEN.to_owned())
}

/// enabled, paused or disabled.
pub fn state_name(status: &EndpointState) -> &'static str {
    state(status).0
}

impl RetryView {
    fn of(retry: &RetryOverrides) -> Self {
        let RetryOverrides { initial_ms, multiplier, max_interval_ms, jitter, max_attempts, max_age_ms } = *retry;
        Self { initial_ms, multiplier, max_interval_ms, jitter, max_attempts, max_age_ms }
    }
}

fn state(status: &EndpointState) -> (&'static str, Option<&Mark>) {
    match status {
        EndpointState::Enabled => ("enabled", None),
        EndpointState::Paused(mark) => ("paused", Some(mark)),
        EndpointState::Disabled(mark) => ("disabled", Some(mark)),
    }
}

fn lower(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

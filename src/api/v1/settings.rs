//! What can be said of an endpoint when it is made or changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::request::parsed;
use crate::{
    facts::{
        endpoint::{DEFAULT_MAX_IN_FLIGHT, DEFAULT_SCHEMES, Endpoint, Ordering, Scheme},
        endpoint_tls::ClientKey,
        event::EventType,
        retry::RetryOverrides,
    },
    http::problem::Problem,
};

/// How retries differ from the configured policy. What is absent or null is as configured.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryChange {
    #[schema(required = false)]
    initial_ms: Option<u64>,
    #[schema(required = false)]
    multiplier: Option<f64>,
    #[schema(required = false)]
    max_interval_ms: Option<u64>,
    #[schema(required = false)]
    jitter: Option<f64>,
    #[schema(required = false)]
    max_attempts: Option<u32>,
    #[schema(required = false)]
    max_age_ms: Option<u64>,
}

impl From<RetryChange> for RetryOverrides {
    fn from(change: RetryChange) -> Self {
        let RetryChange { initial_ms, multiplier, max_interval_ms, jitter, max_attempts, max_age_ms } = change;
        Self { initial_ms, multiplier, max_interval_ms, jitter, max_attempts, max_age_ms }
    }
}

/// What an endpoint is to have of its own in TLS, each as PEM of at most 16 KiB. What is absent stays as it is; what is null goes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsChange {
    /// Authorities that are trusted for it besides those that are trusted for all.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 16_384)]
    ca: Option<Option<String>>,
    /// What its receiver asks for, with the certificates between it and its authority.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 16_384)]
    client_certificate: Option<Option<String>>,
    /// The private key of that certificate. It is stored only sealed, and never shown.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 16_384)]
    client_key: Option<Option<String>>,
}

impl TlsChange {
    fn apply(&self, endpoint: &mut Endpoint) {
        let mut tls = endpoint.tls.as_deref().cloned().unwrap_or_default();
        let put = |given: &Option<Option<String>>, known| given.clone().unwrap_or(known);
        tls.ca = put(&self.ca, tls.ca);
        tls.client_certificate = put(&self.client_certificate, tls.client_certificate);
        tls.client_key = match &self.client_key {
            Some(key) => key.clone().map(ClientKey::new),
            None => tls.client_key,
        };
        endpoint.tls = tls.kept();
    }
}

/// What is absent has the default.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateEndpoint {
    /// Of a merchant's token it is the token's own.
    #[serde(default)]
    pub account: Option<String>,
    #[schema(min_length = 1, max_length = 2_048)]
    pub url: String,
    /// `ep_…`; a fresh one where nothing is said, and always of a merchant's token.
    #[serde(default)]
    pub id: Option<String>,
    /// A fresh one where nothing is said, which is in the answer and never again.
    #[serde(default)]
    pub secret: Option<String>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub event_types: Option<Vec<String>>,
    /// standard, dojo or ed25519; standard and dojo where nothing is said.
    #[serde(default)]
    pub schemes: Option<Vec<String>>,
    /// intent or none.
    #[serde(default)]
    pub ordering: Option<String>,
    #[serde(default)]
    pub max_in_flight: Option<u16>,
    #[serde(default)]
    pub rate_limit: Option<u32>,
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    #[serde(default)]
    pub retry: Option<RetryChange>,
    /// Extra headers by their names.
    #[serde(default)]
    pub headers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub traceparent: Option<bool>,
    #[serde(default)]
    pub http1: Option<bool>,
    #[serde(default)]
    pub tls: Option<TlsChange>,
    #[serde(default)]
    pub reason: Option<String>,
}

/// What is absent stays as it is; what is null becomes the default. A URL has none, so null leaves it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateEndpoint {
    #[serde(default)]
    #[schema(min_length = 1, max_length = 2_048)]
    pub url: Option<String>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub description: Option<Option<String>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Vec<String>>)]
    pub event_types: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Vec<String>>)]
    pub schemes: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub ordering: Option<Option<String>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u16>)]
    pub max_in_flight: Option<Option<u16>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    pub rate_limit: Option<Option<u32>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    pub timeout_ms: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<RetryChange>)]
    pub retry: Option<Option<RetryChange>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub headers: Option<Option<BTreeMap<String, String>>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<bool>)]
    pub traceparent: Option<Option<bool>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<bool>)]
    pub http1: Option<Option<bool>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<TlsChange>)]
    pub tls: Option<Option<TlsChange>>,
    /// The revision that the caller saw: a change made since then wins.
    #[serde(default)]
    pub revision: Option<u64>,
    #[schema(min_length = 1, max_length = 1024)]
    pub reason: String,
}

/// Null is something else than nothing.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

impl CreateEndpoint {
    pub fn apply(&self, endpoint: &mut Endpoint) -> Result<(), Problem> {
        lists(
            endpoint,
            self.event_types.as_ref().map(Some),
            self.schemes.as_ref().map(Some),
            self.ordering.as_ref().map(Some),
        )?;
        endpoint.description = self.description.clone().unwrap_or_default();
        endpoint.max_in_flight = self.max_in_flight.unwrap_or(DEFAULT_MAX_IN_FLIGHT);
        endpoint.rate_limit = self.rate_limit;
        endpoint.timeout_ms = self.timeout_ms;
        endpoint.retry = self.retry.unwrap_or_default().into();
        endpoint.headers = self.headers.clone().unwrap_or_default().into_iter().collect();
        endpoint.traceparent = self.traceparent.unwrap_or_default();
        endpoint.http1 = self.http1.unwrap_or_default();
        if let Some(tls) = &self.tls {
            tls.apply(endpoint);
        }
        Ok(())
    }
}

impl UpdateEndpoint {
    pub fn apply(&self, endpoint: &mut Endpoint) -> Result<(), Problem> {
        lists(
            endpoint,
            self.event_types.as_ref().map(Option::as_ref),
            self.schemes.as_ref().map(Option::as_ref),
            self.ordering.as_ref().map(Option::as_ref),
        )?;
        if let Some(url) = &self.url {
            endpoint.url.clone_from(url);
        }
        if let Some(description) = &self.description {
            endpoint.description = description.clone().unwrap_or_default();
        }
        if let Some(most) = self.max_in_flight {
            endpoint.max_in_flight = most.unwrap_or(DEFAULT_MAX_IN_FLIGHT);
        }
        endpoint.rate_limit = self.rate_limit.unwrap_or(endpoint.rate_limit);
        endpoint.timeout_ms = self.timeout_ms.unwrap_or(endpoint.timeout_ms);
        endpoint.traceparent = self.traceparent.map_or(endpoint.traceparent, Option::unwrap_or_default);
        endpoint.http1 = self.http1.map_or(endpoint.http1, Option::unwrap_or_default);
        match &self.tls {
            Some(Some(tls)) => tls.apply(endpoint),
            Some(None) => endpoint.tls = None,
            None => {}
        }
        if let Some(retry) = self.retry {
            endpoint.retry = retry.unwrap_or_default().into();
        }
        if let Some(headers) = &self.headers {
            endpoint.headers = headers.clone().unwrap_or_default().into_iter().collect();
        }
        endpoint.revision = self.revision.unwrap_or(endpoint.revision);
        Ok(())
    }
}

/// None leaves what is there; a null within it means the default.
fn lists(
    endpoint: &mut Endpoint,
    types: Option<Option<&Vec<String>>>,
    schemes: Option<Option<&Vec<String>>>,
    ordering: Option<Option<&String>>,
) -> Result<(), Problem> {
    if let Some(types) = types {
        let types = types.into_iter().flatten().map(|text| parsed::<EventType>("event_types", text));
        endpoint.event_types = types.collect::<Result<_, _>>()?;
    }
    if let Some(schemes) = schemes {
        let schemes = schemes.map(|names| names.iter().map(|text| parsed::<Scheme>("schemes", text)).collect());
        endpoint.schemes = schemes.transpose()?.unwrap_or_else(|| DEFAULT_SCHEMES.to_vec());
    }
    if let Some(ordering) = ordering {
        let ordering = ordering.map(|text| parsed::<Ordering>("ordering", text));
        endpoint.ordering = ordering.transpose()?.unwrap_or_default();
    }
    Ok(())
}

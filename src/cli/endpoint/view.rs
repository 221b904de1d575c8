//! An endpoint as it is shown: everything but its secrets and the values of its headers, which often are credentials.

use serde::Serialize;

use crate::{
    config::compact,
    facts::{
        endpoint::{Endpoint, EndpointState, Keeper, Ordering, Scheme},
        event::EventType,
        health_view::HealthView,
        id::{AccountId, EndpointId},
        retry::RetryOverrides,
        signing::{Secret, SecretText},
    },
    surface::{List, Output, instant, when, words},
};

use super::health;

const HIDDEN: &str = "(hidden)";

#[derive(Serialize)]
struct View<'a> {
    id: &'a EndpointId,
    account: &'a AccountId,
    url: &'a str,
    description: &'a str,
    #[serde(flatten)]
    status: &'a EndpointState,
    event_types: &'a [EventType],
    schemes: &'a [Scheme],
    /// Only right after it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
    secrets: Vec<SecretView>,
    spare_secrets: usize,
    ordering: Ordering,
    max_in_flight: u16,
    rate_limit: Option<u32>,
    timeout_ms: Option<u64>,
    retry: &'a RetryOverrides,
    headers: Vec<(&'a str, &'static str)>,
    traceparent: bool,
    http1: bool,
    keeper: Keeper,
    leaves: bool,
    created_at_ms: u64,
    updated_at_ms: u64,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<&'a HealthView>,
}

#[derive(Serialize)]
struct SecretView {
    value: &'static str,
    created_at_ms: u64,
    expires_at_ms: Option<u64>,
    is_live: bool,
}

fn view<'a>(endpoint: &'a Endpoint, new: Option<&'a SecretText>, now_ms: u64) -> View<'a> {
    let secret = |secret: &Secret| SecretView {
        value: HIDDEN,
        created_at_ms: secret.created_at_ms,
        expires_at_ms: secret.expires_at_ms,
        is_live: secret.is_live(now_ms),
    };
    View {
        id: &endpoint.id,
        account: &endpoint.account,
        url: &endpoint.url,
        description: &endpoint.description,
        status: &endpoint.status,
        event_types: &endpoint.event_types,
        schemes: &endpoint.schemes,
        secret: new.map(SecretText::reveal),
        secrets: endpoint.secrets.iter().map(secret).collect(),
        spare_secrets: endpoint.spare_secrets.len(),
        ordering: endpoint.ordering,
        max_in_flight: endpoint.max_in_flight,
        rate_limit: endpoint.rate_limit,
        timeout_ms: endpoint.timeout_ms,
        retry: &endpoint.retry,
        headers: endpoint.headers.iter().map(|(name, _)| (name.as_str(), HIDDEN)).collect(),
        traceparent: endpoint.traceparent,
        http1: endpoint.http1,
        keeper: endpoint.keeper,
        leaves: endpoint.leaves,
        created_at_ms: endpoint.created_at_ms,
        updated_at_ms: endpoint.updated_at_ms,
        revision: endpoint.revision,
        health: None,
    }
}

/// One endpoint with how its receiver does.
pub fn show_with_health(
    output: Output,
    endpoint: &Endpoint,
    health: &HealthView,
    now_ms: u64,
    redis_ms: u64,
) -> anyhow::Result<()> {
    let mut fields = fields(endpoint, None, now_ms);
    let of_health = health::fields(&endpoint.id, health, redis_ms);
    // Whoever looks at an endpoint wants to know this first: right behind its state.
    let behind = fields.iter().position(|(name, _)| *name == "state").map_or(0, |at| at + 1);
    fields.splice(behind..behind, of_health);
    output.one(&View { health: Some(health), ..view(endpoint, None, now_ms) }, &fields)
}

/// One endpoint in full. `new` is a secret that was made just now: the only one that is ever shown.
pub fn show(output: Output, endpoint: &Endpoint, new: Option<&SecretText>, now_ms: u64) -> anyhow::Result<()> {
    output.one(&view(endpoint, new, now_ms), &fields(endpoint, new, now_ms))
}

fn fields(endpoint: &Endpoint, new: Option<&SecretText>, now_ms: u64) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("id", endpoint.id.to_string()),
        ("account", endpoint.account.to_string()),
        ("kept by", lower(endpoint.keeper)),
        ("url", endpoint.url.clone()),
        ("state", state(&endpoint.status, now_ms)),
        ("events", types(endpoint)),
        ("schemes", schemes(endpoint)),
    ];
    fields.extend(new.map(|secret| ("secret", secret.reveal().to_owned())));
    fields.extend(endpoint.secrets.iter().map(|secret| ("signs with", secret_line(secret, now_ms))));
    if !endpoint.spare_secrets.is_empty() {
        fields.push(("spare secrets", endpoint.spare_secrets.len().to_string()));
    }
    fields.extend([
        ("ordering", lower(endpoint.ordering)),
        ("max in flight", endpoint.max_in_flight.to_string()),
        ("rate limit", endpoint.rate_limit.map_or("none".to_owned(), |rate| format!("{rate} a second"))),
        ("timeout", endpoint.timeout_ms.map_or("as configured".to_owned(), ms)),
        ("retry", retry(&endpoint.retry)),
    ]);
    fields.extend(endpoint.headers.iter().map(|(name, _)| ("header", format!("{name}: {HIDDEN}"))));
    fields.extend([
        ("http", if endpoint.http1 { "1.1 only" } else { "1.1 or 2" }.to_owned()),
        ("traceparent", if endpoint.traceparent { "passed on" } else { "left out" }.to_owned()),
        ("description", endpoint.description.clone()),
        ("created", when(endpoint.created_at_ms, now_ms)),
        ("updated", when(endpoint.updated_at_ms, now_ms)),
        ("revision", endpoint.revision.to_string()),
    ]);
    fields
}

/// Who wants to know more of one asks for it: what is here fits 80 columns, also with the longest ids that Herald makes.
pub fn list(output: Output) -> List {
    output.list(&["ID", "ACCOUNT", "HEALTH", "OWED", "DEAD"])
}

pub fn push(
    list: &mut List,
    endpoint: &Endpoint,
    health: &HealthView,
    now_ms: u64,
    redis_ms: u64,
) -> anyhow::Result<()> {
    list.push(&View { health: Some(health), ..view(endpoint, None, now_ms) }, || {
        vec![
            endpoint.id.to_string(),
            endpoint.account.to_string(),
            in_a_word(&endpoint.status, health, redis_ms),
            words::short(health.waiting.unfinished),
            words::short(health.waiting.letters),
        ]
    })
}

/// Its receiver's health says nothing while nothing may be sent there.
fn in_a_word(status: &EndpointState, view: &HealthView, redis_ms: u64) -> String {
    match status {
        EndpointState::Enabled => health::cell(view, redis_ms),
        EndpointState::Paused(_) => "paused".to_owned(),
        EndpointState::Disabled(_) => "disabled".to_owned(),
    }
}

fn state(status: &EndpointState, now_ms: u64) -> String {
    match status {
        EndpointState::Enabled => status.to_string(),
        EndpointState::Paused(mark) | EndpointState::Disabled(mark) => {
            format!("{status}, {}", when(mark.at_ms, now_ms))
        }
    }
}

fn types(endpoint: &Endpoint) -> String {
    match endpoint.event_types.as_slice() {
        [] => "all".to_owned(),
        types => types.iter().map(EventType::as_str).collect::<Vec<_>>().join(", "),
    }
}

fn schemes(endpoint: &Endpoint) -> String {
    endpoint.schemes.iter().map(lower).collect::<Vec<_>>().join(", ")
}

fn lower(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

fn secret_line(secret: &Secret, now_ms: u64) -> String {
    let made = instant(secret.created_at_ms);
    match secret.expires_at_ms {
        None => format!("{HIDDEN} of {made}"),
        Some(end) if secret.is_live(now_ms) => format!("{HIDDEN} of {made} until {}", when(end, now_ms)),
        Some(end) => format!("{HIDDEN} of {made}, expired {}", when(end, now_ms)),
    }
}

fn ms(ms: u64) -> String {
    compact(std::time::Duration::from_millis(ms))
}

fn retry(overrides: &RetryOverrides) -> String {
    let named = [
        ("initial", overrides.initial_ms.map(ms)),
        ("multiplier", overrides.multiplier.map(|x| x.to_string())),
        ("max interval", overrides.max_interval_ms.map(ms)),
        ("jitter", overrides.jitter.map(|x| x.to_string())),
        ("max attempts", overrides.max_attempts.map(|x| x.to_string())),
        ("max age", overrides.max_age_ms.map(ms)),
    ];
    let given: Vec<String> =
        named.into_iter().filter_map(|(name, value)| value.map(|value| format!("{name} {value}"))).collect();
    if given.is_empty() { "as configured".to_owned() } else { given.join(", ") }
}

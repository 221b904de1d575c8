//! An endpoint as people see it: everything but its secrets and the values of its headers, which often are credentials.

use crate::{
    config::compact,
    facts::{
        endpoint::{Endpoint, EndpointState},
        event::EventType,
        retry::RetryOverrides,
        signing::{Secret, SecretText},
    },
    surface::{List, Output, instant, when, words},
    view::{
        Viewer,
        endpoint::{CertificateView, EndpointView, TlsView, shown},
        health::HealthView,
    },
};

use super::health;

const HIDDEN: &str = "(hidden)";

/// One endpoint with how its receiver does.
pub fn show_with_health(
    output: Output,
    endpoint: &Endpoint,
    health: HealthView,
    now_ms: u64,
    redis_ms: u64,
) -> anyhow::Result<()> {
    let mut fields = fields(endpoint, None, now_ms);
    let of_health = health::fields(&endpoint.id, &health, redis_ms);
    // Whoever looks at an endpoint wants to know this first: right behind its state.
    let behind = fields.iter().position(|(name, _)| *name == "state").map_or(0, |at| at + 1);
    fields.splice(behind..behind, of_health);
    output.one(&EndpointView::of(endpoint, None, Viewer::Operator, now_ms).with_health(health), &fields)
}

/// One endpoint in full. `new` is a secret that was made just now: the only one that is ever shown.
pub fn show(output: Output, endpoint: &Endpoint, new: Option<&SecretText>, now_ms: u64) -> anyhow::Result<()> {
    output.one(&EndpointView::of(endpoint, new, Viewer::Operator, now_ms), &fields(endpoint, new, now_ms))
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
    fields.extend(endpoint.tls.as_deref().map(TlsView::of).into_iter().flat_map(|tls| of_tls(tls, now_ms)));
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

fn of_tls(tls: TlsView, now_ms: u64) -> impl Iterator<Item = (&'static str, String)> {
    let line = move |certificate: CertificateView| {
        let CertificateView { subject, issuer, not_after } = certificate;
        let ends = if not_after.0 <= now_ms { "expired" } else { "until" };
        format!("{subject}, by {issuer}, {ends} {}", when(not_after.0, now_ms))
    };
    let authorities = tls.ca.into_iter().map(move |certificate| ("trusts also", line(certificate)));
    authorities.chain(tls.client_certificate.map(|certificate| ("shows", line(certificate))))
}

/// Who wants to know more of one asks for it: what is here fits 80 columns, also with the longest ids that Herald makes.
pub fn list(output: Output) -> List {
    output.list(&["ID", "ACCOUNT", "HEALTH", "OWED", "DEAD"])
}

pub fn push(
    list: &mut List,
    endpoint: &Endpoint,
    health: HealthView,
    now_ms: u64,
    redis_ms: u64,
) -> anyhow::Result<()> {
    let row = vec![
        endpoint.id.to_string(),
        endpoint.account.to_string(),
        in_a_word(&endpoint.status, &health, redis_ms),
        words::short(health.unfinished),
        words::short(health.letters),
    ];
    list.push(&EndpointView::of(endpoint, None, Viewer::Operator, now_ms).with_health(health), || row)
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
    let (made, value) = (instant(secret.created_at_ms), shown(secret));
    match secret.expires_at_ms {
        None => format!("{value} of {made}"),
        Some(end) if secret.is_live(now_ms) => format!("{value} of {made} until {}", when(end, now_ms)),
        Some(end) => format!("{value} of {made}, expired {}", when(end, now_ms)),
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

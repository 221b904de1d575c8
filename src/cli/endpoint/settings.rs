//! The settings of an endpoint as arguments of `create` and `update`. Whatever may be a credential is taken as it is
//! and checked later, because the argument parser would quote it in its error.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args};
use zeroize::Zeroizing;

use crate::{
    cli::args::read_input,
    config::parse_duration,
    facts::{
        endpoint::{Endpoint, Ordering, Scheme},
        endpoint_tls::{ClientKey, EndpointTls, MAX_PEM_BYTES},
        event::EventType,
        retry::RetryOverrides,
        signing::{Kind, MIN_SECRET_CHARS, SecretText},
    },
    surface::{
        VerbError,
        secret::{self, Hidden},
    },
};

/// Twenty headers, the longest that there may be.
const MAX_HEADERS_BYTES: u64 = 256 << 10;

/// A secret that its receiver has already.
#[derive(Debug, Args)]
pub struct GivenSecret {
    /// An existing secret; - reads it from stdin, where other users of the machine cannot see it [default: a fresh one]
    #[arg(long, value_name = "SECRET", conflicts_with = "secret_file")]
    secret: Option<Hidden>,
    /// A file with nothing but the secret; - is stdin
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

impl GivenSecret {
    pub fn secret(&self) -> anyhow::Result<Option<SecretText>> {
        let text = match (&self.secret, &self.secret_file) {
            (Some(secret), _) => secret.read()?,
            (None, Some(path)) => secret::from_file(path)?,
            (None, None) => return Ok(None),
        };
        let secret = SecretText::new(text)?;
        if secret.kind() == Kind::Public {
            let why =
                "--secret: this is the public half of a key pair, which cannot sign: give the private half, whsk_…";
            return Err(VerbError::Refused(why.to_owned()).into());
        }
        if !secret.is_strong() {
            let why = format!(
                "--secret: it needs at least {MIN_SECRET_CHARS} characters, and different ones, or signatures can be forged"
            );
            return Err(VerbError::Refused(why).into());
        }
        Ok(Some(secret))
    }
}

impl Hidden {
    fn header(&self) -> Result<(String, String), VerbError> {
        let parts = self.text().split_once(':').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
        parts.ok_or_else(|| VerbError::Usage("--header: write it as 'NAME: VALUE'".to_owned()))
    }
}

#[derive(Debug, Args)]
pub struct Settings {
    /// Event type that it wants, for example payment_intent.status_updated; can be repeated; none means all
    #[arg(long = "event-type", alias = "event", value_name = "TYPE", action = ArgAction::Append)]
    events: Vec<EventType>,
    /// Signature scheme, standard, dojo or ed25519; can be repeated [default: standard and dojo]
    #[arg(long = "scheme", value_name = "SCHEME", action = ArgAction::Append)]
    schemes: Vec<Scheme>,
    /// intent: one at a time per payment intent, in order; none: as they come [default: intent]
    #[arg(long, value_name = "ORDERING")]
    ordering: Option<Ordering>,
    /// Attempts at once, 1 to 1000 [default: 10]
    #[arg(long, value_name = "N")]
    max_in_flight: Option<u16>,
    /// Attempts a second [default: no limit]
    #[arg(long, value_name = "N")]
    rate_limit: Option<u32>,
    /// The whole attempt, 100ms to 2m [default: as configured]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Extra header 'NAME: VALUE'; can be repeated
    #[arg(long = "header", value_name = "HEADER", action = ArgAction::Append)]
    headers: Vec<Hidden>,
    /// A file with more of them, a line each; - is stdin. There they stay out of the list of processes
    #[arg(long, value_name = "FILE")]
    headers_file: Option<PathBuf>,
    /// For people: what it is
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Pass the entry's traceparent on
    #[arg(long = "pass-traceparent", alias = "traceparent", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    traceparent: Option<bool>,
    /// Speak HTTP/1.1 only, for a receiver whose HTTP/2 does not work
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    http1: Option<bool>,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    retry: RetryArgs,
}

/// What an endpoint has of its own in TLS.
#[derive(Debug, Args)]
pub struct TlsArgs {
    /// A PEM file of authorities that are trusted for it besides those that are trusted for all; - is stdin
    #[arg(long = "tls-ca-file", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A PEM file of the certificate that its receiver asks for, with those between it and its authority
    #[arg(long = "client-certificate-file", value_name = "FILE")]
    client_certificate: Option<PathBuf>,
    /// A PEM file of that certificate's private key, which is stored only sealed; - is stdin
    #[arg(long = "client-key-file", value_name = "FILE")]
    client_key: Option<PathBuf>,
}

impl TlsArgs {
    /// Puts what is given in place of what is there.
    fn apply(&self, endpoint: &mut Endpoint) -> anyhow::Result<()> {
        let mut tls = endpoint.tls.as_deref().cloned().unwrap_or_default();
        let pem = |file: &PathBuf| {
            let text = Zeroizing::new(read_input(file, MAX_PEM_BYTES as u64)?);
            let refused = || VerbError::Refused(format!("{} is not PEM, which is text", file.display()));
            anyhow::Ok(str::from_utf8(&text).map_err(|_| refused())?.to_owned())
        };
        tls.ca = self.ca.as_ref().map(pem).transpose()?.or(tls.ca);
        tls.client_certificate = self.client_certificate.as_ref().map(pem).transpose()?.or(tls.client_certificate);
        tls.client_key = self.client_key.as_ref().map(pem).transpose()?.map(ClientKey::new).or(tls.client_key);
        endpoint.tls = tls.kept();
        Ok(())
    }
}

/// How the retry policy differs from the configured one.
#[derive(Debug, Clone, Args)]
pub struct RetryArgs {
    /// The pause after the first failed attempt
    #[arg(long = "retry-initial", value_name = "DURATION", value_parser = parse_duration)]
    initial: Option<Duration>,
    /// How much longer each pause is than the one before
    #[arg(long = "retry-multiplier", value_name = "X")]
    multiplier: Option<f64>,
    /// The longest pause
    #[arg(long = "retry-max-interval", value_name = "DURATION", value_parser = parse_duration)]
    max_interval: Option<Duration>,
    /// The spread of each pause, 0 to 1
    #[arg(long = "retry-jitter", value_name = "X")]
    jitter: Option<f64>,
    /// Attempts before a delivery becomes a dead letter
    #[arg(long = "retry-max-attempts", value_name = "N")]
    max_attempts: Option<u32>,
    /// Age at which a delivery becomes a dead letter
    #[arg(long = "retry-max-age", value_name = "DURATION", value_parser = parse_duration)]
    max_age: Option<Duration>,
}

impl RetryArgs {
    /// Puts the given settings in place of the present ones.
    pub fn apply(&self, retry: &mut RetryOverrides) {
        let ms = |given: Option<Duration>| given.map(|given| u64::try_from(given.as_millis()).unwrap_or(u64::MAX));
        retry.initial_ms = ms(self.initial).or(retry.initial_ms);
        retry.multiplier = self.multiplier.or(retry.multiplier);
        retry.max_interval_ms = ms(self.max_interval).or(retry.max_interval_ms);
        retry.jitter = self.jitter.or(retry.jitter);
        retry.max_attempts = self.max_attempts.or(retry.max_attempts);
        retry.max_age_ms = ms(self.max_age).or(retry.max_age_ms);
    }
}

impl Settings {
    fn headers(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut headers = self.headers.iter().map(Hidden::header).collect::<Result<Vec<_>, _>>()?;
        if let Some(file) = &self.headers_file {
            let text = String::from_utf8(read_input(file, MAX_HEADERS_BYTES)?)
                .map_err(|_| VerbError::Refused(format!("{} is not UTF-8", file.display())))?;
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            headers.extend(lines.map(|line| Hidden::from(line).header()).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(headers)
    }

    /// Puts the given settings in place of the present ones. A list that is given replaces the present list.
    pub fn apply(&self, endpoint: &mut Endpoint) -> anyhow::Result<()> {
        if !self.events.is_empty() {
            endpoint.event_types.clone_from(&self.events);
        }
        if !self.schemes.is_empty() {
            endpoint.schemes.clone_from(&self.schemes);
        }
        let headers = self.headers()?;
        if !headers.is_empty() {
            endpoint.headers = headers;
        }
        let timeout_ms = self.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        endpoint.ordering = self.ordering.unwrap_or(endpoint.ordering);
        endpoint.max_in_flight = self.max_in_flight.unwrap_or(endpoint.max_in_flight);
        endpoint.rate_limit = self.rate_limit.or(endpoint.rate_limit);
        endpoint.timeout_ms = timeout_ms.or(endpoint.timeout_ms);
        endpoint.traceparent = self.traceparent.unwrap_or(endpoint.traceparent);
        endpoint.http1 = self.http1.unwrap_or(endpoint.http1);
        if let Some(description) = &self.description {
            endpoint.description.clone_from(description);
        }
        self.tls.apply(endpoint)?;
        self.retry.apply(&mut endpoint.retry);
        Ok(())
    }
}

/// The settings that `update` puts back to those of a new endpoint.
#[derive(Debug, Args)]
pub struct Resets {
    /// All event types
    #[arg(long, conflicts_with = "events")]
    all_events: bool,
    /// No rate limit
    #[arg(long, conflicts_with = "rate_limit")]
    no_rate_limit: bool,
    /// The configured timeout
    #[arg(long, conflicts_with = "timeout")]
    no_timeout: bool,
    /// No extra headers
    #[arg(long, conflicts_with = "headers")]
    no_headers: bool,
    /// No authorities of its own
    #[arg(long, conflicts_with = "ca")]
    no_tls_ca: bool,
    /// No client certificate, and no key of one
    #[arg(long, conflicts_with_all = ["client_certificate", "client_key"])]
    no_client_certificate: bool,
    /// The configured retry policy; any --retry-* then overrides it
    #[arg(long)]
    no_retry: bool,
}

impl Resets {
    pub fn apply(&self, endpoint: &mut Endpoint) {
        if self.all_events {
            endpoint.event_types.clear();
        }
        if self.no_rate_limit {
            endpoint.rate_limit = None;
        }
        if self.no_timeout {
            endpoint.timeout_ms = None;
        }
        if self.no_headers {
            endpoint.headers.clear();
        }
        if let Some(tls) = &endpoint.tls {
            let mut tls = EndpointTls::clone(tls);
            if self.no_tls_ca {
                tls.ca = None;
            }
            if self.no_client_certificate {
                (tls.client_certificate, tls.client_key) = (None, None);
            }
            endpoint.tls = tls.kept();
        }
        if self.no_retry {
            endpoint.retry = RetryOverrides::default();
        }
    }
}

//! What an endpoint must be to be registered. Every surface asks here before it changes one, so that they all refuse the
//! same things. Attempts do not rely on this: they check for themselves what they connect to.

use std::{collections::HashSet, ops::RangeInclusive};

use url::Url;

use crate::{
    facts::{
        endpoint::{ENDPOINT_SCHEMA, Endpoint},
        endpoint_tls::{ClientKey, EndpointTls, MAX_PEM_BYTES},
        retry::{RetryError, RetryPolicy},
        signing::{Kind, MIN_SECRET_CHARS, Secret},
        text::steers,
    },
    sender::{AddressGuard, GuardError, HeaderError, MAX_ATTEMPT_TIMEOUT, check_headers},
    tls::{PemError, authorities, certificates, identity},
};

/// Attempts of one endpoint at once: 1000 connections to one receiver are an attack.
pub const MAX_IN_FLIGHT: RangeInclusive<u16> = 1..=1000;

/// Attempts a second of one endpoint: more than a worker makes in all.
pub const RATE_LIMIT: RangeInclusive<u32> = 1..=100_000;

/// Anything shorter than a round trip around the earth with TLS only makes duplicates.
pub const MIN_TIMEOUT_MS: u64 = 100;

/// Secrets, with those that are spare: all may sign at the same time, and then `webhook-signature` carries one signature of
/// each, and receivers try them all.
pub const MAX_SECRETS: usize = 5;

/// Event types that one endpoint may list; one that wants more takes all.
pub const MAX_EVENT_TYPES: usize = 50;

pub const MAX_DESCRIPTION_CHARS: usize = 500;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RuleError {
    #[error("{0}{hint}", hint = whose_settings(.0))]
    Url(#[from] GuardError),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Retry(#[from] RetryError),
    #[error(
        "it has no signature scheme, and Herald sends nothing unsigned: give it standard, dojo, ed25519 or several"
    )]
    NoScheme,
    #[error("its scheme {scheme} has no secret of its kind: first rotate-secret with this scheme, which makes one")]
    NoSecretFor { scheme: String },
    #[error(
        "a secret of it is the public half of a key pair (whpk_), which cannot sign: give the private half (whsk_)"
    )]
    PublicKey,
    #[error("it has no secret, and Herald sends nothing unsigned: rotate its secret")]
    NoSecret,
    #[error(
        "a secret of it has less than {MIN_SECRET_CHARS} characters, or hardly different ones, so signatures can be forged: \
         give it another"
    )]
    WeakSecret,
    #[error(
        "it has {count} secrets; at most {MAX_SECRETS} are allowed: wait until an older one expires, or rotate with a \
         shorter overlap"
    )]
    TooManySecrets { count: usize },
    #[error("its {what} must be between {least} and {most}, not {given}")]
    Bounds { what: &'static str, least: u64, most: u64, given: u64 },
    #[error("it names {count} event types; at most {MAX_EVENT_TYPES} are allowed, and none means all")]
    TooManyTypes { count: usize },
    #[error("it names {what} twice")]
    Twice { what: String },
    #[error("its description must be one line of at most {MAX_DESCRIPTION_CHARS} characters")]
    Description,
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("it has schema {found}; this Herald knows up to {ENDPOINT_SCHEMA}: use a newer one")]
    Newer { found: u32 },
}

/// What is wrong with the TLS settings of an endpoint. Quotes nothing of them.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TlsError {
    #[error("its URL is plain http, where no certificate is ever shown: give it https, or no TLS settings")]
    PlainHttp,
    #[error("its {what} is longer than {MAX_PEM_BYTES} bytes: give what this receiver needs and no more")]
    TooLong { what: &'static str },
    #[error(
        "its {what} has something else beside certificates, which would be shown as they are: give it the blocks \
         \"-----BEGIN CERTIFICATE-----\" alone, and a key as the client key"
    )]
    NotAlone { what: &'static str },
    #[error("its client certificate has no key: give both of one pair")]
    NoKey,
    #[error("its client key has no certificate: give both of one pair")]
    NoCertificate,
    #[error("its {what} {cause}")]
    Unusable { what: &'static str, cause: PemError },
}

/// The rules as they are configured.
#[derive(Debug, Clone)]
pub struct Rules {
    guard: AddressGuard,
    policy: RetryPolicy,
}

impl Rules {
    pub fn new(guard: AddressGuard, policy: RetryPolicy) -> Self {
        Self { guard, policy }
    }

    /// Checks everything, including the addresses behind the URL's name. For one endpoint that is new or has a new URL.
    pub async fn check(&self, endpoint: &Endpoint) -> Result<(), RuleError> {
        self.check_unresolved(endpoint)?;
        Ok(self.guard.check_resolved(&self.guard.check_url(&endpoint.url)?).await?)
    }

    /// Checks everything that needs no name server. For imports: a backup must not fail because a name does not resolve
    /// today, and every attempt is guarded anyway.
    pub fn check_unresolved(&self, endpoint: &Endpoint) -> Result<(), RuleError> {
        self.guard.check_url(&endpoint.url)?;
        match endpoint.url.contains(steers) {
            true => Err(GuardError::Character.into()),
            false => self.check_settings(endpoint),
        }
    }

    /// Checks everything but the URL: that of a registered endpoint was judged then, and is guarded at every attempt.
    pub fn check_settings(&self, endpoint: &Endpoint) -> Result<(), RuleError> {
        if endpoint.schema > ENDPOINT_SCHEMA {
            return Err(RuleError::Newer { found: endpoint.schema });
        }
        check_headers(&endpoint.headers)?;
        self.policy.with(&endpoint.retry)?;
        check_signing(endpoint)?;
        check_types(endpoint)?;
        check_limits(endpoint)?;
        if let Some(tls) = &endpoint.tls {
            let is_https = Url::parse(&endpoint.url).is_ok_and(|url| url.scheme() == "https");
            check_tls(tls, is_https)?;
        }
        let is_line = !endpoint.description.contains(steers);
        match is_line && endpoint.description.chars().count() <= MAX_DESCRIPTION_CHARS {
            true => Ok(()),
            false => Err(RuleError::Description),
        }
    }
}

/// Checks the secrets that are new, compared with what is `known` of the endpoint: one that is registered already keeps
/// signing until its rotation is over, so it is not judged again.
pub fn check_new_secrets(endpoint: &Endpoint, known: Option<&Endpoint>) -> Result<(), RuleError> {
    let is_known =
        |secret: &Secret| known.is_some_and(|known| known.all_secrets().any(|other| other.value == secret.value));
    match endpoint.all_secrets().all(|secret| secret.value.is_strong() || is_known(secret)) {
        true => Ok(()),
        false => Err(RuleError::WeakSecret),
    }
}

/// A setting that could lift a refusal is one of the process that runs the command, which need not be the worker.
fn whose_settings(error: &GuardError) -> &'static str {
    match error {
        GuardError::PlainHttp | GuardError::Port { .. } | GuardError::Address { .. } => {
            " (judged by the configuration of this shell, not by the worker's: set it for both)"
        }
        _ => "",
    }
}

fn check_signing(endpoint: &Endpoint) -> Result<(), RuleError> {
    if endpoint.schemes.is_empty() {
        return Err(RuleError::NoScheme);
    }
    let mut seen = HashSet::new();
    if let Some(twice) = endpoint.schemes.iter().find(|scheme| !seen.insert(**scheme)) {
        return Err(RuleError::Twice { what: format!("the scheme {twice:?}").to_lowercase() });
    }
    if endpoint.all_secrets().any(|secret| secret.value.kind() == Kind::Public) {
        return Err(RuleError::PublicKey);
    }
    match (endpoint.secrets.len(), endpoint.all_secrets().count()) {
        (0, _) => Err(RuleError::NoSecret),
        _ if endpoint.scheme_without_secret().is_some() => {
            let scheme = endpoint.scheme_without_secret().map_or_else(String::new, |scheme| format!("{scheme:?}"));
            Err(RuleError::NoSecretFor { scheme: scheme.to_lowercase() })
        }
        (_, count) if count > MAX_SECRETS => Err(RuleError::TooManySecrets { count }),
        _ => Ok(()),
    }
}

fn check_types(endpoint: &Endpoint) -> Result<(), RuleError> {
    if endpoint.event_types.len() > MAX_EVENT_TYPES {
        return Err(RuleError::TooManyTypes { count: endpoint.event_types.len() });
    }
    let mut seen = HashSet::new();
    match endpoint.event_types.iter().find(|event_type| !seen.insert(*event_type)) {
        Some(twice) => Err(RuleError::Twice { what: format!("the event type {twice}") }),
        None => Ok(()),
    }
}

fn check_limits(endpoint: &Endpoint) -> Result<(), RuleError> {
    let bounds = |what, given: u64, least: u64, most: u64| match (least..=most).contains(&given) {
        true => Ok(()),
        false => Err(RuleError::Bounds { what, least, most, given }),
    };
    let (least, most) = (*MAX_IN_FLIGHT.start(), *MAX_IN_FLIGHT.end());
    bounds("max in flight", endpoint.max_in_flight.into(), least.into(), most.into())?;
    if let Some(rate) = endpoint.rate_limit {
        let (least, most) = (*RATE_LIMIT.start(), *RATE_LIMIT.end());
        bounds("rate limit", rate.into(), least.into(), most.into())?;
    }
    if let Some(timeout_ms) = endpoint.timeout_ms {
        let most = MAX_ATTEMPT_TIMEOUT.as_millis() as u64;
        bounds("timeout in milliseconds", timeout_ms, MIN_TIMEOUT_MS, most)?;
    }
    Ok(())
}

/// Whether the parts are what they are given as, and the key is the certificate's. When they end is not asked: a backup with one
/// that has expired can be imported, and its receiver refuses it until it is replaced.
fn check_tls(tls: &EndpointTls, is_https: bool) -> Result<(), TlsError> {
    const CA: &str = "authority (ca)";
    const CERTIFICATE: &str = "client certificate";
    const KEY: &str = "client key";
    let EndpointTls { ca, client_certificate, client_key } = tls;
    let key = client_key.as_ref().map(ClientKey::reveal);
    for (what, pem) in [(CA, ca.as_deref()), (CERTIFICATE, client_certificate.as_deref()), (KEY, key)] {
        if pem.is_some_and(|pem| pem.len() > MAX_PEM_BYTES) {
            return Err(TlsError::TooLong { what });
        }
    }
    for (what, pem) in [(CA, ca), (CERTIFICATE, client_certificate)] {
        if pem.as_deref().is_some_and(has_more_than_certificates) {
            return Err(TlsError::NotAlone { what });
        }
    }
    let unusable = |what| move |cause| TlsError::Unusable { what, cause };
    if let Some(ca) = ca {
        authorities(ca.as_bytes()).map_err(unusable(CA))?;
    }
    match (client_certificate, key) {
        (None, None) => {}
        (Some(_), None) => return Err(TlsError::NoKey),
        (None, Some(_)) => return Err(TlsError::NoCertificate),
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate.as_bytes()).map_err(unusable(CERTIFICATE))?;
            identity(chain, key.as_bytes()).map_err(unusable(KEY))?;
        }
    }
    match is_https {
        true => Ok(()),
        false => Err(TlsError::PlainHttp),
    }
}

/// These parts are stored and shown as they are, and files that bring a key along with its certificate are common.
fn has_more_than_certificates(pem: &str) -> bool {
    let mut begins = pem.lines().map(str::trim).filter(|line| line.contains("BEGIN"));
    begins.any(|line| line != "-----BEGIN CERTIFICATE-----") || pem.to_ascii_uppercase().contains("PRIVATE KEY")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{
        endpoint::{DEFAULT_MAX_IN_FLIGHT, EndpointState, Keeper, Ordering, Scheme},
        id::{AccountId, EndpointId},
        retry::{RetryOverrides, RetrySettings},
        signing::SecretText,
    };

    #[test]
    fn a_key_beside_a_certificate_is_refused_before_it_is_stored() {
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        assert!(!has_more_than_certificates(
            &format!("Bag Attributes\r\n{certificate}{certificate}").replace('\n', "\r\n")
        ));
        for also in [
            "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----",
            "  -----BEGIN EC PRIVATE KEY-----",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----",
            "-----begin rsa private key-----",
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            "----- BEGIN PARAMETERS-----",
        ] {
            for pem in [format!("{certificate}{also}"), format!("{also}\n{certificate}")] {
                let ca = EndpointTls { ca: Some(pem.clone()), ..EndpointTls::default() };
                let key = Some(ClientKey::new("a key".to_owned()));
                let own = EndpointTls { ca: None, client_certificate: Some(pem), client_key: key };
                for tls in [ca, own] {
                    let refused = check_tls(&tls, true).unwrap_err();
                    assert!(matches!(refused, TlsError::NotAlone { .. }), "{also}: {refused}");
                }
            }
        }
    }

    fn good() -> Endpoint {
        let value = SecretText::new("a-secret-of-the-test".to_owned()).unwrap();
        Endpoint {
            schema: ENDPOINT_SCHEMA,
            id: EndpointId::new("ep_a").unwrap(),
            account: AccountId::new("acc_a").unwrap(),
            url: "https://example.com/hook".to_owned(),
            description: String::new(),
            event_types: Vec::new(),
            schemes: vec![Scheme::Standard, Scheme::Dojo],
            secrets: vec![Secret { value, created_at_ms: 1, expires_at_ms: None }],
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
            created_at_ms: 1,
            updated_at_ms: 1,
            revision: 1,
            unsealed_values: 0,
        }
    }

    fn check(change: impl FnOnce(&mut Endpoint)) -> Result<(), RuleError> {
        let mut endpoint = good();
        change(&mut endpoint);
        let policy = RetryPolicy::try_new(RetrySettings::default()).unwrap();
        Rules::new(AddressGuard::new(false, &[]), policy).check_unresolved(&endpoint)
    }

    #[test]
    fn an_ordinary_endpoint_is_taken() {
        check(|_| {}).unwrap();
        check(|e| (e.rate_limit, e.timeout_ms) = (Some(1), Some(100))).unwrap();
    }

    #[test]
    fn only_a_new_secret_must_be_strong() {
        check_new_secrets(&good(), None).unwrap();
        let mut weak = good();
        weak.secrets[0].value = SecretText::new("short".into()).unwrap();
        assert!(check_new_secrets(&weak, Some(&good())).unwrap_err().to_string().contains("16 characters"));
        weak.secrets.extend(good().secrets);
        check_new_secrets(&weak, Some(&weak)).unwrap();
    }

    #[test]
    fn every_setting_has_its_bounds() {
        let refused = |change: fn(&mut Endpoint)| check(change).expect_err("it was taken").to_string();
        assert!(refused(|e| e.url = "http://example.com".into()).contains("use https"));
        assert!(refused(|e| e.url = "https://127.1/".into()).contains("loopback"));
        assert!(refused(|e| e.headers = vec![("Host".into(), "x".into())]).contains("Herald's own"));
        assert!(refused(|e| e.retry.max_attempts = Some(0)).contains("attempts"));
        assert!(refused(|e| e.schemes.clear()).contains("no signature scheme"));
        assert!(refused(|e| e.schemes = vec![Scheme::Dojo, Scheme::Dojo]).contains("the scheme dojo twice"));
        assert!(refused(|e| e.secrets.clear()).contains("no secret"));
        assert!(refused(|e| e.secrets = vec![e.secrets[0].clone(); 6]).contains("6 secrets"));
        assert!(refused(|e| e.max_in_flight = 0).contains("between 1 and 1000, not 0"));
        assert!(refused(|e| e.rate_limit = Some(0)).contains("rate limit"));
        assert!(refused(|e| e.timeout_ms = Some(120_001)).contains("between 100 and 120000"));
        assert!(refused(|e| e.description = "a\nb".into()).contains("one line"));
        assert!(refused(|e| e.description = "a\u{202e}b".into()).contains("one line"));
        assert!(refused(|e| e.url = "https://example.com/\u{202e}gnp".into()).contains("control characters"));
        assert!(refused(|e| e.schema = 2).contains("newer"));
        let event_type = || "payment_intent.created".parse().unwrap();
        assert!(check(|e| e.event_types = vec![event_type(), event_type()]).unwrap_err().to_string().contains("twice"));
    }
}

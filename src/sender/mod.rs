//! The edge that speaks HTTP to receivers: it signs and sends one attempt, reads what comes back within bounds and says
//! what it means. It owns the address guard, the connections and every header that a receiver sees.
//! Never retries, never decides a delivery's fate, never touches Redis. `reqwest` is named only here.
//!
//! The path of an attempt: `request` (what is sent) → `guard` (where to) → `exchange` (on which connection: `pool`,
//! or a new one of `connect`, `resolver`, `trust`, `wire` and `frames`) → `body` (what is read) → `classify` (what it
//! means), all called from `attempt`.

mod attempt;
mod body;
mod classify;
mod connect;
mod exchange;
mod frames;
mod guard;
mod headers;
mod lateness;
mod pool;
mod ports;
mod proxy;
mod request;
mod resolver;
mod stages;
mod trust;
mod wire;

use std::{fmt, time::Duration};

use ipnet::IpNet;
use rustls::pki_types::{CertificateDer, pem::PemObject};

#[doc(hidden)]
pub use classify::of_response;
pub use guard::{AddressGuard, Found, GuardError, GuardRules, MAX_URL_BYTES, Own};
pub use headers::{HeaderError, MAX_HEADER_BYTES, MAX_HEADERS, check_headers};
pub use proxy::EgressProxy;

use connect::Connector;
use exchange::Exchanges;
use pool::Pool;
use request::PreparedEndpoints;
use trust::Trust;

/// Longest that a whole attempt may take, whatever is configured: a lane's place is taken for that long.
pub const MAX_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone)]
pub struct SenderConfig {
    /// The whole attempt, from resolving to the body's last byte, for endpoints that set no timeout of their own.
    pub attempt_timeout: Duration,
    /// Resolving, TCP and TLS together.
    pub connect_timeout: Duration,
    pub allow_http: bool,
    /// Networks that are exempt from the address guard.
    pub allow_networks: Vec<IpNet>,
    pub deny_networks: Vec<IpNet>,
    pub allow_ports: Vec<u16>,
    pub allow_metadata: bool,
    /// Where Herald itself and its Redis can be reached: no receiver is there.
    pub own: Vec<Own>,
    /// The same, of what is found out later.
    pub found: Found,
    /// Authorities to trust besides the system's own.
    pub extra_root_certificates: Vec<CertificateDer<'static>>,
    /// No connection is used for longer than this: by then a change of DNS, a failover or a new certificate is noticed.
    pub max_connection_age: Duration,
    /// Connections open at a time. Beyond this the idle ones are closed, the oldest first.
    pub max_connections: usize,
    /// Through which every connection goes, if there is one.
    pub egress_proxy: Option<EgressProxy>,
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(10),
            allow_http: false,
            allow_networks: Vec::new(),
            deny_networks: Vec::new(),
            allow_ports: Vec::new(),
            allow_metadata: false,
            own: Vec::new(),
            found: Found::default(),
            extra_root_certificates: Vec::new(),
            max_connection_age: Duration::from_secs(300),
            max_connections: 4096,
            egress_proxy: None,
        }
    }
}

/// Reads the certificates of a PEM file, for [`SenderConfig::extra_root_certificates`].
pub fn certificates_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SenderError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(SenderError::NoCertificate),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(SenderError::Pem(error.to_string())),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SenderError {
    #[error("the {what} must be between 1 ms and {} s", MAX_ATTEMPT_TIMEOUT.as_secs())]
    Timeout { what: &'static str },
    #[error("the file of certificate authorities holds no certificate; it must be PEM")]
    NoCertificate,
    #[error("the file of certificate authorities is not readable as PEM: {0}")]
    Pem(String),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[source] rustls::Error),
    #[error("no receiver could be trusted: {0}; install the system's CA certificates or check the configured CA file")]
    Roots(#[source] rustls::Error),
}

/// Makes attempts. One serves all endpoints and all tasks; share it behind an `Arc`.
pub struct Sender {
    exchanges: Exchanges,
    guard: AddressGuard,
    prepared: PreparedEndpoints,
    attempt_timeout: Duration,
}

impl Sender {
    pub fn try_new(config: SenderConfig) -> Result<Self, SenderError> {
        let sensible = Duration::from_millis(1)..=MAX_ATTEMPT_TIMEOUT;
        for (what, timeout) in
            [("attempt timeout", config.attempt_timeout), ("connect timeout", config.connect_timeout)]
        {
            if !sensible.contains(&timeout) {
                return Err(SenderError::Timeout { what });
            }
        }
        let guard = AddressGuard::with(GuardRules {
            allow_http: config.allow_http,
            allow_networks: config.allow_networks.clone(),
            deny_networks: config.deny_networks.clone(),
            allow_ports: config.allow_ports.clone(),
            allow_metadata: config.allow_metadata,
            own: config.own.clone(),
            found: config.found.clone(),
        });
        let trust = Trust::new(&config)?;
        let connector =
            Connector::new(guard.clone(), trust, config.connect_timeout, config.max_connections, config.egress_proxy);
        let pool = Pool::new(config.max_connections, config.max_connection_age);
        let exchanges = Exchanges::new(connector, pool);
        Ok(Self { exchanges, guard, prepared: PreparedEndpoints::default(), attempt_timeout: config.attempt_timeout })
    }

    /// The guard that every attempt passes, for code that registers endpoints.
    pub fn guard(&self) -> &AddressGuard {
        &self.guard
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("guard", &self.guard).finish_non_exhaustive()
    }
}

//! The address guard: which URLs and addresses Herald may connect to. It allows global unicast and nothing else, so what
//! nobody thought of is refused; the tables below only say what of global unicast is special all the same.
//! Owns the rules. Never connects; it resolves names only to judge a URL that is being registered.
//!
//! Sources: IANA's special-purpose address registries for IPv4 and IPv6, and the clouds' documented metadata addresses.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// Longest URL in bytes: what receivers and proxies commonly take, and a bound on records and logs.
pub const MAX_URL_BYTES: usize = 2048;

/// How long the name of a URL that is being registered may take to resolve: somebody is waiting for the answer.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    #[error("the URL is {bytes} bytes long; at most {MAX_URL_BYTES} are allowed")]
    TooLong { bytes: usize },
    #[error("the URL has white space or control characters; write them percent-encoded")]
    Character,
    #[error("the URL is not valid: {0}")]
    NotAUrl(String),
    #[error("the URL's scheme is {scheme:?}; only https is allowed, and http where HERALD_ALLOW_HTTP is on")]
    Scheme { scheme: String },
    #[error(
        "the URL is http, which sends payments in the clear; use https, or set HERALD_ALLOW_HTTP in a private set-up"
    )]
    PlainHttp,
    #[error("the URL has a user name or password; put credentials into a header of the endpoint")]
    UserInfo,
    #[error("the URL has port 0, where nothing can listen")]
    PortZero,
    #[error("{host} leads to {address}, which is refused: {why}; exempt a private network with HERALD_ALLOW_NETWORKS")]
    Address { host: String, address: IpAddr, why: &'static str },
    #[error("{host} cannot be resolved ({kind}), so its addresses cannot be checked")]
    Unresolved { host: String, kind: io::ErrorKind },
}

impl GuardError {
    /// The URL makes no request at all, wherever it leads.
    pub(super) fn is_malformed(&self) -> bool {
        match self {
            Self::TooLong { .. } | Self::Character | Self::NotAUrl(_) => true,
            Self::Scheme { .. }
            | Self::PlainHttp
            | Self::UserInfo
            | Self::PortZero
            | Self::Address { .. }
            | Self::Unresolved { .. } => false,
        }
    }
}

/// Asked when an endpoint is registered and at every attempt; cheap to clone.
#[derive(Debug, Clone)]
pub struct AddressGuard {
    allow_http: bool,
    allow_networks: Arc<[IpNet]>,
}

impl AddressGuard {
    pub fn new(allow_http: bool, allow_networks: &[IpNet]) -> Self {
        Self { allow_http, allow_networks: allow_networks.into() }
    }

    /// What can be said of a URL without resolving its name. An IP literal is judged here, in every notation: the URL
    /// parser has already turned `127.1`, `0x7f.1`, `2130706433` and `①②⑦.⓪.⓪.①` into the address that they mean.
    pub fn check_url(&self, text: &str) -> Result<Url, GuardError> {
        if text.len() > MAX_URL_BYTES {
            return Err(GuardError::TooLong { bytes: text.len() });
        }
        // The parser would drop line feeds and tabs without a word.
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(GuardError::Character);
        }
        let url = Url::parse(text).map_err(|e| GuardError::NotAUrl(e.to_string()))?;
        // What is sent is the encoded form: a letter of three bytes has nine there.
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(GuardError::TooLong { bytes: url.as_str().len() });
        }
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return Err(GuardError::PlainHttp),
            other => return Err(GuardError::Scheme { scheme: other.chars().take(32).collect() }),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(GuardError::UserInfo);
        }
        if url.port() == Some(0) {
            return Err(GuardError::PortZero);
        }
        match url.host() {
            Some(Host::Ipv4(ip)) => self.check_address(ip.into())?,
            Some(Host::Ipv6(ip)) => self.check_address(ip.into())?,
            Some(Host::Domain(name)) => check_name(&url, name)?,
            None => return Err(GuardError::NotAUrl("it names no host".to_owned())),
        }
        // Whatever the HTTP library would choke on is refused here and not at the first attempt.
        match url.as_str().parse::<http::Uri>() {
            Ok(_) => Ok(url),
            Err(e) => Err(GuardError::NotAUrl(e.to_string())),
        }
    }

    /// For a URL that is being registered: every address behind its name must be allowed, and a name that cannot be
    /// resolved is refused. Attempts do not rely on this; they check what they connect to.
    pub async fn check_resolved(&self, url: &Url) -> Result<(), GuardError> {
        let Some(Host::Domain(name)) = url.host() else {
            // Literals were judged by `check_url`; a second look costs nothing and forgets none.
            return self.check_url(url.as_str()).map(drop);
        };
        let unresolved = |kind| GuardError::Unresolved { host: name.to_owned(), kind };
        let addresses = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name, 0)))
            .await
            .map_err(|_| unresolved(io::ErrorKind::TimedOut))?
            .map_err(|e| unresolved(e.kind()))?;
        let mut found = false;
        for address in addresses {
            found = true;
            self.check_address_of(name, address.ip())?;
        }
        match found {
            true => Ok(()),
            false => Err(unresolved(io::ErrorKind::NotFound)),
        }
    }

    pub fn check_address(&self, address: IpAddr) -> Result<(), GuardError> {
        self.refusal(address)
            .map_or(Ok(()), |why| Err(GuardError::Address { host: "the URL".to_owned(), address, why }))
    }

    /// The same, with the name that led to the address.
    pub(super) fn check_address_of(&self, host: &str, address: IpAddr) -> Result<(), GuardError> {
        self.refusal(address).map_or(Ok(()), |why| Err(GuardError::Address { host: host.to_owned(), address, why }))
    }

    fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        let exempt = |ip: IpAddr| self.allow_networks.iter().any(|net| net.contains(&ip));
        if exempt(address) {
            return None;
        }
        match address {
            IpAddr::V4(ip) => special_v4(ip),
            IpAddr::V6(ip) => match embedded_v4(ip) {
                Some(inner) if exempt(inner.into()) => None,
                _ => special_v6(ip),
            },
        }
    }
}

/// A name that TLS could not ask for fails at every attempt: better said at once.
fn check_name(url: &Url, name: &str) -> Result<(), GuardError> {
    if url.scheme() == "https" && rustls::pki_types::ServerName::try_from(name).is_err() {
        return Err(GuardError::NotAUrl("its host is no valid DNS name".to_owned()));
    }
    Ok(())
}

/// The IPv4 address that a connection to this IPv6 address would really go to: mapped, compatible, translated and NAT64.
/// 6to4 and Teredo also carry one, but lead through a stranger's relay: no exemption of an IPv4 network reaches them.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let carriers = ["::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96"];
    carriers.iter().any(|net| net6(net).contains(&ip)).then(|| {
        let [.., a, b, c, d] = ip.octets();
        Ipv4Addr::new(a, b, c, d)
    })
}

/// What of IPv4 is not a receiver's address.
const SPECIAL_V4: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "a private network"),
    ("100.64.0.0/10", "carrier-grade NAT"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "a cloud's metadata service"),
    ("169.254.0.0/16", "link-local, where clouds serve metadata"),
    ("172.16.0.0/12", "a private network"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.0.2.0/24", "documentation"),
    ("192.31.196.0/24", "AS112"),
    ("192.52.193.0/24", "multicast tunnelling"),
    ("192.88.99.0/24", "6to4 relays"),
    ("192.168.0.0/16", "a private network"),
    ("192.175.48.0/24", "AS112"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved or broadcast"),
];

/// The only part of IPv6 that IANA has given out as global unicast. Everything else (loopback, mapped, NAT64, unique
/// local, link-local, site-local, multicast, what is yet unassigned) is refused by not being in it.
const GLOBAL_V6: &str = "2000::/3";

/// What of [`GLOBAL_V6`] is not a receiver's address.
const SPECIAL_V6: &[(&str, &str)] = &[
    ("2001::/23", "protocol assignments, Teredo among them"),
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4"),
    ("2620:4f:8000::/48", "AS112"),
    ("3fff::/20", "documentation"),
];

fn special_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let net4 = |text: &str| text.parse::<Ipv4Net>().expect("the table holds networks");
    SPECIAL_V4.iter().find(|(net, _)| net4(net).contains(&ip)).map(|(_, why)| *why)
}

fn special_v6(ip: Ipv6Addr) -> Option<&'static str> {
    if !net6(GLOBAL_V6).contains(&ip) {
        return Some("not global unicast");
    }
    SPECIAL_V6.iter().find(|(net, _)| net6(net).contains(&ip)).map(|(_, why)| *why)
}

/// Networks are parsed from their text each time: it happens once per connection, and the table reads like its source.
fn net6(text: &str) -> Ipv6Net {
    text.parse().expect("the table holds networks")
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;

//! The address guard: which URLs and addresses Herald may connect to. It allows global unicast and nothing else, so
//! anything that nobody thought of is refused; the tables below only name the special parts of global unicast.
//! Owns the rules. Never connects; it resolves names only to judge a URL that is being registered.
//!
//! Sources: IANA's special-purpose address registries for IPv4 and IPv6, and the clouds' documented metadata addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

use super::{
    ports,
    resolver::{self, ResolveError},
};

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
    #[error("the URL has the scheme {scheme:?}; only https is allowed, and http where HERALD_ALLOW_HTTP is on")]
    Scheme { scheme: String },
    #[error(
        "the URL is http, which sends payments in the clear; use https, or set HERALD_ALLOW_HTTP in a private set-up"
    )]
    PlainHttp,
    #[error("the URL has a user name or password; put credentials into a header of the endpoint")]
    UserInfo,
    #[error("the URL has port 0, where nothing can listen")]
    PortZero,
    #[error(
        "the URL has port {port}, where {what} listens and no web server; open it with guard.allow_ports if one does"
    )]
    Port { port: u16, what: &'static str },
    #[error("{host} leads to {address}, which is Herald's own {what}")]
    Own { host: String, address: SocketAddr, what: &'static str },
    #[error("{host} leads to {address}, which is refused: {why}; exempt a private network with HERALD_ALLOW_NETWORKS")]
    Address { host: String, address: IpAddr, why: &'static str },
    /// Its addresses cannot be checked.
    #[error("{0}")]
    Unresolved(String),
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
            | Self::Port { .. }
            | Self::Own { .. }
            | Self::Address { .. }
            | Self::Unresolved(_) => false,
        }
    }
}

/// What an operator opens and closes, and where Herald itself can be reached.
#[derive(Debug, Clone, Default)]
pub struct GuardRules {
    pub allow_http: bool,
    /// Exempt from the tables below.
    pub allow_networks: Vec<IpNet>,
    /// Refused before anything else: the operator's own public networks and NAT64 prefixes.
    pub deny_networks: Vec<IpNet>,
    /// Exempt from [`ports`].
    pub allow_ports: Vec<u16>,
    /// Whether an exempt network also opens a cloud's metadata address in it.
    pub allow_metadata: bool,
    pub own: Vec<Own>,
    pub found: Found,
}

/// More of Herald's own, which is found out while it runs: asked at every look. Says what listens at a socket, if it is of these.
#[derive(Clone, Default)]
pub struct Found(Option<Arc<dyn Fn(SocketAddr) -> Option<&'static str> + Send + Sync>>);

impl Found {
    pub fn new(what: impl Fn(SocketAddr) -> Option<&'static str> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(what)))
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Found").field(&self.0.is_some()).finish()
    }
}

/// A socket of Herald's own, or of its Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    pub what: &'static str,
    pub port: u16,
    /// None if that is not known: then any address, unless it is public.
    pub address: Option<IpAddr>,
}

/// Asked when an endpoint is registered and at every attempt; cheap to clone.
#[derive(Debug, Clone)]
pub struct AddressGuard(Arc<GuardRules>);

impl AddressGuard {
    pub fn new(allow_http: bool, allow_networks: &[IpNet]) -> Self {
        Self::with(GuardRules { allow_http, allow_networks: allow_networks.to_vec(), ..GuardRules::default() })
    }

    pub fn with(rules: GuardRules) -> Self {
        Self(Arc::new(rules))
    }

    /// What can be said of a URL without resolving its name. An IP literal is judged here, in every notation: the URL
    /// parser has already turned `127.1`, `0x7f.1`, `2130706433` and `①②⑦.⓪.⓪.①` into the address that they mean.
    pub fn check_url(&self, text: &str) -> Result<Url, GuardError> {
        if text.len() > MAX_URL_BYTES {
            return Err(GuardError::TooLong { bytes: text.len() });
        }
        // The parser would silently drop line feeds and tabs.
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(GuardError::Character);
        }
        let url = Url::parse(text).map_err(|e| GuardError::NotAUrl(e.to_string()))?;
        // The encoded form is sent: a letter of three bytes takes nine there.
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(GuardError::TooLong { bytes: url.as_str().len() });
        }
        match url.scheme() {
            "https" => {}
            "http" if self.0.allow_http => {}
            "http" => return Err(GuardError::PlainHttp),
            other => return Err(GuardError::Scheme { scheme: other.chars().take(32).collect() }),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(GuardError::UserInfo);
        }
        if url.port() == Some(0) {
            return Err(GuardError::PortZero);
        }
        let port = url.port_or_known_default().unwrap_or_default();
        if let Some(what) = ports::refused(port).filter(|_| !self.0.allow_ports.contains(&port)) {
            return Err(GuardError::Port { port, what });
        }
        match url.host() {
            Some(Host::Ipv4(ip)) => self.check_socket("the URL", SocketAddr::new(ip.into(), port))?,
            Some(Host::Ipv6(ip)) => self.check_socket("the URL", SocketAddr::new(ip.into(), port))?,
            Some(Host::Domain(name)) => check_name(&url, name)?,
            None => return Err(GuardError::NotAUrl("it names no host".to_owned())),
        }
        // What the HTTP library would choke on is refused here and not at the first attempt.
        match url.as_str().parse::<http::Uri>() {
            Ok(_) => Ok(url),
            Err(e) => Err(GuardError::NotAUrl(e.to_string())),
        }
    }

    /// For a URL that is being registered: every address behind its name must be allowed, and a name that cannot be
    /// resolved is refused. Attempts do not rely on this; they check what they connect to.
    pub async fn check_resolved(&self, url: &Url) -> Result<(), GuardError> {
        let Some(Host::Domain(name)) = url.host() else {
            // Literals were judged by `check_url`; a second look costs nothing and misses none.
            return self.check_url(url.as_str()).map(drop);
        };
        let port = url.port_or_known_default().unwrap_or_default();
        let found = tokio::time::timeout(RESOLVE_TIMEOUT, resolver::ask(name)).await;
        let found = found.unwrap_or_else(|_| Err(ResolveError::Silent { name: name.to_owned() }));
        for ip in found.map_err(|error| GuardError::Unresolved(error.to_string()))?.iter() {
            self.check_socket(name, SocketAddr::new(*ip, port))?;
        }
        Ok(())
    }

    pub fn check_address(&self, address: IpAddr) -> Result<(), GuardError> {
        self.refusal(address)
            .map_or(Ok(()), |why| Err(GuardError::Address { host: "the URL".to_owned(), address, why }))
    }

    /// The last look before a connection: the address that the name led to, and what listens there.
    pub(super) fn check_socket(&self, host: &str, socket: SocketAddr) -> Result<(), GuardError> {
        let address = socket.ip();
        if let Some(why) = self.refusal(address) {
            return Err(GuardError::Address { host: host.to_owned(), address, why });
        }
        let own = self.0.own.iter().find(|own| own.is(socket)).map(|own| own.what);
        match own.or_else(|| self.0.found.0.as_ref()?(socket)) {
            Some(what) => Err(GuardError::Own { host: host.to_owned(), address: socket, what }),
            None => Ok(()),
        }
    }

    fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        let inner = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => embedded_v4(ip).map(IpAddr::V4),
        };
        let is_in = |networks: &[IpNet], ip: IpAddr| networks.iter().any(|net| net.contains(&ip));
        if [Some(address), inner].into_iter().flatten().any(|ip| is_in(&self.0.deny_networks, ip)) {
            return Some("in guard.deny_networks");
        }
        let exempt = |ip: IpAddr| is_in(&self.0.allow_networks, ip);
        if exempt(address) || inner.is_some_and(exempt) {
            let metadata = is_metadata(address) || inner.is_some_and(is_metadata);
            return (metadata && !self.0.allow_metadata)
                .then_some("a cloud's metadata service, which guard.allow_metadata opens");
        }
        special(address)
    }
}

impl Own {
    pub fn is(&self, socket: SocketAddr) -> bool {
        let address = socket.ip();
        let inner = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => embedded_v4(ip).map(IpAddr::V4),
        };
        let is_there = match self.address {
            // A server that listens on one address of this machine may well listen on all of them.
            Some(own) if own.is_loopback() => {
                let is_local = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
                is_local(address) || inner.is_some_and(is_local)
            }
            Some(own) => own == address || Some(own) == inner,
            None => special(address).is_some(),
        };
        self.port == socket.port() && is_there
    }
}

fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(ip) => special_v4(ip),
        IpAddr::V6(ip) => special_v6(ip),
    }
}

/// Where clouds hand out credentials to anyone who asks from inside: AWS, Google, Azure and others; AWS' containers and
/// pods; Azure's host; Alibaba; Oracle; AWS over IPv6.
const METADATA: &[&str] = &[
    "169.254.169.254/32",
    "169.254.170.2/32",
    "169.254.170.23/32",
    "168.63.129.16/32",
    "100.100.100.200/32",
    "192.0.0.192/32",
    "fd00:ec2::/32",
    "fd20:ce::254/128",
];

fn is_metadata(address: IpAddr) -> bool {
    let net = |text: &str| text.parse::<IpNet>().expect("the table holds networks");
    METADATA.iter().any(|text| net(text).contains(&address))
}

/// A name that TLS cannot ask for fails at every attempt: better to say so at once.
fn check_name(url: &Url, name: &str) -> Result<(), GuardError> {
    if url.scheme() == "https" && rustls::pki_types::ServerName::try_from(name).is_err() {
        return Err(GuardError::NotAUrl("its host is no valid DNS name".to_owned()));
    }
    Ok(())
}

/// The IPv4 address that a connection to this IPv6 address would really go to: mapped, compatible, translated and NAT64.
/// 6to4 and Teredo also carry one, but lead through a stranger's relay: no exemption of an IPv4 network applies to them.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let carriers = ["::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96"];
    carriers.iter().any(|net| net6(net).contains(&ip)).then(|| {
        let [.., a, b, c, d] = ip.octets();
        Ipv4Addr::new(a, b, c, d)
    })
}

/// The parts of IPv4 that are not receivers' addresses.
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

/// The only part of IPv6 that IANA has given out as global unicast. Everything else (loopback, mapped, NAT64, unique local,
/// link-local, site-local, multicast, what is not yet assigned) is refused because it is not in it.
const GLOBAL_V6: &str = "2000::/3";

/// The parts of [`GLOBAL_V6`] that are not receivers' addresses.
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

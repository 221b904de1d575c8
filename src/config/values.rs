//! Turns texts into values, with bounds. Each error says what would be right; none repeats the text, because it may be
//! a secret.

use std::{fmt, net::IpAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use ipnet::IpNet;
use jiff::{
    SpanRelativeTo,
    fmt::friendly::{Designator, SpanParser, SpanPrinter},
    tz::TimeZone,
};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::facts::id::EntryId;

pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// `5s`, `250ms`, `1h 30m`, `30d`. Negative spans, months and years are refused.
pub fn duration(text: &str) -> Result<Duration, String> {
    static PARSER: SpanParser = SpanParser::new();
    let span = PARSER.parse_span(text.trim()).ok();
    let exact = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    exact
        .and_then(|exact| Duration::try_from(exact).ok())
        .ok_or_else(|| "is not a duration; write it with units, for example 250ms, 5s, 1h 30m or 30d".to_owned())
}

pub(super) fn duration_in(bounds: RangeInclusive<Duration>) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| {
        let value = duration(text)?;
        match bounds.contains(&value) {
            true => Ok(value),
            false => Err(format!("must be between {} and {}", compact(*bounds.start()), compact(*bounds.end()))),
        }
    }
}

/// The shortest usual form, days included: `30d`, `1h 30m`.
pub fn compact(value: Duration) -> String {
    static PRINTER: SpanPrinter = SpanPrinter::new().designator(Designator::Compact);
    match value.as_secs() / DAY.as_secs() {
        days if days > 0 && value == DAY * days as u32 => format!("{days}d"),
        _ => PRINTER.unsigned_duration_to_string(&value),
    }
}

pub(super) fn number_in(bounds: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        let value = text.trim().replace('_', "").parse::<u64>().ok();
        value
            .filter(|value| bounds.contains(value))
            .ok_or_else(|| format!("must be a whole number between {} and {}", bounds.start(), bounds.end()))
    }
}

pub(super) fn decimal(text: &str) -> Result<f64, String> {
    text.trim().parse().map_err(|_| "is not a number; write it like 4 or 0.2".to_owned())
}

pub(super) fn truth(text: &str) -> Result<bool, String> {
    text.trim().parse().map_err(|_| "must be true or false".to_owned())
}

/// A zone of the IANA database, which the program brings along.
pub(super) fn zone(text: &str) -> Result<TimeZone, String> {
    TimeZone::get(text).map_err(|_| {
        "is no time zone of the IANA database; name one by region and city, such as Europe/London, or UTC".to_owned()
    })
}

/// Empty means none.
pub(super) fn path(text: &str) -> Result<Option<PathBuf>, String> {
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

/// The key of a stream: it becomes part of every companion key, and of logs.
pub(super) fn stream_name(text: &str) -> Result<String, String> {
    const MAX_BYTES: usize = 256;
    let fits = !text.is_empty() && text.len() <= MAX_BYTES;
    match fits && !text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        true => Ok(text.to_owned()),
        false => Err(format!("must be 1 to {MAX_BYTES} bytes without white space")),
    }
}

/// Empty for one that is made up. It is part of a lease's value, and of a line of a table.
pub(super) fn worker_id(text: &str) -> Result<Option<String>, String> {
    const MAX_BYTES: usize = 64;
    match text {
        "" => Ok(None),
        text if text.len() <= MAX_BYTES && text.chars().all(|c| c.is_ascii_graphic()) => Ok(Some(text.to_owned())),
        _ => Err(format!("must be up to {MAX_BYTES} ASCII letters, digits and signs without white space")),
    }
}

/// Where the group starts the very first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// `0`: with the oldest entry.
    Oldest,
    /// `$`: with the next new one.
    New,
    /// After this entry.
    After(EntryId),
}

impl FromStr for Start {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "0" => Ok(Self::Oldest),
            "$" => Ok(Self::New),
            id => id
                .parse()
                .map(Self::After)
                .map_err(|_| "must be 0, $ or the id of an entry, for example 1700000000000-0".to_owned()),
        }
    }
}

/// As `XGROUP CREATE` takes it.
impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oldest => f.write_str("0"),
            Self::New => f.write_str("$"),
            Self::After(entry) => entry.fmt(f),
        }
    }
}

pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let network = text.trim().parse::<IpNet>();
    let network = network.map_err(|_| "is not a network; write it as CIDR, for example 10.1.0.0/16".to_owned())?;
    match network.prefix_len() {
        0 => Err("would switch the whole address guard off; name the networks that are yours".to_owned()),
        _ => Ok(network.trunc()),
    }
}

/// A network, or one address.
pub(super) fn proxies(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network =
        network.map_err(|_| "is no address and no network; write it like 10.0.0.7 or 10.1.0.0/16".to_owned())?;
    match network.prefix_len() {
        0 => Err("would let every caller say where it comes from; name your proxies".to_owned()),
        _ => Ok(network.trunc()),
    }
}

/// Where Redis is. `Debug` and `Display` leave the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// The URL with its password. Call it only to connect.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn is_encrypted(&self) -> bool {
        self.0.to_ascii_lowercase().starts_with("rediss")
    }
}

/// What a URL of Redis names.
pub struct RedisPlaces {
    /// A URL for each host, with the URL's name and password.
    pub nodes: Vec<String>,
    pub kind: RedisKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisKind {
    /// One server, or any node of a Cluster: it says so itself.
    OfOne,
    /// Nodes of a Cluster.
    Cluster,
    /// Sentinels, which know where the master of this name is.
    Sentinels(String),
}

/// Where a sentinel listens that is named without a port.
const SENTINEL_PORT: u16 = 26_379;

pub fn redis_places(text: &str) -> Result<RedisPlaces, String> {
    let of_one = || Ok(RedisPlaces { nodes: vec![text.to_owned()], kind: RedisKind::OfOne });
    let Some((scheme, rest)) = text.split_once("://") else { return of_one() };
    let scheme = scheme.to_ascii_lowercase();
    let Some((plain @ ("redis" | "rediss"), of @ ("cluster" | "sentinel"))) = scheme.split_once('+') else {
        return of_one();
    };
    let (who, rest) = rest.rsplit_once('@').map_or((String::new(), rest), |(who, rest)| (format!("{who}@"), rest));
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let url = |host: &str, path: &str| format!("{plain}://{who}{host}{path}");
    if of == "cluster" {
        if !path.is_empty() || rest.contains(['?', '#']) {
            return Err("must end with its hosts: a Redis Cluster has one database".to_owned());
        }
        let nodes = hosts.split(',').map(|host| url(host, "")).collect();
        return Ok(RedisPlaces { nodes, kind: RedisKind::Cluster });
    }
    let (master, database) = path.split_once('/').unwrap_or((path, ""));
    if master.is_empty() || database.contains('/') || rest.contains(['?', '#']) {
        return Err("must end with the name that the sentinels have for the master, and its database if not 0: \
                    redis+sentinel://HOST,HOST/MASTER/DB"
            .to_owned());
    }
    let path = if database.is_empty() { String::new() } else { format!("/{database}") };
    let with_port = |host: &str| match has_port(host) {
        true => url(host, &path),
        false => url(&format!("{host}:{SENTINEL_PORT}"), &path),
    };
    // Nothing is no host, with a port or without.
    let nodes = hosts.split(',').map(|host| if host.is_empty() { url("", &path) } else { with_port(host) }).collect();
    Ok(RedisPlaces { nodes, kind: RedisKind::Sentinels(master.to_owned()) })
}

/// Of `host:port` and `[address]:port`.
fn has_port(host: &str) -> bool {
    host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'))
}

impl FromStr for RedisUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        for node in redis_places(text)?.nodes {
            Self::check_one(&node)?;
        }
        Ok(Self(text.to_owned()))
    }
}

impl RedisUrl {
    fn check_one(text: &str) -> Result<(), String> {
        const FORMS: &str = "redis://HOST:PORT, rediss://HOST:PORT, redis+cluster://HOST:PORT,HOST:PORT, \
                             redis+sentinel://HOST,HOST/MASTER or unix:///PATH";
        let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}); write {FORMS}"))?;
        match url.scheme() {
            "rediss" if url.fragment().is_some() => {
                return Err("must have no #: Redis' certificate is always checked, its name too".to_owned());
            }
            "redis" | "rediss" if url.host_str().is_none_or(str::is_empty) => {
                return Err(format!("names no host; write {FORMS}"));
            }
            "redis" | "rediss" => {
                let database = url.path().trim_start_matches('/');
                if !database.is_empty() && database.parse::<u16>().is_err() {
                    return Err("must have the number of a database, or nothing, as its path".to_owned());
                }
            }
            "unix" | "redis+unix" if url.path().trim_matches('/').is_empty() => {
                return Err(format!("names no socket; write {FORMS}"));
            }
            "unix" | "redis+unix" => {}
            _ => return Err(format!("has a scheme that this version does not support; write {FORMS}")),
        }
        Ok(())
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(RedisPlaces { nodes, kind }) = redis_places(&self.0) else { return f.write_str("***") };
        let [first, others @ ..] = &nodes[..] else { return Ok(()) };
        let (of, master) = match kind {
            RedisKind::OfOne => return f.write_str(&masked(first)),
            RedisKind::Cluster => ("+cluster://", String::new()),
            RedisKind::Sentinels(master) => ("+sentinel://", format!("/{master}")),
        };
        // All have the same database, which comes last.
        let first = masked(first).replacen("://", of, 1);
        let at = first.find("://").map_or(0, |at| at + 3);
        let (first, database) = first[at..]
            .split_once('/')
            .map_or((&first[..], ""), |(host, database)| (&first[..at + host.len()], database));
        f.write_str(first)?;
        let host = |node: &str| {
            Url::parse(node).ok().map(|node| node[url::Position::BeforeHost..url::Position::AfterPort].to_owned())
        };
        others.iter().try_for_each(|node| write!(f, ",{}", host(node).unwrap_or_default()))?;
        f.write_str(&master)?;
        if database.is_empty() { Ok(()) } else { write!(f, "/{database}") }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An egress proxy. `Debug` and `Display` leave user and password out.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Without brackets.
    pub fn host(&self) -> String {
        self.0.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned()
    }

    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or_default()
    }

    /// User and password as they are. Call it only to connect.
    pub fn reveal(&self) -> Option<(String, String)> {
        let plain = |text: &str| percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned());
        let user = plain(self.0.username()).filter(|user| !user.is_empty())?;
        Some((user, plain(self.0.password().unwrap_or_default())?))
    }
}

impl FromStr for ProxyUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = "write http://HOST:PORT or https://USER:PASSWORD@HOST:PORT, or nothing for no proxy";
        let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}); {FORMS}"))?;
        let is_plain = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        let is_one = matches!(url.scheme(), "http" | "https") && url.host().is_some() && is_plain;
        let proxy = Self(url);
        let has_user = !proxy.0.username().is_empty() || proxy.0.password().is_some();
        let is_readable = proxy
            .reveal()
            .is_some_and(|(user, password)| !user.contains(':') && !(user + &password).contains(char::is_control));
        match is_one && (!has_user || is_readable) {
            true => Ok(proxy),
            false => Err(format!("is no proxy's; {FORMS}")),
        }
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(self.0.as_str()))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A URL without the password in it.
fn masked(text: &str) -> String {
    const MASK: &str = "***";
    // It was parsed when it was made; should that ever fail, showing nothing is safe.
    let Ok(mut url) = Url::parse(text) else { return MASK.to_owned() };
    if url.password().is_some() && url.set_password(Some(MASK)).is_err() {
        return MASK.to_owned();
    }
    // unix:///socket?user=…&pass=…
    let is_secret = |name: &str| name.starts_with("pass");
    if url.query_pairs().any(|(name, _)| is_secret(&name)) {
        let shown: Vec<(String, String)> = url
            .query_pairs()
            .map(|(name, value)| match is_secret(&name) {
                true => (name.into_owned(), MASK.to_owned()),
                false => (name.into_owned(), value.into_owned()),
            })
            .collect();
        url.query_pairs_mut().clear().extend_pairs(shown);
    }
    url.to_string()
}

/// Where the history of deliveries is. `Debug` and `Display` leave the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct HistoryUrl(String);

impl HistoryUrl {
    /// The URL with its password. Call it only to connect.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The file, if it is one.
    pub fn file(&self) -> Option<PathBuf> {
        let path = self.0.strip_prefix("sqlite:")?;
        Some(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
    }
}

impl FromStr for HistoryUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str =
            "write sqlite:FILE or postgres://USER:PASSWORD@HOST:PORT/DATABASE, or nothing for no history";
        if let Some(path) = text.strip_prefix("sqlite:") {
            // What would be understood as something else than a name.
            let is_plain =
                !path.trim_matches('/').is_empty() && !path.contains(['?', '%', '#']) && !path.contains(":memory:");
            return is_plain.then(|| Self(text.to_owned())).ok_or_else(|| format!("names no plain file; {FORMS}"));
        }
        let url = Url::parse(text).map_err(|error| format!("is not a URL ({error}); {FORMS}"))?;
        match url.scheme() {
            "postgres" | "postgresql" if url.host_str().is_some_and(|host| !host.is_empty()) => {
                Ok(Self(text.to_owned()))
            }
            "postgres" | "postgresql" => Err(format!("names no host; {FORMS}")),
            _ => Err(format!("has a scheme that is no history's; {FORMS}")),
        }
    }
}

impl fmt::Display for HistoryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.starts_with("sqlite:") {
            true => f.write_str(&self.0),
            false => f.write_str(&masked(&self.0)),
        }
    }
}

impl fmt::Debug for HistoryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The first token with every right. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken(String);

impl AdminToken {
    /// Call it only to compare it with what a caller sends.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("token(hidden)")
    }
}

/// Empty means none. Shorter than 16 characters can be guessed.
pub(super) fn admin_token(text: &str) -> Result<Option<AdminToken>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let fits = (16..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    match fits {
        true => Ok(Some(AdminToken(text.to_owned()))),
        false => Err("must be 16 to 256 visible ASCII characters, for example from `openssl rand -hex 32`".to_owned()),
    }
}

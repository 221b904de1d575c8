//! Opens a connection to a receiver: resolve, check, race its addresses, agree on TLS. Connects only to addresses that the
//! guard has checked. Never keeps a connection, never sends a request.

use std::{
    fmt::{self, Write},
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::Instant};
use url::{Host, Url};

use super::{
    guard::{AddressGuard, GuardError},
    lateness::is_too_late,
    pool::Spare,
    proxy::{EgressProxy, ProxyError, Way},
    resolver::{ResolveError, Resolver},
    stages::Stages,
    trust::{Own, Trust},
    wire::{Metered, Wire},
};
use crate::{clock, tls::PemError};

/// How long an address may be silent before the next one is tried alongside: RFC 8305, section 5.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// Most addresses of one name that are tried: more than any real receiver has, and an attempt's time is short.
const MAX_ADDRESSES: usize = 8;

/// What connections that may serve the same requests have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) is_https: bool,
    host: Host<String>,
    port: u16,
    /// The endpoint is to be spoken to only in HTTP/1.1.
    pub(super) only_http1: bool,
    /// What its endpoint has of its own in TLS: nobody else uses such connections.
    own: Option<Own>,
}

impl Origin {
    /// None for a URL that names no host: the guard lets none through.
    pub(super) fn of(url: &Url, only_http1: bool, own: Option<Own>) -> Option<Self> {
        let is_https = url.scheme() == "https";
        Some(Self { is_https, host: url.host()?.to_owned(), port: url.port_or_known_default()?, only_http1, own })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    Refused(#[from] GuardError),
    #[error(transparent)]
    Unresolved(#[from] ResolveError),
    #[error("{host} was not resolved in time")]
    ResolvedLate { host: String },
    #[error("no connection in time: {tried}")]
    Silent { tried: String },
    #[error("no connection: {tried}")]
    Failed { tried: String },
    /// This machine has no descriptor, port or memory left for it.
    #[error("Herald has nothing left to connect with: {tried}")]
    Short { tried: String },
    #[error(
        "{most} connections are open, as many as this process may have, and none is idle; raise its limit of open files"
    )]
    Full { most: usize },
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("TLS with {address} was not agreed in time")]
    TlsLate { address: SocketAddr },
    #[error("TLS with {address}: {error}")]
    Tls {
        address: SocketAddr,
        #[source]
        error: io::Error,
    },
    #[error("what the endpoint has of its own for TLS cannot be used: it {0}")]
    OwnTls(#[source] PemError),
    #[error("HTTP was not begun: {0}")]
    Protocol(#[source] hyper::Error),
    /// This thread looked so late that nobody can tell whether the receiver was in time.
    #[error("looked at too late to know: {0}")]
    Lagged(Box<ConnectError>),
}

impl ConnectError {
    fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::ResolvedLate { .. } | Self::Silent { .. } | Self::TlsLate { .. } | Self::Proxy(ProxyError::Silent)
        )
    }
}

pub(super) struct Connector {
    guard: AddressGuard,
    resolver: Resolver,
    trust: Trust,
    timeout: Duration,
    /// The only way out, if there is one.
    proxy: Option<EgressProxy>,
}

impl Connector {
    /// At most `most` connections are open at a time.
    pub(super) fn new(
        guard: AddressGuard,
        trust: Trust,
        timeout: Duration,
        most: usize,
        proxy: Option<EgressProxy>,
    ) -> Self {
        Self { guard, resolver: Resolver::new(most), trust, timeout, proxy }
    }

    /// Opens a connection by the deadline, or within the time allowed for connecting if that ends earlier; also returns
    /// whether it is for HTTP/2.
    pub(super) async fn connect(
        &self,
        origin: &Origin,
        only_http1: bool,
        spare: impl Fn() -> Option<Spare>,
        deadline: Instant,
        stages: &mut Stages<'_>,
    ) -> Result<(Wire, bool), ConnectError> {
        let deadline = deadline.min(Instant::from_std(clock::now()) + self.timeout);
        let opened = self.open(origin, only_http1, spare, deadline, stages).await;
        opened.map_err(|error| match error.is_silence() && is_too_late(deadline) {
            true => ConnectError::Lagged(Box::new(error)),
            false => error,
        })
    }

    async fn open(
        &self,
        origin: &Origin,
        only_http1: bool,
        spare: impl Fn() -> Option<Spare>,
        deadline: Instant,
        stages: &mut Stages<'_>,
    ) -> Result<(Wire, bool), ConnectError> {
        let addresses = self.addresses(origin, deadline, stages).await?;
        let resolved = clock::now();
        let (way, address) = match &self.proxy {
            None => {
                let (stream, address) = race(&addresses, spare, deadline).await?;
                (Way::Direct(stream), address)
            }
            // What the guard has checked is what the proxy is asked for.
            Some(proxy) => {
                proxy.connect(&self.trust.shared().http1, &origin.host.to_string(), &addresses, deadline).await?
            }
        };
        let stream = Metered::new(way, address);
        let connected = match origin.is_https {
            false => (Wire::plain(stream), false),
            true => {
                let client = self.trust.client(origin.own.as_ref()).map_err(ConnectError::OwnTls)?;
                let tls = if only_http1 { &client.http1 } else { &client.any };
                let name = server_name(&origin.host);
                let agreed = tokio::time::timeout_at(deadline, tls.connect(name, stream)).await;
                let stream = agreed.map_err(|_| ConnectError::TlsLate { address })?;
                Wire::tls(stream.map_err(|error| ConnectError::Tls { address, error })?)
            }
        };
        stages.connected(resolved.elapsed());
        Ok(connected)
    }

    /// The addresses that may be connected to, in the order in which to try them.
    async fn addresses(
        &self,
        origin: &Origin,
        deadline: Instant,
        stages: &mut Stages<'_>,
    ) -> Result<Vec<SocketAddr>, ConnectError> {
        let (name, found) = match &origin.host {
            Host::Ipv4(ip) => (ip.to_string(), vec![IpAddr::V4(*ip)]),
            Host::Ipv6(ip) => (ip.to_string(), vec![IpAddr::V6(*ip)]),
            Host::Domain(name) => {
                let start = clock::now();
                let found = tokio::time::timeout_at(deadline, self.resolver.resolve(name, stages.account)).await;
                stages.resolved(start.elapsed());
                let found = found.map_err(|_| ConnectError::ResolvedLate { host: name.clone() })??;
                (name.clone(), found.to_vec())
            }
        };
        let sockets = found.into_iter().map(|ip| SocketAddr::new(ip, origin.port));
        let checked = sockets.map(|socket| self.guard.check_socket(&name, socket).map(|()| socket));
        let (allowed, mut refused): (Vec<_>, Vec<_>) = checked.partition(Result::is_ok);
        match refused.pop() {
            Some(Err(refused)) if allowed.is_empty() => Err(refused.into()),
            _ => Ok(interleaved(allowed.into_iter().flatten())),
        }
    }
}

fn server_name(host: &Host<String>) -> ServerName<'static> {
    match host {
        Host::Ipv4(ip) => ServerName::from(IpAddr::V4(*ip)),
        Host::Ipv6(ip) => ServerName::from(IpAddr::V6(*ip)),
        Host::Domain(name) => ServerName::try_from(name.clone()).expect("the guard has checked the name"),
    }
}

/// The families take turns, the first address's family first: a family that leads nowhere costs one address's time.
fn interleaved(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses: Vec<_> = addresses.collect();
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.drain(..).partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    while addresses.len() < MAX_ADDRESSES {
        let before = addresses.len();
        addresses.extend(first.next());
        addresses.extend(second.next());
        if addresses.len() == before {
            break;
        }
    }
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

/// The first address that answers. The next one is tried as soon as one fails or has been silent for a while: alongside it
/// if there is a spare place, otherwise instead of it, once its part of the time is over.
async fn race(
    addresses: &[SocketAddr],
    spare: impl Fn() -> Option<Spare>,
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let mut waiting = addresses.iter();
    let mut racing = FuturesUnordered::new();
    let mut spares = Vec::new();
    let mut failed: Vec<(SocketAddr, io::Error)> = Vec::new();
    loop {
        let begun = waiting.next();
        racing.extend(begun.map(|address| async move { (*address, open(*address).await) }));
        if racing.is_empty() {
            return Err(not_connected(addresses, &failed, false));
        }
        let begun = Instant::from_std(clock::now());
        let part = deadline.saturating_duration_since(begun) / (waiting.len() as u32 + 1);
        let mut until = if waiting.len() == 0 { deadline } else { deadline.min(begun + NEXT_ADDRESS_AFTER) };
        loop {
            match tokio::time::timeout_at(until, racing.next()).await {
                Ok(Some((address, Ok(stream)))) => return Ok((stream, address)),
                Ok(Some((address, Err(error)))) => failed.push((address, error)),
                Ok(None) => {}
                Err(_) if until == deadline => {
                    let tried = &addresses[..addresses.len() - waiting.len()];
                    return Err(not_connected(tried, &failed, true));
                }
                // Each one that has failed frees a place.
                Err(_) if racing.len() <= spares.len() => {}
                Err(_) => match spare() {
                    Some(place) => spares.push(place),
                    None if until < begun + part => {
                        until = begun + part;
                        continue;
                    }
                    None => racing.clear(),
                },
            }
            break;
        }
    }
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Says what each address did, in the order in which they were tried.
fn not_connected(addresses: &[SocketAddr], failed: &[(SocketAddr, io::Error)], is_late: bool) -> ConnectError {
    let mut tried = String::new();
    for address in addresses {
        let separator = if tried.is_empty() { "" } else { "; " };
        let error = failed.iter().find(|(at, _)| at == address).map(|(_, error)| error);
        // Writing to a string cannot fail.
        let _ = match error {
            Some(error) => write!(tried, "{separator}{address}: {}", error.kind()),
            None => write!(tried, "{separator}{address}: no answer"),
        };
    }
    match is_late {
        _ if !failed.is_empty() && failed.iter().all(|(address, error)| is_ours(*address, error)) => {
            ConnectError::Short { tried }
        }
        true => ConnectError::Silent { tried },
        false => ConnectError::Failed { tried },
    }
}

/// Errors of the system that are about this machine and not about the receiver: no descriptor, memory or local port left.
fn is_ours(address: SocketAddr, error: &io::Error) -> bool {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => true,
        // For IPv6 it means that this machine has no such address, which does not change.
        Some(Errno::EADDRNOTAVAIL) => address.is_ipv4(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use super::{super::pool::Pool, *};

    fn interleave(addresses: &[&str]) -> Vec<String> {
        interleaved(addresses.iter().map(|text| text.parse().unwrap())).iter().map(|a| a.ip().to_string()).collect()
    }

    #[test]
    fn families_take_turns_and_the_number_is_bounded() {
        assert_eq!(interleave(&["[2600::1]:1", "[2600::2]:1", "8.8.8.8:1"]), ["2600::1", "8.8.8.8", "2600::2"]);
        assert_eq!(interleave(&["8.8.8.8:1", "8.8.4.4:1"]), ["8.8.8.8", "8.8.4.4"]);
        assert_eq!(interleave(&["8.8.8.8:1"; 20]).len(), MAX_ADDRESSES);
        assert!(interleave(&[]).is_empty());
    }

    #[test]
    fn what_this_machine_lacks_is_no_failure_of_the_receiver() {
        use nix::libc::{EADDRNOTAVAIL, ECONNREFUSED, EMFILE, ENFILE, ENOBUFS, ENOMEM};
        let (v4, v6) = ("8.8.8.8:1".parse().unwrap(), "[2600::1]:1".parse().unwrap());
        let is_ours = |address, code| is_ours(address, &io::Error::from_raw_os_error(code));
        for code in [EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL] {
            assert!(is_ours(v4, code), "{code}");
        }
        assert!(!is_ours(v4, ECONNREFUSED) && !is_ours(v6, EADDRNOTAVAIL));
    }

    #[tokio::test]
    async fn a_refused_and_a_silent_address_do_not_keep_from_the_one_that_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.5:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (silent, _queued) = silent_listener("127.0.0.6", port).await;
        let address = |ip: &str| SocketAddr::new(ip.parse().unwrap(), port);
        let addresses = [address("127.0.0.7"), silent, address("127.0.0.5")];
        let deadline = Instant::from_std(clock::now()) + Duration::from_secs(60);
        let pool = Pool::new(80, Duration::from_secs(60));
        let (_, answered) = race(&addresses, || pool.spare(), deadline).await.unwrap();
        assert_eq!(answered, address("127.0.0.5"));
    }

    #[tokio::test]
    async fn without_a_spare_place_the_next_address_is_tried_instead_of_a_silent_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.5:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (silent, _queued) = silent_listener("127.0.0.6", port).await;
        let good = listener.local_addr().unwrap();
        let deadline = Instant::from_std(clock::now()) + Duration::from_secs(60);
        let asked = AtomicUsize::new(0);
        let no_spare = || {
            // When it asks again, the silent one has had its time; the other one answers in the machine's.
            if asked.fetch_add(1, Relaxed) == 1 {
                tokio::time::resume();
            }
            None
        };
        tokio::time::pause();
        let (_, answered) = race(&[silent, good], no_spare, deadline).await.unwrap();
        assert_eq!((answered, asked.into_inner()), (good, 2));
    }

    #[tokio::test]
    async fn without_a_spare_place_a_silent_address_is_given_up_before_the_next_one_is_tried() {
        let (silent, _queued) = silent_listener("127.0.0.6", 0).await;
        let (asked, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let no_spare = || {
            asked.fetch_add(1, Relaxed);
            most.fetch_max(being_opened_to(silent), Relaxed);
            None
        };
        tokio::time::pause();
        let deadline = Instant::from_std(clock::now()) + 12 * NEXT_ADDRESS_AFTER;
        race(&[silent; 4], no_spare, deadline).await.unwrap_err();
        assert!(asked.into_inner() >= 2, "this proves nothing");
        assert_eq!(most.into_inner(), 1, "as many sockets as the attempt has places");
    }

    #[tokio::test]
    async fn the_places_of_addresses_that_were_given_up_are_the_next_ones() {
        let (silent, _queued) = silent_listener("127.0.0.6", 0).await;
        // Two of its places are for addresses tried alongside.
        let pool = Pool::new(16, Duration::from_secs(60));
        let in_use = std::sync::Mutex::new(Vec::new());
        let two = || {
            let spare = pool.spare();
            if spare.is_none() {
                in_use.lock().unwrap().push(being_opened_to(silent));
            }
            spare
        };
        tokio::time::pause();
        let deadline = Instant::from_std(clock::now()) + 24 * NEXT_ADDRESS_AFTER;
        race(&[silent; 8], two, deadline).await.unwrap_err();
        let in_use = in_use.into_inner().unwrap();
        assert!(in_use.len() >= 2 && in_use.iter().all(|sockets| *sockets == 3), "asks before it uses all: {in_use:?}");
    }

    /// This process' connections that nobody has accepted yet. What it has closed lives on in a child that has not begun its program:
    /// so those are counted that have a descriptor.
    fn being_opened_to(address: SocketAddr) -> usize {
        const SYN_SENT: &str = "02";
        let IpAddr::V4(ip) = address.ip() else { panic!("{address} is not IPv4") };
        let remote = format!("{:08X}:{:04X}", u32::from_le_bytes(ip.octets()), address.port());
        let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let opening = fields.filter(|fields| fields[2..4] == [remote.as_str(), SYN_SENT]);
        let opening: BTreeSet<String> = opening.map(|fields| format!("socket:[{}]", fields[9])).collect();
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let open = open.filter_map(|descriptor| std::fs::read_link(descriptor.ok()?.path()).ok());
        open.filter(|of| opening.contains(&*of.to_string_lossy())).count()
    }

    #[tokio::test]
    async fn who_tries_many_addresses_takes_a_place_for_each_and_gives_it_back() {
        let (silent, _queued) = silent_listener("127.0.0.6", 0).await;
        let (pool, most) = (Pool::new(40, Duration::from_secs(60)), AtomicUsize::new(0));
        let spare = || {
            let spare = pool.spare();
            most.fetch_max(pool.open_now(), Relaxed);
            spare
        };
        tokio::time::pause();
        let deadline = Instant::from_std(clock::now()) + 12 * NEXT_ADDRESS_AFTER;
        race(&[silent; 4], spare, deadline).await.unwrap_err();
        assert_eq!((most.into_inner(), pool.open_now()), (3, 0), "one each beside the attempt's own");
        // No more than a part of all places, however many try.
        let taken: Vec<_> = std::iter::from_fn(|| pool.spare()).collect();
        assert_eq!(taken.len(), 5);
    }

    #[tokio::test]
    async fn the_detail_names_what_was_tried_and_how_each_failed() {
        let free = std::net::TcpListener::bind("127.0.0.8:0").unwrap().local_addr().unwrap().port();
        let (silent, _queued) = silent_listener("127.0.0.9", free).await;
        let refused = SocketAddr::new("127.0.0.8".parse().unwrap(), free);
        let deadline = Instant::from_std(clock::now()) + Duration::from_millis(400);
        let error = race(&[refused, silent], || None, deadline).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("no connection in time: {refused}: connection refused; {silent}: no answer")
        );
        let error = race(&[refused], || None, deadline + Duration::from_secs(60)).await.unwrap_err();
        assert!(matches!(error, ConnectError::Failed { .. }), "{error}");
    }

    /// A listener whose queue is full drops what comes next, as an address behind a silent firewall does.
    async fn silent_listener(ip: &str, port: u16) -> (SocketAddr, Vec<TcpStream>) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(SocketAddr::new(ip.parse().unwrap(), port)).unwrap();
        let full = socket.listen(1).unwrap();
        let address = full.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            queued.push(stream.unwrap());
        }
        // It lives as long as the process: once closed, it would refuse.
        std::mem::forget(full);
        (address, queued)
    }
}

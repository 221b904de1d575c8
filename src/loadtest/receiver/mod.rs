//! The receivers: one port that serves thousands of endpoints over HTTP and HTTPS, each behaving by its profile. They
//! verify every request, note it in the ledger and answer. They run on threads of their own, so that neither their work
//! nor that of the harness shows in the other's latency. Never imports the code that Herald signs with.
//!
//! The first byte of a connection tells TLS from plain HTTP. A second listener, on 127.0.0.2, shows a certificate that
//! is only for 127.0.0.1. A profile whose connections are special has a listener of its own, because they differ before
//! the first request.

mod behaviour;
mod connection;
mod http;
mod http2;
mod tls;
pub mod verify;
mod way;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Runtime,
    sync::Semaphore,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::{
    connection::{Hall, Manners, Wire, serve},
    tls::Certificates,
    verify::Keys,
    way::stretched,
};
use super::{
    ledger::Ledger,
    population::{Doors, Population},
    scenario::Profile,
};
use crate::clock;

/// Connections at once: Herald keeps a few for each endpoint, and each takes some KiB here. Further ones wait to be
/// accepted.
const MAX_CONNECTIONS: usize = 16_384;

/// Connections that wait to be accepted: thousands of endpoints may get their first event within a moment.
const BACKLOG: u32 = 4_096;

/// Between two tries when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How long a peer may take to show whether it speaks TLS, and to shake hands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ReceiverError {
    #[error("cannot listen on {address} for the receivers: {cause}")]
    Listen { address: SocketAddr, cause: io::Error },
    #[error("cannot make the receivers' certificate: {0}")]
    Certificate(String),
    #[error("cannot write the receivers' certificate authority to {path}: {cause}")]
    WriteCa { path: PathBuf, cause: io::Error },
    #[error("cannot start the receivers' threads: {0}")]
    Threads(io::Error),
}

/// The running receivers. They end when this value is dropped.
pub struct Receivers {
    /// The same as the plain one if nobody needs a misnamed one.
    pub doors: Doors,
    /// The authority behind the certificates, for `attempt.ca_file`.
    pub ca_file: PathBuf,
    cancel: CancellationToken,
    runtime: Option<Runtime>,
}

/// One of the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Right,
    Misnamed,
    /// For the profile whose connections do not last.
    Fleeting {
        rtt: Duration,
        http2: bool,
        requests: Option<u32>,
        idle: Option<Duration>,
        reload: Option<Duration>,
    },
}

impl Door {
    /// None for a profile that needs no door of its own.
    fn of(profile: &Profile) -> Option<Self> {
        match *profile {
            Profile::Fleeting { after: _, rtt, http2, requests, idle, reload } => {
                Some(Self::Fleeting { rtt, http2, requests, idle, reload })
            }
            _ => None,
        }
    }
}

impl Receivers {
    /// Listens, and writes the certificate authority into the folder. `threads` is how many share the work: one is enough for
    /// 25 000 requests a second.
    pub fn start(
        population: Arc<Population>,
        ledger: Arc<Ledger>,
        folder: &Path,
        threads: usize,
    ) -> Result<Self, ReceiverError> {
        let certificates = Certificates::make()?;
        let ca_file = folder.join("receivers-ca.pem");
        std::fs::write(&ca_file, &certificates.authority_pem)
            .map_err(|cause| ReceiverError::WriteCa { path: ca_file.clone(), cause })?;
        let (plain, right) = match population.is_spread() {
            true => listen_on_loopback()?,
            false => listen(Ipv4Addr::LOCALHOST, 0)?,
        };
        let mut open = vec![(Door::Right, right)];
        let mut doors = Doors { plain, misnamed: plain, own: Vec::new() };
        if population.has_broken_tls() {
            let (misnamed, socket) = listen(Ipv4Addr::new(127, 0, 0, 2), plain.port())?;
            doors.misnamed = misnamed;
            open.push((Door::Misnamed, socket));
        }
        for profile in population.profiles() {
            let own = match Door::of(profile) {
                None => None,
                Some(door) => {
                    let (address, socket) = listen(Ipv4Addr::LOCALHOST, 0)?;
                    open.push((door, socket));
                    Some(address)
                }
            };
            doors.own.push(own);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("receiver")
            .enable_all()
            .build()
            .map_err(ReceiverError::Threads)?;
        let keys = (0..population.active()).map(|at| Keys::new(population.secret(at).reveal())).collect();
        let hall = Arc::new(Hall { population, ledger, keys });
        let (cancel, room) = (CancellationToken::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        for (door, socket) in open {
            let server = match door {
                Door::Fleeting { http2: true, .. } => &certificates.http2,
                Door::Right | Door::Misnamed | Door::Fleeting { .. } => &certificates.server,
            };
            let acceptor = TlsAcceptor::from(Arc::clone(server));
            let entrance = Entrance { hall: hall.clone(), acceptor, room: room.clone(), door };
            runtime.spawn(entrance.open(socket, cancel.clone()));
        }
        Ok(Self { doors, ca_file, cancel, runtime: Some(runtime) })
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: a receiver that hangs on purpose would hang here.
            runtime.shutdown_background();
        }
    }
}

fn listen(host: Ipv4Addr, port: u16) -> Result<(SocketAddr, std::net::TcpListener), ReceiverError> {
    let address = SocketAddr::new(IpAddr::V4(host), port);
    let open = || {
        let socket = std::net::TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok((socket.local_addr()?, socket))
    };
    open().map_err(|cause| ReceiverError::Listen { address, cause })
}

/// All addresses of the loopback interface and no other: 127.0.0.0/8 has 16 million hosts.
fn listen_on_loopback() -> Result<(SocketAddr, std::net::TcpListener), ReceiverError> {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let open = || {
        let socket = TcpSocket::new_v4()?;
        socket.bind_device(Some(b"lo"))?;
        socket.bind(address)?;
        let socket = socket.listen(BACKLOG)?.into_std()?;
        let port = socket.local_addr()?.port();
        Ok((SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port), socket))
    };
    open().map_err(|cause| ReceiverError::Listen { address, cause })
}

struct Entrance {
    hall: Arc<Hall>,
    acceptor: TlsAcceptor,
    room: Arc<Semaphore>,
    door: Door,
}

impl Entrance {
    async fn open(self, socket: std::net::TcpListener, cancel: CancellationToken) {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => return warn!(%error, "the receivers cannot use their socket"),
        };
        let entrance = Arc::new(self);
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&entrance.room).acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (entrance, cancel) = (entrance.clone(), cancel.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = cancel.cancelled() => {}
                            () = entrance.greet(stream) => {}
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "a receiver cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn greet(&self, stream: TcpStream) {
        // An answer is one small write: without this it could wait for the acknowledgement of the one before.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        if let Door::Fleeting { .. } = self.door {
            return self.greet_fleeting(stream).await;
        }
        let manners = Manners { is_misnamed: self.door == Door::Misnamed, ..Manners::default() };
        let mut first = [0];
        let is_tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await {
            // The first byte of a TLS handshake record (RFC 8446, section 5.1); no HTTP method begins with it.
            Ok(Ok(1)) => first[0] == 0x16,
            // A connection that was opened ahead and is not used yet is silent for long: HTTP's own limits apply to it.
            Err(_) => stream.peek(&mut first).await.is_ok_and(|read| read == 1) && first[0] == 0x16,
            _ => return,
        };
        if self.door == Door::Misnamed {
            self.hall.ledger.bad_handshake();
        }
        if !is_tls {
            return serve(&self.hall, stream, manners).await;
        }
        if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await {
            serve(&self.hall, stream, manners).await;
        }
    }

    async fn greet_fleeting(&self, stream: TcpStream) {
        let Door::Fleeting { rtt, http2, requests, idle, reload } = self.door else { return };
        let until = reload.map(|every| self.hall.next_reload(every));
        let manners = Manners { is_misnamed: false, requests, idle, until };
        match rtt.is_zero() {
            true => self.greet_over(stream, http2, manners).await,
            false => self.greet_over(stretched(stream, rtt), http2, manners).await,
        }
    }

    async fn greet_over(&self, wire: impl Wire, http2: bool, manners: Manners) {
        if !http2 {
            return serve(&self.hall, wire, manners).await;
        }
        if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(wire)).await {
            http2::serve(&self.hall, stream, manners).await;
        }
    }
}

impl Hall {
    /// All connections of a receiver end together, counted from the load's beginning.
    fn next_reload(&self, every: Duration) -> Instant {
        let now = clock::now();
        let began = self.ledger.began().unwrap_or(now);
        let times = now.saturating_duration_since(began).as_millis() / every.as_millis().max(1) + 1;
        began + every * u32::try_from(times).unwrap_or(u32::MAX)
    }

    fn now_us(&self) -> u64 {
        self.ledger.time_us(clock::now())
    }
}

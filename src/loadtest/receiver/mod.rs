//! The receivers: one port that serves thousands of endpoints over HTTP and HTTPS, each behaving by its profile. They verify
//! every request, note it in the ledger and answer. They run on threads of their own, so that neither their work nor the
//! harness' shows in the other's latency. Never imports what Herald signs with.
//!
//! The first byte of a connection tells TLS from plain HTTP. A second listener, on 127.0.0.2, shows a certificate that is for
//! 127.0.0.1 only.

mod behaviour;
mod connection;
mod http;
mod tls;
pub mod verify;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::Semaphore,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::{
    connection::{Hall, serve},
    tls::Certificates,
    verify::Keys,
};
use super::{ledger::Ledger, population::Population};
use crate::clock;

/// Connections at once: Herald keeps a few for each endpoint, and each takes some KiB here. More wait to be accepted.
const MAX_CONNECTIONS: usize = 16_384;

/// Between two tries when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What a peer may take to say whether it speaks TLS, and to shake hands.
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

/// The receivers while they run. They end with this value.
pub struct Receivers {
    /// HTTP and HTTPS.
    pub address: SocketAddr,
    /// HTTPS with a certificate that is not for this address; the plain one where nobody needs it.
    pub misnamed: SocketAddr,
    /// The authority behind the certificates, for `attempt.ca_file`.
    pub ca_file: PathBuf,
    cancel: CancellationToken,
    runtime: Option<Runtime>,
}

/// One of the two addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Right,
    Misnamed,
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
        let (address, right) = listen(Ipv4Addr::LOCALHOST, 0)?;
        let mut doors = vec![(Door::Right, right)];
        let mut misnamed = address;
        if population.has_broken_tls() {
            let (other, socket) = listen(Ipv4Addr::new(127, 0, 0, 2), address.port())?;
            misnamed = other;
            doors.push((Door::Misnamed, socket));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("receiver")
            .enable_all()
            .build()
            .map_err(ReceiverError::Threads)?;
        let keys = (0..population.active()).map(|at| Keys::new(population.secret(at).reveal())).collect();
        let hall = Arc::new(Hall { population, ledger, keys });
        let acceptor = TlsAcceptor::from(Arc::clone(&certificates.server));
        let (cancel, room) = (CancellationToken::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        for (door, socket) in doors {
            let entrance = Entrance { hall: hall.clone(), acceptor: acceptor.clone(), room: room.clone(), door };
            runtime.spawn(entrance.open(socket, cancel.clone()));
        }
        Ok(Self { address, misnamed, ca_file, cancel, runtime: Some(runtime) })
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: what hangs on purpose would hang here.
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
        let mut first = [0];
        let is_tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await {
            // The first byte of a TLS handshake record (RFC 8446, section 5.1); no HTTP method begins with it.
            Ok(Ok(1)) => first[0] == 0x16,
            // A connection that was opened ahead and is not used yet says nothing for long: HTTP's own limits apply to it.
            Err(_) => stream.peek(&mut first).await.is_ok_and(|read| read == 1) && first[0] == 0x16,
            _ => return,
        };
        if self.door == Door::Misnamed {
            self.hall.ledger.bad_handshake();
        }
        if !is_tls {
            return serve(&self.hall, stream, self.door == Door::Misnamed).await;
        }
        if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await {
            serve(&self.hall, stream, self.door == Door::Misnamed).await;
        }
    }
}

impl Hall {
    fn now_us(&self) -> u64 {
        self.ledger.time_us(clock::now())
    }
}

//! Receivers of every kind on real sockets: each is a task per connection that does whatever a test wants with it.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SignatureAlgorithm};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub fn headers(&self) -> http::HeaderMap {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }
}

/// What all connections of one receiver saw.
#[derive(Clone, Default)]
pub struct Log {
    connections: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Log {
    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn note(&self, seen: Seen) {
        self.seen.lock().unwrap().push(seen);
    }

    /// Reads one request; none if the other side has closed.
    pub async fn read_request(&self, stream: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
        let seen = read_request(stream).await?;
        self.note(seen.clone());
        Some(seen)
    }
}

pub struct Receiver {
    pub address: SocketAddr,
    pub log: Log,
    accepting: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Receiver {
    /// Serves each connection by a call of `serve`.
    pub async fn start<F, S>(serve: F) -> Self
    where
        F: Fn(TcpStream, Log) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Log::default();
        let shared = log.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, SeqCst);
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { address, log, accepting }
    }

    /// Answers every request on every connection with the same bytes and keeps the connection open.
    pub async fn answering(response: &'static str) -> Self {
        Self::start(move |mut stream, log| async move {
            while log.read_request(&mut stream).await.is_some() {
                if stream.write_all(response.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
        .await
    }

    /// Writes this as the answer to the first request of each connection, and closes it.
    pub async fn answering_once(response: &'static [u8]) -> Self {
        Self::start(move |mut stream, log| async move {
            log.read_request(&mut stream).await;
            let _ = stream.write_all(response).await;
            let _ = stream.shutdown().await;
            // Reads on until the other side closes too: a close with unread bytes would be a reset.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        })
        .await
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub fn https(&self, host: &str) -> String {
        format!("https://{host}:{}/hook", self.address.port())
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut seen = Seen { head, body: bytes.split_off(head_end) };
    let length: usize = seen.header("content-length").map_or(0, |text| text.parse().unwrap());
    while seen.body.len() < length {
        if stream.read_buf(&mut seen.body).await.ok()? == 0 {
            return None;
        }
    }
    Some(seen)
}

/// An authority of our own, whose keys use one algorithm; a sender is told to trust it.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    algorithm: &'static SignatureAlgorithm,
}

impl Authority {
    pub fn new() -> Self {
        Self::with(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    pub fn with(algorithm: &'static SignatureAlgorithm) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // A name of its own: two authorities with one name could only be told apart by their signatures.
        static AUTHORITIES: AtomicUsize = AtomicUsize::new(0);
        let name = format!("Authority {}", AUTHORITIES.fetch_add(1, SeqCst));
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate_for(algorithm).unwrap();
        Self { issuer: CertifiedIssuer::self_signed(params, key).unwrap(), algorithm }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for `name` and its key, both as PEM, for a server that is not ours.
    pub fn certificate(&self, name: &str) -> (String, String) {
        self.certificate_with(name, |_| ())
    }

    /// The same, changed before it is signed.
    pub fn certificate_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A receiver's TLS with a certificate for `name`, changed by `change` before it is signed.
    pub fn acceptor(&self, name: &str, alpn: &[&str], change: impl FnOnce(&mut CertificateParams)) -> TlsAcceptor {
        Arc::new(self.server_config(name, alpn, change)).into()
    }

    pub fn server_config(
        &self,
        name: &str,
        alpn: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> ServerConfig {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate_for(self.algorithm).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        server_config(certificate.der().clone(), &key, alpn)
    }
}

/// A self-signed certificate that calls itself an authority, as `openssl req -x509` makes them; and its PEM.
pub fn self_made_authority_acceptor(name: &str) -> (TlsAcceptor, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    (acceptor(certificate.der().clone(), &key, &["http/1.1"]), certificate.pem())
}

/// A self-signed certificate.
pub fn self_signed_acceptor(name: &str) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    acceptor(certificate.der().clone(), &key, &["http/1.1"])
}

fn acceptor(certificate: CertificateDer<'static>, key: &KeyPair, alpn: &[&str]) -> TlsAcceptor {
    Arc::new(server_config(certificate, key, alpn)).into()
}

fn server_config(certificate: CertificateDer<'static>, key: &KeyPair, alpn: &[&str]) -> ServerConfig {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(herald::tls::provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

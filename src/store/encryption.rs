//! Owns how a connection to Redis is encrypted: whom Herald believes to be Redis, and with what it shows itself. All of it is read
//! anew for each connection, so a certificate is replaced without a restart. Names are always checked. Never speaks to Redis.

use std::{
    error::Error,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::io::tcp::socket2::SockRef;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, ServerName},
    sign::SingleCertAndKey,
};
use rustls_platform_verifier::Verifier;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{connection::tcp_keepalive, error::REACHABLE};
use crate::{
    facts::certificate::not_after_s,
    telemetry::certificates::{self, Use},
    tls::{self, FileError, IdentityFiles, NamedFile, PemError},
};

/// Of the time that connecting may take; the rest is for finding out why it took so long.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// The files that settings name; with none, the system's authorities are trusted and Redis is shown no certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The only authorities that are trusted then.
    pub authority: Option<PathBuf>,
    pub identity: Option<IdentityFiles>,
}

/// Of one `rediss://` server.
pub(super) struct Encryption {
    host: String,
    port: u16,
    files: TlsFiles,
    /// What was last made of the files. They may be replaced one after the other: between the two they do not fit.
    last: Arc<Mutex<Option<Arc<Trust>>>>,
}

struct Trust {
    client: Arc<ClientConfig>,
    own: Option<CertificateDer<'static>>,
}

/// Why there is no connection: in words, and what to do.
#[derive(Debug)]
pub(super) struct Refused {
    pub cause: String,
    pub remedy: &'static str,
}

impl Refused {
    fn not_encrypted() -> Self {
        let cause = "it does not speak TLS at this port".to_owned();
        Self { cause, remedy: "name its tls-port in redis.url, or write redis://" }
    }
}

impl Encryption {
    pub fn new(host: String, port: u16, files: TlsFiles) -> Self {
        Self { host, port, files, last: Arc::default() }
    }

    /// The same for another node of the same Redis.
    pub fn at(&self, host: String, port: u16) -> Self {
        Self { host, port, files: self.files.clone(), last: self.last.clone() }
    }

    /// What is in the files now.
    pub fn check(&self) -> Result<(), FileError> {
        read(&self.files).map(drop)
    }

    /// A stream on which Redis has said something. In TLS 1.3 a server that refuses its client's certificate says so only when
    /// the handshake is over for the client, so the first answer is waited for.
    pub async fn connect(&self) -> Result<TlsStream<TcpStream>, Refused> {
        let trust = self.trust().await?;
        let tcp = tcp(&self.host, self.port).await?;
        let name = ServerName::try_from(self.host.clone()).map_err(|_| Refused {
            cause: format!("{} is no name that a certificate can have", self.host),
            remedy: "put Redis' name or address into redis.url",
        })?;
        let agreed = timeout(HANDSHAKE, TlsConnector::from(trust.client.clone()).connect(name, tcp)).await;
        let mut stream = match agreed {
            Ok(agreed) => agreed.map_err(of_io)?,
            // A Redis without TLS takes the first bytes for a command that goes on.
            Err(_) if answers_plainly(&self.host, self.port).await => return Err(Refused::not_encrypted()),
            Err(_) => {
                let cause = "it did not answer the handshake in time".to_owned();
                return Err(Refused { cause, remedy: REACHABLE });
            }
        };
        // Whoever it is that asks, every user gets an answer to it.
        stream.write_all(b"PING\r\n").await.map_err(of_io)?;
        while stream.read_u8().await.map_err(of_io)? != b'\n' {}
        let theirs = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let ends = [theirs, trust.own.as_ref()].into_iter().flatten().filter_map(|one| not_after_s(one)).min();
        certificates::shown(Use::Redis, ends);
        Ok(stream)
    }

    async fn trust(&self) -> Result<Arc<Trust>, Refused> {
        let files = self.files.clone();
        // A disk may be slow, and a worker's thread has more to do.
        let made = spawn_blocking(move || read(&files))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (made, &*last) {
            (Ok(trust), _) => Ok(last.insert(Arc::new(trust)).clone()),
            (Err(error), Some(last)) => {
                tracing::warn!(%error, "Redis is shown the certificate that was read before");
                Ok(last.clone())
            }
            (Err(error), None) => {
                Err(Refused { cause: error.to_string(), remedy: "mend the file: it is read for each connection" })
            }
        }
    }
}

fn read(files: &TlsFiles) -> Result<Trust, FileError> {
    let provider = Arc::new(tls::provider());
    let authority = files.authority.clone().map(|path| NamedFile { setting: "redis.ca_file", path });
    let unusable = |cause: rustls::Error, file: &Option<NamedFile>| FileError::Pem {
        file: file.clone().unwrap_or(NamedFile { setting: "redis.ca_file", path: "the system's authorities".into() }),
        cause: PemError::Unusable(cause),
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error, &authority))?;
    let builder = match &authority {
        Some(file) => builder.with_root_certificates(tls::read_authorities(file)?),
        None => {
            let verifier = Verifier::new(provider).map_err(|error| unusable(error, &authority))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let identity = files.identity.as_ref().map(IdentityFiles::read).transpose()?;
    let own = identity.as_ref().and_then(|identity| identity.cert.first().cloned());
    let mut client = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
        None => builder.with_no_client_auth(),
    };
    // Each connection has a configuration of its own: nothing could be resumed.
    client.resumption = Resumption::disabled();
    Ok(Trust { client: Arc::new(client), own })
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, Refused> {
    let connected = async {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(&tcp_keepalive())?;
        io::Result::Ok(stream)
    };
    connected.await.map_err(of_io)
}

fn of_io(error: io::Error) -> Refused {
    let inner = error.get_ref().and_then(|inner| (inner as &dyn Error).downcast_ref::<rustls::Error>());
    match inner {
        Some(error) => of_tls(error),
        None => Refused { cause: error.to_string(), remedy: REACHABLE },
    }
}

fn of_tls(error: &rustls::Error) -> Refused {
    use CertificateError as Bad;
    let (cause, remedy) = match error {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer) => (
            "its certificate is signed by an authority that Herald does not trust".to_owned(),
            "name the certificate of the authority in redis.ca_file",
        ),
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => (
            "its certificate is for another name than that in redis.url".to_owned(),
            "put a name of the certificate into redis.url, or have one made for this name",
        ),
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => (
            "its certificate has expired, by this machine's clock".to_owned(),
            "give Redis a new one (redis-cli CONFIG SET tls-cert-file …), or set the clock",
        ),
        rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            ("its certificate is not valid yet, by this machine's clock".to_owned(), "set the clock")
        }
        rustls::Error::InvalidCertificate(bad) => (
            format!("its certificate is refused: {bad}"),
            "have the authority sign one that says what Redis is, and give its own certificate in redis.ca_file",
        ),
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure) => (
            "it wants a certificate of its client, and has got none that it takes".to_owned(),
            "name one and its key in redis.certificate_file and redis.key_file",
        ),
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => (
            "it says that Herald's certificate has expired".to_owned(),
            "put a new one into redis.certificate_file and redis.key_file: they are read for each connection",
        ),
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError),
        ) => (
            format!("it refuses Herald's certificate ({alert:?})"),
            "let redis.certificate_file be signed by an authority of Redis' tls-ca-cert-file",
        ),
        rustls::Error::InvalidMessage(_) => return Refused::not_encrypted(),
        other => (format!("TLS failed: {other}"), "look at Redis' log"),
    };
    Refused { cause, remedy }
}

/// Whether a Redis is there that does not encrypt. Costs a connection: for a message alone.
async fn answers_plainly(host: &str, port: u16) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.write_all(b"PING\r\n").await?;
        stream.read_u8().await
    };
    matches!(asked.await, Ok(b'+' | b'-'))
}

/// Whether somebody who has hung up on a client speaks TLS there. Costs a connection: for a message alone.
pub(super) async fn is_spoken_at(host: &str, port: u16) -> bool {
    let Ok(builder) =
        ClientConfig::builder_with_provider(Arc::new(tls::provider())).with_safe_default_protocol_versions()
    else {
        return false;
    };
    let nobody = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let (Ok(name), Ok(tcp)) = (ServerName::try_from(host.to_owned()), TcpStream::connect((host, port)).await) else {
        return false;
    };
    // Nobody is trusted, so whoever speaks TLS fails by its certificate, or is quicker in refusing.
    let Err(error) = TlsConnector::from(Arc::new(nobody)).connect(name, tcp).await else { return true };
    let inner = error.get_ref().and_then(|inner| (inner as &dyn Error).downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_)))
}

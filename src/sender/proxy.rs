//! The way out where there is only one: an egress proxy, asked by `CONNECT` for the address that the guard has checked, so that it
//! has no name to resolve by itself. Knows nothing of receivers.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The head of an answer to `CONNECT`: a line, and a page of headers at most.
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// Addresses of a receiver that a proxy is asked for: each may take as long as the proxy waits for it.
const MAX_ADDRESSES: usize = 3;

/// Where it is and how to get in. `Debug` leaves user and password out.
#[derive(Clone, PartialEq, Eq)]
pub struct EgressProxy {
    pub is_https: bool,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// User and password, as they are.
    pub user: Option<(String, String)>,
    /// It is told the receiver's name, and resolves that by itself.
    pub by_name: bool,
}

impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EgressProxy({}:{})", self.host, self.port)
    }
}

/// Why there is no way through it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("the egress proxy cannot be reached: {0}")]
    Unreachable(#[source] io::Error),
    #[error("the egress proxy was silent until the time for connecting was over")]
    Silent,
    #[error("the egress proxy wants a user and a password, or refuses those in attempt.egress_proxy (407)")]
    Denied,
    #[error("the egress proxy refuses {target} ({status})")]
    Refused { target: String, status: u16 },
    #[error("the egress proxy does not answer as one: is attempt.egress_proxy its address?")]
    NoProxy,
}

impl ProxyError {
    /// It may lead to another address of the same receiver.
    fn is_about_the_address(&self) -> bool {
        matches!(self, Self::Refused { status: 500.., .. })
    }
}

/// What a connection runs on.
pub(super) enum Way {
    Direct(TcpStream),
    /// To a proxy that is reached by TLS; what is agreed with the receiver is inside.
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl EgressProxy {
    /// A way to the receiver, through the first of its addresses that the proxy reaches.
    pub(super) async fn connect(
        &self,
        tls: &TlsConnector,
        name: &str,
        addresses: &[SocketAddr],
        deadline: Instant,
    ) -> Result<(Way, SocketAddr), ProxyError> {
        let mut failed = ProxyError::NoProxy;
        let tried = if self.by_name { 1 } else { MAX_ADDRESSES };
        for address in addresses.iter().take(tried) {
            let target = if self.by_name { format!("{name}:{}", address.port()) } else { address.to_string() };
            let asked = timeout_at(deadline, self.ask(tls, &target)).await.unwrap_or(Err(ProxyError::Silent));
            match asked {
                Ok(way) => return Ok((way, *address)),
                Err(error) if error.is_about_the_address() => failed = error,
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    async fn ask(&self, tls: &TlsConnector, target: &str) -> Result<Way, ProxyError> {
        let mut way = self.open(tls).await.map_err(ProxyError::Unreachable)?;
        let authorization = self.user.as_ref().map_or_else(String::new, |(user, password)| {
            format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
        });
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
        way.write_all(request.as_bytes()).await.map_err(ProxyError::Unreachable)?;
        way.flush().await.map_err(ProxyError::Unreachable)?;
        match read_status(&mut way).await? {
            200..=299 => Ok(way),
            407 => Err(ProxyError::Denied),
            status => Err(ProxyError::Refused { target: target.to_owned(), status }),
        }
    }

    async fn open(&self, tls: &TlsConnector) -> io::Result<Way> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        if !self.is_https {
            return Ok(Way::Direct(stream));
        }
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        Ok(Way::Encrypted(Box::new(tls.connect(name, stream).await?)))
    }
}

/// Reads the head of the answer and not a byte more: what comes then is the receiver's.
async fn read_status(way: &mut Way) -> Result<u16, ProxyError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD_BYTES {
            return Err(ProxyError::NoProxy);
        }
        match way.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) if head.is_empty() => return Err(ProxyError::Unreachable(io::ErrorKind::UnexpectedEof.into())),
            Err(_) => return Err(ProxyError::NoProxy),
        }
    }
    let status = head.strip_prefix(b"HTTP/1.").and_then(|rest| std::str::from_utf8(rest.get(2..5)?).ok());
    status.and_then(|status| status.parse().ok()).ok_or(ProxyError::NoProxy)
}

impl AsyncRead for Way {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Direct(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Way {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Direct(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Encrypted(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Direct(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Direct(stream) => stream.is_write_vectored(),
            Self::Encrypted(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Direct(stream) => Pin::new(stream).poll_flush(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Direct(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

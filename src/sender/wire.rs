//! Watches a connection's bytes on their way in: has anything come since the request, and is it still an answer or a flood?
//! The HTTP library reads interim answers without end and lets nobody count them. Never parses a head; it only finds where
//! one begins.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Semaphore,
};
use tokio_rustls::client::TlsStream;

use super::{
    frames::{Frames, MAX_IDLE_FRAMES},
    proxy::Way,
};

/// Interim answers (1xx) to one request: a server sends one or two. Each may be as large as a head.
pub(super) const MAX_INTERIM: u32 = 16;

/// Bytes of all of them together: as many as the head that they announce may have.
const MAX_INTERIM_BYTES: usize = 32 * 1024;

/// Bytes from the socket since the last request of its connection began, whatever they are: bodies, padding, TLS' own
/// messages, what comes for streams that we cut. A hundred streams' windows, heads and interim answers are less.
const MAX_IDLE_BYTES: u64 = 16 * 1024 * 1024;

/// Streams used before an HTTP/2 receiver has said how many it allows, half a round trip after the first: it would refuse
/// more.
pub(super) const STREAMS_UNASKED: usize = 1;

/// A receiver that sends more than any answer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flood {
    #[error("more than {MAX_INTERIM} interim answers (1xx), or more than {MAX_INTERIM_BYTES} bytes of them")]
    Interim,
    #[error("more than {MAX_IDLE_FRAMES} HTTP/2 frames that answer nothing")]
    Frames,
    #[error("more than {MAX_IDLE_BYTES} bytes since it was last asked")]
    Bytes,
}

/// What the exchange and the connection know of each other.
#[derive(Debug)]
pub(super) struct Watch {
    /// A request begins: what comes next is its answer.
    begins: AtomicBool,
    /// Anything has come since.
    answered: AtomicBool,
    flooded: AtomicBool,
    /// It wants another client certificate, or one at all.
    refuses_certificate: AtomicBool,
    /// Bytes since, from the socket.
    bytes: AtomicU64,
    /// Streams that an HTTP/2 receiver allows at a time.
    streams: AtomicUsize,
    /// Closed when it has said so. It never has a permit.
    settings: Semaphore,
    /// The other end.
    peer: Option<SocketAddr>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            begins: AtomicBool::default(),
            answered: AtomicBool::default(),
            flooded: AtomicBool::default(),
            refuses_certificate: AtomicBool::default(),
            bytes: AtomicU64::default(),
            streams: AtomicUsize::new(STREAMS_UNASKED),
            settings: Semaphore::new(0),
            peer: None,
        }
    }
}

impl Watch {
    pub(super) fn begin(&self) {
        self.answered.store(false, Relaxed);
        self.bytes.store(0, Relaxed);
        self.begins.store(true, Relaxed);
    }

    #[cfg(test)]
    pub(super) fn is_settled(&self) -> bool {
        self.settings.is_closed()
    }

    /// How many streams an HTTP/2 receiver allows at a time, as it said last.
    pub(super) fn streams(&self) -> usize {
        self.streams.load(Relaxed)
    }

    /// Its settings have come.
    pub(super) fn allows(&self, streams: Option<u32>) {
        match streams {
            Some(streams) => self.streams.store(streams as usize, Relaxed),
            // A receiver that begins without mentioning it allows any number.
            None if !self.settings.is_closed() => self.streams.store(usize::MAX, Relaxed),
            None => {}
        }
        self.settings.close();
    }

    /// Waits for an HTTP/2 receiver's settings.
    pub(super) async fn has_settings(&self) {
        let _ = self.settings.acquire().await;
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    pub(super) fn is_flooded(&self) -> bool {
        self.flooded.load(Relaxed)
    }

    pub(super) fn refuses_certificate(&self) -> bool {
        self.refuses_certificate.load(Relaxed)
    }
}

/// Whether a receiver has ended TLS because of the certificate that it was shown, or was not. In TLS 1.3 it says so only when the
/// handshake is over for whoever began it, and HTTP/2's library passes only the text of it on.
pub(super) fn refuses_certificate(error: &io::Error) -> bool {
    use rustls::AlertDescription as Alert;
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::AlertReceived(alert)) = tls else { return false };
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}

/// A socket whose bytes are counted below TLS and HTTP: nothing above could count padding and what comes for a cut stream.
pub(super) struct Metered {
    io: Way,
    watch: Arc<Watch>,
}

impl Metered {
    pub(super) fn new(io: Way, peer: SocketAddr) -> Self {
        Self { io, watch: Arc::new(Watch { peer: Some(peer), ..Watch::default() }) }
    }
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let read = (buf.filled().len() - before) as u64;
        if self.watch.bytes.fetch_add(read, Relaxed) + read > MAX_IDLE_BYTES {
            self.watch.flooded.store(true, Relaxed);
            return Poll::Ready(Err(io::Error::other(Flood::Bytes)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

enum Io {
    Plain(Metered),
    Tls(Box<TlsStream<Metered>>),
}

/// One connection to a receiver, plain or TLS.
pub(super) struct Wire {
    io: Io,
    watch: Arc<Watch>,
    scan: Scan,
}

impl Wire {
    pub(super) fn plain(stream: Metered) -> Self {
        let watch = Arc::clone(&stream.watch);
        Self { io: Io::Plain(stream), watch, scan: Scan::Http1(Heads::default()) }
    }

    /// Also returns whether HTTP/2 was agreed.
    pub(super) fn tls(stream: TlsStream<Metered>) -> (Self, bool) {
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let scan = if is_http2 { Scan::Http2(Frames::new()) } else { Scan::Http1(Heads::default()) };
        let watch = Arc::clone(&stream.get_ref().0.watch);
        (Self { io: Io::Tls(Box::new(stream)), watch, scan }, is_http2)
    }

    pub(super) fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }

    fn look(&mut self, read: &[u8]) -> Result<(), Flood> {
        if read.is_empty() {
            return Ok(());
        }
        if self.watch.begins.swap(false, Relaxed) {
            self.scan.begin();
        }
        self.watch.answered.store(true, Relaxed);
        let looked = self.scan.look(read, &self.watch);
        if looked.is_err() {
            self.watch.flooded.store(true, Relaxed);
        }
        looked
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        });
        if read.as_ref().is_err_and(refuses_certificate) {
            self.watch.refuses_certificate.store(true, Relaxed);
        }
        read?;
        Poll::Ready(self.look(&buf.filled()[before..]).map_err(io::Error::other))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

enum Scan {
    Http1(Heads),
    Http2(Frames),
}

impl Scan {
    fn begin(&mut self) {
        match self {
            Self::Http1(heads) => *heads = Heads::default(),
            Self::Http2(frames) => frames.idle = 0,
        }
    }

    fn look(&mut self, read: &[u8], watch: &Watch) -> Result<(), Flood> {
        match self {
            Self::Http1(heads) => heads.look(read),
            Self::Http2(frames) => frames.look(read, watch),
        }
    }
}

/// The heads of the answers to one HTTP/1 request. Only interim heads are looked at to their end; of any other, usually one
/// byte is.
#[derive(Default)]
struct Heads {
    at: At,
    count: u32,
    bytes: usize,
}

#[derive(Default, Clone, Copy)]
enum At {
    /// This many bytes of `HTTP/1.1 ` have come.
    #[default]
    Start,
    Version(usize),
    /// In an interim head; this many line ends in a row have come.
    Interim {
        line_ends: u8,
    },
    Final,
}

impl Heads {
    /// Where the status is: after `HTTP/1.1 `.
    const STATUS_AT: usize = 9;

    fn look(&mut self, read: &[u8]) -> Result<(), Flood> {
        for byte in read {
            self.at = match (self.at, *byte) {
                (At::Final, _) => return Ok(()),
                // Line ends before a head are skipped, as the library skips them.
                (At::Start, b'\r' | b'\n') => At::Start,
                (At::Start, _) => At::Version(1),
                (At::Version(Self::STATUS_AT), b'1') => {
                    self.count += 1;
                    At::Interim { line_ends: 0 }
                }
                (At::Version(Self::STATUS_AT), _) => At::Final,
                (At::Version(bytes), _) => At::Version(bytes + 1),
                (At::Interim { line_ends: 1 }, b'\n') => At::Start,
                (At::Interim { .. }, b'\n') => At::Interim { line_ends: 1 },
                (At::Interim { line_ends }, b'\r') => At::Interim { line_ends },
                (At::Interim { .. }, _) => At::Interim { line_ends: 0 },
            };
            if !matches!(self.at, At::Final) {
                self.bytes += 1;
            }
            if self.count > MAX_INTERIM || self.bytes > MAX_INTERIM_BYTES {
                return Err(Flood::Interim);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_a_receiver_sends_is_bounded_in_bytes_until_it_is_asked_again() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut metered = Metered::new(Way::Direct(stream), address);
        let (mut receiver, _) = listener.accept().await.unwrap();
        let floods = tokio::spawn(async move { while receiver.write_all(&[0; 65_536]).await.is_ok() {} });
        let mut all = vec![0; MAX_IDLE_BYTES as usize];
        for _ in 0..2 {
            metered.watch.begin();
            metered.read_exact(&mut all).await.unwrap();
        }
        let error = metered.read_exact(&mut all).await.unwrap_err();
        assert!(error.to_string().contains("more than 16777216 bytes"), "{error}");
        assert!(metered.watch.is_flooded());
        drop(metered);
        floods.await.unwrap();
    }

    /// Looked at in pieces of every size: where the network cuts changes nothing.
    fn http1(answers: &[u8]) -> Result<(), Flood> {
        let looked = |size: usize| {
            let mut heads = Heads::default();
            answers.chunks(size).try_for_each(|piece| heads.look(piece))
        };
        let whole = looked(answers.len());
        assert!((1..40).all(|size| looked(size) == whole));
        whole
    }

    const FINAL: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    #[test]
    fn a_few_interim_answers_pass_and_no_more() {
        for interim in [
            b"HTTP/1.1 100 Continue\r\n\r\n".as_slice(),
            b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nlink: </b>\r\n\r\n",
            b"HTTP/1.1 102 Bare line feeds\nx: y\n\n",
        ] {
            let answers = |count: u32| [interim.repeat(count as usize).as_slice(), FINAL].concat();
            assert_eq!(http1(&answers(0)), Ok(()));
            assert_eq!(http1(&answers(MAX_INTERIM)), Ok(()));
            assert_eq!(http1(&answers(MAX_INTERIM + 1)), Err(Flood::Interim));
        }
    }

    #[test]
    fn an_interim_answer_without_end_is_a_flood_and_a_long_body_is_none() {
        let endless = [b"HTTP/1.1 103 Hm\r\n".as_slice(), &b"x: y\r\n".repeat(MAX_INTERIM_BYTES / 6)].concat();
        assert_eq!(http1(&endless), Err(Flood::Interim));
        let body = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1_000);
        assert_eq!(http1(&[FINAL, &body].concat()), Ok(()));
    }
}

//! A connection's bytes on their way in, watched: has anything come since the request, and is it still an answer or a
//! flood? The HTTP library reads interim answers without end and lets nobody count them. Never parses a head; it only finds
//! where one begins.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// Interim answers (1xx) to one request: a server sends one or two. Each may be as large as a head.
const MAX_INTERIM: u32 = 16;

/// All of them together: as much as the head that they announce may have.
const MAX_INTERIM_BYTES: usize = 32 * 1024;

/// HTTP/2 frames that carry no answer (pings, settings, windows) between two requests of one connection. A connection that
/// carries a thousand streams has two or three for each; a request that waits for two minutes has one every five seconds.
const MAX_IDLE_FRAMES: u32 = 4096;

/// Streams of one HTTP/2 connection whose interim answers are counted at a time: more than are ever open.
const MAX_STREAMS: usize = 4096;

/// A receiver that sends more than any answer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flood {
    #[error("more than {MAX_INTERIM} interim answers (1xx), or more than {MAX_INTERIM_BYTES} bytes of them")]
    Interim,
    #[error("more than {MAX_IDLE_FRAMES} HTTP/2 frames that answer nothing")]
    Frames,
}

/// What the exchange and the connection know of each other.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// A request begins: what comes next is its answer.
    begins: AtomicBool,
    /// Anything has come since.
    answered: AtomicBool,
    flooded: AtomicBool,
}

impl Watch {
    pub(super) fn begin(&self) {
        self.answered.store(false, Relaxed);
        self.begins.store(true, Relaxed);
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    pub(super) fn is_flooded(&self) -> bool {
        self.flooded.load(Relaxed)
    }
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One connection to a receiver, plain or TLS.
pub(super) struct Wire {
    io: Io,
    watch: Arc<Watch>,
    scan: Scan,
}

impl Wire {
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self { io: Io::Plain(stream), watch: Arc::default(), scan: Scan::Http1(Heads::default()) }
    }

    /// Also says whether HTTP/2 was agreed.
    pub(super) fn tls(stream: TlsStream<TcpStream>) -> (Self, bool) {
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let scan = if is_http2 { Scan::Http2(Frames::new()) } else { Scan::Http1(Heads::default()) };
        (Self { io: Io::Tls(Box::new(stream)), watch: Arc::default(), scan }, is_http2)
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
        let looked = self.scan.look(read);
        if looked.is_err() {
            self.watch.flooded.store(true, Relaxed);
        }
        looked
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        })?;
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

    fn look(&mut self, read: &[u8]) -> Result<(), Flood> {
        match self {
            Self::Http1(heads) => heads.look(read),
            Self::Http2(frames) => frames.look(read),
        }
    }
}

/// The heads of the answers to one HTTP/1 request. Only interim ones are looked at to their end: usually one byte is.
#[derive(Default)]
struct Heads {
    at: At,
    count: u32,
    bytes: usize,
}

#[derive(Default, Clone, Copy)]
enum At {
    /// So many bytes of `HTTP/1.1 ` have come.
    #[default]
    Start,
    Version(usize),
    /// In an interim head; so many line ends in a row have come.
    Interim {
        line_ends: u8,
    },
    Final,
}

impl Heads {
    /// Where the status stands: behind `HTTP/1.1 `.
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

/// The frames of an HTTP/2 connection, as far as their headers tell (RFC 9113, section 4.1).
struct Frames {
    header: [u8; Self::HEADER],
    have: usize,
    /// Of the frame that is coming.
    left: usize,
    /// Heads that did not end their stream: interim ones, and the one before a body.
    heads: BTreeMap<u32, u32>,
    /// Since the last request began.
    idle: u32,
}

impl Frames {
    const HEADER: usize = 9;
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const END_STREAM: u8 = 1;

    fn new() -> Self {
        Self { header: [0; Self::HEADER], have: 0, left: 0, heads: BTreeMap::new(), idle: 0 }
    }

    fn look(&mut self, mut read: &[u8]) -> Result<(), Flood> {
        while !read.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(read.len());
                self.left -= skipped;
                read = &read[skipped..];
                continue;
            }
            let taken = (Self::HEADER - self.have).min(read.len());
            self.header[self.have..self.have + taken].copy_from_slice(&read[..taken]);
            self.have += taken;
            read = &read[taken..];
            if self.have == Self::HEADER {
                self.have = 0;
                self.begins()?;
            }
        }
        Ok(())
    }

    fn begins(&mut self) -> Result<(), Flood> {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = self.header;
        self.left = u32::from_be_bytes([0, a, b, c]) as usize;
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        let ends = flags & Self::END_STREAM != 0;
        match kind {
            Self::DATA | Self::HEADERS if ends => {
                self.heads.remove(&stream);
            }
            // A body follows no interim head. We may cut it, and then its end never comes.
            Self::DATA if self.left > 0 => {
                self.heads.remove(&stream);
            }
            Self::HEADERS => {
                // The lowest began first, and is the likeliest to have ended on our side alone.
                if self.heads.len() >= MAX_STREAMS && !self.heads.contains_key(&stream) {
                    self.heads.pop_first();
                }
                let heads = self.heads.entry(stream).or_default();
                *heads += 1;
                if *heads > MAX_INTERIM + 1 {
                    return Err(Flood::Interim);
                }
            }
            other => {
                if other == Self::RST_STREAM {
                    self.heads.remove(&stream);
                }
                self.idle += 1;
                if self.idle > MAX_IDLE_FRAMES {
                    return Err(Flood::Frames);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
        let length = (length as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.resize(frame.len() + u32::from_be_bytes(length) as usize, 0xff);
        frame
    }

    fn http2(frames: &[Vec<u8>]) -> Result<(), Flood> {
        let bytes = frames.concat();
        let looked = |size: usize| {
            let mut frames = Frames::new();
            bytes.chunks(size).try_for_each(|piece| frames.look(piece))
        };
        let whole = looked(bytes.len());
        assert!((1..40).all(|size| looked(size) == whole));
        whole
    }

    #[test]
    fn http2_counts_interim_answers_by_stream() {
        const END_HEADERS: u8 = 4;
        let interim = |stream| frame(Frames::HEADERS, END_HEADERS, stream, 30);
        let last = |stream| frame(Frames::HEADERS, END_HEADERS | Frames::END_STREAM, stream, 10);
        let fits: Vec<_> = (0..MAX_INTERIM).map(|_| interim(1)).chain([last(1)]).collect();
        assert_eq!(http2(&fits), Ok(()));
        // The same again on another stream; then one that has a body.
        let again: Vec<_> = (0..=MAX_INTERIM).map(|_| interim(3)).chain([frame(Frames::DATA, 1, 3, 900)]).collect();
        assert_eq!(http2(&[fits, again].concat()), Ok(()));
        let flood: Vec<_> = (0..MAX_INTERIM + 2).map(|_| interim(5)).collect();
        assert_eq!(http2(&flood), Err(Flood::Interim));
    }

    #[test]
    fn http2_answers_whose_end_never_comes_are_no_flood() {
        const END_HEADERS: u8 = 4;
        // We cut them, so the receiver never says that they end: with a part of the body, or before it.
        let streams = (0..MAX_STREAMS as u32 + 100).map(|n| 2 * n + 1);
        let head = |stream| frame(Frames::HEADERS, END_HEADERS, stream, 8);
        let cut: Vec<_> =
            streams.clone().flat_map(|stream| [head(stream), frame(Frames::DATA, 0, stream, 9)]).collect();
        assert_eq!(http2(&cut), Ok(()));
        assert_eq!(http2(&streams.map(head).collect::<Vec<_>>()), Ok(()));
    }

    #[test]
    fn http2_frames_that_answer_nothing_are_bounded() {
        const PING: u8 = 6;
        let pings = |count: u32| (0..count).map(|_| frame(PING, 0, 0, 8)).collect::<Vec<_>>();
        assert_eq!(http2(&pings(MAX_IDLE_FRAMES)), Ok(()));
        assert_eq!(http2(&pings(MAX_IDLE_FRAMES + 1)), Err(Flood::Frames));
        let empty: Vec<_> = (0..=MAX_IDLE_FRAMES).map(|_| frame(Frames::DATA, 0, 1, 0)).collect();
        assert_eq!(http2(&empty), Err(Flood::Frames));
    }
}

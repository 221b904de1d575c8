//! The frames of an HTTP/2 connection on their way in, as far as their headers tell, and how many streams the receiver's
//! settings allow. Counts frames that answer nothing; never looks into a frame of an answer.

use std::collections::BTreeMap;

use super::wire::{Flood, MAX_INTERIM, Watch};

/// HTTP/2 frames that carry no answer (pings, settings, windows) between two requests of one connection. A connection that
/// carries a thousand streams has two or three for each; a request that waits for two minutes has one every five seconds.
pub(super) const MAX_IDLE_FRAMES: u32 = 4096;

/// Streams of one HTTP/2 connection whose interim answers are counted at a time: more than are ever open.
const MAX_STREAMS: usize = 4096;

/// The frames of an HTTP/2 connection, as far as their headers tell (RFC 9113, section 4.1).
pub(super) struct Frames {
    header: [u8; Self::HEADER],
    have: usize,
    /// Bytes left of the frame that is coming.
    left: usize,
    /// The settings that are coming; none in any other frame.
    settings: Option<Settings>,
    /// Heads that did not end their stream: interim ones, and the one before a body.
    heads: BTreeMap<u32, u32>,
    /// Since the last request began.
    pub(super) idle: u32,
}

/// A frame of settings, as far as it has come.
#[derive(Default)]
struct Settings {
    /// The number and the value of one.
    bytes: [u8; Self::BYTES],
    have: usize,
    streams: Option<u32>,
}

impl Settings {
    const BYTES: usize = 6;
    const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];

    fn look(&mut self, read: &[u8]) {
        for byte in read {
            self.bytes[self.have] = *byte;
            self.have = (self.have + 1) % Self::BYTES;
            let [n0, n1, value @ ..] = self.bytes;
            if self.have == 0 && [n0, n1] == Self::MAX_CONCURRENT_STREAMS {
                self.streams = Some(u32::from_be_bytes(value));
            }
        }
    }
}

impl Frames {
    const HEADER: usize = 9;
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const END_STREAM: u8 = 1;
    /// On a settings frame: the settings are ours, and the frame only acknowledges them.
    const ACK: u8 = 1;

    pub(super) fn new() -> Self {
        Self { header: [0; Self::HEADER], have: 0, left: 0, settings: None, heads: BTreeMap::new(), idle: 0 }
    }

    pub(super) fn look(&mut self, mut read: &[u8], watch: &Watch) -> Result<(), Flood> {
        while !read.is_empty() {
            if self.left > 0 {
                let (skipped, rest) = read.split_at(self.left.min(read.len()));
                if let Some(settings) = &mut self.settings {
                    settings.look(skipped);
                }
                self.left -= skipped.len();
                read = rest;
                self.ends(watch);
                continue;
            }
            let taken = (Self::HEADER - self.have).min(read.len());
            self.header[self.have..self.have + taken].copy_from_slice(&read[..taken]);
            self.have += taken;
            read = &read[taken..];
            if self.have == Self::HEADER {
                self.have = 0;
                self.begins()?;
                self.ends(watch);
            }
        }
        Ok(())
    }

    /// Whether settings are now complete.
    fn ends(&mut self, watch: &Watch) {
        if let Some(settings) = self.settings.take_if(|_| self.left == 0) {
            watch.allows(settings.streams);
        }
    }

    fn begins(&mut self) -> Result<(), Flood> {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = self.header;
        self.left = u32::from_be_bytes([0, a, b, c]) as usize;
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        let ends = flags & Self::END_STREAM != 0;
        self.settings = (kind == Self::SETTINGS && flags & Self::ACK == 0).then(Settings::default);
        match kind {
            Self::DATA | Self::HEADERS if ends => {
                self.heads.remove(&stream);
            }
            // No body follows an interim head. If we cut the body, its end never comes.
            Self::DATA if self.left > 0 => {
                self.heads.remove(&stream);
            }
            Self::HEADERS => {
                // The lowest stream began first, and is the most likely to have ended on our side only.
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
    use super::{super::wire::STREAMS_UNASKED, *};

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
            let (mut frames, watch) = (Frames::new(), Watch::default());
            bytes.chunks(size).try_for_each(|piece| frames.look(piece, &watch))
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
        // We cut them, so the receiver never says that they end: some within the body, some before it.
        let streams = (0..MAX_STREAMS as u32 + 100).map(|n| 2 * n + 1);
        let head = |stream| frame(Frames::HEADERS, END_HEADERS, stream, 8);
        let cut: Vec<_> =
            streams.clone().flat_map(|stream| [head(stream), frame(Frames::DATA, 0, stream, 9)]).collect();
        assert_eq!(http2(&cut), Ok(()));
        assert_eq!(http2(&streams.map(head).collect::<Vec<_>>()), Ok(()));
    }

    #[test]
    fn the_streams_that_a_receiver_allows_are_read_from_its_settings() {
        let settings = |settings: &[(u8, u32)], flags| {
            let mut frame = frame(Frames::SETTINGS, flags, 0, 6 * settings.len());
            frame.truncate(Frames::HEADER);
            for (number, value) in settings {
                frame.extend([0, *number]);
                frame.extend(value.to_be_bytes());
            }
            frame
        };
        let first = settings(&[(4, 3), (3, 128), (5, 16_384)], 0);
        for (bytes, streams, is_known) in [
            (settings(&[], 0), usize::MAX, true),
            (settings(&[(3, 7)], 0), 7, true),
            ([first.clone(), settings(&[(4, 9)], 0)].concat(), 128, true),
            ([first.clone(), settings(&[(3, 1)], 0)].concat(), 1, true),
            (settings(&[], Frames::ACK), STREAMS_UNASKED, false),
            (first[..first.len() - 1].to_vec(), STREAMS_UNASKED, false),
            (frame(6, 0, 0, 8), STREAMS_UNASKED, false),
        ] {
            for size in 1..40 {
                let (mut frames, watch) = (Frames::new(), Watch::default());
                bytes.chunks(size).try_for_each(|piece| frames.look(piece, &watch)).unwrap();
                assert_eq!((watch.streams(), watch.is_settled()), (streams, is_known), "{size}: {bytes:?}");
            }
        }
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

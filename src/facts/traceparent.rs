//! A `traceparent`: names the trace that an event belongs to, so that a receiver's spans join its producer's. Parsed
//! once, when an entry is read; an invalid one is left out, because it does not concern the payment.
//!
//! Format: W3C Trace Context, `VERSION-TRACE-PARENT-FLAGS` in lower-case hex. Version 00 has exactly 55 bytes; later
//! ones may append something after another dash. Version ff and all-zero ids are invalid.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

use super::trace::{SpanId, TraceId};

/// The length in version 00, and of the part with which every later version begins.
const BASE_BYTES: usize = 55;

/// The longest that is passed on, with what a later version may append. A header with it fits every receiver's limits.
pub const MAX_TRACEPARENT_BYTES: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Traceparent(Box<str>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of W3C's; write it as 00-TRACE-PARENT-FLAGS, 32, 16 and 2 lower-case hex digits")]
pub struct TraceparentError;

impl Traceparent {
    /// From the bytes that a producer wrote.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        is_one(bytes).then(|| Self(String::from_utf8_lossy(bytes).into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn trace_id(&self) -> TraceId {
        TraceId(self.bytes_at(3))
    }

    /// The span of whoever sent it.
    pub fn parent_id(&self) -> SpanId {
        SpanId(self.bytes_at(36))
    }

    /// Whoever sent it records the trace.
    pub fn is_sampled(&self) -> bool {
        let [flags] = self.bytes_at(53);
        flags & 1 == 1
    }

    fn bytes_at<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        hex::decode_to_slice(&self.0[at..at + 2 * N], &mut bytes).expect("it was checked when it was made");
        bytes
    }
}

impl FromStr for Traceparent {
    type Err = TraceparentError;
    fn from_str(text: &str) -> Result<Self, TraceparentError> {
        Self::read(text.as_bytes()).ok_or(TraceparentError)
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// For a record's field: an invalid one counts as none, and is no reason to refuse the record.
pub fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Traceparent>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| text.parse().ok()))
}

fn is_one(bytes: &[u8]) -> bool {
    let Some((base, appended)) = bytes.split_at_checked(BASE_BYTES) else { return false };
    let part = |from: usize, to: usize| &base[from..to];
    let (version, trace, parent, flags) = (part(0, 2), part(3, 35), part(36, 52), part(53, 55));
    let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_some = |part: &[u8]| part.iter().any(|byte| *byte != b'0');
    let has_dashes = [2, 35, 52].iter().all(|at| base[*at] == b'-');
    let may_append = version != b"00" && appended.starts_with(b"-");
    // Whatever it means, it must be valid in a header.
    let is_plain = bytes.len() <= MAX_TRACEPARENT_BYTES && appended.iter().all(u8::is_ascii_graphic);
    has_dashes
        && [version, trace, parent, flags].into_iter().all(is_hex)
        && version != b"ff"
        && is_some(trace)
        && is_some(parent)
        && (appended.is_empty() || may_append && is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_the_standard_allows_is_one() {
        let longest = format!("cc{}-{}", &GOOD[2..], "x".repeat(MAX_TRACEPARENT_BYTES - BASE_BYTES - 1));
        for text in [
            GOOD,
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-will-be-like",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            &longest,
        ] {
            assert_eq!(text.parse::<Traceparent>().map(|found| found.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_it_forbids_is_none() {
        for text in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-"),
            &format!("{GOOD}-more"),
            &format!("cc{}.more", &GOOD[2..]),
            &format!("cc{}-mo re", &GOOD[2..]),
            &format!("cc{}-a\r\nx: y", &GOOD[2..]),
            &format!("cc{}-{}", &GOOD[2..], "x".repeat(MAX_TRACEPARENT_BYTES - BASE_BYTES)),
            &format!("ff{}", &GOOD[2..]),
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            &format!(" {}", &GOOD[1..]),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "0g-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
            "00-0af7651916cd43dd8448eb211c8031é-b7ad6b7169203331-01",
        ] {
            assert!(text.parse::<Traceparent>().is_err(), "{text:?} was taken");
        }
    }
}

//! Reads a response's body within its limits and keeps its first bytes for people. Whatever goes wrong here is noted
//! and changes no outcome: the status line alone decides. A body that is not read to its end costs its connection.

use std::{pin::pin, time::Duration};

use futures_util::FutureExt;
use tokio::time::Instant;

use super::exchange::AnswerBody;
use crate::facts::{
    outcome::{BodyEnd, MAX_SNIPPET_BYTES},
    text::steers,
};

/// Most that is read of a body: enough to finish what real receivers answer, so that the connection can be kept.
pub(super) const MAX_BODY_BYTES: usize = 16 * 1024;

/// How long a delivered event's lane waits at most for the rest of an answer that no longer changes anything.
const DELIVERED_BODY_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Body {
    pub(super) end: BodyEnd,
    pub(super) snippet: String,
}

/// Reads until the end, the limit or the deadline, whichever comes first.
pub(super) async fn read(body: &mut AnswerBody, is_success: bool, deadline: Instant) -> Body {
    let mut first = Vec::new();
    let end = {
        let mut reading = pin!(read_to_end(body, &mut first));
        // Most answers come whole with their head: they need no timer.
        match reading.as_mut().now_or_never() {
            Some(end) => end,
            None => {
                let soon = Instant::from_std(crate::clock::now()) + DELIVERED_BODY_TIMEOUT;
                let deadline = if is_success { deadline.min(soon) } else { deadline };
                tokio::time::timeout_at(deadline, reading).await.unwrap_or(BodyEnd::TimedOut)
            }
        }
    };
    Body { end, snippet: snippet(&first) }
}

async fn read_to_end(body: &mut AnswerBody, first: &mut Vec<u8>) -> BodyEnd {
    let mut read = 0;
    loop {
        match body.chunk().await {
            Ok(None) => return BodyEnd::Complete,
            Ok(Some(chunk)) => {
                let room = MAX_SNIPPET_BYTES - first.len();
                first.extend_from_slice(&chunk[..chunk.len().min(room)]);
                read += chunk.len();
            }
            Err(_) => return BodyEnd::Broken,
        }
        if read > MAX_BODY_BYTES {
            return BodyEnd::Cut;
        }
    }
}

/// Text that cannot steer a terminal, a log or a page that shows it, of at most [`MAX_SNIPPET_BYTES`].
fn snippet(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        let c = match c {
            '\t' | '\n' | '\r' => ' ',
            c if steers(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        };
        if shown.len() + c.len_utf8() > MAX_SNIPPET_BYTES {
            break;
        }
        shown.push(c);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snippet_steers_no_terminal() {
        assert_eq!(snippet(b"{\n\t\"ok\": true\r\n}"), "{  \"ok\": true  }");
        assert_eq!(snippet(b"\x1b[31mred\x00\x9b"), "\u{fffd}[31mred\u{fffd}\u{fffd}");
        assert_eq!(snippet("a\u{202e}b\u{85}c".as_bytes()), "a\u{fffd}b\u{fffd}c");
    }

    #[test]
    fn a_snippet_never_outgrows_its_limit_nor_splits_a_character() {
        let cut = "ä".repeat(MAX_SNIPPET_BYTES);
        for bytes in [vec![0xff; 400], vec![b'x'; 400], cut.into_bytes()[..255].to_vec()] {
            let shown = snippet(&bytes);
            assert!(shown.len() <= MAX_SNIPPET_BYTES && !shown.is_empty());
        }
    }
}

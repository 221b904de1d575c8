//! `herald-sequence`: a payment intent's order as a merchant sees it. It is the place of the event's entry in the
//! stream, so it grows strictly for every sequence of ids that Redis accepts, and is the same for every attempt.
//!
//! Format: `s`, 20 digits, `-`, 20 digits: both halves of an entry id, which have 64 bits each. All have the same
//! length, so they can be compared as text, in any language and in any database. They are deliberately not numbers: 128
//! bits do not fit into any common number type, and the leading letter keeps `parseInt`, `(int)` and `atoi` from
//! reading half of it and being right nearly always.

use std::{
    fmt::{self, Write},
    str::FromStr,
};

use super::id::EntryId;

/// The length of its text.
pub const SEQUENCE_BYTES: usize = 42;

const MARK: char = 's';

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sequence(pub EntryId);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a herald-sequence; it is s, 20 digits, -, 20 digits")]
pub struct SequenceError {
    text: String,
}

/// Written without the formatter's widths, because every attempt writes one.
impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char(MARK)?;
        padded(f, self.0.ms)?;
        f.write_char('-')?;
        padded(f, self.0.seq)
    }
}

fn padded(f: &mut fmt::Formatter<'_>, number: u64) -> fmt::Result {
    const ZEROS: &str = "00000000000000000000";
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(number);
    f.write_str(&ZEROS[digits.len()..])?;
    f.write_str(digits)
}

impl FromStr for Sequence {
    type Err = SequenceError;
    fn from_str(text: &str) -> Result<Self, SequenceError> {
        let bad = || SequenceError { text: text.chars().take(64).collect() };
        let id = text.strip_prefix(MARK).filter(|_| text.len() == SEQUENCE_BYTES).ok_or_else(bad)?;
        let id: EntryId = id.parse().map_err(|_| bad())?;
        // If the dash were elsewhere, the two halves would have other widths.
        if id.padded() == text[1..] { Ok(Self(id)) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ms: u64, seq: u64) -> String {
        Sequence(EntryId { ms, seq }).to_string()
    }

    #[test]
    fn its_text_grows_strictly_with_every_id_that_redis_takes() {
        let mut ids = vec![(0, 1), (1, 0), (9, 9), (9, 10), (10, 0)];
        // Counters, milliseconds, microseconds, nanoseconds, and the greatest; a million and more within one
        // millisecond.
        for ms in [42, 1_700_000_000_000, 1_700_000_000_000_000, 1_700_000_000_000_000_000, u64::MAX - 1, u64::MAX] {
            ids.extend([0, 1, 999_999, 1_000_000, 1_000_001, 1 << 53, (1 << 53) + 1, u64::MAX].map(|seq| (ms, seq)));
        }
        let texts: Vec<String> = ids.iter().map(|(ms, seq)| text(*ms, *seq)).collect();
        assert!(ids.is_sorted() && texts.is_sorted_by(|a, b| a < b), "{texts:?}");
        assert!(texts.iter().all(|text| text.len() == SEQUENCE_BYTES));
    }

    #[test]
    fn it_is_read_as_it_was_written_and_nothing_else_is() {
        assert_eq!(text(1_700_000_000_000, 7), "s00000001700000000000-00000000000000000007");
        for id in [(0, 1), (1_700_000_000_000, 7), (u64::MAX, u64::MAX)] {
            let id = EntryId { ms: id.0, seq: id.1 };
            assert_eq!(Sequence(id).to_string().parse(), Ok(Sequence(id)));
        }
        for bad in [
            "",
            "1700000000000000007",
            "1700000000000-7",
            "00000001700000000000-00000000000000000007",
            "S00000001700000000000-00000000000000000007",
            "s00000001700000000000-0000000000000000000",
            "s0000001700000000000-000000000000000000007",
            "s00000001700000000000-0000000000000000000é",
            "s99999999999999999999-00000000000000000007",
        ] {
            assert!(bad.parse::<Sequence>().is_err(), "{bad:?} was read");
        }
    }
}

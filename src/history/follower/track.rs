//! Whether the log still is the one that was read. A Redis that lost its last writes counts the same lines again, and soon has more
//! of them than were read: only what stands at the position tells.

use crate::{
    facts::log::Logged,
    history::writer::{LOG_DROPPED, LOG_LOST, LOG_UNKNOWN, Missed, Position},
    store::queries::LogEntry,
};

/// What it means that the position's own entry is not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Track {
    /// Nothing to go by yet.
    Waits,
    /// What came after it was dropped, too.
    Gap(Missed),
    /// Everything that is there is read; what is known already is not doubled.
    Anew(Missed),
}

/// Where the log lacks the entry at `from`: `first` is its first entry there or beyond, `oldest` its first of all, `end` the number of
/// its last line.
pub(super) fn find(
    from: Position,
    first: Option<&LogEntry>,
    oldest: Option<&LogEntry>,
    end: u64,
    now_ms: u64,
) -> Track {
    // Entries leave whole, the oldest first. So one that has the position's line among others, or is older, is another log's.
    let is_cut_otherwise = first.is_some_and(|first| first.first() <= from.line);
    let goes_back_further = oldest.is_some_and(|oldest| oldest.number < from.line);
    if end < from.line || is_cut_otherwise || goes_back_further {
        let lost = Missed { from_ms: from.at_ms, until_ms: now_ms.max(from.at_ms), lines: 0, why: LOG_LOST };
        // Without lines there is nothing to read anew.
        return if end == 0 { Track::Waits } else { Track::Anew(lost) };
    }
    let Some(first) = first else { return Track::Waits };
    let until_ms = first.lines().find_map(|line| Logged::read(line).ok()).map_or(now_ms, |line| line.at_ms());
    let lines = first.first() - from.line - 1;
    let why = if lines == 0 { LOG_UNKNOWN } else { LOG_DROPPED };
    Track::Gap(Missed { from_ms: from.at_ms, until_ms: until_ms.max(from.at_ms), lines, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Position = Position { line: 10, seal: 1, at_ms: 500 };

    /// The entries of a log that has these numbers.
    fn log(first_line: u64, numbers: &[u64]) -> Vec<LogEntry> {
        let mut last = first_line - 1;
        let entry = |number: &u64| {
            let lines: Vec<String> = (last..*number).map(|_| "[]".to_owned()).collect();
            last = *number;
            LogEntry { number: *number, text: lines.join("\n").into() }
        };
        numbers.iter().map(entry).collect()
    }

    fn found(log: &[LogEntry]) -> Track {
        let first = log.iter().find(|entry| entry.number >= FROM.line);
        find(FROM, first, log.first(), log.last().map_or(0, |entry| entry.number), 900)
    }

    #[test]
    fn a_log_that_was_set_back_is_another_whatever_its_length_now() {
        for numbers in [&[8][..], &[8, 10], &[8, 12], &[9, 12, 30], &[8, 11, 14], &[12], &[30]] {
            let lost = Missed { from_ms: 500, until_ms: 900, lines: 0, why: LOG_LOST };
            assert_eq!(found(&log(1, numbers)), Track::Anew(lost), "{numbers:?}");
        }
        assert_eq!(
            found(&log(9, &[12, 13])),
            Track::Anew(Missed { from_ms: 500, until_ms: 900, lines: 0, why: LOG_LOST })
        );
    }

    #[test]
    fn a_log_that_was_trimmed_is_the_same_and_what_it_dropped_is_counted() {
        let gap = |lines, why| Track::Gap(Missed { from_ms: 500, until_ms: 900, lines, why });
        assert_eq!(found(&log(15, &[16, 20])), gap(4, LOG_DROPPED));
        assert_eq!(found(&log(11, &[12, 20])), gap(0, LOG_UNKNOWN), "nothing tells which log it is");
        assert_eq!(found(&[]), Track::Waits);
        assert_eq!(find(FROM, None, None, 20, 900), Track::Waits, "all of it was dropped, and more will come");
    }
}

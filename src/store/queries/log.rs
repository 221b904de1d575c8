//! Reads the attempt log: for people from its newest line backwards, for the history from where that stands onwards. It is
//! capped and has no index, so a look goes only so far and says how far.

use bytes::Bytes;

use super::{EventsRead, Queries, STRIDE};
use crate::{
    facts::{
        id::{AccountId, DeliveryId, EndpointId, EventId, IntentId},
        log::Logged,
    },
    store::error::StoreError,
};

/// Entries in the first command of a look. An entry holds the lines of a whole batch; how many is only known when it is
/// read.
const FIRST_STRIDE: usize = 4;

/// In the hash of histories, beside what each has read: the log's own id.
const LOG_ID: &str = "log";

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// What to look for; an empty filter matches every line.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogFilter {
    pub delivery: Option<DeliveryId>,
    pub event: Option<EventId>,
    pub intent: Option<IntentId>,
    pub endpoint: Option<EndpointId>,
    pub account: Option<AccountId>,
    pub from_ms: Option<u64>,
    pub until_ms: Option<u64>,
    /// Only lines after this one, by their numbers: what is older is known from elsewhere.
    pub after: Option<u64>,
}

impl LogFilter {
    fn fits(&self, line: &Logged) -> bool {
        let at_ms = line.at_ms();
        self.delivery.as_ref().is_none_or(|id| Some(id) == line.delivery().as_ref())
            && self.event.as_ref().is_none_or(|event| Some(event) == line.event())
            && self.intent.as_ref().is_none_or(|intent| Some(intent) == line.intent())
            && self.endpoint.as_ref().is_none_or(|endpoint| Some(endpoint) == line.endpoint())
            && self.account.as_ref().is_none_or(|account| Some(account) == line.account())
            && self.from_ms.is_none_or(|from| at_ms >= from)
            && self.until_ms.is_none_or(|until| at_ms < until)
    }
}

/// One entry of the log: the lines of a batch. Its number is that of its last line, counted from the first line ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    pub number: u64,
    pub text: Bytes,
}

impl LogEntry {
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.text.split(|byte| *byte == b'\n')
    }

    /// The number of its first line.
    pub fn first(&self) -> u64 {
        self.number.saturating_sub(self.lines().count() as u64 - 1)
    }
}

/// How far a history has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryRead {
    /// The number of the last line.
    pub line: u64,
    /// When that was so: Redis' time, ms since 1970.
    pub at_ms: u64,
    /// Bytes of a line, on average.
    pub line_bytes: u64,
}

impl HistoryRead {
    fn to_text(self) -> String {
        format!("{} {} {}", self.line, self.at_ms, self.line_bytes)
    }

    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ' ').map(|part| part.parse().ok());
        Some(Self { line: parts.next()??, at_ms: parts.next()??, line_bytes: parts.next()?? })
    }
}

/// What a look found, and how far it went.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogPage {
    /// Newest first.
    pub lines: Vec<Logged>,
    pub looked: usize,
    /// When the attempt of the oldest line that was looked at began, ms since 1970; `None` if none could be read.
    pub back_to_ms: Option<u64>,
    /// It reached the oldest line that the log has.
    pub reached_end: bool,
    /// Older lines were dropped: the log does not tell the whole story.
    pub was_cut: bool,
    /// Of several logs: of one of them, the look ended before it had found as much as was asked for.
    pub fell_short: bool,
    /// Lines that no Herald of this version wrote.
    pub unreadable: usize,
}

impl LogPage {
    fn look_at(&mut self, line: &[u8], filter: &LogFilter) {
        self.looked += 1;
        let Ok(line) = Logged::read(line) else {
            self.unreadable += 1;
            return;
        };
        self.back_to_ms = Some(line.at_ms());
        if filter.fits(&line) {
            self.lines.push(line);
        }
    }
}

impl Queries {
    /// Up to `max` matching lines, after a look at up to `max_look` lines.
    pub async fn attempts(&mut self, filter: &LogFilter, max: usize, max_look: usize) -> Result<LogPage, StoreError> {
        let mut page = LogPage { was_cut: self.log_was_cut().await?, ..LogPage::default() };
        let (mut end, mut stride, mut entries_seen) = ("+".to_owned(), FIRST_STRIDE, 0);
        let from = filter.after.map_or("-".to_owned(), |after| format!("({after}"));
        loop {
            let mut command = redis::cmd("XREVRANGE");
            command.arg(self.keys.attempts()).arg(end).arg(&from).arg("COUNT").arg(stride);
            let entries: Vec<(String, Fields)> = self.connection.query("read the attempt log", &command).await?;
            let is_last = entries.len() < stride;
            end = entries.last().map_or_else(String::new, |(id, _)| format!("({id}"));
            entries_seen += entries.len();
            for (_, fields) in entries {
                for line in fields.iter().rev().flat_map(|(_, lines)| lines.rsplit(|byte| *byte == b'\n')) {
                    if page.lines.len() == max || page.looked == max_look {
                        return Ok(page);
                    }
                    page.look_at(line, filter);
                }
            }
            if is_last {
                page.reached_end = true;
                return Ok(page);
            }
            // The entries of a quiet spell are small and those before it may be large, so the stride grows by steps.
            stride = (STRIDE * entries_seen / page.looked.max(1)).clamp(1, STRIDE.min(2 * stride));
        }
    }

    /// The oldest entries of the log from the one with this number on, whatever they hold.
    pub async fn log_from(&mut self, number: u64, max: usize) -> Result<Vec<LogEntry>, StoreError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.attempts()).arg(number).arg("+").arg("COUNT").arg(max);
        let entries: Vec<(String, Fields)> = self.connection.query("follow the attempt log", &command).await?;
        let entry = |(id, fields): (String, Fields)| {
            let number = id.split_once('-').and_then(|(number, _)| number.parse().ok()).unwrap_or(0);
            let text: Vec<u8> = fields.into_iter().next().map(|(_, lines)| lines).unwrap_or_default();
            LogEntry { number, text: text.into() }
        };
        Ok(entries.into_iter().map(entry).collect())
    }

    /// When the line after this one began to wait for whoever reads the log; None if there is none that can be read.
    pub async fn logged_after_ms(&mut self, number: u64) -> Result<Option<u64>, StoreError> {
        let entries = self.log_from(number.saturating_add(1), 1).await?;
        let mut lines = entries.iter().flat_map(LogEntry::lines);
        Ok(lines.find_map(|line| Logged::read(line).ok()).map(|line| line.at_ms()))
    }

    /// The number of the newest line; 0 while there was none.
    pub async fn log_end(&mut self) -> Result<u64, StoreError> {
        let info = self.stream_info(&self.keys.attempts()).await?;
        Ok(info.map_or(0, |info| info.last_generated.ms))
    }

    /// What tells this Redis from any other, as far as histories go; made by the first that follows its log.
    pub async fn log_id(&mut self) -> Result<Option<String>, StoreError> {
        let mut command = redis::cmd("HGET");
        command.arg(self.keys.history()).arg(LOG_ID);
        self.connection.query("ask whose log this is", &command).await
    }

    /// The same; this one is taken if there is none yet.
    pub async fn log_id_or(&mut self, fresh: String) -> Result<String, StoreError> {
        let mut command = redis::cmd("HSETNX");
        command.arg(self.keys.history()).arg(LOG_ID).arg(&fresh);
        self.connection.query::<u64>("mark the log", &command).await?;
        Ok(self.log_id().await?.unwrap_or(fresh))
    }

    /// Tells the partition's owner how far a history has read, so that the log is kept for it.
    pub async fn tell_history(&mut self, history: &str, read: HistoryRead) -> Result<(), StoreError> {
        let mut command = redis::cmd("HSET");
        command.arg(self.keys.history()).arg(history).arg(read.to_text());
        self.connection.query("tell how far the history is", &command).await
    }

    /// Forgets the histories that were not heard of for so long.
    pub async fn forget_histories(&mut self, after_ms: u64) -> Result<(), StoreError> {
        let subject = "forget histories that are gone";
        let now_ms = self.now_ms().await?;
        let mut command = redis::cmd("HGETALL");
        command.arg(self.keys.history());
        let told: Vec<(String, String)> = self.connection.query(subject, &command).await?;
        let told_at = |text: &str| {
            let of_lines = HistoryRead::parse(text).map(|read| read.at_ms);
            of_lines.or_else(|| EventsRead::parse(text).map(|read| read.at_ms))
        };
        let is_gone = |text: &str| told_at(text).is_none_or(|at_ms| now_ms.saturating_sub(at_ms) > after_ms);
        for (history, _) in told.iter().filter(|(name, text)| name != LOG_ID && is_gone(text)) {
            let mut command = redis::cmd("HDEL");
            command.arg(self.keys.history()).arg(history);
            self.connection.query::<u64>(subject, &command).await?;
        }
        Ok(())
    }

    /// Whether more lines were ever added than are there now.
    async fn log_was_cut(&mut self) -> Result<bool, StoreError> {
        let Some(info) = self.stream_info(&self.keys.attempts()).await? else { return Ok(false) };
        Ok(info.added > info.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_counts_its_lines_back_from_its_number() {
        let entry = LogEntry { number: 12, text: Bytes::from_static(b"[1]\n[2]\n[3]") };
        assert_eq!((entry.first(), entry.lines().count()), (10, 3));
        let one = LogEntry { number: 1, text: Bytes::from_static(b"[1]") };
        assert_eq!(one.first(), 1);
    }

    #[test]
    fn how_far_a_history_is_reads_as_it_was_written() {
        let read = HistoryRead { line: 7, at_ms: 1_700_000_000_000, line_bytes: 231 };
        assert_eq!(HistoryRead::parse(&read.to_text()), Some(read));
        for bad in ["", "7", "7 8", "7 8 x", "-1 2 3"] {
            assert_eq!(HistoryRead::parse(bad), None, "{bad:?}");
        }
    }
}

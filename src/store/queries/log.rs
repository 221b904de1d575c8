//! Reads the attempt log from its newest line backwards. It is capped and has no index, so a look goes only so far and
//! says how far.

use super::{Queries, STRIDE};
use crate::{
    facts::{
        id::{DeliveryId, EndpointId, EventId, IntentId},
        log::LogLine,
    },
    store::error::StoreError,
};

/// Entries in the first command of a look. An entry holds the lines of a whole batch; how many is only known when it is
/// read.
const FIRST_STRIDE: usize = 4;

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// What to look for; an empty filter matches every line.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogFilter {
    pub delivery: Option<DeliveryId>,
    pub event: Option<EventId>,
    pub intent: Option<IntentId>,
    pub endpoint: Option<EndpointId>,
}

impl LogFilter {
    fn fits(&self, line: &LogLine) -> bool {
        self.delivery.as_ref().is_none_or(|id| *id == line.delivery)
            && self.event.as_ref().is_none_or(|event| *event == line.event)
            && self.intent.as_ref().is_none_or(|intent| *intent == line.intent)
            && self.endpoint.as_ref().is_none_or(|endpoint| *endpoint == line.delivery.endpoint)
    }
}

/// What a look found, and how far it went.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogPage {
    /// Newest first.
    pub lines: Vec<LogLine>,
    pub looked: usize,
    /// When the attempt of the oldest line that was looked at began, ms since 1970; `None` if none could be read.
    pub back_to_ms: Option<u64>,
    /// It reached the oldest line that the log has.
    pub reached_end: bool,
    /// Older lines were dropped: the log does not tell the whole story.
    pub was_cut: bool,
    /// Lines that no Herald of this version wrote.
    pub unreadable: usize,
}

impl LogPage {
    fn look_at(&mut self, line: &[u8], filter: &LogFilter) {
        self.looked += 1;
        let Ok(line) = LogLine::read(line) else {
            self.unreadable += 1;
            return;
        };
        self.back_to_ms = Some(line.at_ms);
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
        loop {
            let mut command = redis::cmd("XREVRANGE");
            command.arg(self.keys.attempts()).arg(end).arg("-").arg("COUNT").arg(stride);
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

    /// Whether more lines were ever added than are there now.
    async fn log_was_cut(&mut self) -> Result<bool, StoreError> {
        let Some(info) = self.stream_info(&self.keys.attempts()).await? else { return Ok(false) };
        Ok(info.added > info.length)
    }
}

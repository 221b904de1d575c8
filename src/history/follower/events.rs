//! Follows the stream itself, for `history.bodies`: as fast as it is written, and without a consumer group, because the position
//! stands in the database.

use super::{Failed, Following, Step};
use crate::{
    facts::event::{Event, MAX_EVENT_BYTES},
    history::{
        events::{KeptEvent, Source},
        writer::Missed,
    },
    store::queries::{EventsPage, EventsRead, RawEvent},
};

/// Entries read at once.
const ENTRIES: usize = 200;

/// Until an event has been read.
pub(super) const USUAL_EVENT_BYTES: u64 = 600;

impl Following<'_> {
    /// Reads and writes a page of events.
    pub(super) async fn step_events(&mut self) -> Result<Step, Failed> {
        let after = self.source.map_or_else(Default::default, |source| source.entry);
        let Some(page) = self.queries.events_after(after, ENTRIES, MAX_EVENT_BYTES).await? else {
            return Ok(Step::UpToDate);
        };
        let (to, missed) = next(self.source, &page);
        let events: Vec<KeptEvent> = page.events.iter().filter_map(|raw| kept(raw, to.read_ms)).collect();
        let has_news =
            !page.events.is_empty() || missed.is_some() || self.source.is_none_or(|from| from.entry != to.entry);
        if !has_news {
            return Ok(Step::UpToDate);
        }
        if !self.writer.write_events(self.source, to, &events, missed.as_ref()).await? {
            self.source = self.writer.source().await?;
            return Ok(Step::Overtaken);
        }
        if let Some(missed) = missed {
            self.of.metrics.history_missed(missed.lines);
            tracing::error!(events = missed.lines, why = missed.why, "the history has a gap");
        }
        self.source = Some(to);
        let bytes: usize = events.iter().map(|event| event.body.len()).sum();
        if let Some(mean) = bytes.checked_div(events.len()) {
            self.event_bytes = mean.max(1) as u64;
        }
        Ok(if to.entry < page.last { Step::More } else { Step::UpToDate })
    }

    /// Tells the owner of the partition how far this is with the events.
    pub(super) async fn tell_events(&mut self, at_ms: u64) -> Result<(), Failed> {
        // Before the first entry, too: it must not be trimmed before it was read.
        let entry = self.source.map_or_else(Default::default, |source| source.entry);
        let read = EventsRead { entry, at_ms, entry_bytes: self.event_bytes };
        Ok(self.queries.tell_history_of_events(&self.id, read).await?)
    }
}

/// How far it is after a page, and what is missing.
fn next(from: Option<Source>, page: &EventsPage) -> (Source, Option<Missed>) {
    let read_ms = page.now_ms;
    let Some(from) = from else {
        // What there was before the history began is not missing from it.
        return (
            read_on(
                Source { entry: Default::default(), added: page.added - page.length.min(page.added), read_ms },
                page,
            ),
            None,
        );
    };
    if page.last < from.entry || page.added < from.added {
        let why = "Redis has lost its stream, or part of it, and began it anew";
        let missed = Missed { from_ms: from.read_ms, until_ms: read_ms, lines: 0, why };
        let anew = Source { entry: Default::default(), added: page.added - page.length.min(page.added), read_ms };
        return (anew, Some(missed));
    }
    let to = read_on(Source { read_ms, ..from }, page);
    // Only at the end of the stream is it known how many there should have been.
    if to.entry < page.last && !page.events.is_empty() {
        return (to, None);
    }
    let lines = page.added.saturating_sub(to.added);
    let why = "events were taken from the stream before they were read (history.log_bytes)";
    let missed = (lines > 0).then_some(Missed { from_ms: from.read_ms, until_ms: read_ms, lines, why });
    (Source { entry: page.last, added: page.added, read_ms }, missed)
}

fn read_on(from: Source, page: &EventsPage) -> Source {
    let entry = page.events.last().map_or(from.entry, |event| event.entry);
    Source { entry, added: from.added + page.events.len() as u64, ..from }
}

/// None for what is no event: the quarantine has it.
fn kept(raw: &RawEvent, read_ms: u64) -> Option<KeptEvent> {
    let event = Event::parse(raw.body.clone()).ok()?;
    Some(KeptEvent {
        entry: raw.entry,
        read_ms,
        account: event.account,
        intent: event.intent,
        event: event.id,
        event_type: event.event_type.as_str().to_owned(),
        number: raw.number,
        traceparent: raw.traceparent.clone(),
        body: raw.body.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::id::EntryId;

    fn entry(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    fn page(added: u64, length: u64, last: u64, events: &[u64]) -> EventsPage {
        let raw = |ms: &u64| RawEvent {
            entry: entry(*ms),
            body: Default::default(),
            number: None,
            traceparent: String::new(),
        };
        EventsPage { length, added, last: entry(last), now_ms: 99, events: events.iter().map(raw).collect() }
    }

    fn source(ms: u64, added: u64) -> Source {
        Source { entry: entry(ms), added, read_ms: 50 }
    }

    #[test]
    fn nothing_is_missing_of_what_was_there_before_the_history_began() {
        let (to, missed) = next(None, &page(10, 3, 30, &[28, 29, 30]));
        assert_eq!((to.entry, to.added, missed), (entry(30), 10, None));
        let (to, missed) = next(None, &page(10, 0, 30, &[]));
        assert_eq!((to.entry, to.added, missed), (EntryId::ZERO, 10, None));
    }

    #[test]
    fn what_was_trimmed_before_it_was_read_is_counted_once_the_end_is_reached() {
        let (to, missed) = next(Some(source(5, 5)), &page(12, 6, 12, &[7, 8]));
        assert_eq!((to.entry, to.added, missed), (entry(8), 7, None), "who knows what came between");
        let (to, missed) = next(Some(to), &page(12, 6, 12, &[9, 10, 11]));
        assert_eq!((to.entry, missed.is_none()), (entry(11), true));
        let (to, missed) = next(Some(to), &page(12, 6, 12, &[12]));
        assert_eq!((to.entry, to.added, missed.map(|missed| missed.lines)), (entry(12), 12, Some(1)));
        let (to, missed) = next(Some(source(5, 5)), &page(9, 0, 9, &[]));
        assert_eq!((to.entry, to.added, missed.map(|missed| missed.lines)), (entry(9), 9, Some(4)), "all of it");
    }

    #[test]
    fn a_stream_that_began_anew_is_read_from_its_beginning() {
        for anew in [page(2, 2, 3, &[]), page(2, 2, 90, &[89, 90])] {
            let (to, missed) = next(Some(source(40, 7)), &anew);
            assert_eq!((to.entry, to.added), (EntryId::ZERO, 0));
            assert_eq!(missed.map(|missed| missed.lines), Some(0));
        }
    }
}

//! Follows the stream itself, for `history.bodies`: as fast as it is written, and without a consumer group, because the position
//! stands in the database.

use super::{Failed, Follower, Step, reading::Reading};
use crate::{
    facts::{
        event::{Event, MAX_EVENT_BYTES},
        id::EntryId,
        partition::Mode,
    },
    history::{
        events::{KeptEvent, Source},
        writer::{EVENTS_DROPPED, Missed, STREAM_LOST, Writer},
    },
    store::queries::{EventsPage, EventsRead, Queries, RawEvent},
};

/// Entries that one command reads.
const ENTRIES: usize = 200;

/// Beyond as many entries, or bytes of events, they are written.
const EVENTS: usize = 8_000;
const BYTES: usize = 16 << 20;

/// Until an event has been read.
pub(super) const USUAL_EVENT_BYTES: u64 = 600;

impl Reading {
    /// Reads some pages of events and writes them. Of a routed stream its parts have all that is behind the barrier.
    pub(super) async fn step_events(
        &mut self,
        of: &Follower,
        writer: &mut Writer,
        queries: &mut Queries,
    ) -> Result<Step, Failed> {
        if self.has_all_events {
            return Ok(Step::UpToDate);
        }
        let (mut to, mut missed, mut events, mut bytes, mut has_more) = (self.source, None, Vec::new(), 0, true);
        // Of entries, too: those that are no event, or come again, are not kept.
        let mut entries = 0;
        while has_more && entries < EVENTS && bytes < BYTES {
            let after = to.map_or_else(Default::default, |source| source.entry);
            let Some(mut page) = queries.events_after(after, ENTRIES, MAX_EVENT_BYTES).await? else { break };
            let mode = if page.last <= after { Mode::Worked } else { queries.mode().await? };
            if let Some(before) = to.filter(|_| to != self.source) {
                // Whoever asks for the events up to a time must be able to tell those of two pages apart.
                page.now_ms = page.now_ms.max(before.read_ms + 1);
            }
            let (reached, gap) = match mode {
                Mode::Worked => next(to, &page),
                // Where the barrier is will be known in a moment.
                Mode::Splitting { .. } => break,
                Mode::Routed { barrier, .. } if after >= barrier => {
                    self.has_all_events = true;
                    break;
                }
                Mode::Routed { barrier, .. } => {
                    page.events.retain(|event| event.entry <= barrier);
                    page.last = barrier;
                    before_parts(to, &page)
                }
            };
            if gap.is_some() && to != self.source {
                // It is told by a step of its own.
                break;
            }
            let read: Vec<KeptEvent> = page.events.iter().filter_map(|raw| kept(raw, reached.read_ms)).collect();
            entries += page.events.len();
            bytes += read.iter().map(|event| event.body.len()).sum::<usize>();
            events.extend(read);
            has_more = reached.entry < page.last;
            (to, missed) = (Some(reached), gap);
            if missed.is_some() {
                break;
            }
        }
        let Some(to) = to else { return Ok(Step::UpToDate) };
        if missed.is_none() && self.source.is_some_and(|from| from.entry == to.entry) {
            return Ok(Step::UpToDate);
        }
        if !writer.write_events(&self.book, self.source, to, &events, missed.as_ref()).await? {
            self.source = writer.source(&self.book).await?;
            return Ok(Step::Overtaken);
        }
        if let Some(missed) = missed {
            of.metrics.history_missed(missed.lines);
            tracing::error!(reason = missed.why, "the history has a gap of {} events", missed.lines);
        }
        self.source = Some(to);
        if let Some(mean) = bytes.checked_div(events.len()) {
            self.event_bytes = mean.max(1) as u64;
        }
        Ok(if has_more { Step::More } else { Step::UpToDate })
    }

    /// Tells the owner of the partition how far this is with the events.
    pub(super) async fn tell_events(&mut self, queries: &mut Queries, id: &str, at_ms: u64) -> Result<(), Failed> {
        // Before the first entry, too: it must not be trimmed before it was read.
        let entry = self.source.map_or_else(Default::default, |source| source.entry);
        let read = EventsRead { entry, at_ms, entry_bytes: self.event_bytes };
        Ok(queries.tell_history_of_events(id, read).await?)
    }
}

/// How far it is after a page, and what is missing.
fn next(from: Option<Source>, page: &EventsPage) -> (Source, Option<Missed>) {
    let read_ms = page.now_ms;
    // Of what is there none is counted yet.
    let beginning = Source { entry: EntryId::ZERO, added: page.added.saturating_sub(page.length), read_ms };
    let missed = |from: Source, until_ms: u64, lines, why| {
        Some(Missed { from_ms: accepted_ms(from.entry, from.read_ms), until_ms, lines, why })
    };
    // What there was before the history began is not missing from it.
    let Some(from) = from else { return (read_on(beginning, page), None) };
    if page.last < from.entry || page.added < from.added {
        return (beginning, missed(from, read_ms, 0, STREAM_LOST));
    }
    // Entries leave at the front. Once the last that was read is gone, too, those that left beyond it were not read.
    let left = if page.first > from.entry { beginning.added.saturating_sub(from.added) } else { 0 };
    let to = read_on(Source { read_ms, added: from.added + left, ..from }, page);
    let is_at_end = to.entry >= page.last || page.events.is_empty();
    if is_at_end && to.added > page.added {
        // Set back, and grown beyond what was read: what is there now was counted as if it came after that.
        return (beginning, missed(from, read_ms, 0, STREAM_LOST));
    }
    if left > 0 {
        let until_ms = page.events.first().map_or(read_ms, |event| accepted_ms(event.entry, read_ms));
        return (at_end(to, page, is_at_end), missed(from, until_ms, left, EVENTS_DROPPED));
    }
    // What somebody took out of its midst is only known to be missing at the end.
    let lines = if is_at_end { page.added.saturating_sub(to.added) } else { 0 };
    let missed = if lines > 0 { missed(from, read_ms, lines, EVENTS_DROPPED) } else { None };
    (at_end(to, page, is_at_end), missed)
}

/// The same of a page of a routed stream, without what its parts have: of that it cannot be told how much was ever added.
fn before_parts(from: Option<Source>, page: &EventsPage) -> (Source, Option<Missed>) {
    let read_ms = page.now_ms;
    let from = from.unwrap_or(Source { entry: EntryId::ZERO, added: page.added.saturating_sub(page.length), read_ms });
    let mut to = read_on(Source { read_ms, ..from }, page);
    if page.events.len() < ENTRIES {
        to.entry = page.last;
    }
    let left = page.added.saturating_sub(page.length).saturating_sub(from.added);
    let is_missing = page.first > from.entry && left > 0;
    to.added += left;
    let lines = if page.first <= page.last { left } else { 0 };
    let missed = Missed {
        from_ms: accepted_ms(from.entry, from.read_ms),
        until_ms: accepted_ms(page.first.min(page.last), read_ms),
        lines,
        why: EVENTS_DROPPED,
    };
    (to, is_missing.then_some(missed))
}

fn at_end(to: Source, page: &EventsPage, is_at_end: bool) -> Source {
    match is_at_end {
        true => Source { entry: page.last.max(to.entry), added: page.added, ..to },
        false => to,
    }
}

fn read_on(from: Source, page: &EventsPage) -> Source {
    let entry = page.events.last().map_or(from.entry, |event| event.entry);
    Source { entry, added: from.added + page.events.len() as u64, ..from }
}

/// When an entry was accepted, as far as its id can be a time; it was read no earlier.
fn accepted_ms(entry: EntryId, read_ms: u64) -> u64 {
    entry.age_ms(read_ms).map_or(read_ms, |_| entry.ms.min(read_ms))
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

    /// When everything here was read.
    const NOW_MS: u64 = 9_000;

    fn entry(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    /// A page of a stream that has `there` and gave out `last`, from an entry on.
    fn page(added: u64, there: &[u64], last: u64, after: u64, max: usize) -> EventsPage {
        let raw = |ms: &u64| RawEvent {
            entry: entry(*ms),
            body: Default::default(),
            number: None,
            traceparent: String::new(),
        };
        let first = entry(there.first().copied().unwrap_or(last));
        let events = there.iter().filter(|ms| **ms > after).take(max).map(raw).collect();
        EventsPage { length: there.len() as u64, added, last: entry(last), now_ms: NOW_MS, first, events }
    }

    fn source(ms: u64, added: u64) -> Source {
        Source { entry: entry(ms), added, read_ms: 50 }
    }

    #[test]
    fn nothing_is_missing_of_what_was_there_before_the_history_began() {
        let (to, missed) = next(None, &page(10, &[28, 29, 30], 30, 0, 200));
        assert_eq!((to.entry, to.added, missed), (entry(30), 10, None));
        let (to, missed) = next(None, &page(10, &[], 30, 0, 200));
        assert_eq!((to.entry, to.added, missed), (EntryId::ZERO, 10, None));
    }

    #[test]
    fn what_was_trimmed_before_it_was_read_is_counted_at_once_and_dated_from_where_the_reading_stood() {
        let there = [7, 8, 9, 10, 11, 12];
        let (to, missed) = next(Some(source(5, 5)), &page(12, &there, 12, 5, 2));
        let gap = Missed { from_ms: 5, until_ms: 7, lines: 1, why: EVENTS_DROPPED };
        assert_eq!((to.entry, to.added, missed), (entry(8), 8, Some(gap)));
        let (to, missed) = next(Some(to), &page(12, &there, 12, 8, 3));
        assert_eq!((to.entry, to.added, missed), (entry(11), 11, None));
        let (to, missed) = next(Some(to), &page(12, &there, 12, 11, 3));
        assert_eq!((to.entry, to.added, missed), (entry(12), 12, None));
        let (to, missed) = next(Some(source(5, 5)), &page(9, &[], 9, 5, 200));
        let gap = Missed { from_ms: 5, until_ms: NOW_MS, lines: 4, why: EVENTS_DROPPED };
        assert_eq!((to.entry, to.added, missed), (entry(9), 9, Some(gap)), "all of it");
    }

    #[test]
    fn what_was_taken_out_of_the_midst_is_counted_once_the_end_is_reached() {
        let there = [4, 5, 6, 8];
        let (to, missed) = next(Some(source(5, 5)), &page(8, &there, 8, 5, 1));
        assert_eq!((to.entry, to.added, missed), (entry(6), 6, None));
        let (to, missed) = next(Some(to), &page(8, &there, 8, 6, 1));
        assert_eq!((to.entry, to.added, missed.map(|missed| missed.lines)), (entry(8), 8, Some(1)));
    }

    #[test]
    fn a_stream_that_began_anew_is_read_from_its_beginning() {
        for anew in [page(2, &[2, 3], 3, 40, 200), page(2, &[89, 90], 90, 40, 200)] {
            let (to, missed) = next(Some(source(40, 7)), &anew);
            assert_eq!((to.entry, to.added), (EntryId::ZERO, 0));
            assert_eq!(missed.map(|missed| (missed.lines, missed.why)), Some((0, STREAM_LOST)));
        }
    }

    #[test]
    fn a_stream_that_was_set_back_and_has_grown_beyond_what_was_read_is_read_again() {
        let there: Vec<u64> = (1..=5).chain(41..=50).collect();
        // Seven were read; of these the last two are gone, and ten came.
        let (to, missed) = next(Some(source(40, 7)), &page(15, &there, 50, 40, 200));
        assert_eq!((to.entry, to.added), (EntryId::ZERO, 0));
        assert_eq!(missed.map(|missed| (missed.lines, missed.why)), Some((0, STREAM_LOST)));
        let (to, missed) = next(Some(to), &page(15, &there, 50, 0, 200));
        assert_eq!((to.entry, to.added, missed), (entry(50), 15, None));
    }
}

//! One stream of those whose logs are followed: how far it is read, and when it is its turn.

use std::time::{Duration, Instant};

use tracing::error;

use super::{
    Failed, Follower, Step,
    events::USUAL_EVENT_BYTES,
    track::{self, Track},
};
use crate::{
    clock,
    facts::log::Logged,
    history::{
        database::Book,
        events::Source,
        row::{Row, seal},
        writer::{Batch, Missed, Position, UNREADABLE, Writer},
    },
    store::{
        keys::PartitionKeys,
        queries::{HistoryRead, LogEntry, Queries},
    },
};

/// How long after the last line the next is looked for. Each row changes a page of each of its indexes, and a page that many rows of
/// one batch change is written once: where there is much, batches are larger.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOK_EVERY_BUSY: Duration = Duration::from_secs(2);

/// Of many streams, all together are looked at no more often than that while nothing happens.
const LOOKS_A_SECOND: u32 = 64;

/// Lines at one look that make it busy.
const BUSY_LINES: usize = 100;

/// How often somebody who looks on looks whether it still moves, and how long one is left alone that did not answer.
const LOOK_ON_EVERY: Duration = Duration::from_secs(5);

/// Entries that one command reads: each is a batch of the worker's, up to 500 lines or 2 MiB.
const ENTRIES: usize = 16;

/// Beyond as many lines, or bytes, a batch is written.
const LINES: usize = 16_000;
const BYTES: usize = 16 << 20;

/// How often the owner is told how far this is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Until a line has been read.
const USUAL_LINE_BYTES: u64 = 256;

pub(super) struct Reading {
    pub keys: PartitionKeys,
    /// This process works on the stream.
    pub is_own: bool,
    /// Somebody else reads it.
    pub is_onlooker: bool,
    pub look_at: Instant,
    pub(super) queries: Option<Queries>,
    pub(super) book: Book,
    position: Position,
    line_bytes: u64,
    /// The last look found many lines.
    is_busy: bool,
    tell_at: Instant,
    /// In a row.
    failures: u32,
    /// How far it is with the events themselves.
    pub(super) source: Option<Source>,
    pub(super) event_bytes: u64,
    /// The stream is routed, and what it had before is read: its parts have the rest.
    pub(super) has_all_events: bool,
}

impl Reading {
    /// Its owner is told of it at once, so that what is there is kept for it, too.
    pub async fn begin(keys: PartitionKeys, writer: &Writer) -> Result<Self, Failed> {
        let book = writer.book(keys.stream()).await?;
        let (position, source) = (writer.position(&book).await?, writer.source(&book).await?);
        let now = clock::now();
        Ok(Self {
            keys,
            is_own: false,
            is_onlooker: true,
            look_at: now,
            queries: None,
            book,
            position,
            line_bytes: USUAL_LINE_BYTES,
            is_busy: false,
            tell_at: now,
            failures: 0,
            source,
            event_bytes: USUAL_EVENT_BYTES,
            has_all_events: false,
        })
    }

    pub fn set_own(&mut self, is_own: bool) {
        if is_own && !std::mem::replace(&mut self.is_own, is_own) {
            (self.is_onlooker, self.look_at) = (false, clock::now());
        }
        self.is_own = is_own;
    }

    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.look_at
    }

    /// Its Redis did not answer: while it is waited for, the others wait, too.
    pub fn put_off(&mut self) {
        let pause = LOOK_ON_EVERY * 2_u32.pow(self.failures.min(4));
        (self.queries, self.look_at, self.failures) = (None, clock::now() + pause, self.failures + 1);
    }

    /// Reads and writes what there is, up to a bound, if nobody else does; `own` are this process' own streams.
    pub async fn look(&mut self, of: &Follower, writer: &mut Writer, own: usize) -> Result<(), Failed> {
        if self.is_onlooker && !self.has_stopped_moving(writer).await? {
            self.look_at = clock::now() + LOOK_ON_EVERY;
            return Ok(());
        }
        let mut queries = match self.queries.take() {
            Some(queries) => queries,
            None => of.queries(&self.keys).await?,
        };
        let mut steps = vec![self.step(of, writer, &mut queries).await?];
        if of.keeps_events() {
            steps.push(self.step_events(of, writer, &mut queries).await?);
        }
        (self.queries, self.failures) = (Some(queries), 0);
        let has_more = steps.contains(&Step::More);
        self.is_onlooker = steps.contains(&Step::Overtaken) || !self.is_own && !has_more;
        let idle = LOOK_EVERY.max(Duration::from_secs(1) * own.try_into().unwrap_or(u32::MAX) / LOOKS_A_SECOND);
        let pause = match has_more {
            _ if self.is_onlooker => LOOK_ON_EVERY,
            true => Duration::ZERO,
            false if self.is_busy => LOOK_EVERY_BUSY,
            false => idle,
        };
        self.look_at = clock::now() + pause;
        Ok(())
    }

    /// Whether the position stands where it stood at the last look.
    async fn has_stopped_moving(&mut self, writer: &Writer) -> Result<bool, Failed> {
        let was = (self.position, self.source);
        (self.position, self.source) = (writer.position(&self.book).await?, writer.source(&self.book).await?);
        Ok(was == (self.position, self.source))
    }

    /// Reads and writes one batch. The entry that the position names is read again with it: whether it is still the same tells
    /// whether this is still the same log.
    async fn step(&mut self, of: &Follower, writer: &mut Writer, queries: &mut Queries) -> Result<Step, Failed> {
        let now_ms = clock::wall_ms();
        let from = self.position;
        let (mut entries, mut has_more) = entries_from(queries, from.line).await?;
        let is_same = entries.first().is_some_and(|entry| entry.number == from.line && seal(&entry.text) == from.seal);
        let mut missed = Vec::new();
        if is_same {
            entries.remove(0);
        } else if from.line > 0 {
            match lost_track(queries, entries.first(), from).await? {
                Track::Waits => return Ok(Step::UpToDate),
                Track::Gap(gap) => missed.push(gap),
                Track::Anew(gap) => {
                    missed.push(gap);
                    (entries, has_more) = entries_from(queries, 0).await?;
                }
            }
        }
        let Some(batch) = self.batch(&entries, missed, of.keep_days(), now_ms) else {
            self.is_busy = false;
            return Ok(Step::UpToDate);
        };
        self.is_busy = batch.rows.len() > BUSY_LINES;
        if !writer.write(&self.book, from, &batch, now_ms).await? {
            self.position = writer.position(&self.book).await?;
            return Ok(Step::Overtaken);
        }
        self.position = batch.to;
        of.metrics.history_written(batch.rows.len() as u64);
        for gap in &batch.missed {
            of.metrics.history_missed(gap.lines);
            error!(reason = gap.why, "the history has a gap of {} lines", gap.lines);
        }
        has_more |= batch.to.line != entries.last().map_or(0, |entry| entry.number);
        Ok(if has_more { Step::More } else { Step::UpToDate })
    }

    /// None if there is nothing to write.
    fn batch(&mut self, entries: &[LogEntry], missed: Vec<Missed>, keep_days: u64, now_ms: u64) -> Option<Batch> {
        let mut batch = Batch { missed, ..Batch::default() };
        let (mut bytes, mut lines, mut unreadable) = (0, 0, 0);
        batch.to = self.position;
        for entry in entries {
            if lines >= LINES {
                break;
            }
            for line in entry.lines() {
                (bytes, lines) = (bytes + line.len(), lines + 1);
                match Logged::read(line) {
                    Ok(logged) => {
                        batch.to.at_ms = logged.at_ms();
                        batch.rows.push(Row::of(&logged, keep_days, now_ms));
                    }
                    Err(_) => unreadable += 1,
                }
            }
            (batch.to.line, batch.to.seal) = (entry.number, seal(&entry.text));
        }
        if unreadable > 0 {
            let at_ms = batch.to.at_ms;
            batch.missed.push(Missed { from_ms: at_ms, until_ms: at_ms, lines: unreadable, why: UNREADABLE });
        }
        if let Some(mean) = bytes.checked_div(lines) {
            self.line_bytes = mean.max(1) as u64;
        }
        (lines > 0).then_some(batch)
    }

    pub fn read(&self) -> HistoryRead {
        HistoryRead { line: self.position.line, at_ms: 0, line_bytes: self.line_bytes }
    }

    /// Tells the owner of the partition how far this is, once a second.
    pub async fn tell(&mut self, of: &Follower, writer: &Writer, id: &str, is_last: bool) -> Result<(), Failed> {
        if clock::now() < self.tell_at && !is_last {
            return Ok(());
        }
        writer.check_place()?;
        let mut queries = match self.queries.take() {
            Some(queries) => queries,
            None => of.queries(&self.keys).await?,
        };
        let at_ms = queries.now_ms().await?;
        queries.tell_history(id, HistoryRead { at_ms, ..self.read() }).await?;
        if of.keeps_events() {
            self.tell_events(&mut queries, id, at_ms).await?;
        }
        (self.queries, self.tell_at) = (Some(queries), clock::now() + TELL_EVERY);
        Ok(())
    }
}

/// A batch of entries, a few with each command: where settles are small there are a thousand of them. And whether there are more.
async fn entries_from(queries: &mut Queries, line: u64) -> Result<(Vec<LogEntry>, bool), Failed> {
    let mut entries = queries.log_from(line, ENTRIES).await?;
    let (mut lines, mut bytes, mut counted) = (0, 0, 0);
    loop {
        for entry in &entries[counted..] {
            (lines, bytes) = (lines + entry.lines().count(), bytes + entry.text.len());
        }
        let is_end = entries.len() - counted < ENTRIES;
        if is_end || lines >= LINES || bytes >= BYTES {
            return Ok((entries, !is_end));
        }
        counted = entries.len();
        let after = entries.last().map_or(line, |entry| entry.number.saturating_add(1));
        entries.extend(queries.log_from(after, ENTRIES).await?);
    }
}

/// The entry that the position names is not there any more, or another stands in its place.
async fn lost_track(queries: &mut Queries, first: Option<&LogEntry>, from: Position) -> Result<Track, Failed> {
    let end = queries.log_end().await?;
    let oldest = queries.log_from(0, 1).await?;
    let now_ms = queries.now_ms().await?;
    Ok(track::find(from, first, oldest.first(), end, now_ms))
}

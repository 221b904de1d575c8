//! Follows the attempt log into the database, until cancelled. Any number of processes may: whoever finds the position where it
//! left it writes on, and the others look on from afar until it has not moved.
//!
//! What fails, fails here: Redis keeps the log for it up to a bound, and it is tried again, later each time.

mod events;
mod outage;
mod track;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use self::{outage::Outage, track::Track};
use super::{
    DAY_MS,
    database::{Access, Database, HistoryError},
    events::Source,
    row::{Row, seal},
    writer::{Batch, Missed, Position, UNREADABLE, Writer},
};
use crate::{
    clock,
    config::HistoryUrl,
    facts::log::Logged,
    store::{
        connection::{Purpose, Redis},
        error::StoreError,
        keys::PartitionKeys,
        queries::{HistoryRead, LogEntry, Queries},
    },
    telemetry::metrics::Metrics,
};

/// How long after the last line the next is looked for. Each row changes a page of each of its indexes, and a page that many rows of
/// one batch change is written once: where there is much, batches are larger.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOK_EVERY_BUSY: Duration = Duration::from_secs(2);

/// Lines at one look that make it busy.
const BUSY_LINES: usize = 100;

/// How often somebody who looks on looks whether it still moves.
const LOOK_ON_EVERY: Duration = Duration::from_secs(5);

/// Entries that one command reads: each is a batch of the worker's, up to 500 lines or 2 MiB.
const ENTRIES: usize = 16;

/// Beyond as many lines, or bytes, a batch is written.
const LINES: usize = 16_000;
const BYTES: usize = 16 << 20;

/// How often days that are over are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(600);

/// How often the owner is told how far this is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How often the database is asked where there is nothing to write: one that is away is noticed all the same.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// What closing the database may take.
const CLOSING: Duration = Duration::from_secs(2);

/// What the last batch may take when Herald stops.
const LAST_BATCH: Duration = Duration::from_secs(2);

/// A history that nobody has heard of for this long is forgotten in Redis.
const FORGET_AFTER_MS: u64 = 7 * DAY_MS;

/// Until a line has been read.
const USUAL_LINE_BYTES: u64 = 256;

/// What a follower needs.
#[derive(Clone)]
pub struct Settings {
    pub url: HistoryUrl,
    pub keep: Duration,
    /// For how long the events themselves are kept; zero is not at all.
    pub bodies: Duration,
}

pub struct Follower {
    settings: Settings,
    redis: Redis,
    keys: PartitionKeys,
    metrics: Metrics,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(transparent)]
    Redis(#[from] StoreError),
}

/// What came of a look at the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There may be more at once.
    More,
    UpToDate,
    /// Somebody else writes.
    Overtaken,
}

impl Follower {
    pub fn new(settings: Settings, redis: Redis, keys: PartitionKeys, metrics: Metrics) -> Self {
        Self { settings, redis, keys, metrics }
    }

    /// Never returns before it is cancelled: where the database cannot be opened, that is said, and tried again.
    pub async fn run(self, cancel: CancellationToken) {
        let (mut outage, mut known) = (Outage::default(), None);
        while !cancel.is_cancelled() {
            let begun = tokio::select! {
                begun = Following::begin(&self) => begun,
                () = time_is_up(&cancel) => return,
            };
            let failed = match begun {
                Ok(mut following) => {
                    self.metrics.set_history_up(true);
                    let ended = tokio::select! {
                        ended = following.run(&cancel, &mut outage) => ended,
                        // What is not written yet is read again by whoever comes next.
                        () = time_is_up(&cancel) => Ok(()),
                    };
                    known = Some((following.id.clone(), following.read()));
                    following.close().await;
                    ended
                }
                Err(failed) => Err(failed),
            };
            self.metrics.set_history_up(false);
            if let Err(failed) = failed {
                self.metrics.history_failed();
                let pause = outage.fails(&failed, clock::now());
                if let Some((id, read)) = &known
                    && let Err(error) = self.remind(id, *read).await
                {
                    debug!(%error, "the owner is not told how far the history is");
                }
                let wait = tokio::time::sleep(pause);
                cancel.run_until_cancelled(wait).await;
            }
        }
    }

    /// Tells the owner that the history is still to read on from there.
    async fn remind(&self, id: &str, read: HistoryRead) -> Result<(), StoreError> {
        let mut queries = Queries::new(self.redis.connect(Purpose::Other).await?, self.keys.clone());
        let at_ms = queries.now_ms().await?;
        queries.tell_history(id, HistoryRead { at_ms, ..read }).await
    }

    fn keep_days(&self) -> u64 {
        self.settings.keep.as_secs().div_ceil(DAY_MS / 1_000)
    }

    fn keeps_events(&self) -> bool {
        !self.settings.bodies.is_zero()
    }
}

/// Some time after it is cancelled: a database that hangs must not keep Herald from ending.
async fn time_is_up(cancel: &CancellationToken) {
    cancel.cancelled().await;
    tokio::time::sleep(LAST_BATCH).await;
}

/// One open database and one connection to Redis, until either fails.
struct Following<'a> {
    of: &'a Follower,
    writer: Writer,
    queries: Queries,
    position: Position,
    id: String,
    place: String,
    line_bytes: u64,
    /// The last look found many lines.
    is_busy: bool,
    /// How far it is with the events themselves.
    source: Option<Source>,
    event_bytes: u64,
}

impl<'a> Following<'a> {
    async fn begin(of: &'a Follower) -> Result<Self, Failed> {
        let mut queries = Queries::new(of.redis.connect(Purpose::Other).await?, of.keys.clone());
        let log = queries.log_id_or(format!("{:016x}", rand::random::<u64>())).await?;
        let database = Database::open(&of.settings.url, of.keys.stream(), Access::Write).await?;
        database.adopt(&log).await?;
        let place = database.place().to_owned();
        let writer = Writer::new(database);
        let (position, source, id) = (writer.position().await?, writer.source().await?, writer.id().await?);
        let (line_bytes, event_bytes) = (USUAL_LINE_BYTES, events::USUAL_EVENT_BYTES);
        Ok(Self { of, writer, queries, position, id, place, line_bytes, is_busy: false, source, event_bytes })
    }

    async fn run(&mut self, cancel: &CancellationToken, outage: &mut Outage) -> Result<(), Failed> {
        let (mut pause, mut is_onlooker) = (Duration::ZERO, false);
        let (mut tidy_at, mut tell_at, mut probe_at) = (clock::now(), clock::now(), clock::now() + PROBE_EVERY);
        loop {
            let is_last = cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none();
            if is_onlooker && !self.has_stopped_moving().await? {
                pause = LOOK_ON_EVERY;
            } else {
                let mut steps = vec![self.step().await?];
                if self.of.keeps_events() {
                    steps.push(self.step_events().await?);
                }
                is_onlooker = steps.contains(&Step::Overtaken);
                pause = match steps.contains(&Step::More) {
                    _ if is_onlooker => LOOK_ON_EVERY,
                    true => Duration::ZERO,
                    false if self.is_busy => LOOK_EVERY_BUSY,
                    false => LOOK_EVERY,
                };
            }
            // Only now: a full disk lets a database be opened, and fails what is written.
            outage.is_over(&self.place);
            if clock::now() >= tell_at || is_last {
                self.writer.check_place()?;
                self.tell().await?;
                tell_at = clock::now() + TELL_EVERY;
            }
            if is_last {
                return Ok(());
            }
            if clock::now() >= probe_at {
                self.writer.position().await?;
                probe_at = clock::now() + PROBE_EVERY;
            }
            if clock::now() >= tidy_at && !is_onlooker {
                self.tidy().await?;
                tidy_at = clock::now() + TIDY_EVERY;
            }
        }
    }

    /// Whether the position stands where it stood at the last look.
    async fn has_stopped_moving(&mut self) -> Result<bool, Failed> {
        let was = std::mem::replace(&mut self.position, self.writer.position().await?);
        Ok(was == self.position)
    }

    /// Reads and writes one batch. The entry that the position names is read again with it: whether it is still the same tells
    /// whether this is still the same log.
    async fn step(&mut self) -> Result<Step, Failed> {
        let now_ms = clock::wall_ms();
        let from = self.position;
        let (mut entries, mut has_more) = self.entries_from(from.line).await?;
        let is_same = entries.first().is_some_and(|entry| entry.number == from.line && seal(&entry.text) == from.seal);
        let mut missed = Vec::new();
        if is_same {
            entries.remove(0);
        } else if from.line > 0 {
            match self.lost_track(entries.first(), from).await? {
                Track::Waits => return Ok(Step::UpToDate),
                Track::Gap(gap) => missed.push(gap),
                Track::Anew(gap) => {
                    missed.push(gap);
                    (entries, has_more) = self.entries_from(0).await?;
                }
            }
        }
        let Some(batch) = self.batch(&entries, missed, now_ms) else {
            self.is_busy = false;
            return Ok(Step::UpToDate);
        };
        self.is_busy = batch.rows.len() > BUSY_LINES;
        if !self.writer.write(from, &batch, now_ms).await? {
            self.position = self.writer.position().await?;
            return Ok(Step::Overtaken);
        }
        self.position = batch.to;
        self.of.metrics.history_written(batch.rows.len() as u64);
        for gap in &batch.missed {
            self.of.metrics.history_missed(gap.lines);
            error!(reason = gap.why, "the history has a gap of {} lines", gap.lines);
        }
        has_more |= batch.to.line != entries.last().map_or(0, |entry| entry.number);
        Ok(if has_more { Step::More } else { Step::UpToDate })
    }

    /// A batch of entries, a few with each command: where settles are small there are a thousand of them. And whether there are more.
    async fn entries_from(&mut self, line: u64) -> Result<(Vec<LogEntry>, bool), Failed> {
        let mut entries = self.queries.log_from(line, ENTRIES).await?;
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
            entries.extend(self.queries.log_from(after, ENTRIES).await?);
        }
    }

    /// The entry that the position names is not there any more, or another stands in its place.
    async fn lost_track(&mut self, first: Option<&LogEntry>, from: Position) -> Result<Track, Failed> {
        let end = self.queries.log_end().await?;
        let oldest = self.queries.log_from(0, 1).await?;
        let now_ms = self.queries.now_ms().await?;
        Ok(track::find(from, first, oldest.first(), end, now_ms))
    }

    /// None if there is nothing to write.
    fn batch(&mut self, entries: &[LogEntry], missed: Vec<Missed>, now_ms: u64) -> Option<Batch> {
        let mut batch = Batch { missed, ..Batch::default() };
        let (mut bytes, mut lines, mut unreadable) = (0, 0, 0);
        let keep_days = self.of.keep_days();
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

    fn read(&self) -> HistoryRead {
        HistoryRead { line: self.position.line, at_ms: 0, line_bytes: self.line_bytes }
    }

    /// Tells the owner of the partition how far this is.
    async fn tell(&mut self) -> Result<(), Failed> {
        let at_ms = self.queries.now_ms().await?;
        self.queries.tell_history(&self.id, HistoryRead { at_ms, ..self.read() }).await?;
        if self.of.keeps_events() {
            self.tell_events(at_ms).await?;
        }
        Ok(())
    }

    /// Before it is opened again: two that have one file open, of which one was moved, mix up what belongs to it.
    async fn close(self) {
        if tokio::time::timeout(CLOSING, self.writer.close()).await.is_err() {
            debug!("the history's database at {} does not close", self.place);
        }
    }

    async fn tidy(&mut self) -> Result<(), Failed> {
        // A clock that is ahead must not empty the history: both this machine's and Redis' say that a day is over.
        let now_ms = clock::wall_ms().min(self.queries.now_ms().await?);
        while let Some(day) = self.writer.drop_oldest(self.of.keep_days(), now_ms).await? {
            info!("dropped day {day} of the history, which is over");
        }
        let bodies_days = self.of.settings.bodies.as_secs().div_ceil(DAY_MS / 1_000);
        while let Some(day) = self.writer.drop_oldest_events(bodies_days, now_ms).await? {
            info!("dropped the events of day {day}, which is over");
        }
        Ok(self.queries.forget_histories(FORGET_AFTER_MS).await?)
    }
}

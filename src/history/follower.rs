//! Follows the logs of attempts of a stream and of all its parts into one database, until cancelled. Any number of processes may:
//! each sees first to what it works on itself; whoever finds a position where it left it writes on, and the others look on from afar
//! until it has not moved.
//!
//! What fails, fails here: Redis keeps the log for it up to a bound, and it is tried again, later each time.

mod events;
mod outage;
mod reading;
mod track;

use std::time::Duration;

use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use self::{outage::Outage, reading::Reading};
use super::{
    DAY_MS,
    database::{Access, Database, HistoryError},
    writer::Writer,
};
use crate::{
    clock,
    config::HistoryUrl,
    store::{
        connection::{Purpose, Redis},
        error::StoreError,
        keys::{KeyError, PartitionKeys},
        partitions,
        pool::Pool,
        queries::{HistoryRead, Queries},
    },
    telemetry::metrics::Metrics,
};

/// How often it looks which streams there are, and which of them this process works on.
const STREAMS_EVERY: Duration = Duration::from_secs(10);
const SHARE_EVERY: Duration = Duration::from_secs(1);

/// How often days that are over are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(600);

/// How often the database is asked where there is nothing to write: one that is away is noticed all the same.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// What closing the database may take.
const CLOSING: Duration = Duration::from_secs(2);

/// What the last batches may take when Herald stops.
const LAST_BATCH: Duration = Duration::from_secs(2);

/// A history that nobody has heard of for this long is forgotten in Redis.
const FORGET_AFTER_MS: u64 = 7 * DAY_MS;

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
    root: PartitionKeys,
    works_on: Box<dyn Fn(&str) -> bool + Send + Sync>,
    metrics: Metrics,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(transparent)]
    Redis(#[from] StoreError),
    #[error(transparent)]
    Keys(#[from] KeyError),
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
    /// Of the stream `root` and its parts; `works_on` tells which of them are this process' own now.
    pub fn new(
        settings: Settings,
        redis: Redis,
        root: PartitionKeys,
        works_on: impl Fn(&str) -> bool + Send + Sync + 'static,
        metrics: Metrics,
    ) -> Self {
        // One connection for all streams of a node.
        let redis = redis.sharing(Pool::default());
        Self { settings, redis, root, works_on: Box::new(works_on), metrics }
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
                    && let Err(error) = self.remind(id, read).await
                {
                    debug!(%error, "the owners are not told how far the history is");
                }
                let wait = tokio::time::sleep(pause);
                cancel.run_until_cancelled(wait).await;
            }
        }
    }

    /// Tells the owners that the history is still to read on from there.
    async fn remind(&self, id: &str, read: &[(PartitionKeys, HistoryRead)]) -> Result<(), StoreError> {
        for (keys, read) in read {
            let mut queries = self.queries(keys).await?;
            let at_ms = queries.now_ms().await?;
            queries.tell_history(id, HistoryRead { at_ms, ..*read }).await?;
        }
        Ok(())
    }

    async fn queries(&self, keys: &PartitionKeys) -> Result<Queries, StoreError> {
        let connection = self.redis.at_home_in(keys.slot()).connect(Purpose::Other).await?;
        Ok(Queries::new(connection, keys.clone()))
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

/// One open database, until it fails, or all that is read into it.
struct Following<'a> {
    of: &'a Follower,
    writer: Writer,
    id: String,
    place: String,
    /// Of the stream itself, and of its parts.
    readings: Vec<Reading>,
}

impl<'a> Following<'a> {
    async fn begin(of: &'a Follower) -> Result<Self, Failed> {
        let mut queries = of.queries(&of.root).await?;
        let log = queries.log_id_or(format!("{:016x}", rand::random::<u64>())).await?;
        let database = Database::open(&of.settings.url, of.root.stream(), Access::Write).await?;
        database.adopt(&log).await?;
        let place = database.place().to_owned();
        let writer = Writer::new(database);
        let id = writer.id().await?;
        let mut following = Self { of, writer, id, place, readings: Vec::new() };
        following.find_streams().await?;
        Ok(following)
    }

    /// Begins to read those that were not there before.
    async fn find_streams(&mut self) -> Result<(), Failed> {
        let connection = self.of.redis.connect(Purpose::Other).await?;
        let (layout, _) = partitions::seen(&connection, self.of.root.stream()).await?;
        let is_new = |stream: &String| self.readings.iter().all(|reading| reading.keys.stream() != stream);
        let new: Vec<String> = layout.streams().into_iter().filter(is_new).collect();
        for keys in partitions::keys_of(&new)? {
            self.readings.push(Reading::begin(keys, &self.writer).await?);
        }
        Ok(())
    }

    /// Which of them this process sees to first: its own. One that is alone is everybody's.
    fn share(&mut self) {
        let is_alone = self.readings.len() == 1;
        for reading in &mut self.readings {
            reading.set_own(is_alone || (self.of.works_on)(reading.keys.stream()));
        }
    }

    async fn run(&mut self, cancel: &CancellationToken, outage: &mut Outage) -> Result<(), Failed> {
        let began = clock::now();
        let (mut streams_at, mut tidy_at, mut probe_at) = (began + STREAMS_EVERY, began, began + PROBE_EVERY);
        loop {
            self.share();
            let next = self.readings.iter().map(|reading| reading.look_at).chain([clock::now() + SHARE_EVERY]).min();
            let wait = sleep_until(next.unwrap_or_else(clock::now).into());
            let is_last = cancel.run_until_cancelled(wait).await.is_none();
            let has_looked = self.look(is_last).await?;
            if has_looked {
                // Only now: a full disk lets a database be opened, and fails what is written.
                outage.is_over(&self.place);
            }
            if is_last {
                return Ok(());
            }
            let now = clock::now();
            if now >= streams_at {
                if let Err(error) = self.find_streams().await {
                    self.is_bearable(error)?;
                }
                streams_at = now + STREAMS_EVERY;
            }
            if now >= probe_at {
                self.writer.probe().await?;
                probe_at = now + PROBE_EVERY;
            }
            if now >= tidy_at && has_looked && self.readings.iter().any(|reading| !reading.is_onlooker) {
                self.tidy().await?;
                tidy_at = now + TIDY_EVERY;
            }
        }
    }

    /// Looks at what it is time for; at the last, at all that is its own. Whether there was anything.
    async fn look(&mut self, is_last: bool) -> Result<bool, Failed> {
        let now = clock::now();
        let own = self.readings.iter().filter(|reading| reading.is_own).count();
        let mut has_looked = false;
        for at in 0..self.readings.len() {
            let reading = &mut self.readings[at];
            // One that was its own a moment ago has its last lines read, too.
            if !(reading.is_due(now) || is_last && !reading.is_onlooker) {
                continue;
            }
            let done = reading.look(self.of, &mut self.writer, own).await;
            let done = match done {
                Ok(()) => reading.tell(self.of, &self.writer, &self.id, is_last).await,
                failed => failed,
            };
            match done {
                Ok(()) => has_looked = true,
                Err(error) => {
                    self.readings[at].put_off();
                    self.is_bearable(error)?;
                }
            }
        }
        Ok(has_looked)
    }

    /// Where there are several streams, the node of one may be away: its log waits, as its deliveries do, and the others are read.
    fn is_bearable(&self, failed: Failed) -> Result<(), Failed> {
        match failed {
            Failed::Redis(error @ StoreError::Unavailable { .. }) if self.readings.len() > 1 => {
                debug!(%error, "the log of one of several streams cannot be read now");
                Ok(())
            }
            failed => Err(failed),
        }
    }

    /// How far each of those is that are read here.
    fn read(&self) -> Vec<(PartitionKeys, HistoryRead)> {
        self.readings.iter().filter(|reading| reading.is_own).map(|one| (one.keys.clone(), one.read())).collect()
    }

    /// Before it is opened again: two that have one file open, of which one was moved, mix up what belongs to it.
    async fn close(self) {
        if tokio::time::timeout(CLOSING, self.writer.close()).await.is_err() {
            debug!("the history's database at {} does not close", self.place);
        }
    }

    async fn tidy(&mut self) -> Result<(), Failed> {
        // A clock that is ahead must not empty the history: both this machine's and Redis' say that a day is over.
        let mut now_ms = None;
        for reading in &self.readings {
            let forget = async || {
                let mut queries = self.of.queries(&reading.keys).await?;
                queries.forget_histories(FORGET_AFTER_MS).await?;
                queries.now_ms().await
            };
            match forget().await {
                Ok(at_ms) => now_ms = now_ms.into_iter().chain([at_ms]).min(),
                Err(error) => self.is_bearable(error.into())?,
            }
        }
        let Some(now_ms) = now_ms.map(|now_ms| now_ms.min(clock::wall_ms())) else { return Ok(()) };
        while let Some(day) = self.writer.drop_oldest(self.of.keep_days(), now_ms).await? {
            info!("dropped day {day} of the history, which is over");
        }
        let bodies_days = self.of.settings.bodies.as_secs().div_ceil(DAY_MS / 1_000);
        while let Some(day) = self.writer.drop_oldest_events(bodies_days, now_ms).await? {
            info!("dropped the events of day {day}, which is over");
        }
        Ok(())
    }
}

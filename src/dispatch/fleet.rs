//! All partitions that this process has: a [`Worker`] for each stream of a set that changes. Each is on one of a few threads, with its
//! connections to Redis, and stays there; their attempts share others ([`Crew`]). What is wrong with one of them costs the others
//! nothing: it is stopped as it would be alone, and begun anew after a panic.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::error;

use super::{
    attempts::{Attempts, Crew},
    membership::Doing,
    worker::{Parts, Worker},
};
use crate::{
    clock,
    store::pool::Pool,
    telemetry::{
        log_line::of_partition,
        readiness::{BEAT_EVERY, Readiness},
    },
};

/// After a panic, until the partition is begun anew.
const PAUSE: Duration = Duration::from_secs(1);

/// How long what is in flight may take once another worker waits for the partition.
const HAND_OVER: Duration = Duration::from_secs(2);

/// How many threads do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    /// For partitions and their connections to Redis.
    pub loops: usize,
    /// For attempts to receivers that have shown that they answer; the others have one more.
    pub attempts: usize,
}

impl Threads {
    /// Sending costs twice as much as all the rest.
    pub fn of(all: usize) -> Self {
        let loops = (all / 3).max(1);
        Self { loops, attempts: all.saturating_sub(loops).max(1) }
    }
}

/// What the worker does with each of its streams. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Standings(watch::Sender<BTreeMap<String, Doing>>);

impl Default for Standings {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

impl Standings {
    pub fn watch(&self) -> watch::Receiver<BTreeMap<String, Doing>> {
        self.0.subscribe()
    }

    /// Of a stream that is not stopping. Cheap while nothing changes.
    pub fn set(&self, stream: &str, is_owned: bool) {
        let standing = if is_owned { Doing::Owned } else { Doing::Waiting };
        let is_news =
            |known: Option<&Doing>| known.is_some_and(|known| *known != standing && *known != Doing::Stopping);
        if is_news(self.0.borrow().get(stream)) {
            self.put(stream, Some(standing));
        }
    }

    fn put(&self, stream: &str, standing: Option<Doing>) {
        self.0.send_modify(|all| {
            let _ = match standing {
                Some(standing) => all.insert(stream.to_owned(), standing),
                None => all.remove(stream),
            };
        });
    }
}

/// How long what is in flight may take once a partition is stopped, which is known when it is. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Grace(Arc<AtomicU64>);

impl Grace {
    fn set(&self, most: Duration) {
        self.0.store(u64::try_from(most.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    pub fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Relaxed))
    }
}

/// What it needs of the process.
pub struct Shared {
    pub attempts: Attempts,
    /// The connections of the thread that it is on.
    pub pool: Pool,
    /// How long what is in flight may take once it is stopped.
    pub grace: Grace,
}

type Reason = Box<dyn Error + Send + Sync>;
/// Makes all that one partition needs, anew each time it is begun.
type Make = dyn Fn(&str, Shared) -> Result<Parts, Reason> + Send + Sync;

pub struct Fleet {
    loops: Vec<Loop>,
    crew: Arc<Crew>,
    standings: Standings,
    readiness: Readiness,
    make: Arc<Make>,
}

/// A thread with the loops of some partitions: another one between a loop and Redis would have to be woken for each question and
/// each answer, and whatever else this process does keeps neither from its turn.
struct Loop {
    runtime: Handle,
    pool: Pool,
    /// How many partitions are on it.
    load: usize,
    _ends: DropGuard,
}

#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error("a thread of attempts has panicked, for the reason that stands above: nothing is lost, start Herald again")]
    Attempts,
}

/// A stream that is begun.
struct Begun {
    on: usize,
    stop: CancellationToken,
    grace: Grace,
}

impl Fleet {
    /// `make` puts a partition together from its stream's name.
    pub fn start(
        loops: usize,
        crew: Arc<Crew>,
        standings: Standings,
        readiness: Readiness,
        make: impl Fn(&str, Shared) -> Result<Parts, Reason> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let loops = (0..loops.max(1)).map(|_| Loop::start(readiness.clone())).collect::<io::Result<_>>()?;
        Ok(Self { loops, crew, standings, readiness, make: Arc::new(make) })
    }

    /// Works on the streams of the set until it ends, which says how long what is in flight then may take; then all of them are stopped
    /// at the same time.
    pub async fn run(
        mut self,
        mut wanted: watch::Receiver<BTreeSet<String>>,
        end: impl Future<Output = Duration>,
    ) -> Result<(), FleetError> {
        let mut begun = BTreeMap::<String, Begun>::new();
        let mut tasks = JoinSet::new();
        let (mut is_stopping, mut grace) = (false, HAND_OVER);
        tokio::pin!(end);
        loop {
            let streams = if is_stopping { BTreeSet::new() } else { wanted.borrow_and_update().clone() };
            for (stream, begun) in begun.iter().filter(|(stream, _)| !streams.contains(*stream)) {
                self.standings.put(stream, Some(Doing::Stopping));
                begun.grace.set(grace);
                begun.stop.cancel();
            }
            // One that is still stopping is begun when that is done.
            for stream in streams.into_iter().filter(|stream| !begun.contains_key(stream)).collect::<Vec<_>>() {
                begun.insert(stream.clone(), self.begin(stream, &mut tasks));
            }
            if is_stopping && begun.is_empty() {
                return Ok(());
            }
            tokio::select! {
                Some(ended) = tasks.join_next() => {
                    // What watches over a partition has nothing to panic for.
                    if let Ok(stream) = ended && let Some(Begun { on, .. }) = begun.remove(&stream) {
                        self.loops[on].load -= 1;
                        self.standings.put(&stream, None);
                    }
                }
                Ok(()) = wanted.changed(), if !is_stopping => {}
                left = &mut end, if !is_stopping => {
                    (is_stopping, grace) = (true, left);
                    self.readiness.set_draining();
                }
                () = self.crew.died() => return Err(FleetError::Attempts),
            }
        }
    }

    /// On the thread that has fewest.
    fn begin(&mut self, stream: String, tasks: &mut JoinSet<String>) -> Begun {
        let on = (0..self.loops.len()).min_by_key(|number| self.loops[*number].load).unwrap_or_default();
        self.loops[on].load += 1;
        self.standings.put(&stream, Some(Doing::Waiting));
        let (stop, grace) = (CancellationToken::new(), Grace::default());
        let (make, crew) = (Arc::clone(&self.make), Arc::clone(&self.crew));
        let (runtime, pool) = (self.loops[on].runtime.clone(), self.loops[on].pool.clone());
        tasks.spawn(watch_over(stream, make, crew, (runtime, pool), (stop.clone(), grace.clone())));
        Begun { on, stop, grace }
    }
}

/// Has the partition worked on until it is to stop, and begins it anew after a panic.
async fn watch_over(
    stream: String,
    make: Arc<Make>,
    crew: Arc<Crew>,
    (runtime, pool): (Handle, Pool),
    (stop, grace): (CancellationToken, Grace),
) -> String {
    loop {
        let shared = Shared { attempts: crew.join(), pool: pool.clone(), grace: grace.clone() };
        let ended = match make(&stream, shared) {
            Ok(parts) => {
                let run = stop.clone();
                let work = async move { Worker::new(parts).run(run).await };
                let ended = runtime.spawn(of_partition(&stream, work)).await;
                ended.map_err(Reason::from)
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => return stream,
            Err(error) => {
                error!(partition = stream, %error, "the partition is begun anew, for the reason that stands above")
            }
        }
        if stop.run_until_cancelled(sleep(PAUSE)).await.is_none() {
            return stream;
        }
    }
}

impl Loop {
    fn start(readiness: Readiness) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let end = CancellationToken::new();
        let ends = end.clone().drop_guard();
        let beat = async move {
            loop {
                readiness.beat(clock::now());
                sleep(BEAT_EVERY).await;
            }
        };
        thread::Builder::new().name("worker".to_owned()).spawn(move || {
            runtime.block_on(end.run_until_cancelled(beat));
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, pool: Pool::default(), load: 0, _ends: ends })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processors_have_a_thread_each_and_of_more_every_third_is_for_partitions() {
        let threads = |loops, attempts| Threads { loops, attempts };
        assert_eq!([1, 2, 3].map(Threads::of), [threads(1, 1), threads(1, 1), threads(1, 2)]);
        assert_eq!([4, 6, 16].map(Threads::of), [threads(1, 3), threads(2, 4), threads(5, 11)]);
    }

    #[test]
    fn a_stream_that_stops_is_neither_owned_nor_waited_for_any_more() {
        let standings = Standings::default();
        let mut seen = standings.watch();
        standings.set("pay", true);
        assert!(!seen.has_changed().unwrap(), "it is not of the set");
        standings.put("pay", Some(Doing::Waiting));
        standings.set("pay", true);
        assert_eq!(seen.borrow_and_update()["pay"], Doing::Owned);
        standings.set("pay", true);
        assert!(!seen.has_changed().unwrap(), "nothing is new");
        standings.put("pay", Some(Doing::Stopping));
        standings.set("pay", false);
        assert_eq!(seen.borrow_and_update()["pay"], Doing::Stopping);
        standings.put("pay", None);
        assert!(seen.borrow().is_empty());
    }
}

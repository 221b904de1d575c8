//! A Redis, a receiver and an owner of the partition, with work to do. It gets as much new work as it does, so what is
//! behind it stays the same.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;
use herald::{clock, facts::endpoint::Endpoint, store::protocol::Place};
use tempfile::TempDir;

use crate::{
    events::Lives,
    processes::{Herald, Producer, Receiver, Redis, Scheme, wait_for},
    state::{BUSY, State, endpoint},
};

/// A round that takes longer is stuck.
pub const STUCK: Duration = Duration::from_secs(600);

/// New work comes in portions of at least this many, as from a busy producer.
const PORTION: u64 = 100;

/// How many deliveries are made after the work has begun, before counting starts.
pub const WARM_UP: u64 = 3_000;

/// After this many deliveries, whatever a pause caught in flight has its record and has been delivered first. An owner
/// that is not done with that by then never will be, and then that is what is measured.
const MOST_WARM_UP: u64 = 60_000;

/// Longer than a worker takes to look at Redis and ask for its file to be rewritten.
const LOOK: Duration = Duration::from_millis(1_500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Entries of the stream.
    Entries,
    /// Records that are due at once.
    Records,
}

/// What a delivery cost, in microseconds of processor time. For Redis this includes taking in the next one.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub herald_us: f64,
    pub redis_us: f64,
    pub rate: f64,
}

/// Processor time that a Redis with nothing else to do spends on taking in one piece of work, in microseconds.
pub fn taking_in_us(work: Work) -> Result<f64> {
    // So many that the kernel's accounting of it, in steps of 10 ms, is exact enough.
    let pieces = match work {
        Work::Entries => 200_000,
        Work::Records => 20_000,
    };
    let redis = Redis::start()?;
    let (mut state, mut producer) = (State::connect(&redis)?, redis.producer()?);
    let mut lives = Lives::new(BUSY as usize, 2);
    let before = redis.cpu_s();
    for _ in 0..pieces / PORTION {
        match work {
            Work::Entries => producer.add_all(lives.by_ref().take(PORTION as usize))?,
            Work::Records => state.write_records_unowned(PORTION, Place::DueIn(0))?,
        }
    }
    Ok((redis.cpu_s() - before) * 1e6 / pieces as f64)
}

pub struct Stack {
    pub owner: Herald,
    pub state: State,
    pub producer: Producer,
    pub lives: Lives,
    pub redis: Redis,
    pub receiver: Receiver,
    program: PathBuf,
    folder: TempDir,
    pub work: Work,
    due_later: u64,
    /// Deliveries that should be behind it.
    depth: u64,
    /// Deliveries that it was given so far, without those that are due some day.
    given: u64,
    started: u32,
    peak_bytes: u64,
}

/// What a stack has before its owner starts.
pub struct Setup<'a> {
    pub program: &'a Path,
    pub endpoints: u64,
    /// How many of them get the traffic.
    pub busy: u64,
    /// Endpoints that have another receiver, by their number.
    pub elsewhere: &'a dyn Fn(u64) -> Option<String>,
    /// Registered in addition.
    pub others: Vec<Endpoint>,
    /// Records that are due in half a day.
    pub due_later: u64,
    /// Records in the backlogs of the busy ones.
    pub parked: u64,
    /// Entries behind.
    pub depth: u64,
}

impl Stack {
    /// Starts paused, with an owner, and with its work in place.
    pub fn start(setup: &Setup) -> Result<Self> {
        const HALF_A_DAY_MS: u64 = 12 * 3_600_000;
        let folder = TempDir::with_prefix("herald-scale-")?;
        let (redis, receiver) = (Redis::start()?, Receiver::start(folder.path())?);
        let mut state = State::connect(&redis)?;
        let url = receiver.url(Scheme::Http);
        let url_of = |at| (setup.elsewhere)(at).unwrap_or_else(|| format!("{url}/{at}"));
        let own = (0..setup.endpoints).map(|at| endpoint(at, at, url_of(at)));
        state.register(own.chain(setup.others.iter().cloned().map(Ok)).collect::<Result<_>>()?)?;
        state.pause()?;
        state.write_records_unowned(setup.due_later, Place::DueIn(HALF_A_DAY_MS))?;
        state.write_records_unowned(setup.parked, Place::Backlog)?;
        let mut stack = Self {
            owner: Herald::start(setup.program, &redis, &receiver, folder.path(), &[])?,
            state,
            producer: redis.producer()?,
            lives: Lives::new(setup.busy as usize, 2),
            redis,
            receiver,
            program: setup.program.to_owned(),
            folder,
            work: Work::Entries,
            due_later: setup.due_later,
            depth: setup.depth,
            given: 0,
            started: 1,
            peak_bytes: 0,
        };
        wait_for("an owner", STUCK, || stack.state.lease().is_ok_and(|lease| !lease.is_empty()))?;
        stack.until_calm()?;
        stack.fill(0)?;
        Ok(stack)
    }

    /// Waits until Redis has done what a new worker asks of it.
    pub fn until_calm(&mut self) -> Result<()> {
        rest(LOOK);
        wait_for("Redis to write its file anew", STUCK, || self.state.is_rewriting().is_ok_and(|busy| !busy))
    }

    /// From now on its work consists of records: those that were due some day are due now, and more come.
    pub fn turn_to_records(&mut self) -> Result<u64> {
        let due = self.state.let_time_pass()?;
        (self.work, self.depth) = (Work::Records, due);
        self.given += due;
        Ok(due)
    }

    /// Another worker, which waits for the partition.
    pub fn start_another(&mut self) -> Result<Herald> {
        self.started += 1;
        let folder = self.folder.path().join(self.started.to_string());
        std::fs::create_dir(&folder)?;
        Herald::start(&self.program, &self.redis, &self.receiver, &folder, &[])
    }

    /// `kill -9`, and another one takes its place.
    pub fn replace_owner(&mut self, other: Herald) {
        self.note_peak();
        self.owner = other;
    }

    /// Another worker owns the partition when this returns.
    pub fn change_owner(&mut self) -> Result<()> {
        let before = self.state.lease()?;
        let other = self.start_another()?;
        self.replace_owner(other);
        let is_new = |lease: String| !lease.is_empty() && lease != before;
        wait_for("another owner", STUCK, || self.state.lease().is_ok_and(is_new))?;
        self.until_calm()
    }

    pub fn behind(&self) -> Result<u64> {
        Ok(self.given.saturating_sub(self.receiver.count()?))
    }

    /// The most memory that any of its owners had, in bytes.
    pub fn peak_bytes(&mut self) -> u64 {
        self.note_peak();
        self.peak_bytes
    }

    fn note_peak(&mut self) {
        self.peak_bytes = self.peak_bytes.max(self.owner.process.peak_bytes());
    }

    /// Lets it work, measures `deliveries`, and pauses it again.
    pub fn round(&mut self, deliveries: u64) -> Result<Cost> {
        self.give()?;
        self.nudge()?;
        self.state.resume()?;
        let begun = self.receiver.count()?;
        self.work_until(begun + WARM_UP)?;
        self.until_at_ease(begun + MOST_WARM_UP)?;
        let first = (clock::now(), self.receiver.count()?, self.owner.process.cpu_s(), self.redis.cpu_s());
        self.work_until(first.1 + deliveries)?;
        let cost = self.cost_since(first)?;
        self.state.pause()?;
        self.note_peak();
        Ok(cost)
    }

    /// Lets it deliver what has records, while nothing is added, and pauses it again.
    pub fn drain(&mut self, deliveries: u64) -> Result<Cost> {
        self.state.resume()?;
        // With its next settle it finds the records that were added behind its back.
        self.producer.add_all(self.lives.by_ref().take(1))?;
        let delivered = |stack: &mut Self, goal| {
            wait_for("the deliveries", STUCK, || stack.receiver.count().is_ok_and(|count| count >= goal))
        };
        let begun = self.receiver.count()?;
        delivered(self, begun + WARM_UP)?;
        let first = (clock::now(), self.receiver.count()?, self.owner.process.cpu_s(), self.redis.cpu_s());
        delivered(self, first.1 + deliveries)?;
        let cost = self.cost_since(first)?;
        self.state.pause()?;
        self.note_peak();
        Ok(cost)
    }

    fn cost_since(&self, first: (Instant, u64, f64, f64)) -> Result<Cost> {
        let last = (clock::now(), self.receiver.count()?, self.owner.process.cpu_s(), self.redis.cpu_s());
        let count = (last.1 - first.1).max(1) as f64;
        Ok(Cost {
            herald_us: (last.2 - first.2) * 1e6 / count,
            redis_us: (last.3 - first.3) * 1e6 / count,
            rate: count / (last.0 - first.0).as_secs_f64(),
        })
    }

    /// Nothing is left of the pause.
    fn until_at_ease(&mut self, limit: u64) -> Result<()> {
        while self.work == Work::Entries && self.state.records()? > self.due_later {
            let delivered = self.give()?;
            if delivered >= limit {
                eprintln!("  it did not get rid of its records");
                break;
            }
            rest(Duration::from_millis(5));
        }
        Ok(())
    }

    fn work_until(&mut self, goal: u64) -> Result<()> {
        let mut failed = None;
        wait_for("the deliveries", STUCK, || match self.give() {
            Ok(delivered) => delivered >= goal,
            Err(error) => {
                failed = Some(error);
                true
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Adds as much work as is missing. Returns how much is delivered.
    fn give(&mut self) -> Result<u64> {
        let delivered = self.receiver.count()?;
        self.fill(delivered)?;
        Ok(delivered)
    }

    fn fill(&mut self, delivered: u64) -> Result<()> {
        let missing = (delivered + self.depth).saturating_sub(self.given);
        if missing < PORTION {
            return Ok(());
        }
        match self.work {
            Work::Entries => self.producer.add_all(self.lives.by_ref().take(missing as usize))?,
            Work::Records => {
                self.state.write_records_owned(missing, Place::DueIn(0))?;
                self.nudge()?;
            }
        }
        self.given += missing;
        Ok(())
    }

    /// An owner with nothing to do finds records that were added behind its back with the next thing that it settles.
    pub fn nudge(&mut self) -> Result<()> {
        if self.work == Work::Records {
            self.producer.add_all(self.lives.by_ref().take(1))?;
            self.given += 1;
        }
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "the bench waits for other processes and has nothing else to do")]
pub fn rest(time: Duration) {
    std::thread::sleep(time);
}

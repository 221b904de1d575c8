//! Writes the events into the stream at their intended times, whatever became of earlier ones: an open model. It never
//! waits for deliveries, only for Redis to confirm what it sent last.
//!
//! One thread keeps the time, makes the events that are due and sends them all together, one transaction at a time. So
//! the order within an intent holds in the stream as well: what is not confirmed is sent again whole and in order
//! before anything later, and noted as *sent again*. The thread has a runtime of its own, so that no event waits for
//! another thread to wake up, and the timing is finer than a runtime's timers allow.
//!
//! Where replicas are to confirm, nothing counts as confirmed before they have: until then it is waited for, or sent again if the
//! connection breaks meanwhile. A Redis that has become the master without them may lack it.
//!
//! If an event is sent late, that is the generator's own doing, unless Redis was disturbed since the event's time
//! ([`IsDisturbed`]), or the generator is still catching up after a disturbance.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::{runtime::Runtime, sync::oneshot, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    ledger::{LATE, Lateness, Ledger, body_hash, times::micros},
    schedule::Schedule,
    traffic::Traffic,
};
use crate::{
    clock,
    facts::id::EntryId,
    store::{
        connection::{Purpose, Redis},
        entries::Entries,
        error::StoreError,
        keys::PartitionKeys,
    },
};

/// Events in one transaction: about a millisecond of Redis' time, so that nobody else waits longer for their turn.
const MAX_BATCH: usize = 500;

/// Bytes in one transaction: with the largest events a batch has 16.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// The timer wakes no more often than this: at high rates a wake-up for each event would cost more than the event.
const TICK: Duration = Duration::from_micros(250);

/// How long one question for the replicas waits for them.
const CONFIRM: Duration = Duration::from_secs(1);

/// How long to wait before asking Redis again after it could not be reached, or refused.
const PAUSE: Duration = Duration::from_millis(25);

#[derive(Debug, thiserror::Error)]
pub enum ProducerError {
    /// No pause helps against this.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start the thread that keeps the schedule: {0}")]
    Thread(std::io::Error),
    #[error("the thread that keeps the schedule has panicked")]
    Panicked,
}

/// Tells whether something disturbs Redis at this moment: late sending is not the generator's fault then.
pub type IsDisturbed = Arc<dyn Fn() -> bool + Send + Sync>;

#[derive(Clone)]
pub struct Producer {
    pub redis: Redis,
    pub keys: PartitionKeys,
    pub ledger: Arc<Ledger>,
    pub is_disturbed: IsDisturbed,
    /// How many replicas must have an event.
    pub replicas: u8,
}

impl Producer {
    /// Sends every event of the schedule at its time after the load's beginning, which the ledger knows; if the load
    /// has not begun, all at once, as fast as Redis takes them. Ends when the last is confirmed, or on cancellation. It
    /// connects before it sends: if the beginning lies a little ahead, connecting does not make the first events late.
    pub async fn run(
        &self,
        schedule: Schedule,
        traffic: Traffic,
        cancel: CancellationToken,
    ) -> Result<(), ProducerError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ProducerError::Thread)?;
        // However this future ends, the thread ends too.
        let ending = cancel.child_token();
        let _end = ending.clone().drop_guard();
        let began = self.ledger.began();
        let sender = Sender { producer: self.clone(), entries: None, disturbed_at: None, is_catching_up: false };
        let pace = Pace { runtime, sender, began, schedule, traffic, ending };
        let (tell, ended) = oneshot::channel();
        let thread = thread::Builder::new().name("producer".to_owned());
        // Nobody listens any more if the future was dropped.
        let body = move || drop(tell.send(pace.keep()));
        thread.spawn(body).map_err(ProducerError::Thread)?;
        ended.await.unwrap_or(Err(ProducerError::Panicked))
    }
}

/// Events that are due, made and noted in the ledger.
struct Parcel {
    numbers: Vec<u32>,
    bodies: Vec<Bytes>,
    bytes: usize,
    /// The first of them.
    intended: Instant,
}

struct Sender {
    producer: Producer,
    /// None after a failure: the next connection is made anew.
    entries: Option<Entries>,
    /// When Redis was last seen to be disturbed.
    disturbed_at: Option<Instant>,
    /// Not everything that gathered behind a disturbance is sent yet.
    is_catching_up: bool,
}

impl Sender {
    /// Returns when Redis has confirmed it, or says what no pause helps against.
    async fn send(&mut self, parcel: &Parcel) -> Result<(), ProducerError> {
        let ledger = self.producer.ledger.clone();
        let now = self.look();
        let is_late = now.saturating_duration_since(parcel.intended) > LATE;
        let was_disturbed = self.disturbed_at.is_some_and(|at| at >= parcel.intended);
        self.is_catching_up = is_late && (self.is_catching_up || was_disturbed);
        let lateness = if self.is_catching_up { Lateness::Excused } else { Lateness::Own };
        ledger.sent(&parcel.numbers, ledger.time_us(now), lateness);
        loop {
            match self.add(parcel).await {
                Ok(entries) => {
                    let confirmed: Vec<_> = parcel.numbers.iter().copied().zip(entries).collect();
                    ledger.confirmed(&confirmed);
                    return Ok(());
                }
                Err(Failed::NotSent) => {}
                Err(Failed::Unknown) => ledger.sent_again(&parcel.numbers),
                Err(Failed::ForGood(error)) => return Err(error.into()),
            }
            self.look();
            sleep(PAUSE).await;
        }
    }

    fn look(&mut self) -> Instant {
        let now = clock::now();
        if (self.producer.is_disturbed)() {
            self.disturbed_at = Some(now);
        }
        now
    }

    async fn add(&mut self, parcel: &Parcel) -> Result<Vec<EntryId>, Failed> {
        self.connect().await?;
        let Some(entries) = &mut self.entries else { return Err(Failed::NotSent) };
        let replicas = self.producer.replicas;
        let add = async {
            let added = entries.add_all(&parcel.bodies).await?;
            while !entries.are_on(replicas, CONFIRM).await? {}
            Ok(added)
        };
        let added = add.await.map_err(|error| Failed::of(error, true));
        if matches!(added, Err(Failed::Unknown)) {
            self.entries = None;
        }
        added
    }

    async fn connect(&mut self) -> Result<(), Failed> {
        if self.entries.is_none() {
            let Producer { redis, keys, .. } = &self.producer;
            let connection = redis.at_home_in(keys.slot()).connect(Purpose::Produce).await;
            let connection = connection.map_err(|error| Failed::of(error, false))?;
            self.entries = Some(Entries::new(connection, keys.clone()));
        }
        Ok(())
    }
}

enum Failed {
    /// Redis has none of it.
    NotSent,
    /// Redis has all of it or none.
    Unknown,
    ForGood(StoreError),
}

impl Failed {
    fn of(error: StoreError, may_have_run: bool) -> Self {
        match error {
            StoreError::Unavailable { .. } if may_have_run => Self::Unknown,
            // A transaction that Redis refuses, such as for want of memory, is refused whole.
            StoreError::Unavailable { .. }
            | StoreError::OutOfMemory { .. }
            | StoreError::NoScript { .. }
            | StoreError::NoGroup { .. }
            | StoreError::Other { .. } => Self::NotSent,
            StoreError::Url { .. } | StoreError::WrongType { .. } | StoreError::Denied { .. } => Self::ForGood(error),
        }
    }
}

/// The thread that keeps the schedule.
struct Pace {
    runtime: Runtime,
    sender: Sender,
    /// None for as fast as possible.
    began: Option<Instant>,
    schedule: Schedule,
    traffic: Traffic,
    ending: CancellationToken,
}

impl Pace {
    /// Runs until the schedule ends or is cancelled.
    fn keep(mut self) -> Result<(), ProducerError> {
        // If this fails, the first parcel tries again.
        let _ = self.runtime.block_on(self.ending.run_until_cancelled(self.sender.connect()));
        let mut next = self.schedule.next();
        while let Some(first) = next {
            if !self.wait_until(first) {
                return Ok(());
            }
            let due = self.since_beginning();
            let mut parcel = self.parcel(first);
            let (mut buffer, mut scratch) = (BytesMut::new(), Vec::new());
            while let Some(offset) = next.filter(|offset| due.is_none_or(|due| *offset <= due)) {
                if parcel.numbers.len() >= MAX_BATCH || parcel.bytes >= MAX_BATCH_BYTES {
                    break;
                }
                self.make(offset, &mut parcel, &mut buffer, &mut scratch);
                next = self.schedule.next();
            }
            let sending = self.ending.run_until_cancelled(self.sender.send(&parcel));
            match self.runtime.block_on(sending) {
                Some(sent) => sent?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn since_beginning(&self) -> Option<Duration> {
        self.began.map(|began| clock::now().saturating_duration_since(began))
    }

    fn parcel(&self, first: Duration) -> Parcel {
        let intended = self.began.map_or_else(clock::now, |began| began + first);
        Parcel { numbers: Vec::new(), bodies: Vec::new(), bytes: 0, intended }
    }

    /// Noted in the ledger before it is sent: it may arrive before the producer hears that it was added.
    fn make(&mut self, offset: Duration, parcel: &mut Parcel, buffer: &mut BytesMut, scratch: &mut Vec<u8>) {
        let ledger = &self.sender.producer.ledger;
        let created_ms = match self.began {
            Some(_) => ledger.began_wall_ms() + offset.as_millis() as u64,
            None => clock::wall_ms(),
        };
        scratch.clear();
        let facts = self.traffic.next(created_ms, scratch);
        ledger.publish(&facts, micros(offset), body_hash(scratch));
        buffer.extend_from_slice(scratch);
        parcel.numbers.push(facts.number);
        parcel.bodies.push(buffer.split().freeze());
        parcel.bytes += scratch.len();
    }

    /// Returns false if it was cancelled.
    fn wait_until(&self, offset: Duration) -> bool {
        /// How soon an end is noticed during a long pause of the schedule.
        const GLANCE: Duration = Duration::from_millis(100);
        let began = self.began.unwrap_or_else(clock::now);
        // A beginning that lies ahead is waited for as well.
        while !self.ending.is_cancelled() {
            match (began + offset).saturating_duration_since(clock::now()) {
                Duration::ZERO => return true,
                left => thread::park_timeout(left.clamp(TICK, GLANCE)),
            }
        }
        false
    }
}

//! Writes the events into the stream at their intended times, whatever became of those before them: an open model. It never
//! waits for deliveries, only for Redis to confirm what it sent last.
//!
//! A thread of its own keeps the time and makes the events; [`Producer::run`] sends what is due, as many as there are, in one
//! transaction at a time. So the order within an intent holds in the stream as well: what is not confirmed is sent again
//! whole and in order before anything later, and noted as *sent again*.
//!
//! How late an event is sent is the generator's own doing, unless Redis was disturbed since its time ([`IsDisturbed`]), or
//! what had gathered behind a disturbance is still being caught up with.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    ledger::{LATE, Lateness, Ledger, body_hash, books::micros},
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

/// Events of one transaction: about a millisecond of Redis' time, so that nobody else waits longer for their turn.
const MAX_BATCH: usize = 500;

/// Bytes of one transaction: with the largest events a batch is 16 of them.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// Parcels that wait for Redis: with 500 small events each 10 MiB. What is due beyond that waits with its intended time.
const QUEUED: usize = 32;

/// The timer wakes no more often than this: at high rates a wake-up for each event would cost more than the event.
const TICK: Duration = Duration::from_micros(250);

/// Before Redis is asked again after it could not be reached, or refused.
const PAUSE: Duration = Duration::from_millis(25);

#[derive(Debug, thiserror::Error)]
pub enum ProducerError {
    /// No pause mends this.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start the thread that keeps the schedule: {0}")]
    Thread(std::io::Error),
}

/// Tells whether somebody disturbs Redis at this moment: sending late is not the generator's fault then.
pub type IsDisturbed = Arc<dyn Fn() -> bool + Send + Sync>;

/// Events that are due, made and noted in the ledger.
struct Parcel {
    numbers: Vec<u32>,
    bodies: Vec<Bytes>,
    bytes: usize,
    /// The first of them.
    intended: Instant,
}

pub struct Producer {
    pub redis: Redis,
    pub keys: PartitionKeys,
    pub ledger: Arc<Ledger>,
    pub is_disturbed: IsDisturbed,
}

impl Producer {
    /// Sends every event of the schedule at its time after the load's beginning, which the ledger knows; if it has not begun,
    /// all at once, as fast as Redis takes them. Ends when the last is confirmed, or on cancellation.
    pub async fn run(
        &self,
        schedule: Schedule,
        traffic: Traffic,
        cancel: CancellationToken,
    ) -> Result<(), ProducerError> {
        let (hand_over, mut parcels) = mpsc::channel(QUEUED);
        let pace = Pace {
            ledger: self.ledger.clone(),
            began: self.ledger.began(),
            schedule,
            traffic,
            hand_over,
            ended: Arc::new(AtomicBool::new(false)),
        };
        let ended = End(pace.ended.clone());
        let thread = thread::Builder::new().name("schedule".to_owned());
        thread.spawn(move || pace.keep()).map_err(ProducerError::Thread)?;
        let mut sender = Sending { producer: self, entries: None, disturbed_at: None, is_catching_up: false };
        while let Some(parcel) = cancel.run_until_cancelled(parcels.recv()).await.flatten() {
            let parcel = gather(parcel, &mut parcels);
            match cancel.run_until_cancelled(sender.send(&parcel)).await {
                Some(sent) => sent?,
                None => break,
            }
        }
        drop(ended);
        Ok(())
    }
}

/// Tells the thread to end, however its owner ends.
struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// As many as wait already, up to one transaction's worth.
fn gather(mut parcel: Parcel, parcels: &mut mpsc::Receiver<Parcel>) -> Parcel {
    while parcel.numbers.len() < MAX_BATCH && parcel.bytes < MAX_BATCH_BYTES {
        let Ok(more) = parcels.try_recv() else { break };
        parcel.numbers.extend(more.numbers);
        parcel.bodies.extend(more.bodies);
        parcel.bytes += more.bytes;
    }
    parcel
}

struct Sending<'p> {
    producer: &'p Producer,
    /// None after a failure: the next one is made anew.
    entries: Option<Entries>,
    /// When Redis was last seen to be disturbed.
    disturbed_at: Option<Instant>,
    /// What has gathered behind a disturbance is not all sent yet.
    is_catching_up: bool,
}

impl Sending<'_> {
    /// Until Redis has confirmed it, or says what no pause mends.
    async fn send(&mut self, parcel: &Parcel) -> Result<(), ProducerError> {
        let ledger = &self.producer.ledger;
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
        let Producer { redis, keys, .. } = self.producer;
        let entries = match &mut self.entries {
            Some(entries) => entries,
            none => {
                let connection = redis.connect(Purpose::Produce).await.map_err(|error| Failed::of(error, false))?;
                none.insert(Entries::new(connection, keys.clone()))
            }
        };
        let added = entries.add_all(&parcel.bodies).await;
        added.map_err(|error| {
            let failed = Failed::of(error, true);
            if matches!(failed, Failed::Unknown) {
                self.entries = None;
            }
            failed
        })
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

/// The thread that keeps the schedule. Its own, because a runtime's timers count in milliseconds.
struct Pace {
    ledger: Arc<Ledger>,
    /// None to be as fast as possible.
    began: Option<Instant>,
    schedule: Schedule,
    traffic: Traffic,
    hand_over: mpsc::Sender<Parcel>,
    ended: Arc<AtomicBool>,
}

impl Pace {
    /// Until the schedule ends, or nobody takes any more.
    fn keep(mut self) {
        let mut next = self.schedule.next();
        while let Some(first) = next {
            if !self.wait_until(first) {
                return;
            }
            let due = self.since_beginning();
            let mut parcel = self.parcel(first);
            let mut buffer = BytesMut::new();
            let mut scratch = Vec::new();
            while let Some(offset) = next.filter(|offset| due.is_none_or(|due| *offset <= due)) {
                if parcel.numbers.len() >= MAX_BATCH || parcel.bytes >= MAX_BATCH_BYTES {
                    break;
                }
                self.make(offset, &mut parcel, &mut buffer, &mut scratch);
                next = self.schedule.next();
            }
            if self.hand_over.blocking_send(parcel).is_err() {
                return;
            }
        }
    }

    fn since_beginning(&self) -> Option<Duration> {
        self.began.map(|began| clock::now().saturating_duration_since(began))
    }

    fn parcel(&self, first: Duration) -> Parcel {
        let intended = self.began.map_or_else(clock::now, |began| began + first);
        Parcel { numbers: Vec::new(), bodies: Vec::new(), bytes: 0, intended }
    }

    /// Noted in the ledger before it is handed over: it may arrive before the producer hears that it was added.
    fn make(&mut self, offset: Duration, parcel: &mut Parcel, buffer: &mut BytesMut, scratch: &mut Vec<u8>) {
        let created_ms = match self.began {
            Some(_) => self.ledger.began_wall_ms() + offset.as_millis() as u64,
            None => clock::wall_ms(),
        };
        scratch.clear();
        let facts = self.traffic.next(created_ms, scratch);
        self.ledger.publish(&facts, micros(offset), body_hash(scratch));
        buffer.extend_from_slice(scratch);
        parcel.numbers.push(facts.number);
        parcel.bodies.push(buffer.split().freeze());
        parcel.bytes += scratch.len();
    }

    /// False when the producer has ended.
    fn wait_until(&self, offset: Duration) -> bool {
        while let Some(now) = self.since_beginning().filter(|now| *now < offset) {
            if self.ended.load(Ordering::Relaxed) {
                return false;
            }
            /// How soon an end is noticed within a long pause of the schedule.
            const GLANCE: Duration = Duration::from_millis(100);
            thread::park_timeout((offset - now).clamp(TICK, GLANCE));
        }
        !self.ended.load(Ordering::Relaxed)
    }
}

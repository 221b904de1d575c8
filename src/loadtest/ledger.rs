//! Records what was sent and what arrived. Producers and receivers write it while the run goes on, from several threads
//! and many thousand times a second; the judge reads it afterwards. Every call is given its time, so that a test can
//! write any history. Never sends, never answers, never decides whether a promise is broken.
//!
//! One lock guards all books: a call holds it for well under a microsecond, and what costs more (hashing, verifying) is
//! done before.

mod arrivals;
pub mod books;
mod lanes;
mod progress;
pub mod times;

use std::{
    hash::{DefaultHasher, Hasher},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

pub use self::{
    arrivals::{Answer, Arrival, Arrived, Ticket},
    progress::{Outstanding, ProfileProgress, Progress, Recent},
};
use self::{
    books::{Books, DeliveryBook, EndpointBook, EventBook, NONE},
    progress::Live,
    times::{NEVER, micros},
};
use super::{
    ids::Ids,
    latency::histogram,
    population::{Population, Terms},
    traffic::EventFacts,
};
use crate::{facts::id::EntryId, lifecycle::MAX_STEPS};

/// An event that is sent later than this after its intended time was held up by the generator itself, unless Redis was
/// being disturbed. Far more than a shared machine's scheduler causes, far less than what a reader would call an
/// outage.
pub const LATE: Duration = Duration::from_millis(50);

/// Books for this many deliveries are reserved at once, 100 MB of address space; in a larger run they grow.
const MAX_RESERVED: usize = 1_000_000;

/// A hash of an event's exact bytes.
pub fn body_hash(body: &[u8]) -> u64 {
    // Random keys would be of no use: nobody here wants to collide.
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    hasher.finish()
}

/// How an event got to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lateness {
    /// Nothing stood in the way: if it was late, that is the generator's own doing.
    Own,
    /// Redis was being disturbed, or the generator was still catching up after that.
    Excused,
}

pub struct Ledger {
    population: Arc<Population>,
    ids: Ids,
    /// Microseconds from the end of attempt `n` to the earliest next one, and to the latest, by the policy; `[n - 1]`.
    pauses_us: Vec<(u64, u64)>,
    began: OnceLock<(Instant, u64)>,
    state: Mutex<State>,
}

/// Everything behind the lock.
pub(super) struct State {
    pub(super) books: Books,
    pub(super) live: Live,
    /// How late events were sent.
    pub(super) lateness: Histogram<u64>,
    /// From the earliest moment of a retry to its arrival.
    pub(super) retry_lateness: Histogram<u64>,
}

impl Ledger {
    /// With room for this many events.
    pub fn new(population: Arc<Population>, events: u64) -> Self {
        let fan_out = population.fan_out() as usize;
        let events = (events as usize).min(MAX_RESERVED / fan_out);
        let books = Books {
            events: Vec::with_capacity(events),
            deliveries: Vec::with_capacity(events * fan_out),
            intents: Vec::with_capacity(events / 2),
            endpoints: vec![EndpointBook { gone_us: NEVER, ..EndpointBook::default() }; population.active() as usize],
            ..Books::default()
        };
        let state = State {
            books,
            live: Live::with_profiles(population.profiles().len()),
            lateness: histogram(),
            retry_lateness: histogram(),
        };
        Self {
            ids: Ids::events(population.run()),
            pauses_us: pauses(population.terms()),
            population,
            began: OnceLock::new(),
            state: Mutex::new(state),
        }
    }

    pub fn population(&self) -> &Arc<Population> {
        &self.population
    }

    /// The load begins: offsets count from here. What is noted earlier (events put into the stream before a drain) has
    /// the time 0. Only the first call counts.
    pub fn begin(&self, now: Instant, wall_ms: u64) {
        let _ = self.began.set((now, wall_ms));
    }

    pub fn began(&self) -> Option<Instant> {
        self.began.get().map(|(began, _)| *began)
    }

    /// Wall clock at the load's beginning, milliseconds since 1970; 0 before it.
    pub fn began_wall_ms(&self) -> u64 {
        self.began.get().map_or(0, |(_, wall_ms)| *wall_ms)
    }

    /// Microseconds since the load began; 0 before that.
    pub fn time_us(&self, now: Instant) -> u64 {
        self.began().map_or(0, |began| micros(now.saturating_duration_since(began)))
    }

    /// The number of an event of this run, by its id.
    pub fn event_number(&self, id: &[u8]) -> Option<u32> {
        self.ids.number(id)
    }

    pub fn event_id(&self, number: u32) -> String {
        self.ids.of(number)
    }

    /// An event is about to be sent. In the order of their numbers, before Redis can have any of them.
    pub fn publish(&self, facts: &EventFacts, intended_us: u64, hash: u64) {
        let mut state = self.lock();
        let (books, fan_out) = (&mut state.books, self.population.fan_out() as usize);
        debug_assert_eq!(books.events.len(), facts.number as usize, "events are published in their order");
        let EventFacts { number, account, intent, place } = *facts;
        if books.intents.len() <= intent as usize {
            books.intents.resize(intent as usize + 1, [NONE; MAX_STEPS]);
        }
        books.intents[intent as usize][usize::from(place).min(MAX_STEPS - 1)] = number;
        books.events.push(EventBook {
            intended_us,
            sent_us: NEVER,
            hash,
            sequence: 0,
            entry_ms: 0,
            account,
            intent,
            place,
            confirmed: false,
            sent_again: false,
        });
        books.deliveries.resize((number as usize + 1) * fan_out, DeliveryBook::NEW);
        state.live.published(intended_us);
    }

    /// These events are now handed to Redis.
    pub fn sent(&self, events: &[u32], at_us: u64, lateness: Lateness) {
        let mut state = self.lock();
        for number in events {
            let Some(event) = state.books.events.get_mut(*number as usize) else { continue };
            if event.sent_us != NEVER {
                continue;
            }
            event.sent_us = at_us;
            let late_us = at_us.saturating_sub(event.intended_us);
            state.lateness.saturating_record(late_us.max(1));
            state.live.sent(lateness == Lateness::Own && late_us > micros(LATE));
        }
    }

    /// Nobody knows whether Redis has these: they are sent again, all of them in order.
    pub fn sent_again(&self, events: &[u32]) {
        let mut state = self.lock();
        for number in events {
            let Some(event) = state.books.events.get_mut(*number as usize) else { continue };
            let was = std::mem::replace(&mut event.sent_again, true);
            state.live.sent_again += u64::from(!was);
        }
    }

    /// Redis has these, with their entries.
    pub fn confirmed(&self, events: &[(u32, EntryId)]) {
        let began_ms = self.began_wall_ms();
        let mut state = self.lock();
        for (number, entry) in events {
            let Some(event) = state.books.events.get_mut(*number as usize) else { continue };
            if std::mem::replace(&mut event.confirmed, true) {
                continue;
            }
            // Before the load began there is no time to count from: such an entry counts as older than all that
            // follows.
            let since = if began_ms == 0 { -1 } else { entry.ms as i64 - began_ms as i64 };
            event.entry_ms = since.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
            let account = event.account;
            self.now_owed(&mut state, *number, account);
        }
    }

    /// A confirmed event's deliveries are owed from now on; some may have arrived already. An endpoint that is gone is owed
    /// nothing that came later.
    fn now_owed(&self, state: &mut State, number: u32, account: u32) {
        let fan_out = self.population.fan_out();
        let entry_ms = i64::from(state.books.events[number as usize].entry_ms);
        state.live.confirmed += 1;
        for endpoint in account * fan_out..(account + 1) * fan_out {
            let delivery = number * fan_out + endpoint % fan_out;
            let is_acknowledged = state.books.deliveries[delivery as usize].is_acknowledged();
            if is_acknowledged || !state.books.endpoints[endpoint as usize].was_gone_by(entry_ms) {
                let profile = self.population.profile_index(endpoint);
                state.live.owe(profile, self.population.is_alive(endpoint), is_acknowledged);
            }
        }
    }

    /// URLs are about to change, to those of this generation.
    pub fn next_generation(&self) -> u32 {
        let mut state = self.lock();
        state.books.changes.generation += 1;
        state.books.changes.generation
    }

    /// What is accepted after this time goes to the endpoint's new URL.
    pub fn url_changed(&self, endpoint: u32, generation: u32, wall_ms: u64) {
        let answered_ms = wall_ms as i64 - self.began_wall_ms() as i64;
        let mut state = self.lock();
        state.books.changes.answered.entry(endpoint).or_default().push((generation, answered_ms));
    }

    /// Locks the books for as long as the returned value lives: for the judge.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the books, short of a defect that ends the run anyway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shortest and the longest pause after an attempt.
    pub(super) fn pause_us(&self, attempt: u32) -> Option<(u64, u64)> {
        self.pauses_us.get((attempt.max(1) - 1) as usize).copied()
    }
}

/// The policy's shortest and longest pauses, worked out anew here, because what is judged must not judge itself.
fn pauses(terms: &Terms) -> Vec<(u64, u64)> {
    let retry = &terms.retry;
    let mut interval = retry.initial.as_secs_f64();
    (1..retry.max_attempts)
        .map(|_| {
            let middle = interval.min(retry.max_interval.as_secs_f64());
            interval = (interval * retry.multiplier).min(retry.max_interval.as_secs_f64());
            ((middle * (1.0 - retry.jitter) * 1e6) as u64, (middle * (1.0 + retry.jitter) * 1e6) as u64)
        })
        .collect()
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
pub(super) mod tests;

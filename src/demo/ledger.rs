//! Compares what was published with what arrived: the demo's proof. Judges; never sends or answers.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::merchant::Merchant;

/// Latencies above this count as this: a minute.
const MAX_LATENCY_US: u64 = 60_000_000;

struct Published {
    merchant: Merchant,
    intent: String,
    /// Its place in the life of its intent, from 0.
    step: u32,
    at: Instant,
    arrived: bool,
}

#[derive(Default)]
struct Books {
    events: HashMap<String, Published>,
    /// Steps of each intent that arrived in order so far.
    progress: HashMap<String, u32>,
    owed: HashMap<Merchant, u64>,
    arrived: HashMap<Merchant, u64>,
    duplicates: u64,
    out_of_order: u64,
    bad_signatures: u64,
    unknown: u64,
}

pub struct Ledger {
    books: Mutex<Books>,
    latency: Mutex<Histogram<u64>>,
}

/// What an accepted request was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    First { after: Duration },
    Duplicate,
    OutOfOrder,
    Unknown,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sums {
    pub events: u64,
    pub delivered: u64,
    /// Owed to a merchant that is alive, and missing.
    pub missing: u64,
    pub duplicates: u64,
    pub out_of_order: u64,
    pub bad_signatures: u64,
    pub unknown: u64,
    pub p50: Duration,
    pub p99: Duration,
}

impl Ledger {
    pub fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).expect("the bounds are in order");
        Self { books: Mutex::default(), latency: Mutex::new(latency) }
    }

    /// Noted before it is added to the stream: it may arrive before the producer hears that it was added.
    pub fn publish(&self, event: &str, merchant: Merchant, intent: &str, step: u32, at: Instant) {
        let mut books = lock(&self.books);
        *books.owed.entry(merchant).or_default() += 1;
        let intent = intent.to_owned();
        books.events.insert(event.to_owned(), Published { merchant, intent, step, at, arrived: false });
    }

    /// Redis did not take it: it is owed to nobody.
    pub fn withdraw(&self, event: &str) {
        let mut books = lock(&self.books);
        if let Some(published) = books.events.remove(event) {
            books.owed.entry(published.merchant).and_modify(|owed| *owed -= 1);
        }
    }

    /// A merchant is about to answer 2xx.
    pub fn accept(&self, event: &str, now: Instant) -> Arrival {
        let mut books = lock(&self.books);
        let Some(published) = books.events.get_mut(event) else {
            books.unknown += 1;
            return Arrival::Unknown;
        };
        if std::mem::replace(&mut published.arrived, true) {
            books.duplicates += 1;
            return Arrival::Duplicate;
        }
        let (merchant, intent, step) = (published.merchant, published.intent.clone(), published.step);
        let after = now.saturating_duration_since(published.at);
        *books.arrived.entry(merchant).or_default() += 1;
        let expected = books.progress.entry(intent).or_default();
        let in_order = *expected == step;
        *expected = step + 1;
        if merchant == Merchant::Healthy {
            lock(&self.latency).saturating_record(after.as_micros() as u64);
        }
        if in_order {
            return Arrival::First { after };
        }
        books.out_of_order += 1;
        Arrival::OutOfOrder
    }

    pub fn bad_signature(&self) {
        lock(&self.books).bad_signatures += 1;
    }

    pub fn is_complete(&self) -> bool {
        self.sums().missing == 0
    }

    pub fn sums(&self) -> Sums {
        let books = lock(&self.books);
        let latency = lock(&self.latency);
        let of = |counts: &HashMap<Merchant, u64>, merchant| counts.get(&merchant).copied().unwrap_or(0);
        let missing = |merchant| of(&books.owed, merchant) - of(&books.arrived, merchant);
        Sums {
            events: books.events.len() as u64,
            delivered: books.arrived.values().sum(),
            missing: Merchant::ALL.into_iter().filter(|merchant| merchant.is_alive()).map(missing).sum(),
            duplicates: books.duplicates,
            out_of_order: books.out_of_order,
            bad_signatures: books.bad_signatures,
            unknown: books.unknown,
            p50: Duration::from_micros(latency.value_at_quantile(0.50)),
            p99: Duration::from_micros(latency.value_at_quantile(0.99)),
        }
    }

    pub fn owed_to(&self, merchant: Merchant) -> u64 {
        lock(&self.books).owed.get(&merchant).copied().unwrap_or(0)
    }

    pub fn arrived_at(&self, merchant: Merchant) -> u64 {
        lock(&self.books).arrived.get(&merchant).copied().unwrap_or(0)
    }
}

/// No code panics while it holds the books.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn it_counts_what_is_missing_doubled_or_out_of_order() {
        let (ledger, now) = (Ledger::new(), clock::now());
        for (step, event) in ["evt_0", "evt_1", "evt_2"].into_iter().enumerate() {
            ledger.publish(event, Merchant::Healthy, "pi_1", step as u32, now);
        }
        assert!(matches!(ledger.accept("evt_0", now), Arrival::First { .. }));
        assert_eq!(ledger.accept("evt_0", now), Arrival::Duplicate);
        assert_eq!(ledger.accept("evt_2", now), Arrival::OutOfOrder);
        assert_eq!(ledger.accept("evt_9", now), Arrival::Unknown);
        let sums = ledger.sums();
        assert_eq!((sums.missing, sums.duplicates, sums.out_of_order, sums.unknown), (1, 1, 1, 1));
        ledger.withdraw("evt_1");
        assert!(ledger.is_complete());
    }

    #[test]
    fn merchants_that_are_gone_or_dead_are_not_waited_for() {
        let ledger = Ledger::new();
        ledger.publish("evt_0", Merchant::Dead, "pi_1", 0, clock::now());
        assert!(ledger.is_complete());
    }
}

//! Compares what merchants were told by their feeds with what arrived: the demo's proof. Judges; never sends or answers.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;

use super::merchant::Merchant;

/// Latencies above this count as this: a minute.
const MAX_LATENCY_US: u64 = 60_000_000;

#[derive(Default)]
struct Books {
    /// Events that a merchant was told of by the feed, and that arrived.
    told: HashSet<String>,
    arrived: HashSet<String>,
    /// The number of the newest event of each intent that arrived.
    newest: HashMap<String, u64>,
    owed: HashMap<Merchant, u64>,
    /// Arrived, whether the feed has told of it yet or not; and those of which it has.
    taken: HashMap<Merchant, u64>,
    met: HashMap<Merchant, u64>,
    duplicates: u64,
    out_of_order: u64,
    bad_signatures: u64,
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
}

/// What the ledger needs of a callback.
#[derive(Debug, Clone)]
pub struct Callback {
    pub event: String,
    pub intent: String,
    /// Its `herald-account-sequence`.
    pub number: u64,
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
    /// Arrived, and not told of by any feed: only at the end does that mean something.
    pub unknown: u64,
    pub p50: Duration,
    pub p99: Duration,
}

impl Ledger {
    pub fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).expect("the bounds are in order");
        Self { books: Mutex::default(), latency: Mutex::new(latency) }
    }

    /// The feed of a merchant's account has it.
    pub fn told(&self, event: &str, merchant: Merchant) {
        let mut books = lock(&self.books);
        if books.told.insert(event.to_owned()) {
            *books.owed.entry(merchant).or_default() += 1;
            let has_arrived = books.arrived.contains(event);
            *books.met.entry(merchant).or_default() += u64::from(has_arrived);
        }
    }

    /// A merchant is about to answer 2xx. It may be before the feed is asked.
    pub fn accept(&self, merchant: Merchant, callback: &Callback, after: Duration) -> Arrival {
        let mut books = lock(&self.books);
        if !books.arrived.insert(callback.event.clone()) {
            books.duplicates += 1;
            return Arrival::Duplicate;
        }
        let is_told = books.told.contains(&callback.event);
        *books.met.entry(merchant).or_default() += u64::from(is_told);
        *books.taken.entry(merchant).or_default() += 1;
        let newest = books.newest.entry(callback.intent.clone()).or_default();
        let in_order = *newest < callback.number;
        *newest = callback.number.max(*newest);
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
        let missing = |merchant| of(&books.owed, merchant) - of(&books.met, merchant);
        Sums {
            events: books.told.len() as u64,
            delivered: books.taken.values().sum(),
            missing: Merchant::ALL.into_iter().filter(|merchant| merchant.is_alive()).map(missing).sum(),
            duplicates: books.duplicates,
            out_of_order: books.out_of_order,
            bad_signatures: books.bad_signatures,
            unknown: books.arrived.difference(&books.told).count() as u64,
            p50: Duration::from_micros(latency.value_at_quantile(0.50)),
            p99: Duration::from_micros(latency.value_at_quantile(0.99)),
        }
    }

    pub fn owed_to(&self, merchant: Merchant) -> u64 {
        lock(&self.books).owed.get(&merchant).copied().unwrap_or(0)
    }

    pub fn arrived_at(&self, merchant: Merchant) -> u64 {
        lock(&self.books).taken.get(&merchant).copied().unwrap_or(0)
    }
}

/// No code panics while it holds the books.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callback(event: &str, number: u64) -> Callback {
        Callback { event: event.to_owned(), intent: "pi_1".to_owned(), number }
    }

    #[test]
    fn it_counts_what_is_missing_doubled_or_out_of_order() {
        let (ledger, after) = (Ledger::new(), Duration::ZERO);
        for event in ["evt_1", "evt_2", "evt_3", "evt_4"] {
            ledger.told(event, Merchant::Healthy);
        }
        let accept = |event, number| ledger.accept(Merchant::Healthy, &callback(event, number), after);
        assert!(matches!(accept("evt_1", 1), Arrival::First { .. }));
        assert_eq!(accept("evt_1", 1), Arrival::Duplicate);
        assert!(matches!(accept("evt_3", 3), Arrival::First { .. }));
        assert_eq!(accept("evt_2", 2), Arrival::OutOfOrder);
        // Before the feed was asked, and never in it.
        accept("evt_5", 5);
        let sums = ledger.sums();
        assert_eq!((sums.missing, sums.duplicates, sums.out_of_order, sums.unknown), (1, 1, 1, 1));
        ledger.told("evt_5", Merchant::Healthy);
        accept("evt_4", 4);
        assert!(ledger.is_complete());
        assert_eq!((ledger.sums().unknown, ledger.sums().delivered), (0, 5));
    }

    #[test]
    fn merchants_that_are_gone_or_dead_are_not_waited_for() {
        let ledger = Ledger::new();
        ledger.told("evt_0", Merchant::Dead);
        assert!(ledger.is_complete());
    }
}

//! Turns the ledger, the dead letters and the faults into what a run found: figures, and promises kept or broken. Pure:
//! it reads the books, asks nobody, and would find the same again. It uses none of Herald's own decisions: what a
//! policy, an order or a signature should have been is worked out here and in the books.
//!
//! `promises` holds each promise with what excuses it, `goodput` those about what imperfect receivers get; the figures
//! are here.

mod backlog;
mod changes;
mod goodput;
mod promises;
pub mod trial;

use std::collections::HashMap;

use self::backlog::Backlog;
pub use self::promises::EXPIRY;
use super::{
    faults::Fault,
    latency::histogram,
    ledger::{
        Ledger, State,
        books::{Books, DeliveryBook, EventBook},
        times::{NEVER, micros},
    },
    population::Population,
    result::{Deliveries, FaultMark, Generator, Goodput, Latency, NearFault, ProfileResult, Promise, Second},
    scenario::Profile,
};
use crate::facts::{delivery::DeadLetter, retry::DeadReason};

/// A dead letter, as Herald lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    pub event: String,
    pub endpoint: String,
    pub reason: DeadReason,
    /// Redis' time, milliseconds since 1970.
    pub died_at_ms: u64,
}

impl Dead {
    pub fn of(letter: &DeadLetter) -> Self {
        Self {
            event: letter.delivery.event.to_string(),
            endpoint: letter.delivery.id.endpoint.to_string(),
            reason: letter.reason,
            died_at_ms: letter.died_at_ms,
        }
    }
}

/// A delivery that Herald says is not finished yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub event: String,
    pub endpoint: String,
}

/// What the ledger does not know.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// All dead letters at the end, including those of other runs.
    pub dead: Vec<Dead>,
    /// What Herald still holds at the end for endpoints that never take anything. Without a list, everything that is
    /// neither acknowledged nor dead counts as lost.
    pub kept: Vec<Kept>,
    /// Entries that Redis says to have been trimmed before Herald read them.
    pub trimmed_unread: u64,
    pub faults: Vec<FaultMark>,
    /// The events lay in the stream before the load began.
    pub is_drain: bool,
    /// When the waiting ended, in seconds since the load began: tells how old the unfinished deliveries have become.
    pub ended_s: f64,
}

/// What a run found, without what only the caller knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub seconds: f64,
    pub generator: Generator,
    pub deliveries: Deliveries,
    pub latency: Option<Latency>,
    pub retry_lateness: Option<Latency>,
    pub profiles: Vec<ProfileResult>,
    pub goodput: Vec<Goodput>,
    pub near_faults: Vec<NearFault>,
    pub series: Vec<Second>,
    pub promises: Vec<Promise>,
}

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Acknowledged,
    Dead,
    Unfinished,
    /// Accepted after its endpoint was gone, or never confirmed and never seen.
    NotOwed,
}

/// One delivery as the judge sees it.
#[derive(Clone, Copy)]
struct Item<'a> {
    event: u32,
    endpoint: u32,
    sent: &'a EventBook,
    book: &'a DeliveryBook,
}

pub fn judge(ledger: &Ledger, evidence: &Evidence) -> Verdict {
    let population = ledger.population().clone();
    let state = ledger.lock();
    let case = Case::new(ledger, &population, &state, evidence);
    let (deliveries, times) = case.sum(|_| true);
    let goodput = goodput::goodput(&case);
    let seconds = case.seconds(&deliveries, &times);
    let rate = |deliveries: Deliveries, times: &Times| Deliveries {
        rate: match evidence.is_drain {
            true => times.drain_rate(),
            false if seconds > 0.0 => deliveries.acknowledged as f64 / seconds,
            false => 0.0,
        },
        ..deliveries
    };
    Verdict {
        seconds,
        generator: Generator {
            intended: state.live.intended,
            sent: state.live.sent,
            sent_again: state.live.sent_again,
            late: state.live.late,
            lateness: Latency::of(&state.lateness),
        },
        latency: case.latency(|item| population.is_alive(item.endpoint)),
        retry_lateness: Latency::of(&state.retry_lateness),
        profiles: case.profiles(rate),
        near_faults: case.near_faults(),
        series: case.series(),
        promises: promises::judge(&case, &goodput),
        goodput,
        deliveries: rate(deliveries, &times),
    }
}

/// First and last acknowledgement, and the last thing that happened.
#[derive(Default)]
struct Times {
    first_us: Option<u64>,
    last_us: u64,
    acknowledged: u64,
    last_arrival_us: u64,
}

impl Times {
    fn note(&mut self, book: &DeliveryBook) {
        if book.arrivals > 0 {
            self.last_arrival_us = self.last_arrival_us.max(book.last_arrival_us);
        }
        if book.is_acknowledged() {
            self.acknowledged += 1;
            self.first_us = Some(self.first_us.map_or(book.acknowledged_us, |first| first.min(book.acknowledged_us)));
            self.last_us = self.last_us.max(book.acknowledged_us);
        }
    }

    /// From the first to the last: the start of the workers is not part of a drain.
    fn drain_rate(&self) -> f64 {
        let span_us = self.last_us.saturating_sub(self.first_us.unwrap_or(0));
        match span_us {
            0 => 0.0,
            span_us => (self.acknowledged - 1) as f64 * 1e6 / span_us as f64,
        }
    }
}

/// Everything that is judged, indexed by what is looked up often.
struct Case<'a> {
    ledger: &'a Ledger,
    population: &'a Population,
    state: &'a State,
    evidence: &'a Evidence,
    /// By delivery; the time is microseconds since the load began.
    dead: HashMap<u32, (DeadReason, i64)>,
    kept: std::collections::HashSet<u32>,
    backlog: Backlog,
}

impl<'a> Case<'a> {
    fn new(ledger: &'a Ledger, population: &'a Population, state: &'a State, evidence: &'a Evidence) -> Self {
        let (events, fan_out) = (state.books.events.len(), population.fan_out());
        // What does not belong to this run is none of its business.
        let delivery = |event: &str, endpoint: &str| {
            let event = ledger.event_number(event.as_bytes()).filter(|event| (*event as usize) < events)?;
            let endpoint = population.endpoint_of(endpoint)?;
            let is_owed = state.books.events[event as usize].account == endpoint / fan_out;
            is_owed.then_some(event * fan_out + endpoint % fan_out)
        };
        let began_ms = ledger.began_wall_ms() as i64;
        let dead = evidence.dead.iter().filter_map(|dead| {
            let died_us = (dead.died_at_ms as i64 - began_ms) * 1000;
            Some((delivery(&dead.event, &dead.endpoint)?, (dead.reason, died_us)))
        });
        let kept = evidence.kept.iter().filter_map(|kept| delivery(&kept.event, &kept.endpoint));
        let (dead, kept, backlog) = (dead.collect(), kept.collect(), Backlog::default());
        let case = Self { ledger, population, state, evidence, dead, kept, backlog };
        Self { backlog: Backlog::of(&case), ..case }
    }

    fn books(&self) -> &'a Books {
        &self.state.books
    }

    fn item(&self, delivery: u32) -> Item<'a> {
        let (event, k) = (delivery / self.population.fan_out(), delivery % self.population.fan_out());
        let sent = &self.books().events[event as usize];
        let endpoint = sent.account * self.population.fan_out() + k;
        Item { event, endpoint, sent, book: &self.books().deliveries[delivery as usize] }
    }

    /// Every delivery of every event.
    fn items(&self) -> impl Iterator<Item = (u32, Item<'a>)> {
        (0..self.books().deliveries.len() as u32).map(|delivery| (delivery, self.item(delivery)))
    }

    fn end(&self, delivery: u32, item: &Item<'_>) -> End {
        if item.book.is_acknowledged() {
            return End::Acknowledged;
        }
        if self.dead.contains_key(&delivery) {
            return End::Dead;
        }
        let came_later = self.books().endpoints[item.endpoint as usize].was_gone_by(item.sent.entry_ms.into());
        match came_later || (!item.sent.confirmed && item.book.arrivals == 0) {
            true => End::NotOwed,
            false => End::Unfinished,
        }
    }

    fn sum(&self, of: impl Fn(&Item<'_>) -> bool) -> (Deliveries, Times) {
        let (mut sum, mut times) = (Deliveries::default(), Times::default());
        for (delivery, item) in self.items().filter(|(_, item)| of(item)) {
            match self.end(delivery, &item) {
                End::Acknowledged => sum.acknowledged += 1,
                End::Dead => sum.dead += 1,
                End::Unfinished => sum.unfinished += 1,
                End::NotOwed => {}
            }
            sum.attempts += u64::from(item.book.arrivals);
            sum.duplicates += u64::from(item.book.acknowledgements.saturating_sub(1));
            times.note(item.book);
        }
        sum.owed = sum.acknowledged + sum.dead + sum.unfinished;
        (sum, times)
    }

    fn seconds(&self, deliveries: &Deliveries, times: &Times) -> f64 {
        let last_sent_us = self.state.live.last_intended_us;
        let last_us = times.last_us.max(times.last_arrival_us).max(last_sent_us);
        let seconds = last_us as f64 / 1e6;
        if deliveries.unfinished > 0 { seconds.max(self.evidence.ended_s) } else { seconds }
    }

    /// From the intended time to the first arrival.
    fn latency(&self, of: impl Fn(&Item<'_>) -> bool) -> Option<Latency> {
        let mut all = histogram();
        for (_, item) in self.items().filter(|(_, item)| item.book.arrivals > 0 && of(item)) {
            all.saturating_record(latency_us(&item));
        }
        Latency::of(&all)
    }

    /// One for each name, in the scenario's order.
    fn profiles(&self, rate: impl Fn(Deliveries, &Times) -> Deliveries) -> Vec<ProfileResult> {
        let mut names: Vec<&'static str> = Vec::new();
        for profile in self.population.profiles() {
            if !names.contains(&profile.name()) {
                names.push(profile.name());
            }
        }
        let result = |name: &'static str| {
            let is_one = |endpoint: u32| self.population.profile(endpoint).name() == name;
            let (deliveries, times) = self.sum(|item| is_one(item.endpoint));
            ProfileResult {
                name: name.to_owned(),
                endpoints: (0..self.population.active()).filter(|endpoint| is_one(*endpoint)).count() as u64,
                deliveries: rate(deliveries, &times),
                latency: self.latency(|item| is_one(item.endpoint)),
            }
        };
        names.into_iter().map(result).collect()
    }

    /// Each kind in the order in which it first came.
    fn near_faults(&self) -> Vec<NearFault> {
        let mut kinds: Vec<Fault> = Vec::new();
        for mark in self.evidence.faults.iter().filter(|mark| mark.fault.is_felt()) {
            if !kinds.contains(&mark.fault) {
                kinds.push(mark.fault);
            }
        }
        kinds.into_iter().filter_map(|fault| self.near(fault)).collect()
    }

    fn near(&self, fault: Fault) -> Option<NearFault> {
        let marks = || self.evidence.faults.iter().filter(move |mark| mark.fault == fault);
        // Whoever takes over does so within a lease.
        let recovery_us = micros(self.population.terms().lease);
        let spans: Vec<_> = marks().map(|mark| mark_us(mark.at)..mark_us(mark.until) + recovery_us).collect();
        let mut felt = histogram();
        for (_, item) in self.items().filter(|(_, item)| item.book.arrivals > 0) {
            let is_near = spans.iter().any(|span| span.contains(&item.sent.sent_us));
            if is_near && matches!(self.population.profile(item.endpoint), Profile::Healthy { .. }) {
                felt.saturating_record(item.book.first_arrival_us.saturating_sub(item.sent.sent_us).max(1));
            }
        }
        Some(NearFault { fault, times: marks().count() as u64, latency: Latency::of(&felt)? })
    }

    fn series(&self) -> Vec<Second> {
        let mut series = Series::default();
        for event in &self.books().events {
            series.at(event.intended_us).intended += 1;
            if event.sent_us != NEVER {
                series.at(event.sent_us).sent += 1;
            }
        }
        let mut arrivals: Vec<(u32, u32)> = Vec::new();
        for (_, item) in self.items().filter(|(_, item)| item.book.arrivals > 0) {
            if item.book.is_acknowledged() {
                series.at(item.book.acknowledged_us).acknowledged += 1;
            }
            if self.population.is_alive(item.endpoint) {
                let second = (item.book.first_arrival_us / 1_000_000) as u32;
                arrivals.push((second, latency_us(&item).min(u64::from(u32::MAX)) as u32));
            }
        }
        for (at, second) in self.books().seconds.iter().enumerate() {
            series.at(at as u64 * 1_000_000).failed = u64::from(second.failed);
        }
        arrivals.sort_unstable();
        for second in arrivals.chunk_by(|one, other| one.0 == other.0) {
            let rank =
                |share: f64| Some(u64::from(second[((second.len() as f64 * share) as usize).min(second.len() - 1)].1));
            let row = series.at(u64::from(second[0].0) * 1_000_000);
            (row.p50_us, row.p99_us, row.max_us) = (rank(0.5), rank(0.99), rank(1.0));
        }
        series.0
    }
}

/// Seconds of the run, as many as are needed.
#[derive(Default)]
struct Series(Vec<Second>);

impl Series {
    fn at(&mut self, at_us: u64) -> &mut Second {
        let second = ((at_us / 1_000_000) as usize).min(super::ledger::books::MAX_SECONDS - 1);
        while self.0.len() <= second {
            self.0.push(Second { at: self.0.len() as u32, ..Second::default() });
        }
        &mut self.0[second]
    }
}

fn latency_us(item: &Item<'_>) -> u64 {
    item.book.first_arrival_us.saturating_sub(item.sent.intended_us).max(1)
}

/// A time of the evidence, in the books' unit.
fn mark_us(seconds: f64) -> u64 {
    micros(std::time::Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default())
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;

//! The figures of a run: counts, latencies and the series by second. Pure.

use std::collections::{HashMap, HashSet};

use super::{
    asks::{Ask, Customer},
    judge::Case,
    ledger::{Asked, Outcome},
};
use crate::loadtest::{
    latency::histogram,
    ledger::books::MAX_SECONDS,
    result::{Deliveries, Generator, Latency, Requests, Second},
};

/// Later than this, and not the service's doing.
const LATE_US: u64 = 50_000;

pub struct Figures {
    pub generator: Generator,
    pub deliveries: Deliveries,
    /// From a request's intended time to the first arrival of what it did.
    pub latency: Option<Latency>,
    /// From a request's intended time to its answer.
    pub answers: Option<Latency>,
    pub requests: Vec<Requests>,
    pub series: Vec<Second>,
    pub seconds: f64,
}

impl Figures {
    pub fn of(case: &Case, intended: u64) -> Self {
        let asked = &case.books.asked;
        let last_us = asked.iter().map(|asked| asked.ended_us);
        let last_us = last_us.chain(case.books.arrivals.iter().map(|arrival| arrival.at_us)).max().unwrap_or(0);
        let seconds = last_us as f64 / 1e6;
        let arrivals = first_arrivals(case);
        Self {
            generator: generator(case, intended),
            deliveries: deliveries(case, seconds),
            latency: latency(arrivals.iter().map(|(_, us)| *us)),
            answers: latency(asked.iter().filter(|asked| is_answered(asked)).map(answer_us)),
            requests: requests(asked),
            series: series(case, &arrivals),
            seconds,
        }
    }
}

fn latency(all_us: impl Iterator<Item = u64>) -> Option<Latency> {
    let mut all = histogram();
    all_us.for_each(|us| all.saturating_record(us.max(1)));
    Latency::of(&all)
}

fn is_answered(asked: &Asked) -> bool {
    matches!(asked.outcome, Outcome::Done(_) | Outcome::Refused(..))
}

fn answer_us(asked: &Asked) -> u64 {
    asked.ended_us.saturating_sub(asked.intended_us)
}

fn generator(case: &Case, intended: u64) -> Generator {
    let lateness = &case.books.lateness_us;
    Generator {
        intended,
        sent: case.books.asked.len() as u64,
        sent_again: case.books.asked.iter().map(|asked| u64::from(asked.tries.saturating_sub(1))).sum(),
        late: lateness.iter().filter(|(_, late_us)| *late_us > LATE_US).count() as u64,
        lateness: latency(lateness.iter().map(|(_, late_us)| *late_us)),
    }
}

fn deliveries(case: &Case, seconds: f64) -> Deliveries {
    let owed = case.stored.iter().map(|stored| stored.told.len()).sum::<usize>() as u64 * u64::from(case.fan_out);
    let acknowledged = case.books.arrivals.iter().filter(|arrival| arrival.is_acknowledged);
    let distinct: HashSet<_> = acknowledged.clone().map(|one| (one.endpoint, one.event.as_str())).collect();
    let distinct = distinct.len() as u64;
    Deliveries {
        owed,
        acknowledged: distinct.min(owed),
        dead: 0,
        unfinished: owed.saturating_sub(distinct),
        attempts: case.books.arrivals.len() as u64,
        duplicates: acknowledged.count() as u64 - distinct,
        rate: distinct as f64 / seconds.max(1e-3),
    }
}

fn requests(asked: &[Asked]) -> Vec<Requests> {
    let of = |name: &'static str| {
        let all = asked.iter().filter(|asked| asked.ask.name() == name);
        let count = |is: fn(&Outcome) -> bool| all.clone().filter(|asked| is(&asked.outcome)).count() as u64;
        Requests {
            name: name.to_owned(),
            asked: all.clone().count() as u64,
            done: count(|outcome| matches!(outcome, Outcome::Done(_))),
            refused: count(|outcome| matches!(outcome, Outcome::Refused(..))),
            unavailable: count(|outcome| matches!(outcome, Outcome::Untouched)),
            unknown: count(|outcome| matches!(outcome, Outcome::Unknown | Outcome::Failed(..))),
            latency: latency(all.clone().filter(|asked| is_answered(asked)).map(answer_us)),
        }
    };
    Ask::NAMES.into_iter().map(of).filter(|requests| requests.asked > 0).collect()
}

/// Of what happens to an intent at most once, so that an event is certainly of this request: when it arrived, and how long after
/// the request's intended time.
fn first_arrivals(case: &Case) -> Vec<(u64, u64)> {
    let mut firsts: HashMap<(&str, &str), u64> = HashMap::new();
    for arrival in &case.books.arrivals {
        let first = firsts.entry((&arrival.intent, &arrival.status)).or_insert(arrival.at_us);
        *first = arrival.at_us.min(*first);
    }
    let told = |asked: &Asked| -> Option<(u64, u64)> {
        let arrival = |status| firsts.get(&(asked.intent.as_str(), status));
        let at_us = match asked.ask {
            Ask::Create { .. } => arrival("Created"),
            Ask::Pay(Customer::Approved) => arrival("Authorized").or_else(|| arrival("Captured")),
            Ask::Reverse => arrival("Reversed"),
            Ask::Cancel => arrival("Canceled"),
            _ => None,
        };
        at_us.map(|at_us| (*at_us, at_us.saturating_sub(asked.intended_us)))
    };
    case.books.asked.iter().filter(|asked| asked.is_done()).filter_map(told).collect()
}

fn series(case: &Case, arrivals: &[(u64, u64)]) -> Vec<Second> {
    let mut series: Vec<Second> = Vec::new();
    let mut at = |us: u64, note: &dyn Fn(&mut Second)| {
        let second = ((us / 1_000_000) as usize).min(MAX_SECONDS - 1);
        while series.len() <= second {
            series.push(Second { at: series.len() as u32, ..Second::default() });
        }
        note(&mut series[second]);
    };
    for (intended_us, late_us) in &case.books.lateness_us {
        at(*intended_us, &|second| second.intended += 1);
        at(intended_us + late_us, &|second| second.sent += 1);
    }
    for arrival in &case.books.arrivals {
        at(arrival.at_us, &|second| match arrival.is_acknowledged {
            true => second.acknowledged += 1,
            false => second.failed += 1,
        });
    }
    let mut sorted: Vec<(u64, u64)> = arrivals.iter().map(|(at_us, us)| (at_us / 1_000_000, *us)).collect();
    sorted.sort_unstable();
    for chunk in sorted.chunk_by(|one, other| one.0 == other.0) {
        let rank = |share: f64| Some(chunk[((chunk.len() as f64 * share) as usize).min(chunk.len() - 1)].1);
        at(chunk[0].0 * 1_000_000, &|second| {
            (second.p50_us, second.p99_us, second.max_us) = (rank(0.5), rank(0.99), rank(1.0));
        });
    }
    series
}

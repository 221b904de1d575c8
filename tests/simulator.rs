//! The state machine under every fault that the design names, in virtual time; and a proof that the simulator would
//! notice if a rule of the design were broken.
//!
//! `HERALD_SIM_SEEDS` sets how many seeds run and `HERALD_SIM_SECONDS` for how long (if both are set, whichever is
//! reached first ends it); `HERALD_SIM_SEED` is the first of them, and alone it is replayed by itself. With
//! `--nocapture` each test ends with one line of JSON, `{"simulator":…}` and `{"mutations":…}`.
// The clock only says when a run of so many seconds is over.
#![allow(clippy::disallowed_methods)]

mod simulation;

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use simulation::{
    mutation::Mutation,
    routing::{self, Mutation as RoutingMutation, Tried},
    splitting::{self, Mutation as SplittingMutation, Tried as SplitsTried},
    tally::{Broken, Promise, Tally},
};

/// A mutation that survives this many seeds is one that the simulator does not see.
const MUTATION_SEEDS: u64 = 4_000;

/// Seeds that noticed what few others do: tried first, as it takes minutes to come to them.
const NOTICED_BEFORE: [u64; 2] = [843, 1_967];

/// What the suite runs by default: about a minute.
const SEEDS: u64 = 2_000;

/// Seeds that found something once.
const FOUND_BEFORE: [u64; 14] =
    [1_198, 4_434, 7_090, 14_382, 15_996, 17_814, 27_061, 41_537, 72_046, 96_899, 105_886, 119_397, 147_191, 165_747];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text:?}")))
}

#[test]
fn every_promise_holds_in_every_seed() {
    let (first, seconds) = (number("HERALD_SIM_SEED"), number("HERALD_SIM_SECONDS"));
    let by_default = if first.is_some() { 1 } else { SEEDS };
    let count = number("HERALD_SIM_SEEDS").unwrap_or(if seconds.is_some() { u64::MAX / 2 } else { by_default });
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first = first.unwrap_or(1);
    println!("the first seed is {first}");
    let found_before = if count == 1 { &[][..] } else { &FOUND_BEFORE };
    let seeds = found_before.iter().copied().chain((first..).take(usize::try_from(count).unwrap_or(usize::MAX)));
    let (sum, seeds, failed, seconds) = run_all(seeds, end);
    println!(r#"{{"simulator":{{"first_seed":{first},"seeds":{seeds},"cpu_seconds":{seconds:.1},{sum}}}}}"#);
    if let Some(seed) = failed {
        panic!("{}", simulation::story(seed));
    }
    if seeds >= SEEDS {
        check_that_it_was_tried(&sum);
    }
}

/// Runs seeds on as many threads as there are processors, until one fails: their tally, how many they were, the one that failed
/// and the CPU time of all threads.
fn run_all(seeds: impl Iterator<Item = u64> + Send, end: Option<Instant>) -> (Tally, u64, Option<u64>, f64) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, failed) = (Mutex::new(seeds), Mutex::new(None));
    let next = || {
        let is_over = end.is_some_and(|end| Instant::now() >= end) || failed.lock().unwrap().is_some();
        if is_over { None } else { next.lock().unwrap().next() }
    };
    let run = || {
        let (mut sum, mut count, started) = (Tally::default(), 0, cpu_seconds());
        while let Some(seed) = next() {
            let (tally, broken) = simulation::seed(seed, None);
            sum.add(&tally);
            count += 1;
            if broken.is_some() {
                *failed.lock().unwrap() = Some(seed);
            }
        }
        (sum, count, cpu_seconds() - started)
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (mut sum, mut count, mut seconds) = (Tally::default(), 0, 0.0);
    for (part, seeds, took) in &parts {
        sum.add(part);
        (count, seconds) = (count + seeds, seconds + took);
    }
    (sum, count, failed.into_inner().unwrap(), seconds)
}

/// A run that does not try something proves nothing about it.
fn check_that_it_was_tried(sum: &Tally) {
    let tried = [
        "events",
        "attempts",
        "crashes",
        "freezes",
        "lost_answers",
        "lost_calls",
        "late_answers",
        "late_scripts",
        "failed_scripts",
        "refused_settles",
        "registries_lost",
        "registries_set_back",
        "memory_pressure",
        "redis_full",
        "redis_restarts",
        "redis_rolled_back",
        "groups_destroyed",
        "ids_given_again",
        "over_endpoint_quota",
        "over_account_quota",
        "paused_for_quota",
        "streams_made_anew",
        "places_waited_for_in_vain",
        "places_lost_with_a_failure",
        "deferred_in_memory",
        "older_heralds",
        "given_away_with_records",
        "locks",
        "locked_for_an_age",
        "operations",
        "operations_changed",
        "letters_taken",
        "exceptions",
        "steps_lost",
        "steps_unanswered",
        "steps_run_late",
        "settled_again",
        "redelivered_again",
    ];
    for what in tried {
        assert!(sum.of(what) > 0, "no seed had {what}: {sum}");
    }
    for promise in Promise::ALL {
        assert!(sum.checks(promise) > 0, "{} was never checked", promise.name());
    }
}

/// The CPU time of this thread: the wall clock would also count whatever else the machine is doing.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or_default() / 1e9
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 1..=50 {
        assert_eq!(simulation::told(seed), simulation::told(seed), "seed {seed} went another way");
    }
}

/// The first seed that notices a broken rule.
fn caught(mutation: Mutation) -> Option<(u64, Broken)> {
    let seeds = NOTICED_BEFORE.into_iter().chain(1..=MUTATION_SEEDS);
    seeds.into_iter().find_map(|seed| Some((seed, simulation::seed(seed, Some(mutation)).1?)))
}

#[test]
fn every_way_to_break_a_rule_is_noticed() {
    let mut survivors = Vec::new();
    for mutation in Mutation::ALL {
        match caught(mutation) {
            Some((seed, broken)) => {
                let why: String = broken.why.chars().take(160).collect();
                println!("{}: noticed by seed {seed} ({}: {why})", mutation.what(), broken.promise.name());
            }
            None => survivors.push(mutation.what()),
        }
    }
    let (all, caught) = (Mutation::ALL.len(), Mutation::ALL.len() - survivors.len());
    println!(r#"{{"mutations":{{"tried":{all},"caught":{caught}}}}}"#);
    assert!(survivors.is_empty(), "not noticed within {MUTATION_SEEDS} seeds: {survivors:?}");
}

/// What the router's runs take by default: half a minute.
const ROUTING_SEEDS: u64 = 150;

#[test]
fn every_entry_is_passed_on_once_and_in_its_order_in_every_seed() {
    let first = number("HERALD_SIM_SEED");
    let count = number("HERALD_SIM_SEEDS").unwrap_or(if first.is_some() { 1 } else { ROUTING_SEEDS });
    let mut sum = Tried::default();
    for seed in (first.unwrap_or(1)..).take(usize::try_from(count).unwrap_or(usize::MAX)) {
        let (tried, broken) = routing::seed(seed, None);
        sum.add(&tried);
        if let Some(why) = broken {
            panic!("seed {seed}: {why}");
        }
    }
    println!("{count} seeds: {sum:?}");
    let Tried { events, passed, failovers, set_back, elsewhere, raised, trimmed, overlaps, requeued } = sum;
    let all = [events, passed, failovers, set_back, elsewhere, raised, trimmed, overlaps, requeued];
    assert!(count < ROUTING_SEEDS || all.iter().all(|tried| *tried > 0), "something was never tried: {sum:?}");
}

#[test]
fn every_way_to_route_wrongly_is_noticed() {
    let mut survivors = Vec::new();
    for mutation in RoutingMutation::ALL {
        match (1..=MUTATION_SEEDS).find_map(|seed| Some((seed, routing::seed(seed, Some(mutation)).1?))) {
            Some((seed, why)) => {
                println!("{mutation:?}: noticed by seed {seed} ({})", why.lines().next().unwrap_or_default());
            }
            None => survivors.push(mutation),
        }
    }
    assert!(survivors.is_empty(), "not noticed within {MUTATION_SEEDS} seeds: {survivors:?}");
}

/// A run takes some ten milliseconds.
const SPLITTING_SEEDS: u64 = 1_000;

#[test]
fn a_split_hands_over_everything_once_and_in_order_in_every_seed() {
    let (first, count) = (number("HERALD_SIM_SEED"), number("HERALD_SIM_SEEDS"));
    let count = count.unwrap_or(if first.is_some() { 1 } else { SPLITTING_SEEDS });
    let mut sum = SplitsTried::default();
    for seed in (first.unwrap_or(1)..).take(usize::try_from(count).unwrap_or(usize::MAX)) {
        let (tried, broken) = splitting::seed(seed, None);
        sum.add(&tried);
        if let Some(why) = broken {
            panic!("seed {seed}: {why}");
        }
    }
    println!("{count} seeds: {sum:?}");
    assert!(count < SPLITTING_SEEDS || sum.all().iter().all(|tried| *tried > 0), "something was never tried: {sum:?}");
}

#[test]
fn every_way_to_split_wrongly_is_noticed() {
    let mut survivors = Vec::new();
    for mutation in SplittingMutation::ALL {
        match (1..=MUTATION_SEEDS).find_map(|seed| Some((seed, splitting::seed(seed, Some(mutation)).1?))) {
            Some((seed, why)) => {
                println!("{mutation:?}: noticed by seed {seed} ({})", why.lines().next().unwrap_or_default());
            }
            None => survivors.push(mutation),
        }
    }
    assert!(survivors.is_empty(), "not noticed within {MUTATION_SEEDS} seeds: {survivors:?}");
}

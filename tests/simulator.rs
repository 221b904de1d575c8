//! The state machine under every fault that the design names, in virtual time; and proof that this would notice if a
//! rule of the design were broken. `HERALD_SIM_SEEDS` sets how many seeds run, `HERALD_SIM_SEED` replays one.

mod simulation;

use simulation::mutation::Mutation;

/// What the suite runs by default: a few seconds.
const SEEDS: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

#[test]
fn every_promise_holds_in_every_seed() {
    let (first, count) = match number("HERALD_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("HERALD_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    let started = herald::clock::now();
    for seed in first..first + count {
        if simulation::failure(seed).is_some() {
            panic!("{}", simulation::story(seed));
        }
    }
    let seconds = (herald::clock::now() - started).as_secs_f64();
    println!("{count} seeds in {seconds:.1} s: {:.0} a minute", count as f64 * 60.0 / seconds);
}

//! The state machine under every fault that the design names, in virtual time; and proof that this would notice if a
//! rule of the design were broken. `HERALD_SIM_SEEDS` sets how many seeds run, `HERALD_SIM_SEED` the first of
//! them; by itself it replays that one.

mod simulation;

use simulation::mutation::Mutation;

/// A mutation that survives so many seeds is one that the simulator does not see.
const MUTATION_SEEDS: u64 = 4_000;

/// What the suite runs by default: a few seconds.
const SEEDS: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

#[test]
fn every_promise_holds_in_every_seed() {
    let first = number("HERALD_SIM_SEED");
    let count = number("HERALD_SIM_SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let first = first.unwrap_or(1);
    let started = cpu_seconds();
    for seed in first..first + count {
        if simulation::failure(seed, None).is_some() {
            panic!("{}", simulation::story(seed));
        }
    }
    let seconds = cpu_seconds() - started;
    println!("{count} seeds in {seconds:.1} s of CPU: {:.0} a minute", count as f64 * 60.0 / seconds);
}

/// What this thread has used of the CPU: the wall clock would count who else is on the machine.
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

/// Breaks one rule, and demands that it is noticed.
fn is_caught(mutation: Mutation) {
    let caught = (1..=MUTATION_SEEDS).find_map(|seed| Some((seed, simulation::failure(seed, Some(mutation))?)));
    let (seed, why) = caught.unwrap_or_else(|| panic!("{mutation:?} survived {MUTATION_SEEDS} seeds"));
    println!("{mutation:?} was caught by seed {seed}: {}", why.chars().take(200).collect::<String>());
}

#[test]
fn a_script_without_a_fence_is_noticed() {
    is_caught(Mutation::NoFence);
}

#[test]
fn an_acknowledgement_before_its_record_is_noticed() {
    is_caught(Mutation::AcksBeforeRecords);
}

#[test]
fn new_entries_before_the_pending_ones_is_noticed() {
    is_caught(Mutation::NewBeforePending);
}

#[test]
fn claimed_deliveries_that_are_not_moved_back_is_noticed() {
    is_caught(Mutation::ClaimedNotMovedBack);
}

#[test]
fn a_held_delivery_popped_before_the_settle_is_noticed() {
    is_caught(Mutation::HeldPoppedBeforeSettle);
}

#[test]
fn the_same_value_for_every_term_is_noticed() {
    is_caught(Mutation::SameTermAgain);
}

#[test]
fn a_settle_repeated_on_a_new_connection_is_noticed() {
    is_caught(Mutation::SettleRetriedElsewhere);
}

#[test]
fn records_written_out_of_the_order_of_their_chain_is_noticed() {
    is_caught(Mutation::RecordsOutOfOrder);
}

#[test]
fn questions_answered_with_nothing_is_noticed() {
    is_caught(Mutation::AskAnswersZero);
}

#[test]
fn followers_that_are_not_held_on_a_retry_is_noticed() {
    is_caught(Mutation::FollowersNotHeld);
}

#[test]
fn a_delivery_promoted_without_waiting_is_noticed() {
    is_caught(Mutation::PromotedWithoutWaiting);
}

#[test]
fn trimming_what_is_pending_is_noticed() {
    is_caught(Mutation::TrimIgnoresPending);
}

#[test]
fn a_cursor_ahead_of_what_is_pending_is_noticed() {
    is_caught(Mutation::CursorAheadOfPending);
}

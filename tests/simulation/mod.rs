//! Runs seeds, and shows the shortest story of one that fails.

mod ledger;
pub mod mutation;
pub mod plan;
pub mod routing;
pub mod splitting;
pub mod tally;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use mutation::Mutation;
use plan::{Action, Plan};
use tally::{Broken, Promise, Tally};
use world::World;

/// How many steps of the story are printed at its end.
const LAST_STEPS: usize = 120;

/// One run: what it did, and the promise that it broke, if any.
fn run(plan: &Plan, mutation: Option<Mutation>) -> (Tally, Option<Broken>) {
    let mut world = World::new(plan.clone(), mutation);
    let broken = match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(result) => result.err(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Some(Broken { promise: Promise::Sound, why: text.unwrap_or_default() })
        }
    };
    let mut tally = std::mem::take(&mut world.tally);
    if let Some(broken) = &broken {
        tally.broken(broken.promise);
    }
    (tally, broken)
}

/// The run of a seed.
pub fn seed(seed: u64, mutation: Option<Mutation>) -> (Tally, Option<Broken>) {
    run(&Plan::of(seed), mutation)
}

/// Everything that happens in a run, line by line.
pub fn told(seed: u64) -> Vec<String> {
    let mut world = World::new(Plan::of(seed), None);
    world.trace = Some(Vec::new());
    let end = world.run();
    let mut trace = world.trace.unwrap_or_default();
    trace.push(format!("{end:?}"));
    trace
}

/// Leaves out whatever the failure does not need, in ever smaller pieces.
fn shrink(mut plan: Plan) -> Plan {
    let mut piece = plan.actions.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < plan.actions.len() {
            let mut shorter = plan.clone();
            shorter.actions.drain(at..(at + piece).min(plan.actions.len()));
            match run(&shorter, None).1 {
                Some(_) => plan = shorter,
                None => at += piece,
            }
        }
        piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
    }
    plan
}

/// The shortest story of a failing seed.
pub fn story(seed: u64) -> String {
    let plan = shrink(Plan::of(seed));
    let mut world = World::new(plan.clone(), None);
    world.trace = Some(Vec::new());
    let why = match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(result) => result.err().map_or("it does not fail a second time".to_owned(), |broken| broken.why),
        Err(_) => "a panic".to_owned(),
    };
    let actions: Vec<String> =
        plan.actions.iter().map(|(at, action): &(u64, Action)| format!("{at:>6} {action:?}")).collect();
    let trace = world.trace.unwrap_or_default();
    let last = &trace[trace.len().saturating_sub(LAST_STEPS)..];
    format!(
        "seed {seed}: {why}\n{} workers, endpoints {:#?}\nwhat was done:\n{}\nthe last steps:\n{}\nreplay: HERALD_SIM_SEED={seed} cargo test --test simulator\n{why}",
        plan.workers,
        plan.endpoints,
        actions.join("\n"),
        last.join("\n")
    )
}

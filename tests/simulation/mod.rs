//! Runs seeds, and tells a failing one as short as it can be told.

mod ledger;
pub mod mutation;
pub mod plan;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use mutation::Mutation;
use plan::{Action, Plan};
use world::World;

/// Steps of the story that are printed at its end.
const LAST_STEPS: usize = 120;

fn fails(plan: &Plan, mutation: Option<Mutation>) -> Option<String> {
    let mut world = World::new(plan.clone(), mutation);
    match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(result) => result.err(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Some(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
        }
    }
}

/// Why a seed fails, if it does: a broken promise or a panic.
pub fn failure(seed: u64, mutation: Option<Mutation>) -> Option<String> {
    fails(&Plan::of(seed), mutation)
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
            match fails(&shorter, None) {
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
        Ok(result) => result.err().unwrap_or_else(|| "it does not fail a second time".to_owned()),
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

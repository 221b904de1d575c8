//! Who takes over when the owner is killed, and how soon its first delivery arrives.

use std::time::Duration;

use anyhow::{Result, ensure};
use herald::{
    clock,
    surface::words::{number, seconds},
};

use crate::{
    processes::wait_for,
    stack::{STUCK, Stack, rest},
};

/// The owner is killed when it has delivered this many: in the middle of its work.
const AT_WORK: u64 = 1_000;

/// What the killed owner had sent has arrived within this time; the lease holds for far longer.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// From `kill -9` to the first delivery of the other one. The stack is paused before and after.
pub fn take_over(stack: &mut Stack) -> Result<Duration> {
    let other = stack.start_another()?;
    stack.until_calm()?;
    let lease = stack.state.lease()?;
    let before = stack.receiver.count()?;
    stack.nudge()?;
    stack.state.resume()?;
    wait_for("the owner to work", STUCK, || stack.receiver.count().is_ok_and(|count| count >= before + AT_WORK))?;
    ensure!(stack.state.lease()? == lease, "the partition has changed hands before the kill");
    let killed = clock::now();
    stack.replace_owner(other);
    rest(LAST_WORDS);
    let left = stack.receiver.count()?;
    let behind = stack.behind()?;
    wait_for("the other one to deliver", STUCK, || stack.receiver.count().is_ok_and(|count| count > left))?;
    let took = clock::now() - killed;
    ensure!(stack.state.lease()? != lease, "what arrived is not of the one that took over");
    wait_for("more of it", STUCK, || stack.receiver.count().is_ok_and(|count| count >= left + AT_WORK))?;
    stack.state.pause()?;
    eprintln!("  took over after {}, with {} behind", seconds(took.as_secs_f64()), number(behind));
    Ok(took)
}

//! How long a stream stands still while it is split into parts.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use herald::{
    clock,
    surface::words::{number, seconds},
};

use crate::{
    processes::wait_for,
    stack::{STUCK, Stack},
};

const PARTS: &str = "8";

/// From the moment at which nothing more is read or sent until the parts are there to be opened.
pub fn split(program: &Path, stack: &mut Stack, left: u64) -> Result<Duration> {
    ensure!(stack.state.records()? >= left, "there is not enough to hand over");
    let words = ["repartition", "--into", PARTS, "--yes", "--no-wait", "--reason", "bench"];
    let mut command = Command::new(program);
    command.args(words).env("HERALD_REDIS_URL", stack.redis.url()).env("HERALD_HISTORY_URL", "");
    let asked = command.stdout(Stdio::null()).status()?;
    let began = clock::now();
    ensure!(asked.success(), "the owner does not split the stream");
    wait_for("a stream that is split", STUCK, || stack.state.mode().is_ok_and(|mode| mode.starts_with("routed ")))?;
    let took = clock::now() - began;
    ensure!(stack.state.records()? == 0, "something was left behind");
    eprintln!("  {} records were handed over within {}", number(left), seconds(took.as_secs_f64()));
    Ok(took)
}

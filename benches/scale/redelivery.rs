//! What live traffic notices of an operation that redelivers all that lies dead, to endpoints of another receiver.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    neighbours::{Latency, latency},
    processes::{Receiver, Scheme},
    stack::{Setup, Stack},
    state::BUSY,
};

/// Endpoints whose letters are sent again. They have no other traffic.
const OTHERS: u64 = 10;

pub struct Seen {
    pub alone: Latency,
    pub beside: Latency,
    pub redelivered: u64,
}

/// Two stacks with as many letters; in one of them an operation runs while it is measured, and rests while the other is.
pub fn seen(program: &Path, letters: u64, rounds: u32, seconds: u64) -> Result<Seen> {
    let folder = TempDir::with_prefix("herald-scale-")?;
    let receiver = Receiver::start(folder.path())?;
    let url = receiver.url(Scheme::Http);
    let elsewhere = |at: u64| (at >= BUSY).then(|| format!("{url}/{at}"));
    let start = || {
        let (endpoints, busy, others) = (BUSY + OTHERS, BUSY, Vec::new());
        let setup =
            Setup { program, endpoints, busy, elsewhere: &elsewhere, others, due_later: 0, parked: 0, depth: 0 };
        let mut stack = Stack::start(&setup)?;
        stack.state.bury_owned(letters, OTHERS)?;
        stack.state.resume()?;
        anyhow::Ok(stack)
    };
    let mut stacks = [start()?, start()?];
    let operation = Operation::start(program, stacks[1].redis.url())?;
    let mut seen = [Vec::new(), Vec::new()];
    // Before the first round that counts, connections are made.
    for round in 0..=rounds {
        let first = (round % 2) as usize;
        for side in [first, 1 - first] {
            operation.ask(if side == 0 { "pause" } else { "resume" })?;
            let taken = latency(&mut stacks[side], seconds, |_| true)?;
            if round > 0 {
                eprintln!("redelivery {side}, round {round}: p50 {} µs, p99 {} µs", taken.p50_us, taken.p99_us);
                seen[side].push(taken);
            }
        }
    }
    let shown = operation.ask("resume")?;
    ensure!(shown["state"] == "running" && shown["left"] != 0, "it ended before it was measured: {shown}");
    let [alone, beside] = seen.map(Latency::median);
    Ok(Seen { alone, beside, redelivered: shown["done"].as_u64().unwrap_or(0) })
}

/// One that is under way, as an operator works with it.
struct Operation {
    program: PathBuf,
    redis: String,
    id: String,
}

impl Operation {
    fn start(program: &Path, redis: String) -> Result<Self> {
        let mut operation = Self { program: program.to_owned(), redis, id: String::new() };
        let planned = operation.run(&["plan", "redeliver", "--all", "--reason", "measured"])?;
        planned["id"].as_str().context("no id")?.clone_into(&mut operation.id);
        operation.ask("start")?;
        Ok(operation)
    }

    fn ask(&self, verb: &str) -> Result<Value> {
        self.run(&[verb, &self.id])
    }

    fn run(&self, words: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command.args(["--redis-url", &self.redis, "-o", "json", "operation"]).args(words);
        let output = command.output()?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

//! What it costs to pass entries on from the one stream to its parts, while nobody works on these.

use std::path::Path;

use anyhow::{Result, ensure};
use herald::{
    clock,
    surface::words::{number, rate, time},
};
use tempfile::TempDir;

use crate::{
    events::Lives,
    processes::{Herald, Producer, Receiver, Redis, Scheme, wait_for},
    stack::{Cost, STUCK},
    state::{BUSY, State, endpoint},
};

/// Accounts: so many that every part has some.
const ACCOUNTS: u64 = 10 * BUSY;

/// This part of all is passed on before counting starts.
const WARM_UP: u64 = 10;

/// What an entry costs that goes from a stream into one of so many parts, all of it on one Redis.
pub fn routed(program: &Path, entries: u64, parts: u32) -> Result<Cost> {
    let folder = TempDir::with_prefix("herald-scale-")?;
    let (redis, receiver) = (Redis::start()?, Receiver::start(folder.path())?);
    let mut state = State::connect(&redis)?;
    let url = receiver.url(Scheme::Http);
    state.register((0..ACCOUNTS).map(|at| endpoint(at, at, url.clone())).collect::<Result<_>>()?)?;
    // Entries are passed on all the same, and stay in their parts.
    state.pause()?;
    let mut producer: Producer = redis.producer()?;
    producer.add_all(Lives::new(ACCOUNTS as usize, 3).take(entries as usize))?;
    let settings = [("HERALD_PARTITIONS", &*parts.to_string())];
    let herald = Herald::start(program, &redis, &receiver, folder.path(), &settings)?;
    let mut until = |least: u64| {
        wait_for("entries in the parts", STUCK, || state.in_parts(parts).is_ok_and(|there| there >= least))?;
        let there = state.in_parts(parts)?;
        anyhow::Ok((clock::now(), there, herald.process.cpu_s(), redis.cpu_s()))
    };
    let (first, last) = (until(entries / WARM_UP)?, until(entries)?);
    ensure!(last.1 == entries, "{} entries are in the parts, and {entries} were added", last.1);
    let count = (last.1 - first.1).max(1) as f64;
    let cost = Cost {
        herald_us: (last.2 - first.2) * 1e6 / count,
        redis_us: (last.3 - first.3) * 1e6 / count,
        rate: count / (last.0 - first.0).as_secs_f64(),
    };
    let [herald_us, redis_us] = [cost.herald_us, cost.redis_us].map(time);
    eprintln!("  {} into {parts} parts: {}, Herald {herald_us}, Redis {redis_us}", number(entries), rate(cost.rate));
    Ok(cost)
}

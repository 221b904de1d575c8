//! What `herald plan` says beside what is used, at rates that a machine can bear beside its producer, its Redis and its receiver.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use herald::{
    clock,
    facts::capacity::{Demand, plan, shipped},
    surface::words::{rate, time},
};
use tempfile::TempDir;

use crate::{
    events::Lives,
    processes::{Herald, Receiver, Redis, Scheme, wait_for},
    stack::{Cost, STUCK},
    state::{BUSY, State, endpoint},
};

const WARM_UP_S: u64 = 3;
const COUNTED_S: u64 = 15;

/// Producers add what has come in this time together, each event in a command of its own.
const TOGETHER: Duration = Duration::from_millis(5);

/// What a delivery takes of Herald and of Redis while so many events a second come in, each for one endpoint, in so many partitions
/// of one process.
pub fn used(program: &Path, events_per_s: u64, partitions: u32) -> Result<Cost> {
    let together = (u128::from(events_per_s) * TOGETHER.as_micros() / 1_000_000) as u64;
    ensure!(together > 0, "{events_per_s} a second are less than one in {TOGETHER:?}");
    let folder = TempDir::with_prefix("herald-scale-")?;
    let (redis, receiver) = (Redis::start()?, Receiver::start(folder.path())?);
    receiver.stand_back()?;
    let mut state = State::connect(&redis)?;
    let url = receiver.url(Scheme::Http);
    state.register((0..BUSY).map(|at| endpoint(at, at, url.clone())).collect::<Result<_>>()?)?;
    let mut producer = redis.producer()?;
    if partitions > 1 {
        producer.split(partitions)?;
    }
    let herald = Herald::start(program, &redis, &receiver, folder.path(), &[])?;
    let (mut lives, mut added) = (Lives::new(BUSY as usize, 3), 0);
    let mut come = |until_s: u64| -> Result<_> {
        while added < until_s * events_per_s {
            let began = clock::now();
            producer.add_all(lives.by_ref().take(together as usize))?;
            added += together;
            wait(TOGETHER.saturating_sub(began.elapsed()));
        }
        anyhow::Ok((clock::now(), receiver.count()?, herald.process.cpu_s(), redis.cpu_s()))
    };
    let (first, last) = (come(WARM_UP_S)?, come(WARM_UP_S + COUNTED_S)?);
    let (count, took_s) = ((last.1 - first.1).max(1) as f64, (last.0 - first.0).as_secs_f64());
    let cost = Cost {
        herald_us: (last.2 - first.2) * 1e6 / count,
        redis_us: (last.3 - first.3) * 1e6 / count,
        rate: count / took_s,
    };
    let [herald_us, redis_us] = [cost.herald_us, cost.redis_us].map(time);
    eprintln!("  {} (partitions: {partitions}): Herald {herald_us} a delivery, Redis {redis_us}", rate(cost.rate));
    ensure!(cost.rate >= 0.9 * events_per_s as f64, "this machine does not bear {events_per_s} a second");
    wait_for("the last deliveries", STUCK, || receiver.count().is_ok_and(|count| count >= added))?;
    Ok(cost)
}

#[expect(clippy::disallowed_methods, reason = "the producer has this thread for itself")]
fn wait(pause: Duration) {
    std::thread::sleep(pause);
}

/// The same by the plan's arithmetic, without what it has to spare, and in how many partitions.
pub fn planned(events_per_s: u64) -> Result<(Cost, u32)> {
    let rate = events_per_s as f64;
    let demand = Demand {
        events_per_s: rate,
        endpoints: BUSY,
        fan_out: 1.0,
        failure_rate: 0.0,
        retention_s: 0.0,
        outage_s: 0.0,
        https: false,
        latency_ms: 0.0,
        body_bytes: 600.0,
        largest_account: 1.0 / BUSY as f64,
    };
    let plan = plan(&demand, shipped()).context("the plan's costs are not complete")?;
    let [herald_us, redis_us] = [plan.cores_at_work, plan.master_cores * plan.masters as f64].map(|s| s * 1e6 / rate);
    Ok((Cost { herald_us, redis_us, rate }, u32::try_from(plan.partitions)?))
}

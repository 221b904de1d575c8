//! The scripts against their specification: random calls go to a real Redis and to the model, and every answer must be
//! the same, as must be the whole state, key by key, every few calls. Redis' clock is the only input that the model
//! takes from Redis. A failure prints its seed; `HERALD_SEED=N` runs that seed alone and compares the state after every
//! call.

mod support;

#[path = "store_differential/real_state.rs"]
mod real_state;
#[path = "store_differential/walk.rs"]
mod walk;

use support::TestRedis;
use walk::Walk;

/// Calls of one walk: enough to fill and drain chains, quarantine and inbox several times.
const STEPS: usize = 250;
const WALKS: u64 = 20;
/// Reading every key costs as much as a dozen calls.
const STEPS_PER_COMPARISON: usize = 10;

#[tokio::test]
async fn random_calls_leave_redis_and_the_model_alike() {
    let redis = TestRedis::start().await;
    let (seeds, every) = match std::env::var("HERALD_SEED") {
        Ok(seed) => (vec![seed.parse().expect("HERALD_SEED is a number")], 1),
        Err(_) => ((1..=WALKS).collect(), STEPS_PER_COMPARISON),
    };
    for seed in seeds {
        redis.command::<()>(&["FLUSHALL"]).await;
        let mut walk = Walk::new(&redis, seed).await;
        for step in 1..=STEPS {
            let mut result = walk.step().await;
            if result.is_ok() && step % every == 0 {
                result = walk.compare().await;
            }
            if let Err(why) = result {
                panic!("seed {seed}, step {step}: {why}\n\nthe last steps:\n{}", walk.story());
            }
        }
    }
}

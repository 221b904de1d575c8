//! The scripts against their specification: random calls go to a real Redis and to the model, and every answer must be
//! the same, as must be the whole state, key by key, every few calls. Redis' clock is the only input that the model
//! takes from Redis. A failure prints its seed; `HERALD_SEED=N` runs that seed alone and compares the state after every
//! call.

mod support;

#[path = "store_differential/mutation.rs"]
mod mutation;
#[path = "store_differential/real_state.rs"]
mod real_state;
#[path = "store_differential/walk.rs"]
mod walk;

use mutation::Mutation;
use support::TestRedis;
use walk::Walk;

/// Calls of one walk: enough to fill and drain chains, quarantine and inbox, and to run operations, several times.
const STEPS: usize = 350;
const WALKS: u64 = 20;
/// A mutation that survives so many is one that they do not see.
const MUTATION_WALKS: u64 = 60;
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
        if let Err(why) = walk(&redis, seed, every, None).await {
            panic!("{why}");
        }
    }
}

#[tokio::test]
async fn every_way_to_get_an_operation_wrong_is_noticed() {
    let redis = TestRedis::start().await;
    let mut survivors = Vec::new();
    for mutation in Mutation::ALL {
        let mut noticed = None;
        for seed in 1..=MUTATION_WALKS {
            if let Err(why) = walk(&redis, seed, STEPS_PER_COMPARISON, Some(mutation)).await {
                noticed = Some((seed, why));
                break;
            }
        }
        match noticed {
            Some((_, why)) => println!("{mutation:?}: {}", why.lines().next().unwrap_or_default()),
            None => survivors.push(mutation),
        }
    }
    assert!(survivors.is_empty(), "not noticed within {MUTATION_WALKS} walks: {survivors:?}");
}

/// One walk, and the step at which Redis and the model differ.
async fn walk(redis: &TestRedis, seed: u64, every: usize, mutation: Option<Mutation>) -> Result<(), String> {
    redis.command::<()>(&["FLUSHALL"]).await;
    let mut walk = Walk::new(redis, seed, mutation).await;
    for step in 1..=STEPS {
        let mut result = walk.step().await;
        if result.is_ok() && step % every == 0 {
            result = walk.compare().await;
        }
        if let Err(why) = result {
            return Err(format!("seed {seed}, step {step}: {why}\n\nthe last steps:\n{}", walk.story()));
        }
    }
    Ok(())
}

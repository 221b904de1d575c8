//! The engine: decides for each delivery of a partition when it goes out and what becomes of it.
//!
//! A **job** is a delivery in memory. A **lane** queues the jobs of one endpoint that are heads of their chains.
//! An **operation** is a change that waits to be settled. The **shell** (`worker`) makes the calls and the attempts that
//! the pure parts (`partition`, `core`, `lane`, `limiter`, `breaker`, `evidence`) choose.

pub mod attempts;
pub mod breaker;
pub mod budgets;
pub mod core;
mod directory;
mod evidence;
#[cfg(test)]
mod goodput_tests;
pub mod lane;
mod limiter;
mod link;
pub mod partition;
mod redis_clock;
mod shares;
pub mod worker;

/// The core does a dozen look-ups for each delivery. Its keys are our ids and producers' ids, not receivers', so the
/// standard hash, which withstands an attacker's choice of keys, buys nothing for what it costs.
type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
type HashSet<K> = std::collections::HashSet<K, foldhash::fast::RandomState>;

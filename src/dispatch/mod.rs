//! The engine: decides for each delivery of a partition when it goes out and what becomes of it.
//!
//! A **job** is a delivery in memory. A **lane** queues the jobs of one endpoint that are heads of their chains.
//! An **operation** is a change that waits to be settled. The **shell** (`worker`) makes the calls and the attempts that
//! the pure parts (`partition`, `core`, `lane`, `limiter`, `breaker`, `evidence`) choose.
//!
//! Times without a type of their own (`now`, `sent`, `since`, `until`, `…_at`) are milliseconds of the monotonic clock
//! since the worker, or its thread of attempts, started. A moment of Redis' clock is in milliseconds since 1970, and
//! its name ends in `_ms`: `redis_ms`, `next_due_ms`, an answer's `now_ms`. Other names in `_ms` are spans, except for
//! `wall_ms` and the `at_ms` of a mark or an attempt: the machine's wall clock, also since 1970.

pub mod attempts;
pub mod breaker;
pub mod budgets;
pub mod core;
mod directory;
mod evidence;
pub mod fleet;
#[cfg(test)]
mod goodput_tests;
pub mod handing;
pub mod health;
pub mod lane;
mod limiter;
mod link;
pub mod membership;
pub mod partition;
pub mod presence;
mod redis_clock;
pub mod router;
pub mod shared_budgets;
mod shares;
pub mod sharing;
pub mod worker;

/// The core does a dozen look-ups for each delivery. Its keys are our ids and producers' ids, not receivers', so the
/// standard hash, which withstands an attacker's choice of keys, buys nothing for what it costs.
type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
type HashSet<K> = std::collections::HashSet<K, foldhash::fast::RandomState>;

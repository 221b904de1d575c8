//! The engine: decides for each delivery of a partition when it goes and what becomes of it.
//!
//! A **job** is a delivery in memory. A **lane** queues the jobs of one endpoint that are heads of their chains.
//! An **operation** is a change that waits to be settled. The **shell** (`worker`) makes the calls and the attempts that
//! the pure parts (`partition`, `core`, `lane`, `breaker`) choose.

mod attempts;
pub mod breaker;
pub mod core;
mod directory;
pub mod lane;
mod link;
pub mod partition;
pub mod worker;

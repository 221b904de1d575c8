//! The whole program against real Redis and real sockets, on good days and on all the bad ones of the promises.

// A test measures another process, and prints what it measured.
#![allow(clippy::disallowed_methods)]

mod changes;
mod clocks;
mod crashes;
mod erasure;
mod fleet;
mod history;
mod hostile;
mod isolation;
mod logs;
mod lost_history;
mod quota;
mod redis_trouble;
mod repartition;
mod replay;
mod sealed;
mod sharing;
mod smoke;
mod split_history;
mod split_operations;
mod supervised;
mod watched;

#[path = "../support/merchants.rs"]
mod merchants;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/herald.rs"]
mod process;
#[path = "../receiver/mod.rs"]
mod receiver;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/world.rs"]
mod world;

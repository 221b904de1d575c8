//! `herald loadtest`: puts load on Herald, breaks what it is told to break, and proves or refutes each promise.
//!
//! A *scenario* says what happens: a *load* (a schedule of intended send times, or a backlog to drain), *traffic* (what
//! the events look like), a *population* of endpoints whose receivers behave by *profile*, and *faults*. The *ledger*
//! compares what was sent with what arrived; the *judge* turns it into promises kept or broken. The *result* is what a
//! run found.
//!
//! Everything random comes from one seed, which is printed. Traffic leaves this machine only for a host that the user
//! names as their own. Nothing here shares code with what it checks: signatures are verified by [`receiver`] alone.

pub mod args;
pub mod disturbance;
pub mod draw;
mod environment;
pub mod faults;
pub mod house;
pub mod ids;
pub mod intents;
pub mod judge;
pub mod latency;
pub mod ledger;
mod plan;
pub mod population;
pub mod producer;
pub mod prove;
pub mod receiver;
mod registration;
pub mod report;
pub mod result;
pub mod run;
pub mod scenario;
pub mod scenarios;
pub mod schedule;
mod target;
pub mod traffic;
pub mod verb;
mod view;
mod waiting;

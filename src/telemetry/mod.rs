//! What Herald says about itself: logs, metrics, traces and whether it is ready. Decides nothing about deliveries.

pub mod allowance;
pub mod calls;
pub mod certificates;
pub mod exposition;
pub mod intents;
pub mod lines;
pub mod log_line;
pub mod logging;
pub mod metrics;
pub mod owner;
pub mod partitions;
mod process;
pub mod readiness;
pub mod requests;
pub mod traces;

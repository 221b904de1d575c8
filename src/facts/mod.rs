//! What Herald knows, as plain values: events, endpoints, deliveries, outcomes, and the decisions that need nothing else.
//! Never touches a socket, a clock or a source of randomness; time and chance are passed in.

pub mod delivery;
pub mod endpoint;
pub mod event;
pub mod id;
pub mod log;
pub mod outcome;
pub mod quota;
pub mod retry;
pub mod rfc3339;
pub mod sequence;
pub mod signing;
pub mod text;
pub mod traceparent;

//! What Herald knows, as plain values: events, endpoints, deliveries, outcomes, and the decisions that need nothing else.
//! Never touches a socket, a clock or a source of randomness; time and chance are passed in.
//!
//! Moments are milliseconds since 1970: a delivery's own (`since_ms`, `died_at_ms`) by Redis' clock; those of a mark,
//! an attempt, an endpoint or a secret by the wall clock of the machine that notes them.

pub mod delivery;
pub mod endpoint;
pub mod envelope;
pub mod event;
pub mod id;
pub mod letter;
pub mod log;
pub mod outcome;
pub mod quota;
pub mod retry;
pub mod rfc3339;
pub mod sequence;
pub mod signing;
pub mod text;
pub mod traceparent;

//! What Herald knows, as plain values: events, endpoints, deliveries, outcomes, and the decisions that need nothing else.
//! Never touches a socket, a clock or a source of randomness; time and chance are passed in.
//!
//! Moments are milliseconds since 1970: a delivery's own (`since_ms`, `died_at_ms`) and those of its attempts by Redis' clock; those
//! of a mark, an endpoint or a secret by the wall clock of the machine that notes them.
//!
//! `signing` and what it needs are there without the feature `dispatcher`; what needs the retry policy, and so `backoff`, is not.

#[cfg(feature = "dispatcher")]
pub mod assignment;
#[cfg(feature = "dispatcher")]
pub mod audit;
#[cfg(feature = "dispatcher")]
pub mod capacity;
#[cfg(feature = "dispatcher")]
pub mod certificate;
#[cfg(feature = "dispatcher")]
pub mod delivery;
#[cfg(feature = "dispatcher")]
pub mod diagnosis;
#[cfg(feature = "dispatcher")]
pub mod endpoint;
#[cfg(feature = "dispatcher")]
pub mod endpoint_tls;
pub mod envelope;
pub mod event;
#[cfg(feature = "dispatcher")]
pub mod health;
pub mod id;
#[cfg(feature = "dispatcher")]
pub mod issue;
#[cfg(feature = "dispatcher")]
pub mod letter;
#[cfg(feature = "dispatcher")]
pub mod log;
#[cfg(feature = "dispatcher")]
pub mod operation;
pub mod outcome;
pub mod own_event;
#[cfg(feature = "dispatcher")]
pub mod partition;
pub mod quota;
#[cfg(feature = "dispatcher")]
pub mod retry;
pub mod rfc3339;
#[cfg(feature = "dispatcher")]
pub mod sample;
#[cfg(feature = "dispatcher")]
pub mod sealing;
pub mod sequence;
pub mod signing;
#[cfg(feature = "dispatcher")]
pub mod stamped;
pub mod text;
#[cfg(feature = "dispatcher")]
pub mod token;
pub mod trace;
pub mod traceparent;
#[cfg(feature = "dispatcher")]
pub mod unserved;

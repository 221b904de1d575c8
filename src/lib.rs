//! Herald delivers status changes of payment intents from a Redis stream to merchants' webhooks.
//! `ARCHITECTURE.md` follows an event through these modules.

pub mod api;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod descriptors;
pub mod dispatch;
pub mod doctor;
pub mod facts;
pub mod http;
pub mod intents;
/// For receivers: [`signing::verify`] checks a callback, and needs nothing else of Herald.
pub use facts::signing;
#[cfg(any(feature = "demo", feature = "loadtest"))]
pub mod lifecycle;
pub mod listen;
#[cfg(feature = "loadtest")]
pub mod loadtest;
#[cfg(feature = "owned")]
pub mod owned;
pub mod registry;
pub mod sandbox;
pub mod sender;
pub mod service;
pub mod store;
pub mod surface;
pub mod telemetry;
pub mod tls;

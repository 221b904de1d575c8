//! Herald delivers status changes of payment intents from a Redis stream to merchants' webhooks.
//! `ARCHITECTURE.md` follows an event through these modules.
//!
//! Who receives callbacks needs [`signing::verify`] alone, and gets it without the program and its dependencies:
//! `herald-dispatch = { …, default-features = false }`.

pub mod facts;
/// For receivers: [`signing::verify`] checks a callback, and needs nothing else of Herald.
pub use facts::signing;

#[cfg(feature = "dispatcher")]
pub mod api;
#[cfg(feature = "dispatcher")]
pub mod app;
#[cfg(feature = "dispatcher")]
pub mod cli;
#[cfg(feature = "dispatcher")]
pub mod clock;
#[cfg(feature = "dispatcher")]
pub mod config;
#[cfg(feature = "dispatcher")]
pub mod console;
#[cfg(feature = "demo")]
pub mod demo;
#[cfg(feature = "dispatcher")]
pub mod descriptors;
#[cfg(feature = "dispatcher")]
pub mod dispatch;
#[cfg(feature = "dispatcher")]
pub mod doctor;
#[cfg(feature = "dispatcher")]
pub mod history;
#[cfg(feature = "dispatcher")]
pub mod http;
#[cfg(feature = "dispatcher")]
pub mod intents;
#[cfg(feature = "dispatcher")]
pub mod keyring;
#[cfg(any(feature = "demo", feature = "loadtest"))]
pub mod lifecycle;
#[cfg(feature = "dispatcher")]
pub mod listen;
#[cfg(feature = "loadtest")]
pub mod loadtest;
#[cfg(feature = "owned")]
pub mod owned;
#[cfg(feature = "dispatcher")]
pub mod registry;
#[cfg(feature = "dispatcher")]
pub mod sandbox;
#[cfg(feature = "dispatcher")]
pub mod sender;
#[cfg(feature = "dispatcher")]
pub mod service;
#[cfg(feature = "dispatcher")]
pub mod store;
#[cfg(feature = "dispatcher")]
pub mod surface;
#[cfg(feature = "dispatcher")]
pub mod systemd;
#[cfg(feature = "dispatcher")]
pub mod telemetry;
#[cfg(feature = "dispatcher")]
pub mod tls;
#[cfg(feature = "dispatcher")]
pub mod view;

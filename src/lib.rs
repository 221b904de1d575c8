//! Herald delivers status changes of payment intents from a Redis stream to merchants' webhooks.
//! `ARCHITECTURE.md` follows an event through these modules.

pub mod facts;
pub mod registry;
pub mod store;
pub mod tls;

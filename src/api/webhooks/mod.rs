//! What a merchant does with endpoints of its own over HTTP: they are endpoints of the registry, with the same rules and the
//! same guard of addresses as those of operators.
//!
//! - [`subscriptions`] changes the registry, without a request in sight.
//! - [`operations`] are the calls of Dojo's API: the subscription `ws_x` is the endpoint `ep_x`.
//! - [`sandbox`] makes endpoints for a while, as many as a developer has terminals.

pub mod operations;
pub mod sandbox;
pub mod subscriptions;

//! Herald over HTTP: the payment intents, the sandbox around them, and merchants' webhook subscriptions; and operations. Says what
//! is asked for and what is answered; what happens is decided below.
//!
//! - [`access`] says whose request it is, [`intents`] and [`webhooks`] are what can be asked, [`checkout`] is a customer's page.
//! - [`v1`] is the operations API, with tokens and roles of its own.
//! - [`callbacks`] describes what receivers are sent, in OpenAPI and AsyncAPI.

pub mod access;
pub mod callbacks;
pub mod checkout;
pub mod intents;
pub mod v1;
pub mod webhooks;

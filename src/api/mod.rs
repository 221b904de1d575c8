//! Herald over HTTP: the payment intents, the sandbox around them, and merchants' webhook subscriptions. Says what is asked for and what is answered; what
//! happens is decided below.

pub mod access;
pub mod callbacks;
pub mod checkout;
pub mod intents;
pub mod webhooks;

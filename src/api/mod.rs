//! Herald over HTTP: the payment intents, and the sandbox around them. Says what is asked for and what is answered; what
//! happens is decided below.

pub mod access;
pub mod checkout;
pub mod intents;

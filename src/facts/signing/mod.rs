//! Signatures over exactly the bytes that are sent, and the secrets behind them.
//! Never reads a clock: the caller says when an attempt is made.

mod dojo;
mod secret;
mod standard;

pub use dojo::dojo_signature;
pub use secret::{Secret, SecretError, SecretText};
pub use standard::standard_signature;

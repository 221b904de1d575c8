//! Signatures over exactly the bytes that are sent, and the secrets behind them.
//! Never reads a clock: the caller says when an attempt is made.

mod dojo;
mod secret;
mod standard;

pub use dojo::{DojoKey, dojo_signature, dojo_signature_with};
pub use secret::{MIN_SECRET_CHARS, Secret, SecretError, SecretText};
pub use standard::{StandardKey, standard_signature, standard_signature_with};

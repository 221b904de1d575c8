//! Signatures over exactly the bytes that are sent, and the secrets behind them: how they are made, how a receiver checks
//! them ([`verify`]), and what is wrong with one that does not fit ([`diagnosis`]).
//! Never reads a clock: the caller says when an attempt is made.

mod candidates;
pub mod diagnosis;
mod dojo;
mod earlier;
#[cfg(feature = "ed25519")]
mod ed25519;
mod fault;
mod secret;
mod standard;
mod verify;

pub use dojo::{DojoKey, dojo_signature, dojo_signature_with};
#[cfg(feature = "ed25519")]
pub use ed25519::{PrivateKey, PublicKey, ed25519_signature};
pub use secret::{Kind, MIN_SECRET_CHARS, Secret, SecretError, SecretText, rotated};
pub use standard::{StandardKey, standard_signature, standard_signature_with};
pub use verify::{Verified, VerifyError, verify, verify_dojo, verify_standard};

/// The headers of a callback that its signatures are about.
pub const WEBHOOK_ID: &str = "webhook-id";
pub const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
pub const WEBHOOK_SIGNATURE: &str = "webhook-signature";
pub const DOJO_SIGNATURE: &str = "dojo-signature";

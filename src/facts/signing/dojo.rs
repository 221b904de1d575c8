//! Dojo's own scheme: `sha256=` + upper-case hex bytes joined by `-`, HMAC-SHA256 over the body alone.
//! Source: docs.dojo.tech, webhooks. Its verifiers take exactly one signature, so only the newest secret signs.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::secret::SecretText;

/// The value of `dojo-signature`. The key is the UTF-8 bytes of the secret as it is shown.
pub fn dojo_signature(secret: &SecretText, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.reveal().as_bytes()).expect("HMAC takes keys of any length");
    mac.update(body);
    let digits = hex::encode_upper(mac.finalize().into_bytes());
    let mut header = String::with_capacity("sha256=".len() + 3 * digits.len() / 2);
    header.push_str("sha256=");
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && at % 2 == 0 {
            header.push('-');
        }
        header.push(digit);
    }
    header
}

//! Standard Webhooks 1.0: `v1,` + base64 of HMAC-SHA256 over `id.timestamp.body`.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::secret::SecretText;

/// The value of `webhook-signature`: one signature per secret, separated by single spaces.
pub fn standard_signature<'s>(
    secrets: impl Iterator<Item = &'s SecretText>,
    id: &str,
    timestamp_s: u64,
    body: &[u8],
) -> String {
    let mut header = String::new();
    let timestamp = timestamp_s.to_string();
    for secret in secrets {
        let mut mac = Hmac::<Sha256>::new_from_slice(&secret.standard_key()).expect("HMAC takes keys of any length");
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        if !header.is_empty() {
            header.push(' ');
        }
        header.push_str("v1,");
        STANDARD.encode_string(mac.finalize().into_bytes(), &mut header);
    }
    header
}

//! Standard Webhooks 1.0: `v1,` + base64 of HMAC-SHA256 over `id.timestamp.body`.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::secret::SecretText;

/// A secret made ready to sign: decoded, and its key already worked into the hash. Has no `Debug`, because it is the
/// secret.
#[derive(Clone)]
pub struct StandardKey(Hmac<Sha256>);

impl StandardKey {
    pub fn new(secret: &SecretText) -> Self {
        Self::of_bytes(&secret.standard_key())
    }

    pub(super) fn of_bytes(key: &[u8]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    /// The hash, fed with everything that is signed.
    pub(super) fn fed(&self, id: &[u8], timestamp: &[u8], body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for part in [id, b".", timestamp, b".", body] {
            mac.update(part);
        }
        mac
    }
}

/// The value of `webhook-signature`: one signature per secret, separated by single spaces.
pub fn standard_signature<'s>(
    secrets: impl Iterator<Item = &'s SecretText>,
    id: &str,
    timestamp_s: u64,
    body: &[u8],
) -> String {
    let keys: Vec<StandardKey> = secrets.map(StandardKey::new).collect();
    standard_signature_with(keys.iter(), id, timestamp_s, body)
}

/// The same for callers that sign often and keep their keys ready.
pub fn standard_signature_with<'k>(
    keys: impl Iterator<Item = &'k StandardKey>,
    id: &str,
    timestamp_s: u64,
    body: &[u8],
) -> String {
    /// `v1,` and the base64 of 32 bytes.
    const ONE_SIGNATURE: usize = 3 + 44;
    let mut header = String::with_capacity(ONE_SIGNATURE);
    let timestamp = timestamp_s.to_string();
    for key in keys {
        let mac = key.fed(id.as_bytes(), timestamp.as_bytes(), body);
        if !header.is_empty() {
            header.push(' ');
        }
        header.push_str("v1,");
        STANDARD.encode_string(mac.finalize().into_bytes(), &mut header);
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    // The Standard Webhooks 1.0.0 specification's own example.
    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const ID: &str = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
    const TIMESTAMP_S: u64 = 1_649_367_553;
    const BODY: &str = r#"{"email":"test@example.com","username":"test_user"}"#;
    const HEADER: &str = "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";

    fn secret(text: &str) -> SecretText {
        SecretText::new(text.to_owned()).unwrap()
    }

    #[test]
    fn the_published_vector_is_reproduced() {
        let secret = secret(SECRET);
        assert_eq!(standard_signature([&secret].into_iter(), ID, TIMESTAMP_S, BODY.as_bytes()), HEADER);
        let key = StandardKey::new(&secret);
        // A key that is kept ready signs again and again.
        for _ in 0..2 {
            assert_eq!(standard_signature_with([&key].into_iter(), ID, TIMESTAMP_S, BODY.as_bytes()), HEADER);
        }
    }

    #[test]
    fn several_secrets_give_several_signatures_with_single_spaces_between() {
        let (old, new) = (SecretText::from_random([7; 32]), secret(SECRET));
        let header = standard_signature([&old, &new].into_iter(), ID, TIMESTAMP_S, BODY.as_bytes());
        let parts: Vec<&str> = header.split(' ').collect();
        assert_eq!(parts.len(), 2);
        assert!(parts.iter().all(|part| part.starts_with("v1,") && part.len() == 47));
        assert_eq!(parts[1], HEADER);
    }

    #[test]
    fn an_independent_verifier_takes_every_overlapping_secret() {
        let now_s = crate::clock::wall_ms() / 1_000;
        let (old, new) = (SecretText::from_random([1; 32]), SecretText::from_random([2; 32]));
        let header = standard_signature([&old, &new].into_iter(), ID, now_s, BODY.as_bytes());
        let headers = http::HeaderMap::from_iter(
            [("webhook-id", ID.to_owned()), ("webhook-timestamp", now_s.to_string()), ("webhook-signature", header)]
                .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())),
        );
        for secret in [&old, &new] {
            let verifier = standardwebhooks::Webhook::new(secret.reveal()).unwrap();
            verifier.verify(BODY.as_bytes(), &headers).unwrap();
            assert!(verifier.verify(b"another body", &headers).is_err());
        }
        let stranger = standardwebhooks::Webhook::new(SecretText::from_random([3; 32]).reveal()).unwrap();
        assert!(stranger.verify(BODY.as_bytes(), &headers).is_err());
    }

    #[test]
    fn no_secret_gives_an_empty_header_and_never_a_wrong_one() {
        assert_eq!(standard_signature(std::iter::empty(), ID, TIMESTAMP_S, BODY.as_bytes()), "");
    }
}

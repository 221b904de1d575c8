//! Dojo's own scheme: `sha256=` + upper-case hex bytes joined by `-`, HMAC-SHA256 over the body alone.
//! Source: docs.dojo.tech, webhooks. Its verifiers take exactly one signature, so only the newest secret signs.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::secret::SecretText;

/// A secret made ready to sign. The key is the UTF-8 bytes of the secret as it is shown. Has no `Debug`.
#[derive(Clone)]
pub struct DojoKey(Hmac<Sha256>);

impl DojoKey {
    pub fn new(secret: &SecretText) -> Self {
        Self::of_bytes(secret.reveal().as_bytes())
    }

    pub(super) fn of_bytes(key: &[u8]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    /// The hash, fed with everything that is signed.
    pub(super) fn fed(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(body);
        mac
    }
}

/// The value of `dojo-signature`.
pub fn dojo_signature(secret: &SecretText, body: &[u8]) -> String {
    dojo_signature_with(&DojoKey::new(secret), body)
}

/// The same for callers that sign often and keep their key ready.
pub fn dojo_signature_with(key: &DojoKey, body: &[u8]) -> String {
    let digits = hex::encode_upper(key.fed(body).finalize().into_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    // docs.dojo.tech, webhooks; each reproduced independently.
    const BODY: &str = r#"{"id":"evt_hnnHxIKR_Uy6bhZCusCltw","event":"payment_intent.created","accountId":"acc_test","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_vpwd4ooAPEqyNAQe4z89WQ","paymentStatus":"Created","captureMode":"Auto"}}"#;
    const CASES: [(&str, &str); 2] = [
        (
            "ws_OYsyzcrH70GpJfs8MMkKpg",
            "sha256=94-AC-93-67-D6-8B-69-6D-15-A2-C2-45-40-98-B5-E7-64-72-38-C5-1F-6D-32-D0-5F-CB-91-20-A9-20-64-F4",
        ),
        (
            "PDYkJQq6sESYHp_zJuTTBQ",
            "sha256=4B-49-F8-FE-25-A7-E6-7D-00-4F-A7-9C-F8-0B-63-00-C7-77-B4-F2-2D-E5-E1-22-84-FA-04-18-50-A1-76-FD",
        ),
    ];

    #[test]
    fn the_published_vectors_are_reproduced() {
        for (secret, header) in CASES {
            let secret = SecretText::new(secret.to_owned()).unwrap();
            assert_eq!(dojo_signature(&secret, BODY.as_bytes()), header);
            assert_eq!(dojo_signature_with(&DojoKey::new(&secret), BODY.as_bytes()), header);
        }
    }

    #[test]
    fn a_secret_of_the_standard_form_signs_with_its_text_as_it_is_shown() {
        let secret = SecretText::from_random([9; 32]);
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.reveal().as_bytes()).unwrap();
        mac.update(b"{}");
        let expected = hex::encode_upper(mac.finalize().into_bytes());
        assert_eq!(dojo_signature(&secret, b"{}").replace(['-'], "").strip_prefix("sha256=").unwrap(), expected);
    }
}

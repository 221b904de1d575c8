//! A signing secret: `whsec_` + base64 of the key. Shown once, when it is made; never by `Debug`.

use std::{collections::BTreeSet, fmt, time::Duration};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Shorter keys can be found by brute force, and so can a key with very few different bytes.
pub const MIN_SECRET_CHARS: usize = 16;
const MIN_DIFFERENT_BYTES: usize = 6;

/// The number of random bytes in a secret that Herald makes.
const KEY_BYTES: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("a secret is empty or longer than 256 characters")]
    Length,
    #[error("a secret may only have visible ASCII characters")]
    Characters,
    #[error("a secret that starts with whsec_ must go on with the base64 of 24 to 64 bytes")]
    Base64,
    #[error(
        "a key that starts with whsk_ must go on with the base64 of 32 bytes, or of 64 whose second half is its public key"
    )]
    PrivateKey,
    #[error("a key that starts with whpk_ must go on with the base64 of 32 bytes")]
    PublicKey,
    #[error("this build of herald has no Ed25519: give the crate its feature ed25519")]
    NoEd25519,
}

/// How the texts of keys begin.
pub(super) const PRIVATE_PREFIX: &str = "whsk_";
pub(super) const PUBLIC_PREFIX: &str = "whpk_";

/// What a secret is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Both sides have it: `webhook-signature` of version 1, and `dojo-signature`.
    Shared,
    /// The private half of a key pair: it signs.
    Private,
    /// The public half: it verifies, and everybody may have it.
    Public,
}

/// The secret as it is shown to the merchant. After the prefix `whsec_` comes the key of the standard scheme in base64;
/// any other text (Dojo's) is itself the key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretText(String);

impl SecretText {
    pub fn new(text: String) -> Result<Self, SecretError> {
        if text.is_empty() || text.len() > 256 {
            return Err(SecretError::Length);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(SecretError::Characters);
        }
        check_key(&text)?;
        if let Some(rest) = text.strip_prefix("whsec_") {
            let key = STANDARD.decode(rest).map_err(|_| SecretError::Base64)?;
            if !(24..=64).contains(&key.len()) {
                return Err(SecretError::Base64);
            }
        }
        Ok(Self(text))
    }

    /// Makes a secret from random bytes that the caller drew from the operating system.
    pub fn from_random(bytes: [u8; KEY_BYTES]) -> Self {
        Self(format!("whsec_{}", STANDARD.encode(bytes)))
    }

    /// A key pair, of random bytes likewise: its private half.
    pub fn key_from_random(seed: [u8; KEY_BYTES]) -> Self {
        Self(format!("{PRIVATE_PREFIX}{}", STANDARD.encode(seed)))
    }

    /// One that signs: a public half alone is never made.
    pub fn of_kind(kind: Kind, random: [u8; KEY_BYTES]) -> Self {
        match kind {
            Kind::Shared => Self::from_random(random),
            Kind::Private | Kind::Public => Self::key_from_random(random),
        }
    }

    pub fn kind(&self) -> Kind {
        match &self.0 {
            text if text.starts_with(PRIVATE_PREFIX) => Kind::Private,
            text if text.starts_with(PUBLIC_PREFIX) => Kind::Public,
            _ => Kind::Shared,
        }
    }

    /// The public half of a key pair, as its receivers write it.
    #[cfg(feature = "ed25519")]
    pub fn public_key(&self) -> Option<String> {
        super::PublicKey::of(self).map(|key| key.to_string())
    }

    /// Whether nobody can find it by brute force, as far as its text tells. For new secrets only: those that are
    /// registered keep signing.
    pub fn is_strong(&self) -> bool {
        let different: BTreeSet<u8> = self.standard_key().into_iter().collect();
        self.0.len() >= MIN_SECRET_CHARS && different.len() >= MIN_DIFFERENT_BYTES
    }

    /// The text itself. Call it only to sign, to store, or to show a new secret to its owner.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// By which its owner can name it without showing it. Who knows it, knows no more than who saw a signature.
    pub fn name(&self) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(b"the name of this secret");
        URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..16])
    }

    /// The key of the standard scheme.
    pub(super) fn standard_key(&self) -> Vec<u8> {
        let encoded = ["whsec_", PRIVATE_PREFIX].iter().find_map(|prefix| self.0.strip_prefix(prefix));
        let decoded = encoded.and_then(|rest| STANDARD.decode(rest).ok());
        decoded.unwrap_or_else(|| self.0.clone().into_bytes())
    }
}

#[cfg(feature = "ed25519")]
fn check_key(text: &str) -> Result<(), SecretError> {
    use super::{PrivateKey, PublicKey};
    if text.starts_with(PRIVATE_PREFIX) && PrivateKey::parse(text).is_none() {
        return Err(SecretError::PrivateKey);
    }
    if text.starts_with(PUBLIC_PREFIX) && PublicKey::parse(text).is_none() {
        return Err(SecretError::PublicKey);
    }
    Ok(())
}

/// Taken for a shared secret, a public key would be one that everybody knows.
#[cfg(not(feature = "ed25519"))]
fn check_key(text: &str) -> Result<(), SecretError> {
    let is_key = text.starts_with(PRIVATE_PREFIX) || text.starts_with(PUBLIC_PREFIX);
    if is_key { Err(SecretError::NoEd25519) } else { Ok(()) }
}

/// Receivers hold a secret of their own, and have no crate more for that.
#[cfg(feature = "dispatcher")]
impl Drop for SecretText {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl TryFrom<String> for SecretText {
    type Error = SecretError;
    fn try_from(text: String) -> Result<Self, SecretError> {
        Self::new(text)
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("secret(hidden)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    pub value: SecretText,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
    /// It stops signing at this time; none means never. Milliseconds since 1970.
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
}

impl Secret {
    /// One that does not end.
    pub fn new(value: SecretText, created_at_ms: u64) -> Self {
        Self { value, created_at_ms, expires_at_ms: None }
    }

    pub fn is_live(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_none_or(|end| now_ms < end)
    }
}

/// The older secrets of its kind end after the overlap at the latest; the new one comes last. Those that have expired are dropped
/// at once.
pub fn rotated(older: Vec<Secret>, new: Secret, now_ms: u64, overlap: Duration) -> Vec<Secret> {
    let end = now_ms.saturating_add(u64::try_from(overlap.as_millis()).unwrap_or(u64::MAX));
    let kind = new.value.kind();
    let ending = |mut secret: Secret| {
        if secret.value.kind() != kind {
            return secret;
        }
        secret.expires_at_ms = Some(secret.expires_at_ms.map_or(end, |known| known.min(end)));
        secret
    };
    let older = older.into_iter().map(ending).filter(|secret| secret.is_live(now_ms));
    older.chain([new]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_lets_the_older_secrets_sign_until_the_overlap_is_over() {
        let secret = |byte: u8, expires_at_ms: Option<u64>| Secret {
            expires_at_ms,
            ..Secret::new(SecretText::from_random([byte; 32]), 1)
        };
        let new = || secret(9, None);
        let older = vec![secret(1, Some(50)), secret(2, Some(150)), secret(3, None)];
        let after = rotated(older, new(), 100, Duration::from_millis(1000));
        let ends: Vec<_> = after.iter().map(|secret| secret.expires_at_ms).collect();
        assert_eq!(ends, [Some(150), Some(1100), None]);
        assert_eq!(after.last(), Some(&new()));
        assert_eq!(rotated(vec![secret(1, None)], new(), 100, Duration::ZERO).len(), 1);
    }

    #[test]
    fn a_rotation_ends_no_secret_of_another_kind() {
        let shared = Secret::new(SecretText::from_random([1; 32]), 1);
        let key = Secret::new(SecretText::key_from_random([2; 32]), 1);
        let after =
            rotated(vec![shared.clone(), key], Secret::new(SecretText::key_from_random([3; 32]), 5), 5, Duration::ZERO);
        assert_eq!(after.len(), 2);
        assert_eq!((&after[0], after[1].value.kind()), (&shared, Kind::Private));
    }

    #[test]
    fn a_key_is_told_from_a_shared_secret_and_only_its_public_half_is_shown() {
        let key = SecretText::key_from_random([7; 32]);
        let public = key.public_key().unwrap();
        assert_eq!((key.kind(), new(&public).unwrap().kind()), (Kind::Private, Kind::Public));
        assert_eq!(new(&public).unwrap().public_key().as_ref(), Some(&public));
        assert_eq!(SecretText::from_random([7; 32]).public_key(), None);
        assert_eq!(new("whsk_AAAA").unwrap_err(), SecretError::PrivateKey);
        assert_eq!(new(&(public + "AAAA")).unwrap_err(), SecretError::PublicKey);
    }

    #[test]
    fn a_secret_has_a_name_of_its_own_that_does_not_show_it() {
        let [one, other] = [1, 2].map(|byte| SecretText::from_random([byte; 32]));
        assert_eq!(one.name(), SecretText::new(one.reveal().to_owned()).unwrap().name());
        assert!(one.name() != other.name() && one.name().len() == 22);
        assert!(!one.reveal().contains(&one.name()));
    }

    fn new(text: &str) -> Result<SecretText, SecretError> {
        SecretText::new(text.to_owned())
    }

    #[test]
    fn a_made_secret_is_base64_of_its_bytes_and_is_taken_again() {
        let made = SecretText::from_random([0xA5; KEY_BYTES]);
        assert_eq!(made.standard_key(), [0xA5; KEY_BYTES]);
        assert_eq!(new(made.reveal()).unwrap(), made);
    }

    #[test]
    fn a_secret_that_no_verifier_would_take_is_refused() {
        let encoded = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![1; bytes]));
        for (text, error) in [
            (String::new(), SecretError::Length),
            ("x".repeat(257), SecretError::Length),
            ("two words".to_owned(), SecretError::Characters),
            ("line\r\nfeed".to_owned(), SecretError::Characters),
            ("pässwort".to_owned(), SecretError::Characters),
            ("whsec_!!!".to_owned(), SecretError::Base64),
            (encoded(23), SecretError::Base64),
            (encoded(65), SecretError::Base64),
        ] {
            assert_eq!(SecretText::new(text.clone()).unwrap_err(), error, "{text:?}");
        }
        assert!(SecretText::new(encoded(24)).is_ok() && SecretText::new(encoded(64)).is_ok());
    }

    #[test]
    fn a_secret_that_can_be_found_by_trying_is_told_from_a_strong_one() {
        for weak in ["fifteen-letters", "aaaaaaaaaaaaaaaaaaaaaaaa", "abababababababababab"] {
            assert!(!new(weak).unwrap().is_strong(), "{weak}");
        }
        // Its text has many different letters, but its key has not.
        assert!(!SecretText::from_random([0; KEY_BYTES]).is_strong());
        assert!(new("sixteen-letters-").unwrap().is_strong());
        let bytes: Vec<u8> = (0..32).collect();
        assert!(SecretText::from_random(bytes.try_into().unwrap()).is_strong());
    }

    #[test]
    fn neither_debug_nor_an_error_shows_a_secret() {
        let secret = Secret { value: new("ws_topsecret").unwrap(), created_at_ms: 0, expires_at_ms: None };
        assert!(!format!("{secret:?}").contains("topsecret"));
        let error = serde_json::from_str::<SecretText>("\"whsec_topsecret\"").unwrap_err();
        assert!(!error.to_string().contains("topsecret"), "{error}");
    }

    #[test]
    fn a_secret_signs_up_to_its_expiry_and_not_from_there_on() {
        let mut secret = Secret { value: new("ws_a").unwrap(), created_at_ms: 0, expires_at_ms: Some(10) };
        assert!(secret.is_live(9) && !secret.is_live(10));
        secret.expires_at_ms = None;
        assert!(secret.is_live(u64::MAX));
    }
}

//! Standard Webhooks 1.0 with a key pair: `v1a,` + base64 of the Ed25519 signature over `id.timestamp.body`. Only the private half
//! signs, and whoever has the public one can verify, and nothing else.

use std::{fmt, sync::Arc};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::secret::{PRIVATE_PREFIX, PUBLIC_PREFIX, SecretText};

const SEED_BYTES: usize = 32;
const PUBLIC_BYTES: usize = 32;
pub(super) const SIGNATURE_BYTES: usize = 64;

/// The private half, made ready to sign. Has no `Debug`, because it is the secret.
#[derive(Clone)]
pub struct PrivateKey(Arc<Ed25519KeyPair>);

/// The public half.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey([u8; PUBLIC_BYTES]);

impl PrivateKey {
    /// From `whsk_` and the base64 of the seed, or of the seed with the public half behind it, which must be its own.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.strip_prefix(PRIVATE_PREFIX)?).ok()?;
        let pair = match bytes.len() {
            SEED_BYTES => Ed25519KeyPair::from_seed_unchecked(&bytes),
            _ => {
                let (seed, public) = bytes.split_at_checked(SEED_BYTES)?;
                Ed25519KeyPair::from_seed_and_public_key(seed, public)
            }
        };
        pair.ok().map(|pair| Self(Arc::new(pair)))
    }

    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; PUBLIC_BYTES];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }

    fn sign(&self, message: &[u8]) -> String {
        format!("v1a,{}", STANDARD.encode(self.0.sign(message)))
    }
}

impl PublicKey {
    /// From `whpk_` and the base64 of it.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.strip_prefix(PUBLIC_PREFIX)?).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// That by which this text's owner verifies, whichever half it is.
    pub fn of(text: &SecretText) -> Option<Self> {
        Self::parse(text.reveal()).or_else(|| Some(PrivateKey::parse(text.reveal())?.public()))
    }

    pub(super) fn fits(&self, id: &[u8], timestamp: &[u8], body: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(&message(id, timestamp, body), signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", STANDARD.encode(self.0))
    }
}

/// The entries of `webhook-signature` by these keys, separated by single spaces.
pub fn ed25519_signature<'k>(
    keys: impl Iterator<Item = &'k PrivateKey>,
    id: &str,
    timestamp_s: u64,
    body: &[u8],
) -> String {
    // The whole of it is hashed twice, so it has to be in one piece.
    let message = message(id.as_bytes(), timestamp_s.to_string().as_bytes(), body);
    keys.map(|key| key.sign(&message)).collect::<Vec<_>>().join(" ")
}

/// The signatures of a header that a key pair makes.
pub(super) fn signatures(header: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let entries = header.split(|b| *b == b' ');
    let decoded = entries.filter_map(|entry| STANDARD.decode(entry.strip_prefix(b"v1a,")?).ok());
    decoded.filter(|signature| signature.len() == SIGNATURE_BYTES)
}

fn message(id: &[u8], timestamp: &[u8], body: &[u8]) -> Vec<u8> {
    [id, b".", timestamp, b".", body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 1: seed and public half; and the signature of what is signed here by libsodium.
    const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    fn text(prefix: &str, hex: &str) -> String {
        format!("{prefix}{}", STANDARD.encode(hex::decode(hex).unwrap()))
    }

    #[test]
    fn the_published_pair_belongs_together_in_both_forms() {
        for private in [text(PRIVATE_PREFIX, SEED), text(PRIVATE_PREFIX, &format!("{SEED}{PUBLIC}"))] {
            let key = PrivateKey::parse(&private).unwrap();
            assert_eq!(key.public().to_string(), text(PUBLIC_PREFIX, PUBLIC));
        }
        let of_another = PUBLIC.replace("d75a", "d75b");
        assert!(PrivateKey::parse(&text(PRIVATE_PREFIX, &format!("{SEED}{of_another}"))).is_none());
    }

    #[test]
    fn a_signature_is_that_of_its_id_its_time_and_its_body() {
        let key = PrivateKey::parse(&text(PRIVATE_PREFIX, SEED)).unwrap();
        let header = ed25519_signature([&key].into_iter(), "evt_1", 1_700_000_000, b"{}");
        let signature = signatures(header.as_bytes()).next().unwrap();
        let public = key.public();
        assert!(public.fits(b"evt_1", b"1700000000", b"{}", &signature));
        for (id, time, body) in
            [("evt_2", "1700000000", "{}"), ("evt_1", "1700000001", "{}"), ("evt_1", "1700000000", "{ }")]
        {
            assert!(!public.fits(id.as_bytes(), time.as_bytes(), body.as_bytes(), &signature));
        }
    }
}

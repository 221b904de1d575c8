//! How a value is sealed before Redis has it: keys, their ring, and the text `hs1.…` that says with which key and holds the value
//! for one place alone. Never reads a file and never draws a nonce: both are passed in. Never shows a key.
//!
//! XChaCha20-Poly1305, as libsodium has it. The place is authenticated with the value, so that what was sealed for one endpoint,
//! field or secret opens nowhere else.

use std::{fmt, str::FromStr};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::id::{AccountId, EndpointId};

/// Names the form of a sealed value, and is authenticated with it.
const FORM: &str = "hs1";

/// Before a key in a file.
const KEY_FORM: &str = "hk1:";

const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 6;
const KEY_ID_SALT: &[u8] = b"herald/key-id/v1";

/// Of XChaCha20: so long that random ones never meet.
pub const NONCE_BYTES: usize = 24;

/// A rotation needs two keys; more are of rotations that nobody has finished.
pub const MAX_KEYS: usize = 8;

/// Names a key without telling anything of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; KEY_ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl FromStr for KeyId {
    type Err = OpenError;
    fn from_str(text: &str) -> Result<Self, OpenError> {
        let mut id = [0; KEY_ID_BYTES];
        let is_lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        let read = is_lower && hex::decode_to_slice(text, &mut id).is_ok();
        read.then_some(Self(id)).ok_or(OpenError::Form)
    }
}

/// What a value is of. It opens for the same place only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    pub endpoint: &'a EndpointId,
    pub account: &'a AccountId,
    pub field: Field<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// The signing secret that was made at this time.
    Secret { created_at_ms: u64 },
    /// The value of this extra header.
    Header { name: &'a str },
    /// The private key of a client certificate.
    ClientKey,
}

impl Place<'_> {
    /// Each part after its length, so that no two places have the same bytes.
    fn authenticated(&self, key: &str) -> Vec<u8> {
        let (field, qualifier) = match self.field {
            Field::Secret { created_at_ms } => ("secret", created_at_ms.to_string()),
            Field::Header { name } => ("header", name.to_ascii_lowercase()),
            Field::ClientKey => ("client-key", String::new()),
        };
        let mut bytes = Vec::with_capacity(160);
        for part in [FORM, key, self.endpoint.as_str(), self.account.as_str(), field, &qualifier] {
            bytes.extend((part.len() as u32).to_be_bytes());
            bytes.extend(part.as_bytes());
        }
        bytes
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("it is not a sealed value of a form that this Herald knows")]
    Form,
    #[error("it is sealed with the key {0}, which the ring of this process does not have (master_key_file)")]
    NoKey(KeyId),
    #[error("it is damaged, or was sealed for another place: the key fits, and its tag does not")]
    Damaged,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    #[error("line {line} is not a key: write {KEY_FORM} and the base64 of {KEY_BYTES} bytes (`herald key generate`)")]
    Line { line: usize },
    #[error("line {line} has the same key as line {first}: remove one")]
    Twice { line: usize, first: usize },
    #[error("it has no key: make one with `herald key generate`")]
    Empty,
    #[error("it has more than {MAX_KEYS} keys: finish earlier rotations with `herald key rotate --drop-old`")]
    TooMany,
}

/// A key that seals and opens. Wiped when it is dropped.
struct Key {
    id: KeyId,
    cipher: XChaCha20Poly1305,
}

impl Key {
    fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        let mut id = [0; KEY_ID_BYTES];
        let derived = Hkdf::<Sha256>::new(Some(KEY_ID_SALT), bytes);
        derived.expand(&[], &mut id).expect("HKDF gives up to 8160 bytes");
        Self { id: KeyId(id), cipher: XChaCha20Poly1305::new(bytes.into()) }
    }
}

/// The keys of a process: the first seals, all open.
#[derive(Default)]
pub struct Ring(Vec<Key>);

impl Ring {
    /// From the text of a file: one key a line, with empty lines and `#` comments between them.
    pub fn parse(text: &str) -> Result<Self, RingError> {
        let mut keys: Vec<(usize, Key)> = Vec::new();
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        for (line, text) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let key = Key::new(&*key_of_line(text).ok_or(RingError::Line { line })?);
            if let Some((first, _)) = keys.iter().find(|(_, known)| known.id == key.id) {
                return Err(RingError::Twice { line, first: *first });
            }
            keys.push((line, key));
        }
        match keys.len() {
            0 => Err(RingError::Empty),
            1..=MAX_KEYS => Ok(Self(keys.into_iter().map(|(_, key)| key).collect())),
            _ => Err(RingError::TooMany),
        }
    }

    /// The key that seals first; none without any.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(|key| key.id)
    }

    /// The key that seals.
    pub fn sealing(&self) -> Option<KeyId> {
        self.ids().next()
    }

    /// None without a key. A nonce must never come twice: draw it at random.
    pub fn seal(&self, place: &Place<'_>, text: &str, nonce: [u8; NONCE_BYTES]) -> Option<String> {
        let Key { id, cipher } = self.0.first()?;
        let id = id.to_string();
        let payload = Payload { msg: text.as_bytes(), aad: &place.authenticated(&id) };
        let sealed = cipher.encrypt(&XNonce::from(nonce), payload).expect("a value is far shorter than 256 GiB");
        Some(format!("{FORM}.{id}.{}", URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat())))
    }

    pub fn open(&self, place: &Place<'_>, sealed: &str) -> Result<Zeroizing<String>, OpenError> {
        let (id, rest) = parts(sealed)?;
        let key = self.0.iter().find(|key| key.id == id).ok_or(OpenError::NoKey(id))?;
        let bytes = URL_SAFE_NO_PAD.decode(rest).map_err(|_| OpenError::Damaged)?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or(OpenError::Damaged)?;
        let payload = Payload { msg: sealed, aad: &place.authenticated(&id.to_string()) };
        let opened = key.cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| OpenError::Damaged)?;
        // Only text is ever sealed; if it is none, it goes unseen.
        String::from_utf8(opened).map(Zeroizing::new).map_err(|error| {
            drop(Zeroizing::new(error.into_bytes()));
            OpenError::Damaged
        })
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

/// The line of a file for a key of these random bytes.
pub fn key_line(bytes: &[u8; KEY_BYTES]) -> Zeroizing<String> {
    Zeroizing::new(format!("{KEY_FORM}{}", STANDARD.encode(bytes)))
}

/// Whose key a sealed value needs.
pub fn key_of(sealed: &str) -> Result<KeyId, OpenError> {
    parts(sealed).map(|(id, _)| id)
}

fn parts(sealed: &str) -> Result<(KeyId, &str), OpenError> {
    let rest = sealed.strip_prefix(FORM).and_then(|rest| rest.strip_prefix('.'));
    let (id, value) = rest.and_then(|rest| rest.split_once('.')).ok_or(OpenError::Form)?;
    Ok((id.parse()?, value))
}

fn key_of_line(line: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let decoded = Zeroizing::new(STANDARD.decode(line.strip_prefix(KEY_FORM)?).ok()?);
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    (decoded.len() == KEY_BYTES).then(|| key.copy_from_slice(&decoded))?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEALED: &str = "hs1.a3459a75e2d8.CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJyRqR7x_1OCOxUUlLOTVFjEm69MsvLdmglsJcJJJ0FjPPfwaJi9Py\
                          FmcU-69_uuLvb7ZFkhxpfqQfWMMevY3jnb34";
    const TEXT: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn ring(keys: &[u8]) -> Ring {
        let lines: Vec<String> = keys.iter().map(|byte| key_line(&[*byte; 32]).to_string()).collect();
        Ring::parse(&lines.join("\n")).unwrap()
    }

    fn place<T>(field: Field<'_>, then: impl FnOnce(&Place<'_>) -> T) -> T {
        let (endpoint, account) = ("ep_a".parse().unwrap(), "acc_test".parse().unwrap());
        then(&Place { endpoint: &endpoint, account: &account, field })
    }

    fn opened(ring: &Ring, place: &Place<'_>, sealed: &str) -> Result<String, OpenError> {
        ring.open(place, sealed).map(|text| text.to_string())
    }

    #[test]
    fn a_value_is_sealed_as_the_format_says() {
        place(Field::Secret { created_at_ms: 1_700_000_000_000 }, |place| {
            assert_eq!(ring(&[7]).seal(place, TEXT, [9; NONCE_BYTES]).as_deref(), Some(SEALED));
            assert_eq!(opened(&ring(&[7]), place, SEALED).as_deref(), Ok(TEXT));
        });
        assert_eq!(key_of(SEALED).map(|key| key.to_string()).as_deref(), Ok("a3459a75e2d8"));
    }

    #[test]
    fn a_value_opens_for_its_own_place_alone() {
        let ring = ring(&[7]);
        let [endpoint, other]: [EndpointId; 2] = ["ep_a", "ep_b"].map(|id| id.parse().unwrap());
        let [account, foreign]: [AccountId; 2] = ["acc_a", "acc_b"].map(|id| id.parse().unwrap());
        let own = Place { endpoint: &endpoint, account: &account, field: Field::Header { name: "X-Key" } };
        let sealed = ring.seal(&own, "value", [1; NONCE_BYTES]).unwrap();
        let same = Place { field: Field::Header { name: "x-key" }, ..own };
        assert_eq!(opened(&ring, &same, &sealed).as_deref(), Ok("value"), "the names of headers have no case");
        for place in [
            Place { endpoint: &other, ..own },
            Place { account: &foreign, ..own },
            Place { field: Field::Header { name: "x-kez" }, ..own },
            Place { field: Field::Secret { created_at_ms: 0 }, ..own },
            Place { field: Field::ClientKey, ..own },
        ] {
            assert_eq!(opened(&ring, &place, &sealed), Err(OpenError::Damaged), "{place:?}");
        }
    }

    #[test]
    fn the_first_key_seals_and_each_opens() {
        place(Field::ClientKey, |place| {
            let (old, both, new) = (ring(&[1]), ring(&[2, 1]), ring(&[2]));
            let of_old = old.seal(place, "value", [1; NONCE_BYTES]).unwrap();
            let of_new = both.seal(place, "value", [2; NONCE_BYTES]).unwrap();
            assert_eq!(key_of(&of_new).ok(), new.sealing());
            for (ring, sealed) in [(&old, &of_old), (&both, &of_old), (&both, &of_new), (&new, &of_new)] {
                assert_eq!(opened(ring, place, sealed).as_deref(), Ok("value"));
            }
            let missing = old.sealing().unwrap();
            assert_eq!(opened(&new, place, &of_old), Err(OpenError::NoKey(missing)));
            assert_eq!(opened(&Ring::default(), place, &of_old), Err(OpenError::NoKey(missing)));
            assert_eq!(Ring::default().seal(place, "value", [1; NONCE_BYTES]), None);
        });
    }

    #[test]
    fn no_change_of_a_sealed_value_opens() {
        place(Field::Secret { created_at_ms: 1_700_000_000_000 }, |place| {
            for at in 0..SEALED.len() {
                let mut changed = SEALED.to_owned().into_bytes();
                changed[at] = if changed[at] == b'B' { b'C' } else { b'B' };
                let changed = String::from_utf8(changed).unwrap();
                assert!(opened(&ring(&[7]), place, &changed).is_err(), "{changed}");
            }
            for broken in ["", "hs1", "hs1.", "hs1.a3459a75e2d8", "hs1.a3459a75e2d8.", "hs1.A3459A75E2D8.AAAA", TEXT] {
                assert!(opened(&ring(&[7]), place, broken).is_err(), "{broken}");
            }
        });
    }

    #[test]
    fn a_file_has_one_to_eight_keys_and_what_is_wrong_is_named_by_its_line() {
        let line = |byte: u8| key_line(&[byte; 32]).to_string();
        let ring = Ring::parse(&format!("# of May\n\n  {}  \r\n#\n{}\n", line(1), line(2))).unwrap();
        assert_eq!(ring.ids().count(), 2);
        let refused = |text: String| Ring::parse(&text).unwrap_err();
        assert_eq!(refused("# nothing\n".to_owned()), RingError::Empty);
        assert_eq!(refused((1..=9).map(|byte| line(byte) + "\n").collect()), RingError::TooMany);
        assert_eq!(refused(format!("{}\n#\n{}", line(1), line(1))), RingError::Twice { line: 3, first: 1 });
        let short = STANDARD.encode([1; 31]);
        for bad in ["hk2:AAAA", &format!("hk1:{short}"), &line(1)[4..], &line(1)[..40], "hk1:", "secret-of-mine"] {
            let error = refused(format!("{}\n{bad}", line(3)));
            assert_eq!(error, RingError::Line { line: 2 }, "{bad}");
            assert!(!error.to_string().contains("secret-of-mine"));
        }
    }

    #[test]
    fn nothing_shows_a_key() {
        let shown = format!("{:?}", ring(&[7]));
        assert_eq!(shown, "[KeyId(a3459a75e2d8)]");
    }
}

//! Which partition an account's events belong to: the function that every producer, in any language, and every Herald must
//! agree on. It never changes; `docs/vectors/partition.json` holds it fast, and `docs/producers.md` has it in other languages.
//!
//! A stream may be split into N child streams `S:0` … `S:N-1`, and each of these again. An account's slot is the one that Redis
//! Cluster gives to a key of its name; its lowest digits choose the child, the next ones the child of that.

use crc::{CRC_16_XMODEM, Crc};

use super::id::AccountId;

/// The hash slots of Redis Cluster.
pub const SLOTS: u16 = 16_384;

/// Parts of one stream over all levels: at 16 slots each, they are still filled evenly.
pub const MAX_PARTS: u32 = 1024;

const XMODEM: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// A hash slot, below [`SLOTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// None at [`SLOTS`] or above.
    pub fn new(number: u16) -> Option<Self> {
        (number < SLOTS).then_some(Self(number))
    }

    /// Of an account's name, which has no braces.
    pub fn of_account(account: &AccountId) -> Self {
        Self::of(account.as_str().as_bytes())
    }

    /// Of a key by Redis Cluster's rule: of its hash tag if it has one, else of all of it.
    pub fn of_key(key: &[u8]) -> Self {
        Self::of(hash_tag(key).unwrap_or(key))
    }

    pub fn number(self) -> u16 {
        self.0
    }

    fn of(bytes: &[u8]) -> Self {
        Self(XMODEM.checksum(bytes) % SLOTS)
    }
}

/// What is between the first `{` and the first `}` after it, unless that is nothing.
pub fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let rest = &key[key.iter().position(|byte| *byte == b'{')? + 1..];
    let tag = &rest[..rest.iter().position(|byte| *byte == b'}')?];
    (!tag.is_empty()).then_some(tag)
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    #[error(
        "the stream {stream:?} has a hash tag, so all its parts would share one slot; choose a name without braces"
    )]
    Tagged { stream: String },
    #[error("a stream is split into at least 2 parts, not into {parts}")]
    TooFew { parts: u32 },
    #[error("a stream has at most {MAX_PARTS} parts over all levels")]
    TooMany,
}

/// A stream that is split, and how often. Without levels it is one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    stream: String,
    levels: Vec<u32>,
}

impl Split {
    /// `levels`: into how many parts the stream is split, then into how many each of these, and so on.
    pub fn new(stream: &str, levels: &[u32]) -> Result<Self, SplitError> {
        if !levels.is_empty() && hash_tag(stream.as_bytes()).is_some() {
            return Err(SplitError::Tagged { stream: stream.to_owned() });
        }
        if let Some(parts) = levels.iter().find(|parts| **parts < 2) {
            return Err(SplitError::TooFew { parts: *parts });
        }
        let all = levels.iter().try_fold(1u32, |all, parts| all.checked_mul(*parts));
        match all {
            Some(..=MAX_PARTS) => Ok(Self { stream: stream.to_owned(), levels: levels.to_vec() }),
            _ => Err(SplitError::TooMany),
        }
    }

    /// The streams that an event of this account goes through below the split one, the outermost first.
    pub fn path(&self, account: &AccountId) -> Vec<String> {
        let (mut left, mut stream) = (u32::from(Slot::of_account(account).number()), self.stream.clone());
        let step = |parts: &u32| {
            stream = format!("{stream}:{}", left % parts);
            left /= parts;
            stream.clone()
        };
        self.levels.iter().map(step).collect()
    }

    /// The stream that holds this account's events in the end.
    pub fn stream_of(&self, account: &AccountId) -> String {
        self.path(account).pop().unwrap_or_else(|| self.stream.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Published {
        vectors: Vec<Vector>,
    }

    #[derive(Deserialize)]
    struct Vector {
        account: String,
        slot: u16,
        stream: String,
        levels: Vec<u32>,
        streams: Vec<String>,
    }

    fn account(text: &str) -> AccountId {
        AccountId::new(text).unwrap()
    }

    #[test]
    fn the_published_vectors_hold() {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/vectors/partition.json"));
        let published: Published = serde_json::from_str(text).unwrap();
        assert!(published.vectors.len() >= 24);
        for vector in published.vectors {
            let account = account(&vector.account);
            assert_eq!(Slot::of_account(&account).number(), vector.slot, "{account}");
            let split = Split::new(&vector.stream, &vector.levels).unwrap();
            assert_eq!(split.path(&account), vector.streams, "{account}");
            assert_eq!(Some(&split.stream_of(&account)), vector.streams.last());
        }
    }

    #[test]
    fn a_keys_slot_is_that_of_redis_cluster() {
        let slot = |key: &str| Slot::of_key(key.as_bytes()).number();
        assert_eq!(slot("123456789"), 0x31C3);
        for (key, same) in [
            ("{user1000}.following", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("a{b", "a{b"),
            ("a}b{c", "a}b{c"),
        ] {
            assert_eq!(slot(key), XMODEM.checksum(same.as_bytes()) % SLOTS, "{key}");
        }
        assert_eq!((Slot::new(SLOTS), Slot::new(SLOTS - 1).map(Slot::number)), (None, Some(SLOTS - 1)));
    }

    #[test]
    fn a_stream_that_is_not_split_holds_every_account_itself() {
        for stream in ["payment-intents", "{pay}"] {
            assert_eq!(Split::new(stream, &[]).unwrap().stream_of(&account("acc_a")), stream);
        }
    }

    #[test]
    fn what_can_not_be_split_is_refused_with_its_reason() {
        assert_eq!(Split::new("a{b}", &[2]), Err(SplitError::Tagged { stream: "a{b}".to_owned() }));
        assert_eq!(Split::new("s", &[64, 1]), Err(SplitError::TooFew { parts: 1 }));
        assert_eq!(Split::new("s", &[0]), Err(SplitError::TooFew { parts: 0 }));
        for levels in [&[1025][..], &[64, 17], &[u32::MAX, u32::MAX]] {
            assert_eq!(Split::new("s", levels), Err(SplitError::TooMany));
        }
        assert!(Split::new("s", &[64, 16]).is_ok());
    }

    #[test]
    fn parts_of_one_stream_are_filled_evenly_and_lie_apart() {
        let split = Split::new("payment-intents", &[16, 16]).unwrap();
        let mut filled = HashMap::<String, u32>::new();
        for number in 0..100_000 {
            *filled.entry(split.stream_of(&account(&format!("acc_{number}")))).or_default() += 1;
        }
        let most = filled.values().max().unwrap();
        assert_eq!(filled.len(), 256);
        assert!(filled.values().all(|count| count * 2 > *most), "{filled:?}");
        let slots: std::collections::HashSet<u16> =
            filled.keys().map(|stream| Slot::of_key(stream.as_bytes()).number()).collect();
        assert!(slots.len() > 240, "{}", slots.len());
    }
}

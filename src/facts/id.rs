//! One type per identity, so that an account can never be passed as an intent.
//! Every id is checked when it is made: code that holds one needs no further care with keys, headers or file names.

use std::{
    borrow::Borrow,
    fmt::{self, Write},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// Longest id in bytes. Dojo's have 26; the limit bounds Redis keys, headers and log lines.
pub const MAX_ID_BYTES: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("{what} is empty")]
    Empty { what: &'static str },
    #[error("{what} is {bytes} bytes long; at most {MAX_ID_BYTES} are allowed")]
    TooLong { what: &'static str, bytes: usize },
    #[error("{what} {text:?} has the character {found:?}; only A-Z a-z 0-9 _ - are allowed")]
    Character { what: &'static str, text: String, found: char },
    #[error("{what} {text:?} does not start with {prefix:?}")]
    Prefix { what: &'static str, text: String, prefix: &'static str },
    #[error("{text:?} is not an entry id; write it as MILLISECONDS-SEQUENCE, for example 1700000000000-0")]
    Entry { text: String },
    #[error("{text:?} is not a delivery id; write it as ENTRY:ENDPOINT, for example 1700000000000-0:ep_x")]
    Delivery { text: String },
}

/// Inlined where the prefix is known, so that comparing it is like comparing numbers and needs no call.
#[inline(always)]
fn check(what: &'static str, prefix: &'static str, text: &str) -> Result<(), IdError> {
    check_characters(what, text)?;
    match text.starts_with(prefix) {
        true => Ok(()),
        false => Err(IdError::Prefix { what, text: text.to_owned(), prefix }),
    }
}

fn check_characters(what: &'static str, text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { what });
    }
    if text.len() > MAX_ID_BYTES {
        return Err(IdError::TooLong { what, bytes: text.len() });
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() | (b == b'_') | (b == b'-');
    // Always to the end: without an early exit the compiler looks at many bytes at once.
    let all_allowed = text.bytes().fold(true, |all, b| all & allowed(b));
    if !all_allowed {
        let found = text.chars().find(|c| !u8::try_from(*c).is_ok_and(allowed)).unwrap_or_default();
        return Err(IdError::Character { what, text: text.to_owned(), found });
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(Arc<str>);

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl $name {
            pub fn new(text: &str) -> Result<Self, IdError> {
                check($what, $prefix, text)?;
                Ok(Self(text.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(&text)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// An event's own id; the `webhook-id` of every attempt, so the receiver's idempotency key.
    EventId, "the event id", ""
);
id!(
    /// A merchant, `acc_…`.
    AccountId, "the account id", ""
);
id!(
    /// A payment intent, `pi_…`.
    IntentId, "the payment intent id", ""
);
id!(
    /// A registered URL of an account, `ep_…`.
    EndpointId, "the endpoint id", "ep_"
);
id!(
    /// A registry of endpoints, `reg_…`. A partition remembers it, so that a wiped Redis is never taken for an empty one.
    RegistryId, "the registry id", "reg_"
);

id!(
    /// An operation on many deliveries, `op_…`. Made so that the order of the ids is that of the plans.
    OperationId, "the operation id", "op_"
);

/// The id of an entry in the Redis stream: milliseconds, then a number within the millisecond.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct EntryId {
    pub ms: u64,
    pub seq: u64,
}

impl EntryId {
    pub const ZERO: Self = Self { ms: 0, seq: 0 };
    pub const MAX: Self = Self { ms: u64::MAX, seq: u64::MAX };

    /// The id just before this one, so that a range that starts after it includes this one.
    pub fn before(self) -> Self {
        match self.seq.checked_sub(1) {
            Some(seq) => Self { ms: self.ms, seq },
            None if self.ms > 0 => Self { ms: self.ms - 1, seq: u64::MAX },
            None => Self::ZERO,
        }
    }

    /// How long ago it was added, if its id is the time of a clock like Redis': a producer may write ids of any kind,
    /// as long as they rise. `None` for a counter, for microseconds, or for a clock that runs far ahead.
    pub fn age_ms(self, now_ms: u64) -> Option<u64> {
        /// Clocks of one system differ by less.
        const AHEAD_MS: u64 = 5_000;
        /// Nothing is kept for longer.
        const OLDEST_MS: u64 = 2 * 365 * 86_400_000;
        let age_ms = now_ms.saturating_sub(self.ms);
        (self.ms <= now_ms.saturating_add(AHEAD_MS) && age_ms <= OLDEST_MS).then_some(age_ms)
    }

    /// Fixed width, so that the order of the text is the order of the ids.
    pub fn padded(self) -> String {
        format!("{:020}-{:020}", self.ms, self.seq)
    }
}

impl FromStr for EntryId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Entry { text: text.chars().take(64).collect() };
        let number = |part: &str| match part.bytes().all(|b| b.is_ascii_digit()) {
            true => part.parse::<u64>().map_err(|_| bad()),
            false => Err(bad()),
        };
        let (ms, seq) = text.split_once('-').ok_or_else(bad)?;
        Ok(Self { ms: number(ms)?, seq: number(seq)? })
    }
}

/// Written without the formatter's widths and signs, because ids are written more often than anything else.
impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = itoa::Buffer::new();
        f.write_str(digits.format(self.ms))?;
        f.write_char('-')?;
        f.write_str(digits.format(self.seq))
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// One event owed to one endpoint: the entry and the endpoint, written `ENTRY:ENDPOINT`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct DeliveryId {
    pub entry: EntryId,
    pub endpoint: EndpointId,
}

impl FromStr for DeliveryId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (entry, endpoint) =
            text.split_once(':').ok_or_else(|| IdError::Delivery { text: text.chars().take(64).collect() })?;
        Ok(Self { entry: entry.parse()?, endpoint: endpoint.parse()? })
    }
}

impl TryFrom<String> for DeliveryId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl Serialize for DeliveryId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.entry, f)?;
        f.write_char(':')?;
        f.write_str(self.endpoint.as_str())
    }
}

impl fmt::Debug for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Serialises an [`EntryId`] as its text.
impl Serialize for EntryId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EntryId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_break_a_key_or_a_header_is_refused() {
        for bad in ["", "a.b", "a b", "a\r\nb", "a:b", "a{b}", "é"] {
            assert!(EventId::new(bad).is_err(), "{bad:?} was taken");
        }
        assert!(EventId::new(&"x".repeat(MAX_ID_BYTES)).is_ok());
        assert!(EventId::new(&"x".repeat(MAX_ID_BYTES + 1)).is_err());
        assert!(EndpointId::new("acc_1").is_err());
    }

    #[test]
    fn padded_entry_ids_sort_like_entry_ids() {
        let mut ids = [(9, 10), (10, 0), (9, 9), (u64::MAX, u64::MAX), (0, 1)].map(|(ms, seq)| EntryId { ms, seq });
        ids.sort();
        let padded: Vec<_> = ids.iter().map(|id| id.padded()).collect();
        assert!(padded.is_sorted());
    }

    #[test]
    fn only_an_id_that_can_be_a_time_has_an_age() {
        let now = 1_700_000_000_000;
        let age = |ms| EntryId { ms, seq: 0 }.age_ms(now);
        assert_eq!((age(now), age(now - 7), age(now + 1_000)), (Some(0), Some(7), Some(0)));
        for ms in [1, 42_000, now + 86_400_000, now * 1_000, u64::MAX] {
            assert_eq!(age(ms), None, "{ms}");
        }
    }

    #[test]
    fn the_id_before_a_first_of_its_millisecond_is_the_last_of_the_one_before() {
        assert_eq!(EntryId { ms: 5, seq: 0 }.before(), EntryId { ms: 4, seq: u64::MAX });
        assert_eq!(EntryId { ms: 5, seq: 3 }.before(), EntryId { ms: 5, seq: 2 });
        assert_eq!(EntryId::ZERO.before(), EntryId::ZERO);
    }

    #[test]
    fn a_delivery_id_survives_its_text() {
        let id: DeliveryId = "1700000000000-3:ep_a".parse().unwrap();
        assert_eq!(id.to_string(), "1700000000000-3:ep_a");
        assert!("1700000000000-3".parse::<DeliveryId>().is_err());
        assert!("+1-3:ep_a".parse::<DeliveryId>().is_err());
    }
}

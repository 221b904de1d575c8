//! What a producer writes beside an event in its entry, and what receivers get as headers. Read once, when the entry is; a
//! field that is not valid is left out, because it does not concern the payment.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::traceparent::{Traceparent, lenient};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<Traceparent>,
    #[serde(default, deserialize_with = "lenient_sequence", skip_serializing_if = "Option::is_none")]
    pub account_sequence: Option<AccountSequence>,
}

/// Where an event stands among all that its account was told, from 1 and without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct AccountSequence(pub u64);

/// Lua and JavaScript count exactly up to 2^53, which has 16 digits.
pub const MAX_ACCOUNT_SEQUENCE: u64 = (1 << 53) - 1;

impl AccountSequence {
    /// From the bytes that a producer wrote: a number without sign, blanks or zeros before it.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let text =
            std::str::from_utf8(bytes).ok().filter(|text| text.starts_with(|first| matches!(first, '1'..='9')))?;
        text.parse().ok().filter(|number| *number <= MAX_ACCOUNT_SEQUENCE).map(Self)
    }
}

impl fmt::Display for AccountSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn lenient_sequence<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<AccountSequence>, D::Error> {
    let number = Option::<u64>::deserialize(deserializer)?;
    Ok(number.filter(|number| (1..=MAX_ACCOUNT_SEQUENCE).contains(number)).map(AccountSequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_number_from_1_is_a_sequence() {
        assert_eq!(AccountSequence::read(b"17"), Some(AccountSequence(17)));
        assert_eq!(AccountSequence::read(b"9007199254740991"), Some(AccountSequence(MAX_ACCOUNT_SEQUENCE)));
        for wrong in ["", "0", "01", "+1", "-1", " 1", "1 ", "1.0", "1e3", "9007199254740992", "99999999999999999999"] {
            assert_eq!(AccountSequence::read(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}

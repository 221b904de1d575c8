//! Events of an account that nobody is told of, or that Herald does not know: nothing fails there, and so nothing else shows them.

use serde::{Deserialize, Serialize};

use super::{health::Count, id::EntryId};

/// Why an event needs somebody's attention although nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Oddity {
    /// Its account has no endpoint that wants it.
    NoEndpoint,
    /// Its type is none that this Herald knows. It is delivered all the same.
    UnknownType,
    /// It is in a partition that its account does not belong to. It is delivered all the same.
    Misplaced,
}

/// One account's odd events.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Unserved {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_endpoint: Option<OddCount>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_type: Option<OddCount>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misplaced: Option<OddCount>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OddCount {
    #[serde(flatten)]
    pub count: Count,
    /// The last one.
    pub entry: EntryId,
    /// Its type, where that is what is odd.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub event_type: String,
}

/// Some of an account's odd events that were seen together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OddSeen {
    pub oddity: Oddity,
    pub count: u64,
    pub entry: EntryId,
    pub event_type: String,
}

impl Unserved {
    pub fn add(&mut self, at_ms: u64, seen: OddSeen) {
        let OddSeen { oddity, count, entry, event_type } = seen;
        let known = match oddity {
            Oddity::NoEndpoint => &mut self.no_endpoint,
            Oddity::UnknownType => &mut self.unknown_type,
            Oddity::Misplaced => &mut self.misplaced,
        };
        let mut so_far = known.take().map(|known| known.count);
        Count::add(&mut so_far, count, at_ms);
        *known = so_far.map(|count| OddCount { count, entry, event_type });
    }

    pub fn last_ms(&self) -> u64 {
        let all = [&self.no_endpoint, &self.unknown_type, &self.misplaced];
        all.into_iter().flatten().map(|odd| odd.count.last_ms).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_oddity_is_counted_by_itself_with_the_last_entry() {
        let mut unserved = Unserved::default();
        let seen = |oddity, count, entry: &str| {
            let event_type = if oddity == Oddity::UnknownType { "payout.made".to_owned() } else { String::new() };
            OddSeen { oddity, count, entry: entry.parse().unwrap(), event_type }
        };
        unserved.add(10, seen(Oddity::NoEndpoint, 2, "1-0"));
        unserved.add(20, seen(Oddity::NoEndpoint, 3, "2-0"));
        unserved.add(30, seen(Oddity::UnknownType, 1, "3-0"));
        let count = unserved.no_endpoint.clone().unwrap();
        assert_eq!((count.count.count, count.count.first_ms, count.count.last_ms), (5, 10, 20));
        assert_eq!((count.entry.to_string(), unserved.last_ms()), ("2-0".to_owned(), 30));
        let text = serde_json::to_string(&unserved).unwrap();
        assert_eq!(serde_json::from_str::<Unserved>(&text).unwrap(), unserved, "{text}");
    }
}

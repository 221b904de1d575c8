//! Which change of the registry was the last. A failover can take changes back, and then another one gets a version that was given
//! before: its stamp tells them apart.

use std::{fmt, str::FromStr};

/// A version of the registry and the stamp of the change that made it: 64 random bits, 0 for one that has none, because a Herald from
/// before there were stamps made it. Nothing has changed yet at the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamped {
    pub version: u64,
    pub stamp: u64,
}

impl Stamped {
    /// As the registry's `meta` has them: a stamp that was noted with another version is not this one's.
    pub fn noted(version: u64, note: Option<&str>) -> Self {
        let noted = note.and_then(|note| note.parse::<Self>().ok()).filter(|noted| noted.version == version);
        noted.unwrap_or(Self { version, stamp: 0 })
    }
}

impl fmt::Display for Stamped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:016x}", self.version, self.stamp)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no version with a stamp")]
pub struct NotStamped;

impl FromStr for Stamped {
    type Err = NotStamped;

    fn from_str(text: &str) -> Result<Self, NotStamped> {
        let (version, stamp) = text.split_once(' ').ok_or(NotStamped)?;
        let version = version.parse().map_err(|_| NotStamped)?;
        Ok(Self { version, stamp: u64::from_str_radix(stamp, 16).map_err(|_| NotStamped)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_counts_for_the_version_that_it_was_noted_with() {
        let last = Stamped { version: 1_700_000_000_000, stamp: 0xfedc_ba98_7654_3210 };
        assert_eq!(last.to_string(), "1700000000000 fedcba9876543210");
        assert_eq!(last.to_string().parse(), Ok(last));
        assert_eq!(Stamped::noted(last.version, Some(&last.to_string())), last);
        // An older Herald has changed something since.
        let later = Stamped { version: last.version + 1, stamp: 0 };
        assert_eq!(Stamped::noted(later.version, Some(&last.to_string())), later);
        assert_eq!(Stamped::noted(later.version, None), later);
        assert_eq!(Stamped::noted(later.version, Some("nonsense")), later);
    }
}

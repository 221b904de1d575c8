//! How much of Redis the records of one endpoint, or of all endpoints of an account, may take before Herald pauses an
//! endpoint whose receiver takes nothing. Pure numbers; `dispatch` decides who is paused and when.

use std::str::FromStr;

/// The least that can be set: an endpoint with less is not the one that fills Redis.
const LEAST: u64 = 1 << 20;

/// The most that can be set.
const MOST: u64 = 1 << 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    Endpoint,
    Account,
}

impl Quota {
    pub const ALL: [Self; 2] = [Self::Endpoint, Self::Account];

    /// Its name in the configuration, after `quota.`, and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint_bytes",
            Self::Account => "account_bytes",
        }
    }

    /// The share of `maxmemory` that is the default: a sixteenth, so that a dozen receivers may be down for long while
    /// the others' events have room; and a quarter, so that no account alone brings Redis near its limit.
    fn part(self) -> u64 {
        match self {
            Self::Endpoint => 16,
            Self::Account => 4,
        }
    }

    /// The default if Redis has no limit: about 200 000 records of usual size, and four times as many.
    fn without_limit(self) -> u64 {
        match self {
            Self::Endpoint => 256 << 20,
            Self::Account => 1 << 30,
        }
    }
}

/// A quota as it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Setting {
    #[default]
    Auto,
    Off,
    Bytes(u64),
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(0)) => Ok(Self::Off),
            (_, Ok(bytes @ LEAST..=MOST)) => Ok(Self::Bytes(bytes)),
            _ => Err(format!("must be auto, 0 for none, or a number of bytes between {LEAST} and {MOST}")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    pub endpoint: Setting,
    pub account: Setting,
}

impl Settings {
    /// The quotas with a Redis of this `maxmemory`; 0 means that it has no limit.
    pub fn with(self, maxmemory_bytes: u64) -> Quotas {
        let bytes = |quota: Quota, setting| match (setting, maxmemory_bytes) {
            (Setting::Off, _) => None,
            (Setting::Bytes(bytes), _) => Some(bytes),
            (Setting::Auto, 0) => Some(quota.without_limit()),
            (Setting::Auto, max) => Some((max / quota.part()).max(LEAST)),
        };
        Quotas { endpoint: bytes(Quota::Endpoint, self.endpoint), account: bytes(Quota::Account, self.account) }
    }
}

/// In bytes; none means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quotas {
    pub endpoint: Option<u64>,
    pub account: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_follows_the_limit_of_redis() {
        let auto = Settings::default();
        assert_eq!(auto.with(0), Quotas { endpoint: Some(256 << 20), account: Some(1 << 30) });
        assert_eq!(auto.with(2 << 30), Quotas { endpoint: Some(128 << 20), account: Some(512 << 20) });
        assert_eq!(auto.with(1), Quotas { endpoint: Some(LEAST), account: Some(LEAST) });
        let set = Settings { endpoint: Setting::Off, account: Setting::Bytes(7 << 20) };
        assert_eq!(set.with(2 << 30), Quotas { endpoint: None, account: Some(7 << 20) });
    }

    #[test]
    fn a_setting_is_read_or_refused_with_what_may_stand_there() {
        assert_eq!("auto".parse(), Ok(Setting::Auto));
        assert_eq!("0".parse(), Ok(Setting::Off));
        assert_eq!("1048576".parse(), Ok(Setting::Bytes(1 << 20)));
        for wrong in ["1", "1048575", "-1", "64mb", "", "99999999999999"] {
            assert!(wrong.parse::<Setting>().is_err_and(|why| why.contains("auto, 0 for none")), "{wrong}");
        }
    }
}

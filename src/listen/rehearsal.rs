//! What goes wrong on purpose, and how often. Pure: chance is drawn by the caller.

use std::{str::FromStr, time::Duration};

use clap::Args;

use crate::config::parse_duration;

/// Longer than any attempt of Herald's may take.
const LONGEST: Duration = Duration::from_secs(300);

/// How many in a hundred, from 0 up to 100.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(f64);

impl FromStr for Share {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let percent = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
        let valid = percent.filter(|percent| (0.0..=100.0).contains(percent));
        valid.map(Self).ok_or_else(|| "is no share; write it as 20%, from 0% to 100%".to_owned())
    }
}

impl Share {
    const ALL: Self = Self(100.0);

    /// `drawn` lies from 0 up to, but not including, 1.
    fn takes(self, drawn: f64) -> bool {
        drawn < self.0 / 100.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fail {
    pub status: u16,
    share: Share,
}

impl FromStr for Fail {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (status, share) = with_share(text)?;
        let status = status.parse().ok().filter(|status| (300..=599).contains(status));
        let status = status.ok_or("is no status of a failure; write it as 500 or 500:20%, from 300 to 599")?;
        Ok(Self { status, share })
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slow {
    pub by: Duration,
    share: Share,
}

impl FromStr for Slow {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (by, share) = with_share(text)?;
        match parse_duration(by)? {
            by if by <= LONGEST => Ok(Self { by, share }),
            _ => Err("is longer than any attempt lasts; at most 5m".to_owned()),
        }
    }
}

fn with_share(text: &str) -> Result<(&str, Share), String> {
    match text.split_once(':') {
        Some((what, share)) => Ok((what, share.parse()?)),
        None => Ok((text, Share::ALL)),
    }
}

/// The flags.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Rehearse what goes wrong")]
pub struct Rehearsal {
    /// Answer with this status and forward nothing, as if the application were down; 500:20% for a fifth of them
    #[arg(long, value_name = "STATUS[:SHARE]")]
    fail: Option<Fail>,
    /// Answer only after this long; 3s:20% for a fifth of them
    #[arg(long, value_name = "DURATION[:SHARE]")]
    slow: Option<Slow>,
    /// Do everything but answer, so that the callback comes again; --drop-answer=20% for a fifth of them
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "100%")]
    drop_answer: Option<Share>,
    /// Forward it twice, as after a lost answer; --duplicate=20% for a fifth of them
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "100%", requires = "forward_to")]
    duplicate: Option<Share>,
    /// Answer 200, and forward it only after the next of the same intent, or after 10 s; --reorder=20% for a fifth of them
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "100%", requires = "forward_to")]
    reorder: Option<Share>,
}

/// What goes wrong with one callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    pub fail: Option<u16>,
    pub slow: Option<Duration>,
    pub drop_answer: bool,
    pub duplicate: bool,
    pub reorder: bool,
}

impl Rehearsal {
    pub fn plan(&self, mut draw: impl FnMut() -> f64) -> Plan {
        let mut takes = |share: Option<Share>| share.is_some_and(|share| share.takes(draw()));
        Plan {
            fail: self.fail.filter(|fail| takes(Some(fail.share))).map(|fail| fail.status),
            slow: self.slow.filter(|slow| takes(Some(slow.share))).map(|slow| slow.by),
            drop_answer: takes(self.drop_answer),
            duplicate: takes(self.duplicate),
            reorder: takes(self.reorder),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_share_stands_behind_a_colon_and_is_all_without() {
        assert_eq!("500".parse(), Ok(Fail { status: 500, share: Share::ALL }));
        assert_eq!("503:20%".parse(), Ok(Fail { status: 503, share: Share(20.0) }));
        assert_eq!("1m 3s:0.5%".parse(), Ok(Slow { by: Duration::from_secs(63), share: Share(0.5) }));
        for wrong in ["200", "600", "x", "500:20", "500:101%", "500:-1%", "500:NaN%", ""] {
            assert!(wrong.parse::<Fail>().is_err(), "{wrong}");
        }
        for wrong in ["3", "6m", "3s:", "-1s"] {
            assert!(wrong.parse::<Slow>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_flags_nothing_goes_wrong_and_with_all_everything() {
        assert_eq!(Rehearsal::default().plan(|| 0.0), Plan::default());
        let all = Rehearsal {
            fail: "500".parse().ok(),
            slow: "3s".parse().ok(),
            drop_answer: Some(Share::ALL),
            duplicate: Some(Share::ALL),
            reorder: Some(Share(0.0)),
        };
        let plan = all.plan(|| 0.999_999);
        assert_eq!((plan.fail, plan.slow), (Some(500), Some(Duration::from_secs(3))));
        assert!(plan.drop_answer && plan.duplicate && !plan.reorder);
    }

    proptest! {
        /// Of a thousand draws that are spread evenly, a share takes its part.
        #[test]
        fn a_share_takes_its_part(percent in 0_u32..=100) {
            let share = Share(f64::from(percent));
            let taken = (0..1000).filter(|n| share.takes(f64::from(*n) / 1000.0)).count();
            prop_assert_eq!(taken, percent as usize * 10);
        }
    }
}

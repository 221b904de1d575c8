//! When to try again, and when to give up. Pure: takes the attempt's number, its outcome, the delivery's age and a
//! random number, and returns a fate.
//!
//! `backoff` is used here and nowhere else. The crate is unmaintained (RUSTSEC-2025-0012); it has no I/O and no unsafe
//! code, and `.cargo/deny.toml` carries the exception. The way out is [`intervals`]: thirty lines of multiplication.

use std::time::Duration;

use backoff::{ExponentialBackoffBuilder, backoff::Backoff};
use serde::{Deserialize, Serialize};

use super::outcome::Outcome;

/// The most attempts that a policy may ask for: bounds a record's history.
pub const MAX_ATTEMPTS: u32 = 50;

/// The part of a delivery's remaining time that no `Retry-After` can take: a tenth is left for the attempt after it,
/// which may have to wait for others.
const LAST_PART: u32 = 10;

/// What an endpoint may change in the configured policy. Durations in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryOverrides {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_interval_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// The numbers behind a policy, as they are configured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetrySettings {
    pub initial: Duration,
    pub multiplier: f64,
    pub max_interval: Duration,
    /// 0.2 spreads each interval evenly over 80 % to 120 %.
    pub jitter: f64,
    pub max_attempts: u32,
    pub max_age: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(5),
            multiplier: 4.0,
            max_interval: Duration::from_secs(12 * 3600),
            jitter: 0.2,
            max_attempts: 12,
            max_age: Duration::from_secs(72 * 3600),
        }
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RetryError {
    #[error("retry initial interval must be at least 1 ms")]
    Initial,
    #[error("retry multiplier {0} must be between 1 and 100")]
    Multiplier(f64),
    #[error("retry max interval must not be shorter than the initial interval, nor longer than 30 days")]
    MaxInterval,
    #[error("retry jitter {0} must be between 0 and 1")]
    Jitter(f64),
    #[error("retry max attempts {0} must be between 1 and {MAX_ATTEMPTS}")]
    MaxAttempts(u32),
    #[error("retry max age must be between 1 s and 365 days")]
    MaxAge,
}

/// Why a delivery was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// Every attempt that the policy allows was made.
    Exhausted,
    /// It grew older than the policy's maximum age, retrying, parked or held.
    Expired,
    /// The receiver answered 410.
    Gone,
    /// Its endpoint is disabled.
    Disabled,
    /// Its endpoint was deleted.
    Deleted,
    /// An operator released its chain.
    Released,
}

impl DeadReason {
    pub const ALL: [Self; 6] =
        [Self::Exhausted, Self::Expired, Self::Gone, Self::Disabled, Self::Deleted, Self::Released];

    pub fn name(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Expired => "expired",
            Self::Gone => "gone",
            Self::Disabled => "disabled",
            Self::Deleted => "deleted",
            Self::Released => "released",
        }
    }
}

/// What a settled attempt leads to, as far as the policy alone decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    RetryAfter(Duration),
    Dead(DeadReason),
}

/// A validated policy with its intervals computed.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    settings: RetrySettings,
    /// `intervals[n - 1]` follows attempt `n`, before jitter.
    intervals: Vec<Duration>,
}

impl RetryPolicy {
    pub fn try_new(settings: RetrySettings) -> Result<Self, RetryError> {
        const DAY: Duration = Duration::from_secs(86_400);
        if settings.initial < Duration::from_millis(1) {
            return Err(RetryError::Initial);
        }
        if !(1.0..=100.0).contains(&settings.multiplier) {
            return Err(RetryError::Multiplier(settings.multiplier));
        }
        if settings.max_interval < settings.initial || settings.max_interval > 30 * DAY {
            return Err(RetryError::MaxInterval);
        }
        if !(0.0..=1.0).contains(&settings.jitter) {
            return Err(RetryError::Jitter(settings.jitter));
        }
        if !(1..=MAX_ATTEMPTS).contains(&settings.max_attempts) {
            return Err(RetryError::MaxAttempts(settings.max_attempts));
        }
        if settings.max_age < Duration::from_secs(1) || settings.max_age > 365 * DAY {
            return Err(RetryError::MaxAge);
        }
        Ok(Self { intervals: intervals(&settings), settings })
    }

    /// This policy with an endpoint's overrides.
    pub fn with(&self, overrides: &RetryOverrides) -> Result<Self, RetryError> {
        let base = self.settings;
        Self::try_new(RetrySettings {
            initial: overrides.initial_ms.map_or(base.initial, Duration::from_millis),
            multiplier: overrides.multiplier.unwrap_or(base.multiplier),
            max_interval: overrides.max_interval_ms.map_or(base.max_interval, Duration::from_millis),
            jitter: overrides.jitter.unwrap_or(base.jitter),
            max_attempts: overrides.max_attempts.unwrap_or(base.max_attempts),
            max_age: overrides.max_age_ms.map_or(base.max_age, Duration::from_millis),
        })
    }

    pub fn settings(&self) -> &RetrySettings {
        &self.settings
    }

    /// The pauses after attempts 1, 2, …, before jitter.
    pub fn intervals(&self) -> &[Duration] {
        &self.intervals
    }

    pub fn is_expired(&self, age: Duration) -> bool {
        age >= self.settings.max_age
    }

    /// The pause that the receiver asked for, as far as it is granted to a delivery of this age: no longer than the
    /// policy's longest interval, and short enough for one more attempt before the delivery is too old.
    pub fn granted(&self, outcome: &Outcome, age: Duration) -> Option<Duration> {
        let fits = longest_that_fits(self.settings.max_age, age);
        outcome.asked().map(|asked| asked.min(self.settings.max_interval).min(fits))
    }

    /// `attempt` is the number of the attempt just made, counted from 1 since the delivery was new or redelivered;
    /// `age` is the time since then; `chance` is uniform in [0, 1).
    pub fn decide(&self, attempt: u32, outcome: &Outcome, age: Duration, chance: f64) -> Fate {
        match outcome {
            Outcome::Delivered { .. } => return Fate::Delivered,
            Outcome::Gone => return Fate::Dead(DeadReason::Gone),
            _ => {}
        }
        let Some(interval) = self.intervals.get(attempt.max(1) as usize - 1) else {
            return Fate::Dead(DeadReason::Exhausted);
        };
        let spread = 1.0 - self.settings.jitter + 2.0 * self.settings.jitter * chance.clamp(0.0, 1.0);
        let pause = interval.mul_f64(spread).max(self.granted(outcome, age).unwrap_or_default());
        match self.is_expired(age.saturating_add(pause)) {
            true => Fate::Dead(DeadReason::Expired),
            false => Fate::RetryAfter(pause),
        }
    }
}

/// The pause after each attempt but the last, computed by `backoff`'s exponential policy without its own jitter and
/// clock: both are ours, so that a decision can be repeated.
fn intervals(settings: &RetrySettings) -> Vec<Duration> {
    let mut policy = ExponentialBackoffBuilder::new()
        .with_initial_interval(settings.initial)
        .with_multiplier(settings.multiplier)
        .with_max_interval(settings.max_interval)
        .with_randomization_factor(0.0)
        .with_max_elapsed_time(None)
        .build();
    (1..settings.max_attempts).filter_map(|_| policy.next_backoff()).collect()
}

/// The longest pause after which one more attempt fits before a delivery of this age is too old.
pub fn longest_that_fits(max_age: Duration, age: Duration) -> Duration {
    let left = max_age.saturating_sub(age);
    left - left / LAST_PART
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Outcome = Outcome::ServerFailed { status: 500 };

    fn policy() -> RetryPolicy {
        RetryPolicy::try_new(RetrySettings::default()).unwrap()
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_default_schedule_is_the_documented_one() {
        let seconds: Vec<u64> = policy().intervals().iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [5, 20, 80, 320, 1280, 5120, 20480, 43200, 43200, 43200, 43200]);
    }

    #[test]
    fn jitter_spreads_an_interval_evenly_around_its_middle() {
        let at = |chance| policy().decide(1, &FAILED, secs(0), chance);
        assert_eq!(at(0.0), Fate::RetryAfter(secs(4)));
        assert_eq!(at(0.5), Fate::RetryAfter(secs(5)));
        assert_eq!(at(1.0), Fate::RetryAfter(secs(6)));
    }

    #[test]
    fn the_last_attempt_and_the_greatest_age_end_a_delivery() {
        assert_eq!(policy().decide(12, &FAILED, secs(0), 0.5), Fate::Dead(DeadReason::Exhausted));
        assert_eq!(policy().decide(1, &FAILED, secs(72 * 3600), 0.5), Fate::Dead(DeadReason::Expired));
        // A retry that would only come after the end is not waited for.
        assert_eq!(policy().decide(8, &FAILED, secs(61 * 3600), 0.5), Fate::Dead(DeadReason::Expired));
        assert_eq!(policy().decide(3, &Outcome::Gone, secs(0), 0.5), Fate::Dead(DeadReason::Gone));
    }

    #[test]
    fn retry_after_lengthens_a_pause_within_bounds_and_never_shortens_it() {
        let after = |asked| Outcome::Throttled { status: 429, retry_after: Some(asked) };
        assert_eq!(policy().decide(1, &after(secs(60)), secs(0), 0.5), Fate::RetryAfter(secs(60)));
        assert_eq!(policy().decide(1, &after(secs(1)), secs(0), 0.5), Fate::RetryAfter(secs(5)));
        assert_eq!(policy().decide(1, &after(secs(u64::MAX / 4)), secs(0), 0.5), Fate::RetryAfter(secs(43_200)));
    }

    #[test]
    fn retry_after_leaves_time_for_one_more_attempt() {
        let after = |asked| Outcome::Throttled { status: 503, retry_after: Some(asked) };
        let hour = 3600;
        // Two hours are left, and the receiver asks for ten.
        let fate = policy().decide(6, &after(secs(10 * hour)), secs(70 * hour), 0.5);
        assert_eq!(fate, Fate::RetryAfter(secs(2 * hour).mul_f64(0.9)));
        for left in 10..2 * hour {
            let age = secs(72 * hour - left);
            let Fate::RetryAfter(pause) = policy().decide(1, &after(secs(30 * 24 * hour)), age, 1.0) else {
                panic!("stranded with {left} s left")
            };
            assert!(!policy().is_expired(age + pause), "{left} s left, and {pause:?} to wait");
            assert_eq!(policy().granted(&after(secs(30 * 24 * hour)), age).map(|rest| rest <= pause), Some(true));
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        let check = |change: fn(&mut RetrySettings)| {
            let mut settings = RetrySettings::default();
            change(&mut settings);
            RetryPolicy::try_new(settings).expect_err("it was taken").to_string()
        };
        assert!(check(|s| s.multiplier = f64::NAN).contains("multiplier"));
        assert!(check(|s| s.jitter = 1.5).contains("jitter"));
        assert!(check(|s| s.max_attempts = 0).contains("attempts"));
        assert!(check(|s| s.initial = Duration::ZERO).contains("initial"));
        assert!(check(|s| s.max_interval = secs(1)).contains("interval"));
        assert!(check(|s| s.max_age = Duration::ZERO).contains("age"));
    }

    #[test]
    fn an_endpoint_overrides_only_what_it_names() {
        let overrides = RetryOverrides { max_attempts: Some(3), ..RetryOverrides::default() };
        let policy = policy().with(&overrides).unwrap();
        assert_eq!(policy.intervals(), [secs(5), secs(20)]);
        assert_eq!(policy.decide(3, &FAILED, secs(0), 0.5), Fate::Dead(DeadReason::Exhausted));
    }
}

//! The only place that reads a clock. Everything else is handed the time, so that it can be tested at any time.
//! Due times and the age of a delivery are in Redis' time, not in this one.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Wall clock, milliseconds since 1970; 0 for a clock set before that. It can jump: never measure a span with it.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The same in microseconds.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Monotonic clock. It follows tokio's paused time in tests and is `std`'s everywhere else.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_wall_clock_counts_milliseconds() {
        // 2024-01-01 and 2100-01-01: seconds or microseconds would be far outside.
        assert!((1_704_067_200_000..4_102_444_800_000).contains(&wall_ms()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_monotonic_clock_follows_paused_time() {
        let before = now();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(now() - before, Duration::from_secs(3600));
    }
}

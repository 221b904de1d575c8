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

/// How far this machine's clock is ahead of another one, which told its time between two looks at this one. 0 where they may agree.
pub fn ahead_ms(before_ms: u64, other_ms: u64, after_ms: u64) -> i64 {
    let nearest = match other_ms {
        earlier if earlier < before_ms => before_ms,
        later if later > after_ms => after_ms,
        between => between,
    };
    nearest.cast_signed().saturating_sub(other_ms.cast_signed())
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

    #[test]
    fn clocks_that_may_agree_are_not_told_apart() {
        assert_eq!(ahead_ms(1_000, 1_000, 6_000), 0);
        assert_eq!(ahead_ms(1_000, 5_000, 6_000), 0, "an answer that took long");
        assert_eq!(ahead_ms(9_000, 5_000, 9_001), 4_000, "ahead");
        assert_eq!(ahead_ms(1_000, 5_000, 1_001), -3_999, "behind");
        // It was set back meanwhile.
        assert_eq!(ahead_ms(9_000, 5_000, 1_000), 4_000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_monotonic_clock_follows_paused_time() {
        let before = now();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(now() - before, Duration::from_secs(3600));
    }
}

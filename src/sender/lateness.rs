//! Whether a thread looks at an attempt in time. Reads the clock, and nothing else.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock;

/// How much later than its deadline a wait may end. Timers and other attempts of its thread take milliseconds.
const MAX_LATENESS: Duration = Duration::from_millis(500);

/// A thread that looks this long after a deadline cannot tell whether the receiver had answered before it.
pub(super) fn is_too_late(deadline: Instant) -> bool {
    clock::now().saturating_duration_since(deadline.into_std()) > MAX_LATENESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn half_a_second_behind_the_deadline_nobody_knows_any_more() {
        let deadline = Instant::from_std(clock::now()) + Duration::from_secs(1);
        assert!(!is_too_late(deadline));
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert!(!is_too_late(deadline));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(is_too_late(deadline));
    }
}

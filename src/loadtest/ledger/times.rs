//! Times as the books keep them: microseconds since the load began.

use std::time::Duration;

/// No time yet.
pub const NEVER: u64 = u64::MAX;

pub fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

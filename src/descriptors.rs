//! How many files and sockets this process may have open, and what part of them is for connections to receivers and from callers
//! of the payment intents.
//! Never opens one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// For Redis, those who call for health and metrics, logs and files, and for names that are being looked up.
const OTHERS: u64 = 256;

/// Connections of one sender at the most: each holds some 20 KB with its buffers and TLS.
const MAX_CONNECTIONS: u64 = 4096;

/// With fewer nothing would move; a limit as low as that is reported by the system, at each failed connection.
const MIN_CONNECTIONS: u64 = 16;

/// Asks for as many as the system's administrator allows. The usual soft limit of 1 024 dates from programs that could not
/// count further (`select`).
pub fn raise_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// How many connections each of `senders` may have open, where callers may have so many.
pub fn connections_each(senders: u64, callers: usize) -> usize {
    part_of(limit(), senders, callers as u64)
}

/// How many of the `most` connections that callers may have at once there is room for, beside `senders`.
pub fn connections_of_callers(most: usize, senders: u64) -> usize {
    callers_of(limit(), most as u64, senders)
}

fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

fn part_of(limit: u64, senders: u64, callers: u64) -> usize {
    let each = limit.saturating_sub(OTHERS + callers) / senders.max(1);
    each.clamp(MIN_CONNECTIONS, MAX_CONNECTIONS) as usize
}

/// Beside senders no more than a quarter: callers wait for their turn, and a delivery without a descriptor has failed.
fn callers_of(limit: u64, most: u64, senders: u64) -> usize {
    let room = limit.saturating_sub(OTHERS);
    let part = if senders == 0 { room } else { room / 4 };
    part.clamp(MIN_CONNECTIONS, most) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_planned_within_the_limit() {
        assert_eq!(part_of(1024, 2, 0), 384);
        assert_eq!(part_of(1_048_576, 2, 1024), MAX_CONNECTIONS as usize);
        assert_eq!(part_of(100, 2, 0), MIN_CONNECTIONS as usize);
        assert_eq!(part_of(8192, 2, 1024), 3456);
    }

    #[test]
    fn callers_and_receivers_together_stay_within_the_limit() {
        for limit in [512, 1024, 4096, 8192, 65_536] {
            let callers = callers_of(limit, 1024, 2);
            let receivers = 2 * part_of(limit, 2, callers as u64) as u64;
            assert!(OTHERS + callers as u64 + receivers <= limit, "{limit}: {callers} and {receivers}");
        }
        assert_eq!(callers_of(1024, 1024, 2), 192);
        assert_eq!(callers_of(65_536, 1024, 2), 1024);
        assert_eq!(callers_of(1024, 1024, 0), 768);
        assert_eq!(callers_of(100, 1024, 2), MIN_CONNECTIONS as usize);
    }

    #[test]
    fn the_limit_is_raised_to_what_is_allowed() {
        raise_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
    }
}

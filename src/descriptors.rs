//! How many files and sockets this process may have open, and what part of them is for connections to receivers.
//! Never opens one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// For Redis, the service's own callers, logs and files, and for names that are being looked up.
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

/// How many connections each of `senders` may have open.
pub fn connections_each(senders: u64) -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    part_of(limit, senders)
}

fn part_of(limit: u64, senders: u64) -> usize {
    let each = limit.saturating_sub(OTHERS) / senders.max(1);
    each.clamp(MIN_CONNECTIONS, MAX_CONNECTIONS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_planned_within_the_limit() {
        assert_eq!(part_of(1024, 2), 384);
        assert_eq!(part_of(1_048_576, 2), MAX_CONNECTIONS as usize);
        assert_eq!(part_of(100, 2), MIN_CONNECTIONS as usize);
    }

    #[test]
    fn the_limit_is_raised_to_what_is_allowed() {
        raise_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
    }
}

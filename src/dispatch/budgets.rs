//! How much of the deliveries may be in memory and in flight at a time, and the part of it that one endpoint, account or
//! host may have. Pure numbers. Never counts: that is `core` and `shares`.

/// Deliveries without record at which reading stops. With 600-byte events about 2 MB, and a quarter of a second's work at
/// ten thousand a second.
const FRESH: usize = 2_048;

/// Deliveries with a record that wait in memory or are in quick flight, at which claiming and looking at backlogs stops.
const KEPT: usize = 2_048;

/// Flights to receivers that have not shown that they answer, or that keep us waiting. One costs 32 KB, nearly all of it for
/// its connection: a buffer of 8 KiB each for what is read and written, 9 KiB for the way of a request into it; 2.5 KiB for
/// the attempt, 1.2 for its headers. With the quarter by which they may be overfull that makes 80 MB.
const SLOW: usize = 2_048;

/// Entries that wait in memory for their account to take more, and are then not read from the stream a second time. One account
/// may have half of it: a fifth of a second's work at twenty thousand a second.
const DEFERRED: usize = 8_192;

/// Their bodies, with half a kilobyte for each and a pointer for each endpoint that it is owed to.
const DEFERRED_BYTES: usize = 12 << 20;

/// Operations that wait for a settle at which reading stops: four batches.
const OUTBOX: usize = 2_000;

/// Their records: eight batches of the longest call that Redis is given at once.
const OUTBOX_BYTES: usize = 8 << 20;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    pub count: usize,
    pub bytes: usize,
}

impl Budget {
    pub fn part(self, of: usize) -> Self {
        Self { count: (self.count / of).max(1), bytes: (self.bytes / of).max(1) }
    }

    pub fn has_room(self, used: Self) -> bool {
        used.count < self.count && used.bytes < self.bytes
    }
}

/// A flight that has lasted so long is slow.
const SLOW_AFTER_MS: u64 = 1_000;

/// So long a receiver that never failed is counted among the new. Most answer within this, their connection and TLS
/// included; who does not keeps its seat, and leaves the place of a new one to the next. With the 512 places of the new
/// two thousand unknown receivers a second may be met, although all of them hang.
const NEW_FOR_MS: u64 = 250;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Without record: nothing else is read while it is used up.
    pub fresh: Budget,
    /// With a record, and not in slow flight.
    pub kept: Budget,
    /// In slow flight.
    pub slow: Budget,
    pub outbox: Budget,
    /// Read, and waiting for its account to take more.
    pub deferred: Budget,
    /// A flight that has lasted so long keeps us waiting.
    pub slow_after_ms: u64,
    /// A new receiver that has not answered for so long leaves its place to another new one.
    pub new_for_ms: u64,
}

impl Budgets {
    /// Of these bytes of bodies half are for what is fresh, a quarter each for what has records and for slow flights.
    pub fn of(body_bytes: usize) -> Self {
        Self {
            fresh: Budget { count: FRESH, bytes: body_bytes / 2 },
            kept: Budget { count: KEPT, bytes: body_bytes / 4 },
            slow: Budget { count: SLOW, bytes: body_bytes / 4 },
            outbox: Budget { count: OUTBOX, bytes: OUTBOX_BYTES },
            deferred: Budget { count: DEFERRED, bytes: DEFERRED_BYTES },
            slow_after_ms: SLOW_AFTER_MS,
            new_for_ms: NEW_FOR_MS,
        }
    }

    /// Where so many connections may be open, and slow ones and their overfullness must not take the last.
    pub fn within(self, connections: usize) -> Self {
        let count = self.slow.count.min(connections * 4 / 5);
        Self { slow: Budget { count, ..self.slow }, ..self }
    }

    /// Slow flights of one endpoint, at most: an eighth.
    pub fn slow_of_endpoint(&self) -> Budget {
        self.slow.part(8)
    }

    /// Attempts that are in flight at a time, at most: slow ones, and others of which each has its place in memory.
    pub fn flights(&self) -> usize {
        self.fresh.count + self.kept.count + self.slow.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_hang_leave_some_of_few_connections() {
        for connections in [16, 384, 4_096] {
            let slow = Budgets::of(1 << 20).within(connections).slow.count;
            assert!(slow > 0 && slow + slow / 4 <= connections, "{slow} of {connections}");
        }
        assert_eq!(Budgets::of(1 << 20).within(4_096), Budgets::of(1 << 20));
    }
}

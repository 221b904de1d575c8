//! How many deliveries may be in memory and in flight at a time, and how much of that one endpoint, account or host may
//! have. Pure numbers. Never counts: `core` and `shares` do.

/// Reading stops at this many deliveries without a record. With 600-byte events that is about 2 MB, and a quarter of a
/// second's work at ten thousand a second.
const FRESH: usize = 2_048;

/// Claiming and looking at backlogs stop at this many deliveries with a record that wait in memory or are in quick flight.
const KEPT: usize = 2_048;

/// Flights to receivers that have not shown that they answer, or that keep us waiting. One costs 32 KB, nearly all of it
/// for its connection: 8 KiB each for its read and write buffers, 9 KiB for handing it a request; 2.5 KiB for the attempt,
/// 1.2 for its headers. With the quarter by which they may be overfull, that makes 80 MB.
const SLOW: usize = 2_048;

/// Entries that wait in memory until their account can take more, so that they need not be read from the stream a second
/// time. One account may have half of this: a fifth of a second's work at twenty thousand a second.
const DEFERRED: usize = 8_192;

/// Bytes of these entries: their bodies, plus half a kilobyte each and a pointer for each endpoint that they are owed to.
const DEFERRED_BYTES: usize = 12 << 20;

/// Reading stops at this many operations that wait to be settled: four batches.
const OUTBOX: usize = 2_000;

/// Bytes of their records: four batches as large as a batch may be.
const OUTBOX_BYTES: usize = 8 << 20;

/// What a partition may have of each at least, however many there are. With fewer that are fresh, the accounts of a partition take a
/// handful at a time, and each handful costs a call.
const LEAST_FRESH: usize = 256;
const LEAST: usize = 64;
const LEAST_SLOW: usize = 8;
const LEAST_BYTES: usize = 1 << 20;

/// With less, reading would always wait for an account that takes a page as quickly as it can.
const LEAST_DEFERRED: usize = 1_024;

/// What has ended waits so long for company until it is settled: a call for each would cost more than the deliveries. Of more
/// partitions than these each ends little within that time, so they wait longer; until then a crash makes it come again.
pub const SETTLE_AFTER_MS: u64 = 4;
const SETTLED_APART: usize = 8;
const MOST_SETTLE_AFTER_MS: u64 = 32;

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

/// A flight that has lasted this long is slow.
const SLOW_AFTER_MS: u64 = 1_000;

/// How long a receiver that never failed counts as new. Most answer within this time, their connection and TLS included.
/// One that does not keeps its seat, but no longer takes one of the places for the new. With 512 such places, two thousand
/// unknown receivers a second may be met even if all of them hang.
const NEW_FOR_MS: u64 = 250;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Without a record. Once this is used up, nothing more is read.
    pub fresh: Budget,
    /// With a record, and not in slow flight.
    pub kept: Budget,
    /// In slow flight.
    pub slow: Budget,
    pub outbox: Budget,
    /// Read, and waiting for its account to take more.
    pub deferred: Budget,
    /// How many partitions of the process read what cannot be taken yet, this one included: they share the time for it.
    pub in_vain: usize,
    /// What has ended is settled together with all that ends within this time.
    pub settle_after_ms: u64,
    /// A flight that has lasted this long keeps us waiting.
    pub slow_after_ms: u64,
    /// A new receiver that has not answered for this long frees its place for another new one.
    pub new_for_ms: u64,
}

impl Budgets {
    /// Half of these bytes of bodies are for what is fresh, a quarter each for what has records and for slow flights.
    pub fn of(body_bytes: usize) -> Self {
        Self {
            fresh: Budget { count: FRESH, bytes: body_bytes / 2 },
            kept: Budget { count: KEPT, bytes: body_bytes / 4 },
            slow: Budget { count: SLOW, bytes: body_bytes / 4 },
            outbox: Budget { count: OUTBOX, bytes: OUTBOX_BYTES },
            deferred: Budget { count: DEFERRED, bytes: DEFERRED_BYTES },
            in_vain: 1,
            settle_after_ms: SETTLE_AFTER_MS,
            slow_after_ms: SLOW_AFTER_MS,
            new_for_ms: NEW_FOR_MS,
        }
    }

    /// So many attempts may keep us waiting at a time.
    pub fn waiting_for(self, in_flight: usize) -> Self {
        Self { slow: Budget { count: in_flight, ..self.slow }, ..self }
    }

    /// For this many connections: slow flights, even when overfull, must not take the last one.
    pub fn within(self, connections: usize) -> Self {
        let count = self.slow.count.min(connections * 4 / 5);
        Self { slow: Budget { count, ..self.slow }, ..self }
    }

    /// For so many threads of attempts: bytes are the process', however many it has, and slow flights are nearly all on one thread.
    pub fn times(self, threads: usize) -> Self {
        let times = |budget: Budget| Budget { count: budget.count * threads, ..budget };
        Self { fresh: times(self.fresh), kept: times(self.kept), ..self }
    }

    /// For one of so many partitions: so many equal parts of all, but never less than it takes to work, nor more than one would
    /// have alone.
    pub fn part_of(self, partitions: usize, times: usize) -> Self {
        let part = |all: Budget, least: usize, most: usize| Budget {
            count: (times * all.count / partitions).clamp(least, most).min(all.count),
            bytes: (times * (all.bytes / partitions)).max(LEAST_BYTES).min(all.bytes),
        };
        let (fresh, kept) = (part(self.fresh, LEAST_FRESH, FRESH), part(self.kept, LEAST, KEPT));
        let (slow, deferred) =
            (part(self.slow, LEAST_SLOW, self.slow.count), part(self.deferred, LEAST_DEFERRED, DEFERRED));
        let settle_after_ms = SETTLE_AFTER_MS * partitions as u64 / SETTLED_APART as u64;
        let settle_after_ms = settle_after_ms.clamp(SETTLE_AFTER_MS, MOST_SETTLE_AFTER_MS);
        Self { fresh, kept, slow, deferred, settle_after_ms, ..self }
    }

    /// Of deliveries in memory that are not in slow flight.
    pub fn in_memory(&self) -> Budget {
        Budget { count: self.fresh.count + self.kept.count, bytes: self.fresh.bytes + self.kept.bytes }
    }

    /// Slow flights that one endpoint may have: an eighth.
    pub fn slow_of_endpoint(&self) -> Budget {
        self.slow.part(8)
    }

    /// How many attempts may be in flight at a time: the slow ones, and the others, each of which has its place in memory.
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

    #[test]
    fn many_partitions_settle_less_often_each_and_not_at_their_leisure() {
        let of = |partitions| Budgets::of(1 << 20).part_of(partitions, 4).settle_after_ms;
        assert_eq!([1, 8, 16, 64, 1_000].map(of), [4, 4, 8, 32, 32]);
    }
}

//! What the partitions of a process may have in memory and in flight, under one count for all: each always its equal part, and four
//! times that as long as all together have not used up what there is. So one that has much to do borrows from those that have
//! little, and takes nothing from what these may have.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::budgets::{Budget, Budgets};

/// How many equal parts a partition may have while there is enough.
const BORROWED: usize = 4;

/// Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct SharedBudgets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: Budgets,
    owned: AtomicUsize,
    count: AtomicUsize,
    bytes: AtomicUsize,
    slow: AtomicUsize,
    in_vain: AtomicUsize,
}

/// One partition's.
#[derive(Debug)]
pub struct Share {
    shared_budgets: SharedBudgets,
    is_owner: bool,
    used: Used,
}

/// What a partition has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    /// In memory and not in slow flight.
    pub memory: Budget,
    pub slow: usize,
    /// It reads what cannot be taken yet.
    pub reads_in_vain: bool,
}

impl SharedBudgets {
    /// For partitions of which each alone might have `each`, whose attempts run on so many threads.
    pub fn new(each: Budgets, threads: usize) -> Self {
        let (owned, count, bytes, slow, in_vain) = Default::default();
        Self(Arc::new(Inner { all: each.times(threads), owned, count, bytes, slow, in_vain }))
    }

    pub fn share(&self) -> Share {
        Share { shared_budgets: self.clone(), is_owner: false, used: Used::default() }
    }

    /// Whether what there is is used up.
    fn is_empty(&self) -> bool {
        let Inner { all, count, bytes, slow, .. } = &*self.0;
        let (most, used) = (all.in_memory(), Budget { count: count.load(Relaxed), bytes: bytes.load(Relaxed) });
        !most.has_room(used) || slow.load(Relaxed) >= all.slow.count
    }
}

impl Share {
    /// What the partition may have now. It tells whether it is this worker's and what it has.
    pub fn now(&mut self, is_owner: bool, used: Used) -> Budgets {
        let Inner { all, owned, count, bytes, slow, in_vain } = &*self.shared_budgets.0;
        if is_owner != std::mem::replace(&mut self.is_owner, is_owner) {
            // Wraps around, as the sum of them does.
            owned.fetch_add(if is_owner { 1 } else { usize::MAX }, Relaxed);
        }
        let before = std::mem::replace(&mut self.used, used);
        count.fetch_add(used.memory.count.wrapping_sub(before.memory.count), Relaxed);
        bytes.fetch_add(used.memory.bytes.wrapping_sub(before.memory.bytes), Relaxed);
        slow.fetch_add(used.slow.wrapping_sub(before.slow), Relaxed);
        in_vain.fetch_add(usize::from(used.reads_in_vain).wrapping_sub(usize::from(before.reads_in_vain)), Relaxed);
        let times = if self.shared_budgets.is_empty() { 1 } else { BORROWED };
        Budgets { in_vain: in_vain.load(Relaxed).max(1), ..all.part_of(owned.load(Relaxed).max(1), times) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.now(false, Used::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Used = Used { memory: Budget { count: 0, bytes: 0 }, slow: 0, reads_in_vain: false };

    fn used(count: usize, bytes: usize) -> Used {
        Used { memory: Budget { count, bytes }, ..NOTHING }
    }

    #[test]
    fn one_partition_has_everything_and_many_borrow_while_there_is_enough() {
        let each = Budgets::of(64 << 20);
        let shared_budgets = SharedBudgets::new(each, 1);
        let mut first = shared_budgets.share();
        assert_eq!(first.now(true, NOTHING), each, "alone it has what it always had");
        let mut others: Vec<_> = (1..64).map(|_| shared_budgets.share()).collect();
        for other in &mut others {
            other.now(true, NOTHING);
        }
        let budgets = first.now(true, NOTHING);
        assert_eq!(
            (budgets.fresh.count, budgets.deferred.count),
            (256, 1_024),
            "what it takes to work, which is more than four of 64 parts"
        );
        // Those that are busy have used up what there is: nobody borrows any more, and everybody has a part.
        let used = used(128, 1 << 20);
        for other in others.iter_mut().take(32) {
            other.now(true, used);
        }
        assert_eq!(first.now(true, NOTHING).kept.count, 64);
        assert_eq!(others[0].now(true, used).kept.count, 64, "what it has stays, and no more comes");
        drop(others);
        assert_eq!(first.now(true, NOTHING), each);
        assert_eq!(shared_budgets.0.count.load(Relaxed) + shared_budgets.0.bytes.load(Relaxed), 0);
    }

    #[test]
    fn bytes_are_shared_as_deliveries_are() {
        let shared_budgets = SharedBudgets::new(Budgets::of(256 << 20), 4);
        let mut shares: Vec<_> = (0..16).map(|_| shared_budgets.share()).collect();
        for share in &mut shares {
            share.now(true, NOTHING);
        }
        let budgets = shares[0].now(true, NOTHING);
        assert_eq!((budgets.fresh.count, budgets.fresh.bytes), (2_048, 32 << 20));
        let budgets = shares[0].now(true, used(1, 256 << 20));
        assert_eq!((budgets.fresh.count, budgets.fresh.bytes), (512, 8 << 20));
        shares[1].now(true, Used { slow: 2_048, ..NOTHING });
        shares[0].now(true, NOTHING);
        assert_eq!(shares[2].now(true, NOTHING).slow.count, 128, "no more connections for those that hang");
    }

    #[test]
    fn each_knows_how_many_read_in_vain() {
        let shared_budgets = SharedBudgets::new(Budgets::of(64 << 20), 1);
        let mut shares: Vec<_> = (0..8).map(|_| shared_budgets.share()).collect();
        let reads_in_vain = Used { reads_in_vain: true, ..NOTHING };
        for (before, share) in shares.iter_mut().enumerate() {
            assert_eq!(share.now(true, NOTHING).in_vain, before.max(1));
            assert_eq!(share.now(true, reads_in_vain).in_vain, before + 1);
        }
        shares.truncate(3);
        assert_eq!(shares[0].now(true, NOTHING).in_vain, 2);
    }
}

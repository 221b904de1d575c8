//! Operations that wait to be settled, in the order in which they were made, and those of the settle that is on its way.
//! Knows what they cost and hold; what they mean is up to the core.

use std::collections::{HashSet, VecDeque};

use super::{Budget, Chain, DeliveryId, EntryId, Item, Op, Settlement};

/// What a settle may cost Redis, in microseconds, roughly: no call should keep everybody waiting for more than a
/// millisecond or two. That is 25 changes of records or 60 deliveries that end together. Where more waits, a settle follows
/// each call of another kind: with one per round of all kinds of calls, receivers that drain their backlogs got too few.
const MAX_BATCH_COST: usize = 1_000;
const ITEM_COST: usize = 40;
const FINISH_COST: usize = 16;

/// How much one settle may carry, so that neither side is busy with it for more than a few milliseconds.
const MAX_BATCH_BYTES: usize = 2 << 20;

impl Op {
    /// Of [`MAX_BATCH_COST`].
    fn cost(&self) -> usize {
        match self {
            Self::Item { item: Item::Finish { chain: Chain::Intent(_), .. }, .. } => FINISH_COST,
            Self::Item { .. } => ITEM_COST,
            Self::Ack(_) | Self::Log { .. } => 1,
        }
    }

    /// Bytes of the bodies that it holds.
    fn bytes(&self) -> usize {
        match self {
            Self::Item { item, .. } => match item {
                Item::Keep { record: text, .. }
                | Item::Bury { letter: text, .. }
                | Item::Revive { record: text, .. }
                | Item::Take { record: text, .. }
                | Item::TakeLetter { letter: text, .. }
                | Item::Quarantine { body: text, .. } => text.len(),
                Item::Finish { .. }
                | Item::Move { .. }
                | Item::Discard { .. }
                | Item::TakeUnreadable { .. }
                | Item::Index { .. }
                | Item::Requeue { .. }
                | Item::DiscardQuarantined { .. }
                | Item::Bind { .. }
                | Item::Reply { .. } => 0,
            },
            Self::Ack(_) => 0,
            Self::Log { line, .. } => line.len(),
        }
    }
}

/// What one request takes away, so that it is not there for another, although Redis may still show it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Gone {
    Letter(DeliveryId),
    Quarantined(EntryId),
}

impl Gone {
    fn by(op: &Op) -> Option<Self> {
        match op {
            Op::Item { item: Item::Revive { id, .. } | Item::Discard { id }, .. } => Some(Self::Letter(id.clone())),
            Op::Item { item: Item::Requeue { entry } | Item::DiscardQuarantined { entry }, .. } => {
                Some(Self::Quarantined(*entry))
            }
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Op>,
    /// Bytes of the bodies that those that wait hold.
    bytes: usize,
    /// When the oldest of them was made.
    since: Option<u64>,
    sent: Vec<Op>,
    /// By those that wait, and by those on their way.
    gone: HashSet<Gone>,
}

impl Outbox {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn used(&self) -> Budget {
        Budget { count: self.waiting.len(), bytes: self.bytes }
    }

    pub fn since(&self) -> Option<u64> {
        self.since
    }

    pub fn waiting(&self) -> impl Iterator<Item = &Op> {
        self.waiting.iter()
    }

    /// Includes those on their way.
    pub fn all(&self) -> impl Iterator<Item = &Op> {
        self.waiting.iter().chain(&self.sent)
    }

    /// Whether something that is not settled yet takes this letter out of Redis.
    pub fn takes_letter(&self, id: &DeliveryId) -> bool {
        !self.gone.is_empty() && self.gone.contains(&Gone::Letter(id.clone()))
    }

    /// The same of a quarantined entry.
    pub fn takes_quarantined(&self, entry: EntryId) -> bool {
        self.gone.contains(&Gone::Quarantined(entry))
    }

    pub fn push(&mut self, now: u64, op: Op) {
        self.since.get_or_insert(now);
        self.bytes += op.bytes();
        self.gone.extend(Gone::by(&op));
        self.waiting.push_back(op);
    }

    /// Whether more operations wait than go at once.
    pub fn exceeds(&self, max: usize) -> bool {
        self.waiting.len() > MAX_BATCH_COST / ITEM_COST && self.batch(max) < self.waiting.len()
    }

    /// The oldest operations as one settlement.
    pub fn settlement(&mut self, now: u64, max: usize, last_read: EntryId) -> Settlement {
        let count = self.whole(self.batch(max));
        self.sent = self.waiting.drain(..count).collect();
        self.bytes -= self.sent.iter().map(Op::bytes).sum::<usize>();
        self.since = (!self.waiting.is_empty()).then_some(now);
        let mut settlement = Settlement { last_read, ..Settlement::default() };
        for op in &self.sent {
            match op {
                Op::Item { item, .. } => settlement.items.push(item.clone()),
                Op::Ack(entry) => settlement.acks.push(*entry),
                Op::Log { line, .. } => settlement.log.push(line.clone()),
            }
        }
        settlement
    }

    /// Fewer than `count`, if otherwise a reply or a line of the log were cut off from the item that it tells of: an operator is
    /// never told the opposite of what was done, and the history knows of all that was. An item has at most three such behind
    /// it: its attempt, its end and a reply.
    fn whole(&self, count: usize) -> usize {
        let tells = |op: &Op| matches!(op, Op::Log { .. } | Op::Item { item: Item::Reply { .. }, .. });
        let begins = |at: &usize| !self.waiting.get(*at).is_some_and(tells);
        (count.saturating_sub(3).max(1)..=count).rev().find(begins).unwrap_or(count)
    }

    /// How many of the oldest operations go at once: no call exceeds its limits by more than one operation.
    fn batch(&self, max: usize) -> usize {
        let (mut bytes, mut cost) = (0, 0);
        let fits = self.waiting.iter().take(max).take_while(|op| {
            let had_room = bytes < MAX_BATCH_BYTES && cost < MAX_BATCH_COST;
            bytes += op.bytes();
            cost += op.cost();
            had_room
        });
        fits.count()
    }

    /// What was on its way, to be confirmed or put back.
    pub fn take_sent(&mut self) -> Vec<Op> {
        for gone in self.sent.iter().filter_map(Gone::by) {
            self.gone.remove(&gone);
        }
        std::mem::take(&mut self.sent)
    }

    /// These were not settled: they go again, before all that wait.
    pub fn put_back(&mut self, now: u64, mut ops: Vec<Op>) {
        while let Some(op) = ops.pop() {
            self.bytes += op.bytes();
            self.gone.extend(Gone::by(&op));
            self.waiting.push_front(op);
        }
        self.since = Some(now);
    }

    /// Of those that wait, keeps only these.
    pub fn retain(&mut self, stays: impl Fn(&Op) -> bool) {
        self.waiting.retain(stays);
        self.bytes = self.waiting.iter().map(Op::bytes).sum();
        self.gone = self.all().filter_map(Gone::by).collect();
    }

    /// All of them, the oldest first.
    pub fn into_ops(self) -> impl Iterator<Item = Op> {
        self.sent.into_iter().chain(self.waiting)
    }
}

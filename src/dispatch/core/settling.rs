//! The outbox: operations leave in the order in which they were made, a batch at a time, and are confirmed or refused.

use super::*;

/// What a settle costs Redis at most, in microseconds, about: no call should keep everybody waiting for more than a millisecond
/// or two. So it is 25 changes of records or 60 deliveries that end together. Where more waits each other call is followed by
/// a settle: with one in each round of all kinds of calls, receivers that drain their backlogs had too few.
const MAX_BATCH_COST: usize = 1_000;
const ITEM_COST: usize = 40;
const FINISH_COST: usize = 16;

/// What a settle carries at most, so that neither side is busy with it for more than a few milliseconds.
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

    /// What it holds of bodies.
    fn bytes(&self) -> usize {
        match self {
            Self::Item { item, .. } => match item {
                Item::Keep { record: text, .. }
                | Item::Bury { letter: text, .. }
                | Item::Revive { record: text, .. }
                | Item::Quarantine { body: text, .. } => text.len(),
                Item::Finish { .. }
                | Item::Move { .. }
                | Item::Discard { .. }
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

impl Core {
    pub fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// Whether more operations wait than go at once.
    pub fn outbox_exceeds(&self, max: usize) -> bool {
        self.outbox.len() > MAX_BATCH_COST / ITEM_COST && self.batch(max) < self.outbox.len()
    }

    /// When the oldest operation that waits was made.
    pub fn outbox_since(&self) -> Option<u64> {
        self.outbox_since
    }

    /// An operation of the caller's own, in its place among the others.
    pub fn also(&mut self, now: u64, item: Item) {
        self.push(now, Op::Item { item, chain: None });
    }

    /// The oldest operations as one settlement; it is [`Core::settled`] or the term ends.
    pub fn settlement(&mut self, now: u64, max: usize, last_read: EntryId) -> Settlement {
        let is_reply = |op: Option<&Op>| matches!(op, Some(Op::Item { item: Item::Reply { .. }, .. }));
        let mut count = self.batch(max);
        // An answer goes with what it answers for: an operator is never told the opposite of what was done.
        if count > 1 && is_reply(self.outbox.get(count)) {
            count -= 1;
        }
        self.sent = self.outbox.drain(..count).collect();
        self.outbox_bytes -= self.sent.iter().map(Op::bytes).sum::<usize>();
        self.outbox_since = (!self.outbox.is_empty()).then_some(now);
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

    /// How many of the oldest operations go at once: no call is longer or dearer than it may be by more than one operation.
    fn batch(&self, max: usize) -> usize {
        let (mut bytes, mut cost) = (0, 0);
        let fits = self.outbox.iter().take(max).take_while(|op| {
            let had_room = bytes < MAX_BATCH_BYTES && cost < MAX_BATCH_COST;
            bytes += op.bytes();
            cost += op.cost();
            had_room
        });
        fits.count()
    }

    pub fn settled(&mut self, now: u64, redis_ms: u64, counts: Vec<(EndpointId, Unfinished)>) {
        for op in std::mem::take(&mut self.sent) {
            match op {
                Op::Ack(entry) => {
                    self.entries.remove(&entry);
                    self.delivered.remove(&entry);
                    self.begun.remove(&entry);
                }
                Op::Log { verdict, .. } => {
                    let is_delivered = verdict.attempted.report.outcome.is_delivered();
                    if is_delivered && self.entries.contains_key(&verdict.id.entry) {
                        self.delivered.entry(verdict.id.entry).or_default().push(verdict);
                    } else if is_delivered && verdict.is_recorded {
                        self.remember_for_its_entry(verdict);
                    }
                }
                Op::Item { item, chain } => self.confirm(now, &item, chain),
            }
        }
        self.land(now, redis_ms);
        self.count(now, &counts);
    }

    /// The store refused one item and changed nothing: it is set aside, with the entry it belongs to, and the rest
    /// goes again.
    pub fn refused(&mut self, now: u64, at: usize, why: &str) {
        let mut ops: VecDeque<Op> = std::mem::take(&mut self.sent).into();
        let index = ops.iter().enumerate().filter(|(_, op)| matches!(op, Op::Item { .. })).nth(at).map(|(i, _)| i);
        if let Some(Op::Item { item, chain }) = index.and_then(|index| ops.remove(index)) {
            let entry = entry_of(&item);
            self.notes.push(Note::SetAside { item: item_name(&item, entry), why: why.to_owned() });
            self.aside.extend(entry);
            if let Some(chain) = chain {
                let refusals = self.refusals.entry(chain.0).or_default();
                *refusals += 1;
                // What of the same chain waits to be settled must not overtake it. Of an endpoint whose keys are broken
                // nothing that waits would fare better.
                let is_lane = *refusals >= LANE_REFUSALS;
                let goes = |of: &ChainId| if is_lane { of.0 == chain.0 } else { *of == chain };
                for op in ops.iter().chain(&self.outbox) {
                    if let Op::Item { item, chain: Some(of) } = op
                        && goes(of)
                    {
                        self.aside.extend(entry_of(item));
                        self.blocked.insert(of.clone());
                    }
                }
                let stays = |op: &Op| !matches!(op, Op::Item { chain: Some(of), .. } if goes(of));
                ops.retain(stays);
                self.outbox.retain(stays);
                self.blocked.insert(chain);
            }
            // No acknowledgement goes without what it stands for.
            ops.retain(|op| !matches!(op, Op::Ack(acked) if self.aside.contains(acked)));
            self.outbox.retain(|op| !matches!(op, Op::Ack(acked) if self.aside.contains(acked)));
        }
        while let Some(op) = ops.pop_back() {
            self.outbox.push_front(op);
        }
        self.outbox_bytes = self.outbox.iter().map(Op::bytes).sum();
        self.count_unsettled_anew();
        self.outbox_since = Some(now);
    }

    /// What Redis holds of endpoints, as an answer said. All are weighed before any is judged by what its account has: one
    /// of it may have more than before, and another less.
    pub fn count(&mut self, now: u64, counts: &[(EndpointId, Unfinished)]) {
        for (endpoint, unfinished) in counts {
            if let Some(at) = self.lanes.at(endpoint) {
                self.lanes[at].counted(*unfinished);
                self.weigh(at);
            }
        }
        for at in counts.iter().filter_map(|(endpoint, _)| self.lanes.at(endpoint)).collect::<Vec<LaneAt>>() {
            self.keep_quotas(now, at);
            self.comes_to_its_end(at);
            self.touch(now, at);
        }
    }

    pub(super) fn push_for(&mut self, now: u64, chain_id: ChainId, item: Item) {
        let is_broken = self.refusals.get(&chain_id.0).is_some_and(|refusals| *refusals >= LANE_REFUSALS);
        if matches!(item, Item::Keep { .. }) && (is_broken || self.blocked.contains(&chain_id)) {
            // The one before it has no record: the next term reads both again, in their order.
            self.aside.extend(entry_of(&item));
            self.blocked.insert(chain_id);
            return;
        }
        let links = self.chains.entry(chain_id.clone()).or_default();
        links.unsettled += 1;
        links.burials += u32::from(matches!(item, Item::Bury { .. }));
        self.count_single(chain_id.0, &chain_id.1);
        self.count_unsettled(chain_id.0);
        if let Some(id) = delivery_of(&item) {
            *self.changing.entry(id.clone()).or_default() += 1;
        }
        self.push(now, Op::Item { item, chain: Some(chain_id) });
    }

    pub(super) fn push(&mut self, now: u64, op: Op) {
        self.outbox_since.get_or_insert(now);
        self.outbox_bytes += op.bytes();
        self.outbox.push_back(op);
    }

    pub(super) fn confirm(&mut self, now: u64, item: &Item, chain: Option<ChainId>) {
        if let Item::Keep { id, place: Place::Backlog, .. } | Item::Move { id, place: Place::Backlog, .. } = item
            && let Some(lane) = self.lanes.get_mut(&id.endpoint)
        {
            lane.was_parked(id.entry);
        }
        if let Some(chain) = chain {
            self.uncount_single(chain.0, &chain.1);
            self.uncount_unsettled(chain.0);
            self.changed(item);
            if let Some(links) = self.chains.get_mut(&chain) {
                links.unsettled -= 1;
                links.burials -= u32::from(matches!(item, Item::Bury { .. }));
            }
            match matches!(item, Item::Bury { .. }) {
                true => self.promote(now, chain),
                false => self.tidy(&chain),
            }
        }
    }

    pub(super) fn changed(&mut self, item: &Item) {
        if let Some(id) = delivery_of(item)
            && let Some(count) = self.changing.get_mut(id)
        {
            *count -= 1;
            if *count == 0 {
                self.changing.remove(id);
            }
        }
    }
}

/// The entry that an item stands for.
fn entry_of(item: &Item) -> Option<EntryId> {
    match item {
        Item::Quarantine { entry, .. } => Some(*entry),
        _ => delivery_of(item).map(|id| id.entry),
    }
}

/// The delivery whose record an item changes.
fn delivery_of(item: &Item) -> Option<&DeliveryId> {
    match item {
        Item::Finish { id, .. }
        | Item::Keep { id, .. }
        | Item::Move { id, .. }
        | Item::Bury { id, .. }
        | Item::Revive { id, .. } => Some(id),
        Item::Discard { .. }
        | Item::Quarantine { .. }
        | Item::Requeue { .. }
        | Item::DiscardQuarantined { .. }
        | Item::Bind { .. }
        | Item::Reply { .. } => None,
    }
}

fn item_name(item: &Item, entry: Option<EntryId>) -> String {
    let kind = format!("{item:?}");
    let kind = kind.split([' ', '{']).next().unwrap_or_default();
    entry.map_or(kind.to_owned(), |entry| format!("{kind} of entry {entry}"))
}

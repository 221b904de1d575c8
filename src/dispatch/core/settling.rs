//! What becomes of the operations that were settled or refused.

use super::{
    ChainId, Core, CoreHappening, DeliveryId, EndpointId, EntryId, HashSet, Item, LANE_REFUSALS, LaneAt, LineOf, Op,
    Place, Settlement, Unfinished,
};

impl Core {
    pub fn outbox_len(&self) -> usize {
        self.term.outbox.len()
    }

    /// Whether more operations wait than go at once.
    pub fn outbox_exceeds(&self, max: usize) -> bool {
        self.term.outbox.exceeds(max)
    }

    /// When the oldest operation that waits was made.
    pub fn outbox_since(&self) -> Option<u64> {
        self.term.outbox.since()
    }

    /// Whether something that is not settled yet takes this letter out of Redis.
    pub fn takes_letter(&self, id: &DeliveryId) -> bool {
        self.term.outbox.takes_letter(id)
    }

    /// The same of a quarantined entry.
    pub fn takes_quarantined(&self, entry: EntryId) -> bool {
        self.term.outbox.takes_quarantined(entry)
    }

    /// An operation of the caller's own, in its place among the others.
    pub fn push_item(&mut self, now: u64, item: Item) {
        self.push(now, Op::Item { item, chain: None });
    }

    /// The oldest operations as one settlement; either [`Core::settled`] follows or the term ends.
    pub fn settlement(&mut self, now: u64, max: usize, last_read: EntryId) -> Settlement {
        self.term.outbox.settlement(now, max, last_read)
    }

    pub fn settled(&mut self, now: u64, redis_ms: u64, counts: Vec<(EndpointId, Unfinished)>) {
        for op in self.term.outbox.take_sent() {
            match op {
                Op::Ack(entry) => {
                    self.term.entries.remove(&entry);
                    let delivered = self.term.delivered.remove(&entry).unwrap_or_default();
                    delivered.iter().for_each(|result| self.carried.forget_delivered(&result.of));
                    self.term.begun.remove(&entry);
                    if self.telling.settled {
                        self.happenings.push(CoreHappening::EntrySettled { entry });
                    }
                }
                Op::Log { of: LineOf::End(_), .. } => {}
                Op::Log { of: LineOf::Attempt(mut result), .. } => {
                    self.carried.confirm(now, &result.of, result.past(), result.is_last);
                    self.happenings.extend(result.told.take().map(CoreHappening::AttemptSettled));
                    if result.attempted.report.outcome.is_delivered() {
                        if result.is_recorded {
                            self.remember_for_its_entry(&result);
                        }
                        let entry = result.of.delivery.entry;
                        if self.term.entries.contains_key(&entry) {
                            self.term.delivered.entry(entry).or_default().push(result);
                        }
                    }
                }
                Op::Item { item, chain } => {
                    match item {
                        Item::Revive { .. } => self.tally.redelivered += 1,
                        Item::Discard { .. } => self.tally.discarded += 1,
                        _ => {}
                    }
                    self.confirm(now, &item, chain);
                }
            }
        }
        self.conclude_carried(now, redis_ms);
        self.set_unfinished(now, &counts);
    }

    /// The store refused one item and changed nothing: it is set aside, with the entry it belongs to, and the rest
    /// goes again.
    pub fn refused(&mut self, now: u64, at: usize, why: &str) {
        let mut ops = self.term.outbox.take_sent();
        let index = ops.iter().enumerate().filter(|(_, op)| matches!(op, Op::Item { .. })).nth(at).map(|(i, _)| i);
        if let Some(Op::Item { item, chain }) = index.map(|index| ops.remove(index)) {
            let entry = entry_of(&item);
            // What is not brought about is not told either.
            let mut untold: HashSet<DeliveryId> = ends_of(&item).into_iter().cloned().collect();
            self.happenings.push(CoreHappening::SetAside { item: item_name(&item, entry), why: why.to_owned() });
            self.term.aside.extend(entry);
            if let Some(chain) = chain {
                let refusals = self.term.refusals.entry(chain.0).or_default();
                *refusals += 1;
                // What waits to be settled for the same chain must not overtake it. And for an endpoint whose keys are
                // broken, nothing that waits would fare better.
                let is_lane = *refusals >= LANE_REFUSALS;
                let goes = |of: &ChainId| if is_lane { of.0 == chain.0 } else { *of == chain };
                for op in ops.iter().chain(self.term.outbox.waiting()) {
                    if let Op::Item { item, chain: Some(of) } = op
                        && goes(of)
                    {
                        self.term.aside.extend(entry_of(item));
                        self.term.blocked.insert(of.clone());
                        untold.extend(ends_of(item).cloned());
                    }
                }
                let stays = |op: &Op| !matches!(op, Op::Item { chain: Some(of), .. } if goes(of));
                ops.retain(stays);
                self.term.outbox.retain(stays);
                self.term.blocked.insert(chain);
            }
            // No acknowledgement goes without what it stands for.
            ops.retain(|op| !matches!(op, Op::Ack(acked) if self.term.aside.contains(acked)));
            self.term.outbox.retain(|op| !matches!(op, Op::Ack(acked) if self.term.aside.contains(acked)));
            let is_untold = |op: &Op| matches!(op, Op::Log { of: LineOf::End(Some(id)), .. } if untold.contains(id));
            ops.retain(|op| !is_untold(op));
            self.term.outbox.retain(|op| !is_untold(op));
        }
        self.term.outbox.put_back(now, ops);
        self.count_unsettled_anew();
    }

    /// What Redis holds for these endpoints, as an answer said. All are weighed before any is judged by its account's
    /// total: one endpoint of it may have more than before, and another less.
    pub fn set_unfinished(&mut self, now: u64, counts: &[(EndpointId, Unfinished)]) {
        for (endpoint, unfinished) in counts {
            if let Some(at) = self.lanes.at(endpoint) {
                self.lanes[at].counted(now, *unfinished);
                self.weigh(at);
            }
        }
        for at in counts.iter().filter_map(|(endpoint, _)| self.lanes.at(endpoint)).collect::<Vec<LaneAt>>() {
            self.keep_quotas(now, at);
            self.comes_to_its_end(at);
            self.schedule_lane(now, at);
        }
    }

    pub(super) fn push_for(&mut self, now: u64, chain_id: ChainId, item: Item) {
        let is_broken = self.term.refusals.get(&chain_id.0).is_some_and(|refusals| *refusals >= LANE_REFUSALS);
        if matches!(item, Item::Keep { .. }) && (is_broken || self.term.blocked.contains(&chain_id)) {
            // The one before it has no record: the next term reads both again, in their order.
            self.term.aside.extend(entry_of(&item));
            self.term.blocked.insert(chain_id);
            return;
        }
        let links = self.term.chains.entry(chain_id.clone()).or_default();
        links.unsettled += 1;
        links.burials += u32::from(matches!(item, Item::Bury { .. }));
        self.count_single(chain_id.0, &chain_id.1);
        self.count_unsettled(chain_id.0);
        if let Some(id) = delivery_of(&item) {
            *self.term.changing.entry(id.clone()).or_default() += 1;
        }
        self.push(now, Op::Item { item, chain: Some(chain_id) });
    }

    pub(super) fn push(&mut self, now: u64, op: Op) {
        self.term.outbox.push(now, op);
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
            if let Some(links) = self.term.chains.get_mut(&chain) {
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
            && let Some(count) = self.term.changing.get_mut(id)
        {
            *count -= 1;
            if *count == 0 {
                self.term.changing.remove(id);
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

/// The delivery whose end an item may bring about.
fn ends_of(item: &Item) -> Option<&DeliveryId> {
    match item {
        Item::Discard { id } => Some(id),
        _ => delivery_of(item),
    }
}

/// The delivery whose record an item changes.
fn delivery_of(item: &Item) -> Option<&DeliveryId> {
    match item {
        Item::Finish { id, .. }
        | Item::Keep { id, .. }
        | Item::Move { id, .. }
        | Item::Bury { id, .. }
        | Item::Revive { id, .. }
        | Item::Take { id, .. } => Some(id),
        Item::Discard { .. }
        | Item::TakeLetter { .. }
        | Item::TakeUnreadable { .. }
        | Item::Index { .. }
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

//! What the deliveries in memory use of their budgets. Each is counted in one of three places: without record, with one,
//! or in slow flight, where its seat counts it.

use super::*;

/// What may be fresh or kept of those that are no better than this, in eighths: however many hang, those that merely fail have
/// some room, and so beside both have those of whom nothing is known. To an owner that has just begun all are new, and what
/// is due to those that hang must leave the proven a part, too.
const EIGHTHS: [(Trust, usize); 3] = [(Trust::Doubted, 4), (Trust::Failing, 5), (Trust::New, 6)];

/// Heads with records that one lane may queue before its receiver has shown that it answers: more than go out before then,
/// and a thirtieth of all.
pub(super) const UNPROVEN_QUEUE: usize = 64;

/// Of the operations that wait for a settle, one account may have a quarter in changes of its records.
const OUTBOX_PART: usize = 4;

/// One account may have half of what is fresh, or the more there are its part of that, but an eighth in any case.
const ACCOUNTS_PART: usize = 2;
const ACCOUNT_LEAST_PART: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Memory {
    fresh: Used,
    kept: Used,
    /// What each account has that is fresh, of receivers that are well.
    loads: HashMap<AccountId, Load>,
    relieved: Vec<AccountId>,
}

#[derive(Debug, Default)]
struct Load {
    count: usize,
    bytes: usize,
    /// Changes of its records that wait for a settle, or are in one.
    unsettled: usize,
    /// So few are left when its account can take more again.
    wakes_at: Option<usize>,
}

#[derive(Debug, Default)]
struct Used {
    count: usize,
    bytes: usize,
    /// By how their receivers stood when they came, or worse if they still waited then.
    of: [usize; 4],
}

impl Used {
    fn has_room(&self, budget: Budget) -> bool {
        budget.has_room(Budget { count: self.count, bytes: self.bytes })
    }

    /// Whether those that stand so leave the better ones their part.
    fn has_room_for(&self, trust: Trust, budget: Budget) -> bool {
        EIGHTHS.iter().filter(|(of, _)| trust >= *of).all(|(of, eighths)| {
            let used: usize = self.of[*of as usize..].iter().sum();
            used < (budget.count * eighths / 8).max(1)
        })
    }

    fn add(&mut self, bytes: usize, trust: Trust) {
        (self.count, self.bytes) = (self.count + 1, self.bytes + bytes);
        self.of[trust as usize] += 1;
    }

    fn take(&mut self, bytes: usize, trust: Trust) {
        (self.count, self.bytes) = (self.count - 1, self.bytes - bytes);
        self.of[trust as usize] -= 1;
    }
}

impl Memory {
    /// An account that waits for room has it, once no more than `few` changes of its records wait.
    fn may_wake(&mut self, account: &AccountId, few: usize) {
        let Some(load) = self.loads.get_mut(account) else { return };
        if load.wakes_at.is_some_and(|most| load.count <= most) && load.unsettled <= few {
            load.wakes_at = None;
            self.relieved.push(account.clone());
        }
        if load.count == 0 && load.unsettled == 0 {
            self.loads.remove(account);
        }
    }
}

impl Core {
    /// Whether more may be read from the stream.
    pub fn has_room(&self) -> bool {
        self.memory.fresh.has_room(self.budgets.fresh) && self.may_settle_more()
    }

    /// Deliveries without record.
    pub fn fresh(&self) -> usize {
        self.memory.fresh.count
    }

    /// Whether more may be taken of what has records.
    pub fn has_room_for_records(&self) -> bool {
        self.memory.kept.has_room(self.budgets.kept) && self.may_settle_more()
    }

    /// Whether more operations may be made for what is in Redis already.
    pub fn may_settle_more(&self) -> bool {
        let outbox = Budget { count: self.outbox.len(), bytes: self.outbox_bytes };
        self.budgets.outbox.has_room(outbox) && self.aside.len() < MAX_ASIDE
    }

    /// Whether an account may have more in memory without record.
    pub fn has_share(&self, account: &AccountId) -> bool {
        let Some(load) = self.memory.loads.get(account) else { return true };
        let all = self.budgets.fresh.part(ACCOUNTS_PART);
        let least = self.budgets.fresh.part(ACCOUNT_LEAST_PART).count;
        let count = (all.count / self.memory.loads.len()).max(least).max(1);
        let has_room = Budget { count, bytes: all.bytes }.has_room(Budget { count: load.count, bytes: load.bytes });
        has_room && load.unsettled < self.most_unsettled()
    }

    /// Records cost Redis much more than what is delivered at once: the fewer of one account wait for it, the sooner comes
    /// what is of others.
    fn most_unsettled(&self) -> usize {
        self.budgets.outbox.part(OUTBOX_PART).count
    }

    /// Whether an entry of this account may be admitted, or is better left in the stream until what is in memory is less.
    /// Under pressure what needs a record at once is left there, too.
    pub fn takes<'a>(
        &self,
        now: u64,
        account: &AccountId,
        mut endpoints: impl Iterator<Item = &'a EndpointId> + Clone,
        is_under_pressure: bool,
    ) -> bool {
        let share = self.share();
        let lane = |endpoint: &EndpointId| self.lanes.get(endpoint);
        let mut all = endpoints.clone();
        let is_merely_full = match (all.next(), all.next()) {
            (Some(endpoint), None) => lane(endpoint).is_some_and(|lane| lane.is_merely_full(now, share)),
            // The others need not wait for one of them.
            _ => false,
        };
        let would_park = |lane: &Lane| lane.ended().is_none() && (lane.parked > 0 || lane.should_park(now, share));
        let mut needs_record = || endpoints.by_ref().filter_map(lane).any(would_park);
        self.has_share(account) && !is_merely_full && !(is_under_pressure && needs_record())
    }

    /// Says so when a quarter of what the account has now is gone: [`Core::take_relieved`].
    pub fn wakes_with_room(&mut self, account: &AccountId) {
        if let Some(load) = self.memory.loads.get_mut(account) {
            load.wakes_at = Some(load.count - load.count.div_ceil(4));
        }
    }

    pub fn take_relieved(&mut self) -> Vec<AccountId> {
        std::mem::take(&mut self.memory.relieved)
    }

    /// Bodies in memory, those in slow flight left out.
    pub(super) fn bytes(&self) -> usize {
        self.memory.fresh.bytes + self.memory.kept.bytes
    }

    /// A receiver that is not proven waits in Redis once too much waits for such in memory.
    pub(super) fn is_crowded_out(&self, at: LaneAt, origin: Origin) -> bool {
        let (used, budget) = match origin {
            Origin::Fresh => (&self.memory.fresh, self.budgets.fresh),
            Origin::Claimed | Origin::Backlog => (&self.memory.kept, self.budgets.kept),
        };
        !used.has_room_for(self.counts_as(at, origin), budget)
    }

    /// How what comes for a lane now is counted. What has a record and no seat waits as long as for those that are doubted:
    /// a new owner may find thousands of one dead host whom it has not met yet.
    pub(super) fn counts_as(&self, at: LaneAt, origin: Origin) -> Trust {
        let lane = &self.lanes[at];
        match (lane.trust.class(), &lane.holder) {
            (Some(class), Some(holder)) if origin != Origin::Fresh && !self.shares.has_seat(holder, class) => {
                Trust::Doubted
            }
            _ => lane.trust,
        }
    }

    /// A receiver stands worse than before: what waits for it is counted so from now on, so that there is room for the next
    /// new ones, and what is too much of it leaves for Redis.
    pub(super) fn counts_as_worse(&mut self, now: u64, at: LaneAt) {
        let lane = &self.lanes[at];
        let (trust, queued): (Trust, Vec<JobId>) = (lane.trust, lane.queue.iter().copied().collect());
        for id in queued {
            if self.jobs[&id].trust < trust {
                self.count_out(id);
                self.jobs.entry(id).and_modify(|job| job.trust = trust);
                self.count_in(id);
            }
        }
        while let Some(id) = self.lanes[at].queue.back().copied()
            && self.is_crowded_out(at, self.jobs[&id].origin)
        {
            self.lanes[at].queue.pop_back();
            self.park(now, id);
        }
    }

    pub(super) fn count_in(&mut self, id: JobId) {
        let Some((used, bytes, trust)) = self.place(id) else { return };
        used.add(bytes, trust);
        let job = &self.jobs[&id];
        if job.origin == Origin::Fresh && trust.is_well() {
            let load = self.memory.loads.entry(job.delivery.account.clone()).or_default();
            (load.count, load.bytes) = (load.count + 1, load.bytes + bytes);
        }
    }

    /// Before it changes what it is counted by.
    pub(super) fn count_out(&mut self, id: JobId) {
        let Some((used, bytes, trust)) = self.place(id) else { return };
        used.take(bytes, trust);
        let job = &self.jobs[&id];
        if job.origin != Origin::Fresh || !trust.is_well() {
            return;
        }
        let account = &job.delivery.account;
        let Some(load) = self.memory.loads.get_mut(account) else { return };
        (load.count, load.bytes) = (load.count - 1, load.bytes - bytes);
        let few = self.budgets.outbox.part(2 * OUTBOX_PART).count;
        self.memory.may_wake(account, few);
    }

    pub(super) fn count_unsettled(&mut self, at: LaneAt) {
        if let Some(holder) = &self.lanes[at].holder {
            self.memory.loads.entry(holder.account.clone()).or_default().unsettled += 1;
        }
    }

    pub(super) fn uncount_unsettled(&mut self, at: LaneAt) {
        let Some(holder) = self.lanes[at].holder.clone() else { return };
        if let Some(load) = self.memory.loads.get_mut(&holder.account) {
            load.unsettled = load.unsettled.saturating_sub(1);
            let few = self.budgets.outbox.part(2 * OUTBOX_PART).count;
            self.memory.may_wake(&holder.account, few);
        }
    }

    /// After a refusal has taken some out of the middle.
    pub(super) fn count_unsettled_anew(&mut self) {
        self.memory.loads.values_mut().for_each(|load| load.unsettled = 0);
        let lanes = |op: &Op| match op {
            Op::Item { chain, .. } => chain.as_ref().map(|chain| chain.0),
            Op::Ack(_) | Op::Log { .. } => None,
        };
        let lanes: Vec<LaneAt> = self.outbox.iter().filter_map(lanes).collect();
        lanes.into_iter().for_each(|at| self.count_unsettled(at));
        let mut accounts: Vec<AccountId> = self.memory.loads.keys().cloned().collect();
        // In an order of its own, not of the map's: the same inputs must lead to the same calls.
        accounts.sort_unstable();
        let few = self.budgets.outbox.part(2 * OUTBOX_PART).count;
        accounts.iter().for_each(|account| self.memory.may_wake(account, few));
    }

    fn place(&mut self, id: JobId) -> Option<(&mut Used, usize, Trust)> {
        let job = &self.jobs[&id];
        let is_seated = job.flight.is_some_and(|token| self.seats.contains_key(&token));
        let used = match job.origin {
            Origin::Fresh => &mut self.memory.fresh,
            Origin::Claimed | Origin::Backlog if is_seated => return None,
            Origin::Claimed | Origin::Backlog => &mut self.memory.kept,
        };
        Some((used, job.delivery.body.len(), job.trust))
    }
}

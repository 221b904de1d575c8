//! How much of their budgets the deliveries in memory use. Each is counted in one of three places: without a record, with
//! one, or in slow flight, where its seat counts it.

use super::{AccountId, Budget, Budgets, Core, EndpointId, HashMap, JobId, Lane, LaneAt, MAX_ASIDE, Op, Origin, Trust};

/// How much of the fresh and kept budgets deliveries to receivers that stand this way or worse may have, in eighths. So
/// however many receivers hang, those that merely fail have some room, and beside both so have those of which nothing is
/// known. To an owner that has just begun all receivers are new, and what is due to those that hang must leave the proven
/// their part, too.
const EIGHTHS: [(Trust, usize); 3] = [(Trust::Doubted, 4), (Trust::Failing, 5), (Trust::New, 6)];

/// Heads with records that one lane may queue before its receiver has shown that it answers: more than go out before then,
/// and a thirtieth of all.
pub(super) const UNPROVEN_QUEUE: usize = 64;

/// An account's record changes may be at most a quarter of the operations that wait for a settle.
const OUTBOX_PART: usize = 4;

/// All accounts share half of what is fresh equally, but each may have an eighth of it in any case.
const ACCOUNTS_PART: usize = 2;
const ACCOUNT_LEAST_PART: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Memory {
    fresh: Used,
    kept: Used,
    /// How much each account has that is fresh, for receivers that are well.
    loads: HashMap<AccountId, Load>,
    relieved: Vec<AccountId>,
}

#[derive(Debug, Default)]
struct Load {
    count: usize,
    bytes: usize,
    /// Changes of its records that wait for a settle, or are in one.
    unsettled: usize,
    /// Its account can take more again once this few are left.
    wakes_at: Option<usize>,
}

#[derive(Debug, Default)]
struct Used {
    count: usize,
    bytes: usize,
    /// By how their receivers stood when they came, or worse if that changed while they waited.
    of: [usize; 4],
}

impl Used {
    fn has_room(&self, budget: Budget) -> bool {
        budget.has_room(Budget { count: self.count, bytes: self.bytes })
    }

    /// Whether receivers that stand this way leave the better ones their part.
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
    /// An account that waits for room gets it once no more than `few` changes of its records wait.
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
    /// From now on. What is over them already stays.
    pub fn set_budgets(&mut self, budgets: Budgets) {
        self.budgets = budgets;
        self.shares.set(&budgets);
    }

    /// What is in memory and not in slow flight.
    pub fn in_memory(&self) -> Budget {
        let Memory { fresh, kept, .. } = &self.term.memory;
        Budget { count: fresh.count + kept.count, bytes: fresh.bytes + kept.bytes }
    }

    /// Whether more may be read from the stream.
    pub fn has_room(&self) -> bool {
        self.term.memory.fresh.has_room(self.budgets.fresh) && self.may_settle_more()
    }

    /// Deliveries without a record.
    pub fn fresh(&self) -> usize {
        self.term.memory.fresh.count
    }

    /// Whether more of what has records may be taken.
    pub fn has_room_for_records(&self) -> bool {
        self.term.memory.kept.has_room(self.budgets.kept) && self.may_settle_more()
    }

    /// Whether more operations may be made for what is in Redis already.
    pub fn may_settle_more(&self) -> bool {
        self.budgets.outbox.has_room(self.term.outbox.used()) && self.term.aside.len() < MAX_ASIDE
    }

    /// Whether an account may have more in memory without a record.
    pub fn has_share(&self, account: &AccountId) -> bool {
        let Some(load) = self.term.memory.loads.get(account) else { return true };
        let all = self.budgets.fresh.part(ACCOUNTS_PART);
        let least = self.budgets.fresh.part(ACCOUNT_LEAST_PART).count;
        let count = (all.count / self.term.memory.loads.len()).max(least).max(1);
        let has_room = Budget { count, bytes: all.bytes }.has_room(Budget { count: load.count, bytes: load.bytes });
        has_room && load.unsettled < self.most_unsettled()
    }

    /// Records cost Redis much more than what is delivered at once: the fewer of one account wait to be settled, the sooner
    /// it is the others' turn.
    fn most_unsettled(&self) -> usize {
        self.budgets.outbox.part(OUTBOX_PART).count
    }

    /// Whether an entry of this account may be admitted, or is better left in the stream until there is less in memory.
    /// Under pressure, what needs a record at once is left there, too.
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
            // The other endpoints of the entry need not wait for one of them.
            _ => false,
        };
        let would_park = |lane: &Lane| lane.ended().is_none() && (lane.parked > 0 || lane.should_park(now, share));
        let mut needs_record = || endpoints.by_ref().filter_map(lane).any(would_park);
        self.has_share(account) && !is_merely_full && !(is_under_pressure && needs_record())
    }

    /// Announces when a quarter of what the account has now is gone: [`Core::take_relieved`].
    pub fn wakes_with_room(&mut self, account: &AccountId) {
        // It may have nothing in memory yet, but a backlog that comes.
        let load = self.term.memory.loads.entry(account.clone()).or_default();
        load.wakes_at = Some(load.count - load.count.div_ceil(4));
    }

    pub fn take_relieved(&mut self) -> Vec<AccountId> {
        std::mem::take(&mut self.term.memory.relieved)
    }

    /// Bytes of the bodies in memory, without those in slow flight.
    pub(super) fn bytes(&self) -> usize {
        self.term.memory.fresh.bytes + self.term.memory.kept.bytes
    }

    /// A receiver that is not proven waits in Redis once too much is in memory for such receivers.
    pub(super) fn is_crowded_out(&self, at: LaneAt, origin: Origin) -> bool {
        let (used, budget) = match origin {
            Origin::Fresh => (&self.term.memory.fresh, self.budgets.fresh),
            Origin::Claimed | Origin::Backlog => (&self.term.memory.kept, self.budgets.kept),
        };
        !used.has_room_for(self.counts_as(at, origin), budget)
    }

    /// How something that comes for a lane now is counted. With a record and without a free seat it will wait as long as
    /// what is for the doubted: a new owner may find thousands of deliveries for one dead host that it has not met yet.
    pub(super) fn counts_as(&self, at: LaneAt, origin: Origin) -> Trust {
        let lane = &self.lanes[at];
        match (lane.trust.class(), &lane.holder) {
            (Some(class), Some(holder)) if origin != Origin::Fresh && !self.shares.has_seat(holder, class) => {
                Trust::Doubted
            }
            _ => lane.trust,
        }
    }

    /// A receiver stands worse than before: from now on what waits for it is counted that way, so that there is room for
    /// the next new ones. What is too much leaves for Redis.
    pub(super) fn counts_as_worse(&mut self, now: u64, at: LaneAt) {
        let lane = &self.lanes[at];
        let (trust, queued): (Trust, Vec<JobId>) = (lane.trust, lane.queue.iter().copied().collect());
        for id in queued {
            if self.term.jobs[&id].trust < trust {
                self.count_out(id);
                self.term.jobs.entry(id).and_modify(|job| job.trust = trust);
                self.count_in(id);
            }
        }
        while let Some(id) = self.lanes[at].queue.back().copied()
            && self.is_crowded_out(at, self.term.jobs[&id].origin)
        {
            self.lanes[at].queue.pop_back();
            self.park(now, id);
        }
    }

    pub(super) fn count_in(&mut self, id: JobId) {
        let Some((used, bytes, trust)) = self.place(id) else { return };
        used.add(bytes, trust);
        let job = &self.term.jobs[&id];
        if job.origin == Origin::Fresh && trust.is_well() {
            let load = self.term.memory.loads.entry(job.delivery.account.clone()).or_default();
            (load.count, load.bytes) = (load.count + 1, load.bytes + bytes);
        }
    }

    /// Call it before changing what the job is counted by.
    pub(super) fn count_out(&mut self, id: JobId) {
        let Some((used, bytes, trust)) = self.place(id) else { return };
        used.take(bytes, trust);
        let job = &self.term.jobs[&id];
        if job.origin != Origin::Fresh || !trust.is_well() {
            return;
        }
        let account = &job.delivery.account;
        let Some(load) = self.term.memory.loads.get_mut(account) else { return };
        (load.count, load.bytes) = (load.count - 1, load.bytes - bytes);
        let few = self.budgets.outbox.part(2 * OUTBOX_PART).count;
        self.term.memory.may_wake(account, few);
    }

    pub(super) fn count_unsettled(&mut self, at: LaneAt) {
        if let Some(holder) = &self.lanes[at].holder {
            self.term.memory.loads.entry(holder.account.clone()).or_default().unsettled += 1;
        }
    }

    pub(super) fn uncount_unsettled(&mut self, at: LaneAt) {
        let Some(holder) = self.lanes[at].holder.clone() else { return };
        if let Some(load) = self.term.memory.loads.get_mut(&holder.account) {
            load.unsettled = load.unsettled.saturating_sub(1);
            let few = self.budgets.outbox.part(2 * OUTBOX_PART).count;
            self.term.memory.may_wake(&holder.account, few);
        }
    }

    /// Counts again after a refusal has taken some out of the middle, or an endpoint's id is another account's.
    pub(super) fn count_unsettled_anew(&mut self) {
        self.term.memory.loads.values_mut().for_each(|load| load.unsettled = 0);
        let lanes = |op: &Op| match op {
            Op::Item { chain, .. } => chain.as_ref().map(|chain| chain.0),
            Op::Ack(_) | Op::Log { .. } => None,
        };
        let lanes: Vec<LaneAt> = self.term.outbox.all().filter_map(lanes).collect();
        lanes.into_iter().for_each(|at| self.count_unsettled(at));
        let mut accounts: Vec<AccountId> = self.term.memory.loads.keys().cloned().collect();
        // Sorted, not in the map's order: the same inputs must lead to the same calls.
        accounts.sort_unstable();
        let few = self.budgets.outbox.part(2 * OUTBOX_PART).count;
        accounts.iter().for_each(|account| self.term.memory.may_wake(account, few));
    }

    fn place(&mut self, id: JobId) -> Option<(&mut Used, usize, Trust)> {
        let job = &self.term.jobs[&id];
        let is_seated = job.flight.is_some_and(|token| self.seats.contains_key(&token));
        let used = match job.origin {
            Origin::Fresh => &mut self.term.memory.fresh,
            Origin::Claimed | Origin::Backlog if is_seated => return None,
            Origin::Claimed | Origin::Backlog => &mut self.term.memory.kept,
        };
        Some((used, job.delivery.body.len(), job.trust))
    }
}

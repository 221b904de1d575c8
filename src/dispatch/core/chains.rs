//! Chains and lanes from the inside: who leads, who follows, and who leaves memory for a record.
//! Keeps the rule that an earlier delivery's record is always made first.

use super::{
    Arc, Chain, ChainId, Core, CoreHappening, Delivery, EntryId, Gate, Item, Job, JobId, Known, LaneAt, Links, Op,
    Ordering, Origin, Place, Step,
};

/// Where a head waited until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    InStream,
    InMemory,
}

impl Core {
    /// How many one lane may queue if all lanes that have something queued share equally.
    pub(super) fn share(&self) -> usize {
        (self.budgets.fresh.count / 2 / self.term.ready.len().max(1)).max(1)
    }

    /// A switch of the order takes effect chain by chain: what is unfinished ends under the rule that it began with.
    pub(super) fn joins_intent(&self, delivery: &Delivery, at: LaneAt, known: Known) -> bool {
        if known.ordered || self.term.chains.contains_key(&(at, Chain::Intent(delivery.intent.clone()))) {
            return true;
        }
        let alone = known.single
            || (!self.term.singles.is_empty() && self.term.singles.contains_key(&(at, delivery.intent.clone())));
        let rule = self.lanes[at].endpoint().map(|endpoint| endpoint.ordering).unwrap_or_default();
        rule == Ordering::Intent && !alone
    }

    pub(super) fn insert(&mut self, delivery: Delivery, lane: LaneAt, chain: Chain, origin: Origin) -> JobId {
        let id = JobId(self.next());
        self.count_single(lane, &chain);
        let event = self.carried.fingerprint(&delivery.body);
        let (delivery, trust) = (Arc::new(delivery), self.counts_as(lane, origin));
        self.term.jobs.insert(id, Job { delivery, event, lane, chain, origin, flight: None, trust, revision: 0 });
        self.count_in(id);
        id
    }

    /// Takes a job out of memory, and off the head of its chain.
    pub(super) fn remove(&mut self, id: JobId) -> Job {
        self.count_out(id);
        let job = self.term.jobs.remove(&id).expect("a job ends once");
        self.uncount_single(job.lane, &job.chain);
        if let Some(links) = self.term.chains.get_mut(&(job.lane, job.chain.clone()))
            && links.head == Some(id)
        {
            links.head = None;
        }
        job
    }

    pub(super) fn count_single(&mut self, lane: LaneAt, chain: &Chain) {
        if let Chain::Single(intent, _) = chain {
            *self.term.singles.entry((lane, intent.clone())).or_default() += 1;
        }
    }

    pub(super) fn uncount_single(&mut self, lane: LaneAt, chain: &Chain) {
        let Chain::Single(intent, _) = chain else { return };
        let key = (lane, intent.clone());
        if let Some(count) = self.term.singles.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.term.singles.remove(&key);
            }
        }
    }

    /// Its id is taken, so it can have neither record nor letter, and must not be mistaken for the delivery that has them.
    /// The quarantine keeps it, whole, until an operator gives it an id of its own by putting it back.
    pub(super) fn displace(&mut self, now: u64, delivery: Delivery) {
        let Delivery { id, event, body, envelope, .. } = delivery;
        let error = format!(
            "the event is sound, but its entry has the id of another one that is not finished or is a dead \
             letter at {}: the stream was made anew and gives its ids out again; put it back to give it a new one",
            id.endpoint
        );
        let entry = id.entry;
        self.happenings.push(CoreHappening::Displaced { id, event });
        let item = Item::Quarantine { entry, body, cut: false, error, envelope, keep_bytes: None };
        self.push(now, Op::Item { item, chain: None });
        self.close_one(now, entry);
    }

    /// A head without a record: queued, or parked at once.
    pub(super) fn lead(&mut self, now: u64, job: JobId, chain_id: ChainId, before: Before) {
        let at = chain_id.0;
        self.term.chains.entry(chain_id).or_default().head = Some(job);
        let of_job = &self.term.jobs[&job];
        if let Some(carried) = self.carried.take(&of_job.delivery, of_job.event) {
            return self.resume(job, carried);
        }
        let (share, is_crowded_out) = (self.share(), self.is_crowded_out(at, Origin::Fresh));
        let lane = &mut self.lanes[at];
        // What is in memory was let in, and is soon sent. If it went into records, a process with more to do than it can would make
        // backlogs where there were none.
        let stays = before == Before::InMemory && lane.nearly_keeps_up(now);
        // Behind a backlog there is a queue already: nobody jumps it.
        let is_behind = lane.parked > 0 || lane.should_park(now, share);
        if is_crowded_out || is_behind && !stays {
            return self.park(now, job);
        }
        lane.queue.push_back(job);
        self.schedule_lane(now, at);
    }

    /// Looks at a lane again after anything that may have opened its gate or filled it.
    pub(super) fn schedule_lane(&mut self, now: u64, at: LaneAt) {
        let lane = &mut self.lanes[at];
        let gate = lane.gate(now);
        // A lane that now ends its attempts quickly needs no seat.
        lane.is_waiting &= lane.trust.class().is_some();
        if !lane.queue.is_empty() && gate == Gate::Open && !lane.is_ready && !lane.is_waiting {
            lane.is_ready = true;
            self.term.ready.push_back(at);
        }
        if lane.appetite(now) > 0 && !lane.is_hungry && !lane.is_waiting {
            lane.is_hungry = true;
            match lane.nearly_keeps_up(now) {
                true => self.term.clearing.push_back(at),
                false => self.term.hungry.push_back(at),
            }
        }
        let opens = match gate {
            Gate::Later(opens) if !lane.queue.is_empty() || lane.parked > 0 => Some(opens),
            _ => None,
        };
        let looks = (lane.parked > 0 && lane.look_again_at > now).then_some(lane.look_again_at);
        if let Some(wakes) = [opens, looks].into_iter().flatten().min()
            && lane.alarm_at.is_none_or(|alarm| wakes < alarm)
        {
            lane.alarm_at = Some(wakes);
            self.term.alarms.push(std::cmp::Reverse((wakes, at)));
        }
    }

    /// After a change that may have shut a lane for long: nothing that will not go soon waits in memory.
    pub(super) fn gate_changed(&mut self, now: u64, at: LaneAt) {
        let lane = &mut self.lanes[at];
        if lane.should_park(now, usize::MAX) && !matches!(lane.gate(now), Gate::Open | Gate::Busy) {
            for job in std::mem::take(&mut lane.queue) {
                self.park(now, job);
            }
        }
        self.comes_to_its_end(at);
        self.schedule_lane(now, at);
    }

    /// A lane that takes nothing any more gets turns as long as it has unfinished deliveries.
    pub(super) fn comes_to_its_end(&mut self, at: LaneAt) {
        let lane = &self.lanes[at];
        if lane.ended().is_some() && lane.unfinished > 0 && !self.term.ending.contains(&at) {
            self.term.ending.push_back(at);
        }
    }

    pub(super) fn unqueue(&mut self, job: JobId) {
        let at = self.term.jobs[&job].lane;
        self.lanes[at].queue.retain(|queued| *queued != job);
    }

    /// A head leaves memory for the backlog, and what waits behind it is held.
    pub(super) fn park(&mut self, now: u64, job: JobId) {
        let chain_id = self.chain_id(job);
        match self.term.jobs[&job].origin {
            Origin::Fresh => self.keep(now, job, Place::Backlog),
            Origin::Claimed => {
                let done = self.remove(job);
                self.tell_step(&done.delivery, Step::Parked);
                let item = Item::Move { id: done.delivery.id.clone(), chain: done.chain, place: Place::Backlog };
                self.push_for(now, chain_id.clone(), item);
            }
            Origin::Backlog => {
                let done = self.remove(job);
                self.lanes[chain_id.0].was_parked(done.delivery.id.entry);
            }
        }
        self.hold_followers(now, &chain_id);
        self.tidy(&chain_id);
    }

    /// A fresh delivery leaves memory for its record.
    pub(super) fn keep(&mut self, now: u64, job: JobId, place: Place) {
        let entry = self.write_record(now, job, place);
        self.close_one(now, entry);
    }

    /// Returns its entry, of which it is not counted as closed yet.
    pub(super) fn write_record(&mut self, now: u64, job: JobId, place: Place) -> EntryId {
        let chain_id = self.chain_id(job);
        let done = self.remove(job);
        match place {
            Place::Held => self.tell_step(&done.delivery, Step::Held),
            Place::Backlog => self.tell_step(&done.delivery, Step::Parked),
            // What comes of an attempt is told with it.
            Place::Claimed | Place::DueIn(_) => {}
        }
        let links = self.term.chains.entry(chain_id.clone()).or_default();
        links.tail_in_redis = true;
        let record = done.delivery.to_record();
        let item = Item::Keep { id: done.delivery.id.clone(), chain: done.chain, place, record };
        self.push_for(now, chain_id, item);
        done.delivery.id.entry
    }

    pub(super) fn hold_followers(&mut self, now: u64, chain_id: &ChainId) {
        let Some(links) = self.term.chains.get_mut(chain_id) else { return };
        for job in std::mem::take(&mut links.followers) {
            self.keep(now, job, Place::Held);
        }
    }

    /// Everything of a chain that is in memory gets its record; only an attempt in flight stays.
    pub(super) fn spill(&mut self, now: u64, chain_id: &ChainId) {
        if let Some(head) = self.term.chains.get(chain_id).and_then(|links| links.head) {
            self.give_head_record(now, head);
        }
        self.hold_followers(now, chain_id);
    }

    /// A delivery that has been in memory for long gets its record; one behind a head gets it with all of its chain.
    pub(super) fn give_record(&mut self, now: u64, job: JobId) {
        let Some(found) = self.term.jobs.get(&job) else { return };
        if found.origin != Origin::Fresh {
            return;
        }
        let chain_id = self.chain_id(job);
        let is_head = self.term.chains.get(&chain_id).is_some_and(|links| links.head == Some(job));
        match is_head {
            true => self.give_head_record(now, job),
            false => self.spill(now, &chain_id),
        }
    }

    /// A head gets its record and is parked; while an attempt of it is in flight it stays, as if it had been claimed.
    pub(super) fn give_head_record(&mut self, now: u64, job: JobId) {
        let found = self.term.jobs.get_mut(&job).expect("a head is there");
        if found.origin != Origin::Fresh {
            return;
        }
        if found.flight.is_none() {
            self.unqueue(job);
            return self.park(now, job);
        }
        let delivery = found.delivery.clone();
        self.count_out(job);
        self.term.jobs.entry(job).and_modify(|found| found.origin = Origin::Claimed);
        self.count_in(job);
        let chain_id = self.chain_id(job);
        let record = delivery.to_record();
        let chain = chain_id.1.clone();
        let item = Item::Keep { id: delivery.id.clone(), chain, place: Place::Claimed, record };
        self.push_for(now, chain_id, item);
        self.close_one(now, delivery.id.entry);
    }

    /// The head has gone, and if it died its letter is durable: the first one that waits in memory takes its place. What is
    /// held in Redis is released there.
    pub(super) fn promote(&mut self, now: u64, chain_id: ChainId) {
        let at = chain_id.0;
        let Some(links) = self.term.chains.get_mut(&chain_id) else { return };
        if links.is_busy() {
            return;
        }
        if let Some(job) = links.followers.pop_front() {
            self.lead(now, job, chain_id, Before::InMemory);
        } else if links.is_idle() {
            self.term.chains.remove(&chain_id);
        }
        self.schedule_lane(now, at);
    }

    pub(super) fn tidy(&mut self, chain_id: &ChainId) {
        if self.term.chains.get(chain_id).is_some_and(Links::is_idle) {
            self.term.chains.remove(chain_id);
        }
    }

    /// One delivery of an entry is finished or recorded; with the last one the entry is acknowledged.
    pub(super) fn close_one(&mut self, now: u64, entry: EntryId) {
        let Some(open) = self.term.entries.get_mut(&entry) else { return };
        *open = open.saturating_sub(1);
        match *open {
            0 if self.term.aside.contains(&entry) => {}
            0 => {
                self.tally.dispatched += 1;
                self.push(now, Op::Ack(entry));
            }
            _ => drop(self.term.begun.insert(entry)),
        }
    }

    pub(super) fn chain_id(&self, job: JobId) -> ChainId {
        let job = &self.term.jobs[&job];
        (job.lane, job.chain.clone())
    }
}

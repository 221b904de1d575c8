//! A worker's shell: it makes the calls and the attempts that the partition chooses, as `dispatch/worker.rs` does, and
//! loses, delays or repeats what the plan says.

use super::*;

/// How often to look whether some have waited too long for a place.
const LOOK_EVERY_MS: u64 = 10;

impl World {
    pub(super) fn restart(&mut self, worker: usize) {
        if self.workers[worker].partition.is_some() {
            return;
        }
        let mut seed = [0; 32];
        seed.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.chance.next().to_le_bytes()));
        let settings = Settings {
            owner: format!("worker-{worker}"),
            policy: policy(),
            breaker: BreakerSettings { failure_share: 0.9, cooldown_ms: COOLDOWN_MS, max_cooldown_ms: 1_500 },
            budgets: match self.mutation {
                Some(Mutation::SharesNotKept) => Budgets::of(1024 * 1024),
                _ => self.plan.budgets,
            },
            lease_ms: LEASE_MS,
            start: Start::Oldest,
            retain_ms: 0,
            trim_ignores: Vec::new(),
            dead_max_age_ms: 1_000_000_000,
            dead_max_count: 1_000_000,
            quarantine_bytes: 16 << 20,
            strict_events: false,
            accounts: Accounts::ALL,
            acquire_every_ms: 200,
            most_parts: 1024,
            parts: 1,
        };
        let snapshot = Snapshot::new(&self.registry, self.health, self.mutation);
        let found = &mut self.workers[worker];
        found.partition = Some(Partition::new(settings, snapshot.clone(), seed));
        found.snapshot = snapshot;
        if let Some(partition) = &mut found.partition {
            partition.set_pressure(self.is_pressed && self.mutation != Some(Mutation::PressureIgnored));
            partition.set_quotas(if self.is_healed { Quotas::default() } else { self.plan.quotas });
        }
        found.redis = [self.redis; 2];
        found.confirmed = Confirmed::default();
        found.working = Working::default();
        let life = found.life;
        found.wake_at = u64::MAX;
        if !self.followed.is_empty() || self.plan.has_operations() {
            self.after(1, Event::Work { worker, life });
        }
        self.pump(worker);
    }

    pub(super) fn crash(&mut self, worker: usize) {
        let found = &mut self.workers[worker];
        found.partition = None;
        found.life += 1;
        (found.main, found.renewal) = (false, false);
        found.turns.clear();
        found.flights.clear();
        found.term = None;
        found.faults = [None; 3];
    }

    pub(super) fn pump(&mut self, worker: usize) {
        let now = self.local(worker);
        let Some(mut partition) = self.workers[worker].partition.take() else { return };
        partition.compare_clocks(now, EPOCH_MS + self.now);
        for round in 0.. {
            if round > 1_000 {
                self.wrong(Promise::Bounded, || "a worker never comes to rest".to_owned());
                break;
            }
            let mut moved = false;
            if !self.workers[worker].main
                && let Some(call) = partition.next_call(now)
            {
                self.workers[worker].main = true;
                self.workers[worker].term = Some(call.term().clone());
                self.make(worker, Slot::Main, call);
            }
            if !self.workers[worker].renewal
                && let Some(call) = partition.next_renewal(now)
            {
                self.workers[worker].renewal = true;
                self.make(worker, Slot::Renewal, call);
            }
            while let Some(mut send) = partition.next_attempt(now) {
                if self.mutation == Some(Mutation::PlacesIgnored) {
                    send.places = u32::MAX;
                }
                self.workers[worker].turns.push(send);
            }
            while let Some(send) = self.workers[worker].turns.next(now) {
                self.start(worker, send);
            }
            let mut back = Vec::new();
            self.workers[worker].turns.give_back(now, &mut back);
            moved |= !back.is_empty();
            back.iter().for_each(|_| self.tally.count("places_waited_for_in_vain"));
            partition.not_begun(now, back.into_iter());
            for errand in partition.take_errands() {
                moved |= self.errand(worker, errand);
            }
            for happening in partition.take_happenings() {
                if let Happening::Core(CoreHappening::OverQuota { quota, .. }) = happening {
                    self.tally.count(match quota {
                        Quota::Endpoint => "over_endpoint_quota",
                        Quota::Account => "over_account_quota",
                    });
                }
                self.tell(|| format!("       worker {worker}: {happening:?}"));
            }
            if let Some((entry, request)) = partition.wants_wakeup()
                && !self.is_down
                && (self.model.stream.entries.keys().next_back().is_some_and(|last| *last > entry)
                    || self.model.inbox.requests.keys().next_back().is_some_and(|last| *last > request))
            {
                partition.woken(entry, true, true);
                moved |= !self.workers[worker].main;
            }
            if !moved {
                break;
            }
        }
        self.tally.checked(Promise::Bounded);
        let jobs = partition.tally().jobs;
        let budgets = self.plan.budgets;
        // One slice, and one call, may exceed the room.
        if self.mutation.is_none() && jobs > budgets.flights() + SLICE + 2 * READ_MAX {
            self.wrong(Promise::Bounded, || format!("{jobs} jobs are in memory"));
        }
        let waiting = partition.deferred_in_memory();
        if waiting > 0 {
            self.tally.count("deferred_in_memory");
        }
        // For each account there may be one that was begun.
        let accounts = self.plan.endpoints.len();
        if self.mutation.is_none() && waiting > budgets.deferred.count + accounts {
            self.wrong(Promise::Bounded, || format!("{waiting} entries wait in memory"));
        }
        let stopped = partition.is_stopped();
        let look_at = if self.workers[worker].turns.are_crowded() { now + LOOK_EVERY_MS } else { u64::MAX };
        let wake_at = partition.wake_at(now).min(look_at).saturating_sub(self.workers[worker].offset);
        self.workers[worker].partition = Some(partition);
        if stopped {
            self.crash(worker);
            let pause = self.chance.within(1, 500);
            return self.after(pause, Event::Restart { worker });
        }
        if wake_at < self.workers[worker].wake_at && wake_at < u64::MAX / 2 {
            self.workers[worker].wake_at = wake_at;
            let life = self.workers[worker].life;
            self.after(wake_at.max(self.now + 1) - self.now, Event::Wake { worker, life });
        }
    }

    pub(super) fn errand(&mut self, worker: usize, errand: Errand) -> bool {
        let life = self.workers[worker].life;
        let delay = self.chance.within(1, 20);
        match errand {
            Errand::Core(CoreErrand::Disable { endpoint, revision, .. }) => {
                self.after(delay, Event::Disable { endpoint, revision });
            }
            Errand::Core(CoreErrand::Pause { endpoint, revision, .. }) => {
                self.check_pause(worker, &endpoint);
                self.after(delay, Event::PauseForQuota { endpoint, revision });
            }
            Errand::ConfirmRegistry => self.after(delay, Event::ConfirmRead { worker, life }),
            Errand::AbortFlights => {
                self.workers[worker].turns.clear();
                self.workers[worker].flights.clear();
            }
        }
        false
    }

    pub(super) fn make(&mut self, worker: usize, slot: Slot, call: Call) {
        let (life, redis, term) = (self.workers[worker].life, self.redis, call.term().clone());
        if matches!(call, Call::Read { .. }) {
            self.tally.checked(Promise::Bounded);
            if let (true, Call::Read { max, .. }) = (self.is_pressed, &call)
                && *max > READ_UNDER_PRESSURE
            {
                self.wrong(Promise::Bounded, || format!("worker {worker} reads much while Redis is nearly full"));
            }
        }
        if let Call::Settle { settlement, .. } = &call {
            self.workers[worker].confirmed.sends(settlement);
        }
        let connection = &mut self.workers[worker].redis[slot as usize];
        let (gives_up, there) = (self.chance.within(20, 300), self.chance.below(3));
        let unknown = |world: &mut Self, ms, why: &str| {
            let answer = Err(Failure::Unknown(why.to_owned()));
            world.after(ms, Event::Answer { worker, life, slot, term: term.clone(), answer });
        };
        if self.is_down || std::mem::replace(connection, redis) != redis {
            return unknown(self, there, "no connection, or a new one");
        }
        let apply = |call, reply, needs_client| Event::Apply { worker, life, slot, redis, call, reply, needs_client };
        let faults = &mut self.workers[worker].faults;
        let has_items = matches!(&call, Call::Settle { settlement, .. } if !settlement.items.is_empty());
        let of_settle = has_items.then(|| faults[2].take()).flatten();
        match of_settle.or_else(|| faults[slot as usize].take()) {
            None if self.mutation == Some(Mutation::BurialNotDurable) && buries(&call) => {
                let answer = self.model.clone().call(&call);
                self.after(there, Event::Answer { worker, life, slot, term: term.clone(), answer });
                self.after(there + 10, apply(call, false, true));
            }
            None => {
                if self.mutation == Some(Mutation::AcksBeforeRecords)
                    && let Some((first, second)) = split(&call)
                {
                    self.after(there, apply(first, false, false));
                    return self.after(there + 2, apply(second, true, true));
                }
                self.after(there, apply(call, true, false));
            }
            Some(Net::AnswerLost) => {
                self.tally.count("lost_answers");
                self.after(there, apply(call, false, false));
                unknown(self, gives_up, "no answer came");
            }
            Some(Net::CallLost) => {
                self.tally.count("lost_calls");
                unknown(self, gives_up, "no answer came");
            }
            Some(Net::ScriptFails { applied }) => {
                self.tally.count("failed_scripts");
                if applied && let Err(failure) = self.apply(&call) {
                    self.tell(|| format!("       {failure:?}"));
                }
                let answer = match applied {
                    _ if self.mutation == Some(Mutation::FailureTakenForSuccess) => self.model.clone().call(&call),
                    true => Err(Failure::Malformed("no such answer is known".to_owned())),
                    false => Err(Failure::Script("the script failed".to_owned())),
                };
                self.after(there, Event::Answer { worker, life, slot, term: term.clone(), answer });
            }
            Some(Net::RunsLate(late)) => {
                self.tally.count("late_scripts");
                if self.mutation == Some(Mutation::SettleRetriedElsewhere) && matches!(call, Call::Settle { .. }) {
                    self.after(gives_up, apply(call.clone(), true, false));
                } else {
                    unknown(self, gives_up, "no answer came");
                }
                self.after(gives_up + late, apply(call, false, false));
            }
            Some(Net::AnswersLate(late)) => {
                self.tally.count("late_answers");
                let answer = self.apply(&call);
                self.after(late, Event::Answer { worker, life, slot, term: term.clone(), answer });
            }
        }
    }

    pub(super) fn answer(
        &mut self,
        worker: usize,
        life: u32,
        slot: Slot,
        term: &Term,
        mut answer: Result<Answer, Failure>,
    ) {
        if self.workers[worker].life != life {
            return;
        }
        if self.mutation == Some(Mutation::RegistryTakenForNew)
            && let Ok(Answer::Entries { registry, .. }) = &mut answer
        {
            *registry = Some(self.workers[worker].snapshot.view().last);
        }
        if self.mutation == Some(Mutation::StampIgnored)
            && let Ok(Answer::Entries { registry: Some(last), .. }) = &mut answer
        {
            last.stamp = self.workers[worker].snapshot.view().last.stamp;
        }
        if let Slot::Main = slot {
            self.hears_of_settled(worker, &mut answer);
        }
        if self.mutation == Some(Mutation::AccountIgnored)
            && let Ok(Answer::Claimed { kept, .. } | Answer::Heads { kept, .. } | Answer::Backlog { kept, .. }) =
                &mut answer
        {
            kept.iter_mut().for_each(|kept| self.takes_for_its_own(kept));
        }
        if self.mutation == Some(Mutation::RedeliveryNotToldApart)
            && let Ok(Answer::Claimed { kept, .. } | Answer::Heads { kept, .. } | Answer::Backlog { kept, .. }) =
                &mut answer
        {
            kept.iter_mut().for_each(settled::forget_when);
        }
        let now = self.local(worker);
        let bucket = self.now / 1_000;
        let found = &mut self.workers[worker];
        if found.idle_calls.0 != bucket {
            found.idle_calls = (bucket, 0);
        }
        found.idle_calls.1 += u32::from(!brings_something(&answer));
        let idle_calls = found.idle_calls.1;
        let Some(partition) = &mut found.partition else { return };
        match slot {
            Slot::Main => {
                found.main = false;
                partition.answered(now, answer);
            }
            Slot::Renewal => {
                found.renewal = false;
                partition.renewed(now, term, &answer);
            }
        }
        if idle_calls > MAX_IDLE_CALLS {
            self.wrong(Promise::Bounded, || {
                format!("worker {worker} made {idle_calls} calls in a second that brought nothing")
            });
        }
        self.pump(worker);
    }

    /// A mutation: whatever is kept for an endpoint is taken to be of the account whose endpoint it is now.
    fn takes_for_its_own(&self, (id, record): &mut Kept) {
        if let Some(delivery) = record.as_ref().and_then(|record| Delivery::from_record(record).ok())
            && let Some(account) = self.owner_of(index_of(id.endpoint.as_str()))
        {
            let account = AccountId::new(&format!("acc_{account}")).unwrap();
            *record = Some(Delivery { account, ..delivery }.to_record());
        }
    }

    pub(super) fn sync(&mut self, worker: usize, found: Option<(Registry, Health)>) {
        let now = self.local(worker);
        let (registry, health) = found.unwrap_or_else(|| (self.registry.clone(), self.health));
        self.workers[worker].snapshot.see(registry, health);
        if let Some(partition) = &mut self.workers[worker].partition {
            partition.registry_changed(now, None);
            self.pump(worker);
        }
    }
}

fn buries(call: &Call) -> bool {
    matches!(call, Call::Settle { settlement, .. } if settlement.items.iter().any(|i| matches!(i, Item::Bury { .. })))
}

fn brings_something(answer: &Result<Answer, Failure>) -> bool {
    match answer {
        Ok(Answer::Entries { entries, .. }) => !entries.is_empty(),
        Ok(Answer::Claimed { kept, .. } | Answer::Backlog { kept, .. } | Answer::Heads { kept, .. }) => {
            !kept.is_empty()
        }
        Ok(Answer::Requests { requests }) => !requests.is_empty(),
        Ok(Answer::Settled { .. } | Answer::Asked { .. } | Answer::Renewed { .. }) => true,
        _ => false,
    }
}

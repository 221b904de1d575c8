//! What breaks, and how all of it heals.

use super::*;

impl World {
    pub(super) fn fault(&mut self, fault: Action) {
        match fault {
            Action::Net { worker, net } => self.workers[worker].faults[0] = Some(net),
            Action::Settle { worker, net } => self.workers[worker].faults[2] = Some(net),
            Action::Renewal { worker, net } => self.workers[worker].faults[1] = Some(net),
            Action::Crash(worker) => {
                self.tally.count("crashes");
                self.crash(worker);
                let pause = self.chance.within(1, 1_500);
                self.after(pause, Event::Restart { worker });
            }
            Action::Stop(worker) => {
                if let Some(partition) = &mut self.workers[worker].partition {
                    partition.stop();
                    let (life, wait) = (self.workers[worker].life, self.chance.within(1, 600));
                    self.after(wait, Event::StopWaiting { worker, life });
                    self.pump(worker);
                }
            }
            Action::Freeze { worker, for_ms } => {
                self.tally.count("freezes");
                // What waits for the thaw was already put off to that time: a second freeze does not shorten it.
                let until = self.now + for_ms;
                self.workers[worker].frozen_until = self.workers[worker].frozen_until.max(until);
            }
            Action::RedisDown { for_ms } => {
                self.tally.count("redis_restarts");
                self.is_down = true;
                self.redis += 1;
                self.after(for_ms, Event::RedisUp);
            }
            Action::Snapshot => self.snapshot = Some((self.model.clone(), self.legit.clone())),
            Action::RollBack => self.roll_back(),
            Action::Clock { step_ms } => {
                self.was_set_back |= step_ms < 0;
                self.clock_step += step_ms;
            }
            Action::Full(full) => {
                self.tally.count("redis_full");
                self.model.full = full;
            }
            Action::Refuse { for_all } => self.refuse(for_all),
            Action::Pressure { for_ms } => {
                self.tally.count("memory_pressure");
                self.press(true);
                self.after(for_ms, Event::PressureOver);
            }
            Action::RegistryLost { other, for_ms } => self.lose_registry(other, for_ms),
            Action::RegistrySetBack { paused, made, after_ms } => self.change_in_vain(paused, made, after_ms),
            Action::Trim => self.trim(),
            Action::StreamAnew => self.make_stream_anew(),
            Action::DestroyGroup => {
                self.tally.count("groups_destroyed");
                self.model.stream.groups.remove(GROUP);
                self.is_loosened = true;
            }
            Action::DeleteLease => self.model.lease = None,
            Action::ForeignReads(count) => self.steal(count),
            Action::LagRegistry { worker } => self.workers[worker].lag_ms = MAX_LAG_MS - 200,
            other => unreachable!("{other:?} is no fault"),
        }
    }

    pub(super) fn heal(&mut self) {
        self.is_healed = true;
        self.refused.clear();
        self.press(false);
        self.workers.iter_mut().filter_map(|worker| worker.partition.as_mut()).for_each(|partition| {
            partition.set_quotas(Quotas::default());
        });
        self.registry_comes_back();
        // Once more, when everything that is on its way now has arrived.
        self.after(2_000, Event::RegistryBack);
        (self.is_down, self.model.full) = (false, false);
        self.manners.iter_mut().for_each(|manner| *manner = Manner::Healthy);
        self.registry.is_paused = false;
        self.spread();
        self.resume_operations();
        for at in 0..self.plan.endpoints.len() {
            if matches!(self.status(at), Some(EndpointState::Paused(_))) {
                self.change(at, |endpoint| endpoint.status = EndpointState::Enabled);
            }
        }
        for worker in 0..self.workers.len() {
            let found = &mut self.workers[worker];
            (found.faults, found.frozen_until, found.lag_ms) = ([None; 3], 0, 0);
            self.after(1, Event::Sync { worker });
            self.after(1, Event::Restart { worker });
        }
    }

    /// Everything since the snapshot is forgotten, including what was on its way.
    pub(super) fn roll_back(&mut self) {
        let Some((model, legit)) = self.snapshot.take() else { return };
        self.tally.count("redis_rolled_back");
        (self.model, self.legit) = (model, legit);
        self.model.now_ms = (EPOCH_MS + self.now).saturating_add_signed(self.clock_step);
        self.redis += 1;
        self.is_loosened = true;
        if self.model.registry.is_none() {
            self.registry_comes_back();
        }
        self.forget_lost_strangers();
        let last = self.model.stream.last_generated;
        // The registry is not set back with it: an endpoint that was deleted is owed nothing of what is there again.
        let owners: Vec<_> = (0..self.plan.endpoints.len()).map(|at| self.owner_of(at)).collect();
        let intents = &self.plan.intents;
        let is_theirs = |owed: &Owed| owners[owed.endpoint] == Some(intents[owed.intent]);
        let vanishes = |owed: &&mut Owed| owed.id.entry > last || !is_theirs(owed);
        self.ledger.owed.iter_mut().filter(vanishes).for_each(|owed| owed.may_vanish = true);
        let forgotten = self.ledger.owed.iter_mut().filter(|owed| owed.id.entry > last);
        forgotten.for_each(|owed| owed.is_forgotten = true);
    }

    /// A producer trims the stream: bodies that are nowhere else are gone.
    pub(super) fn trim(&mut self) {
        let keep = self.model.stream.entries.len() / 2;
        let Some(first_kept) = self.model.stream.entries.keys().nth(keep).copied() else { return };
        self.model.stream.entries.retain(|id, _| *id >= first_kept);
        for owed in &mut self.ledger.owed {
            let is_kept = self.model.records.contains_key(&owed.id) || self.model.dead.contains_key(&owed.id);
            let is_lost = owed.id.entry < first_kept && !is_kept;
            owed.may_vanish |= is_lost;
            owed.was_trimmed |= is_lost;
        }
        self.forget_lost_strangers();
    }

    /// What was only in the old stream is gone. In the new one, an entry that is not an event comes first for each
    /// entry that is in the quarantine, under its id: another entry, which only its text tells from it. All of them are
    /// before the cursor, and the entry that the cursor is about is not among them: by that an owner knows that the
    /// stream is another one.
    fn make_stream_anew(&mut self) {
        let cursor = self.model.cursor.unwrap_or_default();
        let quarantined = self.model.quarantine.iter().map(|(entry, _)| *entry);
        let again: BTreeSet<EntryId> = quarantined.filter(|entry| *entry < cursor).collect();
        if again.is_empty() || self.is_down || self.model.full {
            return;
        }
        self.tally.count("streams_made_anew");
        self.model.stream = Stream::default();
        self.is_stream_anew = true;
        self.is_loosened = true;
        for owed in &mut self.ledger.owed {
            let is_kept = self.model.records.contains_key(&owed.id) || self.model.dead.contains_key(&owed.id);
            owed.may_vanish |= !is_kept;
            owed.was_trimmed |= !is_kept;
        }
        self.forget_lost_strangers();
        for entry in again {
            let body = self.no_event();
            self.model.publish(entry, body);
        }
        self.wake_all();
    }

    /// Somebody else reads with our group.
    pub(super) fn steal(&mut self, count: usize) {
        let Some(group): Option<&mut Group> = self.model.stream.groups.get_mut(GROUP) else { return };
        let unread = self.model.stream.entries.keys().filter(|id| **id > group.last_delivered);
        for id in unread.copied().take(count).collect::<Vec<_>>() {
            group.last_delivered = id;
            group.pending.insert(id, "stranger".to_owned());
            self.ledger
                .owed
                .iter_mut()
                .filter(|owed| owed.id.entry == id)
                .for_each(|owed| owed.may_be_overtaken = true);
        }
    }

    /// From now on no settle that names one of these is carried out: one record, or all that exist.
    fn refuse(&mut self, for_all: bool) {
        let ids = self.model.records.keys().chain(self.ledger.owed.iter().filter(|o| !o.delivered).map(|o| &o.id));
        let most = if for_all { usize::MAX } else { 1 };
        self.refused = ids.take(most).cloned().collect();
    }

    pub(super) fn press(&mut self, is_pressed: bool) {
        self.is_pressed = is_pressed;
        let is_pressed = is_pressed && self.mutation != Some(Mutation::PressureIgnored);
        for worker in 0..self.workers.len() {
            if let Some(partition) = &mut self.workers[worker].partition {
                partition.set_pressure(is_pressed);
                self.pump(worker);
            }
        }
    }

    /// The registry vanishes from Redis, or another one without endpoints takes its place.
    fn lose_registry(&mut self, other: bool, for_ms: u64) {
        // A partition that belongs to none yet would take the other one for its own, and rightly.
        if self.health != Health::Whole || self.model.registry.is_none() {
            return;
        }
        self.tally.count("registries_lost");
        self.health = if other { Health::Other } else { Health::Gone };
        self.lost_registry = Some(std::mem::take(&mut self.registry));
        self.spread();
        self.after(for_ms, Event::RegistryBack);
    }

    /// Like a backup that is imported: exactly what it was. A partition whose binding Redis forgot may have taken the
    /// other one for its own meanwhile: then an operator says which one is right.
    pub(super) fn registry_comes_back(&mut self) {
        if let Some(registry) = self.lost_registry.take() {
            self.registry = registry;
            self.health = Health::Whole;
            self.spread();
        }
        if self.is_healed && self.model.registry.as_deref().is_some_and(|bound| bound != REGISTRY) {
            self.ask(Asked::AcceptRegistry(REGISTRY.to_owned()));
        }
    }
}

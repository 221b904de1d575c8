//! Producers and operators: what they add, ask and change.

use super::*;

impl World {
    pub(super) fn act(&mut self, action: Action) {
        let reachable = !self.is_down;
        match action {
            // Nobody changes a registry that does not exist.
            action if action.is_of_registry() && self.health != Health::Whole => {}
            action if action.changes().is_some_and(|at| self.is_locked(at)) => {}
            Action::Lock(at) => self.lock(at),
            Action::Unlock(at) => self.unlock(at),
            Action::Publish { intent, count } if reachable && !self.model.full => {
                (0..count).for_each(|_| self.publish(intent));
            }
            Action::NoEvent if reachable => {
                let body = self.no_event();
                self.add(body);
            }
            Action::Publish { .. } | Action::NoEvent => {}
            Action::Receiver { endpoint, manner } => self.manners[endpoint] = manner,
            Action::Pause(at) if self.status(at) == Some(EndpointState::Enabled) => {
                self.change(at, |endpoint| endpoint.status = EndpointState::Paused(mark()));
            }
            Action::Pause(_) => {}
            Action::Disable(at) => {
                self.takes_nothing(at);
                self.disable(at);
            }
            Action::Enable(at) => {
                if self.status(at).is_some() && self.ended_until[at] == u64::MAX {
                    self.ended_until[at] = self.now;
                }
                self.change(at, |endpoint| (endpoint.status, endpoint.owed_until) = (EndpointState::Enabled, None));
            }
            Action::Delete(at) => self.delete(at),
            Action::Create(at) => self.create(at),
            Action::GiveAway(at) => {
                self.given_away.insert(at);
                self.delete(at);
            }
            Action::SwitchOrder(at) => {
                self.was_unordered[at] = true;
                self.change(at, |endpoint| {
                    endpoint.ordering = match endpoint.ordering {
                        Ordering::Intent => Ordering::None,
                        Ordering::None => Ordering::Intent,
                    }
                });
            }
            Action::PauseAll(paused) => {
                self.registry.is_paused = paused;
                self.spread();
            }
            Action::Redeliver(nth) if reachable => {
                if let Some(id) = self.letter(nth) {
                    self.redeliver_by_hand(id);
                }
            }
            Action::Discard(nth) if reachable => {
                if let Some(id) = self.letter(nth) {
                    self.discard_by_hand(id);
                }
            }
            Action::Release { endpoint, intent } if reachable => {
                let intent = IntentId::new(&format!("pi_{intent}")).unwrap();
                self.ask(Asked::Release(endpoint_id(endpoint), intent, None));
            }
            Action::Requeue if reachable => {
                if let Some((entry, _)) = self.model.quarantine.first().cloned() {
                    self.ask(Asked::Requeue(entry));
                }
            }
            Action::Operate { kind, endpoint } if reachable => self.plan_operation(kind, endpoint),
            Action::ChangeOperation { nth, verb } if reachable => self.change_operation(nth, verb),
            Action::Operate { .. } | Action::ChangeOperation { .. } => {}
            Action::Redeliver(_) | Action::Discard(_) | Action::Release { .. } | Action::Requeue => {}
            fault => self.fault(fault),
        }
        self.check();
    }

    fn redeliver_by_hand(&mut self, id: DeliveryId) {
        self.asked_by_hand.entry(id.clone()).or_insert(self.now);
        self.ask(Asked::Redeliver(id));
    }

    fn discard_by_hand(&mut self, id: DeliveryId) {
        self.asked_by_hand.entry(id.clone()).or_insert(self.now);
        if let Some(owed) = self.ledger.get(index_of(id.endpoint.as_str()), id.entry) {
            owed.may_vanish = true;
        }
        self.ask(Asked::Discard(id));
    }

    pub(super) fn meddle(&mut self, id: DeliveryId) {
        self.tally.count("meddled");
        match self.chance.one_in(2) {
            _ if self.is_down => {}
            true => self.redeliver_by_hand(id),
            false => self.discard_by_hand(id),
        }
    }

    /// The next event of the steady account, as long as others still wait for what they are owed: nobody is behind an
    /// account whose events come without a pause.
    pub(super) fn goes_on_steadily(&mut self) {
        let (Some(Steady { endpoint, intents }), Some(entries)) = (self.plan.steady.clone(), &self.steady) else {
            return;
        };
        let of_others = |entry: &EntryId| !entries.contains(entry);
        let group = self.model.stream.groups.get(GROUP);
        let read = group.map_or(EntryId::ZERO, |group| group.last_delivered);
        let have_ended = self.is_healed
            && group.is_some_and(|group| !group.pending.keys().any(of_others))
            && !self.model.stream.entries.keys().filter(|entry| **entry > read).any(of_others)
            && self.model.inbox.requests.is_empty()
            && self.model.records.keys().all(|id| id.endpoint == endpoint_id(endpoint));
        if have_ended {
            self.steady = None;
            return;
        }
        if !self.is_down && !self.model.full && self.health == Health::Whole {
            let nth = self.events as usize % intents.len();
            self.publish(intents.start + nth);
            if let Some(entries) = &mut self.steady {
                entries.insert(self.model.stream.last_generated);
            }
            // Redis reports at once that the stream has changed.
            let partitions = self.workers.iter_mut().filter_map(|worker| worker.partition.as_mut());
            partitions.for_each(|partition| partition.stirred(true, false));
        }
        self.after(STEADY_EVERY_MS, Event::Steady);
    }

    pub(super) fn publish(&mut self, intent: usize) {
        let account = self.plan.intents[intent];
        let number = self.events;
        self.events += 1;
        let body = format!(
            r#"{{"id":"evt_{number}","event":"payment_intent.status_updated","accountId":"acc_{account}","createdAt":"2022-02-01T13:07:41.8667859Z","data":{{"paymentIntentId":"pi_{intent}","paymentStatus":"Captured","captureMode":"Auto"}}}}"#
        );
        self.tally.count("events");
        let entry = self.add(body.into());
        for at in 0..self.plan.endpoints.len() {
            if self.owner_of(at) == Some(account) {
                self.tally.count("deliveries");
                self.ledger.promise(Owed {
                    event: number,
                    at: self.now,
                    id: DeliveryId { entry, endpoint: endpoint_id(at) },
                    endpoint: at,
                    intent,
                    delivered: false,
                    answered: false,
                    may_vanish: self.ended_until[at] > self.now,
                    is_forgotten: false,
                    may_be_overtaken: false,
                    was_trimmed: false,
                });
            }
        }
    }

    pub(super) fn add(&mut self, body: Bytes) -> EntryId {
        let last = self.model.stream.last_generated;
        // A Redis that forgot entries gives out their ids again.
        let forgotten = (std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded);
        let again = self.published.range(forgotten).next().copied().filter(|_| !self.is_stream_anew);
        // No clock gives out the id right after the last one of the earlier stream.
        self.sequence = self.sequence.max(last.seq) + if self.is_stream_anew { 2 } else { 1 };
        let newest = self.published.last().map_or(0, |newest| newest.ms);
        let ms = self.model.now_ms.max(last.ms);
        let ms = if self.is_stream_anew { ms.max(newest) } else { ms };
        let entry = again.unwrap_or(EntryId { ms, seq: self.sequence });
        if again.is_some() {
            self.tally.count("ids_given_again");
        }
        self.published.insert(entry);
        if let Some(entries) = &mut self.steady {
            entries.remove(&entry);
        }
        self.model.publish(entry, body);
        self.wake_all();
        entry
    }

    /// The text of another entry that is not an event.
    pub(super) fn no_event(&mut self) -> Bytes {
        self.strangers += 1;
        let body = Bytes::from(format!("nonsense {}", self.strangers));
        self.strange.push(body.clone());
        body
    }

    /// What somebody else has thrown away is owed to nobody.
    pub(super) fn forget_lost_strangers(&mut self) {
        let model = &self.model;
        self.strange.retain(|body| is_quarantined_or_to_be(model, body));
    }

    pub(super) fn ask(&mut self, asked: Asked) {
        self.asked += 1;
        let mark = Mark { at_ms: self.asked, ..mark() };
        self.model.ask(asked, serde_json::to_vec(&mark).unwrap().into());
        self.wake_all();
    }

    pub(super) fn wake_all(&mut self) {
        for worker in 0..self.workers.len() {
            let life = self.workers[worker].life;
            self.after(1, Event::Wake { worker, life });
        }
    }

    pub(super) fn letter(&self, nth: usize) -> Option<DeliveryId> {
        let count = self.model.dead.len();
        self.model.dead.keys().nth(nth % count.max(1)).cloned()
    }
}

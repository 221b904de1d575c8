//! Redis: the store's model carries out the calls, and after each of them the promises are checked.

use super::*;

impl World {
    pub(super) fn apply(&mut self, call: &Call) -> Result<Answer, Failure> {
        let finished = self.finishes_redelivered(call);
        self.model.registry_last = (self.health != Health::Gone).then_some(self.registry.last);
        let answer = match self.refusal(call) {
            Some(_) if self.mutation == Some(Mutation::RefusedChangeForgotten) => {
                let mut rest = call.clone();
                if let Call::Settle { settlement, .. } = &mut rest {
                    settlement.items.retain(|item| !self.is_refused(item));
                }
                self.model.call(&rest)
            }
            Some(answer) => Ok(answer),
            None if self.is_older(call.term()) => self.carry_out_as_older(call),
            None => carry_out(&mut self.model, self.mutation, call),
        };
        self.tally.checked(Promise::OneOwner);
        match (&answer, call) {
            (Ok(Answer::Acquired { .. }), Call::Acquire { term, .. }) => {
                self.legit = Some(term.clone());
                self.tally.count("terms");
                self.allowance += self.may_go_again();
            }
            (Ok(Answer::Lost | Answer::Taken { .. }), _) | (Err(_), _) => return answer,
            _ if self.legit.as_ref() != Some(call.term()) => {
                self.wrong(Promise::OneOwner, || format!("a call of an ended term was carried out: {call:?}"));
            }
            _ => {}
        }
        self.were_attempted(finished);
        if let Call::Settle { settlement, .. } = call {
            let mut taken = BTreeSet::new();
            for item in &settlement.items {
                let takes = match item {
                    Item::Revive { id, .. } | Item::Discard { id } => Some(id.to_string()),
                    Item::Requeue { entry } | Item::DiscardQuarantined { entry } => Some(entry.to_string()),
                    _ => None,
                };
                if let Some(again) = takes.filter(|takes| !taken.insert(takes.clone())) {
                    self.wrong(Promise::EachOnce, || {
                        format!("two requests are granted {again}, which only one can have")
                    });
                }
                if let Item::Bury { id, letter, .. } = item {
                    self.check_reason(id, letter);
                    if self.model.operations.claims.contains_key(id) {
                        let soon = self.chance.below(4);
                        self.after(soon, Event::Meddle(id.clone()));
                    }
                }
                if let Item::Bury { id, .. } = item
                    && let Some(owed) = self.ledger.get(index_of(id.endpoint.as_str()), id.entry)
                {
                    owed.may_be_overtaken = true;
                }
            }
        }
        if !matches!(call, Call::Renew { .. } | Call::Ask { .. } | Call::Inbox { .. } | Call::Backlog { .. }) {
            self.check();
        }
        answer
    }

    /// In some runs some terms are those of an older Herald, until everything has healed.
    fn is_older(&self, term: &Term) -> bool {
        let digits = term.as_str().bytes().take(4).fold(0u64, |sum, digit| sum * 31 + u64::from(digit));
        !self.is_healed && self.plan.seed.is_multiple_of(5) && (digits + self.plan.seed).is_multiple_of(3)
    }

    /// An older Herald writes and removes letters, and leaves the indexes by facts as they are; it does not look for
    /// letters without an index.
    fn carry_out_as_older(&mut self, call: &Call) -> Result<Answer, Failure> {
        let (facts, mark) = (self.model.dead_facts.clone(), self.model.dead_mark);
        let mut answer = carry_out(&mut self.model, self.mutation, call);
        (self.model.dead_facts, self.model.dead_mark) = (facts, mark);
        if let Ok(Answer::Unindexed { letters, next, dead, indexed }) = &mut answer {
            (*letters, *next, *indexed) = (Vec::new(), None, *dead);
        }
        if self.model.check_indexes().is_err() {
            if !self.has_older_written {
                self.tally.count("older_heralds");
            }
            self.has_older_written = true;
        }
        answer
    }

    /// What was in flight or unsettled when a term ended: the deliveries of the pending entries, the claimed ones,
    /// those on the wire, and those that were answered while their record is still there, wherever they were sent from.
    pub(super) fn may_go_again(&self) -> usize {
        let pending = self.model.stream.groups.get(GROUP).map(|group| &group.pending);
        let is_unsettled = |owed: &&Owed| {
            let is_pending = pending.is_some_and(|pending| pending.contains_key(&owed.id.entry));
            is_pending || (owed.answered && self.model.records.contains_key(&owed.id))
        };
        self.ledger.owed.iter().filter(is_unsettled).count() + self.model.claimed.len() + self.wire.len()
    }

    pub(super) fn check(&mut self) {
        self.tally.checked(Promise::Sound);
        self.tally.checked(Promise::AtLeastOnce);
        let indexes = if self.has_older_written { Ok(()) } else { self.model.check_indexes() };
        if let Err(why) = self.model.check().and(indexes) {
            self.wrong(Promise::Sound, || why);
        }
        if let Some(lost) = self.ledger.lost(&self.model) {
            let lost = lost.id.clone();
            self.wrong(Promise::AtLeastOnce, || format!("{lost} is lost"));
        }
        if let Some(lost) = self.strange.iter().find(|body| !is_quarantined_or_to_be(&self.model, body)).cloned() {
            self.wrong(Promise::AtLeastOnce, || format!("{lost:?}, which is no event, is lost"));
        }
    }

    /// The answer to a settle with a change that cannot be applied: none of it is applied.
    fn refusal(&mut self, call: &Call) -> Option<Answer> {
        let Call::Settle { term, settlement } = call else { return None };
        let is_ours = self.model.lease.as_ref().is_some_and(|lease| lease.value == term.as_str());
        let at = settlement.items.iter().position(|item| self.is_refused(item)).filter(|_| is_ours)?;
        self.tally.count("refused_settles");
        Some(Answer::BadItem { at, why: "the key has another type".to_owned() })
    }

    fn is_refused(&self, item: &Item) -> bool {
        match item {
            Item::Finish { id, .. } | Item::Keep { id, .. } | Item::Move { id, .. } | Item::Bury { id, .. } => {
                self.refused.contains(id)
            }
            _ => false,
        }
    }

    /// An endpoint that the owner wants paused has too much in Redis, or its account has, and it has taken nothing for
    /// a while.
    pub(super) fn check_pause(&mut self, worker: usize, endpoint: &EndpointId) {
        let at = index_of(endpoint.as_str());
        // What another owner, or an older state of Redis, makes of it meanwhile says nothing about what was decided.
        if self.is_loosened || self.legit.is_none() || self.legit != self.workers[worker].term {
            return;
        }
        self.tally.checked(Promise::PausedForCause);
        let weight = |is_meant: &dyn Fn(usize) -> bool| -> u64 {
            let records = self.model.records.iter().filter(|(id, _)| is_meant(index_of(id.endpoint.as_str())));
            records.map(|(_, record)| record.len() as u64 + RECORD_BYTES).sum()
        };
        let account = self.plan.endpoints[at].account;
        let own = weight(&|other| other == at);
        let of_account = weight(&|other| self.plan.endpoints[other].account == account);
        let Quotas { endpoint: allowed, account: allowed_of_account } = self.plan.quotas;
        let is_over = |bytes: u64, allowed: Option<u64>| allowed.is_some_and(|allowed| bytes >= allowed);
        if !is_over(own, allowed) && !is_over(of_account, allowed_of_account) {
            let quotas = self.plan.quotas;
            self.wrong(Promise::PausedForCause, || {
                format!("{endpoint} is to be paused for {own} bytes, {of_account} of its account: {quotas:?}")
            });
        }
        let taken_at = self.taken_at.get(&(worker, at)).copied();
        if let Some(ago) = taken_at.map(|taken_at| self.now - taken_at).filter(|ago| *ago < COOLDOWN_MS) {
            self.wrong(Promise::PausedForCause, || {
                format!("{endpoint} is to be paused, and its receiver took something {ago} ms ago")
            });
        }
    }

    /// An endpoint that never ended takes what it is owed: no delivery to it may be given up because of it.
    fn check_reason(&mut self, id: &DeliveryId, letter: &Bytes) {
        self.tally.checked(Promise::GivenUpForCause);
        let reason = DeadLetter::from_record(letter).expect("Herald wrote it").reason;
        let at = index_of(id.endpoint.as_str());
        // While it is locked nothing grows old, and what waited for it begins anew.
        let young_at = match self.locked_since[at] {
            Some(since) if since + 2 * MAX_LAG_MS < self.now => self.now,
            _ => self.locked_until[at].saturating_sub(NOTED_BEFORE_MS),
        };
        let age = self.ledger.get(at, id.entry).map_or(u64::MAX, |owed| self.now - owed.at.max(young_at));
        // A retry that would come too late is not waited for.
        if reason == DeadReason::Expired && age.saturating_add(MAX_PAUSE_MS) < MAX_AGE_MS {
            self.wrong(Promise::GivenUpForCause, || format!("{id} was given up as too old after {age} ms"));
        }
        let was_ended = self.was_ended[at];
        if matches!(reason, DeadReason::Disabled | DeadReason::Deleted | DeadReason::Gone) && !was_ended {
            self.wrong(Promise::GivenUpForCause, || {
                format!("{id} was given up as {reason:?}, and its endpoint is there")
            });
        }
    }
}

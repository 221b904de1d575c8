//! Which call comes next. Each kind has its turn, so that none starves another.

use super::*;

/// What a due time may be off by without a step of the clock.
const CLOCKS_MS: u64 = 60_000;

impl<D: Directory> Partition<D> {
    pub(super) fn choose(&mut self, now: u64) -> Option<(Call, Outstanding)> {
        let term = self.term.clone();
        match (self.phase, term) {
            (Phase::Stopped, _) => None,
            (Phase::Waiting { .. }, _) if self.is_stopping => {
                self.phase = Phase::Stopped;
                None
            }
            (Phase::Waiting { at }, _) => (now >= at).then(|| self.acquire(now)).flatten(),
            (_, None) => None,
            (Phase::Recovering, Some(term)) => Some((Call::Recover { term, max: MAX_BATCH }, Outstanding::Plain)),
            (Phase::Opening, Some(term)) => {
                let registry = self.directory.view().id?;
                Some((Call::Open { term, start: self.settings.start, registry }, Outstanding::Plain))
            }
            (Phase::Counting(cursor), Some(term)) => Some((Call::Counts { term, cursor }, Outstanding::Plain)),
            (Phase::Running, Some(term)) => {
                self.core.tick(now);
                self.choose_running(now, term)
            }
        }
    }

    /// A worker without a registry owns nothing: events wait in the stream.
    pub(super) fn acquire(&mut self, now: u64) -> Option<(Call, Outstanding)> {
        if self.directory.view().id.is_none() {
            self.phase = Phase::Waiting { at: now + ACQUIRE_EVERY_MS };
            return None;
        }
        let term = Term::new(self.rng.random(), &self.settings.owner);
        let previous = self.own_values.iter().cloned().collect();
        if self.own_values.len() == MAX_OWN_VALUES {
            self.own_values.pop_front();
        }
        self.own_values.push_back(term.clone());
        Some((Call::Acquire { term, previous, ttl_ms: self.settings.lease_ms }, Outstanding::Acquire { sent: now }))
    }

    /// Each kind of call has its turn, so that none starves another.
    pub(super) fn choose_running(&mut self, now: u64, term: Term) -> Option<(Call, Outstanding)> {
        // Nothing may be settled between a question about chains and the admission that relies on its answer.
        if self.staged.as_ref().is_some_and(|staged| !staged.unconfirmed)
            && let Some(asking) = self.ask(now, &term)
        {
            return Some(asking);
        }
        if self.is_stopping {
            return self.choose_stopping(now, term);
        }
        const TURNS: usize = 7;
        for step in 0..TURNS {
            let turn = (self.turn + step) % TURNS;
            let chosen = match turn {
                0 => self.settle(now, &term, SETTLE_DELAY_MS),
                1 => self.claim(now, &term),
                2 => self.read(now, &term),
                3 => self.backlog(now, &term),
                4 => self.heads(now, &term),
                5 => self.inbox(now, &term),
                _ => self.housekeeping(now, &term),
            };
            if chosen.is_some() {
                self.turn = turn + 1;
                return chosen;
            }
            if self.phase != Phase::Running {
                return None;
            }
        }
        None
    }

    pub(super) fn choose_stopping(&mut self, now: u64, term: Term) -> Option<(Call, Outstanding)> {
        if self.core.outbox_len() > 0 {
            return self.settle(now, &term, 0);
        }
        (self.core.tally().in_flight == 0).then_some((Call::Release { term }, Outstanding::Release))
    }

    pub(super) fn settle(&mut self, now: u64, term: &Term, delay_ms: u64) -> Option<(Call, Outstanding)> {
        let since = self.core.outbox_since()?;
        if self.core.outbox_len() < SETTLE_AT && now < since + delay_ms {
            return None;
        }
        let settlement = self.core.settlement(now, MAX_BATCH, self.last_read);
        Some((Call::Settle { term: term.clone(), settlement }, Outstanding::Settle))
    }

    pub(super) fn claim(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        let is_due = self.next_due_ms.is_some_and(|due| due <= self.redis_now(now));
        if !is_due || self.is_held_up || !self.core.has_room() {
            return None;
        }
        Some((Call::Claim { term: term.clone(), max: CLAIM_MAX }, Outstanding::Plain))
    }

    pub(super) fn read(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        let wanted = self.pending_after.is_some() || self.more_entries;
        let allowed = self.staged.is_none() && !self.is_held_up && !self.is_under_pressure;
        if !wanted || !allowed || now < self.read_not_before || !self.core.has_room() {
            return None;
        }
        let from = self.pending_after.map_or(ReadFrom::New, ReadFrom::Pending);
        // While receivers that could take more wait for their backlogs, many entries for them would only make those longer,
        // and what goes through a backlog costs Redis several times as much: it is drained first. A few such receivers
        // among many slow nobody's reading.
        let most = if self.core.has_hungry() && self.feeds_backlogs { READ_BESIDE_BACKLOG } else { READ_MAX };
        // An account with many endpoints makes many deliveries of an entry.
        let max = (most / self.fan_out).max(1);
        Some((Call::Read { term: term.clone(), from, max }, Outstanding::Read { from, max }))
    }

    pub(super) fn backlog(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if self.is_held_up || !self.core.has_room() {
            return None;
        }
        let (endpoint, after, max, why) = match self.core.next_backlog(now) {
            Some((endpoint, after, max)) => (endpoint, after, max.min(CLAIM_MAX), BacklogFor::Sending),
            None => {
                let (endpoint, after) = self.expiring.pop_front()?;
                (endpoint, after, CLAIM_MAX, BacklogFor::Expiring)
            }
        };
        let call = Call::Backlog { term: term.clone(), endpoint: endpoint.clone(), after, max };
        Some((call, Outstanding::Backlog(endpoint, why)))
    }

    pub(super) fn heads(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if now < self.ending_at || self.is_held_up || !self.core.has_room() {
            return None;
        }
        let endpoint = self.core.next_ending()?;
        let call = Call::TakeHeads { term: term.clone(), endpoint: endpoint.clone(), max: CLAIM_MAX };
        Some((call, Outstanding::Heads(endpoint)))
    }

    pub(super) fn inbox(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if !self.more_requests && now < self.inbox_at {
            return None;
        }
        self.inbox_at = now + INBOX_EVERY_MS;
        self.more_requests = false;
        let call = Call::Inbox { term: term.clone(), after: self.inbox_after, max: CLAIM_MAX };
        Some((call, Outstanding::Job))
    }

    pub(super) fn housekeeping(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if self.core.has_refused() {
            self.refused_since.get_or_insert(now);
        }
        if self.refused_since.is_some_and(|since| now >= since + REFUSED_MS) {
            self.end_term(now, "Redis refused a change; it is tried again".to_owned());
            return None;
        }
        let term = term.clone();
        if now >= self.pull_at {
            self.pull_at = now + PULL_EVERY_MS;
            self.pulls.push_back(self.unmeant(now));
        }
        if let Some(pull) = self.pulls.pop_front() {
            let Pull { from_ms, by_ms, step_ms } = pull;
            let max = if by_ms > 0 { MAX_BATCH } else { 0 };
            return Some((Call::PullIn { term, from_ms, by_ms, max, step_ms }, Outstanding::PullIn(pull)));
        }
        if now >= self.foreign_at && self.pending_after.is_none() {
            self.foreign_at = now + FOREIGN_EVERY_MS;
            return Some((Call::ClaimForeign { term, max: MAX_BATCH }, Outstanding::Job));
        }
        if now >= self.trim_at {
            self.trim_at = now + TRIM_EVERY_MS;
            // While the wake-up can not be relied on, the stream is looked at as often as it is trimmed.
            self.more_entries |= self.is_wakeup_false;
            let (retain_ms, ignores) = (self.settings.retain_ms, self.settings.trim_ignores.clone());
            return Some((Call::Trim { term, retain_ms, ignores }, Outstanding::Job));
        }
        if now >= self.expire_at {
            self.expire_at = now + EXPIRE_EVERY_MS;
            if now >= self.began_at + REMEMBER_MS {
                self.core.forget_verdicts();
            }
            let waiting = self.core.waiting_backlogs(now).into_iter();
            self.expiring = waiting.map(|endpoint| (endpoint, EntryId::ZERO)).collect();
            let is_trusted = self.clock.is_trusted(now);
            let max_age_ms = if is_trusted { self.settings.dead_max_age_ms } else { NO_AGE_MS };
            let max_count = self.settings.dead_max_count;
            return Some((Call::ExpireDead { term, max_age_ms, max_count, max: MAX_BATCH }, Outstanding::Job));
        }
        None
    }

    /// No policy lets anything wait so long: its time is of a clock that was set back before this owner came. It also
    /// tells the time to an owner that has nothing else to ask.
    fn unmeant(&self, now: u64) -> Pull {
        let longest_ms = self.core.longest_pause().as_millis() as u64;
        Pull { from_ms: self.redis_now(now) + longest_ms + CLOCKS_MS, by_ms: NO_AGE_MS, step_ms: 0 }
    }

    /// The questions of the staged entries, a batch at a time. They are put together only now, when no settlement is
    /// on its way, and until they are answered nothing else is called.
    pub(super) fn ask(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if self.staged.as_ref().is_some_and(|staged| staged.asking.is_none()) {
            let questions = self.questions();
            if questions.is_empty() {
                self.admit_staged(now, Vec::new(), Vec::new());
                return None;
            }
            self.staged.as_mut()?.asking = Some((questions, Vec::new()));
        }
        let staged = self.staged.as_ref()?;
        let (deliveries, known) = staged.asking.as_ref()?;
        let asked = &deliveries[known.len()..deliveries.len().min(known.len() + MAX_BATCH)];
        let call = Call::Ask { term: term.clone(), deliveries: asked.to_vec(), suspect: staged.suspect };
        Some((call, Outstanding::Ask))
    }
}

//! Which call comes next. Each kind has its turn, so that none starves another.

use super::*;

/// Calls that somebody waits for, before each other kind of call has its turn.
const MAX_URGENT: usize = 4;

/// A worker that stops gives records to what was begun for so long: thousands of them, and a part of what stopping may take
/// beyond its grace.
const RECORDING_MS: u64 = 3_000;

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
                let chosen = self.choose_running(now, term);
                if let Some((call, _)) = &chosen {
                    self.was_read = matches!(call, Call::Read { .. });
                    if !self.was_read {
                        self.was_settle = matches!(call, Call::Settle { .. });
                    }
                }
                chosen
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

    /// What somebody waits for comes first, but never so often that another kind of call starves.
    pub(super) fn choose_running(&mut self, now: u64, term: Term) -> Option<(Call, Outstanding)> {
        if self.is_stopping {
            return self.choose_stopping(now, term);
        }
        let relieved = self.core.take_relieved();
        self.deferral.relieve(relieved);
        self.deferral.look(now);
        if self.urgent < MAX_URGENT {
            self.urgent += 1;
            return self.choose_urgent(now, &term).or_else(|| {
                self.urgent = 0;
                self.choose_in_turn(now, &term)
            });
        }
        self.urgent = 0;
        let chosen = self.choose_in_turn(now, &term);
        match self.phase {
            Phase::Running => chosen.or_else(|| self.choose_urgent(now, &term)),
            _ => chosen,
        }
    }

    fn choose_urgent(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        // A slice at a time: what needs no question is admitted without a call.
        let was_staged = self.staged.is_some();
        if let Some(asking) = self.ask(now, term) {
            return Some(asking);
        }
        // Who keeps up with what comes has little to read, and it goes out at once: it waits for one other call at most. So
        // does what stands behind a page that was only passed by.
        if (self.keeps_up || self.reads_past)
            && !self.was_read
            && self.wants_new(now)
            && let Some(read) = self.read(now, term)
        {
            return Some(read);
        }
        // What waits to be settled keeps other calls from being made, so it may not have to wait for all of them.
        if !self.was_settle
            && self.core.outbox_exceeds(MAX_BATCH)
            && let Some(settle) = self.settle(now, term, 0)
        {
            return Some(settle);
        }
        if was_staged {
            return None;
        }
        self.take_up_deferred(now);
        self.ask(now, term)
    }

    /// Each kind of call has its turn, so that none starves another.
    fn choose_in_turn(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        const TURNS: usize = 7;
        for step in 0..TURNS {
            let turn = (self.turn + step) % TURNS;
            let chosen = match turn {
                0 => self.settle(now, term, SETTLE_DELAY_MS),
                1 => self.claim(now, term),
                2 => self.read(now, term),
                3 => self.backlog(now, term),
                4 => self.heads(now, term),
                5 => self.inbox(now, term),
                _ => self.housekeeping(now, term),
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

    fn take_up_deferred(&mut self, now: u64) {
        // What is admitted in parts and what is to be read take turns.
        let is_turn_of_read = self.was_in_parts && self.may_read() && self.wants_to_read(now);
        if self.staged.is_none()
            && !self.is_held_up
            && self.core.has_room()
            && !is_turn_of_read
            && let Some((account, mut page)) = self.deferral.next_here()
        {
            // As when it is read again: another registry may have been accepted meanwhile.
            self.find_endpoints(&mut page);
            self.was_in_parts = page.front().is_some_and(|arrival| arrival.is_in_parts);
            self.staged = Some(Staged::new(page, Source::Memory(account), false));
        }
    }

    pub(super) fn choose_stopping(&mut self, now: u64, term: Term) -> Option<(Call, Outstanding)> {
        if self.core.outbox_len() > 0 {
            return self.settle(now, &term, 0);
        }
        if self.core.tally().in_flight > 0 {
            return None;
        }
        let is_roomy = !self.is_under_pressure;
        let chosen = is_roomy.then(|| self.record_what_is_begun(now, &term)).flatten();
        Some(chosen.unwrap_or((Call::Release { term }, Outstanding::Release)))
    }

    /// Entries of which something was delivered get records of all else, a slice at a time: the next owner would deliver the
    /// whole of each again. Ends when nothing of them is left, when nothing more of it can be admitted, or after a while.
    fn record_what_is_begun(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        let until = *self.records_until.get_or_insert(now + RECORDING_MS);
        if now >= until {
            return None;
        }
        loop {
            self.core.record_what_is_begun(now);
            if self.core.outbox_len() > 0 {
                return self.settle(now, term, 0);
            }
            if let Some(staged) = self.staged.take().filter(|staged| staged.asking.is_none()) {
                let Staged { arrivals, source, .. } = staged;
                let begun: VecDeque<Arrival> = arrivals.into_iter().filter(|arrival| arrival.is_open).collect();
                self.staged = (!begun.is_empty()).then(|| Staged::new(begun, source, false));
            }
            let left = self.begun_left();
            if left == 0 || self.begun_before.replace(left) == Some(left) {
                return None;
            }
            if self.staged.is_none()
                && let Some((account, arrival)) = self.deferral.take_begun()
            {
                self.staged = Some(Staged::new(VecDeque::from([arrival]), Source::Memory(account), false));
            }
            if let Some(asking) = self.ask(now, term) {
                return Some(asking);
            }
        }
    }

    /// Deliveries of entries that were begun, and that are not admitted yet.
    fn begun_left(&self) -> usize {
        let staged = self.staged.iter().flat_map(|staged| &staged.arrivals).filter(|arrival| arrival.is_open);
        staged.map(Arrival::left).sum::<usize>() + self.deferral.begun_left()
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
        if !is_due || self.is_held_up || !self.core.has_room_for_records() {
            return None;
        }
        Some((Call::Claim { term: term.clone(), max: CLAIM_MAX }, Outstanding::Plain))
    }

    pub(super) fn read(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if !self.may_read() {
            return None;
        }
        self.deferral.end_pass_at_its_end();
        // What was deferred and what is new take turns; what is pending from before the term comes before both.
        let wants_new = self.wants_new(now);
        let is_turn_of_new = std::mem::take(&mut self.was_pass) && wants_new;
        let page = match (self.pending_after, is_turn_of_new) {
            (Some(_), _) | (None, true) => None,
            (None, false) => self.deferral.next_page(now),
        };
        let (from, max, of_pass) = match (self.pending_after, page) {
            (Some(after), _) => (ReadFrom::Pending(after), READ_MAX, false),
            (None, Some((after, max))) => (ReadFrom::Pending(after), max, true),
            (None, None) if wants_new => (ReadFrom::New, self.most_new(), false),
            (None, None) => return None,
        };
        self.was_pass = of_pass;
        if from == ReadFrom::New {
            self.deferral.reads_on();
        }
        let max = if self.is_under_pressure { max.min(READ_UNDER_PRESSURE) } else { max };
        self.was_in_parts = false;
        let was_woken = from == ReadFrom::New && std::mem::take(&mut self.was_woken);
        let page = Page { from, max, of_pass, was_woken };
        Some((Call::Read { term: term.clone(), from, max }, Outstanding::Read(page)))
    }

    /// While receivers that could take more wait for their backlogs, or accounts for what of them waits in the stream, many
    /// entries for them would only make those longer, and each costs Redis more than one that goes out at once: they come
    /// first. A few such receivers among many slow nobody's reading, and what is passed by makes no backlog longer.
    fn most_new(&self) -> usize {
        let are_fed =
            self.feeds_backlogs && (self.core.has_hungry() || self.deferral.entries() > 0) && !self.reads_past;
        if are_fed { READ_BESIDE_BACKLOG } else { READ_MAX }
    }

    pub(super) fn backlog(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if self.is_held_up || !self.core.has_room_for_records() {
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
        if now < self.ending_at || self.is_held_up || !self.core.may_settle_more() {
            return None;
        }
        let endpoint = self.core.next_ending()?;
        let is_alone = self.core.fresh() == 0 && now >= self.admitted_at + ALONE_AFTER_MS;
        let (max, pause) = match is_alone {
            true => (ENDING_MAX_ALONE, ENDING_PAUSE_ALONE_MS),
            false => (ENDING_MAX, ENDING_PAUSE_MS),
        };
        self.ending_at = now + pause;
        let call = Call::TakeHeads { term: term.clone(), endpoint: endpoint.clone(), max };
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
            // One that waits behind another that fails serves as well.
            if self.pulls.iter().all(|pull| pull.by_ms != NO_AGE_MS) {
                self.pulls.push_back(self.unmeant(now));
            }
        }
        if now >= self.pulls_at
            && let Some(pull) = self.pulls.pop_front()
        {
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
            // While the wake-up cannot be relied on, the stream is looked at as often as it is trimmed.
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

    /// The questions of the next slice of what is staged, or the slice itself where there are none. They are put together
    /// only now, when no settlement is on its way, and until they are answered nothing else is called: nothing may be
    /// settled between a question about chains and the admission that relies on its answer.
    pub(super) fn ask(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        self.admit_if_known(now);
        let staged = self.staged.as_ref().filter(|staged| !staged.unconfirmed)?;
        if !self.has_room() {
            return None;
        }
        let suspect = staged.arrivals.iter().any(|arrival| arrival.suspect);
        let slice = self.next_slice();
        if slice.questions.is_empty() {
            // The next slice has none either, or it is that one's turn with the next call.
            return None;
        }
        let call = Call::Ask { term: term.clone(), deliveries: slice.questions.clone(), suspect };
        self.staged.as_mut()?.asking = Some(slice);
        Some((call, Outstanding::Ask))
    }
}

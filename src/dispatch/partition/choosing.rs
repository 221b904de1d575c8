//! Which call comes next. Each kind has its turn, so that none starves another.

use super::{
    ACQUIRE_EVERY_MS, ALONE_AFTER_MS, BacklogFor, CLAIM_MAX, Call, Directory, ENDING_MAX, ENDING_MAX_ALONE,
    ENDING_PAUSE_ALONE_MS, ENDING_PAUSE_MS, EXPIRE_EVERY_MS, EndpointId, EntryId, FOREIGN_EVERY_MS, INBOX_EVERY_MS,
    INBOX_SELDOM_MS, INDEX_AFTER_MS, INDEX_EVERY_MS, INDEX_MAX, Indexing, MAX_BATCH, NO_AGE_MS, NOTE_EVERY_MS,
    NOTE_HOLDS_MS, Outstanding, PULL_EVERY_MS, Page, Partition, Phase, Pull, READ_BESIDE_BACKLOG, READ_MAX,
    READ_UNDER_PRESSURE, REFUSED_MS, REMEMBER_MS, ReadFrom, RngExt, SETTLE_AT, Source, Stage, Staged, StagedEntry,
    TRIM_EVERY_MS, Term, VecDeque, Wish,
};

/// How many calls that somebody waits for go before the other kinds of calls have their turn.
const MAX_URGENT: usize = 4;

/// For how long a stopping worker gives records to what was begun: enough for thousands of them, and only a part of what
/// stopping may take beyond its grace.
const RECORDING_MS: u64 = 3_000;

/// How far off a due time may be without a step of the clock.
const CLOCKS_MS: u64 = 60_000;

impl<D: Directory> Partition<D> {
    pub(super) fn choose(&mut self, now: u64) -> Option<(Call, Outstanding)> {
        let term = self.lease.term().cloned();
        match (self.phase, term) {
            (Phase::Stopped, _) => None,
            (Phase::Waiting { .. }, _) if self.is_stopping => {
                self.phase = Phase::Stopped;
                None
            }
            (Phase::Waiting { at }, _) if self.gives_way => {
                self.phase = Phase::Waiting { at: at.max(now + ACQUIRE_EVERY_MS) };
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
            (Phase::Routing, Some(term)) => self.choose_routing(now, term),
            (Phase::Running, Some(term)) => {
                self.core.tick(now);
                let chosen = self.choose_running(now, term);
                if let Some((call, _)) = &chosen {
                    self.term.was_read = matches!(call, Call::Read { .. });
                    if !self.term.was_read {
                        self.term.was_settle = matches!(call, Call::Settle { .. });
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
        let previous = self.lease.ask(term.clone());
        Some((Call::Acquire { term, previous, ttl_ms: self.settings.lease_ms }, Outstanding::Acquire { sent: now }))
    }

    /// What somebody waits for comes first, but never so often that another kind of call starves.
    pub(super) fn choose_running(&mut self, now: u64, term: Term) -> Option<(Call, Outstanding)> {
        if self.leaves() {
            return self.choose_stopping(now, term);
        }
        if let Some(wish) = self.wish {
            return self.choose_splitting(now, term, wish);
        }
        let relieved = self.core.take_relieved();
        self.term.deferral.relieve(relieved);
        self.term.deferral.look(now);
        if self.term.urgent < MAX_URGENT {
            self.term.urgent += 1;
            return self.choose_urgent(now, &term).or_else(|| {
                self.term.urgent = 0;
                self.choose_in_turn(now, &term)
            });
        }
        self.term.urgent = 0;
        let chosen = self.choose_in_turn(now, &term);
        match self.phase {
            Phase::Running => chosen.or_else(|| self.choose_urgent(now, &term)),
            _ => chosen,
        }
    }

    fn choose_urgent(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        // A slice at a time: what needs no question is admitted without a call.
        let was_staged = self.term.staged.is_some();
        if let Some(asking) = self.ask(now, term) {
            return Some(asking);
        }
        // An owner with more to do than it can makes few calls. If it looked at small backlogs only in turn, ever more would be added
        // to them meanwhile.
        if !self.term.was_clearing
            && self.may_look_at_backlogs()
            && let Some((endpoint, after, max)) = self.core.next_to_clear(now)
        {
            self.term.was_clearing = true;
            return Some(self.look_at_backlog(term, endpoint, after, max, BacklogFor::Sending));
        }
        self.term.was_clearing = false;
        // A worker that keeps up has little to read, and what it reads goes out at once: so a read waits for one other call
        // at most. The same goes for what is behind a page that was only passed by.
        if (self.term.keeps_up || self.term.reads_past)
            && !self.term.was_read
            && self.wants_new(now)
            && let Some(read) = self.read(now, term)
        {
            return Some(read);
        }
        // What waits to be settled keeps other calls from being made, so it must not have to wait for all of them.
        if !self.term.was_settle
            && self.core.outbox_exceeds(MAX_BATCH)
            && let Some(settle) = self.settle(now, term, 0)
        {
            return Some(settle);
        }
        // One slice at a time: what was staged has had its own just now.
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
            let turn = (self.term.turn + step) % TURNS;
            let chosen = match turn {
                0 => self.settle(now, term, self.settle_after_ms()),
                1 => self.claim(now, term),
                2 => self.read(now, term),
                3 => self.backlog(now, term),
                4 => self.heads(now, term),
                5 => self.inbox(now, term),
                _ => self.housekeeping(now, term),
            };
            if chosen.is_some() {
                self.term.turn = turn + 1;
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
        let is_turn_of_read = self.term.was_in_parts && self.may_read() && self.wants_to_read(now);
        if self.term.staged.is_none()
            && !self.is_held_up
            && self.core.has_room()
            && !is_turn_of_read
            && let Some((account, mut page)) = self.term.deferral.next_here()
        {
            // As when it is read again: another registry may have been accepted meanwhile.
            self.find_endpoints(&mut page);
            self.term.was_in_parts = page.front().is_some_and(|arrival| arrival.is_in_parts);
            self.term.staged = Some(Staged::new(page, Source::Memory(account), Stage::Ready));
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

    /// Entries are passed on by somebody else; what is asked of the owner is answered here.
    fn choose_routing(&mut self, now: u64, term: Term) -> Option<(Call, Outstanding)> {
        let delay_ms = if self.leaves() { 0 } else { self.settle_after_ms() };
        if let Some(settle) = self.settle(now, &term, delay_ms) {
            return Some(settle);
        }
        match self.leaves() {
            true => Some((Call::Release { term }, Outstanding::Release)),
            false => self.inbox(now, &term),
        }
    }

    /// As if it stopped; then another term has the stream split.
    fn choose_splitting(&mut self, now: u64, term: Term, wish: Wish) -> Option<(Call, Outstanding)> {
        if now >= wish.until && self.core.tally().in_flight > 0 {
            self.wait_no_longer(now);
        }
        // Somebody may want it back.
        if let Some(inbox) = self.inbox(now, &term) {
            return Some(inbox);
        }
        match self.choose_stopping(now, term) {
            Some((Call::Release { .. }, _)) => {
                self.end_term(now, format!("the stream is to be split into {} parts", wish.parts));
                (self.records_until, self.begun_before) = (None, None);
                None
            }
            chosen => chosen,
        }
    }

    /// Where something of an entry was delivered, all the rest of it gets records, a slice at a time: otherwise the next
    /// owner would deliver the whole entry again. Ends when nothing of such entries is left, when no more of them can be
    /// admitted, or after a while.
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
            if let Some(staged) = self.term.staged.take().filter(|staged| !matches!(staged.stage, Stage::Asking(_))) {
                let Staged { arrivals, source, .. } = staged;
                let begun: VecDeque<StagedEntry> = arrivals.into_iter().filter(|arrival| arrival.is_open).collect();
                self.term.staged = (!begun.is_empty()).then(|| Staged::new(begun, source, Stage::Ready));
            }
            let left = self.begun_left();
            if left == 0 || self.begun_before.replace(left) == Some(left) {
                return None;
            }
            if self.term.staged.is_none()
                && let Some((account, arrival)) = self.term.deferral.take_begun()
            {
                self.term.staged = Some(Staged::new(VecDeque::from([arrival]), Source::Memory(account), Stage::Ready));
            }
            if let Some(asking) = self.ask(now, term) {
                return Some(asking);
            }
        }
    }

    /// Deliveries of entries that were begun, as far as they are not admitted yet.
    fn begun_left(&self) -> usize {
        let staged = self.term.staged.iter().flat_map(|staged| &staged.arrivals).filter(|arrival| arrival.is_open);
        staged.map(StagedEntry::left).sum::<usize>() + self.term.deferral.begun_left()
    }

    pub(super) fn settle(&mut self, now: u64, term: &Term, delay_ms: u64) -> Option<(Call, Outstanding)> {
        let since = self.core.outbox_since()?;
        if self.core.outbox_len() < SETTLE_AT && now < since + delay_ms {
            return None;
        }
        let settlement = self.core.settlement(now, MAX_BATCH, self.term.last_read);
        Some((Call::Settle { term: term.clone(), settlement }, Outstanding::Settle))
    }

    pub(super) fn claim(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        let is_due = self.term.next_due_ms.is_some_and(|due| due <= self.redis_now(now));
        if !is_due || self.is_held_up || !self.core.has_room_for_records() {
            return None;
        }
        Some((Call::Claim { term: term.clone(), max: CLAIM_MAX }, Outstanding::Plain))
    }

    pub(super) fn read(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if !self.may_read() {
            return None;
        }
        self.term.deferral.end_pass_at_its_end();
        // What was deferred and what is new take turns; what is pending from before the term comes before both.
        let wants_new = self.wants_new(now);
        let is_turn_of_new = std::mem::take(&mut self.term.was_pass) && wants_new;
        let page = match (self.term.pending_after, is_turn_of_new) {
            (Some(_), _) | (None, true) => None,
            (None, false) => self.term.deferral.next_page(now),
        };
        let (from, max, of_pass) = match (self.term.pending_after, page) {
            (Some(after), _) => (ReadFrom::Pending(after), READ_MAX, false),
            (None, Some((after, max))) => (ReadFrom::Pending(after), max, true),
            (None, None) if wants_new => (ReadFrom::New, self.most_new(), false),
            (None, None) => return None,
        };
        self.term.was_pass = of_pass;
        if from == ReadFrom::New {
            self.term.deferral.reads_on();
        }
        let max = if self.is_under_pressure { max.min(READ_UNDER_PRESSURE) } else { max };
        self.term.was_in_parts = false;
        let was_woken = from == ReadFrom::New && std::mem::take(&mut self.term.was_woken);
        let page = Page { from, max, of_pass, was_woken };
        Some((Call::Read { term: term.clone(), from, max }, Outstanding::Read(page)))
    }

    /// While receivers that could take more wait for their backlogs, or accounts for their entries in the stream, reading
    /// many entries for them would only lengthen those, and each such entry costs Redis more than one that goes out at
    /// once: so what waits comes first. A few such receivers among many slow nobody's reading, and what is passed by
    /// lengthens no backlog.
    fn most_new(&self) -> usize {
        let are_fed = self.term.feeds_backlogs
            && (self.core.has_hungry() || self.term.deferral.entries() > 0)
            && !self.term.reads_past;
        if are_fed { READ_BESIDE_BACKLOG } else { READ_MAX }
    }

    pub(super) fn backlog(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if !self.may_look_at_backlogs() {
            return None;
        }
        let (endpoint, after, max, why) = match self.core.next_backlog(now) {
            Some((endpoint, after, max)) => (endpoint, after, max, BacklogFor::Sending),
            None => {
                let (endpoint, after) = self.term.expiring.pop_front()?;
                (endpoint, after, CLAIM_MAX, BacklogFor::Expiring)
            }
        };
        Some(self.look_at_backlog(term, endpoint, after, max, why))
    }

    fn may_look_at_backlogs(&self) -> bool {
        !self.is_held_up && self.core.has_room_for_records()
    }

    fn look_at_backlog(
        &self,
        term: &Term,
        endpoint: EndpointId,
        after: EntryId,
        max: usize,
        why: BacklogFor,
    ) -> (Call, Outstanding) {
        let call = Call::Backlog { term: term.clone(), endpoint: endpoint.clone(), after, max: max.min(CLAIM_MAX) };
        (call, Outstanding::Backlog(endpoint, why))
    }

    pub(super) fn heads(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if now < self.term.ending_at || self.is_held_up || !self.core.may_settle_more() {
            return None;
        }
        let endpoint = self.core.next_ending()?;
        let is_alone = self.core.fresh() == 0 && now >= self.term.admitted_at + ALONE_AFTER_MS;
        let (max, pause) = match is_alone {
            true => (ENDING_MAX_ALONE, ENDING_PAUSE_ALONE_MS),
            false => (ENDING_MAX, ENDING_PAUSE_MS),
        };
        self.term.ending_at = now + pause;
        let call = Call::TakeHeads { term: term.clone(), endpoint: endpoint.clone(), max };
        Some((call, Outstanding::Heads(endpoint)))
    }

    pub(super) fn inbox(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if !self.term.more_requests && now < self.inbox_at() {
            return None;
        }
        self.term.inbox_looked = Some(now);
        self.term.more_requests = false;
        let call = Call::Inbox { term: term.clone(), after: self.term.inbox_after, max: CLAIM_MAX };
        Some((call, Outstanding::Job))
    }

    /// When the inbox is looked at unless something is known to be there.
    pub(super) fn inbox_at(&self) -> u64 {
        let every = if self.wants_wakeup().is_some() { INBOX_SELDOM_MS } else { INBOX_EVERY_MS };
        self.term.inbox_looked.map_or(0, |looked| looked + every)
    }

    pub(super) fn housekeeping(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if self.core.has_refused() {
            self.term.refused_since.get_or_insert(now);
        }
        if self.term.refused_since.is_some_and(|since| now >= since + REFUSED_MS) {
            self.end_term(now, "Redis refused a change; it is tried again".to_owned());
            return None;
        }
        let term = term.clone();
        if now >= self.term.pull_at {
            self.term.pull_at = now + PULL_EVERY_MS;
            // If one is still waiting behind another that fails, it serves as well.
            if self.pulls.iter().all(|pull| pull.by_ms != NO_AGE_MS) {
                self.pulls.push_back(self.unmeant(now));
            }
        }
        if now >= self.term.pulls_at
            && let Some(pull) = self.pulls.pop_front()
        {
            let Pull { from_ms, by_ms, step_ms } = pull;
            let max = if by_ms > 0 { MAX_BATCH } else { 0 };
            return Some((Call::PullIn { term, from_ms, by_ms, max, step_ms }, Outstanding::PullIn(pull)));
        }
        if let Some(call) = self.note_unreadable(now, &term) {
            return Some((call, Outstanding::Job));
        }
        if now >= self.term.foreign_at && self.term.pending_after.is_none() {
            self.term.foreign_at = now + FOREIGN_EVERY_MS;
            return Some((Call::ClaimForeign { term, max: MAX_BATCH }, Outstanding::Job));
        }
        if now >= self.term.trim_at {
            let pause = if self.term.is_wakeup_false { TRIM_EVERY_MS } else { self.term.trim_pause };
            self.term.trim_at = now + pause;
            // While the wake-up cannot be relied on, the stream is looked at as often as it is trimmed.
            self.term.more_entries |= self.term.is_wakeup_false;
            let (retain_ms, ignores) = (self.settings.retain_ms, self.settings.trim_ignores.clone());
            return Some((Call::Trim { term, retain_ms, up_to: self.trim_up_to, ignores }, Outstanding::Job));
        }
        if now >= self.term.expire_at {
            self.term.expire_at = now + EXPIRE_EVERY_MS;
            if self.term.pending_after.is_some() || self.is_held_up {
                self.term.remember_until = now + REMEMBER_MS;
            } else if now >= self.term.remember_until {
                self.core.forget_results();
            }
            let waiting = self.core.waiting_backlogs(now).into_iter();
            self.term.expiring = waiting.map(|endpoint| (endpoint, EntryId::ZERO)).collect();
            let is_trusted = self.clock.is_trusted(now);
            let max_age_ms = if is_trusted { self.settings.dead_max_age_ms } else { NO_AGE_MS };
            let max_count = self.settings.dead_max_count;
            return Some((Call::ExpireDead { term, max_age_ms, max_count, max: MAX_BATCH }, Outstanding::Job));
        }
        if now >= self.term.index_at {
            // Its answer may say sooner.
            self.term.index_at = now + INDEX_EVERY_MS;
            if !self.core.may_settle_more() {
                self.term.index_at = now + INDEX_AFTER_MS;
                return None;
            }
            let call = match &self.term.indexing {
                Indexing::Looks(from) => Call::Unindexed { term, from: from.clone(), look: MAX_BATCH, max: INDEX_MAX },
                Indexing::Sweeps(cursor) => Call::SweepDead { term, cursor: *cursor },
            };
            return Some((call, Outstanding::Job));
        }
        None
    }

    /// What waits for an endpoint that cannot be read does not grow older: a later owner has to know of that.
    fn note_unreadable(&mut self, now: u64, term: &Term) -> Option<Call> {
        if now < self.term.note_at {
            return None;
        }
        if self.term.noting.is_empty() {
            self.term.noting = self.core.unreadable().into();
        }
        let endpoints: Vec<_> = self.term.noting.drain(..self.term.noting.len().min(MAX_BATCH)).collect();
        if self.term.noting.is_empty() {
            self.term.note_at = now + NOTE_EVERY_MS;
        }
        (!endpoints.is_empty()).then(|| Call::NoteUnreadable { term: term.clone(), endpoints, holds_ms: NOTE_HOLDS_MS })
    }

    /// No policy lets anything wait for so long, so such a time comes from a clock that was set back before this owner
    /// came. The call also tells the time to an owner that has nothing else to ask.
    fn unmeant(&self, now: u64) -> Pull {
        let longest_ms = self.core.longest_pause().as_millis() as u64;
        Pull { from_ms: self.redis_now(now) + longest_ms + CLOCKS_MS, by_ms: NO_AGE_MS, step_ms: 0 }
    }
}

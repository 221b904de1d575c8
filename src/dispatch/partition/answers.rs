//! What an answer means, and the way of an entry from the stream into the core.

use super::{
    Answer, BacklogFor, Bytes, Content, CoreHappening, Delivery, DeliveryId, Directory, ENDING_EVERY_MS, EndpointId,
    Entry, EntryId, Envelope, Errand, Event, EventError, Happening, INDEX_AFTER_MS, INDEX_PAUSE_MS, INTO_BACKLOGS,
    Indexing, Item, Kept, LIVELY_MS, LetterFacts, LookFrom, MAX_BATCH, MAX_READ_BYTES, Mode, Origin, Outstanding, Page,
    Partition, Phase, Pull, READ_MAX, ReadFrom, Source, Stage, Staged, StagedEntry, Stamped, TRIM_ROUND, Telling,
    TermState, Traceparent, UnknownMode, VecDeque, Wide, is_operators,
};

impl<D: Directory> Partition<D> {
    pub(super) fn understand(&mut self, now: u64, outstanding: Outstanding, answer: Answer) {
        match (outstanding, answer) {
            (_, Answer::Lost) => self.lose(now),
            (_, Answer::NoGroup) => self.end_term(now, "the consumer group is gone".to_owned()),
            (Outstanding::Acquire { sent }, Answer::Acquired { now_ms: redis_ms, mode }) => {
                self.begin_term(now, sent, redis_ms, mode)
            }
            (Outstanding::Acquire { .. }, Answer::Taken { left_ms, .. } | Answer::Reserved { left_ms, .. }) => {
                self.is_not_given(now + left_ms.clamp(1, self.settings.acquire_every_ms));
            }
            (Outstanding::Acquire { .. }, Answer::Gated { .. }) => {
                self.is_not_given(now + self.settings.acquire_every_ms)
            }
            (Outstanding::Release, _) => self.left(now),
            (_, Answer::Recovered { moved }) => {
                if moved < MAX_BATCH {
                    self.phase = Phase::Opening;
                }
            }
            (_, Answer::Opened { made_after, last_delivered, last_generated, registry, is_set_back }) => {
                if made_after.is_some() || is_set_back {
                    // Anything up to here may have been read, and have records and dead letters. Another stream may yet
                    // give out ids that the one before gave to other events.
                    let is_another = made_after.is_some() && is_set_back;
                    self.term.suspect_until = if is_another { EntryId::MAX } else { last_generated };
                }
                self.opened(now, made_after, last_delivered, registry)
            }
            (_, Answer::Counts { counts, unreadable, cursor }) => {
                counts.iter().for_each(|(endpoint, _)| self.stand(now, endpoint));
                unreadable.iter().for_each(|(endpoint, at_ms)| self.core.noted_unreadable(endpoint, *at_ms));
                self.core.set_unfinished(now, &counts);
                self.phase = if cursor == 0 { Phase::Running } else { Phase::Counting(cursor) };
            }
            (Outstanding::Read(page), Answer::Entries { entries, now_ms, registry }) => {
                self.hear_time(now, now_ms);
                self.stage(now, page, entries, registry);
            }
            (Outstanding::Ask, Answer::Asked { known }) => self.asked(now, &known),
            (Outstanding::Settle, Answer::Settled { now_ms, next_due_ms, counts, group_missing }) => {
                self.term.trim_soon(now);
                self.hear_time(now, now_ms);
                self.term.next_due_ms = next_due_ms;
                self.core.settled(now, self.redis_now(now), counts);
                // One that was split before anything was read has none.
                match group_missing && self.phase != Phase::Routing {
                    true => self.end_term(now, "the consumer group is gone".to_owned()),
                    // A term that settles is a good one: when it ends, the next may begin at once.
                    false => self.failures = 0,
                }
            }
            (Outstanding::Settle, Answer::BadItem { at, why }) => self.core.refused(now, at, &why),
            (_, Answer::Claimed { kept, now_ms, next_due_ms }) => {
                self.hear_time(now, now_ms);
                self.term.next_due_ms = next_due_ms;
                self.admit_records(now, kept, Origin::Claimed);
            }
            (Outstanding::Heads(endpoint), Answer::Heads { kept, now_ms }) => {
                self.hear_time(now, now_ms);
                if kept.is_empty() {
                    self.term.ending_at = now + ENDING_EVERY_MS;
                }
                self.admit_records(now, kept, Origin::Claimed);
                self.core.ends_later(&endpoint);
            }
            (Outstanding::Backlog(endpoint, why), Answer::Backlog { kept, now_ms }) => {
                self.hear_time(now, now_ms);
                self.backlog_seen(now, &endpoint, why, kept);
            }
            (Outstanding::PullIn(pull), Answer::PulledIn { moved, last_ms, set_back_ms, now_ms, next_due_ms }) => {
                self.hear_time(now, now_ms);
                if std::mem::take(&mut self.is_newcomer) && self.clock.is_step(set_back_ms) {
                    self.stepped(now_ms, -(set_back_ms as i64));
                }
                self.term.next_due_ms = next_due_ms;
                if moved == MAX_BATCH {
                    self.pulls.push_front(Pull { from_ms: last_ms, step_ms: 0, ..pull });
                }
            }
            (_, Answer::Requests { requests }) => self.serve_inbox(now, requests),
            (_, Answer::ClaimedForeign { count, lowest }) => {
                if let Some(lowest) = lowest {
                    self.happenings.push(Happening::ForeignClaimed { count });
                    self.term.pending_after = Some(lowest.before());
                    self.term.foreign_at = now;
                }
            }
            (_, Answer::Trimmed { count, .. }) if count > 0 => {
                self.happenings.push(Happening::Trimmed { count });
                self.term.trim_soon(now);
                // A full round: there is more than one call takes.
                if count >= TRIM_ROUND {
                    self.term.trim_at = now;
                }
            }
            (_, Answer::ExpiredDead { count }) if count > 0 => {
                self.happenings.push(Happening::DeadExpired { count });
                self.term.expire_at = now;
            }
            (_, Answer::Trimmed { .. }) => self.term.trim_later(self.settings.retain_ms),
            (_, Answer::ExpiredDead { .. }) => {}
            (_, Answer::Noted { now_ms }) => self.hear_time(now, now_ms),
            (_, Answer::Unindexed { letters, next, dead, indexed }) => {
                self.index(now, letters, next, dead, indexed);
            }
            (_, Answer::SweptDead { count, cursor }) => {
                if count > 0 {
                    self.happenings.push(Happening::DeadIndexed { count });
                }
                self.term.indexing = match cursor {
                    0 => Indexing::Looks(LookFrom::Mark),
                    cursor => Indexing::Sweeps(cursor),
                };
                if cursor > 0 {
                    self.term.index_at = now + INDEX_PAUSE_MS;
                }
            }
            (outstanding, answer) => self.end_term(now, format!("{answer:?} is no answer to {outstanding:?}")),
        }
    }

    /// Somebody else has it, or is to have it: asks again at this time.
    fn is_not_given(&mut self, at: u64) {
        self.is_taken = true;
        self.core.forget_carried();
        // Its due times are now another owner's, which saw the clock step for itself.
        self.pulls.clear();
        // So is what was asked of this one.
        (self.wish, self.is_cancelled) = (None, false);
        self.errands.push(Errand::AbortFlights);
        self.phase = Phase::Waiting { at };
    }

    /// Letters without an index get one. Once none is left, there are as many lines as letters, or an older Herald has
    /// removed some of them; or it wrote some with the times of a clock that was set back.
    fn index(&mut self, now: u64, letters: Vec<Kept>, next: Option<(u64, DeliveryId)>, dead: u64, indexed: u64) {
        if !letters.is_empty() {
            self.happenings.push(Happening::DeadIndexed { count: letters.len() as u64 });
        }
        let is_settled = letters.is_empty();
        for (id, letter) in letters {
            let facts = letter.map_or_else(LetterFacts::unreadable, |letter| LetterFacts::of_record(&letter));
            self.core.push_item(now, Item::Index { id, facts: Box::new(facts) });
        }
        let goes_on = match next {
            Some((at_ms, id)) => Some(Indexing::Looks(LookFrom::After(at_ms, id))),
            None if is_settled && indexed > dead => Some(Indexing::Sweeps(0)),
            None if is_settled && indexed < dead && !self.term.has_looked_at_all => {
                self.term.has_looked_at_all = true;
                Some(Indexing::Looks(LookFrom::Start))
            }
            None => None,
        };
        match (&goes_on, is_settled) {
            (Some(_), _) => self.term.index_at = now + INDEX_PAUSE_MS,
            (None, false) => self.term.index_at = now + INDEX_AFTER_MS,
            (None, true) => {}
        }
        self.term.indexing = goes_on.unwrap_or(Indexing::Looks(LookFrom::Mark));
    }

    pub(super) fn begin_term(&mut self, now: u64, sent: u64, redis_ms: u64, mode: Result<Mode, UnknownMode>) {
        self.asked_at = sent;
        self.is_newcomer |= self.clock.is_new();
        self.hear_time(now, redis_ms);
        (self.is_taken, self.is_cancelled) = (false, false);
        self.lease.begin(sent);
        self.term = TermState::new(now, redis_ms, self.settings.budgets);
        self.happenings.extend(self.lease.term().cloned().map(|term| Happening::TermBegan { term }));
        match mode {
            Ok(mode) => {
                let is_routed = mode != Mode::Worked || self.settings.parts > 1 || self.wish.is_some();
                self.phase = if is_routed { Phase::Routing } else { Phase::Recovering };
                self.mode = Some(mode);
            }
            Err(error) => {
                self.end_term(now, error.to_string());
                // A newer Herald may take the lease before this one asks again.
                self.phase = Phase::Waiting { at: now + 2 * self.settings.lease_ms };
            }
        }
    }

    pub(super) fn opened(&mut self, now: u64, made_after: Option<EntryId>, last_delivered: EntryId, registry: String) {
        if let Some(after) = made_after {
            self.happenings.push(Happening::GroupMade { after });
        }
        let found = self.directory.view().id.unwrap_or_default();
        if found != registry {
            self.happenings.push(Happening::OtherRegistry { bound: registry.clone(), found });
        }
        self.bound = Some(registry);
        self.registry_changed(now, None);
        self.confirm_registry();
        self.term.last_read = last_delivered;
        self.term.pending_until = last_delivered;
        self.phase = Phase::Counting(0);
    }

    /// `last_change` is the registry's last change, read after the entries.
    pub(super) fn stage(&mut self, now: u64, page: Page, entries: Vec<Entry>, last_change: Option<Stamped>) {
        let Page { from, max, of_pass, was_woken } = page;
        // Read before the endpoints are: if the follower moves on in between, no harm is done.
        let known = self.directory.view().last;
        if self.is_other_registry() {
            // The registry was exchanged while they were on their way, so they are not owed to its endpoints. They stay
            // pending.
            return self.end_term(now, "another registry stands where ours was".to_owned());
        }
        if from == ReadFrom::New && entries.first().is_some_and(|first| first.id <= self.term.last_read) {
            // What comes at or before the last entry read is not new: an operator has set the group back.
            self.term.suspect_until = self.term.suspect_until.max(self.term.last_read);
            self.core.forget_settled();
        }
        let last = entries.last().map(|entry| entry.id);
        let mut bytes = 0;
        // Left pending by an owner before, or by a stranger.
        let is_taken_up = matches!(from, ReadFrom::Pending(_)) && !of_pass;
        let known_until =
            if of_pass { self.term.suspect_until.max(self.term.pending_until) } else { self.term.suspect_until };
        let suspect = is_taken_up || entries.first().is_some_and(|first| first.id <= known_until);
        let (count, mut arrivals) = (entries.len(), VecDeque::with_capacity(entries.len()));
        let mut wide = Wide::default();
        for entry in entries {
            if self.core.knows_entry(entry.id) {
                continue;
            }
            bytes += match &entry.content {
                Content::Event { body, .. } => body.len(),
                Content::NoEvent { preview } => preview.len(),
                Content::Trimmed => 0,
            };
            let arrival =
                self.understand_entry(now, entry, &mut wide).map(|arrival| StagedEntry { suspect, ..arrival });
            arrivals.extend(arrival.filter(|a| !of_pass || self.term.deferral.is_wanted(&a.event.account, a.entry)));
        }
        match from {
            ReadFrom::Pending(_) if of_pass => self.term.deferral.read_up_to(last),
            ReadFrom::Pending(_) => {
                self.term.pending_until =
                    last.map_or(self.term.pending_until, |last| last.max(self.term.pending_until));
                self.term.pending_after = last;
                // What a stranger read counts as read by us, once it was taken over.
                self.term.last_read = last.map_or(self.term.last_read, |last| last.max(self.term.last_read));
            }
            ReadFrom::New => {
                self.term.is_wakeup_false = count == 0 && was_woken;
                if self.term.is_wakeup_false {
                    self.term.foreign_at = now;
                }
                self.term.last_read = last.unwrap_or(self.term.last_read);
                self.term.more_entries = count == max || bytes >= MAX_READ_BYTES / 2;
                self.term.keeps_up = !self.term.more_entries;
                if count > 0 {
                    let is_lively = now < self.term.found_at + LIVELY_MS;
                    self.term.lively_until = if is_lively { now + LIVELY_MS } else { now };
                    (self.term.found_at, self.term.was_woken) = (now, false);
                }
            }
        }
        if count > 0 {
            self.happenings.push(Happening::Read { entries: count, is_again: of_pass });
        }
        // What was accepted after a change was answered is owed as the change says, so the snapshot must include that
        // change.
        let unconfirmed = !arrivals.is_empty() && last_change != Some(known);
        let source = if of_pass { Source::Pass } else { Source::Stream };
        let stage = if unconfirmed { Stage::Unconfirmed } else { Stage::Ready };
        let staged = Staged::new(arrivals, source, stage);
        self.term.staged = (!staged.arrivals.is_empty()).then_some(staged);
        if unconfirmed {
            self.confirm_registry();
        }
        // Where Redis must be asked first, the next call does it: see `choosing`.
        self.admit_if_known(now);
    }

    /// An event goes on into the core; anything else is dealt with at once.
    fn understand_entry(&mut self, now: u64, entry: Entry, wide: &mut Wide) -> Option<StagedEntry> {
        let envelope = match &entry.content {
            Content::Event { traceparent, account_sequence, .. } => Envelope {
                traceparent: traceparent.as_deref().and_then(Traceparent::read),
                account_sequence: *account_sequence,
            },
            Content::NoEvent { .. } | Content::Trimmed => Envelope::default(),
        };
        let (body, error, cut) = match entry.content {
            Content::Trimmed => {
                self.happenings.push(Happening::TrimmedWhilePending { entry: entry.id });
                self.core.open_entry(now, entry.id, 0);
                return None;
            }
            Content::NoEvent { preview } => (preview, "the entry has no field \"event\"".to_owned(), true),
            Content::Event { body, full_bytes, .. } if full_bytes > body.len() => {
                (body, EventError::TooLarge { bytes: full_bytes }.to_string(), true)
            }
            Content::Event { body, .. } => match self.parse(body.clone()) {
                Ok(event) => {
                    if self.telling != Telling::default() {
                        self.happenings.push(Happening::Arrived {
                            entry: entry.id,
                            event: event.id.clone(),
                            intent: event.intent.clone(),
                            account: event.account.clone(),
                            traceparent: envelope.traceparent.clone(),
                            bytes: event.body().len(),
                            at_ms: self.redis_now(now),
                        });
                    }
                    let (endpoints, unknown) = self.owed_by(&event, entry.only.as_ref(), wide);
                    return Some(StagedEntry {
                        entry: entry.id,
                        event,
                        envelope,
                        place: entry.place,
                        only: entry.only,
                        endpoints,
                        unknown,
                        next: 0,
                        is_open: false,
                        is_in_parts: false,
                        waits_since: None,
                        suspect: false,
                    });
                }
                Err(error) => (body, error.to_string(), false),
            },
        };
        self.happenings.push(Happening::Quarantined { entry: entry.id, error: error.clone() });
        let keep_bytes = Some(self.settings.quarantine_bytes);
        self.core.push_item(now, Item::Quarantine { entry: entry.id, body, cut, error, envelope, keep_bytes });
        self.core.open_entry(now, entry.id, 0);
        None
    }

    fn parse(&self, body: Bytes) -> Result<Event, EventError> {
        let mut event = Event::parse(body)?;
        if !self.settings.accounts.has(&event.account) && !is_operators(&event.account) {
            event.note_misplaced();
        }
        match self.settings.strict_events {
            true => event.require_familiar().map(|()| event),
            false => Ok(event),
        }
    }

    /// What has a record goes into the core at once, not by slices: no more is asked for than there is room.
    pub(super) fn admit_records(&mut self, now: u64, kept: Vec<Kept>, origin: Origin) {
        let redis_ms = self.redis_now(now);
        for (id, record) in kept {
            if let Some(delivery) = self.read_record(id, record) {
                self.stand(now, &delivery.id.endpoint);
                self.core.admit_kept(now, redis_ms, delivery, origin);
            }
        }
    }

    pub(super) fn backlog_seen(&mut self, now: u64, endpoint: &EndpointId, why: BacklogFor, kept: Vec<Kept>) {
        let last = kept.last().map(|(id, _)| id.entry);
        let redis_ms = self.redis_now(now);
        if why == BacklogFor::Sending {
            self.core.looked_at_backlog(now, endpoint, last);
            return self.admit_records(now, kept, Origin::Backlog);
        }
        let mut is_young = false;
        for (id, record) in kept {
            let Some(delivery) = self.read_record(id, record) else { continue };
            if self.core.is_expired(&delivery, redis_ms) {
                self.core.admit_kept(now, redis_ms, delivery, Origin::Backlog);
            } else {
                is_young |= delivery.redelivered.is_empty();
            }
        }
        // The oldest come first: everything behind a record that is young in itself is young too. A redelivered one is
        // young among old ones.
        if let (false, Some(last)) = (is_young, last) {
            self.term.expiring.push_front((endpoint.clone(), last));
        }
    }

    /// None, and reported, where there is none that can be read.
    pub(super) fn read_record(&mut self, id: DeliveryId, record: Option<Bytes>) -> Option<Delivery> {
        let why = match record.map(|record| Delivery::from_record(&record)) {
            Some(Ok(delivery)) if delivery.id == id => return Some(delivery),
            Some(Ok(_)) => "its record is of another delivery".to_owned(),
            Some(Err(error)) => error.to_string(),
            None => "it has no record".to_owned(),
        };
        self.happenings.push(Happening::Core(CoreHappening::Unreadable { id, why }));
        None
    }
}

/// Whether a full read with the same share of deliveries for backlogs that are being drained would make those grow.
pub(super) fn would_feed_backlogs(into_backlogs: usize, count: usize) -> bool {
    into_backlogs * READ_MAX > count * INTO_BACKLOGS
}

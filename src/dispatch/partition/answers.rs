//! What an answer means, and the way of an entry from the stream into the core.

use super::*;

impl<D: Directory> Partition<D> {
    pub(super) fn understand(&mut self, now: u64, outstanding: Outstanding, answer: Answer) {
        match (outstanding, answer) {
            (_, Answer::Lost) => self.end_term(now, "the lease is not ours any more".to_owned()),
            (_, Answer::NoGroup) => self.end_term(now, "the consumer group is gone".to_owned()),
            (Outstanding::Acquire { sent }, Answer::Acquired { now_ms }) => self.begin_term(now, sent, now_ms),
            (Outstanding::Acquire { .. }, Answer::Taken { left_ms, .. }) => {
                self.is_taken = true;
                self.core.forget_carried();
                // Its due times are another's now, who saw the clock step by himself.
                self.pulls.clear();
                self.errands.push(Errand::AbortFlights);
                self.phase = Phase::Waiting { at: now + left_ms.clamp(1, ACQUIRE_EVERY_MS) };
            }
            (Outstanding::Release, _) => {
                self.term = None;
                self.phase = Phase::Stopped;
            }
            (_, Answer::Recovered { moved }) => {
                if moved < MAX_BATCH {
                    self.phase = Phase::Opening;
                }
            }
            (_, Answer::Opened { made_after, last_delivered, last_generated, registry, is_set_back }) => {
                if made_after.is_some() || is_set_back {
                    // Anything up to here may have been read, and have records and dead letters. Another stream has yet
                    // to give out ids that the one before gave to other events.
                    let is_another = made_after.is_some() && is_set_back;
                    self.suspect_until = if is_another { EntryId::MAX } else { last_generated };
                }
                self.opened(now, made_after, last_delivered, registry)
            }
            (_, Answer::Counts { counts, cursor }) => {
                counts.iter().for_each(|(endpoint, _)| self.stand(now, endpoint));
                self.core.count(now, &counts);
                self.phase = if cursor == 0 { Phase::Running } else { Phase::Counting(cursor) };
            }
            (Outstanding::Read(page), Answer::Entries { entries, now_ms, registry }) => {
                self.hear_time(now, now_ms);
                self.stage(now, page, entries, registry);
            }
            (Outstanding::Ask, Answer::Asked { known }) => self.asked(now, &known),
            (Outstanding::Settle, Answer::Settled { now_ms, next_due_ms, counts, group_missing }) => {
                self.hear_time(now, now_ms);
                self.next_due_ms = next_due_ms;
                self.core.settled(now, self.redis_now(now), counts);
                match group_missing {
                    true => self.end_term(now, "the consumer group is gone".to_owned()),
                    // A term that settles is a good one: when it ends, the next may begin at once.
                    false => self.failures = 0,
                }
            }
            (Outstanding::Settle, Answer::BadItem { at, why }) => self.core.refused(now, at, &why),
            (_, Answer::Claimed { kept, now_ms, next_due_ms }) => {
                self.hear_time(now, now_ms);
                self.next_due_ms = next_due_ms;
                self.admit(now, kept, Origin::Claimed);
            }
            (Outstanding::Heads(endpoint), Answer::Heads { kept, now_ms }) => {
                self.hear_time(now, now_ms);
                if kept.is_empty() {
                    self.ending_at = now + ENDING_EVERY_MS;
                }
                self.admit(now, kept, Origin::Claimed);
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
                self.next_due_ms = next_due_ms;
                if moved == MAX_BATCH {
                    self.pulls.push_front(Pull { from_ms: last_ms, step_ms: 0, ..pull });
                }
            }
            (_, Answer::Requests { requests }) => self.serve(now, requests),
            (_, Answer::ClaimedForeign { count, lowest }) => {
                if let Some(lowest) = lowest {
                    self.happenings.push(Happening::ForeignClaimed { count });
                    self.pending_after = Some(lowest.before());
                    self.foreign_at = now;
                }
            }
            (_, Answer::Trimmed { count, .. }) if count > 0 => {
                self.happenings.push(Happening::Trimmed { count });
                // A full round: there is more than one call takes.
                if count >= TRIM_ROUND {
                    self.trim_at = now;
                }
            }
            (_, Answer::ExpiredDead { count }) if count > 0 => {
                self.happenings.push(Happening::DeadExpired { count });
                self.expire_at = now;
            }
            (_, Answer::Trimmed { .. } | Answer::ExpiredDead { .. }) => {}
            (outstanding, answer) => self.end_term(now, format!("{answer:?} is no answer to {outstanding:?}")),
        }
    }

    pub(super) fn begin_term(&mut self, now: u64, sent: u64, now_ms: u64) {
        self.asked_at = sent;
        self.is_newcomer |= self.clock.is_new();
        self.hear_time(now, now_ms);
        (self.pull_at, self.pulls_at) = (now, now);
        self.is_taken = false;
        self.term = self.own_values.back().cloned();
        self.lease_until = self.lease_end(sent);
        self.renew_at = sent + self.settings.lease_ms / 4;
        self.renewing = None;
        (self.began_at, self.refused_since, self.is_confirmed) = (now, None, false);
        self.phase = Phase::Recovering;
        // Whatever was claimed is due now.
        self.next_due_ms = Some(now_ms);
        self.pending_after = Some(EntryId::ZERO);
        (self.more_entries, self.more_requests) = (true, true);
        self.inbox_after = EntryId::ZERO;
        self.suspect_until = EntryId::ZERO;
        self.expiring.clear();
        (self.foreign_at, self.trim_at, self.inbox_at, self.ending_at) = (now, now + TRIM_EVERY_MS, now, now);
        self.expire_at = now + EXPIRE_EVERY_MS;
        self.happenings.push(Happening::TermBegan);
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
        self.last_read = last_delivered;
        self.pending_until = last_delivered;
        self.phase = Phase::Counting(0);
    }

    /// `version` is the registry's, read after the entries.
    pub(super) fn stage(&mut self, now: u64, page: Page, entries: Vec<Entry>, version: Option<u64>) {
        let Page { from, max, of_pass, was_woken } = page;
        // Looked at before the endpoints are: a follower that goes on between the two is no harm.
        let known = self.directory.view().version;
        if self.is_other_registry() {
            // Exchanged while they were on their way: its endpoints are not who they are owed to. They stay pending.
            return self.end_term(now, "another registry stands where ours was".to_owned());
        }
        if from == ReadFrom::New && entries.first().is_some_and(|first| first.id <= self.last_read) {
            // Behind what was read there is nothing new: an operator has set the group back.
            self.suspect_until = self.suspect_until.max(self.last_read);
        }
        let last = entries.last().map(|entry| entry.id);
        let mut bytes = 0;
        let is_taken_up = matches!(from, ReadFrom::Pending(_)) && !of_pass;
        let known_until = if of_pass { self.suspect_until.max(self.pending_until) } else { self.suspect_until };
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
            let arrival = self.understand_entry(now, entry, &mut wide).map(|arrival| Arrival { suspect, ..arrival });
            arrivals.extend(arrival.filter(|a| !of_pass || self.deferral.is_wanted(&a.event.account, a.entry)));
        }
        match from {
            ReadFrom::Pending(_) if of_pass => self.deferral.read_up_to(last),
            ReadFrom::Pending(_) => {
                self.pending_until = last.map_or(self.pending_until, |last| last.max(self.pending_until));
                self.pending_after = last;
                // What a stranger read is behind us too, once it was taken over.
                self.last_read = last.map_or(self.last_read, |last| last.max(self.last_read));
            }
            ReadFrom::New => {
                self.is_wakeup_false = count == 0 && was_woken;
                if self.is_wakeup_false {
                    self.foreign_at = now;
                }
                self.last_read = last.unwrap_or(self.last_read);
                self.more_entries = count == max || bytes >= MAX_READ_BYTES / 2;
                self.keeps_up = !self.more_entries;
                if count > 0 {
                    (self.found_at, self.was_woken) = (now, false);
                }
            }
        }
        if count > 0 && !of_pass {
            self.happenings.push(Happening::Read { entries: count });
        }
        // What was accepted after a change was answered is owed to whom the change says, so the snapshot must have it.
        let unconfirmed = !arrivals.is_empty() && version != Some(known);
        let source = if of_pass { Source::Pass } else { Source::Stream };
        let staged = Staged::new(arrivals, source, unconfirmed);
        self.staged = (!staged.arrivals.is_empty()).then_some(staged);
        if unconfirmed {
            self.confirm_registry();
        }
        self.admit_if_known(now);
    }

    /// What is an event arrives; what is none is dealt with at once.
    fn understand_entry(&mut self, now: u64, entry: Entry, wide: &mut Wide) -> Option<Arrival> {
        let traceparent = match &entry.content {
            Content::Event { traceparent, .. } => traceparent.as_deref().and_then(Traceparent::read),
            Content::NoEvent { .. } | Content::Trimmed => None,
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
                    let endpoints = self.endpoints_for(&event, wide);
                    let unknown = self.directory.unknown_of(&event.account);
                    return Some(Arrival {
                        entry: entry.id,
                        event,
                        traceparent,
                        place: entry.place,
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
        self.core.also(now, Item::Quarantine { entry: entry.id, body, cut, error, traceparent, keep_bytes });
        self.core.open_entry(now, entry.id, 0);
        None
    }

    fn parse(&self, body: Bytes) -> Result<Event, EventError> {
        let event = Event::parse(body)?;
        match self.settings.strict_events {
            true => event.require_familiar().map(|()| event),
            false => Ok(event),
        }
    }

    pub(super) fn admit(&mut self, now: u64, kept: Vec<Kept>, origin: Origin) {
        let redis_ms = self.redis_now(now);
        for (id, record) in kept {
            if let Some(delivery) = self.readable(id, record) {
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
            return self.admit(now, kept, Origin::Backlog);
        }
        let mut is_young = false;
        for (id, record) in kept {
            let Some(delivery) = self.readable(id, record) else { continue };
            if self.core.is_expired(&delivery, redis_ms) {
                self.core.admit_kept(now, redis_ms, delivery, Origin::Backlog);
            } else {
                is_young |= delivery.redelivered.is_empty();
            }
        }
        // The oldest stand first: behind one that is young by itself all are. One that was redelivered is young among
        // the old.
        if let (false, Some(last)) = (is_young, last) {
            self.expiring.push_front((endpoint.clone(), last));
        }
    }

    pub(super) fn readable(&mut self, id: DeliveryId, record: Option<Bytes>) -> Option<Delivery> {
        let why = match record.map(|record| Delivery::from_record(&record)) {
            Some(Ok(delivery)) if delivery.id == id => return Some(delivery),
            Some(Ok(_)) => "its record is of another delivery".to_owned(),
            Some(Err(error)) => error.to_string(),
            None => "it has no record".to_owned(),
        };
        self.happenings.push(Happening::Core(Note::Unreadable { id, why }));
        None
    }
}

/// Whether a full read like this one, with so many of its deliveries for backlogs that are drained, would make them grow.
pub(super) fn would_feed_backlogs(into_backlogs: usize, count: usize) -> bool {
    into_backlogs * READ_MAX > count * INTO_BACKLOGS
}

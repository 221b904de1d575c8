//! The way of entries that were read into the core, a slice at a time: between two slices the worker looks at its lease,
//! its calls and its attempts. What an account cannot take now waits in the stream: see `deferral`.

use super::{
    AccountId, Call, Delivery, DeliveryId, Directory, Happening, HashMap, HashSet, Known, Outstanding, Partition,
    Question, Source, Stage, Staged, StagedEntry, Term, answers,
};

/// Deliveries that are admitted at once, about a millisecond's work.
pub const SLICE: usize = 256;

/// Deliveries of a slice that are asked about, at most. Each costs some 10 µs of Redis, and everybody waits for that.
const MAX_QUESTIONS: usize = 64;

/// An entry for more endpoints than this lets others pass after each slice of it.
pub(super) const WIDE: usize = MAX_QUESTIONS;

/// The next slice of what is staged.
#[derive(Debug, Default)]
pub(super) struct Slice {
    /// What Redis must be asked about, in the order of arrival.
    pub questions: Vec<Question>,
    /// Deliveries in it, including those that need no question.
    pub deliveries: usize,
}

impl<D: Directory> Partition<D> {
    /// Admits the next slice of what is staged, or returns it if Redis must first be asked about some of it.
    pub(super) fn admit_if_known(&mut self, now: u64) -> Option<Slice> {
        let slice = self.ready_slice()?;
        if !slice.questions.is_empty() {
            return Some(slice);
        }
        self.admit_slice(now, slice, Vec::new());
        None
    }

    /// The questions of the next slice of what is staged; what comes before it and needs none is admitted. The questions
    /// are put together only now, when no settlement is on its way, and no other call is made until they are answered:
    /// nothing may be settled between a question about chains and the admission that relies on its answer.
    pub(super) fn ask(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        let asks = |slice: &Slice| !slice.questions.is_empty();
        let slice = self.admit_if_known(now).or_else(|| self.ready_slice().filter(asks))?;
        let staged = self.term.staged.as_mut()?;
        let suspect = staged.arrivals.iter().any(|arrival| arrival.suspect);
        let call = Call::Ask { term: term.clone(), deliveries: slice.questions.clone(), suspect };
        staged.stage = Stage::Asking(slice);
        Some((call, Outstanding::Ask))
    }

    fn ready_slice(&self) -> Option<Slice> {
        let staged = self.term.staged.as_ref()?;
        let is_ready = matches!(staged.stage, Stage::Ready) && self.has_room();
        is_ready.then(|| self.next_slice())
    }

    /// What a stopping worker still admits belongs to entries that were begun, and gets its records at once, slice by
    /// slice. What else is in memory, of which nothing was sent, must not keep it out.
    pub(super) fn has_room(&self) -> bool {
        self.records_until.is_some() || self.core.has_room()
    }

    fn has_share(&self, account: &AccountId) -> bool {
        self.records_until.is_some() || self.core.has_share(account)
    }

    /// Good only until the next settlement is confirmed.
    fn next_slice(&self) -> Slice {
        let mut slice = Slice::default();
        for arrival in self.term.staged.iter().flat_map(|staged| &staged.arrivals) {
            let source = self.term.staged.as_ref().map(|staged| &staged.source);
            if !arrival.is_open && source.is_some_and(|source| self.term.deferral.holds(&arrival.event.account, source))
            {
                continue;
            }
            for endpoint in arrival.owed_to().skip(arrival.next) {
                if slice.deliveries == SLICE || slice.questions.len() == MAX_QUESTIONS {
                    return slice;
                }
                slice.deliveries += 1;
                if arrival.suspect || self.core.must_ask(endpoint) {
                    let id = DeliveryId { entry: arrival.entry, endpoint: endpoint.clone() };
                    slice.questions.push((id, arrival.event.intent.clone(), arrival.event.id.clone()));
                }
            }
        }
        slice
    }

    pub(super) fn asked(&mut self, now: u64, answers: &[Known]) {
        let Some(slice) = self.term.staged.as_mut().and_then(Staged::take_asked) else { return };
        self.admit_slice(now, slice, answers.to_vec());
    }

    /// Called right when the questions are answered, so no settlement was confirmed in between.
    fn admit_slice(&mut self, now: u64, slice: Slice, known: Vec<Known>) {
        let Some(mut staged) = self.term.staged.take() else { return };
        // What is owed to nobody, and what is held, is dealt with in passing.
        let mut left = slice.deliveries.max(1);
        let mut known: HashMap<DeliveryId, Known> = slice.questions.into_iter().map(|(id, ..)| id).zip(known).collect();
        // Accounts that were deferred within this slice.
        let mut stuck = HashSet::default();
        while left > 0
            && self.has_room()
            && let Some(mut arrival) = staged.arrivals.pop_front()
        {
            // An entry that was to be asked about and stays behind still belongs to this slice, because what comes after it
            // was not asked about. One of an account that was held before was passed over when the slice was made.
            let was_held = self.term.deferral.holds(&arrival.event.account, &staged.source);
            let account = arrival.event.account.clone();
            if self.defers(now, &arrival, &staged.source) {
                if stuck.contains(&account) || !was_held {
                    left = left.saturating_sub(arrival.left());
                    stuck.insert(account);
                }
                self.wait(now, arrival, &mut staged);
                continue;
            }
            self.open(now, &mut arrival, &staged.source);
            while left > 0 && arrival.left() > 0 && self.has_share(&account) {
                left -= 1;
                staged.admitted += 1;
                staged.put_off += usize::from(self.admit_one(now, &arrival, &mut known));
                arrival.next += 1;
            }
            if arrival.left() == 0 && arrival.is_in_parts {
                self.term.deferral.parts_ended();
            }
            if arrival.left() > WIDE && self.has_share(&account) && self.term.deferral.may_be_in_parts() {
                arrival.is_in_parts = true;
                self.wait(now, arrival, &mut staged);
                self.term.deferral.relieve([account]);
            } else if arrival.left() > 0 && self.has_share(&account) {
                staged.arrivals.push_front(arrival);
            } else if arrival.left() > 0 {
                left = left.saturating_sub(arrival.left());
                stuck.insert(account.clone());
                // While it waits for room, another entry may be admitted in parts.
                if std::mem::take(&mut arrival.is_in_parts) {
                    self.term.deferral.parts_ended();
                }
                self.core.wakes_with_room(&account);
                self.wait(now, arrival, &mut staged);
            }
        }
        match staged.arrivals.is_empty() {
            true => self.admitted_all(now, staged),
            false => self.term.staged = Some(staged),
        }
    }

    /// An entry waits, or the part of one that is not admitted yet. What came from memory goes back there, with all that is
    /// behind it.
    fn wait(&mut self, now: u64, arrival: StagedEntry, staged: &mut Staged) {
        let is_in_memory = match &staged.source {
            Source::Memory(account) => {
                let arrivals = std::iter::once(arrival).chain(staged.arrivals.drain(..));
                self.term.deferral.put_back(account, arrivals);
                true
            }
            Source::Stream | Source::Pass if arrival.is_open => {
                self.term.deferral.rest(now, arrival);
                true
            }
            Source::Stream | Source::Pass => self.term.deferral.defer(now, arrival, &staged.source),
        };
        match is_in_memory {
            true => staged.in_memory += 1,
            false => staged.put_off += 1,
        }
    }

    fn admitted_all(&mut self, now: u64, staged: Staged) {
        let Staged { source, admitted, in_memory, put_off, .. } = staged;
        let all = admitted + in_memory + put_off;
        match source {
            // The account may be able to take what it has beyond that.
            Source::Memory(account) if in_memory == 0 => self.term.deferral.relieve([account]),
            Source::Memory(_) => {}
            Source::Stream | Source::Pass if all == 0 => {}
            Source::Stream | Source::Pass => {
                self.term.feeds_backlogs = answers::would_feed_backlogs(put_off, (admitted + in_memory).max(put_off));
                if source == Source::Stream {
                    if admitted == 0 {
                        self.term.deferral.read_in_vain(now);
                    }
                    self.term.reads_past = admitted == 0 && self.term.deferral.pauses_until().is_none();
                }
            }
        }
    }

    /// Whether an entry waits for now.
    fn defers(&mut self, now: u64, arrival: &StagedEntry, source: &Source) -> bool {
        let account = &arrival.event.account;
        let is_held = self.term.deferral.holds(account, source);
        // The rest of an entry that was begun does not have to wait again as if it were at its beginning.
        if arrival.is_open || arrival.left() == 0 && !is_held {
            return false;
        }
        if is_held {
            return true;
        }
        arrival.endpoints.iter().take(SLICE).for_each(|endpoint| self.stand_as(now, endpoint));
        // What exceeds the room for waiting goes into records, whatever they cost; so does what has waited long, even under
        // pressure. Nothing of the stream behind a waiting entry is trimmed, whatever its account, so otherwise the
        // pressure would never end.
        let is_again = *source != Source::Stream;
        let overflows =
            is_again && (self.term.deferral.is_full() || self.term.deferral.has_waited_long(now, arrival, source));
        let is_too_wide = arrival.left() > WIDE && !self.term.deferral.may_be_in_parts();
        if overflows || !is_too_wide && self.core.takes(now, account, arrival.owed_to(), self.is_under_pressure) {
            return false;
        }
        match is_too_wide {
            true => self.term.deferral.awaits_end_of_parts(account),
            false => self.core.wakes_with_room(account),
        }
        true
    }

    fn open(&mut self, now: u64, arrival: &mut StagedEntry, source: &Source) {
        if std::mem::replace(&mut arrival.is_open, true) {
            return;
        }
        if arrival.left() == 0 {
            let account = arrival.event.account.clone();
            let why = match self.directory.endpoints_of(&account).is_empty() {
                true => "its account has no endpoint",
                false => "no endpoint of its account wants such events",
            };
            self.core.owed_to_nobody(now, arrival.entry, &arrival.event, why);
            self.happenings.push(Happening::NoEndpoint {
                entry: arrival.entry,
                event: arrival.event.id.clone(),
                account,
            });
        }
        // Reported here and not where it is read, because what is deferred may be read again.
        let account = &arrival.event.account;
        let (entry, event) = (arrival.entry, &arrival.event.id);
        let new = |novelty| Happening::Novelty { entry, event: event.clone(), account: account.clone(), novelty };
        self.happenings.extend(arrival.event.novelties.iter().cloned().map(new));
        match source {
            Source::Stream => self.term.deferral.passes(now, &arrival.event.account),
            Source::Pass | Source::Memory(_) => self.term.deferral.admitted(now, &arrival.event.account),
        }
        self.core.open_entry(now, arrival.entry, arrival.left() as u32);
    }

    /// Returns whether it joins a backlog that is being drained.
    fn admit_one(&mut self, now: u64, arrival: &StagedEntry, known: &mut HashMap<DeliveryId, Known>) -> bool {
        self.term.admitted_at = now;
        let (redis_ms, since_ms) = (self.redis_now(now), self.clock.birth(now));
        let id = match arrival.endpoints.get(arrival.next) {
            Some(endpoint) => {
                self.stand_as(now, endpoint);
                endpoint.id.clone()
            }
            None => {
                let id = arrival.unknown[arrival.next - arrival.endpoints.len()].clone();
                self.stand_unknown(now, &id);
                id
            }
        };
        let drains = self.core.drains_backlog(now, &id);
        let mut delivery = Delivery::new(arrival.entry, id, &arrival.event, true, since_ms);
        delivery.is_unsure = arrival.next >= arrival.endpoints.len();
        delivery.envelope = arrival.envelope.clone();
        delivery.place = arrival.place;
        delivery.is_asked_for = arrival.only.is_some();
        let known = known.remove(&delivery.id).unwrap_or_default();
        self.core.admit_fresh(now, redis_ms, delivery, known);
        drains
    }
}

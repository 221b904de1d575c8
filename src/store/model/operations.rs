//! What the scripts of operations mean: who has what under way, and what became of it. Each of them takes and answers what
//! [`Work`](crate::store::operations::work::Work) and [`Operations`](crate::store::operations::Operations) do.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{Asking, Model};
use crate::{
    facts::{
        id::{DeliveryId, EndpointId, EntryId, OperationId},
        operation::{Change, Counts, Exception, Kind, Operation, Plan, Rate, State},
    },
    store::{
        operations::{
            MAX_ENDED, MAX_OPEN, MAX_PLANNED, OperationError, PLANNED_FOR_MS, Verb,
            erase::Erased,
            work::{Became, Booked, End, Lost, PATIENCE_MS, Replaying, Sent, Taken, Taking},
        },
        protocol::{Asked, GROUP, NO_SUCH_LETTER, TAKEN_BEFORE, Term},
        queries::RawEvent,
        requests::MAX_WAITING,
    },
};

/// Operations that one call forgets, and how much of a reason is kept.
const MAX_FORGOTTEN: usize = 20;
const MAX_WHY_BYTES: usize = 300;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Operations {
    pub all: BTreeMap<OperationId, Worked>,
    /// Those that wait to be started, that are worked on, and that have ended: each with the time of that.
    pub planned: BTreeMap<OperationId, u64>,
    pub open: BTreeMap<OperationId, u64>,
    pub ended: BTreeMap<OperationId, u64>,
    pub claims: BTreeMap<DeliveryId, Claim>,
}

/// An operation, and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Worked {
    pub operation: Operation,
    pub taken: u64,
    pub is_laid: bool,
    pub places: BTreeMap<EndpointId, String>,
    /// What is still to be sent now, in the order of the texts.
    pub ids: BTreeSet<String>,
    /// What was not simply done.
    pub results: Vec<Exception>,
}

/// Who has a delivery under way, and when its letter died.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    pub by: OperationId,
    pub died_ms: u64,
    pub stands: Claimed,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Claimed {
    /// The request that waits for the owner.
    Asked(EntryId),
    Granted {
        since_ms: u64,
    },
    Replayed,
}

impl Model {
    /// Whether it is new.
    pub fn plan(&mut self, id: &OperationId, plan: &Plan, rate: Rate) -> bool {
        if self.operations.all.contains_key(id) {
            return false;
        }
        let operation = Operation {
            id: id.clone(),
            plan: plan.clone(),
            state: State::Planned,
            rate,
            counts: Counts::default(),
            started: None,
            changed: None,
            ended_ms: None,
            waits: Vec::new(),
            audit: None,
        };
        let (places, results) = (BTreeMap::new(), Vec::new());
        let worked = Worked { operation, taken: 0, is_laid: false, places, ids: BTreeSet::new(), results };
        let operations = &mut self.operations;
        operations.all.insert(id.clone(), worked);
        operations.planned.insert(id.clone(), self.now_ms);
        let limit = self.now_ms.saturating_sub(PLANNED_FOR_MS);
        let old = oldest(&operations.planned).into_iter().take_while(|(at, _)| *at <= limit);
        let old: Vec<OperationId> = old.take(MAX_FORGOTTEN).map(|(_, id)| id).collect();
        operations.planned.retain(|id, _| !old.contains(id));
        keep_newest(&mut operations.all, &mut operations.planned, MAX_PLANNED);
        true
    }

    pub fn change(&mut self, id: &OperationId, verb: Verb, who: &Change) -> Result<State, OperationError> {
        let (now, open) = (self.now_ms, self.operations.open.len() as u64);
        let missing = || OperationError::Missing(id.clone());
        let operation = &mut self.operations.all.get_mut(id).ok_or_else(missing)?.operation;
        let before = operation.state;
        let after = match (verb, before) {
            (Verb::Start(_), State::Planned) => State::Running,
            (Verb::Pause, State::Running | State::Paused) => State::Paused,
            (Verb::Resume, State::Paused | State::Running) => State::Running,
            (Verb::Cancel, State::Planned) => State::Cancelled,
            (Verb::Cancel, State::Running | State::Paused | State::Cancelling) => State::Cancelling,
            (Verb::Rate(_), State::Planned | State::Running | State::Paused) => before,
            (_, state) => return Err(OperationError::Refused { id: id.clone(), state }),
        };
        match verb {
            Verb::Rate(rate) => {
                operation.rate = rate;
                return Ok(after);
            }
            Verb::Start(_) if open >= MAX_OPEN => return Err(OperationError::Many(open)),
            Verb::Start(audit) => {
                (operation.started, operation.audit) = (Some(who.clone()), audit.map(|entry| entry.to_string()));
                self.operations.open.insert(id.clone(), now);
            }
            Verb::Pause | Verb::Resume | Verb::Cancel if before != after => operation.changed = Some(who.clone()),
            Verb::Pause | Verb::Resume | Verb::Cancel => {}
        }
        operation.state = after;
        if before == State::Planned {
            self.operations.planned.remove(id);
        }
        if after == State::Cancelled {
            operation.ended_ms = Some(now);
            self.operations.close(id, now);
        }
        Ok(after)
    }

    pub fn lay(&mut self, term: &Term, id: &OperationId, endpoints: &[EndpointId]) -> Result<(), Lost> {
        self.fence(term)?;
        if let Some(worked) = self.operations.running(id).filter(|worked| !worked.is_laid) {
            for endpoint in endpoints {
                worked.places.entry(endpoint.clone()).or_default();
            }
            worked.is_laid = true;
        }
        Ok(())
    }

    /// Claims letters and asks their owner for them. What the owner is told of who asks is `mark`.
    pub fn take(
        &mut self,
        term: &Term,
        id: &OperationId,
        kind: Kind,
        mark: Bytes,
        taking: &Taking,
    ) -> Result<Taken, Lost> {
        self.fence(term)?;
        let waiting = self.inbox.requests.len() + taking.letters.len();
        let Some(worked) = self.operations.running(id) else { return Ok(Taken::Stopped) };
        if worked.places.get(&taking.endpoint) != Some(&taking.before) {
            return Ok(Taken::Moved);
        } else if waiting as u64 > MAX_WAITING {
            return Ok(Taken::Busy);
        }
        let mut under_way = Vec::new();
        for (letter, died_ms) in &taking.letters {
            let holder = self.operations.claims.get(letter).map(|claim| claim.by.clone());
            let is_there = self.dead.get(letter).is_some_and(|(died, _)| died == died_ms);
            if holder.as_ref() == Some(id) || !is_there || self.operations.room(id) == 0 {
                continue;
            }
            self.operations.worked(id).taken += 1;
            if let Some(holder) = holder {
                self.overtaken(id, letter, &format!("{holder} had it under way"));
                continue;
            }
            let asked = match kind {
                Kind::Discard => Asked::Discard(letter.clone()),
                _ => Asked::Redeliver(letter.clone()),
            };
            let request = self.ask_for(Asking { asked, mark: mark.clone(), operation: Some(id.clone()) });
            self.claim_for(id, letter, *died_ms, Claimed::Asked(request));
            under_way.push(letter.clone());
        }
        self.operations.worked(id).go_on(&taking.endpoint, taking.after.as_ref());
        Ok(Taken::Some(under_way))
    }

    pub fn send(&mut self, term: &Term, id: &OperationId, most: usize) -> Result<Option<Sent>, Lost> {
        self.fence(term)?;
        let Some(worked) = self.operations.running(id) else { return Ok(None) };
        let next: Vec<String> = worked.ids.iter().take(most).cloned().collect();
        let mut under_way = Vec::new();
        for text in next {
            let worked = self.operations.worked(id);
            worked.ids.remove(&text);
            worked.taken += 1;
            let delivery: DeliveryId = text.parse().expect("ids of deliveries are listed");
            if let Some(claim) = self.operations.claims.get(&delivery) {
                let why = format!("{} had it under way", claim.by);
                self.overtaken(id, &delivery, &why);
            } else if self.hasten(&delivery) {
                self.claim_for(id, &delivery, 0, Claimed::Granted { since_ms: self.now_ms });
                under_way.push(delivery);
            } else {
                self.overtaken(id, &delivery, "it has ended, or waits behind another");
            }
        }
        Ok(Some(Sent { left: self.operations.worked(id).ids.len() as u64, under_way }))
    }

    /// Whether it waited, and is due now.
    fn hasten(&mut self, id: &DeliveryId) -> bool {
        let due = self.due.get(id).copied();
        if self.claimed.contains(id) || due.is_some_and(|at| at <= self.now_ms) {
            return true;
        }
        let is_parked = |model: &mut Self| {
            model.endpoints.get_mut(&id.endpoint).is_some_and(|chains| chains.backlog.remove(&id.entry))
        };
        let waited = due.is_some() || is_parked(self);
        if waited {
            self.due.insert(id.clone(), self.now_ms);
        }
        waited
    }

    pub fn replay(&mut self, term: &Term, id: &OperationId, replaying: &Replaying) -> Result<Taken, Lost> {
        self.fence(term)?;
        let Some(worked) = self.operations.running(id) else { return Ok(Taken::Stopped) };
        if worked.places.get(&replaying.endpoint) != Some(&replaying.before) {
            return Ok(Taken::Moved);
        }
        let mut under_way = Vec::new();
        for event in &replaying.events {
            if self.operations.room(id) == 0 {
                continue;
            }
            self.operations.worked(id).taken += 1;
            let endpoint = replaying.endpoint.clone();
            if let Some(why) = &replaying.refusal {
                let delivery = DeliveryId { entry: event.entry, endpoint };
                self.book_one(id, &delivery, Became::Refused, why);
                continue;
            }
            let delivery = DeliveryId { entry: self.add_again(id, &endpoint, event), endpoint };
            self.claim_for(id, &delivery, 0, Claimed::Replayed);
            under_way.push(delivery);
        }
        self.operations.worked(id).go_on(&replaying.endpoint, replaying.after.as_ref());
        Ok(Taken::Some(under_way))
    }

    /// An event of the history, in the place that it had in the order and for this endpoint alone.
    fn add_again(&mut self, id: &OperationId, endpoint: &EndpointId, event: &RawEvent) -> EntryId {
        let name = |name: &'static str| Bytes::from_static(name.as_bytes());
        let mut fields = vec![(name("event"), event.body.clone()), (name("replay"), Bytes::from(id.to_string()))];
        fields.extend(event.number.map(|number| (name("account-sequence"), Bytes::from(number.to_string()))));
        if !event.traceparent.is_empty() {
            fields.push((name("traceparent"), Bytes::from(event.traceparent.clone())));
        }
        let place = self.places.get(&event.entry).map_or(event.entry, |(place, _)| *place);
        let entry = self.next_entry();
        self.add_entry(entry, fields);
        self.places.insert(entry, (place, Some(endpoint.clone())));
        entry
    }

    pub fn book(
        &mut self,
        term: &Term,
        id: &OperationId,
        kind: Kind,
        is_gone: bool,
        waits: &[String],
        of: &[DeliveryId],
    ) -> Result<Option<Booked>, Lost> {
        self.fence(term)?;
        let Some(worked) = self.operations.all.get_mut(id) else {
            of.iter().for_each(|delivery| self.operations.release(id, delivery));
            return Ok(None);
        };
        worked.operation.waits = waits.to_vec();
        let mut became = Vec::new();
        for delivery in of {
            let (what, why) = self.look(id, kind, is_gone, delivery);
            if let Look::Became(ended) = what
                && ended.has_ended()
                && ended != Became::Stranger
            {
                self.operations.release(id, delivery);
                self.book_one(id, delivery, ended, &why);
            }
            if what == Look::Repeated {
                self.operations.release(id, delivery);
                self.operations.worked(id).taken -= 1;
            }
            became.push(if let Look::Became(became) = what { became } else { Became::Stranger });
        }
        let Worked { operation, is_laid, .. } = self.operations.worked(id);
        let Operation { state, rate, counts: Counts { open, .. }, .. } = *operation;
        Ok(Some(Booked { state, rate, is_laid: *is_laid, open, became }))
    }

    fn look(&mut self, id: &OperationId, kind: Kind, is_gone: bool, delivery: &DeliveryId) -> (Look, String) {
        let now = self.now_ms;
        let Some(claim) = self.operations.claims.get_mut(delivery).filter(|claim| claim.by == *id) else {
            return Look::of(Became::Stranger);
        };
        let request = match claim.stands {
            Claimed::Replayed => return self.replayed(delivery, is_gone && kind == Kind::Replay),
            Claimed::Granted { since_ms } => {
                let died_ms = claim.died_ms;
                return self.granted(kind, delivery, died_ms, since_ms);
            }
            Claimed::Asked(request) => request,
        };
        if self.inbox.requests.contains_key(&request) {
            return Look::of(Became::Asked);
        }
        let error = self.answers.remove(&request).and_then(|answer| Some(answer.strip_prefix("error: ")?.to_owned()));
        match error.as_deref() {
            Some(NO_SUCH_LETTER) => {
                (Look::Became(Became::Overtaken), "somebody else had it sent again or dropped".to_owned())
            }
            Some(TAKEN_BEFORE) => (Look::Repeated, String::new()),
            Some(why) => (Look::Became(Became::Refused), why.to_owned()),
            None => {
                claim.stands = Claimed::Granted { since_ms: now };
                let died_ms = claim.died_ms;
                self.granted(kind, delivery, died_ms, now)
            }
        }
    }

    /// What became of one whose request was granted, or that was made due.
    fn granted(&self, kind: Kind, delivery: &DeliveryId, died_ms: u64, since_ms: u64) -> (Look, String) {
        let is_late = self.now_ms.saturating_sub(since_ms) > PATIENCE_MS;
        let died_again = self.dead.get(delivery).map(|(died, _)| *died);
        match (kind, self.records.contains_key(delivery), died_again) {
            (Kind::SendNow, false, _) => Look::of(Became::Done),
            (Kind::SendNow, true, _) => match self.place_of(delivery) {
                Became::Parked if is_late => {
                    let why = "its endpoint takes nothing at the moment: it waits in the backlog";
                    (Look::Became(Became::Refused), why.to_owned())
                }
                Became::Retrying => Look::of(Became::Done),
                place => Look::of(place),
            },
            (Kind::Redeliver, true, _) => Look::of(self.place_of(delivery)),
            (_, _, None) => Look::of(Became::Done),
            (_, _, Some(died)) if died == died_ms => match is_late {
                true => (Look::Became(Became::Refused), "the worker could not carry it out".to_owned()),
                false => Look::of(Became::Asked),
            },
            (Kind::Discard, _, Some(_)) => (Look::Became(Became::Overtaken), "it went out and died again".to_owned()),
            (_, _, Some(_)) => (Look::Became(Became::DeadAgain), self.why_dead(delivery)),
        }
    }

    /// What became of one that was added to the stream again.
    fn replayed(&self, delivery: &DeliveryId, is_gone: bool) -> (Look, String) {
        let group = self.stream.groups.get(GROUP);
        if self.records.contains_key(delivery) {
            return Look::of(self.place_of(delivery));
        } else if self.dead.contains_key(delivery) {
            return (Look::Became(Became::DeadAgain), self.why_dead(delivery));
        }
        match group {
            None => Look::of(Became::Asked),
            Some(group) if group.last_delivered < delivery.entry => Look::of(Became::Asked),
            Some(group) if group.pending.contains_key(&delivery.entry) => Look::of(Became::Open),
            Some(_) if self.quarantined(delivery.entry).is_some() => {
                let why = "the worker takes it for no event any more: it is in the quarantine";
                (Look::Became(Became::Refused), why.to_owned())
            }
            Some(_) if is_gone => {
                let why = "its endpoint was deleted meanwhile: whether it was delivered before is in its history";
                (Look::Became(Became::Overtaken), why.to_owned())
            }
            Some(_) => Look::of(Became::Done),
        }
    }

    fn place_of(&self, id: &DeliveryId) -> Became {
        let due = self.due.get(id).copied().unwrap_or(0);
        let is_parked = self.endpoints.get(&id.endpoint).is_some_and(|chains| chains.backlog.contains(&id.entry));
        match due > self.now_ms {
            true => Became::Retrying,
            false if due > 0 || self.claimed.contains(id) => Became::Open,
            false if is_parked => Became::Parked,
            false => Became::Held,
        }
    }

    fn why_dead(&self, id: &DeliveryId) -> String {
        match self.dead_facts.get(id) {
            Some((_, facts)) => format!("{} {}", facts.reason_name(), facts.cause),
            None => " ".to_owned(),
        }
    }

    pub fn erase(&mut self, term: &Term, id: &OperationId, what: &Erased<'_>) -> Result<Option<u64>, Lost> {
        self.fence(term)?;
        if self.operations.running(id).is_none() {
            return Ok(None);
        }
        let mut erased = 0;
        match what {
            Erased::Entries(entries) => {
                erased = entries.iter().filter(|entry| self.stream.entries.remove(entry).is_some()).count() as u64;
            }
            Erased::Letters(letters) => {
                for letter in *letters {
                    if !self.operations.claims.contains_key(letter) && self.dead.remove(letter).is_some() {
                        self.dead_facts.remove(letter);
                        erased += 1;
                    }
                }
                let worked = self.operations.worked(id);
                worked.taken += erased;
                worked.operation.counts.done += erased;
            }
        }
        Ok(Some(erased))
    }

    pub fn end(&mut self, term: &Term, id: &OperationId, is_told: bool) -> Result<Option<End>, Lost> {
        self.fence(term)?;
        let now = self.now_ms;
        let Some(worked) = self.operations.all.get_mut(id) else {
            self.operations.open.remove(id);
            return Ok(None);
        };
        let is_empty = worked.is_laid && worked.places.is_empty() && worked.ids.is_empty();
        let Operation { plan, state, counts, waits, ended_ms, audit, .. } = &mut worked.operation;
        let missing = plan.count.saturating_sub(counts.ended());
        let after = match *state {
            State::Cancelling if counts.open == 0 => State::Cancelled,
            // What was planned and never found had gone before its turn.
            State::Running if counts.open == 0 && is_empty && plan.kind == Kind::Erase => {
                counts.done = counts.done.max(plan.count);
                State::Done
            }
            State::Running if counts.open == 0 && is_empty => {
                counts.overtaken += missing;
                State::Done
            }
            state => state,
        };
        if after != *state {
            (*state, *ended_ms, *waits) = (after, Some(now), Vec::new());
        }
        if !after.has_ended() {
            return Ok(None);
        }
        let not_done = counts.ended() - counts.done;
        let audit = audit.as_ref().and_then(|entry| entry.parse().ok());
        let end = End { state: after, done: counts.done, not_done, audit };
        if is_told {
            self.operations.close(id, now);
        }
        Ok(Some(end))
    }

    /// What must hold between any two steps: what an operation has taken is under way or has ended, it has taken no more than were
    /// planned, and what it has under way is its own. The error says what does not hold.
    pub fn check_operations(&self) -> Result<(), String> {
        for (id, worked) in &self.operations.all {
            let Operation { plan, counts, state, .. } = &worked.operation;
            let claims = self.operations.claims.values().filter(|claim| claim.by == *id).count() as u64;
            // What had gone before its turn was never taken.
            let is_booked = state.has_ended() || worked.taken == counts.open + counts.ended();
            if claims != counts.open || !is_booked || (worked.taken > plan.count && plan.kind != Kind::Erase) {
                return Err(format!("{id} is counted wrongly: {} taken, {claims} claimed, {counts:?}", worked.taken));
            }
        }
        match self.operations.claims.iter().find(|(_, claim)| !self.operations.all.contains_key(&claim.by)) {
            Some((delivery, claim)) => Err(format!("{delivery} is claimed by {}, which is not there", claim.by)),
            None => Ok(()),
        }
    }

    fn claim_for(&mut self, id: &OperationId, delivery: &DeliveryId, died_ms: u64, stands: Claimed) {
        self.operations.worked(id).operation.counts.open += 1;
        self.operations.claims.insert(delivery.clone(), Claim { by: id.clone(), died_ms, stands });
    }

    fn overtaken(&mut self, id: &OperationId, delivery: &DeliveryId, why: &str) {
        self.book_one(id, delivery, Became::Overtaken, why);
    }

    /// One that it took has ended.
    fn book_one(&mut self, id: &OperationId, delivery: &DeliveryId, became: Became, why: &str) {
        let at_ms = self.now_ms;
        let Worked { operation: Operation { counts, .. }, results, .. } = self.operations.worked(id);
        let (count, result) = match became {
            Became::Done => return counts.done += 1,
            Became::DeadAgain => (&mut counts.dead_again, "dead_again"),
            Became::Overtaken => (&mut counts.overtaken, "overtaken"),
            _ => (&mut counts.refused, "refused"),
        };
        *count += 1;
        let whole = (0..=MAX_WHY_BYTES.min(why.len())).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0);
        let (delivery, result, why) = (delivery.to_string(), result.to_owned(), why[..whole].to_owned());
        results.push(Exception { delivery, result, why, at_ms });
    }
}

/// What a look at one that is under way shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Became(Became),
    /// It was redelivered by this operation before: as if it had not been taken.
    Repeated,
}

impl Look {
    fn of(became: Became) -> (Self, String) {
        (Self::Became(became), String::new())
    }
}

impl Operations {
    fn running(&mut self, id: &OperationId) -> Option<&mut Worked> {
        self.all.get_mut(id).filter(|worked| worked.operation.state == State::Running)
    }

    fn worked(&mut self, id: &OperationId) -> &mut Worked {
        self.all.get_mut(id).expect("it was there at the beginning of this step")
    }

    /// How many more it may take: never more than were planned.
    fn room(&mut self, id: &OperationId) -> u64 {
        let worked = self.worked(id);
        worked.operation.plan.count.saturating_sub(worked.taken)
    }

    /// What it had under way is anybody's again.
    fn release(&mut self, id: &OperationId, delivery: &DeliveryId) {
        if self.claims.get(delivery).is_some_and(|claim| claim.by == *id) {
            self.claims.remove(delivery);
            if let Some(worked) = self.all.get_mut(id) {
                worked.operation.counts.open -= 1;
            }
        }
    }

    /// Nobody works on it any more.
    fn close(&mut self, id: &OperationId, now_ms: u64) {
        self.open.remove(id);
        self.ended.insert(id.clone(), now_ms);
        let worked = self.worked(id);
        (worked.places, worked.ids) = (BTreeMap::new(), BTreeSet::new());
        keep_newest(&mut self.all, &mut self.ended, MAX_ENDED);
    }
}

impl Worked {
    fn go_on(&mut self, endpoint: &EndpointId, after: Option<&String>) {
        match after {
            Some(after) => drop(self.places.insert(endpoint.clone(), after.clone())),
            None => drop(self.places.remove(endpoint)),
        }
    }
}

fn oldest(set: &BTreeMap<OperationId, u64>) -> Vec<(u64, OperationId)> {
    let mut all: Vec<_> = set.iter().map(|(id, at)| (*at, id.clone())).collect();
    all.sort();
    all
}

fn keep_newest(all: &mut BTreeMap<OperationId, Worked>, set: &mut BTreeMap<OperationId, u64>, most: u64) {
    let surplus = set.len().saturating_sub(most as usize).min(MAX_FORGOTTEN);
    for (_, id) in oldest(set).into_iter().take(surplus) {
        set.remove(&id);
        all.remove(&id);
    }
}

//! Operations on dead letters: planned and changed by operators, and worked on by whoever owns the partition, a step at a time,
//! beside the partition and through its inbox. What a worker knows of them is lost with it; a step may be lost, answered to
//! nobody, or run late. Each operation is followed here from its plan on, by what it may do.

use herald::{
    facts::operation::{Change, Counts, OPERATION_SCHEMA, Plan, Rate, Selection, State, new_id, why_of},
    store::{
        model::operations::{Claim, Claimed},
        operations::{
            Verb,
            work::{Booked, Lost, Taken, Taking},
        },
    },
};

use super::*;
use crate::simulation::mutation::operate;

/// Between two steps of one worker.
const ROUND_MS: u64 = 15;
/// After a step that was not answered as it should be.
const PAUSE_MS: u64 = 120;
/// Letters of one endpoint that are taken in one step.
const TAKEN: usize = 3;

/// One step of the owner's.
#[derive(Debug, Clone)]
pub enum OwnerStep {
    Lay(OperationId, Vec<EndpointId>),
    Take(OperationId, Kind, Bytes, Taking),
    Book(OperationId, Kind, Vec<DeliveryId>),
    End(OperationId, bool),
}

impl OwnerStep {
    pub fn id(&self) -> &OperationId {
        match self {
            Self::Lay(id, _) | Self::Take(id, ..) | Self::Book(id, ..) | Self::End(id, _) => id,
        }
    }
}

#[derive(Debug, Clone)]
pub enum StepAnswer {
    Laid,
    Taken(Taken),
    Booked(Option<Booked>),
    /// Whether it has ended.
    Ended(bool),
}

/// What a worker knows of an operation: as it was in Redis, and what came of its own steps since.
#[derive(Debug, Clone)]
struct Known {
    kind: Kind,
    state: State,
    is_laid: bool,
    places: BTreeMap<EndpointId, String>,
    under_way: BTreeSet<DeliveryId>,
    is_looked_at: bool,
    has_ended: bool,
}

/// A worker's work on operations.
#[derive(Debug, Clone, Default)]
pub(super) struct Working {
    term: Option<Term>,
    known: BTreeMap<OperationId, Known>,
    is_waiting: bool,
    turn: usize,
}

/// What an operation was planned for, and what it has taken.
#[derive(Debug, Clone)]
pub(super) struct Followed {
    letters: BTreeMap<DeliveryId, u64>,
    /// When it took each.
    taken: BTreeMap<DeliveryId, u64>,
}

impl World {
    /// Plans an operation for the letters of an endpoint, or for all, and starts it.
    pub(super) fn plan_operation(&mut self, kind: Kind, endpoint: Option<usize>) {
        let (now_ms, endpoint) = (self.model.now_ms, endpoint.map(endpoint_id));
        let is_meant =
            |id: &DeliveryId, died: u64| died < now_ms && endpoint.as_ref().is_none_or(|meant| *meant == id.endpoint);
        let dead = self.model.dead.iter().filter(|(id, (died, _))| is_meant(id, *died));
        let letters: BTreeMap<DeliveryId, u64> = dead.map(|(id, (died, _))| (id.clone(), *died)).collect();
        if letters.is_empty() {
            return;
        }
        if kind == Kind::Discard {
            self.ledger
                .owed
                .iter_mut()
                .filter(|owed| letters.contains_key(&owed.id))
                .for_each(|owed| owed.may_vanish = true);
        }
        let plan = Plan {
            schema: OPERATION_SCHEMA,
            kind,
            selection: Selection { until_ms: now_ms - 1, endpoint, ..Selection::default() },
            filter: String::new(),
            count: letters.len() as u64,
            by: "ops".to_owned(),
            why: "mended".to_owned(),
            at_ms: now_ms,
        };
        self.planned += 1;
        let id = new_id(now_ms, self.planned);
        self.tally.count("operations");
        self.model.plan(&id, &plan, Rate::of(1));
        self.model.change(&id, Verb::Start(None), &somebody()).expect("it is planned, and few are open");
        self.followed.insert(id, Followed { letters, taken: BTreeMap::new() });
    }

    pub(super) fn change_operation(&mut self, nth: usize, verb: Verb) {
        let open: Vec<OperationId> = self.model.operations.open.keys().cloned().collect();
        if let Some(id) = open.get(nth % open.len().max(1))
            && self.model.change(id, verb, &somebody()).is_ok()
        {
            self.tally.count("operations_changed");
        }
    }

    /// Whoever paused an operation lets it go on.
    pub(super) fn resume_operations(&mut self) {
        for id in self.model.operations.open.keys().cloned().collect::<Vec<_>>() {
            // One that is cancelled goes on by itself.
            let resumed = self.model.change(&id, Verb::Resume, &somebody());
            self.tell(|| format!("       {id}: {resumed:?}"));
        }
    }

    pub(super) fn work_on_operations(&mut self, worker: usize, life: u32) {
        if self.workers[worker].life != life {
            return;
        }
        self.after(ROUND_MS, Event::Work { worker, life });
        let partition = self.workers[worker].partition.as_ref();
        let term = partition.and_then(|partition| partition.term().cloned());
        let open: Vec<OperationId> = self.model.operations.open.keys().cloned().collect();
        let working = &mut self.workers[worker].working;
        if working.term != term {
            // What was under way in the old term is in Redis; the new one reads it.
            *working = Working { term: term.clone(), ..Working::default() };
        }
        let Some(term) = term else { return };
        if working.is_waiting || open.is_empty() || self.is_down {
            return;
        }
        working.turn += 1;
        let id = open[working.turn % open.len()].clone();
        let Some(known) = self.known(worker, &id) else { return };
        let step = self.next_step(&id, &known);
        self.make_step(worker, term, step);
    }

    /// From memory, or else from Redis.
    fn known(&mut self, worker: usize, id: &OperationId) -> Option<Known> {
        let working = &mut self.workers[worker].working;
        if let Some(known) = working.known.get(id) {
            return Some(known.clone());
        }
        let found = self.model.operations.all.get(id)?;
        let claims = self.model.operations.claims.iter().filter(|(_, claim)| claim.by == *id);
        let known = Known {
            kind: found.operation.plan.kind,
            state: found.operation.state,
            is_laid: found.is_laid,
            places: found.places.clone(),
            under_way: claims.map(|(delivery, _)| delivery.clone()).collect(),
            is_looked_at: false,
            has_ended: false,
        };
        working.known.insert(id.clone(), known.clone());
        Some(known)
    }

    /// By turns it looks at what it has under way, and takes some more.
    fn next_step(&self, id: &OperationId, known: &Known) -> OwnerStep {
        let look = || OwnerStep::Book(id.clone(), known.kind, known.under_way.iter().cloned().collect());
        if known.has_ended {
            return OwnerStep::End(id.clone(), true);
        } else if !known.is_looked_at {
            return look();
        } else if known.state == State::Running && !known.is_laid {
            let endpoints: BTreeSet<EndpointId> =
                self.followed[id].letters.keys().map(|letter| letter.endpoint.clone()).collect();
            return OwnerStep::Lay(id.clone(), endpoints.into_iter().collect());
        }
        match known.places.first_key_value().filter(|_| known.state == State::Running) {
            Some((endpoint, place)) => self.taking(id, known.kind, endpoint, place),
            None if known.under_way.is_empty() => OwnerStep::End(id.clone(), false),
            None => look(),
        }
    }

    /// The next letters of an endpoint, in the order of the stream.
    fn taking(&self, id: &OperationId, kind: Kind, endpoint: &EndpointId, before: &str) -> OwnerStep {
        let passed: EntryId = before.parse().unwrap_or_default();
        let letters = self.followed[id].letters.iter();
        let mut left = letters.filter(|(letter, _)| letter.endpoint == *endpoint && letter.entry > passed);
        let letters: Vec<_> = left.by_ref().take(TAKEN).map(|(letter, died)| (letter.clone(), *died)).collect();
        let after = letters.last().filter(|_| left.next().is_some()).map(|(last, _)| last.entry.to_string());
        let mark = Mark { why: why_of("mended", id), ..mark() };
        let mark = serde_json::to_vec(&mark).unwrap().into();
        let taking = Taking { endpoint: endpoint.clone(), before: before.to_owned(), after, letters };
        OwnerStep::Take(id.clone(), kind, mark, taking)
    }

    fn make_step(&mut self, worker: usize, term: Term, step: OwnerStep) {
        self.workers[worker].working.is_waiting = true;
        let (life, redis, there) = (self.workers[worker].life, self.redis, self.chance.below(4));
        let gives_up = self.chance.within(20, 200);
        let has_faults = self.has_faults && !self.is_healed;
        let run = |reply| Event::Step { worker, life, redis, term: term.clone(), step: step.clone(), reply };
        let lost = Event::Stepped { worker, life, term: term.clone(), step: step.clone(), answer: None };
        match self.chance.below(if has_faults { 10 } else { u64::MAX }) {
            0 => {
                self.tally.count("steps_lost");
                self.after(gives_up, lost);
            }
            1 => {
                self.tally.count("steps_unanswered");
                let (event, late) = (run(false), there);
                self.after(late, event);
                self.after(gives_up, lost);
            }
            2 => {
                self.tally.count("steps_run_late");
                let (event, late) = (run(false), gives_up + self.chance.within(1, 1_500));
                self.after(late, event);
                self.after(gives_up, lost);
            }
            _ => {
                let event = run(true);
                self.after(there, event);
            }
        }
    }

    pub(super) fn run_step(&mut self, worker: usize, life: u32, redis: u32, term: Term, step: OwnerStep, reply: bool) {
        let is_full = self.model.full && matches!(step, OwnerStep::Take(_, Kind::Redeliver, ..));
        let answer = match self.is_down || redis != self.redis || is_full {
            true => None,
            false => Some(self.carry_out_step(&term, &step)),
        };
        if reply {
            let back = self.chance.below(4);
            self.after(back, Event::Stepped { worker, life, term, step, answer });
        }
    }

    /// The step on Redis, and what it may have changed.
    fn carry_out_step(&mut self, term: &Term, step: &OwnerStep) -> Result<StepAnswer, Lost> {
        self.tally.checked(Promise::EachOnce);
        let before = self.model.operations.clone();
        let answer = operate(&mut self.model, self.mutation, term, step);
        if self.model.operations != before && self.legit.as_ref() != Some(term) {
            self.wrong(Promise::OneOwner, || format!("a step of an ended term was carried out: {step:?}"));
        }
        if let Err(why) = self.model.check_operations() {
            self.wrong(Promise::EachOnce, || why);
        }
        let id = step.id();
        for (delivery, claim) in self.model.operations.claims.clone() {
            if before.claims.get(&delivery).map(|claim| &claim.by) != Some(&claim.by) {
                self.check_claim(&delivery, &claim, before.claims.get(&delivery));
            }
        }
        let counts = |operations: &herald::store::model::operations::Operations| {
            operations.all.get(id).map_or_else(Counts::default, |worked| worked.operation.counts)
        };
        let (was, is) = (counts(&before), counts(&self.model.operations));
        if let OwnerStep::Book(_, kind, of) = step {
            let results = self.model.operations.all.get(id).map(|worked| worked.results.clone()).unwrap_or_default();
            let known = before.all.get(id).map_or(0, |worked| worked.results.len());
            let exceptions = results.get(known..).unwrap_or_default();
            for delivery in of {
                let is_own = before.claims.get(delivery).is_some_and(|claim| claim.by == *id);
                let is_released = !self.model.operations.claims.contains_key(delivery);
                let exception = exceptions.iter().find(|result| result.delivery == delivery.to_string());
                match exception {
                    Some(result) => self.check_exception(id, delivery, &result.result, &result.why),
                    None if is_own && is_released && is.done > was.done => self.check_done(*kind, delivery),
                    None => {}
                }
            }
        }
        if let Some(worked) = self.model.operations.all.get(id)
            && worked.operation.state == State::Done
            && worked.operation.counts.ended() != worked.operation.plan.count
        {
            let operation = worked.operation.clone();
            self.wrong(Promise::EachOnce, || format!("it is done, and not all of it was: {operation:?}"));
        }
        answer
    }

    /// Nobody has it under way, it is one that was planned for, and it is taken for the first time.
    fn check_claim(&mut self, delivery: &DeliveryId, claim: &Claim, before: Option<&Claim>) {
        self.tally.count("letters_taken");
        if let Some(other) = before {
            let other = other.by.clone();
            self.wrong(Promise::EachOnce, || format!("{} takes {delivery}, which {other} has under way", claim.by));
        }
        let (now, is_loosened) = (self.now, self.is_loosened || self.was_set_back);
        let Some(followed) = self.followed.get_mut(&claim.by) else { return };
        let is_again = followed.taken.insert(delivery.clone(), now).is_some();
        let is_strange = followed.letters.get(delivery) != Some(&claim.died_ms);
        if is_strange || (is_again && !is_loosened) {
            self.wrong(Promise::EachOnce, || {
                format!("{} takes {delivery}, which it was not to take (again)", claim.by)
            });
        }
    }

    /// A redelivery is done when it was delivered, a discard when there is no letter.
    fn check_done(&mut self, kind: Kind, delivery: &DeliveryId) {
        let is_there = self.model.dead.contains_key(delivery);
        let owed = self.ledger.get(index_of(delivery.endpoint.as_str()), delivery.entry).cloned();
        let is_so = match kind {
            Kind::Redeliver => owed.is_none_or(|owed| owed.delivered),
            _ => !is_there,
        };
        if !is_so && !self.is_loosened {
            self.wrong(Promise::EachOnce, || format!("the {kind} of {delivery} is done, and it is not so"));
        }
    }

    /// What an operation has under way, nobody changes who asks after it was taken.
    fn check_exception(&mut self, id: &OperationId, delivery: &DeliveryId, result: &str, why: &str) {
        self.tally.count("exceptions");
        let taken_at = self.followed.get(id).and_then(|followed| followed.taken.get(delivery)).copied();
        let Some(taken_at) = taken_at.filter(|_| result == "overtaken" && why.starts_with("somebody else")) else {
            return;
        };
        let asked = self.asked_by_hand.get(delivery).is_some_and(|asked_at| *asked_at <= taken_at);
        if !asked && !self.is_loosened {
            self.wrong(Promise::EachOnce, || format!("{id} had {delivery} under way, and somebody else changed it"));
        }
    }

    pub(super) fn stepped(
        &mut self,
        worker: usize,
        life: u32,
        term: Term,
        step: OwnerStep,
        answer: Option<Result<StepAnswer, Lost>>,
    ) {
        let Worker { working, life: now_living, .. } = &mut self.workers[worker];
        if *now_living != life || working.term.as_ref() != Some(&term) {
            return;
        }
        let id = step.id().clone();
        let Some(Ok(answer)) = answer else {
            // After a pause it reads everything anew.
            working.known.clear();
            return self.after(PAUSE_MS, Event::Rested { worker, life, term });
        };
        working.is_waiting = false;
        let Some(known) = working.known.get_mut(&id) else { return };
        match (answer, step) {
            (StepAnswer::Booked(Some(booked)), OwnerStep::Book(_, _, of)) => {
                for (delivery, became) in of.iter().zip(&booked.became) {
                    if became.has_ended() {
                        known.under_way.remove(delivery);
                    }
                }
                known.state = booked.state;
                known.is_looked_at = true;
                if booked.open != known.under_way.len() as u64 || booked.is_laid != known.is_laid {
                    working.known.remove(&id);
                }
            }
            (StepAnswer::Taken(Taken::Some(under_way)), OwnerStep::Take(_, _, _, taking)) => {
                known.under_way.extend(under_way);
                match taking.after {
                    Some(after) => drop(known.places.insert(taking.endpoint, after)),
                    None => drop(known.places.remove(&taking.endpoint)),
                }
                known.is_looked_at = false;
            }
            (StepAnswer::Ended(true), OwnerStep::End(_, false)) => known.has_ended = true,
            _ => drop(working.known.remove(&id)),
        }
        if let Some(known) = self.workers[worker].working.known.get_mut(&id)
            && self.chance.one_in(2)
        {
            known.is_looked_at = false;
        }
    }

    pub(super) fn rested(&mut self, worker: usize, life: u32, term: &Term) {
        let found = &mut self.workers[worker];
        if found.life == life && found.working.term.as_ref() == Some(term) {
            found.working.is_waiting = false;
        }
    }

    /// What an operation has asked for is not lost: it waits in the inbox, or was answered.
    pub(super) fn are_operations_settled(&self) -> bool {
        let is_asked = |claim: &Claim| matches!(claim.stands, Claimed::Asked(_));
        self.model.operations.open.is_empty() && !self.model.operations.claims.values().any(is_asked)
    }
}

fn somebody() -> Change {
    Change { by: "ops".to_owned(), why: String::new(), at_ms: 0 }
}

//! The steps of operations, two or three at once over the same letters, by the owner of the partition or by an earlier one.

use std::fmt::Display;

use herald::{
    facts::{
        endpoint::Mark,
        id::OperationId,
        operation::{Change, Kind, OPERATION_SCHEMA, Plan, Rate, Selection, State},
    },
    store::{
        model::operations::Claimed,
        operations::{
            MAX_ENDED, MAX_OPEN, MAX_PLANNED, OperationError, Operations, PLANNED_FOR_MS, Verb,
            erase::Erased,
            work::{PATIENCE_MS, Replaying, Taken, Taking, Work},
        },
        queries::RawEvent,
    },
};

use super::*;
use crate::mutation::carry_out;

/// Each but the last is the beginning of another.
const OPERATIONS: [&str; 4] = ["op_1", "op_1-", "op_10", "op_2"];

/// One step of an operation, as the owner makes it, or whoever plans and changes it.
#[derive(Debug, Clone)]
pub enum Move {
    Plan(OperationId, Plan, Rate),
    Change(OperationId, Verb, Change),
    Lay(OperationId, Vec<EndpointId>),
    Take(OperationId, Kind, Mark, Taking),
    Send(OperationId, usize),
    Replay(OperationId, Replaying),
    Book { id: OperationId, kind: Kind, is_gone: bool, waits: Vec<String>, of: Vec<DeliveryId> },
    EraseLetters(OperationId, Vec<DeliveryId>),
    EraseEntries(OperationId, Vec<EntryId>),
    End(OperationId, bool),
}

/// What is answered where nothing was changed, because what was asked made no sense.
const REFUSED: &str = "refused";

impl Move {
    pub async fn on_redis(&self, work: &mut Work, operations: &mut Operations) -> String {
        match self {
            Self::Plan(id, plan, rate) => said(operations.write(id.clone(), plan.clone(), *rate).await.map(drop)),
            Self::Change(id, verb, who) => match operations.change(id, *verb, who).await {
                Err(OperationError::Store(error)) => said::<(), _>(Err(error)),
                answer => format!("{:?}", answer.map_err(|error| error.to_string())),
            },
            Self::Lay(id, endpoints) => said(work.lay(id, endpoints).await),
            Self::Take(id, kind, mark, taking) => said(work.take(id, *kind, mark, taking).await),
            Self::Send(id, most) => said(work.send(id, *most).await),
            Self::Replay(id, replaying) => said(work.replay(id, replaying).await.map(|taken| taken.map(counted))),
            Self::Book { id, kind, is_gone, waits, of } => said(work.book(id, *kind, *is_gone, waits, of).await),
            Self::EraseLetters(id, letters) => said(work.erase(id, Erased::Letters(letters)).await),
            Self::EraseEntries(id, entries) => said(work.erase(id, Erased::Entries(entries)).await),
            Self::End(id, is_told) => said(work.end(id, *is_told).await),
        }
    }

    pub fn on_model(&self, model: &mut Model, term: &Term) -> String {
        match self {
            Self::Plan(id, plan, rate) => if model.plan(id, plan, *rate) { "()" } else { REFUSED }.to_owned(),
            Self::Change(id, verb, who) => {
                format!("{:?}", model.change(id, *verb, who).map_err(|error| error.to_string()))
            }
            Self::Lay(id, endpoints) => format!("{:?}", model.lay(term, id, endpoints)),
            Self::Take(.., taking) if taking.letters.len() > MAX_BATCH && model.fence(term).is_ok() => {
                REFUSED.to_owned()
            }
            Self::Take(id, kind, mark, taking) => {
                let mark = serde_json::to_vec(mark).unwrap().into();
                format!("{:?}", model.take(term, id, *kind, mark, taking))
            }
            Self::Send(id, most) => format!("{:?}", model.send(term, id, *most)),
            Self::Replay(id, replaying) => format!("{:?}", model.replay(term, id, replaying).map(counted)),
            Self::Book { id, kind, is_gone, waits, of } => {
                format!("{:?}", model.book(term, id, *kind, *is_gone, waits, of))
            }
            Self::EraseLetters(id, letters) => format!("{:?}", model.erase(term, id, &Erased::Letters(letters))),
            Self::EraseEntries(id, entries) => format!("{:?}", model.erase(term, id, &Erased::Entries(entries))),
            Self::End(id, is_told) => format!("{:?}", model.end(term, id, *is_told)),
        }
    }
}

fn said<T: Debug, E: Display>(answer: Result<T, E>) -> String {
    answer.map_or_else(|_| REFUSED.to_owned(), |answer| format!("{answer:?}"))
}

/// Redis gives the new entries ids of its own; the state says which, and whose they are.
fn counted(taken: Taken) -> Taken {
    match taken {
        Taken::Some(under_way) => Taken::Stuck(format!("{} are under way", under_way.len())),
        other => other,
    }
}

impl Walk {
    pub(super) async fn operate(&mut self) -> Step {
        let id = self.some_operation();
        match self.chance.below(42) {
            0..4 => self.plan(id).await,
            4..10 => self.change(id).await,
            10..13 => {
                let endpoints = match self.chance.one_in(20) {
                    // More than one script notes.
                    true => (0..501 + self.chance.below(3)).map(|n| format!("ep_{n}").parse().unwrap()).collect(),
                    false => (0..self.chance.below(4)).map(|_| self.some_endpoint()).collect(),
                };
                self.moved(Move::Lay(id, endpoints)).await
            }
            13..20 => {
                let step = self.some_taking(id);
                self.moved(step).await
            }
            20..23 => {
                let most = 1 + self.chance.below(3) as usize;
                self.moved(Move::Send(id, most)).await
            }
            23..26 => {
                let step = self.some_replay(id);
                self.moved(step).await
            }
            26..34 => {
                let step = self.some_booking(id);
                self.moved(step).await
            }
            34 => {
                let mut letters: Vec<_> = (0..self.chance.below(6)).map(|_| self.some_delivery().0).collect();
                letters
                    .extend(self.model.operations.claims.keys().find(|id| self.model.dead.contains_key(id)).cloned());
                self.moved(Move::EraseLetters(id, letters)).await
            }
            35 => {
                let entries = (0..self.chance.below(6)).map(|_| self.some_entry()).collect();
                self.moved(Move::EraseEntries(id, entries)).await
            }
            36 | 37 => self.wind_up(id).await,
            38 | 39 => {
                let is_told = self.chance.one_in(2);
                self.moved(Move::End(id, is_told)).await
            }
            40 => self.vanish(id).await,
            _ => match self.chance.below(4) {
                0 => self.crowd().await,
                _ => self.grow_old().await,
            },
        }
    }

    /// Runs the step on Redis, and on the model at a time at which Redis may have run it.
    async fn moved(&mut self, step: Move) -> Step {
        let term = match self.chance.one_in(12) {
            true => Term::new(u128::MAX, "paused"),
            false => self.term.clone(),
        };
        self.tell(&step);
        self.tick().await;
        let from = self.redis_time().await;
        let mut work = Work::new(self.work.clone(), self.keys.clone(), term.clone());
        let mut operations = Operations::new(self.work.clone(), self.keys.clone());
        let real = step.on_redis(&mut work, &mut operations).await;
        let until = self.redis_time().await;
        let before = self.model.clone();
        for now_ms in from..=until {
            self.model = Model { now_ms, ..before.clone() };
            if carry_out(&mut self.model, self.mutation, &term, &step) == real {
                break;
            }
        }
        let mut again = Model { now_ms: self.model.now_ms, ..before };
        same("the answer", &real, &carry_out(&mut again, self.mutation, &term, &step))?;
        match step {
            Move::Take(..) => self.take_over_requests().await?,
            Move::Replay(..) => self.take_over_generated_ids().await?,
            _ => {}
        }
        if from < until { self.take_over_times(from..=until).await } else { Ok(()) }
    }

    /// Redis gives requests their ids.
    async fn take_over_requests(&mut self) -> Step {
        let real = Reader { connection: &mut self.raw, keys: &self.keys }.entries(&self.keys.inbox()).await;
        let expected = std::mem::take(&mut self.model.inbox.requests);
        same("the number of requests", &real.len(), &expected.len())?;
        let mut ids = BTreeMap::new();
        for (id, (was, asking)) in real.into_keys().zip(expected) {
            self.model.inbox.requests.insert(id, asking);
            self.model.inbox.last = self.model.inbox.last.max(id.ms);
            ids.insert(was, id);
        }
        // All at once: the new id of one may be the old id of another.
        for claim in self.model.operations.claims.values_mut() {
            if let Claimed::Asked(was) = claim.stands
                && let Some(id) = ids.get(&was)
            {
                claim.stands = Claimed::Asked(*id);
            }
        }
        Ok(())
    }

    /// What was written within this time has the time of Redis.
    async fn take_over_times(&mut self, within: std::ops::RangeInclusive<u64>) -> Step {
        let mut real = Reader { connection: &mut self.raw, keys: &self.keys }.read().await;
        for (real, model) in times(&mut real).into_iter().zip(times(&mut self.model)) {
            if within.contains(real) && within.contains(model) {
                *model = *real;
            }
        }
        Ok(())
    }

    async fn plan(&mut self, id: OperationId) -> Step {
        let is_new = !self.model.operations.all.contains_key(&id);
        if is_new && self.model.operations.claims.values().any(|claim| claim.by == id) {
            // Its id is not given out again before the claims of the first are released.
            let of = self.claims_of(&id);
            return self.moved(Move::Book { id, kind: Kind::Redeliver, is_gone: false, waits: Vec::new(), of }).await;
        }
        let kind = Kind::ALL[self.chance.below(Kind::ALL.len() as u64) as usize];
        let ids: Vec<String> = match kind {
            Kind::SendNow if is_new => (0..1 + self.chance.below(8)).map(|_| self.some_waiting().to_string()).collect(),
            _ => Vec::new(),
        };
        if !ids.is_empty() {
            let key = self.keys.operation_ids(&id);
            for text in &ids {
                self.raw::<u64>(&["ZADD", &key, "0", text]).await;
            }
            self.raw::<u64>(&["PEXPIRE", &key, &PLANNED_FOR_MS.to_string()]).await;
        }
        let plan = Plan {
            schema: OPERATION_SCHEMA,
            kind,
            selection: Selection::default(),
            filter: String::new(),
            count: self.chance.below(9),
            by: "ops".to_owned(),
            why: "mended".to_owned(),
            at_ms: 7,
        };
        let rate = Rate::of(1 + self.chance.below(200) as u32);
        self.moved(Move::Plan(id.clone(), plan, rate)).await?;
        if let (true, Some(worked)) = (is_new, self.model.operations.all.get_mut(&id)) {
            worked.ids = ids.into_iter().collect();
        }
        // Most are started at once.
        if self.chance.one_in(3) {
            return Ok(());
        }
        self.moved(Move::Change(id.clone(), Verb::Start(Some(EntryId { ms: 7, seq: 1 })), self.somebody())).await?;
        self.moved(Move::Lay(id, ENDPOINTS.map(|endpoint| endpoint.parse().unwrap()).to_vec())).await
    }

    async fn change(&mut self, id: OperationId) -> Step {
        let verb = match self.chance.below(9) {
            0 => Verb::Start(None),
            1 | 2 => Verb::Pause,
            3..6 => Verb::Resume,
            6 => Verb::Cancel,
            _ => {
                let rate = Rate::of(1 + self.chance.below(300) as u32);
                // As one part has it.
                let share = rate.divided(&[1 + self.chance.below(3), self.chance.below(400)])[0];
                Verb::Rate(if self.chance.one_in(2) { rate } else { share })
            }
        };
        self.moved(Move::Change(id, verb, self.somebody())).await
    }

    /// Passes whatever is left, looks at what is under way, and ends it if it can.
    async fn wind_up(&mut self, id: OperationId) -> Step {
        let places = self.model.operations.all.get(&id).map(|worked| worked.places.clone()).unwrap_or_default();
        let mark = Mark { by: "ops".to_owned(), why: "mended".to_owned(), at_ms: 7 };
        for (endpoint, before) in places {
            let taking = Taking { endpoint, before, after: None, letters: Vec::new() };
            self.moved(Move::Take(id.clone(), Kind::Discard, mark.clone(), taking)).await?;
        }
        self.moved(Move::Send(id.clone(), MAX_BATCH)).await?;
        let (kind, of) = (self.kind_of(&id, Kind::Redeliver), self.claims_of(&id));
        self.moved(Move::Book { id: id.clone(), kind, is_gone: false, waits: Vec::new(), of }).await?;
        self.moved(Move::End(id, false)).await
    }

    fn somebody(&self) -> Change {
        Change { by: "ops".to_owned(), why: "it is mended".to_owned(), at_ms: self.terms as u64 }
    }

    /// Mostly the next letters of one endpoint, as they died; or others, too many, or from another place.
    fn some_taking(&mut self, id: OperationId) -> Move {
        let (endpoint, before, after) = self.some_places(&id);
        let mut letters = match self.chance.one_in(10) {
            true => (0..self.chance.below(4)).map(|_| (self.some_delivery().0, 0)).collect(),
            false => Vec::new(),
        };
        let is_whole = self.chance.one_in(3);
        for (letter, (died, _)) in &self.model.dead {
            if letter.endpoint == endpoint && (is_whole || self.chance.one_in(2)) {
                letters.push((letter.clone(), died - u64::from(self.chance.one_in(8))));
            }
        }
        if let Some(first) = letters.first().cloned() {
            match self.chance.below(30) {
                0 => letters.resize(MAX_BATCH, first),
                1 => letters.resize(MAX_BATCH + 1, first),
                2..6 => letters.push(first),
                _ => {}
            }
        }
        let otherwise = if self.chance.one_in(2) { Kind::Discard } else { Kind::Redeliver };
        // Of the other kinds nothing is asked for in the inbox.
        let kind = Some(self.kind_of(&id, otherwise)).filter(|kind| matches!(kind, Kind::Redeliver | Kind::Discard));
        let kind = kind.unwrap_or(otherwise);
        let mark = Mark { by: "ops".to_owned(), why: format!("mended ({id})"), at_ms: 7 };
        Move::Take(id, kind, mark, Taking { endpoint, before, after, letters })
    }

    fn some_replay(&mut self, id: OperationId) -> Move {
        let (endpoint, before, after) = self.some_places(&id);
        let events = (0..self.chance.below(5)).map(|_| RawEvent {
            entry: self.some_entry(),
            body: self.some_bytes(),
            number: self.chance.one_in(2).then(|| self.chance.below(1 << 53)),
            traceparent: if self.chance.one_in(2) { TRACEPARENT.to_owned() } else { String::new() },
        });
        let events = events.collect();
        let refusal = self.chance.one_in(5).then(|| long("its endpoint is disabled", self.chance.below(30)));
        Move::Replay(id, Replaying { endpoint, before, after, refusal, events })
    }

    /// An endpoint, nearly always its place, and the next.
    fn some_places(&mut self, id: &OperationId) -> (EndpointId, String, Option<String>) {
        let endpoint = self.some_endpoint();
        let place = self.model.operations.all.get(id).and_then(|worked| worked.places.get(&endpoint).cloned());
        let before = match self.chance.one_in(12) {
            true => "6 7-0:ep_a".to_owned(),
            false => place.unwrap_or_default(),
        };
        let after = match self.chance.below(5) {
            0 | 1 => None,
            2 => Some(before.clone()),
            n => Some(format!("{n} 7-0:{endpoint}")),
        };
        (endpoint, before, after)
    }

    /// Mostly all that it has under way.
    fn some_booking(&mut self, id: OperationId) -> Move {
        let mut of = self.claims_of(&id);
        if self.chance.one_in(4) {
            of.retain(|_| self.chance.one_in(2));
        }
        if self.chance.one_in(4) {
            of.extend((0..3).map(|_| self.some_delivery().0));
            of.extend(self.model.operations.claims.keys().next().cloned());
        }
        let waits = (0..self.chance.below(2)).map(|n| format!("ep_{n}: paused")).collect();
        let kind = self.kind_of(&id, Kind::SendNow);
        Move::Book { id, kind, is_gone: self.chance.one_in(3), waits, of }
    }

    fn claims_of(&self, id: &OperationId) -> Vec<DeliveryId> {
        let claims = self.model.operations.claims.iter();
        claims.filter(|(_, claim)| claim.by == *id).map(|(delivery, _)| delivery.clone()).collect()
    }

    fn kind_of(&self, id: &OperationId, otherwise: Kind) -> Kind {
        self.model.operations.all.get(id).map_or(otherwise, |worked| worked.operation.plan.kind)
    }

    /// Somebody takes an operation away, or its plan is forgotten by itself.
    async fn vanish(&mut self, id: OperationId) -> Step {
        let keys = self.keys.clone();
        let names =
            [keys.operation(&id), keys.operation_endpoints(&id), keys.operation_ids(&id), keys.operation_results(&id)];
        for name in names {
            self.raw::<u64>(&["DEL", &name]).await;
        }
        let operations = &mut self.model.operations;
        operations.all.remove(&id);
        if self.chance.one_in(2) {
            for set in [&mut operations.planned, &mut operations.open, &mut operations.ended] {
                set.remove(&id);
            }
            for set in [keys.operations_planned(), keys.operations_open(), keys.operations_ended()] {
                self.raw::<u64>(&["ZREM", &set, id.as_str()]).await;
            }
        }
        Ok(())
    }

    /// As many as there may be, and a few more, or less.
    async fn crowd(&mut self) -> Step {
        let keys = self.keys.clone();
        let few = self.chance.below(40);
        let (set, count, at_ms) = match self.chance.below(4) {
            0 => (keys.operations_planned(), MAX_PLANNED - 20 + few, 1_000_000_000_000),
            1 => (keys.operations_planned(), MAX_PLANNED - 20 + few, self.redis_time().await),
            2 => (keys.operations_ended(), MAX_ENDED - 20 + few, 1_000_000_000_000),
            _ => (keys.operations_open(), MAX_OPEN - few % 2, 1_000_000_000_000),
        };
        let mut command = redis::cmd("ZADD");
        command.arg(&set);
        let operations = &mut self.model.operations;
        let modelled = match &set {
            set if *set == keys.operations_planned() => &mut operations.planned,
            set if *set == keys.operations_ended() => &mut operations.ended,
            _ => &mut operations.open,
        };
        for n in 0..count {
            let id: OperationId = format!("op_other{n}").parse().unwrap();
            command.arg(at_ms).arg(id.as_str());
            modelled.insert(id, at_ms);
        }
        command.query_async::<u64>(&mut self.raw).await.map_err(|error| error.to_string())?;
        self.tell(&format_args!("{count} others are in {set}"));
        if set != keys.operations_open() {
            return Ok(());
        }
        let planned = self.model.operations.planned.keys().next().cloned();
        let id = planned.unwrap_or_else(|| OPERATIONS[0].parse().unwrap());
        self.moved(Move::Change(id, Verb::Start(None), self.somebody())).await?;
        // The owner finds that there are none of them.
        let others = self.model.operations.open.keys().filter(|id| id.as_str().starts_with("op_other"));
        for id in others.cloned().collect::<Vec<_>>() {
            self.raw::<u64>(&["ZREM", &keys.operations_open(), id.as_str()]).await;
            self.model.operations.open.remove(&id);
        }
        Ok(())
    }

    /// What was granted was granted long ago.
    async fn grow_old(&mut self) -> Step {
        let claims = self.keys.operation_claims();
        let mut written = Vec::new();
        for (delivery, claim) in &mut self.model.operations.claims {
            if let Claimed::Granted { since_ms } = &mut claim.stands {
                *since_ms -= PATIENCE_MS;
                let text = format!("{} {} granted@{since_ms}", claim.by, claim.died_ms);
                written.push((delivery.to_string(), text));
            }
        }
        for (delivery, text) in written {
            self.raw::<u64>(&["HSET", &claims, &delivery, &text]).await;
        }
        Ok(())
    }

    /// Often one that is worked on.
    fn some_operation(&mut self) -> OperationId {
        let all = self.model.operations.all.iter();
        let running = all.filter(|(_, worked)| worked.operation.state == State::Running);
        let running: Vec<OperationId> = running.map(|(id, _)| id.clone()).collect();
        match running.len() as u64 {
            n if n > 0 && !self.chance.one_in(4) => running[self.chance.below(n) as usize].clone(),
            _ => OPERATIONS[self.chance.below(OPERATIONS.len() as u64) as usize].parse().unwrap(),
        }
    }

    /// Mostly a delivery that is unfinished.
    fn some_waiting(&mut self) -> DeliveryId {
        let records: Vec<_> = self.model.records.keys().cloned().collect();
        match records.len() as u64 {
            n if n > 0 && !self.chance.one_in(5) => records[self.chance.below(n) as usize].clone(),
            _ => self.some_delivery().0,
        }
    }
}

/// What the owner answers, or why one is refused: also longer than is kept of it, and cut within a letter.
pub fn long(text: &str, more: u64) -> String {
    format!("{text}: {}", "är".repeat(more as usize * 7 + more as usize % 2))
}

/// Everything that is written with the time at which it happens.
fn times(model: &mut Model) -> Vec<&mut u64> {
    let Model { due, operations, .. } = model;
    let mut times: Vec<&mut u64> = due.values_mut().collect();
    times.extend(
        operations.planned.values_mut().chain(operations.open.values_mut()).chain(operations.ended.values_mut()),
    );
    for worked in operations.all.values_mut() {
        times.extend(&mut worked.operation.ended_ms);
        times.extend(worked.results.iter_mut().map(|result| &mut result.at_ms));
    }
    let since = operations.claims.values_mut().filter_map(|claim| match &mut claim.stands {
        Claimed::Granted { since_ms } => Some(since_ms),
        Claimed::Asked(_) | Claimed::Replayed => None,
    });
    times.extend(since);
    times
}

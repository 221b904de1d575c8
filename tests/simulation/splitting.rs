//! A stream that was worked on is split into parts, by owners of which each may die at every step while its last call is still under way,
//! over slots of which each may go back to what its replica had. What scripts mean and what goes where is the product's.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use herald::{
    dispatch::handing::{Shape, share_out},
    facts::{
        delivery::Chain,
        event::account_of,
        id::{AccountId, DeliveryId, EntryId, IntentId},
        letter::LetterFacts,
        partition::{Mode, Slot},
    },
    store::{
        model::Model,
        moving::{Exported, Handed, Took},
        protocol::{Answer, Call, Item, Place, ReadFrom, Settlement, Start, Term},
        routing::{Appended, Batch, Gating, ModeSet, Passed, Route},
    },
};

use super::plan::Chance;

const PARTS: u32 = 3;
const ACCOUNTS: u64 = 7;
const EPOCH_MS: u64 = 1_700_000_000_000;
const MOST_STEPS: usize = 5_000;

/// While it lasts things go wrong; then the split must come to its end.
const TROUBLED_STEPS: usize = 200;

/// Ways to do it wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// The worker of a part does not look at its gate.
    NoGate,
    /// A part takes what comes whatever its gate says.
    LateIsTaken,
    DroppedBeforeAdopted,
    /// What a part's replica does not have leaves the stream.
    DroppedBeforeWait,
    /// It counts as routed as soon as something was handed over.
    RoutedBeforeNothingIsLeft,
    /// Something was handed over before replicas knew that the stream is being split.
    MovedBeforeWait,
    /// Each part takes all pending entries that it is given, also again.
    NotCompared,
    /// Chains are handed over the last of them first.
    BackToFront,
    /// It is taken back although something was handed over.
    CancelledTooLate,
}

impl Mutation {
    pub const ALL: [Self; 9] = [
        Self::NoGate,
        Self::LateIsTaken,
        Self::DroppedBeforeAdopted,
        Self::DroppedBeforeWait,
        Self::RoutedBeforeNothingIsLeft,
        Self::MovedBeforeWait,
        Self::NotCompared,
        Self::BackToFront,
        Self::CancelledTooLate,
    ];
}

/// How much of what was tried.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tried {
    pub records: u64,
    pub letters: u64,
    pub entries: u64,
    pub deaths: u64,
    pub late: u64,
    pub failovers: u64,
    pub worked_again: u64,
    pub cancelled: u64,
}

impl Tried {
    pub fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.letters += other.letters;
        self.entries += other.entries;
        self.deaths += other.deaths;
        self.late += other.late;
        self.failovers += other.failovers;
        self.worked_again += other.worked_again;
        self.cancelled += other.cancelled;
    }

    pub fn all(&self) -> [u64; 8] {
        let Self { records, letters, entries, deaths, late, failovers, worked_again, cancelled } = *self;
        [records, letters, entries, deaths, late, failovers, worked_again, cancelled]
    }
}

struct Server {
    model: Model,
    replica: Model,
}

/// A call that changes something, of which the caller may have died.
#[derive(Debug, Clone)]
enum Change {
    Mode {
        term: Term,
        from: Mode,
        to: Mode,
    },
    Gate {
        part: u32,
        token: String,
    },
    /// It was cancelled.
    OpenAgain {
        part: u32,
        token: String,
    },
    Give {
        token: String,
        handed: Handed,
    },
    TakeOut {
        term: Term,
        leaves: Settlement,
    },
    Open {
        route: Route,
        part: u32,
    },
}

/// Where an owner is.
#[derive(Debug, Clone)]
enum At {
    Acquired,
    /// The mode is known to replicas; so many parts are closed.
    Closing(u32),
    HandingOver,
    Giving {
        shares: Vec<Handed>,
        leaves: Settlement,
    },
    Opening(u32),
    Over,
}

struct World {
    chance: Chance,
    mutation: Option<Mutation>,
    servers: Vec<Server>,
    terms: u128,
    term: Term,
    tokens: u32,
    at: At,
    late: Vec<Change>,
    is_troubled: bool,
    /// What each part's worker has found and ended, in its order.
    delivered: Vec<DeliveryId>,
    read: BTreeSet<(usize, EntryId)>,
    tried: Tried,
}

pub type Broken = String;

/// One run.
pub fn seed(seed: u64, mutation: Option<Mutation>) -> (Tried, Option<Broken>) {
    let mut world = World::new(seed, mutation);
    let before = world.servers[0].model.clone();
    let broken = world.run(&before).err();
    (world.tried, broken)
}

fn account(number: u64) -> AccountId {
    AccountId::new(&format!("acc_{number}")).unwrap()
}

fn server_of(account: &AccountId) -> usize {
    1 + usize::from(Slot::of_account(account).number()) % PARTS as usize
}

/// Of the account, as all are in a record's endpoint.
fn home(id: &DeliveryId) -> usize {
    server_of(&AccountId::new(&id.endpoint.as_str().replace("ep_", "acc_")).unwrap())
}

impl World {
    fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut chance = Chance::new(seed ^ 0x5711);
        let mut tried = Tried::default();
        let mut model = Model { now_ms: EPOCH_MS, ..Model::default() };
        let term = Term::new(1, "owner");
        model.call(&Call::Acquire { term: term.clone(), previous: vec![], ttl_ms: 1_000_000 }).unwrap();
        for number in 1..=chance.within(2, 12) {
            let account = account(chance.below(ACCOUNTS));
            model.publish(EntryId { ms: number, seq: 0 }, format!("{{\"accountId\":\"{account}\"}}").into());
        }
        model.call(&Call::Open { term: term.clone(), start: Start::Oldest, registry: "reg_1".to_owned() }).unwrap();
        let max = chance.below(8) as usize;
        model.call(&Call::Read { term: term.clone(), from: ReadFrom::New, max }).unwrap();
        tried.entries += max as u64;
        let mut items = Vec::new();
        for number in 0..chance.below(40) {
            let of = chance.below(ACCOUNTS);
            let id: DeliveryId = format!("{}-0:ep_{of}", 100 + number).parse().unwrap();
            let intent: IntentId = format!("pi_{}", chance.below(2)).parse().unwrap();
            let is_single = chance.one_in(4);
            let chain = if is_single { Chain::Single(intent.clone(), id.entry) } else { Chain::Intent(intent.clone()) };
            let record = Bytes::from(format!("{{\"account\":\"acc_{of}\",\"intent\":\"{intent}\"}}\n{number}"));
            if chance.one_in(4) {
                let facts = LetterFacts { account: Some(account(of)), ..LetterFacts::unreadable() };
                items.push(Item::TakeLetter { id, at_ms: 5 + number, facts: Box::new(facts), letter: record });
                tried.letters += 1;
            } else {
                let place = [Place::DueIn(7_000), Place::Backlog, Place::Claimed][chance.below(3) as usize];
                items.push(Item::Keep { id, chain, place, record });
                tried.records += 1;
            }
        }
        let last_read = model.stream.groups.values().next().unwrap().last_delivered;
        let settlement = Settlement { items, last_read, ..Settlement::default() };
        model.call(&Call::Settle { term: term.clone(), settlement }).unwrap();
        let mut servers = vec![Server { replica: model.clone(), model }];
        for _ in 0..PARTS {
            let model = Model { now_ms: EPOCH_MS, ..Model::default() };
            servers.push(Server { replica: model.clone(), model });
        }
        Self {
            chance,
            mutation,
            servers,
            terms: 1,
            term,
            tokens: 0,
            at: At::Acquired,
            late: Vec::new(),
            is_troubled: true,
            delivered: Vec::new(),
            read: BTreeSet::new(),
            tried,
        }
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn run(&mut self, before: &Model) -> Result<(), Broken> {
        for step in 0..MOST_STEPS {
            self.is_troubled = step < TROUBLED_STEPS;
            match self.is_troubled {
                true => self.trouble(),
                false => self.late.clear(),
            }
            self.step();
            for part in 1..=PARTS as usize {
                self.work(part);
            }
            for (at, server) in self.servers.iter().enumerate() {
                server.model.check().map_err(|why| format!("step {step}, server {at}: {why}"))?;
                server.model.check_indexes().map_err(|why| format!("step {step}, server {at}: {why}"))?;
            }
            let is_idle = self.servers[1..].iter().all(|server| server.model.records.is_empty());
            if matches!(self.at, At::Over) && !self.is_troubled && is_idle {
                return self.judge(before);
            }
        }
        Err(format!("it does not come to its end: {:?}", self.at))
    }

    fn trouble(&mut self) {
        // Its last call may come late, or never.
        if self.chance.one_in(12) {
            self.tried.deaths += 1;
            self.owner_dies();
        }
        if self.chance.one_in(4) && !self.late.is_empty() {
            let at = self.chance.below(self.late.len() as u64) as usize;
            let change = self.late.swap_remove(at);
            self.tried.late += 1;
            self.apply(&change);
        }
        let at = self.chance.below(u64::from(PARTS) + 1) as usize;
        if self.chance.one_in(3) {
            self.servers[at].replica = self.servers[at].model.clone();
        }
        // A part that works is the matter of another test.
        if self.chance.one_in(10) && self.servers[at].model.registry.is_none() | (at == 0) {
            self.tried.failovers += 1;
            let lease = self.servers[at].model.lease.clone();
            self.servers[at].model = self.servers[at].replica.clone();
            self.servers[at].model.lease = lease;
            if at == 0 {
                self.owner_dies();
            }
        }
    }

    fn owner_dies(&mut self) {
        self.terms += 1;
        self.term = Term::new(self.terms, "owner");
        self.servers[0].model.lease = None;
        let call = Call::Acquire { term: self.term.clone(), previous: vec![], ttl_ms: 1_000_000 };
        self.servers[0].model.call(&call).unwrap();
        if self.servers[0].model.mode == Mode::Worked && self.tokens > 0 {
            self.tried.worked_again += 1;
        }
        self.at = At::Acquired;
    }

    /// What an owner does next. Its call may be carried out without it, at once or later.
    fn change(&mut self, change: Change) -> Option<bool> {
        if self.is_troubled && self.chance.one_in(10) {
            self.tried.deaths += 1;
            match self.chance.below(2) {
                0 => self.late.push(change),
                _ => drop(self.apply(&change)),
            }
            self.owner_dies();
            return None;
        }
        Some(self.apply(&change))
    }

    fn apply(&mut self, change: &Change) -> bool {
        match change {
            Change::Mode { term, from, to } => {
                matches!(self.servers[0].model.set_mode(term, from, to), ModeSet::Done)
            }
            Change::Gate { part, token } => {
                !matches!(self.servers[*part as usize + 1].model.close(token), Gating::Gated { .. })
            }
            Change::OpenAgain { part, token } => {
                self.servers[*part as usize + 1].model.open_part(token);
                true
            }
            Change::Give { token, handed } => self.give(token, handed),
            Change::TakeOut { term, leaves } => {
                let call = Call::Settle { term: term.clone(), settlement: leaves.clone() };
                matches!(self.servers[0].model.call(&call), Ok(Answer::Settled { .. }))
            }
            Change::Open { route, part } => {
                let model = &mut self.servers[*part as usize + 1].model;
                let at = model.routed.unwrap_or_default().max(route.barrier);
                let batch = Batch { part: *part, after: at, up_to: at, entries: Vec::new() };
                matches!(model.append(route, &batch), Appended::Done { .. })
            }
        }
    }

    fn give(&mut self, token: &str, handed: &Handed) -> bool {
        let (compares, takes) = (!self.is(Mutation::NotCompared), self.is(Mutation::LateIsTaken));
        let model = &mut self.servers[handed.part as usize + 1].model;
        let gate = model.gate.clone();
        if takes {
            model.gate = Some(token.to_owned());
        }
        let mut after = EntryId::ZERO;
        while !handed.entries.is_empty() {
            let entries: Vec<Passed> = handed.entries.iter().filter(|entry| entry.id > after).cloned().collect();
            let up_to = entries.last().map_or(after, |last| last.id);
            if !compares {
                after = model.routed.unwrap_or_default();
            }
            let batch = Batch { part: handed.part, after, up_to, entries };
            match model.take_pending(token, &batch) {
                Appended::Done { .. } => break,
                Appended::At(at) => after = at,
                Appended::Gated { .. } | Appended::Open | Appended::Partly(_) => return false,
            }
        }
        let took = handed.items.is_empty() || model.adopt(token, &handed.items) == Took::All;
        if takes {
            model.gate = gate;
        }
        took
    }

    fn replicated(&mut self, at: usize) {
        self.servers[at].replica = self.servers[at].model.clone();
    }

    fn step(&mut self) {
        let mode = self.servers[0].model.mode.clone();
        match (self.at.clone(), mode) {
            (At::Acquired, Mode::Worked) => {
                // Only if it had none, as its owner looks.
                if (1..=PARTS as usize).all(|part| self.servers[part].model.routed.is_none()) {
                    self.tokens += 1;
                    let to = Mode::Splitting { parts: PARTS, token: format!("t{}", self.tokens), has_begun: false };
                    self.change(Change::Mode { term: self.term.clone(), from: Mode::Worked, to });
                }
            }
            (At::Acquired, mode @ Mode::Splitting { .. }) => {
                if !self.is(Mutation::MovedBeforeWait) {
                    let again = Change::Mode { term: self.term.clone(), from: mode.clone(), to: mode };
                    if self.change(again) != Some(true) {
                        return;
                    }
                    self.replicated(0);
                }
                self.at = At::Closing(0);
            }
            (_, mode @ Mode::Splitting { .. }) if self.wants_it_back(&mode) => self.cancel(mode),
            (At::Closing(PARTS), Mode::Splitting { has_begun: true, .. }) => self.at = At::HandingOver,
            (At::Closing(PARTS), mode @ Mode::Splitting { has_begun: false, .. }) => {
                let Mode::Splitting { parts, token, .. } = mode.clone() else { return };
                let to = Mode::Splitting { parts, token, has_begun: true };
                if self.change(Change::Mode { term: self.term.clone(), from: mode, to }).is_some() {
                    // Replicas must know of that, too.
                    self.at = At::Acquired;
                }
            }
            (At::Closing(part), Mode::Splitting { token, .. }) => {
                if self.change(Change::Gate { part, token }) == Some(true) {
                    self.at = At::Closing(part + 1);
                }
            }
            (At::HandingOver, mode @ Mode::Splitting { .. }) => self.hand_over(mode),
            (At::Giving { mut shares, leaves }, Mode::Splitting { token, .. }) => {
                if self.is(Mutation::DroppedBeforeAdopted)
                    && self.change(Change::TakeOut { term: self.term.clone(), leaves: leaves.clone() }).is_none()
                {
                    return;
                }
                match shares.pop() {
                    Some(handed) => {
                        let part = handed.part as usize + 1;
                        match self.change(Change::Give { token, handed }) {
                            Some(true) => {
                                if !self.is(Mutation::DroppedBeforeWait) {
                                    self.replicated(part);
                                }
                                self.at = At::Giving { shares, leaves };
                            }
                            // It is tried from the beginning.
                            Some(false) => self.at = At::Acquired,
                            None => {}
                        }
                    }
                    None => {
                        let taken = self.change(Change::TakeOut { term: self.term.clone(), leaves });
                        if taken.is_some() {
                            self.at = At::HandingOver;
                        }
                    }
                }
            }
            (At::Acquired, mode @ Mode::Routed { .. }) => {
                if self.servers[0].model.cursor.is_none() {
                    let again = Change::Mode { term: self.term.clone(), from: mode.clone(), to: mode };
                    if self.change(again) != Some(true) {
                        return;
                    }
                    self.replicated(0);
                }
                self.at = At::Opening(0);
            }
            (At::Opening(part), Mode::Routed { parts, token, barrier }) => {
                let route = Route { parts, token, barrier };
                if part == PARTS {
                    self.at = At::Over;
                } else if self.change(Change::Open { route, part }) == Some(true) {
                    self.replicated(part as usize + 1);
                    self.at = At::Opening(part + 1);
                }
            }
            (At::Over, Mode::Routed { .. }) => {}
            // A failover has set it back.
            (_, _) => self.at = At::Acquired,
        }
    }

    /// Somebody has cancelled it, which is possible until it has begun.
    fn wants_it_back(&mut self, mode: &Mode) -> bool {
        let is_too_late = matches!(mode, Mode::Splitting { has_begun: true, .. });
        let may = !is_too_late || self.is(Mutation::CancelledTooLate);
        may && self.is_troubled && self.chance.one_in(8)
    }

    fn cancel(&mut self, mode: Mode) {
        let Mode::Splitting { token, .. } = mode.clone() else { return };
        match self.change(Change::Mode { term: self.term.clone(), from: mode, to: Mode::Worked }) {
            Some(true) => self.tried.cancelled += 1,
            _ => return self.at = At::Acquired,
        }
        self.at = At::Acquired;
        for part in 0..PARTS {
            if self.change(Change::OpenAgain { part, token: token.clone() }).is_none() {
                return;
            }
        }
    }

    fn hand_over(&mut self, mode: Mode) {
        let most = 1 + self.chance.below(6) as usize;
        let Mode::Splitting { parts, token, .. } = mode.clone() else { return };
        let Ok(exported) = self.servers[0].model.export(&self.term, most) else { return self.at = At::Acquired };
        let mutated = self.is(Mutation::RoutedBeforeNothingIsLeft) && self.chance.one_in(4);
        if exported.is_empty() || mutated {
            let barrier = exported.barrier.unwrap_or_default();
            let to = Mode::Routed { parts, token, barrier };
            if self.change(Change::Mode { term: self.term.clone(), from: mode, to }).is_some() {
                self.at = At::Acquired;
            }
            return;
        }
        let exported = match self.is(Mutation::BackToFront) {
            true => Exported { records: exported.records.into_iter().rev().collect(), ..exported },
            false => exported,
        };
        let (shares, leaves) = share_out(exported, Shape { above: 1, parts: PARTS }, |_| None);
        self.at = At::Giving { shares, leaves };
    }

    /// The worker of a part ends all that it finds, and reads all that there is.
    fn work(&mut self, part: usize) {
        let ignores = self.is(Mutation::NoGate) && self.chance.one_in(8);
        let model = &mut self.servers[part].model;
        let gate = if ignores { model.gate.take() } else { None };
        // Nobody knows of the parts before they are opened.
        let is_known = ignores || model.routed.is_some();
        let term = Term::new(1, "worker");
        let acquire = Call::Acquire { term: term.clone(), previous: vec![term.clone()], ttl_ms: 1_000_000 };
        if is_known && let Ok(Answer::Acquired { .. }) = model.call(&acquire) {
            model.registry = Some("reg_1".to_owned());
            let heads: Vec<(DeliveryId, String)> = model
                .endpoints
                .iter()
                .flat_map(|(endpoint, chains)| {
                    chains
                        .heads
                        .iter()
                        .map(|(field, entry)| (DeliveryId { entry: *entry, endpoint: endpoint.clone() }, field.clone()))
                })
                .collect();
            for (id, field) in heads {
                let intent = model.records[&id].windows(4).find(|text| text.starts_with(b"pi_")).unwrap();
                let intent: IntentId = std::str::from_utf8(intent).unwrap().parse().unwrap();
                let chain = match field.starts_with('~') {
                    true => Chain::Single(intent, id.entry),
                    false => Chain::Intent(intent),
                };
                let items = vec![Item::Finish { id: id.clone(), chain }];
                let settlement = Settlement { items, ..Settlement::default() };
                model.call(&Call::Settle { term: term.clone(), settlement }).unwrap();
                self.delivered.push(id);
            }
            self.read.extend(model.stream.entries.keys().map(|id| (part, *id)));
            // What a worker did stays, here.
            self.servers[part].replica = self.servers[part].model.clone();
        }
        if let Some(token) = gate {
            self.servers[part].model.gate = Some(token);
            self.servers[part].model.lease = None;
        }
    }

    fn judge(&self, before: &Model) -> Result<(), Broken> {
        let now = &self.servers[0].model;
        if !now.records.is_empty() || !now.dead.is_empty() || now.stream.groups.values().any(|g| !g.pending.is_empty())
        {
            return Err(format!("something is left in the stream: {:?}, {:?}", now.records.keys(), now.dead.keys()));
        }
        let delivered: BTreeSet<&DeliveryId> = self.delivered.iter().collect();
        if delivered.len() != self.delivered.len() {
            return Err(format!("something was delivered twice: {:?}", self.delivered));
        }
        if delivered != before.records.keys().collect() {
            return Err(format!("{delivered:?} were delivered, of {:?}", before.records.keys()));
        }
        for (endpoint, chains) in &before.endpoints {
            for (field, head) in &chains.heads {
                let held = chains.held.iter().filter(|(intent, _)| intent.as_str() == field).map(|(_, entry)| *entry);
                let meant: Vec<EntryId> = std::iter::once(*head).chain(held).collect();
                let came = self.delivered.iter().filter(|id| id.endpoint == *endpoint && meant.contains(&id.entry));
                let came: Vec<EntryId> = came.map(|id| id.entry).collect();
                if came != meant {
                    return Err(format!("{field} of {endpoint} came as {came:?}, not as {meant:?}"));
                }
            }
        }
        let mut letters = BTreeMap::new();
        for (part, server) in self.servers.iter().enumerate().skip(1) {
            for (id, letter) in &server.model.dead {
                if home(id) != part || letters.insert(id.clone(), letter.clone()).is_some() {
                    return Err(format!("the letter {id} is in {part}"));
                }
            }
        }
        if letters != before.dead {
            return Err(format!("{:?} are dead, of {:?}", letters.keys(), before.dead.keys()));
        }
        let pending = before.stream.groups.values().flat_map(|group| group.pending.keys());
        let part_of = |id: &EntryId| {
            let event = &before.stream.entries[id][0].1;
            (server_of(&account_of(event).unwrap()), *id)
        };
        let meant: BTreeSet<(usize, EntryId)> = pending.map(part_of).collect();
        match self.read == meant {
            true => Ok(()),
            false => Err(format!("{:?} were read, not {meant:?}", self.read)),
        }
    }
}

//! A stream and its parts, each in a slot of its own: routers that crash, freeze and overlap, answers that are lost or late, and slots
//! of which each goes back by itself to what its replica had. The router is the product's, and so is what the scripts mean.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use herald::{
    dispatch::router::{Happening, Router, Settings, Step},
    facts::{
        envelope::Envelope,
        event::account_of,
        id::{AccountId, EntryId},
        partition::{Mode, Slot},
    },
    store::{
        model::{Group, Model, Quarantined},
        protocol::{Answer, Call, GROUP, Item, Settlement, Term},
        routing::{Appended, Batch, Gating, ModeSet, Page, Route, Trimming},
    },
};

use super::plan::Chance;

const PARTS: u32 = 3;
const ROUTERS: usize = 3;
const ACCOUNTS: u64 = 7;
const EPOCH_MS: u64 = 1_700_000_000_000;

/// For how long things go wrong, and how long the rest may take then.
const ACTIVE_MS: u64 = 5_000;
const PATIENCE_MS: u64 = 20_000;

const LEASE_MS: u64 = 400;
const RETAIN_MS: u64 = 100;
const TOKEN: &str = "t0";

/// Their numbers come before those of all events.
const QUARANTINED: usize = 3;

/// Ways to do it wrong, at the boundary between a router and Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A part takes what follows on something else than what it has.
    NotCompared,
    /// What a part says counts although its replica does not have it.
    CursorBeforeWait,
    /// The parts are opened before replicas know that the stream is routed.
    OpenedBeforeWait,
    NoGate,
    IdsNotRaised,
    /// A call whose answer was lost counts as done.
    LostAnswerBelieved,
    /// Whatever the owner settles says how far the parts are.
    CursorSettled,
}

impl Mutation {
    pub const ALL: [Self; 7] = [
        Self::NotCompared,
        Self::CursorBeforeWait,
        Self::OpenedBeforeWait,
        Self::NoGate,
        Self::IdsNotRaised,
        Self::LostAnswerBelieved,
        Self::CursorSettled,
    ];
}

/// One slot: what its master has, and what its replica has of that.
struct Server {
    model: Model,
    replica: Model,
    /// Grows with each failover: what is under way then has no answer.
    life: u64,
    is_down: bool,
}

/// Who has the lease of the stream, and what they are doing.
enum Spell {
    /// Waits for the lease.
    Waiting,
    /// Closes the parts, hands over, and says that the stream is routed.
    Splitting {
        term: Term,
        closed: u32,
    },
    Routing {
        term: Term,
        router: Box<Router>,
    },
}

struct Worker {
    life: u64,
    spell: Spell,
    frozen_until: u64,
    renew_at: u64,
}

#[derive(Debug, Clone)]
enum Ask {
    Read {
        after: EntryId,
        most: usize,
        of_stream: bool,
    },
    Append(Batch),
    Trim(Term, Trimming),
    /// Somebody wants an entry back from the quarantine.
    Requeue(Term, EntryId),
}

#[derive(Debug, Clone)]
enum Told {
    Page(Option<Page>),
    Appended(u32, Result<Appended, String>, bool),
    Trimmed,
    Requeued,
    Over,
}

#[derive(Debug, Clone)]
enum Event {
    Wake {
        worker: usize,
        life: u64,
    },
    /// Whether its client is told what came of it.
    Apply {
        worker: usize,
        life: u64,
        server: usize,
        of: u64,
        ask: Ask,
        replies: bool,
    },
    Answer {
        worker: usize,
        life: u64,
        told: Told,
    },
    Publish,
    WriteToPart,
    /// The worker of a part asks for its lease.
    Own {
        part: u32,
    },
    Trouble,
    Up {
        server: usize,
    },
    Replicate,
    Crash {
        worker: usize,
    },
}

/// What went wrong.
pub type Broken = String;

/// How much of what was tried.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tried {
    pub events: u64,
    pub passed: u64,
    pub failovers: u64,
    pub set_back: u64,
    pub elsewhere: u64,
    pub raised: u64,
    pub trimmed: u64,
    pub overlaps: u64,
    pub requeued: u64,
}

impl Tried {
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.passed += other.passed;
        self.failovers += other.failovers;
        self.set_back += other.set_back;
        self.elsewhere += other.elsewhere;
        self.raised += other.raised;
        self.trimmed += other.trimmed;
        self.overlaps += other.overlaps;
        self.requeued += other.requeued;
    }
}

struct World {
    chance: Chance,
    mutation: Option<Mutation>,
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    number: u64,
    /// When everything is looked at again.
    checked_at: u64,
    /// The stream's, then those of its parts.
    servers: Vec<Server>,
    workers: Vec<Worker>,
    terms: u128,
    /// By number: the account, and whether the stream's replica had it when it was accepted.
    events: Vec<(AccountId, bool)>,
    direct: u64,
    /// How often each of those in quarantine was put back.
    requeued: BTreeMap<usize, u32>,
    tried: Tried,
    trace: Vec<String>,
    broken: Option<Broken>,
}

/// One run.
pub fn seed(seed: u64, mutation: Option<Mutation>) -> (Tried, Option<Broken>) {
    let mut world = World::new(seed, mutation);
    let broken = world.run();
    (world.tried, broken)
}

fn account(number: u64) -> AccountId {
    AccountId::new(&format!("acc_{number}")).unwrap()
}

fn server_of(account: &AccountId) -> usize {
    1 + usize::from(Slot::of_account(account).number()) % PARTS as usize
}

impl World {
    fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let server = |at: usize| {
            let splitting = Mode::Splitting { parts: PARTS, token: TOKEN.to_owned(), has_begun: true };
            let mode = if at == 0 { splitting } else { Mode::Worked };
            let gate = (at > 0).then(|| TOKEN.to_owned());
            let model = Model { now_ms: EPOCH_MS, mode, gate, ..Model::default() };
            Server { replica: model.clone(), model, life: 0, is_down: false }
        };
        let worker = || Worker { life: 0, spell: Spell::Waiting, frozen_until: 0, renew_at: 0 };
        let mut world = Self {
            chance: Chance::new(seed ^ 0x0e7a),
            mutation,
            now: 0,
            queue: BTreeMap::new(),
            number: 0,
            checked_at: 0,
            servers: (0..=PARTS as usize).map(server).collect(),
            workers: (0..ROUTERS).map(|_| worker()).collect(),
            terms: 0,
            events: Vec::new(),
            direct: 0,
            requeued: BTreeMap::new(),
            tried: Tried::default(),
            trace: Vec::new(),
            broken: None,
        };
        for worker in 0..ROUTERS {
            world.after(worker as u64 * 10, Event::Wake { worker, life: 0 });
        }
        for part in 0..PARTS {
            world.after(1, Event::Own { part });
        }
        for event in [Event::Publish, Event::WriteToPart, Event::Trouble, Event::Replicate] {
            world.after(1, event);
        }
        world.quarantine();
        world
    }

    /// The stream was worked on before, and some of its entries were no events to whoever read them then.
    fn quarantine(&mut self) {
        for number in 0..QUARANTINED {
            let of = account(self.chance.below(ACCOUNTS));
            let entry = EntryId { ms: 1 + number as u64, seq: 0 };
            let quarantined = Quarantined {
                body: Bytes::from(format!(r#"{{"accountId":"{of}","n":{number}}}"#)),
                cut: false,
                error: "odd".to_owned(),
                envelope: Envelope::default(),
                place: entry,
                is_sound: true,
            };
            self.servers[0].model.quarantine.push((entry, quarantined));
            self.events.push((of, true));
        }
        self.servers[0].model.stream.groups.insert(GROUP.to_owned(), Group::default());
        self.replicate(0);
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.number += 1;
        self.queue.insert((self.now + ms, self.number), event);
    }

    fn is_healed(&self) -> bool {
        self.now >= ACTIVE_MS
    }

    fn run(&mut self) -> Option<Broken> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.servers.iter_mut().for_each(|server| server.model.now_ms = EPOCH_MS + at);
            self.tell(&event);
            self.happen(event);
            // Each look reads everything.
            let is_time = self.number >= self.checked_at;
            if is_time {
                self.checked_at = self.number + 50;
            }
            let broken = self.broken.take().or_else(|| if is_time { self.check().err() } else { None });
            if let Some(why) = broken {
                return Some(self.story(&why));
            }
            if is_time && self.is_healed() && self.has_ended() {
                return self.check().err();
            }
            if at > ACTIVE_MS + PATIENCE_MS {
                return Some(self.story(&format!("it did not end: {}", self.missing())));
            }
        }
        Some("nothing is left to happen".to_owned())
    }

    fn story(&self, why: &str) -> String {
        let (why, last) =
            (why.chars().take(300).collect::<String>(), &self.trace[self.trace.len().saturating_sub(60)..]);
        let spell = |worker: &Worker| match &worker.spell {
            Spell::Waiting => "waits".to_owned(),
            Spell::Splitting { closed, .. } => format!("splits, {closed} closed"),
            Spell::Routing { router, .. } => format!("routes: {router:?}"),
        };
        let workers: Vec<String> = self.workers.iter().map(spell).collect();
        let routed: Vec<_> = self.servers.iter().map(|server| (server.model.routed, &server.model.mode)).collect();
        format!("{why}\n  {}\n{workers:#?}\n{routed:?}", last.join("\n  "))
    }

    fn tell(&mut self, event: &Event) {
        if !matches!(event, Event::Wake { .. } | Event::Own { .. } | Event::Replicate) {
            self.trace.push(format!("{:>6} {event:?}", self.now).chars().take(240).collect());
        }
    }

    fn happen(&mut self, event: Event) {
        let addressee = match &event {
            Event::Wake { worker, .. } | Event::Answer { worker, .. } => Some(*worker),
            _ => None,
        };
        if let Some(frozen) =
            addressee.map(|worker| self.workers[worker].frozen_until).filter(|until| *until > self.now)
        {
            return self.after(frozen - self.now, event);
        }
        match event {
            Event::Wake { worker, life } if self.workers[worker].life == life => self.wake(worker),
            Event::Wake { .. } => {}
            Event::Apply { worker, life, server, of, ask, replies } => {
                let is_there = self.servers[server].life == of && !self.servers[server].is_down;
                let told = if is_there { self.apply(&ask) } else { failed(&ask, "the connection broke") };
                // Otherwise its client was told that no answer came.
                if replies {
                    let back = self.chance.below(4);
                    self.after(back, Event::Answer { worker, life, told });
                }
            }
            Event::Answer { worker, life, told } if self.workers[worker].life == life => self.answer(worker, told),
            Event::Answer { .. } => {}
            Event::Publish if !self.is_healed() => {
                self.publish();
                let pause = self.chance.below(12);
                self.after(pause, Event::Publish);
            }
            Event::WriteToPart if !self.is_healed() => {
                self.write_to_part();
                let pause = self.chance.within(1, 60);
                self.after(pause, Event::WriteToPart);
            }
            Event::Own { part } => self.own(part),
            Event::Trouble if !self.is_healed() => {
                self.trouble();
                let pause = self.chance.within(1, 250);
                self.after(pause, Event::Trouble);
            }
            Event::Publish | Event::WriteToPart | Event::Trouble => {}
            Event::Up { server } => self.servers[server].is_down = false,
            Event::Replicate => {
                for server in 0..self.servers.len() {
                    if self.is_healed() || self.chance.one_in(4) {
                        self.replicate(server);
                    }
                }
                self.after(40, Event::Replicate);
            }
            Event::Crash { worker } => {
                let one = &mut self.workers[worker];
                one.life += 1;
                (one.spell, one.frozen_until) = (Spell::Waiting, 0);
                let life = one.life;
                self.after(20, Event::Wake { worker, life });
            }
        }
    }

    fn replicate(&mut self, server: usize) {
        let server = &mut self.servers[server];
        server.replica = server.model.clone();
    }

    /// Whether the replica has what the master has now; it is waited for, and may be late.
    fn is_confirmed(&mut self, server: usize) -> bool {
        let is_here = self.is_healed() || self.chance.one_in(2);
        if is_here {
            self.replicate(server);
        }
        is_here
    }

    fn publish(&mut self) {
        if self.servers[0].is_down {
            return;
        }
        let of = account(self.chance.below(ACCOUNTS));
        let number = self.events.len();
        let mut body = format!(r#"{{"accountId":"{of}","n":{number}}}"#);
        if self.chance.one_in(15) {
            // No event: it goes to the first part.
            body = format!(r#"{{"n":{number}}}"#);
        }
        let stream = &mut self.servers[0].model;
        let last = stream.stream.last_generated;
        let id = match stream.now_ms > last.ms {
            true => EntryId { ms: stream.now_ms, seq: 0 },
            false => EntryId { seq: last.seq + 1, ..last },
        };
        stream.publish(id, Bytes::from(body));
        let is_promised = self.is_confirmed(0);
        self.events.push((of, is_promised));
        self.tried.events += 1;
    }

    /// Others write to a part with a clock that is ahead.
    fn write_to_part(&mut self) {
        let server = 1 + self.chance.below(u64::from(PARTS)) as usize;
        if self.servers[server].is_down {
            return;
        }
        self.direct += 1;
        let ahead = self.chance.below(300);
        let model = &mut self.servers[server].model;
        let last = model.stream.last_generated;
        let id = match model.now_ms + ahead > last.ms {
            true => EntryId { ms: model.now_ms + ahead, seq: 0 },
            false => EntryId { seq: last.seq + 1, ..last },
        };
        model.publish(id, Bytes::from(format!(r#"{{"accountId":"acc_direct","direct":{}}}"#, self.direct)));
    }

    /// A part is owned by somebody as soon as that is allowed.
    fn own(&mut self, part: u32) {
        let server = part as usize + 1;
        self.after(37, Event::Own { part });
        if self.servers[server].is_down {
            return;
        }
        let gate = self.servers[server].model.gate.clone();
        if self.mutation == Some(Mutation::NoGate) {
            self.servers[server].model.gate = None;
        }
        self.terms += 1;
        let call = Call::Acquire { term: Term::new(self.terms, "part"), previous: vec![], ttl_ms: 30 };
        let answer = self.servers[server].model.call(&call);
        self.servers[server].model.gate = gate;
        let is_owned = matches!(answer, Ok(Answer::Acquired { .. }));
        if is_owned && !matches!(self.servers[0].model.mode, Mode::Routed { .. }) {
            self.broken = Some(format!("part {part} has an owner, and the stream is still handing over to it"));
        }
    }

    fn trouble(&mut self) {
        let worker = self.chance.below(ROUTERS as u64) as usize;
        match self.chance.below(6) {
            0 => self.after(0, Event::Crash { worker }),
            1 | 2 => {
                let until = self.now + self.chance.within(20, 900);
                self.workers[worker].frozen_until = until;
            }
            _ => {
                let server = self.chance.below(u64::from(PARTS) + 1) as usize;
                self.tried.failovers += 1;
                let one = &mut self.servers[server];
                self.tried.set_back += u64::from(one.replica.stream != one.model.stream);
                one.model = one.replica.clone();
                one.model.now_ms = EPOCH_MS + self.now;
                (one.life, one.is_down) = (one.life + 1, true);
                let outage = self.chance.within(5, 500);
                self.after(outage, Event::Up { server });
            }
        }
    }

    /// The worker does what can be done now.
    fn wake(&mut self, worker: usize) {
        if self.now >= self.workers[worker].renew_at {
            self.renew(worker);
        }
        self.serve(worker);
        let life = self.workers[worker].life;
        let now = self.now;
        let pause = match &mut self.workers[worker].spell {
            Spell::Waiting => self.chance.within(20, 80),
            Spell::Splitting { .. } => {
                self.split(worker);
                self.chance.within(1, 30)
            }
            Spell::Routing { term, router } => {
                let (mut steps, term) = (Vec::new(), term.clone());
                while let Some(step) = router.next(now) {
                    steps.push(step);
                }
                let pause = router.wake_at(now) - now;
                for step in steps {
                    match step {
                        Step::Read { after, most, of_stream } => {
                            // A page of a few, so that there are several.
                            let most = most.min(1 + self.chance.below(30) as usize);
                            self.send(worker, 0, Ask::Read { after, most, of_stream });
                        }
                        Step::Trim(trim) => self.send(worker, 0, Ask::Trim(term.clone(), trim)),
                        Step::Append(batches) => {
                            for batch in batches {
                                self.send(worker, batch.part as usize + 1, Ask::Append(batch));
                            }
                        }
                    }
                }
                pause.min(50)
            }
        };
        self.after(pause, Event::Wake { worker, life });
    }

    /// As soon as the stream is routed, its owner answers what is asked of it.
    fn serve(&mut self, worker: usize) {
        let (term, seldom) = match &self.workers[worker].spell {
            Spell::Waiting => return,
            // Its replica may not know of that yet.
            Spell::Splitting { term, .. } => (term.clone(), 2),
            Spell::Routing { term, .. } => (term.clone(), 20),
        };
        let model = &self.servers[0].model;
        let asked = model.quarantine.first().map(|(entry, _)| *entry);
        if let Some(entry) = asked.filter(|_| matches!(model.mode, Mode::Routed { .. }) && self.chance.one_in(seldom)) {
            self.send(worker, 0, Ask::Requeue(term, entry));
        }
    }

    fn send(&mut self, worker: usize, server: usize, ask: Ask) {
        let life = self.workers[worker].life;
        let of = self.servers[server].life;
        let is_faulty = !self.is_healed() && self.chance.one_in(12);
        let (delay, replies) = match is_faulty {
            false => (self.chance.below(4), true),
            // It is applied, now or long after, or not at all.
            true => (self.chance.below(600), false),
        };
        if is_faulty && self.chance.one_in(3) {
            let told = failed(&ask, "it never arrived");
            return self.after(5, Event::Answer { worker, life, told });
        }
        if is_faulty {
            // Who waits gives up before that.
            let told = match (self.mutation, &ask) {
                (Some(Mutation::LostAnswerBelieved), Ask::Append(batch)) => {
                    Told::Appended(batch.part, Ok(Appended::Done { count: 0, last: None }), true)
                }
                _ => failed(&ask, "no answer came in time"),
            };
            self.after(delay.min(100), Event::Answer { worker, life, told });
        }
        self.after(delay, Event::Apply { worker, life, server, of, ask, replies });
    }

    fn apply(&mut self, ask: &Ask) -> Told {
        match ask {
            Ask::Read { after, most, of_stream } => {
                Told::Page(self.servers[0].model.route_read(*after, *most, *of_stream).ok())
            }
            Ask::Trim(term, trim) => match self.servers[0].model.route_trim(term, trim, RETAIN_MS, &[]) {
                Ok(count) => {
                    self.tried.trimmed += count;
                    Told::Trimmed
                }
                Err(_) => Told::Over,
            },
            Ask::Requeue(term, entry) => {
                let mutation = self.mutation;
                let model = &mut self.servers[0].model;
                let (before, cursor) = (model.quarantine.len(), model.cursor);
                // Redis gives out an id by its time.
                let last = &mut model.stream.last_generated;
                *last = (*last).max(EntryId { ms: model.now_ms, seq: 0 });
                let settlement = Settlement { items: vec![Item::Requeue { entry: *entry }], ..Settlement::default() };
                match model.call(&Call::Settle { term: term.clone(), settlement }) {
                    Ok(Answer::Settled { .. }) => {}
                    _ => return Told::Over,
                }
                if mutation == Some(Mutation::CursorSettled) {
                    model.cursor = Some(EntryId::ZERO);
                }
                // Otherwise an owner that has just split the stream would take its parts for open, and not wait for replicas.
                if model.cursor != cursor {
                    self.broken = Some(format!("{:?} is how far the parts are, whatever they say", model.cursor));
                }
                let model = &self.servers[0].model;
                if before > model.quarantine.len() {
                    *self.requeued.entry(entry.ms as usize - 1).or_default() += 1;
                    self.tried.requeued += 1;
                }
                Told::Requeued
            }
            Ask::Append(batch) => {
                let server = batch.part as usize + 1;
                let said = self.append(server, batch);
                let is_confirmed = match self.mutation {
                    Some(Mutation::CursorBeforeWait) => true,
                    _ => self.is_confirmed(server),
                };
                Told::Appended(batch.part, said, is_confirmed)
            }
        }
    }

    fn append(&mut self, server: usize, batch: &Batch) -> Result<Appended, String> {
        let route = route();
        let model = &mut self.servers[server].model;
        let last = model.stream.last_generated;
        let is_low = batch.entries.first().is_some_and(|entry| entry.id <= last);
        if self.mutation == Some(Mutation::NotCompared) {
            model.routed = Some(batch.after);
        }
        let is_next = model.routed.unwrap_or_default() == batch.after;
        if is_low && is_next {
            if self.mutation == Some(Mutation::IdsNotRaised) {
                return Err("the ID specified in XADD is equal or smaller".to_owned());
            }
            self.tried.raised += 1;
        }
        let said = model.append(&route, batch);
        if let Appended::Done { count, .. } = &said {
            self.tried.passed += count;
        }
        Ok(said)
    }

    fn answer(&mut self, worker: usize, told: Told) {
        let now = self.now;
        let life = self.workers[worker].life;
        let Spell::Routing { router, .. } = &mut self.workers[worker].spell else { return };
        match told {
            Told::Page(page) => router.page(now, page),
            Told::Appended(part, said, is_confirmed) => router.appended(now, part, said, is_confirmed),
            Told::Trimmed => router.trimmed(),
            Told::Requeued => {}
            Told::Over => {
                self.workers[worker].life += 1;
                self.workers[worker].spell = Spell::Waiting;
                return self.after(10, Event::Wake { worker, life: life + 1 });
            }
        }
        for happening in router.take_happenings() {
            match happening {
                Happening::Gap { after, .. } => {
                    self.broken = Some(format!("what is behind {after} is gone, and a part has not had it"))
                }
                Happening::Elsewhere { .. } => self.tried.elsewhere += 1,
                _ => {}
            }
        }
        self.after(0, Event::Wake { worker, life });
    }

    /// Prolongs the lease, or asks for it.
    fn renew(&mut self, worker: usize) {
        self.workers[worker].renew_at = self.now + LEASE_MS / 4;
        if self.servers[0].is_down {
            return;
        }
        let held = match &self.workers[worker].spell {
            Spell::Waiting => None,
            Spell::Splitting { term, .. } | Spell::Routing { term, .. } => Some(term.clone()),
        };
        let others = self.workers.iter().filter(|one| matches!(one.spell, Spell::Routing { .. })).count();
        let model = &mut self.servers[0].model;
        match held {
            Some(term) => {
                if model.call(&Call::Renew { term, ttl_ms: LEASE_MS }) == Ok(Answer::Lost) {
                    self.workers[worker].life += 1;
                    self.workers[worker].spell = Spell::Waiting;
                    let life = self.workers[worker].life;
                    self.after(10, Event::Wake { worker, life });
                }
            }
            None => {
                self.terms += 1;
                let term = Term::new(self.terms, &format!("worker {worker}"));
                let call = Call::Acquire { term: term.clone(), previous: vec![], ttl_ms: LEASE_MS };
                if let Ok(Answer::Acquired { .. }) = model.call(&call) {
                    self.tried.overlaps += u64::from(others > 0);
                    self.workers[worker].spell = Spell::Splitting { term, closed: 0 };
                }
            }
        }
    }

    /// One step of the split: each part is closed, then something is handed over, then the stream is routed.
    fn split(&mut self, worker: usize) {
        let Spell::Splitting { term, closed } = &self.workers[worker].spell else { return };
        let (term, closed) = (term.clone(), *closed);
        if self.servers[0].is_down {
            return;
        }
        let mode = self.servers[0].model.mode.clone();
        let routed = Mode::Routed { parts: PARTS, token: TOKEN.to_owned(), barrier: EntryId::ZERO };
        if mode != routed && closed < PARTS {
            let server = &mut self.servers[closed as usize + 1];
            if !server.is_down && server.model.close(TOKEN) == Gating::Done {
                self.workers[worker].spell = Spell::Splitting { term, closed: closed + 1 };
            }
            return;
        }
        if mode != routed && !self.chance.one_in(5) {
            return;
        }
        let has_begun = self.servers[0].model.cursor.is_some();
        let done = self.servers[0].model.set_mode(&term, &mode, &routed);
        let may_open = has_begun || self.mutation == Some(Mutation::OpenedBeforeWait) || self.is_confirmed(0);
        if done == ModeSet::Done && may_open {
            let settings = Settings { above: 1, max_apart: 50 };
            let router = Box::new(Router::new(settings, route()));
            self.workers[worker].spell = Spell::Routing { term, router };
        }
    }

    /// What must hold at any time: in each part every event once, and those of an account in the order of the stream.
    fn check(&self) -> Result<(), String> {
        for (at, server) in self.servers.iter().enumerate().skip(1) {
            let (mut seen, mut last) = (BTreeSet::new(), BTreeMap::new());
            // If a failover takes it back, somebody wants it once more.
            let mut again = self.requeued.clone();
            for fields in server.model.stream.entries.values() {
                let Some(number) = number_of(&fields[0].1) else { continue };
                let account = account_of(&fields[0].1);
                if account.as_ref().map_or(1, server_of) != at {
                    return Err(format!("the event {number} is in the part {}", at - 1));
                }
                if number < QUARANTINED {
                    match again.get_mut(&number).filter(|times| **times > 0) {
                        Some(times) => *times -= 1,
                        None => return Err(format!("the event {number} came back more often than it was wanted")),
                    }
                    continue;
                }
                if !seen.insert(number) {
                    return Err(format!("the event {number} is twice in the part {}", at - 1));
                }
                if last.insert(account, number).is_some_and(|before| before > number) {
                    return Err(format!("the event {number} has been overtaken in the part {}", at - 1));
                }
            }
        }
        Ok(())
    }

    fn routed(&self) -> BTreeSet<usize> {
        let entries = self.servers[1..].iter().flat_map(|server| server.model.stream.entries.values());
        entries.filter_map(|fields| number_of(&fields[0].1)).collect()
    }

    /// What was promised is in its part, and so is whatever else the stream still has.
    fn missing(&self) -> String {
        let routed = self.routed();
        let promised = self.events.iter().enumerate().filter(|(_, (_, is_promised))| *is_promised);
        let there = self.servers[0].model.stream.entries.values().filter_map(|fields| number_of(&fields[0].1));
        let missing: BTreeSet<usize> =
            promised.map(|(number, _)| number).chain(there).filter(|number| !routed.contains(number)).collect();
        match missing.is_empty() {
            true => String::new(),
            false => format!("{missing:?} are in no part"),
        }
    }

    fn has_ended(&self) -> bool {
        self.servers.iter().all(|server| !server.is_down) && self.missing().is_empty()
    }
}

fn route() -> Route {
    Route { parts: PARTS, token: TOKEN.to_owned(), barrier: EntryId::ZERO }
}

fn failed(ask: &Ask, why: &str) -> Told {
    match ask {
        Ask::Read { .. } => Told::Page(None),
        Ask::Append(batch) => Told::Appended(batch.part, Err(why.to_owned()), false),
        Ask::Trim(..) => Told::Trimmed,
        Ask::Requeue(..) => Told::Requeued,
    }
}

fn number_of(body: &Bytes) -> Option<usize> {
    let text = std::str::from_utf8(body).ok()?;
    text.split_once(r#""n":"#)?.1.trim_end_matches('}').parse().ok()
}

//! One run: workers with the real state machine, the store's model as Redis, receivers, an operator and a producer, in
//! virtual time. Everything that happens comes out of one queue; the seed decides the rest.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use herald::{
    dispatch::{
        breaker::BreakerSettings,
        core::{MAX_JOBS, Send, Token, Wish},
        lane::Standing,
        partition::{Directory, Errand, Partition, READ_MAX, RegistryView, Settings},
    },
    facts::{
        endpoint::{ENDPOINT_SCHEMA, Endpoint, EndpointState, Mark, Ordering, Scheme},
        id::{AccountId, DeliveryId, EndpointId, EntryId, IntentId},
        outcome::{AttemptReport, Attempted, BodyEnd, Outcome, Timing},
        retry::{DeadReason, RetryOverrides, RetryPolicy, RetrySettings},
    },
    store::{
        model::{Asked, GROUP, Group, Model, term_of},
        protocol::{Answer, Call, Failure, Item, Start, Term},
    },
};

use super::{
    ledger::{Ledger, Owed, is_settled},
    mutation::{Mutation, carry_out, split},
    plan::{ACTIVE_MS, Action, Chance, Manner, Net, Plan},
};

/// Redis' clock at the start of a run.
const EPOCH_MS: u64 = 1_700_000_000_000;
const LEASE_MS: u64 = 1_000;
const ATTEMPT_TIMEOUT_MS: u64 = 400;
/// After everything has healed, a run has ended by then.
const PATIENCE_MS: u64 = 60_000;
/// Calls in a second that bring nothing. Polling each of the timers, and a few terms, stay far below.
const MAX_IDLE_CALLS: u32 = 150;
/// The longest that a worker's snapshot of the registry is behind.
const MAX_LAG_MS: u64 = 1_000;
const ACTIVE: u64 = ACTIVE_MS;

#[derive(Debug, Clone, Default)]
pub struct Registry {
    is_paused: bool,
    endpoints: BTreeMap<EndpointId, Arc<Endpoint>>,
}

#[derive(Clone, Default)]
struct Snapshot(Rc<RefCell<Registry>>);

impl Directory for Snapshot {
    fn standing(&self, endpoint: &EndpointId) -> Standing {
        match self.0.borrow().endpoints.get(endpoint) {
            Some(found) => Standing::of(found.clone()),
            None => Standing::Ended { reason: DeadReason::Deleted, since_ms: u64::MAX },
        }
    }

    fn endpoints_of(&self, account: &AccountId) -> Vec<Arc<Endpoint>> {
        self.0.borrow().endpoints.values().filter(|endpoint| endpoint.account == *account).cloned().collect()
    }

    fn view(&self) -> RegistryView {
        RegistryView { id: Some("registry".to_owned()), is_certain: true, is_paused: self.0.borrow().is_paused }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Main,
    Renewal,
}

#[derive(Debug)]
enum Event {
    Act(Action),
    Wake { worker: usize, life: u32 },
    Apply { worker: usize, life: u32, slot: Slot, redis: u32, call: Call, reply: bool, needs_client: bool },
    Answer { worker: usize, life: u32, slot: Slot, term: Term, answer: Result<Answer, Failure> },
    Arrive { worker: usize, life: u32, token: Token },
    Ended { worker: usize, life: u32, token: Token, outcome: Outcome },
    Sync { worker: usize },
    ConfirmRead { worker: usize, life: u32 },
    Confirm { worker: usize, life: u32, registry: Registry },
    Disable { endpoint: EndpointId, revision: u64 },
    Restart { worker: usize },
    StopWaiting { worker: usize, life: u32 },
    RedisUp,
    Heal,
}

#[derive(Debug, Clone)]
struct Flight {
    endpoint: usize,
    intent: usize,
    entry: EntryId,
    number: u32,
}

struct Worker {
    partition: Option<Partition<Snapshot>>,
    snapshot: Snapshot,
    life: u32,
    offset: u64,
    main: bool,
    renewal: bool,
    /// The Redis that each connection was made to.
    redis: [u32; 2],
    faults: [Option<Net>; 3],
    /// What it waits for; aborted ones are not in it.
    flights: BTreeMap<Token, Flight>,
    term: Option<Term>,
    frozen_until: u64,
    wake_at: u64,
    lag_ms: u64,
    idle_calls: (u64, u32),
}

pub struct World {
    plan: Plan,
    mutation: Option<Mutation>,
    chance: Chance,
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    next: u64,
    model: Model,
    /// Counts the starts of Redis.
    redis: u32,
    is_down: bool,
    clock_step: i64,
    snapshot: Option<(Model, Option<Term>)>,
    /// The term that took the lease last.
    legit: Option<Term>,
    registry: Registry,
    workers: Vec<Worker>,
    /// What is on its way to a receiver or being answered, also of workers that are dead.
    wire: BTreeMap<(usize, u32, Token), Flight>,
    manners: Vec<Manner>,
    /// Until when an endpoint may be taken for one that takes nothing.
    ended_until: Vec<u64>,
    was_unordered: Vec<bool>,
    ledger: Ledger,
    sequence: u64,
    /// Redis forgot something: what has ended may go again.
    is_loosened: bool,
    has_faults: bool,
    /// Attempts of what had been answered with 2xx, and how many of them the changes of term explain.
    duplicates: usize,
    allowance: usize,
    is_healed: bool,
    pub trace: Option<Vec<String>>,
    violation: Option<String>,
}

fn endpoint_id(at: usize) -> EndpointId {
    EndpointId::new(&format!("ep_{at}")).unwrap()
}

fn index_of(text: &str) -> usize {
    text.rsplit_once('_').and_then(|(_, n)| n.parse().ok()).unwrap()
}

fn policy() -> RetryPolicy {
    RetryPolicy::try_new(RetrySettings {
        initial: Duration::from_millis(20),
        multiplier: 3.0,
        max_interval: Duration::from_millis(600),
        jitter: 0.2,
        max_attempts: 8,
        max_age: Duration::from_secs(10),
    })
    .unwrap()
}

impl World {
    pub fn new(plan: Plan, mutation: Option<Mutation>) -> Self {
        let endpoints = plan.endpoints.len();
        let mut world = Self {
            chance: Chance::new(plan.seed ^ 0xfeed),
            mutation,
            now: 0,
            queue: BTreeMap::new(),
            next: 0,
            model: Model { now_ms: EPOCH_MS, ..Model::default() },
            redis: 0,
            is_down: false,
            clock_step: 0,
            snapshot: None,
            legit: None,
            registry: Registry::default(),
            workers: Vec::new(),
            wire: BTreeMap::new(),
            manners: vec![Manner::Healthy; endpoints],
            ended_until: vec![u64::MAX; endpoints],
            was_unordered: plan.endpoints.iter().map(|endpoint| !endpoint.ordered).collect(),
            ledger: Ledger::default(),
            sequence: 0,
            is_loosened: false,
            has_faults: plan.actions.iter().any(|(_, action)| action.is_fault()),
            duplicates: 0,
            allowance: 0,
            is_healed: false,
            trace: None,
            violation: None,
            plan,
        };
        for at in 0..endpoints {
            if world.plan.endpoints[at].exists {
                world.create(at);
            }
        }
        for worker in 0..world.plan.workers {
            let offset = world.chance.below(1_000_000);
            world.workers.push(Worker {
                partition: None,
                snapshot: Snapshot::default(),
                life: 0,
                offset,
                main: false,
                renewal: false,
                redis: [0; 2],
                faults: [None; 3],
                flights: BTreeMap::new(),
                term: None,
                frozen_until: 0,
                wake_at: u64::MAX,
                lag_ms: 0,
                idle_calls: (0, 0),
            });
            world.after(worker as u64, Event::Restart { worker });
        }
        for (at, action) in world.plan.actions.clone() {
            world.after(at, Event::Act(action));
        }
        world.after(ACTIVE, Event::Heal);
        world
    }

    /// Until everything has ended, or something is wrong.
    pub fn run(&mut self) -> Result<(), String> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.model.now_ms = (EPOCH_MS + at).saturating_add_signed(self.clock_step);
            let is_noise = matches!(
                event,
                Event::Wake { .. }
                    | Event::Apply { call: Call::Acquire { .. } | Call::Renew { .. }, .. }
                    | Event::Apply { call: Call::Trim { .. } | Call::Inbox { .. } | Call::ClaimForeign { .. }, .. }
                    | Event::Answer { answer: Ok(Answer::Taken { .. } | Answer::Renewed | Answer::Trimmed { .. }), .. }
            );
            if self.trace.is_some() && !is_noise {
                let line = format!("{at:>6} {event:?}");
                self.tell(|| line);
            }
            self.happen(event);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if self.is_healed && self.has_ended() {
                return Ok(());
            }
            if at > ACTIVE + PATIENCE_MS {
                return Err(format!("it did not end: {}", self.state()));
            }
        }
        Err("nothing is left to happen".to_owned())
    }

    fn has_ended(&self) -> bool {
        is_settled(&self.model)
            && self.workers.iter().all(|worker| {
                worker.partition.as_ref().is_none_or(|partition| {
                    !partition.is_owner() || (partition.tally().jobs == 0 && partition.core().outbox_len() == 0)
                })
            })
    }

    fn state(&self) -> String {
        let m = &self.model;
        let group = m.stream.groups.get(GROUP);
        let owners: Vec<_> = self
            .workers
            .iter()
            .map(|w| w.partition.as_ref().map(|p| (p.is_owner(), p.tally(), p.core().outbox_len())))
            .collect();
        let lanes: Vec<_> = self
            .workers
            .iter()
            .filter_map(|w| w.partition.as_ref())
            .filter(|p| p.is_owner())
            .flat_map(|p| p.core().lanes().map(|(_, l)| format!("{l:?}")))
            .collect();
        format!(
            "group {group:?}, due {:?}, claimed {:?}, chains {:?}, inbox {:?}, workers {owners:?}, redis {}, {lanes:?}",
            m.due,
            m.claimed,
            m.endpoints,
            m.inbox.requests.len(),
            m.now_ms
        )
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let mut line = line();
            line.truncate(400);
            trace.push(line);
        }
    }

    fn wrong(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.next += 1;
        self.queue.insert((self.now + ms, self.next), event);
    }

    // ---- what happens ---------------------------------------------------------------------------------------------

    fn happen(&mut self, event: Event) {
        if let Some(worker) = addressee(&event)
            && self.workers[worker].frozen_until > self.now
        {
            let wait = self.workers[worker].frozen_until - self.now;
            return self.after(wait, event);
        }
        match event {
            Event::Act(action) => self.act(action),
            Event::Wake { worker, life } => {
                if self.workers[worker].life == life {
                    self.workers[worker].wake_at = u64::MAX;
                    self.pump(worker);
                }
            }
            Event::Apply { worker, life, slot, redis, call, reply, needs_client } => {
                if needs_client && self.workers[worker].life != life {
                    return;
                }
                let answer = match self.is_down || redis != self.redis {
                    true => Err(Failure::Unknown("the connection broke".to_owned())),
                    false => self.apply(&call),
                };
                if reply {
                    let back = self.chance.below(3);
                    let term = term_of(&call).clone();
                    self.after(back, Event::Answer { worker, life, slot, term, answer });
                }
            }
            Event::Answer { worker, life, slot, term, answer } => self.answer(worker, life, slot, &term, answer),
            Event::Arrive { worker, life, token } => self.arrive(worker, life, token),
            Event::Ended { worker, life, token, outcome } => self.ended(worker, life, token, outcome),
            Event::Sync { worker } => self.sync(worker, None),
            Event::ConfirmRead { worker, life } => {
                let registry = self.registry.clone();
                let back = self.chance.within(1, 20);
                self.after(back, Event::Confirm { worker, life, registry });
            }
            Event::Confirm { worker, life, registry } => {
                if self.workers[worker].life == life {
                    self.sync(worker, Some(registry));
                    let now = self.local(worker);
                    if let Some(partition) = &mut self.workers[worker].partition {
                        partition.registry_confirmed(now);
                    }
                    self.pump(worker);
                }
            }
            Event::Disable { endpoint, revision } => {
                if self.registry.endpoints.get(&endpoint).is_some_and(|found| found.revision == revision) {
                    self.change(index_of(endpoint.as_str()), |e| e.status = EndpointState::Disabled(mark()));
                }
            }
            Event::Restart { worker } => self.restart(worker),
            Event::StopWaiting { worker, life } => {
                let now = self.local(worker);
                if self.workers[worker].life == life
                    && let Some(partition) = &mut self.workers[worker].partition
                {
                    partition.stop_waiting(now);
                    self.pump(worker);
                }
            }
            Event::RedisUp => self.is_down = false,
            Event::Heal => self.heal(),
        }
    }

    fn local(&self, worker: usize) -> u64 {
        self.now + self.workers[worker].offset
    }

    fn restart(&mut self, worker: usize) {
        if self.workers[worker].partition.is_some() {
            return;
        }
        let mut seed = [0; 32];
        seed.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.chance.next().to_le_bytes()));
        let settings = Settings {
            owner: format!("worker-{worker}"),
            policy: policy(),
            breaker: BreakerSettings { threshold: 3, cooldown_ms: 200, max_cooldown_ms: 1_500 },
            max_body_bytes: 1024 * 1024,
            lease_ms: LEASE_MS,
            start: Start::Oldest,
            retain_ms: 0,
            trim_ignores: Vec::new(),
            dead_max_age_ms: 1_000_000_000,
            dead_max_count: 1_000_000,
        };
        let snapshot = Snapshot(Rc::new(RefCell::new(self.registry.clone())));
        let found = &mut self.workers[worker];
        found.partition = Some(Partition::new(settings, snapshot.clone(), seed));
        found.snapshot = snapshot;
        found.redis = [self.redis; 2];
        found.wake_at = u64::MAX;
        self.pump(worker);
    }

    fn crash(&mut self, worker: usize) {
        let found = &mut self.workers[worker];
        found.partition = None;
        found.life += 1;
        (found.main, found.renewal) = (false, false);
        found.flights.clear();
        found.term = None;
        found.faults = [None; 3];
    }

    fn heal(&mut self) {
        self.is_healed = true;
        (self.is_down, self.model.full) = (false, false);
        self.manners.iter_mut().for_each(|manner| *manner = Manner::Healthy);
        self.registry.is_paused = false;
        for at in 0..self.plan.endpoints.len() {
            if matches!(self.status(at), Some(EndpointState::Paused(_))) {
                self.change(at, |endpoint| endpoint.status = EndpointState::Enabled);
            }
        }
        for worker in 0..self.workers.len() {
            let found = &mut self.workers[worker];
            (found.faults, found.frozen_until, found.lag_ms) = ([None; 3], 0, 0);
            self.after(1, Event::Sync { worker });
            self.after(1, Event::Restart { worker });
        }
    }

    // ---- a worker's shell -----------------------------------------------------------------------------------------

    fn pump(&mut self, worker: usize) {
        let now = self.local(worker);
        let Some(mut partition) = self.workers[worker].partition.take() else { return };
        for round in 0.. {
            if round > 1_000 {
                self.wrong(|| "a worker never comes to rest".to_owned());
                break;
            }
            let mut moved = false;
            if !self.workers[worker].main
                && let Some(call) = partition.next_call(now)
            {
                self.workers[worker].main = true;
                self.workers[worker].term = Some(term_of(&call).clone());
                self.make(worker, Slot::Main, call);
            }
            if !self.workers[worker].renewal
                && let Some(call) = partition.next_renewal(now)
            {
                self.workers[worker].renewal = true;
                self.make(worker, Slot::Renewal, call);
            }
            while let Some(send) = partition.next_send(now) {
                self.start(worker, send);
            }
            for errand in partition.take_errands() {
                moved |= self.errand(worker, errand);
            }
            for happening in partition.take_happenings() {
                self.tell(|| format!("       worker {worker}: {happening:?}"));
            }
            if let Some((entry, request)) = partition.wants_wakeup()
                && !self.is_down
                && (self.model.stream.entries.keys().next_back().is_some_and(|last| *last > entry)
                    || self.model.inbox.requests.keys().next_back().is_some_and(|last| *last > request))
            {
                partition.woken(true, true);
                moved |= !self.workers[worker].main;
            }
            if !moved {
                break;
            }
        }
        let jobs = partition.tally().jobs;
        if jobs > MAX_JOBS + READ_MAX * self.plan.endpoints.len() {
            self.wrong(|| format!("{jobs} jobs are in memory"));
        }
        let stopped = partition.is_stopped();
        let wake_at = partition.wake_at(now).saturating_sub(self.workers[worker].offset);
        self.workers[worker].partition = Some(partition);
        if stopped {
            self.crash(worker);
            let pause = self.chance.within(1, 500);
            return self.after(pause, Event::Restart { worker });
        }
        if wake_at < self.workers[worker].wake_at && wake_at < u64::MAX / 2 {
            self.workers[worker].wake_at = wake_at;
            let life = self.workers[worker].life;
            self.after(wake_at.max(self.now + 1) - self.now, Event::Wake { worker, life });
        }
    }

    fn errand(&mut self, worker: usize, errand: Errand) -> bool {
        let life = self.workers[worker].life;
        let delay = self.chance.within(1, 20);
        match errand {
            Errand::Core(Wish::Disable { endpoint, revision, .. }) => {
                self.after(delay, Event::Disable { endpoint, revision });
            }
            Errand::ConfirmRegistry => self.after(delay, Event::ConfirmRead { worker, life }),
            Errand::AbortFlights => self.workers[worker].flights.clear(),
        }
        false
    }

    fn make(&mut self, worker: usize, slot: Slot, call: Call) {
        let (life, redis, term) = (self.workers[worker].life, self.redis, term_of(&call).clone());
        let connection = &mut self.workers[worker].redis[slot as usize];
        let (gives_up, there) = (self.chance.within(20, 300), self.chance.below(3));
        let unknown = |world: &mut Self, ms, why: &str| {
            let answer = Err(Failure::Unknown(why.to_owned()));
            world.after(ms, Event::Answer { worker, life, slot, term: term.clone(), answer });
        };
        if self.is_down || std::mem::replace(connection, redis) != redis {
            return unknown(self, there, "no connection, or a new one");
        }
        let apply = |call, reply, needs_client| Event::Apply { worker, life, slot, redis, call, reply, needs_client };
        let faults = &mut self.workers[worker].faults;
        let has_items = matches!(&call, Call::Settle { settlement, .. } if !settlement.items.is_empty());
        let of_settle = has_items.then(|| faults[2].take()).flatten();
        match of_settle.or_else(|| faults[slot as usize].take()) {
            None => {
                if self.mutation == Some(Mutation::AcksBeforeRecords)
                    && let Some((first, second)) = split(&call)
                {
                    self.after(there, apply(first, false, false));
                    return self.after(there + 2, apply(second, true, true));
                }
                self.after(there, apply(call, true, false));
            }
            Some(Net::AnswerLost) => {
                self.after(there, apply(call, false, false));
                unknown(self, gives_up, "no answer came");
            }
            Some(Net::CallLost) => unknown(self, gives_up, "no answer came"),
            Some(Net::RunsLate(late)) => {
                if self.mutation == Some(Mutation::SettleRetriedElsewhere) && matches!(call, Call::Settle { .. }) {
                    self.after(gives_up, apply(call.clone(), true, false));
                } else {
                    unknown(self, gives_up, "no answer came");
                }
                self.after(gives_up + late, apply(call, false, false));
            }
            Some(Net::AnswersLate(late)) => {
                let answer = self.apply(&call);
                self.after(late, Event::Answer { worker, life, slot, term: term.clone(), answer });
            }
        }
    }

    fn answer(&mut self, worker: usize, life: u32, slot: Slot, term: &Term, answer: Result<Answer, Failure>) {
        if self.workers[worker].life != life {
            return;
        }
        let now = self.local(worker);
        let bucket = self.now / 1_000;
        let found = &mut self.workers[worker];
        if found.idle_calls.0 != bucket {
            found.idle_calls = (bucket, 0);
        }
        found.idle_calls.1 += u32::from(!brings_something(&answer));
        let idle_calls = found.idle_calls.1;
        let Some(partition) = &mut found.partition else { return };
        match slot {
            Slot::Main => {
                found.main = false;
                partition.answered(now, answer);
            }
            Slot::Renewal => {
                found.renewal = false;
                partition.renewed(now, term, &answer);
            }
        }
        if idle_calls > MAX_IDLE_CALLS {
            self.wrong(|| format!("worker {worker} made {idle_calls} calls in a second that brought nothing"));
        }
        self.pump(worker);
    }

    fn sync(&mut self, worker: usize, registry: Option<Registry>) {
        let now = self.local(worker);
        let registry = registry.unwrap_or_else(|| self.registry.clone());
        *self.workers[worker].snapshot.0.borrow_mut() = registry;
        if let Some(partition) = &mut self.workers[worker].partition {
            partition.registry_changed(now, None);
            self.pump(worker);
        }
    }

    // ---- Redis ----------------------------------------------------------------------------------------------------

    fn apply(&mut self, call: &Call) -> Result<Answer, Failure> {
        let answer = carry_out(&mut self.model, self.mutation, call);
        match (&answer, call) {
            (Ok(Answer::Acquired { .. }), Call::Acquire { term, .. }) => {
                self.legit = Some(term.clone());
                self.allowance += self.may_go_again();
            }
            (Ok(Answer::Lost | Answer::Taken { .. }), _) | (Err(_), _) => return answer,
            _ if self.legit.as_ref() != Some(term_of(call)) => {
                self.wrong(|| format!("a call of an ended term was carried out: {call:?}"));
            }
            _ => {}
        }
        if let Call::Settle { settlement, .. } = call {
            for item in &settlement.items {
                if let Item::Bury { id, .. } = item
                    && let Some(owed) = self.ledger.get(index_of(id.endpoint.as_str()), id.entry)
                {
                    owed.may_be_overtaken = true;
                }
            }
        }
        if !matches!(call, Call::Renew { .. } | Call::Ask { .. } | Call::Inbox { .. } | Call::Backlog { .. }) {
            self.check();
        }
        answer
    }

    /// What was in flight or unsettled when a term ended: the deliveries of the pending entries, the claimed ones, what
    /// is on the wire, and what was answered while its record still stands, wherever it went out from.
    fn may_go_again(&self) -> usize {
        let pending = self.model.stream.groups.get(GROUP).map(|group| &group.pending);
        let is_unsettled = |owed: &&Owed| {
            let is_pending = pending.is_some_and(|pending| pending.contains_key(&owed.id.entry));
            is_pending || (owed.answered && self.model.records.contains_key(&owed.id))
        };
        self.ledger.owed.iter().filter(is_unsettled).count() + self.model.claimed.len() + self.wire.len()
    }

    fn check(&mut self) {
        if let Err(why) = self.model.check() {
            self.wrong(|| why);
        }
        if let Some(lost) = self.ledger.lost(&self.model) {
            let lost = lost.id.clone();
            self.wrong(|| format!("{lost} is lost"));
        }
    }

    // ---- attempts -------------------------------------------------------------------------------------------------

    fn start(&mut self, worker: usize, send: Send) {
        let entry = send.delivery.id.entry;
        let endpoint = index_of(send.endpoint.id.as_str());
        let intent = index_of(send.delivery.intent.as_str());
        let number = send.delivery.next_attempt();
        let (life, token) = (self.workers[worker].life, send.token);
        self.tell(|| format!("       worker {worker} starts attempt {number} of {}", send.delivery.id));
        let flights = &self.workers[worker].flights;
        let same_lane = flights.values().filter(|flight| flight.endpoint == endpoint).count();
        let same_chain = flights.values().any(|flight| flight.endpoint == endpoint && flight.intent == intent);
        let is_ordered = !self.was_unordered[endpoint];
        if same_lane >= usize::from(self.plan.endpoints[endpoint].max_in_flight) {
            self.wrong(|| format!("ep_{endpoint} has {same_lane} in flight, and one more starts"));
        }
        if is_ordered && same_chain && !self.is_loosened {
            self.wrong(|| format!("two attempts of one chain are in flight: {}", send.delivery.id));
        }
        if is_ordered && let Some(earlier) = self.ledger.overtaken(endpoint, intent, entry, &self.model) {
            let earlier = earlier.id.clone();
            self.wrong(|| format!("{} goes before {earlier} has ended", send.delivery.id));
        }
        let is_owner = self.legit.is_some() && self.legit == self.workers[worker].term && self.model.lease.is_some();
        let has_ended = self.has_ended_in_redis(&send.delivery.id);
        let (loosened, has_faults) = (self.is_loosened, self.has_faults);
        if let Some(owed) = self.ledger.get(endpoint, entry) {
            // A duplicate that fails is retried like any other: that is one duplicate still.
            let was_answered = std::mem::take(&mut owed.answered);
            self.duplicates += usize::from(was_answered && !loosened);
            let again = owed.delivered && has_ended && is_owner && !loosened;
            if again || (was_answered && !has_faults) {
                self.wrong(|| format!("{} has ended and goes again", send.delivery.id));
            }
        }
        if self.duplicates > self.allowance {
            self.wrong(|| "there are more duplicates than deliveries were in flight at the ends of terms".to_owned());
        }
        let flight = Flight { endpoint, intent, entry, number };
        self.workers[worker].flights.insert(token, flight.clone());
        self.wire.insert((worker, life, token), flight);
        let there = self.chance.below(3);
        self.after(there, Event::Arrive { worker, life, token });
    }

    /// Nothing in Redis would let it be sent again.
    fn has_ended_in_redis(&self, id: &DeliveryId) -> bool {
        let group = self.model.stream.groups.get(GROUP);
        !self.model.records.contains_key(id)
            && group.is_some_and(|group| id.entry <= group.last_delivered && !group.pending.contains_key(&id.entry))
    }

    fn arrive(&mut self, worker: usize, life: u32, token: Token) {
        let Some(flight) = self.wire.get(&(worker, life, token)).cloned() else { return };
        let quick = self.chance.within(1, 40);
        let (mut manner, coin) = (self.manners[flight.endpoint], self.chance.one_in(2));
        if manner == Manner::Flaky {
            manner = if coin { Manner::Fails } else { Manner::Healthy };
        }
        let retry_after = coin.then(|| Duration::from_millis(100 + quick * 10));
        let (outcome, takes) = match manner {
            Manner::Healthy => (Outcome::Delivered { status: 200 }, quick),
            Manner::Fails | Manner::Flaky => (Outcome::ServerFailed { status: 500 }, quick),
            Manner::Hangs => (Outcome::ResponseTimedOut, ATTEMPT_TIMEOUT_MS),
            Manner::Gone => (Outcome::Gone, quick),
            Manner::Throttles => (Outcome::Throttled { status: 429, retry_after }, quick),
        };
        if manner == Manner::Gone {
            self.takes_nothing(flight.endpoint, u64::MAX);
        }
        // A receiver that is too slow to say so may have taken it all the same.
        if (manner == Manner::Healthy || (manner == Manner::Hangs && coin))
            && let Some(owed) = self.ledger.get(flight.endpoint, flight.entry)
        {
            owed.delivered = true;
        }
        self.after(takes, Event::Ended { worker, life, token, outcome });
    }

    fn ended(&mut self, worker: usize, life: u32, token: Token, outcome: Outcome) {
        let Some(flight) = self.wire.remove(&(worker, life, token)) else { return };
        if self.workers[worker].life != life || self.workers[worker].flights.remove(&token).is_none() {
            return;
        }
        if outcome.is_delivered()
            && let Some(owed) = self.ledger.get(flight.endpoint, flight.entry)
        {
            owed.answered = true;
        }
        let report = AttemptReport {
            number: flight.number,
            at_ms: self.model.now_ms,
            outcome,
            timing: Timing::default(),
            body_end: BodyEnd::Complete,
            snippet: String::new(),
            detail: String::new(),
        };
        let now = self.local(worker);
        if let Some(partition) = &mut self.workers[worker].partition {
            partition.attempted(now, token, Attempted { report, request: None });
        }
        self.pump(worker);
    }

    // ---- the registry ---------------------------------------------------------------------------------------------

    fn create(&mut self, at: usize) {
        if self.registry.endpoints.contains_key(&endpoint_id(at)) {
            return;
        }
        let plan = self.plan.endpoints[at].clone();
        let account = AccountId::new(&format!("acc_{}", plan.account)).unwrap();
        // A worker whose snapshot is behind sends to the endpoints that it knows; only "none at all" is asked about.
        let siblings = (0..self.plan.endpoints.len()).any(|other| {
            self.plan.endpoints[other].account == plan.account
                && (other == at || self.ended_until[other] != u64::MAX)
                && (self.now > 0)
        });
        let was_there = self.ended_until[at] != u64::MAX;
        self.ended_until[at] = if siblings || was_there { self.now + MAX_LAG_MS } else { self.now };
        let endpoint = Endpoint {
            schema: ENDPOINT_SCHEMA,
            id: endpoint_id(at),
            account,
            url: "https://example.com/".to_owned(),
            description: String::new(),
            event_types: Vec::new(),
            schemes: vec![Scheme::Standard],
            secrets: Vec::new(),
            ordering: if plan.ordered { Ordering::Intent } else { Ordering::None },
            max_in_flight: plan.max_in_flight,
            rate_limit: plan.rate_limit,
            timeout_ms: None,
            retry: RetryOverrides { max_attempts: Some(plan.max_attempts), ..RetryOverrides::default() },
            headers: Vec::new(),
            traceparent: false,
            status: EndpointState::Enabled,
            created_at_ms: self.now,
            updated_at_ms: self.now,
            revision: self.now + 1,
        };
        self.registry.endpoints.insert(endpoint.id.clone(), Arc::new(endpoint));
        self.spread();
    }

    fn change(&mut self, at: usize, change: impl FnOnce(&mut Endpoint)) {
        if let Some(found) = self.registry.endpoints.get_mut(&endpoint_id(at)) {
            let endpoint = Arc::make_mut(found);
            change(endpoint);
            endpoint.revision += 1;
            self.spread();
        }
    }

    fn spread(&mut self) {
        for worker in 0..self.workers.len() {
            let lag = self.chance.below(60) + self.workers[worker].lag_ms;
            self.after(lag, Event::Sync { worker });
        }
    }

    fn status(&self, at: usize) -> Option<EndpointState> {
        self.registry.endpoints.get(&endpoint_id(at)).map(|endpoint| endpoint.status.clone())
    }

    /// What is owed to it may be given up or skipped from here on.
    fn takes_nothing(&mut self, at: usize, until: u64) {
        self.ended_until[at] = until;
        self.ledger.owed.iter_mut().filter(|owed| owed.endpoint == at).for_each(|owed| owed.may_vanish = true);
    }

    // ---- producers, operators, faults -----------------------------------------------------------------------------

    fn act(&mut self, action: Action) {
        let reachable = !self.is_down;
        match action {
            Action::Publish { intent, count } if reachable && !self.model.full => {
                (0..count).for_each(|_| self.publish(intent));
            }
            Action::NoEvent if reachable => drop(self.add(Bytes::from_static(b"nonsense"))),
            Action::Publish { .. } | Action::NoEvent => {}
            Action::Receiver { endpoint, manner } => self.manners[endpoint] = manner,
            Action::Pause(at) if self.status(at) == Some(EndpointState::Enabled) => {
                self.change(at, |endpoint| endpoint.status = EndpointState::Paused(mark()));
            }
            Action::Pause(_) => {}
            Action::Disable(at) => {
                self.takes_nothing(at, u64::MAX);
                self.change(at, |endpoint| endpoint.status = EndpointState::Disabled(mark()));
            }
            Action::Enable(at) => {
                if self.status(at).is_some() && self.ended_until[at] == u64::MAX {
                    self.takes_nothing(at, self.now + MAX_LAG_MS);
                }
                self.change(at, |endpoint| endpoint.status = EndpointState::Enabled);
            }
            Action::Delete(at) => {
                self.takes_nothing(at, u64::MAX);
                self.registry.endpoints.remove(&endpoint_id(at));
                self.spread();
            }
            Action::Create(at) => self.create(at),
            Action::SwitchOrder(at) => {
                self.was_unordered[at] = true;
                self.change(at, |endpoint| {
                    endpoint.ordering = match endpoint.ordering {
                        Ordering::Intent => Ordering::None,
                        Ordering::None => Ordering::Intent,
                    }
                });
            }
            Action::PauseAll(paused) => {
                self.registry.is_paused = paused;
                self.spread();
            }
            Action::Redeliver(nth) if reachable => {
                if let Some(id) = self.letter(nth) {
                    self.ask(Asked::Redeliver(id));
                }
            }
            Action::Discard(nth) if reachable => {
                if let Some(id) = self.letter(nth) {
                    if let Some(owed) = self.ledger.get(index_of(id.endpoint.as_str()), id.entry) {
                        owed.may_vanish = true;
                    }
                    self.ask(Asked::Discard(id));
                }
            }
            Action::Release { endpoint, intent } if reachable => {
                let intent = IntentId::new(&format!("pi_{intent}")).unwrap();
                self.ask(Asked::Release(endpoint_id(endpoint), intent));
            }
            Action::Requeue if reachable => {
                if let Some(entry) = self.model.quarantine.keys().next().copied() {
                    self.ask(Asked::Requeue(entry));
                }
            }
            Action::Redeliver(_) | Action::Discard(_) | Action::Release { .. } | Action::Requeue => {}
            fault => self.fault(fault),
        }
        self.check();
    }

    fn fault(&mut self, fault: Action) {
        match fault {
            Action::Net { worker, net } => self.workers[worker].faults[0] = Some(net),
            Action::Settle { worker, net } => self.workers[worker].faults[2] = Some(net),
            Action::Renewal { worker, net } => self.workers[worker].faults[1] = Some(net),
            Action::Crash(worker) => {
                self.crash(worker);
                let pause = self.chance.within(1, 1_500);
                self.after(pause, Event::Restart { worker });
            }
            Action::Stop(worker) => {
                if let Some(partition) = &mut self.workers[worker].partition {
                    partition.stop();
                    let (life, wait) = (self.workers[worker].life, self.chance.within(1, 600));
                    self.after(wait, Event::StopWaiting { worker, life });
                    self.pump(worker);
                }
            }
            Action::Freeze { worker, for_ms } => {
                // What waits for the thaw was put off to that time already: a second freeze does not shorten it.
                let until = self.now + for_ms;
                self.workers[worker].frozen_until = self.workers[worker].frozen_until.max(until);
            }
            Action::RedisDown { for_ms } => {
                self.is_down = true;
                self.redis += 1;
                self.after(for_ms, Event::RedisUp);
            }
            Action::Snapshot => self.snapshot = Some((self.model.clone(), self.legit.clone())),
            Action::RollBack => self.roll_back(),
            Action::Clock { step_ms } => self.clock_step += step_ms,
            Action::Full(full) => self.model.full = full,
            Action::Trim => self.trim(),
            Action::DestroyGroup => {
                self.model.stream.groups.remove(GROUP);
                self.is_loosened = true;
            }
            Action::DeleteLease => self.model.lease = None,
            Action::ForeignReads(count) => self.steal(count),
            Action::LagRegistry { worker } => self.workers[worker].lag_ms = MAX_LAG_MS - 200,
            other => unreachable!("{other:?} is no fault"),
        }
    }

    fn publish(&mut self, intent: usize) {
        let account = self.plan.intents[intent];
        let number = self.sequence;
        let body = format!(
            r#"{{"id":"evt_{number}","event":"payment_intent.status_updated","accountId":"acc_{account}","createdAt":"2022-02-01T13:07:41.8667859Z","data":{{"paymentIntentId":"pi_{intent}","paymentStatus":"Captured","captureMode":"Auto"}}}}"#
        );
        let entry = self.add(body.into());
        for at in 0..self.plan.endpoints.len() {
            if self.plan.endpoints[at].account == account && self.registry.endpoints.contains_key(&endpoint_id(at)) {
                self.ledger.promise(Owed {
                    id: DeliveryId { entry, endpoint: endpoint_id(at) },
                    endpoint: at,
                    intent,
                    delivered: false,
                    answered: false,
                    may_vanish: self.ended_until[at] > self.now,
                    may_be_overtaken: false,
                });
            }
        }
    }

    fn add(&mut self, body: Bytes) -> EntryId {
        let last = self.model.stream.last_generated;
        self.sequence = self.sequence.max(last.seq) + 1;
        let entry = EntryId { ms: self.model.now_ms.max(last.ms), seq: self.sequence };
        self.model.publish(entry, body);
        self.wake_all();
        entry
    }

    fn ask(&mut self, asked: Asked) {
        self.model.ask(asked, serde_json::to_vec(&mark()).unwrap().into());
        self.wake_all();
    }

    fn wake_all(&mut self) {
        for worker in 0..self.workers.len() {
            let life = self.workers[worker].life;
            self.after(1, Event::Wake { worker, life });
        }
    }

    fn letter(&self, nth: usize) -> Option<DeliveryId> {
        let count = self.model.dead.len();
        self.model.dead.keys().nth(nth % count.max(1)).cloned()
    }

    /// Everything since the snapshot is forgotten, also what was on its way.
    fn roll_back(&mut self) {
        let Some((model, legit)) = self.snapshot.take() else { return };
        (self.model, self.legit) = (model, legit);
        self.model.now_ms = (EPOCH_MS + self.now).saturating_add_signed(self.clock_step);
        self.redis += 1;
        self.is_loosened = true;
        let last = self.model.stream.last_generated;
        self.ledger.owed.iter_mut().filter(|owed| owed.id.entry > last).for_each(|owed| owed.may_vanish = true);
    }

    /// A producer trims the stream: bodies that are nowhere else are gone.
    fn trim(&mut self) {
        let keep = self.model.stream.entries.len() / 2;
        let Some(first_kept) = self.model.stream.entries.keys().nth(keep).copied() else { return };
        self.model.stream.entries.retain(|id, _| *id >= first_kept);
        for owed in &mut self.ledger.owed {
            let is_kept = self.model.records.contains_key(&owed.id) || self.model.dead.contains_key(&owed.id);
            owed.may_vanish |= owed.id.entry < first_kept && !is_kept;
        }
    }

    /// Somebody else reads with our group.
    fn steal(&mut self, count: usize) {
        let Some(group): Option<&mut Group> = self.model.stream.groups.get_mut(GROUP) else { return };
        let unread = self.model.stream.entries.keys().filter(|id| **id > group.last_delivered);
        for id in unread.copied().take(count).collect::<Vec<_>>() {
            group.last_delivered = id;
            group.pending.insert(id, "stranger".to_owned());
            self.ledger
                .owed
                .iter_mut()
                .filter(|owed| owed.id.entry == id)
                .for_each(|owed| owed.may_be_overtaken = true);
        }
    }
}

fn mark() -> Mark {
    Mark { by: "ops".to_owned(), why: "simulated".to_owned(), at_ms: 0 }
}

/// The worker that takes part in an event, and can not while it is frozen.
fn addressee(event: &Event) -> Option<usize> {
    match event {
        Event::Wake { worker, .. }
        | Event::Answer { worker, .. }
        | Event::Ended { worker, .. }
        | Event::Sync { worker }
        | Event::Confirm { worker, .. }
        | Event::StopWaiting { worker, .. }
        | Event::Restart { worker } => Some(*worker),
        Event::Act(_)
        | Event::Apply { .. }
        | Event::Arrive { .. }
        | Event::ConfirmRead { .. }
        | Event::Disable { .. }
        | Event::RedisUp
        | Event::Heal => None,
    }
}

fn brings_something(answer: &Result<Answer, Failure>) -> bool {
    match answer {
        Ok(Answer::Entries { entries, .. }) => !entries.is_empty(),
        Ok(Answer::Claimed { kept, .. } | Answer::Backlog { kept, .. } | Answer::Heads { kept, .. }) => {
            !kept.is_empty()
        }
        Ok(Answer::Requests { requests }) => !requests.is_empty(),
        Ok(Answer::Settled { .. } | Answer::Asked { .. } | Answer::Renewed) => true,
        _ => false,
    }
}

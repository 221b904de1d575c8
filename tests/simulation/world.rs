//! One run: workers with the real state machine, the store's model as Redis, receivers, an operator and a producer, in
//! virtual time. Everything that happens comes out of one queue; the seed decides the rest.

mod attempts;
mod faults;
pub mod operations;
mod operators;
mod redis;
mod registry;
mod settled;
mod workers;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use herald::{
    dispatch::{
        attempts::turns::Turns,
        breaker::BreakerSettings,
        budgets::Budgets,
        core::{CoreErrand, CoreHappening, NextAttempt, Token},
        lane::{self, Standing},
        partition::{
            Directory, Errand, Happening, Partition, READ_MAX, READ_UNDER_PRESSURE, RegistryView, SLICE, Settings,
        },
    },
    facts::{
        delivery::{DeadLetter, Delivery},
        endpoint::{ENDPOINT_SCHEMA, Endpoint, EndpointState, Keeper, Mark, Ordering, Scheme},
        id::{AccountId, DeliveryId, EndpointId, EntryId, IntentId, OperationId},
        log::{End, Logged},
        operation::Kind,
        outcome::{AttemptReport, Attempted, BodyEnd, Outcome, Timing},
        partition::Accounts,
        quota::{Quota, Quotas},
        retry::{DeadReason, RetryOverrides, RetryPolicy, RetrySettings},
        stamped::Stamped,
    },
    store::{
        model::{Group, Model, Stream},
        operations::work::Lost,
        protocol::{Answer, Asked, Call, Failure, GROUP, Item, Kept, RECORD_BYTES, Start, Term},
    },
};

use super::{
    ledger::{Ledger, Owed, is_quarantined_or_to_be, is_settled},
    mutation::{Mutation, carry_out, split},
    plan::{ACTIVE_MS, Action, Chance, Manner, Net, Plan, STEADY_EVERY_MS, STEADY_FROM_MS, Steady},
    tally::{Broken, Promise, Tally},
};
use operations::{Followed, OwnerStep, StepAnswer, Working};
use registry::{Health, REGISTRY, Registry, Snapshot};
use settled::{Confirmed, Redelivery};

/// Redis' clock at the start of a run.
const EPOCH_MS: u64 = 1_700_000_000_000;
const LEASE_MS: u64 = 1_000;
/// How long nothing may succeed before a breaker opens, or a quota counts.
const COOLDOWN_MS: u64 = 200;
/// A retry waits this long at most, its jitter included.
const MAX_PAUSE_MS: u64 = 720;
const MAX_AGE_MS: u64 = 20_000;
/// How long before an endpoint can be read again a worker may have noted for the last time that it cannot be, if another has taken
/// over meanwhile.
const NOTED_BEFORE_MS: u64 = 8_000;
const ATTEMPT_TIMEOUT_MS: u64 = 400;
/// After everything has healed, a run has ended by then.
const PATIENCE_MS: u64 = 60_000;
/// Calls in a second that bring nothing. Polling by each of the timers, and a few terms, stay far below.
const MAX_IDLE_CALLS: u32 = 150;
/// How far a worker's snapshot of the registry may be behind at most.
const MAX_LAG_MS: u64 = 1_000;
const ACTIVE: u64 = ACTIVE_MS;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Main,
    Renewal,
}

#[derive(Debug)]
enum Event {
    Act(Action),
    Wake {
        worker: usize,
        life: u32,
    },
    Apply {
        worker: usize,
        life: u32,
        slot: Slot,
        redis: u32,
        call: Call,
        reply: bool,
        needs_client: bool,
    },
    Answer {
        worker: usize,
        life: u32,
        slot: Slot,
        term: Term,
        answer: Result<Answer, Failure>,
    },
    Arrive {
        worker: usize,
        life: u32,
        token: Token,
    },
    Ended {
        worker: usize,
        life: u32,
        token: Token,
        outcome: Outcome,
        took_ms: u64,
    },
    /// Somebody acts on a letter that an operation has under way, and that has died again.
    Meddle(DeliveryId),
    /// A worker goes on with its operations.
    Work {
        worker: usize,
        life: u32,
    },
    Step {
        worker: usize,
        life: u32,
        redis: u32,
        term: Term,
        step: OwnerStep,
        reply: bool,
    },
    Stepped {
        worker: usize,
        life: u32,
        term: Term,
        step: OwnerStep,
        /// None if nothing came.
        answer: Option<Result<StepAnswer, Lost>>,
    },
    Rested {
        worker: usize,
        life: u32,
        term: Term,
    },
    Sync {
        worker: usize,
    },
    ConfirmRead {
        worker: usize,
        life: u32,
    },
    Confirm {
        worker: usize,
        life: u32,
        found: (Registry, Health),
    },
    Disable {
        endpoint: EndpointId,
        revision: u64,
    },
    PauseForQuota {
        endpoint: EndpointId,
        revision: u64,
    },
    Remove {
        endpoint: EndpointId,
        revision: u64,
    },
    Restart {
        worker: usize,
    },
    StopWaiting {
        worker: usize,
        life: u32,
    },
    RedisUp,
    PressureOver,
    RegistryBack,
    RegistrySetBack {
        before: Box<Registry>,
        lost: Stamped,
        made: usize,
    },
    /// The next event of the steady account.
    Steady,
    Heal,
}

#[derive(Debug, Clone)]
struct Flight {
    endpoint: usize,
    intent: usize,
    entry: EntryId,
    event: u64,
    number: u32,
    /// It had to take a seat.
    is_slow: bool,
}

struct Worker {
    partition: Option<Partition<Snapshot>>,
    snapshot: Snapshot,
    life: u32,
    offset: u64,
    main: bool,
    renewal: bool,
    /// The Redis that each connection was made to, by its start.
    redis: [u32; 2],
    faults: [Option<Net>; 3],
    /// What it waits for, except for aborted attempts.
    turns: Turns,
    flights: BTreeMap<Token, Flight>,
    term: Option<Term>,
    frozen_until: u64,
    wake_at: u64,
    lag_ms: u64,
    idle_calls: (u64, u32),
    working: Working,
    confirmed: Confirmed,
    /// A mutation: it was told that another has the lease which it has just got.
    was_turned_away: bool,
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
    /// Attempts on their way to a receiver or being answered, including those of dead workers.
    wire: BTreeMap<(usize, u32, Token), Flight>,
    manners: Vec<Manner>,
    /// When each worker last heard that an endpoint's receiver took something.
    taken_at: BTreeMap<(usize, usize), u64>,
    /// Until when an endpoint may be mistaken for one that takes nothing.
    ended_until: Vec<u64>,
    was_unordered: Vec<bool>,
    /// Their ids go to another account once they are deleted.
    given_away: BTreeSet<usize>,
    /// It was disabled, deleted or gone at some time.
    was_ended: Vec<bool>,
    /// Since when each is locked; until when it was.
    locked_since: Vec<Option<u64>>,
    locked_until: Vec<u64>,
    ledger: Ledger,
    /// Entries that are not events, each with a text of its own, because nothing else tells two with one id apart.
    strange: Vec<Bytes>,
    strangers: u64,
    /// The stream is not the first one: what comes from now on has ids of its own.
    is_stream_anew: bool,
    sequence: u64,
    events: u64,
    /// Every id that was ever given out.
    published: BTreeSet<EntryId>,
    /// Versions that the registry has had.
    versions: u64,
    /// Operations, by what they may do; how many were planned.
    followed: BTreeMap<OperationId, Followed>,
    planned: u64,
    /// When somebody first asked for a letter by hand.
    asked_by_hand: BTreeMap<DeliveryId, u64>,
    /// What somebody has asked for, so that no two ask at the same time.
    asked: u64,
    /// What was attempted since it was redelivered.
    redelivered: BTreeSet<(DeliveryId, Redelivery)>,
    /// Redis' clock went back at some time.
    was_set_back: bool,
    /// Redis forgot something: what has ended may be sent again.
    is_loosened: bool,
    has_faults: bool,
    /// Attempts of deliveries that had been answered with 2xx, and how many of them the changes of term explain.
    duplicates: usize,
    allowance: usize,
    is_healed: bool,
    /// Entries of the account whose events come without a pause, while they come.
    steady: Option<BTreeSet<EntryId>>,
    /// Redis is at 90 % of its memory.
    is_pressed: bool,
    pub trace: Option<Vec<String>>,
    violation: Option<Broken>,
    pub tally: Tally,
    /// How each settle that names one of these is answered: the change cannot be applied.
    refused: BTreeSet<DeliveryId>,
    /// The state of Redis' registry of endpoints, and what it held before it was lost.
    health: Health,
    lost_registry: Option<Registry>,
    /// An older Herald owned the partition, and left dead letters that are not indexed as they are.
    has_older_written: bool,
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
        max_interval: Duration::from_millis(MAX_PAUSE_MS * 5 / 6),
        jitter: 0.2,
        max_attempts: 8,
        max_age: Duration::from_millis(MAX_AGE_MS),
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
            taken_at: BTreeMap::new(),
            ended_until: vec![u64::MAX; endpoints],
            was_unordered: plan.endpoints.iter().map(|endpoint| !endpoint.ordered).collect(),
            given_away: BTreeSet::new(),
            was_ended: vec![false; endpoints],
            locked_since: vec![None; endpoints],
            locked_until: vec![0; endpoints],
            ledger: Ledger::default(),
            strange: Vec::new(),
            strangers: 0,
            is_stream_anew: false,
            sequence: 0,
            events: 0,
            published: BTreeSet::new(),
            versions: 0,
            followed: BTreeMap::new(),
            planned: 0,
            asked_by_hand: BTreeMap::new(),
            asked: 0,
            redelivered: BTreeSet::new(),
            was_set_back: false,
            is_loosened: false,
            has_faults: plan.has_faults(),
            duplicates: 0,
            allowance: 0,
            is_healed: false,
            steady: plan.steady.is_some().then(BTreeSet::new),
            is_pressed: false,
            trace: None,
            violation: None,
            tally: Tally::default(),
            refused: BTreeSet::new(),
            health: Health::Whole,
            lost_registry: None,
            has_older_written: false,
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
                turns: Turns::default(),
                flights: BTreeMap::new(),
                term: None,
                frozen_until: 0,
                wake_at: u64::MAX,
                lag_ms: 0,
                idle_calls: (0, 0),
                working: Working::default(),
                confirmed: Confirmed::default(),
                was_turned_away: false,
            });
            world.after(worker as u64, Event::Restart { worker });
        }
        for (at, action) in world.plan.actions.clone() {
            world.after(at, Event::Act(action));
        }
        if world.steady.is_some() {
            world.after(STEADY_FROM_MS, Event::Steady);
        }
        world.after(ACTIVE, Event::Heal);
        world
    }

    /// Runs until everything has ended, or something is wrong.
    pub fn run(&mut self) -> Result<(), Broken> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            self.model.now_ms = (EPOCH_MS + at).saturating_add_signed(self.clock_step);
            let is_noise = matches!(
                event,
                Event::Wake { .. }
                    | Event::Work { .. }
                    | Event::Apply { call: Call::Acquire { .. } | Call::Renew { .. }, .. }
                    | Event::Apply { call: Call::Trim { .. } | Call::Inbox { .. } | Call::ClaimForeign { .. }, .. }
                    | Event::Answer {
                        answer: Ok(Answer::Taken { .. } | Answer::Renewed { .. } | Answer::Trimmed { .. }),
                        ..
                    }
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
                self.tally.checked(Promise::NeverStuck);
                let told = self.model.check_facts().and_then(|()| self.check_times_of_ends());
                return told.map_err(|why| Broken { promise: Promise::Sound, why });
            }
            if at > ACTIVE + PATIENCE_MS {
                let why = format!("it did not end: {}", self.state());
                return Err(Broken { promise: Promise::NeverStuck, why });
            }
        }
        Err(Broken { promise: Promise::NeverStuck, why: "nothing is left to happen".to_owned() })
    }

    /// A death is not told before the attempt that brought it, whatever the worker's own clock says: both are by Redis'.
    fn check_times_of_ends(&self) -> Result<(), String> {
        if self.plan.actions.iter().any(|(_, action)| matches!(action, Action::Clock { .. })) {
            return Ok(());
        }
        let told: Vec<Logged> = self.model.log.iter().filter_map(|line| Logged::read(line).ok()).collect();
        for pair in told.windows(2) {
            let [Logged::Attempt(attempt), Logged::End(end)] = pair else { continue };
            let is_its = end.delivery().as_ref() == Some(&attempt.delivery) && end.attempts == attempt.attempt;
            let is_of_age = end.end != End::Dead || end.why.starts_with(DeadReason::Expired.name());
            if is_its && !is_of_age && end.at_ms < attempt.at_ms {
                return Err(format!(
                    "{} died at {}, before its attempt at {}",
                    attempt.delivery, end.at_ms, attempt.at_ms
                ));
            }
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.steady.is_none()
            && is_settled(&self.model)
            && self.are_operations_settled()
            && self.model.check_indexes().is_ok()
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
            "operations {:?}, group {group:?}, due {:?}, claimed {:?}, chains {:?}, inbox {:?}, workers {owners:?}, redis {}, {lanes:?}",
            m.operations.open,
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

    fn wrong(&mut self, promise: Promise, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Broken { promise, why: what() });
        }
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.next += 1;
        self.queue.insert((self.now + ms, self.next), event);
    }

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
                    let term = call.term().clone();
                    self.after(back, Event::Answer { worker, life, slot, term, answer });
                }
            }
            Event::Answer { worker, life, slot, term, answer } => self.answer(worker, life, slot, &term, answer),
            Event::Arrive { worker, life, token } => self.arrive(worker, life, token),
            Event::Ended { worker, life, token, outcome, took_ms } => self.ended(worker, life, token, outcome, took_ms),
            Event::Meddle(id) => self.meddle(id),
            Event::Work { worker, life } => self.work_on_operations(worker, life),
            Event::Step { worker, life, redis, term, step, reply } => {
                self.run_step(worker, life, redis, term, step, reply);
            }
            Event::Stepped { worker, life, term, step, answer } => self.stepped(worker, life, term, step, answer),
            Event::Rested { worker, life, term } => self.rested(worker, life, &term),
            Event::Sync { worker } => self.sync(worker, None),
            Event::ConfirmRead { worker, life } => {
                // Nothing is final while it is gone: it is looked for again.
                if self.health == Health::Gone {
                    return self.after(100, Event::ConfirmRead { worker, life });
                }
                let found = (self.registry.clone(), self.health);
                let back = self.chance.within(1, 20);
                self.after(back, Event::Confirm { worker, life, found });
            }
            Event::Confirm { worker, life, found } => {
                if self.workers[worker].life == life {
                    self.sync(worker, Some(found));
                    let now = self.local(worker);
                    if let Some(partition) = &mut self.workers[worker].partition {
                        partition.registry_confirmed(now);
                    }
                    self.pump(worker);
                }
            }
            Event::Disable { endpoint, revision } => {
                if self.registry.endpoints.get(&endpoint).is_some_and(|found| found.revision == revision) {
                    self.disable(index_of(endpoint.as_str()));
                }
            }
            // Once everything is healed, an operator has seen to it.
            Event::PauseForQuota { endpoint, revision } if !self.is_healed => self.pause_for_quota(&endpoint, revision),
            Event::PauseForQuota { .. } => {}
            Event::Remove { endpoint, revision } => self.remove(endpoint, revision),
            Event::Restart { worker } => self.restart(worker),
            Event::StopWaiting { worker, life } => {
                let now = self.local(worker);
                if self.workers[worker].life == life
                    && let Some(partition) = &mut self.workers[worker].partition
                {
                    // The worker that was asked then may have answered.
                    self.has_faults |= partition.tally().in_flight > 0;
                    partition.stop_waiting(now);
                    self.pump(worker);
                }
            }
            Event::RedisUp => self.is_down = false,
            Event::PressureOver => self.press(false),
            Event::RegistryBack => self.registry_comes_back(),
            Event::RegistrySetBack { before, lost, made } => self.set_registry_back(*before, lost, made),
            Event::Steady => self.goes_on_steadily(),
            Event::Heal => self.heal(),
        }
    }

    fn local(&self, worker: usize) -> u64 {
        self.now + self.workers[worker].offset
    }
}

fn mark() -> Mark {
    Mark { by: "ops".to_owned(), why: "simulated".to_owned(), at_ms: 0 }
}

/// The worker that takes part in an event, which it cannot do while it is frozen.
fn addressee(event: &Event) -> Option<usize> {
    match event {
        Event::Wake { worker, .. }
        | Event::Answer { worker, .. }
        | Event::Ended { worker, .. }
        | Event::Work { worker, .. }
        | Event::Stepped { worker, .. }
        | Event::Rested { worker, .. }
        | Event::Sync { worker }
        | Event::Confirm { worker, .. }
        | Event::StopWaiting { worker, .. }
        | Event::Restart { worker } => Some(*worker),
        Event::Act(_)
        | Event::Apply { .. }
        | Event::Arrive { .. }
        | Event::Step { .. }
        | Event::ConfirmRead { .. }
        | Event::Disable { .. }
        | Event::PauseForQuota { .. }
        | Event::Remove { .. }
        | Event::RedisUp
        | Event::PressureOver
        | Event::RegistryBack
        | Event::RegistrySetBack { .. }
        | Event::Steady
        | Event::Meddle(_)
        | Event::Heal => None,
    }
}

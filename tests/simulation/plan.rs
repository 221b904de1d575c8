//! What happens to a run from outside, drawn from the seed before it begins, so that a failing run can be told, and
//! shortened by leaving actions out. Never acts itself.

use herald::{
    dispatch::budgets::{Budget, Budgets},
    facts::{operation::Kind, quota::Quotas},
    store::operations::Verb,
};

/// A small generator of its own: fast, and the same on every machine for ever (splitmix64).
#[derive(Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Healthy,
    Fails,
    /// Answers only when the attempt's time is over.
    Hangs,
    Gone,
    Throttles,
    /// Every other request fails.
    Flaky,
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    /// Carried out, its answer lost.
    AnswerLost,
    /// Never arrives.
    CallLost,
    /// The client gives up; the script runs this much later.
    RunsLate(u64),
    /// The answer takes this long.
    AnswersLate(u64),
    /// The script fails before its first change; or it is carried out, and its answer cannot be read.
    ScriptFails { applied: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Publish {
        intent: usize,
        count: usize,
    },
    NoEvent,
    Receiver {
        endpoint: usize,
        manner: Manner,
    },
    // The operator's.
    Pause(usize),
    Disable(usize),
    Enable(usize),
    Delete(usize),
    Create(usize),
    /// Deleted, and its id given to another account.
    GiveAway(usize),
    SwitchOrder(usize),
    PauseAll(bool),
    /// No worker has the key of its secrets any more, or they are damaged; until somebody sees to it.
    Lock(usize),
    Unlock(usize),
    Redeliver(usize),
    Discard(usize),
    Release {
        endpoint: usize,
        intent: usize,
    },
    Requeue,
    /// Planned for the letters of an endpoint, or for all, and started.
    Operate {
        kind: Kind,
        endpoint: Option<usize>,
    },
    ChangeOperation {
        nth: usize,
        verb: Verb,
    },
    // Faults.
    Net {
        worker: usize,
        net: Net,
    },
    /// Breaks the next settle that changes records.
    Settle {
        worker: usize,
        net: Net,
    },
    Renewal {
        worker: usize,
        net: Net,
    },
    Crash(usize),
    Stop(usize),
    Freeze {
        worker: usize,
        for_ms: u64,
    },
    RedisDown {
        for_ms: u64,
    },
    Snapshot,
    RollBack,
    Clock {
        step_ms: i64,
    },
    Full(bool),
    /// Redis is nearly full: nothing is read.
    Pressure {
        for_ms: u64,
    },
    /// One delivery, or every one, can no longer be settled.
    Refuse {
        for_all: bool,
    },
    RegistryLost {
        /// Another registry stands in its place.
        other: bool,
        for_ms: u64,
    },
    /// A failover takes the last change of the registry back, a pause of this endpoint; and then another one, which makes the
    /// other endpoint, gets its version.
    RegistrySetBack {
        paused: usize,
        made: usize,
        /// After the pause.
        after_ms: u64,
    },
    Trim,
    /// Somebody deletes the stream, and the first entries of the new one have ids that quarantined ones had.
    StreamAnew,
    DestroyGroup,
    DeleteLease,
    ForeignReads(usize),
    LagRegistry {
        worker: usize,
    },
}

impl Action {
    /// Whether it changes the registry of endpoints.
    pub fn is_of_registry(self) -> bool {
        use Action::*;
        matches!(
            self,
            Pause(_) | Disable(_) | Enable(_) | Delete(_) | Create(_) | GiveAway(_) | SwitchOrder(_) | PauseAll(_)
        )
    }

    /// The endpoint that it changes in the registry.
    pub fn changes(self) -> Option<usize> {
        use Action::*;
        match self {
            Pause(at) | Disable(at) | Enable(at) | Delete(at) | GiveAway(at) | SwitchOrder(at) => Some(at),
            _ => None,
        }
    }

    /// Whether it may cost duplicates.
    pub fn is_fault(self) -> bool {
        use Action::*;
        matches!(
            self,
            Net { .. }
                | Settle { .. }
                | Renewal { .. }
                | Crash(_)
                | Freeze { .. }
                | RedisDown { .. }
                | RollBack
                | Clock { .. }
                | StreamAnew
                | DestroyGroup
                | DeleteLease
                | ForeignReads(_)
                | Refuse { .. }
        )
    }
}

#[derive(Debug, Clone)]
pub struct EndpointPlan {
    pub account: usize,
    pub ordered: bool,
    pub max_in_flight: u16,
    pub rate_limit: Option<u32>,
    pub max_attempts: u32,
    /// It is there from the beginning.
    pub exists: bool,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub workers: usize,
    pub endpoints: Vec<EndpointPlan>,
    /// Each intent's account.
    pub intents: Vec<usize>,
    pub budgets: Budgets,
    /// An account whose events come without a pause, from [`STEADY_FROM_MS`] until all others have what they are owed.
    pub steady: Option<Steady>,
    pub quotas: Quotas,
    pub actions: Vec<(u64, Action)>,
}

/// Its one endpoint, and its intents.
#[derive(Debug, Clone)]
pub struct Steady {
    pub endpoint: usize,
    pub intents: std::ops::Range<usize>,
}

/// How often an event of the steady account comes: there is always a new one to read, and one that is pending.
pub const STEADY_EVERY_MS: u64 = 2;
pub const STEADY_FROM_MS: u64 = 2_500;
/// More than it has in flight at a time, so that they seldom wait for each other.
const STEADY_INTENTS: usize = 64;

/// The most that may be fresh beside a steady account: enough for that account, but not for a burst of any other.
const STEADY_FRESH: usize = 256;
const BURST: usize = 60;

/// Until this time things are done to a run; then everything heals.
pub const ACTIVE_MS: u64 = 3_000;

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let accounts = chance.within(1, 3) as usize;
        let endpoints = (0..accounts as u64 + chance.within(0, 3))
            .map(|n| EndpointPlan {
                account: n as usize % accounts,
                ordered: !chance.one_in(4),
                max_in_flight: chance.within(1, 5) as u16,
                rate_limit: chance.one_in(6).then(|| chance.within(5, 50) as u32),
                max_attempts: chance.within(1, 9) as u32,
                exists: !chance.one_in(10),
            })
            .collect::<Vec<_>>();
        let intents = (0..chance.within(2, 6)).map(|n| n as usize % accounts).collect::<Vec<_>>();
        let mut plan = Self {
            seed,
            workers: chance.within(1, 4) as usize,
            endpoints,
            intents,
            budgets: budgets(seed),
            steady: None,
            quotas: quotas(seed),
            actions: Vec::new(),
        };
        // Now and then more at once than a lane queues.
        let most = if chance.one_in(20) { 25 } else { 5 };
        for _ in 0..chance.within(4, 14) {
            let at = chance.below(ACTIVE_MS);
            let (intent, count) = (chance.below(plan.intents.len() as u64) as usize, chance.within(1, most) as usize);
            plan.actions.push((at, Action::Publish { intent, count }));
        }
        let (faults, operations) = match chance.below(4) {
            0 => (0, chance.below(6)),
            1 => (chance.within(1, 4), 0),
            _ => (chance.within(1, 9), chance.below(6)),
        };
        for _ in 0..chance.below(5) {
            let action = plan.receiver(&mut chance);
            plan.actions.push((chance.below(ACTIVE_MS), action));
        }
        for _ in 0..operations {
            let action = plan.operation(&mut chance);
            plan.actions.push((chance.below(ACTIVE_MS), action));
        }
        for _ in 0..faults {
            let at = chance.below(ACTIVE_MS);
            let action = plan.fault(&mut chance);
            if action == Action::RollBack {
                plan.actions.push((at.saturating_sub(chance.within(5, 400)), Action::Snapshot));
            }
            plan.actions.push((at, action));
        }
        plan.beside_a_steady_account(accounts);
        plan.with_a_stream_made_anew();
        plan.with_an_id_given_away(accounts);
        plan.with_operations();
        plan.with_clean_stops();
        plan.with_a_lock();
        plan.with_a_registry_set_back();
        plan.with_a_lost_tail();
        plan.actions.sort_by_key(|(at, _)| *at);
        plan
    }

    /// In one run of 8 a change of the registry is lost, and the next one is given its version.
    fn with_a_registry_set_back(&mut self) {
        let mut chance = Chance::new(self.seed ^ 0x5e7_bac4);
        if !chance.one_in(8) {
            return;
        }
        let first = &self.endpoints[0];
        let made = EndpointPlan { exists: false, ..first.clone() };
        let intent = self.intents.iter().position(|account| *account == made.account);
        self.endpoints.push(made);
        let (at, after_ms) = (chance.below(ACTIVE_MS - 500), chance.within(5, 300));
        let paused = chance.below(self.endpoints.len() as u64 - 1) as usize;
        self.actions.push((at, Action::RegistrySetBack { paused, made: self.endpoints.len() - 1, after_ms }));
        // What comes right behind it is owed to the endpoint that was made.
        for _ in 0..chance.within(1, 5) {
            let at = at + after_ms + chance.within(1, 120);
            self.actions.extend(intent.map(|intent| (at, Action::Publish { intent, count: 2 })));
        }
    }

    /// One run in 64 has an account whose events never pause, and others with more at once than they can take.
    fn beside_a_steady_account(&mut self, accounts: usize) {
        let mut chance = Chance::new(self.seed ^ 0x57ea_d1e5);
        if !chance.one_in(64) {
            return;
        }
        let first = self.intents.len();
        self.steady = Some(Steady { endpoint: self.endpoints.len(), intents: first..first + STEADY_INTENTS });
        self.intents.extend([accounts; STEADY_INTENTS]);
        self.endpoints.push(EndpointPlan {
            account: accounts,
            ordered: true,
            max_in_flight: 100,
            rate_limit: None,
            max_attempts: 8,
            exists: true,
        });
        let whole = Budgets::of(1024 * 1024);
        self.budgets = Budgets { fresh: Budget { count: STEADY_FRESH, ..whole.fresh }, ..whole };
        for _ in 0..6 {
            let (at, intent) = (chance.within(STEADY_FROM_MS, ACTIVE_MS), chance.below(first as u64) as usize);
            self.actions.push((at, Action::Publish { intent, count: BURST }));
        }
    }

    /// Whether something may cost duplicates: also a stop while Redis is nearly full, because what was begun then gets
    /// no records.
    pub fn has_faults(&self) -> bool {
        let any = |is: fn(Action) -> bool| self.actions.iter().any(|(_, action)| is(*action));
        let may_stop_under_pressure =
            any(|a| matches!(a, Action::Stop(_))) && any(|a| matches!(a, Action::Pressure { .. }));
        any(Action::is_fault) || may_stop_under_pressure
    }

    pub fn has_operations(&self) -> bool {
        self.actions.iter().any(|(_, action)| matches!(action, Action::Operate { .. }))
    }

    /// One run in 12 has an endpoint that is locked while retries of it are due and others wait behind them; mostly for longer
    /// than a delivery may grow old, and taken over by another worker before or after that ends.
    fn with_a_lock(&mut self) {
        let mut chance = Chance::new(self.seed ^ 0x10c_4ed);
        if !chance.one_in(12) {
            return;
        }
        let (endpoint, at) = (self.endpoint(&mut chance), chance.within(300, ACTIVE_MS - 300));
        self.actions.push((at - chance.within(50, 300), Action::Receiver { endpoint, manner: Manner::Fails }));
        for _ in 0..4 {
            let (intent, count) = (chance.below(self.intents.len() as u64) as usize, chance.within(1, 5) as usize);
            self.actions.push((chance.within(at - 300, at + 300), Action::Publish { intent, count }));
        }
        let until = if chance.one_in(4) { at + chance.within(20, 2_000) } else { chance.within(24_000, 34_000) };
        self.actions.extend([(at, Action::Lock(endpoint)), (until, Action::Unlock(endpoint))]);
        for _ in 0..chance.below(3) {
            let when = chance.within(until.saturating_sub(600), until + 600);
            self.actions.extend((0..self.workers).map(|worker| (when, Action::Stop(worker))));
        }
    }

    /// One run in 12 has a Redis that forgets its last moment while its owner lives: what was delivered, retried and given up in it,
    /// and redeliveries that operators ask for again.
    fn with_a_lost_tail(&mut self) {
        let mut chance = Chance::new(self.seed ^ 0x7a11);
        if !chance.one_in(12) {
            return;
        }
        let (endpoint, at) = (self.endpoint(&mut chance), chance.within(700, ACTIVE_MS - 700));
        for endpoint in &mut self.endpoints {
            endpoint.max_attempts = endpoint.max_attempts.min(3);
        }
        self.actions.push((at - 700, Action::Receiver { endpoint, manner: Manner::Fails }));
        for _ in 0..4 {
            let (intent, count) = (chance.below(self.intents.len() as u64) as usize, chance.within(1, 4) as usize);
            self.actions.push((chance.within(at - 700, at + 200), Action::Publish { intent, count }));
        }
        let lost = at + chance.within(50, 400);
        self.actions.extend([(at, Action::Snapshot), (lost, Action::RollBack)]);
        let manner = if chance.one_in(3) { Manner::Flaky } else { Manner::Healthy };
        self.actions.push((chance.within(at - 20, lost), Action::Receiver { endpoint, manner }));
        for nth in 0..chance.below(3) as usize {
            self.actions.push((chance.within(at, lost), Action::Redeliver(nth)));
            self.actions.push((lost + chance.within(50, 600), Action::Redeliver(nth)));
        }
    }

    /// Every other run in which nothing breaks has workers that are stopped in the middle of their work, as by a deployment.
    fn with_clean_stops(&mut self) {
        let mut chance = Chance::new(self.seed ^ 0x570b);
        if self.actions.iter().any(|(_, action)| action.is_fault()) || chance.one_in(2) {
            return;
        }
        for _ in 0..chance.within(1, 4) {
            let at = chance.below(ACTIVE_MS);
            let (intent, worker) = (chance.below(self.intents.len() as u64), chance.below(self.workers as u64));
            self.actions.push((at, Action::Publish { intent: intent as usize, count: 3 }));
            self.actions.push((at + chance.within(5, 40), Action::Stop(worker as usize)));
        }
    }

    /// One run in 16 has entries that are no events, and a stream that gives their ids out again, once or twice.
    fn with_a_stream_made_anew(&mut self) {
        let mut chance = Chance::new(self.seed ^ 0xa9e3);
        if !chance.one_in(16) {
            return;
        }
        for _ in 0..chance.within(1, 4) {
            self.actions.push((chance.below(ACTIVE_MS / 2), Action::NoEvent));
        }
        for _ in 0..chance.within(1, 3) {
            let at = chance.within(ACTIVE_MS / 4, ACTIVE_MS);
            self.actions.push((at, Action::StreamAnew));
            // Now and then its producer goes on before any owner has seen the new one.
            if chance.one_in(2) {
                let intent = chance.below(self.intents.len() as u64) as usize;
                self.actions.push((at, Action::Publish { intent, count: 1 }));
            }
        }
    }

    /// One run in 8 has an endpoint whose id is given to another account while much of the first one's is left: retries,
    /// letters, and what waits behind them. Both go on.
    fn with_an_id_given_away(&mut self, accounts: usize) {
        let mut chance = Chance::new(self.seed ^ 0x0171_e0ff);
        if accounts < 2 || !chance.one_in(8) {
            return;
        }
        let endpoint = self.endpoint(&mut chance) % accounts;
        let at = chance.within(200, ACTIVE_MS - 200);
        let failing = [Manner::Fails, Manner::Hangs, Manner::Throttles, Manner::Flaky][chance.below(4) as usize];
        self.actions.push((at.saturating_sub(400), Action::Receiver { endpoint, manner: failing }));
        if chance.one_in(2) {
            let paused = if chance.one_in(2) { Action::Pause(endpoint) } else { Action::Crash(0) };
            self.actions.push((at.saturating_sub(chance.within(1, 100)), paused));
        }
        for _ in 0..4 {
            let (intent, count) = (chance.below(self.intents.len() as u64) as usize, chance.within(1, 5) as usize);
            self.actions.push((chance.within(at.saturating_sub(400), at + 400), Action::Publish { intent, count }));
        }
        self.actions.push((at, Action::GiveAway(endpoint)));
        self.actions.push((at + chance.within(1, 200), Action::Receiver { endpoint, manner: Manner::Healthy }));
        for nth in 0..chance.below(4) {
            self.actions.push((at + chance.within(1, 400), Action::Redeliver(nth as usize)));
        }
    }

    /// One run in 5 has operations on letters, two or three at once, beside operators who ask by hand.
    fn with_operations(&mut self) {
        let mut chance = Chance::new(self.seed ^ 0x09e7_a710);
        if !chance.one_in(5) {
            return;
        }
        let (endpoint, at) = (self.endpoint(&mut chance), chance.within(600, ACTIVE_MS - 400));
        for endpoint in &mut self.endpoints {
            endpoint.max_attempts = endpoint.max_attempts.min(3);
        }
        self.actions.push((0, Action::Receiver { endpoint, manner: Manner::Fails }));
        for _ in 0..chance.within(2, 6) {
            let (intent, count) = (chance.below(self.intents.len() as u64) as usize, chance.within(1, 6) as usize);
            self.actions.push((chance.below(at - 300), Action::Publish { intent, count }));
        }
        let manner = if chance.one_in(4) { Manner::Flaky } else { Manner::Healthy };
        self.actions.push((chance.within(at - 300, at + 300), Action::Receiver { endpoint, manner }));
        for _ in 0..chance.within(1, 4) {
            let kind = if chance.one_in(3) { Kind::Discard } else { Kind::Redeliver };
            let endpoint = chance.one_in(2).then_some(endpoint);
            self.actions.push((at + chance.below(200), Action::Operate { kind, endpoint }));
        }
        for _ in 0..chance.below(6) {
            let (nth, later) = (chance.below(8) as usize, at + chance.below(400));
            let asked = match chance.below(3) {
                0 => Action::Discard(nth),
                _ => Action::Redeliver(nth),
            };
            self.actions.push((later, asked));
        }
        for _ in 0..chance.below(3) {
            let verb = [Verb::Pause, Verb::Resume, Verb::Cancel][chance.below(3) as usize];
            self.actions
                .push((at + chance.below(400), Action::ChangeOperation { nth: chance.below(3) as usize, verb }));
        }
    }

    fn receiver(&self, chance: &mut Chance) -> Action {
        let manners = [
            Manner::Healthy,
            Manner::Fails,
            Manner::Fails,
            Manner::Hangs,
            Manner::Throttles,
            Manner::Flaky,
            Manner::Gone,
        ];
        let known = if chance.one_in(3) { manners.len() } else { manners.len() - 1 };
        let manner = manners[chance.below(known as u64) as usize];
        Action::Receiver { endpoint: self.endpoint(chance), manner }
    }

    fn operation(&self, chance: &mut Chance) -> Action {
        let endpoint = self.endpoint(chance);
        let nth = chance.below(8) as usize;
        match chance.below(16) {
            0..=2 => Action::Pause(endpoint),
            3 => Action::Disable(endpoint),
            4..=6 => Action::Enable(endpoint),
            7 if chance.one_in(2) => Action::Delete(endpoint),
            7 | 8 => Action::Create(endpoint),
            9 => Action::SwitchOrder(endpoint),
            10 => Action::PauseAll(chance.one_in(2)),
            11 | 12 => Action::Redeliver(nth),
            13 => Action::Discard(nth),
            14 => Action::Release { endpoint, intent: chance.below(self.intents.len() as u64) as usize },
            _ if chance.one_in(2) => Action::NoEvent,
            _ => Action::Requeue,
        }
    }

    fn fault(&self, chance: &mut Chance) -> Action {
        let worker = chance.below(self.workers as u64) as usize;
        match chance.below(31) {
            0..=3 => Action::Net { worker, net: net(chance) },
            4..=6 => Action::Settle { worker, net: net(chance) },
            7 => Action::Renewal { worker, net: net(chance) },
            8..=11 => Action::Crash(worker),
            12 => Action::Stop(worker),
            13 | 14 => Action::Freeze { worker, for_ms: chance.within(50, 2_500) },
            15 => Action::RedisDown { for_ms: chance.within(10, 1_500) },
            16 | 17 => Action::RollBack,
            18 => Action::Clock { step_ms: clock_step(chance) },
            19 => Action::Full(chance.one_in(2)),
            20 => Action::Trim,
            21 | 22 => Action::DestroyGroup,
            23 => Action::DeleteLease,
            24 => Action::ForeignReads(chance.within(1, 4) as usize),
            25 => Action::LagRegistry { worker },
            26 => Action::Pressure { for_ms: chance.within(50, 2_000) },
            27 | 28 => Action::Refuse { for_all: chance.one_in(4) },
            _ => Action::RegistryLost { other: chance.one_in(2), for_ms: chance.within(20, 2_000) },
        }
    }

    fn endpoint(&self, chance: &mut Chance) -> usize {
        chance.below(self.endpoints.len() as u64) as usize
    }
}

/// A little, or by an hour, or by forty days.
fn clock_step(chance: &mut Chance) -> i64 {
    match chance.below(5) {
        0 => -3_600_000,
        1 => 3_600_000,
        2 => 40 * 86_400_000,
        _ => chance.within(0, 400) as i64 - 200,
    }
}

/// Half of the runs have such small ones that everything is used up.
fn budgets(seed: u64) -> Budgets {
    let mut chance = Chance::new(seed ^ 0xb0d9e7);
    // As of one partition of a few, or of many.
    let settle_after_ms = if Chance::new(seed ^ 0x5e771e).one_in(2) { 4 } else { 32 };
    let whole = Budgets { settle_after_ms, ..Budgets::of(1024 * 1024) };
    if chance.one_in(2) {
        return whole;
    }
    let mut few = |bytes| Budget { count: chance.within(2, 14) as usize, bytes };
    Budgets {
        fresh: few(whole.fresh.bytes),
        kept: few(whole.kept.bytes),
        slow: few(whole.slow.bytes),
        outbox: few(whole.outbox.bytes),
        deferred: few(whole.deferred.bytes),
        in_vain: chance.within(1, 64) as usize,
        settle_after_ms,
        // Less than a hanging receiver takes.
        slow_after_ms: 100,
        new_for_ms: 25,
    }
}

/// In every third run a few records are more than an endpoint, or an account, may have.
fn quotas(seed: u64) -> Quotas {
    let mut chance = Chance::new(seed ^ 0x9007a);
    if !chance.one_in(3) {
        return Quotas::default();
    }
    let mut some = |to| chance.one_in(2).then(|| chance.within(1_500, to));
    Quotas { endpoint: some(6_000), account: some(10_000) }
}

fn net(chance: &mut Chance) -> Net {
    match chance.below(7) {
        0 | 1 => Net::AnswerLost,
        2 => Net::CallLost,
        3 | 4 => Net::RunsLate(chance.within(1, 1_200)),
        5 => Net::ScriptFails { applied: chance.one_in(2) },
        _ => Net::AnswersLate(chance.within(50, 1_500)),
    }
}

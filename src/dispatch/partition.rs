//! The owner of one partition, or who waits to be: which call on Redis comes next, what its answer means, and when an
//! attempt may start. Pure like the core that it drives: the shell (`worker`) and the simulator make the calls.
//!
//! One call at a time. So an answer is always about the state that the next call will find, and a batch of operations
//! is either confirmed or the term ends. The lease is renewed beside it, on a connection of its own.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    breaker::BreakerSettings,
    core::{Core, Known, Note, Origin, Send, Tally, Token, Wish},
    lane::Standing,
};
use crate::{
    facts::{
        delivery::{DeadLetter, Delivery},
        endpoint::{Endpoint, Mark},
        event::{Event, EventError},
        id::{AccountId, DeliveryId, EndpointId, EntryId, IntentId},
        outcome::Attempted,
        retry::RetryPolicy,
    },
    store::protocol::{
        Answer, Call, Content, Entry, Failure, Item, Kept, MAX_BATCH, MAX_READ_BYTES, ReadFrom, Request, RequestKind,
        Start, Term,
    },
};

/// Entries of one read: hundreds share the cost of a call, and a call stays well under a millisecond of Redis.
pub const READ_MAX: usize = 250;

/// Records of one claim: bounds what a long outage puts into memory at once.
const CLAIM_MAX: usize = 100;

/// A settle waits this long for company, unless [`SETTLE_AT`] operations wait already.
const SETTLE_DELAY_MS: u64 = 2;
const SETTLE_AT: usize = 250;

/// How often a worker without the lease asks for it, at most: a clean stop is noticed within this time.
const ACQUIRE_EVERY_MS: u64 = 200;

const FOREIGN_EVERY_MS: u64 = 10_000;
const TRIM_EVERY_MS: u64 = 1_000;
/// Entries of a trim after which another one is worth while at once; a call takes 10 000 at most.
const TRIM_ROUND: u64 = 5_000;

const INBOX_EVERY_MS: u64 = 1_000;
const EXPIRE_EVERY_MS: u64 = 30_000;
const ENDING_EVERY_MS: u64 = 1_000;

/// After Redis said that it is full, nothing is read for so long.
const FULL_PAUSE_MS: u64 = 500;

/// Values that this worker wrote, or may have written, to the lease. Beyond it, it waits like anyone for the lease to end.
const MAX_OWN_VALUES: usize = 16;

/// How long a worker that can do nothing now waits before it looks again.
const IDLE_MS: u64 = 50;

/// After an item was refused the term ends after so long: then it is tried again, by then perhaps mended.
const REFUSED_MS: u64 = 30_000;

/// What a term remembers of the one before is of no more use after this.
const REMEMBER_MS: u64 = 60_000;

/// Where the registry's knowledge comes from.
pub trait Directory {
    fn standing(&self, endpoint: &EndpointId) -> Standing;
    fn endpoints_of(&self, account: &AccountId) -> Vec<Arc<Endpoint>>;
    fn view(&self) -> RegistryView;
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryView {
    /// None until there is a registry.
    pub id: Option<String>,
    /// The snapshot is what the registry holds: it has not vanished, and every endpoint in it could be read.
    pub is_certain: bool,
    /// An operator stopped all sending.
    pub is_paused: bool,
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub owner: String,
    pub policy: RetryPolicy,
    pub breaker: BreakerSettings,
    pub max_body_bytes: usize,
    pub lease_ms: u64,
    pub start: Start,
    pub retain_ms: u64,
    pub trim_ignores: Vec<String>,
    pub dead_max_age_ms: u64,
    pub dead_max_count: u64,
}

/// What happened, for logs and counters.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    Core(Note),
    TermBegan,
    TermEnded {
        why: String,
    },
    GroupMade {
        after: EntryId,
    },
    Read {
        entries: usize,
    },
    Quarantined {
        entry: EntryId,
        error: String,
    },
    TrimmedWhilePending {
        entry: EntryId,
    },
    NoEndpoint {
        entry: EntryId,
        account: AccountId,
    },
    ForeignClaimed {
        count: usize,
    },
    Trimmed {
        count: u64,
    },
    DeadExpired {
        count: u64,
    },
    RedisFull,
    OtherRegistry {
        bound: String,
        found: String,
    },
    /// A script of a job failed without changing anything; the job comes again.
    JobFailed {
        why: String,
    },
    Requested {
        request: EntryId,
        answer: String,
    },
}

/// What the partition asks of its surroundings.
#[derive(Debug, Clone, PartialEq)]
pub enum Errand {
    Core(Wish),
    /// Read the registry's version and follow up to it, then say [`Partition::registry_confirmed`].
    ConfirmRegistry,
    /// Stop every attempt in flight: somebody else may be making the same.
    AbortFlights,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Does not own the partition; asks for it at this time.
    Waiting {
        at: u64,
    },
    Recovering,
    Opening,
    Counting(u64),
    Running,
    Stopped,
}

#[derive(Debug)]
enum Outstanding {
    Acquire {
        sent: u64,
    },
    Release,
    Plain,
    /// Housekeeping, or the inbox.
    Job,
    Read {
        from: ReadFrom,
        max: usize,
    },
    Ask,
    Settle,
    Backlog(EndpointId, BacklogFor),
    Heads(EndpointId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BacklogFor {
    Sending,
    /// Only what has outlived its policy is taken.
    Expiring,
}

#[derive(Debug)]
struct Arrival {
    entry: EntryId,
    event: Event,
    traceparent: Option<String>,
    endpoints: Vec<Arc<Endpoint>>,
}

/// Entries that were read and are not admitted yet.
#[derive(Debug)]
struct Staged {
    arrivals: Vec<Arrival>,
    /// They may have been read before: each delivery is looked up.
    suspect: bool,
    /// An account without endpoint is one only if the registry says so now.
    unconfirmed: bool,
    /// Being asked: the deliveries, and what is known of those that were answered for.
    asking: Option<(Vec<DeliveryId>, Vec<Known>)>,
}

pub struct Partition<D> {
    settings: Settings,
    directory: D,
    core: Core,
    rng: StdRng,
    phase: Phase,
    term: Option<Term>,
    own_values: VecDeque<Term>,
    /// By this worker's own clock the lease is ours until here.
    lease_until: u64,
    renew_at: u64,
    renewing: Option<u64>,
    outstanding: Option<Outstanding>,
    /// Redis' clock minus ours.
    redis_ahead_ms: i64,
    bound: Option<String>,
    last_read: EntryId,
    /// Pending entries are still to be read, after this one.
    pending_after: Option<EntryId>,
    /// Entries up to here may have been read before the group was made again.
    suspect_until: EntryId,
    more_entries: bool,
    more_requests: bool,
    /// Woken for entries, but there was nothing to read: a stranger read them. The wake-up would fire for ever.
    is_wakeup_false: bool,
    was_woken: bool,
    inbox_after: EntryId,
    read_not_before: u64,
    is_under_pressure: bool,
    staged: Option<Staged>,
    next_due_ms: Option<u64>,
    /// Backlogs to look through for what has outlived its policy, each after an entry.
    expiring: VecDeque<(EndpointId, EntryId)>,
    foreign_at: u64,
    trim_at: u64,
    inbox_at: u64,
    expire_at: u64,
    ending_at: u64,
    refused_since: Option<u64>,
    began_at: u64,
    /// Deliveries of one entry, as the last reads had it.
    fan_out: usize,
    /// Errands to confirm the registry that were not answered yet. Only the last one's answer is new enough.
    confirmations: u32,
    /// The answer came at a time when the registry was not to be trusted: it must be asked for again.
    must_reconfirm: bool,
    /// Terms that ended since a settlement was last confirmed.
    failures: u32,
    turn: usize,
    is_stopping: bool,
    /// The last answer said that another worker holds the lease.
    is_taken: bool,
    is_held_up: bool,
    happenings: Vec<Happening>,
    errands: Vec<Errand>,
}

impl<D: Directory> Partition<D> {
    pub fn new(settings: Settings, directory: D, seed: [u8; 32]) -> Self {
        let core = Core::new(settings.policy.clone(), settings.breaker, settings.max_body_bytes);
        Self {
            settings,
            directory,
            core,
            rng: StdRng::from_seed(seed),
            phase: Phase::Waiting { at: 0 },
            term: None,
            own_values: VecDeque::new(),
            lease_until: 0,
            renew_at: 0,
            renewing: None,
            outstanding: None,
            redis_ahead_ms: 0,
            bound: None,
            last_read: EntryId::ZERO,
            pending_after: None,
            suspect_until: EntryId::ZERO,
            more_entries: false,
            more_requests: false,
            is_wakeup_false: false,
            was_woken: false,
            inbox_after: EntryId::ZERO,
            read_not_before: 0,
            is_under_pressure: false,
            staged: None,
            next_due_ms: None,
            expiring: VecDeque::new(),
            foreign_at: 0,
            trim_at: 0,
            inbox_at: 0,
            expire_at: 0,
            ending_at: 0,
            refused_since: None,
            began_at: 0,
            fan_out: 1,
            confirmations: 0,
            must_reconfirm: false,
            failures: 0,
            turn: 0,
            is_stopping: false,
            is_taken: false,
            is_held_up: true,
            happenings: Vec::new(),
            errands: Vec::new(),
        }
    }

    // ---- calls and answers ----------------------------------------------------------------------------------------

    /// The next call to make; none while one is outstanding or nothing is to be done before [`Partition::wake_at`].
    pub fn next_call(&mut self, now: u64) -> Option<Call> {
        self.check_lease(now);
        if self.outstanding.is_some() {
            return None;
        }
        self.look_at_registry();
        let (call, outstanding) = self.choose(now)?;
        self.outstanding = Some(outstanding);
        Some(call)
    }

    pub fn answered(&mut self, now: u64, answer: Result<Answer, Failure>) {
        let Some(outstanding) = self.outstanding.take() else { return };
        match answer {
            Ok(answer) => self.understand(now, outstanding, answer),
            // Only what adds is refused, and only in a running term: a read, or taking over a stranger's entries.
            Err(Failure::Full)
                if self.phase == Phase::Running
                    && matches!(outstanding, Outstanding::Read { .. } | Outstanding::Job) =>
            {
                self.happenings.push(Happening::RedisFull);
                self.read_not_before = now + FULL_PAUSE_MS;
            }
            Err(Failure::Full) => self.end_term(now, "Redis is full".to_owned()),
            Err(Failure::Unknown(why)) => self.end_term(now, why),
            // These check everything before they change anything: what is wrong is one endpoint's or one job's, and
            // no reason to end everybody's term.
            Err(Failure::Script(why)) if matches!(outstanding, Outstanding::Heads(_) | Outstanding::Job) => {
                if let Outstanding::Heads(endpoint) = outstanding {
                    self.core.ends_later(endpoint);
                }
                self.ending_at = now + ENDING_EVERY_MS;
                self.happenings.push(Happening::JobFailed { why });
            }
            Err(Failure::Script(why)) => self.end_term(now, why),
        }
    }

    /// The next renewal, to be made beside the other calls.
    pub fn next_renewal(&mut self, now: u64) -> Option<Call> {
        self.check_lease(now);
        let term = self.term.clone()?;
        if self.renewing.is_some() || now < self.renew_at {
            return None;
        }
        self.renewing = Some(now);
        Some(Call::Renew { term, ttl_ms: self.settings.lease_ms })
    }

    pub fn renewed(&mut self, now: u64, term: &Term, answer: &Result<Answer, Failure>) {
        let Some(sent) = self.renewing.take() else { return };
        if self.term.as_ref() != Some(term) {
            return;
        }
        match answer {
            Ok(Answer::Renewed) => {
                self.lease_until = self.lease_end(sent);
                self.renew_at = sent + self.settings.lease_ms / 4;
            }
            Ok(_) => self.end_term(now, "the lease is not ours any more".to_owned()),
            Err(_) => self.renew_at = now + self.settings.lease_ms / 8,
        }
    }

    // ---- attempts -------------------------------------------------------------------------------------------------

    /// The next attempt to start.
    pub fn next_send(&mut self, now: u64) -> Option<Send> {
        self.check_lease(now);
        if self.phase != Phase::Running || self.is_stopping || self.is_held_up {
            return None;
        }
        self.core.next_send(now)
    }

    pub fn attempted(&mut self, now: u64, token: Token, attempted: Attempted) {
        let chance = self.rng.random::<f64>();
        let redis_ms = self.redis_now(now);
        self.core.attempted(now, redis_ms, token, attempted, chance);
    }

    // ---- the surroundings -----------------------------------------------------------------------------------------

    /// An endpoint has changed, or, with none named, any may have.
    pub fn registry_changed(&mut self, now: u64, endpoint: Option<&EndpointId>) {
        self.look_at_registry();
        let mut changed: Vec<EndpointId> = match endpoint {
            Some(endpoint) => vec![endpoint.clone()],
            None => self.core.lanes().map(|(endpoint, _)| endpoint.clone()).collect(),
        };
        // In an order of its own, not of the map's: the same inputs must lead to the same calls.
        changed.sort_unstable();
        changed.retain(|endpoint| self.core.has_lane(endpoint));
        for endpoint in changed {
            let standing = self.directory.standing(&endpoint);
            self.core.stand(now, &endpoint, standing);
        }
    }

    /// The snapshot is as new as the registry was after the errand was given.
    pub fn registry_confirmed(&mut self, now: u64) {
        self.confirmations = self.confirmations.saturating_sub(1);
        if self.confirmations > 0 {
            // The registry may have been read before the entries that wait now.
            return;
        }
        let Some(staged) = &mut self.staged else { return };
        let view = self.directory.view();
        if !view.is_certain || view.id != self.bound {
            self.must_reconfirm = true;
            return;
        }
        for arrival in staged.arrivals.iter_mut().filter(|arrival| arrival.endpoints.is_empty()) {
            arrival.endpoints = endpoints_for(&self.directory, &arrival.event);
        }
        staged.unconfirmed = false;
        self.admit_if_known(now);
    }

    /// Redis has little memory left: nothing is read.
    pub fn set_pressure(&mut self, is_under_pressure: bool) {
        self.is_under_pressure = is_under_pressure;
    }

    /// The wake-up failed: the stream and the inbox are looked at without it.
    pub fn look_again(&mut self) {
        (self.more_entries, self.more_requests) = (true, true);
    }

    /// Something was added to the stream or the inbox.
    pub fn woken(&mut self, entries: bool, requests: bool) {
        self.more_entries |= entries;
        self.was_woken |= entries;
        self.more_requests |= requests;
    }

    /// What a wake-up should wait for, when nothing is left to read: entries and requests after these.
    pub fn wants_wakeup(&self) -> Option<(EntryId, EntryId)> {
        let idle = self.phase == Phase::Running && self.pending_after.is_none() && self.staged.is_none();
        let waits = idle && !self.more_entries && !self.more_requests && !self.is_stopping && !self.is_wakeup_false;
        waits.then_some((self.last_read, self.inbox_after))
    }

    /// Stop reading and sending; what is in flight may end, then the lease is given back.
    pub fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// The time for what is in flight is over: it gets its records and is aborted.
    pub fn stop_waiting(&mut self, now: u64) {
        self.is_stopping = true;
        self.core.abandon_flights(now);
        self.errands.push(Errand::AbortFlights);
    }

    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }

    /// Somebody else owns it, or there is nothing to own yet.
    pub fn is_standby(&self) -> bool {
        self.is_taken || self.directory.view().id.is_none()
    }

    pub fn is_owner(&self) -> bool {
        self.term.is_some()
    }

    /// Reading, claiming and sending.
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running && !self.is_held_up
    }

    pub fn tally(&self) -> Tally {
        self.core.tally()
    }

    pub fn core(&self) -> &Core {
        &self.core
    }

    pub fn directory(&self) -> &D {
        &self.directory
    }

    pub fn take_happenings(&mut self) -> Vec<Happening> {
        self.happenings.extend(self.core.take_notes().into_iter().map(Happening::Core));
        std::mem::take(&mut self.happenings)
    }

    pub fn take_errands(&mut self) -> Vec<Errand> {
        self.errands.extend(self.core.take_wishes().into_iter().map(Errand::Core));
        std::mem::take(&mut self.errands)
    }

    /// Redis' time as far as the last answer tells.
    pub fn redis_now(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.redis_ahead_ms)
    }

    /// When to look again at the latest, if nothing happens before.
    pub fn wake_at(&self, now: u64) -> u64 {
        let renew = (self.term.is_some() && self.renewing.is_none()).then_some(self.renew_at);
        let lease = (self.lease_until > 0).then_some(self.lease_until);
        let lease = renew.into_iter().chain(lease).min().unwrap_or(u64::MAX);
        let work = match self.phase {
            _ if self.outstanding.is_some() => u64::MAX,
            Phase::Waiting { at } => at,
            Phase::Stopped => return u64::MAX,
            Phase::Running if !self.is_stopping => self.next_work(),
            Phase::Running | Phase::Recovering | Phase::Opening | Phase::Counting(_) => now + IDLE_MS,
        };
        lease.min(work).max(now + 1)
    }

    /// The earliest time at which [`Partition::choose_running`] could find something new to do.
    fn next_work(&self) -> u64 {
        let takes_more = !self.is_held_up && self.core.has_room();
        let due = self.next_due_ms.map(|due| due.saturating_add_signed(-self.redis_ahead_ms));
        let due = due.filter(|_| takes_more);
        let ending = (self.core.has_ending() && takes_more).then_some(self.ending_at);
        let foreign = self.pending_after.is_none().then_some(self.foreign_at);
        let settle = self.core.outbox_since().map(|since| since + SETTLE_DELAY_MS);
        let reads = self.more_entries || self.pending_after.is_some();
        let may_read = takes_more && !self.is_under_pressure && self.staged.is_none();
        let read = (reads && may_read).then_some(self.read_not_before);
        let fixed = [self.trim_at, self.inbox_at, self.expire_at];
        let maybe = [due, ending, foreign, settle, read, self.core.next_alarm()];
        fixed.into_iter().chain(maybe.into_iter().flatten()).min().unwrap_or(u64::MAX)
    }

    // ---- choosing the next call -----------------------------------------------------------------------------------

    fn choose(&mut self, now: u64) -> Option<(Call, Outstanding)> {
        let term = self.term.clone();
        match (self.phase, term) {
            (Phase::Stopped, _) => None,
            (Phase::Waiting { .. }, _) if self.is_stopping => {
                self.phase = Phase::Stopped;
                None
            }
            (Phase::Waiting { at }, _) => (now >= at).then(|| self.acquire(now)).flatten(),
            (_, None) => None,
            (Phase::Recovering, Some(term)) => Some((Call::Recover { term, max: MAX_BATCH }, Outstanding::Plain)),
            (Phase::Opening, Some(term)) => {
                let registry = self.directory.view().id?;
                Some((Call::Open { term, start: self.settings.start, registry }, Outstanding::Plain))
            }
            (Phase::Counting(cursor), Some(term)) => Some((Call::Counts { term, cursor }, Outstanding::Plain)),
            (Phase::Running, Some(term)) => {
                self.core.tick(now);
                self.choose_running(now, term)
            }
        }
    }

    /// A worker without a registry owns nothing: events wait in the stream.
    fn acquire(&mut self, now: u64) -> Option<(Call, Outstanding)> {
        if self.directory.view().id.is_none() {
            self.phase = Phase::Waiting { at: now + ACQUIRE_EVERY_MS };
            return None;
        }
        let term = Term::new(self.rng.random(), &self.settings.owner);
        let previous = self.own_values.iter().cloned().collect();
        if self.own_values.len() == MAX_OWN_VALUES {
            self.own_values.pop_front();
        }
        self.own_values.push_back(term.clone());
        Some((Call::Acquire { term, previous, ttl_ms: self.settings.lease_ms }, Outstanding::Acquire { sent: now }))
    }

    /// Each kind of call has its turn, so that none starves another.
    fn choose_running(&mut self, now: u64, term: Term) -> Option<(Call, Outstanding)> {
        // Nothing may be settled between a question about chains and the admission that relies on its answer.
        if self.staged.as_ref().is_some_and(|staged| !staged.unconfirmed)
            && let Some(asking) = self.ask(now, &term)
        {
            return Some(asking);
        }
        if self.is_stopping {
            return self.choose_stopping(now, term);
        }
        const TURNS: usize = 7;
        for step in 0..TURNS {
            let turn = (self.turn + step) % TURNS;
            let chosen = match turn {
                0 => self.settle(now, &term, SETTLE_DELAY_MS),
                1 => self.claim(now, &term),
                2 => self.read(now, &term),
                3 => self.backlog(now, &term),
                4 => self.heads(now, &term),
                5 => self.inbox(now, &term),
                _ => self.housekeeping(now, &term),
            };
            if chosen.is_some() {
                self.turn = turn + 1;
                return chosen;
            }
            if self.phase != Phase::Running {
                return None;
            }
        }
        None
    }

    fn choose_stopping(&mut self, now: u64, term: Term) -> Option<(Call, Outstanding)> {
        if self.core.outbox_len() > 0 {
            return self.settle(now, &term, 0);
        }
        (self.core.tally().in_flight == 0).then_some((Call::Release { term }, Outstanding::Release))
    }

    fn settle(&mut self, now: u64, term: &Term, delay_ms: u64) -> Option<(Call, Outstanding)> {
        let since = self.core.outbox_since()?;
        if self.core.outbox_len() < SETTLE_AT && now < since + delay_ms {
            return None;
        }
        let settlement = self.core.settlement(now, MAX_BATCH, self.last_read);
        Some((Call::Settle { term: term.clone(), settlement }, Outstanding::Settle))
    }

    fn claim(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        let is_due = self.next_due_ms.is_some_and(|due| due <= self.redis_now(now));
        if !is_due || self.is_held_up || !self.core.has_room() {
            return None;
        }
        Some((Call::Claim { term: term.clone(), max: CLAIM_MAX }, Outstanding::Plain))
    }

    fn read(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        let wanted = self.pending_after.is_some() || self.more_entries;
        let allowed = self.staged.is_none() && !self.is_held_up && !self.is_under_pressure;
        if !wanted || !allowed || now < self.read_not_before || !self.core.has_room() {
            return None;
        }
        let from = self.pending_after.map_or(ReadFrom::New, ReadFrom::Pending);
        // An account with many endpoints makes many deliveries of an entry.
        let max = (READ_MAX / self.fan_out).max(1);
        Some((Call::Read { term: term.clone(), from, max }, Outstanding::Read { from, max }))
    }

    fn backlog(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if self.is_held_up || !self.core.has_room() {
            return None;
        }
        let (endpoint, after, max, why) = match self.core.next_backlog(now) {
            Some((endpoint, after, max)) => (endpoint, after, max.min(CLAIM_MAX), BacklogFor::Sending),
            None => {
                let (endpoint, after) = self.expiring.pop_front()?;
                (endpoint, after, CLAIM_MAX, BacklogFor::Expiring)
            }
        };
        let call = Call::Backlog { term: term.clone(), endpoint: endpoint.clone(), after, max };
        Some((call, Outstanding::Backlog(endpoint, why)))
    }

    fn heads(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if now < self.ending_at || self.is_held_up || !self.core.has_room() {
            return None;
        }
        let endpoint = self.core.next_ending()?;
        let call = Call::TakeHeads { term: term.clone(), endpoint: endpoint.clone(), max: CLAIM_MAX };
        Some((call, Outstanding::Heads(endpoint)))
    }

    fn inbox(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if !self.more_requests && now < self.inbox_at {
            return None;
        }
        self.inbox_at = now + INBOX_EVERY_MS;
        self.more_requests = false;
        let call = Call::Inbox { term: term.clone(), after: self.inbox_after, max: CLAIM_MAX };
        Some((call, Outstanding::Job))
    }

    fn housekeeping(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if self.core.has_refused() && now >= *self.refused_since.get_or_insert(now) + REFUSED_MS {
            self.end_term(now, "Redis refused a change; it is tried again".to_owned());
            return None;
        }
        let term = term.clone();
        if now >= self.foreign_at && self.pending_after.is_none() {
            self.foreign_at = now + FOREIGN_EVERY_MS;
            return Some((Call::ClaimForeign { term, max: MAX_BATCH }, Outstanding::Job));
        }
        if now >= self.trim_at {
            self.trim_at = now + TRIM_EVERY_MS;
            // While the wake-up can not be relied on, the stream is looked at as often as it is trimmed.
            self.more_entries |= self.is_wakeup_false;
            let (retain_ms, ignores) = (self.settings.retain_ms, self.settings.trim_ignores.clone());
            return Some((Call::Trim { term, retain_ms, ignores }, Outstanding::Job));
        }
        if now >= self.expire_at {
            self.expire_at = now + EXPIRE_EVERY_MS;
            if now >= self.began_at + REMEMBER_MS {
                self.core.forget_verdicts();
            }
            let waiting = self.core.waiting_backlogs(now).into_iter();
            self.expiring = waiting.map(|endpoint| (endpoint, EntryId::ZERO)).collect();
            let (max_age_ms, max_count) = (self.settings.dead_max_age_ms, self.settings.dead_max_count);
            return Some((Call::ExpireDead { term, max_age_ms, max_count, max: MAX_BATCH }, Outstanding::Job));
        }
        None
    }

    /// The questions of the staged entries, a batch at a time. They are put together only now, when no settlement is
    /// on its way, and until they are answered nothing else is called.
    fn ask(&mut self, now: u64, term: &Term) -> Option<(Call, Outstanding)> {
        if self.staged.as_ref().is_some_and(|staged| staged.asking.is_none()) {
            let questions = self.questions();
            if questions.is_empty() {
                self.admit_staged(now, Vec::new(), Vec::new());
                return None;
            }
            self.staged.as_mut()?.asking = Some((questions, Vec::new()));
        }
        let staged = self.staged.as_ref()?;
        let (deliveries, known) = staged.asking.as_ref()?;
        let asked = &deliveries[known.len()..deliveries.len().min(known.len() + MAX_BATCH / 2)];
        let intents: HashMap<EntryId, &IntentId> =
            staged.arrivals.iter().map(|arrival| (arrival.entry, &arrival.event.intent)).collect();
        let chains = asked.iter().map(|id| (id.endpoint.clone(), intents[&id.entry].clone())).collect();
        Some((Call::Ask { term: term.clone(), chains, records: asked.to_vec() }, Outstanding::Ask))
    }

    // ---- understanding answers ------------------------------------------------------------------------------------

    fn understand(&mut self, now: u64, outstanding: Outstanding, answer: Answer) {
        match (outstanding, answer) {
            (_, Answer::Lost) => self.end_term(now, "the lease is not ours any more".to_owned()),
            (_, Answer::NoGroup) => self.end_term(now, "the consumer group is gone".to_owned()),
            (Outstanding::Acquire { sent }, Answer::Acquired { now_ms }) => self.begin_term(now, sent, now_ms),
            (Outstanding::Acquire { .. }, Answer::Taken { left_ms, .. }) => {
                self.is_taken = true;
                self.core.forget_carried();
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
            (_, Answer::Opened { made_after, last_delivered, last_generated, registry }) => {
                self.opened(made_after, last_delivered, last_generated, registry)
            }
            (_, Answer::Counts { counts, cursor }) => {
                for (endpoint, unfinished) in counts {
                    self.stand(now, &endpoint);
                    self.core.count(now, &endpoint, unfinished);
                }
                self.phase = if cursor == 0 { Phase::Running } else { Phase::Counting(cursor) };
            }
            (Outstanding::Read { from, max }, Answer::Entries { entries, now_ms }) => {
                self.hear_time(now, now_ms);
                self.stage(now, from, max, entries);
            }
            (Outstanding::Ask, Answer::Asked { chains, records }) => self.asked(now, &chains, &records),
            (Outstanding::Settle, Answer::Settled { now_ms, next_due_ms, counts, group_missing }) => {
                self.hear_time(now, now_ms);
                self.next_due_ms = next_due_ms;
                self.core.settled(now, counts);
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
                self.core.ends_later(endpoint);
            }
            (Outstanding::Backlog(endpoint, why), Answer::Backlog { kept, now_ms }) => {
                self.hear_time(now, now_ms);
                self.backlog_seen(now, &endpoint, why, kept);
            }
            (_, Answer::Requests { requests }) => self.serve(now, requests),
            (_, Answer::ClaimedForeign { count, lowest }) => {
                if let Some(lowest) = lowest {
                    self.happenings.push(Happening::ForeignClaimed { count });
                    self.pending_after = Some(lowest.before());
                    self.foreign_at = now;
                }
            }
            (_, Answer::Trimmed { count }) if count > 0 => {
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

    fn begin_term(&mut self, now: u64, sent: u64, now_ms: u64) {
        self.hear_time(now, now_ms);
        self.is_taken = false;
        self.term = self.own_values.back().cloned();
        self.lease_until = self.lease_end(sent);
        self.renew_at = sent + self.settings.lease_ms / 4;
        self.renewing = None;
        (self.began_at, self.refused_since) = (now, None);
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

    fn opened(
        &mut self,
        made_after: Option<EntryId>,
        last_delivered: EntryId,
        last_generated: EntryId,
        registry: String,
    ) {
        if let Some(after) = made_after {
            self.happenings.push(Happening::GroupMade { after });
            // What the lost group knew is lost: anything up to here may have been read, and have records.
            self.suspect_until = last_generated;
        }
        let found = self.directory.view().id.unwrap_or_default();
        if found != registry {
            self.happenings.push(Happening::OtherRegistry { bound: registry.clone(), found });
        }
        self.bound = Some(registry);
        self.look_at_registry();
        self.last_read = last_delivered;
        self.phase = Phase::Counting(0);
    }

    fn stage(&mut self, now: u64, from: ReadFrom, max: usize, entries: Vec<Entry>) {
        let last = entries.last().map(|entry| entry.id);
        let mut bytes = 0;
        let mut suspect = matches!(from, ReadFrom::Pending(_));
        let (count, mut arrivals) = (entries.len(), Vec::with_capacity(entries.len()));
        for entry in entries {
            if self.core.knows_entry(entry.id) {
                continue;
            }
            suspect |= entry.id <= self.suspect_until;
            bytes += match &entry.content {
                Content::Event { body, .. } => body.len(),
                Content::NoEvent { preview } => preview.len(),
                Content::Trimmed => 0,
            };
            arrivals.extend(self.understand_entry(now, entry));
        }
        match from {
            ReadFrom::Pending(_) => {
                self.pending_after = last;
                // What a stranger read is behind us too, once it was taken over.
                self.last_read = last.map_or(self.last_read, |last| last.max(self.last_read));
            }
            ReadFrom::New => {
                self.is_wakeup_false = count == 0 && self.was_woken;
                if self.is_wakeup_false {
                    self.foreign_at = now;
                }
                self.was_woken = false;
                self.last_read = last.unwrap_or(self.last_read);
                self.more_entries = count == max || bytes >= MAX_READ_BYTES / 2;
            }
        }
        if count > 0 {
            self.happenings.push(Happening::Read { entries: count });
        }
        let deliveries: usize = arrivals.iter().map(|arrival| arrival.endpoints.len()).sum();
        if !arrivals.is_empty() {
            self.fan_out = deliveries.div_ceil(arrivals.len()).clamp(1, READ_MAX);
        }
        let unconfirmed = arrivals.iter().any(|arrival| arrival.endpoints.is_empty());
        self.staged = Some(Staged { arrivals, suspect, unconfirmed, asking: None });
        if unconfirmed {
            self.confirm_registry();
        }
        self.admit_if_known(now);
    }

    /// What is an event arrives; what is none is dealt with at once.
    fn understand_entry(&mut self, now: u64, entry: Entry) -> Option<Arrival> {
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
            Content::Event { body, traceparent, .. } => match Event::parse(body.clone()) {
                Ok(event) => {
                    let endpoints = endpoints_for(&self.directory, &event);
                    let traceparent = traceparent.and_then(|text| clean_traceparent(&text));
                    return Some(Arrival { entry: entry.id, event, traceparent, endpoints });
                }
                Err(error) => (body, error.to_string(), false),
            },
        };
        self.happenings.push(Happening::Quarantined { entry: entry.id, error: error.clone() });
        self.core.also(now, Item::Quarantine { entry: entry.id, body, cut, error });
        self.core.open_entry(now, entry.id, 0);
        None
    }

    /// Admits what is staged as soon as everything is known that its admission depends on.
    fn admit_if_known(&mut self, now: u64) {
        let is_confirmed = self.staged.as_ref().is_some_and(|staged| !staged.unconfirmed);
        if is_confirmed && self.questions().is_empty() {
            self.admit_staged(now, Vec::new(), Vec::new());
        }
    }

    /// The staged deliveries that Redis must be asked about, in the order of their arrival. Good only until the next
    /// settlement is confirmed.
    fn questions(&self) -> Vec<DeliveryId> {
        let Some(staged) = &self.staged else { return Vec::new() };
        let must_ask = |endpoint: &&Arc<Endpoint>| staged.suspect || self.core.must_ask(&endpoint.id);
        let asked = |arrival: &Arrival| {
            let entry = arrival.entry;
            let asked = arrival.endpoints.iter().filter(must_ask);
            asked.map(|e| DeliveryId { entry, endpoint: e.id.clone() }).collect::<Vec<_>>()
        };
        staged.arrivals.iter().flat_map(asked).collect()
    }

    fn asked(&mut self, now: u64, chains: &[(u64, u64)], records: &[bool]) {
        let Some((deliveries, known)) = self.staged.as_mut().and_then(|staged| staged.asking.as_mut()) else { return };
        let answers = chains.iter().zip(records);
        known.extend(answers.map(|((ordered, single), recorded)| Known {
            ordered: *ordered,
            single: *single,
            recorded: *recorded,
        }));
        if known.len() >= deliveries.len() {
            let (deliveries, known) = (std::mem::take(deliveries), std::mem::take(known));
            self.admit_staged(now, deliveries, known);
        }
    }

    fn admit_staged(&mut self, now: u64, deliveries: Vec<DeliveryId>, known: Vec<Known>) {
        let Some(staged) = self.staged.take() else { return };
        let redis_ms = self.redis_now(now);
        // Both lists are in the order of the arrivals.
        let mut known = deliveries.into_iter().zip(known).peekable();
        for arrival in staged.arrivals {
            if arrival.endpoints.is_empty() {
                let account = arrival.event.account.clone();
                self.happenings.push(Happening::NoEndpoint { entry: arrival.entry, account });
            }
            self.core.open_entry(now, arrival.entry, arrival.endpoints.len() as u32);
            for endpoint in arrival.endpoints {
                self.stand(now, &endpoint.id);
                let id = endpoint.id.clone();
                let mut delivery = Delivery::new(arrival.entry, id, &arrival.event, true, redis_ms);
                delivery.traceparent = arrival.traceparent.clone();
                let known = known.next_if(|(asked, _)| *asked == delivery.id).map(|(_, known)| known);
                self.core.admit_fresh(now, redis_ms, delivery, known.unwrap_or_default());
            }
        }
    }

    fn admit(&mut self, now: u64, kept: Vec<Kept>, origin: Origin) {
        let redis_ms = self.redis_now(now);
        for (id, record) in kept {
            if let Some(delivery) = self.readable(id, record) {
                self.stand(now, &delivery.id.endpoint);
                self.core.admit_kept(now, redis_ms, delivery, origin);
            }
        }
    }

    fn backlog_seen(&mut self, now: u64, endpoint: &EndpointId, why: BacklogFor, kept: Vec<Kept>) {
        let last = kept.last().map(|(id, _)| id.entry);
        let redis_ms = self.redis_now(now);
        if why == BacklogFor::Sending {
            self.core.looked_at_backlog(now, endpoint, last);
            return self.admit(now, kept, Origin::Backlog);
        }
        let mut found = false;
        for (id, record) in kept {
            if let Some(delivery) = self.readable(id, record)
                && self.core.is_expired(&delivery, redis_ms)
            {
                found = true;
                self.core.admit_kept(now, redis_ms, delivery, Origin::Backlog);
            }
        }
        // The oldest stand first: where a page has none that expired, the rest is younger.
        if let (true, Some(last)) = (found, last) {
            self.expiring.push_front((endpoint.clone(), last));
        }
    }

    fn readable(&mut self, id: DeliveryId, record: Option<Bytes>) -> Option<Delivery> {
        let why = match record.map(|record| Delivery::from_record(&record)) {
            Some(Ok(delivery)) if delivery.id == id => return Some(delivery),
            Some(Ok(_)) => "its record is of another delivery".to_owned(),
            Some(Err(error)) => error.to_string(),
            None => "it has no record".to_owned(),
        };
        self.happenings.push(Happening::Core(Note::Unreadable { id, why }));
        None
    }

    // ---- requests -------------------------------------------------------------------------------------------------

    fn serve(&mut self, now: u64, requests: Vec<Request>) {
        self.more_requests = !requests.is_empty();
        for request in requests {
            self.inbox_after = self.inbox_after.max(request.id);
            let answer = match self.grant(now, &request) {
                Ok(()) => "ok".to_owned(),
                Err(why) => format!("error: {why}"),
            };
            self.happenings.push(Happening::Requested { request: request.id, answer: answer.clone() });
            self.core.also(now, Item::Reply { request: request.id, answer });
        }
    }

    fn grant(&mut self, now: u64, request: &Request) -> Result<(), String> {
        let redis_ms = self.redis_now(now);
        let mark: Mark = serde_json::from_slice(&request.mark)
            .map_err(|error| format!("the request does not say who asks and why: {error}"))?;
        let missing = || "there is no such dead letter".to_owned();
        match &request.what {
            RequestKind::Redeliver { letter, .. } => {
                let letter = DeadLetter::from_record(letter.as_ref().ok_or_else(missing)?);
                let mut delivery = letter.map_err(|error| error.to_string())?.delivery;
                if let Standing::Ended { reason, .. } = self.directory.standing(&delivery.id.endpoint) {
                    let endpoint = &delivery.id.endpoint;
                    return Err(format!("{endpoint} is {}: nothing can be delivered to it", reason.name()));
                }
                delivery.redeliver(mark, redis_ms);
                self.stand(now, &delivery.id.endpoint);
                self.core.revive(now, &delivery);
            }
            RequestKind::Discard { id, letter } => {
                letter.as_ref().ok_or_else(missing)?;
                self.core.also(now, Item::Discard { id: id.clone() });
            }
            RequestKind::Release { endpoint, intent, head } => {
                let none = || format!("{intent} has nothing unfinished at {endpoint}");
                let (_, record) = head.as_ref().ok_or_else(none)?;
                let delivery = Delivery::from_record(record.as_ref().ok_or_else(none)?);
                self.stand(now, endpoint);
                let detail = format!("released by {}: {}", mark.by, mark.why);
                self.core.release(now, redis_ms, delivery.map_err(|error| error.to_string())?, detail)?;
            }
            RequestKind::Requeue { exists: false, .. } | RequestKind::DiscardQuarantined { exists: false, .. } => {
                return Err("there is no such quarantined entry".to_owned());
            }
            RequestKind::Requeue { cut: true, .. } => {
                return Err("only a part of this entry was kept: publish it anew".to_owned());
            }
            RequestKind::Requeue { entry, .. } => {
                self.core.also(now, Item::Requeue { entry: *entry });
                self.more_entries = true;
            }
            RequestKind::DiscardQuarantined { entry, .. } => {
                self.core.also(now, Item::DiscardQuarantined { entry: *entry });
            }
            RequestKind::AcceptRegistry { registry } => {
                self.bound = Some(registry.clone());
                self.look_at_registry();
                self.core.also(now, Item::Bind { registry: registry.clone() });
            }
            RequestKind::Unknown { why } => return Err(why.clone()),
        }
        Ok(())
    }

    // ---- the term -------------------------------------------------------------------------------------------------

    /// The lease ends a tenth early for us: clocks drift, and an attempt takes a moment to start.
    fn lease_end(&self, sent: u64) -> u64 {
        sent + self.settings.lease_ms - self.settings.lease_ms / 10
    }

    fn check_lease(&mut self, now: u64) {
        if self.lease_until > 0 && now >= self.lease_until {
            self.lease_until = 0;
            if self.term.is_some() {
                self.end_term(now, "the lease could not be renewed in time".to_owned());
            }
            self.core.forget_flights();
            self.errands.push(Errand::AbortFlights);
        }
    }

    /// Whatever was not confirmed is not relied on. The next term takes a new value, so a script of this one that is
    /// still on its way changes nothing.
    fn end_term(&mut self, now: u64, why: String) {
        let pause = if self.failures == 0 { 0 } else { self.rng.random_range(50..500) };
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Waiting { at: now + pause };
        self.staged = None;
        // An answer to a call of this term that still comes is not expected any more.
        self.outstanding = None;
        if self.term.take().is_some() {
            self.core.end_term();
            self.happenings.push(Happening::TermEnded { why });
        }
    }

    // ---- small things ---------------------------------------------------------------------------------------------

    /// An operator, the registry or its absence stops everything but settling.
    fn look_at_registry(&mut self) {
        let view = self.directory.view();
        let is_ours = view.is_certain && view.id == self.bound;
        self.is_held_up = view.is_paused || !is_ours;
        if is_ours && std::mem::take(&mut self.must_reconfirm) && self.staged.is_some() {
            self.confirm_registry();
        }
    }

    fn confirm_registry(&mut self) {
        self.confirmations += 1;
        self.errands.push(Errand::ConfirmRegistry);
    }

    fn stand(&mut self, now: u64, endpoint: &EndpointId) {
        if !self.core.has_lane(endpoint) {
            let standing = self.directory.standing(endpoint);
            self.core.stand(now, endpoint, standing);
        }
    }

    fn hear_time(&mut self, now: u64, redis_ms: u64) {
        self.redis_ahead_ms = redis_ms as i64 - now as i64;
    }
}

fn endpoints_for(directory: &impl Directory, event: &Event) -> Vec<Arc<Endpoint>> {
    let mut endpoints = directory.endpoints_of(&event.account);
    endpoints.retain(|endpoint| endpoint.wants(&event.event_type));
    endpoints
}

/// A `traceparent` that can stand in a header, or none.
fn clean_traceparent(text: &[u8]) -> Option<String> {
    let good = text.len() <= 64 && text.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-');
    good.then(|| String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
#[path = "partition_tests.rs"]
mod tests;

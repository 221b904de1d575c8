//! The owner of one partition, or a worker that waits to become it: which call on Redis comes next, what its answer means,
//! and when an attempt may start. Pure like the core that it drives: the shell (`worker`) and the simulator make the calls.
//!
//! One call at a time, so an answer is always about the state that the next call will find, and a batch of operations is
//! either confirmed or the term ends. The lease is renewed alongside, on a connection of its own.

mod admission;
mod answers;
mod choosing;
mod deferral;
mod lease;
mod requests;
mod staged;
mod term;

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};

pub use self::admission::SLICE;
use self::{
    admission::{Slice, WIDE},
    deferral::Deferral,
    lease::Lease,
    staged::{Source, Stage, Staged, StagedEntry},
    term::{Indexing, TermState},
};
use super::{
    HashMap, HashSet,
    breaker::BreakerSettings,
    budgets::{Budget, Budgets, SETTLE_AFTER_MS},
    core::{Core, CoreErrand, CoreHappening, NextAttempt, Noted, Origin, Tally, Telling, Token},
    lane::Standing,
    redis_clock::RedisClock,
};
use crate::{
    facts::{
        delivery::{DeadLetter, Delivery},
        endpoint::{Endpoint, Mark},
        envelope::Envelope,
        event::{Event, EventError, EventType, Novelty},
        id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
        letter::LetterFacts,
        outcome::Attempted,
        own_event::is_operators,
        partition::{Accounts, Mode, UnknownMode},
        quota::Quotas,
        retry::RetryPolicy,
        stamped::Stamped,
        traceparent::Traceparent,
    },
    store::protocol::{
        Answer, Call, Content, Entry, Failure, Item, Kept, Known, LookFrom, MAX_BATCH, MAX_READ_BYTES, Question,
        ReadFrom, Request, RequestKind, Start, Term,
    },
    telemetry::owner::Stopped,
};

/// Entries of one read: hundreds share the cost of a call, and a call takes well under a millisecond of Redis' time.
pub const READ_MAX: usize = 250;

/// Where the last two finds were no further apart than this, another one is expected within this time. Anything less busy tells when
/// there is something: of a thousand quiet streams each look for more would cost as much as an event.
const LIVELY_MS: u64 = 10;

/// Entries of one read while a full read would lengthen backlogs that are being drained: fewer than one look at a backlog
/// brings.
pub const READ_BESIDE_BACKLOG: usize = 32;

/// Entries of one read while Redis has little memory left: what they need beyond the stream is little.
pub const READ_UNDER_PRESSURE: usize = 32;

/// How many entries of a full read may join such backlogs: fewer than one look at them brings back. Otherwise the backlogs
/// grow for as long as there is something to read, and everything goes through them.
const INTO_BACKLOGS: usize = READ_BESIDE_BACKLOG / 2;

/// Records of one claim: bounds what a long outage puts into memory at once.
const CLAIM_MAX: usize = 100;

/// A settle does not wait for company if so many operations wait already.
const SETTLE_AT: usize = 250;

/// How often a worker without the lease asks for it, at most: a clean stop is noticed within this time.
pub const ACQUIRE_EVERY_MS: u64 = 200;

/// The same where it waits for few streams, each of which is about to change hands or has just lost its owner.
pub const ACQUIRE_SOON_MS: u64 = 50;

const FOREIGN_EVERY_MS: u64 = 10_000;
const TRIM_EVERY_MS: u64 = 1_000;
/// While nothing ends and nothing goes: other groups, whose entries may go then, tell nobody how far they are.
const TRIM_SELDOM_MS: u64 = 10_000;
/// If a trim removed this many entries, another one is worth while at once; one call removes 10 000 at most.
const TRIM_ROUND: u64 = 5_000;

const INBOX_EVERY_MS: u64 = 1_000;
/// While the wake-up waits for requests, which looks for itself every few seconds.
const INBOX_SELDOM_MS: u64 = 10_000;
/// How soon a step of Redis' clock is noticed when nothing else tells the time.
const PULL_EVERY_MS: u64 = 5_000;
const EXPIRE_EVERY_MS: u64 = 30_000;

/// How often it is noted which endpoints cannot be read: what waits for them may be counted as older by so much after a
/// take-over. And how long a note is of use: no policy has a longer `max_age`.
const NOTE_EVERY_MS: u64 = 5_000;
const NOTE_HOLDS_MS: u64 = 366 * 86_400_000;

/// How soon a term looks for dead letters without an index, and looks again where it found some; and how often once there
/// were none: an older Herald may own the partition in between.
const INDEX_AFTER_MS: u64 = 5_000;
const INDEX_EVERY_MS: u64 = 30_000;
/// Letters that are indexed with one call, and the pause before the next one: five thousand a second at most, for a tenth
/// of Redis' time. A million, where an older Herald left so many, take some minutes.
const INDEX_MAX: usize = 50;
const INDEX_PAUSE_MS: u64 = 10;

/// How soon an endpoint that has ended is looked at again when nothing was found there, or the look failed.
const ENDING_EVERY_MS: u64 = 1_000;

/// While Redis' clock is not believed, nothing is too old: no age is greater.
const NO_AGE_MS: u64 = 1_000_000_000_000_000;

/// Heads of an ended endpoint that are taken at once, and the pause before the next ones: a thousand a second. Each costs
/// Redis some 80 microseconds with its letter, so that is a tenth of its time, and nobody waits for as long as a
/// millisecond. While nobody else gets anything it goes eight times as fast.
const ENDING_MAX: usize = 8;
const ENDING_PAUSE_MS: u64 = 8;
const ENDING_MAX_ALONE: usize = 16;
const ENDING_PAUSE_ALONE_MS: u64 = 2;

/// Once nothing has been admitted for this long, nobody will notice.
const ALONE_AFTER_MS: u64 = 500;

/// How long what is in flight may take until the stream is split.
const SPLIT_GRACE_MS: u64 = 2_000;

/// How long a worker that can do nothing now waits before it looks again.
const IDLE_MS: u64 = 50;

/// How long after an item was refused the term ends: then the item is tried again, and may have been repaired by then.
const REFUSED_MS: u64 = 30_000;

/// This long after everything pending has been read again, what a term remembers of the one before is of no more use.
const REMEMBER_MS: u64 = 60_000;

/// Where the registry's knowledge comes from.
pub trait Directory {
    fn standing(&self, endpoint: &EndpointId) -> Standing;
    fn endpoints_of(&self, account: &AccountId) -> Vec<Arc<Endpoint>>;
    /// Endpoints of the account that exist, and of which nothing more is known.
    fn unknown_of(&self, account: &AccountId) -> Vec<EndpointId>;
    fn view(&self) -> RegistryView;
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryView {
    /// None until there is a registry.
    pub id: Option<String>,
    /// All changes of the registry up to this one are in the snapshot. Where a failover has taken some back it is another one, and may
    /// have a smaller version or the same.
    pub last: Stamped,
    /// The snapshot is what the registry holds: the registry has not vanished, and at least the account of every endpoint
    /// in it could be read.
    pub is_certain: bool,
    /// An operator stopped all sending.
    pub is_paused: bool,
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub owner: String,
    pub policy: RetryPolicy,
    pub breaker: BreakerSettings,
    pub budgets: Budgets,
    pub lease_ms: u64,
    /// How often it asks for the lease while somebody else has it.
    pub acquire_every_ms: u64,
    pub start: Start,
    pub retain_ms: u64,
    pub trim_ignores: Vec<String>,
    pub dead_max_age_ms: u64,
    pub dead_max_count: u64,
    /// What the quarantine may hold in Redis; beyond that its oldest entries go, and are counted.
    pub quarantine_bytes: u64,
    /// If set, anything in an event that is new to this Herald is a reason to quarantine it.
    pub strict_events: bool,
    /// The accounts whose events belong here; others' are delivered too, and told of.
    pub accounts: Accounts,
    /// Into how many parts the stream is split if nothing was done with it yet; into none if that is less than two.
    pub parts: u32,
    /// Into how many it can be split once it has been worked on; none if its name has a hash tag, which all of them would share.
    pub most_parts: u32,
}

/// A stream whose entries are passed on, or are perhaps to be: then its mode is still `Worked`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    pub term: Term,
    /// As far as it is known: whoever routes changes it.
    pub mode: Mode,
    /// Into how many parts it is to be split, whatever is unfinished.
    pub wanted: Option<u32>,
    /// It is not to be split after all, as long as nothing was handed over.
    pub is_cancelled: bool,
}

impl Routes {
    /// What whoever routes is to do; how far that is, they know themselves.
    pub fn work(&self) -> (&Term, Option<u32>, bool) {
        (&self.term, self.wanted, self.is_cancelled)
    }
}

/// A split that somebody has asked for.
#[derive(Debug, Clone, Copy)]
struct Wish {
    parts: u32,
    /// What is in flight may take until then.
    until: u64,
}

/// What happened, for logs and counters.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    Core(CoreHappening),
    TermBegan {
        term: Term,
    },
    TermEnded {
        term: Term,
        why: String,
    },
    /// Its time is over without a renewal, or another has it. Not where it was given back.
    LeaseLost,
    GroupMade {
        after: EntryId,
    },
    Read {
        entries: usize,
        /// What was put off when it was read first.
        is_again: bool,
    },
    /// An event was read; only where each step is asked for.
    Arrived {
        entry: EntryId,
        event: EventId,
        intent: IntentId,
        account: AccountId,
        traceparent: Option<Traceparent>,
        bytes: usize,
        /// By Redis' clock.
        at_ms: u64,
    },
    Quarantined {
        entry: EntryId,
        error: String,
    },
    /// An event was taken that contains something new to this Herald.
    Novelty {
        entry: EntryId,
        event: EventId,
        account: AccountId,
        novelty: Novelty,
    },
    TrimmedWhilePending {
        entry: EntryId,
    },
    NoEndpoint {
        entry: EntryId,
        event: EventId,
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
    /// Dead letters that an older Herald wrote, or removed without their indexes.
    DeadIndexed {
        count: u64,
    },
    /// Redis' clock was set by this much, or another server's clock counts now.
    ClockStepped {
        by_ms: i64,
    },
    OtherRegistry {
        bound: String,
        found: String,
    },
    /// A script of a job failed, or its answer could not be read; the job comes again.
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
    Core(CoreErrand),
    /// Read the registry's version and bring the snapshot up to it, then call [`Partition::registry_confirmed`].
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
    /// What the owner before had claimed becomes due again.
    Recovering,
    /// The group is there, and the partition is bound to a registry.
    Opening,
    /// Learns what each endpoint has in Redis, a page at a time, from this cursor on.
    Counting(u64),
    Running,
    /// Somebody else passes the entries on, while this one keeps the lease.
    Routing,
    Stopped,
}

/// The call that is on its way, as far as its answer alone does not say what it is about.
#[derive(Debug)]
enum Outstanding {
    Acquire {
        sent: u64,
    },
    Release,
    /// Recovering, opening, counting, or a claim: without its answer the term cannot go on.
    Plain,
    /// Housekeeping, or the inbox.
    Job,
    PullIn(Pull),
    Read(Page),
    Ask,
    Settle,
    Backlog(EndpointId, BacklogFor),
    Heads(EndpointId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BacklogFor {
    Sending,
    /// Takes only what has outlived its policy.
    Expiring,
}

/// What a read asked for.
#[derive(Debug, Clone, Copy)]
struct Page {
    from: ReadFrom,
    max: usize,
    /// It reads again what was deferred: such a walk through the stream is a pass, see `deferral`.
    of_pass: bool,
    /// Something new had been seen.
    was_woken: bool,
}

/// The endpoints found for accounts that have many.
type Wide = HashMap<(AccountId, EventType), Arc<Vec<Arc<Endpoint>>>>;

/// A walk through what is due from a time on.
#[derive(Debug, Clone, Copy)]
struct Pull {
    from_ms: u64,
    by_ms: u64,
    /// The step of the clock that caused it, reported once.
    step_ms: i64,
}

pub struct Partition<D> {
    settings: Settings,
    directory: D,
    core: Core,
    rng: StdRng,
    phase: Phase,
    lease: Lease,
    term: TermState,
    /// What becomes of the entries, as far as this term knows.
    mode: Option<Mode>,
    wish: Option<Wish>,
    /// Somebody wants it back to be worked.
    is_cancelled: bool,
    outstanding: Option<Outstanding>,
    clock: RedisClock,
    /// When the call that is on its way was sent.
    asked_at: u64,
    /// What is due too late, and has to be made due earlier.
    pulls: VecDeque<Pull>,
    /// It has not heard Redis' time before this term: only Redis can tell whether its clock was set back meanwhile.
    is_newcomer: bool,
    /// The registry that the partition's deliveries are owed by, as Redis says.
    bound: Option<String>,
    is_under_pressure: bool,
    /// How far the stream may be trimmed; None: as far as everybody is past it.
    trim_up_to: Option<EntryId>,
    /// Errands to confirm the registry that have not been answered yet. Only the answer to the last one is new enough.
    confirmations: u32,
    /// The answer came while the registry could not be trusted: it must be asked for again.
    must_reconfirm: bool,
    /// Terms that ended since a settlement was last confirmed.
    failures: u32,
    is_stopping: bool,
    /// Another worker can do what this one cannot: it is to have the lease.
    gives_way: bool,
    /// While stopping: how much of the entries that were begun was left at the last look.
    begun_before: Option<usize>,
    /// Until when it gives these records; none while it does not.
    records_until: Option<u64>,
    /// The last answer said that another worker holds the lease.
    is_taken: bool,
    /// Nothing is read, claimed or sent: see [`Partition::look_at_registry`].
    is_held_up: bool,
    telling: Telling,
    happenings: Vec<Happening>,
    errands: Vec<Errand>,
}

impl<D: Directory> Partition<D> {
    pub fn new(settings: Settings, directory: D, seed: [u8; 32]) -> Self {
        let core = Core::new(settings.policy.clone(), settings.breaker, settings.budgets);
        let lease = Lease::new(settings.lease_ms);
        let term = TermState::new(0, 0, settings.budgets);
        Self {
            settings,
            directory,
            core,
            rng: StdRng::from_seed(seed),
            phase: Phase::Waiting { at: 0 },
            lease,
            term,
            mode: None,
            wish: None,
            is_cancelled: false,
            outstanding: None,
            clock: RedisClock::default(),
            asked_at: 0,
            pulls: VecDeque::new(),
            is_newcomer: false,
            bound: None,
            is_under_pressure: false,
            trim_up_to: None,
            confirmations: 0,
            must_reconfirm: false,
            failures: 0,
            is_stopping: false,
            gives_way: false,
            begun_before: None,
            records_until: None,
            is_taken: false,
            is_held_up: true,
            telling: Telling::default(),
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
        self.look_at_registry(now);
        let (call, outstanding) = self.choose(now)?;
        self.asked_at = now;
        self.outstanding = Some(outstanding);
        Some(call)
    }

    pub fn answered(&mut self, now: u64, answer: Result<Answer, Failure>) {
        let Some(outstanding) = self.outstanding.take() else { return };
        match answer {
            Ok(answer) => self.understand(now, outstanding, answer),
            Err(Failure::Full) => self.end_term(now, "Redis is full".to_owned()),
            Err(Failure::Unknown(why)) => {
                if let Outstanding::PullIn(pull) = outstanding {
                    self.pulls_again(pull);
                }
                self.end_term(now, why);
            }
            // These check everything before they change anything: what is wrong concerns one endpoint or one job, and is no
            // reason to end the term for everybody.
            Err(Failure::Script(why))
                if matches!(outstanding, Outstanding::Heads(_) | Outstanding::Job | Outstanding::PullIn(_)) =>
            {
                self.job_failed(now, outstanding, why);
            }
            // It has taken something that we do not know of: only a new term finds that, but the term need not end at once
            // for everybody.
            Err(Failure::Malformed(why))
                if matches!(outstanding, Outstanding::Heads(_) | Outstanding::Job | Outstanding::PullIn(_)) =>
            {
                self.term.refused_since.get_or_insert(now);
                self.job_failed(now, outstanding, why);
            }
            Err(Failure::Script(why)) if matches!(outstanding, Outstanding::Backlog(..)) => {
                self.job_failed(now, outstanding, why);
            }
            Err(Failure::Script(why) | Failure::Malformed(why)) => self.end_term(now, why),
        }
    }

    fn job_failed(&mut self, now: u64, outstanding: Outstanding, why: String) {
        match outstanding {
            Outstanding::PullIn(pull) => {
                self.term.pulls_at = now + PULL_EVERY_MS;
                self.pulls_again(pull);
            }
            Outstanding::Heads(endpoint) => self.core.ends_later(&endpoint),
            Outstanding::Backlog(endpoint, BacklogFor::Sending) => self.core.look_failed(now, &endpoint),
            Outstanding::Backlog(_, BacklogFor::Expiring) => {}
            Outstanding::Acquire { .. }
            | Outstanding::Release
            | Outstanding::Plain
            | Outstanding::Job
            | Outstanding::Read { .. }
            | Outstanding::Ask
            | Outstanding::Settle => {}
        }
        self.term.ending_at = now + ENDING_EVERY_MS;
        self.happenings.push(Happening::JobFailed { why });
    }

    /// It is not known whether anything was made due earlier. If it was, trying again makes it somewhat too early; if it
    /// was not, leaving it would make it as late as the clock was set back. A look for times that nobody can have meant
    /// comes again by itself.
    fn pulls_again(&mut self, pull: Pull) {
        if pull.by_ms != NO_AGE_MS {
            self.pulls.push_front(pull);
        }
    }

    /// The next renewal, to be made alongside the other calls.
    pub fn next_renewal(&mut self, now: u64) -> Option<Call> {
        self.check_lease(now);
        let term = self.lease.renewal(now)?;
        Some(Call::Renew { term, ttl_ms: self.settings.lease_ms })
    }

    pub fn renewed(&mut self, now: u64, term: &Term, answer: &Result<Answer, Failure>) {
        if !self.lease.renewed(now, term, answer) {
            self.lose(now);
        }
    }

    // ---- attempts -------------------------------------------------------------------------------------------------

    /// The next attempt to start.
    pub fn next_attempt(&mut self, now: u64) -> Option<NextAttempt> {
        self.check_lease(now);
        if self.phase != Phase::Running || self.ends_work() || self.is_held_up {
            return None;
        }
        let redis_ms = self.redis_now(now);
        self.core.next_attempt(now, redis_ms)
    }

    pub fn attempted(&mut self, now: u64, token: Token, attempted: Attempted) {
        let chance = self.rng.random::<f64>();
        let redis_ms = self.redis_now(now);
        self.core.attempted(now, redis_ms, token, attempted, chance);
    }

    /// These were started and never begun; of one endpoint the earlier ones come first.
    pub fn not_begun(&mut self, now: u64, tokens: impl DoubleEndedIterator<Item = Token>) {
        // Each goes before all that wait.
        tokens.rev().for_each(|token| self.core.not_begun(now, token));
    }

    // ---- the surroundings -----------------------------------------------------------------------------------------

    /// An endpoint has changed; if none is named, any may have.
    pub fn registry_changed(&mut self, now: u64, endpoint: Option<&EndpointId>) {
        self.look_at_registry(now);
        let mut changed: Vec<EndpointId> = match endpoint {
            Some(endpoint) => vec![endpoint.clone()],
            None => self.core.lanes().map(|(endpoint, _)| endpoint.clone()).collect(),
        };
        // Sorted, not in the map's order: the same inputs must lead to the same calls.
        changed.sort_unstable();
        changed.retain(|endpoint| self.core.has_lane(endpoint));
        for endpoint in changed {
            let standing = self.standing(&endpoint);
            self.core.stand(now, self.redis_now(now), &endpoint, standing);
        }
    }

    /// The snapshot is at least as new as the registry was when the errand was given.
    pub fn registry_confirmed(&mut self, now: u64) {
        self.confirmations = self.confirmations.saturating_sub(1);
        let is_of_term = matches!(self.phase, Phase::Counting(_) | Phase::Running);
        if self.confirmations > 0 || !is_of_term {
            // The registry may have been read before the entries that wait now.
            return;
        }
        let view = self.directory.view();
        if !view.is_certain || view.id != self.bound {
            self.must_reconfirm = true;
            return;
        }
        if !std::mem::replace(&mut self.term.is_confirmed, true) {
            self.registry_changed(now, None);
        }
        let Some(staged) = self.term.staged.as_mut().filter(|staged| staged.is_unconfirmed()) else { return };
        staged.stage = Stage::Ready;
        let mut arrivals = std::mem::take(&mut staged.arrivals);
        self.find_endpoints(&mut arrivals);
        self.term.staged.iter_mut().for_each(|staged| staged.arrivals = std::mem::take(&mut arrivals));
        self.admit_if_known(now);
    }

    /// Finds the endpoints that they are owed to, as the snapshot has them now. What was begun stays as it began.
    fn find_endpoints(&self, arrivals: &mut VecDeque<StagedEntry>) {
        let mut wide = Wide::default();
        for arrival in arrivals.iter_mut().filter(|arrival| !arrival.is_open) {
            (arrival.endpoints, arrival.unknown) = self.owed_by(&arrival.event, arrival.only.as_ref(), &mut wide);
        }
    }

    /// The endpoints that an event is owed to, and those of which nothing more is known. One that was sent again for one endpoint is
    /// owed to no other, and to that one whether it wants such events or not: somebody wanted it.
    fn owed_by(
        &self,
        event: &Event,
        only: Option<&EndpointId>,
        wide: &mut Wide,
    ) -> (Arc<Vec<Arc<Endpoint>>>, Vec<EndpointId>) {
        let mut unknown = self.directory.unknown_of(&event.account);
        let Some(only) = only else { return (self.endpoints_for(event, wide), unknown) };
        unknown.retain(|endpoint| endpoint == only);
        let mut endpoints = self.directory.endpoints_of(&event.account);
        endpoints.retain(|endpoint| endpoint.id == *only);
        (Arc::new(endpoints), unknown)
    }

    /// Events of one page for an account with many endpoints share one list of them: hundreds of such lists would take
    /// longer than anybody should wait.
    fn endpoints_for(&self, event: &Event, wide: &mut Wide) -> Arc<Vec<Arc<Endpoint>>> {
        if !wide.is_empty()
            && let Some(found) = wide.get(&(event.account.clone(), event.event_type.clone()))
        {
            return Arc::clone(found);
        }
        let mut endpoints = self.directory.endpoints_of(&event.account);
        let is_wide = endpoints.len() > WIDE;
        endpoints.retain(|endpoint| endpoint.wants(&event.event_type));
        let found = Arc::new(endpoints);
        if is_wide {
            wide.insert((event.account.clone(), event.event_type.clone()), Arc::clone(&found));
        }
        found
    }

    /// Redis has little memory left: little is read at a time, and what needs a record waits in the stream.
    pub fn set_pressure(&mut self, is_under_pressure: bool) {
        self.is_under_pressure = is_under_pressure;
    }

    /// The stream is kept from there on, for a history that has not read it.
    pub fn set_trim_up_to(&mut self, now: u64, entry: Option<EntryId>) {
        if self.trim_up_to != entry {
            self.trim_up_to = entry;
            self.term.trim_soon(now);
        }
    }

    /// What it may have in memory and in flight.
    pub fn set_budgets(&mut self, budgets: Budgets) {
        if self.settings.budgets != budgets {
            self.settings.budgets = budgets;
            self.core.set_budgets(budgets);
            self.term.deferral.set_budget(budgets.deferred, budgets.in_vain);
        }
    }

    /// Everything that was read lately has to wait.
    pub fn reads_in_vain(&self, now: u64) -> bool {
        self.term.deferral.reads_in_vain(now)
    }

    /// What the records of an endpoint, and of an account, may take in Redis.
    pub fn set_quotas(&mut self, quotas: Quotas) {
        self.core.set_quotas(quotas);
    }

    /// What our own machine's clock says, ms since 1970.
    pub fn compare_clocks(&mut self, now: u64, wall_ms: u64) {
        self.clock.compare(now, wall_ms);
        self.core.set_may_expire(self.clock.is_trusted(now));
    }

    /// The wake-up failed: the stream and the inbox are looked at without it.
    pub fn look_again(&mut self) {
        (self.term.more_entries, self.term.more_requests) = (true, true);
    }

    /// The stream or the inbox has changed: perhaps something was added, perhaps something left.
    pub fn stirred(&mut self, entries: bool, requests: bool) {
        self.term.more_entries |= entries;
        self.term.more_requests |= requests;
    }

    /// There is something new in the stream or the inbox, for a reader that had read up to `after` there.
    pub fn woken(&mut self, after: EntryId, entries: bool, requests: bool) {
        self.term.more_entries |= entries;
        self.term.was_woken |= entries && after >= self.term.last_read;
        self.term.more_requests |= requests;
    }

    /// What a wake-up should wait for when nothing is left to read: entries and requests after these. This holds even while
    /// something is being admitted: what comes meanwhile gets its turn between the slices.
    pub fn wants_wakeup(&self) -> Option<(EntryId, EntryId)> {
        let idle = self.phase == Phase::Running && self.term.pending_after.is_none();
        let waits = idle
            && !self.term.more_entries
            && !self.term.more_requests
            && !self.ends_work()
            && !self.term.is_wakeup_false;
        waits.then_some((self.term.last_read, self.term.inbox_after))
    }

    /// Stop reading and sending; what is in flight may end, then the lease is given back.
    pub fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// While this holds, the lease is for another worker: it is given back as by a stop, and not asked for.
    pub fn give_way(&mut self, now: u64, gives_way: bool) {
        // What was not begun was let go of already: only a new term reads it again.
        if self.gives_way && !gives_way && !self.is_stopping && self.records_until.is_some() {
            self.end_term(now, "it need not give way any more".to_owned());
            (self.records_until, self.begun_before) = (None, None);
        }
        self.gives_way = gives_way;
    }

    fn leaves(&self) -> bool {
        self.is_stopping || self.gives_way
    }

    /// Nothing more is read or sent in this term.
    fn ends_work(&self) -> bool {
        self.leaves() || self.wish.is_some()
    }

    /// The lease has been given back.
    fn left(&mut self, now: u64) {
        if self.is_stopping {
            self.lease.end();
            self.phase = Phase::Stopped;
            return;
        }
        self.lease.given_back();
        self.end_term(now, "another worker has what this one lacks: keys, or the right time".to_owned());
        (self.records_until, self.begun_before) = (None, None);
    }

    /// The time for what is in flight is over: it gets its records and is aborted.
    pub fn stop_waiting(&mut self, now: u64) {
        self.is_stopping = true;
        self.wait_no_longer(now);
    }

    /// The same while it gives way.
    pub fn wait_no_longer(&mut self, now: u64) {
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
        self.lease.term().is_some()
    }

    /// The worker that asks for the partition, as the last renewal told.
    pub fn asked_by(&self) -> Option<&str> {
        self.lease.asked_by()
    }

    /// A stream whose entries are passed on, which is somebody else's work. This one keeps the lease meanwhile.
    pub fn routes(&self) -> Option<Routes> {
        let (Phase::Routing, Some(term), Some(mode)) = (self.phase, self.lease.term(), &self.mode) else { return None };
        let (wanted, is_cancelled) = (self.wish.map(|wish| wish.parts), self.is_cancelled);
        Some(Routes { term: term.clone(), mode: mode.clone(), wanted, is_cancelled })
    }

    /// Whoever splits the stream under this term has changed its mode, or found that it is another one than was known.
    pub fn mode_is(&mut self, term: &Term, mode: Mode) {
        if self.phase == Phase::Routing && self.lease.term() == Some(term) {
            self.mode = Some(mode);
        }
    }

    /// There is nothing to route: this term works the stream if that is not to be split after all, and ends if its mode is another one
    /// than when it began.
    pub fn works(&mut self, now: u64, term: &Term) {
        if self.phase != Phase::Routing || self.lease.term() != Some(term) {
            return;
        }
        match self.mode {
            Some(Mode::Worked) => {
                self.phase = Phase::Recovering;
                (self.wish, self.is_cancelled) = (None, false);
            }
            _ => self.end_term(now, "the mode of the stream is not what it was".to_owned()),
        }
    }

    /// Reading, claiming and sending.
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running && !self.is_held_up
    }

    /// Why nothing is read now.
    pub fn stopped(&self) -> Stopped {
        let is_paused = self.directory.view().is_paused;
        Stopped {
            redis_full: self.is_under_pressure && self.core.fresh() >= READ_UNDER_PRESSURE,
            registry: self.is_held_up && !is_paused,
            bytes: !self.core.has_room(),
            backlogs: self.term.deferral.is_full(),
            paused: is_paused,
        }
    }

    /// How many dead letters are kept.
    pub fn most_dead(&self) -> u64 {
        self.settings.dead_max_count
    }

    pub fn tally(&self) -> Tally {
        self.core.tally()
    }

    /// Entries that wait in the stream for their account to take more.
    pub fn deferred(&self) -> usize {
        self.term.deferral.entries()
    }

    /// How many of these are in memory.
    pub fn deferred_in_memory(&self) -> usize {
        self.term.deferral.entries_here()
    }

    /// What is told of single deliveries; with their steps or settlements, each event that is read.
    pub fn tell(&mut self, telling: Telling) {
        self.telling = telling;
        self.core.tell(telling);
    }

    /// The id of the registry that what it reads is owed by, once it is known.
    pub fn registry(&self) -> Option<&str> {
        self.bound.as_deref()
    }

    pub fn core(&self) -> &Core {
        &self.core
    }

    pub fn directory(&self) -> &D {
        &self.directory
    }

    /// Somebody has made deliveries due: the next claim finds them, and says when the next one is.
    pub fn something_is_due(&mut self) {
        self.term.next_due_ms = Some(0);
    }

    /// The term that holds the lease.
    pub fn term(&self) -> Option<&Term> {
        self.lease.term()
    }

    /// What was seen of endpoints since the last time; see [`Core::take_noted`].
    pub fn take_noted(&mut self, now: u64, max: usize) -> Vec<Noted> {
        let redis_ms = self.redis_now(now);
        self.core.take_noted(now, redis_ms, max)
    }

    pub fn take_happenings(&mut self) -> Vec<Happening> {
        self.happenings.extend(self.core.take_happenings().into_iter().map(Happening::Core));
        std::mem::take(&mut self.happenings)
    }

    pub fn take_errands(&mut self) -> Vec<Errand> {
        self.errands.extend(self.core.take_errands().into_iter().map(Errand::Core));
        std::mem::take(&mut self.errands)
    }

    /// Redis' time as far as the last answer tells.
    pub fn redis_now(&self, now: u64) -> u64 {
        self.clock.at(now)
    }

    /// When to look again at the latest, if nothing happens before.
    pub fn wake_at(&self, now: u64) -> u64 {
        let lease = self.lease.wake_at().unwrap_or(u64::MAX);
        let work = match self.phase {
            _ if self.outstanding.is_some() => u64::MAX,
            Phase::Waiting { at } => at,
            Phase::Stopped => return u64::MAX,
            Phase::Running if !self.ends_work() => self.next_work(),
            Phase::Routing if !self.leaves() => {
                self.settle_at().into_iter().chain([self.inbox_at()]).min().unwrap_or(u64::MAX)
            }
            Phase::Running | Phase::Recovering | Phase::Opening | Phase::Counting(_) | Phase::Routing => now + IDLE_MS,
        };
        lease.min(work).max(now + 1)
    }

    fn settle_at(&self) -> Option<u64> {
        self.core.outbox_since().map(|since| since + self.settle_after_ms())
    }

    /// What has ended keeps its place in memory until it is settled: once something waits for room, that is what counts.
    fn settle_after_ms(&self) -> u64 {
        let waits_for_room = self.term.staged.is_some() || self.term.deferral.entries() > 0 || !self.core.has_room();
        if waits_for_room { SETTLE_AFTER_MS } else { self.settings.budgets.settle_after_ms }
    }

    /// The earliest time at which [`Partition::choose_running`] could find something new to do.
    fn next_work(&self) -> u64 {
        let takes_more = !self.is_held_up && self.core.has_room_for_records();
        let due = self.term.next_due_ms.map(|due| self.clock.when(due));
        let due = due.filter(|_| takes_more);
        let ending =
            (self.core.has_ending() && !self.is_held_up && self.core.may_settle_more()).then_some(self.term.ending_at);
        let foreign = self.term.pending_after.is_none().then_some(self.term.foreign_at);
        let settle = self.settle_at();
        let reads_again = self.term.pending_after.is_some() || self.term.deferral.wants_page();
        let read = if reads_again { Some(0) } else { self.new_at() };
        let read = read.filter(|_| self.may_read());
        let may_admit = !self.is_held_up && self.core.has_room();
        let is_staged =
            self.term.staged.as_ref().map_or(self.term.deferral.wants_here(), |staged| !staged.is_unconfirmed());
        let slice = (may_admit && is_staged).then_some(0);
        let term = &self.term;
        let fixed = [term.trim_at, self.inbox_at(), term.expire_at, term.index_at, term.pull_at, term.note_at];
        let look = self.term.deferral.next_look();
        let pull = (!self.pulls.is_empty()).then_some(self.term.pulls_at);
        let maybe = [pull, due, ending, foreign, settle, read, slice, look, self.core.next_alarm()];
        fixed.into_iter().chain(maybe.into_iter().flatten()).min().unwrap_or(u64::MAX)
    }

    // ---- the term -------------------------------------------------------------------------------------------------

    fn check_lease(&mut self, now: u64) {
        if self.lease.lapses(now) {
            if self.is_owner() {
                self.end_term(now, "the lease could not be renewed in time".to_owned());
            }
            self.note_loss();
            self.core.forget_flights();
            self.errands.push(Errand::AbortFlights);
        }
    }

    fn lose(&mut self, now: u64) {
        self.end_term(now, "the lease is not ours any more".to_owned());
        self.note_loss();
    }

    fn note_loss(&mut self) {
        if self.lease.is_missed() {
            self.happenings.push(Happening::LeaseLost);
        }
    }

    /// What was not confirmed is not relied on. The next term takes a new value, so a script of this term that is still on
    /// its way changes nothing.
    fn end_term(&mut self, now: u64, why: String) {
        let pause = if self.failures == 0 { 0 } else { self.rng.random_range(50..500) };
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Waiting { at: now + pause };
        self.term = TermState::new(now, 0, self.settings.budgets);
        // An answer to a call of this term that still arrives is not expected any more.
        if let Some(Outstanding::PullIn(pull)) = self.outstanding.take() {
            self.pulls_again(pull);
        }
        if let Some(term) = self.lease.end() {
            self.core.end_term();
            self.happenings.push(Happening::TermEnded { term, why });
        }
    }

    fn may_read(&self) -> bool {
        // What is in memory may still need records.
        let is_little = !self.is_under_pressure || self.core.fresh() < READ_UNDER_PRESSURE;
        self.term.staged.is_none() && !self.is_held_up && self.core.has_room() && is_little
    }

    /// When something is to be read for the first time.
    fn new_at(&self) -> Option<u64> {
        (self.term.more_entries && !self.term.deferral.is_full())
            .then(|| self.term.deferral.pauses_until().unwrap_or(0))
    }

    /// A worker that keeps up with a busy stream does not wait to be told that there is more: another call has taken time
    /// since.
    fn wants_new(&self, now: u64) -> bool {
        let is_lively = self.term.keeps_up && !self.term.was_read && now < self.term.lively_until;
        (self.term.more_entries || is_lively)
            && !self.term.deferral.is_full()
            && self.term.deferral.pauses_until().is_none_or(|until| now >= until)
    }

    fn wants_to_read(&self, now: u64) -> bool {
        self.term.pending_after.is_some() || self.wants_new(now)
    }

    // ---- small things ---------------------------------------------------------------------------------------------

    /// A pause by an operator, or a registry that is another, gone or out of date, stops everything but settling.
    fn look_at_registry(&mut self, now: u64) {
        let view = self.directory.view();
        let is_ours = view.is_certain && view.id == self.bound;
        match view.is_paused {
            true => self.core.all_is_paused(self.redis_now(now)),
            false => self.core.all_goes_on(),
        }
        self.is_held_up = view.is_paused || !is_ours || !self.term.is_confirmed;
        let is_waited_for = self.term.staged.is_some() || !self.term.is_confirmed;
        if is_ours && std::mem::take(&mut self.must_reconfirm) && is_waited_for {
            self.confirm_registry();
        }
    }

    fn confirm_registry(&mut self) {
        self.confirmations += 1;
        self.errands.push(Errand::ConfirmRegistry);
    }

    /// The core must know of an endpoint before anything of it is admitted.
    fn stand(&mut self, now: u64, endpoint: &EndpointId) {
        if !self.core.has_lane(endpoint) {
            self.core.stand(now, self.redis_now(now), endpoint, self.standing(endpoint));
        }
    }

    /// A fresh delivery goes to its endpoint as the snapshot has it, even while the news of the change is still on its way
    /// to the lane.
    fn stand_as(&mut self, now: u64, endpoint: &Arc<Endpoint>) {
        if !self.core.stands_as(endpoint) {
            self.core.stand(now, self.redis_now(now), &endpoint.id, self.standing(&endpoint.id));
        }
    }

    /// What it was before it became unreadable no longer counts.
    fn stand_unknown(&mut self, now: u64, endpoint: &EndpointId) {
        if !self.core.stands_unknown(endpoint) {
            self.core.stand(now, self.redis_now(now), endpoint, self.standing(endpoint));
        }
    }

    fn standing(&self, endpoint: &EndpointId) -> Standing {
        if self.is_other_registry() {
            return Standing::Unknown;
        }
        match self.directory.standing(endpoint) {
            Standing::Ended { .. } if !self.term.is_confirmed => Standing::Unknown,
            standing => standing,
        }
    }

    /// That an endpoint is not in somebody else's registry does not mean that it was deleted: until an operator accepts
    /// that registry, nothing is given up because of it.
    fn is_other_registry(&self) -> bool {
        self.bound.is_some() && self.directory.view().id != self.bound
    }

    /// What was due by the old clock is due that much later by one that was set back.
    fn stepped(&mut self, redis_ms: u64, step_ms: i64) {
        self.happenings.push(Happening::ClockStepped { by_ms: step_ms });
        let by_ms = step_ms.min(0).unsigned_abs();
        self.pulls.push_back(Pull { from_ms: redis_ms, by_ms, step_ms });
    }

    fn hear_time(&mut self, now: u64, redis_ms: u64) {
        if let Some(step_ms) = self.clock.hear(self.asked_at, now, redis_ms) {
            self.stepped(redis_ms, step_ms);
        }
        self.core.set_may_expire(self.clock.is_trusted(now));
    }
}

#[cfg(test)]
#[path = "partition_tests.rs"]
mod tests;

#[cfg(test)]
mod isolation_tests;

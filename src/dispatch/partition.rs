//! The owner of one partition, or who waits to be: which call on Redis comes next, what its answer means, and when an
//! attempt may start. Pure like the core that it drives: the shell (`worker`) and the simulator make the calls.
//!
//! One call at a time. So an answer is always about the state that the next call will find, and a batch of operations
//! is either confirmed or the term ends. The lease is renewed beside it, on a connection of its own.

mod admission;
mod answers;
mod choosing;
mod deferral;
mod requests;

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};

pub use self::admission::SLICE;
use self::admission::{Slice, WIDE};
use self::deferral::Deferral;
use super::{
    HashMap, HashSet,
    breaker::BreakerSettings,
    budgets::{Budget, Budgets},
    core::{Core, Note, Origin, Send, Tally, Token, Wish},
    lane::Standing,
    redis_clock::RedisClock,
};
use crate::{
    facts::{
        delivery::{DeadLetter, Delivery},
        endpoint::{Endpoint, Mark},
        event::{Event, EventError, EventType, Novelty},
        id::{AccountId, DeliveryId, EndpointId, EntryId},
        outcome::Attempted,
        quota::Quotas,
        retry::RetryPolicy,
        traceparent::Traceparent,
    },
    store::protocol::{
        Answer, Call, Content, Entry, Failure, Item, Kept, Known, MAX_BATCH, MAX_READ_BYTES, Question, ReadFrom,
        Request, RequestKind, Start, Term,
    },
};

/// Entries of one read: hundreds share the cost of a call, and a call stays well under a millisecond of Redis.
pub const READ_MAX: usize = 250;

/// So long after the last entry another one is expected.
const LIVELY_MS: u64 = 10;

/// Entries of one read while a full one would make the backlogs longer that are being drained: fewer than one look at a
/// backlog brings.
pub const READ_BESIDE_BACKLOG: usize = 32;

/// Entries of one read while Redis has little memory left: what they are in need of beyond the stream is little.
pub const READ_UNDER_PRESSURE: usize = 32;

/// What may join such backlogs with a full read: less than a look at one of them brings back, or they grow for as long as
/// there is something to read, and all of it goes through them.
const INTO_BACKLOGS: usize = READ_BESIDE_BACKLOG / 2;

/// Records of one claim: bounds what a long outage puts into memory at once.
const CLAIM_MAX: usize = 100;

/// A settle waits this long for company, unless [`SETTLE_AT`] operations wait already.
const SETTLE_DELAY_MS: u64 = 4;
const SETTLE_AT: usize = 250;

/// How often a worker without the lease asks for it, at most: a clean stop is noticed within this time.
const ACQUIRE_EVERY_MS: u64 = 200;

const FOREIGN_EVERY_MS: u64 = 10_000;
const TRIM_EVERY_MS: u64 = 1_000;
/// Entries of a trim after which another one is worth while at once; a call takes 10 000 at most.
const TRIM_ROUND: u64 = 5_000;

const INBOX_EVERY_MS: u64 = 1_000;
/// How soon a step of Redis' clock is noticed where nothing else tells the time.
const PULL_EVERY_MS: u64 = 5_000;
const EXPIRE_EVERY_MS: u64 = 30_000;

/// While Redis' clock is not believed nothing is too old: no age is greater.
const NO_AGE_MS: u64 = 1_000_000_000_000_000;
const ENDING_EVERY_MS: u64 = 1_000;

/// Heads of an ended endpoint that are taken at once, and how long the next are left: a thousand a second, each of which
/// costs Redis some 80 microseconds with its letter, so a tenth of its time and less than a millisecond of anybody's. While
/// nobody else gets anything it goes eight times as fast.
const ENDING_MAX: usize = 8;
const ENDING_PAUSE_MS: u64 = 8;
const ENDING_MAX_ALONE: usize = 16;
const ENDING_PAUSE_ALONE_MS: u64 = 2;

/// Who has got nothing for so long will not notice.
const ALONE_AFTER_MS: u64 = 500;

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
    /// Endpoints of the account that are there, and of which no more is known.
    fn unknown_of(&self, account: &AccountId) -> Vec<EndpointId>;
    fn view(&self) -> RegistryView;
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryView {
    /// None until there is a registry.
    pub id: Option<String>,
    /// Whatever changed the registry up to this version is in the snapshot. It only grows.
    pub version: u64,
    /// The snapshot is what the registry holds: it has not vanished, and of every endpoint in it at least the account
    /// could be read.
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
    pub start: Start,
    pub retain_ms: u64,
    pub trim_ignores: Vec<String>,
    pub dead_max_age_ms: u64,
    pub dead_max_count: u64,
    /// What the quarantine may hold in Redis; beyond it the oldest in it go, counted.
    pub quarantine_bytes: u64,
    /// What is new to this Herald in an event is no reason to quarantine it, unless this is set.
    pub strict_events: bool,
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
    /// An event was taken in which something is new to this Herald.
    Novelty {
        entry: EntryId,
        novelty: Novelty,
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
    /// Redis' clock was set by so much, or another server's counts now.
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
    /// Only what has outlived its policy is taken.
    Expiring,
}

/// What a read asked for.
#[derive(Debug, Clone, Copy)]
struct Page {
    from: ReadFrom,
    max: usize,
    of_pass: bool,
    /// Something new had been seen.
    was_woken: bool,
}

#[derive(Debug)]
struct Arrival {
    entry: EntryId,
    event: Event,
    traceparent: Option<Traceparent>,
    place: Option<EntryId>,
    endpoints: Arc<Vec<Arc<Endpoint>>>,
    /// Those that may be owed it, once they can be read: until then it waits in their backlogs.
    unknown: Vec<EndpointId>,
    /// The first of them that is not admitted yet.
    next: usize,
    is_open: bool,
    /// It lets others pass after each slice of it, and then goes on at once.
    is_in_parts: bool,
    /// It was deferred then.
    waits_since: Option<u64>,
    /// It may have been read before: each delivery is looked up.
    suspect: bool,
}

impl Arrival {
    /// Everyone that it is owed to.
    fn owed_to(&self) -> impl Iterator<Item = &EndpointId> + Clone {
        self.endpoints.iter().map(|endpoint| &endpoint.id).chain(&self.unknown)
    }

    /// Deliveries that are not admitted yet.
    fn left(&self) -> usize {
        self.endpoints.len() + self.unknown.len() - self.next
    }
}

/// What was found for accounts with many endpoints.
type Wide = HashMap<(AccountId, EventType), Arc<Vec<Arc<Endpoint>>>>;

/// Where entries come from that are to be admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// Read for the first time, or taken over.
    Stream,
    /// Deferred, and read again.
    Pass,
    /// Deferred in memory; all of this account.
    Memory(AccountId),
}

/// Entries that are not admitted yet.
#[derive(Debug)]
struct Staged {
    arrivals: VecDeque<Arrival>,
    source: Source,
    /// The registry has changed since the snapshot: whom they are owed to is not known yet.
    unconfirmed: bool,
    /// The next slice, which is being asked about.
    asking: Option<Slice>,
    /// Deliveries that were admitted, and entries that wait in memory.
    count: usize,
    kept: usize,
    /// What joined backlogs that are drained, or will have to be read again.
    deferred: usize,
}

impl Staged {
    fn new(arrivals: VecDeque<Arrival>, source: Source, unconfirmed: bool) -> Self {
        Self { arrivals, source, unconfirmed, asking: None, count: 0, kept: 0, deferred: 0 }
    }
}

/// A walk through what is due from a time on.
#[derive(Debug, Clone, Copy)]
struct Pull {
    from_ms: u64,
    by_ms: u64,
    /// The step of the clock behind it, told once.
    step_ms: i64,
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
    clock: RedisClock,
    /// When the call on its way was sent.
    asked_at: u64,
    /// What is due too late, and has to be made due earlier.
    pulls: VecDeque<Pull>,
    /// Not before this: the last one failed.
    pulls_at: u64,
    pull_at: u64,
    /// It has heard no time of Redis before this term: whether the clock was set back meanwhile only Redis can tell.
    is_newcomer: bool,
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
    is_under_pressure: bool,
    /// The last read was of what was deferred.
    was_pass: bool,
    /// What was staged last was a part of an entry, and nothing was read since.
    was_in_parts: bool,
    staged: Option<Staged>,
    deferral: Deferral,
    /// What waits in the stream up to here was pending when the term began, or a stranger's.
    pending_until: EntryId,
    next_due_ms: Option<u64>,
    /// Backlogs to look through for what has outlived its policy, each after an entry.
    expiring: VecDeque<(EndpointId, EntryId)>,
    foreign_at: u64,
    trim_at: u64,
    inbox_at: u64,
    expire_at: u64,
    ending_at: u64,
    /// When something was last taken from the stream.
    admitted_at: u64,
    refused_since: Option<u64>,
    began_at: u64,
    /// So much of what was read last was owed to endpoints that drain their backlogs that these would grow.
    feeds_backlogs: bool,
    /// Errands to confirm the registry that were not answered yet. Only the last one's answer is new enough.
    confirmations: u32,
    /// The answer came at a time when the registry was not to be trusted: it must be asked for again.
    must_reconfirm: bool,
    /// In this term the snapshot was as new as the registry. Before it, an endpoint that is not in it need not have been
    /// deleted: the owner before may have known one that was made since.
    is_confirmed: bool,
    /// Terms that ended since a settlement was last confirmed.
    failures: u32,
    turn: usize,
    /// Calls that somebody waited for, since one was made in turn.
    urgent: usize,
    /// The last call was a read.
    was_read: bool,
    /// The last one that was none was a settle. Otherwise the two would take turns with each other only.
    was_settle: bool,
    /// The last read found all that there was to read for the first time.
    keeps_up: bool,
    /// All of the last page waits for its account, and reading does not: what is behind it perhaps need not wait.
    reads_past: bool,
    /// When a read last found something.
    found_at: u64,
    is_stopping: bool,
    /// What was left of entries that were begun when it last looked, while it stops.
    begun_before: Option<usize>,
    /// Until when it gives them records.
    records_until: Option<u64>,
    /// The last answer said that another worker holds the lease.
    is_taken: bool,
    is_held_up: bool,
    happenings: Vec<Happening>,
    errands: Vec<Errand>,
}

impl<D: Directory> Partition<D> {
    pub fn new(settings: Settings, directory: D, seed: [u8; 32]) -> Self {
        let core = Core::new(settings.policy.clone(), settings.breaker, settings.budgets);
        let deferral = Deferral::new(settings.budgets.deferred);
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
            clock: RedisClock::default(),
            asked_at: 0,
            pulls: VecDeque::new(),
            pulls_at: 0,
            pull_at: 0,
            is_newcomer: false,
            bound: None,
            last_read: EntryId::ZERO,
            pending_after: None,
            suspect_until: EntryId::ZERO,
            more_entries: false,
            more_requests: false,
            is_wakeup_false: false,
            was_woken: false,
            inbox_after: EntryId::ZERO,
            is_under_pressure: false,
            was_pass: false,
            was_in_parts: false,
            staged: None,
            deferral,
            pending_until: EntryId::ZERO,
            next_due_ms: None,
            expiring: VecDeque::new(),
            foreign_at: 0,
            trim_at: 0,
            inbox_at: 0,
            expire_at: 0,
            ending_at: 0,
            admitted_at: 0,
            refused_since: None,
            began_at: 0,
            feeds_backlogs: false,
            confirmations: 0,
            must_reconfirm: false,
            is_confirmed: false,
            failures: 0,
            turn: 0,
            urgent: 0,
            was_settle: false,
            was_read: false,
            keeps_up: false,
            reads_past: false,
            found_at: 0,
            is_stopping: false,
            begun_before: None,
            records_until: None,
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
            // These check everything before they change anything: what is wrong is one endpoint's or one job's, and
            // no reason to end everybody's term.
            Err(Failure::Script(why))
                if matches!(outstanding, Outstanding::Heads(_) | Outstanding::Job | Outstanding::PullIn(_)) =>
            {
                self.job_failed(now, outstanding, why);
            }
            // It has taken what we do not know of: only a new term finds that, and everybody's need not end at once.
            Err(Failure::Malformed(why))
                if matches!(outstanding, Outstanding::Heads(_) | Outstanding::Job | Outstanding::PullIn(_)) =>
            {
                self.refused_since.get_or_insert(now);
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
                self.pulls_at = now + PULL_EVERY_MS;
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
        self.ending_at = now + ENDING_EVERY_MS;
        self.happenings.push(Happening::JobFailed { why });
    }

    /// It is not known whether anything was made due earlier. Where it was, it is tried somewhat too early now; where it was
    /// not, it would be tried as much too late as the clock was set back. A look at what nobody can have meant comes again by
    /// itself.
    fn pulls_again(&mut self, pull: Pull) {
        if pull.by_ms != NO_AGE_MS {
            self.pulls.push_front(pull);
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

    /// These were started and never begun; of one endpoint the earlier ones come first.
    pub fn not_begun(&mut self, now: u64, tokens: impl DoubleEndedIterator<Item = Token>) {
        // Each goes before all that wait.
        tokens.rev().for_each(|token| self.core.not_begun(now, token));
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
            let standing = self.standing(&endpoint);
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
        let view = self.directory.view();
        if !view.is_certain || view.id != self.bound {
            self.must_reconfirm = true;
            return;
        }
        if !std::mem::replace(&mut self.is_confirmed, true) {
            self.registry_changed(now, None);
        }
        let Some(staged) = self.staged.as_mut().filter(|staged| staged.unconfirmed) else { return };
        staged.unconfirmed = false;
        let mut arrivals = std::mem::take(&mut staged.arrivals);
        self.find_endpoints(&mut arrivals);
        self.staged.iter_mut().for_each(|staged| staged.arrivals = std::mem::take(&mut arrivals));
        self.admit_if_known(now);
    }

    /// Whom they are owed to, as the snapshot has it now. What was begun stays as it began.
    fn find_endpoints(&self, arrivals: &mut VecDeque<Arrival>) {
        let mut wide = Wide::default();
        for arrival in arrivals.iter_mut().filter(|arrival| !arrival.is_open) {
            arrival.endpoints = self.endpoints_for(&arrival.event, &mut wide);
            arrival.unknown = self.directory.unknown_of(&arrival.event.account);
        }
    }

    /// Of a page the events for an account with many endpoints have one list of them: hundreds of such lists would take
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
        (self.more_entries, self.more_requests) = (true, true);
    }

    /// The stream or the inbox has changed: perhaps something was added, or something left.
    pub fn stirred(&mut self, entries: bool, requests: bool) {
        self.more_entries |= entries;
        self.more_requests |= requests;
    }

    /// There is something new in the stream or the inbox, for who had read up to `after` there.
    pub fn woken(&mut self, after: EntryId, entries: bool, requests: bool) {
        self.more_entries |= entries;
        self.was_woken |= entries && after >= self.last_read;
        self.more_requests |= requests;
    }

    /// What a wake-up should wait for, when nothing is left to read: entries and requests after these. Also while something
    /// is being admitted: what comes meanwhile has its turn between the slices.
    pub fn wants_wakeup(&self) -> Option<(EntryId, EntryId)> {
        let idle = self.phase == Phase::Running && self.pending_after.is_none();
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

    /// Entries that wait in the stream for their account to take more.
    pub fn deferred(&self) -> usize {
        self.deferral.entries()
    }

    /// Of these, in memory.
    pub fn deferred_in_memory(&self) -> usize {
        self.deferral.entries_here()
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
        self.clock.at(now)
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
        let takes_more = !self.is_held_up && self.core.has_room_for_records();
        let due = self.next_due_ms.map(|due| self.clock.when(due));
        let due = due.filter(|_| takes_more);
        let ending =
            (self.core.has_ending() && !self.is_held_up && self.core.may_settle_more()).then_some(self.ending_at);
        let foreign = self.pending_after.is_none().then_some(self.foreign_at);
        let settle = self.core.outbox_since().map(|since| since + SETTLE_DELAY_MS);
        let reads_again = self.pending_after.is_some() || self.deferral.wants_page();
        let read = if reads_again { Some(0) } else { self.new_at() };
        let read = read.filter(|_| self.may_read());
        let may_admit = !self.is_held_up && self.core.has_room();
        let is_staged = self.staged.as_ref().map_or(self.deferral.wants_here(), |staged| !staged.unconfirmed);
        let slice = (may_admit && is_staged).then_some(0);
        let fixed = [self.trim_at, self.inbox_at, self.expire_at, self.pull_at];
        let look = self.deferral.next_look();
        let pull = (!self.pulls.is_empty()).then_some(self.pulls_at);
        let maybe = [pull, due, ending, foreign, settle, read, slice, look, self.core.next_alarm()];
        fixed.into_iter().chain(maybe.into_iter().flatten()).min().unwrap_or(u64::MAX)
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
        self.deferral = Deferral::new(self.settings.budgets.deferred);
        // An answer to a call of this term that still comes is not expected any more.
        if let Some(Outstanding::PullIn(pull)) = self.outstanding.take() {
            self.pulls_again(pull);
        }
        if self.term.take().is_some() {
            self.core.end_term();
            self.happenings.push(Happening::TermEnded { why });
        }
    }

    fn may_read(&self) -> bool {
        // What is in memory may yet need records.
        let is_little = !self.is_under_pressure || self.core.fresh() < READ_UNDER_PRESSURE;
        self.staged.is_none() && !self.is_held_up && self.core.has_room() && is_little
    }

    /// When something is to be read for the first time.
    fn new_at(&self) -> Option<u64> {
        (self.more_entries && !self.deferral.is_full()).then(|| self.deferral.pauses_until().unwrap_or(0))
    }

    /// Who keeps up where much comes does not wait to be told that there is more: another call took its time since.
    fn wants_new(&self, now: u64) -> bool {
        let is_lively = self.keeps_up && !self.was_read && now < self.found_at + LIVELY_MS;
        (self.more_entries || is_lively)
            && !self.deferral.is_full()
            && self.deferral.pauses_until().is_none_or(|until| now >= until)
    }

    fn wants_to_read(&self, now: u64) -> bool {
        self.pending_after.is_some() || self.wants_new(now)
    }

    // ---- small things ---------------------------------------------------------------------------------------------

    /// An operator, the registry, its absence or its age stops everything but settling.
    fn look_at_registry(&mut self) {
        let view = self.directory.view();
        let is_ours = view.is_certain && view.id == self.bound;
        self.is_held_up = view.is_paused || !is_ours || !self.is_confirmed;
        let is_waited_for = self.staged.is_some() || !self.is_confirmed;
        if is_ours && std::mem::take(&mut self.must_reconfirm) && is_waited_for {
            self.confirm_registry();
        }
    }

    fn confirm_registry(&mut self) {
        self.confirmations += 1;
        self.errands.push(Errand::ConfirmRegistry);
    }

    fn stand(&mut self, now: u64, endpoint: &EndpointId) {
        if !self.core.has_lane(endpoint) {
            self.core.stand(now, endpoint, self.standing(endpoint));
        }
    }

    /// A fresh delivery goes to its endpoint as the snapshot has it, also where the word of the change is still on its
    /// way to the lane.
    fn stand_as(&mut self, now: u64, endpoint: &Arc<Endpoint>) {
        if !self.core.stands_as(endpoint) {
            self.core.stand(now, &endpoint.id, self.standing(&endpoint.id));
        }
    }

    /// What it was before it could not be read any more counts no longer.
    fn stand_unknown(&mut self, now: u64, endpoint: &EndpointId) {
        if !self.core.stands_unknown(endpoint) {
            self.core.stand(now, endpoint, self.standing(endpoint));
        }
    }

    fn standing(&self, endpoint: &EndpointId) -> Standing {
        if self.is_other_registry() {
            return Standing::Unknown;
        }
        match self.directory.standing(endpoint) {
            Standing::Ended { .. } if !self.is_confirmed => Standing::Unknown,
            standing => standing,
        }
    }

    /// That an endpoint is not in somebody else's registry does not mean that it was deleted: until an operator accepts
    /// that registry, nothing is given up for its sake.
    fn is_other_registry(&self) -> bool {
        self.bound.is_some() && self.directory.view().id != self.bound
    }

    /// What was due by the clock as it was is due as much later by one that was set back.
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

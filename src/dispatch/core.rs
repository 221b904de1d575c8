//! The deliveries of one partition that are in memory: chains, lanes, and what is to be settled. Decides what goes
//! out next and what becomes of each outcome. Pure: times, chances and what Redis holds are passed in.
//! Never makes a call and never knows of the lease: that is `partition`.
//!
//! The rule that everything here serves: **a delivery gets its record only when every earlier unfinished one of its
//! chain has one**. Operations leave in the order in which they were made, so an earlier record is always written first.

mod carried;
mod chains;
mod fates;
mod flights;
mod lanes;
mod memory;
mod noted;
mod outbox;
mod settled;
mod settling;
mod steps;
mod terms;
mod waiting;
mod weights;

use std::{
    collections::{BTreeSet, BinaryHeap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    HashMap, HashSet,
    breaker::BreakerSettings,
    budgets::{Budget, Budgets},
    lane::{Ended, Gate, JobId, Lane, Standing, Trust},
    shares::{Holder, LOOK_EVERY_MS, Seat, Shares},
};
use carried::{AttemptId, Carried, CarriedOver, Fingerprint, PastAttempt};
use chains::Before;
use fates::Burial;
use lanes::{LaneAt, Lanes};
use memory::Memory;
pub use noted::Noted;
use outbox::Outbox;
pub use steps::{About, SettledAttempt, Step, Telling};
use waiting::{AllPaused, EndedHeads};
use weights::Weights;

use crate::{
    facts::{
        delivery::{Chain, DeadLetter, Delivery, RECORD_SCHEMA},
        endpoint::{Endpoint, EndpointState, Mark, Ordering},
        event::Event,
        id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
        letter::{LetterFacts, WaitedFor},
        log::{End, EndLine, LogLine},
        outcome::{Attempted, LocalCause, Outcome, SentRequest},
        quota::{Quota, Quotas},
        retry::{DeadReason, Fate, RetryPolicy},
        text::bytes,
        trace::TraceId,
    },
    store::protocol::{Item, Known, Place, Recorded, Settlement, Unfinished},
};

/// A delivery that is still unfinished this long after its read gets a record, so that it does not pin the stream.
pub const RECORD_AFTER_MS: u64 = 1_000;

/// How much later a delivery goes again after a failure of ours, and up to twice that: what we were short of may be there
/// again by then, and deliveries that failed together do not come back together.
const LOCAL_PAUSE_MS: u64 = 100;

/// How long after a failed look a backlog is looked at again: keys that somebody broke cost no more than that.
const LOOK_AGAIN_MS: u64 = 5_000;

/// How soon a lane that needs no seat checks again whether memory has room for what its backlog would bring.
const CROWDED_MS: u64 = 250;

/// How often failures of ours are reported at most: one shortage fails hundreds at a time.
const LOCAL_FAILURES_EVERY_MS: u64 = 1_000;

/// Reading stops at this many entries that are set aside because the store refused what is to be written of them. Each is
/// read again with the next term, and this many can be read within a second. One endpoint whose keys are broken soon
/// reaches it.
pub const MAX_ASIDE: usize = 20_000;

/// After this many refusals within a term an endpoint's keys count as broken: whatever needs a record there is set aside
/// without asking again, because each refusal costs everybody a settle that changes nothing.
const LANE_REFUSALS: u32 = 8;

/// Identifies one attempt that is in flight. Never used twice, and a later attempt has a greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What the core asks of the outside beyond sending and settling.
#[derive(Debug, Clone, PartialEq)]
pub enum CoreErrand {
    /// The receiver answered 410 to this revision.
    Disable { endpoint: EndpointId, revision: u64, why: String },
    /// In this revision it has more in Redis than its own or its account's quota, and takes nothing.
    Pause { endpoint: EndpointId, revision: u64, why: String },
}

/// What is worth reporting. Delivered events are not: they are counted.
#[derive(Debug, Clone, PartialEq)]
pub enum CoreHappening {
    Failed {
        about: About,
        attempt: u32,
        outcome: Outcome,
        retry_in_ms: u64,
    },
    Dead {
        about: About,
        reason: DeadReason,
        attempts: u32,
    },
    /// Only where it is asked for, as the two after it: see [`Core::tell`].
    Stepped {
        about: About,
        step: Step,
    },
    AttemptSettled(Arc<SettledAttempt>),
    EntrySettled {
        entry: EntryId,
    },
    /// It has taken a delivery, after its last attempt had failed.
    Recovered {
        endpoint: EndpointId,
    },
    BreakerOpened {
        endpoint: EndpointId,
    },
    /// It is to be paused: it, or its whole account, has this many bytes in Redis.
    OverQuota {
        endpoint: EndpointId,
        quota: Quota,
        bytes: u64,
    },
    /// This many attempts failed here and not at their receivers; they go again.
    OursFailed {
        cause: LocalCause,
        count: u64,
    },
    /// A record that cannot be read; it stays where it is.
    Unreadable {
        id: DeliveryId,
        why: String,
    },
    /// Another event has a record or a letter under this delivery's id: its own entry is quarantined.
    Displaced {
        id: DeliveryId,
        event: EventId,
    },
    /// The store refused an item; its delivery waits for the next term.
    SetAside {
        item: String,
        why: String,
    },
}

/// The attempt that is to start now.
#[derive(Debug, Clone)]
pub struct NextAttempt {
    pub token: Token,
    pub trust: Trust,
    /// How many of its endpoint may be out at a time. It waits while that many are.
    pub places: u32,
    pub delivery: Arc<Delivery>,
    pub endpoint: Arc<Endpoint>,
    /// Of a sampled one; whoever starts it knows.
    pub trace: Option<TraceId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Straight from the stream, without a record.
    Fresh,
    /// With a record among the claimed.
    Claimed,
    /// With a record that is still in the backlog.
    Backlog,
}

#[derive(Debug)]
struct Job {
    delivery: Arc<Delivery>,
    event: Fingerprint,
    lane: LaneAt,
    chain: Chain,
    origin: Origin,
    flight: Option<Token>,
    /// How its receiver stood when it came into memory, or worse if that changed while it waited: it is counted that way
    /// until it leaves.
    trust: Trust,
    /// The endpoint's revision that the last attempt was made with: a 410 is about that one, not about a newer one.
    revision: u64,
}

/// The part of a chain that is in memory.
#[derive(Debug, Default)]
struct Links {
    head: Option<JobId>,
    /// Fresh ones behind the head, in stream order.
    followers: VecDeque<JobId>,
    /// Records of this chain may be held in Redis: whatever comes next must be held there too.
    tail_in_redis: bool,
    /// Operations on this chain that are not confirmed yet.
    unsettled: u32,
    /// How many of them are dead letters of its heads. Until those are durable a crash would have the dead head sent again,
    /// so nothing behind it may go before then.
    burials: u32,
}

impl Links {
    fn is_idle(&self) -> bool {
        self.head.is_none() && self.followers.is_empty() && self.unsettled == 0
    }

    /// Whether a new delivery of the chain has to wait in memory.
    fn is_busy(&self) -> bool {
        self.head.is_some() || self.burials > 0
    }
}

type ChainId = (LaneAt, Chain);

/// An attempt's result that is not yet confirmed as settled. With it, a delivery that is read again ends as it did before.
#[derive(Debug, Clone)]
struct AttemptResult {
    of: AttemptId,
    attempted: Arc<Attempted>,
    /// When it ended, by our own clock that never steps.
    at: u64,
    revision: u64,
    /// It came from its record, but its entry may be pending all the same.
    is_recorded: bool,
    /// It brings a dead letter.
    is_last: bool,
    /// Where that is asked for, what is told once it is settled.
    told: Option<Arc<SettledAttempt>>,
}

impl AttemptResult {
    fn past(&self) -> PastAttempt {
        PastAttempt { attempted: Arc::clone(&self.attempted), at: self.at, revision: self.revision }
    }
}

/// An operation: what is to become durable with a settle.
#[derive(Debug)]
enum Op {
    Item { item: Item, chain: Option<ChainId> },
    Ack(EntryId),
    Log { line: Bytes, of: LineOf },
}

/// What a line of the log is about.
#[derive(Debug)]
enum LineOf {
    /// The result stays with its line until that is durable, for the next term.
    Attempt(AttemptResult),
    /// What the item before it brought about; None for what was owed to nobody.
    End(Option<DeliveryId>),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub jobs: usize,
    pub bytes: usize,
    pub in_flight: usize,
    /// How many of those are slow.
    pub slow: usize,
    pub delivered: u64,
    pub retried: u64,
    pub dead: u64,
    pub skipped_disabled: u64,
    /// Entries of which each delivery is made or has a record.
    pub dispatched: u64,
    /// Dead letters that an operator sent again, or threw away.
    pub redelivered: u64,
    pub discarded: u64,
}

/// What belongs to one term, and is made new with each: nothing of the term before can be left in it.
#[derive(Debug, Default)]
struct CoreTerm {
    memory: Memory,
    weights: Weights,
    jobs: HashMap<JobId, Job>,
    chains: HashMap<ChainId, Links>,
    /// Chains of one delivery each that are in memory, or whose change is not confirmed, by the intent they belong to.
    singles: HashMap<(LaneAt, IntentId), u32>,
    /// Deliveries whose record is about to change: what Redis still shows of them is out of date.
    changing: HashMap<DeliveryId, u32>,
    /// How many deliveries of an entry are neither finished nor recorded. Stays, at zero, until its acknowledgement is
    /// confirmed.
    entries: HashMap<EntryId, u32>,
    /// Delivered and logged, while their entry waits for others: if the term ends, they must not go again.
    delivered: HashMap<EntryId, Vec<AttemptResult>>,
    flights: HashMap<Token, JobId>,
    /// Open entries of which something was delivered or got a record.
    begun: HashSet<EntryId>,
    /// No pending entry will be read again in this term.
    has_reread_all: bool,
    /// Heads that were resumed with their result; empty between inputs.
    carried_ends: VecDeque<(JobId, Arc<Attempted>, u64)>,
    ready: VecDeque<LaneAt>,
    hungry: VecDeque<LaneAt>,
    /// Of these, those that a small backlog alone keeps from taking what comes.
    clearing: VecDeque<LaneAt>,
    ending: VecDeque<LaneAt>,
    alarms: BinaryHeap<std::cmp::Reverse<(u64, LaneAt)>>,
    ageing: VecDeque<(u64, JobId)>,
    /// When heads go again after a failure of ours.
    again: BTreeSet<(u64, JobId)>,
    outbox: Outbox,
    /// Entries of which the store refused an item: they stay pending until the next term reads them again.
    aside: HashSet<EntryId>,
    /// Chains with a refused item: nothing of them goes on before the next term.
    blocked: HashSet<ChainId>,
    /// Refusals by lane.
    refusals: HashMap<LaneAt, u32>,
    ended_heads: EndedHeads,
}

pub struct Core {
    policy: RetryPolicy,
    breaker: BreakerSettings,
    budgets: Budgets,
    quotas: Quotas,
    term: CoreTerm,
    lanes: Lanes,
    /// The lanes of deleted endpoints.
    leaving: BTreeSet<LaneAt>,
    leave_at: u64,
    /// The seats of the slow flights, including those of an earlier term.
    seats: HashMap<Token, Seat>,
    shares: Shares,
    /// When each flight becomes a slow one, if it has not ended.
    young: VecDeque<(u64, Token)>,
    /// When each flight to a new receiver frees its place for another, if it has not ended.
    unanswered: VecDeque<(u64, Token)>,
    waiters_at: u64,
    carried: CarriedOver,
    ours: Vec<(LocalCause, u64)>,
    ours_noted_at: Option<u64>,
    /// Endpoints of which something was seen that nobody has asked for yet; each once.
    noted: VecDeque<EndpointId>,
    errands: Vec<CoreErrand>,
    happenings: Vec<CoreHappening>,
    telling: Telling,
    /// Redis' clock can be believed: what is old by it is old.
    may_expire: bool,
    is_all_paused: bool,
    all_paused: Option<AllPaused>,
    next_id: u64,
    tally: Tally,
}

impl Core {
    pub fn new(policy: RetryPolicy, breaker: BreakerSettings, budgets: Budgets) -> Self {
        Self {
            policy,
            breaker,
            budgets,
            quotas: Quotas::default(),
            term: CoreTerm::default(),
            lanes: Lanes::default(),
            leaving: BTreeSet::new(),
            leave_at: 0,
            seats: HashMap::default(),
            shares: Shares::new(&budgets),
            young: VecDeque::new(),
            unanswered: VecDeque::new(),
            waiters_at: 0,
            carried: CarriedOver::default(),
            ours: Vec::new(),
            ours_noted_at: None,
            noted: VecDeque::new(),
            errands: Vec::new(),
            happenings: Vec::new(),
            telling: Telling::default(),
            may_expire: true,
            is_all_paused: false,
            all_paused: None,
            next_id: 0,
            tally: Tally::default(),
        }
    }

    // ---- what comes in --------------------------------------------------------------------------------------------

    /// What the registry says of an endpoint, for the first time or again.
    pub fn stand(&mut self, now: u64, redis_ms: u64, endpoint: &EndpointId, standing: Standing) {
        let policy = match &standing {
            // The registry checked the overrides; one that still fails is ignored rather than trusted.
            Standing::Serving(e) | Standing::Paused(e) => {
                self.policy.with(&e.retry).unwrap_or_else(|_| self.policy.clone())
            }
            Standing::Ended { .. } | Standing::Unknown => self.policy.clone(),
        };
        let at = match self.lanes.at(endpoint) {
            Some(at) => {
                let lane = &mut self.lanes[at];
                if lane.is_unreadable() {
                    lane.unreadable_ms = lane.unreadable_ms.max(redis_ms);
                }
                lane.stands(standing);
                lane.policy = policy;
                at
            }
            None => self.lanes.insert(endpoint.clone(), Lane::new(standing, policy, now)),
        };
        let lane = &mut self.lanes[at];
        if lane.ended() == Some(DeadReason::Deleted) {
            self.leaving.insert(at);
        }
        if let Some(endpoint) = lane.endpoint() {
            let host = authority(&endpoint.url);
            let account = endpoint.account.clone();
            let changes_hands = lane.holder.as_ref().is_some_and(|before| before.account != account);
            lane.holder = Some(Arc::new(Holder { lane: at, account, host }));
            if changes_hands {
                // What is not settled is counted off from whoever holds the lane then.
                self.count_unsettled_anew();
            }
        }
        self.weigh(at);
        self.gate_changed(now, at);
    }

    /// An entry was read; `deliveries` of it follow through [`Core::admit_fresh`] before anything else happens.
    pub fn open_entry(&mut self, now: u64, entry: EntryId, deliveries: u32) {
        self.term.entries.insert(entry, deliveries);
        if deliveries == 0 {
            self.push(now, Op::Ack(entry));
        }
    }

    /// In memory, or not yet confirmed as acknowledged: reading it again means nothing.
    pub fn knows_entry(&self, entry: EntryId) -> bool {
        self.term.entries.contains_key(&entry)
    }

    /// It is owed to nobody; what it is must still be found later.
    pub fn owed_to_nobody(&mut self, now: u64, entry: EntryId, event: &Event, why: &str) {
        self.log_end(now, &EndLine::no_endpoint(entry, event, why));
    }

    pub fn admit_fresh(&mut self, now: u64, redis_ms: u64, mut delivery: Delivery, known: Known) {
        match known.recorded {
            Recorded::Nothing => {}
            Recorded::This => return self.close_one(now, delivery.id.entry),
            Recorded::Another => return self.displace(now, delivery),
        }
        let at = self.lane_of(&delivery.id.endpoint);
        let lane = &self.lanes[at];
        if lane.ended().is_some() && !lane.was_owed(delivery.id.entry) && !delivery.is_asked_for {
            self.tally.skipped_disabled += 1;
            let reason = lane.ended().map_or("", DeadReason::name);
            let at_ms = delivery.id.entry.ms;
            let why = format!("its endpoint was {reason} before the event was accepted");
            self.log_end(now, &EndLine::of(End::Skipped, &delivery, at_ms, why));
            self.note_skipped(at, &delivery.account);
            return self.close_one(now, delivery.id.entry);
        }
        delivery.ordered = self.joins_intent(&delivery, at, known);
        let chain_id = (at, delivery.chain());
        if self.term.blocked.contains(&chain_id) {
            self.term.aside.insert(delivery.id.entry);
            return;
        }
        let links = self.term.chains.get(&chain_id);
        let is_busy = links.is_some_and(Links::is_busy);
        let waits_in_redis = links.map_or(known.ordered && delivery.ordered, |links| links.tail_in_redis);
        let job = self.insert(delivery, at, chain_id.1.clone(), Origin::Fresh);
        self.term.ageing.push_back((now + RECORD_AFTER_MS, job));
        if waits_in_redis {
            self.keep(now, job, Place::Held);
        } else if !is_busy {
            self.lead(now, job, chain_id, Before::InStream);
        } else if self.lanes[at].should_park(now, self.share()) || self.is_crowded_out(at, Origin::Fresh) {
            self.spill(now, &chain_id);
            self.keep(now, job, Place::Held);
        } else {
            self.term.chains.entry(chain_id).or_default().followers.push_back(job);
        }
        self.conclude_carried(now, redis_ms);
    }

    /// A delivery with a record: claimed, or looked up in the backlog.
    pub fn admit_kept(&mut self, now: u64, redis_ms: u64, delivery: Delivery, origin: Origin) {
        let at = self.lane_of(&delivery.id.endpoint);
        let chain_id = (at, delivery.chain());
        let is_here = self.term.chains.get(&chain_id).is_some_and(|links| links.head.is_some());
        if is_here || self.term.changing.contains_key(&delivery.id) || self.term.blocked.contains(&chain_id) {
            // It is in memory, or its fate is on its way: a second look at the backlog found it again.
            return;
        }
        let lane = &self.lanes[at];
        if delivery.is_unsure && lane.endpoint().is_some_and(|endpoint| !endpoint.wants(&delivery.event_type)) {
            self.term.chains.entry(chain_id.clone()).or_default().tail_in_redis = true;
            let item = Item::Finish { id: delivery.id, chain: chain_id.1.clone() };
            return self.push_for(now, chain_id, item);
        }
        let age = self.age(lane, &delivery, redis_ms);
        let ended = lane.ended().or_else(|| lane.policy.is_expired(age).then_some(DeadReason::Expired));
        let most = if lane.trust == Trust::Proven { usize::MAX } else { memory::UNPROVEN_QUEUE };
        let is_full = lane.should_park(now, most) || self.is_crowded_out(at, origin);
        let parks = origin == Origin::Claimed && is_full;
        let job = self.insert(delivery, at, chain_id.1.clone(), origin);
        let links = self.term.chains.entry(chain_id).or_default();
        links.head = Some(job);
        links.tail_in_redis = true;
        let of_job = &self.term.jobs[&job];
        match (self.carried.take(&of_job.delivery, of_job.event), ended) {
            (Some(carried), _) => self.resume(job, carried),
            (None, Some(reason)) => self.bury(now, redis_ms, job, Burial::of(reason)),
            (None, None) if parks => self.park(now, job),
            (None, None) => {
                let lane = &mut self.lanes[at];
                match origin {
                    // Its time has come: it goes before what is merely next.
                    Origin::Claimed => lane.queue.push_front(job),
                    Origin::Fresh | Origin::Backlog => lane.queue.push_back(job),
                }
                self.schedule_lane(now, at);
            }
        }
        self.conclude_carried(now, redis_ms);
    }

    /// A backlog was looked at, up to this entry; with `None`, to its end.
    pub fn looked_at_backlog(&mut self, now: u64, endpoint: &EndpointId, last: Option<EntryId>) {
        let Some(at) = self.lanes.at(endpoint) else { return };
        self.lanes[at].looked(last);
        self.schedule_lane(now, at);
    }

    /// A look at a backlog failed. What lies there is still there: it is looked at again.
    pub fn look_failed(&mut self, now: u64, endpoint: &EndpointId) {
        let Some(at) = self.lanes.at(endpoint) else { return };
        self.lanes[at].look_again_at = now + LOOK_AGAIN_MS;
        self.schedule_lane(now, at);
    }

    /// While Redis' clock is not believed, nothing gets too old.
    pub fn set_may_expire(&mut self, may_expire: bool) {
        self.may_expire = may_expire;
    }

    pub(super) fn age(&self, lane: &Lane, delivery: &Delivery, redis_ms: u64) -> std::time::Duration {
        let age_ms = if self.may_expire { lane.age_ms(delivery.since_ms, redis_ms) } else { 0 };
        std::time::Duration::from_millis(age_ms)
    }

    /// The longest that any policy here lets a delivery wait for its next attempt.
    pub fn longest_pause(&self) -> std::time::Duration {
        let longest = |policy: &RetryPolicy| policy.settings().max_interval.mul_f64(1.0 + policy.settings().jitter);
        self.lanes.iter().map(|(_, lane)| longest(&lane.policy)).fold(longest(&self.policy), std::time::Duration::max)
    }

    /// Whether a delivery has outlived its endpoint's policy.
    pub fn is_expired(&self, delivery: &Delivery, redis_ms: u64) -> bool {
        let expires = |lane: &Lane| lane.policy.is_expired(self.age(lane, delivery, redis_ms));
        self.lanes.get(&delivery.id.endpoint).is_some_and(expires)
    }

    /// An attempt has ended. `redis_ms` is Redis' time as far as it is known.
    pub fn attempted(&mut self, now: u64, redis_ms: u64, token: Token, mut attempted: Attempted, chance: f64) {
        // By the clock of what ends it, whatever this machine's says: what is told of a delivery has one order.
        attempted.report.at_ms = redis_ms.saturating_sub(attempted.report.timing.total_us / 1_000);
        let attempted = Arc::new(attempted);
        let Some(job) = self.term.flights.remove(&token) else {
            self.leaves_seat(token);
            if let Some((id, revision)) = self.carried.take_flight(token) {
                let endpoint = id.delivery.endpoint.clone();
                let is_delivered = attempted.report.outcome.is_delivered();
                if let Some(at) = self.lanes.at(&endpoint) {
                    self.note_attempt(redis_ms, at, &id.delivery, &attempted.report);
                }
                match attempted.report.outcome {
                    // As if it had never been made.
                    Outcome::Local { .. } => {}
                    _ => self.carried.end(id, PastAttempt { attempted, at: now, revision }),
                }
                if let Some(at) = self.lanes.at(&endpoint) {
                    self.lanes[at].forget_attempt(token.0);
                    if is_delivered {
                        self.lanes[at].takes();
                    }
                    self.schedule_lane(now, at);
                }
            }
            return;
        };
        self.count_out(job);
        self.leaves_seat(token);
        self.count_in(job);
        let at = self.term.jobs[&job].lane;
        let age = self.age(&self.lanes[at], &self.term.jobs[&job].delivery, redis_ms);
        let lane = &mut self.lanes[at];
        let was = lane.trust;
        lane.judge(&attempted, self.budgets.slow_after_ms);
        if lane.trust > was {
            self.counts_as_worse(now, at);
        }
        if let Outcome::Local { cause } = attempted.report.outcome {
            return self.goes_again(now, token, job, cause, chance);
        }
        let delivery = self.term.jobs[&job].delivery.id.clone();
        self.note_attempt(redis_ms, at, &delivery, &attempted.report);
        let lane = &mut self.lanes[at];
        let was_closed = lane.is_breaker_closed(now);
        let outcome = &attempted.report.outcome;
        let ended = Ended { attempt: token.0, outcome, granted: lane.policy.granted(outcome, age) };
        if lane.ended_attempt(now, &ended, &self.breaker, chance) && was_closed {
            self.happenings.push(CoreHappening::BreakerOpened { endpoint: self.endpoint(at) });
        }
        self.conclude(now, redis_ms, job, attempted, now, chance);
        self.conclude_carried(now, redis_ms);
        self.gate_changed(now, at);
    }

    // ---- what goes out --------------------------------------------------------------------------------------------

    /// The next endpoint whose backlog is to be looked at: after which entry, and how many records at most.
    pub fn next_backlog(&mut self, now: u64) -> Option<(EndpointId, EntryId, usize)> {
        self.next_of(now, |term| term.hungry.pop_front()).or_else(|| self.next_to_clear(now))
    }

    /// A small backlog of a receiver that takes what comes. Until it is gone, what comes for that receiver waits, or costs a record
    /// and makes it longer.
    pub fn next_to_clear(&mut self, now: u64) -> Option<(EndpointId, EntryId, usize)> {
        self.next_of(now, |term| term.clearing.pop_front())
    }

    fn next_of(
        &mut self,
        now: u64,
        mut next: impl FnMut(&mut CoreTerm) -> Option<LaneAt>,
    ) -> Option<(EndpointId, EntryId, usize)> {
        while let Some(at) = next(&mut self.term) {
            let lane = &mut self.lanes[at];
            lane.is_hungry = false;
            let appetite = lane.appetite(now);
            if appetite == 0 {
                continue;
            }
            // Otherwise what the look brings would only wait for a seat here instead of there.
            let has_seat = match (lane.trust.class(), &lane.holder) {
                (Some(class), Some(holder)) => self.shares.has_seat(holder, class),
                (None, _) | (_, None) => true,
            };
            if !has_seat || self.is_crowded_out(at, Origin::Backlog) {
                self.waits(now, at);
            } else {
                let lane = &mut self.lanes[at];
                lane.looks();
                let after = lane.drained_to;
                return Some((self.endpoint(at), after, appetite));
            }
        }
        None
    }

    pub fn has_hungry(&self) -> bool {
        !self.term.hungry.is_empty() || !self.term.clearing.is_empty()
    }

    /// The next endpoint that takes nothing any more and has unfinished deliveries.
    pub fn next_ending(&mut self) -> Option<EndpointId> {
        while let Some(at) = self.term.ending.pop_front() {
            let lane = &self.lanes[at];
            if lane.ended().is_some() && lane.unfinished > 0 {
                return Some(self.endpoint(at));
            }
        }
        None
    }

    pub fn has_ending(&self) -> bool {
        !self.term.ending.is_empty()
    }

    /// Come back to an ending endpoint later.
    pub fn ends_later(&mut self, endpoint: &EndpointId) {
        if let Some(at) = self.lanes.at(endpoint) {
            self.comes_to_its_end(at);
        }
    }

    /// Endpoints that have something in Redis and cannot be read.
    pub fn unreadable(&self) -> Vec<EndpointId> {
        let waits = |lane: &Lane| lane.unfinished > 0 && lane.is_unreadable();
        let waiting = self.lanes.iter().filter(|(_, lane)| waits(lane)).map(|(endpoint, _)| endpoint.clone());
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_unstable();
        waiting
    }

    /// It was noted at this time that an endpoint cannot be read.
    pub fn noted_unreadable(&mut self, endpoint: &EndpointId, at_ms: u64) {
        if let Some(lane) = self.lanes.get_mut(endpoint) {
            lane.unreadable_ms = lane.unreadable_ms.max(at_ms);
        }
    }

    /// Endpoints that wait with something in their backlog, which may grow too old there.
    pub fn waiting_backlogs(&self, now: u64) -> Vec<EndpointId> {
        let ages = |lane: &Lane| lane.ended().is_none() && !lane.is_unreadable();
        let waits = |lane: &Lane| lane.parked > 0 && ages(lane) && lane.gate(now) != Gate::Open;
        let waiting = self.lanes.iter().filter(|(_, lane)| waits(lane)).map(|(endpoint, _)| endpoint.clone());
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_unstable();
        waiting
    }

    pub fn take_errands(&mut self) -> Vec<CoreErrand> {
        std::mem::take(&mut self.errands)
    }

    pub fn take_happenings(&mut self) -> Vec<CoreHappening> {
        std::mem::take(&mut self.happenings)
    }

    // ---- what it is asked -----------------------------------------------------------------------------------------

    /// Whether Redis must be asked about an endpoint's chains before a fresh delivery is admitted.
    pub fn must_ask(&self, endpoint: &EndpointId) -> bool {
        self.lanes.get(endpoint).is_some_and(|lane| lane.unfinished > 0)
    }

    /// It has a backlog and is taking from it.
    pub fn drains_backlog(&self, now: u64, endpoint: &EndpointId) -> bool {
        self.lanes
            .get(endpoint)
            .is_some_and(|lane| lane.parked > 0 && matches!(lane.gate(now), Gate::Open | Gate::Busy))
    }

    /// Whether the lane knows the endpoint in exactly this form.
    pub fn stands_as(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.lanes.get(&endpoint.id).is_some_and(|lane| match &lane.standing {
            Standing::Serving(known) | Standing::Paused(known) => Arc::ptr_eq(known, endpoint),
            Standing::Ended { .. } => matches!(endpoint.status, EndpointState::Disabled(_)),
            Standing::Unknown => false,
        })
    }

    pub fn stands_unknown(&self, endpoint: &EndpointId) -> bool {
        self.lanes.get(endpoint).is_some_and(Lane::is_unreadable)
    }

    pub fn has_lane(&self, endpoint: &EndpointId) -> bool {
        self.lanes.at(endpoint).is_some()
    }

    pub fn lanes(&self) -> impl Iterator<Item = (&EndpointId, &Lane)> {
        self.lanes.iter()
    }

    pub fn tally(&self) -> Tally {
        let orphans = self.carried.flights().count();
        let (jobs, bytes, slow) = (self.term.jobs.len(), self.bytes(), self.shares.held());
        Tally { jobs, bytes, slow, in_flight: self.term.flights.len() + orphans, ..self.tally }
    }

    // ---- an operator's requests -----------------------------------------------------------------------------------

    /// A dead letter becomes an unfinished delivery. What is in memory of its chain gets its records first, so that there
    /// is never a second head.
    pub fn revive(&mut self, now: u64, redis_ms: u64, delivery: &Delivery) {
        let chain_id = (self.lane_of(&delivery.id.endpoint), delivery.chain());
        self.spill(now, &chain_id);
        self.term.chains.entry(chain_id.clone()).or_default().tail_in_redis = true;
        let item = Item::Revive { id: delivery.id.clone(), chain: chain_id.1.clone(), record: delivery.to_record() };
        self.push_for(now, chain_id, item);
        if let Some(mark) = delivery.redelivered.last() {
            let why = told(mark);
            self.log_end(now, &EndLine::of(End::Redelivered, delivery, redis_ms, why));
        }
    }

    /// A dead letter goes for good.
    pub fn discard(&mut self, now: u64, redis_ms: u64, id: &DeliveryId, letter: &Bytes, mark: &Mark) {
        self.push_item(now, Item::Discard { id: id.clone() });
        let facts = LetterFacts::of_record(letter);
        self.log_end(now, &EndLine::of_facts(End::Discarded, id, &facts, redis_ms, told(mark)));
    }

    /// Gives up the head of a chain, so that the next may go. If it cannot, says why.
    pub fn release(&mut self, now: u64, redis_ms: u64, delivery: Delivery, detail: String) -> Result<(), &'static str> {
        let chain_id = (self.lane_of(&delivery.id.endpoint), delivery.chain());
        let head = self.term.chains.get(&chain_id).and_then(|links| links.head);
        if let Some(job) = head {
            if self.term.jobs[&job].delivery.id != delivery.id {
                return Err("its head is changing; ask again");
            }
            if self.term.jobs[&job].flight.is_some() {
                return Err("an attempt of its head is in flight; ask again when it has ended");
            }
            self.unqueue(job);
            self.bury(now, redis_ms, job, Burial { detail, ..Burial::of(DeadReason::Released) });
            self.conclude_carried(now, redis_ms);
            return Ok(());
        }
        if self.term.chains.get(&chain_id).is_some_and(|links| links.unsettled > 0) {
            return Err("its head is changing; ask again");
        }
        // It stands in Redis: due, or parked.
        let waited_for = self.waited_for(now, redis_ms, chain_id.0, &delivery, Origin::Claimed);
        self.head_ended(&delivery.id, &chain_id.1);
        let letter = fates::dead_letter(delivery, DeadReason::Released, redis_ms, detail, None, waited_for);
        self.note_dead(&letter);
        self.term.chains.entry(chain_id.clone()).or_default().tail_in_redis = true;
        let item = fates::burial(chain_id.1.clone(), &letter);
        self.push_for(now, chain_id, item);
        self.log_end(now, &EndLine::dead(&letter));
        Ok(())
    }

    /// Gives up a head whose record cannot be read.
    pub fn release_unreadable(
        &mut self,
        now: u64,
        redis_ms: u64,
        id: &DeliveryId,
        intent: &IntentId,
        record: &Bytes,
    ) -> Result<(), &'static str> {
        let chain_id = (self.lane_of(&id.endpoint), Chain::Intent(intent.clone()));
        if self.term.chains.get(&chain_id).is_some_and(|links| links.unsettled > 0 || links.head.is_some()) {
            return Err("its head is changing; ask again");
        }
        self.tally.dead += 1;
        let (id, intent) = (id.clone(), intent.clone());
        let about = About::unreadable(&id, &intent);
        self.happenings.push(CoreHappening::Dead { about, reason: DeadReason::Released, attempts: 0 });
        self.term.chains.entry(chain_id.clone()).or_default().tail_in_redis = true;
        let (chain, facts) = (chain_id.1.clone(), Box::new(LetterFacts::unreadable()));
        let why = DeadReason::Released.name().to_owned();
        let line = EndLine { intent: Some(intent), ..EndLine::of_facts(End::Dead, &id, &facts, redis_ms, why) };
        let item = Item::Bury { id, chain, facts, letter: record.clone() };
        self.push_for(now, chain_id, item);
        self.log_end(now, &line);
        Ok(())
    }

    // ---- inside ---------------------------------------------------------------------------------------------------

    fn lane_of(&self, endpoint: &EndpointId) -> LaneAt {
        self.lanes.at(endpoint).expect("the caller told the endpoint's standing")
    }

    fn endpoint(&self, at: LaneAt) -> EndpointId {
        self.lanes.endpoint(at).clone()
    }

    fn next(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// Who asked for it, and why.
fn told(mark: &Mark) -> String {
    format!("{}: {}", mark.by, mark.why)
}

/// The host and port that an endpoint's receiver is reached at: a dead platform is recognised by them.
fn authority(url: &str) -> Arc<str> {
    let parsed = url::Url::parse(url).ok();
    let host = parsed.as_ref().and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?)));
    host.unwrap_or_default().into()
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

//! The deliveries of one partition that are in memory: chains, lanes, and what is to be settled. Decides what goes
//! out next and what becomes of each outcome. Pure: times, chances and what Redis holds are passed in.
//! Never makes a call and never knows of the lease: that is `partition`.
//!
//! The rule that everything here serves: **a delivery gets its record only when every earlier unfinished one of its
//! chain has one**. Operations leave in the order in which they were made, so an earlier record is always written first.

mod chains;
mod fates;
mod flights;
mod lanes;
mod memory;
mod settling;
mod terms;
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
use lanes::{LaneAt, Lanes};
use memory::Memory;
use weights::Weights;

use crate::{
    facts::{
        delivery::{Chain, DeadLetter, Delivery, RECORD_SCHEMA},
        endpoint::{Endpoint, EndpointState, Ordering},
        id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
        log::LogLine,
        outcome::{Attempted, LocalCause, Outcome, SentRequest},
        quota::{Quota, Quotas},
        retry::{DeadReason, Fate, RetryPolicy},
        text::bytes,
    },
    store::protocol::{Item, Known, Place, Recorded, Settlement, Unfinished},
};

/// A delivery that is unfinished so long after its read gets a record, so that it does not pin the stream.
pub const RECORD_AFTER_MS: u64 = 1_000;

/// After a failure of ours a delivery goes again so much later, and up to twice that: what we were short of is perhaps
/// there again, and those that failed together do not come back together.
const LOCAL_PAUSE_MS: u64 = 100;

/// How long after a failed look a backlog is looked at again: keys that somebody broke cost no more than that.
const LOOK_AGAIN_MS: u64 = 5_000;

/// How soon a lane that needs no seat looks again whether there is room in memory for what its backlog would bring.
const CROWDED_MS: u64 = 250;

/// Failures of ours are told at this interval at most: one shortage fails hundreds at a time.
const LOCAL_NOTE_MS: u64 = 1_000;

/// Entries that are set aside because the store refused what is to be written of them, at which reading stops: each is read
/// again with the next term, and so many are within a second. One endpoint whose keys are broken brings them together soon.
pub const MAX_ASIDE: usize = 20_000;

/// After so many refusals within a term an endpoint's keys are taken for broken: what needs a record there is set aside
/// without another question, for each costs everybody a settle that changes nothing.
const LANE_REFUSALS: u32 = 8;

/// Verdicts that may wait for their deliveries to be read again. Beyond it the receivers get duplicates instead.
const MAX_CARRIED: usize = 8_192;

/// Identifies one attempt that is in flight. Never used twice.
pub type Token = u64;

/// What the core asks of the outside beyond sending and settling.
#[derive(Debug, Clone, PartialEq)]
pub enum Wish {
    /// The receiver answered 410 to this revision.
    Disable { endpoint: EndpointId, revision: u64, why: String },
    /// In this revision it has more in Redis than its quota, or its account's, and takes nothing.
    Pause { endpoint: EndpointId, revision: u64, why: String },
}

/// What is worth telling. Delivered events are not: they are counted.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    Failed {
        id: DeliveryId,
        chain: IntentId,
        attempt: u32,
        outcome: Outcome,
        retry_in_ms: u64,
    },
    Dead {
        id: DeliveryId,
        intent: IntentId,
        reason: DeadReason,
        attempts: u32,
    },
    BreakerOpened {
        endpoint: EndpointId,
    },
    /// It is to be paused: it has so many bytes in Redis, or all of its account.
    OverQuota {
        endpoint: EndpointId,
        quota: Quota,
        bytes: u64,
    },
    /// So many attempts failed here and not at their receivers; they go again.
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

/// Start this attempt.
#[derive(Debug, Clone)]
pub struct Send {
    pub token: Token,
    pub trust: Trust,
    /// So many of its endpoint may be out at a time. It waits while they are.
    pub places: u32,
    pub delivery: Arc<Delivery>,
    pub endpoint: Arc<Endpoint>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Straight from the stream, without record.
    Fresh,
    /// With a record among the claimed.
    Claimed,
    /// With a record that still stands in the backlog.
    Backlog,
}

#[derive(Debug)]
struct Job {
    delivery: Arc<Delivery>,
    lane: LaneAt,
    chain: Chain,
    origin: Origin,
    flight: Option<Token>,
    /// How its receiver stood when it came into memory, or worse if it still waited then: so it is counted until it leaves.
    trust: Trust,
    /// The endpoint's revision that the last attempt was made with: a 410 is about that one, not about a newer.
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
    /// Of these, dead letters of its heads. Until they are durable a crash would have the dead head sent again, so
    /// nothing behind it may go before.
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

/// An attempt's result that is not confirmed as settled. With it a re-read delivery ends as it did.
#[derive(Debug, Clone)]
struct Verdict {
    id: DeliveryId,
    attempt: u32,
    attempted: Arc<Attempted>,
    revision: u64,
    event: Fingerprint,
    /// It came from its record, and its entry may be pending all the same.
    is_recorded: bool,
}

/// Tells an event from another one that got its entry's id, after a failover to a Redis that had not heard of the first.
type Fingerprint = u64;

/// What is known of an attempt beyond its term: which delivery, which attempt, of which event.
type CarriedId = (DeliveryId, u32, Fingerprint);

#[derive(Debug)]
enum Op {
    Item { item: Item, chain: Option<ChainId> },
    Ack(EntryId),
    Log { line: Bytes, verdict: Verdict },
}

/// What survives the end of a term: attempts in flight and verdicts without confirmation, by delivery, attempt and event,
/// with the endpoint's revision that each was made with.
#[derive(Debug)]
enum Carried {
    Flying(Token, u64),
    Ended(Arc<Attempted>, u64),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub jobs: usize,
    pub bytes: usize,
    pub in_flight: usize,
    /// Of these, slow ones.
    pub slow: usize,
    pub delivered: u64,
    pub retried: u64,
    pub dead: u64,
    pub skipped_disabled: u64,
}

pub struct Core {
    policy: RetryPolicy,
    breaker: BreakerSettings,
    budgets: Budgets,
    memory: Memory,
    weights: Weights,
    quotas: Quotas,
    lanes: Lanes,
    /// Those of deleted endpoints.
    leaving: BTreeSet<LaneAt>,
    leave_at: u64,
    jobs: HashMap<JobId, Job>,
    chains: HashMap<ChainId, Links>,
    /// Chains of their own that are in memory, or whose change is not confirmed, by the intent they belong to.
    singles: HashMap<(LaneAt, IntentId), u32>,
    /// Deliveries whose record is about to change: what Redis still shows of them is out of date.
    changing: HashMap<DeliveryId, u32>,
    /// Deliveries of an entry that are neither finished nor recorded. Zero until its acknowledgement is confirmed.
    entries: HashMap<EntryId, u32>,
    /// Delivered and logged, while their entry waits for others: should the term end, they must not go again.
    delivered: HashMap<EntryId, Vec<Verdict>>,
    flights: HashMap<Token, JobId>,
    /// Of the slow flights, those of an earlier term included.
    seats: HashMap<Token, Seat>,
    shares: Shares,
    /// When each flight becomes a slow one, if it has not ended.
    young: VecDeque<(u64, Token)>,
    /// When each flight to a new receiver leaves its place to another, if it has not ended.
    unanswered: VecDeque<(u64, Token)>,
    waiters_at: u64,
    /// Open entries of which something was delivered or got a record.
    begun: HashSet<EntryId>,
    carried: HashMap<CarriedId, Carried>,
    /// What was delivered by a later attempt than its first, or from its record, for when its entry is read again.
    delivered_before: HashMap<(DeliveryId, Fingerprint), (Arc<Attempted>, u64)>,
    /// Pending entries may still be read again in this term.
    rereads: bool,
    fingerprints: foldhash::fast::RandomState,
    /// Heads that were resumed with their result; empty between inputs.
    landed: VecDeque<(JobId, Arc<Attempted>)>,
    ready: VecDeque<LaneAt>,
    hungry: VecDeque<LaneAt>,
    ending: VecDeque<LaneAt>,
    alarms: BinaryHeap<std::cmp::Reverse<(u64, LaneAt)>>,
    ageing: VecDeque<(u64, JobId)>,
    /// Heads that go again after a failure of ours, and when.
    again: BTreeSet<(u64, JobId)>,
    ours: Vec<(LocalCause, u64)>,
    ours_noted_at: Option<u64>,
    outbox: VecDeque<Op>,
    outbox_bytes: usize,
    outbox_since: Option<u64>,
    sent: Vec<Op>,
    wishes: Vec<Wish>,
    notes: Vec<Note>,
    /// Entries of which the store refused an item: they stay pending until the next term reads them again.
    aside: HashSet<EntryId>,
    /// Chains of which an item was refused: nothing of them goes on before the next term.
    blocked: HashSet<ChainId>,
    /// Refusals by lane.
    refusals: HashMap<LaneAt, u32>,
    /// Redis' clock is to be believed: what is old by it is old.
    may_expire: bool,
    next_id: u64,
    tally: Tally,
}

impl Core {
    pub fn new(policy: RetryPolicy, breaker: BreakerSettings, budgets: Budgets) -> Self {
        Self {
            policy,
            breaker,
            budgets,
            memory: Memory::default(),
            weights: Weights::default(),
            quotas: Quotas::default(),
            lanes: Lanes::default(),
            leaving: BTreeSet::new(),
            leave_at: 0,
            jobs: HashMap::default(),
            chains: HashMap::default(),
            singles: HashMap::default(),
            changing: HashMap::default(),
            entries: HashMap::default(),
            delivered: HashMap::default(),
            flights: HashMap::default(),
            seats: HashMap::default(),
            shares: Shares::new(&budgets),
            young: VecDeque::new(),
            unanswered: VecDeque::new(),
            waiters_at: 0,
            begun: Default::default(),
            carried: HashMap::default(),
            delivered_before: HashMap::default(),
            rereads: true,
            fingerprints: foldhash::fast::RandomState::default(),
            landed: VecDeque::new(),
            ready: VecDeque::new(),
            hungry: VecDeque::new(),
            ending: VecDeque::new(),
            alarms: BinaryHeap::new(),
            ageing: VecDeque::new(),
            again: BTreeSet::new(),
            ours: Vec::new(),
            ours_noted_at: None,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            outbox_since: None,
            sent: Vec::new(),
            wishes: Vec::new(),
            notes: Vec::new(),
            aside: HashSet::default(),
            blocked: HashSet::default(),
            refusals: HashMap::default(),
            may_expire: true,
            next_id: 0,
            tally: Tally::default(),
        }
    }

    // ---- what comes in --------------------------------------------------------------------------------------------

    /// What the registry says of an endpoint, first or again.
    pub fn stand(&mut self, now: u64, endpoint: &EndpointId, standing: Standing) {
        let policy = match &standing {
            // The registry checked the overrides; one that fails all the same is ignored rather than trusted.
            Standing::Serving(e) | Standing::Paused(e) => {
                self.policy.with(&e.retry).unwrap_or_else(|_| self.policy.clone())
            }
            Standing::Ended { .. } | Standing::Unknown => self.policy.clone(),
        };
        let at = match self.lanes.at(endpoint) {
            Some(at) => {
                let lane = &mut self.lanes[at];
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
            lane.holder = Some(Arc::new(Holder { lane: at, account, host }));
        }
        self.weigh(at);
        self.react(now, at);
    }

    /// An entry was read; `deliveries` of it follow through [`Core::admit_fresh`] before anything else happens.
    pub fn open_entry(&mut self, now: u64, entry: EntryId, deliveries: u32) {
        self.entries.insert(entry, deliveries);
        if deliveries == 0 {
            self.push(now, Op::Ack(entry));
        }
    }

    /// In memory, or not yet confirmed as acknowledged: reading it again means nothing.
    pub fn knows_entry(&self, entry: EntryId) -> bool {
        self.entries.contains_key(&entry)
    }

    pub fn admit_fresh(&mut self, now: u64, redis_ms: u64, mut delivery: Delivery, known: Known) {
        match known.recorded {
            Recorded::Nothing => {}
            Recorded::This => return self.close_one(now, delivery.id.entry),
            Recorded::Another => return self.displace(now, delivery),
        }
        let at = self.lane_of(&delivery.id.endpoint);
        let lane = &self.lanes[at];
        if lane.ended().is_some() && !lane.was_owed(delivery.id.entry) {
            self.tally.skipped_disabled += 1;
            return self.close_one(now, delivery.id.entry);
        }
        delivery.ordered = self.joins_intent(&delivery, at, known);
        let chain_id = (at, delivery.chain());
        if self.blocked.contains(&chain_id) {
            self.aside.insert(delivery.id.entry);
            return;
        }
        let links = self.chains.get(&chain_id);
        let is_busy = links.is_some_and(Links::is_busy);
        let waits_in_redis = links.map_or(known.ordered && delivery.ordered, |links| links.tail_in_redis);
        let job = self.insert(delivery, at, chain_id.1.clone(), Origin::Fresh);
        self.ageing.push_back((now + RECORD_AFTER_MS, job));
        if waits_in_redis {
            self.keep(now, job, Place::Held);
        } else if !is_busy {
            self.lead(now, job, chain_id);
        } else if self.lanes[at].should_park(now, self.share()) || self.is_crowded_out(at, Origin::Fresh) {
            self.spill(now, &chain_id);
            self.keep(now, job, Place::Held);
        } else {
            self.chains.entry(chain_id).or_default().followers.push_back(job);
        }
        self.land(now, redis_ms);
    }

    /// A delivery with a record: claimed, or looked up in the backlog.
    pub fn admit_kept(&mut self, now: u64, redis_ms: u64, delivery: Delivery, origin: Origin) {
        let at = self.lane_of(&delivery.id.endpoint);
        let chain_id = (at, delivery.chain());
        let is_here = self.chains.get(&chain_id).is_some_and(|links| links.head.is_some());
        if is_here || self.changing.contains_key(&delivery.id) || self.blocked.contains(&chain_id) {
            // It is in memory, or its fate is on its way: it was looked at in the backlog a second time.
            return;
        }
        let lane = &self.lanes[at];
        if delivery.is_unsure && lane.endpoint().is_some_and(|endpoint| !endpoint.wants(&delivery.event_type)) {
            self.chains.entry(chain_id.clone()).or_default().tail_in_redis = true;
            let item = Item::Finish { id: delivery.id, chain: chain_id.1.clone() };
            return self.push_for(now, chain_id, item);
        }
        let age = self.age(&delivery, redis_ms);
        let ended = lane.ended().or_else(|| lane.policy.is_expired(age).then_some(DeadReason::Expired));
        let most = if lane.trust == Trust::Proven { usize::MAX } else { memory::UNPROVEN_QUEUE };
        let is_full = lane.should_park(now, most) || self.is_crowded_out(at, origin);
        let parks = origin == Origin::Claimed && is_full;
        let job = self.insert(delivery, at, chain_id.1.clone(), origin);
        let links = self.chains.entry(chain_id).or_default();
        links.head = Some(job);
        links.tail_in_redis = true;
        match (self.carried_for(job), ended) {
            (Some(carried), _) => self.resume(job, carried),
            (None, Some(reason)) => self.bury(now, redis_ms, job, reason, String::new(), None),
            (None, None) if parks => self.park(now, job),
            (None, None) => {
                let lane = &mut self.lanes[at];
                match origin {
                    // Its time has come: it goes before what is merely next.
                    Origin::Claimed => lane.queue.push_front(job),
                    Origin::Fresh | Origin::Backlog => lane.queue.push_back(job),
                }
                self.touch(now, at);
            }
        }
        self.land(now, redis_ms);
    }

    /// A backlog was looked at, up to this entry; with none there was no more.
    pub fn looked_at_backlog(&mut self, now: u64, endpoint: &EndpointId, last: Option<EntryId>) {
        let Some(at) = self.lanes.at(endpoint) else { return };
        self.lanes[at].looked(last);
        self.touch(now, at);
    }

    /// A look at a backlog failed. What lies there is no less for it: it is looked at again.
    pub fn look_failed(&mut self, now: u64, endpoint: &EndpointId) {
        let Some(at) = self.lanes.at(endpoint) else { return };
        self.lanes[at].look_again_at = now + LOOK_AGAIN_MS;
        self.touch(now, at);
    }

    /// While Redis' clock is not believed nothing gets too old.
    pub fn set_may_expire(&mut self, may_expire: bool) {
        self.may_expire = may_expire;
    }

    pub(super) fn age(&self, delivery: &Delivery, redis_ms: u64) -> std::time::Duration {
        let age_ms = if self.may_expire { redis_ms.saturating_sub(delivery.since_ms) } else { 0 };
        std::time::Duration::from_millis(age_ms)
    }

    /// The longest that a policy here lets a delivery wait for its next attempt.
    pub fn longest_pause(&self) -> std::time::Duration {
        let longest = |policy: &RetryPolicy| policy.settings().max_interval.mul_f64(1.0 + policy.settings().jitter);
        self.lanes.iter().map(|(_, lane)| longest(&lane.policy)).fold(longest(&self.policy), std::time::Duration::max)
    }

    /// Whether a delivery has outlived its endpoint's policy.
    pub fn is_expired(&self, delivery: &Delivery, redis_ms: u64) -> bool {
        let age = self.age(delivery, redis_ms);
        self.lanes.get(&delivery.id.endpoint).is_some_and(|lane| lane.policy.is_expired(age))
    }

    /// An attempt has ended. `redis_ms` is Redis' time as far as it is known.
    pub fn attempted(&mut self, now: u64, redis_ms: u64, token: Token, attempted: Attempted, chance: f64) {
        let attempted = Arc::new(attempted);
        let Some(job) = self.flights.remove(&token) else {
            self.leaves_seat(token);
            let orphan = self.carried.iter().find_map(|(id, carried)| match carried {
                Carried::Flying(flying, revision) if *flying == token => Some((id.clone(), *revision)),
                _ => None,
            });
            if let Some((id, revision)) = orphan {
                let endpoint = id.0.endpoint.clone();
                let is_delivered = attempted.report.outcome.is_delivered();
                match attempted.report.outcome {
                    // As if it had never been made.
                    Outcome::Local { .. } => drop(self.carried.remove(&id)),
                    _ => self.carry_ended(id, attempted, revision),
                }
                if let Some(at) = self.lanes.at(&endpoint) {
                    self.lanes[at].forget_attempt(token);
                    if is_delivered {
                        self.lanes[at].takes();
                    }
                    self.touch(now, at);
                }
            }
            return;
        };
        self.count_out(job);
        self.leaves_seat(token);
        self.count_in(job);
        let at = self.jobs[&job].lane;
        let age = self.age(&self.jobs[&job].delivery, redis_ms);
        let lane = &mut self.lanes[at];
        let was = lane.trust;
        lane.judge(&attempted, self.budgets.slow_after_ms);
        if lane.trust > was {
            self.counts_as_worse(now, at);
        }
        if let Outcome::Local { cause } = attempted.report.outcome {
            return self.goes_again(now, token, job, cause, chance);
        }
        let lane = &mut self.lanes[at];
        let was_closed = lane.is_breaker_closed(now);
        let outcome = &attempted.report.outcome;
        let ended = Ended { attempt: token, outcome, granted: lane.policy.granted(outcome, age) };
        if lane.ended_attempt(now, &ended, &self.breaker, chance) && was_closed {
            self.notes.push(Note::BreakerOpened { endpoint: self.endpoint(at) });
        }
        self.conclude(now, redis_ms, job, attempted, chance);
        self.land(now, redis_ms);
        self.react(now, at);
    }

    // ---- what goes out --------------------------------------------------------------------------------------------

    /// The next endpoint whose backlog is to be looked at: after which entry, and how far.
    pub fn next_backlog(&mut self, now: u64) -> Option<(EndpointId, EntryId, usize)> {
        while let Some(at) = self.hungry.pop_front() {
            let lane = &mut self.lanes[at];
            lane.is_hungry = false;
            let appetite = lane.appetite(now);
            if appetite == 0 {
                continue;
            }
            // What it brought would only wait for a seat here, and there.
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
        !self.hungry.is_empty()
    }

    /// The next endpoint that takes nothing any more and has unfinished deliveries.
    pub fn next_ending(&mut self) -> Option<EndpointId> {
        while let Some(at) = self.ending.pop_front() {
            let lane = &self.lanes[at];
            if lane.ended().is_some() && lane.unfinished > 0 {
                return Some(self.endpoint(at));
            }
        }
        None
    }

    pub fn has_ending(&self) -> bool {
        !self.ending.is_empty()
    }

    /// Come back to an ending endpoint later.
    pub fn ends_later(&mut self, endpoint: &EndpointId) {
        if let Some(at) = self.lanes.at(endpoint) {
            self.comes_to_its_end(at);
        }
    }

    /// Endpoints that wait with something in their backlog.
    pub fn waiting_backlogs(&self, now: u64) -> Vec<EndpointId> {
        let waits = |lane: &Lane| lane.parked > 0 && lane.ended().is_none() && lane.gate(now) != Gate::Open;
        let waiting = self.lanes.iter().filter(|(_, lane)| waits(lane)).map(|(endpoint, _)| endpoint.clone());
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_unstable();
        waiting
    }

    pub fn take_wishes(&mut self) -> Vec<Wish> {
        std::mem::take(&mut self.wishes)
    }

    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    // ---- settling -------------------------------------------------------------------------------------------------

    /// Whether Redis must be asked about an endpoint's chains before a fresh delivery is admitted.
    pub fn must_ask(&self, endpoint: &EndpointId) -> bool {
        self.lanes.get(endpoint).is_some_and(|lane| lane.unfinished > 0)
    }

    /// It has a backlog and takes from it.
    pub fn drains_backlog(&self, now: u64, endpoint: &EndpointId) -> bool {
        self.lanes
            .get(endpoint)
            .is_some_and(|lane| lane.parked > 0 && matches!(lane.gate(now), Gate::Open | Gate::Busy))
    }

    /// Whether the lane knows the endpoint in this very form.
    pub fn stands_as(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.lanes.get(&endpoint.id).is_some_and(|lane| match &lane.standing {
            Standing::Serving(known) | Standing::Paused(known) => Arc::ptr_eq(known, endpoint),
            Standing::Ended { .. } => matches!(endpoint.status, EndpointState::Disabled(_)),
            Standing::Unknown => false,
        })
    }

    pub fn stands_unknown(&self, endpoint: &EndpointId) -> bool {
        self.lanes.get(endpoint).is_some_and(|lane| matches!(lane.standing, Standing::Unknown))
    }

    pub fn has_lane(&self, endpoint: &EndpointId) -> bool {
        self.lanes.at(endpoint).is_some()
    }

    pub fn lanes(&self) -> impl Iterator<Item = (&EndpointId, &Lane)> {
        self.lanes.iter()
    }

    pub fn tally(&self) -> Tally {
        let orphans = self.carried.values().filter(|carried| matches!(carried, Carried::Flying(..))).count();
        let (jobs, bytes, slow) = (self.jobs.len(), self.bytes(), self.shares.held());
        Tally { jobs, bytes, slow, in_flight: self.flights.len() + orphans, ..self.tally }
    }

    // ---- an operator's requests -----------------------------------------------------------------------------------

    /// A dead letter becomes an unfinished delivery. What of its chain is in memory gets its records first, so that
    /// there is never a second head.
    pub fn revive(&mut self, now: u64, delivery: &Delivery) {
        let chain_id = (self.lane_of(&delivery.id.endpoint), delivery.chain());
        self.spill(now, &chain_id);
        self.chains.entry(chain_id.clone()).or_default().tail_in_redis = true;
        let item = Item::Revive { id: delivery.id.clone(), chain: chain_id.1.clone(), record: delivery.to_record() };
        self.push_for(now, chain_id, item);
    }

    /// Gives the head of a chain up, so that the next may go. Tells why it cannot.
    pub fn release(&mut self, now: u64, redis_ms: u64, delivery: Delivery, detail: String) -> Result<(), &'static str> {
        let chain_id = (self.lane_of(&delivery.id.endpoint), delivery.chain());
        let head = self.chains.get(&chain_id).and_then(|links| links.head);
        if let Some(job) = head {
            if self.jobs[&job].flight.is_some() {
                return Err("an attempt of its head is in flight; ask again when it has ended");
            }
            self.unqueue(job);
            self.bury(now, redis_ms, job, DeadReason::Released, detail, None);
            self.land(now, redis_ms);
            return Ok(());
        }
        if self.chains.get(&chain_id).is_some_and(|links| links.unsettled > 0) {
            return Err("its head is changing; ask again");
        }
        let letter = fates::dead_letter(delivery, DeadReason::Released, redis_ms, detail, None);
        self.note_dead(&letter);
        self.chains.entry(chain_id.clone()).or_default().tail_in_redis = true;
        let item = Item::Bury { id: letter.delivery.id.clone(), chain: chain_id.1.clone(), letter: letter.to_record() };
        self.push_for(now, chain_id, item);
        Ok(())
    }

    /// Gives up a head whose record cannot be read.
    pub fn release_unreadable(
        &mut self,
        now: u64,
        id: &DeliveryId,
        intent: &IntentId,
        record: &Bytes,
    ) -> Result<(), &'static str> {
        let chain_id = (self.lane_of(&id.endpoint), Chain::Intent(intent.clone()));
        if self.chains.get(&chain_id).is_some_and(|links| links.unsettled > 0 || links.head.is_some()) {
            return Err("its head is changing; ask again");
        }
        self.tally.dead += 1;
        let (id, intent) = (id.clone(), intent.clone());
        self.notes.push(Note::Dead { id: id.clone(), intent, reason: DeadReason::Released, attempts: 0 });
        self.chains.entry(chain_id.clone()).or_default().tail_in_redis = true;
        let item = Item::Bury { id, chain: chain_id.1.clone(), letter: record.clone() };
        self.push_for(now, chain_id, item);
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

/// The host and port that an endpoint's receiver is reached at: what one dead platform is known by.
fn authority(url: &str) -> Arc<str> {
    let parsed = url::Url::parse(url).ok();
    let host = parsed.as_ref().and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?)));
    host.unwrap_or_default().into()
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

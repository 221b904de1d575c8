//! The deliveries of one partition that are in memory: chains, lanes, and what is to be settled. Decides what goes
//! out next and what becomes of each outcome. Pure: times, chances and what Redis holds are passed in.
//! Never makes a call and never knows of the lease: that is `partition`.
//!
//! The rule that everything here serves: **a delivery gets its record only when every earlier unfinished one of its
//! chain has one**. Operations leave in the order in which they were made, so an earlier record is always written first.

use std::{
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use serde::Serialize;

use super::{
    breaker::BreakerSettings,
    lane::{Gate, JobId, Lane, Standing},
};
use crate::{
    facts::{
        delivery::{Chain, DeadLetter, Delivery, RECORD_SCHEMA},
        endpoint::{Endpoint, Ordering},
        id::{DeliveryId, EndpointId, EntryId, IntentId},
        outcome::{Attempted, Outcome, SentRequest},
        retry::{DeadReason, Fate, RetryPolicy},
    },
    store::protocol::{Item, Place, Settlement, Unfinished},
};

/// Deliveries in memory at which reading stops. With 600-byte events about 2 MB, and a quarter of a second's work at
/// ten thousand a second.
pub const MAX_JOBS: usize = 2_048;

/// Operations that wait for a settle at which reading stops: four batches.
pub const MAX_OUTBOX: usize = 2_000;

/// A delivery that is unfinished so long after its read gets a record, so that it does not pin the stream.
pub const RECORD_AFTER_MS: u64 = 1_000;

/// Items that the store refused at which reading stops: each pins its entry until the next term.
pub const MAX_ASIDE: usize = 1_000;

/// Verdicts that may wait for their deliveries to be read again. Beyond it the receivers get duplicates instead.
const MAX_CARRIED: usize = 4 * MAX_JOBS;

/// What a line of the attempt log keeps of an error's text.
const LOG_DETAIL_BYTES: usize = 120;

/// Identifies one attempt that is in flight. Never used twice.
pub type Token = u64;

/// What the core asks of the outside beyond sending and settling.
#[derive(Debug, Clone, PartialEq)]
pub enum Wish {
    /// The receiver answered 410 to this revision.
    Disable { endpoint: EndpointId, revision: u64, why: String },
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
    /// A record that can not be read; it stays where it is.
    Unreadable {
        id: DeliveryId,
        why: String,
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

/// What Redis holds of a fresh delivery's chain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// Unfinished records of the intent, in order.
    pub ordered: u64,
    /// Unfinished records of the intent that are chains of their own.
    pub single: u64,
    /// This very delivery has a record or a dead letter: it is not fresh at all.
    pub recorded: bool,
}

#[derive(Debug)]
struct Job {
    delivery: Arc<Delivery>,
    chain: Chain,
    origin: Origin,
    flight: Option<Token>,
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
}

impl Links {
    fn is_idle(&self) -> bool {
        self.head.is_none() && self.followers.is_empty() && self.unsettled == 0
    }
}

type ChainId = (EndpointId, Chain);

/// An attempt's result that is not confirmed as settled. With it a re-read delivery ends as it did.
#[derive(Debug, Clone)]
struct Verdict {
    id: DeliveryId,
    attempt: u32,
    attempted: Arc<Attempted>,
    revision: u64,
}

#[derive(Debug)]
enum Op {
    Item { item: Item, chain: Option<ChainId> },
    Ack(EntryId),
    Log { line: Bytes, verdict: Verdict },
}

/// What survives the end of a term: attempts in flight and verdicts without confirmation, by delivery and attempt, with
/// the endpoint's revision that each was made with.
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
    pub delivered: u64,
    pub retried: u64,
    pub dead: u64,
    pub skipped_disabled: u64,
}

pub struct Core {
    policy: RetryPolicy,
    breaker: BreakerSettings,
    max_bytes: usize,
    lanes: HashMap<EndpointId, Lane>,
    jobs: HashMap<JobId, Job>,
    chains: HashMap<ChainId, Links>,
    /// Chains of their own that are in memory, or whose change is not confirmed, by the intent they belong to.
    singles: HashMap<(EndpointId, IntentId), u32>,
    /// Deliveries whose record is about to change: what Redis still shows of them is out of date.
    changing: HashMap<DeliveryId, u32>,
    /// Deliveries of an entry that are neither finished nor recorded. Zero until its acknowledgement is confirmed.
    entries: HashMap<EntryId, u32>,
    /// Delivered and logged, while their entry waits for others: should the term end, they must not go again.
    delivered: HashMap<EntryId, Vec<Verdict>>,
    flights: HashMap<Token, JobId>,
    carried: HashMap<(DeliveryId, u32), Carried>,
    /// Heads that were resumed with their result; empty between inputs.
    landed: VecDeque<(JobId, Arc<Attempted>)>,
    ready: VecDeque<EndpointId>,
    hungry: VecDeque<EndpointId>,
    ending: VecDeque<EndpointId>,
    alarms: BinaryHeap<std::cmp::Reverse<(u64, EndpointId)>>,
    ageing: VecDeque<(u64, JobId)>,
    outbox: VecDeque<Op>,
    outbox_since: Option<u64>,
    sent: Vec<Op>,
    wishes: Vec<Wish>,
    notes: Vec<Note>,
    /// Entries of which the store refused an item: they stay pending until the next term reads them again.
    aside: HashSet<EntryId>,
    /// Chains of which an item was refused: nothing of them goes on before the next term.
    blocked: HashSet<ChainId>,
    next_id: u64,
    tally: Tally,
}

impl Core {
    pub fn new(policy: RetryPolicy, breaker: BreakerSettings, max_bytes: usize) -> Self {
        Self {
            policy,
            breaker,
            max_bytes,
            lanes: HashMap::new(),
            jobs: HashMap::new(),
            chains: HashMap::new(),
            singles: HashMap::new(),
            changing: HashMap::new(),
            entries: HashMap::new(),
            delivered: HashMap::new(),
            flights: HashMap::new(),
            carried: HashMap::new(),
            landed: VecDeque::new(),
            ready: VecDeque::new(),
            hungry: VecDeque::new(),
            ending: VecDeque::new(),
            alarms: BinaryHeap::new(),
            ageing: VecDeque::new(),
            outbox: VecDeque::new(),
            outbox_since: None,
            sent: Vec::new(),
            wishes: Vec::new(),
            notes: Vec::new(),
            aside: HashSet::new(),
            blocked: HashSet::new(),
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
        match self.lanes.get_mut(endpoint) {
            Some(lane) => (lane.standing, lane.policy) = (standing, policy),
            None => drop(self.lanes.insert(endpoint.clone(), Lane::new(standing, policy, now))),
        }
        self.react(now, endpoint);
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
        let endpoint = delivery.id.endpoint.clone();
        if known.recorded {
            return self.close_one(now, delivery.id.entry);
        }
        let lane = self.lanes.get(&endpoint).expect("the caller told the endpoint's standing");
        if lane.ended().is_some() && !lane.was_owed(delivery.id.entry) {
            self.tally.skipped_disabled += 1;
            return self.close_one(now, delivery.id.entry);
        }
        delivery.ordered = self.joins_intent(&delivery, lane, known);
        let chain = delivery.chain();
        let chain_id = (endpoint, chain);
        if self.blocked.contains(&chain_id) {
            self.aside.insert(delivery.id.entry);
            return;
        }
        let waits_in_redis = match self.chains.get(&chain_id) {
            Some(links) => links.tail_in_redis,
            None => known.ordered > 0 && delivery.ordered,
        };
        let has_head = self.chains.get(&chain_id).is_some_and(|links| links.head.is_some());
        let job = self.insert(delivery, chain_id.1.clone(), Origin::Fresh);
        self.ageing.push_back((now + RECORD_AFTER_MS, job));
        if waits_in_redis {
            self.keep(now, job, Place::Held);
        } else if !has_head {
            self.lead(now, job, &chain_id);
        } else if self.lanes[&chain_id.0].should_park(now, self.share()) {
            self.spill(now, &chain_id);
            self.keep(now, job, Place::Held);
        } else {
            self.chains.entry(chain_id).or_default().followers.push_back(job);
        }
        self.land(now, redis_ms);
    }

    /// A delivery with a record: claimed, or looked up in the backlog.
    pub fn admit_kept(&mut self, now: u64, redis_ms: u64, delivery: Delivery, origin: Origin) {
        let chain_id = (delivery.id.endpoint.clone(), delivery.chain());
        let is_here = self.chains.get(&chain_id).is_some_and(|links| links.head.is_some());
        if is_here || self.changing.contains_key(&delivery.id) || self.blocked.contains(&chain_id) {
            // It is in memory, or its fate is on its way: it was looked at in the backlog a second time.
            return;
        }
        let age = std::time::Duration::from_millis(redis_ms.saturating_sub(delivery.since_ms));
        let lane = self.lanes.get_mut(&chain_id.0).expect("the caller told the endpoint's standing");
        let ended = lane.ended().or_else(|| lane.policy.is_expired(age).then_some(DeadReason::Expired));
        let parks = origin == Origin::Claimed && lane.should_park(now, usize::MAX);
        let job = self.insert(delivery, chain_id.1.clone(), origin);
        let links = self.chains.entry(chain_id.clone()).or_default();
        links.head = Some(job);
        links.tail_in_redis = true;
        match (self.carried_for(job), ended) {
            (Some(carried), _) => self.resume(job, carried),
            (None, Some(reason)) => self.bury(now, redis_ms, job, reason, String::new(), None),
            (None, None) if parks => self.park(now, job),
            (None, None) => {
                let lane = self.lanes.get_mut(&chain_id.0).expect("it was just there");
                match origin {
                    // Its time has come: it goes before what is merely next.
                    Origin::Claimed => lane.queue.push_front(job),
                    Origin::Fresh | Origin::Backlog => lane.queue.push_back(job),
                }
                self.touch(now, &chain_id.0);
            }
        }
        self.land(now, redis_ms);
    }

    /// A backlog was looked at, up to this entry; with none there was no more.
    pub fn looked_at_backlog(&mut self, now: u64, endpoint: &EndpointId, last: Option<EntryId>) {
        let Some(lane) = self.lanes.get_mut(endpoint) else { return };
        lane.looked(last);
        self.touch(now, endpoint);
    }

    /// Whether a delivery has outlived its endpoint's policy.
    pub fn is_expired(&self, delivery: &Delivery, redis_ms: u64) -> bool {
        let age = std::time::Duration::from_millis(redis_ms.saturating_sub(delivery.since_ms));
        self.lanes.get(&delivery.id.endpoint).is_some_and(|lane| lane.policy.is_expired(age))
    }

    /// An attempt has ended. `redis_ms` is Redis' time as far as it is known.
    pub fn attempted(&mut self, now: u64, redis_ms: u64, token: Token, attempted: Attempted, chance: f64) {
        let attempted = Arc::new(attempted);
        let Some(job) = self.flights.remove(&token) else {
            let orphan = self.carried.iter_mut().find(|(_, c)| matches!(c, Carried::Flying(t, _) if *t == token));
            if let Some(((id, _), orphan)) = orphan
                && let Carried::Flying(_, revision) = *orphan
            {
                *orphan = Carried::Ended(attempted, revision);
                let endpoint = id.endpoint.clone();
                self.lanes.entry(endpoint.clone()).and_modify(Lane::forget_attempt);
                self.touch(now, &endpoint);
            }
            return;
        };
        let endpoint = self.jobs[&job].delivery.id.endpoint.clone();
        let lane = self.lanes.get_mut(&endpoint).expect("an attempt has a lane");
        let was_closed = lane.is_breaker_closed(now);
        if lane.ended_attempt(now, &attempted.report.outcome, &self.breaker, chance) && was_closed {
            self.notes.push(Note::BreakerOpened { endpoint: endpoint.clone() });
        }
        self.conclude(now, redis_ms, job, attempted, chance);
        self.land(now, redis_ms);
        self.react(now, &endpoint);
    }

    /// Time has passed: what is old gets its record, and lanes whose time has come are looked at again.
    pub fn tick(&mut self, now: u64) {
        while let Some((at, job)) = self.ageing.front().copied()
            && at <= now
        {
            self.ageing.pop_front();
            self.give_record(now, job);
        }
        while let Some(std::cmp::Reverse((at, endpoint))) = self.alarms.peek().cloned()
            && at <= now
        {
            self.alarms.pop();
            if let Some(lane) = self.lanes.get_mut(&endpoint)
                && lane.alarm_at == Some(at)
            {
                lane.alarm_at = None;
                self.touch(now, &endpoint);
            }
        }
    }

    pub fn next_alarm(&self) -> Option<u64> {
        let alarm = self.alarms.peek().map(|std::cmp::Reverse((at, _))| *at);
        let ageing = self.ageing.front().map(|(at, _)| *at);
        alarm.into_iter().chain(ageing).min()
    }

    // ---- what goes out --------------------------------------------------------------------------------------------

    /// The next attempt to start, endpoint after endpoint in turn.
    pub fn next_send(&mut self, now: u64) -> Option<Send> {
        while let Some(endpoint) = self.ready.pop_front() {
            let lane = self.lanes.get_mut(&endpoint).expect("a ready lane is there");
            lane.is_ready = false;
            if lane.gate(now) != Gate::Open {
                self.touch(now, &endpoint);
                continue;
            }
            let (Some(job), Some(facts)) = (lane.queue.pop_front(), lane.endpoint().cloned()) else { continue };
            lane.started(now);
            self.touch(now, &endpoint);
            let token = self.next();
            self.flights.insert(token, job);
            let job = self.jobs.get_mut(&job).expect("a queued job is there");
            (job.flight, job.revision) = (Some(token), facts.revision);
            return Some(Send { token, delivery: job.delivery.clone(), endpoint: facts });
        }
        None
    }

    pub fn has_room(&self) -> bool {
        self.jobs.len() < MAX_JOBS
            && self.tally.bytes < self.max_bytes
            && self.outbox.len() < MAX_OUTBOX
            && self.aside.len() < MAX_ASIDE
    }

    /// The next endpoint whose backlog is to be looked at: after which entry, and how far.
    pub fn next_backlog(&mut self, now: u64) -> Option<(EndpointId, EntryId, usize)> {
        while let Some(endpoint) = self.hungry.pop_front() {
            let lane = self.lanes.get_mut(&endpoint).expect("a hungry lane is there");
            lane.is_hungry = false;
            let appetite = lane.appetite(now);
            if appetite > 0 {
                lane.looks();
                return Some((endpoint, lane.drained_to, appetite));
            }
        }
        None
    }

    pub fn has_hungry(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// The next endpoint that takes nothing any more and has unfinished deliveries.
    pub fn next_ending(&mut self) -> Option<EndpointId> {
        while let Some(endpoint) = self.ending.pop_front() {
            if self.lanes.get(&endpoint).is_some_and(|lane| lane.ended().is_some() && lane.unfinished > 0) {
                return Some(endpoint);
            }
        }
        None
    }

    pub fn has_ending(&self) -> bool {
        !self.ending.is_empty()
    }

    /// Come back to an ending endpoint later.
    pub fn ends_later(&mut self, endpoint: EndpointId) {
        if !self.ending.contains(&endpoint) {
            self.ending.push_back(endpoint);
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

    pub fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// When the oldest operation that waits was made.
    pub fn outbox_since(&self) -> Option<u64> {
        self.outbox_since
    }

    /// An operation of the caller's own, in its place among the others.
    pub fn also(&mut self, now: u64, item: Item) {
        self.push(now, Op::Item { item, chain: None });
    }

    /// The oldest operations as one settlement; it is [`Core::settled`] or the term ends.
    pub fn settlement(&mut self, now: u64, max: usize, last_read: EntryId) -> Settlement {
        let is_reply = |op: Option<&Op>| matches!(op, Some(Op::Item { item: Item::Reply { .. }, .. }));
        let mut count = self.outbox.len().min(max);
        // An answer goes with what it answers for: an operator is never told the opposite of what was done.
        if count > 1 && is_reply(self.outbox.get(count)) {
            count -= 1;
        }
        self.sent = self.outbox.drain(..count).collect();
        self.outbox_since = (!self.outbox.is_empty()).then_some(now);
        let mut settlement = Settlement { last_read, ..Settlement::default() };
        for op in &self.sent {
            match op {
                Op::Item { item, .. } => settlement.items.push(item.clone()),
                Op::Ack(entry) => settlement.acks.push(*entry),
                Op::Log { line, .. } => settlement.log.push(line.clone()),
            }
        }
        settlement
    }

    pub fn settled(&mut self, now: u64, counts: Vec<(EndpointId, Unfinished)>) {
        for op in std::mem::take(&mut self.sent) {
            match op {
                Op::Ack(entry) => {
                    self.entries.remove(&entry);
                    self.delivered.remove(&entry);
                }
                Op::Log { verdict, .. } => {
                    let waits = self.entries.contains_key(&verdict.id.entry);
                    if waits && verdict.attempted.report.outcome.is_delivered() {
                        self.delivered.entry(verdict.id.entry).or_default().push(verdict);
                    }
                }
                Op::Item { item, chain } => self.confirm(&item, chain),
            }
        }
        for (endpoint, unfinished) in counts {
            self.count(now, &endpoint, unfinished);
        }
    }

    /// The store refused one item and changed nothing: it is set aside, with the entry it belongs to, and the rest
    /// goes again.
    pub fn refused(&mut self, now: u64, at: usize, why: &str) {
        let mut ops: VecDeque<Op> = std::mem::take(&mut self.sent).into();
        let index = ops.iter().enumerate().filter(|(_, op)| matches!(op, Op::Item { .. })).nth(at).map(|(i, _)| i);
        if let Some(Op::Item { item, chain }) = index.and_then(|index| ops.remove(index)) {
            let entry = entry_of(&item);
            self.notes.push(Note::SetAside { item: item_name(&item, entry), why: why.to_owned() });
            self.aside.extend(entry);
            if let Some(chain) = chain {
                // What of the same chain waits to be settled must not overtake it.
                let of_chain = |op: &Op| matches!(op, Op::Item { chain: Some(of), .. } if *of == chain);
                let waiting = ops.iter().chain(&self.outbox).filter(|op| of_chain(op));
                let entries = waiting.filter_map(|op| match op {
                    Op::Item { item, .. } => entry_of(item),
                    Op::Ack(_) | Op::Log { .. } => None,
                });
                self.aside.extend(entries.collect::<Vec<_>>());
                ops.retain(|op| !of_chain(op));
                self.outbox.retain(|op| !of_chain(op));
                self.blocked.insert(chain);
            }
            // No acknowledgement goes without what it stands for.
            ops.retain(|op| !matches!(op, Op::Ack(acked) if self.aside.contains(acked)));
            self.outbox.retain(|op| !matches!(op, Op::Ack(acked) if self.aside.contains(acked)));
        }
        while let Some(op) = ops.pop_back() {
            self.outbox.push_front(op);
        }
        self.outbox_since = Some(now);
    }

    /// What Redis holds of an endpoint, as an answer said.
    pub fn count(&mut self, now: u64, endpoint: &EndpointId, unfinished: Unfinished) {
        if let Some(lane) = self.lanes.get_mut(endpoint) {
            (lane.unfinished, lane.parked) = (unfinished.records, unfinished.parked);
            if lane.ended().is_some() && lane.unfinished > 0 {
                self.ends_later(endpoint.clone());
            }
            self.touch(now, endpoint);
        }
    }

    /// Whether Redis must be asked about an endpoint's chains before a fresh delivery is admitted.
    pub fn must_ask(&self, endpoint: &EndpointId) -> bool {
        self.lanes.get(endpoint).is_some_and(|lane| lane.unfinished > 0)
    }

    pub fn has_lane(&self, endpoint: &EndpointId) -> bool {
        self.lanes.contains_key(endpoint)
    }

    pub fn lanes(&self) -> impl Iterator<Item = (&EndpointId, &Lane)> {
        self.lanes.iter()
    }

    pub fn tally(&self) -> Tally {
        let orphans = self.carried.values().filter(|carried| matches!(carried, Carried::Flying(..))).count();
        Tally { jobs: self.jobs.len(), in_flight: self.flights.len() + orphans, ..self.tally }
    }

    // ---- an operator's requests -----------------------------------------------------------------------------------

    /// A dead letter becomes an unfinished delivery. What of its chain is in memory gets its records first, so that
    /// there is never a second head.
    pub fn revive(&mut self, now: u64, delivery: &Delivery) {
        let chain_id = (delivery.id.endpoint.clone(), delivery.chain());
        self.spill(now, &chain_id);
        self.chains.entry(chain_id.clone()).or_default().tail_in_redis = true;
        let item = Item::Revive { id: delivery.id.clone(), chain: chain_id.1.clone(), record: delivery.to_record() };
        self.push_for(now, chain_id, item);
    }

    /// Gives the head of a chain up, so that the next may go. Tells why it can not.
    pub fn release(&mut self, now: u64, redis_ms: u64, delivery: Delivery, detail: String) -> Result<(), &'static str> {
        let chain_id = (delivery.id.endpoint.clone(), delivery.chain());
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
        let letter = dead_letter(delivery, DeadReason::Released, redis_ms, detail, None);
        self.note_dead(&letter);
        self.chains.entry(chain_id.clone()).or_default().tail_in_redis = true;
        let item = Item::Bury { id: letter.delivery.id.clone(), chain: chain_id.1.clone(), letter: letter.to_record() };
        self.push_for(now, chain_id, item);
        Ok(())
    }

    // ---- the ends of terms ----------------------------------------------------------------------------------------

    /// The term has ended. Nothing in memory is known to stand in Redis; what was sent, and what came of it, is
    /// remembered until the deliveries are read again.
    pub fn end_term(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        for op in sent.into_iter().chain(std::mem::take(&mut self.outbox)) {
            if let Op::Log { verdict, .. } = op {
                self.carried.insert((verdict.id, verdict.attempt), Carried::Ended(verdict.attempted, verdict.revision));
            }
        }
        for verdict in self.delivered.drain().flat_map(|(_, verdicts)| verdicts) {
            self.carried.insert((verdict.id, verdict.attempt), Carried::Ended(verdict.attempted, verdict.revision));
        }
        for (token, job) in std::mem::take(&mut self.flights) {
            let Job { delivery, revision, .. } = &self.jobs[&job];
            self.carried.insert((delivery.id.clone(), delivery.next_attempt()), Carried::Flying(token, *revision));
        }
        self.jobs.clear();
        self.chains.clear();
        self.singles.clear();
        self.changing.clear();
        self.entries.clear();
        self.ready.clear();
        self.hungry.clear();
        self.ending.clear();
        self.alarms.clear();
        self.ageing.clear();
        self.outbox_since = None;
        self.tally.bytes = 0;
        self.aside.clear();
        self.blocked.clear();
        self.lanes.values_mut().for_each(Lane::reset);
        if self.carried.len() > MAX_CARRIED {
            self.carried.retain(|_, carried| matches!(carried, Carried::Flying(..)));
        }
    }

    /// Nobody waits for what is in flight any more: it gets its records.
    pub fn abandon_flights(&mut self, now: u64) {
        let mut flights: Vec<(Token, JobId)> = self.flights.drain().collect();
        flights.sort_unstable();
        for (_, job) in flights {
            self.give_record(now, job);
            let endpoint = self.jobs[&job].delivery.id.endpoint.clone();
            self.lanes.entry(endpoint).and_modify(Lane::forget_attempt);
        }
        self.forget_flights();
    }

    /// Somebody else may own the partition now: what was in flight is aborted and means nothing any more.
    pub fn forget_flights(&mut self) {
        for ((id, _), carried) in &self.carried {
            if matches!(carried, Carried::Flying(..)) {
                self.lanes.entry(id.endpoint.clone()).and_modify(Lane::forget_attempt);
            }
        }
        self.carried.retain(|_, carried| matches!(carried, Carried::Ended(..)));
    }

    /// Whether an item was refused in this term.
    pub fn has_refused(&self) -> bool {
        !self.aside.is_empty()
    }

    /// Everything that could be read again was: what is remembered of the last term means nothing any more.
    pub fn forget_verdicts(&mut self) {
        self.carried.retain(|_, carried| matches!(carried, Carried::Flying(..)));
    }

    /// Somebody else owned the partition: what we remember is theirs to find out.
    pub fn forget_carried(&mut self) {
        self.forget_flights();
        self.carried.clear();
    }

    // ---- inside ---------------------------------------------------------------------------------------------------

    fn next(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// What one lane may queue when all that have something queued shared alike.
    fn share(&self) -> usize {
        (MAX_JOBS / 2 / self.ready.len().max(1)).max(1)
    }

    /// A switch of the order takes effect chain by chain: what is unfinished ends under the rule it began with.
    fn joins_intent(&self, delivery: &Delivery, lane: &Lane, known: Known) -> bool {
        let endpoint = &delivery.id.endpoint;
        let in_order = (endpoint.clone(), Chain::Intent(delivery.intent.clone()));
        if known.ordered > 0 || self.chains.contains_key(&in_order) {
            return true;
        }
        let alone = known.single > 0 || self.singles.contains_key(&(endpoint.clone(), delivery.intent.clone()));
        let rule = lane.endpoint().map(|endpoint| endpoint.ordering).unwrap_or_default();
        rule == Ordering::Intent && !alone
    }

    fn insert(&mut self, delivery: Delivery, chain: Chain, origin: Origin) -> JobId {
        let id = self.next();
        self.tally.bytes += delivery.body.len();
        self.count_single(&delivery.id.endpoint, &chain);
        self.jobs.insert(id, Job { delivery: Arc::new(delivery), chain, origin, flight: None, revision: 0 });
        id
    }

    /// Out of memory, and out of its chain's head.
    fn remove(&mut self, id: JobId) -> Job {
        let job = self.jobs.remove(&id).expect("a job ends once");
        self.tally.bytes -= job.delivery.body.len();
        let endpoint = job.delivery.id.endpoint.clone();
        self.uncount_single(&endpoint, &job.chain);
        if let Some(links) = self.chains.get_mut(&(endpoint, job.chain.clone()))
            && links.head == Some(id)
        {
            links.head = None;
        }
        job
    }

    fn count_single(&mut self, endpoint: &EndpointId, chain: &Chain) {
        if let Chain::Single(intent, _) = chain {
            *self.singles.entry((endpoint.clone(), intent.clone())).or_default() += 1;
        }
    }

    fn uncount_single(&mut self, endpoint: &EndpointId, chain: &Chain) {
        let Chain::Single(intent, _) = chain else { return };
        let key = (endpoint.clone(), intent.clone());
        if let Some(count) = self.singles.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.singles.remove(&key);
            }
        }
    }

    /// A head without record: queued, or parked at once.
    fn lead(&mut self, now: u64, job: JobId, chain_id: &ChainId) {
        self.chains.entry(chain_id.clone()).or_default().head = Some(job);
        if let Some(carried) = self.carried_for(job) {
            return self.resume(job, carried);
        }
        let lane = &self.lanes[&chain_id.0];
        // Behind a backlog there is a queue already: nobody jumps it.
        if lane.parked > 0 || lane.should_park(now, self.share()) {
            return self.park(now, job);
        }
        self.lanes.get_mut(&chain_id.0).expect("it was just there").queue.push_back(job);
        self.touch(now, &chain_id.0);
    }

    /// Looks a lane over after anything that may have opened its gate or filled it.
    fn touch(&mut self, now: u64, endpoint: &EndpointId) {
        let Some(lane) = self.lanes.get_mut(endpoint) else { return };
        let gate = lane.gate(now);
        if !lane.queue.is_empty() && gate == Gate::Open && !lane.is_ready {
            lane.is_ready = true;
            self.ready.push_back(endpoint.clone());
        }
        if lane.appetite(now) > 0 && !lane.is_hungry {
            lane.is_hungry = true;
            self.hungry.push_back(endpoint.clone());
        }
        if let Gate::Later(at) = gate
            && (!lane.queue.is_empty() || lane.parked > 0)
            && lane.alarm_at.is_none_or(|alarm| at < alarm)
        {
            lane.alarm_at = Some(at);
            self.alarms.push(std::cmp::Reverse((at, endpoint.clone())));
        }
    }

    /// After a change that may have shut a lane for long: nothing waits in memory for what will not come soon.
    fn react(&mut self, now: u64, endpoint: &EndpointId) {
        let Some(lane) = self.lanes.get_mut(endpoint) else { return };
        if lane.should_park(now, usize::MAX) && !matches!(lane.gate(now), Gate::Open | Gate::Busy) {
            for job in std::mem::take(&mut lane.queue) {
                self.park(now, job);
            }
        }
        if let Some(lane) = self.lanes.get(endpoint)
            && lane.ended().is_some()
            && lane.unfinished > 0
        {
            self.ends_later(endpoint.clone());
        }
        self.touch(now, endpoint);
    }

    fn unqueue(&mut self, job: JobId) {
        let endpoint = self.jobs[&job].delivery.id.endpoint.clone();
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.queue.retain(|queued| *queued != job);
        }
    }

    /// A head leaves memory for the backlog, and what waits behind it is held.
    fn park(&mut self, now: u64, job: JobId) {
        let chain_id = self.chain_id(job);
        match self.jobs[&job].origin {
            Origin::Fresh => self.keep(now, job, Place::Backlog),
            Origin::Claimed => {
                let done = self.remove(job);
                let item = Item::Move { id: done.delivery.id.clone(), chain: done.chain, place: Place::Backlog };
                self.push_for(now, chain_id.clone(), item);
            }
            Origin::Backlog => {
                let done = self.remove(job);
                let lane = self.lanes.get_mut(&chain_id.0).expect("a job has a lane");
                lane.was_parked(done.delivery.id.entry);
            }
        }
        self.hold_followers(now, &chain_id);
        self.tidy(&chain_id);
    }

    /// A fresh delivery leaves memory for its record.
    fn keep(&mut self, now: u64, job: JobId, place: Place) {
        let chain_id = self.chain_id(job);
        let done = self.remove(job);
        let links = self.chains.entry(chain_id.clone()).or_default();
        links.tail_in_redis = true;
        let record = done.delivery.to_record();
        let item = Item::Keep { id: done.delivery.id.clone(), chain: done.chain, place, record };
        self.push_for(now, chain_id, item);
        self.close_one(now, done.delivery.id.entry);
    }

    fn hold_followers(&mut self, now: u64, chain_id: &ChainId) {
        let Some(links) = self.chains.get_mut(chain_id) else { return };
        for job in std::mem::take(&mut links.followers) {
            self.keep(now, job, Place::Held);
        }
    }

    /// Everything of a chain that is in memory gets its record; only an attempt in flight stays.
    fn spill(&mut self, now: u64, chain_id: &ChainId) {
        if let Some(head) = self.chains.get(chain_id).and_then(|links| links.head) {
            self.give_head_record(now, head);
        }
        self.hold_followers(now, chain_id);
    }

    /// A delivery has been in memory for long.
    fn give_record(&mut self, now: u64, job: JobId) {
        let Some(found) = self.jobs.get(&job) else { return };
        if found.origin != Origin::Fresh {
            return;
        }
        let chain_id = self.chain_id(job);
        let is_head = self.chains.get(&chain_id).is_some_and(|links| links.head == Some(job));
        match is_head {
            true => self.give_head_record(now, job),
            false => self.spill(now, &chain_id),
        }
    }

    fn give_head_record(&mut self, now: u64, job: JobId) {
        let found = self.jobs.get_mut(&job).expect("a head is there");
        if found.origin != Origin::Fresh {
            return;
        }
        if found.flight.is_none() {
            self.unqueue(job);
            return self.park(now, job);
        }
        found.origin = Origin::Claimed;
        let delivery = found.delivery.clone();
        let chain_id = self.chain_id(job);
        let record = delivery.to_record();
        let chain = chain_id.1.clone();
        let item = Item::Keep { id: delivery.id.clone(), chain, place: Place::Claimed, record };
        self.push_for(now, chain_id, item);
        self.close_one(now, delivery.id.entry);
    }

    /// An attempt's result becomes a fate.
    fn conclude(&mut self, now: u64, redis_ms: u64, job: JobId, attempted: Arc<Attempted>, chance: f64) {
        let found = self.jobs.get_mut(&job).expect("an attempt has a job");
        found.flight = None;
        let lane = self.lanes.get_mut(&found.delivery.id.endpoint).expect("a job has a lane");
        let attempt = found.delivery.next_attempt();
        let age = std::time::Duration::from_millis(redis_ms.saturating_sub(found.delivery.since_ms));
        let outcome = attempted.report.outcome.clone();
        let fate = lane.policy.decide(found.delivery.attempts + 1, &outcome, age, chance);
        let line = log_line(&found.delivery, attempt, &attempted);
        let revision = found.revision;
        let verdict = Verdict { id: found.delivery.id.clone(), attempt, attempted: attempted.clone(), revision };
        if outcome == Outcome::Gone
            && let Some(endpoint) = lane.endpoint()
            && endpoint.revision == revision
        {
            let endpoint = endpoint.id.clone();
            lane.gone_at = Some(revision);
            self.wishes.push(Wish::Disable { endpoint, revision, why: "the receiver answered 410 Gone".to_owned() });
        }
        if fate != Fate::Delivered {
            Arc::make_mut(&mut found.delivery).remember(attempted.report.clone());
        }
        match fate {
            Fate::Delivered => self.deliver(now, job),
            Fate::RetryAfter(pause) => self.retry(now, job, pause.as_millis() as u64, &outcome),
            Fate::Dead(reason) => self.bury(now, redis_ms, job, reason, String::new(), attempted.request.clone()),
        }
        // After its item: a batch that holds the line holds the item too, or held it before.
        self.push(now, Op::Log { line, verdict });
    }

    fn deliver(&mut self, now: u64, job: JobId) {
        self.tally.delivered += 1;
        let chain_id = self.chain_id(job);
        let done = self.remove(job);
        match done.origin {
            Origin::Fresh => self.close_one(now, done.delivery.id.entry),
            Origin::Claimed | Origin::Backlog => {
                let item = Item::Finish { id: done.delivery.id.clone(), chain: done.chain };
                self.push_for(now, chain_id.clone(), item);
            }
        }
        self.promote(now, chain_id);
    }

    fn retry(&mut self, now: u64, job: JobId, pause_ms: u64, outcome: &Outcome) {
        self.tally.retried += 1;
        let chain_id = self.chain_id(job);
        let delivery = self.jobs[&job].delivery.clone();
        self.notes.push(Note::Failed {
            id: delivery.id.clone(),
            chain: delivery.intent.clone(),
            attempt: delivery.next_attempt() - 1,
            outcome: outcome.clone(),
            retry_in_ms: pause_ms,
        });
        let place = Place::DueIn(pause_ms);
        match self.jobs[&job].origin {
            Origin::Fresh => self.keep(now, job, place),
            Origin::Claimed | Origin::Backlog => {
                let done = self.remove(job);
                let record = delivery.to_record();
                let item = Item::Keep { id: delivery.id.clone(), chain: done.chain, place, record };
                self.push_for(now, chain_id.clone(), item);
            }
        }
        if let Some(links) = self.chains.get_mut(&chain_id) {
            links.tail_in_redis = true;
        }
        self.hold_followers(now, &chain_id);
    }

    fn bury(
        &mut self,
        now: u64,
        redis_ms: u64,
        job: JobId,
        reason: DeadReason,
        detail: String,
        request: Option<SentRequest>,
    ) {
        let chain_id = self.chain_id(job);
        let done = self.remove(job);
        let letter = dead_letter((*done.delivery).clone(), reason, redis_ms, detail, request);
        self.note_dead(&letter);
        let item = Item::Bury { id: done.delivery.id.clone(), chain: done.chain, letter: letter.to_record() };
        self.push_for(now, chain_id.clone(), item);
        if done.origin == Origin::Fresh {
            self.close_one(now, done.delivery.id.entry);
        }
        self.promote(now, chain_id);
    }

    fn note_dead(&mut self, letter: &DeadLetter) {
        self.tally.dead += 1;
        let attempts = letter.delivery.earlier_attempts + letter.delivery.attempts;
        let (id, intent) = (letter.delivery.id.clone(), letter.delivery.intent.clone());
        self.notes.push(Note::Dead { id, intent, reason: letter.reason, attempts });
    }

    /// The head has gone: the first that waits in memory takes its place. What is held in Redis is released there.
    fn promote(&mut self, now: u64, chain_id: ChainId) {
        let Some(links) = self.chains.get_mut(&chain_id) else { return };
        if links.head.is_some() {
            return;
        }
        match links.followers.pop_front() {
            Some(job) => self.lead(now, job, &chain_id),
            None => self.tidy(&chain_id),
        }
        self.touch(now, &chain_id.0);
    }

    fn tidy(&mut self, chain_id: &ChainId) {
        if self.chains.get(chain_id).is_some_and(Links::is_idle) {
            self.chains.remove(chain_id);
        }
    }

    /// One delivery of an entry is finished or recorded; with the last the entry is acknowledged.
    fn close_one(&mut self, now: u64, entry: EntryId) {
        let Some(open) = self.entries.get_mut(&entry) else { return };
        *open = open.saturating_sub(1);
        if *open == 0 && !self.aside.contains(&entry) {
            self.push(now, Op::Ack(entry));
        }
    }

    fn chain_id(&self, job: JobId) -> ChainId {
        let job = &self.jobs[&job];
        (job.delivery.id.endpoint.clone(), job.chain.clone())
    }

    fn push_for(&mut self, now: u64, chain_id: ChainId, item: Item) {
        self.chains.entry(chain_id.clone()).or_default().unsettled += 1;
        self.count_single(&chain_id.0, &chain_id.1);
        if let Some(id) = delivery_of(&item) {
            *self.changing.entry(id.clone()).or_default() += 1;
        }
        self.push(now, Op::Item { item, chain: Some(chain_id) });
    }

    fn push(&mut self, now: u64, op: Op) {
        self.outbox_since.get_or_insert(now);
        self.outbox.push_back(op);
    }

    fn confirm(&mut self, item: &Item, chain: Option<ChainId>) {
        if let Item::Keep { id, place: Place::Backlog, .. } | Item::Move { id, place: Place::Backlog, .. } = item
            && let Some(lane) = self.lanes.get_mut(&id.endpoint)
        {
            lane.was_parked(id.entry);
        }
        if let Some(chain) = chain {
            self.uncount_single(&chain.0, &chain.1);
            self.changed(item);
            if let Some(links) = self.chains.get_mut(&chain) {
                links.unsettled -= 1;
            }
            self.tidy(&chain);
        }
    }

    fn changed(&mut self, item: &Item) {
        if let Some(id) = delivery_of(item)
            && let Some(count) = self.changing.get_mut(id)
        {
            *count -= 1;
            if *count == 0 {
                self.changing.remove(id);
            }
        }
    }

    fn carried_for(&mut self, job: JobId) -> Option<Carried> {
        if self.carried.is_empty() {
            return None;
        }
        let delivery = &self.jobs[&job].delivery;
        self.carried.remove(&(delivery.id.clone(), delivery.next_attempt()))
    }

    /// A head that was in flight, or had ended, when the last term did. Only a head: after Redis forgot something, the
    /// one before it goes again first.
    fn resume(&mut self, job: JobId, carried: Carried) {
        let found = self.jobs.get_mut(&job).expect("it was just admitted");
        match carried {
            Carried::Flying(token, revision) => {
                self.flights.insert(token, job);
                (found.flight, found.revision) = (Some(token), revision);
            }
            Carried::Ended(attempted, revision) => {
                found.revision = revision;
                self.landed.push_back((job, attempted));
            }
        }
    }

    /// Concludes what was resumed with its result known. One may promote the next, so this is a loop and no recursion.
    fn land(&mut self, now: u64, redis_ms: u64) {
        while let Some((job, attempted)) = self.landed.pop_front() {
            self.conclude(now, redis_ms, job, attempted, 0.5);
        }
    }
}

/// The entry that an item stands for.
fn entry_of(item: &Item) -> Option<EntryId> {
    match item {
        Item::Quarantine { entry, .. } => Some(*entry),
        _ => delivery_of(item).map(|id| id.entry),
    }
}

/// The delivery whose record an item changes.
fn delivery_of(item: &Item) -> Option<&DeliveryId> {
    match item {
        Item::Finish { id, .. }
        | Item::Keep { id, .. }
        | Item::Move { id, .. }
        | Item::Bury { id, .. }
        | Item::Revive { id, .. } => Some(id),
        Item::Discard { .. }
        | Item::Quarantine { .. }
        | Item::Requeue { .. }
        | Item::DiscardQuarantined { .. }
        | Item::Bind { .. }
        | Item::Reply { .. } => None,
    }
}

fn dead_letter(
    delivery: Delivery,
    reason: DeadReason,
    died_at_ms: u64,
    detail: String,
    request: Option<SentRequest>,
) -> DeadLetter {
    let SentRequest { url, headers } = request.unwrap_or(SentRequest { url: String::new(), headers: Vec::new() });
    DeadLetter { schema: RECORD_SCHEMA, reason, died_at_ms, detail, url, headers, delivery }
}

fn item_name(item: &Item, entry: Option<EntryId>) -> String {
    let kind = format!("{item:?}");
    let kind = kind.split([' ', '{']).next().unwrap_or_default();
    entry.map_or(kind.to_owned(), |entry| format!("{kind} of entry {entry}"))
}

/// One line of the attempt log.
fn log_line(delivery: &Delivery, attempt: u32, attempted: &Attempted) -> Bytes {
    #[derive(Serialize)]
    struct Line<'a> {
        delivery: &'a DeliveryId,
        event: &'a str,
        intent: &'a str,
        account: &'a str,
        attempt: u32,
        at_ms: u64,
        took_us: u64,
        #[serde(flatten)]
        outcome: &'a Outcome,
        #[serde(skip_serializing_if = "str::is_empty")]
        detail: &'a str,
    }
    let report = &attempted.report;
    let cut = (0..=LOG_DETAIL_BYTES.min(report.detail.len())).rev().find(|at| report.detail.is_char_boundary(*at));
    let line = Line {
        delivery: &delivery.id,
        event: delivery.event.as_str(),
        intent: delivery.intent.as_str(),
        account: delivery.account.as_str(),
        attempt,
        at_ms: report.at_ms,
        took_us: report.timing.total_us,
        outcome: &report.outcome,
        detail: &report.detail[..cut.unwrap_or(0)],
    };
    serde_json::to_vec(&line).expect("a line of strings and numbers is always JSON").into()
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

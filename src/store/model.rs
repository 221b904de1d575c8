//! What the scripts mean, in plain Rust: one partition's state and every call on it. This is the specification:
//! differential tests compare the scripts with it, and the simulator runs on it at memory speed.
//! Never waits, fails or loses an answer; its caller adds that.

pub mod operations;
pub mod routing;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use bytes::Bytes;

use self::operations::Operations;
use super::operations::work::Lost;
use super::protocol::{
    Answer, Asked, CONSUMER, Call, Content, Entry, Failure, GROUP, Item, Kept, Known, LookFrom, MAX_BATCH, MAX_DROPS,
    MAX_READ_BYTES, Place, QUARANTINED_BYTES, Question, RECORD_HEAD_BYTES, RETAIN_PARTS, ReadFrom, Recorded, Request,
    RequestKind, Settlement, Start, Term, Unfinished, Wanted,
};
use crate::facts::{
    delivery::Chain,
    envelope::{AccountSequence, Envelope},
    event::MAX_EVENT_BYTES,
    id::{DeliveryId, EndpointId, EntryId, EventId, IntentId, OperationId},
    letter::LetterFacts,
    partition::Mode,
    stamped::Stamped,
    traceparent::MAX_TRACEPARENT_BYTES,
};

/// The longest lease that a configuration may ask for.
pub const MAX_LEASE_MS: u64 = 60_000;

/// The longest that a worker may ask that a partition be kept for it.
const LONGEST_WISH_MS: u64 = 60_000;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    pub now_ms: u64,
    /// Redis is at `maxmemory`: it takes no more from producers. No call is refused, because each frees or moves
    /// something.
    pub full: bool,
    pub stream: Stream,
    pub lease: Option<Lease>,
    pub mode: Mode,
    /// The split that is to fill this part. Until then it has no owner.
    pub gate: Option<String>,
    /// The last entry of the stream above that this part has taken, or was told is not for it.
    pub routed: Option<EntryId>,
    /// The worker that asks for the partition.
    pub next: Option<Lease>,
    pub cursor: Option<EntryId>,
    pub registry: Option<String>,
    /// The registry's own last change: the registry has keys of its own, and a read returns what is so after the read.
    pub registry_last: Option<Stamped>,
    pub records: BTreeMap<DeliveryId, Bytes>,
    pub due: BTreeMap<DeliveryId, u64>,
    pub claimed: BTreeSet<DeliveryId>,
    pub endpoints: BTreeMap<EndpointId, Chains>,
    /// When it was last noted that an endpoint cannot be read.
    pub unreadable: BTreeMap<EndpointId, u64>,
    pub dead: BTreeMap<DeliveryId, (u64, Bytes)>,
    /// By what dead letters are found, with the time of the death that it is about. A letter of an older Herald has none
    /// yet; and what an older Herald removed still has them.
    pub dead_facts: BTreeMap<DeliveryId, (u64, LetterFacts)>,
    /// Every dead letter from before this time was looked at, for those without facts.
    pub dead_mark: Option<u64>,
    /// The oldest first.
    pub quarantine: Vec<(EntryId, Quarantined)>,
    /// How many entries its limit has dropped.
    pub quarantine_dropped: u64,
    /// For each entry that came back from the quarantine, or is sent again: whose place it has, and the endpoint that alone it is
    /// for.
    pub places: BTreeMap<EntryId, (EntryId, Option<EndpointId>)>,
    /// By time: the entry that every group had passed then.
    pub marks: BTreeMap<u64, EntryId>,
    pub inbox: Inbox,
    pub answers: BTreeMap<EntryId, String>,
    pub log: Vec<Bytes>,
    /// The time of the last look for what is due too late.
    pub clock_seen: u64,
    pub operations: Operations,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stream {
    pub exists: bool,
    pub entries: BTreeMap<EntryId, Vec<(Bytes, Bytes)>>,
    pub last_generated: EntryId,
    pub groups: BTreeMap<String, Group>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    pub last_delivered: EntryId,
    /// Entry → consumer.
    pub pending: BTreeMap<EntryId, String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    pub value: String,
    pub until_ms: u64,
}

/// One endpoint's unfinished deliveries.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chains {
    pub unfinished: u64,
    /// Records without order, by their intent's name in scripts.
    pub singles: BTreeMap<String, u64>,
    /// Bytes of the records, as far as they were counted: never negative once a settle has ended.
    pub bytes: i64,
    pub heads: BTreeMap<String, EntryId>,
    pub held: BTreeSet<(IntentId, EntryId)>,
    pub backlog: BTreeSet<EntryId>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Quarantined {
    pub body: Bytes,
    pub cut: bool,
    pub error: String,
    pub envelope: Envelope,
    /// The entry whose place in the order it has.
    pub place: EntryId,
    /// A sound event, which no limit drops.
    pub is_sound: bool,
}

impl Quarantined {
    /// How much of the quarantine's limit it takes.
    pub fn bytes(&self) -> u64 {
        (self.body.len() + self.error.len() + QUARANTINED_BYTES) as u64
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inbox {
    pub requests: BTreeMap<EntryId, Asking>,
    pub last: u64,
}

/// What is asked, by whom and why, and for which operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Asking {
    pub asked: Asked,
    pub mark: Bytes,
    pub operation: Option<OperationId>,
}

impl Model {
    /// `XADD` with one field `event`.
    pub fn publish(&mut self, id: EntryId, body: Bytes) {
        self.add_entry(id, vec![(Bytes::from_static(b"event"), body)]);
    }

    pub fn add_entry(&mut self, id: EntryId, fields: Vec<(Bytes, Bytes)>) {
        self.stream.exists = true;
        self.stream.entries.insert(id, fields);
        self.stream.last_generated = id;
    }

    /// What another process appends to the inbox.
    pub fn ask(&mut self, asked: Asked, mark: Bytes) -> EntryId {
        self.ask_for(Asking { asked, mark, operation: None })
    }

    fn ask_for(&mut self, asking: Asking) -> EntryId {
        self.inbox.last += 1;
        let id = EntryId { ms: self.inbox.last, seq: 0 };
        self.inbox.requests.insert(id, asking);
        id
    }

    /// What must hold between any two calls: every record stands in exactly one place, every chain has one head, and
    /// the counts are right. The error says what does not hold.
    pub fn check(&self) -> Result<(), String> {
        let mut standing = 0;
        let mut bytes: BTreeMap<&EndpointId, i64> = BTreeMap::new();
        self.records.iter().for_each(|(id, record)| *bytes.entry(&id.endpoint).or_default() += record.len() as i64);
        for (endpoint, chains) in &self.endpoints {
            if bytes.get(endpoint).copied().unwrap_or_default() != chains.bytes {
                return Err(format!("the records of {endpoint} are weighed wrongly: {}", chains.bytes));
            }
            let mut singles = 0;
            let mut parked = 0;
            for (field, entry) in &chains.heads {
                let id = DeliveryId { entry: *entry, endpoint: endpoint.clone() };
                let is_parked = chains.backlog.contains(entry);
                let places = [self.due.contains_key(&id), self.claimed.contains(&id), is_parked];
                if !self.records.contains_key(&id) || places.iter().filter(|stands| **stands).count() != 1 {
                    return Err(format!("the head {id} stands in [due, claimed, backlog] = {places:?}"));
                }
                parked += usize::from(is_parked);
                singles += u64::from(field.starts_with('~'));
            }
            for (intent, entry) in &chains.held {
                let id = DeliveryId { entry: *entry, endpoint: endpoint.clone() };
                if !self.records.contains_key(&id) || !chains.heads.contains_key(intent.as_str()) {
                    return Err(format!("{id} is held without a record, or behind no head"));
                }
                if chains.heads.values().any(|head| head == entry) {
                    return Err(format!("{id} is held and a head"));
                }
            }
            if chains.singles.values().sum::<u64>() != singles
                || chains.unfinished != (chains.heads.len() + chains.held.len()) as u64
                || chains.backlog.len() != parked
            {
                return Err(format!("{endpoint} is counted wrongly: {chains:?}"));
            }
            standing += chains.heads.len() + chains.held.len();
        }
        match self.due.keys().chain(&self.claimed).find(|id| !self.records.contains_key(*id)) {
            Some(id) => Err(format!("{id} is due or claimed without a record")),
            None if standing != self.records.len() => Err("a record stands nowhere".to_owned()),
            None => Ok(()),
        }
    }

    /// What must hold once no older Herald has written anything since the last sweep: every dead letter is indexed, and
    /// for its own death, and nothing else is.
    pub fn check_indexes(&self) -> Result<(), String> {
        for (id, (at_ms, _)) in &self.dead {
            if self.dead_facts.get(id).map(|(of_ms, _)| of_ms) != Some(at_ms) {
                return Err(format!("the dead letter {id} is not indexed, or for another death"));
            }
        }
        match self.dead_facts.len() == self.dead.len() {
            true => Ok(()),
            false => Err("something is indexed that is no dead letter".to_owned()),
        }
    }

    /// And that each is indexed as what it is. This reads every letter.
    pub fn check_facts(&self) -> Result<(), String> {
        let is_wrong = |(id, (_, letter)): &(&DeliveryId, &(u64, Bytes))| {
            self.dead_facts.get(*id).is_some_and(|(_, facts)| *facts != LetterFacts::of_record(letter))
        };
        match self.dead.iter().find(is_wrong) {
            Some((id, _)) => Err(format!("the dead letter {id} is indexed as what it is not")),
            None => Ok(()),
        }
    }

    pub fn call(&mut self, call: &Call) -> Result<Answer, Failure> {
        let fence = self.fence(call.term());
        Ok(match (call, fence) {
            (Call::Acquire { term, previous, ttl_ms }, _) => self.acquire(term, previous, *ttl_ms),
            (_, Err(Lost)) => Answer::Lost,
            (call, Ok(())) => self.fenced(call),
        })
    }

    /// Whether this term has the lease.
    pub fn fence(&mut self, term: &Term) -> Result<(), Lost> {
        self.lease.take_if(|lease| lease.until_ms <= self.now_ms);
        match &self.lease {
            Some(lease) if lease.value == term.as_str() => Ok(()),
            _ => Err(Lost),
        }
    }

    fn fenced(&mut self, call: &Call) -> Answer {
        match call {
            Call::Acquire { .. } => Answer::Lost,
            Call::Renew { ttl_ms, .. } => {
                let until_ms = self.now_ms + ttl_ms;
                self.lease.iter_mut().for_each(|lease| lease.until_ms = until_ms);
                Answer::Renewed { next: self.asking() }
            }
            Call::Release { .. } => {
                self.lease = None;
                Answer::Released
            }
            Call::Recover { max, .. } => self.recover(*max),
            Call::Open { start, registry, .. } => self.open(*start, registry),
            Call::Counts { .. } => {
                let has_some = |endpoint: &EndpointId| self.endpoints.get(endpoint).is_some_and(|c| c.unfinished > 0);
                let counts = self.endpoints.iter().filter(|(endpoint, _)| has_some(endpoint));
                let unreadable = self.unreadable.iter().filter(|(endpoint, _)| has_some(endpoint));
                Answer::Counts {
                    counts: counts.map(|(endpoint, chains)| (endpoint.clone(), chains.sum())).collect(),
                    unreadable: unreadable.map(|(endpoint, at_ms)| (endpoint.clone(), *at_ms)).collect(),
                    cursor: 0,
                }
            }
            Call::Read { from, max, .. } => self.read(*from, *max),
            Call::Ask { deliveries, suspect, .. } => self.asked(deliveries, *suspect),
            Call::Settle { settlement, .. } => self.settle(settlement),
            Call::Claim { max, .. } => self.claim(*max),
            Call::PullIn { from_ms, by_ms, max, .. } => self.pull_in(*from_ms, *by_ms, *max),
            Call::Backlog { endpoint, after, max, .. } => {
                let parked = self.endpoints.get(endpoint).map(|chains| chains.backlog.clone()).unwrap_or_default();
                let after = (std::ops::Bound::Excluded(*after), std::ops::Bound::Unbounded);
                let kept = parked.range(after).take(*max).map(|entry| self.kept(*entry, endpoint)).collect();
                Answer::Backlog { kept, now_ms: self.now_ms }
            }
            Call::TakeHeads { endpoint, max, .. } => self.take_heads(endpoint, *max),
            Call::ClaimForeign { max, .. } => self.claim_foreign(*max),
            Call::Inbox { after, max, .. } => self.requests(*after, *max),
            Call::Trim { retain_ms, up_to, ignores, .. } => self.trim(*retain_ms, *up_to, ignores),
            Call::ExpireDead { max_age_ms, max_count, max, .. } => self.expire_dead(*max_age_ms, *max_count, *max),
            Call::Unindexed { from, look, max, .. } => self.unindexed(from, *look, *max),
            Call::SweepDead { .. } => {
                let before = self.dead_facts.len();
                self.dead_facts.retain(|id, _| self.dead.contains_key(id));
                Answer::SweptDead { count: (before - self.dead_facts.len()) as u64, cursor: 0 }
            }
            Call::NoteUnreadable { endpoints, holds_ms, .. } => {
                self.unreadable
                    .extend(endpoints.iter().take(MAX_BATCH).map(|endpoint| (endpoint.clone(), self.now_ms)));
                self.unreadable.retain(|_, at_ms| *at_ms > self.now_ms.saturating_sub(*holds_ms));
                Answer::Noted { now_ms: self.now_ms }
            }
        }
    }

    fn acquire(&mut self, term: &Term, previous: &[Term], ttl_ms: u64) -> Answer {
        if let Some(token) = &self.gate {
            return Answer::Gated { token: token.clone() };
        }
        let is_own = |lease: &Lease| previous.iter().any(|own| own.as_str() == lease.value);
        if let Some(lease) = self.lease.as_mut().filter(|lease| !is_own(lease)) {
            // Nobody takes a longer lease: Redis' clock was set back since, and its owner may be gone.
            if lease.until_ms - self.now_ms > ttl_ms.max(MAX_LEASE_MS) {
                lease.until_ms = self.now_ms + ttl_ms;
            }
        }
        match &self.lease {
            Some(lease) if !previous.iter().any(|own| own.as_str() == lease.value) => {
                Answer::Taken { by: Term::owner_of(&lease.value).to_owned(), left_ms: lease.until_ms - self.now_ms }
            }
            lease => {
                let is_free = lease.is_none();
                let asking = self.asking();
                let is_asking = asking.as_deref() == Some(term.worker());
                if let (Some(worker), Some(next)) = (asking.filter(|_| is_free && !is_asking), &mut self.next) {
                    // Nobody asks for longer: Redis' clock was set back since.
                    if next.until_ms - self.now_ms > LONGEST_WISH_MS {
                        next.until_ms = self.now_ms + 3_000;
                    }
                    return Answer::Reserved { worker, left_ms: next.until_ms - self.now_ms };
                }
                self.lease = Some(Lease { value: term.as_str().to_owned(), until_ms: self.now_ms + ttl_ms });
                self.next.take_if(|_| is_asking);
                Answer::Acquired { now_ms: self.now_ms, mode: Ok(self.mode.clone()) }
            }
        }
    }

    /// The worker that asks for the partition.
    fn asking(&mut self) -> Option<String> {
        self.next.take_if(|next| next.until_ms <= self.now_ms);
        self.next.as_ref().map(|next| next.value.clone())
    }

    /// Asks the owner for the partition, and keeps it for this worker for so long.
    pub fn want(&mut self, worker: &str, holds_ms: u64) -> Wanted {
        self.lease.take_if(|lease| lease.until_ms <= self.now_ms);
        match (self.asking(), &self.lease) {
            (Some(asking), _) if asking != worker => Wanted::Busy { worker: asking },
            (_, None) => Wanted::Free,
            (_, Some(lease)) => {
                self.next = Some(Lease { value: worker.to_owned(), until_ms: self.now_ms + holds_ms });
                let owner = Term::owner_of(&lease.value).to_owned();
                Wanted::Asked { owner, left_ms: lease.until_ms - self.now_ms }
            }
        }
    }

    fn recover(&mut self, max: usize) -> Answer {
        let moved: Vec<_> = self.claimed.iter().take(max).cloned().collect();
        for id in &moved {
            self.claimed.remove(id);
            self.due.insert(id.clone(), self.now_ms);
        }
        Answer::Recovered { moved: moved.len() }
    }

    /// A lost group starts again from the cursor; in another stream than the cursor's, it starts from the beginning.
    fn open(&mut self, start: Start, registry: &str) -> Answer {
        let bound = self.registry.get_or_insert_with(|| registry.to_owned()).clone();
        let group = self.stream.groups.get(GROUP);
        let last_generated = self.stream.last_generated;
        let is_set_back = self.cursor.is_some_and(|cursor| match group {
            Some(group) => group.last_delivered < cursor,
            None => self.is_another_stream(cursor, start),
        });
        let made_after = match (self.stream.groups.contains_key(GROUP), self.cursor, start) {
            (true, ..) => None,
            (false, Some(_), _) if is_set_back => Some(EntryId::ZERO),
            (false, Some(cursor), _) => Some(cursor),
            (false, None, Start::Oldest) => Some(EntryId::ZERO),
            (false, None, Start::Newest) => Some(last_generated),
            (false, None, Start::After(id)) => Some(id),
        };
        if let Some(last_delivered) = made_after {
            self.stream.exists = true;
            self.stream.groups.insert(GROUP.to_owned(), Group { last_delivered, ..Group::default() });
            self.cursor = Some(last_delivered);
        }
        let last_delivered = self.stream.groups[GROUP].last_delivered;
        Answer::Opened { made_after, last_delivered, last_generated, registry: bound, is_set_back }
    }

    /// Whether nothing is left of the stream that the cursor is about. Its entries are trimmed from the oldest on, and
    /// only up to what is settled: so if any entry is left that is not after the cursor, then so is the last one read
    /// or the first one pending.
    pub fn is_another_stream(&self, cursor: EntryId, start: Start) -> bool {
        let stream = &self.stream;
        let is_at_cursor = |id: &EntryId| *id == cursor || id.before() == cursor;
        match stream.last_generated.cmp(&cursor) {
            _ if start == Start::After(cursor) => false,
            Ordering::Equal => false,
            Ordering::Less => true,
            Ordering::Greater => {
                let is_before = stream.entries.range(..=cursor).next().is_some();
                is_before && !stream.entries.range(cursor..).next().is_some_and(|(id, _)| is_at_cursor(id))
            }
        }
    }

    fn read(&mut self, from: ReadFrom, max: usize) -> Answer {
        let Some(group) = self.stream.groups.get_mut(GROUP) else { return Answer::NoGroup };
        let ids: Vec<EntryId> = match from {
            ReadFrom::Pending(after) => {
                let after = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
                group
                    .pending
                    .range(after)
                    .filter(|(_, owner)| *owner == CONSUMER)
                    .map(|(id, _)| *id)
                    .take(max)
                    .collect()
            }
            ReadFrom::New => {
                let after = (std::ops::Bound::Excluded(group.last_delivered), std::ops::Bound::Unbounded);
                self.stream.entries.range(after).map(|(id, _)| *id).take(max).collect()
            }
        };
        let mut bytes = 0;
        let mut entries = Vec::new();
        for id in ids {
            let content = self.stream.entries.get(&id).map_or(Content::Trimmed, |fields| content_of(fields));
            bytes += content_bytes(&content);
            if from == ReadFrom::New {
                group.last_delivered = id;
                group.pending.insert(id, CONSUMER.to_owned());
            }
            let (place, only) = self.places.get(&id).cloned().unzip();
            let only = only.flatten().filter(|_| matches!(content, Content::Event { .. }));
            entries.push(Entry { id, place, only, content });
            if bytes >= MAX_READ_BYTES {
                break;
            }
        }
        Answer::Entries { entries, now_ms: self.now_ms, registry: self.registry_last }
    }

    fn asked(&self, deliveries: &[Question], suspect: bool) -> Answer {
        let known = |(id, intent, event): &Question| {
            let of = self.endpoints.get(&id.endpoint);
            let ordered = of.is_some_and(|chains| chains.heads.contains_key(intent.as_str()));
            let single = of.is_some_and(|chains| chains.singles.contains_key(&format!("~{intent}")));
            let there: Vec<&Bytes> =
                self.records.get(id).into_iter().chain(self.dead.get(id).map(|(_, letter)| letter)).collect();
            let recorded = match suspect || ordered || single {
                false => Recorded::Nothing,
                true if there.is_empty() => Recorded::Nothing,
                true if there.iter().any(|record| is_of(record, event)) => Recorded::This,
                true => Recorded::Another,
            };
            Known { ordered, single, recorded }
        };
        Answer::Asked { known: deliveries.iter().take(MAX_BATCH).map(known).collect() }
    }

    fn settle(&mut self, settlement: &Settlement) -> Answer {
        if settlement.len() > MAX_BATCH {
            return Answer::BadItem { at: 0, why: format!("a batch holds at most {MAX_BATCH}") };
        }
        let touched = self.apply_all(&settlement.items);
        let group = self.stream.groups.get_mut(GROUP);
        let group_missing = group.is_none();
        if let Some(group) = group {
            settlement.acks.iter().for_each(|id| drop(group.pending.remove(id)));
            // Where the stream is split, it says how far the parts are.
            if self.mode == Mode::Worked {
                let lowest = group.pending.keys().next();
                self.cursor = Some(lowest.map_or(settlement.last_read, |id| id.before()));
            }
        }
        self.log.extend(settlement.log.iter().cloned());
        Answer::Settled {
            now_ms: self.now_ms,
            next_due_ms: self.next_due(),
            counts: touched.into_iter().map(|endpoint| (endpoint.clone(), self.sum(endpoint))).collect(),
            group_missing,
        }
    }

    /// Returns the endpoints whose counts may have changed.
    fn apply_all<'a>(&mut self, items: &'a [Item]) -> BTreeSet<&'a EndpointId> {
        items.iter().for_each(|item| self.apply(item));
        let touched: BTreeSet<_> = items.iter().filter_map(endpoint_of).collect();
        for endpoint in &touched {
            if let Some(chains) = self.endpoints.get_mut(*endpoint) {
                chains.bytes = if chains.unfinished == 0 { 0 } else { chains.bytes.max(0) };
            }
        }
        touched
    }

    fn apply(&mut self, item: &Item) {
        match item {
            Item::Finish { id, chain } => self.finish(id, chain),
            Item::Keep { id, chain, place, record } => match self.records.insert(id.clone(), record.clone()) {
                Some(before) => {
                    self.grow(id, record.len() as i64 - before.len() as i64);
                    self.place(id, chain, *place);
                }
                None => {
                    self.grow(id, record.len() as i64);
                    self.begin(id, chain, *place);
                }
            },
            Item::Move { id, chain, place } if self.records.contains_key(id) => self.place(id, chain, *place),
            Item::Move { .. } => {}
            Item::Bury { id, chain, facts, letter } => {
                self.dead.insert(id.clone(), (self.now_ms, letter.clone()));
                self.dead_facts.insert(id.clone(), (self.now_ms, (**facts).clone()));
                self.finish(id, chain);
            }
            Item::Revive { id, chain, record } => {
                self.dead_facts.remove(id);
                if self.dead.remove(id).is_some() && !self.records.contains_key(id) {
                    self.records.insert(id.clone(), record.clone());
                    self.grow(id, record.len() as i64);
                    self.begin(id, chain, Place::Held);
                }
            }
            Item::Discard { id } => {
                self.dead_facts.remove(id);
                self.dead.remove(id);
            }
            Item::Index { id, facts } => {
                if let Some((at_ms, _)) = self.dead.get(id)
                    && self.dead_facts.get(id).is_none_or(|(of, _)| of != at_ms)
                {
                    self.dead_facts.insert(id.clone(), (*at_ms, (**facts).clone()));
                }
            }
            Item::Take { id, .. } if self.records.contains_key(id) => {}
            Item::Take { id, chain, place, record } => {
                self.records.insert(id.clone(), record.clone());
                self.grow(id, record.len() as i64);
                self.begin(id, chain, *place);
            }
            Item::TakeLetter { id, .. } if self.dead.contains_key(id) => {}
            Item::TakeLetter { id, at_ms, facts, letter } => {
                self.dead.insert(id.clone(), (*at_ms, letter.clone()));
                self.dead_facts.insert(id.clone(), (*at_ms, (**facts).clone()));
            }
            Item::TakeUnreadable { endpoint, at_ms } => {
                let noted = self.unreadable.entry(endpoint.clone()).or_default();
                *noted = (*noted).max(*at_ms);
            }
            Item::Quarantine { entry, body, cut, error, envelope, keep_bytes } => {
                let place = self.places.get(entry).map_or(*entry, |(place, _)| *place);
                let (body, error, envelope) = (body.clone(), error.clone(), envelope.clone());
                let quarantined =
                    Quarantined { body, cut: *cut, error, envelope, place, is_sound: keep_bytes.is_none() };
                self.quarantine(*entry, quarantined, *keep_bytes);
            }
            Item::Requeue { entry } => self.requeue(*entry),
            Item::DiscardQuarantined { entry } => self.leave_quarantine(*entry),
            Item::Bind { registry } => self.registry = Some(registry.clone()),
            Item::Reply { request, answer } => {
                if self.inbox.requests.remove(request).is_some() {
                    self.answers.insert(*request, answer.clone());
                }
            }
        }
    }

    fn quarantine(&mut self, entry: EntryId, quarantined: Quarantined, keep_bytes: Option<u64>) {
        // An entry with the same id and another body is another event, from an earlier stream.
        if self.quarantine.iter().any(|(other, found)| *other == entry && found.body == quarantined.body) {
            return;
        }
        self.quarantine.push((entry, quarantined));
        let Some(keep_bytes) = keep_bytes else { return };
        let mut bytes: u64 = self.quarantine.iter().map(|(_, quarantined)| quarantined.bytes()).sum();
        for _ in 0..MAX_DROPS {
            if bytes <= keep_bytes || self.quarantine.len() == 1 {
                return;
            }
            let (entry, oldest) = self.quarantine.remove(0);
            if oldest.is_sound {
                // Moved out of the way of those behind it.
                self.quarantine.push((entry, oldest));
            } else {
                bytes -= oldest.bytes();
                self.quarantine_dropped += 1;
            }
        }
    }

    /// The oldest entry with this id.
    fn quarantined(&self, entry: EntryId) -> Option<&Quarantined> {
        self.quarantine.iter().find(|(quarantined, _)| *quarantined == entry).map(|(_, found)| found)
    }

    fn leave_quarantine(&mut self, entry: EntryId) {
        if let Some(at) = self.quarantine.iter().position(|(quarantined, _)| *quarantined == entry) {
            self.quarantine.remove(at);
        }
    }

    /// Only a key of Herald's own says that an entry has another's place: a producer cannot claim one.
    fn requeue(&mut self, entry: EntryId) {
        let Some(found) = self.quarantined(entry).filter(|found| !found.cut).cloned() else { return };
        self.leave_quarantine(entry);
        let id = self.next_entry();
        let mut fields = vec![(Bytes::from_static(b"event"), found.body)];
        if let Some(traceparent) = &found.envelope.traceparent {
            let traceparent = Bytes::copy_from_slice(traceparent.as_str().as_bytes());
            fields.push((Bytes::from_static(b"traceparent"), traceparent));
        }
        if let Some(number) = found.envelope.account_sequence {
            fields.push((Bytes::from_static(b"account-sequence"), number.to_string().into()));
        }
        self.add_entry(id, fields);
        self.places.insert(id, (found.place, None));
    }

    /// The id that Redis gives out next.
    fn next_entry(&self) -> EntryId {
        let last = self.stream.last_generated;
        let next = match last.seq.checked_add(1) {
            Some(seq) => EntryId { ms: last.ms, seq },
            None => EntryId { ms: last.ms + 1, seq: 0 },
        };
        EntryId { ms: self.now_ms, seq: 0 }.max(next)
    }

    fn grow(&mut self, id: &DeliveryId, by: i64) {
        self.endpoints.entry(id.endpoint.clone()).or_default().bytes += by;
    }

    /// A new record joins its chain.
    fn begin(&mut self, id: &DeliveryId, chain: &Chain, place: Place) {
        let now = self.now_ms;
        let chains = self.endpoints.entry(id.endpoint.clone()).or_default();
        chains.unfinished += 1;
        if let Chain::Single(..) = chain {
            *chains.singles.entry(chain.name()).or_default() += 1;
        }
        let free = !chains.heads.contains_key(&chain.head_field());
        match (free, place) {
            (false, _) => drop(chains.held.insert((chain.intent().clone(), id.entry))),
            (true, Place::Held) => {
                chains.heads.insert(chain.head_field(), id.entry);
                self.due.insert(id.clone(), now);
            }
            (true, place) => {
                chains.heads.insert(chain.head_field(), id.entry);
                self.put(id, place);
            }
        }
    }

    /// An existing record changes its place if it is its chain's head; what is held stays held.
    fn place(&mut self, id: &DeliveryId, chain: &Chain, place: Place) {
        let chains = self.endpoints.entry(id.endpoint.clone()).or_default();
        if place != Place::Held && chains.heads.get(&chain.head_field()) == Some(&id.entry) {
            self.lift(id);
            self.put(id, place);
        }
    }

    fn put(&mut self, id: &DeliveryId, place: Place) {
        match place {
            Place::DueIn(ms) => drop(self.due.insert(id.clone(), self.now_ms + ms)),
            Place::Claimed => drop(self.claimed.insert(id.clone())),
            Place::Backlog => drop(self.endpoints.entry(id.endpoint.clone()).or_default().backlog.insert(id.entry)),
            Place::Held => unreachable!("only a record with a head before it is held"),
        }
    }

    fn lift(&mut self, id: &DeliveryId) {
        self.due.remove(id);
        self.claimed.remove(id);
        if let Some(chains) = self.endpoints.get_mut(&id.endpoint) {
            chains.backlog.remove(&id.entry);
        }
    }

    fn finish(&mut self, id: &DeliveryId, chain: &Chain) {
        let Some(record) = self.records.remove(id) else { return };
        self.grow(id, -(record.len() as i64));
        self.lift(id);
        let now = self.now_ms;
        let chains = self.endpoints.get_mut(&id.endpoint).expect("a record is counted");
        chains.unfinished -= 1;
        if let Chain::Single(..) = chain {
            let count = chains.singles.get_mut(&chain.name()).expect("a record without order is counted");
            *count -= 1;
            if *count == 0 {
                chains.singles.remove(&chain.name());
            }
        }
        if chains.heads.get(&chain.head_field()) != Some(&id.entry) {
            chains.held.remove(&(chain.intent().clone(), id.entry));
            return;
        }
        chains.heads.remove(&chain.head_field());
        let Chain::Intent(intent) = chain else { return };
        let first = (intent.clone(), EntryId::ZERO);
        let next = chains.held.range(first..).next().filter(|(of, _)| of == intent).cloned();
        if let Some((_, entry)) = &next {
            chains.held.remove(&(intent.clone(), *entry));
            chains.heads.insert(chain.head_field(), *entry);
            self.due.insert(DeliveryId { entry: *entry, endpoint: id.endpoint.clone() }, now);
        }
    }

    fn claim(&mut self, max: usize) -> Answer {
        let mut due: Vec<_> =
            self.due.iter().filter(|(_, at)| **at <= self.now_ms).map(|(id, at)| (*at, id.clone())).collect();
        due.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.to_string().cmp(&b.1.to_string())));
        let mut bytes = 0;
        let mut kept = Vec::new();
        for (_, id) in due.into_iter().take(max) {
            self.due.remove(&id);
            self.claimed.insert(id.clone());
            let record = self.records.get(&id).cloned();
            bytes += record.as_ref().map_or(0, Bytes::len);
            kept.push((id, record));
            if bytes >= MAX_READ_BYTES {
                break;
            }
        }
        Answer::Claimed { kept, now_ms: self.now_ms, next_due_ms: self.next_due() }
    }

    fn pull_in(&mut self, from_ms: u64, by_ms: u64, max: usize) -> Answer {
        let mut late: Vec<_> = self
            .due
            .iter()
            .filter(|(_, at)| **at >= from_ms)
            .map(|(id, at)| (*at, id.to_string(), id.clone()))
            .collect();
        late.sort();
        late.truncate(max);
        for (at, _, id) in &late {
            self.due.insert(id.clone(), at.saturating_sub(by_ms));
        }
        let last_ms = late.last().map_or(0, |(at, ..)| *at);
        let seen = std::mem::replace(&mut self.clock_seen, self.now_ms);
        Answer::PulledIn {
            moved: late.len(),
            last_ms,
            set_back_ms: seen.saturating_sub(self.now_ms),
            now_ms: self.now_ms,
            next_due_ms: self.next_due(),
        }
    }

    fn take_heads(&mut self, endpoint: &EndpointId, max: usize) -> Answer {
        let heads: Vec<EntryId> =
            self.endpoints.get(endpoint).map(|c| c.heads.values().copied().collect()).unwrap_or_default();
        let ids = heads.into_iter().map(|entry| DeliveryId { entry, endpoint: endpoint.clone() });
        let ids: Vec<_> = ids.filter(|id| !self.claimed.contains(id)).take(max).collect();
        for id in &ids {
            self.lift(id);
            self.claimed.insert(id.clone());
        }
        let kept = ids.into_iter().map(|id| self.kept(id.entry, endpoint)).collect();
        Answer::Heads { kept, now_ms: self.now_ms }
    }

    fn claim_foreign(&mut self, max: usize) -> Answer {
        let Some(group) = self.stream.groups.get_mut(GROUP) else { return Answer::NoGroup };
        let foreign: Vec<EntryId> =
            group.pending.iter().filter(|(_, owner)| *owner != CONSUMER).map(|(id, _)| *id).take(max).collect();
        foreign.iter().for_each(|id| drop(group.pending.insert(*id, CONSUMER.to_owned())));
        Answer::ClaimedForeign { count: foreign.len(), lowest: foreign.first().copied() }
    }

    fn requests(&self, after: EntryId, max: usize) -> Answer {
        let after = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        let letter = |id: &DeliveryId| self.dead.get(id).map(|(_, letter)| letter.clone());
        let what = |asked: &Asked| match asked {
            Asked::Redeliver(id) => RequestKind::Redeliver { id: id.clone(), letter: letter(id) },
            Asked::Discard(id) => RequestKind::Discard { id: id.clone(), letter: letter(id) },
            Asked::Release(endpoint, intent, meant) => {
                let entry = self.endpoints.get(endpoint).and_then(|chains| chains.heads.get(intent.as_str()));
                let head = entry.map(|entry| self.kept(*entry, endpoint));
                RequestKind::Release { endpoint: endpoint.clone(), intent: intent.clone(), head, meant: *meant }
            }
            Asked::Requeue(entry) => {
                let found = self.quarantined(*entry);
                RequestKind::Requeue { entry: *entry, exists: found.is_some(), cut: found.is_some_and(|q| q.cut) }
            }
            Asked::DiscardQuarantined(entry) => {
                RequestKind::DiscardQuarantined { entry: *entry, exists: self.quarantined(*entry).is_some() }
            }
            Asked::AcceptRegistry(registry) => RequestKind::AcceptRegistry { registry: registry.clone() },
            Asked::Repartition(parts) => RequestKind::Repartition { parts: *parts },
            Asked::CancelRepartition => RequestKind::CancelRepartition,
        };
        let requests = self.inbox.requests.range(after).take(max);
        // What an operation has under way, nobody else changes.
        let holder = |asking: &Asking| match &asking.asked {
            Asked::Redeliver(id) | Asked::Discard(id) => self.operations.claims.get(id).map(|claim| claim.by.clone()),
            _ => None,
        };
        let requests = requests.map(|(id, asking)| Request {
            id: *id,
            what: what(&asking.asked),
            mark: asking.mark.clone(),
            operation: asking.operation.clone(),
            held_by: holder(asking).filter(|holder| asking.operation.as_ref() != Some(holder)),
        });
        Answer::Requests { requests: requests.collect() }
    }

    /// Without Herald's own group nothing is trimmed: until it is made again, the other groups may have passed entries
    /// that Herald has not settled.
    fn trim(&mut self, retain_ms: u64, up_to: Option<EntryId>, ignores: &[String]) -> Answer {
        if !self.stream.groups.contains_key(GROUP) {
            return Answer::NoGroup;
        }
        let counted = self.stream.groups.iter().filter(|(name, _)| *name == GROUP || !ignores.contains(name));
        let passed = counted.map(|(_, group)| match group.pending.keys().next() {
            Some(lowest) => lowest.before(),
            None => group.last_delivered,
        });
        let now_ms = self.now_ms;
        let Some(passed) = passed.min() else { return Answer::Trimmed { count: 0, now_ms } };
        let old = match retain_ms {
            0 => Some(passed),
            _ => self.old_after(passed, retain_ms),
        };
        let Some(old) = old else { return Answer::Trimmed { count: 0, now_ms } };
        let old = up_to.map_or(old, |up_to| old.min(up_to));
        let before = self.stream.entries.len();
        self.stream.entries.retain(|id, _| *id > old);
        self.places.retain(|id, _| *id > old);
        Answer::Trimmed { count: (before - self.stream.entries.len()) as u64, now_ms }
    }

    /// The entry up to which everything was there, and passed by every group, `retain_ms` ago. Its id would not tell:
    /// producers write what they like. So now and then, how far the groups are is noted with the time.
    fn old_after(&mut self, passed: EntryId, retain_ms: u64) -> Option<EntryId> {
        let now = self.now_ms;
        // Redis' clock went back: marks that are in the future now go.
        self.marks.retain(|at, _| *at <= now);
        if self.marks.last_key_value().is_some_and(|(_, newest)| *newest > passed) {
            // Another stream, or a group that was set back.
            self.marks.clear();
        }
        let newest = self.marks.last_key_value();
        if newest.is_none_or(|(at, entry)| *entry != passed && (now - at) * RETAIN_PARTS >= retain_ms) {
            self.marks.insert(now, passed);
        }
        let limit = now.checked_sub(retain_ms)?;
        let (at, old) = self.marks.range(..=limit).next_back().map(|(at, entry)| (*at, *entry))?;
        self.marks.retain(|noted, _| *noted >= at);
        Some(old.min(passed))
    }

    fn expire_dead(&mut self, max_age_ms: u64, max_count: u64, max: usize) -> Answer {
        let mut oldest: Vec<_> = self.dead.iter().map(|(id, (at, _))| (*at, id.clone())).collect();
        oldest.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.to_string().cmp(&b.1.to_string())));
        let surplus = oldest.len().saturating_sub(max_count as usize);
        let limit = self.now_ms.saturating_sub(max_age_ms);
        let gone = oldest.into_iter().enumerate().filter(|(at, (died, _))| *at < surplus || *died < limit).take(max);
        let gone = gone.map(|(_, (_, id))| id).filter(|id| !self.operations.claims.contains_key(id));
        let gone: Vec<_> = gone.collect();
        gone.iter().for_each(|id| drop(self.dead.remove(id)));
        gone.iter().for_each(|id| drop(self.dead_facts.remove(id)));
        Answer::ExpiredDead { count: gone.len() as u64 }
    }

    fn unindexed(&mut self, from: &LookFrom, look: usize, max: usize) -> Answer {
        let mut all: Vec<_> = self.dead.iter().map(|(id, (at, _))| (*at, id.to_string(), id.clone())).collect();
        all.sort();
        let from_time = |least: u64| all.iter().position(|(at, ..)| *at >= least).unwrap_or(all.len());
        let first = match from {
            LookFrom::Start => 0,
            LookFrom::Mark => from_time(self.dead_mark.unwrap_or(0)),
            LookFrom::After(at_ms, id) => {
                let last = all.iter().position(|(at, _, one)| at == at_ms && one == id);
                last.map_or_else(|| from_time(*at_ms), |at| at + 1)
            }
        };
        let (mut letters, mut bytes, mut looked, mut mark) = (Vec::new(), 0, None, None);
        let page: Vec<_> = all.into_iter().skip(first).take(look).collect();
        let mut is_over = page.len() < look;
        for (nth, (at_ms, _, id)) in page.iter().enumerate() {
            looked = Some((*at_ms, id.clone()));
            if self.dead_facts.get(id).is_some_and(|(of, _)| of == at_ms) {
                continue;
            }
            let letter = self.dead[id].1.clone();
            mark.get_or_insert(*at_ms);
            bytes += letter.len();
            letters.push((id.clone(), Some(letter)));
            if bytes >= MAX_READ_BYTES || letters.len() >= max {
                is_over &= nth + 1 == page.len();
                break;
            }
        }
        let next = looked.filter(|_| !is_over);
        self.dead_mark = mark.or(next.as_ref().map(|(at_ms, _)| *at_ms)).or(Some(self.now_ms));
        let (dead, indexed) = (self.dead.len() as u64, self.dead_facts.len() as u64);
        Answer::Unindexed { letters, next, dead, indexed }
    }

    fn kept(&self, entry: EntryId, endpoint: &EndpointId) -> Kept {
        let id = DeliveryId { entry, endpoint: endpoint.clone() };
        let record = self.records.get(&id).cloned();
        (id, record)
    }

    fn next_due(&self) -> Option<u64> {
        self.due.values().min().copied()
    }

    fn sum(&self, endpoint: &EndpointId) -> Unfinished {
        self.endpoints.get(endpoint).map(Chains::sum).unwrap_or_default()
    }
}

impl Chains {
    fn sum(&self) -> Unfinished {
        Unfinished { records: self.unfinished, parked: self.backlog.len() as u64, bytes: self.bytes.max(0) as u64 }
    }
}

/// The endpoint whose counts an item may change.
fn endpoint_of(item: &Item) -> Option<&EndpointId> {
    match item {
        Item::Finish { id, .. }
        | Item::Keep { id, .. }
        | Item::Move { id, .. }
        | Item::Bury { id, .. }
        | Item::Revive { id, .. }
        | Item::Take { id, .. } => Some(&id.endpoint),
        Item::Discard { .. }
        | Item::TakeLetter { .. }
        | Item::TakeUnreadable { .. }
        | Item::Index { .. }
        | Item::Quarantine { .. }
        | Item::Requeue { .. }
        | Item::DiscardQuarantined { .. }
        | Item::Bind { .. }
        | Item::Reply { .. } => None,
    }
}

/// Whether a record or a letter is of this event, by the id near its beginning.
fn is_of(record: &Bytes, event: &EventId) -> bool {
    let head = &record[..record.len().min(RECORD_HEAD_BYTES)];
    let named = format!("\"event\":\"{event}\"");
    head.windows(named.len()).any(|window| window == named.as_bytes())
}

/// What a read returns of an entry's fields, cut where an event would be too long.
fn content_of(fields: &[(Bytes, Bytes)]) -> Content {
    let field = |name: &[u8]| fields.iter().find(|(field, _)| field.as_ref() == name).map(|(_, value)| value);
    match field(b"event") {
        Some(body) => Content::Event {
            body: body.slice(..body.len().min(MAX_EVENT_BYTES)),
            traceparent: field(b"traceparent").map(|text| text.slice(..text.len().min(MAX_TRACEPARENT_BYTES + 1))),
            account_sequence: field(b"account-sequence").and_then(|text| AccountSequence::read(text)),
            full_bytes: body.len(),
        },
        None => {
            let parts: Vec<&[u8]> = fields.iter().flat_map(|(name, value)| [name.as_ref(), value.as_ref()]).collect();
            let mut preview = parts.join(&b' ');
            preview.truncate(MAX_EVENT_BYTES);
            Content::NoEvent { preview: preview.into() }
        }
    }
}

fn content_bytes(content: &Content) -> usize {
    match content {
        Content::Event { body, .. } => body.len(),
        Content::NoEvent { preview } => preview.len(),
        Content::Trimmed => 0,
    }
}

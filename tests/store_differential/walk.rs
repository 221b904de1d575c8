//! One random walk: each step makes a call, or does what a producer, another consumer, an operator or an accident does.

#[path = "operations.rs"]
mod operations;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Debug,
};

use bytes::Bytes;
use herald::{
    facts::{
        delivery::Chain,
        envelope::{AccountSequence, Envelope},
        id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
        letter::{LetterFacts, WaitedFor, Waiting},
        retry::DeadReason,
    },
    store::{
        connection::{Connection, Purpose},
        keys::PartitionKeys,
        model::{Group, Lease, Model, Stream},
        partition::PartitionStore,
        protocol::{
            Answer, Asked, CONSUMER, Call, GROUP, Item, LookFrom, MAX_BATCH, NO_SUCH_LETTER, Place, ReadFrom,
            Settlement, Start, TAKEN_BEFORE, Term,
        },
    },
};
use redis::{FromRedisValue, aio::MultiplexedConnection};

pub use self::operations::Move;
use crate::{
    mutation::{self, Mutation},
    real_state::Reader,
    support::TestRedis,
};

/// Redis stamps with its clock when it runs a script; we read that clock before and after.
const WINDOW_MS: u64 = 2_000;

/// Ids that test the text arithmetic: around 2^53, with a turn of the millisecond.
const ODD_ENTRIES: [EntryId; 5] = [
    EntryId { ms: 7, seq: 0 },
    EntryId { ms: 10, seq: u64::MAX },
    EntryId { ms: 9_007_199_254_740_993, seq: 10 },
    EntryId { ms: 9_007_199_254_740_993, seq: 9 },
    EntryId { ms: 1_700_000_000_000, seq: 3 },
];
/// Each is a prefix of others, followed by every character that may follow.
const INTENTS: [&str; 5] = ["pi_1", "pi_10", "pi_1-", "pi_1_", "pi_1A"];
const ENDPOINTS: [&str; 3] = ["ep_a", "ep_aa", "ep_b"];
/// One is the beginning of another.
const EVENTS: [&str; 2] = ["evt_1", "evt_10"];
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const FOREIGN: [&str; 2] = ["other", "an other one"];

type Step = Result<(), String>;

pub struct Walk {
    model: Model,
    /// What the model gets wrong.
    mutation: Option<Mutation>,
    store: PartitionStore,
    work: Connection,
    raw: MultiplexedConnection,
    keys: PartitionKeys,
    chance: Chance,
    term: Term,
    terms: u128,
    /// A delivery keeps its chain for life.
    chains: BTreeMap<DeliveryId, Chain>,
    story: VecDeque<String>,
}

impl Walk {
    pub async fn new(redis: &TestRedis, seed: u64, mutation: Option<Mutation>) -> Self {
        let keys = PartitionKeys::new("payment-intents").unwrap();
        let work = redis.redis().connect(Purpose::Work).await.unwrap();
        let store = PartitionStore::new(work.clone(), work.clone(), keys.clone(), 1_000_000);
        let mut walk = Self {
            model: Model::default(),
            mutation,
            store,
            work,
            raw: redis.connection().await,
            keys,
            chance: Chance(seed),
            term: Term::new(0, "worker"),
            terms: 0,
            chains: BTreeMap::new(),
            story: VecDeque::new(),
        };
        walk.acquire().await.unwrap();
        walk.open().await.unwrap();
        walk
    }

    pub fn story(&self) -> String {
        self.story.iter().map(|line| format!("  {line}\n")).collect()
    }

    pub async fn step(&mut self) -> Step {
        match self.chance.below(140) {
            0..18 => self.publish().await?,
            18..28 => self.read().await?,
            28..60 => self.settle().await?,
            60..62 => self.index().await?,
            62..69 => self.claim().await?,
            69..70 => self.pull_in().await?,
            70..72 => self.recover().await?,
            72..74 => self.look_at_backlog().await?,
            74..76 => self.take_heads().await?,
            76..78 => self.ask_for_records().await?,
            78..79 => match self.chance.below(2) {
                0 => self.count().await?,
                _ => self.note_unreadable().await?,
            },
            79..83 => self.foreign_read().await?,
            83..84 => self.claim_foreign().await?,
            84..85 => match self.chance.below(3) {
                0 => self.lose_the_bytes().await?,
                _ => self.older_herald().await?,
            },
            85..87 => self.delete_an_entry().await?,
            87..88 => self.lose_the_group().await?,
            88..89 => self.lose_the_stream().await?,
            89..91 => self.open().await?,
            91..93 => self.change_the_lease().await?,
            93..95 => self.write_a_request().await?,
            95..97 => self.read_the_inbox().await?,
            97..98 => self.trim().await?,
            98..99 => self.expire().await?,
            99..100 => self.stale_call().await?,
            _ => self.operate().await?,
        }
        Ok(())
    }

    /// The whole state, and what holds for every state.
    pub async fn compare(&mut self) -> Step {
        let real = Reader { connection: &mut self.raw, keys: &self.keys }.read().await;
        let mut model = self.model.clone();
        (model.now_ms, model.clock_seen) = (0, 0);
        model.inbox.last = 0;
        model.lease.iter_mut().for_each(|lease| lease.until_ms = 0);
        model.endpoints.retain(|_, chains| *chains != Default::default());
        same("the stream", &real.stream, &model.stream)?;
        same("what is due", &real.due, &model.due)?;
        same("what is claimed", &real.claimed, &model.claimed)?;
        same("the endpoints", &real.endpoints, &model.endpoints)?;
        same("the dead letters", &real.dead, &model.dead)?;
        same("the facts of dead letters", &real.dead_facts, &model.dead_facts)?;
        same("the inbox", &real.inbox, &model.inbox)?;
        same("the operations", &real.operations, &model.operations)?;
        same("the rest", &real, &model)?;
        invariants(&real, &self.chains)
    }

    /// Runs the call on Redis, then on the model at the time that Redis gave.
    async fn both(&mut self, call: Call) -> Result<(Answer, Answer), String> {
        self.tell(&call);
        let real = self.store.call(&call).await.map_err(|failure| format!("{failure:?}"))?;
        self.model.now_ms = match time_of(&real) {
            Some(now_ms) => now_ms,
            None => self.redis_time().await,
        };
        let model = mutation::answer(&mut self.model, self.mutation, &call).expect("this model is never full");
        Ok((real, model))
    }

    async fn alike(&mut self, call: Call) -> Step {
        let (real, model) = self.both(call).await?;
        same("the answer", &real, &model)
    }

    fn tell(&mut self, what: &impl Debug) {
        if self.story.len() == 12 {
            self.story.pop_front();
        }
        self.story.push_back(format!("{what:?}"));
    }

    async fn raw<T: FromRedisValue>(&mut self, words: &[&str]) -> T {
        self.tell(&words);
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.raw).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    async fn redis_time(&mut self) -> u64 {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(&mut self.raw).await.unwrap();
        seconds * 1000 + micros / 1000
    }

    /// Waits until Redis' clock has moved on, so that what was written before is older than what comes.
    async fn tick(&mut self) {
        let start = self.redis_time().await;
        while self.redis_time().await == start {}
    }

    // What the owner does.

    async fn read(&mut self) -> Step {
        let from = match self.chance.one_in(3) {
            true => ReadFrom::Pending(self.some_entry()),
            false => ReadFrom::New,
        };
        let max = 1 + self.chance.below(40) as usize;
        self.alike(Call::Read { term: self.term.clone(), from, max }).await
    }

    async fn settle(&mut self) -> Step {
        let settlement = match self.chance.below(12) {
            0 => Settlement { last_read: self.some_entry(), ..Settlement::default() },
            1 => self.large_settlement(),
            2..4 => self.endings(),
            _ => self.settlement(),
        };
        let requeues = settlement.items.iter().any(|item| matches!(item, Item::Requeue { .. }));
        let (real, model) = self.both(Call::Settle { term: self.term.clone(), settlement }).await?;
        match (&real, &model) {
            (Answer::BadItem { at: 0, .. }, Answer::BadItem { at: 0, .. }) => return Ok(()),
            _ => same("the answer", &real, &model)?,
        }
        if requeues { self.take_over_generated_ids().await } else { Ok(()) }
    }

    fn settlement(&mut self) -> Settlement {
        let items = (0..self.chance.below(9)).map(|_| self.item()).collect();
        let acks = (0..self.chance.below(8)).map(|_| self.some_entry()).collect();
        let log = (0..self.chance.below(3)).map(|_| self.some_line()).collect();
        Settlement { items, acks, log, last_read: self.some_entry() }
    }

    /// Deliveries that end together, from every place.
    fn endings(&mut self) -> Settlement {
        let mut items = Vec::new();
        for _ in 0..1 + self.chance.below(12) {
            let (id, chain) = self.some_delivery();
            items.push(Item::Finish { id, chain });
        }
        Settlement { items, last_read: self.some_entry(), ..Settlement::default() }
    }

    /// Around the limit, with any mixture of items, acknowledgements and log lines.
    fn large_settlement(&mut self) -> Settlement {
        let total = MAX_BATCH - 1 + self.chance.below(3) as usize;
        let items = self.chance.below(total as u64 + 1) as usize;
        let acks = self.chance.below((total - items) as u64 + 1) as usize;
        Settlement {
            items: (0..items).map(|_| self.item()).collect(),
            acks: (0..acks).map(|_| self.some_entry()).collect(),
            log: (0..total - items - acks).map(|_| self.some_line()).collect(),
            last_read: self.some_entry(),
        }
    }

    fn item(&mut self) -> Item {
        let (id, chain) = self.some_delivery();
        let entry = self.some_entry();
        match self.chance.below(40) {
            0..10 => Item::Finish { id, chain },
            10..24 => Item::Keep { id, chain, place: self.some_place(), record: self.some_record() },
            24..29 => Item::Move { id, chain, place: self.some_place() },
            29..32 => Item::Bury { id, chain, facts: Box::new(self.some_facts()), letter: self.some_record() },
            32 => Item::Revive { id, chain, record: self.some_record() },
            33 if self.chance.one_in(2) => {
                Item::Take { id, chain, place: self.some_place(), record: self.some_record() }
            }
            33 => {
                let (at_ms, facts) = (self.chance.below(1 << 41), Box::new(self.some_facts()));
                Item::TakeLetter { id, at_ms, facts, letter: self.some_record() }
            }
            34 if self.chance.one_in(2) => Item::Discard { id },
            34 => Item::Index { id, facts: Box::new(self.some_facts()) },
            35 => Item::Quarantine {
                entry,
                body: self.some_bytes(),
                cut: self.chance.one_in(3),
                error: "the event is not JSON\n".to_owned(),
                envelope: Envelope {
                    traceparent: self.chance.one_in(2).then(|| TRACEPARENT.parse().unwrap()),
                    account_sequence: self.chance.one_in(2).then(|| AccountSequence(self.chance.below(1 << 53).max(1))),
                },
                // Two or three of them, or all.
                keep_bytes: [Some(900), Some(900), Some(1 << 20), None][self.chance.below(4) as usize],
            },
            36 => Item::Requeue { entry },
            37 => Item::DiscardQuarantined { entry },
            38 => Item::Bind { registry: format!("reg-{}", self.chance.below(3)) },
            _ => Item::Reply { request: self.some_request(), answer: self.some_answer() },
        }
    }

    /// Redis generates an id by its own clock, a moment after the script's: the model adopts that id.
    async fn take_over_generated_ids(&mut self) -> Step {
        let real = Reader { connection: &mut self.raw, keys: &self.keys }.entries(self.keys.stream()).await;
        let stream = &mut self.model.stream;
        same("the number of entries", &real.len(), &stream.entries.len())?;
        let pairs: Vec<_> = real.into_iter().zip(std::mem::take(&mut stream.entries)).collect();
        let mut places = BTreeMap::new();
        for ((id, fields), (expected, expected_fields)) in pairs {
            same("the entry", &fields, &expected_fields)?;
            if id.ms.abs_diff(expected.ms) > WINDOW_MS || (id.ms == expected.ms && id.seq != expected.seq) {
                return Err(format!("the entry {expected} is {id}"));
            }
            if stream.last_generated == expected {
                stream.last_generated = id;
            }
            stream.entries.insert(id, fields);
            if let Some(place) = self.model.places.remove(&expected) {
                places.insert(id, place);
            }
            if id != expected {
                let claims = &mut self.model.operations.claims;
                let of = claims.extract_if(.., |delivery, _| delivery.entry == expected).collect::<Vec<_>>();
                claims.extend(of.into_iter().map(|(delivery, claim)| (DeliveryId { entry: id, ..delivery }, claim)));
            }
        }
        self.model.places.extend(places);
        Ok(())
    }

    async fn claim(&mut self) -> Step {
        let max = self.chance.below(12) as usize;
        self.alike(Call::Claim { term: self.term.clone(), max }).await
    }

    async fn pull_in(&mut self) -> Step {
        let soon = self.redis_time().await;
        let from_ms = if self.chance.one_in(2) { soon } else { soon + self.chance.below(1 << 40) };
        let by_ms = if self.chance.one_in(3) { 1_000_000_000_000_000 } else { self.chance.below(1 << 40) };
        let (max, step_ms) = (self.chance.below(12) as usize, self.chance.below(3) as i64 - 1);
        self.alike(Call::PullIn { term: self.term.clone(), from_ms, by_ms, max, step_ms }).await
    }

    /// Which of the claimed ones move first is not defined, and the time is Redis' own.
    async fn recover(&mut self) -> Step {
        let max = if self.chance.one_in(3) { 2 } else { MAX_BATCH };
        let call = Call::Recover { term: self.term.clone(), max };
        self.tell(&call);
        let answer = self.store.call(&call).await.map_err(|failure| format!("{failure:?}"))?;
        if self.lease_is_lost() {
            return same("the answer", &answer, &Answer::Lost);
        }
        same("the answer", &answer, &Answer::Recovered { moved: max.min(self.model.claimed.len()) })?;
        let now_ms = self.redis_time().await;
        let due: BTreeMap<DeliveryId, u64> =
            Reader { connection: &mut self.raw, keys: &self.keys }.scored(&self.keys.due()).await;
        for id in self.model.claimed.clone() {
            if let Some(at) = due.get(&id) {
                if now_ms.abs_diff(*at) > WINDOW_MS {
                    return Err(format!("{id} is due at {at}, and it is {now_ms}"));
                }
                self.model.claimed.remove(&id);
                self.model.due.insert(id, *at);
            }
        }
        Ok(())
    }

    async fn look_at_backlog(&mut self) -> Step {
        let (endpoint, after) = (self.some_endpoint(), self.some_entry());
        let max = self.chance.below(60) as usize;
        self.alike(Call::Backlog { term: self.term.clone(), endpoint, after, max }).await
    }

    /// Which heads come first is not defined.
    async fn take_heads(&mut self) -> Step {
        let (endpoint, max) = (self.some_endpoint(), 1 + self.chance.below(6) as usize);
        let call = Call::TakeHeads { term: self.term.clone(), endpoint: endpoint.clone(), max };
        self.tell(&call);
        let answer = self.store.call(&call).await.map_err(|failure| format!("{failure:?}"))?;
        if self.lease_is_lost() {
            return same("the answer", &answer, &Answer::Lost);
        }
        let Answer::Heads { kept, .. } = answer else { return Err(format!("{answer:?}")) };
        let heads = self.model.endpoints.get(&endpoint).map(|chains| chains.heads.clone()).unwrap_or_default();
        let all = heads.into_values().map(|entry| DeliveryId { entry, endpoint: endpoint.clone() });
        let free: BTreeSet<_> = all.filter(|id| !self.model.claimed.contains(id)).collect();
        same("the number of heads", &kept.len(), &max.min(free.len()))?;
        for (id, record) in kept {
            if !free.contains(&id)
                || record.as_ref() != self.model.records.get(&id)
                || !self.model.claimed.insert(id.clone())
            {
                return Err(format!("{id} is no head to take"));
            }
            self.model.due.remove(&id);
            self.model.endpoints.get_mut(&endpoint).unwrap().backlog.remove(&id.entry);
        }
        Ok(())
    }

    async fn ask_for_records(&mut self) -> Step {
        let many = if self.chance.one_in(4) { 1200 } else { 4 };
        let (many, suspect) = (self.chance.below(many), self.chance.one_in(2));
        let deliveries = (0..many).map(|_| (self.some_delivery().0, self.some_intent(), self.some_event())).collect();
        self.alike(Call::Ask { term: self.term.clone(), deliveries, suspect }).await
    }

    async fn count(&mut self) -> Step {
        self.alike(Call::Counts { term: self.term.clone(), cursor: 0 }).await
    }

    async fn note_unreadable(&mut self) -> Step {
        let endpoints = (0..self.chance.below(4)).map(|_| self.some_delivery().0.endpoint).collect();
        let holds_ms = [1, 1_000, 1_000_000][self.chance.below(3) as usize];
        self.alike(Call::NoteUnreadable { term: self.term.clone(), endpoints, holds_ms }).await?;
        self.count().await
    }

    /// Redis drops trimmed entries when they are taken over; the model would read them as trimmed.
    async fn claim_foreign(&mut self) -> Step {
        let pending = self.model.stream.groups.get(GROUP).map(|group| group.pending.clone()).unwrap_or_default();
        let foreign: BTreeSet<_> = pending.values().filter(|owner| *owner != CONSUMER).collect();
        let max = if foreign.len() > 1 { MAX_BATCH } else { 1 + self.chance.below(5) as usize };
        self.alike(Call::ClaimForeign { term: self.term.clone(), max }).await?;
        let Stream { groups, entries, .. } = &mut self.model.stream;
        if let Some(group) = groups.get_mut(GROUP) {
            let was_foreign = |id: &EntryId| pending.get(id).is_some_and(|owner| owner != CONSUMER);
            group.pending.retain(|id, owner| owner != CONSUMER || entries.contains_key(id) || !was_foreign(id));
        }
        Ok(())
    }

    async fn acquire(&mut self) -> Step {
        let previous = (0..self.chance.below(3)).map(|_| self.term.clone()).collect();
        self.terms += 1;
        let term = Term::new(self.terms, "worker");
        let call = Call::Acquire { term: term.clone(), previous, ttl_ms: 600_000 };
        match self.both(call).await? {
            (Answer::Taken { by, .. }, Answer::Taken { by: expected, .. }) => same("the owner", &by, &expected),
            (real, model) => {
                self.term = term;
                same("the answer", &real, &model)
            }
        }
    }

    async fn open(&mut self) -> Step {
        let start = match self.chance.below(3) {
            0 => Start::Oldest,
            1 => Start::Newest,
            _ => Start::After(self.some_entry()),
        };
        let registry = format!("reg-{}", self.chance.below(3));
        self.alike(Call::Open { term: self.term.clone(), start, registry }).await
    }

    async fn read_the_inbox(&mut self) -> Step {
        let after = if self.chance.one_in(2) { self.some_request() } else { EntryId::ZERO };
        let max = self.chance.below(20) as usize;
        self.alike(Call::Inbox { term: self.term.clone(), after, max }).await
    }

    async fn trim(&mut self) -> Step {
        self.tick().await;
        let ignores = (0..self.chance.below(2)).map(|_| "analytics".to_owned()).collect();
        let retain_ms = match self.chance.below(4) {
            0 | 1 => 0,
            // The next trim of this kind finds marks that are as old.
            2 => 1 + self.chance.below(40),
            _ => 1_000_000_000,
        };
        let up_to =
            (self.chance.below(3) == 0).then(|| EntryId { ms: self.chance.below(200), seq: self.chance.below(3) });
        self.alike(Call::Trim { term: self.term.clone(), retain_ms, up_to, ignores }).await
    }

    async fn expire(&mut self) -> Step {
        self.tick().await;
        let max_age_ms = if self.chance.one_in(4) { 0 } else { 1_000_000_000 };
        let (max_count, max) = (self.chance.below(6), self.chance.below(6) as usize);
        self.alike(Call::ExpireDead { term: self.term.clone(), max_age_ms, max_count, max }).await
    }

    /// A look for letters without an index, or a sweep of what is none any more, to its end.
    async fn index(&mut self) -> Step {
        if self.chance.one_in(2) {
            return self.sweep().await;
        }
        self.tick().await;
        let dead: Vec<_> = self.model.dead.iter().map(|(id, (at_ms, _))| (*at_ms, id.clone())).collect();
        let from = match self.chance.below(4) {
            0 => LookFrom::Mark,
            1 => LookFrom::Start,
            _ if dead.is_empty() => LookFrom::After(self.chance.below(1 << 40), self.some_delivery().0),
            // One that is there, or one that has died at another time since.
            _ => {
                let (at_ms, id) = dead[self.chance.below(dead.len() as u64) as usize].clone();
                LookFrom::After(at_ms - self.chance.below(4) / 3, id)
            }
        };
        let (look, max) = (1 + self.chance.below(8) as usize, 1 + self.chance.below(4) as usize);
        let (real, mut model) = self.both(Call::Unindexed { term: self.term.clone(), from, look, max }).await?;
        if let (Answer::Unindexed { next: None, .. }, Answer::Unindexed { next: None, .. }) = (&real, &model) {
            // The time of the mark is that of the script.
            self.take_over_the_mark().await?;
        }
        if let (Answer::Unindexed { letters, .. }, Answer::Unindexed { letters: modelled, .. }) = (&real, &mut model) {
            same("the letters without an index", letters, modelled)?;
        }
        same("the answer", &real, &model)
    }

    async fn take_over_the_mark(&mut self) -> Step {
        let real: Option<String> = self.raw(&["GET", &self.keys.dead_mark()]).await;
        let real = real.and_then(|at| at.parse::<u64>().ok());
        let model = self.model.dead_mark;
        match (real, model) {
            (Some(real), Some(model)) if real.abs_diff(model) <= WINDOW_MS => self.model.dead_mark = Some(real),
            _ => return Err(format!("the mark is {real:?}, and in the model {model:?}")),
        }
        Ok(())
    }

    async fn sweep(&mut self) -> Step {
        let (mut cursor, mut swept) = (0, 0);
        loop {
            let call = Call::SweepDead { term: self.term.clone(), cursor };
            self.tell(&call);
            match self.store.call(&call).await.map_err(|failure| format!("{failure:?}"))? {
                Answer::SweptDead { count, cursor: next } => (cursor, swept) = (next, swept + count),
                Answer::Lost if self.lease_is_lost() => return Ok(()),
                other => return Err(format!("{other:?}")),
            }
            if cursor == 0 {
                break;
            }
        }
        let model = self.model.call(&Call::SweepDead { term: self.term.clone(), cursor: 0 });
        same("the answer", &Answer::SweptDead { count: swept, cursor: 0 }, &model.expect("it is never full"))
    }

    /// An owner of an earlier version writes a letter, or removes one; it knows nothing of the indexes by facts.
    async fn older_herald(&mut self) -> Step {
        let (id, _) = self.some_delivery();
        let (dead, dead_of) = (self.keys.dead(), self.keys.dead_of(&id.endpoint));
        let (letter_key, text) = (self.keys.dead_letter(&id), id.to_string());
        if self.model.dead.contains_key(&id) && self.chance.one_in(2) {
            self.model.dead.remove(&id);
            self.raw::<()>(&["DEL", &letter_key]).await;
            self.raw::<()>(&["ZREM", &dead, &text]).await;
            self.raw::<()>(&["ZREM", &dead_of, &text]).await;
            return Ok(());
        }
        self.tick().await;
        let (at_ms, letter) = (self.redis_time().await, self.some_record());
        self.model.dead.insert(id, (at_ms, letter.clone()));
        let at = at_ms.to_string();
        let mut set = redis::cmd("SET");
        set.arg(&letter_key).arg(&letter[..]);
        set.query_async::<()>(&mut self.raw).await.map_err(|error| error.to_string())?;
        self.raw::<()>(&["ZADD", &dead, &at, &text]).await;
        self.raw::<()>(&["ZADD", &dead_of, &at, &text]).await;
        Ok(())
    }

    /// A script of an earlier term that runs late.
    async fn stale_call(&mut self) -> Step {
        let term = Term::new(u128::MAX, "paused");
        let call = match self.chance.below(5) {
            0 => Call::Renew { term, ttl_ms: 1 },
            1 => Call::Read { term, from: ReadFrom::New, max: 10 },
            2 => Call::Claim { term, max: 10 },
            3 => Call::Release { term },
            _ => Call::Settle { term, settlement: self.settlement() },
        };
        self.alike(call).await
    }

    // What happens to it.

    async fn publish(&mut self) -> Step {
        for _ in 0..=self.chance.below(6) {
            let last = self.model.stream.last_generated;
            let id = match self.chance.below(12) {
                0 => EntryId { ms: last.ms.max(9_007_199_254_740_990) + 1, seq: u64::MAX },
                1..4 => EntryId { ms: last.ms + 1, seq: self.chance.below(2) },
                _ if last.seq == u64::MAX => EntryId { ms: last.ms + 1, seq: 0 },
                _ => EntryId { ms: last.ms, seq: last.seq + 1 },
            };
            let field = |name: &'static str| Bytes::from_static(name.as_bytes());
            let mut fields = match self.chance.below(8) {
                0 => vec![(field("Event"), self.some_bytes()), (self.some_bytes(), self.some_bytes())],
                1 => vec![(field("traceparent"), self.some_bytes()), (field("event"), self.some_bytes())],
                2 => vec![(field("event"), self.some_bytes()), (field("event"), self.some_bytes())],
                3 => vec![
                    (field("event"), vec![b'x'; 64 * 1024 + 1].into()),
                    (field("traceparent"), vec![b't'; 200].into()),
                ],
                _ => vec![(field("event"), self.some_bytes())],
            };
            let numbers =
                ["1", "0", "17", "+3", "9007199254740991", "9007199254740992", "99999999999999999", "1:2", ""];
            for _ in 0..self.chance.below(3) {
                let number = numbers[self.chance.below(numbers.len() as u64) as usize];
                fields.push((field("account-sequence"), number.into()));
            }
            let mut command = redis::cmd("XADD");
            command.arg(self.keys.stream()).arg(id.to_string());
            for (name, value) in &fields {
                command.arg(&name[..]).arg(&value[..]);
            }
            command.query_async::<String>(&mut self.raw).await.map_err(|error| error.to_string())?;
            self.tell(&format_args!("published {id}"));
            if self.chance.one_in(12) {
                // As an operation sends one again.
                let (place, only) = (EntryId { ms: self.chance.below(50), seq: 0 }, self.some_endpoint());
                let member = format!("{} {} {only}", id.padded(), place.padded());
                let (places, of) = (self.keys.places(), id.padded());
                // Another stream may have given out the same id.
                self.raw::<u64>(&["ZREMRANGEBYLEX", &places, &format!("[{of} "), &format!("({of}!")]).await;
                self.raw::<u64>(&["ZADD", &places, "0", &member]).await;
                self.model.places.insert(id, (place, Some(only)));
            }
            self.model.add_entry(id, fields);
        }
        Ok(())
    }

    async fn foreign_read(&mut self) -> Step {
        if self.chance.one_in(4) && self.model.stream.exists && !self.model.stream.groups.contains_key("analytics") {
            let stream = self.keys.stream().to_owned();
            self.raw::<()>(&["XGROUP", "CREATE", &stream, "analytics", "0"]).await;
            self.model.stream.groups.insert("analytics".to_owned(), Group::default());
        }
        let name = if self.chance.one_in(2) { GROUP } else { "analytics" };
        let consumer = FOREIGN[self.chance.below(2) as usize];
        let Stream { groups, entries, .. } = &mut self.model.stream;
        let Some(group) = groups.get_mut(name) else { return Ok(()) };
        let unread = (std::ops::Bound::Excluded(group.last_delivered), std::ops::Bound::Unbounded);
        for id in entries.range(unread).map(|(id, _)| *id).take(3) {
            group.last_delivered = id;
            group.pending.insert(id, consumer.to_owned());
        }
        let stream = self.keys.stream().to_owned();
        self.raw::<redis::Value>(&["XREADGROUP", "GROUP", name, consumer, "COUNT", "3", "STREAMS", &stream, ">"]).await;
        Ok(())
    }

    async fn delete_an_entry(&mut self) -> Step {
        let id = self.some_entry();
        if self.model.stream.exists {
            let stream = self.keys.stream().to_owned();
            self.raw::<()>(&["XDEL", &stream, &id.to_string()]).await;
            self.model.stream.entries.remove(&id);
        }
        Ok(())
    }

    async fn lose_the_group(&mut self) -> Step {
        if self.model.stream.exists {
            let stream = self.keys.stream().to_owned();
            self.raw::<()>(&["XGROUP", "DESTROY", &stream, GROUP]).await;
            self.model.stream.groups.remove(GROUP);
        }
        Ok(())
    }

    async fn lose_the_stream(&mut self) -> Step {
        if self.chance.one_in(3) {
            let stream = self.keys.stream().to_owned();
            self.raw::<()>(&["DEL", &stream]).await;
            self.model.stream = Stream::default();
        }
        Ok(())
    }

    /// As an older version leaves them: records that were never weighed.
    async fn lose_the_bytes(&mut self) -> Step {
        let bytes = self.keys.bytes();
        self.raw::<()>(&["DEL", &bytes]).await;
        self.model.endpoints.values_mut().for_each(|chains| chains.bytes = 0);
        Ok(())
    }

    async fn change_the_lease(&mut self) -> Step {
        let lease = self.keys.lease();
        match self.chance.below(5) {
            0 => {
                self.raw::<()>(&["DEL", &lease]).await;
                self.model.lease = None;
                self.read().await?;
            }
            1 => {
                self.raw::<()>(&["SET", &lease, "of another worker", "PX", "600000"]).await;
                self.model.lease = Some(Lease { value: "of another worker".to_owned(), until_ms: u64::MAX });
                self.acquire().await?;
                self.settle().await?;
                self.raw::<()>(&["DEL", &lease]).await;
                self.model.lease = None;
            }
            2 => self.alike(Call::Release { term: self.term.clone() }).await?,
            _ => self.alike(Call::Renew { term: self.term.clone(), ttl_ms: 600_000 }).await?,
        }
        self.acquire().await
    }

    async fn write_a_request(&mut self) -> Step {
        let claimed = self.model.operations.claims.keys().next().cloned().filter(|_| self.chance.one_in(2));
        let id = claimed.unwrap_or_else(|| self.some_delivery().0);
        let entry = self.some_entry();
        let (asked, words) = match self.chance.below(7) {
            6 => (Asked::Repartition(8), ["repartition", "parts", "8"].map(str::to_owned).to_vec()),
            0 => (Asked::Redeliver(id.clone()), vec!["redeliver".to_owned(), "id".to_owned(), id.to_string()]),
            1 => (Asked::Discard(id.clone()), vec!["discard".to_owned(), "id".to_owned(), id.to_string()]),
            2 => {
                let (endpoint, intent) = (self.some_endpoint(), self.some_intent());
                let words = ["release", "endpoint", endpoint.as_str(), "intent", intent.as_str()].map(str::to_owned);
                let (mut words, head) = (words.to_vec(), (self.chance.below(2) == 0).then_some(entry));
                words.extend(head.iter().flat_map(|head| ["head".to_owned(), head.to_string()]));
                (Asked::Release(endpoint, intent, head), words)
            }
            3 => (Asked::Requeue(entry), vec!["requeue".to_owned(), "entry".to_owned(), entry.to_string()]),
            4 => {
                let words = vec!["discard-quarantined".to_owned(), "entry".to_owned(), entry.to_string()];
                (Asked::DiscardQuarantined(entry), words)
            }
            _ => {
                let words = ["accept-registry", "registry", "reg-1"].map(str::to_owned);
                (Asked::AcceptRegistry("reg-1".to_owned()), words.to_vec())
            }
        };
        let mark = self.some_bytes();
        let at = self.model.ask(asked, mark.clone());
        let mut command = redis::cmd("XADD");
        command.arg(self.keys.inbox()).arg(at.to_string()).arg("op").arg(words).arg("mark").arg(&mark[..]);
        command.query_async::<String>(&mut self.raw).await.map_err(|error| error.to_string())?;
        Ok(())
    }

    // What is drawn.

    fn lease_is_lost(&self) -> bool {
        self.model.lease.as_ref().map(|lease| lease.value.as_str()) != Some(self.term.as_str())
    }

    fn some_endpoint(&mut self) -> EndpointId {
        EndpointId::new(ENDPOINTS[self.chance.below(ENDPOINTS.len() as u64) as usize]).unwrap()
    }

    fn some_intent(&mut self) -> IntentId {
        IntentId::new(INTENTS[self.chance.below(INTENTS.len() as u64) as usize]).unwrap()
    }

    /// Often one that is in the stream, pending or quarantined.
    fn some_entry(&mut self) -> EntryId {
        let stream = &self.model.stream;
        let pending = stream.groups.get(GROUP).map(|group| group.pending.keys().copied().collect::<Vec<_>>());
        let known: Vec<EntryId> = match self.chance.below(5) {
            0 => stream.entries.keys().copied().collect(),
            1 => self.model.quarantine.iter().map(|(entry, _)| *entry).collect(),
            2 | 3 => pending.unwrap_or_default(),
            _ => Vec::new(),
        };
        let known = if known.is_empty() { ODD_ENTRIES.to_vec() } else { known };
        known[self.chance.below(known.len() as u64) as usize]
    }

    fn some_request(&mut self) -> EntryId {
        let known: Vec<EntryId> = self.model.inbox.requests.keys().copied().collect();
        match known.len() as u64 {
            n if n > 0 && !self.chance.one_in(6) => known[self.chance.below(n) as usize],
            _ => EntryId { ms: self.chance.below(20), seq: 0 },
        }
    }

    fn some_answer(&mut self) -> String {
        match self.chance.below(8) {
            0 => format!("error: {NO_SUCH_LETTER}"),
            1 => format!("error: {TAKEN_BEFORE}"),
            2 => operations::long("error: its endpoint is disabled", self.chance.below(30)),
            _ => "ok".to_owned(),
        }
    }

    fn some_delivery(&mut self) -> (DeliveryId, Chain) {
        let known: Vec<_> = self.model.records.keys().chain(self.model.dead.keys()).cloned().collect();
        let id = match known.len() {
            n if n > 0 && (n > 60 || self.chance.one_in(2)) => known[self.chance.below(n as u64) as usize].clone(),
            _ => DeliveryId { entry: self.some_entry(), endpoint: self.some_endpoint() },
        };
        if !self.chains.contains_key(&id) {
            let intent = self.some_intent();
            let chain = match self.chance.one_in(4) {
                true => Chain::Single(intent, id.entry),
                false => Chain::Intent(intent),
            };
            self.chains.insert(id.clone(), chain);
        }
        let chain = self.chains[&id].clone();
        (id, chain)
    }

    fn some_event(&mut self) -> EventId {
        EventId::new(EVENTS[self.chance.below(EVENTS.len() as u64) as usize]).unwrap()
    }

    /// Often the same, so that sets hold several; and of a letter that cannot be read.
    fn some_facts(&mut self) -> LetterFacts {
        if self.chance.one_in(6) {
            return LetterFacts::unreadable();
        }
        let (intent, event) = (self.some_intent(), self.some_event());
        let accounts = ["acc_1", "acc_10"];
        let causes = ["server_failed:500", "server_failed:50", "gone"];
        let waited_for = self.chance.one_in(3).then(|| WaitedFor::new(Waiting::Paused).paused("ops", "it is down", 7));
        LetterFacts {
            account: AccountId::new(accounts[self.chance.below(2) as usize]).ok(),
            reason: Some(DeadReason::ALL[self.chance.below(2) as usize]),
            cause: causes[self.chance.below(3) as usize].parse().unwrap(),
            attempts: self.chance.below(3) as u32,
            event: Some(event),
            intent: Some(intent),
            waited_for,
        }
    }

    /// As Herald writes one, or arbitrary; in one case the event is named where nobody looks for it.
    fn some_record(&mut self) -> Bytes {
        let event = self.some_event();
        match self.chance.below(6) {
            0 => format!("{}\"event\":\"{event}\"", "x".repeat(1_024)).into(),
            1 => self.some_bytes(),
            _ => format!("{{\"schema\":1,\"event\":\"{event}\"}}\n{{}}").into(),
        }
    }

    fn some_place(&mut self) -> Place {
        match self.chance.below(6) {
            0 | 1 => Place::DueIn(self.chance.below(3)),
            2 => Place::DueIn(self.chance.below(1 << 40)),
            3 => Place::Claimed,
            4 => Place::Held,
            _ => Place::Backlog,
        }
    }

    fn some_line(&mut self) -> Bytes {
        let bytes = self.some_bytes();
        bytes.split(|byte| *byte == b'\n').next().map(Bytes::copy_from_slice).unwrap_or_default()
    }

    fn some_bytes(&mut self) -> Bytes {
        match self.chance.below(4) {
            0 => Bytes::from_static(b"{\"a\":1}\n{\n}\n\n"),
            1 => Bytes::from_static(&[0, 255, 13, 10, 0, 128]),
            2 => Bytes::new(),
            _ => format!("bytes {}", self.chance.below(1000)).into(),
        }
    }
}

/// What holds for every state, whatever the calls were.
fn invariants(state: &Model, chain_of: &BTreeMap<DeliveryId, Chain>) -> Step {
    let mut counts: BTreeMap<(EndpointId, String), u64> = BTreeMap::new();
    for id in state.records.keys() {
        let chains = state.endpoints.get(&id.endpoint).ok_or_else(|| format!("{id} is not counted"))?;
        let chain = &chain_of[id];
        if let Chain::Single(..) = chain {
            *counts.entry((id.endpoint.clone(), chain.name())).or_default() += 1;
        }
        let places = [
            state.due.contains_key(id),
            state.claimed.contains(id),
            chains.backlog.contains(&id.entry),
            chains.held.contains(&(chain.intent().clone(), id.entry)),
        ];
        let is_head = chains.heads.get(&chain.head_field()) == Some(&id.entry);
        if places.iter().filter(|place| **place).count() != 1 || is_head == places[3] {
            return Err(format!("{id} stands in due, claimed, backlog, held: {places:?}, head: {is_head}"));
        }
    }
    let counted: BTreeMap<_, _> = (state.endpoints.iter())
        .flat_map(|(endpoint, chains)| {
            chains.singles.iter().map(|(chain, count)| ((endpoint.clone(), chain.clone()), *count))
        })
        .collect();
    same("the counts of what is without order", &counted, &counts)?;
    let placed: usize = state.endpoints.values().map(|chains| chains.backlog.len() + chains.held.len()).sum();
    let heads: usize = state.endpoints.values().map(|chains| chains.heads.len()).sum();
    let held: usize = state.endpoints.values().map(|chains| chains.held.len()).sum();
    let unfinished: u64 = state.endpoints.values().map(|chains| chains.unfinished).sum();
    same("the places", &(placed + state.due.len() + state.claimed.len()), &state.records.len())?;
    same("heads and held", &(heads + held), &state.records.len())?;
    same("the counts per endpoint", &unfinished, &(state.records.len() as u64))
}

fn time_of(answer: &Answer) -> Option<u64> {
    match answer {
        Answer::Acquired { now_ms, .. }
        | Answer::Entries { now_ms, .. }
        | Answer::Settled { now_ms, .. }
        | Answer::Claimed { now_ms, .. }
        | Answer::Backlog { now_ms, .. }
        | Answer::PulledIn { now_ms, .. }
        | Answer::Heads { now_ms, .. }
        | Answer::Trimmed { now_ms, .. }
        | Answer::Noted { now_ms } => Some(*now_ms),
        _ => None,
    }
}

fn same<T: PartialEq + Debug>(what: &str, real: &T, model: &T) -> Step {
    match real == model {
        true => Ok(()),
        false => Err(format!("{what} differs\n redis: {real:?}\n model: {model:?}")),
    }
}

/// SplitMix64: small, and the same for ever, so that a seed keeps its walk.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

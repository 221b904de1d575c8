//! The scripts of routers, and of who asks for a partition, against their specification: random calls go to a real Redis and to a
//! model of each stream, and every answer must be the same, as must be the state. A failure prints its seed; `HERALD_SEED=N` runs
//! that one alone.

mod support;

#[path = "store_differential/real_state.rs"]
mod real_state;

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use bytes::Bytes;
use herald::{
    dispatch::handing::{Shape, share_out},
    facts::{
        delivery::Chain,
        id::{DeliveryId, EndpointId, EntryId, IntentId},
        letter::LetterFacts,
        partition::{Mode, part_of},
    },
    store::{
        connection::{Connection, Purpose},
        keys::PartitionKeys,
        model::Model,
        moving::{Exported, Handed, HandedOver, Pending, Took, Unended},
        partition::{PartitionStore, want},
        protocol::{Answer, Call, GROUP, Item, Place, ReadFrom, Settlement, Term},
        routing::{
            Appended, Batch, MAX_ENTRY_BYTES, MAX_ENTRY_FIELDS, NoPage, PartsStore, Passed, Replicas, Route,
            RouteStore, Trimming,
        },
    },
};
use real_state::Reader;
use redis::{FromRedisValue, aio::MultiplexedConnection};
use support::TestRedis;

const STREAM: &str = "payment-intents";
const PARTS: u32 = 2;
const WALKS: u64 = 40;
const STEPS: usize = 250;

type Step = Result<(), String>;

struct Walk {
    /// The stream, then its parts.
    models: Vec<Model>,
    keys: Vec<PartitionKeys>,
    stores: Vec<PartitionStore>,
    terms: Vec<Term>,
    route: Route,
    store: RouteStore,
    parts: PartsStore,
    work: Connection,
    raw: MultiplexedConnection,
    chance: Chance,
    number: u128,
    story: Vec<String>,
}

impl Walk {
    async fn new(redis: &TestRedis, seed: u64) -> Self {
        let names: Vec<String> =
            std::iter::once(STREAM.to_owned()).chain((0..PARTS).map(|k| part_of(STREAM, k))).collect();
        let keys: Vec<PartitionKeys> = names.iter().map(|name| PartitionKeys::new(name).unwrap()).collect();
        let work = redis.redis().connect(Purpose::Work).await.unwrap();
        let store = |keys: &PartitionKeys| PartitionStore::new(work.clone(), work.clone(), keys.clone(), 1_000);
        let replicas = Replicas { wanted: None, timeout: Duration::from_secs(1) };
        Self {
            models: keys.iter().map(|_| Model::default()).collect(),
            stores: keys.iter().map(store).collect(),
            terms: keys.iter().map(|_| Term::new(0, "worker")).collect(),
            route: Route { parts: PARTS, token: "t0".to_owned(), barrier: EntryId { ms: 3, seq: 0 } },
            store: RouteStore::new(redis.redis(), keys[0].clone(), replicas),
            parts: PartsStore::new(redis.redis(), &keys[0], PARTS, replicas).unwrap(),
            keys,
            work,
            raw: redis.connection().await,
            chance: Chance(seed),
            number: 0,
            story: Vec::new(),
        }
    }

    async fn step(&mut self) -> Step {
        match self.chance.below(56) {
            0..8 => self.publish().await,
            8..13 => self.read().await,
            13..23 => self.append().await,
            23..25 => self.trim().await,
            25..27 => self.set_mode().await,
            27..29 => self.gate().await,
            29..32 => self.acquire().await,
            32..34 => self.renew_or_release().await,
            34..36 => self.want().await,
            36 => self.write_to_a_part().await,
            37 => self.forget().await,
            38 => self.note_unreadable().await,
            40..46 => self.settle().await,
            46..48 => self.begin_to_read().await,
            48..50 => self.export().await,
            50..56 => self.hand_over().await,
            _ => self.place().await,
        }
    }

    async fn compare(&mut self) -> Step {
        for (at, keys) in self.keys.clone().iter().enumerate() {
            let real = Reader { connection: &mut self.raw, keys }.read().await;
            let mut model = self.models[at].clone();
            (model.now_ms, model.clock_seen) = (0, 0);
            model.lease.iter_mut().chain(&mut model.next).for_each(|lease| lease.until_ms = 0);
            model.marks.clear();
            model.endpoints.retain(|_, chains| *chains != Default::default());
            same("what is due", &real.due, &model.due)?;
            same("the endpoints", &real.endpoints, &model.endpoints)?;
            same("the dead letters", &real.dead, &model.dead)?;
            same(keys.stream(), &Model { marks: BTreeMap::new(), ..real }, &model)?;
        }
        Ok(())
    }

    /// Most have one field, some have several, some in an odd order, some none of ours; empty, twice, and not text at all.
    fn some_fields(&mut self) -> Vec<(Bytes, Bytes)> {
        let names: [&[u8]; 6] = [b"event", b"account-sequence", b"traceparent", b"", b"\xff\x00", b"event:x,1"];
        let values: [&[u8]; 5] = [b"{\"accountId\":\"acc_1\"}", b"", b"7", b"\r\n\xfe: ,", b"x"];
        if self.chance.one_in(2) {
            return vec![(Bytes::from_static(b"event"), Bytes::from_static(values[self.chance.below(5) as usize]))];
        }
        if self.chance.one_in(30) {
            let pair = |at: usize| (Bytes::from(format!("f{at}")), Bytes::from_static(b"v"));
            let mut many: Vec<_> = (0..MAX_ENTRY_FIELDS).map(pair).collect();
            many.extend(self.chance.one_in(2).then(|| (Bytes::from_static(b"event"), Bytes::from_static(b"{}"))));
            return many;
        }
        let mut one = || (names[self.chance.below(6) as usize], values[self.chance.below(5) as usize]);
        let pairs: Vec<_> = (0..4).map(|_| one()).collect();
        let count = 1 + self.chance.below(4) as usize;
        pairs[..count].iter().map(|(name, value)| (Bytes::from_static(name), Bytes::from_static(value))).collect()
    }

    fn next_id(&mut self, after: EntryId) -> EntryId {
        match self.chance.below(4) {
            0 => EntryId { ms: after.ms + 1 + self.chance.below(5), seq: self.chance.below(3) },
            1 if after.ms < 1 << 60 => EntryId { ms: (1 << 53) + after.ms + 1, seq: u64::MAX },
            _ => match after.seq.checked_add(1) {
                Some(seq) => EntryId { seq, ..after },
                None => EntryId { ms: after.ms + 1, seq: 0 },
            },
        }
    }

    async fn add(&mut self, at: usize) -> Step {
        let id = self.next_id(self.models[at].stream.last_generated);
        let fields = self.some_fields();
        self.story.push(format!("XADD {} {id} {fields:?}", self.keys[at].stream()).chars().take(200).collect());
        let mut add = redis::cmd("XADD");
        add.arg(self.keys[at].stream()).arg(id.to_string());
        for (name, value) in &fields {
            add.arg(&name[..]).arg(&value[..]);
        }
        let _: String = add.query_async(&mut self.raw).await.map_err(|error| error.to_string())?;
        self.models[at].add_entry(id, fields);
        Ok(())
    }

    async fn publish(&mut self) -> Step {
        self.add(0).await
    }

    /// Others write to a part too.
    async fn write_to_a_part(&mut self) -> Step {
        let at = 1 + self.chance.below(u64::from(PARTS)) as usize;
        self.add(at).await
    }

    /// An entry came back from the quarantine, or is sent again to one endpoint.
    async fn place(&mut self) -> Step {
        let Some(id) = self.some_id() else { return Ok(()) };
        let place = EntryId { ms: 1 + self.chance.below(9), seq: self.chance.below(2) };
        let only: Option<EndpointId> = self.chance.one_in(2).then(|| "ep_1".parse().unwrap());
        if self.models[0].places.contains_key(&id) {
            return Ok(());
        }
        let member =
            format!("{} {}{}", id.padded(), place.padded(), only.as_ref().map_or(String::new(), |ep| format!(" {ep}")));
        self.raw::<i64>(&["ZADD", &self.keys[0].places(), "0", &member]).await;
        self.models[0].places.insert(id, (place, only));
        Ok(())
    }

    fn some_id(&mut self) -> Option<EntryId> {
        let ids: Vec<EntryId> = self.models[0].stream.entries.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[self.chance.below(ids.len() as u64) as usize])
    }

    async fn read(&mut self) -> Step {
        let after = if self.chance.one_in(3) { self.some_id().unwrap_or_default() } else { EntryId::ZERO };
        let (most, of_stream) = (1 + self.chance.below(100) as usize, self.chance.one_in(2));
        self.tell(&("read", after, most, of_stream));
        let real = self.store.read(after, most, of_stream).await;
        let model = self.models[0].route_read(after, most, of_stream);
        match (real, model) {
            (Ok(real), Ok(model)) => {
                same("the page", &real, &herald::store::routing::Page { now_ms: real.now_ms, ..model })?;
                for entry in &real.entries {
                    let fields = &self.models[0].stream.entries[&entry.id];
                    let event = fields.iter().find(|(name, _)| name == "event").map(|(_, value)| &value[..]);
                    same("the event", &entry.event(), &event)?;
                    if fields.len() <= MAX_ENTRY_FIELDS {
                        same("the fields", &entry.fields(), fields)?;
                    }
                }
                Ok(())
            }
            (Err(NoPage::Mode(real)), Err(model)) => same("the mode", &real, &model),
            (real, model) => Err(format!("{real:?} and {model:?}")),
        }
    }

    /// From where the part is, or from anywhere else; everything, or a part of it.
    async fn append(&mut self) -> Step {
        let part = self.chance.below(u64::from(PARTS)) as u32;
        let at = part as usize + 1;
        let is = self.models[at].routed.unwrap_or_default().max(self.route.barrier);
        let after = if self.chance.one_in(4) { self.some_id().unwrap_or_default() } else { is };
        let (odd, most) = (self.chance.below(3), 1 + self.chance.below(20) as usize);
        let all = self.models[0].stream.entries.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
        let page: Vec<(EntryId, Vec<(Bytes, Bytes)>)> =
            all.take(most).map(|(id, fields)| (*id, fields.clone())).collect();
        let up_to = page.last().map_or(after, |(id, _)| *id);
        let small = |fields: &[(Bytes, Bytes)]| fields.len() <= MAX_ENTRY_FIELDS;
        let entries = page.iter().filter(|(id, fields)| id.seq % 3 != odd && small(fields));
        let entries: Vec<Passed> =
            entries.map(|(id, fields)| Passed::new(*id, fields, self.models[0].places.get(id))).collect();
        let token = if self.chance.one_in(8) { "t1" } else { "t0" };
        let route = Route { token: token.to_owned(), ..self.route.clone() };
        let batch = Batch { part, after, up_to, entries };
        self.tell(&("append", token, part, after, up_to, batch.entries.len()));
        let mut said = Vec::new();
        for appending in self.parts.append(&route, vec![batch.clone()]).await {
            said.extend(self.parts.appended(appending.send().await));
        }
        let real: Vec<Result<Appended, String>> =
            said.into_iter().map(|(_, said, _)| said.map_err(|error| error.to_string())).collect();
        same("what the part says", &real, &vec![Ok(self.models[at].append(&route, &batch))])
    }

    async fn trim(&mut self) -> Step {
        let safe = self.some_id().unwrap_or_default();
        let highest = if self.chance.one_in(4) { self.next_id(self.models[0].stream.last_generated) } else { safe };
        let trim = Trimming { safe, highest };
        self.tell(&trim);
        let real = self.store.trim(&self.terms[0], &trim, 0, &[]).await.map_err(|error| error.to_string())?;
        self.models[0].now_ms = self.redis_time().await;
        let model = self.models[0].route_trim(&self.terms[0].clone(), &trim, 0, &[]).ok();
        same("what was trimmed", &real, &model)
    }

    fn some_mode(&mut self) -> Mode {
        match self.chance.below(6) {
            0 => Mode::Worked,
            1 => Mode::Splitting { parts: PARTS, token: "t0".to_owned(), has_begun: self.chance.one_in(2) },
            _ => Mode::Routed { parts: PARTS, token: "t0".to_owned(), barrier: self.route.barrier },
        }
    }

    async fn set_mode(&mut self) -> Step {
        let from = if self.chance.one_in(3) { self.some_mode() } else { self.models[0].mode.clone() };
        let to = self.some_mode();
        self.tell(&(&from, &to));
        let real = self.store.set_mode(&self.terms[0], &from, &to).await.map_err(|error| error.to_string())?;
        self.models[0].now_ms = self.redis_time().await;
        let model = self.models[0].set_mode(&self.terms[0].clone(), &from, &to);
        same("the mode", &real, &model)
    }

    async fn gate(&mut self) -> Step {
        let part = self.chance.below(u64::from(PARTS)) as u32;
        let token = if self.chance.one_in(3) { "t1" } else { "t0" };
        self.tell(&("gate", part, token));
        let real = self.store.gate(part, token).await.map_err(|error| error.to_string())?;
        let now_ms = self.redis_time().await;
        let model = &mut self.models[part as usize + 1];
        model.now_ms = now_ms;
        same("the gate", &real, &model.close(token))?;
        if self.chance.one_in(4) {
            let token = if self.chance.one_in(2) { "t1" } else { "t0" };
            self.tell(&("open", part, token));
            self.store.open(part, token).await.map_err(|error| error.to_string())?;
            self.models[part as usize + 1].open_part(token);
        }
        Ok(())
    }

    fn some_stream(&mut self) -> usize {
        self.chance.below(u64::from(PARTS) + 1) as usize
    }

    async fn acquire(&mut self) -> Step {
        let at = self.some_stream();
        self.number += 1;
        let worker = if self.chance.one_in(2) { "worker" } else { "other one" };
        let term = Term::new(self.number, worker);
        let previous = if self.chance.one_in(2) { vec![self.terms[at].clone()] } else { vec![] };
        let call = Call::Acquire { term: term.clone(), previous, ttl_ms: 600_000 };
        let (real, model) = self.both(at, call).await?;
        let timeless = |answer: Answer| match answer {
            Answer::Acquired { mode, .. } => Answer::Acquired { now_ms: 0, mode },
            Answer::Taken { by, .. } => Answer::Taken { by, left_ms: 0 },
            Answer::Reserved { worker, .. } => Answer::Reserved { worker, left_ms: 0 },
            other => other,
        };
        if matches!(real, Answer::Acquired { .. }) {
            self.terms[at] = term;
        }
        same("the lease", &timeless(real), &timeless(model))
    }

    async fn renew_or_release(&mut self) -> Step {
        let at = self.some_stream();
        let term = self.terms[at].clone();
        let call = match self.chance.one_in(2) {
            true => Call::Renew { term, ttl_ms: 600_000 },
            false => Call::Release { term },
        };
        let (real, model) = self.both(at, call).await?;
        same("the lease", &real, &model)
    }

    async fn both(&mut self, at: usize, call: Call) -> Result<(Answer, Answer), String> {
        self.tell(&(self.keys[at].stream().to_owned(), &call));
        let real = self.stores[at].call(&call).await.map_err(|failure| format!("{failure:?}"))?;
        self.models[at].now_ms = self.redis_time().await;
        Ok((real, self.models[at].call(&call).expect("this model is never full")))
    }

    async fn want(&mut self) -> Step {
        use herald::store::protocol::Wanted;
        let at = self.some_stream();
        let worker = if self.chance.one_in(2) { "worker" } else { "other one" };
        self.tell(&("want", self.keys[at].stream().to_owned(), worker));
        let mut connection = self.work.clone();
        let real = want(&mut connection, &self.keys[at], worker, 60_000).await.map_err(|error| error.to_string())?;
        self.models[at].now_ms = self.redis_time().await;
        let model = self.models[at].want(worker, 60_000);
        let timeless = |wanted: Wanted| match wanted {
            Wanted::Asked { owner, .. } => Wanted::Asked { owner, left_ms: 0 },
            other => other,
        };
        same("the wish", &timeless(real), &timeless(model))
    }

    /// A failover has set a part back, or all of it is gone.
    async fn forget(&mut self) -> Step {
        let at = 1 + self.chance.below(u64::from(PARTS)) as usize;
        let keys = self.keys[at].clone();
        match self.chance.below(3) {
            0 => {
                self.raw::<i64>(&["DEL", &keys.routed()]).await;
                self.models[at].routed = None;
            }
            1 => {
                self.raw::<i64>(&["DEL", &keys.gate()]).await;
                self.models[at].gate = None;
            }
            _ => {
                self.raw::<i64>(&["DEL", &keys.next(), &keys.lease(), &keys.places(), keys.stream()]).await;
                let model = &mut self.models[at];
                (model.next, model.lease) = (None, None);
                model.places.clear();
                model.stream = Default::default();
            }
        }
        Ok(())
    }

    /// Its owner keeps records and letters, ends some, and acknowledges entries.
    async fn settle(&mut self) -> Step {
        let items = (0..1 + self.chance.below(4)).map(|_| self.some_item()).collect();
        let pending = self.models[0].stream.groups.get(GROUP).map(|group| group.pending.keys().copied().collect());
        let pending: Vec<EntryId> = pending.unwrap_or_default();
        let acks = pending.into_iter().filter(|_| self.chance.one_in(4)).collect();
        let settlement = Settlement { items, acks, log: Vec::new(), last_read: EntryId { ms: 2, seq: 0 } };
        let term = self.terms[0].clone();
        let (real, model) = self.both(0, Call::Settle { term, settlement }).await?;
        let timeless = |answer: Answer| match answer {
            Answer::Settled { counts, group_missing, .. } => {
                Answer::Settled { now_ms: 0, next_due_ms: None, counts, group_missing }
            }
            other => other,
        };
        self.hear_times(0).await?;
        same("what is settled", &timeless(real), &timeless(model))
    }

    fn some_item(&mut self) -> Item {
        let number = 1 + self.chance.below(3);
        let id: DeliveryId = format!("{}-0:ep_{number}", 1 + self.chance.below(6)).parse().unwrap();
        let intent: IntentId = format!("pi_{}", 1 + self.chance.below(2)).parse().unwrap();
        // What it was when it got its record, it stays.
        let is_ordered = !id.entry.ms.is_multiple_of(3);
        let intent = if is_ordered { intent } else { "pi_1".parse().unwrap() };
        let known = |intent: &IntentId| match is_ordered {
            true => Chain::Intent(intent.clone()),
            false => Chain::Single(intent.clone(), id.entry),
        };
        let record =
            |intent: &IntentId| Bytes::from(format!("{{\"account\":\"acc_{number}\",\"intent\":\"{intent}\"}}\nx"));
        // A record's chain is in it.
        let intent = match self.models[0].records.get(&id) {
            Some(before) if String::from_utf8_lossy(before).contains("pi_2") => "pi_2".parse().unwrap(),
            Some(_) => "pi_1".parse().unwrap(),
            None => intent,
        };
        let chain = known(&intent);
        let account = self.chance.one_in(2).then(|| format!("acc_{number}").parse().unwrap());
        let facts = Box::new(LetterFacts { account, ..LetterFacts::unreadable() });
        match self.chance.below(8) {
            0 => Item::Finish { id, chain },
            1 => Item::Bury { id, chain, facts, letter: "letter".into() },
            2 if !self.models[0].records.contains_key(&id) => {
                Item::TakeLetter { id, at_ms: 1_000 + self.chance.below(100), facts, letter: "other letter".into() }
            }
            3 => Item::Discard { id },
            4 if self.chance.one_in(3) => {
                Item::TakeUnreadable { endpoint: id.endpoint, at_ms: 1_000 + self.chance.below(100) }
            }
            4 => Item::Take { id, chain, place: Place::DueIn(1_000_000), record: record(&intent) },
            _ => {
                let far = Place::DueIn(86_400_000);
                let place = [Place::Claimed, Place::Held, Place::Backlog, far][self.chance.below(4) as usize];
                Item::Keep { id, chain, place, record: record(&intent) }
            }
        }
    }

    async fn note_unreadable(&mut self) -> Step {
        let endpoints = (1..=3).filter(|_| self.chance.one_in(2)).map(|n| format!("ep_{n}").parse().unwrap()).collect();
        let call = Call::NoteUnreadable { term: self.terms[0].clone(), endpoints, holds_ms: 1_000_000_000 };
        let (real, model) = self.both(0, call).await?;
        same("whether it is noted", &matches!(real, Answer::Noted { .. }), &matches!(model, Answer::Noted { .. }))?;
        // By Redis' clock, which has gone on since.
        let noted: BTreeMap<String, u64> =
            self.raw(&["ZRANGE", &self.keys[0].unreadable(), "0", "-1", "WITHSCORES"]).await;
        let known: Vec<&str> = self.models[0].unreadable.keys().map(EndpointId::as_str).collect();
        same("what is noted", &noted.keys().map(String::as_str).collect(), &known)?;
        self.models[0].unreadable = noted.into_iter().map(|(name, at_ms)| (name.parse().unwrap(), at_ms)).collect();
        Ok(())
    }

    /// The owner's group is there, and some entries are pending.
    async fn begin_to_read(&mut self) -> Step {
        let term = self.terms[0].clone();
        let start = herald::store::protocol::Start::Oldest;
        let open = Call::Open { term: term.clone(), start, registry: "reg_1".to_owned() };
        let (real, model) = self.both(0, open).await?;
        same("how it opens", &real, &model)?;
        let read = Call::Read { term, from: ReadFrom::New, max: 1 + self.chance.below(4) as usize };
        let (real, model) = self.both(0, read).await?;
        let ids = |answer: Answer| match answer {
            Answer::Entries { entries, .. } => entries.into_iter().map(|entry| entry.id).collect(),
            _ => Vec::new(),
        };
        same("what is read", &ids(real), &ids(model))
    }

    /// All of it, or the first of it: then of each chain the first.
    async fn export(&mut self) -> Result<(), String> {
        let most = if self.chance.one_in(2) { 200 } else { 1 + self.chance.below(6) as usize };
        self.tell(&("export", most));
        let term = self.terms[0].clone();
        let real = self.store.export(&term, most).await.map_err(|error| error.to_string())?;
        self.models[0].now_ms = self.redis_time().await;
        let all = self.models[0].export(&term, usize::MAX).ok();
        let (Some(mut real), Some(mut all)) = (real.clone(), all.clone()) else {
            return same("whether it has the lease", &real.is_some(), &all.is_some());
        };
        // Clocks are read one after the other.
        let coarse = |unended: &mut Unended| {
            if let Place::DueIn(ms) = &mut unended.place {
                *ms = (*ms + 30_000) / 60_000;
            }
        };
        real.records.iter_mut().chain(&mut all.records).for_each(coarse);
        (real.now_ms, all.now_ms) = (0, 0);
        same("how much it is", &real.len(), &all.len().min(most))?;
        same("the barrier", &real.barrier, &all.barrier)?;
        let concerned = |at: &EndpointId| real.records.iter().any(|one| one.id.endpoint == *at);
        let noted = |exported: &Exported| -> BTreeMap<EndpointId, u64> {
            let noted = exported.unreadable.iter().filter(|(at, _)| concerned(at));
            noted.map(|(at, at_ms)| (at.clone(), *at_ms)).collect()
        };
        same("what could not be read", &noted(&real), &noted(&all))?;
        let is_first = |real: &[Pending], all: &[Pending]| all.starts_with(real);
        if !is_first(&real.entries, &all.entries) {
            return Err(format!("{:?} is not the first of {:?}", real.entries, all.entries));
        }
        let chains = |records: &[Unended]| {
            let mut chains: BTreeMap<(EndpointId, String), Vec<Unended>> = BTreeMap::new();
            for one in records {
                chains.entry((one.id.endpoint.clone(), one.head_field.clone())).or_default().push(one.clone());
            }
            chains
        };
        let chains_of_all = chains(&all.records);
        for (chain, records) in chains(&real.records) {
            if !chains_of_all.get(&chain).is_some_and(|all| all.starts_with(&records)) {
                return Err(format!("{records:?} is not the first of {:?}", chains_of_all.get(&chain)));
            }
        }
        match all.letters.starts_with(&real.letters) {
            true => Ok(()),
            false => Err(format!("{:?} is not the first of {:?}", real.letters, all.letters)),
        }
    }

    /// To parts that this split is to fill, and to others; once or again, with what is handed over taken out or not.
    async fn hand_over(&mut self) -> Step {
        let term = self.terms[0].clone();
        let most = 1 + self.chance.below(12) as usize;
        let exported = self.store.export(&term, most).await.map_err(|error| error.to_string())?;
        let Some(exported) = exported else { return Ok(()) };
        let shape = Shape { above: 1, parts: PARTS };
        let (handed, leaves) = share_out(exported, shape, |_| None);
        let token = if self.chance.one_in(8) { "t1" } else { "t0" };
        // In most of the parts this split has just begun.
        for part in 1..=PARTS as usize {
            if !self.chance.one_in(4) {
                self.raw::<()>(&["SET", &self.keys[part].gate(), "t0"]).await;
                self.models[part].gate = Some("t0".to_owned());
            }
        }
        self.tell(&("hand over", token, &handed));
        let real = self.parts.hand_over(token, &handed).await.map_err(|error| error.to_string())?;
        let now_ms = self.redis_time().await;
        self.models.iter_mut().for_each(|model| model.now_ms = now_ms);
        let model = self.handed_over(token, &handed);
        for part in 1..=PARTS as usize {
            self.hear_times(part).await?;
        }
        same("what the parts say", &real, &model)?;
        if real == HandedOver::Done && !self.chance.one_in(3) {
            let real = self.store.take_out(&term, &leaves).await.map_err(|error| error.to_string())?;
            let (now_ms, call) = (self.redis_time().await, Call::Settle { term, settlement: leaves });
            self.models[0].now_ms = now_ms;
            let model = self.models[0].call(&call).expect("this model is never full");
            self.hear_times(0).await?;
            same("whether it was taken out", &real, &matches!(model, Answer::Settled { .. }))?;
        }
        Ok(())
    }

    fn handed_over(&mut self, token: &str, handed: &[Handed]) -> HandedOver {
        let mut open: Vec<(&Handed, EntryId)> =
            handed.iter().filter(|one| !one.entries.is_empty()).map(|one| (one, EntryId::ZERO)).collect();
        while !open.is_empty() {
            let said: Vec<(&Handed, Appended)> = open
                .iter()
                .map(|(one, after)| {
                    let entries: Vec<Passed> = one.entries.iter().filter(|entry| entry.id > *after).cloned().collect();
                    let up_to = entries.last().map_or(*after, |last| last.id);
                    let batch = Batch { part: one.part, after: *after, up_to, entries };
                    (*one, self.models[one.part as usize + 1].take_pending(token, &batch))
                })
                .collect();
            open.clear();
            for (one, said) in said {
                match said {
                    Appended::Done { .. } => {}
                    Appended::At(at) => open.push((one, at)),
                    Appended::Gated { .. } | Appended::Open | Appended::Partly(_) => {
                        return HandedOver::Refused { part: one.part };
                    }
                }
            }
        }
        let given = handed.iter().filter(|one| !one.items.is_empty());
        let took: Vec<(u32, Took)> =
            given.map(|one| (one.part, self.models[one.part as usize + 1].adopt(token, &one.items))).collect();
        match took.iter().find(|(_, took)| *took == Took::Nothing) {
            Some((part, _)) => HandedOver::Refused { part: *part },
            None => HandedOver::Done,
        }
    }

    /// Redis' clock goes on between its answer and the look at it: where a time is nearly the model's, it is the model's.
    async fn hear_times(&mut self, at: usize) -> Step {
        let keys = self.keys[at].clone();
        for (key, of) in [(keys.due(), "due"), (keys.dead(), "dead")] {
            let real: Vec<(String, f64)> = redis::cmd("ZRANGE")
                .arg(&[&key, "0", "-1", "WITHSCORES"])
                .query_async(&mut self.raw)
                .await
                .map_err(|error| error.to_string())?;
            for (id, ms) in real {
                let (id, ms): (DeliveryId, u64) = (id.parse().unwrap(), ms as u64);
                let model = &mut self.models[at];
                let known =
                    if of == "due" { model.due.get_mut(&id) } else { model.dead.get_mut(&id).map(|(at, _)| at) };
                let Some(known) = known.filter(|known| known.abs_diff(ms) < 5_000) else { continue };
                *known = ms;
                if let (Some((at, _)), "dead") = (model.dead_facts.get_mut(&id), of) {
                    *at = ms;
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self, what: &impl Debug) {
        self.story.push(format!("{what:?}").chars().take(300).collect());
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
}

#[tokio::test]
async fn random_calls_leave_every_stream_as_its_model() {
    let redis = TestRedis::start().await;
    let (seeds, every) = match std::env::var("HERALD_SEED") {
        Ok(seed) => (vec![seed.parse().expect("HERALD_SEED is a number")], 1),
        Err(_) => ((1..=WALKS).collect::<Vec<u64>>(), 10),
    };
    let (mut appended, mut handed) = (0, 0);
    for seed in seeds {
        redis.command::<()>(&["FLUSHALL"]).await;
        let mut walk = Walk::new(&redis, seed).await;
        for step in 1..=STEPS {
            let mut result = walk.step().await;
            if result.is_ok() && step % every == 0 {
                result = walk.compare().await;
            }
            if let Err(why) = result {
                let last = walk.story[walk.story.len().saturating_sub(12)..].join("\n  ");
                panic!("seed {seed}, step {step}: {why}\n\nthe last steps:\n  {last}");
            }
        }
        handed += walk.models[1..].iter().map(|model| model.records.len() + model.dead.len()).sum::<usize>();
        appended += walk.models[1..].iter().map(|model| model.stream.entries.len()).sum::<usize>();
    }
    assert!(handed > 100, "{handed} records and letters: nothing was handed over");
    assert!(appended > 100, "{appended} entries: nothing was passed on");
}

/// What one call could not carry does not stop the others.
#[tokio::test]
async fn an_entry_that_is_too_large_goes_as_far_as_it_is_read() {
    let redis = TestRedis::start().await;
    let mut walk = Walk::new(&redis, 1).await;
    walk.models[0].mode = Mode::Routed { parts: PARTS, token: "t0".to_owned(), barrier: walk.route.barrier };
    let mode = walk.models[0].mode.to_text().unwrap();
    walk.raw::<()>(&["SET", &walk.keys[0].mode(), &mode]).await;
    let large = "x".repeat(MAX_ENTRY_BYTES);
    for (id, fields) in
        [("5-0", vec!["event", &large]), ("6-0", vec!["event", &large, "traceparent", "t"]), ("7-0", vec!["x", &large])]
    {
        let mut words = vec!["XADD", STREAM, id];
        words.extend(&fields);
        redis.command::<String>(&words).await;
        let fields =
            fields.chunks(2).map(|pair| (Bytes::from(pair[0].to_owned()), Bytes::from(pair[1].to_owned()))).collect();
        walk.models[0].add_entry(id.parse().unwrap(), fields);
    }
    let mut after = EntryId::ZERO;
    for cut in [false, true, true] {
        let real = walk.store.read(after, 1, false).await.unwrap();
        let model = walk.models[0].route_read(after, 1, false).unwrap();
        assert!(real.entries == model.entries, "the entry behind {after} differs");
        assert_eq!(real.entries[0].bytes() < MAX_ENTRY_BYTES, cut);
        after = real.entries[0].id;
        let batch = Batch {
            part: 0,
            after: walk.models[1].routed.unwrap_or(walk.route.barrier),
            up_to: after,
            entries: real.entries,
        };
        let route = walk.route.clone();
        for appending in walk.parts.append(&route, vec![batch.clone()]).await {
            for (_, said, _) in walk.parts.appended(appending.send().await) {
                assert_eq!(said.unwrap(), walk.models[1].append(&route, &batch));
            }
        }
    }
    walk.compare().await.map_err(|why| why.chars().take(300).collect::<String>()).unwrap();
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

/// A node that has just become the master has no script and, often, no replica: nobody waits for that before it is known how far its
/// parts are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_new_is_asked_once_and_not_waited_for() {
    let redis = TestRedis::start().await;
    let keys = PartitionKeys::new(STREAM).unwrap();
    let replicas = Replicas { wanted: Some(1), timeout: Duration::from_millis(300) };
    let mut parts = PartsStore::new(redis.redis(), &keys, PARTS, replicas).unwrap();
    let route = Route { parts: PARTS, token: "t0".to_owned(), barrier: EntryId::ZERO };
    for is_new in [true, false] {
        let _: String = redis.command(&["CONFIG", "RESETSTAT"]).await;
        let batches =
            (0..PARTS).map(|part| Batch { part, after: EntryId::ZERO, up_to: EntryId::ZERO, entries: vec![] });
        for appending in parts.append(&route, batches.collect()).await {
            for (part, said, is_confirmed) in parts.appended(appending.send().await) {
                assert!(said.is_ok(), "{part}: {said:?}");
                assert!(!is_confirmed, "there is no replica");
            }
        }
        let stats: String = redis.command(&["INFO", "commandstats"]).await;
        let line = stats.lines().find(|line| line.starts_with("cmdstat_wait:")).unwrap();
        assert!(line.contains("calls=1,"), "{line}");
        assert_eq!(parts.are_replicas_behind(), !is_new);
    }
}

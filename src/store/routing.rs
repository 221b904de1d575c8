//! What a router asks of Redis: entries of a stream that is split, and that its parts take them. Owns how an entry is written on the
//! way; `model/routing.rs` says what each call means. Never repeats anything and never decides anything: `dispatch` does.

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use redis::Value;

use super::{
    connection::{Connection, Purpose, Redis, Script, ScriptCall, Subject},
    error::StoreError,
    keys::{KeyError, PartitionKeys},
    partition::scripts,
    protocol::{GROUP, RETAIN_PARTS, Term},
    topology::Kind,
};
use crate::{
    facts::{
        event::MAX_EVENT_BYTES,
        id::{EndpointId, EntryId},
        partition::{Mode, part_of},
    },
    telemetry::calls::{Replicated, unconfirmed},
};

/// The most entries of one look.
pub const MAX_ROUTED: usize = 2_000;

/// An entry with more is not passed on as it is, but as far as Herald reads it: one call could not carry it.
pub const MAX_ENTRY_BYTES: usize = 8 * 1024 * 1024;
pub const MAX_ENTRY_FIELDS: usize = 1_000;

/// The longest value of such an entry: one byte more than an event may have, so that it is still too long.
pub const MAX_VALUE_BYTES: usize = MAX_EVENT_BYTES + 1;

/// An entry's fields, in their order.
pub type Fields = Vec<(Bytes, Bytes)>;

/// The entry whose place in the order another one has, and the endpoint that alone it is for.
pub type PlaceOf = (EntryId, Option<EndpointId>);

/// An entry on its way from a stream to one of its parts, as `route_read.lua` writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    pub id: EntryId,
    head: Bytes,
    text: Bytes,
}

impl Passed {
    pub fn new(id: EntryId, fields: &[(Bytes, Bytes)], place: Option<&PlaceOf>) -> Self {
        let parts = || fields.iter().flat_map(|(name, value)| [name, value]);
        let (lengths, text) = match fields {
            [(name, event)] if name == "event" => (String::new(), event.clone()),
            _ => {
                let lengths: Vec<String> = parts().map(|part| part.len().to_string()).collect();
                let mut text = BytesMut::with_capacity(parts().map(Bytes::len).sum());
                parts().for_each(|part| text.put_slice(part));
                (lengths.join(","), text.freeze())
            }
        };
        let head = match place {
            Some((place, Some(only))) => format!("{id}:{lengths}:{place}:{only}"),
            Some((place, None)) => format!("{id}:{lengths}:{place}"),
            None if lengths.is_empty() => id.to_string(),
            None => format!("{id}:{lengths}"),
        };
        Self { id, head: head.into(), text }
    }

    pub(super) fn read(head: Bytes, text: Bytes) -> Result<Self, String> {
        let id = head.split(|byte| *byte == b':').next().unwrap_or_default();
        let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
        let id = id.ok_or_else(|| format!("{head:?} is not the head of an entry"))?;
        Ok(Self { id, head, text })
    }

    /// What is behind the id: lengths, place, endpoint.
    fn parts(&self) -> impl Iterator<Item = &str> {
        std::str::from_utf8(&self.head).unwrap_or_default().split(':').skip(1)
    }

    /// Its event, if it has one: the first field of that name.
    pub fn event(&self) -> Option<&[u8]> {
        let lengths = self.parts().next().unwrap_or_default();
        if lengths.is_empty() {
            return Some(&self.text);
        }
        let (mut lengths, mut at) = (lengths.split(','), 0);
        let mut next = || {
            let part = self.text.get(at..at + lengths.next()?.parse::<usize>().ok()?)?;
            at += part.len();
            Some(part)
        };
        while let (Some(name), Some(value)) = (next(), next()) {
            if name == b"event" {
                return Some(value);
            }
        }
        None
    }

    /// All of it.
    pub fn fields(&self) -> Fields {
        let lengths = self.parts().next().unwrap_or_default();
        if lengths.is_empty() {
            return vec![(Bytes::from_static(b"event"), self.text.clone())];
        }
        let mut text = self.text.clone();
        let parts = lengths.split(',').map(|length| text.split_to(length.parse().unwrap_or(0)));
        let parts: Vec<Bytes> = parts.collect();
        parts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }

    pub fn place(&self) -> Option<PlaceOf> {
        let mut parts = self.parts().skip(1);
        let place = parts.next()?.parse().ok()?;
        Some((place, parts.next().and_then(|only| only.parse().ok())))
    }

    /// Roughly what it takes in memory.
    pub fn bytes(&self) -> usize {
        self.head.len() + self.text.len()
    }
}

/// Entries of the stream behind an id, and what there is of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    pub now_ms: u64,
    /// There may be more behind the last of these.
    pub has_more: bool,
    /// Where it was asked for.
    pub of_stream: Option<OfStream>,
    /// Up to here all parts once had everything, and it may have been trimmed.
    pub cursor: Option<EntryId>,
    pub entries: Vec<Passed>,
}

/// The last id that a stream gave out, and the oldest entry that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfStream {
    pub last: EntryId,
    pub oldest: Option<EntryId>,
}

/// What a part is given: all that there is for it behind `after`, up to `up_to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub part: u32,
    pub after: EntryId,
    pub up_to: EntryId,
    pub entries: Vec<Passed>,
}

/// What a part says of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// It has taken all of it; the last of them got this id.
    Done { count: u64, last: Option<EntryId> },
    /// Its Redis is full, and it has taken what there was up to here.
    Partly(EntryId),
    /// Nothing of it: it has taken, or passed, what there was up to here.
    At(EntryId),
    /// It is to be filled by another split.
    Gated { token: String },
    /// What was to be handed over to it is there, and it has begun.
    Open,
}

/// How far the parts of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trimming {
    /// All of them have what there was for them up to here, and replicas have it too.
    pub safe: EntryId,
    /// One of them has something up to here. The stream gives out larger ids only, also where a failover made it forget some.
    pub highest: EntryId,
}

/// Why a look at a stream shows nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPage {
    /// Its mode is this one.
    Mode(String),
    Failed(StoreError),
}

/// What became of closing a part for a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gating {
    Done,
    /// Another split has closed it, and has handed over something.
    Gated {
        token: String,
    },
    /// Somebody works on it, or did.
    Used,
}

/// What became of a change of the mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModeSet {
    Done,
    /// It has this one.
    Is(String),
    Lost,
}

/// The split that a router carries out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub parts: u32,
    pub token: String,
    pub barrier: EntryId,
}

impl Route {
    /// Of a stream that is routed.
    pub fn of(mode: &Mode) -> Option<Self> {
        match mode {
            Mode::Routed { parts, token, barrier } => {
                Some(Self { parts: *parts, token: token.clone(), barrier: *barrier })
            }
            Mode::Worked | Mode::Splitting { .. } => None,
        }
    }
}

/// How many replicas are to confirm what crosses a slot, and how long they are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    /// None: as many as the kind of Redis has, one where there are replicas.
    pub wanted: Option<u8>,
    pub timeout: Duration,
}

/// Replicas that were away are waited for no longer than this, until they are back: others need not wait for them each time.
const SHORT_WAIT_MS: u64 = 5;

/// A stream that is split, or is to be, as its owner sees it.
pub struct RouteStore {
    redis: Redis,
    keys: PartitionKeys,
    replicas: Replicas,
    own: Option<Connection>,
}

/// The parts of a stream, by the nodes that serve them.
pub struct PartsStore {
    pub(super) redis: Redis,
    pub(super) replicas: Replicas,
    pub(super) parts: Vec<PartitionKeys>,
    pub(super) nodes: HashMap<String, Wired>,
}

/// A connection to a node, and whether its replicas were away when they were last waited for.
#[derive(Clone)]
pub(super) struct Wired {
    pub connection: Connection,
    pub are_behind: bool,
}

/// A batch's part, what it said, and whether replicas have confirmed that.
pub type Said = (u32, Result<Appended, StoreError>, bool);

impl RouteStore {
    pub fn new(redis: Redis, keys: PartitionKeys, replicas: Replicas) -> Self {
        Self { redis: redis.at_home_in(keys.slot()), keys, replicas, own: None }
    }

    pub fn keys(&self) -> &PartitionKeys {
        &self.keys
    }

    /// Up to `most` entries behind this id, or a mebibyte of them; and what there is of the stream, if that is asked for.
    pub async fn read(&mut self, after: EntryId, most: usize, of_stream: bool) -> Result<Page, NoPage> {
        let keys = &self.keys;
        let call = ROUTE_READ.keys_to_read(&[keys.stream(), &keys.mode(), &keys.cursor(), &keys.places()]);
        let call = call.text(after).arg(most.clamp(1, MAX_ROUTED));
        let call = call.arg(MAX_VALUE_BYTES).arg(MAX_ENTRY_BYTES).arg(MAX_ENTRY_FIELDS).arg(u8::from(of_stream));
        let value = self.run("look at entries of", &call).await.map_err(NoPage::Failed)?;
        let subject = Subject("look at entries of", self.keys.stream());
        match page(value).map_err(|why| NoPage::Failed(StoreError::unexpected(subject, why)))? {
            Ok(page) => Ok(page),
            Err(mode) => Err(NoPage::Mode(mode)),
        }
    }

    /// What was trimmed; none if the term has lost the lease.
    pub async fn trim(
        &mut self,
        term: &Term,
        trim: &Trimming,
        retain_ms: u64,
        ignores: &[String],
    ) -> Result<Option<u64>, StoreError> {
        let keys = &self.keys;
        let names = [keys.stream(), &keys.lease(), &keys.marks(), &keys.places(), &keys.cursor()];
        let call = ROUTE_TRIM.keys(&names).arg(term.as_str()).text(trim.safe).text(trim.highest);
        let call = call.arg(retain_ms).arg(RETAIN_PARTS).arg(GROUP).arg(ignores);
        let answer = self.run("trim", &call).await?;
        match words("trim", &self.keys, answer)?.as_slice() {
            [word, count] if word == "TRIMMED" => Ok(count.parse().ok()),
            _ => Ok(None),
        }
    }

    /// Says what becomes of the stream's entries, if that is still as `from` says.
    pub async fn set_mode(&mut self, term: &Term, from: &Mode, to: &Mode) -> Result<ModeSet, StoreError> {
        let text = |mode: &Mode| mode.to_text().unwrap_or_default();
        let call = SET_MODE.keys(&[&self.keys.lease(), &self.keys.mode(), &self.keys.cursor()]);
        let call = call.arg(term.as_str()).arg(text(from)).arg(text(to));
        let answer = self.run("change the mode of", &call).await?;
        match words("change the mode of", &self.keys, answer)?.as_slice() {
            [word] if word == "OK" => Ok(ModeSet::Done),
            [word, mode] if word == "IS" => Ok(ModeSet::Is(mode.clone())),
            _ => Ok(ModeSet::Lost),
        }
    }

    /// Whether nothing but entries is there: no group of Herald's, no record, no letter.
    pub async fn is_fresh(&mut self) -> Result<bool, StoreError> {
        let keys = self.keys.clone();
        let subject = Subject("look whether anything was done with", keys.stream());
        let mut exists = redis::cmd("EXISTS");
        exists.arg(&[
            keys.cursor(),
            keys.registry_id(),
            keys.unfinished(),
            keys.due(),
            keys.claimed(),
            keys.dead(),
            keys.quarantine(),
        ]);
        let connection = self.own().await?;
        let used: u64 = connection.query(subject, &exists).await?;
        // Its group is made in the same step as its registry is noted.
        Ok(used == 0)
    }

    /// Whether it is a part of another stream.
    pub async fn is_part(&mut self) -> Result<bool, StoreError> {
        let subject = Subject("look whether it is a part,", self.keys.stream()).to_string();
        let exists = redis::cmd("EXISTS").arg(&[self.keys.gate(), self.keys.routed()]).to_owned();
        Ok(self.own().await?.query::<u64>(&subject, &exists).await? > 0)
    }

    /// Whether every part was once known to have begun.
    pub async fn has_begun(&mut self) -> Result<bool, StoreError> {
        let subject = Subject("look whether the parts have begun of", self.keys.stream()).to_string();
        let exists = redis::cmd("EXISTS").arg(self.keys.cursor()).to_owned();
        self.own().await?.query(&subject, &exists).await
    }

    /// The last entry that the stream has now.
    pub async fn last(&mut self) -> Result<EntryId, StoreError> {
        let subject = Subject("look for the last entry of", self.keys.stream()).to_string();
        let ask = redis::cmd("XREVRANGE").arg(self.keys.stream()).arg("+").arg("-").arg("COUNT").arg(1).to_owned();
        let found: Vec<(String, Value)> = self.own().await?.query(&subject, &ask).await?;
        let last = found.first().map_or(Ok(EntryId::ZERO), |(id, _)| id.parse());
        last.map_err(|error| StoreError::unexpected(&subject, error))
    }

    /// Closes a part until this split is over.
    pub async fn gate(&mut self, part: u32, token: &str) -> Result<Gating, StoreError> {
        self.set_gate(part, token, "close").await
    }

    /// Opens a part that this split has closed, and has given nothing.
    pub async fn open(&mut self, part: u32, token: &str) -> Result<(), StoreError> {
        self.set_gate(part, token, "open").await.map(drop)
    }

    async fn set_gate(&mut self, part: u32, token: &str, how: &str) -> Result<Gating, StoreError> {
        let subject = |error| StoreError::unexpected(Subject("close a part of", self.keys.stream()), error);
        let keys = PartitionKeys::new(&part_of(self.keys.stream(), part)).map_err(subject)?;
        let names =
            [&*keys.gate(), &keys.routed(), &keys.lease(), &keys.registry_id(), &keys.unfinished(), &keys.dead()];
        let call = GATE.keys(&names).arg(token).arg(how);
        let answer = self.own().await?.run(Subject("close", keys.stream()), &call).await?;
        match words("close", &keys, answer)?.as_slice() {
            [word] if word == "OK" => Ok(Gating::Done),
            [word, token] if word == "GATED" => Ok(Gating::Gated { token: token.clone() }),
            _ => Ok(Gating::Used),
        }
    }

    /// Whether replicas have all that was written to the stream itself before.
    pub async fn are_replicas_here(&mut self) -> Result<bool, StoreError> {
        let wanted = wanted(&self.redis, self.replicas);
        let subject = Subject("wait for the replicas of", self.keys.stream()).to_string();
        let wait = wait(wanted, self.replicas.timeout.as_millis() as u64);
        let here: u64 = self.own().await?.query(&subject, &wait).await?;
        Ok(here >= u64::from(wanted))
    }

    pub(super) async fn run(&mut self, verb: &str, call: &ScriptCall<'_>) -> Result<Value, StoreError> {
        let stream = self.keys.stream().to_owned();
        let done = self.own().await?.run(Subject(verb, &stream), call).await;
        if let Err(StoreError::Unavailable { .. }) = &done {
            self.own = None;
        }
        done
    }

    pub(super) async fn own(&mut self) -> Result<&mut Connection, StoreError> {
        if self.own.is_none() {
            self.own = Some(self.redis.connect(Purpose::Work).await?);
        }
        Ok(self.own.as_mut().expect("it was just made"))
    }
}

/// How many replicas are to confirm, as configured or as there usually are some.
pub(in crate::store) fn wanted(redis: &Redis, replicas: Replicas) -> u8 {
    let usual = match redis.topology().kind() {
        Kind::Cluster | Kind::Watched(_) => 1,
        Kind::OneServer | Kind::Unknown => 0,
    };
    replicas.wanted.unwrap_or(usual)
}

impl PartsStore {
    pub fn new(redis: Redis, stream: &PartitionKeys, parts: u32, replicas: Replicas) -> Result<Self, KeyError> {
        let names = (0..parts).map(|part| part_of(stream.stream(), part));
        let parts = names.map(|name| PartitionKeys::new(&name)).collect::<Result<_, _>>()?;
        Ok(Self { redis, replicas, parts, nodes: HashMap::new() })
    }

    /// Batches as they go to the nodes of their parts, each node's together.
    pub async fn append(&mut self, route: &Route, batches: Vec<Batch>) -> Vec<Appending> {
        let mut by_node: BTreeMap<String, Vec<Batch>> = BTreeMap::new();
        for batch in batches {
            let node = self.node_of(batch.part).await;
            by_node.entry(node).or_default().push(batch);
        }
        let wanted = wanted(&self.redis, self.replicas);
        let node = |(node, batches): (String, Vec<Batch>)| {
            let wired = self.nodes.get(&node).cloned();
            let names = batches.iter().map(|batch| self.parts[batch.part as usize].clone()).collect();
            let redis = self.redis.clone();
            Appending {
                redis,
                node,
                wired,
                wanted,
                timeout: self.replicas.timeout,
                route: route.clone(),
                names,
                batches,
            }
        };
        by_node.into_iter().map(node).collect()
    }

    /// What came of one of them: its connection can be used again, or not.
    pub fn appended(&mut self, ended: Ended) -> Vec<Said> {
        let Ended { node, wired, said } = ended;
        match wired {
            Some(wired) => drop(self.nodes.insert(node, wired)),
            None => drop(self.nodes.remove(&node)),
        }
        said
    }

    /// Whether the replicas of some node are behind.
    pub fn are_replicas_behind(&self) -> bool {
        self.nodes.values().any(|wired| wired.are_behind)
    }

    /// What is of one node goes together.
    pub(super) async fn node_of(&self, part: u32) -> String {
        match self.redis.topology().kind() {
            Kind::Cluster => {
                let node = self.redis.node_of(self.parts[part as usize].slot()).await;
                node.map_or_else(|_| format!("of part {part}"), |node| node.to_string())
            }
            Kind::OneServer | Kind::Unknown | Kind::Watched(_) => String::new(),
        }
    }
}

/// Batches for the parts of one node.
pub struct Appending {
    redis: Redis,
    node: String,
    wired: Option<Wired>,
    wanted: u8,
    timeout: Duration,
    route: Route,
    names: Vec<PartitionKeys>,
    batches: Vec<Batch>,
}

/// Batches that were sent, with what their parts said.
pub struct Ended {
    node: String,
    wired: Option<Wired>,
    said: Vec<Said>,
}

impl Appending {
    /// The parts that it is for.
    pub fn parts(&self) -> impl Iterator<Item = u32> {
        self.batches.iter().map(|batch| batch.part)
    }

    pub async fn send(self) -> Ended {
        let parts: Vec<u32> = self.parts().collect();
        let node = self.node.clone();
        match self.exchange().await {
            Ok((wired, answers, are_here)) => {
                let said = parts.into_iter().zip(answers).map(|(part, answer)| (part, answer, are_here)).collect();
                Ended { node, wired: Some(wired), said }
            }
            Err(error) => {
                let said = parts.into_iter().map(|part| (part, Err(error.clone()), false)).collect();
                Ended { node, wired: None, said }
            }
        }
    }

    async fn exchange(self) -> Result<(Wired, Vec<Result<Appended, StoreError>>, bool), StoreError> {
        let slot = self.names.first().map_or(self.redis.home(), PartitionKeys::slot);
        let is_new = self.wired.is_none();
        let mut wired = match self.wired {
            Some(wired) => wired,
            None => Wired { connection: self.redis.at_home_in(slot).connect(Purpose::Work).await?, are_behind: false },
        };
        let Route { token, barrier, .. } = &self.route;
        let call = |(keys, batch)| append(keys, token, Some(*barrier), batch);
        let calls: Vec<ScriptCall<'_>> = self.names.iter().zip(&self.batches).map(call).collect();
        // A node that has just become the master has neither the script nor, often, a replica. What is asked first is how far its parts
        // are, and until that is known nothing goes anywhere: it waits for nobody.
        let timeout_ms = if is_new || wired.are_behind { SHORT_WAIT_MS } else { self.timeout.as_millis() as u64 };
        let then = (self.wanted > 0).then(|| wait(self.wanted, timeout_ms));
        let subject = Subject("pass entries on to", self.names.first().map_or("", PartitionKeys::stream));
        let (mut answers, here) = wired.connection.run_each(subject, &calls, is_new, then.as_ref()).await?;
        let mut here = here.unwrap_or(0);
        let is_full = |at: &usize| matches!(answers[*at], Err(StoreError::OutOfMemory { .. }));
        let full: Vec<usize> = (0..answers.len()).filter(is_full).collect();
        if !full.is_empty() {
            let some: Vec<_> =
                full.iter().map(|at| append_some(&self.names[*at], &self.route, &self.batches[*at])).collect();
            let (again, of_some) = wired.connection.run_each(subject, &some, true, then.as_ref()).await?;
            here = here.min(of_some.unwrap_or(0));
            full.into_iter().zip(again).for_each(|(at, answer)| answers[at] = answer);
        }
        let are_here = here >= u64::from(self.wanted);
        wired.are_behind = !are_here && !is_new;
        if wired.are_behind {
            unconfirmed(Replicated::Routed, calls.len());
        }
        let one = |(keys, answer): (&PartitionKeys, Result<Value, StoreError>)| {
            let subject = Subject("pass entries on to", keys.stream());
            appended(answer?).map_err(|why| StoreError::unexpected(subject, why))
        };
        let answers: Vec<_> = self.names.iter().zip(answers).map(one).collect();
        Ok((wired, answers, are_here))
    }
}

/// Without a barrier the stream above is still handing over: then the part stays closed.
pub(super) fn append(
    keys: &PartitionKeys,
    token: &str,
    barrier: Option<EntryId>,
    batch: &Batch,
) -> ScriptCall<'static> {
    giving(&APPEND, "", keys, token, barrier, batch)
}

/// The same to a part whose Redis is full: it takes a little of it, once it is done with what it has.
fn append_some(keys: &PartitionKeys, route: &Route, batch: &Batch) -> ScriptCall<'static> {
    giving(&APPEND_SOME, MOST_IF_FULL, keys, &route.token, Some(route.barrier), batch)
}

fn giving(
    script: &'static Script,
    most: &str,
    keys: &PartitionKeys,
    token: &str,
    barrier: Option<EntryId>,
    batch: &Batch,
) -> ScriptCall<'static> {
    let call = script.keys(&[keys.stream(), &keys.routed(), &keys.gate(), &keys.places()]).arg(token);
    let call = call.arg(barrier.map_or_else(String::new, |barrier| barrier.to_string()));
    let call = call.text(batch.after).text(batch.up_to).arg(most).arg(GROUP);
    batch.entries.iter().fold(call, |call, entry| call.arg(&entry.head[..]).arg(&entry.text[..]))
}

pub(in crate::store) fn wait(replicas: u8, timeout_ms: u64) -> redis::Cmd {
    redis::cmd("WAIT").arg(replicas).arg(timeout_ms.max(1)).to_owned()
}

/// The answer's parts as text, numbers too.
fn words(verb: &str, keys: &PartitionKeys, answer: Value) -> Result<Vec<String>, StoreError> {
    redis::from_redis_value(answer).map_err(|error| StoreError::unexpected(Subject(verb, keys.stream()), error))
}

pub(super) fn appended(answer: Value) -> Result<Appended, String> {
    let words: Vec<String> = redis::from_redis_value(answer).map_err(|error| error.to_string())?;
    let id = |text: &str| text.parse::<EntryId>().map_err(|error| error.to_string());
    match words.as_slice() {
        [word, count, last] if word == "OK" => {
            let count = count.parse().map_err(|_| format!("{count:?} is no number"))?;
            let last = if last.is_empty() { None } else { Some(id(last)?) };
            Ok(Appended::Done { count, last })
        }
        [word, at] if word == "AT" => Ok(Appended::At(id(at)?)),
        [word, token] if word == "GATED" => Ok(Appended::Gated { token: token.clone() }),
        [word] if word == "OPEN" => Ok(Appended::Open),
        [word, at] if word == "SOME" => Ok(Appended::Partly(id(at)?)),
        other => Err(format!("{other:?} is no answer to a batch")),
    }
}

/// The page, or the mode of a stream that is not routed.
fn page(value: Value) -> Result<Result<Page, String>, String> {
    let Value::Array(parts) = value else { return Err("it is no array".to_owned()) };
    let mut parts = parts.into_iter();
    let mut bytes = || match parts.next() {
        Some(Value::BulkString(bytes)) => Ok(Bytes::from(bytes)),
        Some(Value::Int(number)) => Ok(number.to_string().into()),
        _ => Err("it ends too early".to_owned()),
    };
    let mut text = || Ok::<_, String>(String::from_utf8_lossy(&bytes()?).into_owned());
    let optional = |text: String| match text.is_empty() {
        true => Ok(None),
        false => text.parse::<EntryId>().map(Some).map_err(|error| error.to_string()),
    };
    match text()?.as_str() {
        "ENTRIES" => {}
        "MODE" => return Ok(Err(text()?)),
        word => return Err(format!("{word:?} is not one of its words")),
    }
    let now_ms = text()?.parse().map_err(|_| "its time is no number".to_owned())?;
    let has_more = text()? == "1";
    let (last, oldest, cursor) = (optional(text()?)?, optional(text()?)?, optional(text()?)?);
    let of_stream = last.map(|last| OfStream { last, oldest });
    let heads = bytes()?;
    let mut entries = Vec::new();
    for head in heads.split(|byte| *byte == b' ').filter(|head| !head.is_empty()) {
        entries.push(Passed::read(heads.slice_ref(head), bytes()?)?);
    }
    match bytes() {
        Ok(_) => Err("it has parts too many".to_owned()),
        Err(_) => Ok(Ok(Page { now_ms, has_more, of_stream, cursor, entries })),
    }
}

/// What a part is given at a time while its Redis is full.
const MOST_IF_FULL: &str = "16";

static APPEND_SOME: LazyLock<Script> = LazyLock::new(|| {
    let file = ["#!lua flags=allow-oom\n", include_str!("scripts/append.lua")].concat().replacen("\n#!lua\n", "\n", 1);
    let shared = [include_str!("scripts/shared.lua"), include_str!("scripts/partition_shared.lua")];
    Script::assembled("append_some", &file, &shared)
});

scripts! {
    ROUTE_READ = "route_read" with "passing",
    EXPORT = "export" with "passing",
    APPEND = "append",
    ROUTE_TRIM = "route_trim" with "trimming",
    SET_MODE = "set_mode",
    GATE = "gate",
}

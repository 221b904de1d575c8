//! How what is unfinished in a stream gets into the parts that it is split into: pending entries, records and dead letters. Each step
//! can come twice, and none does harm when it comes late: a part takes something only while this split is to fill it, and leaves as it
//! is what it has. `model/routing.rs` says what each call means.

use std::{collections::BTreeMap, sync::LazyLock};

use bytes::Bytes;
use redis::Value;

use super::{
    connection::{Connection, Purpose, Script, ScriptCall, Subject},
    error::StoreError,
    keys::PartitionKeys,
    partition::{SETTLE, settle},
    protocol::{GROUP, Item, Place, Settlement, Term},
    routing::{
        Appended, Batch, EXPORT, MAX_ENTRY_BYTES, MAX_ENTRY_FIELDS, MAX_VALUE_BYTES, PartsStore, Passed, RouteStore,
        Wired, append, appended, wait, wanted,
    },
};
use crate::{
    facts::{
        id::{DeliveryId, EndpointId, EntryId},
        letter::LetterFacts,
        partition::part_of,
    },
    telemetry::calls::{Replicated, unconfirmed},
};

/// The most that is handed over at once.
pub const MAX_HANDED: usize = 200;

/// What is unfinished in a stream, or the first of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exported {
    pub now_ms: u64,
    /// The last entry that its owner was given, if any: what is behind it was never read.
    pub barrier: Option<EntryId>,
    pub entries: Vec<Pending>,
    /// Chain by chain, each in its order.
    pub records: Vec<Unended>,
    pub letters: Vec<Died>,
    /// Endpoints of these records that could not be read, and when that was last noted.
    pub unreadable: BTreeMap<EndpointId, u64>,
}

/// An entry that was read and not acknowledged; without a content if somebody has trimmed it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending {
    pub id: EntryId,
    pub entry: Option<Passed>,
}

/// A record, the name of its chain among heads, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Unended {
    pub id: DeliveryId,
    pub head_field: String,
    pub place: Place,
    pub record: Bytes,
}

/// A dead letter, with its facts if it is indexed.
#[derive(Debug, Clone, PartialEq)]
pub struct Died {
    pub id: DeliveryId,
    pub at_ms: u64,
    pub facts: Option<LetterFacts>,
    pub letter: Option<Bytes>,
}

impl Exported {
    pub fn len(&self) -> usize {
        self.entries.len() + self.records.len() + self.letters.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a part is given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Handed {
    pub part: u32,
    pub entries: Vec<Passed>,
    pub items: Vec<Item>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Took {
    All,
    /// It has begun, or another split is to fill it.
    Nothing,
}

/// What became of all that was handed over together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandedOver {
    /// The parts have it, and so have their replicas.
    Done,
    /// Replicas are behind.
    Unconfirmed,
    /// This part takes nothing.
    Refused { part: u32 },
}

static ADOPT: LazyLock<Script> = LazyLock::new(|| {
    let (_, settle) = include_str!("scripts/settle.lua").split_once('\n').expect("its first line has its flags");
    let shared = [
        include_str!("scripts/shared.lua"),
        include_str!("scripts/partition_shared.lua"),
        include_str!("scripts/dead_index.lua"),
        settle,
    ];
    Script::assembled("adopt", include_str!("scripts/adopt.lua"), &shared)
});

impl RouteStore {
    /// What is unfinished, up to so much; none if the term has lost the lease.
    pub async fn export(&mut self, term: &Term, most: usize) -> Result<Option<Exported>, StoreError> {
        let keys = self.keys().clone();
        let names = [
            keys.stream(),
            &keys.lease(),
            &keys.cursor(),
            &keys.unfinished(),
            &keys.due(),
            &keys.dead(),
            &keys.dead_facts(),
            &keys.places(),
        ];
        let call = EXPORT.keys_to_read(&names).arg(term.as_str()).arg(keys.prefix()).arg(GROUP).arg(most);
        let call = call.arg(MAX_VALUE_BYTES).arg(MAX_ENTRY_BYTES).arg(MAX_ENTRY_FIELDS);
        let verb = "look for what is unfinished in";
        let answer = self.run(verb, &call).await?;
        exported(answer).map_err(|why| StoreError::unexpected(Subject(verb, keys.stream()), why))
    }

    /// What stands in the way of splitting it, if anything does.
    pub async fn why_not_split(&mut self, parts: u32) -> Result<Option<String>, StoreError> {
        let keys = self.keys().clone();
        why_not_split(self.own().await?, &keys, parts).await
    }

    /// Takes out what the parts have; false if the term has lost the lease.
    pub async fn take_out(&mut self, term: &Term, settlement: &Settlement) -> Result<bool, StoreError> {
        let keys = self.keys().clone();
        let call = settle(&SETTLE, &keys, (&keys.lease(), term.as_str()), 0, settlement);
        let verb = "take what was handed over out of";
        let answer = self.run(verb, &call).await?;
        settled(answer).map_err(|why| StoreError::unexpected(Subject(verb, keys.stream()), why))
    }
}

impl PartsStore {
    /// Gives the parts what is theirs, and waits for their replicas. Each part has its pending entries in their order.
    pub async fn hand_over(&mut self, token: &str, handed: &[Handed]) -> Result<HandedOver, StoreError> {
        let mut by_node: BTreeMap<String, Vec<&Handed>> = BTreeMap::new();
        for one in handed {
            by_node.entry(self.node_of(one.part).await).or_default().push(one);
        }
        for (node, handed) in by_node {
            let given = self.hand_over_at(&node, token, &handed).await;
            if !matches!(given, Ok(HandedOver::Done)) {
                self.nodes.remove(&node);
                return given;
            }
        }
        Ok(HandedOver::Done)
    }

    async fn hand_over_at(&mut self, node: &str, token: &str, handed: &[&Handed]) -> Result<HandedOver, StoreError> {
        let Some(first) = handed.first() else { return Ok(HandedOver::Done) };
        let keys = |handed: &Handed| self.parts[handed.part as usize].clone();
        let mut connection = match self.nodes.get(node) {
            Some(wired) => wired.connection.clone(),
            None => self.redis.at_home_in(keys(first).slot()).connect(Purpose::Work).await?,
        };
        let subject = Subject("hand over to the parts of", node);
        let unexpected = |handed: &Handed, why: String| {
            StoreError::unexpected(Subject("hand over to", self.parts[handed.part as usize].stream()), why)
        };
        // What a part says that it has, it is not given again.
        let mut open: Vec<(&Handed, EntryId)> =
            handed.iter().filter(|one| !one.entries.is_empty()).map(|one| (*one, EntryId::ZERO)).collect();
        while !open.is_empty() {
            let batch = |(handed, after): &(&Handed, EntryId)| {
                let entries: Vec<Passed> = handed.entries.iter().filter(|entry| entry.id > *after).cloned().collect();
                let up_to = entries.last().map_or(*after, |last| last.id);
                Batch { part: handed.part, after: *after, up_to, entries }
            };
            let batches: Vec<Batch> = open.iter().map(batch).collect();
            let names: Vec<PartitionKeys> = open.iter().map(|(handed, _)| keys(handed)).collect();
            let calls: Vec<ScriptCall<'_>> =
                names.iter().zip(&batches).map(|(keys, batch)| append(keys, token, None, batch)).collect();
            let (answers, _) = connection.run_each::<u64>(subject, &calls, false, None).await?;
            let mut behind = Vec::new();
            for ((handed, _), answer) in open.into_iter().zip(answers) {
                match appended(answer?).map_err(|why| unexpected(handed, why))? {
                    Appended::Done { .. } => {}
                    Appended::At(at) => behind.push((handed, at)),
                    Appended::Gated { .. } | Appended::Open | Appended::Partly(_) => {
                        return Ok(HandedOver::Refused { part: handed.part });
                    }
                }
            }
            open = behind;
        }
        let of_items: Vec<&Handed> = handed.iter().filter(|one| !one.items.is_empty()).copied().collect();
        let settlement = |handed: &Handed| Settlement { items: handed.items.clone(), ..Settlement::default() };
        let call = |handed: &&Handed| {
            let keys = keys(handed);
            settle(&ADOPT, &keys, (&keys.gate(), token), 0, &settlement(handed))
        };
        let calls: Vec<ScriptCall<'_>> = of_items.iter().map(call).collect();
        let (answers, _) = connection.run_each::<u64>(subject, &calls, false, None).await?;
        for (handed, answer) in of_items.into_iter().zip(answers) {
            if !settled(answer?).map_err(|why| unexpected(handed, why))? {
                return Ok(HandedOver::Refused { part: handed.part });
            }
        }
        let wanted = wanted(&self.redis, self.replicas);
        let here: u64 = match wanted {
            0 => 0,
            _ => connection.query(subject, &wait(wanted, self.replicas.timeout.as_millis() as u64)).await?,
        };
        let are_here = here >= u64::from(wanted);
        if !are_here {
            unconfirmed(Replicated::HandedOver, 1);
        }
        self.nodes.insert(node.to_owned(), Wired { connection, are_behind: !are_here });
        Ok(if are_here { HandedOver::Done } else { HandedOver::Unconfirmed })
    }
}

/// What is in a stream that its parts do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Left {
    pub unfinished: u64,
    pub dead: u64,
}

pub async fn left_in(connection: &mut Connection, keys: &PartitionKeys) -> Result<Left, StoreError> {
    let subject = Subject("count what is unfinished in", keys.stream());
    let counts: Vec<String> = connection.query(subject, redis::cmd("HVALS").arg(keys.unfinished())).await?;
    let dead = connection.query(subject, redis::cmd("ZCARD").arg(keys.dead())).await?;
    Ok(Left { unfinished: counts.iter().filter_map(|count| count.parse::<u64>().ok()).sum(), dead })
}

/// What stands in the way of splitting a stream that is worked on, if anything does.
pub async fn why_not_split(
    connection: &mut Connection,
    keys: &PartitionKeys,
    parts: u32,
) -> Result<Option<String>, StoreError> {
    if let Some(used) = first_used(connection, keys, parts).await? {
        return Ok(Some(format!("somebody works on {used} as on a stream of its own")));
    }
    let subject = Subject("look for operations in", keys.stream());
    let is_open: bool = connection.query(subject, redis::cmd("EXISTS").arg(keys.operations_open())).await?;
    let why =
        "an operation is under way in it, which would not find its letters: wait until it has ended, or cancel it";
    Ok(is_open.then(|| why.to_owned()))
}

/// The first of so many parts that somebody works on as on a stream of its own.
async fn first_used(
    connection: &mut Connection,
    stream: &PartitionKeys,
    parts: u32,
) -> Result<Option<String>, StoreError> {
    for part in 0..parts {
        let name = part_of(stream.stream(), part);
        let subject = Subject("look whether anybody works on", &name);
        let keys = PartitionKeys::new(&name).map_err(|error| StoreError::unexpected(subject, error))?;
        let mut exists = redis::cmd("EXISTS");
        exists.arg(&[keys.routed(), keys.lease(), keys.registry_id()]);
        if connection.query::<u64>(subject, &exists).await? > 0 {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Whether it was done; not where the fence held something else.
fn settled(answer: Value) -> Result<bool, String> {
    let Value::Array(parts) = answer else { return Err("it is no array".to_owned()) };
    let text = |part: Option<&Value>| match part {
        Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    };
    match text(parts.first()).as_str() {
        "SETTLED" => Ok(true),
        "LOST" => Ok(false),
        "BAD" => Err(text(parts.get(2))),
        word => Err(format!("{word:?} is not one of its words")),
    }
}

/// None if the lease is lost.
fn exported(value: Value) -> Result<Option<Exported>, String> {
    let Value::Array(parts) = value else { return Err("it is no array".to_owned()) };
    let mut parts = Parts(parts.into_iter());
    match parts.text()?.as_str() {
        "EXPORTED" => {}
        "LOST" => return Ok(None),
        word => return Err(format!("{word:?} is not one of its words")),
    }
    let mut exported = Exported { now_ms: parts.parsed()?, ..Exported::default() };
    let barrier = parts.text()?;
    exported.barrier = if barrier.is_empty() { None } else { Some(barrier.parse().map_err(|_| barrier)?) };
    let mut entries = parts.array()?;
    while entries.has_more() {
        let (id, head, text) = (entries.parsed()?, entries.bytes()?, entries.bytes()?);
        let entry = if head.is_empty() { None } else { Some(Passed::read(head, text)?) };
        exported.entries.push(Pending { id, entry });
    }
    let mut records = parts.array()?;
    while records.has_more() {
        let (id, head_field) = (records.parsed()?, records.text()?);
        let place = match records.text()?.as_str() {
            "held" => Place::Held,
            "backlog" => Place::Backlog,
            ms => Place::DueIn(ms.parse().map_err(|_| format!("{ms:?} is no place"))?),
        };
        exported.records.push(Unended { id, head_field, place, record: records.bytes()? });
    }
    let mut letters = parts.array()?;
    while letters.has_more() {
        let (id, at_ms) = (letters.parsed()?, letters.parsed()?);
        let facts = LetterFacts::parse(&letters.text()?);
        exported.letters.push(Died { id, at_ms, facts, letter: letters.optional()? });
    }
    let mut unreadable = parts.array()?;
    while unreadable.has_more() {
        exported.unreadable.insert(unreadable.parsed()?, unreadable.parsed()?);
    }
    Ok(Some(exported))
}

struct Parts(std::vec::IntoIter<Value>);

impl Parts {
    fn has_more(&self) -> bool {
        self.0.len() > 0
    }

    fn optional(&mut self) -> Result<Option<Bytes>, String> {
        match self.0.next() {
            Some(Value::BulkString(bytes)) => Ok(Some(bytes.into())),
            Some(Value::Int(number)) => Ok(Some(number.to_string().into())),
            Some(Value::Nil) => Ok(None),
            other => Err(format!("{other:?} where a text should be")),
        }
    }

    fn bytes(&mut self) -> Result<Bytes, String> {
        self.optional()?.ok_or_else(|| "nothing where a text should be".to_owned())
    }

    fn text(&mut self) -> Result<String, String> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }

    fn parsed<T: std::str::FromStr>(&mut self) -> Result<T, String> {
        let text = self.text()?;
        text.parse().map_err(|_| format!("{text:?} cannot be read"))
    }

    fn array(&mut self) -> Result<Self, String> {
        match self.0.next() {
            Some(Value::Array(parts)) => Ok(Self(parts.into_iter())),
            other => Err(format!("{other:?} where an array should be")),
        }
    }
}

//! Operations on many deliveries, for whoever plans, starts, changes and looks at them. A plan holds what it is about and how
//! many these are; everything after it names only its id. What the owner does with one that is started is in [`work`].

mod all;
pub mod erase;
pub mod work;

pub use self::all::{AllOperations, Share};
use std::{collections::HashMap, sync::LazyLock};

use redis::{Pipeline, Value, streams::StreamRangeReply};
use serde::de::DeserializeOwned;

use super::{
    connection::{Connection, Script, Subject},
    error::StoreError,
    keys::PartitionKeys,
    queries::{DeadCursor, DeadFilter, DeadOrder, MAX_PAGE, Queries},
};
use crate::facts::{
    id::{DeliveryId, EndpointId, EntryId, IntentId, OperationId},
    operation::{
        Change, Counts, Exception, Kind, OPERATION_SCHEMA, Operation, Plan, Rate, Selection, State, made_ms, new_id,
    },
};

/// A plan that nobody starts is forgotten after a day: what it counted is long not so any more.
pub const PLANNED_FOR_MS: u64 = 86_400_000;

/// Plans that are kept, the newest: whoever plans without end takes only the oldest plans away.
pub const MAX_PLANNED: u64 = 1_000;

/// Deliveries that one operation sends now: their ids are kept until their turn comes.
pub const MAX_SENT: usize = 50_000;

/// Operations that the owner works on at a time: each costs it a look or two in every round.
pub const MAX_OPEN: u64 = 50;

/// Operations that have ended and are kept, the last.
pub const MAX_ENDED: u64 = 1_000;

pub(super) const SHARED: [&str; 3] = [
    include_str!("scripts/shared.lua"),
    include_str!("scripts/partition_shared.lua"),
    include_str!("scripts/operation_shared.lua"),
];

static PLAN: LazyLock<Script> =
    LazyLock::new(|| Script::assembled("operation_plan", include_str!("scripts/operation_plan.lua"), &SHARED));
static CHANGE: LazyLock<Script> =
    LazyLock::new(|| Script::assembled("operation_change", include_str!("scripts/operation_change.lua"), &SHARED));

#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("nothing matches, so there is nothing to plan")]
    Nothing,
    #[error("send-now is for one endpoint: give --endpoint, and --intent for one chain of it, and no other condition")]
    NotForSending,
    #[error("more than {MAX_SENT} chains wait at {0}: give --intent")]
    TooMany(EndpointId),
    #[error(
        "{0} dead letters are of an older Herald or removed by one: until a worker of this version has indexed them, only \
         --endpoint and times are sure to find every letter; ask again then"
    )]
    Unindexed(u64),
    #[error(
        "Redis' clock was set back: the newest of these letters died {} s after now, and what dies until then could not be told from \
         them; give an end that has passed (--until), name the letters by their ids, or ask again then",
        ahead_ms.div_ceil(1_000)
    )]
    SetBack { ahead_ms: u64 },
    #[error(
        "there is no operation {0}; a plan that is not started is forgotten after a day, or when 1 000 newer ones are there"
    )]
    Missing(OperationId),
    #[error("{id} is {} already", state.name())]
    Refused { id: OperationId, state: State },
    #[error(
        "{0} operations are under way, and no more are worked on at a time: wait until one has ended, or cancel one"
    )]
    Many(u64),
}

/// What somebody wants to have done.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub kind: Kind,
    pub letters: DeadFilter,
    /// The oldest of them.
    pub limit: Option<u64>,
    /// The filter in the flags' words.
    pub filter: String,
    /// None: as usual for its kind.
    pub rate: Option<Rate>,
    pub by: String,
    pub why: String,
    /// For its id.
    pub random: u64,
    /// And when that is made, ms since 1970; none: when it is planned. What several partitions have of one operation has one id.
    pub made_ms: Option<u64>,
}

/// What is asked of an operation that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// With the entry of the audit log that this begins with.
    Start(Option<EntryId>),
    Pause,
    Resume,
    Cancel,
    Rate(Rate),
}

/// Where a page of operations is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside<'a> {
    /// At the newest.
    Nothing,
    OlderThan(&'a OperationId),
    NewerThan(&'a OperationId),
}

pub struct Operations {
    connection: Connection,
    keys: PartitionKeys,
}

impl From<&Selection> for DeadFilter {
    fn from(selection: &Selection) -> Self {
        let Selection { from_ms, until_ms, endpoint, account, reason, cause, intent, event, .. } = selection.clone();
        Self { from_ms, until_ms, endpoint, account, reason, cause, intent, event }
    }
}

impl From<&DeadFilter> for Selection {
    fn from(letters: &DeadFilter) -> Self {
        let DeadFilter { from_ms, until_ms, endpoint, account, reason, cause, intent, event } = letters.clone();
        Self { from_ms, until_ms, endpoint, account, reason, cause, intent, event, ..Self::default() }
    }
}

impl Operations {
    pub fn new(connection: Connection, keys: PartitionKeys) -> Self {
        Self { connection, keys }
    }

    /// Those of the same partition.
    pub(in crate::store) fn beside(queries: &Queries) -> Self {
        let (connection, keys) = queries.way();
        Self::new(connection, keys)
    }

    /// What may be asked beside a plan.
    pub fn queries(&self) -> Queries {
        Queries::new(self.connection.clone(), self.keys.clone())
    }

    /// Freezes what there is now. What is given up from here on does not belong to it.
    pub async fn plan(&mut self, wanted: Wanted) -> Result<Operation, OperationError> {
        let mut queries = self.queries();
        let now_ms = queries.now_ms().await?;
        if wanted.kind == Kind::SendNow {
            return self.plan_sending(wanted, now_ms).await;
        }
        // In this millisecond more may still be given up.
        let end_ms = match self.is_ahead(&wanted.letters).await? {
            None => now_ms.saturating_sub(1),
            // What dies until the clock is there again may be taken in the place of one of them, and is sent like them.
            Some((newest_ms, _)) if wanted.kind == Kind::Redeliver => newest_ms,
            Some((_, ahead_ms)) => return Err(OperationError::SetBack { ahead_ms }),
        };
        let letters = DeadFilter { until_ms: wanted.letters.until_ms.min(end_ms), ..wanted.letters };
        if letters.endpoint.is_none() || letters.needs_facts() {
            match queries.unindexed_dead().await? {
                0 => {}
                left => return Err(OperationError::Unindexed(left)),
            }
        }
        let (mut selection, mut count) = (Selection::from(&letters), queries.count_dead_where(&letters).await?);
        if let Some(limit) = wanted.limit.filter(|limit| *limit < count) {
            let last = nth(&mut queries, &letters, limit).await?;
            (selection.until_ms, selection.last, count) = match last {
                Some((at_ms, id)) => (at_ms, Some(id), limit),
                None => (selection.until_ms, None, 0),
            };
        }
        self.write_wanted(Wanted { letters, ..wanted }, selection, count, now_ms).await
    }

    /// Plans for what somebody else has frozen and counted.
    pub async fn plan_frozen(
        &mut self,
        wanted: Wanted,
        selection: Selection,
        count: u64,
    ) -> Result<Operation, OperationError> {
        let now_ms = self.queries().now_ms().await?;
        let count = wanted.limit.map_or(count, |limit| limit.min(count));
        self.write_wanted(wanted, selection, count, now_ms).await
    }

    async fn write_wanted(
        &mut self,
        wanted: Wanted,
        selection: Selection,
        count: u64,
        now_ms: u64,
    ) -> Result<Operation, OperationError> {
        // What an erasure does not count may be there all the same: entries, and what is in the quarantine.
        if count == 0 && wanted.kind != Kind::Erase {
            return Err(OperationError::Nothing);
        }
        let Wanted { kind, filter, by, why, .. } = wanted;
        let plan = Plan { schema: OPERATION_SCHEMA, kind, selection, filter, count, by, why, at_ms: now_ms };
        let rate = wanted.rate.unwrap_or(kind.usual_rate());
        self.write(new_id(wanted.made_ms.unwrap_or(now_ms), wanted.random), plan, rate).await
    }

    /// The time of the newest letter, and by how much it is ahead of Redis' clock: that was set back. None if it is not.
    async fn is_ahead(&self, letters: &DeadFilter) -> Result<Option<(u64, u64)>, StoreError> {
        let mut queries = self.queries();
        let newest = queries.find_dead(letters, DeadOrder::NewestFirst, None, 1).await?;
        let Some(newest) = newest.letters.first() else { return Ok(None) };
        // Only now: what died a moment ago is not ahead.
        let ahead_ms = newest.at_ms.saturating_sub(queries.now_ms().await?);
        Ok((ahead_ms > 0).then_some((newest.at_ms, ahead_ms)))
    }

    /// What waits at an endpoint now: the heads of its chains that are due later or stand in its backlog.
    async fn plan_sending(&mut self, wanted: Wanted, now_ms: u64) -> Result<Operation, OperationError> {
        let Wanted { kind, letters, filter, by, why, .. } = wanted;
        let plain = DeadFilter {
            endpoint: letters.endpoint.clone(),
            intent: letters.intent.clone(),
            ..DeadFilter::everything()
        };
        let (Some(endpoint), true) = (&letters.endpoint, plain == letters) else {
            return Err(OperationError::NotForSending);
        };
        let mut waiting = self.waiting(endpoint, letters.intent.as_ref(), now_ms).await?;
        waiting.truncate(wanted.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)));
        if waiting.is_empty() {
            return Err(OperationError::Nothing);
        }
        let id = new_id(wanted.made_ms.unwrap_or(now_ms), wanted.random);
        let key = self.keys.operation_ids(&id);
        for part in waiting.chunks(MAX_PAGE) {
            let mut command = redis::cmd("ZADD");
            command.arg(&key);
            for id in part {
                command.arg(0).arg(id.to_string());
            }
            let _: u64 = self.connection.query(Subject("note what is to be sent in", &key), &command).await?;
            let mut command = redis::cmd("PEXPIRE");
            command.arg(&key).arg(PLANNED_FOR_MS);
            let _: u64 = self.connection.query(Subject("note what is to be sent in", &key), &command).await?;
        }
        let selection = Selection { until_ms: now_ms, from_ms: 0, ..Selection::from(&letters) };
        let (schema, count) = (OPERATION_SCHEMA, waiting.len() as u64);
        let plan = Plan { schema, kind, selection, filter, count, by, why, at_ms: now_ms };
        self.write(id, plan, wanted.rate.unwrap_or(kind.usual_rate())).await
    }

    /// In the order of the stream.
    async fn waiting(
        &mut self,
        endpoint: &EndpointId,
        intent: Option<&IntentId>,
        now_ms: u64,
    ) -> Result<Vec<DeliveryId>, OperationError> {
        let (heads, due, backlog) = (self.keys.heads(endpoint), self.keys.due(), self.keys.backlog(endpoint));
        let (mut waiting, mut cursor) = (Vec::new(), 0);
        loop {
            let mut command = redis::cmd("HSCAN");
            command.arg(&heads).arg(cursor).arg("COUNT").arg(MAX_PAGE);
            let (next, page): (u64, Vec<(String, String)>) =
                self.connection.query(Subject("read a page of", &heads), &command).await?;
            let page = page.into_iter().filter(|(chain, _)| intent.is_none_or(|intent| chain == intent.as_str()));
            let entries: Vec<EntryId> = page.filter_map(|(_, entry)| entry.parse().ok()).collect();
            let ids = entries.into_iter().map(|entry| DeliveryId { entry, endpoint: endpoint.clone() });
            let ids: Vec<DeliveryId> = ids.collect();
            if !ids.is_empty() {
                let mut pipeline = redis::pipe();
                for id in &ids {
                    pipeline.cmd("ZSCORE").arg(&due).arg(id.to_string());
                    pipeline.cmd("ZSCORE").arg(&backlog).arg(id.entry.padded());
                }
                let found: Vec<Option<f64>> = self.connection.pipeline("see what waits", &pipeline).await?;
                let waits = |at: &[Option<f64>]| at[0].is_some_and(|due| due as u64 > now_ms) || at[1].is_some();
                let found = ids.into_iter().zip(found.chunks(2)).filter(|(_, at)| waits(at));
                waiting.extend(found.map(|(id, _)| id));
            }
            if waiting.len() > MAX_SENT {
                return Err(OperationError::TooMany(endpoint.clone()));
            }
            match next {
                0 => break,
                next => cursor = next,
            }
        }
        // A field may come twice.
        waiting.sort_unstable();
        waiting.dedup();
        Ok(waiting)
    }

    /// Writes a plan that is whole, under an id that is new.
    pub async fn write(&mut self, id: OperationId, plan: Plan, rate: Rate) -> Result<Operation, OperationError> {
        let subject = Subject("plan an operation on", self.keys.stream());
        let names = [&*self.keys.operation(&id), &self.keys.operations_planned()];
        let call = PLAN.keys(&names).arg(self.keys.prefix()).arg(id.as_str()).arg(plan.kind.name()).arg(json(&plan));
        let call = call.arg(plan.count).text(rate).arg(PLANNED_FOR_MS).arg(MAX_PLANNED);
        let answer: Vec<Value> = self.connection.run(subject, &call).await?;
        match word(answer.first()) {
            "PLANNED" => Ok(Operation {
                id,
                plan,
                state: State::Planned,
                rate,
                counts: Counts::default(),
                started: None,
                changed: None,
                ended_ms: None,
                waits: Vec::new(),
                audit: None,
            }),
            _ => Err(StoreError::unexpected(subject, format_args!("the answer {answer:?}")).into()),
        }
    }

    /// Returns its state from then on. Pausing what is paused, and the like, is no error; starting twice is one.
    pub async fn change(&mut self, id: &OperationId, verb: Verb, who: &Change) -> Result<State, OperationError> {
        let subject = Subject("change an operation on", self.keys.stream());
        let names = [&*self.keys.operation(id), &self.keys.operations_planned(), &self.keys.operations_open()];
        let (name, detail) = match verb {
            Verb::Start(audit) => ("start", audit.map_or_else(String::new, |entry| entry.to_string())),
            Verb::Pause => ("pause", String::new()),
            Verb::Resume => ("resume", String::new()),
            Verb::Cancel => ("cancel", String::new()),
            Verb::Rate(rate) => ("rate", rate.to_string()),
        };
        let call = CHANGE.keys(&names).arg(self.keys.prefix()).arg(id.as_str()).arg(name).arg(json(who)).arg(detail);
        let answer: Vec<Value> = self.connection.run(subject, &call.arg(MAX_OPEN).arg(MAX_ENDED)).await?;
        let state = || {
            let state = word(answer.get(1)).parse::<State>();
            state.map_err(|why| OperationError::Store(StoreError::unexpected(subject, why)))
        };
        match (word(answer.first()), answer.get(1)) {
            ("CHANGED", _) => state(),
            ("MISSING", _) => Err(OperationError::Missing(id.clone())),
            ("REFUSED", _) => Err(OperationError::Refused { id: id.clone(), state: state()? }),
            ("MANY", Some(Value::Int(open))) => Err(OperationError::Many(u64::try_from(*open).unwrap_or(0))),
            _ => Err(StoreError::unexpected(subject, format_args!("the answer {answer:?}")).into()),
        }
    }

    /// All there are, the newest plan first. At most [`MAX_PLANNED`], [`MAX_OPEN`] and [`MAX_ENDED`] together.
    pub async fn ids(&mut self) -> Result<Vec<OperationId>, StoreError> {
        let mut pipeline = redis::pipe();
        for key in [self.keys.operations_planned(), self.keys.operations_open(), self.keys.operations_ended()] {
            pipeline.cmd("ZRANGE").arg(key).arg(0).arg(-1);
        }
        let found: Vec<Vec<String>> = self.connection.pipeline("list the operations", &pipeline).await?;
        let mut ids: Vec<OperationId> = found.into_iter().flatten().filter_map(|id| id.parse().ok()).collect();
        ids.sort_unstable_by(|one, other| other.cmp(one));
        ids.dedup();
        Ok(ids)
    }

    /// Up to `max` of them on one side of an id, those nearest to it, the newest first; and whether there are more on that side.
    ///
    /// Each of the three sets is ordered by a time that no operation has before it was planned, and ids are in the order in which they were
    /// planned. So those that stand behind what was read are older than their set's last, and the newest are found
    /// without a look at the others. What is before a page was planned, started or ended after the page's first was planned.
    pub async fn page(&mut self, beside: Beside<'_>, max: usize) -> Result<(Vec<OperationId>, bool), StoreError> {
        let mut most = max + 1;
        loop {
            let (mut ids, unread_ms) = self.latest(beside, most).await?;
            ids.retain(|id| match beside {
                Beside::Nothing => true,
                Beside::OlderThan(other) => id < other,
                Beside::NewerThan(other) => id > other,
            });
            ids.sort_unstable_by(|one, other| other.cmp(one));
            ids.dedup();
            let is_beyond = ids.len() > max;
            match (beside, unread_ms) {
                (Beside::NewerThan(_), None) => return Ok((ids.split_off(ids.len().saturating_sub(max)), is_beyond)),
                (Beside::Nothing | Beside::OlderThan(_), None) => {}
                (Beside::Nothing | Beside::OlderThan(_), Some(unread_ms))
                    if ids.get(max).and_then(made_ms).is_some_and(|made_ms| made_ms > unread_ms) => {}
                _ => {
                    most *= 4;
                    continue;
                }
            }
            ids.truncate(max);
            return Ok((ids, is_beyond));
        }
    }

    /// The last `most` of each set; and before which time there may be others.
    async fn latest(&mut self, beside: Beside<'_>, most: usize) -> Result<(Vec<OperationId>, Option<u64>), StoreError> {
        let least_ms = if let Beside::NewerThan(id) = beside { made_ms(id).unwrap_or(0) } else { 0 };
        let mut pipeline = redis::pipe();
        for key in [self.keys.operations_planned(), self.keys.operations_open(), self.keys.operations_ended()] {
            pipeline.cmd("ZRANGE").arg(key).arg("+inf").arg(least_ms).arg("BYSCORE").arg("REV");
            pipeline.arg("LIMIT").arg(0).arg(most).arg("WITHSCORES");
        }
        let sets: Vec<Vec<(String, f64)>> = self.connection.pipeline("list the operations", &pipeline).await?;
        let cut = sets.iter().filter(|set| set.len() >= most).filter_map(|set| set.last());
        let unread_ms = cut.map(|(_, at)| *at as u64).max();
        Ok((sets.into_iter().flatten().filter_map(|(id, _)| id.parse().ok()).collect(), unread_ms))
    }

    /// Whether somebody works on it, or is to.
    pub async fn is_open(&mut self, id: &OperationId) -> Result<bool, StoreError> {
        let mut command = redis::cmd("ZSCORE");
        command.arg(self.keys.operations_open()).arg(id.as_str());
        let at: Option<f64> = self.connection.query("look whether an operation is worked on", &command).await?;
        Ok(at.is_some())
    }

    pub async fn find(&mut self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        Ok(self.find_all(std::slice::from_ref(id)).await?.pop())
    }

    /// Those of them that there are and that this Herald can read.
    pub async fn find_all(&mut self, ids: &[OperationId]) -> Result<Vec<Operation>, StoreError> {
        let mut found = Vec::with_capacity(ids.len());
        for part in ids.chunks(MAX_PAGE) {
            let mut pipeline = Pipeline::new();
            for id in part {
                pipeline.cmd("HGETALL").arg(self.keys.operation(id));
            }
            let hashes: Vec<HashMap<String, String>> =
                self.connection.pipeline("look at operations", &pipeline).await?;
            found.extend(part.iter().zip(&hashes).filter_map(|(id, hash)| read(id, hash)));
        }
        Ok(found)
    }

    /// What was not simply done, the oldest first, after an id of this list.
    pub async fn exceptions(
        &mut self,
        id: &OperationId,
        after: Option<EntryId>,
        max: usize,
    ) -> Result<Vec<(EntryId, Exception)>, StoreError> {
        let subject = Subject("read the results of an operation on", self.keys.stream());
        let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.operation_results(id)).arg(from).arg("+").arg("COUNT").arg(max.clamp(1, MAX_PAGE + 1));
        let found: StreamRangeReply = self.connection.query(subject, &command).await?;
        let exception = |entry: &redis::streams::StreamId| {
            let text = |name: &str| entry.get::<String>(name);
            let at_ms = entry.get::<u64>("at")?;
            let (delivery, result, why) = (text("delivery")?, text("result")?, text("why")?);
            Some((entry.id.parse().ok()?, Exception { delivery, result, why, at_ms }))
        };
        Ok(found.ids.iter().filter_map(exception).collect())
    }
}

/// The letter up to which there are so many, the oldest first.
async fn nth(queries: &mut Queries, letters: &DeadFilter, limit: u64) -> Result<Option<(u64, DeliveryId)>, StoreError> {
    let (mut left, mut after, mut last) = (limit, None::<DeadCursor>, None);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(MAX_PAGE);
        let page = queries.find_dead(letters, DeadOrder::OldestFirst, after.as_ref(), most).await?;
        left = left.saturating_sub(page.letters.len() as u64);
        last = page.letters.into_iter().next_back().map(|letter| (letter.at_ms, letter.id)).or(last);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(last)
}

/// None for what a newer Herald wrote, or what is no operation.
fn read(id: &OperationId, hash: &HashMap<String, String>) -> Option<Operation> {
    let plan = parsed::<Plan>(hash.get("plan")?).filter(|plan| plan.schema <= OPERATION_SCHEMA)?;
    let number = |name: &str| hash.get(name).and_then(|text| text.parse::<u64>().ok());
    let change = |name: &str| hash.get(name).and_then(|text| parsed::<Change>(text));
    let count = |name: &str| number(name).unwrap_or(0);
    let counts = Counts {
        open: count("open"),
        done: count("done"),
        refused: count("refused"),
        dead_again: count("dead_again"),
        overtaken: count("overtaken"),
    };
    Some(Operation {
        id: id.clone(),
        state: hash.get("state")?.parse().ok()?,
        rate: hash.get("rate").and_then(|rate| rate.parse().ok()).unwrap_or(plan.kind.usual_rate()),
        counts,
        started: change("started"),
        changed: change("changed"),
        ended_ms: number("ended"),
        waits: hash.get("waits").and_then(|text| parsed(text)).unwrap_or_default(),
        audit: hash.get("audit").filter(|entry| !entry.is_empty()).cloned(),
        plan,
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("strings and numbers are always JSON")
}

fn parsed<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// A word of a script's answer; empty for anything else.
fn word(value: Option<&Value>) -> &str {
    match value {
        Some(Value::BulkString(text)) => std::str::from_utf8(text).unwrap_or_default(),
        _ => "",
    }
}

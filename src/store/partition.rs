//! Runs the protocol on Redis: one script per call, except for a look at a backlog, which is `backlog.rs`. Owns the
//! scripts of a partition and how their arguments are written; `decode` owns how their answers are read. Never repeats
//! a script and never decides anything: `model.rs` says what each call means.

use std::{collections::HashMap, sync::LazyLock};

use bytes::Bytes;
use redis::Value;

use super::{
    backlog::Look,
    connection::{Connection, Script, ScriptCall, Subject},
    decode,
    error::StoreError,
    keys::{PartitionKeys, RegistryKeys},
    protocol::{
        Answer, CONSUMER, Call, Failure, GROUP, Item, LookFrom, MAX_BATCH, Place, RETAIN_PARTS, ReadFrom, Settlement,
        Start, Wanted,
    },
};
use crate::facts::{
    delivery::Chain,
    event::MAX_EVENT_BYTES,
    id::{DeliveryId, EndpointId, IntentId},
    stamped::Stamped,
    traceparent::{MAX_TRACEPARENT_BYTES, Traceparent},
};

/// One partition in Redis, as its owner sees it. Cheap to clone.
#[derive(Clone)]
pub struct PartitionStore {
    work: Connection,
    lease: Connection,
    keys: PartitionKeys,
    attempt_log_len: u64,
}

impl PartitionStore {
    /// Renewals go over `lease`, so that they never queue behind a large answer on `work`. `attempt_log_len` is roughly how
    /// many lines the log of attempts keeps.
    pub fn new(work: Connection, lease: Connection, keys: PartitionKeys, attempt_log_len: u64) -> Self {
        Self { work, lease, keys, attempt_log_len }
    }

    pub fn keep_log(&mut self, lines: u64) {
        self.attempt_log_len = lines;
    }

    pub fn keys(&self) -> &PartitionKeys {
        &self.keys
    }

    /// Whether one of its connections has failed.
    pub fn is_over(&self) -> bool {
        self.work.is_over() || self.lease.is_over()
    }

    /// Runs one call. A count above [`MAX_BATCH`] is cut to that: a caller that wants more calls again.
    pub async fn call(&self, call: &Call) -> Result<Answer, Failure> {
        let subject = Subject(verb(call), self.keys.stream());
        let script = match self.way(call) {
            Way::Script(script) => script,
            Way::Look(look) => return look.run(&mut self.work.clone()).await.map_err(failure),
        };
        let connection = if matches!(call, Call::Renew { .. }) { &self.lease } else { &self.work };
        let mut connection = connection.clone();
        let malformed = |why| Failure::Malformed(format!("the answer to {} is malformed: {why}", call_name(call)));
        if let Call::Read { .. } = call {
            // The registry has a slot of its own, so no script of the partition can see it.
            let last = redis::cmd("HMGET").arg(RegistryKeys::META).arg("version").arg("stamp").to_owned();
            let read = connection.run_then::<Value, (Option<u64>, Option<String>)>(subject, &script, &last).await;
            let (value, last) = read.map_err(failure)?;
            let last = last.and_then(|(version, note)| Some(Stamped::noted(version?, note.as_deref())));
            return match decode::answer(call, value).map_err(malformed)? {
                Answer::Entries { entries, now_ms, .. } => Ok(Answer::Entries { entries, now_ms, registry: last }),
                other => Ok(other),
            };
        }
        let value: Value = connection.run(subject, &script).await.map_err(failure)?;
        match (call, decode::answer(call, value).map_err(malformed)?) {
            (Call::Settle { settlement, .. }, Answer::BadItem { at, why }) => {
                Ok(Answer::BadItem { at: written_at(&settlement.items, at), why })
            }
            (_, answer) => Ok(answer),
        }
    }

    fn fenced(&self, script: &'static Script, keys: &[&str], call: &Call) -> ScriptCall<'static> {
        script.keys(keys).arg(call.term().as_str())
    }

    /// A script about dead letters alone: the lease, all letters, what else it needs, and what all of them share.
    fn of_dead(&self, script: &'static Script, more: Option<String>, call: &Call) -> ScriptCall<'static> {
        let keys = &self.keys;
        let shared = [keys.dead_facts(), keys.dead_kinds(), keys.dead_names()];
        let names: Vec<String> = [keys.lease(), keys.dead()].into_iter().chain(more).chain(shared).collect();
        self.fenced(script, &names.iter().map(String::as_str).collect::<Vec<_>>(), call)
    }

    fn way<'a>(&'a self, call: &'a Call) -> Way<'a> {
        let keys = &self.keys;
        let (stream, prefix, lease) = (keys.stream(), keys.prefix(), keys.lease());
        let lease = lease.as_str();
        Way::Script(match call {
            Call::Acquire { previous, ttl_ms, .. } => {
                let names = [lease, &keys.mode(), &keys.gate(), &keys.next()];
                let script = self.fenced(&ACQUIRE, &names, call).arg(ttl_ms);
                previous.iter().fold(script, |script, term| script.arg(term.as_str()))
            }
            Call::Renew { ttl_ms, .. } => self.fenced(&RENEW, &[lease, &keys.next()], call).arg(ttl_ms),
            Call::Release { .. } => self.fenced(&RELEASE, &[lease], call),
            Call::Recover { max, .. } => {
                self.fenced(&RECOVER, &[lease, &keys.due(), &keys.claimed()], call).arg(most(*max))
            }
            Call::Open { start, registry, .. } => {
                let script = self.fenced(&OPEN, &[stream, lease, &keys.cursor(), &keys.registry_id()], call);
                script.arg(start_text(*start)).arg(registry).arg(GROUP)
            }
            Call::Counts { cursor, .. } => {
                let names = [lease, &keys.unfinished(), &keys.bytes(), &keys.unreadable()];
                self.fenced(&COUNTS, &names, call).arg(prefix).arg(cursor)
            }
            Call::Read { from, max, .. } => {
                let script = self.fenced(&READ, &[stream, lease, &keys.places()], call);
                let script = script.arg(from_text(*from)).arg(most(*max)).arg(GROUP).arg(CONSUMER);
                // One byte more, so that a value that is too long can be told from one that fits.
                script.arg(MAX_EVENT_BYTES).arg(MAX_TRACEPARENT_BYTES + 1)
            }
            Call::Ask { deliveries, suspect, .. } => {
                let script = self.fenced(&ASK, &[lease], call).arg(prefix).arg(u8::from(*suspect));
                deliveries.iter().take(MAX_BATCH).fold(script, |script, (id, intent, event)| {
                    script.arg(id.endpoint.as_str()).arg(intent.as_str()).text(id).arg(event.as_str())
                })
            }
            Call::Settle { term, settlement } => {
                settle(&SETTLE, keys, (lease, term.as_str()), self.attempt_log_len, settlement)
            }
            Call::Claim { max, .. } => {
                self.fenced(&CLAIM, &[lease, &keys.due(), &keys.claimed()], call).arg(prefix).arg(most(*max))
            }
            Call::PullIn { from_ms, by_ms, max, step_ms, .. } => {
                let script = self.fenced(&PULL_IN, &[lease, &keys.due(), &keys.stats()], call);
                script.arg(from_ms).arg(by_ms).arg(most(*max)).arg(step_ms)
            }
            Call::Backlog { term, endpoint, after, max } => {
                return Way::Look(Look { keys, term, endpoint, after: *after, max: most(*max) });
            }
            Call::TakeHeads { endpoint, max, .. } => {
                let script = self.fenced(&TAKE_HEADS, &[lease, &keys.due(), &keys.claimed()], call).arg(prefix);
                script.arg(endpoint.as_str()).arg(most(*max))
            }
            Call::ClaimForeign { max, .. } => {
                let script = self.fenced(&CLAIM_FOREIGN, &[stream, lease, &keys.stats()], call);
                script.arg(most(*max)).arg(GROUP).arg(CONSUMER)
            }
            Call::Inbox { after, max, .. } => {
                let names = [lease, &keys.inbox(), &keys.quarantine(), &keys.quarantine_index()];
                self.fenced(&INBOX, &names, call).arg(prefix).text(after).arg(most(*max))
            }
            Call::Trim { retain_ms, up_to, ignores, .. } => {
                let script = self.fenced(&TRIM, &[stream, lease, &keys.marks(), &keys.places()], call);
                let up_to = up_to.map_or_else(String::new, |entry| entry.to_string());
                script.arg(retain_ms).arg(GROUP).arg(RETAIN_PARTS).arg(up_to).arg(ignores)
            }
            Call::ExpireDead { max_age_ms, max_count, max, .. } => {
                let script = self.of_dead(&EXPIRE_DEAD, None, call).arg(prefix);
                script.arg(max_age_ms).arg(max_count).arg(most(*max))
            }
            Call::Unindexed { from, look, max, .. } => {
                let script = self.of_dead(&UNINDEXED, Some(keys.dead_mark()), call).arg(prefix);
                let script = match from {
                    LookFrom::Mark => script.arg("mark").arg(""),
                    LookFrom::Start => script.arg("start").arg(""),
                    LookFrom::After(at_ms, id) => script.arg(at_ms).text(id),
                };
                script.arg(most(*look)).arg(most(*max))
            }
            Call::SweepDead { cursor, .. } => self.of_dead(&SWEEP_DEAD, None, call).arg(prefix).arg(cursor),
            Call::NoteUnreadable { endpoints, holds_ms, .. } => {
                let script = self.fenced(&NOTE_UNREADABLE, &[lease, &keys.unreadable()], call).arg(holds_ms);
                endpoints.iter().take(MAX_BATCH).fold(script, |script, endpoint| script.arg(endpoint.as_str()))
            }
        })
    }
}

/// A settlement in a partition, as long as a key holds this value: the owner's lease its term or, before a part has an owner, the
/// gate the token of the split.
pub(super) fn settle(
    script: &'static Script,
    keys: &PartitionKeys,
    (fence, value): (&str, &str),
    attempt_log_len: u64,
    settlement: &Settlement,
) -> ScriptCall<'static> {
    let names = [
        keys.stream(),
        fence,
        &keys.cursor(),
        &keys.due(),
        &keys.claimed(),
        &keys.unfinished(),
        &keys.dead(),
        &keys.quarantine(),
        &keys.quarantine_index(),
        &keys.inbox(),
        &keys.attempts(),
        &keys.registry_id(),
        &keys.stats(),
        &keys.places(),
        &keys.bytes(),
        &keys.mode(),
        &keys.dead_facts(),
        &keys.dead_kinds(),
        &keys.dead_names(),
    ];
    let mut script = script.keys(&names).arg(value).arg(keys.prefix()).arg(GROUP);
    script = script.text(settlement.last_read).arg(attempt_log_len);
    script = script.arg(settlement.acks.len()).arg(settlement.log.len());
    script = script.texts(&settlement.acks);
    if !settlement.log.is_empty() {
        script = script.arg(settlement.log.join(&b'\n'));
    }
    let items = &settlement.items;
    steps(items).iter().fold(script, |script, step| match step {
        Step::One(at) => write_item(script, &items[*at]),
        Step::Together(by_endpoint) => write_together(script, items, by_endpoint),
    })
}

/// Asks the owner of a partition for it, in the name of this worker, and keeps it for that worker for so long.
pub async fn want(
    connection: &mut Connection,
    keys: &PartitionKeys,
    worker: &str,
    holds_ms: u64,
) -> Result<Wanted, StoreError> {
    let subject = Subject("ask for", keys.stream());
    let call = WANT.keys(&[&keys.lease(), &keys.next()]).arg(worker).arg(holds_ms);
    let answer = connection.run(subject, &call).await?;
    decode::wanted(answer).map_err(|why| StoreError::unexpected(subject, why))
}

/// How a call is carried out.
enum Way<'a> {
    Script(ScriptCall<'a>),
    Look(Look<'a>),
}

/// How a settlement's items are written.
enum Step<'a> {
    One(usize),
    /// Deliveries that end together, by endpoint.
    Together(Vec<(&'a EndpointId, Vec<usize>)>),
}

/// Items in their order, except that deliveries that end together are grouped by endpoint, whatever order their
/// endpoints come in.
fn steps(items: &[Item]) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut places = HashMap::new();
    for (at, item) in items.iter().enumerate() {
        let Item::Finish { id, chain: Chain::Intent(_) } = item else {
            steps.push(Step::One(at));
            continue;
        };
        if !matches!(steps.last(), Some(Step::Together(_))) {
            steps.push(Step::Together(Vec::new()));
            places.clear();
        }
        let Some(Step::Together(by_endpoint)) = steps.last_mut() else { continue };
        let place = *places.entry(&id.endpoint).or_insert(by_endpoint.len());
        match by_endpoint.get_mut(place) {
            Some((_, all)) => all.push(at),
            None => by_endpoint.push((&id.endpoint, vec![at])),
        }
    }
    steps
}

/// The index of the item that `settle.lua` counts as this number.
fn written_at(items: &[Item], number: usize) -> usize {
    let written = steps(items).into_iter().flat_map(|step| match step {
        Step::One(at) => vec![at],
        Step::Together(by_endpoint) => by_endpoint.into_iter().flat_map(|(_, all)| all).collect(),
    });
    written.into_iter().nth(number).unwrap_or(number)
}

/// The arguments of deliveries that end together.
fn write_together<'a>(
    script: ScriptCall<'a>,
    items: &[Item],
    by_endpoint: &[(&EndpointId, Vec<usize>)],
) -> ScriptCall<'a> {
    let all = || by_endpoint.iter().flat_map(|(_, all)| all).filter_map(|at| ends(&items[*at]));
    let script = script.arg("finish-all").arg(all().count()).arg(by_endpoint.len());
    let script =
        by_endpoint.iter().fold(script, |script, (endpoint, all)| script.arg(endpoint.as_str()).arg(all.len()));
    let script = script.texts(all().map(|(id, _)| id));
    script.texts(all().map(|(_, intent)| intent)).texts(all().map(|(id, _)| id.entry.padded()))
}

fn ends(item: &Item) -> Option<(&DeliveryId, &IntentId)> {
    match item {
        Item::Finish { id, chain: Chain::Intent(intent) } => Some((id, intent)),
        _ => None,
    }
}

/// The arguments of one item, as `settle.lua` lists them.
fn write_item<'a>(script: ScriptCall<'a>, item: &Item) -> ScriptCall<'a> {
    let script = script.arg(item_name(item));
    let body = |script: ScriptCall<'a>, body: &Bytes| script.arg(&body[..]);
    match item {
        Item::Finish { id, chain } => script.text(id).arg(chain.name()),
        Item::Keep { id, chain, place, record } => {
            body(script.text(id).arg(chain.name()).arg(place_text(*place)), record)
        }
        Item::Move { id, chain, place } => script.text(id).arg(chain.name()).arg(place_text(*place)),
        Item::Bury { id, chain, facts, letter } => body(script.text(id).arg(chain.name()).arg(facts.to_text()), letter),
        Item::Revive { id, chain, record } => body(script.text(id).arg(chain.name()), record),
        Item::Discard { id } => script.text(id),
        Item::Take { id, chain, place, record } => {
            body(script.text(id).arg(chain.name()).arg(place_text(*place)), record)
        }
        Item::TakeLetter { id, at_ms, facts, letter } => body(script.text(id).arg(at_ms).arg(facts.to_text()), letter),
        Item::TakeUnreadable { endpoint, at_ms } => script.text(endpoint).arg(at_ms),
        Item::Index { id, facts } => script.text(id).arg(facts.to_text()),
        Item::Quarantine { entry, body: content, cut, error, envelope, keep_bytes } => {
            let script = body(script.text(entry), content).arg(u8::from(*cut)).arg(error);
            let keep = keep_bytes.map_or("always".to_owned(), |bytes| bytes.to_string());
            let script = script.arg(envelope.traceparent.as_ref().map_or("", Traceparent::as_str));
            script.arg(envelope.account_sequence.map_or(String::new(), |number| number.to_string())).arg(keep)
        }
        Item::Requeue { entry } | Item::DiscardQuarantined { entry } => script.text(entry),
        Item::Bind { registry } => script.arg(registry),
        Item::Reply { request, answer } => script.text(request).arg(answer),
    }
}

fn item_name(item: &Item) -> &'static str {
    match item {
        Item::Finish { .. } => "finish",
        Item::Keep { .. } => "keep",
        Item::Move { .. } => "move",
        Item::Bury { .. } => "bury",
        Item::Revive { .. } => "revive",
        Item::Discard { .. } => "discard",
        Item::Index { .. } => "index",
        Item::Take { .. } => "take",
        Item::TakeLetter { .. } => "take-letter",
        Item::TakeUnreadable { .. } => "take-unreadable",
        Item::Quarantine { .. } => "quarantine",
        Item::Requeue { .. } => "requeue",
        Item::DiscardQuarantined { .. } => "discard-quarantined",
        Item::Bind { .. } => "bind",
        Item::Reply { .. } => "reply",
    }
}

fn place_text(place: Place) -> String {
    match place {
        Place::DueIn(ms) => ms.to_string(),
        Place::Claimed => "claimed".to_owned(),
        Place::Held => "held".to_owned(),
        Place::Backlog => "backlog".to_owned(),
    }
}

fn start_text(start: Start) -> String {
    match start {
        Start::Oldest => "0".to_owned(),
        Start::Newest => "$".to_owned(),
        Start::After(id) => id.to_string(),
    }
}

fn from_text(from: ReadFrom) -> String {
    match from {
        ReadFrom::Pending(after) => after.to_string(),
        ReadFrom::New => ">".to_owned(),
    }
}

fn most(max: usize) -> usize {
    max.min(MAX_BATCH)
}

/// What the connection's errors mean for a call. Only a script that never started is known to have changed nothing.
fn failure(error: StoreError) -> Failure {
    match error {
        StoreError::OutOfMemory { .. } => Failure::Full,
        StoreError::Unavailable { .. } | StoreError::NoScript { .. } | StoreError::Url { .. } => {
            Failure::Unknown(error.to_string())
        }
        StoreError::WrongType { .. }
        | StoreError::NoGroup { .. }
        | StoreError::Denied { .. }
        | StoreError::Other { .. } => Failure::Script(error.to_string()),
    }
}

/// The call's name for errors and logs; also the name of its script.
pub fn call_name(call: &Call) -> &'static str {
    match call {
        Call::Acquire { .. } => "acquire",
        Call::Renew { .. } => "renew",
        Call::Release { .. } => "release",
        Call::Recover { .. } => "recover",
        Call::Open { .. } => "open",
        Call::Counts { .. } => "counts",
        Call::Read { .. } => "read",
        Call::Ask { .. } => "ask",
        Call::Settle { .. } => "settle",
        Call::Claim { .. } => "claim",
        Call::PullIn { .. } => "pull_in",
        Call::Backlog { .. } => "backlog",
        Call::TakeHeads { .. } => "take_heads",
        Call::ClaimForeign { .. } => "claim_foreign",
        Call::Inbox { .. } => "inbox",
        Call::Trim { .. } => "trim",
        Call::ExpireDead { .. } => "expire_dead",
        Call::Unindexed { .. } => "unindexed",
        Call::SweepDead { .. } => "sweep_dead",
        Call::NoteUnreadable { .. } => "note_unreadable",
    }
}

/// Completes "cannot … STREAM" in an error's message.
fn verb(call: &Call) -> &'static str {
    match call {
        Call::Acquire { .. } => "take the lease on",
        Call::Renew { .. } => "renew the lease on",
        Call::Release { .. } => "release the lease on",
        Call::Recover { .. } => "recover the claimed deliveries of",
        Call::Open { .. } => "open the group of",
        Call::Counts { .. } => "count the unfinished deliveries of",
        Call::Read { .. } => "read entries of",
        Call::Ask { .. } => "ask for records of",
        Call::Settle { .. } => "settle deliveries of",
        Call::Claim { .. } => "claim the due deliveries of",
        Call::PullIn { .. } => "pull in the late due times of",
        Call::Backlog { .. } => "look at a backlog of",
        Call::TakeHeads { .. } => "take an endpoint's heads from",
        Call::ClaimForeign { .. } => "take over what other consumers hold of",
        Call::Inbox { .. } => "read the inbox of",
        Call::Trim { .. } => "trim",
        Call::ExpireDead { .. } => "expire dead letters of",
        Call::Unindexed { .. } => "look for dead letters without an index of",
        Call::SweepDead { .. } => "sweep the indexes of dead letters of",
        Call::NoteUnreadable { .. } => "note the unreadable endpoints of",
    }
}

/// Scripts of a partition by their files, each with what they share before it.
macro_rules! scripts {
    ($($constant:ident = $name:literal $(with $more:literal)?),* $(,)?) => {$(
        pub(super) static $constant: LazyLock<Script> =
            LazyLock::new(|| {
                let shared = [
                    include_str!("scripts/shared.lua"),
                    include_str!("scripts/partition_shared.lua"),
                    $(include_str!(concat!("scripts/", $more, ".lua")),)?
                ];
                Script::assembled($name, include_str!(concat!("scripts/", $name, ".lua")), &shared)
            });
    )*};
}

pub(in crate::store) use scripts;

scripts! {
    ACQUIRE = "acquire",
    RENEW = "renew",
    RELEASE = "release",
    WANT = "want",
    RECOVER = "recover",
    OPEN = "open",
    COUNTS = "counts",
    READ = "read",
    ASK = "ask",
    SETTLE = "settle" with "dead_index",
    CLAIM = "claim",
    PULL_IN = "pull_in",
    TAKE_HEADS = "take_heads",
    CLAIM_FOREIGN = "claim_foreign",
    INBOX = "inbox",
    TRIM = "trim" with "trimming",
    EXPIRE_DEAD = "expire_dead" with "dead_index",
    UNINDEXED = "unindexed" with "dead_index",
    SWEEP_DEAD = "sweep_dead" with "dead_index",
    NOTE_UNREADABLE = "note_unreadable",
}

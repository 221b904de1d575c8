//! What the owner of a partition asks Redis for the operations that are started: which there are, what each takes, and what
//! became of what it took. Each step is one script that compares the term, so whoever has lost the lease changes nothing, and a
//! step that was cut off is either done or not begun. Never decides what is taken when.

use std::sync::LazyLock;

use redis::Value;

use super::{MAX_ENDED, SHARED, json, word};
use crate::{
    facts::{
        endpoint::Mark,
        id::{DeliveryId, EndpointId, EntryId, IntentId, OperationId},
        operation::{Kind, Rate, State},
    },
    store::{
        connection::{Connection, Script, ScriptCall, Subject},
        error::StoreError,
        keys::PartitionKeys,
        protocol::{GROUP, NO_SUCH_LETTER, TAKEN_BEFORE, Term},
        queries::RawEvent,
        requests::MAX_WAITING,
    },
};

/// Endpoints that are noted in one step, and fields of one look.
const PAGE: usize = 500;

/// A request that was granted is done by the time of its answer. One that still shows no effect after this long has none.
pub const PATIENCE_MS: u64 = 5_000;

const TAKE_FILE: &str = include_str!("../scripts/operation_take.lua");

static LAY: LazyLock<Script> =
    LazyLock::new(|| Script::assembled("operation_lay", include_str!("../scripts/operation_lay.lua"), &SHARED));
static BOOK: LazyLock<Script> =
    LazyLock::new(|| Script::assembled("operation_book", include_str!("../scripts/operation_book.lua"), &SHARED));
static REPLAY: LazyLock<Script> =
    LazyLock::new(|| Script::assembled("operation_replay", include_str!("../scripts/operation_replay.lua"), &SHARED));
static SEND: LazyLock<Script> =
    LazyLock::new(|| Script::assembled("operation_send", include_str!("../scripts/operation_send.lua"), &SHARED));
static END: LazyLock<Script> =
    LazyLock::new(|| Script::assembled("operation_end", include_str!("../scripts/operation_end.lua"), &SHARED));
/// What goes out again waits while Redis is full; what is discarded makes room.
static TAKE: LazyLock<Script> =
    LazyLock::new(|| Script::assembled("operation_take", &["#!lua\n", TAKE_FILE].concat(), &SHARED));
static TAKE_ON_FULL: LazyLock<Script> = LazyLock::new(|| {
    Script::assembled("operation_take on a full Redis", &["#!lua flags=allow-oom\n", TAKE_FILE].concat(), &SHARED)
});

/// Why a step did nothing: the lease holds another term, so somebody else goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// How it stands, and what became of those that were asked about, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booked {
    pub state: State,
    pub rate: Rate,
    pub is_laid: bool,
    pub open: u64,
    pub became: Vec<Became>,
}

/// What became of a delivery that an operation has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Became {
    /// The owner has not come to it.
    Asked,
    /// It goes out.
    Open,
    /// It waits behind another of its intent.
    Held,
    /// It has failed since, and is tried again later.
    Retrying,
    /// Its endpoint takes nothing at the moment.
    Parked,
    Done,
    Refused,
    DeadAgain,
    Overtaken,
    /// Another owner's, or none: nothing that this operation waits for.
    Stranger,
}

impl Became {
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Asked | Self::Open) && !self.is_slow()
    }

    /// Nothing happens to it soon.
    pub fn is_slow(self) -> bool {
        matches!(self, Self::Held | Self::Retrying | Self::Parked)
    }

    fn read(text: &str) -> Option<Self> {
        Some(match text {
            "asked" => Self::Asked,
            "open" => Self::Open,
            "held" => Self::Held,
            "retrying" => Self::Retrying,
            "parked" => Self::Parked,
            "done" => Self::Done,
            "refused" => Self::Refused,
            "dead_again" => Self::DeadAgain,
            "overtaken" => Self::Overtaken,
            "repeated" | "stranger" => Self::Stranger,
            _ => return None,
        })
    }
}

/// Letters of one endpoint, and where the operation is at this endpoint before and after it has taken them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taking {
    pub endpoint: EndpointId,
    pub before: String,
    /// None when nothing is left there.
    pub after: Option<String>,
    /// With the time at which each died.
    pub letters: Vec<(DeliveryId, u64)>,
}

/// Deliveries that were made due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub left: u64,
    pub under_way: Vec<DeliveryId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Those that are under way now.
    Some(Vec<DeliveryId>),
    /// Too many requests wait for the owner.
    Busy,
    /// It is paused or cancelled.
    Stopped,
    /// Something else has moved it: what is known of it is read again.
    Moved,
    /// The stream takes nothing, for this reason.
    Stuck(String),
}

/// Events of the history that go into the stream again, for one endpoint, and where the operation is before and after that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaying {
    pub endpoint: EndpointId,
    pub before: String,
    /// None when nothing is left.
    pub after: Option<String>,
    /// None of them is sent again, for this reason.
    pub refusal: Option<String>,
    pub events: Vec<RawEvent>,
}

/// How an operation ended: what was done, what was not, and the entry of the audit log that it began with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub state: State,
    pub done: u64,
    pub not_done: u64,
    pub audit: Option<EntryId>,
}

/// The owner's, on a connection of its own.
pub struct Work {
    pub(super) connection: Connection,
    pub(super) keys: PartitionKeys,
    term: Term,
}

impl Work {
    pub fn new(connection: Connection, keys: PartitionKeys, term: Term) -> Self {
        Self { connection, keys, term }
    }

    /// Those that are started, the longest ago first.
    pub async fn open(&mut self) -> Result<Vec<OperationId>, StoreError> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(self.keys.operations_open()).arg(0).arg(-1);
        let ids: Vec<String> = self.connection.query("look for operations to work on", &command).await?;
        Ok(ids.into_iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Everything that operations have under way, with whose it is.
    pub async fn claims(&mut self) -> Result<Vec<(DeliveryId, OperationId)>, StoreError> {
        let all = self.pairs(&self.keys.operation_claims()).await?;
        let claim = |(id, holder): (String, String)| {
            Some((id.parse().ok()?, holder.split(' ').next().unwrap_or_default().parse().ok()?))
        };
        Ok(all.into_iter().filter_map(claim).collect())
    }

    /// Endpoints where an operation has something left, each with its place.
    pub async fn places(&mut self, id: &OperationId) -> Result<Vec<(EndpointId, String)>, StoreError> {
        let all = self.pairs(&self.keys.operation_endpoints(id)).await?;
        Ok(all.into_iter().filter_map(|(endpoint, place)| Some((endpoint.parse().ok()?, place))).collect())
    }

    async fn pairs(&mut self, key: &str) -> Result<Vec<(String, String)>, StoreError> {
        let (mut all, mut cursor) = (Vec::new(), 0);
        loop {
            let mut command = redis::cmd("HSCAN");
            command.arg(key).arg(cursor).arg("COUNT").arg(PAGE);
            let (next, page): (u64, Vec<(String, String)>) =
                self.connection.query(Subject("read a page of", key), &command).await?;
            all.extend(page);
            match next {
                0 => return Ok(all),
                next => cursor = next,
            }
        }
    }

    /// The letters of these intents, in one breath. Nearly always each has one; of one that has many, only some are told.
    pub async fn of_intents(&mut self, intents: &[IntentId]) -> Result<Vec<Vec<DeliveryId>>, StoreError> {
        const SOME: usize = 8;
        // A pipeline of nothing is an error.
        if intents.is_empty() {
            return Ok(Vec::new());
        }
        let (key, mut pipeline) = (self.keys.dead_names(), redis::pipe());
        for intent in intents {
            pipeline.cmd("ZRANGEBYLEX").arg(&key).arg(format!("[i:{intent} ")).arg(format!("(i:{intent}!"));
            pipeline.arg("LIMIT").arg(0).arg(SOME);
        }
        let found: Vec<Vec<String>> =
            self.connection.pipeline("look for other letters of an intent", &pipeline).await?;
        let id = |member: String| member.split_once(' ')?.1.parse().ok();
        Ok(found.into_iter().map(|members| members.into_iter().filter_map(id).collect()).collect())
    }

    pub async fn lay(&mut self, id: &OperationId, endpoints: &[EndpointId]) -> Result<Result<(), Lost>, StoreError> {
        let subject = Subject("note the endpoints of an operation on", self.keys.stream());
        // At least one step: an operation may have nothing left.
        let parts: Vec<&[EndpointId]> = if endpoints.is_empty() { vec![&[]] } else { endpoints.chunks(PAGE).collect() };
        for (at, part) in parts.iter().enumerate() {
            let names = [&*self.keys.lease(), &self.keys.operation(id), &self.keys.operation_endpoints(id)];
            let call = LAY.keys(&names).arg(self.term.as_str()).arg(u8::from(at + 1 == parts.len()));
            let call = part.iter().fold(call, |call, endpoint| call.arg(endpoint.as_str()));
            let answer: Vec<Value> = self.connection.run(subject, &call).await?;
            match word(answer.first()) {
                "LAID" => {}
                "LOST" => return Ok(Err(Lost)),
                _ => return Err(StoreError::unexpected(subject, format_args!("the answer {answer:?}"))),
            }
        }
        Ok(Ok(()))
    }

    pub async fn take(
        &mut self,
        id: &OperationId,
        kind: Kind,
        mark: &Mark,
        taking: &Taking,
    ) -> Result<Result<Taken, Lost>, StoreError> {
        let subject = Subject("take letters for an operation on", self.keys.stream());
        let script = if kind == Kind::Discard { &TAKE_ON_FULL } else { &TAKE };
        let keys = &self.keys;
        let names = [
            keys.lease(),
            keys.operation(id),
            keys.operation_endpoints(id),
            keys.operation_claims(),
            keys.inbox(),
            keys.dead(),
        ];
        let call = self.call(script, &names).arg(id.as_str()).arg(kind.name()).arg(json(mark)).arg(MAX_WAITING);
        let call = call.arg(taking.endpoint.as_str()).arg(&taking.before).arg(taking.after.as_deref().unwrap_or("end"));
        let call = taking.letters.iter().fold(call, |call, (letter, died_ms)| call.text(letter).arg(died_ms));
        let answer: Vec<Value> = self.connection.run(subject, &call).await?;
        Ok(Ok(match word(answer.first()) {
            "TAKEN" => {
                let words = answer[1..].iter().map(|word_of| word(Some(word_of)));
                let under_way = taking.letters.iter().zip(words).filter(|(_, word)| word.parse::<EntryId>().is_ok());
                Taken::Some(under_way.map(|((letter, _), _)| letter.clone()).collect())
            }
            "BUSY" => Taken::Busy,
            "STOPPED" => Taken::Stopped,
            "MOVED" => Taken::Moved,
            "LOST" => return Ok(Err(Lost)),
            _ => return Err(StoreError::unexpected(subject, format_args!("the answer {answer:?}"))),
        }))
    }

    pub async fn replay(&mut self, id: &OperationId, replaying: &Replaying) -> Result<Result<Taken, Lost>, StoreError> {
        let subject = Subject("send events again for an operation on", self.keys.stream());
        let keys = &self.keys;
        let names = [
            keys.lease(),
            keys.operation(id),
            keys.operation_endpoints(id),
            keys.operation_claims(),
            keys.stream().to_owned(),
            keys.places(),
        ];
        let Replaying { endpoint, before, after, refusal, events } = replaying;
        let call = self.call(&REPLAY, &names).arg(id.as_str()).arg(endpoint.as_str()).arg(before);
        let call = call.arg(after.as_deref().unwrap_or("end")).arg(refusal.as_deref().unwrap_or_default());
        let call = events.iter().fold(call, |call, event| {
            let number = event.number.map_or_else(String::new, |number| number.to_string());
            call.text(event.entry).arg(&event.body[..]).arg(number).arg(&event.traceparent)
        });
        let answer: Vec<Value> = self.connection.run(subject, &call).await?;
        Ok(Ok(match word(answer.first()) {
            "TAKEN" => {
                let entries = answer[1..].iter().filter_map(|entry| word(Some(entry)).parse::<EntryId>().ok());
                Taken::Some(entries.map(|entry| DeliveryId { entry, endpoint: endpoint.clone() }).collect())
            }
            "STUCK" => Taken::Stuck(word(answer.get(1)).to_owned()),
            "STOPPED" => Taken::Stopped,
            "MOVED" => Taken::Moved,
            "LOST" => return Ok(Err(Lost)),
            _ => return Err(StoreError::unexpected(subject, format_args!("the answer {answer:?}"))),
        }))
    }

    /// Makes some of those due that are to be sent now. None while it is not running.
    pub async fn send(&mut self, id: &OperationId, most: usize) -> Result<Result<Option<Sent>, Lost>, StoreError> {
        let subject = Subject("make deliveries due for an operation on", self.keys.stream());
        let keys = &self.keys;
        let names = [
            keys.lease(),
            keys.operation(id),
            keys.operation_ids(id),
            keys.operation_claims(),
            keys.due(),
            keys.claimed(),
        ];
        let answer: Vec<Value> =
            self.connection.run(subject, &self.call(&SEND, &names).arg(id.as_str()).arg(most)).await?;
        match (word(answer.first()), answer.get(1)) {
            ("SENT", Some(Value::Int(left))) => {
                let under_way = answer[2..].iter().filter_map(|id| word(Some(id)).parse().ok()).collect();
                Ok(Ok(Some(Sent { left: u64::try_from(*left).unwrap_or(0), under_way })))
            }
            ("STOPPED", _) => Ok(Ok(None)),
            ("LOST", _) => Ok(Err(Lost)),
            _ => Err(StoreError::unexpected(subject, format_args!("the answer {answer:?}"))),
        }
    }

    /// None if the operation is gone. `is_gone`: the endpoint that its events are sent to was deleted.
    pub async fn book(
        &mut self,
        id: &OperationId,
        kind: Kind,
        is_gone: bool,
        waits: &[String],
        of: &[DeliveryId],
    ) -> Result<Result<Option<Booked>, Lost>, StoreError> {
        let subject = Subject("see what became of an operation on", self.keys.stream());
        let keys = &self.keys;
        let names = [
            keys.lease(),
            keys.operation(id),
            keys.operation_claims(),
            keys.inbox(),
            keys.dead(),
            keys.dead_facts(),
            keys.due(),
            keys.claimed(),
            keys.stream().to_owned(),
            keys.quarantine_index(),
        ];
        let kind = if kind == Kind::Replay && is_gone { "replay-gone" } else { kind.name() };
        let call = self.call(&BOOK, &names).arg(id.as_str()).arg(kind).arg(PATIENCE_MS).arg(json(&waits));
        let call = call.arg(format!("error: {NO_SUCH_LETTER}")).arg(format!("error: {TAKEN_BEFORE}")).arg(GROUP);
        let call = of.iter().fold(call, |call, delivery| call.text(delivery));
        let answer: Vec<Value> = self.connection.run(subject, &call).await?;
        match word(answer.first()) {
            "BOOKED" => {}
            "MISSING" => return Ok(Ok(None)),
            "LOST" => return Ok(Err(Lost)),
            _ => return Err(StoreError::unexpected(subject, format_args!("the answer {answer:?}"))),
        }
        let booked = || {
            let became = answer.get(5..)?.iter().map(|word_of| Became::read(word(Some(word_of))));
            Some(Booked {
                state: word(answer.get(1)).parse().ok()?,
                rate: word(answer.get(2)).parse().ok()?,
                is_laid: word(answer.get(3)) == "1",
                open: match answer.get(4)? {
                    Value::Int(open) => u64::try_from(*open).ok()?,
                    _ => return None,
                },
                became: became.collect::<Option<Vec<_>>>()?,
            })
        };
        let booked = booked().filter(|booked| booked.became.len() == of.len());
        let unexpected = || StoreError::unexpected(subject, format_args!("the answer {answer:?}"));
        booked.ok_or_else(unexpected).map(|booked| Ok(Some(booked)))
    }

    /// None while it has something to do. The first call writes that it has ended, the second, `is_told`, that its end is in the
    /// audit log and nobody needs to work on it any more.
    pub async fn end(&mut self, id: &OperationId, is_told: bool) -> Result<Result<Option<End>, Lost>, StoreError> {
        let subject = Subject("end an operation on", self.keys.stream());
        let keys = &self.keys;
        let names = [keys.lease(), keys.operation(id), keys.operation_endpoints(id), keys.operation_ids(id)];
        let step = if is_told { "close" } else { "end" };
        let call = self.call(&END, &names).arg(id.as_str()).arg(step).arg(MAX_ENDED);
        let answer: Vec<Value> = self.connection.run(subject, &call).await?;
        let end = || match (&answer[..], word(answer.get(1)).parse()) {
            ([_, _, Value::Int(done), Value::Int(not_done), audit], Ok(state)) => Some(End {
                state,
                done: u64::try_from(*done).ok()?,
                not_done: u64::try_from(*not_done).unwrap_or(0),
                audit: word(Some(audit)).parse().ok(),
            }),
            _ => None,
        };
        match word(answer.first()) {
            "ENDED" => {
                let unexpected = || StoreError::unexpected(subject, format_args!("the answer {answer:?}"));
                end().ok_or_else(unexpected).map(|end| Ok(Some(end)))
            }
            "OPEN" => Ok(Ok(None)),
            "LOST" => Ok(Err(Lost)),
            _ => Err(StoreError::unexpected(subject, format_args!("the answer {answer:?}"))),
        }
    }

    pub(super) fn call(&self, script: &'static Script, names: &[String]) -> ScriptCall<'static> {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        script.keys(&names).arg(self.term.as_str()).arg(self.keys.prefix())
    }
}

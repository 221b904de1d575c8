//! The calls that the owner of a partition makes to Redis, and their answers. Two things speak this protocol: the scripts
//! (`partition.rs`) and the plain Rust model that specifies them (`model.rs`).
//!
//! One call is one atomic step: a script or, for a look at a backlog, something just as good. Every call that takes or
//! changes state carries the term's value and is answered [`Answer::Lost`] when the lease no longer holds it. Never
//! decides anything: `dispatch` does.

use bytes::Bytes;

use crate::facts::{
    delivery::Chain,
    envelope::{AccountSequence, Envelope},
    id::{DeliveryId, EndpointId, EntryId, EventId, IntentId, OperationId},
    letter::LetterFacts,
    partition::{Mode, UnknownMode},
    stamped::Stamped,
};

/// The group that Herald reads with, and the one consumer name that every owner uses.
pub const GROUP: &str = "herald";
pub const CONSUMER: &str = "herald";

/// The most items, acknowledgements and log lines in one [`Settlement`], all together: bounds how long a script holds
/// Redis.
pub const MAX_BATCH: usize = 500;

/// The most bytes that one read returns; reached by few large events or many small ones.
pub const MAX_READ_BYTES: usize = 1024 * 1024;

/// What a quarantined entry takes of the quarantine's limit, besides its body and its error.
pub const QUARANTINED_BYTES: usize = 256;

/// The most entries that a new one drops from the quarantine: bounds how long a script holds Redis after the limit was
/// lowered.
pub const MAX_DROPS: usize = 100;

/// Finished entries may stay longer than `retain` by one part in this many, because so many time marks are kept.
pub const RETAIN_PARTS: u64 = 64;

/// The value of the lease: random for each term, followed by the owner's name for people who look.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term(String);

impl Term {
    pub fn new(random: u128, owner: &str) -> Self {
        Self(format!("{random:032x} {owner}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The worker that it is of.
    pub fn worker(&self) -> &str {
        Self::owner_of(&self.0)
    }

    /// What tells it apart from others.
    pub fn id(&self) -> &str {
        self.0.split(' ').next().unwrap_or_default()
    }

    /// The owner's name within a lease's value.
    pub fn owner_of(value: &str) -> &str {
        value.split_once(' ').map_or(value, |(_, owner)| owner)
    }
}

/// Where the group starts the very first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    #[default]
    Oldest,
    Newest,
    After(EntryId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// What was read but not acknowledged, after this id.
    Pending(EntryId),
    /// What no consumer of the group has read.
    New,
}

/// Where a look for dead letters without an index begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookFrom {
    /// Where the last complete look ended, in this term or an earlier one.
    Mark,
    Start,
    /// Behind this letter, which died at this time.
    After(u64, DeliveryId),
}

/// Where a record is. Exactly one record of each chain is anywhere but held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Its next attempt comes this many milliseconds from now, by Redis' clock.
    DueIn(u64),
    /// The owner has it in memory.
    Claimed,
    /// Behind the head of its chain.
    Held,
    /// In its endpoint's backlog.
    Backlog,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// Delivered, or no longer owed. Its record, if any, is removed, and the next of its chain becomes due.
    Finish { id: DeliveryId, chain: Chain },
    /// Its record is written and put at `place`. A new record that is to be held but finds no head before it becomes the
    /// head and is due at once; a new one that is to be the head but finds one is held.
    Keep { id: DeliveryId, chain: Chain, place: Place, record: Bytes },
    /// Its record stays and changes its place. Does nothing to a delivery without a record.
    Move { id: DeliveryId, chain: Chain, place: Place },
    /// Given up: the letter is written and indexed by its facts, then the same as for [`Item::Finish`].
    Bury { id: DeliveryId, chain: Chain, facts: Box<LetterFacts>, letter: Bytes },
    /// A dead letter becomes an unfinished delivery again, held in its place or due at once. Does nothing if there is
    /// no letter.
    Revive { id: DeliveryId, chain: Chain, record: Bytes },
    /// A dead letter goes for good.
    Discard { id: DeliveryId },
    /// A dead letter that an older Herald wrote is indexed by these facts. Does nothing if there is no letter, or if it is
    /// indexed.
    Index { id: DeliveryId, facts: Box<LetterFacts> },
    /// An unfinished delivery of the stream that this one is a part of. As for [`Item::Keep`], but a record that is there stays as it
    /// is.
    Take { id: DeliveryId, chain: Chain, place: Place, record: Bytes },
    /// A dead letter of that stream, which died at this time. One that is there stays as it is.
    TakeLetter { id: DeliveryId, at_ms: u64, facts: Box<LetterFacts>, letter: Bytes },
    /// In that stream it was noted at this time that the endpoint cannot be read. A later note stays.
    TakeUnreadable { endpoint: EndpointId, at_ms: u64 },
    /// An entry that is not a valid event. It is kept once, however often it is quarantined; another entry with the
    /// same id but another body is kept beside it. While the quarantine then holds more than `keep_bytes`, its oldest
    /// entries are dropped and counted, but never this one. Without a limit it is a sound event, which no limit drops.
    Quarantine { entry: EntryId, body: Bytes, cut: bool, error: String, envelope: Envelope, keep_bytes: Option<u64> },
    /// The oldest quarantined entry with this id goes back to the end of the stream, with the place in the order that
    /// it had; one that was cut stays.
    Requeue { entry: EntryId },
    /// The oldest quarantined entry with this id goes for good.
    DiscardQuarantined { entry: EntryId },
    /// The partition belongs to this registry from now on.
    Bind { registry: String },
    /// A request has been dealt with: it leaves the inbox, and its sender finds the answer.
    Reply { request: EntryId, answer: String },
}

/// Everything that becomes durable in one step, in this order: items, acknowledgements, log, cursor.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settlement {
    pub items: Vec<Item>,
    pub acks: Vec<EntryId>,
    /// Lines of the attempt log, without line feeds.
    pub log: Vec<Bytes>,
    /// The last entry that this owner read: the cursor when nothing is pending.
    pub last_read: EntryId,
}

impl Settlement {
    pub fn len(&self) -> usize {
        self.items.len() + self.acks.len() + self.log.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// Takes the lease if it is free or holds one of `previous`, values that this worker itself wrote.
    Acquire {
        term: Term,
        previous: Vec<Term>,
        ttl_ms: u64,
    },
    Renew {
        term: Term,
        ttl_ms: u64,
    },
    Release {
        term: Term,
    },
    /// Makes up to `max` of the claimed deliveries due again, now.
    Recover {
        term: Term,
        max: usize,
    },
    /// Makes the group if it is missing, and binds the partition to `registry` if it is bound to none.
    Open {
        term: Term,
        start: Start,
        registry: String,
    },
    /// The unfinished records of each endpoint, and when it was last noted that it cannot be read, a page at a time.
    Counts {
        term: Term,
        cursor: u64,
    },
    Read {
        term: Term,
        from: ReadFrom,
        max: usize,
    },
    /// What Redis holds of these deliveries and of their intents. `suspect`: they may have been read before.
    Ask {
        term: Term,
        deliveries: Vec<Question>,
        suspect: bool,
    },
    Settle {
        term: Term,
        settlement: Settlement,
    },
    /// Moves up to `max` due deliveries to claimed.
    Claim {
        term: Term,
        max: usize,
    },
    /// Looks at an endpoint's backlog after an entry; nothing moves.
    Backlog {
        term: Term,
        endpoint: EndpointId,
        after: EntryId,
        max: usize,
    },
    /// Makes up to `max` deliveries that are due at `from_ms` or later due earlier by `by_ms`, but not before 0, in the
    /// order of their times. A step of Redis' clock is remembered for people who look.
    PullIn {
        term: Term,
        from_ms: u64,
        by_ms: u64,
        max: usize,
        step_ms: i64,
    },
    /// Moves up to `max` heads of an endpoint's chains, due or in the backlog, to claimed.
    TakeHeads {
        term: Term,
        endpoint: EndpointId,
        max: usize,
    },
    /// Takes over what other consumers of the group have pending.
    ClaimForeign {
        term: Term,
        max: usize,
    },
    /// Requests after this one, each with what it is about.
    Inbox {
        term: Term,
        after: EntryId,
        max: usize,
    },
    /// Trims the entries that were there `retain_ms` ago and that every group has passed, up to `up_to` at most.
    Trim {
        term: Term,
        retain_ms: u64,
        /// How far the history has read: it keeps the events' bytes.
        up_to: Option<EntryId>,
        ignores: Vec<String>,
    },
    /// Drops up to `max` dead letters that are beyond a retention limit.
    ExpireDead {
        term: Term,
        max_age_ms: u64,
        max_count: u64,
        max: usize,
    },
    /// Looks at up to `look` dead letters, the oldest first, for up to `max` that stand in no index, because an older
    /// Herald wrote them.
    Unindexed {
        term: Term,
        from: LookFrom,
        look: usize,
        max: usize,
    },
    /// Takes out of the indexes what is no dead letter any more, because an older Herald removed it: a page at a time.
    SweepDead {
        term: Term,
        cursor: u64,
    },
    /// Notes that these endpoints cannot be read now, and forgets notes from more than `holds_ms` ago.
    NoteUnreadable {
        term: Term,
        endpoints: Vec<EndpointId>,
        holds_ms: u64,
    },
}

impl Call {
    /// The term that the call carries.
    pub fn term(&self) -> &Term {
        match self {
            Self::Acquire { term, .. }
            | Self::Renew { term, .. }
            | Self::Release { term }
            | Self::Recover { term, .. }
            | Self::Open { term, .. }
            | Self::Counts { term, .. }
            | Self::Read { term, .. }
            | Self::Ask { term, .. }
            | Self::Settle { term, .. }
            | Self::Claim { term, .. }
            | Self::PullIn { term, .. }
            | Self::Backlog { term, .. }
            | Self::TakeHeads { term, .. }
            | Self::ClaimForeign { term, .. }
            | Self::Inbox { term, .. }
            | Self::Trim { term, .. }
            | Self::ExpireDead { term, .. }
            | Self::Unindexed { term, .. }
            | Self::SweepDead { term, .. }
            | Self::NoteUnreadable { term, .. } => term,
        }
    }
}

/// An entry of the stream as it was read. Values longer than an event may be are cut.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Event {
        body: Bytes,
        traceparent: Option<Bytes>,
        account_sequence: Option<AccountSequence>,
        full_bytes: usize,
    },
    /// It has no field `event`; these are its fields, for the quarantine.
    NoEvent {
        preview: Bytes,
    },
    /// It was trimmed while pending.
    Trimmed,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub id: EntryId,
    /// The entry whose place in the order this one has, if it came back from the quarantine.
    pub place: Option<EntryId>,
    /// The endpoint that alone it is for, if it was sent again.
    pub only: Option<EndpointId>,
    pub content: Content,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unfinished {
    /// Records, wherever they stand.
    pub records: u64,
    /// How many of these records are in the backlog.
    pub parked: u64,
    /// Bytes of the records' texts. Records that an older version wrote are not counted.
    pub bytes: u64,
}

/// What Redis needs for a record besides its text: the key, and its places in its endpoint's indexes.
pub const RECORD_BYTES: u64 = 400;

impl Unfinished {
    /// Roughly what all of it takes in Redis.
    pub fn weight(&self) -> u64 {
        self.bytes.saturating_add(self.records.saturating_mul(RECORD_BYTES))
    }
}

/// What Redis holds of a delivery that was read, and of its chain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// Whether the intent has unfinished records in order.
    pub ordered: bool,
    /// Whether it has any unfinished records that are chains of their own.
    pub single: bool,
    /// What is stored under the delivery's id. Redis looks only if the intent has records or the question is `suspect`:
    /// nothing is stored of a delivery that is read for the first time.
    pub recorded: Recorded,
}

/// What already has a delivery's id: a record or a dead letter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Recorded {
    #[default]
    Nothing,
    /// This very delivery: it is not new at all.
    This,
    /// A delivery of another event. A stream that was made anew gives out its ids again.
    Another,
}

/// A delivery that was read, with its intent and its event.
pub type Question = (DeliveryId, IntentId, EventId);

/// The event's id lies within this many bytes of the beginning of a record or a letter.
pub const RECORD_HEAD_BYTES: usize = 1024;

/// A record as a call returned it; `None` if the id is in a set but the record is gone.
pub type Kept = (DeliveryId, Option<Bytes>);

#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub id: EntryId,
    pub what: RequestKind,
    /// The sender's `Mark`, as JSON.
    pub mark: Bytes,
    /// The operation that asks.
    pub operation: Option<OperationId>,
    /// Another operation, which has the letter under way.
    pub held_by: Option<OperationId>,
}

/// What is answered where there is no letter to redeliver or discard. The scripts of operations compare it.
pub const NO_SUCH_LETTER: &str = "there is no such dead letter";

/// What an operation is answered that has redelivered a letter before, which died again by a clock that was set back.
pub const TAKEN_BEFORE: &str = "this operation has taken it before";

/// What is asked, with what Redis holds of it now.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestKind {
    Redeliver {
        id: DeliveryId,
        letter: Option<Bytes>,
    },
    Discard {
        id: DeliveryId,
        letter: Option<Bytes>,
    },
    Release {
        endpoint: EndpointId,
        intent: IntentId,
        head: Option<(DeliveryId, Option<Bytes>)>,
        /// The head that its sender saw: another is not released. None of an older Herald.
        meant: Option<EntryId>,
    },
    Requeue {
        entry: EntryId,
        exists: bool,
        cut: bool,
    },
    DiscardQuarantined {
        entry: EntryId,
        exists: bool,
    },
    AcceptRegistry {
        registry: String,
    },
    Repartition {
        parts: u32,
    },
    CancelRepartition,
    /// Not readable: its answer is this text.
    Unknown {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The lease does not hold the call's term. Nothing was changed.
    Lost,
    /// The group is not there. Nothing was changed.
    NoGroup,
    /// An item cannot be applied; nothing was changed.
    BadItem {
        at: usize,
        why: String,
    },
    /// With what becomes of the stream's entries.
    Acquired {
        now_ms: u64,
        mode: Result<Mode, UnknownMode>,
    },
    Taken {
        by: String,
        left_ms: u64,
    },
    /// The stream is a part that is still to be filled by this split: until then it has no owner.
    Gated {
        token: String,
    },
    /// It is free, but kept for the worker that has asked for it.
    Reserved {
        worker: String,
        left_ms: u64,
    },
    /// With the worker that asks for the partition.
    Renewed {
        next: Option<String>,
    },
    Released,
    Recovered {
        moved: usize,
    },
    Opened {
        made_after: Option<EntryId>,
        last_delivered: EntryId,
        last_generated: EntryId,
        registry: String,
        /// The group is behind the cursor: somebody moved it, and it will deliver again what was already dealt with. Or
        /// it was made in another stream than the cursor's, which may give the same ids to other events.
        is_set_back: bool,
    },
    Counts {
        counts: Vec<(EndpointId, Unfinished)>,
        /// Those of them that could once not be read, and when that was last noted.
        unreadable: Vec<(EndpointId, u64)>,
        cursor: u64,
    },
    Entries {
        entries: Vec<Entry>,
        now_ms: u64,
        /// The registry's last change, read after the entries: an owner whose snapshot has another one does not know yet to
        /// whom they are owed. None if there is no registry, or none that can be asked.
        registry: Option<Stamped>,
    },
    /// For the deliveries, in the order in which they were asked about.
    Asked {
        known: Vec<Known>,
    },
    Settled {
        now_ms: u64,
        next_due_ms: Option<u64>,
        counts: Vec<(EndpointId, Unfinished)>,
        group_missing: bool,
    },
    Claimed {
        kept: Vec<Kept>,
        now_ms: u64,
        next_due_ms: Option<u64>,
    },
    /// `last_ms` is when the last of those moved was due; `set_back_ms` is how far Redis' clock is behind the last such
    /// call.
    PulledIn {
        moved: usize,
        last_ms: u64,
        set_back_ms: u64,
        now_ms: u64,
        next_due_ms: Option<u64>,
    },
    Backlog {
        kept: Vec<Kept>,
        now_ms: u64,
    },
    Heads {
        kept: Vec<Kept>,
        now_ms: u64,
    },
    ClaimedForeign {
        count: usize,
        lowest: Option<EntryId>,
    },
    Requests {
        requests: Vec<Request>,
    },
    Trimmed {
        count: u64,
        now_ms: u64,
    },
    ExpiredDead {
        count: u64,
    },
    /// `letters` are without an index; `next` is where to go on, none after the last. There are `dead` letters in all, and
    /// `indexed` lines of facts.
    Unindexed {
        letters: Vec<Kept>,
        next: Option<(u64, DeliveryId)>,
        dead: u64,
        indexed: u64,
    },
    SweptDead {
        count: u64,
        cursor: u64,
    },
    Noted {
        now_ms: u64,
    },
}

/// A request as its sender writes it.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    Redeliver(DeliveryId),
    Discard(DeliveryId),
    /// The head of a chain; if one is named, only that one.
    Release(EndpointId, IntentId, Option<EntryId>),
    Requeue(EntryId),
    DiscardQuarantined(EntryId),
    AcceptRegistry(String),
    /// Into so many parts.
    Repartition(u32),
    /// It is not to be split after all.
    CancelRepartition,
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No answer came, or it came too late. The call may have been carried out, or may still be.
    Unknown(String),
    /// Redis is full and refused before anything was changed.
    Full,
    /// The script failed. What it changed before that is not known.
    Script(String),
    /// An answer that no script of this version gives: the call was carried out, and what it took is not known.
    Malformed(String),
}

/// What came of asking an owner for its partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Nobody has it.
    Free,
    /// The owner finds out with its next renewal.
    Asked { owner: String, left_ms: u64 },
    /// Another worker has asked before.
    Busy { worker: String },
}

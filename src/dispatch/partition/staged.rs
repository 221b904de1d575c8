//! What was read and is not admitted yet: entries with the endpoints that they are owed to, and how far they have come on
//! their way in. Holds them, and decides nothing: that is `admission`.

use super::{AccountId, Arc, Endpoint, EndpointId, EntryId, Envelope, Event, Slice, VecDeque};

/// One entry, and how far its deliveries have come.
#[derive(Debug)]
pub(super) struct StagedEntry {
    pub entry: EntryId,
    pub event: Event,
    pub envelope: Envelope,
    pub place: Option<EntryId>,
    /// The endpoint that alone it is for.
    pub only: Option<EndpointId>,
    pub endpoints: Arc<Vec<Arc<Endpoint>>>,
    /// Endpoints that may be owed it, once they can be read: until then it waits in their backlogs.
    pub unknown: Vec<EndpointId>,
    /// The first delivery that is not admitted yet.
    pub next: usize,
    /// The core counts its deliveries: some may be out, and the rest follows.
    pub is_open: bool,
    /// It lets others pass after each slice of it, and then goes on at once.
    pub is_in_parts: bool,
    /// When it was deferred.
    pub waits_since: Option<u64>,
    /// It may have been read before, so each delivery is looked up.
    pub suspect: bool,
}

impl StagedEntry {
    /// Every endpoint that it is owed to.
    pub fn owed_to(&self) -> impl Iterator<Item = &EndpointId> + Clone {
        self.endpoints.iter().map(|endpoint| &endpoint.id).chain(&self.unknown)
    }

    /// Deliveries that are not admitted yet.
    pub fn left(&self) -> usize {
        self.endpoints.len() + self.unknown.len() - self.next
    }
}

/// Where entries that are to be admitted come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Read for the first time, or taken over.
    Stream,
    /// Deferred, and read again.
    Pass,
    /// Deferred in memory; all of this account.
    Memory(AccountId),
}

/// How far what was read has come on its way in.
#[derive(Debug)]
pub(super) enum Stage {
    /// The registry has changed since the snapshot: which endpoints the entries are owed to is not known yet.
    Unconfirmed,
    /// The next slice may be admitted.
    Ready,
    /// Redis is being asked about the next slice.
    Asking(Slice),
}

/// Entries that are not admitted yet.
#[derive(Debug)]
pub(super) struct Staged {
    pub arrivals: VecDeque<StagedEntry>,
    pub source: Source,
    pub stage: Stage,
    /// Deliveries that were admitted.
    pub admitted: usize,
    /// Entries that wait in memory.
    pub in_memory: usize,
    /// Deliveries that joined backlogs that are being drained, and entries that will have to be read again.
    pub put_off: usize,
}

impl Staged {
    pub fn new(arrivals: VecDeque<StagedEntry>, source: Source, stage: Stage) -> Self {
        Self { arrivals, source, stage, admitted: 0, in_memory: 0, put_off: 0 }
    }

    pub fn is_unconfirmed(&self) -> bool {
        matches!(self.stage, Stage::Unconfirmed)
    }

    /// The slice that was asked about, once.
    pub fn take_asked(&mut self) -> Option<Slice> {
        match std::mem::replace(&mut self.stage, Stage::Ready) {
            Stage::Asking(slice) => Some(slice),
            stage => {
                self.stage = stage;
                None
            }
        }
    }
}

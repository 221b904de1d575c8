//! What the producer was promised and what the receivers saw: the truth that the run is measured by. Knows nothing of
//! how Herald works.

use std::collections::BTreeMap;

use bytes::Bytes;
use herald::{
    facts::id::{DeliveryId, EntryId},
    store::{
        model::Model,
        protocol::{GROUP, Start},
    },
};

#[derive(Debug, Clone)]
pub struct Owed {
    /// The event's number. Its entry's id may belong to another event after Redis forgot something.
    pub event: u64,
    pub id: DeliveryId,
    /// When it was accepted, by the clock of the run.
    pub at: u64,
    pub endpoint: usize,
    pub intent: usize,
    /// The receiver took it.
    pub delivered: bool,
    /// … and the owner heard of it.
    pub answered: bool,
    /// It may be nowhere: its endpoint took nothing for a while, Redis forgot it, or somebody threw it away.
    pub may_vanish: bool,
    /// Redis forgot it: an owner that has not noticed yet may still send it, and the delivery keeps its place in the
    /// order.
    pub is_forgotten: bool,
    /// Later ones need not wait for it: it was a dead letter once, or a stranger took it.
    pub may_be_overtaken: bool,
    /// A producer trimmed its entry before it was settled: only an attempt that is still in flight is left of it, and
    /// nothing waits for that.
    pub was_trimmed: bool,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub owed: Vec<Owed>,
    /// If several got the same id, the last of them.
    by_id: BTreeMap<(usize, EntryId), usize>,
    by_event: BTreeMap<(usize, u64), usize>,
    /// By endpoint and intent: what may still be undelivered.
    open: BTreeMap<(usize, usize), Vec<usize>>,
}

impl Ledger {
    pub fn promise(&mut self, owed: Owed) {
        self.by_id.insert((owed.endpoint, owed.id.entry), self.owed.len());
        self.by_event.insert((owed.endpoint, owed.event), self.owed.len());
        self.open.entry((owed.endpoint, owed.intent)).or_default().push(self.owed.len());
        self.owed.push(owed);
    }

    pub fn get(&mut self, endpoint: usize, entry: EntryId) -> Option<&mut Owed> {
        self.by_id.get(&(endpoint, entry)).map(|at| &mut self.owed[*at])
    }

    pub fn of_event(&mut self, endpoint: usize, event: u64) -> Option<&mut Owed> {
        self.by_event.get(&(endpoint, event)).map(|at| &mut self.owed[*at])
    }

    /// An earlier delivery of the chain that should have ended before this one may go.
    pub fn overtaken(&self, endpoint: usize, intent: usize, entry: EntryId, model: &Model) -> Option<&Owed> {
        let open = self.open.get(&(endpoint, intent))?;
        open.iter().map(|at| &self.owed[*at]).find(|owed| {
            let waits = !owed.delivered && !owed.may_vanish && !owed.may_be_overtaken;
            owed.id.entry < entry && waits && !model.dead.contains_key(&owed.id)
        })
    }

    /// Something that was promised and is nowhere.
    pub fn lost(&mut self, model: &Model) -> Option<&Owed> {
        // What was delivered, or may vanish, stays so.
        let owed = &self.owed;
        self.open.values_mut().for_each(|open| open.retain(|at| !owed[*at].delivered && !owed[*at].may_vanish));
        self.open.values().flatten().map(|at| &self.owed[*at]).find(|owed| !is_somewhere(model, &owed.id))
    }
}

fn is_somewhere(model: &Model, id: &DeliveryId) -> bool {
    if model.records.contains_key(id) || model.dead.contains_key(id) {
        return true;
    }
    model.stream.entries.contains_key(&id.entry) && is_unfinished(model, &id.entry)
}

/// Whether this entry of the stream is not read, or not settled.
fn is_unfinished(model: &Model, entry: &EntryId) -> bool {
    match model.stream.groups.get(GROUP) {
        Some(group) => *entry > group.last_delivered || group.pending.contains_key(entry),
        None => {
            let cursor = model.cursor.unwrap_or(EntryId::ZERO);
            *entry > cursor || model.is_another_stream(cursor, Start::Oldest)
        }
    }
}

/// An entry that is not an event is in the quarantine, or still to be read or settled; so is one that was put back from
/// there.
pub fn is_quarantined_or_to_be(model: &Model, body: &Bytes) -> bool {
    let has_it = |fields: &[(Bytes, Bytes)]| fields.iter().any(|(_, value)| value == body);
    let is_in_stream = |id: &EntryId| model.stream.entries.get(id).is_some_and(|fields| has_it(fields));
    model.quarantine.iter().any(|(_, found)| found.body == *body)
        || model.stream.entries.keys().any(|id| is_in_stream(id) && is_unfinished(model, id))
}

/// Whether everything is gone that Redis would still have to do something with.
pub fn is_settled(model: &Model) -> bool {
    let group = model.stream.groups.get(GROUP);
    model.records.is_empty()
        && model.inbox.requests.is_empty()
        && group.is_some_and(|group| {
            group.pending.is_empty() && !model.stream.entries.keys().any(|id| *id > group.last_delivered)
        })
}

//! What the calls of a router mean: entries of a stream that is split, and what its parts take of them.

use super::{DeliveryId, EntryId, GROUP, Item, Lost, MAX_READ_BYTES, Mode, Model, Place, Term};
use crate::store::moving::{Died, Exported, Pending, Took, Unended};
use crate::store::routing::{
    Appended, Batch, Fields, Gating, MAX_ENTRY_BYTES, MAX_ENTRY_FIELDS, MAX_ROUTED, MAX_VALUE_BYTES, ModeSet, OfStream,
    Page, Passed, Route, Trimming,
};

impl Model {
    /// Up to `most` entries behind this id, or a mebibyte of them, and what there is of the stream, if that is asked for; the mode
    /// of a stream that is not routed.
    pub fn route_read(&self, after: EntryId, most: usize, of_stream: bool) -> Result<Page, String> {
        let Mode::Routed { .. } = self.mode else { return Err(self.mode.to_text().unwrap_or_default()) };
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let after = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        for (id, fields) in self.stream.entries.range(after).take(most.clamp(1, MAX_ROUTED)) {
            let fields = carried(fields);
            entries.push(Passed::new(*id, &fields, self.places.get(id)));
            bytes += if is_event_alone(&fields) { fields[0].1.len() } else { bytes_of(&fields) };
            if bytes >= MAX_READ_BYTES {
                break;
            }
        }
        let has_more = entries.len() >= most.clamp(1, MAX_ROUTED) || bytes >= MAX_READ_BYTES;
        let oldest = self.stream.entries.first_key_value().map(|(id, _)| *id);
        let of_stream = of_stream.then_some(OfStream { last: self.stream.last_generated, oldest });
        Ok(Page { now_ms: self.now_ms, has_more, of_stream, cursor: self.cursor, entries })
    }

    /// Takes a batch of the stream above, if everything before it was taken. An id stays as it is where it is larger than the last;
    /// otherwise the entry gets the one behind that: ids only grow.
    pub fn append(&mut self, route: &Route, batch: &Batch) -> Appended {
        self.take_batch(&route.token, Some(route.barrier), batch)
    }

    /// Takes pending entries of the stream above, which is still handing over: the part stays closed.
    pub fn take_pending(&mut self, token: &str, batch: &Batch) -> Appended {
        self.take_batch(token, None, batch)
    }

    fn take_batch(&mut self, token: &str, barrier: Option<EntryId>, batch: &Batch) -> Appended {
        if let Some(token) = self.gate.clone().filter(|gate| gate != token) {
            return Appended::Gated { token };
        }
        let at = self.routed.unwrap_or_default().max(barrier.unwrap_or_default());
        match barrier {
            Some(_) => self.gate = None,
            None if self.gate.is_none() => return Appended::Open,
            None => {}
        }
        if at != batch.after {
            return Appended::At(at);
        }
        for entry in &batch.entries {
            let last = self.stream.last_generated;
            let id = if entry.id > last { entry.id } else { after(last) };
            self.add_entry(id, entry.fields());
            if let Some(place) = entry.place() {
                self.places.insert(id, place);
            }
        }
        self.routed = Some(batch.up_to);
        let last = (!batch.entries.is_empty()).then_some(self.stream.last_generated);
        Appended::Done { count: batch.entries.len() as u64, last }
    }

    /// All parts have what is up to `safe`. The last entry that could go stays.
    pub fn route_trim(
        &mut self,
        term: &Term,
        trim: &Trimming,
        retain_ms: u64,
        ignores: &[String],
    ) -> Result<u64, Lost> {
        self.fence(term)?;
        let Trimming { safe, highest } = *trim;
        self.cursor = self.cursor.max(Some(safe));
        if !self.stream.exists {
            return Ok(0);
        }
        self.stream.last_generated = self.stream.last_generated.max(highest);
        let counted = self.stream.groups.iter().filter(|(name, _)| *name != GROUP && !ignores.contains(name));
        let passed = counted.map(|(_, group)| match group.pending.keys().next() {
            Some(lowest) => lowest.before(),
            None => group.last_delivered,
        });
        let passed = passed.chain([safe]).min().unwrap_or(safe);
        let old = match retain_ms {
            0 => Some(passed),
            _ => self.old_after(passed, retain_ms),
        };
        let Some(old) = old else { return Ok(0) };
        let before = self.stream.entries.len();
        self.stream.entries.retain(|id, _| *id >= old);
        self.places.retain(|id, _| *id >= old);
        Ok((before - self.stream.entries.len()) as u64)
    }

    /// What is unfinished here, or the first of it: pending entries, then records chain by chain, then dead letters. In which order
    /// chains come is open.
    pub fn export(&mut self, term: &Term, most: usize) -> Result<Exported, Lost> {
        self.fence(term)?;
        let mut exported = Exported { now_ms: self.now_ms, barrier: self.cursor, ..Exported::default() };
        let (mut left, mut bytes) = (most, 0);
        let mut takes = |text: usize| {
            let takes = left > 0 && bytes < MAX_READ_BYTES;
            (left, bytes) = (left.saturating_sub(1), bytes + text);
            takes
        };
        if let Some(group) = self.stream.groups.get(GROUP) {
            exported.barrier = Some(group.last_delivered);
            for id in group.pending.keys() {
                let fields = self.stream.entries.get(id);
                let entry = fields.map(|fields| Passed::new(*id, &carried(fields), self.places.get(id)));
                if !takes(entry.as_ref().map_or(0, Passed::bytes)) {
                    return Ok(exported);
                }
                exported.entries.push(Pending { id: *id, entry });
            }
        }
        for (endpoint, chains) in &self.endpoints {
            if let Some(at_ms) = self.unreadable.get(endpoint).filter(|_| chains.unfinished > 0) {
                exported.unreadable.insert(endpoint.clone(), *at_ms);
            }
            for (field, head) in &chains.heads {
                let held = chains.held.iter().filter(|(intent, _)| intent.as_str() == field).map(|(_, entry)| entry);
                for entry in std::iter::once(head).chain(held) {
                    let id = DeliveryId { entry: *entry, endpoint: endpoint.clone() };
                    let Some(record) = self.records.get(&id).cloned() else { continue };
                    let place = match self.due.get(&id) {
                        _ if entry != head => Place::Held,
                        Some(due_ms) => Place::DueIn(due_ms.saturating_sub(self.now_ms)),
                        None if chains.backlog.contains(entry) => Place::Backlog,
                        None => Place::DueIn(0),
                    };
                    if !takes(record.len()) {
                        return Ok(exported);
                    }
                    exported.records.push(Unended { id, head_field: field.clone(), place, record });
                }
            }
        }
        let mut dead: Vec<_> = self.dead.iter().collect();
        dead.sort_by_key(|(id, (at_ms, _))| (*at_ms, id.to_string()));
        for (id, (at_ms, letter)) in dead {
            if !takes(letter.len()) {
                return Ok(exported);
            }
            let facts = self.dead_facts.get(id).map(|(_, facts)| facts.clone());
            exported.letters.push(Died { id: id.clone(), at_ms: *at_ms, facts, letter: Some(letter.clone()) });
        }
        Ok(exported)
    }

    /// Takes unfinished deliveries and dead letters of the stream above, as long as this split is to fill the part.
    pub fn adopt(&mut self, token: &str, items: &[Item]) -> Took {
        match &self.gate {
            Some(gate) if gate == token => {
                self.apply_all(items);
                Took::All
            }
            _ => Took::Nothing,
        }
    }

    pub fn set_mode(&mut self, term: &Term, from: &Mode, to: &Mode) -> ModeSet {
        match self.fence(term) {
            Err(Lost) => ModeSet::Lost,
            Ok(()) if self.mode != *from && self.mode != *to => ModeSet::Is(self.mode.to_text().unwrap_or_default()),
            Ok(()) => {
                if self.mode != *to && matches!(to, Mode::Routed { .. }) {
                    self.cursor = None;
                }
                self.mode = to.clone();
                ModeSet::Done
            }
        }
    }

    fn was_given_something(&self) -> bool {
        self.routed.is_some() || !self.records.is_empty() || !self.dead.is_empty()
    }

    /// Opens a part that a split has closed which was cancelled.
    pub fn open_part(&mut self, token: &str) {
        self.gate.take_if(|gate| gate == token);
    }

    /// Closes a part until a split is over. One that was cancelled may have left it closed.
    pub fn close(&mut self, token: &str) -> Gating {
        self.lease.take_if(|lease| lease.until_ms <= self.now_ms);
        match &self.gate {
            Some(gate) if gate != token && self.was_given_something() => Gating::Gated { token: gate.clone() },
            None if self.routed.is_some() || self.lease.is_some() || self.registry.is_some() => Gating::Used,
            _ => {
                self.gate = Some(token.to_owned());
                Gating::Done
            }
        }
    }
}

fn after(id: EntryId) -> EntryId {
    match id.seq.checked_add(1) {
        Some(seq) => EntryId { seq, ..id },
        None => EntryId { ms: id.ms + 1, seq: 0 },
    }
}

fn bytes_of(fields: &Fields) -> usize {
    fields.iter().map(|(name, value)| name.len() + value.len()).sum()
}

fn is_event_alone(fields: &Fields) -> bool {
    matches!(&fields[..], [(name, event)] if name == "event" && event.len() <= MAX_ENTRY_BYTES)
}

/// All of an entry, or what Herald reads of it where one call could not carry that.
fn carried(fields: &Fields) -> Fields {
    if is_event_alone(fields) || (bytes_of(fields) <= MAX_ENTRY_BYTES && fields.len() <= MAX_ENTRY_FIELDS) {
        return fields.clone();
    }
    let mut kept = Fields::new();
    for (name, value) in fields {
        let is_read = ["event", "traceparent", "account-sequence"].iter().any(|read| name == read);
        if is_read && kept.iter().all(|(known, _)| known != name) {
            kept.push((name.clone(), value.slice(..value.len().min(MAX_VALUE_BYTES))));
        }
    }
    if kept.is_empty() {
        let cut = |text: &bytes::Bytes| text.slice(..text.len().min(MAX_VALUE_BYTES));
        kept.extend(fields.first().map(|(name, value)| (cut(name), cut(value))));
    }
    kept
}

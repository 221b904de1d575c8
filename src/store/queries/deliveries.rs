//! Unfinished deliveries and the chains they stand in: by id, by endpoint, by intent.

use std::collections::BTreeSet;

use super::{CHUNK, Letter, MAX_PAGE, Queries, STRIDE};
use crate::{
    facts::{
        delivery::{Chain, Delivery},
        id::{DeliveryId, EndpointId, EntryId, IntentId},
    },
    store::{error::StoreError, protocol},
};

/// Where a record stands, as people want to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhereUnfinished {
    /// Its next attempt is at this time, ms since 1970 by Redis' clock.
    Due { at_ms: u64 },
    /// The owner has had it in memory since this time, ms since 1970 by Redis' clock.
    Claimed { since_ms: u64 },
    /// In its endpoint's backlog.
    Parked,
    /// Behind this entry, the head of its chain.
    Held { head: EntryId },
    /// There is a record and nothing else: it moved while we looked, or Redis has lost a part.
    Nowhere,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Unfinished {
    pub id: DeliveryId,
    pub place: WhereUnfinished,
    /// Or why its record cannot be read.
    pub delivery: Result<Delivery, String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Whereabouts {
    Unfinished(Box<Unfinished>),
    Dead(Box<Letter>),
    /// Delivered, in flight without a record, not read yet, or never owed.
    NoRecord,
}

/// What a walk over unfinished deliveries found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Walk {
    /// In stream order.
    pub found: Vec<Unfinished>,
    /// Records looked at.
    pub looked: usize,
    /// There was no more to look at.
    pub is_complete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub unfinished: u64,
    pub chains: u64,
    pub held: u64,
    pub parked: u64,
    pub dead: u64,
}

/// A chain by its head.
#[derive(Debug, Clone, PartialEq)]
pub struct ChainHead {
    pub head: Unfinished,
    /// Deliveries behind it.
    pub held: u64,
}

impl Queries {
    /// One delivery, wherever its record stands.
    pub async fn find(&mut self, id: &DeliveryId) -> Result<Whereabouts, StoreError> {
        if let Some(found) = self.unfinished(std::slice::from_ref(id)).await?.pop() {
            return Ok(Whereabouts::Unfinished(Box::new(found)));
        }
        let letter = self.dead_letter(id).await?;
        Ok(letter.map_or(Whereabouts::NoRecord, |letter| Whereabouts::Dead(Box::new(letter))))
    }

    /// Whether each of these has a record or a letter.
    pub(super) async fn are_kept(&mut self, ids: &[DeliveryId]) -> Result<Vec<bool>, StoreError> {
        let mut pipeline = redis::pipe();
        for id in ids {
            pipeline.cmd("EXISTS").arg(self.keys.delivery(id)).arg(self.keys.dead_letter(id));
        }
        let found: Vec<u64> = self.connection.pipeline("look where deliveries are kept", &pipeline).await?;
        Ok(found.into_iter().map(|found| found > 0).collect())
    }

    pub async fn totals(&mut self, endpoint: &EndpointId) -> Result<Totals, StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HGET").arg(self.keys.unfinished()).arg(endpoint.as_str());
        pipeline.cmd("HLEN").arg(self.keys.heads(endpoint));
        pipeline.cmd("ZCARD").arg(self.keys.held(endpoint));
        pipeline.cmd("ZCARD").arg(self.keys.backlog(endpoint));
        pipeline.cmd("ZCARD").arg(self.keys.dead_of(endpoint));
        let (unfinished, chains, held, parked, dead): (Option<u64>, u64, u64, u64, u64) =
            self.connection.pipeline("count what an endpoint is owed", &pipeline).await?;
        Ok(Totals { unfinished: unfinished.unwrap_or(0), chains, held, parked, dead })
    }

    /// How many deliveries are due, now or later, and how many the owner has taken.
    pub async fn due_and_claimed(&mut self) -> Result<(u64, u64), StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("ZCARD").arg(self.keys.due()).cmd("ZCARD").arg(self.keys.claimed());
        self.connection.pipeline("count what is due", &pipeline).await
    }

    /// The endpoints that have unfinished records, with their numbers, most first. Looks at up to `max` of them.
    pub async fn busy_endpoints(&mut self, max: usize) -> Result<Vec<(EndpointId, u64)>, StoreError> {
        let (fields, _) = self.hash_page(&self.keys.unfinished(), max).await?;
        let counted = fields.into_iter().filter_map(|(endpoint, count)| {
            let endpoint = EndpointId::new(&endpoint).ok()?;
            Some((endpoint, count.parse().ok()?))
        });
        let mut busy: Vec<(EndpointId, u64)> = counted.collect();
        busy.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        Ok(busy)
    }

    /// Roughly what the records of these endpoints take in Redis, the heaviest first.
    pub async fn record_weights(&mut self, busy: &[(EndpointId, u64)]) -> Result<Vec<(EndpointId, u64)>, StoreError> {
        let mut weights = Vec::with_capacity(busy.len());
        for part in busy.chunks(MAX_PAGE) {
            let mut command = redis::cmd("HMGET");
            command.arg(self.keys.bytes());
            for (endpoint, _) in part {
                command.arg(endpoint.as_str());
            }
            let bytes: Vec<Option<u64>> = self.connection.query("weigh the records", &command).await?;
            let weigh = |((endpoint, records), bytes): (&(EndpointId, u64), Option<u64>)| {
                let unfinished = protocol::Unfinished { records: *records, parked: 0, bytes: bytes.unwrap_or(0) };
                (endpoint.clone(), unfinished.weight())
            };
            weights.extend(part.iter().zip(bytes).map(weigh));
        }
        weights.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        Ok(weights)
    }

    /// The ids of what is unfinished at one endpoint, or at all of them, after a look at about `max` of them; and whether these are
    /// all.
    pub async fn unfinished_ids(
        &mut self,
        endpoint: Option<&EndpointId>,
        max: usize,
    ) -> Result<(Vec<DeliveryId>, bool), StoreError> {
        let endpoints = match endpoint {
            Some(endpoint) => vec![endpoint.clone()],
            None => self.busy_endpoints(max).await?.into_iter().map(|(endpoint, _)| endpoint).collect(),
        };
        let (mut found, mut left) = (Vec::new(), max);
        for endpoint in endpoints {
            if left == 0 {
                return Ok((found, false));
            }
            let (ids, is_complete) = self.ids_of(&endpoint, left).await?;
            left = left.saturating_sub(ids.len());
            found.extend(ids);
            if !is_complete {
                return Ok((found, false));
            }
        }
        Ok((found, true))
    }

    /// The unfinished deliveries that match, at all endpoints; for what has no index. Looks at up to `max_look`
    /// records.
    pub async fn unfinished_where(
        &mut self,
        max_look: usize,
        fits: impl Fn(&Delivery) -> bool,
    ) -> Result<Walk, StoreError> {
        let mut walk = Walk { is_complete: true, ..Walk::default() };
        for (endpoint, _) in self.busy_endpoints(max_look).await? {
            let (ids, is_complete) = self.ids_of(&endpoint, max_look - walk.looked).await?;
            walk.looked += ids.len();
            walk.is_complete &= is_complete;
            let located = self.unfinished(&ids).await?;
            walk.found.extend(located.into_iter().filter(|one| one.delivery.as_ref().is_ok_and(&fits)));
            if walk.looked >= max_look {
                walk.is_complete = false;
                break;
            }
        }
        walk.found.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(walk)
    }

    /// The ordered chain of one intent at every endpoint that has anything unfinished; the heads and up to `max` behind
    /// each of them. Deliveries without order are not chains of their intent: [`Self::unfinished_where`] finds them.
    pub async fn unfinished_of_intent(&mut self, intent: &IntentId, max: usize) -> Result<Vec<Unfinished>, StoreError> {
        let mut found = Vec::new();
        for (endpoint, _) in self.busy_endpoints(MAX_ENDPOINTS).await? {
            found.extend(self.chain(&endpoint, intent, max).await?);
        }
        found.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(found)
    }

    /// One chain, its head first; empty where the intent has nothing unfinished there.
    pub async fn chain(
        &mut self,
        endpoint: &EndpointId,
        intent: &IntentId,
        max: usize,
    ) -> Result<Vec<Unfinished>, StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HGET").arg(self.keys.heads(endpoint)).arg(intent.as_str());
        let [first, end] = held_range(intent);
        pipeline.cmd("ZRANGEBYLEX").arg(self.keys.held(endpoint)).arg(first).arg(end).arg("LIMIT").arg(0).arg(max);
        let (head, held): (Option<String>, Vec<String>) =
            self.connection.pipeline("look at a chain", &pipeline).await?;
        let Some(head) = head.and_then(|entry| entry.parse().ok()) else { return Ok(Vec::new()) };
        let entries = std::iter::once(head).chain(held.iter().filter_map(|member| held_entry(member)));
        let ids: Vec<_> = entries.map(|entry| DeliveryId { entry, endpoint: endpoint.clone() }).collect();
        self.unfinished(&ids).await
    }

    /// The chains of an endpoint by the age of their head, after a look at up to `max` of them; and whether these are
    /// all. A delivery without order is a chain of its own.
    pub async fn chains(&mut self, endpoint: &EndpointId, max: usize) -> Result<(Vec<ChainHead>, bool), StoreError> {
        let (heads, is_complete) = self.hash_page(&self.keys.heads(endpoint), max).await?;
        Ok((self.chains_of(endpoint, &heads).await?, is_complete))
    }

    /// About `max` chains from a place of Redis' own walk on, which begins at 0, by the age of their head; and the place that follows, 0
    /// at the end. Who walks on sees each chain that is there throughout, now and then one twice.
    pub async fn chains_from(
        &mut self,
        endpoint: &EndpointId,
        from: u64,
        max: usize,
    ) -> Result<(Vec<ChainHead>, u64), StoreError> {
        let (mut heads, mut cursor) = (Vec::new(), from);
        while heads.len() < max {
            let mut command = redis::cmd("HSCAN");
            command.arg(self.keys.heads(endpoint)).arg(cursor).arg("COUNT").arg(STRIDE);
            let (next, page): (u64, Vec<(String, String)>) =
                self.connection.query("page through the chains", &command).await?;
            heads.extend(page);
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        heads.sort();
        heads.dedup_by(|one, other| one.0 == other.0);
        Ok((self.chains_of(endpoint, &heads).await?, cursor))
    }

    async fn chains_of(
        &mut self,
        endpoint: &EndpointId,
        heads: &[(String, String)],
    ) -> Result<Vec<ChainHead>, StoreError> {
        let mut entries: Vec<EntryId> = heads.iter().filter_map(|(_, entry)| entry.parse().ok()).collect();
        entries.sort();
        let ids: Vec<_> = entries.into_iter().map(|entry| DeliveryId { entry, endpoint: endpoint.clone() }).collect();
        let found = self.unfinished(&ids).await?;
        let mut chains: Vec<ChainHead> = found.into_iter().map(|head| ChainHead { head, held: 0 }).collect();
        self.count_held(endpoint, &mut chains).await?;
        Ok(chains)
    }

    async fn count_held(&mut self, endpoint: &EndpointId, chains: &mut [ChainHead]) -> Result<(), StoreError> {
        let key = self.keys.held(endpoint);
        for part in chains.chunks_mut(STRIDE) {
            let mut pipeline = redis::pipe();
            let mut counted = Vec::new();
            for chain in part {
                if let Ok(Chain::Intent(intent)) = chain.head.delivery.as_ref().map(Delivery::chain) {
                    let [first, end] = held_range(&intent);
                    pipeline.cmd("ZLEXCOUNT").arg(&key).arg(first).arg(end);
                    counted.push(chain);
                }
            }
            let counts: Vec<u64> = self.connection.pipeline("count what is held", &pipeline).await?;
            counted.into_iter().zip(counts).for_each(|(chain, count)| chain.held = count);
        }
        Ok(())
    }

    /// Where these stand; those without a record are left out.
    pub async fn unfinished(&mut self, ids: &[DeliveryId]) -> Result<Vec<Unfinished>, StoreError> {
        let mut located = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(CHUNK) {
            let keys: Vec<String> = chunk.iter().map(|id| self.keys.delivery(id)).collect();
            let records = self.values("read deliveries", &keys).await?;
            let there: Vec<Unfinished> = chunk
                .iter()
                .zip(records)
                .filter_map(|(id, record)| {
                    let delivery = Delivery::from_record(&record?).map_err(|error| error.to_string());
                    Some(Unfinished { id: id.clone(), place: WhereUnfinished::Nowhere, delivery })
                })
                .collect();
            located.extend(self.place(there).await?);
        }
        Ok(located)
    }

    async fn place(&mut self, mut found: Vec<Unfinished>) -> Result<Vec<Unfinished>, StoreError> {
        if found.is_empty() {
            return Ok(found);
        }
        let mut pipeline = redis::pipe();
        for one in &found {
            let head = one.delivery.as_ref().map_or_else(|_| String::new(), |delivery| delivery.chain().head_field());
            pipeline.cmd("ZSCORE").arg(self.keys.due()).arg(one.id.to_string());
            pipeline.cmd("ZSCORE").arg(self.keys.claimed()).arg(one.id.to_string());
            pipeline.cmd("ZSCORE").arg(self.keys.backlog(&one.id.endpoint)).arg(one.id.entry.padded());
            pipeline.cmd("HGET").arg(self.keys.heads(&one.id.endpoint)).arg(head);
        }
        let answers: Vec<Option<String>> = self.connection.pipeline("look where deliveries stand", &pipeline).await?;
        for (one, answer) in found.iter_mut().zip(answers.chunks(4)) {
            let time = |at: usize| answer[at].as_ref().and_then(|score| score.parse::<f64>().ok()).map(|ms| ms as u64);
            let head = answer[3].as_ref().and_then(|entry| entry.parse::<EntryId>().ok());
            one.place = match (time(0), time(1), &answer[2], head) {
                (Some(at_ms), ..) => WhereUnfinished::Due { at_ms },
                (_, Some(since_ms), ..) => WhereUnfinished::Claimed { since_ms },
                (_, _, Some(_), _) => WhereUnfinished::Parked,
                (_, _, None, Some(head)) if head != one.id.entry => WhereUnfinished::Held { head },
                _ => WhereUnfinished::Nowhere,
            };
        }
        Ok(found)
    }

    /// Ids of the unfinished deliveries of an endpoint, up to `max`, in stream order; and whether these are all. Heads come before
    /// held ones if there is no room for both.
    async fn ids_of(&mut self, endpoint: &EndpointId, max: usize) -> Result<(Vec<DeliveryId>, bool), StoreError> {
        // First: what is released meanwhile is a head then, and so in one of the two.
        let (held, all_held) = self.held_page(endpoint, max).await?;
        let (heads, all_heads) = self.hash_page(&self.keys.heads(endpoint), max).await?;
        let mut entries: BTreeSet<EntryId> = heads.iter().filter_map(|(_, entry)| entry.parse().ok()).collect();
        let mut is_complete = all_held && all_heads;
        for entry in held {
            if entries.len() >= max && !entries.contains(&entry) {
                is_complete = false;
                break;
            }
            entries.insert(entry);
        }
        let ids = entries.into_iter().map(|entry| DeliveryId { entry, endpoint: endpoint.clone() });
        Ok((ids.collect(), is_complete))
    }

    /// Up to `max` that are held at an endpoint; and whether these are all. What comes and goes meanwhile hides no others.
    async fn held_page(&mut self, endpoint: &EndpointId, max: usize) -> Result<(Vec<EntryId>, bool), StoreError> {
        let (mut found, mut from) = (Vec::new(), "-".to_owned());
        while found.len() < max {
            let stride = STRIDE.min(max - found.len());
            let mut command = redis::cmd("ZRANGEBYLEX");
            command.arg(self.keys.held(endpoint)).arg(&from).arg("+").arg("LIMIT").arg(0).arg(stride);
            let held: Vec<String> = self.connection.query("list what is held", &command).await?;
            found.extend(held.iter().filter_map(|member| held_entry(member)));
            match held.last() {
                Some(last) if held.len() == stride => from = format!("({last}"),
                _ => return Ok((found, true)),
            }
        }
        Ok((found, false))
    }

    /// Up to about `max` fields of a hash, in no order; and whether these are all.
    pub(super) async fn hash_page(
        &mut self,
        key: &str,
        max: usize,
    ) -> Result<(Vec<(String, String)>, bool), StoreError> {
        let (mut fields, mut cursor) = (Vec::new(), 0u64);
        while fields.len() < max {
            let mut command = redis::cmd("HSCAN");
            command.arg(key).arg(cursor).arg("COUNT").arg(STRIDE);
            let (next, page): (u64, Vec<(String, String)>) =
                self.connection.query("page through a hash", &command).await?;
            fields.extend(page);
            cursor = next;
            if cursor == 0 {
                // A field that moved within the hash meanwhile may come twice.
                fields.sort();
                fields.dedup_by(|one, other| one.0 == other.0);
                let is_complete = fields.len() <= max;
                fields.truncate(max);
                return Ok((fields, is_complete));
            }
        }
        fields.truncate(max);
        Ok((fields, false))
    }
}

/// The most endpoints that one question about an intent looks at: each costs two cheap commands.
const MAX_ENDPOINTS: usize = 1_000;

/// Where an intent's members of `held:EP` begin and end: a blank ends its name, and the next character after it is `!`.
fn held_range(intent: &IntentId) -> [String; 2] {
    [format!("[{intent} "), format!("({intent}!")]
}

/// The entry within a member `INTENT PADDEDENTRY` of `held:EP`.
fn held_entry(member: &str) -> Option<EntryId> {
    let (_, padded) = member.split_once(' ')?;
    padded.parse().ok()
}

impl Unfinished {
    /// Whether the delivery is a chain of its own.
    pub fn is_single(&self) -> bool {
        self.delivery.as_ref().is_ok_and(|delivery| matches!(delivery.chain(), Chain::Single(..)))
    }
}

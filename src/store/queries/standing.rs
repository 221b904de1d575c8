//! Where a partition as a whole stands: its lease, its group, what is pending, the quarantine, the oldest unfinished.

use std::collections::HashMap;

use bytes::Bytes;
use redis::{FromRedisValue, Value};

use super::{MAX_PAGE, Queries};
use crate::{
    facts::{
        id::{DeliveryId, EndpointId, EntryId},
        partition::Mode,
    },
    store::{
        error::StoreError,
        partitions,
        protocol::{GROUP, Term},
        watch::numbers,
    },
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseLook {
    pub owner: String,
    /// `None`: it never ends by itself.
    pub left_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerLook {
    pub name: String,
    pub pending: u64,
    pub idle_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLook {
    pub name: String,
    pub pending: u64,
    pub last_delivered: EntryId,
    pub read: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub entry: EntryId,
    pub consumer: String,
    /// Milliseconds since it was last handed out.
    pub idle_ms: u64,
    pub handed_out: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Its id in the stream that it came from, by which it is named.
    pub entry: EntryId,
    pub body: Bytes,
    /// Only a part of it was kept.
    pub cut: bool,
    pub error: String,
    pub at_ms: u64,
}

/// Where an entry of the stream stands that has no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryStanding {
    /// Read and not settled; last handed out this long ago.
    InFlight { idle_ms: u64 },
    /// Not read yet.
    Waiting,
    /// Read and settled, and still in the stream.
    Settled,
    /// Not in the stream: trimmed after it was settled, or never there.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oldest {
    pub endpoint: EndpointId,
    pub unfinished: u64,
    pub parked: u64,
    pub oldest: Option<DeliveryId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLook {
    pub length: u64,
    pub added: u64,
    pub last_generated: EntryId,
}

/// Settings of the server that Herald's promises depend on and `INFO` does not tell. `None`: not told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RedisSettings {
    pub appendfsync: Option<String>,
    /// `proto-max-bulk-len`: the longest value that anybody may write.
    pub longest_value_bytes: Option<u64>,
}

impl Queries {
    /// `None`: nobody owns the partition.
    pub async fn lease(&mut self) -> Result<Option<LeaseLook>, StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("GET").arg(self.keys.lease());
        pipeline.cmd("PTTL").arg(self.keys.lease());
        let (value, left): (Option<String>, i64) = self.connection.pipeline("look at the lease", &pipeline).await?;
        let left_ms = u64::try_from(left).ok();
        Ok(value.map(|value| LeaseLook { owner: Term::owner_of(&value).to_owned(), left_ms }))
    }

    /// The registry that the partition is bound to.
    pub async fn bound_registry(&mut self) -> Result<Option<String>, StoreError> {
        let mut command = redis::cmd("GET");
        command.arg(self.keys.registry_id());
        self.connection.query("look at the bound registry", &command).await
    }

    /// The last step of Redis' clock that an owner noticed: when, by the clock as it was then, and by how many ms.
    pub async fn clock_step(&mut self) -> Result<Option<(u64, i64)>, StoreError> {
        let mut command = redis::cmd("HMGET");
        command.arg(self.keys.stats()).arg("clock-step-at").arg("clock-step-ms");
        let (at_ms, by_ms): (Option<u64>, Option<i64>) =
            self.connection.query("look for a step of the clock", &command).await?;
        Ok(at_ms.zip(by_ms))
    }

    /// Events that payment intents told, and that are missing in their account's feed because somebody else wrote to it.
    pub async fn lost_from_feeds(&mut self) -> Result<u64, StoreError> {
        let mut command = redis::cmd("HGET");
        command.arg(self.keys.intent_counts()).arg("lost-feed");
        let lost: Option<u64> = self.connection.query("look for what feeds have lost", &command).await?;
        Ok(lost.unwrap_or_default())
    }

    /// The stream that events arrive on; `None` where there is none.
    pub async fn stream(&mut self) -> Result<Option<StreamLook>, StoreError> {
        let key = self.keys.stream().to_owned();
        self.stream_info(&key).await
    }

    /// All `None` if the user may not ask: `CONFIG GET` also shows passwords, and a managed Redis lacks it.
    pub async fn settings(&mut self) -> Result<RedisSettings, StoreError> {
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg("appendfsync").arg("proto-max-bulk-len");
        let mut found = match self.connection.query::<HashMap<String, String>>("ask for settings", &command).await {
            Ok(found) => found,
            Err(error @ StoreError::Unavailable { .. }) => return Err(error),
            Err(_) => return Ok(RedisSettings::default()),
        };
        let bulk = found.get("proto-max-bulk-len").and_then(|bytes| bytes.parse().ok());
        Ok(RedisSettings { appendfsync: found.remove("appendfsync"), longest_value_bytes: bulk })
    }

    /// The first entry that nobody has read.
    pub async fn oldest_unread(&mut self, last_delivered: EntryId) -> Result<Option<EntryId>, StoreError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.stream()).arg(format!("({last_delivered}")).arg("+").arg("COUNT").arg(1);
        let found: Vec<(String, Value)> = self.connection.query("look for the oldest unread entry", &command).await?;
        Ok(found.first().and_then(|(id, _)| id.parse().ok()))
    }

    /// How many entries there are behind this one, as far as a page goes; and the first of them.
    pub(super) async fn behind(&mut self, last: EntryId) -> Result<(u64, Option<EntryId>), StoreError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.stream()).arg(format!("({last}")).arg("+").arg("COUNT").arg(MAX_PAGE);
        let found: Vec<(String, Value)> = self.connection.query("count what is not routed yet", &command).await?;
        Ok((found.len() as u64, found.first().and_then(|(id, _)| id.parse().ok())))
    }

    /// What becomes of the stream's entries.
    pub async fn mode(&self) -> Result<Mode, StoreError> {
        partitions::mode(self.connection.clone(), self.keys.stream()).await
    }

    /// Of a part: up to which entry of its stream it has all that is for it.
    pub(super) async fn routed(&mut self) -> Result<Option<EntryId>, StoreError> {
        let mut command = redis::cmd("GET");
        command.arg(self.keys.routed());
        let routed: Option<String> = self.connection.query("ask how far a part is routed", &command).await?;
        Ok(routed.and_then(|routed| routed.parse().ok()))
    }

    /// Roughly what the stream takes in Redis' memory; 0 if there is none.
    pub async fn stream_bytes(&mut self) -> Result<u64, StoreError> {
        let mut command = redis::cmd("MEMORY");
        command.arg("USAGE").arg(self.keys.stream());
        Ok(self.connection.query::<Option<u64>>("weigh the stream", &command).await?.unwrap_or(0))
    }

    /// Every consumer group of the stream; empty where there is no stream.
    pub async fn groups(&mut self) -> Result<Vec<GroupLook>, StoreError> {
        if self.stream().await?.is_none() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("XINFO");
        command.arg("GROUPS").arg(self.keys.stream());
        let groups: Vec<HashMap<String, Value>> = self.connection.query("look at the groups", &command).await?;
        let look = |group: &HashMap<String, Value>| {
            Some(GroupLook {
                name: field(group, "name")?,
                pending: field(group, "pending")?,
                last_delivered: field::<String>(group, "last-delivered-id")?.parse().ok()?,
                read: field(group, "entries-read"),
            })
        };
        Ok(groups.iter().filter_map(look).collect())
    }

    /// The consumers of Herald's group. It must exist.
    pub async fn consumers(&mut self) -> Result<Vec<ConsumerLook>, StoreError> {
        let mut command = redis::cmd("XINFO");
        command.arg("CONSUMERS").arg(self.keys.stream()).arg(GROUP);
        let consumers: Vec<HashMap<String, Value>> =
            self.connection.query("look at the group's consumers", &command).await?;
        let look = |one: &HashMap<String, Value>| {
            Some(ConsumerLook {
                name: field(one, "name")?,
                pending: field(one, "pending")?,
                idle_ms: field(one, "idle")?,
            })
        };
        Ok(consumers.iter().filter_map(look).collect())
    }

    /// Entries that were read but not settled and that nobody has touched for `idle_ms`, the oldest first.
    pub async fn pending(&mut self, idle_ms: u64, max: usize) -> Result<Vec<Pending>, StoreError> {
        self.pending_between("-", "+", idle_ms, max.min(MAX_PAGE)).await
    }

    /// Where an entry stands that has no record.
    pub async fn entry_standing(&mut self, entry: EntryId) -> Result<EntryStanding, StoreError> {
        let groups = self.groups().await?;
        let Some(group) = groups.iter().find(|group| group.name == GROUP) else { return Ok(EntryStanding::Waiting) };
        if entry > group.last_delivered {
            return Ok(if self.is_in_stream(entry).await? { EntryStanding::Waiting } else { EntryStanding::Gone });
        }
        let id = entry.to_string();
        if let Some(pending) = self.pending_between(&id, &id, 0, 1).await?.pop() {
            return Ok(EntryStanding::InFlight { idle_ms: pending.idle_ms });
        }
        Ok(if self.is_in_stream(entry).await? { EntryStanding::Settled } else { EntryStanding::Gone })
    }

    /// Quarantined entries behind a place, the oldest first; and where to go on.
    pub async fn quarantine(
        &mut self,
        after: Option<EntryId>,
        max: usize,
    ) -> Result<(Vec<Quarantined>, Option<EntryId>), StoreError> {
        let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let (found, has_more) = self.quarantine_from(&from, max).await?;
        let next = found.last().filter(|_| has_more).map(|(at, _)| *at);
        Ok((found.into_iter().map(|(_, one)| one).collect(), next))
    }

    /// Quarantined entries from here on, as `XRANGE` takes it, the oldest first, each with its place; and whether there may be more.
    pub(super) async fn quarantine_from(
        &mut self,
        from: &str,
        max: usize,
    ) -> Result<(Vec<(EntryId, Quarantined)>, bool), StoreError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.quarantine()).arg(from).arg("+");
        self.read_quarantine(command, max).await
    }

    /// The last ones up to here, the oldest first; and whether there may be more before them.
    pub(super) async fn quarantine_until(
        &mut self,
        until: &str,
        max: usize,
    ) -> Result<(Vec<(EntryId, Quarantined)>, bool), StoreError> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(self.keys.quarantine()).arg(until).arg("-");
        let (mut found, has_more) = self.read_quarantine(command, max).await?;
        found.reverse();
        Ok((found, has_more))
    }

    async fn read_quarantine(
        &mut self,
        mut command: redis::Cmd,
        max: usize,
    ) -> Result<(Vec<(EntryId, Quarantined)>, bool), StoreError> {
        // Of 64 KiB each at most, so a page stays below 4 MiB.
        let max = max.clamp(1, super::CHUNK);
        command.arg("COUNT").arg(max);
        let found: Vec<(String, HashMap<String, Vec<u8>>)> =
            self.connection.query("list the quarantine", &command).await?;
        let has_more = found.len() == max;
        let read = |(id, fields): (String, _)| Some((id.parse().ok()?, quarantined(fields)?));
        Ok((found.into_iter().filter_map(read).collect(), has_more))
    }

    /// The oldest entry with this id: a stream that was made anew gives out its ids again.
    pub async fn quarantined(&mut self, entry: EntryId) -> Result<Option<Quarantined>, StoreError> {
        let mut command = redis::cmd("HGET");
        command.arg(self.keys.quarantine_index()).arg(entry.to_string());
        let at: Option<String> = self.connection.query("look for the quarantined entry", &command).await?;
        let Some(at) = at.as_deref().and_then(|all| all.split(' ').next()) else { return Ok(None) };
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.quarantine()).arg(at).arg(at);
        let mut found: Vec<(String, HashMap<String, Vec<u8>>)> =
            self.connection.query("read the quarantined entry", &command).await?;
        Ok(found.pop().and_then(|(_, fields)| quarantined(fields)))
    }

    pub async fn count_quarantined(&mut self) -> Result<u64, StoreError> {
        let mut command = redis::cmd("XLEN");
        command.arg(self.keys.quarantine());
        self.connection.query("count the quarantine", &command).await
    }

    /// The oldest unfinished delivery of each of these endpoints. If an endpoint has very many chains, only some of
    /// their heads are looked at, and the oldest of its backlog.
    pub async fn oldest(&mut self, endpoints: &[(EndpointId, u64)]) -> Result<Vec<Oldest>, StoreError> {
        let mut all = Vec::with_capacity(endpoints.len());
        for (endpoint, unfinished) in endpoints {
            let mut pipeline = redis::pipe();
            pipeline.cmd("ZCARD").arg(self.keys.backlog(endpoint));
            pipeline.cmd("ZRANGE").arg(self.keys.backlog(endpoint)).arg(0).arg(0);
            let (parked, first): (u64, Vec<String>) =
                self.connection.pipeline("look for the oldest unfinished", &pipeline).await?;
            let (heads, _) = self.hash_page(&self.keys.heads(endpoint), MAX_PAGE).await?;
            let heads = heads.iter().map(|(_, entry)| entry).chain(&first);
            let oldest = heads.filter_map(|entry| entry.parse::<EntryId>().ok()).min();
            let oldest = oldest.map(|entry| DeliveryId { entry, endpoint: endpoint.clone() });
            all.push(Oldest { endpoint: endpoint.clone(), unfinished: *unfinished, parked, oldest });
        }
        Ok(all)
    }

    /// What the records of some unfinished deliveries take in Redis' memory: how many bytes, and how many records that
    /// is.
    pub async fn sample_record_bytes(&mut self, ids: &[DeliveryId]) -> Result<(u64, u64), StoreError> {
        if ids.is_empty() {
            return Ok((0, 0));
        }
        let mut pipeline = redis::pipe();
        for id in ids.iter().take(super::CHUNK) {
            pipeline.cmd("MEMORY").arg("USAGE").arg(self.keys.delivery(id));
        }
        let sizes: Vec<Option<u64>> = self.connection.pipeline("weigh some records", &pipeline).await?;
        let there: Vec<u64> = sizes.into_iter().flatten().collect();
        Ok((there.iter().sum(), there.len() as u64))
    }

    /// The last entry that was ever added to the stream.
    pub async fn last_entry(&mut self) -> Result<EntryId, StoreError> {
        let key = self.keys.stream().to_owned();
        Ok(self.stream_info(&key).await?.map_or(EntryId::ZERO, |info| info.last_generated))
    }

    pub(super) async fn stream_info(&mut self, key: &str) -> Result<Option<StreamLook>, StoreError> {
        let seen = numbers(&mut self.connection, key).await?;
        Ok(seen.map(|(length, added, last_generated)| StreamLook { length, added, last_generated }))
    }

    async fn is_in_stream(&mut self, entry: EntryId) -> Result<bool, StoreError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.stream()).arg(entry.to_string()).arg(entry.to_string());
        let found: Vec<Value> = self.connection.query("look for an entry", &command).await?;
        Ok(!found.is_empty())
    }

    async fn pending_between(
        &mut self,
        from: &str,
        to: &str,
        idle_ms: u64,
        max: usize,
    ) -> Result<Vec<Pending>, StoreError> {
        let mut command = redis::cmd("XPENDING");
        command.arg(self.keys.stream()).arg(GROUP).arg("IDLE").arg(idle_ms).arg(from).arg(to).arg(max);
        let found: Vec<(String, String, u64, u64)> = self.connection.query("list what is pending", &command).await?;
        let pending = found.into_iter().filter_map(|(entry, consumer, idle_ms, handed_out)| {
            Some(Pending { entry: entry.parse().ok()?, consumer, idle_ms, handed_out })
        });
        Ok(pending.collect())
    }
}

fn quarantined(mut fields: HashMap<String, Vec<u8>>) -> Option<Quarantined> {
    let mut text = |name: &str| fields.remove(name).map(|value| String::from_utf8_lossy(&value).into_owned());
    let (entry, cut, error, at) = (text("entry")?, text("cut")?, text("error")?, text("at"));
    Some(Quarantined {
        entry: entry.parse().ok()?,
        body: fields.remove("body")?.into(),
        cut: cut == "1",
        error,
        at_ms: at.and_then(|at| at.parse().ok()).unwrap_or(0),
    })
}

fn field<T: FromRedisValue>(map: &HashMap<String, Value>, name: &str) -> Option<T> {
    map.get(name).filter(|value| **value != Value::Nil).and_then(|value| T::from_redis_value(value.clone()).ok())
}

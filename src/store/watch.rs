//! Looks at a partition without a term and without changing it: the wake-up of its owner, and numbers for metrics and
//! readiness.

use std::{collections::HashMap, time::Duration};

use redis::{FromRedisValue, Value};

use super::{
    connection::{Connection, Subject},
    error::StoreError,
    keys::PartitionKeys,
    model::GROUP,
    requests::within,
};
use crate::facts::id::EntryId;

/// The server ends a wait by itself; its answer may take this much longer on its way.
const GRACE: Duration = Duration::from_secs(5);

/// Sleeps until there is something to read.
pub struct Wakeup {
    connection: Connection,
    keys: PartitionKeys,
}

impl Wakeup {
    /// A blocking read holds its connection, so it is one of its own, of the purpose `Wakeup`.
    pub fn new(connection: Connection, keys: PartitionKeys) -> Self {
        Self { connection, keys }
    }

    /// Returns when the stream has an entry after `last_read` or the inbox a request after `inbox_after`, at the latest
    /// after `block`. Takes nothing: what is there is found by the next call of the owner.
    pub async fn wait(&mut self, last_read: EntryId, inbox_after: EntryId, block: Duration) -> Result<(), StoreError> {
        let subject = Subject("wait for new entries of", self.keys.stream());
        // To Redis 0 means for ever.
        let block_ms = block.as_millis().max(1) as u64;
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(block_ms).arg("STREAMS");
        command.arg(self.keys.stream()).arg(self.keys.inbox());
        command.arg(last_read.to_string()).arg(inbox_after.to_string());
        within(block + GRACE, subject, self.connection.query::<Value>(subject, &command)).await.map(drop)
    }
}

/// Cheap numbers of one partition. Not of one instant: the owner works on meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gauges {
    /// Entries in the stream now.
    pub length: u64,
    /// Entries ever added to it.
    pub added: u64,
    /// Entries that the group read by Redis' own count, where Redis still knows.
    pub read: Option<u64>,
    /// The group is there.
    pub group: bool,
    /// Read, not yet acknowledged.
    pub pending: u64,
    /// Entries in the stream that nobody has read yet. Without Redis' count an upper bound.
    pub behind: u64,
    /// Entries that were trimmed before they were read, as far as what is behind the group tells. Redis' count is not
    /// made for this, so once reading has gone past a gap the number may stay at a part of it.
    pub trimmed_unread: u64,
    /// Entries that a foreign consumer had taken and that were trimmed before Herald took them over.
    pub foreign_trimmed: u64,
    pub due: u64,
    pub claimed: u64,
    pub dead: u64,
    pub quarantined: u64,
    pub requests: u64,
    /// Records, wherever they stand.
    pub unfinished: u64,
    /// When the first of what is due is due, ms since 1970.
    pub oldest_due_ms: Option<u64>,
    /// Redis' clock, ms since 1970.
    pub now_ms: u64,
    pub used_memory_bytes: u64,
    /// 0 means no limit.
    pub maxmemory_bytes: u64,
}

/// Two pipelines: the second only where there is a stream.
pub async fn gauges(connection: &mut Connection, keys: &PartitionKeys) -> Result<Gauges, StoreError> {
    let subject = Subject("look at the numbers of", keys.stream());
    let mut pipeline = redis::pipe();
    pipeline.cmd("TIME");
    pipeline.cmd("EXISTS").arg(keys.stream());
    pipeline.cmd("ZCARD").arg(keys.due());
    pipeline.cmd("ZCARD").arg(keys.claimed());
    pipeline.cmd("ZCARD").arg(keys.dead());
    pipeline.cmd("XLEN").arg(keys.quarantine());
    pipeline.cmd("XLEN").arg(keys.inbox());
    pipeline.cmd("HVALS").arg(keys.unfinished());
    pipeline.cmd("ZRANGE").arg(keys.due()).arg(0).arg(0).arg("WITHSCORES");
    pipeline.cmd("HGET").arg(keys.stats()).arg("foreign-trimmed");
    pipeline.cmd("INFO").arg("memory");
    type First = ((u64, u64), bool, u64, u64, u64, u64, u64, Vec<u64>, Vec<(String, f64)>, Option<u64>, String);
    let (time, exists, due, claimed, dead, quarantined, requests, unfinished, first_due, foreign, memory): First =
        connection.pipeline(subject, &pipeline).await?;
    let memory_field = |name: &str| {
        let mut lines = memory.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(field, _)| *field == name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
    };
    let mut gauges = Gauges {
        due,
        claimed,
        dead,
        quarantined,
        requests,
        unfinished: unfinished.iter().sum(),
        oldest_due_ms: first_due.first().map(|(_, at)| *at as u64),
        foreign_trimmed: foreign.unwrap_or(0),
        now_ms: time.0 * 1000 + time.1 / 1000,
        used_memory_bytes: memory_field("used_memory"),
        maxmemory_bytes: memory_field("maxmemory"),
        ..Gauges::default()
    };
    // XINFO of a stream that is not there is an error, and would be one of the whole pipeline.
    if exists {
        look_at_stream(connection, keys, &mut gauges).await?;
    }
    Ok(gauges)
}

async fn look_at_stream(
    connection: &mut Connection,
    keys: &PartitionKeys,
    gauges: &mut Gauges,
) -> Result<(), StoreError> {
    let subject = Subject("look at the stream", keys.stream());
    let mut pipeline = redis::pipe();
    pipeline.cmd("XINFO").arg("STREAM").arg(keys.stream());
    pipeline.cmd("XINFO").arg("GROUPS").arg(keys.stream());
    let (stream, groups): (HashMap<String, Value>, Vec<HashMap<String, Value>>) =
        connection.pipeline(subject, &pipeline).await?;
    gauges.length = field(&stream, "length").unwrap_or(0);
    gauges.added = field(&stream, "entries-added").unwrap_or(0);
    let ours = groups.iter().find(|group| field::<String>(group, "name").as_deref() == Some(GROUP));
    gauges.group = ours.is_some();
    let Some(group) = ours else {
        gauges.behind = gauges.length;
        return Ok(());
    };
    gauges.pending = field(group, "pending").unwrap_or(0);
    gauges.read = field(group, "entries-read");
    let delivered = entry(group, "last-delivered-id");
    (gauges.behind, gauges.trimmed_unread) =
        match delivered.zip(entry(&stream, "last-generated-id")).is_some_and(|(read, last)| read >= last) {
            true => (0, 0),
            false => unread(gauges.length, gauges.added, gauges.read),
        };
    Ok(())
}

/// How many entries nobody has read yet, and how many of the stream's are gone before that. `lag` of Redis would say it
/// at once, but is NULL or wrong for ever after a deletion within the stream.
fn unread(length: u64, added: u64, read: Option<u64>) -> (u64, u64) {
    match read {
        Some(read) => {
            let owed = added.saturating_sub(read);
            (owed.min(length), owed.saturating_sub(length))
        }
        None => (length, 0),
    }
}

fn field<T: FromRedisValue>(map: &HashMap<String, Value>, name: &str) -> Option<T> {
    map.get(name).filter(|value| **value != Value::Nil).and_then(|value| T::from_redis_value(value.clone()).ok())
}

fn entry(map: &HashMap<String, Value>, name: &str) -> Option<EntryId> {
    field::<String>(map, name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_trimmed_before_it_was_read_is_counted_and_is_not_behind() {
        // 1 000 added, 200 read, the first 900 trimmed.
        assert_eq!(unread(100, 1000, Some(200)), (100, 700));
        // 1 000 added, 800 read, the first 700 trimmed.
        assert_eq!(unread(300, 1000, Some(800)), (200, 0));
        assert_eq!(unread(300, 1000, None), (300, 0));
    }
}

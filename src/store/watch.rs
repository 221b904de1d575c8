//! Looks at a partition without a term and without changing it: numbers for metrics and readiness.

use std::sync::LazyLock;

use redis::{FromRedisValue, Value};

use super::{
    connection::{Connection, Script, Subject},
    error::StoreError,
    keys::PartitionKeys,
    protocol::GROUP,
    queries::{EventsRead, HistoryRead},
};
use crate::facts::id::EntryId;

/// Cheap numbers of one partition. They are not of one instant, because the owner works on meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gauges {
    /// Entries in the stream now.
    pub length: u64,
    /// Entries ever added to it.
    pub added: u64,
    /// Entries that the group has read by Redis' own count, if Redis still knows.
    pub read: Option<u64>,
    /// Whether the group exists.
    pub group: bool,
    /// Read, not yet acknowledged.
    pub pending: u64,
    /// Entries in the stream that nobody has read yet. An upper bound if Redis' count is missing.
    pub behind: u64,
    /// The first of these.
    pub oldest_unread: Option<EntryId>,
    /// Entries that were trimmed or deleted before they were read, since the group was made: those by which what was added is more
    /// than what was read and what is left to read. While something is unread it may cover only part of them.
    pub trimmed_unread: u64,
    /// Entries that a foreign consumer had taken and that were trimmed before Herald took them over.
    pub foreign_trimmed: u64,
    /// The other consumer group that is furthest behind, and by how many milliseconds, as far as the ids are times.
    pub slowest_foreign: Option<(String, u64)>,
    pub due: u64,
    pub claimed: u64,
    pub dead: u64,
    /// When the oldest dead letter was given up, ms since 1970.
    pub oldest_dead_ms: Option<u64>,
    pub quarantined: u64,
    /// How many entries the quarantine's limit has ever dropped.
    pub quarantine_dropped: u64,
    /// The lines of the attempt log that a history still has to read, and their bytes on average; of the one furthest behind.
    pub history_unread: (u64, u64),
    /// The last event that a history has read of the stream, and an event's bytes on average; of the one furthest behind. None
    /// while none reads it.
    pub history_events: Option<(EntryId, u64)>,
    /// The id that the stream last generated: that of its newest entry, or of one that is gone.
    pub last_generated: EntryId,
    pub requests: u64,
    /// Records, wherever they stand.
    pub unfinished: u64,
    /// When the first of the due deliveries is due, ms since 1970.
    pub oldest_due_ms: Option<u64>,
    /// Redis' clock, ms since 1970.
    pub now_ms: u64,
    pub used_memory_bytes: u64,
    /// 0 means no limit.
    pub maxmemory_bytes: u64,
    /// Nothing is evicted, because of the policy or because there is no limit.
    pub is_noeviction: bool,
    /// The append-only file is on, and its last write went well.
    pub is_durable: bool,
    pub evicted_keys: u64,
}

impl Gauges {
    /// How long the first of the due deliveries has been due.
    pub fn overdue_ms(&self) -> u64 {
        self.oldest_due_ms.map_or(0, |at| self.now_ms.saturating_sub(at))
    }

    /// Whether an owner with this many attempts out could move something now. A claimed delivery whose attempt is out
    /// waits for its receiver, but no longer than an attempt may take.
    pub fn has_backlog(&self, in_flight: u64) -> bool {
        self.behind + self.pending > 0 || self.overdue_ms() > 1_000 || self.claimed > in_flight
    }
}

/// Makes two pipelines, the second only if there is a stream.
pub async fn gauges(connection: &mut Connection, keys: &PartitionKeys) -> Result<Gauges, StoreError> {
    let subject = Subject("look at the numbers of", keys.stream());
    let mut pipeline = redis::pipe();
    pipeline.cmd("TIME");
    pipeline.cmd("EXISTS").arg(keys.stream());
    pipeline.cmd("ZCARD").arg(keys.due());
    pipeline.cmd("ZCARD").arg(keys.claimed());
    pipeline.cmd("ZCARD").arg(keys.dead());
    pipeline.cmd("ZRANGE").arg(keys.dead()).arg(0).arg(0).arg("WITHSCORES");
    pipeline.cmd("XLEN").arg(keys.quarantine());
    pipeline.cmd("XLEN").arg(keys.inbox());
    pipeline.cmd("HVALS").arg(keys.unfinished());
    pipeline.cmd("ZRANGE").arg(keys.due()).arg(0).arg(0).arg("WITHSCORES");
    pipeline.cmd("HMGET").arg(keys.stats()).arg("foreign-trimmed").arg("quarantine-dropped").arg("log-lines");
    pipeline.cmd("INFO").arg("memory").arg("persistence").arg("stats");
    pipeline.cmd("HVALS").arg(keys.history());
    type Scored = Vec<(String, f64)>;
    type Counted = (Option<u64>, Option<u64>, Option<u64>);
    type Numbers = ((u64, u64), bool, u64, u64, u64, Scored, u64, u64);
    type Rest = (Vec<u64>, Scored, Counted, String, Vec<String>);
    let mut answers: Vec<Value> = connection.pipeline(subject, &pipeline).await?;
    let malformed = |error| StoreError::unexpected(subject, error);
    let rest = answers.split_off(answers.len().min(8));
    let (time, exists, due, claimed, dead, first_dead, quarantined, requests) =
        Numbers::from_redis_value(Value::Array(answers)).map_err(malformed)?;
    let (unfinished, first_due, (foreign, dropped, log_lines), info, histories) =
        Rest::from_redis_value(Value::Array(rest)).map_err(malformed)?;
    let now_ms = time.0 * 1000 + time.1 / 1000;
    let field = |name: &str| {
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(field, _)| *field == name).map_or("", |(_, value)| value.trim())
    };
    let number = |name: &str| field(name).parse().unwrap_or(0);
    let maxmemory_bytes = number("maxmemory");
    let first = |scored: &Scored| scored.first().map(|(_, at)| *at as u64);
    let mut gauges = Gauges {
        due,
        claimed,
        dead,
        quarantined,
        requests,
        unfinished: unfinished.iter().sum(),
        oldest_due_ms: first(&first_due),
        oldest_dead_ms: first(&first_dead),
        foreign_trimmed: foreign.unwrap_or(0),
        quarantine_dropped: dropped.unwrap_or(0),
        history_unread: unread_by_histories(&histories, log_lines.unwrap_or(0), now_ms),
        history_events: events_read_by_histories(&histories, now_ms),
        now_ms,
        used_memory_bytes: number("used_memory"),
        maxmemory_bytes,
        is_noeviction: maxmemory_bytes == 0 || field("maxmemory_policy") == "noeviction",
        is_durable: field("aof_enabled") == "1" && field("aof_last_write_status") == "ok",
        evicted_keys: number("evicted_keys"),
        ..Gauges::default()
    };
    // XINFO of a stream that does not exist is an error, and would fail the whole pipeline.
    if exists {
        look_at_stream(connection, keys, &mut gauges).await?;
    }
    Ok(gauges)
}

/// A history that has not been heard of for this long is not waited for.
const HISTORY_GONE_MS: u64 = 3_600_000;

/// Of the history that is furthest behind: the lines that it has not read, and their bytes on average.
fn unread_by_histories(told: &[String], lines: u64, now_ms: u64) -> (u64, u64) {
    let read = told.iter().filter_map(|text| HistoryRead::parse(text));
    let there = read.filter(|read| now_ms.saturating_sub(read.at_ms) < HISTORY_GONE_MS);
    there.map(|read| (lines.saturating_sub(read.line), read.line_bytes)).max().unwrap_or_default()
}

/// Of the history that is furthest behind with the events: the last entry that it has read, and an entry's bytes on average.
pub(super) fn events_read_by_histories(told: &[String], now_ms: u64) -> Option<(EntryId, u64)> {
    let read = told.iter().filter_map(|text| EventsRead::parse(text));
    let there = read.filter(|read| now_ms.saturating_sub(read.at_ms) < HISTORY_GONE_MS);
    there.map(|read| (read.entry, read.entry_bytes)).min()
}

static LOOK: LazyLock<Script> = LazyLock::new(|| Script::new("look", include_str!("scripts/look.lua")));

/// A group as `look.lua` reports it: name, pending, last delivered, what it has read, if Redis knows, and its oldest unread
/// entry, if that was asked for.
type GroupNumbers = (String, u64, String, Option<u64>, Option<String>);

/// What a stream says of itself, without its entries: its length, how many were ever added, and the last id; none if there
/// is no stream.
pub(super) async fn numbers(connection: &mut Connection, key: &str) -> Result<Option<(u64, u64, EntryId)>, StoreError> {
    let subject = Subject("look at", key);
    let seen: Vec<Value> = connection.run(subject, &LOOK.keys_to_read(&[key])).await?;
    let mut seen = seen.into_iter();
    let (Some(length), Some(added), Some(last)) = (seen.next(), seen.next(), seen.next()) else { return Ok(None) };
    let malformed = |error| StoreError::unexpected(subject, error);
    let last = String::from_redis_value(last).map_err(malformed)?.parse().unwrap_or_default();
    let [length, added] = [length, added].map(u64::from_redis_value);
    Ok(Some((length.map_err(malformed)?, added.map_err(malformed)?, last)))
}

/// The last id that the stream has given out; nothing has been accepted after it. Zero without a stream.
pub async fn last_entry(connection: &mut Connection, keys: &PartitionKeys) -> Result<EntryId, StoreError> {
    let subject = Subject("look for the last entry of", keys.stream());
    let seen: Vec<Value> = connection.run(subject, &LOOK.keys_to_read(&[keys.stream()])).await?;
    let Some(last) = seen.into_iter().nth(2) else { return Ok(EntryId::ZERO) };
    let last = String::from_redis_value(last).map_err(|error| StoreError::unexpected(subject, error))?;
    last.parse().map_err(|error| StoreError::unexpected(subject, error))
}

/// Whether every entry up to this one is settled.
pub async fn is_passed(connection: &mut Connection, keys: &PartitionKeys, last: EntryId) -> Result<bool, StoreError> {
    let subject = Subject("look how far the owner is with", keys.stream());
    let command = redis::cmd("GET").arg(keys.cursor()).to_owned();
    let cursor: Option<String> = connection.query(subject, &command).await?;
    let cursor: EntryId = cursor.and_then(|text| text.parse().ok()).unwrap_or_default();
    if cursor >= last {
        return Ok(true);
    }
    // Ids whose entries are no longer there count as passed too.
    let mut command = redis::cmd("XRANGE");
    command.arg(keys.stream()).arg(format!("({cursor}")).arg(last.to_string()).arg("COUNT").arg(1);
    let left: Vec<Value> = connection.query(subject, &command).await?;
    Ok(left.is_empty())
}

async fn look_at_stream(
    connection: &mut Connection,
    keys: &PartitionKeys,
    gauges: &mut Gauges,
) -> Result<(), StoreError> {
    let subject = Subject("look at the stream", keys.stream());
    let seen: Vec<Value> = connection.run(subject, &LOOK.keys_to_read(&[keys.stream()]).arg(GROUP)).await?;
    let mut seen = seen.into_iter();
    let mut next = || seen.next().unwrap_or(Value::Nil);
    let (length, added, last) = (next(), next(), next());
    let malformed = |error| StoreError::unexpected(subject, error);
    let Some(length) = Option::<u64>::from_redis_value(length).map_err(malformed)? else { return Ok(()) };
    gauges.length = length;
    gauges.added = u64::from_redis_value(added).map_err(malformed)?;
    let last: Option<EntryId> = String::from_redis_value(last).map_err(malformed)?.parse().ok();
    gauges.last_generated = last.unwrap_or_default();
    let groups: Result<Vec<GroupNumbers>, _> = seen.map(GroupNumbers::from_redis_value).collect();
    let groups = groups.map_err(malformed)?;
    gauges.slowest_foreign = slowest_foreign(&groups, last, gauges.now_ms);
    let ours = groups.into_iter().find(|(name, ..)| name == GROUP);
    gauges.group = ours.is_some();
    let Some((_, pending, delivered, read, oldest)) = ours else {
        gauges.behind = gauges.length;
        return Ok(());
    };
    (gauges.pending, gauges.read) = (pending, read);
    gauges.oldest_unread = oldest.and_then(|entry| entry.parse().ok());
    let delivered: Option<EntryId> = delivered.parse().ok();
    (gauges.behind, gauges.trimmed_unread) = match delivered.zip(last).is_some_and(|(read, last)| read >= last) {
        true => (0, gauges.read.map_or(0, |read| gauges.added.saturating_sub(read))),
        false => unread(gauges.length, gauges.added, gauges.read),
    };
    Ok(())
}

/// Trimming waits for other groups: one that is no longer read keeps the stream growing. An id ahead of Redis' clock
/// counts as now, so that ids that are not times raise no alarm.
fn slowest_foreign(groups: &[GroupNumbers], last: Option<EntryId>, now_ms: u64) -> Option<(String, u64)> {
    let behind = |(name, _, delivered, ..): &GroupNumbers| {
        let delivered: EntryId = delivered.parse().ok()?;
        let last = last.filter(|last| delivered < *last)?;
        Some((name.clone(), last.ms.min(now_ms).saturating_sub(delivered.ms)))
    };
    let foreign = groups.iter().filter(|(name, ..)| name != GROUP);
    foreign.filter_map(behind).max_by_key(|(_, behind_ms)| *behind_ms)
}

/// How many entries nobody has read yet, and how many of the stream's entries before those are gone. Redis' `lag` would say
/// it directly, but after a deletion within the stream it is NULL or wrong for ever.
fn unread(length: u64, added: u64, read: Option<u64>) -> (u64, u64) {
    match read {
        Some(read) => {
            let owed = added.saturating_sub(read);
            (owed.min(length), owed.saturating_sub(length))
        }
        None => (length, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_waits_for_the_history_that_is_furthest_behind_unless_it_is_gone() {
        let now_ms = 2 * HISTORY_GONE_MS;
        let told = [format!("900 {now_ms} 200"), format!("400 {now_ms} 250"), "100 5 300".to_owned(), "?".to_owned()];
        assert_eq!(unread_by_histories(&told, 1_000, now_ms), (600, 250));
        assert_eq!(unread_by_histories(&told, 300, now_ms).0, 0, "a log that began anew");
        assert_eq!(unread_by_histories(&[], 1_000, now_ms), (0, 0));

        let of_events = [format!("9-1 {now_ms} 200"), format!("7-0 {now_ms} 300"), "1-0 5 9".to_owned()];
        assert_eq!(events_read_by_histories(&of_events, now_ms), Some((EntryId { ms: 7, seq: 0 }, 300)));
        assert_eq!(
            (events_read_by_histories(&told, now_ms), unread_by_histories(&of_events, 9, now_ms)),
            (None, (0, 0))
        );
    }

    #[test]
    fn the_slowest_of_the_other_groups_is_found() {
        let group = |name: &str, delivered: &str| (name.to_owned(), 0, delivered.to_owned(), None, None);
        let groups = [group("herald", "1-0"), group("audit", "9000-0"), group("old", "4000-0"), group("new", "9500-0")];
        let slowest = |last: &str| slowest_foreign(&groups, last.parse().ok(), 10_000);
        assert_eq!(slowest("9500-0"), Some(("old".to_owned(), 5_500)));
        assert_eq!(slowest("9500000-0"), Some(("old".to_owned(), 6_000)), "ids in microseconds count as now");
        assert_eq!(slowest_foreign(&groups[..1], "9500-0".parse().ok(), 10_000), None);
    }

    #[test]
    fn what_is_due_in_a_minute_is_not_overdue() {
        let overdue = |oldest_due_ms| Gauges { oldest_due_ms, now_ms: 100_000, ..Gauges::default() }.overdue_ms();
        assert_eq!((overdue(Some(97_500)), overdue(Some(160_000)), overdue(None)), (2_500, 0, 0));
    }

    #[test]
    fn what_was_trimmed_before_it_was_read_is_counted_and_is_not_behind() {
        // 1 000 added, 200 read, the first 900 trimmed.
        assert_eq!(unread(100, 1000, Some(200)), (100, 700));
        // 1 000 added, 800 read, the first 700 trimmed.
        assert_eq!(unread(300, 1000, Some(800)), (200, 0));
        assert_eq!(unread(300, 1000, None), (300, 0));
    }

    #[test]
    fn what_is_unread_pending_overdue_or_claimed_and_not_out_is_a_backlog() {
        let idle = Gauges { now_ms: 10_000, oldest_due_ms: Some(9_000), claimed: 3, dead: 9, ..Gauges::default() };
        assert!(!idle.has_backlog(3));
        assert!(idle.has_backlog(2));
        for backlog in [
            Gauges { behind: 1, ..idle.clone() },
            Gauges { pending: 1, ..idle.clone() },
            Gauges { oldest_due_ms: Some(8_999), ..idle.clone() },
        ] {
            assert!(backlog.has_backlog(3), "{backlog:?}");
        }
    }
}

//! Answers from the history, and says how far it can look. Changes nothing.

use std::collections::BTreeMap;

use sqlx::{AnyConnection, AssertSqlSafe, Row as _, any::AnyRow};

use super::{
    DAY_MS,
    database::{Database, HistoryError, Kind},
    day_of,
    row::Row,
    schema::{self, COLUMNS, number, unsigned},
    writer::{EVENTS_DROPPED, LOG_DROPPED, LOG_LOST, STREAM_LOST},
};
use crate::facts::{
    id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
    log::Logged,
};

/// The most gaps that an answer names; of more, it says how many.
const MAX_GAPS: i64 = 20;

/// What somebody wants to know; all that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub delivery: Option<DeliveryId>,
    pub event: Option<EventId>,
    pub intent: Option<IntentId>,
    pub endpoint: Option<EndpointId>,
    pub account: Option<AccountId>,
    pub from_ms: Option<u64>,
    pub until_ms: Option<u64>,
}

/// One attempt or one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub at_ms: u64,
    /// `delivered` and `failed` are attempts, the others are the names of `facts::log::End`.
    pub kind: String,
    pub entry: EntryId,
    pub endpoint: Option<EndpointId>,
    pub account: Option<AccountId>,
    pub intent: Option<IntentId>,
    pub event: Option<EventId>,
    /// Only of ends.
    pub event_type: String,
    pub attempt: u32,
    pub took_us: u64,
    pub outcome: String,
    pub detail: String,
}

impl Told {
    /// As the history will tell it.
    pub fn of(line: &Logged) -> Self {
        let row = Row::of(line, 0, line.at_ms());
        Self {
            at_ms: row.at_ms,
            kind: row.kind.to_owned(),
            entry: row.entry.parse().unwrap_or_default(),
            endpoint: line.endpoint().cloned(),
            account: line.account().cloned(),
            intent: line.intent().cloned(),
            event: line.event().cloned(),
            event_type: row.event_type,
            attempt: row.attempt,
            took_us: row.took_us,
            outcome: row.outcome,
            detail: row.detail,
        }
    }

    /// By time; within a millisecond in the order of the stream, each delivery's attempts by number, and what ended it after them.
    pub fn order(&self) -> impl Ord + use<> {
        (self.at_ms, self.entry, self.attempt, self.rank(), self.endpoint.clone())
    }

    /// The same as a text that is no other's, for cursors; its first twenty digits are the time.
    pub fn key(&self) -> String {
        let endpoint = self.endpoint.as_ref().map(EndpointId::as_str).unwrap_or_default();
        let Self { at_ms, attempt, kind, .. } = self;
        format!("{at_ms:020} {} {attempt:010} {} {endpoint} {kind}", self.entry.padded(), self.rank())
    }

    fn rank(&self) -> u8 {
        match self.kind.as_str() {
            "delivered" | "failed" => 0,
            "redelivered" | "discarded" => 2,
            _ => 1,
        }
    }

    pub fn is_attempt(&self) -> bool {
        matches!(self.kind.as_str(), "delivered" | "failed")
    }

    pub fn delivery(&self) -> Option<DeliveryId> {
        Some(DeliveryId { entry: self.entry, endpoint: self.endpoint.clone()? })
    }
}

/// A time of which the history does not know everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub from_ms: u64,
    pub until_ms: u64,
    /// 0 if it is not known how many.
    pub lines: u64,
    pub why: String,
}

impl Gap {
    /// The history lagged for longer than the log or the stream was kept for it.
    pub fn is_of_lag(&self) -> bool {
        [LOG_DROPPED, EVENTS_DROPPED].contains(&self.why.as_str())
    }

    /// Redis lost what it had.
    pub fn is_of_redis(&self) -> bool {
        [LOG_LOST, STREAM_LOST].contains(&self.why.as_str())
    }
}

/// How far the history can look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Horizon {
    /// The first moment that it tells of, ms since 1970; None while it is empty.
    pub begins_ms: Option<u64>,
    /// The number of the last line that it has read of each stream's log.
    pub read: BTreeMap<String, u64>,
    /// Those of the time that was asked for, the newest first.
    pub gaps: Vec<Gap>,
    /// How many more of that time there are.
    pub more_gaps: u64,
}

impl Horizon {
    pub fn is_whole(&self) -> bool {
        self.gaps.is_empty()
    }
}

/// How many deliveries of an account were owed to nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unowed {
    pub account: String,
    pub kind: String,
    pub count: u64,
}

pub struct Reader {
    pub(super) database: Database,
}

impl Reader {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// The file that it reads is where it was opened.
    pub fn check_place(&self) -> Result<(), HistoryError> {
        self.database.check_place()
    }

    /// It is the history of the log with this id.
    pub async fn check_log(&self, log: &str) -> Result<(), HistoryError> {
        self.database.check_log(log).await
    }

    /// How far it can look, and what it misses of the time that is wanted.
    pub async fn horizon(&self, keep_days: u64, now_ms: u64, wanted: &Wanted) -> Result<Horizon, HistoryError> {
        self.try_horizon(keep_days, now_ms, wanted).await.map_err(|error| self.database.broken(error))
    }

    async fn try_horizon(&self, keep_days: u64, now_ms: u64, wanted: &Wanted) -> Result<Horizon, sqlx::Error> {
        let question = "SELECT log, line, begins_ms FROM herald_history_position";
        let (mut read, mut begins_ms) = (BTreeMap::new(), None);
        for row in sqlx::query(question).fetch_all(&self.database.pool).await? {
            let (log, line, since_ms): (String, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if let Some(stream) = self.database.stream_of(&log) {
                read.insert(stream, unsigned(line));
                // Of the others nothing happened before there was anything to read.
                begins_ms = begins_ms.into_iter().chain((since_ms > 0).then_some(unsigned(since_ms))).min();
            }
        }
        let kept_ms = day_of(now_ms).saturating_sub(keep_days) * DAY_MS;
        let begins_ms = begins_ms.map(|begins_ms| begins_ms.max(kept_ms));
        // A gap may end before it begins where two clocks dated it.
        let concerned =
            "FROM herald_history_gaps WHERE (until_ms >= $1 OR from_ms >= $1) AND (from_ms < $2 OR until_ms < $2)";
        let (from_ms, before_ms) = (number(wanted.from_ms.unwrap_or(0)), number(wanted.until_ms.unwrap_or(u64::MAX)));
        let question =
            format!("SELECT from_ms, until_ms, lines, why {concerned} ORDER BY until_ms DESC LIMIT {MAX_GAPS}");
        let question = sqlx::query(AssertSqlSafe(question)).bind(from_ms).bind(before_ms);
        let rows = question.fetch_all(&self.database.pool).await?;
        let count = sqlx::query(AssertSqlSafe(format!("SELECT COUNT(*) {concerned}"))).bind(from_ms).bind(before_ms);
        let count = unsigned(count.fetch_one(&self.database.pool).await?.try_get(0)?);
        let gap = |row: &AnyRow| {
            let (from_ms, until_ms) = (unsigned(row.try_get(0)?), unsigned(row.try_get(1)?));
            Ok(Gap { from_ms, until_ms, lines: unsigned(row.try_get(2)?), why: row.try_get(3)? })
        };
        let gaps = rows.iter().map(gap).collect::<Result<Vec<_>, sqlx::Error>>()?;
        let more_gaps = count.saturating_sub(gaps.len() as u64);
        Ok(Horizon { begins_ms, read, gaps, more_gaps })
    }

    /// Up to `limit` of what is wanted, the newest first.
    pub async fn find(&self, wanted: &Wanted, limit: usize) -> Result<Vec<Told>, HistoryError> {
        self.try_find(wanted, limit).await.map_err(|error| self.database.broken(error))
    }

    async fn try_find(&self, wanted: &Wanted, limit: usize) -> Result<Vec<Told>, sqlx::Error> {
        // One state throughout: a day that is dropped meanwhile is still there.
        let mut transaction = schema::begin(&self.database).await?;
        let mut found = Vec::new();
        for table in self.tables(&mut transaction, wanted.from_ms).await? {
            let left = limit - found.len();
            if left == 0 {
                break;
            }
            let (sql, values) = question(&table, wanted, left);
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for value in values {
                query = match value {
                    Value::Text(text) => query.bind(text),
                    Value::Number(number) => query.bind(number),
                };
            }
            let rows = query.fetch_all(&mut *transaction).await?;
            found.extend(rows.iter().filter_map(|row| told(row).transpose()).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(found)
    }

    /// How each of these entries' deliveries ended, as far as it is told: delivered, dead, skipped, redelivered or discarded; the
    /// newest first. `limit` is for all of them.
    pub async fn ends(&self, entries: &[EntryId], limit: usize) -> Result<Vec<Told>, HistoryError> {
        self.try_ends(entries, limit).await.map_err(|error| self.database.broken(error))
    }

    async fn try_ends(&self, entries: &[EntryId], limit: usize) -> Result<Vec<Told>, sqlx::Error> {
        let Some(oldest) = entries.iter().min() else { return Ok(Vec::new()) };
        let places: Vec<String> = (1..=entries.len()).map(|nth| format!("${nth}")).collect();
        let mut transaction = schema::begin(&self.database).await?;
        let mut found = Vec::new();
        // An entry's id is Redis' time of it, and a worker's clock may be behind.
        for table in self.tables(&mut transaction, Some(oldest.ms.saturating_sub(DAY_MS))).await? {
            let sql = format!(
                "SELECT {} FROM {table} WHERE entry IN ({}) AND kind <> 'failed' ORDER BY at_ms DESC, key DESC LIMIT {}",
                COLUMNS.join(", "),
                places.join(", "),
                limit - found.len()
            );
            let query =
                entries.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, entry| query.bind(entry.to_string()));
            let rows = query.fetch_all(&mut *transaction).await?;
            found.extend(rows.iter().filter_map(|row| told(row).transpose()).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(found)
    }

    /// Of each account, what was owed to nobody since then: those with the most first.
    pub async fn unowed(&self, from_ms: u64, limit: usize) -> Result<Vec<Unowed>, HistoryError> {
        self.try_unowed(from_ms, limit).await.map_err(|error| self.database.broken(error))
    }

    async fn try_unowed(&self, from_ms: u64, limit: usize) -> Result<Vec<Unowed>, sqlx::Error> {
        let mut transaction = schema::begin(&self.database).await?;
        let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
        for table in self.tables(&mut transaction, Some(from_ms)).await? {
            let sql = format!(
                "SELECT account, kind, COUNT(*) FROM {table} WHERE kind IN ('skipped', 'no_endpoint') AND day >= $1 \
                 GROUP BY account, kind"
            );
            let rows =
                sqlx::query(AssertSqlSafe(sql)).bind(number(day_of(from_ms))).fetch_all(&mut *transaction).await?;
            for row in &rows {
                *counts.entry((row.try_get(0)?, row.try_get(1)?)).or_default() += unsigned(row.try_get(2)?);
            }
        }
        let mut counts: Vec<Unowed> =
            counts.into_iter().map(|((account, kind), count)| Unowed { account, kind, count }).collect();
        counts.sort_by_key(|unowed| std::cmp::Reverse(unowed.count));
        counts.truncate(limit);
        Ok(counts)
    }

    /// The tables to ask, the newest first.
    async fn tables(&self, connection: &mut AnyConnection, from_ms: Option<u64>) -> Result<Vec<String>, sqlx::Error> {
        if self.database.kind == Kind::Postgres {
            return Ok(vec!["herald_history".to_owned()]);
        }
        let first = from_ms.map_or(0, day_of);
        let days = schema::days(connection).await?;
        Ok(days.into_iter().take_while(|day| *day >= first).map(schema::table_of).collect())
    }
}

enum Value {
    Text(String),
    Number(i64),
}

fn question(table: &str, wanted: &Wanted, limit: usize) -> (String, Vec<Value>) {
    let mut conditions = vec!["1 = 1".to_owned()];
    let mut values = Vec::new();
    let mut add = |condition: &str, value: Value| {
        values.push(value);
        conditions.push(format!("{condition} ${}", values.len()));
    };
    // From the one that tells most to the one that tells least. Only the first may use its index: without statistics, SQLite
    // would take whichever has the right order.
    let entry = wanted.delivery.as_ref().map(|id| id.entry.to_string());
    let endpoint = wanted.delivery.as_ref().map(|id| &id.endpoint).or(wanted.endpoint.as_ref());
    let texts = [
        ("entry", entry),
        ("event", wanted.event.as_ref().map(ToString::to_string)),
        ("intent", wanted.intent.as_ref().map(ToString::to_string)),
        ("endpoint", endpoint.map(ToString::to_string)),
        ("account", wanted.account.as_ref().map(ToString::to_string)),
    ];
    for (nth, (column, text)) in texts.into_iter().filter_map(|(column, text)| Some((column, text?))).enumerate() {
        let condition = if nth == 0 { format!("{column} =") } else { format!("{column} || '' =") };
        add(&condition, Value::Text(text));
    }
    if let Some(from_ms) = wanted.from_ms {
        add("at_ms >=", Value::Number(number(from_ms)));
        add("day >=", Value::Number(number(day_of(from_ms))));
    }
    if let Some(until_ms) = wanted.until_ms {
        add("at_ms <", Value::Number(number(until_ms)));
    }
    let sql = format!(
        "SELECT {} FROM {table} WHERE {} ORDER BY at_ms DESC, key DESC LIMIT {limit}",
        COLUMNS.join(", "),
        conditions.join(" AND ")
    );
    (sql, values)
}

/// None for a row whose entry is none: a stranger's.
fn told(row: &AnyRow) -> Result<Option<Told>, sqlx::Error> {
    let text = |at: usize| row.try_get::<String, usize>(at);
    let count = |at: usize| row.try_get::<i64, usize>(at).map(unsigned);
    let Ok(entry) = text(4)?.parse() else { return Ok(None) };
    Ok(Some(Told {
        at_ms: count(1)?,
        kind: text(3)?,
        entry,
        endpoint: EndpointId::new(&text(5)?).ok(),
        account: AccountId::new(&text(6)?).ok(),
        intent: IntentId::new(&text(7)?).ok(),
        event: EventId::new(&text(8)?).ok(),
        event_type: text(9)?,
        attempt: u32::try_from(count(10)?).unwrap_or(u32::MAX),
        took_us: count(11)?,
        outcome: text(12)?,
        detail: text(13)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{
        Access,
        writer::{Batch, LOG_DROPPED, Missed, Position, Writer},
    };

    #[tokio::test]
    async fn the_gaps_of_a_time_are_found_however_many_came_later() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("history.db").display()).parse().unwrap();
        let database = Database::open(&url, "payment-intents", Access::Write).await.unwrap();
        let (mut writer, reader) = (Writer::new(database.clone()), Reader::new(database));
        let missed = |n: u64| Missed { from_ms: n * 1_000, until_ms: n * 1_000 + 500, lines: 1, why: LOG_DROPPED };
        let to = Position { line: 100, seal: 1, at_ms: 100_000 };
        let batch = Batch { missed: (1..=100).map(missed).collect(), to, ..Batch::default() };
        let book = writer.book("payment-intents").await.unwrap();
        assert!(writer.write(&book, Position::default(), &batch, 1).await.unwrap());
        let gaps = async |from_ms, until_ms| {
            let horizon = reader.horizon(30, 0, &Wanted { from_ms, until_ms, ..Wanted::default() }).await.unwrap();
            (horizon.gaps.first().map(|gap| gap.from_ms), horizon.gaps.len(), horizon.more_gaps)
        };
        assert_eq!(gaps(None, None).await, (Some(100_000), 20, 80));
        assert_eq!(gaps(Some(2_400), Some(4_001)).await, (Some(4_000), 3, 0));
        assert_eq!(gaps(Some(2_501), Some(3_000)).await, (None, 0, 0));
    }
}

//! The tables, in both kinds of database. A day has a table of its own, so that retention drops whole tables and never looks
//! for rows; in PostgreSQL they are partitions of `herald_history`, so a person can ask all of them at once.

use std::fmt::Write as _;

use sqlx::{Any, AnyConnection, AssertSqlSafe, Row as _, Transaction};

use super::{
    database::{Database, Kind},
    day_of, events,
};
use crate::clock;

/// Of these tables. Another one is another Herald's.
pub const VERSION: u32 = 1;

const TABLES: [&str; 6] = [
    "CREATE TABLE IF NOT EXISTS herald_history_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    // How far a log has been read: the number of the last entry, a seal of its text, the time of its last line, and when and
    // how much was written. `attempts` is that of the stream itself, `attempts:2` that of its part `S:2`.
    "CREATE TABLE IF NOT EXISTS herald_history_position (log TEXT PRIMARY KEY, line BIGINT NOT NULL, seal BIGINT NOT NULL, \
     at_ms BIGINT NOT NULL, moved_ms BIGINT NOT NULL, begins_ms BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS herald_history_gaps (found_ms BIGINT NOT NULL, from_ms BIGINT NOT NULL, \
     until_ms BIGINT NOT NULL, lines BIGINT NOT NULL, why TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS herald_history_days (day BIGINT PRIMARY KEY)",
    // How far a stream has been read, by the same names, `events` and `events:2`: the last entry, how many were ever added up to it, and when that was.
    "CREATE TABLE IF NOT EXISTS herald_history_source (stream TEXT PRIMARY KEY, entry_ms BIGINT NOT NULL, \
     entry_seq BIGINT NOT NULL, added BIGINT NOT NULL, read_ms BIGINT NOT NULL, begins_ms BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS herald_history_body_days (day BIGINT PRIMARY KEY)",
];

/// What a day's table holds; the writer and the reader name the columns in this order.
pub(super) const COLUMNS: [&str; 14] = [
    "day",
    "at_ms",
    "key",
    "kind",
    "entry",
    "endpoint",
    "account",
    "intent",
    "event",
    "event_type",
    "attempt",
    "took_us",
    "outcome",
    "detail",
];

const DEFINITIONS: &str = "day BIGINT NOT NULL, at_ms BIGINT NOT NULL, key BIGINT NOT NULL, kind TEXT NOT NULL, \
     entry TEXT NOT NULL, endpoint TEXT NOT NULL, account TEXT NOT NULL, intent TEXT NOT NULL, event TEXT NOT NULL, \
     event_type TEXT NOT NULL, attempt BIGINT NOT NULL, took_us BIGINT NOT NULL, outcome TEXT NOT NULL, \
     detail TEXT NOT NULL";

/// What is asked for. Few deliveries are owed to nobody, so an index of those alone costs nothing and counts them at once.
const INDEXES: [(&str, &str); 6] = [
    ("entry", "(entry)"),
    ("intent", "(intent, at_ms)"),
    ("event", "(event, at_ms)"),
    ("endpoint", "(endpoint, at_ms)"),
    ("account", "(account, at_ms)"),
    ("unowed", "(account, kind) WHERE kind IN ('skipped', 'no_endpoint')"),
];

/// Held while tables are made, so that two that start together do not both make them.
const POSTGRES_LOCK: &str = "SELECT pg_advisory_xact_lock(7310589242)";

pub(super) async fn make(database: &Database, stream: &str) -> Result<(), sqlx::Error> {
    let mut transaction = begin(database).await?;
    if database.kind == Kind::Postgres {
        sqlx::query(POSTGRES_LOCK).execute(&mut *transaction).await?;
    }
    for table in TABLES {
        sqlx::query(table).execute(&mut *transaction).await?;
    }
    let id = format!("{:016x}", rand::random::<u64>());
    let keep = "INSERT INTO herald_history_meta (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    for (name, value) in [("schema", VERSION.to_string().as_str()), ("stream", stream), ("id", &id)] {
        sqlx::query(keep).bind(name.to_owned()).bind(value.to_owned()).execute(&mut *transaction).await?;
    }
    begin_log(&mut transaction, &database.book(stream).log).await?;
    events::tell_accounts_apart(&mut transaction, database.kind, day_of(clock::wall_ms())).await?;
    if database.kind == Kind::Postgres {
        let table = format!(
            "CREATE TABLE IF NOT EXISTS herald_history ({DEFINITIONS}, PRIMARY KEY (day, at_ms, key)) PARTITION BY LIST (day)"
        );
        sqlx::query(AssertSqlSafe(table)).execute(&mut *transaction).await?;
        indexes(&mut transaction, "herald_history").await?;
    }
    transaction.commit().await
}

/// Makes a place to write how far a log was read.
pub(super) async fn begin_log(connection: &mut AnyConnection, log: &str) -> Result<(), sqlx::Error> {
    let begin = "INSERT INTO herald_history_position (log, line, seal, at_ms, moved_ms, begins_ms) \
                 VALUES ($1, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING";
    sqlx::query(begin).bind(log.to_owned()).execute(connection).await.map(drop)
}

/// Makes a day's table.
pub(super) async fn make_day(kind: Kind, connection: &mut AnyConnection, day: u64) -> Result<(), sqlx::Error> {
    let table = table_of(day);
    match kind {
        Kind::Sqlite => {
            let sql =
                format!("CREATE TABLE IF NOT EXISTS {table} ({DEFINITIONS}, PRIMARY KEY (at_ms, key)) WITHOUT ROWID");
            sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?;
            indexes(connection, &table).await?;
        }
        Kind::Postgres => {
            let sql = format!("CREATE TABLE IF NOT EXISTS {table} PARTITION OF herald_history FOR VALUES IN ({day})");
            sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?;
        }
    }
    let known = "INSERT INTO herald_history_days (day) VALUES ($1) ON CONFLICT DO NOTHING";
    sqlx::query(known).bind(number(day)).execute(connection).await.map(drop)
}

async fn indexes(connection: &mut AnyConnection, table: &str) -> Result<(), sqlx::Error> {
    for (name, columns) in INDEXES {
        let sql = format!("CREATE INDEX IF NOT EXISTS {table}_{name} ON {table} {columns}");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// A day's table, by its date: `herald_history_20261127`.
pub(super) fn table_of(day: u64) -> String {
    let seconds = i64::try_from(day).unwrap_or(0).saturating_mul(86_400);
    let date = jiff::Timestamp::from_second(seconds).unwrap_or_default().strftime("%Y%m%d").to_string();
    format!("herald_history_{date}")
}

/// Rows in parts of a few sizes, `most` and fourths of it: a statement of each is prepared once. One of every length costs more to
/// prepare than its rows cost to insert.
pub(super) fn parts<T>(rows: &[T], most: usize) -> impl Iterator<Item = &[T]> {
    let mut left = rows;
    std::iter::from_fn(move || {
        let mut size = most;
        while size > left.len().max(1) {
            size = (size / 4).max(1);
        }
        let (part, rest) = left.split_at_checked(size)?;
        left = rest;
        Some(part)
    })
}

/// A statement that inserts so many rows, those that are not there yet. SQLite's values have no names: each name that a value is
/// bound to is looked for among all before it, which cost as much as the insertion.
pub(super) fn insertion(kind: Kind, table: &str, columns: &[&str], rows: usize) -> String {
    let mut sql = format!("INSERT INTO {table} ({}) VALUES ", columns.join(", "));
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { "), (" });
        for column in 0..columns.len() {
            let comma = if column == 0 { "" } else { ", " };
            let _ = match kind {
                Kind::Sqlite => write!(sql, "{comma}?"),
                Kind::Postgres => write!(sql, "{comma}${}", row * columns.len() + column + 1),
            };
        }
    }
    sql + ") ON CONFLICT DO NOTHING"
}

pub(super) async fn meta(database: &Database, name: &str) -> Result<Option<String>, sqlx::Error> {
    let question = sqlx::query("SELECT value FROM herald_history_meta WHERE name = $1").bind(name.to_owned());
    question.fetch_optional(&database.pool).await?.map(|row| row.try_get(0)).transpose()
}

/// Keeps it, unless there is something of that name.
pub(super) async fn keep(database: &Database, name: &str, value: &str) -> Result<(), sqlx::Error> {
    let keep = "INSERT INTO herald_history_meta (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let keep = sqlx::query(keep).bind(name.to_owned()).bind(value.to_owned());
    keep.execute(&database.pool).await.map(drop)
}

/// The days that have a table, the newest first.
pub(super) async fn days(connection: &mut AnyConnection) -> Result<Vec<u64>, sqlx::Error> {
    let rows = sqlx::query("SELECT day FROM herald_history_days ORDER BY day DESC").fetch_all(connection).await?;
    rows.iter().map(|row| Ok(unsigned(row.try_get(0)?))).collect()
}

/// A transaction that will write, or one that only reads and sees one state throughout.
pub(super) async fn begin(database: &Database) -> Result<Transaction<'static, Any>, sqlx::Error> {
    database.pool.begin().await
}

/// Databases have no unsigned numbers: what does not fit is the greatest that does.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_in_parts_of_few_sizes() {
        let sizes = |count| parts(&vec![0; count], 128).map(<[i32]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(0), [] as [usize; 0]);
        assert_eq!(sizes(3), [2, 1]);
        assert_eq!(sizes(300), [128, 128, 32, 8, 2, 2]);
        assert_eq!(sizes(127).iter().sum::<usize>(), 127);
        assert!(parts(&[1; 63], 64).all(|part| [16, 4, 1].contains(&part.len())));
    }
}

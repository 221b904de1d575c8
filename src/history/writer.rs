//! Writes batches, each in one transaction with the position that follows it, and drops the days that are over.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{Any, AnyConnection, AssertSqlSafe, Row as _, Transaction, any::AnyArguments, query::Query};

use super::{
    database::{Book, Database, HistoryError, Kind},
    day_of,
    row::Row,
    schema::{self, COLUMNS, number, unsigned},
};

/// Rows of one statement: more makes neither kind of database quicker, and SQLite takes 32 766 values at most.
const ROWS: usize = 128;

/// Why lines are missing. The first two are a matter of `history.log_bytes`.
pub const LOG_DROPPED: &str = "the log of attempts dropped them before they were read (history.log_bytes)";
pub(super) const EVENTS_DROPPED: &str = "events were taken from the stream before they were read (history.log_bytes)";
pub const LOG_LOST: &str = "Redis has lost its log of attempts, or part of it, and began it anew";
pub(super) const STREAM_LOST: &str = "Redis has lost its stream, or part of it, and began it anew";
pub(super) const LOG_UNKNOWN: &str =
    "the log of attempts does not have the last line any more that was read: whether it lost others, nobody can tell";
pub(super) const UNREADABLE: &str = "lines that this Herald cannot read: another version, or somebody else, wrote them";

/// How far the log has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    /// The number of the last entry; 0 before the first.
    pub line: u64,
    /// Of its text: another log gives out its numbers again.
    pub seal: i64,
    /// The time of its last line.
    pub at_ms: u64,
}

/// Lines that the log lost before they were read, or that nobody could read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missed {
    pub from_ms: u64,
    pub until_ms: u64,
    /// 0 if it is not known how many.
    pub lines: u64,
    pub why: &'static str,
}

/// What goes into the history at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub rows: Vec<Row>,
    pub missed: Vec<Missed>,
    pub to: Position,
}

pub(super) struct Writer {
    pub(super) database: Database,
    /// Days that are known to have a table.
    days: BTreeSet<u64>,
}

impl Writer {
    pub fn new(database: Database) -> Self {
        Self { database, days: BTreeSet::new() }
    }

    pub async fn close(self) {
        self.database.close().await;
    }

    /// Tells this history from others.
    pub async fn id(&self) -> Result<String, HistoryError> {
        let id = schema::meta(&self.database, "id").await.map_err(|error| self.database.broken(error))?;
        Ok(id.unwrap_or_default())
    }

    /// An error if it does not answer.
    pub async fn probe(&self) -> Result<(), HistoryError> {
        self.id().await.map(drop)
    }

    /// The file that it writes to is where it was opened.
    pub fn check_place(&self) -> Result<(), HistoryError> {
        self.database.check_place()
    }

    /// The books of a stream, which are begun if there are none.
    pub async fn book(&self, stream: &str) -> Result<Book, HistoryError> {
        let book = self.database.book(stream);
        let begin = async || schema::begin_log(&mut *self.database.pool.acquire().await?, &book.log).await;
        begin().await.map_err(|error| self.database.broken(error))?;
        Ok(book)
    }

    pub async fn position(&self, book: &Book) -> Result<Position, HistoryError> {
        let question = "SELECT line, seal, at_ms FROM herald_history_position WHERE log = $1";
        let read = async || {
            let row = sqlx::query(question).bind(book.log.clone()).fetch_one(&self.database.pool).await?;
            let (line, seal, at_ms) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(Position { line: unsigned(line), seal, at_ms: unsigned(at_ms) })
        };
        read().await.map_err(|error| self.database.broken(error))
    }

    /// Writes a batch that follows `from`. False: somebody else has written on meanwhile, and nothing was changed.
    pub async fn write(
        &mut self,
        book: &Book,
        from: Position,
        batch: &Batch,
        now_ms: u64,
    ) -> Result<bool, HistoryError> {
        match self.try_write(book, from, batch, now_ms).await {
            Ok(made) => {
                self.days.extend(made.iter().flatten());
                Ok(made.is_some())
            }
            Err(error) => {
                // A table that was thought to be there may have been dropped by hand.
                self.days.clear();
                Err(self.database.broken(error))
            }
        }
    }

    /// The days that it made tables for.
    async fn try_write(
        &self,
        book: &Book,
        from: Position,
        batch: &Batch,
        now_ms: u64,
    ) -> Result<Option<Vec<u64>>, sqlx::Error> {
        let mut transaction = schema::begin(&self.database).await?;
        // First, because it keeps others from writing.
        if !self.move_on(&mut transaction, book, from, batch, now_ms).await? {
            return Ok(None);
        }
        for missed in &batch.missed {
            note_missed(&mut transaction, missed, now_ms).await?;
        }
        let mut by_day: BTreeMap<u64, Vec<&Row>> = BTreeMap::new();
        batch.rows.iter().for_each(|row| by_day.entry(row.day).or_default().push(row));
        let mut made = Vec::new();
        for (day, rows) in by_day {
            if !self.days.contains(&day) {
                schema::make_day(self.database.kind, &mut transaction, day).await?;
                made.push(day);
            }
            for rows in schema::parts(&rows, ROWS) {
                insert(self.database.kind, &mut transaction, day, rows).await?;
            }
        }
        transaction.commit().await?;
        Ok(Some(made))
    }

    async fn move_on(
        &self,
        transaction: &mut Transaction<'static, Any>,
        book: &Book,
        from: Position,
        batch: &Batch,
        now_ms: u64,
    ) -> Result<bool, sqlx::Error> {
        let begins_ms = batch.rows.first().map_or(now_ms, |row| row.at_ms);
        let update = "UPDATE herald_history_position SET line = $1, seal = $2, at_ms = $3, moved_ms = $4, \
                      begins_ms = CASE begins_ms WHEN 0 THEN $5 ELSE begins_ms END \
                      WHERE log = $6 AND line = $7 AND seal = $8";
        let Position { line, seal, at_ms } = batch.to;
        let update = sqlx::query(update).bind(number(line)).bind(seal).bind(number(at_ms)).bind(number(now_ms));
        let update = update.bind(number(begins_ms)).bind(book.log.clone()).bind(number(from.line)).bind(from.seal);
        Ok(update.execute(&mut **transaction).await?.rows_affected() == 1)
    }

    /// Drops the oldest day that is over, and returns it. One at a time: between two, batches are written.
    pub async fn drop_oldest(&mut self, keep_days: u64, now_ms: u64) -> Result<Option<u64>, HistoryError> {
        let first = day_of(now_ms).saturating_sub(keep_days);
        let dropped = self.try_drop(first).await.map_err(|error| self.database.broken(error))?;
        if let Some(day) = dropped {
            self.days.remove(&day);
        }
        Ok(dropped)
    }

    async fn try_drop(&self, first: u64) -> Result<Option<u64>, sqlx::Error> {
        let mut transaction = schema::begin(&self.database).await?;
        let Some(day) = schema::days(&mut transaction).await?.pop().filter(|day| *day < first) else { return Ok(None) };
        if self.database.kind == Kind::Postgres {
            // It needs the parent table for itself: whoever reads is not made to wait behind it for long.
            sqlx::query("SET LOCAL lock_timeout = '2s'").execute(&mut *transaction).await?;
        }
        let drop = format!("DROP TABLE IF EXISTS {}", schema::table_of(day));
        sqlx::query(AssertSqlSafe(drop)).execute(&mut *transaction).await?;
        let forget = "DELETE FROM herald_history_days WHERE day = $1";
        sqlx::query(forget).bind(number(day)).execute(&mut *transaction).await?;
        // What is gone stays gone, also where days are kept for longer again.
        // A log of which nothing was read yet begins when that is.
        let begins = "UPDATE herald_history_position SET begins_ms = $1 WHERE begins_ms < $2 AND begins_ms > 0";
        let begins_ms = number((day + 1) * super::DAY_MS);
        sqlx::query(begins).bind(begins_ms).bind(begins_ms).execute(&mut *transaction).await?;
        let gaps = "DELETE FROM herald_history_gaps WHERE until_ms < $1";
        sqlx::query(gaps).bind(begins_ms).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Some(day))
    }
}

pub(super) async fn note_missed(
    connection: &mut AnyConnection,
    missed: &Missed,
    now_ms: u64,
) -> Result<(), sqlx::Error> {
    let note = "INSERT INTO herald_history_gaps (found_ms, from_ms, until_ms, lines, why) VALUES ($1, $2, $3, $4, $5)";
    let note = sqlx::query(note).bind(number(now_ms)).bind(number(missed.from_ms)).bind(number(missed.until_ms));
    note.bind(number(missed.lines)).bind(missed.why).execute(connection).await.map(drop)
}

async fn insert(kind: Kind, connection: &mut AnyConnection, day: u64, rows: &[&Row]) -> Result<(), sqlx::Error> {
    let sql = schema::insertion(kind, &schema::table_of(day), &COLUMNS, rows.len());
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for row in rows {
        query = bind(query, row);
    }
    query.execute(connection).await.map(drop)
}

fn bind<'q>(query: Query<'q, Any, AnyArguments>, row: &Row) -> Query<'q, Any, AnyArguments> {
    let query = query.bind(number(row.day)).bind(number(row.at_ms)).bind(row.key).bind(row.kind);
    let query = query.bind(row.entry.clone()).bind(row.endpoint.clone()).bind(row.account.clone());
    let query = query.bind(row.intent.clone()).bind(row.event.clone()).bind(row.event_type.clone());
    let query = query.bind(i64::from(row.attempt)).bind(number(row.took_us));
    query.bind(row.outcome.clone()).bind(without_nul(&row.detail))
}

/// PostgreSQL's texts hold no NUL, and what a receiver's error says may.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

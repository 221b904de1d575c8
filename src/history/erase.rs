//! Takes an account's events out of the database, so that not even the unused parts of its file hold them. What was delivered when stays: that
//! tells ids and times.

use sqlx::{AssertSqlSafe, Row as _};

use super::{
    database::{Access, Database, HistoryError, Kind},
    events,
    schema::{self, number},
};
use crate::{
    config::HistoryUrl,
    facts::id::{AccountId, EntryId},
};

/// Events that one transaction takes out: the follower waits for it.
const ROWS: u64 = 1_000;

#[derive(Clone)]
pub struct Eraser {
    database: Database,
}

impl Eraser {
    pub async fn open(url: &HistoryUrl, stream: &str) -> Result<Self, HistoryError> {
        Ok(Self { database: Database::open(url, stream, Access::Write).await? })
    }

    /// Takes some out up to this entry, and returns how many: none when none are left.
    pub async fn erase(&self, account: &AccountId, last: EntryId) -> Result<u64, HistoryError> {
        self.try_erase(account, last).await.map_err(|error| self.database.broken(error))
    }

    async fn try_erase(&self, account: &AccountId, last: EntryId) -> Result<u64, sqlx::Error> {
        let mut transaction = schema::begin(&self.database).await?;
        for table in events::tables(&mut transaction).await? {
            let sql = format!(
                "DELETE FROM {table} WHERE account = $4 AND (entry_ms, entry_seq) IN \
                 (SELECT entry_ms, entry_seq FROM {table} \
                 WHERE account = $1 AND (entry_ms, entry_seq) <= ($2, $3) LIMIT {ROWS})"
            );
            let gone =
                sqlx::query(AssertSqlSafe(sql)).bind(account.to_string()).bind(number(last.ms)).bind(number(last.seq));
            let gone = gone.bind(account.to_string());
            let gone = gone.execute(&mut *transaction).await?;
            if gone.rows_affected() > 0 {
                transaction.commit().await?;
                return Ok(gone.rows_affected());
            }
        }
        Ok(0)
    }

    /// Takes what is gone out of the files, too: SQLite's is written afresh, which takes a while and as much room again. False:
    /// somebody reads what was there before; once more later.
    pub async fn settle(&self) -> Result<bool, HistoryError> {
        self.try_settle().await.map_err(|error| self.database.broken(error))
    }

    async fn try_settle(&self) -> Result<bool, sqlx::Error> {
        let mut connection = self.database.pool.acquire().await?;
        if self.database.kind == Kind::Sqlite {
            // A table's pages hold what was moved to others as they filled, too: only writing all of it anew leaves nothing.
            sqlx::raw_sql("VACUUM").execute(&mut *connection).await?;
            let row = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *connection).await?;
            return Ok(row.try_get::<i64, usize>(0)? == 0);
        }
        sqlx::raw_sql("SET statement_timeout = 0").execute(&mut *connection).await?;
        for table in events::tables(&mut connection).await? {
            sqlx::raw_sql(AssertSqlSafe(format!("VACUUM {table}"))).execute(&mut *connection).await?;
        }
        connection.detach();
        Ok(true)
    }
}

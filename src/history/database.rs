//! Opens the database and tells its failures apart. The same statements serve both kinds; what differs is in `schema`.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Once,
    time::Duration,
};

use sqlx::{
    AnyConnection, AnyPool, ConnectOptions, Connection,
    any::{AnyConnectOptions, AnyPoolOptions},
};
use tokio::time::timeout;

use super::schema;
use crate::config::HistoryUrl;

/// How long a call waits for the database, or for whoever else writes to the file.
const PATIENCE: Duration = Duration::from_secs(10);

/// What every connection to a file is told. With WAL, readers and the writer do not wait for each other; with NORMAL a power cut
/// may take the last batches, together with the position, and they are read again. 64 MiB of pages keep the indexes of a day.
const OF_FILE: &str = "PRAGMA busy_timeout = 10000; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -65536;";
const LEAVE_FILE: &str = "PRAGMA busy_timeout = 1000; PRAGMA wal_checkpoint(TRUNCATE);";
const OF_FILE_WRITER: &str = "PRAGMA journal_mode = WAL; PRAGMA journal_size_limit = 67108864;";

/// The names of the books of the stream itself.
const ATTEMPTS: &str = "attempts";
const EVENTS: &str = "events";

/// Under which names the database keeps how far one stream is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Book {
    pub log: String,
    pub source: String,
}

/// The name under which the id of its log is kept.
const LOG: &str = "log";

#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("there is no history yet in {}: `herald serve` begins it", path.display())]
    NoFile { path: PathBuf },
    #[error(
        "the history in {place} has the form {found}, and this Herald knows {known}: run the Herald that wrote it, or name \
         another place in history.url (HERALD_HISTORY_URL)"
    )]
    OtherSchema { place: String, found: String, known: u32 },
    #[error(
        "{place} is the history of the stream {found}, not of {own}: give each stream a history of its own (history.url)"
    )]
    OtherStream { place: String, found: String, own: String },
    #[error(
        "the history in {place} belongs to another Redis: name another place in history.url (HERALD_HISTORY_URL). If it was \
         this Redis, which was emptied since, and the history is to go on, tell the database: \
         DELETE FROM herald_history_meta WHERE name = 'log'"
    )]
    OtherRedis { place: String },
    #[error(
        "the file of the history, {place}, was moved, removed or replaced while it was open: what is at its place is opened, \
         or one is begun anew there, with what the log in Redis still has"
    )]
    Moved { place: String },
    #[error("the history in {place} does not work: {error}")]
    Broken { place: String, error: sqlx::Error },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

/// An open history of one stream, and of the parts that it is split into.
#[derive(Clone)]
pub struct Database {
    pub(super) pool: AnyPool,
    pub(super) kind: Kind,
    place: String,
    stream: String,
    /// Of SQLite: its path, and which file was there when it was opened.
    file: Option<(PathBuf, FileId)>,
}

/// Device and inode, 0 and 0 where there is no file: a path alone may come to lead to another one.
type FileId = (u64, u64);

fn file_at(path: &Path) -> FileId {
    path.metadata().map_or((0, 0), |found| (found.dev(), found.ino()))
}

impl Database {
    /// Opens it, and for writing makes what is missing.
    pub async fn open(url: &HistoryUrl, stream: &str, access: Access) -> Result<Self, HistoryError> {
        let place = url.to_string();
        let broken = |error| HistoryError::Broken { place: url.to_string(), error };
        let kind = if url.file().is_some() { Kind::Sqlite } else { Kind::Postgres };
        if let (Some(path), Access::Read) = (url.file(), access)
            && !path.exists()
        {
            return Err(HistoryError::NoFile { path });
        }
        let pool = connect(url, kind, access).await.map_err(broken)?;
        let file = url.file().map(|path| (path.clone(), file_at(&path)));
        let database = Self { pool, kind, place, stream: stream.to_owned(), file };
        if access == Access::Write {
            schema::make(&database, stream).await.map_err(broken)?;
        }
        database.check(stream).await?;
        Ok(database)
    }

    async fn check(&self, stream: &str) -> Result<(), HistoryError> {
        let place = || self.place.clone();
        let found = match schema::meta(self, "schema").await {
            Ok(found) => found.unwrap_or_default(),
            // A file that holds nothing yet, or another program's.
            Err(sqlx::Error::Database(error)) if error.message().contains("herald_history_meta") => "none".to_owned(),
            Err(error) => return Err(self.broken(error)),
        };
        if found != schema::VERSION.to_string() {
            return Err(HistoryError::OtherSchema { place: place(), found, known: schema::VERSION });
        }
        let found = schema::meta(self, "stream").await.map_err(|error| self.broken(error))?.unwrap_or_default();
        match found == stream {
            true => Ok(()),
            false => Err(HistoryError::OtherStream { place: place(), found, own: stream.to_owned() }),
        }
    }

    /// Makes it the history of the log with this id, if it is of none yet.
    pub async fn adopt(&self, log: &str) -> Result<(), HistoryError> {
        schema::keep(self, LOG, log).await.map_err(|error| self.broken(error))?;
        self.check_log(log).await
    }

    /// An error if it is the history of another log than the one with this id.
    pub async fn check_log(&self, log: &str) -> Result<(), HistoryError> {
        let found = schema::meta(self, LOG).await.map_err(|error| self.broken(error))?;
        match found.is_none_or(|found| found == log) {
            true => Ok(()),
            false => Err(HistoryError::OtherRedis { place: self.place.clone() }),
        }
    }

    /// The names under which it keeps how far a stream's log and its events were read: those of a part end as its own name does.
    pub(super) fn book(&self, stream: &str) -> Book {
        let part = stream.strip_prefix(&self.stream).unwrap_or_default();
        Book { log: format!("{ATTEMPTS}{part}"), source: format!("{EVENTS}{part}") }
    }

    /// The stream whose log has this name; none if it is no log's.
    pub(super) fn stream_of(&self, log: &str) -> Option<String> {
        log.strip_prefix(ATTEMPTS).map(|part| format!("{}{part}", self.stream))
    }

    /// Where it is, without a password.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// An error once its path leads to another file, or to none: what is written then, nobody would find.
    pub fn check_place(&self) -> Result<(), HistoryError> {
        match &self.file {
            Some((path, opened)) if file_at(path) != *opened => Err(HistoryError::Moved { place: self.place.clone() }),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn broken(&self, error: sqlx::Error) -> HistoryError {
        HistoryError::Broken { place: self.place.clone(), error }
    }

    /// A file that is not at its place any more gets what its log still holds first: SQLite leaves that behind at the old path, where
    /// another file would take it for its own.
    pub async fn close(self) {
        if self.check_place().is_err() {
            let _ = sqlx::raw_sql(LEAVE_FILE).execute(&self.pool).await;
        }
        self.pool.close().await;
    }
}

async fn connect(url: &HistoryUrl, kind: Kind, access: Access) -> Result<AnyPool, sqlx::Error> {
    static DRIVERS: Once = Once::new();
    DRIVERS.call_once(sqlx::any::install_default_drivers);
    let text = match (kind, access) {
        (Kind::Sqlite, Access::Read) => format!("{}?mode=ro", url.reveal()),
        (Kind::Sqlite, Access::Write) => format!("{}?mode=rwc", url.reveal()),
        (Kind::Postgres, _) => url.reveal().to_owned(),
    };
    let options = AnyConnectOptions::from_str(&text)?.disable_statement_logging();
    // A pool would try again what can never work, such as a file that is no database, and not say why.
    let first = async {
        let mut first = AnyConnection::connect_with(&options).await?;
        prepare(&mut first, kind, access).await?;
        first.close().await
    };
    timeout(PATIENCE, first).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
    // Neither is ever too old: what looks for those counts the idle ones, and where one is taken as it is put back that count may wrap around
    // (sqlx 0.9), so that it never ends. One that has broken is found when it is taken.
    let pool = AnyPoolOptions::new().max_connections(2).acquire_timeout(PATIENCE);
    let pool = pool.idle_timeout(None).max_lifetime(None);
    let pool = pool.after_connect(move |connection, _| Box::pin(prepare(connection, kind, access)));
    pool.connect_with(options).await
}

async fn prepare(connection: &mut AnyConnection, kind: Kind, access: Access) -> Result<(), sqlx::Error> {
    let statements: &[&str] = match (kind, access) {
        (Kind::Sqlite, Access::Read) => &[OF_FILE],
        (Kind::Sqlite, Access::Write) => &[OF_FILE, OF_FILE_WRITER],
        // A question that would take longer is one that nobody waits for.
        (Kind::Postgres, _) => &["SET statement_timeout = '60s'; SET lock_timeout = '10s'"],
    };
    for statement in statements {
        sqlx::raw_sql(*statement).execute(&mut *connection).await?;
    }
    Ok(())
}

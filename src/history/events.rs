//! The events themselves, byte for byte, for `history.bodies`: what was skipped or is lost to a merchant can be sent again.
//! A day has a table of its own here too, by the time at which the event was read.

use bytes::Bytes;
use sqlx::{Any, AnyConnection, AssertSqlSafe, Row as _, Transaction, any::AnyRow};

use super::{
    DAY_MS,
    database::{Book, Database, HistoryError, Kind},
    day_of,
    reader::{Gap, Reader},
    schema::{self, number, unsigned},
    writer::{EVENTS_DROPPED, Missed, STREAM_LOST, Writer, note_missed},
};
use crate::{
    facts::{
        event::EventType,
        id::{AccountId, EntryId, EventId, IntentId},
    },
    store::{entries::StreamEntry, queries::RawEvent},
};

/// Rows of one statement: each may have 64 KiB.
const ROWS: usize = 64;

const COLUMNS: [&str; 10] =
    ["entry_ms", "entry_seq", "read_ms", "account", "intent", "event", "event_type", "number", "traceparent", "body"];

/// The most gaps that an answer names.
const MAX_GAPS: usize = 100;

/// How a number that an event does not have is written.
const NO_NUMBER: i64 = -1;

/// An event as it was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptEvent {
    pub entry: EntryId,
    /// When the history read it, ms since 1970: a moment after it was accepted, unless it lagged.
    pub read_ms: u64,
    pub account: AccountId,
    pub intent: IntentId,
    pub event: EventId,
    pub event_type: String,
    /// Among its account's.
    pub number: Option<u64>,
    pub traceparent: String,
    pub body: Vec<u8>,
}

/// Which events; all that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventsWanted {
    pub account: Option<AccountId>,
    pub intent: Option<IntentId>,
    pub event: Option<EventId>,
    pub from_ms: Option<u64>,
    /// Not after this moment.
    pub until_ms: Option<u64>,
    /// One of these; any if there are none.
    pub types: Vec<EventType>,
}

/// What an answer is about that must stay the same, whatever is read later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frozen {
    pub count: u64,
    pub until_ms: u64,
    /// Of those of the last moment, the last.
    pub last: EntryId,
}

/// An event's place among all: they come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct EventPlace {
    pub day: u64,
    pub entry: EntryId,
}

impl EventPlace {
    /// No event behind it was read before this, ms since 1970.
    pub fn since_ms(self) -> u64 {
        let begins_ms = self.day.saturating_mul(DAY_MS);
        self.entry.ms.clamp(begins_ms, begins_ms.saturating_add(DAY_MS))
    }
}

impl KeptEvent {
    /// As it lay in the stream.
    pub fn into_entry(self) -> StreamEntry {
        let mut fields = vec![(Bytes::from("event"), Bytes::from(self.body))];
        if let Some(number) = self.number {
            fields.push((Bytes::from("account-sequence"), Bytes::from(number.to_string())));
        }
        if !self.traceparent.is_empty() {
            fields.push((Bytes::from("traceparent"), Bytes::from(self.traceparent)));
        }
        StreamEntry { id: self.entry, fields }
    }

    pub fn into_raw(self) -> RawEvent {
        let Self { entry, number, traceparent, body, .. } = self;
        RawEvent { entry, body: body.into(), number, traceparent }
    }

    pub fn place(&self) -> EventPlace {
        EventPlace { day: day_of(self.read_ms), entry: self.entry }
    }
}

/// How far the stream has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub entry: EntryId,
    /// How many entries were ever added to the stream up to that one.
    pub added: u64,
    pub read_ms: u64,
}

impl Writer {
    /// None before the first entry was read.
    pub async fn source(&self, book: &Book) -> Result<Option<Source>, HistoryError> {
        let read = async || source(&mut *self.database.pool.acquire().await?, book).await;
        read().await.map_err(|error| self.database.broken(error))
    }

    /// Writes what follows `from`. False: somebody else has written on meanwhile, and nothing was changed.
    pub async fn write_events(
        &self,
        book: &Book,
        from: Option<Source>,
        to: Source,
        events: &[KeptEvent],
        missed: Option<&Missed>,
    ) -> Result<bool, HistoryError> {
        let written = self.try_write_events(book, from, to, events, missed).await;
        written.map_err(|error| self.database.broken(error))
    }

    async fn try_write_events(
        &self,
        book: &Book,
        from: Option<Source>,
        to: Source,
        events: &[KeptEvent],
        missed: Option<&Missed>,
    ) -> Result<bool, sqlx::Error> {
        let mut transaction = schema::begin(&self.database).await?;
        // First, because it keeps others from writing.
        if !move_on(&mut transaction, book, from, to).await? {
            return Ok(false);
        }
        if let Some(missed) = missed {
            note_missed(&mut transaction, missed, to.read_ms).await?;
        }
        // All of a page were read at one time.
        let day = day_of(to.read_ms);
        if !events.is_empty() {
            make_day(self.database.kind, &mut transaction, day).await?;
        }
        for events in schema::parts(events, ROWS) {
            insert(self.database.kind, &mut transaction, day, events).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Drops the oldest day of events that is over, and returns it.
    pub async fn drop_oldest_events(&self, keep_days: u64, now_ms: u64) -> Result<Option<u64>, HistoryError> {
        let first = (day_of(now_ms) + 1).saturating_sub(keep_days);
        self.try_drop_events(first).await.map_err(|error| self.database.broken(error))
    }

    async fn try_drop_events(&self, first: u64) -> Result<Option<u64>, sqlx::Error> {
        let mut transaction = schema::begin(&self.database).await?;
        let Some(day) = days(&mut transaction).await?.into_iter().next().filter(|day| *day < first) else {
            return Ok(None);
        };
        if self.database.kind == Kind::Postgres {
            sqlx::query("SET LOCAL lock_timeout = '2s'").execute(&mut *transaction).await?;
        }
        let drop = format!("DROP TABLE IF EXISTS {}", table_of(day));
        sqlx::query(AssertSqlSafe(drop)).execute(&mut *transaction).await?;
        let forget = "DELETE FROM herald_history_body_days WHERE day = $1";
        sqlx::query(forget).bind(number(day)).execute(&mut *transaction).await?;
        let begins = "UPDATE herald_history_source SET begins_ms = $1 WHERE begins_ms < $2";
        let begins_ms = number((day + 1) * DAY_MS);
        sqlx::query(begins).bind(begins_ms).bind(begins_ms).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Some(day))
    }
}

async fn move_on(
    transaction: &mut Transaction<'static, Any>,
    book: &Book,
    from: Option<Source>,
    to: Source,
) -> Result<bool, sqlx::Error> {
    let written = match from {
        None => {
            let begin = "INSERT INTO herald_history_source (stream, entry_ms, entry_seq, added, read_ms, begins_ms) \
                         VALUES ($5, $1, $2, $3, $4, $4) ON CONFLICT DO NOTHING";
            bind_source(sqlx::query(begin), to).bind(book.source.clone())
        }
        Some(from) => {
            let update = "UPDATE herald_history_source SET entry_ms = $1, entry_seq = $2, added = $3, read_ms = $4 \
                          WHERE stream = $5 AND entry_ms = $6 AND entry_seq = $7 AND added = $8";
            let update = bind_source(sqlx::query(update), to).bind(book.source.clone());
            update.bind(number(from.entry.ms)).bind(number(from.entry.seq)).bind(number(from.added))
        }
    };
    Ok(written.execute(&mut **transaction).await?.rows_affected() == 1)
}

type Query<'q> = sqlx::query::Query<'q, Any, sqlx::any::AnyArguments>;

fn bind_source(query: Query<'_>, to: Source) -> Query<'_> {
    query.bind(number(to.entry.ms)).bind(number(to.entry.seq)).bind(number(to.added)).bind(number(to.read_ms))
}

async fn make_day(kind: Kind, connection: &mut AnyConnection, day: u64) -> Result<(), sqlx::Error> {
    let table = table_of(day);
    make_table(kind, connection, &table).await?;
    index(connection, &table).await?;
    let known = "INSERT INTO herald_history_body_days (day) VALUES ($1) ON CONFLICT DO NOTHING";
    sqlx::query(known).bind(number(day)).execute(connection).await.map(drop)
}

/// Two parts of a stream may give out the same id, but an account's events are in one of them.
async fn make_table(kind: Kind, connection: &mut AnyConnection, table: &str) -> Result<(), sqlx::Error> {
    let bytes = if kind == Kind::Sqlite { "BLOB" } else { "BYTEA" };
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {table} (entry_ms BIGINT NOT NULL, entry_seq BIGINT NOT NULL, read_ms BIGINT NOT NULL, \
         account TEXT NOT NULL, intent TEXT NOT NULL, event TEXT NOT NULL, event_type TEXT NOT NULL, number BIGINT NOT NULL, \
         traceparent TEXT NOT NULL, body {bytes} NOT NULL, PRIMARY KEY (entry_ms, entry_seq, account))"
    );
    sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await.map(drop)
}

async fn index(connection: &mut AnyConnection, table: &str) -> Result<(), sqlx::Error> {
    for (name, columns) in [("account", "account, entry_ms, entry_seq"), ("intent", "intent"), ("event", "event")] {
        let sql = format!("CREATE INDEX IF NOT EXISTS {table}_{name} ON {table} ({columns})");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// A table of an older Herald, which knew of one stream only, has the account in its key from now on; one that nobody writes to any more
/// stays as it is.
pub(super) async fn tell_accounts_apart(
    connection: &mut AnyConnection,
    kind: Kind,
    today: u64,
) -> Result<(), sqlx::Error> {
    // The day is that of Redis' clock.
    for day in days(connection).await?.into_iter().filter(|day| day + 1 >= today) {
        let table = table_of(day);
        let columns = match kind {
            Kind::Sqlite => format!("SELECT COUNT(*) FROM pragma_table_info('{table}') WHERE pk > 0"),
            Kind::Postgres => format!(
                "SELECT COUNT(*) FROM information_schema.key_column_usage \
                 WHERE table_schema = current_schema() AND table_name = '{table}'"
            ),
        };
        let row = sqlx::query(AssertSqlSafe(columns)).fetch_one(&mut *connection).await?;
        if row.try_get::<i64, usize>(0)? != 2 {
            continue;
        }
        if kind == Kind::Postgres {
            let sql = format!(
                "ALTER TABLE {table} DROP CONSTRAINT {table}_pkey, ADD PRIMARY KEY (entry_ms, entry_seq, account)"
            );
            sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?;
            continue;
        }
        let (new, names) = (format!("{table}_new"), COLUMNS.join(", "));
        make_table(kind, connection, &new).await?;
        for sql in [
            format!("INSERT INTO {new} ({names}) SELECT {names} FROM {table}"),
            format!("DROP TABLE {table}"),
            format!("ALTER TABLE {new} RENAME TO {table}"),
        ] {
            sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await?;
        }
        index(connection, &table).await?;
    }
    Ok(())
}

async fn insert(kind: Kind, connection: &mut AnyConnection, day: u64, events: &[KeptEvent]) -> Result<(), sqlx::Error> {
    let sql = schema::insertion(kind, &table_of(day), &COLUMNS, events.len());
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for event in events {
        query = query.bind(number(event.entry.ms)).bind(number(event.entry.seq)).bind(number(event.read_ms));
        query = query.bind(event.account.to_string()).bind(event.intent.to_string()).bind(event.event.to_string());
        query = query.bind(event.event_type.clone()).bind(event.number.map_or(NO_NUMBER, number));
        query = query.bind(event.traceparent.clone()).bind(event.body.clone());
    }
    query.execute(connection).await.map(drop)
}

/// The days that have a table, the oldest first.
async fn days(connection: &mut AnyConnection) -> Result<Vec<u64>, sqlx::Error> {
    let rows = sqlx::query("SELECT day FROM herald_history_body_days ORDER BY day").fetch_all(connection).await?;
    rows.iter().map(|row| Ok(unsigned(row.try_get(0)?))).collect()
}

pub(super) async fn tables(connection: &mut AnyConnection) -> Result<Vec<String>, sqlx::Error> {
    Ok(days(connection).await?.into_iter().map(table_of).collect())
}

fn table_of(day: u64) -> String {
    schema::table_of(day).replace("herald_history_", "herald_history_bodies_")
}

impl Reader {
    /// Up to `limit` of these events after a place, in their order.
    pub async fn events(
        &self,
        wanted: &EventsWanted,
        after: EventPlace,
        limit: usize,
    ) -> Result<Vec<KeptEvent>, HistoryError> {
        self.try_events(wanted, after, limit).await.map_err(|error| self.database.broken(error))
    }

    async fn try_events(
        &self,
        wanted: &EventsWanted,
        after: EventPlace,
        limit: usize,
    ) -> Result<Vec<KeptEvent>, sqlx::Error> {
        let mut transaction = begin_reading(&self.database).await?;
        let mut found = Vec::new();
        for day in days_of(&mut transaction, wanted, after.day).await? {
            let past = if day == after.day { after.entry } else { EntryId::ZERO };
            let question = Question::new(wanted, past);
            let sql = format!(
                "SELECT {} FROM {} WHERE {} ORDER BY entry_ms, entry_seq LIMIT {}",
                COLUMNS.join(", "),
                table_of(day),
                question.conditions(),
                limit - found.len()
            );
            let rows = question.bind(sqlx::query(AssertSqlSafe(sql))).fetch_all(&mut *transaction).await?;
            found.extend(rows.iter().filter_map(|row| kept(row).transpose()).collect::<Result<Vec<_>, _>>()?);
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }

    /// The newest of these events, the oldest of them first, and whether there are older ones.
    pub async fn latest_events(
        &self,
        wanted: &EventsWanted,
        before_ms: u64,
        limit: usize,
    ) -> Result<(Vec<KeptEvent>, bool), HistoryError> {
        self.try_latest_events(wanted, before_ms, limit).await.map_err(|error| self.database.broken(error))
    }

    async fn try_latest_events(
        &self,
        wanted: &EventsWanted,
        before_ms: u64,
        limit: usize,
    ) -> Result<(Vec<KeptEvent>, bool), sqlx::Error> {
        let mut transaction = begin_reading(&self.database).await?;
        let mut found = Vec::new();
        for day in days_of(&mut transaction, wanted, 0).await?.into_iter().rev() {
            // One more than is wanted tells whether there is more.
            let left = limit + 1 - found.len();
            let question = Question::new(wanted, EntryId::ZERO);
            let sql = format!(
                "SELECT {} FROM {} WHERE {} AND entry_ms < {} ORDER BY entry_ms DESC, entry_seq DESC LIMIT {left}",
                COLUMNS.join(", "),
                table_of(day),
                question.conditions(),
                number(before_ms)
            );
            let rows = question.bind(sqlx::query(AssertSqlSafe(sql))).fetch_all(&mut *transaction).await?;
            found.extend(rows.iter().filter_map(|row| kept(row).transpose()).collect::<Result<Vec<_>, _>>()?);
            if found.len() > limit {
                break;
            }
        }
        let has_older = found.len() > limit;
        found.truncate(limit);
        found.reverse();
        Ok((found, has_older))
    }

    /// How many there are now, and up to where that is all; None while nothing was read. `path` are the streams that they came through,
    /// the outermost first.
    pub async fn freeze_events(&self, wanted: &EventsWanted, path: &[String]) -> Result<Option<Frozen>, HistoryError> {
        self.try_freeze_events(wanted, path).await.map_err(|error| self.database.broken(error))
    }

    async fn try_freeze_events(&self, wanted: &EventsWanted, path: &[String]) -> Result<Option<Frozen>, sqlx::Error> {
        let mut transaction = begin_reading(&self.database).await?;
        let Some(source) = self.source_of(&mut transaction, path).await? else { return Ok(None) };
        let (until_ms, last) = match wanted.until_ms {
            Some(until_ms) if until_ms < source.read_ms => (until_ms, EntryId::MAX),
            _ => (source.read_ms, source.entry),
        };
        let wanted = EventsWanted { until_ms: Some(until_ms), ..wanted.clone() };
        let count = count_events(&mut transaction, &wanted).await?;
        Ok(Some(Frozen { count, until_ms, last }))
    }

    /// How far the innermost stream of a path has been read of which anything was: what is before that has its events from the time
    /// before there were parts.
    async fn source_of(&self, connection: &mut AnyConnection, path: &[String]) -> Result<Option<Source>, sqlx::Error> {
        for stream in path.iter().rev() {
            if let Some(source) = source(connection, &self.database.book(stream)).await? {
                return Ok(Some(source));
            }
        }
        Ok(None)
    }

    /// Up to where those events were read that come through these streams; None before the first.
    pub async fn events_read(&self, path: &[String]) -> Result<Option<EventPlace>, HistoryError> {
        let read = async || self.source_of(&mut *self.database.pool.acquire().await?, path).await;
        let source = read().await.map_err(|error| self.database.broken(error))?;
        Ok(source.map(|source| EventPlace { day: day_of(source.read_ms), entry: source.entry }))
    }

    /// Times of which events are missing, the oldest first: those that end since then and begin before `until_ms`.
    pub async fn event_gaps(&self, since_ms: u64, until_ms: Option<u64>) -> Result<Vec<Gap>, HistoryError> {
        self.try_event_gaps(since_ms, until_ms).await.map_err(|error| self.database.broken(error))
    }

    async fn try_event_gaps(&self, since_ms: u64, until_ms: Option<u64>) -> Result<Vec<Gap>, sqlx::Error> {
        let question = format!(
            "SELECT from_ms, until_ms, lines, why FROM herald_history_gaps WHERE why IN ($1, $2) AND until_ms >= $3 \
             AND from_ms < $4 ORDER BY from_ms LIMIT {MAX_GAPS}"
        );
        let question = sqlx::query(AssertSqlSafe(question)).bind(EVENTS_DROPPED).bind(STREAM_LOST);
        let question = question.bind(number(since_ms)).bind(number(until_ms.unwrap_or(u64::MAX)));
        let rows = question.fetch_all(&self.database.pool).await?;
        let gap = |row: &AnyRow| {
            let (from_ms, until_ms) = (unsigned(row.try_get(0)?), unsigned(row.try_get(1)?));
            Ok(Gap { from_ms, until_ms, lines: unsigned(row.try_get(2)?), why: row.try_get(3)? })
        };
        rows.iter().map(gap).collect()
    }

    /// Since when events are kept, ms since 1970; None while there are none.
    pub async fn events_begin_ms(&self) -> Result<Option<u64>, HistoryError> {
        let read = async || {
            let mut transaction = begin_reading(&self.database).await?;
            let Some(day) = days(&mut transaction).await?.into_iter().next() else { return Ok(None) };
            // A part has events only since there is that part.
            let question = "SELECT MIN(begins_ms) FROM herald_history_source";
            let begins = sqlx::query(question).fetch_one(&mut *transaction).await?;
            let begins_ms = begins.try_get::<Option<i64>, usize>(0)?.map_or(0, unsigned);
            Ok(Some(begins_ms.max(day * DAY_MS)))
        };
        read().await.map_err(|error| self.database.broken(error))
    }
}

async fn count_events(connection: &mut AnyConnection, wanted: &EventsWanted) -> Result<u64, sqlx::Error> {
    let mut count = 0;
    for day in days_of(connection, wanted, 0).await? {
        let question = Question::new(wanted, EntryId::ZERO);
        let sql = format!("SELECT COUNT(*) FROM {} WHERE {}", table_of(day), question.conditions());
        let row = question.bind(sqlx::query(AssertSqlSafe(sql))).fetch_one(&mut *connection).await?;
        count += unsigned(row.try_get(0)?);
    }
    Ok(count)
}

async fn source(connection: &mut AnyConnection, book: &Book) -> Result<Option<Source>, sqlx::Error> {
    let question = "SELECT entry_ms, entry_seq, added, read_ms FROM herald_history_source WHERE stream = $1";
    let Some(row) = sqlx::query(question).bind(book.source.clone()).fetch_optional(connection).await? else {
        return Ok(None);
    };
    let entry = EntryId { ms: unsigned(row.try_get(0)?), seq: unsigned(row.try_get(1)?) };
    Ok(Some(Source { entry, added: unsigned(row.try_get(2)?), read_ms: unsigned(row.try_get(3)?) }))
}

async fn begin_reading(database: &Database) -> Result<Transaction<'static, Any>, sqlx::Error> {
    // One state throughout: a day that is dropped meanwhile is still there.
    schema::begin(database).await
}

async fn days_of(connection: &mut AnyConnection, wanted: &EventsWanted, from: u64) -> Result<Vec<u64>, sqlx::Error> {
    let first = from.max(wanted.from_ms.map_or(0, day_of));
    Ok(days(connection).await?.into_iter().filter(|day| *day >= first).collect())
}

/// What a day's table is asked.
struct Question<'a> {
    wanted: &'a EventsWanted,
    after: EntryId,
}

impl<'a> Question<'a> {
    fn new(wanted: &'a EventsWanted, after: EntryId) -> Self {
        Self { wanted, after }
    }

    fn texts(&self) -> impl Iterator<Item = (&'static str, String)> {
        let texts = [
            ("event", self.wanted.event.as_ref().map(ToString::to_string)),
            ("intent", self.wanted.intent.as_ref().map(ToString::to_string)),
            ("account", self.wanted.account.as_ref().map(ToString::to_string)),
        ];
        texts.into_iter().filter_map(|(column, text)| Some((column, text?)))
    }

    fn conditions(&self) -> String {
        // The first that is given tells most, and only it may use its index.
        let mut texts: Vec<String> = self
            .texts()
            .enumerate()
            .map(|(nth, (column, _))| match nth {
                0 => format!("{column} = ${}", nth + 6),
                _ => format!("{column} || '' = ${}", nth + 6),
            })
            .collect();
        if !self.wanted.types.is_empty() {
            let first = texts.len() + 6;
            let values: Vec<String> = (first..first + self.wanted.types.len()).map(|nth| format!("${nth}")).collect();
            texts.push(format!("event_type IN ({})", values.join(", ")));
        }
        let place = "(entry_ms > $1 OR (entry_ms = $2 AND entry_seq > $3)) AND read_ms >= $4 AND read_ms <= $5";
        std::iter::once(place.to_owned()).chain(texts).collect::<Vec<_>>().join(" AND ")
    }

    fn bind<'q>(&self, query: Query<'q>) -> Query<'q> {
        let (ms, seq) = (number(self.after.ms), number(self.after.seq));
        let query = query.bind(ms).bind(ms).bind(seq);
        let query = query.bind(number(self.wanted.from_ms.unwrap_or(0)));
        let query = query.bind(number(self.wanted.until_ms.unwrap_or(u64::MAX)));
        let query = self.texts().fold(query, |query, (_, text)| query.bind(text));
        self.wanted.types.iter().fold(query, |query, of| query.bind(of.as_str().to_owned()))
    }
}

/// None for a row that is none of Herald's.
fn kept(row: &AnyRow) -> Result<Option<KeptEvent>, sqlx::Error> {
    let text = |at: usize| row.try_get::<String, usize>(at);
    let count = |at: usize| row.try_get::<i64, usize>(at).map(unsigned);
    let (account, intent, event) = (AccountId::new(&text(3)?), IntentId::new(&text(4)?), EventId::new(&text(5)?));
    let (Ok(account), Ok(intent), Ok(event)) = (account, intent, event) else { return Ok(None) };
    let numbered: i64 = row.try_get(7)?;
    Ok(Some(KeptEvent {
        entry: EntryId { ms: count(0)?, seq: count(1)? },
        read_ms: count(2)?,
        account,
        intent,
        event,
        event_type: text(6)?,
        number: u64::try_from(numbered).ok(),
        traceparent: text(8)?,
        body: row.try_get(9)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Access, writer::LOG_DROPPED};

    /// A file that an older Herald wrote to today goes on, and from then on holds two events of one id.
    #[tokio::test]
    async fn events_of_two_accounts_with_one_id_are_kept_in_a_file_of_an_older_herald_too() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("history.db").display()).parse().unwrap();
        let open = async || Database::open(&url, "payment-intents", Access::Write).await.unwrap();
        let read_ms = crate::clock::wall_ms();
        let table = table_of(day_of(read_ms));
        let event = |n: u64, account: &str| KeptEvent {
            entry: EntryId { ms: read_ms, seq: n },
            read_ms,
            account: AccountId::new(account).unwrap(),
            intent: IntentId::new("pi_1").unwrap(),
            event: EventId::new(&format!("evt_{account}_{n}")).unwrap(),
            event_type: "payment_intent.created".to_owned(),
            number: None,
            traceparent: String::new(),
            body: b"{}".to_vec(),
        };
        let old = open().await;
        for sql in [
            format!(
                "CREATE TABLE {table} (entry_ms BIGINT NOT NULL, entry_seq BIGINT NOT NULL, read_ms BIGINT NOT NULL, \
                 account TEXT NOT NULL, intent TEXT NOT NULL, event TEXT NOT NULL, event_type TEXT NOT NULL, \
                 number BIGINT NOT NULL, traceparent TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (entry_ms, entry_seq))"
            ),
            format!("CREATE INDEX {table}_account ON {table} (account, entry_ms, entry_seq)"),
            format!("INSERT INTO herald_history_body_days (day) VALUES ({})", day_of(read_ms)),
        ] {
            sqlx::query(AssertSqlSafe(sql)).execute(&old.pool).await.unwrap();
        }
        let book = old.book("payment-intents");
        let to = |n| Source { entry: EntryId { ms: read_ms, seq: n }, added: n, read_ms };
        assert!(Writer::new(old.clone()).write_events(&book, None, to(1), &[event(1, "acc_a")], None).await.unwrap());
        old.close().await;
        let database = open().await;
        let part = database.book("payment-intents:1");
        let (writer, reader) = (Writer::new(database.clone()), Reader::new(database));
        assert!(writer.write_events(&part, None, to(1), &[event(1, "acc_b"), event(1, "acc_a")], None).await.unwrap());
        let kept = reader.events(&EventsWanted::default(), EventPlace::default(), 10).await.unwrap();
        let mut names: Vec<&str> = kept.iter().map(|event| event.event.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["evt_acc_a_1", "evt_acc_b_1"], "each once");
    }

    #[tokio::test]
    async fn the_gaps_of_events_are_those_of_the_stream_and_of_the_time_that_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("history.db").display()).parse().unwrap();
        let database = Database::open(&url, "payment-intents", Access::Write).await.unwrap();
        let (writer, reader) = (Writer::new(database.clone()), Reader::new(database));
        let (book, path) = (writer.database.book("payment-intents"), ["payment-intents".to_owned()]);
        assert_eq!(reader.events_read(&path).await.unwrap(), None);
        let mut from = None;
        for (n, why) in [EVENTS_DROPPED, LOG_DROPPED, STREAM_LOST].into_iter().enumerate() {
            let read_ms = (n as u64 + 1) * 1_000;
            let to = Source { entry: EntryId { ms: read_ms, seq: 0 }, added: n as u64, read_ms };
            let missed = Missed { from_ms: read_ms - 500, until_ms: read_ms, lines: 7, why };
            assert!(writer.write_events(&book, from, to, &[], Some(&missed)).await.unwrap());
            from = Some(to);
        }
        let gaps = async |since_ms, until_ms| {
            let gaps = reader.event_gaps(since_ms, until_ms).await.unwrap();
            gaps.iter().map(|gap| (gap.from_ms, gap.lines)).collect::<Vec<_>>()
        };
        assert_eq!(gaps(0, None).await, [(500, 7), (2_500, 7)]);
        assert_eq!(gaps(0, Some(2_500)).await, [(500, 7)]);
        assert_eq!(gaps(1_001, None).await, [(2_500, 7)]);
        assert_eq!(gaps(3_001, None).await, []);
        let read = EventPlace { day: 0, entry: EntryId { ms: 3_000, seq: 0 } };
        assert_eq!((reader.events_read(&path).await.unwrap(), read.since_ms()), (Some(read), 3_000));
    }
}

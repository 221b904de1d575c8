//! What became of each delivery, for longer than the log of attempts in Redis tells: every attempt and every end, by intent,
//! event, endpoint, account and time. Lives in SQLite (one file on this machine) or PostgreSQL.
//!
//! The worker knows nothing of it. A **follower** reads the log behind the worker and writes batches; how far it is stands in
//! the database, in the same transaction as the rows, so a crash loses nothing and doubles nothing. A **reader** answers, and
//! says how far back it can look. What the log lost before it was read is a **gap**: written down and shown as one.
//!
//! Nothing here ever holds up a delivery: where the database is away, full or broken, the log in Redis waits for it, up to a
//! bound, and then loses its oldest lines as it would without a history.

mod asked;
pub mod database;
pub mod erase;
mod events;
pub mod follower;
pub mod plan;
pub mod reader;
mod row;
mod schema;
mod writer;

pub use self::{
    asked::History,
    database::{Access, Database, HistoryError},
    events::{EventPlace, EventsWanted, Frozen, KeptEvent},
    reader::{Gap, Horizon, Reader, Told, Unowed, Wanted},
    schema::VERSION as HISTORY_SCHEMA,
    writer::{LOG_DROPPED, LOG_LOST},
};

const DAY_MS: u64 = 86_400_000;

/// The day that a time belongs to, counted from 1970, in UTC.
fn day_of(at_ms: u64) -> u64 {
    at_ms / DAY_MS
}

//! All of Redis: the only folder that names the client library.
//!
//! Words used here:
//!
//! - A **key** is built in [`keys`] and nowhere else. The stream `S` and its **companion keys** share one hash slot.
//! - A **script** is one state change (or one consistent look) in Lua, in `scripts/`, each with its KEYS, ARGV and answer
//!   at its top. It checks the types of its keys and all its arguments before its first write, and answers with words:
//!   `ok`, or why not. Redis' own errors stay errors.
//! - A **connection** has a [`connection::Purpose`], which fixes how long it waits for an answer. Nothing is retried
//!   inside: an answer that did not come may belong to a script that ran, or is still going to run.
//! - A [`error::StoreError`] says by its type what a caller can do: wait, make room, ask an operator.
//! - An **entry** lies in the stream; a **record** keeps an unfinished delivery; a **term** is one uninterrupted spell
//!   of ownership, and its value fences every script of a partition. [`protocol`] lists the calls, [`model`] says what
//!   they mean, [`partition`] runs them on Redis.
//! - The **registry** holds the endpoints. Each change gives it a larger **version** and an entry in its **change feed**,
//!   by which followers keep up. Its id is made once and outlives a restore.
//!
//! Times are milliseconds: spans, or moments since 1970 by Redis' clock (so are `now` and the marks of [`model`]). Only
//! what was noted elsewhere is by another clock: the `at_ms` of a mark, an attempt or an export is by that of its
//! machine.
//!
//! Nothing here decides what becomes of a delivery; the scripts only keep what they are told, and only from an owner.

pub mod acl;
pub mod api_keys;
pub mod audit;
mod backlog;
pub mod batches;
pub mod connection;
#[doc(hidden)]
pub mod decode;
pub mod disturb;
pub mod encryption;
pub mod entries;
pub mod error;
pub mod health;
pub mod intents;
pub mod issues;
pub mod keys;
pub mod model;
pub mod moving;
pub mod nodes;
pub mod operations;
pub mod partition;
pub mod partitions;
pub mod pool;
pub mod protocol;
pub mod publish;
pub mod queries;
pub mod registry;
pub mod requests;
pub mod routing;
mod sentinel;
pub mod tokens;
mod topology;
pub mod wakeup;
pub mod watch;
pub mod workers;

//! The audit log: who did what to this installation, from where and why, and how it ended. [`Audit::audited`] is the way in: it
//! writes that an act begins, has it done, and writes how it ended, so that nobody can forget the end. An act whose process died
//! has a beginning without an end. Nothing here takes an entry out; Redis trims by number and age when one is added.

use std::{collections::HashMap, sync::LazyLock};

use redis::{
    Cmd,
    streams::{StreamId, StreamRangeReply},
};
use serde::de::DeserializeOwned;
use tracing::warn;

use super::{
    connection::{Purpose, Redis, Script, SharedConnection},
    error::StoreError,
    keys::{AuditKeys, RegistryKeys},
    registry::RegistryError,
};
use crate::facts::{
    audit::{Act, Begun, Ended, Origin, Surface, Tally, Verdict},
    id::EntryId,
};

/// Entries of one look: a millisecond of Redis' time.
const PAGE: usize = 1_000;

static ADD: LazyLock<Script> =
    LazyLock::new(|| Script::new("audit", concat!("#!lua\n", include_str!("scripts/audit.lua"))));

/// Whoever makes room, or stops something, must not be held up by a full Redis; and what has begun must be able to end.
static ADD_TO_FULL: LazyLock<Script> = LazyLock::new(|| {
    Script::new("audit on a full Redis", concat!("#!lua flags=allow-oom\n", include_str!("scripts/audit.lua")))
});

/// How much is kept. Redis trims roughly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Of entries: an act has two.
    pub max_count: u64,
    pub max_age_ms: u64,
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nothing was done, because it cannot be written to the audit log: {0}")]
pub struct AuditError(#[source] pub StoreError);

/// What an error says of the act that it ended.
pub trait Judged {
    fn verdict(&self) -> Verdict;
    fn told(&self) -> String;
}

impl Judged for RegistryError {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Store(_) | Self::Damaged(_) | Self::Unreadable(_) | Self::Locked { .. } => Verdict::Failed,
            _ => Verdict::Refused,
        }
    }

    fn told(&self) -> String {
        self.to_string()
    }
}

impl From<AuditError> for RegistryError {
    fn from(error: AuditError) -> Self {
        Self::Store(error.0)
    }
}

/// Writes the log, for one surface of one process. Clones share a connection.
#[derive(Clone)]
pub struct Audit {
    connection: SharedConnection,
    retention: Retention,
    origin: Origin,
}

impl Audit {
    pub fn new(redis: Redis, retention: Retention, origin: Origin) -> Self {
        Self {
            connection: SharedConnection::new(redis.at_home_in(RegistryKeys::slot()), Purpose::Other),
            retention,
            origin,
        }
    }

    pub fn act(&self, act: Act, by: &str, why: &str) -> Begun {
        Begun::new(act, by, why, self.origin.clone())
    }

    /// Has `work` done between two entries. Without the first one nothing is done, unless it is Herald's own work.
    pub async fn audited<T, E: Judged + From<AuditError>>(
        &self,
        begun: Begun,
        work: impl AsyncFnOnce(&mut Tally) -> Result<T, E>,
    ) -> Result<T, E> {
        let entry = self.begin(&begun).await.map_err(AuditError)?;
        let mut tally = Tally::default();
        let done = work(&mut tally).await;
        if let Err(error) = self.end(entry, done.as_ref().map(drop), tally).await {
            warn!(%error, "the end of an act is not in the audit log");
        }
        done
    }

    /// Writes that an act begins. What Herald does by itself protects others, so it is done although its user may not write here
    /// (there is no entry then, only a line in the log); but not while Redis is away.
    pub async fn begin(&self, begun: &Begun) -> Result<Option<EntryId>, StoreError> {
        let script = if begun.needs_room() { &ADD } else { &ADD_TO_FULL };
        match self.add(script, "began", &json(begun)).await {
            Ok(entry) => Ok(Some(entry)),
            Err(error @ StoreError::Unavailable { .. }) => Err(error),
            Err(error) if begun.origin.surface == Surface::Worker => {
                warn!(%error, "what Herald does by itself ({}) cannot be written to the audit log; it is done", begun.act);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes how it ended. It is done by then, so whoever did it has no more than to tell of a failure.
    pub async fn end<E: Judged>(
        &self,
        entry: Option<EntryId>,
        done: Result<(), &E>,
        tally: Tally,
    ) -> Result<(), StoreError> {
        let Some(entry) = entry else { return Ok(()) };
        let ended = match done {
            Ok(()) => Ended::new(entry, Verdict::Done, "", tally),
            Err(error) => Ended::new(entry, error.verdict(), &error.told(), tally),
        };
        self.add(&ADD_TO_FULL, "ended", &json(&ended)).await.map(drop)
    }

    async fn add(&self, script: &Script, what: &str, json: &str) -> Result<EntryId, StoreError> {
        let Retention { max_count, max_age_ms } = self.retention;
        let subject = "write to the audit log";
        let call = script.keys(&[AuditKeys::LOG]).arg(what).arg(json).arg(max_count).arg(max_age_ms);
        let id: String = self.connection.with(async |mut it| it.run(subject, &call).await).await?;
        id.parse().map_err(|error| StoreError::unexpected(subject, error))
    }

    /// The acts that are wanted, read from the newest entry backwards: an end stands behind its beginning.
    pub async fn search(&self, wanted: &Wanted, fits: impl Fn(&Begun) -> bool) -> Result<Found, StoreError> {
        let (mut found, mut ends) = (Found::default(), HashMap::new());
        let mut next = "+".to_owned();
        loop {
            let command = range(redis::cmd("XREVRANGE"), &next, "-");
            let page = self.read(&command).await?;
            let Some((last, _)) = page.last() else { break };
            next = format!("({last}");
            for (id, line) in page {
                if id.ms < wanted.from_ms {
                    return Ok(found.in_order());
                }
                found.begins_ms = Some(id.ms);
                match line {
                    Line::Ended(ended) => drop(ends.insert(ended.of, (id, ended))),
                    Line::Began(begun) => {
                        let ended = ends.remove(&id);
                        if !wanted.spans(id) || !fits(&begun) {
                            continue;
                        }
                        if found.acts.len() >= wanted.limit {
                            found.has_more = true;
                            return Ok(found.in_order());
                        }
                        found.acts.push(Logged { id, begun: *begun, ended });
                    }
                    Line::Unreadable => found.unreadable += 1,
                }
            }
        }
        Ok(found.in_order())
    }

    /// The act that began, or ended, with this entry.
    pub async fn find(&self, id: EntryId) -> Result<Option<Logged>, StoreError> {
        let (id, begun) = match self.entry(id).await? {
            Some(Line::Began(begun)) => (id, begun),
            Some(Line::Ended(ended)) => match self.entry(ended.of).await? {
                Some(Line::Began(begun)) => (ended.of, begun),
                _ => return Ok(None),
            },
            Some(Line::Unreadable) | None => return Ok(None),
        };
        let mut next = format!("({id}");
        loop {
            let page = self.read(&range(redis::cmd("XRANGE"), &next, "+")).await?;
            let Some((last, _)) = page.last() else { return Ok(Some(Logged { id, begun: *begun, ended: None })) };
            next = format!("({last}");
            let end = page.into_iter().find_map(|(at, line)| match line {
                Line::Ended(ended) if ended.of == id => Some((at, ended)),
                _ => None,
            });
            if end.is_some() {
                return Ok(Some(Logged { id, begun: *begun, ended: end }));
            }
        }
    }

    async fn entry(&self, id: EntryId) -> Result<Option<Line>, StoreError> {
        let id = id.to_string();
        Ok(self.read(&range(redis::cmd("XRANGE"), &id, &id)).await?.pop().map(|(_, line)| line))
    }

    async fn read(&self, command: &Cmd) -> Result<Vec<(EntryId, Line)>, StoreError> {
        let subject = "read the audit log";
        let found: StreamRangeReply = self.connection.with(async |mut it| it.query(subject, command).await).await?;
        let read = |entry: StreamId| {
            let id = entry.id.parse().map_err(|error| StoreError::unexpected(subject, error))?;
            let text = |name: &str| entry.get::<String>(name);
            let line = match (text("began"), text("ended")) {
                (Some(json), _) => parsed(&json).map(|begun| Line::Began(Box::new(begun))),
                (None, Some(json)) => parsed(&json).map(Line::Ended),
                (None, None) => None,
            };
            Ok((id, line.unwrap_or(Line::Unreadable)))
        };
        found.ids.into_iter().map(read).collect()
    }
}

/// Which acts somebody wants to see, by when they began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub from_ms: u64,
    pub until_ms: u64,
    pub before: Option<EntryId>,
    /// The newest of them.
    pub limit: usize,
}

impl Wanted {
    fn spans(&self, id: EntryId) -> bool {
        id.ms >= self.from_ms && id.ms < self.until_ms && self.before.is_none_or(|before| id < before)
    }
}

/// An act as the log tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub id: EntryId,
    pub begun: Begun,
    /// None: it is under way, or its process died.
    pub ended: Option<(EntryId, Ended)>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The newest last.
    pub acts: Vec<Logged>,
    /// There are older ones.
    pub has_more: bool,
    /// The time of the oldest entry that was looked at.
    pub begins_ms: Option<u64>,
    pub unreadable: u64,
}

impl Found {
    fn in_order(mut self) -> Self {
        self.acts.reverse();
        self
    }
}

fn range(mut command: Cmd, from: &str, to: &str) -> Cmd {
    command.arg(AuditKeys::LOG).arg(from).arg(to).arg("COUNT").arg(PAGE).to_owned()
}

/// An entry of the log.
enum Line {
    Began(Box<Begun>),
    Ended(Ended),
    /// Written by another Herald, or by somebody else.
    Unreadable,
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("strings and numbers are always JSON")
}

fn parsed<T: DeserializeOwned>(json: &str) -> Option<T> {
    serde_json::from_str(json).ok()
}

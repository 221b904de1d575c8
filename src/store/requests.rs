//! How processes other than a partition's owner ask it for something: they append to its inbox and wait for the answer.
//! Never changes a partition's state itself.

use std::{sync::LazyLock, time::Duration};

use redis::{FromRedisValue, Value};

use super::{
    connection::{Connection, Script, Subject},
    error::StoreError,
    keys::PartitionKeys,
    protocol::Asked,
};
use crate::facts::{endpoint::Mark, id::EntryId};

/// The most requests that may wait. A job that asks for more waits for answers in between; an owner that was away for
/// long finds at most this many.
pub const MAX_WAITING: u64 = 10_000;

static REQUEST: LazyLock<Script> = LazyLock::new(|| Script::new("request", include_str!("scripts/request.lua")));

/// A blocking command takes its full time on the server; the answer may take this much longer to arrive.
const GRACE: Duration = Duration::from_secs(5);

/// Asks the owner of one partition. Clones share the connection.
#[derive(Clone)]
pub struct Requests {
    connection: Connection,
    keys: PartitionKeys,
}

impl Requests {
    /// Waiting for an answer holds the connection, so it needs one of its own, with the purpose `Wakeup`.
    pub fn new(connection: Connection, keys: PartitionKeys) -> Self {
        Self { connection, keys }
    }

    /// Appends a request and returns its id. Not repeated when the answer is lost: asking twice is harmless, but the caller
    /// has to decide that.
    pub async fn ask(&self, asked: &Asked, mark: &Mark) -> Result<EntryId, StoreError> {
        let subject = Subject("ask the owner of", self.keys.stream());
        let mark = serde_json::to_string(mark).expect("a mark of strings and numbers is always JSON");
        let call = REQUEST.keys(&[&self.keys.inbox()]).arg(MAX_WAITING).arg(fields(asked, &mark));
        match self.connection.clone().run(subject, &call).await? {
            Value::Int(waiting) => {
                let cause = format!("{waiting} requests are already waiting; check that a worker owns the partition");
                Err(StoreError::unexpected(subject, cause))
            }
            id => {
                let id = String::from_redis_value(id).map_err(|error| StoreError::unexpected(subject, error))?;
                id.parse().map_err(|error| StoreError::unexpected(subject, error))
            }
        }
    }

    /// The owner's answer; `None` if none came in time. It can be fetched once, within 5 minutes.
    pub async fn await_answer(&self, id: EntryId, timeout: Duration) -> Result<Option<String>, StoreError> {
        let subject = Subject("wait for an answer of the owner of", self.keys.stream());
        // To Redis, 0 means without end.
        let seconds = timeout.as_secs_f64().max(0.001);
        let mut command = redis::cmd("BLPOP");
        command.arg(self.keys.answer(&id.to_string())).arg(seconds);
        let mut connection = self.connection.clone();
        let wait = connection.query::<Option<(String, String)>>(subject, &command);
        let popped = within(timeout + GRACE, subject, wait).await?;
        Ok(popped.map(|(_, answer)| answer))
    }
}

/// The fields of a request in the inbox, names and values alternating.
fn fields(asked: &Asked, mark: &str) -> Vec<String> {
    let what: Vec<(&str, String)> = match asked {
        Asked::Redeliver(id) => vec![("op", "redeliver".to_owned()), ("id", id.to_string())],
        Asked::Discard(id) => vec![("op", "discard".to_owned()), ("id", id.to_string())],
        Asked::Release(endpoint, intent, head) => {
            let what =
                [("op", "release".to_owned()), ("endpoint", endpoint.to_string()), ("intent", intent.to_string())];
            what.into_iter().chain(head.map(|head| ("head", head.to_string()))).collect()
        }
        Asked::Requeue(entry) => vec![("op", "requeue".to_owned()), ("entry", entry.to_string())],
        Asked::DiscardQuarantined(entry) => {
            vec![("op", "discard-quarantined".to_owned()), ("entry", entry.to_string())]
        }
        Asked::AcceptRegistry(registry) => {
            vec![("op", "accept-registry".to_owned()), ("registry", registry.clone())]
        }
        Asked::CancelRepartition => vec![("op", "cancel-repartition".to_owned())],
        Asked::Repartition(parts) => vec![("op", "repartition".to_owned()), ("parts", parts.to_string())],
    };
    let mark = ("mark", mark.to_owned());
    what.into_iter().chain([mark]).flat_map(|(name, value)| [name.to_owned(), value]).collect()
}

/// A wait on a connection without a time limit of its own.
pub(super) async fn within<T>(
    limit: Duration,
    subject: impl std::fmt::Display,
    wait: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, wait).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::away(subject, format_args!("no answer within {limit:?}"))),
    }
}

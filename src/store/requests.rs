//! How processes other than a partition's owner ask it for something: they append to its inbox and wait for the answer.
//! Never changes a partition's state itself.

use std::time::Duration;

use redis::Cmd;

use super::{
    connection::{Connection, Subject},
    error::StoreError,
    keys::PartitionKeys,
    model::Asked,
};
use crate::facts::{endpoint::Mark, id::EntryId};

/// Requests that may wait at once. A job that asks for more waits for answers in between; an owner that is away for long
/// finds at most this many.
pub const MAX_WAITING: u64 = 10_000;

/// A blocking command waits on the server for its time; the answer may take this much longer on its way.
const GRACE: Duration = Duration::from_secs(5);

/// Asks the owner of one partition. Clones share the connection.
#[derive(Clone)]
pub struct Requests {
    connection: Connection,
    keys: PartitionKeys,
}

impl Requests {
    /// Waiting for an answer holds the connection, so it is one of its own, of the purpose `Wakeup`.
    pub fn new(connection: Connection, keys: PartitionKeys) -> Self {
        Self { connection, keys }
    }

    /// Appends a request and returns its id. Not repeated when the answer is lost: asking twice is harmless, but that is
    /// for the asker to say.
    pub async fn ask(&self, asked: &Asked, mark: &Mark) -> Result<EntryId, StoreError> {
        let subject = Subject("ask the owner of", self.keys.stream());
        let mut connection = self.connection.clone();
        let waiting: u64 = connection.query(subject, redis::cmd("XLEN").arg(self.keys.inbox())).await?;
        if waiting >= MAX_WAITING {
            let cause = format!("{waiting} requests wait already; see that a worker owns the partition");
            return Err(StoreError::unexpected(subject, cause));
        }
        let mark = serde_json::to_string(mark).expect("a mark of strings and numbers is always JSON");
        let mut command = redis::cmd("XADD");
        command.arg(self.keys.inbox()).arg("*");
        write_request(&mut command, asked, &mark);
        let id: String = connection.query(subject, &command).await?;
        id.parse().map_err(|error| StoreError::unexpected(subject, error))
    }

    /// The owner's answer; `None` when none came in time. It can be fetched once, within 5 minutes.
    pub async fn await_answer(&self, id: EntryId, timeout: Duration) -> Result<Option<String>, StoreError> {
        let subject = Subject("wait for an answer of the owner of", self.keys.stream());
        // To Redis 0 means for ever.
        let seconds = timeout.as_secs_f64().max(0.001);
        let mut command = redis::cmd("BLPOP");
        command.arg(self.keys.answer(&id.to_string())).arg(seconds);
        let mut connection = self.connection.clone();
        let wait = connection.query::<Option<(String, String)>>(subject, &command);
        let popped = within(timeout + GRACE, subject, wait).await?;
        Ok(popped.map(|(_, answer)| answer))
    }
}

/// The fields of a request in the inbox.
fn write_request(command: &mut Cmd, asked: &Asked, mark: &str) {
    match asked {
        Asked::Redeliver(id) => command.arg("op").arg("redeliver").arg("id").arg(id.to_string()),
        Asked::Discard(id) => command.arg("op").arg("discard").arg("id").arg(id.to_string()),
        Asked::Release(endpoint, intent) => {
            command.arg("op").arg("release").arg("endpoint").arg(endpoint.as_str()).arg("intent").arg(intent.as_str())
        }
        Asked::Requeue(entry) => command.arg("op").arg("requeue").arg("entry").arg(entry.to_string()),
        Asked::DiscardQuarantined(entry) => {
            command.arg("op").arg("discard-quarantined").arg("entry").arg(entry.to_string())
        }
        Asked::AcceptRegistry(registry) => command.arg("op").arg("accept-registry").arg("registry").arg(registry),
    };
    command.arg("mark").arg(mark);
}

/// A wait on a connection without a time limit of its own.
pub(super) async fn within<T>(
    limit: Duration,
    subject: impl std::fmt::Display,
    wait: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, wait).await {
        Ok(result) => result,
        Err(_) => {
            Err(StoreError::Unavailable { subject: subject.to_string(), cause: format!("no answer within {limit:?}") })
        }
    }
}

//! What a producer does: adds events to the stream. Never reads it, and never judges an event.

use super::{connection::Connection, connection::Subject, error::StoreError, keys::PartitionKeys};
use crate::facts::id::EntryId;

#[derive(Clone)]
pub struct Publisher {
    connection: Connection,
    keys: PartitionKeys,
}

impl Publisher {
    pub fn new(connection: Connection, keys: PartitionKeys) -> Self {
        Self { connection, keys }
    }

    /// `XADD S * event BODY`. An error may mean that the entry was added all the same.
    pub async fn publish(&mut self, body: &[u8]) -> Result<EntryId, StoreError> {
        let mut command = redis::cmd("XADD");
        command.arg(self.keys.stream()).arg("*").arg("event").arg(body);
        let subject = Subject("add an event to", self.keys.stream());
        let id: String = self.connection.query(subject, &command).await?;
        id.parse().map_err(|_| StoreError::unexpected(subject, format_args!("{id} is no entry id")))
    }
}

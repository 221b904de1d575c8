//! What a load test does to a Redis of its own: fills it, destroys a group. Never part of a worker or of the command line's
//! other verbs, so the user `herald` of [`super::acl`] has none of these rights.

use super::{
    connection::{Connection, Subject},
    error::StoreError,
    keys::PartitionKeys,
    protocol::GROUP,
};

/// One connection to the Redis that is disturbed.
pub struct Disturber {
    connection: Connection,
}

impl Disturber {
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Sets `maxmemory`; 0 means no limit. It lasts until the next start.
    pub async fn limit_memory(&mut self, bytes: u64) -> Result<(), StoreError> {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("maxmemory").arg(bytes);
        self.connection.query("set maxmemory", &command).await
    }

    /// Sets `maxmemory` to what is used now: from then on Redis refuses every write that needs memory.
    pub async fn fill(&mut self) -> Result<(), StoreError> {
        let used = self.connection.server_info().await?.used_memory_bytes;
        self.limit_memory(used.max(1)).await
    }

    /// Destroys Herald's group with everything it has pending. Returns false if there was none.
    pub async fn destroy_group(&mut self, keys: &PartitionKeys) -> Result<bool, StoreError> {
        let mut command = redis::cmd("XGROUP");
        command.arg("DESTROY").arg(keys.stream()).arg(GROUP);
        self.connection.query(Subject("destroy the group of", keys.stream()), &command).await
    }
}

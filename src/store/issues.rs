//! What operators say of issues. Their own word, in a hash of its own: no owner reads it, so saying something needs no owner.

use std::cmp::Reverse;

use super::{
    connection::{Connection, Subject},
    error::StoreError,
    health::all,
    keys::PartitionKeys,
};
use crate::facts::issue::{IssueId, Said};

/// Beyond this the oldest words go; what they were about is open again if it still fails.
const MOST: usize = 5_000;

pub struct IssueStore {
    connection: Connection,
    keys: PartitionKeys,
}

impl IssueStore {
    pub fn new(connection: Connection, keys: PartitionKeys) -> Self {
        Self { connection, keys }
    }

    pub async fn say(&mut self, issue: &IssueId, said: &Said) -> Result<(), StoreError> {
        let key = self.keys.issues();
        let text = serde_json::to_string(said).expect("texts and numbers are always JSON");
        let mut command = redis::cmd("HSET");
        command.arg(&key).arg(issue.to_string()).arg(text);
        let subject = Subject("note what was said of an issue in", &key);
        let _: u64 = self.connection.query(subject, &command).await?;
        let mut command = redis::cmd("HLEN");
        command.arg(&key);
        let count: usize = self.connection.query(subject, &command).await?;
        if count > MOST { self.forget_oldest(&key).await } else { Ok(()) }
    }

    async fn forget_oldest(&mut self, key: &str) -> Result<(), StoreError> {
        let mut known: Vec<(IssueId, Said)> = all(&mut self.connection, key).await?;
        known.sort_by_key(|(_, said)| Reverse(said.mark.at_ms));
        let mut command = redis::cmd("HDEL");
        command.arg(key);
        // A tenth more than needed, so that this is not done each time.
        let oldest = known.split_off(known.len().min(MOST - MOST / 10));
        if oldest.is_empty() {
            return Ok(());
        }
        for (issue, _) in &oldest {
            command.arg(issue.to_string());
        }
        self.connection.query(Subject("forget what was said of issues in", key), &command).await
    }
}

//! What the owner of a partition asks Redis for an operation that erases an account: where bodies of its events are, and to drop
//! them. Each step can come again.

use std::sync::LazyLock;

use bytes::Bytes;
use redis::Value;
use serde::Deserialize;
use tracing::warn;

use super::{
    SHARED, word,
    work::{Lost, Work},
};
use crate::{
    facts::id::{AccountId, DeliveryId, EndpointId, EntryId, OperationId},
    store::{
        connection::{Script, ScriptCall, Subject},
        entries::Entries,
        error::StoreError,
        keys::PartitionKeys,
        partitions,
        protocol::GROUP,
        queries::Queries,
        requests::Requests,
        watch,
    },
};

/// Endpoints that one look for those with records brings; heads of each that one look at its records brings, and the beginning of a
/// record that is read: its account stands there.
const SCANNED: usize = 100;
const HEADS: usize = 100;
const HEADER_BYTES: isize = 4_096;

const DEAD_INDEX: &str = include_str!("../scripts/dead_index.lua");

static ERASE: LazyLock<Script> = LazyLock::new(|| {
    let file = ["#!lua flags=allow-oom\n", include_str!("../scripts/operation_erase.lua")].concat();
    let [shared, of_partition, of_operations] = SHARED;
    Script::assembled("operation_erase", &file, &[shared, of_partition, of_operations, DEAD_INDEX])
});

const ERASING: &str = "erase for an operation on";

/// What is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erased<'a> {
    Letters(&'a [DeliveryId]),
    Entries(&'a [EntryId]),
}

/// What moving a part of the quarantine behind its end came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    pub count: u64,
    /// The quarantine's own ids of what is in it now.
    pub first: EntryId,
    pub last: EntryId,
}

impl Work {
    /// How many were there and are dropped now. None while the operation is not running.
    pub async fn erase(&mut self, id: &OperationId, what: Erased<'_>) -> Result<Result<Option<u64>, Lost>, StoreError> {
        let call = self.erasing(id);
        let call = match what {
            Erased::Letters(letters) => call.arg("letters").texts(letters),
            Erased::Entries(entries) => call.arg("entries").texts(entries),
        };
        let subject = Subject(ERASING, self.keys.stream());
        let answer: Vec<Value> = self.connection.run(subject, &call).await?;
        match (word(answer.first()), answer.get(1)) {
            ("ERASED", Some(Value::Int(count))) => Ok(Ok(Some(u64::try_from(*count).unwrap_or(0)))),
            ("STOPPED", _) => Ok(Ok(None)),
            ("LOST", _) => Ok(Err(Lost)),
            _ => Err(StoreError::unexpected(subject, format_args!("the answer {answer:?}"))),
        }
    }

    /// Moves some of the quarantine behind its end, so that the pages go in which there is something erased. None while the operation
    /// is not running.
    pub async fn move_quarantined(&mut self, id: &OperationId) -> Result<Result<Option<Moved>, Lost>, StoreError> {
        let call = self.erasing(id).arg("quarantine");
        let subject = Subject(ERASING, self.keys.stream());
        let answer: Vec<Value> = self.connection.run(subject, &call).await?;
        let moved = || {
            let [_, Value::Int(count), first, last] = answer.as_slice() else { return None };
            let count = u64::try_from(*count).ok()?;
            Some(Moved { count, first: word(Some(first)).parse().ok()?, last: word(Some(last)).parse().ok()? })
        };
        match (word(answer.first()), moved()) {
            ("ERASED", Some(moved)) => Ok(Ok(Some(moved))),
            ("STOPPED", _) => Ok(Ok(None)),
            ("LOST", _) => Ok(Err(Lost)),
            _ => Err(StoreError::unexpected(subject, format_args!("the answer {answer:?}"))),
        }
    }

    fn erasing(&self, id: &OperationId) -> ScriptCall<'static> {
        let keys = &self.keys;
        let names = [
            keys.lease(),
            keys.operation(id),
            keys.operation_claims(),
            keys.stream().to_owned(),
            keys.dead(),
            keys.quarantine(),
            keys.quarantine_index(),
            keys.dead_facts(),
            keys.dead_kinds(),
            keys.dead_names(),
        ];
        self.call(&ERASE, &names).arg(id.as_str())
    }

    pub fn entries(&self) -> Entries {
        Entries::new(self.connection.clone(), self.keys.clone())
    }

    pub fn requests(&self) -> Requests {
        Requests::new(self.connection.clone(), self.keys.clone())
    }

    /// The streams that this one is a part of, the next one first: how to look into each and to ask its owner.
    pub async fn above(&self) -> Result<Vec<(Queries, Requests)>, StoreError> {
        let above = partitions::above(&self.connection, self.keys.stream()).await?;
        let of = |keys: PartitionKeys| {
            let queries = Queries::new(self.connection.clone(), keys.clone());
            (queries, Requests::new(self.connection.clone(), keys))
        };
        Ok(above.into_iter().map(of).collect())
    }

    /// Has Redis write its append-only file afresh, if it has one. False while it does so already: that began with what was there
    /// then. Where Redis cannot be told to, somebody else has to.
    pub async fn rewrite_files(&mut self) -> Result<bool, StoreError> {
        if !self.connection.server_info().await?.aof_enabled {
            return Ok(true);
        }
        let command = redis::cmd("BGREWRITEAOF");
        match self.connection.query::<Value>("have the append-only file rewritten", &command).await {
            Ok(_) => Ok(true),
            Err(error @ StoreError::Unavailable { .. }) => Err(error),
            Err(error) if error.to_string().contains("already in progress") => Ok(false),
            Err(error) => {
                warn!(%error, "run BGREWRITEAOF: what was erased is in Redis' append-only file until it is written afresh");
                Ok(true)
            }
        }
    }

    /// Whether the owner has read an entry up to there that it has not dealt with yet, also one that was dropped meanwhile: its body
    /// is in memory alone, and may be written as a record or a letter later.
    pub async fn is_under_way(&mut self, until: EntryId) -> Result<bool, StoreError> {
        let mut command = redis::cmd("XPENDING");
        command.arg(self.keys.stream()).arg(GROUP).arg("-").arg(until.to_string()).arg(1);
        let pending: Vec<Value> = self.connection.query("look what the owner has under way", &command).await?;
        Ok(!pending.is_empty())
    }

    /// Whether every history that follows the stream has read it up to there.
    pub async fn histories_have_read(&mut self, entry: EntryId, now_ms: u64) -> Result<bool, StoreError> {
        let command = redis::cmd("HVALS").arg(self.keys.history()).to_owned();
        let told: Vec<String> = self.connection.query("look how far the history is", &command).await?;
        let read = watch::events_read_by_histories(&told, now_ms);
        Ok(read.is_none_or(|(read, _)| read >= entry))
    }

    /// Looks through a part of the records of each of these endpoints, from its cursor on: where to go on, 0 at the end, and whether
    /// the account's up to the last entry is among them. Those of one endpoint are of more than one account where its id was given out again; those
    /// behind a head are of the head's account, as their intent is.
    pub async fn look_for_records(
        &mut self,
        account: &AccountId,
        last: EntryId,
        at: &[(EndpointId, u64)],
    ) -> Result<Vec<(u64, bool)>, StoreError> {
        let mut pipeline = redis::pipe();
        for (endpoint, cursor) in at {
            pipeline.cmd("HSCAN").arg(self.keys.heads(endpoint)).arg(*cursor).arg("COUNT").arg(HEADS);
        }
        let pages: Vec<(u64, Vec<(String, String)>)> =
            self.connection.pipeline("look at the heads of each endpoint", &pipeline).await?;
        let (mut pipeline, mut of) = (redis::pipe(), Vec::new());
        for (nth, ((endpoint, _), (_, heads))) in at.iter().zip(&pages).enumerate() {
            let entries = heads.iter().filter_map(|(_, entry)| entry.parse::<EntryId>().ok());
            for entry in entries.filter(|entry| *entry <= last) {
                let id = DeliveryId { entry, endpoint: endpoint.clone() };
                pipeline.cmd("GETRANGE").arg(self.keys.delivery(&id)).arg(0).arg(HEADER_BYTES);
                of.push(nth);
            }
        }
        let mut found: Vec<(u64, bool)> = pages.iter().map(|(next, _)| (*next, false)).collect();
        if !of.is_empty() {
            let headers: Vec<Bytes> = self.connection.pipeline("look at records of deliveries", &pipeline).await?;
            for (nth, header) in of.into_iter().zip(headers) {
                found[nth].1 |= is_record_of(&header, account);
            }
        }
        Ok(found)
    }

    /// Some of the endpoints that have records, with how many those are, and where to go on, 0 at the end.
    pub async fn endpoints_with_records(&mut self, cursor: u64) -> Result<(u64, Vec<(EndpointId, u64)>), StoreError> {
        let mut command = redis::cmd("HSCAN");
        command.arg(self.keys.unfinished()).arg(cursor).arg("COUNT").arg(SCANNED);
        let (next, counts): (u64, Vec<(String, String)>) =
            self.connection.query("look which endpoints have unfinished deliveries", &command).await?;
        let read = |(endpoint, count): (String, String)| Some((endpoint.parse().ok()?, count.parse().ok()?));
        Ok((next, counts.into_iter().filter_map(read).filter(|(_, count)| *count > 0).collect()))
    }
}

fn is_record_of(header: &[u8], account: &AccountId) -> bool {
    #[derive(Deserialize)]
    struct Header {
        account: AccountId,
    }
    match serde_json::Deserializer::from_slice(header).into_iter::<Header>().next() {
        Some(Ok(header)) => header.account == *account,
        // What cannot be read, and names it, may be its own.
        _ => is_named(header, account),
    }
}

/// Whether these bytes name the account as JSON would.
pub fn is_named(bytes: &[u8], account: &AccountId) -> bool {
    let quoted = format!("\"{account}\"");
    bytes.windows(quoted.len()).any(|part| part == quoted.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_named_by_the_whole_of_its_id() {
        let account = AccountId::new("acc_1").unwrap();
        assert!(is_named(br#"{"accountId": "acc_1", broken"#, &account));
        assert!(!is_named(br#"{"accountId":"acc_10","x":"an acc_1"}"#, &account));
        assert!(!is_named(b"", &account));
    }
}

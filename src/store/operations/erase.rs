//! What the owner of a partition asks Redis for an operation that erases an account: where bodies of its events are, and to drop
//! them. Each step can come again.

use std::{collections::HashMap, sync::LazyLock};

use bytes::Bytes;
use redis::Value;
use serde::Deserialize;

use super::{
    SHARED, word,
    work::{Lost, Work},
};
use crate::{
    facts::id::{AccountId, DeliveryId, EndpointId, EntryId, OperationId},
    store::{
        connection::{Script, Subject},
        entries::Entries,
        error::StoreError,
        requests::Requests,
        watch,
    },
};

/// Keys that one look for records asks for, and the beginning of each that is read: its account stands there.
const SCANNED: usize = 1_000;
const HEADER_BYTES: isize = 4_096;

const DEAD_INDEX: &str = include_str!("../scripts/dead_index.lua");

static ERASE: LazyLock<Script> = LazyLock::new(|| {
    let file = ["#!lua flags=allow-oom\n", include_str!("../scripts/operation_erase.lua")].concat();
    let [shared, of_partition, of_operations] = SHARED;
    Script::assembled("operation_erase", &file, &[shared, of_partition, of_operations, DEAD_INDEX])
});

/// What is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erased<'a> {
    Letters(&'a [DeliveryId]),
    Entries(&'a [EntryId]),
}

/// A look through a part of the records: how many are the account's, by endpoint, and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordsLook {
    pub found: HashMap<EndpointId, u64>,
    /// None at the end.
    pub next: Option<u64>,
}

impl Work {
    /// How many were there and are dropped now. None while the operation is not running.
    pub async fn erase(&mut self, id: &OperationId, what: Erased<'_>) -> Result<Result<Option<u64>, Lost>, StoreError> {
        let subject = Subject("erase for an operation on", self.keys.stream());
        let keys = &self.keys;
        let names = [
            keys.lease(),
            keys.operation(id),
            keys.operation_claims(),
            keys.stream().to_owned(),
            keys.dead(),
            keys.dead_facts(),
            keys.dead_kinds(),
            keys.dead_names(),
        ];
        let call = self.call(&ERASE, &names).arg(id.as_str());
        let call = match what {
            Erased::Letters(letters) => call.arg("letters").texts(letters),
            Erased::Entries(entries) => call.arg("entries").texts(entries),
        };
        let answer: Vec<Value> = self.connection.run(subject, &call).await?;
        match (word(answer.first()), answer.get(1)) {
            ("ERASED", Some(Value::Int(count))) => Ok(Ok(Some(u64::try_from(*count).unwrap_or(0)))),
            ("STOPPED", _) => Ok(Ok(None)),
            ("LOST", _) => Ok(Err(Lost)),
            _ => Err(StoreError::unexpected(subject, format_args!("the answer {answer:?}"))),
        }
    }

    pub fn entries(&self) -> Entries {
        Entries::new(self.connection.clone(), self.keys.clone())
    }

    pub fn requests(&self) -> Requests {
        Requests::new(self.connection.clone(), self.keys.clone())
    }

    /// Has Redis write its append-only file afresh, if it has one.
    pub async fn rewrite_files(&mut self) -> Result<(), StoreError> {
        match self.connection.server_info().await?.aof_enabled {
            true => self.connection.rewrite_aof().await,
            false => Ok(()),
        }
    }

    /// The last entry that there is now.
    pub async fn last_entry(&mut self) -> Result<EntryId, StoreError> {
        watch::last_entry(&mut self.connection, &self.keys).await
    }

    /// Whether every history that follows the stream has read it up to there.
    pub async fn histories_have_read(&mut self, entry: EntryId, now_ms: u64) -> Result<bool, StoreError> {
        let command = redis::cmd("HVALS").arg(self.keys.history()).to_owned();
        let told: Vec<String> = self.connection.query("look how far the history is", &command).await?;
        let read = watch::events_read_by_histories(&told, now_ms);
        Ok(read.is_none_or(|(read, _)| read >= entry))
    }

    /// A part of the records that there are, wherever they wait.
    pub async fn records_of(&mut self, account: &AccountId, cursor: u64) -> Result<RecordsLook, StoreError> {
        #[derive(Deserialize)]
        struct Header {
            account: AccountId,
        }
        let of_records = [self.keys.prefix(), "delivery:"].concat();
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg([&pattern(&of_records), "*"].concat()).arg("COUNT").arg(SCANNED);
        let (next, keys): (u64, Vec<String>) =
            self.connection.query("look through the records of deliveries", &command).await?;
        let mut look = RecordsLook { next: Some(next).filter(|next| *next > 0), ..RecordsLook::default() };
        if keys.is_empty() {
            return Ok(look);
        }
        let mut pipeline = redis::pipe();
        for key in &keys {
            pipeline.cmd("GETRANGE").arg(key).arg(0).arg(HEADER_BYTES);
        }
        let headers: Vec<Bytes> = self.connection.pipeline("look at records of deliveries", &pipeline).await?;
        for (key, header) in keys.iter().zip(headers) {
            let Some(Ok(id)) = key.strip_prefix(&of_records).map(str::parse::<DeliveryId>) else { continue };
            let mut values = serde_json::Deserializer::from_slice(&header).into_iter::<Header>();
            let is_of_it = match values.next() {
                Some(Ok(header)) => header.account == *account,
                // What cannot be read, and names it, may be its own.
                _ => is_named(&header, account),
            };
            if is_of_it {
                *look.found.entry(id.endpoint).or_default() += 1;
            }
        }
        Ok(look)
    }
}

/// Whether these bytes name the account as JSON would.
pub fn is_named(bytes: &[u8], account: &AccountId) -> bool {
    let quoted = format!("\"{account}\"");
    bytes.windows(quoted.len()).any(|part| part == quoted.as_bytes())
}

/// What SCAN takes for this text itself.
fn pattern(text: &str) -> String {
    text.chars().flat_map(|c| if "*?[]^-\\".contains(c) { vec!['\\', c] } else { vec![c] }).collect()
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

    #[test]
    fn a_pattern_stands_for_nothing_but_its_text() {
        assert_eq!(pattern("herald:{a*b}:delivery:"), "herald:{a\\*b}:delivery:");
    }
}

//! How an owner publishes the health of its endpoints, and how it goes on from what an owner before it has published. Beside the
//! owner's other calls, on a connection of its own. Never decides what is worth publishing.

use std::{str::FromStr, sync::LazyLock};

use redis::Value;
use serde::de::DeserializeOwned;

use super::{
    connection::{Connection, Script, Subject},
    error::StoreError,
    keys::PartitionKeys,
    protocol::Term,
};
use crate::facts::{
    health::{Growth, HEALTH_SCHEMA, Health},
    id::{AccountId, EndpointId},
    unserved::Unserved,
};

/// Entries of one look: of two kilobytes each at most.
const PAGE: usize = 200;

/// The field for what is of no endpoint: no endpoint's id looks like it.
const GROWTH: &str = "dead-letters";

static PUBLISH: LazyLock<Script> = LazyLock::new(|| {
    let shared = [include_str!("scripts/shared.lua"), include_str!("scripts/partition_shared.lua")];
    Script::assembled("publish_health", include_str!("scripts/publish_health.lua"), &shared)
});

/// What is published in one step. Each list has at most [`MAX_BATCH`](super::protocol::MAX_BATCH) entries.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Batch {
    pub health: Vec<(EndpointId, String)>,
    /// How the dead letters grow.
    pub growth: Option<String>,
    pub unserved: Vec<(AccountId, String)>,
    /// Endpoints that are no more.
    pub gone: Vec<EndpointId>,
    /// Accounts that are not followed any more.
    pub forgotten: Vec<AccountId>,
    /// Events of Herald's own, as they are to stand in the stream.
    pub events: Vec<String>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.health.is_empty()
            && self.growth.is_none()
            && self.unserved.is_empty()
            && self.gone.is_empty()
            && self.forgotten.is_empty()
            && self.events.is_empty()
    }
}

pub struct HealthStore {
    connection: Connection,
    keys: PartitionKeys,
}

impl HealthStore {
    pub fn new(connection: Connection, keys: PartitionKeys) -> Self {
        Self { connection, keys }
    }

    /// Returns whether the term still held; if not, nothing was changed.
    pub async fn publish(&mut self, term: &Term, batch: &Batch) -> Result<bool, StoreError> {
        let subject = Subject("publish the health of the endpoints of", self.keys.stream());
        let Batch { health, growth, unserved, gone, forgotten, events } = batch;
        let names = [self.keys.stream(), &self.keys.lease(), &self.keys.health(), &self.keys.unserved()];
        let mut call = PUBLISH.keys(&names).arg(term.as_str());
        call = call.arg(health.len() + growth.iter().len()).arg(unserved.len()).arg(gone.len());
        call = call.arg(forgotten.len()).arg(events.len());
        call = health.iter().fold(call, |call, (endpoint, text)| call.arg(endpoint.as_str()).arg(text));
        call = growth.iter().fold(call, |call, text| call.arg(GROWTH).arg(text));
        call = unserved.iter().fold(call, |call, (account, text)| call.arg(account.as_str()).arg(text));
        call = gone.iter().fold(call, |call, endpoint| call.arg(endpoint.as_str()));
        call = forgotten.iter().fold(call, |call, account| call.arg(account.as_str()));
        call = events.iter().fold(call, |call, event| call.arg(event));
        let answer: Vec<Value> = self.connection.run(subject, &call).await?;
        match answer.first() {
            Some(Value::BulkString(name)) if name == b"PUBLISHED" => Ok(true),
            Some(Value::BulkString(name)) if name == b"LOST" => Ok(false),
            other => Err(StoreError::unexpected(subject, format_args!("the answer {other:?}"))),
        }
    }

    /// All that was published; what cannot be read is left out, and written anew when its endpoint is seen.
    pub async fn load(&mut self) -> Result<Vec<(EndpointId, Health)>, StoreError> {
        let mut all = Vec::new();
        let mut cursor = 0;
        loop {
            let (page, next) = page(&mut self.connection, &self.keys.health(), cursor).await?;
            all.extend(page.into_iter().filter_map(|(id, text)| Some((id.parse().ok()?, health(&text)?))));
            match next {
                0 => return Ok(all),
                next => cursor = next,
            }
        }
    }

    pub async fn load_growth(&mut self) -> Result<Option<Growth>, StoreError> {
        let key = self.keys.health();
        let mut command = redis::cmd("HGET");
        command.arg(&key).arg(GROWTH);
        let text: Option<String> =
            self.connection.query(Subject("read how dead letters grow from", &key), &command).await?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    pub async fn load_unserved(&mut self) -> Result<Vec<(AccountId, Unserved)>, StoreError> {
        unserved(&mut self.connection, &self.keys).await
    }
}

/// What was published of one endpoint. None for what a newer Herald wrote.
pub(super) fn health(text: &str) -> Option<Health> {
    serde_json::from_str::<Health>(text).ok().filter(|health| health.schema <= HEALTH_SCHEMA)
}

/// A few fields of a hash, and where to go on; 0 at its end. A field may come twice.
pub(super) async fn page(
    connection: &mut Connection,
    key: &str,
    cursor: u64,
) -> Result<(Vec<(String, String)>, u64), StoreError> {
    let mut command = redis::cmd("HSCAN");
    command.arg(key).arg(cursor).arg("COUNT").arg(PAGE);
    let (next, page): (u64, Vec<(String, String)>) = connection.query(Subject("read a page of", key), &command).await?;
    Ok((page, next))
}

/// The owner bounds how many there are.
pub(super) async fn unserved(
    connection: &mut Connection,
    keys: &PartitionKeys,
) -> Result<Vec<(AccountId, Unserved)>, StoreError> {
    all(connection, &keys.unserved()).await
}

/// All of a small hash that can be read.
pub(super) async fn all<K: FromStr + Ord, V: DeserializeOwned>(
    connection: &mut Connection,
    key: &str,
) -> Result<Vec<(K, V)>, StoreError> {
    let mut found = std::collections::BTreeMap::new();
    let mut cursor = 0;
    loop {
        let (page, next) = page(connection, key, cursor).await?;
        found.extend(page.into_iter().filter_map(|(field, text)| {
            let value = serde_json::from_str(&text).ok()?;
            Some((field.parse().ok()?, value))
        }));
        match next {
            0 => return Ok(found.into_iter().collect()),
            next => cursor = next,
        }
    }
}

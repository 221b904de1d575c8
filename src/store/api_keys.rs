//! The API keys of the payment-intents service, by their hash. No key itself is here.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{
    connection::{Connection, Purpose, Redis, Subject},
    error::StoreError,
    keys::{ApiKeys, RegistryKeys},
};
use crate::facts::id::AccountId;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    pub account: AccountId,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_read_only: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
}

#[derive(Clone)]
pub struct ApiKeyStore {
    connection: Connection,
}

impl ApiKeyStore {
    pub async fn connect(redis: &Redis) -> Result<Self, StoreError> {
        Ok(Self::on(redis.at_home_in(RegistryKeys::slot()).connect(Purpose::Other).await?))
    }

    pub fn on(connection: Connection) -> Self {
        Self { connection }
    }

    /// By the hash of a key.
    pub async fn find(&mut self, hash: &str) -> Result<Option<ApiKey>, StoreError> {
        let subject = "look for an API key";
        let command = redis::cmd("HGET").arg(ApiKeys::KEYS).arg(hash).to_owned();
        let found: Option<Vec<u8>> = self.connection.query(subject, &command).await?;
        let read =
            |json: Vec<u8>| serde_json::from_slice(&json).map_err(|error| StoreError::unexpected(subject, error));
        found.map(read).transpose()
    }

    /// Keys are random: none is ever there already.
    pub async fn put(&mut self, hash: &str, key: &ApiKey) -> Result<(), StoreError> {
        let json = serde_json::to_string(key).expect("a key is JSON");
        let command = redis::cmd("HSET").arg(ApiKeys::KEYS).arg(hash).arg(json).to_owned();
        self.connection.query::<u64>(Subject("keep the API key", hash), &command).await.map(drop)
    }

    /// Whether it was there.
    pub async fn remove(&mut self, hash: &str) -> Result<bool, StoreError> {
        let command = redis::cmd("HDEL").arg(ApiKeys::KEYS).arg(hash).to_owned();
        self.connection.query::<u64>(Subject("revoke the API key", hash), &command).await.map(|removed| removed > 0)
    }

    /// All of them: people make a handful.
    pub async fn all(&mut self) -> Result<Vec<(String, ApiKey)>, StoreError> {
        let subject = "list the API keys";
        let command = redis::cmd("HGETALL").arg(ApiKeys::KEYS).to_owned();
        let found: HashMap<String, Vec<u8>> = self.connection.query(subject, &command).await?;
        let read = |(hash, json): (String, Vec<u8>)| {
            let key = serde_json::from_slice(&json).map_err(|error| StoreError::unexpected(subject, error))?;
            Ok((hash, key))
        };
        let mut keys = found.into_iter().map(read).collect::<Result<Vec<(String, ApiKey)>, StoreError>>()?;
        keys.sort_by(|(_, a), (_, b)| (&a.account, a.created_at_ms).cmp(&(&b.account, b.created_at_ms)));
        Ok(keys)
    }
}

//! The tokens of the operations API, by their hash, and when each was last used. No token itself is here.

use std::collections::{HashMap, HashSet};

use super::{
    connection::{Connection, Subject},
    error::StoreError,
    keys::TokenKeys,
};
use crate::facts::token::Token;

/// A token as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub hash: String,
    pub token: Token,
    /// To the minute. None: never, or it could not be written.
    pub used_at_ms: Option<u64>,
}

#[derive(Clone)]
pub struct TokenStore {
    connection: Connection,
}

impl TokenStore {
    pub fn on(connection: Connection) -> Self {
        Self { connection }
    }

    pub async fn find(&mut self, hash: &str) -> Result<Option<Token>, StoreError> {
        let subject = "look for a token";
        let command = redis::cmd("HGET").arg(TokenKeys::TOKENS).arg(hash).to_owned();
        let found: Option<Vec<u8>> = self.connection.query(subject, &command).await?;
        found.map(|json| read(subject, &json)).transpose()
    }

    /// By what hashes there are tokens.
    pub async fn hashes(&mut self) -> Result<HashSet<String>, StoreError> {
        let command = redis::cmd("HGETALL").arg(TokenKeys::TOKENS).to_owned();
        let found: HashMap<String, Vec<u8>> = self.connection.query("look which tokens there are", &command).await?;
        Ok(found.into_keys().collect())
    }

    /// Tokens are random: none is ever there already.
    pub async fn put(&mut self, hash: &str, token: &Token) -> Result<(), StoreError> {
        let json = serde_json::to_string(token).expect("a token's record is JSON");
        let command = redis::cmd("HSET").arg(TokenKeys::TOKENS).arg(hash).arg(json).to_owned();
        self.connection.query::<u64>(Subject("keep the token", hash), &command).await.map(drop)
    }

    /// Whether it was there.
    pub async fn remove(&mut self, hash: &str) -> Result<bool, StoreError> {
        let mut both = redis::pipe();
        both.cmd("HDEL").arg(TokenKeys::TOKENS).arg(hash).cmd("HDEL").arg(TokenKeys::USED).arg(hash);
        let (removed, _): (u64, u64) = self.connection.pipeline(Subject("revoke the token", hash), &both).await?;
        Ok(removed > 0)
    }

    pub async fn used(&mut self, hash: &str, at_ms: u64) -> Result<(), StoreError> {
        let command = redis::cmd("HSET").arg(TokenKeys::USED).arg(hash).arg(at_ms).to_owned();
        self.connection.query::<u64>("note the use of a token", &command).await.map(drop)
    }

    /// All of them, the oldest first: people make a handful.
    pub async fn all(&mut self) -> Result<Vec<Listed>, StoreError> {
        let subject = "list the tokens";
        let mut both = redis::pipe();
        both.cmd("HGETALL").arg(TokenKeys::TOKENS).cmd("HGETALL").arg(TokenKeys::USED);
        let (found, used): (HashMap<String, Vec<u8>>, HashMap<String, u64>) =
            self.connection.pipeline(subject, &both).await?;
        let listed = |(hash, json): (String, Vec<u8>)| {
            let (token, used_at_ms) = (read(subject, &json)?, used.get(&hash).copied());
            Ok(Listed { hash, token, used_at_ms })
        };
        let mut tokens = found.into_iter().map(listed).collect::<Result<Vec<Listed>, StoreError>>()?;
        tokens.sort_by(|a, b| (a.token.created_at_ms, &a.hash).cmp(&(b.token.created_at_ms, &b.hash)));
        Ok(tokens)
    }
}

fn read(subject: &str, json: &[u8]) -> Result<Token, StoreError> {
    serde_json::from_slice(json).map_err(|error| StoreError::unexpected(subject, error))
}

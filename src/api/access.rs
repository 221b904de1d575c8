//! Whose request it is: `Authorization: Basic sk_sandbox_…`, the key itself, as Dojo's API has it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use sha2::{Digest, Sha256};

use crate::{
    clock,
    facts::id::AccountId,
    http::problem::Problem,
    store::{
        api_keys::{ApiKey, ApiKeyStore},
        connection::{Purpose, Redis, SharedConnection},
        error::StoreError,
    },
};

pub const PREFIX: &str = "sk_sandbox_";

/// For how long a key is believed without asking again: a revoked one is refused after this.
const BELIEVED_FOR: Duration = Duration::from_secs(1);

/// Keys that are remembered. Unknown ones are, too: whoever guesses does not reach Redis for each guess.
const MAX_REMEMBERED: usize = 10_000;

/// Longest key that is looked for.
const MAX_KEY_BYTES: usize = 200;

/// A new key. Whoever gets it is the last to see it.
pub fn new_key() -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()))
}

/// What is kept of a key.
pub fn hash(key: &str) -> String {
    hex::encode(Sha256::digest(key))
}

/// As much of a hash as people are shown.
pub fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub account: AccountId,
    pub is_read_only: bool,
    /// As much of the key's hash as tells it apart.
    pub key: String,
}

impl Caller {
    pub fn may_write(&self) -> Result<(), Problem> {
        let refused = || Problem::new(StatusCode::FORBIDDEN, "forbidden", "This API key may only read.");
        if self.is_read_only { Err(refused()) } else { Ok(()) }
    }
}

#[derive(Clone)]
pub struct Access {
    connection: SharedConnection,
    believed: Arc<Mutex<HashMap<String, Believed>>>,
}

/// What was found of a key, and when. None: there is no such key.
type Believed = (Option<ApiKey>, Instant);

impl Access {
    pub fn new(redis: Redis) -> Self {
        Self { connection: SharedConnection::new(redis, Purpose::Other), believed: Arc::default() }
    }

    pub async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let hash = hash(presented(headers)?);
        let found = self.find(&hash).await.map_err(|error| match error {
            StoreError::Unavailable { .. } => Problem::unavailable("Redis does not answer.", 1),
            error => Problem::internal(&error),
        })?;
        let ApiKey { account, is_read_only, .. } =
            found.ok_or_else(|| unauthorized("The API key is unknown, or was revoked."))?;
        Ok(Caller { account, is_read_only, key: short(&hash).to_owned() })
    }

    async fn find(&self, hash: &str) -> Result<Option<ApiKey>, StoreError> {
        let now = clock::now();
        if let Some((key, since)) = self.believed().get(hash)
            && now < *since + BELIEVED_FOR
        {
            return Ok(key.clone());
        }
        let found = self.connection.with(async |connection| ApiKeyStore::on(connection).find(hash).await).await?;
        let mut believed = self.believed();
        if believed.len() >= MAX_REMEMBERED {
            believed.clear();
        }
        believed.insert(hash.to_owned(), (found.clone(), now));
        Ok(found)
    }

    fn believed(&self) -> MutexGuard<'_, HashMap<String, Believed>> {
        self.believed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key as it was sent, or what is wrong with how it was.
fn presented(headers: &HeaderMap) -> Result<&str, Problem> {
    let given = headers.get(header::AUTHORIZATION).ok_or_else(|| {
        unauthorized(
            "The Authorization header is missing: send \"Authorization: Basic sk_sandbox_…\", the key as it is.",
        )
    })?;
    let text = given.to_str().unwrap_or_default().trim();
    let (scheme, key) = text.split_once(' ').unwrap_or((text, ""));
    let key = key.trim();
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(unauthorized(
            "The Authorization header does not begin with \"Basic \": neither Bearer nor the bare key is taken.",
        ));
    }
    if key.starts_with(PREFIX) && key.len() <= MAX_KEY_BYTES {
        return Ok(key);
    }
    let decoded = STANDARD.decode(key).ok();
    if decoded.is_some_and(|bytes| bytes.starts_with(PREFIX.as_bytes())) {
        return Err(unauthorized("The key is encoded as base64: send it as it is, after \"Basic \"."));
    }
    Err(unauthorized("After \"Basic \" there is no API key: keys begin with sk_sandbox_."))
}

fn unauthorized(detail: &str) -> Problem {
    let challenge = HeaderValue::from_static("Basic realm=\"payment intents\"");
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).with(header::WWW_AUTHENTICATE, challenge)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: &str) -> HeaderMap {
        [(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())].into_iter().collect()
    }

    #[test]
    fn only_the_key_itself_is_taken_and_the_detail_says_what_was_wrong() {
        let key = new_key();
        assert_eq!(presented(&with(&format!("Basic {key}"))), Ok(key.as_str()));
        assert_eq!(presented(&with(&format!("basic  {key}"))), Ok(key.as_str()));
        let encoded = format!("Basic {}", STANDARD.encode(&key));
        let wrong =
            [(encoded.as_str(), "base64"), ("Bearer x", "Bearer"), ("Basic x", "no API key"), (&key, "bare key")];
        for (value, says) in wrong {
            let problem = presented(&with(value)).unwrap_err();
            assert_eq!(problem.status, StatusCode::UNAUTHORIZED);
            assert!(problem.detail.contains(says), "{value}: {}", problem.detail);
            assert!(problem.headers.iter().any(|(name, _)| *name == header::WWW_AUTHENTICATE));
        }
        assert!(presented(&HeaderMap::new()).unwrap_err().detail.contains("missing"));
    }
}

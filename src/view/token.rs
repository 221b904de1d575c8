//! A token of the operations API as it is shown.

use serde::Serialize;
use utoipa::ToSchema;

use super::time::Time;
use crate::{facts::token::Token, store::tokens::Listed};

#[derive(Serialize, ToSchema)]
pub struct TokenView {
    /// Only in the answer to what made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// SHA-256 of the token, by which it is revoked.
    hash: String,
    /// viewer, operator, admin or merchant.
    role: &'static str,
    /// A merchant's.
    account: Option<String>,
    name: String,
    created_by: String,
    created_at: Time,
    expires_at: Option<Time>,
    is_live: bool,
    /// To the minute.
    used_at: Option<Time>,
}

impl TokenView {
    pub fn made(text: &str, hash: &str, token: &Token) -> Self {
        Self { token: Some(text.to_owned()), ..Self::of(hash, token, None, token.created_at_ms) }
    }

    pub fn listed(listed: &Listed, now_ms: u64) -> Self {
        Self::of(&listed.hash, &listed.token, listed.used_at_ms, now_ms)
    }

    fn of(hash: &str, token: &Token, used_at_ms: Option<u64>, now_ms: u64) -> Self {
        Self {
            token: None,
            hash: hash.to_owned(),
            role: token.role.name(),
            account: token.account.as_ref().map(ToString::to_string),
            name: token.name.clone(),
            created_by: token.created_by.clone(),
            created_at: Time(token.created_at_ms),
            expires_at: token.expires_at_ms.map(Time),
            is_live: token.is_live(now_ms),
            used_at: used_at_ms.map(Time),
        }
    }
}

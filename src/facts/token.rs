//! A token of the operations API: whose it is, what its bearer may do, and for how long. The token itself is nowhere, only its
//! hash.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::id::AccountId;

/// What each token begins with, so that scanners find those that leak.
pub const PREFIX: &str = "hrld_";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees what one account has, and keeps its endpoints.
    Merchant,
    /// Sees everything but the tokens, and changes nothing.
    Viewer,
    /// Changes everything but the tokens.
    Operator,
    /// Makes and revokes tokens, too.
    Admin,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Merchant, Self::Viewer, Self::Operator, Self::Admin];

    pub fn name(self) -> &'static str {
        match self {
            Self::Merchant => "merchant",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|role| role.name() == text);
        known.ok_or_else(|| "there is no such role; use viewer, operator, admin or merchant".to_owned())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("a merchant's token is for one account: name it")]
    NoAccount,
    #[error("only a merchant's token is for one account: leave the account out, or make it a merchant's")]
    Account,
    #[error("its name must be one line of 1 to {MAX_NAME_CHARS} characters")]
    Name,
    #[error("it must live for one minute to ten years")]
    Lifetime,
}

/// Longest name of a token: it is in each entry of the audit log that its bearer leaves.
pub const MAX_NAME_CHARS: usize = 64;

const MIN_LIFETIME_MS: u64 = 60_000;
const MAX_LIFETIME_MS: u64 = 10 * 366 * 86_400_000;

/// What is kept of a token, beside its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub role: Role,
    /// Of a merchant's token alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    pub name: String,
    pub created_by: String,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}

impl Token {
    pub fn try_new(
        role: Role,
        account: Option<AccountId>,
        name: &str,
        created_by: &str,
        now_ms: u64,
        lifetime_ms: Option<u64>,
    ) -> Result<Self, TokenError> {
        let name = name.trim();
        match (role, &account) {
            (Role::Merchant, None) => return Err(TokenError::NoAccount),
            (Role::Viewer | Role::Operator | Role::Admin, Some(_)) => return Err(TokenError::Account),
            _ => {}
        }
        if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || name.contains(super::text::steers) {
            return Err(TokenError::Name);
        }
        if lifetime_ms.is_some_and(|ms| !(MIN_LIFETIME_MS..=MAX_LIFETIME_MS).contains(&ms)) {
            return Err(TokenError::Lifetime);
        }
        let expires_at_ms = lifetime_ms.map(|ms| now_ms.saturating_add(ms));
        let (name, created_by) = (name.to_owned(), created_by.to_owned());
        Ok(Self { role, account, name, created_by, created_at_ms: now_ms, expires_at_ms })
    }

    pub fn is_live(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_none_or(|end| now_ms < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_merchants_token_has_an_account() {
        let made = |role, account: Option<&str>| {
            Token::try_new(role, account.map(|id| id.parse().unwrap()), "till", "ann", 1_000, Some(60_000))
        };
        assert_eq!(made(Role::Merchant, None), Err(TokenError::NoAccount));
        assert_eq!(made(Role::Viewer, Some("acc_1")), Err(TokenError::Account));
        let token = made(Role::Merchant, Some("acc_1")).unwrap();
        assert!(token.is_live(60_999) && !token.is_live(61_000));
    }

    #[test]
    fn a_name_is_one_short_line_and_a_lifetime_has_bounds() {
        let made = |name: &str, ms| Token::try_new(Role::Admin, None, name, "ann", 0, ms);
        for name in ["", " ", "a\nb", &"x".repeat(65)] {
            assert_eq!(made(name, None), Err(TokenError::Name), "{name:?}");
        }
        assert_eq!(
            (made("a", Some(59_999)), made("a", Some(u64::MAX))),
            (Err(TokenError::Lifetime), Err(TokenError::Lifetime))
        );
        assert_eq!(made(" till 7 ", None).unwrap().name, "till 7");
    }
}

//! The way into the console for a merchant: a link that an operator makes, for one account. It leads in once, within minutes;
//! whoever follows it gets a merchant's token with an end, kept in their session's cookie. It is listed and revoked as any other.

use std::{net::IpAddr, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    access::{Caller, Operator, new_token},
    request::{Body, ChangeRefusals, Reason, Refusals, named, of_store, reason, refused},
};
use crate::{
    api::access::{hash, short},
    clock,
    facts::{
        audit::{Act, Begun, MERCHANT},
        id::AccountId,
        token::{Role, Token, TokenError},
    },
    http::problem::Problem,
    store::{error::StoreError, tokens::TokenStore},
    view::time::Time,
};

/// How long a link waits to be followed, and how long whoever followed it stays.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(15 * 60);
const STAYS_FOR: Duration = Duration::from_secs(12 * 3_600);

/// Links and visits at a time: far more than support makes within half a day.
const MAX_LIVE: usize = 10_000;

/// Why there is no other link.
pub const FULL: &str = "There are 10 000 portal links and visits: wait until some have ended, or revoke some";

/// What links and visits are called in the list of tokens.
const LINK: &str = "portal link";
const VISIT: &str = "portal visit";

#[derive(Serialize, ToSchema)]
pub struct PortalLink {
    /// Below the address by which merchants reach this Herald. It is in this answer, and never again.
    pub path: String,
    pub expires_at: Time,
}

/// Make a link by which a merchant enters the console, for this account. It leads in once, within 15 minutes, for 12 hours.
#[utoipa::path(
    post, path = "/v1/accounts/{account}/portal-link", tag = "Accounts", params(("account" = String, Path)),
    request_body = Reason, responses((status = 201, body = PortalLink), Refusals, ChangeRefusals)
)]
pub async fn link(
    State(api): State<Api>,
    Operator(caller): Operator,
    Path(account): Path<String>,
    body: Body,
) -> Result<(StatusCode, Json<PortalLink>), Problem> {
    let why = reason(&body.read(&api.0.schemas.reason)?.reason)?;
    let account: AccountId = named(&account)?;
    api.make_room().await?;
    let link = NewLink::try_new(account, &caller.by()).map_err(|error| Problem::internal(&error))?;
    let begun = link.about(caller.begun(&api, Act::TokenCreate, &why));
    api.0.audit.audited(begun, async |_: &mut _| api.put_token(&link.hash, &link.token).await).await?;
    Ok((StatusCode::CREATED, Json(link.shown())))
}

/// A link that has just been made. Its token is kept by its hash, and leads nowhere but in.
pub struct NewLink {
    path: String,
    pub hash: String,
    pub token: Token,
}

impl NewLink {
    pub fn try_new(account: AccountId, by: &str) -> Result<Self, TokenError> {
        let code = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let token = merchants(account, LINK, by, FOLLOWED_WITHIN)?;
        Ok(Self { hash: kept_as(&code), path: format!("/console/enter/{code}"), token })
    }

    pub fn about(&self, begun: Begun) -> Begun {
        let begun = self.token.account.iter().fold(begun, Begun::account);
        begun.target(format_args!("token {} {LINK}", short(&self.hash)))
    }

    pub fn shown(self) -> PortalLink {
        PortalLink { path: self.path, expires_at: Time(self.token.expires_at_ms.unwrap_or_default()) }
    }
}

/// Removes links and visits whose time is over, as nobody else does; false where too many are left for another.
pub async fn make_room(tokens: &mut TokenStore) -> Result<bool, StoreError> {
    let (now_ms, mut live) = (clock::wall_ms(), 0);
    for listed in tokens.all().await? {
        let is_of_portal = listed.token.role == Role::Merchant && [LINK, VISIT].contains(&listed.token.name.as_str());
        match is_of_portal && !listed.token.is_live(now_ms) {
            true => drop(tokens.remove(&listed.hash).await?),
            false => live += usize::from(is_of_portal),
        }
    }
    Ok(live < MAX_LIVE)
}

/// What a link is kept as. No header has a line feed, so a link's code is never a token.
fn kept_as(code: &str) -> String {
    hash(&format!("{LINK}\n{code}"))
}

fn merchants(account: AccountId, name: &str, by: &str, lifetime: Duration) -> Result<Token, TokenError> {
    let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
    Token::try_new(Role::Merchant, Some(account), name, by, clock::wall_ms(), Some(lifetime_ms))
}

impl Api {
    /// Follows a link, which is gone then; answers with the hash of the visitor's token.
    pub async fn enter(&self, code: &str, peer: Option<IpAddr>) -> Result<String, Problem> {
        let gone = || {
            Problem::new(
                StatusCode::GONE,
                "link-is-gone",
                "This link was followed before, or its time is over. Ask for another one.",
            )
        };
        let kept = kept_as(code);
        let found = self.0.access.find(&kept, peer).await;
        let link =
            found.map_err(|problem| if problem.status == StatusCode::UNAUTHORIZED { gone() } else { problem })?;
        let account = link.account.clone().filter(|_| link.name == LINK && link.is_live(clock::wall_ms()));
        let account = account.ok_or_else(gone)?;
        let visit = merchants(account.clone(), VISIT, &link.created_by, STAYS_FOR);
        let visit = visit.map_err(|error| Problem::internal(&error))?;
        let own = hash(&new_token());
        let begun =
            self.0.audit.act(Act::TokenCreate, &format!("{MERCHANT}{} {LINK}", short(&kept)), "followed a portal link");
        let begun = begun.account(&account).target(format_args!("token {} {VISIT}", short(&own)));
        let swap = async |_: &mut _| {
            // First: whoever comes second finds nothing, also if this one ends here.
            let remove = async |connection| TokenStore::on(connection).remove(&kept).await;
            if !self.0.connection.with(remove).await.map_err(|error| of_store(&error))? {
                return Err(gone());
            }
            self.put_token(&own, &visit).await
        };
        self.0.audit.audited(begun, swap).await?;
        Ok(own)
    }

    /// Ends a visit by a link, whoever still has its cookie; what else somebody came with stays as it is.
    pub async fn leave(&self, caller: &Caller, hash: &str) -> Result<(), Problem> {
        if caller.role != Role::Merchant || caller.name != VISIT {
            return Ok(());
        }
        let begun = caller.begun(self, Act::TokenRevoke, "signed out");
        let begun = begun.target(format_args!("token {} {VISIT}", short(hash)));
        let remove = async |_: &mut _| {
            let remove = async |connection| TokenStore::on(connection).remove(hash).await;
            self.0.connection.with(remove).await.map_err(|error| of_store(&error))
        };
        self.0.audit.audited(begun, remove).await?;
        self.0.access.forget(hash);
        Ok(())
    }

    async fn put_token(&self, hash: &str, token: &Token) -> Result<(), Problem> {
        let put = async |connection| TokenStore::on(connection).put(hash, token).await;
        self.0.connection.with(put).await.map_err(|error| of_store(&error))
    }

    async fn make_room(&self) -> Result<(), Problem> {
        let make = async |connection| make_room(&mut TokenStore::on(connection)).await;
        let has_room = self.0.connection.with(make).await.map_err(|error| of_store(&error))?;
        if has_room { Ok(()) } else { Err(refused(format!("{FULL}."))) }
    }
}

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
        audit::{Act, MERCHANT},
        id::AccountId,
        token::{Role, Token},
    },
    http::problem::Problem,
    store::tokens::TokenStore,
    view::time::Time,
};

/// How long a link waits to be followed, and how long whoever followed it stays.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(15 * 60);
const STAYS_FOR: Duration = Duration::from_secs(12 * 3_600);

/// Links and visits at a time: far more than support makes within half a day.
const MAX_LIVE: usize = 10_000;

/// What links and visits are called in the list of tokens.
const LINK: &str = "portal link";
const VISIT: &str = "portal visit";

#[derive(Serialize, ToSchema)]
pub struct PortalLink {
    /// Below the address by which merchants reach this Herald. It is in this answer, and never again.
    path: String,
    expires_at: Time,
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
    api.forget_ended().await?;
    let code = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
    let token = merchants(account.clone(), LINK, &caller.by(), FOLLOWED_WITHIN)?;
    let kept = kept_as(&code);
    let begun = caller.begun(&api, Act::TokenCreate, &why).account(&account);
    let begun = begun.target(format_args!("token {} {LINK}", short(&kept)));
    let expires_at = Time(token.expires_at_ms.unwrap_or_default());
    api.0.audit.audited(begun, async |_: &mut _| api.put_token(&kept, &token).await).await?;
    Ok((StatusCode::CREATED, Json(PortalLink { path: format!("/console/enter/{code}"), expires_at })))
}

/// What a link is kept as. No header has a line feed, so a link's code is never a token.
fn kept_as(code: &str) -> String {
    hash(&format!("{LINK}\n{code}"))
}

fn merchants(account: AccountId, name: &str, by: &str, lifetime: Duration) -> Result<Token, Problem> {
    let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
    let token = Token::try_new(Role::Merchant, Some(account), name, by, clock::wall_ms(), Some(lifetime_ms));
    token.map_err(|error| Problem::internal(&error))
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
        let visit = merchants(account.clone(), VISIT, &link.created_by, STAYS_FOR)?;
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

    /// Removes links and visits whose time is over, as nobody else does; refuses where too many are left.
    async fn forget_ended(&self) -> Result<(), Problem> {
        let now_ms = clock::wall_ms();
        let forget = async |connection| {
            let mut store = TokenStore::on(connection);
            let mut live = 0;
            for listed in store.all().await? {
                let is_of_portal =
                    listed.token.role == Role::Merchant && [LINK, VISIT].contains(&listed.token.name.as_str());
                match is_of_portal && !listed.token.is_live(now_ms) {
                    true => drop(store.remove(&listed.hash).await?),
                    false => live += usize::from(is_of_portal),
                }
            }
            Ok(live)
        };
        let live = self.0.connection.with(forget).await.map_err(|error| of_store(&error))?;
        let full = || {
            refused(format!(
                "There are {MAX_LIVE} portal links and visits: wait until some have ended, or revoke some."
            ))
        };
        if live < MAX_LIVE { Ok(()) } else { Err(full()) }
    }
}

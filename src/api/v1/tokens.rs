//! Tokens: made, listed and revoked by whoever has the role admin.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Api,
    access::{Admin, new_token},
    request::{Body, ChangeRefusals, Reason, Refusals, of_store, optional, parsed, reason},
};
use crate::{
    api::access::{hash, short},
    clock,
    config::parse_duration,
    facts::{
        audit::Act,
        id::AccountId,
        token::{Role, Token, TokenError},
    },
    http::problem::Problem,
    store::tokens::TokenStore,
    view::token::TokenView,
};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// viewer, operator, admin or merchant.
    role: String,
    /// Of a merchant's token, and of no other.
    #[serde(default)]
    account: Option<String>,
    #[schema(min_length = 1, max_length = 64)]
    name: String,
    /// How long it lives, as `90d`; for ever where nothing is said.
    #[serde(default)]
    expires_in: Option<String>,
    #[schema(min_length = 1, max_length = 1024)]
    reason: String,
}

/// List the tokens by their hashes, the oldest first.
#[utoipa::path(
    get, path = "/v1/tokens", tag = "Tokens", responses((status = 200, body = Vec<TokenView>), Refusals)
)]
pub async fn list(State(api): State<Api>, Admin(_): Admin) -> Result<Json<Vec<TokenView>>, Problem> {
    let all = async |connection| TokenStore::on(connection).all().await;
    let all = api.0.connection.with(all).await.map_err(|error| of_store(&error))?;
    let now_ms = clock::wall_ms();
    Ok(Json(all.iter().map(|listed| TokenView::listed(listed, now_ms)).collect()))
}

/// Make a token. It is in the answer, and never again.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "Tokens", request_body = CreateToken,
    responses((status = 201, body = TokenView), Refusals, ChangeRefusals)
)]
pub async fn create(
    State(api): State<Api>,
    Admin(caller): Admin,
    body: Body,
) -> Result<(StatusCode, Json<TokenView>), Problem> {
    let request = body.read(&api.0.schemas.token)?;
    let why = reason(&request.reason)?;
    let role = parsed::<Role>("role", &request.role)?;
    let account = optional::<AccountId>("account", request.account.as_ref())?;
    let lifetime = request.expires_in.as_deref().map(|text| {
        let lifetime = parse_duration(text).map_err(|why| Problem::fault("expires_in", why))?;
        Ok::<_, Problem>(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX))
    });
    let token = Token::try_new(role, account, &request.name, &caller.by(), clock::wall_ms(), lifetime.transpose()?);
    let token = token.map_err(|error| of_token(&error))?;
    let text = new_token();
    let hash = hash(&text);
    let begun = caller.begun(&api, Act::TokenCreate, &why);
    let begun = token.account.iter().fold(begun, crate::facts::audit::Begun::account);
    let begun = begun.target(format_args!("token {} {}", short(&hash), token.role.name()));
    let put = async |_: &mut _| {
        let put = async |connection| TokenStore::on(connection).put(&hash, &token).await;
        api.0.connection.with(put).await.map_err(|error| of_store(&error))
    };
    api.0.audit.audited(begun, put).await?;
    Ok((StatusCode::CREATED, Json(TokenView::made(&text, &hash, &token))))
}

/// By the member that it came in.
fn of_token(error: &TokenError) -> Problem {
    let said = error.to_string();
    match error {
        TokenError::NoAccount => Problem::fault("account", format!("is missing: {said}")),
        TokenError::Account => Problem::fault("account", format!("is too much: {said}")),
        TokenError::Name => Problem::fault("name", said.trim_start_matches("its name ")),
        TokenError::Lifetime => Problem::fault("expires_in", format!("is refused: {said}")),
    }
}

/// Refuse a token from now on: within a second, wherever it is used.
#[utoipa::path(
    delete, path = "/v1/tokens/{hash}", tag = "Tokens", params(("hash" = String, Path)), request_body = Reason,
    responses((status = 204, description = "It is refused from now on"), Refusals, ChangeRefusals)
)]
pub async fn revoke(
    State(api): State<Api>,
    Admin(caller): Admin,
    Path(hash): Path<String>,
    body: Body,
) -> Result<StatusCode, Problem> {
    let why = reason(&body.read(&api.0.schemas.reason)?.reason)?;
    let find = async |connection| TokenStore::on(connection).find(&hash).await;
    let found = api.0.connection.with(find).await.map_err(|error| of_store(&error))?;
    let token = found.ok_or_else(Problem::not_found)?;
    let begun = caller.begun(&api, Act::TokenRevoke, &why);
    let begun = token.account.iter().fold(begun, crate::facts::audit::Begun::account);
    let begun = begun.target(format_args!("token {} {}", short(&hash), token.role.name()));
    let remove = async |_: &mut _| {
        let remove = async |connection| TokenStore::on(connection).remove(&hash).await;
        api.0.connection.with(remove).await.map_err(|error| of_store(&error))
    };
    api.0.audit.audited(begun, remove).await?;
    Ok(StatusCode::NO_CONTENT)
}

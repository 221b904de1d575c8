//! The tokens: who may come in, and for how long. For whoever makes and revokes them.

use askama::Template;
use axum::{extract::Path, response::Response};
use serde_json::json;

use super::{
    answers::Token,
    asking::segment,
    filters,
    page::{Frame, shown},
    session::Notice,
    visit::{Fields, Visit},
};
use crate::http::problem::Problem;

/// The newest that are shown: portals make thousands.
const MAX_SHOWN: usize = 200;

#[derive(Template)]
#[template(path = "console/tokens.html", escape = "visible")]
struct TokensPage {
    frame: Frame,
    /// The newest first.
    tokens: Vec<Token>,
    total: usize,
    roles: [&'static str; 4],
    /// One that has just been made: nobody sees it again.
    made: Option<Token>,
}

pub async fn list(visit: Visit) -> Result<Response, Problem> {
    page(&visit, None).await
}

/// The answer has the token, so it is a page of its own.
pub async fn create(visit: Visit, fields: Fields) -> Result<Response, Problem> {
    let mut body = json!({ "role": fields.get("role"), "name": fields.get("name"), "reason": fields.get("reason") });
    for name in ["account", "expires_in"] {
        if !fields.get(name).is_empty() {
            body[name] = fields.get(name).into();
        }
    }
    let made: Token = visit.post("/v1/tokens", &body).await?;
    page(&visit, Some(made)).await
}

pub async fn revoke(visit: Visit, Path(hash): Path<String>, fields: Fields) -> Result<Response, Problem> {
    visit.delete(&format!("/v1/tokens/{}", segment(&hash)), &json!({ "reason": fields.get("reason") })).await?;
    Ok(visit.back("/console/tokens", &Notice::good("The token is revoked: within a second it is refused everywhere.")))
}

async fn page(visit: &Visit, made: Option<Token>) -> Result<Response, Problem> {
    let mut tokens: Vec<Token> = visit.get("/v1/tokens").await?;
    let total = tokens.len();
    tokens.reverse();
    tokens.truncate(MAX_SHOWN);
    let frame = visit.frame("Tokens");
    let frame = if made.is_some() { frame.still() } else { frame };
    Ok(shown(&TokensPage { frame, tokens, total, roles: ["viewer", "operator", "admin", "merchant"], made }))
}

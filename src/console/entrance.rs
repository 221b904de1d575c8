//! The ways in and out: the form for a token, a merchant's link, and the way out. Whoever guesses is limited as in the API.

use askama::Template;
use axum::{
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::Response,
};

use super::{
    Console,
    asking::query,
    page::{Frame, failed, shown_as},
    session::{Session, forget_session, is_https},
    visit::{Fields, Visit, checked_form, own_page, see},
};
use crate::{
    api::access::hash,
    facts::token::Role,
    http::{connections::Peer, problem::Problem},
};

/// Longest token that is looked for, as in the API.
const MAX_TOKEN_BYTES: usize = 256;

#[derive(Template)]
#[template(path = "console/login.html", escape = "visible")]
struct LoginPage {
    frame: Frame,
    next: String,
    wrong: Option<String>,
}

#[derive(Template)]
#[template(path = "console/enter.html", escape = "visible")]
struct EnterPage {
    frame: Frame,
    code: String,
}

pub async fn login_form(State(console): State<Console>, headers: HeaderMap, uri: Uri) -> Response {
    let next = query(&uri, &["next"]).pop().map(|(_, next)| next).unwrap_or_default();
    console.ask_for_token(&headers, own_page(&next), None)
}

pub async fn login(State(console): State<Console>, request: Request) -> Response {
    let headers = request.headers().clone();
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let session = console.seal.session(&headers).unwrap_or_else(|| Session::new(None));
    let fields = match checked_form(&session, request).await {
        Ok((_, fields)) => fields,
        Err(problem) if problem.status != StatusCode::FORBIDDEN => {
            return console.ask_for_token(&headers, "/console", Some(&problem));
        }
        Err(_) => {
            let stale = "This page was open for too long, or its cookies are refused: try again.";
            let stale = Problem::new(StatusCode::FORBIDDEN, "foreign-form", stale);
            return console.ask_for_token(&headers, "/console", Some(&stale));
        }
    };
    let (token, next) = (fields.get("token"), own_page(fields.get("next")));
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
        let wrong = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "The token is unknown, or was revoked.");
        return console.ask_for_token(&headers, next, Some(&wrong));
    }
    let hash = hash(token);
    match console.api.access().caller_of(hash.clone(), peer).await {
        Ok(caller) => {
            let first = if caller.role == Role::Merchant && next == "/console" { "/console/endpoints" } else { next };
            console.enter(&headers, hash, first)
        }
        Err(problem) => console.ask_for_token(&headers, next, Some(&problem)),
    }
}

pub async fn logout(visit: Visit, headers: HeaderMap) -> Response {
    let left = visit.leave().await;
    let mut response = see("/console/login");
    response.headers_mut().append(header::SET_COOKIE, forget_session(is_https(&headers)));
    if let Err(problem) = left {
        // Whoever leaves is out; the visit ends by itself within hours.
        tracing::warn!(reason = problem.detail, "a portal visit was not revoked");
    }
    response
}

/// A page with a button: whatever looks at links before people do must not use them up.
pub async fn enter_page(State(console): State<Console>, Path(code): Path<String>, headers: HeaderMap) -> Response {
    // Whoever is in already stays in until they follow it.
    let session = console.seal.session(&headers).unwrap_or_else(|| Session::new(None));
    let frame = Frame::bare("Merchant portal", session.form_key.clone());
    let mut response = shown_as(StatusCode::OK, &EnterPage { frame, code });
    response.headers_mut().append(header::SET_COOKIE, console.seal.keep(&session, is_https(&headers)));
    response
}

pub async fn enter(State(console): State<Console>, request: Request) -> Response {
    let headers = request.headers().clone();
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let session = console.seal.session(&headers).unwrap_or_else(|| Session::new(None));
    let entered = async {
        let (_, fields): (_, Fields) = checked_form(&session, request).await?;
        console.api.enter(fields.get("code"), peer).await
    };
    match entered.await {
        Ok(hash) => console.enter(&headers, hash, "/console/endpoints"),
        Err(problem) => failed(None, &problem),
    }
}

impl Console {
    fn ask_for_token(&self, headers: &HeaderMap, next: &str, problem: Option<&Problem>) -> Response {
        // A form that is open in another tab stays good.
        let session = self.seal.session(headers).filter(|session| session.token.is_none());
        let session = session.unwrap_or_else(|| Session::new(None));
        let frame = Frame::bare("Sign in", session.form_key.clone());
        let (status, wrong) =
            problem.map_or((StatusCode::OK, None), |problem| (problem.status, Some(problem.detail.clone())));
        let mut response = shown_as(status, &LoginPage { frame, next: next.to_owned(), wrong });
        // A browser would ask for a name and a password instead of showing the form.
        let given = problem.iter().flat_map(|problem| &problem.headers);
        let given = given.filter(|(name, _)| *name != header::WWW_AUTHENTICATE).cloned();
        response.headers_mut().extend(given);
        response.headers_mut().append(header::SET_COOKIE, self.seal.keep(&session, is_https(headers)));
        response
    }

    fn enter(&self, headers: &HeaderMap, hash: String, next: &str) -> Response {
        let mut response = see(next);
        let session = Session::new(Some(hash));
        response.headers_mut().append(header::SET_COOKIE, self.seal.keep(&session, is_https(headers)));
        response
    }
}

/// What no route has.
pub async fn nothing() -> Problem {
    Problem::not_found()
}

//! One request of somebody who has shown a token: who it is, what was sent, and the frame around each page. Whoever has not, or
//! whose token lives no more, is led to the form for it; a form that did not come from a page of the session changes nothing.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Console,
    asking::{Client, query, with_query},
    page::{Frame, Nav, Who, failed},
    session::{Notice, Session, forget_notice, forget_session, is_https},
};
use crate::{
    api::v1::access::Caller,
    clock,
    facts::token::Role,
    http::{
        connections::Peer,
        problem::{Problem, taken},
        server::BODY_WITHIN,
    },
};

/// Longest form: a hundred ids and a reason.
pub const MAX_FORM_BYTES: usize = 64 * 1024;

/// What htmx says of its requests.
const OF_A_SCRIPT: HeaderName = HeaderName::from_static("hx-request");

#[derive(Clone)]
pub struct Visit {
    pub caller: Caller,
    pub uri: Uri,
    session: Session,
    notice: Option<Notice>,
    client: Client,
    console: Console,
    is_https: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Visit {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let visit = parts.extensions.get::<Self>().cloned();
        visit.ok_or_else(|| Problem::internal(&"a page of the console has no visitor"))
    }
}

/// What was sent with a form, each name as often as it was.
#[derive(Clone, Default)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    pub fn parse(bytes: &[u8]) -> Self {
        Self(url::form_urlencoded::parse(bytes).into_owned().collect())
    }

    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.trim())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Fields {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

fn too_large() -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The form is too large: send less at once.")
}

/// A form's fields, if another site cannot have sent it.
pub async fn checked_form(session: &Session, request: Request) -> Result<(Request, Fields), Problem> {
    let (parts, body) = request.into_parts();
    let late = || Problem::fault("form", format!("did not arrive whole within {} seconds", BODY_WITHIN.as_secs()));
    let bytes = Bytes::from_request(Request::new(body), &()).await;
    let bytes = bytes.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => late(),
    })?;
    if bytes.len() > MAX_FORM_BYTES {
        return Err(too_large());
    }
    let fields = Fields::parse(&bytes);
    if is_of_another_site(&parts.headers) || !session.has_made(fields.get("form_key")) {
        let detail =
            "Nothing was done: the form did not come from a page of this session. Load the page again, and repeat it.";
        return Err(Problem::new(StatusCode::FORBIDDEN, "foreign-form", detail));
    }
    Ok((Request::from_parts(parts, axum::body::Body::empty()), fields))
}

/// As far as the browser says; not by `Host`, which proxies change.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"))
}

/// Around each page but those for whoever is not known yet.
pub async fn known(State(console): State<Console>, mut request: Request, next: Next) -> Response {
    let is_https = is_https(request.headers());
    let session = console.seal.session(request.headers());
    let Some((session, hash)) = session.and_then(|session| Some((session.clone(), session.token?))) else {
        return to_login(&request, false);
    };
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let caller = match console.api.access().caller_of(hash, peer).await {
        Ok(caller) => caller,
        Err(problem) if problem.status == StatusCode::UNAUTHORIZED => return to_login(&request, is_https),
        Err(problem) => return failed(None, &problem),
    };
    let visit = Visit {
        caller,
        uri: request.uri().clone(),
        notice: console.seal.notice(request.headers()),
        client: console.client.anew(),
        session,
        console,
        is_https,
    };
    let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
    if !is_get {
        let (rest, fields) = match checked_form(&visit.session, request).await {
            Ok(checked) => checked,
            Err(problem) => return visit.failed(&problem),
        };
        request = rest;
        request.extensions_mut().insert(fields.clone());
        request.extensions_mut().insert(visit.clone());
        let response = next.run(request).await;
        return visit.told_back(response, &fields);
    }
    let is_shown = visit.notice.is_some() && !request.headers().contains_key(OF_A_SCRIPT);
    request.extensions_mut().insert(visit.clone());
    let mut response = next.run(request).await;
    if let Some(problem) = taken(&mut response) {
        response = visit.failed(&problem);
    }
    if is_shown && !response.status().is_redirection() {
        response.headers_mut().append(header::SET_COOKIE, forget_notice(is_https));
    }
    response
}

/// A script is told to load the page anew, or it would put the form into what it refreshes.
fn to_login(request: &Request, is_https: bool) -> Response {
    let next = request.uri().path_and_query().map_or("/console", |path| path.as_str());
    let place =
        with_query("/console/login", &[("next", if request.method() == Method::GET { next } else { "/console" })]);
    let mut response = if request.headers().contains_key(OF_A_SCRIPT) {
        let place = HeaderValue::from_str(&place).unwrap_or_else(|_| HeaderValue::from_static("/console/login"));
        (StatusCode::UNAUTHORIZED, [(HeaderName::from_static("hx-redirect"), place)], "").into_response()
    } else {
        see(&place)
    };
    if request.headers().contains_key(header::COOKIE) {
        response.headers_mut().append(header::SET_COOKIE, forget_session(is_https));
    }
    response
}

/// The browser asks for that page.
pub fn see(path: &str) -> Response {
    let place = HeaderValue::from_str(path).unwrap_or_else(|_| HeaderValue::from_static("/console"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, place)]).into_response()
}

/// A page of the console, whoever says so.
pub fn own_page(path: &str) -> &str {
    let is_own = path == "/console" || path.strip_prefix("/console").is_some_and(|rest| rest.starts_with(['/', '?']));
    if is_own && path.bytes().all(|byte| byte.is_ascii_graphic()) && !path.contains('\\') { path } else { "/console" }
}

impl Visit {
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.client.get(&self.caller, path).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Problem> {
        self.client.post(&self.caller, path, body).await
    }

    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Problem> {
        self.client.patch(&self.caller, path, body).await
    }

    pub async fn delete(&self, path: &str, body: &Value) -> Result<(), Problem> {
        self.client.delete(&self.caller, path, body).await
    }

    /// What may be missing without the page being worth nothing.
    pub async fn find<T: DeserializeOwned>(&self, path: &str) -> Option<T> {
        self.get(path).await.ok()
    }

    /// The answer to this page's own query.
    pub async fn get_filtered<T: DeserializeOwned>(&self, path: &str, names: &[&str]) -> Result<T, Problem> {
        self.get(&with_query(path, &self.query(names))).await
    }

    pub fn query(&self, names: &[&str]) -> Vec<(String, String)> {
        query(&self.uri, names)
    }

    /// One parameter of the query, or nothing.
    pub fn asked(&self, name: &str) -> String {
        self.query(&[name]).pop().map(|(_, value)| value).unwrap_or_default()
    }

    /// This page with another cursor, or with none.
    pub fn with_cursor(&self, names: &[&str], cursor: Option<&String>) -> Option<String> {
        let mut query = self.query(names);
        query.retain(|(name, _)| name != "cursor");
        query.push(("cursor".to_owned(), cursor?.clone()));
        Some(with_query(self.uri.path(), &query))
    }

    /// Ends what a portal's visitor was let in with, so that a copy of the cookie opens nothing either.
    pub async fn leave(&self) -> Result<(), Problem> {
        match &self.session.token {
            Some(hash) => self.console.api.leave(&self.caller, hash).await,
            None => Ok(()),
        }
    }

    pub fn is_staff(&self) -> bool {
        self.caller.role != Role::Merchant
    }

    /// Endpoints and deliveries; a merchant their own.
    pub fn may_keep(&self) -> bool {
        self.caller.role != Role::Viewer
    }

    pub fn may_operate(&self) -> bool {
        matches!(self.caller.role, Role::Operator | Role::Admin)
    }

    pub fn may_admit(&self) -> bool {
        self.caller.role == Role::Admin
    }

    /// Where a page answers before the API is asked.
    pub fn must(&self, may: bool) -> Result<(), Problem> {
        let refused = || Problem::new(StatusCode::FORBIDDEN, "forbidden", "Your role may not do this.");
        if may { Ok(()) } else { Err(refused()) }
    }

    pub fn now_ms(&self) -> u64 {
        clock::wall_ms()
    }

    pub fn frame(&self, title: impl Into<String>) -> Frame {
        let here = self.uri.path();
        let is_here = |path: &str| if path == "/console" { here == path } else { here.starts_with(path) };
        let all: &[(&'static str, &'static str)] = match (self.is_staff(), self.may_operate()) {
            (false, _) => &MERCHANTS_PAGES,
            (true, false) => &STAFF_PAGES[..STAFF_PAGES.len() - 2],
            (true, true) if self.may_admit() => &STAFF_PAGES,
            (true, true) => &STAFF_PAGES[..STAFF_PAGES.len() - 1],
        };
        Frame {
            title: title.into(),
            nav: all.iter().map(|(path, name)| Nav { path, name, is_here: is_here(path) }).collect(),
            who: Some(Who {
                name: self.caller.name.clone(),
                role: self.caller.role.name(),
                account: self.caller.account.as_ref().map(ToString::to_string),
            }),
            notice: self.notice.clone().or_else(|| self.client.is_unconfirmed().then(|| Notice::bad(UNCONFIRMED))),
            here: self.uri.path_and_query().map_or_else(String::new, ToString::to_string),
            form_key: self.session.form_key.clone(),
            now_ms: self.now_ms(),
            unavailable: self.client.unavailable(),
            refreshes: true,
        }
    }

    fn failed(&self, problem: &Problem) -> Response {
        failed(Some(self.frame("")), problem)
    }

    /// After an act: the page that it was done on, or another, with what came of it.
    pub fn back(&self, place: &str, notice: &Notice) -> Response {
        let mut notice = notice.clone();
        if self.client.is_unconfirmed() {
            notice = Notice::bad(format!("{} {UNCONFIRMED}", notice.says));
        }
        let mut response = see(own_page(place));
        response.headers_mut().append(header::SET_COOKIE, self.console.seal.say(&notice, self.is_https));
        response
    }

    /// What was refused is told on the page that it was asked on; what may not be, on a page of its own.
    fn told_back(&self, mut response: Response, fields: &Fields) -> Response {
        let Some(problem) = taken(&mut response) else { return response };
        match problem.status {
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => self.failed(&problem),
            _ => self.back(fields.get("back"), &Notice::bad(problem.detail.clone())),
        }
    }
}

/// Of a change, behind what came of it.
const UNCONFIRMED: &str = "It is stored, but no replica of Redis has confirmed it: a failover now may take it back. \
                           Look later whether it is there, and do it again if it is not.";

/// The last but one is for operators, the last for whoever keeps the tokens.
const STAFF_PAGES: [(&str, &str); 11] = [
    ("/console", "Overview"),
    ("/console/issues", "Issues"),
    ("/console/endpoints", "Endpoints"),
    ("/console/deliveries", "Deliveries"),
    ("/console/dead-letters", "Dead letters"),
    ("/console/operations", "Operations"),
    ("/console/quarantine", "Quarantine"),
    ("/console/partitions", "Partitions"),
    ("/console/audit", "Audit"),
    ("/console/portal", "Portal"),
    ("/console/tokens", "Tokens"),
];

const MERCHANTS_PAGES: [(&str, &str); 3] = [
    ("/console/endpoints", "Endpoints"),
    ("/console/deliveries", "Deliveries"),
    ("/console/dead-letters", "Dead letters"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_another_site() {
        for own in ["/console", "/console/issues?all=true", "/console?x"] {
            assert_eq!(own_page(own), own);
        }
        for other in
            ["//evil.example", "https://evil.example", "/consoles", "/console/\\x", "/console/\r\nx", "", "/v1/me"]
        {
            assert_eq!(own_page(other), "/console", "{other}");
        }
    }
}

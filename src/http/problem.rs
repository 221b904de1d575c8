//! A refusal as RFC 9457 describes it: `type`, `title`, `status`, `detail`, with `errors` by the path of each member that is
//! wrong, and a `traceId` by which the logs find the request.

use std::{collections::BTreeMap, fmt, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::error;
use utoipa::ToSchema;

use crate::facts::traceparent::Traceparent;

/// What each answer carries: the trace's id.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Where the kinds of problems are: the path that each `type` begins with.
const TYPES: &str = "/problems/";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// The end of its `type`, by which programs tell problems apart: `intent-is-captured`.
    pub name: &'static str,
    pub detail: String,
    pub errors: BTreeMap<String, Vec<String>>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// For the log, and nobody else.
    pub cause: Option<Box<str>>,
}

impl Problem {
    pub fn new(status: StatusCode, name: &'static str, detail: impl Into<String>) -> Self {
        Self { status, name, detail: detail.into(), errors: BTreeMap::new(), headers: Vec::new(), cause: None }
    }

    /// A request whose members are wrong, each by its path as the client wrote it.
    pub fn faults(faults: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut errors = BTreeMap::<String, Vec<String>>::new();
        for (member, why) in faults {
            errors.entry(member).or_default().push(why);
        }
        let named: Vec<_> = errors.iter().map(|(member, why)| format!("{member} {}", why.join(", "))).take(3).collect();
        let more = errors.len().saturating_sub(named.len());
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let detail = format!("{}{more}.", named.join("; "));
        Self { errors, ..Self::new(StatusCode::BAD_REQUEST, "validation", detail) }
    }

    pub fn fault(member: &str, why: impl Into<String>) -> Self {
        Self::faults([(member.to_owned(), why.into())])
    }

    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is nothing at this address.")
    }

    /// `try_again` is in seconds.
    pub fn unavailable(detail: impl Into<String>, try_again: u32) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).with(header::RETRY_AFTER, try_again)
    }

    /// Something is wrong on this side. What it is stands in the log, under the trace's id.
    pub fn internal(cause: &dyn fmt::Display) -> Self {
        let detail = "Something is wrong on this side: whoever runs it finds it in the log by the traceId.";
        let problem = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail);
        Self { cause: Some(cause.to_string().into()), ..problem }
    }

    /// The same answer, with what the log says of it.
    pub fn because(self, cause: &dyn fmt::Display) -> Self {
        Self { cause: Some(cause.to_string().into()), ..self }
    }

    pub fn with(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn title(&self) -> &'static str {
        match self.name {
            "validation" => "The request is not valid",
            "unauthorized" => "The key or token is missing or unknown",
            "forbidden" => "The key or token may not do this",
            "not-found" => "Not found",
            "method-not-allowed" => "The method is not allowed here",
            "unavailable" => "The service is unavailable",
            _ => self.status.canonical_reason().unwrap_or("Refused"),
        }
    }
}

/// Its shape, for descriptions and for the answer itself.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProblemDetails {
    #[schema(example = "/problems/intent-is-captured")]
    pub r#type: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    pub trace_id: String,
    /// What is wrong, by the path of the member: `amount.currencyCode`. Of a header by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false)]
    pub errors: BTreeMap<String, Vec<String>>,
}

/// Written by [`finish`], which knows the trace, unless somebody makes a page of it before.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// The outermost layer: gives each request its id, and writes problems out, also those that axum itself has.
pub async fn finish(request: Request, next: Next) -> Response {
    let id = trace_id(request.headers());
    let mut response = next.run(request).await;
    // A page for people stays as it is.
    let is_page = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| !is_plain(kind));
    if let Some(problem) = taken(&mut response) {
        log(&problem, &id);
        if !is_page {
            response = written(&problem, &id, response.headers());
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The problem that an answer is, of ours or of axum's own, for whoever writes it out.
pub fn taken(response: &mut Response) -> Option<Arc<Problem>> {
    response.extensions_mut().remove::<Arc<Problem>>().or_else(|| of_axum(response).map(Arc::new))
}

fn is_plain(kind: &HeaderValue) -> bool {
    kind.as_bytes().starts_with(b"text/plain")
}

fn log(problem: &Problem, id: &str) {
    if problem.status.is_server_error() {
        let cause = problem.cause.as_deref().unwrap_or(&problem.detail);
        error!(trace_id = id, status = problem.status.as_u16(), error = cause, "a request failed");
    }
}

fn written(problem: &Problem, id: &str, given: &HeaderMap) -> Response {
    let details = ProblemDetails {
        r#type: format!("{TYPES}{}", problem.name),
        title: problem.title().to_owned(),
        status: problem.status.as_u16(),
        detail: problem.detail.clone(),
        trace_id: id.to_owned(),
        errors: problem.errors.clone(),
    };
    let mut response = (problem.status, Json(details)).into_response();
    if let Some(allow) = given.get(header::ALLOW) {
        response.headers_mut().insert(header::ALLOW, allow.clone());
    }
    response.headers_mut().extend(problem.headers.clone());
    response
}

/// What axum refuses by itself: a method that a path does not have, a path that is no text.
fn of_axum(response: &Response<Body>) -> Option<Problem> {
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_bare = kind.is_none();
    let is_plain = kind.is_some_and(is_plain);
    match response.status() {
        StatusCode::BAD_REQUEST if is_plain => Some(Problem::fault("path", "is not UTF-8 once it is decoded")),
        StatusCode::METHOD_NOT_ALLOWED if is_bare => Some(Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "This address does not take this method; Allow names those that it takes.",
        )),
        _ => None,
    }
}

/// Of [`untyped`] problems.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// The body of a problem without a type of its own, for callers who have no description to look it up in. `more` is an object
/// with further members.
pub fn untyped(status: StatusCode, detail: &str, more: Value) -> String {
    let title = status.canonical_reason().unwrap_or("Problem");
    let mut body = json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail});
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    body.to_string()
}

/// The caller's own trace, where it sends one.
fn trace_id(headers: &HeaderMap) -> String {
    let given = headers.get("traceparent").and_then(|value| value.to_str().ok());
    let parent = given.and_then(|text| text.parse::<Traceparent>().ok());
    let of_parent = parent.and_then(|parent| parent.to_string().split('-').nth(1).map(str::to_owned));
    of_parent.unwrap_or_else(|| hex::encode(rand::random::<[u8; 16]>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_by_member_and_in_one_sentence() {
        let faults = ["a", "b", "c", "d"].map(|member| (member.to_owned(), "is missing".to_owned()));
        let problem = Problem::faults(faults);
        assert_eq!(problem.detail, "a is missing; b is missing; c is missing; and 1 more.");
        assert_eq!(problem.errors["d"], ["is missing"]);
    }
}

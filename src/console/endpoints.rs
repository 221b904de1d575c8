//! Endpoints with how their receivers do, and what can be done about them.

use askama::Template;
use axum::{extract::Path, response::Response};
use serde_json::{Value, json};

use super::{
    answers::{Act, Endpoint, Issue, Line, List, Test, Told},
    asking::{segment, with_query},
    curl, filters,
    page::{Frame, shown},
    session::Notice,
    visit::{Fields, Visit},
};
use crate::http::problem::Problem;

const FILTERS: [&str; 4] = ["account", "state", "limit", "cursor"];

/// What the page of one endpoint shows of each list; each has a page of its own.
const MAX_OF_EACH: usize = 10;

#[derive(Template)]
#[template(path = "console/endpoints.html", escape = "visible")]
struct EndpointsPage {
    frame: Frame,
    endpoints: List<Endpoint>,
    account: String,
    state: String,
    is_staff: bool,
    may_keep: bool,
    next: Option<String>,
    prev: Option<String>,
}

#[derive(Template)]
#[template(path = "console/endpoint.html", escape = "visible")]
struct EndpointPage {
    frame: Frame,
    endpoint: Endpoint,
    issues: Vec<Issue>,
    waiting: Vec<Line>,
    attempts: Vec<Told>,
    acts: Vec<Act>,
    is_staff: bool,
    may_keep: bool,
    may_operate: bool,
}

#[derive(Template)]
#[template(path = "console/tested.html", escape = "visible")]
struct TestedPage {
    frame: Frame,
    test: Test,
    curl: String,
}

#[derive(Template)]
#[template(path = "console/rotated.html", escape = "visible")]
pub struct RotatedPage {
    pub frame: Frame,
    /// The endpoint is, too, and not its secret alone.
    pub is_new: bool,
    pub endpoint: Endpoint,
}

pub async fn list(visit: Visit) -> Result<Response, Problem> {
    let endpoints: List<Endpoint> = visit.get_filtered("/v1/endpoints", &FILTERS).await?;
    let (next, prev) = (endpoints.next.as_ref(), endpoints.prev.as_ref());
    let (next, prev) = (visit.with_cursor(&FILTERS, next), visit.with_cursor(&FILTERS, prev));
    let page = EndpointsPage {
        frame: visit.frame("Endpoints"),
        endpoints,
        account: visit.asked("account"),
        state: visit.asked("state"),
        is_staff: visit.is_staff(),
        may_keep: visit.may_keep(),
        next,
        prev,
    };
    Ok(shown(&page))
}

pub async fn show(visit: Visit, Path(id): Path<String>) -> Result<Response, Problem> {
    let endpoint: Endpoint = visit.get(&path(&id)).await?;
    let of = |list: &str| with_query(list, &[("endpoint", endpoint.id.as_str()), ("limit", &MAX_OF_EACH.to_string())]);
    let attempts = visit.find::<List<Told>>(&of("/v1/attempts")).await;
    let lines = visit.find::<List<Line>>(&of("/v1/deliveries")).await;
    let waiting = lines.into_iter().flat_map(|list| list.items).filter(Line::is_unfinished).collect();
    let (mut issues, mut acts) = (Vec::new(), Vec::new());
    if visit.is_staff() {
        issues = visit.find::<List<Issue>>(&of("/v1/issues")).await.map(|list| list.items).unwrap_or_default();
        acts = visit.find::<List<Act>>(&of("/v1/audit")).await.map(|list| list.items).unwrap_or_default();
    }
    let page = EndpointPage {
        frame: visit.frame(format!("Endpoint {}", endpoint.id)),
        endpoint,
        issues,
        waiting,
        attempts: attempts.map(|list| list.items).unwrap_or_default(),
        acts,
        is_staff: visit.is_staff(),
        may_keep: visit.may_keep(),
        may_operate: visit.may_operate(),
    };
    Ok(shown(&page))
}

pub async fn pause(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    switch(&visit, &id, &fields, "pause", "It is paused: its deliveries wait.").await
}

pub async fn resume(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    switch(&visit, &id, &fields, "resume", "Its backlog goes out again.").await
}

pub async fn enable(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    switch(&visit, &id, &fields, "enable", "It takes events again.").await
}

pub async fn disable(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    switch(&visit, &id, &fields, "disable", "It is disabled: what is unfinished becomes dead letters.").await
}

async fn switch(visit: &Visit, id: &str, fields: &Fields, verb: &str, says: &str) -> Result<Response, Problem> {
    visit.post::<Value>(&format!("{}/{verb}", path(id)), &json!({ "reason": fields.get("reason") })).await?;
    Ok(visit.back(&own_path(id), &Notice::good(says)))
}

/// The answer has the new secret, so it is a page of its own, and not kept. Loading that again must not rotate again.
pub async fn rotate_secret(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    visit.must(visit.may_keep())?;
    let before: Endpoint = visit.get(&path(&id)).await?;
    if before.revision.to_string() != fields.get("revision") {
        let says = "Nothing was done: the endpoint has changed since the page was loaded. Look, and repeat it if it is needed.";
        return Ok(visit.back(&own_path(&id), &Notice::bad(says)));
    }
    let mut body = json!({ "reason": fields.get("reason") });
    if !fields.get("overlap").is_empty() {
        body["overlap"] = fields.get("overlap").into();
    }
    let endpoint: Endpoint = visit.post(&format!("{}/rotate-secret", path(&id)), &body).await?;
    let frame = visit.frame(format!("New secret of {}", endpoint.id)).still();
    Ok(shown(&RotatedPage { frame, is_new: false, endpoint }))
}

pub async fn test(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    let mut body = json!({});
    for name in ["event_type", "reason"] {
        if !fields.get(name).is_empty() {
            body[name] = fields.get(name).into();
        }
    }
    let test: Test = visit.post(&format!("{}/test", path(&id)), &body).await?;
    let curl = curl::command(&test.url, &test.headers, &test.body);
    Ok(shown(&TestedPage { frame: visit.frame(format!("Test of {}", test.endpoint)).still(), test, curl }))
}

fn path(id: &str) -> String {
    format!("/v1/endpoints/{}", segment(id))
}

fn own_path(id: &str) -> String {
    format!("/console/endpoints/{}", segment(id))
}

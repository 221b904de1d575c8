//! Operations: what is done to many deliveries, planned here, confirmed by its number, and followed until it has ended.

use askama::Template;
use axum::{extract::Path, response::Response};
use serde_json::{Value, json};

use super::{
    answers::{List, Operation, OperationResult},
    asking::segment,
    filters, letters,
    page::{Frame, shown},
    session::Notice,
    visit::{Fields, Visit},
};
use crate::http::problem::Problem;

const FILTERS: [&str; 2] = ["limit", "cursor"];

/// What is shown of what was not simply done; the rest is behind the cursor.
const RESULTS: [&str; 1] = ["cursor"];

#[derive(Template)]
#[template(path = "console/operations.html", escape = "visible")]
struct OperationsPage {
    frame: Frame,
    operations: List<Operation>,
    may_operate: bool,
    prev: Option<String>,
    next: Option<String>,
}

#[derive(Template)]
#[template(path = "console/operation.html", escape = "visible")]
struct OperationPage {
    frame: Frame,
    operation: Operation,
    results: List<OperationResult>,
    next: Option<String>,
    may_operate: bool,
}

pub async fn list(visit: Visit) -> Result<Response, Problem> {
    let operations: List<Operation> = visit.get_filtered("/v1/operations", &FILTERS).await?;
    let [prev, next] = [&operations.prev, &operations.next].map(|at| visit.with_cursor(&FILTERS, at.as_ref()));
    let (frame, may_operate) = (visit.frame("Operations"), visit.may_operate());
    Ok(shown(&OperationsPage { frame, operations, may_operate, prev, next }))
}

pub async fn show(visit: Visit, Path(id): Path<String>) -> Result<Response, Problem> {
    let operation: Operation = visit.get(&path(&id)).await?;
    let results: List<OperationResult> = visit.get_filtered(&format!("{}/results", path(&id)), &RESULTS).await?;
    let next = visit.with_cursor(&RESULTS, results.next.as_ref());
    let frame = visit.frame(format!("Operation {}", operation.id));
    let frame = if operation.is_over() { frame.still() } else { frame };
    Ok(shown(&OperationPage { frame, operation, results, next, may_operate: visit.may_operate() }))
}

/// Freezes what a filter of dead letters finds. Nothing is done before it is started from its own page.
pub async fn plan(visit: Visit, fields: Fields) -> Result<Response, Problem> {
    let mut body = json!({ "kind": fields.get("kind"), "reason": fields.get("reason") });
    let mut is_filtered = false;
    for name in letters::FILTERS.iter().filter(|name| !fields.get(name).is_empty()) {
        body[*name] = fields.get(name).into();
        is_filtered |= *name != "until";
    }
    if !is_filtered {
        body["all"] = true.into();
    }
    let planned: Operation = visit.post("/v1/operations", &body).await?;
    let says = "This is the plan. Nothing is done before it is started.";
    Ok(visit.back(&page_of(&planned.id), &Notice::good(says)))
}

/// Dropping needs the number that was planned, typed by whoever does it.
pub async fn start(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    let operation: Operation = visit.get(&path(&id)).await?;
    if operation.is_for_good() && fields.get("confirmed").replace(' ', "") != operation.count.to_string() {
        let says = "Nothing was done: the number that was typed is not the number that was planned.";
        return Ok(visit.back(&page_of(&id), &Notice::bad(says)));
    }
    change(&visit, &id, &fields, "start", "The operation runs.").await
}

pub async fn pause(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    change(&visit, &id, &fields, "pause", "The operation takes no more until it is resumed.").await
}

pub async fn resume(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    change(&visit, &id, &fields, "resume", "The operation goes on.").await
}

pub async fn cancel(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    change(&visit, &id, &fields, "cancel", "The operation takes nothing more. What it did stays done.").await
}

pub async fn rate(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    let Ok(rate) = fields.get("rate").parse::<u32>() else {
        return Ok(visit.back(&page_of(&id), &Notice::bad("The rate is a number, 1 to 10000.")));
    };
    visit.post::<Value>(&format!("{}/rate", path(&id)), &json!({ "rate": rate })).await?;
    Ok(visit.back(&page_of(&id), &Notice::good("The rate is set.")))
}

async fn change(visit: &Visit, id: &str, fields: &Fields, verb: &str, says: &str) -> Result<Response, Problem> {
    let reason = fields.get("reason");
    let body = if reason.is_empty() { json!({}) } else { json!({ "reason": reason }) };
    visit.post::<Value>(&format!("{}/{verb}", path(id)), &body).await?;
    Ok(visit.back(&page_of(id), &Notice::good(says)))
}

fn path(id: &str) -> String {
    format!("/v1/operations/{}", segment(id))
}

fn page_of(id: &str) -> String {
    format!("/console/operations/{}", segment(id))
}

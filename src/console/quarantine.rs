//! The quarantine: entries of the stream that are no valid events.

use askama::Template;
use axum::{extract::Path, response::Response};
use serde_json::json;

use super::{
    answers::{Entry, List, Results},
    asking::segment,
    filters,
    letters::told,
    page::{Frame, shown},
    session::Notice,
    visit::{Fields, Visit},
};
use crate::http::problem::Problem;

const FILTERS: [&str; 2] = ["limit", "cursor"];

#[derive(Template)]
#[template(path = "console/quarantine.html", escape = "visible")]
struct QuarantinePage {
    frame: Frame,
    entries: List<Entry>,
    next: Option<String>,
    prev: Option<String>,
    may_operate: bool,
}

#[derive(Template)]
#[template(path = "console/entry.html", escape = "visible")]
struct EntryPage {
    frame: Frame,
    entry: Entry,
    may_operate: bool,
}

pub async fn list(visit: Visit) -> Result<Response, Problem> {
    let entries: List<Entry> = visit.get_filtered("/v1/quarantine", &FILTERS).await?;
    let (next, prev) = (entries.next.as_ref(), entries.prev.as_ref());
    let (next, prev) = (visit.with_cursor(&FILTERS, next), visit.with_cursor(&FILTERS, prev));
    let may_operate = visit.may_operate();
    Ok(shown(&QuarantinePage { frame: visit.frame("Quarantine"), entries, next, prev, may_operate }))
}

pub async fn show(visit: Visit, Path(id): Path<String>) -> Result<Response, Problem> {
    let entry: Entry = visit.get(&format!("/v1/quarantine/{}", segment(&id))).await?;
    let frame = visit.frame(format!("Entry {}", entry.entry));
    Ok(shown(&EntryPage { frame, entry, may_operate: visit.may_operate() }))
}

pub async fn requeue(visit: Visit, fields: Fields) -> Result<Response, Problem> {
    chosen(&visit, &fields, "/v1/quarantine/requeue", "put back").await
}

pub async fn discard(visit: Visit, fields: Fields) -> Result<Response, Problem> {
    if fields.get("confirmed") != fields.all("entries").len().to_string() {
        let says = "Nothing was discarded: the number that was typed is not that of the chosen entries.";
        return Ok(visit.back(fields.get("back"), &Notice::bad(says)));
    }
    chosen(&visit, &fields, "/v1/quarantine/discard", "discarded").await
}

async fn chosen(visit: &Visit, fields: &Fields, path: &str, done: &str) -> Result<Response, Problem> {
    let entries = fields.all("entries");
    if entries.is_empty() {
        return Ok(visit.back(fields.get("back"), &Notice::bad("Nothing was done: no entry was chosen.")));
    }
    let body = json!({ "entries": entries, "reason": fields.get("reason") });
    let results: Results = visit.post(path, &body).await?;
    let own = fields.get("back").starts_with("/console/quarantine/");
    let place = if own && results.done > 0 { "/console/quarantine" } else { fields.get("back") };
    Ok(visit.back(place, &told(&results, done, ["entry was", "entries were"])))
}

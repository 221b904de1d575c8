//! Issues: what fails where, why and since when; and what operators say of it.

use askama::Template;
use axum::{extract::Path, response::Response};
use serde_json::{Value, json};

use super::{
    answers::{Issue, List},
    asking::segment,
    filters,
    page::{Frame, shown},
    plot,
    session::Notice,
    visit::{Fields, Visit},
};
use crate::http::problem::Problem;

const FILTERS: [&str; 5] = ["account", "endpoint", "all", "limit", "cursor"];

#[derive(Template)]
#[template(path = "console/issues.html", escape = "visible")]
struct IssuesPage {
    frame: Frame,
    issues: List<Issue>,
    account: String,
    endpoint: String,
    all: bool,
    next: Option<String>,
    prev: Option<String>,
}

#[derive(Template)]
#[template(path = "console/issue.html", escape = "visible")]
struct IssuePage {
    frame: Frame,
    issue: Issue,
    may_operate: bool,
    plot: String,
}

pub async fn list(visit: Visit) -> Result<Response, Problem> {
    let issues: List<Issue> = visit.get_filtered("/v1/issues", &FILTERS).await?;
    let (account, endpoint, all) = (visit.asked("account"), visit.asked("endpoint"), visit.asked("all") == "true");
    let (next, prev) = (issues.next.as_ref(), issues.prev.as_ref());
    let (next, prev) = (visit.with_cursor(&FILTERS, next), visit.with_cursor(&FILTERS, prev));
    Ok(shown(&IssuesPage { frame: visit.frame("Issues"), issues, account, endpoint, all, next, prev }))
}

pub async fn show(visit: Visit, Path(id): Path<String>) -> Result<Response, Problem> {
    let issue: Issue = visit.get(&path(&id)).await?;
    let hours: Vec<u64> = by_hour(&issue);
    let now = issue.hours.last().map(|hour| hour.at.clone()).unwrap_or_default();
    let plot = plot::by_hour("Failed attempts by hour", &hours, &now, ["failed attempt", "failed attempts"]);
    let frame = visit.frame(format!("Issue {}", issue.id));
    Ok(shown(&IssuePage { frame, may_operate: visit.may_operate(), plot, issue }))
}

/// Hours without a failure are not told; on the plot they are empty.
fn by_hour(issue: &Issue) -> Vec<u64> {
    const HOUR_MS: u64 = 3_600_000;
    const MOST: u64 = 24;
    let Some(last) = issue.hours.last().map(|hour| hour.at.ms() / HOUR_MS) else { return Vec::new() };
    let at = |number: u64| issue.hours.iter().find(|hour| hour.at.ms() / HOUR_MS == number);
    (last.saturating_sub(MOST - 1)..=last).map(|number| at(number).map_or(0, |hour| hour.failed)).collect()
}

pub async fn ack(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    say(&visit, &id, &fields, "ack", "The issue is acknowledged.").await
}

pub async fn resolve(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    say(&visit, &id, &fields, "resolve", "The issue is resolved. If it happens again, it opens anew.").await
}

async fn say(visit: &Visit, id: &str, fields: &Fields, verb: &str, says: &str) -> Result<Response, Problem> {
    let body = json!({ "reason": fields.get("reason") });
    visit.post::<Value>(&format!("{}/{verb}", path(id)), &body).await?;
    Ok(visit.back(fields.get("back"), &Notice::good(says)))
}

fn path(id: &str) -> String {
    format!("/v1/issues/{}", segment(id))
}

//! What an endpoint is: one that is made here, its settings changed, and its end. What has no field here has a flag of the verbs.

use askama::Template;
use axum::{extract::Path, http::StatusCode, response::Response};
use serde_json::{Value, json};

use super::{
    answers::Endpoint,
    asking::segment,
    endpoints::RotatedPage,
    filters,
    page::{Frame, shown, shown_as},
    session::Notice,
    visit::{Fields, Visit},
};
use crate::http::problem::Problem;

/// As the choices have them, whichever was named first.
fn in_one_order(mut schemes: Vec<String>) -> String {
    let place = |scheme: &String| ["standard", "dojo", "ed25519"].iter().position(|known| known == scheme);
    schemes.sort_by_key(place);
    schemes.join(", ")
}

/// What stands in the fields: what the endpoint has, or what somebody typed that was refused.
#[derive(Default)]
struct Typed {
    account: String,
    url: String,
    description: String,
    event_types: String,
    schemes: String,
    ordering: String,
    max_in_flight: String,
    rate_limit: String,
    timeout_ms: String,
    revision: String,
    reason: String,
}

#[derive(Template)]
#[template(path = "console/settings.html", escape = "visible")]
struct SettingsPage {
    frame: Frame,
    /// None: one that is made.
    endpoint: Option<String>,
    typed: Typed,
    is_staff: bool,
}

impl From<Endpoint> for Typed {
    fn from(endpoint: Endpoint) -> Self {
        let text = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
        Self {
            account: endpoint.account,
            url: endpoint.url,
            description: endpoint.description,
            event_types: endpoint.event_types.join(", "),
            schemes: in_one_order(endpoint.schemes),
            ordering: endpoint.ordering,
            max_in_flight: endpoint.max_in_flight.to_string(),
            rate_limit: text(endpoint.rate_limit),
            timeout_ms: text(endpoint.timeout_ms),
            revision: endpoint.revision.to_string(),
            reason: String::new(),
        }
    }
}

impl From<&Fields> for Typed {
    fn from(fields: &Fields) -> Self {
        let text = |name| fields.get(name).to_owned();
        Self {
            account: text("account"),
            url: text("url"),
            description: text("description"),
            event_types: text("event_types"),
            schemes: text("schemes"),
            ordering: text("ordering"),
            max_in_flight: text("max_in_flight"),
            rate_limit: text("rate_limit"),
            timeout_ms: text("timeout_ms"),
            revision: text("revision"),
            reason: text("reason"),
        }
    }
}

impl Typed {
    /// As the API takes it. What is empty has the default.
    fn body(&self) -> Result<Value, Problem> {
        let number = |member: &str, text: &str| match text {
            "" => Ok(Value::Null),
            text => {
                let number = text.parse::<u32>().map_err(|_| Problem::fault(member, "is not a whole number"));
                number.map(Value::from)
            }
        };
        let list = |text: &str| {
            let names: Vec<&str> = text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
            if names.is_empty() { Value::Null } else { names.into() }
        };
        Ok(json!({
            "url": self.url,
            "description": self.description,
            "event_types": list(&self.event_types),
            "schemes": list(&self.schemes),
            "ordering": self.ordering,
            "max_in_flight": number("max_in_flight", &self.max_in_flight)?,
            "rate_limit": number("rate_limit", &self.rate_limit)?,
            "timeout_ms": number("timeout_ms", &self.timeout_ms)?,
            "reason": self.reason,
        }))
    }
}

pub async fn new(visit: Visit) -> Result<Response, Problem> {
    visit.must(visit.may_keep())?;
    Ok(form(&visit, None, Typed { account: visit.asked("account"), ..Typed::default() }, None))
}

pub async fn edit(visit: Visit, Path(id): Path<String>) -> Result<Response, Problem> {
    visit.must(visit.may_keep())?;
    let endpoint: Endpoint = visit.get(&path(&id)).await?;
    Ok(form(&visit, Some(endpoint.id.clone()), endpoint.into(), None))
}

/// The answer has the secret, so it is a page of its own.
pub async fn create(visit: Visit, fields: Fields) -> Result<Response, Problem> {
    let typed = Typed::from(&fields);
    let create = async || {
        let mut body = typed.body()?;
        if !typed.account.is_empty() {
            body["account"] = typed.account.as_str().into();
        }
        visit.post::<Endpoint>("/v1/endpoints", &body).await
    };
    match create().await {
        Ok(endpoint) => {
            let frame = visit.frame(format!("New endpoint {}", endpoint.id)).still();
            Ok(shown(&RotatedPage { frame, is_new: true, endpoint }))
        }
        Err(problem) => refused(&visit, None, typed, problem),
    }
}

/// Only if it is still what the form showed.
pub async fn change(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    let typed = Typed::from(&fields);
    let change = async || {
        let mut body = typed.body()?;
        body["revision"] = typed.revision.parse::<u64>().map_err(|_| Problem::fault("revision", "is missing"))?.into();
        visit.patch::<Value>(&path(&id), &body).await
    };
    match change().await {
        Ok(_) => Ok(visit.back(&page_of(&id), &Notice::good("The settings are changed."))),
        Err(problem) => refused(&visit, Some(id), typed, problem),
    }
}

/// Whoever deletes one types its id.
pub async fn delete(visit: Visit, Path(id): Path<String>, fields: Fields) -> Result<Response, Problem> {
    visit.must(visit.may_keep())?;
    if fields.get("confirmed") != id {
        let says = "Nothing was done: what was typed is not the id of this endpoint.";
        return Ok(visit.back(&page_of(&id), &Notice::bad(says)));
    }
    visit.delete(&path(&id), &json!({ "reason": fields.get("reason") })).await?;
    let says = format!("{id} takes no more events, and is gone when nothing is owed to it any more.");
    Ok(visit.back("/console/endpoints", &Notice::good(says)))
}

/// What was typed stays where it was, beside what is wrong with it.
fn refused(visit: &Visit, endpoint: Option<String>, typed: Typed, problem: Problem) -> Result<Response, Problem> {
    match problem.status {
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Err(problem),
        _ => Ok(form(visit, endpoint, typed, Some(&problem))),
    }
}

fn form(visit: &Visit, endpoint: Option<String>, typed: Typed, problem: Option<&Problem>) -> Response {
    let title = endpoint.as_ref().map_or("New endpoint".to_owned(), |id| format!("Settings of {id}"));
    let mut frame = visit.frame(title).still();
    frame.notice = problem.map(|problem| Notice::bad(problem.detail.clone())).or(frame.notice);
    let status = problem.map_or(StatusCode::OK, |problem| problem.status);
    shown_as(status, &SettingsPage { frame, endpoint, typed, is_staff: visit.is_staff() })
}

fn path(id: &str) -> String {
    format!("/v1/endpoints/{}", segment(id))
}

fn page_of(id: &str) -> String {
    format!("/console/endpoints/{}", segment(id))
}

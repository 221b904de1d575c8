//! The audit log: who did what, and how it ended.

use askama::Template;
use axum::{extract::Path, response::Response};

use super::{
    answers::{Act, List},
    asking::segment,
    filters,
    page::{Frame, shown},
    visit::Visit,
};
use crate::{facts::audit, http::problem::Problem};

const FILTERS: [&str; 9] = ["since", "until", "by", "act", "endpoint", "account", "intent", "limit", "cursor"];

#[derive(Template)]
#[template(path = "console/audit.html", escape = "visible")]
struct AuditPage {
    frame: Frame,
    acts: List<Act>,
    asked: Vec<(String, String)>,
    names: Vec<&'static str>,
    next: Option<String>,
}

impl AuditPage {
    fn value(&self, name: &str) -> &str {
        self.asked.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

#[derive(Template)]
#[template(path = "console/act.html", escape = "visible")]
struct ActPage {
    frame: Frame,
    act: Act,
}

pub async fn list(visit: Visit) -> Result<Response, Problem> {
    let acts: List<Act> = visit.get_filtered("/v1/audit", &FILTERS).await?;
    let next = visit.with_cursor(&FILTERS, acts.next.as_ref());
    let names = audit::Act::ALL.iter().map(|act| act.name()).collect();
    Ok(shown(&AuditPage { frame: visit.frame("Audit log"), acts, asked: visit.query(&FILTERS), names, next }))
}

pub async fn show(visit: Visit, Path(id): Path<String>) -> Result<Response, Problem> {
    let act: Act = visit.get(&format!("/v1/audit/{}", segment(&id))).await?;
    Ok(shown(&ActPage { frame: visit.frame(format!("Act {}", act.id)), act }))
}

//! Where an operator makes the link by which a merchant enters.

use askama::Template;
use axum::{http::HeaderMap, response::Response};
use serde_json::json;

use super::{
    answers::PortalLink,
    asking::segment,
    filters,
    page::{Frame, shown},
    session::is_https,
    visit::{Fields, Visit},
};
use crate::http::problem::Problem;

#[derive(Template)]
#[template(path = "console/portal.html", escape = "visible")]
struct PortalPage {
    frame: Frame,
    account: String,
    made: Option<Made>,
}

/// A link that has just been made: nobody sees it again.
struct Made {
    account: String,
    url: String,
    link: PortalLink,
}

pub async fn form(visit: Visit) -> Result<Response, Problem> {
    visit.must(visit.may_operate())?;
    Ok(shown(&PortalPage {
        frame: visit.frame("Merchant portal").still(),
        account: visit.asked("account"),
        made: None,
    }))
}

pub async fn link(visit: Visit, headers: HeaderMap, fields: Fields) -> Result<Response, Problem> {
    let account = fields.get("account").to_owned();
    let path = format!("/v1/accounts/{}/portal-link", segment(&account));
    let link: PortalLink = visit.post(&path, &json!({ "reason": fields.get("reason") })).await?;
    let url = format!("{}{}", reached_at(&headers), link.path);
    let made = Some(Made { account, url, link });
    Ok(shown(&PortalPage { frame: visit.frame("Merchant portal").still(), account: String::new(), made }))
}

/// As the operator's browser reaches this Herald.
fn reached_at(headers: &HeaderMap) -> String {
    let host = headers.get("x-forwarded-host").or_else(|| headers.get("host"));
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    if host.is_empty() {
        String::new()
    } else {
        format!("{}://{host}", if is_https(headers) { "https" } else { "http" })
    }
}

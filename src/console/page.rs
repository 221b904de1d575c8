//! What all pages share: the frame around them, and how ids, times and numbers look.

use std::{sync::LazyLock, time::Duration};

use askama::Template;
use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{assets, session::Notice};
use crate::{http::problem::Problem, view::words};

pub const HTML: &str = "text/html; charset=utf-8";

/// Between two refreshes, where nobody stops them.
pub const REFRESHED_EVERY: Duration = Duration::from_secs(5);

pub struct Nav {
    pub path: &'static str,
    pub name: &'static str,
    pub is_here: bool,
}

pub struct Who {
    pub name: String,
    pub role: &'static str,
    pub account: Option<String>,
}

/// What stands around the content of a page.
pub struct Frame {
    pub title: String,
    pub nav: Vec<Nav>,
    pub who: Option<Who>,
    pub notice: Option<Notice>,
    /// Path and query, to come back to.
    pub here: String,
    pub form_key: String,
    pub now_ms: u64,
    /// The streams of which something is missing.
    pub unavailable: Vec<String>,
    pub refreshes: bool,
}

impl Frame {
    /// For whoever is not known yet.
    pub fn bare(title: &str, form_key: String) -> Self {
        Self {
            title: title.to_owned(),
            nav: Vec::new(),
            who: None,
            notice: None,
            here: "/console".to_owned(),
            form_key,
            now_ms: crate::clock::wall_ms(),
            unavailable: Vec::new(),
            refreshes: false,
        }
    }

    /// A page that stays as it is: the answer to something that was done.
    pub fn still(self) -> Self {
        Self { refreshes: false, ..self }
    }

    pub fn version(&self) -> &'static str {
        &assets::VERSION
    }

    pub fn refresh_ms(&self) -> u128 {
        REFRESHED_EVERY.as_millis()
    }

    pub fn now(&self) -> String {
        words::instant(self.now_ms).trim_end_matches('Z').replacen('T', " ", 1)
    }

    pub fn ago(&self, at: &super::answers::At) -> String {
        words::ago(at.ms(), self.now_ms)
    }
}

pub fn shown(template: &impl Template) -> Response {
    shown_as(StatusCode::OK, template)
}

pub fn shown_as(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => (status, [(header::CONTENT_TYPE, HTML)], html).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page of the console cannot be written");
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, HTML)], "The page cannot be written.")
                .into_response()
        }
    }
}

#[derive(Template)]
#[template(path = "console/failed.html", escape = "visible")]
struct FailedPage {
    frame: Frame,
    status: u16,
    says: String,
    /// It may be otherwise in a moment.
    passes: bool,
}

/// Why there is no page, as one. Whoever is not known sees it without the way to other pages.
pub fn failed(frame: Option<Frame>, problem: &Problem) -> Response {
    if let Some(cause) = &problem.cause {
        tracing::error!(status = problem.status.as_u16(), error = %cause, "a page of the console failed");
    }
    let title = match problem.status {
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::FORBIDDEN => "Not allowed",
        StatusCode::BAD_REQUEST => "Cannot be asked like this",
        StatusCode::SERVICE_UNAVAILABLE => "Not available",
        _ => "Failed",
    };
    let passes = problem.status == StatusCode::SERVICE_UNAVAILABLE;
    let frame = frame.unwrap_or_else(|| Frame::bare(title, String::new()));
    let says = match problem.status {
        StatusCode::NOT_FOUND => "Nothing of this name is there, or it is another account's.".to_owned(),
        _ => problem.detail.clone(),
    };
    let frame = Frame { title: title.to_owned(), refreshes: passes, ..frame };
    let mut response = shown_as(problem.status, &FailedPage { frame, status: problem.status.as_u16(), says, passes });
    response.headers_mut().extend(problem.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    response
}

/// The policy of every page: scripts, styles and pictures of ours alone, and nothing within a page.
pub static POLICY: LazyLock<String> = LazyLock::new(|| {
    ["default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"]
        .into_iter()
        .chain(["form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"])
        .collect::<Vec<_>>()
        .join("; ")
});

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
        tracing::error!(status = problem.status.as_u16(), cause = %cause, "a page of the console failed");
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

pub mod filters {
    //! How things look, as the templates call it.

    use std::fmt::Display;

    use askama::{Result, Values, filters::Safe};

    use super::super::{answers::At, asking::segment};
    use crate::{
        http::html::{exact, visible},
        view::words,
    };

    type Html = Result<Safe<String>>;

    fn copy(text: &str) -> String {
        let (value, label) = (exact(text), visible(text));
        format!(r#"<button type="button" class="copy" data-copy="{value}" aria-label="Copy {label}"></button>"#)
    }

    fn linked(folder: &str, text: &str, shown: &str) -> Html {
        let (path, shown) = (segment(text), visible(shown));
        Ok(Safe(format!(r#"<span class="id"><a href="/console/{folder}/{path}">{shown}</a>{}</span>"#, copy(text))))
    }

    fn listed(folder: &str, name: &str, text: &str) -> Html {
        let (value, shown) = (segment(text), visible(text));
        let link = format!(r#"<a href="/console/{folder}?{name}={value}">{shown}</a>"#);
        Ok(Safe(format!(r#"<span class="id">{link}{}</span>"#, copy(text))))
    }

    /// An id that leads nowhere.
    #[askama::filter_fn]
    pub fn id<T: Display>(text: T, _: &dyn Values) -> Html {
        let text = text.to_string();
        Ok(Safe(format!(r#"<span class="id"><span>{}</span>{}</span>"#, visible(&text), copy(&text))))
    }

    /// A button that copies a text.
    #[askama::filter_fn]
    pub fn copied<T: Display>(text: T, _: &dyn Values, label: &str) -> Html {
        let (text, label) = (exact(&text.to_string()), visible(label));
        Ok(Safe(format!(r#"<button type="button" class="copy worded" data-copy="{text}">{label}</button>"#)))
    }

    #[askama::filter_fn]
    pub fn endpoint<T: Display>(text: T, _: &dyn Values) -> Html {
        let text = text.to_string();
        linked("endpoints", &text, &text)
    }

    #[askama::filter_fn]
    pub fn delivery<T: Display>(text: T, _: &dyn Values) -> Html {
        let text = text.to_string();
        // The entry of an event that is owed to nobody is no delivery.
        if text.contains(':') { linked("deliveries", &text, &text) } else { Ok(Safe(visible(&text))) }
    }

    #[askama::filter_fn]
    pub fn intent<T: Display>(text: T, _: &dyn Values) -> Html {
        let text = text.to_string();
        linked("intents", &text, &text)
    }

    #[askama::filter_fn]
    pub fn act<T: Display>(text: T, _: &dyn Values, shown: &str) -> Html {
        let text = text.to_string();
        Ok(Safe(format!(r#"<a href="/console/audit/{}">{}</a>"#, segment(&text), visible(shown))))
    }

    #[askama::filter_fn]
    pub fn entry<T: Display>(text: T, _: &dyn Values) -> Html {
        let text = text.to_string();
        linked("quarantine", &text, &text)
    }

    #[askama::filter_fn]
    pub fn event<T: Display>(text: T, _: &dyn Values) -> Html {
        listed("deliveries", "event", &text.to_string())
    }

    #[askama::filter_fn]
    pub fn account<T: Display>(text: T, _: &dyn Values) -> Html {
        listed("endpoints", "account", &text.to_string())
    }

    /// As a part of a path.
    #[askama::filter_fn]
    pub fn part<T: Display>(text: T, _: &dyn Values) -> Html {
        Ok(Safe(segment(&text.to_string())))
    }

    #[askama::filter_fn]
    pub fn time(at: &At, _: &dyn Values) -> Html {
        let exact_time = visible(&at.exact());
        Ok(Safe(format!(
            r#"<time datetime="{}" title="{exact_time} UTC">{}</time>"#,
            visible(at.rfc3339()),
            visible(&at.to_string())
        )))
    }

    #[askama::filter_fn]
    pub fn number<T: Display>(n: T, _: &dyn Values) -> Result<String> {
        let text = n.to_string();
        Ok(text.parse().map_or(text, words::number))
    }

    /// Microseconds.
    #[askama::filter_fn]
    pub fn us<T: Display>(us: T, _: &dyn Values) -> Result<String> {
        let text = us.to_string();
        Ok(text.parse().map_or(text, words::time_us))
    }

    #[askama::filter_fn]
    pub fn ms<T: Display>(ms: T, _: &dyn Values) -> Result<String> {
        let text = ms.to_string();
        Ok(text.parse().map_or(text, words::span))
    }

    /// A state or an outcome as a mark with its colour; the word says it, too.
    #[askama::filter_fn]
    pub fn state<T: Display>(text: T, _: &dyn Values) -> Html {
        let text = text.to_string();
        let tone = match text.split([' ', ':']).next().unwrap_or_default() {
            "failing" | "dead" | "failed" | "refused" | "open" | "server_failed" | "disabled" | "discarded" => "bad",
            "rejected" | "gone" | "redirected" | "unreachable" | "tls" | "reset" | "garbled" | "local" => "bad",
            "dns_failed" | "connect_failed" | "connect_timed_out" | "response_timed_out" | "address_refused" => "bad",
            "unsteady" | "paused" | "parked" | "held" | "half_open" | "throttled" | "acknowledged" | "skipped" => {
                "warn"
            }
            "well" | "delivered" | "enabled" | "done" | "closed" | "resolved" => "good",
            _ => "calm",
        };
        Ok(Safe(format!(r#"<span class="state {tone}">{}</span>"#, visible(&text.replace('_', " ")))))
    }
}

//! How things look, as the templates call it.

use std::fmt::Display;

use askama::{Result, Values, filters::Safe};

use super::{answers::At, asking::segment};
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
        "dns_failed" | "connect_failed" | "connect_timed_out" | "proxy_failed" | "response_timed_out"
        | "address_refused" => "bad",
        "unsteady" | "paused" | "locked" | "parked" | "held" | "half_open" | "throttled" | "acknowledged"
        | "skipped" => "warn",
        "well" | "delivered" | "enabled" | "done" | "closed" | "resolved" => "good",
        _ => "calm",
    };
    Ok(Safe(format!(r#"<span class="state {tone}">{}</span>"#, visible(&text.replace('_', " ")))))
}

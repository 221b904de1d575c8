//! How a callback is shown: some lines for people, or one line of JSON, whose shape is [`Line`]'s. Everything in it may be a
//! stranger's, so nothing of it steers a terminal.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{
    arrivals::Arrival,
    callback::{Callback, Says},
    rehearsal::Plan,
};
use crate::{
    facts::text::escaped,
    surface::{
        signatures::{Found, Verdict},
        words,
    },
};

/// All that is known of a callback. It is complete once it is answered, and forwarded where it is held back.
pub struct Record {
    pub callback: Callback,
    pub says: Says,
    pub standard: Found,
    pub dojo: Found,
    pub arrival: Arrival,
    pub plan: Plan,
    pub forwarded: Vec<ForwardedView>,
    pub answered: Option<u16>,
}

/// What the application said each time.
#[derive(Debug, Clone, Serialize)]
pub struct ForwardedView {
    /// None if it could not be asked.
    pub status: Option<u16>,
    pub problem: Option<String>,
    pub took_ms: u64,
}

/// One callback in JSON. Keys may be added.
#[derive(Serialize)]
struct Line<'a> {
    /// When it arrived, milliseconds since 1970.
    at_ms: u64,
    /// `webhook-id`.
    id: Option<&'a str>,
    event: Option<&'a str>,
    intent: Option<&'a str>,
    status: Option<&'a str>,
    attempt: Option<u64>,
    sequence: Option<String>,
    /// Since `webhook-timestamp`, which has whole seconds.
    delay_ms: Option<i64>,
    /// Neither scheme's signature is wrong, and at least one is right; none without a secret.
    valid: Option<bool>,
    standard: &'a Found,
    dojo: &'a Found,
    /// How often this `webhook-id` has come, with this time.
    times: u64,
    /// It was answered 2xx before.
    taken_before: bool,
    /// The highest `herald-sequence` of its intent so far, where its own is lower.
    late_behind: Option<String>,
    /// What went wrong on purpose.
    rehearsed: Vec<String>,
    forwarded: &'a [ForwardedView],
    /// The status that Herald got; none where the connection was closed instead.
    answered: Option<u16>,
    path: &'a str,
    /// As they came, in pairs; names in small letters.
    headers: Vec<(String, String)>,
    /// As text where it is UTF-8; otherwise `body_base64` has it.
    body: Option<&'a str>,
    body_base64: Option<String>,
}

impl Record {
    /// A signature is wrong, or there is none although there is a secret to check it with.
    pub fn is_bad(&self) -> bool {
        self.valid() == Some(false)
    }

    fn valid(&self) -> Option<bool> {
        let both = [self.standard.verdict, self.dojo.verdict];
        match both.contains(&Verdict::Unchecked) {
            true => None,
            false => Some(both.contains(&Verdict::Valid) && !both.contains(&Verdict::Invalid)),
        }
    }

    pub fn json(&self) -> serde_json::Result<String> {
        let body = std::str::from_utf8(&self.callback.body).ok();
        crate::surface::json_line(&Line {
            at_ms: self.callback.at_ms,
            id: self.says.id.as_deref(),
            event: self.says.event.as_deref(),
            intent: self.says.intent.as_deref(),
            status: self.says.status.as_deref(),
            attempt: self.says.attempt,
            sequence: self.says.sequence.map(|sequence| sequence.to_string()),
            delay_ms: self.says.delay_ms,
            valid: self.valid(),
            standard: &self.standard,
            dojo: &self.dojo,
            times: self.arrival.times,
            taken_before: self.arrival.was_taken,
            late_behind: self.arrival.late_behind.map(|sequence| sequence.to_string()),
            rehearsed: self.rehearsed(),
            forwarded: &self.forwarded,
            answered: self.answered,
            path: &self.callback.path,
            headers: self.callback.text_headers(),
            body,
            body_base64: body.is_none().then(|| STANDARD.encode(&self.callback.body)),
        })
    }

    fn rehearsed(&self) -> Vec<String> {
        let plan = self.plan;
        [
            plan.fail.map(|status| format!("fail {status}")),
            plan.slow.map(|by| format!("slow {}", words::span(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))),
            plan.drop_answer.then(|| "drop-answer".to_owned()),
            plan.duplicate.then(|| "duplicate".to_owned()),
            plan.reorder.then(|| "reorder".to_owned()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// As it arrives: what it is, and what is to be known about it.
    pub fn arrival_lines(&self) -> String {
        let says = &self.says;
        let or = |text: &Option<String>, without: &str| text.clone().unwrap_or_else(|| without.to_owned());
        let mut parts = vec![
            words::instant(self.callback.at_ms),
            or(&says.event, "(no event type)"),
            or(&says.intent, "(no intent)"),
            or(&says.status, "(no status)"),
            or(&says.id, "(no webhook-id)"),
        ];
        parts.extend(says.attempt.map(|attempt| format!("attempt {attempt}")));
        parts.extend(says.delay_ms.map(delay));
        let signatures = [("webhook-signature", &self.standard), ("dojo-signature", &self.dojo)];
        let mut lines = vec![parts.join("  ")];
        lines.extend(signatures.map(|(name, found)| format!("    {name}: {}", found.line())));
        lines.extend(repeated(self.arrival));
        lines.extend(
            self.arrival
                .late_behind
                .map(|highest| format!("    LATE: {highest} of this intent has arrived before; ignore what is older")),
        );
        shown(&lines)
    }

    /// Once it is answered.
    pub fn answer_lines(&self) -> String {
        let rehearsed = self.rehearsed();
        let mut lines: Vec<String> = self.forwarded.iter().map(forwarded).collect();
        let why = if rehearsed.is_empty() { String::new() } else { format!(" (rehearsed: {})", rehearsed.join(", ")) };
        lines.push(match self.answered {
            Some(status) => format!("    answered {status}{why}"),
            None => format!("    closed without an answer{why}"),
        });
        shown(&lines)
    }
}

fn delay(ms: i64) -> String {
    match u64::try_from(ms) {
        Ok(ms) => format!("{} after it was signed", words::span(ms)),
        Err(_) => format!("signed {} ahead of this clock", words::span(ms.unsigned_abs())),
    }
}

fn repeated(arrival: Arrival) -> Option<String> {
    let advice = match arrival.was_taken {
        true => "it was answered 2xx before: process it no second time",
        false => "no earlier time was answered 2xx: process it",
    };
    (arrival.times > 1).then(|| format!("    AGAIN: time {} of this webhook-id; {advice}", arrival.times))
}

fn forwarded(view: &ForwardedView) -> String {
    let took = words::span(view.took_ms);
    match (view.status, &view.problem) {
        (Some(status), _) => format!("    the application answered {status} within {took}"),
        (None, problem) => format!("    NOT FORWARDED: {}", problem.as_deref().unwrap_or("no answer")),
    }
}

/// Each stays on its line.
fn shown(lines: &[String]) -> String {
    lines.iter().map(|line| escaped(line, |_| false)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(body: &'static [u8]) -> Record {
        let callback = Callback {
            at_ms: 1_700_000_000_000,
            path: "/".to_owned(),
            headers: http::HeaderMap::from_iter([(
                http::HeaderName::from_static("webhook-id"),
                http::HeaderValue::from_bytes(b"evt\xff\x9b").unwrap(),
            )]),
            body: Bytes::from_static(body),
        };
        let says = callback.says();
        let unchecked = Found::without_secret();
        Record {
            callback,
            says,
            standard: unchecked.clone(),
            dojo: unchecked,
            arrival: Arrival { times: 2, was_taken: true, late_behind: None },
            plan: Plan { fail: Some(500), ..Plan::default() },
            forwarded: Vec::new(),
            answered: Some(500),
        }
    }

    #[test]
    fn a_hostile_callback_steers_no_terminal_in_any_form() {
        let body = "{\"event\":\"a\\u001b[2J\\u202eb\\r\\nforged  line\",\"data\":{\"paymentIntentId\":\"\u{9b}31m\"}}";
        let record = record(body.as_bytes());
        let text = format!("{}\n{}", record.arrival_lines(), record.answer_lines());
        for shown in [text.clone(), record.json().unwrap()] {
            assert!(!shown.contains(['\u{1b}', '\u{202e}', '\r', '\u{9b}']), "{shown:?}");
        }
        assert!(
            text.lines().count() == 5 && text.contains("AGAIN: time 2") && text.contains("rehearsed: fail 500"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&record.json().unwrap()).unwrap();
        assert_eq!((&json["event"], &json["body"]), (&"a\u{1b}[2J\u{202e}b\r\nforged  line".into(), &body.into()));
    }

    #[test]
    fn a_body_that_is_no_text_is_kept_whole() {
        let json: serde_json::Value = serde_json::from_str(&record(b"\xff\x00").json().unwrap()).unwrap();
        assert_eq!((&json["body"], &json["body_base64"]), (&serde_json::Value::Null, &"/wA=".into()));
        assert_eq!((&json["valid"], &json["taken_before"]), (&serde_json::Value::Null, &true.into()));
    }

    #[test]
    fn a_delay_is_told_in_both_directions() {
        assert_eq!(delay(2_500), "2s after it was signed");
        assert_eq!(delay(-90_000), "signed 1m 30s ahead of this clock");
    }
}

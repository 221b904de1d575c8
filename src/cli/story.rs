//! A delivery's record in words, wherever it stands: for the verbs of deliveries, chains and dead letters. Pure; asks
//! Redis nothing.

use crate::{
    facts::{delivery::Delivery, outcome::AttemptReport},
    store::queries::{Letter, Unfinished, WhereUnfinished},
    surface::words,
    view::{deliveries::waited, standing::standing},
};

/// The fields of an unfinished delivery as a person reads them, what matters first.
pub fn story_of_unfinished(one: &Unfinished, now_ms: u64, is_paused: bool) -> Vec<(&'static str, String)> {
    let why =
        if one.place == WhereUnfinished::Parked { ": its endpoint is paused, failing, full or limited" } else { "" };
    let mut fields = vec![("standing", standing(one, now_ms, is_paused) + why)];
    match &one.delivery {
        Ok(delivery) => {
            if let Some(last) = delivery.history.last() {
                fields.push(("last outcome", format!("{}: {}", last.outcome, words::outcome(&last.outcome))));
            }
            fields.extend(facts(delivery));
            fields.push((
                "age",
                format!(
                    "{}, counted from {}",
                    words::span(now_ms.saturating_sub(delivery.since_ms)),
                    words::when(delivery.since_ms, now_ms)
                ),
            ));
            fields.extend(history(delivery, now_ms));
            fields.push(("body", String::from_utf8_lossy(&delivery.body).into_owned()));
        }
        Err(why) => fields.push(("not readable", why.clone())),
    }
    fields
}

/// The fields of a letter as a person reads them, what matters first.
pub fn story_of_dead(letter: &Letter, now_ms: u64) -> Vec<(&'static str, String)> {
    let dead = match &letter.letter {
        Ok(dead) => dead,
        Err(why) => return vec![("id", letter.id.to_string()), ("not readable", why.clone())],
    };
    let delivery = &dead.delivery;
    let mut fields =
        vec![("given up", format!("{}: {}", words::when(letter.at_ms, now_ms), words::dead_reason(dead.reason)))];
    if !dead.detail.is_empty() {
        fields.push(("detail", dead.detail.clone()));
    }
    if let Some(waited_for) = &dead.waited_for {
        fields.push(("never tried", waited(waited_for, now_ms)));
    }
    if let Some(last) = delivery.history.last() {
        fields.push(("last outcome", format!("{}: {}", last.outcome, words::outcome(&last.outcome))));
    }
    fields.extend(facts(delivery));
    if !dead.url.is_empty() {
        fields.push(("sent to", dead.url.clone()));
    }
    fields.extend(dead.headers.iter().map(|(name, value)| ("header", format!("{name}: {value}"))));
    fields.extend(history(delivery, now_ms));
    fields.push(("body", String::from_utf8_lossy(&delivery.body).into_owned()));
    fields
}

/// Every attempt that the record remembers, and every redelivery.
pub fn history(delivery: &Delivery, now_ms: u64) -> Vec<(&'static str, String)> {
    let attempts = delivery.history.iter().map(|report| (report.at_ms, "attempt", report_words(report, now_ms)));
    let again = delivery.redelivered.iter().map(|mark| {
        (mark.at_ms, "redelivered", format!("{} by {}: {}", words::when(mark.at_ms, now_ms), mark.by, mark.why))
    });
    let mut lines: Vec<_> = attempts.chain(again).collect();
    lines.sort_by_key(|(at, ..)| *at);
    lines.into_iter().map(|(_, name, text)| (name, text)).collect()
}

/// Who and what a delivery is about.
fn facts(delivery: &Delivery) -> Vec<(&'static str, String)> {
    let order = if delivery.ordered { "in order per intent" } else { "without order" };
    vec![
        ("id", delivery.id.to_string()),
        ("event", format!("{} ({})", delivery.event, delivery.event_type)),
        ("intent", format!("{}, {order}", delivery.intent)),
        ("account", delivery.account.to_string()),
        ("endpoint", delivery.id.endpoint.to_string()),
        ("attempts", attempts(delivery)),
    ]
}

fn attempts(delivery: &Delivery) -> String {
    match delivery.earlier_attempts {
        0 => delivery.attempts.to_string(),
        earlier => format!("{} since its last redelivery, {earlier} before", delivery.attempts),
    }
}

fn report_words(report: &AttemptReport, now_ms: u64) -> String {
    let took = words::span(report.timing.total_us / 1000);
    let mut text =
        format!("{:>2}  {}  {} after {took}", report.number, words::when(report.at_ms, now_ms), report.outcome);
    for more in [&report.detail, &report.snippet] {
        if !more.is_empty() {
            text = format!("{text}  {more:?}");
        }
    }
    text
}

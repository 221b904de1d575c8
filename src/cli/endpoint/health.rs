//! How an endpoint's receiver does, in words, beside the endpoint itself.

use crate::{
    config::compact,
    facts::{
        health::Verdict,
        id::{DeliveryId, EndpointId},
    },
    surface::{when, words},
    view::health::{BreakerView, HealthView, TotalsView},
};

/// In a list: one or two words, which wrap.
pub fn cell(view: &HealthView, now_ms: u64) -> String {
    match (view.failing_since, view.last_15_minutes.success_percent) {
        (Some(since), _) if view.is(Verdict::Failing) => {
            format!("failing {}", words::span(now_ms.saturating_sub(since.0)))
        }
        (_, Some(percent)) if view.is(Verdict::Unsteady) => format!("unsteady {percent}%"),
        _ => view.verdict.unwrap_or("unknown").to_owned(),
    }
}

/// What `endpoint show` says of it.
pub fn fields(endpoint: &EndpointId, view: &HealthView, now_ms: u64) -> Vec<(&'static str, String)> {
    let mut fields = vec![("health", verdict(view, now_ms))];
    if let Some(as_of) = view.as_of {
        fields.push(("as of", written(view, as_of.0, now_ms)));
        fields.push(("breaker", breaker(view.breaker.as_ref(), now_ms)));
        let (in_flight, window) = (view.in_flight.unwrap_or(0), view.window.unwrap_or(0));
        fields.push(("under way", format!("{in_flight}; {window} may be")));
        fields.push(("last 15 min", totals(&view.last_15_minutes)));
        fields.push(("last day", totals(&view.last_day)));
        let last_success = view.last_success_at.map_or("none that is known".to_owned(), |at| when(at.0, now_ms));
        fields.push(("last success", last_success));
    }
    if let Some(failure) = &view.last_failure {
        let says = failure.says.as_deref().unwrap_or(&failure.cause);
        let detail = if failure.detail.is_empty() { String::new() } else { format!(": {}", failure.detail) };
        fields.push(("last failure", format!("{}: it {says}{detail}", when(failure.at.0, now_ms))));
        fields.push(("look at it", format!("herald delivery show {}", failure.delivery)));
    }
    fields.push(("waiting", waiting(view, now_ms)));
    fields.push(("letters", letters(endpoint, view.letters)));
    if let Some(skipped) = view.skipped {
        let (count, last) = (words::count(skipped.count, "event", "events"), when(skipped.last_at.0, now_ms));
        fields.push(("skipped", format!("{count} while it was disabled, the last {last}")));
    }
    fields
}

fn verdict(view: &HealthView, now_ms: u64) -> String {
    match (view.verdict, view.failing_since) {
        (Some(_), Some(since)) if view.is(Verdict::Failing) => {
            let attempts = words::count(view.failed_since, "attempt", "attempts");
            format!("failing since {}: {attempts}, and none succeeded", when(since.0, now_ms))
        }
        (Some(_), _) if view.is(Verdict::Unsteady) => "unsteady: some of its attempts fail".to_owned(),
        (Some(_), _) if view.is(Verdict::Idle) => "idle: nothing was sent to it within a day".to_owned(),
        (Some(verdict), _) => verdict.to_owned(),
        (None, _) => "unknown: nothing was ever sent to it, or no worker of this version has run".to_owned(),
    }
}

fn written(view: &HealthView, as_of_ms: u64, now_ms: u64) -> String {
    match view.has_owner {
        true => words::ago(as_of_ms, now_ms),
        false => format!("{}; no worker owns the stream, so it is out of date", words::ago(as_of_ms, now_ms)),
    }
}

fn breaker(view: Option<&BreakerView>, now_ms: u64) -> String {
    match view.map(|view| (view.state, view.next_probe_at, view.probes)) {
        Some((_, Some(next), _)) if next.0 > now_ms => format!("open; the next probe {}", words::ago(next.0, now_ms)),
        Some((_, Some(_), _)) => "open; the next probe goes out as soon as there is something to send".to_owned(),
        Some((_, _, Some(probes))) => {
            format!("half-open; {} may be out", words::count(u64::from(probes), "probe", "probes"))
        }
        Some((state, None, None)) => state.to_owned(),
        None => "not known".to_owned(),
    }
}

fn totals(totals: &TotalsView) -> String {
    let attempts = totals.delivered + totals.failed;
    let Some(percent) = totals.success_percent else { return "no attempts".to_owned() };
    let took = match (totals.mean_ms, totals.slowest_ms) {
        (Some(mean), Some(slowest)) => format!("; took {} on average, {} at most", ms(mean), ms(slowest)),
        _ => String::new(),
    };
    format!("{percent} % of {} delivered{took}", words::count(attempts, "attempt", "attempts"))
}

fn ms(ms: u64) -> String {
    compact(std::time::Duration::from_millis(ms))
}

fn waiting(view: &HealthView, now_ms: u64) -> String {
    let age = view.oldest.as_ref().map(|oldest| {
        let age_ms = oldest.parse::<DeliveryId>().ok().and_then(|oldest| oldest.entry.age_ms(now_ms));
        match age_ms {
            Some(age_ms) => format!("; the oldest for {}: {oldest}", words::span(age_ms)),
            None => format!("; the oldest: {oldest}"),
        }
    });
    match view.unfinished {
        0 => "nothing".to_owned(),
        unfinished => format!(
            "{} unfinished, {} of them parked{}",
            words::number(unfinished),
            words::number(view.parked),
            age.unwrap_or_default()
        ),
    }
}

fn letters(endpoint: &EndpointId, count: u64) -> String {
    match count {
        0 => "none".to_owned(),
        count => format!("{} (herald dead-letter list --endpoint {endpoint})", words::number(count)),
    }
}

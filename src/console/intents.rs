//! A payment intent, the page that support lives on: every event, attempt and act on one axis of time, what still waits, behind what,
//! and why.

use std::collections::BTreeSet;

use askama::Template;
use axum::{extract::Path, response::Response};
use serde_json::json;

use super::{
    answers::{Act, At, Endpoint, Intent, Line, Link, List, Reach, Results, Told},
    asking::{segment, with_query},
    filters,
    page::{Frame, shown},
    plot::{Point, axis, class_of},
    session::Notice,
    visit::{Fields, Visit},
};
use crate::{
    http::problem::Problem,
    view::words::{self, time_us},
};

/// Far more than an intent has.
const MOST: &str = "500";

/// Endpoints of which the page says why they wait.
const MAX_ENDPOINTS: usize = 8;

/// One thing that happened.
struct Happened {
    at: At,
    /// event, act, or as the history calls it.
    kind: String,
    event: String,
    endpoint: String,
    delivery: String,
    act: String,
    says: String,
}

/// What waits for one endpoint, in its order, and how that endpoint does.
struct Waiting {
    endpoint: String,
    known: Option<Endpoint>,
    chain: Vec<Link>,
    why: Vec<String>,
}

#[derive(Template)]
#[template(path = "console/intent.html", escape = "visible")]
struct IntentPage {
    frame: Frame,
    id: String,
    /// As far as Herald keeps it or has its events.
    intent: Option<Intent>,
    account: String,
    lines: Vec<Line>,
    waiting: Vec<Waiting>,
    happened: Vec<Happened>,
    axis: String,
    reach: Reach,
    has_more: bool,
    may_keep: bool,
    is_staff: bool,
}

pub async fn show(visit: Visit, Path(id): Path<String>) -> Result<Response, Problem> {
    let of = |list: &str| with_query(list, &[("intent", id.as_str()), ("limit", MOST)]);
    let lines: List<Line> = visit.get(&of("/v1/deliveries")).await?;
    let attempts: List<Told> = visit.get(&of("/v1/attempts")).await?;
    let intent: Option<Intent> = visit.find(&format!("/v1/intents/{}", segment(&id))).await;
    if lines.items.is_empty() && attempts.items.is_empty() && intent.is_none() {
        return Err(Problem::not_found());
    }
    let acts = if visit.is_staff() { visit.find::<List<Act>>(&of("/v1/audit")).await } else { None };
    let waiting = waiting(&visit, &id, &lines.items).await;
    let happened =
        happened(intent.as_ref(), &attempts.items, &acts.map(|list| list.items).unwrap_or_default(), &waiting);
    let account = intent.as_ref().map(|intent| intent.account.clone());
    let account = account.or_else(|| lines.items.first().map(|line| line.account.clone()));
    let page = IntentPage {
        frame: visit.frame(format!("Payment intent {id}")),
        account: account.unwrap_or_default(),
        axis: drawn(&happened),
        intent,
        waiting,
        happened,
        reach: attempts.history,
        has_more: attempts.has_more || lines.has_more,
        lines: lines.items,
        may_keep: visit.may_keep(),
        is_staff: visit.is_staff(),
        id,
    };
    Ok(shown(&page))
}

async fn waiting(visit: &Visit, intent: &str, lines: &[Line]) -> Vec<Waiting> {
    let endpoints: BTreeSet<&str> = lines.iter().filter(|line| line.is_unfinished()).map(Line::endpoint).collect();
    let mut all = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints.into_iter().take(MAX_ENDPOINTS) {
        let known: Option<Endpoint> = visit.find(&format!("/v1/endpoints/{}", segment(endpoint))).await;
        let chain = visit.find(&format!("/v1/chains/{}/{}", segment(endpoint), segment(intent))).await;
        let chain = chain.unwrap_or_else(|| without_order(lines, endpoint));
        let why = why_it_waits(known.as_ref(), &chain, visit.now_ms());
        all.push(Waiting { endpoint: endpoint.to_owned(), known, chain, why });
    }
    all
}

/// Deliveries without order are no chain.
fn without_order(lines: &[Line], endpoint: &str) -> Vec<Link> {
    let unfinished = lines.iter().filter(|line| line.is_unfinished() && line.endpoint() == endpoint);
    let link = |line: &Line| Link {
        id: line.id.clone(),
        event: Some(line.event.clone()),
        state: line.state.clone(),
        standing: line.standing.clone(),
        attempts: Some(line.attempts),
        last_outcome: line.last_outcome.clone(),
        ..Link::default()
    };
    // As in a chain, the oldest first.
    unfinished.rev().map(link).collect()
}

/// In sentences: what the first one waits for, and what that keeps the others from.
fn why_it_waits(endpoint: Option<&Endpoint>, chain: &[Link], now_ms: u64) -> Vec<String> {
    let mut why = Vec::new();
    if let (Some(head), behind @ 1..) = (chain.first(), chain.len().saturating_sub(1)) {
        let waits = if behind == 1 { "waits" } else { "wait" };
        why.push(format!(
            "{} {waits} behind {}, so that events arrive in order.",
            words::count(behind as u64, "delivery", "deliveries"),
            head.id
        ));
    }
    if let Some(outcome) = chain.first().and_then(|head| head.last_outcome.as_ref()) {
        why.push(format!("Its last attempt ended with {outcome}."));
    }
    let Some(endpoint) = endpoint else { return why };
    if endpoint.state != "enabled" {
        let by = endpoint.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
        let reason = endpoint.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        why.push(format!("The endpoint is {}{by}{reason}.", endpoint.state));
    }
    if let Some(health) = &endpoint.health {
        if let Some(since) = &health.failing_since {
            let failed = words::count(health.failed_since, "attempt", "attempts");
            why.push(format!(
                "The endpoint has failed for {}: {failed} in a row.",
                words::span(now_ms.saturating_sub(since.ms()))
            ));
        }
        if let Some(next) = health.breaker.as_ref().and_then(|breaker| breaker.next_probe_at.as_ref()) {
            let goes = if next.ms() > now_ms { words::ago(next.ms(), now_ms) } else { "now".to_owned() };
            why.push(format!("Its breaker is open: the next probe goes out {goes}."));
        }
    }
    why
}

/// All of it in the order of time; what is of one moment in this order: the event, what was tried, what was done about it.
fn happened(intent: Option<&Intent>, told: &[Told], acts: &[Act], waiting: &[Waiting]) -> Vec<Happened> {
    let mut all: Vec<Happened> = intent.into_iter().flat_map(|intent| &intent.events).map(Happened::of_event).collect();
    all.extend(told.iter().map(Happened::of_told));
    all.extend(acts.iter().map(Happened::of_act));
    // Why an endpoint waits belongs to the story.
    let stopped = waiting.iter().filter_map(|waiting| Some((waiting, waiting.known.as_ref()?)));
    all.extend(stopped.filter_map(|(waiting, known)| {
        let by = known.by.as_deref().unwrap_or("somebody");
        let says = format!("by {by}: {}", known.why.as_deref().unwrap_or_default());
        let act = Happened { endpoint: waiting.endpoint.clone(), ..Happened::new(known.at.as_ref()?, "act", says) };
        Some(Happened { act: format!("endpoint {}", known.state), ..act })
    }));
    all.sort_by(|one, other| one.at.cmp(&other.at));
    all
}

impl Happened {
    fn new(at: &At, kind: &str, says: String) -> Self {
        let [event, endpoint, delivery, act] = Default::default();
        Self { at: at.clone(), kind: kind.to_owned(), event, endpoint, delivery, act, says }
    }

    fn of_event(event: &super::answers::Event) -> Self {
        let says = event.status.as_ref().map_or("accepted".to_owned(), |status| format!("{status}, accepted"));
        Self { event: event.id.clone(), ..Self::new(&event.at, "event", says) }
    }

    fn of_told(told: &Told) -> Self {
        let took = told.took_us.map(|us| format!(" in {}", time_us(us))).unwrap_or_default();
        let outcome = told.outcome.as_deref().unwrap_or_default();
        let says = match (outcome, told.detail.as_str()) {
            ("", detail) => detail.to_owned(),
            (outcome, "") => format!("attempt {}: {outcome}{took}", told.attempt),
            (outcome, detail) => format!("attempt {}: {outcome}{took}: {detail}", told.attempt),
        };
        Self {
            event: told.event.clone().unwrap_or_default(),
            endpoint: told.endpoint().to_owned(),
            delivery: told.id.clone(),
            ..Self::new(&told.at, &told.kind, says)
        }
    }

    fn of_act(act: &Act) -> Self {
        let ended = act.ended.as_ref().map_or("without an end", |end| end.result.as_str());
        let why = if act.why.is_empty() { String::new() } else { format!(": {}", act.why) };
        Self {
            endpoint: act.endpoint.clone().unwrap_or_default(),
            act: act.act.clone(),
            ..Self::new(&act.at, "act", format!("{ended}, by {}{why}", act.by))
        }
    }

    fn class(&self) -> &'static str {
        match self.kind.as_str() {
            "act" => "act",
            "event" => "event",
            kind => class_of(&Told { kind: kind.to_owned(), ..Told::default() }),
        }
    }
}

/// A row for what was accepted and done, and one for each endpoint.
fn drawn(happened: &[Happened]) -> String {
    let endpoints: BTreeSet<&str> = happened.iter().map(|one| one.endpoint.as_str()).collect();
    let mut rows: Vec<String> = endpoints.into_iter().map(str::to_owned).collect();
    let point = |one: &Happened| Point {
        at_ms: one.at.ms(),
        row: rows.iter().position(|row| *row == one.endpoint).unwrap_or_default(),
        class: one.class(),
        says: format!("{} {} {}", one.at, if one.act.is_empty() { &one.kind } else { &one.act }, one.says),
    };
    let points: Vec<Point> = happened.iter().map(point).collect();
    if let Some(unnamed) = rows.iter_mut().find(|row| row.is_empty()) {
        *unnamed = "the intent itself".to_owned();
    }
    axis(&rows, &points)
}

/// Gives up the head of a chain, so that the next one goes.
pub async fn release(
    visit: Visit,
    Path((endpoint, intent)): Path<(String, String)>,
    fields: Fields,
) -> Result<Response, Problem> {
    let path = format!("/v1/chains/{}/{}/release", segment(&endpoint), segment(&intent));
    let results: Results = visit.post(&path, &json!({ "reason": fields.get("reason") })).await?;
    let notice = match results {
        Results { done: 1.., .. } => Notice::good("The head is a dead letter now, and the next one goes."),
        Results { unanswered: 1.., .. } => Notice::good("No answer yet: it is done when a worker comes to it."),
        Results { items, .. } => Notice::bad(items.into_iter().find_map(|item| item.why).unwrap_or_default()),
    };
    Ok(visit.back(&format!("/console/intents/{}", segment(&intent)), &notice))
}

//! Deliveries: what is unfinished, what the attempt log still knows, and the story of one delivery wherever it stands.
//! Changes nothing.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    endpoint, pause,
    story::{standing, story_of_dead, story_of_unfinished, waited},
};
use crate::{
    facts::{
        id::{DeliveryId, EndpointId, EventId, IntentId},
        log::LogLine,
    },
    store::queries::{
        DeadFilter, DeadOrder, EntryStanding, FoundDead, LogFilter, LogPage, MAX_PAGE, Queries, Unfinished,
        WhereUnfinished, Whereabouts,
    },
    surface::{Context, Format, VerbError, note, words},
};

/// How many lines of the attempt log one look reads, newest first: a second's work for Redis and us, and hours of
/// traffic.
const MAX_LOG_LOOK: usize = 100_000;

/// How many unfinished records one look reads where no index helps.
const MAX_RECORD_LOOK: usize = 5_000;

/// How many deliveries of an intent one look shows behind the head of its chain.
const MAX_OF_CHAIN: usize = 200;

#[derive(Debug, Subcommand)]
pub enum DeliveryVerb {
    /// Show the deliveries of an intent, an event or an endpoint: unfinished, dead, and delivered as far as the log goes
    List(ListArgs),
    /// Tell one delivery's story, wherever it stands
    Show {
        /// ENTRY:ENDPOINT, as `delivery list` shows it
        id: DeliveryId,
    },
}

#[derive(Debug, Args)]
#[group(id = "whose", required = true, multiple = false)]
pub struct Whose {
    /// All deliveries of one payment intent
    #[arg(long, value_name = "INTENT")]
    intent: Option<IntentId>,
    /// All deliveries of one event
    #[arg(long, value_name = "EVENT")]
    event: Option<EventId>,
    /// What is unfinished at one endpoint, the oldest first, and its latest attempts
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<EndpointId>,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    whose: Whose,
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
}

/// One row of a list: where the delivery stands and what was last tried.
#[derive(Serialize)]
struct Row {
    id: DeliveryId,
    #[serde(skip_serializing_if = "String::is_empty")]
    event: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    intent: String,
    state: &'static str,
    /// The same in words.
    standing: String,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_at_ms: Option<u64>,
}

pub async fn run(context: &Context, verb: DeliveryVerb) -> anyhow::Result<()> {
    let mut queries = Queries::new(context.connect().await?, context.keys()?);
    match verb {
        DeliveryVerb::List(args) => list(context, &mut queries, args).await,
        DeliveryVerb::Show { id } => show(context, &mut queries, &id).await,
    }
}

async fn list(context: &Context, queries: &mut Queries, args: ListArgs) -> anyhow::Result<()> {
    let now_ms = queries.now_ms().await?;
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let (unfinished, on_records) = unfinished(queries, &args.whose, limit).await?;
    let filter = LogFilter {
        event: args.whose.event.clone(),
        intent: args.whose.intent.clone(),
        endpoint: args.whose.endpoint.clone(),
        ..LogFilter::default()
    };
    // An endpoint's log is long, so its newest lines are enough. The story of an intent or an event is wanted whole.
    let max_lines = if args.whose.endpoint.is_some() { limit } else { MAX_LOG_LOOK };
    let log = queries.attempts(&filter, max_lines, MAX_LOG_LOOK).await?;
    let is_paused = pause::tell_if_paused(context).await;
    let dead = dead(queries, &args.whose).await?;
    let rows = merge(queries, unfinished, dead, &log, now_ms, is_paused).await?;
    if let Some(text) = &on_records {
        note(text);
    }
    let left = if args.whose.endpoint.is_none() { queries.unindexed_dead().await? } else { 0 };
    if left > 0 {
        let left = words::count(left, "dead letter", "dead letters");
        note(format_args!("{left} of an older Herald are not indexed yet, and may be missing"));
    }
    note(headline(&rows));
    let mut list = context.output.list(&["ID", "INTENT", "STATE", "ATTEMPTS", "LAST OUTCOME", "LAST TRIED"]);
    for row in rows.iter().take(limit) {
        list.push(row, || cells(row, now_ms))?;
    }
    list.finish()?;
    if rows.len() > limit {
        note(format_args!(
            "the first {} of {}: raise --limit",
            words::number(args.limit),
            words::number(rows.len() as u64)
        ));
    }
    note(how_far(&log, now_ms));
    if let Some(stuck) = rows.iter().find(|row| row.state != "delivered") {
        note(format_args!("\nWhy:  herald delivery show {}", stuck.id));
    }
    match &args.whose.endpoint {
        Some(endpoint) => endpoint::check_known(context, endpoint, rows.is_empty()).await,
        None => Ok(()),
    }
}

async fn unfinished(
    queries: &mut Queries,
    whose: &Whose,
    limit: usize,
) -> anyhow::Result<(Vec<Unfinished>, Option<String>)> {
    let bounded = |looked: usize| {
        let records = words::count(looked as u64, "unfinished record", "unfinished records");
        format!("looked at only {records}, so some may be missing: --endpoint looks at one endpoint alone")
    };
    if let Some(endpoint) = &whose.endpoint {
        let walk = queries.unfinished_of(endpoint, limit, MAX_RECORD_LOOK).await?;
        let totals = queries.totals(endpoint).await?;
        let text = format!(
            "{endpoint} in all: {} unfinished in {} ({} held behind a head, {} parked), {}",
            words::number(totals.unfinished),
            words::count(totals.chains, "chain", "chains"),
            words::number(totals.held),
            words::number(totals.parked),
            words::count(totals.dead, "dead letter", "dead letters"),
        );
        return Ok((walk.found, Some(text)));
    }
    if let Some(intent) = &whose.intent {
        let mut found = queries.unfinished_of_intent(intent, MAX_OF_CHAIN).await?;
        let singles =
            queries.unfinished_where(MAX_RECORD_LOOK, |delivery| delivery.intent == *intent && !delivery.ordered);
        let singles = singles.await?;
        found.extend(singles.found);
        return Ok((found, (!singles.is_complete).then(|| bounded(singles.looked))));
    }
    let event = whose.event.as_ref();
    let walk = queries.unfinished_where(MAX_RECORD_LOOK, |delivery| Some(&delivery.event) == event).await?;
    Ok((walk.found, (!walk.is_complete).then(|| bounded(walk.looked))))
}

/// The dead letters of an intent or an event. Those of an endpoint are many: `dead-letter list` shows them.
async fn dead(queries: &mut Queries, whose: &Whose) -> anyhow::Result<Vec<FoundDead>> {
    if whose.endpoint.is_some() {
        return Ok(Vec::new());
    }
    let filter = DeadFilter { intent: whose.intent.clone(), event: whose.event.clone(), ..DeadFilter::everything() };
    Ok(queries.find_dead(&filter, DeadOrder::NewestFirst, None, MAX_PAGE).await?.letters)
}

/// Records first, then dead letters, then what only the log knows: dead, delivered, or without a record for a moment.
async fn merge(
    queries: &mut Queries,
    unfinished: Vec<Unfinished>,
    dead: Vec<FoundDead>,
    log: &LogPage,
    now_ms: u64,
    is_paused: bool,
) -> anyhow::Result<Vec<Row>> {
    let mut last: BTreeMap<&DeliveryId, &LogLine> = BTreeMap::new();
    for line in &log.lines {
        // The newest line comes first and stays.
        last.entry(&line.delivery).or_insert(line);
    }
    for one in &unfinished {
        last.remove(&one.id);
    }
    let mut rows: Vec<Row> = unfinished.iter().map(|one| row_of_record(one, now_ms, is_paused)).collect();
    rows.extend(dead.iter().map(|letter| row_of_letter(letter, last.remove(&letter.id), now_ms)));
    let mut logged: Vec<_> = last.into_values().collect();
    logged.sort_by_key(|line| std::cmp::Reverse(line.at_ms));
    for line in logged {
        rows.push(row_of_line(queries, line, now_ms).await?);
    }
    Ok(rows)
}

fn row_of_record(one: &Unfinished, now_ms: u64, is_paused: bool) -> Row {
    let (event, intent, attempts, last) = match &one.delivery {
        Ok(delivery) => (
            delivery.event.to_string(),
            delivery.intent.to_string(),
            delivery.attempts_in_all(),
            delivery.history.last(),
        ),
        Err(_) => (String::new(), String::new(), 0, None),
    };
    Row {
        id: one.id.clone(),
        event,
        intent,
        state: state(&one.place),
        standing: standing(one, now_ms, is_paused),
        attempts,
        last_outcome: last.map(|report| report.outcome.to_string()),
        last_at_ms: last.map(|report| report.at_ms),
    }
}

fn row_of_letter(letter: &FoundDead, line: Option<&LogLine>, now_ms: u64) -> Row {
    let since = format!("dead letter since {}", words::span(now_ms.abs_diff(letter.at_ms)));
    let facts = letter.facts.as_ref();
    let standing = match facts {
        Some(facts) => match &facts.waited_for {
            Some(waited_for) => {
                format!("{since}: {}, never tried: {}", facts.reason_name(), waited(waited_for, now_ms))
            }
            None => format!("{since}: {}", facts.reason_name()),
        },
        None => since,
    };
    let tried = facts.filter(|facts| facts.attempts > 0);
    Row {
        id: letter.id.clone(),
        event: facts.and_then(|facts| facts.event.as_ref()).map_or(String::new(), ToString::to_string),
        intent: facts.and_then(|facts| facts.intent.as_ref()).map_or(String::new(), ToString::to_string),
        state: "dead",
        standing,
        attempts: facts.map_or(0, |facts| facts.attempts),
        last_outcome: line.map(|line| line.outcome.to_string()).or(tried.map(|facts| facts.cause.to_string())),
        last_at_ms: line.map(|line| line.at_ms),
    }
}

async fn row_of_line(queries: &mut Queries, line: &LogLine, now_ms: u64) -> anyhow::Result<Row> {
    let (state, standing) = match (line.outcome.is_delivered(), queries.dead_letter(&line.delivery).await?) {
        (true, _) => ("delivered", format!("delivered {}", words::ago(line.at_ms, now_ms))),
        (false, Some(letter)) => ("dead", format!("dead letter since {}", words::span(now_ms.abs_diff(letter.at_ms)))),
        (false, None) => ("open", "no record: in flight, or discarded".to_owned()),
    };
    Ok(Row {
        id: line.delivery.clone(),
        event: line.event.to_string(),
        intent: line.intent.to_string(),
        state,
        standing,
        attempts: line.attempt,
        last_outcome: Some(line.outcome.to_string()),
        last_at_ms: Some(line.at_ms),
    })
}

fn headline(rows: &[Row]) -> String {
    let number = |state: &str| rows.iter().filter(|row| row.state == state).count() as u64;
    let named = [
        ("due", "waiting for a retry"),
        ("claimed", "being sent"),
        ("parked", "parked"),
        ("held", "held behind an earlier one"),
        ("nowhere", "out of place"),
        ("dead", "dead"),
        ("open", "without a record"),
        ("delivered", "delivered"),
    ];
    let parts = named.map(|(state, words)| (number(state), words));
    let parts: Vec<String> =
        parts.iter().filter(|(n, _)| *n > 0).map(|(n, words)| format!("{} {words}", words::number(*n))).collect();
    match parts.is_empty() {
        true => "no deliveries found".to_owned(),
        false => parts.join(", "),
    }
}

fn cells(row: &Row, now_ms: u64) -> Vec<String> {
    vec![
        row.id.to_string(),
        row.intent.clone(),
        row.standing.clone(),
        row.attempts.to_string(),
        row.last_outcome.clone().unwrap_or_else(|| "never tried".to_owned()),
        row.last_at_ms.map_or_else(String::new, |at| words::ago(at, now_ms)),
    ]
}

/// How far back the log was read, so that silence is not taken for "never happened".
fn how_far(log: &LogPage, now_ms: u64) -> String {
    if log.looked == 0 {
        return "the attempt log is empty".to_owned();
    }
    let lines = words::count(log.looked as u64, "line", "lines");
    let back_to = log.back_to_ms.map_or_else(|| "an unknown time".to_owned(), |at| words::when(at, now_ms));
    let told = match (log.reached_end, log.was_cut) {
        (true, false) => format!("attempt log: {lines}, all there ever were"),
        (true, true) => format!("attempt log: {lines}, back to {back_to}; older ones were dropped"),
        (false, _) => format!("attempt log: looked at {lines}, back to {back_to}; there are older ones"),
    };
    match log.unreadable {
        0 => told,
        unreadable => {
            format!("{told}; {unreadable} of them were written by another version of Herald and could not be read")
        }
    }
}

async fn show(context: &Context, queries: &mut Queries, id: &DeliveryId) -> anyhow::Result<()> {
    let now_ms = queries.now_ms().await?;
    let found = queries.find(id).await?;
    let filter = LogFilter { delivery: Some(id.clone()), ..LogFilter::default() };
    let log = queries.attempts(&filter, MAX_LOG_LOOK, MAX_LOG_LOOK).await?;
    let mut next = Vec::new();
    let (state, fields, detail) = match &found {
        Whereabouts::Unfinished(one) => {
            next = advice(one);
            let is_paused = pause::tell_if_paused(context).await;
            (
                state(&one.place),
                story_of_unfinished(one, now_ms, is_paused),
                serde_json::to_value(one.delivery.as_ref().ok())?,
            )
        }
        Whereabouts::Dead(letter) => {
            next.push(format!("herald dead-letter redeliver {id} --reason '…'"));
            ("dead", story_of_dead(letter, now_ms), serde_json::to_value(letter.letter.as_ref().ok())?)
        }
        Whereabouts::NoRecord => {
            let (state, text) = without_record(queries, id, &log, now_ms).await?;
            let mut fields = vec![("standing", text)];
            fields.extend(log.lines.iter().rev().map(|line| ("attempt", line_words(line, now_ms))));
            (state, fields, serde_json::Value::Null)
        }
    };
    if state == "unknown" {
        let text = format!("there is no delivery {id}, as far as Redis tells ({})", how_far(&log, now_ms));
        return Err(VerbError::NotFound(text).into());
    }
    let json = serde_json::json!({ "id": id, "state": state, "standing": fields[0].1, "record": detail });
    context.output.one(&json, &fields)?;
    if context.output.format() == Format::Table {
        note(how_far(&log, now_ms));
        next.iter().for_each(|command| note(format_args!("\nNext:  {command}")));
    }
    Ok(())
}

async fn without_record(
    queries: &mut Queries,
    id: &DeliveryId,
    log: &LogPage,
    now_ms: u64,
) -> anyhow::Result<(&'static str, String)> {
    if let Some(line) = log.lines.iter().find(|line| line.outcome.is_delivered()) {
        let at = words::when(line.at_ms, now_ms);
        return Ok(("delivered", format!("delivered {at} by attempt {}, answered {}", line.attempt, line.outcome)));
    }
    Ok(match queries.entry_standing(id.entry).await? {
        EntryStanding::InFlight { idle_ms } => {
            ("in_flight", format!("its entry was read {} ago and is not settled yet", words::span(idle_ms)))
        }
        EntryStanding::Waiting => ("waiting", "its entry waits in the stream: nobody has read it yet".to_owned()),
        EntryStanding::Settled | EntryStanding::Gone if !log.lines.is_empty() => {
            ("ended", "tried, and without a record now: it was discarded, or delivered just now".to_owned())
        }
        EntryStanding::Settled => (
            "settled",
            "its entry is settled: delivered before the log begins, or not owed to this endpoint".to_owned(),
        ),
        EntryStanding::Gone => ("unknown", String::new()),
    })
}

fn line_words(line: &LogLine, now_ms: u64) -> String {
    let took = words::span(line.took_us / 1000);
    format!("{:>2}  {}  {} after {took}  {}", line.attempt, words::when(line.at_ms, now_ms), line.outcome, line.detail)
}

fn state(place: &WhereUnfinished) -> &'static str {
    match place {
        WhereUnfinished::Due { .. } => "due",
        WhereUnfinished::Claimed { .. } => "claimed",
        WhereUnfinished::Parked => "parked",
        WhereUnfinished::Held { .. } => "held",
        WhereUnfinished::Nowhere => "nowhere",
    }
}

/// The exact commands to go on with.
fn advice(one: &Unfinished) -> Vec<String> {
    let (endpoint, Ok(delivery)) = (&one.id.endpoint, &one.delivery) else { return Vec::new() };
    let test = format!("herald endpoint test {endpoint}");
    match one.place {
        WhereUnfinished::Held { head } => vec![
            format!("herald delivery show {head}:{endpoint}"),
            format!("herald chain show --endpoint {endpoint} --intent {}", delivery.intent),
        ],
        WhereUnfinished::Parked => vec![format!("herald endpoint show {endpoint}"), test],
        // Whether the receiver is well comes first: to release is to give up what it would take a minute later.
        WhereUnfinished::Due { .. } => {
            let release = format!("herald chain release --endpoint {endpoint} --intent {} --dry-run", delivery.intent);
            if delivery.ordered { vec![test, release] } else { vec![test] }
        }
        WhereUnfinished::Claimed { .. } => Vec::new(),
        WhereUnfinished::Nowhere => vec!["herald doctor".to_owned()],
    }
}

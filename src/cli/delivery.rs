//! Deliveries: what is unfinished, what the history and the attempt log know, and the story of one delivery wherever it
//! stands. Changes nothing.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    endpoint,
    moment::{Moment, moment},
    past::{self, Past, words_of},
    pause,
    story::{standing, story_of_dead, story_of_unfinished, waited},
};
use crate::{
    facts::{
        delivery::Delivery,
        id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
    },
    history::{Told, Wanted},
    store::queries::{
        DeadFilter, DeadOrder, EntryStanding, FoundDead, MAX_PAGE, Queries, Unfinished, WhereUnfinished, Whereabouts,
    },
    surface::{Context, Format, VerbError, note, words},
};

/// How many attempts and ends of an intent, an event or a delivery an answer is made of: far more than any has.
const MAX_TOLD: usize = 10_000;

/// How many unfinished records one look reads where no index helps.
const MAX_RECORD_LOOK: usize = 5_000;

/// How many deliveries of an intent one look shows behind the head of its chain.
const MAX_OF_CHAIN: usize = 200;

#[derive(Debug, Subcommand)]
pub enum DeliveryVerb {
    /// Show the deliveries of an intent, an event, an endpoint or an account: unfinished, dead, and ended as far back as the
    /// history goes
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
    /// The latest of one account, with what was owed to no endpoint of it
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<AccountId>,
}

impl Whose {
    /// The story of an intent or an event is wanted whole; of the others there is no end, so the latest are enough.
    fn is_one_story(&self) -> bool {
        self.intent.is_some() || self.event.is_some()
    }
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    whose: Whose,
    /// Of what was tried and has ended, only since then: an age such as 2h or 7d, or 2026-01-31T09:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    since: Option<Moment>,
    /// Of what was tried and has ended, only before then
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    until: Option<Moment>,
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
}

/// One row of a list: where the delivery stands and what was last tried.
#[derive(Serialize)]
struct Row {
    /// Of an event that is owed to nobody, its entry.
    id: String,
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
    let wanted = Wanted {
        event: args.whose.event.clone(),
        intent: args.whose.intent.clone(),
        endpoint: args.whose.endpoint.clone(),
        account: args.whose.account.clone(),
        from_ms: args.since.map(|since| since.ms(now_ms)),
        until_ms: args.until.map(|until| until.ms(now_ms)),
        ..Wanted::default()
    };
    let past = past::look(context, queries, &wanted, if args.whose.is_one_story() { MAX_TOLD } else { limit }).await?;
    past.how_far.iter().for_each(note);
    let is_paused = pause::tell_if_paused(context).await;
    let dead = dead(queries, &args.whose).await?;
    let rows = merge(queries, unfinished, dead, &past, now_ms, is_paused).await?;
    if let Some(text) = &on_records {
        note(text);
    }
    let left = if args.whose.is_one_story() { queries.unindexed_dead().await? } else { 0 };
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
    if past.has_more {
        note("there is more: raise --limit, or name a time with --since and --until");
    }
    let has_ended = |row: &Row| ["delivered", "no_endpoint", "discarded"].contains(&row.state);
    if let Some(stuck) = rows.iter().find(|row| !has_ended(row)) {
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
    let fits = |delivery: &Delivery| match (&whose.event, &whose.account) {
        (Some(event), _) => delivery.event == *event,
        (None, account) => account.as_ref() == Some(&delivery.account),
    };
    let walk = queries.unfinished_where(MAX_RECORD_LOOK, fits).await?;
    Ok((walk.found, (!walk.is_complete).then(|| bounded(walk.looked))))
}

/// The dead letters of an intent or an event. Those of an endpoint or an account are many: `dead-letter list` shows them.
async fn dead(queries: &mut Queries, whose: &Whose) -> anyhow::Result<Vec<FoundDead>> {
    if !whose.is_one_story() {
        return Ok(Vec::new());
    }
    let filter = DeadFilter { intent: whose.intent.clone(), event: whose.event.clone(), ..DeadFilter::everything() };
    Ok(queries.find_dead(&filter, DeadOrder::NewestFirst, None, MAX_PAGE).await?.letters)
}

/// Records first, then dead letters, then what only the history or the log knows: dead, delivered, skipped, or without a record
/// for a moment.
async fn merge(
    queries: &mut Queries,
    unfinished: Vec<Unfinished>,
    dead: Vec<FoundDead>,
    past: &Past,
    now_ms: u64,
    is_paused: bool,
) -> anyhow::Result<Vec<Row>> {
    let mut last: BTreeMap<(EntryId, Option<&EndpointId>), &Told> = BTreeMap::new();
    for told in &past.told {
        // The newest comes first and stays.
        last.entry((told.entry, told.endpoint.as_ref())).or_insert(told);
    }
    for one in &unfinished {
        last.remove(&(one.id.entry, Some(&one.id.endpoint)));
    }
    let mut rows: Vec<Row> = unfinished.iter().map(|one| row_of_record(one, now_ms, is_paused)).collect();
    for letter in &dead {
        let told = last.remove(&(letter.id.entry, Some(&letter.id.endpoint)));
        rows.push(row_of_letter(letter, last_attempt(past, &letter.id).or(told), now_ms));
    }
    let mut ended: Vec<_> = last.into_values().collect();
    ended.sort_by_key(|told| std::cmp::Reverse(told.at_ms));
    for told in ended {
        rows.push(row_of_told(queries, past, told, now_ms).await?);
    }
    Ok(rows)
}

/// The newest attempt of a delivery.
fn last_attempt<'a>(past: &'a Past, id: &DeliveryId) -> Option<&'a Told> {
    past.told
        .iter()
        .find(|told| told.is_attempt() && told.entry == id.entry && told.endpoint.as_ref() == Some(&id.endpoint))
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
        id: one.id.to_string(),
        event,
        intent,
        state: state(&one.place),
        standing: standing(one, now_ms, is_paused),
        attempts,
        last_outcome: last.map(|report| report.outcome.to_string()),
        last_at_ms: last.map(|report| report.at_ms),
    }
}

fn row_of_letter(letter: &FoundDead, tried: Option<&Told>, now_ms: u64) -> Row {
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
    let tried = tried.filter(|told| told.is_attempt());
    let cause = facts.filter(|facts| facts.attempts > 0).map(|facts| facts.cause.to_string());
    Row {
        id: letter.id.to_string(),
        event: facts.and_then(|facts| facts.event.as_ref()).map_or(String::new(), ToString::to_string),
        intent: facts.and_then(|facts| facts.intent.as_ref()).map_or(String::new(), ToString::to_string),
        state: "dead",
        standing,
        attempts: facts.map_or(0, |facts| facts.attempts),
        last_outcome: tried.map(Told::outcome).or(cause),
        last_at_ms: tried.map(|told| told.at_ms),
    }
}

async fn row_of_told(queries: &mut Queries, past: &Past, told: &Told, now_ms: u64) -> anyhow::Result<Row> {
    let ago = words::ago(told.at_ms, now_ms);
    let letter = match (&told.delivery(), told.kind.as_str()) {
        (Some(id), "failed" | "dead" | "redelivered") => queries.dead_letter(id).await?,
        _ => None,
    };
    let (state, standing) = match (told.kind.as_str(), letter) {
        (_, Some(letter)) => ("dead", format!("dead letter since {}", words::span(now_ms.abs_diff(letter.at_ms)))),
        ("delivered", _) => ("delivered", format!("delivered {ago}")),
        ("dead", _) => ("dead", format!("dead letter {ago}: {}; the letter is gone", told.detail)),
        ("discarded", _) => ("discarded", format!("discarded {ago} by {}", told.detail)),
        ("skipped", _) => ("skipped", format!("skipped: {}", told.detail)),
        ("no_endpoint", _) => ("no_endpoint", format!("owed to nobody: {} ({})", told.detail, told.event_type)),
        (_, _) => ("open", "no record: in flight, or discarded".to_owned()),
    };
    let delivery = told.delivery();
    let tried = if told.is_attempt() { Some(told) } else { delivery.as_ref().and_then(|id| last_attempt(past, id)) };
    Ok(Row {
        id: delivery.map_or_else(|| told.entry.to_string(), |id| id.to_string()),
        event: told.event.as_ref().map_or(String::new(), ToString::to_string),
        intent: told.intent.as_ref().map_or(String::new(), ToString::to_string),
        state,
        standing,
        attempts: told.attempt,
        last_outcome: tried.map(Told::outcome),
        last_at_ms: tried.map(|told| told.at_ms),
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
        ("skipped", "skipped"),
        ("no_endpoint", "owed to nobody"),
        ("discarded", "discarded"),
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
        row.id.clone(),
        row.intent.clone(),
        row.standing.clone(),
        row.attempts.to_string(),
        row.last_outcome.clone().unwrap_or_else(|| "never tried".to_owned()),
        row.last_at_ms.map_or_else(String::new, |at| words::ago(at, now_ms)),
    ]
}

async fn show(context: &Context, queries: &mut Queries, id: &DeliveryId) -> anyhow::Result<()> {
    let now_ms = queries.now_ms().await?;
    let found = queries.find(id).await?;
    let wanted = Wanted { delivery: Some(id.clone()), ..Wanted::default() };
    let past = past::look(context, queries, &wanted, MAX_TOLD).await?;
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
            let (state, text) = without_record(queries, id, &past, now_ms).await?;
            let mut fields = vec![("standing", text)];
            fields.extend(past.told.iter().rev().map(|told| (name_of(told), words_of(told, now_ms))));
            (state, fields, serde_json::Value::Null)
        }
    };
    if state == "unknown" {
        let text = format!("there is no delivery {id}, as far as is known ({})", past.how_far.join("; "));
        return Err(VerbError::NotFound(text).into());
    }
    past.how_far.iter().for_each(note);
    let json = serde_json::json!({
        "id": id, "state": state, "standing": fields[0].1, "record": detail, "history": past.told,
    });
    context.output.one(&json, &fields)?;
    if context.output.format() == Format::Table {
        next.iter().for_each(|command| note(format_args!("\nNext:  {command}")));
    }
    Ok(())
}

async fn without_record(
    queries: &mut Queries,
    id: &DeliveryId,
    past: &Past,
    now_ms: u64,
) -> anyhow::Result<(&'static str, String)> {
    if let Some(told) = past.told.first() {
        let at = words::when(told.at_ms, now_ms);
        match told.kind.as_str() {
            "delivered" => {
                return Ok((
                    "delivered",
                    format!("delivered {at} by attempt {}, answered {}", told.attempt, told.outcome()),
                ));
            }
            "skipped" => return Ok(("skipped", format!("skipped: {}", told.detail))),
            "discarded" => return Ok(("discarded", format!("discarded {at} by {}", told.detail))),
            "dead" => return Ok(("dead", format!("dead letter {at}: {}; the letter is gone", told.detail))),
            _ => {}
        }
    }
    Ok(match queries.entry_standing(id.entry).await? {
        EntryStanding::InFlight { idle_ms } => {
            ("in_flight", format!("its entry was read {} ago and is not settled yet", words::span(idle_ms)))
        }
        EntryStanding::Waiting => ("waiting", "its entry waits in the stream: nobody has read it yet".to_owned()),
        EntryStanding::Settled | EntryStanding::Gone if !past.told.is_empty() => {
            ("ended", "tried, and without a record now: it was discarded, or delivered just now".to_owned())
        }
        EntryStanding::Settled => (
            "settled",
            "its entry is settled: delivered before the log begins, or not owed to this endpoint".to_owned(),
        ),
        EntryStanding::Gone => ("unknown", String::new()),
    })
}

fn name_of(told: &Told) -> &'static str {
    match told.kind.as_str() {
        "delivered" | "failed" => "attempt",
        "dead" => "dead",
        "skipped" => "skipped",
        "redelivered" => "redelivered",
        "discarded" => "discarded",
        _ => "ended",
    }
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

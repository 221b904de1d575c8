//! Deliveries: what is unfinished, what the attempt log still knows, and the story of one delivery wherever it stands.
//! Changes nothing.

use clap::{Args, Subcommand};

use super::{
    endpoint, pause,
    story::{story_of_dead, story_of_unfinished},
};
use crate::{
    facts::{
        id::{DeliveryId, EndpointId, EventId, IntentId},
        log::LogLine,
    },
    store::queries::{LogPage, Queries, Unfinished, WhereUnfinished, Whereabouts},
    surface::{Context, Format, VerbError, note, words},
    view::{
        Viewer,
        deliveries::{self, DeliveryLine, Found, Unread},
    },
};

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

pub async fn run(context: &Context, verb: DeliveryVerb) -> anyhow::Result<()> {
    let mut queries = Queries::new(context.connect().await?, context.keys()?);
    match verb {
        DeliveryVerb::List(args) => list(context, &mut queries, args).await,
        DeliveryVerb::Show { id } => show(context, &mut queries, &id).await,
    }
}

async fn list(context: &Context, queries: &mut Queries, args: ListArgs) -> anyhow::Result<()> {
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let whose = args.whose.named()?;
    let is_paused = pause::tell_if_paused(context).await;
    let Found { lines, log, unread } =
        deliveries::find(queries, &whose, None, limit, Viewer::Operator, is_paused).await?;
    let now_ms = queries.now_ms().await?;
    if let Some(text) = on_records(&whose, unread) {
        note(text);
    }
    let left = if args.whose.endpoint.is_none() { queries.unindexed_dead().await? } else { 0 };
    if left > 0 {
        let left = words::count(left, "dead letter", "dead letters");
        note(format_args!("{left} of an older Herald are not indexed yet, and may be missing"));
    }
    note(headline(&lines));
    let mut list = context.output.list(&["ID", "INTENT", "STATE", "ATTEMPTS", "LAST OUTCOME", "LAST TRIED"]);
    for line in lines.iter().take(limit) {
        list.push(line, || cells(line, now_ms))?;
    }
    list.finish()?;
    if lines.len() > limit {
        note(format_args!(
            "the first {} of {}: raise --limit",
            words::number(args.limit),
            words::number(lines.len() as u64)
        ));
    }
    note(how_far(&log, now_ms));
    if let Some(stuck) = lines.iter().find(|line| line.state != "delivered") {
        note(format_args!("\nWhy:  herald delivery show {}", stuck.id));
    }
    match &args.whose.endpoint {
        Some(endpoint) => endpoint::check_known(context, endpoint, lines.is_empty()).await,
        None => Ok(()),
    }
}

impl Whose {
    fn named(&self) -> Result<deliveries::Whose, VerbError> {
        let named = [
            self.intent.clone().map(deliveries::Whose::Intent),
            self.event.clone().map(deliveries::Whose::Event),
            self.endpoint.clone().map(deliveries::Whose::Endpoint),
        ];
        let named = named.into_iter().flatten().next();
        named.ok_or_else(|| VerbError::Usage("name --intent, --event or --endpoint".to_owned()))
    }
}

fn on_records(whose: &deliveries::Whose, unread: Unread) -> Option<String> {
    match (unread, whose) {
        (Unread::Totals(totals), deliveries::Whose::Endpoint(endpoint)) => Some(format!(
            "{endpoint} in all: {} unfinished in {} ({} held behind a head, {} parked), {}",
            words::number(totals.unfinished),
            words::count(totals.chains, "chain", "chains"),
            words::number(totals.held),
            words::number(totals.parked),
            words::count(totals.dead, "dead letter", "dead letters"),
        )),
        (Unread::Beyond(looked), _) => {
            let records = words::count(looked as u64, "unfinished record", "unfinished records");
            Some(format!("looked at only {records}, so some may be missing: --endpoint looks at one endpoint alone"))
        }
        (Unread::Totals(_) | Unread::Nothing, _) => None,
    }
}

fn headline(rows: &[DeliveryLine]) -> String {
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

fn cells(row: &DeliveryLine, now_ms: u64) -> Vec<String> {
    vec![
        row.id.clone(),
        row.intent.clone(),
        row.standing.clone(),
        row.attempts.to_string(),
        row.last_outcome.clone().unwrap_or_else(|| "never tried".to_owned()),
        row.last_at.map_or_else(String::new, |at| words::ago(at.0, now_ms)),
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
    let is_paused = pause::paused(context).await.is_some();
    let told = deliveries::tell(queries, id, is_paused).await?;
    let (log, now_ms) = (&told.log, told.now_ms);
    let mut next = Vec::new();
    let fields = match &told.found {
        Whereabouts::Unfinished(one) => {
            next = advice(one);
            pause::tell_if_paused(context).await;
            story_of_unfinished(one, now_ms, is_paused)
        }
        Whereabouts::Dead(letter) => {
            next.push(format!("herald dead-letter redeliver {id} --reason '…'"));
            story_of_dead(letter, now_ms)
        }
        Whereabouts::NoRecord => {
            let mut fields = vec![("standing", told.standing.clone())];
            fields.extend(log.lines.iter().rev().map(|line| ("attempt", line_words(line, now_ms))));
            fields
        }
    };
    if told.state == "unknown" {
        let text = format!("there is no delivery {id}, as far as Redis tells ({})", how_far(log, now_ms));
        return Err(VerbError::NotFound(text).into());
    }
    context.output.one(&told.view(id, Viewer::Operator), &fields)?;
    if context.output.format() == Format::Table {
        note(how_far(log, now_ms));
        next.iter().for_each(|command| note(format_args!("\nNext:  {command}")));
    }
    Ok(())
}

fn line_words(line: &LogLine, now_ms: u64) -> String {
    let took = words::span(line.took_us / 1000);
    format!("{:>2}  {}  {} after {took}  {}", line.attempt, words::when(line.at_ms, now_ms), line.outcome, line.detail)
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

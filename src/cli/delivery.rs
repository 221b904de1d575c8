//! Deliveries: what is unfinished, what the history and the attempt log know, and the story of one delivery wherever it
//! stands. Changes nothing.

use clap::{Args, Subcommand};

use super::{
    endpoint, pause,
    story::{story_of_dead, story_of_unfinished},
};
use crate::{
    facts::id::{AccountId, DeliveryId, EndpointId, EventId, IntentId},
    history::Told,
    store::queries::{Partitions, Totals, Unfinished, WhereUnfinished, Whereabouts},
    surface::{Context, Format, VerbError, note, of_those_that_answer, words},
    view::{
        Viewer,
        deliveries::{self, Asked, DeliveryLine, Found, Side},
        past::{self, words_of},
        time::Moment,
    },
};

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
    /// All deliveries to one endpoint
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<EndpointId>,
    /// All deliveries of one account, with what was owed to no endpoint of it
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<AccountId>,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    whose: Whose,
    /// Of what was tried and has ended, only since then: an age such as 2h or 7d, or 2026-01-31T09:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Of what was tried and has ended, only before then
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    until: Option<Moment>,
    /// Show at most this many, the newest
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    limit: u64,
}

pub async fn run(context: &Context, verb: DeliveryVerb) -> anyhow::Result<()> {
    let mut queries = context.partitions().await?;
    let done = match verb {
        DeliveryVerb::List(args) => list(context, &mut queries, args).await,
        DeliveryVerb::Show { id } => show(context, &mut queries, &id).await,
    };
    of_those_that_answer(&queries, done)
}

async fn list(context: &Context, queries: &mut Partitions, args: ListArgs) -> anyhow::Result<()> {
    let now_ms = queries.now_ms().await?;
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let asked = Asked {
        whose: args.whose.named()?,
        of: None,
        from_ms: args.since.map(|since| since.ms(now_ms)),
        until_ms: args.until.map(|until| until.ms(now_ms)),
        side: Side::Newest,
        limit,
    };
    past::check_span(asked.from_ms, asked.until_ms).map_err(|why| VerbError::Usage(format!("--since {why}")))?;
    let pause = pause::paused(context).await;
    let history = context.history();
    let found = deliveries::find(queries, &history, &asked, Viewer::Operator, pause.is_some()).await?;
    let Found { lines, older, past, looked, totals, .. } = found;
    past.reach.words().iter().for_each(note);
    pause.iter().for_each(pause::tell);
    if let (Some(totals), Some(endpoint)) = (totals, &args.whose.endpoint) {
        note(in_all(endpoint, totals));
    }
    looked.words().iter().for_each(note);
    let left = queries.unindexed_dead().await?;
    if left > 0 {
        let left = words::count(left, "dead letter", "dead letters");
        note(format_args!("{left} of an older Herald are not indexed yet, and may be missing"));
    }
    note(headline(&lines));
    let mut list = context.output.list(&["ID", "INTENT", "STATE", "TRIES", "LAST OUTCOME"]);
    for line in &lines {
        list.push(line, || cells(line))?;
    }
    list.finish()?;
    if older.is_some() {
        let shown = words::number(lines.len() as u64);
        note(format_args!("the newest {shown}, and there are older ones: raise --limit"));
    }
    // The oldest holds others up.
    let has_ended = |line: &DeliveryLine| ["delivered", "no_endpoint", "discarded"].contains(&line.state);
    if let Some(stuck) = lines.iter().rfind(|line| !has_ended(line)) {
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
            self.account.clone().map(deliveries::Whose::Account),
        ];
        let named = named.into_iter().flatten().next();
        named.ok_or_else(|| VerbError::Usage("name --intent, --event, --endpoint or --account".to_owned()))
    }
}

fn in_all(endpoint: &EndpointId, totals: Totals) -> String {
    format!(
        "{endpoint} in all: {} unfinished in {} ({} held behind a head, {} parked), {}",
        words::number(totals.unfinished),
        words::count(totals.chains, "chain", "chains"),
        words::number(totals.held),
        words::number(totals.parked),
        words::count(totals.dead, "dead letter", "dead letters"),
    )
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

fn cells(row: &DeliveryLine) -> Vec<String> {
    vec![
        row.id.clone(),
        row.intent.clone(),
        row.standing.clone(),
        row.attempts.to_string(),
        row.last_outcome.clone().unwrap_or_else(|| "never tried".to_owned()),
    ]
}

async fn show(context: &Context, queries: &mut Partitions, id: &DeliveryId) -> anyhow::Result<()> {
    let pause = pause::paused(context).await;
    let told = deliveries::tell(queries, &context.history(), id, None, Viewer::Operator, pause.is_some()).await?;
    let (reach, now_ms) = (told.past.reach.words(), told.now_ms);
    if told.state == "unknown" {
        let text = format!("there is no delivery {id}, as far as is known ({})", reach.join("; "));
        return Err(VerbError::NotFound(text).into());
    }
    reach.iter().for_each(note);
    let mut next = Vec::new();
    let fields = match &told.found {
        Whereabouts::Unfinished(one) => {
            next = advice(one);
            pause.iter().for_each(pause::tell);
            story_of_unfinished(one, now_ms, pause.is_some())
        }
        Whereabouts::Dead(letter) => {
            next.push(format!("herald dead-letter redeliver {id} --reason '…'"));
            story_of_dead(letter, now_ms)
        }
        Whereabouts::NoRecord => {
            let mut fields = vec![("standing", told.standing.clone())];
            fields.extend(told.past.told.iter().rev().map(|told| (name_of(told), words_of(told, now_ms))));
            fields
        }
    };
    context.output.one(&told.view(id, Viewer::Operator), &fields)?;
    if context.output.format() == Format::Table {
        next.iter().for_each(|command| note(format_args!("\nNext:  {command}")));
    }
    Ok(())
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

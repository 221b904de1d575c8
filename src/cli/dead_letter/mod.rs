//! Dead letters: list, look at, send again, drop, export. Changes go through the partition's owner.

mod filter;
mod groups;
mod jobs;

use clap::{Args, Subcommand};

pub use self::filter::Filter;
use self::{
    filter::{refuse_if_unindexed, tell_if_unindexed},
    groups::GroupBy,
    jobs::{Job, JobArgs},
};
use super::story::story_of_dead;
use crate::{
    facts::id::DeliveryId,
    store::queries::{DeadFilter, DeadKey, DeadOrder, FoundDead, MAX_PAGE, Partitions},
    surface::{Context, Format, VerbError, json_line, note, of_those_that_answer, words},
    view::{
        Viewer,
        deliveries::waited,
        letter::{LetterLine, LetterView},
    },
};

#[derive(Debug, Subcommand)]
pub enum DeadLetterVerb {
    /// Show dead letters, the newest first, and how many there are by reason; or how many of each group
    List(ListArgs),
    /// Show one with its whole history
    Show {
        /// ENTRY:ENDPOINT, as `dead-letter list` shows it
        id: DeliveryId,
    },
    /// Send one again, or all that match a filter, with the same webhook-id and their history
    Redeliver(JobArgs),
    /// Drop one, or all that match a filter, for good
    Discard(JobArgs),
    /// Write all that match a filter as JSON lines, the oldest first
    Export {
        #[command(flatten)]
        filter: Filter,
        /// Stop after this many
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    filter: Filter,
    /// Count them by these instead: whom it hits, why, since when
    #[arg(long, value_name = "KEYS", value_enum, value_delimiter = ',')]
    group_by: Vec<GroupBy>,
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u64,
}

pub async fn run(context: &Context, verb: DeadLetterVerb) -> anyhow::Result<()> {
    let mut queries = context.partitions().await?;
    let done = match verb {
        DeadLetterVerb::List(args) => list(context, &mut queries, args).await,
        DeadLetterVerb::Show { id } => show(context, &mut queries, &id).await,
        DeadLetterVerb::Redeliver(args) => jobs::run(context, &mut queries, Job::Redeliver, args).await,
        DeadLetterVerb::Discard(args) => jobs::run(context, &mut queries, Job::Discard, args).await,
        DeadLetterVerb::Export { filter, limit } => export(context, &mut queries, &filter, limit).await,
    };
    of_those_that_answer(&queries, done)
}

async fn list(context: &Context, queries: &mut Partitions, args: ListArgs) -> anyhow::Result<()> {
    let now_ms = queries.now_ms().await?;
    let filter = args.filter.range(now_ms);
    tell_if_unindexed(queries).await?;
    if !args.group_by.is_empty() {
        return groups::list(context, queries, &filter, &args.group_by, args.limit, now_ms).await;
    }
    let count = queries.count_dead_where(&filter).await?;
    note(headline(queries, &filter, count, args.limit).await?);
    let mut rows = context.output.list(&["GIVEN UP", "ID", "INTENT", "REASON", "CAUSE", "ATTEMPTS"]);
    let (mut first, mut left, mut after) = (None, args.limit, None);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(MAX_PAGE);
        let page = queries.find_dead(&filter, DeadOrder::NewestFirst, after.as_ref(), most).await?;
        left = left.saturating_sub(page.letters.len() as u64);
        for letter in queries.with_known_facts(page.letters).await? {
            rows.push(&LetterLine::of(&letter, Viewer::Operator), || row(&letter, now_ms))?;
            first.get_or_insert(letter.id);
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    rows.finish()?;
    if let Some(first) = first {
        note(format_args!("\nWhy:        herald dead-letter show {first}"));
        note(format_args!("Try first:  herald dead-letter redeliver {} --dry-run", args.filter.as_flags()));
    }
    Ok(())
}

async fn headline(queries: &mut Partitions, filter: &DeadFilter, count: u64, limit: u64) -> anyhow::Result<String> {
    if count == 0 {
        return Ok("no dead letters".to_owned());
    }
    let mut reasons: Vec<(String, u64)> = Vec::new();
    for (group, totals) in queries.group_dead(filter, &[DeadKey::Reason]).await? {
        reasons.push((group.reason.unwrap_or_default(), totals.count));
    }
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let by_reason: Vec<String> = reasons.iter().map(|(name, n)| format!("{} {name}", words::number(*n))).collect();
    let letters = words::count(count, "dead letter", "dead letters");
    let by_reason = if by_reason.is_empty() { String::new() } else { format!(": {}", by_reason.join(", ")) };
    let cut = if limit < count { format!("; {} shown", words::number(limit)) } else { String::new() };
    Ok(format!("{letters}{by_reason}{cut}"))
}

fn row(letter: &FoundDead, now_ms: u64) -> Vec<String> {
    let (id, at) = (letter.id.to_string(), words::ago(letter.at_ms, now_ms));
    let Some(facts) = &letter.facts else { return vec![at, id] };
    let intent = facts.intent.as_ref().map_or(String::new(), ToString::to_string);
    let cause = match &facts.waited_for {
        Some(waited_for) => format!("never tried: {}", waited(waited_for, now_ms)),
        None => facts.cause.to_string(),
    };
    vec![at, id, intent, facts.reason_name().to_owned(), cause, facts.attempts.to_string()]
}

async fn show(context: &Context, queries: &mut Partitions, id: &DeliveryId) -> anyhow::Result<()> {
    let now_ms = queries.now_ms().await?;
    let Some(letter) = queries.dead_letter(id).await? else {
        let text = format!("there is no dead letter {id}: `herald delivery show {id}` says where it stands");
        return Err(VerbError::NotFound(text).into());
    };
    context.output.one(&LetterView::of(&letter, Viewer::Operator), &story_of_dead(&letter, now_ms))?;
    if context.output.format() == Format::Table {
        note(format_args!("\nAgain:  herald dead-letter redeliver {id} --reason '…'"));
        note(format_args!("Drop:   herald dead-letter discard {id} --reason '…'"));
    }
    Ok(())
}

async fn export(
    context: &Context,
    queries: &mut Partitions,
    filter: &Filter,
    limit: Option<u64>,
) -> anyhow::Result<()> {
    let filter = filter.range(queries.now_ms().await?);
    refuse_if_unindexed(queries, &filter).await?;
    let (mut written, limit, mut after) = (0, limit.unwrap_or(u64::MAX), None);
    while written < limit {
        let most = usize::try_from(limit - written).unwrap_or(usize::MAX).min(MAX_PAGE);
        let page = queries.find_dead(&filter, DeadOrder::OldestFirst, after.as_ref(), most).await?;
        let ids = page.letters.into_iter().map(|letter| (letter.id, letter.at_ms)).collect();
        for letter in queries.letters(ids).await? {
            written += 1;
            context.output.text(&json_line(&LetterView::of(&letter, Viewer::Operator))?)?;
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    note(format_args!("{} written", words::count(written, "dead letter", "dead letters")));
    Ok(())
}

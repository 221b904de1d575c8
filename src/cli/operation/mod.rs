//! `herald operation …`: one thing done to many deliveries. A plan says what it would be about and how many these are; it is started by
//! its id alone, and the worker carries it out, whether or not anybody watches.

pub mod follow;

use clap::{Args, Subcommand};

use self::follow::{follow, shown};
use super::{
    args::{WhoAndMaybeWhy, WhoAndWhy},
    dead_letter::Filter,
};
use crate::{
    clock,
    facts::{
        audit::{Act, Begun},
        id::{EntryId, OperationId},
        operation::{Change, Kind, MAX_RATE, Operation, Rate, State},
    },
    history::plan::{self, PlanError},
    store::{
        operations::{AllOperations, OperationError, Share, Verb, Wanted},
        queries::{DeadFilter, MAX_PAGE},
    },
    surface::{Context, Format, VerbError, audit::audited_until_its_end, audited, note, of_those_that_answer, words},
    view::operation::{OperationView, ResultView},
};

#[derive(Debug, Subcommand)]
pub enum OperationVerb {
    /// Say what an operation would be about and how many these are, and freeze that under an id; nothing is done yet
    Plan(PlanArgs),
    /// Start what was planned: it takes what there was then, and nothing else
    Start {
        #[command(flatten)]
        which: Which,
        /// Follow it until it ends
        #[arg(long)]
        watch: bool,
    },
    /// Take nothing more for now; what is under way ends
    Pause(Which),
    /// Go on with one that is paused
    Resume(Which),
    /// Take nothing more for good; what is under way ends, and what was done stays done
    Cancel(Which),
    /// Set how many it takes a second at most
    Rate {
        /// As `operation list` shows it
        id: OperationId,
        /// How many a second
        #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)))]
        rate: u32,
        #[command(flatten)]
        change: WhoAndMaybeWhy,
    },
    /// List operations, the newest first
    List {
        /// Show at most this many
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// Show one: how far it is, what it waits for, and what became of what it took
    Show {
        /// As `operation list` shows it
        id: OperationId,
    },
    /// List what was not simply done, each with its reason, the oldest first; the last 10 000 are kept
    Results {
        /// As `operation list` shows it
        id: OperationId,
        /// Show at most this many
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        limit: usize,
    },
    /// Follow one until it ends
    Watch {
        /// As `operation list` shows it
        id: OperationId,
    },
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// redeliver or discard dead letters; send-now, for deliveries that wait for their next attempt: with --endpoint, and
    /// --intent, alone; or replay, to send events that the history kept to one --endpoint again, those of its account, or of
    /// one --intent or --event, that were accepted between --since and --until; or erase, to take out what is kept of the
    /// events of one --account, whose endpoints are disabled or deleted
    kind: Kind,
    #[command(flatten)]
    filter: Filter,
    /// Every dead letter there is
    #[arg(long)]
    all: bool,
    /// No more than this many, the oldest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// How many a second at most [default: 200 to redeliver or replay, 500 to send now, 1000 to discard or erase]
    #[arg(long, value_name = "RATE", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)))]
    rate: Option<u32>,
    #[command(flatten)]
    change: WhoAndWhy,
}

#[derive(Debug, Args)]
pub struct Which {
    /// As `operation list` shows it
    id: OperationId,
    #[command(flatten)]
    change: WhoAndMaybeWhy,
}

pub async fn run(context: &Context, verb: OperationVerb) -> anyhow::Result<()> {
    match verb {
        OperationVerb::Plan(args) => plan_as_asked(context, args).await,
        OperationVerb::Start { which, watch } => {
            start_as_asked(context, &which).await?;
            match watch {
                true => follow(context, &which.id).await,
                false => show(context, &which.id).await,
            }
        }
        OperationVerb::Pause(which) => change(context, &which, Act::OperationPause, Verb::Pause).await,
        OperationVerb::Resume(which) => change(context, &which, Act::OperationResume, Verb::Resume).await,
        OperationVerb::Cancel(which) => change(context, &which, Act::OperationCancel, Verb::Cancel).await,
        OperationVerb::Rate { id, rate, change: by } => {
            change(context, &Which { id, change: by }, Act::OperationRate, Verb::Rate(Rate::of(rate))).await
        }
        OperationVerb::List { limit } => list(context, limit).await,
        OperationVerb::Show { id } => show(context, &id).await,
        OperationVerb::Results { id, limit } => results(context, &id, limit).await,
        OperationVerb::Watch { id } => follow(context, &id).await,
    }
}

/// Those of all partitions.
pub async fn operations(context: &Context) -> anyhow::Result<AllOperations> {
    Ok(context.partitions().await?.into())
}

async fn plan_as_asked(context: &Context, args: PlanArgs) -> anyhow::Result<()> {
    let is_of_letters = matches!(args.kind, Kind::Redeliver | Kind::Discard);
    if is_of_letters && args.filter.is_empty() && !args.all && args.limit.is_none() {
        return Err(VerbError::Usage("give a filter, or --all".to_owned()).into());
    }
    let mut queries = context.partitions().await?;
    let letters = args.filter.range(queries.now_ms().await?);
    let limit = args.limit.map_or_else(String::new, |limit| format!(" --limit {limit}"));
    let filter = format!("{}{limit}", args.filter.as_flags());
    let planned = Planned { kind: args.kind, letters, filter, limit: args.limit, rate: args.rate };
    let operation = plan(context, planned, &args.change).await?;
    context.output.one(&OperationView::of(&operation), &shown(&operation, context.now_ms()))?;
    let id = &operation.id;
    note(format_args!("\nStart:  herald operation start {id}"));
    note(format_args!("Drop:   herald operation cancel {id}"));
    Ok(())
}

/// What is to be planned.
pub struct Planned {
    pub kind: Kind,
    pub letters: DeadFilter,
    pub filter: String,
    pub limit: Option<u64>,
    pub rate: Option<u32>,
}

/// Freezes it. For the verbs that start it at once, too.
pub async fn plan(context: &Context, planned: Planned, change: &WhoAndWhy) -> anyhow::Result<Operation> {
    let Planned { kind, letters, filter, limit, rate } = planned;
    let rate = rate.map(Rate::of);
    let begun = change.act(Act::OperationPlan).filter(&filter);
    let begun = letters.account.iter().fold(begun, Begun::account);
    let begun = letters.endpoint.iter().fold(begun, Begun::endpoint);
    let (by, why, random) = (change.by.clone(), change.reason.clone(), rand::random());
    let wanted = Wanted { kind, letters, limit, filter, rate, by, why, random, made_ms: None };
    let work = async |tally: &mut crate::facts::audit::Tally| {
        let mut operations = operations(context).await?;
        let operation = match (kind, &wanted.letters.endpoint) {
            (Kind::Replay, None) => return Err(PlanError::NoEndpoint.into()),
            (Kind::Replay, Some(id)) => {
                let endpoint = context.registry().await?.get(id).await?;
                plan::replay(&context.history(), &operations, endpoint.as_ref(), wanted).await?
            }
            (Kind::Erase, _) => {
                let endpoints = context.registry().await?.all().await?;
                plan::erase(&context.history(), &mut operations, &endpoints, wanted).await?
            }
            _ => operations.plan(wanted).await?,
        };
        tally.set(operation.plan.count, 0);
        Ok(operation)
    };
    audited(context, begun, work).await
}

async fn start_as_asked(context: &Context, which: &Which) -> anyhow::Result<()> {
    let mut operations = operations(context).await?;
    let missing = || OperationError::Missing(which.id.clone());
    let operation = operations.find(&which.id).await?.ok_or_else(missing)?;
    let begun = which.change.act(Act::OperationStart);
    start(context, &mut operations, &operation, begun, which.change.by()).await
}

/// The act that begins ends with the operation: the worker writes its end.
pub async fn start(
    context: &Context,
    operations: &mut AllOperations,
    operation: &Operation,
    begun: Begun,
    by: &str,
) -> anyhow::Result<()> {
    let shares = operations.shares_of(&operation.id).await?;
    let are_many = shares.len() > 1;
    let is_planned = |share: &&Share| share.operation.state == State::Planned;
    let planned: Vec<&Share> = shares.iter().filter(is_planned).collect();
    // What is started already says so itself.
    let planned = if planned.is_empty() { shares.iter().take(1).collect() } else { planned };
    let who = Change { by: by.to_owned(), why: begun.why.clone(), at_ms: clock::wall_ms() };
    for share in planned {
        let plan = &share.operation.plan;
        let begun = begun.clone().target(&operation.id).filter(share.filter(are_many)).count(plan.count);
        let begun = plan.selection.account.iter().fold(begun, Begun::account);
        let begun = plan.selection.endpoint.iter().fold(begun, Begun::endpoint);
        let work = async |entry: Option<EntryId>| Ok(operations.start(share, entry, &who).await?);
        audited_until_its_end(context, begun, work).await?;
    }
    Ok(())
}

async fn change(context: &Context, which: &Which, act: Act, verb: Verb) -> anyhow::Result<()> {
    let Which { id, change } = which;
    let mut operations = operations(context).await?;
    let begun = change.act(act).target(id);
    let begun = if let Verb::Rate(rate) = verb { begun.count(rate.rounded_up().into()) } else { begun };
    let who = Change { by: change.by().to_owned(), why: begun.why.clone(), at_ms: clock::wall_ms() };
    audited(context, begun, async |_| Ok(operations.change(id, verb, &who).await?)).await?;
    show(context, id).await
}

async fn list(context: &Context, limit: usize) -> anyhow::Result<()> {
    let mut operations = operations(context).await?;
    let done = list_of(&mut operations, context, limit).await;
    of_those_that_answer(operations.partitions(), done)
}

async fn list_of(operations: &mut AllOperations, context: &Context, limit: usize) -> anyhow::Result<()> {
    let mut ids = operations.ids().await?;
    let there = ids.len();
    ids.truncate(limit);
    let now_ms = context.now_ms();
    let mut rows = context.output.list(&["ID", "PLANNED", "KIND", "STATE", "OF", "DONE", "NOT DONE", "WHY"]);
    for operation in operations.find_all(&ids).await? {
        rows.push(&OperationView::of(&operation), || {
            let (plan, counts) = (&operation.plan, &operation.counts);
            vec![
                operation.id.to_string(),
                words::ago(plan.at_ms, now_ms),
                plan.kind.name().to_owned(),
                operation.state.name().to_owned(),
                words::number(plan.count),
                words::number(counts.done),
                words::number(counts.ended() - counts.done),
                plan.why.clone(),
            ]
        })?;
    }
    rows.finish()?;
    if there > limit {
        note(format_args!("the newest {} of {there}: raise --limit", words::number(limit as u64)));
    }
    Ok(())
}

async fn show(context: &Context, id: &OperationId) -> anyhow::Result<()> {
    let mut operations = operations(context).await?;
    let done = show_of(&mut operations, context, id).await;
    of_those_that_answer(operations.partitions(), done)
}

async fn show_of(operations: &mut AllOperations, context: &Context, id: &OperationId) -> anyhow::Result<()> {
    let operation = operations.find(id).await?.ok_or_else(|| OperationError::Missing(id.clone()))?;
    context.output.one(&OperationView::of(&operation), &shown(&operation, context.now_ms()))?;
    let counts = operation.counts;
    if context.output.format() == Format::Table && counts.ended() > counts.done {
        note(format_args!("\nWhat was not done, and why:  herald operation results {id}"));
    }
    Ok(())
}

async fn results(context: &Context, id: &OperationId, limit: usize) -> anyhow::Result<()> {
    let mut operations = operations(context).await?;
    let done = results_of(&mut operations, context, id, limit).await;
    of_those_that_answer(operations.partitions(), done)
}

async fn results_of(
    operations: &mut AllOperations,
    context: &Context,
    id: &OperationId,
    limit: usize,
) -> anyhow::Result<()> {
    operations.find(id).await?.ok_or_else(|| OperationError::Missing(id.clone()))?;
    let now_ms = context.now_ms();
    let mut rows = context.output.list(&["WHEN", "DELIVERY", "RESULT", "WHY"]);
    let (mut left, mut after) = (limit, None);
    while left > 0 {
        let (page, has_more) = operations.exceptions(id, after, left.min(MAX_PAGE)).await?;
        after = page.last().map(|(last, _)| *last);
        left = if has_more { left.saturating_sub(page.len()) } else { 0 };
        for (_, exception) in &page {
            rows.push(&ResultView::of(exception), || {
                let when = words::ago(exception.at_ms, now_ms);
                vec![when, exception.delivery.clone(), exception.result.replace('_', " "), exception.why.clone()]
            })?;
        }
    }
    rows.finish()
}

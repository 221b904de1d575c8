//! Chains: what waits behind what, and how to let the next one go. Changes go through the partition's owner.

use clap::{Args, Subcommand};

use super::{
    args::{Consent, Go},
    asking::Asking,
    endpoint, pause,
    story::history,
};
use crate::{
    facts::{
        audit::Act,
        delivery::Delivery,
        id::{EndpointId, IntentId},
    },
    store::{
        protocol::Asked,
        queries::{ChainHead, Partitions, Unfinished},
    },
    surface::{Context, Format, VerbError, audited, note, of_those_that_answer, words},
    view::{Viewer, chain::ChainView, standing::standing},
};

/// How many deliveries of one chain `show` looks at.
const MAX_OF_CHAIN: usize = 500;

/// How many chains `list` looks at to find the oldest.
const MAX_CHAINS: usize = 5_000;

#[derive(Debug, Subcommand)]
pub enum ChainVerb {
    /// Show an endpoint's unfinished chains, the oldest head first
    List(ListArgs),
    /// Show one chain: its head, and what waits behind it
    Show(Which),
    /// Give up the head of a chain as a dead letter, so that the next one goes
    Release(ReleaseArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Whose chains
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: EndpointId,
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

#[derive(Debug, Args)]
pub struct Which {
    /// The endpoint that it goes to
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: EndpointId,
    /// The payment intent that it is about
    #[arg(long, value_name = "INTENT")]
    intent: IntentId,
}

#[derive(Debug, Args)]
pub struct ReleaseArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    consent: Consent,
}

pub async fn run(context: &Context, verb: ChainVerb) -> anyhow::Result<()> {
    let mut queries = context.partitions().await?;
    let done = match verb {
        ChainVerb::List(args) => list(context, &mut queries, args).await,
        ChainVerb::Show(which) => show(context, &mut queries, &which).await,
        ChainVerb::Release(args) => release(context, &mut queries, args).await,
    };
    of_those_that_answer(&queries, done)
}

async fn list(context: &Context, queries: &mut Partitions, args: ListArgs) -> anyhow::Result<()> {
    let now_ms = queries.now_ms().await?;
    let totals = queries.totals(&args.endpoint).await?;
    let (chains, is_complete) = queries.chains(&args.endpoint, MAX_CHAINS).await?;
    let is_paused = pause::tell_if_paused(context).await;
    let oldest = chains.first().and_then(|chain| chain.head.id.entry.age_ms(now_ms));
    let oldest = oldest.map_or_else(String::new, |age| format!("; the oldest head is {} old", words::span(age)));
    note(format_args!(
        "{}: {}, {} held behind their heads{oldest}",
        args.endpoint,
        words::count(totals.chains, "unfinished chain", "unfinished chains"),
        words::number(totals.held),
    ));
    let mut rows = context.output.list(&["INTENT", "HELD", "HEAD", "STANDING", "ATTEMPTS", "LAST OUTCOME"]);
    for chain in chains.iter().take(args.limit) {
        rows.push(&view(&chain.head, Some(chain.held), now_ms, is_paused), || cells(chain, now_ms, is_paused))?;
    }
    rows.finish()?;
    if chains.len() > args.limit {
        note(format_args!(
            "the first {} of {}: raise --limit",
            words::number(args.limit as u64),
            words::number(chains.len() as u64)
        ));
    }
    if !is_complete {
        note(format_args!(
            "looked at only {} chains: an older one may be among the others",
            words::number(MAX_CHAINS as u64)
        ));
    }
    if let Some(intent) = chains.first().and_then(|chain| intent_of(&chain.head)) {
        note(format_args!("\nWhy:  herald chain show --endpoint {} --intent {intent}", args.endpoint));
    }
    endpoint::check_known(context, &args.endpoint, chains.is_empty()).await
}

fn cells(chain: &ChainHead, now_ms: u64, is_paused: bool) -> Vec<String> {
    let head = &chain.head;
    let intent = intent_of(head).map_or("unreadable".to_owned(), ToString::to_string);
    let view = view(head, None, now_ms, is_paused);
    vec![
        if head.is_single() { format!("{intent} (no order)") } else { intent },
        words::number(chain.held),
        head.id.entry.to_string(),
        view.standing,
        view.attempts.map_or_else(String::new, |attempts| attempts.to_string()),
        view.last_outcome.unwrap_or_else(|| "never tried".to_owned()),
    ]
}

async fn show(context: &Context, queries: &mut Partitions, which: &Which) -> anyhow::Result<()> {
    let now_ms = queries.now_ms().await?;
    let chain = chain_of(queries, which).await?;
    let head = &chain[0];
    let is_paused = pause::tell_if_paused(context).await;
    note(match chain.len() - 1 {
        0 => format!("{} waits for nobody; nothing is held behind it", head.id),
        MAX_OF_CHAIN.. => format!("{} or more wait for {}", words::number(MAX_OF_CHAIN as u64), head.id),
        held => format!("{} for {}", words::count(held as u64, "delivery waits", "deliveries wait"), head.id),
    });
    let last = head.delivery.as_ref().ok().and_then(|delivery| delivery.history.last());
    if let Some(last) = last {
        note(format_args!("last outcome {}: {}", last.outcome, words::outcome(&last.outcome)));
    }
    let mut rows = context.output.list(&["ID", "EVENT", "STANDING", "ATTEMPTS"]);
    for one in &chain {
        rows.push(&view(one, None, now_ms, is_paused), || {
            let event = one.delivery.as_ref().map_or_else(|why| why.clone(), |delivery| delivery.event.to_string());
            let attempts = one.delivery.as_ref().map_or(0, Delivery::attempts_in_all);
            vec![one.id.to_string(), event, standing(one, now_ms, is_paused), attempts.to_string()]
        })?;
    }
    rows.finish()?;
    if context.output.format() == Format::Table {
        if let Ok(delivery) = &head.delivery {
            history(delivery, now_ms).iter().for_each(|(name, text)| note(format_args!("{name} {text}")));
        }
        note(format_args!("\nIs it well?       herald endpoint test {}", which.endpoint));
        note(format_args!(
            "Let the next go:  herald chain release --endpoint {} --intent {} --dry-run",
            which.endpoint, which.intent
        ));
    }
    Ok(())
}

async fn release(context: &Context, queries: &mut Partitions, args: ReleaseArgs) -> anyhow::Result<()> {
    let chain = chain_of(queries, &args.which).await?;
    let head = &chain[0].id;
    let next = chain.get(1).map_or("nothing waits behind it".to_owned(), |next| format!("{} goes next", next.id));
    let what = format!("give up {head} as a dead letter; {next}");
    if args.consent.confirm(&what)? == Go::DryRun {
        return Ok(());
    }
    let asked = Asked::Release(args.which.endpoint.clone(), args.which.intent.clone(), Some(head.entry));
    let Which { endpoint, intent } = &args.which;
    let begun = args.consent.act(Act::ChainRelease).endpoint(endpoint).intent(intent).target(head);
    let [keys] = &queries.keys_of(std::slice::from_ref(head)).await?[..] else { return Ok(()) };
    let release = async |_: &mut _| Asking::connect(context, args.consent.mark()).await?.one(keys, &asked).await;
    audited(context, begun, release).await?;
    note(format_args!("{head} is a dead letter; {next}"));
    note(format_args!("Send it after all:  herald dead-letter redeliver {head} --reason '…'"));
    Ok(())
}

async fn chain_of(queries: &mut Partitions, which: &Which) -> anyhow::Result<Vec<Unfinished>> {
    let chain = queries.chain(&which.endpoint, &which.intent, MAX_OF_CHAIN).await?;
    match chain.is_empty() {
        false => Ok(chain),
        true => {
            let text = format!(
                "{} has no unfinished chain at {}: `herald delivery list --intent {}` shows what became of its events",
                which.intent, which.endpoint, which.intent
            );
            Err(VerbError::NotFound(text).into())
        }
    }
}

fn intent_of(one: &Unfinished) -> Option<&IntentId> {
    one.delivery.as_ref().ok().map(|delivery| &delivery.intent)
}

fn view(one: &Unfinished, held: Option<u64>, now_ms: u64, is_paused: bool) -> ChainView {
    ChainView::of(one, held, Viewer::Operator, now_ms, is_paused)
}

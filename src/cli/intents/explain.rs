//! `herald intents explain`: what a payment intent is now, which commands are possible, and why the others are not. What can be
//! done is asked of the very decision that the service makes. Changes nothing.

use clap::Args;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::{of_service, service};
use crate::{
    facts::{
        event::{CaptureMode, PaymentStatus},
        id::{AccountId, IntentId},
    },
    intents::{
        explain::{self, Next, Prospect},
        intent::Intent,
        money::Money,
        stamp::Stamp,
    },
    surface::{Context, Format, note, words},
};

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The payment intent
    id: IntentId,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Explained<'a> {
    id: &'a IntentId,
    account: &'a AccountId,
    reference: &'a str,
    status: PaymentStatus,
    capture_mode: CaptureMode,
    amount: Money,
    total: Money,
    held: Money,
    captured: Money,
    refunded: Money,
    /// Held, and neither captured nor given back.
    rest: Money,
    created_at: Stamp,
    changed_at: Stamp,
    /// By the intents' clock, as all times here.
    now: Stamp,
    next: Option<Next>,
    challenge_pending: bool,
    /// How often it was tried to pay, as far as it is remembered, and what came of the last time.
    attempts: usize,
    last_attempt: Option<&'a str>,
    events: usize,
    commands: Vec<Prospect>,
}

pub async fn run(context: &Context, args: ExplainArgs) -> anyhow::Result<()> {
    let (stored, now) = service(context)?.inspect(&args.id).await.map_err(of_service)?;
    let after = explain::after_deadline(&stored, now);
    if after.is_some() {
        note("its deadline has come, and is applied by whoever looks at it next: this is how it will be then");
    }
    let intent = after.unwrap_or(stored);
    let explained = explained(&intent, now, &context.config.intents.zone);
    context.output.one(&explained, &fields(&explained))?;
    if context.output.format() != Format::Table {
        return Ok(());
    }
    context.output.text("")?;
    let mut list = context.output.list(&["COMMAND", "NOW", "LEADS TO", "BECAUSE"]);
    for prospect in &explained.commands {
        list.push(prospect, || cells(prospect))?;
    }
    list.finish()
}

fn explained<'a>(intent: &'a Intent, now: Stamp, zone: &TimeZone) -> Explained<'a> {
    let amount = intent.details.amount;
    Explained {
        id: &intent.id,
        account: &intent.account,
        reference: &intent.details.reference,
        status: intent.status,
        capture_mode: intent.mode(),
        amount,
        total: amount.of(intent.total()),
        held: amount.of(intent.held()),
        captured: amount.of(intent.captured()),
        refunded: amount.of(intent.refunded()),
        rest: amount.of(intent.rest()),
        created_at: intent.created_at,
        changed_at: intent.changed_at,
        now,
        next: explain::next(intent, now),
        challenge_pending: intent.pending_challenge(now).is_some(),
        attempts: intent.attempts.len(),
        last_attempt: intent.attempts.last().map(|attempt| attempt.outcome.as_str()),
        events: intent.history.len(),
        commands: explain::prospects(intent, now, zone),
    }
}

fn fields(explained: &Explained<'_>) -> Vec<(&'static str, String)> {
    let next = explained.next.as_ref().map_or_else(
        || "nothing happens any more by itself".to_owned(),
        |next| {
            let ms = u64::try_from((next.at.0 - explained.now.0) / 1_000).unwrap_or_default();
            let told = if next.tells.is_some() { "" } else { ", which nobody is told" };
            format!("{} in {} at {}: {}{told}", next.deadline, words::span(ms), next.at, next.leads_to)
        },
    );
    let mode = match explained.capture_mode {
        CaptureMode::Auto => "Auto",
        CaptureMode::Manual => "Manual",
    };
    let mut fields = vec![
        ("id", explained.id.to_string()),
        ("account", explained.account.to_string()),
        ("reference", explained.reference.to_owned()),
        ("status", format!("{}, capture mode {mode}", explained.status)),
        ("amount", format!("{}, in all {}", explained.amount, explained.total)),
        ("held", explained.held.to_string()),
        ("captured", explained.captured.to_string()),
        ("refunded", explained.refunded.to_string()),
        ("rest", explained.rest.to_string()),
        ("created", explained.created_at.to_string()),
        ("changed", explained.changed_at.to_string()),
        ("now", format!("{} by the intents' clock", explained.now)),
        ("next", next),
        ("events", explained.events.to_string()),
    ];
    if explained.challenge_pending {
        fields.push(("challenge", "pending".to_owned()));
    }
    fields.extend(explained.last_attempt.map(|outcome| ("last attempt to pay", outcome.to_owned())));
    fields
}

fn cells(prospect: &Prospect) -> Vec<String> {
    let leads_to = match (prospect.leads_to, prospect.tells) {
        (None, _) => "-".to_owned(),
        (Some(status), Some(_)) => status.to_string(),
        (Some(status), None) => format!("{status}, untold"),
    };
    let at_most = prospect.at_most.map(|money| format!("at most {money}"));
    let because = prospect.why_not.as_ref().map(|why| format!("{} {}: {}", why.code, why.name, why.says));
    let now = if prospect.is_possible { "yes" } else { "no" };
    vec![prospect.command.to_owned(), now.to_owned(), leads_to, because.or(at_most).unwrap_or_default()]
}

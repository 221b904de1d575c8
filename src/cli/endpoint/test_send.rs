//! `herald endpoint test`: one real, signed request to an endpoint, made as the dispatcher makes it, and what came of
//! it. It bypasses the stream, the lanes and the breaker, leaves no trace in Redis but in the audit log, and works for paused endpoints.

use clap::Args;
use serde::Serialize;

use super::get;
use crate::{
    app,
    cli::{args::WhoAndMaybeWhy, event::sample},
    facts::{
        audit::Act,
        delivery::Delivery,
        endpoint::{Endpoint, Ordering},
        event::{EventType, PaymentStatus},
        id::{EndpointId, EntryId, EventId, IntentId},
        outcome::{AttemptReport, Attempted, Outcome, Timing},
    },
    surface::{Context, Output, VerbError, audited, words},
};

#[derive(Debug, Args)]
pub struct TestArgs {
    /// Its id
    id: EndpointId,
    /// The event's type [default: the first one that the endpoint wants]
    #[arg(long, alias = "event", value_name = "TYPE")]
    event_type: Option<EventType>,
    #[command(flatten)]
    change: WhoAndMaybeWhy,
}

#[derive(Serialize)]
struct Tested<'a> {
    endpoint: &'a EndpointId,
    event: &'a EventId,
    url: &'a str,
    delivered: bool,
    advice: Option<&'static str>,
    attempt: &'a AttemptReport,
    /// As they were sent, with signatures and the endpoint's own values hidden.
    headers: &'a [(String, String)],
    body: &'a str,
}

pub async fn run(context: &Context, args: TestArgs) -> anyhow::Result<()> {
    let endpoint = get(&mut context.registry().await?, &args.id).await?;
    let begun = super::about(args.change.act(Act::EndpointTest), &endpoint);
    audited(context, begun, async |_| test(context, args, &endpoint).await).await
}

async fn test(context: &Context, args: TestArgs, endpoint: &Endpoint) -> anyhow::Result<()> {
    let sender = app::sender(&context.config)?;
    let now_ms = context.now_ms();
    let token = hex::encode(super::random::<16>()?);
    let event = sample::Sample {
        id: EventId::new(&format!("evt_test_{token}"))?,
        event_type: match args.event_type.or_else(|| endpoint.event_types.first().cloned()) {
            Some(event_type) => event_type,
            None => sample::status_updated(),
        },
        account: endpoint.account.clone(),
        intent: IntentId::new(&format!("pi_test_{token}"))?,
        status: PaymentStatus::Created,
        now_ms,
    };
    let event = event.event()?;
    let entry = EntryId { ms: now_ms, seq: 0 };
    let delivery = Delivery::new(entry, endpoint.id.clone(), &event, endpoint.ordering == Ordering::Intent, now_ms);
    let Attempted { report, request, .. } = sender.attempt(&delivery, endpoint, now_ms).await;
    let headers = request.map_or_else(|| sender.headers_to_show(&delivery, endpoint, now_ms), |sent| sent.headers);
    let tested = Tested {
        endpoint: &endpoint.id,
        event: &event.id,
        url: &endpoint.url,
        delivered: report.outcome.is_delivered(),
        advice: advice(&report.outcome),
        attempt: &report,
        headers: &headers,
        body: std::str::from_utf8(event.body()).unwrap_or_default(),
    };
    show(context.output, &tested)?;
    match report.outcome {
        Outcome::Delivered { .. } => Ok(()),
        Outcome::AddressRefused | Outcome::Unsendable => Err(VerbError::Refused(verdict(&tested)).into()),
        _ => anyhow::bail!(verdict(&tested)),
    }
}

/// A test changes nothing, so an answer that would change something must not be told as if it had.
fn advice(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Gone => Some("the receiver says that this URL is gone: a real delivery would disable the endpoint"),
        other => other.needs_a_person(),
    }
}

fn verdict(tested: &Tested<'_>) -> String {
    let advice = tested.advice.map(|advice| format!(": {advice}")).unwrap_or_default();
    format!("endpoint {} did not take the test event, {}{advice}", tested.endpoint, tested.attempt.outcome)
}

fn show(output: Output, tested: &Tested<'_>) -> anyhow::Result<()> {
    let report = tested.attempt;
    let mut fields = vec![
        ("endpoint", tested.endpoint.to_string()),
        ("url", tested.url.to_owned()),
        ("event", tested.event.to_string()),
        ("outcome", report.outcome.to_string()),
        ("time", timing(&report.timing)),
    ];
    fields.extend(tested.advice.map(|advice| ("advice", advice.to_owned())));
    let told = [("detail", &report.detail), ("response", &report.snippet)];
    fields.extend(told.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name, text.clone())));
    fields.extend(tested.headers.iter().map(|(name, value)| ("header", format!("{name}: {value}"))));
    fields.push(("body", tested.body.to_owned()));
    output.one(tested, &fields)
}

fn timing(timing: &Timing) -> String {
    let stages = [("names", timing.dns_us), ("connect", timing.connect_us), ("response head", timing.head_us)];
    let stages = stages.into_iter().filter_map(|(name, us)| us.map(|us| format!("{name} {}", words::time_us(us))));
    stages.chain([format!("total {}", words::time_us(timing.total_us))]).collect::<Vec<_>>().join(", ")
}

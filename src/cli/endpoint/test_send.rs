//! `herald endpoint test`: one real, signed request to an endpoint, made as the dispatcher makes it, and what came of
//! it. It bypasses the stream, the lanes and the breaker, leaves no trace in Redis but in the audit log, and works for paused endpoints.

use clap::Args;

use super::get;
use crate::{
    app,
    cli::args::WhoAndMaybeWhy,
    facts::{
        audit::Act,
        delivery::Delivery,
        endpoint::{Endpoint, Ordering},
        event::{Event, EventType, PaymentStatus},
        id::{EndpointId, EntryId, EventId, IntentId},
        outcome::{AttemptReport, Attempted, Outcome, Timing},
        sample,
    },
    surface::{Context, Output, VerbError, audited, words},
    view::{
        Viewer,
        test::{TestView, advice},
    },
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

pub async fn run(context: &Context, args: TestArgs) -> anyhow::Result<()> {
    let endpoint = get(&mut context.registry().await?, &args.id).await?;
    let begun = super::about(args.change.act(Act::EndpointTest), &endpoint);
    audited(context, begun, async |_| test(context, args, &endpoint).await).await
}

async fn test(context: &Context, args: TestArgs, endpoint: &Endpoint) -> anyhow::Result<()> {
    let sender = app::sender(&context.config, context.redis()?)?;
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
    show(context.output, endpoint, &event, &report, headers)?;
    match report.outcome {
        Outcome::Delivered { .. } => Ok(()),
        Outcome::AddressRefused | Outcome::Unsendable => Err(VerbError::Refused(verdict(endpoint, &report)).into()),
        _ => anyhow::bail!(verdict(endpoint, &report)),
    }
}

fn verdict(endpoint: &Endpoint, report: &AttemptReport) -> String {
    let advice = advice(&report.outcome).map(|advice| format!(": {advice}")).unwrap_or_default();
    format!("endpoint {} did not take the test event, {}{advice}", endpoint.id, report.outcome)
}

fn show(
    output: Output,
    endpoint: &Endpoint,
    event: &Event,
    report: &AttemptReport,
    headers: Vec<(String, String)>,
) -> anyhow::Result<()> {
    let mut fields = vec![
        ("endpoint", endpoint.id.to_string()),
        ("url", endpoint.url.clone()),
        ("event", event.id.to_string()),
        ("outcome", report.outcome.to_string()),
        ("time", timing(&report.timing)),
    ];
    fields.extend(advice(&report.outcome).map(|advice| ("advice", advice.to_owned())));
    let told = [("detail", &report.detail), ("response", &report.snippet)];
    fields.extend(told.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name, text.clone())));
    fields.extend(headers.iter().map(|(name, value)| ("header", format!("{name}: {value}"))));
    fields.push(("body", String::from_utf8_lossy(event.body()).into_owned()));
    output.one(&TestView::of(endpoint, event, report, headers, Viewer::Operator), &fields)
}

fn timing(timing: &Timing) -> String {
    let stages = [("names", timing.dns_us), ("connect", timing.connect_us), ("response head", timing.head_us)];
    let stages = stages.into_iter().filter_map(|(name, us)| us.map(|us| format!("{name} {}", words::time_us(us))));
    stages.chain([format!("total {}", words::time_us(timing.total_us))]).collect::<Vec<_>>().join(", ")
}

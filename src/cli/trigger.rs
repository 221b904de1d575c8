//! `herald trigger`: makes a payment intent live up to a status, through the service's own decisions, so that its merchant is
//! told as in earnest. With `--bare` there is no intent, only the event, as another producer would add it.

use clap::Args;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::json;

use super::{
    event::status,
    intents::{of_service, service},
    sandbox,
};
use crate::{
    api::intents::sandbox::approval,
    app,
    facts::{
        event::{
            CaptureMode,
            PaymentStatus::{self, Authorized, Canceled, Captured, Created, Refunded, Reversed},
        },
        id::{AccountId, EntryId, EventId, IntentId},
        sample,
    },
    intents::{
        decide::{Command, IssuerAnswer},
        details::Details,
        document::Document,
        intent::{IdempotencyKey, Intent},
        issuer,
        service::random_part,
    },
    store::entries::Entries,
    surface::{Context, VerbError},
};

#[derive(Debug, Args)]
pub struct TriggerArgs {
    /// Whose payment intent it is
    #[arg(long)]
    account: AccountId,
    /// How far it lives: Created, Authorized, Captured, Reversed, Refunded or Canceled
    #[arg(long, value_name = "STATUS", value_parser = status, default_value = "Captured")]
    status: PaymentStatus,
    /// In minor units: 1000 is 10.00
    #[arg(long, value_name = "MINOR", default_value_t = 1_000, conflicts_with = "bare")]
    amount: i64,
    /// GBP or EUR
    #[arg(long, default_value = "GBP", conflicts_with = "bare")]
    currency: String,
    /// What the merchant calls it [default: a fresh one]
    #[arg(long, value_name = "TEXT", conflicts_with = "bare")]
    reference: Option<String>,
    /// Hold the money first, and capture it; Authorized is always so
    #[arg(long, conflicts_with = "bare")]
    manual: bool,
    /// Only add one event of this status to the stream, of an intent that does not exist
    #[arg(long)]
    bare: bool,
}

#[derive(Serialize)]
struct Told {
    entry: Option<EntryId>,
    id: EventId,
    event: String,
    status: PaymentStatus,
    body: serde_json::Value,
}

#[derive(Serialize)]
struct Triggered {
    intent: Document,
    events: Vec<Told>,
}

pub async fn run(context: &Context, args: TriggerArgs) -> anyhow::Result<()> {
    if args.bare {
        return bare(context, &args).await;
    }
    sandbox::require(context)?;
    let service = service(context)?;
    let is_manual = args.manual || args.status == Authorized;
    let details = details(&args, is_manual)?;
    let mut intent = service.create(&args.account, details, None).await.map_err(of_service)?;
    for command in path(args.status, is_manual, args.amount, service.zone()) {
        intent = service.change(&args.account, &intent.id, &command, None).await.map_err(of_service)?;
    }
    // As it is stored: only there each event has its entry.
    let (intent, _) = service.inspect(&intent.id).await.map_err(of_service)?;
    show(context, &intent)
}

/// What is done to it until it has the status.
fn path(status: PaymentStatus, is_manual: bool, amount: i64, zone: &TimeZone) -> Vec<Command> {
    let pay = || {
        let (_, card) = issuer::mask(issuer::APPROVED).expect("it is the number of a card");
        Command::pay(card, IssuerAnswer::Approved(approval()))
    };
    let capture = || Command::Capture { id: format!("cp_{}", random_part()), amount, tips: None, key: None };
    let reverse = || Command::Reverse { id: format!("rvs_{}", random_part()), zone: zone.clone(), key: None };
    let key = || IdempotencyKey { key: random_part(), body: random_part() };
    let refund = || Command::Refund { amount, reason: None, notes: None, key: key() };
    match (status, is_manual) {
        (Created, _) => Vec::new(),
        (Canceled, _) => vec![Command::Cancel],
        (Authorized, _) | (Captured, false) => vec![pay()],
        (Captured, true) => vec![pay(), capture()],
        (Reversed, _) => vec![pay(), reverse()],
        (Refunded, false) => vec![pay(), refund()],
        (Refunded, true) => vec![pay(), capture(), refund()],
    }
}

fn details(args: &TriggerArgs, is_manual: bool) -> Result<Details, VerbError> {
    let reference = args.reference.clone().unwrap_or_else(|| format!("Trigger {}", random_part()));
    let money = json!({ "value": args.amount, "currencyCode": args.currency });
    let details: Result<Details, _> = serde_json::from_value(json!({ "amount": money, "reference": reference }));
    let mode = if is_manual { CaptureMode::Manual } else { CaptureMode::Auto };
    details
        .map(|details| Details { capture_mode: mode, ..details })
        .map_err(|error| VerbError::Usage(error.to_string()))
}

fn show(context: &Context, intent: &Intent) -> anyhow::Result<()> {
    let config = &context.config.intents;
    let listen = || config.listen.map(|listen| format!("http://{listen}")).unwrap_or_default();
    let links = config.public_url.as_ref().map_or_else(listen, ToString::to_string);
    let links = links.trim_end_matches('/');
    let told = intent.history.iter().map(|told| {
        let body = serde_json::from_slice(told.again(intent)?.body())?;
        let event = told.kind.name().to_owned();
        anyhow::Ok(Told { entry: told.entry, id: told.id.clone(), event, status: told.status, body })
    });
    let events = told.collect::<Result<Vec<_>, _>>()?;
    let triggered = Triggered { intent: Document::of(intent, &format!("{links}/checkout/")), events };
    let now = intent.changed_at;
    let mut fields = vec![
        ("intent", intent.id.to_string()),
        ("account", intent.account.to_string()),
        ("status", intent.status.to_string()),
        ("amount", intent.details.amount.to_string()),
        ("changed", now.to_string()),
    ];
    fields.extend(triggered.events.iter().map(|told| {
        let entry = told.entry.map_or_else(|| "-".to_owned(), |entry| entry.to_string());
        ("event", format!("{} {} {} at {entry}", told.id, told.event, told.status))
    }));
    context.output.one(&triggered, &fields)
}

async fn bare(context: &Context, args: &TriggerArgs) -> anyhow::Result<()> {
    let token = hex::encode(rand::random::<[u8; 11]>());
    let event_type = match args.status {
        Created => sample::created(),
        _ => sample::status_updated(),
    };
    let sample = sample::Sample {
        id: EventId::new(&format!("evt_{token}"))?,
        event_type,
        account: args.account.clone(),
        intent: IntentId::new(&format!("pi_{token}"))?,
        status: args.status,
        now_ms: context.now_ms(),
    };
    let event = sample.event()?;
    let mut entries = Entries::new(context.connect().await?, context.keys()?);
    let entry = app::traced(async { Ok(entries.add(&event, None).await?) }).await?;
    let told = Told {
        entry: Some(entry),
        id: event.id.clone(),
        event: event.event_type.to_string(),
        status: args.status,
        body: serde_json::from_slice(event.body())?,
    };
    let fields = [
        ("event", format!("{} {} {}", told.id, told.event, told.status)),
        ("intent", format!("{}, which does not exist", event.intent)),
        ("account", event.account.to_string()),
        ("entry", entry.to_string()),
    ];
    context.output.one(&told, &fields)
}

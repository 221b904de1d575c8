//! `herald intents replay`: tells one endpoint the history of a payment intent again, from the intent's own record. The events
//! are those that left: the same ids, bytes and places in the order, signed anew as every attempt is. They go straight to
//! this one endpoint, one after the other, by the sender that the dispatcher uses; the stream, the lanes and the deliveries
//! of others are left alone. What Herald still has to deliver by itself is not overtaken.

use clap::Args;
use serde::Serialize;

use super::{of_service, service};
use crate::{
    app,
    cli::{
        args::WhoAndMaybeWhy,
        endpoint,
        pause::{by_whom, paused},
    },
    facts::{
        audit::{Act, Tally},
        delivery::Delivery,
        endpoint::{Endpoint, EndpointState, Ordering},
        envelope::AccountSequence,
        event::{Event, PaymentStatus},
        id::{DeliveryId, EndpointId, EntryId, EventId, IntentId},
        outcome::AttemptReport,
    },
    intents::{intent::Intent, stamp::Stamp},
    sender::Sender,
    store::queries::{EntryStanding, Partitions, Whereabouts},
    surface::{Context, VerbError, audited, even_unread, note, words},
};

/// What it does and leaves alone, for the help.
const AFTER: &str = "\
Sends to this endpoint alone, also what it has taken before: receivers know it by webhook-id and herald-sequence. Stops at the \
first event that is not taken, and before the first one that Herald still has to deliver. Changes nothing in Redis but the \
audit log.

Ends with 0 if every event was taken, 1 if one was not or is still on its way, 3 if there is no such intent or endpoint, 4 if it \
may not be sent.";

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct ReplayArgs {
    /// The payment intent
    id: IntentId,
    /// To whom; it must belong to the intent's account
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: EndpointId,
    /// Begin with this event of its history
    #[arg(long, value_name = "EVENT")]
    from: Option<EventId>,
    /// Show what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    change: WhoAndMaybeWhy,
}

/// One event of the history, and what came of it.
#[derive(Serialize)]
struct Replayed<'a> {
    event: &'a EventId,
    #[serde(rename = "type")]
    kind: &'static str,
    status: PaymentStatus,
    created_at: Stamp,
    /// Its place in the stream, which `herald-sequence` is.
    entry: EntryId,
    result: &'static str,
    attempt: Option<AttemptReport>,
    body: String,
}

/// An event as it left, with what it needs to leave again.
struct Told {
    event: Event,
    kind: &'static str,
    status: PaymentStatus,
    at: Stamp,
    entry: EntryId,
    number: Option<AccountSequence>,
}

/// What becomes of one.
enum Fate {
    Sent(Box<AttemptReport>),
    Kept(&'static str),
}

const UNWANTED: &str = "not wanted by the endpoint";
const ON_ITS_WAY: &str = "on its way";
const AFTERWARDS: &str = "not sent";
const WOULD: &str = "would be sent";

pub async fn run(context: &Context, args: ReplayArgs) -> anyhow::Result<()> {
    let (intent, _) = service(context)?.inspect(&args.id).await.map_err(of_service)?;
    let endpoint = endpoint::get(&mut context.registry().await?, &args.endpoint).await?;
    may_be_sent(context, &intent, &endpoint).await?;
    let history = history(&intent, args.from.as_ref())?;
    if args.dry_run {
        return tell(context, &args, &intent, &endpoint, &history, &mut Tally::default()).await;
    }
    let begun = args.change.act(Act::IntentsReplay).account(&intent.account).endpoint(&endpoint.id).intent(&intent.id);
    let begun = args.from.iter().fold(begun, |begun, from| begun.filter(format_args!("--from {from}")));
    let tell = async |tally: &mut _| tell(context, &args, &intent, &endpoint, &history, tally).await;
    audited(context, begun.count(history.len() as u64), tell).await
}

async fn tell(
    context: &Context,
    args: &ReplayArgs,
    intent: &Intent,
    endpoint: &Endpoint,
    history: &[Told],
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let mut queries = context.partitions().await?;
    let sender = app::sender(&context.config, context.redis()?)?;
    let mut list = context.output.list(&["EVENT", "TYPE", "STATUS", "CREATED", "RESULT", "TIME"]);
    let mut ended: Option<(&Told, Option<AttemptReport>)> = None;
    let mut sent = 0;
    for told in history {
        let fate = match &ended {
            Some(_) => Fate::Kept(AFTERWARDS),
            None if !endpoint.wants(&told.event.event_type) => Fate::Kept(UNWANTED),
            None if is_on_its_way(&mut queries, told.entry, &endpoint.id).await? => Fate::Kept(ON_ITS_WAY),
            None if args.dry_run => Fate::Kept(WOULD),
            None => Fate::Sent(Box::new(send(context, &sender, endpoint, told).await)),
        };
        match &fate {
            Fate::Sent(report) if report.outcome.is_delivered() => sent += 1,
            Fate::Sent(report) => ended = Some((told, Some(report.as_ref().clone()))),
            Fate::Kept(ON_ITS_WAY) => ended = Some((told, None)),
            Fate::Kept(_) => {}
        }
        tally.set(sent, 0);
        // What was sent was sent, whoever reads of it.
        even_unread(list.push(&replayed(told, &fate), || cells(told, &fate)))?;
    }
    even_unread(list.finish())?;
    let all = words::count(history.len() as u64, "event", "events");
    match ended {
        _ if args.dry_run => note("nothing was sent"),
        None => note(format_args!("endpoint {} has taken {sent} of {all}", endpoint.id)),
        Some((told, None)) => anyhow::bail!(
            "endpoint {id} has taken {sent} of {all}: {event} and what follows is still to be delivered by Herald itself, and was \
             not sent; `herald delivery list --event {event}` says why it waits",
            id = endpoint.id,
            event = told.event.id,
        ),
        Some((told, Some(report))) => anyhow::bail!(refusal(intent, endpoint, told, &report, sent, &all)),
    }
    Ok(())
}

fn refusal(intent: &Intent, endpoint: &Endpoint, told: &Told, report: &AttemptReport, sent: u64, all: &str) -> String {
    let (event, outcome) = (&told.event.id, &report.outcome);
    let more = [report.detail.as_str(), report.snippet.as_str(), outcome.needs_a_person().unwrap_or_default()];
    let more: Vec<_> = more.into_iter().filter(|text| !text.is_empty()).map(|text| format!("; {text}")).collect();
    format!(
        "endpoint {id} did not take {event}, {outcome}{more}. It has taken {sent} of {all}, and nothing after {event} was \
         sent. To go on: herald intents replay {intent} --endpoint {id} --from {event}",
        id = endpoint.id,
        more = more.concat(),
        intent = intent.id,
    )
}

/// Nobody's payments go to another account, and nothing goes where somebody has stopped it.
async fn may_be_sent(context: &Context, intent: &Intent, endpoint: &Endpoint) -> Result<(), VerbError> {
    let (id, refused) = (&endpoint.id, |why: String| Err(VerbError::Refused(why)));
    if endpoint.account != intent.account {
        return refused(format!("endpoint {id} is of {}, the payment intent of {}", endpoint.account, intent.account));
    }
    match &endpoint.status {
        EndpointState::Enabled => {}
        EndpointState::Paused(mark) => {
            return refused(format!("endpoint {id} is {}; resume it first", by_whom(mark)));
        }
        EndpointState::Disabled(mark) => {
            return refused(format!("endpoint {id} was disabled by {}: {}; enable it first", mark.by, mark.why));
        }
    }
    match paused(context).await {
        Some(mark) => refused(format!("all sending is {}; resume it first", by_whom(&mark))),
        None => Ok(()),
    }
}

/// From the event that is asked for, in order.
fn history(intent: &Intent, from: Option<&EventId>) -> anyhow::Result<Vec<Told>> {
    let begin = match from {
        None => 0,
        Some(from) => intent.history.iter().position(|told| told.id == *from).ok_or_else(|| {
            VerbError::NotFound(format!("{from} is not in the history of {}: leave --from out to see it", intent.id))
        })?,
    };
    let told = intent.history[begin..].iter().map(|told| {
        let entry = told.entry.ok_or_else(|| {
            let id = &told.id;
            VerbError::Refused(format!(
                "it is not known where {id} stood in the stream: an older Herald did not keep it"
            ))
        })?;
        let event = told.again(intent)?;
        let number = (told.number > 0).then_some(AccountSequence(told.number));
        Ok(Told { event, kind: told.kind.name(), status: told.status, at: told.at, entry, number })
    });
    told.collect()
}

/// Whether Herald will still deliver it to this endpoint.
async fn is_on_its_way(queries: &mut Partitions, entry: EntryId, endpoint: &EndpointId) -> anyhow::Result<bool> {
    let delivery = DeliveryId { entry, endpoint: endpoint.clone() };
    Ok(match queries.whereabouts(&delivery).await? {
        Whereabouts::Unfinished(_) => true,
        Whereabouts::Dead(_) => false,
        Whereabouts::NoRecord => {
            matches!(queries.entry_standing(&delivery).await?, EntryStanding::InFlight { .. } | EntryStanding::Waiting)
        }
    })
}

async fn send(context: &Context, sender: &Sender, endpoint: &Endpoint, told: &Told) -> AttemptReport {
    let now_ms = context.now_ms();
    let ordered = endpoint.ordering == Ordering::Intent;
    let mut delivery = Delivery::new(told.entry, endpoint.id.clone(), &told.event, ordered, now_ms);
    delivery.envelope.account_sequence = told.number;
    let report = sender.attempt(&delivery, endpoint, now_ms).await.report;
    let took = words::time_us(report.timing.total_us);
    note(format_args!("{} {} {}: {} within {took}", told.event.id, told.kind, told.status, report.outcome));
    report
}

fn result(fate: &Fate) -> &'static str {
    match fate {
        Fate::Sent(report) => report.outcome.name(),
        Fate::Kept(why) => why,
    }
}

fn replayed<'a>(told: &'a Told, fate: &Fate) -> Replayed<'a> {
    let attempt = match fate {
        Fate::Sent(report) => Some(report.as_ref().clone()),
        Fate::Kept(_) => None,
    };
    Replayed {
        event: &told.event.id,
        kind: told.kind,
        status: told.status,
        created_at: told.at,
        entry: told.entry,
        result: result(fate),
        attempt,
        body: String::from_utf8_lossy(told.event.body()).into_owned(),
    }
}

fn cells(told: &Told, fate: &Fate) -> Vec<String> {
    let (result, took) = match fate {
        Fate::Sent(report) => (report.outcome.to_string(), words::time_us(report.timing.total_us)),
        Fate::Kept(why) => ((*why).to_owned(), String::new()),
    };
    let (event, kind) = (told.event.id.to_string(), told.kind.to_owned());
    vec![event, kind, told.status.to_string(), told.at.to_string(), result, took]
}

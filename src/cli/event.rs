//! `herald event …`: adds events to the stream as any producer could, but checked first, and looks for one in it.

use std::path::PathBuf;

use anyhow::Context as _;
use bytes::Bytes;
use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;
use serde_json::value::RawValue;

use super::args::read_input;
use crate::{
    app,
    facts::{
        event::{Event, EventType, PaymentStatus},
        id::{AccountId, EntryId, EventId, IntentId},
        sample::{self, Sample},
        traceparent::Traceparent,
    },
    history::{EventPlace, EventsWanted, KeptEvent},
    store::{
        entries::{Entries, StreamEntry},
        queries::Partitions,
    },
    surface::{Context, Output, VerbError, even_unread, note, of_those_that_answer, when},
};

/// Largest input of `publish`, which is read whole so that all of it is checked before the first event is added.
const MAX_INPUT_BYTES: u64 = 64 << 20;

/// The most that is shown of the history: an event is there more than once if its producer repeats itself.
const MAX_KEPT: usize = 10;

#[derive(Debug, Subcommand)]
pub enum EventVerb {
    /// Add events to the stream; all are checked before the first one is added
    Publish(PublishArgs),
    /// Show an event that is still in the stream, by the id of its entry or by its own
    Show(ShowArgs),
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["file", "sample"]))]
pub struct PublishArgs {
    /// One event as JSON, or several one after the other; - is stdin
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Make up an event
    #[arg(long, requires = "account")]
    sample: bool,
    /// The sample's account
    #[arg(long, value_name = "ACCOUNT", requires = "sample")]
    account: Option<AccountId>,
    /// The sample's payment intent [default: a fresh one]
    #[arg(long, value_name = "INTENT", requires = "sample")]
    intent: Option<IntentId>,
    /// The sample's status: Created, Authorized, Captured, Reversed, Refunded or Canceled
    #[arg(long, value_name = "STATUS", requires = "sample", value_parser = status, default_value = "Captured")]
    status: PaymentStatus,
    /// The sample's type [default: payment_intent.status_updated]
    #[arg(long, alias = "event", value_name = "TYPE", requires = "sample")]
    event_type: Option<EventType>,
    /// W3C trace context, passed on to endpoints that ask for it
    #[arg(long, value_name = "TRACEPARENT")]
    traceparent: Option<Traceparent>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// ENTRY (1700000000000-0) or the event's own id (evt_…)
    id: String,
    /// Entries to look at when searching for an event's own id, from the newest on
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    look: u64,
}

pub fn status(text: &str) -> Result<PaymentStatus, String> {
    let known = PaymentStatus::ALL.into_iter().find(|status| status.to_string().eq_ignore_ascii_case(text));
    known.ok_or_else(|| "use Created, Authorized, Captured, Reversed, Refunded or Canceled".to_owned())
}

pub async fn run(context: &Context, verb: EventVerb) -> anyhow::Result<()> {
    match verb {
        EventVerb::Publish(args) => app::traced(publish(context, args)).await,
        EventVerb::Show(args) => show(context, args).await,
    }
}

async fn entries(context: &Context) -> anyhow::Result<Entries> {
    Ok(Entries::new(context.connect().await?, context.keys()?))
}

#[derive(Serialize)]
struct Published<'a> {
    entry: EntryId,
    event: &'a EventId,
    account: &'a AccountId,
    intent: &'a IntentId,
}

async fn publish(context: &Context, args: PublishArgs) -> anyhow::Result<()> {
    let events = match (&args.file, &args.account) {
        (Some(path), _) => {
            let input = Bytes::from(read_input(path, MAX_INPUT_BYTES)?);
            parse_all(&input).with_context(|| path.display().to_string())?
        }
        (None, Some(account)) => vec![make_up(context, account, &args)?],
        (None, None) => return Err(VerbError::Usage("give a FILE, or --sample with --account".to_owned()).into()),
    };
    let mut entries = entries(context).await?;
    let mut list = context.output.list(&["ENTRY", "EVENT", "ACCOUNT", "INTENT"]);
    for (number, event) in (1..).zip(&events) {
        let entry = entries.add(event, args.traceparent.as_ref()).await.with_context(|| {
            format!(
                "event {number} of {} ({}) may not have been added, the ones after it were not",
                events.len(),
                event.id
            )
        })?;
        let published = Published { entry, event: &event.id, account: &event.account, intent: &event.intent };
        even_unread(list.push(&published, || {
            vec![entry.to_string(), event.id.to_string(), event.account.to_string(), event.intent.to_string()]
        }))?;
    }
    list.finish()
}

fn make_up(context: &Context, account: &AccountId, args: &PublishArgs) -> anyhow::Result<Event> {
    let token = || hex::encode(rand::random::<[u8; 11]>());
    let sample = Sample {
        id: EventId::new(&format!("evt_{}", token()))?,
        event_type: args.event_type.clone().unwrap_or_else(sample::status_updated),
        account: account.clone(),
        intent: args.intent.clone().map_or_else(|| IntentId::new(&format!("pi_{}", token())), Ok)?,
        status: args.status,
        now_ms: context.now_ms(),
    };
    Ok(sample.event()?)
}

/// Each JSON value of the input is an event, byte for byte as it stands there.
fn parse_all(input: &Bytes) -> anyhow::Result<Vec<Event>> {
    let text = std::str::from_utf8(input).map_err(|error| {
        VerbError::Refused(format!("it is not UTF-8: the byte at {} is not valid", error.valid_up_to()))
    })?;
    let mut events = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        let number = events.len() + 1;
        let value = value.map_err(|error| VerbError::Refused(format!("event {number} is not JSON: {error}")))?;
        let body = input.slice_ref(value.get().as_bytes());
        let event =
            Event::parse(body).with_context(|| format!("event {number} is not valid, and nothing was added"))?;
        for new in &event.novelties {
            note(format_args!("event {number}: {new}; it is added all the same"));
        }
        events.push(event);
    }
    match events.is_empty() {
        true => Err(VerbError::Refused("there is no event in it".to_owned()).into()),
        false => Ok(events),
    }
}

#[derive(Serialize)]
struct Shown {
    entry: EntryId,
    /// From its id; none if that is not a time.
    at_ms: Option<u64>,
    /// Why it is not an event; it then goes to the quarantine.
    problem: Option<String>,
    event: Option<String>,
    account: Option<String>,
    intent: Option<String>,
    traceparent: Option<String>,
    bytes: usize,
    /// The producer's text; what is not UTF-8 is replaced.
    body: String,
}

async fn show(context: &Context, args: ShowArgs) -> anyhow::Result<()> {
    let mut partitions = context.partitions().await?;
    let done = found(context, args, &mut partitions).await;
    of_those_that_answer(&partitions, done)
}

async fn found(context: &Context, args: ShowArgs, entries: &mut Partitions) -> anyhow::Result<()> {
    let stream = &context.config.stream.name;
    const ELSEWHERE: &str = "finished events are trimmed from the stream, and the history keeps them for history.bodies; \
                             `herald delivery list --event EVENT` looks at all that was tried";
    if let Ok(id) = args.id.parse::<EntryId>() {
        let found = entries.entry(id).await?;
        let entry = found.ok_or_else(|| VerbError::NotFound(format!("entry {id} is not in {stream}: {ELSEWHERE}")))?;
        return print(context.output, &entry, context.now_ms());
    }
    let id = EventId::new(&args.id)?;
    let search = entries.search(&id, args.look).await?;
    let back_to = search.back_to.map_or("nothing".to_owned(), |entry| added(entry, context.now_ms()));
    let extent = match search.is_whole {
        true => "all of it".to_owned(),
        false => format!("back to {back_to}; --look looks further"),
    };
    note(format_args!("looked at the newest {} entries of {stream}, {extent}", search.looked_at));
    if search.hits.is_empty() {
        let wanted = EventsWanted { event: Some(id.clone()), ..EventsWanted::default() };
        let kept = context.history().events(&wanted, EventPlace::default(), MAX_KEPT).await;
        match kept {
            Ok(kept) if !kept.is_empty() => {
                note("it is in the history");
                let mut entries = kept.into_iter().rev().map(KeptEvent::into_entry);
                return entries.try_for_each(|entry| print(context.output, &entry, context.now_ms()));
            }
            Ok(_) => note("it is not in the history"),
            Err(why) => note(format_args!("history: {why}")),
        }
        return Err(VerbError::NotFound(format!("event {id} was not found in {stream}: {ELSEWHERE}")).into());
    }
    if search.hits.len() > 1 {
        note(format_args!("its producer has added it {} times; the newest comes first", search.hits.len()));
    }
    search.hits.iter().try_for_each(|entry| print(context.output, entry, context.now_ms()))
}

/// When an entry was added, by its id; the id itself if that is not a time.
fn added(entry: EntryId, now_ms: u64) -> String {
    entry.age_ms(now_ms).map_or_else(|| entry.to_string(), |_| when(entry.ms, now_ms))
}

fn print(output: Output, entry: &StreamEntry, now_ms: u64) -> anyhow::Result<()> {
    let body = entry.field("event").cloned();
    let parsed = body.clone().map(Event::parse);
    let problem = match &parsed {
        None => Some("it has no field \"event\"".to_owned()),
        Some(Err(error)) => Some(error.to_string()),
        Some(Ok(_)) => None,
    };
    let event = parsed.and_then(Result::ok);
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let shown = Shown {
        entry: entry.id,
        at_ms: entry.id.age_ms(now_ms).map(|_| entry.id.ms),
        problem,
        event: event.as_ref().map(|event| event.id.to_string()),
        account: event.as_ref().map(|event| event.account.to_string()),
        intent: event.as_ref().map(|event| event.intent.to_string()),
        traceparent: entry.field("traceparent").map(text),
        bytes: body.as_ref().map_or(0, Bytes::len),
        body: body.as_ref().map(text).unwrap_or_default(),
    };
    let named = [
        ("problem", &shown.problem),
        ("event", &shown.event),
        ("account", &shown.account),
        ("intent", &shown.intent),
        ("traceparent", &shown.traceparent),
    ];
    let mut fields = vec![("entry", shown.entry.to_string()), ("added", added(entry.id, now_ms))];
    fields.extend(named.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    fields.push(("body", shown.body.clone()));
    output.one(&shown, &fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"id":"evt_1","event":"payment_intent.status_updated","accountId":"acc_1","createdAt":"2022-02-01T13:07:41Z","data":{"paymentIntentId":"pi_1","paymentStatus":"Captured","captureMode":"Auto"}}"#;

    fn parse(text: &str) -> anyhow::Result<Vec<Event>> {
        parse_all(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn one_event_over_many_lines_and_many_on_one_line_each_are_taken_byte_for_byte() {
        let wide = GOOD.replace(',', ",\n  ");
        let events = parse(&format!("{wide}\n")).unwrap();
        assert_eq!(events[0].body(), wide.as_bytes());
        assert_eq!(parse(&format!("{GOOD}\n\n{wide}\n{GOOD}")).unwrap().len(), 3);
    }

    #[test]
    fn a_wrong_one_is_named_by_its_number() {
        let error = parse(&format!("{GOOD}\n{}", GOOD.replace("2022-02-01T", "yesterday "))).unwrap_err();
        assert!(error.to_string().starts_with("event 2"), "{error}");
        assert!(parse(&format!("{GOOD} x")).unwrap_err().to_string().starts_with("event 2 is not JSON"));
        assert!(parse(" ").unwrap_err().to_string().contains("no event"));
    }
}

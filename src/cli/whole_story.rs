//! `herald story`: all that is known of a payment intent's events, over all its endpoints, in the order of time: each event with
//! its status, each attempt and each end, what still waits, and what operators did. Changes nothing.

use std::collections::BTreeSet;

use clap::Args;
use serde::Serialize;

use super::pause;
use crate::{
    app,
    facts::{audit::Surface, event::Event, id::IntentId},
    history::{EventPlace, EventsWanted, KeptEvent, Told, Wanted},
    store::{
        audit::{Logged, Wanted as WantedActs},
        queries::{DeadFilter, DeadOrder, MAX_PAGE, Queries},
    },
    surface::{Context, VerbError, note, words},
    view::{deliveries::MAX_TOLD, past, standing::standing, time::Time},
};

/// Far more than an intent has.
const MAX_ACTS: usize = 1_000;
const MAX_EVENTS: usize = 500;

/// How many unfinished deliveries of one endpoint are shown behind the head of their chain.
const MAX_OF_CHAIN: usize = 200;

#[derive(Debug, Args)]
pub struct StoryArgs {
    /// The payment intent
    id: IntentId,
}

/// One thing that happened.
#[derive(Serialize)]
struct Line {
    at: Time,
    what: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    event: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    endpoint: String,
    told: String,
}

pub async fn run(context: &Context, args: StoryArgs) -> anyhow::Result<()> {
    let mut queries = Queries::new(context.connect().await?, context.keys()?);
    let now_ms = queries.now_ms().await?;
    let wanted = Wanted { intent: Some(args.id.clone()), ..Wanted::default() };
    let past = past::look(&context.history(), &mut queries, &wanted, MAX_TOLD).await?;
    let reach = past.reach.words();
    reach.iter().for_each(note);
    let mut lines = events(context, &args.id).await;
    let mut others = kept_events(context, &args.id).await;
    others.retain(|kept| lines.iter().all(|line| line.event != kept.event));
    lines.extend(others);
    lines.extend(past.told.iter().map(of_told));
    lines.extend(letters(&mut queries, &args.id, &past.told).await?);
    lines.extend(acts(context, &args.id, &past.told).await?);
    // What is of one moment stays in this order: the event, what was tried, what was done about it.
    lines.sort_by_key(|line| line.at);
    lines.extend(waiting(context, &mut queries, &args.id, now_ms).await?);
    if lines.is_empty() {
        let text = format!("nothing is known of {} ({})", args.id, reach.join("; "));
        return Err(VerbError::NotFound(text).into());
    }
    let day = day_of_all(&lines);
    if let Some(day) = &day {
        note(format_args!("all on {day}, in UTC"));
    }
    let mut list = context.output.list(&["WHEN", "WHAT", "EVENT", "ENDPOINT", "TOLD"]);
    for line in &lines {
        list.push(line, || cells(line, day.is_some()))?;
    }
    list.finish()?;
    if past.has_more {
        note(format_args!("only the newest {} attempts and ends are shown", words::number(MAX_TOLD as u64)));
    }
    Ok(())
}

/// The day on which all of it happened, if it is one: then each line needs its time alone.
fn day_of_all(lines: &[Line]) -> Option<String> {
    let day = |line: &Line| line.at.text().split_once('T').map(|(day, _)| day.to_owned());
    let first = day(lines.first()?)?;
    lines.iter().all(|line| day(line).as_ref() == Some(&first)).then_some(first)
}

fn cells(line: &Line, is_of_one_day: bool) -> Vec<String> {
    let when = match line.at.text().split_once('T') {
        Some((_, time)) if is_of_one_day => time.trim_end_matches('Z').to_owned(),
        _ => words::instant(line.at.0),
    };
    vec![when, line.what.clone(), line.event.clone(), line.endpoint.clone(), line.told.clone()]
}

/// The events themselves, from the history.
async fn kept_events(context: &Context, id: &IntentId) -> Vec<Line> {
    let wanted = EventsWanted { intent: Some(id.clone()), ..EventsWanted::default() };
    let kept = context.history().events(&wanted, EventPlace::default(), MAX_EVENTS).await;
    let line = |kept: &KeptEvent| {
        let status = Event::parse(kept.body.clone().into()).ok().and_then(|event| event.status);
        let status = status.map_or_else(|| "no status that is known".to_owned(), |status| format!("{status:?}"));
        Line {
            at: Time(kept.entry.age_ms(kept.read_ms).map_or(kept.read_ms, |_| kept.entry.ms)),
            what: "event".to_owned(),
            event: kept.event.to_string(),
            endpoint: String::new(),
            told: format!("{status}, accepted"),
        }
    };
    kept.unwrap_or_default().iter().map(line).collect()
}

/// What its merchant was told, if Herald keeps the intent itself.
async fn events(context: &Context, id: &IntentId) -> Vec<Line> {
    let intent = match app::intents(&context.config) {
        Ok(service) => service.inspect(id).await,
        Err(_) => return Vec::new(),
    };
    let Ok((intent, _)) = intent else { return Vec::new() };
    let line = |told: &crate::intents::told::Told| Line {
        at: Time(told.entry.map_or_else(|| u64::try_from(told.at.0 / 1_000).unwrap_or_default(), |entry| entry.ms)),
        what: "event".to_owned(),
        event: told.id.to_string(),
        endpoint: String::new(),
        told: format!("{:?}, accepted", told.status),
    };
    intent.history.iter().map(line).collect()
}

fn of_told(told: &Told) -> Line {
    Line {
        at: Time(told.at_ms),
        what: told.kind.clone(),
        event: told.event.as_ref().map_or(String::new(), ToString::to_string),
        endpoint: told.endpoint.as_ref().map_or(String::new(), ToString::to_string),
        told: past::words_beside_time(told),
    }
}

/// Its dead letters of which the history and the log do not tell, because they are older.
async fn letters(queries: &mut Queries, id: &IntentId, told: &[Told]) -> anyhow::Result<Vec<Line>> {
    let filter = DeadFilter { intent: Some(id.clone()), ..DeadFilter::everything() };
    let letters = queries.find_dead(&filter, DeadOrder::NewestFirst, None, MAX_PAGE).await?.letters;
    let is_told = |id| told.iter().any(|told| told.kind == "dead" && told.delivery().as_ref() == Some(id));
    let lines = letters.iter().filter(|letter| !is_told(&letter.id)).map(|letter| Line {
        at: Time(letter.at_ms),
        what: "dead".to_owned(),
        event: letter.facts.as_ref().and_then(|facts| facts.event.as_ref()).map_or(String::new(), ToString::to_string),
        endpoint: letter.id.endpoint.to_string(),
        told: letter.facts.as_ref().map_or(String::new(), |facts| format!("{}: {}", facts.reason_name(), facts.cause)),
    });
    Ok(lines.collect())
}

/// What was done that names the intent, one of its deliveries or of its events; and what was done to its account's endpoints
/// as a whole stays in `herald audit list`.
async fn acts(context: &Context, id: &IntentId, told: &[Told]) -> anyhow::Result<Vec<Line>> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    for one in told {
        names.extend(one.delivery().map(|id| id.to_string()));
        names.extend(one.event.as_ref().map(ToString::to_string));
        names.insert(one.entry.to_string());
    }
    let audit = app::audit(&context.config, Surface::Cli)?;
    let wanted = WantedActs { from_ms: 0, until_ms: u64::MAX, before: None, limit: MAX_ACTS };
    let found = audit.search(&wanted, |begun| {
        begun.intent.as_ref() == Some(id) || begun.target.as_ref().is_some_and(|target| names.contains(target))
    });
    match found.await {
        Ok(found) => Ok(found.acts.iter().map(of_act).collect()),
        Err(error) => {
            note(format_args!("what operators did is not known: {error}"));
            Ok(Vec::new())
        }
    }
}

fn of_act(logged: &Logged) -> Line {
    let begun = &logged.begun;
    let ended = logged.ended.as_ref().map_or("without an end".to_owned(), |(_, ended)| ended.result.name().to_owned());
    Line {
        at: Time(logged.id.ms),
        what: begun.act.clone(),
        event: begun.target.clone().unwrap_or_default(),
        endpoint: begun.endpoint.as_ref().map_or(String::new(), ToString::to_string),
        told: format!("{ended}, by {}: {}", begun.by, begun.why),
    }
}

/// What is not over: it comes last, and its time is now.
async fn waiting(context: &Context, queries: &mut Queries, id: &IntentId, now_ms: u64) -> anyhow::Result<Vec<Line>> {
    let unfinished = queries.unfinished_of_intent(id, MAX_OF_CHAIN).await?;
    if unfinished.is_empty() {
        return Ok(Vec::new());
    }
    let is_paused = pause::tell_if_paused(context).await;
    let line = |one: &crate::store::queries::Unfinished| Line {
        at: Time(now_ms),
        what: "waits".to_owned(),
        event: one.delivery.as_ref().map_or(String::new(), |delivery| delivery.event.to_string()),
        endpoint: one.id.endpoint.to_string(),
        told: standing(one, now_ms, is_paused),
    };
    Ok(unfinished.iter().map(line).collect())
}

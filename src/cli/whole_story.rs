//! `herald story`: all that is known of a payment intent's events, over all its endpoints, in the order of time: each event with
//! its status, each attempt and each end, what still waits, and what operators did. What is too much is cut at its beginning, and
//! said first. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde::Serialize;

use super::pause;
use crate::{
    app,
    facts::{
        audit::Surface,
        event::Event,
        id::{DeliveryId, IntentId},
    },
    history::{EventsWanted, KeptEvent, Told, Wanted},
    store::{
        audit::{Logged, Wanted as WantedActs},
        queries::{DeadFilter, DeadOrder, FoundDead, MAX_PAGE, Partitions, Unfinished},
    },
    surface::{Context, VerbError, note, of_those_that_answer, words},
    view::{
        deliveries::{MAX_TOLD, waited},
        past,
        standing::standing,
        time::{Moment, Time},
    },
};

/// Far more than an intent has; of one that has more, the newest.
const MAX_ACTS: usize = 1_000;
const MAX_EVENTS: usize = 500;

/// How many unfinished deliveries of one endpoint are shown behind the head of their chain.
const MAX_OF_CHAIN: usize = 200;

#[derive(Debug, Args)]
pub struct StoryArgs {
    /// The payment intent
    id: IntentId,
    /// Only what happened before then: an age such as 2h or 7d, or 2026-01-31T09:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    until: Option<Moment>,
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
    let mut queries = context.partitions().await?;
    let now_ms = queries.now_ms().await?;
    let until_ms = args.until.map(|until| until.ms(now_ms));
    let wanted = Wanted { intent: Some(args.id.clone()), until_ms, ..Wanted::default() };
    let past = past::look(&context.history(), &mut queries, &wanted, MAX_TOLD).await?;
    let reach = past.reach.words();
    reach.iter().for_each(note);
    let mut story = Story { id: args.id, until_ms, now_ms, lines: Vec::new(), cuts: Vec::new() };
    story.add_events(context).await;
    story.add_ends(&mut queries, &past).await?;
    story.add_acts(context, &past.told).await?;
    // What is of one moment stays in this order: the event, what was tried, what was done about it.
    story.lines.retain(|line| until_ms.is_none_or(|until_ms| line.at.0 < until_ms));
    story.lines.sort_by_key(|line| line.at);
    if until_ms.is_none() {
        story.add_waiting(context, &mut queries).await?;
    }
    let done = story.show(context, &reach);
    of_those_that_answer(&queries, done)
}

struct Story {
    id: IntentId,
    until_ms: Option<u64>,
    now_ms: u64,
    lines: Vec<Line>,
    /// What is not shown, and how to see it.
    cuts: Vec<String>,
}

impl Story {
    fn show(self, context: &Context, reach: &[String]) -> anyhow::Result<()> {
        self.cuts.iter().for_each(note);
        let lines = self.lines;
        if lines.is_empty() {
            let text = format!("nothing is known of {} ({})", self.id, reach.join("; "));
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
        list.finish()
    }

    /// Says that only the newest are shown of what is older than `first_ms`, too.
    fn is_cut(&mut self, count: usize, of_what: &str, first_ms: u64) {
        self.cuts.push(cut(&self.id, self.until_ms, count, of_what, first_ms));
    }

    /// The events: what its merchant was told, if Herald keeps the intent itself, and what the history has.
    async fn add_events(&mut self, context: &Context) {
        self.lines = events(context, &self.id).await;
        let history = context.history();
        if self.lines.is_empty() && history.is_on() && history.keeps_events_for().is_zero() {
            self.cuts
                .push("its events themselves are not kept (history.bodies is 0s): only what became of them".to_owned());
        }
        let wanted = EventsWanted { intent: Some(self.id.clone()), ..EventsWanted::default() };
        // Where it cannot be asked, the first line said so. Many are read at one moment, but few come at one.
        let before_ms = self.until_ms.unwrap_or(u64::MAX);
        let (kept, has_older) = history.latest_events(&wanted, before_ms, MAX_EVENTS).await.unwrap_or_default();
        if let (true, Some(first)) = (has_older, kept.first()) {
            self.is_cut(kept.len(), "of its events", first.entry.ms);
        }
        let mut others: Vec<Line> = kept.iter().map(of_kept).collect();
        others.retain(|kept| self.lines.iter().all(|line| line.event != kept.event));
        self.lines.extend(others);
    }

    /// Attempts and ends; and its dead letters of which the history and the log do not tell, because they are older.
    async fn add_ends(&mut self, queries: &mut Partitions, past: &past::Past) -> anyhow::Result<()> {
        let filter = DeadFilter {
            intent: Some(self.id.clone()),
            until_ms: self.until_ms.unwrap_or(u64::MAX),
            ..DeadFilter::everything()
        };
        let letters = queries.find_dead(&filter, DeadOrder::NewestFirst, None, MAX_PAGE).await?.letters;
        if let (true, Some(first)) = (letters.len() == MAX_PAGE, letters.last()) {
            self.is_cut(MAX_PAGE, "of its dead letters", first.at_ms);
        }
        if let (true, Some(first)) = (past.has_more, past.told.last()) {
            self.is_cut(past.told.len(), "attempts and ends", first.at_ms);
        }
        let by_id: BTreeMap<&DeliveryId, &FoundDead> = letters.iter().map(|letter| (&letter.id, letter)).collect();
        let is_dead = |told: &&Told| told.kind == "dead";
        let told: BTreeSet<DeliveryId> = past.told.iter().filter(is_dead).filter_map(Told::delivery).collect();
        let now_ms = self.now_ms;
        self.lines.extend(past.told.iter().rev().map(|told| {
            let letter = told.delivery().and_then(|id| by_id.get(&id)).filter(|_| is_dead(&told));
            of_told(told, letter.map_or_else(String::new, |letter| never_tried(letter, now_ms)))
        }));
        let untold = letters.iter().rev().filter(|letter| !told.contains(&letter.id));
        self.lines.extend(untold.map(|letter| of_letter(letter, now_ms)));
        Ok(())
    }

    /// What was done that names the intent, one of its deliveries or of its events; and what was done to its account's endpoints
    /// as a whole stays in `herald audit list`.
    async fn add_acts(&mut self, context: &Context, told: &[Told]) -> anyhow::Result<()> {
        let mut names: BTreeSet<String> = BTreeSet::new();
        for one in told {
            names.extend(one.delivery().map(|id| id.to_string()));
            names.extend(one.event.as_ref().map(ToString::to_string));
            names.insert(one.entry.to_string());
        }
        let audit = app::audit(&context.config, Surface::Cli)?;
        let until_ms = self.until_ms.unwrap_or(u64::MAX);
        let wanted = WantedActs { from_ms: 0, until_ms, before: None, limit: MAX_ACTS };
        let found = audit.search(&wanted, |begun| {
            begun.intent.as_ref() == Some(&self.id)
                || begun.target.as_ref().is_some_and(|target| names.contains(target))
        });
        match found.await {
            Ok(found) => {
                if let (true, Some(first)) = (found.has_more && found.acts.len() >= MAX_ACTS, found.acts.first()) {
                    self.is_cut(found.acts.len(), "operators' acts", first.id.ms);
                }
                self.lines.extend(found.acts.iter().map(of_act));
            }
            Err(error) => self.cuts.push(format!("what operators did is not known: {error}")),
        }
        Ok(())
    }

    /// What is not over: it comes last, and its time is now.
    async fn add_waiting(&mut self, context: &Context, queries: &mut Partitions) -> anyhow::Result<()> {
        let unfinished = queries.unfinished_of_intent(&self.id, MAX_OF_CHAIN).await?;
        if unfinished.is_empty() {
            return Ok(());
        }
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for one in &unfinished {
            *counts.entry(one.id.endpoint.to_string()).or_default() += 1;
        }
        for (endpoint, count) in counts.into_iter().filter(|(_, count)| *count > MAX_OF_CHAIN) {
            self.cuts.push(format!(
                "only the first {count} that wait at {endpoint} are shown; how many do: herald chain list --endpoint {endpoint}"
            ));
        }
        let is_paused = pause::tell_if_paused(context).await;
        let now_ms = self.now_ms;
        self.lines.extend(unfinished.iter().map(|one| of_unfinished(one, now_ms, is_paused)));
        Ok(())
    }
}

/// Only the newest `count` are shown, the first of them of `first_ms`.
fn cut(id: &IntentId, until_ms: Option<u64>, count: usize, of_what: &str, first_ms: u64) -> String {
    let count = words::number(count as u64);
    let of_that_ms_too = first_ms.saturating_add(1);
    // That shows the rest of that millisecond, too, unless it is what was asked for now.
    if until_ms.is_none_or(|until_ms| until_ms > of_that_ms_too) {
        let until = Time(of_that_ms_too).text();
        return format!(
            "only the newest {count} {of_what} are shown; the older ones: herald story {id} --until {until}"
        );
    }
    let moment = Time(first_ms).text();
    format!(
        "more than {count} {of_what} are of {moment}, and no more of them can be shown; what was before: herald story {id} \
         --until {moment}"
    )
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

/// An event itself, from the history.
fn of_kept(kept: &KeptEvent) -> Line {
    let status = Event::parse(kept.body.clone().into()).ok().and_then(|event| event.status);
    let status = status.map_or_else(|| "no status that is known".to_owned(), |status| format!("{status:?}"));
    Line {
        at: Time(kept.entry.age_ms(kept.read_ms).map_or(kept.read_ms, |_| kept.entry.ms)),
        what: "event".to_owned(),
        event: kept.event.to_string(),
        endpoint: String::new(),
        told: format!("{status}, accepted"),
    }
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

fn of_told(told: &Told, more: String) -> Line {
    Line {
        at: Time(told.at_ms),
        what: told.kind.clone(),
        event: told.event.as_ref().map_or(String::new(), ToString::to_string),
        endpoint: told.endpoint.as_ref().map_or(String::new(), ToString::to_string),
        told: past::words_beside_time(told) + &more,
    }
}

fn of_letter(letter: &FoundDead, now_ms: u64) -> Line {
    let told = letter.facts.as_ref().map_or(String::new(), |facts| format!("{}: {}", facts.reason_name(), facts.cause));
    Line {
        at: Time(letter.at_ms),
        what: "dead".to_owned(),
        event: letter.facts.as_ref().and_then(|facts| facts.event.as_ref()).map_or(String::new(), ToString::to_string),
        endpoint: letter.id.endpoint.to_string(),
        told: told + &never_tried(letter, now_ms),
    }
}

/// What a letter waited for that nobody ever tried to deliver.
fn never_tried(letter: &FoundDead, now_ms: u64) -> String {
    let waited_for = letter.facts.as_ref().and_then(|facts| facts.waited_for.as_ref());
    waited_for.map_or(String::new(), |waited_for| format!(", never tried: {}", waited(waited_for, now_ms)))
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

fn of_unfinished(one: &Unfinished, now_ms: u64, is_paused: bool) -> Line {
    Line {
        at: Time(now_ms),
        what: "waits".to_owned(),
        event: one.delivery.as_ref().map_or(String::new(), |delivery| delivery.event.to_string()),
        endpoint: one.id.endpoint.to_string(),
        told: standing(one, now_ms, is_paused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asking for what it names would otherwise show the same for ever.
    #[test]
    fn what_is_cut_within_one_millisecond_leads_on_to_what_was_before_it() {
        let id: IntentId = "pi_1".parse().unwrap();
        let cut = |until_ms| cut(&id, until_ms, 500, "of its events", 1_000);
        let older = "only the newest 500 of its events are shown; the older ones: herald story pi_1 --until ";
        assert_eq!(cut(None), format!("{older}1970-01-01T00:00:01.001Z"));
        assert_eq!(cut(Some(1_002)), cut(None));
        let before = cut(Some(1_001));
        assert!(before.ends_with("herald story pi_1 --until 1970-01-01T00:00:01.000Z"), "{before}");
        assert!(before.starts_with("more than 500 of its events are of 1970-01-01T00:00:01.000Z"), "{before}");
    }
}

//! Deliveries wherever they stand: unfinished, dead, or known to the log of attempts alone. Several looks make one answer, for
//! the verbs and for the API.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Viewer,
    delivery::{LoggedAttempt, RecordView},
    letter::LetterView,
    standing::{standing, state},
    time::Time,
    words,
};
use crate::{
    facts::{
        id::{AccountId, DeliveryId, EndpointId, EventId, IntentId},
        letter::{WaitedFor, Waiting},
        log::LogLine,
    },
    store::{
        error::StoreError,
        queries::{
            DeadFilter, DeadOrder, EntryStanding, FoundDead, LogFilter, LogPage, MAX_PAGE, Queries, Totals, Unfinished,
            Whereabouts,
        },
    },
};

/// How many lines of the attempt log one look reads, newest first: a second's work for Redis and us, and hours of
/// traffic.
pub const MAX_LOG_LOOK: usize = 100_000;

/// How many unfinished records one look reads where no index helps.
const MAX_RECORD_LOOK: usize = 5_000;

/// How many deliveries of an intent one look shows behind the head of its chain.
const MAX_OF_CHAIN: usize = 200;

/// Which deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    Intent(IntentId),
    Event(EventId),
    Endpoint(EndpointId),
}

/// Where a delivery stands and what was last tried.
#[derive(Serialize, ToSchema)]
pub struct DeliveryLine {
    pub id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub account: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub event: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub intent: String,
    /// due, claimed, parked, held, nowhere, dead, open or delivered.
    pub state: &'static str,
    /// The same in words.
    pub standing: String,
    pub attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Time>,
}

/// How much of what is unfinished was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// All that matters was.
    Nothing,
    /// One endpoint has so many in all.
    Totals(Totals),
    /// Only so many records were looked at, and some may be missing.
    Beyond(usize),
}

pub struct Found {
    pub lines: Vec<DeliveryLine>,
    pub log: LogPage,
    pub unread: Unread,
}

/// The deliveries that are asked for, of one account where one is named: at most `limit` of an endpoint; the story of an intent
/// or an event is told whole.
pub async fn find(
    queries: &mut Queries,
    whose: &Whose,
    of: Option<&AccountId>,
    limit: usize,
    viewer: Viewer,
    is_paused: bool,
) -> Result<Found, StoreError> {
    let now_ms = queries.now_ms().await?;
    let (unfinished, unread) = unfinished(queries, whose, limit).await?;
    let mut filter = LogFilter::default();
    match whose.clone() {
        Whose::Intent(intent) => filter.intent = Some(intent),
        Whose::Event(event) => filter.event = Some(event),
        Whose::Endpoint(endpoint) => filter.endpoint = Some(endpoint),
    }
    // An endpoint's log is long, so its newest lines are enough.
    let max_lines = if filter.endpoint.is_some() { limit } else { MAX_LOG_LOOK };
    let log = queries.attempts(&filter, max_lines, MAX_LOG_LOOK).await?;
    let dead = dead(queries, whose).await?;
    let look = Look { viewer, now_ms, is_paused };
    let mut lines = look.merge(queries, unfinished, dead, &log).await?;
    lines.retain(|line| of.is_none_or(|account| account.as_str() == line.account));
    Ok(Found { lines, log, unread })
}

async fn unfinished(
    queries: &mut Queries,
    whose: &Whose,
    limit: usize,
) -> Result<(Vec<Unfinished>, Unread), StoreError> {
    let unread = |is_complete, looked| if is_complete { Unread::Nothing } else { Unread::Beyond(looked) };
    match whose {
        Whose::Endpoint(endpoint) => {
            let walk = queries.unfinished_of(endpoint, limit, MAX_RECORD_LOOK).await?;
            Ok((walk.found, Unread::Totals(queries.totals(endpoint).await?)))
        }
        Whose::Intent(intent) => {
            let mut found = queries.unfinished_of_intent(intent, MAX_OF_CHAIN).await?;
            let singles =
                queries.unfinished_where(MAX_RECORD_LOOK, |delivery| delivery.intent == *intent && !delivery.ordered);
            let singles = singles.await?;
            found.extend(singles.found);
            Ok((found, unread(singles.is_complete, singles.looked)))
        }
        Whose::Event(event) => {
            let walk = queries.unfinished_where(MAX_RECORD_LOOK, |delivery| delivery.event == *event).await?;
            Ok((walk.found, unread(walk.is_complete, walk.looked)))
        }
    }
}

/// The dead letters of an intent or an event. Those of an endpoint are many, and have a list of their own.
async fn dead(queries: &mut Queries, whose: &Whose) -> Result<Vec<FoundDead>, StoreError> {
    let (intent, event) = match whose.clone() {
        Whose::Endpoint(_) => return Ok(Vec::new()),
        Whose::Intent(intent) => (Some(intent), None),
        Whose::Event(event) => (None, Some(event)),
    };
    let filter = DeadFilter { intent, event, ..DeadFilter::everything() };
    Ok(queries.find_dead(&filter, DeadOrder::NewestFirst, None, MAX_PAGE).await?.letters)
}

/// Who looks, and when.
#[derive(Clone, Copy)]
struct Look {
    viewer: Viewer,
    now_ms: u64,
    is_paused: bool,
}

impl Look {
    /// Records first, then dead letters, then what only the log knows: dead, delivered, or without a record for a moment.
    async fn merge(
        self,
        queries: &mut Queries,
        unfinished: Vec<Unfinished>,
        dead: Vec<FoundDead>,
        log: &LogPage,
    ) -> Result<Vec<DeliveryLine>, StoreError> {
        let mut last: BTreeMap<&DeliveryId, &LogLine> = BTreeMap::new();
        for line in &log.lines {
            // The newest line comes first and stays.
            last.entry(&line.delivery).or_insert(line);
        }
        for one in &unfinished {
            last.remove(&one.id);
        }
        let mut lines: Vec<DeliveryLine> = unfinished.iter().map(|one| self.of_record(one)).collect();
        lines.extend(dead.iter().map(|letter| self.of_letter(letter, last.remove(&letter.id))));
        let mut logged: Vec<_> = last.into_values().collect();
        logged.sort_by_key(|line| std::cmp::Reverse(line.at_ms));
        for line in logged {
            lines.push(self.of_line(queries, line).await?);
        }
        Ok(lines)
    }

    fn of_record(self, one: &Unfinished) -> DeliveryLine {
        let delivery = one.delivery.as_ref().ok();
        let last = delivery.and_then(|delivery| delivery.history.last());
        DeliveryLine {
            id: one.id.to_string(),
            account: delivery.map(|delivery| delivery.account.to_string()).unwrap_or_default(),
            event: delivery.map(|delivery| delivery.event.to_string()).unwrap_or_default(),
            intent: delivery.map(|delivery| delivery.intent.to_string()).unwrap_or_default(),
            state: state(&one.place),
            standing: standing(one, self.now_ms, self.is_paused),
            attempts: delivery.map_or(0, |delivery| delivery.attempts_in_all()),
            last_outcome: last.map(|report| self.viewer.outcome(&report.outcome)),
            last_at: last.map(|report| Time(report.at_ms)),
        }
    }

    fn of_letter(self, letter: &FoundDead, line: Option<&LogLine>) -> DeliveryLine {
        let since = format!("dead letter since {}", words::span(self.now_ms.abs_diff(letter.at_ms)));
        let facts = letter.facts.as_ref();
        let standing = match facts {
            Some(facts) => match &facts.waited_for {
                Some(waited_for) if self.viewer.is_operator() => {
                    format!("{since}: {}, never tried: {}", facts.reason_name(), waited(waited_for, self.now_ms))
                }
                _ => format!("{since}: {}", facts.reason_name()),
            },
            None => since,
        };
        let tried = facts.filter(|facts| facts.attempts > 0);
        let logged = line.map(|line| self.viewer.outcome(&line.outcome));
        let known = |text: Option<String>| text.unwrap_or_default();
        DeliveryLine {
            id: letter.id.to_string(),
            account: known(facts.and_then(|facts| facts.account.as_ref()).map(ToString::to_string)),
            event: known(facts.and_then(|facts| facts.event.as_ref()).map(ToString::to_string)),
            intent: known(facts.and_then(|facts| facts.intent.as_ref()).map(ToString::to_string)),
            state: "dead",
            standing,
            attempts: facts.map_or(0, |facts| facts.attempts),
            last_outcome: logged.or(tried.map(|facts| self.viewer.cause(facts.cause.as_str()))),
            last_at: line.map(|line| Time(line.at_ms)),
        }
    }

    async fn of_line(self, queries: &mut Queries, line: &LogLine) -> Result<DeliveryLine, StoreError> {
        let (state, standing) = match (line.outcome.is_delivered(), queries.dead_letter(&line.delivery).await?) {
            (true, _) => ("delivered", format!("delivered {}", words::ago(line.at_ms, self.now_ms))),
            (false, Some(letter)) => {
                ("dead", format!("dead letter since {}", words::span(self.now_ms.abs_diff(letter.at_ms))))
            }
            (false, None) => ("open", "no record: in flight, or discarded".to_owned()),
        };
        Ok(DeliveryLine {
            id: line.delivery.to_string(),
            account: line.account.to_string(),
            event: line.event.to_string(),
            intent: line.intent.to_string(),
            state,
            standing,
            attempts: line.attempt,
            last_outcome: Some(self.viewer.outcome(&line.outcome)),
            last_at: Some(Time(line.at_ms)),
        })
    }
}

/// What a delivery that was never tried waited for.
pub fn waited(waited_for: &WaitedFor, now_ms: u64) -> String {
    let WaitedFor { why, since_ms, paused_by, paused_why, head, last_failure, last_failure_at_ms } = waited_for;
    let mut text = match (why, head) {
        (Waiting::Held, Some(head)) => format!("held behind {head}"),
        (Waiting::Held, None) => "held behind an earlier one".to_owned(),
        (Waiting::Paused, _) => "its endpoint was paused".to_owned(),
        (Waiting::AllPaused, _) => "all sending was paused".to_owned(),
        (Waiting::BreakerOpen, _) => "its endpoint's breaker was open".to_owned(),
        (Waiting::Resting, _) => "the receiver had asked for a rest".to_owned(),
        (Waiting::RateLimited, _) => "its endpoint's rate limit".to_owned(),
        (Waiting::Busy, _) => "others of its endpoint were before it".to_owned(),
        (Waiting::EndpointUnreadable, _) => "its endpoint could not be read".to_owned(),
        (Waiting::Unknown, _) => "what it waited for is not known".to_owned(),
    };
    if let Some(by) = paused_by {
        let about = if *why == Waiting::Paused { "" } else { "; its endpoint was paused" };
        text += &format!("{about} by {by}: {}", paused_why.as_deref().unwrap_or_default());
    }
    if let Some(since) = since_ms {
        text += &format!(", since {}", words::instant(*since));
    }
    match (last_failure, last_failure_at_ms) {
        (Some(cause), Some(at_ms)) => text += &format!("; last failure {cause} {}", words::ago(*at_ms, now_ms)),
        (Some(cause), None) => text += &format!("; last failure {cause}"),
        (None, _) => {}
    }
    text
}

/// One delivery, wherever it stands.
#[derive(Serialize, ToSchema)]
pub struct DeliveryView {
    id: String,
    pub state: &'static str,
    pub standing: String,
    /// Of one that is unfinished.
    record: Option<RecordView>,
    /// Of one that is dead.
    letter: Option<LetterView>,
    /// As far as the log of attempts goes, the oldest first.
    attempts: Vec<LoggedAttempt>,
}

/// What is known of one delivery.
pub struct Told {
    pub found: Whereabouts,
    pub log: LogPage,
    pub state: &'static str,
    pub standing: String,
    pub now_ms: u64,
}

impl Told {
    /// As far as anything says.
    pub fn account(&self) -> Option<&AccountId> {
        match &self.found {
            Whereabouts::Unfinished(one) => one.delivery.as_ref().ok().map(|delivery| &delivery.account),
            Whereabouts::Dead(letter) => letter.letter.as_ref().ok().map(|dead| &dead.delivery.account),
            Whereabouts::NoRecord => self.log.lines.first().map(|line| &line.account),
        }
    }

    pub fn view(&self, id: &DeliveryId, viewer: Viewer) -> DeliveryView {
        let (record, letter) = match &self.found {
            Whereabouts::Unfinished(one) => (one.delivery.as_ref().ok().map(|one| RecordView::of(one, viewer)), None),
            Whereabouts::Dead(letter) => (None, Some(LetterView::of(letter, viewer))),
            Whereabouts::NoRecord => (None, None),
        };
        let attempts = self.log.lines.iter().rev().map(|line| LoggedAttempt::of(line, viewer)).collect();
        DeliveryView {
            id: id.to_string(),
            state: self.state,
            standing: self.standing.clone(),
            record,
            letter,
            attempts,
        }
    }
}

/// The state is `unknown` where there is no such delivery, as far as Redis tells.
pub async fn tell(queries: &mut Queries, id: &DeliveryId, is_paused: bool) -> Result<Told, StoreError> {
    let now_ms = queries.now_ms().await?;
    let found = queries.find(id).await?;
    let filter = LogFilter { delivery: Some(id.clone()), ..LogFilter::default() };
    let log = queries.attempts(&filter, MAX_LOG_LOOK, MAX_LOG_LOOK).await?;
    let (state, standing) = match &found {
        Whereabouts::Unfinished(one) => (state(&one.place), standing(one, now_ms, is_paused)),
        Whereabouts::Dead(letter) => {
            ("dead", format!("dead letter since {}", words::span(now_ms.abs_diff(letter.at_ms))))
        }
        Whereabouts::NoRecord => without_record(queries, id, &log, now_ms).await?,
    };
    Ok(Told { found, log, state, standing, now_ms })
}

async fn without_record(
    queries: &mut Queries,
    id: &DeliveryId,
    log: &LogPage,
    now_ms: u64,
) -> Result<(&'static str, String), StoreError> {
    if let Some(line) = log.lines.iter().find(|line| line.outcome.is_delivered()) {
        let at = words::when(line.at_ms, now_ms);
        return Ok(("delivered", format!("delivered {at} by attempt {}, answered {}", line.attempt, line.outcome)));
    }
    Ok(match queries.entry_standing(id.entry).await? {
        EntryStanding::InFlight { idle_ms } => {
            ("in_flight", format!("its entry was read {} ago and is not settled yet", words::span(idle_ms)))
        }
        EntryStanding::Waiting => ("waiting", "its entry waits in the stream: nobody has read it yet".to_owned()),
        EntryStanding::Settled | EntryStanding::Gone if !log.lines.is_empty() => {
            ("ended", "tried, and without a record now: it was discarded, or delivered just now".to_owned())
        }
        EntryStanding::Settled => (
            "settled",
            "its entry is settled: delivered before the log begins, or not owed to this endpoint".to_owned(),
        ),
        EntryStanding::Gone => ("unknown", String::new()),
    })
}

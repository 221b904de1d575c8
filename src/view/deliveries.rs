//! Deliveries wherever they stand: unfinished, dead, or known to the history or the log of attempts alone. Several looks make one
//! answer, for the verbs and for the API.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Viewer,
    delivery::RecordView,
    letter::LetterView,
    past::{self, Past, ReachView, ToldView, outcome},
    standing::{standing, state},
    time::Time,
    words,
};
use crate::{
    facts::{
        id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
        letter::{WaitedFor, Waiting},
    },
    history::{self, History, Wanted},
    store::{
        error::StoreError,
        queries::{
            DeadFilter, DeadOrder, EntryStanding, FoundDead, MAX_PAGE, Queries, Totals, Unfinished, Whereabouts,
        },
    },
};

/// How many attempts and ends of an intent, an event or a delivery an answer is made of: far more than any has.
pub const MAX_TOLD: usize = 10_000;

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
    Account(AccountId),
}

impl Whose {
    /// The story of an intent or an event is wanted whole; of the others there is no end, so the latest are enough.
    pub fn is_one_story(&self) -> bool {
        matches!(self, Self::Intent(_) | Self::Event(_))
    }

    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        match self.clone() {
            Self::Intent(intent) => wanted.intent = Some(intent),
            Self::Event(event) => wanted.event = Some(event),
            Self::Endpoint(endpoint) => wanted.endpoint = Some(endpoint),
            Self::Account(account) => wanted.account = Some(account),
        }
        wanted
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub whose: Whose,
    /// Only of this account.
    pub of: Option<AccountId>,
    /// Of what was tried and has ended, only since then.
    pub from_ms: Option<u64>,
    /// Of what was tried and has ended, only before then.
    pub until_ms: Option<u64>,
    /// How many are shown; one story is looked at whole all the same.
    pub limit: usize,
}

/// Where a delivery stands and what was last tried.
#[derive(Serialize, ToSchema)]
pub struct DeliveryLine {
    /// Of an event that is owed to nobody, its entry.
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
    /// due, claimed, parked, held or nowhere; dead, delivered, discarded or skipped; open, without a record for a moment; or
    /// no_endpoint, of an event that is owed to nobody.
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
    pub past: Past,
    pub unread: Unread,
}

/// The deliveries that are asked for.
pub async fn find(
    queries: &mut Queries,
    history: &History,
    asked: &Asked,
    viewer: Viewer,
    is_paused: bool,
) -> Result<Found, StoreError> {
    let Asked { whose, of, from_ms, until_ms, limit } = asked;
    let now_ms = queries.now_ms().await?;
    let (unfinished, unread) = unfinished(queries, whose, *limit).await?;
    let mut wanted = Wanted { from_ms: *from_ms, until_ms: *until_ms, ..whose.wanted() };
    wanted.account = of.clone().or(wanted.account);
    let max_told = if whose.is_one_story() { MAX_TOLD } else { *limit };
    let past = past::look(history, queries, &wanted, max_told).await?;
    let dead = dead(queries, whose).await?;
    let look = Look { viewer, now_ms, is_paused, is_until: until_ms.is_some() };
    let mut lines = look.merge(queries, unfinished, dead, &past).await?;
    lines.retain(|line| of.as_ref().is_none_or(|account| account.as_str() == line.account));
    Ok(Found { lines, past, unread })
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
        Whose::Account(account) => {
            let walk = queries.unfinished_where(MAX_RECORD_LOOK, |delivery| delivery.account == *account).await?;
            Ok((walk.found, unread(walk.is_complete, walk.looked)))
        }
    }
}

/// The dead letters of an intent or an event. Those of an endpoint or an account are many, and have a list of their own.
async fn dead(queries: &mut Queries, whose: &Whose) -> Result<Vec<FoundDead>, StoreError> {
    let (intent, event) = match whose.clone() {
        Whose::Endpoint(_) | Whose::Account(_) => return Ok(Vec::new()),
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
    /// What ended later was not asked for.
    is_until: bool,
}

impl Look {
    /// Records first, then dead letters, then what only the history or the log knows: dead, delivered, skipped, or without a
    /// record for a moment.
    async fn merge(
        self,
        queries: &mut Queries,
        unfinished: Vec<Unfinished>,
        dead: Vec<FoundDead>,
        past: &Past,
    ) -> Result<Vec<DeliveryLine>, StoreError> {
        let mut last: BTreeMap<(EntryId, Option<&EndpointId>), &history::Told> = BTreeMap::new();
        for told in &past.told {
            // The newest comes first and stays.
            last.entry((told.entry, told.endpoint.as_ref())).or_insert(told);
        }
        for one in &unfinished {
            last.remove(&(one.id.entry, Some(&one.id.endpoint)));
        }
        let mut lines: Vec<DeliveryLine> = unfinished.iter().map(|one| self.of_record(one)).collect();
        for letter in &dead {
            last.remove(&(letter.id.entry, Some(&letter.id.endpoint)));
            lines.push(self.of_letter(letter, past.last_attempt(&letter.id)));
        }
        let mut ended: Vec<_> = last.into_values().collect();
        ended.sort_by_key(|told| std::cmp::Reverse((told.at_ms, told.entry)));
        for told in ended {
            lines.push(self.of_told(queries, past, told).await?);
        }
        Ok(lines)
    }

    fn open(self) -> &'static str {
        match self.is_until {
            true => "no record: it may have ended after the time that was asked for",
            false => "no record: in flight, or discarded",
        }
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

    fn of_letter(self, letter: &FoundDead, last: Option<&history::Told>) -> DeliveryLine {
        let since = format!("dead for {}", words::span(self.now_ms.abs_diff(letter.at_ms)));
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
        let last_outcome = last.map(|told| outcome(told, self.viewer));
        let known = |text: Option<String>| text.unwrap_or_default();
        DeliveryLine {
            id: letter.id.to_string(),
            account: known(facts.and_then(|facts| facts.account.as_ref()).map(ToString::to_string)),
            event: known(facts.and_then(|facts| facts.event.as_ref()).map(ToString::to_string)),
            intent: known(facts.and_then(|facts| facts.intent.as_ref()).map(ToString::to_string)),
            state: "dead",
            standing,
            attempts: facts.map_or(0, |facts| facts.attempts),
            last_outcome: last_outcome.or(tried.map(|facts| self.viewer.cause(facts.cause.as_str()))),
            last_at: last.map(|told| Time(told.at_ms)),
        }
    }

    async fn of_told(
        self,
        queries: &mut Queries,
        past: &Past,
        told: &history::Told,
    ) -> Result<DeliveryLine, StoreError> {
        let (delivery, ago) = (told.delivery(), words::ago(told.at_ms, self.now_ms));
        let letter = match (&delivery, told.kind.as_str()) {
            (Some(id), "failed" | "dead" | "redelivered") => queries.dead_letter(id).await?,
            _ => None,
        };
        let (state, standing) = match (told.kind.as_str(), letter) {
            (_, Some(letter)) => ("dead", format!("dead for {}", words::span(self.now_ms.abs_diff(letter.at_ms)))),
            ("delivered", _) => ("delivered", format!("delivered {ago}")),
            ("no_endpoint", _) => ("no_endpoint", format!("owed to nobody: {} ({})", told.detail, told.event_type)),
            _ => ended(told, &ago, self.viewer).unwrap_or_else(|| ("open", self.open().to_owned())),
        };
        let tried = delivery.as_ref().and_then(|id| past.last_attempt(id));
        let known = |text: Option<String>| text.unwrap_or_default();
        Ok(DeliveryLine {
            id: past::id_of(told),
            account: known(told.account.as_ref().map(ToString::to_string)),
            event: known(told.event.as_ref().map(ToString::to_string)),
            intent: known(told.intent.as_ref().map(ToString::to_string)),
            state,
            standing,
            attempts: told.attempt,
            last_outcome: tried.map(|told| outcome(told, self.viewer)),
            last_at: tried.map(|told| Time(told.at_ms)),
        })
    }
}

/// An end of which no record is left. Why it came names operators, so merchants are told only that it did.
fn ended(told: &history::Told, at: &str, viewer: Viewer) -> Option<(&'static str, String)> {
    let detail = Some(&told.detail).filter(|_| viewer.is_operator());
    Some(match (told.kind.as_str(), detail) {
        ("skipped", Some(detail)) => ("skipped", format!("skipped: {detail}")),
        ("skipped", None) => ("skipped", "skipped: its endpoint was disabled".to_owned()),
        ("discarded", Some(detail)) => ("discarded", format!("discarded {at} by {detail}")),
        ("discarded", None) => ("discarded", format!("discarded {at}")),
        ("dead", Some(detail)) => ("dead", format!("dead letter {at}: {detail}; the letter is gone")),
        ("dead", None) => ("dead", format!("dead letter {at}; the letter is gone")),
        _ => return None,
    })
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
    /// What was tried and how it ended, the oldest first, as far as the history and the log go.
    past: Vec<ToldView>,
    /// How far they go.
    history: ReachView,
}

/// What is known of one delivery.
pub struct Told {
    pub found: Whereabouts,
    pub past: Past,
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
            Whereabouts::NoRecord => self.past.told.iter().find_map(|told| told.account.as_ref()),
        }
    }

    pub fn view(&self, id: &DeliveryId, viewer: Viewer) -> DeliveryView {
        let (record, letter) = match &self.found {
            Whereabouts::Unfinished(one) => (one.delivery.as_ref().ok().map(|one| RecordView::of(one, viewer)), None),
            Whereabouts::Dead(letter) => (None, Some(LetterView::of(letter, viewer))),
            Whereabouts::NoRecord => (None, None),
        };
        DeliveryView {
            id: id.to_string(),
            state: self.state,
            standing: self.standing.clone(),
            record,
            letter,
            past: self.past.told.iter().rev().map(|told| ToldView::of(told, viewer)).collect(),
            history: self.past.reach.view(viewer),
        }
    }
}

/// The state is `unknown` where there is no such delivery, as far as is known. Of one account where one is named.
pub async fn tell(
    queries: &mut Queries,
    history: &History,
    id: &DeliveryId,
    of: Option<&AccountId>,
    viewer: Viewer,
    is_paused: bool,
) -> Result<Told, StoreError> {
    let now_ms = queries.now_ms().await?;
    let found = queries.find(id).await?;
    let wanted = Wanted { delivery: Some(id.clone()), account: of.cloned(), ..Wanted::default() };
    let past = past::look(history, queries, &wanted, MAX_TOLD).await?;
    let (state, standing) = match &found {
        Whereabouts::Unfinished(one) => (state(&one.place), standing(one, now_ms, is_paused)),
        Whereabouts::Dead(letter) => ("dead", format!("dead for {}", words::span(now_ms.abs_diff(letter.at_ms)))),
        Whereabouts::NoRecord => without_record(queries, id, &past, viewer, now_ms).await?,
    };
    Ok(Told { found, past, state, standing, now_ms })
}

async fn without_record(
    queries: &mut Queries,
    id: &DeliveryId,
    past: &Past,
    viewer: Viewer,
    now_ms: u64,
) -> Result<(&'static str, String), StoreError> {
    if let Some(told) = past.told.first() {
        let at = words::when(told.at_ms, now_ms);
        if told.kind == "delivered" {
            let answered = outcome(told, viewer);
            return Ok(("delivered", format!("delivered {at} by attempt {}, answered {answered}", told.attempt)));
        }
        if let Some(ended) = ended(told, &at, viewer) {
            return Ok(ended);
        }
    }
    Ok(match queries.entry_standing(id.entry).await? {
        EntryStanding::InFlight { idle_ms } => {
            ("in_flight", format!("its entry was read {} ago and is not settled yet", words::span(idle_ms)))
        }
        EntryStanding::Waiting => ("waiting", "its entry waits in the stream: nobody has read it yet".to_owned()),
        EntryStanding::Settled | EntryStanding::Gone if !past.told.is_empty() => {
            ("ended", "tried, and without a record now: it was discarded, or delivered just now".to_owned())
        }
        EntryStanding::Settled => (
            "settled",
            "its entry is settled: delivered before the log begins, or not owed to this endpoint".to_owned(),
        ),
        EntryStanding::Gone => ("unknown", String::new()),
    })
}

//! Lists of deliveries, a page at a time, in one order that nothing changes: by the entry that each is of, the newest first. Where
//! a delivery stands changes while somebody reads, its place does not. What is unfinished, what is dead and what the history or
//! the log tells come from three places, none of which is ordered so; each is looked at as far as its bound, the same for every page,
//! and the answer says which bound was met.

use std::{cmp::Reverse, collections::BTreeMap, fmt, str::FromStr};

use serde::Serialize;
use utoipa::ToSchema;

use super::{MAX_TOLD, ended, waited};
use crate::{
    facts::{
        delivery::Delivery,
        id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
    },
    history::{self, History, Told, Wanted},
    store::{
        error::StoreError,
        queries::{DeadCursor, DeadFilter, DeadOrder, FoundDead, MAX_PAGE, Partitions, Totals, Unfinished},
    },
    view::{
        Viewer,
        past::{self, Past, outcome},
        standing::{standing, state},
        time::Time,
        words,
    },
};

/// How many unfinished records, and how many dead letters, one look goes through.
const MAX_LOOK: usize = 5_000;

/// How many records are read at a time until a page is full.
const STRIDE: usize = 50;

/// How many deliveries of an intent one look finds behind the head of its chain.
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
    pub side: Side,
    pub limit: usize,
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    Newest,
    OlderThan(At),
    NewerThan(At),
}

impl Side {
    fn has(&self, place: &Place) -> bool {
        match self {
            Self::Newest => true,
            Self::OlderThan(at) => *place < at.place,
            Self::NewerThan(at) => *place > at.place,
        }
    }

    /// Those nearest to where the page begins come first.
    fn sort<T>(&self, items: &mut [T], place: impl Fn(&T) -> Place) {
        match self {
            Self::Newest | Self::OlderThan(_) => items.sort_by_key(|item| Reverse(place(item))),
            Self::NewerThan(_) => items.sort_by_key(place),
        }
    }

    fn at(&self) -> Option<&At> {
        match self {
            Self::Newest => None,
            Self::OlderThan(at) | Self::NewerThan(at) => Some(at),
        }
    }
}

/// A delivery's place in the order; of an event that is owed to nobody, without an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    entry: EntryId,
    endpoint: Option<EndpointId>,
}

impl Place {
    fn of(id: &DeliveryId) -> Self {
        Self { entry: id.entry, endpoint: Some(id.endpoint.clone()) }
    }
}

/// Beside which delivery a page begins, as a cursor holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    place: Place,
    /// Of what was tried, only what was since then is looked at; 0 if that is everything. All pages of a reader look at the same.
    since_ms: u64,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.place.endpoint.as_ref().map(EndpointId::as_str).unwrap_or_default();
        write!(f, "d {} {} {endpoint}", self.since_ms, self.place.entry)
    }
}

impl FromStr for At {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.strip_prefix("d ").ok_or(())?.splitn(3, ' ');
        let mut part = || parts.next().ok_or(());
        let since_ms = part()?.parse().map_err(drop)?;
        let entry = part()?.parse().map_err(drop)?;
        let endpoint = match part()? {
            "" => None,
            endpoint => Some(EndpointId::new(endpoint).map_err(drop)?),
        };
        Ok(Self { place: Place { entry, endpoint }, since_ms })
    }
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

/// Which bounds a look met, so that some may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    /// There are more unfinished records.
    pub records: bool,
    /// There are more dead letters.
    pub letters: bool,
    /// There is more in the log of attempts.
    pub log: bool,
    /// Of what was tried, only what was since then was looked at.
    pub since_ms: Option<u64>,
}

impl Looked {
    pub fn is_complete(&self) -> bool {
        *self == Self::default()
    }

    /// What may be missing.
    pub fn words(&self) -> Vec<String> {
        let most = words::number(MAX_LOOK as u64);
        let records =
            format!("only {most} unfinished records were looked at: one endpoint alone, or one intent, may have less");
        let letters =
            format!("only the {most} newest dead letters were looked at: the dead letters have a list of their own");
        let log = "only a part of the log of attempts was looked at".to_owned();
        let since = self.since_ms.map(|since_ms| {
            let since = Time(since_ms).text();
            format!("of what has ended, only what was tried since {since} was looked at: for what was before, ask until then")
        });
        let met = [(self.records, records), (self.letters, letters), (self.log, log)];
        met.into_iter().filter_map(|(is_met, text)| is_met.then_some(text)).chain(since).collect()
    }
}

pub struct Found {
    /// The newest first.
    pub lines: Vec<DeliveryLine>,
    /// Beside the first and the last of them, where there may be more on that side.
    pub newer: Option<At>,
    pub older: Option<At>,
    pub past: Past,
    pub looked: Looked,
    /// Of one endpoint, how many there are in all.
    pub totals: Option<Totals>,
}

/// The deliveries that are asked for.
pub async fn find(
    queries: &mut Partitions,
    history: &History,
    asked: &Asked,
    viewer: Viewer,
    is_paused: bool,
) -> Result<Found, StoreError> {
    let now_ms = queries.now_ms().await?;
    match (&asked.of, &asked.whose) {
        (Some(account), _) | (None, Whose::Account(account)) => queries.narrow(account),
        (None, Whose::Endpoint(endpoint)) => queries.narrow_to(endpoint).await,
        (None, Whose::Intent(_) | Whose::Event(_)) => {}
    }
    // In this order: what moves on meanwhile, to a record from a letter or to its end from a record, is seen where it goes to.
    let (letters, more_letters) = dead(queries, asked).await?;
    let (records, more_records) = unfinished(queries, asked).await?;
    let (past, since_ms) = told(queries, history, asked).await?;
    let totals = match &asked.whose {
        Whose::Endpoint(endpoint) => Some(queries.totals(endpoint).await?),
        Whose::Intent(_) | Whose::Event(_) | Whose::Account(_) => None,
    };
    let mut places = BTreeMap::new();
    // The newest comes first and stays.
    for told in &past.told {
        let place = Place { entry: told.entry, endpoint: told.endpoint.clone() };
        places.entry(place).or_insert(Stands::Told(told));
    }
    places.extend(letters.into_iter().map(|letter| (Place::of(&letter.id), Stands::Dead(letter))));
    places.extend(records.into_iter().map(|record| (Place::of(&record.id), Stands::Unfinished(record))));
    let mut page: Vec<(Place, Stands)> = places.into_iter().filter(|(place, _)| asked.side.has(place)).collect();
    asked.side.sort(&mut page, |(place, _)| place.clone());
    let is_beyond = page.len() > asked.limit;
    page.truncate(asked.limit);
    page.sort_by(|(one, _), (other, _)| other.cmp(one));
    let at = |found: Option<&(Place, Stands)>| {
        found.map(|(place, _)| At { place: place.clone(), since_ms: since_ms.unwrap_or(0) })
    };
    let (newer, older) = (at(page.first()), at(page.last()));
    let (newer, older) = match &asked.side {
        Side::Newest => (None, older.filter(|_| is_beyond)),
        Side::OlderThan(_) => (newer, older.filter(|_| is_beyond)),
        Side::NewerThan(_) => (newer.filter(|_| is_beyond), older),
    };
    let look = Look { viewer, now_ms, is_paused, is_until: asked.until_ms.is_some() };
    let lines = look.lines(queries, page, &past).await?;
    let looked = Looked { records: more_records, letters: more_letters, log: past.reach.is_cut_short(), since_ms };
    Ok(Found { lines, newer, older, past, looked, totals })
}

/// The records that fit nearest to where the page begins, one more than it shows; and whether there are some that were not looked at.
async fn unfinished(queries: &mut Partitions, asked: &Asked) -> Result<(Vec<Unfinished>, bool), StoreError> {
    let endpoint = match &asked.whose {
        Whose::Endpoint(endpoint) => Some(endpoint),
        Whose::Intent(_) | Whose::Event(_) | Whose::Account(_) => None,
    };
    let (mut ids, is_complete) = queries.unfinished_ids(endpoint, MAX_LOOK).await?;
    ids.retain(|id| asked.side.has(&Place::of(id)));
    asked.side.sort(&mut ids, Place::of);
    let is_own = |one: &Delivery| asked.of.as_ref().is_none_or(|account| one.account == *account);
    let fits = |one: &Delivery| match &asked.whose {
        Whose::Endpoint(_) => true,
        Whose::Intent(intent) => one.intent == *intent,
        Whose::Event(event) => one.event == *event,
        Whose::Account(account) => one.account == *account,
    };
    // One that cannot be read may be anybody's, but not elsewhere.
    let is_shown = |one: &Unfinished| match &one.delivery {
        Ok(delivery) => is_own(delivery) && fits(delivery),
        Err(_) => endpoint.is_some() && asked.of.is_none(),
    };
    let mut found = Vec::new();
    for part in ids.chunks(STRIDE) {
        found.extend(queries.unfinished(part).await?.into_iter().filter(is_shown));
        if found.len() > asked.limit {
            break;
        }
    }
    // What waits in order is found by its intent, however much else there is.
    if let Whose::Intent(intent) = &asked.whose {
        let chained = queries.unfinished_of_intent(intent, MAX_OF_CHAIN).await?;
        found.extend(chained.into_iter().filter(|one| asked.side.has(&Place::of(&one.id)) && is_shown(one)));
    }
    Ok((found, !is_complete))
}

/// The newest dead letters that fit; and whether there are more.
async fn dead(queries: &mut Partitions, asked: &Asked) -> Result<(Vec<FoundDead>, bool), StoreError> {
    let mut filter = DeadFilter { account: asked.of.clone(), ..DeadFilter::everything() };
    match asked.whose.clone() {
        Whose::Intent(intent) => filter.intent = Some(intent),
        Whose::Event(event) => filter.event = Some(event),
        Whose::Endpoint(endpoint) => filter.endpoint = Some(endpoint),
        Whose::Account(account) => filter.account = Some(account),
    }
    filter.from_ms = asked.from_ms.unwrap_or(filter.from_ms);
    filter.until_ms = asked.until_ms.map_or(filter.until_ms, |until_ms| until_ms.saturating_sub(1));
    let (mut found, mut after) = (Vec::new(), None::<DeadCursor>);
    while found.len() < MAX_LOOK {
        let page = queries.find_dead(&filter, DeadOrder::NewestFirst, after.as_ref(), MAX_PAGE).await?;
        found.extend(page.letters);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok((found, after.is_some()))
}

/// What was tried and how it ended, the newest; and since when, if that is not all.
async fn told(queries: &mut Partitions, history: &History, asked: &Asked) -> Result<(Past, Option<u64>), StoreError> {
    let mut wanted = Wanted { from_ms: asked.from_ms, until_ms: asked.until_ms, ..asked.whose.wanted() };
    wanted.account = asked.of.clone().or(wanted.account);
    let since_ms = asked.side.at().map(|at| at.since_ms).filter(|since_ms| *since_ms > 0);
    wanted.from_ms = wanted.from_ms.max(since_ms);
    // As much again may come while somebody reads.
    let most = if since_ms.is_some() { 2 * MAX_TOLD } else { MAX_TOLD };
    let (past, cut_ms) = past::newest(history, queries, &wanted, most).await?;
    Ok((past, cut_ms.or(since_ms)))
}

/// Where a delivery was found.
enum Stands<'a> {
    Unfinished(Unfinished),
    Dead(FoundDead),
    /// Not among the records and letters that were looked at: dead, delivered, skipped, or without a record for a moment.
    Told(&'a Told),
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
    async fn lines(
        self,
        queries: &mut Partitions,
        page: Vec<(Place, Stands<'_>)>,
        past: &Past,
    ) -> Result<Vec<DeliveryLine>, StoreError> {
        let of_told = |stands: &Stands<'_>| if let Stands::Told(told) = stands { told.delivery() } else { None };
        let ids: Vec<DeliveryId> = page.iter().filter_map(|(_, stands)| of_told(stands)).collect();
        let beyond = queries.unfinished(&ids).await?;
        let record = |told: &Told| beyond.iter().find(|one| told.delivery().as_ref() == Some(&one.id));
        let mut lines = Vec::with_capacity(page.len());
        for (_, stands) in &page {
            lines.push(match stands {
                Stands::Unfinished(one) => self.of_record(one),
                Stands::Dead(letter) => self.of_letter(letter, past.last_attempt(&letter.id)),
                Stands::Told(told) => match record(told) {
                    Some(one) => self.of_record(one),
                    None => self.of_told(queries, past, told).await?,
                },
            });
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
        queries: &mut Partitions,
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

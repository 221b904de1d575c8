//! Erases what is kept of an account's events, a step at a time: dead letters, the stream's entries, the quarantine's, and the
//! history's copies, in this order, because what is in one place may come from one before it. Where it is stands in memory alone:
//! each step takes out whatever is there, so another owner begins again. What is still to be delivered is waited for: once its
//! endpoints are disabled or deleted it becomes letters.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use crate::{
    clock,
    facts::{
        endpoint::{EndpointState, Mark},
        event::Event,
        id::{AccountId, EndpointId, EntryId, OperationId},
        operation::why_of,
    },
    history::{History, HistoryError, erase::Eraser},
    registry::Registry,
    store::{
        entries::StreamEntry,
        error::StoreError,
        operations::{
            erase::{Erased, is_named},
            work::{Lost, Work},
        },
        protocol::Asked,
        queries::{DeadCursor, DeadFilter, DeadOrder, Quarantined, Queries},
        requests::Requests,
    },
};

/// Entries of the stream that one step looks at. Each may have 64 KiB.
const ENTRIES: usize = 100;

/// Endpoints whose records one step looks at, some of each.
const LOOKED_THROUGH: usize = 16;
const LETTERS: usize = 200;

/// The most entries that lie in one page of a stream: `stream-node-max-entries` of Redis.
const PAGE_ENTRIES: u64 = 100;

const MOVING: Place = Place::Moving { moved: 0, until: None };

/// After the database has failed.
const HISTORY_PAUSE: Duration = Duration::from_secs(15);

/// What one step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erasing {
    Moved,
    /// So many letters went: they count for the operation's rate.
    Dropped(usize),
    Waits(String),
    Finished,
    Lost,
}

/// Whose events, and for which operation.
#[derive(Debug, Clone)]
pub struct Order {
    pub operation: OperationId,
    pub account: AccountId,
    /// None of those that came later is meant.
    pub last: EntryId,
    pub by: String,
    pub why: String,
}

/// Where it looks next.
enum Place {
    Letters {
        after: Option<DeadCursor>,
    },
    Entries {
        after: EntryId,
    },
    /// The stream's own, then those of the streams above it, whose owners are asked.
    Quarantine {
        of: usize,
        after: Option<EntryId>,
    },
    Records(Records),
    History,
    /// How many entries had been added to the stream when everything was erased.
    Pages {
        added: Option<u64>,
    },
    /// How many entries of the quarantine were moved behind its end; and, once those fill pages of their own, behind which of its ids
    /// everything has to be.
    Moving {
        moved: u64,
        until: Option<EntryId>,
    },
    Files,
}

/// How far the look through all records is.
#[derive(Default)]
struct Records {
    /// Where the next endpoints are; None once all were found.
    next: Option<u64>,
    /// Those that are looked through, each with where it stands and how many records it has.
    under_way: Vec<(EndpointId, u64, u64)>,
    /// Those that have a record of the account, with how many records they have.
    found: BTreeMap<EndpointId, u64>,
}

pub struct Erasure {
    order: Order,
    place: Place,
    /// Something was found since the last look through all places.
    has_found: bool,
    /// The streams that this one is a part of, once they were asked for.
    above: Option<Vec<(Queries, Requests)>>,
    database: Option<Eraser>,
    /// The database's files are written afresh, which others need not wait for.
    settling: Option<JoinHandle<Result<bool, HistoryError>>>,
    /// The database failed, and is asked again then: other operations wait for each try.
    history_at: Option<Instant>,
    said: String,
}

/// What an erasure is done with.
pub struct Means<'a> {
    pub store: &'a mut Work,
    pub queries: &'a mut Queries,
    pub registry: &'a Registry,
    pub history: &'a History,
}

impl Erasure {
    pub fn new(order: Order) -> Self {
        Self {
            order,
            place: Place::Letters { after: None },
            has_found: false,
            above: None,
            database: None,
            settling: None,
            history_at: None,
            said: String::new(),
        }
    }

    pub async fn step(&mut self, room: usize, means: &mut Means<'_>) -> Result<Erasing, StoreError> {
        if let Some(endpoint) = still_sent(means.registry, &self.order.account) {
            return Ok(Erasing::Waits(format!("{endpoint} is not disabled: disable or delete it first")));
        }
        match &self.place {
            Place::Letters { .. } => self.letters(room, means).await,
            Place::Entries { .. } => self.entries(means).await,
            Place::Quarantine { .. } => self.quarantine(means).await,
            Place::Records(_) => self.records(means).await,
            Place::History if self.history_at.is_some_and(|at| clock::now() < at) => {
                Ok(Erasing::Waits(self.said.clone()))
            }
            Place::History => Ok(self.history(means.history).await),
            Place::Pages { .. } => self.pages(means).await,
            Place::Moving { .. } => self.moving(means).await,
            Place::Files => files(means).await,
        }
    }

    /// Redis only marks an entry as deleted: its bytes go with the last of those that lie in one page with it.
    async fn pages(&mut self, means: &mut Means<'_>) -> Result<Erasing, StoreError> {
        let Place::Pages { added } = &mut self.place else { return Ok(Erasing::Moved) };
        let Some(stands) = means.queries.events_after(EntryId::ZERO, 1, 0).await? else {
            self.place = MOVING;
            return Ok(Erasing::Moved);
        };
        let added = *added.get_or_insert(stands.added);
        let have_left = stands.added.saturating_sub(stands.length);
        let is_gone = stands.first > self.order.last && have_left >= added.saturating_add(PAGE_ENTRIES);
        if stands.length > 0 && !is_gone {
            let said = "the stream still has entries that were there, or came right behind (retain): Redis keeps what was erased until \
                        they are gone";
            return Ok(Erasing::Waits(said.to_owned()));
        }
        self.place = MOVING;
        Ok(Erasing::Moved)
    }

    /// The same of the quarantine, where others' entries may lie for ever: they are moved to new pages.
    async fn moving(&mut self, means: &mut Means<'_>) -> Result<Erasing, StoreError> {
        let Place::Moving { moved, until } = &mut self.place else { return Ok(Erasing::Moved) };
        let now = match means.store.move_quarantined(&self.order.operation).await? {
            Err(Lost) => return Ok(Erasing::Lost),
            Ok(None) => return Ok(Erasing::Waits(String::new())),
            Ok(Some(now)) => now,
        };
        *moved += now.count;
        if until.is_none() && *moved >= PAGE_ENTRIES {
            *until = Some(now.last);
        }
        if now.count == 0 || until.is_some_and(|until| now.first > until) {
            self.place = Place::Files;
        }
        Ok(Erasing::Moved)
    }

    async fn letters(&mut self, room: usize, means: &mut Means<'_>) -> Result<Erasing, StoreError> {
        let Place::Letters { after } = &self.place else { return Ok(Erasing::Moved) };
        let filter = DeadFilter { account: Some(self.order.account.clone()), ..DeadFilter::everything() };
        let most = room.min(LETTERS);
        if most == 0 {
            return Ok(Erasing::Waits(String::new()));
        }
        let page = means.queries.find_dead(&filter, DeadOrder::OldestFirst, after.as_ref(), most).await?;
        let behind = match page.next {
            Some(next) => Place::Letters { after: Some(next) },
            None => Place::Entries { after: EntryId::ZERO },
        };
        let found = page.letters.into_iter().map(|letter| letter.id);
        let letters: Vec<_> = found.filter(|letter| letter.entry <= self.order.last).collect();
        if letters.is_empty() {
            self.place = behind;
            return Ok(Erasing::Moved);
        }
        // What is left of this page is found when this place is looked at once more.
        self.has_found = true;
        Ok(match means.store.erase(&self.order.operation, Erased::Letters(&letters)).await? {
            Err(Lost) => Erasing::Lost,
            // Those at the front would keep it from what is behind them; but they end soon.
            Ok(Some(0)) => Erasing::Waits("another operation has letters of it under way".to_owned()),
            Ok(Some(count)) => Erasing::Dropped(usize::try_from(count).unwrap_or(LETTERS)),
            Ok(None) => Erasing::Waits(String::new()),
        })
    }

    async fn entries(&mut self, means: &mut Means<'_>) -> Result<Erasing, StoreError> {
        let Place::Entries { after } = self.place else { return Ok(Erasing::Moved) };
        let until = self.order.last;
        // What is gone before it was read would be a gap in the history.
        if !means.store.histories_have_read(until, means.queries.now_ms().await?).await? {
            return Ok(Erasing::Waits("the history has not read all of the stream".to_owned()));
        }
        if means.store.is_under_way(until).await? {
            return Ok(Erasing::Waits("entries of the stream are being dealt with".to_owned()));
        }
        let mut page = means.store.entries().after(after, ENTRIES).await?;
        page.retain(|entry| entry.id <= until);
        let Some(last) = page.last().map(|entry| entry.id) else {
            self.place = Place::Quarantine { of: 0, after: None };
            return Ok(Erasing::Moved);
        };
        let own: Vec<EntryId> =
            page.iter().filter(|entry| is_of(entry, &self.order.account)).map(|entry| entry.id).collect();
        if !own.is_empty() {
            self.has_found = true;
            match means.store.erase(&self.order.operation, Erased::Entries(&own)).await? {
                Err(Lost) => return Ok(Erasing::Lost),
                Ok(None) => return Ok(Erasing::Waits(String::new())),
                Ok(Some(_)) => {}
            }
        }
        self.place = Place::Entries { after: last };
        Ok(Erasing::Moved)
    }

    async fn quarantine(&mut self, means: &mut Means<'_>) -> Result<Erasing, StoreError> {
        let Place::Quarantine { of, after } = self.place else { return Ok(Erasing::Moved) };
        if self.above.is_none() {
            self.above = Some(means.store.above().await?);
        }
        let above = self.above.as_deref_mut().unwrap_or_default();
        let streams = 1 + above.len();
        let own = means.store.requests();
        let (queries, requests) = match of.checked_sub(1).and_then(|at| above.get_mut(at)) {
            None => (&mut *means.queries, &own),
            Some((queries, requests)) => (queries, &*requests),
        };
        let (found, next) = queries.quarantine(after, ENTRIES).await?;
        let why = why_of(&self.order.why, &self.order.operation);
        let is_own = |one: &&Quarantined| one.entry <= self.order.last && is_event_of(&one.body, &self.order.account);
        for one in found.iter().filter(is_own) {
            self.has_found = true;
            let mark = Mark { by: self.order.by.clone(), why: why.clone(), at_ms: clock::wall_ms() };
            requests.ask(&Asked::DiscardQuarantined(one.entry), &mark).await?;
        }
        self.place = match next {
            Some(next) => Place::Quarantine { of, after: Some(next) },
            None if of + 1 < streams => Place::Quarantine { of: of + 1, after: None },
            None => Place::Records(Records { next: Some(0), ..Records::default() }),
        };
        Ok(Erasing::Moved)
    }

    async fn records(&mut self, means: &mut Means<'_>) -> Result<Erasing, StoreError> {
        let Place::Records(records) = &mut self.place else { return Ok(Erasing::Moved) };
        if !records.under_way.is_empty() {
            let some = records.under_way.split_off(records.under_way.len().saturating_sub(LOOKED_THROUGH));
            let at: Vec<_> = some.iter().map(|(endpoint, at, _)| (endpoint.clone(), *at)).collect();
            let looks = means.store.look_for_records(&self.order.account, self.order.last, &at).await?;
            for ((endpoint, _, count), (next, is_own)) in some.into_iter().zip(looks) {
                match (is_own, next) {
                    (true, _) => drop(records.found.insert(endpoint, count)),
                    (false, 0) => {}
                    (false, next) => records.under_way.push((endpoint, next, count)),
                }
            }
            return Ok(Erasing::Moved);
        }
        if let Some(cursor) = records.next {
            let (next, counts) = means.store.endpoints_with_records(cursor).await?;
            records.next = Some(next).filter(|next| *next > 0);
            records.under_way.extend(counts.into_iter().map(|(endpoint, count)| (endpoint, 0, count)));
            return Ok(Erasing::Moved);
        }
        let left =
            records.found.first_key_value().map(|(endpoint, count)| format!("{endpoint} still has {count} deliveries"));
        // All places once more, until nothing is found anywhere.
        let is_clean = !std::mem::take(&mut self.has_found) && left.is_none();
        self.place = if is_clean { Place::History } else { Place::Letters { after: None } };
        Ok(left.map_or(Erasing::Moved, Erasing::Waits))
    }

    async fn history(&mut self, history: &History) -> Erasing {
        let done: Result<bool, HistoryError> = async {
            if self.database.is_none() {
                self.database = history.eraser().await?;
            }
            let Some(database) = &self.database else { return Ok(true) };
            match &mut self.settling {
                None if database.erase(&self.order.account, self.order.last).await? > 0 => Ok(false),
                None => {
                    let database = database.clone();
                    self.settling = Some(tokio::spawn(async move { database.settle().await }));
                    Ok(false)
                }
                Some(task) if !task.is_finished() => Ok(false),
                Some(task) => {
                    let ended = task.await;
                    self.settling = None;
                    ended.unwrap_or(Ok(false))
                }
            }
        }
        .await;
        match done {
            Ok(false) if self.settling.is_some() => Erasing::Waits("the history's files are written afresh".to_owned()),
            Ok(true) => {
                self.place = Place::Pages { added: None };
                Erasing::Moved
            }
            Ok(false) => Erasing::Moved,
            Err(error) => {
                self.database = None;
                self.history_at = Some(clock::now() + HISTORY_PAUSE);
                self.said = format!("the history: {error}");
                Erasing::Waits(self.said.clone())
            }
        }
    }
}

/// What is gone from Redis' memory is in its append-only file until that is written afresh.
async fn files(means: &mut Means<'_>) -> Result<Erasing, StoreError> {
    Ok(match means.store.rewrite_files().await? {
        true => Erasing::Finished,
        false => Erasing::Waits("Redis is writing its append-only file, from before the end of this".to_owned()),
    })
}

/// An endpoint of the account that something may still be sent to.
fn still_sent(registry: &Registry, account: &AccountId) -> Option<EndpointId> {
    let endpoints = registry.endpoints_for(account);
    let sent = endpoints.iter().find(|endpoint| !matches!(endpoint.status, EndpointState::Disabled(_)));
    sent.map(|endpoint| endpoint.id.clone()).or_else(|| registry.unreadable_of(account).into_iter().next())
}

fn is_of(entry: &StreamEntry, account: &AccountId) -> bool {
    match entry.field("event") {
        Some(body) => is_event_of(body, account),
        None => entry.fields.iter().any(|(_, value)| value == account.as_str() || is_named(value, account)),
    }
}

/// What is no event, and names the account, may be one of it.
fn is_event_of(body: &bytes::Bytes, account: &AccountId) -> bool {
    match Event::parse(body.clone()) {
        Ok(event) => event.account == *account,
        Err(_) => is_named(body, account),
    }
}

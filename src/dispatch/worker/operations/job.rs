//! One operation as its owner works on it: what it has under way, and where it is at each endpoint. All of it is in Redis too.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    time::Instant,
};

use super::{
    erasing::{Erasing, Erasure, Means, Order},
    pace::{Bucket, Lane},
};
use crate::{
    clock,
    facts::{
        endpoint::{EndpointState, Mark},
        id::{AccountId, DeliveryId, EndpointId, IntentId},
        operation::{Kind, Operation, State, why_of},
    },
    history::{EventPlace, History, KeptEvent, plan},
    registry::Registry,
    store::{
        error::StoreError,
        operations::work::{Became, Booked, Lost, Replaying, Sent, Taken, Taking, Work},
        queries::{DeadCursor, DeadFilter, DeadKey, DeadOrder, FoundDead, MAX_PAGE, Queries},
    },
};

/// Deliveries that one call looks at.
const LOOKED_AT: usize = 100;

/// Of those that are retried or parked, looked at in one round: nothing happens to them quickly.
const SLOW_LOOKED_AT: usize = 50;

/// Endpoints that are visited in one round, and that are named among those that it waits for.
const VISITED: usize = 32;
const NAMED: usize = 8;

const FULL: &str = "Redis is full: raise maxmemory or free memory";

/// What one round came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Moved,
    /// The owner has something to claim.
    Due,
    Waits,
    /// Nothing is left to do.
    Ended,
    /// It is to be read again.
    Stale,
    Lost,
}

pub struct Job {
    operation: Operation,
    is_laid: bool,
    places: HashMap<EndpointId, String>,
    /// Whose turn it is.
    turns: VecDeque<EndpointId>,
    lanes: HashMap<EndpointId, Lane>,
    under_way: BTreeMap<DeliveryId, Became>,
    /// Where the look at those that are slow goes on.
    slow_after: Option<DeliveryId>,
    bucket: Bucket,
    erasure: Option<Erasure>,
    /// What it waits for beside endpoints that fail.
    waits: Vec<String>,
}

impl Job {
    pub fn new(
        operation: Operation,
        places: Vec<(EndpointId, String)>,
        own: impl Iterator<Item = DeliveryId>,
        now: Instant,
    ) -> Self {
        let mut job = Self {
            operation,
            is_laid: false,
            turns: places.iter().map(|(endpoint, _)| endpoint.clone()).collect(),
            places: places.into_iter().collect(),
            lanes: HashMap::new(),
            under_way: BTreeMap::new(),
            slow_after: None,
            bucket: Bucket::new(now, rand::random()),
            erasure: None,
            waits: Vec::new(),
        };
        own.for_each(|id| job.took(id));
        job
    }

    /// Those that go out at the moment.
    pub fn going(&self) -> usize {
        self.lanes.values().map(Lane::going).sum()
    }

    pub fn open(&self) -> usize {
        self.under_way.len()
    }

    fn took(&mut self, id: DeliveryId) {
        self.lanes.entry(id.endpoint.clone()).or_default().took(Became::Asked);
        self.under_way.insert(id, Became::Asked);
    }

    /// Sees what became of what it has under way, and takes up to `room` more.
    pub async fn step(
        &mut self,
        now: Instant,
        room: usize,
        store: &mut Work,
        queries: &mut Queries,
        registry: &Registry,
        history: &History,
    ) -> Result<Step, StoreError> {
        let is_gone = self.operation.plan.selection.endpoint.as_ref().is_some_and(|id| registry.get(id).is_none());
        let (mut has_moved, mut booked) = (false, None);
        for part in self.looked_at() {
            let waits = self.told();
            let found = match store.book(&self.operation.id, self.operation.plan.kind, is_gone, &waits, &part).await? {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(Step::Stale),
                Err(Lost) => return Ok(Step::Lost),
            };
            has_moved |= self.booked(now, &part, &found);
            booked = Some(found);
        }
        let Some(Booked { state, rate, is_laid, open, .. }) = booked else { return Ok(Step::Waits) };
        self.is_laid |= is_laid;
        if open != self.under_way.len() as u64 {
            return Ok(Step::Stale);
        }
        match state {
            State::Running if !self.is_laid => return self.lay(store, queries).await,
            State::Running => {}
            State::Paused => {
                // Nothing is saved up meanwhile.
                self.bucket = Bucket::new(now, rand::random());
                return Ok(if has_moved { Step::Moved } else { Step::Waits });
            }
            _ if open > 0 => return Ok(if has_moved { Step::Moved } else { Step::Waits }),
            _ => return Ok(Step::Ended),
        }
        let has_places = !matches!(self.operation.plan.kind, Kind::SendNow | Kind::Erase);
        if has_places && self.places.is_empty() && open == 0 {
            return Ok(Step::Ended);
        }
        let room = room.min(self.bucket.room(now, rate));
        let step = match self.operation.plan.kind {
            Kind::SendNow => return self.send(room, has_moved, store, registry).await,
            Kind::Replay => self.replay(now, room, store, registry, history).await?,
            Kind::Redeliver | Kind::Discard => self.take(now, room, store, queries, registry).await?,
            Kind::Erase => self.erase(room, store, queries, registry, history).await?,
        };
        match step {
            Step::Waits if has_moved => Ok(Step::Moved),
            step => Ok(step),
        }
    }

    /// In parts for one call each; one that looks at nothing still tells how the operation stands.
    fn looked_at(&mut self) -> Vec<Vec<DeliveryId>> {
        let is_slow = |became: &Became| became.is_slow();
        let quick = self.under_way.iter().filter(|(_, became)| !is_slow(became)).map(|(id, _)| id.clone());
        let mut all: Vec<DeliveryId> = quick.collect();
        let slow = self.under_way.iter().filter(|(_, became)| is_slow(became)).map(|(id, _)| id);
        let behind = slow.clone().filter(|id| self.slow_after.as_ref().is_none_or(|after| *id > after));
        let behind: Vec<DeliveryId> = behind.take(SLOW_LOOKED_AT).cloned().collect();
        self.slow_after = behind.last().filter(|_| behind.len() == SLOW_LOOKED_AT).cloned();
        all.extend(behind);
        if all.is_empty() {
            return vec![Vec::new()];
        }
        all.chunks(LOOKED_AT).map(<[DeliveryId]>::to_vec).collect()
    }

    /// Returns whether anything is otherwise than before.
    fn booked(&mut self, now: Instant, looked_at: &[DeliveryId], found: &Booked) -> bool {
        let mut has_moved = false;
        for (id, after) in looked_at.iter().zip(&found.became) {
            let Some(before) = self.under_way.get(id).copied() else { continue };
            has_moved |= before != *after;
            let lane = self.lanes.entry(id.endpoint.clone()).or_default();
            lane.became(now, before, *after);
            if lane.is_idle() {
                self.lanes.remove(&id.endpoint);
            }
            if after.has_ended() {
                self.under_way.remove(id);
            } else {
                self.under_way.insert(id.clone(), *after);
            }
        }
        has_moved
    }

    /// Finds at which endpoints there is something to do.
    async fn lay(&mut self, store: &mut Work, queries: &mut Queries) -> Result<Step, StoreError> {
        let selection = &self.operation.plan.selection;
        let endpoints: Vec<EndpointId> = match &selection.endpoint {
            // What it is about was listed with its plan.
            _ if matches!(self.operation.plan.kind, Kind::SendNow | Kind::Erase) => Vec::new(),
            Some(endpoint) => vec![endpoint.clone()],
            None => {
                let groups = queries.group_dead(&DeadFilter::from(selection), &[DeadKey::Endpoint]).await?;
                groups.into_keys().filter_map(|group| group.endpoint?.parse().ok()).collect()
            }
        };
        Ok(match store.lay(&self.operation.id, &endpoints).await? {
            Ok(()) => Step::Stale,
            Err(Lost) => Step::Lost,
        })
    }

    async fn take(
        &mut self,
        now: Instant,
        mut room: usize,
        store: &mut Work,
        queries: &mut Queries,
        registry: &Registry,
    ) -> Result<Step, StoreError> {
        self.waits.clear();
        if let Some(why) = paused(registry).filter(|_| self.operation.plan.kind == Kind::Redeliver) {
            self.waits.push(why);
            return Ok(Step::Waits);
        }
        let mut step = Step::Waits;
        for _ in 0..self.turns.len().min(VISITED) {
            if room == 0 {
                break;
            }
            let Some(endpoint) = self.turns.pop_front() else { break };
            let most = match self.why_not(&endpoint, registry) {
                Some(why) => {
                    self.waits.push(why);
                    0
                }
                None => self.lanes.get(&endpoint).map_or(usize::MAX, |lane| lane.room(now, self.operation.plan.kind)),
            };
            let most = most.min(room).min(LOOKED_AT).min(Lane::default().room(now, self.operation.plan.kind));
            if most > 0 {
                match self.take_of(&endpoint, most, store, queries).await? {
                    Ok(Some(taken)) => {
                        room = room.saturating_sub(taken);
                        self.bucket.took(taken);
                        step = Step::Moved;
                    }
                    Ok(None) => return Ok(step),
                    Err(stopped) => return Ok(stopped),
                }
            }
            if self.places.contains_key(&endpoint) {
                self.turns.push_back(endpoint);
            }
        }
        Ok(step)
    }

    async fn send(
        &mut self,
        room: usize,
        has_moved: bool,
        store: &mut Work,
        registry: &Registry,
    ) -> Result<Step, StoreError> {
        self.waits.clear();
        let waits = if has_moved { Step::Moved } else { Step::Waits };
        let endpoint = self.operation.plan.selection.endpoint.as_ref();
        let why_not = paused(registry).or_else(|| self.why_not(endpoint?, registry));
        if why_not.is_some() || room == 0 {
            self.waits.extend(why_not);
            return Ok(waits);
        }
        let Sent { left, under_way } = match store.send(&self.operation.id, room.min(LOOKED_AT)).await? {
            Ok(Some(sent)) => sent,
            Ok(None) => return Ok(waits),
            Err(Lost) => return Ok(Step::Lost),
        };
        self.bucket.took(under_way.len());
        let is_due = !under_way.is_empty();
        under_way.into_iter().for_each(|id| self.took(id));
        Ok(match (is_due, left) {
            (true, _) => Step::Due,
            (false, 0) if self.under_way.is_empty() => Step::Ended,
            (false, _) => waits,
        })
    }

    async fn erase(
        &mut self,
        room: usize,
        store: &mut Work,
        queries: &mut Queries,
        registry: &Registry,
        history: &History,
    ) -> Result<Step, StoreError> {
        self.waits.clear();
        let Operation { id, plan, .. } = &self.operation;
        let Some(account) = plan.selection.account.clone() else { return Ok(Step::Ended) };
        let (operation, by, why) = (id.clone(), plan.by.clone(), plan.why.clone());
        let erasure = match &mut self.erasure {
            Some(erasure) => erasure,
            none => {
                // A plan of an older Herald does not say.
                let last = match plan.selection.last_entry {
                    Some(last) => last,
                    None => queries.last_entry().await?,
                };
                none.insert(Erasure::new(Order { operation, account, last, by, why }))
            }
        };
        Ok(match erasure.step(room, &mut Means { store, queries, registry, history }).await? {
            Erasing::Moved => Step::Moved,
            Erasing::Dropped(count) => {
                self.bucket.took(count);
                Step::Moved
            }
            Erasing::Waits(why) => {
                self.waits.extend(Some(why).filter(|why| !why.is_empty()));
                Step::Waits
            }
            Erasing::Finished => Step::Ended,
            Erasing::Lost => Step::Lost,
        })
    }

    /// Adds the next events of the history to the stream again.
    async fn replay(
        &mut self,
        now: Instant,
        room: usize,
        store: &mut Work,
        registry: &Registry,
        history: &History,
    ) -> Result<Step, StoreError> {
        self.waits.clear();
        let Some((endpoint, before)) = self.places.iter().next() else { return Ok(Step::Waits) };
        let (endpoint, before) = (endpoint.clone(), before.clone());
        if let Some(why) = paused(registry).or_else(|| self.why_not(&endpoint, registry)) {
            self.waits.push(why);
            return Ok(Step::Waits);
        }
        let most = self.lanes.get(&endpoint).unwrap_or(&Lane::default()).room(now, Kind::Replay).min(room);
        if most == 0 {
            return Ok(Step::Waits);
        }
        let selection = &self.operation.plan.selection;
        let (events, is_last) = match plan::next_events(history, selection, event_place_of(&before), most).await {
            Ok(found) => found,
            Err(why) => {
                self.waits.push(format!("the history: {why}"));
                return Ok(Step::Waits);
            }
        };
        let after = match (events.last(), is_last) {
            (_, true) | (None, _) => None,
            (Some(last), false) => Some(event_place_text(last.place())),
        };
        let refusal = refusal(registry, &endpoint, selection.account.as_ref());
        let events = events.into_iter().map(KeptEvent::into_raw).collect();
        let replaying = Replaying { endpoint: endpoint.clone(), before, after, refusal, events };
        let taken = match store.replay(&self.operation.id, &replaying).await {
            Err(StoreError::OutOfMemory { .. }) => {
                self.waits.push(FULL.to_owned());
                return Ok(Step::Waits);
            }
            taken => taken?,
        };
        Ok(match taken {
            Err(Lost) => Step::Lost,
            Ok(Taken::Moved) => Step::Stale,
            Ok(Taken::Stuck(why)) => {
                self.waits.push(format!("the stream takes nothing: {why}"));
                Step::Waits
            }
            Ok(Taken::Stopped | Taken::Busy) => Step::Waits,
            Ok(Taken::Some(under_way)) => {
                match replaying.after {
                    Some(after) => drop(self.places.insert(endpoint, after)),
                    None => drop(self.places.remove(&endpoint)),
                }
                self.bucket.took(replaying.events.len());
                under_way.into_iter().for_each(|id| self.took(id));
                Step::Moved
            }
        })
    }

    /// Why an endpoint gets nothing, whatever it has under way.
    fn why_not(&self, endpoint: &EndpointId, registry: &Registry) -> Option<String> {
        if self.operation.plan.kind == Kind::Discard {
            return None;
        }
        match registry.get(endpoint).as_deref().map(|endpoint| &endpoint.status) {
            Some(EndpointState::Paused(mark)) => Some(format!("{endpoint}: paused by {}: {}", mark.by, mark.why)),
            None if registry.is_unreadable(endpoint) => Some(format!("{endpoint}: this Herald cannot read it")),
            // Where nothing can be delivered any more, the owner refuses and says why.
            Some(EndpointState::Enabled | EndpointState::Disabled(_)) | None => None,
        }
    }

    /// Takes up to `most` of an endpoint's next letters. None if they have to wait: Redis is full, or the owner is behind.
    async fn take_of(
        &mut self,
        endpoint: &EndpointId,
        most: usize,
        store: &mut Work,
        queries: &mut Queries,
    ) -> Result<Result<Option<usize>, Step>, StoreError> {
        let plan = &self.operation.plan;
        let before = self.places.get(endpoint).cloned().unwrap_or_default();
        let filter = DeadFilter { endpoint: Some(endpoint.clone()), ..DeadFilter::from(&plan.selection) };
        let place = place_of(&before);
        let after = place.as_ref().map(|(at_ms, id)| DeadCursor::new(*at_ms, id));
        let page = queries.find_dead(&filter, DeadOrder::OldestFirst, after.as_ref(), most).await?;
        let found = page.letters.len();
        let letters: Vec<FoundDead> =
            page.letters.into_iter().take_while(|letter| plan.selection.includes(letter.at_ms, &letter.id)).collect();
        let is_last = page.next.is_none() || letters.len() < found;
        let chains = self.chains(&filter, endpoint, place.as_ref(), &letters, store, queries).await?;
        let Chosen { letters, passed, is_whole } = choose(letters, &chains, most, |id| self.under_way.contains_key(id));
        let after = match (passed, is_last && is_whole) {
            (_, true) => None,
            (Some((at_ms, id)), false) => Some(format!("{at_ms} {id}")),
            (None, false) => Some(before.clone()),
        };
        let mark = Mark { by: plan.by.clone(), why: why_of(&plan.why, &self.operation.id), at_ms: clock::wall_ms() };
        let taking = Taking { endpoint: endpoint.clone(), before, after, letters };
        let taken = match store.take(&self.operation.id, plan.kind, &mark, &taking).await {
            Ok(taken) => taken,
            Err(StoreError::OutOfMemory { .. }) => {
                self.waits.push(FULL.to_owned());
                self.turns.push_back(endpoint.clone());
                return Ok(Ok(None));
            }
            Err(error) => return Err(error),
        };
        Ok(match taken {
            Err(Lost) => Err(Step::Lost),
            Ok(Taken::Moved) => Err(Step::Stale),
            Ok(Taken::Stopped | Taken::Busy | Taken::Stuck(_)) => {
                self.turns.push_back(endpoint.clone());
                Ok(None)
            }
            Ok(Taken::Some(under_way)) => {
                match taking.after {
                    Some(after) => drop(self.places.insert(endpoint.clone(), after)),
                    None => drop(self.places.remove(endpoint)),
                }
                let count = under_way.len();
                under_way.into_iter().for_each(|id| self.took(id));
                Ok(Some(count))
            }
        })
    }

    /// Of each intent of these letters that has several in this operation, all that are left, as they lie in the stream.
    async fn chains(
        &self,
        filter: &DeadFilter,
        endpoint: &EndpointId,
        place: Option<&(u64, DeliveryId)>,
        letters: &[FoundDead],
        store: &mut Work,
        queries: &mut Queries,
    ) -> Result<HashMap<IntentId, Vec<(DeliveryId, u64)>>, StoreError> {
        if self.operation.plan.kind != Kind::Redeliver {
            return Ok(HashMap::new());
        }
        let intents = letters.iter().filter_map(|letter| letter.facts.as_ref()?.intent.clone());
        let intents: Vec<IntentId> = intents.collect::<HashSet<_>>().into_iter().collect();
        let mut chains = HashMap::new();
        for (intent, some) in intents.iter().zip(store.of_intents(&intents).await?) {
            if some.iter().filter(|id| id.endpoint == *endpoint).count() < 2 && some.len() < 2 {
                continue;
            }
            let of_intent = DeadFilter { intent: Some(intent.clone()), ..filter.clone() };
            let (mut chain, mut after) = (Vec::new(), None);
            loop {
                let page = queries.find_dead(&of_intent, DeadOrder::OldestFirst, after.as_ref(), MAX_PAGE).await?;
                chain.extend(page.letters.into_iter().map(|letter| (letter.id, letter.at_ms)));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            let selection = &self.operation.plan.selection;
            let key = |at_ms: u64, id: &DeliveryId| (at_ms, id.to_string());
            let passed = place.map(|(at_ms, id)| key(*at_ms, id));
            chain.retain(|(id, at_ms)| {
                selection.includes(*at_ms, id) && passed.as_ref().is_none_or(|passed| key(*at_ms, id) > *passed)
            });
            chain.sort_unstable();
            chains.insert(intent.clone(), chain);
        }
        Ok(chains)
    }

    /// What it waits for, in words.
    fn told(&self) -> Vec<String> {
        let mut waits = self.waits.clone();
        let failing = self.lanes.iter().filter(|(endpoint, _)| self.places.contains_key(*endpoint));
        waits.extend(failing.filter_map(|(endpoint, lane)| Some(format!("{endpoint}: {}", lane.waits()?))));
        waits.sort_unstable();
        let more = waits.len().saturating_sub(NAMED);
        waits.truncate(NAMED);
        if more > 0 {
            waits.push(format!("and {more} more"));
        }
        waits
    }
}

fn paused(registry: &Registry) -> Option<String> {
    registry.paused_all().map(|mark| format!("all sending is paused by {}: {}", mark.by, mark.why))
}

/// Why an event is not sent to this endpoint again; None if it is.
fn refusal(registry: &Registry, endpoint: &EndpointId, account: Option<&AccountId>) -> Option<String> {
    match registry.get(endpoint).as_deref() {
        None => Some("its endpoint was deleted".to_owned()),
        Some(endpoint) if account.is_some_and(|account| endpoint.account != *account) => {
            Some(format!("its endpoint is of {} now", endpoint.account))
        }
        Some(endpoint) => match &endpoint.status {
            EndpointState::Disabled(mark) => Some(format!("its endpoint is disabled by {}: {}", mark.by, mark.why)),
            EndpointState::Enabled | EndpointState::Paused(_) => None,
        },
    }
}

/// A place among the events of the history; the beginning for what is none.
fn event_place_of(text: &str) -> EventPlace {
    let read = || {
        let (day, entry) = text.split_once(' ')?;
        Some(EventPlace { day: day.parse().ok()?, entry: entry.parse().ok()? })
    };
    read().unwrap_or_default()
}

fn event_place_text(place: EventPlace) -> String {
    format!("{} {}", place.day, place.entry)
}

/// A place of an endpoint: just behind this letter. None at the beginning.
fn place_of(text: &str) -> Option<(u64, DeliveryId)> {
    let (at_ms, id) = text.split_once(' ')?;
    Some((at_ms.parse().ok()?, id.parse().ok()?))
}

struct Chosen {
    letters: Vec<(DeliveryId, u64)>,
    /// The last of the walk that needs no other look.
    passed: Option<(u64, DeliveryId)>,
    /// All that were found are.
    is_whole: bool,
}

/// The next letters, each behind those of its chain that come before it: an intent's events go out again in their order, although
/// they may have died in another.
fn choose(
    found: Vec<FoundDead>,
    chains: &HashMap<IntentId, Vec<(DeliveryId, u64)>>,
    most: usize,
    is_under_way: impl Fn(&DeliveryId) -> bool,
) -> Chosen {
    let (mut letters, mut chosen, mut passed) = (Vec::new(), HashSet::new(), None);
    for letter in found {
        let chain = letter.facts.as_ref().and_then(|facts| chains.get(facts.intent.as_ref()?));
        let before = chain.into_iter().flatten().take_while(|(id, _)| *id < letter.id).cloned();
        for (id, at_ms) in before.chain([(letter.id.clone(), letter.at_ms)]) {
            if is_under_way(&id) || chosen.contains(&id) {
                continue;
            }
            if letters.len() == most {
                return Chosen { letters, passed, is_whole: false };
            }
            chosen.insert(id.clone());
            letters.push((id, at_ms));
        }
        passed = Some((letter.at_ms, letter.id));
    }
    Chosen { letters, passed, is_whole: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::letter::LetterFacts;

    fn letter(at_ms: u64, id: &str, intent: &str) -> FoundDead {
        let facts = LetterFacts { intent: intent.parse().ok(), ..LetterFacts::unreadable() };
        FoundDead { id: id.parse().unwrap(), at_ms, facts: Some(facts) }
    }

    #[test]
    fn an_intents_letters_go_in_the_order_of_the_stream_whenever_they_died() {
        let found =
            vec![letter(5, "20-0:ep_a", "pi_1"), letter(6, "30-0:ep_a", "pi_2"), letter(9, "10-0:ep_a", "pi_1")];
        let chain = vec![("10-0:ep_a".parse().unwrap(), 9), ("20-0:ep_a".parse().unwrap(), 5)];
        let chains = HashMap::from([("pi_1".parse().unwrap(), chain)]);
        let names = |chosen: &Chosen| chosen.letters.iter().map(|(id, _)| id.entry.ms).collect::<Vec<_>>();
        let all = choose(found.clone(), &chains, 9, |_| false);
        assert_eq!((names(&all), all.is_whole), (vec![10, 20, 30], true));
        // Where there is no room for the whole chain, its beginning goes, and the place stays.
        let one = choose(found.clone(), &chains, 1, |_| false);
        assert_eq!((names(&one), one.passed.is_none(), one.is_whole), (vec![10], true, false));
        let then = choose(found, &chains, 2, |id| id.entry.ms == 10);
        assert_eq!((names(&then), then.is_whole), (vec![20, 30], true));
        assert_eq!(then.passed.unwrap().0, 9);
    }

    #[test]
    fn a_place_is_read_as_it_is_written() {
        assert_eq!(place_of(""), None);
        assert_eq!(place_of("17 9-0:ep_a"), Some((17, "9-0:ep_a".parse().unwrap())));
        let place = EventPlace { day: 20_000, entry: "9-7".parse().unwrap() };
        assert_eq!(event_place_of(&event_place_text(place)), place);
        assert_eq!(event_place_of(""), EventPlace::default());
    }
}

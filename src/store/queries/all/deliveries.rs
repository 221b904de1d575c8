//! Unfinished deliveries of all partitions, their chains, and the lines of their logs.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{Partitions, share};
use crate::{
    facts::{
        id::{AccountId, DeliveryId, EndpointId, EntryId, IntentId},
        partition::Mode,
    },
    store::{
        error::StoreError,
        queries::{
            ChainHead, EntryStanding, LogFilter, LogPage, MAX_PAGE, Outcome, Queries, Totals, Unfinished, Whereabouts,
        },
    },
};

/// Lines of a log that are looked at however many logs there are.
const LEAST_LINES: usize = 5_000;

/// A walk through the chains of an endpoint goes through one partition after the other, the innermost first, and its place tells which
/// one it is in.
struct Walk {
    cursor: u64,
    stage: u64,
    stages: u64,
}

impl Walk {
    fn at(place: u64, stages: u64) -> Self {
        Self { cursor: place / stages, stage: place % stages, stages }
    }

    fn place(&self) -> u64 {
        self.cursor * self.stages + self.stage
    }
}

impl Partitions {
    /// One delivery, wherever its record stands.
    pub async fn whereabouts(&mut self, id: &DeliveryId) -> Result<Whereabouts, StoreError> {
        let asked = self.concerned(None, Some(&id.endpoint)).await;
        let found = self.ask_for(&asked, |mut one| async move { one.find(id).await }).await?;
        let is_there = |found: &Whereabouts| *found != Whereabouts::NoRecord;
        Ok(found.into_iter().rev().find(is_there).unwrap_or(Whereabouts::NoRecord))
    }

    pub async fn totals(&mut self, endpoint: &EndpointId) -> Result<Totals, StoreError> {
        let asked = self.concerned(None, Some(endpoint)).await;
        let found = self.ask_for(&asked, |mut one| async move { one.totals(endpoint).await }).await?;
        Ok(found.into_iter().fold(Totals::default(), |sum, one| Totals {
            unfinished: sum.unfinished + one.unfinished,
            chains: sum.chains + one.chains,
            held: sum.held + one.held,
            parked: sum.parked + one.parked,
            dead: sum.dead + one.dead,
        }))
    }

    /// How many deliveries are due, now or later, and how many their owners have taken.
    pub async fn due_and_claimed(&mut self) -> Result<(u64, u64), StoreError> {
        let asked = self.everywhere();
        let found = self.ask_for(&asked, |mut one| async move { one.due_and_claimed().await }).await?;
        Ok(found.into_iter().fold((0, 0), |sum, (due, claimed)| (sum.0 + due, sum.1 + claimed)))
    }

    /// The endpoints that have unfinished records, with their numbers, most first. Looks at up to `max` of each partition.
    pub async fn busy_endpoints(&mut self, max: usize) -> Result<Vec<(EndpointId, u64)>, StoreError> {
        let asked = self.everywhere();
        let found = self.ask_for(&asked, |mut one| async move { one.busy_endpoints(max).await }).await?;
        let mut sums = BTreeMap::<EndpointId, u64>::new();
        found.into_iter().flatten().for_each(|(endpoint, count)| *sums.entry(endpoint).or_default() += count);
        let mut busy: Vec<(EndpointId, u64)> = sums.into_iter().collect();
        busy.sort_by_key(|(_, count)| Reverse(*count));
        busy.truncate(max);
        Ok(busy)
    }

    /// The ids of what is unfinished at one endpoint, or at all of them, after a look at about `max` of them; and whether these are
    /// all.
    pub async fn unfinished_ids(
        &mut self,
        endpoint: Option<&EndpointId>,
        max: usize,
    ) -> Result<(Vec<DeliveryId>, bool), StoreError> {
        let asked = self.concerned(None, endpoint).await;
        let most = if endpoint.is_some() { max } else { share(max, asked.len(), MAX_PAGE) };
        let found = self.ask_for(&asked, |mut one| async move { one.unfinished_ids(endpoint, most).await }).await?;
        let are_all = found.iter().all(|(_, is_complete)| *is_complete);
        let mut ids: Vec<DeliveryId> = found.into_iter().flat_map(|(ids, _)| ids).collect();
        if asked.len() > 1 {
            ids.sort_unstable();
            ids.dedup();
        }
        Ok((ids, are_all))
    }

    /// The ordered chain of one intent at every endpoint that has anything unfinished; the heads and up to `max` behind each.
    pub async fn unfinished_of_intent(&mut self, intent: &IntentId, max: usize) -> Result<Vec<Unfinished>, StoreError> {
        let asked = self.everywhere();
        Ok(sorted(self.ask_for(&asked, |mut one| async move { one.unfinished_of_intent(intent, max).await }).await?))
    }

    /// One chain, its head first; empty where the intent has nothing unfinished there.
    pub async fn chain(
        &mut self,
        endpoint: &EndpointId,
        intent: &IntentId,
        max: usize,
    ) -> Result<Vec<Unfinished>, StoreError> {
        let asked = self.concerned(None, Some(endpoint)).await;
        Ok(sorted(self.ask_for(&asked, |mut one| async move { one.chain(endpoint, intent, max).await }).await?))
    }

    /// The chains of an endpoint by the age of their head, after a look at up to `max` of them; and whether these are all.
    pub async fn chains(&mut self, endpoint: &EndpointId, max: usize) -> Result<(Vec<ChainHead>, bool), StoreError> {
        let asked = self.concerned(None, Some(endpoint)).await;
        let found = self.ask_for(&asked, |mut one| async move { one.chains(endpoint, max).await }).await?;
        let are_all = found.iter().all(|(_, is_complete)| *is_complete);
        let mut chains: Vec<ChainHead> = found.into_iter().flat_map(|(chains, _)| chains).collect();
        if asked.len() > 1 {
            chains.sort_by(|one, other| one.head.id.cmp(&other.head.id));
        }
        Ok((chains, are_all))
    }

    /// About `max` chains from a place of a walk on, which begins at 0, by the age of their head; and the place that follows, 0 at the
    /// end. Who walks on sees each chain that is there throughout, now and then one twice.
    pub async fn chains_from(
        &mut self,
        endpoint: &EndpointId,
        from: u64,
        max: usize,
    ) -> Result<(Vec<ChainHead>, u64), StoreError> {
        let mut asked = self.concerned(None, Some(endpoint)).await;
        asked.reverse();
        let mut walk = Walk::at(from, asked.len().max(1) as u64);
        let mut chains = Vec::<ChainHead>::new();
        while let Some(at) = usize::try_from(walk.stage).ok().and_then(|stage| asked.get(stage)) {
            let (cursor, left) = (walk.cursor, max - chains.len());
            let page =
                self.ask_for(&[*at], |mut one| async move { one.chains_from(endpoint, cursor, left).await }).await;
            let (found, next) = match page {
                Ok(mut page) => page.pop().unwrap_or_default(),
                // Only one of several: it is named.
                Err(StoreError::Unavailable { .. }) if walk.stages > 1 => (Vec::new(), 0),
                Err(error) => return Err(error),
            };
            chains.extend(found);
            (walk.cursor, walk.stage) = if next > 0 { (next, walk.stage) } else { (0, walk.stage + 1) };
            if chains.len() >= max {
                break;
            }
        }
        if walk.stages > 1 {
            chains.sort_by(|one, other| one.head.id.cmp(&other.head.id));
        }
        Ok((chains, if walk.stage < walk.stages { walk.place() } else { 0 }))
    }

    /// Where these stand; those without a record are left out.
    pub async fn unfinished(&mut self, ids: &[DeliveryId]) -> Result<Vec<Unfinished>, StoreError> {
        if !self.are_many() {
            return self.root().unfinished(ids).await;
        }
        let look = |mut one: Queries, ids: Vec<DeliveryId>| async move {
            let mut found: BTreeMap<DeliveryId, Unfinished> =
                one.unfinished(&ids).await?.into_iter().map(|one| (one.id.clone(), one)).collect();
            Ok(ids.iter().map(|id| found.remove(id)).collect())
        };
        Ok(self.first_of_each(ids, |id| &id.endpoint, look).await?.into_iter().flatten().collect())
    }

    /// Where a delivery's entry stands that has no record.
    pub async fn entry_standing(&mut self, id: &DeliveryId) -> Result<EntryStanding, StoreError> {
        let asked = self.concerned(None, Some(&id.endpoint)).await;
        let entry = id.entry;
        let found = self.ask_for(&asked, |mut one| async move { one.entry_standing(entry).await }).await?;
        // What a part has not has either not come to it yet, or is over.
        Ok(found.into_iter().rev().find(|standing| *standing != EntryStanding::Gone).unwrap_or(EntryStanding::Gone))
    }

    /// What became of each of these, all of one account. Whichever stream of its path owes it, it is owed. Each must answer.
    pub async fn outcomes(
        &mut self,
        account: &AccountId,
        deliveries: &[DeliveryId],
    ) -> Result<Vec<Outcome>, StoreError> {
        if !self.are_many() {
            return self.root().outcomes(deliveries).await;
        }
        self.know(deliveries.iter().map(|id| (&id.endpoint, account)));
        let look = |mut one: Queries, ids: Vec<DeliveryId>| async move {
            // In this order: what is passed on, or gets a record, between two of them is owed, as it was before.
            let (routed, outcomes) = (one.routed().await?, one.outcomes(&ids).await?);
            let kept = one.are_kept(&ids).await?;
            Ok(outcomes.into_iter().zip(kept).map(|(outcome, is_kept)| (routed, outcome, is_kept)).collect())
        };
        let found = self.of_each(deliveries, |id| &id.endpoint, look).await?;
        self.must_all_answer()?;
        let outcome = |(id, answers): (&DeliveryId, Vec<(usize, _)>)| {
            let each = answers.into_iter().map(|(at, answer)| self.outcome_at(at, id.entry, answer));
            each.reduce(|inner, outer| if inner == Outcome::Settled { outer } else { inner })
                .unwrap_or(Outcome::Settled)
        };
        Ok(deliveries.iter().zip(found).map(outcome).collect())
    }

    /// What one stream's answer says of a delivery: an entry that it has not read may be none of its own.
    fn outcome_at(
        &self,
        at: usize,
        entry: EntryId,
        (routed, outcome, is_kept): (Option<EntryId>, Outcome, bool),
    ) -> Outcome {
        if is_kept || outcome == Outcome::Dead {
            return outcome;
        }
        let stream = self.all[at].keys.stream();
        let barrier_of = |stream: &str| match self.layout.mode(stream) {
            Mode::Routed { barrier, .. } => Some(*barrier),
            Mode::Worked | Mode::Splitting { .. } => None,
        };
        let barrier = stream.rsplit_once(':').filter(|_| at > 0).and_then(|(above, _)| barrier_of(above));
        match (barrier_of(stream), barrier) {
            // It passes on what it has not delivered, and its part knows of that.
            (Some(_), _) => Outcome::Settled,
            // It was delivered before there was this part, or handed over to it with its record.
            (None, Some(barrier)) if entry <= barrier => Outcome::Settled,
            (None, Some(_)) if routed < Some(entry) => Outcome::Owed { next_ms: None },
            (None, _) => outcome,
        }
    }

    /// Lines of all logs that a history has still to read, and when the first of them began to wait for it; None if there is none that
    /// can be read.
    pub async fn logged_beyond(&mut self, read: &BTreeMap<String, u64>) -> Result<(u64, Option<u64>), StoreError> {
        let asked = self.everywhere();
        let look = |mut one: Queries| async move {
            let line = read.get(one.keys.stream()).copied().unwrap_or(0);
            Ok((one.log_end().await?.saturating_sub(line), one.logged_after_ms(line).await?))
        };
        let found = self.ask_for(&asked, look).await?;
        let waits_since_ms = found.iter().filter_map(|(_, since_ms)| *since_ms).min();
        Ok((found.into_iter().map(|(behind, _)| behind).sum(), waits_since_ms))
    }

    /// Up to `max` matching lines, after a look at up to `max_look` lines, of all logs together.
    pub async fn attempts(&mut self, filter: &LogFilter, max: usize, max_look: usize) -> Result<LogPage, StoreError> {
        self.attempts_beyond(&BTreeMap::new(), filter, max, max_look).await
    }

    /// The same; of a stream that a history has read up to some line, only what is behind that.
    pub async fn attempts_beyond(
        &mut self,
        read: &BTreeMap<String, u64>,
        filter: &LogFilter,
        max: usize,
        max_look: usize,
    ) -> Result<LogPage, StoreError> {
        let endpoint = filter.endpoint.as_ref().or(filter.delivery.as_ref().map(|delivery| &delivery.endpoint));
        let asked = self.concerned(filter.account.as_ref(), endpoint).await;
        let most = share(max_look, asked.len(), LEAST_LINES);
        let look = |_, mut one: Queries| {
            let after = read.get(one.keys.stream()).copied().max(filter.after);
            let filter = LogFilter { after, ..filter.clone() };
            async move { one.attempts(&filter, max, most).await }
        };
        let mut pages: Vec<LogPage> = self.ask(&asked, look).await?.into_iter().map(|(_, page)| page).collect();
        match pages.len() {
            1 => Ok(pages.remove(0)),
            _ => Ok(merged(pages, max)),
        }
    }
}

fn sorted(found: Vec<Vec<Unfinished>>) -> Vec<Unfinished> {
    let is_of_one = found.len() == 1;
    let mut found: Vec<Unfinished> = found.into_iter().flatten().collect();
    if !is_of_one {
        found.sort_by(|one, other| one.id.cmp(&other.id));
        found.dedup_by(|one, other| one.id == other.id);
    }
    found
}

/// The newest lines of several logs. Of a log whose look fell short nothing older is known, so it reaches no further back than that.
fn merged(pages: Vec<LogPage>, max: usize) -> LogPage {
    let fell_short = |page: &LogPage| !page.reached_end && page.lines.len() < max;
    let back_to = |pages: &mut dyn Iterator<Item = &LogPage>| pages.filter_map(|page| page.back_to_ms).max();
    let (cut, oldest) = (
        back_to(&mut pages.iter().filter(|page| !page.reached_end || page.was_cut)),
        pages.iter().filter_map(|page| page.back_to_ms).min(),
    );
    let mut all = LogPage {
        looked: pages.iter().map(|page| page.looked).sum(),
        back_to_ms: cut.or(oldest),
        reached_end: pages.iter().all(|page| page.reached_end),
        was_cut: pages.iter().any(|page| page.was_cut),
        fell_short: pages.iter().any(fell_short),
        unreadable: pages.iter().map(|page| page.unreadable).sum(),
        lines: pages.into_iter().flat_map(|page| page.lines).collect(),
    };
    all.lines.sort_by_key(|line| Reverse(line.at_ms()));
    all.lines.truncate(max);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_through_one_partition_has_the_places_of_redis_own() {
        for place in [0, 1, 17, 1 << 40] {
            assert_eq!((Walk::at(place, 1).cursor, Walk::at(place, 1).place()), (place, place));
            let walk = Walk::at(place, 3);
            assert_eq!((walk.place(), walk.stage < 3), (place, true));
        }
    }
}

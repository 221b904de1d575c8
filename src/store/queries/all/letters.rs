//! Dead letters of all partitions: by the time at which they were given up, and by their ids within one.

use std::collections::{BTreeMap, HashSet};

use super::Partitions;
use crate::{
    facts::{id::DeliveryId, letter::LetterFacts},
    store::{
        error::StoreError,
        queries::{
            DeadCursor, DeadFilter, DeadGroup, DeadKey, DeadOrder, DeadRange, DeadTotals, FoundDead, FoundPage, Letter,
            MAX_PAGE, dead_index::page_of,
        },
    },
};

impl Partitions {
    /// How many dead letters are in the range.
    pub async fn count_dead(&mut self, range: &DeadRange) -> Result<u64, StoreError> {
        let asked = self.concerned(None, range.endpoint.as_ref()).await;
        Ok(self.ask_for(&asked, |mut one| async move { one.count_dead(range).await }).await?.into_iter().sum())
    }

    /// By how many the letters and what the indexes know differ.
    pub async fn unindexed_dead(&mut self) -> Result<u64, StoreError> {
        let asked = self.everywhere();
        Ok(self.ask_for(&asked, |mut one| async move { one.unindexed_dead().await }).await?.into_iter().sum())
    }

    /// How many letters fit.
    pub async fn count_dead_where(&mut self, filter: &DeadFilter) -> Result<u64, StoreError> {
        let asked = self.concerned(filter.account.as_ref(), filter.endpoint.as_ref()).await;
        Ok(self.ask_for(&asked, |mut one| async move { one.count_dead_where(filter).await }).await?.into_iter().sum())
    }

    /// At most `max` letters after the cursor. Those that come or go meanwhile neither repeat nor hide others.
    pub async fn find_dead(
        &mut self,
        filter: &DeadFilter,
        order: DeadOrder,
        after: Option<&DeadCursor>,
        max: usize,
    ) -> Result<FoundPage, StoreError> {
        let max = max.clamp(1, MAX_PAGE);
        let asked = self.concerned(filter.account.as_ref(), filter.endpoint.as_ref()).await;
        let pages =
            self.ask_for(&asked, |mut one| async move { one.find_dead(filter, order, after, max).await }).await?;
        let mut has_more = pages.iter().any(|page| page.next.is_some());
        let mut letters: Vec<FoundDead> = pages.into_iter().flat_map(|page| page.letters).collect();
        if asked.len() > 1 {
            // While its stream is being split, a letter may be in two.
            let mut seen = HashSet::new();
            letters.retain(|letter| seen.insert(letter.id.clone()));
            has_more |= letters.len() > max;
            letters = page_of(letters, order, after, max);
        }
        let last = letters.last().filter(|_| has_more);
        let next = last.map(|last| DeadCursor { at_ms: last.at_ms, id: last.id.to_string() });
        Ok(FoundPage { letters, next })
    }

    /// How many letters fit, by what is asked for, with the times of the first and the last.
    pub async fn group_dead(
        &mut self,
        filter: &DeadFilter,
        by: &[DeadKey],
    ) -> Result<BTreeMap<DeadGroup, DeadTotals>, StoreError> {
        let asked = self.concerned(filter.account.as_ref(), filter.endpoint.as_ref()).await;
        let mut groups = BTreeMap::<DeadGroup, DeadTotals>::new();
        for found in self.ask_for(&asked, |mut one| async move { one.group_dead(filter, by).await }).await? {
            for (group, totals) in found {
                groups.entry(group).and_modify(|known| *known = known.and(totals)).or_insert(totals);
            }
        }
        Ok(groups)
    }

    pub async fn dead_letter(&mut self, id: &DeliveryId) -> Result<Option<Letter>, StoreError> {
        let asked = self.concerned(None, Some(&id.endpoint)).await;
        let found = self.ask_for(&asked, |mut one| async move { one.dead_letter(id).await }).await?;
        Ok(found.into_iter().rev().flatten().next())
    }

    /// These letters, whole.
    pub async fn letters(&mut self, ids: Vec<(DeliveryId, u64)>) -> Result<Vec<Letter>, StoreError> {
        let read = |mut one: super::Queries, ids: Vec<(DeliveryId, u64)>| async move { one.letters_there(&ids).await };
        let found = self.first_of_each(&ids, |(id, _)| &id.endpoint, read).await?;
        let letter = |((id, at_ms), found): (_, Option<Letter>)| found.unwrap_or_else(|| Letter::removed(id, at_ms));
        Ok(ids.into_iter().zip(found).map(letter).collect())
    }

    /// With what letters that stand in no index yet say themselves.
    pub async fn with_known_facts(&mut self, mut letters: Vec<FoundDead>) -> Result<Vec<FoundDead>, StoreError> {
        let unknown = letters.iter().filter(|letter| letter.facts.is_none());
        let unknown: Vec<_> = unknown.map(|letter| (letter.id.clone(), letter.at_ms)).collect();
        let mut read = self.letters(unknown).await?.into_iter();
        for letter in letters.iter_mut().filter(|letter| letter.facts.is_none()) {
            letter.facts = read
                .next()
                .map(|read| read.letter.map_or_else(|_| LetterFacts::unreadable(), |dead| LetterFacts::of(&dead)));
        }
        Ok(letters)
    }
}

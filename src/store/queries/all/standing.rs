//! How all partitions stand: what waits in them and who works on them, how their receivers do, and what is in their quarantines.

use super::Partitions;
use crate::{
    facts::{
        health::{Health, Waiting},
        id::{AccountId, DeliveryId, EndpointId, EntryId, EventId},
        issue::{IssueId, Said},
        partition::{Mode, Slot, part_of},
        unserved::Unserved,
    },
    store::{
        entries::{Entries, Search, StreamEntry},
        error::StoreError,
        keys::PartitionKeys,
        protocol::GROUP,
        queries::{
            ConsumerLook, DeadFilter, DeadKey, IssuesLook, LeaseLook, MAX_PAGE, Quarantined, Queries, Survey,
            health::letters_by_issue,
        },
        registry::RegistryStore,
        watch::is_passed,
    },
};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

/// One partition at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionLook {
    pub stream: String,
    pub mode: Mode,
    pub slot: Slot,
    pub lease: Option<LeaseLook>,
    /// Entries that nobody has read, or that are not routed yet; None where Redis does not know.
    pub behind: Option<u64>,
    /// There are more of these than were counted.
    pub has_more_behind: bool,
    /// The first of them.
    pub oldest_behind: Option<EntryId>,
    /// Entries that were read and are not settled.
    pub pending: u64,
    pub due: u64,
    pub claimed: u64,
    pub unfinished: u64,
    pub dead: u64,
    pub quarantined: u64,
    /// Of a part: the last entry of its stream that it has, or that is not for it.
    pub routed: Option<EntryId>,
}

/// The entries of all partitions: each counts where it is delivered, and on its way there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    pub length: u64,
    pub added: u64,
    pub pending: u64,
    /// That nobody has read yet; None where Redis does not know.
    pub behind: Option<u64>,
    pub oldest_behind: Option<EntryId>,
    pub consumers: Vec<ConsumerLook>,
}

/// An entry in quarantine, and of which stream.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundQuarantined {
    pub place: QuarantinePlace,
    pub stream: String,
    pub one: Quarantined,
}

/// A place among all that is in quarantine: when it came there, and the streams of one time by their names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuarantinePlace {
    at: EntryId,
    /// The stream's name without the root's: nothing where there is one partition.
    part: String,
}

impl QuarantinePlace {
    /// From its text; none for what is no text of one.
    pub fn parse(text: &str) -> Option<Self> {
        let (at, part) = text.split_once(' ').unwrap_or((text, ""));
        let is_part = part.bytes().all(|byte| byte == b':' || byte.is_ascii_digit());
        Some(Self { at: at.parse().ok().filter(|_| is_part)?, part: part.to_owned() })
    }
}

impl fmt::Display for QuarantinePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part.is_empty() {
            true => write!(f, "{}", self.at),
            false => write!(f, "{} {}", self.at, self.part),
        }
    }
}

/// On which side of a place a page of the quarantine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuarantineSide<'a> {
    After(Option<&'a QuarantinePlace>),
    Before(&'a QuarantinePlace),
}

impl Partitions {
    /// Each at a glance.
    pub async fn look(&mut self) -> Result<Vec<PartitionLook>, StoreError> {
        let layout = self.layout.clone();
        let asked = self.everywhere();
        let look = |mut one: Queries| {
            let mode = layout.mode(one.keys.stream()).clone();
            async move { one.look(mode).await }
        };
        let mut looks = self.ask_for(&asked, look).await?;
        // How far a stream is routed, its parts tell.
        let routed: HashMap<String, Option<EntryId>> =
            looks.iter().map(|look| (look.stream.clone(), look.routed)).collect();
        for look in looks.iter_mut().filter(|look| matches!(look.mode, Mode::Routed { .. })) {
            let parts = (0..look.mode.parts().unwrap_or(0)).map(|part| {
                let part = part_of(&look.stream, part);
                routed.get(&part).copied().flatten()
            });
            let upto = parts.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().min());
            let Some(upto) = upto else { continue };
            if let Some(at) = self.all.iter().position(|one| one.keys.stream() == look.stream) {
                let behind = self.ask_for(&[at], |mut one| async move { one.behind(upto).await }).await?.pop();
                if let Some((count, oldest)) = behind {
                    (look.behind, look.oldest_behind) = (Some(count), oldest);
                    look.has_more_behind = count == MAX_PAGE as u64;
                }
            }
        }
        Ok(looks)
    }

    /// The entry of this id: in the stream that it came to, or else in a part.
    pub async fn entry(&mut self, id: EntryId) -> Result<Option<StreamEntry>, StoreError> {
        let asked = self.everywhere();
        let look = |one: Queries| async move { Entries::new(one.connection.clone(), one.keys).get(id).await };
        Ok(self.ask_for(&asked, look).await?.into_iter().flatten().next())
    }

    /// Looks for an event by its own id, in each stream from the newest entry backwards, through about `most` entries in all.
    pub async fn search(&mut self, id: &EventId, most: u64) -> Result<Search, StoreError> {
        let asked = self.everywhere();
        let share = most / asked.len() as u64;
        let look = |one: Queries| async move { Entries::new(one.connection.clone(), one.keys).search(id, share).await };
        let found = self.ask_for(&asked, look).await?;
        let oldest = |found: &[Search], is_whole| {
            found.iter().filter(|one| one.is_whole == is_whole).filter_map(|one| one.back_to).collect::<Vec<_>>()
        };
        // Further back than where the first look ended, something may be missing.
        let back_to = oldest(&found, false).into_iter().max().or(oldest(&found, true).into_iter().min());
        let (looked_at, is_whole) = (found.iter().map(|one| one.looked_at).sum(), found.iter().all(|one| one.is_whole));
        let mut hits: Vec<StreamEntry> = found.into_iter().flat_map(|one| one.hits).collect();
        // What was routed is in two streams, under one id.
        hits.sort_by_key(|hit| std::cmp::Reverse(hit.id));
        hits.dedup_by(|one, other| one.id == other.id);
        Ok(Search { hits, looked_at, back_to, is_whole })
    }

    /// The last id that any stream of an account's path has given out: nothing of it has been accepted after that. Each must answer.
    pub async fn last_entry_of(&mut self, account: &AccountId) -> Result<EntryId, StoreError> {
        let asked = self.concerned(Some(account), None).await;
        let found = self.ask_for(&asked, |mut one| async move { one.last_entry().await }).await?;
        self.must_all_answer()?;
        Ok(found.into_iter().max().unwrap_or(EntryId::ZERO))
    }

    /// Whether nothing of an account waits any more that was accepted up to there: it has gone through its whole path. Each must answer.
    ///
    /// The streams of the path are asked one after the other, so that what passes from one to the next is in one of them. A part may have
    /// given out larger ids than the stream before it, and then what comes from there gets one beyond these: so it must pass everything
    /// that it has once that stream has passed on what is asked for. Whoever asks again asks for the same.
    pub async fn is_passed(&mut self, account: &AccountId, last: EntryId) -> Result<bool, StoreError> {
        let mut last = last;
        for at in self.concerned(Some(account), None).await {
            if at > 0 {
                last = self.end_behind(at, last).await?;
            }
            let look = |one: Queries| async move { is_passed(&mut one.connection.clone(), &one.keys, last).await };
            if !self.ask_for(&[at], look).await?.into_iter().all(|passed| passed) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where this part ended when it was first found that the stream before it had passed this entry.
    async fn end_behind(&mut self, at: usize, last: EntryId) -> Result<EntryId, StoreError> {
        if let Some(end) = self.ends.get(&(at, last)) {
            return Ok(*end);
        }
        let found = self.ask_for(&[at], |mut one| async move { one.last_entry().await }).await?;
        let end = found.into_iter().fold(last, EntryId::max);
        self.ends.insert((at, last), end);
        Ok(end)
    }

    pub(super) fn must_all_answer(&self) -> Result<(), StoreError> {
        self.why_unavailable().next().map_or(Ok(()), |why| Err(why.clone()))
    }

    /// What there is of entries, of those that deliver.
    pub async fn entries(&mut self) -> Result<Backlog, StoreError> {
        let asked = self.that_deliver();
        let found = self.ask_for(&asked, |mut one| async move { one.entries().await }).await?;
        let mut all = Backlog { behind: Some(0), ..Backlog::default() };
        for one in found {
            all.length += one.length;
            all.added += one.added;
            all.pending += one.pending;
            all.behind = all.behind.zip(one.behind).map(|(sum, one)| sum + one);
            all.oldest_behind = all.oldest_behind.into_iter().chain(one.oldest_behind).min();
            for consumer in one.consumers {
                match all.consumers.iter_mut().find(|known| known.name == consumer.name) {
                    Some(known) => {
                        known.pending += consumer.pending;
                        known.idle_ms = known.idle_ms.min(consumer.idle_ms);
                    }
                    None => all.consumers.push(consumer),
                }
            }
        }
        Ok(all)
    }

    /// Whether each of them that concern this endpoint, or all, has an owner.
    pub async fn are_owned(&mut self, endpoint: Option<&EndpointId>) -> Result<bool, StoreError> {
        let concerned = self.concerned(None, endpoint).await;
        let asked: Vec<usize> = self.that_deliver().into_iter().filter(|at| concerned.contains(at)).collect();
        Ok(self.ask_for(&asked, |mut one| async move { one.lease().await }).await?.iter().all(Option::is_some))
    }

    /// The registry that each of them is bound to.
    pub async fn bound_registries(&mut self) -> Result<Vec<(PartitionKeys, String)>, StoreError> {
        let asked = self.everywhere();
        let look =
            |mut one: Queries| async move { Ok(one.bound_registry().await?.map(|bound| (one.keys.clone(), bound))) };
        Ok(self.ask_for(&asked, look).await?.into_iter().flatten().collect())
    }

    /// What was published of each of these; None where nothing was.
    pub async fn health_of(&mut self, endpoints: &[EndpointId]) -> Result<Vec<Option<Health>>, StoreError> {
        let look = |mut one: Queries, ids: Vec<EndpointId>| async move { one.health_of(&ids).await };
        self.first_of_each(endpoints, |id| id, look).await
    }

    /// What waits for each of these, and how many letters there are; without the oldest.
    pub async fn waiting_of(&mut self, endpoints: &[EndpointId]) -> Result<Vec<Waiting>, StoreError> {
        let look = |mut one: Queries, ids: Vec<EndpointId>| async move { one.waiting_of(&ids).await };
        let found = self.of_each(endpoints, |id| id, look).await?;
        Ok(found.into_iter().map(|found| found.into_iter().map(|(_, one)| one).fold(Waiting::default(), sum)).collect())
    }

    /// One endpoint in full.
    pub async fn waiting_with_oldest(&mut self, endpoint: &EndpointId) -> Result<Waiting, StoreError> {
        let asked = self.concerned(None, Some(endpoint)).await;
        let found = self.ask_for(&asked, |mut one| async move { one.waiting_with_oldest(endpoint).await }).await?;
        Ok(found.into_iter().fold(Waiting::default(), sum))
    }

    /// Looks at all that was published.
    pub async fn survey(&mut self, now_ms: u64) -> Result<Survey, StoreError> {
        let asked = self.that_deliver();
        let found = self.ask_for(&asked, |mut one| async move { one.survey(now_ms).await }).await?;
        Ok(found.into_iter().reduce(Survey::and).unwrap_or_default())
    }

    /// Accounts with events that nobody is told of, or that are of an unknown type.
    pub async fn unserved(&mut self) -> Result<Vec<(AccountId, Unserved)>, StoreError> {
        let asked = self.that_deliver();
        Ok(self.ask_for(&asked, |mut one| async move { one.unserved().await }).await?.into_iter().flatten().collect())
    }

    /// All issues as of `now_ms`, by Redis' clock.
    pub async fn issues(&mut self, registry: &mut RegistryStore, now_ms: u64) -> Result<IssuesLook, StoreError> {
        let survey = self.survey(now_ms).await?;
        let by = [DeadKey::Endpoint, DeadKey::Account, DeadKey::Cause];
        let letters = letters_by_issue(self.group_dead(&DeadFilter::everything(), &by).await?);
        let asked = self.everywhere();
        let mut said = BTreeMap::<IssueId, Said>::new();
        for (issue, words) in
            self.ask_for(&asked, |mut one| async move { one.said().await }).await?.into_iter().flatten()
        {
            let is_newer = said.get(&issue).is_none_or(|known| known.mark.at_ms <= words.mark.at_ms);
            if is_newer {
                said.insert(issue, words);
            }
        }
        IssuesLook::of(survey, &letters, &said, registry, now_ms).await
    }

    pub async fn count_quarantined(&mut self) -> Result<u64, StoreError> {
        let asked = self.everywhere();
        Ok(self.ask_for(&asked, |mut one| async move { one.count_quarantined().await }).await?.into_iter().sum())
    }

    /// Up to `max` quarantined entries on one side of a place, the oldest first; and whether there may be more on that side.
    pub async fn quarantine(
        &mut self,
        side: QuarantineSide<'_>,
        max: usize,
    ) -> Result<(Vec<FoundQuarantined>, bool), StoreError> {
        let (root, asked) = (self.layout.root().to_owned(), self.everywhere());
        let part = |stream: &str| stream.strip_prefix(&root).unwrap_or(stream).to_owned();
        let part = &part;
        let look = |mut one: Queries| async move {
            let (stream, part) = (one.keys.stream().to_owned(), part(one.keys.stream()));
            let from = match side {
                QuarantineSide::After(None) => "-".to_owned(),
                // Of this very time, the parts behind it are still to come.
                QuarantineSide::After(Some(place)) if part > place.part => place.at.to_string(),
                QuarantineSide::Before(place) if part < place.part => place.at.to_string(),
                QuarantineSide::After(Some(place)) | QuarantineSide::Before(place) => format!("({}", place.at),
            };
            let (found, has_more) = match side {
                QuarantineSide::After(_) => one.quarantine_from(&from, max).await?,
                QuarantineSide::Before(_) => one.quarantine_until(&from, max).await?,
            };
            let place = |at| QuarantinePlace { at, part: part.clone() };
            let found =
                found.into_iter().map(|(at, one)| FoundQuarantined { place: place(at), stream: stream.clone(), one });
            Ok((found.collect::<Vec<_>>(), has_more))
        };
        let pages = self.ask_for(&asked, look).await?;
        let mut has_more = pages.iter().any(|(_, has_more)| *has_more);
        let mut found: Vec<FoundQuarantined> = pages.into_iter().flat_map(|(found, _)| found).collect();
        if asked.len() > 1 {
            found.sort_by(|one, other| one.place.cmp(&other.place));
            has_more |= found.len() > max;
            match side {
                QuarantineSide::After(_) => found.truncate(max),
                QuarantineSide::Before(_) => drop(found.drain(..found.len().saturating_sub(max))),
            }
        }
        Ok((found, has_more))
    }

    /// What has this id in the stream that it came to, of each stream that has one: the oldest.
    pub async fn quarantined(&mut self, entry: EntryId) -> Result<Vec<(PartitionKeys, Quarantined)>, StoreError> {
        let asked = self.everywhere();
        let look =
            |mut one: Queries| async move { Ok(one.quarantined(entry).await?.map(|found| (one.keys.clone(), found))) };
        Ok(self.ask_for(&asked, look).await?.into_iter().flatten().collect())
    }
}

fn sum(sum: Waiting, one: Waiting) -> Waiting {
    let earlier = |one: DeliveryId, other: DeliveryId| if one.entry <= other.entry { one } else { other };
    Waiting {
        unfinished: sum.unfinished + one.unfinished,
        parked: sum.parked + one.parked,
        letters: sum.letters + one.letters,
        oldest: match (sum.oldest, one.oldest) {
            (Some(first), Some(second)) => Some(earlier(first, second)),
            (first, second) => first.or(second),
        },
    }
}

/// How many endpoints' unfinished deliveries are counted.
const MAX_ENDPOINTS: usize = 100_000;

impl Queries {
    async fn entries(&mut self) -> Result<Backlog, StoreError> {
        let stream = self.stream().await?;
        let (length, added) = stream.map_or((0, 0), |stream| (stream.length, stream.added));
        let Some(group) = self.groups().await?.into_iter().find(|group| group.name == GROUP) else {
            return Ok(Backlog { length, added, behind: Some(added), ..Backlog::default() });
        };
        let oldest_behind = self.oldest_unread(group.last_delivered).await?;
        Ok(Backlog {
            length,
            added,
            pending: group.pending,
            behind: if oldest_behind.is_none() { Some(0) } else { group.read.map(|read| added.saturating_sub(read)) },
            oldest_behind,
            consumers: self.consumers().await?,
        })
    }

    async fn look(&mut self, mode: Mode) -> Result<PartitionLook, StoreError> {
        let Backlog { pending, behind, oldest_behind, .. } = self.entries().await?;
        // Of a routed stream its parts tell.
        let is_routed = matches!(mode, Mode::Routed { .. });
        let lease = self.lease().await?;
        let (due, claimed) = self.due_and_claimed().await?;
        let unfinished = self.busy_endpoints(MAX_ENDPOINTS).await?.into_iter().map(|(_, count)| count).sum();
        Ok(PartitionLook {
            stream: self.keys.stream().to_owned(),
            slot: self.keys.slot(),
            lease,
            behind: behind.filter(|_| !is_routed),
            has_more_behind: false,
            oldest_behind: oldest_behind.filter(|_| !is_routed),
            pending,
            due,
            claimed,
            unfinished,
            dead: self.count_dead_where(&DeadFilter::everything()).await?,
            quarantined: self.count_quarantined().await?,
            routed: self.routed().await?,
            mode,
        })
    }
}

//! Operations of all partitions of a layout: each partition that is concerned has its own share of one, under one id, and its owner
//! works on that as on any. Here the shares become one again. Most operations are of one account, and so of one partition.

use std::collections::{BTreeMap, HashMap};

use super::{Beside, OperationError, Operations, Verb, Wanted};
use crate::{
    facts::{
        id::{AccountId, EntryId, OperationId},
        operation::{Change, Exception, Kind, Operation, Rate, State, merged},
    },
    store::{
        error::StoreError,
        queries::{DeadCursor, DeadOrder, MAX_PAGE, Partitions, Queries},
    },
};

pub struct AllOperations {
    partitions: Partitions,
}

/// What one partition has of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub stream: String,
    pub operation: Operation,
}

impl Share {
    /// What it is about; where there are several, with its stream.
    pub fn filter(&self, are_many: bool) -> String {
        let filter = &self.operation.plan.filter;
        if are_many { format!("{filter} --stream {}", self.stream) } else { filter.clone() }
    }
}

impl From<Partitions> for AllOperations {
    fn from(partitions: Partitions) -> Self {
        Self { partitions }
    }
}

impl AllOperations {
    /// What may be asked beside.
    pub fn partitions(&mut self) -> &mut Partitions {
        &mut self.partitions
    }

    /// Those of the partition where an account's deliveries are; with the streams through which its events come there, that one last.
    pub fn at_home(&self, account: &AccountId) -> (Operations, Vec<String>) {
        let path = self.partitions.layout().path(account);
        let home =
            path.last().and_then(|stream| self.partitions.each().iter().find(|one| one.keys().stream() == stream));
        (Operations::beside(home.unwrap_or(&self.partitions.each()[0])), path)
    }

    /// Freezes what there is now, wherever it is; the limit is that of the oldest of all. If one partition refuses, nothing is planned.
    pub async fn plan(&mut self, wanted: Wanted) -> Result<Operation, OperationError> {
        let letters = &wanted.letters;
        let places = self.partitions.with_deliveries(letters.account.as_ref(), letters.endpoint.as_ref()).await;
        let [_, _, ..] = places[..] else {
            let planned = self.partitions.ask(&places, |_, one| plan_in(one, wanted.clone())).await?;
            return planned.into_iter().next().map_or(Err(OperationError::Nothing), |(_, planned)| planned);
        };
        let now_ms = self.partitions.now_ms().await?;
        let shares = self.shares(&wanted, &places).await?;
        if shares.is_empty() {
            return Err(OperationError::Nothing);
        }
        let (places, work): (Vec<usize>, Vec<u64>) = shares.iter().map(|(at, count)| (*at, *count)).unzip();
        let rates = wanted.rate.unwrap_or(wanted.kind.usual_rate()).divided(&work);
        let rates: BTreeMap<usize, Rate> = places.iter().copied().zip(rates).collect();
        let share_of = |at: usize| Wanted {
            limit: wanted.limit.map(|_| shares[&at]),
            rate: Some(rates[&at]),
            made_ms: Some(now_ms),
            ..wanted.clone()
        };
        let answers = self.partitions.ask(&places, |at, one| plan_in(one, share_of(at))).await?;
        let (mut planned, mut refused) = (Vec::new(), None);
        for (at, answer) in answers {
            match answer {
                Ok(operation) => planned.push((at, operation)),
                // What there was a moment ago is gone.
                Err(OperationError::Nothing) => {}
                Err(error) => refused = Some(error),
            }
        }
        if let Some(error) = refused {
            let who = Change { by: wanted.by.clone(), why: wanted.why.clone(), at_ms: now_ms };
            for (at, Operation { id, .. }) in planned {
                let cancel = |_, one| change_in(one, id.clone(), Verb::Cancel, who.clone());
                let _ = self.partitions.ask(&[at], cancel).await;
            }
            return Err(error);
        }
        let whole = merged(planned.into_iter().map(|(_, operation)| operation)).ok_or(OperationError::Nothing)?;
        Ok(self.naming_away(whole))
    }

    /// How many of what is wanted each partition has that has any.
    async fn shares(&mut self, wanted: &Wanted, places: &[usize]) -> Result<BTreeMap<usize, u64>, StoreError> {
        if !matches!(wanted.kind, Kind::Redeliver | Kind::Discard) {
            return Ok(places.iter().map(|at| (*at, 1)).collect());
        }
        let letters = &wanted.letters;
        let count = |_, mut one: Queries| async move { one.count_dead_where(letters).await };
        let mut shares: BTreeMap<usize, u64> = self.partitions.ask(places, count).await?.into_iter().collect();
        if let Some(limit) = wanted.limit.filter(|limit| *limit < shares.values().sum()) {
            shares = self.oldest(wanted, limit, &shares).await?;
        }
        shares.retain(|_, count| *count > 0);
        Ok(shares)
    }

    /// Of so many letters of all partitions, the oldest, how many are in each.
    async fn oldest(
        &mut self,
        wanted: &Wanted,
        limit: u64,
        there: &BTreeMap<usize, u64>,
    ) -> Result<BTreeMap<usize, u64>, StoreError> {
        let (letters, mut left) = (&wanted.letters, limit);
        let mut shares: BTreeMap<usize, u64> = there.keys().map(|at| (*at, 0)).collect();
        // Of each partition, the letters that were read of it and not counted yet, the oldest last.
        let mut read = BTreeMap::<usize, Vec<(u64, String)>>::new();
        let mut places: BTreeMap<usize, Option<DeadCursor>> = there.keys().map(|at| (*at, None)).collect();
        while left > 0 {
            let empty = |at: &usize| read.get(at).is_none_or(Vec::is_empty);
            let asked: Vec<usize> = places.keys().copied().filter(empty).collect();
            if !asked.is_empty() {
                let cursors = &places;
                let look = |at: usize, mut one: Queries| async move {
                    one.find_dead(letters, DeadOrder::OldestFirst, cursors[&at].as_ref(), MAX_PAGE).await
                };
                let pages = self.partitions.ask(&asked, look).await?;
                for at in &asked {
                    places.remove(at);
                }
                for (at, page) in pages {
                    read.insert(at, page.letters.iter().rev().map(|one| (one.at_ms, one.id.to_string())).collect());
                    if page.next.is_some() {
                        places.insert(at, page.next);
                    }
                }
            }
            let oldest = read.iter().filter_map(|(at, letters)| Some((letters.last()?, *at))).min();
            let Some(at) = oldest.map(|(_, at)| at) else { break };
            read.entry(at).or_default().pop();
            *shares.entry(at).or_default() += 1;
            left -= 1;
        }
        Ok(shares)
    }

    /// What each partition has of it; none where nobody has any.
    pub async fn shares_of(&mut self, id: &OperationId) -> Result<Vec<Share>, StoreError> {
        let places = self.partitions.with_deliveries(None, None).await;
        let find = |_, one: Queries| async move { Operations::beside(&one).find(id).await };
        let found = self.partitions.ask(&places, find).await?;
        let share = |(at, operation): (usize, Option<Operation>)| {
            let stream = self.partitions.each()[at].keys().stream().to_owned();
            operation.map(|operation| Share { stream, operation })
        };
        Ok(found.into_iter().filter_map(share).collect())
    }

    /// All of it. What does not answer is what it waits for.
    pub async fn find(&mut self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        let shares = self.shares_of(id).await?;
        let found = merged(shares.into_iter().map(|share| share.operation));
        Ok(found.map(|operation| self.naming_away(operation)))
    }

    fn naming_away(&self, mut operation: Operation) -> Operation {
        let away = self.partitions.unavailable();
        operation.waits.extend(away.iter().map(|stream| format!("{stream}: it does not answer")));
        operation
    }

    /// Starts one partition's share, with the entry of the audit log that this begins with.
    pub async fn start(&mut self, share: &Share, audit: Option<EntryId>, who: &Change) -> Result<(), OperationError> {
        let at = self.partitions.each().iter().position(|one| one.keys().stream() == share.stream).unwrap_or(0);
        let id = &share.operation.id;
        let start = |_, one| change_in(one, id.clone(), Verb::Start(audit), who.clone());
        let answers = self.partitions.ask(&[at], start).await?;
        answers.into_iter().next().map_or(Ok(()), |(_, answer)| answer.map(drop))
    }

    /// Changes every share that has not ended. A rate is divided by what they have left.
    pub async fn change(&mut self, id: &OperationId, verb: Verb, who: &Change) -> Result<(), OperationError> {
        let shares = self.shares_of(id).await?;
        let whole = merged(shares.iter().map(|share| share.operation.clone()));
        let Some(whole) = whole else { return Err(OperationError::Missing(id.clone())) };
        let open: Vec<&Share> = shares.iter().filter(|share| !share.operation.state.has_ended()).collect();
        let open = if open.is_empty() { shares.iter().collect() } else { open };
        let left = |share: &Share| share.operation.left() + share.operation.counts.open + 1;
        let work: Vec<u64> = open.iter().map(|share| left(share)).collect();
        let verbs = match verb {
            Verb::Rate(rate) => rate.divided(&work).into_iter().map(Verb::Rate).collect(),
            verb => vec![verb; open.len()],
        };
        let mut failed = None;
        for (share, verb) in open.iter().zip(verbs) {
            let at = self.partitions.each().iter().position(|one| one.keys().stream() == share.stream).unwrap_or(0);
            let change = |_, one| change_in(one, id.clone(), verb, who.clone());
            // The others are changed all the same: one that has ended meanwhile must not keep them going.
            match self.partitions.ask(&[at], change).await {
                Ok(answers) => failed = answers.into_iter().find_map(|(_, answer)| answer.err()).or(failed),
                Err(error) => failed = Some(error.into()),
            }
        }
        match failed {
            Some(OperationError::Refused { .. }) if open.len() > 1 && !whole.state.has_ended() => Ok(()),
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// All there are, the newest plan first.
    pub async fn ids(&mut self) -> Result<Vec<OperationId>, StoreError> {
        let places = self.partitions.with_deliveries(None, None).await;
        let found = self.partitions.ask(&places, |_, one| async move { Operations::beside(&one).ids().await }).await?;
        Ok(in_order(found.into_iter().flat_map(|(_, ids)| ids).collect()))
    }

    /// Up to `max` of them on one side of an id, those nearest to it, the newest first; and whether there are more on that side.
    pub async fn page(&mut self, beside: Beside<'_>, max: usize) -> Result<(Vec<OperationId>, bool), StoreError> {
        let places = self.partitions.with_deliveries(None, None).await;
        let look = |_, one: Queries| async move { Operations::beside(&one).page(beside, max).await };
        let found = self.partitions.ask(&places, look).await?;
        let is_beyond = found.iter().any(|(_, (_, is_beyond))| *is_beyond);
        let mut ids = in_order(found.into_iter().flat_map(|(_, (ids, _))| ids).collect());
        let is_beyond = is_beyond || ids.len() > max;
        match beside {
            Beside::NewerThan(_) => ids = ids.split_off(ids.len().saturating_sub(max)),
            Beside::Nothing | Beside::OlderThan(_) => ids.truncate(max),
        }
        Ok((ids, is_beyond))
    }

    /// Whether somebody works on it, or is to.
    pub async fn is_open(&mut self, id: &OperationId) -> Result<bool, StoreError> {
        let places = self.partitions.with_deliveries(None, None).await;
        let look = |_, one: Queries| async move { Operations::beside(&one).is_open(id).await };
        Ok(self.partitions.ask(&places, look).await?.into_iter().any(|(_, is_open)| is_open))
    }

    /// Those of them that there are and that this Herald can read.
    pub async fn find_all(&mut self, ids: &[OperationId]) -> Result<Vec<Operation>, StoreError> {
        let places = self.partitions.with_deliveries(None, None).await;
        let look = |_, one: Queries| async move { Operations::beside(&one).find_all(ids).await };
        let mut shares = HashMap::<OperationId, Vec<Operation>>::new();
        for operation in self.partitions.ask(&places, look).await?.into_iter().flat_map(|(_, found)| found) {
            shares.entry(operation.id.clone()).or_default().push(operation);
        }
        Ok(ids.iter().filter_map(|id| merged(shares.remove(id)?)).collect())
    }

    /// What was not simply done, the oldest first, after an id; about `max` of it, and whether there is more.
    pub async fn exceptions(
        &mut self,
        id: &OperationId,
        after: Option<EntryId>,
        max: usize,
    ) -> Result<(Vec<(EntryId, Exception)>, bool), StoreError> {
        let places = self.partitions.with_deliveries(None, None).await;
        let look = |_, one: Queries| async move { Operations::beside(&one).exceptions(id, after, max + 1).await };
        let found = self.partitions.ask(&places, look).await?;
        let mut found: Vec<(EntryId, Exception)> = found.into_iter().flat_map(|(_, found)| found).collect();
        found.sort_by_key(|(at, _)| *at);
        let Some((last, _)) = found.get(max.saturating_sub(1)) else { return Ok((found, false)) };
        // Two partitions may have given out the same id, and whoever goes on does so behind it.
        let end = found.partition_point(|(at, _)| at <= last);
        let has_more = end < found.len();
        found.truncate(end);
        Ok((found, has_more))
    }

    /// Of the partitions that have work to do for it, those that nobody owns.
    pub async fn unowned(&mut self, id: &OperationId) -> Result<Vec<String>, StoreError> {
        let mut unowned = Vec::new();
        for share in self.shares_of(id).await? {
            let at = self.partitions.each().iter().position(|one| one.keys().stream() == share.stream).unwrap_or(0);
            let is_open = !share.operation.state.has_ended();
            let look = |_, mut one: Queries| async move { one.lease().await };
            if is_open && self.partitions.ask(&[at], look).await?.into_iter().any(|(_, lease)| lease.is_none()) {
                unowned.push(share.stream);
            }
        }
        Ok(unowned)
    }
}

fn in_order(mut ids: Vec<OperationId>) -> Vec<OperationId> {
    ids.sort_unstable_by(|one, other| other.cmp(one));
    ids.dedup();
    ids
}

type Answered<T> = Result<Result<T, OperationError>, StoreError>;

async fn plan_in(queries: Queries, wanted: Wanted) -> Answered<Operation> {
    apart(Operations::beside(&queries).plan(wanted).await)
}

async fn change_in(queries: Queries, id: OperationId, verb: Verb, who: Change) -> Answered<State> {
    apart(Operations::beside(&queries).change(&id, verb, &who).await)
}

/// What Redis says, from what is refused.
fn apart<T>(done: Result<T, OperationError>) -> Answered<T> {
    match done {
        Err(OperationError::Store(error)) => Err(error),
        done => Ok(done),
    }
}

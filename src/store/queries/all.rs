//! The same questions to all partitions of a layout, whose answers become one: counts add, lists are merged in their order, what there
//! is only once is found where it is. What is of one account, or of an endpoint whose account the registry knows, is asked of that
//! account's path alone. With one partition, each question costs what it costs there.
//!
//! A partition that does not answer is not asked again; [`Partitions::unavailable`] names it, and what is shown is that of the others.
//!
//! Each list has one order for all partitions, in which each of its things has its own place. So a cursor is one place, however many
//! partitions there are, and it stays right when one of them is split.

mod deliveries;
mod letters;
mod standing;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::future::{BoxFuture, join_all};

pub use self::standing::{Backlog, FoundQuarantined, PartitionLook, QuarantinePlace, QuarantineSide};
use super::Queries;
use crate::{
    facts::{
        id::{AccountId, DeliveryId, EndpointId, EntryId},
        partition::{Layout, Mode},
    },
    store::{
        connection::{Connection, Purpose, Redis},
        error::StoreError,
        keys::PartitionKeys,
        partitions::{keys_of, seen},
        registry::RegistryStore,
        topology::Kind,
    },
};

/// Partitions that are asked at once.
const AT_ONCE: usize = 32;

/// A layout, and those of its streams that did not say what becomes of their entries.
pub type Seen = (Layout, BTreeMap<String, StoreError>);

/// All partitions of a layout, as seen from outside.
pub struct Partitions {
    connection: Connection,
    layout: Layout,
    /// In the layout's order: each before its parts.
    all: Vec<Queries>,
    /// None: the registry does not know it, or does not answer.
    accounts: HashMap<EndpointId, Option<AccountId>>,
    /// Those that do not answer, and those of them that were asked for something.
    away: BTreeMap<String, StoreError>,
    missed: BTreeSet<String>,
    /// Where parts ended when what is before them had passed an entry.
    ends: BTreeMap<(usize, EntryId), EntryId>,
}

impl Partitions {
    /// Those that a stream has now. The node of the registry may be away, and that of the stream be there.
    pub async fn connect(redis: &Redis, keys: &PartitionKeys) -> Result<Self, StoreError> {
        let connection = match redis.connect(Purpose::Other).await {
            Err(StoreError::Unavailable { .. }) if redis.topology().kind() == Kind::Cluster => {
                redis.at_home_in(keys.slot()).connect(Purpose::Other).await?
            }
            connection => connection?,
        };
        Self::find(connection, keys).await
    }

    /// The same on a connection.
    pub async fn find(connection: Connection, keys: &PartitionKeys) -> Result<Self, StoreError> {
        let seen = seen(&connection, keys.stream()).await?;
        Self::of(connection, seen)
    }

    /// Those of a layout that is known.
    pub fn of(connection: Connection, (layout, away): Seen) -> Result<Self, StoreError> {
        let keys = keys_of(&layout.streams())
            .map_err(|error| StoreError::unexpected("name the keys of all partitions", error))?;
        let all = keys.into_iter().map(|keys| Queries::new(connection.clone(), keys)).collect();
        Ok(Self {
            connection,
            layout,
            all,
            accounts: HashMap::new(),
            away,
            missed: BTreeSet::new(),
            ends: BTreeMap::new(),
        })
    }

    /// A stream that is one partition, whatever its mode.
    pub fn of_one(connection: Connection, keys: PartitionKeys) -> Self {
        let layout = Layout::of_one(keys.stream());
        let all = vec![Queries::new(connection.clone(), keys)];
        let (away, missed, ends) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { connection, layout, all, accounts: HashMap::new(), away, missed, ends }
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn are_many(&self) -> bool {
        self.all.len() > 1
    }

    /// Of the root: what there is once for all partitions is in its slot.
    pub fn root(&mut self) -> &mut Queries {
        &mut self.all[0]
    }

    /// Each by itself.
    pub fn each(&self) -> &[Queries] {
        &self.all
    }

    /// The streams that did not answer, of those that were asked, in their order.
    pub fn unavailable(&self) -> Vec<String> {
        self.layout.streams().into_iter().filter(|stream| self.missed.contains(stream)).collect()
    }

    /// Why they did not.
    pub fn why_unavailable(&self) -> impl Iterator<Item = &StoreError> {
        self.missed.iter().filter_map(|stream| self.away.get(stream))
    }

    /// Looks from now on only where something of this account may be.
    pub fn narrow(&mut self, account: &AccountId) {
        if self.are_many() {
            let path = self.layout.path(account);
            self.all.retain(|one| path.iter().any(|stream| stream == one.keys.stream()));
        }
    }

    /// The same of an endpoint.
    pub async fn narrow_to(&mut self, endpoint: &EndpointId) {
        if let Some(account) = self.account_of(endpoint).await {
            self.narrow(&account);
        }
    }

    /// So that the registry is not asked whose they are.
    pub fn know<'a>(&mut self, endpoints: impl IntoIterator<Item = (&'a EndpointId, &'a AccountId)>) {
        if self.are_many() {
            let known = endpoints.into_iter().map(|(endpoint, account)| (endpoint.clone(), Some(account.clone())));
            self.accounts.extend(known);
        }
    }

    /// Redis' clock, ms since 1970: ages are counted by it.
    pub async fn now_ms(&mut self) -> Result<u64, StoreError> {
        self.root().now_ms().await
    }

    /// What tells this Redis from any other, as far as histories go; made by the first that follows the root's log.
    pub async fn log_id(&mut self) -> Result<Option<String>, StoreError> {
        match self.ask_for(&[0], |mut one| async move { one.log_id().await }).await {
            Ok(mut found) => Ok(found.pop().flatten()),
            Err(StoreError::Unavailable { .. }) if self.are_many() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where what is new of this endpoint goes: the last of its account's path; the root where nobody knows its account.
    pub async fn home_of(&mut self, endpoint: &EndpointId) -> PartitionKeys {
        let account = self.account_of(endpoint).await;
        let home = account.map_or(0, |account| self.path(&account).pop().unwrap_or(0));
        self.all[home].keys.clone()
    }

    /// Where the record or the letter of each of these is, so that its owner can be asked for it; its home where there is none.
    pub async fn keys_of(&mut self, ids: &[DeliveryId]) -> Result<Vec<PartitionKeys>, StoreError> {
        if !self.are_many() {
            return Ok(vec![self.all[0].keys.clone(); ids.len()]);
        }
        let there = |mut one: Queries, ids: Vec<DeliveryId>| async move { one.are_kept(&ids).await };
        let found = self.of_each(ids, |id| &id.endpoint, there).await?;
        let mut keys = Vec::with_capacity(ids.len());
        for (id, found) in ids.iter().zip(found) {
            keys.push(match found.into_iter().find(|(_, is_there)| *is_there) {
                Some((at, _)) => self.all[at].keys.clone(),
                None => self.home_of(&id.endpoint).await,
            });
        }
        Ok(keys)
    }

    /// The numbers of those where something of it may be, the outermost first.
    async fn concerned(&mut self, account: Option<&AccountId>, endpoint: Option<&EndpointId>) -> Vec<usize> {
        let account = match (account, endpoint) {
            (Some(account), _) => Some(account.clone()),
            (None, Some(endpoint)) => self.account_of(endpoint).await,
            (None, None) => None,
        };
        match account {
            Some(account) => self.path(&account),
            None => self.everywhere(),
        }
    }

    fn everywhere(&self) -> Vec<usize> {
        (0..self.all.len()).collect()
    }

    /// Those that deliver: what a routed stream last published about receivers is over.
    fn that_deliver(&self) -> Vec<usize> {
        let delivers = |at: &usize| !matches!(self.layout.mode(self.all[*at].keys.stream()), Mode::Routed { .. });
        self.everywhere().into_iter().filter(delivers).collect()
    }

    fn path(&self, account: &AccountId) -> Vec<usize> {
        let path = self.layout.path(account);
        let at = |stream: &String| self.all.iter().position(|one| one.keys.stream() == stream);
        path.iter().filter_map(at).collect()
    }

    async fn account_of(&mut self, endpoint: &EndpointId) -> Option<AccountId> {
        self.learn_accounts([endpoint]).await;
        self.accounts.get(endpoint).cloned().flatten()
    }

    async fn learn_accounts<'a>(&mut self, endpoints: impl IntoIterator<Item = &'a EndpointId>) {
        if !self.are_many() {
            return;
        }
        let unknown: BTreeSet<&EndpointId> =
            endpoints.into_iter().filter(|endpoint| !self.accounts.contains_key(*endpoint)).collect();
        let unknown: Vec<&EndpointId> = unknown.into_iter().collect();
        for part in unknown.chunks(super::MAX_PAGE) {
            let found = RegistryStore::on(self.connection.clone()).get_many(part).await.unwrap_or_default();
            let accounts = found.into_iter().map(|found| found.ok().flatten().map(|endpoint| endpoint.account));
            let accounts = accounts.chain(std::iter::repeat(None));
            self.accounts.extend(part.iter().map(|id| (*id).clone()).zip(accounts));
        }
    }

    /// The numbers of those that deliver something of it, of whatever is not given anything.
    pub(in crate::store) async fn with_deliveries(
        &mut self,
        account: Option<&AccountId>,
        endpoint: Option<&EndpointId>,
    ) -> Vec<usize> {
        let concerned = self.concerned(account, endpoint).await;
        self.that_deliver().into_iter().filter(|at| concerned.contains(at)).collect()
    }

    /// Asks these, by their numbers; those that do not answer are noted. An error only if none answers.
    pub(in crate::store) fn ask<'a, T: Send + 'a, F: Future<Output = Result<T, StoreError>> + Send + 'a>(
        &'a mut self,
        asked: &'a [usize],
        what: impl Fn(usize, Queries) -> F + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<Vec<(usize, T)>, StoreError>> {
        Box::pin(async move {
            if !self.are_many() {
                return Ok(vec![(0, what(0, self.all[0].clone()).await?)]);
            }
            let is_away = |at: &usize| self.away.contains_key(self.all[*at].keys.stream());
            let (away, left): (Vec<usize>, Vec<usize>) = asked.iter().copied().partition(is_away);
            let mut failed = away.first().and_then(|at| self.away.get(self.all[*at].keys.stream()).cloned());
            self.missed.extend(away.iter().map(|at| self.all[*at].keys.stream().to_owned()));
            let mut answers = Vec::with_capacity(left.len());
            for part in left.chunks(AT_ONCE) {
                let looks: Vec<F> = part.iter().map(|at| what(*at, self.all[*at].clone())).collect();
                for (at, answer) in part.iter().zip(join_all(looks).await) {
                    match answer {
                        Ok(answer) => answers.push((*at, answer)),
                        Err(error @ StoreError::Unavailable { .. }) => {
                            let stream = self.all[*at].keys.stream();
                            self.missed.insert(stream.to_owned());
                            self.away.insert(stream.to_owned(), error.clone());
                            failed = Some(error);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            match failed {
                Some(error) if answers.is_empty() => Err(error),
                _ => Ok(answers),
            }
        })
    }

    /// The same without their numbers.
    async fn ask_for<T: Send, F: Future<Output = Result<T, StoreError>> + Send>(
        &mut self,
        asked: &[usize],
        what: impl Fn(Queries) -> F + Send + Sync,
    ) -> Result<Vec<T>, StoreError> {
        let found = self.ask(asked, |_, one| what(one)).await?;
        Ok(found.into_iter().map(|(_, answer)| answer).collect())
    }

    /// Asks for each of these where something of it may be. The answers to each begin with that of the innermost partition.
    async fn of_each<K: Clone + Send + Sync, T: Send, F: Future<Output = Result<Vec<T>, StoreError>> + Send>(
        &mut self,
        items: &[K],
        endpoint: fn(&K) -> &EndpointId,
        what: impl Fn(Queries, Vec<K>) -> F + Send + Sync,
    ) -> Result<Vec<Vec<(usize, T)>>, StoreError> {
        let mut answers: Vec<Vec<(usize, T)>> = items.iter().map(|_| Vec::new()).collect();
        if items.is_empty() {
            return Ok(answers);
        }
        self.learn_accounts(items.iter().map(endpoint)).await;
        let mut asked = BTreeMap::<usize, Vec<usize>>::new();
        for (number, item) in items.iter().enumerate() {
            let places = self.concerned(None, Some(endpoint(item))).await;
            places.into_iter().for_each(|at| asked.entry(at).or_default().push(number));
        }
        let places: Vec<usize> = asked.keys().copied().collect();
        let of = |at: usize| asked[&at].iter().map(|number| items[*number].clone()).collect();
        for (at, found) in self.ask(&places, |at, one| what(one, of(at))).await? {
            asked[&at].iter().zip(found).for_each(|(number, answer)| answers[*number].push((at, answer)));
        }
        answers.iter_mut().for_each(|answers| answers.reverse());
        Ok(answers)
    }

    /// The same of what is in one place only: the first answer that is one.
    async fn first_of_each<
        K: Clone + Send + Sync,
        T: Send,
        F: Future<Output = Result<Vec<Option<T>>, StoreError>> + Send,
    >(
        &mut self,
        items: &[K],
        endpoint: fn(&K) -> &EndpointId,
        what: impl Fn(Queries, Vec<K>) -> F + Send + Sync,
    ) -> Result<Vec<Option<T>>, StoreError> {
        let found = self.of_each(items, endpoint, what).await?;
        Ok(found.into_iter().map(|answers| answers.into_iter().find_map(|(_, answer)| answer)).collect())
    }
}

/// How much of a bound each of so many may take, and at least so much.
fn share(of: usize, among: usize, least: usize) -> usize {
    (of / among.max(1)).max(least.min(of))
}

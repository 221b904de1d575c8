//! The maps behind [`super::Registry`]. A change of one endpoint touches only that endpoint and its account's list.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{RegistryState, shown::Counts};
use crate::{
    facts::{
        endpoint::{Endpoint, Mark},
        id::{AccountId, EndpointId, RegistryId},
        sealing::KeyId,
        stamped::Stamped,
    },
    store::registry::{
        Unreadable,
        feed::{Loaded, Position},
        stored::{Lock, LockCause},
    },
    tls::first_end_s,
};

/// Whether the registry is there. What is known of it stays in the other fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Presence {
    #[default]
    NotRead,
    Absent,
    Present,
}

#[derive(Default)]
pub(super) struct Snapshot {
    presence: Presence,
    position: Option<Position>,
    pause: Option<Mark>,
    endpoints: HashMap<EndpointId, Arc<Endpoint>>,
    accounts: HashMap<AccountId, Arc<[Arc<Endpoint>]>>,
    unreadable: HashMap<String, Aside>,
    /// When what these show to their receivers ends, in seconds since 1970.
    certificates: HashMap<EndpointId, i64>,
}

/// What is known of an endpoint that cannot be read.
struct Aside {
    account: Option<AccountId>,
    lock: Option<Lock>,
}

impl Snapshot {
    /// Endpoints that `old` has in the same form are taken from it, so that a reload does not double the memory.
    pub(super) fn new(loaded: Loaded, old: &Self) -> Self {
        let shared = |endpoint: Endpoint| match old.endpoints.get(&endpoint.id) {
            Some(known) if **known == endpoint => known.clone(),
            _ => Arc::new(endpoint),
        };
        let endpoints: HashMap<_, _> =
            loaded.endpoints.into_iter().map(|(id, endpoint)| (id, shared(endpoint))).collect();
        let mut accounts: HashMap<AccountId, Vec<Arc<Endpoint>>> = HashMap::new();
        for endpoint in endpoints.values() {
            accounts.entry(endpoint.account.clone()).or_default().push(endpoint.clone());
        }
        Self {
            presence: Presence::Present,
            position: Some(loaded.position),
            pause: loaded.pause,
            certificates: endpoints
                .values()
                .filter_map(|one| Some((one.id.clone(), certificate_end_s(one)?)))
                .collect(),
            endpoints,
            accounts: accounts.into_iter().map(|(account, list)| (account, in_order(list))).collect(),
            unreadable: loaded.unreadable.into_values().map(|found| old.whose(found)).collect(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.endpoints.values().for_each(|endpoint| counts.add(endpoint));
        self.unreadable.values().for_each(|aside| counts.add_aside(aside.lock.as_ref()));
        counts
    }

    /// When the first of the client certificates ends.
    pub(super) fn first_certificate_end_s(&self) -> Option<i64> {
        self.certificates.values().min().copied()
    }

    /// The keys that would open what is locked.
    pub(super) fn missing_keys(&self) -> BTreeSet<KeyId> {
        self.unreadable.values().flat_map(|aside| &aside.lock).flat_map(|lock| lock.cause.missing()).collect()
    }

    /// What can be shown of those that are locked, and why they are.
    pub(super) fn locked(&self) -> Vec<(Arc<Endpoint>, LockCause)> {
        let locks = self.unreadable.values().filter_map(|aside| aside.lock.as_ref());
        locks.filter_map(|lock| Some((lock.shown.clone()?, lock.cause.clone()))).collect()
    }

    pub(super) fn state(&self) -> RegistryState {
        match (self.presence, &self.position) {
            (Presence::NotRead, _) => RegistryState::Loading,
            (Presence::Absent, None) => RegistryState::NeverMade,
            (Presence::Absent, Some(_)) => RegistryState::Vanished,
            (Presence::Present, _) if self.endpoints.is_empty() && self.unreadable.is_empty() => RegistryState::Empty,
            (Presence::Present, _) => RegistryState::Loaded,
        }
    }

    pub(super) fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    pub(super) fn id(&self) -> Option<&RegistryId> {
        self.position.as_ref().map(|position| &position.id)
    }

    pub(super) fn last(&self) -> Stamped {
        self.position.as_ref().map_or(Stamped::default(), |position| position.last)
    }

    pub(super) fn pause(&self) -> Option<&Mark> {
        self.pause.as_ref()
    }

    pub(super) fn get(&self, id: &EndpointId) -> Option<Arc<Endpoint>> {
        self.endpoints.get(id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.endpoints.len()
    }

    pub(super) fn endpoints_for(&self, account: &AccountId) -> Arc<[Arc<Endpoint>]> {
        self.accounts.get(account).cloned().unwrap_or_default()
    }

    /// An endpoint whose account is not known may belong to any.
    pub(super) fn is_uncertain(&self, account: &AccountId) -> bool {
        self.unreadable.values().any(|aside| aside.account.as_ref().is_none_or(|of| of == account))
    }

    pub(super) fn unreadable(&self) -> usize {
        self.unreadable.len()
    }

    /// The account's endpoints that exist but cannot be read.
    pub(super) fn unreadable_of(&self, account: &AccountId) -> Vec<EndpointId> {
        if self.unreadable.is_empty() {
            return Vec::new();
        }
        let theirs = self.unreadable.iter().filter(|(_, aside)| aside.account.as_ref() == Some(account));
        let mut ids: Vec<EndpointId> = theirs.filter_map(|(id, _)| EndpointId::new(id).ok()).collect();
        ids.sort_unstable();
        ids
    }

    /// There is something that may belong to any account.
    pub(super) fn has_strays(&self) -> bool {
        self.unreadable.iter().any(|(id, aside)| aside.account.is_none() || EndpointId::new(id).is_err())
    }

    /// With the account that was known before, if it cannot be read any more.
    fn whose(&self, found: Unreadable) -> (String, Aside) {
        let known = self.endpoints.get(found.id.as_str()).map(|endpoint| endpoint.account.clone());
        let before = || self.unreadable.get(&found.id).and_then(|aside| aside.account.clone());
        let account = found.account.or(known).or_else(before);
        (found.id, Aside { account, lock: found.lock })
    }

    pub(super) fn knows_unreadable(&self, id: &str) -> bool {
        self.unreadable.contains_key(id)
    }

    /// The registry is gone or damaged. Returns whether that is new.
    pub(super) fn lose(&mut self) -> bool {
        std::mem::replace(&mut self.presence, Presence::Absent) != Presence::Absent
    }

    /// The registry is there, at this position. Returns whether the pause has changed.
    pub(super) fn advance(&mut self, position: Position, pause: Option<Mark>) -> bool {
        self.presence = Presence::Present;
        self.position = Some(position);
        let is_new = self.pause != pause;
        self.pause = pause;
        is_new
    }

    pub(super) fn is_present(&self) -> bool {
        self.presence == Presence::Present
    }

    pub(super) fn is_absent(&self) -> bool {
        self.presence == Presence::Absent
    }

    pub(super) fn put(&mut self, endpoint: Arc<Endpoint>) {
        self.remove(endpoint.id.as_str());
        let mut list = self.endpoints_for(&endpoint.account).to_vec();
        list.push(endpoint.clone());
        self.accounts.insert(endpoint.account.clone(), in_order(list));
        self.certificates.extend(certificate_end_s(&endpoint).map(|end| (endpoint.id.clone(), end)));
        self.endpoints.insert(endpoint.id.clone(), endpoint);
    }

    pub(super) fn set_aside(&mut self, unreadable: Unreadable) {
        let (id, aside) = self.whose(unreadable);
        self.remove(&id);
        self.unreadable.insert(id, aside);
    }

    pub(super) fn remove(&mut self, id: &str) {
        self.unreadable.remove(id);
        let Some(endpoint) = self.endpoints.remove(id) else { return };
        self.certificates.remove(id);
        let list = self.endpoints_for(&endpoint.account);
        let rest: Vec<_> = list.iter().filter(|other| other.id != endpoint.id).cloned().collect();
        match rest.is_empty() {
            true => self.accounts.remove(&endpoint.account),
            false => self.accounts.insert(endpoint.account.clone(), rest.into()),
        };
    }
}

fn certificate_end_s(endpoint: &Endpoint) -> Option<i64> {
    endpoint.shown_certificate().and_then(|pem| first_end_s(pem.as_bytes()))
}

/// By id, so that every worker makes an account's deliveries in the same order.
fn in_order(mut list: Vec<Arc<Endpoint>>) -> Arc<[Arc<Endpoint>]> {
    list.sort_by(|one, other| one.id.cmp(&other.id));
    list.into()
}

//! The endpoints, and each worker's snapshot of them, which is a little behind.

use super::*;

/// Those among which an endpoint's id may change hands.
const ACCOUNTS: usize = 2;

#[derive(Debug, Clone, Default)]
pub(super) struct Registry {
    /// With a failover that takes changes back, another one can get a version that was there; no stamp is there twice.
    pub last: Stamped,
    /// How many states of it there were before: Redis never shows an older one later.
    pub states: u64,
    pub is_paused: bool,
    pub endpoints: BTreeMap<EndpointId, Arc<Endpoint>>,
    /// Those of them that no worker can read.
    pub locked: BTreeSet<EndpointId>,
}

/// The id of the right registry.
pub(super) const REGISTRY: &str = "registry";

/// What Redis says about its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Health {
    #[default]
    Whole,
    /// There is none.
    Gone,
    /// It has another id, and no endpoint.
    Other,
}

/// What a worker knows of the registry. If the registry vanishes, the last known state stays.
#[derive(Default)]
struct Seen {
    registry: Registry,
    id: Option<&'static str>,
    is_certain: bool,
}

#[derive(Clone, Default)]
pub(super) struct Snapshot {
    seen: Rc<RefCell<Seen>>,
    mutation: Option<Mutation>,
}

impl Snapshot {
    pub fn new(registry: &Registry, health: Health, mutation: Option<Mutation>) -> Self {
        let snapshot = Self { seen: Rc::default(), mutation };
        snapshot.see(registry.clone(), health);
        snapshot
    }

    pub fn see(&self, registry: Registry, health: Health) {
        let mut seen = self.seen.borrow_mut();
        seen.is_certain = health != Health::Gone;
        let id = if health == Health::Whole { REGISTRY } else { "another" };
        let is_the_same = self.mutation == Some(Mutation::StampIgnored)
            && (seen.id, seen.registry.last.version) == (Some(id), registry.last.version);
        // A look that began earlier may be answered later than another.
        if seen.is_certain && (seen.id.is_none() || registry.states >= seen.registry.states && !is_the_same) {
            seen.registry = registry;
            seen.id = Some(id);
        }
    }
}

impl Directory for Snapshot {
    fn standing(&self, endpoint: &EndpointId) -> Standing {
        let seen = self.seen.borrow();
        match seen.registry.endpoints.get(endpoint) {
            Some(_) if seen.registry.locked.contains(endpoint) => Standing::Unknown,
            Some(found) => Standing::of(found.clone()),
            None if seen.is_certain => Standing::Ended { reason: DeadReason::Deleted, owed: lane::Owed::All },
            None => Standing::Unknown,
        }
    }

    fn endpoints_of(&self, account: &AccountId) -> Vec<Arc<Endpoint>> {
        let seen = self.seen.borrow();
        let locked = &seen.registry.locked;
        let theirs = |endpoint: &&Arc<Endpoint>| endpoint.account == *account && !locked.contains(&endpoint.id);
        seen.registry.endpoints.values().filter(theirs).cloned().collect()
    }

    fn unknown_of(&self, account: &AccountId) -> Vec<EndpointId> {
        let seen = self.seen.borrow();
        let theirs = |id: &&EndpointId| seen.registry.endpoints.get(*id).is_some_and(|of| of.account == *account);
        seen.registry.locked.iter().filter(theirs).cloned().collect()
    }

    fn view(&self) -> RegistryView {
        let seen = self.seen.borrow();
        let Registry { last, is_paused, .. } = seen.registry;
        // Whatever is there is taken for the registry that the partition belongs to.
        match self.mutation == Some(Mutation::OtherRegistryIgnored) {
            true => RegistryView { id: Some(REGISTRY.to_owned()), last, is_certain: true, is_paused },
            false => RegistryView { id: seen.id.map(str::to_owned), last, is_certain: seen.is_certain, is_paused },
        }
    }
}

impl World {
    pub(super) fn create(&mut self, at: usize) {
        if self.registry.endpoints.contains_key(&endpoint_id(at)) {
            return;
        }
        let plan = self.plan.endpoints[at].clone();
        let account = AccountId::new(&format!("acc_{}", plan.account)).unwrap();
        self.ended_until[at] = self.now;
        let endpoint = Endpoint {
            schema: ENDPOINT_SCHEMA,
            id: endpoint_id(at),
            account,
            url: "https://example.com/".to_owned(),
            description: String::new(),
            event_types: Vec::new(),
            schemes: vec![Scheme::Standard],
            secrets: Vec::new(),
            spare_secrets: Vec::new(),
            ordering: if plan.ordered { Ordering::Intent } else { Ordering::None },
            max_in_flight: plan.max_in_flight,
            rate_limit: plan.rate_limit,
            timeout_ms: None,
            retry: RetryOverrides { max_attempts: Some(plan.max_attempts), ..RetryOverrides::default() },
            headers: Vec::new(),
            traceparent: false,
            http1: false,
            tls: None,
            keeper: Keeper::Operator,
            status: EndpointState::Enabled,
            owed_until: None,
            leaves: false,
            created_at_ms: self.now,
            updated_at_ms: self.now,
            revision: self.now + 1,
            unsealed_values: 0,
        };
        self.registry.endpoints.insert(endpoint.id.clone(), Arc::new(endpoint));
        self.spread();
    }

    pub(super) fn change(&mut self, at: usize, change: impl FnOnce(&mut Endpoint)) {
        if !self.is_locked(at)
            && let Some(found) = self.registry.endpoints.get_mut(&endpoint_id(at))
        {
            let endpoint = Arc::make_mut(found);
            change(endpoint);
            endpoint.revision += 1;
            self.spread();
        }
    }

    pub(super) fn is_locked(&self, at: usize) -> bool {
        self.registry.locked.contains(&endpoint_id(at))
    }

    pub(super) fn lock(&mut self, at: usize) {
        if self.status(at).is_some() && self.registry.locked.insert(endpoint_id(at)) {
            self.tally.count("locks");
            self.locked_since[at] = Some(self.now);
            self.spread();
        }
    }

    pub(super) fn unlock(&mut self, at: usize) {
        let registry = self.lost_registry.as_mut().unwrap_or(&mut self.registry);
        if !registry.locked.remove(&endpoint_id(at)) {
            return;
        }
        (self.locked_since[at], self.locked_until[at]) = (None, self.now);
        let is_old = |owed: &Owed| owed.endpoint == at && owed.at + MAX_AGE_MS < self.now;
        if self.ledger.owed.iter().any(|owed| is_old(owed) && self.model.records.contains_key(&owed.id)) {
            self.tally.count("locked_for_an_age");
        }
        // Who was to heal it could not.
        if self.is_healed && matches!(self.status(at), Some(EndpointState::Paused(_))) {
            self.change(at, |endpoint| endpoint.status = EndpointState::Enabled);
        }
        self.spread();
    }

    pub(super) fn spread(&mut self) {
        self.versions += 1;
        self.registry.last = Stamped { version: self.registry.last.version + 1, stamp: self.versions };
        self.registry.states = self.versions;
        for worker in 0..self.workers.len() {
            let lag = self.chance.below(60) + self.workers[worker].lag_ms;
            self.after(lag, Event::Sync { worker });
        }
    }

    /// The pause that a failover is to take back.
    pub(super) fn change_in_vain(&mut self, paused: usize, made: usize, after_ms: u64) {
        if self.health != Health::Whole || self.status(paused) != Some(EndpointState::Enabled) || self.is_locked(paused)
        {
            return;
        }
        let before = self.registry.clone();
        self.change(paused, |endpoint| endpoint.status = EndpointState::Paused(mark()));
        let lost = self.registry.last;
        self.after(after_ms, Event::RegistrySetBack { before: Box::new(before), lost, made });
    }

    /// A failover, unless something else has changed meanwhile. The next change gets the version of the one that is lost.
    pub(super) fn set_registry_back(&mut self, before: Registry, lost: Stamped, made: usize) {
        if self.registry.last != lost || self.health != Health::Whole || self.status(made).is_some() {
            return;
        }
        self.tally.count("registries_set_back");
        self.registry = before;
        self.create(made);
        assert_eq!(self.registry.last.version, lost.version, "it is no version that was there");
    }

    /// As the worker's shell does it: a change that saw another revision is refused.
    pub(super) fn pause_for_quota(&mut self, endpoint: &EndpointId, revision: u64) {
        if self.registry.endpoints.get(endpoint).is_some_and(|found| found.revision == revision) {
            self.tally.count("paused_for_quota");
            self.change(index_of(endpoint.as_str()), |endpoint| endpoint.status = EndpointState::Paused(mark()));
        }
    }

    /// The account whose endpoint it is.
    pub(super) fn owner_of(&self, at: usize) -> Option<usize> {
        let registry = self.lost_registry.as_ref().unwrap_or(&self.registry);
        registry.endpoints.get(&endpoint_id(at)).map(|endpoint| index_of(endpoint.account.as_str()))
    }

    pub(super) fn status(&self, at: usize) -> Option<EndpointState> {
        self.registry.endpoints.get(&endpoint_id(at)).map(|endpoint| endpoint.status.clone())
    }

    /// What is accepted from here on is not owed to it. What was accepted before may be given up, but does not vanish.
    pub(super) fn takes_nothing(&mut self, at: usize) {
        self.ended_until[at] = u64::MAX;
        self.was_ended[at] = true;
    }

    pub(super) fn disable(&mut self, at: usize) {
        let last = self.model.stream.last_generated;
        self.change(at, |endpoint| endpoint.disable(mark(), last));
    }

    /// As `herald endpoint delete` does it: it is disabled first, and removed when everything up to then is settled.
    pub(super) fn delete(&mut self, at: usize) {
        self.takes_nothing(at);
        self.disable(at);
        if let Some(endpoint) = self.registry.endpoints.get(&endpoint_id(at)) {
            let (endpoint, revision) = (endpoint.id.clone(), endpoint.revision);
            self.after(1, Event::Remove { endpoint, revision });
        }
    }

    pub(super) fn remove(&mut self, endpoint: EndpointId, revision: u64) {
        let found = self.registry.endpoints.get(&endpoint).filter(|found| found.revision == revision);
        let Some(last) = found.and_then(|found| found.owed_until) else { return };
        let cursor = self.model.cursor.unwrap_or_default();
        let left = self.model.stream.entries.keys().any(|entry| *entry > cursor && *entry <= last);
        if left || self.is_down {
            return self.after(20, Event::Remove { endpoint, revision });
        }
        self.registry.endpoints.remove(&endpoint);
        self.registry.locked.remove(&endpoint);
        self.spread();
        let at = index_of(endpoint.as_str());
        if self.given_away.remove(&at) {
            if self.model.records.keys().any(|id| id.endpoint == endpoint) {
                self.tally.count("given_away_with_records");
            }
            let heir = &mut self.plan.endpoints[at].account;
            *heir = (*heir + 1) % ACCOUNTS;
            let later = self.chance.below(40);
            self.after(later, Event::Act(Action::Create(at)));
        }
    }
}

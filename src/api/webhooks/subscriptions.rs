//! Endpoints that their merchants keep. Each change compares what it saw with what is there: one of an endpoint alone its
//! revision, one of what its account subscribes to the version of the whole registry, as it binds several endpoints.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};

use crate::{
    api::access::Caller,
    clock,
    facts::{
        audit::{Act, Begun, Verdict},
        endpoint::{Endpoint, EndpointState, Keeper, Mark},
        event::EventType,
        id::{AccountId, EndpointId},
        signing::{Secret, SecretText, rotated},
        stamped::Stamped,
    },
    intents::service::random_part,
    registry::{
        Registry,
        rules::{MAX_SECRETS, RuleError, Rules},
        sweep::remove_if_drained,
    },
    store::{
        audit::{Audit, AuditError, Judged},
        connection::{Connection, Purpose, Redis, SharedConnection},
        error::StoreError,
        keys::PartitionKeys,
        queries::Partitions,
        registry::{
            RegistryError, RegistryStore,
            confirming::{Confirmation, Confirming},
        },
        routing::Replicas,
    },
};

/// How often a change is tried anew because others change the registry.
const MAX_ROUNDS: usize = 16;

/// How long a change waits for what this process knows of the registry to be as new as Redis.
const FRESH_WITHIN: Duration = Duration::from_secs(10);

/// How long the secret that was active before keeps signing, as with the verb that rotates.
const OVERLAP: Duration = Duration::from_secs(24 * 60 * 60);

/// Names that are looked up at once: each takes a thread for as long as its server likes, and callbacks need threads, too.
const MAX_LOOKUPS: usize = 16;

/// Endpoints of one account in a sandbox: one for each of its developers' terminals.
pub const MAX_SANDBOX_ENDPOINTS: usize = 20;

/// Endpoints of one account that are deleted and still owed something. Each keeps its record, so whoever makes and deletes
/// without end has to wait for the worker.
pub const MAX_LEAVING: usize = 50;

#[derive(Debug, thiserror::Error)]
pub enum SubscriptionError {
    #[error("there is no such webhook subscription")]
    NotFound,
    #[error("there is no such secret")]
    SecretNotFound,
    #[error(transparent)]
    Rule(#[from] RuleError),
    #[error("the event {event} has the subscription {by} already")]
    EventTaken { event: EventType, by: EndpointId },
    #[error("it has {MAX_SECRETS} secrets, and no more are allowed")]
    TooManySecrets,
    #[error("the secret is the active one")]
    ActiveSecret,
    #[error("whoever runs Herald has stopped it")]
    Stopped,
    #[error("the account has {MAX_SANDBOX_ENDPOINTS} endpoints of the sandbox, and no more are allowed")]
    TooManyEndpoints,
    /// Nothing was changed in any of the following.
    #[error("{MAX_LEAVING} deleted endpoints of the account wait for what they are owed")]
    TooManyLeaving,
    #[error("others change the registry all the time")]
    Busy,
    #[error("the registry has an endpoint of this account that cannot be read")]
    Unreadable,
    #[error("the registry cannot be followed at the moment")]
    NotFollowed,
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<StoreError> for SubscriptionError {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

impl From<AuditError> for SubscriptionError {
    fn from(error: AuditError) -> Self {
        Self::Registry(error.into())
    }
}

impl Judged for SubscriptionError {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Registry(error) => error.verdict(),
            Self::Busy | Self::Unreadable | Self::NotFollowed => Verdict::Failed,
            _ => Verdict::Refused,
        }
    }

    fn told(&self) -> String {
        self.to_string()
    }
}

type Result<T> = std::result::Result<T, SubscriptionError>;

/// What a new endpoint is to be, as far as its merchant says.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub keeper: Keeper,
    pub url: String,
    /// None means all.
    pub events: Vec<EventType>,
    pub description: String,
    /// All that it is signed by.
    pub schemes: Vec<crate::facts::endpoint::Scheme>,
}

/// What stays as it is, is None.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    pub url: Option<String>,
    pub events: Option<Vec<EventType>>,
    pub description: Option<String>,
}

impl Changes {
    /// Of what they change; the values may be somebody's secret.
    fn names(&self) -> String {
        let named = [
            ("url", self.url.is_some()),
            ("events", self.events.is_some()),
            ("description", self.description.is_some()),
        ];
        named.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    fn applied_to(&self, endpoint: &Endpoint) -> Endpoint {
        let mut changed = endpoint.clone();
        if let Some(url) = &self.url {
            changed.url.clone_from(url);
        }
        if let Some(events) = &self.events {
            changed.event_types.clone_from(events);
        }
        if let Some(description) = &self.description {
            changed.description.clone_from(description);
        }
        changed
    }
}

/// What is written of changes: of those that merchants ask for, and of what Herald does after them.
pub struct Audits {
    pub merchants: Audit,
    pub own: Audit,
}

/// The endpoints that merchants keep. Cheap to clone.
#[derive(Clone)]
pub struct Subscriptions(Arc<Inner>);

struct Inner {
    connection: SharedConnection,
    /// The registry, to change it.
    confirming: Confirming,
    keys: PartitionKeys,
    registry: Registry,
    rules: Rules,
    audits: Audits,
    lookups: Semaphore,
    /// One change at a time: those of one process need not be tried anew because of each other.
    turn: Mutex<()>,
}

/// An account's endpoints as they were after one change of the registry.
struct Known {
    last: Stamped,
    endpoints: Vec<Arc<Endpoint>>,
    /// What can be shown of those whose secrets cannot be read.
    locked: Vec<Arc<Endpoint>>,
    is_uncertain: bool,
}

/// A subscription as its merchant sees it.
pub struct Listed {
    pub endpoint: Arc<Endpoint>,
    /// Its secrets cannot be read, so its events wait.
    pub is_locked: bool,
}

impl Subscriptions {
    /// `registry` must be followed for as long as this is used.
    pub fn new(
        redis: Redis,
        keys: PartitionKeys,
        registry: Registry,
        rules: Rules,
        audits: Audits,
        replicas: Replicas,
    ) -> Self {
        let confirming = Confirming::new(&redis, replicas);
        let connection = SharedConnection::new(redis, Purpose::Other);
        let lookups = Semaphore::new(MAX_LOOKUPS);
        Self(Arc::new(Inner { connection, confirming, keys, registry, rules, audits, lookups, turn: Mutex::default() }))
    }

    /// In the order in which they were made.
    pub async fn list(&self, account: &AccountId) -> Result<Vec<Listed>> {
        let Known { endpoints, locked, .. } = self.look(account).await?;
        let listed = |is_locked| move |endpoint| Listed { endpoint, is_locked };
        let all = endpoints.into_iter().map(listed(false)).chain(locked.into_iter().map(listed(true)));
        let mut all: Vec<Listed> = all.filter(|one| is_there(&one.endpoint, Keeper::Merchant)).collect();
        all.sort_by(|a, b| (a.endpoint.created_at_ms, &a.endpoint.id).cmp(&(b.endpoint.created_at_ms, &b.endpoint.id)));
        Ok(all)
    }

    pub async fn get(&self, account: &AccountId, id: &EndpointId) -> Result<Arc<Endpoint>> {
        self.look(account).await?.own(id, Keeper::Merchant).cloned()
    }

    /// Its secret is in the answer, and never again.
    pub async fn create(&self, caller: &Caller, wanted: Wanted) -> Result<(Endpoint, SecretText, Confirmation)> {
        let account = &caller.account;
        let (secret, mark) = (fresh_secret(), mark(account, "created over HTTP"));
        let id = EndpointId::new(&format!("ep_{}", random_part())).expect("base64url has only what ids have");
        let endpoint = Endpoint {
            keeper: wanted.keeper,
            event_types: wanted.events,
            description: wanted.description,
            schemes: wanted.schemes,
            ..Endpoint::new(id, account.clone(), wanted.url, secret.clone(), mark.at_ms)
        };
        self.check_with_url(&endpoint).await?;
        let _turn = self.0.turn.lock().await;
        self.remove_drained(account).await?;
        // What is refused at once leaves no entry: nobody shall fill the audit log with what was not done.
        self.look(account).await?.has_room_for(&endpoint)?;
        let begun = self.begun(caller, Act::EndpointCreate, &mark, &endpoint.id);
        let create = async |_: &mut _| self.create_checked(endpoint, &mark).await;
        let (endpoint, confirmation) = self.0.audits.merchants.audited(begun, create).await?;
        Ok((endpoint, secret, confirmation))
    }

    async fn create_checked(&self, endpoint: Endpoint, mark: &Mark) -> Result<(Endpoint, Confirmation)> {
        for _ in 0..MAX_ROUNDS {
            let known = self.look(&endpoint.account).await?;
            known.has_room_for(&endpoint)?;
            let create = async |store: &mut RegistryStore| store.create_at(known.last, endpoint.clone(), mark).await;
            match self.0.confirming.change(create).await {
                Err(RegistryError::Moved) => {}
                created => return Ok(created?),
            }
        }
        Err(SubscriptionError::Busy)
    }

    pub async fn change(
        &self,
        caller: &Caller,
        id: &EndpointId,
        changes: &Changes,
    ) -> Result<(Endpoint, Confirmation)> {
        let account = &caller.account;
        let seen = self.get(account, id).await?;
        let wanted = changes.applied_to(&seen);
        if wanted.url == seen.url {
            self.0.rules.check_settings(&wanted)?;
        } else {
            self.check_with_url(&wanted).await?;
        }
        let mark = mark(account, "changed over HTTP");
        let _turn = self.0.turn.lock().await;
        let known = self.look(account).await?;
        let before = known.own(id, Keeper::Merchant)?;
        let after = changes.applied_to(before);
        if after == **before {
            return Ok((after, Confirmation::of_nothing()));
        }
        known.has_room_for(&after)?;
        let begun = self.begun(caller, Act::EndpointUpdate, &mark, id).target(changes.names());
        let change = async |_: &mut _| self.change_checked(account, id, changes, &mark).await;
        self.0.audits.merchants.audited(begun, change).await
    }

    async fn change_checked(
        &self,
        account: &AccountId,
        id: &EndpointId,
        changes: &Changes,
        mark: &Mark,
    ) -> Result<(Endpoint, Confirmation)> {
        for _ in 0..MAX_ROUNDS {
            let known = self.look(account).await?;
            let before = known.own(id, Keeper::Merchant)?;
            let after = changes.applied_to(before);
            if after == **before {
                return Ok((after, Confirmation::of_nothing()));
            }
            known.has_room_for(&after)?;
            let update = async |store: &mut RegistryStore| store.update_at(known.last, after, mark).await;
            match self.0.confirming.change(update).await {
                Err(RegistryError::Moved | RegistryError::Stale { .. }) => {}
                updated => return Ok(updated?),
            }
        }
        Err(SubscriptionError::Busy)
    }

    /// It takes nothing any more and is gone for its merchant; its record goes when what it was owed has become dead letters.
    pub async fn delete(&self, caller: &Caller, id: &EndpointId, keeper: Keeper) -> Result<Confirmation> {
        let mark = mark(&caller.account, "deleted over HTTP");
        let known = self.look(&caller.account).await?;
        if let Some(locked) = known.locked.iter().find(|locked| locked.id == *id && is_there(locked, keeper)) {
            return self.remove_locked(caller, locked, &mark).await;
        }
        // First: what is accepted from here on is not owed.
        let last = async |it| Partitions::find(it, &self.0.keys).await?.last_entry_of(&caller.account).await;
        let last = self.with_connection(last).await?;
        let leave = |endpoint: &mut Endpoint| {
            // Or it would be made anew, and nothing were stopped.
            if keeper == Keeper::Merchant && endpoint.stopped_by_operator().is_some() {
                return Err(SubscriptionError::Stopped);
            }
            if !matches!(endpoint.status, EndpointState::Disabled(_)) {
                endpoint.disable(mark.clone(), last);
            }
            endpoint.leaves = true;
            Ok(())
        };
        let (endpoint, confirmation) = self.change_alone(caller, Act::EndpointDelete, id, keeper, &mark, leave).await?;
        self.remove_if_drained(&endpoint).await?;
        Ok(confirmation)
    }

    /// It cannot be written any more, so it is gone at once: what waits for it becomes dead letters.
    async fn remove_locked(&self, caller: &Caller, locked: &Endpoint, mark: &Mark) -> Result<Confirmation> {
        if locked.keeper == Keeper::Merchant && locked.stopped_by_operator().is_some() {
            return Err(SubscriptionError::Stopped);
        }
        let begun = self.begun(caller, Act::EndpointDelete, mark, &locked.id);
        let remove = async |_: &mut _| {
            let done = self.0.confirming.change(async |store| store.remove(&locked.id, None, mark).await).await;
            done.map_err(SubscriptionError::from)
        };
        let ((), confirmation) = self.0.audits.merchants.audited(begun, remove).await?;
        Ok(confirmation)
    }

    /// A new secret, which does not sign before it is activated.
    pub async fn add_secret(&self, caller: &Caller, id: &EndpointId) -> Result<(Endpoint, SecretText, Confirmation)> {
        let mark = mark(&caller.account, "made a secret over HTTP");
        let secret = fresh_secret();
        let add = |endpoint: &mut Endpoint| {
            if endpoint.all_secrets().count() >= MAX_SECRETS {
                return Err(SubscriptionError::TooManySecrets);
            }
            endpoint.spare_secrets.push(Secret::new(secret.clone(), mark.at_ms));
            Ok(())
        };
        let (endpoint, confirmation) =
            self.change_alone(caller, Act::EndpointAddSecret, id, Keeper::Merchant, &mark, add).await?;
        Ok((endpoint, secret, confirmation))
    }

    /// From now on this one makes `dojo-signature`. The one before goes on in `webhook-signature` for a day.
    pub async fn activate(&self, caller: &Caller, id: &EndpointId, secret: &str) -> Result<Confirmation> {
        let mark = mark(&caller.account, "activated a secret over HTTP");
        let activate = |endpoint: &mut Endpoint| {
            if active(endpoint, mark.at_ms).is_some_and(|active| active.value.name() == secret) {
                return Ok(());
            }
            let chosen = take_secret(endpoint, secret)?;
            let chosen = Secret { expires_at_ms: None, ..chosen };
            endpoint.secrets = rotated(std::mem::take(&mut endpoint.secrets), chosen, mark.at_ms, OVERLAP);
            Ok(())
        };
        let act = Act::EndpointActivateSecret;
        self.change_alone(caller, act, id, Keeper::Merchant, &mark, activate)
            .await
            .map(|(_, confirmation)| confirmation)
    }

    pub async fn remove_secret(&self, caller: &Caller, id: &EndpointId, secret: &str) -> Result<Confirmation> {
        let mark = mark(&caller.account, "deleted a secret over HTTP");
        let remove = |endpoint: &mut Endpoint| {
            if active(endpoint, mark.at_ms).is_some_and(|active| active.value.name() == secret) {
                return Err(SubscriptionError::ActiveSecret);
            }
            take_secret(endpoint, secret).map(drop)
        };
        let act = Act::EndpointDropSecret;
        self.change_alone(caller, act, id, Keeper::Merchant, &mark, remove).await.map(|(_, confirmation)| confirmation)
    }

    /// A change that concerns no other endpoint. What is refused at once, or changes nothing, leaves no entry.
    async fn change_alone(
        &self,
        caller: &Caller,
        act: Act,
        id: &EndpointId,
        keeper: Keeper,
        mark: &Mark,
        what: impl Fn(&mut Endpoint) -> Result<()>,
    ) -> Result<(Endpoint, Confirmation)> {
        let account = &caller.account;
        let changed = |known: &Known| -> Result<(Endpoint, bool)> {
            let before = known.own(id, keeper)?;
            let mut after = (**before).clone();
            what(&mut after)?;
            let is_changed = after != **before;
            Ok((after, is_changed))
        };
        let _turn = self.0.turn.lock().await;
        let first = changed(&self.look(account).await?)?;
        if !first.1 {
            return Ok((first.0, Confirmation::of_nothing()));
        }
        let change = async |_: &mut _| {
            let mut next = first;
            for _ in 0..MAX_ROUNDS {
                let (after, is_changed) = next;
                if !is_changed {
                    return Ok((after, Confirmation::of_nothing()));
                }
                match self.0.confirming.change(async |store| store.update(after, mark).await).await {
                    Err(RegistryError::Stale { .. }) => next = changed(&self.look(account).await?)?,
                    updated => return Ok(updated?),
                }
            }
            Err(SubscriptionError::Busy)
        };
        self.0.audits.merchants.audited(self.begun(caller, act, mark, id), change).await
    }

    /// By which key of the account: its name says who that is.
    fn begun(&self, caller: &Caller, act: Act, mark: &Mark, id: &EndpointId) -> Begun {
        let by = format!("key {}", caller.key);
        self.0.audits.merchants.act(act, &by, &mark.why).account(&caller.account).endpoint(id)
    }

    /// Asks a name server, so it must be done before others have to wait.
    async fn check_with_url(&self, endpoint: &Endpoint) -> Result<()> {
        let _place = self.0.lookups.acquire().await.map_err(|_| SubscriptionError::Busy)?;
        Ok(self.0.rules.check(endpoint).await?)
    }

    /// The account's endpoints, as new as Redis is now.
    async fn look(&self, account: &AccountId) -> Result<Known> {
        let registry = &self.0.registry;
        match self.with_store(async |store| store.position().await).await? {
            Some((position, _)) => match timeout(FRESH_WITHIN, registry.refresh_to(&position)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(SubscriptionError::NotFollowed),
            },
            // One that vanished is not begun anew: the worker waits for it to come back.
            None if registry.id().is_some() => return Err(SubscriptionError::NotFollowed),
            None => {
                return Ok(Known {
                    last: Stamped::default(),
                    endpoints: Vec::new(),
                    locked: Vec::new(),
                    is_uncertain: false,
                });
            }
        }
        let found = registry.lookup(account);
        let (last, is_uncertain) = (found.last, found.is_uncertain);
        let locked = registry.locked().into_iter().map(|(endpoint, _)| endpoint);
        let locked = locked.filter(|endpoint| endpoint.account == *account).collect();
        Ok(Known { last, endpoints: found.endpoints.to_vec(), locked, is_uncertain })
    }

    async fn remove_drained(&self, account: &AccountId) -> Result<()> {
        let known = self.look(account).await?;
        for endpoint in known.endpoints.iter().filter(|endpoint| endpoint.leaves) {
            self.remove_if_drained(endpoint).await?;
        }
        Ok(())
    }

    async fn remove_if_drained(&self, endpoint: &Endpoint) -> Result<()> {
        let remove = async |connection: Connection| {
            Ok(remove_if_drained(&connection, &self.0.keys, &self.0.audits.own, endpoint).await.map(drop))
        };
        Ok(self.with_connection(remove).await??)
    }

    async fn with_store<T>(
        &self,
        what: impl AsyncFnOnce(&mut RegistryStore) -> std::result::Result<T, RegistryError>,
    ) -> std::result::Result<T, RegistryError> {
        // A connection that failed is told from a registry that refuses.
        let told = async |connection| match what(&mut RegistryStore::on(connection)).await {
            Err(RegistryError::Store(error)) => Err(error),
            done => Ok(done),
        };
        self.with_connection(told).await?
    }

    async fn with_connection<T>(
        &self,
        what: impl AsyncFnOnce(Connection) -> std::result::Result<T, StoreError>,
    ) -> std::result::Result<T, StoreError> {
        self.0.connection.with(what).await
    }
}

impl Known {
    fn own(&self, id: &EndpointId, keeper: Keeper) -> Result<&Arc<Endpoint>> {
        let found = self.endpoints.iter().find(|endpoint| endpoint.id == *id && is_there(endpoint, keeper));
        // It may be the one that cannot be read.
        found.ok_or(if self.is_uncertain { SubscriptionError::Unreadable } else { SubscriptionError::NotFound })
    }

    /// Whether the account may have this endpoint beside its others.
    fn has_room_for(&self, wanted: &Endpoint) -> Result<()> {
        // It may be a subscription to the same event.
        if self.is_uncertain {
            return Err(SubscriptionError::Unreadable);
        }
        if self.endpoints.iter().filter(|endpoint| endpoint.leaves).count() >= MAX_LEAVING {
            return Err(SubscriptionError::TooManyLeaving);
        }
        let mut others = self.endpoints.iter().filter(|other| other.id != wanted.id && is_there(other, wanted.keeper));
        if wanted.keeper == Keeper::Sandbox {
            return if others.count() < MAX_SANDBOX_ENDPOINTS {
                Ok(())
            } else {
                Err(SubscriptionError::TooManyEndpoints)
            };
        }
        let events: HashSet<_> = wanted.event_types.iter().collect();
        let taken = others.find_map(|other| {
            let event = other.event_types.iter().find(|event| events.contains(event))?;
            Some(SubscriptionError::EventTaken { event: event.clone(), by: other.id.clone() })
        });
        taken.map_or(Ok(()), Err)
    }
}

/// Whether it is there for its merchant, who keeps it in this way.
fn is_there(endpoint: &Endpoint, keeper: Keeper) -> bool {
    endpoint.keeper == keeper && !endpoint.leaves
}

/// The secret that makes `dojo-signature`.
pub fn active(endpoint: &Endpoint, now_ms: u64) -> Option<&Secret> {
    endpoint.secrets.iter().rfind(|secret| secret.is_live(now_ms))
}

fn take_secret(endpoint: &mut Endpoint, name: &str) -> Result<Secret> {
    for secrets in [&mut endpoint.spare_secrets, &mut endpoint.secrets] {
        if let Some(at) = secrets.iter().position(|secret| secret.value.name() == name) {
            return Ok(secrets.remove(at));
        }
    }
    Err(SubscriptionError::SecretNotFound)
}

fn fresh_secret() -> SecretText {
    SecretText::from_random(rand::random())
}

fn mark(account: &AccountId, why: &str) -> Mark {
    Mark { by: account.to_string(), why: why.to_owned(), at_ms: clock::wall_ms() }
}

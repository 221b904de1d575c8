//! Asks Redis for everything that the findings are about. Never judges. What cannot be asked is `None`, with the first
//! error beside it, so that one denied command does not hide the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use super::partitions::Parts;
use crate::{
    clock,
    config::Config,
    facts::{
        endpoint::{Endpoint, EndpointState, Mark},
        id::{AccountId, DeliveryId, EndpointId, EntryId},
        quota,
        unserved::Unserved,
    },
    keyring::is_open_to_everybody,
    store::{
        connection::{Connection, Purpose, Reach, Redis, ServerInfo},
        error::StoreError,
        keys::PartitionKeys,
        nodes::ClusterLook,
        protocol::{CONSUMER, GROUP},
        queries::{
            ConsumerLook, DeadOrder, DeadRange, GroupLook, IntentsLook, IssuesLook, LeaseLook, Oldest, Partitions,
            Pending, Queries, RedisSettings,
        },
        registry::{RegistryError, RegistryStore},
        watch::{self, Gauges},
        workers::{Told, live_workers},
    },
    tls::first_end_s,
};

/// How long the rate of new entries is measured.
const SAMPLE: Duration = Duration::from_secs(1);

/// An entry is settled or has its records a second after its read; what has been pending for this long is stuck.
pub const STUCK_AFTER_MS: u64 = 60_000;

/// How many stuck entries are looked at.
const MAX_STUCK: usize = 100;

/// For how many endpoints the number of unfinished records is read, and for how many the oldest is looked for.
const MAX_BUSY: usize = 10_000;
const MAX_OLDEST: usize = 200;

/// How many records are weighed for the forecast.
const WEIGHED: usize = 20;

/// How many pages of the registry are searched for unreadable endpoints: a hundred thousand endpoints.
const MAX_REGISTRY_PAGES: usize = 200;

/// How many unreadable endpoints are named.
const MAX_UNREADABLE: usize = 20;

#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    pub address: String,
    pub stream: String,
    pub server: Result<Server, String>,
    /// Where Redis is one.
    pub cluster: Option<ClusterLook>,
    /// `None` where the server itself could not be asked.
    pub partition: Option<Partition>,
    pub registry: Option<RegistryLook>,
    pub intents: Option<IntentsLook>,
    /// What fails at endpoints, why and since when.
    pub issues: Option<IssuesLook>,
    /// Of a stream that is split.
    pub parts: Parts,
    /// Accounts with events that nobody is told of, or that are of an unknown type.
    pub unserved: Vec<(AccountId, Unserved)>,
    /// What the live workers tell of themselves.
    pub workers: Vec<Told>,
    /// What could not be asked, and why.
    pub unasked: Vec<String>,
    pub limits: Limits,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    pub info: ServerInfo,
    pub settings: RedisSettings,
    pub reach: Reach,
    /// Whether Redis serves anyone who connects; `None` if that could not be found out.
    pub lets_strangers_in: Option<bool>,
    pub our_now_ms: u64,
    pub redis_now_ms: u64,
    pub round_trip_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Partition {
    pub gauges: Gauges,
    /// Entries that were added within `sample_ms`.
    pub added_in_sample: u64,
    pub sample_ms: u64,
    pub stream_bytes: u64,
    pub record_bytes: u64,
    pub records_weighed: u64,
    pub lease: Option<LeaseLook>,
    pub groups: Vec<GroupLook>,
    /// The consumers of Herald's group, except Herald's own.
    pub foreign_consumers: Vec<ConsumerLook>,
    pub stuck: Vec<Pending>,
    pub oldest_unread: Option<EntryId>,
    pub bound_registry: Option<String>,
    /// The oldest first.
    pub oldest: Vec<Oldest>,
    pub busy_endpoints: usize,
    /// Roughly what the records of each endpoint take in Redis, the heaviest first.
    pub weights: Vec<(EndpointId, u64)>,
    pub oldest_dead_ms: Option<u64>,
    /// When Redis' clock last stepped, and by how many ms.
    pub clock_step: Option<(u64, i64)>,
    /// Events that are missing in the feeds of payment intents.
    pub lost_from_feeds: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum RegistryLook {
    NeverMade,
    Damaged(String),
    There {
        id: String,
        endpoints: u64,
        unreadable: Vec<String>,
        pause: Option<Mark>,
        /// The endpoints that have records.
        holders: BTreeMap<EndpointId, RecordHolder>,
        seal: SealLook,
        /// When what these show to their receivers ends, in milliseconds since 1970.
        certificates: BTreeMap<EndpointId, u64>,
    },
}

/// How the values of the endpoints are kept, and the file of keys here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SealLook {
    pub sealed: u64,
    pub unsealed: u64,
    /// This process has keys.
    pub has_keys: bool,
    /// Everybody on this machine may read them.
    pub open_file: Option<PathBuf>,
}

/// An endpoint that has records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHolder {
    pub account: AccountId,
    /// Nothing is sent to it.
    pub is_paused: bool,
}

impl RecordHolder {
    fn of(endpoint: &Endpoint) -> Self {
        let is_paused = matches!(endpoint.status, EndpointState::Paused(_));
        Self { account: endpoint.account.clone(), is_paused }
    }
}

/// What the configuration says about the things looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub lease_ttl_ms: u64,
    pub dead_max_count: u64,
    pub dead_max_age_ms: u64,
    pub max_age_ms: u64,
    pub quotas: quota::Settings,
    /// Payment intents, by whoever has this configuration.
    pub are_intents_served: bool,
    pub is_sandbox: bool,
    /// `redis.wait`; 0 where it says nothing.
    pub replicas_wanted: u8,
}

impl Observed {
    pub fn redis_now_ms(&self) -> Option<u64> {
        self.server.as_ref().ok().map(|server| server.redis_now_ms)
    }
}

pub async fn observe(redis: Redis, keys: PartitionKeys, config: &Config) -> Observed {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let limits = Limits {
        lease_ttl_ms: millis(config.lease.ttl),
        dead_max_count: config.limits.dead_letters.max_count,
        dead_max_age_ms: millis(config.limits.dead_letters.max_age),
        max_age_ms: millis(config.retry.max_age),
        quotas: config.quotas,
        are_intents_served: config.intents.listen.is_some(),
        is_sandbox: config.intents.sandbox,
        replicas_wanted: config.redis.wait.unwrap_or(0),
    };
    let mut observed = Observed {
        address: redis.address().to_owned(),
        stream: keys.stream().to_owned(),
        server: Err(String::new()),
        cluster: None,
        partition: None,
        registry: None,
        intents: None,
        issues: None,
        unserved: Vec::new(),
        parts: Parts::default(),
        workers: Vec::new(),
        unasked: Vec::new(),
        limits,
    };
    let connected = redis.connect(Purpose::Other).await;
    // A Cluster whose home nobody serves has others who know that.
    observed.cluster = match redis.look_at_nodes().await {
        Some(look) => keep(&mut observed.unasked, look),
        None => None,
    };
    observed.address = redis.home_address().await;
    let mut connection = match connected {
        Ok(connection) => connection,
        Err(error) => return Observed { server: Err(error.to_string()), ..observed },
    };
    let mut queries = Queries::new(connection.clone(), keys.clone());
    observed.server = server(&redis, &mut connection, &mut queries).await.map_err(|error| error.to_string());
    if observed.server.is_err() {
        return observed;
    }
    let unasked = &mut observed.unasked;
    observed.partition = keep(unasked, partition(&mut connection, &mut queries).await);
    observed.intents = keep(unasked, queries.intents().await);
    if let Some(now_ms) = observed.server.as_ref().ok().map(|server| server.redis_now_ms) {
        let mut registry = RegistryStore::on(connection.clone());
        if let Some(mut all) = keep(unasked, Partitions::find(connection.clone(), &keys).await) {
            if all.are_many() {
                let looks = keep(unasked, all.look().await).unwrap_or_default();
                observed.parts = Parts { looks, silent: all.unavailable() };
            }
            observed.issues = keep(unasked, all.issues(&mut registry, now_ms).await);
            observed.unserved = keep(unasked, all.unserved().await).unwrap_or_default();
        }
    }
    let weights = observed.partition.iter().flat_map(|partition| &partition.weights);
    let weighed = weights.map(|(endpoint, _)| endpoint.clone()).collect();
    let file = redis.keyring().path().map(Path::to_path_buf);
    let seal = SealLook {
        has_keys: file.is_some(),
        open_file: file.filter(|file| is_open_to_everybody(file)),
        ..SealLook::default()
    };
    observed.workers = keep(unasked, live_workers(&mut connection).await).unwrap_or_default();
    observed.registry = keep(unasked, registry(connection, &weighed, seal).await);
    observed
}

async fn server(redis: &Redis, connection: &mut Connection, queries: &mut Queries) -> Result<Server, StoreError> {
    let info = connection.server_info().await?;
    let settings = queries.settings().await?;
    let lets_strangers_in = redis.lets_strangers_in().await;
    let (before, started) = (clock::wall_ms(), clock::now());
    let redis_now_ms = queries.now_ms().await?;
    let round_trip_ms = started.elapsed().as_millis() as u64;
    // Redis read its clock somewhere between the question and the answer.
    let our_now_ms = before + round_trip_ms / 2;
    Ok(Server { info, settings, reach: redis.reach(), lets_strangers_in, our_now_ms, redis_now_ms, round_trip_ms })
}

async fn partition(connection: &mut Connection, queries: &mut Queries) -> Result<Partition, StoreError> {
    let keys = queries.keys().clone();
    let first = watch::gauges(connection, &keys).await?;
    let groups = queries.groups().await?;
    let mut partition = Partition {
        lease: queries.lease().await?,
        bound_registry: queries.bound_registry().await?,
        clock_step: queries.clock_step().await?,
        lost_from_feeds: queries.lost_from_feeds().await?,
        stream_bytes: queries.stream_bytes().await?,
        ..Partition::default()
    };
    if let Some(group) = groups.iter().find(|group| group.name == GROUP) {
        let consumers = queries.consumers().await?;
        partition.foreign_consumers = consumers.into_iter().filter(|consumer| consumer.name != CONSUMER).collect();
        partition.stuck = queries.pending(STUCK_AFTER_MS, MAX_STUCK).await?;
        partition.oldest_unread = queries.oldest_unread(group.last_delivered).await?;
    }
    let busy = queries.busy_endpoints(MAX_BUSY).await?;
    partition.busy_endpoints = busy.len();
    partition.weights = queries.record_weights(&busy).await?;
    partition.oldest = queries.oldest(&busy[..busy.len().min(MAX_OLDEST)]).await?;
    partition.oldest.sort_by_key(|one| one.oldest.as_ref().map_or(EntryId::MAX, |id| id.entry));
    let heads: Vec<DeliveryId> = partition.oldest.iter().filter_map(|one| one.oldest.clone()).take(WEIGHED).collect();
    (partition.record_bytes, partition.records_weighed) = queries.sample_record_bytes(&heads).await?;
    let everything = DeadRange { endpoint: None, from_ms: 0, until_ms: u64::MAX };
    let dead = queries.dead(&everything, DeadOrder::OldestFirst, None, 1).await?;
    partition.oldest_dead_ms = dead.letters.first().map(|letter| letter.at_ms);
    tokio::time::sleep(SAMPLE).await;
    partition.gauges = watch::gauges(connection, &keys).await?;
    partition.added_in_sample = partition.gauges.added.saturating_sub(first.added);
    partition.sample_ms = partition.gauges.now_ms.saturating_sub(first.now_ms).max(1);
    partition.groups = groups;
    Ok(partition)
}

async fn registry(
    connection: Connection,
    weighed: &BTreeSet<EndpointId>,
    mut seal: SealLook,
) -> Result<RegistryLook, RegistryError> {
    let mut store = RegistryStore::on(connection);
    let (position, pause) = match store.position().await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(RegistryLook::NeverMade),
        Err(RegistryError::Damaged(why)) => return Ok(RegistryLook::Damaged(why)),
        Err(error) => return Err(error),
    };
    let (mut endpoints, mut unreadable, mut cursor) = (0, Vec::new(), None);
    let (mut holders, mut certificates) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..MAX_REGISTRY_PAGES {
        let page = store.list(cursor).await?;
        endpoints += page.endpoints.len() as u64;
        for endpoint in &page.endpoints {
            seal.unsealed += endpoint.unsealed_values as u64;
            seal.sealed += endpoint.secret_values().saturating_sub(endpoint.unsealed_values) as u64;
            certificates.extend(certificate_end_ms(endpoint).map(|end_ms| (endpoint.id.clone(), end_ms)));
        }
        let heavy = page.endpoints.iter().filter(|endpoint| weighed.contains(&endpoint.id));
        holders.extend(heavy.map(|endpoint| (endpoint.id.clone(), RecordHolder::of(endpoint))));
        unreadable.extend(page.unreadable.into_iter().map(|one| format!("{} ({})", one.id, one.why)));
        unreadable.truncate(MAX_UNREADABLE);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    Ok(RegistryLook::There { id: position.id.to_string(), endpoints, unreadable, pause, holders, seal, certificates })
}

fn certificate_end_ms(endpoint: &Endpoint) -> Option<u64> {
    let end_s = endpoint.shown_certificate().and_then(|pem| first_end_s(pem.as_bytes()))?;
    Some(u64::try_from(end_s).unwrap_or(0) * 1000)
}

fn keep<T, E: std::fmt::Display>(unasked: &mut Vec<String>, result: Result<T, E>) -> Option<T> {
    result.map_err(|error| unasked.push(error.to_string())).ok()
}

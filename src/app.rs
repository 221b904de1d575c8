//! Puts a worker together from its configuration and runs it until a signal ends it. Wires; decides nothing.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZero,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User, gethostname};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use crate::{
    api::{
        self,
        webhooks::subscriptions::{Audits, Subscriptions},
    },
    clock,
    config::{Config, Start, redis_places},
    console, descriptors,
    dispatch::{
        attempts::{Crew, Senders},
        breaker::BreakerSettings,
        budgets::Budgets,
        fleet::{Fleet, Shared, Standings, Threads},
        membership::{Doing, Settings as Share},
        partition::{ACQUIRE_EVERY_MS, ACQUIRE_SOON_MS, Happening, Settings},
        presence::{Company, OwnShare, Presence},
        shared_budgets::SharedBudgets,
        sharing::{AskedBy, FleetSeen, Sharing, Shown},
        worker::{Parts, routing},
    },
    facts::{
        audit::{Origin, Surface},
        partition::{Accounts, MAX_PARTS, hash_tag},
        retry::RetryPolicy,
    },
    history::{
        History,
        follower::{Follower, Settings as HistorySettings},
    },
    http,
    http::entrance::{Certificate, Entrance},
    intents,
    keyring::Keyring,
    registry::{Registry, RegistryState, rules::Rules, sweep},
    sender::{EgressProxy, Found, Own, Sender, SenderConfig, certificates_from_pem},
    service::{self, Health, Operations, Serves},
    store::{
        self,
        audit::{Audit, Retention},
        connection::Redis,
        encryption::TlsFiles,
        keys::{PartitionKeys, RegistryKeys},
        routing::Replicas,
    },
    systemd,
    telemetry::{
        intents::IntentMetrics,
        log_line,
        metrics::{Metrics, page_of_process},
        readiness::Readiness,
        traces,
    },
    tls::install_crypto_provider,
};

/// How often a process that has only payment intents looks whether Redis answers.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a page of a replay may take: other operations wait for it.
const HISTORY_PATIENCE: Duration = Duration::from_secs(3);

/// For the last spans, once everything else is done: a collector that is away must not hold a stop up.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// What stopping may take beyond the configured grace: records of what was delivered in part, the last settle and the release
/// of the lease.
const LAST_CALLS: Duration = Duration::from_secs(6);

/// `herald serve`: works until SIGTERM or SIGINT; a second one ends it at once.
pub async fn serve(config: Config) -> Result<()> {
    let mut ends = Ends::new()?;
    let cancel = CancellationToken::new();
    let serving = traced(run(&config, cancel.clone(), None));
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return ended,
        name = ends.next() => info!(signal = name, "stopping; once more ends it at once"),
    }
    cancel.cancel();
    tokio::select! {
        ended = &mut serving => ended,
        name = ends.next() => bail!("ended by a second {name}: what was in flight is delivered again by the next owner"),
        () = tokio::time::sleep(config.shutdown.grace + LAST_CALLS) => {
            bail!("Redis did not take the last changes in time; the next owner delivers again what was in flight")
        }
    }
}

/// Does something whose spans are sent, where the environment asks for traces, and sends the last of them.
pub async fn traced<T>(does: impl Future<Output = Result<T>>) -> Result<T> {
    install_crypto_provider();
    traces::start(&owner_name(), Handle::current())?;
    let done = does.await;
    traces::stop(LAST_SPANS).await;
    done
}

fn threads(config: &Config) -> Threads {
    let processors = || thread::available_parallelism().map_or(1, NonZero::get);
    Threads::of(config.threads.map_or_else(processors, usize::from))
}

/// Those of a worker: one for each thread of attempts, and one for receivers that are not proven.
fn senders(threads: Threads) -> u64 {
    threads.attempts as u64 + 1
}

/// How many connections each of so many senders may have.
fn connections_each(config: &Config, senders: u64) -> usize {
    descriptors::connections_each(senders, callers(config, senders))
}

/// How many callers of the payment intents this process may have at once beside so many senders.
fn callers(config: &Config, senders: u64) -> usize {
    let most = http::server::LIMITS.connections;
    service::API_CONNECTIONS + config.intents.listen.map_or(0, |_| descriptors::connections_of_callers(most, senders))
}

/// The worker, its registry and its service, until cancelled.
pub async fn run(config: &Config, cancel: CancellationToken, listener: Option<mpsc::Sender<Happening>>) -> Result<()> {
    log_line::identify(&owner_name(), &config.stream.name);
    install_crypto_provider();
    descriptors::raise_limit();
    let keyring = served_keyring(config)?;
    let redis = redis(config)?.sealed_by(keyring.clone());
    let registry = Registry::new();
    let keys = PartitionKeys::new(&config.stream.name)?;
    let (own, own_seen) = watch::channel(OwnShare::default());
    // Who works is told in the registry's slot: that of a stream may be away meanwhile.
    let told_in = redis.at_home_in(RegistryKeys::slot());
    let (presence, gives_way, company) =
        Presence::new(told_in.clone(), registry.clone(), keys.clone(), worker_id(config), own_seen);
    let readiness = Readiness::new();
    readiness.await_endpoints();
    let metrics = Metrics::new(readiness.clone());
    let (standings, asked_by) = (Standings::default(), AskedBy::default());
    let share =
        Share { id: worker_id(config), weight: config.worker.weight, lease_ms: config.lease.ttl.as_millis() as u64 };
    let fleet_seen = FleetSeen { standings: standings.watch(), asked_by: asked_by.watch() };
    let shown = Shown { readiness: readiness.clone(), metrics: metrics.clone() };
    let (sharing, wanted) = Sharing::new(told_in, keys, share, own, company.clone(), fleet_seen, shown);
    let threads = threads(config);
    let senders = senders(threads);
    let sending = |_| Ok::<_, anyhow::Error>(Arc::new(sender_of(config, redis.clone(), senders)?));
    let proven: Vec<Arc<Sender>> = (0..threads.attempts).map(sending).collect::<Result<_>>()?;
    let partitions = Partitions {
        config: config.clone(),
        redis: redis.clone(),
        audit: audit(config, Surface::Worker)?,
        registry: registry.clone(),
        gives_way,
        sender: Arc::clone(&proven[0]),
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        standings: standings.clone(),
        asked_by,
        shared_budgets: SharedBudgets::new(Partitions::budgets(config, senders), threads.attempts),
        listener,
        senders,
        company,
    };
    let follower = follower(config, redis.clone(), &standings, metrics.clone())?;
    // What is wrong with the configuration is said before anything is begun.
    partitions.settings(&config.stream.name)?;
    let crew =
        Crew::start(Senders { proven, unproven: sending(0)? }).context("cannot start the threads for attempts")?;
    let fleet = Fleet::start(threads.loops, crew, standings, readiness.clone(), move |stream, shared| {
        Ok(partitions.partition(stream, shared)?)
    });
    let fleet = fleet.context("cannot start the threads for partitions")?;
    let socket = bound(config.listen, "listen, HERALD_LISTEN").await?;
    let of_health = match config.metrics_listen {
        Some(address) => Some(bound(address, "metrics_listen, HERALD_METRICS_LISTEN").await?),
        None => None,
    };
    let rest = CancellationToken::new();
    let entrance = entrance(config, &rest)?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        "herald serves the stream {} of Redis at {}, and listens on {}",
        config.stream.name,
        redis.address(),
        config.listen
    );
    // The worker ends first: until then the registry is followed, and `/readyz` says that it drains.
    let sweeping = tokio::spawn(sweep::run(
        registry.clone(),
        redis.clone(),
        PartitionKeys::new(&config.stream.name)?,
        audit(config, Surface::Worker)?,
        rest.clone(),
    ));
    let telling_keys = tokio::spawn(tell_missing_keys(registry.clone(), readiness.clone(), rest.clone()));
    let following = tokio::spawn(registry.clone().run(redis.clone(), rest.clone()));
    let unlocking = tokio::spawn(keyring.clone().follow(rest.clone()));
    let presenting = tokio::spawn(presence.run(rest.clone()));
    let remembering = tokio::spawn(remember(follower, rest.clone()));
    let sharing = tokio::spawn(sharing.run(cancel.clone()));
    let (mut page, mut intents) = (metrics.page().and(registry.page()), None);
    if let Some(address) = config.intents.listen {
        let counted = IntentMetrics::default();
        page = page.and(counted.page());
        let serving = serve_payment_intents(
            config,
            address,
            &entrance,
            senders,
            (redis.clone(), registry.clone()),
            counted,
            rest.clone(),
        );
        intents = Some(tokio::spawn(serving.await?));
    }
    let operations = operations(config, redis, registry.clone())?;
    let health = Health { readiness: readiness.clone(), metrics: page };
    let serving = match of_health {
        None => vec![service(socket, entrance, Serves::Both(health, operations), &rest)?],
        Some(of_health) => vec![
            service(of_health, Entrance::default(), Serves::Health(health), &rest)?,
            service(socket, entrance, Serves::Operations(operations), &rest)?,
        ],
    };
    let telling = tokio::spawn(systemd::tell(readiness.clone(), keyring.clone(), cancel.clone(), rest.clone()));
    let mut shared = Ok(());
    let end = left(sharing, cancel, config.shutdown.grace, &readiness, &mut shared);
    let worked = fleet.run(wanted, end).await;
    rest.cancel();
    if let Some(intents) = intents
        && let Err(error) = intents.await
    {
        warn!(%error, "the payment intents failed");
    }
    let tasks = [
        (following, "the registry's follower"),
        (sweeping, "the sweep of expired secrets"),
        (unlocking, "what follows the keys"),
        (presenting, "what tells the other workers"),
        (remembering, "the history's follower"),
        (telling, "what tells systemd"),
        (telling_keys, "what looks for missing keys"),
    ];
    for (task, what) in tasks {
        if let Err(error) = task.await {
            warn!(%error, "{what} failed");
        }
    }
    for serving in serving {
        if serving.await.is_err() {
            warn!("the service failed");
        }
    }
    worked?;
    shared?;
    info!("herald has stopped");
    Ok(())
}

/// `herald intents serve`: the payment intents alone, until SIGTERM or SIGINT.
pub async fn serve_intents(config: Config) -> Result<()> {
    traced(run_intents(config)).await
}

async fn run_intents(config: Config) -> Result<()> {
    let mut ends = Ends::new()?;
    let cancel = CancellationToken::new();
    let Some(address) = config.intents.listen else {
        bail!("intents.listen (HERALD_INTENTS_LISTEN) is empty: name an address and a port, such as 127.0.0.1:8090");
    };
    log_line::identify(&owner_name(), &config.stream.name);
    descriptors::raise_limit();
    let counted = IntentMetrics::default();
    let (registry, keyring) = (Registry::new(), served_keyring(&config)?);
    let redis = redis(&config)?.sealed_by(keyring.clone());
    let shared = (redis.clone(), registry.clone());
    let entrance = entrance(&config, &cancel)?;
    let serving = serve_payment_intents(&config, address, &entrance, 0, shared, counted.clone(), cancel.clone());
    let serving = serving.await?;
    if let Some(address) = config.intents.metrics_listen {
        show_health(&config, address, &counted, registry.clone(), cancel.clone()).await?;
    }
    let serving = tokio::spawn(serving);
    let presence = Presence::without_lease(redis.clone(), registry.clone(), format!("{} (intents)", owner_name()));
    let presenting = tokio::spawn(presence.run(cancel.clone()));
    let following = tokio::spawn(registry.run(redis, cancel.clone()));
    let unlocking = tokio::spawn(keyring.follow(cancel.clone()));
    let name = ends.next().await;
    info!(signal = name, "stopping; once more ends it at once");
    cancel.cancel();
    tokio::select! {
        ended = async { tokio::join!(serving, following, unlocking, presenting) } => {
            ended.0?;
            ended.1?;
            ended.2?;
            Ok(ended.3?)
        }
        name = ends.next() => bail!("ended by a second {name}"),
    }
}

/// A listener, or an error that names the setting.
async fn bound(address: SocketAddr, setting: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} ({setting})"))
}

fn service(
    socket: TcpListener,
    entrance: Entrance,
    serves: Serves,
    shutdown: &CancellationToken,
) -> Result<oneshot::Receiver<()>> {
    service::start(socket.into_std()?, entrance, serves, shutdown.clone()).context("cannot start the service's thread")
}

/// How callers come in. Its certificate is followed until cancelled.
fn entrance(config: &Config, cancel: &CancellationToken) -> Result<Entrance> {
    let certificate = api_certificate(config)?;
    let entrance = Entrance::new(certificate.as_ref(), &config.api.trusted_proxies);
    if let Some(certificate) = certificate {
        tokio::spawn(cancel.clone().run_until_cancelled_owned(certificate.follow()));
    }
    Ok(entrance)
}

/// What the API shows of itself, if its connections are encrypted.
pub fn api_certificate(config: &Config) -> Result<Option<Certificate>> {
    install_crypto_provider();
    Ok(config.api.identity.clone().map(Certificate::read).transpose()?)
}

/// Health, readiness and metrics of a process that has nothing but payment intents, until cancelled.
async fn show_health(
    config: &Config,
    address: SocketAddr,
    counted: &IntentMetrics,
    registry: Registry,
    cancel: CancellationToken,
) -> Result<()> {
    let socket = bound(address, "intents.metrics_listen, HERALD_INTENTS_METRICS_LISTEN").await?;
    let (readiness, metrics) = (Readiness::new(), page_of_process().and(counted.page()));
    let health = Serves::Health(Health { readiness: readiness.clone(), metrics });
    service(socket, Entrance::default(), health, &cancel)?;
    let service = intents(config)?;
    readiness.await_endpoints();
    tokio::spawn(cancel.run_until_cancelled_owned(async move {
        loop {
            readiness.set_redis(service.now().await.is_ok());
            if registry.state() != RegistryState::Loading {
                readiness.set_missing_keys(registry.missing_keys());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }));
    Ok(())
}

/// Serves payment intents until cancelled, once it listens, beside so many senders. Somebody must follow the registry.
async fn serve_payment_intents(
    config: &Config,
    address: SocketAddr,
    entrance: &Entrance,
    senders: u64,
    (redis, registry): (Redis, Registry),
    counted: IntentMetrics,
    cancel: CancellationToken,
) -> Result<impl Future<Output = ()> + use<>> {
    let keys = PartitionKeys::new(&config.stream.name)?;
    let rules = Rules::new(sender(config, redis.clone())?.guard().clone(), RetryPolicy::try_new(config.retry)?);
    let audits = Audits { merchants: audit(config, Surface::Http)?, own: audit(config, Surface::Worker)? };
    let subscriptions = Subscriptions::new(redis.clone(), keys, registry.clone(), rules, audits, replicas(config));
    let service = intents(config)?.counted_by(counted.clone());
    let limits = http::server::Limits { connections: callers(config, senders), ..http::server::LIMITS };
    let listener = bound(address, "intents.listen, HERALD_INTENTS_LISTEN").await?;
    let address = listener.local_addr()?;
    let scheme = if entrance.tls().is_some() { "https" } else { "http" };
    let public_url = config.intents.public_url.as_ref().map_or_else(|| format!("{scheme}://{address}"), Url::to_string);
    let access = api::access::Access::new(redis);
    let history = History::new(config.history.clone(), &config.stream.name, HISTORY_PATIENCE);
    let api = api::intents::Api::new(service.clone(), access, registry, subscriptions, history, &public_url);
    let mut router = api::intents::router(api.clone(), config.intents.sandbox);
    if config.intents.sandbox {
        router = router.merge(api::checkout::router(api));
    }
    info!("payment intents are served on {address}{}", if config.intents.sandbox { ", as a sandbox" } else { "" });
    let (answered, entrance) = (move |code, took| counted.answered(code, took), entrance.clone());
    Ok(async move {
        tokio::select! {
            () = http::server::serve(listener, entrance, router, limits, answered, cancel) => {}
            () = service.run_scheduler() => {}
        }
    })
}

/// The operations API and the console before it, as they are configured. Somebody must follow the registry.
fn operations(config: &Config, redis: Redis, registry: Registry) -> Result<Operations> {
    let sender = Arc::new(sender(config, redis.clone())?);
    let rules = Rules::new(sender.guard().clone(), RetryPolicy::try_new(config.retry)?);
    let api = api::v1::Api::new(api::v1::Parts {
        redis,
        keys: PartitionKeys::new(&config.stream.name)?,
        registry,
        rules,
        sender,
        audit: audit(config, Surface::Http)?,
        intents: intents(config)?,
        admin_token: config.admin_token.as_ref().map(|token| token.reveal().to_owned()),
        strict_events: config.events.strict,
        history: config.history.clone(),
        replicas: replicas(config),
    });
    let secret = config.session_key.as_ref().or(config.admin_token.as_ref());
    let console = console::routes(api.clone(), secret.map(|secret| secret.reveal()));
    let router = console.fallback_service(api::v1::served(api));
    Ok(Operations { router, runtime: Handle::current(), large_bodies: api::v1::events::BATCH_PATH })
}

/// Replicas that what is answered to somebody, or crosses a slot, waits for.
pub fn replicas(config: &Config) -> Replicas {
    Replicas { wanted: config.redis.wait, timeout: config.redis.wait_timeout }
}

/// Reads the logs of the stream and all its parts into the history, if there is to be one; first those that this process works on.
fn follower(config: &Config, redis: Redis, standings: &Standings, metrics: Metrics) -> Result<Option<Follower>> {
    let Some(url) = config.history.url.clone() else { return Ok(None) };
    let settings = HistorySettings { url, keep: config.history.keep, bodies: config.history.bodies };
    let (root, standings) = (PartitionKeys::new(&config.stream.name)?, standings.watch());
    let works_on = move |stream: &str| matches!(standings.borrow().get(stream), Some(Doing::Owned | Doing::Stopping));
    Ok(Some(Follower::new(settings, redis, root, works_on, metrics)))
}

async fn remember(follower: Option<Follower>, cancel: CancellationToken) {
    if let Some(follower) = follower {
        follower.run(cancel).await;
    }
}

/// Keys that endpoints need and this process does not have, once the endpoints were read.
async fn tell_missing_keys(registry: Registry, readiness: Readiness, cancel: CancellationToken) {
    let mut changes = registry.changes();
    let telling = async {
        loop {
            if registry.state() != RegistryState::Loading {
                readiness.set_missing_keys(registry.missing_keys());
            }
            if changes.next().await.is_none() {
                return;
            }
        }
    };
    cancel.run_until_cancelled(telling).await;
}

/// Until others have taken over what this worker has, once it is told to end; but for no longer than half the grace, so that what is in
/// flight then has its time, too. Returns how much of it.
async fn left(
    mut sharing: JoinHandle<()>,
    cancel: CancellationToken,
    grace: Duration,
    readiness: &Readiness,
    shared: &mut Result<()>,
) -> Duration {
    const PANICKED: &str = "what shares the partitions has panicked, for the reason that stands above: nothing is lost, start Herald again";
    tokio::select! {
        ended = &mut sharing => {
            *shared = ended.context(PANICKED);
            return grace;
        }
        () = cancel.cancelled() => readiness.set_draining(),
    }
    let since = clock::now();
    match timeout(grace / 2, &mut sharing).await {
        Ok(ended) => *shared = ended.context(PANICKED),
        Err(_) => warn!("not everything was taken over by other workers in time: they have it once this one ends"),
    }
    grace.saturating_sub(clock::now().saturating_duration_since(since))
}

/// What partitions are made of, whichever these are.
struct Partitions {
    config: Config,
    redis: Redis,
    audit: Audit,
    registry: Registry,
    gives_way: watch::Receiver<bool>,
    sender: Arc<Sender>,
    metrics: Metrics,
    readiness: Readiness,
    standings: Standings,
    asked_by: AskedBy,
    shared_budgets: SharedBudgets,
    listener: Option<mpsc::Sender<Happening>>,
    /// How many senders there are.
    senders: u64,
    /// Who was heard of, and which partitions there are.
    company: watch::Receiver<Option<Company>>,
}

impl Partitions {
    /// What each might have alone.
    fn budgets(config: &Config, senders: u64) -> Budgets {
        let bytes = usize::try_from(config.limits.body_bytes).unwrap_or(usize::MAX);
        let in_flight = usize::try_from(config.limits.in_flight).unwrap_or(usize::MAX);
        Budgets::of(bytes).waiting_for(in_flight).within(connections_each(config, senders))
    }

    fn settings(&self, stream: &str) -> Result<Settings> {
        let config = &self.config;
        let is_root = stream == config.stream.name;
        let limits = &config.limits;
        Ok(Settings {
            owner: worker_id(config),
            policy: RetryPolicy::try_new(config.retry)?,
            breaker: BreakerSettings {
                failure_share: limits.breaker.failure_share,
                cooldown_ms: limits.breaker.cooldown.as_millis() as u64,
                max_cooldown_ms: limits.breaker.max_cooldown.as_millis() as u64,
            },
            budgets: Self::budgets(config, self.senders),
            lease_ms: config.lease.ttl.as_millis() as u64,
            acquire_every_ms: if self.is_shared() { ACQUIRE_SOON_MS } else { ACQUIRE_EVERY_MS },
            start: match config.stream.start {
                Start::Oldest => store::protocol::Start::Oldest,
                Start::New => store::protocol::Start::Newest,
                Start::After(entry) => store::protocol::Start::After(entry),
            },
            retain_ms: config.stream.retain.as_millis() as u64,
            trim_ignores: config.stream.trim_ignores.clone(),
            dead_max_age_ms: limits.dead_letters.max_age.as_millis() as u64,
            dead_max_count: limits.dead_letters.max_count,
            quarantine_bytes: limits.quarantine_bytes,
            strict_events: config.events.strict,
            accounts: self.company.borrow().as_ref().map_or(Accounts::ALL, |company| company.layout.accounts(stream)),
            // A part is split by an operator alone.
            parts: if is_root { config.stream.partitions } else { 1 },
            most_parts: match hash_tag(stream.as_bytes()) {
                Some(_) => 0,
                None => MAX_PARTS / self.parts_above(stream),
            },
        })
    }

    /// There are several streams, so who waits for one has good reason to.
    fn is_shared(&self) -> bool {
        self.company.borrow().as_ref().is_some_and(|company| company.layout.streams().len() > 1)
    }

    /// Into how many parts the levels above a stream split, all together.
    fn parts_above(&self, stream: &str) -> u32 {
        self.company.borrow().as_ref().map_or(1, |company| company.layout.above(stream))
    }

    /// The one on this stream.
    fn partition(&self, stream: &str, Shared { attempts, pool, grace }: Shared) -> Result<Parts> {
        let config = &self.config;
        let limits = &config.limits;
        let (keys, metrics) = (PartitionKeys::new(stream)?, self.metrics.partition(stream));
        Ok(Parts {
            redis: self.redis.at_home_in(keys.slot()).sharing(pool),
            keys,
            root: PartitionKeys::new(&config.stream.name)?,
            audit: self.audit.clone(),
            settings: self.settings(stream)?,
            routing: routing::Settings {
                above: self.parts_above(stream),
                replicas: replicas(config),
                retain_ms: config.stream.route_retain.as_millis() as u64,
            },
            attempt_log_len: limits.attempt_log_entries,
            history_log_bytes: if config.history.url.is_some() { config.history.log_bytes } else { 0 },
            keeps_events: config.history.url.is_some() && !config.history.bodies.is_zero(),
            quotas: config.quotas,
            disable_after: limits.disable_after,
            registry: self.registry.clone(),
            gives_way: self.gives_way.clone(),
            history: History::new(config.history.clone(), &config.stream.name, HISTORY_PATIENCE),
            sender: Arc::clone(&self.sender),
            attempts,
            metrics,
            readiness: self.readiness.of(stream),
            standing: self.standings.clone(),
            asked_by: self.asked_by.clone(),
            share: self.shared_budgets.share(),
            listener: self.listener.clone(),
            grace: config.shutdown.grace,
            ends_within: grace,
        })
    }
}

/// The audit log as it is configured, for what is done by this surface of this process.
pub fn audit(config: &Config, surface: Surface) -> Result<Audit> {
    let limits = &config.limits.audit;
    let retention = Retention { max_count: limits.max_count, max_age_ms: limits.max_age.as_millis() as u64 };
    Ok(Audit::new(redis(config)?, retention, origin(surface)))
}

/// Where an act of this process comes from.
pub fn origin(surface: Surface) -> Origin {
    Origin { surface, host: host_name(), process: std::process::id(), user: user_name() }
}

/// Whoever runs this process, as the operating system knows them; a container has numbers without names.
fn user_name() -> Option<String> {
    let uid = Uid::current();
    let named = User::from_uid(uid).ok().flatten().map(|user| user.name);
    Some(named.unwrap_or_else(|| format!("uid {uid}")))
}

/// The payment intents as they are configured, for whoever serves them or works on them.
pub fn intents(config: &Config) -> Result<intents::service::Service> {
    let keys = PartitionKeys::new(&config.stream.name)?;
    let retain = config.intents.retain.as_micros().try_into().unwrap_or(i64::MAX);
    let settings = intents::service::Settings { retain, zone: config.intents.zone.clone() };
    Ok(intents::service::Service::new(redis(config)?, keys, settings))
}

/// The keys as they are configured.
pub fn keyring(config: &Config) -> Result<Keyring> {
    Ok(Keyring::open(config.seal.master_key_file.as_deref(), config.seal.only)?)
}

fn served_keyring(config: &Config) -> Result<Keyring> {
    Ok(Keyring::open_to_serve(config.seal.master_key_file.as_deref(), config.seal.only)?)
}

/// Redis as it is configured, with the keys as they are now: what works for long has them followed.
pub fn redis(config: &Config) -> Result<Redis> {
    let files = TlsFiles { authority: config.redis.ca_file.clone(), identity: config.redis.identity.clone() };
    let redis = Redis::trusting(config.redis.url.reveal(), files)?;
    redis.check_files()?;
    let redis = redis.sealed_by(keyring(config)?);
    Ok(match PartitionKeys::new(&config.stream.name) {
        Ok(keys) => redis.at_home_in(keys.slot()),
        // Whoever uses the stream says what is wrong with its name.
        Err(_) => redis,
    })
}

/// The sender as it is configured, for the worker and for whoever checks or tests an endpoint. It leads to no server that this Redis
/// has found out to be one of its own.
pub fn sender(config: &Config, redis: Redis) -> Result<Sender> {
    sender_of(config, redis, senders(threads(config)))
}

/// The same as one of so many.
fn sender_of(config: &Config, redis: Redis, senders: u64) -> Result<Sender> {
    install_crypto_provider();
    let extra_root_certificates = match &config.attempt.ca_file {
        None => Vec::new(),
        Some(path) => {
            let pem = fs::read(path).with_context(|| format!("cannot read {} (attempt.ca_file)", path.display()))?;
            certificates_from_pem(&pem).with_context(|| format!("{} (attempt.ca_file)", path.display()))?
        }
    };
    let sender = Sender::try_new(SenderConfig {
        attempt_timeout: config.attempt.timeout,
        connect_timeout: config.attempt.connect_timeout,
        allow_http: config.guard.allow_http,
        allow_networks: config.guard.allow_networks.clone(),
        deny_networks: config.guard.deny_networks.clone(),
        allow_ports: config.guard.allow_ports.clone(),
        allow_metadata: config.guard.allow_metadata,
        own: own_sockets(config),
        found: Found::new(move |socket| {
            let is_it = |host: &str, port| Own { what: REDIS, port, address: host.parse().ok() }.is(socket);
            redis.has_node(is_it).then_some(REDIS)
        }),
        extra_root_certificates,
        max_connection_age: config.attempt.max_connection_age,
        max_connections: connections_each(config, senders),
        egress_proxy: config.attempt.egress_proxy.as_ref().map(|url| EgressProxy {
            is_https: url.is_https(),
            host: url.host(),
            port: url.port(),
            user: url.reveal(),
            by_name: config.attempt.egress_proxy_names,
        }),
    })?;
    Ok(sender)
}

/// What the guard calls it.
const REDIS: &str = "Redis";

/// Where Herald and its Redis listen, for the guard.
fn own_sockets(config: &Config) -> Vec<Own> {
    let mut own = Vec::new();
    let sockets = [Some(config.listen), config.metrics_listen, config.intents.listen, config.intents.metrics_listen];
    for socket in sockets.into_iter().flatten() {
        let addresses = if socket.ip().is_unspecified() { local_addresses() } else { vec![Some(socket.ip())] };
        let listens_at = |address| Own { what: "service", port: socket.port(), address };
        own.extend(addresses.into_iter().map(listens_at));
    }
    // A unix socket has no port. Of a name only the port is known, as its addresses may change.
    for node in redis_places(config.redis.url.reveal()).map(|places| places.nodes).unwrap_or_default() {
        let Ok(redis) = Url::parse(&node) else { continue };
        let Some(host) = redis.host_str() else { continue };
        let port = redis.port().unwrap_or(6379);
        let address = host.trim_matches(['[', ']']).parse().ok();
        own.push(Own { what: REDIS, port, address });
    }
    // Of a proxy's name not even that: its port may be the one that all receivers have.
    if let Some(proxy) = &config.attempt.egress_proxy
        && let Ok(address) = proxy.host().parse()
    {
        own.push(Own { what: "egress proxy", port: proxy.port(), address: Some(address) });
    }
    own
}

/// None among them is whatever this process may not see: a unit of systemd without netlink has only sockets.
fn local_addresses() -> Vec<Option<IpAddr>> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return vec![None] };
    let of_interfaces = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into_iter().chain(of_interfaces).map(Some).collect()
}

/// What other workers know it by, and who looks at a lease.
fn worker_id(config: &Config) -> String {
    config.worker.id.clone().unwrap_or_else(owner_name)
}

/// Host and process.
fn owner_name() -> String {
    format!("{}/{}", host_name(), std::process::id())
}

/// This machine's name, as owners show it.
pub fn host_name() -> String {
    // Not from /proc, of which a unit of systemd may see processes alone.
    let host = gethostname().unwrap_or_default();
    let host: String = host.to_string_lossy().chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
    if host.is_empty() { "herald".to_owned() } else { host }
}

/// The signals that ask for an end.
struct Ends {
    term: Signal,
    int: Signal,
}

impl Ends {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

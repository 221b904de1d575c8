//! What the harness starts and owns: a Redis or a Cluster, workers, and the connection between them. All of it ends with the
//! harness. Does to them what a fault asks for; never decides when.

mod crew;
mod log_gate;
mod proxy;
mod servers;
mod worker;

use std::{
    cell::Cell,
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

pub use self::worker::check_settings;
use self::{
    crew::Turns,
    log_gate::LogGate,
    proxy::Proxy,
    servers::Servers,
    worker::{MasterKey, Role, Worker},
};
use crate::{
    clock,
    facts::partition::part_of,
    keyring::Keyring,
    loadtest::draw::hash,
    owned::Usage,
    store::{
        connection::{Purpose, Redis},
        disturb::Disturber,
        keys::PartitionKeys,
        partitions::keys_of,
        queries::Queries,
    },
    surface::VerbError,
};

/// A take-over needs the lease's length and a moment; none takes longer than the longest lease. A fault on Redis waits
/// as long if another fault has taken Redis away.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long a fault waits for something to break, beyond the lease of an owner that is gone. A successor takes the
/// partition and makes the group within moments; a machine that is full takes longer.
const GRACE: Duration = Duration::from_secs(2);

/// The pause between two looks at something that nobody announces.
const LOOK: Duration = Duration::from_millis(20);

/// How the processes are started.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The `herald` that serves.
    pub program: PathBuf,
    pub workers: u32,
    /// Workers beyond these, which join later.
    pub joiners: u32,
    pub partitions: u32,
    /// Redis is a Cluster.
    pub is_cluster: bool,
    /// What is drawn comes from it: which partition a fault hits.
    pub seed: u64,
    /// Processes of the payment-intents service. Where there are some, Redis loses nothing that it has answered.
    pub services: u32,
    /// Settings of the workers beyond what the house needs.
    pub settings: BTreeMap<String, String>,
    pub stream: String,
    /// How long a partition stays with an owner that is gone.
    pub lease: Duration,
    /// Workers reach Redis through a proxy that can be closed.
    pub has_proxy: bool,
    /// What workers log goes through a pipe that can be left unread.
    pub has_log_pipe: bool,
    /// Endpoints' secrets are sealed, and each worker has a file of its own with the key.
    pub has_keys: bool,
    /// What signs the receivers' certificates.
    pub ca_file: Option<PathBuf>,
}

pub struct House {
    /// Held by a fault that takes something of it away, so that one begins only when the one before is over.
    redis: Mutex<Servers>,
    proxy: Option<Proxy>,
    log_gate: Option<LogGate>,
    workers: Vec<Mutex<Worker>>,
    turns: Turns,
    services: Vec<Mutex<Worker>>,
    /// Whose turn it is to be killed or paused.
    next_service: Cell<usize>,
    lease: Duration,
    /// Each needs an owner. The first is what producers write to.
    streams: Vec<PartitionKeys>,
    seed: u64,
    drawn: Cell<u64>,
    direct: Redis,
    url: String,
    folder: TempDir,
}

/// When a fault began to hold; none if there was nothing that it could break.
pub type Hit = Option<Instant>;

/// Processor time and memory by who used it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Uses {
    pub herald: Usage,
    pub redis: Usage,
}

impl House {
    /// Starts Redis and the proxy before it; the workers follow with [`Self::start_workers`].
    pub async fn start(plan: Plan) -> Result<Self> {
        let folder = TempDir::with_prefix("herald-loadtest-").context("cannot make a scratch folder")?;
        let safe = [("appendfsync", "always")];
        let redis = Servers::start(plan.is_cluster, if plan.services > 0 { &safe } else { &[] }).await?;
        let proxy = match (plan.has_proxy, &redis) {
            (true, Servers::One { redis, .. }) => Some(Proxy::start(redis.address()).await?),
            _ => None,
        };
        let url = redis.url();
        let seen_by_workers = proxy.as_ref().map_or_else(|| url.clone(), Proxy::url);
        let settings = settings(&plan, &seen_by_workers);
        check_settings(&settings)?;
        let log_gate = plan.has_log_pipe.then(LogGate::default);
        let key = plan.has_keys.then(MasterKey::random);
        let keyring = match &key {
            Some(key) => Keyring::open(Some(&key.write(&folder.path().join("key"))?), false)?,
            None => Keyring::default(),
        };
        let worker = |role, number| {
            let worker = Worker::new(role, number, plan.program.clone(), folder.path(), settings.clone());
            Mutex::new(worker.with_gate(log_gate.clone()).with_key(key.clone()))
        };
        Ok(Self {
            workers: (1..=plan.workers + plan.joiners).map(|number| worker(Role::Dispatcher, number)).collect(),
            turns: Turns::new(plan.workers, plan.joiners),
            services: (1..=plan.services).map(|number| worker(Role::Intents, number)).collect(),
            next_service: Cell::default(),
            redis: Mutex::new(redis),
            proxy,
            log_gate: log_gate.clone(),
            lease: plan.lease,
            streams: streams(&plan)?,
            seed: plan.seed,
            drawn: Cell::default(),
            direct: Redis::new(&url)?.sealed_by(keyring),
            url,
            folder,
        })
    }

    /// Returns when all are ready, and the partitions are shared among them.
    pub async fn start_workers(&self) -> Result<()> {
        for number in self.turns.present() {
            self.workers[number].lock().await.start().await?;
        }
        let shared = until_there(PATIENCE, async || Ok(self.are_shared().await?.then_some(()))).await?;
        shared.context("the workers did not share the partitions")
    }

    /// Returns when each answers; says where.
    pub async fn start_services(&self) -> Result<Vec<SocketAddr>> {
        let mut addresses = Vec::new();
        for service in &self.services {
            let mut service = service.lock().await;
            service.start().await?;
            addresses.push(service.address());
        }
        Ok(addresses)
    }

    /// Redis as producers reach it: not through the proxy.
    pub fn redis(&self) -> &Redis {
        &self.direct
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the workers' logs where they are, and returns where that is.
    pub fn keep_folder(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// A worker or a Redis that ended by itself has failed, and so has the run.
    pub async fn check(&self) -> Result<()> {
        // A fault that takes Redis away holds it until it is back.
        if let Ok(mut redis) = self.redis.try_lock() {
            redis.check()?;
        }
        for worker in self.workers.iter().chain(&self.services) {
            // One that is being killed and started again is looked at next time.
            if let Ok(mut worker) = worker.try_lock() {
                worker.check()?;
            }
        }
        Ok(())
    }

    /// Returns when something has failed; never, as long as nothing has.
    pub async fn failure(&self) -> anyhow::Error {
        loop {
            if let Err(error) = self.check().await {
                return error;
            }
            sleep(LOOK).await;
        }
    }

    pub async fn uses(&self) -> Uses {
        let mut herald = Usage::default();
        for worker in self.workers.iter().chain(&self.services) {
            let used = worker.lock().await.usage();
            herald =
                Usage { cpu: herald.cpu + used.cpu, peak_rss_bytes: herald.peak_rss_bytes.max(used.peak_rss_bytes) };
        }
        Uses { herald, redis: self.redis.lock().await.usage() }
    }

    /// `kill -9` of the owner, which is started again at once.
    pub async fn kill_worker(&self, end: &End) -> Result<Hit> {
        let Some(mut owner) = self.victim(end).await? else { return Ok(None) };
        let now = clock::now();
        owner.kill().await?;
        owner.launch().await?;
        Ok(Some(now))
    }

    /// SIGSTOP of the owner until the end.
    pub async fn pause_worker(&self, end: &End) -> Result<Hit> {
        let Some(mut owner) = self.victim(end).await? else { return Ok(None) };
        let now = clock::now();
        let frozen = owner.freeze()?;
        let worker = MutexGuard::mutex(&owner);
        drop(owner);
        end.come().await;
        worker.lock().await.thaw(frozen)?;
        Ok(Some(now))
    }

    /// `kill -9` of a service, which is started again at once at its old address.
    pub async fn kill_service(&self) -> Result<Hit> {
        let Some(service) = self.service_in_turn() else { return Ok(None) };
        let mut service = service.lock().await;
        let now = clock::now();
        service.kill().await?;
        service.launch().await?;
        Ok(Some(now))
    }

    /// SIGSTOP of a service until the end.
    pub async fn pause_service(&self, end: &End) -> Result<Hit> {
        let Some(service) = self.service_in_turn() else { return Ok(None) };
        let now = clock::now();
        let frozen = service.lock().await.freeze()?;
        end.come().await;
        service.lock().await.thaw(frozen)?;
        Ok(Some(now))
    }

    fn service_in_turn(&self) -> Option<&Mutex<Worker>> {
        let turn = self.next_service.get();
        self.next_service.set(turn + 1);
        self.services.get(turn % self.services.len().max(1))
    }

    /// `kill -9` of Redis, and its start at the end.
    pub async fn restart_redis(&self, end: &End) -> Result<Hit> {
        self.redis.lock().await.restart(end).await
    }

    pub async fn partition_redis(&self, end: &End) -> Result<Hit> {
        let proxy = self.proxy.as_ref().context("the house has no proxy that could be closed")?;
        let now = clock::now();
        proxy.close();
        end.come().await;
        proxy.open();
        Ok(Some(now))
    }

    pub async fn fill_redis(&self, end: &End) -> Result<Hit> {
        let now = clock::now();
        patiently(async || self.disturber().await?.fill().await).await.context("cannot fill Redis")?;
        end.come().await;
        let emptied = patiently(async || self.disturber().await?.limit_memory(0).await);
        emptied.await.context("cannot empty Redis again")?;
        Ok(Some(now))
    }

    /// Nobody reads what the workers say until the end.
    pub async fn block_logs(&self, end: &End) -> Result<Hit> {
        let gate = self.log_gate.as_ref().context("the house has no logs that can be left unread")?;
        let now = clock::now();
        gate.shut();
        end.come().await;
        gate.open();
        Ok(Some(now))
    }

    /// The owner finds another key where its own was, until the end and until it has seen that it is back.
    pub async fn lose_key(&self, end: &End) -> Result<Hit> {
        let Some(owner) = self.victim(end).await? else { return Ok(None) };
        let now = clock::now();
        owner.change_key(MasterKey::random())?;
        let worker = MutexGuard::mutex(&owner);
        drop(owner);
        end.come().await;
        worker.lock().await.restore_key()?;
        // Another fault may have killed or frozen it.
        until_there(PATIENCE, async || Ok(worker.lock().await.is_ready().await.then_some(()))).await?;
        Ok(Some(now))
    }

    /// If an owner has not made it yet, this waits for it.
    pub async fn destroy_group(&self, end: &End) -> Result<Hit> {
        // A stream that is split has none.
        let keys = self.draw(&self.streams[usize::from(self.streams.len() > 1)..]);
        let destroy = async || {
            let now = clock::now();
            let destroyed = patiently(async || self.disturber().await?.destroy_group(keys).await);
            anyhow::Ok(destroyed.await.context("cannot destroy the group")?.then_some(now))
        };
        end.or(until_there(self.lease + GRACE, destroy)).await
    }

    /// The living worker that owns a partition, as soon as one does, held so that it stays the owner; none if there is none within
    /// the time. Between the end of an owner and the take-over by another, the lease is a dead worker's: breaking one then would
    /// prove nothing.
    async fn victim(&self, end: &End) -> Result<Option<MutexGuard<'_, Worker>>> {
        let keys = self.draw(&self.streams);
        let owner = until_there(self.lease + GRACE, async || {
            self.check().await?;
            // Another fault may have taken Redis away.
            Ok(self.owner_now(keys).await.ok().flatten())
        });
        end.or(owner).await
    }

    /// One of these, by the run's seed.
    fn draw<'a, T>(&self, of: &'a [T]) -> &'a T {
        let drawn = self.drawn.get();
        self.drawn.set(drawn + 1);
        &of[(hash(&[self.seed, drawn]) % of.len() as u64) as usize]
    }

    /// The process whose name its lease has; it may be gone.
    async fn named_by_lease(&self, keys: &PartitionKeys) -> Result<Option<i32>> {
        let mut queries = Queries::new(self.direct.connect(Purpose::Other).await?, keys.clone());
        // The owner's name is its host's and the number of its process.
        let lease = queries.lease().await?;
        Ok(lease.and_then(|lease| lease.owner.rsplit('/').next()?.parse::<i32>().ok()))
    }

    async fn owner_now(&self, keys: &PartitionKeys) -> Result<Option<MutexGuard<'_, Worker>>> {
        let Some(pid) = self.named_by_lease(keys).await? else { return Ok(None) };
        for worker in &self.workers {
            let worker = worker.lock().await;
            if worker.awake().is_some_and(|worker| worker.as_raw() == pid) {
                return Ok(Some(worker));
            }
        }
        Ok(None)
    }

    async fn disturber(&self) -> Result<Disturber, crate::store::error::StoreError> {
        Ok(Disturber::new(self.direct.connect(Purpose::Other).await?))
    }
}

/// When a lasting fault is over: after its length, or when the run is asked to end.
pub struct End {
    pub length: Duration,
    pub early: CancellationToken,
}

impl End {
    async fn come(&self) {
        tokio::select! {
            () = sleep(self.length) => {}
            () = self.early.cancelled() => {}
        }
    }

    /// None when the run is asked to end before it is found.
    async fn or<T>(&self, search: impl Future<Output = Result<Option<T>>>) -> Result<Option<T>> {
        self.early.run_until_cancelled(search).await.unwrap_or(Ok(None))
    }
}

/// Looks again and again; none if it is not there within the time.
async fn until_there<T>(patience: Duration, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let deadline = clock::now() + patience;
    loop {
        match look().await? {
            None if clock::now() < deadline => sleep(LOOK).await,
            found => return Ok(found),
        }
    }
}

/// The stream, and its parts if it has some.
fn streams(plan: &Plan) -> Result<Vec<PartitionKeys>> {
    let parts = (0..plan.partitions).filter(|_| plan.partitions > 1).map(|part| part_of(&plan.stream, part));
    let streams: Vec<String> = std::iter::once(plan.stream.clone()).chain(parts).collect();
    Ok(keys_of(&streams)?)
}

/// Again and again until Redis does it: another fault may have taken it away.
async fn patiently<T, E>(mut act: impl AsyncFnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = clock::now() + PATIENCE;
    loop {
        match act().await {
            Err(_) if clock::now() < deadline => sleep(LOOK).await,
            done => return done,
        }
    }
}

/// The settings that the house itself gives its workers.
const OWN_SETTINGS: [&str; 12] = [
    "redis.url",
    "stream.name",
    "stream.partitions",
    "worker.id",
    "listen",
    "guard.allow_http",
    "guard.allow_networks",
    "attempt.ca_file",
    "master_key_file",
    "intents.listen",
    "intents.sandbox",
    "intents.public_url",
];

/// A setting that would be silently overridden is refused.
pub fn refuse_own(settings: &BTreeMap<String, String>) -> Result<(), VerbError> {
    match OWN_SETTINGS.iter().find(|own| settings.contains_key(**own)) {
        Some(own) => Err(VerbError::Usage(format!(
            "loadtest: the setting {own:?} of the workers is the load test's own: it starts them for its own Redis and \
             receivers; leave {own:?} out"
        ))),
        None => Ok(()),
    }
}

/// What the house needs comes last, so it wins.
fn settings(plan: &Plan, redis_url: &str) -> BTreeMap<String, String> {
    let usual = [("log.filter", "info"), ("log.format", "text"), ("shutdown.grace", "5s")];
    let partitions = plan.partitions.to_string();
    let needed = [
        ("redis.url", redis_url),
        ("stream.name", plan.stream.as_str()),
        ("stream.partitions", partitions.as_str()),
        ("guard.allow_http", "true"),
        ("guard.allow_networks", "127.0.0.0/8"),
    ];
    let text = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let mut settings: BTreeMap<String, String> = usual.map(text).into();
    settings.extend(plan.settings.clone());
    settings.extend(needed.map(text));
    settings.extend(plan.ca_file.iter().map(|file| ("attempt.ca_file".to_owned(), file.display().to_string())));
    settings
}

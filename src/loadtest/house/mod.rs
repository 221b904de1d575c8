//! What the harness starts and owns: a Redis, workers, and the way between them. All of it ends with the harness. Does to
//! them what a fault asks for; never decides when.

mod proxy;
mod worker;

use std::{
    cell::Cell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::{sync::Mutex, time::sleep};
use tokio_util::sync::CancellationToken;

pub use self::worker::check_settings;
use self::{proxy::Proxy, worker::Worker};
use crate::{
    clock,
    owned::{OwnRedis, Usage},
    store::{
        connection::{Purpose, Redis},
        disturb::Disturber,
        keys::PartitionKeys,
        queries::Queries,
    },
};

/// A take-over needs the lease's length and a moment; none takes longer than the longest lease. Also what a fault on Redis
/// waits for one that another fault has taken away.
const PATIENCE: Duration = Duration::from_secs(90);

/// Between two looks at something that nobody announces.
const LOOK: Duration = Duration::from_millis(20);

/// How the processes are started.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The `herald` that serves.
    pub program: PathBuf,
    pub workers: u32,
    /// Settings of the workers beyond what the house needs.
    pub settings: BTreeMap<String, String>,
    pub stream: String,
    /// Workers reach Redis through a way that can be closed.
    pub has_proxy: bool,
    /// What signs the receivers' certificates.
    pub ca_file: Option<PathBuf>,
}

pub struct House {
    redis: Mutex<OwnRedis>,
    /// Redis' processes that were killed.
    redis_ended: Cell<Usage>,
    proxy: Option<Proxy>,
    workers: Vec<Mutex<Worker>>,
    keys: PartitionKeys,
    direct: Redis,
    url: String,
    folder: TempDir,
}

/// Processor time and memory by who used it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Uses {
    pub herald: Usage,
    pub redis: Usage,
}

impl House {
    /// Redis and the way to it; the workers follow with [`Self::start_workers`].
    pub async fn start(plan: Plan) -> Result<Self> {
        let folder = TempDir::with_prefix("herald-loadtest-").context("cannot make a scratch folder")?;
        let redis = OwnRedis::start().await?;
        let proxy = match plan.has_proxy {
            true => Some(Proxy::start(redis.address()).await?),
            false => None,
        };
        let url = redis.url();
        let seen_by_workers = proxy.as_ref().map_or_else(|| url.clone(), Proxy::url);
        let settings = settings(&plan, &seen_by_workers);
        check_settings(&settings)?;
        let worker = |number| Mutex::new(Worker::new(number, plan.program.clone(), folder.path(), settings.clone()));
        Ok(Self {
            workers: (1..=plan.workers).map(worker).collect(),
            redis: Mutex::new(redis),
            redis_ended: Cell::default(),
            proxy,
            keys: PartitionKeys::new(&plan.stream)?,
            direct: Redis::new(&url)?,
            url,
            folder,
        })
    }

    /// Returns when all are ready and one of them owns the partition.
    pub async fn start_workers(&self) -> Result<()> {
        for worker in &self.workers {
            worker.lock().await.start().await?;
        }
        self.owner().await?.context("no worker took the partition")?;
        Ok(())
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

    /// Leaves the workers' logs where they are, and says where.
    pub fn keep_folder(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// A worker that ended by itself has failed, and so has the run.
    pub async fn check(&self) -> Result<()> {
        for worker in &self.workers {
            // One that is being killed and started again is looked at next time.
            if let Ok(mut worker) = worker.try_lock() {
                worker.check()?;
            }
        }
        Ok(())
    }

    pub async fn uses(&self) -> Uses {
        let mut herald = Usage::default();
        for worker in &self.workers {
            let used = worker.lock().await.usage();
            herald =
                Usage { cpu: herald.cpu + used.cpu, peak_rss_bytes: herald.peak_rss_bytes.max(used.peak_rss_bytes) };
        }
        let now = self.redis.lock().await.usage();
        Uses { herald, redis: both(self.redis_ended.get(), now) }
    }

    /// `kill -9` of the owner, which is started again at once.
    pub async fn kill_worker(&self) -> Result<()> {
        let mut owner = self.workers[self.victim().await?].lock().await;
        owner.kill().await?;
        owner.launch().await
    }

    /// SIGSTOP of the owner until the end.
    pub async fn pause_worker(&self, end: &End) -> Result<()> {
        let victim = &self.workers[self.victim().await?];
        victim.lock().await.signal(Signal::SIGSTOP)?;
        end.come().await;
        // Another process by now, if it was killed meanwhile: to that one it means nothing.
        victim.lock().await.signal(Signal::SIGCONT)
    }

    /// `kill -9` of Redis, and its start at the end.
    pub async fn restart_redis(&self, end: &End) -> Result<()> {
        let mut redis = self.redis.lock().await;
        let used = redis.usage();
        redis.kill().await?;
        self.redis_ended.set(both(self.redis_ended.get(), used));
        end.come().await;
        redis.start_again().await
    }

    pub async fn partition_redis(&self, end: &End) -> Result<()> {
        let proxy = self.proxy.as_ref().context("the house has no proxy that could be closed")?;
        proxy.close();
        end.come().await;
        proxy.open();
        Ok(())
    }

    pub async fn fill_redis(&self, end: &End) -> Result<()> {
        patiently(async || self.disturber().await?.fill().await).await.context("cannot fill Redis")?;
        end.come().await;
        patiently(async || self.disturber().await?.limit_memory(0).await).await.context("cannot empty Redis again")
    }

    pub async fn destroy_group(&self) -> Result<()> {
        let destroyed = patiently(async || self.disturber().await?.destroy_group(&self.keys).await);
        destroyed.await.map(|_| ()).context("cannot destroy the group")
    }

    /// The worker that owns the partition, by its place; none of them if there is no owner for long.
    async fn owner(&self) -> Result<Option<usize>> {
        let deadline = clock::now() + PATIENCE;
        loop {
            if let Ok(Some(owner)) = self.owner_now().await {
                return Ok(Some(owner));
            }
            self.check().await?;
            if clock::now() > deadline {
                return Ok(None);
            }
            sleep(LOOK).await;
        }
    }

    /// The owner, or whoever is there when nobody owns the partition just now.
    async fn victim(&self) -> Result<usize> {
        match self.owner_now().await {
            Ok(Some(owner)) => Ok(owner),
            _ if self.workers.is_empty() => bail!("there is no worker"),
            _ => Ok(0),
        }
    }

    async fn owner_now(&self) -> Result<Option<usize>> {
        let mut queries = Queries::new(self.direct.connect(Purpose::Other).await?, self.keys.clone());
        // The owner's name is its host's and the number of its process.
        let lease = queries.lease().await?;
        let Some(pid) = lease.and_then(|lease| lease.owner.rsplit('/').next()?.parse::<i32>().ok()) else {
            return Ok(None);
        };
        for (at, worker) in self.workers.iter().enumerate() {
            if worker.lock().await.pid().is_some_and(|worker| worker.as_raw() == pid) {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    async fn disturber(&self) -> Result<Disturber, crate::store::error::StoreError> {
        Ok(Disturber::new(self.direct.connect(Purpose::Other).await?))
    }
}

/// When what lasts is over: after its length, or when the run is asked to end.
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
}

/// Of processes that followed each other.
fn both(before: Usage, now: Usage) -> Usage {
    Usage { cpu: before.cpu + now.cpu, peak_rss_bytes: before.peak_rss_bytes.max(now.peak_rss_bytes) }
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

/// What the house needs comes last, so it holds.
fn settings(plan: &Plan, redis_url: &str) -> BTreeMap<String, String> {
    let usual = [("log.filter", "info"), ("log.format", "text"), ("shutdown.grace", "5s")];
    let needed = [
        ("redis.url", redis_url),
        ("stream.name", plan.stream.as_str()),
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

//! Who works: each live worker, and whoever else reads endpoints for long, tells every few seconds which version it is, what it reads and which keys it has. So nobody seals
//! with a key, or writes a form, that one of them cannot read. Judged by Redis' clock alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use serde::{Deserialize, Serialize};

use super::{
    connection::{Connection, Script},
    error::StoreError,
    keys::{PartitionKeys, WorkerKeys},
};
use crate::facts::{endpoint::SEALED_SCHEMA, sealing::KeyId};

/// How long what a worker has told holds: a few times the pause between two.
const HOLDS_MS: u64 = 60_000;

static TELL: LazyLock<Script> = LazyLock::new(|| {
    // However full Redis is: who works matters most when something is wrong.
    Script::new("WORKER_TELL", concat!("#!lua flags=allow-oom\n", include_str!("scripts/worker_tell.lua")))
});

/// What a live worker tells of itself. What a newer one tells beyond this is passed over.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Host and process.
    pub name: String,
    /// What it works on; empty where it only serves.
    #[serde(default)]
    pub stream: String,
    pub version: String,
    /// What is stored, and its newest schema that the worker reads.
    pub schemas: BTreeMap<String, u32>,
    /// Of its ring: the one that seals comes first.
    pub keys: Vec<String>,
    /// Whether it locks what is not sealed.
    #[serde(default)]
    pub seal_only: bool,
    /// Keys that would open what is locked for it.
    #[serde(default)]
    pub missing: Vec<String>,
    /// How far its machine's clock is ahead of Redis'. It dates what it signs.
    #[serde(default)]
    pub clock_ahead_ms: i64,
    /// Its share of partitions beside the others'.
    #[serde(default)]
    pub weight: u32,
    /// It is leaving, and takes no partition any more.
    #[serde(default)]
    pub draining: bool,
    /// The partitions that it owns.
    #[serde(default)]
    pub owned: BTreeSet<String>,
    /// How long after this it counts as gone, for those that share partitions with it; 0 for an older Herald, which shares none.
    #[serde(default)]
    pub holds_ms: u64,
    /// Since when it works, by its own clock.
    #[serde(default)]
    pub since_ms: u64,
}

/// What another process told, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub at_ms: u64,
    pub told: Told,
}

/// How far a worker's clock may be off: receivers take what was signed within five minutes.
const SIGNS_WITHIN_MS: u64 = 60_000;

impl Told {
    pub fn knows(&self, key: KeyId) -> bool {
        self.keys.contains(&key.to_string())
    }

    pub fn seals_with(&self, key: KeyId) -> bool {
        self.keys.first() == Some(&key.to_string())
    }

    /// Whether it may own a lease, and so sends.
    pub fn is_worker(&self) -> bool {
        !self.stream.is_empty()
    }

    /// Whether receivers can be expected to take the times of its signatures.
    pub fn tells_time(&self) -> bool {
        self.clock_ahead_ms.unsigned_abs() <= SIGNS_WITHIN_MS
    }

    fn reads_sealed(&self) -> bool {
        self.schemas.get("endpoint").is_some_and(|newest| *newest >= SEALED_SCHEMA)
    }
}

/// A live worker that could not read what would be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownTo {
    #[error(
        "worker {worker} does not have the key {key}, and would lock what is sealed with it: give it the key first, \
         and look with `herald key status`"
    )]
    Key { worker: String, key: KeyId },
    #[error(
        "worker {worker} is version {version}, which cannot read sealed endpoints or TLS settings: update it first"
    )]
    Schema { worker: String, version: String },
    #[error(
        "worker {worker} locks what is not sealed (seal_only), and this process has no keys: name their file here too \
         (master_key_file, HERALD_MASTER_KEY_FILE)"
    )]
    Clear { worker: String },
}

/// Whether all of them take what is written without a key.
pub fn check_in_clear(workers: &[Told]) -> Result<(), UnknownTo> {
    match workers.iter().find(|worker| worker.seal_only) {
        Some(worker) => Err(UnknownTo::Clear { worker: worker.name.clone() }),
        None => Ok(()),
    }
}

/// Whether all of them read the newest form of an endpoint.
pub fn check_reads(workers: &[Told]) -> Result<(), UnknownTo> {
    match workers.iter().find(|worker| !worker.reads_sealed()) {
        Some(worker) => Err(UnknownTo::Schema { worker: worker.name.clone(), version: worker.version.clone() }),
        None => Ok(()),
    }
}

/// Whether all of them open what is sealed with this key.
pub fn check_known(workers: &[Told], key: KeyId) -> Result<(), UnknownTo> {
    check_reads(workers)?;
    match workers.iter().find(|worker| !worker.knows(key)) {
        Some(worker) => Err(UnknownTo::Key { worker: worker.name.clone(), key }),
        None => Ok(()),
    }
}

/// Tells of the worker with this token. Returns Redis' time, and what the other live ones tell. None as it ends.
pub async fn tell(
    connection: &mut Connection,
    token: &str,
    told: Option<&Told>,
) -> Result<(u64, Vec<Heard>), StoreError> {
    let json = told.map(|told| serde_json::to_string(told).expect("texts and numbers are always JSON"));
    let call = TELL.keys(&[WorkerKeys::WORKERS]).arg(token).arg(json.unwrap_or_default()).arg(HOLDS_MS);
    let (now_ms, all): (u64, Vec<(String, u64, String)>) = connection.run("tell of this worker", &call).await?;
    let heard = |(other, at_ms, told): (String, u64, String)| {
        let told = serde_json::from_str(&told).ok()?;
        (other != token).then_some(Heard { at_ms, told })
    };
    Ok((now_ms, all.into_iter().filter_map(heard).collect()))
}

/// Who has the lease of a partition, and which worker asks for it.
pub async fn look(
    connection: &mut Connection,
    keys: &PartitionKeys,
) -> Result<(Option<String>, Option<String>), StoreError> {
    let mut commands = redis::pipe();
    commands.cmd("GET").arg(keys.lease()).cmd("GET").arg(keys.next());
    connection.pipeline("look who has a partition", &commands).await
}

/// What the live workers tell, by their names.
pub async fn live_workers(connection: &mut Connection) -> Result<Vec<Told>, StoreError> {
    let mut commands = redis::pipe();
    commands.cmd("TIME").cmd("HGETALL").arg(WorkerKeys::WORKERS);
    let ((seconds, _), all): ((u64, u64), Vec<(String, String)>) =
        connection.pipeline("look for live workers", &commands).await?;
    let is_live = |text: &str| {
        let (at_ms, told) = text.split_once(' ')?;
        let at_ms: u64 = at_ms.parse().ok()?;
        let told = (at_ms.abs_diff(seconds * 1000) <= HOLDS_MS).then_some(told)?;
        serde_json::from_str(told).ok()
    };
    let mut live: Vec<Told> = all.iter().filter_map(|(_, text)| is_live(text)).collect();
    live.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(live)
}

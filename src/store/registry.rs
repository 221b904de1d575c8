//! The registry of endpoints in Redis: create, update, remove, look up, pause everything. [`bulk`] moves whole registries,
//! [`feed`] follows the changes, [`confirming`] waits until replicas have them. Never judges an endpoint's URL or settings: the caller has done so.
//!
//! Every change says who makes it and why, has its own script, and gives the registry a larger version.

pub mod bulk;
pub mod confirming;
pub mod feed;
pub mod reseal;
pub mod stored;

use std::sync::{Arc, LazyLock};

use super::{
    connection::{Connection, Purpose, Redis, Script, ScriptCall, Subject},
    error::StoreError,
    keys::RegistryKeys,
    workers::{UnknownTo, check_in_clear, check_known, check_reads, live_workers},
};
use crate::facts::{
    endpoint::{Endpoint, EndpointState, Mark, SEALED_SCHEMA},
    id::{AccountId, EndpointId, RegistryId},
    sealing::Ring,
    stamped::Stamped,
};

/// Roughly how many changes the feed keeps: hours of busy administration, and a few MiB at most. A reader that is further
/// behind loads the registry anew.
const FEED_LENGTH: usize = 10_000;

/// Endpoints in one page or chunk: a millisecond of Redis' time.
pub const PAGE: usize = 500;

/// Longest JSON of one endpoint. Many headers, event types and secrets fit; a page stays bounded.
pub const MAX_ENDPOINT_BYTES: usize = 64 * 1024;

/// The first line holds the flags; then comes what the scripts share, then the script itself.
macro_rules! registry_script {
    ($static:ident, $first_line:literal, $($file:literal),+) => {
        static $static: LazyLock<Script> = LazyLock::new(|| {
            let source = concat!(
                $first_line,
                "\n",
                $(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/scripts/", $file))),+
            );
            Script::new(stringify!($static), source)
        });
    };
}

registry_script!(PUT, "#!lua", "registry_stamp.lua", "registry_change.lua", "registry_put.lua");
registry_script!(STAGE, "#!lua", "registry_stage.lua");
registry_script!(RESEAL, "#!lua", "registry_stamp.lua", "registry_change.lua", "registry_reseal.lua");
registry_script!(SWITCH, "#!lua", "registry_stamp.lua", "registry_change.lua", "registry_switch.lua");
// However full Redis is, anyone must be able to stop or remove something.
registry_script!(PUT_STOPPED, "#!lua flags=allow-oom", "registry_stamp.lua", "registry_change.lua", "registry_put.lua");
registry_script!(REMOVE, "#!lua flags=allow-oom", "registry_stamp.lua", "registry_change.lua", "registry_remove.lua");
registry_script!(PAUSE, "#!lua flags=allow-oom", "registry_stamp.lua", "registry_change.lua", "registry_pause.lua");
registry_script!(CHANGES, "#!lua flags=no-writes", "registry_stamp.lua", "registry_changes.lua");

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("endpoint {0} already exists: update it, or create one with another id")]
    Exists(EndpointId),
    #[error("there is no endpoint {0}: list the endpoints to find its id")]
    Missing(EndpointId),
    #[error(
        "endpoint {id} was changed meanwhile: it has revision {found}, but this change saw {seen}; look again and repeat"
    )]
    Stale { id: EndpointId, seen: u64, found: String },
    #[error("the registry was changed meanwhile: look again and repeat")]
    Moved,
    #[error("endpoint {id} was written by a newer Herald (schema {found}): change it with that one")]
    Newer { id: EndpointId, found: String },
    #[error("what Redis holds as endpoint {0} cannot be read: remove it, or import a backup")]
    Unreadable(EndpointId),
    #[error("endpoint {id} is {cause}")]
    Locked { id: EndpointId, cause: stored::LockCause },
    #[error(transparent)]
    Unknown(#[from] UnknownTo),
    #[error(
        "endpoint {0} has the key of a client certificate, which is stored only sealed, and this process has no keys: make one with `herald key generate` and name its file in master_key_file (HERALD_MASTER_KEY_FILE) of every Herald"
    )]
    KeyInClear(EndpointId),
    #[error(
        "endpoint {id} takes {bytes} bytes; at most {MAX_ENDPOINT_BYTES} are allowed: give it fewer headers or types"
    )]
    TooLarge { id: EndpointId, bytes: usize },
    #[error("the registry in Redis is damaged ({0}): import a backup of the endpoints")]
    Damaged(String),
    #[error("there is no registry in Redis: create an endpoint or import a backup")]
    NeverMade,
    #[error(transparent)]
    Bulk(#[from] bulk::BulkError),
}

/// Something stored under an endpoint's id that this Herald cannot read as an endpoint. Its account's events must not
/// be treated as owed to nobody.
#[derive(Debug, Clone, PartialEq)]
pub struct Unreadable {
    pub id: String,
    /// Its account, if that much can be read.
    pub account: Option<AccountId>,
    /// Quotes nothing of the content, which may be a secret.
    pub why: String,
    /// It is an endpoint, and its secrets cannot be had.
    pub lock: Option<stored::Lock>,
}

/// Some endpoints in no particular order, and where to go on.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub endpoints: Vec<Endpoint>,
    pub unreadable: Vec<Unreadable>,
    /// None after the last page. An endpoint may appear on two pages if the registry changes meanwhile.
    pub next: Option<u64>,
}

/// The registry through one connection.
#[derive(Clone)]
pub struct RegistryStore {
    connection: Connection,
    /// Something was written through this one.
    has_changed: bool,
}

impl RegistryStore {
    pub async fn connect(redis: &Redis) -> Result<Self, StoreError> {
        Ok(Self::on(redis.at_home_in(RegistryKeys::slot()).connect(Purpose::Other).await?))
    }

    pub fn on(connection: Connection) -> Self {
        Self { connection, has_changed: false }
    }

    /// Adds a new endpoint, with revision 1. Returns it as it is stored.
    pub async fn create(&mut self, mut endpoint: Endpoint, mark: &Mark) -> Result<Endpoint, RegistryError> {
        endpoint.revision = 1;
        self.put("create", &PUT, endpoint, 0, None, mark).await
    }

    /// The same, unless anything in the registry has changed since this change: for rules that bind endpoints to each other.
    pub async fn create_at(
        &mut self,
        seen: Stamped,
        mut endpoint: Endpoint,
        mark: &Mark,
    ) -> Result<Endpoint, RegistryError> {
        endpoint.revision = 1;
        self.put("create", &PUT, endpoint, 0, Some(seen), mark).await
    }

    /// Replaces an endpoint. Its `revision` is the one that the caller saw; a change made since then wins. Returns the
    /// endpoint as it is stored, with its next revision.
    pub async fn update(&mut self, endpoint: Endpoint, mark: &Mark) -> Result<Endpoint, RegistryError> {
        self.replace(None, endpoint, mark).await
    }

    /// The same, unless anything in the registry has changed since this change.
    pub async fn update_at(
        &mut self,
        seen: Stamped,
        endpoint: Endpoint,
        mark: &Mark,
    ) -> Result<Endpoint, RegistryError> {
        self.replace(Some(seen), endpoint, mark).await
    }

    async fn replace(
        &mut self,
        last: Option<Stamped>,
        mut endpoint: Endpoint,
        mark: &Mark,
    ) -> Result<Endpoint, RegistryError> {
        let seen = endpoint.revision;
        // A caller may claim to have seen whatever number; one that nothing has is found stale.
        endpoint.revision = seen.saturating_add(1);
        endpoint.updated_at_ms = mark.at_ms;
        endpoint.drop_expired_secrets(mark.at_ms);
        endpoint.settle_state();
        let script = if endpoint.status == EndpointState::Enabled { &PUT } else { &PUT_STOPPED };
        self.put("update", script, endpoint, seen, last, mark).await
    }

    /// Removes an endpoint. Without `seen` it goes whatever its revision is, even if it is unreadable.
    pub async fn remove(&mut self, id: &EndpointId, seen: Option<u64>, mark: &Mark) -> Result<(), RegistryError> {
        let revision = seen.map(|revision| revision.to_string()).unwrap_or_default();
        let call = change(&REMOVE, &[], None, mark).arg(id.as_str()).arg(revision);
        let answer = self.connection.run(Subject("remove the endpoint", id.as_str()), &call).await?;
        verdict(answer, id, seen.unwrap_or_default())?;
        self.has_changed = true;
        Ok(())
    }

    pub async fn get(&mut self, id: &EndpointId) -> Result<Option<Endpoint>, RegistryError> {
        let command = redis::cmd("HGET").arg(RegistryKeys::ENDPOINTS).arg(id.as_str()).to_owned();
        let json: Option<Vec<u8>> = self.connection.query(Subject("read the endpoint", id.as_str()), &command).await?;
        let read = json.map(|json| stored::read(id.as_str(), &json, self.connection.keyring())).transpose();
        read.map_err(|found| match found.lock {
            Some(lock) => RegistryError::Locked { id: id.clone(), cause: lock.cause },
            None => RegistryError::Unreadable(id.clone()),
        })
    }

    /// What stands under each of these ids, in their order.
    pub async fn get_many(
        &mut self,
        ids: &[&EndpointId],
    ) -> Result<Vec<Result<Option<Endpoint>, Unreadable>>, StoreError> {
        let mut endpoints = Vec::with_capacity(ids.len());
        for ids in ids.chunks(PAGE) {
            let mut command = redis::cmd("HMGET");
            command.arg(RegistryKeys::ENDPOINTS).arg(ids.iter().map(|id| id.as_str()).collect::<Vec<_>>());
            let found: Vec<Option<Vec<u8>>> = self.connection.query("read endpoints", &command).await?;
            let read = |(id, json): (&&EndpointId, Option<Vec<u8>>)| {
                json.map(|json| stored::read(id.as_str(), &json, self.connection.keyring())).transpose()
            };
            endpoints.extend(ids.iter().zip(found).map(read));
        }
        Ok(endpoints)
    }

    /// One page of about [`PAGE`] endpoints; without a cursor, the first one.
    pub async fn list(&mut self, cursor: Option<u64>) -> Result<Page, StoreError> {
        let mut command = redis::cmd("HSCAN");
        command.arg(RegistryKeys::ENDPOINTS).arg(cursor.unwrap_or(0)).arg("COUNT").arg(PAGE);
        let (next, found): (u64, Vec<(String, Vec<u8>)>) =
            self.connection.query("list the endpoints", &command).await?;
        let mut page = Page { next: (next != 0).then_some(next), ..Page::default() };
        for (id, json) in found {
            match stored::read(&id, &json, self.connection.keyring()) {
                Ok(endpoint) => page.endpoints.push(endpoint),
                Err(unreadable) => page.unreadable.push(unreadable),
            }
        }
        Ok(page)
    }

    /// All that can be read, by their ids.
    pub async fn all(&mut self) -> Result<Vec<Endpoint>, StoreError> {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.list(cursor).await?;
            found.extend(page.endpoints);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        // A page may repeat one if the registry changes meanwhile.
        found.sort_by(|one: &Endpoint, other| (&one.id, other.revision).cmp(&(&other.id, one.revision)));
        found.dedup_by(|one, other| one.id == other.id);
        Ok(found)
    }

    /// The last change, also of a damaged registry. The default if there is none.
    pub(super) async fn last_change(&mut self) -> Result<Stamped, StoreError> {
        let command = redis::cmd("HMGET").arg(RegistryKeys::META).arg("version").arg("stamp").to_owned();
        let noted = self.connection.query("read the registry's version", &command).await?;
        let (version, stamp): (Option<u64>, Option<String>) = noted;
        Ok(Stamped::noted(version.unwrap_or(0), stamp.as_deref()))
    }

    /// How many there are, also of those that cannot be read.
    pub async fn count(&mut self) -> Result<u64, StoreError> {
        let mut command = redis::cmd("HLEN");
        command.arg(RegistryKeys::ENDPOINTS);
        self.connection.query("count the endpoints", &command).await
    }

    /// Stops all sending. A later mark replaces an earlier one.
    pub async fn pause_all(&mut self, mark: &Mark) -> Result<(), RegistryError> {
        self.switch_pause("pause all sending", &to_json(mark), mark).await.map(|_| ())
    }

    /// Lets sending go on. Returns false if nothing was paused.
    pub async fn resume_all(&mut self, mark: &Mark) -> Result<bool, RegistryError> {
        self.switch_pause("resume sending", &[], mark).await
    }

    async fn switch_pause(&mut self, subject: &str, value: &[u8], mark: &Mark) -> Result<bool, RegistryError> {
        let answer: Vec<String> = self.connection.run(subject, &change(&PAUSE, &[], None, mark).arg(value)).await?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["ok", ..] => {
                self.has_changed = true;
                Ok(true)
            }
            ["unchanged"] => Ok(false),
            ["damaged", why] => Err(RegistryError::Damaged(why.to_owned())),
            _ => Err(StoreError::unexpected(subject, format_args!("{answer:?}")).into()),
        }
    }

    /// Writes something that is gone a second later: replicas that have it have all that was written before.
    pub async fn touch(&mut self) -> Result<(), StoreError> {
        let staging = RegistryKeys::staging(&random_token());
        let call = STAGE.keys(&[&staging]).arg(1).arg("nothing").arg("nothing");
        self.connection.run::<u64>("write to the registry", &call).await?;
        self.has_changed = true;
        Ok(())
    }

    async fn put(
        &mut self,
        mode: &'static str,
        script: &Script,
        mut endpoint: Endpoint,
        seen: u64,
        last: Option<Stamped>,
        mark: &Mark,
    ) -> Result<Endpoint, RegistryError> {
        let ring = self.sealing_ring([&endpoint]).await?;
        endpoint.unsealed_values = if ring.sealing().is_some() { 0 } else { endpoint.secret_values() };
        let json = stored::write(&endpoint, &ring)?;
        let id = &endpoint.id;
        let last = last.map(|last| last.to_string()).unwrap_or_default();
        let call = change(script, &[], None, mark).arg(mode).arg(id.as_str()).arg(json).arg(seen).arg(SEALED_SCHEMA);
        let call = call.arg(last);
        let object = format!("the endpoint {id}");
        let answer = self.connection.run(Subject(mode, &object), &call).await?;
        verdict(answer, id, seen)?;
        self.has_changed = true;
        Ok(endpoint)
    }

    /// The keys, once it is known that every live worker opens what their first one seals, and reads these endpoints at all.
    async fn sealing_ring(
        &mut self,
        endpoints: impl IntoIterator<Item = &Endpoint>,
    ) -> Result<Arc<Ring>, RegistryError> {
        let ring = self.connection.keyring().ring();
        self.check_all_know(&ring).await?;
        if endpoints.into_iter().any(|endpoint| endpoint.tls.is_some()) {
            check_reads(&live_workers(&mut self.connection).await?)?;
        }
        Ok(ring)
    }

    async fn check_all_know(&mut self, ring: &Ring) -> Result<(), RegistryError> {
        match ring.sealing() {
            Some(key) => Ok(check_known(&live_workers(&mut self.connection).await?, key)?),
            None => Ok(check_in_clear(&live_workers(&mut self.connection).await?)?),
        }
    }
}

/// A call of one of the scripts that change the registry, with the arguments that they share. A registry that does not
/// exist yet gets the given id, or a fresh one.
fn change<'a>(script: &'a Script, more_keys: &[&str], id: Option<&RegistryId>, mark: &Mark) -> ScriptCall<'a> {
    let mut keys = vec![RegistryKeys::ENDPOINTS, RegistryKeys::META, RegistryKeys::CHANGES];
    keys.extend(more_keys);
    let id = id.map_or_else(|| format!("reg_{}", random_token()), RegistryId::to_string);
    script.keys(&keys).arg(id).arg(&mark.by).arg(&mark.why).arg(mark.at_ms).arg(FEED_LENGTH).arg(stamp())
}

fn verdict(answer: Vec<String>, id: &EndpointId, seen: u64) -> Result<(), RegistryError> {
    Err(match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ok", ..] => return Ok(()),
        ["exists"] => RegistryError::Exists(id.clone()),
        ["missing"] => RegistryError::Missing(id.clone()),
        ["moved"] => RegistryError::Moved,
        ["stale", found] => RegistryError::Stale { id: id.clone(), seen, found: found.to_owned() },
        ["newer", found] => RegistryError::Newer { id: id.clone(), found: found.to_owned() },
        ["unreadable"] => RegistryError::Unreadable(id.clone()),
        ["damaged", why] => RegistryError::Damaged(why.to_owned()),
        _ => StoreError::unexpected(format_args!("change the endpoint {id}"), format_args!("{answer:?}")).into(),
    })
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and lists of them are always JSON")
}

/// Of one change. Of several in one step they have it in common; their versions differ.
fn stamp() -> String {
    format!("{:016x}", rand::random::<u64>().max(1))
}

/// 128 random bits as hex: no two such tokens are ever equal.
fn random_token() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

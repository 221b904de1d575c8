//! The whole registry at once: exported in a file's form, imported in one switch. Never half: an import is staged where
//! nobody looks, and becomes the registry in one script. If it dies on the way, only staged data with a TTL is left.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{PAGE, RegistryError, RegistryKeys, RegistryStore, STAGE, SWITCH, change, random_token, stored};
use crate::{
    facts::{
        endpoint::{Endpoint, Mark},
        id::{EndpointId, RegistryId},
        sealing::Ring,
        stamped::Stamped,
    },
    store::error::StoreError,
};

/// Version of the file's form in which everything is readable.
pub const EXPORT_SCHEMA: u32 = 1;

/// Version of the form whose values are sealed. A larger one was written by a newer Herald and is refused instead of guessed at.
pub const SEALED_EXPORT_SCHEMA: u32 = 2;

/// How long staged data outlives the import's last sign of life: longer than any pause between two chunks.
const STAGING_TTL_S: u64 = 600;

/// Bytes of JSON in one chunk, not counting its last endpoint: keeps one call to a few milliseconds.
const CHUNK_BYTES: usize = 1024 * 1024;

/// How often an import starts again because the registry was changed meanwhile, before the caller hears of it.
const IMPORT_TRIES: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    #[error("the import has no endpoints: it would remove all of them")]
    Empty,
    #[error("the import has endpoint {0} twice: remove one of them from the file")]
    Twice(EndpointId),
    #[error(
        "the registry was changed {IMPORT_TRIES} times during the import: repeat it when nobody else changes endpoints"
    )]
    Changed,
    #[error("the staged import was lost on the way ({found} of {expected} endpoints are there): repeat it")]
    Unstaged { expected: usize, found: String },
    #[error("the export would leave out endpoints that cannot be read here: {which}")]
    Unreadable { which: String },
    #[error("the file is not an export of endpoints (line {line}, column {column})")]
    File { line: usize, column: usize },
    #[error("the file has schema {found}; this Herald knows up to {SEALED_EXPORT_SCHEMA}: import with a newer one")]
    NewerFile { found: u64 },
    #[error("the file's endpoint {id} is {why}")]
    Endpoint { id: String, why: String },
}

/// A backup of the registry with all its secrets: a caller that writes it to disk keeps others from reading it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExportFile {
    pub schema: u32,
    pub registry_id: RegistryId,
    pub version: u64,
    /// Milliseconds since 1970.
    pub exported_at_ms: u64,
    pub endpoints: Vec<Endpoint>,
}

impl ExportFile {
    /// What is sealed is opened with these keys, wherever it was sealed.
    pub fn from_json(json: &[u8], ring: &Ring) -> Result<Self, BulkError> {
        #[derive(Deserialize)]
        struct Sketch {
            schema: u64,
        }
        // The parser's own message may quote a secret.
        let bad = |error: serde_json::Error| BulkError::File { line: error.line(), column: error.column() };
        let Sketch { schema } = serde_json::from_slice(json).map_err(bad)?;
        if schema > u64::from(SEALED_EXPORT_SCHEMA) {
            return Err(BulkError::NewerFile { found: schema });
        }
        if schema < u64::from(SEALED_EXPORT_SCHEMA) {
            return serde_json::from_slice(json).map_err(bad);
        }
        let Stored { registry_id, version, exported_at_ms, endpoints, .. }: Stored<&RawValue> =
            serde_json::from_slice(json).map_err(bad)?;
        let endpoints = endpoints.iter().map(|endpoint| opened(endpoint, ring)).collect::<Result<_, _>>()?;
        Ok(Self { schema: EXPORT_SCHEMA, registry_id, version, exported_at_ms, endpoints })
    }

    /// As a file, sealed as far as there is a key.
    pub fn to_json(&self, ring: &Ring) -> Vec<u8> {
        let sealed = ring.sealing().map(|_| Stored {
            schema: SEALED_EXPORT_SCHEMA,
            registry_id: self.registry_id.clone(),
            version: self.version,
            exported_at_ms: self.exported_at_ms,
            endpoints: self.endpoints.iter().map(|endpoint| stored::sealed(endpoint, ring)).collect::<Vec<Value>>(),
        });
        let json = sealed.map_or_else(|| serde_json::to_vec_pretty(self), |sealed| serde_json::to_vec_pretty(&sealed));
        let mut json = json.expect("strings, numbers and lists of them are always JSON");
        json.push(b'\n');
        json
    }
}

/// The file with its endpoints as they are stored.
#[derive(Serialize, Deserialize)]
struct Stored<T> {
    schema: u32,
    registry_id: RegistryId,
    version: u64,
    exported_at_ms: u64,
    endpoints: Vec<T>,
}

fn opened(json: &RawValue, ring: &Ring) -> Result<Endpoint, BulkError> {
    #[derive(Deserialize)]
    struct Sketch {
        id: Option<String>,
    }
    let id = serde_json::from_str::<Sketch>(json.get()).ok().and_then(|sketch| sketch.id).unwrap_or_default();
    stored::read_with(&id, json.get().as_bytes(), ring, false)
        .map_err(|found| BulkError::Endpoint { id: found.id, why: found.why })
}

/// What an import has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub id: RegistryId,
    pub version: u64,
    pub endpoints: usize,
}

impl RegistryStore {
    /// The whole registry as it is at one version, in the order of the ids.
    pub async fn export(&mut self, now_ms: u64) -> Result<ExportFile, RegistryError> {
        let loaded = self.load().await?;
        if !loaded.unreadable.is_empty() {
            let mut which: Vec<String> =
                loaded.unreadable.into_values().map(|found| format!("{} ({})", found.id, found.why)).collect();
            which.sort();
            which.truncate(10);
            return Err(BulkError::Unreadable { which: which.join(", ") }.into());
        }
        let mut endpoints: Vec<Endpoint> = loaded.endpoints.into_values().collect();
        for endpoint in &mut endpoints {
            endpoint.drop_expired_secrets(now_ms);
            // How this Redis holds it says nothing of a file.
            endpoint.unsealed_values = 0;
        }
        endpoints.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(ExportFile {
            schema: EXPORT_SCHEMA,
            registry_id: loaded.position.id,
            version: loaded.position.last.version,
            exported_at_ms: now_ms,
            endpoints,
        })
    }

    /// Replaces all endpoints. A registry that exists keeps its id; a new one takes `id`, or a fresh one. Each endpoint
    /// gets a larger revision than it has in Redis, so that a change that saw the old one is refused.
    pub async fn import(
        &mut self,
        mut endpoints: Vec<Endpoint>,
        id: Option<RegistryId>,
        mark: &Mark,
    ) -> Result<Imported, RegistryError> {
        if endpoints.is_empty() {
            return Err(BulkError::Empty.into());
        }
        let mut seen = HashSet::new();
        if let Some(twice) = endpoints.iter().find(|endpoint| !seen.insert(&endpoint.id)) {
            return Err(BulkError::Twice(twice.id.clone()).into());
        }
        for endpoint in &mut endpoints {
            endpoint.drop_expired_secrets(mark.at_ms);
        }
        let ring = self.sealing_ring(&endpoints).await?;
        for _ in 0..IMPORT_TRIES {
            // Also of a damaged registry, because an import is what mends it.
            let seen = self.last_change().await?;
            let revisions = self.revisions().await?;
            for endpoint in &mut endpoints {
                let known = revisions.get(&endpoint.id).copied().unwrap_or(0);
                endpoint.revision = endpoint.revision.max(known + 1);
            }
            let staging = RegistryKeys::staging(&random_token());
            self.stage(&staging, &endpoints, &ring).await?;
            if let Some(imported) = self.switch(&staging, endpoints.len(), seen, id.as_ref(), mark).await? {
                return Ok(imported);
            }
        }
        Err(BulkError::Changed.into())
    }

    async fn revisions(&mut self) -> Result<HashMap<EndpointId, u64>, StoreError> {
        let mut revisions = HashMap::new();
        let mut cursor = None;
        loop {
            let page = self.list(cursor).await?;
            revisions.extend(page.endpoints.into_iter().map(|endpoint| (endpoint.id, endpoint.revision)));
            cursor = page.next;
            if cursor.is_none() {
                return Ok(revisions);
            }
        }
    }

    async fn stage(&mut self, staging: &str, endpoints: &[Endpoint], ring: &Ring) -> Result<(), RegistryError> {
        let mut rest = endpoints.iter().peekable();
        while rest.peek().is_some() {
            let mut call = STAGE.keys(&[staging]).arg(STAGING_TTL_S);
            let (mut staged, mut bytes) = (0, 0);
            while let Some(endpoint) = rest.next_if(|_| staged < PAGE && bytes < CHUNK_BYTES) {
                let json = stored::write(endpoint, ring)?;
                (staged, bytes) = (staged + 1, bytes + json.len());
                call = call.arg(endpoint.id.as_str()).arg(json);
            }
            let _: u64 = self.connection.run("stage the import of endpoints", &call).await?;
        }
        Ok(())
    }

    /// None if the registry was changed since `seen`; the staged data is gone then.
    async fn switch(
        &mut self,
        staging: &str,
        expected: usize,
        seen: Stamped,
        id: Option<&RegistryId>,
        mark: &Mark,
    ) -> Result<Option<Imported>, RegistryError> {
        let subject = "switch to the imported endpoints";
        let call = change(&SWITCH, &[staging], id, mark).arg(expected).text(seen);
        let answer: Vec<String> = self.connection.run(subject, &call).await?;
        let unexpected = || StoreError::unexpected(subject, format_args!("{answer:?}"));
        match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["ok", version, id] => {
                self.has_changed = true;
                Ok(Some(Imported {
                    id: RegistryId::new(id).map_err(|_| unexpected())?,
                    version: version.parse().map_err(|_| unexpected())?,
                    endpoints: expected,
                }))
            }
            ["changed"] => {
                let unlink = redis::cmd("UNLINK").arg(staging).to_owned();
                let _: u64 = self.connection.query("drop the staged import", &unlink).await?;
                Ok(None)
            }
            ["unstaged", found] => Err(BulkError::Unstaged { expected, found: found.to_owned() }.into()),
            _ => Err(unexpected().into()),
        }
    }
}

//! The one place where what Redis holds becomes an endpoint, and the one where an endpoint becomes what Redis holds. So secrets are
//! sealed and opened here and nowhere else. Never talks to Redis.
//!
//! A sealed value is an object, `{"sealed":"hs1.…"}`, in schema 2. It is never a text: a Herald of schema 1 would sign with that.

use std::{collections::BTreeSet, fmt, sync::Arc};

use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

use super::{MAX_ENDPOINT_BYTES, RegistryError, Unreadable, reseal::Form, to_json};
use crate::{
    facts::{
        endpoint::{ENDPOINT_SCHEMA, Endpoint, SEALED_SCHEMA},
        id::{AccountId, EndpointId},
        sealing::{Field, KeyId, OpenError, Place, Ring, key_of},
    },
    keyring::Keyring,
};

const SEALED: &str = "sealed";

/// Why an endpoint that is well formed is of no use here: its secrets cannot be had. It waits, as one that cannot be read does.
#[derive(Debug, Clone, PartialEq)]
pub struct Lock {
    pub cause: LockCause,
    /// All of it but its secrets and the values of its headers: for people, and never to send by. None if that cannot be read.
    pub shown: Option<Arc<Endpoint>>,
    /// How many values of it are sealed or should be.
    pub values: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockCause {
    /// It opens as soon as the ring has these.
    NoKey(BTreeSet<KeyId>),
    Damaged,
    /// Only sealed values are believed, and it has others.
    Unsealed,
}

impl LockCause {
    /// The keys that would open it.
    pub fn missing(&self) -> impl Iterator<Item = KeyId> {
        let keys = match self {
            Self::NoKey(keys) => Some(keys),
            Self::Damaged | Self::Unsealed => None,
        };
        keys.into_iter().flatten().copied()
    }
}

impl fmt::Display for LockCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey(keys) => {
                let keys: Vec<String> = keys.iter().map(KeyId::to_string).collect();
                let keys = keys.join(", ");
                write!(f, "locked: it is sealed with the key {keys}, which this process' master_key_file does not have")
            }
            Self::Damaged => {
                f.write_str("locked (damaged): a sealed value of it was changed, or was sealed for another place")
            }
            Self::Unsealed => {
                f.write_str("locked: a value of it is not sealed, and seal_only is set (`herald key reseal`)")
            }
        }
    }
}

/// How the values of one stored endpoint are kept.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The key of each sealed value; none for one that is no sealed value at all.
    pub sealed: Vec<Option<KeyId>>,
    pub unsealed: usize,
}

/// What Redis holds under `id`. A newer schema, and anything that is not an endpoint, are told apart from an absent one, and so is
/// an endpoint whose secrets do not open.
pub fn read(id: &str, json: &[u8], keyring: &Keyring) -> Result<Endpoint, Unreadable> {
    read_with(id, json, &keyring.ring(), keyring.is_only())
}

/// The same with these keys. `is_only` locks what is not sealed.
pub fn read_with(id: &str, json: &[u8], ring: &Ring, is_only: bool) -> Result<Endpoint, Unreadable> {
    #[derive(Deserialize)]
    struct Sketch {
        schema: Option<u64>,
        account: Option<String>,
    }
    let sketch = serde_json::from_slice(json).unwrap_or(Sketch { schema: None, account: None });
    let account = || sketch.account.as_deref().and_then(|account| AccountId::new(account).ok());
    let unreadable =
        |why: String| Unreadable { id: id.chars().take(128).collect(), account: account(), why, lock: None };
    // The parser's own message may quote a secret.
    let no_endpoint =
        |error: serde_json::Error| unreadable(format!("it is not an endpoint, see column {}", error.column()));
    if let Some(newer) = sketch.schema.filter(|schema| *schema > u64::from(SEALED_SCHEMA)) {
        return Err(unreadable(format!("schema {newer} is newer than {SEALED_SCHEMA}: run a newer Herald")));
    }
    let locked = |lock: Lock| Unreadable { lock: Some(lock.clone()), ..unreadable(lock.cause.to_string()) };
    let mut unsealed = None;
    let endpoint: Endpoint = match sketch.schema == Some(SEALED_SCHEMA.into()) {
        false => serde_json::from_slice(json).map_err(no_endpoint)?,
        true => {
            let mut stored: Value = serde_json::from_slice(json).map_err(no_endpoint)?;
            if !has_its_form(&mut stored) {
                return Err(unreadable("it is not an endpoint: its lists are of another form".to_owned()));
            }
            let (Ok(id), Some(account)) = (EndpointId::new(id), account()) else {
                return Err(unreadable("it has no id or no account".to_owned()));
            };
            let opened = open(&mut stored, &id, &account, ring);
            unsealed = Some(opened.map_err(|lock| locked(Lock { shown: without_values(stored.take()), ..lock }))?);
            stored["schema"] = ENDPOINT_SCHEMA.into();
            serde_json::from_value(stored).map_err(no_endpoint)?
        }
    };
    if endpoint.id.as_str() != id {
        return Err(unreadable("it names another id".to_owned()));
    }
    let unsealed_values = unsealed.unwrap_or_else(|| endpoint.secret_values());
    match is_only && unsealed_values > 0 {
        true => {
            let (cause, values) = (LockCause::Unsealed, endpoint.secret_values());
            let shown = serde_json::to_value(&endpoint).ok().and_then(without_values);
            Err(locked(Lock { cause, shown, values }))
        }
        false => Ok(Endpoint { unsealed_values, ..endpoint }),
    }
}

/// What Redis is to hold: sealed if there is a key, and the lowest schema that can say it.
pub fn write(endpoint: &Endpoint, ring: &Ring) -> Result<Vec<u8>, RegistryError> {
    let plain = Zeroizing::new(to_json(endpoint));
    // What is not sealed counts: so none that was taken is too large to be sealed.
    if plain.len() > MAX_ENDPOINT_BYTES {
        return Err(RegistryError::TooLarge { id: endpoint.id.clone(), bytes: plain.len() });
    }
    match ring.sealing() {
        None if endpoint.has_client_key() => Err(RegistryError::KeyInClear(endpoint.id.clone())),
        None if endpoint.tls.is_none() => Ok(plain.to_vec()),
        _ => Ok(to_json(&sealed(endpoint, ring))),
    }
}

/// An endpoint in the form in which it is stored, sealed as far as there is a key.
pub fn sealed(endpoint: &Endpoint, ring: &Ring) -> Value {
    let mut stored = serde_json::to_value(endpoint).expect("strings, numbers and lists of them are always JSON");
    // What has TLS settings says so by its schema, whether or not it has anything to seal.
    let mut needs_newer = endpoint.tls.is_some();
    each_value(&mut stored, |field, value| {
        let Value::String(text) = value else { return };
        let place = Place { endpoint: &endpoint.id, account: &endpoint.account, field };
        if let Some(sealed) = ring.seal(&place, text, rand::random()) {
            drop(Zeroizing::new(std::mem::take(text)));
            *value = serde_json::json!({ SEALED: sealed });
            needs_newer = true;
        }
    });
    if needs_newer {
        stored["schema"] = SEALED_SCHEMA.into();
    }
    stored
}

/// What must be known to read what Redis holds, of whatever schema. None if it is no endpoint.
pub fn form(json: &[u8]) -> Option<Form> {
    #[derive(Deserialize)]
    struct Sketch {
        schema: u64,
        schemes: Vec<String>,
        tls: Option<Value>,
    }
    let Sketch { schema, schemes, tls } = serde_json::from_slice(json).ok()?;
    Some(Form {
        schema,
        schemes,
        has_tls: tls.is_some(),
        is_sealed: kept(json).is_some_and(|kept| !kept.sealed.is_empty()),
    })
}

/// How the values of what Redis holds are kept, whether or not they open. None if it is no endpoint.
pub fn kept(json: &[u8]) -> Option<Kept> {
    let mut stored: Value = serde_json::from_slice(json).ok().filter(Value::is_object)?;
    if !has_its_form(&mut stored) {
        return None;
    }
    let mut kept = Kept::default();
    each_value(&mut stored, |_, value| match value {
        Value::String(_) => kept.unsealed += 1,
        other => kept.sealed.push(sealed_text(other).and_then(|sealed| key_of(sealed).ok())),
    });
    Some(kept)
}

/// Puts what was sealed in the place of each sealed value. Returns how many were not sealed.
fn open(stored: &mut Value, id: &EndpointId, account: &AccountId, ring: &Ring) -> Result<usize, Lock> {
    let (mut unsealed, mut values, mut is_damaged, mut missing) = (0, 0, false, BTreeSet::new());
    each_value(stored, |field, value| {
        values += 1;
        if value.is_string() {
            unsealed += 1;
            return;
        }
        let place = Place { endpoint: id, account, field };
        match sealed_text(value).ok_or(OpenError::Form).and_then(|sealed| ring.open(&place, sealed)) {
            Ok(mut text) => *value = Value::String(std::mem::take(&mut *text)),
            Err(OpenError::NoKey(key)) => drop(missing.insert(key)),
            Err(OpenError::Damaged | OpenError::Form) => is_damaged = true,
        }
    });
    let cause = match (is_damaged, missing.is_empty()) {
        (false, true) => return Ok(unsealed),
        (_, false) => LockCause::NoKey(missing),
        (true, true) => LockCause::Damaged,
    };
    Err(Lock { cause, shown: None, values })
}

/// What is left of a stored endpoint without what is to be sealed. Wipes what was opened of that.
fn without_values(mut stored: Value) -> Option<Arc<Endpoint>> {
    each_value(&mut stored, |_, value| {
        if let Value::String(text) = value {
            drop(Zeroizing::new(std::mem::take(text)));
        }
        *value = Value::String(String::new());
    });
    for list in ["secrets", "spare_secrets"] {
        if let Some(secrets) = stored.get_mut(list) {
            *secrets = Value::Array(Vec::new());
        }
    }
    stored["schema"] = ENDPOINT_SCHEMA.into();
    serde_json::from_value(stored).ok().map(Arc::new)
}

/// Whether [`each_value`] finds all that serde would read: it takes a list for an object, too, and so would a value that somebody
/// planted in a list go unseen.
fn has_its_form(stored: &mut Value) -> bool {
    let is_secret = |item: &mut Value| item.get("value").is_some();
    let is_header = |item: &mut Value| matches!(item.as_array().map(Vec::as_slice), Some([Value::String(_), _]));
    stored.is_object()
        && ["secrets", "spare_secrets"].iter().all(|list| items(stored.get_mut(list)).all(is_secret))
        && items(stored.get_mut("headers")).all(is_header)
        && ["secrets", "spare_secrets", "headers"].iter().all(|list| stored.get(list).is_none_or(Value::is_array))
        && stored.get("tls").is_none_or(Value::is_object)
}

fn sealed_text(value: &Value) -> Option<&str> {
    value.as_object().filter(|object| object.len() == 1)?.get(SEALED)?.as_str()
}

/// Each value that is to be sealed, with what it is. Whatever has another form is left to whoever reads the whole.
fn each_value(stored: &mut Value, mut then: impl FnMut(Field<'_>, &mut Value)) {
    for list in ["secrets", "spare_secrets"] {
        for secret in items(stored.get_mut(list)) {
            let created_at_ms = secret.get("created_at_ms").and_then(Value::as_u64).unwrap_or_default();
            if let Some(value) = secret.get_mut("value") {
                then(Field::Secret { created_at_ms }, value);
            }
        }
    }
    for header in items(stored.get_mut("headers")) {
        if let Some([Value::String(name), value]) = header.as_array_mut().map(Vec::as_mut_slice) {
            then(Field::Header { name }, value);
        }
    }
    let client_key = stored.get_mut("tls").and_then(|tls| tls.get_mut("client_key"));
    if let Some(value) = client_key.filter(|value| !value.is_null()) {
        then(Field::ClientKey, value);
    }
}

fn items(list: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    list.and_then(Value::as_array_mut).into_iter().flatten()
}

//! Owns the names of all settings and lays their sources over each other: built-in default < file < environment < flag.
//! Knows where each text came from, and nothing of what it means.

use std::{collections::BTreeMap, sync::Arc};

use toml::de::{DeTable, DeValue};

use super::{error::ConfigError, origin::Origin};

/// How a value may be shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Showing {
    Plain,
    /// Never, only whether it is there.
    Hidden,
    /// Without the password inside.
    RedisUrl,
}

/// One setting. Only those that `deploy/herald.toml` names a variable for can be set in the environment.
pub(super) struct Key {
    pub name: &'static str,
    pub env: Option<&'static str>,
    pub showing: Showing,
}

const fn key(name: &'static str, env: &'static str) -> Key {
    Key { name, env: Some(env), showing: Showing::Plain }
}

const fn file_only(name: &'static str) -> Key {
    Key { name, env: None, showing: Showing::Plain }
}

/// In the order in which `herald config show` prints them.
pub(super) const KEYS: [Key; 40] = [
    key("listen", "HERALD_LISTEN"),
    Key { name: "admin_token", env: Some("HERALD_ADMIN_TOKEN"), showing: Showing::Hidden },
    key("master_key_file", "HERALD_MASTER_KEY_FILE"),
    Key { name: "redis.url", env: Some("HERALD_REDIS_URL"), showing: Showing::RedisUrl },
    file_only("redis.ca_file"),
    key("stream.name", "HERALD_STREAM"),
    key("stream.partitions", "HERALD_PARTITIONS"),
    key("stream.start", "HERALD_START"),
    key("stream.retain", "HERALD_RETAIN"),
    file_only("stream.trim_ignores"),
    file_only("events.strict"),
    key("lease.ttl", "HERALD_LEASE"),
    key("guard.allow_http", "HERALD_ALLOW_HTTP"),
    key("guard.allow_networks", "HERALD_ALLOW_NETWORKS"),
    file_only("guard.allow_metadata"),
    file_only("guard.deny_networks"),
    file_only("guard.allow_ports"),
    key("attempt.timeout", "HERALD_ATTEMPT_TIMEOUT"),
    file_only("attempt.connect_timeout"),
    file_only("attempt.max_connection_age"),
    file_only("attempt.ca_file"),
    key("retry.initial", "HERALD_RETRY_INITIAL"),
    key("retry.multiplier", "HERALD_RETRY_MULTIPLIER"),
    key("retry.max_interval", "HERALD_RETRY_MAX_INTERVAL"),
    key("retry.jitter", "HERALD_RETRY_JITTER"),
    key("retry.max_attempts", "HERALD_RETRY_MAX_ATTEMPTS"),
    key("retry.max_age", "HERALD_RETRY_MAX_AGE"),
    key("log.filter", "HERALD_LOG"),
    key("log.format", "HERALD_LOG_FORMAT"),
    file_only("shutdown.grace"),
    file_only("limits.body_bytes"),
    file_only("limits.attempt_log_entries"),
    file_only("limits.quarantine_bytes"),
    file_only("quota.endpoint_bytes"),
    file_only("quota.account_bytes"),
    file_only("limits.dead_letters.max_count"),
    file_only("limits.dead_letters.max_age"),
    file_only("limits.breaker.failure_share"),
    file_only("limits.breaker.cooldown"),
    file_only("limits.breaker.max_cooldown"),
];

/// Names the file; whoever gathers the sources reads it.
pub(super) const CONFIG_FILE_ENV: &str = "HERALD_CONFIG";

/// Only variables that start so are Herald's.
pub(super) const ENV_PREFIX: &str = "HERALD_";

/// Kubernetes sets HERALD_PORT and the like in every container beside a service named herald.
const ENV_HINT: &str = " (if Kubernetes sets it for a service named herald: enableServiceLinks: false)";

/// A value as it was written.
#[derive(Clone)]
pub(super) enum Written {
    One(String),
    /// A TOML array.
    Many(Vec<String>),
    /// A date or a table: never right.
    Other(&'static str),
}

#[derive(Clone)]
pub(super) struct Given {
    pub written: Written,
    pub origin: Origin,
}

/// The value that holds for each key, and what was wrong on the way.
#[derive(Default)]
pub(super) struct Layers {
    pub values: BTreeMap<&'static str, Given>,
    pub errors: Vec<ConfigError>,
}

impl Layers {
    /// Lays a TOML text over what is there. `path` is none for the built-in default.
    pub fn lay_toml(&mut self, text: &str, path: Option<&str>) {
        let path: Option<Arc<str>> = path.map(Arc::from);
        let origin_at = |at: usize| match &path {
            Some(path) => Origin::File { path: path.clone(), line: line_at(text, at) },
            None => Origin::BuiltIn,
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            self.lay_table("", table.get_ref(), &origin_at);
        }
        self.errors.extend(errors.iter().map(|error| ConfigError::Syntax {
            origin: origin_at(error.span().map_or(0, |span| span.start)),
            problem: error.message().to_owned(),
        }));
    }

    fn lay_table(&mut self, prefix: &str, table: &DeTable<'_>, origin_at: &dyn Fn(usize) -> Origin) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let origin = origin_at(key.span().start);
            match value.get_ref() {
                DeValue::Table(inner) if is_section(&name) => self.lay_table(&format!("{name}."), inner, origin_at),
                value => self.lay(&name, written(value), origin),
            }
        }
    }

    fn lay(&mut self, name: &str, written: Written, origin: Origin) {
        match KEYS.iter().find(|key| key.name == name) {
            Some(key) => {
                self.values.insert(key.name, Given { written, origin });
            }
            None => {
                let nearest = nearest(name, KEYS.iter().map(|key| key.name));
                self.errors.push(ConfigError::Unknown { name: shorten(name), origin, nearest, hint: "" });
            }
        }
    }

    /// Lays the variables that start with HERALD_ over what is there; others are nobody's business here.
    pub fn lay_env(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in variables {
            if !name.starts_with(ENV_PREFIX) || name == CONFIG_FILE_ENV {
                continue;
            }
            let known = KEYS.iter().find_map(|key| key.env.filter(|env| *env == name).map(|env| (key.name, env)));
            match known {
                Some((key, env)) => {
                    self.values.insert(key, Given { written: Written::One(value), origin: Origin::Env(env) });
                }
                None => self.errors.push(ConfigError::Unknown {
                    nearest: nearest(&name, KEYS.iter().filter_map(|key| key.env).chain([CONFIG_FILE_ENV])),
                    name: shorten(&name),
                    origin: Origin::UnknownEnv,
                    hint: ENV_HINT,
                }),
            }
        }
    }

    /// Lays flags over what is there; of a repeated one the last holds.
    pub fn lay_flags(&mut self, flags: impl IntoIterator<Item = (String, String)>) {
        for (key, value) in flags {
            self.lay(&key, Written::One(value), Origin::Flag);
        }
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

fn written(value: &DeValue<'_>) -> Written {
    let scalar = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    };
    let whole = match value {
        DeValue::Array(items) => {
            items.iter().map(|item| scalar(item.get_ref())).collect::<Option<_>>().map(Written::Many)
        }
        value => scalar(value).map(Written::One),
    };
    whole.unwrap_or(Written::Other(value.type_str()))
}

fn line_at(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> &'static str {
    known.min_by_key(|known| strsim::damerau_levenshtein(name, known)).unwrap_or_default()
}

/// A message stays readable whatever was written.
pub(super) fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

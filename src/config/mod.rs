//! The configuration of section 7 of `docs/design.md`: built-in default < TOML file < environment < flag.
//! The built-in default is `deploy/herald.toml`, which is also the reference: meaning, unit, bounds and reason of each key.
//! [`Config::load`] is pure; only [`Sources::gather`] looks at the process. Never shows a secret.

mod error;
mod keys;
mod layers;
mod origin;
mod sections;
mod sources;
#[cfg(test)]
mod tests;
mod values;

use std::net::SocketAddr;

pub use self::{
    error::{ConfigError, ConfigErrors, UnknownVariable},
    origin::Origin,
    sections::{
        ApiConfig, AttemptConfig, BreakerLimits, DeadLetterLimits, EventsConfig, GuardConfig, HistoryConfig,
        IntentsConfig, LeaseConfig, LimitsConfig, LogConfig, RedisConfig, SealConfig, ShutdownConfig, StreamConfig,
        WorkerConfig,
    },
    sources::{ConfigFile, SecretFile, Sources},
    values::{
        AdminToken, HistoryUrl, ProxyUrl, RedisKind, RedisPlaces, RedisUrl, Start, compact, duration as parse_duration,
        redis_places,
    },
};
use self::{
    keys::{KEYS, Key, Showing},
    layers::{Given, Layers, Written},
    sections::Reader,
};
use crate::facts::{quota, retry::RetrySettings};

/// The built-in default, commented.
pub const DEFAULT_TOML: &str = include_str!("../../deploy/herald.toml");

/// A whole, checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub listen: SocketAddr,
    /// Where health and metrics are, beside nothing else; None is on `listen`.
    pub metrics_listen: Option<SocketAddr>,
    /// For partitions and attempts; None: as many as there are processors.
    pub threads: Option<u16>,
    pub admin_token: Option<AdminToken>,
    /// What the console's sessions are sealed with; none: what is derived from the admin token.
    pub session_key: Option<AdminToken>,
    pub api: ApiConfig,
    pub seal: SealConfig,
    pub redis: RedisConfig,
    pub stream: StreamConfig,
    pub events: EventsConfig,
    pub lease: LeaseConfig,
    pub worker: WorkerConfig,
    pub guard: GuardConfig,
    pub attempt: AttemptConfig,
    /// `RetryPolicy::try_new` accepts it: that has been tried.
    pub retry: RetrySettings,
    pub log: LogConfig,
    pub shutdown: ShutdownConfig,
    pub limits: LimitsConfig,
    pub quotas: quota::Settings,
    pub history: HistoryConfig,
    pub intents: IntentsConfig,
    rows: Vec<Row>,
    unknown_variables: Vec<UnknownVariable>,
}

/// One line of `herald config show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub key: &'static str,
    /// As it was written; secrets masked.
    pub value: String,
    pub origin: Origin,
}

impl Config {
    /// Lays the sources over the built-in default and checks every resulting value. All errors are reported at once.
    pub fn load(sources: Sources) -> Result<Self, ConfigErrors> {
        let mut layers = Layers::default();
        layers.lay_toml(DEFAULT_TOML, None);
        if let Some(file) = &sources.file {
            layers.lay_toml(&file.text, Some(&file.path));
        }
        layers.lay_env(sources.env);
        layers.lay_secret_files(sources.secret_files);
        layers.lay_flags(sources.flags);
        let mut reader = Reader(layers);
        match Self::assemble(&mut reader) {
            Some(config) if reader.0.errors.is_empty() => Ok(config),
            _ => {
                let Layers { errors, unknown_variables, .. } = reader.0;
                Err(ConfigErrors { errors, unknown_variables })
            }
        }
    }

    /// Every key with its value and where that came from.
    pub fn show(&self) -> &[Row] {
        &self.rows
    }

    /// The program that starts reports them once.
    pub fn unknown_variables(&self) -> &[UnknownVariable] {
        &self.unknown_variables
    }

    /// Reads everything before it checks anything, so that every error is noted.
    fn assemble(reader: &mut Reader) -> Option<Self> {
        let (listen, admin_token, seal) = (reader.listen(), reader.admin_token(), reader.seal());
        let (metrics_listen, api, session_key) = (reader.metrics_listen(), reader.api(), reader.session_key());
        let threads = reader.threads();
        let (redis, stream, events, lease) = (reader.redis(), reader.stream(), reader.events(), reader.lease());
        let worker = reader.worker();
        let (guard, attempt, retry) = (reader.guard(), reader.attempt(), reader.retry());
        let (log, shutdown, limits) = (reader.log(), reader.shutdown(), reader.limits());
        let (quotas, history, intents) = (reader.quotas(), reader.history(), reader.intents());
        Some(Self {
            listen: listen?,
            metrics_listen: metrics_listen?,
            threads: threads?,
            admin_token: admin_token?,
            session_key: session_key?,
            api: api?,
            seal: seal?,
            redis: redis?,
            stream: stream?,
            events: events?,
            lease: lease?,
            worker: worker?,
            guard: guard?,
            attempt: attempt?,
            retry: retry?,
            log: log?,
            shutdown: shutdown?,
            limits: limits?,
            quotas: quotas?,
            history: history?,
            intents: intents?,
            rows: KEYS.iter().filter_map(|key| Some(row(key, reader.0.values.get(key.name)?))).collect(),
            unknown_variables: reader.0.unknown_variables.clone(),
        })
    }
}

fn row(key: &Key, given: &Given) -> Row {
    let text = match &given.written {
        Written::One(text) => text.clone(),
        Written::Many(items) => items.join(", "),
        Written::Other(kind) => (*kind).to_owned(),
    };
    let value = match key.showing {
        Showing::Plain => text,
        Showing::Hidden if text.is_empty() => text,
        Showing::Hidden => "(hidden)".to_owned(),
        Showing::RedisUrl => text.parse::<RedisUrl>().map_or_else(|_| "(hidden)".to_owned(), |url| url.to_string()),
        Showing::ProxyUrl if text.is_empty() => text,
        Showing::ProxyUrl => text.parse::<ProxyUrl>().map_or_else(|_| "(hidden)".to_owned(), |url| url.to_string()),
        Showing::HistoryUrl => text.parse::<HistoryUrl>().map_or_else(|_| "(hidden)".to_owned(), |url| url.to_string()),
    };
    Row { key: key.name, value, origin: given.origin.clone() }
}

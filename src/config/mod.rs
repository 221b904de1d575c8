//! The configuration of section 7 of `docs/design.md`: built-in default < TOML file < environment < flag.
//! The built-in default is `deploy/herald.toml`, which is also the reference: meaning, unit, bounds and reason of each key.
//! [`Config::load`] is pure; only [`Sources::gather`] looks at the process. Never shows a secret.

mod error;
mod layers;
mod origin;
mod sections;
#[cfg(test)]
mod tests;
mod values;

use std::{
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
};

pub use self::{
    error::{ConfigError, ConfigErrors},
    origin::Origin,
    sections::{
        AttemptConfig, BreakerLimits, DeadLetterLimits, EventsConfig, GuardConfig, LeaseConfig, LimitsConfig,
        LogConfig, RedisConfig, ShutdownConfig, StreamConfig,
    },
    values::{AdminToken, RedisUrl, Start, compact, duration as parse_duration},
};
use self::{
    layers::{CONFIG_FILE_ENV, ENV_PREFIX, Given, KEYS, Layers, Showing, Written},
    sections::Reader,
};
use crate::facts::{quota, retry::RetrySettings};

/// The built-in default, commented.
pub const DEFAULT_TOML: &str = include_str!("../../deploy/herald.toml");

/// Where a configuration comes from, besides the built-in default. It may hold secrets, so it has no `Debug`.
#[derive(Default)]
pub struct Sources {
    pub file: Option<ConfigFile>,
    /// Variables that do not start with `HERALD_` are ignored.
    pub env: Vec<(String, String)>,
    /// Keys as in the file (`lease.ttl`) and their values; of a repeated one the last holds.
    pub flags: Vec<(String, String)>,
}

pub struct ConfigFile {
    /// Only for messages.
    pub path: String,
    pub text: String,
}

impl Sources {
    /// Looks at the process: its environment, and the file of `--config` or else of `HERALD_CONFIG`.
    pub fn gather(config_flag: Option<&Path>, flags: Vec<(String, String)>) -> Result<Self, ConfigErrors> {
        let (mut env, mut errors) = (Vec::new(), Vec::new());
        for (name, value) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            match value.into_string() {
                _ if !name.starts_with(ENV_PREFIX) => {}
                Ok(value) => env.push((name, value)),
                Err(_) => errors.push(ConfigError::NotText { name }),
            }
        }
        let named = env.iter().find(|(name, value)| name == CONFIG_FILE_ENV && !value.is_empty());
        let path = config_flag.map(Path::to_path_buf).or_else(|| named.map(|(_, path)| PathBuf::from(path)));
        let file = path.and_then(|path| read(&path).map_err(|error| errors.push(error)).ok());
        match errors.is_empty() {
            true => Ok(Self { file, env, flags }),
            false => Err(ConfigErrors(errors)),
        }
    }
}

fn read(path: &Path) -> Result<ConfigFile, ConfigError> {
    /// The whole default with its comments has less than 10 KiB: what is larger than this is some other file.
    const MAX_BYTES: u64 = 1 << 20;
    let shown = path.display().to_string();
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    let why = match read {
        Ok(bytes) if bytes as u64 <= MAX_BYTES => return Ok(ConfigFile { path: shown, text }),
        Ok(_) => "it is larger than 1 MiB".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => "it is not UTF-8".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(ConfigError::Unreadable { path: shown, why })
}

/// A whole, checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub listen: SocketAddr,
    pub admin_token: Option<AdminToken>,
    pub redis: RedisConfig,
    pub stream: StreamConfig,
    pub events: EventsConfig,
    pub lease: LeaseConfig,
    pub guard: GuardConfig,
    pub attempt: AttemptConfig,
    /// `RetryPolicy::try_new` takes it: that was tried.
    pub retry: RetrySettings,
    pub log: LogConfig,
    pub shutdown: ShutdownConfig,
    pub limits: LimitsConfig,
    pub quotas: quota::Settings,
    rows: Vec<Row>,
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
    /// Lays the sources over the built-in default and checks every value that holds. Errors come all at once.
    pub fn load(sources: Sources) -> Result<Self, ConfigErrors> {
        let mut layers = Layers::default();
        layers.lay_toml(DEFAULT_TOML, None);
        if let Some(file) = &sources.file {
            layers.lay_toml(&file.text, Some(&file.path));
        }
        layers.lay_env(sources.env);
        layers.lay_flags(sources.flags);
        let mut reader = Reader(layers);
        match Self::assemble(&mut reader) {
            Some(config) if reader.0.errors.is_empty() => Ok(config),
            _ => Err(ConfigErrors(reader.0.errors)),
        }
    }

    /// Every key with its value and where that came from.
    pub fn show(&self) -> &[Row] {
        &self.rows
    }

    /// Reads all before it looks at any, so that every error is noted.
    fn assemble(reader: &mut Reader) -> Option<Self> {
        let (listen, admin_token, seal) = (reader.listen(), reader.admin_token(), reader.master_key_file());
        let (redis, stream, events, lease) = (reader.redis(), reader.stream(), reader.events(), reader.lease());
        let (guard, attempt, retry) = (reader.guard(), reader.attempt(), reader.retry());
        let (log, shutdown, limits) = (reader.log(), reader.shutdown(), reader.limits());
        let quotas = reader.quotas();
        seal?;
        Some(Self {
            listen: listen?,
            admin_token: admin_token?,
            redis: redis?,
            stream: stream?,
            events: events?,
            lease: lease?,
            guard: guard?,
            attempt: attempt?,
            retry: retry?,
            log: log?,
            shutdown: shutdown?,
            limits: limits?,
            quotas: quotas?,
            rows: KEYS
                .iter()
                .filter_map(|key| Some(row(key.name, key.showing, reader.0.values.get(key.name)?)))
                .collect(),
        })
    }
}

fn row(key: &'static str, showing: Showing, given: &Given) -> Row {
    let text = match &given.written {
        Written::One(text) => text.clone(),
        Written::Many(items) => items.join(", "),
        Written::Other(kind) => (*kind).to_owned(),
    };
    let value = match showing {
        Showing::Plain => text,
        Showing::Hidden if text.is_empty() => text,
        Showing::Hidden => "(hidden)".to_owned(),
        Showing::RedisUrl => text.parse::<RedisUrl>().map_or_else(|_| "(hidden)".to_owned(), |url| url.to_string()),
    };
    Row { key, value, origin: given.origin.clone() }
}

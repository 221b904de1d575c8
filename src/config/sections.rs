//! What each part of Herald is configured with: small typed structs, each read from its keys and checked against the
//! bounds that `deploy/herald.toml` documents. Reading goes on after an error, so that all errors are found.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use ipnet::IpNet;
use jiff::tz::TimeZone;
use url::Url;

use super::{
    error::ConfigError,
    keys::{KEYS, Showing},
    layers::{Given, Layers, Written, shorten},
    values::{
        self, AdminToken, DAY, HistoryUrl, ProxyUrl, RedisUrl, Start, compact, decimal, duration, duration_in,
        number_in,
    },
};
use crate::{
    facts::{
        partition::{MAX_PARTS, Split},
        quota,
        retry::{RetryPolicy, RetrySettings},
    },
    telemetry::logging::{LogFilter, LogFormat},
    tls::{IdentityFiles, NamedFile},
};

/// How callers of the operations API and of payment intents come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiConfig {
    /// PEM files of what is shown to them; None: they are not encrypted.
    pub identity: Option<IdentityFiles>,
    /// Whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    pub url: RedisUrl,
    /// PEM file of the authority of a `rediss://` server.
    pub ca_file: Option<PathBuf>,
    /// PEM files of what Herald shows to it.
    pub identity: Option<IdentityFiles>,
    /// How many replicas must have what goes from one slot to another; None: one where there are replicas.
    pub wait: Option<u8>,
    pub wait_timeout: Duration,
}

/// How endpoints' secrets are sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealConfig {
    /// The file with the keys; None: nothing is sealed.
    pub master_key_file: Option<PathBuf>,
    /// Whether an endpoint with a value that is not sealed is locked.
    pub only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamConfig {
    pub name: String,
    /// Into how many parts a stream is split that nothing was done with yet; 1: none.
    pub partitions: u32,
    pub start: Start,
    /// How long finished entries stay before they are trimmed.
    pub retain: Duration,
    /// How long what was passed on to the parts of the stream stays.
    pub route_retain: Duration,
    /// Consumer groups that trimming does not wait for.
    pub trim_ignores: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventsConfig {
    /// Whether an event is refused if anything in it is new to this Herald.
    pub strict: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseConfig {
    pub ttl: Duration,
}

/// This worker among those that share the partitions of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// None: host and process.
    pub id: Option<String>,
    pub weight: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardConfig {
    pub allow_http: bool,
    pub allow_networks: Vec<IpNet>,
    pub allow_metadata: bool,
    pub deny_networks: Vec<IpNet>,
    pub allow_ports: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptConfig {
    /// The time for the whole attempt.
    pub timeout: Duration,
    pub connect_timeout: Duration,
    /// No connection is used for longer than this.
    pub max_connection_age: Duration,
    /// PEM file of further authorities.
    pub ca_file: Option<PathBuf>,
    /// Through which every attempt goes.
    pub egress_proxy: Option<ProxyUrl>,
    /// Whether it is told receivers' names instead of their addresses.
    pub egress_proxy_names: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    pub filter: LogFilter,
    pub format: LogFormat,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownConfig {
    /// How long after SIGTERM attempts in flight may take.
    pub grace: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryConfig {
    /// None: nothing is kept beyond what Redis has.
    pub url: Option<HistoryUrl>,
    pub keep: Duration,
    /// For how long the events themselves are kept; zero is not at all.
    pub bodies: Duration,
    /// How much of Redis the log of attempts may take while the history has not read it, and as much the stream.
    pub log_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntentsConfig {
    /// None: this process does not serve payment intents.
    pub listen: Option<SocketAddr>,
    /// Where a process that has nothing else shows its health and metrics; None is nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Where callers reach it, for links; None is where it listens.
    pub public_url: Option<Url>,
    /// For how long an intent that nothing happens to any more is kept; zero is for ever.
    pub retain: Duration,
    /// Where a day begins and ends.
    pub zone: TimeZone,
    /// Whether there is a customer, an issuer and a clock to play with.
    pub sandbox: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LimitsConfig {
    /// Bodies in memory, bytes.
    pub body_bytes: u64,
    /// Attempts at a time to receivers that take long, or have not shown that they answer.
    pub in_flight: u64,
    pub attempt_log_entries: u64,
    /// How much the quarantine may hold in Redis, bytes.
    pub quarantine_bytes: u64,
    /// None: an endpoint is never disabled for failing.
    pub disable_after: Option<Duration>,
    pub dead_letters: DeadLetterLimits,
    pub audit: AuditLimits,
    pub breaker: BreakerLimits,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterLimits {
    pub max_count: u64,
    pub max_age: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditLimits {
    /// Of entries: an act has two.
    pub max_count: u64,
    pub max_age: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct BreakerLimits {
    /// The share of failing attempts that opens it although some succeed.
    pub failure_share: f64,
    /// How long nothing, or too little, must succeed before it opens; also its first pause.
    pub cooldown: Duration,
    pub max_cooldown: Duration,
}

/// Takes values out of the layers and notes what is wrong with them.
pub(super) struct Reader(pub Layers);

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn socket_or_none(text: &str) -> Result<Option<SocketAddr>, String> {
    let wrong = |_| "must be an IP address and a port, for example 127.0.0.1:8090, or empty".to_owned();
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(wrong) }
}

impl Reader {
    pub fn api(&mut self) -> Option<ApiConfig> {
        /// Each caller is looked for in all of them.
        const MAX_NETWORKS: usize = 64;
        let identity = self.identity("api.certificate_file", "api.key_file");
        let trusted_proxies = self.many("api.trusted_proxies", MAX_NETWORKS, values::proxies);
        Some(ApiConfig { identity: identity?, trusted_proxies: trusted_proxies? })
    }

    pub fn redis(&mut self) -> Option<RedisConfig> {
        let url = self.one("redis.url", RedisUrl::from_str);
        let ca_file = self.one("redis.ca_file", values::path);
        let identity = self.identity("redis.certificate_file", "redis.key_file");
        let wait = self.one("redis.wait", |text| match text {
            "auto" => Ok(None),
            text => number_in(0..=16)(text).map(|count| u8::try_from(count).ok()),
        });
        let wait_timeout = self.one("redis.wait_timeout", duration_in(Duration::from_millis(1)..=secs(4)));
        let (url, ca_file, identity, wait, wait_timeout) = (url?, ca_file?, identity?, wait?, wait_timeout?);
        // Whoever names them believes that the connection is encrypted.
        let named = [("redis.ca_file", ca_file.is_some()), ("redis.certificate_file", identity.is_some())];
        match named.into_iter().find(|(_, is_named)| *is_named && !url.is_encrypted()) {
            Some((key, _)) => self.refuse(key, "is for TLS alone: write rediss://HOST:PORT in redis.url".to_owned()),
            None => Some(RedisConfig { url, ca_file, identity, wait, wait_timeout }),
        }
    }

    /// A certificate and its key: both or neither.
    fn identity(&mut self, certificate: &'static str, key: &'static str) -> Option<Option<IdentityFiles>> {
        let (certificate_file, key_file) = (self.one(certificate, values::path)?, self.one(key, values::path)?);
        let file = |setting, path| NamedFile { setting, path };
        match (certificate_file, key_file) {
            (None, None) => Some(None),
            (Some(of_certificate), Some(of_key)) => {
                Some(Some(IdentityFiles { certificate: file(certificate, of_certificate), key: file(key, of_key) }))
            }
            (Some(_), None) => self.refuse(certificate, format!("needs its key: name the file in {key}")),
            (None, Some(_)) => self.refuse(key, format!("needs its certificate: name the file in {certificate}")),
        }
    }

    pub fn threads(&mut self) -> Option<Option<u16>> {
        self.one("threads", |text| match text {
            "auto" => Ok(None),
            number => Ok(Some(number_in(1..=256)(number)? as u16)),
        })
    }

    pub fn stream(&mut self) -> Option<StreamConfig> {
        /// A stream with more readers than this has other problems.
        const MAX_GROUPS: usize = 64;
        let name = self.one("stream.name", values::stream_name);
        let stream = name.clone();
        let partitions = self.one("stream.partitions", |text| {
            let parts = number_in(1..=u64::from(MAX_PARTS))(text)? as u32;
            let levels: Vec<u32> = (parts > 1).then_some(parts).into_iter().collect();
            Split::new(stream.as_deref().unwrap_or_default(), &levels).map_err(|error| error.to_string())?;
            Ok(parts)
        });
        let route_retain = self.one("stream.route_retain", duration_in(Duration::ZERO..=365 * DAY));
        let start = self.one("stream.start", Start::from_str);
        let retain = self.one("stream.retain", duration_in(Duration::ZERO..=365 * DAY));
        let trim_ignores = self.many("stream.trim_ignores", MAX_GROUPS, |text| match text.is_empty() {
            true => Err("is empty; name a consumer group".to_owned()),
            false => Ok(text.to_owned()),
        });
        Some(StreamConfig {
            name: name?,
            partitions: partitions?,
            start: start?,
            retain: retain?,
            route_retain: route_retain?,
            trim_ignores: trim_ignores?,
        })
    }

    pub fn events(&mut self) -> Option<EventsConfig> {
        Some(EventsConfig { strict: self.one("events.strict", values::truth)? })
    }

    pub fn lease(&mut self) -> Option<LeaseConfig> {
        Some(LeaseConfig { ttl: self.one("lease.ttl", duration_in(secs(1)..=secs(60)))? })
    }

    pub fn worker(&mut self) -> Option<WorkerConfig> {
        let id = self.one("worker.id", values::worker_id);
        let weight = self.one("worker.weight", number_in(0..=1_000));
        Some(WorkerConfig { id: id?, weight: weight? as u32 })
    }

    pub fn listen(&mut self) -> Option<SocketAddr> {
        self.one("listen", |text| {
            text.parse().map_err(|_| "must be an IP address and a port, for example 127.0.0.1:8080".to_owned())
        })
    }

    pub fn metrics_listen(&mut self) -> Option<Option<SocketAddr>> {
        self.one("metrics_listen", socket_or_none)
    }

    pub fn history(&mut self) -> Option<HistoryConfig> {
        let url = self.one("history.url", |text| match text {
            "" => Ok(None),
            text => HistoryUrl::from_str(text).map(Some),
        });
        // A day's records are a table of their own: many more than this would make each look slow.
        let keep = self.one("history.keep", duration_in(DAY..=400 * DAY));
        let bodies = self.one("history.bodies", duration_in(Duration::ZERO..=400 * DAY));
        let log_bytes = self.one("history.log_bytes", number_in(0..=64 << 30));
        Some(HistoryConfig { url: url?, keep: keep?, bodies: bodies?, log_bytes: log_bytes? })
    }

    pub fn intents(&mut self) -> Option<IntentsConfig> {
        let listen = self.one("intents.listen", socket_or_none);
        let metrics_listen = self.one("intents.metrics_listen", socket_or_none);
        let public_url = self.one("intents.public_url", |text| match text {
            "" => Ok(None),
            text => match Url::parse(text) {
                Ok(url) if matches!(url.scheme(), "http" | "https") && url.query().is_none() => Ok(Some(url)),
                _ => {
                    Err("must be an http or https URL without a query, for example https://pay.example.com".to_owned())
                }
            },
        });
        let retain = self.one("intents.retain", duration_in(Duration::ZERO..=3_650 * DAY));
        let zone = self.one("intents.zone", values::zone);
        let sandbox = self.one("intents.sandbox", values::truth);
        Some(IntentsConfig {
            listen: listen?,
            metrics_listen: metrics_listen?,
            public_url: public_url?,
            retain: retain?,
            zone: zone?,
            sandbox: sandbox?,
        })
    }

    pub fn admin_token(&mut self) -> Option<Option<AdminToken>> {
        self.one("admin_token", values::admin_token)
    }

    pub fn session_key(&mut self) -> Option<Option<AdminToken>> {
        self.one("console.session_key", values::admin_token)
    }

    pub fn seal(&mut self) -> Option<SealConfig> {
        let (master_key_file, seal_only) =
            (self.one("master_key_file", values::path), self.one("seal_only", values::truth));
        Some(SealConfig { master_key_file: master_key_file?, only: seal_only? })
    }

    pub fn guard(&mut self) -> Option<GuardConfig> {
        /// Each resolved address of each attempt is checked against all of them.
        const MAX_NETWORKS: usize = 64;
        let allow_http = self.one("guard.allow_http", values::truth);
        let allow_networks = self.many("guard.allow_networks", MAX_NETWORKS, values::network);
        let allow_metadata = self.one("guard.allow_metadata", values::truth);
        let deny_networks = self.many("guard.deny_networks", MAX_NETWORKS, values::network);
        let allow_ports = self.many("guard.allow_ports", MAX_NETWORKS, |text| {
            number_in(1..=u64::from(u16::MAX))(text).map(|port| port as u16)
        });
        Some(GuardConfig {
            allow_http: allow_http?,
            allow_networks: allow_networks?,
            allow_metadata: allow_metadata?,
            deny_networks: deny_networks?,
            allow_ports: allow_ports?,
        })
    }

    pub fn attempt(&mut self) -> Option<AttemptConfig> {
        let timeout = self.one("attempt.timeout", duration_in(ms(100)..=secs(120)));
        let connect_timeout = self.one("attempt.connect_timeout", duration_in(ms(50)..=secs(120)));
        let max_connection_age = self.one("attempt.max_connection_age", duration_in(secs(1)..=DAY));
        let ca_file = self.one("attempt.ca_file", values::path);
        let egress_proxy = self.one("attempt.egress_proxy", |text| match text {
            "" => Ok(None),
            text => ProxyUrl::from_str(text).map(Some),
        });
        let egress_proxy_names = self.one("attempt.egress_proxy_names", values::truth);
        Some(AttemptConfig {
            timeout: timeout?,
            connect_timeout: connect_timeout?,
            max_connection_age: max_connection_age?,
            ca_file: ca_file?,
            egress_proxy: egress_proxy?,
            egress_proxy_names: egress_proxy_names?,
        })
    }

    /// Only the policy knows its bounds. Each value is first tried alone, with the others out of its way, so that one
    /// wrong value does not hide another; then all of them together.
    pub fn retry(&mut self) -> Option<RetrySettings> {
        let defaults = RetrySettings::default();
        let alone =
            |settings: RetrySettings| RetryPolicy::try_new(settings).map(|_| ()).map_err(|error| error.to_string());
        let initial = self.one("retry.initial", |text| {
            let initial = duration(text)?;
            alone(RetrySettings { initial, max_interval: defaults.max_interval.max(initial), ..defaults })?;
            Ok(initial)
        });
        let multiplier = self.one("retry.multiplier", |text| {
            let multiplier = decimal(text)?;
            alone(RetrySettings { multiplier, ..defaults })?;
            Ok(multiplier)
        });
        let max_interval = self.one("retry.max_interval", |text| {
            let max_interval = duration(text)?;
            alone(RetrySettings { max_interval, initial: defaults.initial.min(max_interval).max(ms(1)), ..defaults })?;
            Ok(max_interval)
        });
        let jitter = self.one("retry.jitter", |text| {
            let jitter = decimal(text)?;
            alone(RetrySettings { jitter, ..defaults })?;
            Ok(jitter)
        });
        let max_attempts = self.one("retry.max_attempts", |text| {
            let max_attempts = number_in(1..=u64::from(u32::MAX))(text)? as u32;
            alone(RetrySettings { max_attempts, ..defaults })?;
            Ok(max_attempts)
        });
        let max_age = self.one("retry.max_age", |text| {
            let max_age = duration(text)?;
            alone(RetrySettings { max_age, ..defaults })?;
            Ok(max_age)
        });
        let settings = RetrySettings {
            initial: initial?,
            multiplier: multiplier?,
            max_interval: max_interval?,
            jitter: jitter?,
            max_attempts: max_attempts?,
            max_age: max_age?,
        };
        // Only initial and max_interval depend on each other.
        match RetryPolicy::try_new(settings) {
            Ok(_) => Some(settings),
            Err(error) => {
                self.refuse("retry.max_interval", format!("{error} (retry.initial is {})", compact(settings.initial)))
            }
        }
    }

    pub fn log(&mut self) -> Option<LogConfig> {
        let filter = self.one("log.filter", LogFilter::from_str);
        let format = self.one("log.format", LogFormat::from_str);
        Some(LogConfig { filter: filter?, format: format? })
    }

    pub fn shutdown(&mut self) -> Option<ShutdownConfig> {
        Some(ShutdownConfig { grace: self.one("shutdown.grace", duration_in(secs(1)..=secs(600)))? })
    }

    pub fn limits(&mut self) -> Option<LimitsConfig> {
        // One read takes up to 1 MiB: with room for fewer than four, reading would stop and go.
        let body_bytes = self.one("limits.body_bytes", number_in(4 << 20..=64 << 30));
        // Of the fewest an endpoint still has eight: an eighth of all.
        let in_flight = self.one("limits.in_flight", number_in(64..=65_536));
        let attempt_log_entries = self.one("limits.attempt_log_entries", number_in(1_000..=10_000_000));
        // The largest entry takes 64 KiB.
        let quarantine_bytes = self.one("limits.quarantine_bytes", number_in(1 << 20..=64 << 30));
        let disable_after = self.one("limits.disable_after", duration_in(Duration::ZERO..=365 * DAY));
        let (dead_letters, audit, breaker) = (self.dead_letters(), self.audit(), self.breaker());
        Some(LimitsConfig {
            body_bytes: body_bytes?,
            in_flight: in_flight?,
            attempt_log_entries: attempt_log_entries?,
            quarantine_bytes: quarantine_bytes?,
            disable_after: disable_after.map(|after| Some(after).filter(|after| !after.is_zero()))?,
            dead_letters: dead_letters?,
            audit: audit?,
            breaker: breaker?,
        })
    }

    pub fn quotas(&mut self) -> Option<quota::Settings> {
        let endpoint = self.one("quota.endpoint_bytes", quota::Setting::from_str);
        let account = self.one("quota.account_bytes", quota::Setting::from_str);
        Some(quota::Settings { endpoint: endpoint?, account: account? })
    }

    fn dead_letters(&mut self) -> Option<DeadLetterLimits> {
        let max_count = self.one("limits.dead_letters.max_count", number_in(1..=10_000_000));
        let max_age = self.one("limits.dead_letters.max_age", duration_in(secs(1)..=3650 * DAY));
        Some(DeadLetterLimits { max_count: max_count?, max_age: max_age? })
    }

    fn audit(&mut self) -> Option<AuditLimits> {
        // With fewer, one job of many verbs would push out what came before it.
        let max_count = self.one("limits.audit.max_count", number_in(1_000..=10_000_000));
        let max_age = self.one("limits.audit.max_age", duration_in(DAY..=3650 * DAY));
        Some(AuditLimits { max_count: max_count?, max_age: max_age? })
    }

    fn breaker(&mut self) -> Option<BreakerLimits> {
        let failure_share = self.one("limits.breaker.failure_share", |text| {
            // Half of a receiver's answers are too many to give up.
            let share = decimal(text)?;
            (0.5..=1.0).contains(&share).then_some(share).ok_or_else(|| "must be between 0.5 and 1".to_owned())
        });
        let cooldown = self.one("limits.breaker.cooldown", duration_in(ms(100)..=secs(3600)));
        let max_cooldown = self.one("limits.breaker.max_cooldown", duration_in(ms(100)..=DAY));
        let limits = BreakerLimits { failure_share: failure_share?, cooldown: cooldown?, max_cooldown: max_cooldown? };
        match limits.max_cooldown >= limits.cooldown {
            true => Some(limits),
            false => self.refuse(
                "limits.breaker.max_cooldown",
                format!("must not be shorter than limits.breaker.cooldown ({})", compact(limits.cooldown)),
            ),
        }
    }

    /// A single value.
    fn one<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let parsed = match &self.given(key).written {
            Written::One(text) => parse(text),
            Written::Many(_) => Err("takes one value, not a list".to_owned()),
            Written::Other(kind) => Err(format!("takes text, a number or true and false, not a value of type {kind}")),
        };
        parsed.map_or_else(|problem| self.refuse(key, problem), Some)
    }

    /// A list: a TOML array, or one text with commas and any blanks around them. Every wrong item is named.
    fn many<T>(&mut self, key: &'static str, max: usize, parse: fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        let items: Vec<String> = match &self.given(key).written {
            Written::Many(items) => items.clone(),
            Written::One(text) if text.trim().is_empty() => Vec::new(),
            Written::One(text) => text.split(',').map(|item| item.trim().to_owned()).collect(),
            Written::Other(kind) => return self.refuse(key, format!("takes a list, not a value of type {kind}")),
        };
        if items.len() > max {
            return self.refuse(key, format!("takes at most {max} items, not {}", items.len()));
        }
        let mut problems = Vec::new();
        let parsed = items
            .iter()
            .filter_map(|item| {
                parse(item).map_err(|problem| problems.push(format!("{:?} {problem}", shorten(item.trim())))).ok()
            })
            .collect();
        match problems.is_empty() {
            true => Some(parsed),
            false => self.refuse(key, problems.join("; ")),
        }
    }

    fn given(&self, key: &'static str) -> &Given {
        self.0.values.get(key).expect("the built-in default has every key: a test checks that")
    }

    fn refuse<T>(&mut self, key: &'static str, problem: String) -> Option<T> {
        let given = self.given(key);
        let is_plain = KEYS.iter().any(|known| known.name == key && known.showing == Showing::Plain);
        let shown = match &given.written {
            Written::One(text) if is_plain => format!(" = {:?}", shorten(text)),
            _ => String::new(),
        };
        let error = ConfigError::Bad { key, origin: given.origin.clone(), shown, problem };
        self.0.errors.push(error);
        None
    }
}

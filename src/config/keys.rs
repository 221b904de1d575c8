//! Owns the names of all settings, in the file and in the environment, and knows what each environment variable is for.

/// How a value may be shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Showing {
    Plain,
    /// Never, only whether it is set.
    Hidden,
    /// Without the password in it.
    RedisUrl,
    /// The same.
    HistoryUrl,
    /// The same.
    ProxyUrl,
}

/// One setting.
pub(super) struct Key {
    pub name: &'static str,
    pub showing: Showing,
    /// The name of its variable if that is older than the rule.
    older: Option<&'static str>,
}

const fn key(name: &'static str) -> Key {
    Key { name, showing: Showing::Plain, older: None }
}

const fn named(name: &'static str, variable: &'static str) -> Key {
    Key { name, showing: Showing::Plain, older: Some(variable) }
}

const fn secret(name: &'static str, showing: Showing) -> Key {
    Key { name, showing, older: None }
}

/// In the order in which `herald config show` prints them.
pub(super) const KEYS: [Key; 70] = [
    key("listen"),
    key("metrics_listen"),
    key("threads"),
    secret("admin_token", Showing::Hidden),
    key("master_key_file"),
    key("seal_only"),
    key("api.certificate_file"),
    key("api.key_file"),
    key("api.trusted_proxies"),
    secret("console.session_key", Showing::Hidden),
    secret("redis.url", Showing::RedisUrl),
    key("redis.ca_file"),
    key("redis.certificate_file"),
    key("redis.key_file"),
    key("redis.wait"),
    key("redis.wait_timeout"),
    named("stream.name", "HERALD_STREAM"),
    named("stream.partitions", "HERALD_PARTITIONS"),
    named("stream.start", "HERALD_START"),
    named("stream.retain", "HERALD_RETAIN"),
    named("stream.route_retain", "HERALD_ROUTE_RETAIN"),
    key("stream.trim_ignores"),
    key("events.strict"),
    named("lease.ttl", "HERALD_LEASE"),
    named("worker.id", "HERALD_WORKER"),
    named("worker.weight", "HERALD_WEIGHT"),
    named("guard.allow_http", "HERALD_ALLOW_HTTP"),
    named("guard.allow_networks", "HERALD_ALLOW_NETWORKS"),
    key("guard.allow_metadata"),
    key("guard.deny_networks"),
    key("guard.allow_ports"),
    key("attempt.timeout"),
    key("attempt.connect_timeout"),
    key("attempt.max_connection_age"),
    key("attempt.ca_file"),
    Key { name: "attempt.egress_proxy", showing: Showing::ProxyUrl, older: Some("HERALD_EGRESS_PROXY") },
    named("attempt.egress_proxy_names", "HERALD_EGRESS_PROXY_NAMES"),
    key("retry.initial"),
    key("retry.multiplier"),
    key("retry.max_interval"),
    key("retry.jitter"),
    key("retry.max_attempts"),
    key("retry.max_age"),
    named("log.filter", "HERALD_LOG"),
    key("log.format"),
    key("shutdown.grace"),
    key("limits.body_bytes"),
    named("limits.in_flight", "HERALD_IN_FLIGHT"),
    key("limits.attempt_log_entries"),
    key("limits.quarantine_bytes"),
    key("limits.disable_after"),
    key("quota.endpoint_bytes"),
    key("quota.account_bytes"),
    key("limits.dead_letters.max_count"),
    key("limits.dead_letters.max_age"),
    key("limits.audit.max_count"),
    key("limits.audit.max_age"),
    key("limits.breaker.failure_share"),
    key("limits.breaker.cooldown"),
    key("limits.breaker.max_cooldown"),
    secret("history.url", Showing::HistoryUrl),
    key("history.keep"),
    key("history.bodies"),
    key("history.log_bytes"),
    key("intents.listen"),
    key("intents.metrics_listen"),
    key("intents.public_url"),
    key("intents.retain"),
    key("intents.zone"),
    named("intents.sandbox", "HERALD_SANDBOX"),
];

/// Only variables with this prefix are Herald's.
const PREFIX: &str = "HERALD_";

/// The suffix of a variable that names a file instead: the file of this name holds the value, as mounted secrets and settings do.
const FILE_SUFFIX: &str = "_FILE";

/// Names the configuration file.
const CONFIG_FILE: &str = "HERALD_CONFIG";

/// Of verbs alone, `listen`, `verify` and `sandbox run`: they are no settings.
const OF_A_VERB: [&str; 2] = ["HERALD_API_KEY", "HERALD_LISTEN_SECRET"];

impl Key {
    pub fn variable(&self) -> String {
        self.older.map_or_else(|| self.variable_by_rule(), str::to_owned)
    }

    /// `HERALD_MASTER_KEY_FILE` is not one, but the variable of a setting that is a path by itself.
    pub fn file_variable(&self) -> String {
        self.variable() + FILE_SUFFIX
    }

    /// All variables that set it.
    pub fn variables(&self) -> impl Iterator<Item = String> {
        [self.variable(), self.file_variable()].into_iter()
    }

    fn variable_by_rule(&self) -> String {
        format!("{PREFIX}{}", self.name.replace('.', "_").to_ascii_uppercase())
    }
}

/// What an environment variable is for.
pub(super) enum Variable {
    Value(&'static Key),
    /// Names a file that holds nothing but the value.
    FileOfValue(&'static Key),
    ConfigFile,
    /// Not Herald's, whatever its name is.
    Foreign,
    /// It looks meant for Herald, but there is no such setting.
    Unknown,
}

impl Variable {
    pub fn of(name: &str) -> Self {
        let value = || KEYS.iter().find(|key| key.variable() == name).map(Self::Value);
        let file = || KEYS.iter().find(|key| key.file_variable() == name).map(Self::FileOfValue);
        match name {
            CONFIG_FILE => Self::ConfigFile,
            name if OF_A_VERB.contains(&name) => Self::Foreign,
            name if !name.starts_with(PREFIX) || is_of_kubernetes(name) => Self::Foreign,
            _ => value().or_else(file).unwrap_or(Self::Unknown),
        }
    }
}

/// Kubernetes sets these in each container of a namespace that has a Service named herald: nobody meant anything by
/// them.
fn is_of_kubernetes(name: &str) -> bool {
    name == "HERALD_PORT" || ["HERALD_PORT_", "HERALD_SERVICE_"].iter().any(|start| name.starts_with(start))
}

pub(super) fn nearest_key(name: &str) -> &'static str {
    nearest(name, KEYS.iter().map(|key| (key.name, key.name)))
}

/// Someone who follows the rule where an older name is used is told the older one: by its letters alone
/// `HERALD_LOG_FILTER` would be nearer to `HERALD_LOG_FORMAT`.
pub(super) fn nearest_variable(name: &str) -> String {
    let by_rule = KEYS.iter().map(|key| (key.variable_by_rule(), key.variable()));
    let all = KEYS.iter().flat_map(Key::variables).chain([CONFIG_FILE.to_owned()]);
    nearest(name, by_rule.chain(all.map(|variable| (variable.clone(), variable))))
}

/// The name with the nearest spelling.
fn nearest<S: AsRef<str>, T: Default>(name: &str, known: impl Iterator<Item = (S, T)>) -> T {
    let distance = |(spelling, _): &(S, T)| strsim::damerau_levenshtein(name, spelling.as_ref());
    known.min_by_key(distance).map(|(_, meant)| meant).unwrap_or_default()
}

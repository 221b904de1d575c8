use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{keys::Variable, values::compact, *};
use crate::{facts::retry::RetryPolicy, telemetry::logging::LogFormat};

fn pairs(given: &[(&str, &str)]) -> Vec<(String, String)> {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let file = (!file.is_empty()).then(|| ConfigFile { path: "herald.toml".to_owned(), text: file.to_owned() });
    Config::load(Sources { file, env: pairs(env), flags: pairs(flags), ..Sources::default() })
}

fn refused(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> String {
    load(file, env, flags).expect_err("it was taken").to_string()
}

/// As from a process with these variables. The other sources are those that the variables name.
fn gathered(env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let env = env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Config::load(Sources::of(env, None, Vec::new())?)
}

fn warnings(config: &Config) -> Vec<String> {
    config.unknown_variables().iter().map(ToString::to_string).collect()
}

fn row(config: &Config, key: &str) -> (String, String) {
    let row = config.show().iter().find(|row| row.key == key).unwrap();
    (row.value.clone(), row.origin.to_string())
}

/// Section 7 of `docs/design.md`: the variables and their defaults are an interface, so they are written down twice.
#[test]
fn the_variables_and_their_defaults_are_those_of_the_interface() {
    let config = load("", &[], &[]).unwrap();
    let interface = [
        ("HERALD_LISTEN", "127.0.0.1:8080"),
        ("HERALD_METRICS_LISTEN", ""),
        ("HERALD_THREADS", "auto"),
        ("HERALD_ADMIN_TOKEN", ""),
        ("HERALD_MASTER_KEY_FILE", ""),
        ("HERALD_SEAL_ONLY", "false"),
        ("HERALD_API_CERTIFICATE_FILE", ""),
        ("HERALD_API_KEY_FILE", ""),
        ("HERALD_API_TRUSTED_PROXIES", ""),
        ("HERALD_CONSOLE_SESSION_KEY", ""),
        ("HERALD_REDIS_URL", "redis://127.0.0.1:6379"),
        ("HERALD_REDIS_CA_FILE", ""),
        ("HERALD_REDIS_CERTIFICATE_FILE", ""),
        ("HERALD_REDIS_KEY_FILE", ""),
        ("HERALD_REDIS_WAIT", "auto"),
        ("HERALD_REDIS_WAIT_TIMEOUT", "1s"),
        ("HERALD_STREAM", "payment-intents"),
        ("HERALD_PARTITIONS", "1"),
        ("HERALD_START", "0"),
        ("HERALD_RETAIN", "0s"),
        ("HERALD_ROUTE_RETAIN", "10s"),
        ("HERALD_STREAM_TRIM_IGNORES", ""),
        ("HERALD_EVENTS_STRICT", "false"),
        ("HERALD_LEASE", "5s"),
        ("HERALD_WORKER", ""),
        ("HERALD_WEIGHT", "1"),
        ("HERALD_ALLOW_HTTP", "false"),
        ("HERALD_ALLOW_NETWORKS", ""),
        ("HERALD_GUARD_ALLOW_METADATA", "false"),
        ("HERALD_GUARD_DENY_NETWORKS", ""),
        ("HERALD_GUARD_ALLOW_PORTS", ""),
        ("HERALD_ATTEMPT_TIMEOUT", "15s"),
        ("HERALD_ATTEMPT_CONNECT_TIMEOUT", "5s"),
        ("HERALD_ATTEMPT_MAX_CONNECTION_AGE", "5m"),
        ("HERALD_ATTEMPT_CA_FILE", ""),
        ("HERALD_EGRESS_PROXY", ""),
        ("HERALD_EGRESS_PROXY_NAMES", "false"),
        ("HERALD_RETRY_INITIAL", "5s"),
        ("HERALD_RETRY_MULTIPLIER", "4"),
        ("HERALD_RETRY_MAX_INTERVAL", "12h"),
        ("HERALD_RETRY_JITTER", "0.2"),
        ("HERALD_RETRY_MAX_ATTEMPTS", "12"),
        ("HERALD_RETRY_MAX_AGE", "72h"),
        ("HERALD_LOG", "info"),
        ("HERALD_LOG_FORMAT", "auto"),
        ("HERALD_SHUTDOWN_GRACE", "20s"),
        ("HERALD_LIMITS_BODY_BYTES", "67108864"),
        ("HERALD_IN_FLIGHT", "2048"),
        ("HERALD_LIMITS_ATTEMPT_LOG_ENTRIES", "100000"),
        ("HERALD_LIMITS_QUARANTINE_BYTES", "16777216"),
        ("HERALD_LIMITS_DISABLE_AFTER", "5d"),
        ("HERALD_QUOTA_ENDPOINT_BYTES", "auto"),
        ("HERALD_QUOTA_ACCOUNT_BYTES", "auto"),
        ("HERALD_LIMITS_DEAD_LETTERS_MAX_COUNT", "1000000"),
        ("HERALD_LIMITS_DEAD_LETTERS_MAX_AGE", "30d"),
        ("HERALD_LIMITS_AUDIT_MAX_COUNT", "100000"),
        ("HERALD_LIMITS_AUDIT_MAX_AGE", "400d"),
        ("HERALD_LIMITS_BREAKER_FAILURE_SHARE", "0.9"),
        ("HERALD_LIMITS_BREAKER_COOLDOWN", "5s"),
        ("HERALD_LIMITS_BREAKER_MAX_COOLDOWN", "5m"),
        ("HERALD_HISTORY_URL", "sqlite:herald-history.db"),
        ("HERALD_HISTORY_KEEP", "30d"),
        ("HERALD_HISTORY_BODIES", "7d"),
        ("HERALD_HISTORY_LOG_BYTES", "268435456"),
        ("HERALD_INTENTS_LISTEN", ""),
        ("HERALD_INTENTS_METRICS_LISTEN", ""),
        ("HERALD_INTENTS_PUBLIC_URL", ""),
        ("HERALD_INTENTS_RETAIN", "400d"),
        ("HERALD_INTENTS_ZONE", "UTC"),
        ("HERALD_SANDBOX", "false"),
    ];
    let built: Vec<_> = KEYS.iter().map(|key| (key.variable(), row(&config, key.name))).collect();
    let written = interface.map(|(env, value)| (env.to_owned(), (value.to_owned(), "built-in default".to_owned())));
    assert_eq!(built, written);
}

/// `HERALD_MASTER_KEY_FILE` is the path of a key: if the key were a setting as well, the name would mean two things.
#[test]
fn no_variable_stands_for_two_things() {
    let all: Vec<String> = KEYS.iter().flat_map(Key::variables).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    for name in all {
        assert!(matches!(Variable::of(&name), Variable::Value(_) | Variable::FileOfValue(_)), "{name}");
    }
}

#[test]
fn the_built_in_default_has_every_key_with_its_variable_named_beside_it() {
    let config = load("", &[], &[]).unwrap();
    let shown: Vec<_> = config.show().iter().map(|row| row.key).collect();
    assert_eq!(shown, KEYS.map(|key| key.name));
    for env in KEYS.iter().map(Key::variable) {
        let named = DEFAULT_TOML.split(|c: char| !(c.is_ascii_uppercase() || c == '_')).any(|word| word == env);
        assert!(named, "{env} is not in deploy/herald.toml");
    }
}

#[test]
fn the_built_in_default_means_what_it_says() {
    let config = load("", &[], &[]).unwrap();
    assert_eq!(config.retry, RetrySettings::default());
    assert_eq!(config.stream.start, Start::Oldest);
    assert_eq!((config.stream.partitions, config.stream.retain), (1, Duration::ZERO));
    assert_eq!((config.lease.ttl, config.attempt.timeout), (Duration::from_secs(5), Duration::from_secs(15)));
    assert_eq!((config.attempt.connect_timeout, &config.attempt.ca_file), (Duration::from_secs(5), &None));
    assert_eq!((config.guard.allow_http, config.guard.allow_networks.len()), (false, 0));
    assert_eq!((config.admin_token, config.log.format, config.threads), (None, LogFormat::Auto, None));
    assert_eq!(config.shutdown.grace, Duration::from_secs(20));
    let limits = config.limits;
    assert_eq!((limits.body_bytes, limits.in_flight, limits.attempt_log_entries), (64 << 20, 2_048, 100_000));
    assert_eq!((limits.quarantine_bytes, config.events.strict), (16 << 20, false));
    assert_eq!(config.quotas, quota::Settings::default());
    let history = config.history;
    assert_eq!(history.url.unwrap().to_string(), "sqlite:herald-history.db");
    assert_eq!((history.keep, history.log_bytes), (Duration::from_secs(30 * 86_400), 256 << 20));
    assert_eq!(history.bodies, Duration::from_secs(7 * 86_400));
    assert_eq!(
        (limits.dead_letters.max_count, limits.dead_letters.max_age),
        (1_000_000, Duration::from_secs(2_592_000))
    );
    let breaker = limits.breaker;
    assert_eq!(breaker.failure_share, 0.9);
    assert_eq!((breaker.cooldown, breaker.max_cooldown), (Duration::from_secs(5), Duration::from_secs(300)));
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let file = "[lease]\nttl = \"2s\"\n\n[stream]\nname = \"f\"\nretain = \"1h\"";
    let env = [("HERALD_LEASE", "3s"), ("HERALD_STREAM", "e"), ("HOME", "/root"), ("HERALD_CONFIG", "/etc/herald")];
    let config = load(file, &env, &[("lease.ttl", "4s"), ("lease.ttl", "6s")]).unwrap();
    assert_eq!(row(&config, "lease.ttl"), ("6s".into(), "flag".into()));
    assert_eq!(row(&config, "stream.name"), ("e".into(), "HERALD_STREAM".into()));
    assert_eq!(row(&config, "stream.retain"), ("1h".into(), "herald.toml:6".into()));
    assert_eq!(row(&config, "stream.start"), ("0".into(), "built-in default".into()));
    assert_eq!((config.lease.ttl, config.stream.name.as_str()), (Duration::from_secs(6), "e"));
}

#[test]
fn every_error_is_in_one_message_with_its_origin() {
    let file = "colour = 1\n[lease]\nttl = 5\ntll = \"5s\"\n[stream]\npartitions = 4000\nstart = 2022-02-01\n[typo]\n";
    let env =
        [("HERALD_LEASSE", "geheim"), ("HERALD_ALLOW_NETWORKS", "10.0.0.0/8, here,0.0.0.0/0"), ("HERALD_LOG", "inof")];
    let flags = [("retry.jiter", "1"), ("retry.jitter", "7"), ("retry.max_age", "0s"), ("listen", "localhost:80")];
    let message = refused(file, &env, &flags);
    for part in [
        "the configuration is wrong in 12 places:",
        "herald.toml:1: there is no setting colour; the nearest is ",
        "herald.toml:3: lease.ttl = \"5\": is not a duration; write it with units",
        "herald.toml:4: there is no setting lease.tll; the nearest is lease.ttl",
        "herald.toml:6: stream.partitions = \"4000\": must be a whole number between 1 and 1024",
        "herald.toml:7: stream.start: takes text, a number or true and false, not a value of type datetime",
        "herald.toml:8: there is no setting typo; the nearest is ",
        "\nwarning: HERALD_LEASSE in the environment is not a setting and has no effect; the nearest is HERALD_LEASE",
        "HERALD_ALLOW_NETWORKS: guard.allow_networks = ",
        "\"here\" is not a network; write it as CIDR, for example 10.1.0.0/16; \"0.0.0.0/0\" would switch the whole",
        "HERALD_LOG: log.filter = \"inof\": \"inof\" is not a level",
        "flag: there is no setting retry.jiter; the nearest is retry.jitter",
        "flag: retry.jitter = \"7\": retry jitter 7 must be between 0 and 1",
        "flag: retry.max_age = \"0s\": retry max age",
        "flag: listen = \"localhost:80\": must be an IP address and a port",
    ] {
        assert!(message.contains(part), "{part:?} is not in\n{message}");
    }
    assert!(!message.contains("geheim"), "{message}");
}

#[test]
fn a_single_error_is_one_line() {
    let message = refused("", &[("HERALD_LEASE", "0.5s")], &[]);
    assert_eq!(message, "the configuration is wrong: HERALD_LEASE: lease.ttl = \"0.5s\": must be between 1s and 1m");
}

/// A key, values that it accepts and values that it does not.
type Bounds = (&'static str, &'static [&'static str], &'static [&'static str]);

const BOUNDS: [Bounds; 70] = [
    ("listen", &["0.0.0.0:1", "[::1]:0"], &["8080", "", "localhost:8080"]),
    ("metrics_listen", &["", "127.0.0.1:9464"], &["9464", "localhost:9464"]),
    ("threads", &["auto", "1", "256"], &["0", "257", "", "all"]),
    ("admin_token", &["", "0123456789abcdef"], &["short", "sixteen chars ok", "0123456789abcdé"]),
    ("api.certificate_file", &[""], &["api.pem"]),
    ("api.key_file", &[""], &["api.key"]),
    (
        "api.trusted_proxies",
        &["", "10.0.0.7", "10.0.0.0/8, fd00::/8, ::1"],
        &["proxy.internal", "0.0.0.0/0", "::/0", "10.0.0.0/33", "10.0.0.7,"],
    ),
    ("console.session_key", &["", "0123456789abcdef"], &["short"]),
    ("master_key_file", &["", "/etc/herald/key"], &[]),
    ("seal_only", &["true", "false"], &["yes", ""]),
    (
        "redis.url",
        &["rediss://u:p@h:1/3", "unix:///run/r.sock", "redis://[::1]", "redis+unix:///r?db=1"],
        &[
            "",
            "rediss://h/#insecure",
            "h:6379",
            "http://h",
            "redis:///1",
            "redis://h/db",
            "unix://",
            "redis-sentinel://h",
            "redis+sentinel://h",
        ],
    ),
    ("redis.ca_file", &[""], &["ca.pem"]),
    ("redis.certificate_file", &[""], &["herald.pem"]),
    ("redis.key_file", &[""], &["herald.key"]),
    ("stream.name", &["s", "{a}:b"], &["", "a b", "a\nb"]),
    ("stream.partitions", &["1", "64", "1024"], &["0", "1025", "-1", "one", "99999999999"]),
    ("stream.start", &["0", "$", "1-0"], &["", "1", "now", "-"]),
    ("redis.wait", &["auto", "0", "16"], &["17", "-1", "one"]),
    ("redis.wait_timeout", &["1ms", "4s"], &["0s", "5s"]),
    ("stream.route_retain", &["0s", "365d"], &["366d", "-1s"]),
    ("stream.retain", &["0s", "365d"], &["366d", "-1s", "1mo", "5", "1y"]),
    ("stream.trim_ignores", &["", "audit, old reader"], &["audit,", ","]),
    ("lease.ttl", &["1s", "60s"], &["999ms", "61s", ""]),
    ("worker.id", &["", "herald-0", "host/17"], &["a b", "\u{fc}", "a\nb"]),
    ("worker.weight", &["0", "1", "1000"], &["-1", "1001", "", "half"]),
    ("quota.endpoint_bytes", &["auto", "0", "1048576"], &["1", "1mb", "", "-1"]),
    ("quota.account_bytes", &["auto", "0", "1099511627776"], &["off", "1099511627777"]),
    ("guard.allow_http", &["true", "false"], &["yes", "1", ""]),
    ("guard.allow_networks", &["", "127.0.0.1/8", "10.0.0.0/8, fd00::/8"], &["127.0.0.1", "::/0", "10.0.0.0/8,"]),
    ("guard.allow_metadata", &["true", "false"], &["yes", ""]),
    ("guard.deny_networks", &["", "8.8.8.0/24, 2600::/96"], &["8.8.8.8", "8.8.8.0/24,"]),
    ("guard.allow_ports", &["", "9200, 22"], &["0", "65536", "http", "22,"]),
    ("attempt.timeout", &["100ms", "2m"], &["99ms", "121s"]),
    ("attempt.connect_timeout", &["50ms", "2m"], &["49ms", "3m"]),
    ("attempt.max_connection_age", &["1s", "24h"], &["999ms", "25h"]),
    ("attempt.ca_file", &["", "ca.pem"], &[]),
    (
        "attempt.egress_proxy",
        &["", "http://proxy:3128", "https://u:p%40@proxy.internal", "http://[::1]:8888/"],
        &[
            "proxy:3128",
            "socks5://proxy",
            "http://proxy/path",
            "http://proxy?x",
            "http://:p@proxy",
            "http://a%3Ab:p@proxy",
        ],
    ),
    ("attempt.egress_proxy_names", &["true", "false"], &["", "yes"]),
    ("retry.initial", &["1ms", "12h"], &["0s", "13h", "31d", "999us"]),
    ("retry.multiplier", &["1", "1.5", "100"], &["0.9", "101", "NaN", "x"]),
    ("retry.max_interval", &["5s", "30d"], &["4s", "31d", "0s"]),
    ("retry.jitter", &["0", "1"], &["-0.1", "1.1", "inf"]),
    ("retry.max_attempts", &["1", "50"], &["0", "51", "1.5"]),
    ("retry.max_age", &["1s", "365d"], &["999ms", "366d"]),
    ("log.filter", &["warn", "info,herald=debug"], &["", "loud"]),
    ("log.format", &["auto", "text", "json"], &["yaml", ""]),
    ("shutdown.grace", &["1s", "10m"], &["0s", "11m"]),
    ("limits.body_bytes", &["4194304", "67_108_864"], &["4194303", "64MiB", "68719476737"]),
    ("limits.in_flight", &["64", "65536"], &["63", "65537", ""]),
    ("limits.attempt_log_entries", &["1000", "10000000"], &["999", "10000001"]),
    ("limits.disable_after", &["0s", "365d"], &["366d", "5"]),
    ("limits.quarantine_bytes", &["1048576", "68719476736"], &["1048575", "16MiB", "68719476737"]),
    ("events.strict", &["true", "false"], &["", "yes", "1"]),
    ("limits.dead_letters.max_count", &["1", "10000000"], &["0", "10000001"]),
    ("limits.dead_letters.max_age", &["1s", "3650d"], &["0s", "3651d"]),
    ("limits.audit.max_count", &["1000", "10000000"], &["999", "10000001", "0"]),
    ("limits.audit.max_age", &["1d", "3650d"], &["23h", "3651d"]),
    ("limits.breaker.failure_share", &["0.5", "1", "0.95"], &["0.49", "1.01", "NaN", "5", ""]),
    ("limits.breaker.cooldown", &["100ms", "5m"], &["99ms", "6m", "2h"]),
    ("limits.breaker.max_cooldown", &["5s", "24h"], &["4s", "25h"]),
    (
        "history.url",
        &["", "sqlite:h.db", "sqlite:///var/lib/herald/h.db", "postgres://u:p@db.example.com/history?sslmode=require"],
        &["h.db", "sqlite:", "sqlite:a?mode=memory", "sqlite::memory:", "mysql://h/d", "postgres:///d"],
    ),
    ("history.keep", &["1d", "400d"], &["23h", "401d"]),
    ("history.bodies", &["0s", "400d"], &["-1s", "401d"]),
    ("history.log_bytes", &["0", "68719476736"], &["-1", "1GiB", "68719476737"]),
    ("intents.listen", &["", "127.0.0.1:8090", "[::1]:0"], &["8090", "localhost:8090"]),
    ("intents.metrics_listen", &["", "127.0.0.1:8091"], &["8091", "localhost:8091"]),
    ("intents.public_url", &["", "https://pay.example.com/x"], &["pay.example.com", "ftp://h", "https://h?x"]),
    ("intents.retain", &["0s", "3650d"], &["3651d", "-1s"]),
    ("intents.zone", &["UTC", "Europe/London", "America/New_York"], &["", "London", "Europe/Atlantis", "+01:00"]),
    ("intents.sandbox", &["true", "false"], &["yes", ""]),
];

#[test]
fn bounds_hold_for_every_key() {
    for (key, good, bad) in BOUNDS {
        for value in good {
            let loaded = load("", &[], &[(key, value)]);
            assert!(loaded.is_ok(), "{key} = {value:?} was refused: {}", loaded.unwrap_err());
        }
        for value in bad {
            let message = refused("", &[], &[(key, value)]);
            assert!(message.contains(key), "{key} = {value:?}: {message}");
        }
    }
}

#[test]
fn every_key_is_set_by_its_variable() {
    for key in &KEYS {
        let (name, variable) = (key.name, key.variable());
        let bounds = BOUNDS.iter().find(|(bounded, ..)| *bounded == name);
        let (_, good, bad) = bounds.unwrap_or_else(|| panic!("BOUNDS says nothing of {name}"));
        for value in *good {
            let [set, by_flag] =
                [load("", &[(&variable, value)], &[]), load("", &[], &[(name, value)])].map(Result::unwrap);
            assert_eq!(row(&set, name), (row(&by_flag, name).0, variable.clone()));
            assert_eq!(warnings(&set), [""; 0], "{variable}");
        }
        // A value that is only wrong beside another key's value may be reported for that key.
        let is_named = |value: &&str| refused("", &[(&variable, value)], &[]).contains(&format!("{variable}: {name}"));
        assert!(bad.is_empty() || bad.iter().any(is_named), "no error names {variable}");
    }
}

#[test]
fn a_list_in_a_variable_is_written_with_commas_and_blanks_as_one_likes() {
    let env = [
        ("HERALD_STREAM_TRIM_IGNORES", "audit, old reader ,x"),
        ("HERALD_GUARD_DENY_NETWORKS", "8.8.8.0/24,2600::/96"),
        ("HERALD_GUARD_ALLOW_PORTS", " 9200 , 22 "),
        ("HERALD_ALLOW_NETWORKS", ""),
    ];
    let config = load("[guard]\nallow_networks = ['10.0.0.0/8']", &env, &[]).unwrap();
    assert_eq!(config.stream.trim_ignores, ["audit", "old reader", "x"]);
    assert_eq!(config.guard.deny_networks.len(), 2);
    assert_eq!((config.guard.allow_ports, config.guard.allow_networks), (vec![9200, 22], Vec::new()));
    let file = load("[stream]\ntrim_ignores = [' a,b']", &[], &[]).unwrap();
    assert_eq!(file.stream.trim_ignores, [" a,b"], "in a file it is what it is");
    let message = refused("", &[("HERALD_STREAM_TRIM_IGNORES", "audit,")], &[]);
    assert!(
        message.contains("HERALD_STREAM_TRIM_IGNORES: stream.trim_ignores = \"audit,\": \"\" is empty"),
        "{message}"
    );
    let message = refused("", &[("HERALD_GUARD_ALLOW_PORTS", "22,ssh")], &[]);
    assert!(message.contains("HERALD_GUARD_ALLOW_PORTS: guard.allow_ports = \"22,ssh\": \"ssh\" must be"), "{message}");
}

#[test]
fn values_of_the_file_may_have_their_own_types() {
    let file = "[stream]\npartitions = 0x1\n[guard]\nallow_http = true\nallow_networks = [\"10.1.2.3/8\", \"fd00::/8\"]\n\
                [retry]\nmultiplier = 2\njitter = 0.5\n[limits]\nbody_bytes = 8_388_608\n[limits.breaker]\ncooldown = '1m 30s'";
    let config = load(file, &[], &[]).unwrap();
    assert_eq!(config.guard.allow_networks, ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
    assert_eq!((config.guard.allow_http, config.retry.multiplier, config.retry.jitter), (true, 2.0, 0.5));
    assert_eq!((config.limits.body_bytes, config.limits.breaker.cooldown), (8 << 20, Duration::from_secs(90)));
    assert_eq!(row(&config, "guard.allow_networks").0, "10.1.2.3/8, fd00::/8");
    assert_eq!(config.limits.dead_letters.max_count, 1_000_000);
}

#[test]
fn what_has_the_wrong_shape_is_refused() {
    for (file, part) in [
        ("lease = \"5s\"", "herald.toml:1: there is no setting lease; the nearest is "),
        (
            "[lease.ttl]\nx = 1",
            "herald.toml:1: lease.ttl: takes text, a number or true and false, not a value of type table",
        ),
        ("[lease]\nttl = [\"5s\"]", "herald.toml:2: lease.ttl: takes one value, not a list"),
        ("[guard]\nallow_networks = [[\"10.0.0.0/8\"]]", "takes a list, not a value of type array"),
        ("[guard]\nallow_networks = [10]", "\"10\" is not a network"),
        ("[lease]\nttl = \"1s\"\nttl = \"2s\"", "herald.toml:3: is not valid TOML: duplicate key"),
        ("[lease\nttl = \"1s\"", "is not valid TOML"),
    ] {
        let message = refused(file, &[], &[]);
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    let many = format!("[guard]\nallow_networks = [{}]", "'10.0.0.0/8',".repeat(65));
    assert!(refused(&many, &[], &[]).contains("takes at most 64 items, not 65"));
}

#[test]
fn a_broken_file_does_not_hide_what_else_is_wrong() {
    let message = refused("[lease\n", &[("HERALD_LEASE", "1h")], &[("log.format", "xml")]);
    assert!(
        message.contains("is not valid TOML") && message.contains("lease.ttl") && message.contains("log.format"),
        "{message}"
    );
}

#[test]
fn values_that_depend_on_each_other_are_checked_together() {
    let config = load("", &[], &[("retry.initial", "13h"), ("retry.max_interval", "14h")]).unwrap();
    assert!(RetryPolicy::try_new(config.retry).is_ok());
    let message = refused("", &[], &[("limits.breaker.cooldown", "10m")]);
    assert!(message.contains("built-in default: limits.breaker.max_cooldown"), "{message}");
    assert!(message.contains("must not be shorter than limits.breaker.cooldown (10m)"), "{message}");
}

#[test]
fn no_secret_is_ever_shown() {
    const SECRET: &str = "hunter2hunter2hunter2";
    let url = format!("redis://worker:{SECRET}@redis.example:6380/2");
    let config = load("", &[("HERALD_ADMIN_TOKEN", SECRET), ("HERALD_REDIS_URL", &url)], &[]).unwrap();
    assert_eq!(row(&config, "admin_token"), ("(hidden)".into(), "HERALD_ADMIN_TOKEN".into()));
    assert_eq!(row(&config, "redis.url").0, "redis://worker:***@redis.example:6380/2");
    assert_eq!((config.redis.url.reveal(), config.admin_token.as_ref().unwrap().reveal()), (url.as_str(), SECRET));
    assert!(!format!("{config:?}").contains(SECRET), "{config:?}");

    let cluster = load("", &[], &[("redis.url", &format!("rediss+cluster://w:{SECRET}@a:1,b:2"))]).unwrap();
    assert_eq!(row(&cluster, "redis.url").0, "rediss+cluster://w:***@a:1,b:2");
    assert!(cluster.redis.url.is_encrypted());
    let nodes = redis_places(cluster.redis.url.reveal()).unwrap().nodes;
    assert_eq!(nodes, [format!("rediss://w:{SECRET}@a:1"), format!("rediss://w:{SECRET}@b:2")]);

    let sentinels = load("", &[], &[("redis.url", &format!("redis+sentinel://w:{SECRET}@a,b:2/payments/3"))]).unwrap();
    assert_eq!(row(&sentinels, "redis.url").0, "redis+sentinel://w:***@a:26379,b:2/payments/3");

    let socket = load("", &[], &[("redis.url", &format!("unix:///run/redis.sock?user=w&pass={SECRET}&db=1"))]).unwrap();
    assert_eq!(row(&socket, "redis.url").0, "unix:///run/redis.sock?user=w&pass=***&db=1");

    for (file, env) in [
        (String::new(), vec![("HERALD_ADMIN_TOKEN", "hunter2é")]),
        (String::new(), vec![("HERALD_REDIS_URL", "redis:hunter2@")]),
        (String::new(), vec![("HERALD_REDIS_URL", "redis://:hunter2@h:port")]),
        (String::new(), vec![("HERALD_REDIS_URL", "redis://:hunter2@h/name")]),
        (String::new(), vec![("HERALD_REDIS_URL", "redis+cluster://:hunter2@h:1,h:port")]),
        (String::new(), vec![("HERALD_REDIS_URL", "redis+cluster://:hunter2@h:1,h:2/3")]),
        (String::new(), vec![("HERALD_REDIS_URL", "redis+cluster://:hunter2@")]),
        (String::new(), vec![("HERALD_REDIS_URL", "redis+sentinel://:hunter2@a,b")]),
        (String::new(), vec![("HERALD_REDIS_URL", "redis+sentinel://:hunter2@a,b:x/m")]),
        (String::new(), vec![("HERALD_REDIS_URL", "redis+sentinel://:hunter2@a,b/m/name")]),
        (String::new(), vec![("HERALD_REDIS_URL", "redis+sentinel://:hunter2@a,/m")]),
        (String::new(), vec![("HERALD_REDIS_URL", "redis+sentinel://:hunter2@/m")]),
        ("admin_token = hunter2hunter2hunter2".to_owned(), vec![]),
        ("admin_token = \"hunter2hunter2hunter2\n".to_owned(), vec![]),
        ("admin_token = [\"hunter2\"]".to_owned(), vec![]),
    ] {
        let message = refused(&file, &env, &[]);
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn an_unknown_variable_stops_nothing_and_is_named_with_the_nearest_setting() {
    for (name, nearest) in [
        ("HERALD_LEASSE", "HERALD_LEASE"),
        ("HERALD_RETRY_JITER", "HERALD_RETRY_JITTER"),
        ("HERALD_CONFG", "HERALD_CONFIG"),
        ("HERALD_ADMIN_TOKEN_FIEL", "HERALD_ADMIN_TOKEN_FILE"),
        // By the rule, where an older name is used: letter by letter others are nearer.
        ("HERALD_LOG_FILTER", "HERALD_LOG"),
        ("HERALD_GUARD_ALLOW_NETWORKS", "HERALD_ALLOW_NETWORKS"),
        ("HERALD_STREAM_NAME", "HERALD_STREAM"),
        ("HERALD_LEASE_TTL", "HERALD_LEASE"),
    ] {
        let config = load("", &[(name, "geheim")], &[]).unwrap();
        let said = format!("{name} in the environment is not a setting and has no effect; the nearest is {nearest}");
        assert_eq!(warnings(&config), [said]);
    }
    let long = format!("HERALD_{}", "X".repeat(1000));
    assert!(warnings(&load("", &[(&long, "")], &[]).unwrap())[0].len() < 250);
}

#[test]
fn what_kubernetes_sets_for_a_service_named_herald_and_what_is_others_is_passed_over() {
    let env = [
        ("HERALD_SERVICE_HOST", "10.0.0.1"),
        ("HERALD_SERVICE_PORT", "9090"),
        ("HERALD_SERVICE_PORT_HTTP", "9090"),
        ("HERALD_PORT", "tcp://10.0.0.1:9090"),
        ("HERALD_PORT_9090_TCP", "tcp://10.0.0.1:9090"),
        ("HERALD_PORT_9090_TCP_PROTO", "tcp"),
        ("HERALD_PORT_9090_TCP_PORT", "9090"),
        ("HERALD_PORT_9090_TCP_ADDR", "10.0.0.1"),
        ("HERALDRY", "gules"),
        ("HOME", "/root"),
    ];
    assert_eq!(warnings(&load("", &env, &[]).unwrap()), [""; 0]);
    assert_eq!(warnings(&gathered(&env).unwrap()), [""; 0]);
    for name in ["HERALD_PORTS", "HERALD_SERVICE"] {
        assert_eq!(warnings(&load("", &[(name, "1")], &[]).unwrap()).len(), 1, "{name}");
    }
}

#[test]
fn a_value_that_is_not_utf_8_is_an_error_only_where_it_would_be_read() {
    let read = |name: &str| {
        let env = [(OsString::from(name), OsString::from_vec(vec![b'a', 0xff]))];
        Sources::of(env, None, Vec::new()).map(|sources| sources.env).map_err(|errors| errors.to_string())
    };
    for name in ["HERALD_LEASE", "HERALD_CONFIG", "HERALD_REDIS_URL_FILE"] {
        let said = format!("the configuration is wrong: {name} in the environment is not UTF-8");
        assert_eq!(read(name), Err(said));
    }
    assert_eq!(read("HERALD_LEASSE").unwrap().len(), 1);
    assert_eq!(read("HERALD_PORT").unwrap().len(), 0);
}

/// A file of this content, and its path.
fn secret_file(folder: &Path, content: &[u8]) -> String {
    let path = folder.join("secret");
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_secret_comes_from_the_file_that_its_variable_names() {
    let folder = tempfile::tempdir().unwrap();
    for (content, expected) in [
        ("0123456789abcdef", "0123456789abcdef"),
        ("0123456789abcdef\n", "0123456789abcdef"),
        ("0123456789abcdef\r\n", "0123456789abcdef"),
    ] {
        let path = secret_file(folder.path(), content.as_bytes());
        let config = gathered(&[("HERALD_ADMIN_TOKEN_FILE", &path)]).unwrap();
        assert_eq!(config.admin_token.as_ref().unwrap().reveal(), expected);
        let origin = format!("HERALD_ADMIN_TOKEN_FILE ({path})");
        assert_eq!(row(&config, "admin_token"), ("(hidden)".to_owned(), origin));
    }
    let path = secret_file(folder.path(), b"redis://u:hunter2@h:1\n");
    let env = [(OsString::from("HERALD_REDIS_URL_FILE"), OsString::from(&path))];
    let loaded = |flags: &[(&str, &str)]| {
        let mut sources = Sources::of(env.clone(), None, pairs(flags)).unwrap();
        sources.file = Some(ConfigFile { path: "f".to_owned(), text: "redis.url = 'redis://file'".to_owned() });
        Config::load(sources).unwrap()
    };
    let config = loaded(&[]);
    assert_eq!(config.redis.url.reveal(), "redis://u:hunter2@h:1");
    assert_eq!(row(&config, "redis.url").0, "redis://u:***@h:1");
    assert_eq!(loaded(&[("redis.url", "redis://flag")]).redis.url.reveal(), "redis://flag");
}

#[test]
fn every_key_is_set_by_a_file_that_its_variable_names() {
    let folder = tempfile::tempdir().unwrap();
    for (name, good, _) in BOUNDS {
        let key = KEYS.iter().find(|key| key.name == name).unwrap();
        // An empty file is one that nobody has filled yet.
        for value in good.iter().filter(|value| !value.is_empty()) {
            let (variable, path) = (key.file_variable(), secret_file(folder.path(), format!("{value}\n").as_bytes()));
            let set = gathered(&[(&variable, &path)]).unwrap();
            let by_flag = load("", &[], &[(name, value)]).unwrap();
            assert_eq!(row(&set, name), (row(&by_flag, name).0, format!("{variable} ({path})")));
            assert_eq!(warnings(&set), [""; 0], "{variable}");
        }
    }
}

#[test]
fn a_secret_file_that_is_no_secret_is_an_error_with_its_name_and_without_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let large = b"hunter2 ".repeat(1025);
    for (variable, content, why) in [
        ("HERALD_ADMIN_TOKEN_FILE", &b""[..], "cannot read the file: it is empty"),
        ("HERALD_ADMIN_TOKEN_FILE", b"\n", "cannot read the file: it is empty"),
        ("HERALD_REDIS_URL_FILE", b"hunter2\xff", "cannot read the file: it is not UTF-8"),
        ("HERALD_REDIS_URL_FILE", &large, "cannot read the file: it is larger than 8 KiB"),
        ("HERALD_ADMIN_TOKEN_FILE", b"hunter2", "admin_token: must be 16 to 256 visible ASCII characters"),
        (
            "HERALD_ADMIN_TOKEN_FILE",
            b"hunter2hunter2hunter2\n\n",
            "admin_token: must be 16 to 256 visible ASCII characters",
        ),
        ("HERALD_REDIS_URL_FILE", b"redis:hunter2@", "redis.url: "),
    ] {
        let path = secret_file(folder.path(), content);
        let message = gathered(&[(variable, &path)]).expect_err("it was taken").to_string();
        assert!(message.contains(&format!("{variable} ({path}): {why}")), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    let message = gathered(&[("HERALD_REDIS_URL_FILE", "redis://:hunter2@h")]).expect_err("it was taken").to_string();
    assert!(message.contains("HERALD_REDIS_URL_FILE") && !message.contains("hunter2"), "{message}");
    let message = gathered(&[("HERALD_REDIS_URL_FILE", "/nowhere/url"), ("HERALD_ADMIN_TOKEN_FILE", "/")]);
    let message = message.expect_err("they were taken").to_string();
    assert!(message.contains("HERALD_REDIS_URL_FILE (/nowhere/url): cannot read the file: No such file"), "{message}");
    assert!(message.contains("HERALD_ADMIN_TOKEN_FILE (/): cannot read the file: Is a directory"), "{message}");
}

#[test]
fn both_forms_of_a_secret_at_once_are_an_error_that_names_both() {
    let folder = tempfile::tempdir().unwrap();
    let path = secret_file(folder.path(), b"redis://h");
    // Whatever order the environment has them in.
    let mut env = [("HERALD_REDIS_URL", "redis://h"), ("HERALD_REDIS_URL_FILE", &path)];
    for _ in 0..2 {
        env.reverse();
        let message = gathered(&env).expect_err("it was taken").to_string();
        let said =
            "the configuration is wrong: HERALD_REDIS_URL and HERALD_REDIS_URL_FILE are both set: unset one of them";
        assert_eq!(message, said);
    }
}

#[test]
fn a_duration_reads_back_as_it_is_shown() {
    for (text, shown) in [("250ms", "250ms"), ("90s", "1m 30s"), ("30d", "30d"), ("1h 30m", "1h 30m"), ("0s", "0s")] {
        let value = values::duration(text).unwrap();
        assert_eq!(compact(value), shown);
        assert_eq!(values::duration(&compact(value)).unwrap(), value);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_with_its_path() {
    let Err(errors) = Sources::gather(Some(&PathBuf::from("/nowhere/herald.toml")), Vec::new()) else {
        panic!("it was read")
    };
    assert!(errors.to_string().contains("cannot read the configuration file /nowhere/herald.toml: "), "{errors}");
}

#[test]
fn the_named_file_is_read_and_must_be_text_of_a_sensible_size() {
    let folder = tempfile::tempdir().unwrap();
    let written = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Sources::gather(Some(&path), Vec::new()).map(|sources| sources.file.unwrap().text).map_err(|e| e.to_string())
    };
    assert_eq!(written("good.toml", b"[lease]").as_deref(), Ok("[lease]"));
    assert!(written("binary.toml", b"\xff").unwrap_err().contains("is not UTF-8"));
    assert!(written("large.toml", &vec![b'#'; (1 << 20) + 1]).unwrap_err().contains("larger than 1024 KiB"));
}

#[test]
fn sentinels_are_named_with_their_master_and_its_database() {
    for (url, nodes, master) in [
        ("redis+sentinel://a/m", &["redis://a:26379"][..], "m"),
        (
            "redis+sentinel://a,b:1,[::1],[::1]:2/m/",
            &["redis://a:26379", "redis://b:1", "redis://[::1]:26379", "redis://[::1]:2"],
            "m",
        ),
        (
            "REDISS+SENTINEL://u:p%40@a,b/pay-ments/7",
            &["rediss://u:p%40@a:26379/7", "rediss://u:p%40@b:26379/7"],
            "pay-ments",
        ),
    ] {
        let places = redis_places(url).unwrap();
        assert_eq!(
            (places.nodes, places.kind),
            (nodes.iter().map(|node| (*node).to_owned()).collect(), RedisKind::Sentinels(master.to_owned()))
        );
        assert!(url.parse::<RedisUrl>().is_ok(), "{url}");
    }
}

#[test]
fn a_certificate_of_redis_comes_with_its_key_and_with_tls() {
    let file = |key: &str| ("redis.".to_owned() + key, format!("/etc/herald/{key}"));
    let with = |url: &str, keys: &[&str]| {
        let mut flags: Vec<_> = keys.iter().map(|key| file(key)).collect();
        flags.push(("redis.url".to_owned(), url.to_owned()));
        let flags: Vec<_> = flags.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        load("", &[], &flags).map(|config| config.redis).map_err(|error| error.to_string())
    };
    let both = with("rediss://h", &["ca_file", "certificate_file", "key_file"]).unwrap();
    assert_eq!(both.identity.unwrap().key.to_string(), "/etc/herald/key_file (redis.key_file)");
    for (url, keys, says) in [
        ("rediss://h", &["certificate_file"][..], "needs its key: name the file in redis.key_file"),
        ("rediss://h", &["key_file"], "needs its certificate: name the file in redis.certificate_file"),
        ("redis://h", &["certificate_file", "key_file"], "write rediss://HOST:PORT in redis.url"),
        ("unix:///run/r.sock", &["ca_file"], "write rediss://HOST:PORT in redis.url"),
    ] {
        let error = with(url, keys).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

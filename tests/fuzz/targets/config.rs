//! A configuration: a TOML file, then lines `NAME=value` of the environment, then lines `key=value` of flags, each part
//! ended by a line of three dashes.

use herald::{
    config::{Config, ConfigFile, RedisUrl, Sources},
    facts::retry::RetryPolicy,
};

use super::text;

/// What must never be shown.
const SECRET: &str = "hunter2hunter2hunter2";

pub fn run(input: &[u8]) {
    let text = text(input);
    let mut parts = text.splitn(3, "\n---\n");
    let file = parts.next().map(|text| ConfigFile { path: "herald.toml".to_owned(), text: text.to_owned() });
    let mut pairs = || parts.next().unwrap_or_default().lines().filter_map(pair).collect::<Vec<_>>();
    let (env, flags) = (pairs(), pairs());
    check_redis_url(&text);
    let is_secret_free = !text.contains(SECRET);
    match Config::load(Sources { file, env, flags, ..Sources::default() }) {
        Ok(config) => {
            RetryPolicy::try_new(config.retry).expect("what is loaded is a policy");
            let networks = &config.guard.allow_networks;
            assert!(networks.iter().all(|net| net.prefix_len() > 0), "one entry switches the whole guard off");
            assert!(config.lease.ttl.as_millis() > 0 && config.attempt.timeout.as_millis() > 0);
            assert!(config.show().iter().all(|row| row.value.len() <= input.len() + 256));
        }
        Err(errors) => {
            assert!(!errors.all().is_empty());
            let said = errors.to_string();
            // Each line of an input can be wrong once, and each key once more; a message quotes 80 characters.
            let most = 2_048 * (text.lines().count() + errors.all().len() + 1);
            assert!(said.len() <= most, "{} bytes about {}", said.len(), input.len());
            assert!(is_secret_free || !about_secrets(&said), "{said}");
        }
    }
}

fn pair(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once('=')?;
    Some((name.to_owned(), value.to_owned()))
}

/// A message about a key that holds a secret and repeats it.
fn about_secrets(said: &str) -> bool {
    let of_secret = |line: &str| line.contains(": redis.url") || line.contains(": admin_token");
    said.lines().any(|line| of_secret(line) && line.contains(SECRET))
}

/// Whatever the URL around it looks like, a password is not shown.
fn check_redis_url(text: &str) {
    let (user, host) = text.split_once('\n').unwrap_or((text, "127.0.0.1"));
    let host = host.lines().next().unwrap_or_default();
    for scheme in ["redis", "rediss", "redis+unix", "unix"] {
        let written = format!("{scheme}://{user}:{SECRET}@{host}");
        let holds = url::Url::parse(&written).is_ok_and(|url| url.password() == Some(SECRET));
        let is_elsewhere = text.contains("hunter2");
        if let Ok(url) = written.parse::<RedisUrl>()
            && holds
            && !is_elsewhere
        {
            assert!(!format!("{url} {url:?}").contains(SECRET), "{written} shows its password: {url}");
            assert_eq!(url.reveal(), written);
        }
    }
    let written = format!("unix:///tmp/socket?{}&pass={SECRET}", text.lines().next().unwrap_or_default());
    if let Ok(url) = written.parse::<RedisUrl>()
        && !text.contains("hunter2")
        && !text.contains('#')
    {
        assert!(!url.to_string().contains(SECRET), "{written} shows its password: {url}");
    }
}

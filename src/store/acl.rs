//! Owns the list of everything Herald asks of Redis: the commands and keys of each role, as rules for `ACL SETUSER`.
//! Redis checks a script's commands and keys like any other's, so the lists cover the scripts too. One test compares
//! them with the sources; others run everything as these users and try what each must not do.

use super::keys::{ApiKeys, AuditKeys, PartitionKeys, RegistryKeys, TokenKeys, WorkerKeys, never};
use crate::facts::partition::hash_tag;

/// A role with a Redis user of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `herald serve`: the dispatcher, and the operations API on its port.
    Worker,
    /// Herald's other verbs: looks at everything, changes endpoints, and asks the worker for the rest. It cannot add, take
    /// or remove an event.
    Operator,
    /// Those of its verbs that only look.
    Viewer,
    /// Adds events and reads nothing.
    Producer,
    /// `herald intents`: keeps payment intents and adds their events, and the endpoints that merchants subscribe with.
    /// `herald serve` needs it too where it serves them.
    Intents,
}

/// The commands by their names in an ACL, sorted. `select` is sent by the client library for a URL that names a database;
/// `auth` and `hello` need no permission.
const WORKER: &[&str] = &[
    "bgrewriteaof",
    "blpop",
    "client|tracking",
    "cluster|slots",
    "del",
    "evalsha",
    "evalsha_ro",
    "exists",
    "expire",
    "get",
    "getrange",
    "hdel",
    "hexists",
    "hget",
    "hgetall",
    "hincrby",
    "hlen",
    "hmget",
    "hrandfield",
    "hscan",
    "hset",
    "hsetnx",
    "hvals",
    "info",
    "lpop",
    "mget",
    "pexpire",
    "pttl",
    "role",
    "rpush",
    "script|load",
    "select",
    "set",
    "strlen",
    "time",
    "type",
    "wait",
    "xack",
    "xadd",
    "xclaim",
    "xdel",
    "xgroup|create",
    "xgroup|setid",
    "xinfo|consumers",
    "xinfo|groups",
    "xinfo|stream",
    "xlen",
    "xpending",
    "xrange",
    "xread",
    "xreadgroup",
    "xrevrange",
    "xsetid",
    "xtrim",
    "zadd",
    "zcard",
    "zcount",
    "zlexcount",
    "zrange",
    "zrangebylex",
    "zrem",
    "zremrangebylex",
    "zremrangebyrank",
    "zremrangebyscore",
    "zscore",
];

const OPERATOR: &[&str] = &[
    "blpop",
    "cluster|nodes",
    "cluster|slots",
    "del",
    "evalsha",
    "evalsha_ro",
    "exists",
    "expire",
    "get",
    "hdel",
    "hexists",
    "hget",
    "hgetall",
    "hlen",
    "hmget",
    "hscan",
    "hset",
    "hsetnx",
    "hvals",
    "info",
    "memory|usage",
    "mget",
    "persist",
    "pexpire",
    "pttl",
    "rename",
    "role",
    "script|load",
    "select",
    "time",
    "type",
    "unlink",
    "wait",
    "xadd",
    "xinfo|consumers",
    "xinfo|groups",
    "xinfo|stream",
    "xlen",
    "xpending",
    "xrange",
    "xread",
    "xrevrange",
    "zadd",
    "zcard",
    "zcount",
    "zlexcount",
    "zrange",
    "zrangebylex",
    "zrem",
    "zscore",
];

const VIEWER: &[&str] = &[
    "cluster|nodes",
    "cluster|slots",
    "evalsha_ro",
    "exists",
    "get",
    "hexists",
    "hget",
    "hgetall",
    "hlen",
    "hmget",
    "hscan",
    "hvals",
    "info",
    "memory|usage",
    "mget",
    "pttl",
    "role",
    "script|load",
    "select",
    "time",
    "type",
    "xinfo|consumers",
    "xinfo|groups",
    "xinfo|stream",
    "xlen",
    "xpending",
    "xrange",
    "xread",
    "xrevrange",
    "zcard",
    "zcount",
    "zlexcount",
    "zrange",
    "zrangebylex",
    "zscore",
];

const PRODUCER: &[&str] = &["cluster|slots", "role", "select", "xadd"];

const INTENTS: &[&str] = &[
    "cluster|slots",
    "del",
    "evalsha",
    "evalsha_ro",
    "exists",
    "get",
    "getrange",
    "hdel",
    "hget",
    "hgetall",
    "hincrby",
    "hlen",
    "hmget",
    "hscan",
    "hset",
    "hsetnx",
    "info",
    "mget",
    "role",
    "script|load",
    "select",
    "set",
    "time",
    "type",
    "wait",
    "xadd",
    "xinfo|groups",
    "xinfo|stream",
    "xpending",
    "xrange",
    "xread",
    "zadd",
    "zcount",
    "zrange",
    "zrem",
    "zscore",
];

/// What each role but viewers and producers may do to the audit log, beside what it may do elsewhere: it adds, and takes nothing away.
/// Redis trims with `XADD` too, where its sender asks for that; `SECURITY.md` says so.
const OF_AUDIT: &[&str] = &["evalsha", "xadd"];

/// Only operators read it, and the API that they ask.
const OF_AUDIT_READER: &[&str] = &["evalsha", "xadd", "xrange", "xrevrange"];

/// Viewers read it and add nothing: they do nothing that would have to be written there.
const OF_AUDIT_VIEWER: &[&str] = &["xrange", "xrevrange"];

/// Asked for but not granted: `CONFIG GET` also shows Redis' own passwords. `herald doctor` says what it cannot see.
pub const NOT_GRANTED: &[&str] = &["config|get"];

impl Role {
    pub const ALL: [Self; 5] = [Self::Worker, Self::Operator, Self::Viewer, Self::Producer, Self::Intents];

    /// As it is asked for.
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
            Self::Producer => "producer",
            Self::Intents => "intents",
        }
    }

    pub fn user(self) -> &'static str {
        match self {
            Self::Worker => "herald",
            Self::Operator => "herald-operator",
            Self::Viewer => "herald-viewer",
            Self::Producer => "herald-producer",
            Self::Intents => "herald-intents",
        }
    }

    pub fn commands(self) -> &'static [&'static str] {
        match self {
            Self::Worker => WORKER,
            Self::Operator => OPERATOR,
            Self::Viewer => VIEWER,
            Self::Producer => PRODUCER,
            Self::Intents => INTENTS,
        }
    }

    /// Patterns of keys; those that begin with `%R` may only be read.
    fn keys(self, keys: &PartitionKeys) -> Vec<String> {
        let registry = format!("~{}*", RegistryKeys::ENDPOINTS);
        let tokens = format!("~{}*", TokenKeys::TOKENS);
        let api_keys = format!("~{}", ApiKeys::KEYS);
        let [workers, partitions] = [WorkerKeys::WORKERS, WorkerKeys::PARTITIONS].map(|key| format!("~{key}"));
        let read = |pattern: &String| format!("%R{pattern}");
        let beside = match self {
            Self::Worker => vec![registry, api_keys, tokens, workers, partitions],
            Self::Operator => vec![registry, api_keys, tokens, read(&workers), read(&partitions)],
            Self::Viewer => [registry, api_keys, tokens, workers, partitions].iter().map(read).collect(),
            Self::Producer => vec![],
            Self::Intents => vec![api_keys, registry, workers, read(&partitions)],
        };
        let places = places(keys);
        // What a script declares counts as written by it.
        let fence = format!("~{}", escape(&never(RegistryKeys::ENDPOINTS)));
        let fences = places.iter().map(|place| format!("~{}never", place.fenced)).chain([fence]);
        let fences: Vec<String> = match self {
            Self::Producer => vec![],
            Self::Viewer => fences.map(|fence| read(&fence)).collect(),
            Self::Worker | Self::Operator | Self::Intents => fences.collect(),
        };
        places.iter().flat_map(|place| self.keys_in(place)).chain(beside).chain(fences).collect()
    }

    /// Those of a stream, or of all its parts.
    fn keys_in(self, Place { stream, companions, .. }: &Place) -> Vec<String> {
        match self {
            Self::Worker => vec![format!("~{stream}"), format!("~{companions}*")],
            Self::Operator => {
                let read = [format!("%R~{stream}"), format!("%R~{companions}*")];
                let own = ["inbox", "answer:*", "issues", "operation*"].map(|key| format!("~{companions}{key}"));
                read.into_iter().chain(own).collect()
            }
            Self::Viewer => vec![format!("%R~{stream}"), format!("%R~{companions}*")],
            Self::Producer => vec![format!("~{stream}")],
            Self::Intents => {
                let read = ["delivery:*", "dead-letter:*", "due", "cursor", "history", "mode", "routed"];
                let own = [format!("~{stream}"), format!("~{companions}pi*")];
                own.into_iter().chain(read.map(|key| format!("%R~{companions}{key}"))).collect()
            }
        }
    }
}

/// The keys of a stream, or of all its parts, as patterns.
struct Place {
    stream: String,
    companions: String,
    /// What `never` has before it.
    fenced: String,
}

/// The stream, and its parts if it can have any.
fn places(keys: &PartitionKeys) -> Vec<Place> {
    let place = |stream: String, companions: String, never: &str| {
        let fenced = never.strip_suffix("never").unwrap_or(never).to_owned();
        Place { stream, companions, fenced }
    };
    let (stream, fence) = (escape(keys.stream()), escape(&never(keys.stream())));
    let own = place(stream.clone(), escape(keys.prefix()), &fence);
    let is_whole = hash_tag(keys.stream().as_bytes()).is_none();
    let parts = is_whole.then(|| {
        let companions = format!("herald:{{{stream}:[0-9]*}}:");
        place(format!("{stream}:[0-9]*"), companions.clone(), &companions)
    });
    [own].into_iter().chain(parts).collect()
}

/// The command that makes a role's user from scratch; the reader has to fill in the password.
pub fn rule(keys: &PartitionKeys, role: Role) -> String {
    let commands: Vec<String> = role.commands().iter().map(|command| format!("+{command}")).collect();
    let (user, patterns) = (role.user(), role.keys(keys).join(" "));
    let rule = format!("ACL SETUSER {user} reset on >PASSWORD {patterns} -@all {}", commands.join(" "));
    let audit =
        |commands: &[&str]| format!("(~{} ~{} +{})", never(AuditKeys::LOG), AuditKeys::LOG, commands.join(" +"));
    match role {
        Role::Viewer => format!("{rule} (%R~{} +{})", AuditKeys::LOG, OF_AUDIT_VIEWER.join(" +")),
        Role::Worker | Role::Operator => format!("{rule} {}", audit(OF_AUDIT_READER)),
        Role::Producer => rule,
        // Only in a feed may it take something back: what stands in the stream stays.
        Role::Intents => {
            let feeds: Vec<String> =
                places(keys).iter().map(|place| format!("~{}pi-feed:*", place.companions)).collect();
            format!("{rule} ({} +xdel) {}", feeds.join(" "), audit(OF_AUDIT))
        }
    }
}

/// All the commands to run, in this order. The last one shuts out everyone without a name.
pub fn rules(keys: &PartitionKeys) -> String {
    let mut lines: Vec<String> = Role::ALL.iter().map(|role| rule(keys, *role)).collect();
    lines.push("ACL SETUSER default off".to_owned());
    lines.join("\n")
}

/// A stream's name as a pattern that matches nothing else.
fn escape(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for c in name.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// Commands whose permissions depend on their second word.
    const CONTAINERS: [&str; 7] = ["CLIENT", "CLUSTER", "CONFIG", "MEMORY", "SCRIPT", "XGROUP", "XINFO"];

    #[test]
    fn the_list_has_exactly_the_commands_that_the_sources_use() {
        let mut used = BTreeSet::from(["select".to_owned()]);
        scan(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store"), &mut used);
        let granted = Role::ALL.iter().flat_map(|role| role.commands());
        let listed: BTreeSet<String> = granted.chain(NOT_GRANTED).map(|name| (*name).to_owned()).collect();
        assert_eq!(used, listed);
        assert!(Role::ALL.iter().all(|role| role.commands().is_sorted()));
    }

    fn scan(folder: &Path, used: &mut BTreeSet<String>) {
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            match path.extension().and_then(|extension| extension.to_str()) {
                None => scan(&path, used),
                Some("lua") => find(&fs::read_to_string(&path).unwrap(), &["call('", "try('", "{'XGROUP"], '\'', used),
                // What only a load test does, to a Redis of its own, is not among the user's rights.
                Some("rs") if path.ends_with("acl.rs") || path.ends_with("disturb.rs") => {}
                // Sentinels have users of their own.
                Some("rs") if path.ends_with("sentinel.rs") => {}
                Some("rs") => find(&fs::read_to_string(&path).unwrap(), &["cmd(\""], '"', used),
                Some(_) => {}
            }
        }
    }

    fn find(text: &str, openings: &[&str], quote: char, used: &mut BTreeSet<String>) {
        for opening in openings {
            for (at, _) in text.match_indices(opening) {
                let mut words = text[at..].split(quote).skip(1).step_by(2);
                let command = words.next().unwrap();
                let name = match CONTAINERS.contains(&command) {
                    true => format!("{command}|{}", words.next().unwrap()),
                    false => command.to_owned(),
                };
                used.insert(name.to_lowercase());
            }
        }
    }

    #[test]
    fn a_stream_with_a_pattern_in_its_name_opens_no_other_key() {
        let keys = PartitionKeys::new("pay*[a]").unwrap();
        let worker = rule(&keys, Role::Worker);
        assert!(
            worker.contains(
                r" ~pay\*\[a\] ~herald:{pay\*\[a\]}:* ~pay\*\[a\]:[0-9]* ~herald:{pay\*\[a\]:[0-9]*}:* ~herald:{herald}:registry* "
            ),
            "{worker}"
        );
        let tagged = rule(&PartitionKeys::new("{pay}").unwrap(), Role::Worker);
        assert!(!tagged.contains("[0-9]"), "it can not be split: {tagged}");
        let operator = rule(&keys, Role::Operator);
        assert!(
            operator.contains(r" %R~pay\*\[a\] %R~herald:{pay\*\[a\]}:* ~herald:{pay\*\[a\]}:inbox "),
            "{operator}"
        );
        assert!(rules(&keys).ends_with("\nACL SETUSER default off"));
    }

    #[test]
    fn no_role_may_take_anything_out_of_the_audit_log() {
        let keys = PartitionKeys::new("pay").unwrap();
        let audit = |role| rule(&keys, role).split_once("~herald:{herald}:audit ").map(|(_, rights)| rights.to_owned());
        assert_eq!(audit(Role::Operator).unwrap(), "+evalsha +xadd +xrange +xrevrange)");
        assert_eq!(audit(Role::Worker).unwrap(), "+evalsha +xadd +xrange +xrevrange)");
        assert_eq!(audit(Role::Intents).unwrap(), "+evalsha +xadd)");
        assert_eq!(audit(Role::Viewer).unwrap(), "+xrange +xrevrange)");
        assert_eq!(audit(Role::Producer), None);
        let open = Role::ALL.iter().flat_map(|role| role.keys(&keys)).filter(|pattern| {
            let name = pattern.split_once('~').map_or("", |(_, name)| name);
            name.strip_suffix('*').is_some_and(|start| AuditKeys::LOG.starts_with(start)) || name == AuditKeys::LOG
        });
        assert_eq!(open.count(), 0);
    }
}

//! Owns the list of what Herald asks of Redis: the commands of the worker and of the command line, and the keys they
//! touch, as one rule for `ACL SETUSER`. Redis checks a script's commands and keys like any other's, so the list covers
//! the scripts too. A test holds it against the sources, another one runs everything as that user.

use super::keys::{PartitionKeys, RegistryKeys};

/// By their names in an ACL, sorted. `select` is sent by the client library for a URL that names a database; `auth` and
/// `hello` need no permission.
pub const COMMANDS: &[&str] = &[
    "bgrewriteaof",
    "blpop",
    "del",
    "evalsha",
    "exists",
    "expire",
    "get",
    "hdel",
    "hexists",
    "hget",
    "hincrby",
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
    "rpush",
    "script|load",
    "select",
    "set",
    "time",
    "type",
    "unlink",
    "xack",
    "xadd",
    "xclaim",
    "xdel",
    "xgroup|create",
    "xinfo|consumers",
    "xinfo|groups",
    "xinfo|stream",
    "xlen",
    "xpending",
    "xrange",
    "xread",
    "xreadgroup",
    "xrevrange",
    "xtrim",
    "zadd",
    "zcard",
    "zcount",
    "zrange",
    "zrangebylex",
    "zrem",
    "zscore",
];

/// Asked for and not granted: `CONFIG GET` also shows Redis' own passwords. `herald doctor` says what it can not see.
pub const NOT_GRANTED: &[&str] = &["config|get"];

/// The command that makes the user `herald`; the password is for the reader to fill in.
pub fn rule(keys: &PartitionKeys) -> String {
    let patterns =
        [escape(keys.stream()), format!("{}*", escape(keys.prefix())), format!("{}*", RegistryKeys::ENDPOINTS)];
    let patterns: Vec<String> = patterns.iter().map(|pattern| format!("~{pattern}")).collect();
    let commands: Vec<String> = COMMANDS.iter().map(|command| format!("+{command}")).collect();
    format!(
        "ACL SETUSER herald on >PASSWORD resetkeys {} resetchannels -@all {}",
        patterns.join(" "),
        commands.join(" ")
    )
}

/// A stream's name as a pattern that fits nothing else.
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

    /// Commands whose permissions are given by their second word.
    const CONTAINERS: [&str; 5] = ["CONFIG", "MEMORY", "SCRIPT", "XGROUP", "XINFO"];

    #[test]
    fn the_list_has_exactly_the_commands_that_the_sources_use() {
        let mut used = BTreeSet::from(["select".to_owned()]);
        scan(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store"), &mut used);
        let listed: BTreeSet<String> = COMMANDS.iter().chain(NOT_GRANTED).map(|name| (*name).to_owned()).collect();
        assert_eq!(used, listed);
        assert!(COMMANDS.is_sorted());
    }

    fn scan(folder: &Path, used: &mut BTreeSet<String>) {
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            match path.extension().and_then(|extension| extension.to_str()) {
                None => scan(&path, used),
                Some("lua") => find(&fs::read_to_string(&path).unwrap(), &["call('", "{'XGROUP"], '\'', used),
                // What only a load test does to a Redis of its own is no right of the user.
                Some("rs") if path.ends_with("acl.rs") || path.ends_with("disturb.rs") => {}
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
        let rule = rule(&PartitionKeys::new("pay*[a]").unwrap());
        assert!(rule.contains(r"~pay\*\[a\] ~herald:{pay\*\[a\]}:* ~herald:{herald}:registry*"), "{rule}");
    }
}

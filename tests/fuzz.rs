//! The fuzz targets in the ordinary test run: every kept input is replayed, and some similar ones are tried. `make fuzz
//! SECONDS=60` looks for new ones under libFuzzer; `HERALD_FUZZ_SECONDS` does it here, without coverage, if there is no
//! C++ compiler for that. An input that breaks a promise is kept in the corpus and replayed from then on.
// Reading the clock ends a run in time; it decides nothing else.
#![allow(clippy::disallowed_methods)]

#[path = "fuzz/budget.rs"]
mod budget;
#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::{Duration, Instant},
};

use targets::{ALL, Target};

#[global_allocator]
static COUNTING: budget::Counting = budget::Counting;

/// How many inputs are derived from the kept ones for each target: a second or two in all.
const TRIES: u64 = 2_000;

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target.name);
    let found = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Why an input breaks a promise, if it does.
fn broken(target: &Target, input: &[u8]) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(|| budget::spend(input, target.run))).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
}

#[test]
fn every_input_that_was_ever_kept_is_sound() {
    for target in ALL {
        let corpus = corpus(target);
        assert!(corpus.len() >= 5, "{} has {} inputs: it proves nothing", target.name, corpus.len());
        for (path, input) in corpus {
            if let Some(why) = broken(target, &input) {
                panic!("{}: {why}", path.display());
            }
        }
    }
}

#[test]
fn inputs_like_the_kept_ones_are_sound() {
    let seconds = std::env::var("HERALD_FUZZ_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    let only = std::env::var("HERALD_FUZZ_TARGET").ok();
    for target in ALL.iter().filter(|target| only.as_ref().is_none_or(|only| only == target.name)) {
        let inputs: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, input)| input).collect();
        let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut chance = mutate::Chance(end.map_or(1, |_| std::process::id().into()));
        let mut tried = 0u64;
        while end.map_or(tried < TRIES, |end| Instant::now() < end) {
            let input = mutate::another(&inputs, &mut chance);
            tried += 1;
            if let Some(why) = broken(target, &input) {
                let name = format!("tests/fuzz/corpus/{}/found-{:016x}", target.name, mutate::hash(&input));
                fs::write(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(&name), &input).unwrap();
                panic!("{} is broken, the input is kept as {name}: {why}", target.name);
            }
        }
        println!("fuzz target={} executions={tried} crashes=0 engine=mutation", target.name);
    }
}

#[test]
fn an_input_that_makes_the_code_allocate_without_bound_is_noticed() {
    let greedy = Target { name: "greedy", run: |input| drop(Vec::<u8>::with_capacity(input.len() << 24)) };
    assert_eq!(broken(&greedy, b""), None);
    assert!(broken(&greedy, b"x").is_some_and(|why| why.contains("at once")));
}

#[test]
fn the_oracle_knows_what_a_sender_must_refuse() {
    let special = [
        "127.0.0.1",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "169.254.169.254",
        "172.31.0.1",
        "192.0.0.192",
        "192.168.0.1",
        "198.19.0.1",
        "203.0.113.9",
        "224.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::ffff:0:10.0.0.1",
        "64:ff9b::808:808",
        "64:ff9b:1::1",
        "2002:808:808::1",
        "2001::1",
        "fec0::1",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        "3fff::1",
    ];
    for address in special {
        assert!(targets::oracle::is_special(address.parse().unwrap()), "{address}");
    }
    for address in ["8.8.8.8", "100.63.0.1", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "2001:4860:4860::8888"] {
        assert!(!targets::oracle::is_special(address.parse().unwrap()), "{address}");
    }
    for host in ["127.1", "0x7f.1", "2130706433", "017700000001", "127.0.0.1.", "0x7F000001"] {
        assert_eq!(targets::oracle::old_notation(host), Some("127.0.0.1".parse().unwrap()), "{host}");
    }
    for host in ["merchant.example", "1.2.3.4.5", "256.1.1.1", "0xfffffffff", "", "."] {
        assert_eq!(targets::oracle::old_notation(host), None, "{host:?}");
    }
}

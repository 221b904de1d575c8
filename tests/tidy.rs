//! The structure of the house, as far as a program can check it. `ARCHITECTURE.md` says why.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every Rust file under a folder of the sources, as (path from `src`, text).
fn sources() -> Vec<(String, String)> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => collect(&path, found),
                false => found.push(path),
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let relative = |path: &PathBuf| path.strip_prefix(&root).unwrap().display().to_string();
    paths.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

/// The code of a file: no comments, and none of its unit tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Whether `word` stands in the code as a path's beginning, such as `redis::cmd`.
fn names(code: &str, word: &str) -> bool {
    let path = format!("{word}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

fn check_only(word: &str, allowed: &[&str]) {
    let mut seen = false;
    for (path, text) in sources() {
        if names(&code(&text), word) {
            seen = true;
            assert!(allowed.iter().any(|prefix| path.starts_with(prefix)), "{path} names {word}; only {allowed:?} may");
        }
    }
    assert!(seen, "nothing names {word}: the rule checks nothing");
}

#[test]
fn each_foreign_system_has_one_place() {
    check_only("redis", &["store/"]);
    check_only("reqwest", &["sender/"]);
    check_only("axum", &["service.rs", "demo/"]);
    check_only("backoff", &["facts/retry.rs"]);
    check_only("hmac", &["facts/signing/", "loadtest/receiver/verify.rs"]);
    check_only("aws_lc_rs", &["loadtest/receiver/verify.rs"]);
    check_only("anyhow", &["app.rs", "main.rs", "cli/", "demo/", "doctor", "loadtest/", "owned"]);
}

/// A checker that shares code with what it checks can only find that both are wrong in the same way.
#[test]
fn the_load_test_verifies_with_code_of_its_own() {
    let mut seen = false;
    for (path, text) in sources().iter().filter(|(path, _)| path.starts_with("loadtest/")) {
        let code = code(text);
        // It hands secrets over, as text.
        let may_name_secrets = path == "loadtest/population.rs";
        seen |= may_name_secrets;
        for signing in ["standard_signature", "dojo_signature", "StandardKey", "DojoKey"] {
            assert!(!code.contains(signing), "{path} names {signing}");
        }
        assert!(may_name_secrets || !code.contains("signing"), "{path} names facts::signing");
        let judges = path.starts_with("loadtest/judge") || path.starts_with("loadtest/ledger");
        for decision in ["RetryPolicy", "RetrySettings", "Outcome", "crate::dispatch", "crate::sender"] {
            assert!(!judges || !code.contains(decision), "{path} judges with Herald's own {decision}");
        }
    }
    assert!(seen, "the load test has moved: the rule checks nothing");
}

#[test]
fn facts_know_nothing_but_facts() {
    for (path, text) in sources().iter().filter(|(path, _)| path.starts_with("facts/")) {
        let code = code(text);
        for foreign in ["tokio", "tracing", "rand", "crate::store", "crate::sender", "crate::dispatch", "crate::clock"]
        {
            assert!(!names(&code, foreign), "{path} names {foreign}");
        }
    }
}

#[test]
fn each_folder_imports_only_what_stands_below_it() {
    let above: &[(&str, &[&str])] = &[
        ("store/", &["sender", "registry", "dispatch", "service", "cli", "demo", "loadtest", "owned", "app", "doctor"]),
        ("sender/", &["store", "registry", "dispatch", "service", "cli", "demo", "loadtest", "owned", "app", "doctor"]),
        ("registry", &["dispatch", "service", "cli", "demo", "loadtest", "owned", "app", "doctor"]),
        ("dispatch/", &["service", "cli", "demo", "loadtest", "owned", "app", "doctor"]),
        ("config/", &["store", "sender", "registry", "dispatch", "service", "cli", "demo", "loadtest", "owned", "app"]),
        (
            "telemetry/",
            &["store", "sender", "registry", "dispatch", "service", "cli", "demo", "loadtest", "owned", "app"],
        ),
    ];
    for (path, text) in sources() {
        let code = code(&text);
        for (folder, forbidden) in above.iter().filter(|(folder, _)| path.starts_with(folder)) {
            for module in *forbidden {
                // Within braces the module stands alone; `registry` is also the name of others' modules.
                let grouped = names(&code, module) && *module != "registry";
                let imports = grouped || code.contains(&format!("crate::{module}::"));
                assert!(!imports, "{path} in {folder} imports {module}");
            }
        }
    }
}

#[test]
fn the_pure_part_of_the_engine_does_no_io() {
    for (path, text) in sources() {
        if ["core", "lane", "breaker", "partition"].iter().any(|name| path.starts_with(&format!("dispatch/{name}"))) {
            let code = code(&text);
            for foreign in ["tokio", "tracing", "std::time::Instant", "crate::clock", "crate::sender"] {
                assert!(!code.contains(foreign), "{path} names {foreign}");
            }
        }
    }
}

#[test]
fn every_script_says_what_it_takes_and_answers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/scripts");
    let scripts: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(scripts.len() >= 15);
    for path in scripts {
        let text = fs::read_to_string(&path).unwrap();
        let head: String = text.lines().take_while(|line| line.starts_with("--") || line.starts_with("#!")).collect();
        assert!(head.len() > 80, "{} has no header", path.display());
    }
}

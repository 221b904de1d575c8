//! The structure of the house, as far as a program can check it. `ARCHITECTURE.md` gives the reasons; `docs/design.md`
//! is compared with the code.

use std::{
    collections::{BTreeMap, BTreeSet},
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

/// The code of a file, without comments and its unit tests.
fn code(text: &str) -> String {
    let tests = ["#[cfg(test)]\nmod tests", "#[cfg(test)]\npub(super) mod tests"];
    let end = tests.iter().filter_map(|begin| text.find(begin)).min().unwrap_or(text.len());
    let text = &text[..end];
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Whether `word` is the beginning of a path in the code, such as `redis::cmd`.
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
    check_only("sqlx", &["history/"]);
    // `listen` is a client of the application that its user names, and no sender to receivers; so is what asks a service.
    check_only("reqwest", &["sender/", "listen/forward.rs", "surface/client.rs", "telemetry/traces"]);
    check_only("opentelemetry_sdk", &["telemetry/traces.rs"]);
    check_only("axum", &["api/", "console/", "http/", "service.rs", "demo/"]);
    check_only("askama", &["api/checkout/", "console/", "http/html.rs", "loadtest/report/html"]);
    check_only("sd_notify", &["systemd.rs"]);
    check_only("cookie", &["console/session.rs"]);
    check_only("backoff", &["facts/retry.rs"]);
    check_only("hmac", &["facts/signing/", "loadtest/receiver/verify.rs"]);
    check_only("aws_lc_rs", &["facts/signing/ed25519.rs", "loadtest/receiver/verify.rs"]);
    check_only("chacha20poly1305", &["facts/sealing.rs"]);
    check_only(
        "anyhow",
        &["app.rs", "main.rs", "cli/", "demo/", "doctor", "listen/", "loadtest/", "owned", "sandbox/", "surface/"],
    );
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

/// It specifies the scripts, for the tests that compare them with it.
#[test]
fn what_ships_does_not_lean_on_the_model() {
    let is_for_tests = |path: &str| path == "store/model.rs" || path.ends_with("tests.rs");
    for (path, text) in sources().iter().filter(|(path, _)| !is_for_tests(path)) {
        assert!(!code(text).contains("model::"), "{path} imports what only tests may");
    }
}

/// A file names what it takes from its neighbours, so that a reader need not search all of them.
#[test]
fn only_tests_import_everything() {
    for (path, text) in sources().iter().filter(|(path, _)| !path.ends_with("tests.rs")) {
        assert!(!code(text).contains("::*;"), "{path} imports all of a module");
    }
}

/// A page that sends its reader to a file that has moved is worse than none.
#[test]
fn each_file_that_the_docs_name_is_there() {
    let mut seen = 0;
    for page in ["ARCHITECTURE.md", "SECURITY.md", "README.md"].map(str::to_owned).into_iter().chain(pages()) {
        let text = file(&page);
        for named in text.split('`').skip(1).step_by(2).filter(|named| is_path(named)) {
            seen += 1;
            assert!(
                Path::new(env!("CARGO_MANIFEST_DIR")).join(named).exists(),
                "{page} names {named}, which is not there"
            );
        }
    }
    assert!(seen > 20, "the names are not found: the rule checks nothing");
}

/// One file or folder of ours, not a pattern for several.
fn is_path(named: &str) -> bool {
    ["src/", "tests/", "deploy/", "benches/"].iter().any(|top| named.starts_with(top))
        && !named.contains("NAME")
        && named.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
}

fn pages() -> Vec<String> {
    let pages = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    pages.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")).collect()
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

/// From the ground up. A module imports from the steps below its own, and nothing else of ours. Some are still to come.
const STEPS: [&[&str]; 15] = [
    &["facts"],
    &["clock", "descriptors", "keyring", "tls"],
    &["telemetry"],
    &["config"],
    &["sender", "store"],
    &["history", "http", "intents", "registry"],
    &["view"],
    &["dispatch"],
    &["api", "lifecycle", "owned", "service", "systemd"],
    &["console"],
    &["app"],
    &["surface"],
    &["demo", "doctor", "listen", "loadtest"],
    &["sandbox"],
    &["cli"],
];

#[test]
fn each_folder_imports_only_what_stands_below_it() {
    let step_of = |name: &str| STEPS.iter().position(|step| step.contains(&name));
    for (path, text) in sources().iter().filter(|(path, _)| path != "lib.rs" && path != "main.rs") {
        let module = module_of(path);
        let own = first(&module);
        let step = step_of(own).unwrap_or_else(|| panic!("{path} stands on no step"));
        for import in imports(&module, &code(text)).iter().filter(|import| first(import) != own) {
            let below = step_of(first(import)).is_some_and(|below| below < step);
            assert!(below, "{path} imports {import}, which does not stand below {own}");
        }
    }
}

/// Modules that need each other can only be understood together; so they are one file, or the part that both need is a
/// third.
#[test]
fn no_files_of_the_surfaces_need_each_other() {
    let folders = ["cli", "config", "demo", "doctor", "listen", "loadtest", "sandbox", "surface"];
    let files = sources().into_iter().map(|(path, text)| (module_of(&path), text));
    let files: BTreeMap<String, String> =
        files.filter(|(module, _)| folders.contains(&first(module)) && !module.ends_with("tests")).collect();
    let needs = |module: &String| -> Vec<String> {
        let named = imports(module, &code(&files[module]));
        let named = named.iter().filter_map(|import| files.keys().filter(|file| is_within(import, file)).max());
        // A file may use its parts, and the parts may use what it has for all of them.
        named.filter(|file| !is_within(file, module) && !is_within(module, file)).cloned().collect()
    };
    let needs: BTreeMap<&String, Vec<String>> = files.keys().map(|module| (module, needs(module))).collect();
    assert!(
        needs[&"cli::chain".to_owned()].contains(&"surface".to_owned()),
        "the imports are not read: the rule checks nothing"
    );
    for module in files.keys() {
        let (mut reached, mut open) = (BTreeSet::new(), vec![module]);
        while let Some(next) = open.pop() {
            open.extend(needs[next].iter().filter(|need| reached.insert(*need)));
        }
        assert!(!reached.contains(module), "{module} needs itself, by way of some of {reached:?}");
    }
}

fn module_of(path: &str) -> String {
    path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::")
}

fn first(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Everything of ours that a module's code names, in `use` or elsewhere, as paths from the crate's root.
fn imports(module: &str, code: &str) -> BTreeSet<String> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                write_out(&code[at..], "", &mut found);
            }
        }
    }
    let from_the_root = |path: &String| {
        let mut base: Vec<&str> = module.split("::").collect();
        let named = path.trim_start_matches("::crate").trim_start_matches("::super");
        match path.matches("::super").count() {
            0 => base.clear(),
            ups => base.truncate(base.len() - ups),
        }
        base.extend(named.split("::").filter(|name| !name.is_empty()));
        base.join("::")
    };
    found.iter().map(from_the_root).filter(|path| !path.is_empty()).collect()
}

/// The paths of a tree such as `crate::{clock, facts::id::{EntryId, EventId}}`. Returns what follows it.
fn write_out<'a>(mut text: &'a str, before: &str, found: &mut Vec<String>) -> &'a str {
    let mut path = before.to_owned();
    loop {
        text = text.trim_start();
        if let Some(mut rest) = text.strip_prefix('{') {
            while !rest.trim_start().starts_with('}') {
                rest = write_out(rest, &path, found).trim_start();
                rest = rest.strip_prefix(',').unwrap_or(rest);
            }
            let rest = rest.trim_start();
            return rest.strip_prefix('}').unwrap_or(rest);
        }
        let (name, rest) = word(text);
        path = format!("{path}::{name}");
        match rest.strip_prefix("::") {
            Some(rest) => text = rest,
            None => {
                found.push(path);
                return rest.strip_prefix(" as ").map_or(rest, |renamed| word(renamed).1);
            }
        }
    }
}

fn word(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(text.len()))
}

#[test]
fn the_pure_part_of_the_engine_does_no_io() {
    for (path, text) in sources() {
        if ["core", "lane", "breaker", "partition", "router"]
            .iter()
            .any(|name| path.starts_with(&format!("dispatch/{name}")))
        {
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

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The text between the next two of these quotes, after each place where `opening` is.
fn quoted_behind<'t>(text: &'t str, opening: &str, quote: char) -> Vec<&'t str> {
    text.match_indices(opening).filter_map(|(at, _)| text[at..].split(quote).nth(1)).collect()
}

/// The text between `begin` and the next `end` after it.
fn part<'t>(text: &'t str, begin: &str, end: &str) -> &'t str {
    let rest = text.split_once(begin).unwrap_or_else(|| panic!("{begin} has moved: the rule checks nothing")).1;
    rest.split_once(end).map_or(rest, |(part, _)| part)
}

/// The names in the first column of the first table under a heading, with `*` for a part that is in capitals.
fn keys_in_table(document: &str, heading: &str) -> BTreeSet<String> {
    let rows = part(document, heading, "\n#").lines().skip_while(|line| !line.starts_with('|'));
    let names =
        rows.take_while(|line| line.starts_with('|')).filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    let name = |name: &str| match name.split_once(':') {
        Some((fixed, parts)) if parts.chars().all(|c| c.is_ascii_uppercase() || c == ':') => format!("{fixed}:*"),
        _ => match name.rsplit_once(':') {
            Some((fixed, part)) if part.chars().all(|c| c.is_ascii_uppercase()) => format!("{fixed}:*"),
            _ => name.to_owned(),
        },
    };
    names.map(name).collect()
}

#[test]
fn the_design_names_the_keys_that_there_are() {
    let (design, keys) = (file("docs/design.md"), file("src/store/keys.rs"));
    let (of_partition, of_registry) = keys.split_once("impl RegistryKeys").expect("the registry's keys have moved");
    let named = |name: &str| name.split_once('{').map_or(name.to_owned(), |(fixed, _)| format!("{fixed}*"));
    // A start that many share is no key.
    let built =
        quoted_behind(of_partition, "self.key(", '"').into_iter().filter(|name| !name.ends_with(':')).map(named);
    let (of_intents, mut built): (BTreeSet<String>, BTreeSet<String>) = built.partition(|name| name.starts_with("pi"));
    built.insert("S".to_owned());
    assert_eq!(keys_in_table(&design, "### The keys of a partition"), built);
    assert_eq!(keys_in_table(&design, "### The keys of the payment intents"), of_intents);

    let (of_registry, of_access) = of_registry.split_once("impl ApiKeys").expect("the API keys have moved");
    let (of_access, of_audit) = of_access.split_once("impl AuditKeys").expect("the audit log's key has moved");
    for (part, kind) in [(of_access, "hash"), (of_audit, "stream")] {
        assert!(design.contains(&format!("| `{}` | {kind} |", quoted_behind(part, "pub const ", '"')[0])));
    }
    let consts = quoted_behind(of_registry, "pub const ", '"');
    let staging = quoted_behind(of_registry, "format!(", '"')[0].replace("{}", consts[0]).replace("{token}", "*");
    let built = consts.into_iter().map(str::to_owned).chain([staging]).collect();
    assert_eq!(keys_in_table(&design, "### The keys of the registry"), built);
}

/// Redis Cluster refuses a script while only a part of its slot is there, as long as it declares a key that is nowhere.
#[test]
fn every_script_is_called_with_the_fence_and_none_takes_it_for_a_key_of_its_own() {
    let mut calls = Vec::new();
    for (path, text) in sources() {
        calls.extend(text.match_indices("cmd(\"EVAL").map(|_| path.clone()));
    }
    let connection = file("src/store/connection.rs");
    assert_eq!(calls, ["store/connection.rs", "store/connection.rs"], "only `Script` calls scripts");
    assert!(part(&connection, "fn call(&self, mut command: Cmd", "\n    }").contains("never(key)"));
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/scripts")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("never'"), "{} names the fence", path.display());
        for (at, _) in text.match_indices("#KEYS") {
            assert!(text[at..].starts_with("#KEYS - "), "{} takes the fence for one of its keys", path.display());
        }
    }
}

#[test]
fn scripts_build_no_key_that_has_no_name() {
    let design = file("docs/design.md");
    let mut keys = keys_in_table(&design, "### The keys of a partition");
    keys.extend(keys_in_table(&design, "### The keys of the payment intents"));
    let mut seen = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/scripts")).unwrap() {
        let path = entry.unwrap().path();
        for name in quoted_behind(&fs::read_to_string(&path).unwrap(), "prefix .. '", '\'') {
            seen += 1;
            let is_known = keys.contains(&format!("{name}*")) || keys.contains(name);
            assert!(is_known, "{} builds {name}", path.display());
        }
    }
    assert!(seen > 10, "the scripts build their keys in another way: the rule checks nothing");
}

#[test]
fn the_design_names_the_fields_headers_and_reasons_that_there_are() {
    let design = file("docs/design.md");
    let has = |name: &str| design.contains(&format!("`{name}`")) || design.contains(&format!("\"{name}\""));
    for (path, name) in [
        ("src/facts/delivery.rs", "Delivery"),
        ("src/facts/envelope.rs", "Envelope"),
        ("src/facts/delivery.rs", "DeadLetter"),
        ("src/facts/outcome.rs", "AttemptReport"),
        ("src/facts/outcome.rs", "Timing"),
        ("src/facts/endpoint.rs", "Mark"),
    ] {
        let text = file(path);
        let fields = part(&text, &format!("pub struct {name} {{"), "\n}").lines();
        let fields: Vec<&str> = fields.filter_map(|line| line.trim().strip_prefix("pub ")?.split(':').next()).collect();
        assert!(fields.len() >= 2, "{name}: {fields:?}");
        // A body stands behind its header's line feed; what an envelope has stands in the record itself.
        for field in fields.iter().filter(|field| !["body", "envelope"].contains(field)) {
            assert!(has(field), "docs/design.md does not name {name}'s {field}");
        }
    }
    let request = file("src/sender/request.rs");
    let headers = quoted_behind(&request, "HeaderName::from_static(", '"');
    let retry = file("src/facts/retry.rs");
    let reasons = quoted_behind(part(&retry, "impl DeadReason", "\n}"), "Self::", '"');
    let outcome = file("src/facts/outcome.rs");
    let outcomes = quoted_behind(part(&outcome, "pub fn name(", "\n    }"), " => ", '"');
    assert!(headers.len() >= 7 && reasons.len() >= 6 && outcomes.len() >= 18, "{headers:?} {reasons:?} {outcomes:?}");
    for name in headers.into_iter().chain(reasons).chain(outcomes) {
        assert!(has(name), "docs/design.md does not name {name}");
    }
}

/// As docs/metrics.md lists them; tests/operate holds that against a page.
fn metrics() -> BTreeSet<String> {
    let list = file("docs/metrics.md");
    let names = list.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    let names: BTreeSet<String> = names.map(str::to_owned).collect();
    assert!(names.len() > 60, "{names:?}");
    names
}

#[test]
fn no_document_and_no_setting_names_a_metric_that_is_not_there() {
    let metrics = metrics();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    let settings = ["herald.toml", "prometheus/herald.rules.yml", "grafana/herald.json"]
        .map(|name| root.join("deploy").join(name));
    for path in documents().into_iter().chain(settings) {
        let text = fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices("herald_") {
            let name = text[at..].split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
            let whole = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(metrics.contains(name) || metrics.contains(whole), "{} names {name}", path.display());
            seen += 1;
        }
    }
    assert!(seen > metrics.len(), "the documents name few metrics: the rule checks nothing");
}

/// Pages of the project, and pages for its users.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [root.to_path_buf(), root.join("docs"), root.join("docs/receivers"), root.join("docs/scenarios")];
    let files = folders.map(|folder| fs::read_dir(folder).unwrap());
    let paths = files.into_iter().flatten().map(|entry| entry.unwrap().path());
    let documents: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    assert!(documents.len() >= 8);
    documents
}

/// As they are made from headings: in lower case, with dashes for blanks and without other signs.
fn anchors(document: &str) -> Vec<String> {
    let headings =
        document.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    headings.map(|text| text.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let (name, anchor) = target.split_once('#').unwrap_or((target, ""));
            let led_to = if name.is_empty() { path.clone() } else { path.with_file_name(name) };
            assert!(led_to.exists(), "{} leads to {target}", path.display());
            let has_anchor = || anchors(&fs::read_to_string(&led_to).unwrap()).iter().any(|one| one == anchor);
            assert!(anchor.is_empty() || has_anchor(), "{} leads to {target}", path.display());
        }
    }
}

/// What stands between a parenthesis and its end, cut at the commas that are not inside anything.
fn arguments(text: &str) -> Vec<String> {
    let (mut found, mut depth, mut is_quoted, mut is_escaped) = (vec![String::new()], 0, false, false);
    for c in text.chars() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ if is_quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(String::new());
                continue;
            }
            _ => {}
        }
        found.last_mut().expect("there is one").push(c);
    }
    found
}

/// What a line of the log has beyond its message has a name that whoever collects logs can look for.
#[test]
fn the_log_has_no_field_that_its_schema_does_not_name() {
    let schema: serde_json::Value = serde_json::from_str(&file("docs/log.schema.json")).unwrap();
    let known = schema["properties"].as_object().unwrap();
    let mut lines = 0;
    for (path, text) in sources() {
        if ["loadtest/", "telemetry/logging.rs"].iter().any(|prefix| path.starts_with(prefix)) {
            continue;
        }
        let code = code(&text);
        for level in ["error!(", "warn!(", "info!(", "debug!(", "trace!(", "each!("] {
            for (at, _) in code.match_indices(level) {
                if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                    continue;
                }
                lines += 1;
                for argument in arguments(&code[at + level.len()..]) {
                    let argument = argument.trim();
                    // The message, and what comes into it.
                    if argument.starts_with('"') || argument.is_empty() {
                        break;
                    }
                    let name = argument.split(" = ").next().unwrap_or_default().trim_start_matches(['%', '?']);
                    assert!(known.contains_key(name) || name.starts_with('$'), "{path}: {name} in {argument:?}");
                }
            }
        }
    }
    assert!(lines > 80, "{lines} lines: the rule checks nothing");
}

/// Each once, beside the others or after them: a target that no line of the Makefile named would never run.
#[test]
fn make_test_runs_every_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let targets: BTreeSet<String> = fs::read_dir(root.join("tests"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "rs") || path.join("main.rs").is_file())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let output = std::process::Command::new("make")
        .args(["--no-print-directory", "-n", "test-waiting", "test-working"])
        .current_dir(root)
        .env_remove("MAKEFLAGS")
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = printed.split_whitespace().collect();
    let named = words.windows(2).filter(|pair| pair[0] == "--test").map(|pair| pair[1].to_owned());
    let mut named: Vec<String> = named.collect();
    named.sort();
    assert_eq!(named, targets.into_iter().collect::<Vec<_>>());
    assert!(words.contains(&"--lib") && words.contains(&"--bins"));
}

//! How each receiver is started, and what it needs for that.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// Set by `make prove`, which installs all of them: then nothing may be missing.
const ALL: &str = "HERALD_ALL_RUNTIMES";

/// One receiver. Where `PORT` stands in an argument, its port comes.
pub struct Language {
    pub file: &'static str,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub env: Vec<(&'static str, PathBuf)>,
    /// What it knows survives a restart.
    pub keeps: bool,
}

impl Language {
    fn new(file: &'static str, program: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Self { file, program: program.into(), arguments, env: Vec::new(), keeps: true }
    }

    fn forgetful(self) -> Self {
        Self { keeps: false, ..self }
    }
}

pub fn python(file: &'static str) -> Option<Language> {
    Some(Language::new(file, installed("target/verifiers/python/bin/python"), &["-u", &source(file)]))
}

pub fn node(file: &'static str) -> Option<Language> {
    let packages = installed("target/verifiers/node/node_modules");
    Some(Language { env: vec![("NODE_PATH", packages)], ..Language::new(file, "node", &[&source(file)]).forgetful() })
}

pub fn php(file: &'static str) -> Option<Language> {
    must_say("php", &["-m"], "pdo_sqlite");
    Some(Language::new(file, "php", &["-S", "127.0.0.1:PORT", &source(file)]))
}

pub fn ruby(file: &'static str) -> Option<Language> {
    must_say("ruby", &["-e", "require 'webrick'; require 'sqlite3'; puts 'both'"], "both");
    Some(Language::new(file, "ruby", &[&source(file)]))
}

/// `cargo test` has built it already, as an example; `cargo test --test receivers` alone has not, or long ago.
pub fn rust(file: &'static str) -> Option<Language> {
    let tests = std::env::current_exe().unwrap();
    let folder = tests.ancestors().nth(2).unwrap();
    let profile = if folder.ends_with("debug") { "dev" } else { "release" };
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--offline", "--example", "receiver", "--profile", profile]);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(build.status().unwrap().success(), "cargo build --example receiver failed");
    Some(Language::new(file, folder.join("examples/receiver"), &[]).forgetful())
}

pub fn go(file: &'static str) -> Option<Language> {
    let version = said("go", &["version"]).and_then(|text| number_behind(&text, "go1."));
    if version.is_none_or(|version| version < 18) {
        return missing(file, "Go 1.18 or newer");
    }
    // `go run` would stay between the test and the program.
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("receiver-go");
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(&program).arg(source(file)).env("GOFLAGS", "-mod=mod");
    build.env("GOCACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-cache"));
    assert!(build.status().unwrap().success(), "go build failed");
    Some(Language::new(file, program, &[]).forgetful())
}

/// A JRE alone runs no source file.
pub fn java(file: &'static str) -> Option<Language> {
    let version = said("javac", &["-version"]).and_then(|text| number_behind(&text, "javac "));
    if version.is_none_or(|version| version < 17) {
        return missing(file, "a JDK of Java 17 or newer");
    }
    // `java Receiver.java` does the same, each time it is started.
    let classes = Path::new(env!("CARGO_TARGET_TMPDIR")).join("receiver-java");
    let built = Command::new("javac").args(["-Xlint", "-Werror", "-d"]).arg(&classes).arg(source(file)).status();
    assert!(built.unwrap().success(), "javac failed");
    Some(Language::new(file, "java", &["-cp", &classes.display().to_string(), "Receiver"]).forgetful())
}

fn source(file: &str) -> String {
    installed(&format!("docs/receivers/{file}")).display().to_string()
}

/// A path of the project, which must be there.
pub fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    assert!(path.exists(), "{} is missing; run `make setup`", path.display());
    path
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8([output.stdout, output.stderr].concat()).ok()
}

fn must_say(program: &str, arguments: &[&str], word: &str) {
    let is_there = said(program, arguments).is_some_and(|text| text.contains(word));
    assert!(is_there, "{program} is missing, or has not all that its receiver needs; run `make setup`");
}

fn number_behind(text: &str, mark: &str) -> Option<u32> {
    let rest = text.split_once(mark)?.1;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Past the harness, which keeps what a passing test prints.
fn missing(file: &str, what: &str) -> Option<Language> {
    assert!(std::env::var_os(ALL).is_none(), "{what} is missing; run `deploy/setup-runtimes`");
    let line = format!("SKIPPED: docs/receivers/{file}: {what} is missing; `deploy/setup-runtimes` installs it\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

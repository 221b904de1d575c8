//! Asks for what only a build knows, for `herald_build_info`: which compiler made the program and, in a release build from a
//! checkout, of which revision. What cannot be found out is left out, and the build goes on.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let compiler = env::var("RUSTC").ok().and_then(|rustc| answer(&rustc, &["--version"]));
    if let Some(version) = compiler.as_deref().and_then(|says| says.strip_prefix("rustc ")) {
        println!("cargo::rustc-env=BUILD_RUSTC={version}");
    }
    // It would have everything compiled again after each commit. Nobody deploys a build for tests.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release")
        && let Some(revision) = answer("git", &["rev-parse", "--short=12", "HEAD"])
        && let Some(log) = answer("git", &["rev-parse", "--git-path", "logs/HEAD"])
        // Whatever moves HEAD, a commit or a checkout, is written there. Without it nothing tells when this is out of date.
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
        println!("cargo::rustc-env=BUILD_REVISION={revision}");
    }
}

/// The first line that a program answers with, if it can be asked and has no complaint.
fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_owned)
}

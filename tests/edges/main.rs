//! Herald's edges, on the real program: how it reaches Redis by TLS, and how it is reached.

mod api_tls;
mod client_certificates;
mod ed25519;
mod egress;
mod proxies;
mod redis_tls;
mod roles;

#[path = "../support/merchants.rs"]
mod merchants;
#[path = "../support/herald.rs"]
mod process;
#[path = "../receiver/mod.rs"]
mod receiver;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/world.rs"]
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use receiver::Authority;

/// Certificates and keys of several parties, as files of one folder.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        replace(&self.path(name), text);
        self.path(name)
    }

    /// `NAME.pem` and `NAME.key` of somebody called `host`.
    fn identity(&self, authority: &Authority, name: &str, host: &str) {
        let (certificate, key) = authority.certificate(host);
        self.write(&format!("{name}.pem"), &certificate);
        self.write(&format!("{name}.key"), &key);
    }
}

/// As an operator does it: nobody sees half a file.
fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(&fresh, path).unwrap();
}

/// A verb, with nothing of the tester's own environment.
fn herald(args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.args(args).env_clear().env("HERALD_HISTORY_URL", "").envs(env.iter().copied()).stdin(Stdio::null());
    command
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

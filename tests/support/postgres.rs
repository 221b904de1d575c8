//! A PostgreSQL of a test's own, in a folder of its own on a free port of this machine. It ends with this value.
#![allow(clippy::disallowed_methods)]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid, User},
};
use tempfile::TempDir;

use crate::support::until;

/// Debian keeps each version's programs in a folder that is on nobody's path.
const FOLDERS: &str = "/usr/lib/postgresql";

pub struct Postgres {
    programs: PathBuf,
    folder: TempDir,
    port: u16,
    server: Child,
}

impl Postgres {
    pub async fn start() -> Self {
        let programs = newest().expect("PostgreSQL is installed: deploy/setup-verifiers");
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        // It refuses to be root's.
        if Uid::effective().is_root() {
            let user = User::from_name("postgres").unwrap().expect("Debian's package makes this user");
            chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let options = ["--auth=trust", "--username=herald", "--no-sync", "--encoding=UTF8", "--no-locale"];
        let mut made = program(&programs.join("initdb"));
        let made = made.arg("-D").arg(&data).args(options).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = serve(&programs, &data, port);
        let mut postgres = Self { programs, folder, port, server };
        postgres.until_it_answers().await;
        postgres
    }

    pub fn url(&self) -> String {
        format!("postgres://herald@127.0.0.1:{}/postgres", self.port)
    }

    /// As a machine stops that loses its power.
    pub fn stop(&mut self) {
        signal(&self.server, Signal::SIGQUIT);
        self.server.wait().unwrap();
    }

    pub async fn start_again(&mut self) {
        self.server = serve(&self.programs, &self.folder.path().join("data"), self.port);
        self.until_it_answers().await;
    }

    async fn until_it_answers(&mut self) {
        let program = self.programs.join("pg_isready");
        let port = self.port.to_string();
        until("PostgreSQL to answer", async || {
            let mut ask = Command::new(&program);
            ask.args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success()
        })
        .await;
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.server.try_wait().is_ok_and(|ended| ended.is_none()) {
            signal(&self.server, Signal::SIGQUIT);
            let _ = self.server.wait();
        }
    }
}

fn signal(server: &Child, signal: Signal) {
    kill(Pid::from_raw(server.id().try_into().unwrap()), signal).unwrap();
}

fn serve(programs: &Path, data: &Path, port: u16) -> Child {
    let mut command = program(&programs.join("postgres"));
    command.arg("-D").arg(data).args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", "", "-F"]);
    command.args(["-c", "shared_buffers=32MB", "-c", "log_min_messages=fatal"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// As somebody who is not root; the process is the program itself.
fn program(path: &Path) -> Command {
    if !Uid::effective().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(path).current_dir("/");
    command
}

/// The programs of the newest version that is there.
fn newest() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(FOLDERS)
        .ok()?
        .filter_map(|entry| entry.ok())
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, path)| path.join("initdb").exists() && path.join("postgres").exists())
        .collect();
    found.sort();
    found.pop().map(|(_, path)| path)
}

//! What a supervisor is told: the socket of a unit of `Type=notify`, with this test as systemd.

use std::{fs, io, os::unix::net::UnixDatagram, time::Duration};

use nix::{
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use crate::{
    process::{Herald, Setup},
    support::{SAFETY, TestRedis, until},
};

/// Of the unit; Herald feeds it four times in it.
const WATCHDOG: Duration = Duration::from_secs(2);

struct Supervisor {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Supervisor {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        Self { socket, folder }
    }

    fn start(&self, redis: &TestRedis) -> Herald {
        self.start_with(redis, |setup| setup)
    }

    fn start_with(&self, redis: &TestRedis, more: impl FnOnce(Setup) -> Setup) -> Herald {
        let socket = self.folder.path().join("notify").display().to_string();
        let setup = Setup::new(&redis.url()).env("NOTIFY_SOCKET", &socket);
        more(setup.env("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string())).start()
    }

    /// The lines of the next message, if one comes within so long.
    fn within(&self, long: Duration) -> Option<Vec<String>> {
        self.socket.set_read_timeout(Some(long)).unwrap();
        let mut message = [0; 4096];
        match self.socket.recv(&mut message) {
            Ok(length) => Some(String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// All lines until one that begins so.
    #[track_caller]
    fn until_told(&self, line: &str) -> Vec<String> {
        let mut told = Vec::new();
        while !told.iter().any(|told: &String| told.starts_with(line)) {
            // The watchdog is fed on and on, twice a second.
            assert!(told.len() < 200, "{line} was not told, but {told:?}");
            told.extend(self.within(SAFETY).unwrap_or_else(|| panic!("{line} was not told, but {told:?}")));
        }
        told
    }
}

/// A thread that does nothing, while all others of its process go on: `SIGSTOP` would stop them too.
struct Frozen(Pid);

impl Frozen {
    /// Of the process' threads all that have this name.
    fn all(herald: &Herald, name: &str) -> Vec<Self> {
        let mut frozen = Vec::new();
        for task in fs::read_dir(format!("/proc/{}/task", herald.pid())).unwrap() {
            let task = task.unwrap();
            if fs::read_to_string(task.path().join("comm")).unwrap().trim() == name {
                let thread = Pid::from_raw(task.file_name().to_str().unwrap().parse().unwrap());
                ptrace::seize(thread, ptrace::Options::empty()).unwrap();
                ptrace::interrupt(thread).unwrap();
                waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
                frozen.push(Self(thread));
            }
        }
        assert!(!frozen.is_empty(), "no thread is called {name}");
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Its process may be gone.
        let _ = ptrace::detach(self.0, None);
    }
}

#[tokio::test]
async fn a_unit_is_told_that_herald_is_up_how_it_is_that_it_lives_and_that_it_stops() {
    let redis = TestRedis::start().await;
    let supervisor = Supervisor::new();
    let herald = supervisor.start(&redis);
    supervisor.until_told("READY=1");
    let told = supervisor.until_told("WATCHDOG=1");
    assert!(!told.contains(&"READY=1".to_owned()), "once is enough: {told:?}");
    supervisor.until_told("WATCHDOG=1");
    until("ready", async || herald.get("/readyz").is_some_and(|(status, _)| status == 200)).await;
    assert!(herald.stop().await.success());
    let told = supervisor.until_told("STATUS=stopping");
    assert!(told.contains(&"STOPPING=1".to_owned()), "{told:?}");
}

#[tokio::test]
async fn a_reload_is_told_with_its_time_and_ends_once_the_new_keys_are_taken() {
    let redis = TestRedis::start().await;
    let supervisor = Supervisor::new();
    let keys = supervisor.folder.path().join("keys");
    let ring = |key: u8| format!("{}\n", *herald::facts::sealing::key_line(&[key; 32]));
    fs::write(&keys, ring(1)).unwrap();
    let herald = supervisor.start_with(&redis, |setup| setup.env("HERALD_MASTER_KEY_FILE", keys.to_str().unwrap()));
    supervisor.until_told("STATUS=ready");
    let fresh = supervisor.folder.path().join("fresh");
    for (text, says) in [(ring(2), "took the new keys"), ("no key\n".to_owned(), "cannot take the new keys")] {
        fs::write(&fresh, text).unwrap();
        fs::rename(&fresh, &keys).unwrap();
        herald.signal(Signal::SIGHUP);
        let told = supervisor.until_told("RELOADING=1");
        let (before, reloading) = told.split_at(told.iter().position(|line| line == "RELOADING=1").unwrap());
        assert!(!before.contains(&"READY=1".to_owned()), "{told:?}");
        let at = reloading.get(1).and_then(|line| line.strip_prefix("MONOTONIC_USEC="));
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let now: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        // It counts in hundredths of a second.
        assert!(
            at.is_some_and(|at| (0.1..=now + 0.01).contains(&(at.parse::<f64>().unwrap() / 1e6))),
            "{told:?} at {now}"
        );
        supervisor.until_told("READY=1");
        herald.until_log(says).await;
    }
    assert!(herald.stop().await.success(), "it goes on with the keys that it had");
}

/// It is the worker's own loop that has to run, and the runtime of all the rest: either alone is no sign of life.
#[tokio::test]
async fn the_watchdog_gets_nothing_while_the_worker_or_the_runtime_is_stuck() {
    let redis = TestRedis::start().await;
    let supervisor = Supervisor::new();
    let herald = supervisor.start(&redis);
    supervisor.until_told("STATUS=ready");
    supervisor.until_told("WATCHDOG=1");

    let worker = Frozen::all(&herald, "worker");
    supervisor.until_told("STATUS=not ready: the worker's thread hangs");
    // It ends also if it is fed on and on.
    let told: Vec<_> = std::iter::from_fn(|| supervisor.within(WATCHDOG)).take(8).flatten().collect();
    assert!(!told.contains(&"WATCHDOG=1".to_owned()), "{told:?}");
    assert_eq!(herald.get("/healthz").map(|(status, _)| status), Some(200), "everything else goes on");
    drop(worker);
    supervisor.until_told("STATUS=ready");
    supervisor.until_told("WATCHDOG=1");

    let runtime = Frozen::all(&herald, "tokio-rt-worker");
    // What had been told before.
    supervisor.socket.set_nonblocking(true).unwrap();
    while supervisor.socket.recv(&mut [0; 4096]).is_ok() {}
    supervisor.socket.set_nonblocking(false).unwrap();
    assert_eq!(supervisor.within(WATCHDOG), None);
    assert_eq!(herald.get("/readyz").map(|(status, _)| status), Some(200), "the worker goes on");
    drop(runtime);
    supervisor.until_told("WATCHDOG=1");
    assert!(herald.stop().await.success());
}

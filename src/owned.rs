//! Processes that Herald's tools start and own: a scratch Redis, workers under load. They end with their owner, however
//! it ends. Never touches a process that it did not start.

mod cluster;
mod redis;
mod sentinels;

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill, killpg},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::{Pid, SysconfVar, getppid, sysconf},
};
use tokio::process::{Child, Command};

pub use self::cluster::{MASTERS, OwnCluster};
pub use self::redis::{Directive, OwnRedis};
pub use self::sentinels::OwnSentinels;

/// Between two looks at whether one says what is waited for.
const POLL: Duration = Duration::from_millis(20);

/// A process in a group of its own, so that Ctrl-C in a terminal reaches its owner alone. Dropped, it is killed and has ended
/// before the drop returns.
pub struct Owned {
    child: Child,
    pid: Pid,
}

impl Owned {
    /// The kernel kills the child when the *thread* that calls this ends, so that not even a killed owner leaves it
    /// behind: call it from `main`'s thread or from a task, never from `spawn_blocking`.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let owner = Pid::this();
        let end_with_owner = move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The owner may have ended before the kernel was asked.
            match getppid() == owner {
                true => Ok(()),
                false => Err(io::ErrorKind::Interrupted.into()),
            }
        };
        // SAFETY: between fork and exec only two system calls are made; nothing is allocated and no lock is taken.
        unsafe { command.pre_exec(end_with_owner) };
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        // Only a child that was waited for has no id.
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, pid: pid.ok_or(io::ErrorKind::NotFound)? })
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Does nothing to a process that has ended: its id may be another's by now.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        match self.ended()? {
            Some(_) => Ok(()),
            None => Ok(kill(self.pid, signal)?),
        }
    }

    /// SIGTERM, and its end.
    pub async fn stop(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.child.wait().await.map(drop)
    }

    /// SIGKILL, which ends a stopped process as well, and its end.
    pub async fn kill(&mut self) -> io::Result<()> {
        self.kill_group();
        self.child.kill().await
    }

    /// Also kills what it has forked: a Redis that rewrites its file would go on writing into a folder that is being
    /// removed.
    fn kill_group(&mut self) {
        if let Ok(None) = self.ended() {
            // It may end just now.
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
    }

    /// What it has used so far; zero once it has ended.
    pub fn usage(&self) -> Usage {
        Usage::of(self.pid)
    }

    /// The processor time of its threads that have such names.
    pub fn cpu_of_threads(&self, is_wanted: impl Fn(&str) -> bool) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let stat = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("stat")).ok();
        let name = |stat: &str| stat.split_once('(')?.1.rsplit_once(')').map(|(name, _)| name.to_owned());
        let stats = threads.filter_map(stat).filter(|stat| name(stat).is_some_and(|name| is_wanted(&name)));
        stats.map(|stat| cpu(&stat, ticks_per_second())).sum()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.kill_group();
        if let Ok(None) = self.ended() {
            // Whoever waits for it besides, as the runtime may, finds it as it is.
            let _ = waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        }
    }
}

/// Processor time and the highest resident memory of one process.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    pub cpu: Duration,
    pub peak_rss_bytes: u64,
}

impl Usage {
    pub fn of_this_process() -> Self {
        Self::of(Pid::this())
    }

    /// Zero for one that has ended.
    pub fn of(pid: Pid) -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        Self { cpu: cpu(&read("stat"), ticks_per_second()), peak_rss_bytes: peak_rss(&read("status")) }
    }
}

/// `/proc/PID/stat`: user and system time are the 14th and 15th field, in ticks. The second is the program's name in
/// brackets, which may hold anything.
fn cpu(stat: &str, ticks_per_second: f64) -> Duration {
    let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_secs_f64(ticks as f64 / ticks_per_second)
}

fn peak_rss(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// 100 on every Linux today.
fn ticks_per_second() -> f64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|ticks| *ticks > 0).unwrap_or(100) as f64
}

/// A port that nobody listens on now. Somebody may take it before it is used: then the start fails and says so.
pub fn free_port() -> Result<u16> {
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut candidates = (0..PORT_TRIES).map(|_| rand::random_range(OWN_PORTS));
    candidates.find(is_free).context("no port of this machine is free")
}

/// Below the ports that Linux gives to connections by default: one of these could take the port while its server is
/// down, and a connection to a port of its own range can even end up connected to itself.
const OWN_PORTS: std::ops::Range<u16> = 10_000..32_000;

const PORT_TRIES: usize = 100;

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    #[test]
    fn a_programs_name_does_not_shift_its_times() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 100 1 1";
        assert_eq!(cpu(stat, 100.0), Duration::from_secs(2));
        assert_eq!(cpu("", 100.0), Duration::ZERO);
        assert_eq!(peak_rss("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), 2 << 20);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(Usage::of_this_process().peak_rss_bytes > 1 << 20);
    }

    #[tokio::test]
    async fn one_that_is_dropped_is_gone_and_so_is_what_it_has_forked() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo $!; wait"]).stdout(Stdio::piped());
        let mut owned = Owned::spawn(&mut command).unwrap();
        let mut said = BufReader::new(owned.child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).await.unwrap();
        let both = [owned.pid(), Pid::from_raw(line.trim().parse().unwrap())];
        assert!(both.iter().all(runs));
        drop(owned);
        assert!(!runs(&both[0]));
        while runs(&both[1]) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Neither gone nor a zombie: a process whose parent has ended may stay a zombie where nobody waits for orphans.
    fn runs(pid: &Pid) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }
}

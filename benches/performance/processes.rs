//! What is measured, as real processes: a Redis of the bench's own, Herald, the receiver and the bare loop. They end with
//! the bench.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use herald::{
    facts::{id::AccountId, partition::Split},
    owned::{Directive, OwnRedis, Usage, free_port},
};
use nix::unistd::Pid;
use tokio::runtime::Runtime;

use crate::events::Event;

/// Commands of one pipeline: enough to hide the round trip, little enough for both buffers.
const PIPELINE: usize = 1_000;

/// A child that ends with its owner.
pub struct Process(Child);

impl Process {
    fn spawn(command: &mut Command, what: &str) -> Result<Self> {
        command.spawn().map(Self).with_context(|| format!("cannot start {what}"))
    }

    /// Processor time so far, in seconds: its own, and the kernel's on its behalf.
    pub fn cpu_s(&self) -> f64 {
        self.usage().cpu.as_secs_f64()
    }

    /// The most memory that it ever had resident.
    pub fn peak_bytes(&self) -> u64 {
        self.usage().peak_rss_bytes
    }

    fn usage(&self) -> Usage {
        Usage::of(self.pid())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().try_into().expect("a process id fits"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Redis {
    server: OwnRedis,
    /// Whatever waits for the server; it outlives it.
    _runtime: Runtime,
}

impl Redis {
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    pub fn start_with(directives: &[Directive]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Rewriting the file is another process' work, now and then: it would hit one round and not the other.
        let directives = [&[("auto-aof-rewrite-percentage", "0")], directives].concat();
        let server = runtime.block_on(OwnRedis::start_with(&directives))?;
        Ok(Self { server, _runtime: runtime })
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// As [`Process::cpu_s`].
    pub fn cpu_s(&self) -> f64 {
        self.server.usage().cpu.as_secs_f64()
    }

    pub fn producer(&self) -> Result<Producer> {
        let stream = TcpStream::connect(self.server.address())?;
        stream.set_nodelay(true)?;
        Ok(Producer { answers: BufReader::new(stream.try_clone()?), stream, asked: 0, buffer: Vec::new(), split: None })
    }
}

/// Adds events by raw, pipelined `XADD`.
pub struct Producer {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
    buffer: Vec<u8>,
    asked: usize,
    /// Into the parts of the stream, where it is split.
    split: Option<Split>,
}

impl Producer {
    /// Has the stream be routed into so many parts, as Herald does with a new one.
    pub fn split(&mut self, parts: u32) -> Result<()> {
        let mode = format!("routed {parts} bench 0-0");
        self.command(&["SET", "herald:{payment-intents}:mode", &mode])?;
        self.command(&["HSET", "herald:{herald}:partitions", "payment-intents", &parts.to_string()])?;
        self.split = Some(Split::new("payment-intents", &[parts])?);
        Ok(())
    }

    fn command(&mut self, words: &[&str]) -> Result<()> {
        self.words(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
        self.stream.write_all(&self.buffer)?;
        self.buffer.clear();
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line.starts_with(['+', ':']), "Redis refused to split the stream: {}", line.trim());
        Ok(())
    }

    pub fn add_all(&mut self, events: impl Iterator<Item = Event>) -> Result<()> {
        for event in events {
            self.write(&event);
            if self.asked == PIPELINE {
                self.flush()?;
            }
        }
        self.flush()
    }

    pub fn add(&mut self, event: &Event) -> Result<()> {
        self.send(event)?;
        self.flush()
    }

    /// Does not wait for the answer, as one of many producers would not: [`Producer::flush`] waits for all of them.
    pub fn send(&mut self, event: &Event) -> Result<()> {
        self.write(event);
        self.stream.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn write(&mut self, event: &Event) {
        let account = || AccountId::new(&event.account).expect("an account of this bench");
        let stream = self.split.as_ref().map(|split| split.stream_of(&account()));
        let stream = stream.as_deref().unwrap_or("payment-intents");
        self.words(&[b"XADD", stream.as_bytes(), b"*", b"event", &event.body]);
        self.asked += 1;
    }

    fn words(&mut self, words: &[&[u8]]) {
        self.buffer.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.buffer.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            self.buffer.extend_from_slice(word);
            self.buffer.extend_from_slice(b"\r\n");
        }
    }

    pub fn flush(&mut self) -> Result<()> {
        self.stream.write_all(&self.buffer)?;
        self.buffer.clear();
        let mut line = String::new();
        // Each answer is an id: its length and the id itself.
        for _ in 0..2 * std::mem::take(&mut self.asked) {
            line.clear();
            self.answers.read_line(&mut line)?;
            ensure!(!line.starts_with('-') && !line.is_empty(), "Redis refused an event: {}", line.trim());
        }
        Ok(())
    }
}

pub struct Receiver {
    pub process: Process,
    port: u16,
    secure_port: u16,
    pub ca_file: std::path::PathBuf,
    _input: ChildStdin,
}

/// The thread with this number takes the processor from nobody.
#[allow(dead_code, reason = "one of the two benches has receivers in its own process")]
pub fn stand_back(thread: i32) -> Result<()> {
    schedule(&["--batch"], thread)
}

fn schedule(policy: &[&str], id: i32) -> Result<()> {
    let id = id.to_string();
    let mut command = Command::new("chrt");
    let status = command.args(policy).args(["--pid", "0", &id]).stdout(Stdio::null()).status();
    let status = status.context("cannot run chrt; install util-linux")?;
    ensure!(status.success(), "chrt could not change how a receiver is scheduled");
    Ok(())
}

impl Receiver {
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_with(folder, &[])
    }

    /// With these arguments after its name.
    pub fn start_with(folder: &Path, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("receiver").args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command, "the receiver")?;
        let input = process.0.stdin.take().context("the receiver has no input")?;
        let mut lines = BufReader::new(process.0.stdout.take().context("the receiver has no output")?).lines();
        let ports = lines.next().context("the receiver did not start")??;
        let (port, secure_port) = ports.split_once(' ').context("the receiver's ports are missing")?;
        let pem: Vec<String> = lines.map_while(Result::ok).take_while(|line| line != ".").collect();
        let ca_file = folder.join("receiver.pem");
        fs::write(&ca_file, pem.join("\n"))?;
        let (port, secure_port) = (port.parse()?, secure_port.parse()?);
        Ok(Self { process, port, secure_port, ca_file, _input: input })
    }

    /// From now on it takes the processor from nobody, as if it were on another machine: it runs when a core is free or
    /// has run something else for its time (`SCHED_BATCH`). Otherwise, where Herald, Redis and the receiver share few
    /// cores, its waking keeps throwing the sender off its own core.
    pub fn stand_back(&self) -> Result<()> {
        schedule(&["--all-tasks", "--batch"], self.process.pid().as_raw())
    }

    /// It answers as soon as it can, as at the beginning.
    pub fn step_forward(&self) -> Result<()> {
        schedule(&["--all-tasks", "--other"], self.process.pid().as_raw())
    }

    pub fn url(&self, scheme: Scheme) -> String {
        match scheme {
            Scheme::Http => format!("http://127.0.0.1:{}", self.port),
            Scheme::Https => format!("https://127.0.0.1:{}", self.secure_port),
        }
    }

    pub fn count(&self) -> Result<u64> {
        Ok(ask(self.port, "/count")?.parse()?)
    }

    /// How many, p50, p99 and the longest in microseconds, since the last call.
    pub fn latency(&self) -> Result<[u64; 4]> {
        let text = ask(self.port, "/latency")?;
        let numbers: Vec<u64> = text.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        numbers.try_into().ok().context("the receiver's answer is malformed")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

pub struct Herald {
    pub process: Process,
}

impl Herald {
    /// `settings` are further variables of its environment.
    pub fn start(
        program: &Path,
        redis: &Redis,
        receiver: &Receiver,
        folder: &Path,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let port = free_port()?;
        let config = folder.join("herald.toml");
        fs::write(&config, format!("[attempt]\nca_file = {:?}\n", receiver.ca_file))?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HERALD_HISTORY_URL", "")
            .env("HERALD_CONFIG", &config);
        command.env("HERALD_REDIS_URL", redis.url()).env("HERALD_LISTEN", format!("127.0.0.1:{port}"));
        command.env("HERALD_ALLOW_HTTP", "true").env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8");
        command.envs(settings.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(folder.join("herald.log"))?);
        Ok(Self { process: Process::spawn(&mut command, "herald")? })
    }
}

pub struct Bare {
    pub process: Process,
    output: BufReader<std::process::ChildStdout>,
    _input: ChildStdin,
}

impl Bare {
    /// `job` is its command line.
    pub fn start(receiver: &Receiver, scheme: Scheme, job: &[String]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(job);
        if scheme == Scheme::Https {
            command.arg("--ca-file").arg(&receiver.ca_file);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command, "the bare loop")?;
        let input = process.0.stdin.take().context("the loop has no input")?;
        let output = BufReader::new(process.0.stdout.take().context("the loop has no output")?);
        Ok(Self { process, output, _input: input })
    }

    pub fn wait(&mut self) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim() == "done", "the bare loop failed");
        Ok(())
    }
}

/// Asks again and again, but seldom enough not to affect the measurement.
#[expect(clippy::disallowed_methods, reason = "the bench waits for other processes and has nothing else to do")]
pub fn wait_for(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + limit;
    while !is_so() {
        if Instant::now() > end {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn ask(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has no end")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
    Ok(body.to_owned())
}

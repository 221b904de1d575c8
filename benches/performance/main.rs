//! `make bench`: Herald draining, compared with a bare loop that signs and posts the same bytes and does nothing else;
//! in turns, on one machine, against one receiver. Reports what each costs per delivery, how fast it is, and how much
//! memory it takes.
//!
//! Every part is a process of its own, so that the kernel's accounting is the measure: Redis (append-only file, fsynced
//! every second), `herald serve` as built, the receiver and the loop. Read `processes` for how they are started,
//! `receiver` and `bare` for what they do, `events` for what is delivered, `table` for what is shown.

mod bare;
mod events;
mod goodput;
mod marks;
mod processes;
mod receiver;
mod table;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Parser;
use herald::{
    clock,
    facts::{
        endpoint::{Endpoint, Mark},
        id::{AccountId, EndpointId},
        signing::SecretText,
    },
    keyring::Keyring,
    store::{connection::Redis as Client, registry::RegistryStore},
    surface::words::{rate, time, time_us},
};

use self::{
    events::Lives,
    processes::{Bare, Herald, Process, Receiver, Redis, Scheme, wait_for},
    table::{Drain, Latency, Results, Who},
};

/// Herald's allocator, so that the loop is not slower because of its own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Counting begins when this part of the whole has been delivered, so that starting up does not count.
const WARM_UP: u64 = 10;

/// A drain that takes longer is stuck.
const DRAIN: Duration = Duration::from_secs(600);

/// Numbers of requests in flight that the loop is tried with, to find the best for it.
const CONCURRENCIES: [usize; 4] = [16, 64, 256, 1024];

#[derive(Parser, Clone)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// Rounds; each has the loops and then Herald, and the median of them counts
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Deliveries of each in a round
    #[arg(long, default_value_t = 150_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    deliveries: u64,
    /// Endpoints, each of an account of its own
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    endpoints: u64,
    /// Seconds of each round at 1 000 events a second, for the latency; 0 leaves it out
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=600))]
    latency_seconds: u64,
    /// Seconds of the load whose receivers fail now and then, for their goodput; 0 leaves it out
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(0..=600))]
    goodput_seconds: u64,
    /// Let the receiver take the processor from others during a drain
    #[arg(long)]
    eager_receiver: bool,
    /// Leave HTTPS out
    #[arg(long)]
    no_https: bool,
    /// Leave the bare loop out
    #[arg(long)]
    no_loop: bool,
    /// Leave the drain to one endpoint alone out
    #[arg(long)]
    no_single: bool,
    /// Measure another build of Herald
    #[arg(long, default_value = env!("CARGO_BIN_EXE_herald"))]
    herald: PathBuf,
    /// Measure a second build in the same rounds, such as the one before a change
    #[arg(long)]
    beside: Option<PathBuf>,
    /// In the second one, which is the same build unless --beside names another, all secrets are sealed
    #[arg(long)]
    beside_sealed: bool,
    /// Measure Herald with so many partitions in one process, too: 8,64
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(2..=1_024))]
    partitions: Vec<u32>,
    /// Write the table into this file, between its two lines `<!-- bench -->`
    #[arg(long)]
    write: Option<PathBuf>,
    /// What `cargo bench` hands to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(clap::Subcommand, Clone)]
enum Role {
    /// The receiver, as a process of its own
    Receiver,
    /// The bare loop, as a process of its own
    Bare(bare::BareArgs),
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.role {
        Some(Role::Receiver) => receiver::run(false),
        Some(Role::Bare(args)) => bare::run(args),
        None => measure(&args),
    }
}

/// The command line of a loop.
fn bare_args(target: &str, endpoints: usize, deliveries: u64, lines: usize, who: Who) -> Vec<String> {
    let numbers = [("--endpoints", endpoints as u64), ("--deliveries", deliveries), ("--concurrency", lines as u64)];
    let numbers = numbers.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_string()]);
    let below = (who == Who::LoopBelow).then(|| "--hyper".to_owned());
    ["bare".to_owned(), target.to_owned()].into_iter().chain(numbers).chain(below).collect()
}

fn measure(args: &Args) -> Result<()> {
    let lines = if args.no_loop { 0 } else { best_concurrency(args)? };
    let mut results = Results::new(args.deliveries, args.endpoints, lines, args.eager_receiver);
    for round in 1..=args.rounds {
        for scheme in [Scheme::Http, Scheme::Https] {
            if scheme == Scheme::Https && args.no_https {
                continue;
            }
            let folder = tempfile::TempDir::with_prefix("herald-bench-")?;
            let loops: &[Who] = match scheme {
                _ if args.no_loop => &[],
                Scheme::Http => &[Who::Loop, Who::Loops, Who::LoopBelow],
                Scheme::Https => &[Who::Loop],
            };
            for who in loops {
                let drain = loop_drain(args, scheme, lines, *who, folder.path())?;
                say(round, *who, scheme, &drain);
                results.add(*who, scheme, drain);
            }
            // Who goes first finds another machine than who goes second, so they take turns at that too.
            if round % 2 == 0 {
                beside(args, round, scheme, &mut results)?;
            }
            if round % 2 == 0 {
                with_partitions(args, round, scheme, &mut results)?;
            }
            let (drain, latency) = herald_drain(args, scheme, args.endpoints, 1, Secrets::Plain, folder.path())?;
            say(round, Who::Herald, scheme, &drain);
            results.add(Who::Herald, scheme, drain);
            if let Some(latency) = latency {
                eprintln!("  p50 {}, p99 {} at 1 000/s", time_us(latency.p50_us), time_us(latency.p99_us));
                results.add_latency(latency);
            }
            if round % 2 == 1 {
                beside(args, round, scheme, &mut results)?;
                with_partitions(args, round, scheme, &mut results)?;
            }
            if scheme == Scheme::Http && args.endpoints > 1 && !args.no_single {
                let folder = tempfile::TempDir::with_prefix("herald-bench-")?;
                let args = Args { latency_seconds: 0, ..args.clone() };
                let (drain, _) = herald_drain(&args, scheme, 1, 1, Secrets::Plain, folder.path())?;
                say(round, Who::HeraldToOne, scheme, &drain);
                results.add(Who::HeraldToOne, scheme, drain);
            }
        }
    }
    let mut table = results.table()?;
    if args.goodput_seconds > 0 {
        eprintln!("goodput of receivers that fail now and then");
        let all = goodput::measure(&args.herald, args.goodput_seconds)?;
        table = format!("{table}\n\n{}", goodput::table(&all, args.goodput_seconds));
    }
    println!("{table}");
    match &args.write {
        Some(path) => marks::write_between(path, "<!-- bench -->", &table),
        None => Ok(()),
    }
}

/// The second build, if one is asked for.
fn beside(args: &Args, round: u32, scheme: Scheme, results: &mut Results) -> Result<()> {
    if args.beside.is_none() && !args.beside_sealed {
        return Ok(());
    }
    let folder = tempfile::TempDir::with_prefix("herald-bench-")?;
    let herald = args.beside.as_ref().unwrap_or(&args.herald).clone();
    let secrets = if args.beside_sealed { Secrets::Sealed } else { Secrets::Plain };
    let asked = Args { latency_seconds: 0, herald, ..args.clone() };
    let (drain, _) = herald_drain(&asked, scheme, args.endpoints, 1, secrets, folder.path())?;
    say(round, Who::Beside, scheme, &drain);
    results.add(Who::Beside, scheme, drain);
    Ok(())
}

/// The same events in the parts of a stream, one process having all of them.
fn with_partitions(args: &Args, round: u32, scheme: Scheme, results: &mut Results) -> Result<()> {
    let asked = Args { latency_seconds: 0, ..args.clone() };
    for parts in &args.partitions {
        let folder = tempfile::TempDir::with_prefix("herald-bench-")?;
        let (drain, _) = herald_drain(&asked, scheme, args.endpoints, *parts, Secrets::Plain, folder.path())?;
        let who = Who::HeraldInParts(*parts);
        say(round, who, scheme, &drain);
        results.add(who, scheme, drain);
    }
    Ok(())
}

fn say(round: u32, who: Who, scheme: Scheme, drain: &Drain) {
    let who = who.name();
    let [cpu, redis, receiver] = [drain.cpu_us, drain.redis_us, drain.receiver_us].map(time);
    eprintln!(
        "round {round}, {scheme:?}: {who} {}; a delivery: {cpu}, Redis {redis}, receiver {receiver}",
        rate(drain.rate)
    );
}

/// The number with which the loop costs least, because Herald's cost is compared with the loop's.
fn best_concurrency(args: &Args) -> Result<usize> {
    let mut best = (f64::INFINITY, CONCURRENCIES[0]);
    for lines in CONCURRENCIES {
        let folder = tempfile::TempDir::with_prefix("herald-bench-")?;
        let drain = loop_drain(args, Scheme::Http, lines, Who::Loop, folder.path())?;
        eprintln!("the bare loop with {lines} in flight: {}, {} each", rate(drain.rate), time(drain.cpu_us));
        if drain.cpu_us < best.0 {
            best = (drain.cpu_us, lines);
        }
    }
    Ok(best.1)
}

/// Processor time and clock at one point of a drain.
struct Reading {
    at: Instant,
    count: u64,
    senders_s: f64,
    redis_s: f64,
    receiver_s: f64,
}

impl Reading {
    fn take(receiver: &Receiver, senders: &[&Process], redis: Option<&Redis>) -> Result<Self> {
        Ok(Self {
            at: clock::now(),
            count: receiver.count()?,
            senders_s: senders.iter().map(|sender| sender.cpu_s()).sum(),
            redis_s: redis.map_or(0.0, |redis| redis.cpu_s()),
            receiver_s: receiver.process.cpu_s(),
        })
    }

    /// What was spent since an earlier mark, per delivery.
    fn since(&self, earlier: &Self, senders: &[&Process]) -> Drain {
        let count = (self.count - earlier.count).max(1) as f64;
        let each_us = |of: fn(&Self) -> f64| (of(self) - of(earlier)) * 1e6 / count;
        Drain {
            rate: count / (self.at - earlier.at).as_secs_f64(),
            cpu_us: each_us(|reading| reading.senders_s),
            redis_us: each_us(|reading| reading.redis_s),
            receiver_us: each_us(|reading| reading.receiver_s),
            peak_bytes: senders.iter().map(|sender| sender.peak_bytes()).sum(),
        }
    }
}

fn until_count(receiver: &Receiver, least: u64) -> Result<()> {
    wait_for("the deliveries", DRAIN, || receiver.count().is_ok_and(|count| count >= least))
}

fn loop_drain(args: &Args, scheme: Scheme, lines: usize, who: Who, folder: &Path) -> Result<Drain> {
    let receiver = Receiver::start(folder)?;
    if !args.eager_receiver {
        receiver.stand_back()?;
    }
    let at_a_time = if who == Who::Loops { 2 } else { 1 };
    let job = bare_args(&receiver.url(scheme), args.endpoints as usize, args.deliveries / at_a_time, lines, who);
    let mut loops = (0..at_a_time).map(|_| Bare::start(&receiver, scheme, &job)).collect::<Result<Vec<_>>>()?;
    until_count(&receiver, args.deliveries / WARM_UP)?;
    let first = Reading::take(&receiver, &processes(&loops), None)?;
    loops.iter_mut().try_for_each(Bare::wait)?;
    let last = Reading::take(&receiver, &processes(&loops), None)?;
    Ok(last.since(&first, &processes(&loops)))
}

fn processes(loops: &[Bare]) -> Vec<&Process> {
    loops.iter().map(|one| &one.process).collect()
}

/// How the endpoints' secrets lie in Redis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrets {
    Plain,
    Sealed,
}

impl Secrets {
    /// The file with the key that seals them.
    fn key_file(self, folder: &Path) -> Result<Option<PathBuf>> {
        if self == Self::Plain {
            return Ok(None);
        }
        let path = folder.join("master-key");
        fs::write(&path, format!("hk1:{}\n", BASE64_STANDARD.encode([7; 32])))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Some(path))
    }
}

fn herald_drain(
    args: &Args,
    scheme: Scheme,
    endpoints: u64,
    parts: u32,
    secrets: Secrets,
    folder: &Path,
) -> Result<(Drain, Option<Latency>)> {
    let (redis, receiver) = (Redis::start()?, Receiver::start(folder)?);
    if !args.eager_receiver {
        receiver.stand_back()?;
    }
    let key_file = secrets.key_file(folder)?;
    register(&redis, &receiver.url(scheme), endpoints, Keyring::open(key_file.as_deref(), false)?)?;
    let key_file = key_file.as_deref().and_then(Path::to_str).map(|path| ("HERALD_MASTER_KEY_FILE", path));
    let mut producer = redis.producer()?;
    if parts > 1 {
        // As a stream is that was split when it was new: producers that know the parts write straight to them.
        producer.split(parts)?;
    }
    let mut lives = Lives::new(endpoints as usize, 2);
    producer.add_all(lives.by_ref().take(args.deliveries as usize))?;
    let herald = Herald::start(&args.herald, &redis, &receiver, folder, key_file.as_slice())?;
    let senders = [&herald.process];
    until_count(&receiver, args.deliveries / WARM_UP)?;
    let first = Reading::take(&receiver, &senders, Some(&redis))?;
    until_count(&receiver, args.deliveries)?;
    let last = Reading::take(&receiver, &senders, Some(&redis))?;
    let drain = last.since(&first, &senders);
    if args.latency_seconds == 0 || scheme == Scheme::Https {
        return Ok((drain, None));
    }
    receiver.step_forward()?;
    receiver.latency()?;
    let events = args.latency_seconds * 1_000;
    steady(&mut producer, &mut lives, events)?;
    until_count(&receiver, last.count + events)?;
    let [count, p50_us, p99_us, max_us] = receiver.latency()?;
    ensure!(count == events, "{count} of {events} events have a latency");
    Ok((drain, Some(Latency { p50_us, p99_us, max_us })))
}

/// An event every millisecond. Its id says when it should have been sent, so a late producer hides nothing.
#[expect(clippy::disallowed_methods, reason = "the producer has this thread for itself, and a timer of its own")]
fn steady(producer: &mut processes::Producer, lives: &mut Lives, events: u64) -> Result<()> {
    let start_us = receiver::now_us() + 10_000;
    for n in 0..events {
        let intended_us = start_us + n * 1_000;
        std::thread::sleep(Duration::from_micros(intended_us.saturating_sub(receiver::now_us())));
        producer.add(&lives.next_as(format!("evt_t{intended_us}_{n}")))?;
    }
    Ok(())
}

fn register(redis: &Redis, url: &str, endpoints: u64, keyring: Keyring) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut store = RegistryStore::connect(&Client::new(&redis.url())?.sealed_by(keyring)).await?;
        for at in 0..endpoints {
            let mark = Mark { by: "bench".to_owned(), why: "measured".to_owned(), at_ms: clock::wall_ms() };
            store.create(endpoint(at, url)?, &mark).await.context("cannot register an endpoint")?;
        }
        Ok(())
    })
}

fn endpoint(at: u64, url: &str) -> Result<Endpoint> {
    let (id, account) = (EndpointId::new(&format!("ep_{at}"))?, AccountId::new(&format!("acc_{at}"))?);
    let secret = SecretText::from_random([at as u8; 32]);
    Ok(Endpoint::new(id, account, format!("{url}/{at}"), secret, clock::wall_ms()))
}

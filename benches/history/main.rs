//! `make bench-history`: what the history of deliveries costs and how fast it answers. Herald as built follows a log into a
//! database, first one of many millions of lines over the last 30 days, then its own beside a drain; then it is asked.

mod receiver;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use herald::{
    clock,
    config::HistoryUrl,
    facts::{
        endpoint::{Endpoint, Mark},
        id::{AccountId, EndpointId, IntentId},
        signing::SecretText,
    },
    history::{Access, Database, Reader, Wanted},
    owned::{OwnRedis, Owned, free_port},
    store::registry::RegistryStore,
    surface::words::{bytes, number, rate, time},
};
use redis::aio::MultiplexedConnection;
use tokio::process::Command;

const STREAM: &str = "payment-intents";
const PREFIX: &str = "herald:{payment-intents}:";
const DAY_MS: u64 = 86_400_000;
const DAYS: u64 = 30;

/// Lines of one entry: what a busy worker settles at once.
const LINES: u64 = 250;

/// Lines that may wait in Redis while the log is made.
const AHEAD: u64 = 400_000;

/// How often each question is asked, of other intents each time.
const ASKED: u64 = 50;

#[derive(Parser)]
struct Args {
    /// Rows that the history is filled with
    #[arg(long, default_value_t = 2_000_000)]
    rows: u64,
    /// Events of each drain
    #[arg(long, default_value_t = 200_000)]
    events: u64,
    /// Events of each run at 4 000 a second
    #[arg(long, default_value_t = 60_000)]
    calm: u64,
    /// How often all of them are made, in turns
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Another database than a file of its own, such as postgres://…: it must be empty
    #[arg(long)]
    url: Option<String>,
    /// Where the file is
    #[arg(long)]
    folder: Option<PathBuf>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(run(args))
}

async fn run(args: Args) -> Result<()> {
    let folder = match &args.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let file = folder.path().join("history.db");
    let url = args.url.clone().unwrap_or_else(|| format!("sqlite:{}", file.display()));
    let place = url.split(':').next().unwrap_or_default().to_owned();
    println!("{place}, {} rows over {DAYS} days", number(args.rows));
    let filled = fill(&args, &url, folder.path()).await?;
    if args.url.is_none() {
        let size = fs::metadata(&file)?.len();
        println!("size: {}, {} a row", bytes(size), bytes(size / args.rows.max(1)));
    }
    ask(&args, &url).await?;
    for round in 1..=args.rounds {
        println!("round {round}:");
        for load in [Load::Calm(args.calm), Load::Backlog(args.events)] {
            deliver(load, "off", "", &OwnRedis::start().await?, folder.path()).await?;
            // A history goes with one Redis.
            deliver(load, &place, &url, &filled, folder.path()).await?;
        }
    }
    Ok(())
}

/// Herald with this history. It ends with the value.
fn herald(redis: &OwnRedis, url: &str, folder: &Path) -> Result<(Owned, u16)> {
    let port = free_port()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.arg("serve").env_clear().env("PATH", "/usr/bin:/bin").current_dir(folder);
    command.env("HERALD_REDIS_URL", redis.url()).env("HERALD_LISTEN", format!("127.0.0.1:{port}"));
    command.env("HERALD_ALLOW_HTTP", "true").env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8");
    command.env("HERALD_HISTORY_URL", url).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(fs::File::create(folder.join("herald.log"))?);
    Ok((Owned::spawn(&mut command)?, port))
}

async fn connection(redis: &OwnRedis) -> Result<MultiplexedConnection> {
    Ok(redis::Client::open(redis.url())?.get_multiplexed_async_connection().await?)
}

/// What a line of a delivery that went well looks like; `row` of them all, spread evenly over the last days.
fn line(row: u64, rows: u64, begin_ms: u64) -> String {
    let at_ms = begin_ms + row * (DAYS * DAY_MS) / rows;
    let (endpoint, account) = (row % 500, row % 200);
    format!(
        r#"["{at_ms}-{}:ep_3f1c9a7e50b84d2c{endpoint:06}","evt_8c1d0e5f7a2b4936{row:012}","{}","acc_5b7d{account:08}",1,{at_ms},4210,{{"kind":"delivered","status":200}},""]"#,
        row % 1_000,
        intent(row),
    )
}

/// An intent has three events.
fn intent(row: u64) -> String {
    format!("pi_6e0f2d4c8a1b{:014}", row / 3)
}

/// Writes a log as a worker does, and has Herald follow it. Returns the Redis that the history belongs to.
async fn fill(args: &Args, url: &str, folder: &Path) -> Result<OwnRedis> {
    let redis = OwnRedis::start().await?;
    let mut connection = connection(&redis).await?;
    let (mut herald, _) = herald(&redis, url, folder)?;
    let begin_ms = clock::wall_ms() - DAYS * DAY_MS;
    let (began, mut row, mut read) = (clock::now(), 0, 0);
    while read < args.rows {
        while row < args.rows && row < read + AHEAD {
            let mut pipeline = redis::pipe();
            for _ in 0..20 {
                let last = (row + LINES).min(args.rows);
                if last == row {
                    break;
                }
                let lines: Vec<String> = (row..last).map(|row| line(row, args.rows, begin_ms)).collect();
                row = last;
                pipeline
                    .cmd("XADD")
                    .arg(format!("{PREFIX}attempts"))
                    .arg(row)
                    .arg("lines")
                    .arg(lines.join("\n"))
                    .ignore();
            }
            pipeline.cmd("HSET").arg(format!("{PREFIX}stats")).arg("log-lines").arg(row).ignore();
            pipeline.query_async::<()>(&mut connection).await?;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        read = position(&mut connection).await?;
        let trim = redis::cmd("XTRIM").arg(format!("{PREFIX}attempts")).arg("MINID").arg(read).to_owned();
        trim.query_async::<u64>(&mut connection).await?;
        ensure!(began.elapsed() < Duration::from_secs(4 * 3_600), "it does not come to an end: {}", folder.display());
    }
    let took = began.elapsed().as_secs_f64();
    let cpu = herald.usage().cpu.as_secs_f64() * 1e6 / args.rows as f64;
    println!("written: {}, {} of processor time a row", rate(args.rows as f64 / took), time(cpu));
    herald.stop().await?;
    Ok(redis)
}

/// The last line that the history has read.
async fn position(connection: &mut MultiplexedConnection) -> Result<u64> {
    let told: Vec<String> = redis::cmd("HVALS").arg(format!("{PREFIX}history")).query_async(connection).await?;
    Ok(told.iter().filter_map(|text| text.split(' ').next()?.parse().ok()).max().unwrap_or(0))
}

/// Each question with a connection of its own, as a verb asks.
async fn ask(args: &Args, url: &str) -> Result<()> {
    let place: HistoryUrl = url.parse().map_err(anyhow::Error::msg)?;
    let now_ms = clock::wall_ms();
    for days in [0, 7, 29] {
        let first = args.rows * (DAYS - days).min(DAYS - 1) / DAYS;
        let (mut took, mut slowest) = (Duration::ZERO, Duration::ZERO);
        for nth in 0..ASKED {
            let row = (first + nth * 7_919) % args.rows;
            let wanted = Wanted { intent: Some(IntentId::new(&intent(row))?), ..Wanted::default() };
            let began = clock::now();
            let reader = Reader::new(Database::open(&place, STREAM, Access::Read).await?);
            reader.horizon(DAYS, now_ms, &Wanted::default()).await?;
            let found = reader.find(&wanted, 100).await?;
            took += began.elapsed();
            slowest = slowest.max(began.elapsed());
            ensure!(!found.is_empty(), "{wanted:?} is not found");
        }
        let mean = time((took / ASKED as u32).as_secs_f64() * 1e6);
        println!("an intent of {days} days ago: {mean}, at most {}", time(slowest.as_secs_f64() * 1e6));
    }
    let began = clock::now();
    let reader = Reader::new(Database::open(&place, STREAM, Access::Read).await?);
    let of_endpoint = Wanted {
        endpoint: Some(EndpointId::new("ep_3f1c9a7e50b84d2c000007")?),
        from_ms: Some(now_ms - 8 * DAY_MS),
        until_ms: Some(now_ms - 7 * DAY_MS),
        ..Wanted::default()
    };
    let found = reader.find(&of_endpoint, 50).await?;
    println!("50 of an endpoint of 7 days ago: {}", time(began.elapsed().as_secs_f64() * 1e6));
    ensure!(!found.is_empty(), "the endpoint has nothing");
    Ok(())
}

/// How events come.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// All at once, before Herald is there, which delivers them as quickly as it can.
    Backlog(u64),
    /// As many as leave both processors time to spare.
    Calm(u64),
}

const ENDPOINTS: u64 = 50;

/// A part of a second, and the events of one at [`Load::Calm`]: 4 000 a second.
const TICK: Duration = Duration::from_millis(10);
const EVENTS_A_TICK: usize = 40;

/// Herald delivers, with this history.
async fn deliver(load: Load, name: &str, url: &str, redis: &OwnRedis, folder: &Path) -> Result<()> {
    let receiver = receiver::start().await?;
    let mut registry = RegistryStore::connect(&herald::store::connection::Redis::new(&redis.url())?).await?;
    let mark = Mark { by: "bench".to_owned(), why: "bench".to_owned(), at_ms: 1 };
    for n in 0..ENDPOINTS {
        let (id, account) = (EndpointId::new(&format!("ep_{n}"))?, AccountId::new(&format!("acc_{n}"))?);
        let url = format!("http://127.0.0.1:{}/{n}", receiver.port());
        // The last round's has its port.
        let _ = registry.remove(&id, None, &mark).await;
        registry.create(Endpoint::new(id, account, url, SecretText::from_random([7; 32]), 1), &mark).await?;
    }
    let mut connection = connection(redis).await?;
    let before = position(&mut connection).await?;
    let (what, events, at_once) = match load {
        Load::Backlog(events) => ("drain", events, 500),
        Load::Calm(events) => ("calm", events, EVENTS_A_TICK),
    };
    let numbers: Vec<u64> = (0..events).collect();
    let publish = async |connection: &mut MultiplexedConnection, numbers: &[u64]| {
        let mut pipeline = redis::pipe();
        for n in numbers {
            pipeline.cmd("XADD").arg(STREAM).arg("*").arg("event").arg(event(*n, n % ENDPOINTS)).ignore();
        }
        pipeline.query_async::<()>(connection).await
    };
    let start = || herald(redis, url, folder);
    let mut herald;
    let (of_redis, of_herald, of_threads, began);
    let delivering = |herald: &Owned| herald.cpu_of_threads(|name| ["worker", "attempts", "unproven"].contains(&name));
    match load {
        Load::Backlog(_) => {
            for some in numbers.chunks(at_once) {
                publish(&mut connection, some).await?;
            }
            of_redis = redis.usage().cpu;
            (herald, _) = start()?;
            (of_herald, of_threads, began) = (Duration::ZERO, Duration::ZERO, clock::now());
        }
        Load::Calm(_) => {
            (herald, _) = start()?;
            tokio::time::sleep(Duration::from_secs(3)).await;
            (of_redis, of_herald) = (redis.usage().cpu, herald.usage().cpu);
            (of_threads, began) = (delivering(&herald), clock::now());
            let mut ticks = tokio::time::interval(TICK);
            for some in numbers.chunks(at_once) {
                ticks.tick().await;
                publish(&mut connection, some).await?;
            }
        }
    }
    while receiver.count() < events {
        tokio::time::sleep(Duration::from_millis(20)).await;
        ensure!(began.elapsed() < Duration::from_secs(600), "only {} are delivered", receiver.count());
    }
    let took = began.elapsed();
    let mut lag = Duration::ZERO;
    if !url.is_empty() {
        while position(&mut connection).await? != before + events {
            tokio::time::sleep(Duration::from_millis(50)).await;
            ensure!(began.elapsed() < Duration::from_secs(600), "the history does not catch up");
        }
        lag = began.elapsed() - took;
    }
    let each = |cpu: Duration| time(cpu.as_secs_f64() * 1e6 / events as f64);
    // The history is followed on other threads than those that deliver.
    let all = herald.usage().cpu.saturating_sub(of_herald);
    let delivering = delivering(&herald).saturating_sub(of_threads);
    ensure!(!delivering.is_zero(), "the threads that deliver have other names");
    println!(
        "{what} with history {name}: {}, Herald {} to deliver, {} beside it, and Redis {} of processor time a delivery{}",
        rate(events as f64 / took.as_secs_f64()),
        each(delivering),
        each(all.saturating_sub(delivering)),
        each(redis.usage().cpu.checked_sub(of_redis).context("Redis' time runs backwards")?),
        if lag.is_zero() {
            String::new()
        } else {
            format!("; the history was done {} later", time(lag.as_secs_f64() * 1e6))
        },
    );
    herald.stop().await?;
    Ok(())
}

fn event(n: u64, account: u64) -> String {
    format!(
        r#"{{"id":"evt_{n}","event":"payment_intent.created","accountId":"acc_{account}","createdAt":"2026-02-01T13:07:41Z","data":{{"paymentIntentId":"pi_{n}","paymentStatus":"Created","captureMode":"Auto"}}}}"#
    )
}

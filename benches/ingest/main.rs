//! `make bench-ingest`: what it costs to publish over HTTP, beside a bare `XADD` to the same Redis, and whether probes are
//! answered meanwhile. Redis (append-only file, fsynced every second), `herald serve` as built and this client share the
//! machine; the worker reads what is published and owes it to nobody.

mod http;
mod probes;

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use herald::{
    clock,
    owned::{OwnRedis, Owned, free_port},
    surface::words::{rate, time_us},
};
use tokio::{process::Command, task::JoinSet};

use self::{
    http::Connection,
    probes::{Probed, probe_while},
};

const TOKEN: &str = "the-token-of-this-measurement";
const STREAM: &str = "payment-intents";

/// What is promised on two cores.
const LEAST_SINGLY: f64 = 8_000.0;
const LEAST_IN_BATCHES: f64 = 20_000.0;
const MOST_PROBE: Duration = Duration::from_millis(100);

const CONNECTIONS: u64 = 64;
const BATCH_CONNECTIONS: u64 = 4;
const BATCH: u64 = 500;

#[derive(Parser)]
struct Args {
    /// How long each row is measured
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Say what was missed, and end well all the same: for a machine that does something else
    #[arg(long)]
    lenient: bool,
    /// As `cargo bench` adds it
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    herald::descriptors::raise_limit();
    let redis = OwnRedis::start().await?;
    let bare_single = bare(&redis, CONNECTIONS, 1, &args).await?;
    let bare_batch = bare(&redis, BATCH_CONNECTIONS, BATCH, &args).await?;
    clear(&redis).await?;
    let address = format!("127.0.0.1:{}", free_port()?);
    let folder = tempfile::tempdir()?;
    let herald = serve(&redis, &address, folder.path()).await?;

    println!("{:<34} {:>12} {:>12} {:>10}", "", "XADD", "over HTTP", "probes <");
    let (singly, probed) = published(&address, CONNECTIONS, 1, &args).await?;
    row("events singly, 64 connections", Some(bare_single), singly, &probed);
    let (batches, in_batches) = published(&address, BATCH_CONNECTIONS, BATCH, &args).await?;
    row("events in batches of 500", Some(bare_batch), batches, &in_batches);
    let idle: Vec<_> = idle(&address, 1_000).await;
    let (beside_idle, while_idle) = published(&address, CONNECTIONS, 1, &args).await?;
    row("the same singly, beside 1 000 idle", Some(bare_single), beside_idle, &while_idle);
    drop(idle);
    let (refused, while_flooded) = flood(&address, &args).await?;
    row("requests with an unknown token", None, refused, &while_flooded);
    drop(herald);

    let slowest = [probed, in_batches, while_idle, while_flooded].iter().map(|probed| probed.slowest).max();
    let slowest = slowest.unwrap_or_default();
    println!("slowest probe {}", time_us(slowest.as_micros() as u64));
    let is_met = singly >= LEAST_SINGLY && batches >= LEAST_IN_BATCHES && slowest <= MOST_PROBE;
    ensure!(
        is_met || args.lenient,
        "promised are {LEAST_SINGLY}/s singly, {LEAST_IN_BATCHES}/s in batches, {MOST_PROBE:?}"
    );
    Ok(())
}

fn row(what: &str, bare: Option<f64>, measured: f64, probed: &Probed) {
    let bare = bare.map_or_else(String::new, rate);
    println!("{what:<34} {bare:>12} {:>12} {:>10}", rate(measured), time_us(probed.slowest.as_micros() as u64));
}

fn event(id: &str) -> String {
    format!(
        r#"{{"id":"evt_{id}","event":"payment_intent.status_updated","accountId":"acc_1","createdAt":"2026-05-01T09:00:00.0000000Z","data":{{"paymentIntentId":"pi_{id}","paymentStatus":"Captured","captureMode":"Auto"}}}}"#
    )
}

/// Events a second, by so many clients of Redis that each add so many in one go.
async fn bare(redis: &OwnRedis, clients: u64, batch: u64, args: &Args) -> Result<f64> {
    let client = redis::Client::open(redis.url())?;
    let (began, mut tasks) = (clock::now(), JoinSet::new());
    let ends = began + Duration::from_secs(args.seconds);
    for n in 0..clients {
        let mut connection = client.get_multiplexed_async_connection().await?;
        tasks.spawn(async move {
            let mut added = 0;
            while clock::now() < ends {
                let mut pipeline = redis::pipe();
                for at in 0..batch {
                    pipeline
                        .cmd("XADD")
                        .arg(STREAM)
                        .arg("*")
                        .arg("event")
                        .arg(event(&format!("{n}_{}", added + at)))
                        .ignore();
                }
                pipeline.query_async::<()>(&mut connection).await?;
                added += batch;
            }
            anyhow::Ok(added)
        });
    }
    summed(tasks, began).await
}

/// The same over HTTP, with probes beside it.
async fn published(address: &str, clients: u64, batch: u64, args: &Args) -> Result<(f64, Probed)> {
    let (began, mut tasks) = (clock::now(), JoinSet::new());
    let ends = began + Duration::from_secs(args.seconds);
    let run: u32 = rand::random();
    for n in 0..clients {
        let mut connection = Connection::open(address).await?;
        tasks.spawn(async move {
            let mut added = 0;
            while clock::now() < ends {
                let events: Vec<String> = (0..batch).map(|at| event(&format!("{run}_{n}_{}", added + at))).collect();
                let (path, body, expected) = match events.as_slice() {
                    [one] => ("/v1/events", one.clone(), 201),
                    many => ("/v1/events/batch", format!("[{}]", many.join(",")), 200),
                };
                let status = connection.post(path, TOKEN, &body).await?;
                ensure!(status == expected, "{path} was answered {status}");
                added += batch;
            }
            Ok(added)
        });
    }
    probe_while(address, summed(tasks, began)).await
}

/// Refused requests a second, each on a connection of its own.
async fn flood(address: &str, args: &Args) -> Result<(f64, Probed)> {
    let (began, mut tasks) = (clock::now(), JoinSet::new());
    let ends = began + Duration::from_secs(args.seconds);
    for _ in 0..CONNECTIONS {
        let address = address.to_owned();
        tasks.spawn(async move {
            let mut answered = 0;
            while clock::now() < ends {
                // One that is ended to make room for another is part of a flood.
                if let Ok(mut connection) = Connection::open(&address).await
                    && connection.post("/v1/events", "hrld_unknown", "{}").await.is_ok()
                {
                    answered += 1;
                }
            }
            Ok(answered)
        });
    }
    probe_while(address, summed(tasks, began)).await
}

async fn summed(mut tasks: JoinSet<Result<u64>>, began: Instant) -> Result<f64> {
    let mut sum = 0;
    while let Some(done) = tasks.join_next().await {
        sum += done??;
    }
    Ok(sum as f64 / (clock::now() - began).as_secs_f64())
}

async fn idle(address: &str, most: usize) -> Vec<Connection> {
    let mut open = Vec::with_capacity(most);
    for _ in 0..most {
        open.extend(Connection::open(address).await.ok());
    }
    open
}

async fn clear(redis: &OwnRedis) -> Result<()> {
    let mut connection = redis::Client::open(redis.url())?.get_multiplexed_async_connection().await?;
    Ok(redis::cmd("FLUSHALL").query_async(&mut connection).await?)
}

async fn serve(redis: &OwnRedis, address: &str, folder: &Path) -> Result<Owned> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    // With its history, which it begins where it is started.
    command
        .arg("serve")
        .current_dir(folder)
        .env_clear()
        .env("HERALD_REDIS_URL", redis.url())
        .env("HERALD_LISTEN", address);
    command.env("HERALD_ADMIN_TOKEN", TOKEN).env("HERALD_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::null());
    let herald = Owned::spawn(&mut command).context("cannot start herald")?;
    // An account without endpoints has its events settled at once.
    for _ in 0..600 {
        if let Ok(mut connection) = Connection::open(address).await
            && connection.get("/readyz").await.is_ok_and(|status| status == 200)
        {
            return Ok(herald);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("herald is not ready within 30 s")
}

//! `make bench`, its second part: what payment intents cost. Changes beside the same writes as plain commands; creations
//! over HTTP beside requests that do nothing, while Herald delivers what they tell; memory; a page of a million; a million
//! deadlines at one instant.
//!
//! Redis, `herald serve`, `herald intents serve` and the receiver are processes of their own; changes, memory and pages are
//! measured through the service in this process, which is the same code. Read `changes`, `creations` and `many` for what is
//! done, `table` for what is shown.

mod changes;
mod creations;
#[allow(dead_code, reason = "the other benches use the rest")]
#[path = "../performance/events.rs"]
mod events;
mod many;
#[path = "../performance/marks.rs"]
mod marks;
#[allow(dead_code, reason = "the other benches use the rest")]
#[path = "../performance/processes.rs"]
mod processes;
#[path = "../performance/receiver.rs"]
mod receiver;
mod rows;
#[allow(dead_code, reason = "the other bench uses the rest")]
#[path = "../scale/table.rs"]
mod table;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use herald::{
    facts::id::AccountId,
    intents::{
        details::Details,
        service::{Service, Settings},
    },
    store::{connection::Redis as Client, keys::PartitionKeys},
    surface::words::number,
};
use serde_json::json;

use self::{rows::Rows, table::machine};

/// Herald's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// Rounds of each row; the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Changes of each side in a round
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(4_000..=10_000_000))]
    changes: u64,
    /// Seconds of each round at 1 000 creations a second
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// What "many" means
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    scale: u64,
    /// Only these rows
    #[arg(long, value_enum)]
    only: Vec<What>,
    /// Measure another build of Herald
    #[arg(long, default_value = env!("CARGO_BIN_EXE_herald"))]
    herald: PathBuf,
    /// Write the table into this file, between its two lines `<!-- intents -->`
    #[arg(long)]
    write: Option<PathBuf>,
    /// What `cargo bench` hands to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(clap::Subcommand)]
enum Role {
    /// The receiver, as a process of its own
    Receiver,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Changes beside plain commands
    Changes,
    /// Creations over HTTP while Herald delivers
    Creations,
    /// What an intent takes of Redis' memory
    Memory,
    /// A page of many, and as many deadlines at one instant
    Many,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.role {
        Some(Role::Receiver) => receiver::run(true),
        None => measure(&args),
    }
}

fn measure(args: &Args) -> Result<()> {
    let has = |what| args.only.is_empty() || args.only.contains(&what);
    let mut rows = Rows::default();
    if has(What::Changes) {
        changes::rates(args, &mut rows)?;
    }
    if has(What::Creations) {
        creations::latencies(args, &mut rows)?;
    }
    if has(What::Memory) {
        changes::memory(&mut rows)?;
    }
    if has(What::Many) {
        many::measure(args, &mut rows)?;
    }
    let origin = format!(
        "Medians of {} rounds in turns, {} changes of each side in a round. Bench, receiver, Redis and Herald {}",
        args.rounds,
        number(args.changes),
        machine()?
    );
    let text = rows.text(&origin);
    println!("{text}");
    args.write.as_ref().map_or(Ok(()), |path| marks::write_between(path, "<!-- intents -->", &text))
}

pub const STREAM: &str = "payment-intents";

pub fn keys() -> Result<PartitionKeys> {
    Ok(PartitionKeys::new(STREAM)?)
}

/// The payment intents of a Redis, in this process. They are kept for good.
pub fn service(redis: &processes::Redis) -> Result<Service> {
    Ok(Service::new(Client::new(&redis.url())?, keys()?, Settings { retain: 0, zone: jiff::tz::TimeZone::UTC }))
}

pub fn account(at: u64) -> Result<AccountId> {
    Ok(AccountId::new(&format!("acc_{at}"))?)
}

/// A purchase as most are: an amount and an order's number.
pub fn plain(capture_mode: &str) -> Result<Details> {
    let amount = json!({ "value": 1_250, "currencyCode": "GBP" });
    Ok(serde_json::from_value(json!({ "amount": amount, "reference": "Order 4711", "captureMode": capture_mode }))?)
}

pub fn runtime() -> Result<tokio::runtime::Runtime> {
    // One thread beside Redis' one: they have a core each.
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

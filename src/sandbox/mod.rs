//! `herald sandbox run`: a merchant's integration test as a file. It plays the merchant's calls and their customer against a running
//! service, lets time pass, and holds what is answered, and what the merchant is told, against what the file expects.
//!
//! [`file`] reads it, [`names`] fills in what it refers to, [`steps`] says what a step asks, [`matching`] and [`callbacks`] judge;
//! all of these are pure. [`runner`] asks the service, [`arrivals`] takes callbacks in, and [`report`] shows what came of it.

mod arrivals;
mod callbacks;
mod file;
mod matching;
mod names;
mod report;
mod runner;
mod steps;

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::steps::span;
use self::{
    arrivals::Arrivals,
    file::{Action, MAX_FILE_BYTES, Scenario},
    report::Report,
    runner::Runner,
};
use crate::{
    config::parse_duration,
    listen,
    surface::{Context, Format, VerbError, client::ServiceArgs, note},
};

/// What it needs and how it ends, for the help.
const AFTER: &str = "\
Where the file expects callbacks, an endpoint of the sandbox leads to this program while it runs, and Herald must deliver: \
`herald intents serve` and `herald serve` with HERALD_ALLOW_HTTP=true and HERALD_ALLOW_NETWORKS=127.0.0.0/8.

Use an account of its own: what others do to its payment intents arrives here too. The clock is everybody's.

Ends with 0 if all was as expected, 1 if not, 2 if the file has a fault.";

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct RunArgs {
    /// The scenario, in YAML
    file: PathBuf,
    #[command(flatten)]
    service: ServiceArgs,
    /// The merchant's application: gets each callback, with the bytes and headers as they came; its answer goes back
    #[arg(long, value_name = "URL")]
    forward_to: Option<String>,
    /// For what is random in the file and in idempotency keys [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long to wait for what was told to arrive
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    wait: Duration,
    /// text, json, or junit for whoever collects the results of tests [default: as -o]
    #[arg(long, value_name = "FORMAT", hide_possible_values = true)]
    format: Option<Shape>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    Text,
    Json,
    Junit,
}

pub async fn run(context: &Context, args: RunArgs) -> anyhow::Result<()> {
    let scenario = read(&args.file)?;
    let plain = listen::plain_http(context);
    let client = args.service.client(plain)?;
    let seed = args.seed.unwrap_or_else(|| rand::random_range(0..=u64::from(u32::MAX)));
    let ending = CancellationToken::new();
    listen::end_on_signals(ending.clone())?;
    let (steps, callbacks) = if needs_callbacks(&scenario) || args.forward_to.is_some() {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen on 127.0.0.1")?;
        let endpoint = client.create_endpoint(&listen::url_of(listener.local_addr()?), &[]).await?;
        let receiving = CancellationToken::new();
        let forward_to = args.forward_to.as_deref();
        let taken = listen::receive(listener, endpoint.secret.clone(), forward_to, plain, receiving.clone());
        let ran = match taken.map(Arrivals::collect) {
            Ok(arrivals) => {
                let runner = Runner::new(client.clone(), Some((arrivals, forward_to.is_some())), seed, args.wait);
                until(&ending, runner.run(&scenario)).await
            }
            Err(error) => Err(error),
        };
        listen::remove(&client, &endpoint).await;
        receiving.cancel();
        ran?
    } else {
        until(&ending, Runner::new(client, None, seed, args.wait).run(&scenario)).await?
    };
    show(context, &args, Report::new(scenario.name, &args.file, seed, steps, callbacks))
}

/// What is under way is dropped, and what was made for it can still be removed.
async fn until<T>(ending: &CancellationToken, running: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::select! {
        ran = running => Ok(ran),
        () = ending.cancelled() => bail!("interrupted: what was done until now is done"),
    }
}

fn needs_callbacks(scenario: &Scenario) -> bool {
    let waits = |action: &Action| matches!(action, Action::Delivered(_));
    !scenario.callbacks.is_empty() || scenario.steps.iter().any(|step| waits(&step.action))
}

fn read(path: &Path) -> anyhow::Result<Scenario> {
    let shown = path.display();
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
    let fault = |says: String| VerbError::Usage(format!("{shown}: {says}"));
    read.map_err(|error| fault(error.to_string()))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(fault("is larger than 1 MiB".to_owned()).into());
    }
    let scenario = file::parse(&text).map_err(|found| fault(found.to_string()))?;
    steps::check(&scenario).map_err(|found| fault(found.to_string()))?;
    Ok(scenario)
}

fn show(context: &Context, args: &RunArgs, report: Report) -> anyhow::Result<()> {
    let shape = args.format.unwrap_or(match context.output.format() {
        Format::Table => Shape::Text,
        Format::Json | Format::Jsonl => Shape::Json,
    });
    match shape {
        Shape::Text => context.output.text(&report.text())?,
        Shape::Json => context.output.one(&report, &[])?,
        Shape::Junit => context.output.raw(report.junit().as_bytes())?,
    }
    if report.passed {
        return Ok(());
    }
    if shape != Shape::Text {
        note(report.text());
    }
    bail!("{} does not go as it expects; the same again: --seed {}", args.file.display(), report.seed)
}

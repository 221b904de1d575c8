//! `herald worker …`: the processes that work, as they tell of themselves.

use clap::Subcommand;

use crate::{
    clock,
    store::workers::live_workers,
    surface::{Context, note, words},
    view::partition::WorkerView,
};

#[derive(Debug, Subcommand)]
pub enum WorkerVerb {
    /// List the live workers: what each has of the partitions, their versions, keys and clocks
    List,
}

pub async fn run(context: &Context, verb: WorkerVerb) -> anyhow::Result<()> {
    match verb {
        WorkerVerb::List => list(context).await,
    }
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let workers = live_workers(&mut context.connect().await?).await?;
    let now_ms = clock::wall_ms();
    let titles = ["NAME", "VERSION", "STREAM", "WEIGHT", "OWNED", "SINCE", "SEALS WITH", "CLOCK"];
    let mut rows = context.output.list(&titles);
    for told in &workers {
        let view = WorkerView::of(told);
        rows.push(&view, || {
            let owned = words::number(view.owned.len() as u64);
            let of_worker = |text: String| if told.is_worker() { text } else { String::new() };
            vec![
                view.name.clone(),
                view.version.clone(),
                if told.is_worker() { view.stream.clone() } else { "none: it only serves".to_owned() },
                of_worker(view.weight.to_string()),
                of_worker(if view.is_draining { format!("{owned}, leaving") } else { owned }),
                view.since.map_or_else(String::new, |since| words::span(now_ms.saturating_sub(since.0))),
                view.keys.first().cloned().unwrap_or_else(|| "no key".to_owned()),
                format!("{:+} ms", view.clock_ahead_ms),
            ]
        })?;
    }
    rows.finish()?;
    if workers.is_empty() {
        note("no worker has told of itself within a minute");
    }
    Ok(())
}

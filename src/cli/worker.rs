//! `herald worker …`: the processes that work, as they tell of themselves.

use clap::Subcommand;

use crate::{
    store::workers::live_workers,
    surface::{Context, note},
    view::partition::WorkerView,
};

#[derive(Debug, Subcommand)]
pub enum WorkerVerb {
    /// List the live workers: their versions, keys and clocks
    List,
}

pub async fn run(context: &Context, verb: WorkerVerb) -> anyhow::Result<()> {
    match verb {
        WorkerVerb::List => list(context).await,
    }
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let workers = live_workers(&mut context.connect().await?).await?;
    let mut rows = context.output.list(&["NAME", "VERSION", "STREAM", "SEALS WITH", "CLOCK"]);
    for told in &workers {
        let view = WorkerView::of(told);
        rows.push(&view, || {
            vec![
                view.name.clone(),
                view.version.clone(),
                if view.stream.is_empty() { "none: it only serves".to_owned() } else { view.stream.clone() },
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

//! The global switch: stops all sending at once, and lets it go on. It takes nothing away, so neither asks first: whoever
//! must stop everything has no time for questions.

use clap::Args;

use super::{Change, Context, note};

#[derive(Debug, Args)]
pub struct PauseArgs {
    /// All endpoints of all accounts; `herald endpoint pause` pauses one
    #[arg(long, required = true)]
    all: bool,
    #[command(flatten)]
    change: Change,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// All endpoints of all accounts; `herald endpoint resume` resumes one
    #[arg(long, required = true)]
    all: bool,
    #[command(flatten)]
    change: Change,
}

pub async fn pause(context: &Context, args: PauseArgs) -> anyhow::Result<()> {
    context.registry().await?.pause_all(&args.change.mark()).await?;
    note("all sending is paused; events wait in Redis until `herald resume --all`");
    Ok(())
}

pub async fn resume(context: &Context, args: ResumeArgs) -> anyhow::Result<()> {
    match context.registry().await?.resume_all(&args.change.mark()).await? {
        true => note("sending goes on"),
        false => note("nothing was paused; endpoints that are paused one by one stay so"),
    }
    Ok(())
}

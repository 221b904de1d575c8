use super::Context;

#[derive(Debug, clap::Args)]
pub struct RetryScheduleArgs {}

pub async fn run(_context: &Context, _args: RetryScheduleArgs) -> anyhow::Result<()> {
    Ok(())
}

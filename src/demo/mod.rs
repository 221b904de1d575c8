use std::time::Duration;

#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// End by itself after this time, with a summary
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::cli::duration)]
    pub duration: Option<Duration>,
    /// Events a second
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub rate: u32,
}

pub async fn run(_args: DemoArgs) -> anyhow::Result<()> {
    anyhow::bail!("demo is not part of this build")
}

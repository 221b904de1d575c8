use super::Context;

#[derive(Debug, clap::Subcommand)]
pub enum ChainVerb {}

pub async fn run(_context: &Context, verb: ChainVerb) -> anyhow::Result<()> {
    match verb {}
}

use super::Context;

#[derive(Debug, clap::Subcommand)]
pub enum QuarantineVerb {}

pub async fn run(_context: &Context, verb: QuarantineVerb) -> anyhow::Result<()> {
    match verb {}
}

use super::Context;

#[derive(Debug, clap::Subcommand)]
pub enum DeadLetterVerb {}

pub async fn run(_context: &Context, verb: DeadLetterVerb) -> anyhow::Result<()> {
    match verb {}
}

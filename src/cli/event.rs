use super::Context;

#[derive(Debug, clap::Subcommand)]
pub enum EventVerb {}

pub async fn run(_context: &Context, verb: EventVerb) -> anyhow::Result<()> {
    match verb {}
}

use super::Context;

#[derive(Debug, clap::Subcommand)]
pub enum DeliveryVerb {}

pub async fn run(_context: &Context, verb: DeliveryVerb) -> anyhow::Result<()> {
    match verb {}
}

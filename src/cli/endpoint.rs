use super::Context;

#[derive(Debug, clap::Subcommand)]
pub enum EndpointVerb {}

pub async fn run(_context: &Context, verb: EndpointVerb) -> anyhow::Result<()> {
    match verb {}
}

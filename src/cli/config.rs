use super::Context;

#[derive(Debug, clap::Subcommand)]
pub enum ConfigVerb {}

pub fn run(_context: &Context, verb: ConfigVerb) -> anyhow::Result<()> {
    match verb {}
}

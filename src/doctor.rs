use crate::cli::Context;

#[derive(Debug, clap::Args)]
pub struct DoctorArgs {}

pub async fn run(_context: &Context, _args: DoctorArgs) -> anyhow::Result<()> {
    anyhow::bail!("doctor is not part of this build")
}

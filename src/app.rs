use crate::config::Config;

pub async fn serve(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("serve is not part of this build")
}

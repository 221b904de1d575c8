//! What every verb is handed: the configuration, the way to show results, and who asks. Connects only when asked to.

use super::{args::Globals, output::Output};
use crate::{
    app, clock,
    config::{Config, Sources},
    store::{
        connection::{Connection, Purpose, Redis},
        keys::PartitionKeys,
        registry::RegistryStore,
    },
};

pub struct Context {
    pub config: Config,
    pub output: Output,
}

impl Context {
    pub fn new(globals: &Globals) -> anyhow::Result<Self> {
        let sources = Sources::gather(globals.config.as_deref(), globals.settings()?)?;
        Ok(Self { config: Config::load(sources)?, output: Output::new(globals.output) })
    }

    pub fn redis(&self) -> anyhow::Result<Redis> {
        app::redis(&self.config)
    }

    pub async fn connect(&self) -> anyhow::Result<Connection> {
        Ok(self.redis()?.connect(Purpose::Other).await?)
    }

    pub async fn registry(&self) -> anyhow::Result<RegistryStore> {
        Ok(RegistryStore::on(self.connect().await?))
    }

    /// The keys of the one partition there is.
    pub fn keys(&self) -> anyhow::Result<PartitionKeys> {
        Ok(PartitionKeys::new(&self.config.stream.name)?)
    }

    /// Wall clock, milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        clock::wall_ms()
    }
}

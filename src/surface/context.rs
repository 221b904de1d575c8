//! The flags of every verb, and what a verb gets from them: the configuration and the way to show results. Connects
//! only when asked to.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args};

use super::{
    error::VerbError,
    output::{Format, Output, tell},
};
use crate::{
    app, clock,
    config::{Config, Sources},
    history::History,
    store::{
        connection::{Connection, Purpose, Redis},
        keys::PartitionKeys,
        queries::Partitions,
        registry::{RegistryStore, confirming::Confirming},
    },
};

/// Somebody waits for one answer, and a long history takes its time.
const HISTORY_PATIENCE: Duration = Duration::from_secs(90);

/// Flags of every verb. They may hold secrets, so there is no `Debug`.
#[derive(Args)]
pub struct Globals {
    /// Configuration file [env: HERALD_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// table, json or jsonl [default: table]
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        hide_possible_values = true,
        help_heading = "Global options"
    )]
    pub output: Option<Format>,
    /// Where Redis is; the same as --set redis.url=URL
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub redis_url: Option<String>,
    /// Say nothing on stderr but errors, warnings and what a dry run would do
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Never ask: what needs a yes is refused unless --yes is given
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_input: bool,
    /// The stream; the same as --set stream.name=NAME
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub stream: Option<String>,
    /// Any key of the configuration, for example lease.ttl=10s; can be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", action = ArgAction::Append, help_heading = "Global options")]
    pub set: Vec<String>,
}

impl Globals {
    /// As the configuration takes them. The named flags come last, so they win.
    pub fn settings(&self) -> Result<Vec<(String, String)>, VerbError> {
        let named = [("redis.url", &self.redis_url), ("stream.name", &self.stream)];
        let named = named.into_iter().filter_map(|(key, value)| Some(Ok((key.to_owned(), value.clone()?))));
        self.set.iter().map(|text| setting(text)).chain(named).collect()
    }
}

pub struct Context {
    pub config: Config,
    pub output: Output,
}

impl Context {
    pub fn new(globals: &Globals) -> anyhow::Result<Self> {
        let sources = Sources::gather(globals.config.as_deref(), globals.settings()?)?;
        Ok(Self { config: Config::load(sources)?, output: Output::new(globals.output) })
    }

    /// Says what is odd about the environment: once, and only if a verb has no better place for it.
    pub fn note_unknown_variables(&self) {
        self.config.unknown_variables().iter().for_each(|unknown| tell(format_args!("warning: {unknown}")));
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

    /// The registry, to change it.
    pub fn changing(&self) -> anyhow::Result<Confirming> {
        Ok(Confirming::new(&self.redis()?, app::replicas(&self.config)))
    }

    /// All partitions of the stream, to look at. What a verb says of them it ends with [`of_those_that_answer`](super::of_those_that_answer).
    pub async fn partitions(&self) -> anyhow::Result<Partitions> {
        Ok(Partitions::connect(&self.redis()?, &self.keys()?).await?)
    }

    /// The keys of the stream itself.
    pub fn keys(&self) -> anyhow::Result<PartitionKeys> {
        Ok(PartitionKeys::new(&self.config.stream.name)?)
    }

    /// What became of deliveries, as far as it is kept.
    pub fn history(&self) -> History {
        History::new(self.config.history.clone(), &self.config.stream.name, HISTORY_PATIENCE)
    }

    /// Wall clock, milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        clock::wall_ms()
    }
}

/// Not parsed by `clap`, whose error would repeat what may be a secret.
fn setting(text: &str) -> Result<(String, String), VerbError> {
    let parts = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let wrong = || VerbError::Usage("--set: write it as KEY=VALUE, for example lease.ttl=10s".to_owned());
    let (key, value) = parts.ok_or_else(wrong)?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_has_a_key_and_everything_after_the_first_sign_is_its_value() {
        assert_eq!(setting("a.b=c=d").unwrap(), ("a.b".to_owned(), "c=d".to_owned()));
        assert!(!setting("secret").unwrap_err().to_string().contains("secret"));
        assert!(setting("=x").is_err());
    }
}

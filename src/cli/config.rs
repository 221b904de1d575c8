//! `herald config …`: the configuration in effect, and where each value came from. Secrets are masked where they are
//! kept.

use clap::Subcommand;
use serde::Serialize;

use crate::{
    app,
    surface::{Context, error::VerbError, message_of, note},
    telemetry::traces,
};

#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Print each value with where it came from
    Show,
    /// Check the configuration and the files that it names
    Check,
}

#[derive(Serialize)]
struct Setting<'a> {
    key: &'a str,
    value: &'a str,
    origin: String,
}

pub fn run(context: &Context, verb: ConfigVerb) -> anyhow::Result<()> {
    match verb {
        ConfigVerb::Show => show(context),
        ConfigVerb::Check => check(context),
    }
}

fn show(context: &Context) -> anyhow::Result<()> {
    let mut list = context.output.list(&["KEY", "VALUE", "ORIGIN"]);
    for row in context.config.show() {
        let origin = row.origin.to_string();
        list.push(&Setting { key: row.key, value: &row.value, origin: origin.clone() }, || {
            vec![row.key.to_owned(), row.value.clone(), origin]
        })?;
    }
    list.finish()
}

fn check(context: &Context) -> anyhow::Result<()> {
    tried(context)?;
    note("the configuration is right; `herald doctor` checks Redis");
    Ok(())
}

/// Loading has checked every value; what is left is to try what the values lead to. Whatever is wrong with them, a file that is
/// missing too, is the configuration's fault, and starting again would not help.
pub fn tried(context: &Context) -> Result<(), VerbError> {
    let tried = context.keys().and(context.redis()).and_then(|redis| app::sender(&context.config, redis)).map(drop);
    let tried = tried.and(app::api_certificate(&context.config).map(drop));
    let tried = tried.and(traces::check().map_err(Into::into));
    tried.map_err(|error| VerbError::Usage(format!("the configuration is wrong: {}", message_of(&error))))
}

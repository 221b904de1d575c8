//! `herald config …`: the configuration in effect, and where each value came from. Secrets are masked where they are
//! kept.

use clap::Subcommand;
use serde::Serialize;

use crate::{
    app,
    surface::{Context, note},
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

/// Loading has checked every value; what is left is to try what the values lead to.
fn check(context: &Context) -> anyhow::Result<()> {
    context.keys()?;
    context.redis()?;
    app::sender(&context.config)?;
    note("the configuration is right; `herald doctor` checks Redis");
    Ok(())
}

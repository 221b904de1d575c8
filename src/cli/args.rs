//! Arguments that many verbs share, and how they are read. [`Consent`] is what stands before every destructive verb.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgAction, Args};

use super::{
    exit::CliError,
    output::{Format, note},
};
use crate::{
    clock, config,
    facts::{endpoint::Mark, text::steers},
};

/// Longest name and reason: they stand in records, the change feed and logs.
const MAX_BY_CHARS: usize = 128;
const MAX_REASON_CHARS: usize = 1024;

/// Flags of every verb. They may hold secrets, so there is no `Debug`.
#[derive(Args)]
pub struct Globals {
    /// Configuration file [env: HERALD_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// table, json or jsonl; by default a table on a terminal, else json
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
    /// The stream; the same as --set stream.name=NAME
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub stream: Option<String>,
    /// Any key of the configuration, for example lease.ttl=10s; can be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", action = ArgAction::Append, help_heading = "Global options")]
    pub set: Vec<String>,
}

impl Globals {
    /// As the configuration takes them. The named flags come last, so they hold.
    pub fn settings(&self) -> Result<Vec<(String, String)>, CliError> {
        let named = [("redis.url", &self.redis_url), ("stream.name", &self.stream)];
        let named = named.into_iter().filter_map(|(key, value)| Some(Ok((key.to_owned(), value.clone()?))));
        self.set.iter().map(|text| setting(text)).chain(named).collect()
    }
}

/// Who it was where nothing says so: a container has no `USER`.
const UNNAMED: &str = "operator";

/// Who changes something, and why.
#[derive(Debug, Clone, Args)]
pub struct Change {
    /// Why: it is kept with the change
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,
    /// Who: it is kept with the change
    #[arg(long, value_name = "NAME", env = "USER", default_value = UNNAMED, hide_env_values = true, value_parser = by)]
    pub by: String,
}

impl Change {
    pub fn mark(&self) -> Mark {
        Mark { by: self.by.clone(), why: self.reason.clone(), at_ms: clock::wall_ms() }
    }
}

/// For verbs that take something away.
#[derive(Debug, Clone, Args)]
pub struct Consent {
    #[command(flatten)]
    pub change: Change,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Say what would happen, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// What a destructive verb does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    Ahead,
    /// It was a dry run, and it has been said what would happen.
    DryRun,
}

impl Consent {
    pub fn mark(&self) -> Mark {
        self.change.mark()
    }

    /// Asks on the terminal unless `--yes` was given. `what` completes "this will …": `delete the endpoint ep_x`.
    pub fn confirm(&self, what: &str) -> Result<Go, CliError> {
        if self.dry_run {
            note(format_args!("dry run: this would {what}"));
            return Ok(Go::DryRun);
        }
        if self.yes {
            return Ok(Go::Ahead);
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(CliError::Refused(format!(
                "this would {what}, and there is no terminal to ask on: add --yes, or look first with --dry-run"
            )));
        }
        let _ = write!(io::stderr(), "This will {what}. Go ahead? [y/N] ");
        let _ = io::stderr().flush();
        let mut answer = String::new();
        let read = io::stdin().lock().read_line(&mut answer);
        match read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            true => Ok(Go::Ahead),
            false => Err(CliError::Refused("nothing was changed".to_owned())),
        }
    }
}

/// Not parsed by `clap`, whose error would repeat what may be a secret.
fn setting(text: &str) -> Result<(String, String), CliError> {
    let parts = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let wrong = || CliError::Usage("--set: write it as KEY=VALUE, for example lease.ttl=10s".to_owned());
    let (key, value) = parts.ok_or_else(wrong)?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

fn reason(text: &str) -> Result<String, String> {
    said(text, MAX_REASON_CHARS)
}

fn by(text: &str) -> Result<String, String> {
    said(text, MAX_BY_CHARS)
}

fn said(text: &str, max_chars: usize) -> Result<String, String> {
    let text = text.trim();
    match text.is_empty() || text.chars().count() > max_chars || text.contains(steers) {
        true => Err(format!("it takes 1 to {max_chars} characters on one line")),
        false => Ok(text.to_owned()),
    }
}

/// `5s`, `1h 30m`, `30d`: as in the configuration.
pub fn duration(text: &str) -> Result<Duration, String> {
    config::parse_duration(text)
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

    #[test]
    fn a_reason_says_something_and_stays_on_its_line() {
        assert_eq!(reason("  moved ").unwrap(), "moved");
        assert!(reason(" ").is_err() && reason("a\nb").is_err() && by(&"x".repeat(129)).is_err());
    }
}

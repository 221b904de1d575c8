//! Arguments and input that many verbs take, and how they are read. [`Consent`] comes before every destructive verb.

use std::{
    fs,
    io::{self, BufRead, IsTerminal, Read, Write},
    path::Path,
};

use anyhow::Context;
use clap::{Args, builder::ArgPredicate};

use crate::{
    clock,
    facts::{
        audit::{Act, Begun},
        endpoint::Mark,
        text::steers,
    },
    surface::{VerbError, audit::begun, output, tell, words},
};

/// Longest name and reason: both appear in records, the change feed and logs.
const MAX_BY_CHARS: usize = 128;
const MAX_REASON_CHARS: usize = 1024;

/// Who it was if nothing says so: a container has no `USER`.
const UNNAMED: &str = "operator";

/// Who changes something, and why.
#[derive(Debug, Clone, Args)]
pub struct WhoAndWhy {
    /// Why: it is kept with the change
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,
    /// Who: it is kept with the change
    #[arg(long, value_name = "NAME", env = "USER", default_value = UNNAMED, hide_env_values = true, value_parser = by)]
    pub by: String,
}

impl WhoAndWhy {
    pub fn mark(&self) -> Mark {
        Mark { by: self.by.clone(), why: self.reason.clone(), at_ms: clock::wall_ms() }
    }

    /// As the audit log has it.
    pub fn act(&self, act: Act) -> Begun {
        begun(act, &self.by, &self.reason)
    }
}

/// The same for verbs that change nothing of others, or nothing that stays: they may leave out why.
#[derive(Debug, Clone, Args)]
pub struct WhoAndMaybeWhy {
    /// Why: it is kept in the audit log
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
    /// Who: it is kept in the audit log
    #[arg(long, value_name = "NAME", env = "USER", default_value = UNNAMED, hide_env_values = true, value_parser = by)]
    by: String,
}

impl WhoAndMaybeWhy {
    pub fn by(&self) -> &str {
        &self.by
    }

    pub fn act(&self, act: Act) -> Begun {
        begun(act, &self.by, self.reason.as_deref().unwrap_or_default())
    }
}

/// For verbs that take something away. A dry run changes nothing, so it needs no reason.
#[derive(Debug, Clone, Args)]
#[command(mut_arg("reason", |reason| reason
    .help("Why: it is kept with the change. A dry run needs none")
    .required(false)
    .required_unless_present("dry_run")
    .default_value_if("dry_run", ArgPredicate::IsPresent, "dry run")))]
pub struct Consent {
    #[command(flatten)]
    pub change: WhoAndWhy,
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
    /// It was a dry run, and what would happen has been said.
    DryRun,
}

impl Consent {
    pub fn mark(&self) -> Mark {
        self.change.mark()
    }

    pub fn act(&self, act: Act) -> Begun {
        self.change.act(act)
    }

    /// Asks on the terminal unless `--yes` was given. `what` completes "this will …": `delete the endpoint ep_x`.
    pub fn confirm(&self, what: &str) -> Result<Go, VerbError> {
        if self.dry_run {
            tell(format_args!("dry run: this would {what}"));
            return Ok(Go::DryRun);
        }
        if self.yes {
            return Ok(Go::Ahead);
        }
        if output::never_asks() || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(VerbError::Refused(format!(
                "this would {what}, and there is nobody to ask: add --yes, or look first with --dry-run"
            )));
        }
        let _ = write!(io::stderr(), "This will {what}. Go ahead? [y/N] ");
        let _ = io::stderr().flush();
        let mut answer = String::new();
        let read = io::stdin().lock().read_line(&mut answer);
        match read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            true => Ok(Go::Ahead),
            false => Err(VerbError::Refused("nothing was changed".to_owned())),
        }
    }
}

/// Reads at most `max_bytes` of a file, or of stdin for `-`.
pub fn read_input(path: &Path, max_bytes: u64) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => io::stdin().lock().take(max_bytes + 1).read_to_end(&mut bytes),
        false => fs::File::open(path).and_then(|file| file.take(max_bytes + 1).read_to_end(&mut bytes)),
    };
    read.with_context(|| format!("cannot read {shown}"))?;
    match bytes.len() as u64 > max_bytes {
        true => Err(VerbError::Refused(format!("{shown} is larger than {}: split it", words::bytes(max_bytes))).into()),
        false => Ok(bytes),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_says_something_and_stays_on_its_line() {
        assert_eq!(reason("  moved ").unwrap(), "moved");
        assert!(reason(" ").is_err() && reason("a\nb").is_err() && by(&"x".repeat(129)).is_err());
    }
}

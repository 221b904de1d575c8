//! A secret as a verb is given it: as a flag, on stdin, in a file or in the environment. Never shown, by no error and no `Debug`;
//! what kind of secret it must be, its verb decides.

use std::{
    convert::Infallible,
    fmt, fs,
    io::{self, BufRead, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::Context;
use clap::Args;

use super::error::VerbError;

/// More than the longest secret, so that a longer one is refused and not cut.
const MAX_BYTES: u64 = 1024;

/// Where nothing else says which secret it is.
const VARIABLE: &str = "HERALD_LISTEN_SECRET";

/// A text that no error and no `Debug` may show.
#[derive(Clone)]
pub struct Hidden(String);

impl Hidden {
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The text itself, or the first line of stdin for `-`.
    pub fn read(&self) -> anyhow::Result<String> {
        if self.0 == "-" { from_stdin() } else { Ok(self.0.clone()) }
    }
}

impl FromStr for Hidden {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl From<&str> for Hidden {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// For verbs that verify.
#[derive(Debug, Args)]
pub struct SecretArgs {
    /// The endpoint's secret; - reads it from stdin, where other users of the machine cannot see it [env: HERALD_LISTEN_SECRET]
    #[arg(long, value_name = "SECRET", conflicts_with = "secret_file")]
    secret: Option<Hidden>,
    /// A file with nothing but the secret; - is stdin
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

impl SecretArgs {
    /// The secret comes from stdin, so nothing else can.
    pub fn takes_stdin(&self) -> bool {
        self.secret.as_ref().is_some_and(|secret| secret.text() == "-")
            || self.secret_file.as_ref().is_some_and(|file| file.as_os_str() == "-")
    }

    /// By a flag.
    pub fn is_given(&self) -> bool {
        self.secret.is_some() || self.secret_file.is_some()
    }

    /// By a flag; otherwise by the environment; otherwise there is none.
    pub fn read(&self) -> anyhow::Result<Option<String>> {
        match (&self.secret, &self.secret_file) {
            (Some(secret), _) => secret.read().map(Some),
            (None, Some(path)) => from_file(path).map(Some),
            (None, None) => from_environment(),
        }
    }
}

/// The first line: others may follow that are something else.
fn from_stdin() -> anyhow::Result<String> {
    let mut line = String::new();
    io::stdin().lock().take(MAX_BYTES).read_line(&mut line).context("cannot read the secret from stdin")?;
    Ok(without_line_end(&line))
}

/// Without the line's end behind it. `-` is stdin, as for other files.
pub fn from_file(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        return from_stdin();
    }
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    read.with_context(|| format!("cannot read the secret from {}", path.display()))?;
    match text.len() as u64 > MAX_BYTES {
        true => Err(VerbError::Refused(format!("{} is larger than any secret", path.display())).into()),
        false => Ok(without_line_end(&text)),
    }
}

fn from_environment() -> anyhow::Result<Option<String>> {
    match std::env::var(VARIABLE) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(VerbError::Usage(format!("{VARIABLE} is not UTF-8")).into()),
    }
}

/// What an editor or `echo` puts behind it.
fn without_line_end(text: &str) -> String {
    text.strip_suffix("\r\n").or_else(|| text.strip_suffix('\n')).unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_hidden_and_loses_only_its_lines_end() {
        assert_eq!(format!("{:?}", Hidden("geheim".to_owned())), "(hidden)");
        let ends = ["a\n", "a\r\n", "a", "a \n", "a\n\n"].map(without_line_end);
        assert_eq!(ends, ["a", "a", "a", "a ", "a\n"]);
    }
}

//! What can be wrong with a configuration, all of it at once. No message shows a secret.

use std::fmt;

use super::origin::Origin;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}: {why}")]
    Unreadable { path: String, why: String },
    #[error("{name} in the environment is not UTF-8")]
    NotText { name: String },
    /// Shows nothing of the file's content.
    #[error("{origin}: cannot read the file: {why}")]
    UnreadableSecret { origin: Origin, why: String },
    #[error("{variable} and {file_variable} are both set: unset one of them")]
    SetTwice { variable: String, file_variable: String },
    /// The text says where, never what is written there: that may be half a secret.
    #[error("{origin}: is not valid TOML: {problem}")]
    Syntax { origin: Origin, problem: String },
    #[error("{origin}: there is no setting {name}; the nearest is {nearest}")]
    Unknown { name: String, origin: Origin, nearest: &'static str },
    /// `shown` is empty for secrets.
    #[error("{origin}: {key}{shown}: {problem}")]
    Bad { key: &'static str, origin: Origin, shown: String, problem: String },
}

/// A variable that looks meant for Herald but sets nothing. It stops nothing, so the program that starts reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownVariable {
    pub name: String,
    pub nearest: String,
}

impl fmt::Display for UnknownVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, nearest } = self;
        write!(f, "{name} in the environment is not a setting and has no effect; the nearest is {nearest}")
    }
}

/// Everything that is wrong, in the order file, environment, flags, then values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    pub(super) errors: Vec<ConfigError>,
    /// A misspelt variable may be the reason that something is wrong.
    pub(super) unknown_variables: Vec<UnknownVariable>,
}

impl ConfigErrors {
    pub fn all(&self) -> &[ConfigError] {
        &self.errors
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errors.as_slice() {
            [only] => write!(f, "the configuration is wrong: {only}")?,
            all => {
                write!(f, "the configuration is wrong in {} places:", all.len())?;
                all.iter().try_for_each(|error| write!(f, "\n  {error}"))?;
            }
        }
        self.unknown_variables.iter().try_for_each(|unknown| write!(f, "\nwarning: {unknown}"))
    }
}

impl std::error::Error for ConfigErrors {}

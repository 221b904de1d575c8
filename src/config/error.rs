//! What can be wrong with a configuration, all of it at once. No message shows a secret.

use std::fmt;

use super::origin::Origin;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}: {why}")]
    Unreadable { path: String, why: String },
    #[error("{name} in the environment is not UTF-8")]
    NotText { name: String },
    /// The text says where, never what stands there: it may be half a secret.
    #[error("{origin}: is no TOML: {problem}")]
    Syntax { origin: Origin, problem: String },
    #[error("{origin}: there is no setting {name}; the nearest is {nearest}{hint}")]
    Unknown { name: String, origin: Origin, nearest: &'static str, hint: &'static str },
    /// `shown` is empty for secrets.
    #[error("{origin}: {key}{shown}: {problem}")]
    Bad { key: &'static str, origin: Origin, shown: String, problem: String },
}

/// Everything that is wrong, in the order file, environment, flags, then values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub(super) Vec<ConfigError>);

impl ConfigErrors {
    pub fn all(&self) -> &[ConfigError] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "the configuration is wrong: {only}"),
            all => {
                write!(f, "the configuration is wrong in {} places:", all.len())?;
                all.iter().try_for_each(|error| write!(f, "\n  {error}"))
            }
        }
    }
}

impl std::error::Error for ConfigErrors {}

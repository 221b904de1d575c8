//! Which source a value came from, as `herald config show` and each error say it.

use std::{fmt, sync::Arc};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    BuiltIn,
    File {
        path: Arc<str>,
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// A file with nothing but the value, and the variable that names it.
    SecretFile {
        variable: String,
        path: String,
    },
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in default"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Env(name) => f.write_str(name),
            Self::SecretFile { variable, path } => write!(f, "{variable} ({path})"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

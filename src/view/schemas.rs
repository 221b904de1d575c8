//! Which schemas of what is stored this Herald reads and writes, and what older ones read: the one table of versions.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;

use crate::{
    facts::{
        delivery::RECORD_SCHEMA,
        endpoint::{DEFAULT_SCHEMES, ENDPOINT_SCHEMA, SEALED_SCHEMA, Scheme},
        health::HEALTH_SCHEMA,
        operation::OPERATION_SCHEMA,
    },
    history::HISTORY_SCHEMA,
};

/// Something that is stored.
pub struct Schema {
    pub name: &'static str,
    /// It and all before it are read.
    pub newest: u32,
    /// Each is written in the lowest that can say it, and this is the lowest that is written.
    pub lowest: u32,
}

const fn same(name: &'static str, newest: u32) -> Schema {
    Schema { name, newest, lowest: newest }
}

pub const SCHEMAS: [Schema; 5] = [
    // The newer one where there is a key to seal with.
    Schema { name: "endpoint", newest: SEALED_SCHEMA, lowest: ENDPOINT_SCHEMA },
    same("health", HEALTH_SCHEMA),
    same("history", HISTORY_SCHEMA),
    same("operation", OPERATION_SCHEMA),
    same("record", RECORD_SCHEMA),
];

/// A version, what is stored with its newest schema that it reads, and the schemes that it signs by.
type Row = (&'static str, [(&'static str, u32); SCHEMAS.len()], &'static [Scheme]);

/// Each that was released, the oldest first. The last is this one.
const VERSIONS: [Row; 1] =
    [("0.1.0", [("endpoint", 2), ("health", 1), ("history", 1), ("operation", 1), ("record", 1)], &Scheme::ALL)];

/// What another version can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reads {
    pub version: String,
    schemas: BTreeMap<String, u32>,
    schemes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadsError {
    #[error("{0} is newer than this Herald, {own}, which cannot know what it reads: ask that one", own = env!("CARGO_PKG_VERSION"))]
    Newer(String),
    #[error(
        "{0:?} is no version that this Herald knows, which are {known}; of another build, name a file with what its \
         `herald version -o json` prints", known = Known
    )]
    Unknown(String),
    #[error("this is not what `herald version -o json` prints: {0}")]
    Malformed(String),
}

struct Known;

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&VERSIONS.map(|(version, ..)| version).join(", "))
    }
}

impl Reads {
    pub fn of_version(version: &str) -> Result<Self, ReadsError> {
        let Some((version, schemas, schemes)) = VERSIONS.iter().find(|(known, ..)| *known == version) else {
            let is_newer = numbers(version) > numbers(env!("CARGO_PKG_VERSION")) && numbers(version).is_some();
            return Err(if is_newer { ReadsError::Newer(version.into()) } else { ReadsError::Unknown(version.into()) });
        };
        let schemas = schemas.iter().map(|(name, newest)| ((*name).to_owned(), *newest)).collect();
        Ok(Self {
            version: (*version).to_owned(),
            schemas,
            schemes: schemes.iter().map(|scheme| scheme.name().to_owned()).collect(),
        })
    }

    /// As that version itself says it.
    pub fn told(json: &str) -> Result<Self, ReadsError> {
        #[derive(Deserialize)]
        struct Told {
            version: String,
            schemas: BTreeMap<String, OfOne>,
            /// Older builds do not say it.
            #[serde(default = "first_schemes")]
            schemes: Vec<String>,
        }
        #[derive(Deserialize)]
        struct OfOne {
            reads: Vec<u32>,
        }
        fn first_schemes() -> Vec<String> {
            DEFAULT_SCHEMES.map(|scheme| scheme.name().to_owned()).into()
        }
        let Told { version, schemas, schemes } =
            serde_json::from_str(json).map_err(|error| ReadsError::Malformed(error.to_string()))?;
        let newest = |(name, of): (String, OfOne)| (name, of.reads.into_iter().max().unwrap_or(0));
        Ok(Self { version, schemas: schemas.into_iter().map(newest).collect(), schemes })
    }

    /// Of something that is stored; 0 if it knows nothing of that.
    pub fn newest(&self, name: &str) -> u32 {
        self.schemas.get(name).copied().unwrap_or(0)
    }

    pub fn knows_scheme(&self, scheme: &str) -> bool {
        self.schemes.iter().any(|known| known == scheme)
    }
}

fn numbers(version: &str) -> Option<Vec<u64>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_ends_with_this_version_as_it_is() {
        let (version, schemas, schemes) = VERSIONS[VERSIONS.len() - 1];
        assert_eq!(version, env!("CARGO_PKG_VERSION"), "a new version gets a row of its own");
        assert_eq!(schemas, SCHEMAS.map(|Schema { name, newest, .. }| (name, newest)));
        assert_eq!(schemes, Scheme::ALL);
    }

    #[test]
    fn a_version_that_is_not_known_is_told_from_a_newer_one() {
        for newer in ["0.1.1", "0.2", "1.0.0", "0.10.0"] {
            assert_eq!(Reads::of_version(newer), Err(ReadsError::Newer(newer.to_owned())));
        }
        for unknown in ["0.0.9", "", "latest", "0.1.0-rc1"] {
            assert_eq!(Reads::of_version(unknown), Err(ReadsError::Unknown(unknown.to_owned())));
        }
    }
}

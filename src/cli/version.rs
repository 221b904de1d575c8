//! `herald version`: which build this is, and which schemas of what is stored it reads and writes. Whoever updates compares them:
//! neighbouring versions share a Redis, and one that meets a newer schema than it reads refuses it by name.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    facts::{delivery::RECORD_SCHEMA, endpoint::ENDPOINT_SCHEMA, health::HEALTH_SCHEMA, operation::OPERATION_SCHEMA},
    history::HISTORY_SCHEMA,
    surface::{Format, Output},
};

/// What is stored, and the newest schema of it: the one that is written. All before it are read.
const SCHEMAS: [(&str, u32); 5] = [
    ("endpoint", ENDPOINT_SCHEMA),
    ("health", HEALTH_SCHEMA),
    ("history", HISTORY_SCHEMA),
    ("operation", OPERATION_SCHEMA),
    ("record", RECORD_SCHEMA),
];

#[derive(Serialize)]
struct Build {
    version: &'static str,
    /// None where the build could not know it.
    revision: Option<&'static str>,
    schemas: BTreeMap<&'static str, Schemas>,
}

#[derive(Serialize)]
struct Schemas {
    reads: Vec<u32>,
    writes: u32,
}

pub fn run(format: Option<Format>) -> anyhow::Result<()> {
    let schemas = SCHEMAS.map(|(name, newest)| (name, Schemas { reads: (1..=newest).collect(), writes: newest }));
    let build =
        Build { version: env!("CARGO_PKG_VERSION"), revision: option_env!("BUILD_REVISION"), schemas: schemas.into() };
    let mut fields = vec![
        ("version", build.version.to_owned()),
        ("revision", build.revision.unwrap_or("unknown: not a release build from a checkout").to_owned()),
    ];
    fields.extend(SCHEMAS.map(|(name, newest)| (name, format!("schema {newest}"))));
    Output::new(format).one(&build, &fields)
}

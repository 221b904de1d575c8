//! `herald version`: which build this is, and which schemas of what is stored it reads and writes. Whoever updates compares them:
//! neighbouring versions share a Redis, and one that meets a newer schema than it reads refuses it by name.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    facts::endpoint::Scheme,
    surface::{Format, Output},
    view::schemas::{SCHEMAS, Schema},
};

#[derive(Serialize)]
struct Build {
    version: &'static str,
    /// None where the build could not know it.
    revision: Option<&'static str>,
    schemas: BTreeMap<&'static str, Schemas>,
    /// How endpoints may be signed for.
    schemes: [Scheme; Scheme::ALL.len()],
}

#[derive(Serialize)]
struct Schemas {
    reads: Vec<u32>,
    /// The lowest that can say what is to be written.
    writes: Vec<u32>,
}

pub fn run(format: Option<Format>) -> anyhow::Result<()> {
    let schemas = SCHEMAS.map(|Schema { name, newest, lowest }| {
        (name, Schemas { reads: (1..=newest).collect(), writes: (lowest..=newest).collect() })
    });
    let build = Build {
        version: env!("CARGO_PKG_VERSION"),
        revision: option_env!("BUILD_REVISION"),
        schemas: schemas.into(),
        schemes: Scheme::ALL,
    };
    let mut fields = vec![
        ("version", build.version.to_owned()),
        ("revision", build.revision.unwrap_or("unknown: not a release build from a checkout").to_owned()),
    ];
    fields.extend(SCHEMAS.map(|Schema { name, newest, lowest }| match lowest == newest {
        true => (name, format!("schema {newest}")),
        false => (name, format!("schema {lowest} to {newest}, the lowest that will do")),
    }));
    Output::new(format).one(&build, &fields)
}

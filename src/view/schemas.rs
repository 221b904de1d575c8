//! Which schemas of what is stored this Herald reads and writes.

use crate::{
    facts::{
        delivery::RECORD_SCHEMA,
        endpoint::{ENDPOINT_SCHEMA, SEALED_SCHEMA},
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

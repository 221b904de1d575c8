//! A quarantined entry as it is shown.

use serde::Serialize;
use utoipa::ToSchema;

use super::time::Time;
use crate::{facts::event::intent_in, store::queries::Quarantined};

#[derive(Serialize, ToSchema)]
pub struct QuarantineView {
    /// Its id in the stream.
    entry: String,
    at: Time,
    /// What is wrong with it.
    error: String,
    /// Only a part of it was kept, or it has no field `event`: it cannot be put back.
    cut: bool,
    /// If it can be read.
    intent: Option<String>,
    /// The stream in whose quarantine it is, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    /// Bytes that are not UTF-8 show as U+FFFD.
    body: String,
}

impl QuarantineView {
    pub fn of(one: &Quarantined, stream: Option<&str>) -> Self {
        Self {
            entry: one.entry.to_string(),
            at: Time(one.at_ms),
            error: one.error.clone(),
            cut: one.cut,
            intent: intent_in(&one.body).map(|intent| intent.to_string()),
            stream: stream.map(str::to_owned),
            body: String::from_utf8_lossy(&one.body).into_owned(),
        }
    }
}

//! An act of the audit log as it is shown.

use serde::Serialize;
use utoipa::ToSchema;

use super::time::Time;
use crate::store::audit::Logged;

#[derive(Serialize, ToSchema)]
pub struct ActView {
    id: String,
    at: Time,
    /// As its verb is called: `endpoint disable`.
    act: String,
    by: String,
    /// cli, http or worker.
    surface: &'static str,
    host: String,
    process: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// Whom the request came from, over HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    intent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
    /// How many it was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    /// None has been written while it is under way, and none ever is where its process died.
    ended: Option<EndView>,
}

#[derive(Serialize, ToSchema)]
pub struct EndView {
    at: Time,
    /// done, refused or failed.
    result: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<u64>,
}

impl ActView {
    pub fn of(logged: &Logged) -> Self {
        let begun = &logged.begun;
        let ended = logged.ended.as_ref().map(|(at, ended)| EndView {
            at: Time(at.ms),
            result: ended.result.name(),
            why: ended.why.clone(),
            done: ended.done,
            skipped: ended.skipped,
        });
        Self {
            id: logged.id.to_string(),
            at: Time(logged.id.ms),
            act: begun.act.clone(),
            by: begun.by.clone(),
            surface: begun.origin.surface.name(),
            host: begun.origin.host.clone(),
            process: begun.origin.process,
            user: begun.origin.user.clone(),
            address: begun.address.as_ref().map(ToString::to_string),
            why: begun.why.clone(),
            account: begun.account.as_ref().map(ToString::to_string),
            endpoint: begun.endpoint.as_ref().map(ToString::to_string),
            intent: begun.intent.as_ref().map(ToString::to_string),
            target: begun.target.clone(),
            filter: begun.filter.clone(),
            count: begun.count,
            ended,
        }
    }
}

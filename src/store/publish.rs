//! Adds events for the operations API: each once within a while, by its id. Whoever gets no answer asks again, and nothing is
//! sent twice.

use std::{sync::LazyLock, time::Duration};

use sha2::{Digest, Sha256};

use super::{
    connection::{Connection, Script, Subject},
    error::StoreError,
    keys::PartitionKeys,
};
use crate::{
    facts::{event::Event, id::EntryId, traceparent::Traceparent},
    telemetry::traces::Publishing,
};

/// For how long an event's id is remembered: a producer that got no answer asks again within seconds. Each takes some 150 bytes
/// of Redis' memory for that long.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// As much of a digest as tells one event from another by accident; nobody gains by making two alike.
const DIGEST_BYTES: usize = 12;

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new("publish", include_str!("scripts/publish.lua")));

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    Added(EntryId),
    /// It was added before.
    Known(EntryId),
    /// Another event with its id was added before. This one was not.
    Differs(EntryId),
}

/// Adds these in their order, in one step.
pub async fn publish(
    connection: &mut Connection,
    keys: &PartitionKeys,
    events: &[(Event, Option<Traceparent>)],
) -> Result<Vec<Published>, StoreError> {
    let subject = Subject("publish events on", keys.stream());
    let mut call = PUBLISH.keys(&[keys.stream()]).arg(keys.prefix()).arg(REMEMBERED_FOR.as_millis() as u64);
    let mut publishing = Vec::with_capacity(events.len());
    for (event, traceparent) in events {
        let begun = Publishing::begin(&event.id, traceparent.as_ref());
        let own = begun.as_ref().and_then(Publishing::traceparent);
        publishing.push(begun);
        let digest = hex::encode(&Sha256::digest(event.body())[..DIGEST_BYTES]);
        let traceparent = own.as_ref().or(traceparent.as_ref()).map_or("", Traceparent::as_str);
        call = call.arg(event.id.as_str()).arg(digest).arg(event.body().as_ref()).arg(traceparent);
    }
    let answer: Vec<String> = connection.run(subject, &call).await?;
    let read = |pair: &[String]| {
        let [what, entry] = pair else { return None };
        let entry = entry.parse().ok()?;
        match what.as_str() {
            "added" => Some(Published::Added(entry)),
            "known" => Some(Published::Known(entry)),
            "differs" => Some(Published::Differs(entry)),
            _ => None,
        }
    };
    let published = answer.chunks(2).map(read).collect::<Option<Vec<_>>>().filter(|all| all.len() == events.len());
    let published = published.ok_or_else(|| StoreError::unexpected(subject, format_args!("{answer:?}")))?;
    for (begun, published) in publishing.into_iter().zip(&published) {
        // What was there before has its span.
        if let (Some(begun), Published::Added(entry)) = (begun, published) {
            begun.ended(keys.stream(), *entry);
        }
    }
    Ok(published)
}

//! The way in for events: singly and in batches. Each is checked as the worker would, and published once within ten minutes, by
//! its id: who gets no answer asks again. The answer comes when Redis has it, and says how durable that is.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::timeout;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

use super::{
    Api,
    access::{Operator, Staff},
    request::{Body, ChangeRefusals, Refusals, named, of_store},
};
use crate::{
    clock,
    facts::{
        event::{Event, MAX_EVENT_BYTES},
        id::{EntryId, EventId},
        traceparent::Traceparent,
    },
    history::{EventPlace, EventsWanted, KeptEvent},
    http::{
        problem::{Problem, ProblemDetails},
        server::BODY_WITHIN,
    },
    store::{
        entries::StreamEntry,
        publish::{Publication, PublishError, Published},
        queries::Queries,
        registry::confirming::Confirmation,
    },
    view::time::Time,
};

type Answer<T> = Result<Json<T>, Problem>;

/// Of a batch.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;
const MAX_BATCH_EVENTS: usize = 1_000;

/// For how long what Redis does with writes is believed.
const DURABILITY_FOR: Duration = Duration::from_secs(5);

/// Entries of the stream that a search looks at, from the newest on.
const MAX_SEARCH: u64 = 10_000;

/// The most of the history: an event is there more than once if its producer repeats itself.
const MAX_KEPT: usize = 10;

/// An event as its producer writes it.
pub struct EventBody;

impl PartialSchema for EventBody {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let data = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("paymentIntentId", text())
            .property("paymentStatus", text())
            .property("captureMode", text())
            .required("paymentIntentId")
            .required("paymentStatus");
        ["id", "event", "accountId", "createdAt"]
            .into_iter()
            .fold(ObjectBuilder::new().schema_type(Type::Object), |event, name| {
                event.property(name, text()).required(name)
            })
            .property("data", data)
            .required("data")
            .description(Some("Further members stay as they are: the bytes are what is signed and sent."))
            .into()
    }
}

impl ToSchema for EventBody {}

/// What survives what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Lost when Redis ends.
    Memory,
    /// In Redis' append-only file: kept when Redis ends, and by default lost to a power failure of the last second.
    File,
    /// Written through to the disk before the answer.
    Disk,
}

/// How durable what Redis has accepted is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Durability {
    level: Level,
    /// `appendfsync`; null where Redis does not tell it.
    fsync: Option<String>,
    /// That were connected within the last seconds.
    replicas: u64,
    /// Replicas that had it before this answer, of those that are waited for: `redis.wait`, on a Cluster or behind sentinels one.
    confirmed: u64,
}

/// The answer to a change.
#[derive(Serialize, ToSchema)]
pub struct Changed<T> {
    #[serde(flatten)]
    stored: T,
    /// Only where replicas have not confirmed it in time, with `confirmed` the number of those that have: it is stored, and a failover
    /// may take it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    durability: Option<Durability>,
}

/// What is known of that.
#[derive(Default)]
pub struct Durabilities(Mutex<Option<(Arc<Durability>, Instant)>>);

#[derive(Serialize, ToSchema)]
pub struct PublishedEvent {
    event: String,
    /// Its id in the stream.
    entry: String,
    /// `added`; or `known`, if it was published before.
    result: &'static str,
}

#[derive(Serialize, ToSchema)]
pub struct Receipt {
    #[serde(flatten)]
    published: PublishedEvent,
    durability: Durability,
}

/// Publish an event. The header `traceparent` goes on to endpoints that ask for it.
#[utoipa::path(
    post, path = "/v1/events", tag = "Events", request_body = EventBody,
    responses((status = 200, description = "It was published before", body = Receipt), (status = 201, body = Receipt),
        Refusals, ChangeRefusals)
)]
pub async fn publish(
    State(api): State<Api>,
    Operator(_): Operator,
    body: Body<MAX_EVENT_BYTES>,
) -> Result<(StatusCode, Json<Receipt>), Problem> {
    let event = api.event(body.bytes).map_err(|why| Problem::fault("body", why))?;
    let id = event.id.to_string();
    let (published, confirmed) = api.publish(&[(event, traceparent(&body.headers))]).await?;
    let durability = api.durability(confirmed).await?;
    let (status, entry, result) = match published.first() {
        Some(Published::Added(entry)) => (StatusCode::CREATED, entry, "added"),
        Some(Published::Known(entry)) => (StatusCode::OK, entry, "known"),
        Some(Published::Differs(entry)) => return Err(differs(&id, *entry)),
        None => return Err(Problem::internal(&"an event was published without an answer")),
    };
    let published = PublishedEvent { event: id, entry: entry.to_string(), result };
    Ok((status, Json(Receipt { published, durability })))
}

fn differs(id: &str, entry: EntryId) -> Problem {
    let detail = format!("Another event {id} was published within ten minutes, as entry {entry}; this one was not.");
    Problem::new(StatusCode::CONFLICT, "event-differs", detail)
}

#[derive(Serialize, ToSchema)]
pub struct BatchResult {
    event: String,
    /// Its id in the stream; of one that differs, that of the other.
    entry: String,
    /// `added`; `known`, if it was published before; or `differs`, if another one with its id was, and this one was not.
    result: &'static str,
}

#[derive(Serialize, ToSchema)]
pub struct BatchReceipt {
    /// In the order of the batch.
    items: Vec<BatchResult>,
    added: u64,
    known: u64,
    differ: u64,
    durability: Durability,
}

/// Where larger bodies come than elsewhere, which are read only while their place is held.
pub const BATCH_PATH: &str = "/v1/events/batch";

/// Publish up to 1 000 events and 1 MiB at once, in their order. If one is wrong, none is published.
#[utoipa::path(
    post, path = "/v1/events/batch", tag = "Events", request_body = Vec<EventBody>,
    responses((status = 200, body = BatchReceipt), Refusals, ChangeRefusals)
)]
pub async fn publish_batch(
    State(api): State<Api>,
    Operator(_): Operator,
    request: axum::extract::Request,
) -> Answer<BatchReceipt> {
    let Ok(_place) = api.0.batches.try_acquire() else {
        return Err(Problem::unavailable("Too many batches are being read: nothing was done, try again.", 1));
    };
    let body =
        timeout(BODY_WITHIN, <Body<MAX_BATCH_BYTES> as axum::extract::FromRequest<()>>::from_request(request, &()));
    let body = body.await.map_err(|_| Problem::fault("body", "did not arrive within 10 seconds"))??;
    let traceparent = traceparent(&body.headers);
    let events: Vec<_> = api.events(&body.bytes)?.into_iter().map(|event| (event, traceparent.clone())).collect();
    let (published, confirmed) = api.publish(&events).await?;
    let durability = api.durability(confirmed).await?;
    let mut receipt =
        BatchReceipt { items: Vec::with_capacity(events.len()), added: 0, known: 0, differ: 0, durability };
    for ((event, _), published) in events.iter().zip(published) {
        let (entry, result, count) = match published {
            Published::Added(entry) => (entry, "added", &mut receipt.added),
            Published::Known(entry) => (entry, "known", &mut receipt.known),
            Published::Differs(entry) => (entry, "differs", &mut receipt.differ),
        };
        *count += 1;
        receipt.items.push(BatchResult { event: event.id.to_string(), entry: entry.to_string(), result });
    }
    Ok(Json(receipt))
}

/// An entry of the stream.
#[derive(Serialize, ToSchema)]
pub struct EntryView {
    entry: String,
    /// From its id; null if that is not a time.
    at: Option<Time>,
    event: String,
    account: String,
    intent: String,
    body: String,
}

/// Find an event by its own id: among the newest 10 000 entries of the stream, the newest first, or else in the history, which
/// keeps events for `history.bodies`.
#[utoipa::path(
    get, path = "/v1/events/{event}", tag = "Events", params(("event" = String, Path)),
    responses((status = 200, body = Vec<EntryView>), Refusals, (status = 413, body = ProblemDetails))
)]
pub async fn find(State(api): State<Api>, Staff(_): Staff, Path(id): Path<String>) -> Answer<Vec<EntryView>> {
    let id: EventId = named(&id)?;
    let _place = api.0.heavy.take_for_staff().await?;
    let mut found = api.queries(async |queries| queries.search(&id, MAX_SEARCH).await).await?;
    if found.hits.is_empty() {
        let wanted = EventsWanted { event: Some(id), ..EventsWanted::default() };
        let kept = api.0.history.events(&wanted, EventPlace::default(), MAX_KEPT).await.unwrap_or_default();
        found.hits.extend(kept.into_iter().rev().map(KeptEvent::into_entry));
    }
    let now_ms = clock::wall_ms();
    let view = |entry: &StreamEntry| {
        let event = Event::parse(entry.field("event")?.clone()).ok()?;
        Some(EntryView {
            entry: entry.id.to_string(),
            at: entry.id.age_ms(now_ms).map(|_| Time(entry.id.ms)),
            event: event.id.to_string(),
            account: event.account.to_string(),
            intent: event.intent.to_string(),
            body: String::from_utf8_lossy(event.body()).into_owned(),
        })
    };
    let found: Vec<EntryView> = found.hits.iter().filter_map(view).collect();
    if found.is_empty() { Err(Problem::not_found()) } else { Ok(Json(found)) }
}

/// The caller's trace, where it sends one.
fn traceparent(headers: &HeaderMap) -> Option<Traceparent> {
    headers.get("traceparent")?.to_str().ok()?.parse().ok()
}

impl Api {
    fn event(&self, body: Bytes) -> Result<Event, String> {
        let event = Event::parse(body).map_err(|error| format!("is no event: {error}"))?;
        match event.novelties.first() {
            Some(new) if self.0.strict_events => Err(format!("is refused, as events.strict is set: {new}")),
            _ => Ok(event),
        }
    }

    /// Each byte for byte as it stands in the array.
    fn events(&self, body: &Bytes) -> Result<Vec<Event>, Problem> {
        let text = std::str::from_utf8(body).map_err(|_| Problem::fault("body", "is not UTF-8"))?;
        let values: Vec<&RawValue> = serde_json::from_str(text)
            .map_err(|error| Problem::fault("body", format!("is no JSON array of events: {error}")))?;
        if values.is_empty() || values.len() > MAX_BATCH_EVENTS {
            return Err(Problem::fault("body", format!("has {} events, not 1 to {MAX_BATCH_EVENTS}", values.len())));
        }
        let (mut events, mut faults) = (Vec::with_capacity(values.len()), Vec::new());
        for (number, value) in values.into_iter().enumerate() {
            match self.event(body.slice_ref(value.get().as_bytes())) {
                Ok(event) => events.push(event),
                Err(why) => faults.push((format!("[{number}]"), why)),
            }
        }
        if faults.is_empty() { Ok(events) } else { Err(Problem::faults(faults.into_iter().take(50))) }
    }

    async fn publish(&self, events: &[Publication]) -> Result<(Vec<Published>, u64), Problem> {
        self.0.publisher.publish(events).await.map_err(|error| match &error {
            PublishError::Store(error) => of_store(error),
            PublishError::NotReady => {
                let detail = "The stream is being split and is not ready; events may be stored: send them again with the same ids.";
                Problem::unavailable(detail, 1).because(&error)
            }
            PublishError::NotReplicated { .. } => {
                let detail = format!("{error}: it may be stored; send it again with the same id.");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-replicated", detail).with(RETRY_AFTER, 1u32)
            }
        })
    }

    /// The answer to a change of the registry: 202 where replicas have not confirmed it.
    pub(super) async fn changed<T: Serialize>(
        &self,
        status: StatusCode,
        stored: T,
        confirmation: &Confirmation,
    ) -> Result<Response, Problem> {
        if confirmation.is_enough() {
            return Ok((status, Json(Changed { stored, durability: None })).into_response());
        }
        let durability = Some(self.durability(confirmation.confirmed).await?);
        Ok((StatusCode::ACCEPTED, Json(Changed { stored, durability })).into_response())
    }

    async fn durability(&self, confirmed: u64) -> Result<Durability, Problem> {
        let now = clock::now();
        let known = lock(&self.0.durability.0).clone();
        if let Some((known, since)) = known
            && now < since + DURABILITY_FOR
        {
            return Ok(Durability { confirmed, ..(*known).clone() });
        }
        let ask = async |connection: crate::store::connection::Connection| {
            let info = connection.clone().server_info().await?;
            let settings = Queries::new(connection, self.0.keys.clone()).settings().await?;
            let level = match (info.aof_enabled, settings.appendfsync.as_deref()) {
                (false, _) => Level::Memory,
                (true, Some("always")) => Level::Disk,
                (true, _) => Level::File,
            };
            Ok(Durability { level, fsync: settings.appendfsync, replicas: info.connected_replicas, confirmed: 0 })
        };
        // What is published is published: that Redis went away since must not be taken for a failure.
        let asked = self.0.connection.with(ask).await;
        let told = asked.unwrap_or(Durability { level: Level::Memory, fsync: None, replicas: 0, confirmed: 0 });
        *lock(&self.0.durability.0) = Some((Arc::new(told.clone()), now));
        Ok(Durability { confirmed, ..told })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

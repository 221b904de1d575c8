//! Events to be pulled: those that the history keeps, whoever published them, the oldest first. An account's events of payment
//! intents have numbers, and so a feed that can prove that none is missing; of these only the history can say what it missed.

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::{Anyone, Caller},
    request::{Cursor, Params, Refusals, limit, moment, optional, parsed, refused, wrong_cursor},
};
use crate::{
    facts::event::EventType,
    history::{EventPlace, EventsWanted, KeptEvent},
    http::problem::{Problem, ProblemDetails},
    store::queries::Partitions,
    view::{
        past::{self, GapView},
        time::Time,
    },
};

/// Of a page: each event may have 64 KiB.
const MAX_EVENTS: usize = 100;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Whose events. A merchant's token has its own.
    account: Option<String>,
    /// Only of this type, or of these, with commas in between.
    event_type: Option<String>,
    /// Only of this payment intent.
    intent: Option<String>,
    /// Only what was read since then: `2026-05-01T09:00:00Z`, or an age, `6h`.
    since: Option<String>,
    /// Only what was read before then.
    until: Option<String>,
    /// At most so many, 1 to 500; a page has at most 100.
    limit: Option<String>,
    /// `next` of the page before: the events are pulled by following it.
    cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct KeptEvents {
    /// The oldest first.
    items: Vec<KeptEventView>,
    /// As `cursor` it leads to what comes next, also when there is nothing yet.
    next: String,
    /// Since when events are kept; null while there are none.
    back_to: Option<Time>,
    /// Times of which events are missing, of whatever account, between the page before and the end of this one.
    gaps: Vec<GapView>,
}

#[derive(Serialize, ToSchema)]
pub struct KeptEventView {
    id: String,
    /// In the stream.
    entry: String,
    /// When the history read it, a moment after it was accepted.
    at: Time,
    account: String,
    intent: String,
    event_type: String,
    /// Among those of its account's payment intents; null for what another producer published.
    number: Option<u64>,
    /// As it is sent, byte for byte.
    #[schema(value_type = Object)]
    event: Box<RawValue>,
}

impl KeptEventView {
    fn of(kept: KeptEvent) -> Result<Self, Problem> {
        let KeptEvent { entry, read_ms, account, intent, event, event_type, number, body, .. } = kept;
        let body = String::from_utf8(body).map_err(|error| Problem::internal(&error))?;
        Ok(Self {
            id: event.to_string(),
            entry: entry.to_string(),
            at: Time(read_ms),
            account: account.to_string(),
            intent: intent.to_string(),
            event_type,
            number,
            event: RawValue::from_string(body).map_err(|error| Problem::internal(&error))?,
        })
    }
}

/// Pull the events of an account, whoever published them, as long as the history keeps events (`history.bodies`).
#[utoipa::path(
    get, path = "/v1/events", tag = "Events", params(ListQuery),
    responses((status = 200, body = KeptEvents), Refusals,
        (status = 409, description = "No events are kept, or an older state was restored", body = ProblemDetails))
)]
pub async fn list(
    State(api): State<Api>,
    Anyone(caller): Anyone,
    Params(query): Params<ListQuery>,
) -> Result<Json<KeptEvents>, Problem> {
    let account = caller.narrowed(optional("account", query.account.as_ref())?)?;
    let account = account.ok_or_else(|| Problem::fault("account", "is needed"))?;
    let types = query.event_type.iter().flat_map(|types| types.split(','));
    let types = types.map(|text| parsed::<EventType>("event_type", text)).collect::<Result<_, _>>()?;
    let most = limit(query.limit.as_ref())?.min(MAX_EVENTS);
    let after = match Cursor::read(query.cursor.as_ref())? {
        None => EventPlace::default(),
        Some(Cursor::After(key)) => place_of(&key).ok_or_else(wrong_cursor)?,
        Some(Cursor::Before(_)) => return Err(wrong_cursor()),
    };
    let history = &api.0.history;
    if !history.is_on() || history.keeps_events_for().is_zero() {
        return Err(not_kept(&caller));
    }
    let look = async |queries: &mut Partitions| Ok((queries.now_ms().await?, queries.layout().path(&account)));
    let (now_ms, path) = api.queries(look).await?;
    let (from_ms, until_ms) =
        (moment("since", query.since.as_ref(), now_ms)?, moment("until", query.until.as_ref(), now_ms)?);
    past::check_span(from_ms, until_ms).map_err(|why| Problem::fault("since", why))?;
    let wanted = EventsWanted {
        account: Some(account),
        intent: optional("intent", query.intent.as_ref())?,
        event: None,
        from_ms,
        until_ms: until_ms.map(|until_ms| until_ms.saturating_sub(1)),
        types,
    };
    let _place = api.0.heavy.take_for(&caller).await?;
    let asked = history.ask(async |reader| {
        // First: all that was read until then is among what is found.
        let read = reader.events_read(&path).await?.unwrap_or_default();
        let begins_ms = reader.events_begin_ms().await?;
        let events = reader.events(&wanted, after, most).await?;
        let until_ms = events.last().filter(|_| events.len() == most).map(|last| last.read_ms);
        let gaps = reader.event_gaps(after.since_ms().max(from_ms.unwrap_or(0)), until_ms).await?;
        Ok((read, begins_ms, events, gaps))
    });
    let away = |_| Problem::unavailable("The history, which keeps the events, does not answer.", 5);
    let (read, begins_ms, events, gaps) = asked.await.map_err(away)?;
    if after > read {
        return Err(was_set_back());
    }
    // Behind what does not fit nobody looks again.
    let next = match events.last().map(KeptEvent::place) {
        Some(last) if events.len() == most || until_ms.is_some() => last,
        None if until_ms.is_some() => after,
        last => last.max(Some(read)).unwrap_or(read),
    };
    Ok(Json(KeptEvents {
        next: Cursor::After(key_of(next)).text(),
        items: events.into_iter().map(KeptEventView::of).collect::<Result<_, _>>()?,
        back_to: begins_ms.map(Time),
        gaps: gaps.iter().map(|gap| GapView::of(gap, caller.viewer())).collect(),
    }))
}

/// Redis was set back, so what comes now may have places before what whoever pulls has seen.
fn was_set_back() -> Problem {
    let detail = "The cursor stands behind the last event that was read: an older state was restored. Begin with `since`, and compare \
                  what you have by its id.";
    Problem::new(StatusCode::CONFLICT, "feed-was-set-back", detail)
}

fn not_kept(caller: &Caller) -> Problem {
    refused(match caller.viewer().is_operator() {
        true => "No events are kept: that needs history.url, and history.bodies above 0.",
        false => "No events are kept here.",
    })
}

fn key_of(place: EventPlace) -> String {
    format!("e {} {}", place.day, place.entry)
}

fn place_of(key: &str) -> Option<EventPlace> {
    let (day, entry) = key.strip_prefix("e ")?.split_once(' ')?;
    Some(EventPlace { day: day.parse().ok()?, entry: entry.parse().ok()? })
}

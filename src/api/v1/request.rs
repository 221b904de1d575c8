//! What the calls have in common: how a body and a query are read, how pages go on, how errors are told.

use std::str::FromStr;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{HeaderMap, StatusCode, request::Parts},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use super::{changes, letters, operations, quarantine, settings, test_events, tokens};
use crate::{
    api::webhooks::operations::of_url,
    facts::{audit::Verdict, text::steers},
    http::{
        json::Schema,
        problem::{Problem, ProblemDetails},
        server::BODY_WITHIN,
    },
    registry::rules::RuleError,
    sender::GuardError,
    store::{
        audit::{AuditError, Judged},
        error::StoreError,
        registry::RegistryError,
    },
    view::{Viewer, time::Moment},
};

/// Of a usual body. Events have bounds of their own.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// Of a page, where nothing is said.
const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 500;

/// Longest reason: it stands in records, the change feed and the audit log.
const MAX_REASON_CHARS: usize = 1024;

/// How bodies are checked; made once.
#[derive(Default)]
pub struct Schemas {
    pub create: Schema<settings::CreateEndpoint>,
    pub update: Schema<settings::UpdateEndpoint>,
    pub reason: Schema<Reason>,
    pub rotate: Schema<changes::RotateSecret>,
    pub test: Schema<test_events::TestRequest>,
    pub letters: Schema<letters::LetterIds>,
    pub entries: Schema<quarantine::EntryIds>,
    pub token: Schema<tokens::CreateToken>,
    pub plan: Schema<operations::PlanOperation>,
    pub change_operation: Schema<operations::ChangeOperation>,
    pub operation_rate: Schema<operations::SetRate>,
}

/// Why something is changed: it is kept with the change.
#[derive(Debug, serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    #[schema(min_length = 1, max_length = 1024)]
    pub reason: String,
}

/// A reason as the command line takes it.
pub fn reason(text: &str) -> Result<String, Problem> {
    let text = text.trim();
    match text.is_empty() || text.chars().count() > MAX_REASON_CHARS || text.contains(steers) {
        true => Err(Problem::fault("reason", format!("is not 1 to {MAX_REASON_CHARS} characters on one line"))),
        false => Ok(text.to_owned()),
    }
}

/// What every call can be refused with.
#[derive(IntoResponses)]
#[allow(dead_code)]
pub enum Refusals {
    #[response(status = 400, description = "The request is wrong, whatever the state")]
    Wrong(ProblemDetails),
    #[response(status = 401, description = "The token is missing, unknown or expired")]
    Unknown(ProblemDetails),
    #[response(status = 403, description = "The token's role may not do this")]
    Forbidden(ProblemDetails),
    #[response(status = 404, description = "It is not there, or it is another account's")]
    NotFound(ProblemDetails),
    #[response(
        status = 429,
        description = "Too many unknown tokens came from this address, or an account asks for too much at a time"
    )]
    TooMany(ProblemDetails),
    #[response(status = 503, description = "Redis is full or away, or nobody owns the partition")]
    Unavailable(ProblemDetails),
}

/// What changes can be refused with beside that.
#[derive(IntoResponses)]
#[allow(dead_code)]
pub enum ChangeRefusals {
    #[response(status = 409, description = "What is there refuses it")]
    Conflict(ProblemDetails),
    #[response(status = 413, description = "The body is too large")]
    TooLarge(ProblemDetails),
}

/// A body that is read only once the caller may send one.
pub struct Body<const MOST: usize = MAX_BODY_BYTES> {
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl<S: Send + Sync, const MOST: usize> FromRequest<S> for Body<MOST> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let headers = request.headers().clone();
        let too_large = || {
            let detail = format!("The body is larger than {MOST} bytes.");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail)
        };
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ => Problem::fault("body", format!("did not arrive whole within {} seconds", BODY_WITHIN.as_secs())),
        })?;
        if bytes.len() > MOST { Err(too_large()) } else { Ok(Self { headers, bytes }) }
    }
}

impl Body {
    pub fn read<T: ToSchema + PartialSchema + DeserializeOwned>(&self, schema: &Schema<T>) -> Result<T, Problem> {
        schema.read(&self.headers, &self.bytes).map(|(body, _)| body)
    }

    /// For calls that need no body.
    pub fn read_or_default<T>(&self, schema: &Schema<T>) -> Result<T, Problem>
    where
        T: ToSchema + PartialSchema + DeserializeOwned + Default,
    {
        if self.bytes.is_empty() { Ok(T::default()) } else { self.read(schema) }
    }
}

/// The query, with a fault that says what is wrong with it.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        let told = |rejection: axum::extract::rejection::QueryRejection| {
            let text = rejection.body_text();
            let why = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text).to_owned();
            Problem::fault("query", format!("cannot be read: {why}"))
        };
        query.map(|Query(query)| Self(query)).map_err(told)
    }
}

/// A member of the query or the path, as its type.
pub fn parsed<T: FromStr<Err: ToString>>(member: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|error: T::Err| Problem::fault(member, format!("is wrong: {}", error.to_string())))
}

pub fn optional<T: FromStr<Err: ToString>>(member: &str, text: Option<&String>) -> Result<Option<T>, Problem> {
    text.map(|text| parsed(member, text)).transpose()
}

/// A time of the query, ms since 1970: `2026-05-01T09:00:00Z`, or an age, `6h`.
pub fn moment(member: &str, text: Option<&String>, now_ms: u64) -> Result<Option<u64>, Problem> {
    let moment = text.map(|text| Moment::parse(text).map_err(|why| Problem::fault(member, why))).transpose()?;
    Ok(moment.map(|moment| moment.ms(now_ms)))
}

/// What is no id is not there.
pub fn named<T: FromStr>(text: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| Problem::not_found())
}

/// `1` to [`MAX_LIMIT`], as it came in a query.
pub fn limit(given: Option<&String>) -> Result<usize, Problem> {
    let Some(text) = given else { return Ok(DEFAULT_LIMIT) };
    let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| Problem::fault("limit", format!("is not a whole number from 1 to {MAX_LIMIT}")))
}

/// Where a page begins: behind a key, or before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cursor {
    After(String),
    Before(String),
}

impl Cursor {
    pub fn read(given: Option<&String>) -> Result<Option<Self>, Problem> {
        let Some(text) = given else { return Ok(None) };
        let decoded = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let cursor = decoded.as_deref().and_then(|text| match text.split_at_checked(1)? {
            (">", key) => Some(Self::After(key.to_owned())),
            ("<", key) => Some(Self::Before(key.to_owned())),
            _ => None,
        });
        cursor.map(Some).ok_or_else(wrong_cursor)
    }

    /// From an empty page back to where its cursor came from: `next` and `prev`.
    pub fn turned(self) -> (Option<String>, Option<String>) {
        match self {
            Self::After(key) => (None, Some(Self::Before(key).text())),
            Self::Before(key) => (Some(Self::After(key).text()), None),
        }
    }

    pub fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(match self {
            Self::After(key) => format!(">{key}"),
            Self::Before(key) => format!("<{key}"),
        })
    }
}

pub fn wrong_cursor() -> Problem {
    Problem::fault("cursor", "is none that a page of this list has given")
}

/// One page of a list.
#[derive(Serialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// As `cursor` it leads to the next page; null on the last one.
    pub next: Option<String>,
    /// As `cursor` it leads to the page before; null on the first one.
    pub prev: Option<String>,
    /// The streams that did not answer, where the events are spread over several: what is of theirs is missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub unavailable: Vec<String>,
}

impl<T> Page<T> {
    /// Of things that are all in memory, in the order of their keys.
    pub fn of(sorted: Vec<(String, T)>, cursor: Option<&Cursor>, limit: usize) -> Self {
        let (begin, end) = match cursor {
            None => (0, sorted.len().min(limit)),
            Some(Cursor::After(key)) => {
                let begin = sorted.partition_point(|(known, _)| known <= key);
                (begin, sorted.len().min(begin + limit))
            }
            Some(Cursor::Before(key)) => {
                let end = sorted.partition_point(|(known, _)| known < key);
                (end.saturating_sub(limit), end)
            }
        };
        let key = |at: usize| sorted.get(at).map(|(key, _)| key.clone()).unwrap_or_default();
        let next = (end < sorted.len() && end > begin).then(|| Cursor::After(key(end - 1)).text());
        let prev = (begin > 0 && end > begin).then(|| Cursor::Before(key(begin)).text());
        let items = sorted.into_iter().skip(begin).take(end - begin).map(|(_, item)| item).collect();
        Self { items, next, prev, unavailable: Vec::new() }
    }
}

pub fn of_store(error: &StoreError) -> Problem {
    match error {
        StoreError::OutOfMemory { .. } => {
            Problem::unavailable("Redis is full and refuses changes; nothing was changed.", 5).because(error)
        }
        StoreError::Unavailable { .. } => {
            let detail = "Redis does not answer or takes no changes; whether anything was changed is not known: look, or repeat it.";
            Problem::unavailable(detail, 1).because(error)
        }
        error => Problem::internal(error),
    }
}

/// The name of the problem that somebody else was quicker.
pub const CHANGED_MEANWHILE: &str = "changed-meanwhile";

fn conflict(name: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::CONFLICT, name, detail)
}

pub fn refused(detail: impl Into<String>) -> Problem {
    conflict("refused", detail)
}

pub fn of_registry(error: &RegistryError) -> Problem {
    match error {
        RegistryError::Store(error) => of_store(error),
        RegistryError::Missing(_) | RegistryError::NeverMade => Problem::not_found(),
        RegistryError::Exists(_) => conflict("exists", error.to_string()),
        RegistryError::Stale { .. } | RegistryError::Moved => conflict(CHANGED_MEANWHILE, error.to_string()),
        RegistryError::Newer { .. }
        | RegistryError::Unreadable(_)
        | RegistryError::Locked { .. }
        | RegistryError::Unknown(_)
        | RegistryError::KeyInClear(_)
        | RegistryError::Bulk(_) => refused(error.to_string()),
        RegistryError::TooLarge { .. } => Problem::fault("body", error.to_string()),
        RegistryError::Damaged(_) => Problem::internal(error),
    }
}

/// Merchants do not learn where a name leads within somebody's network.
pub fn of_rule(error: &RuleError, viewer: Viewer) -> Problem {
    match error {
        RuleError::Url(GuardError::Own { .. } | GuardError::Address { .. } | GuardError::Unresolved(_))
            if !viewer.is_operator() =>
        {
            Problem::fault("url", "leads to no address that callbacks are sent to")
        }
        RuleError::Url(error) if !viewer.is_operator() => Problem::fault("url", of_url(error)),
        RuleError::Url(error) => Problem::fault("url", error.to_string().trim_start_matches("the URL ")),
        other => of_setting(other),
    }
}

/// By the member that it came in.
fn of_setting(error: &RuleError) -> Problem {
    let said = error.to_string();
    let (member, why) = match error {
        RuleError::Bounds { what, least, most, given } => {
            let member = match *what {
                "max in flight" => "max_in_flight",
                "rate limit" => "rate_limit",
                "timeout in milliseconds" => "timeout_ms",
                other => other,
            };
            (member, format!("must be between {least} and {most}, not {given}"))
        }
        RuleError::Header(_) => ("headers", format!("are wrong: {said}")),
        RuleError::Retry(_) => ("retry", said.trim_start_matches("retry ").to_owned()),
        RuleError::Description => ("description", said.trim_start_matches("its description ").to_owned()),
        RuleError::TooManyTypes { .. } => ("event_types", said.trim_start_matches("it ").to_owned()),
        RuleError::Twice { what } if what.starts_with("the event type") => {
            ("event_types", format!("name {what} twice"))
        }
        RuleError::Twice { what } => ("schemes", format!("name {what} twice")),
        RuleError::NoScheme => (
            "schemes",
            "are none, and Herald sends nothing unsigned: name standard, dojo, ed25519 or several".to_owned(),
        ),
        RuleError::NoSecretFor { .. } => ("schemes", format!("do not fit the secrets: {said}")),
        RuleError::NoSecret | RuleError::PublicKey | RuleError::WeakSecret | RuleError::TooManySecrets { .. } => {
            ("secret", format!("is refused: {said}"))
        }
        RuleError::Tls(error) => ("tls", format!("is refused: {error}")),
        RuleError::Url(_) | RuleError::Newer { .. } => ("body", said),
    };
    Problem::fault(member, why)
}

impl From<AuditError> for Problem {
    fn from(error: AuditError) -> Self {
        match &error.0 {
            StoreError::OutOfMemory { .. } | StoreError::Unavailable { .. } => {
                let detail = "Nothing was done, because it cannot be written to the audit log: Redis is full or away.";
                Self::unavailable(detail, 5).because(&error)
            }
            _ => Self::internal(&error),
        }
    }
}

impl Judged for Problem {
    fn verdict(&self) -> Verdict {
        if self.status.is_server_error() { Verdict::Failed } else { Verdict::Refused }
    }

    fn told(&self) -> String {
        self.detail.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_forth_and_back_and_miss_nothing() {
        let all = || (0..7).map(|n| (format!("k{n}"), n)).collect::<Vec<_>>();
        let page = |cursor: Option<&String>| {
            let cursor = Cursor::read(cursor).unwrap();
            Page::of(all(), cursor.as_ref(), 3)
        };
        let first = page(None);
        assert_eq!((first.items.as_slice(), &first.prev), (&[0, 1, 2][..], &None));
        let second = page(first.next.as_ref());
        let third = page(second.next.as_ref());
        assert_eq!((third.items.as_slice(), &third.next), (&[6][..], &None));
        let back = page(third.prev.as_ref());
        assert_eq!(back.items, [3, 4, 5]);
        assert_eq!(
            (page(back.prev.as_ref()).items.as_slice(), second.items.as_slice()),
            (&[0, 1, 2][..], &[3, 4, 5][..])
        );
        assert!(page(back.prev.as_ref()).prev.is_none());
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        for text in ["", "x", "PjE=", "////", "eDE"] {
            assert!(Cursor::read(Some(&text.to_owned())).is_err(), "{text}");
        }
        assert!(limit(Some(&"0".to_owned())).is_err() && limit(Some(&"501".to_owned())).is_err());
    }
}

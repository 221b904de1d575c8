//! An event: a fact about one payment intent, parsed once from the bytes that the producer wrote.
//! The bytes are kept as they are: they are what is signed and sent. Unknown keys stay in them.
//!
//! Format: Dojo's webhook payload (docs.dojo.tech), `{"id","event","accountId","createdAt","data":{"paymentIntentId",
//! "paymentStatus","captureMode"}}`; some integrators write the keys capitalised, so both are taken.

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::id::{AccountId, EventId, IntentId};

/// Largest event in bytes. Standard Webhooks asks for under 20 kB; this leaves room and still bounds memory.
pub const MAX_EVENT_BYTES: usize = 64 * 1024;

/// Longest event type in bytes.
const MAX_TYPE_BYTES: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PaymentStatus {
    Created,
    Authorized,
    Captured,
    Reversed,
    Refunded,
    Canceled,
}

impl PaymentStatus {
    pub const ALL: [Self; 6] =
        [Self::Created, Self::Authorized, Self::Captured, Self::Reversed, Self::Refunded, Self::Canceled];
}

impl fmt::Display for PaymentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaptureMode {
    Auto,
    Manual,
}

/// `payment_intent.status_updated` and its siblings.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventType(Arc<str>);

impl EventType {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EventType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("payment_intent.").unwrap_or_default();
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(&b);
        if rest.is_empty() || text.len() > MAX_TYPE_BYTES || !rest.bytes().all(allowed) {
            return Err(format!(
                "the event type {:?} is not known; it is payment_intent.NAME, for example payment_intent.status_updated",
                shorten(text)
            ));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for EventType {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<EventType> for String {
    fn from(event_type: EventType) -> String {
        event_type.0.as_ref().to_owned()
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone)]
pub struct Event {
    pub id: EventId,
    pub event_type: EventType,
    pub account: AccountId,
    pub intent: IntentId,
    pub status: PaymentStatus,
    pub capture_mode: CaptureMode,
    body: Bytes,
}

/// Why an entry is no event. The text names each thing that is wrong; it is kept with the quarantined entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    #[error("the event is {bytes} bytes long; at most {MAX_EVENT_BYTES} are allowed")]
    TooLarge { bytes: usize },
    #[error("the event is not UTF-8: the byte at {at} does not belong")]
    NotUtf8 { at: usize },
    #[error("the event is not JSON: {0}")]
    NotJson(String),
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, alias = "Id")]
    id: Cow<'a, str>,
    #[serde(borrow, alias = "Event")]
    event: Cow<'a, str>,
    #[serde(borrow, rename = "accountId", alias = "AccountId")]
    account: Cow<'a, str>,
    #[serde(borrow, rename = "createdAt", alias = "CreatedAt")]
    created_at: Cow<'a, str>,
    #[serde(borrow, alias = "Data")]
    data: WireData<'a>,
}

#[derive(Deserialize)]
struct WireData<'a> {
    #[serde(borrow, rename = "paymentIntentId", alias = "PaymentIntentId")]
    intent: Cow<'a, str>,
    #[serde(rename = "paymentStatus", alias = "PaymentStatus")]
    status: PaymentStatus,
    #[serde(rename = "captureMode", alias = "CaptureMode")]
    capture_mode: CaptureMode,
}

impl Event {
    pub fn parse(body: Bytes) -> Result<Self, EventError> {
        if body.len() > MAX_EVENT_BYTES {
            return Err(EventError::TooLarge { bytes: body.len() });
        }
        let text = std::str::from_utf8(&body).map_err(|e| EventError::NotUtf8 { at: e.valid_up_to() })?;
        let parsed = serde_json::from_str::<Wire<'_>>(text).ok().and_then(|wire| {
            wire.created_at.parse::<jiff::Timestamp>().ok()?;
            Some((
                EventId::new(&wire.id).ok()?,
                wire.event.parse().ok()?,
                AccountId::new(&wire.account).ok()?,
                IntentId::new(&wire.data.intent).ok()?,
                wire.data.status,
                wire.data.capture_mode,
            ))
        });
        match parsed {
            Some((id, event_type, account, intent, status, capture_mode)) => {
                Ok(Self { id, event_type, account, intent, status, capture_mode, body })
            }
            None => Err(explain(text)),
        }
    }

    /// Exactly the bytes that the producer wrote.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

/// Says everything that is wrong with a text that [`Event::parse`] refused. Only failures pay for this second look.
fn explain(text: &str) -> EventError {
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(e) => return EventError::NotJson(e.to_string()),
    };
    if !value.is_object() {
        return EventError::Invalid(vec![format!("the event is {}, not a JSON object", kind(&value))]);
    }
    let mut wrong = Vec::new();
    check_text(&mut wrong, &value, "id", |t| EventId::new(t).map(drop).map_err(|e| e.to_string()));
    check_text(&mut wrong, &value, "event", |t| t.parse::<EventType>().map(drop));
    check_text(&mut wrong, &value, "accountId", |t| AccountId::new(t).map(drop).map_err(|e| e.to_string()));
    check_text(&mut wrong, &value, "createdAt", |t| {
        t.parse::<jiff::Timestamp>().map(drop).map_err(|_| format!("{:?} is no RFC 3339 time", shorten(t)))
    });
    match member(&value, "data") {
        Some(data) if data.is_object() => {
            check_text(&mut wrong, data, "paymentIntentId", |t| IntentId::new(t).map(drop).map_err(|e| e.to_string()));
            check_text(&mut wrong, data, "paymentStatus", one_of::<PaymentStatus>);
            check_text(&mut wrong, data, "captureMode", one_of::<CaptureMode>);
        }
        Some(data) => wrong.push(format!("data: is {}, not an object", kind(data))),
        None => wrong.push("data: is missing".to_owned()),
    }
    if wrong.is_empty() {
        // Each part is right by itself, so a key stands twice: receivers would disagree on which one counts.
        let error = serde_json::from_str::<Wire<'_>>(text).err().map_or("unclear".to_owned(), |e| e.to_string());
        wrong.push(format!("the event is ambiguous: {error}"));
    }
    EventError::Invalid(wrong)
}

fn member<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    let capitalised = || name[..1].to_ascii_uppercase() + &name[1..];
    value.get(name).or_else(|| value.get(capitalised()))
}

fn check_text(wrong: &mut Vec<String>, value: &Value, name: &str, check: impl Fn(&str) -> Result<(), String>) {
    let fault = match member(value, name) {
        None => Some("is missing".to_owned()),
        Some(Value::String(text)) => check(text).err(),
        Some(other) => Some(format!("is {}, not a string", kind(other))),
    };
    wrong.extend(fault.map(|fault| format!("{name}: {fault}")));
}

fn one_of<T: for<'de> Deserialize<'de>>(text: &str) -> Result<(), String> {
    let value = Value::String(shorten(text));
    serde_json::from_value::<T>(value).map(drop).map_err(|e| e.to_string())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// What a message may quote of a stranger's text.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"id":"evt_hnnHxIKR_Uy6bhZCusCltw","event":"payment_intent.status_updated","accountId":"acc_test","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_vpwd4ooAPEqyNAQe4z89WQ","paymentStatus":"Captured","captureMode":"Auto"}}"#;

    fn parse(text: &str) -> Result<Event, EventError> {
        Event::parse(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn refused(text: &str) -> String {
        parse(text).expect_err("it was taken").to_string()
    }

    #[test]
    fn the_published_payload_is_an_event() {
        let event = parse(GOOD).unwrap();
        assert_eq!(event.id.as_str(), "evt_hnnHxIKR_Uy6bhZCusCltw");
        assert_eq!(event.status, PaymentStatus::Captured);
        assert_eq!(event.body(), GOOD.as_bytes());
    }

    #[test]
    fn unknown_keys_white_space_and_capitalised_keys_are_kept() {
        let odd = GOOD.replace("\"id\"", " \"Id\"").replace("\"data\"", "\"extra\":[1,{}],\"Data\"");
        assert_eq!(parse(&odd).unwrap().body(), odd.as_bytes());
    }

    #[test]
    fn every_published_status_and_type_is_taken() {
        for status in PaymentStatus::ALL {
            assert_eq!(parse(&GOOD.replace("Captured", &status.to_string())).unwrap().status, status);
        }
        for event_type in ["payment_intent.created", "payment_intent.send-receipt"] {
            parse(&GOOD.replace("payment_intent.status_updated", event_type)).unwrap();
        }
    }

    #[test]
    fn a_refusal_names_each_thing_that_is_wrong() {
        let error = refused(&GOOD.replace("Captured", "Lost").replace("\"acc_test\"", "7"));
        assert!(error.contains("paymentStatus: unknown variant `Lost`"), "{error}");
        assert!(error.contains("accountId: is a number, not a string"), "{error}");
        assert!(refused("nonsense").starts_with("the event is not JSON"));
        assert!(refused("[]").contains("an array"));
        assert!(refused(&GOOD.replace("evt_hnn", "evt.hnn")).contains("id: the event id"));
        assert!(refused(&GOOD.replace("2022-02-01T", "yesterday ")).contains("createdAt"));
        assert!(refused(&GOOD.replace("payment_intent.status_updated", "order.created")).contains("event type"));
        assert!(refused("{}").contains("data: is missing"));
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        let twice = GOOD.replace("\"accountId\"", "\"id\":\"evt_other\",\"accountId\"");
        assert!(refused(&twice).contains("duplicate field"), "{}", refused(&twice));
    }

    #[test]
    fn size_and_encoding_have_their_own_errors() {
        let large = GOOD.replace("acc_test", &"a".repeat(MAX_EVENT_BYTES));
        assert!(matches!(parse(&large), Err(EventError::TooLarge { .. })));
        assert_eq!(Event::parse(Bytes::from_static(b"{\"\xff\"")).unwrap_err(), EventError::NotUtf8 { at: 2 });
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let deep = "[".repeat(60_000);
        assert!(matches!(parse(&deep), Err(EventError::NotJson(_))));
    }
}

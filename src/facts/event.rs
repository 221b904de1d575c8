//! An event: a fact about one payment intent, parsed once from the bytes that the producer wrote.
//! The bytes are kept as they are: they are what is signed and sent. Unknown keys stay in them.
//!
//! Format: Dojo's webhook payload (docs.dojo.tech), `{"id","event","accountId","createdAt","data":{"paymentIntentId",
//! "paymentStatus","captureMode"}}`; some integrators write the keys capitalised, so both are taken.

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    id::{AccountId, EventId, IntentId},
    own_event::{self, OwnEvent},
    rfc3339::is_date_time,
};

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

impl PaymentStatus {
    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::Authorized => "Authorized",
            Self::Captured => "Captured",
            Self::Reversed => "Reversed",
            Self::Refunded => "Refunded",
            Self::Canceled => "Canceled",
        }
    }
}

impl fmt::Display for PaymentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CaptureMode {
    #[default]
    Auto,
    Manual,
}

impl CaptureMode {
    fn named(name: &str) -> Option<Self> {
        match name {
            "Auto" => Some(Self::Auto),
            "Manual" => Some(Self::Manual),
            _ => None,
        }
    }
}

/// What may be new to this Herald in an event without being wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NoveltyKind {
    EventType,
    PaymentStatus,
    CaptureMode,
    /// It is in a partition that its account does not belong to.
    Partition,
}

impl NoveltyKind {
    pub const ALL: [Self; 4] = [Self::EventType, Self::PaymentStatus, Self::CaptureMode, Self::Partition];

    /// For metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::EventType => "event_type",
            Self::PaymentStatus => "payment_status",
            Self::CaptureMode => "capture_mode",
            Self::Partition => "partition",
        }
    }
}

/// Something in an event that this Herald does not know. Payment systems add statuses and types: a dispatcher that
/// stopped at them would hold back, and later reorder, what its merchants wait for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Novelty {
    pub kind: NoveltyKind,
    /// The unknown text, cut; empty if there is none.
    pub text: String,
}

impl fmt::Display for Novelty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.text.as_str()) {
            (NoveltyKind::EventType, text) => write!(f, "event: {text:?} is not known; it is payment_intent.NAME"),
            (NoveltyKind::PaymentStatus, text) => {
                write!(f, "paymentStatus: {text:?} is not known; it is one of")?;
                PaymentStatus::ALL.iter().try_for_each(|status| write!(f, " {status}"))
            }
            (NoveltyKind::CaptureMode, "") => f.write_str("captureMode: is missing"),
            (NoveltyKind::CaptureMode, text) => write!(f, "captureMode: {text:?} is not known; it is Auto or Manual"),
            (NoveltyKind::Partition, _) => f.write_str(
                "accountId: belongs to another partition (herald partition of ACCOUNT): write it there, or to the stream itself",
            ),
        }
    }
}

/// `payment_intent.status_updated` and its siblings.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventType(Arc<str>);

impl EventType {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// In the family that Herald was made for: `payment_intent.NAME`, in lower case.
    fn is_familiar(&self) -> bool {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(&b);
        self.0.strip_prefix("payment_intent.").is_some_and(|name| !name.is_empty() && name.bytes().all(allowed))
    }
}

/// Any text that is safe in a header, a filter and a log line: tomorrow's types are not known today.
impl FromStr for EventType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if !starts_well || text.len() > MAX_TYPE_BYTES || !text.bytes().all(allowed) {
            return Err(format!(
                "{:?} is not an event type; it has up to {MAX_TYPE_BYTES} of A-Z a-z 0-9 _ - . and is, for example, \
                 payment_intent.status_updated",
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
    /// `None`: a status that this Herald does not know.
    pub status: Option<PaymentStatus>,
    /// `None`: missing, or a mode that this Herald does not know.
    pub capture_mode: Option<CaptureMode>,
    /// The parts that are new to this Herald; nearly always none.
    pub novelties: Vec<Novelty>,
    body: Bytes,
}

/// Why an entry is not an event. The text names each thing that is wrong; it is kept with the quarantined entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    #[error("the event is {bytes} bytes long; at most {MAX_EVENT_BYTES} are allowed")]
    TooLarge { bytes: usize },
    #[error("the event is not UTF-8: the byte at {at} is not valid")]
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
    #[serde(borrow, rename = "paymentStatus", alias = "PaymentStatus")]
    status: Cow<'a, str>,
    #[serde(borrow, default, rename = "captureMode", alias = "CaptureMode")]
    capture_mode: Option<Text<'a>>,
}

/// Borrows within an `Option` as well, where a bare `Cow` would be copied.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The account that an event is of, where nothing else is of interest. What names none is no event.
pub fn account_of(body: &[u8]) -> Option<AccountId> {
    #[derive(Deserialize)]
    struct OfAccount<'a> {
        #[serde(borrow, rename = "accountId", alias = "AccountId")]
        account: Cow<'a, str>,
    }
    AccountId::new(&serde_json::from_slice::<OfAccount<'_>>(body).ok()?.account).ok()
}

impl Event {
    /// Takes whatever can be delivered; what is new in it is listed in [`Event::novelties`].
    pub fn parse(body: Bytes) -> Result<Self, EventError> {
        if body.len() > MAX_EVENT_BYTES {
            return Err(EventError::TooLarge { bytes: body.len() });
        }
        let text = std::str::from_utf8(&body).map_err(|e| EventError::NotUtf8 { at: e.valid_up_to() })?;
        let parsed = serde_json::from_str::<Wire<'_>>(text).ok().and_then(|wire| {
            is_date_time(&wire.created_at).then_some(())?;
            let event = Self {
                id: EventId::new(&wire.id).ok()?,
                event_type: wire.event.parse().ok()?,
                account: AccountId::new(&wire.account).ok()?,
                intent: IntentId::new(&wire.data.intent).ok()?,
                status: PaymentStatus::named(&wire.data.status),
                capture_mode: wire.data.capture_mode.as_ref().and_then(|mode| CaptureMode::named(&mode.0)),
                novelties: Vec::new(),
                body: Bytes::new(),
            };
            let novelties = event.novelties(&wire);
            Some(Self { novelties, ..event })
        });
        match parsed {
            Some(event) if own_event::is_operators(&event.account) => Err(EventError::Invalid(vec![format!(
                "accountId: {:?} is kept for operators: it has Herald's own events only",
                own_event::OPERATORS
            )])),
            Some(event) => Ok(Self { body, ..event }),
            None => Self::own(text).map(|event| Self { body: body.clone(), ..event }).ok_or_else(|| explain(text)),
        }
    }

    /// One of Herald's own.
    fn own(text: &str) -> Option<Self> {
        let wire: own_event::Wire = serde_json::from_str(text).ok()?;
        let account = AccountId::new(&wire.account).ok().filter(own_event::is_operators)?;
        let event = OwnEvent::named(&wire.event).filter(|_| is_date_time(&wire.created_at))?;
        Some(Self {
            id: EventId::new(&wire.id).ok()?,
            event_type: event.name().parse().ok()?,
            account,
            intent: wire.chain()?,
            status: None,
            capture_mode: None,
            novelties: Vec::new(),
            body: Bytes::new(),
        })
    }

    /// It was found where its account's events do not belong.
    pub fn note_misplaced(&mut self) {
        self.novelties.push(Novelty { kind: NoveltyKind::Partition, text: String::new() });
    }

    /// For callers that take only what this Herald knows.
    pub fn require_familiar(&self) -> Result<(), EventError> {
        match self.novelties.is_empty() {
            true => Ok(()),
            false => Err(EventError::Invalid(self.novelties.iter().map(ToString::to_string).collect())),
        }
    }

    /// Exactly the bytes that the producer wrote.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    fn novelties(&self, wire: &Wire<'_>) -> Vec<Novelty> {
        let capture_mode = wire.data.capture_mode.as_ref().map_or("", |mode| &mode.0);
        let found = [
            (NoveltyKind::EventType, !self.event_type.is_familiar(), self.event_type.as_str()),
            (NoveltyKind::PaymentStatus, self.status.is_none(), &wire.data.status),
            (NoveltyKind::CaptureMode, self.capture_mode.is_none(), capture_mode),
        ];
        let new = found.into_iter().filter(|(_, is_new, _)| *is_new);
        new.map(|(kind, _, text)| Novelty { kind, text: shorten(text) }).collect()
    }
}

/// The intent that a text names, even if the text is not an event: for people who look at what was refused.
pub fn intent_in(text: &[u8]) -> Option<IntentId> {
    let value: Value = serde_json::from_slice(text).ok()?;
    IntentId::new(member(member(&value, "data")?, "paymentIntentId")?.as_str()?).ok()
}

/// What a text says of itself, which need not be an event: for people who look at what arrived. A stranger may have written it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Glance {
    pub id: Option<String>,
    pub event_type: Option<String>,
    pub intent: Option<String>,
    pub status: Option<String>,
}

pub fn glance(text: &[u8]) -> Glance {
    let value: Value = serde_json::from_slice(text).unwrap_or_default();
    let text = |value: &Value, name| Some(member(value, name)?.as_str()?.to_owned());
    let data = member(&value, "data").unwrap_or(&Value::Null);
    Glance {
        id: text(&value, "id"),
        event_type: text(&value, "event"),
        intent: text(data, "paymentIntentId"),
        status: text(data, "paymentStatus"),
    }
}

/// Lists everything that is wrong with a text that [`Event::parse`] refused. Only failures pay for this second look.
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
        is_date_time(t).then_some(()).ok_or_else(|| format!("{:?} is not an RFC 3339 time", shorten(t)))
    });
    match member(&value, "data") {
        Some(data) if data.is_object() => {
            check_text(&mut wrong, data, "paymentIntentId", |t| IntentId::new(t).map(drop).map_err(|e| e.to_string()));
            check_text(&mut wrong, data, "paymentStatus", |_| Ok(()));
            if !matches!(member(data, "captureMode"), None | Some(Value::Null)) {
                check_text(&mut wrong, data, "captureMode", |_| Ok(()));
            }
        }
        Some(data) => wrong.push(format!("data: is {}, not an object", kind(data))),
        None => wrong.push("data: is missing".to_owned()),
    }
    if wrong.is_empty() {
        // Each part is right by itself, so a key appears twice: receivers would disagree on which one counts.
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

/// As much of a stranger's text as a message may quote.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;

//! A change of one intent, as a script is asked for it and as it answers.

use std::fmt::{self, Display};

use bytes::Bytes;

use super::{MAX_MICROS, Repeated, Stored, number};
use crate::{
    facts::{
        id::{AccountId, EventId, IntentId},
        traceparent::Traceparent,
    },
    store::{connection::ScriptCall, error::StoreError, keys::PartitionKeys},
};

/// When the next deadline is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    At(i64),
    /// After the instant of the change.
    In(i64),
    Never,
}

impl Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(micros) => write!(f, "={}", (*micros).clamp(0, MAX_MICROS)),
            Self::In(micros) => write!(f, "+{}", (*micros).clamp(0, MAX_MICROS)),
            Self::Never => f.write_str("-"),
        }
    }
}

/// One change. See the script for what each part means.
#[derive(Debug, Clone)]
pub struct Commit<'a> {
    pub id: &'a IntentId,
    pub account: &'a AccountId,
    pub expected_revision: u64,
    /// The change must be made before, and not before.
    pub before: Option<i64>,
    pub from: Option<i64>,
    pub json: String,
    pub due: Due,
    /// None if this change creates it.
    pub created_at: Option<i64>,
    pub status: String,
    pub status_before: Option<String>,
    /// The event around its time.
    pub event: Option<(String, String)>,
    /// The event's own id.
    pub event_id: Option<&'a EventId>,
    pub key: Option<KeyOf<'a>>,
}

/// An idempotency key under which the answer is kept.
#[derive(Debug, Clone, Copy)]
pub struct KeyOf<'a> {
    /// Hash of whose key it is.
    pub hash: &'a str,
    /// Hash of the request.
    pub request: &'a str,
    pub keep_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    Done {
        stamp: i64,
        /// The event's entry in the stream.
        entry: Option<String>,
        /// Of the event among its account's, without gaps.
        number: Option<u64>,
    },
    /// It has another revision: this one.
    Stale {
        now: i64,
        stored: Option<Stored>,
    },
    Late {
        now: i64,
    },
    Early {
        now: i64,
    },
    Taken(Repeated),
}

/// A hyphen where there is none.
struct Number<T>(Option<T>);

impl<T: Display> Display for Number<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(number) => number.fmt(f),
            None => f.write_str("-"),
        }
    }
}

/// A [`Commit`] that outlives whoever asks for it.
#[derive(Debug, Clone)]
pub struct Change {
    pub id: IntentId,
    /// Those of its own, in the order of the script.
    keys: Vec<String>,
    args: [String; 8],
}

impl Change {
    pub fn new(keys: &PartitionKeys, commit: &Commit<'_>) -> Self {
        let of = |status: &str| keys.intents_of(commit.account, status);
        let mut own = vec![
            keys.intent(commit.id),
            of(&commit.status),
            of(commit.status_before.as_deref().unwrap_or(&commit.status)),
            keys.intent_feed(commit.account),
        ];
        own.extend(commit.key.map(|key| keys.intent_key(key.hash)));
        let (head, tail) = commit.event.clone().unwrap_or_default();
        let number = |number: Option<i64>| Number(number.map(|number| number.clamp(0, MAX_MICROS)));
        let numbers = format!(
            "{} {} {} {} {} {}",
            commit.expected_revision,
            number(commit.before),
            number(commit.from),
            commit.due,
            number(commit.created_at),
            Number(commit.key.map(|key| key.keep_ms)),
        );
        let request = commit.key.map_or_else(String::new, |key| key.request.to_owned());
        let (id, account) = (commit.id.to_string(), commit.account.to_string());
        let args = [id, account, numbers, commit.json.clone(), head, tail, request, String::new()];
        Self { id: commit.id.clone(), keys: own, args }
    }

    /// The event's entry carries this, for whoever delivers it.
    pub fn traced(mut self, traceparent: Option<&Traceparent>) -> Self {
        self.args[7] = traceparent.map_or_else(String::new, |traceparent| traceparent.as_str().to_owned());
        self
    }

    /// What it takes of a call.
    pub fn bytes(&self) -> usize {
        self.keys.iter().chain(&self.args).map(String::len).sum()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(String::as_str)
    }

    pub(super) fn add_args<'c>(&self, call: ScriptCall<'c>) -> ScriptCall<'c> {
        self.args.iter().fold(call, ScriptCall::arg)
    }
}

impl Committed {
    pub(super) fn parse(subject: &str, answer: &[Bytes]) -> Result<Self, StoreError> {
        // A record may be in it.
        let malformed = || StoreError::unexpected(subject, "it is no answer of the script");
        let micros = |part: &Bytes| number(part).ok_or_else(malformed);
        let text = |part: &Bytes| String::from_utf8_lossy(part).into_owned();
        match answer {
            [word, stamp, entry, count] if word == "OK" => Ok(Self::Done {
                stamp: micros(stamp)?,
                entry: (!entry.is_empty()).then(|| text(entry)),
                number: number(count).and_then(|number| number.try_into().ok()),
            }),
            [word, now, record] if word == "STALE" => {
                Ok(Self::Stale { now: micros(now)?, stored: Stored::parse(subject, record)? })
            }
            [word, now] if word == "LATE" => Ok(Self::Late { now: micros(now)? }),
            [word, now] if word == "EARLY" => Ok(Self::Early { now: micros(now)? }),
            [word, kept] if word == "TAKEN" => Repeated::parse(subject, kept)?.map(Self::Taken).ok_or_else(malformed),
            [word, why] if word == "ERROR" => Err(StoreError::told(subject, why)),
            _ => Err(malformed()),
        }
    }
}

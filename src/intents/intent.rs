//! The payment intent: what was asked for, what was paid, and what became of the money. Everything that is derived is a
//! function here and stands in no record.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    details::{AutoExpireAction, Details},
    stamp::{DAY, MINUTE, Stamp, micros},
    told::Told,
};
use crate::{
    facts::{
        event::{CaptureMode, PaymentStatus},
        id::{AccountId, EntryId, IntentId},
    },
    store::intents::Stored,
};

/// How long an intent waits for its payment where nothing else is said, and how long money is held.
pub const EXPIRES_AFTER: i64 = 30 * DAY;
pub const HOLDS_FOR: i64 = 7 * DAY;

/// How long a customer has for a challenge, and a client's secret is good.
pub const CHALLENGE_FOR: i64 = 10 * MINUTE;
pub const SECRET_FOR: i64 = 30 * MINUTE;

/// Bounds of the record: captures and refunds of one intent, the payment attempts and operations that it remembers.
pub const MAX_CAPTURES: usize = 100;
pub const MAX_REFUNDS: usize = 100;
const MAX_ATTEMPTS: usize = 20;
pub const MAX_OPERATIONS: usize = 4;

/// What every intent's id begins with.
pub const ID_PREFIX: &str = "pi_sandbox_";

/// The schema of [`Intent`]'s record.
const SCHEMA: u32 = 1;

/// Everything but its id and what the commit says of it (revision, instant of the last change), which stand beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    #[serde(rename = "v")]
    pub schema: u32,
    #[serde(skip, default = "no_id")]
    pub id: IntentId,
    /// How often it was changed; 1 when it is created.
    #[serde(skip)]
    pub revision: u64,
    #[serde(skip)]
    pub changed_at: Stamp,
    #[serde(rename = "acc")]
    pub account: AccountId,
    #[serde(rename = "st")]
    pub status: PaymentStatus,
    #[serde(rename = "at", with = "micros", default, skip_serializing_if = "Stamp::is_this")]
    pub created_at: Stamp,
    #[serde(rename = "d")]
    pub details: Details,
    /// The amount at its creation, once it has been changed.
    #[serde(rename = "req", default, skip_serializing_if = "Option::is_none")]
    pub requested: Option<i64>,
    #[serde(rename = "sec", default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ClientSecret>,
    #[serde(rename = "pay", default, skip_serializing_if = "Option::is_none")]
    pub payment: Option<Payment>,
    #[serde(rename = "cap", default, skip_serializing_if = "Vec::is_empty")]
    pub captures: Vec<Capture>,
    #[serde(rename = "ref", default, skip_serializing_if = "Vec::is_empty")]
    pub refunds: Vec<Refund>,
    #[serde(rename = "rev", default, skip_serializing_if = "Option::is_none")]
    pub reversal: Option<Reversal>,
    #[serde(rename = "chl", default, skip_serializing_if = "Option::is_none")]
    pub challenge: Option<Challenge>,
    /// The last attempts to pay, the newest last.
    #[serde(rename = "try", default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<PaymentAttempt>,
    /// What its merchant was told, in order.
    #[serde(rename = "ev", default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Told>,
    /// The last changes by their operation's id: so a change whose answer was lost is recognised.
    #[serde(rename = "op", default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<String>,
}

fn no_id() -> IntentId {
    IntentId::new("pi_").expect("it is an id")
}

/// Lets a customer's device pay this one intent.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientSecret {
    #[serde(rename = "s")]
    pub text: String,
    #[serde(rename = "at", with = "micros")]
    pub made_at: Stamp,
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientSecret(made at {})", self.made_at)
    }
}

impl ClientSecret {
    pub fn expires_at(&self) -> Stamp {
        self.made_at + SECRET_FOR
    }
}

/// An approved payment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Payment {
    #[serde(rename = "at", with = "micros")]
    pub at: Stamp,
    /// What the issuer holds, or has paid.
    #[serde(rename = "h")]
    pub held: i64,
    /// The rest that was held has been given back.
    #[serde(rename = "rel", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_rest_released: bool,
    #[serde(rename = "tx")]
    pub transaction: String,
    #[serde(rename = "auth")]
    pub auth_code: String,
    #[serde(rename = "card")]
    pub card: Card,
}

/// What is kept of a card: never its whole number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Card {
    #[serde(rename = "n")]
    pub masked: String,
    #[serde(rename = "s")]
    pub scheme: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capture {
    pub id: String,
    #[serde(rename = "a")]
    pub amount: i64,
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    pub tips: Option<i64>,
    #[serde(rename = "at", with = "micros")]
    pub at: Stamp,
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub key: Option<IdempotencyKey>,
}

impl Capture {
    pub fn total(&self) -> i64 {
        self.amount.saturating_add(self.tips.unwrap_or_default())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refund {
    #[serde(rename = "a")]
    pub amount: i64,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    #[serde(rename = "at", with = "micros")]
    pub at: Stamp,
    #[serde(rename = "k")]
    pub key: IdempotencyKey,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reversal {
    pub id: String,
    #[serde(rename = "at", with = "micros")]
    pub at: Stamp,
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub key: Option<IdempotencyKey>,
}

/// The customer is asked to prove who they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Challenge {
    #[serde(rename = "at", with = "micros")]
    pub at: Stamp,
    pub card: Card,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PaymentAttempt {
    #[serde(rename = "at", with = "micros")]
    pub at: Stamp,
    #[serde(rename = "why")]
    pub outcome: String,
    #[serde(rename = "n")]
    pub masked: String,
}

impl PaymentAttempt {
    /// The outcome of the one that paid.
    pub const APPROVED: &str = "approved";
}

/// What a client calls a request that it may have to repeat, and a hash of what it asked for. The key's own text is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    #[serde(rename = "k")]
    pub key: String,
    #[serde(rename = "b")]
    pub body: String,
}

/// What the table of the life tells apart: captures and reversals follow other rules where nobody had to ask for a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Created,
    Authorized,
    CapturedManual,
    CapturedAuto,
    Refunded,
    Reversed,
    Canceled,
}

impl State {
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Authorized,
        Self::CapturedManual,
        Self::CapturedAuto,
        Self::Refunded,
        Self::Reversed,
        Self::Canceled,
    ];

    pub fn status(self) -> PaymentStatus {
        match self {
            Self::Created => PaymentStatus::Created,
            Self::Authorized => PaymentStatus::Authorized,
            Self::CapturedManual | Self::CapturedAuto => PaymentStatus::Captured,
            Self::Refunded => PaymentStatus::Refunded,
            Self::Reversed => PaymentStatus::Reversed,
            Self::Canceled => PaymentStatus::Canceled,
        }
    }
}

/// What time does to an intent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// Nobody has paid.
    Expiry(Stamp),
    /// The money was held for long enough.
    HoldEnd(Stamp),
}

impl Deadline {
    pub fn at(self) -> Stamp {
        match self {
            Self::Expiry(at) | Self::HoldEnd(at) => at,
        }
    }
}

impl Intent {
    /// As it begins; the change that creates it says when.
    pub fn new(id: IntentId, account: AccountId, details: Details) -> Self {
        Self {
            schema: SCHEMA,
            id,
            revision: 0,
            changed_at: Stamp::THIS,
            account,
            status: PaymentStatus::Created,
            created_at: Stamp::THIS,
            details,
            requested: None,
            secret: None,
            payment: None,
            captures: Vec::new(),
            refunds: Vec::new(),
            reversal: None,
            challenge: None,
            attempts: Vec::new(),
            history: Vec::new(),
            operations: Vec::new(),
        }
    }

    /// What its id is made unique by.
    pub fn random_part(&self) -> &str {
        self.id.as_str().strip_prefix(ID_PREFIX).unwrap_or(self.id.as_str())
    }

    pub fn mode(&self) -> CaptureMode {
        self.details.capture_mode
    }

    pub fn state(&self) -> State {
        match (self.status, self.mode()) {
            (PaymentStatus::Created, _) => State::Created,
            (PaymentStatus::Authorized, _) => State::Authorized,
            (PaymentStatus::Captured, CaptureMode::Manual) => State::CapturedManual,
            (PaymentStatus::Captured, CaptureMode::Auto) => State::CapturedAuto,
            (PaymentStatus::Refunded, _) => State::Refunded,
            (PaymentStatus::Reversed, _) => State::Reversed,
            (PaymentStatus::Canceled, _) => State::Canceled,
        }
    }

    /// What the customer pays. Whoever sets an amount has checked that there is such a sum.
    pub fn total(&self) -> i64 {
        self.details.total().unwrap_or(self.details.amount.value)
    }

    pub fn held(&self) -> i64 {
        self.payment.as_ref().map_or(0, |payment| payment.held)
    }

    /// All that was taken of what was held.
    pub fn captured(&self) -> i64 {
        match (self.mode(), &self.payment) {
            (CaptureMode::Auto, Some(payment)) => payment.held,
            _ => self.captures.iter().map(Capture::total).fold(0, i64::saturating_add),
        }
    }

    pub fn refunded(&self) -> i64 {
        self.refunds.iter().map(|refund| refund.amount).fold(0, i64::saturating_add)
    }

    /// What is held and not captured yet.
    pub fn rest(&self) -> i64 {
        match &self.payment {
            Some(payment) if !payment.is_rest_released => payment.held.saturating_sub(self.captured()),
            _ => 0,
        }
    }

    pub fn expires_at(&self) -> Stamp {
        self.details.expire_at.unwrap_or(self.created_at + EXPIRES_AFTER)
    }

    pub fn hold_for(&self) -> i64 {
        self.details.auto_expire_in.map_or(HOLDS_FOR, |span| span.micros())
    }

    pub fn hold_action(&self) -> AutoExpireAction {
        self.details.auto_expire_action.unwrap_or(AutoExpireAction::Release)
    }

    /// None where nothing happens any more by itself.
    pub fn deadline(&self) -> Option<Deadline> {
        match (self.state(), &self.payment) {
            (State::Created, _) => Some(Deadline::Expiry(self.expires_at())),
            (State::Authorized, Some(payment)) => Some(Deadline::HoldEnd(payment.at + self.hold_for())),
            (State::CapturedManual, Some(payment)) if self.rest() > 0 => {
                Some(Deadline::HoldEnd(payment.at + self.hold_for()))
            }
            _ => None,
        }
    }

    pub fn pending_challenge(&self, now: Stamp) -> Option<&Challenge> {
        self.challenge.as_ref().filter(|challenge| now < challenge.at + CHALLENGE_FOR)
    }

    pub fn remember_attempt(&mut self, outcome: &str, card: &Card) {
        let attempt = PaymentAttempt { at: Stamp::THIS, outcome: outcome.to_owned(), masked: card.masked.clone() };
        push_bounded(&mut self.attempts, attempt, MAX_ATTEMPTS);
    }

    pub fn remember_operation(&mut self, operation: &str) {
        push_bounded(&mut self.operations, operation.to_owned(), MAX_OPERATIONS);
    }

    /// The record as it is stored. What this change did has [`Stamp::THIS`] for its time.
    pub fn to_record(&self) -> String {
        serde_json::to_string(self).expect("a record has only keys that are text")
    }

    /// From what a commit stored, with everything that stands beside it.
    pub fn from_record(id: IntentId, stored: &Stored) -> Result<Self, RecordError> {
        let mut intent: Self =
            serde_json::from_slice(&stored.json).map_err(|error| RecordError::Unreadable(error.to_string()))?;
        if intent.schema > SCHEMA {
            return Err(RecordError::Newer(intent.schema));
        }
        (intent.id, intent.revision) = (id, stored.revision);
        intent.date_from(Stamp(stored.changed_at));
        intent.place(stored.number, stored.entry);
        Ok(intent)
    }

    /// Gives the event that the last change told its number and its place in the stream.
    pub fn place(&mut self, number: Option<u64>, entry: Option<EntryId>) {
        if let Some(told) = self.history.last_mut().filter(|told| told.number == 0) {
            (told.number, told.entry) = (number.unwrap_or_default(), entry);
        }
    }

    /// Gives what the last change did its time.
    pub fn date_from(&mut self, this: Stamp) {
        self.changed_at = this;
        let all = std::iter::once(&mut self.created_at)
            .chain(self.secret.iter_mut().map(|secret| &mut secret.made_at))
            .chain(self.payment.iter_mut().map(|payment| &mut payment.at))
            .chain(self.captures.iter_mut().map(|capture| &mut capture.at))
            .chain(self.refunds.iter_mut().map(|refund| &mut refund.at))
            .chain(self.reversal.iter_mut().map(|reversal| &mut reversal.at))
            .chain(self.challenge.iter_mut().map(|challenge| &mut challenge.at))
            .chain(self.attempts.iter_mut().map(|attempt| &mut attempt.at))
            .chain(self.history.iter_mut().map(|told| &mut told.at));
        all.for_each(|at| *at = at.or(this));
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("it was written by a newer Herald (schema {0}): use that one")]
    Newer(u32),
    #[error("it is not readable: {0}")]
    Unreadable(String),
}

fn push_bounded<T>(list: &mut Vec<T>, item: T, max: usize) {
    if list.len() >= max {
        list.remove(0);
    }
    list.push(item);
}

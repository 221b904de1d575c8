//! Why a command is refused: for a client by status code and a stable word, for people in a sentence. A refused command
//! changes nothing and tells nobody.

use super::{intent::State, life::Kind, money::Money};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The state does not allow it now.
    State(Kind, State),
    /// As if it were not there.
    Gone,
    /// Neither amount nor tips change without the permission in `config.payment`.
    AmountChangeNotAllowed,
    TipsNotAllowed,
    /// Of a request's member, wrong for this intent for ever.
    Wrong {
        member: &'static str,
        why: String,
    },
    /// More than is left to capture or to refund.
    TooMuch {
        kind: Kind,
        asked: Money,
        left: Money,
    },
    TooMany {
        what: &'static str,
        max: usize,
    },
    /// Only on the day of the payment, in this time zone.
    AnotherDay {
        zone: String,
    },
    /// The issuer does not hold the new amount.
    Declined {
        why: &'static str,
    },
    NoChallenge,
    /// The customer has agreed to another total than there is now.
    TotalChanged {
        shown: Money,
        now: Money,
    },
    /// The key was used with another body.
    KeyReused,
}

impl Refusal {
    /// The status code: 400 is wrong for ever, 405 lacks a permission, 409 is refused by the state.
    pub fn code(&self) -> u16 {
        match self {
            Self::Wrong { .. } => 400,
            Self::Gone => 404,
            Self::AmountChangeNotAllowed | Self::TipsNotAllowed => 405,
            Self::State(..)
            | Self::TooMuch { .. }
            | Self::TooMany { .. }
            | Self::AnotherDay { .. }
            | Self::Declined { .. }
            | Self::NoChallenge
            | Self::TotalChanged { .. }
            | Self::KeyReused => 409,
        }
    }

    /// What a program tells refusals apart by.
    pub fn name(&self) -> &'static str {
        match self {
            Self::State(_, state) => match state {
                State::Created => "intent-is-created",
                State::Authorized => "intent-is-authorized",
                State::CapturedManual | State::CapturedAuto => "intent-is-captured",
                State::Refunded => "intent-is-refunded",
                State::Reversed => "intent-is-reversed",
                State::Canceled => "intent-is-canceled",
            },
            Self::Gone => "not-found",
            Self::AmountChangeNotAllowed => "amount-change-not-allowed",
            Self::TipsNotAllowed => "tips-not-allowed",
            Self::Wrong { .. } => "validation",
            Self::TooMuch { .. } => "amount-exceeds-what-is-left",
            Self::TooMany { .. } => "too-many",
            Self::AnotherDay { .. } => "reversal-only-on-the-same-day",
            Self::Declined { .. } => "issuer-declined",
            Self::NoChallenge => "no-challenge",
            Self::TotalChanged { .. } => "total-changed",
            Self::KeyReused => "idempotency-key-reused",
        }
    }

    pub fn sentence(&self) -> String {
        match self {
            Self::State(kind, state) => {
                let mode = match state {
                    State::CapturedManual => " (Manual)",
                    State::CapturedAuto => " (Auto)",
                    _ => "",
                };
                format!("A payment intent that is {}{mode} cannot be {}.", state.status(), kind.participle())
            }
            Self::Gone => "There is no such payment intent.".to_owned(),
            Self::AmountChangeNotAllowed => {
                "The amount cannot be changed: the payment intent was created without config.payment.customAmountAllowed."
                    .to_owned()
            }
            Self::TipsNotAllowed => {
                "The tips cannot be changed: the payment intent was created without config.payment.tipsAllowed.".to_owned()
            }
            Self::Wrong { member, why } => format!("{member} {why}."),
            Self::TooMuch { kind, asked, left } => {
                format!("{asked} cannot be {}: {left} is left.", kind.participle())
            }
            Self::TooMany { what, max } => format!("A payment intent has at most {max} {what}."),
            Self::AnotherDay { zone } => {
                format!(
                    "A payment that was captured automatically can be reversed only on the day ({zone}) of the payment: \
                     refund it instead."
                )
            }
            Self::Declined { why } => format!("The issuer declines the new amount: {why}."),
            Self::NoChallenge => "No challenge is pending: pay first.".to_owned(),
            Self::TotalChanged { shown, now } => {
                format!("The customer agreed to pay {shown}, and the total is {now} now.")
            }
            Self::KeyReused => {
                "This idempotencyKey was used for another request: use a new key for a new request.".to_owned()
            }
        }
    }
}

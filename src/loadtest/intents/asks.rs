//! What merchants and their customers ask the service for. Pure: names, paths and bodies.

use serde_json::{Value, json};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// By its reference it is found again, whatever became of the answer.
    Create {
        reference: String,
        is_manual: bool,
        hold: Option<HoldEnd>,
        amount: i64,
    },
    Pay(Customer),
    Challenge {
        is_met: bool,
    },
    Capture {
        amount: i64,
        tips: Option<i64>,
    },
    /// By its reason it is found again.
    Refund {
        amount: i64,
        reason: String,
    },
    Reverse,
    SetAmount(i64),
    SetTips(i64),
    RefreshSecret,
    SendReceipt,
    Cancel,
    Look,
    /// At an intent of another account.
    LookAtForeign,
    /// The sandbox' clock goes on by the seconds that end a short hold.
    Advance,
}

/// What becomes of held money after [`SHORT_HOLD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldEnd {
    Release,
    Capture,
}

/// How a customer pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Customer {
    Approved,
    Declined,
    Challenged,
}

/// More than the 30 seconds that a hold must last.
pub const SHORT_HOLD: &str = "00:00:31";

/// How far the clock is moved at once.
const ADVANCE: &str = "00:00:20";

impl Ask {
    /// The kinds of requests, in the order of an intent's life.
    pub const NAMES: [&str; 14] = [
        "create",
        "pay",
        "challenge",
        "amount",
        "tips",
        "secret",
        "capture",
        "refund",
        "reversal",
        "receipt",
        "cancel",
        "look",
        "look-at-foreign",
        "advance",
    ];

    pub fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Pay(_) => "pay",
            Self::Challenge { .. } => "challenge",
            Self::Capture { .. } => "capture",
            Self::Refund { .. } => "refund",
            Self::Reverse => "reversal",
            Self::SetAmount(_) => "amount",
            Self::SetTips(_) => "tips",
            Self::RefreshSecret => "secret",
            Self::SendReceipt => "receipt",
            Self::Cancel => "cancel",
            Self::Look => "look",
            Self::LookAtForeign => "look-at-foreign",
            Self::Advance => "advance",
        }
    }

    pub fn takes_a_key(&self) -> bool {
        matches!(
            self,
            Self::Create { .. }
                | Self::Capture { .. }
                | Self::Refund { .. }
                | Self::Reverse
                | Self::SetAmount(_)
                | Self::SetTips(_)
        )
    }

    /// Refunds are refused without one.
    pub fn needs_a_key(&self) -> bool {
        matches!(self, Self::Refund { .. })
    }

    pub fn method(&self) -> http::Method {
        match self {
            Self::Look | Self::LookAtForeign => http::Method::GET,
            Self::Cancel => http::Method::DELETE,
            _ => http::Method::POST,
        }
    }

    pub fn path(&self, intent: &str) -> String {
        let of = |command: &str| format!("/payment-intents/{intent}{command}");
        match self {
            Self::Create { .. } => "/payment-intents".to_owned(),
            Self::Pay(_) => format!("/sandbox/payment-intents/{intent}/pay"),
            Self::Challenge { .. } => format!("/sandbox/payment-intents/{intent}/challenge"),
            Self::Capture { .. } => of("/captures"),
            Self::Refund { .. } => of("/refunds"),
            Self::Reverse => of("/reversal"),
            Self::SetAmount(_) => of("/amount"),
            Self::SetTips(_) => of("/tips-amount"),
            Self::RefreshSecret => of("/refresh-client-session-secret"),
            Self::SendReceipt => of("/receipt"),
            Self::Cancel => of(""),
            Self::Look | Self::LookAtForeign => of("?returnCanceled=true"),
            Self::Advance => "/sandbox/clock/advance".to_owned(),
        }
    }

    pub fn body(&self) -> Option<Value> {
        let money = |value: i64| json!({ "value": value, "currencyCode": "GBP" });
        Some(match self {
            Self::Create { reference, is_manual, hold, amount } => {
                let mut body = json!({
                    "amount": money(*amount), "reference": reference,
                    "captureMode": if *is_manual { "Manual" } else { "Auto" },
                    "config": { "payment": { "customAmountAllowed": true, "tipsAllowed": true } },
                });
                if let Some(hold) = hold {
                    body["autoExpireIn"] = SHORT_HOLD.into();
                    body["autoExpireAction"] = format!("{hold:?}").into();
                }
                body
            }
            Self::Pay(customer) => json!({ "outcome": match customer {
                Customer::Approved => "approved",
                Customer::Declined => "declined",
                Customer::Challenged => "challenge",
            } }),
            Self::Challenge { is_met } => json!({ "result": if *is_met { "pass" } else { "fail" } }),
            Self::Capture { amount, tips: None } => json!({ "amount": amount }),
            Self::Capture { amount, tips: Some(tips) } => json!({ "amount": amount, "tipsAmount": tips }),
            Self::Refund { amount, reason } => json!({ "amount": amount, "refundReason": reason }),
            Self::SetAmount(amount) => json!({ "amount": money(*amount) }),
            Self::SetTips(tips) => json!({ "tipsAmount": money(*tips) }),
            Self::SendReceipt => json!({ "emails": ["customer@shop.test"] }),
            Self::Advance => json!({ "by": ADVANCE }),
            Self::Reverse | Self::RefreshSecret | Self::Cancel | Self::Look | Self::LookAtForeign => return None,
        })
    }
}

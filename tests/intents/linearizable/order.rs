//! Looks for an order of requests, as Wing and Gong do, and remembers where it has been. The sequential model is `decide` itself,
//! with what the service adds: a key that was used is answered as it was the first time.

use std::{collections::HashSet, time::Duration};

use herald::intents::{
    decide::{Approval, Change, Command, Fresh, IssuerAnswer, create, decide},
    intent::{Card, IdempotencyKey, Intent},
    money::{Currency, Money},
    refusal::Refusal,
    stamp::Stamp,
};
use serde_json::Value;

/// All happens within one moment of one day.
const NOW: Stamp = Stamp(1_700_000_000_000_000);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    Pay { is_approved: bool },
    Capture { amount: i64, key: Option<i64> },
    Refund { amount: i64, key: i64 },
    SetAmount(i64),
    SetTips(i64),
    Cancel,
    Reverse,
    Look,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    Answer(u16, Value),
    /// It may have been done, may be done later, or never.
    Nothing,
}

#[derive(Debug, Clone)]
pub struct Call {
    pub ask: Ask,
    pub asked_at: Duration,
    pub answered_at: Duration,
    pub seen: Seen,
}

impl Call {
    pub fn is_done(&self) -> bool {
        matches!(self.seen, Seen::Answer(200, _))
    }

    /// Whether it is a look that shows this capture.
    pub fn is_seen_with(&self, capture: &Value) -> bool {
        let shows =
            |body: &Value| body["captures"].as_array().is_some_and(|all| all.iter().any(|one| one["id"] == *capture));
        self.ask == Ask::Look && matches!(&self.seen, Seen::Answer(200, body) if shows(body))
    }
}

/// The places of the calls in an order that is possible; those that were never answered need not be in it.
pub fn order(first: &Intent, calls: &[Call]) -> Option<Vec<usize>> {
    assert!(calls.len() <= 128);
    let mut search = Search { calls, been: HashSet::new(), order: Vec::new() };
    let begun = dated(create(first.clone(), None, fresh()));
    search.go_on(0, &begun).then_some(search.order)
}

struct Search<'a> {
    calls: &'a [Call],
    /// Which calls are done, and what is stored: nothing more matters for the rest.
    been: HashSet<(u128, String)>,
    order: Vec<usize>,
}

impl Search<'_> {
    fn go_on(&mut self, done: u128, intent: &Intent) -> bool {
        let waiting = |at: &usize| done & 1 << at == 0;
        let answered = |at: &usize| matches!(self.calls[*at].seen, Seen::Answer(..));
        let open: Vec<usize> = (0..self.calls.len()).filter(waiting).collect();
        let Some(first_answer) = open.iter().filter(|at| answered(at)).map(|at| self.calls[*at].answered_at).min()
        else {
            return true;
        };
        if !self.been.insert((done, essence(intent))) {
            return false;
        }
        // None of them was asked after another had been answered. The likely order first: that of the answers, and what was never
        // answered only where nothing else goes on.
        let mut next: Vec<usize> = open.into_iter().filter(|at| self.calls[*at].asked_at <= first_answer).collect();
        next.sort_by_key(|at| (self.calls[*at].seen == Seen::Nothing, self.calls[*at].answered_at));
        for at in next {
            let after = match is_paid_too_late(&self.calls[at], self.calls) {
                // It looked and paid in two steps, with a change of the total between them: only what is open could be paid.
                true => carry_out(intent, &self.calls[at], at).is_ok().then(|| intent.clone()),
                false => apply(intent, &self.calls[at], at),
            };
            let changes_nothing =
                |after: &Intent| self.calls[at].seen == Seen::Nothing && essence(after) == essence(intent);
            if let Some(next) = after.filter(|after| !changes_nothing(after)) {
                self.order.push(at);
                if self.go_on(done | 1 << at, &next) {
                    return true;
                }
                self.order.pop();
            }
        }
        false
    }
}

/// All of an intent that any later answer depends on. What else its record remembers would make each way to it another place.
fn essence(intent: &Intent) -> String {
    let (attempts, history, operations) = (Vec::new(), Vec::new(), Vec::new());
    Intent { attempts, history, operations, secret: None, ..intent.clone() }.to_record()
}

/// Whether it was refused because the total has changed, while somebody did change it.
fn is_paid_too_late(call: &Call, calls: &[Call]) -> bool {
    let is_refused = |seen: &Seen| matches!(seen, Seen::Answer(409, body) if body["type"] == "/problems/total-changed");
    let changes = |other: &Call| {
        let is_meanwhile = other.asked_at <= call.answered_at
            && (other.seen == Seen::Nothing || (other.is_done() && other.answered_at >= call.asked_at));
        matches!(other.ask, Ask::SetAmount(_) | Ask::SetTips(_)) && is_meanwhile
    };
    matches!(call.ask, Ask::Pay { .. }) && is_refused(&call.seen) && calls.iter().any(changes)
}

/// What is stored after it, if it can be answered so now.
fn apply(intent: &Intent, call: &Call, at: usize) -> Option<Intent> {
    let after = carry_out(intent, call, at);
    match (&call.seen, after) {
        // Whether it was refused nobody knows.
        (Seen::Nothing, after) => after.ok(),
        (Seen::Answer(200, body), Ok(after)) => is_answer(&call.ask, body, &after).then_some(after),
        (Seen::Answer(404, _), Err(Refusal::Gone)) => Some(intent.clone()),
        (Seen::Answer(_, problem), Err(refusal)) => {
            let is_same = problem["type"] == format!("/problems/{}", refusal.name());
            is_same.then(|| intent.clone())
        }
        (Seen::Answer(..), Ok(_)) => None,
    }
}

fn carry_out(intent: &Intent, call: &Call, at: usize) -> Result<Intent, Refusal> {
    let kept = |kind: &str, key: i64| IdempotencyKey { key: format!("{kind}-{key}"), body: String::new() };
    let gbp = |value: i64| Money { value, currency_code: Currency::Gbp };
    let command = match &call.ask {
        Ask::Look => return Ok(intent.clone()),
        Ask::Capture { key: Some(key), .. }
            if intent.captures.iter().any(|done| done.key == Some(kept("capture", *key))) =>
        {
            return Ok(intent.clone());
        }
        Ask::Refund { key, .. } if intent.refunds.iter().any(|done| done.key == kept("refund", *key)) => {
            return Ok(intent.clone());
        }
        Ask::Pay { is_approved } => {
            let approval = || Approval { transaction: String::new(), auth_code: String::new() };
            let answer =
                if *is_approved { IssuerAnswer::Approved(approval()) } else { IssuerAnswer::Failed("declined") };
            Command::pay(Card { masked: String::new(), scheme: String::new() }, answer)
        }
        Ask::Capture { amount, key } => {
            // The service makes the id, so the answer tells it; without one it is any.
            let id = match &call.seen {
                Seen::Answer(200, body) => body["captureId"].as_str().unwrap_or_default().to_owned(),
                _ => format!("?{at}"),
            };
            Command::Capture { id, amount: *amount, tips: None, key: key.map(|key| kept("capture", key)) }
        }
        Ask::Refund { amount, key } => {
            Command::Refund { amount: *amount, reason: None, notes: None, key: kept("refund", *key) }
        }
        Ask::SetAmount(value) => {
            Command::SetAmount { amount: gbp(*value), item_lines: None, tax_lines: None, secret: String::new() }
        }
        Ask::SetTips(value) => Command::SetTips { amount: gbp(*value), secret: String::new() },
        Ask::Cancel => Command::Cancel,
        Ask::Reverse => Command::Reverse { id: String::new(), zone: jiff::tz::TimeZone::UTC, key: None },
    };
    decide(intent, &command, NOW, fresh()).map(dated)
}

/// Ids of changes and events tell nothing here, and would make each way to one state another state.
fn fresh() -> Fresh {
    Fresh { operation: String::new(), event: "evt_0".parse().expect("it is an id") }
}

fn dated(change: Change) -> Intent {
    let mut intent = change.intent;
    intent.date_from(NOW);
    intent
}

/// Whether what was answered is what is stored now.
fn is_answer(ask: &Ask, body: &Value, intent: &Intent) -> bool {
    let status = intent.status.to_string();
    match ask {
        Ask::Pay { .. } => body["status"] == status,
        Ask::Capture { amount, key: None } => {
            intent.captures.last().is_some_and(|last| body["captureId"] == last.id && last.amount == *amount)
        }
        Ask::Capture { key: Some(key), .. } => intent.captures.iter().any(|capture| {
            let is_this = capture.key.as_ref().is_some_and(|kept| kept.key == format!("capture-{key}"));
            is_this && is_id(&capture.id, &body["captureId"])
        }),
        Ask::Refund { key, .. } => {
            let place = intent.refunds.iter().position(|refund| refund.key.key == format!("refund-{key}"));
            let number = body["refundId"].as_str().and_then(|id| id.rsplit_once('-')?.1.parse::<usize>().ok());
            place.map(|place| place + 1) == number
        }
        Ask::SetAmount(_) | Ask::SetTips(_) | Ask::Cancel | Ask::Look => is_shown(body, intent),
        Ask::Reverse => true,
    }
}

/// One that was never answered has any id.
fn is_id(id: &str, shown: &Value) -> bool {
    id.starts_with('?') || shown == id
}

fn is_shown(body: &Value, intent: &Intent) -> bool {
    let captures = body["captures"].as_array().map_or(&[][..], Vec::as_slice);
    let is_capture = |(shown, capture): (&Value, &herald::intents::intent::Capture)| {
        is_id(&capture.id, &shown["id"]) && shown["amount"] == capture.amount
    };
    body["status"] == intent.status.to_string()
        && body["amount"]["value"] == intent.details.amount.value
        && body["tipsAmount"]["value"].as_i64() == intent.details.tips_amount.map(|tips| tips.value)
        && body["refundedAmount"] == intent.refunded()
        && captures.len() == intent.captures.len()
        && captures.iter().zip(&intent.captures).all(is_capture)
}

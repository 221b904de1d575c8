//! What a command does to an intent: pure, from what is stored and the time. Never asks and never waits; what the world
//! outside says (an issuer's verdict, a new secret) comes with the command.

use jiff::tz::TimeZone;

use super::{
    details::{Address, AutoExpireAction, ItemLine, ShippingDetails, TaxLine},
    intent::{
        Capture, Card, Challenge, ClientSecret, Deadline, IdempotencyKey, Intent, MAX_CAPTURES, MAX_REFUNDS, Payment,
        PaymentAttempt, Refund, Reversal,
    },
    issuer::{self, Verdict},
    life::{self, Kind, Step},
    money::{self, Money},
    refusal::Refusal,
    stamp::Stamp,
    told::{EventKind, Told},
};
use crate::facts::{event::PaymentStatus, id::EventId};

/// Receipts that one intent asks for.
const MAX_RECEIPTS: usize = 100;

#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// The customer has paid with a card, and the issuer has answered.
    Pay {
        card: Card,
        answer: IssuerAnswer,
        checkout: Option<Box<Checkout>>,
    },
    /// The customer has met the pending challenge, or not.
    Challenge(ChallengeResult),
    Cancel,
    Capture {
        id: String,
        amount: i64,
        tips: Option<i64>,
        key: Option<IdempotencyKey>,
    },
    Reverse {
        id: String,
        /// Where a payment that was captured by itself must be of the same day.
        zone: TimeZone,
        key: Option<IdempotencyKey>,
    },
    Refund {
        amount: i64,
        reason: Option<String>,
        notes: Option<String>,
        key: IdempotencyKey,
    },
    SetAmount {
        amount: Money,
        item_lines: Option<Vec<ItemLine>>,
        tax_lines: Option<Vec<TaxLine>>,
        secret: String,
    },
    SetTips {
        amount: Money,
        secret: String,
    },
    RefreshSecret {
        secret: String,
    },
    SendReceipt,
    /// Its time has come.
    Deadline(Deadline),
}

/// What a customer was shown and has filled in on the page where they pay. It is kept whatever the issuer answers, so that they
/// need not fill it in again.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Checkout {
    /// What they have agreed to pay: not what it has become meanwhile.
    pub total: i64,
    pub email_address: Option<String>,
    pub billing_address: Option<Address>,
    pub shipping_details: Option<ShippingDetails>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IssuerAnswer {
    Approved(Approval),
    Challenged,
    Failed(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    pub transaction: String,
    pub auth_code: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChallengeResult {
    Passed(Approval),
    Failed,
}

impl Command {
    /// Paid as it is, by somebody who was shown nothing.
    pub fn pay(card: Card, answer: IssuerAnswer) -> Self {
        Self::Pay { card, answer, checkout: None }
    }

    /// Its line in the table of the life.
    pub fn kind(&self, intent: &Intent) -> Kind {
        match self {
            Self::Pay { answer: IssuerAnswer::Approved(_), .. } | Self::Challenge(ChallengeResult::Passed(_)) => {
                Kind::Pay
            }
            Self::Pay { .. } | Self::Challenge(ChallengeResult::Failed) => Kind::FailToPay,
            Self::Cancel => Kind::Cancel,
            Self::Capture { .. } => Kind::Capture,
            Self::Reverse { .. } => Kind::Reverse,
            Self::Refund { .. } => Kind::Refund,
            Self::SetAmount { .. } => Kind::SetAmount,
            Self::SetTips { .. } => Kind::SetTips,
            Self::RefreshSecret { .. } => Kind::RefreshSecret,
            Self::SendReceipt => Kind::SendReceipt,
            Self::Deadline(Deadline::Expiry(_)) => Kind::Expire,
            Self::Deadline(Deadline::HoldEnd(_)) => match intent.hold_action() {
                AutoExpireAction::Release => Kind::ReleaseHold,
                AutoExpireAction::Capture => Kind::CaptureHold,
            },
        }
    }
}

/// Made for one change: what it is recognised by, and the id of its event if it has one.
#[derive(Debug, Clone)]
pub struct Fresh {
    pub operation: String,
    pub event: EventId,
}

/// An intent as it is after a command. What happened now has [`Stamp::THIS`] for its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub intent: Intent,
    /// Its merchant is told by the last of the intent's history.
    pub told: Option<EventKind>,
}

/// The change that creates an intent.
pub fn create(mut intent: Intent, secret: Option<String>, fresh: Fresh) -> Change {
    intent.secret = secret.map(made);
    tell(intent, EventKind::Created, fresh)
}

pub fn decide(intent: &Intent, command: &Command, now: Stamp, fresh: Fresh) -> Result<Change, Refusal> {
    let kind = command.kind(intent);
    let state = intent.state();
    let refused = || Refusal::State(kind, state);
    let to = match life::step(kind, state) {
        Step::No => return Err(refused()),
        Step::Gone => return Err(Refusal::Gone),
        Step::To(status) => Some(status),
        Step::ByMode => Some(life::paid(intent.mode())),
        Step::SameDay(status) => {
            check_day(intent, command, now)?;
            Some(status)
        }
        Step::Stays | Step::Tells => None,
    };
    let mut next = intent.clone();
    apply(&mut next, command, now)?;
    if kind == Kind::SendReceipt {
        return Ok(tell(next, EventKind::SendReceipt, fresh));
    }
    match to {
        Some(status) => {
            next.status = status;
            Ok(tell(next, EventKind::StatusUpdated, fresh))
        }
        None => Ok(settle(next, fresh.operation, None)),
    }
}

fn tell(mut intent: Intent, kind: EventKind, fresh: Fresh) -> Change {
    let status = intent.status;
    intent.history.push(Told::now(fresh.event, kind, status));
    settle(intent, fresh.operation, Some(kind))
}

fn settle(mut intent: Intent, operation: String, told: Option<EventKind>) -> Change {
    intent.revision += 1;
    intent.remember_operation(&operation);
    Change { intent, told }
}

/// What the command does beside the status.
fn apply(intent: &mut Intent, command: &Command, now: Stamp) -> Result<(), Refusal> {
    match command {
        Command::Pay { card, answer, checkout } => {
            if let Some(checkout) = checkout {
                check_out(intent, checkout)?;
            }
            pay(intent, card, answer);
        }
        Command::Challenge(result) => challenge(intent, result, now)?,
        Command::Cancel => intent.secret = None,
        Command::Capture { id, amount, tips, key } => capture(intent, id, *amount, *tips, key.clone())?,
        Command::Reverse { id, key, .. } => {
            intent.reversal = Some(Reversal { id: id.clone(), at: Stamp::THIS, key: key.clone() });
            release(intent);
        }
        Command::Refund { amount, reason, notes, key } => {
            check_refund(intent, *amount)?;
            let (reason, notes, key) = (reason.clone(), notes.clone(), key.clone());
            intent.refunds.push(Refund { amount: *amount, reason, notes, at: Stamp::THIS, key });
            release(intent);
        }
        Command::SetAmount { amount, item_lines, tax_lines, secret } => {
            if !intent.details.is_custom_amount_allowed() {
                return Err(Refusal::AmountChangeNotAllowed);
            }
            check_currency(intent, *amount, "amount.currencyCode")?;
            intent.requested.get_or_insert(intent.details.amount.value);
            intent.details.amount = *amount;
            intent.details.item_lines = item_lines.clone().or(intent.details.item_lines.take());
            intent.details.tax_lines = tax_lines.clone().or(intent.details.tax_lines.take());
            reprice(intent, secret, "amount.value")?;
        }
        Command::SetTips { amount, secret } => {
            if !intent.details.are_tips_allowed() {
                return Err(Refusal::TipsNotAllowed);
            }
            check_currency(intent, *amount, "tipsAmount.currencyCode")?;
            intent.details.tips_amount = Some(*amount);
            reprice(intent, secret, "tipsAmount.value")?;
        }
        Command::RefreshSecret { secret } => intent.secret = Some(made(secret.clone())),
        Command::SendReceipt => check_receipts(intent)?,
        Command::Deadline(deadline) => at_deadline(intent, *deadline),
    }
    Ok(())
}

fn check_day(intent: &Intent, command: &Command, now: Stamp) -> Result<(), Refusal> {
    let Command::Reverse { zone, .. } = command else { return Ok(()) };
    let paid_on = intent.payment.as_ref().map(|payment| payment.at.day(zone));
    let refused = || Refusal::AnotherDay { zone: zone.iana_name().unwrap_or("UTC").to_owned() };
    (paid_on == Some(now.day(zone))).then_some(()).ok_or_else(refused)
}

fn made(text: String) -> ClientSecret {
    ClientSecret { text, made_at: Stamp::THIS }
}

fn check_out(intent: &mut Intent, checkout: &Checkout) -> Result<(), Refusal> {
    let money = intent.details.amount;
    if checkout.total != intent.total() {
        return Err(Refusal::TotalChanged { shown: money.of(checkout.total), now: money.of(intent.total()) });
    }
    let Checkout { email_address, billing_address, shipping_details, .. } = checkout.clone();
    let details = &mut intent.details;
    if email_address.is_some() {
        details.customer.get_or_insert_default().email_address = email_address;
    }
    details.billing_address = billing_address.or(details.billing_address.take());
    details.shipping_details = shipping_details.or(details.shipping_details.take());
    Ok(())
}

/// An attempt uses the secret up, whatever comes of it.
fn pay(intent: &mut Intent, card: &Card, answer: &IssuerAnswer) {
    intent.secret = None;
    intent.challenge = None;
    match answer {
        IssuerAnswer::Approved(approval) => approve(intent, card.clone(), approval),
        IssuerAnswer::Challenged => {
            intent.remember_attempt("challenged", card);
            intent.challenge = Some(Challenge { at: Stamp::THIS, card: card.clone() });
        }
        IssuerAnswer::Failed(why) => intent.remember_attempt(why, card),
    }
}

fn approve(intent: &mut Intent, card: Card, approval: &Approval) {
    intent.remember_attempt(PaymentAttempt::APPROVED, &card);
    let Approval { transaction, auth_code } = approval.clone();
    let held = intent.total();
    intent.payment = Some(Payment { at: Stamp::THIS, held, is_rest_released: false, transaction, auth_code, card });
}

fn challenge(intent: &mut Intent, result: &ChallengeResult, now: Stamp) -> Result<(), Refusal> {
    let card = intent.pending_challenge(now).ok_or(Refusal::NoChallenge)?.card.clone();
    intent.challenge = None;
    match result {
        ChallengeResult::Passed(approval) => approve(intent, card, approval),
        ChallengeResult::Failed => intent.remember_attempt("the challenge failed", &card),
    }
    Ok(())
}

fn capture(
    intent: &mut Intent,
    id: &str,
    amount: i64,
    tips: Option<i64>,
    key: Option<IdempotencyKey>,
) -> Result<(), Refusal> {
    if tips.unwrap_or_default() > 0 && !intent.details.are_tips_allowed() {
        let why = "is not allowed: the payment intent was created without config.payment.tipsAllowed".to_owned();
        return Err(Refusal::Wrong { member: "tipsAmount", why });
    }
    if intent.captures.len() >= MAX_CAPTURES {
        return Err(Refusal::TooMany { what: "captures", max: MAX_CAPTURES });
    }
    let taken = Capture { id: id.to_owned(), amount, tips, at: Stamp::THIS, key };
    let (asked, left) = (taken.total(), intent.rest());
    if asked > left {
        return Err(too_much(intent, Kind::Capture, asked, left));
    }
    intent.captures.push(taken);
    Ok(())
}

fn check_refund(intent: &Intent, amount: i64) -> Result<(), Refusal> {
    if intent.refunds.len() >= MAX_REFUNDS {
        return Err(Refusal::TooMany { what: "refunds", max: MAX_REFUNDS });
    }
    let left = intent.captured() - intent.refunded();
    if amount > left {
        return Err(too_much(intent, Kind::Refund, amount, left));
    }
    Ok(())
}

fn check_receipts(intent: &Intent) -> Result<(), Refusal> {
    let receipts = intent.history.iter().filter(|told| told.kind == EventKind::SendReceipt).count();
    (receipts < MAX_RECEIPTS).then_some(()).ok_or(Refusal::TooMany { what: "receipts", max: MAX_RECEIPTS })
}

fn too_much(intent: &Intent, kind: Kind, asked: i64, left: i64) -> Refusal {
    let money = intent.details.amount;
    Refusal::TooMuch { kind, asked: money.of(asked), left: money.of(left) }
}

fn check_currency(intent: &Intent, money: Money, member: &'static str) -> Result<(), Refusal> {
    let currency = intent.details.amount.currency_code;
    if money.currency_code == currency {
        return Ok(());
    }
    Err(Refusal::Wrong { member, why: format!("is not {currency}, the payment intent's currency") })
}

/// The total has changed: a secret that was given out is for the old one, and the issuer holds the new one.
fn reprice(intent: &mut Intent, secret: &str, member: &'static str) -> Result<(), Refusal> {
    let Some(total) = intent.details.total() else {
        let why = format!("is too large: the total would be more than {}", money::MAX_MINOR);
        return Err(Refusal::Wrong { member, why });
    };
    if intent.secret.is_some() {
        intent.secret = Some(made(secret.to_owned()));
    }
    // What is asked of the customer is for the old amount.
    intent.challenge = None;
    if intent.status == PaymentStatus::Authorized
        && let Some(payment) = &mut intent.payment
    {
        match issuer::of_amount(total) {
            Verdict::Declines(why) => return Err(Refusal::Declined { why }),
            Verdict::IsDown => return Err(Refusal::Declined { why: "it does not answer" }),
            Verdict::Approves | Verdict::Challenges | Verdict::IsSlow => payment.held = total,
        }
    }
    Ok(())
}

fn at_deadline(intent: &mut Intent, deadline: Deadline) {
    match (deadline, intent.hold_action()) {
        (Deadline::Expiry(_), _) => {
            intent.secret = None;
            intent.challenge = None;
        }
        (Deadline::HoldEnd(_), AutoExpireAction::Release) => release(intent),
        // What was not captured in parts is captured now. A hundred parts leave no room for one more: the last one grows.
        (Deadline::HoldEnd(_), AutoExpireAction::Capture) => capture_rest(intent),
    }
}

fn capture_rest(intent: &mut Intent) {
    let rest = intent.rest();
    if intent.captures.len() >= MAX_CAPTURES
        && let Some(last) = intent.captures.last_mut()
    {
        last.amount += rest;
        return;
    }
    let id = format!("cp_{}-hold", intent.random_part());
    intent.captures.push(Capture { id, amount: rest, tips: None, at: Stamp::THIS, key: None });
}

fn release(intent: &mut Intent) {
    if let Some(payment) = &mut intent.payment {
        payment.is_rest_released = true;
    }
}

//! A payment intent as it was at an earlier instant, rebuilt from its record: pure. The record has the time of each event, of
//! each part of the money and of the last attempts to pay. It has none of what a change overwrote: an amount, tips, a secret,
//! what a customer filled in. Where such a change may lie between then and now, there is no answer rather than a guess.

use super::{
    details::Collection,
    intent::{Intent, MAX_CAPTURES, PaymentAttempt},
    stamp::Stamp,
};
use crate::facts::event::PaymentStatus;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It was created later.
    NotYet,
    /// Something that it had then may have been overwritten.
    NotKept,
}

/// As its merchant would have got it. What a merchant does not get is not rebuilt: a pending challenge, the operations.
pub fn as_of(intent: &Intent, at: Stamp) -> Result<Intent, Unknown> {
    if at < intent.created_at {
        return Err(Unknown::NotYet);
    }
    if at >= intent.changed_at {
        return Ok(intent.clone());
    }
    if is_overwritten(intent, at) {
        return Err(Unknown::NotKept);
    }
    let mut then = intent.clone();
    then.history.retain(|told| told.at <= at);
    then.attempts.retain(|attempt| attempt.at <= at);
    then.captures.retain(|capture| capture.at <= at);
    then.refunds.retain(|refund| refund.at <= at);
    then.reversal = then.reversal.filter(|reversal| reversal.at <= at);
    then.payment = then.payment.filter(|payment| payment.at <= at);
    then.challenge = None;
    then.operations.clear();
    let last_told = then.history.last().ok_or(Unknown::NotKept)?;
    then.status = last_told.status;
    then.changed_at = then.attempts.last().map_or(last_told.at, |attempt| attempt.at.max(last_told.at));
    then.revision = known_changes(&then);
    if let Some(payment) = &mut then.payment {
        payment.is_rest_released = matches!(then.status, PaymentStatus::Refunded | PaymentStatus::Reversed);
    }
    Ok(then)
}

/// Whether what it had at this instant may be gone from its record.
fn is_overwritten(intent: &Intent, at: Stamp) -> bool {
    let is_paid_for_later = intent.attempts.iter().any(|attempt| attempt.at > at);
    // A change that is neither an event nor an attempt has no time in the record: amount, tips, secret, a rest that was released.
    known_changes(intent) != intent.revision
        // Secrets are used up by an attempt and end with the intent.
        || (intent.details.generate_remote_token && intent.secret.is_none() && !is_spent(intent, at))
        || (collects(intent) && is_paid_for_later)
        // At its end a hold adds to the last capture where there may be no further one.
        || intent.captures.len() >= MAX_CAPTURES
}

/// Changes whose time is known. An attempt that was approved is the change that its event tells.
fn known_changes(intent: &Intent) -> u64 {
    let silent = intent.attempts.iter().filter(|attempt| !attempt.is_approved());
    intent.history.len() as u64 + silent.count() as u64
}

/// Whether the secret that it was created with was used up by then.
fn is_spent(intent: &Intent, at: Stamp) -> bool {
    let is_over = intent.history.iter().any(|told| told.at <= at && told.status != PaymentStatus::Created);
    is_over || intent.attempts.iter().any(|attempt| attempt.at <= at)
}

/// Whether customers fill something in where they pay, which takes the place of what there was.
fn collects(intent: &Intent) -> bool {
    let is_asked = |asked: Option<Collection>| asked.and_then(|asked| asked.collection_required) == Some(true);
    let Some(config) = &intent.details.config else { return false };
    is_asked(config.customer_email) || is_asked(config.billing_address) || is_asked(config.shipping_details)
}

impl PaymentAttempt {
    fn is_approved(&self) -> bool {
        self.outcome == Self::APPROVED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::event::CaptureMode,
        intents::{
            decide::{Command, IssuerAnswer},
            decide_tests::{World, details, key, money, paid, pay_with},
        },
    };

    fn lived(commands: &[Command]) -> (Vec<Intent>, Intent) {
        let mut world = World::new(details(CaptureMode::Manual, 1_000));
        let mut moments = vec![world.intent.clone()];
        for command in commands {
            world.pass(60);
            world.do_it(command).unwrap();
            moments.push(world.intent.clone());
        }
        (moments, world.intent)
    }

    fn capture() -> Command {
        Command::Capture { id: "cp_1".to_owned(), amount: 400, tips: None, key: None }
    }

    fn refund() -> Command {
        Command::Refund { amount: 100, reason: None, notes: None, key: key("a") }
    }

    #[test]
    fn a_life_of_events_and_attempts_is_known_at_each_of_its_moments() {
        let declined = pay_with(IssuerAnswer::Failed("declined"));
        let (moments, last) = lived(&[declined, paid(), capture(), refund(), Command::SendReceipt, refund()]);
        for moment in moments {
            let then = as_of(&last, moment.changed_at).unwrap();
            let was = (moment.status, moment.changed_at, moment.captured(), moment.refunded(), moment.rest());
            assert_eq!((then.status, then.changed_at, then.captured(), then.refunded(), then.rest()), was);
        }
        assert_eq!(as_of(&last, Stamp(last.created_at.0 - 1)), Err(Unknown::NotYet));
        assert_eq!(as_of(&last, last.changed_at + 1).unwrap(), last);
    }

    #[test]
    fn what_was_overwritten_is_not_guessed() {
        let amount =
            Command::SetAmount { amount: money(900), item_lines: None, tax_lines: None, secret: String::new() };
        let (moments, last) = lived(&[amount, paid(), capture()]);
        assert_eq!(as_of(&last, moments[0].changed_at), Err(Unknown::NotKept));
        assert_eq!(as_of(&last, last.changed_at).unwrap(), last);
    }
}

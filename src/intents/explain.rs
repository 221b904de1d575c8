//! Which commands are possible on an intent now, and why the others are not. It asks [`decide`](super::decide), which follows
//! the table of the life: the smallest command of each kind is tried on the intent as it is, and what came of it is dropped.

use jiff::tz::TimeZone;
use serde::Serialize;

use super::{
    decide::{Approval, ChallengeResult, Command, Fresh, IssuerAnswer, decide},
    intent::{Card, Deadline, IdempotencyKey, Intent},
    life::Kind,
    money::Money,
    refusal::Refusal,
    stamp::Stamp,
};
use crate::facts::{event::PaymentStatus, id::EventId};

/// One command, and what it would do now.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Prospect {
    pub command: &'static str,
    pub is_possible: bool,
    /// The status afterwards, also if it is the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leads_to: Option<PaymentStatus>,
    /// The event that tells of it; none if nobody is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tells: Option<&'static str>,
    /// The most that it can be for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<WhyNot>,
}

/// As the service would answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhyNot {
    pub code: u16,
    pub name: &'static str,
    pub says: String,
}

/// What time does next.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Next {
    pub deadline: &'static str,
    pub at: Stamp,
    pub leads_to: PaymentStatus,
    /// None if nobody is told.
    pub tells: Option<&'static str>,
}

/// The intent as whoever looks at it next will find it: a deadline that has come is applied first. None if none has.
pub fn after_deadline(intent: &Intent, now: Stamp) -> Option<Intent> {
    let deadline = intent.deadline().filter(|deadline| deadline.at() <= now)?;
    let mut after = decide(intent, &Command::Deadline(deadline), now, nobody()).ok()?.intent;
    after.date_from(now);
    Some(after)
}

/// Every command that somebody can give, in the order of the table. Days are those of `zone`.
pub fn prospects(intent: &Intent, now: Stamp, zone: &TimeZone) -> Vec<Prospect> {
    let commands = Kind::ALL.into_iter().filter_map(|kind| Some((kind, smallest(intent, kind, zone)?)));
    let mut prospects: Vec<_> =
        commands.map(|(kind, command)| prospect(intent, kind.name(), &command, now, at_most(intent, kind))).collect();
    if intent.pending_challenge(now).is_some() {
        let command = Command::Challenge(ChallengeResult::Passed(approval()));
        prospects.insert(1, prospect(intent, "challenge", &command, now, None));
    }
    prospects
}

/// None where nothing happens any more by itself.
pub fn next(intent: &Intent, now: Stamp) -> Option<Next> {
    let deadline = intent.deadline()?;
    let name = match deadline {
        Deadline::Expiry(_) => "expiry",
        Deadline::HoldEnd(_) => "end of the hold",
    };
    let change = decide(intent, &Command::Deadline(deadline), now.max(deadline.at()), nobody()).ok()?;
    let tells = change.told.map(|kind| kind.name());
    Some(Next { deadline: name, at: deadline.at(), leads_to: change.intent.status, tells })
}

fn prospect(
    intent: &Intent,
    command_name: &'static str,
    command: &Command,
    now: Stamp,
    at_most: Option<Money>,
) -> Prospect {
    let refused = |refusal: Refusal| WhyNot { code: refusal.code(), name: refusal.name(), says: refusal.sentence() };
    let decided = decide(intent, command, now, nobody());
    let change = decided.as_ref().ok();
    Prospect {
        command: command_name,
        is_possible: change.is_some(),
        leads_to: change.map(|change| change.intent.status),
        tells: change.and_then(|change| change.told).map(|kind| kind.name()),
        at_most: at_most.filter(|_| change.is_some()),
        why_not: decided.err().map(refused),
    }
}

fn at_most(intent: &Intent, kind: Kind) -> Option<Money> {
    let left = match kind {
        Kind::Capture => intent.rest(),
        Kind::Refund => intent.captured() - intent.refunded(),
        _ => return None,
    };
    Some(intent.details.amount.of(left))
}

/// None for what time does.
fn smallest(intent: &Intent, kind: Kind, zone: &TimeZone) -> Option<Command> {
    let card = || Card { masked: String::new(), scheme: String::new() };
    let key = || IdempotencyKey { key: String::new(), body: String::new() };
    let money = intent.details.amount;
    Some(match kind {
        Kind::Pay => Command::pay(card(), IssuerAnswer::Approved(approval())),
        Kind::FailToPay => Command::pay(card(), IssuerAnswer::Failed("")),
        Kind::Cancel => Command::Cancel,
        Kind::Capture => Command::Capture { id: String::new(), amount: 1, tips: None, key: None },
        Kind::Reverse => Command::Reverse { id: String::new(), zone: zone.clone(), key: None },
        Kind::Refund => Command::Refund { amount: 1, reason: None, notes: None, key: key() },
        Kind::SetAmount => {
            Command::SetAmount { amount: money, item_lines: None, tax_lines: None, secret: String::new() }
        }
        Kind::SetTips => {
            Command::SetTips { amount: intent.details.tips_amount.unwrap_or(money.of(0)), secret: String::new() }
        }
        Kind::RefreshSecret => Command::RefreshSecret { secret: String::new() },
        Kind::SendReceipt => Command::SendReceipt,
        Kind::Expire | Kind::ReleaseHold | Kind::CaptureHold => return None,
    })
}

fn approval() -> Approval {
    Approval { transaction: String::new(), auth_code: String::new() }
}

/// What is decided here is never written.
fn nobody() -> Fresh {
    Fresh { operation: String::new(), event: EventId::new("evt").expect("it is an id") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::{
            event::CaptureMode,
            id::{AccountId, IntentId},
        },
        intents::{
            decide::create,
            details::Details,
            intent::State,
            life::{Step, step},
        },
    };

    const NOW: Stamp = Stamp(1_700_000_000_000_000);

    /// After these commands, each a microsecond after the one before.
    fn lived(mode: CaptureMode, commands: &[Kind]) -> Intent {
        let json = serde_json::json!({ "amount": { "value": 1, "currencyCode": "GBP" }, "reference": "a" });
        let details = Details { capture_mode: mode, ..serde_json::from_value(json).unwrap() };
        let (id, account) = (IntentId::new("pi_sandbox_a").unwrap(), AccountId::new("acc_1").unwrap());
        let mut intent = create(Intent::new(id, account, details), None, nobody()).intent;
        intent.date_from(NOW);
        for kind in commands {
            let command = smallest(&intent, *kind, &TimeZone::UTC).unwrap();
            intent = decide(&intent, &command, NOW, nobody()).unwrap().intent;
            intent.date_from(NOW);
        }
        intent
    }

    #[test]
    fn in_each_state_it_says_what_the_table_says() {
        use CaptureMode::{Auto, Manual};
        use Kind::{Cancel, Capture, Pay, Refund, Reverse};
        let mut seen = Vec::new();
        for (mode, commands) in [
            (Auto, &[][..]),
            (Manual, &[Pay]),
            (Manual, &[Pay, Capture]),
            (Auto, &[Pay]),
            (Auto, &[Pay, Refund]),
            (Manual, &[Pay, Reverse]),
            (Auto, &[Cancel]),
        ] {
            let intent = lived(mode, commands);
            let state = intent.state();
            let prospects = prospects(&intent, NOW, &TimeZone::UTC);
            for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_of_time()) {
                let prospect = prospects.iter().find(|prospect| prospect.command == kind.name()).unwrap();
                let name = prospect.why_not.as_ref().map(|why| why.name);
                match step(kind, state) {
                    Step::No => assert!(name.is_some_and(|name| name.starts_with("intent-is-")), "{kind:?} {state:?}"),
                    Step::Gone => assert_eq!(name, Some("not-found")),
                    Step::To(to) | Step::SameDay(to) if prospect.is_possible => assert_eq!(prospect.leads_to, Some(to)),
                    // Something else stands against it, such as that nothing is left.
                    _ => {
                        assert!(prospect.is_possible || !name.unwrap().starts_with("intent-is-"), "{kind:?} {state:?}")
                    }
                }
            }
            assert_eq!(next(&intent, NOW).is_some(), matches!(state, State::Created | State::Authorized), "{state:?}");
            seen.push(state);
        }
        assert_eq!(seen, State::ALL);
    }

    #[test]
    fn a_deadline_that_has_come_is_applied_first() {
        let held = lived(CaptureMode::Manual, &[Kind::Pay]);
        let end = next(&held, NOW).unwrap();
        assert_eq!((end.leads_to, end.tells.is_some()), (PaymentStatus::Reversed, true));
        assert_eq!(after_deadline(&held, NOW), None);
        assert_eq!(after_deadline(&held, end.at).unwrap().status, PaymentStatus::Reversed);
    }

    #[test]
    fn a_challenge_is_a_command_as_long_as_it_is_pending() {
        let mut intent = lived(CaptureMode::Auto, &[]);
        let card = Card { masked: String::new(), scheme: String::new() };
        let challenged = Command::pay(card, IssuerAnswer::Challenged);
        intent = decide(&intent, &challenged, NOW, nobody()).unwrap().intent;
        intent.date_from(NOW);
        let has = |now| prospects(&intent, now, &TimeZone::UTC).iter().any(|prospect| prospect.command == "challenge");
        assert!(has(NOW) && !has(NOW + crate::intents::intent::CHALLENGE_FOR));
    }
}

//! Ways to decide wrongly, each a mistake that someone could make in `decide`; the product has no switch for them. The properties
//! must notice every one.

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{
    decide::{Change, Command, Fresh, IssuerAnswer, decide},
    intent::{Intent, State},
    life::Kind,
    property_tests::{Decider, live, lives},
    refusal::Refusal,
    stamp::{DAY, MINUTE, Stamp},
    told::{EventKind, Told},
};
use crate::facts::event::PaymentStatus;

type Decided = Result<Change, Refusal>;

/// A mutation that survives this many lives is one that the properties do not see.
const LIVES: u32 = 20_000;

/// What is done wrong, and how.
type Mutation = (&'static str, fn(&Intent, &Command, Stamp, Fresh) -> Decided);

/// In the order of an intent's life.
const MUTATIONS: [Mutation; 27] = [
    ("a decline is told", |intent, command, now, fresh| {
        let change = decide(intent, command, now, fresh.clone())?;
        Ok(if command.kind(intent) == Kind::FailToPay { told(change, fresh) } else { change })
    }),
    ("a payment leaves the client's secret", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        if matches!(command, Command::Pay { .. }) {
            change.intent.secret = intent.secret.clone();
        }
        Ok(change)
    }),
    ("what is paid can be paid again", |intent, command, now, fresh| match (command, intent.state()) {
        (Command::Pay { answer: IssuerAnswer::Approved(_), .. }, State::Authorized) => {
            decide(&Intent { status: PaymentStatus::Created, ..intent.clone() }, command, now, fresh)
        }
        _ => decide(intent, command, now, fresh),
    }),
    ("a challenge is met after its time", |intent, command, now, fresh| match command {
        Command::Challenge(_) => decide(intent, command, Stamp(now.0 - 20 * MINUTE), fresh),
        _ => decide(intent, command, now, fresh),
    }),
    ("an automatic capture is only authorized", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        if intent.status == PaymentStatus::Created && change.intent.status == PaymentStatus::Captured {
            change.intent.status = PaymentStatus::Authorized;
        }
        Ok(change)
    }),
    ("what is paid can be canceled", |intent, command, now, fresh| match (command, intent.state()) {
        (Command::Cancel, State::Authorized) => {
            decide(&Intent { status: PaymentStatus::Created, ..intent.clone() }, command, now, fresh)
        }
        _ => decide(intent, command, now, fresh),
    }),
    ("what expires is not told", |intent, command, now, fresh| {
        let change = decide(intent, command, now, fresh)?;
        Ok(if command.kind(intent) == Kind::Expire { untold(change) } else { change })
    }),
    ("what expires stays as it is", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        if command.kind(intent) == Kind::Expire {
            (change.intent.status, change.told) = (intent.status, None);
            change.intent.history.pop();
        }
        Ok(change)
    }),
    ("a changed amount leaves the hold as it was", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        if matches!(command, Command::SetAmount { .. }) {
            change.intent.payment = intent.payment.clone();
        }
        Ok(change)
    }),
    ("changed tips leave the hold as it was", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        if matches!(command, Command::SetTips { .. }) {
            change.intent.payment = intent.payment.clone();
        }
        Ok(change)
    }),
    ("the amount as it was asked for is forgotten", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        if matches!(command, Command::SetAmount { .. }) {
            change.intent.requested = Some(intent.details.amount.value);
        }
        Ok(change)
    }),
    ("an amount in another currency is taken", |intent, command, now, fresh| match command {
        Command::SetAmount { amount, .. } => {
            let mut other = intent.clone();
            other.details.amount.currency_code = amount.currency_code;
            decide(&other, command, now, fresh)
        }
        _ => decide(intent, command, now, fresh),
    }),
    ("an amount changes without permission", |intent, command, now, fresh| {
        match decide(intent, command, now, fresh.clone()) {
            Err(Refusal::AmountChangeNotAllowed) => Ok(changed(intent, &fresh)),
            decided => decided,
        }
    }),
    ("one more than is held can be captured", |intent, command, now, fresh| match command {
        Command::Capture { .. } => with_more_held(intent, command, now, fresh),
        _ => decide(intent, command, now, fresh),
    }),
    ("tips are captured beyond what is held", |intent, command, now, fresh| match command {
        Command::Capture { id, amount, tips, key } => {
            let (id, key) = (id.clone(), key.clone());
            let mut change = decide(intent, &Command::Capture { id, amount: *amount, tips: None, key }, now, fresh)?;
            if let Some(last) = change.intent.captures.last_mut() {
                last.tips = *tips;
            }
            Ok(change)
        }
        _ => decide(intent, command, now, fresh),
    }),
    ("a further capture is not told", |intent, command, now, fresh| {
        let change = decide(intent, command, now, fresh)?;
        let is_further = command.kind(intent) == Kind::Capture && intent.status == PaymentStatus::Captured;
        Ok(if is_further { untold(change) } else { change })
    }),
    ("a capture is told twice", |intent, command, now, fresh| {
        let change = decide(intent, command, now, fresh.clone())?;
        Ok(if command.kind(intent) == Kind::Capture { told(change, fresh) } else { change })
    }),
    ("the end of a hold captures all that was held once more", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        if command.kind(intent) == Kind::CaptureHold
            && let Some(last) = change.intent.captures.last_mut()
        {
            last.amount = intent.held();
        }
        Ok(change)
    }),
    ("the end of a hold captures nothing", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        if command.kind(intent) == Kind::CaptureHold && !intent.captures.is_empty() {
            change.intent.captures.clone_from(&intent.captures);
            change.intent.payment.iter_mut().for_each(|payment| payment.is_rest_released = true);
        }
        Ok(change)
    }),
    ("the end of a hold comes to an automatic capture too", |intent, command, now, fresh| {
        let is_over = intent.payment.as_ref().is_some_and(|payment| payment.at + 7 * DAY <= now);
        match intent.state() {
            State::CapturedAuto if is_over => {
                let mut change = changed(intent, &fresh);
                change.intent.status = PaymentStatus::Reversed;
                change.intent.payment.iter_mut().for_each(|payment| payment.is_rest_released = true);
                Ok(told(change, fresh))
            }
            _ => decide(intent, command, now, fresh),
        }
    }),
    ("what was captured by itself is reversed on any day", |intent, command, now, fresh| {
        match (command, &intent.payment) {
            (Command::Reverse { .. }, Some(payment)) => decide(intent, command, payment.at, fresh),
            _ => decide(intent, command, now, fresh),
        }
    }),
    ("a reversal leaves the rest held", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        if matches!(command, Command::Reverse { .. }) {
            change.intent.payment = intent.payment.clone();
        }
        Ok(change)
    }),
    ("one more than is captured can be refunded", |intent, command, now, fresh| match command {
        Command::Refund { .. } => with_more_captured(intent, command, now, fresh),
        _ => decide(intent, command, now, fresh),
    }),
    ("a refund leaves the rest held", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        if matches!(command, Command::Refund { .. }) {
            change.intent.payment = intent.payment.clone();
        }
        Ok(change)
    }),
    ("what is told is the status before", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        if let Some(last) = change.intent.history.last_mut().filter(|_| change.told.is_some()) {
            last.status = intent.status;
        }
        Ok(change)
    }),
    ("what is refused is told all the same", |intent, command, now, fresh| {
        match decide(intent, command, now, fresh.clone()) {
            Err(Refusal::State(..)) => Ok(told(changed(intent, &fresh), fresh)),
            decided => decided,
        }
    }),
    ("the change is not remembered by its operation", |intent, command, now, fresh| {
        let mut change = decide(intent, command, now, fresh)?;
        change.intent.operations.clone_from(&intent.operations);
        Ok(change)
    }),
];

/// Nothing but one change more.
fn changed(intent: &Intent, fresh: &Fresh) -> Change {
    let mut intent = intent.clone();
    intent.revision += 1;
    intent.remember_operation(&fresh.operation);
    Change { intent, told: None }
}

fn told(mut change: Change, fresh: Fresh) -> Change {
    let (kind, status) = (EventKind::StatusUpdated, change.intent.status);
    change.intent.history.push(Told::now(fresh.event, kind, status));
    Change { told: Some(kind), ..change }
}

fn untold(mut change: Change) -> Change {
    change.intent.history.pop();
    Change { told: None, ..change }
}

fn with_more_held(intent: &Intent, command: &Command, now: Stamp, fresh: Fresh) -> Decided {
    let mut richer = intent.clone();
    richer.payment.iter_mut().for_each(|payment| payment.held += 1);
    let mut change = decide(&richer, command, now, fresh)?;
    change.intent.payment.iter_mut().for_each(|payment| payment.held -= 1);
    Ok(change)
}

fn with_more_captured(intent: &Intent, command: &Command, now: Stamp, fresh: Fresh) -> Decided {
    let mut richer = intent.clone();
    let Some(last) = richer.captures.last_mut() else { return with_more_held(intent, command, now, fresh) };
    last.amount += 1;
    let mut change = decide(&richer, command, now, fresh)?;
    change.intent.captures.clone_from(&intent.captures);
    Ok(change)
}

/// Why the properties do not hold; nothing if they do.
fn noticed(decider: Decider<'_>) -> Option<String> {
    let config = Config { cases: LIVES, failure_persistence: None, ..Config::default() };
    // The same lives each time, so that what is noticed today is noticed tomorrow.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let result = TestRunner::new_with_rng(config, rng).run(&lives(), |life| live(&life, decider));
    result.err().map(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}

#[test]
fn every_way_to_decide_wrongly_is_noticed() {
    let mut survivors = Vec::new();
    for (what, decider) in MUTATIONS {
        match noticed(&decider) {
            Some(why) => println!("{what}: {why}"),
            None => survivors.push(what),
        }
    }
    let (tried, caught) = (MUTATIONS.len(), MUTATIONS.len() - survivors.len());
    println!(r#"{{"intent_mutations":{{"tried":{tried},"caught":{caught}}}}}"#);
    assert!(survivors.is_empty(), "not noticed within {LIVES} lives: {survivors:?}");
}

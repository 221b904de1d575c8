//! Whatever is done to an intent and whenever: its money adds up, each change of status is told once and in order, and what
//! is refused has no trace. The decider is a parameter, so that `mutation_tests` can show that a wrong one is noticed.

use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, TestCaseResult},
};

use super::{
    as_of::{Unknown, as_of},
    decide::{ChallengeResult, Change, Command, Fresh, IssuerAnswer, decide},
    decide_tests::{World, approval, check_out, details, key, money, paid, pay_with, reversal},
    details::{AutoExpireAction, Collection, Details},
    document::Document,
    intent::{CHALLENGE_FOR, Intent, State},
    life::{self, Kind, Step},
    money::{Currency, Money},
    refusal::Refusal,
    stamp::{DAY, MINUTE, SECOND, Stamp},
    told::EventKind,
};
use crate::facts::event::{CaptureMode, PaymentStatus};

/// What `decide` does, or does wrong.
pub(super) type Decider<'a> = &'a dyn Fn(&Intent, &Command, Stamp, Fresh) -> Result<Change, Refusal>;

#[derive(Debug, Clone)]
pub(super) enum Act {
    Do(Command),
    /// Having been shown a total that is off by so much.
    CheckOut {
        off_by: i64,
        is_approved: bool,
    },
    Wait(i64),
}

/// One intent, and what happens to it.
#[derive(Debug, Clone)]
pub(super) struct Life {
    details: Details,
    acts: Vec<Act>,
}

pub(super) fn lives() -> impl Strategy<Value = Life> {
    let is_allowed = prop::bool::weighted(0.9);
    (any::<bool>(), any::<bool>(), any::<bool>(), 1..3_000i64, is_allowed, acts()).prop_map(
        |(is_manual, is_capture, has_token, amount, is_allowed, acts)| {
            let mode = if is_manual { CaptureMode::Manual } else { CaptureMode::Auto };
            let mut details = details(mode, amount);
            details.auto_expire_action = (is_manual && is_capture).then_some(AutoExpireAction::Capture);
            if !is_allowed {
                details.config = None;
            }
            details.generate_remote_token = has_token;
            if acts.iter().any(|act| matches!(act, Act::CheckOut { .. })) {
                // Only what is asked for is filled in.
                let asked = Some(Collection { collection_required: Some(true) });
                details.config.get_or_insert_default().customer_email = asked;
            }
            Life { details, acts }
        },
    )
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let value = || prop_oneof![1..3_000i64, select(vec![1, 400, 1_000, 1_051, 1_096])];
    let currency = || prop::sample::select(vec![Currency::Gbp, Currency::Gbp, Currency::Gbp, Currency::Eur]);
    let number = 0..6u32;
    let command = prop_oneof![
        4 => Just(paid()),
        1 => Just(pay_with(IssuerAnswer::Failed("declined"))),
        1 => Just(pay_with(IssuerAnswer::Challenged)),
        1 => Just(Command::Challenge(ChallengeResult::Passed(approval()))),
        1 => Just(Command::Challenge(ChallengeResult::Failed)),
        1 => Just(Command::Cancel),
        6 => (value(), prop::option::of(0..200i64)).prop_map(|(amount, tips)| {
            Command::Capture { id: "cp".to_owned(), amount, tips, key: None }
        }),
        1 => Just(reversal()),
        5 => (value(), number).prop_map(|(amount, number)| {
            Command::Refund { amount, reason: None, notes: None, key: key(&number.to_string()) }
        }),
        3 => (value(), currency()).prop_map(|(value, currency_code)| Command::SetAmount {
            amount: Money { value, currency_code }, item_lines: None, tax_lines: None, secret: "s".to_owned(),
        }),
        2 => (0..500i64).prop_map(|value| Command::SetTips { amount: money(value), secret: "s".to_owned() }),
        1 => Just(Command::RefreshSecret { secret: "s".to_owned() }),
        1 => Just(Command::SendReceipt),
    ];
    let wait = select(vec![1, SECOND, 55 * SECOND, 10 * MINUTE, DAY, 7 * DAY, 30 * DAY]);
    let check_out = (select(vec![0, 0, 0, 1, -1]), any::<bool>())
        .prop_map(|(off_by, is_approved)| Act::CheckOut { off_by, is_approved });
    let act = prop_oneof![5 => command.prop_map(Act::Do), 1 => check_out, 2 => wait.prop_map(Act::Wait)];
    prop::collection::vec(act, 1..40)
}

/// Lives it, and checks each of its moments.
pub(super) fn live(life: &Life, decider: Decider<'_>) -> TestCaseResult {
    let mut world = World::new(life.details.clone());
    check(&world.intent)?;
    let mut moments = vec![world.intent.clone()];
    let mut number = 1;
    for act in &life.acts {
        let command = match act {
            Act::Wait(micros) => {
                world.pass(*micros);
                continue;
            }
            Act::Do(command) => command.clone(),
            Act::CheckOut { off_by, is_approved: true } => {
                check_out(world.intent.total() + off_by, IssuerAnswer::Approved(approval()))
            }
            Act::CheckOut { off_by, .. } => check_out(world.intent.total() + off_by, IssuerAnswer::Failed("declined")),
        };
        while let Some(deadline) = world.intent.deadline().filter(|deadline| deadline.at() <= world.now) {
            number += 1;
            let before = world.intent.clone();
            let changed = step(&mut world, &Command::Deadline(deadline), decider, number)?;
            prop_assert!(changed, "what is due is refused");
            moments.push(world.intent.clone());
            prop_assert_ne!(world.intent.deadline(), before.deadline(), "what was due is due again");
        }
        number += 1;
        if step(&mut world, &command, decider, number)? {
            moments.push(world.intent.clone());
        }
    }
    check_earlier(&moments)
}

/// What the last record tells of each earlier moment is what was, if it tells anything.
fn check_earlier(moments: &[Intent]) -> TestCaseResult {
    let Some(last) = moments.last() else { return Ok(()) };
    for (moment, next) in moments.iter().zip(&moments[1..]) {
        for at in [moment.changed_at, Stamp(next.changed_at.0 - 1)] {
            match as_of(last, at) {
                Ok(then) => {
                    prop_assert_eq!(Document::of(&then, ""), Document::of(moment, ""), "at {} of {:?}", at, last);
                    prop_assert_eq!((then.rest(), then.deadline()), (moment.rest(), moment.deadline()));
                    prop_assert_eq!((then.revision, &then.history), (moment.revision, &moment.history));
                }
                Err(unknown) => prop_assert_eq!(unknown, Unknown::NotKept),
            }
        }
    }
    Ok(())
}

/// Whether it was done.
fn step(world: &mut World, command: &Command, decider: Decider<'_>, number: u64) -> Result<bool, TestCaseError> {
    let (before, now, fresh) = (world.intent.clone(), world.now, World::fresh(number));
    let step = life::step(command.kind(&before), before.state());
    match decider(&before, command, now, fresh.clone()) {
        Err(refusal) => {
            prop_assert!(
                is_fair(&refusal, &before, command, now),
                "{:?} of {:?} is refused: {:?}",
                command,
                before,
                refusal
            );
            Ok(false)
        }
        Ok(change) => {
            prop_assert!(!matches!(step, Step::No | Step::Gone), "{:?} is done in {:?}", command, before.state());
            prop_assert_eq!(change.intent.revision, before.revision + 1);
            prop_assert_eq!(change.intent.operations.last(), Some(&fresh.operation));
            let told = change.told;
            world.stored(change);
            check(&world.intent)?;
            check_step(&before, command, told, &world.intent, now)?;
            Ok(true)
        }
    }
}

/// Whether the table, the money or the configuration say so too.
fn is_fair(refusal: &Refusal, intent: &Intent, command: &Command, now: Stamp) -> bool {
    let (kind, state) = (command.kind(intent), intent.state());
    let step = life::step(kind, state);
    match (refusal, command) {
        (Refusal::State(of, at), _) => step == Step::No && (*of, *at) == (kind, state),
        (Refusal::Gone, _) => step == Step::Gone,
        (Refusal::AnotherDay { .. }, Command::Reverse { zone, .. }) => {
            intent.payment.as_ref().is_some_and(|paid| paid.at.day(zone) != now.day(zone))
        }
        (Refusal::TooMuch { .. }, Command::Capture { amount, tips, .. }) => {
            amount + tips.unwrap_or_default() > intent.rest()
        }
        (Refusal::TooMuch { .. }, Command::Refund { amount, .. }) => *amount > intent.captured() - intent.refunded(),
        (Refusal::TotalChanged { .. }, Command::Pay { checkout: Some(checkout), .. }) => {
            checkout.total != intent.total()
        }
        (Refusal::NoChallenge, Command::Challenge(_)) => intent.pending_challenge(now).is_none(),
        (Refusal::AmountChangeNotAllowed, Command::SetAmount { .. }) => !intent.details.is_custom_amount_allowed(),
        (Refusal::TipsNotAllowed, Command::SetTips { .. }) => !intent.details.are_tips_allowed(),
        (Refusal::Wrong { .. } | Refusal::TooMany { .. } | Refusal::Declined { .. }, _) => true,
        _ => false,
    }
}

/// What one change must have done, and nothing else.
fn check_step(
    before: &Intent,
    command: &Command,
    told: Option<EventKind>,
    after: &Intent,
    now: Stamp,
) -> TestCaseResult {
    let news = after.history.len() - before.history.len();
    prop_assert_eq!(news, usize::from(told.is_some()), "one change is told once, or not at all");
    if let Some(kind) = told {
        let last = after.history.last().expect("something was told");
        prop_assert_eq!((last.kind, last.status, last.at), (kind, after.status, after.changed_at));
    }
    let is_status = match life::step(command.kind(before), before.state()) {
        Step::To(_) | Step::ByMode | Step::SameDay(_) => true,
        Step::Stays | Step::Tells | Step::No | Step::Gone => false,
    };
    prop_assert_eq!(told == Some(EventKind::StatusUpdated), is_status, "{:?}", command);
    let changes_money = matches!(command, Command::SetAmount { .. } | Command::SetTips { .. });
    prop_assert!(changes_money || before.total() == after.total(), "the amount has changed by itself");
    prop_assert_eq!(before.details.amount.currency_code, after.details.amount.currency_code);
    match command {
        Command::Pay { checkout, .. } => {
            prop_assert!(after.secret.is_none(), "an attempt leaves the secret");
            if let Some(checkout) = checkout {
                prop_assert_eq!(checkout.total, after.total(), "the customer has agreed to another total");
                prop_assert_eq!(&checkout.shipping_details, &after.details.shipping_details);
            }
        }
        Command::Challenge(_) => {
            let asked_at = before.challenge.as_ref().map(|challenge| challenge.at);
            prop_assert!(asked_at.is_some_and(|at| now < at + CHALLENGE_FOR), "a challenge is met too late");
        }
        Command::Capture { amount, tips, .. } => {
            prop_assert_eq!(after.captured(), before.captured() + amount + tips.unwrap_or_default());
        }
        Command::Refund { amount, .. } => prop_assert_eq!(after.refunded(), before.refunded() + amount),
        Command::SetAmount { amount, .. } => {
            prop_assert!(before.details.is_custom_amount_allowed());
            prop_assert_eq!(after.details.amount, *amount);
            prop_assert_eq!(after.requested, Some(before.requested.unwrap_or(before.details.amount.value)));
        }
        Command::SetTips { .. } => prop_assert!(before.details.are_tips_allowed()),
        Command::Reverse { zone, .. } if before.state() == State::CapturedAuto => {
            let paid_on = before.payment.as_ref().map(|payment| payment.at.day(zone));
            prop_assert_eq!(paid_on, Some(now.day(zone)), "what was captured by itself is reversed on another day");
        }
        Command::Deadline(deadline) => {
            prop_assert!(deadline.at() <= now);
            let is_capture = command.kind(before) == Kind::CaptureHold;
            prop_assert!(!is_capture || after.captured() == before.held(), "a hold ends and not all is captured");
        }
        _ => {}
    }
    Ok(())
}

/// What must be so at any time.
fn check(intent: &Intent) -> TestCaseResult {
    let (held, captured, refunded) = (intent.held(), intent.captured(), intent.refunded());
    prop_assert!(captured <= held, "{} was captured of {}", captured, held);
    prop_assert!(refunded <= captured, "{} was refunded of {}", refunded, captured);
    prop_assert!(intent.rest() >= 0 && intent.rest() <= held - captured);
    prop_assert!(intent.details.total().is_some());
    let told = &intent.history;
    prop_assert_eq!((told[0].kind, told[0].status), (EventKind::Created, PaymentStatus::Created));
    prop_assert!(told.windows(2).all(|pair| pair[0].at < pair[1].at), "told at one time, or backwards");
    let statuses: Vec<_> =
        told.iter().filter(|told| told.kind != EventKind::SendReceipt).map(|told| told.status).collect();
    prop_assert_eq!(statuses.last(), Some(&intent.status), "its merchant knows another status");
    let edges = life::edges();
    for pair in statuses.windows(2) {
        let is_edge = edges.iter().any(|(from, to, _)| (*from, *to) == (pair[0], pair[1]));
        prop_assert!(is_edge, "{} to {}", pair[0], pair[1]);
    }
    match intent.status {
        PaymentStatus::Created | PaymentStatus::Canceled => prop_assert!(intent.payment.is_none() && captured == 0),
        PaymentStatus::Authorized => prop_assert!(held == intent.total() && captured == 0, "{} is held", held),
        PaymentStatus::Captured => prop_assert!(captured > 0 && refunded == 0),
        PaymentStatus::Refunded => prop_assert!(refunded > 0 && intent.rest() == 0),
        PaymentStatus::Reversed => prop_assert!(intent.rest() == 0 && refunded == 0),
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 2_000, failure_persistence: None, ..Config::default() })]

    #[test]
    fn money_adds_up_and_every_change_of_status_is_told_once(life in lives()) {
        live(&life, &decide)?;
    }
}

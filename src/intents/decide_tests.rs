//! Whatever is done to an intent and whenever: its money adds up, each change of status is told once and in order, and what
//! is refused has no trace.

use proptest::{prelude::*, sample::select};

use super::{
    decide::{Approval, ChallengeResult, Change, Checkout, Command, Fresh, IssuerAnswer, create, decide},
    details::{Address, AutoExpireAction, Config, Details, PaymentConfig, ShippingDetails},
    intent::{Card, EventKind, IdempotencyKey, Intent, State},
    life::{self, Kind, Step},
    money::{Currency, Money},
    refusal::Refusal,
    stamp::{DAY, MINUTE, SECOND, Stamp, TimeSpan},
};
use crate::facts::{
    event::{CaptureMode, PaymentStatus},
    id::{AccountId, EventId, IntentId},
};

const START: Stamp = Stamp(1_700_000_000_000_000);

fn money(value: i64) -> Money {
    Money { value, currency_code: Currency::Gbp }
}

fn details(mode: CaptureMode, amount: i64) -> Details {
    let json = serde_json::json!({ "amount": money(amount), "reference": "Order 236" });
    let payment = PaymentConfig { custom_amount_allowed: Some(true), tips_allowed: Some(true) };
    let config = Config { payment: Some(payment), ..Config::default() };
    Details { capture_mode: mode, config: Some(config), ..serde_json::from_value(json).unwrap() }
}

fn card() -> Card {
    Card { masked: "52000000****0056".to_owned(), scheme: "MASTERCARD".to_owned() }
}

fn approval() -> Approval {
    Approval { transaction: "tx_1".to_owned(), auth_code: "123456".to_owned() }
}

fn pay_with(answer: IssuerAnswer) -> Command {
    Command::Pay { card: card(), answer, checkout: None }
}

/// On the checkout page, where the customer is shown this total.
fn check_out(total: i64, answer: IssuerAnswer) -> Command {
    let address = |city: &str| Address { city: Some(city.to_owned()), ..serde_json::from_str(ADDRESS).unwrap() };
    let checkout = Checkout {
        total,
        email_address: Some("a@b.example".to_owned()),
        billing_address: (total % 2 == 0).then(|| address("London")),
        shipping_details: Some(ShippingDetails { address: Some(address("Leeds")), ..ShippingDetails::default() }),
    };
    Command::Pay { card: card(), answer, checkout: Some(Box::new(checkout)) }
}

const ADDRESS: &str = r#"{"countryCode":"GB"}"#;

fn paid() -> Command {
    pay_with(IssuerAnswer::Approved(approval()))
}

fn key(name: &str) -> IdempotencyKey {
    IdempotencyKey { key: name.to_owned(), body: "same".to_owned() }
}

fn capture_of(amount: i64) -> Command {
    Command::Capture { id: "cp_1".to_owned(), amount, tips: None, key: None }
}

fn refund_of(amount: i64) -> Command {
    Command::Refund { amount, reason: None, notes: None, key: key("k") }
}

fn reversal() -> Command {
    Command::Reverse { id: "rvs_1".to_owned(), key: None }
}

/// An intent with its clock, changed as the service would.
struct World {
    intent: Intent,
    now: Stamp,
    count: u64,
}

impl World {
    fn new(details: Details) -> Self {
        let (id, account) = (IntentId::new("pi_sandbox_a").unwrap(), AccountId::new("acc_1").unwrap());
        let change = create(Intent::new(id, account, details), None, Self::fresh(0));
        let mut world = Self { intent: change.intent.clone(), now: START, count: 1 };
        world.stored(change);
        world
    }

    fn fresh(number: u64) -> Fresh {
        Fresh { operation: format!("op{number}"), event: EventId::new(&format!("evt_{number}")).unwrap() }
    }

    /// Through its record, as the next process would see it.
    fn stored(&mut self, change: Change) {
        self.now = self.now + 1;
        let Change { mut intent, .. } = change;
        let record = intent.to_record();
        let (id, revision) = (intent.id.clone(), intent.revision);
        intent.date_from(self.now);
        let read = Intent::from_record(id, revision, self.now, record.as_bytes()).unwrap();
        assert_eq!(read, intent, "what is read is not what was written");
        self.intent = read;
    }

    fn do_it(&mut self, command: &Command) -> Result<Option<EventKind>, Refusal> {
        while let Some(deadline) = self.intent.deadline().filter(|deadline| deadline.at() <= self.now) {
            self.count += 1;
            let change = decide(&self.intent, &Command::Deadline(deadline), self.now, Self::fresh(self.count)).unwrap();
            self.stored(change);
        }
        self.count += 1;
        let change = decide(&self.intent, command, self.now, Self::fresh(self.count))?;
        let told = change.told;
        self.stored(change);
        Ok(told)
    }

    fn pass(&mut self, micros: i64) {
        self.now = self.now + micros;
    }
}

fn in_state(state: State) -> World {
    let mode = if state == State::CapturedAuto { CaptureMode::Auto } else { CaptureMode::Manual };
    let mut world = World::new(details(mode, 1_000));
    let way: Vec<Command> = match state {
        State::Created => vec![],
        State::Authorized | State::CapturedAuto => vec![paid()],
        State::CapturedManual => vec![paid(), capture_of(400)],
        State::Refunded => vec![paid(), capture_of(400), refund_of(100)],
        State::Reversed => vec![paid(), reversal()],
        State::Canceled => vec![Command::Cancel],
    };
    for command in &way {
        world.do_it(command).unwrap();
    }
    assert_eq!(world.intent.state(), state);
    world
}

fn command_of(kind: Kind, intent: &Intent) -> Option<Command> {
    Some(match kind {
        Kind::Pay => paid(),
        Kind::FailToPay => pay_with(IssuerAnswer::Failed("it is declined")),
        Kind::Cancel => Command::Cancel,
        Kind::Capture => capture_of(100),
        Kind::Reverse => reversal(),
        Kind::Refund => refund_of(100),
        Kind::SetAmount => {
            Command::SetAmount { amount: money(900), item_lines: None, tax_lines: None, secret: "s".to_owned() }
        }
        Kind::SetTips => Command::SetTips { amount: money(50), secret: "s".to_owned() },
        Kind::RefreshSecret => Command::RefreshSecret { secret: "s".to_owned() },
        Kind::SendReceipt => Command::SendReceipt,
        // Time comes only where it is due.
        Kind::Expire | Kind::ReleaseHold | Kind::CaptureHold => {
            let command = Command::Deadline(intent.deadline()?);
            (command.kind(intent) == kind).then_some(command)?
        }
    })
}

#[test]
fn every_cell_of_the_table_does_what_it_says_and_tells_it_once() {
    for state in State::ALL {
        for kind in Kind::ALL {
            let mut world = in_state(state);
            if kind == Kind::CaptureHold {
                world.intent.details.auto_expire_action = Some(AutoExpireAction::Capture);
            }
            let before = world.intent.clone();
            let step = life::step(kind, state);
            let Some(command) = command_of(kind, &before) else {
                assert!(matches!(step, Step::No), "{kind:?} in {state:?} never comes");
                continue;
            };
            let done = world.do_it(&command);
            let (after, told) = (&world.intent, world.intent.history.len() - before.history.len());
            match step {
                Step::No => assert_eq!(done, Err(Refusal::State(kind, state)), "{kind:?} in {state:?}"),
                Step::Gone => assert_eq!(done, Err(Refusal::Gone)),
                Step::Stays => assert_eq!((done, after.status, told), (Ok(None), before.status, 0)),
                Step::Tells => {
                    assert_eq!((done, after.status, told), (Ok(Some(EventKind::SendReceipt)), before.status, 1));
                }
                Step::To(status) | Step::SameDay(status) => {
                    assert_eq!((done, after.status, told), (Ok(Some(EventKind::StatusUpdated)), status, 1), "{kind:?}");
                }
                Step::ByMode => {
                    assert_eq!((done, after.status), (Ok(Some(EventKind::StatusUpdated)), life::paid(before.mode())));
                }
            }
            if !matches!(step, Step::No | Step::Gone) {
                assert_eq!(after.revision, before.revision + 1);
            }
        }
    }
}

#[test]
fn an_auto_intent_goes_straight_to_captured() {
    let mut world = World::new(details(CaptureMode::Auto, 1_000));
    world.do_it(&paid()).unwrap();
    let statuses: Vec<_> = world.intent.history.iter().map(|told| told.status).collect();
    assert_eq!(statuses, [PaymentStatus::Created, PaymentStatus::Captured]);
    assert_eq!((world.intent.captured(), world.intent.captures.len()), (1_000, 0));
}

#[test]
fn held_money_goes_back_after_seven_days_and_not_a_moment_earlier() {
    let mut world = in_state(State::Authorized);
    let paid_at = world.intent.payment.as_ref().unwrap().at;
    world.now = paid_at + (7 * DAY - 1);
    assert_eq!(
        world.do_it(&Command::RefreshSecret { secret: "s".to_owned() }),
        Err(Refusal::State(Kind::RefreshSecret, State::Authorized))
    );
    world.pass(1);
    assert_eq!(world.do_it(&capture_of(1)), Err(Refusal::State(Kind::Capture, State::Reversed)));
    assert_eq!(world.intent.history.last().unwrap().status, PaymentStatus::Reversed);
}

#[test]
fn a_hold_may_end_earlier_and_be_captured() {
    let mut details = details(CaptureMode::Manual, 1_000);
    details.auto_expire_in = TimeSpan::parse("00:00:55");
    details.auto_expire_action = Some(AutoExpireAction::Capture);
    let mut world = World::new(details);
    world.do_it(&paid()).unwrap();
    world.do_it(&capture_of(300)).unwrap();
    world.pass(56 * SECOND);
    assert!(world.do_it(&Command::Cancel).is_err());
    let intent = &world.intent;
    assert_eq!((intent.status, intent.captured(), intent.rest()), (PaymentStatus::Captured, 1_000, 0));
    assert_eq!(intent.deadline(), None);
}

#[test]
fn an_interrupted_payment_is_resumed_on_the_same_intent() {
    let mut world = World::new(details(CaptureMode::Auto, 1_000));
    world.do_it(&pay_with(IssuerAnswer::Failed("declined"))).unwrap();
    world.do_it(&pay_with(IssuerAnswer::Challenged)).unwrap();
    world.pass(10 * MINUTE);
    assert_eq!(world.do_it(&Command::Challenge(ChallengeResult::Passed(approval()))), Err(Refusal::NoChallenge));
    world.do_it(&Command::RefreshSecret { secret: "again".to_owned() }).unwrap();
    assert_eq!(world.intent.history.len(), 1, "nobody is told of a decline");
    world.do_it(&paid()).unwrap();
    assert_eq!((world.intent.status, &world.intent.secret), (PaymentStatus::Captured, &None));
}

#[test]
fn a_customer_pays_the_total_that_they_were_shown_or_nothing() {
    let mut world = World::new(details(CaptureMode::Auto, 1_000));
    world.do_it(&Command::SetTips { amount: money(100), secret: "s".to_owned() }).unwrap();
    let before = world.intent.clone();
    let refused = Refusal::TotalChanged { shown: money(1_000), now: money(1_100) };
    assert_eq!(world.do_it(&check_out(1_000, IssuerAnswer::Approved(approval()))), Err(refused));
    assert_eq!(world.intent, before);
    world.do_it(&check_out(1_100, IssuerAnswer::Approved(approval()))).unwrap();
    assert_eq!(world.intent.held(), 1_100);
}

#[test]
fn what_a_customer_has_filled_in_outlives_a_declined_payment() {
    let mut details = details(CaptureMode::Auto, 1_000);
    details.customer = Some(serde_json::from_str(r#"{"id":"c","emailAddress":"old@b.example"}"#).unwrap());
    let mut world = World::new(details);
    world.do_it(&check_out(1_000, IssuerAnswer::Failed("declined"))).unwrap();
    let details = &world.intent.details;
    let customer = details.customer.as_ref().unwrap();
    assert_eq!((customer.id.as_deref(), customer.email_address.as_deref()), (Some("c"), Some("a@b.example")));
    assert_eq!(details.billing_address.as_ref().unwrap().city.as_deref(), Some("London"));
    let kept = details.clone();
    // Who fills in nothing leaves what is there.
    world.do_it(&paid()).unwrap();
    assert_eq!(world.intent.details, kept);
}

#[test]
fn an_automatic_capture_is_reversed_on_its_day_only() {
    let mut world = in_state(State::CapturedAuto);
    let end_of_day = Stamp((world.now.day() + 1) * DAY);
    world.now = end_of_day;
    assert_eq!(world.do_it(&reversal()), Err(Refusal::AnotherDay));
    let mut world = in_state(State::CapturedAuto);
    world.now = Stamp(end_of_day.0 - 1);
    assert_eq!(world.do_it(&reversal()), Ok(Some(EventKind::StatusUpdated)));
}

#[test]
fn a_changed_amount_adjusts_the_hold_unless_the_issuer_declines() {
    let mut world = in_state(State::Authorized);
    let to =
        |value| Command::SetAmount { amount: money(value), item_lines: None, tax_lines: None, secret: "s".to_owned() };
    world.do_it(&to(2_000)).unwrap();
    assert_eq!((world.intent.held(), world.intent.requested), (2_000, Some(1_000)));
    assert!(matches!(world.do_it(&to(2_051)), Err(Refusal::Declined { .. })));
    assert_eq!((world.intent.held(), world.intent.details.amount.value), (2_000, 2_000));
}

#[derive(Debug, Clone)]
enum Act {
    Do(Command),
    /// Having been shown a total that is off by so much, with an issuer that approves.
    CheckOut {
        off_by: i64,
        is_approved: bool,
    },
    Wait(i64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let value = || prop_oneof![1..3_000i64, select(vec![1, 400, 1_000, 1_051, 1_096])];
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
        3 => value().prop_map(|value| {
            Command::SetAmount { amount: money(value), item_lines: None, tax_lines: None, secret: "s".to_owned() }
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

/// What must be so at any time.
fn check(intent: &Intent) {
    let (held, captured, refunded) = (intent.held(), intent.captured(), intent.refunded());
    assert!(captured <= held, "{captured} was captured of {held}");
    assert!(refunded <= captured, "{refunded} was refunded of {captured}");
    assert!(intent.rest() >= 0 && intent.rest() <= held - captured);
    assert!(intent.details.total().is_some());
    let told = &intent.history;
    assert_eq!((told[0].kind, told[0].status), (EventKind::Created, PaymentStatus::Created));
    assert!(told.windows(2).all(|pair| pair[0].at < pair[1].at), "told at one time, or backwards");
    let last = told.iter().rev().find(|told| told.kind != EventKind::SendReceipt).unwrap();
    assert_eq!(last.status, intent.status, "its merchant knows another status");
    let edges = life::edges();
    let statuses: Vec<_> =
        told.iter().filter(|told| told.kind != EventKind::SendReceipt).map(|told| told.status).collect();
    for pair in statuses.windows(2) {
        assert!(edges.iter().any(|(from, to, _)| (*from, *to) == (pair[0], pair[1])), "{} to {}", pair[0], pair[1]);
    }
    match intent.status {
        PaymentStatus::Created | PaymentStatus::Canceled => assert!(intent.payment.is_none() && captured == 0),
        PaymentStatus::Authorized => assert!(held > 0 && captured == 0),
        PaymentStatus::Captured => assert!(captured > 0 && refunded == 0),
        PaymentStatus::Refunded => assert!(refunded > 0 && intent.rest() == 0),
        PaymentStatus::Reversed => assert!(intent.rest() == 0 && refunded == 0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn money_adds_up_and_every_change_of_status_is_told_once(
        is_manual: bool, is_capture: bool, amount in 1..3_000i64, acts in acts(),
    ) {
        let mode = if is_manual { CaptureMode::Manual } else { CaptureMode::Auto };
        let mut details = details(mode, amount);
        details.auto_expire_action = (is_manual && is_capture).then_some(AutoExpireAction::Capture);
        let mut world = World::new(details);
        check(&world.intent);
        for act in acts {
            let act = match act {
                Act::CheckOut { off_by, is_approved } => {
                    let answer = if is_approved { IssuerAnswer::Approved(approval()) } else { IssuerAnswer::Failed("declined") };
                    Act::Do(check_out(world.intent.total() + off_by, answer))
                }
                act => act,
            };
            match act {
                Act::Wait(micros) => world.pass(micros),
                Act::CheckOut { .. } => unreachable!("it has become a command"),
                Act::Do(command) => {
                    let before = world.intent.clone();
                    let done = world.do_it(&command);
                    check(&world.intent);
                    if world.intent.revision == before.revision {
                        prop_assert!(done.is_err());
                        prop_assert_eq!(&world.intent, &before);
                    }
                    if let (Command::Pay { checkout: Some(checkout), .. }, true) = (&command, done.is_ok()) {
                        prop_assert_eq!(checkout.total, before.total());
                        prop_assert_eq!(checkout.total, world.intent.total());
                        prop_assert_eq!(&checkout.shipping_details, &world.intent.details.shipping_details);
                    }
                    if let Ok(told) = done {
                        // One change of its own; before it at most those that time made.
                        let last_was_told = world.intent.history.last().unwrap().at == world.intent.changed_at;
                        prop_assert_eq!(told.is_some(), last_was_told);
                    }
                    if let Some(deadline) = world.intent.deadline() {
                        prop_assert!(deadline.at() > before.created_at);
                    }
                }
            }
        }
    }
}

//! What each command does in each state, and the examples of the description. What holds in every life is in `property_tests`.

use jiff::tz::TimeZone;

use super::{
    decide::{Approval, ChallengeResult, Change, Checkout, Command, Fresh, IssuerAnswer, create, decide},
    details::{Address, AutoExpireAction, Config, Details, PaymentConfig, ShippingDetails},
    intent::{Card, IdempotencyKey, Intent, State},
    life::{self, Kind, Step},
    money::{Currency, Money},
    refusal::Refusal,
    stamp::{DAY, MINUTE, SECOND, Stamp, TimeSpan},
    told::EventKind,
};
use crate::{
    facts::{
        event::{CaptureMode, PaymentStatus},
        id::{AccountId, EventId, IntentId},
    },
    store::intents::Stored,
};

pub(super) const START: Stamp = Stamp(1_700_000_000_000_000);

pub(super) fn money(value: i64) -> Money {
    Money { value, currency_code: Currency::Gbp }
}

pub(super) fn details(mode: CaptureMode, amount: i64) -> Details {
    let json = serde_json::json!({ "amount": money(amount), "reference": "Order 236" });
    let payment = PaymentConfig { custom_amount_allowed: Some(true), tips_allowed: Some(true) };
    let config = Config { payment: Some(payment), ..Config::default() };
    Details { capture_mode: mode, config: Some(config), ..serde_json::from_value(json).unwrap() }
}

pub(super) fn card() -> Card {
    Card { masked: "52000000****0056".to_owned(), scheme: "MASTERCARD".to_owned() }
}

pub(super) fn approval() -> Approval {
    Approval { transaction: "tx_1".to_owned(), auth_code: "123456".to_owned() }
}

pub(super) fn pay_with(answer: IssuerAnswer) -> Command {
    Command::Pay { card: card(), answer, checkout: None }
}

/// On the checkout page, where the customer is shown this total.
pub(super) fn check_out(total: i64, answer: IssuerAnswer) -> Command {
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

pub(super) fn paid() -> Command {
    pay_with(IssuerAnswer::Approved(approval()))
}

pub(super) fn key(name: &str) -> IdempotencyKey {
    IdempotencyKey { key: name.to_owned(), body: "same".to_owned() }
}

pub(super) fn capture_of(amount: i64) -> Command {
    Command::Capture { id: "cp_1".to_owned(), amount, tips: None, key: None }
}

pub(super) fn refund_of(amount: i64) -> Command {
    Command::Refund { amount, reason: None, notes: None, key: key("k") }
}

pub(super) fn reversal() -> Command {
    reversal_in(TimeZone::UTC)
}

fn reversal_in(zone: TimeZone) -> Command {
    Command::Reverse { id: "rvs_1".to_owned(), zone, key: None }
}

/// An intent with its clock, changed as the service would.
pub(super) struct World {
    pub intent: Intent,
    pub now: Stamp,
    count: u64,
}

impl World {
    pub fn new(details: Details) -> Self {
        let (id, account) = (IntentId::new("pi_sandbox_a").unwrap(), AccountId::new("acc_1").unwrap());
        let secret = details.generate_remote_token.then(|| "first".to_owned());
        let change = create(Intent::new(id, account, details), secret, Self::fresh(0));
        let mut world = Self { intent: change.intent.clone(), now: START, count: 1 };
        world.stored(change);
        world
    }

    pub fn fresh(number: u64) -> Fresh {
        Fresh { operation: format!("op{number}"), event: EventId::new(&format!("evt_{number}")).unwrap() }
    }

    /// Through its record, as the next process would see it.
    pub fn stored(&mut self, change: Change) {
        self.now = self.now + 1;
        let Change { mut intent, told } = change;
        let number = told.map(|_| intent.history.len() as u64);
        let json = intent.to_record().into();
        intent.date_from(self.now);
        intent.place(number, None);
        let stored = Stored { revision: intent.revision, changed_at: self.now.0, number, entry: None, json };
        let read = Intent::from_record(intent.id.clone(), &stored).unwrap();
        assert_eq!(read, intent, "what is read is not what was written");
        self.intent = read;
    }

    pub fn do_it(&mut self, command: &Command) -> Result<Option<EventKind>, Refusal> {
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

    pub fn pass(&mut self, micros: i64) {
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
    let end_of_day = Stamp((world.now.0 / DAY + 1) * DAY);
    world.now = end_of_day;
    assert_eq!(world.do_it(&reversal()), Err(Refusal::AnotherDay { zone: "UTC".to_owned() }));
    let mut world = in_state(State::CapturedAuto);
    world.now = Stamp(end_of_day.0 - 1);
    assert_eq!(world.do_it(&reversal()), Ok(Some(EventKind::StatusUpdated)));
}

#[test]
fn the_day_of_a_reversal_is_that_of_the_zone() {
    let at = |text| Stamp::parse(text).unwrap();
    let reversed_at = |zone: &str, now| {
        let mut world = in_state(State::CapturedAuto);
        // The night in which London goes back to winter time: that day has 25 hours.
        world.intent.payment.as_mut().unwrap().at = at("2025-10-25T23:30:00Z");
        world.now = at(now);
        world.do_it(&reversal_in(TimeZone::get(zone).unwrap()))
    };
    let refused = |zone: &str| Err(Refusal::AnotherDay { zone: zone.to_owned() });
    assert!(reversed_at("Europe/London", "2025-10-26T23:59:59Z").is_ok());
    assert_eq!(reversed_at("Europe/London", "2025-10-27T00:00:00Z"), refused("Europe/London"));
    assert_eq!(reversed_at("UTC", "2025-10-26T00:00:00Z"), refused("UTC"));
    assert!(reversed_at("America/New_York", "2025-10-26T03:59:59Z").is_ok());
    assert_eq!(reversed_at("America/New_York", "2025-10-26T04:00:00Z"), refused("America/New_York"));
    assert!(
        refused("Europe/London").map(|_: Option<EventKind>| ()).unwrap_err().sentence().contains("(Europe/London)")
    );
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

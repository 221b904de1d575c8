//! For every promise a history that breaks just that one, made by one change to a history that is sound.

use serde_json::json;

use super::*;
use crate::loadtest::{
    faults::Fault,
    intents::{
        asks::HoldEnd,
        ledger::{Arrival, Books},
    },
};

const ALL: [&str; 13] = [
    "answered",
    "unasked",
    "same_answer",
    "money",
    "latest",
    "untold",
    "told_once",
    "legal_life",
    "out_of_order",
    "apart",
    "wrong_signature",
    "unanswered",
    "generator",
];

fn asked(at_s: u64, intent: &str, ask: Ask, outcome: Outcome) -> Asked {
    let at_us = at_s * 1_000_000;
    let key = ask.takes_a_key().then(|| format!("key-{at_s}"));
    Asked {
        account: 0,
        intent: intent.to_owned(),
        ask,
        key,
        intended_us: at_us,
        began_us: at_us,
        ended_us: at_us + 10_000,
        tries: 1,
        is_doubtful: false,
        outcome,
        repeats: Vec::new(),
    }
}

fn done(body: serde_json::Value) -> Outcome {
    Outcome::Done(body)
}

fn told(event: &str, kind: &str, status: &str) -> Told {
    let [event, kind, status] = [event, kind, status].map(str::to_owned);
    Told { event, kind: format!("payment_intent.{kind}"), status }
}

/// A manual purchase: created, its amount changed, paid, captured in two parts, refunded once, with a receipt; a foreign look.
fn sound() -> Case {
    let captured = |id: &str| done(json!({ "message": "Captured", "captureId": id }));
    let capture = |amount| Ask::Capture { amount, tips: None };
    let creation =
        Ask::Create { reference: "order-1".to_owned(), is_manual: true, hold: Some(HoldEnd::Release), amount: 900 };
    let refund = Ask::Refund { amount: 50, reason: "reason-1".to_owned() };
    let refunded = json!({ "paymentIntentId": "pi_1", "refundId": "rfnd_1-1", "refundReason": "reason-1" });
    let mut all = vec![
        asked(1, "pi_1", creation, done(json!({ "id": "pi_1" }))),
        asked(2, "pi_1", Ask::SetAmount(1_000), done(json!({}))),
        asked(3, "pi_1", Ask::Pay(Customer::Approved), done(json!({ "status": "Authorized" }))),
        asked(4, "pi_1", capture(100), captured("cp_1")),
        asked(5, "pi_1", capture(200), Outcome::Unknown),
        asked(6, "pi_1", capture(900), Outcome::Refused(409, "/problems/more-than-is-left".to_owned())),
        asked(7, "pi_1", Ask::SendReceipt, done(json!(null))),
        asked(8, "pi_1", refund, done(refunded)),
        asked(9, "pi_2", Ask::LookAtForeign, Outcome::Refused(404, "/problems/not-found".to_owned())),
    ];
    all[3].repeats.push(Seen::Answer(200, json!({ "message": "Captured", "captureId": "cp_1" })));
    let stored = Stored {
        account: 0,
        id: "pi_1".to_owned(),
        reference: "order-1".to_owned(),
        status: "Refunded".to_owned(),
        is_manual: true,
        is_paid: true,
        amount: 1_000,
        tips: None,
        total: 1_000,
        refunded: 50,
        captures: vec![
            StoredCapture { id: "cp_1".to_owned(), amount: 100, tips: None },
            StoredCapture { id: "cp_2".to_owned(), amount: 200, tips: None },
        ],
        refunds: vec![StoredRefund { id: "rfnd_1-1".to_owned(), reason: "reason-1".to_owned() }],
        told: vec![
            told("evt_1", "created", "Created"),
            told("evt_2", "status_updated", "Authorized"),
            told("evt_3", "status_updated", "Captured"),
            told("evt_4", "status_updated", "Captured"),
            told("evt_5", "send-receipt", "Captured"),
            told("evt_6", "status_updated", "Refunded"),
        ],
    };
    let arrivals = stored.told.iter().enumerate().map(|(at, told)| Arrival {
        endpoint: 0,
        at_us: at as u64 * 1_000_000 + 1_050_000,
        event: told.event.clone(),
        kind: told.kind.clone(),
        account: "acc_0".to_owned(),
        intent: "pi_1".to_owned(),
        status: told.status.clone(),
        sequence: format!("s{at}"),
        fault: None,
        is_acknowledged: true,
    });
    let lateness_us = all.iter().map(|asked| (asked.intended_us, 100)).collect();
    // The lost answer at 5 s is the fault's doing.
    let faults = vec![FaultMark { fault: Fault::KillService, at: 5.0, until: 5.0 }];
    let books = Books { arrivals: arrivals.collect(), asked: all, lateness_us };
    Case { books, stored: vec![stored], faults, accounts: vec!["acc_0".to_owned(), "acc_1".to_owned()], fan_out: 1 }
}

/// The names of the promises that broke.
fn broken(case: &Case) -> Vec<String> {
    let promises = judge(case);
    assert_eq!(promises.iter().map(|promise| promise.name.as_str()).collect::<Vec<_>>(), ALL);
    for promise in &promises {
        assert!(promise.tried >= promise.broken, "{promise:?}");
        assert_eq!(promise.examples.is_empty(), promise.broken == 0, "{promise:?}");
    }
    promises.into_iter().filter(|promise| promise.broken > 0).map(|promise| promise.name).collect()
}

#[test]
fn a_sound_history_keeps_every_promise_and_tries_each() {
    let mut case = sound();
    assert_eq!(broken(&case), [""; 0]);
    // Long after the fault.
    case.books.asked.push(asked(60, "pi_1", Ask::Look, done(json!({ "status": "Refunded" }))));
    let untried: Vec<_> = judge(&case).into_iter().filter(|promise| promise.tried == 0).collect();
    assert!(untried.is_empty(), "{untried:?}");
}

/// What is done to the history, and the only promise that breaks by it.
type Change = (&'static str, &'static str, fn(&mut Case));

const CHANGES: [Change; 28] = [
    ("answered", "a capture that was answered is not stored", |case| {
        case.books.asked[3].outcome = done(json!({ "message": "Captured", "captureId": "cp_3" }));
        case.books.asked[3].repeats.clear();
        // So that cp_1 is somebody's.
        case.books.asked.push(asked(4, "pi_1", Ask::Capture { amount: 100, tips: None }, Outcome::Unknown));
    }),
    ("answered", "a creation that was answered is not found", |case| {
        let ask = Ask::Create { reference: "order-9".to_owned(), is_manual: false, hold: None, amount: 5 };
        case.books.asked.push(asked(3, "pi_9", ask, done(json!({ "id": "pi_9" }))));
    }),
    ("answered", "a reversal that was answered did not happen", |case| {
        case.books.asked.push(asked(9, "pi_1", Ask::Reverse, done(json!({ "reversalId": "rvs_1" }))));
    }),
    ("unasked", "a capture that was refused is stored", |case| {
        case.books.asked[4].outcome = Outcome::Refused(409, String::new());
    }),
    ("unasked", "a capture is stored although 503 promised that nothing was changed", |case| {
        case.books.asked[4].outcome = Outcome::Untouched;
    }),
    ("unasked", "one request is captured twice", |case| {
        case.books.asked[3].ask = Ask::Capture { amount: 200, tips: None };
        case.books.asked.remove(4);
        case.stored[0].captures[0].amount = 200;
    }),
    ("unasked", "a creation is stored that nobody asked for", |case| {
        let mut other = case.stored[0].clone();
        (other.id, other.reference) = ("pi_7".to_owned(), "order-7".to_owned());
        (other.status, other.is_paid, other.refunded) = ("Created".to_owned(), false, 0);
        (other.captures, other.refunds) = (Vec::new(), Vec::new());
        other.told.truncate(1);
        other.told[0].event = "evt_70".to_owned();
        let mut arrival = case.books.arrivals[0].clone();
        (arrival.intent, arrival.event) = ("pi_7".to_owned(), "evt_70".to_owned());
        case.books.arrivals.push(arrival);
        let first = asked(1, "pi_7", Ask::SetAmount(1_000), done(json!({})));
        case.books.asked.push(first);
        case.stored.push(other);
    }),
    ("same_answer", "the same key is answered with another capture", |case| {
        case.books.asked[3].repeats = vec![Seen::Answer(200, json!({ "message": "Captured", "captureId": "cp_2" }))];
    }),
    ("same_answer", "the same key is refused the second time", |case| {
        case.books.asked[3].repeats = vec![Seen::Answer(409, json!({}))];
    }),
    ("money", "more is captured than was held", |case| {
        case.stored[0].total = 250;
    }),
    ("money", "more is refunded than the refunds are", |case| {
        case.stored[0].refunded = 51;
    }),
    ("latest", "an amount that was overwritten is stored", |case| {
        case.stored[0].amount = 900;
    }),
    ("latest", "tips are stored that nobody set", |case| {
        case.stored[0].tips = Some(7);
    }),
    ("untold", "an event does not arrive", |case| {
        case.books.arrivals.remove(2);
    }),
    ("untold", "an event is never acknowledged", |case| {
        case.books.arrivals[5].is_acknowledged = false;
    }),
    ("told_once", "a change is told twice under two ids", |case| {
        let mut again = case.books.arrivals[3].clone();
        (again.event, again.intent) = ("evt_4b".to_owned(), "pi_1".to_owned());
        again.is_acknowledged = false;
        case.books.arrivals.push(again);
    }),
    ("told_once", "an event tells another status than the timeline", |case| {
        case.books.arrivals[1].status = "Captured".to_owned();
    }),
    ("legal_life", "the last event is not the status", |case| {
        case.stored[0].status = "Captured".to_owned();
    }),
    ("legal_life", "a change of status is not in the timeline", |case| {
        case.stored[0].told.remove(3);
        case.books.arrivals.remove(3);
    }),
    ("legal_life", "a change of status is in the timeline twice", |case| {
        let again = told("evt_4b", "status_updated", "Captured");
        case.stored[0].told.insert(4, again);
        let mut arrival = case.books.arrivals[3].clone();
        (arrival.event, arrival.sequence) = ("evt_4b".to_owned(), "s3b".to_owned());
        case.books.arrivals.insert(4, arrival);
    }),
    ("legal_life", "a receipt is told that was refused", |case| {
        case.books.asked[6].outcome = Outcome::Refused(409, String::new());
    }),
    ("out_of_order", "two events arrive the other way round", |case| {
        case.books.arrivals.swap(1, 2);
    }),
    ("out_of_order", "a sequence does not grow", |case| {
        case.books.arrivals[4].sequence = "s0".to_owned();
    }),
    ("apart", "another account's intent is shown", |case| {
        case.books.asked[8].outcome = done(json!({ "status": "Created" }));
    }),
    ("apart", "another account is told", |case| {
        let mut again = case.books.arrivals[0].clone();
        again.endpoint = 1;
        case.books.arrivals.push(again);
    }),
    ("wrong_signature", "a signature does not verify", |case| {
        case.books.arrivals[0].fault = Some("dojo-signature does not verify".to_owned());
    }),
    ("unanswered", "a request is not answered although nothing is broken", |case| {
        case.faults.clear();
    }),
    ("generator", "requests are sent late", |case| {
        case.books.lateness_us[0].1 = 60_000;
    }),
];

#[test]
fn each_promise_is_broken_by_what_breaks_it_and_no_other() {
    for (name, what, change) in CHANGES {
        let mut case = sound();
        change(&mut case);
        assert_eq!(broken(&case), [name], "{what}");
    }
    let tried: HashSet<_> = CHANGES.iter().map(|(name, ..)| *name).collect();
    assert_eq!(tried.len(), ALL.len(), "a promise that no change breaks");
}

#[test]
fn what_is_in_doubt_may_be_done_or_not() {
    let mut case = sound();
    // A try before the refusal was never answered: it may have been done after all.
    case.books.asked[4].outcome = Outcome::Refused(409, String::new());
    case.books.asked[4].is_doubtful = true;
    assert_eq!(broken(&case), [""; 0]);
    let doubtful = asked(5, "pi_1", Ask::Capture { amount: 300, tips: None }, Outcome::Unknown);
    case.books.asked.push(doubtful);
    // An amount in doubt may be the last, or not.
    let amount = asked(3, "pi_1", Ask::SetAmount(2_000), Outcome::Unknown);
    case.books.asked.insert(2, Asked { began_us: 0, ..amount });
    assert_eq!(broken(&case), [""; 0]);
    (case.stored[0].amount, case.stored[0].total) = (2_000, 2_000);
    assert_eq!(broken(&case), [""; 0]);
}

#[test]
fn an_answer_says_what_is_certain() {
    let full = json!({ "detail": "Redis is full and refuses changes; nothing was changed." });
    let away = json!({ "detail": "Redis does not answer, so it is not known whether anything was changed: look." });
    assert_eq!(Outcome::of(&Seen::Answer(503, full)), Outcome::Untouched);
    assert_eq!(Outcome::of(&Seen::Answer(503, away)), Outcome::Unknown);
    assert_eq!(Outcome::of(&Seen::Nothing), Outcome::Unknown);
    assert!(matches!(Outcome::of(&Seen::Answer(500, json!({}))), Outcome::Failed(500, _)));
}

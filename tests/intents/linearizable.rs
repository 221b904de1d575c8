//! Many clients, few intents, two processes over one Redis, one of which is killed: whatever was answered, the requests to each
//! intent can be put into one order, in keeping with the times of their answers, that `decide` by itself goes through with the
//! very same answers. A history that was tampered with has no such order.

#[path = "linearizable/order.rs"]
mod order;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use herald::{
    clock,
    intents::{details::Details, intent::Intent},
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use reqwest::Method;
use serde_json::{Value, json};

use super::house::{House, Merchant};
use order::{Ask, Call, Seen, order};

const CLIENTS: usize = 6;

/// Requests of each client to each intent.
const REQUESTS: usize = 9;

/// Calls in doubt of a history that is tampered with.
const MOST_IN_DOUBT: usize = 3;

fn purchase() -> Value {
    json!({
        "captureMode": "Manual", "amount": { "value": 1000, "currencyCode": "GBP" }, "reference": "Order 236",
        "config": { "payment": { "customAmountAllowed": true, "tipsAllowed": true } },
    })
}

fn ask(rng: &mut StdRng) -> Ask {
    let part = |rng: &mut StdRng| *[50, 100, 250, 400].choose(rng).unwrap();
    match rng.random_range(0..100) {
        0..16 => Ask::Pay { is_approved: rng.random_bool(0.7) },
        16..42 => {
            // What has one key is one request, whoever sends it.
            let key = rng.random_bool(0.5).then(|| rng.random_range(0..3));
            Ask::Capture { amount: key.map_or_else(|| part(rng), |key| 60 + 10 * key), key }
        }
        42..58 => {
            let key = rng.random_range(0..5);
            Ask::Refund { amount: 30 + 10 * key, key }
        }
        58..68 => Ask::SetAmount(rng.random_range(5..15) * 100),
        68..76 => Ask::SetTips(rng.random_range(0..5) * 10),
        76..78 => Ask::Cancel,
        78..80 => Ask::Reverse,
        _ => Ask::Look,
    }
}

fn request(ask: &Ask, id: &str) -> (Method, String, Option<String>, Value) {
    let money = |value: i64| json!({ "value": value, "currencyCode": "GBP" });
    let of = |command: &str| format!("/payment-intents/{id}{command}");
    match ask {
        Ask::Pay { is_approved } => {
            let outcome = if *is_approved { "approved" } else { "declined" };
            (Method::POST, format!("/sandbox/payment-intents/{id}/pay"), None, json!({ "outcome": outcome }))
        }
        Ask::Capture { amount, key } => {
            (Method::POST, of("/captures"), key.map(|key| format!("capture-{key}")), json!({ "amount": amount }))
        }
        Ask::Refund { amount, key } => {
            (Method::POST, of("/refunds"), Some(format!("refund-{key}")), json!({ "amount": amount }))
        }
        Ask::SetAmount(value) => (Method::POST, of("/amount"), None, json!({ "amount": money(*value) })),
        Ask::SetTips(value) => (Method::POST, of("/tips-amount"), None, json!({ "tipsAmount": money(*value) })),
        Ask::Cancel => (Method::DELETE, of(""), None, Value::Null),
        Ask::Reverse => (Method::POST, of("/reversal"), None, Value::Null),
        Ask::Look => (Method::GET, of("?returnCanceled=true"), None, Value::Null),
    }
}

/// Requests of one client, each when the one before is answered.
async fn client(merchants: [Merchant; 2], id: String, seed: u64, began: Instant, answered: &AtomicUsize) -> Vec<Call> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut calls = Vec::new();
    for _ in 0..REQUESTS {
        let (ask, merchant) = (ask(&mut rng), &merchants[usize::from(rng.random_bool(0.5))]);
        let (method, path, key, body) = request(&ask, &id);
        let asked_at = began.elapsed();
        let answer = merchant.try_ask(method, &path, key.as_deref(), &body).await;
        let answered_at = began.elapsed();
        answered.fetch_add(1, Ordering::Relaxed);
        let seen = match answer {
            Ok((503, problem)) if problem["detail"].as_str().unwrap().contains("nothing was changed") => continue,
            // It was not sent.
            Err(error) if error.is_connect() => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            // A look that nobody saw tells nothing.
            Ok((503, _)) | Err(_) if ask == Ask::Look => continue,
            Ok((503, _)) | Err(_) => Seen::Nothing,
            Ok((code, body)) if code < 500 => Seen::Answer(code, body),
            other => panic!("{path} is answered {other:?}"),
        };
        calls.push(Call { ask, asked_at, answered_at, seen });
    }
    calls
}

/// As it is created, for the order to begin with.
fn first(id: &str) -> Intent {
    let details: Details = serde_json::from_value(purchase()).unwrap();
    Intent::new(id.parse().unwrap(), "acc_a".parse().unwrap(), details)
}

async fn histories(seed: u64) -> BTreeMap<String, Vec<Call>> {
    let mut house = House::start().await;
    let second = house.start_another().await;
    let merchant = house.merchant("acc_a");
    // No deadline comes, and no day ends.
    merchant.post("/sandbox/clock", &json!({ "speed": 0 })).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(merchant.create(&purchase()).await["id"].as_str().unwrap().to_owned());
    }
    let (began, answered) = (clock::now(), AtomicUsize::new(0));
    let clients = (0..CLIENTS).flat_map(|number| ids.iter().enumerate().map(move |(at, id)| (number, at, id)));
    let storm = join_all(clients.map(|(number, at, id)| {
        let merchants = [merchant.clone(), merchant.at(&second)];
        let seed = seed * 1_000 + (number * 10 + at) as u64;
        let (id, answered) = (id.clone(), &answered);
        async move { (id.clone(), client(merchants, id, seed, began, answered).await) }
    }));
    let killed = async {
        let a_third = CLIENTS * REQUESTS * 3 / 3;
        super::support::until("a third of the answers", async || answered.load(Ordering::Relaxed) >= a_third).await;
        house.kill_service();
        house.start_service_again().await;
    };
    let (done, ()) = tokio::join!(storm, killed);
    let mut histories = BTreeMap::<String, Vec<Call>>::new();
    for (id, calls) in done {
        histories.entry(id).or_default().extend(calls);
    }
    house.end().await;
    histories
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_history_has_an_order_and_one_that_was_tampered_with_has_none() {
    let seed = rand::random_range(1..1_000_000);
    let histories = histories(seed).await;
    let (mut lost, mut tampered) = (0, BTreeMap::<&str, usize>::new());
    for (id, calls) in &histories {
        let lost_here = calls.iter().filter(|call| call.seen == Seen::Nothing).count();
        lost += lost_here;
        let found = order(&first(id), calls);
        assert!(found.is_some(), "seed {seed}: {id} has no order: {calls:#?}");
        // That there is no order is certain only after all have been tried: each call in doubt doubles them.
        for (what, tamper) in TAMPERS.into_iter().filter(|_| lost_here <= MOST_IN_DOUBT) {
            let mut wrong = calls.clone();
            if tamper(&mut wrong) {
                assert!(order(&first(id), &wrong).is_none(), "seed {seed}: {what}, and {id} has an order: {wrong:#?}");
                *tampered.entry(what).or_default() += 1;
            }
        }
    }
    let (all, changed) = (histories.len(), tampered.values().sum::<usize>());
    println!(r#"{{"linearizable":{{"seed":{seed},"histories":{all},"lost":{lost},"tampered":{changed}}}}}"#);
}

type Tamper = (&'static str, fn(&mut Vec<Call>) -> bool);

/// Each answers whether the history has what it needs.
const TAMPERS: [Tamper; 4] = [
    ("a capture that was answered is forgotten", |calls| {
        // One that was never answered could stand in for it.
        let is_lost = |call: &Call| matches!(call.ask, Ask::Capture { .. }) && call.seen == Seen::Nothing;
        if calls.iter().any(is_lost) {
            return false;
        }
        let Some(at) =
            calls.iter().position(|call| matches!(call.ask, Ask::Capture { key: None, .. }) && call.is_done())
        else {
            return false;
        };
        let forgotten = calls.remove(at).seen;
        let Seen::Answer(_, body) = forgotten else { return false };
        calls.iter().any(|call| call.is_seen_with(&body["captureId"]))
    }),
    ("a refusal is told as a success", |calls| {
        // Answered before anybody paid, so nothing can have been refunded.
        let pays = calls.iter().filter(|call| matches!(call.ask, Ask::Pay { is_approved: true }));
        let paid_from = pays.map(|call| call.asked_at).min().unwrap_or(Duration::MAX);
        let refused = |call: &&mut Call| {
            let is_refused = matches!(call.seen, Seen::Answer(409, _));
            matches!(call.ask, Ask::Refund { .. }) && is_refused && call.answered_at < paid_from
        };
        let Some(call) = calls.iter_mut().find(refused) else { return false };
        call.seen = Seen::Answer(200, json!({ "refundId": "rfnd_x-1" }));
        true
    }),
    ("the last look sees the beginning", |calls| {
        let paid = calls.iter().filter(|call| matches!(call.ask, Ask::Pay { is_approved: true }) && call.is_done());
        let Some(paid_at) = paid.map(|call| call.answered_at).min() else { return false };
        let look = calls.iter_mut().find(|call| call.ask == Ask::Look && call.asked_at > paid_at && call.is_done());
        let Some(Call { seen: Seen::Answer(_, body), .. }) = look else { return false };
        body["status"] = "Created".into();
        true
    }),
    ("what was captured has another amount", |calls| {
        let captured = |call: &&mut Call| {
            call.ask == Ask::Look
                && matches!(&call.seen, Seen::Answer(200, body) if body["captures"].as_array().is_some_and(|all| !all.is_empty()))
        };
        let Some(Call { seen: Seen::Answer(_, body), .. }) = calls.iter_mut().find(captured) else { return false };
        body["captures"][0]["amount"] = 7.into();
        true
    }),
];

#[test]
fn a_look_that_comes_too_late_for_what_it_sees_has_no_order() {
    let at = std::time::Duration::from_millis;
    let call = |ask, asked, answered, seen| Call { ask, asked_at: at(asked), answered_at: at(answered), seen };
    let look = |status: &str| {
        let details = json!({ "status": status, "amount": { "value": 1000 }, "captures": [], "refundedAmount": 0 });
        Seen::Answer(200, details)
    };
    let paid = || Seen::Answer(200, json!({ "outcome": "approved", "status": "Authorized" }));
    let pay = || Ask::Pay { is_approved: true };
    let intent = first("pi_sandbox_a");
    let has_order = |calls: &[Call]| order(&intent, calls).is_some();
    // At the same time both are right; afterwards only one is.
    assert!(has_order(&[call(pay(), 0, 10, paid()), call(Ask::Look, 5, 6, look("Created"))]));
    assert!(has_order(&[call(pay(), 0, 10, paid()), call(Ask::Look, 5, 6, look("Authorized"))]));
    assert!(!has_order(&[call(pay(), 0, 10, paid()), call(Ask::Look, 11, 12, look("Created"))]));
    // What was never answered may come at any time, or not at all.
    let lost = || call(pay(), 0, 1, Seen::Nothing);
    assert!(has_order(&[lost(), call(Ask::Look, 11, 12, look("Created"))]));
    assert!(has_order(&[
        lost(),
        call(Ask::Look, 11, 12, look("Created")),
        call(Ask::Look, 13, 14, look("Authorized"))
    ]));
    assert!(!has_order(&[
        lost(),
        call(Ask::Look, 11, 12, look("Authorized")),
        call(Ask::Look, 13, 14, look("Created"))
    ]));
    // Two of one kind are paid once.
    assert!(!has_order(&[call(pay(), 0, 1, paid()), call(pay(), 0, 1, paid())]));
}

//! The payment-intents service as a merchant meets it: the real program, a real Redis, HTTP.

// A test waits for other processes.
#![allow(clippy::disallowed_methods)]

#[path = "support/merchants.rs"]
mod merchants;
#[path = "support/herald.rs"]
mod process;
#[path = "receiver/mod.rs"]
mod receiver;
mod support;
#[path = "support/world.rs"]
mod world;

#[path = "intents/as_of.rs"]
mod as_of;
#[path = "intents/browser.rs"]
mod browser;
#[path = "intents/checkout.rs"]
mod checkout;
#[path = "intents/checkout_seen.rs"]
mod checkout_seen;
#[path = "intents/contract.rs"]
mod contract;
#[path = "intents/house.rs"]
mod house;
#[path = "intents/linearizable.rs"]
mod linearizable;
#[path = "intents/pages.rs"]
mod pages;
#[path = "intents/reconciliation.rs"]
mod reconciliation;
#[path = "intents/scenarios.rs"]
mod scenarios;
#[path = "intents/search.rs"]
mod search;
#[path = "intents/subscriptions.rs"]
mod subscriptions;
#[path = "intents/tools.rs"]
mod tools;
#[path = "intents/watched.rs"]
mod watched;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future::join_all;
use house::{House, created, manual};
use serde_json::{Value, json};

#[tokio::test]
async fn a_purchase_is_created_paid_asked_for_and_refunded_and_each_step_is_told() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let intent = merchant.create(&created()).await;
    let id = intent["id"].as_str().unwrap();
    assert!(id.starts_with("pi_sandbox_") && intent["paymentLink"].as_str().unwrap().ends_with(id), "{intent}");
    assert_eq!((&intent["status"], &intent["captureMode"]), (&json!("Created"), &json!("Auto")));

    let paid = merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    assert_eq!(paid, (200, json!({ "outcome": "approved", "status": "Captured" })));
    let (code, now) = merchant.get(&format!("/payment-intents/{id}")).await;
    assert_eq!((code, &now["status"]), (200, &json!("Captured")));
    assert_eq!(now["paymentDetails"]["card"]["cardNumber"], "52000000****0056");

    let refund = json!({ "amount": 400, "refundReason": "too cold" });
    let (code, refunded) = merchant.post_as("key-1", &format!("/payment-intents/{id}/refunds"), &refund).await;
    assert_eq!((code, &refunded["refundReason"]), (200, &json!("too cold")), "{refunded}");
    let (_, found) =
        merchant.get(&format!("/payment-intents/refunds/{}", refunded["refundId"].as_str().unwrap())).await;
    assert_eq!(found, refunded);

    let events = house.events().await;
    let told: Vec<_> = events
        .iter()
        .map(|event| (event["event"].as_str().unwrap(), event["data"]["paymentStatus"].as_str().unwrap()))
        .collect();
    let updated = "payment_intent.status_updated";
    assert_eq!(told, [("payment_intent.created", "Created"), (updated, "Captured"), (updated, "Refunded")]);
    let (_, last) = merchant.get(&format!("/payment-intents/{id}")).await;
    assert_eq!(events[2]["createdAt"], last["updatedAt"], "the event has the very instant of its change");
    assert_eq!(last["refundedAmount"], 400);
    house.end().await;
}

#[tokio::test]
async fn every_member_of_a_request_comes_back_unchanged() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let money = |value: i64| json!({ "value": value, "currencyCode": "EUR" });
    let address = json!({ "address1": "1", "city": "London", "countryCode": "GB", "postcode": "E1" });
    let asked = json!({
        "captureMode": "Manual", "amount": money(1_000), "tipsAmount": money(100), "reference": "Order 236",
        "description": "A dürüm\n\"and\" \\more", "customer": { "id": "c", "emailAddress": "a@b.c", "phoneNumber": "1" },
        "billingAddress": address, "shippingDetails": { "name": "N", "deliveryNotes": "D", "address": address },
        "cardHolderNotPresent": true, "requestSecurity": { "userAgent": "u", "ipAddress": "::1", "device": "d" },
        "config": {
            "title": "T", "redirectUrl": "https://a.example/x", "cancelUrl": "https://a.example/y",
            "customerEmail": { "collectionRequired": true }, "details": { "showTotal": true, "showReference": false },
            "billingAddress": { "collectionRequired": false }, "shippingDetails": { "collectionRequired": true },
            "payment": { "customAmountAllowed": true, "tipsAllowed": false },
        },
        "itemLines": [{ "id": "i", "quantity": 2, "name": "n", "category": "c", "plu": "p", "amountTotal": money(-5),
            "modifiers": [{ "name": "m", "amountPerModifier": money(-1), "quantity": 1, "id": "x" }] }],
        "taxLines": [{ "id": "t", "caption": "c", "subCaption": "s", "amountTotal": money(3), "affectedPlu": "p" }],
        "paymentMethods": ["Wallet", "Card"],
        "actionLink": { "url": "https://a.example/z", "action": "DownloadFile", "label": "l", "fileName": "f" },
        "autoExpireIn": "6.23:59:59", "autoExpireAction": "Capture", "metadata": { "a": "b", "location-id": "2" },
        "setupIntentId": "s", "cashbackAmount": money(7), "serviceChargeAmount": money(8),
        "orderDetails": { "isUpdate": false, "id": "o", "externalId": "e" },
    });
    let intent = merchant.create(&asked).await;
    for (member, value) in asked.as_object().unwrap() {
        assert_eq!(&intent[member], value, "{member}");
    }
    assert_eq!((&intent["totalAmount"], &intent["subtotalLineItems"]), (&money(1_115), &money(-5)));
    let (_, again) = merchant.get(&format!("/payment-intents/{}", intent["id"].as_str().unwrap())).await;
    assert_eq!(again, intent);
    house.end().await;
}

#[tokio::test]
async fn all_faults_of_a_request_are_told_at_once_as_the_client_wrote_them() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let wrong = json!({
        "amount": { "value": "ten", "currencyCode": "USD" }, "referense": "x", "autoExpireIn": "soon",
        "itemLines": [{ "name": "x" }, { "amountTotal": { "value": 1, "currencyCode": "GBP" }, "nam": 1 }],
        "tipsAmount": { "value": 1.5, "currencyCode": "GBP" },
    });
    let (code, problem) = merchant.post("/payment-intents", &wrong).await;
    let errors: Vec<_> = problem["errors"].as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "amount.currencyCode",
        "amount.value",
        "autoExpireIn",
        "itemLines[0].amountTotal",
        "itemLines[1].nam",
        "reference",
        "referense",
        "tipsAmount.value",
    ];
    assert_eq!((code, errors), (400, expected.to_vec()), "{problem}");
    let together = json!({
        "amount": { "value": 0, "currencyCode": "GBP" }, "reference": "x", "autoExpireIn": "00:01:00",
        "tipsAmount": { "value": 1, "currencyCode": "EUR" }, "expireAt": "2020-01-01T00:00:00Z",
        "config": { "redirectUrl": "javascript:alert(1)" },
    });
    let (_, problem) = merchant.post("/payment-intents", &together).await;
    let errors: Vec<_> = problem["errors"].as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "amount.value",
        "autoExpireAction",
        "autoExpireIn",
        "config.redirectUrl",
        "expireAt",
        "tipsAmount.currencyCode",
    ];
    assert_eq!(errors, expected, "{problem}");
    for (body, member) in
        [("{\"amount\":1,\"amount\":2}", "body"), ("[]", "body"), ("{", "body"), (&"[".repeat(100), "body")]
    {
        let (code, problem) = merchant.raw("/payment-intents", body).await;
        assert_eq!((code, problem["errors"].get(member).is_some()), (400, true), "{body}: {problem}");
    }
    let (code, _) = merchant.raw("/payment-intents", &format!("\"{}\"", "x".repeat(70_000))).await;
    assert_eq!(code, 413);
    assert!(house.events().await.is_empty(), "a refused request was told");
    house.end().await;
}

#[tokio::test]
async fn held_money_goes_back_after_seven_days_which_the_sandbox_lets_pass_at_once() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let intent = merchant.create(&manual(1_000)).await;
    let id = intent["id"].as_str().unwrap();
    merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    let advance = |by: &str| json!({ "by": by });
    let (code, _) = merchant.post("/sandbox/clock/advance", &advance("6.23:59:00")).await;
    assert_eq!(code, 200);
    assert_eq!(merchant.status(id).await, "Authorized");
    merchant.post("/sandbox/clock/advance", &advance("00:01:00")).await;
    assert_eq!(house.events().await.len(), 3, "the answer came before what was due had happened");
    assert_eq!(merchant.status(id).await, "Reversed");
    let (code, problem) = merchant.post("/sandbox/clock/advance", &json!({ "to": "2020-01-01T00:00:00Z" })).await;
    assert_eq!((code, &problem["type"]), (409, &json!("/problems/clock-never-goes-back")));
    house.end().await;
}

#[tokio::test]
async fn a_deadline_that_passed_while_nobody_was_there_is_applied_before_anything_else() {
    let mut house = House::start().await;
    let merchant = house.merchant("acc_a");
    let mut soon = manual(1_000);
    soon["autoExpireIn"] = json!("00:00:31");
    soon["autoExpireAction"] = json!("Release");
    let id = merchant.create(&soon).await["id"].as_str().unwrap().to_owned();
    merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    // Any restart takes longer than 31 µs.
    merchant.post("/sandbox/clock", &json!({ "speed": 1_000_000 })).await;
    house.stop_service().await;
    house.start_service().await;
    let merchant = house.again(&merchant);
    let (code, problem) = merchant.post(&format!("/payment-intents/{id}/captures"), &json!({ "amount": 1 })).await;
    assert_eq!((code, &problem["type"]), (409, &json!("/problems/intent-is-reversed")), "{problem}");
    house.end().await;
}

#[tokio::test]
async fn of_captures_that_come_at_once_none_takes_what_another_has_taken() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let id = merchant.create(&manual(1_000)).await["id"].as_str().unwrap().to_owned();
    merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    let (path, body) = (format!("/payment-intents/{id}/captures"), json!({ "amount": 300 }));
    let answers = join_all((0..16).map(|_| merchant.post(&path, &body))).await;
    let mut by_code = BTreeMap::<u16, usize>::new();
    answers.iter().for_each(|(code, _)| *by_code.entry(*code).or_default() += 1);
    assert_eq!(by_code, [(200, 3), (409, 13)].into(), "{answers:?}");
    let (_, intent) = merchant.get(&format!("/payment-intents/{id}")).await;
    assert_eq!(intent["captures"].as_array().unwrap().len(), 3);
    assert_eq!(house.events().await.len(), 2 + 3);
    house.end().await;
}

#[tokio::test]
async fn a_request_that_is_repeated_with_its_key_is_done_once() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let purchase = manual(1_000);
    let firsts = join_all((0..8).map(|_| merchant.post_as("purchase-1", "/payment-intents", &purchase))).await;
    assert!(firsts.iter().all(|(code, intent)| *code == 200 && intent == &firsts[0].1), "{firsts:?}");
    let (code, problem) = merchant.post_as("purchase-1", "/payment-intents", &manual(1_001)).await;
    assert_eq!((code, &problem["type"]), (409, &json!("/problems/idempotency-key-reused")));
    // Another account's key of the same name is another key.
    let (code, theirs) = house.merchant("acc_b").post_as("purchase-1", "/payment-intents", &manual(5)).await;
    assert_eq!(code, 200);
    assert_ne!(theirs["id"], firsts[0].1["id"]);

    let id = firsts[0].1["id"].as_str().unwrap().to_owned();
    merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    let (path, body) = (format!("/payment-intents/{id}/captures"), json!({ "amount": 300 }));
    let captures = join_all((0..8).map(|_| merchant.post_as("c", &path, &body))).await;
    assert!(captures.iter().all(|answer| *answer == captures[0]), "{captures:?}");
    let (code, _) = merchant.raw_as("c", &path, r#"{ "amount": 301 }"#).await;
    assert_eq!(code, 409, "another body");
    // Members in another order are the same request.
    let both = [r#"{"tipsAmount":null,"amount":1}"#, r#"{ "amount": 1, "tipsAmount": null }"#];
    let [first, second] = [merchant.raw_as("d", &path, both[0]).await, merchant.raw_as("d", &path, both[1]).await];
    assert_eq!((first.0, &first), (200, &second));
    // What was created is answered as it was, although it has gone on.
    let (_, again) = merchant.post_as("purchase-1", "/payment-intents", &manual(1_000)).await;
    assert_eq!(again, firsts[0].1);
    let (_, intent) = merchant.get(&format!("/payment-intents/{id}")).await;
    assert_eq!(intent["captures"].as_array().unwrap().len(), 2);
    house.end().await;
}

#[tokio::test]
async fn accounts_never_see_one_another_and_a_reader_changes_nothing() {
    let house = House::start().await;
    let (ours, theirs) = (house.merchant("acc_a"), house.merchant("acc_b"));
    let id = ours.create(&created()).await["id"].as_str().unwrap().to_owned();
    let unknown = theirs.get("/payment-intents/pi_sandbox_AAAAAAAAAAAAAAAAAAAAAA").await;
    let foreign = theirs.get(&format!("/payment-intents/{id}")).await;
    assert_eq!((foreign.0, &foreign.1["detail"]), (404, &unknown.1["detail"]));
    assert_eq!(theirs.post("/payment-intents/search", &json!({})).await.1["data"], json!([]));
    let reader = house.reader("acc_a");
    assert_eq!(reader.status(&id).await, "Created");
    assert_eq!(reader.post("/payment-intents", &created()).await.0, 403);
    let nobody = house.with_key("sk_sandbox_nobody");
    assert_eq!(nobody.get(&format!("/payment-intents/{id}")).await.0, 401);
    house.end().await;
}

/// The issuer takes five seconds for an amount that ends with 91.
#[tokio::test]
async fn what_changes_while_the_issuer_thinks_is_not_paid() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let asked = json!({
        "amount": { "value": 1091, "currencyCode": "GBP" }, "reference": "a",
        "config": { "payment": { "customAmountAllowed": true } },
    });
    let intent = merchant.create(&asked).await;
    let id = intent["id"].as_str().unwrap();
    let pay = format!("/sandbox/payment-intents/{id}/pay");
    let amount_of = |value: i64| json!({ "amount": { "value": value, "currencyCode": "GBP" } });
    let (to, nothing) = (format!("/payment-intents/{id}/amount"), json!({}));
    let mut paying = std::pin::pin!(merchant.post(&pay, &nothing));
    // Whichever of these amounts the issuer is asked about, it thinks for seconds, and by then it is another one.
    let mut value = 1_091;
    let refused = loop {
        value += 100;
        let amount = amount_of(value);
        tokio::select! {
            refused = &mut paying => break refused,
            changed = merchant.post(&to, &amount) => assert_eq!(changed.0, 200),
        }
    };
    assert!(refused.0 == 409 && refused.1["type"].as_str().unwrap().ends_with("/total-changed"), "{refused:?}");
    assert_eq!(merchant.status(id).await, "Created");
    assert_eq!(merchant.post(&to, &amount_of(99_900)).await.0, 200);
    assert_eq!(merchant.post(&pay, &nothing).await.0, 200);
    house.end().await;
}

#[tokio::test]
async fn pages_of_a_search_show_each_intent_once_while_others_are_made() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(merchant.create(&created()).await["id"].clone());
    }
    made.reverse();
    let (mut seen, mut after): (Vec<Value>, Value) = (Vec::new(), Value::Null);
    let before = loop {
        let cursor = if after.is_null() { json!({ "limit": 3 }) } else { json!({ "limit": 3, "after": after }) };
        let (code, page) = merchant.post("/payment-intents/search", &json!({ "cursor": cursor })).await;
        assert_eq!(code, 200, "{page}");
        seen.extend(page["data"].as_array().unwrap().iter().map(|intent| intent["id"].clone()));
        // Newer ones shift nothing.
        merchant.create(&created()).await;
        if page["after"].is_null() {
            break page["before"].clone();
        }
        after = page["after"].clone();
    };
    assert_eq!(seen, made);
    let back = json!({ "cursor": { "limit": 3, "before": before } });
    let (_, page) = merchant.post("/payment-intents/search", &back).await;
    let ids: Vec<_> = page["data"].as_array().unwrap().iter().map(|intent| intent["id"].clone()).collect();
    assert_eq!(ids, made[3..6], "the page before the last");
    let canceled = json!({ "statuses": ["Canceled"] });
    assert_eq!(merchant.post("/payment-intents/search", &canceled).await.1["data"], json!([]));
    let theirs = json!({ "cursor": { "after": before } });
    assert_eq!(house.merchant("acc_b").post("/payment-intents/search", &theirs).await.0, 400);
    house.end().await;
}

#[tokio::test]
async fn a_full_redis_refuses_a_change_whole() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let id = merchant.create(&created()).await["id"].as_str().unwrap().to_owned();
    house.redis.set_maxmemory(1).await;
    let (code, problem) = merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    assert_eq!((code, &problem["type"]), (503, &json!("/problems/unavailable")), "{problem}");
    assert_eq!(merchant.post("/payment-intents", &created()).await.0, 503);
    assert_eq!(merchant.status(&id).await, "Created");
    house.redis.set_maxmemory(0).await;
    assert_eq!(house.events().await.len(), 1);
    merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    assert_eq!(merchant.status(&id).await, "Captured");
    house.end().await;
}

/// A script that fails half-way undoes nothing, so what can fail comes before all that it writes.
#[tokio::test]
async fn a_stream_that_takes_no_more_refuses_a_change_whole() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let id = merchant.create(&created()).await["id"].as_str().unwrap().to_owned();
    let last = "18446744073709551615-18446744073709551615";
    house.redis.command::<()>(&["XADD", "payment-intents", last, "event", "{}"]).await;
    let before = house.stored().await;
    let (code, problem) = merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    assert_eq!((code, &problem["type"]), (500, &json!("/problems/internal")), "{problem}");
    assert!(!problem.to_string().contains("XADD"), "what is inside is shown to callers: {problem}");
    assert_eq!(house.stored().await, before);
    house.end().await;
}

#[tokio::test]
async fn what_cannot_be_read_does_not_stand_before_the_deadlines_of_others() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    // More than one look shows, of a newer Herald, of nobody, and due before all others.
    for n in 0..150 {
        let (key, due) = (format!("herald:{{payment-intents}}:pi:pi_odd_{n}"), "herald:{payment-intents}:pi-due");
        let record = if n % 2 == 0 { "7 1 -\n{\"v\":99}" } else { "nothing that a commit writes" };
        house.redis.command::<()>(&["SET", &key, record]).await;
        house.redis.command::<()>(&["ZADD", due, "1", &format!("pi_odd_{n}")]).await;
    }
    let mut held = manual(1_000);
    (held["autoExpireIn"], held["autoExpireAction"]) = (json!("05:00:00"), json!("Release"));
    let id = merchant.create(&held).await["id"].as_str().unwrap().to_owned();
    merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    let (code, answer) = merchant.post("/sandbox/clock/advance", &json!({ "by": "05:00:01" })).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(house.events().await.len(), 3, "the hold did not end");
    assert_eq!(house.redis.command::<u64>(&["EXISTS", "herald:{payment-intents}:pi:pi_odd_0"]).await, 1);
    house.end().await;
}

#[tokio::test]
async fn a_clock_that_stands_still_lets_deadlines_come_by_the_changes_that_are_made() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    merchant.post("/sandbox/clock", &json!({ "speed": 0 })).await;
    let (_, clock) = merchant.get("/sandbox/clock").await;
    let now = herald::intents::stamp::Stamp::parse(clock["now"].as_str().unwrap()).unwrap();
    let mut soon = created();
    soon["expireAt"] = json!((now + 10).to_string());
    let id = merchant.create(&soon).await["id"].as_str().unwrap().to_owned();
    // Each change takes a microsecond, which is all that passes.
    for _ in 0..20 {
        merchant.create(&created()).await;
    }
    assert_eq!(merchant.status(&id).await, "Canceled");
    for (body, code) in [(json!({ "by": "9999999.00:00:00" }), 409), (json!({ "to": "9999-01-01T00:00:00Z" }), 409)] {
        assert_eq!(merchant.post("/sandbox/clock/advance", &body).await.0, code, "{body}");
    }
    let mut late = created();
    late["expireAt"] = json!("2300-01-01T00:00:00Z");
    assert_eq!(merchant.post("/payment-intents", &late).await.0, 400);
    house.end().await;
}

#[tokio::test]
async fn the_last_tenth_of_redis_is_for_the_intents_that_there_are() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let id = merchant.create(&created()).await["id"].as_str().unwrap().to_owned();
    let kept = merchant.post_as("key", "/payment-intents", &created()).await;
    // Enough that connections which come and go make no difference.
    house.redis.command::<u64>(&["SETRANGE", "ballast", "40000000", "x"]).await;
    let info: String = house.redis.command(&["INFO", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim().parse::<u64>().unwrap();
    house.redis.set_maxmemory(used * 105 / 100).await;
    // What was found before is believed for a moment.
    support::until("a refusal", async || merchant.post("/payment-intents", &created()).await.0 == 503).await;
    let (code, problem) = merchant.post("/payment-intents", &created()).await;
    assert_eq!((code, &problem["type"]), (503, &json!("/problems/unavailable")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("nothing was created"), "{problem}");
    assert_eq!(merchant.post_as("key", "/payment-intents", &created()).await, kept, "a repeated one creates nothing");
    assert_eq!(merchant.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await.0, 200);
    house.redis.set_maxmemory(0).await;
    support::until("room", async || merchant.post("/payment-intents", &created()).await.0 == 200).await;
    house.end().await;
}

#[tokio::test]
async fn a_reset_forgets_all_of_one_account_and_the_numbers_of_its_events_go_on() {
    let house = House::start().await;
    let (ours, theirs) = (house.merchant("acc_a"), house.merchant("acc_b"));
    let other = theirs.create(&created()).await["id"].as_str().unwrap().to_owned();
    // More than one call of the script takes.
    let purchase = created();
    join_all((0..250).map(|_| ours.create(&purchase))).await;
    let (_, first) = ours.post_as("key", "/payment-intents", &manual(1_000)).await;
    let id = first["id"].as_str().unwrap().to_owned();
    ours.post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
    let counted = || house.redis.command::<u64>(&["HGET", "herald:{payment-intents}:pi-count", "events:acc_a"]);
    assert_eq!(counted().await, 252);

    assert_eq!(house.reader("acc_a").post("/sandbox/reset", &json!({})).await.0, 403);
    assert_eq!(ours.post("/sandbox/reset", &json!({})).await, (200, json!({ "removed": 251 })));
    assert_eq!(ours.post("/payment-intents/search", &json!({})).await.1["data"], json!([]));
    assert_eq!(ours.get(&format!("/payment-intents/{id}")).await.0, 404);
    let left: Vec<String> = house.redis.command(&["KEYS", "herald:{payment-intents}:pi:*"]).await;
    assert_eq!(left, [format!("herald:{{payment-intents}}:pi:{other}")]);
    assert_eq!(house.redis.command::<u64>(&["ZCARD", "herald:{payment-intents}:pi-due"]).await, 1);
    assert_eq!(theirs.status(&other).await, "Created");

    let (code, second) = ours.post_as("key", "/payment-intents", &manual(2_000)).await;
    assert_eq!(code, 200, "the key was used only for what is gone: {second}");
    assert_ne!(second["id"], first["id"]);
    assert_eq!(ours.post_as("key", "/payment-intents", &manual(2_000)).await.1, second);
    assert_eq!(counted().await, 253);
    house.end().await;
}

#[tokio::test]
async fn a_slash_at_the_end_is_tolerated_and_a_body_that_is_not_called_json_is_not() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let (code, intent) = merchant.post("/payment-intents/", &created()).await;
    assert_eq!(code, 200, "{intent}");
    let id = intent["id"].as_str().unwrap();
    assert_eq!(merchant.get(&format!("/payment-intents/{id}/?returnCanceled=true")).await.0, 200);
    assert_eq!(merchant.get(&format!("/payment-intents/{id}//")).await.0, 404);
    assert_eq!(merchant.get("/webhooks/events/").await.0, 200);
    for (kind, code) in [
        (Some("application/json; charset=utf-8"), 200),
        (Some("application/problem+json"), 200),
        (Some("text/plain"), 400),
        (Some("application/x-www-form-urlencoded"), 400),
        (None, 400),
    ] {
        let (found, answer) = merchant.post_of_type(kind, "/payment-intents", &created()).await;
        assert_eq!(found, code, "{kind:?}: {answer}");
        assert!(code == 200 || answer["errors"]["Content-Type"].is_array(), "{answer}");
    }
    house.end().await;
}

/// Each 2xx that a client saw is in what is stored, and each status was told in its order, whatever was killed.
#[tokio::test]
async fn what_was_answered_is_stored_and_told_although_the_service_is_killed() {
    let mut house = House::start().await;
    let merchant = house.merchant("acc_a");
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(merchant.create(&manual(1_000)).await["id"].as_str().unwrap().to_owned());
    }
    let (mut answered, mut cut_off, mut rounds) = (0, 0, 0);
    // On a busy machine all may be answered before the kill comes.
    while rounds < 3 || (cut_off == 0 && rounds < 50) {
        rounds += 1;
        let merchant = house.again(&merchant);
        let paid = Arc::new(AtomicUsize::new(0));
        let storm = ids.clone().into_iter().map(|id| {
            let (merchant, paid) = (merchant.clone(), Arc::clone(&paid));
            async move {
                let pay = merchant.try_post(&format!("/sandbox/payment-intents/{id}/pay"), &json!({})).await;
                let capture =
                    merchant.try_post(&format!("/payment-intents/{id}/captures"), &json!({ "amount": 10 })).await;
                paid.fetch_add(usize::from(capture.is_some()), Ordering::Relaxed);
                (pay, capture)
            }
        });
        let storm = tokio::spawn(join_all(storm.map(tokio::spawn).collect::<Vec<_>>()));
        support::until("some answers", async || paid.load(Ordering::Relaxed) >= 3).await;
        house.kill_service();
        house.start_service().await;
        let merchant = house.again(&merchant);
        for (id, done) in ids.iter().zip(storm.await.unwrap()) {
            let (_, capture) = done.unwrap();
            let (_, intent) = merchant.get(&format!("/payment-intents/{id}")).await;
            cut_off += usize::from(capture.is_none());
            if let Some((200, capture)) = capture {
                answered += 1;
                let captures = intent["captures"].as_array().unwrap();
                assert!(
                    captures.iter().any(|found| found["id"] == capture["captureId"]),
                    "{capture} is lost: {intent}"
                );
            }
        }
    }
    assert!(answered > 0 && cut_off > 0, "{answered} were answered and {cut_off} cut off: it proves nothing");
    let merchant = house.again(&merchant);
    let events = house.events().await;
    for id in &ids {
        let (_, timeline) = merchant.get(&format!("/sandbox/payment-intents/{id}/timeline")).await;
        let history: Vec<_> = timeline["events"].as_array().unwrap().iter().map(|event| event["id"].clone()).collect();
        let told: Vec<_> = events
            .iter()
            .filter(|event| event["data"]["paymentIntentId"] == *id.as_str())
            .map(|event| event["id"].clone())
            .collect();
        assert_eq!(told, history, "the stream tells another life of {id}");
    }
    house.end().await;
}

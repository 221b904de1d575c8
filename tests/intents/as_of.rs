//! What an intent was earlier, asked for by its merchant.

use serde_json::{Value, json};

use super::house::{House, created, manual};

fn kind(problem: &Value) -> &str {
    problem["type"].as_str().unwrap_or_default().rsplit('/').next().unwrap()
}

#[tokio::test]
async fn an_intent_is_answered_as_it_was_at_an_instant() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let first = merchant.create(&manual(1_000)).await;
    let id = first["id"].as_str().unwrap();
    let path = format!("/payment-intents/{id}");
    let mut moments = vec![first.clone()];
    for (what, body) in [
        (format!("/sandbox{path}/pay"), json!({ "outcome": "declined" })),
        (format!("/sandbox{path}/pay"), json!({})),
        (format!("{path}/captures"), json!({ "amount": 400 })),
        (format!("{path}/captures"), json!({ "amount": 100 })),
    ] {
        let (code, answer) = merchant.post(&what, &body).await;
        assert_eq!(code, 200, "{answer}");
        moments.push(merchant.get(&path).await.1);
    }
    merchant.post_as("k", &format!("{path}/refunds"), &json!({ "amount": 100 })).await;
    for moment in &moments {
        let then = merchant.get_as_of(moment["updatedAt"].as_str().unwrap(), &path).await;
        assert_eq!(then, (200, moment.clone()));
    }
    let (code, problem) = merchant.get_as_of("2020-01-01T00:00:00Z", &path).await;
    assert_eq!((code, kind(&problem)), (404, "not-created-yet"));
    assert!(problem["detail"].as_str().unwrap().contains(first["createdAt"].as_str().unwrap()), "{problem}");
    for at in ["2190-01-01T00:00:00Z", "yesterday", ""] {
        let (code, problem) = merchant.get_as_of(at, &path).await;
        assert_eq!((code, problem["errors"]["herald-as-of"].is_array()), (400, true), "{problem}");
    }
    let at = first["updatedAt"].as_str().unwrap();
    let theirs = house.merchant("acc_b").get_as_of(at, &path).await;
    assert_eq!((theirs.0, kind(&theirs.1)), (404, "not-found"));
    let early = house.merchant("acc_b").get_as_of("2020-01-01T00:00:00Z", &path).await;
    assert_eq!(kind(&early.1), "not-found", "whoever it is not told of is not told when it was created");
    house.end().await;
}

#[tokio::test]
async fn what_is_not_kept_is_refused_and_a_canceled_intent_was_open_before() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let mut asked = created();
    asked["config"] = json!({ "payment": { "tipsAllowed": true } });
    let intent = merchant.create(&asked).await;
    let path = format!("/payment-intents/{}", intent["id"].as_str().unwrap());
    let tips = json!({ "tipsAmount": { "value": 5, "currencyCode": "GBP" } });
    let (_, last) = merchant.post(&format!("{path}/tips-amount"), &tips).await;
    let (code, problem) = merchant.get_as_of(intent["updatedAt"].as_str().unwrap(), &path).await;
    assert_eq!((code, kind(&problem)), (409, "not-kept"));
    assert!(problem["detail"].as_str().unwrap().contains(last["updatedAt"].as_str().unwrap()), "{problem}");

    let intent = merchant.create(&created()).await;
    let path = format!("/payment-intents/{}", intent["id"].as_str().unwrap());
    let (_, gone) = merchant.delete(&path).await;
    let then = merchant.get_as_of(intent["updatedAt"].as_str().unwrap(), &path).await;
    assert_eq!(then, (200, intent));
    let canceled = gone["updatedAt"].as_str().unwrap();
    assert_eq!(merchant.get_as_of(canceled, &path).await.0, 404);
    assert_eq!(merchant.get_as_of(canceled, &format!("{path}?returnCanceled=true")).await, (200, gone));
    house.end().await;
}

//! The pictures in README.md. Not a test of anything: `make screenshots` takes them.

use std::{fs, path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use herald::{
    facts::{endpoint::Endpoint, retry::RetryOverrides, signing::SecretText},
    store::registry::RegistryStore,
};
use serde_json::{Value, json};

use crate::{
    browser::Browser,
    console_seen::signed_in,
    herald_process::Setup,
    house::{ADMIN, House},
    merchants::{Merchants, Reply},
    stage::{endpoint, mark},
    support::{TestRedis, until},
};

const NAMES: [&str; 10] =
    ["orders", "ledger", "loyalty", "receipts", "stock", "tickets", "invoices", "till", "returns", "partners"];

const STATUSES: [&str; 3] = ["Created", "Captured", "Refunded"];

async fn take(browser: &Browser, scheme: &str, name: &str) {
    let display = json!({ "width": 1_200, "height": 760, "deviceScaleFactor": 1, "mobile": false });
    browser.command("Emulation.setDeviceMetricsOverride", &display).await;
    let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
    browser.command("Emulation.setEmulatedMedia", &media).await;
    let taken = browser.command("Page.captureScreenshot", &json!({})).await;
    let folder = PathBuf::from(std::env::var_os("PICTURES").expect("PICTURES names a folder"));
    let bytes = STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
    fs::write(folder.join(format!("console-{name}.png")), bytes).unwrap();
}

/// Three of each intent.
fn events(round: u64) -> Value {
    let event = |n: u64| {
        let name = NAMES[(n / 3) as usize % NAMES.len()];
        let scattered = |n: u64| (round * 1_000 + n) * 2_654_435_761 % (1 << 40);
        json!({
            "id": format!("evt_{:010x}", scattered(n)), "event": "payment_intent.status_updated",
            "accountId": format!("acc_{name}"), "createdAt": "2026-11-27T19:00:00.0000000Z",
            "data": {
                "paymentIntentId": format!("pi_{:010x}", scattered(n / 3 + 500)),
                "paymentStatus": STATUSES[n as usize % STATUSES.len()], "captureMode": "Auto",
            },
        })
    };
    (0..240).map(event).collect()
}

#[tokio::test]
#[ignore = "takes pictures"]
async fn pictures_for_the_readme() {
    let redis = TestRedis::start_with_aof().await;
    let merchants = Merchants::start(SecretText::from_random([7; 32]).reveal()).await;
    let mut registry = RegistryStore::connect(&redis.redis()).await.unwrap();
    for (n, name) in NAMES.into_iter().enumerate() {
        let id = format!("ep_{name}");
        let retry = RetryOverrides { max_attempts: Some(if n == 7 { 3 } else { 20 }), ..RetryOverrides::default() };
        let made = Endpoint { retry, ..endpoint(&id, &format!("acc_{name}"), &merchants.url(&id)) };
        registry.create(made, &mark()).await.unwrap();
        merchants.rule(&id, move |arrival| match n {
            7 => Reply::status(404),
            3 if arrival.attempt < 3 => Reply::status(500),
            5 => Reply::status(503),
            _ => Reply { after: Duration::from_millis(8 + 11 * n as u64), ..Reply::OK },
        });
    }
    let setup = Setup::new(&redis.url()).env("HERALD_RETRY_MAX_INTERVAL", "4s");
    let house = House::of(redis, setup).await;
    for round in 0..4 {
        let published = house.post("/v1/events/batch", ADMIN, events(round)).await;
        assert_eq!(published.status, 200, "{}", published.body);
    }
    until("something is dead and something waits", async || {
        let overview = house.get("/v1/overview", ADMIN).await;
        overview["dead_letters"].as_u64().unwrap() > 20 && overview["waiting"]["held"].as_u64().unwrap() > 10
    })
    .await;
    let browser = signed_in(&house).await;
    browser.open(&house.url("/console")).await;
    take(&browser, "light", "overview").await;
    let waiting = house.get("/v1/chains?endpoint=ep_tickets", ADMIN).await;
    browser.open(&house.url(&format!("/console/intents/{}", waiting["items"][0]["intent"].as_str().unwrap()))).await;
    take(&browser, "dark", "intent").await;
    let letter = house.get("/v1/dead-letters?limit=1", ADMIN).await["items"][0]["id"].as_str().unwrap().to_owned();
    browser.open(&house.url(&format!("/console/deliveries/{letter}"))).await;
    take(&browser, "light", "delivery").await;
}

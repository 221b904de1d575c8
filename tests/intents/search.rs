//! What a search shows of intents whose time has come: without a scheduler, so that nobody else applies it.

use std::time::UNIX_EPOCH;

use herald::{
    facts::{event::PaymentStatus, id::AccountId},
    intents::{
        decide::Command,
        details::Details,
        issuer,
        requests::SearchPaymentIntentRequest,
        service::{Part, Service, Settings},
    },
    store::{connection::Redis, keys::PartitionKeys},
};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::support::TestRedis;

struct Shop {
    redis: TestRedis,
    service: Service,
    account: AccountId,
}

impl Shop {
    async fn open() -> Self {
        let redis = TestRedis::start().await;
        let keys = PartitionKeys::new("payment-intents").unwrap();
        let settings = Settings { retain: 0, zone: TimeZone::UTC };
        let service = Service::new(Redis::new(&redis.url()).unwrap(), keys, settings);
        Self { redis, service, account: "acc_a".parse().unwrap() }
    }

    async fn create(&self, account: &str, more: Value) -> String {
        let mut body = json!({ "amount": { "value": 1000, "currencyCode": "GBP" }, "reference": "a" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let details: Details = serde_json::from_value(body).unwrap();
        self.service.create(&account.parse().unwrap(), details, None).await.unwrap().id.to_string()
    }

    async fn pay(&self, id: &str) {
        let (_, card) = issuer::mask(issuer::APPROVED).unwrap();
        let answer = herald::api::intents::sandbox::answer_of(issuer::Verdict::Approves).await;
        self.service.change(&self.account, &id.parse().unwrap(), &Command::pay(card, answer), None).await.unwrap();
    }

    /// Moves the clock, and nothing that is due until then.
    async fn in_days(&self, days: u64) {
        let now = UNIX_EPOCH.elapsed().unwrap().as_micros() as u64 + days * 86_400_000_000;
        let (now, clock) = (now.to_string(), "herald:{payment-intents}:pi-clock");
        self.redis.command::<()>(&["HSET", clock, "virtual", &now, "real", "0", "speed", "0"]).await;
    }

    /// Ids and statuses of what is found, and whether there is more.
    async fn search(&self, statuses: &[PaymentStatus], limit: usize) -> (Vec<(String, PaymentStatus)>, bool) {
        let request = SearchPaymentIntentRequest { statuses: Some(statuses.to_vec()), ..Default::default() };
        let page = self.service.search(&self.account, &request, Part::Newest, limit).await.unwrap();
        let found = page.intents.iter().map(|intent| (intent.id.to_string(), intent.status));
        (found.collect(), page.older.is_some())
    }
}

#[tokio::test]
async fn a_search_finds_intents_by_the_status_that_they_have_by_now() {
    use PaymentStatus::{Canceled, Captured, Created, Reversed};
    let shop = Shop::open().await;
    let unpaid = shop.create("acc_a", json!({})).await;
    let released = shop.create("acc_a", json!({ "captureMode": "Manual" })).await;
    let hold = json!({ "captureMode": "Manual", "autoExpireIn": "1.00:00:00", "autoExpireAction": "Capture" });
    let captured = shop.create("acc_a", hold).await;
    for id in [&released, &captured] {
        shop.pay(id).await;
    }
    let open = shop.create("acc_a", json!({ "expireAt": "2190-01-01T00:00:00Z" })).await;
    shop.in_days(31).await;
    assert_eq!(shop.search(&[Canceled], 10).await.0, [(unpaid.clone(), Canceled)]);
    assert_eq!(shop.search(&[Created], 10).await.0, [(open.clone(), Created)]);
    let all = [(open, Created), (captured, Captured), (released, Reversed), (unpaid, Canceled)];
    assert_eq!(shop.search(&[], 10).await.0, all);
}

/// More are due than one look finds: those on the page are applied nevertheless, and a page of which nothing is left leads on.
#[tokio::test]
async fn what_is_due_on_the_page_is_applied_however_much_is_due_before_it() {
    use PaymentStatus::{Canceled, Created};
    let shop = Shop::open().await;
    for _ in 0..100 {
        shop.create("acc_b", json!({})).await;
    }
    for _ in 0..3 {
        shop.create("acc_a", json!({})).await;
    }
    shop.in_days(31).await;
    assert_eq!(shop.search(&[Created], 2).await, (Vec::new(), true));
    let (found, _) = shop.search(&[], 10).await;
    assert!(found.len() == 3 && found.iter().all(|(_, status)| *status == Canceled), "{found:?}");
}

//! What happens at the sample merchants' tills: payment intents are created, paid, captured, refunded, reversed, canceled, or left
//! to expire, each as a merchant does it, over HTTP with an API key. And what each merchant was told, from the feed of their
//! account: what a delivery is held against.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{ledger::Ledger, merchant::Merchant};
use crate::{
    clock, lifecycle,
    surface::client::{PlainHttp, Request, ServiceClient},
};

/// Lives at once; at more than this a new one waits.
const MAX_ALIVE: usize = 5_000;

/// How often a merchant asks for what they were told.
const FEED_EVERY: Duration = Duration::from_millis(250);

/// How long the service may take until it answers.
const UP_WITHIN: Duration = Duration::from_secs(30);

/// After this an intent that nobody pays expires, where the demo wants to show that.
const EXPIRES_AFTER_MS: u64 = 3_000;

/// One of the sandbox's cards that is declined.
const DECLINED: &str = "4456 5300 0000 1013";

/// The merchants' side of the service.
#[derive(Clone)]
pub struct Tills {
    clients: Arc<HashMap<Merchant, ServiceClient>>,
    refusals: Arc<AtomicU64>,
}

impl Tills {
    pub fn new(url: &str, keys: &HashMap<Merchant, String>) -> anyhow::Result<Self> {
        let client = |(merchant, key): (&Merchant, &String)| {
            Ok((*merchant, ServiceClient::new(url, key, PlainHttp::OnLoopback)?))
        };
        let clients = keys.iter().map(client).collect::<anyhow::Result<_>>()?;
        Ok(Self { clients: Arc::new(clients), refusals: Arc::default() })
    }

    /// Requests that the service did not take.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Until the service answers.
    pub async fn until_open(&self) -> anyhow::Result<()> {
        let client = &self.clients[&Merchant::Healthy];
        let answers = async {
            while !client.ask(&Request::new("GET", "/healthz", None)).await.is_ok_and(|answer| answer.is_success()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        Ok(timeout(UP_WITHIN, answers).await?)
    }

    /// Intents begin at a steady rate, and live until they are done or it is cancelled.
    pub async fn sell(self, rate: u32, seed: u64, cancel: CancellationToken) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (began, pause) = (clock::now(), Duration::from_secs(1) / rate);
        let places = Arc::new(Semaphore::new(MAX_ALIVE));
        let mut lives = JoinSet::new();
        for number in 1.. {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = sleep_until((began + pause * number).into()) => {}
            }
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
            let merchant = Merchant::ALL[rng.random_range(0..Merchant::ALL.len())];
            let sale = Sale {
                tills: self.clone(),
                merchant,
                rng: StdRng::seed_from_u64(rng.random()),
                cancel: cancel.clone(),
            };
            lives.spawn(async move {
                let _place = place;
                sale.live(number).await;
            });
            while lives.try_join_next().is_some() {}
        }
        while lives.join_next().await.is_some() {}
    }

    /// Keeps the ledger told of all that the merchants were told, until cancelled, and then up to the last event.
    pub async fn follow(self, ledger: &Ledger, cancel: CancellationToken) {
        let mut read: HashMap<Merchant, u64> = HashMap::new();
        loop {
            let is_last = cancel.is_cancelled();
            for merchant in Merchant::ALL {
                let after = read.entry(merchant).or_default();
                while let Some(more) = self.read(merchant, after, ledger).await {
                    if !more {
                        break;
                    }
                }
            }
            if is_last {
                return;
            }
            tokio::select! {
                () = cancel.cancelled() => {}
                () = sleep(FEED_EVERY) => {}
            }
        }
    }

    /// One page; whether there is more.
    async fn read(&self, merchant: Merchant, after: &mut u64, ledger: &Ledger) -> Option<bool> {
        let page = self.ask(merchant, &Request::new("GET", format!("/events?after={after}"), None)).await?;
        for told in page["data"].as_array()? {
            ledger.told(told["event"]["id"].as_str()?, merchant);
        }
        *after = page["after"].as_u64()?;
        Some(page["latest"].as_u64()? > *after)
    }

    /// None where it is refused, which is counted.
    async fn ask(&self, merchant: Merchant, request: &Request) -> Option<Value> {
        match self.clients[&merchant].ask(request).await {
            Ok(answer) if answer.is_success() => Some(answer.body),
            _ => {
                self.refusals.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

/// One purchase.
struct Sale {
    tills: Tills,
    merchant: Merchant,
    rng: StdRng,
    cancel: CancellationToken,
}

impl Sale {
    /// Until its life is over, something is refused, or the demo ends.
    async fn live(mut self, number: u32) {
        let _ = self.steps(number).await;
    }

    async fn steps(&mut self, number: u32) -> Option<()> {
        let (is_manual, is_left) = (self.rng.random_bool(0.4), self.rng.random_bool(0.05));
        let amount: i64 = self.rng.random_range(1..200) * 100;
        let money = json!({ "value": amount, "currencyCode": "GBP" });
        let mut purchase = json!({ "amount": money, "reference": format!("Order {number}") });
        purchase["captureMode"] = json!(if is_manual { "Manual" } else { "Auto" });
        if is_left {
            purchase["expireAt"] = json!(lifecycle::created_at(clock::wall_ms() + EXPIRES_AFTER_MS));
        }
        let intent = self.post("/payment-intents", purchase, None).await?;
        let id = intent["id"].as_str()?.to_owned();
        let at = format!("/payment-intents/{id}");
        if is_left {
            return self.until_expired(&at).await;
        }
        self.pause().await?;
        if self.rng.random_bool(0.1) {
            let canceled = Request::new("DELETE", at, None);
            return self.tills.ask(self.merchant, &canceled).await.map(drop);
        }
        if self.rng.random_bool(0.1) {
            self.post(&format!("/sandbox{at}/pay"), json!({ "card": DECLINED }), None).await?;
            self.pause().await?;
        }
        self.post(&format!("/sandbox{at}/pay"), json!({}), None).await?;
        self.pause().await?;
        if is_manual {
            if self.rng.random_bool(0.15) {
                return self.post(&format!("{at}/reversal"), json!({}), Some("reversal")).await.map(drop);
            }
            let part = amount / self.rng.random_range(1..4);
            self.post(&format!("{at}/captures"), json!({ "amount": part }), Some("capture")).await?;
            self.pause().await?;
            if self.rng.random_bool(0.2) {
                return self.post(&format!("{at}/refunds"), json!({ "amount": part }), Some("refund")).await.map(drop);
            }
        } else if self.rng.random_bool(0.2) {
            return self.post(&format!("{at}/refunds"), json!({ "amount": 100 }), Some("refund")).await.map(drop);
        }
        Some(())
    }

    /// Also when the demo ends: what happens after its end is held against nothing.
    async fn until_expired(&self, at: &str) -> Option<()> {
        let look = Request::new("GET", format!("{at}?returnCanceled=true"), None);
        while self.tills.ask(self.merchant, &look).await?["status"] == "Created" {
            sleep(FEED_EVERY).await;
        }
        Some(())
    }

    async fn post(&self, path: &str, body: Value, key: Option<&str>) -> Option<Value> {
        let mut request = Request::new("POST", path, Some(body));
        request.idempotency_key = key.map(str::to_owned);
        self.tills.ask(self.merchant, &request).await
    }

    /// None when the demo ends meanwhile.
    async fn pause(&mut self) -> Option<()> {
        let pause = Duration::from_millis(self.rng.random_range(200..2_000));
        tokio::select! {
            () = self.cancel.cancelled() => None,
            () = sleep(pause) => Some(()),
        }
    }
}

//! Everything that a test of the whole needs: Redis, merchants, their endpoints, and events to publish.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(clippy::disallowed_methods)]

use herald::{
    facts::{
        endpoint::{Endpoint, EndpointState, Mark},
        id::{AccountId, EndpointId},
        signing::SecretText,
    },
    store::registry::RegistryStore,
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use redis::aio::MultiplexedConnection;

use crate::{
    merchants::Merchants,
    process::Setup,
    support::{SAFETY, TestRedis, until},
};

pub const STREAM: &str = "payment-intents";
pub const PREFIX: &str = "herald:{payment-intents}:";

/// An event as a producer writes it. Ids sort in the order of publication.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: String,
    pub account: String,
    pub intent: String,
    pub body: String,
}

impl Event {
    pub fn new(number: usize, account: &str, intent: &str, status: &str) -> Self {
        let id = format!("evt_{number:07}");
        let body = format!(
            r#"{{"id":"{id}","event":"payment_intent.status_updated","accountId":"{account}","createdAt":"2022-02-01T13:07:41.8667859Z","data":{{"paymentIntentId":"{intent}","paymentStatus":"{status}","captureMode":"Auto"}}}}"#
        );
        Self { id, account: account.to_owned(), intent: intent.to_owned(), body }
    }
}

/// The lives of intents, shuffled together: each intent's events stay in order, spread among those of others.
pub fn lives(seed: u64, accounts: &[String], count: usize) -> Vec<Event> {
    const LIVES: [&[&str]; 5] = [
        &["Created", "Captured", "Refunded", "Refunded"],
        &["Created", "Canceled"],
        &["Created", "Authorized", "Captured"],
        &["Created", "Authorized", "Reversed"],
        &["Created", "Captured", "Reversed"],
    ];
    let mut rng = StdRng::seed_from_u64(seed);
    let mut turns: Vec<(usize, &'static [&'static str])> = Vec::new();
    let mut intents = 0;
    while turns.len() < count {
        let life = LIVES[rng.random_range(0..LIVES.len())];
        turns.extend(life.iter().map(|_| (intents, life)));
        intents += 1;
    }
    turns.truncate(count);
    // Neighbours within a window mix, as intents do that live at the same time.
    turns.chunks_mut(200).for_each(|window| window.shuffle(&mut rng));
    let mut lived = vec![0; intents];
    let event = |(number, (intent, life)): (usize, (usize, &[&str]))| {
        let status = life[lived[intent]];
        lived[intent] += 1;
        Event::new(number, &accounts[intent % accounts.len()], &format!("pi_{intent:06}"), status)
    };
    turns.into_iter().enumerate().map(event).collect()
}

pub fn mark() -> Mark {
    Mark { by: "tester".into(), why: "the test".into(), at_ms: 1_700_000_000_000 }
}

pub fn secret() -> SecretText {
    SecretText::from_random([7; 32])
}

/// Redis and merchants. Herald is started by the test.
pub struct World {
    pub redis: TestRedis,
    pub merchants: Merchants,
}

impl World {
    pub async fn new() -> Self {
        Self::on(TestRedis::start().await).await
    }

    pub async fn on(redis: TestRedis) -> Self {
        Self { redis, merchants: Merchants::start(secret().reveal()).await }
    }

    pub fn setup(&self) -> Setup {
        Setup::new(&self.redis.url())
    }

    pub async fn registry(&self) -> RegistryStore {
        RegistryStore::connect(&self.redis.redis()).await.unwrap()
    }

    pub fn endpoint(&self, name: &str, account: &str) -> Endpoint {
        let (id, account) = (EndpointId::new(name).unwrap(), AccountId::new(account).unwrap());
        Endpoint::new(id, account, self.merchants.url(name), secret(), 1)
    }

    pub async fn register(&self, endpoint: Endpoint) -> Endpoint {
        self.registry().await.create(endpoint, &mark()).await.unwrap()
    }

    /// `ep_N` of `acc_N` for N from 0; returns the accounts.
    pub async fn register_many(&self, count: usize) -> Vec<String> {
        let mut registry = self.registry().await;
        let mut accounts = Vec::new();
        for n in 0..count {
            let account = format!("acc_{n}");
            registry.create(self.endpoint(&format!("ep_{n}"), &account), &mark()).await.unwrap();
            accounts.push(account);
        }
        accounts
    }

    /// Changes an endpoint as it is now.
    pub async fn change(&self, name: &str, change: impl FnOnce(&mut Endpoint)) {
        let mut registry = self.registry().await;
        let mut endpoint = registry.get(&EndpointId::new(name).unwrap()).await.unwrap().expect("it is there");
        change(&mut endpoint);
        registry.update(endpoint, &mark()).await.unwrap();
    }

    pub async fn pause(&self, name: &str) {
        self.change(name, |endpoint| endpoint.status = EndpointState::Paused(mark())).await;
    }

    pub async fn resume(&self, name: &str) {
        self.change(name, |endpoint| endpoint.status = EndpointState::Enabled).await;
    }

    /// Adds the events, in their order.
    pub async fn publish(&self, events: &[Event]) {
        publish(&mut self.redis.connection().await, events).await;
    }

    /// Adds an event with an entry id that the producer chose.
    pub async fn publish_as(&self, entry: &str, event: &Event) {
        let id: String = self.redis.command(&["XADD", STREAM, entry, "event", &event.body]).await;
        assert_eq!(id, entry);
    }

    pub async fn number(&self, words: &[&str]) -> u64 {
        self.redis.command(words).await
    }

    /// Waits until nothing is unfinished: the stream read, acknowledged and trimmed, and no record left.
    pub async fn until_finished(&self) {
        let mut left = (0, Vec::new());
        let mut connection = self.redis.connection().await;
        let waited = tokio::time::timeout(SAFETY, async {
            loop {
                left = leftovers(&mut connection).await;
                if left.0 == 0 && left.1.is_empty() {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        if waited.await.is_err() {
            panic!("something stays unfinished: {} entries in the stream; {:?}", left.0, left.1);
        }
    }

    /// How often Redis ran a command.
    pub async fn calls(&self, command: &str) -> u64 {
        let stats: String = self.redis.command(&["INFO", "commandstats"]).await;
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
    }

    pub async fn keys(&self, pattern: &str) -> Vec<String> {
        keys(&mut self.redis.connection().await, pattern).await
    }

    pub async fn until_key(&self, what: &str, words: &[&str], holds: impl Fn(u64) -> bool) {
        let mut connection = self.redis.connection().await;
        until(what, async || {
            let mut command = redis::cmd(words[0]);
            command.arg(&words[1..]);
            holds(command.query_async(&mut connection).await.unwrap())
        })
        .await;
    }
}

pub async fn publish(connection: &mut MultiplexedConnection, events: &[Event]) {
    for chunk in events.chunks(500) {
        let mut pipeline = redis::pipe();
        for event in chunk {
            pipeline.cmd("XADD").arg(STREAM).arg("*").arg("event").arg(&event.body).ignore();
        }
        pipeline.query_async::<()>(connection).await.unwrap();
    }
}

pub async fn keys(connection: &mut MultiplexedConnection, pattern: &str) -> Vec<String> {
    redis::cmd("KEYS").arg(pattern).query_async(connection).await.unwrap()
}

/// Entries in the stream, and every key that only exists while something is unfinished.
async fn leftovers(connection: &mut MultiplexedConnection) -> (u64, Vec<String>) {
    let length = redis::cmd("XLEN").arg(STREAM).query_async(connection).await.unwrap();
    let all = keys(connection, &format!("{}*", PREFIX.replace('{', "[{]").replace('}', "[}]"))).await;
    let transient = ["delivery:", "due", "claimed", "singles:", "heads:", "held:", "backlog:", "unfinished"];
    let is_left = |key: &&String| {
        let name = key.strip_prefix(PREFIX).unwrap_or_default();
        transient.iter().any(|part| name.starts_with(part))
    };
    (length, all.iter().filter(is_left).take(20).cloned().collect())
}

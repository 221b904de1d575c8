//! Creations over HTTP at a rate, while Herald delivers what they tell; beside them requests that do nothing, and events
//! that are added as they always were.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use herald::{
    api::access,
    clock,
    facts::{
        endpoint::{Endpoint, Mark},
        id::EndpointId,
        signing::SecretText,
    },
    store::{
        api_keys::{ApiKey, ApiKeyStore},
        connection::Redis as Client,
        registry::RegistryStore,
    },
    surface::words::{time, time_us},
};
use tokio::{sync::mpsc, time::sleep_until};

use crate::{
    Args, account,
    events::Lives,
    processes::{Herald, Receiver, Redis, Scheme, wait_for},
    receiver::now_us,
    rows::{Reach, Rows},
    runtime,
    table::median,
};

const PER_SECOND: u64 = 1_000;
const ACCOUNTS: u64 = 100;
const MOST_P99_US: f64 = 5_000.0;

/// Deliveries that take longer are stuck.
const STUCK: Duration = Duration::from_secs(60);

/// Longer than anybody waits for an answer.
const MAX_LATENCY_US: u64 = 60_000_000;

const BODY: &str = r#"{"amount":{"value":1250,"currencyCode":"GBP"},"reference":"Order 4711"}"#;

#[derive(Debug, Clone, Copy)]
struct Latency {
    p50_us: u64,
    p99_us: u64,
}

pub fn latencies(args: &Args, rows: &mut Rows) -> Result<()> {
    for fsync in ["everysec", "always"] {
        let mut seen: [Vec<Latency>; 4] = Default::default();
        let stack = Stack::start(args, fsync)?;
        for round in 0..=args.rounds {
            let nothing = stack.ask_all(args.seconds, "/healthz")?;
            let (created, told) = stack.create_all(args.seconds)?;
            let added = stack.add_all(args.seconds)?;
            // Before the first round that counts, connections are made.
            if round > 0 {
                for (seen, one) in seen.iter_mut().zip([created, nothing, told, added]) {
                    seen.push(one);
                }
                let [created, nothing, told, added] = [created, nothing, told, added].map(|one| time_us(one.p99_us));
                eprintln!(
                    "round {round}, {fsync}: p99 of creations {created}, of nothing {nothing}; to the receiver {told}, \
                     of XADD alone {added}"
                );
            }
        }
        let of = |at: usize, value: fn(&Latency) -> u64| {
            median(seen[at].iter().map(|latency| value(latency) as f64).collect())
        };
        let at = format!("1 000/s, appendfsync {fsync}");
        for (what, sides, reach) in [
            (
                format!("of a creation over HTTP at {at}, beside a request that does nothing"),
                [0, 1],
                Reach::AtMost(MOST_P99_US),
            ),
            (format!("from the change to the receiver at {at}, beside XADD to the receiver"), [2, 3], Reach::None),
        ] {
            let [this, other] = sides.map(|side| of(side, |one| one.p50_us));
            rows.add(&format!("p50 {what}"), this, Some(other), Reach::None, time);
            let [this, other] = sides.map(|side| of(side, |one| one.p99_us));
            rows.add(&format!("p99 {what}"), this, Some(other), reach, time);
        }
    }
    Ok(())
}

/// In the order in which they end.
struct Stack {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    address: String,
    /// Of each account.
    api_keys: Vec<String>,
    _herald: Herald,
    receiver: Receiver,
    redis: Redis,
    _folder: tempfile::TempDir,
}

impl Stack {
    fn start(args: &Args, fsync: &'static str) -> Result<Self> {
        let folder = tempfile::TempDir::with_prefix("herald-bench-")?;
        let redis = Redis::start_with(&[("appendfsync", fsync)])?;
        let receiver = Receiver::start_with(folder.path(), &[])?;
        let runtime = runtime()?;
        let api_keys = runtime.block_on(register(&redis, &receiver.url(Scheme::Http)))?;
        let listen = format!("127.0.0.1:{}", herald::owned::free_port()?);
        let settings = [("HERALD_INTENTS_LISTEN", listen.as_str())];
        let herald = Herald::start(&args.herald, &redis, &receiver, folder.path(), &settings)?;
        let up = || std::net::TcpStream::connect(&listen).is_ok();
        wait_for("the payment intents", STUCK, up)?;
        // The library has one provider of TLS, which a client wants even for plain HTTP.
        let _ = herald::tls::provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build()?;
        let address = format!("http://{listen}");
        Ok(Self { runtime, http, address, api_keys, _herald: herald, receiver, redis, _folder: folder })
    }

    fn ask_all(&self, seconds: u64, path: &'static str) -> Result<Latency> {
        let url = format!("{}{path}", self.address);
        self.runtime.block_on(at_a_rate(seconds, |_| {
            let request = self.http.get(&url);
            async move { Ok(request.send().await?.error_for_status()?.bytes().await.map(drop)?) }
        }))
    }

    /// How long a creation takes, and its event to the receiver.
    fn create_all(&self, seconds: u64) -> Result<(Latency, Latency)> {
        let before = self.receiver.count()?;
        self.receiver.latency()?;
        let url = format!("{}/payment-intents", self.address);
        let created = self.runtime.block_on(at_a_rate(seconds, |n| {
            let key = &self.api_keys[n as usize % self.api_keys.len()];
            let request = self.http.post(&url).header("authorization", format!("Basic {key}"));
            let request = request.header("version", "2025-09-10").header("content-type", "application/json").body(BODY);
            async move { Ok(request.send().await?.error_for_status()?.bytes().await.map(drop)?) }
        }))?;
        Ok((created, self.arrived(before, seconds)?))
    }

    /// Events that a producer adds, to the receiver.
    #[expect(clippy::disallowed_methods, reason = "the producer has this thread for itself")]
    fn add_all(&self, seconds: u64) -> Result<Latency> {
        let before = self.receiver.count()?;
        self.receiver.latency()?;
        let (mut producer, mut lives) = (self.redis.producer()?, Lives::new(ACCOUNTS as usize, before));
        let start_us = now_us() + 10_000;
        for n in 0..seconds * PER_SECOND {
            let intended_us = start_us + n * 1_000_000 / PER_SECOND;
            std::thread::sleep(Duration::from_micros(intended_us.saturating_sub(now_us())));
            producer.send(&lives.next_as(format!("evt_t{intended_us}_{n}")))?;
        }
        producer.flush()?;
        self.arrived(before, seconds)
    }

    fn arrived(&self, before: u64, seconds: u64) -> Result<Latency> {
        let events = seconds * PER_SECOND;
        wait_for("the deliveries", STUCK, || self.receiver.count().is_ok_and(|count| count >= before + events))?;
        let [count, p50_us, p99_us, _] = self.receiver.latency()?;
        ensure!(count == events, "{count} of {events} events have a latency");
        Ok(Latency { p50_us, p99_us })
    }
}

/// Each at its time, whatever became of those before; what it took counts from that time on.
async fn at_a_rate<F>(seconds: u64, mut what: impl FnMut(u64) -> F) -> Result<Latency>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let start: Instant = clock::now() + Duration::from_millis(10);
    let times = seconds * PER_SECOND;
    let (ended, mut all) = mpsc::channel(times as usize);
    for n in 0..times {
        let intended = start + Duration::from_micros(n * 1_000_000 / PER_SECOND);
        sleep_until(intended.into()).await;
        let (asking, ended) = (what(n), ended.clone());
        tokio::spawn(async move {
            let done = asking.await.map(|()| clock::now() - intended);
            // Nobody listens any more after a failure.
            let _ = ended.send(done).await;
        });
    }
    drop(ended);
    let mut histogram = Histogram::<u64>::new_with_bounds(1, MAX_LATENCY_US, 3)?;
    while let Some(took) = all.recv().await {
        histogram.saturating_record(took.context("a request failed")?.as_micros() as u64);
    }
    Ok(Latency { p50_us: histogram.value_at_quantile(0.5), p99_us: histogram.value_at_quantile(0.99) })
}

/// An endpoint and an API key for each account.
async fn register(redis: &Redis, url: &str) -> Result<Vec<String>> {
    let client = Client::new(&redis.url())?;
    let (mut registry, mut keys) = (RegistryStore::connect(&client).await?, ApiKeyStore::connect(&client).await?);
    let mut api_keys = Vec::new();
    for at in 0..ACCOUNTS {
        let (account, now_ms) = (account(at)?, clock::wall_ms());
        let mark = Mark { by: "bench".to_owned(), why: "measured".to_owned(), at_ms: now_ms };
        let secret = SecretText::from_random([at as u8; 32]);
        let id = EndpointId::new(&format!("ep_{at}"))?;
        let endpoint = Endpoint::new(id, account.clone(), format!("{url}/{at}"), secret, now_ms);
        registry.create(endpoint, &mark).await.context("cannot register an endpoint")?;
        let key = access::new_key();
        let kept = ApiKey { account, is_read_only: false, name: "bench".to_owned(), created_at_ms: now_ms };
        keys.put(&access::hash(&key), &kept).await?;
        api_keys.push(key);
    }
    Ok(api_keys)
}

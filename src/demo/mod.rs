//! `herald demo`: the whole of Herald at work in one terminal, on a Redis of its own, with five sample merchants.
//! It judges itself: it ends with an error if a promise broke.

mod incident;
mod ledger;
mod merchant;
mod receiver;
mod shoppers;
mod show;

use std::{collections::HashMap, net::Ipv4Addr, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{ledger::Sums, merchant::Merchant, receiver::Merchants, shoppers::Tills, show::Show};
use crate::{
    api::access,
    app, clock,
    config::{Config, Sources, parse_duration},
    facts::{
        endpoint::{Endpoint, Mark},
        id::{AccountId, EndpointId},
        signing::SecretText,
    },
    owned::{OwnRedis, free_port},
    store::{
        api_keys::{ApiKey, ApiKeyStore},
        connection::{Purpose, Redis},
        keys::PartitionKeys,
        registry::RegistryStore,
        watch::{Gauges, gauges},
    },
};

/// How many lines the display may fall behind.
const SAYINGS: usize = 1_024;

/// How long the merchants that are alive may take to get the rest, after the last event was published.
const LAST_ARRIVALS: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// End after this long, for example 20s, with a summary; without it the demo runs until Ctrl-C
    #[arg(long = "for", value_name = "DURATION", value_parser = length)]
    pub length: Option<Duration>,
    /// New payment intents a second, over all merchants
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub rate: u32,
    /// Repeats a run's intents
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// A night to look into instead: a quarter of sixty endpoints breaks, and leaves dead letters, issues and questions
    #[arg(long, conflicts_with_all = ["rate", "seed"])]
    pub incident: bool,
    /// Events of the incident: about a fifth of the deliveries become dead letters
    #[arg(long, requires = "incident", default_value_t = 6_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    pub events: u64,
}

/// A demo that is shorter than a worker takes to begin would show nothing.
fn length(text: &str) -> Result<Duration, String> {
    let length = parse_duration(text)?;
    match length < Duration::from_secs(1) {
        true => Err("it takes at least 1s".to_owned()),
        false => Ok(length),
    }
}

pub async fn run(args: DemoArgs) -> anyhow::Result<()> {
    if args.incident {
        return incident::run(args.events, args.length).await;
    }
    with_redis(&args, &OwnRedis::start().await?).await
}

async fn with_redis(args: &DemoArgs, own: &OwnRedis) -> anyhow::Result<()> {
    let intents = format!("127.0.0.1:{}", free_port()?);
    let config = config(&own.url(), free_port()?, &intents)?;
    let redis = Redis::new(&own.url())?;
    let keys = PartitionKeys::new(&config.stream.name)?;
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port is free for the merchants")?;
    let (port, dead_port) = (socket.local_addr()?.port(), free_port()?);
    let secrets = register(&redis, port, dead_port).await?;
    let (says, mut said) = mpsc::channel(SAYINGS);
    let (happens, mut happened) = mpsc::channel(SAYINGS);
    let merchants = Merchants::new(secrets, says);
    let ending = CancellationToken::new();
    let serving = tokio::spawn(merchants.clone().serve(socket, ending.clone()));
    let stopping = CancellationToken::new();
    let worker = tokio::spawn({
        let (config, stopping) = (config.clone(), stopping.clone());
        async move { app::run(&config, stopping, Some(happens)).await }
    });
    let api_keys = create_keys(&redis).await?;
    let (url, seed) = (format!("http://{intents}"), args.seed.unwrap_or_else(rand::random));
    let mut show = Show::begin(&own.url(), config.listen.port(), &url, &api_keys[&Merchant::Healthy], own.folder());
    let tills = Tills::new(&url, &api_keys)?;
    tills.until_open().await.context("the payment intents are not served")?;
    let (sold, told) = (CancellationToken::new(), CancellationToken::new());
    let selling = tokio::spawn(tills.clone().sell(args.rate, seed, sold.clone()));
    let following = tokio::spawn({
        let (tills, merchants, told) = (tills.clone(), merchants.clone(), told.clone());
        async move { tills.follow(&merchants.ledger, told).await }
    });
    let end = args.length.map(|length| tokio::time::Instant::from_std(clock::now() + length));
    loop {
        tokio::select! {
            Some(said) = said.recv() => show.said(&said),
            Some(happening) = happened.recv() => show.happened(&happening),
            () = reached(end) => break,
            _ = tokio::signal::ctrl_c() => break,
            () = show.tick() => show.sums(&merchants.ledger.sums()),
        }
        if worker.is_finished() {
            break;
        }
    }
    sold.cancel();
    selling.await.context("the tills failed")?;
    told.cancel();
    following.await.context("the feed failed")?;
    show.line("no more sales; waiting for the last deliveries");
    let complete = async {
        while !merchants.ledger.is_complete() && !worker.is_finished() {
            tokio::select! {
                Some(said) = said.recv() => show.said(&said),
                Some(happening) = happened.recv() => show.happened(&happening),
                () = sleep(Duration::from_millis(50)) => {}
            }
        }
    };
    // Whatever is missing then is counted as lost.
    let _ = timeout(LAST_ARRIVALS, complete).await;
    stopping.cancel();
    worker.await.context("the worker failed")??;
    let left = gauges(&mut redis.connect(Purpose::Other).await?, &keys).await?;
    ending.cancel();
    serving.await.context("the merchants failed")?;
    let sums = merchants.ledger.sums();
    show.summary(&merchants.ledger, &left, tills.refusals(), seed);
    judge(&sums, &left, &merchants, tills.refusals())
}

/// Every event is delivered, or in Redis, or was for an endpoint that was disabled before.
fn judge(sums: &Sums, left: &Gauges, merchants: &Merchants, refusals: u64) -> anyhow::Result<()> {
    let dead = merchants.ledger.owed_to(Merchant::Dead);
    let accounted = left.dead + left.unfinished + left.behind + left.pending;
    let broken = [
        (sums.missing > 0, "an event was lost"),
        (accounted < dead, "an event of the dead merchant is neither a dead letter nor unfinished"),
        (sums.out_of_order > 0, "an event arrived out of order"),
        (sums.bad_signatures > 0, "a signature did not verify"),
        (sums.unknown > 0, "something arrived that no payment intent tells of"),
        (refusals > 0, "the service did not take a request"),
    ];
    match broken.iter().find(|(is_broken, _)| *is_broken) {
        Some((_, promise)) => bail!("{promise}: please report this with the seed above"),
        None => Ok(()),
    }
}

async fn reached(end: Option<tokio::time::Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Quick retries, so that a demo of seconds shows what otherwise takes days.
fn config(redis_url: &str, port: u16, intents: &str) -> anyhow::Result<Config> {
    let listen = format!("127.0.0.1:{port}");
    let flags = [
        ("redis.url", redis_url),
        ("listen", listen.as_str()),
        ("intents.listen", intents),
        ("intents.sandbox", "true"),
        ("guard.allow_http", "true"),
        ("guard.allow_networks", "127.0.0.0/8"),
        ("lease.ttl", "2s"),
        ("retry.initial", "500ms"),
        ("retry.multiplier", "2"),
        ("retry.max_interval", "4s"),
        ("retry.max_attempts", "6"),
        ("retry.max_age", "12s"),
        ("limits.breaker.cooldown", "1s"),
        ("limits.breaker.max_cooldown", "2s"),
        ("shutdown.grace", "5s"),
        // It leaves nothing behind.
        ("history.url", ""),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    Ok(Config::load(Sources { flags, ..Sources::default() })?)
}

async fn register(redis: &Redis, port: u16, dead_port: u16) -> anyhow::Result<HashMap<Merchant, SecretText>> {
    let mut store = RegistryStore::connect(redis).await?;
    let mut secrets = HashMap::new();
    for merchant in Merchant::ALL {
        let name = merchant.name();
        let now_ms = clock::wall_ms();
        let secret = SecretText::from_random(rand::random());
        secrets.insert(merchant, secret.clone());
        let port = if merchant == Merchant::Dead { dead_port } else { port };
        let mark = Mark { by: "demo".to_owned(), why: merchant.temper().to_owned(), at_ms: now_ms };
        let id = EndpointId::new(&format!("ep_{name}"))?;
        let account = AccountId::new(&format!("acc_{name}"))?;
        let url = format!("http://127.0.0.1:{port}/{name}");
        let mut endpoint = Endpoint::new(id, account, url, secret, now_ms);
        endpoint.description = merchant.temper().to_owned();
        store.create(endpoint, &mark).await?;
    }
    Ok(secrets)
}

/// A key for each merchant's account, as `herald intents key create` makes one.
async fn create_keys(redis: &Redis) -> anyhow::Result<HashMap<Merchant, String>> {
    let mut store = ApiKeyStore::connect(redis).await?;
    let mut keys = HashMap::new();
    for merchant in Merchant::ALL {
        let (key, account) = (access::new_key(), AccountId::new(&format!("acc_{}", merchant.name()))?);
        let kept = ApiKey { account, is_read_only: false, name: "demo".to_owned(), created_at_ms: clock::wall_ms() };
        store.put(&access::hash(&key), &kept).await?;
        keys.insert(merchant, key);
    }
    Ok(keys)
}

//! `herald demo --incident`: the kind of night that operators are called for. Forty accounts, sixty endpoints, a quarter of which
//! break at one moment, each in a way of its own. It leaves the dead letters, the issues and the acts of two colleagues to be looked
//! into, with every verb, the API and the console, until it is ended; what is true stands in a file.

mod cast;
mod receivers;

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::{net::TcpListener, process::Command, time::sleep};
use tokio_util::sync::CancellationToken;

use self::{
    cast::{Facts, Fault, UNREGISTERED},
    receivers::Receivers,
};
use super::reached;
use crate::{
    app, clock,
    config::{Config, Sources},
    facts::{
        endpoint::{Endpoint, Mark},
        event::PaymentStatus,
        id::{AccountId, EndpointId, EventId, IntentId, OperationId},
        operation::Operation,
        sample::{self, Sample},
        signing::SecretText,
    },
    owned::{OwnRedis, free_port},
    store::{
        connection::{Purpose, Redis},
        entries::Entries,
        keys::PartitionKeys,
        operations::Operations,
        registry::RegistryStore,
        watch::gauges,
    },
    surface::words,
};

/// Events that are published at once, and the pause between two such batches: 1 000 a second.
const BATCH: usize = 50;
const PAUSE: Duration = Duration::from_millis(50);

/// The part of the events that is published while all is well.
const CALM_PART: u64 = 4;

/// How long what is owed may take to be delivered or given up.
const SETTLES_WITHIN: Duration = Duration::from_secs(300);

/// The life of an intent.
const LIFE: [PaymentStatus; 3] = [PaymentStatus::Created, PaymentStatus::Authorized, PaymentStatus::Captured];

pub async fn run(events: u64, length: Option<Duration>) -> anyhow::Result<()> {
    let own = OwnRedis::start().await?;
    let (redis, port, admin_token) = (Redis::new(&own.url())?, free_port()?, hex::encode(rand::random::<[u8; 32]>()));
    let config = config(&own, port, &admin_token)?;
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port is free for the merchants")?;
    let receivers_port = socket.local_addr()?.port();
    let mut facts = Facts::new();
    register(&redis, &facts, receivers_port).await?;
    let faults: BTreeMap<String, Fault> =
        facts.endpoints.iter().map(|part| (part.endpoint.clone(), part.fault)).collect();
    let receivers = Receivers::new(faults);
    let ending = CancellationToken::new();
    let serving = tokio::spawn(receivers.clone().serve(socket, ending.clone()));
    let worker = tokio::spawn({
        let (config, stopping) = (config.clone(), ending.clone());
        async move { app::run(&config, stopping, None).await }
    });
    let stage = Stage { own: &own, config: &config, redis: &redis, receivers_port };
    println!("Herald delivers to {} endpoints of {} accounts.", facts.endpoints.len(), facts.accounts);
    let played = async {
        stage.play(&mut facts, events, &receivers).await?;
        facts.delivered(&receivers.taken());
        let file = own.folder().join("incident.json");
        tokio::fs::write(&file, serde_json::to_vec_pretty(&facts)?).await?;
        show(&facts, &config, &stage, &admin_token, &file);
        anyhow::Ok(())
    };
    tokio::select! {
        played = played => played?,
        _ = tokio::signal::ctrl_c() => bail!("ended before the incident stood"),
    }
    let end = length.map(|length| tokio::time::Instant::from_std(clock::now() + length));
    tokio::select! {
        () = reached(end) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    ending.cancel();
    serving.await.context("the merchants failed")?;
    worker.await.context("the worker failed")?
}

/// Quick retries, as in the demo, and a history of its own, which ends with it.
fn config(own: &OwnRedis, port: u16, admin_token: &str) -> anyhow::Result<Config> {
    let (listen, redis) = (format!("127.0.0.1:{port}"), own.url());
    let history = history_url(own.folder());
    let flags = [
        ("redis.url", redis.as_str()),
        ("listen", listen.as_str()),
        ("admin_token", admin_token),
        ("guard.allow_http", "true"),
        ("guard.allow_networks", "127.0.0.0/8"),
        ("history.url", history.as_str()),
        ("lease.ttl", "2s"),
        ("attempt.timeout", "2s"),
        ("retry.initial", "500ms"),
        ("retry.multiplier", "2"),
        ("retry.max_interval", "4s"),
        ("retry.max_attempts", "6"),
        ("retry.max_age", "10s"),
        ("limits.breaker.cooldown", "1s"),
        ("limits.breaker.max_cooldown", "5s"),
        ("shutdown.grace", "5s"),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    Ok(Config::load(Sources { flags, ..Sources::default() })?)
}

fn history_url(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("history.db").display())
}

async fn register(redis: &Redis, facts: &Facts, port: u16) -> anyhow::Result<()> {
    let mut store = RegistryStore::connect(redis).await?;
    for part in &facts.endpoints {
        let (id, account) = (EndpointId::new(&part.endpoint)?, AccountId::new(&part.account)?);
        let (now_ms, url) = (clock::wall_ms(), format!("http://127.0.0.1:{port}/{id}"));
        let mark = Mark { by: "onboarding".to_owned(), why: "a new merchant".to_owned(), at_ms: now_ms };
        store.create(Endpoint::new(id, account, url, SecretText::from_random(rand::random()), now_ms), &mark).await?;
    }
    Ok(())
}

struct Stage<'a> {
    own: &'a OwnRedis,
    config: &'a Config,
    redis: &'a Redis,
    receivers_port: u16,
}

impl Stage<'_> {
    async fn play(&self, facts: &mut Facts, events: u64, receivers: &Receivers) -> anyhow::Result<()> {
        let calm = events / CALM_PART;
        self.publish(facts, 0..calm).await?;
        self.settled().await?;
        facts.broke_at_ms = clock::wall_ms();
        receivers.break_now();
        println!("{} events, and all was well. Then {} endpoints break.", words::number(calm), facts.failing().count());
        self.move_away(facts).await?;
        self.publish(facts, calm..events).await?;
        self.publish_oddities(facts).await?;
        self.settled().await?;
        self.colleague(facts).await
    }

    /// Intents one after the other, each with its whole life; a part of them at once.
    async fn publish(&self, facts: &mut Facts, numbers: std::ops::Range<u64>) -> anyhow::Result<()> {
        let mut entries = Entries::new(self.redis.connect(Purpose::Other).await?, self.keys()?);
        let mut numbers = numbers.peekable();
        while numbers.peek().is_some() {
            let mut bodies = Vec::with_capacity(BATCH);
            for number in numbers.by_ref().take(BATCH) {
                let (intent, step) = (number / LIFE.len() as u64, number % LIFE.len() as u64);
                let account = facts.account(usize::try_from(intent)?);
                facts.published(&account);
                bodies.push(event(number, &account, intent, LIFE[usize::try_from(step)?])?);
            }
            entries.add_all(&bodies).await?;
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// An account without an endpoint, and what is no event at all.
    async fn publish_oddities(&self, facts: &mut Facts) -> anyhow::Result<()> {
        let mut entries = Entries::new(self.redis.connect(Purpose::Other).await?, self.keys()?);
        let first = facts.events;
        let mut bodies = Vec::new();
        for number in first..first + 12 {
            facts.published(UNREGISTERED);
            bodies.push(event(number, UNREGISTERED, number, PaymentStatus::Created)?);
        }
        bodies.extend(["{\"id\":\"evt_half\",\"eve", "<event/>", "{}"].map(|text| Bytes::from_static(text.as_bytes())));
        facts.malformed = 3;
        entries.add_all(&bodies).await?;
        Ok(())
    }

    /// Merchants who moved, as an operator enters it, and one whom an operator pauses.
    async fn move_away(&self, facts: &Facts) -> anyhow::Result<()> {
        let nobody = free_port()?;
        let port = self.receivers_port;
        for part in &facts.endpoints {
            let id = &part.endpoint;
            let url = match part.fault {
                Fault::ConnectionRefused => format!("http://127.0.0.1:{nobody}/{id}"),
                Fault::SpeaksNoTls => format!("https://127.0.0.1:{port}/{id}"),
                Fault::UnknownHost => {
                    self.lose_name(id, format!("http://hooks.{}.invalid/{id}", part.account.replace('_', "-"))).await?;
                    continue;
                }
                Fault::Paused => {
                    let reason = "they restore a backup until six";
                    self.herald("omar", &["endpoint", "pause", id, "--reason", reason]).await?;
                    continue;
                }
                _ => continue,
            };
            self.herald("nina", &["endpoint", "update", id, "--url", &url, "--reason", "the merchant moved"]).await?;
        }
        Ok(())
    }

    /// A name that was there when it was entered, and is not any more: Herald takes no other.
    async fn lose_name(&self, id: &str, url: String) -> anyhow::Result<()> {
        let mut store = RegistryStore::connect(self.redis).await?;
        let endpoint = store.get(&EndpointId::new(id)?).await?.context("an endpoint is gone")?;
        let mark = Mark { by: "nina".to_owned(), why: "the merchant moved".to_owned(), at_ms: clock::wall_ms() };
        store.update(Endpoint { url, ..endpoint }, &mark).await?;
        Ok(())
    }

    /// What somebody did about it before.
    async fn colleague(&self, facts: &Facts) -> anyhow::Result<()> {
        let Some(part) = facts.with(Fault::ServerError).next() else { return Ok(()) };
        let words =
            ["dead-letter", "redeliver", "--endpoint", &part.endpoint, "--yes", "--reason", "they say it is fixed"];
        // Its terminal is closed in the middle; what it began goes on until somebody says otherwise.
        let mut child = self.command("omar", &words)?.spawn().context("cannot start Herald again")?;
        let id = self.operation_where(|operation| operation.counts.open > 0).await?;
        let _ = child.kill().await;
        let reason = "not before we know that they are back";
        self.herald("nina", &["operation", "pause", &id.to_string(), "--reason", reason]).await?;
        self.settled().await?;
        self.operation_where(|operation| operation.counts.open == 0).await.map(drop)
    }

    /// Until there is an operation that stands like this.
    async fn operation_where(&self, stands: impl Fn(&Operation) -> bool) -> anyhow::Result<OperationId> {
        let mut operations = Operations::new(self.redis.connect(Purpose::Other).await?, self.keys()?);
        let began = clock::now();
        while clock::now() - began < SETTLES_WITHIN {
            let ids = operations.ids().await?;
            if let Some(found) = operations.find_all(&ids).await?.into_iter().find(&stands) {
                return Ok(found.id);
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!("the operation of a colleague does not get on")
    }

    async fn herald(&self, by: &str, words: &[&str]) -> anyhow::Result<()> {
        let ran = self.command(by, words)?.output().await.context("cannot start Herald again")?;
        match ran.status.success() {
            true => Ok(()),
            false => bail!("herald {}: {}", words.join(" "), String::from_utf8_lossy(&ran.stderr)),
        }
    }

    /// Herald's own command line, as an operator uses it.
    fn command(&self, by: &str, words: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(words).env_clear().env("USER", by).env("HERALD_REDIS_URL", self.own.url());
        command.env("HERALD_HISTORY_URL", history_url(self.own.folder()));
        command.env("HERALD_ALLOW_HTTP", "true").env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        Ok(command)
    }

    /// Until everything was delivered or given up. What an operator holds back becomes too old as well.
    async fn settled(&self) -> anyhow::Result<()> {
        let mut connection = self.redis.connect(Purpose::Other).await?;
        let (keys, began) = (self.keys()?, clock::now());
        loop {
            let now = gauges(&mut connection, &keys).await?;
            if now.behind + now.pending + now.unfinished == 0 {
                return Ok(());
            }
            if clock::now() - began > SETTLES_WITHIN {
                bail!("{} deliveries are still on their way", words::number(now.unfinished));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn keys(&self) -> anyhow::Result<PartitionKeys> {
        Ok(PartitionKeys::new(&self.config.stream.name)?)
    }
}

fn event(number: u64, account: &str, intent: u64, status: PaymentStatus) -> anyhow::Result<Bytes> {
    let sample = Sample {
        id: EventId::new(&format!("evt_{number:07}"))?,
        event_type: sample::status_updated(),
        account: AccountId::new(account)?,
        intent: IntentId::new(&format!("pi_{intent:06}"))?,
        status,
        now_ms: clock::wall_ms(),
    };
    Ok(sample.event()?.body().clone())
}

/// What to do with it.
fn show(facts: &Facts, config: &Config, stage: &Stage<'_>, admin_token: &str, file: &Path) {
    let program = std::env::current_exe().map_or("herald".to_owned(), |path| path.display().to_string());
    let listen = config.listen;
    let shown = facts.failing().next().map_or("acc_bakery", |part| part.account.as_str());
    println!(
        "{} events later, the incident stands. Look into it from a second terminal:\n\n  \
         export HERALD_REDIS_URL={} HERALD_HISTORY_URL={}\n",
        words::number(facts.events),
        stage.own.url(),
        history_url(stage.own.folder())
    );
    let questions = [
        ("What is wrong?", "doctor".to_owned()),
        ("Which merchants, why, since when?", "issue list".to_owned()),
        ("What do I tell them?", "issue show ID".to_owned()),
        ("Everything of one account", format!("delivery list --account {shown}")),
        ("How is each endpoint?", "endpoint list".to_owned()),
        ("The life of a payment", "story pi_000001".to_owned()),
        ("What was given up, and why", "dead-letter list --group-by cause".to_owned()),
        ("What is no event", "quarantine list".to_owned()),
        ("Who did what?", "audit list".to_owned()),
        ("What did a run leave that broke off?", "operation list".to_owned()),
    ];
    for (question, verb) in questions {
        println!("  {question:36} {program} {verb}");
    }
    println!("\nThe console: http://{listen}/ with the token {admin_token}");
    println!("The API: curl -s -H 'Authorization: Bearer {admin_token}' http://{listen}/v1/issues");
    println!("What is true stands in {}", file.display());
    println!("Ctrl-C ends it and removes everything.");
}

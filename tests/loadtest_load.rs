//! The load test's own parts against the real program: traffic into a real Redis, a real `herald serve`, receivers of
//! every profile, and the judge over all of it. And against a sender that cheats, which must be caught.

#![allow(clippy::disallowed_methods)]

use std::{process::Command, sync::Arc, time::Duration};

use herald::{
    clock,
    facts::{
        endpoint::{Endpoint, Mark},
        id::EntryId,
        retry::DeadReason,
        sequence::Sequence,
        signing::{SecretText, dojo_signature, standard_signature},
    },
    loadtest::{
        judge::{Dead, Evidence, Verdict, judge},
        ledger::{Lateness, Ledger, body_hash},
        population::Population,
        producer::Producer,
        receiver::Receivers,
        result::RunResult,
        scenario::{self, Load, Scenario},
        schedule::Schedule,
        traffic::Traffic,
    },
    store::{
        connection::{Purpose, Redis},
        keys::PartitionKeys,
        queries::{DeadOrder, DeadRange, Queries},
        registry::RegistryStore,
        watch::gauges,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use crate::{
    process::Setup,
    support::{SAFETY, TestRedis},
};

#[path = "support/herald.rs"]
mod process;
#[path = "support/mod.rs"]
mod support;

const SEED: u64 = 20_260_101;

/// Everything that a receiver can do, at least one endpoint of each kind, and attempts that end within seconds. An
/// attempt has longer than a busy machine keeps the receivers waiting: what they answer too late rightly comes again.
const EVERYTHING: &str = r#"
name = "everything"
description = "Every profile at once."
load = { kind = "open", stages = [{ for = "2s", rate = 60.0 }, { for = "1s", rate = 60.0, to = 200.0 }], arrivals = "poisson" }

[traffic]
accounts = 160
intents = 2
hot_share = 0.1

[endpoints]
fan_out = 2
idle = 20
tls_share = 0.4
timeout = "4s"
retry = { initial = "100ms", multiplier = 2.0, max_interval = "1s", jitter = 0.2, max_attempts = 3 }
profiles = [
  { share = 5, profile = "healthy", median = "5ms", p99 = "50ms" },
  { share = 2, profile = "healthy" },
  { share = 2, profile = "slow", after = "150ms" },
  { share = 1, profile = "hanging" },
  { share = 4, profile = "flaky", p = 0.3 },
  { share = 2, weight = 5.0, profile = "healing", at = "1s" },
  { share = 1, profile = "failing" },
  { share = 2, profile = "throttling", retry_after = "1s" },
  { share = 1, weight = 5.0, profile = "gone", after = 1 },
  { share = 1, profile = "redirecting" },
  { share = 1, profile = "resetting" },
  { share = 1, profile = "truncating" },
  { share = 2, profile = "huge-body" },
  { share = 1, profile = "flooding" },
  { share = 2, profile = "imperfect", after = "5ms", failure = "reset", often = { for = "50ms", every = "500ms" }, goodput = 0.5 },
  { share = 2, profile = "fleeting", after = "5ms", rtt = "20ms", http2 = true },
  { share = 1, profile = "broken-tls" },
]

[herald]
settings = { "limits.breaker.cooldown" = "100ms", "lease.ttl" = "10s" }
"#;

fn everything() -> Scenario {
    toml::from_str(EVERYTHING).unwrap()
}

/// With receivers that take everything, and time for them: when a whole backlog goes out at once on a busy machine, an
/// answer may be late, and what timed out rightly comes again.
fn healthy() -> Scenario {
    let mut scenario = everything();
    scenario.traffic.accounts = 40;
    scenario.endpoints.timeout = Some(Duration::from_secs(30));
    scenario.endpoints.profiles.truncate(2);
    scenario
}

/// What a run needs, put together by hand.
struct Stage {
    redis: TestRedis,
    keys: PartitionKeys,
    population: Arc<Population>,
    ledger: Arc<Ledger>,
    receivers: Receivers,
    _folder: tempfile::TempDir,
}

impl Stage {
    async fn new(scenario: &Scenario) -> Self {
        let redis = TestRedis::start_with_aof().await;
        let population = Arc::new(Population::draw(scenario, SEED).unwrap());
        let events = Schedule::try_new(&scenario.load, SEED).unwrap().expected();
        let ledger = Arc::new(Ledger::new(population.clone(), events));
        let folder = tempfile::tempdir().unwrap();
        let receivers = Receivers::start(population.clone(), ledger.clone(), folder.path(), 1).unwrap();
        let keys = PartitionKeys::new("payment-intents").unwrap();
        let stage = Self { redis, keys, population, ledger, receivers, _folder: folder };
        stage.register().await;
        stage
    }

    async fn register(&self) {
        let all = 0..self.population.len();
        let doors = &self.receivers.doors;
        let endpoints: Vec<Endpoint> = self.population.endpoints(all, doors, clock::wall_ms()).collect();
        let mark = Mark { by: "loadtest".into(), why: "the test".into(), at_ms: clock::wall_ms() };
        let mut registry = RegistryStore::connect(&self.redis.redis()).await.unwrap();
        registry.import(endpoints, None, &mark).await.unwrap();
    }

    fn herald(&self) -> process::Herald {
        let ca_file = self.receivers.ca_file.display();
        let toml = format!(
            "[attempt]\nca_file = \"{ca_file}\"\n[limits.breaker]\ncooldown = \"100ms\"\nmax_cooldown = \"200ms\"\n"
        );
        // As the scenario says: who loses its lease to a stall of the machine rightly makes its attempts again.
        Setup::new(&self.redis.url()).toml(&toml).env("HERALD_LEASE", "10s").start()
    }

    fn producer(&self) -> Producer {
        Producer {
            redis: Redis::new(&self.redis.url()).unwrap(),
            keys: self.keys.clone(),
            ledger: self.ledger.clone(),
            is_disturbed: Arc::new(|| false),
            replicas: 0,
        }
    }

    async fn produce(&self, scenario: &Scenario) {
        let schedule = Schedule::try_new(&scenario.load, SEED).unwrap();
        let traffic = Traffic::new(self.population.clone(), &scenario.traffic, SEED);
        self.producer().run(schedule, traffic, CancellationToken::new()).await.unwrap();
    }

    /// Returns when Herald has nothing left to do.
    async fn until_idle(&self) {
        let mut connection = self.redis.redis().connect(Purpose::Other).await.unwrap();
        let mut left = None;
        let idle = tokio::time::timeout(SAFETY, async {
            loop {
                let gauges = gauges(&mut connection, &self.keys).await.unwrap();
                if gauges.group && gauges.behind + gauges.pending + gauges.unfinished == 0 {
                    return;
                }
                left = Some(gauges);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(idle.await.is_ok(), "something stays unfinished: {left:?}");
        support::until("the last answers are noted", async || self.ledger.is_quiet()).await;
    }

    async fn dead(&self) -> Vec<Dead> {
        let connection = self.redis.redis().connect(Purpose::Other).await.unwrap();
        let mut queries = Queries::new(connection, self.keys.clone());
        let range = DeadRange { endpoint: None, from_ms: 0, until_ms: u64::MAX >> 12 };
        let (mut dead, mut cursor) = (Vec::new(), None);
        loop {
            let page = queries.dead(&range, DeadOrder::OldestFirst, cursor.as_ref(), 500).await.unwrap();
            dead.extend(page.letters.iter().map(|letter| Dead::of(letter.letter.as_ref().unwrap())));
            cursor = page.next;
            if cursor.is_none() {
                return dead;
            }
        }
    }

    async fn verdict(&self) -> Verdict {
        judge(&self.ledger, &Evidence { dead: self.dead().await, ..Evidence::default() })
    }
}

fn broken(verdict: &Verdict) -> Vec<String> {
    let broken = verdict.promises.iter().filter(|promise| promise.broken > 0);
    broken.map(|promise| format!("{} {}: {:?}", promise.broken, promise.name, promise.examples)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_profile_at_once_and_every_promise_is_kept() {
    let scenario = everything();
    let stage = Stage::new(&scenario).await;
    let herald = stage.herald();
    herald.until_owner().await;
    stage.ledger.begin(clock::now(), clock::wall_ms());
    stage.produce(&scenario).await;
    stage.until_idle().await;
    let verdict = stage.verdict().await;
    // How punctual the generator is on a machine under test is not this test's question.
    let broken: Vec<String> = broken(&verdict).into_iter().filter(|line| !line.contains("generator")).collect();
    assert_eq!(broken, Vec::<String>::new(), "{:#?}", verdict.promises);
    for promise in &verdict.promises {
        // Promises that need a rate or a fault belong to the scenarios.
        let is_elsewhere = ["goodput", "stale_url", "standstill"].contains(&promise.name.as_str());
        let is_tried = promise.tried > 0 || is_elsewhere;
        assert!(is_tried, "{} was never tried", promise.name);
    }
    assert_eq!(verdict.generator.intended, verdict.generator.sent);
    assert!(verdict.generator.sent > 150, "{:?}", verdict.generator);
    assert_eq!((verdict.deliveries.unfinished, verdict.profiles.len()), (0, 16));
    for profile in &verdict.profiles {
        let sums = &profile.deliveries;
        let expected = match profile.name.as_str() {
            "hanging" | "failing" | "redirecting" | "resetting" | "truncating" | "flooding" | "broken-tls" => sums.dead,
            // What is sent before it heals may use up its attempts.
            "flaky" | "imperfect" | "healing" | "gone" => sums.acknowledged + sums.dead,
            _ => sums.acknowledged,
        };
        assert!(sums.owed > 0 && sums.owed == expected, "{profile:?}");
    }
    let of = |name: &str| verdict.profiles.iter().find(|profile| profile.name == name).unwrap();
    assert_eq!(of("broken-tls").deliveries.attempts, 0);
    assert_eq!(of("failing").deliveries.attempts, 3 * of("failing").deliveries.owed);
    assert!(of("slow").deliveries.duplicates == 0 && of("gone").deliveries.acknowledged >= 1);
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_laid_up_first_and_drained_after_a_worker_was_killed() {
    let mut scenario = healthy();
    scenario.load = Load::Drain { events: 5000 };
    let stage = Stage::new(&scenario).await;
    stage.produce(&scenario).await;
    let length: u64 = stage.redis.command(&["XLEN", "payment-intents"]).await;
    assert_eq!((length, stage.ledger.progress().confirmed), (5000, 5000));
    stage.ledger.begin(clock::now(), clock::wall_ms());
    let first = stage.herald();
    support::until("the first deliveries", async || stage.ledger.progress().acknowledged > 500).await;
    let killed_s = stage.ledger.time_us(clock::now()) as f64 / 1e6;
    first.kill9();
    let second = stage.herald();
    stage.until_idle().await;
    let fault = herald::loadtest::result::FaultMark {
        fault: herald::loadtest::faults::Fault::KillWorker,
        at: killed_s,
        until: killed_s,
    };
    let evidence = Evidence { dead: stage.dead().await, faults: vec![fault], is_drain: true, ..Evidence::default() };
    let verdict = judge(&stage.ledger, &evidence);
    assert_eq!(broken(&verdict), Vec::<String>::new(), "{:#?}", verdict.promises);
    assert_eq!((verdict.deliveries.acknowledged, verdict.deliveries.dead), (10_000, 0));
    assert!(verdict.deliveries.rate > 0.0 && verdict.generator.late == 0);
    assert!(second.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_goes_on_in_order_after_redis_was_away() {
    let scenario = healthy();
    let mut stage = Stage::new(&scenario).await;
    stage.ledger.begin(clock::now(), clock::wall_ms());
    let schedule = Schedule::try_new(&scenario.load, SEED).unwrap();
    let traffic = Traffic::new(stage.population.clone(), &scenario.traffic, SEED);
    let producer = Producer { is_disturbed: Arc::new(|| true), ..stage.producer() };
    let producing = tokio::spawn(async move { producer.run(schedule, traffic, CancellationToken::new()).await });
    support::until("some events", async || stage.ledger.progress().confirmed > 30).await;
    stage.redis.kill9().await;
    stage.redis.start_again().await;
    producing.await.unwrap().unwrap();
    let herald = stage.herald();
    stage.until_idle().await;
    let verdict = stage.verdict().await;
    assert_eq!(broken(&verdict), Vec::<String>::new(), "{:#?}", verdict.promises);
    assert_eq!((verdict.generator.late, verdict.deliveries.unfinished), (0, 0));
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_goes_on_after_redis_was_full_and_sends_nothing_twice() {
    let scenario = everything();
    let stage = Stage::new(&scenario).await;
    stage.ledger.begin(clock::now(), clock::wall_ms());
    stage.redis.set_maxmemory(1).await;
    let schedule = Schedule::try_new(&scenario.load, SEED).unwrap();
    let traffic = Traffic::new(stage.population.clone(), &scenario.traffic, SEED);
    let producer = stage.producer();
    let producing = tokio::spawn(async move { producer.run(schedule, traffic, CancellationToken::new()).await });
    support::until("a refusal", async || {
        let errors: String = stage.redis.command(&["INFO", "errorstats"]).await;
        errors.contains("errorstat_EXECABORT")
    })
    .await;
    stage.redis.set_maxmemory(0).await;
    producing.await.unwrap().unwrap();
    let progress = stage.ledger.progress();
    let length: u64 = stage.redis.command(&["XLEN", "payment-intents"]).await;
    assert_eq!((progress.sent_again, progress.confirmed), (0, length));
    assert!(progress.intended == length && length > 150);
}

/// A sender that is not Herald.
struct Cheat {
    stage: Stage,
    bodies: Vec<Vec<u8>>,
    line: TcpStream,
}

/// One of its requests; a part that is none is as it should be.
#[derive(Default)]
struct Trick {
    secret: Option<SecretText>,
    body: Option<Vec<u8>>,
    id: Option<String>,
    attempt: Option<u32>,
}

impl Cheat {
    /// With three events of one intent, which the ledger believes to have been sent.
    async fn new(profile: &str) -> Self {
        let mut scenario = everything();
        scenario.traffic.accounts = 1;
        let only: scenario::Population = toml::from_str(&format!("profiles = [{profile}]")).unwrap();
        scenario.endpoints =
            scenario::Population { fan_out: 1, tls_share: 0.0, profiles: only.profiles, ..scenario.endpoints };
        let stage = Stage::new(&scenario).await;
        stage.ledger.begin(clock::now(), clock::wall_ms());
        let mut traffic = Traffic::new(stage.population.clone(), &scenario.traffic, SEED);
        let mut bodies = Vec::new();
        let mut intent = None;
        while bodies.len() < 2 {
            let mut body = Vec::new();
            let facts = traffic.next(clock::wall_ms(), &mut body);
            stage.ledger.publish(&facts, 0, body_hash(&body));
            stage.ledger.sent(&[facts.number], 0, Lateness::Own);
            if *intent.get_or_insert(facts.intent) == facts.intent {
                bodies.push(body);
            }
        }
        let line = TcpStream::connect(stage.receivers.doors.plain).await.unwrap();
        Self { stage, bodies, line }
    }

    /// Sends event `at` of the intent, and returns the status.
    async fn send(&mut self, at: usize, trick: Trick) -> u16 {
        let request = self.request(at, trick);
        self.line.write_all(&request).await.unwrap();
        let mut answer = vec![0; 1024];
        let read = self.line.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[9..read.max(12)])[..3].parse().unwrap()
    }

    fn request(&self, at: usize, trick: Trick) -> Vec<u8> {
        let right = &self.bodies[at];
        let id = String::from_utf8(right[7..33].to_vec()).unwrap();
        let body = trick.body.unwrap_or_else(|| right.clone());
        let secret = trick.secret.unwrap_or_else(|| self.stage.population.secret(0));
        let now = clock::wall_ms() / 1000;
        let standard = standard_signature(std::iter::once(&secret), &id, now, &body);
        let dojo = dojo_signature(&secret, &body);
        let head = format!(
            "POST /0 HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nwebhook-id: {}\r\nwebhook-timestamp: {now}\r\n\
             webhook-signature: {standard}\r\ndojo-signature: {dojo}\r\nherald-attempt: {}\r\nherald-sequence: {}\r\n\
             content-length: {}\r\n\r\n",
            trick.id.unwrap_or(id.clone()),
            trick.attempt.unwrap_or(1),
            Sequence(EntryId { ms: 100, seq: at as u64 }),
            body.len()
        );
        [head.as_bytes(), &body].concat()
    }

    fn broken(&self) -> Vec<String> {
        // The receivers have threads of their own: they soon note what they have answered.
        while !self.stage.ledger.is_quiet() {
            std::thread::yield_now();
        }
        let verdict = judge(&self.stage.ledger, &Evidence::default());
        let broken = verdict.promises.into_iter().filter(|promise| promise.broken > 0);
        broken.map(|promise| promise.name).collect()
    }
}

const HEALTHY: &str = r#"{ profile = "healthy" }"#;

#[tokio::test]
async fn an_honest_sender_is_not_accused() {
    let mut sender = Cheat::new(HEALTHY).await;
    assert_eq!(sender.send(0, Trick::default()).await, 200);
    assert_eq!(sender.send(1, Trick::default()).await, 200);
    assert_eq!(sender.broken(), Vec::<String>::new());
}

#[tokio::test]
async fn requests_that_come_before_the_answer_to_the_one_before_are_answered_in_turn() {
    let mut sender = Cheat::new(r#"{ profile = "slow", after = "50ms" }"#).await;
    let both = [sender.request(0, Trick::default()), sender.request(1, Trick::default())].concat();
    // The second request arrives in two parts, while the first one's answer is pending.
    let (part, rest) = both.split_at(both.len() - 100);
    sender.line.write_all(part).await.unwrap();
    sender.line.write_all(rest).await.unwrap();
    let mut answers = Vec::new();
    while String::from_utf8_lossy(&answers).matches("HTTP/1.1 200").count() < 2 {
        assert!(sender.line.read_buf(&mut answers).await.unwrap() > 0);
        assert!(!answers.windows(5).any(|five| five == b" 404 "), "an event that is not owed");
    }
    assert_eq!(sender.broken(), Vec::<String>::new());
}

#[tokio::test]
async fn a_sender_that_signs_with_another_secret_or_changes_a_byte_is_caught() {
    let mut sender = Cheat::new(HEALTHY).await;
    sender.send(0, Trick { secret: Some(SecretText::from_random([9; 32])), ..Trick::default() }).await;
    assert_eq!(sender.broken(), ["wrong_signature"]);
    let mut sender = Cheat::new(HEALTHY).await;
    let mut body = sender.bodies[0].clone();
    let last = body.len() - 3;
    body[last] ^= 1;
    // It signs what it sends: only a comparison with the producer's own bytes shows it.
    sender.send(0, Trick { body: Some(body), ..Trick::default() }).await;
    assert_eq!(sender.broken(), ["wrong_body"]);
}

#[tokio::test]
async fn a_sender_that_goes_out_of_order_is_caught() {
    let mut sender = Cheat::new(HEALTHY).await;
    sender.send(1, Trick::default()).await;
    sender.send(0, Trick::default()).await;
    assert_eq!(sender.broken(), ["out_of_order"]);
}

#[tokio::test]
async fn a_sender_that_repeats_itself_or_makes_something_up_is_caught() {
    let mut sender = Cheat::new(HEALTHY).await;
    sender.send(0, Trick::default()).await;
    sender.send(0, Trick { attempt: Some(2), ..Trick::default() }).await;
    assert_eq!(sender.broken(), ["duplicated"]);
    let mut sender = Cheat::new(HEALTHY).await;
    let stranger = br#"{"id":"evt_AAAAAAAAAAAAAAAAAAAAAA"}"#.to_vec();
    assert_eq!(sender.send(0, Trick { body: Some(stranger), ..Trick::default() }).await, 404);
    assert!(sender.broken().contains(&"unknown".to_owned()));
    let mut sender = Cheat::new(HEALTHY).await;
    sender.send(0, Trick { id: Some("evt_other".into()), ..Trick::default() }).await;
    assert!(sender.broken().contains(&"wrong_headers".to_owned()));
}

#[tokio::test]
async fn a_sender_that_does_not_wait_before_it_tries_again_is_caught() {
    let mut sender = Cheat::new(r#"{ profile = "failing" }"#).await;
    assert_eq!(sender.send(0, Trick::default()).await, 500);
    assert_eq!(sender.send(0, Trick { attempt: Some(2), ..Trick::default() }).await, 500);
    assert_eq!(sender.broken(), ["retried_early"]);
    let mut letter = Dead {
        event: String::from_utf8(sender.bodies[0][7..33].to_vec()).unwrap(),
        endpoint: sender.stage.population.endpoint_id(0),
        reason: DeadReason::Exhausted,
        died_at_ms: clock::wall_ms(),
    };
    // And gives up before its last attempt.
    let judged = |letter: &Dead| {
        let evidence = Evidence { dead: vec![letter.clone()], ..Evidence::default() };
        let verdict = judge(&sender.stage.ledger, &evidence);
        verdict.promises.iter().find(|promise| promise.name == "dead_unexpectedly").unwrap().broken
    };
    assert_eq!(judged(&letter), 1);
    letter.event = "evt_of_somebody_else".into();
    assert_eq!(judged(&letter), 0);
}

#[tokio::test]
async fn a_sender_that_follows_a_redirect_is_caught() {
    let mut sender = Cheat::new(r#"{ profile = "redirecting" }"#).await;
    assert_eq!(sender.send(0, Trick::default()).await, 302);
    sender.line.write_all(b"GET /away/0 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 64];
    assert!(sender.line.read(&mut answer).await.unwrap() > 0);
    assert_eq!(sender.broken(), ["redirect_followed"]);
}

/// The whole storm in small, by the program itself. How late the generator is, and whether anything was ever calm, says more about
/// the machine than about the service.
#[test]
fn payment_intents_keep_every_promise_while_everything_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    let faults =
        ["kill-service@1s/1s*4", "pause-service@1500ms:1s", "kill-worker@2s", "restart-redis@3s", "fill-redis@4s:1s"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command
        .args(["loadtest", "intents", "--for", "6s", "--rate", "50", "--plain", "--without-faults", "--json"])
        .arg(&path);
    command.args(faults.iter().flat_map(|fault| ["--fault", fault]));
    let ran = command.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let result = std::fs::read(&path).unwrap_or_else(|_| panic!("{said}{}", String::from_utf8_lossy(&ran.stderr)));
    let result: RunResult = serde_json::from_slice(&result).unwrap();
    assert_eq!((result.faults.len(), result.missed.len()), (8, 0), "{said}");
    for promise in
        result.promises.iter().filter(|promise| !["generator", "unanswered"].contains(&promise.name.as_str()))
    {
        assert!(promise.tried > 0 && promise.broken == 0, "{promise:?} in {said}");
    }
    let doubtful: u64 = result.requests.iter().map(|requests| requests.unknown + requests.unavailable).sum();
    assert!(doubtful > 0 && result.generator.sent_again > 0, "nobody noticed the faults: {said}");
}

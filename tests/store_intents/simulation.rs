//! The service itself on the model of its scripts, in virtual time, from a seed: processes that crash between a look and a commit,
//! calls and answers that are lost or late, commits that are carried out after their caller has gone, a full Redis, two schedulers,
//! and advances of the clock that die half-way. What every client was answered is then held against what is stored.
//!
//! The service draws its ids itself, so a seed repeats everything but them. `HERALD_SIM_SEEDS` sets how many seeds run and
//! `HERALD_SIM_SEED` which one alone. With `--nocapture` the tests end with one line of JSON each.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use herald::{
    facts::{
        event::PaymentStatus,
        id::{AccountId, IntentId},
    },
    intents::{
        decide::{Approval, Command, IssuerAnswer},
        details::Details,
        intent::{Card, Intent},
        money::{Currency, Money},
        service::{RequestKey, Service, ServiceError, Settings},
        stamp::{MINUTE, SECOND},
    },
    store::{
        error::StoreError,
        intents::{ClockChange, ClockState},
    },
};
use jiff::tz::TimeZone;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    checks,
    simulated::{Mutation, Simulated, Tally},
};

const START: i64 = 1_700_000_000_000_000;
const INTENTS: usize = 4;
const CLIENTS: usize = 3;
const REQUESTS: usize = 8;
const PROCESSES: usize = 2;

/// What the suite runs by default: a few seconds.
const SEEDS: u64 = 150;

/// A mutation that survives this many seeds is one that the simulator does not see.
const MUTATION_SEEDS: u64 = 300;

/// How long any client waits, in virtual time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client asked for, and what it knows of it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub intent: Option<IntentId>,
    pub what: What,
    pub outcome: Outcome,
    /// A try before the last may have been done.
    pub is_doubtful: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Create {
        reference: String,
    },
    Pay,
    /// The number makes its id.
    Capture {
        number: u32,
        amount: i64,
    },
    Refund {
        amount: i64,
    },
    SetAmount(i64),
    SendReceipt,
    Cancel,
    Reverse,
    Look,
    Advance {
        to: i64,
    },
}

#[derive(Clone)]
pub enum Outcome {
    /// With the intent as it was answered.
    Done(Option<Box<Intent>>),
    Refused,
    /// Nothing was changed, and the service said so.
    Untouched,
    Unknown,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done(_) => "done",
            Self::Refused => "refused",
            Self::Untouched => "untouched",
            Self::Unknown => "unknown",
        })
    }
}

/// One process: its scheduler and what it is asked.
struct Process {
    service: Service<Simulated>,
    tasks: JoinSet<()>,
}

impl Process {
    fn start(redis: &Simulated) -> Self {
        let service = Service::on(redis.clone(), Settings { retain: 0, zone: TimeZone::UTC });
        let mut tasks = JoinSet::new();
        let scheduler = service.clone();
        tasks.spawn(async move { scheduler.run_scheduler().await });
        Self { service, tasks }
    }
}

pub struct World {
    redis: Simulated,
    processes: Mutex<Vec<Process>>,
    pub asked: Mutex<Vec<Asked>>,
    /// What is wrong already with an answer.
    flaw: Mutex<Option<String>>,
}

type Answer = Result<Option<Box<Intent>>, ServiceError>;

impl World {
    /// None if the process ends first, or if it takes too long.
    async fn on<F>(&self, process: usize, what: impl FnOnce(Service<Simulated>) -> F) -> Option<Answer>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        {
            let mut processes = self.processes.lock().unwrap();
            let process = &mut processes[process % PROCESSES];
            let asking = what(process.service.clone());
            process.tasks.spawn(async move { drop(tell.send(asking.await)) });
        }
        timeout(PATIENCE, told).await.ok()?.ok()
    }

    fn crash(&self, process: usize) {
        let mut processes = self.processes.lock().unwrap();
        processes[process] = Process::start(&self.redis);
        self.redis.crashed();
    }

    /// With a key again and again until it is known.
    async fn insist<F>(
        &self,
        rng: &mut StdRng,
        has_key: bool,
        what: impl Fn(Service<Simulated>) -> F,
    ) -> (Outcome, bool)
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut is_doubtful = false;
        loop {
            let outcome = match self.on(rng.random_range(0..PROCESSES), &what).await {
                Some(Ok(intent)) => Outcome::Done(intent),
                Some(Err(ServiceError::Busy | ServiceError::Store(StoreError::OutOfMemory { .. }))) => {
                    Outcome::Untouched
                }
                None | Some(Err(ServiceError::Store(StoreError::Unavailable { .. }))) => Outcome::Unknown,
                Some(Err(ServiceError::NotFound | ServiceError::Refused(_))) => Outcome::Refused,
                Some(Err(error)) => panic!("the service fails: {error}"),
            };
            let is_final = matches!(outcome, Outcome::Done(_) | Outcome::Refused);
            if is_final || !has_key {
                return (outcome, is_doubtful);
            }
            is_doubtful |= matches!(outcome, Outcome::Unknown);
            sleep(Duration::from_millis(rng.random_range(50..500))).await;
        }
    }

    async fn create(&self, rng: &mut StdRng, number: u32) -> Option<IntentId> {
        let reference = format!("order-{number}");
        let hold = rng.random_bool(0.8);
        let mut details = json!({
            "amount": { "value": 1000, "currencyCode": "GBP" }, "reference": reference, "captureMode": "Manual",
            "config": { "payment": { "customAmountAllowed": true } },
        });
        if hold {
            details["autoExpireIn"] = "00:01:00".into();
            details["autoExpireAction"] = if rng.random_bool(0.5) { "Capture" } else { "Release" }.into();
        }
        let details: Details = serde_json::from_value(details).unwrap();
        let key = RequestKey::new("create acc_a", &format!("key-{number}"), &json!(reference));
        let (outcome, is_doubtful) = self
            .insist(rng, true, |service| {
                let (details, key) = (details.clone(), key.clone());
                async move { Ok(Some(Box::new(service.create(&account(), details, Some(&key)).await?))) }
            })
            .await;
        let intent = match &outcome {
            Outcome::Done(Some(intent)) => Some(intent.id.clone()),
            _ => None,
        };
        let what = What::Create { reference };
        self.note(Asked { intent: intent.clone(), what, outcome, is_doubtful });
        intent
    }

    async fn request(&self, rng: &mut StdRng, id: &IntentId, number: u32) {
        let what = draw(rng, number);
        let has_key = match what {
            What::Refund { .. } => true,
            What::Capture { .. } => rng.random_bool(0.5),
            _ => false,
        };
        let key = has_key.then_some(number);
        let (outcome, is_doubtful) = self
            .insist(rng, has_key, |service| {
                let (id, command) = (id.clone(), command(&what, key));
                async move {
                    let intent = match command {
                        Some(command) => service.change(&account(), &id, &command, None).await?,
                        None => service.get(&account(), &id).await?,
                    };
                    Ok(Some(Box::new(intent)))
                }
            })
            .await;
        self.note(Asked { intent: Some(id.clone()), what, outcome, is_doubtful });
    }

    /// Moves the clock so far that holds end, or to the moments before one ends, while others are at work.
    async fn advance(&self, rng: &mut StdRng) {
        let (now, _, next, _) = self.redis.redis().now().due();
        let before = next.map(|next| next - rng.random_range(0..30_000)).filter(|before| *before > now);
        let to = before.filter(|_| rng.random_bool(0.5)).unwrap_or(now + rng.random_range(5..40) * SECOND);
        let reached = Arc::new(Mutex::new(None));
        let (outcome, is_doubtful) = self
            .insist(rng, false, |service| {
                let reached = Arc::clone(&reached);
                async move {
                    let state = service.advance(ClockChange::To(to)).await?;
                    *reached.lock().unwrap() = Some(state);
                    Ok(None)
                }
            })
            .await;
        if let (Outcome::Done(_), Some(ClockState::On { now })) = (&outcome, *reached.lock().unwrap())
            && now < to
        {
            *self.flaw.lock().unwrap() = Some(format!("an advance to {to} is answered at {now}"));
        }
        self.note(Asked { intent: None, what: What::Advance { to }, outcome, is_doubtful });
    }

    fn note(&self, asked: Asked) {
        self.asked.lock().unwrap().push(asked);
    }
}

pub fn account() -> AccountId {
    AccountId::new("acc_a").unwrap()
}

fn draw(rng: &mut StdRng, number: u32) -> What {
    match rng.random_range(0..100) {
        0..25 => What::Pay,
        25..60 => What::Capture { number, amount: *[50, 100, 200].choose(rng).unwrap() },
        60..75 => What::Refund { amount: rng.random_range(10..60) },
        75..83 => What::SetAmount(900 + i64::from(number % 40)),
        83..88 => What::SendReceipt,
        88..90 => What::Cancel,
        90..92 => What::Reverse,
        _ => What::Look,
    }
}

/// None for a look.
fn command(what: &What, key: Option<u32>) -> Option<Command> {
    let kept = |key: u32, of: &str| RequestKey::new(of, &format!("key-{key}"), &json!(key)).kept();
    Some(match what {
        What::Pay => {
            let approval = Approval { transaction: "tx".to_owned(), auth_code: "1".to_owned() };
            let card = Card { masked: "52000000****0056".to_owned(), scheme: "MASTERCARD".to_owned() };
            Command::pay(card, IssuerAnswer::Approved(approval))
        }
        What::Capture { number, amount } => Command::Capture {
            id: format!("cp_{number}"),
            amount: *amount,
            tips: None,
            key: key.map(|key| kept(key, "capture")),
        },
        What::Refund { amount } => Command::Refund {
            amount: *amount,
            reason: None,
            notes: None,
            key: kept(key.expect("a refund has a key"), "refund"),
        },
        What::SetAmount(value) => Command::SetAmount {
            amount: Money { value: *value, currency_code: Currency::Gbp },
            item_lines: None,
            tax_lines: None,
            secret: String::new(),
        },
        What::SendReceipt => Command::SendReceipt,
        What::Cancel => Command::Cancel,
        What::Reverse => Command::Reverse { id: "rvs_1".to_owned(), zone: TimeZone::UTC, key: None },
        What::Look => return None,
        What::Create { .. } | What::Advance { .. } => unreachable!("they are no commands"),
    })
}

/// What a seed tried.
#[derive(Debug, Default)]
struct Tried {
    crashes: u64,
    advances: u64,
    requests: u64,
    unknown: u64,
    fired: u64,
    calls: Tally,
}

/// One life of a few intents; an error says which rule is broken.
async fn live(seed: u64, mutation: Option<Mutation>) -> Result<Tried, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let redis = Simulated::new(rng.random(), START, mutation);
    let processes = (0..PROCESSES).map(|_| Process::start(&redis)).collect();
    let world = World {
        redis: redis.clone(),
        processes: Mutex::new(processes),
        asked: Mutex::default(),
        flaw: Mutex::default(),
    };
    let mut tried = Tried::default();
    let mut ids = Vec::new();
    for number in 0..INTENTS as u32 {
        ids.extend(world.create(&mut rng, number).await);
    }
    let clients = (0..CLIENTS).flat_map(|client| ids.iter().enumerate().map(move |(at, id)| (client, at, id)));
    let clients = clients.map(|(client, at, id)| {
        let (mut rng, world) = (StdRng::seed_from_u64(rng.random()), &world);
        async move {
            for request in 0..REQUESTS {
                sleep(Duration::from_millis(rng.random_range(0..400))).await;
                let number = 100 + ((client * INTENTS + at) * REQUESTS + request) as u32;
                world.request(&mut rng, id, number).await;
            }
        }
    });
    let clients: Vec<_> = clients.collect();
    let mut moving = StdRng::seed_from_u64(rng.random());
    let advancing = async {
        for _ in 0..3 {
            sleep(Duration::from_millis(moving.random_range(200..1_500))).await;
            world.advance(&mut moving).await;
        }
    };
    let crashes = rng.random_range(2..8);
    let crashing = async {
        for _ in 0..crashes {
            sleep(Duration::from_millis(rng.random_range(50..800))).await;
            world.crash(rng.random_range(0..PROCESSES));
        }
    };
    tokio::join!(join_all(clients), advancing, crashing);
    quiet(&world).await?;
    if let Some(flaw) = world.flaw.lock().unwrap().take() {
        return Err(flaw);
    }
    let asked = world.asked.lock().unwrap().clone();
    tried.crashes = crashes;
    tried.advances = asked.iter().filter(|asked| matches!(asked.what, What::Advance { .. })).count() as u64;
    tried.requests = asked.len() as u64;
    tried.unknown = asked.iter().filter(|asked| matches!(asked.outcome, Outcome::Unknown)).count() as u64;
    let redis = redis.redis();
    tried.calls = redis.tally.clone();
    let stored = redis.model.all().map(|(id, known)| {
        let stored = known.stored();
        let read = Intent::from_record(id.clone(), stored);
        read.map_err(|error| format!("{id}: {error}"))
    });
    let stored = stored.collect::<Result<Vec<_>, _>>()?;
    tried.fired = stored.iter().filter(|intent| is_fired(intent)).count() as u64;
    checks::check(&asked, &stored, redis.model.told())?;
    Ok(tried)
}

/// Its hold has come to its end.
fn is_fired(intent: &Intent) -> bool {
    let is_released = intent.status == PaymentStatus::Reversed && intent.reversal.is_none();
    is_released || intent.captures.iter().any(|capture| capture.id.ends_with("-hold"))
}

/// Nothing is broken any more: what was begun is finished, and what is due has happened.
async fn quiet(world: &World) -> Result<(), String> {
    world.redis.redis().is_disturbed = false;
    let began = Instant::now();
    loop {
        sleep(Duration::from_secs(3)).await;
        let mut redis = world.redis.redis();
        let model = redis.now();
        let now = model.due().0;
        let late = model.all().filter(|(_, known)| known.due().is_some_and(|due| due + 3 * SECOND < now)).count();
        let target = model.target();
        if late == 0 && target.is_none() {
            return Ok(());
        }
        if began.elapsed() > Duration::from_micros(5 * MINUTE as u64) {
            return Err(format!(
                "{late} deadlines have passed and nobody fires them, and an advance leads to {target:?}"
            ));
        }
    }
}

fn run(seed: u64, mutation: Option<Mutation>) -> Result<Tried, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(live(seed, mutation))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text:?}")))
}

#[test]
fn what_was_answered_is_stored_and_told_in_every_seed() {
    let first = number("HERALD_SIM_SEED");
    let seeds = number("HERALD_SIM_SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let first = first.unwrap_or(1);
    let mut sum = Tried::default();
    for seed in first..first + seeds {
        let tried = run(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        sum.crashes += tried.crashes;
        sum.advances += tried.advances;
        sum.requests += tried.requests;
        sum.unknown += tried.unknown;
        sum.fired += tried.fired;
        sum.calls.calls_lost += tried.calls.calls_lost;
        sum.calls.answers_lost += tried.calls.answers_lost;
        sum.calls.done_later += tried.calls.done_later;
        sum.calls.refused += tried.calls.refused;
    }
    let Tried { crashes, advances, requests, unknown, fired, calls } = sum;
    let Tally { calls_lost, answers_lost, done_later, refused } = calls;
    println!(
        r#"{{"intents":{{"first_seed":{first},"seeds":{seeds},"requests":{requests},"unknown":{unknown},"crashes":{crashes},"advances":{advances},"fired":{fired},"calls_lost":{calls_lost},"answers_lost":{answers_lost},"done_later":{done_later},"refused":{refused}}}}}"#
    );
    if seeds >= SEEDS {
        for tried in [crashes, advances, unknown, fired, calls_lost, answers_lost, done_later, refused] {
            assert!(tried > 0, "something was never tried");
        }
    }
}

#[test]
fn every_way_to_do_it_wrong_is_noticed() {
    let mut survivors = Vec::new();
    for mutation in Mutation::ALL {
        let found = (1..=MUTATION_SEEDS).find_map(|seed| Some((seed, run(seed, Some(mutation)).err()?)));
        match found {
            Some((seed, why)) => println!("{mutation:?}: noticed by seed {seed} ({why})"),
            None => survivors.push(mutation),
        }
    }
    let (tried, caught) = (Mutation::ALL.len(), Mutation::ALL.len() - survivors.len());
    println!(r#"{{"intents_mutations":{{"tried":{tried},"caught":{caught}}}}}"#);
    assert!(survivors.is_empty(), "not noticed within {MUTATION_SEEDS} seeds: {survivors:?}");
}

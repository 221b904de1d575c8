//! A stream that was worked on is split into parts while events come: what was unfinished goes along, whoever dies meanwhile.

use std::{
    process::{Command, Output},
    time::Duration,
};

use herald::{
    facts::{id::AccountId, partition::Split},
    store::{connection::Purpose, keys::PartitionKeys, protocol::Asked, requests::Requests},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    merchants::Reply,
    process::{Herald, Setup},
    support::{SAFETY, until},
    world::{Event, PREFIX, STREAM, World, lives, mark, publish},
};

const PARTS: u32 = 8;
const ACCOUNTS: usize = 24;

/// These are paused while the stream is split.
const PAUSED: [usize; 3] = [0, 1, 2];
/// These refuse each event twice.
const FAILING: [usize; 3] = [3, 4, 5];
/// These refuse whatever comes, so that it dies.
const DEAD: [usize; 2] = [6, 7];

fn setup(world: &World) -> Setup {
    world.setup().env("HERALD_RETRY_MAX_ATTEMPTS", "3").env("HERALD_LOG", "herald=info")
}

async fn town() -> (World, Vec<String>) {
    let world = World::new().await;
    let accounts = world.register_many(ACCOUNTS).await;
    for n in FAILING {
        world.merchants.rule(
            &format!("ep_{n}"),
            |arrival| {
                if arrival.attempt <= 2 { Reply::status(500) } else { Reply::OK }
            },
        );
    }
    for n in DEAD {
        world.merchants.rule(&format!("ep_{n}"), |_| Reply::status(500));
    }
    for n in PAUSED {
        world.pause(&format!("ep_{n}")).await;
    }
    (world, accounts)
}

fn herald(world: &World, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.args(words).env_clear().env("PATH", "/usr/bin:/bin").env("HERALD_REDIS_URL", world.redis.url());
    command.env("HERALD_HISTORY_URL", "");
    // The merchants of this process go on meanwhile.
    tokio::task::block_in_place(|| command.output().expect("herald runs"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn done(world: &World, words: &[&str]) -> String {
    let output = herald(world, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    text(&output)
}

async fn mode(world: &World, stream: &str) -> String {
    let mode: Option<String> = world.redis.command(&["GET", &format!("herald:{{{stream}}}:mode")]).await;
    mode.and_then(|mode| mode.split(' ').next().map(str::to_owned)).unwrap_or_default()
}

async fn beside(world: &World, events: &[Event]) -> tokio::task::JoinHandle<()> {
    let (mut connection, events) = (world.redis.connection().await, events.to_vec());
    tokio::spawn(async move {
        for chunk in events.chunks(20) {
            publish(&mut connection, chunk).await;
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    })
}

fn number_of(event: &Event) -> usize {
    event.account.trim_start_matches("acc_").parse().unwrap()
}

/// How many keys that exist only while something is unfinished are left in the stream and in its parts.
async fn unfinished_keys(world: &World) -> Vec<String> {
    let transient = ["delivery:", "due", "claimed", "singles:", "heads:", "held:", "backlog:", "unfinished", "bytes"];
    let all = world.keys("herald:[{]payment-intents*").await;
    let name = |key: &String| key.split_once("}:").map(|(_, name)| name.to_owned()).unwrap_or_default();
    all.into_iter().filter(|key| transient.iter().any(|part| name(key).starts_with(part))).collect()
}

async fn dead_in(world: &World, stream: &str) -> u64 {
    world.number(&["ZCARD", &format!("herald:{{{stream}}}:dead")]).await
}

/// All merchants take everything again: each event is delivered in order, or a letter that can be redelivered.
async fn everything_comes(world: &World, events: &[Event], letters: u64) {
    DEAD.iter().for_each(|n| world.merchants.heal(&format!("ep_{n}")));
    for n in PAUSED {
        world.resume(&format!("ep_{n}")).await;
    }
    let part_of = |n: usize| {
        let account = AccountId::new(&format!("acc_{n}")).unwrap();
        Split::new(STREAM, &[PARTS]).unwrap().stream_of(&account)
    };
    until("each event delivered or a letter", async || {
        let mut dead = 0;
        for n in DEAD {
            dead += world.number(&["ZCARD", &format!("herald:{{{}}}:dead:ep_{n}", part_of(n))]).await as usize;
        }
        world.merchants.delivered() + dead == events.len() && unfinished_keys(world).await.is_empty()
    })
    .await;
    assert!(world.merchants.delivered() + letters as usize <= events.len(), "no letter was redelivered by itself");
    assert_eq!(dead_in(world, STREAM).await, 0);
    for n in DEAD {
        let (part, endpoint) = (part_of(n), format!("ep_{n}"));
        let words =
            ["--stream", &part, "dead-letter", "redeliver", "--endpoint", &endpoint, "--yes", "--reason", "healed"];
        done(world, &words);
    }
    world.merchants.until_delivered(events.len()).await;
    world.merchants.assert_sound();
    until("nothing unfinished", async || unfinished_keys(world).await.is_empty()).await;
    let letters = world.keys("herald:[{]payment-intents*[}]:dead*").await;
    assert!(letters.iter().all(|key| key.ends_with("dead-mark")), "{letters:?}");
}

/// Kills the owner again and again until the stream is split.
async fn split_with_deaths(seed: u64) {
    let (world, accounts) = town().await;
    let setup = setup(&world);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut owner: Herald = setup.start();
    owner.until_owner().await;
    let events = lives(seed, &accounts, 24_000);
    let (before, beside_it) = events.split_at(20_000);
    world.publish(before).await;
    world.merchants.until_delivered(4_000).await;
    until("some letters", async || dead_in(&world, STREAM).await > 10).await;
    let letters = dead_in(&world, STREAM).await;
    let publishing = beside(&world, beside_it).await;
    done(&world, &["repartition", "--into", &PARTS.to_string(), "--no-wait", "--yes", "--reason", "more workers"]);
    let mut deaths = 0;
    let mut seen = std::collections::BTreeSet::new();
    while mode(&world, STREAM).await != "routed" && deaths < 12 {
        seen.insert(mode(&world, STREAM).await);
        // Of one that has not begun nothing would be left to go on with.
        if mode(&world, STREAM).await == "splitting" {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..60))).await;
            owner.kill9();
            deaths += 1;
            owner = setup.start();
            owner.until_owner().await;
            continue;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until("a stream that is routed", async || mode(&world, STREAM).await == "routed").await;
    // And while the parts are opened.
    owner.kill9();
    owner = setup.start();
    println!("seed {seed}: {deaths} deaths, {seen:?}");
    assert!(deaths > 0, "nobody died while it was split");
    owner.until_metric("herald_partition_owned", |owned| owned > f64::from(PARTS)).await;
    publishing.await.unwrap();
    everything_comes(&world, &events, letters).await;
    assert!(owner.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_that_die_while_a_stream_is_split_lose_and_reorder_nothing() {
    for seed in [31, 32, 33] {
        split_with_deaths(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_and_one_of_its_parts_are_split_under_load_and_nothing_comes_twice() {
    let (world, accounts) = town().await;
    let owner = setup(&world).start();
    owner.until_owner().await;
    let events = lives(30, &accounts, 9_000);
    world.publish(&events[..3_000]).await;
    world.merchants.until_delivered(1_500).await;
    let publishing = beside(&world, &events[3_000..7_000]).await;
    let refused = herald(&world, &["repartition", "--into", "1", "--yes", "--reason", "x"]);
    assert!(refused.status.code() == Some(2), "{}", text(&refused));
    let dry = done(&world, &["repartition", "--into", "8", "--dry-run"]);
    assert!(dry.contains("dry run: this would split payment-intents into 8 parts for good"), "{dry}");
    assert_eq!(mode(&world, STREAM).await, "");
    let told = done(&world, &["repartition", "--into", "8", "--yes", "--reason", "more workers"]);
    assert!(told.contains("payment-intents is split into 8 parts"), "{told}");
    let again = done(&world, &["repartition", "--into", "8", "--yes", "--reason", "more workers"]);
    assert!(again.contains("already: nothing to do"), "{again}");
    let other = herald(&world, &["repartition", "--into", "16", "--yes", "--reason", "more workers"]);
    assert!(!other.status.success() && text(&other).contains("repartition --stream payment-intents:0"), "{other:?}");
    owner.until_metric("herald_partition_owned", |owned| owned > f64::from(PARTS)).await;
    // What it has of paused receivers and letters goes one level further.
    let account = AccountId::new("acc_0").unwrap();
    let part = Split::new(STREAM, &[PARTS]).unwrap().stream_of(&account);
    let told = done(&world, &["--stream", &part, "repartition", "--into", "2", "--yes", "--reason", "hot"]);
    assert!(told.contains(&format!("{part} is split into 2 parts")), "{told}");
    let too_many =
        herald(&world, &["--stream", "payment-intents:7", "repartition", "--into", "256", "--yes", "--reason", "x"]);
    let is_it = part == "payment-intents:7";
    assert!(is_it || text(&too_many).contains("it can have at most 128 parts"), "{}", text(&too_many));
    publishing.await.unwrap();
    world.publish(&events[7_000..]).await;
    for n in PAUSED {
        world.resume(&format!("ep_{n}")).await;
    }
    let dying = events.iter().filter(|event| DEAD.contains(&number_of(event))).count();
    world.merchants.until_delivered(events.len() - dying).await;
    DEAD.iter().for_each(|n| world.merchants.heal(&format!("ep_{n}")));
    until("nothing unfinished", async || unfinished_keys(&world).await.is_empty()).await;
    world.merchants.assert_sound();
    {
        let log = world.merchants.log();
        let mut taken = std::collections::BTreeMap::<(&str, &str), usize>::new();
        for arrival in log.arrivals.iter().filter(|arrival| arrival.answered == Some(200)) {
            *taken.entry((&arrival.endpoint, &arrival.event)).or_default() += 1;
        }
        let twice: Vec<_> = taken.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{} came twice: {:?}", twice.len(), &twice[..twice.len().min(5)]);
    }
    assert!(owner.stop().await.success());
}

/// How an owner answers.
async fn answer(world: &World, stream: &str, asked: Asked) -> String {
    let connection = world.redis.redis().connect(Purpose::Wakeup).await.unwrap();
    let inbox = Requests::new(connection, PartitionKeys::new(stream).unwrap());
    let request = inbox.ask(&asked, &mark()).await.unwrap();
    inbox.await_answer(request, SAFETY).await.unwrap().expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_quarantine_of_a_stream_that_is_split_has_goes_to_its_part_or_for_good() {
    let (world, accounts) = (World::new().await, ACCOUNTS);
    let accounts = world.register_many(accounts).await;
    // To this Herald some events are none.
    let strict = setup(&world).env("HERALD_EVENTS_STRICT", "true").start();
    strict.until_owner().await;
    let odd = [5, 6, 7, 8].map(|n| Event::new(9_000_000 + n, &accounts[n], &format!("pi_{n}"), "Woven"));
    for (n, event) in odd.iter().enumerate() {
        world.publish_as(&format!("{}-1", n + 1), event).await;
    }
    let quarantine = format!("{PREFIX}quarantine");
    world.until_key("quarantined", &["XLEN", &quarantine], |length| length == 4).await;
    let events = lives(41, &accounts, 2_500);
    let (before, beside_it) = events.split_at(500);
    world.publish(before).await;
    world.merchants.until_delivered(before.len()).await;
    done(&world, &["repartition", "--into", &PARTS.to_string(), "--yes", "--reason", "more workers"]);
    assert!(strict.stop().await.success());

    let owner = setup(&world).start();
    owner.until_metric("herald_partition_owned", |owned| owned > f64::from(PARTS)).await;
    let gone = done(&world, &["quarantine", "discard", "4-1", "--yes", "--reason", "a test"]);
    assert!(gone.contains("4-1 discarded"), "{gone}");
    let back = done(&world, &["quarantine", "requeue", "1-1", "--yes", "--reason", "it is one"]);
    assert!(back.contains("1-1 requeued"), "{back}");
    world.merchants.until_delivered(before.len() + 1).await;
    // Beside all that is passed on meanwhile, and whoever owns the stream then.
    let publishing = beside(&world, beside_it).await;
    let all = done(&world, &["quarantine", "requeue", "--all", "--yes", "--reason", "they are"]);
    assert!(all.contains("2 of 2 requeued"), "{all}");
    owner.kill9();
    let owner = setup(&world).start();
    owner.until_metric("herald_partition_owned", |owned| owned > f64::from(PARTS)).await;
    publishing.await.unwrap();
    world.merchants.until_delivered(events.len() + 3).await;
    {
        let log = world.merchants.log();
        for (n, event) in odd.iter().enumerate() {
            let of_it =
                |endpoint: &str| log.arrivals.iter().filter(|a| a.event == event.id && a.endpoint == endpoint).count();
            let came = (0..ACCOUNTS).map(|at| of_it(&format!("ep_{at}"))).sum::<usize>();
            let place = log.arrivals.iter().find(|arrival| arrival.event == event.id).map(|arrival| arrival.sequence);
            let own = of_it(&event.account.replace("acc_", "ep_"));
            match n {
                3 => assert_eq!((came, place), (0, None)),
                _ => {
                    assert!(own == came && came > 0, "{} came {came} times, {own} to its own", event.id);
                    assert_eq!(place.unwrap().to_string(), format!("{}-1", n + 1), "the place that it had");
                }
            }
        }
    }
    assert_eq!(world.number(&["XLEN", &quarantine]).await, 0);

    // What is not there any more is refused, and at once.
    let letter = "1-1:ep_5".parse().unwrap();
    let told = answer(&world, STREAM, Asked::Redeliver(letter)).await;
    assert!(told.contains("is split into 8 parts"), "{told}");
    assert_eq!(answer(&world, STREAM, Asked::Repartition(PARTS)).await, "ok");
    let told = answer(&world, STREAM, Asked::Repartition(16)).await;
    assert!(told.contains("it is split into 8 parts, and stays so"), "{told}");
    assert!(answer(&world, STREAM, Asked::Requeue("1-1".parse().unwrap())).await.contains("no such"), "{told}");
    let bound: String = world.redis.command(&["GET", &format!("{PREFIX}registry-id")]).await;
    assert_eq!(answer(&world, STREAM, Asked::AcceptRegistry(bound)).await, "ok");
    assert!(world.number(&["XLEN", &format!("{PREFIX}inbox")]).await == 0 && owner.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_that_waits_for_replicas_can_be_taken_back_and_asked_for_again() {
    let world = World::new().await;
    let accounts = world.register_many(ACCOUNTS).await;
    let gates = async || world.keys("herald:[{]payment-intents:*[}]:gate").await;
    // There is none to confirm it.
    let waiting = setup(&world).env("HERALD_REDIS_WAIT", "1").env("HERALD_REDIS_WAIT_TIMEOUT", "100ms").start();
    waiting.until_owner().await;
    let events = lives(43, &accounts, 600);
    world.publish(&events[..300]).await;
    world.merchants.until_delivered(300).await;
    let parts = PARTS.to_string();
    done(&world, &["repartition", "--into", &parts, "--no-wait", "--yes", "--reason", "more workers"]);
    until("a stream that waits to be split", async || mode(&world, STREAM).await == "splitting").await;
    world.publish(&events[300..400]).await;
    let told = done(&world, &["repartition", "--cancel", "--yes", "--reason", "not now"]);
    assert!(told.contains("payment-intents stays in one piece"), "{told}");
    assert_eq!((mode(&world, STREAM).await, gates().await), (String::new(), Vec::new()));
    world.merchants.until_delivered(400).await;
    assert!(waiting.stop().await.success());

    let owner = setup(&world).start();
    owner.until_owner().await;
    done(&world, &["repartition", "--into", &parts, "--yes", "--reason", "now"]);
    let late = herald(&world, &["repartition", "--cancel", "--yes", "--reason", "too late"]);
    assert!(late.status.code() == Some(4) && text(&late).contains("is split into 8 parts, and stays so"), "{late:?}");
    let told = answer(&world, STREAM, Asked::CancelRepartition).await;
    assert!(told.contains("it is split into 8 parts, and stays so"), "{told}");
    world.publish(&events[400..]).await;
    world.merchants.until_delivered(events.len()).await;
    world.merchants.assert_sound();
    assert!(gates().await.is_empty() && owner.stop().await.success());
}

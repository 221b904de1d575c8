//! One endpoint in trouble among healthy ones, and what waits for it: apart, bounded, and in order.

use std::time::{Duration, Instant};

use herald::facts::endpoint::Ordering;

use crate::{
    merchants::{Arrival, Log, Merchants, Reply},
    support::until,
    world::{Event, PREFIX, World, lives, mark, publish, secret},
};

/// Events of one intent, numbered from `first`.
fn life_of(first: usize, count: usize, account: &str, intent: &str) -> Vec<Event> {
    (first..first + count).map(|number| Event::new(number, account, intent, "Captured")).collect()
}

fn others(first: usize, count: usize, account: &str) -> Vec<Event> {
    (first..first + count).map(|n| Event::new(n, account, &format!("pi_other_{n}"), "Created")).collect()
}

fn events_at(log: &Log, endpoint: &str, intent: &str) -> Vec<(String, u32)> {
    let of_intent = log.of(endpoint).filter(|arrival| arrival.intent == intent);
    of_intent.map(|arrival| (arrival.event.clone(), arrival.attempt)).collect()
}

/// Longer than any test: waiting for one of these attempts to end is waiting in vain.
const NEVER: &str = "120s";

/// Endpoints that answer at once, one for each account; returns the accounts.
async fn healthy(world: &World, count: usize) -> Vec<String> {
    let mut registry = world.registry().await;
    let mut accounts = Vec::new();
    for n in 0..count {
        let account = format!("acc_good_{n}");
        registry.create(world.endpoint(&format!("ep_good_{n}"), &account), &mark()).await.unwrap();
        accounts.push(account);
    }
    accounts
}

fn for_healthy(first: usize, count: usize, accounts: &[String]) -> Vec<Event> {
    let event = |n: usize| Event::new(first + n, &accounts[n % accounts.len()], &format!("pi_{first}_{n}"), "Created");
    (0..count).map(event).collect()
}

/// Endpoints of one account on another machine, which has a share of its own: `PREFIX_N`.
async fn elsewhere(world: &World, prefix: &str, count: usize) -> Merchants {
    let merchants = Merchants::start(secret().reveal()).await;
    let mut registry = world.registry().await;
    for n in 0..count {
        let mut endpoint = world.endpoint(&format!("{prefix}_{n}"), "acc_elsewhere");
        endpoint.url = merchants.url(endpoint.id.as_str());
        registry.create(endpoint, &mark()).await.unwrap();
    }
    merchants
}

/// How many attempts there were. Nobody had to wait for one of them to end: none has ended.
fn all_open(hanging: &Merchants) -> usize {
    let (asked, open) = hanging.log().asked_and_open();
    assert_eq!(open, asked, "attempts that hang have ended before the healthy ones had theirs");
    asked
}

const MIB: u64 = 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_endpoint_costs_ninety_nine_healthy_ones_nothing() {
    let world = World::new().await;
    let accounts = healthy(&world, 99).await;
    let hanging = elsewhere(&world, "ep_bad", 1).await;
    hanging.rule("ep_bad_0", |_| Reply::HANGS);
    let herald = world.setup().env("HERALD_ATTEMPT_TIMEOUT", NEVER).env("HERALD_LOG", "warn").start();
    herald.until_owner().await;
    // The hanging one has more events to come than any other, and all of them come first.
    world.publish(&others(0, 2_000, "acc_elsewhere")).await;
    world.publish(&for_healthy(1_000_000, 3_000, &accounts)).await;
    world.merchants.until_delivered(3_000).await;
    let asked = all_open(&hanging);
    assert!((1..=10).contains(&asked), "{asked} in flight at one endpoint");
    hanging.heal("ep_bad_0");
    world.until_finished().await;
    world.merchants.assert_sound();
    hanging.assert_sound();
    assert_eq!(hanging.delivered(), 2_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_endpoint_gets_everything_in_order_when_it_recovers() {
    let world = World::new().await;
    let accounts = world.register_many(100).await;
    world.merchants.rule("ep_0", |_| Reply::HANGS);
    let herald = world.setup().env("HERALD_ATTEMPT_TIMEOUT", "2s").env("HERALD_LOG", "warn").start();
    // The hanging one has more events to come than any other.
    let burden = lives(30, &accounts[..1], 2_000);
    let heavy =
        |(n, event): (usize, &Event)| Event::new(5_000_000 + n, "acc_0", &format!("{}_b", event.intent), "Captured");
    let burden: Vec<Event> = burden.iter().enumerate().map(heavy).collect();
    herald.until_owner().await;
    let before = herald.resident();
    world.publish(&burden).await;
    let events = lives(31, &accounts, 3_000);
    world.publish(&events).await;
    let of_hanging = events.iter().filter(|event| event.account == "acc_0").count();
    world
        .merchants
        .until("the healthy endpoints", |log| {
            log.delivered.iter().filter(|(to, _)| to != "ep_0").count() >= events.len() - of_hanging
        })
        .await;
    // What it is owed is in Redis: held, in its backlog or due.
    let unfinished = ["HGET", &format!("{PREFIX}unfinished"), "ep_0"];
    until("its records", async || world.redis.command::<Option<u64>>(&unfinished).await >= Some(2_000)).await;
    herald.until_metric("herald_deliveries_waiting{state=\"parked\"}", |parked| parked > 500.0).await;
    assert!(herald.metric("herald_attempts_in_flight") <= 10.0);
    println!("resident: {} KiB before, {} KiB after", before / 1024, herald.resident() / 1024);
    assert!(herald.resident() < before + 60 * MIB);
    world.merchants.heal("ep_0");
    world.until_finished().await;
    world.merchants.assert_sound();
    assert_eq!(world.merchants.log().delivered_to("ep_0"), 2_000 + of_hanging);
}

/// However many hang, and whoever they belong to: they have their shares, and nobody else waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seven_hundred_endpoints_that_hang_cost_the_others_nothing() {
    const BAD: usize = 700;
    /// An account's quarter of the 2 048 seats, exceeded by a quarter.
    const SHARE: usize = 640;
    let world = World::new().await;
    let accounts = healthy(&world, 20).await;
    let hanging = elsewhere(&world, "ep_bad", BAD).await;
    (0..BAD).for_each(|n| hanging.rule(&format!("ep_bad_{n}"), |_| Reply::HANGS));
    let herald = world.setup().env("HERALD_ATTEMPT_TIMEOUT", NEVER).env("HERALD_LOG", "error").start();
    herald.until_owner().await;
    let before = herald.resident();
    // Each event is owed to all 700.
    world.publish(&others(0, 20, "acc_elsewhere")).await;
    hanging.until("as many as may", |log| log.asked_and_open().0 >= SHARE).await;
    // The healthy ones are just as new, and have had nothing yet.
    world.publish(&for_healthy(1_000_000, 2_000, &accounts)).await;
    world.merchants.until_delivered(2_000).await;
    assert_eq!(all_open(&hanging), SHARE);
    let grown = herald.resident().saturating_sub(before);
    println!("{SHARE} that hang: {} MiB more", grown / MIB);
    assert!(grown < 60 * MIB, "{} MiB more", grown / MIB);
}

/// An account with many endpoints takes turns with the others: events of it that cannot be admitted wait in the stream,
/// and others overtake them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_with_two_thousand_endpoints_costs_the_others_nothing() {
    const MANY: usize = 2_000;
    const EVENTS: usize = 10;
    let world = World::new().await;
    let accounts = healthy(&world, 20).await;
    let many = elsewhere(&world, "ep_many", MANY).await;
    let herald = world.setup().env("HERALD_LOG", "error").start();
    herald.until_owner().await;
    let before = herald.resident();
    // All at once, so that only Herald decides who is first: the many endpoints' events come first in the stream.
    let mut events = others(0, EVENTS, "acc_elsewhere");
    events.extend(for_healthy(1_000_000, 600, &accounts));
    world.publish(&events).await;
    world.merchants.until_delivered(600).await;
    let (asked, _) = many.log().asked_and_open();
    let grown = herald.resident().saturating_sub(before);
    println!("the others have theirs when {asked} of {} were sent; {} MiB more", MANY * EVENTS, grown / MIB);
    assert!(asked < MANY * EVENTS / 2, "the others waited until {asked} of the account with many endpoints were sent");
    assert!(grown < 100 * MIB);
    assert_eq!(herald.metric("herald_lease_terms_total"), 1.0, "it kept its lease");
    many.until_delivered(MANY * EVENTS).await;
    world.until_finished().await;
    for merchants in [&world.merchants, &many] {
        merchants.assert_sound();
        assert_eq!(merchants.log().duplicates(), 0);
    }
}

/// The first event of `pi_chain` fails three times; five later ones wait; 100 other intents pass by.
fn fails_three_times(world: &World) {
    world.merchants.rule("ep_0", |arrival| match (arrival.event.as_str(), arrival.attempt) {
        ("evt_0000000", 1..=3) => Reply::status(500),
        _ => Reply::OK,
    });
}

fn assert_chain_in_order(world: &World, attempts_of_first: u32) {
    let log = world.merchants.log();
    let mut expected: Vec<(String, u32)> = (1..=attempts_of_first).map(|n| ("evt_0000000".to_owned(), n)).collect();
    expected.extend((1..=5).map(|n| (format!("evt_{n:07}"), 1)));
    assert_eq!(events_at(&log, "ep_0", "pi_chain"), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_events_of_an_intent_wait_for_its_retries_while_other_intents_pass_by() {
    let world = World::new().await;
    world.register_many(1).await;
    fails_three_times(&world);
    let herald = world.setup().env("HERALD_RETRY_INITIAL", "300ms").start();
    herald.until_owner().await;
    world.publish(&life_of(0, 6, "acc_0", "pi_chain")).await;
    world.publish(&others(100, 100, "acc_0")).await;
    world.merchants.until("the other intents", |log| log.delivered.len() >= 100).await;
    // Its third retry is still to come.
    assert!(!world.merchants.log().delivered.iter().any(|(_, event)| event.as_str() < "evt_0000006"));
    world.merchants.until_delivered(106).await;
    world.until_finished().await;
    assert_chain_in_order(&world, 4);
    assert_eq!(world.merchants.log().overlaps, Vec::<String>::new());
    assert_eq!(world.merchants.log().duplicates(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_keeps_its_order_through_a_pause_and_a_resume() {
    let world = World::new().await;
    world.register_many(1).await;
    fails_three_times(&world);
    let herald = world.setup().start();
    herald.until_owner().await;
    world.publish(&life_of(0, 6, "acc_0", "pi_chain")).await;
    world.merchants.until("the first failure", |log| !log.arrivals.is_empty()).await;
    world.pause("ep_0").await;
    until("the parked head", async || world.number(&["ZCARD", &format!("{PREFIX}backlog:ep_0")]).await == 1).await;
    world.publish(&others(100, 100, "acc_0")).await;
    until("the others parked", async || world.number(&["ZCARD", &format!("{PREFIX}backlog:ep_0")]).await == 101).await;
    let arrived = world.merchants.log().arrivals.len();
    world.resume("ep_0").await;
    world.merchants.until_delivered(106).await;
    world.until_finished().await;
    assert!(arrived <= 4, "{arrived} arrivals at a paused endpoint");
    assert_chain_in_order(&world, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_keeps_its_order_through_a_take_over() {
    let world = World::new().await;
    world.register_many(1).await;
    fails_three_times(&world);
    let setup = world.setup().env("HERALD_RETRY_INITIAL", "400ms").env("HERALD_RETRY_MAX_INTERVAL", "400ms");
    let owner = setup.start();
    owner.until_owner().await;
    let standby = setup.start();
    world.publish(&life_of(0, 6, "acc_0", "pi_chain")).await;
    until("five held", async || world.number(&["ZCARD", &format!("{PREFIX}held:ep_0")]).await == 5).await;
    world.publish(&others(100, 100, "acc_0")).await;
    owner.kill9();
    standby.until_owner().await;
    world.merchants.until_delivered(106).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    // A retry that was in flight at the kill is made again: the same attempt, and nothing else, comes twice.
    let log = world.merchants.log();
    let mut chain = events_at(&log, "ep_0", "pi_chain");
    chain.dedup();
    drop(log);
    let mut expected: Vec<(String, u32)> = (1..=4).map(|n| ("evt_0000000".to_owned(), n)).collect();
    expected.extend((1..=5).map(|n| (format!("evt_{n:07}"), 1)));
    assert_eq!(chain, expected);
}

/// A retry waits for its time, not until there is nothing else to send: the test keeps sending until the retries have
/// come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn due_retries_go_out_under_a_load_without_a_pause() {
    const RETRIES: usize = 200;
    const RETRY_MS: u128 = 500;
    /// Events that are new on their way at nearly any time.
    const AHEAD: usize = 1_000;
    let world = World::new().await;
    let accounts = world.register_many(20).await;
    for n in 0..20 {
        world.merchants.rule(&format!("ep_{n}"), |arrival| match arrival.attempt {
            1 if arrival.event.ends_with('3') => Reply::status(500),
            _ => Reply::OK,
        });
    }
    let setup = world.setup().env("HERALD_RETRY_INITIAL", "500ms").env("HERALD_RETRY_JITTER", "0");
    let _herald = setup.env("HERALD_LOG", "warn").start();
    let (mut published, mut connection) = (0, world.redis.connection().await);
    until("the retries beside all that is new", async || {
        let (arrived, retried) = {
            let log = world.merchants.log();
            (log.seen.len(), log.arrivals.iter().filter(|arrival| arrival.attempt == 2).count())
        };
        let wanted = if retried < RETRIES { arrived + AHEAD } else { published };
        let event = |n: usize| Event::new(n, &accounts[n % accounts.len()], &format!("pi_{n}"), "Created");
        let new: Vec<Event> = (published..wanted).map(event).collect();
        published += new.len();
        publish(&mut connection, &new).await;
        retried >= RETRIES
    })
    .await;
    world.merchants.until_delivered(published).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    let log = world.merchants.log();
    let first = |retry: &Arrival| {
        let is_first = |a: &&Arrival| a.attempt == 1 && a.endpoint == retry.endpoint && a.event == retry.event;
        log.arrivals.iter().find(is_first).expect("it was tried before").at
    };
    for retry in log.arrivals.iter().filter(|arrival| arrival.attempt == 2) {
        let waited = retry.at.duration_since(first(retry)).as_millis();
        assert!(waited + 5 >= RETRY_MS, "{} came again after {waited} ms", retry.event);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_without_order_gets_its_events_as_they_come() {
    let world = World::new().await;
    let mut endpoint = world.endpoint("ep_0", "acc_0");
    endpoint.ordering = Ordering::None;
    world.register(endpoint).await;
    // The first event does not end before all the others have arrived.
    world.merchants.rule("ep_0", |arrival| match arrival.event.as_str() {
        "evt_0000000" if arrival.attempt < 4 => Reply::status(500),
        _ => Reply::OK,
    });
    let herald = world.setup().start();
    herald.until_owner().await;
    world.publish(&life_of(0, 30, "acc_0", "pi_chain")).await;
    world.merchants.until_delivered(30).await;
    world.until_finished().await;
    let log = world.merchants.log();
    let last = log.arrivals.last().map(|arrival| (arrival.event.as_str(), arrival.attempt));
    assert_eq!(last, Some(("evt_0000000", 4)));
    assert_eq!(log.faults, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_is_kept() {
    const RATE: u32 = 50;
    let world = World::new().await;
    let mut endpoint = world.endpoint("ep_0", "acc_0");
    endpoint.rate_limit = Some(RATE);
    world.register(endpoint).await;
    let herald = world.setup().start();
    herald.until_owner().await;
    let began = Instant::now();
    world.publish(&others(0, 200, "acc_0")).await;
    world.merchants.until_delivered(200).await;
    let took = began.elapsed();
    world.until_finished().await;
    // A second's worth may have been saved up.
    println!("200 deliveries at {RATE} a second took {took:?}");
    assert!(took >= Duration::from_millis(2_800), "{took:?}");
    let log = world.merchants.log();
    for window in log.arrivals.windows(2 * RATE as usize + 20) {
        let span = window[window.len() - 1].at - window[0].at;
        assert!(span >= Duration::from_millis(900), "{} arrivals within {span:?}", window.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_becomes_a_dead_letter_with_its_history_and_the_next_of_its_intent_goes_out() {
    let world = World::new().await;
    world.register_many(1).await;
    world.merchants.rule("ep_0", |arrival| match arrival.event.as_str() {
        "evt_0000000" => Reply::status(500),
        _ => Reply::OK,
    });
    let setup = world.setup().env("HERALD_RETRY_MAX_ATTEMPTS", "3").env("HERALD_RETRY_INITIAL", "20ms");
    let herald = setup.start();
    world.publish(&life_of(0, 3, "acc_0", "pi_chain")).await;
    world.merchants.until_delivered(2).await;
    world.until_finished().await;
    herald.until_metric("herald_dead_letters_added_total{reason=\"exhausted\"}", |count| count == 1.0).await;
    assert_eq!(world.number(&["ZCARD", &format!("{PREFIX}dead")]).await, 1);
    let letter: Vec<u8> = world.redis.command(&["GET", &world.keys("*dead-letter:*").await[0]]).await;
    let letter = herald::facts::delivery::DeadLetter::from_record(&letter.into()).unwrap();
    let attempts: Vec<u32> = letter.delivery.history.iter().map(|report| report.number).collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert_eq!(letter.delivery.event.as_str(), "evt_0000000");
    assert!(letter.url.ends_with("/ep_0") && letter.headers.iter().any(|(name, _)| name == "webhook-id"));
    let expected: Vec<(String, u32)> =
        [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1)].map(|(n, attempt)| (format!("evt_{n:07}"), attempt)).into();
    assert_eq!(events_at(&world.merchants.log(), "ep_0", "pi_chain"), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deleted_endpoint_was_owed_becomes_dead_letters() {
    let world = World::new().await;
    world.register_many(2).await;
    world.merchants.rule("ep_0", |_| Reply::status(500));
    let herald = world.setup().env("HERALD_RETRY_INITIAL", "1s").env("HERALD_RETRY_MAX_INTERVAL", "1h").start();
    world.publish(&others(0, 60, "acc_0")).await;
    world.publish(&life_of(200, 20, "acc_0", "pi_chain")).await;
    until("80 records", async || {
        let count: Option<u64> = world.redis.command(&["HGET", &format!("{PREFIX}unfinished"), "ep_0"]).await;
        count == Some(80)
    })
    .await;
    herald.until_metric("herald_breakers{state=\"open\"}", |endpoints| endpoints == 1.0).await;
    let id = herald::facts::id::EndpointId::new("ep_0").unwrap();
    world.registry().await.remove(&id, None, &mark()).await.unwrap();
    world.until_key("80 dead letters", &["ZCARD", &format!("{PREFIX}dead:ep_0")], |count| count == 80).await;
    world.until_finished().await;
    herald.until_metric("herald_dead_letters_added_total{reason=\"deleted\"}", |count| count == 80.0).await;
    herald.until_metric("herald_dead_letters", |letters| letters == 80.0).await;
    for state in ["open", "half_open"] {
        herald.until_metric(&format!("herald_breakers{{state=\"{state}\"}}"), |endpoints| endpoints == 0.0).await;
    }
    world.publish(&others(300, 10, "acc_1")).await;
    world.merchants.until_delivered(10).await;
}

async fn until_disabled(world: &World) {
    let id = herald::facts::id::EndpointId::new("ep_0").unwrap();
    until("the disabled endpoint", async || {
        let endpoint = world.registry().await.get(&id).await.unwrap().expect("it is there");
        matches!(endpoint.status, herald::facts::endpoint::EndpointState::Disabled(_))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_gone_is_disabled_and_its_deliveries_become_dead_letters() {
    let world = World::new().await;
    world.register_many(1).await;
    world.merchants.rule("ep_0", |_| Reply::status(410));
    let herald = world.setup().start();
    world.publish(&others(0, 30, "acc_0")).await;
    until_disabled(&world).await;
    world.until_finished().await;
    let dead = world.number(&["ZCARD", &format!("{PREFIX}dead")]).await;
    let skipped = herald.metric("herald_deliveries_finished_total{result=\"skipped_disabled\"}") as u64;
    assert_eq!(dead + skipped, 30, "{dead} dead letters, {skipped} skipped");
    assert!(world.merchants.log().arrivals.len() <= 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_gone_is_disabled_once_redis_allows_it() {
    let world = World::new().await;
    world.register_many(2).await;
    world.merchants.rule("ep_0", |_| Reply::status(410));
    let herald = world.setup().start();
    // A new owner reads nothing before it has looked at the registry once more, for which it needs what is taken now.
    world.publish(&others(100, 1, "acc_1")).await;
    world.merchants.until_delivered(1).await;
    // It may read the registry but not change it.
    let own = format!("~{PREFIX}*");
    let setuser = ["ACL", "SETUSER", "default", "resetkeys", "~payment-intents", &own, "%R~*"];
    world.redis.command::<String>(&setuser).await;
    world.publish(&others(0, 5, "acc_0")).await;
    until("the refused change", async || herald.log().contains("cannot disable or pause the endpoint yet")).await;
    world.redis.command::<String>(&["ACL", "SETUSER", "default", "allkeys"]).await;
    until_disabled(&world).await;
    world.until_finished().await;
}

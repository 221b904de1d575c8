//! Operations on what is in several parts of a stream: planned, started and told as one.

use serde_json::Value;

use crate::{
    history::{Place, setup, verb},
    merchants::Reply,
    process::Setup,
    support::until,
    world::{Event, PREFIX, World},
};

const ACCOUNTS: usize = 8;
/// Of each account.
const LETTERS: usize = 6;

fn split(world: &World, place: &Place) -> Setup {
    setup(world, place).env("HERALD_PARTITIONS", "4").env("HERALD_RETRY_MAX_ATTEMPTS", "1")
}

/// What a verb says as JSON; one that fails says why.
fn answer(world: &World, words: &[&str]) -> Value {
    let output = verb(world, "", &[words, &["-o", "json"]].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Each account has letters, and its endpoint takes everything from now on.
async fn with_letters(world: &World) {
    for n in 0..ACCOUNTS {
        world.merchants.rule(&format!("ep_{n}"), |_| Reply::status(500));
    }
    let event = |n: usize| Event::new(n, &format!("acc_{}", n % ACCOUNTS), &format!("pi_{n}"), "Created");
    world.publish(&(0..ACCOUNTS * LETTERS).map(event).collect::<Vec<_>>()).await;
    until("every event to be a letter", async || {
        answer(world, &["dead-letter", "list", "--limit", "1000"]).as_array().unwrap().len() == ACCOUNTS * LETTERS
    })
    .await;
    (0..ACCOUNTS).for_each(|n| world.merchants.heal(&format!("ep_{n}")));
}

fn state_of(world: &World, id: &str) -> Value {
    answer(world, &["operation", "show", id])["state"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_all_parts_are_sent_again_by_one_operation() {
    let world = World::new().await;
    world.register_many(ACCOUNTS).await;
    let herald = split(&world, &Place::None).start();
    with_letters(&world).await;
    // The oldest, wherever they are: more than any part has.
    let some = answer(
        &world,
        &["operation", "plan", "redeliver", "--limit", "40", "--rate", "100", "--reason", "the oldest first"],
    );
    let (id, count) = (some["id"].as_str().unwrap().to_owned(), &some["count"]);
    assert_eq!((count, &some["state"]), (&40.into(), &"planned".into()));
    assert_eq!(some["rate"], 100, "{some}");
    let shares = world.keys(&format!("herald:*:operation:{id}")).await;
    assert!(shares.len() > 1, "several parts have a share of it: {shares:?}");
    answer(&world, &["operation", "start", &id, "--reason", "now"]);
    until("the first to be sent", async || state_of(&world, &id) == "done").await;
    let done = answer(&world, &["operation", "show", &id]);
    assert_eq!((&done["done"], &done["left"]), (&40.into(), &0.into()), "{done}");
    assert_eq!(world.merchants.delivered(), 40);
    let again = verb(&world, "", &["operation", "start", &id, "--reason", "twice"]);
    assert_eq!(again.status.code(), Some(4), "{}", String::from_utf8_lossy(&again.stderr));

    // And the verb that plans and starts at once; it follows until all parts have ended.
    let words = ["dead-letter", "redeliver", "--all", "--rate", "5000", "--yes", "--reason", "mended"];
    let output = verb(&world, "", &words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.merchants.delivered(), ACCOUNTS * LETTERS);
    world.merchants.assert_sound();
    let listed = answer(&world, &["operation", "list"]);
    let counts: Vec<u64> = listed.as_array().unwrap().iter().map(|one| one["done"].as_u64().unwrap()).collect();
    assert_eq!(counts, [ACCOUNTS as u64 * LETTERS as u64 - 40, 40], "the newest first, each once");
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_in_several_parts_is_paused_slowed_down_and_cancelled_in_all_of_them() {
    let world = World::new().await;
    world.register_many(ACCOUNTS).await;
    let herald = split(&world, &Place::None).start();
    with_letters(&world).await;
    let words = ["operation", "plan", "discard", "--all", "--rate", "1", "--reason", "slowly"];
    let planned = answer(&world, &words);
    let id = planned["id"].as_str().unwrap().to_owned();
    let rates = async || {
        let mut rates = Vec::new();
        for key in world.keys(&format!("herald:*:operation:{id}")).await {
            let rate: String = world.redis.command(&["HGET", &key, "rate"]).await;
            rates.push(rate.parse::<f64>().unwrap());
        }
        rates
    };
    let shares = rates().await;
    assert!(shares.len() > 1 && planned["rate"] == 1, "{planned}");
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "all of them together take one a second: {shares:?}");
    answer(&world, &["operation", "start", &id, "--reason", "now"]);
    assert_eq!(answer(&world, &["operation", "pause", &id, "--reason", "wait"])["state"], "paused");
    let rated = answer(&world, &["operation", "rate", &id, "40", "--reason", "faster"]);
    assert_eq!(rated["rate"], 40, "{rated}");
    assert!((rates().await.iter().sum::<f64>() - 40.0).abs() < 1e-9);
    let words = ["operation", "cancel", &id, "--reason", "enough"];
    assert!(["cancelling", "cancelled"].contains(&answer(&world, &words)["state"].as_str().unwrap()));
    until("all parts to have ended", async || state_of(&world, &id) == "cancelled").await;
    let ended = answer(&world, &["operation", "show", &id]);
    let left = answer(&world, &["dead-letter", "list", "--limit", "1000"]).as_array().unwrap().len() as u64;
    assert_eq!(ended["done"].as_u64().unwrap() + left, (ACCOUNTS * LETTERS) as u64, "{ended}");
    assert!(left > 0);
    // What became of it is in the audit log, of each part.
    let acts = answer(&world, &["audit", "list", "--act", "operation start"]);
    let acts = acts.as_array().unwrap();
    assert!(acts.len() > 1 && acts.iter().all(|act| act["filter"].as_str().unwrap().contains("--stream")), "{acts:?}");
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_takes_what_the_history_kept_to_the_part_of_its_account() {
    let (world, place) = (World::new().await, Place::sqlite());
    world.register_many(ACCOUNTS).await;
    let herald = split(&world, &place).start();
    let event = |n: usize| Event::new(n, &format!("acc_{}", n % ACCOUNTS), &format!("pi_{n}"), "Created");
    world.publish(&(0..ACCOUNTS * LETTERS).map(event).collect::<Vec<_>>()).await;
    world.merchants.until_delivered(ACCOUNTS * LETTERS).await;
    until("all events to be kept", async || place.count().await == ACCOUNTS * LETTERS).await;
    let url = place.url();
    let words = ["operation", "plan", "replay", "--endpoint", "ep_3", "--reason", "they lost it", "-o", "json"];
    let output = verb(&world, &url, &words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let planned: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(planned["count"], LETTERS);
    let id = planned["id"].as_str().unwrap();
    let output = verb(&world, &url, &["operation", "start", id, "--watch", "--reason", "now"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.merchants.log().of("ep_3").count(), 2 * LETTERS);
    assert_eq!(world.merchants.log().of("ep_2").count(), LETTERS);
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_takes_what_the_stream_above_has_in_quarantine() {
    let world = World::new().await;
    let accounts = world.register_many(ACCOUNTS).await;
    // To this Herald some events are none, and it puts them aside before the stream is split.
    let strict = setup(&world, &Place::None).env("HERALD_EVENTS_STRICT", "true").start();
    strict.until_owner().await;
    let odd = |n: usize| Event::new(9_000_000 + n, &accounts[n % 2 + 1], &format!("pi_{n}"), "Woven");
    world.publish(&(0..4).map(odd).collect::<Vec<_>>()).await;
    let quarantine = format!("{PREFIX}quarantine");
    world.until_key("quarantined", &["XLEN", &quarantine], |length| length == 4).await;
    answer(&world, &["repartition", "--into", "4", "--yes", "--reason", "more workers"]);
    strict.until_metric("herald_partition_owned", |owned| owned == 5.0).await;
    let of_none = ["repartition", "--stream", "payment-intents:99", "--into", "4", "--yes", "--reason", "a slip"];
    let output = verb(&world, "", &of_none);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    // What came before the split has passed, although nothing came since.
    let output = verb(&world, "", &["endpoint", "delete", "ep_1", "--yes", "--reason", "they leave"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plan = ["operation", "plan", "erase", "--account", &accounts[1], "--reason", "they asked for it"];
    let id = answer(&world, &plan)["id"].as_str().unwrap().to_owned();
    answer(&world, &["operation", "start", &id, "--reason", "now"]);
    world.until_key("theirs to be gone", &["XLEN", &quarantine], |length| length == 2).await;
    let left = answer(&world, &["quarantine", "list"]).to_string();
    assert!(
        !left.contains("evt_9000000") && left.matches("evt_9000001").count() + left.matches("evt_9000003").count() > 0,
        "{left}"
    );
    assert!(strict.stop().await.success());
}

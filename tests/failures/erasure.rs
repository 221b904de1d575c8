//! Erasing an account: afterwards neither Redis nor the database holds any of its events' bodies, in memory or in a file.

use std::{fs, path::Path};

use herald::{
    facts::{
        endpoint::EndpointState,
        id::{DeliveryId, EntryId},
    },
    store::{connection::Purpose, queries::Queries},
};
use serde_json::{Value, json};

use crate::{
    history::{Place, setup},
    merchants::Reply,
    process::Herald,
    replay::{answer, id_of, keys, verb},
    support::{TestRedis, until},
    world::{Event, World, mark},
};

/// In the body of every event of the account that is erased, and in nothing else.
const SECRET: &str = "4929-SECRET-OF-ACC-A";

/// More than lie in one page of a stream.
const OTHERS_QUARANTINED: u64 = 150;

fn events(account: &str, from: usize, count: usize) -> Vec<Event> {
    let one = |n: usize| {
        let mut event = Event::new(n, account, &format!("pi_{account}_{}", n % 50), "Captured");
        if account == "acc_a" {
            event.body = event.body.replacen('{', &format!("{{\"note\":\"{SECRET}\","), 1);
        }
        event
    };
    (from..from + count).map(one).collect()
}

/// Files of this folder, and below, that hold the secret.
fn holding(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holding(&path));
        } else if fs::read(&path).is_ok_and(|bytes| bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes())) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Everything that Redis has in memory, as it would write it.
async fn held_in_redis(world: &World) -> Vec<String> {
    let mut held = Vec::new();
    // So that a dump has the texts as they are, and what is only marked as deleted too.
    world.redis.command::<()>(&["CONFIG", "SET", "rdbcompression", "no"]).await;
    for key in world.keys("*").await {
        let dump: Vec<u8> = world.redis.command(&["DUMP", &key]).await;
        let read: redis::Value = match world.redis.command::<String>(&["TYPE", &key]).await.as_str() {
            "string" => world.redis.command(&["GET", &key]).await,
            "hash" => world.redis.command(&["HGETALL", &key]).await,
            "stream" => world.redis.command(&["XRANGE", &key, "-", "+"]).await,
            "list" => world.redis.command(&["LRANGE", &key, "0", "-1"]).await,
            _ => world.redis.command(&["ZRANGE", &key, "0", "-1"]).await,
        };
        let text = format!("{read:?}");
        if text.contains(SECRET) || dump.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()) {
            held.push(key);
        }
    }
    held
}

fn plan(world: &World, place: &Place) -> Value {
    answer(world, place, &["operation", "plan", "erase", "--account", "acc_a", "--reason", "they asked for it"])
}

/// Letters, deliveries that are retried, a quarantined event, entries that were read and one that nobody wanted: of two accounts.
async fn kept(redis: TestRedis, place: &Place) -> (World, Herald) {
    let world = World::on(redis).await;
    for (endpoint, account) in [("ep_a", "acc_a"), ("ep_slow", "acc_a"), ("ep_b", "acc_b")] {
        world.register(world.endpoint(endpoint, account)).await;
    }
    for (endpoint, status) in [("ep_a", 410), ("ep_slow", 503), ("ep_b", 410)] {
        world.merchants.rule(endpoint, move |_| Reply::status(status));
    }
    let herald = setup(&world, place).start();
    herald.until_owner().await;
    world.publish(&events("acc_a", 0, 200)).await;
    world.publish(&events("acc_b", 1_000, 100)).await;
    let others = r#"{"accountId":"acc_b","note":"no event either""#;
    for _ in 0..OTHERS_QUARANTINED {
        let _: String = world.redis.command(&["XADD", keys().stream(), "*", "event", others]).await;
    }
    // What can be read as no event, and names the account.
    let broken = format!("{{\"accountId\":\"acc_a\",\"note\":\"{SECRET}\"");
    let _: String = world.redis.command(&["XADD", keys().stream(), "*", "event", &broken]).await;
    place.until_kept(300).await;
    let dead = keys().dead();
    world.until_key("letters", &["ZCARD", &dead], |letters| letters >= 300).await;
    world
        .until_key("the quarantine", &["XLEN", &keys().quarantine()], |entries| entries == 1 + OTHERS_QUARANTINED)
        .await;
    (world, herald)
}

async fn nothing_is_left(place: Place, redis: TestRedis) {
    let (world, _herald) = kept(redis, &place).await;
    assert!(!held_in_redis(&world).await.is_empty());
    // All of it goes, so nobody may ask for a part.
    let (code, said) =
        verb(&world, &place, &["operation", "plan", "erase", "--account", "acc_a", "--until", "7d", "--reason", "x"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) =
        verb(&world, &place, &["operation", "plan", "erase", "--account", "acc_a", "--reason", "they asked for it"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("ep_slow is not disabled: disable or delete the account's endpoints first"), "{said}");
    // ep_a said 410, and was disabled for that.
    let (code, said) = verb(&world, &place, &["endpoint", "delete", "ep_slow", "--yes", "--reason", "they left"]);
    assert_eq!(code, Some(0), "{said}");
    let operation = plan(&world, &place);
    assert_eq!(operation["kind"], "erase");
    // 200 that the history keeps, and the letters that there are by now.
    assert!(operation["count"].as_u64().unwrap() >= 400, "{operation}");
    answer(&world, &place, &["operation", "start", id_of(&operation)]);
    let mut shown = Value::Null;
    until("the erasure to end", async || {
        shown = answer(&world, &place, &["operation", "show", id_of(&operation)]);
        shown["state"] == "done"
    })
    .await;
    assert_eq!((&shown["left"], &shown["open"], &shown["overtaken"]), (&json!(0), &json!(0), &json!(0)), "{shown}");
    assert_eq!(held_in_redis(&world).await, [] as [&str; 0]);
    // Of the other account nothing is missing.
    let left = answer(&world, &place, &["quarantine", "list", "--limit", "1000"]);
    assert_eq!(left.as_array().map(|left| left.len() as u64), Some(OTHERS_QUARANTINED), "{left}");
    let entry = left[OTHERS_QUARANTINED as usize - 1]["entry"].as_str().unwrap();
    let shown = answer(&world, &place, &["quarantine", "show", entry]);
    assert!(shown.to_string().contains("no event either"), "{shown}");
    assert_eq!(world.number(&["ZCARD", &keys().dead()]).await, 100);
    let other = answer(&world, &place, &["operation", "plan", "redeliver", "--account", "acc_b", "--reason", "x"]);
    assert_eq!(other["count"], 100);
    assert_eq!(place.count().await, 100);
    assert_eq!(place.gaps().await, []);
    // The append-only file is written anew in the background.
    let (_, folder): (String, String) = world.redis.command(&["CONFIG", "GET", "dir"]).await;
    until("Redis' files to hold none of it", async || holding(Path::new(&folder)).is_empty()).await;
    if let Some(folder) = place.folder() {
        assert_eq!(holding(folder), Vec::<String>::new());
    }
    // What happened is still told, without what the events said.
    let (_, story) = verb(&world, &place, &["delivery", "list", "--intent", "pi_acc_a_7"]);
    assert!(story.contains("pi_acc_a_7") && !story.contains(SECRET), "{story}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_erasure_nothing_holds_the_bodies_with_sqlite() {
    nothing_is_left(Place::sqlite(), TestRedis::start_with_aof().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_erasure_nothing_holds_the_bodies_with_postgres() {
    nothing_is_left(Place::postgres().await, TestRedis::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_goes_on_after_its_owner_was_killed_and_stops_where_the_account_comes_back() {
    let place = Place::sqlite();
    let (world, mut herald) = kept(TestRedis::start_with_aof().await, &place).await;
    for endpoint in ["ep_a", "ep_slow"] {
        world.change(endpoint, |endpoint| endpoint.disable(mark(), "0-0".parse().unwrap())).await;
    }
    let operation = plan(&world, &place);
    let id = id_of(&operation);
    // As an older Herald wrote it.
    let key = keys().operation(&id.parse().unwrap());
    let text: String = world.redis.command(&["HGET", &key, "plan"]).await;
    let mut older: Value = serde_json::from_str(&text).unwrap();
    assert!(older["selection"].as_object_mut().unwrap().remove("last_entry").is_some());
    world.redis.command::<u64>(&["HSET", &key, "plan", &older.to_string()]).await;
    answer(&world, &place, &["operation", "rate", id, "20"]);
    let began = herald::clock::now();
    answer(&world, &place, &["operation", "start", id]);
    let done = async || answer(&world, &place, &["operation", "show", id])["done"].as_u64().unwrap();
    until("some of it to be done", async || done().await >= 60).await;
    // A quarter of a second may have been saved up, and no more than its rate.
    let (done, seconds) = (done().await, began.elapsed().as_secs_f64());
    assert!(done as f64 <= 20.0 * seconds + 6.0, "{done} within {seconds} s");
    herald.kill9();
    herald = setup(&world, &place).start();
    world.change("ep_a", |endpoint| endpoint.status = EndpointState::Enabled).await;
    until("it to wait", async || {
        let shown = answer(&world, &place, &["operation", "show", id]);
        shown["waits"][0].as_str().is_some_and(|waits| waits.contains("ep_a is not disabled"))
    })
    .await;
    world.change("ep_a", |endpoint| endpoint.disable(mark(), "0-0".parse().unwrap())).await;
    answer(&world, &place, &["operation", "rate", id, "1000"]);
    until("it to end", async || answer(&world, &place, &["operation", "show", id])["state"] == "done").await;
    assert_eq!(held_in_redis(&world).await, [] as [&str; 0]);
    assert_eq!(world.number(&["ZCARD", &keys().dead()]).await, 100);
    drop(herald);
}

/// Events that come between the plan and the start, and while it runs; a letter that one of them becomes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_takes_nothing_that_came_after_its_plan() {
    let place = Place::sqlite();
    let (world, _herald) = kept(TestRedis::start_with_aof().await, &place).await;
    for endpoint in ["ep_a", "ep_slow"] {
        world.change(endpoint, |endpoint| endpoint.disable(mark(), "0-0".parse().unwrap())).await;
    }
    let last: EntryId =
        Queries::new(world.redis.redis().connect(Purpose::Other).await.unwrap(), keys()).last_entry().await.unwrap();
    let operation = plan(&world, &place);
    // It says 410, and is disabled for that.
    world.change("ep_a", |endpoint| endpoint.status = EndpointState::Enabled).await;
    world.publish(&events("acc_a", 2_000, 30)).await;
    place.until_kept(330).await;
    until("a letter of what came later", async || !later_letters(&world, &place, last).is_empty()).await;
    let later = later_letters(&world, &place, last);
    world.change("ep_a", |endpoint| endpoint.disable(mark(), "0-0".parse().unwrap())).await;
    answer(&world, &place, &["operation", "start", id_of(&operation)]);
    let mut more = 3_000;
    until("the erasure to end, beside a producer that goes on", async || {
        world.publish(&events("acc_a", more, 5)).await;
        more += 5;
        answer(&world, &place, &["operation", "show", id_of(&operation)])["state"] == "done"
    })
    .await;
    let came = more - 3_000 + 30;
    until("all that came later to be kept", async || place.count().await == 100 + came).await;
    // More of what came later may have died meanwhile.
    let left = later_letters(&world, &place, EntryId::ZERO);
    assert!(later.iter().all(|letter| left.contains(letter)), "{later:?} {left:?}");
    assert_eq!(left, later_letters(&world, &place, last), "of the account's letters only the later ones are left");
}

/// The account's letters of entries behind this one.
fn later_letters(world: &World, place: &Place, last: EntryId) -> Vec<String> {
    let list = answer(world, place, &["dead-letter", "list", "--account", "acc_a", "--limit", "1000"]);
    let ids = list.as_array().unwrap().iter().map(|letter| letter["id"].as_str().unwrap().to_owned());
    ids.filter(|id| id.parse::<DeliveryId>().unwrap().entry > last).collect()
}

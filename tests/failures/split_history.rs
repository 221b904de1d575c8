//! One history of a stream that is split: what all its parts did is in one database, whoever works on which of them.

use herald::{
    facts::{id::AccountId, partition::Split},
    history::{EventPlace, EventsWanted, Told, Wanted},
};

use crate::{
    history::{Place, said, setup, verb},
    process::Setup,
    support::until,
    world::{Event, STREAM, World, lives},
};

const PARTS: usize = 4;

fn split(setup: Setup) -> Setup {
    setup.env("HERALD_PARTITIONS", &PARTS.to_string()).env("HERALD_LEASE", "2s")
}

fn part_of(account: &str) -> String {
    Split::new(STREAM, &[PARTS as u32]).unwrap().stream_of(&AccountId::new(account).unwrap())
}

/// Each delivery once, of each account all.
fn assert_each_once(told: &[Told], events: &[Event]) {
    let mut ids: Vec<&str> = told.iter().map(|told| told.event.as_ref().unwrap().as_str()).collect();
    ids.sort_unstable();
    let mut wanted: Vec<&str> = events.iter().map(|event| event.id.as_str()).collect();
    wanted.sort_unstable();
    assert!(ids == wanted, "{} are told of {}", ids.len(), wanted.len());
}

/// What the events said that are kept, once there are as many.
async fn until_kept(place: &Place, count: usize) -> Vec<String> {
    until(&format!("{count} events to be kept"), async || place.count().await >= count).await;
    let reader = place.reader().await.unwrap();
    let events = reader.events(&EventsWanted::default(), EventPlace::default(), 100_000).await.unwrap();
    events.into_iter().map(|event| String::from_utf8(event.body).unwrap()).collect()
}

async fn until_leases(world: &World, owners: usize) {
    until(&format!("all streams to have {owners} owners"), async || {
        let mut connection = world.redis.connection().await;
        let mut found = Vec::new();
        for lease in world.keys("herald:*:lease").await {
            let value: Option<String> = redis::cmd("GET").arg(&lease).query_async(&mut connection).await.unwrap();
            found.extend(value.as_deref().and_then(|value| value.split(' ').nth(1)).map(str::to_owned));
        }
        let streams = found.len();
        found.sort();
        found.dedup();
        streams == PARTS + 1 && found.len() == owners
    })
    .await;
}

async fn all_parts_are_in_one_history(place: Place) {
    let world = World::new().await;
    let accounts = world.register_many(8).await;
    let setup = split(setup(&world, &place));
    let herald = setup.start();
    let mut events = lives(31, &accounts, 600);
    world.publish(&events).await;
    let told = place.until_told(&Wanted::default(), events.len()).await;
    assert_each_once(&told, &events);
    assert_eq!((until_kept(&place, events.len()).await.len(), place.gaps().await), (events.len(), Vec::new()));
    // What is written to the parts themselves, with one id in two of them.
    let other = accounts.iter().find(|account| part_of(account) != part_of(&accounts[0])).unwrap();
    let same = format!("{}-7", herald::clock::wall_ms() + 600_000);
    for (n, account) in [(900_001, &accounts[0]), (900_002, other)] {
        let event = Event::new(n, account, &format!("pi_{n}"), "Created");
        world.redis.command::<String>(&["XADD", &part_of(account), &same, "event", &event.body]).await;
        events.push(event);
    }
    let bodies = until_kept(&place, events.len()).await;
    assert!(events.iter().all(|event| bodies.contains(&event.body)), "both of one id are kept");
    place.until_told(&Wanted::default(), events.len()).await;
    // A crash costs nothing and doubles nothing.
    herald.kill9();
    let herald = setup.start();
    let more: Vec<Event> =
        (0..40).map(|n| Event::new(910_000 + n, &accounts[n % 8], &format!("pi_{}", 910_000 + n), "Created")).collect();
    world.publish(&more).await;
    events.extend(more);
    let told = place.until_told(&Wanted::default(), events.len()).await;
    let mut ids: Vec<_> = told.iter().map(|told| (told.event.clone(), told.endpoint.clone(), told.attempt)).collect();
    ids.sort_unstable();
    let all = ids.len();
    ids.dedup();
    assert!(ids.len() == all && ids.len() >= events.len(), "{} of {all} are told once", ids.len());
    assert_eq!(place.gaps().await, Vec::new());
    assert!(herald.stop().await.success());
    // What the verbs say comes from there, and not from Redis.
    let account = Wanted { account: Some(AccountId::new(&accounts[0]).unwrap()), ..Wanted::default() };
    let of_account = place.until_told(&account, 1).await.len();
    let url = place.url();
    let words = ["delivery", "list", "--account", &accounts[0], "--limit", "1000", "-o", "json"];
    let listed = || {
        let output = verb(&world, &url, &words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap().as_array().unwrap().len()
    };
    assert_eq!(listed(), of_account);
    for log in world.keys("herald:*:attempts").await {
        world.redis.command::<u64>(&["XTRIM", &log, "MAXLEN", "0"]).await;
    }
    assert_eq!(listed(), of_account);
    let checks = said(&world, &url, &["doctor"]);
    assert!(checks.contains("and is 0 lines behind"), "{checks}");
    let kept = EventsWanted { account: account.account.clone(), ..EventsWanted::default() };
    let wanted = events.iter().filter(|event| event.account == accounts[0]).count();
    let path = [STREAM.to_owned(), part_of(&accounts[0])];
    let frozen = place.reader().await.unwrap().freeze_events(&kept, &path).await.unwrap().unwrap();
    assert_eq!(frozen.count, wanted as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_parts_did_is_in_one_history_in_sqlite() {
    all_parts_are_in_one_history(Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_parts_did_is_in_one_history_in_postgresql() {
    all_parts_are_in_one_history(Place::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_share_the_parts_write_one_history_each_line_once() {
    let (world, place) = (World::new().await, Place::postgres().await);
    let accounts = world.register_many(16).await;
    let start = |name: &str| split(setup(&world, &place)).env("HERALD_WORKER", name).start();
    let (one, two) = (start("one"), start("two"));
    until_leases(&world, 2).await;
    let events = lives(32, &accounts, 1_200);
    world.publish(&events[..800]).await;
    assert_each_once(&place.until_told(&Wanted::default(), 800).await, &events[..800]);
    assert!(one.stop().await.success());
    until_leases(&world, 1).await;
    world.publish(&events[800..]).await;
    assert_each_once(&place.until_told(&Wanted::default(), events.len()).await, &events);
    assert_eq!((until_kept(&place, events.len()).await.len(), place.gaps().await), (events.len(), Vec::new()));
    assert!(two.stop().await.success());
}

/// A file is of one machine, and what the others work on is in it, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_share_the_parts_have_all_of_them_in_a_file_each() {
    let (world, files) = (World::new().await, [Place::sqlite(), Place::sqlite()]);
    let accounts = world.register_many(16).await;
    let start = |name: &str, place: &Place| split(setup(&world, place)).env("HERALD_WORKER", name).start();
    let (one, two) = (start("one", &files[0]), start("two", &files[1]));
    until_leases(&world, 2).await;
    // What was accepted before a history has begun is not in it; each tells of the log and of the events.
    until("two histories of each part", async || {
        let mut told = Vec::new();
        for part in 0..PARTS {
            told.push(world.number(&["HLEN", &format!("herald:{{{STREAM}:{part}}}:history")]).await);
        }
        told.iter().all(|told| *told == 4)
    })
    .await;
    let events = lives(33, &accounts, 400);
    world.publish(&events).await;
    for place in &files {
        assert_each_once(&place.until_told(&Wanted::default(), events.len()).await, &events);
        assert_eq!((until_kept(place, events.len()).await.len(), place.gaps().await), (events.len(), Vec::new()));
    }
    assert!(one.stop().await.success() && two.stop().await.success());
}

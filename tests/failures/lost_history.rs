//! The history of deliveries where what it follows or what it is in was changed under it: a Redis that was set back, a file that was
//! moved, another Redis; and what is too much for one answer.

use std::{collections::HashSet, path::Path};

use herald::{
    config::HistoryUrl,
    history::{Access, Database, Reader, Wanted},
};
use sqlx::{Connection as _, Executor as _, SqliteConnection};

use crate::{
    history::{Place, of_intent, said, setup, told_by_the_log, verb_with},
    support::{TestRedis, until},
    world::{Event, STREAM, World},
};

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for found in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        match found.file_type().unwrap().is_dir() {
            true => copy_folder(&found.path(), &to.join(found.file_name())),
            false => drop(std::fs::copy(found.path(), to.join(found.file_name())).unwrap()),
        }
    }
}

/// A failover to a replica that lagged, or a disk that lost what was last written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_was_set_back_and_has_grown_beyond_it_is_read_again_and_a_gap_says_so() {
    let redis = TestRedis::start_with(&[("appendfsync", "always"), ("appenddirname", "aof")]).await;
    let (mut world, place) = (World::on(redis).await, Place::sqlite());
    world.register(world.endpoint("ep_0", "acc_0")).await;
    let event = |n: usize| Event::new(n, "acc_0", &format!("pi_{n}"), "Created");
    let events = |range: std::ops::Range<usize>| range.map(event).collect::<Vec<_>>();
    let set_back_to = tempfile::tempdir().unwrap();
    let herald = setup(&world, &place).start();
    world.publish(&events(0..300)).await;
    place.until_told(&Wanted::default(), 300).await;
    place.until_kept(300).await;
    world.until_finished().await;
    copy_folder(&world.redis.folder().join("aof"), set_back_to.path());
    world.publish(&events(300..400)).await;
    place.until_told(&Wanted::default(), 400).await;
    place.until_kept(400).await;
    herald.kill9();
    world.redis.kill9().await;
    let aof = world.redis.folder().join("aof");
    std::fs::remove_dir_all(&aof).unwrap();
    copy_folder(set_back_to.path(), &aof);
    world.redis.start_again().await;

    // Before the history looks again there are more lines and more events than it had read.
    let elsewhere = Place::sqlite();
    let other = setup(&world, &elsewhere).start();
    let already = world.merchants.log().delivered.len();
    for n in 0..5 {
        world.publish(&events(400 + n * 50..450 + n * 50)).await;
        world.merchants.until("a part", |log| log.delivered.len() >= already + 50 * (n + 1)).await;
    }
    until("all is logged", async || told_by_the_log(&world).await == 550).await;
    assert!(other.stop().await.success());
    let herald = setup(&world, &place).start();
    // All that was ever delivered: also what Redis does not know any more.
    let told = place.until_told(&Wanted::default(), 650).await;
    let delivered: HashSet<_> = told.iter().map(|told| told.event.clone().unwrap()).collect();
    assert_eq!(delivered.len(), 650);
    assert_eq!(place.until_kept(650).await.len(), 650);
    until("a gap of either", async || place.gaps().await.len() == 2).await;
    let gaps = place.gaps().await;
    assert!(gaps.iter().all(|gap| gap.why.contains("Redis has lost") && gap.from_ms <= gap.until_ms), "{gaps:?}");
    let text = said(&world, &place.url(), &["delivery", "list", "--intent", "pi_420"]);
    assert!(text.contains("; 2 gaps") && text.contains("1 delivered"), "{text}");
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_whose_file_was_moved_away_begins_anew_at_its_place() {
    let (world, place) = (World::new().await, Place::sqlite());
    world.register(world.endpoint("ep_0", "acc_0")).await;
    let event = |n: usize| Event::new(n, "acc_0", &format!("pi_{n}"), "Created");
    let herald = setup(&world, &place).start();
    world.publish(&(0..20).map(event).collect::<Vec<_>>()).await;
    place.until_told(&Wanted::default(), 20).await;
    let folder = place.folder().unwrap();
    std::fs::rename(folder.join("history.db"), folder.join("moved.db")).unwrap();
    herald.until_log("was moved, removed or replaced while it was open").await;
    herald.until_log(" works again").await;
    world.publish(&(20..30).map(event).collect::<Vec<_>>()).await;
    // The log in Redis still has what was there before, and the file that is away is whole.
    assert_eq!(place.until_told(&Wanted::default(), 30).await.len(), 30);
    let moved: HistoryUrl = format!("sqlite:{}", folder.join("moved.db").display()).parse().unwrap();
    let moved = Database::open(&moved, STREAM, Access::Read).await.unwrap();
    assert!(Reader::new(moved.clone()).find(&Wanted::default(), 100).await.unwrap().len() >= 20);
    moved.close().await;

    // Another one put in its place, such as a backup, is read on from where it is.
    std::fs::copy(folder.join("moved.db"), folder.join("backup.db")).unwrap();
    std::fs::rename(folder.join("backup.db"), folder.join("history.db")).unwrap();
    world.publish(&(30..35).map(event).collect::<Vec<_>>()).await;
    assert_eq!(place.until_told(&Wanted::default(), 35).await.len(), 35);
    assert_eq!(place.gaps().await, []);
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_belongs_to_one_redis_and_is_begun_anew_only_by_whoever_says_so() {
    let (one, other, place) = (World::new().await, World::new().await, Place::sqlite());
    for world in [&one, &other] {
        world.register(world.endpoint("ep_0", "acc_0")).await;
    }
    let herald = setup(&one, &place).start();
    one.publish(&[Event::new(0, "acc_0", "pi_one", "Created")]).await;
    place.until_told(&Wanted::default(), 1).await;
    let second = setup(&other, &place).start();
    other.publish(&[Event::new(1, "acc_0", "pi_other", "Created")]).await;
    other.merchants.until_delivered(1).await;
    second.until_log("belongs to another Redis").await;
    let text = said(&other, &place.url(), &["delivery", "list", "--intent", "pi_other"]);
    assert!(text.contains("belongs to another Redis") && text.contains("1 delivered"), "{text}");
    let text = said(&other, &place.url(), &["delivery", "list", "--intent", "pi_one"]);
    assert!(!text.contains("1 delivered"), "{text}");
    assert!(said(&other, &place.url(), &["doctor"]).contains("belongs to another Redis"));
    one.publish(&[Event::new(2, "acc_0", "pi_one", "Created")]).await;
    let told = place.until_told(&Wanted::default(), 2).await;
    assert!(told.iter().all(|told| told.intent == of_intent("pi_one").intent), "{told:?}");
    assert_eq!((place.count().await, place.gaps().await), (2, Vec::new()));

    // As the words say: from now on it is the other's.
    assert!(herald.stop().await.success());
    let file = place.folder().unwrap().join("history.db");
    let mut database = SqliteConnection::connect(&format!("sqlite:{}", file.display())).await.unwrap();
    database.execute("DELETE FROM herald_history_meta WHERE name = 'log'").await.unwrap();
    database.close().await.unwrap();
    assert_eq!(place.until_told(&of_intent("pi_other"), 1).await.len(), 1);
    second.until_log(" works again").await;
    assert!(second.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_story_that_is_too_long_shows_its_end_and_says_how_to_see_the_rest() {
    let (world, place) = (World::new().await, Place::sqlite());
    world.register(world.endpoint("ep_0", "acc_0")).await;
    world.pause("ep_0").await;
    let herald = setup(&world, &place).start();
    let event = |n: usize| Event::new(n, "acc_0", "pi_long", if n == 699 { "Captured" } else { "Created" });
    let events: Vec<Event> = (0..700).map(event).collect();
    // In two moments: a page of what is older begins with another millisecond.
    let (older, newer) = events.split_at(300);
    world.publish(older).await;
    place.until_kept(300).await;
    world.publish(newer).await;
    place.until_kept(700).await;
    until("all are taken on", async || said(&world, &place.url(), &["endpoint", "show", "ep_0"]).contains("700")).await;
    let story = said(&world, &place.url(), &["story", "pi_long"]);
    assert!(
        story.contains("only the newest 500 of its events are shown") && story.contains("Captured, accepted"),
        "{story}"
    );
    assert!(story.contains("only the first 201 that wait at ep_0 are shown"), "{story}");
    let shown: Vec<usize> = events.iter().filter_map(|event| story.find(&format!("{}  ", event.id))).collect();
    assert!(shown.len() >= 500 && shown[shown.len() - 500..].is_sorted(), "they come in order");
    let until = story.split("--until ").nth(1).unwrap().split_whitespace().next().unwrap();
    let rest = said(&world, &place.url(), &["story", "pi_long", "--until", until]);
    assert!(rest.contains(&events[0].id) && !rest.contains("waits"), "{rest}");
    assert!(herald.stop().await.success());

    let herald = setup(&world, &place).env("HERALD_HISTORY_BODIES", "0s").start();
    let nothing_kept = Place::sqlite();
    let text = verb_with(&world, &nothing_kept.url(), &[("HERALD_HISTORY_BODIES", "0s")], &["story", "pi_long"]);
    assert!(text.contains("its events themselves are not kept (history.bodies is 0s)"), "{text}");
    let text =
        said(&world, &place.url(), &["delivery", "list", "--intent", "pi_long", "--since", "1h", "--until", "2h"]);
    assert!(text.contains("--since is not before"), "{text}");
    assert!(herald.stop().await.success());
}

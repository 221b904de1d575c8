//! The history of deliveries, on both kinds of database: what it tells after good days and bad ones.

use std::{
    path::Path,
    process::{Command, Output},
};

use herald::{
    config::HistoryUrl,
    facts::{
        endpoint::EndpointState,
        id::{EndpointId, IntentId},
    },
    history::{Access, Database, EventPlace, EventsWanted, Reader, Told, Wanted},
};
use tempfile::TempDir;

use crate::{
    merchants::Reply,
    postgres::Postgres,
    process::Setup,
    support::until,
    world::{Event, PREFIX, STREAM, World, lives, mark},
};

/// Where a test's history is.
pub enum Place {
    None,
    Sqlite(TempDir),
    Postgres(Box<Postgres>),
}

impl Place {
    pub fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    pub async fn postgres() -> Self {
        Self::Postgres(Box::new(Postgres::start().await))
    }

    pub fn url(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Sqlite(folder) => format!("sqlite:{}", folder.path().join("history.db").display()),
            Self::Postgres(server) => server.url(),
        }
    }

    /// None while it cannot be read.
    pub async fn reader(&self) -> Option<Reader> {
        let url: HistoryUrl = self.url().parse().unwrap();
        Database::open(&url, STREAM, Access::Read).await.ok().map(Reader::new)
    }

    /// Everything that fits, once there is as much: the oldest first.
    pub async fn until_told(&self, wanted: &Wanted, count: usize) -> Vec<Told> {
        let mut told = Vec::new();
        until(&format!("{count} of {wanted:?} in the history"), async || {
            if let Some(reader) = self.reader().await {
                told = reader.find(wanted, 100_000).await.unwrap_or_default();
            }
            told.len() >= count
        })
        .await;
        told.sort_by_key(Told::order);
        told
    }

    /// What the events said, in their order.
    async fn bodies(&self, wanted: &EventsWanted) -> Vec<String> {
        let reader = self.reader().await.unwrap();
        let (mut bodies, mut place) = (Vec::new(), EventPlace::default());
        loop {
            let page = reader.events(wanted, place, 1_000).await.unwrap();
            let Some(last) = page.last() else { break };
            assert!(last.place() > place, "a page goes on where the last ended");
            place = last.place();
            bodies.extend(page.into_iter().map(|event| String::from_utf8(event.body).unwrap()));
        }
        assert_eq!(self.frozen(wanted).await, bodies.len() as u64);
        bodies
    }

    /// How many there are, by the stream itself.
    async fn frozen(&self, wanted: &EventsWanted) -> u64 {
        let Some(reader) = self.reader().await else { return 0 };
        let frozen = reader.freeze_events(wanted, &[STREAM.to_owned()]).await.ok().flatten();
        frozen.map_or(0, |events| events.count)
    }

    /// Of all events.
    pub async fn count(&self) -> usize {
        let Some(reader) = self.reader().await else { return 0 };
        let events = reader.events(&EventsWanted::default(), EventPlace::default(), 100_000).await;
        events.map_or(0, |events| events.len())
    }

    pub async fn until_kept(&self, count: usize) -> Vec<String> {
        until(&format!("{count} events in the history"), async || self.count().await >= count).await;
        self.bodies(&EventsWanted::default()).await
    }

    /// The folder of its file.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(folder) => Some(folder.path()),
            Self::None | Self::Postgres(_) => None,
        }
    }

    pub async fn gaps(&self) -> Vec<herald::history::Gap> {
        self.reader().await.unwrap().horizon(30, u64::MAX / 2, &Wanted::default()).await.unwrap().gaps
    }
}

pub fn setup(world: &World, place: &Place) -> Setup {
    world.setup().env("HERALD_HISTORY_URL", &place.url())
}

pub fn of_intent(intent: &str) -> Wanted {
    Wanted { intent: Some(IntentId::new(intent).unwrap()), ..Wanted::default() }
}

fn kinds(told: &[Told]) -> Vec<&str> {
    told.iter().map(|told| told.kind.as_str()).collect()
}

/// A verb's output, both streams.
pub fn said(world: &World, place: &str, words: &[&str]) -> String {
    let output = verb(world, place, words);
    format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout))
}

pub fn verb_with(world: &World, place: &str, settings: &[(&str, &str)], words: &[&str]) -> String {
    let mut command = verb_command(world, place, words);
    let output = command.envs(settings.iter().copied()).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout))
}

pub fn verb(world: &World, place: &str, words: &[&str]) -> Output {
    verb_command(world, place, words).output().unwrap()
}

fn verb_command(world: &World, place: &str, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.env_clear().env("USER", "ops").env("HERALD_HISTORY_URL", place).args(["--redis-url", &world.redis.url()]);
    command.args(words);
    command
}

async fn every_end_is_told(place: Place) {
    let world = World::new().await;
    world.register(world.endpoint("ep_0", "acc_0")).await;
    let mut disabled = world.endpoint("ep_off", "acc_off");
    disabled.disable(mark(), "0-0".parse().unwrap());
    world.register(disabled).await;
    let mut picky = world.endpoint("ep_picky", "acc_picky");
    picky.event_types = vec!["payment_intent.created".parse().unwrap()];
    world.register(picky).await;
    world.merchants.rule("ep_0", |arrival| match arrival.intent.as_str() {
        "pi_dead" => Reply::status(500),
        "pi_late" if arrival.attempt < 3 => Reply::status(503),
        _ => Reply::OK,
    });
    let herald = setup(&world, &place).env("HERALD_RETRY_MAX_ATTEMPTS", "3").start();
    herald.until_owner().await;
    let events = [
        Event::new(1, "acc_0", "pi_good", "Created"),
        Event::new(2, "acc_0", "pi_late", "Created"),
        Event::new(3, "acc_0", "pi_dead", "Created"),
        Event::new(4, "acc_off", "pi_off", "Created"),
        Event::new(5, "acc_nobody", "pi_nobody", "Created"),
        Event::new(6, "acc_picky", "pi_picky", "Created"),
    ];
    world.publish(&events).await;

    assert_eq!(kinds(&place.until_told(&of_intent("pi_good"), 1).await), ["delivered"]);
    assert_eq!(kinds(&place.until_told(&of_intent("pi_late"), 3).await), ["failed", "failed", "delivered"]);
    let dead = place.until_told(&of_intent("pi_dead"), 4).await;
    assert_eq!(kinds(&dead), ["failed", "failed", "failed", "dead"]);
    assert_eq!(
        (dead[3].detail.as_str(), dead[3].attempt, dead[0].outcome.as_str()),
        ("exhausted", 3, "server_failed:500")
    );
    let skipped = place.until_told(&of_intent("pi_off"), 1).await;
    assert_eq!((skipped[0].kind.as_str(), skipped[0].endpoint.as_ref().unwrap().as_str()), ("skipped", "ep_off"));
    let nobody = place.until_told(&of_intent("pi_nobody"), 1).await;
    assert_eq!((nobody[0].kind.as_str(), nobody[0].detail.as_str()), ("no_endpoint", "its account has no endpoint"));
    let picky = place.until_told(&of_intent("pi_picky"), 1).await;
    assert_eq!(
        (picky[0].kind.as_str(), picky[0].event_type.as_str()),
        ("no_endpoint", "payment_intent.status_updated")
    );
    let unowed = place.reader().await.unwrap().unowed(0, 10).await.unwrap();
    let accounts: Vec<_> = unowed.iter().map(|unowed| (unowed.account.as_str(), unowed.count)).collect();
    assert_eq!(accounts, [("acc_nobody", 1), ("acc_off", 1), ("acc_picky", 1)]);

    // What an operator does to a letter is told as well.
    let id = dead[0].delivery().unwrap().to_string();
    world.merchants.heal("ep_0");
    let text = said(&world, &place.url(), &["dead-letter", "redeliver", &id, "--reason", "it is well again", "--yes"]);
    assert!(text.contains("redelivered"), "{text}");
    let again = place.until_told(&of_intent("pi_dead"), 6).await;
    assert_eq!(kinds(&again)[4..], ["redelivered", "delivered"]);
    assert_eq!(again[4].detail, "ops: it is well again");

    // The events themselves are kept too, byte for byte, also those that nobody was told; the stream has none of them any more.
    until("all is trimmed", async || world.redis.command::<u64>(&["XLEN", STREAM]).await == 0).await;
    assert_eq!(place.bodies(&EventsWanted::default()).await, events.each_ref().map(|event| event.body.clone()));
    let shown = said(&world, &place.url(), &["event", "show", &events[4].id, "-o", "json"]);
    assert!(shown.contains("it is in the history") && shown.contains("acc_nobody"), "{shown}");
    let missing = said(&world, &place.url(), &["event", "show", "evt_none"]);
    assert!(missing.contains("it is not in the history"), "{missing}");

    // And the verbs say it, with how far back they look in their first line.
    world.redis.command::<u64>(&["DEL", &format!("{PREFIX}attempts")]).await;
    let text = said(&world, &place.url(), &["delivery", "list", "--intent", "pi_late"]);
    assert!(
        text.starts_with("history: back to ") && text.contains("nothing is missing") && text.contains("1 delivered"),
        "{text}"
    );
    let text = said(&world, &place.url(), &["delivery", "list", "--account", "acc_nobody", "-o", "jsonl"]);
    assert!(text.contains("1 owed to nobody") && text.contains("its account has no endpoint"), "{text}");
    let text = said(&world, &place.url(), &["delivery", "list", "--event", &events[3].id]);
    assert!(text.contains("1 skipped") && text.contains("ep_off"), "{text}");
    let text = said(&world, &place.url(), &["delivery", "show", &id]);
    assert!(
        text.contains("delivered") && text.contains("ops: it is well again") && text.contains("exhausted"),
        "{text}"
    );
    let story = said(&world, &place.url(), &["story", "pi_dead", "-o", "jsonl"]);
    let order = ["\"Created, accepted\"", "\"failed\"", "\"dead\"", "\"redelivered\"", "\"delivered\""]
        .map(|what| story.find(what));
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{story}");
    assert!(story.contains("dead-letter redeliver") && story.contains("done, by ops: it is well again"), "{story}");
    let doctor = said(&world, &place.url(), &["doctor"]);
    assert!(doctor.contains("acc_nobody (1: no endpoint wants them)"), "{doctor}");
    let text = said(&world, "", &["delivery", "list", "--intent", "pi_late"]);
    assert!(text.starts_with("history: off (history.url is empty)"), "{text}");
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_end_of_a_delivery_is_in_the_history_in_sqlite() {
    every_end_is_told(Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_end_of_a_delivery_is_in_the_history_in_postgresql() {
    every_end_is_told(Place::postgres().await).await;
}

/// Kills Herald again and again while it works; what Redis has logged is in the history, once.
async fn kill9_loses_nothing_and_doubles_nothing(place: Place) {
    let world = World::on(crate::support::TestRedis::start_with_aof().await).await;
    let accounts = world.register_many(8).await;
    world.merchants.rule("ep_3", |arrival| if arrival.attempt < 2 { Reply::status(500) } else { Reply::OK });
    let setup = setup(&world, &place);
    let events = lives(7, &accounts, 4_000);
    for part in events.chunks(800) {
        let herald = setup.start();
        let already = world.merchants.log().delivered.len();
        world.publish(part).await;
        world.merchants.until("half of it", |log| log.delivered.len() >= already + 400).await;
        herald.kill9();
    }
    let herald = setup.start();
    world.until_finished().await;
    let lines = world.number(&["HGET", &format!("{PREFIX}stats"), "log-lines"]).await;
    let told = place.until_told(&Wanted::default(), usize::try_from(lines).unwrap()).await;
    assert_eq!(told.len() as u64, lines, "one row for each line of the log");
    let mut seen = std::collections::HashSet::new();
    assert!(told.iter().all(|one| seen.insert((
        one.entry,
        one.endpoint.clone(),
        one.attempt,
        one.at_ms,
        one.kind.clone()
    ))));
    let delivered: std::collections::HashSet<_> =
        told.iter().filter(|told| told.kind == "delivered").map(|told| told.event.clone().unwrap()).collect();
    assert_eq!(delivered.len(), events.len());
    let bodies: Vec<String> = events.iter().map(|event| event.body.clone()).collect();
    assert_eq!(place.until_kept(events.len()).await, bodies, "each event once, in the order of the stream");
    assert_eq!(place.gaps().await, []);
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill9_leaves_the_history_whole_in_sqlite() {
    kill9_loses_nothing_and_doubles_nothing(Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill9_leaves_the_history_whole_in_postgresql() {
    kill9_loses_nothing_and_doubles_nothing(Place::postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_holds_up_no_delivery_and_misses_nothing_when_it_is_back() {
    let Place::Postgres(mut server) = Place::postgres().await else { unreachable!() };
    let url = server.url();
    let world = World::new().await;
    let accounts = world.register_many(4).await;
    let herald = world
        .setup()
        .env("HERALD_HISTORY_URL", &url)
        // Far fewer than there will be: only because the history has not read them are they kept.
        .env("HERALD_LIMITS_ATTEMPT_LOG_ENTRIES", "1000")
        .start();
    let events = lives(8, &accounts, 4_000);
    world.publish(&events[..100]).await;
    world.merchants.until_delivered(100).await;
    herald.until_metric("herald_history_rows_written_total", |rows| rows >= 100.0).await;
    server.stop();
    world.publish(&events[100..200]).await;
    world.merchants.until_delivered(200).await;
    herald.until_metric("herald_history_up", |up| up == 0.0).await;
    herald.until_log("the history of deliveries is not written").await;
    for (nth, part) in events[200..].chunks(400).enumerate() {
        world.publish(part).await;
        world.merchants.until_delivered(200 + (nth * 400) + part.len()).await;
        let behind = (100 + nth * 400) as f64;
        herald.until_metric("herald_history_lag_lines", |lines| lines >= behind).await;
        // The owner has to have heard of it: it looks once a second.
        tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    }
    assert!(herald.log().matches("the history of deliveries is not written").count() == 1);
    server.start_again().await;
    herald.until_log(" works again").await;
    let place = Place::Postgres(server);
    let told = place.until_told(&Wanted::default(), 4_000).await;
    assert_eq!((place.until_kept(4_000).await.len(), told.len(), place.gaps().await), (4_000, 4_000, Vec::new()));
    until("the stream is trimmed again", async || world.redis.command::<u64>(&["XLEN", STREAM]).await == 0).await;
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_log_lost_before_it_was_read_is_a_gap_and_shown_as_one() {
    let (world, place) = (World::new().await, Place::sqlite());
    world.register(world.endpoint("ep_0", "acc_0")).await;
    let event = |n: usize| Event::new(n, "acc_0", &format!("pi_{n}"), "Created");
    let setup = setup(&world, &place).env("HERALD_HISTORY_BODIES", "0s");
    let herald = setup.start();
    world.publish(&(0..10).map(event).collect::<Vec<_>>()).await;
    place.until_told(&Wanted::default(), 10).await;
    assert!(herald.stop().await.success());
    assert_eq!(place.reader().await.unwrap().events_begin_ms().await.unwrap(), None, "none is kept");

    // Without a history for a while, and the log is short.
    let herald = world.setup().env("HERALD_LIMITS_ATTEMPT_LOG_ENTRIES", "1000").start();
    for n in 0..15 {
        world.publish(&(10 + n * 100..110 + n * 100).map(event).collect::<Vec<_>>()).await;
        world.merchants.until_delivered(110 + n * 100).await;
    }
    world.until_finished().await;
    assert!(herald.stop().await.success());
    let left = told_by_the_log(&world).await;
    assert!(left < 1_500, "{left} lines are left in the log");

    let herald = setup.start();
    let told = place.until_told(&Wanted::default(), 10 + left).await;
    assert_eq!(told.len(), 10 + left);
    let gaps = place.gaps().await;
    assert_eq!((gaps.len(), gaps[0].lines), (1, 1_500 - left as u64));
    assert!(gaps[0].from_ms <= gaps[0].until_ms && gaps[0].why.contains("history.log_bytes"), "{gaps:?}");
    let text = said(&world, &place.url(), &["delivery", "list", "--intent", "pi_11"]);
    assert!(text.starts_with("history: back to ") && text.contains("; 1 gap\ngap: "), "{text}");
    herald.until_metric("herald_history_lines_missed_total", |lines| lines == 1_500.0 - left as f64).await;

    // A log that began anew is noticed too, and what comes after it is not taken for what was there before.
    world.redis.command::<u64>(&["DEL", &format!("{PREFIX}attempts"), &format!("{PREFIX}stats")]).await;
    world.publish(&(2_000..2_003).map(event).collect::<Vec<_>>()).await;
    place.until_told(&Wanted::default(), 13 + left).await;
    until("the second gap", async || place.gaps().await.len() == 2).await;
    assert!(place.gaps().await[0].why.contains("began it anew"));
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_left_the_stream_before_they_were_read_are_a_gap_and_those_of_a_new_stream_are_not_taken_for_them()
{
    let (world, place) = (World::new().await, Place::sqlite());
    world.register(world.endpoint("ep_0", "acc_0")).await;
    let event = |n: usize| Event::new(n, "acc_0", &format!("pi_{n}"), "Created");
    let events = |range: std::ops::Range<usize>| range.map(event).collect::<Vec<_>>();
    let herald = setup(&world, &place).start();
    world.publish(&events(0..10)).await;
    place.until_kept(10).await;
    assert!(herald.stop().await.success());
    let herald = world.setup().start();
    world.publish(&events(10..40)).await;
    world.merchants.until_delivered(40).await;
    until("all is trimmed", async || world.redis.command::<u64>(&["XLEN", STREAM]).await == 0).await;
    assert!(herald.stop().await.success());
    let herald = setup(&world, &place).start();
    world.publish(&events(40..45)).await;
    assert_eq!(place.until_kept(15).await.len(), 15);
    let gaps = place.gaps().await;
    assert_eq!((gaps.len(), gaps[0].lines), (1, 30), "{gaps:?}");
    assert!(gaps[0].why.contains("events were taken from the stream"), "{gaps:?}");

    // Another stream under the same name.
    assert!(herald.stop().await.success());
    world.redis.command::<u64>(&["DEL", STREAM]).await;
    let herald = setup(&world, &place).start();
    herald.until_owner().await;
    world.publish(&events(50..53)).await;
    let kept = place.until_kept(18).await;
    assert!(kept[15..].iter().eq(events(50..53).iter().map(|event| &event.body)), "{kept:?}");
    until("the second gap", async || place.gaps().await.len() == 2).await;
    assert!(place.gaps().await[0].why.contains("began it anew"));
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_is_kept_for_the_history_only_up_to_its_bound() {
    let mut place = Place::postgres().await;
    let world = World::new().await;
    world.register(world.endpoint("ep_0", "acc_0")).await;
    let setup = world.setup().env("HERALD_HISTORY_URL", &place.url()).env("HERALD_HISTORY_LOG_BYTES", "20000");
    let herald = setup.start();
    world.publish(&[Event::new(0, "acc_0", "pi_0", "Created")]).await;
    place.until_kept(1).await;
    let Place::Postgres(server) = &mut place else { unreachable!() };
    server.stop();
    let event = |n: usize| Event::new(n, "acc_0", &format!("pi_{n}"), "Created");
    world.publish(&(1..1_001).map(event).collect::<Vec<_>>()).await;
    world.merchants.until_delivered(1_001).await;
    herald.until_metric("herald_history_up", |up| up == 0.0).await;
    until("the stream is trimmed", async || world.redis.command::<u64>(&["XLEN", STREAM]).await == 0).await;
    server.start_again().await;
    herald.until_log(" works again").await;
    world.publish(&[event(1_001)]).await;
    let last = EventsWanted { event: Some("evt_0001001".parse().unwrap()), ..EventsWanted::default() };
    until("it goes on", async || place.frozen(&last).await > 0).await;
    let kept = place.bodies(&EventsWanted::default()).await.len() as u64;
    let missed: u64 = place.gaps().await.iter().map(|gap| gap.lines).sum();
    assert!(missed > 0 && kept + missed == 1_002, "{kept} kept, {missed} missed");
    assert!(herald.stop().await.success());
}

pub async fn told_by_the_log(world: &World) -> usize {
    let entries: Vec<(String, Vec<String>)> =
        world.redis.command(&["XRANGE", &format!("{PREFIX}attempts"), "-", "+"]).await;
    entries.iter().map(|(_, fields)| fields[1].lines().count()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_place_for_its_history_herald_delivers_all_the_same() {
    let world = World::new().await;
    world.register(world.endpoint("ep_0", "acc_0")).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "this is no database, however long one reads in it".repeat(100)).unwrap();
    let places = ["sqlite:/proc/herald/history.db".to_owned(), format!("sqlite:{}", file.path().display())];
    for (n, url) in places.into_iter().enumerate() {
        let herald = world.setup().env("HERALD_HISTORY_URL", &url).start();
        world.publish(&[Event::new(n, "acc_0", &format!("pi_{n}"), "Created")]).await;
        world.merchants.until_delivered(n + 1).await;
        herald.until_log("the history of deliveries is not written").await;
        assert!(herald.log().contains(url.trim_start_matches("sqlite:")), "{}", herald.log());
        let text = said(&world, &url, &["delivery", "list", "--intent", &format!("pi_{n}")]);
        assert!(text.starts_with("history: ") && text.contains("1 delivered"), "{text}");
        assert!(herald.stop().await.success());
    }
    let text = std::fs::read_to_string(file.path()).unwrap();
    assert!(text.starts_with("this is no database"), "what is not ours is left as it is");
    assert!(!Path::new("herald-history.db").exists());
}

async fn days_that_are_over_leave(place: Place) {
    let world = World::new().await;
    world.register(world.endpoint("ep_0", "acc_0")).await;
    // As if Herald had written them, some by a clock that is wrong.
    let now_ms = herald::clock::wall_ms();
    let day_ms = 86_400_000;
    let line = |n: u64, at_ms: u64| {
        format!(r#"["{n}-0:ep_0","evt_{n}","pi_{n}","acc_0",1,{at_ms},5,{{"kind":"delivered","status":200}},""]"#)
    };
    let times = [now_ms - 5 * day_ms, now_ms - 3 * day_ms, now_ms, 7, now_ms + 900 * day_ms];
    let lines: Vec<String> = times.iter().enumerate().map(|(n, at_ms)| line(n as u64 + 1, *at_ms)).collect();
    let log = format!("{PREFIX}attempts");
    world.redis.command::<String>(&["XADD", &log, "5-0", "lines", &lines.join("\n")]).await;
    let herald = setup(&world, &place).env("HERALD_HISTORY_KEEP", "30d").start();
    place.until_told(&Wanted::default(), 5).await;
    assert!(herald.stop().await.success());
    // It is tidied at the start, and every ten minutes.
    let herald = setup(&world, &place).env("HERALD_HISTORY_KEEP", "4d").start();
    until("the oldest day to leave", async || {
        let reader = place.reader().await.unwrap();
        reader.find(&Wanted::default(), 10).await.is_ok_and(|told| told.len() == 4)
    })
    .await;
    let told = place.until_told(&Wanted::default(), 4).await;
    let mut left: Vec<_> = told.iter().map(|told| told.event.as_ref().unwrap().as_str()).collect();
    left.sort_unstable();
    assert_eq!(left, ["evt_2", "evt_3", "evt_4", "evt_5"], "what has a wild time is filed under today");
    // Keeping days for longer again brings none back.
    let horizon = place.reader().await.unwrap().horizon(30, now_ms, &Wanted::default()).await.unwrap();
    assert_eq!(horizon.begins_ms, Some((now_ms / day_ms - 4) * day_ms));
    let since = Wanted {
        endpoint: Some(EndpointId::new("ep_0").unwrap()),
        from_ms: Some(now_ms - 4 * day_ms),
        until_ms: Some(now_ms + 1),
        ..Wanted::default()
    };
    assert_eq!(place.until_told(&since, 2).await.len(), 2);
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_that_are_over_leave_the_history_in_sqlite() {
    days_that_are_over_leave(Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_that_are_over_leave_the_history_in_postgresql() {
    days_that_are_over_leave(Place::postgres().await).await;
}

/// Two machines, and one database for both: one writes, the other looks on, and takes over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_write_one_history_one_goes_on_alone() {
    let (world, place) = (World::new().await, Place::postgres().await);
    let accounts = world.register_many(4).await;
    let setup = setup(&world, &place);
    let (first, second) = (setup.start(), setup.start());
    let events = lives(9, &accounts, 2_000);
    world.publish(&events[..1_000]).await;
    place.until_told(&Wanted::default(), 1_000).await;
    first.kill9();
    world.publish(&events[1_000..]).await;
    world.merchants.until("everything", |log| log.delivered.len() == 2_000).await;
    world.until_finished().await;
    let lines = world.number(&["HGET", &format!("{PREFIX}stats"), "log-lines"]).await;
    let told = place.until_told(&Wanted::default(), usize::try_from(lines).unwrap()).await;
    assert_eq!((told.len() as u64, place.gaps().await), (lines, Vec::new()));
    assert!(matches!(
        world.registry().await.get(&EndpointId::new("ep_0").unwrap()).await.unwrap().unwrap().status,
        EndpointState::Enabled
    ));
    assert!(second.stop().await.success());
}

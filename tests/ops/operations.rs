//! Operations on many dead letters, by the binary: what was planned is done once, whoever dies meanwhile, and the totals are true.

use std::collections::BTreeSet;

use herald::{
    facts::{
        delivery::Delivery,
        endpoint::EndpointState,
        id::{EntryId, OperationId},
        operation::{Change, Kind, Rate, Selection, State},
        retry::{DeadReason, RetryOverrides},
    },
    store::{
        connection::{Purpose, Redis},
        operations::{
            Beside, MAX_OPEN, MAX_PLANNED, OperationError, Operations, Verb, Wanted,
            erase::Erased,
            work::{Lost, Replaying, Taking, Work},
        },
        protocol::{Call, GROUP, Item, Place, ReadFrom, Term},
        queries::{DeadFilter, RawEvent},
        registry::RegistryStore,
    },
};
use serde_json::Value;

use crate::{
    merchants::Reply,
    process::{Herald, Setup},
    stage::{Owner, bury, delivery, endpoint_id, keep, keys},
    support::{TestRedis, until},
    verbs::{done, herald, text},
    world::{Event, PREFIX, World, mark},
};

const WHY: [&str; 2] = ["--reason", "mended"];

/// Letters of these deliveries, which die in this order.
async fn die(world: &World, deliveries: &[Delivery]) {
    let owner = Owner::start(&world.redis.redis()).await;
    let mut registry = RegistryStore::connect(&world.redis.redis()).await.unwrap();
    let bind = Item::Bind { registry: registry.position().await.unwrap().unwrap().0.id.to_string() };
    owner.settle(vec![bind], Vec::new()).await;
    // Of the accounts that the endpoints have.
    let own = |one: &Delivery| {
        let account = one.id.endpoint.as_str().replace("ep_", "acc_").parse().unwrap();
        bury(&Delivery { account, ..one.clone() }, DeadReason::Exhausted)
    };
    for part in deliveries.chunks(50) {
        owner.settle(part.iter().map(own).collect(), Vec::new()).await;
    }
    owner.release().await;
}

/// So many to each of so many endpoints, ten of each intent; the later ones of an intent died first.
fn letters(endpoints: usize, each: usize) -> Vec<Delivery> {
    let intents = endpoints * each.div_ceil(10);
    let one = |n: usize| {
        let (endpoint, intent) = (format!("ep_{}", n % endpoints), format!("pi_{}", n % intents));
        delivery(&format!("{}-0", 1_000 + n), &endpoint, &intent, true)
    };
    (0..endpoints * each).rev().map(one).collect()
}

async fn world(endpoints: usize, each: usize) -> World {
    let world = World::on(TestRedis::start_with_aof().await).await;
    world.register_many(endpoints).await;
    die(&world, &letters(endpoints, each)).await;
    world
}

fn json(redis: &TestRedis, words: &[&str]) -> Value {
    let output = herald(redis, &[words, &["-o", "json"]].concat());
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn plan(world: &World, words: &[&str]) -> String {
    let planned = json(&world.redis, &[&["operation", "plan"], words, &WHY].concat());
    assert_eq!(planned["state"], "planned");
    planned["id"].as_str().unwrap().to_owned()
}

fn show(world: &World, id: &str) -> Value {
    json(&world.redis, &["operation", "show", id])
}

async fn operations(redis: &TestRedis) -> Operations {
    Operations::new(redis.redis().connect(Purpose::Other).await.unwrap(), keys())
}

async fn until_state(world: &World, id: &str, state: State) {
    let id: OperationId = id.parse().unwrap();
    let mut seen = None;
    // Redis may be away.
    until(&format!("{id} to be {state:?}"), async || {
        let Ok(connection) = world.redis.redis().connect(Purpose::Other).await else { return false };
        seen = Operations::new(connection, keys()).find(&id).await.ok().flatten();
        seen.as_ref().is_some_and(|operation| operation.state == state)
    })
    .await;
}

async fn done_of(world: &World, id: &str) -> u64 {
    let key = keys().operation(&id.parse().unwrap());
    world.redis.command::<Option<u64>>(&["HGET", &key, "done"]).await.unwrap_or(0)
}

async fn until_done_of(world: &World, id: &str, least: u64) {
    until(&format!("{least} of {id}"), async || done_of(world, id).await >= least).await;
}

/// `done`, `dead_again`, `refused`, `overtaken`, `left`, `open`.
fn totals(shown: &Value) -> [u64; 6] {
    ["done", "dead_again", "refused", "overtaken", "left", "open"].map(|name| shown[name].as_u64().unwrap())
}

fn at_once(world: &World) -> Setup {
    world.setup().env("HERALD_LOG", "info")
}

async fn letters_left(world: &World) -> u64 {
    world.redis.command(&["ZCARD", &keys().dead()]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_takes_what_there_was_and_nothing_that_comes_and_is_started_once() {
    let world = world(2, 20).await;
    let id = plan(&world, &["redeliver", "--all"]);
    assert_eq!((show(&world, &id)["count"].as_u64(), &show(&world, &id)["filter"]), (Some(40), &"--all".into()));
    let later: Vec<Delivery> = (0..5).map(|n| delivery(&format!("{}-0", 9_000 + n), "ep_0", "pi_x", true)).collect();
    die(&world, &later).await;
    let herald_process = at_once(&world).start();
    // It waits for nothing that would start it.
    herald_process.until_owner().await;
    assert_eq!(totals(&show(&world, &id)), [0, 0, 0, 0, 40, 0]);
    let started = done(&world.redis, &["operation", "start", &id, "--watch"]);
    assert!(started.contains("40 of 40 delivered"), "{started}");
    let again = herald(&world.redis, &["operation", "start", &id]);
    assert_eq!(again.status.code(), Some(4));
    assert!(text(&again).contains(&format!("{id} is done already")), "{}", text(&again));
    assert_eq!((world.merchants.delivered(), letters_left(&world).await), (40, 5));
    assert_eq!(world.merchants.log().arrivals.len(), 40, "something went twice");
    world.merchants.assert_sound();
    // Its history names it, and so does the audit log.
    let shown = done(&world.redis, &["delivery", "show", "1007-0:ep_1", "-o", "json"]);
    assert!(shown.contains(&format!("mended ({id})")), "{shown}");
    let acts = json(&world.redis, &["audit", "list"]);
    let of = |act: &str| acts.as_array().unwrap().iter().find(|found| found["act"] == act).unwrap().clone();
    assert_eq!(
        (&of("operation plan")["filter"], &of("operation plan")["ended"]["result"]),
        (&"--all".into(), &"done".into())
    );
    let start = of("operation start");
    assert_eq!((&start["target"], &start["count"]), (&id.as_str().into(), &40.into()));
    assert_eq!((&start["ended"]["done"], &start["ended"]["skipped"]), (&40.into(), &0.into()), "{start}");
    assert_eq!(world.redis.command::<u64>(&["EXISTS", &keys().operation_claims(), &keys().operations_open()]).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_are_redelivered_through_three_kills_of_the_owner() {
    const LETTERS: u64 = 2_000;
    let world = world(4, LETTERS as usize / 4).await;
    let id = plan(&world, &["redeliver", "--all", "--rate", "2000"]);
    let setup = at_once(&world);
    let mut owner = setup.start();
    done(&world.redis, &["operation", "start", &id]);
    for kill in 1..=3 {
        until_done_of(&world, &id, kill * LETTERS / 4).await;
        owner.kill9();
        owner = setup.start();
    }
    until_state(&world, &id, State::Done).await;
    assert_eq!(totals(&show(&world, &id)), [LETTERS, 0, 0, 0, 0, 0]);
    assert_eq!((world.merchants.delivered() as u64, letters_left(&world).await), (LETTERS, 0));
    world.merchants.assert_sound();
    // What was in flight at a kill may come again; nothing else does.
    let again = world.merchants.log().arrivals.len() as u64 - LETTERS;
    assert!(again <= 3 * 4 * 16, "{again} came twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_are_redelivered_through_two_kills_of_redis() {
    const LETTERS: u64 = 2_000;
    let mut world = world(4, LETTERS as usize / 4).await;
    let id = plan(&world, &["redeliver", "--all", "--rate", "2000"]);
    let owner = at_once(&world).start();
    done(&world.redis, &["operation", "start", &id]);
    for kill in 1..=2 {
        until_done_of(&world, &id, kill * LETTERS / 3).await;
        world.redis.kill9().await;
        world.redis.start_again().await;
    }
    until_state(&world, &id, State::Done).await;
    assert_eq!(totals(&show(&world, &id)), [LETTERS, 0, 0, 0, 0, 0]);
    assert_eq!(world.merchants.delivered() as u64, LETTERS);
    world.merchants.assert_sound();
    drop(owner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_at_once_over_the_same_letters_take_each_once_and_their_totals_add_up() {
    let world = world(3, 200).await;
    let (all, some) = (
        plan(&world, &["redeliver", "--all", "--rate", "1000"]),
        plan(&world, &["redeliver", "--endpoint", "ep_1", "--rate", "1000"]),
    );
    let dropped = plan(&world, &["discard", "--endpoint", "ep_2"]);
    let _owner = at_once(&world).start();
    for id in [&all, &some, &dropped] {
        done(&world.redis, &["operation", "start", id]);
    }
    for id in [&all, &some, &dropped] {
        until_state(&world, id, State::Done).await;
    }
    let [all, some, dropped] = [&all, &some, &dropped].map(|id| totals(&show(&world, id)));
    let sum = |totals: [u64; 6]| totals.iter().sum::<u64>();
    assert_eq!((sum(all), sum(some), sum(dropped)), (600, 200, 200), "{all:?} {some:?} {dropped:?}");
    assert_eq!(all[0] + some[0] + dropped[0], 600, "{all:?} {some:?} {dropped:?}");
    assert_eq!(all[3] + some[3] + dropped[3], 400);
    assert_eq!(world.merchants.delivered() as u64, all[0] + some[0]);
    assert_eq!(world.merchants.log().arrivals.len() as u64, all[0] + some[0], "something went twice");
    assert_eq!(letters_left(&world).await, 0);
    world.merchants.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_is_paused_goes_on_slower_and_is_cancelled_with_true_totals() {
    let world = world(1, 400).await;
    let id = plan(&world, &["redeliver", "--all", "--rate", "100"]);
    let _owner = at_once(&world).start();
    done(&world.redis, &["operation", "start", &id]);
    until_done_of(&world, &id, 20).await;
    done(&world.redis, &["operation", "pause", &id, "--reason", "lunch"]);
    until("nothing to be under way", async || show(&world, &id)["open"] == 0).await;
    let paused = totals(&show(&world, &id));
    assert_eq!(paused[0] + paused[4], 400, "{paused:?}");
    assert_eq!(world.merchants.log().arrivals.len() as u64, paused[0]);
    done(&world.redis, &["operation", "rate", &id, "1000"]);
    let resumed = json(&world.redis, &["operation", "resume", &id]);
    assert_eq!((&resumed["state"], &resumed["rate"]), (&"running".into(), &1000.into()));
    until_done_of(&world, &id, paused[0] + 20).await;
    done(&world.redis, &["operation", "cancel", &id, "--reason", "enough"]);
    until_state(&world, &id, State::Cancelled).await;
    let ended = totals(&show(&world, &id));
    assert_eq!((ended[0] + ended[4], ended[5]), (400, 0), "{ended:?}");
    assert_eq!(letters_left(&world).await, ended[4]);
    assert_eq!(world.merchants.log().arrivals.len() as u64, ended[0]);
    for verb in ["start", "pause", "resume", "cancel"] {
        assert_eq!(herald(&world.redis, &["operation", verb, &id]).status.code(), Some(4), "{verb}");
    }
    let acts = json(&world.redis, &["audit", "list"]);
    let start = acts.as_array().unwrap().iter().find(|act| act["act"] == "operation start").unwrap();
    assert_eq!((&start["ended"]["result"], &start["ended"]["why"]), (&"failed".into(), &"it was cancelled".into()));
    assert_eq!(start["ended"]["done"], ended[0]);
    // What was planned and not started can be dropped too.
    let other = plan(&world, &["discard", "--all"]);
    assert_eq!(json(&world.redis, &["operation", "cancel", &other])["state"], "cancelled");
    let newest = json(&world.redis, &["operation", "list", "--limit", "1"]);
    assert_eq!(newest[0]["id"], other.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_again_waits_and_holds_up_nobody_else() {
    let world = world(2, 100).await;
    world.merchants.rule("ep_0", |_| Reply::status(500));
    let id = plan(&world, &["redeliver", "--all", "--rate", "1000"]);
    let _owner = at_once(&world).env("HERALD_RETRY_MAX_INTERVAL", "10m").env("HERALD_RETRY_INITIAL", "5m").start();
    done(&world.redis, &["operation", "start", &id]);
    until_done_of(&world, &id, 100).await;
    assert_eq!(world.merchants.log().delivered_to("ep_1"), 100);
    until("it says what it waits for", async || {
        show(&world, &id)["waits"].to_string().contains("ep_0: it fails again, ")
    })
    .await;
    let tried = world.merchants.log().arrivals.iter().filter(|arrival| arrival.endpoint == "ep_0").count();
    assert!((1..=40).contains(&tried), "{tried} went to an endpoint that fails");
    let shown = totals(&show(&world, &id));
    assert_eq!((shown[0], shown[4] + shown[5]), (100, 100), "{shown:?}");
    world.pause("ep_0").await;
    until("it says that it is paused", async || {
        show(&world, &id)["waits"].to_string().contains("ep_0: paused by tester: the test")
    })
    .await;
    // What is not taken yet is kept from anybody who comes late, and what is under way from anybody else.
    let open = format!("{PREFIX}operation-claims");
    let claimed: Vec<String> = world.redis.command(&["HKEYS", &open]).await;
    assert!(claimed.iter().all(|id| id.ends_with(":ep_0")) && !claimed.is_empty(), "{claimed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_dies_again_is_told_with_its_reason_and_so_is_what_is_refused() {
    let world = world(3, 10).await;
    let once = RetryOverrides { max_attempts: Some(1), ..RetryOverrides::default() };
    world.change("ep_0", |endpoint| endpoint.retry = once).await;
    world.merchants.rule("ep_0", |_| Reply::status(404));
    world.change("ep_1", |endpoint| endpoint.disable(mark(), EntryId::MAX)).await;
    let owner = at_once(&world).start();
    owner.until_owner().await;
    let all = ["dead-letter", "redeliver", "--all", "--yes", "--reason", "mended"];
    let output = herald(&world.redis, &all);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("10 of 30 delivered, 10 dead again, 10 refused"), "{said}");
    assert!(said.contains("10 were refused and 10 are dead again: `herald operation results op_"), "{said}");
    let id = json(&world.redis, &["operation", "list"])[0]["id"].as_str().unwrap().to_owned();
    let results = json(&world.redis, &["operation", "results", &id]);
    let results = results.as_array().unwrap();
    let of = |result: &str| results.iter().filter(|one| one["result"] == result).collect::<Vec<_>>();
    let names = |of: &[&Value]| of.iter().map(|one| one["id"].to_string()).collect::<BTreeSet<_>>().len();
    assert_eq!((names(&of("dead_again")), names(&of("refused")), results.len()), (10, 10, 20));
    assert!(of("dead_again").iter().all(|one| one["why"] == "exhausted rejected:404"), "{results:?}");
    assert!(of("refused").iter().all(|one| one["why"].to_string().contains("ep_1 is disabled")), "{results:?}");
    assert_eq!(letters_left(&world).await, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operation_has_under_way_nobody_else_redelivers_or_drops() {
    let world = world(1, 3).await;
    world.merchants.rule("ep_0", |_| Reply::status(500));
    let id = plan(&world, &["redeliver", "--all"]);
    let owner = at_once(&world).start();
    done(&world.redis, &["operation", "start", &id]);
    until("all to be under way", async || show(&world, &id)["open"] == 3).await;
    // As it would look between its second death and the operation's next look.
    owner.kill9();
    let claimed: Vec<String> = world.redis.command(&["HKEYS", &keys().operation_claims()]).await;
    let request = ["op", "discard", "id", &claimed[0], "mark", r#"{"by":"ann","why":"late","at_ms":1}"#];
    let inbox = keys().inbox();
    let words: Vec<&str> = ["XADD", &inbox, "*"].into_iter().chain(request).collect();
    let asked: String = world.redis.command(&words).await;
    let _next = at_once(&world).start();
    let answer: (String, String) = world.redis.command(&["BLPOP", &keys().answer(&asked), "60"]).await;
    assert!(answer.1.contains(&format!("{id} has it under way")), "{}", answer.1);
    world.merchants.heal("ep_0");
    until_state(&world, &id, State::Done).await;
    assert_eq!(totals(&show(&world, &id)), [3, 0, 0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_plans_and_discards_and_lets_redeliveries_wait() {
    let world = world(1, 300).await;
    let (redeliver, discard) =
        (plan(&world, &["redeliver", "--limit", "100"]), plan(&world, &["discard", "--all", "--limit", "250"]));
    let owner = at_once(&world).start();
    owner.until_owner().await;
    world.redis.set_maxmemory(1).await;
    // A plan is small, and to discard is how room is made.
    let later = plan(&world, &["discard", "--endpoint", "ep_0"]);
    done(&world.redis, &["operation", "cancel", &later]);
    done(&world.redis, &["operation", "start", &redeliver]);
    until("it says that it waits", async || show(&world, &redeliver)["waits"].to_string().contains("Redis is full"))
        .await;
    let said = done(&world.redis, &["operation", "start", &discard, "--watch"]);
    assert!(said.contains("250 of 250 discarded"), "{said}");
    world.redis.set_maxmemory(0).await;
    until_state(&world, &redeliver, State::Done).await;
    // The oldest 100 were among those that were dropped, but for those that it took first.
    let of = totals(&show(&world, &redeliver));
    assert_eq!((of[0], of[3], letters_left(&world).await), (0, 100, 50), "{of:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_watches_and_it_is_done_all_the_same() {
    let world = world(1, 30).await;
    let owner = at_once(&world).start();
    owner.until_owner().await;
    let words = ["dead-letter", "redeliver", "--endpoint", "ep_0", "--no-wait", "--yes", "--reason", "mended"];
    let said = done(&world.redis, &words);
    let at = said.find("op_").unwrap();
    let id = &said[at..at + 30];
    assert!(said.contains(&format!("herald operation watch {id}")), "{said}");
    until_state(&world, id, State::Done).await;
    assert_eq!(world.merchants.log().delivered_to("ep_0"), 30);
    let watched = done(&world.redis, &["operation", "watch", id]);
    assert!(watched.contains("30 of 30 delivered"), "{watched}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_are_bounded_and_what_is_no_plan_of_this_partition_is_not_there() {
    let world = world(1, 3).await;
    let mut operations = operations(&world.redis).await;
    let wanted = |random| Wanted {
        kind: Kind::Discard,
        letters: DeadFilter::everything(),
        limit: Some(2),
        filter: "--all --limit 2".to_owned(),
        rate: None,
        by: "ann".to_owned(),
        why: "a test".to_owned(),
        random,
        made_ms: None,
    };
    let mut planned = Vec::new();
    for n in 0..MAX_PLANNED + 10 {
        planned.push(operations.plan(wanted(n)).await.unwrap().id);
    }
    let sent = async || {
        let info = world.redis.command::<String>(&["INFO", "stats"]).await;
        let (_, after) = info.split_once("total_net_output_bytes:").unwrap();
        after.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let before = sent().await;
    assert_eq!(operations.ids().await.unwrap().len() as u64, MAX_PLANNED);
    let (whole, before) = (sent().await - before, sent().await);
    let (page, is_beyond) = operations.page(Beside::Nothing, 3).await.unwrap();
    let read = sent().await - before;
    let newest: Vec<_> = planned.iter().rev().take(3).cloned().collect();
    assert_eq!((page, is_beyond), (newest, true));
    assert!(read < whole / 4, "a page of three reads {read} bytes of {whole}");
    let there: u64 =
        world.redis.command(&["EXISTS", &keys().operation(&planned[9]), &keys().operation(&planned[10])]).await;
    assert_eq!(there, 1, "the oldest give way");
    let who = Change { by: "ann".to_owned(), why: String::new(), at_ms: 1 };
    let gone = operations.change(&planned[0], Verb::Start(None), &who).await;
    assert!(matches!(gone, Err(OperationError::Missing(_))), "{gone:?}");
    for id in &planned[10..10 + MAX_OPEN as usize] {
        assert_eq!(operations.change(id, Verb::Start(None), &who).await.unwrap(), State::Running);
    }
    let many = operations.change(planned.last().unwrap(), Verb::Start(None), &who).await;
    assert!(matches!(many, Err(OperationError::Many(MAX_OPEN))), "{many:?}");
    for words in
        [["operation", "show", "op_none"], ["operation", "start", "op_none"], ["operation", "watch", "op_none"]]
    {
        assert_eq!(herald(&world.redis, &words).status.code(), Some(3), "{words:?}");
    }
    let nothing = herald(&world.redis, &["operation", "plan", "discard", "--intent", "pi_none", "--reason", "x"]);
    assert_eq!(nothing.status.code(), Some(3), "{}", text(&nothing));
    let bare = herald(&world.redis, &["operation", "plan", "discard", "--reason", "x"]);
    assert_eq!(bare.status.code(), Some(2), "{}", text(&bare));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_next_attempt_is_sent_now_and_once() {
    let world = World::on(TestRedis::start_with_aof().await).await;
    world.register_many(2).await;
    let [failing, sound] = [0, 1].map(|n| format!("ep_{n}"));
    for endpoint in [&failing, &sound] {
        world.merchants.rule(endpoint, |_| Reply::status(500));
    }
    let owner = at_once(&world).env("HERALD_RETRY_MAX_INTERVAL", "10m").env("HERALD_RETRY_INITIAL", "10m").start();
    owner.until_owner().await;
    let event = |n: usize| Event::new(n, &format!("acc_{}", n % 2), &format!("pi_{}", n / 2), "Created");
    world.publish(&(0..6).map(event).collect::<Vec<_>>()).await;
    world.until_key("all to wait", &["ZCARD", &keys().due()], |waiting| waiting == 6).await;
    world.merchants.heal("ep_0");
    let refused = herald(&world.redis, &["operation", "plan", "send-now", "--all", "--reason", "x"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    let id = plan(&world, &["send-now", "--endpoint", "ep_0"]);
    assert_eq!(show(&world, &id)["count"], 3);
    let said = done(&world.redis, &["operation", "start", &id, "--watch"]);
    assert!(said.contains("3 of 3 sent"), "{said}");
    world.merchants.until_delivered(3).await;
    // One chain of an endpoint that still fails: tried once more, and due again later.
    let id = plan(&world, &["send-now", "--endpoint", "ep_1", "--intent", "pi_2"]);
    done(&world.redis, &["operation", "start", &id, "--watch"]);
    let tried = world.merchants.log().of("ep_1").filter(|arrival| arrival.intent == "pi_2").count();
    assert_eq!((tried, world.merchants.log().of("ep_1").count()), (2, 4));
    assert_eq!(world.number(&["ZCARD", &keys().due()]).await, 3);
    let nothing = herald(&world.redis, &["operation", "plan", "send-now", "--endpoint", "ep_0", "--reason", "x"]);
    assert_eq!(nothing.status.code(), Some(3), "{}", text(&nothing));
}

/// What an owner does that has lost its lease, and what one does twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_lease_changes_nothing_and_a_step_that_comes_again_is_none() {
    let world = world(1, 3).await;
    let id: OperationId = plan(&world, &["redeliver", "--all"]).parse().unwrap();
    done(&world.redis, &["operation", "start", id.as_str()]);
    let owner = Owner::start(&world.redis.redis()).await;
    let connect = async || world.redis.redis().connect(Purpose::Other).await.unwrap();
    let mut lost = Work::new(connect().await, keys(), Term::new(9, "another"));
    let mut work = Work::new(connect().await, keys(), owner.term.clone());
    let endpoint = "ep_0".parse().unwrap();
    work.lay(&id, std::slice::from_ref(&endpoint)).await.unwrap().unwrap();
    let at: f64 = world.redis.command(&["ZSCORE", &keys().dead(), "1001-0:ep_0"]).await;
    let letters = vec![("1001-0:ep_0".parse().unwrap(), at as u64), ("1002-0:ep_0".parse().unwrap(), 7)];
    let after = Some(format!("{} 1001-0:ep_0", at as u64));
    let taking = Taking { endpoint: endpoint.clone(), before: String::new(), after, letters };
    assert_eq!(lost.lay(&id, &[]).await.unwrap(), Err(Lost));
    assert_eq!(lost.take(&id, Kind::Redeliver, &mark(), &taking).await.unwrap(), Err(Lost));
    assert_eq!(lost.book(&id, Kind::Redeliver, false, &[], &[]).await.unwrap(), Err(Lost));
    assert_eq!(lost.end(&id, false).await.unwrap(), Err(Lost));
    assert_eq!(lost.erase(&id, Erased::Letters(&["1001-0:ep_0".parse().unwrap()])).await.unwrap(), Err(Lost));
    let (before, after, refusal, events) = (String::new(), None, None, Vec::new());
    let replaying = Replaying { endpoint: endpoint.clone(), before, after, refusal, events };
    assert_eq!(format!("{:?}", lost.replay(&id, &replaying).await.unwrap()), "Err(Lost)");
    let waiting = async || world.redis.command::<u64>(&["XLEN", &keys().inbox()]).await;
    assert_eq!(waiting().await, 0);
    let taken = format!("{:?}", work.take(&id, Kind::Redeliver, &mark(), &taking).await.unwrap());
    // Not one that died at another time than it was planned with.
    assert_eq!((taken.as_str(), waiting().await), ("Ok(Some([1001-0:ep_0]))", 1));
    let again = format!("{:?}", work.take(&id, Kind::Redeliver, &mark(), &taking).await.unwrap());
    assert_eq!((again.as_str(), waiting().await), ("Ok(Moved)", 1));
    assert!(work.end(&id, false).await.unwrap().unwrap().is_none(), "one is under way");
    world.change("ep_0", |endpoint| endpoint.status = EndpointState::Enabled).await;
    owner.release().await;
    let _worker: Herald = at_once(&world).start();
    until_state(&world, id.as_str(), State::Done).await;
    assert_eq!(totals(&show(&world, id.as_str())), [2, 0, 0, 1, 0, 0]);
}

/// Its records among those of the account that has the endpoint's id now, and what the owner has in memory alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_sees_what_is_left_under_an_id_that_was_given_out_again_and_what_is_under_way() {
    const OTHERS: u64 = 600;
    let redis = TestRedis::start().await;
    let owner = Owner::start(&redis.redis()).await;
    let mut work = Work::new(redis.redis().connect(Purpose::Other).await.unwrap(), keys(), owner.term.clone());
    let of = |n: u64, account: &str| {
        let one = delivery(&format!("{}-0", 1_000 + n), "ep_a", &format!("pi_{n}"), true);
        keep(&Delivery { account: account.parse().unwrap(), ..one }, Place::Backlog)
    };
    for first in (0..OTHERS).step_by(100) {
        owner.settle((first..first + 100).map(|n| of(n, "acc_new")).collect(), Vec::new()).await;
    }
    owner.settle(vec![of(OTHERS, "acc_old")], Vec::new()).await;
    assert_eq!(work.endpoints_with_records(0).await.unwrap(), (0, vec![(endpoint_id("ep_a"), OTHERS + 1)]));
    for (account, is_there) in [("acc_old", true), ("acc_new", true), ("acc_none", false)] {
        let (mut cursor, mut looks, mut found) = (0, 0, false);
        loop {
            let at = [(endpoint_id("ep_a"), cursor)];
            let look = work.look_for_records(&account.parse().unwrap(), EntryId::MAX, &at).await.unwrap();
            (cursor, found, looks) = (look[0].0, found || look[0].1, looks + 1);
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(found, is_there, "{account}");
        assert!(looks > 1, "all of them were read at once");
    }
    let before = EntryId { ms: 999, seq: 0 };
    let owned_later = work.look_for_records(&"acc_old".parse().unwrap(), before, &[(endpoint_id("ep_a"), 0)]).await;
    assert!(!owned_later.unwrap()[0].1, "what came after the plan is not meant");

    let entry: String = redis.command(&["XADD", keys().stream(), "*", "event", "{}"]).await;
    let last = entry.parse().unwrap();
    assert!(!work.is_under_way(last).await.unwrap(), "nobody has read it");
    owner.call(Call::Read { term: owner.term.clone(), from: ReadFrom::New, max: 10 }).await;
    assert!(work.is_under_way(last).await.unwrap());
    redis.command::<u64>(&["XDEL", keys().stream(), &entry]).await;
    assert!(work.is_under_way(last).await.unwrap(), "the owner has it all the same");
    redis.command::<u64>(&["XACK", keys().stream(), GROUP, &entry]).await;
    assert!(!work.is_under_way(last).await.unwrap());
}

/// Redis' clock was set back after they died: they are there all the same, and what dies until then must not go in their place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_that_are_dated_ahead_of_redis_are_found_and_sent_again_and_not_dropped_blindly() {
    let redis = TestRedis::start().await;
    let owner = Owner::start(&redis.redis()).await;
    let letter = |n: u64| {
        let one = delivery(&format!("{n}-0"), "ep_0", &format!("pi_{n}"), true);
        bury(&Delivery { account: "acc_0".parse().unwrap(), ..one }, DeadReason::Exhausted)
    };
    owner.settle(vec![letter(1), letter(2)], Vec::new()).await;
    let now_ms = herald::clock::wall_ms();
    let ahead = (now_ms + 3_600_000).to_string();
    for index in [keys().dead(), format!("{}dead:ep_0", PREFIX)] {
        redis.command::<u64>(&["ZADD", &index, "XX", "CH", &ahead, "2-0:ep_0"]).await;
    }
    let list = json(&redis, &["dead-letter", "list", "--endpoint", "ep_0"]);
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    let refused = herald(&redis, &["operation", "plan", "discard", "--endpoint", "ep_0", "--reason", "x"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(&refused).contains("Redis' clock was set back"), "{}", text(&refused));
    let count =
        |words: &[&str]| json(&redis, &[&["operation", "plan"], words, &["--reason", "x"]].concat())["count"].clone();
    assert_eq!(count(&["discard", "--endpoint", "ep_0", "--until", "0s"]), 1, "what certainly died before");
    assert_eq!(count(&["redeliver", "--endpoint", "ep_0"]), 2);
}

/// Planned and changed by an operator, worked on by the owner.
pub async fn as_each_role(worker: &Redis, operator: &Redis, owner: &Owner) {
    let mut theirs = Operations::new(operator.connect(Purpose::Other).await.unwrap(), keys());
    let mut work = Work::new(worker.connect(Purpose::Other).await.unwrap(), keys(), owner.term.clone());
    let who = Change { by: "ops".into(), why: String::new(), at_ms: 1 };
    let wanted = |kind, letters| Wanted {
        kind,
        letters,
        limit: None,
        filter: String::new(),
        rate: None,
        by: "ops".into(),
        why: "mended".into(),
        random: rand::random(),
        made_ms: None,
    };
    let planned = theirs.plan(wanted(Kind::Discard, DeadFilter::everything())).await.unwrap();
    let (id, endpoint) = (&planned.id, endpoint_id("ep_a"));
    theirs.change(id, Verb::Rate(Rate::of(9)), &who).await.unwrap();
    theirs.change(id, Verb::Start(None), &who).await.unwrap();
    theirs.change(id, Verb::Pause, &who).await.unwrap();
    theirs.change(id, Verb::Resume, &who).await.unwrap();
    assert_eq!(work.open().await.unwrap(), std::slice::from_ref(id));
    work.lay(id, std::slice::from_ref(&endpoint)).await.unwrap().unwrap();
    assert_eq!(work.places(id).await.unwrap().len(), 1);
    work.of_intents(&["pi_4".parse().unwrap()]).await.unwrap();
    // None that there is: it is looked for and not found.
    let letters = vec![("99-9:ep_a".parse().unwrap(), 0)];
    let taking = Taking { endpoint, before: String::new(), after: None, letters };
    work.take(id, Kind::Discard, &mark(), &taking).await.unwrap().unwrap();
    assert_eq!(work.claims().await.unwrap(), []);
    let booked = work.book(id, Kind::Discard, false, &[], &[taking.letters[0].0.clone()]).await.unwrap().unwrap();
    assert!(booked.is_some_and(|booked| booked.is_laid && booked.rate == Rate::of(9)));
    assert!(theirs.exceptions(id, None, 10).await.unwrap().is_empty());
    assert!(work.end(id, false).await.unwrap().unwrap().is_some());
    work.end(id, true).await.unwrap().unwrap();
    assert!(!theirs.is_open(id).await.unwrap());
    assert_eq!(theirs.find(id).await.unwrap().unwrap().counts.overtaken, planned.plan.count);
    let of_endpoint = DeadFilter { endpoint: Some(endpoint_id("ep_a")), ..DeadFilter::everything() };
    let (replayed, endpoint) = (wanted(Kind::Replay, of_endpoint.clone()), endpoint_id("ep_a"));
    let replayed = theirs.plan_frozen(replayed, Selection::default(), 1).await.unwrap().id;
    theirs.change(&replayed, Verb::Start(None), &who).await.unwrap();
    work.lay(&replayed, std::slice::from_ref(&endpoint)).await.unwrap().unwrap();
    let (before, after, refusal) = (String::new(), None, Some("it is a test".to_owned()));
    let event =
        RawEvent { entry: EntryId { ms: 5, seq: 0 }, body: "{}".into(), number: Some(1), traceparent: String::new() };
    let replaying = Replaying { endpoint, before, after, refusal, events: vec![event] };
    assert_eq!(format!("{:?}", work.replay(&replayed, &replaying).await.unwrap()), "Ok(Some([]))");
    work.book(&replayed, Kind::Replay, true, &[], &["9-9:ep_a".parse().unwrap()]).await.unwrap().unwrap();
    assert_eq!(theirs.exceptions(&replayed, None, 10).await.unwrap()[0].1.why, "it is a test");
    let erased =
        theirs.plan_frozen(wanted(Kind::Erase, DeadFilter::everything()), Selection::default(), 0).await.unwrap().id;
    theirs.change(&erased, Verb::Start(None), &who).await.unwrap();
    let nothing = work.erase(&erased, Erased::Letters(&["99-9:ep_a".parse().unwrap()])).await.unwrap();
    assert_eq!(nothing, Ok(Some(0)));
    assert_eq!(work.erase(&erased, Erased::Entries(&[EntryId { ms: 1, seq: 9 }])).await.unwrap(), Ok(Some(0)));
    let last = EntryId::MAX;
    work.histories_have_read(last, 1).await.unwrap();
    work.endpoints_with_records(0).await.unwrap();
    work.is_under_way(last).await.unwrap();
    work.look_for_records(&"acc_none".parse().unwrap(), EntryId::MAX, &[(endpoint_id("ep_a"), 0)]).await.unwrap();
    work.rewrite_files().await.unwrap();
    for id in [&replayed, &erased] {
        theirs.change(id, Verb::Cancel, &who).await.unwrap();
    }
    if let Ok(sending) = theirs.plan(wanted(Kind::SendNow, of_endpoint)).await {
        theirs.change(&sending.id, Verb::Start(None), &who).await.unwrap();
        work.send(&sending.id, 1).await.unwrap().unwrap();
        theirs.change(&sending.id, Verb::Cancel, &who).await.unwrap();
    }
}

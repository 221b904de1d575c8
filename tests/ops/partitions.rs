//! A stream that is routed into four parts: what there is of all of them is shown as of one, and who owns one is asked for what is in it.

use std::collections::{BTreeMap, BTreeSet};

use herald::{
    facts::{
        delivery::Delivery,
        envelope::Envelope,
        id::{AccountId, DeliveryId},
        partition::part_of,
        retry::DeadReason,
    },
    store::{
        connection::Purpose,
        keys::PartitionKeys,
        protocol::{Item, Place},
        queries::{
            DeadCursor, DeadFilter, DeadKey, DeadOrder, FoundPage, Outcome, Partitions, QuarantinePlace, QuarantineSide,
        },
        registry::RegistryStore,
    },
};
use serde_json::Value;

use crate::{
    merchants::Reply,
    stage::{Owner, STREAM, bury, delivery_of, endpoint, endpoint_id, intent, keep, log_line, mark},
    support::{TestRedis, until},
    verbs::{NOWHERE, done, herald, text},
    world::{Event, World},
};

pub const PARTS: u32 = 4;

/// `ep_N` of `acc_N`, for N below this: two accounts in each part.
const ACCOUNTS: u32 = 8;

fn keys(part: u32) -> PartitionKeys {
    PartitionKeys::new(&part_of(STREAM, part)).unwrap()
}

/// As the split would have it.
async fn route(redis: &TestRedis) {
    let mode = PartitionKeys::new(STREAM).unwrap().mode();
    redis.command::<()>(&["SET", &mode, &format!("routed {PARTS} t0ken 0-0")]).await;
    redis.command::<u64>(&["HSET", "herald:{herald}:partitions", STREAM, &PARTS.to_string()]).await;
}

async fn partitions(redis: &TestRedis) -> Partitions {
    let connection = redis.redis().connect(Purpose::Other).await.unwrap();
    Partitions::find(connection, &PartitionKeys::new(STREAM).unwrap()).await.unwrap()
}

/// A routed stream with an owner of each part, and an endpoint of each account.
struct House {
    redis: TestRedis,
    owners: Vec<Owner>,
    /// By the number of an account.
    part_of: Vec<usize>,
}

impl House {
    async fn start() -> Self {
        let redis = TestRedis::start().await;
        route(&redis).await;
        let mut registry = RegistryStore::connect(&redis.redis()).await.unwrap();
        let layout = partitions(&redis).await.layout().clone();
        let mut found = Vec::new();
        for n in 0..ACCOUNTS {
            let (id, account) = (format!("ep_{n}"), format!("acc_{n}"));
            registry.create(endpoint(&id, &account, NOWHERE), &mark()).await.unwrap();
            let stream = layout.path(&AccountId::new(&account).unwrap()).pop().unwrap();
            found.push((0..PARTS).position(|part| part_of(STREAM, part) == stream).unwrap());
        }
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), PARTS as usize, "each part has accounts");
        let mut owners = Vec::new();
        for part in 0..PARTS {
            owners.push(Owner::of(&redis.redis(), keys(part)).await);
        }
        Self { redis, owners, part_of: found }
    }

    fn owner(&self, account: u32) -> &Owner {
        &self.owners[self.part_of[account as usize]]
    }

    /// Of the account's endpoint, about an entry of this number.
    fn delivery(&self, account: u32, number: u64) -> Delivery {
        let (entry, intent) = (format!("{number}-0"), format!("pi_{number}"));
        delivery_of(&format!("acc_{account}"), &entry, &format!("ep_{account}"), &intent, true)
    }

    /// Several of one account share a millisecond.
    async fn bury(&self, account: u32, numbers: impl Iterator<Item = u64>) {
        let dead = |number| bury(&self.delivery(account, number), DeadReason::Exhausted);
        self.owner(account).settle(numbers.map(dead).collect(), Vec::new()).await;
    }

    /// All letters as the indexes of the parts have them, the oldest first.
    async fn letters(&self) -> Vec<(u64, String)> {
        let mut all = Vec::new();
        for part in 0..PARTS {
            let key = keys(part).dead();
            let found: Vec<(String, u64)> = self.redis.command(&["ZRANGE", &key, "0", "-1", "WITHSCORES"]).await;
            all.extend(found.into_iter().map(|(id, at_ms)| (at_ms, id)));
        }
        all.sort();
        all
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = herald(&self.redis, &[words, &["-o", "json"]].concat());
        assert!(output.status.success(), "{words:?}: {}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn ids(page: &FoundPage) -> Vec<(u64, String)> {
    page.letters.iter().map(|letter| (letter.at_ms, letter.id.to_string())).collect()
}

#[tokio::test]
async fn letters_of_all_parts_are_one_list() {
    let house = House::start().await;
    for round in 0..5 {
        for account in 0..ACCOUNTS {
            let first = u64::from(round * 100 + account * 10 + 1);
            house.bury(account, first..first + 3 + u64::from(account % 2)).await;
        }
    }
    let there = house.letters().await;
    assert_eq!(there.len(), 5 * 28);

    for order in [DeadOrder::OldestFirst, DeadOrder::NewestFirst] {
        let mut all = partitions(&house.redis).await;
        let (mut seen, mut after, mut added) = (Vec::new(), None::<DeadCursor>, 1_000);
        loop {
            let page = all.find_dead(&DeadFilter::everything(), order, after.as_ref(), 7).await.unwrap();
            seen.extend(ids(&page));
            // Letters that come meanwhile are no reason to miss one, or to show one twice.
            if order == DeadOrder::NewestFirst {
                house.bury(added as u32 % ACCOUNTS, added..added + 2).await;
                added += 10;
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let mut wanted = there.clone();
        if order == DeadOrder::NewestFirst {
            assert!(added > 1_100, "some came meanwhile");
            wanted.reverse();
        }
        let first = seen.iter().zip(&wanted).position(|(seen, wanted)| seen != wanted);
        assert_eq!(
            (first, seen.len()),
            (None, wanted.len()),
            "{order:?}: {:?}",
            first.map(|at| (&seen[at], &wanted[at]))
        );
    }

    // Counts add, and those of one account or endpoint are those of its part.
    let mut all = partitions(&house.redis).await;
    let there = house.letters().await;
    let total = there.len() as u64;
    assert_eq!(all.count_dead_where(&DeadFilter::everything()).await.unwrap(), total);
    assert_eq!(all.unindexed_dead().await.unwrap(), 0);
    let groups = all.group_dead(&DeadFilter::everything(), &[DeadKey::Reason]).await.unwrap();
    let [totals] = groups.values().collect::<Vec<_>>()[..] else { panic!("{groups:?}") };
    assert_eq!((totals.count, totals.first_ms), (total, there[0].0));
    assert_eq!(totals.last_ms, there[there.len() - 1].0);
    for account in 0..ACCOUNTS {
        let of = |name: &str, id: &str| there.iter().filter(|(_, one)| one.ends_with(&format!(":{name}{id}"))).count();
        let wanted = of("ep_", &account.to_string());
        let (account, id) = (format!("acc_{account}"), format!("ep_{account}"));
        for words in [["--account", &account], ["--endpoint", &id]] {
            let listed = house.json(&["dead-letter", "list", "--limit", "500", words[0], words[1]]);
            assert_eq!(listed.as_array().unwrap().len(), wanted, "{words:?}");
        }
    }

    // The verb shows the same, the newest first; one is found by its id, and asked of the partition that has it.
    let listed = house.json(&["dead-letter", "list", "--limit", "1000"]);
    let listed: Vec<String> =
        listed.as_array().unwrap().iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(listed, there.iter().rev().map(|(_, id)| id.clone()).collect::<Vec<_>>());
    for (_, id) in there.iter().step_by(17) {
        assert_eq!(house.json(&["dead-letter", "show", id])["id"], **id);
        let id: DeliveryId = id.parse().unwrap();
        let found = all.keys_of(std::slice::from_ref(&id)).await.unwrap();
        let account: u32 = id.endpoint.as_str()["ep_".len()..].parse().unwrap();
        assert_eq!(found[0].stream(), part_of(STREAM, house.part_of[account as usize] as u32));
    }
}

#[tokio::test]
async fn a_letter_that_is_in_two_while_its_stream_is_split_is_one() {
    let house = House::start().await;
    let root = Owner::start(&house.redis.redis()).await;
    let letter = house.delivery(3, 7);
    house.bury(3, 7..8).await;
    root.settle(vec![bury(&letter, DeadReason::Exhausted)], Vec::new()).await;
    house.bury(2, 8..9).await;
    // In both it has one time, as when it was handed over.
    let at: u64 = house.redis.command(&["ZSCORE", &keys(house.part_of[3] as u32).dead(), &letter.id.to_string()]).await;
    for key in [crate::stage::keys().dead(), crate::stage::keys().dead_of(&endpoint_id("ep_3"))] {
        house.redis.command::<u64>(&["ZADD", &key, &at.to_string(), &letter.id.to_string()]).await;
    }
    let listed = house.json(&["dead-letter", "list"]);
    let listed: Vec<&str> = listed.as_array().unwrap().iter().map(|letter| letter["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ["8-0:ep_2", "7-0:ep_3"]);
}

#[tokio::test]
async fn what_is_unfinished_is_found_in_each_part_and_counts_add() {
    let house = House::start().await;
    for account in 0..ACCOUNTS {
        let number = u64::from(account + 1);
        let one = house.delivery(account, number);
        let due = Place::DueIn(3_600_000);
        let line = log_line(&one, r#""kind":"rejected","status":401"#);
        house.owner(account).settle(vec![keep(&one, due)], vec![line]).await;
    }
    let mut all = partitions(&house.redis).await;
    let busy: BTreeMap<_, _> = all.busy_endpoints(100).await.unwrap().into_iter().collect();
    assert_eq!(busy.values().sum::<u64>(), u64::from(ACCOUNTS));
    assert_eq!(all.due_and_claimed().await.unwrap(), (u64::from(ACCOUNTS), 0));
    let lines = all.attempts(&Default::default(), 100, 1_000).await.unwrap();
    assert_eq!((lines.lines.len(), lines.reached_end), (ACCOUNTS as usize, true));

    for account in 0..ACCOUNTS {
        let (id, number) = (format!("{}-0:ep_{account}", account + 1), format!("pi_{}", account + 1));
        assert_eq!(house.json(&["delivery", "show", &id])["state"], "due", "{id}");
        let (endpoint, account) = (format!("ep_{account}"), format!("acc_{account}"));
        for words in [["--intent", &number], ["--endpoint", &endpoint], ["--account", &account]] {
            let listed = house.json(&["delivery", "list", words[0], words[1]]);
            assert_eq!((listed.as_array().unwrap().len(), &listed[0]["id"]), (1, &id.as_str().into()), "{words:?}");
        }
        assert_eq!(house.json(&["chain", "list", "--endpoint", &endpoint])[0]["id"], id);
        let chain = all.chain(&endpoint.parse().unwrap(), &intent(&number), 10).await.unwrap();
        assert_eq!(chain.len(), 1);
        assert_eq!(house.json(&["endpoint", "show", &endpoint])["health"]["unfinished"], 1);
    }
    let unfinished: u64 = house
        .json(&["endpoint", "list"])
        .as_array()
        .unwrap()
        .iter()
        .map(|endpoint| endpoint["health"]["unfinished"].as_u64().unwrap())
        .sum();
    assert_eq!(unfinished, u64::from(ACCOUNTS));

    let listed = house.json(&["partition", "list"]);
    let listed = listed.as_array().unwrap();
    let column = |name: &str| listed.iter().map(|one| one[name].clone()).collect::<Vec<_>>();
    assert_eq!(
        column("stream"),
        [STREAM, "payment-intents:0", "payment-intents:1", "payment-intents:2", "payment-intents:3"]
    );
    assert_eq!(column("mode"), ["routed", "worked", "worked", "worked", "worked"]);
    assert_eq!(column("unfinished"), [0, 2, 2, 2, 2]);
    assert!(listed[0]["owner"].is_null() && listed[1]["owner"].is_string(), "{listed:#?}");
    let place = house.json(&["partition", "of", "acc_3"]);
    assert_eq!(place["path"], serde_json::json!([STREAM, "payment-intents:1"]));
    assert_eq!(house.json(&["partition", "show", "payment-intents:2"])["slot"], 3844);
    let missing = herald(&house.redis, &["partition", "show", "payment-intents:9"]);
    assert_eq!(missing.status.code(), Some(3), "{}", text(&missing));
}

#[tokio::test]
async fn how_far_a_stream_is_routed_its_parts_tell() {
    let house = House::start().await;
    for number in 1..=5 {
        let id = format!("{number}-0");
        house.redis.command::<String>(&["XADD", STREAM, &id, "event", "{}"]).await;
    }
    let event = Event::new(9, "acc_3", "pi_9", "Captured");
    house.redis.command::<String>(&["XADD", keys(1).stream(), "9-0", "event", &event.body]).await;
    assert_eq!(house.json(&["event", "show", &event.id])["entry"], "9-0");
    let behind = || house.json(&["partition", "show", STREAM])["behind"].clone();
    assert!(behind().is_null(), "a part that says nothing may have everything before it");
    for (part, upto) in ["5-0", "2-0", "4-0", "5-0"].iter().enumerate() {
        house.redis.command::<()>(&["SET", &keys(part as u32).routed(), upto]).await;
    }
    assert_eq!(behind(), 3);
    house.redis.command::<()>(&["SET", &keys(1).routed(), "5-0"]).await;
    house.redis.command::<()>(&["SET", &keys(2).routed(), "5-0"]).await;
    assert_eq!(behind(), 0);
    assert_eq!(house.json(&["partition", "show", "payment-intents:1"])["routed"], "5-0");
}

#[tokio::test]
async fn an_account_is_drained_once_its_whole_path_has_passed_what_it_had_accepted() {
    let house = House::start().await;
    let account = AccountId::new("acc_3").unwrap();
    let (root, part) = (crate::stage::keys(), keys(house.part_of[3] as u32));
    let add = async |keys: &PartitionKeys, id: &str| {
        house.redis.command::<String>(&["XADD", keys.stream(), id, "event", "{}"]).await;
    };
    let pass = async |keys: &PartitionKeys, id: &str| house.redis.command::<()>(&["SET", &keys.cursor(), id]).await;
    add(&root, "5-0").await;
    let last = partitions(&house.redis).await.last_entry_of(&account).await.unwrap();
    assert_eq!(last.to_string(), "5-0");
    let mut all = partitions(&house.redis).await;
    assert!(!all.is_passed(&account, last).await.unwrap(), "it is not passed on yet");
    // The part had a later one of its own by then, so what comes from the stream before it stands behind that.
    add(&part, "9-0").await;
    add(&part, "9-1").await;
    pass(&root, "5-0").await;
    pass(&part, "9-0").await;
    assert!(!all.is_passed(&account, last).await.unwrap(), "what it is waits in the part");
    add(&part, "10-0").await;
    pass(&part, "9-1").await;
    assert!(all.is_passed(&account, last).await.unwrap(), "what came later is not waited for");
    assert!(all.is_passed(&AccountId::new("acc_2").unwrap(), last).await.unwrap(), "nor another part");
}

#[tokio::test]
async fn what_became_of_an_accounts_deliveries_is_found_in_its_part() {
    let house = House::start().await;
    let (account, part) = (AccountId::new("acc_3").unwrap(), keys(house.part_of[3] as u32));
    house.bury(3, 4..5).await;
    let due = house.delivery(3, 5);
    house.owner(3).settle(vec![keep(&due, Place::DueIn(3_600_000))], Vec::new()).await;
    let ids: Vec<DeliveryId> = (3..9).map(|number| house.delivery(3, number).id).collect();
    let group = herald::store::protocol::GROUP;
    for number in [6, 7, 9] {
        let id = format!("{number}-0");
        house.redis.command::<String>(&["XADD", part.stream(), &id, "event", "{}"]).await;
    }
    // It has read up to the end, and the last is not dealt with.
    house.redis.command::<()>(&["XGROUP", "SETID", part.stream(), group, "6-0"]).await;
    house.redis.command::<redis::Value>(&["XREADGROUP", "GROUP", group, "one", "STREAMS", part.stream(), ">"]).await;
    house.redis.command::<()>(&["SET", &part.routed(), "7-0"]).await;
    let outcomes = partitions(&house.redis).await.outcomes(&account, &ids).await.unwrap();
    let words: Vec<&str> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Settled => "settled",
            Outcome::Dead => "dead",
            Outcome::Owed { next_ms: None } => "owed",
            Outcome::Owed { next_ms: Some(_) } => "due",
        })
        .collect();
    assert_eq!(words, ["settled", "dead", "due", "settled", "owed", "owed"], "the last is not passed on yet");
}

fn quarantine(entry: &str) -> Item {
    let (body, error) = ("{".into(), "it is no JSON".into());
    let (envelope, keep_bytes) = (Envelope::default(), Some(1 << 20));
    Item::Quarantine { entry: entry.parse().unwrap(), body, cut: false, error, envelope, keep_bytes }
}

#[tokio::test]
async fn the_quarantine_is_one_list_in_which_each_entry_names_its_stream() {
    let house = House::start().await;
    for number in 1..=12u32 {
        let entry = format!("{number}-0");
        house.owners[(number % PARTS) as usize].settle(vec![quarantine(&entry)], Vec::new()).await;
    }
    // The same id in two, as two producers may write it.
    house.owners[0].settle(vec![quarantine("1-0")], Vec::new()).await;
    let mut all = partitions(&house.redis).await;
    let mut forth = Vec::<QuarantinePlace>::new();
    loop {
        let (page, has_more) = all.quarantine(QuarantineSide::After(forth.last()), 5).await.unwrap();
        forth.extend(page.into_iter().map(|found| found.place));
        if !has_more {
            break;
        }
    }
    assert_eq!(forth.len(), 13);
    assert!(forth.is_sorted() && forth.iter().map(ToString::to_string).collect::<BTreeSet<_>>().len() == 13);
    let parsed: Vec<_> = forth.iter().map(|place| QuarantinePlace::parse(&place.to_string()).unwrap()).collect();
    assert_eq!(parsed, forth);
    let mut back = vec![forth[12].clone()];
    while back.len() < 13 {
        let (page, _) = all.quarantine(QuarantineSide::Before(&back[0]), 5).await.unwrap();
        back = page.into_iter().map(|found| found.place).chain(back).collect();
    }
    assert_eq!(back, forth);

    let listed = house.json(&["quarantine", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 13);
    // Those of one millisecond come in the order of their streams.
    let is_first = |found: &Value| found["entry"] == "1-0" && found["stream"] == "payment-intents:1";
    assert!(listed.as_array().unwrap().iter().any(is_first), "{listed}");
    assert_eq!(house.json(&["quarantine", "show", "2-0"])["stream"], "payment-intents:2");
    let twice = herald(&house.redis, &["quarantine", "show", "1-0"]);
    assert_eq!(twice.status.code(), Some(4), "{}", text(&twice));
    let named = house.json(&["quarantine", "show", "1-0", "--stream", "payment-intents:0"]);
    assert_eq!(named["entry"], "1-0");
}

#[tokio::test]
async fn who_owns_a_part_is_asked_for_what_is_in_it_and_nobody_else() {
    let world = World::new().await;
    route(&world.redis).await;
    world.register_many(ACCOUNTS as usize).await;
    let layout = partitions(&world.redis).await.layout().clone();
    let of = |account: u32| layout.path(&AccountId::new(&format!("acc_{account}")).unwrap()).pop().unwrap();
    let (theirs, others) = (of(3), of(2));
    assert_ne!(theirs, others);
    for (account, stream) in [(3, &theirs), (2, &others)] {
        let owner = Owner::of(&world.redis.redis(), PartitionKeys::new(stream).unwrap()).await;
        let one = delivery_of(&format!("acc_{account}"), "7-0", &format!("ep_{account}"), "pi_7", true);
        owner.settle(vec![bury(&one, DeadReason::Exhausted)], Vec::new()).await;
        let bound = PartitionKeys::new(stream).unwrap().registry_id();
        world.redis.command::<u64>(&["DEL", &bound]).await;
        owner.release().await;
    }
    let herald_of_one = world
        .setup()
        .env("HERALD_STREAM", &theirs)
        .env("HERALD_RETRY_INITIAL", "60s")
        .env("HERALD_RETRY_MAX_INTERVAL", "60s")
        .start();
    let lease = PartitionKeys::new(&theirs).unwrap().lease();
    world.until_key("an owner of the part", &["EXISTS", &lease], |there| there == 1).await;

    let why = ["--yes", "--reason", "a test"];
    let redeliver = |id: &'static str| herald(&world.redis, &[&["dead-letter", "redeliver", id], &why[..]].concat());
    let nobody = redeliver("7-0:ep_2");
    assert_eq!(nobody.status.code(), Some(5), "{}", text(&nobody));
    assert!(text(&nobody).contains(&others), "{}", text(&nobody));
    let sent = redeliver("7-0:ep_3");
    assert!(sent.status.success(), "{}", text(&sent));
    world.merchants.until_delivered(1).await;
    assert_eq!(world.merchants.log().delivered_to("ep_3"), 1);
    world.merchants.rule("ep_3", |_| Reply::status(500));
    let event = Event::new(8, "acc_3", "pi_8", "Captured");
    let entry: String = world.redis.command(&["XADD", &theirs, "*", "event", &event.body]).await;
    let id = format!("{entry}:ep_3");
    until("a retry", async || text(&herald(&world.redis, &["delivery", "show", &id])).contains("due in")).await;
    let release = ["chain", "release", "--endpoint", "ep_3", "--intent", "pi_8"];
    done(&world.redis, &[&release[..], &why].concat());
    let shown = done(&world.redis, &["dead-letter", "show", &id, "-o", "json"]);
    assert!(shown.contains("released"), "{shown}");

    // An operation is of all parts, or of the one that is named.
    let plan = ["operation", "plan", "redeliver", "--all", "--reason", "a test", "-o", "json"];
    for (stream, count) in [(STREAM, 2), (&theirs, 1)] {
        let planned = herald(&world.redis, &[&plan[..], &["--stream", stream]].concat());
        assert!(planned.status.success(), "{}", text(&planned));
        let planned: Value = serde_json::from_slice(&planned.stdout).unwrap();
        assert_eq!(planned["count"], count, "{planned}");
    }
    let listed =
        || serde_json::from_str::<Value>(done(&world.redis, &["worker", "list", "-o", "json"]).trim()).unwrap();
    // It first tells of itself before it has anything.
    until("the worker to tell what it has", async || listed()[0]["owned"] != serde_json::json!([])).await;
    let live = listed();
    assert_eq!(live[0]["stream"], *theirs, "{live}");
    assert_eq!((&live[0]["weight"], &live[0]["is_draining"]), (&1.into(), &false.into()), "{live}");
    assert_eq!(live[0]["owned"], serde_json::json!([theirs]), "{live}");
    let since = live[0]["since"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let since_ms = u64::try_from(since.as_millisecond()).unwrap();
    assert!(herald::clock::wall_ms() - since_ms < 3_600_000, "{live}");
    let shown = done(&world.redis, &["worker", "list"]);
    let [titles, row] = shown.lines().collect::<Vec<_>>()[..] else { panic!("{shown}") };
    let at = |title: &str| &row[titles.find(title).unwrap()..];
    assert!(at("WEIGHT").starts_with("1 ") && at("OWNED").starts_with("1 "), "{shown}");
    drop(herald_of_one);
    until("the lease to end", async || world.redis.command::<u64>(&["EXISTS", &lease]).await == 0).await;
}

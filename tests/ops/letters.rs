//! Dead letters by what they are: pages, counts and groups are compared with a plain filter over all letters, and those of
//! an older Herald are found once a worker has indexed them.

use std::collections::BTreeMap;

use herald::{
    facts::{
        delivery::DeadLetter,
        endpoint::EndpointState,
        id::{AccountId, DeliveryId, EventId},
        letter::{Cause, LetterFacts, WaitedFor, Waiting},
        retry::DeadReason,
    },
    store::{
        connection::Purpose,
        protocol::Item,
        queries::{DeadCursor, DeadFilter, DeadGroup, DeadKey, DeadOrder, Queries},
        registry::RegistryStore,
    },
};
use serde_json::Value;

use crate::{
    stage::{Owner, bury, delivery, endpoint, endpoint_id, id, intent, keys, letter, mark},
    support::{TestRedis, until},
    verbs::{Worker, done, herald, queries, stage, text},
};

const REASONS: [DeadReason; 3] = [DeadReason::Exhausted, DeadReason::Expired, DeadReason::Gone];
const CAUSES: [&str; 5] = ["server_failed:500", "server_failed:503", "gone", "never_tried:paused", "never_tried"];
const LETTERS: u64 = 900;

/// The same for ever: a small generator, so that the letters of a run can be looked at again.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

struct Known {
    id: DeliveryId,
    at_ms: u64,
    facts: LetterFacts,
}

fn some_facts(draw: &mut Draw, number: u64) -> LetterFacts {
    LetterFacts {
        account: AccountId::new(["acc_1", "acc_10", "acc_1-"][draw.below(3) as usize]).ok(),
        reason: Some(REASONS[draw.below(3) as usize]),
        cause: CAUSES[draw.below(5) as usize].parse().unwrap(),
        attempts: draw.below(9) as u32,
        event: EventId::new(&format!("evt_{}", number / 3)).ok(),
        intent: Some(intent(&format!("pi_{}", draw.below(40)))),
        waited_for: None,
    }
}

/// Letters in batches that share their milliseconds; some were dropped or sent again meanwhile.
async fn many(owner: &Owner, queries: &mut Queries) -> Vec<Known> {
    let mut draw = Draw(7);
    let mut letters = BTreeMap::new();
    for batch in 0..LETTERS / 100 {
        let mut items = Vec::new();
        for n in 0..100 {
            let number = batch * 100 + n;
            let one = delivery(
                &format!("{}-0", 10 + number),
                ["ep_a", "ep_aa", "ep_b"][draw.below(3) as usize],
                "pi_1",
                true,
            );
            let facts = if draw.below(20) == 0 { LetterFacts::unreadable() } else { some_facts(&mut draw, number) };
            letters.insert(one.id.clone(), facts.clone());
            let facts = Box::new(facts);
            let letter = letter(&one, DeadReason::Expired).to_record();
            items.push(Item::Bury { id: one.id.clone(), chain: one.chain(), facts, letter });
        }
        owner.settle(items, Vec::new()).await;
    }
    let gone: Vec<DeliveryId> = letters.keys().filter(|_| draw.below(6) == 0).cloned().collect();
    owner.settle(gone.iter().map(|id| Item::Discard { id: id.clone() }).collect(), Vec::new()).await;
    gone.iter().for_each(|id| drop(letters.remove(id)));
    let mut known = Vec::new();
    for (id, facts) in letters {
        let at_ms = queries.dead_letter(&id).await.unwrap().expect("it was buried").at_ms;
        known.push(Known { id, at_ms, facts });
    }
    known.sort_by_key(|one| (one.at_ms, one.id.to_string()));
    known
}

/// Up to three conditions, and sometimes a span of time.
fn some_filter(draw: &mut Draw, known: &[Known]) -> DeadFilter {
    let mut filter = DeadFilter::everything();
    for _ in 0..draw.below(4) {
        match draw.below(6) {
            0 => filter.endpoint = Some(endpoint_id(["ep_a", "ep_aa", "ep_none"][draw.below(3) as usize])),
            1 => filter.account = AccountId::new(["acc_1", "acc_10", "acc_none"][draw.below(3) as usize]).ok(),
            2 => filter.reason = Some(REASONS[draw.below(3) as usize]),
            3 => {
                filter.cause =
                    ["server_failed", "server_failed:500", "never_tried", "gone"][draw.below(4) as usize].parse().ok()
            }
            4 => filter.intent = Some(intent(&format!("pi_{}", draw.below(41)))),
            _ => filter.event = EventId::new(&format!("evt_{}", draw.below(301))).ok(),
        }
    }
    if draw.below(3) == 0 {
        let time = |draw: &mut Draw| known[draw.below(known.len() as u64) as usize].at_ms;
        (filter.from_ms, filter.until_ms) = (time(draw), time(draw));
    }
    filter
}

fn fits(filter: &DeadFilter, one: &Known) -> bool {
    let facts = &one.facts;
    filter.endpoint.as_ref().is_none_or(|endpoint| *endpoint == one.id.endpoint)
        && (filter.account.is_none() || filter.account == facts.account)
        && (filter.reason.is_none() || filter.reason == facts.reason)
        && filter.cause.as_ref().is_none_or(|cause| facts.cause.is_a(cause))
        && (filter.intent.is_none() || filter.intent == facts.intent)
        && (filter.event.is_none() || filter.event == facts.event)
        && filter.from_ms <= one.at_ms
        && one.at_ms <= filter.until_ms
}

async fn pages(queries: &mut Queries, filter: &DeadFilter, order: DeadOrder, size: usize) -> Vec<DeliveryId> {
    let (mut found, mut after) = (Vec::new(), None::<DeadCursor>);
    loop {
        let page = queries.find_dead(filter, order, after.as_ref(), size).await.unwrap();
        found.extend(page.letters.into_iter().map(|letter| letter.id));
        after = page.next;
        if after.is_none() {
            return found;
        }
    }
}

#[tokio::test]
async fn pages_counts_and_groups_are_those_of_a_plain_filter_over_all_letters() {
    let redis = TestRedis::start().await;
    let owner = Owner::start(&redis.redis()).await;
    let mut queries = Queries::new(redis.redis().connect(Purpose::Other).await.unwrap(), keys());
    let known = many(&owner, &mut queries).await;
    assert_eq!(queries.unindexed_dead().await.unwrap(), 0);
    let (mut draw, mut found_some) = (Draw(3), 0);
    for _ in 0..250 {
        let filter = some_filter(&mut draw, &known);
        let expected: Vec<&Known> = known.iter().filter(|one| fits(&filter, one)).collect();
        found_some += usize::from(!expected.is_empty());
        assert_eq!(queries.count_dead_where(&filter).await.unwrap(), expected.len() as u64, "{filter:?}");
        let mut ids: Vec<DeliveryId> = expected.iter().map(|one| one.id.clone()).collect();
        let size = 1 + draw.below(150) as usize;
        let size = if expected.len() > 200 { size.max(40) } else { size };
        assert_eq!(pages(&mut queries, &filter, DeadOrder::OldestFirst, size).await, ids, "{filter:?}");
        ids.reverse();
        assert_eq!(pages(&mut queries, &filter, DeadOrder::NewestFirst, size).await, ids, "{filter:?}");
        let mut groups = BTreeMap::<(String, String), (u64, u64, u64)>::new();
        for one in &expected {
            let key = (one.id.endpoint.to_string(), one.facts.cause.to_string());
            let group = groups.entry(key).or_insert((0, one.at_ms, one.at_ms));
            *group = (group.0 + 1, group.1.min(one.at_ms), group.2.max(one.at_ms));
        }
        let found = queries.group_dead(&filter, &[DeadKey::Endpoint, DeadKey::Cause]).await.unwrap();
        let found: BTreeMap<_, _> = found
            .into_iter()
            .map(|(DeadGroup { endpoint, cause, .. }, totals)| {
                ((endpoint.unwrap(), cause.unwrap()), (totals.count, totals.first_ms, totals.last_ms))
            })
            .collect();
        assert_eq!(found, groups, "{filter:?}");
    }
    assert!(found_some > 60, "most filters find nothing: {found_some}");
}

/// As an older Herald leaves one: the letter, and its places by time.
async fn as_older(redis: &TestRedis, letter: &DeadLetter, at_ms: u64) {
    let (id, at) = (letter.delivery.id.to_string(), at_ms.to_string());
    let record = String::from_utf8(letter.to_record().to_vec()).unwrap();
    redis.command::<()>(&["SET", &keys().dead_letter(&letter.delivery.id), &record]).await;
    redis.command::<()>(&["ZADD", &keys().dead(), &at, &id]).await;
    redis.command::<()>(&["ZADD", &keys().dead_of(&letter.delivery.id.endpoint), &at, &id]).await;
}

#[tokio::test]
async fn letters_of_an_older_herald_are_indexed_by_the_first_worker_and_what_it_removed_leaves_the_indexes() {
    let redis = stage(vec![bury(&delivery("9-0", "ep_a", "pi_1", true), DeadReason::Gone)], Vec::new()).await;
    for n in 0..130u64 {
        let one = delivery(&format!("{}-0", 10 + n), "ep_a", &format!("pi_{n}"), true);
        as_older(&redis, &letter(&one, REASONS[(n % 3) as usize]), 1_000 + n / 40).await;
    }
    // One that cannot be read, and one that the older Herald redelivered.
    redis.command::<()>(&["SET", &keys().dead_letter(&id("11-0", "ep_a")), "{}"]).await;
    redis.command::<()>(&["DEL", &keys().dead_letter(&id("9-0", "ep_a"))]).await;
    redis.command::<()>(&["ZREM", &keys().dead(), "9-0:ep_a"]).await;
    redis.command::<()>(&["ZREM", &keys().dead_of(&endpoint_id("ep_a")), "9-0:ep_a"]).await;

    let list = done(&redis, &["dead-letter", "list", "--dead-reason", "gone", "-o", "json"]);
    assert!(list.contains("129 dead letters are of an older Herald"), "{list}");
    let whole = done(&redis, &["dead-letter", "list", "-o", "jsonl", "--limit", "200"]);
    assert!(whole.contains("130 dead letters") && whole.contains("\"cause\":\"rejected:401\""), "{whole}");
    let job = ["dead-letter", "discard", "--dead-reason", "gone", "--yes", "--reason", "old"];
    let refused = herald(&redis, &job);
    assert!(text(&refused).contains("are sure to find every letter; ask again then"), "{}", text(&refused));

    let _worker = Worker::start(&redis).await;
    let mut looking = queries(&redis).await;
    until("all letters are indexed", async || looking.unindexed_dead().await.unwrap() == 0).await;
    let of = |reason| DeadFilter { reason: Some(reason), ..DeadFilter::everything() };
    let mut counts = Vec::new();
    for reason in REASONS {
        counts.push(looking.count_dead_where(&of(reason)).await.unwrap());
    }
    // Every third of 130, but for the one that cannot be read.
    assert_eq!(counts, [44, 42, 43]);
    let unreadable = DeadFilter { cause: Some(Cause::unreadable()), ..DeadFilter::everything() };
    assert_eq!(looking.count_dead_where(&unreadable).await.unwrap(), 1);
    let said = done(&redis, &job);
    assert!(said.contains("43 discarded"), "{said}");
}

#[tokio::test]
async fn every_filter_is_exact_and_who_confirms_is_told_what_will_be_refused() {
    let one =
        |n: u64, at: &str, reason| bury(&delivery(&format!("{n}-0"), at, &format!("pi_{}", n % 50), true), reason);
    let mut items: Vec<Item> = (100..400).map(|n| one(n, "ep_a", DeadReason::Exhausted)).collect();
    items.extend((400..440).map(|n| one(n, "ep_b", DeadReason::Exhausted)));
    items.extend((440..450).map(|n| one(n, "ep_c", DeadReason::Exhausted)));
    items.extend((450..454).map(|n| one(n, "ep_a", DeadReason::Gone)));
    let redis = stage(items, Vec::new()).await;
    let mut registry = RegistryStore::connect(&redis.redis()).await.unwrap();
    for (name, status) in [("ep_b", EndpointState::Disabled(mark())), ("ep_c", EndpointState::Paused(mark()))] {
        let endpoint = endpoint(name, "acc_1", "http://127.0.0.1:2/");
        registry.create(herald::facts::endpoint::Endpoint { status, ..endpoint }, &mark()).await.unwrap();
    }
    let gone = done(&redis, &["dead-letter", "list", "--dead-reason", "gone", "--limit", "2", "-o", "table"]);
    assert!(gone.contains("4 dead letters: 4 gone; 2 shown"), "{gone}");
    let job = |flags: &[&str]| {
        let words = [&["dead-letter", "redeliver", "--dry-run", "--reason", "mended"], flags].concat();
        done(&redis, &words)
    };
    assert!(job(&["--account", "acc_1"]).contains(
        "this would send again 314 dead letters; 40 more would be refused: ep_b is disabled (40); \
         10 of them would wait: ep_c is paused (10)"
    ));
    assert!(job(&["--account", "acc_2"]).contains("no dead letter matches"));
    assert!(
        job(&["--cause", "rejected", "--endpoint", "ep_c"]).contains("send again 10 dead letters; 10 of them would")
    );
    assert!(job(&["--intent", "pi_1", "--endpoint", "ep_a"]).contains("send again 7 dead letters"));
    assert!(job(&["--account", "acc_1", "--limit", "303"]).contains("send again 300 dead letters; 3 more would"));
    let grouped = done(&redis, &["dead-letter", "list", "--group-by", "endpoint,reason", "-o", "jsonl"]);
    assert!(grouped.starts_with("354 dead letters in 4 groups"), "{grouped}");
    assert!(grouped.contains(r#"{"endpoint":"ep_a","reason":"exhausted","count":300,"#), "{grouped}");
    let listed = herald(&redis, &["dead-letter", "list", "--event", "evt_101", "-o", "json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((listed[0]["id"].as_str(), listed[0]["cause"].as_str()), (Some("101-0:ep_a"), Some("rejected:401")));
    assert_eq!(listed[0].get("body"), None, "a list carries no bodies");
}

#[tokio::test]
async fn a_letter_that_was_never_tried_says_why_and_is_found_by_its_intent_and_its_event() {
    let mut one = delivery("10-0", "ep_a", "pi_1", true);
    (one.attempts, one.history) = (0, Vec::new());
    let mut waited = WaitedFor::new(Waiting::Paused).paused("ops", "the receiver is down", 1_700_000_000_000);
    waited.last_failure = "server_failed:503".parse().ok();
    let dead = DeadLetter { waited_for: Some(waited), ..letter(&one, DeadReason::Expired) };
    let facts = Box::new(LetterFacts::of(&dead));
    assert_eq!(facts.cause.as_str(), "never_tried:paused");
    let item = Item::Bury { id: one.id.clone(), chain: one.chain(), facts, letter: dead.to_record() };
    let redis = stage(vec![item], Vec::new()).await;
    let why = "its endpoint was paused by ops: the receiver is down, since 2023-11-14T22:13:20Z; last failure server_failed:503";
    for words in [
        ["delivery", "list", "--intent", "pi_1", "-o", "table"],
        ["delivery", "list", "--event", "evt_10", "-o", "table"],
        ["dead-letter", "list", "--cause", "never_tried", "-o", "table"],
    ] {
        let list = done(&redis, &words);
        // In a narrow column what does not fit goes on in the next line, beside the other columns.
        let has_all = why.split(' ').all(|word| list.contains(word));
        assert!(list.contains("10-0:ep_a") && has_all, "{words:?}: {list}");
    }
    let shown = done(&redis, &["dead-letter", "show", "10-0:ep_a", "-o", "table"]);
    assert!(shown.contains("never tried") && shown.contains(why), "{shown}");
    let json = done(&redis, &["dead-letter", "show", "10-0:ep_a", "-o", "json"]);
    assert!(json.contains("\"waited_for\"") && json.contains("\"paused_by\""), "{json}");
}

//! What the scripts do in cases that the model does not know: a full Redis, foreign types, huge values, lost scripts.

mod support;

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use herald::{
    facts::{
        delivery::Chain,
        endpoint::Mark,
        envelope::{AccountSequence, Envelope},
        id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
        letter::LetterFacts,
        retry::DeadReason,
    },
    store::{
        connection::Purpose,
        keys::PartitionKeys,
        partition::PartitionStore,
        protocol::{
            Answer, Asked, Call, Content, Failure, Item, Kept, LookFrom, MAX_BATCH, MAX_READ_BYTES, Place, ReadFrom,
            RequestKind, Settlement, Start, Term,
        },
        requests::Requests,
        wakeup::{New, Wakeup},
        watch::{Gauges, gauges},
    },
};
use support::{TestRedis, soon};

const STREAM: &str = "payment-intents";

struct Owner {
    redis: TestRedis,
    store: PartitionStore,
    keys: PartitionKeys,
    term: Term,
}

impl Owner {
    /// A partition with its lease taken and its group made.
    async fn start() -> Self {
        Self::on(TestRedis::start_with(&[("appendonly", "no"), ("enable-debug-command", "yes")]).await).await
    }

    async fn on(redis: TestRedis) -> Self {
        let keys = PartitionKeys::new(STREAM).unwrap();
        let work = redis.redis().connect(Purpose::Work).await.unwrap();
        let lease = redis.redis().connect(Purpose::Lease(Duration::from_secs(5))).await.unwrap();
        let store = PartitionStore::new(work, lease, keys.clone(), 1000);
        let owner = Self { redis, store, keys, term: Term::new(1, "worker") };
        owner.call(Call::Acquire { term: owner.term(), previous: vec![], ttl_ms: 600_000 }).await;
        owner.call(Call::Open { term: owner.term(), start: Start::Oldest, registry: "reg".to_owned() }).await;
        owner
    }

    fn term(&self) -> Term {
        self.term.clone()
    }

    async fn call(&self, call: Call) -> Answer {
        self.store.call(&call).await.unwrap_or_else(|failure| panic!("{call:?}: {failure:?}"))
    }

    async fn read(&self, max: usize) -> Vec<herald::store::protocol::Entry> {
        match self.call(Call::Read { term: self.term(), from: ReadFrom::New, max }).await {
            Answer::Entries { entries, .. } => entries,
            other => panic!("{other:?}"),
        }
    }

    async fn settle(&self, items: Vec<Item>) -> Answer {
        self.call(Call::Settle { term: self.term(), settlement: Settlement { items, ..Settlement::default() } }).await
    }

    async fn acknowledge(&self, entries: &[herald::store::protocol::Entry]) {
        let acks = entries.iter().map(|entry| entry.id).collect();
        let last_read = entries.last().map(|entry| entry.id).unwrap_or_default();
        let settlement = Settlement { acks, last_read, ..Settlement::default() };
        let settled = self.call(Call::Settle { term: self.term(), settlement }).await;
        assert!(matches!(settled, Answer::Settled { .. }), "{settled:?}");
    }

    async fn publish(&self, body: &[u8]) -> EntryId {
        let mut command = redis::cmd("XADD");
        command.arg(STREAM).arg("*").arg("event").arg(body);
        let id: String = command.query_async(&mut self.redis.connection().await).await.unwrap();
        id.parse().unwrap()
    }

    async fn gauges(&self) -> Gauges {
        gauges(&mut self.redis.redis().connect(Purpose::Other).await.unwrap(), &self.keys).await.unwrap()
    }

    /// Changes with every change of any key, group or lease.
    async fn fingerprint(&self) -> (String, String, i64) {
        let groups: redis::Value = self.redis.command(&["XINFO", "GROUPS", STREAM]).await;
        let pending: redis::Value = self.redis.command(&["XPENDING", STREAM, "herald", "-", "+", "1000"]).await;
        // Idle times pass by themselves.
        let pending = match pending {
            redis::Value::Array(all) => all.len(),
            other => panic!("{other:?}"),
        };
        let expires: i64 = self.redis.command(&["PEXPIRETIME", &self.keys.lease()]).await;
        (self.redis.command(&["DEBUG", "DIGEST"]).await, format!("{groups:?} {pending}"), expires)
    }
}

fn endpoint(name: &str) -> EndpointId {
    EndpointId::new(name).unwrap()
}

fn delivery(entry: EntryId, at: &str) -> DeliveryId {
    DeliveryId { entry, endpoint: endpoint(at) }
}

fn chain(intent: &str) -> Chain {
    Chain::Intent(IntentId::new(intent).unwrap())
}

fn keep(number: u64, at: &str, place: Place, record: &[u8]) -> Item {
    let id = delivery(EntryId { ms: number, seq: 0 }, at);
    Item::Keep { id, chain: chain(&format!("pi_{number}")), place, record: Bytes::copy_from_slice(record) }
}

fn finish(number: u64, at: &str) -> Item {
    Item::Finish { id: delivery(EntryId { ms: number, seq: 0 }, at), chain: chain(&format!("pi_{number}")) }
}

fn facts() -> LetterFacts {
    LetterFacts {
        account: AccountId::new("acc_1").ok(),
        reason: Some(DeadReason::Expired),
        cause: "server_failed:500".parse().unwrap(),
        attempts: 1,
        event: EventId::new("evt_1").ok(),
        intent: IntentId::new("pi_1").ok(),
        waited_for: None,
    }
}

/// One of each kind of item, all to one endpoint.
fn every_item(at: &str) -> Vec<Item> {
    let id = delivery(EntryId { ms: 5, seq: 1 }, at);
    let (chain, bytes) = (chain("pi_5"), Bytes::from_static(b"{}"));
    let entry = EntryId { ms: 5, seq: 1 };
    let alone = delivery(EntryId { ms: 5, seq: 2 }, at);
    let single = Chain::Single("pi_5".parse().unwrap(), alone.entry);
    vec![
        Item::Keep { id: id.clone(), chain: chain.clone(), place: Place::Backlog, record: bytes.clone() },
        Item::Move { id: id.clone(), chain: chain.clone(), place: Place::DueIn(5) },
        Item::Finish { id: id.clone(), chain: chain.clone() },
        Item::Bury { id: id.clone(), chain: chain.clone(), facts: Box::new(facts()), letter: bytes.clone() },
        Item::Index { id: id.clone(), facts: Box::new(facts()) },
        Item::Take { id: id.clone(), chain: chain.clone(), place: Place::Held, record: bytes.clone() },
        Item::Finish { id: id.clone(), chain: chain.clone() },
        Item::TakeLetter { id: id.clone(), at_ms: 5, facts: Box::new(facts()), letter: bytes.clone() },
        Item::TakeUnreadable { endpoint: id.endpoint.clone(), at_ms: 5 },
        Item::Revive { id: id.clone(), chain: chain.clone(), record: bytes.clone() },
        Item::Discard { id },
        Item::Keep { id: alone.clone(), chain: single.clone(), place: Place::Claimed, record: bytes.clone() },
        Item::Finish { id: alone, chain: single },
        Item::Quarantine {
            entry,
            body: bytes,
            cut: false,
            error: "no JSON".to_owned(),
            envelope: Default::default(),
            keep_bytes: Some(1 << 20),
        },
        Item::Requeue { entry },
        Item::DiscardQuarantined { entry },
        Item::Bind { registry: "another".to_owned() },
        Item::Reply { request: entry, answer: "done".to_owned() },
    ]
}

fn every_call(term: Term) -> Vec<Call> {
    let (endpoint, after, max) = (endpoint("ep_a"), EntryId::ZERO, 10);
    let settlement = Settlement {
        items: every_item("ep_a"),
        acks: vec![EntryId { ms: 5, seq: 1 }],
        log: vec![Bytes::from_static(b"{}")],
        last_read: EntryId { ms: 5, seq: 1 },
    };
    vec![
        Call::Renew { term: term.clone(), ttl_ms: 1 },
        Call::Release { term: term.clone() },
        Call::Recover { term: term.clone(), max },
        Call::Open { term: term.clone(), start: Start::Newest, registry: "another".to_owned() },
        Call::Counts { term: term.clone(), cursor: 0 },
        Call::Read { term: term.clone(), from: ReadFrom::New, max },
        Call::Read { term: term.clone(), from: ReadFrom::Pending(after), max },
        Call::Ask { term: term.clone(), deliveries: vec![], suspect: false },
        Call::Settle { term: term.clone(), settlement },
        Call::Claim { term: term.clone(), max },
        Call::PullIn { term: term.clone(), from_ms: 0, by_ms: 1, max, step_ms: -1 },
        Call::Backlog { term: term.clone(), endpoint: endpoint.clone(), after, max },
        Call::TakeHeads { term: term.clone(), endpoint: endpoint.clone(), max },
        Call::ClaimForeign { term: term.clone(), max },
        Call::Inbox { term: term.clone(), after, max },
        Call::Trim { term: term.clone(), retain_ms: 0, up_to: None, ignores: vec![] },
        Call::ExpireDead { term: term.clone(), max_age_ms: 0, max_count: 0, max },
        Call::Unindexed { term: term.clone(), from: LookFrom::Mark, look: max, max },
        Call::SweepDead { term: term.clone(), cursor: 0 },
        Call::NoteUnreadable { term, endpoints: vec![endpoint], holds_ms: 1_000_000 },
    ]
}

/// A partition with something in every place, so that every call has something to do.
async fn busy_owner() -> Owner {
    let owner = Owner::start().await;
    for _ in 0..4 {
        owner.publish(b"{}").await;
    }
    owner.read(1).await;
    owner
        .redis
        .command::<redis::Value>(&["XREADGROUP", "GROUP", "herald", "x", "COUNT", "1", "STREAMS", STREAM, ">"])
        .await;
    let held = delivery(EntryId { ms: 9, seq: 0 }, "ep_a");
    let letter = delivery(EntryId { ms: 8, seq: 0 }, "ep_a");
    let items = vec![
        keep(1, "ep_a", Place::DueIn(0), b"due"),
        keep(2, "ep_a", Place::Claimed, b"claimed"),
        keep(3, "ep_a", Place::Backlog, b"parked"),
        Item::Keep { id: held, chain: chain("pi_3"), place: Place::Held, record: Bytes::from_static(b"held") },
        Item::Bury {
            id: letter,
            chain: chain("pi_8"),
            facts: Box::new(facts()),
            letter: Bytes::from_static(b"letter"),
        },
    ];
    assert!(matches!(owner.settle(items).await, Answer::Settled { .. }));
    owner
}

#[tokio::test]
async fn a_stale_term_changes_nothing_whatever_it_calls() {
    let owner = busy_owner().await;
    let before = owner.fingerprint().await;
    for call in every_call(Term::new(0, "worker")) {
        assert_eq!(owner.call(call.clone()).await, Answer::Lost, "{call:?}");
    }
    assert_eq!(owner.fingerprint().await, before);
}

#[tokio::test]
async fn a_full_redis_refuses_no_call() {
    let owner = busy_owner().await;
    owner.redis.set_maxmemory(1).await;
    // Without the lease nothing else could be shown.
    for call in every_call(owner.term())
        .into_iter()
        .filter(|call| !matches!(call, Call::Release { .. } | Call::Renew { ttl_ms: 1, .. }))
    {
        let answer = owner.call(call.clone()).await;
        assert!(!matches!(answer, Answer::Lost | Answer::BadItem { .. }), "{call:?}: {answer:?}");
    }
    assert_eq!(owner.call(Call::Renew { term: owner.term(), ttl_ms: 60_000 }).await, Answer::Renewed { next: None });
    assert_eq!(owner.call(Call::Release { term: owner.term() }).await, Answer::Released);
    let acquire = Call::Acquire { term: owner.term(), previous: vec![], ttl_ms: 60_000 };
    assert!(matches!(owner.call(acquire).await, Answer::Acquired { .. }));
    let used = owner.gauges().await.unfinished;
    owner.settle(vec![Item::Finish { id: delivery(EntryId { ms: 2, seq: 0 }, "ep_a"), chain: chain("pi_2") }]).await;
    assert_eq!(owner.gauges().await.unfinished, used - 1, "a settle frees");
}

#[tokio::test]
async fn a_key_of_a_foreign_type_is_named_with_its_item_and_nothing_is_changed() {
    let broken = ["singles:ep_b", "heads:ep_b", "held:ep_b", "backlog:ep_b", "dead:ep_b", "delivery:5-1:ep_b"];
    for name in broken {
        let owner = busy_owner().await;
        let key = format!("{}{name}", owner.keys.prefix());
        // No kind of key is both.
        let words = if name.starts_with("delivery") { ["SADD", &key, "x"] } else { ["SET", &key, "x"] };
        owner.redis.command::<()>(&words).await;
        let before = owner.fingerprint().await;
        let mut items = every_item("ep_a");
        let first_bad = items.len();
        items.extend(every_item("ep_b"));
        match owner.settle(items.clone()).await {
            Answer::BadItem { at, why } => {
                // A dead letter's index is first needed by the item that buries, and a count by a delivery without
                // order.
                let later = HashMap::from([("dead:ep_b", 3), ("singles:ep_b", 11)]).get(name).copied().unwrap_or(0);
                assert_eq!(at, first_bad + later, "{why}");
                assert!(why.contains(&key), "{why} names {key}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(owner.fingerprint().await, before, "{name}");
        items.truncate(first_bad);
        assert!(matches!(owner.settle(items).await, Answer::Settled { .. }), "the others go on");
    }
}

/// Whichever item finds it: keys of all endpoints are looked at together.
#[tokio::test]
async fn of_two_items_that_can_not_be_applied_the_first_is_named() {
    let owner = busy_owner().await;
    for name in ["held:ep_b", "delivery:7-0:ep_c"] {
        let key = format!("{}{name}", owner.keys.prefix());
        owner.redis.command::<()>(&["LPUSH", &key, "x"]).await;
    }
    let items = [keep(6, "ep_a", Place::Backlog, b"{}"), keep(8, "ep_b", Place::Claimed, b"{}")];
    let unreadable = keep(7, "ep_c", Place::Claimed, b"{}");
    let named = |answer: Answer| match answer {
        Answer::BadItem { at, why } => (at, why),
        other => panic!("{other:?}"),
    };
    let before = owner.fingerprint().await;
    let (at, why) = named(owner.settle(items.iter().cloned().chain([unreadable.clone()]).collect()).await);
    assert!(at == 1 && why.contains("held:ep_b"), "{at}: {why}");
    let (at, why) = named(owner.settle([unreadable].into_iter().chain(items).collect()).await);
    assert!(at == 0 && why.contains("delivery:7-0:ep_c"), "{at}: {why}");
    assert_eq!(owner.fingerprint().await, before);
}

#[tokio::test]
async fn what_ends_together_leaves_no_trace_wherever_it_stood() {
    let owner = Owner::start().await;
    let places = [Place::Claimed, Place::Backlog, Place::DueIn(5), Place::DueIn(1_000_000)];
    let all: Vec<(u64, &str)> = (1..=40).map(|n| (n, ["ep_a", "ep_b", "ep_c"][n as usize % 3])).collect();
    let nothing = owner.settle(Vec::new()).await;
    let empty = owner.redis.command::<usize>(&["DBSIZE"]).await;
    owner.settle(all.iter().map(|&(n, at)| keep(n, at, places[n as usize % 4], b"{}")).collect()).await;
    // One of them twice, and one that never existed.
    let mut items: Vec<Item> = all.iter().map(|&(n, at)| finish(n, at)).collect();
    items.extend([finish(all[7].0, all[7].1), finish(41, "ep_a")]);
    match owner.settle(items).await {
        Answer::Settled { counts, next_due_ms, .. } => {
            let left: Vec<_> = counts.iter().map(|(_, left)| (left.records, left.parked, left.bytes)).collect();
            assert_eq!((left, next_due_ms), (vec![(0, 0, 0); 3], None));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(nothing, Answer::Settled { .. }));
    assert_eq!(owner.redis.command::<usize>(&["DBSIZE"]).await, empty);
}

/// Deliveries that end together are written endpoint by endpoint, but named by their place among all.
#[tokio::test]
async fn of_what_ends_together_the_one_that_can_not_be_applied_is_named() {
    let owner = Owner::start().await;
    let all: Vec<(u64, &str)> = (1..=12).map(|n| (n, ["ep_a", "ep_b", "ep_c"][n as usize % 3])).collect();
    owner.settle(all.iter().map(|&(n, at)| keep(n, at, Place::Backlog, b"{}")).collect()).await;
    let mut items: Vec<Item> = all.iter().map(|&(n, at)| finish(n, at)).collect();
    // Between two runs, so that both endpoints of it are in each.
    items.insert(6, keep(20, "ep_b", Place::Claimed, b"{}"));
    for (broken, at) in [("delivery:8-0:ep_c", 8), ("delivery:4-0:ep_b", 3), ("heads:ep_c", 1), ("backlog:ep_a", 2)] {
        let key = format!("{}{broken}", owner.keys.prefix());
        let spare = format!("{key}-spare");
        owner.redis.command::<()>(&["RENAME", &key, &spare]).await;
        owner.redis.command::<i64>(&["LPUSH", &key, "x"]).await;
        let before = owner.fingerprint().await;
        match owner.settle(items.clone()).await {
            Answer::BadItem { at: named, why } => {
                assert!(named == at && why.contains(&key), "{broken}: {named}, {why}")
            }
            other => panic!("{broken}: {other:?}"),
        }
        assert_eq!(owner.fingerprint().await, before, "{broken}");
        owner.redis.command::<()>(&["RENAME", &spare, &key]).await;
    }
    // Of two bad ones the first as written: all of ep_b, which comes first, then all of ep_c.
    for name in ["heads:ep_c", "delivery:5-0:ep_c"] {
        let key = format!("{}{name}", owner.keys.prefix());
        owner.redis.command::<()>(&["RENAME", &key, &format!("{key}-spare")]).await;
        owner.redis.command::<i64>(&["LPUSH", &key, "x"]).await;
    }
    match owner.settle(items.clone()).await {
        Answer::BadItem { at, why } => assert!(at == 1 && why.contains("heads:ep_c"), "{at}, {why}"),
        other => panic!("{other:?}"),
    }
    for name in ["heads:ep_c", "delivery:5-0:ep_c"] {
        let key = format!("{}{name}", owner.keys.prefix());
        owner.redis.command::<()>(&["RENAME", &format!("{key}-spare"), &key]).await;
    }
    match owner.settle(items).await {
        Answer::Settled { counts, .. } => {
            let mut left: Vec<_> = counts.iter().map(|(at, left)| (at.as_str(), left.records, left.parked)).collect();
            left.sort_unstable();
            assert_eq!(left, [("ep_a", 0, 0), ("ep_b", 1, 0), ("ep_c", 0, 0)]);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn counts_of_records_that_a_stranger_wrote_are_found_anew_and_stop_nobody() {
    let owner = Owner::start().await;
    let key = owner.keys.unfinished();
    owner.settle((1..=3).map(|n| keep(n, "ep_a", Place::Claimed, b"{}")).collect()).await;
    owner.redis.command::<i64>(&["HSET", &key, "no endpoint", "x", &".".repeat(128), "0", "ep_a", "many"]).await;
    match owner.call(Call::Counts { term: owner.term(), cursor: 0 }).await {
        Answer::Counts { counts, .. } => {
            let counts: Vec<_> = counts.iter().map(|(endpoint, of)| (endpoint.as_str(), of.records)).collect();
            assert_eq!(counts, [("ep_a", 3)]);
        }
        other => panic!("{other:?}"),
    }
    for (ended, left) in [(1, 2), (2, 1), (3, 0)] {
        owner.redis.command::<i64>(&["HSET", &key, "ep_a", "many"]).await;
        match owner.settle(vec![finish(ended, "ep_a")]).await {
            Answer::Settled { counts, .. } => assert_eq!(counts[0].1.records, left),
            other => panic!("{other:?}"),
        }
    }
}

/// A stranger removed the head of its record, and another delivery of the intent has become the head.
#[tokio::test]
async fn what_ends_takes_no_other_deliverys_place_at_the_head() {
    let owner = Owner::start().await;
    let (first, second) = (EntryId { ms: 1, seq: 0 }, EntryId { ms: 2, seq: 0 });
    let begun = |entry| Item::Keep {
        id: delivery(entry, "ep_a"),
        chain: chain("pi_1"),
        place: Place::Claimed,
        record: Bytes::from_static(b"{}"),
    };
    let heads = format!("{}heads:ep_a", owner.keys.prefix());
    owner.settle(vec![begun(first)]).await;
    owner.redis.command::<i64>(&["DEL", &heads]).await;
    owner.settle(vec![begun(second)]).await;
    owner.settle(vec![Item::Finish { id: delivery(first, "ep_a"), chain: chain("pi_1") }]).await;
    assert_eq!(owner.redis.command::<String>(&["HGET", &heads, "pi_1"]).await, second.to_string());
}

/// In a list, each look would pass half of the endpoints.
#[tokio::test]
async fn the_counts_of_many_endpoints_are_no_list_and_nothing_else_is_among_them() {
    let owner = Owner::start().await;
    owner.settle((1..=12).map(|n| keep(n, &format!("ep_{n}"), Place::Claimed, b"{}")).collect()).await;
    for key in [owner.keys.unfinished(), owner.keys.bytes()] {
        assert_eq!(owner.redis.command::<String>(&["OBJECT", "ENCODING", &key]).await, "hashtable");
        assert_eq!(owner.redis.command::<usize>(&["HLEN", &key]).await, 12);
    }
}

/// What a settle reports about an endpoint.
async fn bytes_of(owner: &Owner, items: Vec<Item>) -> u64 {
    match owner.settle(items).await {
        Answer::Settled { counts, .. } => counts.iter().map(|(_, unfinished)| unfinished.bytes).sum(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn records_are_weighed_and_what_a_stranger_or_an_older_version_left_fails_nothing() {
    let owner = Owner::start().await;
    let parked = |n: u64, record: &'static [u8]| keep(n, "ep_a", Place::Backlog, record);
    assert_eq!(bytes_of(&owner, vec![parked(1, &[b'x'; 100]), parked(2, &[b'x'; 50])]).await, 150);
    assert_eq!(bytes_of(&owner, vec![parked(1, &[b'x'; 30])]).await, 80, "it is written anew");
    assert_eq!(bytes_of(&owner, vec![finish(1, "ep_a"), finish(1, "ep_a")]).await, 50);
    let key = owner.keys.bytes();
    for value in ["many", "-70", "9223372036854775807", "1.5"] {
        owner.redis.command::<i64>(&["HSET", &key, "ep_a", value]).await;
        let unfinished = Call::Counts { term: owner.term(), cursor: 0 };
        assert!(matches!(owner.call(unfinished).await, Answer::Counts { .. }), "{value}");
        assert_eq!(bytes_of(&owner, vec![parked(3, &[b'x'; 20])]).await, 20, "{value} is begun anew");
        assert!(bytes_of(&owner, vec![finish(3, "ep_a")]).await <= 50, "{value}");
    }
    owner.redis.command::<()>(&["DEL", &key]).await;
    owner.redis.command::<()>(&["SET", &key, "x"]).await;
    owner.redis.command::<()>(&["SET", &owner.keys.unreadable(), "x"]).await;
    assert!(matches!(owner.call(Call::Counts { term: owner.term(), cursor: 0 }).await, Answer::Counts { .. }));
    // Records that were there before the count end with it: never negative, and right again when all have gone.
    assert_eq!(bytes_of(&owner, vec![parked(4, &[b'x'; 10])]).await, 10);
    assert_eq!(bytes_of(&owner, vec![finish(2, "ep_a")]).await, 0);
    assert_eq!(bytes_of(&owner, vec![finish(4, "ep_a"), parked(5, &[b'x'; 90])]).await, 80);
    assert_eq!(bytes_of(&owner, vec![finish(5, "ep_a")]).await, 0);
    assert_eq!(bytes_of(&owner, vec![parked(6, &[b'x'; 7])]).await, 7);
    assert_eq!(bytes_of(&owner, vec![finish(6, "ep_a")]).await, 0);
    assert!(!owner.redis.command::<bool>(&["EXISTS", &key]).await);
}

#[tokio::test]
async fn a_log_that_is_to_be_much_shorter_loses_a_part_with_each_batch() {
    let owner = Owner::start().await;
    let store = async |length: u64| {
        let mut store = owner.store.clone();
        store.keep_log(length);
        let settlement = Settlement { log: vec![Bytes::from_static(b"{}")], ..Settlement::default() };
        store.call(&Call::Settle { term: owner.term(), settlement }).await.unwrap();
        owner.redis.command::<usize>(&["XLEN", &owner.keys.attempts()]).await
    };
    for _ in 0..1_200 {
        store(10_000).await;
    }
    let mut lengths = Vec::new();
    for _ in 0..6 {
        lengths.push(store(100).await);
    }
    assert!(lengths[0] > 700, "most of it is still there: {lengths:?}");
    assert_eq!(lengths[5], 100, "{lengths:?}");
}

#[tokio::test]
async fn a_shared_key_of_a_foreign_type_fails_the_call_by_name_and_nothing_is_changed() {
    for name in ["due", "cursor", "attempts"] {
        let owner = busy_owner().await;
        let key = format!("{}{name}", owner.keys.prefix());
        owner.redis.command::<()>(&["DEL", &key]).await;
        owner.redis.command::<()>(&["SADD", &key, "x"]).await;
        let before = owner.fingerprint().await;
        let settlement = Settlement { items: every_item("ep_a"), ..Settlement::default() };
        match owner.store.call(&Call::Settle { term: owner.term(), settlement }).await {
            Err(Failure::Script(why)) => assert!(why.contains(&key) && why.contains("settle"), "{why}"),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(owner.fingerprint().await, before, "{name}");
    }
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_loaded_again() {
    let owner = busy_owner().await;
    for call in every_call(owner.term()) {
        owner.redis.command::<()>(&["SCRIPT", "FLUSH"]).await;
        if !matches!(call, Call::Release { .. } | Call::Renew { .. }) {
            let answer = owner.call(call.clone()).await;
            assert!(!matches!(answer, Answer::Lost), "{call:?}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_server_that_is_gone_leaves_the_outcome_unknown() {
    let mut owner = Owner::start().await;
    owner.redis.kill9().await;
    for call in every_call(owner.term()) {
        assert!(matches!(owner.store.call(&call).await, Err(Failure::Unknown(_))), "{call:?}");
    }
}

#[tokio::test]
async fn a_huge_event_is_cut_and_its_length_told() {
    let owner = Owner::start().await;
    owner.publish(&vec![b'x'; 10 * 1024 * 1024]).await;
    let small = owner.publish(b"{}").await;
    let entries = owner.read(10).await;
    match &entries[0].content {
        Content::Event { body, full_bytes, .. } => assert_eq!((body.len(), *full_bytes), (65_536, 10 * 1024 * 1024)),
        other => panic!("{other:?}"),
    }
    assert_eq!((entries.len(), entries[1].id), (2, small));
}

#[tokio::test]
async fn a_read_stops_at_its_size_and_the_next_one_goes_on_there() {
    let owner = Owner::start().await;
    let mut published = Vec::new();
    for number in 0..60u8 {
        published.push(owner.publish(&vec![number; 60_000]).await);
    }
    let mut seen = Vec::new();
    while seen.len() < published.len() {
        let entries = owner.read(500).await;
        let bytes = entries.len() * 60_000;
        assert!((1..=MAX_READ_BYTES + 60_000).contains(&bytes), "{bytes} bytes at once");
        seen.extend(entries.into_iter().map(|entry| entry.id));
    }
    assert_eq!(seen, published);
    // Reading what is pending stops in the same way.
    let read = Call::Read { term: owner.term(), from: ReadFrom::Pending(EntryId::ZERO), max: 500 };
    match owner.call(read).await {
        Answer::Entries { entries, .. } => {
            assert!(entries.len() < 20);
            assert!(entries.iter().map(|entry| entry.id).eq(published[..entries.len()].iter().copied()));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn records_come_a_megabyte_at_a_time_and_only_what_came_is_moved() {
    let owner = Owner::start().await;
    let record = vec![b'r'; 50_000];
    let parked = (0..60).map(|number| keep(number, "ep_a", Place::Backlog, &record)).collect();
    let due = (100..160).map(|number| keep(number, "ep_b", Place::DueIn(0), &record)).collect();
    owner.settle(parked).await;
    owner.settle(due).await;
    let size = |kept: &[Kept]| kept.iter().map(|(_, record)| record.as_ref().unwrap().len()).sum::<usize>();
    let fits = |kept: &[Kept]| (MAX_READ_BYTES..MAX_READ_BYTES + 50_000).contains(&size(kept));

    let look = Call::Backlog { term: owner.term(), endpoint: endpoint("ep_a"), after: EntryId::ZERO, max: 500 };
    assert!(matches!(owner.call(look).await, Answer::Backlog { kept, .. } if fits(&kept)));
    match owner.call(Call::TakeHeads { term: owner.term(), endpoint: endpoint("ep_a"), max: 500 }).await {
        Answer::Heads { kept, .. } => {
            assert!(fits(&kept));
            assert_eq!(owner.gauges().await.claimed, kept.len() as u64);
        }
        other => panic!("{other:?}"),
    }
    match owner.call(Call::Claim { term: owner.term(), max: 500 }).await {
        Answer::Claimed { kept, next_due_ms, .. } => {
            assert!(fits(&kept) && next_due_ms.is_some());
            assert_eq!(owner.gauges().await.due, 60 - kept.len() as u64);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_run_longer_than_a_batch_is_refused_whole() {
    let owner = Owner::start().await;
    owner.settle((1..=3).map(|n| keep(n, "ep_a", Place::Backlog, b"{}")).collect()).await;
    let before = owner.fingerprint().await;
    match owner.settle((1..=MAX_BATCH as u64 + 1).map(|n| finish(n, "ep_a")).collect()).await {
        Answer::BadItem { at: 0, why } => assert!(why.contains("at most 500"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(owner.fingerprint().await, before);
}

/// A look is several commands; a member without a record is reported as such.
#[tokio::test]
async fn a_look_tells_all_that_is_parked_in_its_order() {
    let owner = Owner::start().await;
    let size = |number: u64| 10 + number as usize;
    let id = |n: u64| delivery(EntryId { ms: n, seq: 0 }, "ep_a");
    let records: Vec<_> = (1..100).map(|number| vec![b'r'; size(number)]).collect();
    owner.settle((1..).zip(&records).map(|(n, record)| keep(n, "ep_a", Place::Backlog, record)).collect()).await;
    owner.redis.command::<i64>(&["DEL", &owner.keys.delivery(&id(40))]).await;
    for (after, max) in [(0, 500), (0, 32), (0, 33), (3, 90), (98, 500), (99, 500), (50, 0)] {
        let call =
            Call::Backlog { term: owner.term(), endpoint: endpoint("ep_a"), after: EntryId { ms: after, seq: 0 }, max };
        let want: Vec<_> =
            (after + 1..100).take(max).map(|n| (id(n), (n != 40).then(|| Bytes::from(vec![b'r'; size(n)])))).collect();
        match owner.call(call).await {
            Answer::Backlog { kept, now_ms } => assert!(kept == want && now_ms > 0, "{after} {max}: {kept:?}"),
            other => panic!("{after} {max}: {other:?}"),
        }
    }
}

/// Nothing was taken, so nobody's term ends because of it.
#[tokio::test]
async fn a_backlog_that_a_stranger_broke_is_named() {
    let owner = Owner::start().await;
    let backlog = owner.keys.backlog(&endpoint("ep_a"));
    let member = |bytes: &'static [u8]| redis::cmd("ZADD").arg(&backlog).arg(0).arg(bytes).to_owned();
    let other_type = redis::cmd("SET").arg(&backlog).arg("nonsense").to_owned();
    for broken in [member(b"nonsense"), member(b"\xff"), other_type] {
        owner.redis.command::<i64>(&["DEL", &backlog]).await;
        let _: redis::Value = broken.query_async(&mut owner.redis.connection().await).await.unwrap();
        let look = Call::Backlog { term: owner.term(), endpoint: endpoint("ep_a"), after: EntryId::ZERO, max: 5 };
        match owner.store.call(&look).await {
            Err(Failure::Script(why)) => assert!(why.contains(&backlog), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_lease_without_an_end_gets_one() {
    let owner = Owner::start().await;
    owner.redis.command::<()>(&["SET", &owner.keys.lease(), "by hand"]).await;
    let acquire = Call::Acquire { term: owner.term(), previous: vec![], ttl_ms: 60_000 };
    match owner.call(acquire).await {
        Answer::Taken { by, left_ms } => assert_eq!((by.as_str(), left_ms), ("hand", 60_000)),
        other => panic!("{other:?}"),
    }
    assert!(owner.redis.command::<i64>(&["PTTL", &owner.keys.lease()]).await > 0);
}

#[tokio::test]
async fn trimming_takes_bounded_steps_and_waits_for_our_own_group() {
    let owner = Owner::start().await;
    let mut pipeline = redis::pipe();
    for number in 1..=25_000 {
        pipeline.cmd("XADD").arg(STREAM).arg(format!("{number}-0")).arg("event").arg("{}").ignore();
    }
    pipeline.query_async::<()>(&mut owner.redis.connection().await).await.unwrap();
    let trim = Call::Trim { term: owner.term(), retain_ms: 0, up_to: None, ignores: vec!["herald".to_owned()] };
    let first = owner.call(trim.clone()).await;
    assert!(matches!(first, Answer::Trimmed { count: 0, .. }), "nothing was read yet: {first:?}");
    owner.redis.command::<()>(&["XGROUP", "SETID", STREAM, "herald", "25000-0"]).await;
    let mut counts = Vec::new();
    while counts.last() != Some(&0) {
        match owner.call(trim.clone()).await {
            Answer::Trimmed { count, .. } => counts.push(count),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(counts.iter().sum::<u64>(), 25_000);
    assert!(counts.iter().all(|count| *count <= 10_100), "{counts:?}");

    let kept = owner.publish(b"{}").await;
    owner.redis.command::<()>(&["XGROUP", "DESTROY", STREAM, "herald"]).await;
    owner.redis.command::<()>(&["XGROUP", "CREATE", STREAM, "analytics", "$"]).await;
    assert_eq!(owner.call(trim).await, Answer::NoGroup);
    assert!(kept > EntryId::ZERO && owner.gauges().await.length == 1);
}

/// Ids of a clock that runs a day ahead, of a counter and of microseconds: what is finished is trimmed all the same,
/// `retain` after its time and not before.
#[tokio::test]
async fn what_is_finished_is_trimmed_whatever_its_id_says() {
    let owner = Owner::start().await;
    let now = owner.gauges().await.now_ms;
    let trim = |retain_ms| Call::Trim { term: owner.term(), retain_ms, up_to: None, ignores: Vec::new() };
    for id in [7, now - 1, now + 86_400_000, now * 1_000, u64::MAX - 1] {
        let id = format!("{id}-{}", u64::MAX);
        owner.redis.command::<String>(&["XADD", STREAM, &id, "event", "{}"]).await;
        let entries = owner.read(10).await;
        owner.acknowledge(&entries).await;
        // From this one on it is known when it was passed.
        let kept = owner.call(trim(3_600_000)).await;
        assert!(matches!(kept, Answer::Trimmed { count: 0, .. }), "{id} has been there for a moment only: {kept:?}");
        let gone = owner.call(trim(0)).await;
        assert!(matches!(gone, Answer::Trimmed { count: 1, .. }), "{id} is finished: {gone:?}");
        owner.redis.command::<()>(&["DEL", &owner.keys.marks()]).await;
    }
    for id in [format!("{}-0", u64::MAX), format!("{}-1", u64::MAX)] {
        owner.redis.command::<String>(&["XADD", STREAM, &id, "event", "{}"]).await;
    }
    let entries = owner.read(10).await;
    owner.acknowledge(&entries).await;
    let noted = owner.call(trim(20)).await;
    let Answer::Trimmed { count: 0, now_ms: noted_ms } = noted else { panic!("{noted:?}") };
    loop {
        match owner.call(trim(20)).await {
            Answer::Trimmed { count: 0, now_ms } => assert!(now_ms < noted_ms + 20, "it is old and still there"),
            Answer::Trimmed { count, now_ms } => {
                assert!(count == 2 && now_ms >= noted_ms + 20, "{count} went after {} ms", now_ms - noted_ms);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A companion key says whose place an entry has; what a producer writes does not.
#[tokio::test]
async fn what_comes_back_from_the_quarantine_keeps_its_place_and_nobody_can_claim_one() {
    let owner = Owner::start().await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let account_sequence = Some(AccountSequence(17));
    let envelope = Envelope { traceparent: traceparent.parse().ok(), account_sequence };
    let mut bad = EntryId { ms: 5, seq: 1 };
    let place = bad;
    // Twice: an entry that is refused again keeps the place that it had at first.
    for _ in 0..2 {
        let item = Item::Quarantine {
            entry: bad,
            body: "{}".into(),
            cut: false,
            error: "no".to_owned(),
            envelope: envelope.clone(),
            keep_bytes: Some(1 << 20),
        };
        owner.settle(vec![item, Item::Requeue { entry: bad }]).await;
        let back = owner.read(10).await;
        assert_eq!(back.len(), 1);
        assert_eq!(back[0].place, Some(place));
        let Content::Event { body, traceparent: kept, account_sequence: number, .. } = &back[0].content else {
            panic!("{back:?}")
        };
        assert_eq!(*number, account_sequence);
        assert_eq!((&body[..], kept.as_deref()), (&b"{}"[..], Some(traceparent.as_bytes())));
        bad = back[0].id;
    }
    let forged: String = owner.redis.command(&["XADD", STREAM, "*", "place", "1-1", "event", "{}"]).await;
    let read = owner.read(10).await;
    assert_eq!((read[0].id.to_string(), read[0].place), (forged, None));
}

/// A stream that was made anew gives out its ids again, and what it holds under them is nowhere else.
#[tokio::test]
async fn two_events_of_one_id_are_in_the_quarantine_both() {
    let owner = Owner::start().await;
    let entry = EntryId { ms: 5, seq: 1 };
    let quarantine = |body: &'static str| Item::Quarantine {
        entry,
        body: body.into(),
        cut: false,
        error: "no".to_owned(),
        envelope: Default::default(),
        keep_bytes: None,
    };
    // Each is settled a second time.
    owner.settle(vec![quarantine("first"), quarantine("second")]).await;
    owner.settle(vec![quarantine("second"), quarantine("first")]).await;
    let kept: u64 = owner.redis.command(&["XLEN", &owner.keys.quarantine()]).await;
    assert_eq!(kept, 2);
    for expected in ["first", "second"] {
        owner.settle(vec![Item::Requeue { entry }]).await;
        let back = owner.read(10).await;
        assert_eq!(back.len(), 1);
        let Content::Event { body, .. } = &back[0].content else { panic!("{back:?}") };
        assert_eq!(&body[..], expected.as_bytes());
    }
    let left: u64 = owner.redis.command(&["EXISTS", &owner.keys.quarantine_index()]).await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn the_quarantine_drops_its_oldest_beyond_its_limit_and_counts_them() {
    let owner = Owner::start().await;
    let quarantine = |number: u64| Item::Quarantine {
        entry: EntryId { ms: number, seq: 0 },
        body: vec![b'x'; 60_000].into(),
        cut: false,
        error: "no JSON".to_owned(),
        envelope: Default::default(),
        keep_bytes: Some(1 << 20),
    };
    // A sound one, whose id another event has, may be dropped by nobody.
    let sound = Item::Quarantine {
        entry: EntryId { ms: 0, seq: 1 },
        body: "{}".into(),
        cut: false,
        error: "displaced".to_owned(),
        envelope: Default::default(),
        keep_bytes: None,
    };
    owner.settle(vec![sound]).await;
    for first in (1..=816).step_by(48) {
        owner.settle((first..first + 48).map(quarantine).collect()).await;
    }
    let kept: u64 = owner.redis.command(&["XLEN", &owner.keys.quarantine()]).await;
    // 1 MiB of entries of about 60 263 bytes each.
    assert_eq!((kept, owner.gauges().await.quarantine_dropped), (18, 816 - 17));
    let indexed: Vec<String> = owner.redis.command(&["HKEYS", &owner.keys.quarantine_index()]).await;
    assert_eq!(indexed.len(), 18);
    for there in ["0-1", "816-0"] {
        assert!(indexed.contains(&there.to_owned()), "{there} is not among {indexed:?}");
    }
}

#[tokio::test]
async fn what_was_trimmed_before_it_was_read_is_counted() {
    let owner = Owner::start().await;
    for _ in 0..10 {
        owner.publish(b"{}").await;
    }
    owner.read(2).await;
    assert_eq!((owner.gauges().await.behind, owner.gauges().await.trimmed_unread), (8, 0));
    owner.redis.command::<()>(&["XTRIM", STREAM, "MAXLEN", "3"]).await;
    let seen = owner.gauges().await;
    assert_eq!((seen.behind, seen.trimmed_unread, seen.pending, seen.group), (3, 5, 2, true));

    owner.read(10).await;
    // Reading on does not make it forgotten, nor does an emptied stream.
    assert_eq!((owner.gauges().await.behind, owner.gauges().await.trimmed_unread), (0, 5));
    owner.publish(b"{}").await;
    owner.redis.command::<()>(&["XADD", STREAM, "MAXLEN", "1", "*", "event", "{}"]).await;
    owner.read(2).await;
    assert_eq!((owner.gauges().await.behind, owner.gauges().await.trimmed_unread), (0, 6));
    owner.redis.command::<()>(&["XTRIM", STREAM, "MAXLEN", "0"]).await;
    assert_eq!((owner.gauges().await.behind, owner.gauges().await.trimmed_unread), (0, 6));
}

#[tokio::test]
async fn what_a_stranger_had_taken_and_was_trimmed_is_counted() {
    let owner = Owner::start().await;
    for _ in 0..3 {
        owner.publish(b"{}").await;
    }
    owner.redis.command::<redis::Value>(&["XREADGROUP", "GROUP", "herald", "x", "STREAMS", STREAM, ">"]).await;
    owner.redis.command::<()>(&["XTRIM", STREAM, "MAXLEN", "1"]).await;
    match owner.call(Call::ClaimForeign { term: owner.term(), max: 10 }).await {
        Answer::ClaimedForeign { count, lowest } => assert!(count == 3 && lowest.is_some()),
        other => panic!("{other:?}"),
    }
    assert_eq!(owner.gauges().await.foreign_trimmed, 2);
}

/// Redis 7.0 does not keep in its file how much a group has read, so Herald has it do so.
#[tokio::test]
async fn a_redis_that_starts_from_its_file_has_lost_nothing_that_was_read() {
    let mut owner = Owner::on(TestRedis::start_with_aof().await).await;
    for _ in 0..40 {
        owner.publish(b"{}").await;
    }
    owner.read(25).await;
    owner.redis.command::<()>(&["XTRIM", STREAM, "MAXLEN", "20"]).await;
    owner.redis.kill9().await;
    owner.redis.start_again().await;
    let seen = owner.gauges().await;
    assert_eq!((seen.behind, seen.trimmed_unread, seen.read), (15, 0, Some(25)));
}

#[tokio::test]
async fn who_starts_at_the_newest_entry_has_missed_nothing() {
    let owner = Owner::start().await;
    owner.publish(b"{}").await;
    owner.publish(b"{}").await;
    owner.redis.command::<()>(&["XTRIM", STREAM, "MAXLEN", "1"]).await;
    for start in [Start::Newest, Start::Oldest] {
        owner.redis.command::<()>(&["XGROUP", "DESTROY", STREAM, "herald"]).await;
        owner.redis.command::<()>(&["DEL", &owner.keys.cursor()]).await;
        owner.call(Call::Open { term: owner.term(), start, registry: "reg".to_owned() }).await;
        let behind = u64::from(start == Start::Oldest);
        assert_eq!((owner.gauges().await.behind, owner.gauges().await.trimmed_unread), (behind, 0), "{start:?}");
    }
}

/// What a stream had up to the cursor is known, and the group goes on after it, even if somebody has trimmed or emptied
/// the stream. In another stream of the same name nothing is known, whatever its ids are.
#[tokio::test]
async fn a_lost_group_goes_on_in_its_own_stream_and_begins_another_one() {
    let owner = Owner::start().await;
    let open = async |start| {
        let call = Call::Open { term: owner.term(), start, registry: "reg".to_owned() };
        match owner.call(call).await {
            Answer::Opened { made_after, is_set_back, .. } => (made_after.map(|id| (id.ms, id.seq)), is_set_back),
            other => panic!("{other:?}"),
        }
    };
    let stream_of = async |ids: &[&str]| {
        owner.redis.command::<()>(&["DEL", STREAM]).await;
        for id in ids {
            owner.redis.command::<String>(&["XADD", STREAM, id, "event", "{}"]).await;
        }
    };
    let cursor = async |at: &str| owner.redis.command::<()>(&["SET", &owner.keys.cursor(), at]).await;
    let own = |ms, seq| (Some((ms, seq)), false);
    let another = (Some((0, 0)), true);

    // The last one read is there, or the first one pending.
    stream_of(&["5-0", "7-0", "9-0"]).await;
    cursor("7-0").await;
    assert_eq!(open(Start::Oldest).await, own(7, 0));
    assert_eq!(open(Start::Oldest).await, (None, false), "it is there already");
    stream_of(&["5-0", "7-0", "9-0"]).await;
    cursor("6-18446744073709551615").await;
    assert_eq!(open(Start::Oldest).await, own(6, u64::MAX));
    // All up to the cursor was trimmed.
    stream_of(&["9-0"]).await;
    cursor("7-0").await;
    assert_eq!(open(Start::Oldest).await, own(7, 0));
    // It was emptied, or its newest entry deleted: it remembers its last id.
    stream_of(&["5-0", "7-0"]).await;
    owner.redis.command::<()>(&["XDEL", STREAM, "7-0"]).await;
    cursor("7-0").await;
    assert_eq!(open(Start::Oldest).await, own(7, 0));

    // Its ids are all older, or it is not even there.
    stream_of(&["2-0", "3-0"]).await;
    cursor("7-0").await;
    assert_eq!(open(Start::Oldest).await, another);
    owner.redis.command::<()>(&["DEL", STREAM]).await;
    cursor("7-0").await;
    assert_eq!(open(Start::Oldest).await, another);
    // The newest is after the cursor, but the entry that the cursor is about is not there.
    stream_of(&["2-0", "6-0", "9-0"]).await;
    cursor("7-0").await;
    assert_eq!(open(Start::Oldest).await, another);

    // A start that was asked for holds as long as nothing was read.
    stream_of(&["2-0", "9-0"]).await;
    cursor("7-0").await;
    assert_eq!(open(Start::After(EntryId { ms: 7, seq: 0 })).await, own(7, 0));
}

#[tokio::test]
async fn a_request_reaches_the_owner_and_its_answer_the_asker_once() {
    let owner = busy_owner().await;
    let requests = Requests::new(owner.redis.redis().connect(Purpose::Wakeup).await.unwrap(), owner.keys.clone());
    let mark = Mark { by: "ops".to_owned(), why: "mended".to_owned(), at_ms: 5 };
    let letter = delivery(EntryId { ms: 8, seq: 0 }, "ep_a");
    let id = requests.ask(&Asked::Redeliver(letter.clone()), &mark).await.unwrap();
    let release = Asked::Release(endpoint("ep_a"), IntentId::new("pi_3").unwrap(), None);
    requests.ask(&release, &mark).await.unwrap();
    for words in [["op", "dance", "mark", "{}"], ["op", "redeliver", "mark", "{}"], ["op", "requeue", "entry", "5-5"]] {
        let inbox = owner.keys.inbox();
        let words: Vec<&str> = ["XADD", &inbox, "*"].into_iter().chain(words).collect();
        owner.redis.command::<String>(&words).await;
    }

    let inbox = Call::Inbox { term: owner.term(), after: EntryId::ZERO, max: 10 };
    let Answer::Requests { requests: found } = owner.call(inbox).await else { panic!("no requests") };
    assert_eq!((found.len(), found[0].id), (5, id));
    assert_eq!(serde_json::from_slice::<Mark>(&found[0].mark).unwrap(), mark);
    assert_eq!(found[0].what, RequestKind::Redeliver { id: letter, letter: Some(Bytes::from_static(b"letter")) });
    let head = delivery(EntryId { ms: 3, seq: 0 }, "ep_a");
    let parked = Some((head, Some(Bytes::from_static(b"parked"))));
    assert!(matches!(&found[1].what, RequestKind::Release { head, .. } if *head == parked));
    assert!(found[2..].iter().all(|request| matches!(request.what, RequestKind::Unknown { .. })), "{found:?}");

    let replies = vec![Item::Reply { request: id, answer: "redelivered".to_owned() }; 2];
    owner.settle(replies).await;
    assert_eq!(requests.await_answer(id, support::SAFETY).await.unwrap().as_deref(), Some("redelivered"));
    assert_eq!(requests.await_answer(id, Duration::ZERO).await.unwrap(), None);
}

#[tokio::test]
async fn the_owner_wakes_for_an_entry_and_for_a_request() {
    let owner = Owner::start().await;
    let mut wakeup = Wakeup::connect(&owner.redis.redis(), owner.keys.clone()).await.unwrap();
    assert!(wakeup.is_told());
    let long = support::SAFETY * 2;

    let entry = async { owner.publish(b"{}").await };
    let (woken, entry) =
        soon("an entry", async { tokio::join!(wakeup.wait(EntryId::ZERO, EntryId::ZERO, long), entry) }).await;
    woken.unwrap();
    let requests = Requests::new(owner.redis.redis().connect(Purpose::Wakeup).await.unwrap(), owner.keys.clone());
    let mark = Mark { by: "ops".to_owned(), why: "test".to_owned(), at_ms: 0 };
    let asked = Asked::Requeue(entry);
    let ask = requests.ask(&asked, &mark);
    let (woken, asked) = soon("a request", async { tokio::join!(wakeup.wait(entry, EntryId::ZERO, long), ask) }).await;
    woken.unwrap();
    let nothing = wakeup.wait(entry, asked.unwrap(), Duration::from_millis(1)).await.unwrap();
    assert_eq!(nothing, New::default());
}

/// The body of an entry is as large as its producer likes: what wakes the owner must not carry it.
#[tokio::test]
async fn the_wakeup_carries_no_bodies() {
    const LARGE: usize = 32 << 20;
    let owner = Owner::start().await;
    let mut wakeup = Wakeup::connect(&owner.redis.redis(), owner.keys.clone()).await.unwrap();
    let sent = async || {
        let info: String = owner.redis.command(&["INFO", "stats"]).await;
        let line = info.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
        line.unwrap().trim().parse::<usize>().unwrap()
    };
    let body = vec![b'x'; LARGE];
    let before = sent().await;
    let (woken, first) = soon("a large entry", async {
        tokio::join!(wakeup.wait(EntryId::ZERO, EntryId::ZERO, support::SAFETY * 2), owner.publish(&body))
    })
    .await;
    assert!(woken.unwrap().entries);
    // Pushed, or seen at once: neither carries it.
    let seen = wakeup.wait(EntryId::ZERO, EntryId::ZERO, Duration::from_secs(1)).await.unwrap();
    assert_eq!(seen, New { entries: true, requests: false, is_certain: true });
    let inbox = owner.keys.inbox();
    let request = async {
        let mut add = redis::cmd("XADD");
        add.arg(&inbox).arg("*").arg("op").arg(&body[..]);
        add.query_async::<String>(&mut owner.redis.connection().await).await.unwrap()
    };
    let (woken, _) = soon("a large request", async {
        tokio::join!(wakeup.wait(first, EntryId::ZERO, support::SAFETY * 2), request)
    })
    .await;
    assert!(woken.unwrap().requests);
    let carried = sent().await - before;
    assert!(carried < LARGE / 10, "{carried} bytes left the server");
}

#[tokio::test]
async fn the_owner_wakes_also_where_redis_does_not_track_and_when_it_goes_away() {
    let owner = Owner::start().await;
    owner.redis.command::<()>(&["ACL", "SETUSER", "default", "-client|tracking"]).await;
    let mut wakeup = Wakeup::connect(&owner.redis.redis(), owner.keys.clone()).await.unwrap();
    assert!(!wakeup.is_told());
    let (woken, _) = soon("an entry", async {
        tokio::join!(wakeup.wait(EntryId::ZERO, EntryId::ZERO, support::SAFETY * 2), owner.publish(b"{}"))
    })
    .await;
    assert!(woken.unwrap().entries);

    owner.redis.command::<()>(&["ACL", "SETUSER", "default", "+client|tracking"]).await;
    let mut wakeup = Wakeup::connect(&owner.redis.redis(), owner.keys.clone()).await.unwrap();
    let last = EntryId::MAX;
    let mut connection = owner.redis.connection().await;
    let away = async {
        let _: redis::RedisResult<()> = redis::cmd("SHUTDOWN").arg("NOSAVE").query_async(&mut connection).await;
    };
    let (woken, ()) =
        soon("the end", async { tokio::join!(wakeup.wait(last, EntryId::ZERO, support::SAFETY * 2), away) }).await;
    assert!(woken.is_err(), "nobody will ever push to it: {woken:?}");
}

#[tokio::test]
async fn a_call_can_be_made_by_any_task() {
    fn is_send<T: Send>(_: &T) {}
    let owner = Owner::start().await;
    let release = Call::Release { term: owner.term() };
    let call = owner.store.call(&release);
    is_send(&call);
    assert_eq!(call.await, Ok(Answer::Released));
    let mut other = owner.redis.redis().connect(Purpose::Other).await.unwrap();
    is_send(&gauges(&mut other, &owner.keys));
}

#[tokio::test]
async fn the_attempt_log_keeps_its_length_whatever_the_batches_are() {
    let owner = Owner::start().await;
    let log = async |lines: usize| {
        let log = vec![Bytes::from_static(b"{}"); lines];
        let settlement = Settlement { log, ..Settlement::default() };
        owner.call(Call::Settle { term: owner.term(), settlement }).await;
    };
    let lines = async || {
        let entries: Vec<(String, Vec<String>)> =
            owner.redis.command(&["XRANGE", &owner.keys.attempts(), "-", "+"]).await;
        // The last word of each entry is its lines.
        (entries.len(), entries.iter().map(|(_, words)| words.last().unwrap().split('\n').count()).sum::<usize>())
    };
    // What a stranger wrote must neither stop the log nor stay in it.
    for _ in 0..3 {
        owner.redis.command::<String>(&["XADD", &owner.keys.attempts(), "*", "a", "{}"]).await;
    }
    for _ in 0..600 {
        log(1).await;
    }
    assert_eq!(lines().await, (603, 603));
    for _ in 0..20 {
        log(250).await;
    }
    // 1 000 lines are kept, and the rest of the batch that has the oldest of them.
    assert_eq!(lines().await, (4, 1_000));
    for _ in 0..10 {
        log(3).await;
    }
    assert_eq!(lines().await, (14, 1_030));

    // The count is lost, or is not a number: it is taken from the log.
    owner.redis.command::<()>(&["DEL", &owner.keys.stats()]).await;
    log(10).await;
    assert_eq!(lines().await, (15, 1_040));
    owner.redis.command::<()>(&["HSET", &owner.keys.stats(), "log-lines", "many"]).await;
    log(10).await;
    assert_eq!(lines().await, (16, 1_050));
    for _ in 0..1_200 {
        log(1).await;
    }
    assert_eq!(lines().await, (1_000, 1_000));

    // There is no id after a stranger's: the log begins anew.
    let last = format!("{0}-{0}", u64::MAX);
    owner.redis.command::<String>(&["XADD", &owner.keys.attempts(), &last, "a", "{}"]).await;
    log(2).await;
    log(3).await;
    assert_eq!(lines().await, (2, 5));
    // It shows that it was longer: no reader takes it for the whole story.
    let info: HashMap<String, redis::Value> = owner.redis.command(&["XINFO", "STREAM", &owner.keys.attempts()]).await;
    assert_eq!((&info["entries-added"], &info["length"]), (&redis::Value::Int(3), &redis::Value::Int(2)));

    // A stranger's higher id makes everything before it old.
    owner.redis.command::<String>(&["XADD", &owner.keys.attempts(), "5000000", "a", "{}"]).await;
    log(1).await;
    assert_eq!(lines().await, (2, 2));
}

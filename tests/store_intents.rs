//! The scripts of payment intents against a plain model of what they mean: the same random calls to both, and the same answers,
//! records, indexes and events. The clock stands still but for what a call does to it, so the model knows it.
// The simulator's clock is virtual: it is read to know how far it has come.
#![allow(clippy::disallowed_methods)]

mod support;

#[path = "store_intents/checks.rs"]
mod checks;
#[path = "store_intents/model.rs"]
mod model;
#[path = "store_intents/simulated.rs"]
mod simulated;
#[path = "store_intents/simulation.rs"]
mod simulation;

use bytes::Bytes;
use herald::{
    facts::id::{AccountId, IntentId},
    store::{
        connection::Purpose,
        error::StoreError,
        intents::{Change, ClockChange, Commit, Committed, Due, IntentStore, KeyOf, Look, Order},
        keys::PartitionKeys,
    },
};
use model::{Known, Model};
use proptest::{prelude::*, sample::select};
use support::TestRedis;

const START: i64 = 4_000_000_000_000_000;
const STATUSES: [&str; 3] = ["Created", "Captured", "Refunded"];

#[derive(Debug, Clone)]
enum Act {
    /// In one call.
    Commit(Vec<Made>),
    /// Each with an idempotency key or without, in one call.
    Load(Vec<(usize, Option<usize>)>),
    Due,
    Forget(usize, u64),
    PutOff(usize, i64),
    Reset(usize, Option<(i64, u64)>),
    Search {
        account: usize,
        from: i64,
        to: i64,
        order: Order,
        most: usize,
    },
    Feed {
        account: usize,
        after: u64,
        most: usize,
    },
    Clock(ClockChange),
}

#[derive(Debug, Clone)]
struct Made {
    id: usize,
    /// How far its revision and status are from those that are there.
    off: u64,
    before: Option<i64>,
    from: Option<i64>,
    due: Due,
    status: usize,
    is_told: bool,
    key: Option<usize>,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let instant = || (-5..60i64).prop_map(|micros| START + micros);
    let due = prop_oneof![instant().prop_map(Due::At), (0..60i64).prop_map(Due::In), Just(Due::Never)];
    let bound = || prop::option::weighted(0.2, instant());
    let off = prop_oneof![8 => Just(0u64), 1 => 1..3u64];
    let commit =
        (0..4usize, off, bound(), bound(), due, 0..3usize, any::<bool>(), prop::option::weighted(0.2, 0..3usize));
    let commit = commit.prop_map(|(id, off, before, from, due, status, is_told, key)| Made {
        id,
        off,
        before,
        from,
        due,
        status,
        is_told,
        key,
    });
    let few = || prop_oneof![2 => Just(1..2usize), 1 => Just(2..6usize)];
    let commits = few().prop_flat_map(move |count| prop::collection::vec(commit.clone(), count));
    let looks = few().prop_flat_map(|count| prop::collection::vec((0..4usize, prop::option::of(0..3usize)), count));
    let act = prop_oneof![
        8 => commits.prop_map(Act::Commit),
        2 => looks.prop_map(Act::Load),
        1 => Just(Act::Due),
        1 => (0..4usize, prop_oneof![3 => Just(0u64), 1 => Just(1)]).prop_map(|(id, off)| Act::Forget(id, off)),
        1 => (0..4usize, instant()).prop_map(|(id, to)| Act::PutOff(id, to)),
        1 => (0..2usize, prop::option::of((instant(), 0..12u64))).prop_map(|(account, until)| Act::Reset(account, until)),
        2 => (0..2usize, instant(), instant(), select(vec![Order::NewestFirst, Order::OldestFirst]), 1..4usize)
            .prop_map(|(account, from, to, order, most)| Act::Search { account, from, to, order, most }),
        2 => (0..2usize, 0..12u64, 1..6usize).prop_map(|(account, after, most)| Act::Feed { account, after, most }),
        1 => (0..20i64).prop_map(|by| Act::Clock(ClockChange::Advance(by))),
        1 => instant().prop_map(|to| Act::Clock(ClockChange::To(to))),
        2 => Just(Act::Clock(ClockChange::Step)),
    ];
    prop::collection::vec(act, 1..60)
}

fn id(n: usize) -> IntentId {
    IntentId::new(&format!("pi_{n}")).unwrap()
}

/// Each intent belongs to one account.
fn account(n: usize) -> AccountId {
    AccountId::new(&format!("acc_{}", n % 2)).unwrap()
}

/// Without what only Redis knows: the entry's id.
fn known(committed: Committed) -> Committed {
    match committed {
        Committed::Done { stamp, entry, number } => {
            Committed::Done { stamp, entry: entry.map(|_| "entry".to_owned()), number }
        }
        other => other,
    }
}

struct Both<'r> {
    redis: &'r TestRedis,
    store: IntentStore,
    model: Model,
}

impl<'r> Both<'r> {
    async fn start(redis: &'r TestRedis) -> Self {
        let keys = PartitionKeys::new("payment-intents").unwrap();
        let mut store = IntentStore::on(redis.redis().connect(Purpose::Work).await.unwrap(), keys);
        store.clock(ClockChange::Speed(0.0)).await.unwrap();
        store.clock(ClockChange::To(START)).await.unwrap();
        store.clock(ClockChange::Step).await.unwrap();
        Self { redis, store, model: Model::new(START) }
    }

    async fn act(&mut self, act: &Act) {
        match act {
            Act::Commit(made) => self.commit(made).await,
            Act::Load(looks) => {
                let look =
                    |(n, key): &(usize, Option<usize>)| Look { id: id(*n), key: key.map(|key| format!("key_{key}")) };
                let looks: Vec<_> = looks.iter().map(look).collect();
                let loaded = self.store.load(&looks).await.unwrap();
                for (look, loaded) in looks.iter().zip(loaded) {
                    let known = self.model.load(&look.id, look.key.as_deref().unwrap_or_default());
                    assert_eq!(loaded.unwrap(), known);
                }
            }
            Act::Due => self.due().await,
            Act::Forget(n, off) => {
                let (status, revision) = self.model.known(&id(*n)).map_or(("Created".to_owned(), 0), Known::parts);
                let (id, account) = (id(*n), account(*n));
                let numbers = self.model.numbers_of(&id);
                let done = self.store.forget(&id, &account, &status, revision + off, &numbers).await.unwrap();
                assert_eq!(done, self.model.forget(&id, &account, revision + off, &numbers));
            }
            Act::PutOff(n, to) => {
                self.store.put_off(&id(*n), *to).await.unwrap();
                self.model.put_off(&id(*n), *to);
            }
            Act::Reset(n, until) => {
                let removed = self.store.reset(&account(*n), &STATUSES.map(str::to_owned), *until).await.unwrap();
                assert_eq!((removed.until, removed.intents, removed.has_more), self.model.reset(&account(*n), *until));
            }
            Act::Search { account: n, from, to, order, most } => {
                let range = (*from, *to);
                let (found, has_more) = self.store.search(&account(*n), &STATUSES, range, *order, *most).await.unwrap();
                let found: Vec<_> = found.into_iter().map(|found| (found.created_at, found.id, found.stored)).collect();
                assert_eq!((found, has_more), self.model.search(&account(*n), range, *order, *most));
            }
            Act::Feed { account: n, after, most } => {
                let feed = self.store.feed(&account(*n), *after, *most).await.unwrap();
                let told = feed.told.into_iter().map(|told| (told.number, told.id, told.stored.map(Result::unwrap)));
                let found = (feed.latest, feed.has_more, told.collect());
                assert_eq!(found, self.model.feed(&account(*n), *after, *most));
            }
            Act::Clock(change) => {
                assert_eq!(self.store.clock(*change).await.unwrap(), self.model.clock(*change), "{change:?}");
            }
        }
    }

    /// All as of what was there before the first.
    async fn commit(&mut self, all: &[Made]) {
        let ids: Vec<_> = all.iter().map(|made| (id(made.id), account(made.id))).collect();
        let hashes: Vec<_> = all.iter().map(|made| made.key.map(|key| format!("key_{key}"))).collect();
        let numbers: Vec<_> = all.iter().map(|_| self.model.calls()).collect();
        let commits: Vec<_> = all
            .iter()
            .enumerate()
            .map(|(at, made)| {
                let (id, account) = &ids[at];
                let there = self.model.known(id);
                // Nobody knows what those of the same call will do.
                let off = if made.off > 0 { made.off + all.len() as u64 } else { 0 };
                Commit {
                    id,
                    account,
                    expected_revision: there.map_or(0, |known| known.revision) + off,
                    before: made.before,
                    from: made.from,
                    json: format!("{{\"n\":{}}}", numbers[at]),
                    due: made.due,
                    created_at: there.map(|known| known.created_at),
                    status: STATUSES[made.status].to_owned(),
                    status_before: there.map(|known| known.status.clone()),
                    event: made.is_told.then(|| ("<".to_owned(), ">".to_owned())),
                    event_id: None,
                    key: hashes[at].as_deref().map(|hash| KeyOf { hash, request: "request", keep_ms: 600_000 }),
                }
            })
            .collect();
        let changes: Vec<_> = commits.iter().map(|commit| Change::new(self.store.keys(), commit)).collect();
        let done = self.store.commit(&changes).await.unwrap();
        assert_eq!(done.len(), commits.len());
        for (commit, done) in commits.iter().zip(done) {
            let done = done.unwrap();
            let entry = match &done {
                Committed::Done { entry, .. } => entry.as_ref().map(|entry| entry.parse().unwrap()),
                _ => None,
            };
            assert_eq!(known(done), self.model.commit(commit, entry), "{commit:?}");
        }
    }

    async fn due(&mut self) {
        let due = self.store.due(rand::random()).await.unwrap();
        let found: Vec<_> = due.found.into_iter().map(|(id, stored)| (id, stored.unwrap())).collect();
        assert_eq!((due.now, due.target, due.next, found), self.model.due());
    }

    /// Everything that is there.
    async fn compare(&mut self) {
        for n in 0..4 {
            self.act(&Act::Load(vec![(n, Some(0))])).await;
        }
        self.due().await;
        for n in 0..2 {
            let all = Act::Search { account: n, from: 0, to: i64::MAX, order: Order::OldestFirst, most: 100 };
            self.act(&all).await;
            self.act(&Act::Feed { account: n, after: 0, most: 100 }).await;
            for status in STATUSES {
                let key = format!("herald:{{payment-intents}}:pi-of:{}:{status}", account(n));
                let indexed: Vec<String> = self.redis.command(&["ZRANGE", &key, "0", "-1"]).await;
                assert_eq!(indexed, self.model.indexed(&account(n), status), "{status}");
            }
        }
        let entries: Vec<(String, Vec<Bytes>)> = self.redis.command(&["XRANGE", "payment-intents", "-", "+"]).await;
        let told: Vec<String> =
            entries.into_iter().map(|(_, fields)| String::from_utf8(fields[1].to_vec()).unwrap()).collect();
        assert_eq!(told, self.model.told());
    }
}

#[test]
fn the_scripts_do_what_the_model_says() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let redis = runtime.block_on(TestRedis::start());
    let config = ProptestConfig { cases: 300, failure_persistence: None, max_shrink_iters: 400, ..Default::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let ran = runner.run(&acts(), |acts| {
        runtime.block_on(async {
            redis.command::<()>(&["FLUSHALL"]).await;
            let mut both = Both::start(&redis).await;
            for act in &acts {
                both.act(act).await;
            }
            both.compare().await;
        });
        Ok(())
    });
    ran.unwrap();
}

/// The script writes dates by arithmetic of its own: each day of four centuries, and the ends of its seconds.
#[tokio::test]
async fn every_day_is_written_as_the_calendar_has_it() {
    use herald::intents::stamp::{DAY, Stamp};
    let redis = TestRedis::start().await;
    let keys = PartitionKeys::new("payment-intents").unwrap();
    let mut store = IntentStore::on(redis.redis().connect(Purpose::Work).await.unwrap(), keys);
    store.clock(ClockChange::Speed(0.0)).await.unwrap();
    let (id, account) = (id(0), account(0));
    let from = Stamp::parse("2040-01-01T00:00:00Z").unwrap();
    for n in 0..2_000i64 {
        // A prime number of days and an odd time: every month, leap days and the turns of years are among them.
        let at = from.0 + n * 29 * DAY + (n * 86_399_999_983) % DAY;
        store.clock(ClockChange::To(at)).await.unwrap();
        store.clock(ClockChange::Step).await.unwrap();
        let commit = Commit {
            id: &id,
            account: &account,
            expected_revision: n.try_into().unwrap(),
            before: None,
            from: None,
            json: "{}".to_owned(),
            due: Due::Never,
            created_at: Some(1),
            status: "Created".to_owned(),
            status_before: Some("Created".to_owned()),
            event: Some(("<".to_owned(), ">".to_owned())),
            event_id: None,
            key: None,
        };
        let Committed::Done { stamp, entry, .. } = make(&mut store, &commit).await.unwrap() else { panic!("{n}") };
        let entry = entry.unwrap();
        let entries: Vec<(String, Vec<String>)> = redis.command(&["XRANGE", "payment-intents", &entry, &entry]).await;
        assert_eq!(entries[0].1[1], format!("<{}>", Stamp(stamp)));
        assert_eq!(stamp, at);
    }
}

/// One alone.
async fn make(store: &mut IntentStore, commit: &Commit<'_>) -> Result<Committed, StoreError> {
    let change = Change::new(store.keys(), commit);
    store.commit(&[change]).await?.remove(0)
}

fn change<'a>(id: &'a IntentId, account: &'a AccountId, due: Due) -> Commit<'a> {
    Commit {
        id,
        account,
        expected_revision: 0,
        before: None,
        from: None,
        json: "{}".to_owned(),
        due,
        created_at: None,
        status: "Created".to_owned(),
        status_before: None,
        event: Some(("<".to_owned(), ">".to_owned())),
        event_id: None,
        key: Some(KeyOf { hash: "hash", request: "request", keep_ms: 600_000 }),
    }
}

/// What one fails by is told to whoever asked for it.
#[tokio::test]
async fn of_what_goes_together_one_that_fails_stops_no_other() {
    let redis = TestRedis::start().await;
    let keys = PartitionKeys::new("payment-intents").unwrap();
    let mut store = IntentStore::on(redis.redis().connect(Purpose::Work).await.unwrap(), keys.clone());
    let (ids, account) = ([id(0), id(1), id(2), id(3)], account(0));
    let foreign = [keys.intent(&ids[1]), keys.intents_of(&account, "Captured")];
    for key in &foreign {
        redis.command::<()>(&["SADD", key, "x"]).await;
    }
    let mut commits = ids.each_ref().map(|id| Commit { key: None, ..change(id, &account, Due::In(1)) });
    commits[2].status = "Captured".to_owned();
    let changes = commits.each_ref().map(|commit| Change::new(&keys, commit));
    let made = store.commit(&changes).await.unwrap();
    for (made, number) in [(&made[0], 1), (&made[3], 2)] {
        assert!(matches!(made, Ok(Committed::Done { number: Some(found), .. }) if *found == number), "{made:?}");
    }
    for (made, (id, foreign)) in [&made[1], &made[2]].into_iter().zip(ids[1..].iter().zip(&foreign)) {
        let refused = made.as_ref().unwrap_err();
        assert!(matches!(refused, StoreError::WrongType { .. }), "{refused:?}");
        assert!(
            refused.to_string().contains(foreign.as_str()) && refused.to_string().contains(id.as_str()),
            "{refused}"
        );
    }
    let looks = ids.each_ref().map(|id| Look { id: id.clone(), key: None });
    let found = store.load(&looks).await.unwrap();
    let revision = |at: usize| found[at].as_ref().unwrap().stored.as_ref().map(|stored| stored.revision);
    assert_eq!((revision(0), revision(2), revision(3)), (Some(1), None, Some(1)));
    assert!(found[1].as_ref().unwrap_err().to_string().contains(foreign[0].as_str()), "{found:?}");
    let due: Vec<String> = redis.command(&["ZRANGE", &keys.intent_due(), "0", "-1"]).await;
    assert_eq!(due, ["pi_0", "pi_3"]);
}

/// Whatever key a stranger has made into something else, a change is done whole or not at all, and what cannot be used is named.
#[tokio::test]
async fn a_key_of_a_foreign_type_is_named_and_nothing_is_changed() {
    let redis = TestRedis::start().await;
    let keys = PartitionKeys::new("payment-intents").unwrap();
    let mut store = IntentStore::on(redis.redis().connect(Purpose::Work).await.unwrap(), keys.clone());
    let (id, account) = (id(0), account(0));
    let needed = [
        keys.intent(&id),
        keys.intent_due(),
        keys.intent_clock(),
        keys.intent_counts(),
        keys.stream().to_owned(),
        keys.intents_of(&account, "Created"),
        keys.intent_key("hash"),
    ];
    for key in &needed {
        redis.command::<()>(&["FLUSHALL"]).await;
        redis.command::<()>(&["SADD", key, "x"]).await;
        let refused = make(&mut store, &change(&id, &account, Due::In(1))).await.unwrap_err().to_string();
        assert!(refused.contains(key.as_str()), "{refused} names {key}");
        let left: Vec<String> = redis.command(&["KEYS", "*"]).await;
        assert_eq!(left, std::slice::from_ref(key));
    }
    // Another process may be writing to the feed; nobody waits for it. What it misses is counted.
    redis.command::<()>(&["FLUSHALL"]).await;
    redis.command::<()>(&["SADD", &keys.intent_feed(&account), "x"]).await;
    let done = make(&mut store, &change(&id, &account, Due::In(1))).await.unwrap();
    assert!(matches!(done, Committed::Done { number: Some(1), .. }), "{done:?}");
    let counts: Vec<(String, String)> = redis.command(&["HGETALL", &keys.intent_counts()]).await;
    let count = |name: &str| counts.iter().find(|(found, _)| found == name).map(|(_, count)| count.as_str());
    assert_eq!((count("lost-feed"), count("events:acc_0")), (Some("1"), Some("1")), "{counts:?}");
}

/// A change that moves an intent from one index to another has more to take back.
#[tokio::test]
async fn a_move_that_fails_half_way_leaves_everything_where_it_was() {
    let redis = TestRedis::start().await;
    let keys = PartitionKeys::new("payment-intents").unwrap();
    let mut store = IntentStore::on(redis.redis().connect(Purpose::Work).await.unwrap(), keys.clone());
    let (id, account) = (id(0), account(0));
    let Committed::Done { stamp, .. } = make(&mut store, &change(&id, &account, Due::In(1))).await.unwrap() else {
        panic!("it is new")
    };
    let moved = Commit {
        expected_revision: 1,
        created_at: Some(stamp),
        status: "Captured".to_owned(),
        status_before: Some("Created".to_owned()),
        key: None,
        ..change(&id, &account, Due::Never)
    };
    let [from, to] = ["Created", "Captured"].map(|status| keys.intents_of(&account, status));
    let looked_at = [keys.intent(&id), keys.intent_due(), from.clone(), to.clone(), keys.intent_counts()];
    for broken in [keys.stream().to_owned(), from, to] {
        redis.command::<()>(&["COPY", &broken, "kept"]).await;
        redis.command::<()>(&["DEL", &broken]).await;
        redis.command::<()>(&["SADD", &broken, "x"]).await;
        let mut before = Vec::new();
        for key in &looked_at {
            before.push(redis.command::<Option<Vec<u8>>>(&["DUMP", key]).await);
        }
        let refused = make(&mut store, &moved).await.unwrap_err().to_string();
        assert!(refused.contains(broken.as_str()), "{refused} names {broken}");
        for (key, before) in looked_at.iter().zip(before) {
            assert_eq!(redis.command::<Option<Vec<u8>>>(&["DUMP", key]).await, before, "{key}, with {broken} broken");
        }
        redis.command::<()>(&["DEL", &broken]).await;
        redis.command::<()>(&["COPY", "kept", &broken]).await;
        redis.command::<()>(&["DEL", "kept"]).await;
    }
    assert!(matches!(make(&mut store, &moved).await.unwrap(), Committed::Done { number: Some(2), .. }));
}

#[tokio::test]
async fn several_who_ask_for_what_is_due_get_different_intents_where_there_are_many() {
    let redis = TestRedis::start().await;
    let keys = PartitionKeys::new("payment-intents").unwrap();
    let mut store = IntentStore::on(redis.redis().connect(Purpose::Work).await.unwrap(), keys);
    let account = account(0);
    let nth = |n: usize| IntentId::new(&format!("pi_sandbox_{n:022}")).unwrap();
    for n in 0..1_250 {
        let id = nth(n);
        let due = Due::At(1 + n as i64);
        let commit = Commit { event: None, key: None, ..change(&id, &account, due) };
        assert!(matches!(make(&mut store, &commit).await.unwrap(), Committed::Done { .. }));
    }
    // A page, and up to ten pages that are passed over.
    for (place, first) in [(0.0, 0), (0.5, 500), (1.0, 1_000)] {
        let found: Vec<_> = store.due(place).await.unwrap().found.into_iter().map(|(id, _)| id).collect();
        assert_eq!(found, (first..first + 100).map(nth).collect::<Vec<_>>(), "{place}");
    }
    assert!(store.due(1.5).await.unwrap_err().to_string().contains("1.5 is no place"));
}

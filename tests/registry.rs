//! The registry against a real Redis: changes, import and export, and a follower in every kind of trouble.

#[path = "receiver/mod.rs"]
mod receiver;
#[path = "registry/sealed.rs"]
mod sealed;
#[path = "registry/set_back.rs"]
mod set_back;
mod support;

use std::collections::HashSet;

use herald::{
    facts::{
        audit::{Origin, Surface},
        endpoint::{Endpoint, EndpointState, Mark},
        id::{AccountId, EndpointId, RegistryId},
        sealing::Ring,
        signing::{Secret, SecretText},
        stamped::Stamped,
    },
    registry::{Change, Changes, RefreshError, Registry, RegistryState, sweep},
    store::{
        audit::{Audit, Logged, Retention, Wanted},
        error::StoreError,
        keys::{PartitionKeys, RegistryKeys},
        registry::{
            PAGE, RegistryError, RegistryStore,
            bulk::{BulkError, ExportFile},
        },
    },
};
use support::{TestRedis, soon, until};
use tokio_util::sync::CancellationToken;

/// As a worker writes it.
fn audit(redis: &TestRedis) -> Audit {
    let origin = Origin { surface: Surface::Worker, host: "worker-1".into(), process: 7, user: None };
    Audit::new(redis.redis(), Retention { max_count: 1_000, max_age_ms: u64::MAX / 2 }, origin)
}

/// What was done by whom, as the audit log has it.
async fn done(redis: &TestRedis) -> Vec<(String, String, String)> {
    let everything = Wanted { from_ms: 0, until_ms: u64::MAX, before: None, limit: 100 };
    let found = audit(redis).search(&everything, |_| true).await.unwrap();
    let told = |act: Logged| {
        let endpoint = act.begun.endpoint.map_or_else(String::new, |id| id.to_string());
        (act.begun.by, act.begun.act, endpoint)
    };
    found.acts.into_iter().map(told).collect()
}

fn mark(why: &str) -> Mark {
    Mark { by: "tester".into(), why: why.into(), at_ms: 1_700_000_000_000 }
}

fn id(text: &str) -> EndpointId {
    EndpointId::new(text).unwrap()
}

fn account(text: &str) -> AccountId {
    AccountId::new(text).unwrap()
}

fn partition() -> PartitionKeys {
    PartitionKeys::new("payment-intents").unwrap()
}

fn endpoint(name: &str, of: &str) -> Endpoint {
    let secret = SecretText::from_random([7; 32]);
    Endpoint::new(id(name), account(of), "https://merchant.example/hook".into(), secret, 1)
}

fn many(number: usize, of: &str) -> Vec<Endpoint> {
    (0..number).map(|n| endpoint(&format!("ep_{of}_{n}"), &format!("acc_{}", n % 100))).collect()
}

async fn store(redis: &TestRedis) -> RegistryStore {
    RegistryStore::connect(&redis.redis()).await.unwrap()
}

/// A follower that runs until it is dropped.
struct Follower {
    registry: Registry,
    changes: Changes,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Follower {
    async fn start(redis: &TestRedis) -> Self {
        let follower = Self::start_without_load(redis);
        soon("the first load", follower.registry.first_load()).await.unwrap();
        Self { changes: follower.registry.changes(), ..follower }
    }

    fn start_without_load(redis: &TestRedis) -> Self {
        let (registry, cancel) = (Registry::new(), CancellationToken::new());
        let task = tokio::spawn(registry.clone().run(redis.redis(), cancel.clone()));
        Self { changes: registry.changes(), registry, cancel, task }
    }

    async fn next(&mut self) -> Change {
        soon("a change", self.changes.next()).await.expect("the registry is still there")
    }

    /// Waits for changes until the registry is as it should be.
    async fn see(&mut self, what: &str, holds: impl Fn(&Registry) -> bool) {
        while !holds(&self.registry) {
            let _ = soon(what, self.changes.next()).await;
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        soon("the follower's end", self.task).await.unwrap();
    }
}

#[tokio::test]
async fn an_expired_secret_leaves_although_nobody_changes_its_endpoint() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    let mut rotated = endpoint("ep_a", "acc_1");
    let end =
        |expires_at_ms, byte| Secret { value: SecretText::from_random([byte; 32]), created_at_ms: 1, expires_at_ms };
    rotated.secrets = vec![end(Some(2), 1), end(Some(u64::MAX), 2), end(None, 3)];
    store.create(rotated, &mark("made")).await.unwrap();
    let kept = store.create(endpoint("ep_b", "acc_1"), &mark("made")).await.unwrap();
    let mut follower = Follower::start(&redis).await;
    let sweeping = tokio::spawn(sweep::run(
        follower.registry.clone(),
        redis.redis(),
        partition(),
        audit(&redis),
        follower.cancel.clone(),
    ));
    follower.see("the sweep", |registry| registry.get(&id("ep_a")).is_some_and(|seen| seen.secrets.len() == 2)).await;
    let swept = store.get(&id("ep_a")).await.unwrap().unwrap();
    let ends: Vec<_> = swept.secrets.iter().map(|secret| secret.expires_at_ms).collect();
    assert_eq!((ends, swept.revision), (vec![Some(u64::MAX), None], 2));
    assert_eq!(store.get(&id("ep_b")).await.unwrap(), Some(kept));
    assert_eq!(done(&redis).await, [("herald".into(), "endpoint drop-secret".into(), "ep_a".into())]);
    follower.stop().await;
    sweeping.await.unwrap();
}

#[tokio::test]
async fn an_endpoint_that_leaves_is_removed_once_all_that_it_was_owed_is_settled() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    redis.command::<()>(&["XADD", "payment-intents", "5-0", "event", "{}"]).await;
    let leaving = |name: &str, owed_until: &str| {
        let mut endpoint = Endpoint { leaves: true, ..endpoint(name, "acc_1") };
        endpoint.disable(mark("gone"), owed_until.parse().unwrap());
        endpoint
    };
    store.create(leaving("ep_drained", "4-0"), &mark("made")).await.unwrap();
    store.create(leaving("ep_owed", "5-0"), &mark("made")).await.unwrap();
    store.create(endpoint("ep_other", "acc_1"), &mark("made")).await.unwrap();
    let mut follower = Follower::start(&redis).await;
    let sweeping = tokio::spawn(sweep::run(
        follower.registry.clone(),
        redis.redis(),
        partition(),
        audit(&redis),
        follower.cancel.clone(),
    ));
    follower.see("the sweep", |registry| registry.get(&id("ep_drained")).is_none()).await;
    assert!(store.get(&id("ep_owed")).await.unwrap().is_some() && store.get(&id("ep_other")).await.unwrap().is_some());
    assert_eq!(done(&redis).await, [("herald".into(), "endpoint remove".into(), "ep_drained".into())]);
    // Somebody wants it back.
    let mut back = store.get(&id("ep_owed")).await.unwrap().unwrap();
    back.status = EndpointState::Enabled;
    let back = store.update(back, &mark("back")).await.unwrap();
    assert_eq!((back.leaves, back.owed_until), (false, None));
    follower.stop().await;
    sweeping.await.unwrap();
}

#[tokio::test]
async fn a_change_that_saw_another_registry_is_refused() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    let first = store.create_at(Stamped::default(), endpoint("ep_a", "acc_1"), &mark("first")).await.unwrap();
    let moved = store.create_at(Stamped::default(), endpoint("ep_b", "acc_1"), &mark("late")).await;
    assert!(matches!(moved, Err(RegistryError::Moved)), "{moved:?}");
    let seen = store.position().await.unwrap().unwrap().0.last;
    let first = store.update_at(seen, first, &mark("same")).await.unwrap();
    let moved = store.update_at(seen, first, &mark("late")).await;
    assert!(matches!(moved, Err(RegistryError::Moved)), "{moved:?}");
    assert_eq!(store.get(&id("ep_b")).await.unwrap(), None);
}

#[tokio::test]
async fn a_change_that_saw_an_older_revision_is_refused() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    let first = store.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
    assert_eq!(first.revision, 1);
    assert!(matches!(store.create(first.clone(), &mark("again")).await, Err(RegistryError::Exists(_))));

    let second =
        store.update(Endpoint { description: "second".into(), ..first.clone() }, &mark("better")).await.unwrap();
    assert_eq!((second.revision, second.updated_at_ms), (2, mark("").at_ms));
    let stale = store.update(Endpoint { description: "late".into(), ..first.clone() }, &mark("late")).await;
    assert!(matches!(stale, Err(RegistryError::Stale { seen: 1, ref found, .. }) if found == "2"), "{stale:?}");
    assert!(matches!(store.remove(&first.id, Some(1), &mark("late")).await, Err(RegistryError::Stale { .. })));
    assert_eq!(store.get(&first.id).await.unwrap(), Some(second));

    store.remove(&first.id, Some(2), &mark("over")).await.unwrap();
    assert_eq!(store.get(&first.id).await.unwrap(), None);
    assert!(matches!(store.remove(&first.id, None, &mark("over")).await, Err(RegistryError::Missing(_))));
    assert!(matches!(store.update(first, &mark("gone")).await, Err(RegistryError::Missing(_))));
}

#[tokio::test]
async fn every_change_gives_a_larger_version_and_the_id_stays() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    assert_eq!(store.position().await.unwrap(), None);
    assert!(matches!(store.export(1).await, Err(RegistryError::NeverMade)));
    let made = store.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
    let (first, _) = store.position().await.unwrap().unwrap();
    store.update(made, &mark("same")).await.unwrap();
    let (second, _) = store.position().await.unwrap().unwrap();
    store.pause_all(&mark("incident")).await.unwrap();
    let (third, pause) = store.position().await.unwrap().unwrap();
    assert!(first.last.version < second.last.version && second.last.version < third.last.version);
    assert!(first.id == second.id && second.id == third.id);
    assert_eq!(pause, Some(mark("incident")));
    assert!(store.resume_all(&mark("over")).await.unwrap());
    assert!(!store.resume_all(&mark("over")).await.unwrap());
    assert_eq!(store.position().await.unwrap().unwrap().1, None);
}

#[tokio::test]
async fn the_feed_says_who_changed_what_and_why() {
    let redis = TestRedis::start().await;
    store(&redis).await.create(endpoint("ep_a", "acc_1"), &mark("asked by mail")).await.unwrap();
    let feed: Vec<(String, Vec<String>)> = redis.command(&["XRANGE", RegistryKeys::CHANGES, "-", "+"]).await;
    let words = feed[0].1.join(" ");
    assert!(words.contains("kind put endpoint ep_a by tester why asked by mail"), "{words}");
}

#[tokio::test]
async fn a_list_shows_every_endpoint_page_by_page() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    store.import(many(3 * PAGE, "x"), None, &mark("import")).await.unwrap();
    let (mut seen, mut cursor, mut pages) = (HashSet::new(), None, 0);
    loop {
        let page = store.list(cursor).await.unwrap();
        seen.extend(page.endpoints.into_iter().map(|endpoint| endpoint.id));
        (cursor, pages) = (page.next, pages + 1);
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 3 * PAGE);
    assert!(pages >= 3, "{pages} pages");
}

#[tokio::test]
async fn an_export_comes_back_whole_into_an_empty_redis_with_its_id() {
    let (from, to) = (TestRedis::start().await, TestRedis::start().await);
    let mut old = store(&from).await;
    old.import(many(700, "x"), None, &mark("start")).await.unwrap();
    let file = old.export(5).await.unwrap();
    assert_eq!((file.endpoints.len(), file.exported_at_ms), (700, 5));
    assert!(!format!("{file:?}").contains("whsec_"), "a secret shows");

    let json = serde_json::to_vec(&file).unwrap();
    let read = ExportFile::from_json(&json, &Ring::default()).unwrap();
    assert_eq!(read, file);
    let imported = store(&to).await.import(read.endpoints, Some(read.registry_id), &mark("restore")).await.unwrap();
    assert_eq!((&imported.id, imported.endpoints), (&file.registry_id, 700));
    assert_eq!(store(&to).await.export(5).await.unwrap().endpoints, file.endpoints);
    let left: Vec<String> = to.command(&["KEYS", "*staging*"]).await;
    assert!(left.is_empty(), "{left:?}");
    let ttl: i64 = to.command(&["TTL", RegistryKeys::ENDPOINTS]).await;
    assert_eq!(ttl, -1, "the registry would expire");
}

#[tokio::test]
async fn an_import_into_a_registry_replaces_its_endpoints_and_keeps_its_id() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    let gone = store.create(endpoint("ep_gone", "acc_1"), &mark("new")).await.unwrap();
    let kept = store.create(endpoint("ep_kept", "acc_1"), &mark("new")).await.unwrap();
    let kept = store.update(kept, &mark("more")).await.unwrap();
    let before = store.position().await.unwrap().unwrap().0;
    let foreign = RegistryId::new("reg_foreign").unwrap();
    let old = Endpoint { revision: 1, ..kept.clone() };
    let imported = store.import(vec![old], Some(foreign), &mark("restore")).await.unwrap();
    assert_eq!(imported.id, before.id);
    assert!(imported.version > before.last.version);
    assert_eq!(store.get(&gone.id).await.unwrap(), None);
    // A caller that saw the endpoint before the import must not overwrite what it brought.
    assert!(matches!(store.update(kept, &mark("late")).await, Err(RegistryError::Stale { .. })));
}

#[tokio::test]
async fn an_import_that_makes_no_sense_changes_nothing() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    let empty = store.import(Vec::new(), None, &mark("")).await;
    assert!(matches!(empty, Err(RegistryError::Bulk(BulkError::Empty))));
    let twice = store.import(vec![endpoint("ep_a", "acc_1"), endpoint("ep_a", "acc_2")], None, &mark("")).await;
    assert!(matches!(twice, Err(RegistryError::Bulk(BulkError::Twice(_)))));
    let large = Endpoint { description: "x".repeat(70_000), ..endpoint("ep_a", "acc_1") };
    assert!(matches!(store.import(vec![large], None, &mark("")).await, Err(RegistryError::TooLarge { .. })));
    assert_eq!(redis.command::<usize>(&["DBSIZE"]).await, 0);
    assert!(matches!(
        ExportFile::from_json(br#"{"schema":99}"#, &Ring::default()),
        Err(BulkError::NewerFile { found: 99 })
    ));
    let secret = ExportFile::from_json(
        br#"{"schema":1,"registry_id":"reg_1","version":1,"exported_at_ms":1,"endpoints":["whsec_x"]}"#,
        &Ring::default(),
    );
    assert!(!secret.unwrap_err().to_string().contains("whsec"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_looks_during_an_import_sees_the_old_or_the_new_registry() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    store.import(many(600, "old"), None, &mark("start")).await.unwrap();
    let mut other = store.clone();
    let import = tokio::spawn(async move { other.import(many(5_000, "new"), None, &mark("import")).await.unwrap() });
    let mut seen = HashSet::new();
    while !import.is_finished() {
        seen.insert(store.load().await.unwrap().endpoints.len());
    }
    import.await.unwrap();
    assert_eq!(store.load().await.unwrap().endpoints.len(), 5_000);
    assert!(seen.iter().all(|number| [600, 5_000].contains(number)), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_whose_process_dies_in_between_leaves_the_registry_as_it_was() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    store.import(many(600, "old"), None, &mark("start")).await.unwrap();
    let before = store.position().await.unwrap();
    let mut dying = RegistryStore::connect(&redis.redis()).await.unwrap();
    let import = tokio::spawn(async move { dying.import(many(50_000, "new"), None, &mark("import")).await });
    let mut staged: Vec<String> = Vec::new();
    until("the first chunk", async || {
        staged = redis.command(&["KEYS", "*staging*"]).await;
        !staged.is_empty()
    })
    .await;
    import.abort();
    assert!(import.await.unwrap_err().is_cancelled(), "the import was done before it could be cut off");
    assert_eq!(store.position().await.unwrap(), before);
    assert_eq!(store.load().await.unwrap().endpoints.len(), 600);
    let ttl: i64 = redis.command(&["TTL", &staged[0]]).await;
    assert!(ttl > 0, "what is left expires, but its TTL is {ttl}");
}

#[tokio::test]
async fn a_follower_sees_each_change_once_it_is_made() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    let mut follower = Follower::start(&redis).await;
    assert_eq!(follower.registry.state(), RegistryState::NeverMade);

    let made = store.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
    assert_eq!(follower.next().await, Change::Reset);
    assert_eq!(follower.registry.state(), RegistryState::Loaded);
    let second = store.create(endpoint("ep_b", "acc_1"), &mark("new")).await.unwrap();
    assert_eq!(follower.next().await, Change::Endpoint(second.clone().into()));
    let lookup = follower.registry.lookup(&made.account);
    assert_eq!(lookup.endpoints.iter().map(|endpoint| endpoint.id.as_str()).collect::<Vec<_>>(), ["ep_a", "ep_b"]);
    assert!(!lookup.is_uncertain);

    let moved = store.update(Endpoint { account: account("acc_2"), ..second }, &mark("moved")).await.unwrap();
    follower.next().await;
    assert_eq!(follower.registry.endpoints_for(&account("acc_1")).len(), 1);
    assert_eq!(follower.registry.endpoints_for(&account("acc_2"))[0].id, moved.id);

    store.pause_all(&mark("incident")).await.unwrap();
    assert_eq!(follower.next().await, Change::Pause(Some(mark("incident"))));
    assert_eq!(follower.registry.paused_all(), Some(mark("incident")));
    store.resume_all(&mark("over")).await.unwrap();
    assert_eq!(follower.next().await, Change::Pause(None));

    for id in [made.id, moved.id] {
        store.remove(&id, None, &mark("over")).await.unwrap();
        assert_eq!(follower.next().await, Change::Removed(id));
    }
    assert_eq!(follower.registry.state(), RegistryState::Empty);
    let (position, _) = store.position().await.unwrap().unwrap();
    soon("the version", follower.registry.refresh_to(&position)).await.unwrap();
    assert_eq!((follower.registry.id(), follower.registry.last()), (Some(position.id), position.last));
    follower.stop().await;
}

#[tokio::test]
async fn a_refresh_is_at_least_as_new_as_what_was_asked_for() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    store.create(endpoint("ep_0", "acc_1"), &mark("new")).await.unwrap();
    let follower = Follower::start(&redis).await;
    for n in 1..50 {
        store.create(endpoint(&format!("ep_{n}"), "acc_1"), &mark("new")).await.unwrap();
        let position = store.position().await.unwrap().unwrap().0;
        soon("the refresh", follower.registry.refresh_to(&position)).await.unwrap();
        assert_eq!(follower.registry.endpoints_for(&account("acc_1")).len(), n + 1);
    }
    let registry = follower.registry.clone();
    follower.stop().await;
    assert_eq!(soon("an answer", registry.refresh()).await, Err(RefreshError::Stopped));
}

#[tokio::test]
async fn a_registry_that_vanished_is_not_taken_for_an_empty_one() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    store.import(many(600, "x"), None, &mark("start")).await.unwrap();
    let file = store.export(1).await.unwrap();
    let mut follower = Follower::start(&redis).await;

    redis.command::<()>(&["FLUSHALL"]).await;
    follower.see("that it vanished", |registry| registry.state() == RegistryState::Vanished).await;
    assert_eq!((follower.registry.len(), follower.registry.endpoints_for(&account("acc_1")).len()), (600, 6));
    let refreshed = soon("an answer", follower.registry.refresh()).await;
    assert_eq!(refreshed, Err(RefreshError::Vanished));

    let mut fewer = file.endpoints;
    fewer.truncate(500);
    store.import(fewer, Some(file.registry_id.clone()), &mark("restore")).await.unwrap();
    follower.see("the restored one", |registry| registry.state() == RegistryState::Loaded).await;
    assert_eq!((follower.registry.len(), follower.registry.id()), (500, Some(file.registry_id)));
    assert!(follower.registry.version() > file.version, "a version was given twice");
    follower.stop().await;
}

#[tokio::test]
async fn a_registry_with_another_id_is_loaded_and_shows_it() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    store.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
    let mut follower = Follower::start(&redis).await;
    let before = follower.registry.id();
    redis.command::<()>(&["FLUSHALL"]).await;
    store.create(endpoint("ep_b", "acc_1"), &mark("new")).await.unwrap();
    follower.see("the other registry", |registry| registry.get(&id("ep_b")).is_some()).await;
    assert_ne!(follower.registry.id(), before);
    assert_eq!(follower.registry.get(&id("ep_a")), None);
    follower.stop().await;
}

#[tokio::test]
async fn a_part_of_a_registry_is_damage_that_only_an_import_mends() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    store.import(many(10, "x"), None, &mark("start")).await.unwrap();
    let file = store.export(1).await.unwrap();
    let mut follower = Follower::start(&redis).await;
    for key in [RegistryKeys::ENDPOINTS, RegistryKeys::META] {
        redis.command::<()>(&["DEL", key]).await;
        follower.see("the damage", |registry| registry.state() == RegistryState::Vanished).await;
        assert_eq!(follower.registry.len(), 10);
        if key == RegistryKeys::ENDPOINTS {
            let refused = store.create(endpoint("ep_new", "acc_1"), &mark("new")).await;
            assert!(matches!(refused, Err(RegistryError::Damaged(_))), "{refused:?}");
        }
        let id = Some(file.registry_id.clone());
        store.import(file.endpoints.clone(), id, &mark("mend")).await.unwrap();
        follower.see("the mended one", |registry| registry.state() == RegistryState::Loaded).await;
    }
    // Without its feed a registry is complete, but no follower can know what it missed.
    redis.command::<()>(&["DEL", RegistryKeys::CHANGES]).await;
    store.create(endpoint("ep_new", "acc_1"), &mark("new")).await.unwrap();
    follower.see("the new endpoint", |registry| registry.get(&id("ep_new")).is_some()).await;
    assert_eq!(follower.registry.len(), 11);
    follower.stop().await;
}

#[tokio::test]
async fn a_follower_that_missed_a_part_of_the_feed_loads_everything() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    let first = store.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
    let mut follower = Follower::start(&redis).await;
    // In one step, so that the follower cannot look in between.
    let script = "redis.call('XTRIM', KEYS[3], 'MAXLEN', 0) redis.call('HDEL', KEYS[1], 'ep_a') \
                  redis.call('HSET', KEYS[2], 'count', 0, 'version', 9999999999999) \
                  redis.call('XADD', KEYS[3], '9999999999999-0', 'after', '9999999999998', 'kind', 'pause')";
    let keys = [RegistryKeys::ENDPOINTS, RegistryKeys::META, RegistryKeys::CHANGES];
    redis.command::<()>(&["EVAL", script, "3", keys[0], keys[1], keys[2]]).await;
    follower.see("the load", |registry| registry.version() == 9_999_999_999_999).await;
    assert_eq!(follower.registry.get(&first.id), None);
    assert_eq!(follower.registry.state(), RegistryState::Empty);
    // The next version follows the last one, although that lies in the future.
    store.create(endpoint("ep_b", "acc_1"), &mark("new")).await.unwrap();
    assert!(matches!(follower.next().await, Change::Reset | Change::Endpoint(_)));
    follower.see("the next change", |registry| registry.version() == 10_000_000_000_000).await;
    follower.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_can_not_be_read_makes_its_account_uncertain_and_no_other() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    for (name, of) in [("ep_a", "acc_1"), ("ep_b", "acc_2")] {
        store.create(endpoint(name, of), &mark("new")).await.unwrap();
    }
    let mut follower = Follower::start(&redis).await;
    let newer =
        serde_json::to_string(&endpoint("ep_a", "acc_1")).unwrap().replace("\"schema\":1", "\"schema\":3,\"new\":1");
    redis.command::<()>(&["HSET", RegistryKeys::ENDPOINTS, "ep_a", &newer]).await;
    redis.command::<()>(&["DEL", RegistryKeys::CHANGES]).await;
    store.pause_all(&mark("tells the follower")).await.unwrap();
    follower.see("the newer one", |registry| registry.unreadable() == 1).await;
    assert_eq!(follower.registry.get(&id("ep_a")), None);
    assert!(follower.registry.is_account_uncertain(&account("acc_1")));
    assert!(!follower.registry.is_account_uncertain(&account("acc_2")));
    assert!(matches!(store.get(&id("ep_a")).await, Err(RegistryError::Unreadable(_))));
    assert!(matches!(store.update(endpoint("ep_a", "acc_1"), &mark("")).await, Err(RegistryError::Newer { .. })));
    assert!(matches!(store.export(1).await, Err(RegistryError::Bulk(BulkError::Unreadable { .. }))));

    redis.command::<()>(&["HSET", RegistryKeys::ENDPOINTS, "ep_b", "garbage"]).await;
    redis.command::<()>(&["DEL", RegistryKeys::CHANGES]).await;
    store.pause_all(&mark("tells the follower")).await.unwrap();
    follower.see("the garbage", |registry| registry.unreadable() == 2).await;
    assert!(follower.registry.is_account_uncertain(&account("acc_2")), "whose it was is known from before");
    assert!(!follower.registry.is_account_uncertain(&account("acc_3")) && !follower.registry.has_strays());
    let mut newcomer = Follower::start(&redis).await;
    newcomer.see("the garbage", |registry| registry.unreadable() == 2).await;
    assert!(newcomer.registry.is_account_uncertain(&account("acc_3")), "the garbage may be anyone's");
    assert!(newcomer.registry.has_strays());
    newcomer.stop().await;
    assert!(matches!(store.update(endpoint("ep_b", "acc_2"), &mark("")).await, Err(RegistryError::Unreadable(_))));

    for name in ["ep_a", "ep_b"] {
        store.remove(&id(name), None, &mark("mend")).await.unwrap();
    }
    follower.see("the end of it", |registry| registry.unreadable() == 0).await;
    assert!(!follower.registry.is_account_uncertain(&account("acc_1")));
    follower.stop().await;
}

#[tokio::test]
async fn a_follower_survives_a_restart_a_kill_and_a_silent_redis() {
    let mut redis = TestRedis::start_with_aof().await;
    store(&redis).await.import(many(600, "x"), None, &mark("start")).await.unwrap();
    let mut follower = Follower::start(&redis).await;
    for (n, name) in ["ep_1", "ep_2", "ep_3", "ep_4"].into_iter().enumerate() {
        match n {
            0 => redis.restart().await,
            1 => {
                redis.kill9().await;
                redis.start_again().await;
            }
            2 => redis.command::<()>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await,
            _ => {
                redis.command::<()>(&["SCRIPT", "FLUSH"]).await;
                redis.pause();
                redis.resume();
            }
        }
        store(&redis).await.create(endpoint(name, "acc_new"), &mark("new")).await.unwrap();
        follower.see(name, |registry| registry.get(&id(name)).is_some()).await;
        assert_eq!(follower.registry.state(), RegistryState::Loaded);
    }
    assert_eq!(follower.registry.len(), 604);
    follower.stop().await;
}

#[tokio::test]
async fn a_follower_waits_for_a_redis_that_is_not_there_yet_and_stops_at_once() {
    let mut redis = TestRedis::start_with_aof().await;
    store(&redis).await.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
    redis.stop().await;
    let follower = Follower::start_without_load(&redis);
    assert_eq!(follower.registry.state(), RegistryState::Loading);
    redis.start_again().await;
    soon("the first load", follower.registry.first_load()).await.unwrap();
    assert_eq!(follower.registry.state(), RegistryState::Loaded);
    redis.pause();
    follower.stop().await;
    redis.resume();
}

#[tokio::test]
async fn a_hundred_thousand_endpoints_are_loaded_and_followed() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    store.import(many(100_000, "x"), None, &mark("start")).await.unwrap();
    let mut follower = Follower::start(&redis).await;
    assert_eq!(follower.registry.len(), 100_000);
    let one = store.get(&id("ep_x_4711")).await.unwrap().unwrap();
    let untouched = follower.registry.endpoints_for(&account("acc_1"));
    let changed = store.update(one, &mark("one of many")).await.unwrap();
    assert_eq!(follower.next().await, Change::Endpoint(changed.into()));
    let same = follower.registry.endpoints_for(&account("acc_1"));
    assert!(std::sync::Arc::ptr_eq(&untouched, &same), "a change of one account touched another");
    follower.stop().await;
}

#[tokio::test]
async fn a_listener_that_is_too_slow_is_told_to_look_at_everything() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    let mut last = store.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
    let mut follower = Follower::start(&redis).await;
    // More changes than a listener may be behind.
    for _ in 0..1_100 {
        last = store.update(last, &mark("again")).await.unwrap();
    }
    let (position, _) = store.position().await.unwrap().unwrap();
    soon("the last version", follower.registry.refresh_to(&position)).await.unwrap();
    assert_eq!(follower.next().await, Change::Reset);
    assert_eq!(follower.registry.get(&last.id).unwrap().revision, last.revision);
    follower.stop().await;
}

#[tokio::test]
async fn a_full_redis_refuses_a_new_endpoint_but_not_a_pause_or_a_removal() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    let made = store.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
    redis.set_maxmemory(1).await;
    let refused = store.create(endpoint("ep_b", "acc_1"), &mark("new")).await;
    assert!(matches!(refused, Err(RegistryError::Store(StoreError::OutOfMemory { .. }))), "{refused:?}");
    store.pause_all(&mark("full")).await.unwrap();
    let paused = Endpoint { status: EndpointState::Paused(mark("full")), ..made };
    let paused = store.update(paused, &mark("full")).await.unwrap();
    let disabled = Endpoint { status: EndpointState::Disabled(mark("full")), ..paused };
    let disabled = store.update(disabled, &mark("full")).await.unwrap();
    let enabled = store.update(Endpoint { status: EndpointState::Enabled, ..disabled.clone() }, &mark("full")).await;
    assert!(matches!(enabled, Err(RegistryError::Store(StoreError::OutOfMemory { .. }))), "{enabled:?}");
    store.remove(&disabled.id, Some(disabled.revision), &mark("full")).await.unwrap();
    let (_, pause) = store.position().await.unwrap().unwrap();
    assert_eq!(pause, Some(mark("full")));
}

#[tokio::test]
async fn errors_of_redis_are_told_apart_by_type() {
    let mut redis = TestRedis::start().await;
    let mut connected = store(&redis).await;
    let info =
        redis.redis().connect(herald::store::connection::Purpose::Other).await.unwrap().server_info().await.unwrap();
    assert_eq!((info.major_minor().0 >= 7, info.aof_enabled, info.is_primary), (true, false, true));
    redis.command::<()>(&["SET", RegistryKeys::ENDPOINTS, "foreign"]).await;
    let foreign = connected.create(endpoint("ep_a", "acc_1"), &mark("")).await;
    assert!(matches!(foreign, Err(RegistryError::Store(StoreError::WrongType { .. }))), "{foreign:?}");
    assert!(matches!(connected.position().await, Err(RegistryError::Damaged(_))));
    redis.command::<()>(&["ACL", "SETUSER", "weak", "on", ">pass", "~*", "+hget", "+client"]).await;
    let weak = format!("redis://weak:pass@{}", redis.address());
    let weak = herald::store::connection::Redis::new(&weak).unwrap();
    let denied = RegistryStore::connect(&weak).await.unwrap().position().await;
    assert!(matches!(denied, Err(RegistryError::Store(StoreError::Denied { .. }))), "{denied:?}");
    let wrong = format!("redis://weak:hunter2@{}", redis.address());
    let wrong = RegistryStore::connect(&herald::store::connection::Redis::new(&wrong).unwrap()).await.err().unwrap();
    assert!(matches!(wrong, StoreError::Denied { .. }), "{wrong:?}");
    assert!(!wrong.to_string().contains("hunter2"));
    let tls = herald::store::connection::Redis::new(&redis.url().replace("redis:", "rediss:")).unwrap();
    let plain = RegistryStore::connect(&tls).await.err().unwrap();
    assert!(matches!(plain, StoreError::Unavailable { .. }), "{plain:?}");
    redis.stop().await;
    let away = connected.position().await;
    assert!(matches!(away, Err(RegistryError::Store(StoreError::Unavailable { .. }))), "{away:?}");
    let away = redis.redis().connect(herald::store::connection::Purpose::Work).await.err().unwrap();
    assert!(matches!(away, StoreError::Unavailable { .. }), "{away:?}");
    redis.start_again().await;
}

#[tokio::test]
async fn a_private_authority_of_redis_is_trusted_when_it_is_named() {
    use herald::store::{
        connection::{Purpose, Redis},
        encryption::TlsFiles,
    };
    use receiver::{Authority, Receiver, Seen};
    let authority = Authority::new();
    let acceptor = authority.acceptor("localhost", &[], |_| ());
    // Reports for each connection whether TLS was agreed on; that needs no server behind it.
    let server = Receiver::start(move |stream, log| {
        let acceptor = acceptor.clone();
        async move {
            let agreed = acceptor.accept(stream).await.is_ok();
            log.note(Seen { head: agreed.to_string(), body: Vec::new() });
        }
    })
    .await;
    let url = format!("rediss://localhost:{}", server.address.port());
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("ca.pem");
    std::fs::write(&pem, authority.pem()).unwrap();
    for (number, trusted) in [None, Some(pem)].into_iter().enumerate() {
        let redis = Redis::trusting(&url, TlsFiles { authority: trusted, identity: None }).unwrap();
        assert!(redis.connect(Purpose::Other).await.is_err());
        until("the handshake's end", async || server.log.seen().len() > number).await;
    }
    let agreed: Vec<String> = server.log.seen().into_iter().map(|seen| seen.head).collect();
    assert_eq!((agreed[0].as_str(), agreed.last().unwrap().as_str()), ("false", "true"));
}

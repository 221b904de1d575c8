//! A failover that takes changes of the registry back, and replicas that are waited for so that it does not.

use std::time::Duration;

use herald::{
    facts::stamped::Stamped,
    registry::Change,
    store::{
        keys::RegistryKeys,
        registry::{PAGE, RegistryError, confirming::Confirming, feed::Position},
        routing::Replicas,
    },
    telemetry::exposition::Format,
};

use super::{Follower, account, endpoint, id, many, mark, soon, store, support::TestRedis, until};

const KEYS: [&str; 3] = [RegistryKeys::ENDPOINTS, RegistryKeys::META, RegistryKeys::CHANGES];

/// The slot of the registry as it is at one time.
type Kept = Vec<Vec<u8>>;

async fn kept(redis: &TestRedis) -> Kept {
    let mut connection = redis.connection().await;
    let mut pipeline = redis::pipe();
    for key in KEYS {
        pipeline.cmd("DUMP").arg(key);
    }
    pipeline.query_async(&mut connection).await.unwrap()
}

/// In one step, as a failover does it.
async fn put_back(redis: &TestRedis, kept: &Kept) {
    let mut connection = redis.connection().await;
    let mut pipeline = redis::pipe();
    pipeline.atomic();
    for (key, value) in KEYS.iter().zip(kept) {
        pipeline.cmd("RESTORE").arg(key).arg(0).arg(value).arg("REPLACE").ignore();
    }
    pipeline.query_async::<()>(&mut connection).await.unwrap();
}

/// The node's clock was ahead: from now on versions are counted up, whatever time it is.
async fn with_a_clock_that_was_ahead(redis: &TestRedis) {
    let script = "local last = redis.call('HGET', KEYS[2], 'version') \
                  redis.call('HSET', KEYS[2], 'version', 9999999999999) \
                  redis.call('XADD', KEYS[3], '9999999999999-0', 'after', last, 'kind', 'pause')";
    redis.command::<()>(&["EVAL", script, "3", KEYS[0], KEYS[1], KEYS[2]]).await;
}

async fn position(redis: &TestRedis) -> Position {
    store(redis).await.position().await.unwrap().unwrap().0
}

/// How often the follower's page says that changes were lost.
fn taken_back(follower: &Follower) -> u64 {
    let page = follower.registry.page().encode(Format::OpenMetrics);
    let line = page.lines().find(|line| line.starts_with("herald_registry_taken_back_total "));
    line.unwrap_or_else(|| panic!("{page}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_a_failover_has_taken_back_is_forgotten_although_other_changes_have_its_version() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    store.create(endpoint("ep_kept", "acc_1"), &mark("kept")).await.unwrap();
    with_a_clock_that_was_ahead(&redis).await;
    store.create(endpoint("ep_last", "acc_1"), &mark("kept")).await.unwrap();
    let before = kept(&redis).await;
    store.create(endpoint("ep_lost", "acc_1"), &mark("lost")).await.unwrap();
    let (lost, known) = (kept(&redis).await, position(&redis).await);
    put_back(&redis, &before).await;
    store.create(endpoint("ep_new", "acc_1"), &mark("new")).await.unwrap();
    let (instead, new) = (kept(&redis).await, position(&redis).await);
    assert_eq!((&new.id, new.last.version), (&known.id, known.last.version));
    assert_ne!(new.last.stamp, known.last.stamp);
    store.create(endpoint("ep_more", "acc_1"), &mark("more")).await.unwrap();
    let (longer, more) = (kept(&redis).await, position(&redis).await);

    // Another change in its place; one more behind that; none.
    for (after, last, expected) in [
        (&instead, new.last, &["ep_kept", "ep_last", "ep_new"][..]),
        (&longer, more.last, &["ep_kept", "ep_last", "ep_more", "ep_new"]),
        (&before, Stamped::default(), &["ep_kept", "ep_last"]),
    ] {
        put_back(&redis, &lost).await;
        let mut follower = Follower::start(&redis).await;
        assert!(follower.registry.get(&id("ep_lost")).is_some() && taken_back(&follower) == 0);
        put_back(&redis, after).await;
        if last != Stamped::default() {
            let now = Position { id: new.id.clone(), last };
            soon("a refresh", follower.registry.refresh_to(&now)).await.unwrap();
            assert_eq!(follower.registry.last(), last);
        }
        follower.see("what is there", |registry| registry.get(&id("ep_lost")).is_none()).await;
        let lookup = follower.registry.lookup(&account("acc_1"));
        assert_eq!(lookup.endpoints.iter().map(|found| found.id.as_str()).collect::<Vec<_>>(), expected);
        assert_eq!(taken_back(&follower), 1, "{expected:?}");
        follower.stop().await;
    }
}

#[tokio::test]
async fn a_change_that_saw_what_was_taken_back_is_refused() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    store.create(endpoint("ep_a", "acc_1"), &mark("kept")).await.unwrap();
    with_a_clock_that_was_ahead(&redis).await;
    let before = kept(&redis).await;
    store.create(endpoint("ep_lost", "acc_1"), &mark("lost")).await.unwrap();
    let seen = position(&redis).await.last;
    put_back(&redis, &before).await;
    store.create(endpoint("ep_new", "acc_1"), &mark("new")).await.unwrap();
    assert_eq!(position(&redis).await.last.version, seen.version);
    let moved = store.create_at(seen, endpoint("ep_b", "acc_1"), &mark("late")).await;
    assert!(matches!(moved, Err(RegistryError::Moved)), "{moved:?}");
    store.create_at(position(&redis).await.last, endpoint("ep_b", "acc_1"), &mark("in time")).await.unwrap();
}

/// A Herald from before there were stamps writes none, and leaves the one of the change before.
#[tokio::test]
async fn changes_of_an_older_herald_are_followed_as_before() {
    let redis = TestRedis::start().await;
    let mut store = store(&redis).await;
    store.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
    let mut follower = Follower::start(&redis).await;
    let as_an_older_one = "local last = redis.call('HGET', KEYS[2], 'version') \
                           local version = string.format('%.0f', last + 1) \
                           redis.call('XADD', KEYS[3], version .. '-0', 'after', last, 'kind', 'put', 'endpoint', 'ep_a') \
                           redis.call('HSET', KEYS[2], 'version', version)";
    for _ in 0..2 {
        redis.command::<()>(&["EVAL", as_an_older_one, "3", KEYS[0], KEYS[1], KEYS[2]]).await;
        assert!(matches!(follower.next().await, Change::Endpoint(_)));
    }
    let changed = store.create(endpoint("ep_b", "acc_1"), &mark("new")).await.unwrap();
    assert_eq!(follower.next().await, Change::Endpoint(changed.into()));
    redis.command::<()>(&["EVAL", as_an_older_one, "3", KEYS[0], KEYS[1], KEYS[2]]).await;
    assert!(matches!(follower.next().await, Change::Endpoint(_)));
    // Whoever comes later sees the same.
    let late = Follower::start(&redis).await;
    assert_eq!(late.registry.last(), position(&redis).await.last);
    let changed = store.create(endpoint("ep_c", "acc_1"), &mark("new")).await.unwrap();
    soon("the change", late.registry.refresh()).await.unwrap();
    assert_eq!(late.registry.get(&changed.id).as_deref(), Some(&changed));
    assert_eq!((taken_back(&follower), taken_back(&late)), (0, 0));
    follower.stop().await;
    late.stop().await;
}

async fn waits(redis: &TestRedis) -> usize {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_wait:calls="));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_change_waits_once_for_replicas_and_says_whether_they_have_it() {
    let (redis, replica) = (TestRedis::start().await, TestRedis::start().await);
    let waiting = |wanted, ms| Replicas { wanted, timeout: Duration::from_millis(ms) };
    let create = async |confirming: &Confirming, name: &str| {
        let wanted = endpoint(name, "acc_1");
        let (made, confirmation) =
            confirming.change(async |store| store.create(wanted, &mark("new")).await).await.unwrap();
        assert_eq!(made.id, id(name));
        confirmation
    };
    // One server alone is not waited for, unless somebody wants that.
    let usual = Confirming::new(&redis.redis(), waiting(None, 20));
    assert!(create(&usual, "ep_a").await.is_enough());
    assert_eq!(waits(&redis).await, 0);

    let careful = Confirming::new(&redis.redis(), waiting(Some(1), 20));
    let missing = create(&careful, "ep_b").await;
    assert_eq!((missing.is_enough(), missing.confirmed, waits(&redis).await), (false, 0, 1));
    assert_eq!(missing.to_string(), "0 of 1 replicas have confirmed it in time");
    // What is refused waits for nobody.
    let again = careful.change(async |store| store.create(endpoint("ep_b", "acc_1"), &mark("new")).await).await;
    assert!(matches!(again, Err(RegistryError::Exists(_))) && waits(&redis).await == 1);

    let port = redis.address().port().to_string();
    replica.command::<()>(&["REPLICAOF", "127.0.0.1", &port]).await;
    until("the replica to follow", async || {
        redis.command::<String>(&["INFO", "replication"]).await.contains("state=online")
    })
    .await;
    // It is online before it has said how far it is.
    until("the replica to confirm", async || redis.command::<u64>(&["WAIT", "1", "100"]).await == 1).await;
    // As patient as Redis is asked to be: who was not confirmed the last time waits for a moment only.
    let careful = Confirming::new(&redis.redis(), waiting(Some(1), 8_000));
    let before = waits(&redis).await;
    let import = async |store: &mut super::RegistryStore| store.import(many(3 * PAGE, "x"), None, &mark("new")).await;
    let (imported, confirmation) = careful.change(import).await.unwrap();
    assert_eq!((imported.endpoints, confirmation.is_enough(), waits(&redis).await), (3 * PAGE, true, before + 1));
    let count: u64 = replica.command(&["HLEN", KEYS[0]]).await;
    assert_eq!(count, 3 * PAGE as u64);

    // What the wait comes to is never a failure of the change.
    redis.command::<()>(&["ACL", "SETUSER", "patient", "on", ">secret", "~*", "+@all", "-wait"]).await;
    let denied = format!("redis://patient:secret@{}", redis.address());
    let denied = Confirming::new(&herald::store::connection::Redis::new(&denied).unwrap(), waiting(Some(1), 20));
    let unknown = create(&denied, "ep_denied").await;
    assert!(!unknown.is_enough() && unknown.to_string().contains("wait"), "{unknown}");
}

use std::time::Duration;

use jiff::tz::TimeZone;

use herald::{
    api::{
        access::Caller,
        webhooks::subscriptions::{Audits, Changes, Subscriptions, Wanted},
    },
    facts::{
        audit::{Act, Surface},
        endpoint::{Keeper, Scheme},
        envelope::Envelope,
        id::{AccountId, DeliveryId, EntryId},
        retry::{DeadReason, RetryPolicy, RetrySettings},
    },
    intents::{
        decide::Command,
        details::Details,
        requests::SearchPaymentIntentRequest,
        service::{Part, RequestKey, Service, ServiceError, Settings, random_part},
    },
    registry::{Registry, rules::Rules},
    sender::AddressGuard,
    store::{
        acl::{self, Role},
        api_keys::{ApiKey, ApiKeyStore},
        connection::{Purpose, Redis},
        entries::Entries,
        intents::ClockChange,
        protocol::{Answer, Asked, Call, Item, Known, LookFrom, Place, ReadFrom, Recorded, RequestKind, Settlement},
        queries::{DeadFilter, DeadKey, DeadOrder, DeadRange, LogFilter, Outcome, Queries, RedisSettings},
        registry::{RegistryStore, confirming::Confirming, feed::ChangeWait},
        requests::Requests,
        routing::Replicas,
        wakeup::Wakeup,
        watch::gauges,
    },
};

use tokio_util::sync::CancellationToken;

use crate::{
    audit::{audit, everything},
    operations::as_each_role,
    stage::{Owner, STREAM, bury, delivery, endpoint, endpoint_id, event, id, intent, keep, keys, log_line, mark},
    support::TestRedis,
};

const AUDIT: &str = "herald:{herald}:audit";

/// Makes the users as they are printed; only `default` stays, for the test's own commands.
async fn with_users(redis: &TestRedis) {
    for rule in acl::rules(&keys()).replace(">PASSWORD", ">secret").lines() {
        if !rule.ends_with("default off") {
            redis.command::<()>(&rule.split(' ').collect::<Vec<_>>()).await;
        }
    }
}

fn url(server: &TestRedis, role: Role) -> String {
    format!("redis://{}:secret@{}/0", role.user(), server.address())
}

fn connect_as(server: &TestRedis, role: Role) -> Redis {
    Redis::new(&url(server, role)).unwrap()
}

#[tokio::test]
async fn the_printed_rules_are_enough_for_everything_that_each_role_does() {
    let server = TestRedis::start().await;
    with_users(&server).await;
    let [worker, operator, viewer, producer, intents] = Role::ALL.map(|role| connect_as(&server, role));
    registry(&operator).await;
    let owner = Owner::start(&worker).await;
    owners_calls(&server, &owner).await;
    workers_looks(&worker).await;
    inbox(&worker, &operator, &owner).await;
    looks(&operator).await;
    looks(&viewer).await;
    as_each_role(&worker, &operator, &owner).await;
    let mut entries = Entries::new(producer.connect(Purpose::Produce).await.unwrap(), keys());
    let added = entries.add(&event("evt_9", "acc_1", "pi_9"), None).await.unwrap();
    let mut entries = Entries::new(operator.connect(Purpose::Other).await.unwrap(), keys());
    entries.get(added).await.unwrap().unwrap();
    entries.search(&event("evt_9", "acc_1", "pi_9").id, 10).await.unwrap();
    owner.release().await;
    // A worker may serve payment intents, too.
    for redis in [&intents, &worker] {
        payment_intents(redis, &operator).await;
    }
    audit_log(&operator).await;
}

/// What merchants have just done in two processes, and an operator's act.
async fn audit_log(operator: &Redis) {
    let log = audit(operator.clone(), Surface::Cli);
    let began = log.begin(&log.act(Act::Pause, "ann", "incident")).await.unwrap().unwrap();
    assert_eq!(log.find(began).await.unwrap().unwrap().id, began);
    let found = everything(&log).await;
    let told = |act: &herald::store::audit::Logged| (act.begun.act.clone(), act.begun.by.clone(), act.ended.is_some());
    let by_key = |act: &str| (act.to_owned(), "key 0123456789ab".to_owned(), true);
    let of_merchants = ["create", "add-secret", "update", "activate-secret", "delete"];
    let expected = of_merchants.map(|act| by_key(&format!("endpoint {act}")));
    assert_eq!(found.acts[..5].iter().map(told).collect::<Vec<_>>(), expected);
    assert_eq!(found.acts.len(), 2 * 5 + 1);
}

/// Everything that their service asks of Redis, and the keys that an operator makes for its callers.
async fn payment_intents(redis: &Redis, operator: &Redis) {
    let account: AccountId = "acc_1".parse().unwrap();
    let key = ApiKey { account: account.clone(), is_read_only: false, name: String::new(), created_at_ms: 1 };
    let mut api_keys = ApiKeyStore::connect(operator).await.unwrap();
    api_keys.put("hash", &key).await.unwrap();
    assert_eq!(api_keys.all().await.unwrap(), [("hash".to_owned(), key.clone())]);
    assert_eq!(ApiKeyStore::connect(redis).await.unwrap().find("hash").await.unwrap(), Some(key));
    assert!(api_keys.remove("hash").await.unwrap());

    let service = Service::new(redis.clone(), keys(), Settings { retain: 1, zone: TimeZone::UTC });
    let money = serde_json::json!({ "amount": { "value": 1, "currencyCode": "GBP" }, "reference": "x" });
    let details: Details = serde_json::from_value(money).unwrap();
    let request = RequestKey::new("create", &random_part(), &serde_json::Value::Null);
    let intent = service.create(&account, details, Some(&request)).await.unwrap();
    assert_eq!(service.feed(&account, 0, 10).await.unwrap().events.len(), 1);
    let entry = service.feed_of(&account, &intent.id).await.unwrap().1[0].told.entry.unwrap();
    let owed = DeliveryId { entry, endpoint: endpoint_id("ep_a") };
    assert!(matches!(service.outcomes(&account, &[owed]).await.unwrap()[..], [Outcome::Owed { .. }]));
    let (registry, cancel) = (Registry::new(), CancellationToken::new());
    let following = tokio::spawn(registry.clone().run(redis.clone(), cancel.clone()));
    registry.first_load().await.unwrap();
    cancel.cancel();
    following.await.unwrap();
    service.search(&account, &SearchPaymentIntentRequest::default(), Part::Newest, 1).await.unwrap();
    service.set_speed(1.0).await.unwrap();
    service.change(&account, &intent.id, &Command::Cancel, None).await.unwrap();
    // It is forgotten when the clock has passed that.
    service.advance(ClockChange::Advance(2)).await.unwrap();
    assert!(matches!(service.get(&account, &intent.id).await, Err(ServiceError::NotFound)));
    service.reset(&account).await.unwrap();
    subscriptions(redis, &account).await;
}

/// There is no replica, but one is waited for.
const CAREFUL: Replicas = Replicas { wanted: Some(1), timeout: Duration::from_millis(1) };

/// Everything that merchants do with endpoints of their own.
async fn subscriptions(redis: &Redis, account: &AccountId) {
    let (registry, cancel) = (Registry::new(), CancellationToken::new());
    let following = tokio::spawn(registry.clone().run(redis.clone(), cancel.clone()));
    let loopback = AddressGuard::new(false, &["127.0.0.0/8".parse().unwrap()]);
    let rules = Rules::new(loopback, RetryPolicy::try_new(RetrySettings::default()).unwrap());
    let audits = Audits { merchants: audit(redis.clone(), Surface::Http), own: audit(redis.clone(), Surface::Worker) };
    let subscriptions = Subscriptions::new(redis.clone(), keys(), registry, rules, audits, CAREFUL);
    let caller = Caller { account: account.clone(), is_read_only: false, key: "0123456789ab".to_owned() };
    let wanted = Wanted {
        keeper: Keeper::Merchant,
        url: "https://127.0.0.1/".to_owned(),
        events: vec!["payment_intent.created".parse().unwrap()],
        description: String::new(),
        schemes: vec![Scheme::Standard],
    };
    let (made, _, confirmation) = subscriptions.create(&caller, wanted).await.unwrap();
    assert!(confirmation.to_string().starts_with("0 of 1 replicas"), "{confirmation}");
    let (_, secret, _) = subscriptions.add_secret(&caller, &made.id).await.unwrap();
    let changes = Changes { description: Some("till 7".to_owned()), ..Changes::default() };
    subscriptions.change(&caller, &made.id, &changes).await.unwrap();
    subscriptions.activate(&caller, &made.id, &secret.name()).await.unwrap();
    assert_eq!(subscriptions.list(account).await.unwrap().len(), 1);
    subscriptions.delete(&caller, &made.id, Keeper::Merchant).await.unwrap();
    assert_eq!(subscriptions.list(account).await.unwrap().len(), 0);
    cancel.cancel();
    following.await.unwrap();
}

#[tokio::test]
async fn the_printed_rules_open_nothing_else() {
    let server = TestRedis::start().await;
    with_users(&server).await;
    let nobodys = [
        &["GET", "foreign"][..],
        &["XLEN", "payment-intents-2"],
        &["GET", "herald:{other}:lease"],
        &["KEYS", "*"],
        &["SCAN", "0"],
        &["FLUSHALL"],
        &["CONFIG", "GET", "requirepass"],
        &["ACL", "LIST"],
        // What was done stays to be seen.
        &["XDEL", AUDIT, "1-1"],
        &["XTRIM", AUDIT, "MAXLEN", "0"],
        &["DEL", AUDIT],
        &["UNLINK", AUDIT],
        &["RENAME", AUDIT, "herald:{herald}:registry:x"],
        &["RENAME", "herald:{herald}:registry", AUDIT],
        &["EXPIRE", AUDIT, "1"],
        &["SET", AUDIT, "x"],
        &["XSETID", AUDIT, "9-9"],
    ];
    let lease = "herald:{payment-intents}:lease";
    // What another role may do.
    let not_the_operators = [
        &["XADD", STREAM, "*", "event", "{}"][..],
        &["XREADGROUP", "GROUP", "herald", "x", "STREAMS", STREAM, ">"],
        &["XACK", STREAM, "herald", "1-1"],
        &["XDEL", STREAM, "1-1"],
        &["XTRIM", STREAM, "MAXLEN", "0"],
        &["SET", lease, "mine"],
        &["DEL", lease],
        &["UNLINK", "herald:{payment-intents}:cursor"],
        &["HSET", "herald:{payment-intents}:unfinished", "ep_a", "0"],
        &["EVAL", "return 1", "0"],
    ];
    let not_the_viewers = [
        &["XADD", STREAM, "*", "event", "{}"][..],
        &["XADD", AUDIT, "*", "began", "{}"],
        &["XADD", "herald:{payment-intents}:inbox", "*", "op", "discard"],
        &["HSET", "herald:{herald}:registry", "ep_a", "{}"],
        &["HDEL", "herald:{herald}:registry", "ep_a"],
        &["HSET", "herald:{herald}:keys", "x", "y"],
        &["HSET", "herald:{herald}:tokens", "x", "y"],
        &["SET", lease, "mine"],
        &["DEL", lease],
        &["EXPIRE", lease, "1"],
        &["XGROUP", "CREATE", STREAM, "mine", "0"],
        &["XREADGROUP", "GROUP", "herald", "x", "STREAMS", STREAM, ">"],
        &["XACK", STREAM, "herald", "1-1"],
        &["XTRIM", STREAM, "MAXLEN", "0"],
        &["EVALSHA", "x", "0"],
        &["EVAL", "return 1", "0"],
        &["CLIENT", "KILL", "TYPE", "normal"],
    ];
    let not_the_producers = [
        &["XADD", AUDIT, "*", "began", "{}"][..],
        &["XRANGE", STREAM, "-", "+"],
        &["XLEN", STREAM],
        &["XDEL", STREAM, "1-1"],
        &["DEL", STREAM],
        &["XADD", "herald:{payment-intents}:inbox", "*", "op", "discard"],
        &["HGETALL", "herald:{herald}:registry"],
        &["EVALSHA", "x", "0"],
        &["INFO"],
    ];
    let not_the_workers = [&["RENAME", "herald:{herald}:registry", "x"][..], &["XGROUP", "DESTROY", STREAM, "herald"]];
    let not_the_intents = [
        &["XDEL", STREAM, "1-1"][..],
        &["XREADGROUP", "GROUP", "herald", "x", "STREAMS", STREAM, ">"],
        &["GET", lease],
        &["DEL", lease],
        &["SET", "herald:{payment-intents}:cursor", "1-1"],
        &["XADD", "herald:{payment-intents}:inbox", "*", "op", "discard"],
    ];
    for (role, refused) in [
        (Role::Intents, &not_the_intents[..]),
        (Role::Worker, &not_the_workers[..]),
        (Role::Operator, &not_the_operators[..]),
        (Role::Viewer, &not_the_viewers[..]),
        (Role::Producer, &not_the_producers[..]),
    ] {
        let client = redis::Client::open(url(&server, role)).unwrap();
        let mut user = client.get_multiplexed_async_connection().await.unwrap();
        for words in nobodys.iter().chain(refused) {
            let denied = redis::cmd(words[0]).arg(&words[1..]).query_async::<redis::Value>(&mut user).await;
            assert_eq!(denied.expect_err(words[0]).code(), Some("NOPERM"), "{role:?} {words:?}");
        }
    }
}

#[tokio::test]
async fn a_stranger_is_noticed_until_the_default_user_is_off() {
    let server = TestRedis::start().await;
    with_users(&server).await;
    let operator = connect_as(&server, Role::Operator);
    assert_eq!(operator.lets_strangers_in().await, Some(true));
    server.command::<()>(&["ACL", "SETUSER", "default", "off"]).await;
    assert_eq!(operator.lets_strangers_in().await, Some(false));
    operator.connect(Purpose::Other).await.unwrap().server_info().await.unwrap();
}

/// What a worker asks for besides the owner's calls.
async fn workers_looks(redis: &Redis) {
    let mut connection = redis.connect(Purpose::Other).await.unwrap();
    let server = connection.server_info().await.unwrap();
    connection.rewrite_aof(&server.run_id).await.unwrap();
    gauges(&mut connection, &keys()).await.unwrap();
    let mut store = RegistryStore::on(connection);
    let loaded = store.load().await.unwrap();
    // After a 410, and when a secret has expired.
    let endpoint = store.get(&endpoint_id("ep_a")).await.unwrap().unwrap();
    store.update(endpoint, &mark()).await.unwrap();
    store.news(Some(&loaded.position)).await.unwrap();
    let mut wait = ChangeWait::connect(redis).await.unwrap();
    wait.wait(loaded.position.last.version, Duration::from_millis(1)).await.unwrap();
}

async fn registry(redis: &Redis) {
    let mut store = RegistryStore::connect(redis).await.unwrap();
    let made = store.create(endpoint("ep_a", "acc_1", "https://a.example/"), &mark()).await.unwrap();
    store.update(made, &mark()).await.unwrap();
    let export = store.export(1).await.unwrap();
    store.import(export.endpoints, None, &mark()).await.unwrap();
    let careful = Confirming::new(redis, CAREFUL);
    let ((), confirmation) = careful.change(async |store| store.pause_all(&mark()).await).await.unwrap();
    assert!(confirmation.to_string().starts_with("0 of 1 replicas"), "{confirmation}");
    store.resume_all(&mark()).await.unwrap();
    store.get(&endpoint_id("ep_a")).await.unwrap();
    store.create(endpoint("ep_b", "acc_1", "https://b.example/"), &mark()).await.unwrap();
    store.remove(&endpoint_id("ep_b"), None, &mark()).await.unwrap();
}

/// Every kind of call, each with something to do.
async fn owners_calls(server: &TestRedis, owner: &Owner) {
    let term = || owner.term.clone();
    owner.call(Call::Renew { term: term(), ttl_ms: 600_000 }).await;
    for n in 1..=3 {
        let body = event(&format!("evt_{n}"), "acc_1", "pi_1").body().clone();
        let body = std::str::from_utf8(&body).unwrap();
        server.command::<String>(&["XADD", STREAM, "*", "event", body]).await;
    }
    server
        .command::<redis::Value>(&["XREADGROUP", "GROUP", "herald", "foreign", "COUNT", "1", "STREAMS", STREAM, ">"])
        .await;
    let foreign = owner.call(Call::ClaimForeign { term: term(), max: 10 }).await;
    assert!(matches!(foreign, Answer::ClaimedForeign { count: 1, .. }), "{foreign:?}");
    let read = owner.call(Call::Read { term: term(), from: ReadFrom::New, max: 10 }).await;
    let Answer::Entries { entries, .. } = read else { panic!("{read:?}") };
    let due = delivery("10-0", "ep_a", "pi_1", true);
    let held = delivery("20-0", "ep_a", "pi_1", true);
    let dead = delivery("30-0", "ep_a", "pi_2", true);
    let items = vec![
        keep(&due, Place::DueIn(0)),
        keep(&held, Place::Held),
        keep(&delivery("21-0", "ep_a", "pi_3", true), Place::Backlog),
        bury(&dead, DeadReason::Exhausted),
        quarantine("40-0"),
        quarantine("41-0"),
        Item::Bind { registry: "reg_stage".into() },
    ];
    let settlement = Settlement {
        items,
        acks: entries.iter().map(|entry| entry.id).collect(),
        log: vec![log_line(&due, r#""kind":"gone""#)],
        last_read: entries.last().unwrap().id,
    };
    let settled = owner.call(Call::Settle { term: term(), settlement }).await;
    assert!(matches!(settled, Answer::Settled { group_missing: false, .. }), "{settled:?}");
    let asked = Call::Ask {
        term: term(),
        deliveries: vec![(due.id.clone(), intent("pi_1"), due.event.clone())],
        suspect: true,
    };
    let known = vec![Known { ordered: true, single: false, recorded: Recorded::This }];
    assert_eq!(owner.call(asked).await, Answer::Asked { known });
    let note = Call::NoteUnreadable { term: term(), endpoints: vec![endpoint_id("ep_a")], holds_ms: 1_000_000 };
    assert!(matches!(owner.call(note).await, Answer::Noted { .. }));
    let counts = owner.call(Call::Counts { term: term(), cursor: 0 }).await;
    assert!(matches!(&counts, Answer::Counts { unreadable, .. } if unreadable.len() == 1), "{counts:?}");
    let claimed = owner.call(Call::Claim { term: term(), max: 10 }).await;
    assert!(matches!(&claimed, Answer::Claimed { kept, .. } if kept.len() == 1), "{claimed:?}");
    owner.call(Call::Recover { term: term(), max: 10 }).await;
    let pulled = owner.call(Call::PullIn { term: term(), from_ms: 0, by_ms: 1, max: 10, step_ms: -1 }).await;
    assert!(matches!(pulled, Answer::PulledIn { moved: 1, .. }), "{pulled:?}");
    let after = EntryId::ZERO;
    owner.call(Call::Backlog { term: term(), endpoint: endpoint_id("ep_a"), after, max: 10 }).await;
    let heads = owner.call(Call::TakeHeads { term: term(), endpoint: endpoint_id("ep_a"), max: 10 }).await;
    assert!(matches!(&heads, Answer::Heads { kept, .. } if kept.len() == 2), "{heads:?}");
    let items = vec![
        Item::Finish { id: due.id.clone(), chain: due.chain() },
        Item::Move { id: held.id.clone(), chain: held.chain(), place: Place::Backlog },
        Item::Requeue { entry: "40-0".parse().unwrap() },
        Item::Revive { id: dead.id.clone(), chain: dead.chain(), record: dead.to_record() },
    ];
    owner.settle(items, Vec::new()).await;
    owner.settle(vec![bury(&dead, DeadReason::Released)], Vec::new()).await;
    let expire = Call::ExpireDead { term: term(), max_age_ms: 1 << 40, max_count: 10, max: 10 };
    assert_eq!(owner.call(expire).await, Answer::ExpiredDead { count: 0 });
    let unindexed = Call::Unindexed { term: term(), from: LookFrom::Start, look: 10, max: 10 };
    let found = owner.call(unindexed).await;
    assert!(
        matches!(&found, Answer::Unindexed { letters, dead: 1, indexed: 1, .. } if letters.is_empty()),
        "{found:?}"
    );
    let swept = owner.call(Call::SweepDead { term: term(), cursor: 0 }).await;
    assert_eq!(swept, Answer::SweptDead { count: 0, cursor: 0 });
    let trimmed = owner.call(Call::Trim { term: term(), retain_ms: 0, up_to: None, ignores: Vec::new() }).await;
    assert!(matches!(trimmed, Answer::Trimmed { .. }), "{trimmed:?}");
}

async fn inbox(worker: &Redis, operator: &Redis, owner: &Owner) {
    let requests = Requests::new(operator.connect(Purpose::Wakeup).await.unwrap(), keys());
    let asked = Asked::Release(endpoint_id("ep_a"), intent("pi_1"), None);
    let request = requests.ask(&asked, &mark()).await.unwrap();
    let mut wakeup = Wakeup::connect(worker, keys()).await.unwrap();
    assert!(wakeup.is_told(), "the worker may follow changes");
    wakeup.wait(EntryId { ms: u64::MAX, seq: 0 }, EntryId::ZERO, Duration::from_secs(5)).await.unwrap();
    let inbox = Call::Inbox { term: owner.term.clone(), after: EntryId::ZERO, max: 10 };
    let Answer::Requests { requests: found } = owner.call(inbox).await else { panic!("no requests") };
    assert!(matches!(&found[0].what, RequestKind::Release { head: Some(_), .. }));
    owner.settle(vec![Item::Reply { request, answer: "ok".into() }], Vec::new()).await;
    assert_eq!(requests.await_answer(request, Duration::from_secs(5)).await.unwrap().as_deref(), Some("ok"));
}

async fn looks(redis: &Redis) {
    let mut connection = redis.connect(Purpose::Other).await.unwrap();
    gauges(&mut connection, &keys()).await.unwrap();
    let mut queries = Queries::new(connection, keys());
    assert_eq!(queries.settings().await.unwrap(), RedisSettings::default());
    let everything = DeadRange { endpoint: None, from_ms: 0, until_ms: u64::MAX };
    assert_eq!(queries.count_dead(&everything).await.unwrap(), 1);
    assert_eq!(queries.dead(&everything, DeadOrder::NewestFirst, None, 10).await.unwrap().letters.len(), 1);
    let of_account = DeadFilter { account: "acc_1".parse().ok(), ..DeadFilter::everything() };
    assert_eq!(queries.count_dead_where(&of_account).await.unwrap(), 1);
    assert_eq!(queries.find_dead(&of_account, DeadOrder::NewestFirst, None, 10).await.unwrap().letters.len(), 1);
    let of_intent = DeadFilter { intent: Some(intent("pi_4")), ..DeadFilter::everything() };
    assert!(queries.find_dead(&of_intent, DeadOrder::NewestFirst, None, 10).await.unwrap().letters.len() <= 1);
    assert_eq!(queries.group_dead(&of_account, &[DeadKey::Endpoint]).await.unwrap().len(), 1);
    assert_eq!(queries.unindexed_dead().await.unwrap(), 0);
    queries.find(&id("20-0", "ep_a")).await.unwrap();
    queries.find(&id("99-0", "ep_a")).await.unwrap();
    queries.totals(&endpoint_id("ep_a")).await.unwrap();
    queries.unfinished_ids(Some(&endpoint_id("ep_a")), 10).await.unwrap();
    queries.unfinished_of_intent(&intent("pi_1"), 10).await.unwrap();
    queries.chains(&endpoint_id("ep_a"), 10).await.unwrap();
    queries.attempts(&LogFilter::default(), 10, 10).await.unwrap();
    queries.lease().await.unwrap();
    queries.bound_registry().await.unwrap();
    queries.intents().await.unwrap();
    queries.consumers().await.unwrap();
    queries.pending(0, 10).await.unwrap();
    queries.oldest_unread(EntryId::ZERO).await.unwrap();
    queries.stream_bytes().await.unwrap();
    queries.entry_standing("1-1".parse().unwrap()).await.unwrap();
    queries.quarantine(None, 10).await.unwrap();
    assert!(queries.quarantined("41-0".parse().unwrap()).await.unwrap().is_some());
    let busy = queries.busy_endpoints(10).await.unwrap();
    queries.oldest(&busy).await.unwrap();
    queries.sample_record_bytes(&[id("20-0", "ep_a")]).await.unwrap();
}

fn quarantine(entry: &str) -> Item {
    let (body, error) = ("x".into(), "bad".into());
    let (envelope, keep_bytes) = (Envelope::default(), Some(1 << 20));
    Item::Quarantine { entry: entry.parse().unwrap(), body, cut: false, error, envelope, keep_bytes }
}

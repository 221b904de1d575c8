//! Herald on a master that sentinels watch: it follows them to the next one, and says what is wrong where they lead nowhere.

use std::time::Duration;

use herald::{
    facts::{
        endpoint::Endpoint,
        id::{AccountId, EndpointId},
    },
    owned::OwnSentinels,
    store::{
        acl::{Role, rule},
        connection::{Purpose, Redis},
        keys::PartitionKeys,
        queries::Queries,
        registry::RegistryStore,
    },
};
use redis::{FromRedisValue, RedisResult};

use crate::{
    Merchants, Reply,
    process::Setup,
    secret,
    support::{soon, until},
    world::{Event, PREFIX, STREAM, lives, mark},
};

/// To one server or sentinel, as whoever it lets in.
async fn ask<T: FromRedisValue>(url: &str, words: &[&str]) -> RedisResult<T> {
    let config = redis::AsyncConnectionConfig::new()
        .set_response_timeout(Some(Duration::from_secs(5)))
        .set_connection_timeout(Some(Duration::from_secs(1)));
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?;
    redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await
}

/// With the user that is printed for a worker, on each server. Sentinels know it not.
async fn start() -> (OwnSentinels, String) {
    let own = OwnSentinels::start().await.expect("Redis and its sentinels start");
    for number in 0..own.servers().len() {
        let_in(&own, number).await;
    }
    let url = own.url().replace("://", "://herald:secret@");
    (own, url)
}

/// A server forgets its users when it ends.
async fn let_in(own: &OwnSentinels, number: usize) {
    let rule = rule(&PartitionKeys::new(STREAM).unwrap(), Role::Worker).replace(">PASSWORD", ">secret");
    ask::<()>(&own.servers()[number].url(), &rule.split(' ').collect::<Vec<_>>()).await.unwrap();
}

/// As a careful producer does: to the master, and again until so many replicas have it too.
async fn publish(own: &OwnSentinels, events: &[Event], replicas: u64) {
    let once = async |events: &[Event]| -> Option<()> {
        let client = redis::Client::open(own.servers()[own.master().await?].url()).ok()?;
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        let mut pipeline = redis::pipe();
        for event in events {
            pipeline.cmd("XADD").arg(STREAM).arg("*").arg("event").arg(&event.body).ignore();
        }
        pipeline.query_async::<()>(&mut connection).await.ok()?;
        connection.set_response_timeout(Duration::from_secs(5));
        let have: u64 = redis::cmd("WAIT").arg(replicas).arg(1000).query_async(&mut connection).await.ok()?;
        (have >= replicas).then_some(())
    };
    for part in events.chunks(50) {
        soon("events to be kept", async {
            while once(part).await.is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_master_is_followed_and_nothing_is_lost() {
    let (mut own, url) = start().await;
    let merchants = Merchants::start(secret().reveal()).await;
    let mut registry = RegistryStore::connect(&Redis::new(&own.url()).unwrap()).await.unwrap();
    let mut accounts = Vec::new();
    for n in 0..6 {
        let (name, account) = (format!("ep_{n}"), format!("acc_{n}"));
        let (id, of) = (EndpointId::new(&name).unwrap(), AccountId::new(&account).unwrap());
        registry.create(Endpoint::new(id, of, merchants.url(&name), secret(), 1), &mark()).await.unwrap();
        merchants.rule(&name, |arrival| match arrival.event.ends_with('7') && arrival.attempt == 1 {
            true => Reply::status(500),
            false => Reply::OK.after(Duration::from_millis(3)),
        });
        accounts.push(account);
    }
    let herald = Setup::new(&url).start();
    herald.until_owner().await;
    // The first that the URL names is gone.
    own.sentinel(0).kill().await.unwrap();

    let events = lives(47, &accounts, 1_200);
    let mut published = 0;
    for part in events.chunks(events.len() / 2) {
        let (before, after) = part.split_at(part.len() / 2);
        let dies = own.master().await.expect("there is a master");
        publish(&own, before, 1).await;
        own.server(dies).kill().await.unwrap();
        until("another master", async || own.master().await.is_some_and(|master| master != dies)).await;
        publish(&own, after, 1).await;
        published += part.len();
        merchants.until_delivered(published).await;

        // It comes back as what it was, and is told that it is a replica now.
        own.server(dies).start_again().await.unwrap();
        let_in(&own, dies).await;
        let old = own.servers()[dies].url();
        until("a replica again", async || {
            let said: String = ask(&old, &["INFO", "replication"]).await.unwrap_or_default();
            said.contains("role:slave") && said.contains("master_link_status:up")
        })
        .await;
        let clients: String = ask(&old, &["CLIENT", "LIST"]).await.unwrap();
        assert!(!clients.contains("user=herald"), "the old master is not left alone: {clients}");
    }
    let master = own.servers()[own.master().await.unwrap()].url();
    until("everything to be finished", async || {
        let left: u64 = ask(&master, &["XLEN", STREAM]).await.unwrap();
        let records: Vec<String> = ask(&master, &["KEYS", &format!("{PREFIX}delivery:*")]).await.unwrap();
        left == 0 && records.is_empty()
    })
    .await;
    merchants.assert_sound();
    assert_eq!(merchants.delivered(), events.len());
    assert!(herald.metric("herald_lease_terms_total") > 2.0, "no master was followed");
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_frozen_master_once_the_sentinels_name_another() {
    let mut own = OwnSentinels::start().await.expect("Redis and its sentinels start");
    let (redis, keys) = (Redis::new(&own.url()).unwrap(), PartitionKeys::new(STREAM).unwrap());
    // Nothing else ends the wait.
    let for_ever = Purpose::Lease(Duration::from_secs(600));
    let connect = async || Queries::new(redis.connect(for_ever).await.unwrap(), keys.clone());
    let mut queries = connect().await;
    let master = own.master().await.unwrap();
    own.server(master).pause().unwrap();
    let error = soon("the wait to end", queries.lease()).await.unwrap_err().to_string();
    assert!(error.contains("another node serves it by now"), "{error}");
    // The sentinel that is asked here may be the last to hear.
    until("another master", async || own.master().await.is_some_and(|at| at != master)).await;
    assert!(soon("another connection", async { connect().await.lease().await }).await.unwrap().is_none());
}

async fn refused(url: &str) -> String {
    let connected = Redis::new(url).unwrap().connect(Purpose::Other).await;
    connected.err().map_or_else(|| panic!("{url}: it connects"), |error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_sentinels_lead_nowhere_it_is_said_why() {
    let (own, url) = start().await;
    let nobody = Setup::new("redis+sentinel://127.0.0.1:1,127.0.0.1:2/payments").start();
    nobody.until_log("cannot find the master payments: Redis is unavailable (no sentinel says where it is").await;
    let error = refused(&url.replace("/payments", "/orders")).await;
    assert!(error.contains("cannot find the master orders: Redis is unavailable (no sentinel knows"), "{error}");

    // Named, and there, and no master.
    let (sentinel, replica) = (own.sentinels()[0].url(), own.servers()[1].address().port().to_string());
    ask::<()>(&sentinel, &["SENTINEL", "MONITOR", "replica", "127.0.0.1", &replica, "2"]).await.unwrap();
    let error = refused(&url.replace("/payments", "/replica")).await;
    assert!(error.contains("its sentinels name it, and it is no master"), "{error}");

    // Sentinels that want to know who asks know the user of the URL, or nobody. They have no databases.
    Redis::new(&format!("{url}/1")).unwrap().connect(Purpose::Other).await.unwrap();
    let user = ["ACL", "SETUSER", "herald", "on", ">secret", "-@all", "+auth", "+hello", "+ping", "+sentinel"];
    for sentinel in own.sentinels() {
        ask::<()>(&sentinel.url(), &user).await.unwrap();
        ask::<()>(&sentinel.url(), &["ACL", "SETUSER", "default", "off"]).await.unwrap();
    }
    Redis::new(&format!("{url}/1")).unwrap().connect(Purpose::Other).await.unwrap();
    let error = refused(&url.replace("secret", "other")).await;
    assert!(error.contains("give the sentinels no password, or the user and password that redis.url has"), "{error}");
}

//! Each alert is caused for real, and seen to fire by a Prometheus that has the rules as they are, only that they wait for a
//! second. A minute or two together: `make operate`.

use std::{
    fs, io,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use herald::{
    facts::{id::AccountId, partition::Split},
    store::keys::RegistryKeys,
};
use nix::sys::signal::Signal;

use crate::{
    merchants::Reply,
    process::{Herald, free_address},
    prometheus::Prometheus,
    support::{TestRedis, until},
    world::{Event, PREFIX, STREAM, World, lives, mark, publish},
};

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(600);

async fn now_ms(world: &World) -> u64 {
    let (seconds, _): (u64, u64) = world.redis.command(&["TIME"]).await;
    seconds * 1_000
}

async fn owner(world: &World) -> Herald {
    let herald = world.setup().start();
    herald.until_owner().await;
    herald
}

/// An owner's look at the partition has come to Prometheus.
async fn watched(herald: &Herald) -> Prometheus {
    let prometheus = Prometheus::of(&[herald]).await;
    prometheus.until_samples("herald_stream_entries").await;
    prometheus
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn workers_that_are_not_there() {
    let world = World::new().await;
    world.register_many(1).await;
    let (one, other) = (owner(&world).await, world.setup().start());
    let prometheus = Prometheus::of(&[&one, &other]).await;
    prometheus.until_samples("count(up == 1) == 2").await;
    // Until the first answer of the first of them, nobody was there.
    for alert in ["HeraldInstanceDown", "HeraldAbsent", "HeraldNoOwner"] {
        prometheus.until_silent(alert).await;
    }
    one.kill9();
    prometheus.until_firing("HeraldInstanceDown").await;
    assert!(!prometheus.is_firing("HeraldAbsent"));
    other.until_owner().await;
    other.kill9();
    prometheus.until_firing("HeraldAbsent").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_redis_that_dies() {
    let mut world = World::on(TestRedis::start_with_aof().await).await;
    world.register_many(1).await;
    let herald = owner(&world).await;
    let prometheus = watched(&herald).await;
    for alert in ["HeraldRedisDown", "HeraldNoOwner", "HeraldRedisNotDurable"] {
        assert!(!prometheus.is_firing(alert), "{alert}");
    }
    world.redis.kill9().await;
    prometheus.until_firing("HeraldRedisDown").await;
    prometheus.until_firing("HeraldNoOwner").await;
    world.redis.start_again().await;
    prometheus.until_silent("HeraldRedisDown").await;
    prometheus.until_silent("HeraldNoOwner").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_redis_that_may_lose_what_it_took() {
    let world = World::new().await;
    world.register_many(1).await;
    let herald = owner(&world).await;
    let prometheus = watched(&herald).await;
    prometheus.until_firing("HeraldRedisNotDurable").await;
    world.redis.set_maxmemory(1 << 30).await;
    assert!(!prometheus.is_firing("HeraldRedisMayEvict"));
    world.redis.command::<()>(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    prometheus.until_firing("HeraldRedisMayEvict").await;
}

/// What Redis uses, and this many percent of it as the limit.
async fn limit_to(world: &World, percent: u64) {
    let memory: String = world.redis.command(&["INFO", "memory"]).await;
    let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap().trim();
    world.redis.set_maxmemory(used.parse::<u64>().unwrap() * percent / 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_redis_that_fills_up() {
    let world = World::new().await;
    let accounts = world.register_many(4).await;
    for endpoint in 0..4 {
        world.merchants.rule(&format!("ep_{endpoint}"), |_| Reply::OK.after(NEVER));
    }
    let herald = world.setup().env("HERALD_ATTEMPT_TIMEOUT", "120s").start();
    herald.until_owner().await;
    let prometheus = watched(&herald).await;
    world.publish(&lives(41, &accounts, 1_000)).await;
    herald.until_metric("herald_attempts_in_flight", |attempts| attempts > 0.0).await;
    until("the memory's alerts", async || {
        limit_to(&world, 90).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        prometheus.is_firing("HeraldRedisMemory") && prometheus.is_firing("HeraldReadingStopped")
    })
    .await;
    world.redis.set_maxmemory(0).await;
    prometheus.until_silent("HeraldReadingStopped").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn events_that_wait_while_sending_is_paused() {
    let world = World::new().await;
    let accounts = world.register_many(1).await;
    let herald = owner(&world).await;
    let prometheus = watched(&herald).await;
    world.registry().await.pause_all(&mark()).await.unwrap();
    prometheus.until_firing("HeraldSendingPaused").await;
    let old = format!("{}-0", now_ms(&world).await - 700_000);
    world.publish_as(&old, &lives(42, &accounts, 1)[0]).await;
    for alert in ["HeraldLag", "HeraldLagLong"] {
        prometheus.until_firing(alert).await;
    }
    // Somebody wants it so.
    assert!(!prometheus.is_firing("HeraldNoProgress"));
    // Nobody has read it, and a stranger trims it.
    world.redis.command::<()>(&["XTRIM", STREAM, "MAXLEN", "0"]).await;
    prometheus.until_firing("HeraldTrimmedUnread").await;
    prometheus.until_silent("HeraldLag").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn an_owner_that_moves_nothing() {
    let world = World::new().await;
    let accounts = world.register_many(1).await;
    let herald = owner(&world).await;
    let prometheus = watched(&herald).await;
    let keys = world.keys("herald:[{]herald[}]:registry*").await;
    assert!(!keys.is_empty());
    for key in keys {
        world.redis.command::<()>(&["DEL", &key]).await;
    }
    herald.until_metric("herald_reading_stopped{cause=\"registry\"}", |stopped| stopped == 1.0).await;
    world.publish(&lives(43, &accounts, 5)).await;
    prometheus.until_firing("HeraldNoProgress").await;
    // What is due is not taken either.
    let late = (now_ms(&world).await - 100_000).to_string();
    world.redis.command::<()>(&["ZADD", &format!("{PREFIX}due"), &late, "1-0:ep_0"]).await;
    prometheus.until_firing("HeraldDueOverdue").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn receivers_that_take_nothing() {
    let world = World::new().await;
    let accounts = world.register_many(4).await;
    for endpoint in 0..4 {
        world.change(&format!("ep_{endpoint}"), |endpoint| endpoint.retry.max_attempts = Some(8)).await;
        world.merchants.rule(&format!("ep_{endpoint}"), |_| Reply::status(500));
    }
    let toml =
        "[limits.breaker]\ncooldown = \"500ms\"\nmax_cooldown = \"20s\"\n[limits.dead_letters]\nmax_count = 20\n";
    let herald = world.setup().toml(toml).start();
    herald.until_owner().await;
    let prometheus = watched(&herald).await;
    world.publish(&lives(44, &accounts, 200)).await;
    prometheus.until_firing("HeraldBreakersOpen").await;
    // Nothing waits for a breaker any more.
    for endpoint in 0..4 {
        let id = herald::facts::id::EndpointId::new(&format!("ep_{endpoint}")).unwrap();
        world.registry().await.remove(&id, None, &mark()).await.unwrap();
    }
    prometheus.until_firing("HeraldDeadLettersGrow").await;
    prometheus.until_firing("HeraldDeadLettersExpire").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_letter_that_nobody_looks_after() {
    let world = World::new().await;
    let accounts = world.register_many(1).await;
    world.change("ep_0", |endpoint| endpoint.retry.max_attempts = Some(1)).await;
    world.merchants.rule("ep_0", |_| Reply::status(500));
    let herald = owner(&world).await;
    let prometheus = watched(&herald).await;
    world.publish(&lives(45, &accounts, 1)).await;
    herald.until_metric("herald_dead_letters", |letters| letters == 1.0).await;
    assert!(!prometheus.is_firing("HeraldOldestDeadLetter"));
    let dead = format!("{PREFIX}dead");
    let letters: Vec<String> = world.redis.command(&["ZRANGE", &dead, "0", "0"]).await;
    let old = (now_ms(&world).await - 86_500_000).to_string();
    world.redis.command::<()>(&["ZADD", &dead, "XX", &old, &letters[0]]).await;
    prometheus.until_firing("HeraldOldestDeadLetter").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_way_out_that_is_broken() {
    let world = World::new().await;
    let accounts = world.register_many(2).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.change("ep_1", |endpoint| endpoint.url = format!("http://{closed}/").parse().unwrap()).await;
    let herald = owner(&world).await;
    let prometheus = watched(&herald).await;
    let (mut number, mut connection) = (0, world.redis.connection().await);
    until("HeraldEgressBroken fires", async || {
        number += 1;
        publish(&mut connection, &[Event::new(number, &accounts[1], &format!("pi_{number}"), "Created")]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        prometheus.is_firing("HeraldEgressBroken")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn what_producers_and_strangers_do() {
    let world = World::new().await;
    let accounts = world.register_many(2).await;
    let herald = owner(&world).await;
    let prometheus = watched(&herald).await;
    world.redis.command::<()>(&["XADD", STREAM, "*", "event", "no event"]).await;
    prometheus.until_firing("HeraldQuarantine").await;
    // A group that nobody reads with, from the stream's beginning on.
    world.redis.command::<()>(&["XGROUP", "CREATE", STREAM, "nobody", "0"]).await;
    world.publish(&lives(46, &accounts[..1], 4)).await;
    prometheus.until_firing("HeraldForeignGroupBehind").await;
    for key in ["singles:ep_1", "heads:ep_1", "held:ep_1", "backlog:ep_1"] {
        world.redis.command::<()>(&["SET", &format!("{PREFIX}{key}"), "a stranger's"]).await;
    }
    world.merchants.rule("ep_1", |_| Reply::status(500));
    world.publish(&[Event::new(900, &accounts[1], "pi_900", "Created")]).await;
    prometheus.until_firing("HeraldItemsSetAside").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn an_endpoint_that_a_newer_herald_wrote() {
    let world = World::new().await;
    world.register_many(2).await;
    let herald = owner(&world).await;
    let prometheus = watched(&herald).await;
    let key = "herald:{herald}:registry";
    let json: String = world.redis.command(&["HGET", key, "ep_1"]).await;
    world.redis.command::<()>(&["HSET", key, "ep_1", &json.replace("\"schema\":1", "\"schema\":99")]).await;
    // Another change makes the follower look.
    world.change("ep_0", |endpoint| endpoint.description = "changed".to_owned()).await;
    drop(herald);
    let herald = owner(&world).await;
    drop(prometheus);
    let prometheus = watched(&herald).await;
    prometheus.until_firing("HeraldEndpointsLocked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn secrets_of_which_some_are_sealed() {
    let world = World::new().await;
    world.register_many(2).await;
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, format!("{}\n", *herald::facts::sealing::key_line(&[1; 32]))).unwrap();
    let keyring = herald::keyring::Keyring::open(Some(&keys), false).unwrap();
    let redis = world.redis.redis().sealed_by(keyring);
    let mut registry = herald::store::registry::RegistryStore::connect(&redis).await.unwrap();
    registry.create(world.endpoint("ep_2", "acc_2"), &crate::world::mark()).await.unwrap();
    let herald = world.setup().env("HERALD_MASTER_KEY_FILE", keys.to_str().unwrap()).start();
    herald.until_owner().await;
    let prometheus = watched(&herald).await;
    prometheus.until_firing("HeraldSecretsUnsealed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_machine_whose_clock_is_off() {
    let world = World::new().await;
    world.register_many(1).await;
    let herald = world.setup().elsewhen("-10s").start();
    herald.until_owner().await;
    let prometheus = watched(&herald).await;
    prometheus.until_firing("HeraldClockOff").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_receiver_that_is_owed_more_than_its_quota() {
    let world = World::new().await;
    world.register(world.endpoint("ep_dead", "acc_dead")).await;
    world.merchants.rule("ep_dead", |_| Reply::status(500));
    let toml = "[limits.breaker]\ncooldown = \"300ms\"\nmax_cooldown = \"1s\"\n[quota]\nendpoint_bytes = 1048576\n";
    let herald = world.setup().toml(toml).start();
    herald.until_owner().await;
    let prometheus = watched(&herald).await;
    let owed = (0..1_500).map(|n| Event::new(n, "acc_dead", &format!("pi_{n}"), "Created")).collect::<Vec<_>>();
    world.publish(&owed).await;
    prometheus.until_firing("HeraldQuotaRefusals").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_lease_that_does_not_last() {
    let world = World::new().await;
    world.register_many(1).await;
    let herald = owner(&world).await;
    let prometheus = watched(&herald).await;
    for terms in 2..=8 {
        world.redis.command::<()>(&["SET", &format!("{PREFIX}lease"), "a stranger's", "PX", "50"]).await;
        herald.until_metric("herald_lease_terms_total", |count| count >= f64::from(terms)).await;
    }
    prometheus.until_firing("HeraldLeaseFlapping").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_process_that_runs_out_of_what_it_needs() {
    let world = World::new().await;
    let accounts = world.register_many(2).await;
    let (unread, stderr) = io::pipe().unwrap();
    let herald = world.setup().env("HERALD_LOG", "trace").start_logging_to(stderr);
    herald.until_owner().await;
    let prometheus = watched(&herald).await;
    let (mut number, mut connection) = (0, world.redis.connection().await);
    until("HeraldLogLinesDropped fires", async || {
        number += 1;
        let events: Vec<Event> = (0..50)
            .map(|n| Event::new(number * 50 + n, &accounts[0], &format!("pi_{number}_{n}"), "Created"))
            .collect();
        publish(&mut connection, &events).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        prometheus.is_firing("HeraldLogLinesDropped")
    })
    .await;
    assert!(!prometheus.is_firing("HeraldDescriptors"));
    let most = (herald.metric("process_open_fds") + 3.0).to_string();
    let mut limit = Command::new("prlimit");
    let status = limit.args(["--pid", &herald.pid().to_string(), &format!("--nofile={most}:")]).status().unwrap();
    assert!(status.success());
    prometheus.until_firing("HeraldDescriptors").await;
    herald.signal(Signal::SIGKILL);
    drop(unread);
}

/// Of the API, as files of this folder: it ends in so many days.
fn certificate(folder: &Path, days: u64) {
    let mut of = rcgen::CertificateParams::new(vec!["herald.example".to_owned()]).unwrap();
    of.not_after = (std::time::SystemTime::now() + Duration::from_secs(days * 86_400)).into();
    let key = rcgen::KeyPair::generate().unwrap();
    // Both in one file: a pair that fits at any time.
    let (certificate, key) = (of.self_signed(&key).unwrap().pem(), key.serialize_pem());
    fs::write(folder.join("fresh"), certificate + &key).unwrap();
    fs::rename(folder.join("fresh"), folder.join("api.pem")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_certificate_that_ends_soon() {
    let (world, folder, metrics) = (World::new().await, tempfile::tempdir().unwrap(), free_address());
    world.register_many(1).await;
    let file = folder.path().join("api.pem");
    certificate(folder.path(), 13);
    let setup = world.setup().env("HERALD_METRICS_LISTEN", &metrics.to_string());
    let setup = setup.env("HERALD_API_CERTIFICATE_FILE", file.to_str().unwrap());
    let _herald = setup.env("HERALD_API_KEY_FILE", file.to_str().unwrap()).start();
    let prometheus = Prometheus::start(&[metrics]).await;
    prometheus.until_firing("HeraldCertificateExpires").await;
    // A new one is taken while it serves.
    certificate(folder.path(), 15);
    prometheus.until_silent("HeraldCertificateExpires").await;
}

/// The page of this worker, as one of another version would have it: there is no other version yet whose pages have these names.
fn as_another_version(worker: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let own = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4_096]);
            let Some((200, page)) = crate::process::get(worker, "/metrics") else { continue };
            assert!(page.contains(own), "{page}");
            let page = page.replace(own, "version=\"0.0.9\"");
            let _ = write!(stream, "HTTP/1.0 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\n\r\n{page}");
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn two_versions_that_work_side_by_side() {
    let world = World::new().await;
    world.register_many(1).await;
    let (one, other) = (owner(&world).await, world.setup().start());
    let same = Prometheus::of(&[&one, &other]).await;
    same.until_samples("count(herald_build_info) == 2").await;
    let mixed = Prometheus::start(&[one.address(), as_another_version(other.address())]).await;
    mixed.until_firing("HeraldVersionsMixed").await;
    assert!(!same.is_firing("HeraldVersionsMixed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_split_stream_with_a_part_that_takes_nothing() {
    let world = World::new().await;
    let accounts = world.register_many(2).await;
    let setup = || world.setup().env("HERALD_PARTITIONS", "4");
    let herald = setup().start();
    herald.until_metric("herald_partition_owned", |owned| owned == 5.0).await;
    let began = now_ms(&world).await - 700_000;
    let events = lives(47, &accounts[..1], 2);
    world.publish_as(&format!("{began}-0"), &events[0]).await;
    world.merchants.until_delivered(1).await;
    world.until_key("the parts have begun", &["EXISTS", &format!("{PREFIX}cursor")], |there| there == 1).await;
    assert!(herald.stop().await.success());
    // There is no replica.
    let herald = setup().env("HERALD_REDIS_WAIT", "1").env("HERALD_REDIS_WAIT_TIMEOUT", "10ms").start();
    herald.until_metric("herald_partition_owned", |owned| owned == 5.0).await;
    let prometheus = watched(&herald).await;
    for alert in ["HeraldNoOwner", "HeraldRouteLag", "HeraldRouteGap"] {
        assert!(!prometheus.is_firing(alert), "{alert}");
    }
    prometheus.until_firing("HeraldReplicationUnconfirmed").await;
    let account = AccountId::new(&accounts[0]).unwrap();
    let part = Split::new(STREAM, &[4]).unwrap().stream_of(&account);
    let routed = format!("herald:{{{part}}}:routed");
    let known: String = world.redis.command(&["GET", &routed]).await;
    world.redis.command::<u64>(&["DEL", &routed]).await;
    world.redis.command::<u64>(&["RPUSH", &routed, "a stranger's"]).await;
    world.publish_as(&format!("{began}-1"), &events[1]).await;
    for alert in ["HeraldRouteLag", "HeraldRouteLagLong"] {
        prometheus.until_firing(alert).await;
    }
    // It can take it again, and somebody has trimmed it meanwhile.
    world.redis.command::<()>(&["XTRIM", STREAM, "MAXLEN", "0"]).await;
    world.redis.command::<()>(&["SET", &routed, &known]).await;
    prometheus.until_firing("HeraldRouteGap").await;
    prometheus.until_silent("HeraldRouteLag").await;
}

/// As after a failover to a replica that lacked the last changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn a_registry_that_was_set_back() {
    const COPY: &str = "for i = 1, #KEYS do redis.call('COPY', KEYS[i] .. ARGV[1], KEYS[i] .. ARGV[2], 'REPLACE') end";
    const KEYS: [&str; 3] = [RegistryKeys::ENDPOINTS, RegistryKeys::META, RegistryKeys::CHANGES];
    let world = World::new().await;
    let accounts = world.register_many(1).await;
    let herald = owner(&world).await;
    let copy = async |from: &str, to: &str| {
        let command = [&["EVAL", COPY, "3"], &KEYS[..], &[from, to]].concat();
        world.redis.command::<()>(&command).await;
    };
    copy("", ":kept").await;
    world.register(world.endpoint("ep_lost", "acc_lost")).await;
    herald.until_metric("herald_endpoints{state=\"enabled\"}", |endpoints| endpoints == 2.0).await;
    let prometheus = watched(&herald).await;
    assert!(!prometheus.is_firing("HeraldRegistryTakenBack"));
    copy(":kept", "").await;
    // Whoever reads it looks first to whom it is owed.
    world.publish(&lives(48, &accounts, 1)).await;
    prometheus.until_firing("HeraldRegistryTakenBack").await;
    world.merchants.until_delivered(1).await;
}

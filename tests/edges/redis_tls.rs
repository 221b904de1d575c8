//! A real Redis that wants a certificate of its clients, and everything that can be wrong between it and Herald.

use herald::{
    facts::{
        endpoint::Endpoint,
        id::{AccountId, EndpointId},
        partition::Slot,
    },
    owned::OwnCluster,
    store::{connection::Redis, registry::RegistryStore},
};

use crate::{
    Files, herald,
    merchants::Merchants,
    process::{Setup, free_address},
    receiver::Authority,
    support::{TestRedis, until},
    told,
    world::{Event, STREAM, World, lives, mark, publish, secret},
};

struct Encrypted {
    world: World,
    files: Files,
    port: u16,
}

impl Encrypted {
    /// Its certificate is for `localhost`, and it wants one of its clients from the same authority.
    async fn start(authority: &Authority) -> Self {
        let files = Files::new();
        files.write("ca.pem", &authority.pem());
        files.identity(authority, "redis", "localhost");
        files.identity(authority, "herald", "herald");
        let port = free_address().port();
        let text = |text: String| -> &'static str { text.leak() };
        let redis = TestRedis::start_with(&[
            ("appendonly", "no"),
            ("tls-port", text(port.to_string())),
            ("tls-cert-file", text(files.text("redis.pem"))),
            ("tls-key-file", text(files.text("redis.key"))),
            ("tls-ca-cert-file", text(files.text("ca.pem"))),
            ("tls-auth-clients", "yes"),
        ])
        .await;
        Self { world: World::on(redis).await, files, port }
    }

    fn url(&self) -> String {
        format!("rediss://localhost:{}", self.port)
    }

    fn setup(&self) -> Setup {
        Setup::new(&self.url())
            .env("HERALD_REDIS_CA_FILE", &self.files.text("ca.pem"))
            .env("HERALD_REDIS_CERTIFICATE_FILE", &self.files.text("herald.pem"))
            .env("HERALD_REDIS_KEY_FILE", &self.files.text("herald.key"))
    }

    /// What a verb says that fails, with these settings beside the URL.
    fn refusal(&self, url: &str, settings: &[(&str, &str)]) -> String {
        self.refusal_of(&["doctor"], url, settings)
    }

    fn refusal_of(&self, verb: &[&str], url: &str, settings: &[(&str, &str)]) -> String {
        let files: Vec<_> = settings.iter().map(|(name, file)| (*name, self.files.text(file))).collect();
        let mut env: Vec<_> = files.iter().map(|(name, file)| (*name, file.as_str())).collect();
        env.push(("HERALD_REDIS_URL", url));
        let output = herald(verb, &env).output().unwrap();
        assert!(!output.status.success(), "{}", told(&output));
        told(&output)
    }
}

const CA: &str = "HERALD_REDIS_CA_FILE";
const CERTIFICATE: &str = "HERALD_REDIS_CERTIFICATE_FILE";
const KEY: &str = "HERALD_REDIS_KEY_FILE";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_delivers_and_the_verbs_look_over_tls_alone() {
    let redis = Encrypted::start(&Authority::new()).await;
    let accounts = redis.world.register_many(2).await;
    let worker = redis.setup().env("HERALD_INTENTS_LISTEN", "127.0.0.1:0").start();
    redis.world.publish(&lives(1, &accounts, 40)).await;
    redis.world.merchants.until_delivered(40).await;
    let clients: String = redis.world.redis.command(&["CLIENT", "LIST"]).await;
    let plain_port = format!("laddr={} ", redis.world.redis.address());
    let of_the_test = clients.lines().filter(|line| line.contains(&plain_port)).count();
    assert_eq!((of_the_test, clients.lines().count() > 5), (1, true), "only the one that asks: {clients}");
    let ends = worker.metric("herald_certificate_not_after_timestamp_seconds{use=\"redis\"}");
    assert!(ends > 4_000_000_000.0, "rcgen's certificates last until 4096: {ends}");
    let (ca, certificate, key) =
        (redis.files.text("ca.pem"), redis.files.text("herald.pem"), redis.files.text("herald.key"));
    let url = redis.url();
    let env = [("HERALD_REDIS_URL", url.as_str()), (CA, &ca), (CERTIFICATE, &certificate), (KEY, &key)];
    for verb in [
        &["endpoint", "list"][..],
        &["story", "pi_000000"],
        &["dead-letter", "list"],
        &["token", "list"],
        &["issue", "list"],
        &["delivery", "list", "--account", "acc_0"],
        &["audit", "list"],
        &["config", "check"],
    ] {
        let output = herald(verb, &env).output().unwrap();
        assert!(output.status.success(), "{verb:?}: {}", told(&output));
    }
    let looked = told(&herald(&["doctor"], &env).output().unwrap());
    assert!(looked.contains("owns payment-intents") && !looked.contains("not encrypted"), "{looked}");
    assert!(worker.stop().await.success());

    // With users too, where nobody is answered before he has said who he is.
    let printed = herald(&["doctor", "--print-acl", "--role", "viewer"], &[]).output().unwrap();
    let rule = String::from_utf8(printed.stdout).unwrap().trim().replace(">PASSWORD", ">secret");
    redis.world.redis.command::<()>(&rule.split(' ').collect::<Vec<_>>()).await;
    redis.world.redis.command::<()>(&["ACL", "SETUSER", "default", "off"]).await;
    let looks = |user: &str| {
        let url = url.replace("rediss://", &format!("rediss://{user}@"));
        let env = [("HERALD_REDIS_URL", url.as_str()), (CA, &ca), (CERTIFICATE, &certificate), (KEY, &key)];
        let output = herald(&["endpoint", "list"], &env).output().unwrap();
        (output.status.success(), told(&output))
    };
    assert!(looks("herald-viewer:secret").0);
    let (_, refused) = looks("herald-viewer:wrong");
    assert!(refused.contains("Redis denies it; check user, password"), "{refused}");
}

/// A Cluster tells its nodes' addresses, and each node's certificate must be for its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_of_a_cluster_is_spoken_to_by_tls() {
    let (authority, files) = (Authority::new(), Files::new());
    files.write("ca.pem", &authority.pem());
    files.identity(&authority, "redis", "127.0.0.1");
    files.identity(&authority, "herald", "herald");
    let text = |name: &str| -> &'static str { files.text(name).leak() };
    let started = OwnCluster::start_encrypted(text("ca.pem"), text("redis.pem"), text("redis.key")).await;
    let mut cluster = started.expect("a Redis Cluster starts");
    let merchants = Merchants::start(secret().reveal()).await;
    let mut registry = RegistryStore::connect(&Redis::new(&cluster.url()).unwrap()).await.unwrap();
    let (id, of) = (EndpointId::new("ep_0").unwrap(), AccountId::new("acc_0").unwrap());
    registry.create(Endpoint::new(id, of, merchants.url("ep_0"), secret(), 1), &mark()).await.unwrap();

    let url = cluster.encrypted_url().await.unwrap();
    let (ca, certificate, key) = (text("ca.pem"), text("herald.pem"), text("herald.key"));
    let env = [(CA, ca), (CERTIFICATE, certificate), (KEY, key)];
    let worker = env.into_iter().fold(Setup::new(&url), |setup, (name, value)| setup.env(name, value)).start();
    worker.until_owner().await;
    let slot = Slot::of_key(STREAM.as_bytes()).number();
    let publish = async |cluster: &OwnCluster, events: &[Event]| {
        let home = cluster.master_of(slot).await.unwrap();
        let client = redis::Client::open(cluster.nodes()[home].url()).unwrap();
        publish(&mut client.get_multiplexed_async_connection().await.unwrap(), events).await;
        home
    };
    let events = lives(5, &["acc_0".to_owned()], 80);
    let home = publish(&cluster, &events[..40]).await;
    merchants.until_delivered(40).await;
    // It is there for nobody else: what is not encrypted is the test's own.
    let client = redis::Client::open(cluster.nodes()[home].url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut connection).await.unwrap();
    let tls: String = redis::cmd("CONFIG")
        .arg("GET")
        .arg("tls-port")
        .query_async::<Vec<String>>(&mut connection)
        .await
        .unwrap()
        .remove(1);
    assert!(clients.matches(&format!("laddr=127.0.0.1:{tls} ")).count() > 3, "{clients}");

    cluster.node(home).kill().await.unwrap();
    until("another to serve the stream", async || cluster.master_of(slot).await.is_some_and(|at| at != home)).await;
    publish(&cluster, &events[40..]).await;
    merchants.until_delivered(80).await;
    merchants.assert_sound();
    assert!(worker.stop().await.success());

    // By a name that is in no certificate.
    let named = url.replace("127.0.0.1", "localhost");
    let env = [("HERALD_REDIS_URL", named.as_str()), (CA, ca), (CERTIFICATE, certificate), (KEY, key)];
    let refused = told(&herald(&["endpoint", "list"], &env).output().unwrap());
    assert!(refused.contains("its certificate is for another name than that in redis.url"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_with_what_to_do() {
    let authority = Authority::new();
    let redis = Encrypted::start(&authority).await;
    let stranger = Authority::new();
    redis.files.write("stranger.pem", &stranger.pem());
    redis.files.identity(&stranger, "imposter", "herald");
    let both = [(CA, "ca.pem"), (CERTIFICATE, "herald.pem"), (KEY, "herald.key")];
    let url = redis.url();
    for verb in [&["doctor"][..], &["endpoint", "list"]] {
        let wrong_authority =
            redis.refusal_of(verb, &url, &[(CA, "stranger.pem"), (CERTIFICATE, "herald.pem"), (KEY, "herald.key")]);
        assert!(wrong_authority.contains("signed by an authority that Herald does not trust"), "{wrong_authority}");
        assert!(wrong_authority.contains("redis.ca_file"), "{wrong_authority}");
    }
    let systems = redis.refusal(&url, &both[1..]);
    assert!(systems.contains("does not trust") && systems.contains("redis.ca_file"), "{systems}");
    let wrong_name = redis.refusal(&url.replace("localhost", "127.0.0.1"), &both);
    assert!(wrong_name.contains("for another name") && wrong_name.contains("redis.url"), "{wrong_name}");
    let none = redis.refusal(&url, &both[..1]);
    assert!(none.contains("wants a certificate") && none.contains("redis.certificate_file"), "{none}");
    let imposter = redis.refusal(&url, &[(CA, "ca.pem"), (CERTIFICATE, "imposter.pem"), (KEY, "imposter.key")]);
    assert!(imposter.contains("refuses Herald's certificate") && imposter.contains("tls-ca-cert-file"), "{imposter}");
    let plain = redis.refusal(&url.replace("rediss:", "redis:"), &[]);
    assert!(plain.contains("speaks TLS at this port") && plain.contains("write rediss://"), "{plain}");
    let at_the_plain_port = redis.refusal(&format!("rediss://localhost:{}", redis.world.redis.address().port()), &both);
    assert!(at_the_plain_port.contains("does not speak TLS at this port"), "{at_the_plain_port}");
    let unchecked = redis.refusal(&(url.clone() + "/#insecure"), &both);
    assert!(unchecked.contains("always checked"), "{unchecked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_of_no_use_is_named_and_nothing_starts() {
    let authority = Authority::new();
    let redis = Encrypted::start(&authority).await;
    let (certificate, key) = authority.certificate("herald");
    redis.files.write("half.pem", &certificate[..certificate.len() / 2]);
    redis.files.write("half.key", &key[..key.len() / 2]);
    redis.files.write("other.key", &key);
    redis.files.write("empty.pem", "");
    let url = redis.url();
    for (certificate, key, says) in [
        ("half.pem", "herald.key", "half.pem (redis.certificate_file) is not readable as PEM"),
        ("herald.pem", "half.key", "half.key (redis.key_file) is not readable as PEM"),
        ("empty.pem", "herald.key", "empty.pem (redis.certificate_file) holds no certificate"),
        ("herald.pem", "herald.pem", "herald.pem (redis.key_file) holds no private key"),
        ("herald.pem", "other.key", "is not that of the first certificate in"),
        ("gone.pem", "herald.key", "gone.pem (redis.certificate_file): No such file"),
        ("herald.pem", "", "(redis.key_file): it is not a file"),
    ] {
        for verb in [&["serve"][..], &["config", "check"]] {
            let refusal = redis.refusal_of(verb, &url, &[(CA, "ca.pem"), (CERTIFICATE, certificate), (KEY, key)]);
            assert!(refusal.contains(says) && refusal.contains("the configuration is wrong"), "{says:?}: {refusal}");
            assert!(!refusal.contains("PRIVATE KEY-"), "{refusal}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_while_a_worker_runs() {
    let redis = Encrypted::start(&Authority::new()).await;
    let accounts = redis.world.register_many(1).await;
    let worker = redis.setup().start();
    let events = lives(1, &accounts, 30);
    redis.world.publish(&events[..10]).await;
    redis.world.merchants.until_delivered(10).await;

    // In two steps, the certificate first. Meanwhile the connections end, and the old pair still serves.
    let second = Authority::new();
    let (certificate, key) = second.certificate("herald");
    redis.files.write("herald.pem", &certificate);
    drop_connections(&redis).await;
    redis.world.publish(&events[10..20]).await;
    redis.world.merchants.until_delivered(20).await;
    worker.until_log("Redis is shown the certificate that was read before").await;
    redis.files.write("herald.key", &key);

    // Redis has a new certificate of a new authority, and believes only in that one.
    redis.files.write("ca.pem", &second.pem());
    redis.files.identity(&second, "redis", "localhost");
    let reload = ["CONFIG", "SET", "tls-cert-file", &redis.files.text("redis.pem")];
    let ca = redis.files.text("ca.pem");
    redis.world.redis.command::<()>(&[&reload[..], &["tls-ca-cert-file", &ca]].concat()).await;
    drop_connections(&redis).await;
    redis.world.publish(&events[20..]).await;
    redis.world.merchants.until_delivered(30).await;
    assert!(worker.stop().await.success());
}

async fn drop_connections(redis: &Encrypted) {
    redis.world.redis.command::<i64>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
}

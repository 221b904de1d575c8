//! Sealed secrets, with the whole program: keys that are missing, come and go, and nothing of a secret anywhere outside of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use herald::{
    facts::{
        endpoint::Endpoint,
        endpoint_tls::{ClientKey, EndpointTls},
        sealing::{Ring, key_line},
        signing::SecretText,
    },
    keyring::Keyring,
    store::registry::RegistryStore,
};
use nix::sys::signal::Signal;

use crate::{
    process::Herald,
    receiver::{Authority, Receiver},
    support::{TestRedis, until},
    world::{World, lives, mark},
};

/// A file with the keys that are made of these bytes.
struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    fn of(keys: &[u8]) -> Self {
        let made = Self { folder: tempfile::tempdir().unwrap() };
        made.put(keys);
        fs::set_permissions(made.path(), fs::Permissions::from_mode(0o600)).unwrap();
        made
    }

    fn put(&self, keys: &[u8]) {
        let lines: String = keys.iter().map(|byte| key_line(&[*byte; 32]).to_string() + "\n").collect();
        fs::write(self.path(), lines).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    fn text(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }
}

fn id_of(key: u8) -> String {
    Ring::parse(&key_line(&[key; 32])).unwrap().sealing().unwrap().to_string()
}

async fn sealing_with(world: &World, keys: &Keys) -> RegistryStore {
    let keyring = Keyring::open(Some(&keys.path()), false).unwrap();
    RegistryStore::connect(&world.redis.redis().sealed_by(keyring)).await.unwrap()
}

fn start_with(world: &World, keys: &Keys) -> Herald {
    world.setup().env("HERALD_MASTER_KEY_FILE", &keys.text()).start()
}

/// What `/readyz` answers, if it is this status.
fn ready(herald: &Herald, status: u16, says: &str) -> bool {
    herald.get("/readyz").is_some_and(|(found, why)| found == status && why.contains(says))
}

/// A verb with these keys, or with none.
fn verb(redis: &TestRedis, keys: Option<&Keys>, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command
        .args(words)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HERALD_REDIS_URL", redis.url())
        .env("USER", "ops");
    command.env("HERALD_ALLOW_HTTP", "true").env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8");
    command.envs(keys.map(|keys| ("HERALD_MASTER_KEY_FILE", keys.path())));
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_owed_to_a_locked_endpoint_waits_and_goes_out_when_its_key_comes() {
    let world = World::new().await;
    let (both, one) = (Keys::of(&[2, 1]), Keys::of(&[1]));
    let mut registry = sealing_with(&world, &both).await;
    registry.create(world.endpoint("ep_0", "acc_0"), &mark()).await.unwrap();
    let mut registry = sealing_with(&world, &one).await;
    registry.create(world.endpoint("ep_1", "acc_1"), &mark()).await.unwrap();
    let herald = start_with(&world, &one);
    herald.until_owner().await;
    let events = lives(1, &["acc_0".to_owned(), "acc_1".to_owned()], 200);
    world.publish(&events).await;
    let of_one = events.iter().filter(|event| event.account == "acc_1").count();
    world.merchants.until("what opens", |log| log.delivered_to("ep_1") == of_one).await;
    until("not ready", async || ready(&herald, 503, &id_of(2))).await;
    assert_eq!(herald.metric("herald_endpoints{state=\"locked\"}"), 1.0);
    assert_eq!(herald.metric("herald_secrets{state=\"locked\"}"), 1.0);
    assert_eq!(herald.metric("herald_secrets{state=\"sealed\"}"), 1.0);
    herald.until_metric("herald_dead_letters", |letters| letters == 0.0).await;
    assert_eq!(world.merchants.log().delivered_to("ep_0"), 0);
    let shown = verb(&world.redis, Some(&one), &["endpoint", "show", "ep_0"]);
    assert!(!shown.status.success() && text(&shown).contains(&id_of(2)), "{}", text(&shown));
    // A file that is wrong changes nothing.
    fs::write(one.path(), "hk1:wrong\n").unwrap();
    herald.signal(Signal::SIGHUP);
    herald.until_log("cannot take the new keys").await;
    assert_eq!(herald.metric("herald_endpoints{state=\"locked\"}"), 1.0);
    one.put(&[1, 2]);
    herald.signal(Signal::SIGHUP);
    world.merchants.until_delivered(200).await;
    until("ready", async || ready(&herald, 200, "ready")).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    assert_eq!(herald.metric("herald_endpoints{state=\"locked\"}"), 0.0);
    assert!(herald.stop().await.success());
}

/// Sixty events wait for a locked endpoint, for four days as far as their records tell: longer than `retry.max_age`.
async fn old_and_locked(world: &World, both: &Keys, first: &Herald) -> usize {
    sealing_with(world, both).await.create(world.endpoint("ep_0", "acc_0"), &mark()).await.unwrap();
    first.until_owner().await;
    let events = lives(6, &["acc_0".to_owned()], 60);
    world.publish(&events).await;
    let prefix = "herald:{payment-intents}:";
    let unread = ["XPENDING", "payment-intents", "herald"];
    until("all have records", async || {
        let (pending, ..): (u64, redis::Value, redis::Value, redis::Value) = world.redis.command(&unread).await;
        pending == 0 && world.keys(&format!("{prefix}delivery:*")).await.len() == events.len()
    })
    .await;
    world.until_key("noted", &["ZCARD", &format!("{prefix}unreadable")], |noted| noted == 1).await;
    for key in world.keys(&format!("{prefix}delivery:*")).await {
        let record: String = world.redis.command(&["GET", &key]).await;
        let (head, rest) = record.split_once("\"since_ms\":").unwrap();
        let (since, rest) = rest.split_at(rest.find(',').unwrap());
        let since = since.parse::<u64>().unwrap() - 4 * 86_400_000;
        world.redis.command::<()>(&["SET", &key, &format!("{head}\"since_ms\":{since}{rest}")]).await;
    }
    events.len()
}

/// Whoever has the key then is another worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_locked_for_longer_than_a_delivery_may_grow_old_is_delivered_all_the_same() {
    let world = World::new().await;
    let (both, one) = (Keys::of(&[2, 1]), Keys::of(&[1]));
    let first = start_with(&world, &one);
    let events = old_and_locked(&world, &both, &first).await;
    assert!(first.stop().await.success());
    let second = start_with(&world, &both);
    world.merchants.until_delivered(events).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    second.until_metric("herald_dead_letters", |letters| letters == 0.0).await;
}

/// The one that hands it over has the key, and so do those that work on the parts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_locked_for_so_long_does_not_die_of_a_split_either() {
    let world = World::new().await;
    let (both, one) = (Keys::of(&[2, 1]), Keys::of(&[1]));
    // There is no replica to confirm that the stream is to be split.
    let waits = [("HERALD_REDIS_WAIT", "1"), ("HERALD_REDIS_WAIT_TIMEOUT", "100ms")];
    let setup = world.setup().env("HERALD_MASTER_KEY_FILE", &one.text());
    let first = waits.into_iter().fold(setup, |setup, (name, value)| setup.env(name, value)).start();
    let events = old_and_locked(&world, &both, &first).await;
    let asked = verb(
        &world.redis,
        Some(&one),
        &["repartition", "--into", "4", "--no-wait", "--yes", "--reason", "more workers"],
    );
    assert!(asked.status.success(), "{}", text(&asked));
    until("a stream that is to be split", async || {
        world.number(&["EXISTS", "herald:{payment-intents}:mode"]).await == 1
    })
    .await;
    assert!(first.stop().await.success());
    assert_eq!(world.keys("herald:[{]payment-intents}:delivery:*").await.len(), events);
    let second = start_with(&world, &both);
    world.merchants.until_delivered(events).await;
    world.merchants.assert_sound();
    let dead = world.keys("herald:[{]payment-intents*:dead:*").await;
    assert!(dead.is_empty() && second.stop().await.success(), "{dead:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_serves_payment_intents_alone_tells_its_keys_and_which_it_lacks() {
    let world = World::new().await;
    let (both, one) = (Keys::of(&[2, 1]), Keys::of(&[1]));
    sealing_with(&world, &both).await.create(world.endpoint("ep_0", "acc_0"), &mark()).await.unwrap();
    let serves = world.setup().intents_alone().env("HERALD_MASTER_KEY_FILE", &one.text()).start();
    until("not ready", async || ready(&serves, 503, &id_of(2))).await;
    until("told", async || world.number(&["HLEN", "herald:{herald}:workers"]).await == 1).await;
    let refused = verb(&world.redis, Some(&Keys::of(&[3, 2, 1])), &["key", "reseal", "--reason", "a test"]);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
    assert!(text(&refused).contains("(intents) does not have the key"), "{}", text(&refused));
    one.put(&[1, 2]);
    until("ready", async || ready(&serves, 200, "ready")).await;
    until("known", async || {
        let status = text(&verb(&world.redis, Some(&both), &["key", "status", "-o", "jsonl"]));
        let line = status.lines().find(|line| line.contains(&id_of(2))).unwrap_or_default().to_owned();
        line.contains("(intents)") && line.contains("\"unknown_to\":[]")
    })
    .await;
    // It has the key, and will never have the lease: nobody leaves it to that.
    let lacks = Keys::of(&[1]);
    let worker = start_with(&world, &lacks);
    worker.until_owner().await;
    until("not ready", async || ready(&worker, 503, &id_of(2))).await;
    until("told", async || world.number(&["HLEN", "herald:{herald}:workers"]).await == 2).await;
    assert_eq!(worker.metric("herald_partition_owner"), 1.0);
    assert!(serves.stop().await.success());
    until("it has left", async || world.number(&["HLEN", "herald:{herald}:workers"]).await == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_endpoint_is_listed_without_its_secrets_and_can_be_deleted() {
    let world = World::new().await;
    let (both, one) = (Keys::of(&[2, 1]), Keys::of(&[1]));
    let mut registry = sealing_with(&world, &both).await;
    let headers = vec![("x-key".to_owned(), "of-the-merchant".to_owned())];
    registry.create(Endpoint { headers, ..world.endpoint("ep_0", "acc_0") }, &mark()).await.unwrap();
    sealing_with(&world, &one).await.create(world.endpoint("ep_1", "acc_0"), &mark()).await.unwrap();
    let token = "0123456789abcdef0123456789abcdef";
    let setup = world.setup().env("HERALD_MASTER_KEY_FILE", &one.text()).env("HERALD_ADMIN_TOKEN", token);
    let herald = setup.start();
    herald.until_owner().await;
    until("not ready", async || ready(&herald, 503, &id_of(2))).await;
    let list = api(&herald, token, "/v1/endpoints");
    assert!(list.contains("\"ep_0\"") && list.contains("\"ep_1\""), "{list}");
    for path in ["/v1/endpoints?state=locked", "/v1/endpoints/ep_0"] {
        let shown = api(&herald, token, path);
        assert!(shown.contains("\"state\":\"locked\"") && shown.contains(&id_of(2)), "{shown}");
        assert!(shown.contains("x-key") && shown.contains("\"account\":\"acc_0\""), "{shown}");
        assert!(!shown.contains("of-the-merchant") && !shown.contains("hs1."), "{shown}");
        assert!(!shown.contains("ep_1"), "{shown}");
    }
    let of_merchant = verb(
        &world.redis,
        Some(&one),
        &["token", "create", "--role", "merchant", "--account", "acc_0", "--name", "t", "-o", "json"],
    );
    let made: serde_json::Value = serde_json::from_slice(&of_merchant.stdout).unwrap();
    let merchant = made["token"].as_str().unwrap();
    let shown = api(&herald, merchant, "/v1/endpoints?state=locked");
    assert!(shown.contains("\"state\":\"locked\"") && !shown.contains(&id_of(2)), "{shown}");
    let refused = asked(&herald, token, "POST", "/v1/endpoints/ep_0/pause", r#"{"reason":"a test"}"#);
    assert!(refused.starts_with("HTTP/1.1 409") && refused.contains(&id_of(2)), "{refused}");
    let deleted = asked(&herald, token, "DELETE", "/v1/endpoints/ep_0", r#"{"reason":"its key is lost"}"#);
    assert!(deleted.starts_with("HTTP/1.1 202"), "{deleted}");
    let left: Option<String> = world.redis.command(&["HGET", "herald:{herald}:registry", "ep_0"]).await;
    assert_eq!(left, None);
    until("ready", async || ready(&herald, 200, "ready")).await;
    assert!(!api(&herald, token, "/v1/endpoints").contains("\"ep_0\""));
    let told = text(&verb(&world.redis, None, &["audit", "list", "--act", "endpoint delete", "-o", "json"]));
    assert!(told.contains("its key is lost"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_value_locks_its_endpoint_alone_and_the_worker_stays_ready() {
    let world = World::new().await;
    let keys = Keys::of(&[1]);
    let mut registry = sealing_with(&world, &keys).await;
    for (name, account) in [("ep_0", "acc_0"), ("ep_1", "acc_1")] {
        registry.create(world.endpoint(name, account), &mark()).await.unwrap();
    }
    let stored: String = world.redis.command(&["HGET", "herald:{herald}:registry", "ep_0"]).await;
    let at = stored.find("\"sealed\":\"hs1.").unwrap() + 60;
    let flipped = if &stored[at..=at] == "A" { "B" } else { "A" };
    let damaged = format!("{}{flipped}{}", &stored[..at], &stored[at + 1..]);
    world.redis.command::<()>(&["HSET", "herald:{herald}:registry", "ep_0", &damaged]).await;
    let herald = start_with(&world, &keys);
    herald.until_owner().await;
    let events = lives(2, &["acc_0".to_owned(), "acc_1".to_owned()], 100);
    world.publish(&events).await;
    let of_one = events.iter().filter(|event| event.account == "acc_1").count();
    world.merchants.until("what opens", |log| log.delivered_to("ep_1") == of_one).await;
    assert_eq!(herald.metric("herald_endpoints{state=\"locked\"}"), 1.0);
    assert!(ready(&herald, 200, "ready"));
    let shown = verb(&world.redis, Some(&keys), &["endpoint", "show", "ep_0"]);
    assert!(text(&shown).contains("locked (damaged)"), "{}", text(&shown));
    // What mends it goes by the backup.
    world.redis.command::<()>(&["HSET", "herald:{herald}:registry", "ep_0", &stored]).await;
    world.redis.command::<()>(&["DEL", "herald:{herald}:registry:changes"]).await;
    registry.pause_all(&mark()).await.unwrap();
    registry.resume_all(&mark()).await.unwrap();
    world.merchants.until_delivered(100).await;
    world.merchants.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_lacks_a_key_gives_its_lease_to_one_that_has_it() {
    let world = World::new().await;
    let (lacks, has) = (Keys::of(&[1]), Keys::of(&[2, 1]));
    sealing_with(&world, &has).await.create(world.endpoint("ep_0", "acc_0"), &mark()).await.unwrap();
    let first = start_with(&world, &lacks);
    first.until_owner().await;
    let events = lives(3, &["acc_0".to_owned()], 50);
    world.publish(&events[..25]).await;
    until("not ready", async || ready(&first, 503, &id_of(2))).await;
    let second = start_with(&world, &has);
    second.until_owner().await;
    first.until_log("another worker has what this one lacks").await;
    world.publish(&events[25..]).await;
    world.merchants.until_delivered(50).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    assert!(ready(&second, 200, "ready") && ready(&first, 503, &id_of(2)));
    assert_eq!(first.metric("herald_partition_owner"), 0.0);
    // Alone again, it does what it can.
    assert!(second.stop().await.success());
    first.until_owner().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_rotated_while_everything_works() {
    let world = World::new().await;
    let accounts = world.register_many(20).await;
    let keys = Keys::of(&[1]);
    let herald = start_with(&world, &keys);
    herald.until_owner().await;
    until("told", async || world.number(&["HLEN", "herald:{herald}:workers"]).await == 1).await;
    let refused = verb(&world.redis, Some(&Keys::of(&[3])), &["key", "reseal", "--reason", "a test"]);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
    assert!(text(&refused).contains("does not have the key"), "{}", text(&refused));
    assert_eq!(herald.metric("herald_secrets{state=\"unsealed\"}"), 20.0);
    let resealed = verb(&world.redis, Some(&keys), &["key", "reseal", "--reason", "a test", "-o", "json"]);
    assert!(resealed.status.success() && text(&resealed).contains("\"written\": 20"), "{}", text(&resealed));
    herald.until_metric("herald_secrets{state=\"sealed\"}", |sealed| sealed == 20.0).await;
    let events = lives(4, &accounts, 400);
    world.publish(&events[..200]).await;
    let file = keys.text();
    let words = ["key", "rotate", "--file", &file, "--drop-old", "--reason", "a test"];
    let redis = world.redis.url();
    let rotated = {
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.args(words).env_clear().env("PATH", "/usr/bin:/bin").env("HERALD_REDIS_URL", redis).env("USER", "ops");
        command.env("HERALD_MASTER_KEY_FILE", keys.path());
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    world.publish(&events[200..]).await;
    let rotated = rotated.await.unwrap();
    assert!(rotated.status.success(), "{}", text(&rotated));
    let left = Ring::parse(&fs::read_to_string(keys.path()).unwrap()).unwrap();
    assert_eq!(left.ids().count(), 1);
    assert_ne!(left.sealing().unwrap().to_string(), id_of(1));
    assert_eq!(fs::metadata(keys.path()).unwrap().permissions().mode() & 0o777, 0o600);
    let status = text(&verb(&world.redis, Some(&keys), &["key", "status", "-o", "jsonl"]));
    assert!(
        status.contains(&format!("\"key\":\"{}\",\"here\":\"seals\",\"values\":20", left.sealing().unwrap())),
        "{status}"
    );
    world.merchants.until_delivered(400).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    assert!(ready(&herald, 200, "ready"));
    // An old key that is kept, and seals nothing any more, is never taken for a new one.
    let mut known = vec![id_of(1), left.sealing().unwrap().to_string()];
    for more in [&[][..], &["--drop-old"]] {
        let rotated = verb(&world.redis, Some(&keys), &[&words[..4], more, &words[5..]].concat());
        assert!(rotated.status.success(), "{}", text(&rotated));
        let file = fs::read_to_string(keys.path()).unwrap();
        let left = Ring::parse(&file).unwrap();
        assert_eq!(left.ids().count(), if more.is_empty() { 2 } else { 1 }, "{known:?}");
        let first = left.sealing().unwrap().to_string();
        assert!(!known.contains(&first), "{first} of {known:?}");
        assert!(!file.contains("under way"), "it has come to its end");
        known.push(first);
    }
    let unsealed = verb(&world.redis, Some(&keys), &["key", "unseal", "--yes", "--reason", "a test"]);
    assert!(unsealed.status.success(), "{}", text(&unsealed));
    herald.until_metric("herald_secrets{state=\"unsealed\"}", |unsealed| unsealed == 20.0).await;
    // With nobody there to say that it has the new key, the old one stays.
    assert!(herald.stop().await.success());
    let before = fs::read_to_string(keys.path()).unwrap();
    let refused = verb(&world.redis, Some(&keys), &words);
    assert_eq!(refused.status.code(), Some(4), "{}", text(&refused));
    assert!(text(&refused).contains("no worker lives"), "{}", text(&refused));
    assert_eq!(fs::read_to_string(keys.path()).unwrap(), before);
}

/// A secret in the forms in which somebody might meet it.
struct Needle {
    name: String,
    forms: Vec<Vec<u8>>,
}

impl Needle {
    fn of(name: String, text: &str) -> Self {
        let mut needle = Self { name, forms: vec![text.as_bytes().to_vec()] };
        needle.add(text.as_bytes());
        if let Some(key) = text.strip_prefix("whsec_") {
            needle.forms.push(key.as_bytes().to_vec());
            needle.add(&STANDARD.decode(key).unwrap());
        }
        needle
    }

    /// A private key as PEM: one of its lines, and the number that is the secret.
    fn of_key(name: String, key: &rcgen::KeyPair) -> Self {
        // In PKCS#8 of P-256 it has these places.
        let mut needle = Self { name, forms: Vec::new() };
        needle.add(&key.serialize_der()[36..68]);
        let pem = key.serialize_pem();
        needle.add(pem.lines().nth(1).unwrap().as_bytes());
        needle
    }

    fn add(&mut self, raw: &[u8]) {
        self.forms.push(raw.to_vec());
        self.forms.push(hex::encode(raw).into_bytes());
        self.forms.push(hex::encode_upper(raw).into_bytes());
        // In the middle of something else it may begin at any of three places of a group of four characters.
        for skip in 0..3.min(raw.len()) {
            let whole = &raw[skip..raw.len() - (raw.len() - skip) % 3];
            self.forms.push(STANDARD.encode(whole).into_bytes());
            self.forms.push(URL_SAFE_NO_PAD.encode(whole).into_bytes());
        }
    }

    fn is_in(&self, hay: &[u8]) -> bool {
        self.forms.iter().any(|form| hay.windows(form.len()).any(|window| window == &form[..]))
    }
}

/// All files of a folder and of those in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// What the operations API answers.
fn asked(herald: &Herald, token: &str, method: &str, path: &str, body: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(herald.address()).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn api(herald: &Herald, token: &str, path: &str) -> String {
    let answer = asked(herald, token, "GET", path, "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_anywhere_outside_of_the_process() {
    const ENDPOINTS: usize = 25;
    let world = World::on(TestRedis::start_with_aof().await).await;
    let keys = Keys::of(&[1]);
    let mut registry = sealing_with(&world, &keys).await;
    let (mut needles, mut accounts) = (Vec::new(), Vec::new());
    needles.push(Needle::of("the master key".to_owned(), "hk1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="));
    needles[0].forms.truncate(1);
    for n in 0..ENDPOINTS {
        let secret = SecretText::from_random(rand::random());
        let header = format!("Bearer {}", hex::encode(rand::random::<[u8; 20]>()));
        needles.push(Needle::of(format!("secret {n}"), secret.reveal()));
        needles.push(Needle::of(format!("header {n}"), &header));
        let made = world.endpoint(&format!("ep_{n}"), &format!("acc_{n}"));
        let secrets = vec![herald::facts::signing::Secret { value: secret, ..made.secrets[0].clone() }];
        let headers = vec![("authorization".to_owned(), header)];
        registry.create(Endpoint { secrets, headers, ..made }, &mark()).await.unwrap();
        accounts.push(format!("acc_{n}"));
    }
    // One has a receiver of an authority that only it knows, and a certificate to show.
    let authority = Authority::new();
    let acceptor = authority.acceptor("localhost", &["http/1.1"], |_| ());
    let asking = Receiver::start(move |stream, log| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            while log.read_request(&mut stream).await.is_some() {
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .await
                    .unwrap();
            }
        }
    })
    .await;
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["herald".to_owned()]).unwrap().self_signed(&key).unwrap();
    needles.push(Needle::of_key("client key".to_owned(), &key));
    let tls = EndpointTls {
        ca: Some(authority.pem()),
        client_certificate: Some(certificate.pem()),
        client_key: Some(ClientKey::new(key.serialize_pem())),
    };
    let made = world.endpoint("ep_tls", "acc_tls");
    let with_tls = Endpoint { url: asking.https("localhost"), tls: tls.kept(), ..made };
    registry.create(with_tls, &mark()).await.unwrap();
    accounts.push("acc_tls".to_owned());
    let token = "0123456789abcdef0123456789abcdef";
    // One receiver refuses everything, for dead letters, issues and their words.
    world.merchants.rule("ep_3", |_| crate::merchants::Reply::status(401));
    let setup = world.setup().env("HERALD_MASTER_KEY_FILE", &keys.text()).env("HERALD_LOG", "trace");
    let setup = setup.env("HERALD_ADMIN_TOKEN", token).env("HERALD_RETRY_MAX_ATTEMPTS", "2").dumping_core();
    let herald = setup.start();
    herald.until_owner().await;
    world.publish(&lives(5, &accounts, 500)).await;
    world.merchants.until("most", |log| log.of("ep_0").count() >= 10).await;
    until("what has an authority of its own", async || asking.log.seen().len() >= 10).await;
    herald.until_metric("herald_dead_letters", |letters| letters > 0.0).await;
    world.until_finished().await;

    let mut hay: Vec<(String, Vec<u8>)> = Vec::new();
    let said = |words: &[&str], keys: Option<&Keys>| {
        (format!("herald {}", words.join(" ")), text(&verb(&world.redis, keys, words)).into_bytes())
    };
    let backup = keys.folder.path().join("backup.json");
    let backup = backup.to_str().unwrap();
    for words in [
        &["endpoint", "list", "-o", "json"][..],
        &["endpoint", "show", "ep_0"],
        &["endpoint", "show", "ep_tls"],
        &["endpoint", "test", "ep_tls", "-o", "json"],
        &["endpoint", "export"],
        &["endpoint", "export", "--file", backup],
        &["endpoint", "update", "ep_1", "--description", "new", "--reason", "a test"],
        &["endpoint", "import", backup, "--reason", "a test", "--yes"],
        &["endpoint", "test", "ep_2"],
        &["key", "status"],
        &["key", "reseal", "--dry-run"],
        &["dead-letter", "list", "-o", "json"],
        &["delivery", "list", "-o", "json"],
        &["doctor", "-o", "json"],
        &["audit", "list", "-o", "json"],
        &["config", "show"],
    ] {
        hay.push(said(words, Some(&keys)));
    }
    hay.push(said(&["endpoint", "show", "ep_0"], None));
    hay.push(said(&["endpoint", "export"], Some(&Keys::of(&[2]))));
    hay.push(said(&["endpoint", "import", backup, "--reason", "a test", "--yes"], Some(&Keys::of(&[2]))));
    hay.push(("the backup".to_owned(), fs::read(backup).unwrap()));
    for path in
        ["/v1/endpoints", "/v1/endpoints/ep_0", "/v1/endpoints/ep_tls", "/v1/issues", "/v1/dead-letters", "/v1/audit"]
    {
        hay.push((path.to_owned(), api(&herald, token, path).into_bytes()));
    }
    hay.push(("/metrics".to_owned(), herald.get("/metrics").unwrap().1.into_bytes()));
    for key in world.keys("*").await {
        let dump: Vec<u8> = world.redis.command(&["DUMP", &key]).await;
        hay.push((format!("DUMP {key}"), dump));
    }
    world.redis.command::<()>(&["CONFIG", "SET", "rdbcompression", "no"]).await;
    world.redis.command::<()>(&["SAVE"]).await;
    let of_redis = files(world.redis.folder());
    assert!(of_redis.iter().any(|file| file.extension().is_some_and(|end| end == "rdb")), "{of_redis:?}");
    assert!(of_redis.iter().any(|file| file.to_string_lossy().contains("appendonly")), "{of_redis:?}");
    hay.extend(of_redis.into_iter().map(|file| (file.display().to_string(), fs::read(&file).unwrap_or_default())));

    let limits = fs::read_to_string(format!("/proc/{}/limits", herald.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
    let mut herald = herald;
    // The first is taken for a thread without room on its stack, whose instruction would fail again.
    until("the crash", async || {
        herald.signal(Signal::SIGSEGV);
        herald.has_ended()
    })
    .await;
    hay.push(("the log".to_owned(), herald.log().into_bytes()));
    let left = files(herald.folder());
    hay.extend(left.into_iter().map(|file| (file.display().to_string(), fs::read(&file).unwrap_or_default())));

    for (place, bytes) in &hay {
        for needle in &needles {
            assert!(!needle.is_in(bytes), "{} is in {place}", needle.name);
        }
    }
    // What looks for them would find them.
    let words = ["endpoint", "export", "--reveal", "--reason", "a test"];
    let revealed = verb(&world.redis, Some(&keys), &words).stdout;
    assert_eq!(needles.iter().filter(|needle| needle.is_in(&revealed)).count(), 2 * ENDPOINTS + 1);
    let entry = text(&verb(&world.redis, Some(&keys), &["audit", "list", "--act", "endpoint export", "-o", "json"]));
    assert!(entry.contains("in clear: stdout"), "{entry}");
}

//! Secrets in Redis are sealed: written so, read with and without their keys, sealed anew while others write.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use herald::{
    clock,
    facts::{
        endpoint_tls::{ClientKey, EndpointTls},
        sealing::{Ring, key_line},
    },
    keyring::Keyring,
    store::{
        connection::Purpose,
        registry::stored::LockCause,
        workers::{Told, tell},
    },
};

use super::*;

/// A file with the keys that are made of these bytes.
struct Keys {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Keys {
    fn of(keys: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = Self { path: folder.path().join("keys"), _folder: folder }.put(keys);
        fs::set_permissions(&keys.path, fs::Permissions::from_mode(0o600)).unwrap();
        keys
    }

    fn put(self, keys: &[u8]) -> Self {
        let lines: String = keys.iter().map(|byte| key_line(&[*byte; 32]).to_string() + "\n").collect();
        fs::write(&self.path, lines).unwrap();
        self
    }

    fn ring(&self) -> Keyring {
        Keyring::open(Some(&self.path), false).unwrap()
    }
}

fn ring(keys: &[u8]) -> Keyring {
    Keys::of(keys).ring()
}

async fn store_with(redis: &TestRedis, keyring: Keyring) -> RegistryStore {
    RegistryStore::connect(&redis.redis().sealed_by(keyring)).await.unwrap()
}

async fn raw(redis: &TestRedis, name: &str) -> String {
    redis.command(&["HGET", RegistryKeys::ENDPOINTS, name]).await
}

fn with_header(name: &str, of: &str) -> Endpoint {
    Endpoint { headers: vec![("x-key".into(), "a-header-of-the-test".into())], ..endpoint(name, of) }
}

fn secret_of(endpoint: &Endpoint) -> &str {
    endpoint.secrets[0].value.reveal()
}

async fn lock_of(store: &mut RegistryStore, name: &str) -> LockCause {
    match store.get(&id(name)).await {
        Err(RegistryError::Locked { cause, .. }) => cause,
        other => panic!("{name} is not locked: {other:?}"),
    }
}

fn told(name: &str, keys: &Keyring, schema: u32) -> Told {
    Told {
        name: name.into(),
        version: "0.1.0".into(),
        schemas: [("endpoint".to_owned(), schema)].into(),
        keys: keys.ring().ids().map(|key| key.to_string()).collect(),
        ..Told::default()
    }
}

#[tokio::test]
async fn what_is_written_with_a_key_is_sealed_and_reads_as_it_was() {
    let redis = TestRedis::start().await;
    let mut sealing = store_with(&redis, ring(&[1])).await;
    let made = sealing.create(with_header("ep_a", "acc_1"), &mark("new")).await.unwrap();
    let stored = raw(&redis, "ep_a").await;
    let json: serde_json::Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(json["schema"], 2);
    for value in [&json["secrets"][0]["value"], &json["headers"][0][1]] {
        assert!(value["sealed"].as_str().unwrap().starts_with("hs1."), "{value}");
    }
    assert!(!stored.contains("a-header-of-the-test") && !stored.contains(secret_of(&made)));
    let read = sealing.get(&id("ep_a")).await.unwrap().unwrap();
    assert_eq!((&read, read.schema, read.unsealed_values), (&made, 1, 0));
    let mut older = store(&redis).await;
    assert!(matches!(lock_of(&mut older, "ep_a").await, LockCause::NoKey(keys) if keys.len() == 1));
}

#[tokio::test]
async fn what_is_not_sealed_is_read_all_the_same_and_sealed_when_it_is_next_written() {
    let redis = TestRedis::start().await;
    let made = store(&redis).await.create(with_header("ep_a", "acc_1"), &mark("new")).await.unwrap();
    assert_eq!(made.unsealed_values, 2);
    assert!(raw(&redis, "ep_a").await.contains("\"schema\":1,"));
    let mut sealing = store_with(&redis, ring(&[1])).await;
    let read = sealing.get(&id("ep_a")).await.unwrap().unwrap();
    assert_eq!(read.unsealed_values, 2);
    let updated = sealing.update(read, &mark("changed")).await.unwrap();
    assert_eq!(updated.unsealed_values, 0);
    assert!(raw(&redis, "ep_a").await.contains("\"schema\":2,"));
    let keys = Keys::of(&[1]);
    let only = Keyring::open(Some(&keys.path), true).unwrap();
    store(&redis).await.create(endpoint("ep_b", "acc_2"), &mark("planted")).await.unwrap();
    let mut only = store_with(&redis, only).await;
    assert_eq!(lock_of(&mut only, "ep_b").await, LockCause::Unsealed);
    assert!(only.get(&id("ep_a")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_value_that_was_moved_or_changed_locks_that_endpoint_alone() {
    let redis = TestRedis::start().await;
    let mut sealing = store_with(&redis, ring(&[1])).await;
    for (name, of) in [("ep_a", "acc_1"), ("ep_b", "acc_1"), ("ep_c", "acc_1")] {
        sealing.create(endpoint(name, of), &mark("new")).await.unwrap();
    }
    let moved = raw(&redis, "ep_a").await.replace("\"ep_a\"", "\"ep_b\"");
    redis.command::<()>(&["HSET", RegistryKeys::ENDPOINTS, "ep_b", &moved]).await;
    let reused = raw(&redis, "ep_c").await.replace("\"acc_1\"", "\"acc_2\"");
    redis.command::<()>(&["HSET", RegistryKeys::ENDPOINTS, "ep_c", &reused]).await;
    for name in ["ep_b", "ep_c"] {
        assert_eq!(lock_of(&mut sealing, name).await, LockCause::Damaged, "{name}");
    }
    assert!(sealing.get(&id("ep_a")).await.unwrap().is_some());
    let text = raw(&redis, "ep_a").await;
    let at = text.find("hs1.").unwrap();
    let as_text = format!("\"{}\"", &text[at..at + text[at..].find('"').unwrap()]);
    let as_object = format!("{{\"sealed\":{as_text}}}");
    let planted = text.replace(&as_object, &as_text).replace("\"schema\":2", "\"schema\":1");
    redis.command::<()>(&["HSET", RegistryKeys::ENDPOINTS, "ep_a", &planted]).await;
    let read = sealing.get(&id("ep_a")).await.unwrap().unwrap();
    assert_eq!(read.unsealed_values, 1, "a text is never taken for a sealed value");
}

#[tokio::test]
async fn a_follower_opens_what_was_locked_when_its_key_comes() {
    let redis = TestRedis::start().await;
    let mut old = store_with(&redis, ring(&[1])).await;
    old.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
    let mut new = store_with(&redis, ring(&[2])).await;
    new.create(endpoint("ep_b", "acc_2"), &mark("new")).await.unwrap();
    let keys = Keys::of(&[1]);
    let keyring = keys.ring();
    let (registry, cancel) = (Registry::new(), CancellationToken::new());
    let following = tokio::spawn(registry.clone().run(redis.redis().sealed_by(keyring.clone()), cancel.clone()));
    let watching = tokio::spawn(keyring.clone().follow(cancel.clone()));
    soon("the first load", registry.first_load()).await.unwrap();
    assert_eq!((registry.len(), registry.unreadable()), (1, 1));
    assert_eq!(registry.missing_keys(), ring(&[2]).ring().ids().collect());
    assert!(registry.is_unreadable(&id("ep_b")) && registry.is_account_uncertain(&account("acc_2")));
    let _keys = keys.put(&[1, 2]);
    until("both", async || registry.len() == 2 && registry.missing_keys().is_empty()).await;
    cancel.cancel();
    soon("the end", following).await.unwrap();
    soon("the end", watching).await.unwrap();
}

#[tokio::test]
async fn nothing_is_sealed_with_a_key_that_a_live_worker_lacks() {
    let redis = TestRedis::start().await;
    let (old, both) = (ring(&[1]), ring(&[2, 1]));
    let mut connection = redis.redis().connect(Purpose::Other).await.unwrap();
    tell(&mut connection, "token", Some(&told("host/7", &old, 2))).await.unwrap();
    let mut sealing = store_with(&redis, both.clone()).await;
    let refused = sealing.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap_err().to_string();
    assert!(refused.contains("worker host/7 does not have the key"), "{refused}");
    assert!(matches!(sealing.import(many(3, "x"), None, &mark("new")).await, Err(RegistryError::Unknown(_))));
    store_with(&redis, old.clone()).await.create(endpoint("ep_b", "acc_1"), &mark("new")).await.unwrap();
    assert!(matches!(sealing.reseal(&both.ring(), &mark("all"), false).await, Err(RegistryError::Unknown(_))));
    tell(&mut connection, "token", Some(&told("host/7", &both, 1))).await.unwrap();
    let refused = sealing.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap_err().to_string();
    assert!(refused.contains("cannot read sealed endpoints"), "{refused}");
    tell(&mut connection, "token", None).await.unwrap();
    sealing.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
    // What was told too long ago does not hold any more.
    let stale = format!("{} {}", 1_000, serde_json::to_string(&told("host/8", &old, 2)).unwrap());
    redis.command::<()>(&["HSET", "herald:{herald}:workers", "other", &stale]).await;
    sealing.create(endpoint("ep_c", "acc_1"), &mark("new")).await.unwrap();
    assert_eq!(tell(&mut connection, "token", None).await.unwrap().1, []);
    assert_eq!(redis.command::<u64>(&["EXISTS", "herald:{herald}:workers"]).await, 0);
}

#[tokio::test]
async fn a_registry_that_is_half_sealed_by_two_keys_is_sealed_by_one_while_others_change_it() {
    let redis = TestRedis::start().await;
    store(&redis).await.import(many(600, "plain"), None, &mark("start")).await.unwrap();
    let mut first = store_with(&redis, ring(&[1])).await;
    for n in 0..400 {
        first.create(with_header(&format!("ep_first_{n}"), "acc_1"), &mark("new")).await.unwrap();
    }
    let mut strange = store_with(&redis, ring(&[9])).await;
    strange.create(endpoint("ep_strange", "acc_1"), &mark("new")).await.unwrap();
    let both = ring(&[2, 1]);
    let mut second = store_with(&redis, both.clone()).await;
    let before = second.load().await.unwrap();
    let survey = second.survey().await.unwrap();
    assert_eq!((survey.endpoints, survey.unsealed, survey.sealed.values().sum()), (1_001, 600, 801));

    let would = second.reseal(&both.ring(), &mark("dry"), true).await.unwrap();
    assert_eq!((would.written, would.left.len()), (1_000, 1));
    let (to, all) = (both.ring(), mark("all"));
    let mut changing = store_with(&redis, both.clone()).await;
    let changes = async {
        for n in 0..100 {
            let endpoint = changing.get(&id(&format!("ep_first_{n}"))).await.unwrap().unwrap();
            match changing.update(Endpoint { description: "changed".into(), ..endpoint }, &mark("meanwhile")).await {
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let (resealed, ()) = tokio::join!(second.reseal(&to, &all, false), changes);
    let resealed = resealed.unwrap();
    assert!(resealed.left.keys().eq(["ep_strange"]) && resealed.written >= 900, "{resealed:?}");
    let survey = second.survey().await.unwrap();
    assert_eq!((survey.unsealed, survey.sealed[&both.ring().sealing().unwrap()]), (0, 1_400));
    let after = second.load().await.unwrap();
    for (id, endpoint) in &before.endpoints {
        let now = &after.endpoints[id];
        assert_eq!((&now.secrets, &now.headers), (&endpoint.secrets, &endpoint.headers), "{id}");
        let is_changed = now.description == "changed";
        assert_eq!(now.revision, endpoint.revision + u64::from(is_changed), "{id}");
    }
    assert_eq!(second.reseal(&both.ring(), &mark("again"), false).await.unwrap().written, 0);

    let unsealed = second.reseal(&Ring::default(), &mark("back"), false).await.unwrap();
    assert_eq!((unsealed.written, unsealed.left.len()), (1_000, 1));
    assert!(raw(&redis, "ep_first_7").await.contains("\"schema\":1,"));
    assert_eq!(store(&redis).await.load().await.unwrap().endpoints.len(), 1_000);
}

#[tokio::test]
async fn a_follower_hears_that_what_it_knows_is_sealed_now() {
    let redis = TestRedis::start().await;
    store(&redis).await.import(many(3, "x"), None, &mark("start")).await.unwrap();
    let keyring = ring(&[1]);
    let (registry, cancel) = (Registry::new(), CancellationToken::new());
    tokio::spawn(registry.clone().run(redis.redis().sealed_by(keyring.clone()), cancel.clone()));
    soon("the first load", registry.first_load()).await.unwrap();
    assert_eq!(registry.all().iter().map(|endpoint| endpoint.unsealed_values).sum::<usize>(), 3);
    store_with(&redis, keyring.clone()).await.reseal(&keyring.ring(), &mark("all"), false).await.unwrap();
    until("sealed", async || registry.all().iter().all(|endpoint| endpoint.unsealed_values == 0)).await;
    cancel.cancel();
}

#[tokio::test]
async fn an_export_is_sealed_and_opens_elsewhere_with_the_same_keys_alone() {
    let (redis, elsewhere) = (TestRedis::start().await, TestRedis::start().await);
    let keyring = ring(&[1]);
    let mut here = store_with(&redis, keyring.clone()).await;
    store(&redis).await.create(endpoint("ep_plain", "acc_1"), &mark("new")).await.unwrap();
    let made = here.create(with_header("ep_a", "acc_1"), &mark("new")).await.unwrap();
    let export = here.export(1).await.unwrap();
    let sealed = String::from_utf8(export.to_json(&keyring.ring())).unwrap();
    assert!(sealed.starts_with("{\n  \"schema\": 2,"), "{sealed}");
    assert!(!sealed.contains("a-header-of-the-test") && !sealed.contains(secret_of(&made)));
    let refused = ExportFile::from_json(sealed.as_bytes(), &ring(&[2]).ring()).unwrap_err().to_string();
    assert!(refused.contains("ep_a is locked: it is sealed with the key"), "{refused}");
    let read = ExportFile::from_json(sealed.as_bytes(), &keyring.ring()).unwrap();
    assert_eq!(read.endpoints.len(), 2);
    let mut there = store_with(&elsewhere, ring(&[2])).await;
    there.import(read.endpoints, Some(read.registry_id), &mark("moved")).await.unwrap();
    let moved = there.get(&id("ep_a")).await.unwrap().unwrap();
    assert_eq!((&moved.secrets, &moved.headers), (&made.secrets, &made.headers));
    let plain = export.to_json(&Ring::default());
    assert_eq!(ExportFile::from_json(&plain, &Ring::default()).unwrap(), export);
    assert!(String::from_utf8(plain).unwrap().contains(secret_of(&made)));
}

#[tokio::test]
async fn the_largest_endpoint_that_is_taken_in_clear_is_also_taken_sealed() {
    let redis = TestRedis::start().await;
    let mut large = endpoint("ep_a", "acc_1");
    let mut plain = store(&redis).await;
    large.headers = (0..40).map(|n| (format!("x-{n}"), "v".repeat(1_500))).collect();
    assert!(serde_json::to_vec(&large).unwrap().len() > 60_000);
    plain.create(large, &mark("new")).await.unwrap();
    let keyring = ring(&[1]);
    let resealed =
        store_with(&redis, keyring.clone()).await.reseal(&keyring.ring(), &mark("all"), false).await.unwrap();
    assert_eq!((resealed.written, resealed.left.len()), (1, 0));
}

/// Prints what opening costs a follower: `cargo test --release --test registry what_opening_costs -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn what_opening_costs() {
    let redis = TestRedis::start().await;
    let keyring = ring(&[1]);
    for (name, keyring) in [("in clear", Keyring::default()), ("sealed", keyring)] {
        let mut store = store_with(&redis, keyring).await;
        store.import(many(100_000, "x"), None, &mark("start")).await.unwrap();
        for _ in 0..3 {
            let began = clock::now();
            assert_eq!(store.load().await.unwrap().endpoints.len(), 100_000);
            println!("100 000 endpoints {name} load in {:?}", clock::now().duration_since(began));
        }
    }
}

/// What reads an object reads a list as well: a value that stands in one must not pass for one that is sealed.
#[tokio::test]
async fn a_value_that_was_planted_in_another_form_is_never_used() {
    let redis = TestRedis::start().await;
    let keys = Keys::of(&[1]);
    let only = Keyring::open(Some(&keys.path), true).unwrap();
    let mut sealing = store_with(&redis, only).await;
    sealing.create(with_header("ep_a", "acc_1"), &mark("new")).await.unwrap();
    let genuine: serde_json::Value = serde_json::from_str(&raw(&redis, "ep_a").await).unwrap();
    let secret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    for list in ["secrets", "spare_secrets"] {
        let mut planted = genuine.clone();
        planted[list] = serde_json::json!([[secret, 1, null]]);
        redis.command::<()>(&["HSET", "herald:{herald}:registry", "ep_a", &planted.to_string()]).await;
        let read = sealing.get(&id("ep_a")).await;
        assert!(matches!(read, Err(RegistryError::Unreadable(_))), "{list}: {read:?}");
        assert_eq!(sealing.survey().await.unwrap().unknown, 1, "{list}");
    }
    // A list for the whole.
    redis.command::<()>(&["HSET", "herald:{herald}:registry", "ep_a", r#"[2,"acc_1"]"#]).await;
    assert!(matches!(sealing.get(&id("ep_a")).await, Err(RegistryError::Unreadable(_))));
}

#[tokio::test]
async fn nothing_is_written_in_clear_while_a_worker_would_lock_it() {
    let redis = TestRedis::start().await;
    let mut clear = store_with(&redis, Keyring::default()).await;
    let mut connection = redis.redis().connect(Purpose::Other).await.unwrap();
    let strict = Told { seal_only: true, ..told("host/7", &ring(&[1]), 2) };
    tell(&mut connection, "token", Some(&strict)).await.unwrap();
    let refused = clear.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap_err().to_string();
    assert!(
        refused.contains("worker host/7 locks what is not sealed") && refused.contains("master_key_file"),
        "{refused}"
    );
    tell(&mut connection, "token", Some(&Told { seal_only: false, ..strict })).await.unwrap();
    clear.create(endpoint("ep_a", "acc_1"), &mark("new")).await.unwrap();
}

fn with_tls(name: &str, of: &str) -> Endpoint {
    let (ca, certificate) = (Some("an authority".to_owned()), Some("a certificate".to_owned()));
    let client_key = Some(ClientKey::new("a-key-of-the-test".to_owned()));
    let tls = EndpointTls { ca, client_certificate: certificate, client_key };
    Endpoint { tls: tls.kept(), ..endpoint(name, of) }
}

#[tokio::test]
async fn a_client_key_is_stored_sealed_or_not_at_all() {
    let redis = TestRedis::start().await;
    let refused = store(&redis).await.create(with_tls("ep_a", "acc_1"), &mark("new")).await.unwrap_err();
    assert!(matches!(refused, RegistryError::KeyInClear(_)), "{refused}");
    assert!(refused.to_string().contains("master_key_file"), "{refused}");
    let mut sealing = store_with(&redis, ring(&[1])).await;
    let made = sealing.create(with_tls("ep_a", "acc_1"), &mark("new")).await.unwrap();
    assert_eq!(made.secret_values(), 2);
    let stored = raw(&redis, "ep_a").await;
    let json: serde_json::Value = serde_json::from_str(&stored).unwrap();
    assert_eq!((&json["schema"], &json["tls"]["ca"]), (&2.into(), &"an authority".into()));
    assert!(json["tls"]["client_key"]["sealed"].as_str().unwrap().starts_with("hs1."), "{stored}");
    assert_eq!(sealing.get(&id("ep_a")).await.unwrap().unwrap(), made);

    // A ring that is gone, a key of another endpoint, and a planted one.
    assert!(matches!(lock_of(&mut store(&redis).await, "ep_a").await, LockCause::NoKey(_)));
    sealing.create(with_tls("ep_b", "acc_2"), &mark("new")).await.unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&raw(&redis, "ep_b").await).unwrap();
    let own = std::mem::replace(&mut other["tls"]["client_key"], json["tls"]["client_key"].clone());
    put_raw(&redis, "ep_b", &other).await;
    assert_eq!(lock_of(&mut sealing, "ep_b").await, LockCause::Damaged);
    other["tls"]["client_key"] = "a planted key".into();
    put_raw(&redis, "ep_b", &other).await;
    let keys = Keys::of(&[1]);
    let mut only = store_with(&redis, Keyring::open(Some(&keys.path), true).unwrap()).await;
    assert_eq!(lock_of(&mut only, "ep_b").await, LockCause::Unsealed);
    other["tls"] = serde_json::json!([null, null, "a planted key"]);
    put_raw(&redis, "ep_b", &other).await;
    assert!(matches!(only.get(&id("ep_b")).await, Err(RegistryError::Unreadable(_))));
    other["tls"] = serde_json::json!({"client_certificate": "a certificate", "client_key": own});
    put_raw(&redis, "ep_b", &other).await;
    assert!(only.get(&id("ep_b")).await.unwrap().is_some());

    // A new ring takes it over, and none leaves it as it is.
    let mut both = store_with(&redis, ring(&[2, 1])).await;
    let to = ring(&[2]).ring();
    assert_eq!(both.reseal(&to, &mark("rotate"), false).await.unwrap().written, 2);
    let mut new = store_with(&redis, ring(&[2])).await;
    assert_eq!(new.get(&id("ep_a")).await.unwrap().unwrap().tls, made.tls);
    let unsealed = new.reseal(&Ring::default(), &mark("unseal"), false).await.unwrap();
    assert_eq!((unsealed.written, unsealed.left.len()), (0, 2), "{unsealed:?}");
    let file = new.export(1).await.unwrap();
    let sealed = String::from_utf8(file.to_json(&to)).unwrap();
    assert!(!sealed.contains("a-key-of-the-test") && sealed.contains("an authority"), "{sealed}");
    assert_eq!(ExportFile::from_json(sealed.as_bytes(), &to).unwrap().endpoints, file.endpoints);
    assert!(String::from_utf8(file.to_json(&Ring::default())).unwrap().contains("a-key-of-the-test"));
}

#[tokio::test]
async fn authorities_alone_need_no_key_and_no_worker_that_could_not_read_them() {
    let redis = TestRedis::start().await;
    let mut plain = store(&redis).await;
    let tls = EndpointTls { ca: Some("an authority".to_owned()), ..EndpointTls::default() };
    let made =
        plain.create(Endpoint { tls: tls.clone().kept(), ..endpoint("ep_a", "acc_1") }, &mark("new")).await.unwrap();
    assert!(raw(&redis, "ep_a").await.contains("\"schema\":2"), "an older Herald knows that it cannot read it");
    assert_eq!(plain.get(&id("ep_a")).await.unwrap().unwrap(), made);
    let mut connection = redis.redis().connect(Purpose::Other).await.unwrap();
    tell(&mut connection, "old", Some(&told("old/1", &Keyring::default(), 1))).await.unwrap();
    let refused = plain.create(Endpoint { tls: tls.kept(), ..endpoint("ep_b", "acc_2") }, &mark("new")).await;
    assert!(refused.unwrap_err().to_string().contains("old/1 is version"));
    plain.create(endpoint("ep_b", "acc_2"), &mark("new")).await.unwrap();
}

async fn put_raw(redis: &TestRedis, name: &str, json: &serde_json::Value) {
    redis.command::<()>(&["HSET", RegistryKeys::ENDPOINTS, name, &json.to_string()]).await;
}

/// `herald doctor --rollback-to`, and what it answers as JSON.
fn rollback_to(redis: &TestRedis, version: &str) -> (Option<i32>, serde_json::Value, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_herald"));
    command.env_clear().args(["--redis-url", &redis.url(), "doctor", "-o", "json", "--rollback-to", version]);
    let said = command.output().unwrap();
    let report = serde_json::from_slice(&said.stdout).unwrap_or_default();
    (said.status.code(), report, String::from_utf8(said.stderr).unwrap())
}

#[tokio::test]
async fn what_stands_in_the_way_of_going_back_is_counted_with_what_undoes_it() {
    let redis = TestRedis::start().await;
    let mut registry = store_with(&redis, Keyring::default()).await;
    registry.create(endpoint("ep_plain", "acc_1"), &mark("test")).await.unwrap();
    let mut sealing = store_with(&redis, ring(&[1])).await;
    for name in ["ep_s1", "ep_s2"] {
        sealing.create(with_header(name, "acc_2"), &mark("test")).await.unwrap();
    }
    let ca = EndpointTls { ca: Some("an authority".to_owned()), ..EndpointTls::default() };
    registry.create(Endpoint { tls: ca.kept(), ..endpoint("ep_tls", "acc_4") }, &mark("test")).await.unwrap();
    let mut pair = endpoint("ep_pair", "acc_3");
    pair.schemes.push(herald::facts::endpoint::Scheme::Ed25519);
    registry.create(pair, &mark("test")).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let told = |name: &str, json: &str| {
        let file = folder.path().join(name);
        fs::write(&file, json).unwrap();
        file.display().to_string()
    };
    let one = |endpoint: u32, schemes: &str| {
        let same = ["health", "history", "operation", "record"].map(|name| format!(r#""{name}":{{"reads":[1]}}"#));
        let reads: Vec<u32> = (1..=endpoint).collect();
        format!(r#"{{"version":"0.0.9","schemas":{{"endpoint":{{"reads":{reads:?}}},{}}}{schemes}}}"#, same.join(","))
    };
    // An older one, which says nothing of schemes.
    let older = told("older", &one(1, ""));
    let (code, report, said) = rollback_to(&redis, &older);
    assert_eq!((code, &report["possible"], &report["version"]), (Some(1), &false.into(), &"0.0.9".into()), "{said}");
    let obstacles: Vec<_> = report["in_the_way"].as_array().unwrap().iter().collect();
    let [tls, sealed, pair] = &obstacles[..] else { panic!("{report}") };
    assert_eq!((&tls["count"], &tls["examples"]), (&1.into(), &serde_json::json!(["ep_tls"])));
    assert!(tls["undo"].as_str().unwrap().contains("--no-tls-ca"), "{tls}");
    assert_eq!((&sealed["count"], &sealed["examples"]), (&2.into(), &serde_json::json!(["ep_s1", "ep_s2"])));
    assert!(sealed["undo"].as_str().unwrap().starts_with("herald key unseal --yes"), "{sealed}");
    assert_eq!(
        (&pair["what"], &pair["examples"]),
        (&"endpoints signed by ed25519".into(), &serde_json::json!(["ep_pair"]))
    );

    // What undoes it does.
    let mut plain = registry.get(&id("ep_tls")).await.unwrap().unwrap();
    plain.tls = None;
    registry.update(plain, &mark("test")).await.unwrap();
    sealing.reseal(&Ring::default(), &mark("test"), false).await.unwrap();
    let (code, report, _) = rollback_to(&redis, &told("both", &one(1, r#","schemes":["standard","dojo","ed25519"]"#)));
    assert_eq!((code, &report["possible"], &report["in_the_way"]), (Some(0), &true.into(), &serde_json::json!([])));
    // A record of another schema is in the way of everything.
    let (code, report, _) =
        rollback_to(&redis, &told("record", r#"{"version":"0.0.1","schemas":{"endpoint":{"reads":[1]}}}"#));
    let what = report["in_the_way"].to_string();
    assert!(code == Some(1) && what.contains("record is of schema 1") && !what.contains("health"), "{report}");

    // To itself there is always a way back, but not past what nobody can read.
    let own = env!("CARGO_PKG_VERSION");
    assert_eq!(rollback_to(&redis, own).0, Some(0));
    redis.command::<()>(&["HSET", RegistryKeys::ENDPOINTS, "ep_s1", "no endpoint"]).await;
    let (code, report, _) = rollback_to(&redis, own);
    assert_eq!((code, &report["in_the_way"][0]["examples"][0]), (Some(1), &"ep_s1".into()), "{report}");
    let newer = raw(&redis, "ep_plain").await.replace("\"schema\":1", "\"schema\":7");
    redis.command::<()>(&["HSET", RegistryKeys::ENDPOINTS, "ep_plain", &newer]).await;
    let (_, report, _) = rollback_to(&redis, own);
    assert!(report["in_the_way"][0]["what"].as_str().unwrap().contains("newer than 2"), "{report}");

    for (version, says) in [("9.0.0", "newer than this Herald"), ("0.0.1", "which are 0.1.0"), ("", "no version")] {
        let (code, _, said) = rollback_to(&redis, version);
        assert!(code == Some(2) && said.contains(says), "{said}");
    }
    let (code, _, said) = rollback_to(&redis, &told("wrong", "{}"));
    assert!(code == Some(2) && said.contains("herald version -o json"), "{said}");
}

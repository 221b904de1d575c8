//! The registry over a failover that loses its last change, when another change gets the version of that one.

use super::*;

fn registry_slot() -> u16 {
    RegistryKeys::slot().number()
}

/// As its user, to whichever node serves it.
async fn registry(town: &Town) -> RegistryStore {
    let url = town.cluster.url_of_all().replace("://", "://herald:secret@");
    let redis = Redis::new(&url).unwrap();
    // The node that is asked first may still name one that is dead.
    until("the registry's node to be found", async || RegistryStore::connect(&redis).await.is_ok()).await;
    RegistryStore::connect(&redis).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_a_failover_has_lost_makes_room_for_one_with_its_version() {
    let mut town = Town::new().await;
    town.register_many(1).await;
    let dies = town.cluster.master_of(registry_slot()).await.unwrap();
    assert_ne!(Some(dies), town.cluster.master_of(slot()).await, "the test needs the two on different nodes");
    let herald = town.setup().await.start();
    herald.until_owner().await;
    // The node's clock was ahead, so versions are counted up whatever time it is.
    let ahead = "local last = redis.call('HGET', KEYS[1], 'version') redis.call('HSET', KEYS[1], 'version', 9999999999999) \
                 redis.call('XADD', KEYS[2], '9999999999999-0', 'after', last, 'kind', 'resume')";
    town.ask::<()>(dies, &["EVAL", ahead, "2", RegistryKeys::META, RegistryKeys::CHANGES]).await;
    let mut admin = town.connection(dies).await.unwrap();
    let confirmed: u64 = redis::cmd("WAIT").arg(1).arg(5_000).query_async(&mut admin).await.unwrap();
    assert_eq!(confirmed, 1);

    // Its replica hears of nothing from here on, and does not get in again.
    for words in [&["ACL", "SETUSER", "default", "off"][..], &["CLIENT", "KILL", "TYPE", "replica"]] {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async::<()>(&mut admin).await.unwrap();
    }
    let key = herald.folder().join("key");
    std::fs::write(&key, secret().reveal()).unwrap();
    let url = town.cluster.url_of_all().replace("://", "://herald:secret@");
    let lost = town.merchants.url("ep_lost");
    let words = ["endpoint", "create", "--id", "ep_lost", "--account", "acc_1", "--url", &lost, "--secret-file"];
    let said = town.verb(&url, &[&words[..], &[key.to_str().unwrap()]].concat());
    let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(6), "{stderr}");
    assert!(stderr.contains("warning: it is stored") && String::from_utf8_lossy(&said.stdout).contains("ep_lost"));
    let (known, _) = registry(&town).await.position().await.unwrap().unwrap();
    herald.until_metric(r#"herald_endpoints{state="enabled"}"#, |enabled| enabled == 2.0).await;

    // The worker looks at nothing until another change has the version that it has seen.
    herald.signal(nix::sys::signal::Signal::SIGSTOP);
    drop(admin);
    town.cluster.node(dies).kill().await.unwrap();
    until("another to serve the registry", async || {
        town.cluster.master_of(registry_slot()).await.is_some_and(|at| at != dies)
    })
    .await;
    let (id, of) = (EndpointId::new("ep_2").unwrap(), AccountId::new("acc_2").unwrap());
    let made = Endpoint::new(id, of, town.merchants.url("ep_2"), secret(), 1);
    let mut store = registry(&town).await;
    store.create(made, &mark()).await.unwrap();
    assert_eq!(store.get(&EndpointId::new("ep_lost").unwrap()).await.unwrap(), None);
    let (now, _) = store.position().await.unwrap().unwrap();
    assert_eq!((&now.id, now.last.version), (&known.id, known.last.version));
    assert_ne!(now.last.stamp, known.last.stamp);
    herald.signal(nix::sys::signal::Signal::SIGCONT);

    let events = [Event::new(1, "acc_1", "pi_1", "Captured"), Event::new(2, "acc_2", "pi_2", "Captured")];
    town.publish(&events, 1).await;
    town.merchants.until("the new endpoint to get its event", |log| log.delivered_to("ep_2") == 1).await;
    town.until_finished().await;
    assert_eq!(town.merchants.log().delivered_to("ep_lost"), 0, "it was never made");
    herald.until_log("Redis has lost changes of the registry").await;
    assert_eq!(herald.metric("herald_registry_taken_back_total"), 1.0);
    assert!(herald.stop().await.success());
}

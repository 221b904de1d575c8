//! What `herald doctor` finds at a Cluster, each caused for real.

use std::{fs, path::Path, process::Command};

use herald::{
    owned::MASTERS,
    store::{
        acl::{Role, rule},
        keys::PartitionKeys,
    },
};
use serde_json::Value;

use crate::{Town, json, slot, support::until, world::STREAM};

impl Town {
    /// What the doctor says of the Cluster, as this URL's user.
    fn findings(&self, url: &str) -> Vec<(String, String)> {
        let output = self.verb(url, &["doctor", "-o", "json"]);
        let said = json(&String::from_utf8_lossy(&output.stdout));
        let texts = |finding: &Value| {
            let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
            (text("subject"), format!("{} {} -> {}", text("level"), text("says"), text("remedy")))
        };
        said["findings"].as_array().unwrap().iter().map(texts).collect()
    }

    fn of_cluster(&self) -> Vec<String> {
        let findings = self.findings(&self.cluster.url_of_all());
        findings.into_iter().filter(|(subject, _)| subject == "cluster").map(|(_, says)| says).collect()
    }

    /// The only finding.
    fn found(&self, says: &str) {
        let found = self.of_cluster();
        assert!(found.len() == 1 && found[0].starts_with(says), "{says}: {found:#?}");
    }

    fn address(&self, node: usize) -> String {
        self.cluster.nodes()[node].address().to_string()
    }

    async fn set(&self, node: usize, name: &str, value: &str) {
        self.ask::<()>(node, &["CONFIG", "SET", name, value]).await;
    }

    /// Until the node that is asked first knows what happened.
    async fn until_found(&self, says: &str) {
        until(says, async || self.of_cluster().iter().any(|found| found.starts_with(says))).await;
    }
}

/// A library by which Redis' clock is seven seconds ahead. libfaketime does not go together with Redis' allocator.
fn clock_ahead(folder: &Path) -> String {
    const SOURCE: &str = r#"
        #include <sys/syscall.h>
        #include <sys/time.h>
        #include <unistd.h>
        int gettimeofday(struct timeval *restrict now, void *restrict zone) {
            long failed = syscall(SYS_gettimeofday, now, zone);
            now->tv_sec += 7;
            return (int)failed;
        }
    "#;
    let (source, library) = (folder.join("ahead.c"), folder.join("ahead.so"));
    fs::write(&source, SOURCE).unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(made.success());
    library.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_finds_what_is_wrong_with_a_cluster() {
    let mut town = Town::new().await;
    let home = town.cluster.master_of(slot()).await.unwrap();
    for node in 0..2 * MASTERS {
        town.set(node, "min-replicas-to-write", "1").await;
        let rule = rule(&PartitionKeys::new(STREAM).unwrap(), Role::Operator).replace(">PASSWORD", ">secret");
        town.ask::<()>(node, &rule.split(' ').collect::<Vec<_>>()).await;
    }
    town.found("ok 3 masters of 6 nodes serve every slot -> ");
    let findings = town.findings(&town.cluster.url_of_all());
    let (_, redis) = findings.iter().find(|(subject, _)| subject == "redis").unwrap();
    assert!(redis.contains(&format!(" at {}, up ", town.address(home))), "{redis}");

    // As the operator's user it sees all but the settings.
    let operator = town.findings(&town.cluster.url_of_all().replace("://", "://herald-operator:secret@"));
    let (_, cluster) = operator.iter().find(|(subject, _)| subject == "cluster").unwrap();
    assert!(cluster.starts_with("ok 3 masters of 6 nodes serve every slot; this user may not see"), "{operator:#?}");
    assert!(operator.iter().all(|(subject, _)| subject != "access"), "{operator:#?}");

    for (name, wrong, right, says) in [
        ("min-replicas-to-write", "0", "1", "warn min-replicas-to-write is 0, so a master that is cut off"),
        ("cluster-require-full-coverage", "yes", "no", "warn cluster-require-full-coverage is yes"),
        ("cluster-node-timeout", "60000", "1000", "warn cluster-node-timeout is longer than lease.ttl (5s): "),
    ] {
        town.set(home, name, wrong).await;
        town.found(says);
        assert!(town.of_cluster()[0].contains(&town.address(home)));
        town.set(home, name, right).await;
    }

    // A move that nobody goes on with, of a slot of Herald's and of another.
    for (slot, level) in [(slot(), "fail"), (0, "warn")] {
        let from = town.cluster.master_of(slot).await.unwrap();
        let target: String = town.ask((from + 1) % MASTERS, &["CLUSTER", "MYID"]).await;
        let number = slot.to_string();
        town.ask::<()>(from, &["CLUSTER", "SETSLOT", &number, "MIGRATING", &target]).await;
        town.found(&format!("{level} slot {slot} is on its way from {} to ", town.address(from)));
        town.ask::<()>(from, &["CLUSTER", "SETSLOT", &number, "STABLE"]).await;
    }

    // Of another master than Herald's.
    let replica = (home + 1) % MASTERS + MASTERS;
    let folder = tempfile::tempdir().unwrap();
    let library = clock_ahead(folder.path());
    town.cluster.node(replica).kill().await.unwrap();
    town.cluster.node(replica).set_environment(&[("LD_PRELOAD", &library)]);
    town.cluster.node(replica).start_again().await.unwrap();
    let address = town.address(replica);
    town.until_found(&format!("warn the clock of {address} is ")).await;
    assert!(town.of_cluster().iter().any(|found| found.contains(" ahead of that of ")));

    // Two masters of three still agree that it is gone.
    town.cluster.node(home + MASTERS).kill().await.unwrap();
    let address = town.address(home);
    town.until_found(&format!("warn masters without a replica, whose slots nobody serves once they die: {address}"))
        .await;
    town.cluster.node(home).kill().await.unwrap();
    town.until_found("fail no node serves slots ").await;
    let findings = town.findings(&town.cluster.url_of_all());
    assert!(findings.iter().any(|(_, says)| says.contains(": Herald's work stands still -> ")), "{findings:#?}");
}

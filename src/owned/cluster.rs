//! A Redis Cluster of one's own: three masters with a replica each, in scratch folders, on free ports of this machine. It ends with
//! its owner and leaves no file.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use tokio::time::{sleep, timeout};

use super::{Directive, OwnRedis, POLL, free_port};

pub const MASTERS: usize = 3;
const NODES: usize = 2 * MASTERS;
const SLOTS: usize = 16_384;

/// The nodes find each other, and the replicas their masters, within two seconds; on a slow machine, within this.
const FORM: Duration = Duration::from_secs(60);

/// Somebody may take one of a node's two ports between its choice and its use.
const TRIES: usize = 3;

/// As one for Herald: a failed master is replaced within seconds, and meanwhile the others serve what is theirs.
const DIRECTIVES: [Directive; 5] = [
    ("cluster-enabled", "yes"),
    ("cluster-node-timeout", "1000"),
    ("cluster-require-full-coverage", "no"),
    // A replica is filled at once, and may become a master however long it was alone.
    ("repl-diskless-sync-delay", "0"),
    ("cluster-replica-validity-factor", "0"),
];

pub struct OwnCluster {
    /// At first the masters, with two ranges of slots each, then a replica of each, in their order. Those of Herald's usual stream
    /// and of its registry lie on different ones.
    nodes: Vec<OwnRedis>,
}

impl OwnCluster {
    /// With append-only files.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// These directives come last, so they hold.
    pub async fn start_with(directives: &[Directive]) -> Result<Self> {
        let cluster = Self { nodes: try_join_all((0..NODES).map(|_| start_node(directives))).await? };
        timeout(FORM, cluster.form()).await.context("the scratch Redis Cluster did not form in time")??;
        Ok(cluster)
    }

    /// Whose nodes speak TLS to each other, and at a port of their own to clients, who are asked for a certificate. All have this one,
    /// which is for `127.0.0.1`.
    pub async fn start_encrypted(
        authority: &'static str,
        certificate: &'static str,
        key: &'static str,
    ) -> Result<Self> {
        Self::start_with(&[
            ("tls-ca-cert-file", authority),
            ("tls-cert-file", certificate),
            ("tls-key-file", key),
            ("tls-cluster", "yes"),
            ("tls-replication", "yes"),
        ])
        .await
    }

    /// That names all nodes by their ports for TLS.
    pub async fn encrypted_url(&self) -> Result<String> {
        let ports = try_join_all(self.nodes.iter().map(|node| config(node, "tls-port"))).await?;
        let addresses: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        Ok(format!("rediss+cluster://{}", addresses.join(",")))
    }

    /// Of the first node, which leads to all while it is there.
    pub fn url(&self) -> String {
        self.nodes[0].url()
    }

    /// That names all nodes, so that any may be gone.
    pub fn url_of_all(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        format!("redis+cluster://{}", addresses.join(","))
    }

    pub fn nodes(&self) -> &[OwnRedis] {
        &self.nodes
    }

    pub fn node(&mut self, number: usize) -> &mut OwnRedis {
        &mut self.nodes[number]
    }

    /// The number of the node that serves this slot, as most nodes say that can be asked.
    pub async fn master_of(&self, slot: u16) -> Option<usize> {
        let mut votes = [0usize; NODES];
        for node in &self.nodes {
            let lines = node.say("CLUSTER NODES").await.unwrap_or_default();
            if let Some(number) = self.master_in(&lines, slot) {
                votes[number] += 1;
            }
        }
        let (number, most) = votes.iter().enumerate().max_by_key(|(_, votes)| **votes)?;
        (*most > 0).then_some(number)
    }

    /// Those that serve something, as the first node says that can be asked.
    pub async fn masters(&self) -> Vec<usize> {
        for node in &self.nodes {
            let Ok(lines) = node.say("CLUSTER NODES").await else { continue };
            let serving = lines.lines().filter(|line| line.split(' ').nth(8).is_some());
            return serving.filter_map(|line| self.named_in(line)).collect();
        }
        Vec::new()
    }

    /// Moves a slot to another node with all that is in it, key by key, as `redis-cli --cluster reshard` does.
    pub async fn move_slot(&self, slot: u16, from: usize, to: usize) -> Result<()> {
        /// Keys in one step.
        const KEYS: usize = 50;
        let [source, target] = [&self.nodes[from], &self.nodes[to]];
        let [source_id, target_id] = [my_id(source).await?, my_id(target).await?];
        target.order(&format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}")).await?;
        source.order(&format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}")).await?;
        loop {
            let said = source.say(&format!("CLUSTER GETKEYSINSLOT {slot} {KEYS}")).await?;
            let keys: Vec<&str> = said.lines().filter(|line| !line.starts_with(['*', '$'])).collect();
            if keys.is_empty() {
                break;
            }
            let port = target.address().port();
            let moved = source.say(&format!("MIGRATE 127.0.0.1 {port} \"\" 0 5000 KEYS {}", keys.join(" "))).await?;
            // Some may have gone by themselves.
            ensure!(
                moved.starts_with("+OK") || moved.starts_with("+NOKEY"),
                "cannot move keys of slot {slot}: {moved}"
            );
        }
        target.order(&format!("CLUSTER SETSLOT {slot} NODE {target_id}")).await?;
        source.order(&format!("CLUSTER SETSLOT {slot} NODE {target_id}")).await
    }

    /// Returns when every node is there, and every replica has all that its master has.
    pub async fn until_whole(&self) -> Result<()> {
        while !self.is_whole().await {
            sleep(POLL).await;
        }
        Ok(())
    }

    async fn is_whole(&self) -> bool {
        let mut replicas = 0;
        for node in &self.nodes {
            let Ok(said) = node.say("INFO replication").await else { return false };
            let says = |line: &str| said.lines().any(|said| said == line);
            // One that has been replaced believes for a moment that it is a master: then too few follow one.
            replicas += usize::from(says("role:slave") && says("master_link_status:up"));
            let state = node.say("CLUSTER INFO").await.unwrap_or_default();
            if !state.lines().any(|line| line == "cluster_state:ok") {
                return false;
            }
        }
        replicas == NODES - MASTERS
    }

    /// `ID IP:PORT@BUS FLAGS MASTER PING PONG EPOCH LINK SLOTS…`
    fn master_in(&self, lines: &str, slot: u16) -> Option<usize> {
        let serves = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse::<u16>().ok()? <= slot && slot <= last.parse().ok()?)
        };
        let line = lines.lines().find(|line| line.split(' ').skip(8).any(|range| serves(range).unwrap_or(false)))?;
        self.named_in(line)
    }

    fn named_in(&self, line: &str) -> Option<usize> {
        let address = line.split(' ').nth(1)?.split('@').next()?;
        self.nodes.iter().position(|node| node.address().to_string() == address)
    }

    async fn form(&self) -> Result<()> {
        let (masters, replicas) = self.nodes.split_at(MASTERS);
        for (number, node) in masters.iter().enumerate() {
            let range = |part: usize| format!("{} {}", part * SLOTS / NODES, (part + 1) * SLOTS / NODES - 1);
            node.order(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1)).await?;
            node.order(&format!("CLUSTER ADDSLOTSRANGE {} {}", range(number), range(number + MASTERS))).await?;
        }
        for node in &self.nodes[1..] {
            let bus = config(node, "cluster-port").await?;
            self.nodes[0].order(&format!("CLUSTER MEET 127.0.0.1 {} {bus}", node.address().port())).await?;
        }
        self.all_say("CLUSTER INFO", &[&format!("cluster_known_nodes:{NODES}"), "cluster_state:ok"]).await?;
        for (master, replica) in masters.iter().zip(replicas) {
            let id = my_id(master).await?;
            replica.order(&format!("CLUSTER REPLICATE {id}")).await?;
        }
        for replica in replicas {
            replica.until_says("INFO replication", &["role:slave", "master_link_status:up"]).await?;
        }
        // Everyone knows who follows whom.
        for node in &self.nodes {
            while node.say("CLUSTER NODES").await?.matches("slave ").count() != replicas.len() {
                sleep(POLL).await;
            }
        }
        self.all_say("CLUSTER INFO", &["cluster_state:ok"]).await
    }

    async fn all_say(&self, question: &str, lines: &[&str]) -> Result<()> {
        for node in &self.nodes {
            node.until_says(question, lines).await?;
        }
        Ok(())
    }
}

async fn start_node(directives: &[Directive]) -> Result<OwnRedis> {
    let mut failed = None;
    for _ in 0..TRIES {
        let port = |name: &str| anyhow::Ok((name.to_owned(), free_port()?.to_string()));
        let is_encrypted = directives.iter().any(|(name, _)| *name == "tls-cluster");
        let ports = [Some(port("cluster-port")?), is_encrypted.then(|| port("tls-port")).transpose()?];
        let own = DIRECTIVES.iter().chain(directives).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        match OwnRedis::start_as(own.chain(ports.into_iter().flatten()).collect()).await {
            Ok(node) => return Ok(node),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error.context("cannot start a node of a scratch Redis Cluster")),
        None => bail!("no port was tried"),
    }
}

async fn my_id(node: &OwnRedis) -> Result<String> {
    let said = node.say("CLUSTER MYID").await?;
    Ok(said.lines().nth(1).context("a node has no id")?.to_owned())
}

async fn config(node: &OwnRedis, name: &str) -> Result<String> {
    let said = node.say(&format!("CONFIG GET {name}")).await?;
    Ok(said.lines().nth(4).context("a node does not know its own settings")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::partition::Slot;

    #[tokio::test]
    async fn its_slots_are_covered_and_a_replica_takes_over() {
        let mut cluster = OwnCluster::start().await.unwrap();
        let folders: Vec<_> = cluster.nodes().iter().map(|node| node.folder().to_owned()).collect();
        for (slot, number) in [(0, 0), (2729, 0), (2730, 1), (5460, 1), (5461, 2), (8192, 0), (16_383, 2)] {
            assert_eq!(cluster.master_of(slot).await, Some(number), "{slot}");
        }
        cluster.node(1).kill().await.unwrap();
        while cluster.master_of(3673).await != Some(4) {
            sleep(POLL).await;
        }
        assert!(!cluster.is_whole().await);
        cluster.node(1).start_again().await.unwrap();
        cluster.until_whole().await.unwrap();
        cluster.nodes()[1].until_says("INFO replication", &["role:slave"]).await.unwrap();
        let mut masters = cluster.masters().await;
        masters.sort_unstable();
        assert_eq!(masters, [0, 2, 4]);
        // What is in a slot goes with it.
        let slot = Slot::of_key(b"a{b}").number();
        let from = cluster.master_of(slot).await.unwrap();
        let to = masters.into_iter().find(|node| *node != from).unwrap();
        for number in 0..120 {
            cluster.nodes()[from].order(&format!("SET a{number}{{b}} {number}")).await.unwrap();
        }
        cluster.move_slot(slot, from, to).await.unwrap();
        while cluster.master_of(slot).await != Some(to) {
            sleep(POLL).await;
        }
        assert!(cluster.nodes()[to].say("GET a77{b}").await.unwrap().ends_with("\r\n77\r\n"));
        assert!(cluster.nodes()[from].say("GET a77{b}").await.unwrap().starts_with("-MOVED"));
        drop(cluster);
        assert!(folders.iter().all(|folder| !folder.exists()));
    }
}

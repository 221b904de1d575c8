//! A Redis of one's own that sentinels watch: a master with two replicas and three sentinels, in scratch folders, on free ports of
//! this machine. It ends with its owner and leaves no file.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use tokio::time::timeout;

use super::{Directive, OwnRedis};

/// How the sentinels call the master.
pub const MASTER: &str = "payments";

const SERVERS: usize = 3;
const SENTINELS: usize = 3;

/// They find each other within two seconds; on a slow machine, within this.
const FORM: Duration = Duration::from_secs(60);

/// A replica is filled at once.
const DIRECTIVES: [Directive; 1] = [("repl-diskless-sync-delay", "0")];

pub struct OwnSentinels {
    /// At first the master, then its replicas.
    servers: Vec<OwnRedis>,
    sentinels: Vec<OwnRedis>,
}

impl OwnSentinels {
    /// With append-only files.
    pub async fn start() -> Result<Self> {
        let servers = try_join_all((0..SERVERS).map(|_| OwnRedis::start_with(&DIRECTIVES))).await?;
        let port = servers[0].address().port();
        let form = async {
            for replica in &servers[1..] {
                replica.order(&format!("REPLICAOF 127.0.0.1 {port}")).await?;
            }
            // Sentinels that find them at their first look need not wait for the next.
            for replica in &servers[1..] {
                replica.until_says("INFO replication", &["role:slave", "master_link_status:up"]).await?;
            }
            // A dead master is replaced within seconds, and soon again should a first try fail.
            let settings = format!(
                "sentinel monitor {MASTER} 127.0.0.1 {port} 2\nsentinel down-after-milliseconds {MASTER} 1000\n\
                 sentinel failover-timeout {MASTER} 5000\n"
            );
            let sentinels = try_join_all((0..SENTINELS).map(|_| OwnRedis::start_sentinel(&settings))).await?;
            let others = SERVERS - 1;
            let all = format!(
                "master0:name={MASTER},status=ok,address=127.0.0.1:{port},slaves={others},sentinels={SENTINELS}"
            );
            for sentinel in &sentinels {
                sentinel.until_says("INFO sentinel", &[&all]).await?;
            }
            anyhow::Ok(sentinels)
        };
        let sentinels =
            timeout(FORM, form).await.context("the scratch sentinels did not find each other in time")??;
        Ok(Self { servers, sentinels })
    }

    /// That names all sentinels and the master.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.sentinels.iter().map(|sentinel| sentinel.address().to_string()).collect();
        format!("redis+sentinel://{}/{MASTER}", addresses.join(","))
    }

    pub fn servers(&self) -> &[OwnRedis] {
        &self.servers
    }

    pub fn server(&mut self, number: usize) -> &mut OwnRedis {
        &mut self.servers[number]
    }

    pub fn sentinels(&self) -> &[OwnRedis] {
        &self.sentinels
    }

    pub fn sentinel(&mut self, number: usize) -> &mut OwnRedis {
        &mut self.sentinels[number]
    }

    /// The number of the server that most sentinels call the master.
    pub async fn master(&self) -> Option<usize> {
        let mut votes = [0usize; SERVERS];
        for sentinel in &self.sentinels {
            let said = sentinel.say(&format!("SENTINEL GET-MASTER-ADDR-BY-NAME {MASTER}")).await.unwrap_or_default();
            let port = said.lines().nth(4).and_then(|port| port.parse().ok());
            if let Some(number) = self.servers.iter().position(|server| Some(server.address().port()) == port) {
                votes[number] += 1;
            }
        }
        votes.iter().position(|votes| *votes > SENTINELS / 2)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::{super::POLL, *};

    #[tokio::test]
    async fn a_replica_takes_over_and_the_old_master_comes_back_as_one() {
        let mut own = OwnSentinels::start().await.unwrap();
        let all = own.servers().iter().chain(own.sentinels());
        let folders: Vec<_> = all.map(|one| one.folder().to_owned()).collect();
        assert_eq!(own.master().await, Some(0));
        own.server(0).kill().await.unwrap();
        while own.master().await.is_none_or(|number| number == 0) {
            sleep(POLL).await;
        }
        own.server(0).start_again().await.unwrap();
        own.servers()[0].until_says("INFO replication", &["role:slave"]).await.unwrap();
        drop(own);
        assert!(folders.iter().all(|folder| !folder.exists()));
    }
}

//! The Redis of the house: one server, or a Cluster. Does to it what a fault asks for.

use std::time::Instant;

use anyhow::{Result, bail};
use tokio::time::timeout;

use super::{End, Hit, PATIENCE};
use crate::{
    clock,
    facts::partition::Slot,
    owned::{Directive, OwnCluster, OwnRedis, Usage},
};

#[allow(clippy::large_enum_variant, reason = "there is one of it")]
pub enum Servers {
    /// With the use of the processes that were killed.
    One {
        redis: OwnRedis,
        ended: Usage,
    },
    Cluster {
        cluster: OwnCluster,
        ended: Usage,
    },
}

impl Servers {
    pub async fn start(is_cluster: bool, directives: &[Directive]) -> Result<Self> {
        let ended = Usage::default();
        Ok(match is_cluster {
            true => Self::Cluster { cluster: OwnCluster::start_with(directives).await?, ended },
            false => Self::One { redis: OwnRedis::start_with(directives).await?, ended },
        })
    }

    /// Of a Cluster all nodes, so that any may be gone.
    pub fn url(&self) -> String {
        match self {
            Self::One { redis, .. } => redis.url(),
            Self::Cluster { cluster, .. } => cluster.url_of_all(),
        }
    }

    pub fn check(&mut self) -> Result<()> {
        match self {
            Self::One { redis, .. } => redis.check(),
            Self::Cluster { cluster, .. } => (0..cluster.nodes().len()).try_for_each(|node| cluster.node(node).check()),
        }
    }

    /// Of all its processes together, those that have ended as well.
    pub fn usage(&self) -> Usage {
        match self {
            Self::One { redis, ended } => both(*ended, redis.usage()),
            Self::Cluster { cluster, ended } => {
                let mut sum = Usage::default();
                for used in cluster.nodes().iter().map(OwnRedis::usage) {
                    sum.cpu += used.cpu;
                    sum.peak_rss_bytes += used.peak_rss_bytes;
                }
                both(*ended, sum)
            }
        }
    }

    /// `kill -9` of the only server, and its start at the end.
    pub async fn restart(&mut self, end: &End) -> Result<Hit> {
        let Self::One { redis, ended } = self else { bail!("a Cluster has no one server to start again") };
        let now = clock::now();
        *ended = both(*ended, redis.usage());
        redis.kill().await?;
        end.come().await;
        redis.start_again().await?;
        Ok(Some(now))
    }

    /// `kill -9` of the slot's master; it is over when the one that was killed follows the one in its place.
    pub async fn fail_over(&mut self, slot: Slot, end: &End) -> Result<Hit> {
        let Some((cluster, master, ended)) = self.master_of(slot).await? else { return Ok(None) };
        let now = clock::now();
        *ended = both(*ended, cluster.nodes()[master].usage());
        cluster.node(master).kill().await?;
        end.come().await;
        cluster.node(master).start_again().await?;
        until_whole(cluster, now).await
    }

    /// SIGSTOP of the slot's master until the end; it is over when all follow whoever is the master by then.
    pub async fn partition_node(&mut self, slot: Slot, end: &End) -> Result<Hit> {
        let Some((cluster, master, _)) = self.master_of(slot).await? else { return Ok(None) };
        let now = clock::now();
        cluster.node(master).pause()?;
        end.come().await;
        cluster.node(master).resume()?;
        until_whole(cluster, now).await
    }

    /// To the next of the other masters.
    pub async fn migrate(&mut self, slot: Slot) -> Result<Hit> {
        let Some((cluster, from, _)) = self.master_of(slot).await? else { return Ok(None) };
        let masters = cluster.masters().await;
        let others = masters.iter().filter(|master| **master != from);
        let Some(to) = others.clone().find(|master| **master > from).or(others.min()).copied() else { return Ok(None) };
        let now = clock::now();
        cluster.move_slot(slot.number(), from, to).await?;
        until_whole(cluster, now).await
    }

    async fn master_of(&mut self, slot: Slot) -> Result<Option<(&mut OwnCluster, usize, &mut Usage)>> {
        let Self::Cluster { cluster, ended } = self else { bail!("one server has no master that could be replaced") };
        let master = cluster.master_of(slot.number()).await;
        Ok(master.map(|master| (cluster, master, ended)))
    }
}

/// Before that, the next fault could take away the only one that has everything.
async fn until_whole(cluster: &OwnCluster, began: Instant) -> Result<Hit> {
    match timeout(PATIENCE, cluster.until_whole()).await {
        Ok(whole) => whole.map(|()| Some(began)),
        Err(_) => bail!("the Cluster did not become whole again"),
    }
}

/// The sum over processes that followed each other.
fn both(before: Usage, now: Usage) -> Usage {
    Usage { cpu: before.cpu + now.cpu, peak_rss_bytes: before.peak_rss_bytes.max(now.peak_rss_bytes) }
}

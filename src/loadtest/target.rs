//! Whose machine the load goes to. It goes to this one, or to a host that the user has named as their own; this is
//! judged by the addresses that a name leads to, not by how it is spelt.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Error, Result};
use tokio::{net::lookup_host, time::sleep};
use url::Url;

use crate::{
    app::host_name,
    clock,
    config::{RedisUrl, redis_places},
    store::{
        connection::{Purpose, Redis},
        keys::PartitionKeys,
        queries::Queries,
    },
    surface::VerbError,
};

/// An error unless every address of the host is this machine's, or the host is one of `owned`.
pub async fn check(what: &str, host: &str, owned: &[String]) -> Result<()> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if owned.iter().any(|named| is_same(named, host)) {
        return Ok(());
    }
    let found = lookup_host((host, 0)).await;
    let addresses: Vec<IpAddr> =
        found.with_context(|| format!("cannot resolve {what} {host}"))?.map(|a| a.ip()).collect();
    match addresses.iter().find(|address| !address.to_canonical().is_loopback()) {
        None if !addresses.is_empty() => Ok(()),
        elsewhere => {
            let leads = elsewhere.map(|address| format!(" ({address})")).unwrap_or_default();
            Err(VerbError::Refused(format!(
                "{what} {host}{leads} is not this machine: a load test goes to other machines only with \
                 --i-own-this-target {host}"
            ))
            .into())
        }
    }
}

/// The hosts that lead to a Redis; a socket is on this machine.
pub async fn check_redis(url: &RedisUrl, owned: &[String]) -> Result<()> {
    for node in redis_places(url.reveal()).map_err(Error::msg)?.nodes {
        let node = Url::parse(&node).context("the URL of Redis cannot be read")?;
        if let Some(host) = node.host_str().filter(|_| matches!(node.scheme(), "redis" | "rediss")) {
            check("Redis at", host, owned).await?;
        }
    }
    Ok(())
}

/// A worker that has seen its first endpoint takes the partition at once; if another one has ended, it waits for the
/// lease.
const OWNER_PATIENCE: Duration = Duration::from_secs(15);

/// Some worker must take what is sent, on a machine that load may go to: a port of this machine may be forwarded from
/// elsewhere. Call it when the endpoints are there: without any there is no owner.
pub async fn check_owner(redis: &Redis, keys: &PartitionKeys, owned: &[String]) -> Result<()> {
    let mut queries = Queries::new(redis.connect(Purpose::Other).await?, keys.clone());
    let deadline = clock::now() + OWNER_PATIENCE;
    let owner = loop {
        if let Some(lease) = queries.lease().await? {
            break lease.owner;
        }
        if clock::now() > deadline {
            return Err(VerbError::Unanswered(format!(
                "no worker owns {} at {}: start `herald serve` there, or name its stream with --stream",
                keys.stream(),
                redis.address()
            ))
            .into());
        }
        sleep(Duration::from_millis(50)).await;
    };
    may_load(&owner, &host_name(), owned)
}

/// The owner's name begins with that of its machine.
fn may_load(owner: &str, here: &str, owned: &[String]) -> Result<()> {
    let host = owner.split('/').next().unwrap_or(owner);
    if host == here || owned.iter().any(|named| is_same(named, host)) {
        return Ok(());
    }
    Err(VerbError::Refused(format!(
        "the worker behind this Redis runs on {host}, which is not this machine ({here}): a load test goes to other \
         machines only with --i-own-this-target {host}"
    ))
    .into())
}

fn is_same(named: &str, host: &str) -> bool {
    let bare = |text: &str| text.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    bare(named) == bare(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(host: &str, owned: &[&str]) -> bool {
        let owned: Vec<String> = owned.iter().map(|&host| host.to_owned()).collect();
        check("Redis at", host, &owned).await.is_err()
    }

    #[test]
    fn a_worker_of_another_machine_gets_load_only_from_its_owner() {
        assert!(may_load("here/17", "here", &[]).is_ok());
        assert!(may_load("there/17", "here", &[]).unwrap_err().to_string().contains("--i-own-this-target there"));
        assert!(may_load("there/17", "here", &["There".to_owned()]).is_ok());
        assert!(may_load("there/17", "here", &["elsewhere".to_owned()]).is_err());
    }

    #[tokio::test]
    async fn only_this_machine_and_what_is_owned_get_load() {
        for host in ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]", "::ffff:127.0.0.1"] {
            assert!(!refused(host, &[]).await, "{host}");
        }
        for host in ["10.0.0.1", "192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "0.0.0.0", "169.254.169.254"] {
            assert!(refused(host, &[]).await, "{host}");
            assert!(refused(host, &["192.0.2.99"]).await, "{host}");
            assert!(!refused(host, &[host]).await, "{host}");
        }
        assert!(!refused("staging.example.", &["Staging.Example"]).await);
    }
}

//! Owns what sentinels are asked: where the master is. Never believes that it is one: whoever connects to it asks it itself.
//!
//! The name and the password of the URL are Redis'. A sentinel is asked without them, and with them only if it wants to know who asks,
//! so sentinels have no password, or the same user as Redis.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use redis::Value;
use tokio::time::timeout;

use super::{
    connection::{Purpose, Redis, config},
    error::StoreError,
    topology::{LOOK_TIMEOUT, Node, SlotMap},
};

const ASKED: &str = "ask a sentinel for the master";

/// What one of them says.
struct Named {
    master: Node,
    replicas: Vec<Node>,
    /// The larger one is of the later failover.
    epoch: u64,
}

/// Asks all of them at once. While a failover spreads, the newest of their answers is right, however few give it.
pub(super) async fn find(redis: &Redis, sentinels: &[Node], name: &str) -> Result<SlotMap, StoreError> {
    let (stranger, user) = (redis.as_stranger()?, redis.without_database()?);
    let ask = async |sentinel: &Node| {
        let asked = timeout(LOOK_TIMEOUT, ask(&stranger, &user, sentinel, name)).await;
        asked.unwrap_or_else(|_| Err(StoreError::late(ASKED)))
    };
    judge(name, join_all(sentinels.iter().map(ask)).await)
}

fn judge(name: &str, answers: Vec<Result<Option<Named>, StoreError>>) -> Result<SlotMap, StoreError> {
    let (mut newest, mut is_unknown, mut failed): (Option<Named>, bool, _) = (None, false, None);
    for answer in answers {
        match answer {
            Ok(Some(named)) if newest.as_ref().is_none_or(|newest| named.epoch > newest.epoch) => newest = Some(named),
            Ok(Some(_)) => {}
            Ok(None) => is_unknown = true,
            Err(error) => failed = Some(error),
        }
    }
    let subject = format!("find the master {name}");
    let (cause, remedy) = match (newest, is_unknown, failed) {
        (Some(named), ..) => return Ok(SlotMap::of_one(named.master, named.replicas)),
        (None, true, _) => (
            "no sentinel knows a master of this name".to_owned(),
            "put the name from `sentinel monitor` into redis.url",
        ),
        (None, false, Some(StoreError::Denied { cause, .. })) => (
            format!("a sentinel denies it: {cause}"),
            "give the sentinels no password, or the user and password that redis.url has for Redis",
        ),
        (None, false, Some(error)) => (
            format!("no sentinel says where it is; the last: {error}"),
            "see that sentinels run where redis.url says, at 26379 if it names no port",
        ),
        (None, false, None) => ("no sentinel was named".to_owned(), "name them in redis.url"),
    };
    Err(StoreError::Unavailable { subject, cause, remedy })
}

async fn ask(stranger: &Redis, user: &Redis, sentinel: &Node, name: &str) -> Result<Option<Named>, StoreError> {
    match ask_as(stranger, sentinel, name).await {
        Err(StoreError::Denied { .. }) => ask_as(user, sentinel, name).await,
        said => said,
    }
}

async fn ask_as(redis: &Redis, sentinel: &Node, name: &str) -> Result<Option<Named>, StoreError> {
    let mut wire = redis.open(Some(sentinel), None, config(Purpose::Other)).await?;
    let address: Value = wire.ask(ASKED, redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name)).await?;
    let (host, port): (String, u16) = match address {
        Value::Nil => return Ok(None),
        address => redis::from_redis_value(address).map_err(|error| StoreError::unexpected(ASKED, error))?,
    };
    let about: BTreeMap<String, String> = wire.ask(ASKED, redis::cmd("SENTINEL").arg("MASTER").arg(name)).await?;
    let epoch = about.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    let replicas: Vec<BTreeMap<String, String>> =
        wire.ask(ASKED, redis::cmd("SENTINEL").arg("REPLICAS").arg(name)).await?;
    let node = |about: &BTreeMap<String, String>| {
        Some(Node { host: about.get("ip")?.clone(), port: about.get("port")?.parse().ok()? })
    };
    Ok(Some(Named { master: Node { host, port }, replicas: replicas.iter().filter_map(node).collect(), epoch }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(host: &str, epoch: u64) -> Result<Option<Named>, StoreError> {
        Ok(Some(Named { master: Node { host: host.to_owned(), port: 1 }, replicas: Vec::new(), epoch }))
    }

    fn away() -> Result<Option<Named>, StoreError> {
        Err(StoreError::away(ASKED, "refused"))
    }

    fn denied() -> Result<Option<Named>, StoreError> {
        Err(StoreError::Denied { subject: ASKED.to_owned(), cause: "NOAUTH".to_owned() })
    }

    #[test]
    fn the_newest_answer_is_right_however_few_give_it() {
        let host = |answers| judge("m", answers).unwrap().nodes()[0].host.clone();
        assert_eq!(host(vec![named("old", 4), named("new", 5), named("old", 4)]), "new");
        assert_eq!(host(vec![named("new", 10), named("old", 9)]), "new");
        assert_eq!(host(vec![away(), Ok(None), denied(), named("only", 0)]), "only");
    }

    #[test]
    fn why_there_is_no_master_is_told_apart() {
        for (answers, says) in [
            (
                vec![away(), away()],
                "cannot find the master m: Redis is unavailable (no sentinel says where it is; the last: ",
            ),
            (vec![away(), Ok(None), away()], "no sentinel knows a master of this name"),
            (vec![away(), denied()], "give the sentinels no password, or the user"),
            (vec![], "no sentinel was named"),
        ] {
            let error = judge("m", answers).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}

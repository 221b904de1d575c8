//! Owns a look at the nodes of a Cluster: what is served, what is on its way, and how each node is set up. Changes nothing and
//! judges nothing.

use std::collections::{BTreeMap, HashMap};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{
    connection::{Purpose, Redis, Wire, config},
    error::StoreError,
    topology::{Kind, LOOK_TIMEOUT, Node},
};
use crate::{clock, facts::partition::SLOTS};

const SUBJECT: &str = "look at the nodes of the Redis Cluster";

/// What the nodes say of each other and of themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterLook {
    /// First and last slot of each part that nobody serves.
    pub unserved: Vec<(u16, u16)>,
    /// Those that are there.
    pub nodes: Vec<NodeLook>,
    /// Why some of them did not say how they are set up.
    pub silent: Vec<String>,
    /// The slots that Herald works in.
    pub ours: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeLook {
    pub address: String,
    /// Of a master that serves something: its replicas that are there.
    pub replicas: Option<usize>,
    /// Its clock is so many milliseconds ahead of this machine's, give or take half of `within_ms`.
    pub ahead_ms: i64,
    pub within_ms: u64,
    /// Slots that it is handing over, and to which node.
    pub leaving: Vec<(u16, String)>,
    /// Whether a master stops taking writes when too few replicas follow it.
    pub wants_replicas: bool,
    /// The following two are seen only by users who may read settings.
    pub full_coverage: Option<bool>,
    pub timeout_ms: Option<u64>,
}

/// A line of `CLUSTER NODES`: `ID IP:PORT@BUS,NAME FLAGS MASTER PING PONG EPOCH LINK SLOTS…`.
struct Line<'a> {
    id: &'a str,
    /// By its address, and by its name if it has one.
    places: Vec<Node>,
    flags: Vec<&'a str>,
    master: &'a str,
    slots: Vec<&'a str>,
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let [id, place, flags, master, _, _, _, _, slots @ ..] = &line.split(' ').collect::<Vec<_>>()[..] else {
            return None;
        };
        let (address, name) = place.split_once(',').unwrap_or((place, ""));
        let (host, port) = address.split('@').next()?.rsplit_once(':')?;
        let port = port.parse().ok()?;
        let hosts = [host, name.split(',').next()?].into_iter().filter(|host| !host.is_empty());
        let places = hosts.map(|host| Node { host: host.to_owned(), port }).collect();
        Some(Self { id, places, flags: flags.split(',').collect(), master, slots: slots.to_vec() })
    }

    fn is(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// As most nodes see it. One that is only suspected is there.
    fn is_there(&self) -> bool {
        !["fail", "noaddr", "handshake"].into_iter().any(|flag| self.is(flag))
    }

    /// First and last of each part.
    fn served(&self) -> impl Iterator<Item = (u16, u16)> {
        self.slots.iter().filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some((first.parse().ok()?, last.parse().ok()?))
        })
    }

    /// `[SLOT->-ID]`
    fn leaving(&self) -> impl Iterator<Item = (u16, &'a str)> {
        self.slots.iter().filter_map(|range| {
            let (slot, id) = range.strip_prefix('[')?.strip_suffix(']')?.split_once("->-")?;
            Some((slot.parse().ok()?, id))
        })
    }
}

fn lines(text: &str) -> Vec<Line<'_>> {
    text.lines().filter_map(Line::read).collect()
}

fn unserved(lines: &[Line<'_>]) -> Vec<(u16, u16)> {
    let there = lines.iter().filter(|line| line.is("master") && line.is_there());
    let mut served: Vec<(u16, u16)> = there.flat_map(Line::served).collect();
    served.sort_unstable();
    let (mut holes, mut next) = (Vec::new(), 0);
    for (first, last) in served {
        if first > next {
            holes.push((next, first - 1));
        }
        next = next.max(last.saturating_add(1));
    }
    if next < SLOTS {
        holes.push((next, SLOTS - 1));
    }
    holes
}

impl Redis {
    /// None where it is no Cluster, or where nobody has found out yet what it is.
    pub async fn look_at_nodes(&self) -> Option<Result<ClusterLook, StoreError>> {
        (self.topology().kind() == Kind::Cluster).then_some(())?;
        Some(self.look_at_cluster().await)
    }

    async fn look_at_cluster(&self) -> Result<ClusterLook, StoreError> {
        let known = self.topology().map(self).await?;
        let mut failed = StoreError::away(SUBJECT, "none is known");
        for node in known.nodes() {
            match within(async { nodes(&mut self.of_node(node).await?).await }).await {
                Ok(text) => return Ok(self.look_at_all(known.nodes(), &text).await),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn look_at_all(&self, known: &[Node], text: &str) -> ClusterLook {
        let lines = lines(text);
        let names: HashMap<&str, String> =
            lines.iter().filter_map(|line| Some((line.id, line.places.first()?.to_string()))).collect();
        let mut look = ClusterLook { unserved: unserved(&lines), ours: self.own_slots(), ..ClusterLook::default() };
        let there: Vec<_> = lines.iter().filter(|line| line.is_there() && !line.places.is_empty()).collect();
        let replicas_of = |id: &str| there.iter().filter(|line| line.is("slave") && line.master == id).count();
        let looks = there.iter().map(async |line| {
            // By that of its names by which the Cluster sends its clients there.
            let node = line.places.iter().find(|place| known.contains(place)).unwrap_or(&line.places[0]);
            let is_serving = line.is("master") && line.served().next().is_some();
            let replicas = is_serving.then(|| replicas_of(line.id));
            let node_look = NodeLook { address: node.to_string(), replicas, ..NodeLook::default() };
            within(self.look_at(node, &names, node_look)).await.map_err(|error| format!("{node}: {error}"))
        });
        for node in join_all(looks).await {
            match node {
                Ok(node) => look.nodes.push(node),
                Err(why) => look.silent.push(why),
            }
        }
        look
    }

    async fn look_at(
        &self,
        node: &Node,
        names: &HashMap<&str, String>,
        look: NodeLook,
    ) -> Result<NodeLook, StoreError> {
        let mut wire = self.of_node(node).await?;
        let (before, started) = (clock::wall_ms(), clock::now());
        let (seconds, micros): (u64, u64) = wire.ask(SUBJECT, &redis::cmd("TIME")).await?;
        let within_ms = started.elapsed().as_millis() as u64;
        let (its_ms, our_ms) = (seconds * 1000 + micros / 1000, before + within_ms / 2);
        let info: String = wire.ask(SUBJECT, redis::cmd("INFO").arg("replication")).await?;
        let text = nodes(&mut wire).await?;
        let lines = lines(&text);
        let leaving = lines.iter().filter(|line| line.is("myself")).flat_map(Line::leaving);
        let leaving = leaving.map(|(slot, id)| (slot, names.get(id).map_or(id, String::as_str).to_owned())).collect();
        let settings = settings(&mut wire).await?;
        let setting = |name: &str| settings.get(name);
        Ok(NodeLook {
            ahead_ms: its_ms as i64 - our_ms as i64,
            within_ms,
            leaving,
            // Redis tells of good replicas only where it wants some.
            wants_replicas: info.contains("\nmin_slaves_good_slaves:"),
            full_coverage: setting("cluster-require-full-coverage").map(|value| value == "yes"),
            timeout_ms: setting("cluster-node-timeout").and_then(|value| value.parse().ok()),
            ..look
        })
    }

    async fn of_node(&self, node: &Node) -> Result<Wire, StoreError> {
        self.open(Some(node), None, config(Purpose::Other)).await
    }
}

async fn within<T>(look: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(LOOK_TIMEOUT, look).await.unwrap_or_else(|_| Err(StoreError::late(SUBJECT)))
}

async fn nodes(wire: &mut Wire) -> Result<String, StoreError> {
    wire.ask(SUBJECT, redis::cmd("CLUSTER").arg("NODES")).await
}

/// Nothing where this user may not see them.
async fn settings(wire: &mut Wire) -> Result<BTreeMap<String, String>, StoreError> {
    match wire.ask(SUBJECT, redis::cmd("CONFIG").arg("GET").arg("cluster-*")).await {
        Err(StoreError::Denied { .. }) => Ok(BTreeMap::new()),
        said => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
a 10.0.0.1:6379@16379,one.example myself,master - 0 0 1 connected 0-99 200 [93->-b] [77-<-b]
b 10.0.0.2:6379@16379,,shard-id=x master - 0 0 2 connected 101-199 201-16382
c 10.0.0.3:6379@16379 slave a 0 0 1 connected
d 10.0.0.4:6379@16379 master,fail - 0 0 3 disconnected 100
e :0@0 master,noaddr - 0 0 3 disconnected 16383
nonsense
f 10.0.0.5:6379@16379 slave,fail? b 0 0 1 connected
";

    #[test]
    fn lines_say_who_serves_what_and_what_is_on_its_way() {
        let lines = lines(TEXT);
        assert_eq!(lines.iter().map(|line| line.id).collect::<String>(), "abcdef");
        let places = |at: usize| lines[at].places.iter().map(Node::to_string).collect::<Vec<_>>();
        assert_eq!(places(0), ["10.0.0.1:6379", "one.example:6379"]);
        assert_eq!((places(1), places(4)), (vec!["10.0.0.2:6379".to_owned()], vec![]));
        assert_eq!(lines[0].served().collect::<Vec<_>>(), [(0, 99), (200, 200)]);
        assert_eq!(lines[0].leaving().collect::<Vec<_>>(), [(93, "b")]);
        let there: String = lines.iter().filter(|line| line.is_there()).map(|line| line.id).collect();
        assert_eq!(there, "abcf");
        assert_eq!(unserved(&lines), [(100, 100), (16383, 16383)]);
        assert_eq!(unserved(&[]), [(0, 16383)]);
    }
}
